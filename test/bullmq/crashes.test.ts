import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber } from "effect"
import { QueueManager, QueueRequest } from "effect-llm-queue"
import { type ChildProcess, fork } from "node:child_process"
import process from "node:process"
import { fileURLToPath } from "node:url"
import { canStart, hasRedis, own, url } from "../redis/server.ts"
import { layer, type Message, Model } from "./worker.ts"

let prefixes = 0

interface Worker {
  readonly child: ChildProcess
  readonly began: Array<string>
  readonly ended: Array<string>
  isReady: boolean
}

const start = (redis: string, prefix: string, how = "") =>
  Effect.acquireRelease(
    Effect.callback<Worker>((resume) => {
      const child = fork(fileURLToPath(new URL("worker.ts", import.meta.url)), [redis, prefix, how], {
        execArgv: ["-C", "llmq-source"]
      })
      const worker: Worker = { child, began: [], ended: [], isReady: false }
      child.on("message", ({ began, ended, ready }: Message) => {
        if (began !== undefined) worker.began.push(began)
        if (ended !== undefined) worker.ended.push(ended)
        if (ready) resume(Effect.succeed(worker))
      })
    }),
    ({ child }) => Effect.sync(() => void child.kill("SIGKILL"))
  )

const isOver = ({ child }: Worker) => child.exitCode !== null || child.signalCode !== null

const until = (condition: () => boolean) =>
  Effect.whileLoop({ while: () => !condition(), body: () => Effect.sleep(10), step: () => {} })

/** Where the requests of one test are, and a process that submits. */
const place = Effect.gen(function*() {
  const redis = yield* url
  return { redis, prefix: `crashes-${process.pid}-${Math.random()}-${prefixes++}` }
})

describe.runIf(canStart)("a process that works on stored requests", () => {
  it.live("ends when it is told to, also while the store is away", () =>
    Effect.gen(function*() {
      const server = yield* own("--appendonly yes", "--appendfsync always")
      const prefix = `crashes-${process.pid}`
      const worker = yield* start(server.url, prefix)
      yield* Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        yield* manager.submit(Model, { text: "before" })
        yield* server.kill
        worker.child.send("stop")
        yield* until(() => isOver(worker))
        assert.strictEqual(worker.child.exitCode, 0)
      }).pipe(Effect.provide(layer(server.url, prefix)))
    }).pipe(Effect.scoped), 60_000)
})

describe.runIf(hasRedis)("stored requests", () => {
  it.live("survive the processes that work on them, and each is answered once", () =>
    Effect.gen(function*() {
      const { prefix, redis } = yield* place
      const kills = 3
      yield* Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const workers = yield* Effect.forEach([1, 2, 3], () => start(redis, prefix))
        const ids: Array<string> = []
        let answers = 0
        const submitMore = Effect.suspend(() => {
          const more = Array.from({ length: 40 }, (_, index) => `r${ids.length + index}`)
          ids.push(...more)
          return Effect.forkChild(Effect.forEach(more, (id) =>
            Effect.tap(manager.submit(Model, { text: id }, { id }), ({ result }) =>
              Effect.sync(() => {
                answers++
                assert.strictEqual(result.text, id.toUpperCase())
              })), { concurrency: "unbounded", discard: true }))
        })
        const submitted = []
        for (let round = 1; round <= kills; round++) {
          submitted.push(yield* submitMore)
          // In the middle of something.
          const busy = () =>
            workers.find((worker) => !isOver(worker) && worker.began.length > worker.ended.length)
          yield* until(() => busy() !== undefined)
          busy()!.child.kill("SIGKILL")
          workers.push(yield* start(redis, prefix))
        }
        for (const each of submitted) yield* Fiber.join(each)
        assert.strictEqual(answers, ids.length)
        const began = workers.flatMap((worker) => worker.began)
        assert.sameMembers(Array.from(new Set(began)), ids)
        // Each kill can have cut off as many as a process has running.
        assert.isAtMost(began.length - ids.length, kills * 4)
        for (const id of ids) assert.strictEqual((yield* manager.getStatus(Model, id)).status, "completed")
      }).pipe(Effect.provide(layer(redis, prefix)))
    }).pipe(Effect.scoped), 120_000)

  it.live("that kill whoever works on them fail, and say so", () =>
    Effect.gen(function*() {
      const { prefix, redis } = yield* place
      yield* Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        let died = 0
        let isOver_ = false
        const crew = yield* Effect.forkChild(Effect.gen(function*() {
          while (!isOver_) {
            const worker = yield* start(redis, prefix)
            yield* until(() => isOver(worker) || isOver_)
            if (isOver(worker)) died++
          }
        }))
        const error = yield* Effect.flip(manager.submit(Model, { text: "poison" }, { id: "poison" }))
        assert.strictEqual(error._tag, "ProcessingError")
        assert.include(error.message, "died")
        assert.strictEqual(died, 3)
        // What comes after it is worked on.
        assert.strictEqual((yield* manager.submit(Model, { text: "fine" })).result.text, "FINE")
        isOver_ = true
        yield* Fiber.join(crew)
      }).pipe(Effect.provide(layer(redis, prefix)))
    }).pipe(Effect.scoped), 120_000)

  it.live(
    "whose process stands still are another one's, and what it brings late does not count",
    () =>
      Effect.gen(function*() {
        const { prefix, redis } = yield* place
        yield* Effect.gen(function*() {
          const manager = yield* QueueManager.QueueManager
          const stalls = yield* start(redis, prefix, "stalls")
          const submitted = yield* Effect.forkChild(manager.submit(Model, { text: "stall" }, { id: "stall" }))
          yield* until(() => stalls.began.length === 1)
          const next = yield* start(redis, prefix)
          yield* until(() => next.began.length === 1)
          yield* until(() => stalls.ended.length === 1 || isOver(stalls))
          const { result } = yield* Fiber.join(submitted)
          assert.strictEqual(result.text, "STALL")
          assert.strictEqual((yield* manager.getStatus(Model, "stall")).status, "completed")
          for (const { child } of [stalls, next]) child.send("stop")
          yield* until(() => isOver(stalls) && isOver(next))
        }).pipe(Effect.provide(layer(redis, prefix)))
      }).pipe(Effect.scoped),
    120_000
  )

  it.live(
    "that have not begun are given back when their process ends, and lose no time to it",
    () =>
      Effect.gen(function*() {
        const { prefix, redis } = yield* place
        yield* Effect.gen(function*() {
          const manager = yield* QueueManager.QueueManager
          const first = yield* start(redis, prefix)
          const ids = Array.from({ length: 100 }, (_, index) => `g${index}`)
          const pending = yield* Effect.forEach(
            ids,
            (id) =>
              manager.submitRequest(QueueRequest.make(Model, { id, params: { text: id }, waitForCompletion: false }))
          )
          yield* until(() => first.began.length > 0)
          first.child.send("stop")
          yield* until(() => isOver(first))
          // What had begun has ended, and no more.
          assert.sameMembers(first.began, first.ended)
          assert.isBelow(first.began.length, ids.length)
          const second = yield* start(redis, prefix)
          for (const each of pending) yield* manager.awaitCompletion(each)
          const began = [...first.began, ...second.began]
          assert.strictEqual(began.length, ids.length)
          assert.sameMembers(began, ids)
        }).pipe(Effect.provide(layer(redis, prefix)))
      }).pipe(Effect.scoped),
    120_000
  )
})
