/**
 * What several processes do to one stored request at one time: whatever comes first, all of them are told the same, and
 * nothing that was accepted is lost.
 */
import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import { Cause, Clock, Deferred, Duration, Effect, Exit, Fiber, Schema, Scope } from "effect"
import { ModelConfig, QueueError, QueueRequest } from "effect-llm-queue"
import type * as BullMq from "effect-llm-queue/BullMq"
import { Redis } from "ioredis"
import { type AddressInfo, createServer, type Server, type Socket } from "node:net"
import { shifted } from "../redis/faults/clocks.ts"
import { canStart, hasRedis, own } from "../redis/server.ts"
import * as stores from "./stores.ts"

class Broken extends Schema.TaggedError<Broken>()("Broken", { why: Schema.String }) {}

const Failures = Schema.Union([
  Broken,
  QueueError.RequestNotFound,
  QueueError.RequestCancelled,
  QueueError.QueueTimeout
])

const define = (options: Partial<ModelConfig.Options<string, string>> = {}) =>
  ModelConfig.make("raced", {
    params: Schema.String,
    result: Schema.String,
    error: Failures,
    rateLimiters: "unlimited",
    ...options
  })

type Model = ReturnType<typeof define>

const start = Effect.fnUntraced(function*(options: BullMq.Options, Model: Model) {
  const { close, manager, scope } = yield* stores.start(options)
  return {
    close,
    manager,
    register: (processor: (params: string) => Effect.Effect<string, typeof Failures.Type>) =>
      Scope.provide(manager.registerQueue(Model, ({ params }) => processor(params)), scope)
  }
})

const exits = (exit: Exit.Exit<unknown, unknown>): string => {
  if (Exit.isSuccess(exit)) return "completed"
  const error = Cause.squash(exit.cause)
  return QueueError.isQueueError(error) ? error._tag : String(error)
}

for (const { isThere, name, options } of stores.stores) {
  describe.runIf(isThere)(`stored ${name}`, () => {
    // One server for all of them.
    const scope = Scope.makeUnsafe()
    let server: BullMq.Options = {}
    beforeAll(() =>
      Effect.runPromise(
        Effect.gen(function*() {
          server = yield* options
          // It is made once what it needs, and not by all at one time.
          const { manager } = yield* stores.start({ ...server, prefix: stores.newPrefix() })
          yield* manager.getRequests(define())
        }).pipe(Effect.orDie, Scope.provide(scope))
      ), 60_000)
    afterAll(() => Effect.runPromise(Scope.close(scope, Exit.void)))

    it.live(
      "each submission has its own answer, whoever else uses its id, however little is kept",
      () =>
        Effect.gen(function*() {
          // PostgreSQL may tell of an end only when it is looked up, some seconds later: until then it has to be kept.
          const Model = define({ retention: { count: name === "on Redis" ? 0 : 1000 } })
          const common = { ...server, prefix: stores.newPrefix() }
          const processes = yield* Effect.forEach([1, 2], () => start(common, Model))
          let processed = 0
          yield* processes[0]!.register((params) =>
            Effect.sync(() => {
              processed++
              return params
            })
          )
          let accepted = 0
          // Both ask for the same few ids all the time.
          yield* Effect.forEach(processes, ({ manager }, index) =>
            Effect.forEach(Array.from({ length: 60 }), (_, i) =>
              Effect.gen(function*() {
                const params = `${index} ${i}`
                const exit = yield* Effect.exit(manager.submit(Model, params, { id: `id ${i % 3}` }))
                if (exits(exit) === "DuplicateRequest") {
                  return
                }
                accepted++
                assert.isTrue(Exit.isSuccess(exit), String(exit))
                if (Exit.isSuccess(exit)) {
                  assert.strictEqual(exit.value.result, params)
                }
              }), { concurrency: 4, discard: true }), { concurrency: "unbounded", discard: true })
          assert.isAtLeast(accepted, 3)
          assert.strictEqual(processed, accepted)
        }).pipe(Effect.scoped),
      60_000
    )

    it.live("a submission that is interrupted says nothing to the next one with its id", () =>
      Effect.gen(function*() {
        const Model = define()
        const { manager, register } = yield* start({ ...server, prefix: stores.newPrefix() }, Model)
        yield* register((params) => params === "first" ? Effect.never : Effect.succeed(params))
        for (let i = 0; i < 20; i++) {
          const id = `id ${i}`
          const first = yield* Effect.forkChild(manager.submit(Model, "first", { id }))
          yield* Effect.sleep(i)
          yield* Fiber.interrupt(first)
          const second = yield* Effect.exit(manager.submit(Model, "second", { id }))
          if (exits(second) !== "DuplicateRequest") assert.strictEqual(exits(second), "completed")
        }
        // And nothing goes on that was interrupted, however late it was taken.
        const isRunning = Effect.map(manager.getQueueInfo(Model), ({ running }) => running > 0)
        const atRest = Effect.repeat(Effect.delay(isRunning, 50), { while: (isRunning) => isRunning })
        yield* Effect.timeout(atRest, "20 seconds")
      }).pipe(Effect.scoped), 60_000)

    it.live("what is interrupted while it is stored is not there", () =>
      Effect.gen(function*() {
        const Model = define()
        const { manager } = yield* start({ ...server, prefix: stores.newPrefix() }, Model)
        yield* manager.submitRequest(QueueRequest.make(Model, { params: "", id: "stays", waitForCompletion: false }))
        yield* Effect.forEach(Array.from({ length: 100 }), (_, i) =>
          Effect.gen(function*() {
            const fiber = yield* Effect.forkChild(manager.submit(Model, "", { id: `id ${i}` }), {
              startImmediately: true
            })
            for (let turn = 0; turn < i % 20; turn++) yield* Effect.yieldNow
            yield* Fiber.interrupt(fiber)
          }), { concurrency: 20, discard: true })
        const left = yield* manager.getRequests(Model)
        assert.deepStrictEqual(left.map(({ requestId }) => requestId), ["stays"])
      }).pipe(Effect.scoped), 60_000)

    it.live(
      "who is told that it cancelled a request has, and else it has its own end, for all that ask",
      () =>
        Effect.gen(function*() {
          const Model = define()
          const common = { ...server, prefix: stores.newPrefix() }
          const [a, b] = yield* Effect.forEach([1, 2], () => start(common, Model))
          yield* a!.register((params) =>
            params === "0" ? Effect.never : Effect.delay(Effect.succeed(params), Number(params))
          )
          const counts = { true: 0, false: 0 }
          yield* Effect.forEach(Array.from({ length: 80 }), (_, i) =>
            Effect.gen(function*() {
              const id = `id ${i}`
              const submitted = yield* Effect.forkChild(Effect.exit(b!.manager.submit(Model, `${i % 5}`, { id })))
              // One that never ends by itself, one that has ended before, and three of which nobody knows.
              if (i % 5 === 1) yield* Fiber.await(submitted)
              else yield* Effect.sleep(2 + i % 9)
              const other = i % 2 === 0 ? a!.manager : b!.manager
              const cancelled = yield* Effect.orElseSucceed(other.cancelRequest(Model, id), () => undefined)
              if (cancelled === undefined) return yield* Fiber.interrupt(submitted)
              counts[`${cancelled}`]++
              const heard = exits(yield* Fiber.join(submitted))
              assert.strictEqual(heard, cancelled ? "RequestCancelled" : "completed")
              for (const { manager } of [a!, b!]) {
                assert.strictEqual(
                  (yield* manager.getStatus(Model, id)).status,
                  cancelled ? "cancelled" : "completed"
                )
              }
              return undefined
            }), { concurrency: 4, discard: true })
          assert.isAbove(counts.true, 0)
          assert.isAbove(counts.false, 0)
        }).pipe(Effect.scoped),
      60_000
    )

    it.live("a priority that changes does not bring back what was cancelled", () =>
      Effect.gen(function*() {
        const Model = define()
        const { manager } = yield* start({ ...server, prefix: stores.newPrefix() }, Model)
        yield* Effect.forEach(Array.from({ length: 50 }), (_, i) =>
          Effect.gen(function*() {
            const id = `id ${i}`
            yield* manager.submitRequest(QueueRequest.make(Model, { params: "", id, waitForCompletion: false }))
            const [, cancelled] = yield* Effect.all([
              manager.changePriority(Model, id, i),
              manager.cancelRequest(Model, id)
            ], { concurrency: "unbounded" })
            assert.isTrue(cancelled)
            assert.strictEqual((yield* manager.getStatus(Model, id)).status, "cancelled")
          }), { concurrency: 4, discard: true })
      }).pipe(Effect.scoped), 60_000)

    it.live("errors of other requests are the processor's own", () =>
      Effect.gen(function*() {
        const Model = define()
        const { manager, register } = yield* start({ ...server, prefix: stores.newPrefix() }, Model)
        let calls = 0
        const others = [
          new QueueError.RequestCancelled({ modelId: "other", requestId: "other" }),
          new QueueError.RequestNotFound({ modelId: "raced", requestId: "other" }),
          new QueueError.QueueTimeout({
            modelId: "other",
            requestId: "other",
            limit: "timeout",
            timeoutMillis: 5,
            queueTimeMillis: 1,
            processingTimeMillis: 2
          })
        ]
        yield* register((params) =>
          Effect.suspend(() => {
            calls++
            return Effect.fail(others[Number(params)]!)
          })
        )
        for (const [index, other] of others.entries()) {
          const error = yield* Effect.flip(manager.submit(Model, `${index}`, { timeout: "1 hour" }))
          assert.deepStrictEqual(error, other)
        }
        assert.strictEqual(calls, others.length)
      }).pipe(Effect.scoped), 60_000)

    it.live(
      "who waits hears that its process ends, and another process goes on with the request",
      () =>
        Effect.gen(function*() {
          const Model = define()
          const common = { ...server, prefix: stores.newPrefix() }
          const [a, b] = yield* Effect.forEach([1, 2], () => start(common, Model))
          const submitted = yield* Effect.forkChild(Effect.exit(a!.manager.submit(Model, "x", { id: "id" })))
          while ((yield* b!.manager.getRequests(Model)).length === 0) yield* Effect.sleep(10)
          yield* a!.close
          assert.strictEqual(exits(yield* Fiber.join(submitted)), "QueueShutdown")
          yield* b!.register(Effect.succeed)
          assert.strictEqual((yield* b!.manager.awaitCompletion(Model, "id")).result, "x")
        }).pipe(Effect.scoped),
      60_000
    )

    it.live("clocks that are wrong by an hour change nothing: the store's counts", () =>
      Effect.gen(function*() {
        for (const by of [-3_600_000, 3_600_000]) {
          const common = { ...server, prefix: stores.newPrefix() }
          const Model = define()
          const Never = ModelConfig.make("never", {
            params: Schema.String,
            result: Schema.String,
            rateLimiters: "unlimited"
          })
          const clock = yield* shifted(by)
          const right = yield* start(common, Model)
          const wrong = yield* Effect.provideService(stores.start(common), Clock.Clock, clock)
          const registered = Effect.andThen(
            wrong.manager.registerQueue(Model, ({ params }) => Effect.succeed(params)),
            wrong.manager.registerQueue(Never, () => Effect.never)
          )
          yield* Scope.provide(Effect.provideService(registered, Clock.Clock, clock), wrong.scope)
          for (const { manager } of [right, wrong]) {
            const done = yield* manager.submit(Model, "x", { timeout: "20 seconds" })
            assert.strictEqual(done.result, "x")
            assert.isBelow(Duration.toMillis(done.queueTime), 20_000)
            const error = yield* Effect.flip(manager.submit(Never, "x", { timeout: "1 second" }))
            assert(error._tag === "QueueTimeout")
            assert.isBelow(error.queueTimeMillis + error.processingTimeMillis, 20_000)
          }
        }
      }).pipe(Effect.scoped), 60_000)

    it.live(
      "another definition counts from its registration on, and one of a group leaves alone",
      () =>
        Effect.gen(function*() {
          const Other = ModelConfig.make("other", {
            params: Schema.String,
            result: Schema.String,
            error: Failures,
            rateLimiters: "unlimited"
          })
          const { manager, scope } = yield* stores.start({ ...server, prefix: stores.newPrefix() })
          const echo = ({ params }: { readonly params: string }) => Effect.succeed(params)
          yield* Scope.provide(manager.registerAllQueues([define({ capacity: 1 }), Other], echo), scope)
          yield* manager.unregisterQueue("raced")
          assert.deepStrictEqual(yield* manager.getRegisteredModels, ["other"])
          assert.strictEqual((yield* manager.submit(Other, "x")).result, "x")
          const Wider = define({ capacity: 7 })
          yield* Scope.provide(manager.registerQueue(Wider, echo), scope)
          assert.strictEqual((yield* manager.getQueueInfo("raced")).capacity, 7)
          assert.strictEqual((yield* manager.submit(Wider, "y")).result, "y")
        }).pipe(Effect.scoped),
      60_000
    )
  })
}

describe.runIf(hasRedis)("a store that", () => {
  it.live("has lost a request says so to who waits for it", () =>
    Effect.gen(function*() {
      const Model = define()
      const { connection, url } = yield* stores.place
      const prefix = stores.newPrefix()
      const { manager } = yield* start({ connection, prefix, commandTimeout: "1 second" }, Model)
      const submitted = yield* Effect.forkChild(Effect.exit(manager.submit(Model, "x", { id: "id" })))
      while ((yield* manager.getRequests(Model)).length === 0) yield* Effect.sleep(10)
      const client = new Redis(url)
      yield* Effect.addFinalizer(() => Effect.sync(() => client.disconnect()))
      const keys = yield* Effect.promise(() => client.keys(`${prefix}*`))
      yield* Effect.promise(() => client.del(...keys))
      assert.strictEqual(exits(yield* Fiber.join(submitted)), "QueueUnavailable")
    }).pipe(Effect.scoped), 60_000)

  it.live.runIf(canStart)("answers too late has nothing of what was refused", () =>
    Effect.gen(function*() {
      const Model = define()
      // Others are not to wait with it.
      const { port, url } = yield* own()
      const connection = { host: "127.0.0.1", port }
      const { manager, register } = yield* start({
        connection,
        prefix: stores.newPrefix(),
        commandTimeout: "300 millis"
      }, Model)
      const client = new Redis(url)
      yield* Effect.addFinalizer(() => Effect.sync(() => client.disconnect()))
      yield* Effect.promise(() => client.ping())
      // Then it knows that there is room.
      yield* manager.submitRequest(QueueRequest.make(Model, { params: "", id: "before", waitForCompletion: false }))
      yield* Effect.promise(() => client.call("CLIENT", "PAUSE", "450", "WRITE"))
      assert.strictEqual(exits(yield* Effect.exit(manager.submit(Model, "x", { id: "id" }))), "QueueUnavailable")
      const isGone = Effect.map(
        Effect.exit(manager.getStatus(Model, "id")),
        (exit) => Exit.isSuccess(exit) && exit.value.status === "cancelled"
      )
      while (!(yield* isGone)) yield* Effect.sleep(20)
      const processed = yield* Deferred.make<void>()
      yield* register((params) => Effect.as(Deferred.succeed(processed, undefined), params))
      assert.strictEqual((yield* manager.submit(Model, "y", { id: "next" })).result, "y")
      assert.strictEqual((yield* manager.getStatus(Model, "id")).status, "cancelled")
    }).pipe(Effect.scoped), 60_000)

  it.live("has what nobody can read serves the next one", () =>
    Effect.gen(function*() {
      const Model = define({ deadLetters: { count: 10 } })
      const { connection, url } = yield* stores.place
      const prefix = stores.newPrefix()
      const { manager, register } = yield* start({ connection, prefix }, Model)
      const client = new Redis(url)
      yield* Effect.addFinalizer(() => Effect.sync(() => client.disconnect()))
      const ids = ["null", "text", "older", "params", "fine"]
      for (const id of ids) {
        yield* manager.submitRequest(QueueRequest.make(Model, { params: id, id, waitForCompletion: false }))
      }
      const edit = (id: string, data: unknown) =>
        Effect.promise(() => client.hset(`${prefix}:raced:r-${id}`, "data", JSON.stringify(data)))
      yield* edit("null", null)
      yield* edit("text", "text")
      yield* edit("older", { version: 0, params: "" })
      const data = JSON.parse(
        (yield* Effect.promise(() => client.hget(`${prefix}:raced:r-params`, "data")))!
      ) as object
      yield* edit("params", { ...data, params: "{" })
      const listed = yield* manager.getRequests(Model)
      assert.deepStrictEqual(listed.map(({ requestId }) => requestId), ["params", "fine"])
      const waiting = yield* Effect.forkChild(Effect.exit(manager.awaitCompletion(Model, "params")))
      yield* register(Effect.succeed)
      assert.strictEqual((yield* manager.awaitCompletion(Model, "fine")).result, "fine")
      assert.strictEqual(exits(yield* Fiber.join(waiting)), "ProcessingError")
      for (const id of ["null", "text", "older"]) {
        assert.strictEqual(exits(yield* Effect.exit(manager.getStatus(Model, id))), "RequestNotFound")
      }
      while ((yield* manager.getQueueInfo(Model)).failed < 4) yield* Effect.sleep(10)
      assert.deepStrictEqual(yield* manager.deadLetters(Model), [])
    }).pipe(Effect.scoped), 60_000)

  it.live.runIf(canStart)("is away lets nobody believe that something was written", () =>
    Effect.gen(function*() {
      const Model = define()
      const server = yield* own()
      const { manager } = yield* start({
        connection: { host: "127.0.0.1", port: server.port },
        prefix: stores.newPrefix(),
        commandTimeout: "300 millis"
      }, Model)
      yield* manager.submitRequest(QueueRequest.make(Model, { params: "", id: "id", waitForCompletion: false }))
      yield* server.kill
      const written: ReadonlyArray<Effect.Effect<unknown, unknown>> = [
        manager.pauseQueue(Model),
        manager.resumeQueue(Model),
        manager.changePriority(Model, "id", "high"),
        manager.cancelRequest(Model, "id")
      ]
      for (const each of written) assert.strictEqual(exits(yield* Effect.exit(each)), "QueueUnavailable")
    }).pipe(Effect.scoped), 60_000)

  it.live("does not answer is asked once by all that need it at that time", () =>
    Effect.gen(function*() {
      const Model = define()
      let connections = 0
      const silent = yield* Effect.acquireRelease(
        Effect.callback<Server>((resume) => {
          const sockets = new Set<Socket>()
          const server = createServer((socket) => {
            connections++
            sockets.add(socket.on("error", () => {}))
          })
          server.once("close", () => sockets.clear())
          server.listen(0, "127.0.0.1", () => resume(Effect.succeed(server)))
        }),
        (server) => Effect.sync(() => void server.close())
      )
      const { port } = silent.address() as AddressInfo
      const connection = { host: "127.0.0.1", port, retryStrategy: () => null }
      const { manager } = yield* start({ connection, prefix: "silent", commandTimeout: "300 millis" }, Model)
      const one = Effect.exit(manager.submit(Model, "x"))
      assert.strictEqual(exits(yield* one), "QueueUnavailable")
      const ofOne = connections
      const ends = yield* Effect.all(Array.from({ length: 10 }, () => one), { concurrency: "unbounded" })
      assert.deepStrictEqual(new Set(ends.map(exits)), new Set(["QueueUnavailable"]))
      assert.strictEqual(connections, 2 * ofOne)
    }).pipe(Effect.scoped), 60_000)

  it.live("is told through a codec that breaks learns nothing of what it was to write", () =>
    Effect.gen(function*() {
      const canary = "canary-7f3a"
      const Model = define({ deadLetters: { count: 10 } })
      const { connection, url } = yield* stores.place
      const prefix = stores.newPrefix()
      const codec: BullMq.Codec = {
        encode: (text) => text.includes("breaks") ? Effect.die(new Error(text)) : Effect.succeed(btoa(text)),
        decode: (text) => Effect.succeed(atob(text))
      }
      const { manager, register } = yield* start({ connection, prefix, codec }, Model)
      yield* register((params) => Effect.succeed(`${params} breaks`))
      const metadata = { secret: canary }
      assert.strictEqual(
        exits(yield* Effect.exit(manager.submit(Model, `${canary} breaks`, { metadata }))),
        "InvalidRequest"
      )
      assert.strictEqual(exits(yield* Effect.exit(manager.submit(Model, canary, { metadata }))), "ProcessingError")
      const [letter] = yield* manager.deadLetters(Model)
      assert.deepStrictEqual(letter?.request.metadata, metadata)
      const client = new Redis(url)
      yield* Effect.addFinalizer(() => Effect.sync(() => client.disconnect()))
      for (const key of yield* Effect.promise(() => client.keys(`${prefix}*:r-*`))) {
        assert.notInclude(JSON.stringify(yield* Effect.promise(() => client.hgetall(key))), canary)
      }
    }).pipe(Effect.scoped), 60_000)
})

describe("options of stored queues", () => {
  it.effect("are checked when a model is registered", () =>
    Effect.gen(function*() {
      const wrong: ReadonlyArray<BullMq.Options> = [
        { lock: 0 },
        { lock: "Infinity" },
        { commandTimeout: 0 },
        { takeAhead: 0 },
        { takeAhead: Number.NaN },
        { maxCrashes: 0 },
        { maxCrashes: Number.NaN },
        { prefix: "" },
        { prefix: "\ud800" },
        { codec: {} as BullMq.Codec }
      ]
      for (const options of wrong) {
        const { register } = yield* start(options, define())
        const error = yield* Effect.flip(register(Effect.succeed))
        assert(error instanceof QueueError.InvalidConfiguration)
        assert.include(error.problems.join(), Object.keys(options)[0]!)
      }
    }).pipe(Effect.scoped))
})
