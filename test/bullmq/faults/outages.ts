/**
 * One fault of the store, or of the line to it, once: two processes that submit and three that work, as far as the store
 * can tell, at whatever they do when it happens, and what holds when it is over.
 */
import { Deferred, Effect, Exit, Fiber, Schedule, Scope } from "effect"
import process from "node:process"
import type { Outcome } from "../../redis/faults/campaign.ts"
import { type Fault, faults as faultsOfRedis, kept, lasting, rare } from "../../redis/faults/faults.ts"
import * as proxy from "../../redis/proxy.ts"
import * as redis from "../../redis/server.ts"
import * as postgres from "../postgres.ts"
import { books, manager, start, until } from "./kills.ts"
import * as ledger from "./ledger.ts"
import { atOnce, commandTimeout, type Line, lock, Model, now, type Place, recorded } from "./process.ts"

const phases = ["idle", "at work", "claiming", "settling"] as const
type Phase = (typeof phases)[number]

type Postgres = Effect.Success<typeof postgres.own>

/** What was stored is gone with the others. */
const faults = {
  Redis: [...faultsOfRedis, ...rare].filter(({ loses }) => !loses),
  PostgreSQL: [
    lasting<Postgres>("is killed and comes back", ({ kill }) => kill, ({ start }) => start),
    lasting<Postgres>("is stopped in order and comes back", ({ stop }) => stop("SIGINT"), ({ start }) => start)
  ]
}

const atPort = (url: string, port: number): string => {
  const there = new URL(url)
  there.port = `${port}`
  return there.href
}

/** Who has what at most: of those that work, and the one that is killed. */
const takeAhead = 10
const workers = 3
const mostAgain = workers * takeAhead + atOnce

/** What a dead process held is looked for, after an error not before a pause. */
const taken = lock + 1000 + 5000
/** The pauses of the limits, then what was held and is lost, then an end whose event is lost and that is looked up. */
const bound = 6000 + taken + 5000
const boundOfCrash = taken + bound

interface Options<Server> {
  readonly kind: Place["kind"]
  readonly phase: Phase
  /** Milliseconds that the fault lasts. */
  readonly length: number
  readonly fault: Fault<Server>
  readonly own: Effect.Effect<Server & { readonly url: string; readonly port: number }, never, Scope.Scope>
}

const timed = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.suspend(() => {
    const began = performance.now()
    return Effect.map(effect, (value) => ({ value, took: performance.now() - began }))
  })

const runWith = <Server>({ fault, kind, length, own, phase }: Options<Server>) =>
  Effect.gen(function*() {
    const server = yield* own
    const line = yield* proxy.make(server.port)
    const store = atPort(server.url, line.port)
    const place: Place = {
      kind,
      store,
      redis: kind === "Redis" ? store : (yield* redis.own()).url,
      prefix: `outages-${process.pid}-${Math.random()}`
    }
    const book = yield* books
    const lines: Array<Line> = []
    const gate = yield* Deferred.make<void>()
    const { audit, problems, submit } = ledger.make()
    const submitters = yield* Effect.forEach([1, 2], () => manager(place))
    const team = yield* Effect.forEach(Array.from({ length: workers }, (_, index) => `p${index}`), (name) =>
      Effect.gen(function*() {
        const made = yield* manager(place, { takeAhead })
        yield* Scope.provide(
          // Before anything has happened it may take longer only because the machine is busy.
          Effect.retry(
            made.manager.registerQueue(
              Model,
              recorded(name, (line) =>
                void lines.push(line), ({ takes, text }) =>
                text === "gate" ? Deferred.await(gate) : Effect.sleep(takes))
            ),
            { times: 20, schedule: Schedule.spaced(100) }
          ),
          made.scope
        )
        return made
      }))

    // What they do when it happens -----------------------------------------------------------------------------------

    const fibers: Array<Fiber.Fiber<unknown, unknown>> = []
    let isOver = false
    const fork = (effect: Effect.Effect<unknown, unknown>) =>
      Effect.map(Effect.forkChild(effect), (fiber) =>
        void fibers.push(fiber))
    const submitAll = (text: string, takes: number) =>
      Effect.forEach(submitters, ({ manager }) => submit(manager, text, takes), { concurrency: "unbounded" })
    yield* submitAll("first", 1)
    const running = () => lines.reduce((sum, [what]) => sum + (what === "began" ? 1 : -1), 0)
    if (phase === "at work" || phase === "settling") {
      for (const { manager } of submitters) {
        // All that there is, something that waits in the processes, and something that waits in the store.
        for (let i = 0; i < (workers * takeAhead) / 2 + 3; i++) yield* fork(submit(manager, "gate", 1))
      }
      yield* until(() => running() === atOnce)
    } else if (phase === "claiming") {
      for (const { manager } of submitters) {
        for (let i = 0; i < 20; i++) {
          yield* fork(Effect.whileLoop({
            while: () => !isOver,
            body: () => submit(manager, `text ${i}`, 10),
            step: () => {}
          }))
        }
      }
      yield* until(() => lines.length > 60)
    }

    // While it lasts -------------------------------------------------------------------------------------------------

    const meanwhile = Effect.gen(function*() {
      const end = performance.now() + length
      if (phase === "settling") yield* fork(Effect.delay(Deferred.succeed(gate, undefined), 200))
      if (fault.isAway) {
        // It may be a moment until it is.
        yield* Effect.sleep(100)
        const { took, value } = yield* timed(
          Effect.timeoutOption(
            Effect.exit(submitters[0]!.manager.submit(Model, { text: "refused", takes: 1 }, { id: "refused" })),
            15_000
          )
        )
        const said = value._tag === "None"
          ? "nothing"
          : Exit.isSuccess(value.value)
          ? "its result"
          : value.value.cause.reasons.map((reason) => reason._tag === "Fail" ? reason.error._tag : reason._tag).join()
        if (said !== "QueueUnavailable") problems.add(`a submission is told ${said}`)
        if (took > 3 * commandTimeout + 1000) problems.add(`a submission is refused after ${Math.round(took)} ms`)
        const closed = yield* timed(Effect.timeoutOption(Scope.close(team[workers - 1]!.scope, Exit.void), 20_000))
        if (closed.took > 10_000) problems.add(`a scope has closed after ${Math.round(closed.took)} ms`)
      }
      yield* Effect.sleep(Math.max(0, end - performance.now()))
    })
    yield* fault.happen(
      server,
      line,
      Effect.provideService(meanwhile, Scope.Scope, yield* Effect.scope).pipe(Effect.orDie)
    )

    // And then -------------------------------------------------------------------------------------------------------

    yield* Deferred.succeed(gate, undefined)
    const healed = now()
    yield* Effect.timeoutOrElse(submitAll("then", 1), {
      duration: 60_000,
      orElse: () => Effect.sync(() => void problems.add("nothing more is processed"))
    })
    const back = now() - healed
    if (back > bound) problems.add(`processed again after ${Math.round(back)} ms, more than ${bound}`)
    isOver = true
    // Another process is there, takes something, and is killed.
    const doomed = yield* start({ ...place, name: "doomed", book: book.of("doomed") })
    yield* until(() => doomed.isReady || doomed.endedAt !== undefined)
    for (let i = 0; i < 100 && doomed.began.length === 0; i++) {
      for (let j = 0; j < 4; j++) yield* fork(submit(submitters[j % 2]!.manager, "hold", 1))
      yield* Effect.timeoutOption(until(() => doomed.began.length > 0), 200)
    }
    if (doomed.began.length === 0) problems.add("another process has nothing to do")
    doomed.child.kill("SIGKILL")
    const killed = now()
    yield* Effect.timeoutOrElse(Effect.forEach(fibers, Fiber.join, { discard: true }), {
      duration: 90_000,
      orElse: () => Effect.sync(() => void problems.add("what is left hangs"))
    })
    const crash = now() - killed
    if (crash > boundOfCrash) {
      problems.add(`what a dead process held has ended after ${Math.round(crash)} ms, more than ${boundOfCrash}`)
    }
    for (const { scope } of [...team, ...submitters]) {
      const { took } = yield* timed(Effect.timeoutOption(Scope.close(scope, Exit.void), 20_000))
      if (took > 10_000) problems.add(`its scope has closed after ${Math.round(took)} ms`)
    }
    const { again, lost, most, problems: all, submitted, worst } = audit([...lines, ...book.read()], [
      { name: "doomed", at: killed + 100 }
    ])
    const tooOften = again > mostAgain ? [`${again} were processed again, more than ${mostAgain}`] : []
    return {
      problems: [...all, ...tooOften],
      back,
      submitted,
      stored: { again, lost, most, worst, crash }
    } satisfies Outcome
  }).pipe(
    Effect.scoped,
    Effect.timeout(240_000),
    Effect.catchCause((cause) =>
      Effect.succeed<Outcome>({ problems: [`the run itself: ${String(cause)}`], back: Number.NaN, submitted: 0 })
    )
  )

interface Row {
  readonly kind: Place["kind"]
  readonly name: string
  readonly run: Effect.Effect<Outcome>
}

const lengths = [1000, 6000]

export const rows: ReadonlyArray<Row> = phases.flatMap((phase) =>
  lengths.flatMap((length) =>
    faults.Redis.map((fault): Row => ({
      kind: "Redis",
      name: `stored on a Redis that ${fault.name}, ${phase}, ${length} ms`,
      run: runWith({ kind: "Redis", fault, phase, length, own: redis.own(...kept, ...fault.options ?? []) })
    })).concat(faults.PostgreSQL.map((fault): Row => ({
      kind: "PostgreSQL",
      name: `stored on a PostgreSQL that ${fault.name}, ${phase}, ${length} ms`,
      run: runWith({ kind: "PostgreSQL", fault, phase, length, own: postgres.own })
    })))
  )
)
