import { assert, describe, it } from "@effect/vitest"
import { Cause, Deferred, Duration, Effect, Exit, Fiber, Layer, Option, Schema, Stream } from "effect"
import { ModelConfig, QueueManager, QueueRequest, RateLimiter, ResultStore } from "effect-llm-queue"
import * as PersistedResults from "effect-llm-queue/PersistedResults"
import { Persistence } from "effect/persistence"
import { TestClock } from "effect/testing"
import * as random from "../model/random.ts"

/** Its end waits for nobody, so that a test can leave requests behind. */
const Manager = QueueManager.layerWith({ shutdown: { policy: "interrupt", deadline: 0 } })

const Params = Schema.Struct({ prompt: Schema.String, options: Schema.Record(Schema.String, Schema.Finite) })

const estimates = { estimatedInputTokens: 10, estimatedOutputTokens: 0 }

/** A model whose processor takes `params` milliseconds and fails when they are negative, and its calls. */
const open = Effect.fnUntraced(function*(
  options: Partial<ModelConfig.Options<number, string>> & {
    readonly rateLimiters?: ReadonlyArray<RateLimiter.Config> | "unlimited"
  } = {}
) {
  const manager = yield* QueueManager.QueueManager
  const Model = ModelConfig.makeUntyped<number, string, string>("model", {
    rateLimiters: [RateLimiter.tpm(1000), RateLimiter.concurrent(10)],
    ...options
  })
  const calls: Array<string> = []
  let interrupted = 0
  yield* manager.registerQueue(Model, (request) => {
    calls.push(request.id)
    return Effect.sleep(Math.abs(request.params)).pipe(
      Effect.andThen(request.params < 0 ? Effect.fail("failed") : Effect.succeed(`call ${calls.length}`)),
      Effect.onInterrupt(() => Effect.sync(() => interrupted++))
    )
  })
  const submit = (params: number, options?: QueueRequest.RequestOptions) =>
    Effect.forkChild(manager.submit(Model, params, { ...estimates, ...options }), { startImmediately: true })
  const charged = Effect.map(manager.getQueueInfo(Model), ({ rateLimiters }) => rateLimiters[0]!.used)
  return { manager, Model, calls, submit, charged, interrupted: () => interrupted }
})

describe("requests with one key", () => {
  it.effect("share one call and one charge, and each has an id and a status of its own", () =>
    Effect.gen(function*() {
      const { Model, calls, charged, manager, submit } = yield* open()
      const first = yield* submit(1000, { dedupeKey: "k", id: "first", tenant: "a" })
      const second = yield* submit(1000, { dedupeKey: "k", id: "second", tenant: "b" })
      yield* TestClock.adjust("500 millis")
      const third = yield* manager.submitRequest(
        QueueRequest.make(Model, { ...estimates, params: 1, dedupeKey: "k", id: "third", waitForCompletion: false })
      )
      const other = yield* submit(1000, { dedupeKey: "other" })
      yield* TestClock.adjust(0)
      assert.strictEqual(calls.length, 2)
      assert.strictEqual(yield* charged, 20)
      const status = yield* manager.getStatus(Model, "second")
      assert.deepInclude(status, { status: "processing", requestId: "second", tenant: "b", sharedWith: calls[0] })
      yield* TestClock.adjust("500 millis")
      assert.deepInclude(yield* Fiber.join(first), { requestId: "first", tenant: "a", attempts: 1 })
      assert.strictEqual((yield* Fiber.join(second)).requestId, "second")
      assert.strictEqual((yield* manager.awaitCompletion(third)).requestId, "third")
      for (const id of ["first", "second", "third"]) {
        assert.strictEqual((yield* manager.getStatus(Model, id)).status, "completed")
      }
      yield* TestClock.adjust("500 millis")
      yield* Fiber.join(other)
      // It has ended: the next one is a call of its own.
      const next = yield* submit(0, { dedupeKey: "k" })
      yield* TestClock.adjust(0)
      yield* Fiber.join(next)
      assert.strictEqual(calls.length, 3)
      assert.strictEqual(yield* charged, 30)
    }).pipe(Effect.provide(Manager)))

  it.effect("each leaves alone, at its own time; the last one cancels the call", () =>
    Effect.gen(function*() {
      const { Model, calls, interrupted, manager, submit } = yield* open()
      const interruptedOne = yield* submit(10_000, { dedupeKey: "k" })
      const late = yield* submit(10_000, { dedupeKey: "k", id: "late", timeout: "2 seconds" })
      yield* submit(10_000, { dedupeKey: "k", id: "cancelled" })
      const last = yield* submit(10_000, { dedupeKey: "k" })
      yield* TestClock.adjust("1 second")
      yield* Fiber.interrupt(interruptedOne)
      assert.isTrue(yield* manager.cancelRequest(Model, "cancelled"))
      assert.isFalse(yield* manager.cancelRequest(Model, "cancelled"))
      assert.strictEqual((yield* manager.getStatus(Model, "cancelled")).status, "cancelled")
      yield* TestClock.adjust("1 second")
      assert.deepInclude(yield* Effect.flip(Fiber.join(late)), { _tag: "QueueTimeout", requestId: "late" })
      assert.strictEqual(interrupted(), 0)
      yield* Fiber.interrupt(last)
      yield* TestClock.adjust(0)
      assert.strictEqual(interrupted(), 1)
      assert.strictEqual(calls.length, 1)
      assert.deepInclude(yield* manager.getQueueInfo(Model), { running: 0, depth: 0, cancelled: 1 })
    }).pipe(Effect.provide(Manager)))

  it.effect("those that wait for their turn, or for room, are left in the same way", () =>
    Effect.gen(function*() {
      const { Model, calls, manager, submit } = yield* open({ rateLimiters: [RateLimiter.concurrent(1)], capacity: 1 })
      const runs = yield* submit(1000)
      const waits = yield* submit(1000, { dedupeKey: "waits" })
      const noRoom = yield* submit(1000, { dedupeKey: "no room" })
      const accepted = yield* Effect.forkChild(
        Effect.exit(
          manager.submitRequest(
            QueueRequest.make(Model, { params: 0, dedupeKey: "no room", id: "x", waitForCompletion: false })
          )
        ),
        { startImmediately: true }
      )
      yield* TestClock.adjust(0)
      assert.deepInclude(yield* manager.getQueueInfo(Model), { depth: 1, suspended: 1, running: 1 })
      yield* manager.cancelRequest(Model, "x")
      // As without a key: an operator cancels what was accepted.
      assert.isTrue(Exit.isSuccess(yield* Fiber.join(accepted)))
      yield* Fiber.interrupt(noRoom)
      yield* Fiber.interrupt(waits)
      yield* TestClock.adjust(0)
      assert.deepInclude(yield* manager.getQueueInfo(Model), { depth: 0, suspended: 0 })
      yield* TestClock.adjust("1 second")
      yield* Fiber.join(runs)
      assert.strictEqual(calls.length, 1)
    }).pipe(Effect.provide(Manager)))

  it.effect("share a failure with its cause, and a request that is refused", () =>
    Effect.gen(function*() {
      const { submit } = yield* open()
      const both = [yield* submit(-100, { dedupeKey: "k" }), yield* submit(-100, { dedupeKey: "k" })]
      yield* TestClock.adjust("100 millis")
      for (const fiber of both) assert.strictEqual(yield* Effect.flip(Fiber.join(fiber)), "failed")
      const large = { dedupeKey: "l", estimatedInputTokens: 2000 }
      const refused = [yield* submit(0, large), yield* submit(0, large)]
      yield* TestClock.adjust(0)
      for (const fiber of refused) {
        assert.deepInclude(yield* Effect.flip(Fiber.join(fiber)), { _tag: "RequestTooLarge" })
      }
    }).pipe(Effect.provide(Manager)))

  it.effect("one with a higher priority takes the call along", () =>
    Effect.gen(function*() {
      const { calls, submit } = yield* open({ rateLimiters: [RateLimiter.concurrent(1)] })
      yield* submit(1000)
      yield* submit(1000, { id: "before" })
      yield* submit(1000, { dedupeKey: "k" })
      yield* TestClock.adjust(0)
      yield* submit(1000, { dedupeKey: "k", priority: "high" })
      yield* TestClock.adjust("1 second")
      assert.strictEqual(calls.length, 2)
      assert.notStrictEqual(calls[1], "before")
    }).pipe(Effect.provide(Manager)))

  it.effect("usage that any of them reports is settled once", () =>
    Effect.gen(function*() {
      const { Model, charged, manager, submit } = yield* open()
      const both = [
        yield* submit(100, { dedupeKey: "k", id: "a" }),
        yield* submit(100, { dedupeKey: "k", id: "b" })
      ]
      yield* TestClock.adjust("100 millis")
      for (const fiber of both) yield* Fiber.join(fiber)
      assert.strictEqual(yield* manager.updateTokenUsage(Model, "b", { inputTokens: 3, outputTokens: 0 }), "settled")
      assert.strictEqual(
        yield* manager.updateTokenUsage(Model, "a", { inputTokens: 1, outputTokens: 0 }),
        "alreadySettled"
      )
      assert.strictEqual(yield* charged, 3)
    }).pipe(Effect.provide(Manager)))

  it.effect("ids are unique among all requests, and bad keys and timeouts are named", () =>
    Effect.gen(function*() {
      const { Model, manager, submit } = yield* open()
      yield* submit(1000, { dedupeKey: "k", id: "a" })
      const fails = (options: QueueRequest.RequestOptions) =>
        Effect.map(Effect.flip(manager.submit(Model, 0, options)), (error) =>
          typeof error === "string" ? error : error._tag)
      assert.strictEqual(yield* fails({ id: "a" }), "DuplicateRequest")
      assert.strictEqual(yield* fails({ id: "a", dedupeKey: "k" }), "DuplicateRequest")
      assert.strictEqual(yield* fails({ dedupeKey: "" }), "InvalidRequest")
      assert.strictEqual(yield* fails({ dedupeKey: "k", timeout: -1 }), "InvalidRequest")
      assert.strictEqual(yield* fails({ dedupeKey: "k", priority: Number.NaN }), "InvalidRequest")
    }).pipe(Effect.provide(Manager)))

  it.effect("a processor cannot wait for the call that it is part of, and does not hang", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<number, string, string>("model", {
        rateLimiters: [RateLimiter.concurrent(1)]
      })
      yield* manager.registerQueue(Model, (request) =>
        request.params === 0
          ? Effect.map(manager.submit(Model, 1, { dedupeKey: "k" }), ({ result }) => result).pipe(
            Effect.mapError((error) => typeof error === "string" ? error : error._tag)
          )
          : request.params === 1
          ? Effect.map(manager.submit(Model, 2), ({ result }) => result).pipe(Effect.mapError(String))
          : Effect.map(manager.submit(Model, 1, { dedupeKey: "k" }), ({ result }) => result).pipe(
            Effect.mapError((error) => typeof error === "string" ? error : error._tag)
          ))
      const fiber = yield* Effect.forkChild(Effect.flip(manager.submit(Model, 1, { dedupeKey: "k" })))
      yield* TestClock.adjust("1 second")
      assert.strictEqual(yield* Fiber.join(fiber), "InvalidRequest")
      // One that is not part of it can: its call runs on the permit of who waits.
      const nested = ModelConfig.makeUntyped<number, string, string>("nested", {
        rateLimiters: [RateLimiter.concurrent(1)]
      })
      yield* manager.registerQueue(nested, (request) =>
        request.params === 0 ? Effect.succeed("inner") : Effect.map(
          Effect.all([manager.submit(nested, 0, { dedupeKey: "i" }), manager.submit(nested, 0, { dedupeKey: "i" })], {
            concurrency: 2
          }),
          ([a, b]) => `${a.result} ${b.result}`
        ).pipe(Effect.mapError(String)))
      const outer = yield* Effect.forkChild(manager.submit(nested, 1))
      yield* TestClock.adjust("1 second")
      assert.strictEqual((yield* Fiber.join(outer)).result, "inner inner")
    }).pipe(Effect.provide(Manager)))

  it.effect("operators cancel those that are meant, and the call only with the last", () =>
    Effect.gen(function*() {
      const { Model, interrupted, manager, submit } = yield* open()
      yield* submit(10_000, { dedupeKey: "k", tenant: "a" })
      yield* submit(10_000, { dedupeKey: "k", tenant: "b", labels: { x: "y" } })
      yield* TestClock.adjust(0)
      assert.strictEqual(yield* manager.cancelRequests(Model, { tenant: "a" }), 1)
      assert.strictEqual(interrupted(), 0)
      assert.strictEqual(yield* manager.cancelRequests(Model, { labels: { x: "y" }, status: "processing" }), 1)
      yield* TestClock.adjust(0)
      assert.strictEqual(interrupted(), 1)
    }).pipe(Effect.provide(Manager)))

  it.effect("a shutdown tells all of them", () =>
    Effect.gen(function*() {
      const { manager, submit } = yield* open()
      const both = [yield* submit(10_000, { dedupeKey: "k" }), yield* submit(10_000, { dedupeKey: "k" })]
      yield* TestClock.adjust(0)
      yield* manager.shutdownAll()
      yield* TestClock.adjust(0)
      for (const fiber of both) assert.deepInclude(yield* Effect.flip(Fiber.join(fiber)), { _tag: "QueueShutdown" })
    }).pipe(Effect.provide(Manager)))
})

describe("requests with one key, among others", () => {
  it.effect("have their place in the order, and say how their own time went", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("model", { rateLimiters: [RateLimiter.concurrent(1)] })
      const order: Array<string> = []
      yield* manager.registerQueue(Model, ({ params }) =>
        Effect.delay(
          Effect.sync(() => {
            order.push(params)
            return params
          }),
          "1 second"
        ))
      const submit = (params: string, options?: QueueRequest.RequestOptions) =>
        Effect.forkChild(manager.submit(Model, params, options), { startImmediately: true })
      const keyed = yield* submit("keyed", { dedupeKey: "k" })
      yield* submit("plain")
      yield* TestClock.adjust("600 millis")
      const follower = yield* submit("keyed", { dedupeKey: "k" })
      const late = yield* submit("keyed", { dedupeKey: "k", timeout: "300 millis" })
      yield* TestClock.adjust("300 millis")
      assert.deepInclude(yield* Effect.flip(Fiber.join(late)), {
        _tag: "QueueTimeout",
        queueTimeMillis: 0,
        processingTimeMillis: 300
      })
      yield* TestClock.adjust("1 second")
      assert.strictEqual(order[0], "keyed")
      const times = (yield* Fiber.join(follower)).processingTime
      assert.strictEqual(Duration.toMillis(times), 400)
      assert.strictEqual(Duration.toMillis((yield* Fiber.join(keyed)).processingTime), 1000)
    }).pipe(Effect.provide(Manager)))

  it.effect("an id that was not accepted is free, and nothing was told of it", () =>
    Effect.gen(function*() {
      const { Model, manager, submit } = yield* open({
        rateLimiters: [RateLimiter.concurrent(1)],
        capacity: 1,
        strategy: "reject"
      })
      yield* submit(1000)
      yield* TestClock.adjust(0)
      yield* submit(1000)
      for (let i = 0; i < 2; i++) {
        const refused = yield* submit(0, { dedupeKey: "k", id: "refused" })
        yield* TestClock.adjust(0)
        assert.deepInclude(yield* Effect.flip(Fiber.join(refused)), { _tag: "QueueFull" })
      }
      assert.deepInclude(yield* Effect.flip(manager.getStatus(Model, "refused")), { _tag: "RequestNotFound" })
    }).pipe(Effect.provide(Manager)))

  it.effect("wrong ones are refused though another one's call would answer them", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.make("typed", {
        params: Schema.Finite,
        result: Schema.String,
        rateLimiters: "unlimited",
        deduplicate: { keep: "1 hour" }
      })
      yield* manager.registerQueue(Model, () => Effect.delay(Effect.succeed("x"), "1 second"))
      const refused = Effect.gen(function*() {
        const tags: Array<string> = []
        for (
          const [params, options] of [
            [Number.NaN, {}],
            [1, { timeout: -1 }],
            [1, { processingTimeout: -1 }],
            [1, { estimatedInputTokens: -1 }],
            [1, { estimatedCachedInputTokens: -1 }]
          ] as const
        ) tags.push((yield* Effect.flip(manager.submit(Model, params, { dedupeKey: "k", ...options })))._tag)
        return tags
      })
      const all = Array.from({ length: 5 }, () => "InvalidRequest")
      const first = yield* Effect.forkChild(manager.submit(Model, 1, { dedupeKey: "k" }), { startImmediately: true })
      assert.deepStrictEqual(yield* refused, all)
      yield* TestClock.adjust("1 second")
      yield* Fiber.join(first)
      assert.deepStrictEqual(yield* refused, all)
      const kept = yield* QueueManager.withTenant(manager.submit(Model, 1, { dedupeKey: "k", id: "kept" }), "a")
      assert.deepInclude(kept, { isKept: true, tenant: "a" })
      const usage = manager.updateTokenUsage(Model, "kept", { inputTokens: 1, outputTokens: 1 })
      assert.strictEqual((yield* Effect.flip(usage))._tag, "InvalidRequest")
      yield* manager.shutdownAll()
      const late = yield* Effect.flip(manager.submit(Model, 1, { dedupeKey: "k" }))
      assert.strictEqual(late._tag, "QueueShutdown")
    }).pipe(Effect.provide(Manager)))

  it.effect("nobody joins a queue that closes", () =>
    Effect.gen(function*() {
      const { Model, manager, submit } = yield* open()
      const first = yield* submit(1000, { dedupeKey: "k" })
      yield* TestClock.adjust(0)
      const draining = yield* Effect.forkChild(manager.drainQueue(Model), { startImmediately: true })
      const joins = Effect.map(
        Effect.flip(manager.submit(Model, 1, { dedupeKey: "k" })),
        (error) => typeof error === "string" ? error : error._tag
      )
      assert.strictEqual(yield* joins, "QueueDraining")
      yield* Effect.forkChild(manager.shutdownAll({ policy: "drain", deadline: "1 minute" }), {
        startImmediately: true
      })
      assert.strictEqual(yield* joins, "QueueShutdown")
      yield* TestClock.adjust("1 second")
      assert.strictEqual((yield* Fiber.join(first)).result, "call 1")
      yield* Fiber.join(draining)
    }).pipe(Effect.provide(Manager)))

  it.effect("the place that an operator gave a call is the one that a higher priority is compared with", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("model", { rateLimiters: [RateLimiter.concurrent(1)] })
      const order: Array<string> = []
      yield* manager.registerQueue(Model, ({ params }) =>
        Effect.delay(
          Effect.sync(() => {
            order.push(params)
            return params
          }),
          "1 second"
        ))
      const submit = (params: string, options?: QueueRequest.RequestOptions) =>
        Effect.andThen(
          Effect.forkChild(manager.submit(Model, params, options), { startImmediately: true }),
          TestClock.adjust(0)
        )
      yield* submit("first")
      yield* submit("forty", { priority: 40 })
      yield* submit("raised", { dedupeKey: "raised", id: "raised" })
      yield* submit("low", { dedupeKey: "low", priority: "low" })
      yield* submit("before", { priority: -1 })
      assert.isTrue(yield* manager.changePriority(Model, "raised", "high"))
      yield* submit("raised", { dedupeKey: "raised", priority: 30 })
      // The model's default is higher, too.
      yield* submit("low", { dedupeKey: "low" })
      yield* TestClock.adjust("5 seconds")
      assert.deepStrictEqual(order, ["first", "raised", "forty", "low", "before"])
    }).pipe(Effect.provide(Manager)))

  it.effect("a filter that throws cancels none, and fails as an invalid request", () =>
    Effect.gen(function*() {
      const { Model, manager, submit } = yield* open()
      yield* submit(1000)
      const keyed = yield* submit(1000, { dedupeKey: "k" })
      yield* TestClock.adjust(0)
      const error = yield* Effect.flip(manager.cancelRequests(Model, {
        where: ({ sharedWith }) => {
          if (sharedWith !== undefined) throw new Error("no")
          return true
        }
      }))
      assert.strictEqual(error._tag, "InvalidRequest")
      assert.deepInclude(yield* manager.getQueueInfo(Model), { running: 2, cancelled: 0 })
      assert.isUndefined(keyed.pollUnsafe())
    }).pipe(Effect.provide(Manager)))

  it.effect("a processor that fails with the cancellation of another request has failed", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<number, string, unknown>("model", { rateLimiters: "unlimited" })
      yield* manager.registerQueue(Model, ({ params }) =>
        params === 0 ? Effect.never : Effect.gen(function*() {
          const pending = yield* manager.submitRequest(
            QueueRequest.make(Model, { params: 0, waitForCompletion: false })
          )
          yield* manager.cancelRequest(Model, pending.requestId)
          return (yield* manager.awaitCompletion(pending)).result
        }))
      const fiber = yield* Effect.forkChild(Effect.flip(manager.submit(Model, 1, { dedupeKey: "k", id: "a" })))
      yield* TestClock.adjust(0)
      assert.deepInclude(yield* Fiber.join(fiber), { _tag: "RequestCancelled" })
      assert.strictEqual((yield* manager.getStatus(Model, "a")).status, "failed")
    }).pipe(Effect.provide(Manager)))
})

describe("processors that submit requests with a key to their own queue", () => {
  const tag = (error: unknown): string =>
    typeof error === "object" && error !== null && "_tag" in error ? String(error._tag) : String(error)

  /** What became of a request within a second, and not "hangs". */
  const become = Effect.fnUntraced(function*(fiber: Fiber.Fiber<{ readonly result: string }, unknown>) {
    yield* TestClock.adjust("1 second")
    const exit = fiber.pollUnsafe()
    return exit === undefined ? "hangs" : yield* Effect.match(exit, {
      onSuccess: ({ result }) => result,
      onFailure: tag
    })
  })

  it.effect("cannot wait for their own call by the id of one that shares it", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<number, string, string>("model", {
        rateLimiters: [RateLimiter.concurrent(1)]
      })
      yield* manager.registerQueue(Model, () =>
        Effect.gen(function*() {
          const pending = yield* manager.submitRequest(
            QueueRequest.make(Model, { params: 1, dedupeKey: "k", waitForCompletion: false })
          )
          return (yield* manager.awaitCompletion(pending)).result
        }).pipe(Effect.mapError(tag)))
      assert.strictEqual(
        yield* become(yield* Effect.forkChild(manager.submit(Model, 1, { dedupeKey: "k" }))),
        "InvalidRequest"
      )
    }).pipe(Effect.provide(Manager)))

  it.effect("take no room, and share a call that waits for room", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      for (const isShared of [false, true]) {
        const Model = ModelConfig.makeUntyped<string, string, string>(`model${isShared}`, {
          rateLimiters: [RateLimiter.concurrent(1)],
          capacity: 1
        })
        const go = yield* Deferred.make<void>()
        yield* manager.registerQueue(Model, ({ params }) =>
          params !== "outer" ? Effect.succeed(params) : Effect.andThen(
            Deferred.await(go),
            manager.submit(Model, "inner", { dedupeKey: "k" })
          ).pipe(Effect.map(({ result }) => result), Effect.mapError(tag)))
        const submit = (params: string, dedupeKey?: string) =>
          Effect.forkChild(manager.submit(Model, params, { dedupeKey }), { startImmediately: true })
        const outer = yield* submit("outer")
        yield* TestClock.adjust(0)
        yield* submit("fills the queue")
        if (isShared) {
          yield* submit("inner", "k")
          assert.strictEqual((yield* manager.getQueueInfo(Model)).suspended, 1)
        }
        yield* Deferred.succeed(go, undefined)
        assert.strictEqual(yield* become(outer), "inner")
      }
    }).pipe(Effect.provide(Manager)))

  it.effect("run while their queue drains, as those without a key", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string, string>("model", {
        rateLimiters: [RateLimiter.concurrent(1)]
      })
      const go = yield* Deferred.make<void>()
      yield* manager.registerQueue(Model, ({ params }) =>
        params !== "outer" ? Effect.succeed(params) : Effect.andThen(
          Deferred.await(go),
          manager.submit(Model, "inner", { dedupeKey: "k" })
        ).pipe(Effect.map(({ result }) => result), Effect.mapError(tag)))
      const outer = yield* Effect.forkChild(manager.submit(Model, "outer"))
      yield* TestClock.adjust(0)
      yield* Effect.forkChild(manager.shutdownAll({ policy: "drain", deadline: "1 minute" }), {
        startImmediately: true
      })
      yield* Deferred.succeed(go, undefined)
      assert.strictEqual(yield* become(outer), "inner")
    }).pipe(Effect.provide(Manager)))

  it.effect("do not hang in a circle, through a call that others wait for, nor through another queue", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      for (const isSame of [true, false]) {
        const options = { rateLimiters: [RateLimiter.concurrent(9)] }
        const A = ModelConfig.makeUntyped<string, string, string>(`a${isSame}`, options)
        const B = isSame ? A : ModelConfig.makeUntyped<string, string, string>("b", options)
        const go = yield* Deferred.make<void>()
        const resultOf = <E>(submission: Effect.Effect<{ readonly result: string }, E>) =>
          submission.pipe(Effect.map(({ result }) => result), Effect.mapError(tag))
        const one = manager.submit(A, "one", { dedupeKey: "one" })
        const two = manager.submit(B, "two", { dedupeKey: "two" })
        const processor = ({ params }: { readonly params: string }) =>
          params === "two" ? Effect.andThen(Deferred.await(go), resultOf(one)) : resultOf(two)
        yield* manager.registerQueue(A, processor)
        if (!isSame) yield* manager.registerQueue(B, processor)
        // The call is there for somebody else before the circle comes about.
        yield* Effect.forkChild(Effect.exit(two), { startImmediately: true })
        yield* TestClock.adjust(0)
        const circle = yield* Effect.forkChild(one)
        yield* TestClock.adjust(0)
        yield* Deferred.succeed(go, undefined)
        assert.strictEqual(yield* become(circle), "InvalidRequest")
      }
    }).pipe(Effect.provide(Manager)))
})

describe("equal parameters", () => {
  const model = (options: Partial<ModelConfig.Options<typeof Params.Type, string>>) =>
    ModelConfig.make("typed", { params: Params, result: Schema.String, rateLimiters: "unlimited", ...options })

  it.effect("share when the model says so, whatever the order of their fields", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model({ deduplicate: { key: "params" } })
      let calls = 0
      yield* manager.registerQueue(Model, () => Effect.delay(Effect.sync(() => `${++calls}`), "1 second"))
      const fibers = yield* Effect.forEach(
        [
          manager.submit(Model, { prompt: "a", options: { x: 1, y: 2 } }),
          manager.submit(Model, { options: { y: 2, x: 1 }, prompt: "a" }),
          manager.submit(Model, { prompt: "a", options: { x: 1, y: 3 } }),
          manager.submit(Model, { prompt: "a", options: { x: 1, y: 2 } }, { dedupeKey: false })
        ],
        (submission) => Effect.forkChild(submission, { startImmediately: true })
      )
      yield* TestClock.adjust("1 second")
      for (const fiber of fibers) yield* Fiber.join(fiber)
      assert.strictEqual(calls, 3)
    }).pipe(Effect.provide(Manager)))

  it.effect("never share with others, though the schema encodes both alike, and those that nobody can tell apart fail", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const ask = Effect.fnUntraced(function*<T>(params: Schema.Codec<T>, values: ReadonlyArray<T>) {
        const Model = ModelConfig.make("any", {
          params,
          result: Schema.String,
          rateLimiters: "unlimited",
          deduplicate: { key: "params" }
        })
        let calls = 0
        yield* manager.registerQueue(Model, () => Effect.delay(Effect.sync(() => `${++calls}`), "1 second"))
        const fibers = yield* Effect.forEach(
          values,
          (value) => Effect.forkChild(Effect.exit(manager.submit(Model, value)), { startImmediately: true })
        )
        yield* TestClock.adjust("1 second")
        const exits = yield* Effect.forEach(fibers, Fiber.join)
        yield* manager.unregisterQueue(Model)
        return exits.map((exit) =>
          Exit.isSuccess(exit) ? exit.value.result : Option.getOrThrow(Exit.findErrorOption(exit))._tag
        )
      })
      // @effect-diagnostics-next-line schemaNumber:off
      const Any = Schema.Union([Schema.Number, Schema.String])
      assert.deepStrictEqual(
        yield* ask(Any, [NaN, "NaN", Infinity, "Infinity", 0, -0, NaN]),
        ["1", "2", "3", "4", "5", "6", "1"]
      )
      assert.deepStrictEqual(yield* ask(Schema.Array(Schema.String), [["a,b"], ["a", "b"], []]), ["1", "2", "3"])
      // The schema does not know `b`, yet the processor is given it.
      const withMore = (b: number) => ({ a: "1", b })
      assert.deepStrictEqual(
        yield* ask(Schema.Struct({ a: Schema.String }), [{ a: "1" }, withMore(2), withMore(3)]),
        ["1", "2", "3"]
      )
      assert.deepStrictEqual(
        yield* ask(Schema.Any, [new Map([["a", 1]]), new Map([["a", 2]]), Symbol("a"), { a: undefined }, {}]),
        ["InvalidRequest", "InvalidRequest", "InvalidRequest", "1", "1"]
      )
    }).pipe(Effect.provide(Manager)))

  it.effect("a key that cannot be made is an invalid request, and wrong options an invalid configuration", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Broken = ModelConfig.makeUntyped<string, string>("broken", {
        rateLimiters: "unlimited",
        deduplicate: {
          key: () => {
            throw new Error("no key")
          }
        }
      })
      yield* manager.registerQueue(Broken, () => Effect.succeed(""))
      assert.deepInclude(yield* Effect.flip(manager.submit(Broken, "")), { _tag: "InvalidRequest" })
      const Wrong = ModelConfig.makeUntyped<string, string>("wrong", {
        rateLimiters: "unlimited",
        deduplicate: { key: "params", keep: -1, count: 0 }
      })
      const error = yield* Effect.flip(manager.registerQueue(Wrong, () => Effect.succeed("")))
      assert(error._tag === "InvalidConfiguration")
      assert.deepStrictEqual(error.problems.map((problem) => problem.split(":")[0]), [
        "deduplicate.keep",
        "deduplicate.count",
        "deduplicate.key"
      ])
    }).pipe(Effect.provide(Manager)))

  it.effect("a result that is kept answers at once, for its time, and only a success is", () =>
    Effect.gen(function*() {
      const { Model, calls, charged, manager, submit } = yield* open({ deduplicate: { keep: "1 minute", count: 2 } })
      const ask = Effect.fnUntraced(function*(key: string, params = 1000) {
        const fiber = yield* submit(params, { dedupeKey: key })
        yield* TestClock.adjust(Math.abs(params))
        return yield* Effect.exit(Fiber.join(fiber))
      })
      yield* ask("a")
      const kept = yield* manager.submit(Model, 0, { dedupeKey: "a", id: "kept" })
      assert.deepInclude(kept, { result: "call 1", isKept: true, attempts: 0 })
      assert.strictEqual((yield* manager.getStatus(Model, "kept")).status, "completed")
      assert.strictEqual(yield* charged, 10)
      yield* ask("fails", -10)
      yield* ask("fails", -10)
      assert.strictEqual(calls.length, 3)
      yield* TestClock.adjust("60 seconds")
      yield* ask("a")
      assert.strictEqual(calls.length, 4)
      yield* ask("b")
      yield* ask("c")
      // Two are kept at the most: a is gone.
      yield* ask("a")
      assert.strictEqual(calls.length, 7)
    }).pipe(Effect.provide(Manager)))

  it.effect("a result that is kept for ever is", () =>
    Effect.gen(function*() {
      const { calls, submit } = yield* open({ deduplicate: { keep: Duration.infinity } })
      for (const wait of ["1 second", "10 days", "1 second"] as const) {
        const fiber = yield* submit(1000, { dedupeKey: "a" })
        yield* TestClock.adjust(wait)
        yield* Fiber.join(fiber)
      }
      assert.strictEqual(calls.length, 1)
    }).pipe(Effect.provide(Manager)))

  it.effect("results can be kept in any store of Persistence, encoded by the model's schema", () =>
    Effect.gen(function*() {
      for (const keep of ["1 hour", Duration.infinity] as const) {
        const Typed = ModelConfig.make("typed-results", {
          params: Schema.String,
          result: Schema.Struct({ number: Schema.BigInt }),
          rateLimiters: "unlimited",
          deduplicate: { key: "params", keep }
        })
        let calls = 0
        const ask = Effect.gen(function*() {
          const manager = yield* QueueManager.QueueManager
          yield* manager.registerQueue(Typed, () => Effect.sync(() => ({ number: BigInt(++calls) })))
          return Number((yield* manager.submit(Typed, "a")).result.number)
        }).pipe(Effect.scoped, Effect.provide(Layer.fresh(Manager)))
        const kept = yield* Deferred.make<{ readonly value: object; readonly ttl: Duration.Duration | undefined }>()
        // Tells when something has been kept.
        const Backing = Layer.effect(
          Persistence.BackingPersistence,
          Effect.map(Persistence.BackingPersistence, (backing) =>
            Persistence.BackingPersistence.of({
              make: (storeId) =>
                Effect.map(backing.make(storeId), (store) => ({
                  ...store,
                  set: (key, value, ttl) =>
                    Effect.andThen(store.set(key, value, ttl), Deferred.succeed(kept, { value, ttl })).pipe(
                      Effect.asVoid
                    )
                }))
            }))
        ).pipe(Layer.provide(Persistence.layerBackingMemory))
        const twice = yield* Effect.all([ask, Effect.as(Deferred.await(kept), 0), ask]).pipe(
          Effect.provide(PersistedResults.layer.pipe(Layer.provide(Backing)))
        )
        assert.deepStrictEqual(twice, [1, 0, 1])
        const { ttl, value } = yield* Deferred.await(kept)
        assert.deepStrictEqual(value, { result: { number: "1" } })
        assert.strictEqual(ttl && Duration.toHours(ttl), keep === "1 hour" ? 1 : undefined)
      }
    }))

  it.effect("who waits for a store is told at its own deadline", () =>
    Effect.gen(function*() {
      const { calls, submit } = yield* open({ deduplicate: { keep: "1 minute" } })
      const late = yield* submit(0, { dedupeKey: "a", timeout: "1 second" })
      yield* TestClock.adjust("1 second")
      assert.deepInclude(yield* Effect.flip(Fiber.join(late)), { _tag: "QueueTimeout", queueTimeMillis: 1000 })
      assert.strictEqual(calls.length, 0)
      // What is left of the time after the store has not answered is for the call.
      const later = yield* submit(10_000, { dedupeKey: "a", timeout: "6 seconds" })
      yield* TestClock.adjust("6 seconds")
      assert.deepInclude(yield* Effect.flip(Fiber.join(later)), { _tag: "QueueTimeout", processingTimeMillis: 1000 })
    }).pipe(
      Effect.scoped,
      Effect.provide(Layer.fresh(Manager)),
      Effect.provideService(ResultStore.ResultStore, {
        make: () => Effect.succeed({ get: () => Effect.never, set: () => Effect.void })
      })
    ))

  it.effect("what a store of Persistence has that is not from here counts as nothing", () =>
    Effect.gen(function*() {
      for (const garbage of [{}, { other: 1 }]) {
        const Foreign = Layer.succeed(Persistence.BackingPersistence)(
          Persistence.BackingPersistence.of({
            make: () =>
              Effect.succeed({
                get: () => Effect.succeed(garbage),
                getMany: () => Effect.die("unused"),
                set: () => Effect.void,
                setMany: () => Effect.die("unused"),
                remove: () => Effect.void,
                clear: Effect.void
              })
          })
        )
        const Model = ModelConfig.makeUntyped<string, string>("foreign", {
          rateLimiters: "unlimited",
          deduplicate: { keep: "1 minute" }
        })
        const asked = Effect.gen(function*() {
          const manager = yield* QueueManager.QueueManager
          yield* manager.registerQueue(Model, () => Effect.succeed("called"))
          return yield* manager.submit(Model, "", { dedupeKey: "a" })
        }).pipe(
          Effect.scoped,
          Effect.provide(
            Layer.fresh(Manager).pipe(
              Layer.provide(PersistedResults.layer.pipe(Layer.provide(Foreign)))
            )
          )
        )
        assert.strictEqual((yield* asked).result, "called")
      }
    }))

  it.effect("a store that fails, or never answers, counts as one that has nothing", () =>
    Effect.gen(function*() {
      for (const broken of [Effect.die("broken"), Effect.never]) {
        const ask = Effect.gen(function*() {
          const { calls, submit } = yield* open({ deduplicate: { keep: "1 minute" } })
          const fiber = yield* submit(0, { dedupeKey: "a" })
          yield* TestClock.adjust("10 seconds")
          const again = yield* submit(0, { dedupeKey: "a" })
          yield* TestClock.adjust("10 seconds")
          yield* Fiber.join(fiber)
          yield* Fiber.join(again)
          assert.strictEqual(calls.length, 2)
        }).pipe(Effect.scoped, Effect.provide(Layer.fresh(Manager)))
        yield* ask.pipe(
          Effect.provideService(ResultStore.ResultStore, {
            make: () => Effect.succeed({ get: () => broken, set: () => broken })
          })
        )
      }
    }))
})

describe("sharing at random", () => {
  it.effect("law: as many calls and charges as flights, and every request ends once", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const ends = new Map<string, number>()
      yield* Effect.forkChild(
        Stream.runForEach(manager.events, ({ modelId, requestId, status }) =>
          Effect.sync(() => {
            if (status === "pending" || status === "processing") return
            ends.set(`${modelId} ${requestId}`, (ends.get(`${modelId} ${requestId}`) ?? 0) + 1)
          })),
        { startImmediately: true }
      )
      for (let seed = 1; seed <= 150; seed++) {
        const choose = random.make(seed)
        const capacity = choose.pick([2, 1000])
        const Model = ModelConfig.makeUntyped<number, string, string>(`model${seed}`, {
          rateLimiters: [RateLimiter.rpm(1_000_000, { timePeriod: "1 day" }), RateLimiter.concurrent(choose.int(1, 4))],
          capacity,
          retention: { count: 10_000 }
        })
        let calls = 0
        const running = new Set<string>()
        const called = new Set<string>()
        const together = new Map<string, number>()
        let problem: string | undefined
        yield* manager.registerQueue(Model, (request) =>
          Effect.suspend(() => {
            calls++
            running.add(request.id)
            called.add(request.id)
            const key = String(request.metadata?.["key"])
            const same = (together.get(key) ?? 0) + 1
            together.set(key, same)
            if (same > 1) problem ??= `seed ${seed}: ${same} calls of ${key} at one time`
            return Effect.sleep(Math.abs(request.params)).pipe(
              Effect.andThen(request.params < 0 ? Effect.fail("failed") : Effect.succeed("ok")),
              Effect.ensuring(Effect.sync(() => {
                running.delete(request.id)
                together.set(key, together.get(key)! - 1)
              }))
            )
          }))
        const fibers = new Map<string, Fiber.Fiber<unknown, unknown>>()
        const background = new Set<string>()
        for (let i = 0; i < 40; i++) {
          const key = choose.pick(["a", "b", "c"])
          const id = `r${i}`
          const params = choose.pick([0, 10, 300, 1000, -100])
          const options = {
            id,
            dedupeKey: key,
            metadata: { key },
            priority: choose.int(-5, 5),
            ...(choose.chance(0.3) ? { timeout: choose.int(1, 1500) } : {})
          }
          if (choose.chance(0.3)) {
            const request = QueueRequest.make(Model, { ...options, params, waitForCompletion: false })
            fibers.set(id, yield* Effect.forkChild(manager.submitRequest(request)))
            background.add(id)
          } else {
            fibers.set(id, yield* Effect.forkChild(manager.submit(Model, params, options)))
          }
          yield* TestClock.adjust(choose.pick([0, 0, 1, 50, 400]))
          if (choose.chance(0.15)) yield* Fiber.interrupt(choose.pick([...fibers.values()]))
          if (choose.chance(0.1)) {
            yield* Effect.ignore(manager.cancelRequest(Model, choose.pick([...fibers.keys()])))
          }
          yield* TestClock.adjust(0)
          const alive = new Set<string | undefined>()
          for (const each of fibers.keys()) {
            const found = yield* Effect.option(manager.getStatus(Model, each))
            if (Option.isNone(found)) continue
            const { sharedWith, status } = found.value
            if (status === "pending" || status === "processing") alive.add(sharedWith)
          }
          for (const call of running) assert.isTrue(alive.has(call), `seed ${seed}: ${call} runs for nobody`)
        }
        yield* TestClock.adjust("10 minutes")
        assert.isUndefined(problem)
        assert.strictEqual(running.size, 0, `seed ${seed}`)
        const info = yield* manager.getQueueInfo(Model)
        assert.deepInclude(info, { running: 0, depth: 0, suspended: 0 }, `seed ${seed}`)
        assert.strictEqual(info.rateLimiters[0]!.used, calls, `seed ${seed}: charges`)
        const flights = new Set<string | undefined>()
        for (const [id, fiber] of fibers) {
          const exit = fiber.pollUnsafe()
          assert.isDefined(exit, `seed ${seed}: ${id} hangs`)
          const status = yield* Effect.option(manager.getStatus(Model, id))
          if (Option.isNone(status)) {
            // It was not accepted.
            assert.isTrue(Exit.isFailure(exit), `seed ${seed}: ${id}`)
            assert.isFalse(ends.has(`${Model.modelId} ${id}`), `seed ${seed}: ${id} was told of`)
            continue
          }
          assert.strictEqual(ends.get(`${Model.modelId} ${id}`), 1, `seed ${seed}: ends of ${id}`)
          if (status.value.attempts > 0) flights.add(status.value.sharedWith)
          const ended = status.value.status
          assert.isTrue(["completed", "failed", "cancelled"].includes(ended), `seed ${seed}: ${id} is ${ended}`)
          if (background.has(id) || !Exit.isFailure(exit)) continue
          if (Cause.hasInterruptsOnly(exit.cause)) assert.strictEqual(ended, "cancelled", `seed ${seed}: ${id}`)
        }
        assert.deepStrictEqual<Set<string | undefined>>(called, flights, `seed ${seed}: flights`)
        assert.strictEqual(calls, flights.size, `seed ${seed}: calls`)
        // Nothing is left of them: every key is asked anew, and nobody takes the room of those who share.
        for (const key of ["a", "b", "c"]) {
          yield* Effect.forkChild(manager.submit(Model, 1000, { dedupeKey: key, metadata: { key } }))
          yield* TestClock.adjust("1 second")
        }
        assert.strictEqual(calls, flights.size + 3, `seed ${seed}: keys that are left`)
        if (capacity === 2) {
          const again: Array<Fiber.Fiber<unknown, unknown>> = []
          for (let i = 0; i < 4; i++) {
            again.push(yield* Effect.forkChild(manager.submit(Model, 1000, { dedupeKey: "a", metadata: { key: "a" } })))
          }
          yield* TestClock.adjust("1 second")
          const wentWell = again.map((fiber) => {
            const exit = fiber.pollUnsafe()
            return exit !== undefined && Exit.isSuccess(exit)
          })
          assert.deepStrictEqual(wentWell, [true, true, true, false], `seed ${seed}: room`)
        }
        yield* manager.unregisterQueue(Model)
        ends.clear()
      }
    }).pipe(Effect.provide(Manager)), 60_000)
})
