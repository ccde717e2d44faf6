/** Processes that work on stored requests are killed, one after the other, and the store is restarted in between. */
import { Context, Effect, Exit, Fiber, Layer, Scope } from "effect"
import { QueueManager } from "effect-llm-queue"
import type * as BullMq from "effect-llm-queue/BullMq"
import { type ChildProcess, fork } from "node:child_process"
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import process from "node:process"
import { fileURLToPath } from "node:url"
import type { Outcome } from "../../redis/faults/campaign.ts"
import { kept } from "../../redis/faults/faults.ts"
import * as redis from "../../redis/server.ts"
import * as postgres from "../postgres.ts"
import * as ledger from "./ledger.ts"
import {
  atOnce,
  type Death,
  deaths,
  type Job,
  layer,
  type Line,
  lock,
  type Message,
  now,
  type Order,
  type Place
} from "./process.ts"

/** A store of requests that can be stopped and started, and where the limits are. */
const places = {
  Redis: Effect.map(redis.own(...kept), (server) => ({ ...server, redis: server.url })),
  PostgreSQL: Effect.flatMap(
    postgres.own,
    (server) => Effect.map(redis.own(), ({ url }) => ({ ...server, redis: url }))
  )
}

export const until = (condition: () => boolean) =>
  Effect.whileLoop({ while: () => !condition(), body: () => Effect.sleep(10), step: () => {} })

export interface Worker {
  readonly name: string
  readonly child: ChildProcess
  readonly began: Array<string>
  isReady: boolean
  endedAt: number | undefined
}

const order = ({ child }: Worker, what: Order) => {
  if (child.connected) child.send(what)
}

/** Starts a process; it is ready later. */
export const start = (job: Job) =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const child = fork(fileURLToPath(new URL("process.ts", import.meta.url)), [JSON.stringify(job)], {
        execArgv: ["-C", "llmq-source"]
      })
      const worker: Worker = { name: job.name, child, began: [], isReady: false, endedAt: undefined }
      child.on("message", ({ began, ready }: Message) => {
        if (began !== undefined) worker.began.push(began)
        if (ready) worker.isReady = true
      })
      child.once("exit", () => {
        worker.endedAt = now()
      })
      return worker
    }),
    ({ child }) => Effect.sync(() => void child.kill("SIGKILL"))
  )

/** Where processes keep their books. */
export const books = Effect.map(
  Effect.acquireRelease(
    Effect.sync(() => mkdtempSync(join(tmpdir(), "llmq-books-"))),
    (directory) => Effect.sync(() => rmSync(directory, { recursive: true, force: true }))
  ),
  (directory) => ({
    of: (name: string) => join(directory, name),
    read: (): ReadonlyArray<Line> =>
      readdirSync(directory).filter((name) => existsSync(join(directory, name))).flatMap((name) =>
        readFileSync(join(directory, name), "utf8").trimEnd().split("\n").filter((line) => line !== "").map((line) =>
          JSON.parse(line) as Line
        )
      )
  })
)

/** A process, as far as the store can tell. */
export const manager = Effect.fnUntraced(function*(place: Place, options?: BullMq.Options) {
  const scope = yield* Scope.make()
  yield* Effect.addFinalizer(() => Scope.close(scope, Exit.void))
  const context = yield* Layer.buildWithScope(Layer.fresh(layer(place, options)), scope)
  return { manager: Context.get(context, QueueManager.QueueManager), scope }
})

export interface Options {
  readonly kind: Place["kind"]
  readonly kills: number
  readonly restarts: number
  /** How often a process stands still for longer than its lock. */
  readonly stalls: number
}

/** What a store is restarted in the middle of. */
const restartPhases = ["idle", "at work", "under load"] as const

const workers = 4
/** How long a store is away: shorter than a lock, so that what ends meanwhile is stored. */
const away = 700

const random = (least: number, most: number): number => least + Math.random() * (most - least)

export const run = ({ kills, kind, restarts, stalls }: Options) =>
  Effect.gen(function*() {
    const server = yield* places[kind]
    const book = yield* books
    const place: Place = {
      kind,
      store: server.url,
      redis: server.redis,
      prefix: `kills-${process.pid}-${Math.random()}`
    }
    const { audit, entries, problems, submit } = ledger.make()
    let started = 0
    const begin = Effect.suspend(() => {
      const name = `w${started++}`
      return start({ ...place, name, book: book.of(name) })
    })
    const team = yield* Effect.forEach(Array.from({ length: workers }), () => begin)
    const dead: Array<Worker> = []
    const submitters = yield* Effect.forEach([1, 2], () => manager(place))
    yield* until(() => team.every(({ isReady }) => isReady))

    // The load -------------------------------------------------------------------------------------------------------

    let isOver = false
    let isIdle = false
    let outstanding = 0
    const load = yield* Effect.forkChild(Effect.forEach(
      submitters.flatMap(({ manager }) => Array.from({ length: 20 }, () => manager)),
      (manager) =>
        Effect.whileLoop({
          while: () => !isOver,
          body: () =>
            isIdle ? Effect.sleep(10) : Effect.suspend(() => {
              outstanding++
              return Effect.andThen(
                submit(manager, `text ${entries.size}`, random(20, 150)),
                Effect.sync(() => void outstanding--)
              )
            }),
          step: () => {}
        }),
      { concurrency: "unbounded", discard: true }
    ))

    // What happens ---------------------------------------------------------------------------------------------------

    const died = new Map<Death, number>()
    const kill = (death: Death) =>
      Effect.gen(function*() {
        yield* until(() => team.some(({ began, isReady }) => isReady && began.length > 0))
        const ready = team.filter(({ began, isReady }) => isReady && began.length > 0)
        const victim = ready[Math.floor(Math.random() * ready.length)]!
        yield* Effect.sleep(random(0, 100))
        order(victim, { die: death })
        yield* Effect.timeoutOption(until(() => victim.endedAt !== undefined), 3000)
        // It has not come to that.
        if (victim.endedAt === undefined) victim.child.kill("SIGKILL")
        else died.set(death, (died.get(death) ?? 0) + 1)
        yield* until(() => victim.endedAt !== undefined)
        team.splice(team.indexOf(victim), 1, yield* begin)
        dead.push(victim)
      })
    const stall = Effect.gen(function*() {
      yield* until(() => team.some(({ began, isReady }) => isReady && began.length > 0))
      const { child } = team.find(({ began, isReady }) => isReady && began.length > 0)!
      child.kill("SIGSTOP")
      yield* Effect.sleep(lock + 1200)
      child.kill("SIGCONT")
    })
    let longest = 0
    const restart = (phase: typeof restartPhases[number]) =>
      Effect.gen(function*() {
        isIdle = phase === "idle"
        if (isIdle) yield* until(() => outstanding === 0)
        if (phase === "at work") yield* until(() => outstanding > 0)
        yield* Effect.sleep(random(0, 200))
        yield* server.kill
        yield* Effect.sleep(away)
        yield* server.start
        isIdle = false
        const back = now()
        const before = entries.size
        // Something that was submitted after it has ended.
        yield* until(() => Array.from(entries.values()).slice(before).some(({ ends }) => ends > 0))
        longest = Math.max(longest, now() - back)
      })

    const happen = Effect.gen(function*() {
      let restarted = 0
      let stalled = 0
      for (let round = 0; round < kills; round++) {
        yield* Effect.sleep(random(100, 600))
        yield* kill(deaths[round % deaths.length]!)
        if (restarted < (restarts * (round + 1)) / kills) yield* restart(restartPhases[restarted++ % 3]!)
        if (stalled < Math.floor((stalls * (round + 1)) / kills)) {
          stalled++
          yield* stall
        }
      }
    })
    yield* Effect.timeoutOrElse(happen, {
      duration: 60_000 + 15_000 * (kills + restarts + stalls),
      orElse: () => Effect.sync(() => void problems.add("nothing goes on"))
    })
    isOver = true
    yield* Effect.timeoutOption(Fiber.join(load), 60_000)
    for (const worker of team) order(worker, { stop: true })
    yield* Effect.timeoutOption(until(() => team.every(({ endedAt }) => endedAt !== undefined)), 20_000)
    const left = team.filter(({ endedAt }) => endedAt === undefined)
    if (left.length > 0) problems.add(`${left.length} processes have not ended`)

    // What must hold -------------------------------------------------------------------------------------------------

    // Whoever asks later hears what was heard.
    const told = Array.from(entries.values()).filter(({ by }) => by !== undefined)
    yield* Effect.forEach(
      told,
      ({ by, id }) =>
        Effect.map(ledger.patiently(submitters[0]!.manager.awaitCompletion(ledger.Model, id)), ({ result }) => {
          if (result.by !== by) problems.add("another result is stored than was heard")
        }),
      { concurrency: 20 }
    )
    const { again, locks, lost, most, problems: all, submitted, worst } = audit(
      book.read(),
      dead.map(({ endedAt, name }) => ({ name, at: endedAt! }))
    )
    const mostAgain = (kills + stalls) * atOnce + locks
    const tooOften = again > mostAgain ? [`${again} were processed again, more than ${mostAgain}`] : []
    return {
      problems: [...all, ...tooOften],
      back: longest,
      submitted,
      stored: { again, lost, most, worst }
    } satisfies Outcome
  }).pipe(
    Effect.scoped,
    Effect.catchCause((cause) =>
      Effect.succeed<Outcome>({ problems: [`the run itself: ${String(cause)}`], back: Number.NaN, submitted: 0 })
    )
  )
