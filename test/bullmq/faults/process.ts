/**
 * A process of a campaign: what all of them know, and one that works on stored requests and can be told how to die. It
 * keeps its books in a file, which outlives it.
 */
import { createPostgresBackend } from "bullmq"
import { Effect, Layer, Logger, Schedule, Schema } from "effect"
import { ModelConfig, QueueManager, RateLimiter } from "effect-llm-queue"
import * as BullMq from "effect-llm-queue/BullMq"
import * as QueueRedis from "effect-llm-queue/Redis"
import { openSync, writeSync } from "node:fs"
import process from "node:process"

/** Where the requests and the limits are. */
export interface Place {
  readonly kind: "Redis" | "PostgreSQL"
  /** Of the requests. */
  readonly store: string
  /** Of the limits. */
  readonly redis: string
  readonly prefix: string
}

export const lock = 1500
/** Longer than anybody stands still, so that `concurrent` holds all the time. */
export const lease = 4500
export const commandTimeout = 1000
export const atOnce = 12
export const takeAhead = 6
export const limit = 40
export const period = 2000

export const Model = ModelConfig.make("stored", {
  params: Schema.Struct({ text: Schema.String, takes: Schema.Finite }),
  result: Schema.Struct({ text: Schema.String, by: Schema.String }),
  rateLimiters: [RateLimiter.rpm(limit, { timePeriod: period }), RateLimiter.concurrent(atOnce)],
  retention: { count: 10_000 },
  capacity: 1000,
  shutdown: { policy: "finishRunning", deadline: "5 seconds" }
})

export const layer = (
  { kind, prefix, redis, store }: Place,
  options: BullMq.Options = {}
): Layer.Layer<QueueManager.QueueManager> => {
  const { hostname, port } = new URL(store)
  return BullMq.layer({
    connection: kind === "Redis"
      ? { host: hostname, port: Number(port) }
      : { connectionString: store, migrate: true },
    backend: kind === "Redis" ? undefined : createPostgresBackend,
    prefix: `${prefix}-jobs`,
    lock,
    takeAhead,
    // Who dies is chosen at random, and nothing is to fail for it.
    maxCrashes: 1000,
    commandTimeout,
    ...options
  }).pipe(
    Layer.provide(QueueRedis.layer({ prefix, lease, margin: 400, commandTimeout })),
    Layer.provide(QueueRedis.layerClient(redis, { commandTimeout }))
  )
}

/** The clock that all processes of a machine have. */
export const now = (): number => Number(process.hrtime.bigint()) / 1e6

/** A line of the books: an execution of a request begins, or ends, or its lock is lost. */
export type Line = readonly [what: "began" | "ended" | "lost", id: string, by: string, at: number]

interface Params {
  readonly text: string
  readonly takes: number
}

/** A processor that writes down what it begins and ends. */
export const recorded = (
  name: string,
  write: (line: Line) => void,
  work: (params: Params) => Effect.Effect<void>
) => {
  let executions = 0
  return ({ id, params }: { readonly id: string; readonly params: Params }) =>
    Effect.acquireUseRelease(
      Effect.sync(() => {
        const by = `${name}-${executions++}`
        write(["began", id, by, now()])
        return by
      }),
      (by) => Effect.as(work(params), { text: params.text.toUpperCase(), by }),
      (by) => Effect.sync(() => write(["ended", id, by, now()]))
    )
}

export const deaths = [
  "at any time",
  "with something that has not begun",
  "with something in flight",
  "settling"
] as const
export type Death = (typeof deaths)[number]

export interface Job extends Place {
  readonly name: string
  readonly book: string
}

export interface Message {
  readonly ready?: true
  readonly began?: string
}

export interface Order {
  readonly die?: Death
  readonly stop?: true
}

const work = ({ book, name, ...place }: Job) =>
  Effect.gen(function*() {
    const file = openSync(book, "a")
    const write = (...line: Line) => void writeSync(file, `${JSON.stringify(line)}\n`)
    const say = (message: Message) => void process.send?.(message)
    const run = Effect.runForkWith(yield* Effect.context())
    let running = 0
    let death: Death | undefined
    const die = (when: Death) => {
      if (death === when) process.kill(process.pid, "SIGKILL")
    }
    const processor = recorded(name, (line) => {
      write(...line)
      const [what, id] = line
      if (what === "began") {
        running++
        say({ began: id })
      } else {
        running--
        // While its end is on its way to the store, is there, or comes back.
        run(Effect.delay(Effect.sync(() => die("settling")), 3 * Math.random()))
      }
    }, ({ takes, text }) =>
      Effect.gen(function*() {
        yield* Effect.sleep(takes / 2)
        yield* Effect.sync(() => die("with something in flight"))
        // Here it is held for as long as the process lives.
        if (text === "hold") return yield* Effect.never
        yield* Effect.sleep(takes / 2)
      }))
    const program = Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      yield* Effect.retry(manager.registerQueue(Model, processor), {
        while: ({ _tag }) => _tag === "QueueUnavailable",
        schedule: Schedule.spaced(100)
      })
      say({ ready: true })
      yield* Effect.forkChild(Effect.forever(Effect.gen(function*() {
        yield* Effect.sleep(10)
        if (death !== "with something that has not begun") return
        if (running < (yield* manager.getQueueInfo(Model)).depth) die(death)
      })))
      yield* Effect.callback<void>((resume) => {
        process.on("message", (order: Order) => {
          death = order.die
          if (order.stop) resume(Effect.void)
          else die("at any time")
        })
        process.once("disconnect", () => resume(Effect.void))
      })
    })
    const notesLosses = Logger.make(({ message }) => {
      const id = /^The lock of request (\S+) .* is lost/.exec(String(message))?.[1]
      if (id !== undefined) write("lost", id, name, now())
    })
    yield* program.pipe(
      Effect.scoped,
      Effect.provide(Layer.provideMerge(layer(place), Logger.layer([notesLosses])))
    )
  })

const [, file, job] = process.argv

if (process.send !== undefined && file?.endsWith("bullmq/faults/process.ts") && job !== undefined) {
  await Effect.runPromise(work(JSON.parse(job) as Job))
  process.disconnect()
}
