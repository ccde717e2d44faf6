import { assert, describe, it } from "@effect/vitest"
import {
  Array,
  Cause,
  Clock,
  Context,
  Deferred,
  Duration,
  Effect,
  Exit,
  Fiber,
  Latch,
  Layer,
  Logger,
  Option,
  Queue,
  Scope,
  Stream
} from "effect"
import type { Tracer } from "effect"
import type { QueueError, QueueResponse } from "effect-llm-queue"
import { ModelConfig, QueueManager, QueueRequest, RateLimiter } from "effect-llm-queue"
import { TestClock } from "effect/testing"

/** Its own end waits for nobody, so that a test can leave a processor that never returns behind. */
const Manager = QueueManager.layerWith({ shutdown: { policy: "interrupt" } })

const one = [RateLimiter.concurrent(1)]

/** Runs at once up to the first thing that it waits for. */
const start = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.forkChild(effect, { startImmediately: true })

const later = <P, A, E>(
  model: ModelConfig.ModelConfig<P, A, E>,
  params: NoInfer<P>,
  options?: QueueRequest.RequestOptions
) => QueueRequest.make(model, { ...options, params, waitForCompletion: false })

const failure = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<E, A, R> => Effect.flip(effect)

const tagOf = (error: unknown): unknown =>
  typeof error === "object" && error !== null && "_tag" in error ? error._tag : error

describe("QueueManager", () => {
  describe("registration", () => {
    it.effect("a second registration of an id is refused until the first one's scope has closed", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const Model = ModelConfig.makeUntyped<string, string>("registration-1", { rateLimiters: "unlimited" })
        const scope = yield* Scope.make()
        yield* manager.registerQueue(Model, () => Effect.succeed("first")).pipe(Scope.provide(scope))
        const error = yield* failure(manager.registerQueue(Model, () => Effect.succeed("second")))
        assert.strictEqual(error._tag, "ModelAlreadyRegistered")
        assert.strictEqual((yield* manager.submit(Model, "x")).result, "first")
        yield* Scope.close(scope, Exit.void)
        assert.strictEqual((yield* failure(manager.submit(Model, "x")))._tag, "ModelNotRegistered")
        yield* manager.registerQueue(Model, () => Effect.succeed("second"))
        assert.strictEqual((yield* manager.submit(Model, "x")).result, "second")
      }).pipe(Effect.provide(Manager)))

    it.effect("of several models all are registered or none", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const good = ModelConfig.makeUntyped<string, string>("all-good", { rateLimiters: "unlimited" })
        const bad = ModelConfig.makeUntyped<string, string>("all-bad", { rateLimit: 0, capacity: 0 })
        const worse = ModelConfig.makeUntyped<string, string>("all-worse", { rateLimit: 0.5 })
        const processor = () => Effect.succeed("x")
        const invalid = yield* failure(manager.registerAllQueues([good, bad, worse], processor))
        assert(invalid._tag === "InvalidConfiguration")
        assert.strictEqual(invalid.problems.length, 3)
        assert.isTrue(invalid.problems.some((problem) => problem.startsWith("all-bad: capacity")))
        assert.isTrue(invalid.problems.some((problem) => problem.startsWith("all-worse: rateLimit")))
        assert.strictEqual(
          (yield* failure(manager.registerAllQueues([good, good], processor)))._tag,
          "ModelAlreadyRegistered"
        )
        assert.deepStrictEqual(yield* manager.getRegisteredModels, [])
        yield* manager.registerAllQueues([good], processor)
        assert.deepStrictEqual(yield* manager.getRegisteredModels, ["all-good"])
      }).pipe(Effect.provide(Manager)))

    it.effect("a processor that is no function is named as a problem", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const Model = ModelConfig.makeUntyped<string, string>("no-function", { rateLimiters: "unlimited" })
        const error = yield* failure(manager.registerQueue(Model, undefined as unknown as () => Effect.Effect<string>))
        assert(error._tag === "InvalidConfiguration")
        assert.isTrue(error.problems[0]?.startsWith("processor: "))
      }).pipe(Effect.provide(Manager)))

    it.effect("what a processor needs is provided once, at registration", () =>
      Effect.gen(function*() {
        let built = 0
        class Client
          extends Context.Service<Client, { readonly name: string }>()("effect-llm-queue/test/QueueManager.test/Client")
        {}
        const ClientLive = Layer.effect(Client, Effect.sync(() => Client.of({ name: `client ${++built}` })))
        const Model = ModelConfig.makeUntyped<string, string>("needs-client", { rateLimiters: "unlimited" })
        const Live = QueueManager.layerModel(Model, () => Client.use((client) => Effect.succeed(client.name)))
        yield* Effect.gen(function*() {
          const manager = yield* QueueManager.QueueManager
          assert.strictEqual((yield* manager.submit(Model, "a")).result, "client 1")
          assert.strictEqual((yield* manager.submit(Model, "b")).result, "client 1")
        }).pipe(Effect.provide(Live.pipe(Layer.provide(ClientLive), Layer.provideMerge(Manager))))
        assert.strictEqual(built, 1)
      }))

    it.effect("each attempt has a scope of its own, closed when it ends", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const log: Array<string> = []
        const Model = ModelConfig.makeUntyped<string, string, string>("scopes", { rateLimiters: one })
        yield* manager.registerQueue(Model, ({ params }) =>
          Effect.acquireRelease(
            Effect.sync(() => log.push(`open ${params}`)),
            () => Effect.sync(() => log.push(`close ${params}`))
          ).pipe(Effect.andThen(params === "fails" ? Effect.fail("no") : Effect.succeed("yes"))))
        yield* manager.submit(Model, "works")
        yield* Effect.ignore(manager.submit(Model, "fails"))
        assert.deepStrictEqual(log, ["open works", "close works", "open fails", "close fails"])
      }).pipe(Effect.provide(Manager)))

    it.effect("layerModels registers models of different types, and closing the layer unregisters them", () =>
      Effect.gen(function*() {
        const Text = ModelConfig.makeUntyped<string, string>("layer-text", { rateLimiters: "unlimited" })
        const Count = ModelConfig.makeUntyped<string, number>("layer-count", { rateLimiters: "unlimited" })
        const manager = yield* QueueManager.QueueManager
        yield* Effect.gen(function*() {
          assert.strictEqual((yield* manager.submit(Text, "ab")).result, "AB")
          assert.strictEqual((yield* manager.submit(Count, "ab")).result, 2)
        }).pipe(Effect.provide(QueueManager.layerModels(
          QueueManager.registration(Text, (request) => Effect.succeed(request.params.toUpperCase())),
          QueueManager.registration(Count, (request) => Effect.succeed(request.params.length))
        )))
        assert.deepStrictEqual(yield* manager.getRegisteredModels, [])
      }).pipe(Effect.provide(Manager)))

    it.effect("an unknown model is answered ModelNotRegistered by every method", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const Model = ModelConfig.makeUntyped<string, string>("unknown", { rateLimiters: "unlimited" })
        const errors = [
          yield* failure(manager.submit(Model, "x")),
          yield* failure(manager.submitRequest(later(Model, "x"))),
          yield* failure(manager.awaitCompletion(Model, "x")),
          yield* failure(manager.cancelRequest("unknown", "x")),
          yield* failure(manager.getStatus("unknown", "x")),
          yield* failure(manager.getQueueInfo(Model)),
          yield* failure(manager.updateTokenUsage(Model, "x", { inputTokens: 1, outputTokens: 1 })),
          yield* failure(manager.unregisterQueue("unknown"))
        ]
        assert.deepStrictEqual(errors.map(tagOf), errors.map(() => "ModelNotRegistered"))
      }).pipe(Effect.provide(Manager)))

    it.effect("an unregistered model can be registered again, and the old scope does not close the new queue", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const Model = ModelConfig.makeUntyped<string, string>("again", { rateLimiters: "unlimited" })
        const scope = yield* Scope.make()
        yield* manager.registerQueue(Model, () => Effect.succeed("old")).pipe(Scope.provide(scope))
        yield* manager.unregisterQueue("again")
        yield* manager.registerQueue(Model, () => Effect.succeed("new"))
        yield* Scope.close(scope, Exit.void)
        assert.strictEqual((yield* manager.submit(Model, "x")).result, "new")
      }).pipe(Effect.provide(Manager)))

    it.effect("interrupting unregisterQueue does not stop the closing, and frees the id only after it", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const Model = ModelConfig.makeUntyped<string, string>("interrupted-unregister", {
          rateLimiters: one,
          shutdown: { policy: "drain", deadline: "1 minute" }
        })
        yield* manager.registerQueue(Model, () => Effect.never)
        const caller = yield* start(failure(manager.submit(Model, "x")))
        const unregister = yield* start(manager.unregisterQueue("interrupted-unregister"))
        yield* TestClock.adjust("1 second")
        yield* Fiber.interrupt(unregister)
        assert.strictEqual(
          (yield* failure(manager.registerQueue(Model, () => Effect.never)))._tag,
          "ModelAlreadyRegistered"
        )
        yield* TestClock.adjust("59 seconds")
        assert.strictEqual(tagOf(yield* Fiber.join(caller)), "QueueShutdown")
        yield* manager.registerQueue(Model, () => Effect.succeed("again"))
      }).pipe(Effect.provide(Manager)))

    it.effect("a model held by two managers of a process is logged as a warning", () =>
      Effect.gen(function*() {
        const messages: Array<string> = []
        const logger = Logger.make(({ message }) => void messages.push(String(message)))
        const Model = ModelConfig.makeUntyped<string, string>("held-twice", { rateLimiters: "unlimited" })
        const Live = Layer.fresh(QueueManager.layerModel(Model, () => Effect.succeed("x")).pipe(Layer.provide(Manager)))
        const two = Layer.mergeAll(Live, Layer.fresh(Live)).pipe(Layer.provide(Logger.layer([logger])))
        yield* Effect.void.pipe(Effect.provide(two))
        assert.strictEqual(messages.length, 1)
        assert.isTrue(messages[0]?.includes("held-twice is registered in 2 queue managers"))
        yield* Effect.void.pipe(Effect.provide(Layer.fresh(Live).pipe(Layer.provide(Logger.layer([logger])))))
        assert.strictEqual(messages.length, 1)
      }))
  })

  describe("capacity", () => {
    it.effect("suspend: a submission waits for room, in order, and the queue says how many do", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const done = yield* Queue.unbounded<void>()
        const started = yield* Queue.unbounded<string>()
        const Model = ModelConfig.makeUntyped<string, string>("suspend", { rateLimiters: one, capacity: 1 })
        yield* manager.registerQueue(
          Model,
          ({ params }) => Queue.offer(started, params).pipe(Effect.andThen(Queue.take(done)), Effect.as(params))
        )
        yield* manager.submitRequest(later(Model, "a"))
        assert.strictEqual(yield* Queue.take(started), "a")
        yield* manager.submitRequest(later(Model, "b"))
        const c = yield* start(manager.submitRequest(later(Model, "c")))
        const d = yield* start(manager.submit(Model, "d"))
        assert.isUndefined(c.pollUnsafe())
        const info = yield* manager.getQueueInfo(Model)
        assert.deepStrictEqual([info.capacity, info.depth, info.suspended, info.running], [1, 1, 2, 1])
        yield* Queue.offer(done, undefined)
        assert.strictEqual(yield* Queue.take(started), "b")
        assert.strictEqual((yield* Fiber.join(c)).status, "pending")
        for (const expected of ["c", "d"]) {
          yield* Queue.offer(done, undefined)
          assert.strictEqual(yield* Queue.take(started), expected)
        }
        yield* Queue.offer(done, undefined)
        assert.strictEqual((yield* Fiber.join(d)).result, "d")
      }).pipe(Effect.provide(Manager)))

    it.effect("suspend: interrupting a suspended submission leaves no trace of it", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const started = yield* Deferred.make<void>()
        const Model = ModelConfig.makeUntyped<string, string>("suspend-interrupt", { rateLimiters: one, capacity: 1 })
        yield* manager.registerQueue(Model, () => Effect.andThen(Deferred.succeed(started, undefined), Effect.never))
        yield* manager.submitRequest(later(Model, "a"))
        yield* Deferred.await(started)
        yield* manager.submitRequest(later(Model, "b"))
        const waits = yield* start(manager.submit(Model, "c", { id: "c" }))
        const accepts = yield* start(manager.submitRequest(later(Model, "d", { id: "d" })))
        yield* Fiber.interruptAll([waits, accepts])
        const info = yield* manager.getQueueInfo(Model)
        assert.deepStrictEqual([info.depth, info.suspended, info.cancelled], [1, 0, 0])
        assert.strictEqual((yield* failure(manager.getStatus(Model, "c")))._tag, "RequestNotFound")
        assert.strictEqual((yield* failure(manager.getStatus(Model, "d")))._tag, "RequestNotFound")
      }).pipe(Effect.provide(Manager)))

    it.effect("suspend: the timeout counts while a submission waits for room", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const started = yield* Deferred.make<void>()
        const Model = ModelConfig.makeUntyped<string, string>("suspend-timeout", { rateLimiters: one, capacity: 1 })
        yield* manager.registerQueue(Model, () => Effect.andThen(Deferred.succeed(started, undefined), Effect.never))
        yield* manager.submitRequest(later(Model, "a"))
        yield* Deferred.await(started)
        yield* manager.submitRequest(later(Model, "b"))
        const waits = yield* start(failure(manager.submit(Model, "c", { timeout: "5 seconds" })))
        const accepts = yield* start(failure(manager.submitRequest(later(Model, "d", { timeout: "5 seconds" }))))
        yield* TestClock.adjust("4999 millis")
        assert.isUndefined(waits.pollUnsafe())
        assert.isUndefined(accepts.pollUnsafe())
        yield* TestClock.adjust("1 millis")
        assert.strictEqual(tagOf(yield* Fiber.join(waits)), "QueueTimeout")
        assert.strictEqual(tagOf(yield* Fiber.join(accepts)), "QueueFull")
        assert.strictEqual((yield* manager.getQueueInfo(Model)).suspended, 0)
      }).pipe(Effect.provide(Manager)))

    it.effect("suspend: cancelling a suspended request tells its submitter and gives it a status", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const started = yield* Deferred.make<void>()
        const Model = ModelConfig.makeUntyped<string, string>("suspend-cancel", { rateLimiters: one, capacity: 1 })
        yield* manager.registerQueue(Model, () => Effect.andThen(Deferred.succeed(started, undefined), Effect.never))
        yield* manager.submitRequest(later(Model, "a"))
        yield* Deferred.await(started)
        yield* manager.submitRequest(later(Model, "b"))
        const waits = yield* start(failure(manager.submit(Model, "c", { id: "c" })))
        const accepts = yield* start(manager.submitRequest(later(Model, "d", { id: "d" })))
        assert.isTrue(yield* manager.cancelRequest(Model, "c"))
        assert.isTrue(yield* manager.cancelRequest(Model, "d"))
        assert.strictEqual(tagOf(yield* Fiber.join(waits)), "RequestCancelled")
        const pending = yield* Fiber.join(accepts)
        assert.strictEqual(tagOf(yield* failure(manager.awaitCompletion(pending))), "RequestCancelled")
        assert.strictEqual((yield* manager.getStatus(Model, "c")).status, "cancelled")
        const info = yield* manager.getQueueInfo(Model)
        assert.deepStrictEqual([info.depth, info.suspended, info.cancelled], [1, 0, 2])
      }).pipe(Effect.provide(Manager)))

    it.effect("reject: a submission to a full queue fails with QueueFull and the capacity", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const started = yield* Deferred.make<void>()
        const Model = ModelConfig.makeUntyped<string, string>("reject", {
          rateLimiters: one,
          capacity: 2,
          strategy: "reject"
        })
        yield* manager.registerQueue(Model, () => Effect.andThen(Deferred.succeed(started, undefined), Effect.never))
        yield* manager.submitRequest(later(Model, "a"))
        yield* Deferred.await(started)
        yield* manager.submitRequest(later(Model, "b"))
        yield* manager.submitRequest(later(Model, "c", { id: "c" }))
        const error = yield* failure(manager.submit(Model, "d", { id: "d" }))
        assert(tagOf(error) === "QueueFull" && typeof error === "object" && error._tag === "QueueFull")
        assert.deepStrictEqual([error.capacity, error.requestId, error.isRetryable], [2, "d", true])
        yield* manager.cancelRequest(Model, "c")
        yield* manager.submitRequest(later(Model, "e"))
      }).pipe(Effect.provide(Manager)))

    it.effect("dropOldest: the request that has waited longest is told QueueFull", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const started = yield* Deferred.make<void>()
        const Model = ModelConfig.makeUntyped<string, string>("drop", {
          rateLimiters: one,
          capacity: 2,
          strategy: "dropOldest"
        })
        yield* manager.registerQueue(Model, () => Effect.andThen(Deferred.succeed(started, undefined), Effect.never))
        yield* manager.submitRequest(later(Model, "running", { id: "running" }))
        yield* Deferred.await(started)
        const oldest = yield* start(failure(manager.submit(Model, "b", { id: "b", priority: "high" })))
        yield* manager.submitRequest(later(Model, "c", { id: "c", priority: "low" }))
        yield* manager.submitRequest(later(Model, "d", { id: "d" }))
        assert.strictEqual(tagOf(yield* Fiber.join(oldest)), "QueueFull")
        assert.strictEqual((yield* manager.getStatus(Model, "b")).status, "failed")
        assert.strictEqual((yield* manager.getStatus(Model, "c")).status, "pending")
        assert.strictEqual((yield* manager.getStatus(Model, "running")).status, "processing")
        assert.strictEqual((yield* manager.getQueueInfo(Model)).depth, 2)
      }).pipe(Effect.provide(Manager)))

    it.effect("dropOldest: a dropped submitter that tries again at once suspends nobody", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const started = yield* Deferred.make<void>()
        const Model = ModelConfig.makeUntyped<string, string>("drop-retry", {
          rateLimiters: one,
          capacity: 1,
          strategy: "dropOldest"
        })
        yield* manager.registerQueue(Model, () => Effect.andThen(Deferred.succeed(started, undefined), Effect.never))
        yield* manager.submitRequest(later(Model, "running"))
        yield* Deferred.await(started)
        yield* start(manager.submit(Model, "a").pipe(Effect.retry({ times: 1 })))
        yield* start(Effect.ignore(manager.submit(Model, "b")))
        const info = yield* manager.getQueueInfo(Model)
        assert.deepStrictEqual([info.depth, info.suspended], [1, 0])
      }).pipe(Effect.provide(Manager)))
  })

  describe("waiting", () => {
    it.effect("fire-and-forget returns at acceptance, and the result is awaited by its answer or by id", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const go = yield* Latch.make()
        const Model = ModelConfig.makeUntyped<string, string, string>("forget", { rateLimiters: "unlimited" })
        yield* manager.registerQueue(
          Model,
          ({ params }) => Effect.andThen(go.await, params === "bad" ? Effect.fail("down") : Effect.succeed(params))
        )
        const pending = yield* manager.submitRequest(later(Model, "good", { id: "good" }))
        assert.strictEqual(pending.status, "pending")
        yield* manager.submitRequest(later(Model, "bad", { id: "bad" }))
        const byAnswer = yield* start(manager.awaitCompletion(pending))
        const byId = yield* start(failure(manager.awaitCompletion(Model, "bad")))
        yield* go.open
        assert.strictEqual((yield* Fiber.join(byAnswer)).result, "good")
        assert.strictEqual(yield* Fiber.join(byId), "down")
        assert.strictEqual((yield* manager.awaitCompletion(Model, "good")).result, "good")
        assert.strictEqual(tagOf(yield* failure(manager.awaitCompletion(Model, "none"))), "RequestNotFound")
      }).pipe(Effect.provide(Manager)))

    it.effect("interrupting awaitCompletion cancels nothing", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const go = yield* Latch.make()
        const Model = ModelConfig.makeUntyped<string, string>("await-interrupt", { rateLimiters: "unlimited" })
        yield* manager.registerQueue(Model, ({ params }) => Effect.as(go.await, params))
        const pending = yield* manager.submitRequest(later(Model, "x"))
        const waiter = yield* start(manager.awaitCompletion(pending))
        yield* Fiber.interrupt(waiter)
        yield* go.open
        assert.strictEqual((yield* manager.awaitCompletion(pending)).result, "x")
      }).pipe(Effect.provide(Manager)))

    it.effect("interrupting a fire-and-forget submitter after acceptance changes nothing", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const go = yield* Latch.make()
        const Model = ModelConfig.makeUntyped<string, string>("forget-interrupt", { rateLimiters: "unlimited" })
        yield* manager.registerQueue(Model, ({ params }) => Effect.as(go.await, params))
        const submitter = yield* start(Effect.andThen(
          manager.submitRequest(later(Model, "x", { id: "x" })),
          Effect.never
        ))
        yield* Fiber.interrupt(submitter)
        yield* go.open
        assert.strictEqual((yield* manager.awaitCompletion(Model, "x")).result, "x")
      }).pipe(Effect.provide(Manager)))

    it.effect("interrupting a submitter takes its request out of the queue, or interrupts its processor", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const started = yield* Queue.unbounded<string>()
        const interrupted: Array<string> = []
        const Model = ModelConfig.makeUntyped<string, string>("submit-interrupt", { rateLimiters: one })
        yield* manager.registerQueue(Model, ({ params }) =>
          Queue.offer(started, params).pipe(
            Effect.andThen(Effect.never),
            Effect.onInterrupt(() => Effect.sync(() => interrupted.push(params)))
          ))
        const first = yield* start(manager.submit(Model, "first", { id: "first" }))
        yield* Queue.take(started)
        const second = yield* start(manager.submit(Model, "second", { id: "second" }))
        yield* Fiber.interrupt(second)
        assert.strictEqual((yield* manager.getStatus(Model, "second")).status, "cancelled")
        yield* start(manager.submit(Model, "third"))
        yield* Fiber.interrupt(first)
        assert.strictEqual((yield* manager.getStatus(Model, "first")).status, "cancelled")
        assert.strictEqual(yield* Queue.take(started), "third")
        assert.deepStrictEqual(interrupted, ["first"])
      }).pipe(Effect.provide(Manager)))
  })

  describe("cancelRequest", () => {
    it.effect("cancels what waits and what runs, and answers false for what has ended", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const started = yield* Queue.unbounded<string>()
        const Model = ModelConfig.makeUntyped<string, string>("cancel", { rateLimiters: one })
        yield* manager.registerQueue(
          Model,
          ({ params }) =>
            Queue.offer(started, params).pipe(Effect.andThen(params === "last" ? Effect.succeed("ok") : Effect.never))
        )
        const runs = yield* start(failure(manager.submit(Model, "runs", { id: "runs" })))
        yield* Queue.take(started)
        const waits = yield* start(failure(manager.submit(Model, "waits", { id: "waits" })))
        assert.isTrue(yield* manager.cancelRequest(Model, "waits"))
        assert.isTrue(yield* manager.cancelRequest("cancel", "runs"))
        assert.strictEqual(tagOf(yield* Fiber.join(waits)), "RequestCancelled")
        assert.strictEqual(tagOf(yield* Fiber.join(runs)), "RequestCancelled")
        assert.isFalse(yield* manager.cancelRequest(Model, "runs"))
        const last = yield* manager.submit(Model, "last")
        assert.isFalse(yield* manager.cancelRequest(Model, last.requestId))
        assert.strictEqual((yield* manager.getStatus(Model, last.requestId)).status, "completed")
        assert.strictEqual(tagOf(yield* failure(manager.cancelRequest(Model, "none"))), "RequestNotFound")
        const info = yield* manager.getQueueInfo(Model)
        assert.deepStrictEqual([info.completed, info.failed, info.cancelled, info.running], [1, 0, 2, 0])
      }).pipe(Effect.provide(Manager)))

    it.effect("a processor can cancel its own request", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const Model = ModelConfig.makeUntyped<string, string>("cancel-own", { rateLimiters: one })
        yield* manager.registerQueue(
          Model,
          ({ id }) => manager.cancelRequest("cancel-own", id).pipe(Effect.orDie, Effect.andThen(Effect.never))
        )
        assert.strictEqual(tagOf(yield* failure(manager.submit(Model, "a"))), "RequestCancelled")
        assert.strictEqual(tagOf(yield* failure(manager.submit(Model, "b"))), "RequestCancelled")
        while ((yield* manager.getQueueInfo(Model)).running > 0) yield* Effect.yieldNow
      }).pipe(Effect.provide(Manager)))
  })

  describe("timeouts", () => {
    it.effect("a timeout counts the time in the queue, and its error says where the time went", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const Model = ModelConfig.makeUntyped<string, string>("timeout", {
          failEarly: false,
          rateLimiters: [RateLimiter.rpm(1, { timePeriod: "20 seconds" })]
        })
        yield* manager.registerQueue(
          Model,
          ({ params }) => params === "first" ? Effect.succeed(params) : Effect.never
        )
        yield* manager.submit(Model, "first")
        const both = yield* start(failure(manager.submit(Model, "second", { timeout: "30 seconds" })))
        const queued = yield* start(failure(manager.submit(Model, "third", { timeout: "15 seconds" })))
        yield* TestClock.adjust("15 seconds")
        const inQueue = yield* Fiber.join(queued)
        assert(inQueue._tag === "QueueTimeout")
        assert.deepStrictEqual([inQueue.queueTimeMillis, inQueue.processingTimeMillis], [15_000, 0])
        yield* TestClock.adjust("14999 millis")
        assert.isUndefined(both.pollUnsafe())
        yield* TestClock.adjust("1 millis")
        const error = yield* Fiber.join(both)
        assert(error._tag === "QueueTimeout")
        assert.strictEqual(error.limit, "timeout")
        assert.deepStrictEqual(
          [error.timeoutMillis, error.queueTimeMillis, error.processingTimeMillis],
          [30_000, 20_000, 10_000]
        )
        assert.isTrue(error.isRetryable)
      }).pipe(Effect.provide(Manager)))

    it.effect("a processingTimeout counts from the start of the attempt", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const Model = ModelConfig.makeUntyped<string, string>("processing-timeout", {
          rateLimiters: [RateLimiter.rpm(1, { timePeriod: "20 seconds" })],
          processingTimeout: "5 seconds"
        })
        yield* manager.registerQueue(Model, () => Effect.never)
        const first = yield* start(failure(manager.submit(Model, "first", { processingTimeout: "1 second" })))
        const second = yield* start(failure(manager.submit(Model, "second")))
        yield* TestClock.adjust("1 second")
        const own = yield* Fiber.join(first)
        assert(own._tag === "QueueTimeout")
        assert.deepStrictEqual([own.limit, own.timeoutMillis], ["processingTimeout", 1000])
        yield* TestClock.adjust("24 seconds")
        const models = yield* Fiber.join(second)
        assert(models._tag === "QueueTimeout")
        assert.deepStrictEqual(
          [models.limit, models.timeoutMillis, models.queueTimeMillis, models.processingTimeMillis],
          ["processingTimeout", 5000, 20_000, 5000]
        )
      }).pipe(Effect.provide(Manager)))

    it.effect("an uninterruptible processor: the caller is told at its deadline, the permit comes back at its end", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const release = yield* Latch.make()
        const Model = ModelConfig.makeUntyped<string, string>("uninterruptible", { rateLimiters: one })
        yield* manager.registerQueue(
          Model,
          ({ params }) =>
            params === "stubborn" ? Effect.uninterruptible(Effect.as(release.await, "late")) : Effect.succeed("next")
        )
        const stubborn = yield* start(
          failure(manager.submit(Model, "stubborn", { id: "stubborn", timeout: "1 second" }))
        )
        const next = yield* start(manager.submit(Model, "next"))
        yield* TestClock.adjust("1 second")
        assert.strictEqual(tagOf(yield* Fiber.join(stubborn)), "QueueTimeout")
        yield* TestClock.adjust("1 minute")
        assert.isUndefined(next.pollUnsafe())
        const before = yield* manager.getQueueInfo(Model)
        assert.deepStrictEqual([before.running, before.failed, before.rateLimiters[0]?.used], [1, 1, 1])
        yield* release.open
        assert.strictEqual((yield* Fiber.join(next)).result, "next")
        const after = yield* manager.getQueueInfo(Model)
        assert.deepStrictEqual(
          [after.running, after.completed, after.failed, after.rateLimiters[0]?.used],
          [0, 1, 1, 0]
        )
        assert.strictEqual((yield* manager.getStatus(Model, "stubborn")).status, "failed")
      }).pipe(Effect.provide(Manager)))
  })

  describe("bad processors", () => {
    it.effect("each hurts only its own request, and gives its permit back", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const Model = ModelConfig.makeUntyped<string, string, string>("bad", { rateLimiters: one })
        yield* manager.registerQueue(Model, ({ params }) => {
          switch (params) {
            case "throws":
              throw new Error("thrown")
            case "dies":
              return Effect.die("defect")
            case "interrupts":
              return Effect.interrupt
            case "fails":
              return Effect.fail("typed")
            case "nothing":
              return undefined as never
            case "promise":
              return Promise.resolve("x") as never
            default:
              return Effect.succeed(params)
          }
        })
        for (const params of ["throws", "dies", "interrupts", "nothing", "promise"]) {
          const error = yield* failure(manager.submit(Model, params))
          assert(typeof error === "object" && error._tag === "ProcessingError", params)
          assert.isTrue(Cause.isCause(error.cause))
        }
        assert.strictEqual(yield* failure(manager.submit(Model, "fails")), "typed")
        assert.strictEqual((yield* manager.submit(Model, "works")).result, "works")
        const info = yield* manager.getQueueInfo(Model)
        assert.deepStrictEqual([info.failed, info.completed, info.rateLimiters[0]?.used], [6, 1, 0])
      }).pipe(Effect.provide(Manager)))

    it.effect("a typed failure keeps its whole cause in the status", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const Model = ModelConfig.makeUntyped<string, string, string>("whole-cause", { rateLimiters: one })
        yield* manager.registerQueue(
          Model,
          () => Effect.failCause(Cause.combine(Cause.fail("typed"), Cause.die("too")))
        )
        const exit = yield* Effect.exit(manager.submit(Model, "x", { id: "x" }))
        assert(Exit.isFailure(exit))
        assert.strictEqual(exit.cause.reasons.length, 2)
        const status = yield* manager.getStatus(Model, "x")
        assert(status.status === "failed")
        assert.deepStrictEqual(status.cause.reasons.map((reason) => reason._tag), ["Fail", "Die"])
      }).pipe(Effect.provide(Manager)))
  })

  describe("nested requests", () => {
    it.effect("a chain of any length ends, and is cancelled, without filling the stack", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const length = 3000
        const bottom = yield* Latch.make()
        const Model = ModelConfig.makeUntyped<number, number, QueueError.SubmitError>("chain", { rateLimiters: one })
        let depth = 0
        yield* manager.registerQueue(Model, ({ params }) => {
          depth++
          return params === 0
            ? Effect.as(bottom.await, 0)
            : Effect.map(manager.submit(Model, params - 1), ({ result }) => result + 1)
        })
        const untilBottom = Effect.repeat(Effect.yieldNow, { until: () => depth > length })
        const cancelled = yield* start(manager.submit(Model, length))
        yield* untilBottom
        yield* Fiber.interrupt(cancelled)
        yield* Effect.repeat(Effect.andThen(Effect.yieldNow, manager.getQueueInfo(Model)), {
          until: ({ running }) => running === 0
        })
        assert.strictEqual((yield* manager.getQueueInfo(Model)).rateLimiters[0]?.used, 0)

        depth = 0
        const ends = yield* start(manager.submit(Model, length))
        yield* untilBottom
        yield* bottom.open
        assert.strictEqual((yield* Fiber.join(ends)).result, length)
      }).pipe(Effect.provide(Manager)))

    it.effect("a chain of requests to one queue runs on a single permit", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const Model = ModelConfig.makeUntyped<number, number>("chain", { rateLimiters: one, capacity: 1 })
        yield* manager.registerQueue(Model, ({ params }) =>
          params === 0
            ? Effect.succeed(0)
            : manager.submit(Model, params - 1).pipe(Effect.map(({ result }) => result + 1), Effect.orDie))
        assert.strictEqual((yield* manager.submit(Model, 5)).result, 5)
        const info = yield* manager.getQueueInfo(Model)
        assert.deepStrictEqual([info.running, info.rateLimiters[0]?.used], [0, 0])
      }).pipe(Effect.provide(Manager)))

    it.effect("a processor that awaits a fire-and-forget request of its own queue lends it its permit", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const Model = ModelConfig.makeUntyped<string, string>("lend", { rateLimiters: one })
        yield* manager.registerQueue(
          Model,
          ({ params }) =>
            params === "child" ? Effect.succeed("child's") : manager.submitRequest(later(Model, "child")).pipe(
              Effect.flatMap((pending) => manager.awaitCompletion(pending)),
              Effect.map(({ result }) => result),
              Effect.orDie
            )
        )
        assert.strictEqual((yield* manager.submit(Model, "parent")).result, "child's")
      }).pipe(Effect.provide(Manager)))

    it.effect("a fire-and-forget request of a processor to its own full queue fails and does not deadlock", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const started = yield* Deferred.make<void>()
        const go = yield* Latch.make()
        const Model = ModelConfig.makeUntyped<string, string>("own-full", { rateLimiters: one, capacity: 1 })
        yield* manager.registerQueue(Model, ({ params }) =>
          params === "parent"
            ? Deferred.succeed(started, undefined).pipe(
              Effect.andThen(go.await),
              Effect.andThen(Effect.match(manager.submitRequest(later(Model, "child")), {
                onFailure: (error) => error._tag,
                onSuccess: () => "accepted"
              }))
            )
            : Effect.succeed(params))
        const parent = yield* start(manager.submit(Model, "parent"))
        yield* Deferred.await(started)
        const other = yield* start(manager.submit(Model, "other"))
        yield* go.open
        yield* TestClock.adjust("1 hour")
        assert.isDefined(parent.pollUnsafe(), "the parent has ended")
        assert.strictEqual((yield* Fiber.join(parent)).result, "QueueFull")
        assert.strictEqual((yield* Fiber.join(other)).result, "other")
      }).pipe(Effect.provide(Manager)))

    it.effect("a processor that awaits its own request fails and does not hang", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const Model = ModelConfig.makeUntyped<string, unknown>("await-own", { rateLimiters: one })
        yield* manager.registerQueue(
          Model,
          ({ id }) => Effect.map(failure(manager.awaitCompletion(Model, id)), (error) => error._tag).pipe(Effect.orDie)
        )
        const caller = yield* start(manager.submit(Model, "x"))
        yield* TestClock.adjust("1 hour")
        assert.isDefined(caller.pollUnsafe(), "the request has ended")
        assert.strictEqual((yield* Fiber.join(caller)).result, "InvalidRequest")
      }).pipe(Effect.provide(Manager)))
  })

  describe("statuses", () => {
    it.effect("a response holds every field at every stage", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const Model = ModelConfig.makeUntyped<string, { readonly in: number; readonly out: number }>("fields", {
          rateLimiters: [RateLimiter.rpm(1, { timePeriod: "10 seconds" }), RateLimiter.tpm(1000)],
          usage: (result) => ({ inputTokens: result.in, outputTokens: result.out })
        })
        yield* manager.registerQueue(Model, () => Effect.as(Effect.sleep("3 seconds"), { in: 7, out: 8 }))
        yield* TestClock.adjust("1 second")
        const tokens = { estimatedInputTokens: 10, estimatedOutputTokens: 20 }
        yield* manager.submitRequest(later(Model, "first", tokens))
        const submittedAt = yield* Clock.currentTimeMillis
        const pending = yield* manager.submitRequest(later(Model, "second", { id: "second", ...tokens }))
        const base = {
          requestId: "second",
          modelId: "fields",
          tenant: undefined,
          timeToFirstElement: undefined,
          createdAt: submittedAt,
          refusals: [],
          inputTokensUsed: undefined,
          outputTokensUsed: undefined
        }
        const show = (response: QueueResponse.QueueResponse<unknown, unknown>) => ({
          ...response,
          queueTime: Duration.toMillis(response.queueTime),
          processingTime: Duration.toMillis(response.processingTime)
        })
        const waiting = { ...base, status: "pending", queueTime: 0, processingTime: 0, attempts: 0 }
        assert.deepStrictEqual<unknown>(show(pending), waiting)
        yield* TestClock.adjust("4 seconds")
        assert.deepStrictEqual<unknown>(show(yield* manager.getStatus(Model, "second")), {
          ...waiting,
          queueTime: 4000
        })
        yield* TestClock.adjust("8 seconds")
        assert.deepStrictEqual<unknown>(show(yield* manager.getStatus("fields", "second")), {
          ...base,
          status: "processing",
          queueTime: 10_000,
          processingTime: 2000,
          attempts: 1
        })
        yield* TestClock.adjust("1 minute")
        const end = {
          ...base,
          status: "completed",
          result: { in: 7, out: 8 },
          queueTime: 10_000,
          processingTime: 3000,
          attempts: 1,
          inputTokensUsed: 7,
          outputTokensUsed: 8
        }
        assert.deepStrictEqual<unknown>(show(yield* manager.getStatus(Model, "second")), end)
        assert.deepStrictEqual<unknown>(show(yield* manager.awaitCompletion(pending)), end)
      }).pipe(Effect.provide(Manager)))

    it.effect("the newest finished requests are kept, and an id is free again when its request is forgotten", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const Model = ModelConfig.makeUntyped<string, string>("retain-count", {
          rateLimiters: "unlimited",
          retention: { count: 2 }
        })
        yield* manager.registerQueue(Model, ({ params }) => Effect.succeed(params))
        for (const id of ["a", "b", "c"]) yield* manager.submit(Model, id, { id })
        assert.strictEqual((yield* failure(manager.getStatus(Model, "a")))._tag, "RequestNotFound")
        assert.strictEqual((yield* manager.getStatus(Model, "b")).status, "completed")
        assert.strictEqual((yield* failure(manager.submit(Model, "b", { id: "b" })))._tag, "DuplicateRequest")
        assert.strictEqual((yield* manager.submit(Model, "again", { id: "a" })).result, "again")
      }).pipe(Effect.provide(Manager)))

    it.effect("finished requests are forgotten at their age", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const Model = ModelConfig.makeUntyped<string, string>("retain-age", {
          rateLimiters: "unlimited",
          retention: { age: "10 seconds" }
        })
        yield* manager.registerQueue(Model, ({ params }) => Effect.succeed(params))
        yield* manager.submit(Model, "a", { id: "a" })
        yield* TestClock.adjust("9 seconds")
        yield* manager.submit(Model, "b", { id: "b" })
        yield* TestClock.adjust("999 millis")
        assert.strictEqual((yield* manager.getStatus(Model, "a")).status, "completed")
        yield* TestClock.adjust("1 millis")
        assert.strictEqual((yield* failure(manager.getStatus(Model, "a")))._tag, "RequestNotFound")
        assert.strictEqual((yield* manager.getStatus(Model, "b")).status, "completed")
        yield* TestClock.adjust("9 seconds")
        assert.strictEqual((yield* failure(manager.getStatus(Model, "b")))._tag, "RequestNotFound")
      }).pipe(Effect.provide(Manager)))

    it.effect("with a retention of nothing waiters are still told", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const go = yield* Latch.make()
        const Model = ModelConfig.makeUntyped<string, string>("retain-none", {
          rateLimiters: "unlimited",
          retention: { count: 0 }
        })
        yield* manager.registerQueue(Model, ({ params }) => Effect.as(go.await, params))
        const pending = yield* manager.submitRequest(later(Model, "x"))
        const waiter = yield* start(manager.awaitCompletion(pending))
        yield* go.open
        assert.strictEqual((yield* Fiber.join(waiter)).result, "x")
        assert.strictEqual((yield* failure(manager.awaitCompletion(pending)))._tag, "RequestNotFound")
      }).pipe(Effect.provide(Manager)))
  })

  describe("events", () => {
    it.effect("every change of status is published, in order", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const Model = ModelConfig.makeUntyped<string, string, string>("events", { rateLimiters: one })
        yield* manager.registerQueue(Model, ({ params }) => {
          if (params === "never") return Effect.never
          return params === "bad" ? Effect.fail("no") : Effect.succeed(params)
        })
        const reader = yield* start(Stream.runCollect(Stream.take(manager.events, 9)))
        yield* manager.submit(Model, "good", { id: "good" })
        yield* Effect.ignore(manager.submit(Model, "bad", { id: "bad" }))
        yield* manager.submitRequest(later(Model, "never", { id: "never" }))
        while ((yield* manager.getStatus(Model, "never")).status === "pending") yield* Effect.yieldNow
        yield* manager.cancelRequest(Model, "never")
        const seen = yield* Fiber.join(reader)
        assert.deepStrictEqual(seen.map(({ requestId, status }) => `${requestId} ${status}`), [
          "good pending",
          "good processing",
          "good completed",
          "bad pending",
          "bad processing",
          "bad failed",
          "never pending",
          "never processing",
          "never cancelled"
        ])
      }).pipe(Effect.provide(Manager)))

    it.effect("a slow reader misses the oldest events and delays nobody", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const first = yield* Deferred.make<void>()
        const go = yield* Latch.make()
        const Model = ModelConfig.makeUntyped<string, string>("slow-reader", { rateLimiters: "unlimited" })
        yield* manager.registerQueue(Model, ({ params }) => Effect.succeed(params))
        const seen: Array<string> = []
        yield* start(Stream.runForEach(manager.events, (event) =>
          Deferred.succeed(first, undefined).pipe(
            Effect.andThen(go.await),
            Effect.andThen(Effect.sync(() => seen.push(`${event.requestId} ${event.status}`)))
          )))
        yield* manager.submit(Model, "0", { id: "0" })
        yield* Deferred.await(first)
        for (let i = 1; i <= 100; i++) yield* manager.submit(Model, String(i), { id: String(i) })
        yield* go.open
        while (seen.at(-1) !== "100 completed") yield* Effect.yieldNow
        assert.isAtMost(seen.length, 4 + 4 + 3)
      }).pipe(Effect.provide(QueueManager.layerWith({ eventCapacity: 4 }))))

    it.effect("events end when the manager does, also for a reader that comes later", () =>
      Effect.gen(function*() {
        const scope = yield* Scope.make()
        const context = yield* Layer.buildWithScope(Manager, scope)
        const manager = Context.get(context, QueueManager.QueueManager)
        const early = yield* start(Stream.runCollect(manager.events))
        yield* Scope.close(scope, Exit.void)
        assert.deepStrictEqual(yield* Fiber.join(early), [])
        const late = yield* start(Stream.runCollect(manager.events))
        yield* TestClock.adjust("1 minute")
        assert.isDefined(late.pollUnsafe(), "the late reader has ended")
      }))
  })

  describe("updateTokenUsage", () => {
    const usedOf = (manager: QueueManager.QueueManager["Service"], model: ModelConfig.Any) =>
      Effect.map(manager.getQueueInfo(model), (info) => info.rateLimiters[0]?.used)

    it.effect("settles once, during the processing or after it", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const started = yield* Deferred.make<void>()
        const go = yield* Latch.make()
        const Model = ModelConfig.makeUntyped<string, string>("usage", { rateLimiters: [RateLimiter.tpm(1000)] })
        yield* manager.registerQueue(
          Model,
          () => Deferred.succeed(started, undefined).pipe(Effect.andThen(go.await), Effect.as("x"))
        )
        const tokens = { estimatedInputTokens: 100, estimatedOutputTokens: 200 }
        yield* manager.submitRequest(later(Model, "a", { id: "a", ...tokens }))
        yield* manager.submitRequest(later(Model, "b", { id: "b", ...tokens }))
        yield* Deferred.await(started)
        yield* TestClock.adjust(1)
        assert.strictEqual(yield* usedOf(manager, Model), 600)
        assert.strictEqual(
          yield* manager.updateTokenUsage(Model, "a", { inputTokens: 50, outputTokens: 50 }),
          "settled"
        )
        assert.strictEqual(yield* usedOf(manager, Model), 400)
        yield* go.open
        yield* manager.awaitCompletion(Model, "b")
        assert.strictEqual(
          yield* manager.updateTokenUsage("usage", "b", { inputTokens: 900, outputTokens: 600 }),
          "settled"
        )
        assert.strictEqual(yield* usedOf(manager, Model), 1600)
        assert.strictEqual(
          yield* manager.updateTokenUsage(Model, "b", { inputTokens: 0, outputTokens: 0 }),
          "alreadySettled"
        )
        assert.strictEqual(yield* usedOf(manager, Model), 1600)
        const status = yield* manager.getStatus(Model, "b")
        assert.deepStrictEqual([status.inputTokensUsed, status.outputTokensUsed], [900, 600])
      }).pipe(Effect.provide(Manager)))

    it.effect("refuses malformed reports, unknown requests and requests that were not dispatched", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const Model = ModelConfig.makeUntyped<string, string>("usage-bad", {
          rateLimiters: [RateLimiter.rpm(1), RateLimiter.tpm(1000)]
        })
        yield* manager.registerQueue(Model, () => Effect.succeed("x"))
        yield* manager.submit(Model, "a", { id: "a", estimatedInputTokens: 10, estimatedOutputTokens: 0 })
        yield* manager.submitRequest(later(Model, "b", { id: "b" }))
        const report = (id: string, usage: unknown) =>
          Effect.map(failure(manager.updateTokenUsage(Model, id, usage as never)), ({ _tag }) => _tag)
        for (
          const usage of [
            null,
            undefined,
            7,
            "7",
            [],
            {},
            { inputTokens: -1, outputTokens: 0 },
            { inputTokens: Number.NaN, outputTokens: 0 },
            { inputTokens: 0, outputTokens: Number.POSITIVE_INFINITY },
            { inputTokens: "1", outputTokens: 1 }
          ]
        ) {
          assert.strictEqual(yield* report("a", usage), "InvalidRequest")
        }
        assert.strictEqual(yield* report("b", { inputTokens: 1, outputTokens: 1 }), "InvalidRequest")
        assert.strictEqual(yield* report("c", { inputTokens: 1, outputTokens: 1 }), "RequestNotFound")
        assert.strictEqual(
          yield* manager.updateTokenUsage(Model, "a", { inputTokens: 1, outputTokens: 1 }),
          "settled"
        )
      }).pipe(Effect.provide(Manager)))

    it.effect("answers expired once the charge has left its longest window", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const Model = ModelConfig.makeUntyped<string, string>("usage-expired", {
          rateLimiters: [RateLimiter.tpm(1000), RateLimiter.rpm(10)]
        })
        yield* manager.registerQueue(Model, () => Effect.succeed("x"))
        yield* manager.submit(Model, "a", { id: "a", estimatedInputTokens: 10, estimatedOutputTokens: 0 })
        yield* TestClock.adjust("1 minute")
        assert.strictEqual(
          yield* manager.updateTokenUsage(Model, "a", { inputTokens: 500, outputTokens: 0 }),
          "expired"
        )
        assert.strictEqual(yield* usedOf(manager, Model), 0)
      }).pipe(Effect.provide(Manager)))

    it.effect("a usage function that throws or gives nonsense is a warning, and the estimate stays", () =>
      Effect.gen(function*() {
        const messages: Array<string> = []
        const logger = Logger.make(({ message }) => void messages.push(String(message)))
        yield* Effect.gen(function*() {
          const manager = yield* QueueManager.QueueManager
          const Model = ModelConfig.makeUntyped<string, string>("usage-function", {
            rateLimiters: [RateLimiter.tpm(1000)],
            usage: (result) => {
              if (result === "throws") throw new Error("no usage")
              return { inputTokens: Number.NaN, outputTokens: 1 }
            }
          })
          yield* manager.registerQueue(Model, ({ params }) => Effect.succeed(params))
          const tokens = { estimatedInputTokens: 100, estimatedOutputTokens: 0 }
          assert.strictEqual((yield* manager.submit(Model, "throws", tokens)).result, "throws")
          assert.strictEqual((yield* manager.submit(Model, "nonsense", tokens)).inputTokensUsed, undefined)
          assert.strictEqual(yield* usedOf(manager, Model), 200)
        }).pipe(Effect.provide(Layer.merge(Manager, Logger.layer([logger]))))
        assert.strictEqual(messages.length, 2)
      }))
  })

  describe("order", () => {
    it.effect("high goes before normal before low, numbers are seconds of head start, and age wins in the end", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const processed: Array<string> = []
        const Model = ModelConfig.makeUntyped<string, string>("order", {
          rateLimiters: [RateLimiter.rpm(1, { timePeriod: "1 second" })]
        })
        yield* manager.registerQueue(Model, ({ params }) =>
          Effect.sync(() => {
            processed.push(params)
            return params
          }))
        yield* manager.submit(Model, "first")
        const submit = (params: string, priority?: ModelConfig.Priority) =>
          manager.submitRequest(later(Model, params, { priority }))
        yield* submit("old low", "low")
        yield* submit("old normal")
        yield* submit("high", "high")
        yield* submit("5 seconds", 5)
        yield* submit("-5 seconds", -5)
        yield* submit("normal again", "normal")
        yield* TestClock.adjust("5 seconds")
        yield* TestClock.adjust("1 second")
        assert.deepStrictEqual(processed, [
          "first",
          "high",
          "5 seconds",
          "old normal",
          "normal again",
          "-5 seconds",
          "old low"
        ])
        processed.length = 0
        const Slow = ModelConfig.makeUntyped<string, string>("order-slow", {
          rateLimiters: [RateLimiter.rpm(1, { timePeriod: "5 minutes" })]
        })
        yield* manager.registerQueue(Slow, ({ params }) =>
          Effect.sync(() => {
            processed.push(params)
            return params
          }))
        yield* manager.submit(Slow, "first")
        yield* manager.submitRequest(later(Slow, "old low", { priority: "low" }))
        yield* TestClock.adjust("121 seconds")
        yield* manager.submitRequest(later(Slow, "new high", { priority: "high" }))
        yield* TestClock.adjust("10 minutes")
        assert.deepStrictEqual(processed, ["first", "old low", "new high"])
      }).pipe(Effect.provide(Manager)))
  })

  describe("tracing", () => {
    it.effect("the processor runs below the span of its submitter", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const names: Array<string> = []
        const Model = ModelConfig.makeUntyped<string, string>("span", { rateLimiters: "unlimited" })
        yield* manager.registerQueue(Model, () =>
          Effect.gen(function*() {
            const span = yield* Effect.currentParentSpan
            for (
              let current: Tracer.AnySpan | undefined = span;
              current !== undefined;
              current = current._tag === "Span" ? Option.getOrUndefined(current.parent) : undefined
            ) {
              if (current._tag === "Span") names.push(current.name)
            }
            return "x"
          }).pipe(Effect.orDie)).pipe(Effect.withSpan("registers"))
        yield* manager.submit(Model, "x").pipe(Effect.withSpan("submits"))
        assert.isTrue(names.includes("submits"))
        assert.isFalse(names.includes("registers"))
      }).pipe(Effect.provide(Manager)))
  })

  describe("shutdownAll", () => {
    it.effect("is immediate when everything is idle, and can be called again", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const Model = ModelConfig.makeUntyped<string, string>("idle", { rateLimiters: one })
        yield* manager.registerQueue(Model, ({ params }) => Effect.succeed(params))
        yield* manager.submit(Model, "x", { id: "x" })
        yield* manager.shutdownAll()
        yield* manager.shutdownAll()
        assert.strictEqual((yield* manager.getQueueInfo(Model)).state, "closed")
        assert.strictEqual((yield* manager.getStatus(Model, "x")).status, "completed")
        assert.strictEqual((yield* failure(manager.submit(Model, "y")))._tag, "QueueShutdown")
        assert.strictEqual((yield* failure(manager.submitRequest(later(Model, "y"))))._tag, "QueueShutdown")
        assert.deepStrictEqual(yield* manager.getRegisteredModels, [])
        const Other = ModelConfig.makeUntyped<string, string>("after-shutdown", { rateLimiters: one })
        const refused = yield* failure(manager.registerQueue(Other, ({ params }) => Effect.succeed(params)))
        assert.strictEqual(refused._tag, "QueueShutdown")
      }).pipe(Effect.provide(Manager)))

    it.effect("drain processes what waits, within its limits, and refuses what comes", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const Model = ModelConfig.makeUntyped<string, string>("drain", {
          rateLimiters: [RateLimiter.rpm(1, { timePeriod: "10 seconds" })]
        })
        yield* manager.registerQueue(Model, ({ params }) => Effect.succeed(params))
        yield* manager.submit(Model, "a")
        const waits = yield* start(manager.submit(Model, "b"))
        const shutdown = yield* start(manager.shutdownAll({ policy: "drain", deadline: "1 minute" }))
        assert.strictEqual((yield* failure(manager.submit(Model, "c")))._tag, "QueueShutdown")
        assert.strictEqual((yield* manager.getQueueInfo(Model)).state, "closing")
        yield* TestClock.adjust("9999 millis")
        assert.isUndefined(shutdown.pollUnsafe())
        yield* TestClock.adjust("1 millis")
        yield* Fiber.join(shutdown)
        assert.strictEqual((yield* Fiber.join(waits)).result, "b")
      }).pipe(Effect.provide(Manager)))

    it.effect("finishRunning tells what waits at once and lets what runs end", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const started = yield* Deferred.make<void>()
        const go = yield* Latch.make()
        const Model = ModelConfig.makeUntyped<string, string>("finish", { rateLimiters: one, capacity: 1 })
        yield* manager.registerQueue(
          Model,
          ({ params }) => Deferred.succeed(started, undefined).pipe(Effect.andThen(go.await), Effect.as(params))
        )
        const runs = yield* start(manager.submit(Model, "runs"))
        yield* Deferred.await(started)
        const waits = yield* start(failure(manager.submit(Model, "waits", { id: "waits" })))
        const suspended = yield* start(failure(manager.submit(Model, "suspended")))
        const unaccepted = yield* start(failure(manager.submitRequest(later(Model, "suspended"))))
        const shutdown = yield* start(manager.shutdownAll({ policy: "finishRunning" }))
        assert.strictEqual(tagOf(yield* Fiber.join(waits)), "QueueShutdown")
        assert.strictEqual(tagOf(yield* Fiber.join(suspended)), "QueueShutdown")
        assert.strictEqual(tagOf(yield* Fiber.join(unaccepted)), "QueueShutdown")
        assert.strictEqual((yield* manager.getStatus(Model, "waits")).status, "failed")
        assert.isUndefined(shutdown.pollUnsafe())
        yield* go.open
        yield* Fiber.join(shutdown)
        assert.strictEqual((yield* Fiber.join(runs)).result, "runs")
      }).pipe(Effect.provide(Manager)))

    it.effect("interrupt interrupts what runs and waits for its finalizers", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const started = yield* Deferred.make<void>()
        const Model = ModelConfig.makeUntyped<string, string>("interrupt", { rateLimiters: one })
        yield* manager.registerQueue(Model, () =>
          Deferred.succeed(started, undefined).pipe(
            Effect.andThen(Effect.never),
            Effect.onInterrupt(() => Effect.sleep("2 seconds"))
          ))
        const runs = yield* start(failure(manager.submit(Model, "runs")))
        yield* Deferred.await(started)
        const shutdown = yield* start(manager.shutdownAll({ policy: "interrupt" }))
        assert.strictEqual(tagOf(yield* Fiber.join(runs)), "QueueShutdown")
        yield* TestClock.adjust("1999 millis")
        assert.isUndefined(shutdown.pollUnsafe())
        yield* TestClock.adjust("1 millis")
        yield* Fiber.join(shutdown)
      }).pipe(Effect.provide(Manager)))

    it.effect("at the deadline whatever is left is told, an uninterruptible processor too", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const started = yield* Deferred.make<void>()
        const release = yield* Latch.make()
        const Model = ModelConfig.makeUntyped<string, string>("deadline", { rateLimiters: one })
        yield* manager.registerQueue(Model, () =>
          Effect.uninterruptible(
            Deferred.succeed(started, undefined).pipe(
              Effect.andThen(release.await),
              Effect.as("late")
            )
          ))
        const runs = yield* start(failure(manager.submit(Model, "runs", { id: "runs" })))
        yield* Deferred.await(started)
        const waits = yield* start(failure(manager.submit(Model, "waits")))
        const shutdown = yield* start(manager.shutdownAll({ policy: "drain", deadline: "10 seconds" }))
        yield* TestClock.adjust("9999 millis")
        assert.isUndefined(shutdown.pollUnsafe())
        assert.isUndefined(runs.pollUnsafe())
        yield* TestClock.adjust("1 millis")
        yield* Fiber.join(shutdown)
        assert.strictEqual(tagOf(yield* Fiber.join(runs)), "QueueShutdown")
        assert.strictEqual(tagOf(yield* Fiber.join(waits)), "QueueShutdown")
        assert.strictEqual((yield* manager.getQueueInfo(Model)).running, 1)
        yield* release.open
        while ((yield* manager.getQueueInfo(Model)).running > 0) yield* Effect.yieldNow
        assert.strictEqual((yield* manager.getStatus(Model, "runs")).status, "failed")
      }).pipe(Effect.provide(Manager)))

    it.effect("several queues close at the same time", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const models = ["at-once-1", "at-once-2", "at-once-3"].map((id) =>
          ModelConfig.makeUntyped<string, string>(id, { rateLimiters: one })
        )
        yield* manager.registerAllQueues(models, ({ params }) => Effect.as(Effect.sleep("10 seconds"), params))
        for (const model of models) yield* manager.submitRequest(later(model, "x"))
        const shutdown = yield* start(manager.shutdownAll({ policy: "drain" }))
        yield* TestClock.adjust("10 seconds")
        yield* Fiber.join(shutdown)
        const infos = yield* manager.getAllQueuesInfo
        assert.deepStrictEqual(Array.fromIterable(infos.values()).map(({ completed }) => completed), [1, 1, 1])
      }).pipe(Effect.provide(Manager)))

    it.effect("models registered together are drained together when their scope closes", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const models = ["together-1", "together-2"].map((id) =>
          ModelConfig.makeUntyped<string, string>(id, { rateLimiters: one, shutdown: { policy: "drain" } })
        )
        const scope = yield* Scope.make()
        yield* manager.registerAllQueues(models, ({ params }) => Effect.as(Effect.sleep("10 seconds"), params)).pipe(
          Scope.provide(scope)
        )
        for (const model of models) yield* manager.submitRequest(later(model, "x"))
        const closing = yield* start(Scope.close(scope, Exit.void))
        yield* TestClock.adjust("10 seconds")
        yield* Fiber.join(closing)
      }).pipe(Effect.provide(Manager)))

    it.effect("from its start on no queue accepts anything, also not from a waiter that it has just told", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const First = ModelConfig.makeUntyped<string, string>("stop-first", { rateLimiters: [RateLimiter.rpm(1)] })
        const Second = ModelConfig.makeUntyped<string, string>("stop-second", { rateLimiters: "unlimited" })
        yield* manager.registerAllQueues([First, Second], ({ params }) => Effect.succeed(params))
        yield* manager.submit(First, "fills the window")
        const waits = yield* start(Effect.ignore(
          manager.submit(First, "waits").pipe(
            Effect.catchTag("QueueShutdown", () => manager.submit(Second, "instead", { id: "instead" }))
          )
        ))
        yield* manager.shutdownAll({ policy: "finishRunning" })
        yield* Fiber.join(waits)
        assert.strictEqual((yield* failure(manager.getStatus(Second, "instead")))._tag, "RequestNotFound")
      }).pipe(Effect.provide(Manager)))

    it.effect("a later call can ask for more and ends by its own deadline", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const started = yield* Deferred.make<void>()
        const Model = ModelConfig.makeUntyped<string, string>("more", { rateLimiters: one })
        yield* manager.registerQueue(Model, () => Effect.andThen(Deferred.succeed(started, undefined), Effect.never))
        const runs = yield* start(failure(manager.submit(Model, "runs")))
        yield* Deferred.await(started)
        const waits = yield* start(failure(manager.submit(Model, "waits")))
        const patient = yield* start(manager.shutdownAll({ policy: "drain", deadline: "1 hour" }))
        assert.isUndefined(waits.pollUnsafe())
        yield* manager.shutdownAll({ policy: "interrupt" })
        assert.strictEqual(tagOf(yield* Fiber.join(runs)), "QueueShutdown")
        assert.strictEqual(tagOf(yield* Fiber.join(waits)), "QueueShutdown")
        yield* Fiber.join(patient)
      }).pipe(Effect.provide(Manager)))

    it.effect("interrupting it does not stop the closing", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const started = yield* Deferred.make<void>()
        const Model = ModelConfig.makeUntyped<string, string>("shutdown-interrupted", { rateLimiters: one })
        yield* manager.registerQueue(Model, () => Effect.andThen(Deferred.succeed(started, undefined), Effect.never))
        const runs = yield* start(failure(manager.submit(Model, "runs")))
        yield* Deferred.await(started)
        const shutdown = yield* start(manager.shutdownAll({ policy: "drain", deadline: "1 minute" }))
        yield* TestClock.adjust("1 second")
        yield* Fiber.interrupt(shutdown)
        yield* TestClock.adjust("59 seconds")
        assert.isDefined(runs.pollUnsafe(), "the caller was told at the deadline")
        assert.strictEqual(tagOf(yield* Fiber.join(runs)), "QueueShutdown")
      }).pipe(Effect.provide(Manager)))

    it.effect("a processor can shut the manager down, and still end", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const Model = ModelConfig.makeUntyped<string, string>("from-inside", { rateLimiters: one })
        yield* manager.registerQueue(Model, ({ params }) => Effect.as(manager.shutdownAll(), params))
        assert.strictEqual((yield* manager.submit(Model, "x")).result, "x")
        assert.strictEqual((yield* manager.getQueueInfo(Model)).state, "closed")
      }).pipe(Effect.provide(Manager)))

    it.effect("a processor that shut the manager down and goes on is held to its timeout, and to the deadline", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const Model = ModelConfig.makeUntyped<string, string>("from-inside-timeout", {
          rateLimiters: "unlimited",
          shutdown: { deadline: "30 seconds" }
        })
        yield* manager.registerQueue(Model, () => Effect.andThen(manager.shutdownAll(), Effect.never))
        const timed = yield* start(failure(manager.submit(Model, "x", { timeout: "10 seconds" })))
        const other = yield* start(failure(manager.submit(Model, "x")))
        yield* TestClock.adjust("10 seconds")
        assert.isDefined(timed.pollUnsafe(), "the caller was told at its timeout")
        assert.strictEqual(tagOf(yield* Fiber.join(timed)), "QueueTimeout")
        yield* TestClock.adjust("20 seconds")
        assert.isDefined(other.pollUnsafe(), "the caller was told at the deadline")
        assert.strictEqual(tagOf(yield* Fiber.join(other)), "QueueShutdown")
      }).pipe(Effect.provide(Manager)))

    it.effect("a request being drained can still submit to its own queue and wait", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const started = yield* Deferred.make<void>()
        const go = yield* Latch.make()
        const Model = ModelConfig.makeUntyped<string, string>("nested-drain", { rateLimiters: one })
        yield* manager.registerQueue(Model, ({ params }) =>
          params === "child"
            ? Effect.succeed("child's")
            : Deferred.succeed(started, undefined).pipe(
              Effect.andThen(go.await),
              Effect.andThen(Effect.option(manager.submitRequest(later(Model, "child")))),
              Effect.flatMap((forgotten) =>
                Option.isSome(forgotten) ? Effect.succeed("accepted") : Effect.orDie(
                  Effect.map(manager.submit(Model, "child"), ({ result }) => result)
                )
              )
            ))
        const parent = yield* start(manager.submit(Model, "parent"))
        yield* Deferred.await(started)
        const shutdown = yield* start(manager.shutdownAll({ policy: "drain" }))
        yield* go.open
        assert.strictEqual((yield* Fiber.join(parent)).result, "child's")
        yield* Fiber.join(shutdown)
      }).pipe(Effect.provide(Manager)))

    it.effect("closing the manager's layer drains its queues by their policy", () =>
      Effect.gen(function*() {
        const Model = ModelConfig.makeUntyped<string, string>("layer-closes", { rateLimiters: one })
        const closed = yield* start(
          Effect.gen(function*() {
            const manager = yield* QueueManager.QueueManager
            yield* manager.submitRequest(later(Model, "x"))
            return manager
          }).pipe(
            Effect.provide(
              QueueManager.layerModel(Model, () => Effect.as(Effect.sleep("5 seconds"), "x")).pipe(
                Layer.provideMerge(QueueManager.layer)
              )
            )
          )
        )
        yield* TestClock.adjust("4 seconds")
        assert.isUndefined(closed.pollUnsafe())
        yield* TestClock.adjust("1 second")
        const manager = yield* Fiber.join(closed)
        assert.strictEqual((yield* failure(manager.submit(Model, "y")))._tag, "ModelNotRegistered")
      }))
  })

  describe("info", () => {
    it.effect("says what is in the queue and how much of each limit is used", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const Model = ModelConfig.makeUntyped<string, string>("info", {
          rateLimiters: [RateLimiter.rpm(2), RateLimiter.tpm(100, { margin: "1 second" }), RateLimiter.concurrent(5)],
          capacity: 7
        })
        yield* manager.registerQueue(Model, () => Effect.never)
        const tokens = { estimatedInputTokens: 10, estimatedOutputTokens: 20 }
        for (const params of ["a", "b", "c"]) yield* manager.submitRequest(later(Model, params, tokens))
        yield* TestClock.adjust("15 seconds")
        const info = yield* manager.getQueueInfo("info")
        assert.deepStrictEqual(
          { ...info, rateLimiters: [] },
          {
            modelId: "info",
            state: "open",
            capacity: 7,
            depth: 1,
            suspended: 0,
            running: 2,
            completed: 0,
            failed: 0,
            cancelled: 0,
            rateLimiters: [],
            reservations: [],
            provider: undefined
          }
        )
        const millis = (duration: Duration.Duration | undefined) =>
          duration === undefined ? undefined : Duration.toMillis(duration)
        assert.deepStrictEqual(
          info.rateLimiters.map(({ available, limit, margin, timePeriod, timeUntilNextCapacity, type, used }) => ({
            type,
            limit,
            timePeriod: millis(timePeriod),
            margin: millis(margin),
            used,
            available,
            timeUntilNextCapacity: millis(timeUntilNextCapacity)
          })),
          [
            {
              type: "rpm",
              limit: 2,
              timePeriod: 60_000,
              margin: 0,
              used: 2,
              available: 0,
              timeUntilNextCapacity: 45_000
            },
            {
              type: "tpm",
              limit: 100,
              timePeriod: 60_000,
              margin: 1000,
              used: 60,
              available: 40,
              timeUntilNextCapacity: 0
            },
            {
              type: "concurrent",
              limit: 5,
              timePeriod: undefined,
              margin: 0,
              used: 2,
              available: 3,
              timeUntilNextCapacity: 0
            }
          ]
        )
        assert.deepStrictEqual([...(yield* manager.getAllQueuesInfo).keys()], ["info"])
      }).pipe(Effect.provide(Manager)))
  })

  it.effect("bad options of a manager are a warning, and the defaults stand", () =>
    Effect.gen(function*() {
      const messages: Array<string> = []
      const logger = Logger.make(({ message }) => void messages.push(JSON.stringify(message)))
      const layer = QueueManager.layerWith({ eventCapacity: -1, shutdown: { deadline: "soon" as never } })
      yield* Effect.void.pipe(Effect.provide(layer.pipe(Layer.provide(Logger.layer([logger])))))
      assert.strictEqual(messages.length, 1)
      assert.isTrue(messages[0]?.includes("eventCapacity") && messages[0].includes("shutdown.deadline"))
    }))
})
