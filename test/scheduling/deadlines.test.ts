import { assert, describe, it } from "@effect/vitest"
import { Clock, Duration, Effect, Fiber } from "effect"
import { ModelConfig, QueueManager, QueueRequest, RateLimiter } from "effect-llm-queue"
import { TestClock } from "effect/testing"
import * as random from "../model/random.ts"

/** Its end waits for nobody, so that a test can leave requests behind. */
const Manager = QueueManager.layerWith({ shutdown: { policy: "interrupt", deadline: 0 } })

const tokens = (n: number) => ({ estimatedInputTokens: n, estimatedOutputTokens: 0 })

const fire = <P, A, E>(
  manager: QueueManager.QueueManager["Service"],
  model: ModelConfig.ModelConfig<P, A, E>,
  params: NoInfer<P>,
  options?: QueueRequest.RequestOptions
) => manager.submitRequest(QueueRequest.make(model, { ...options, params, waitForCompletion: false }))

describe("a request that cannot be in time", () => {
  it.effect("fails when it is submitted, with the wait that is predicted, and one that can does not", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("model", { rateLimiters: [RateLimiter.tpm(100)] })
      yield* manager.registerQueue(Model, (request) => Effect.succeed(request.params))
      yield* manager.submit(Model, "used", tokens(80))
      yield* TestClock.adjust("20 seconds")
      const options = { ...tokens(50), timeout: "30 seconds" } as const
      for (
        const error of [
          yield* Effect.flip(manager.submit(Model, "late", options)),
          yield* Effect.flip(fire(manager, Model, "late", options))
        ]
      ) {
        assert(error._tag === "QueueTimeout")
        assert.strictEqual(error.predictedWaitMillis, 40_000)
        assert.isTrue(error.message.includes("40s"), error.message)
      }
      const inTime = yield* Effect.forkChild(
        manager.submit(Model, "in time", { ...tokens(50), timeout: "40001 millis" }),
        { startImmediately: true }
      )
      yield* TestClock.adjust("40 seconds")
      assert.strictEqual((yield* Fiber.join(inTime)).result, "in time")
      assert.strictEqual((yield* manager.getQueueInfo(Model)).failed, 0)
    }).pipe(Effect.provide(Manager)))

  it.effect("counts what waits before it in its own tenant, and nothing that goes after it", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("model", {
        rateLimiters: [RateLimiter.rpm(10, { timePeriod: "10 seconds" })]
      })
      yield* manager.registerQueue(Model, (request) => Effect.succeed(request.params))
      for (let i = 0; i < 40; i++) yield* fire(manager, Model, `${i}`, { tenant: "a" })
      yield* TestClock.adjust(0)
      const timeout = "25 seconds"
      const error = yield* Effect.flip(fire(manager, Model, "behind", { tenant: "a", timeout }))
      assert(error._tag === "QueueTimeout")
      // 30 wait: they go at 10, 20 and 30 s, and it would be the first one at 40 s.
      assert.strictEqual(error.predictedWaitMillis, 40_000)
      yield* fire(manager, Model, "before", { tenant: "a", priority: "high", timeout })
      yield* fire(manager, Model, "of another tenant", { tenant: "b", timeout })
    }).pipe(Effect.provide(Manager)))

  it.effect("is one also by the limits of its tenant alone", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("model", {
        rateLimiters: [RateLimiter.concurrent(1)],
        tenants: { others: { rateLimiters: [RateLimiter.rpm(1)] } }
      })
      yield* manager.registerQueue(Model, (request) => Effect.succeed(request.params))
      yield* manager.submit(Model, "first")
      const error = yield* Effect.flip(fire(manager, Model, "late", { timeout: "59 seconds" }))
      assert(error._tag === "QueueTimeout")
      assert.strictEqual(error.predictedWaitMillis, 60_000)
    }).pipe(Effect.provide(Manager)))

  it.effect("is not failed for what may still be given back", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, { readonly usage: ModelConfig.Usage }>("model", {
        rateLimiters: [RateLimiter.tpm(1000)],
        usage: (result) => result.usage
      })
      yield* manager.registerQueue(
        Model,
        () => Effect.delay(Effect.succeed({ usage: { inputTokens: 10, outputTokens: 0 } }), "2 seconds")
      )
      yield* fire(manager, Model, "in flight", tokens(900))
      yield* TestClock.adjust(0)
      const second = yield* Effect.forkChild(manager.submit(Model, "second", { ...tokens(500), timeout: "10 seconds" }))
      yield* TestClock.adjust("4 seconds")
      assert.strictEqual((yield* Fiber.join(second)).status, "completed")
      // What that one really used stays.
      assert.isTrue(Duration.isZero(yield* manager.estimateWait(Model, tokens(980))))
      const error = yield* Effect.flip(fire(manager, Model, "late", { ...tokens(981), timeout: "10 seconds" }))
      assert(error._tag === "QueueTimeout")
      assert.strictEqual(error.predictedWaitMillis, 56_000)
    }).pipe(Effect.provide(Manager)))

  it.effect("waits for its deadline all the same when the model says so", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("model", { rateLimit: 1, failEarly: false })
      yield* manager.registerQueue(Model, (request) => Effect.succeed(request.params))
      yield* manager.submit(Model, "first")
      const late = yield* Effect.forkChild(Effect.flip(manager.submit(Model, "late", { timeout: "10 seconds" })))
      yield* TestClock.adjust("10 seconds")
      const error = yield* Fiber.join(late)
      assert(error._tag === "QueueTimeout")
      assert.isUndefined(error.predictedWaitMillis)
      assert.strictEqual(error.queueTimeMillis, 10_000)
    }).pipe(Effect.provide(Manager)))
})

describe("estimateWait", () => {
  it.effect("law: alone, a request waits as long as was estimated", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      for (let seed = 1; seed <= 80; seed++) {
        const choose = random.make(seed)
        const algorithm = choose.pick<RateLimiter.Algorithm>(["slidingWindow", "tokenBucket", "fixedWindow", "paced"])
        const Model = ModelConfig.makeUntyped<string, number>(`model${seed}`, {
          rateLimiters: [
            RateLimiter.tpm(100, { timePeriod: "10 seconds", algorithm, margin: choose.pick([0, 100]) }),
            RateLimiter.rpm(5, { timePeriod: "2 seconds" })
          ]
        })
        yield* manager.registerQueue(Model, () => Clock.currentTimeMillis)
        for (let i = 0; i < choose.int(0, 8); i++) {
          yield* fire(manager, Model, "history", tokens(choose.int(1, 30)))
          yield* TestClock.adjust(choose.int(0, 2000))
        }
        yield* TestClock.adjust(choose.int(15_000, 16_000))
        yield* fire(manager, Model, "history", tokens(choose.int(1, 100)))
        yield* TestClock.adjust(choose.int(0, 3000))
        const cost = tokens(choose.int(1, 100))
        if ((yield* manager.getQueueInfo(Model)).depth > 0) continue
        const estimate = Duration.toMillis(yield* manager.estimateWait(Model, cost))
        const submitted = yield* Clock.currentTimeMillis
        const next = yield* Effect.forkChild(manager.submit(Model, "next", cost))
        yield* TestClock.adjust("40 seconds")
        const { result } = yield* Fiber.join(next)
        assert.closeTo(result - submitted, estimate, 1.1, `seed ${seed}: ${algorithm}`)
        yield* manager.unregisterQueue(Model)
      }
    }).pipe(Effect.provide(Manager)))

  it.effect("law: behind others, it waits no less than was estimated, and not much more", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      for (let seed = 1; seed <= 60; seed++) {
        const choose = random.make(seed)
        const algorithm = choose.pick<RateLimiter.Algorithm>(["slidingWindow", "tokenBucket", "fixedWindow"])
        const Model = ModelConfig.makeUntyped<string, number>(`model${seed}`, {
          rateLimiters: [RateLimiter.tpm(100, { timePeriod: "10 seconds", algorithm })],
          bypass: 0
        })
        yield* manager.registerQueue(Model, () => Clock.currentTimeMillis)
        for (let i = 0; i < choose.int(5, 60); i++) yield* fire(manager, Model, "ahead", tokens(choose.int(1, 20)))
        yield* TestClock.adjust(choose.int(0, 3000))
        const cost = tokens(choose.int(1, 20))
        const estimate = Duration.toMillis(yield* manager.estimateWait(Model, cost))
        const submitted = yield* Clock.currentTimeMillis
        const next = yield* Effect.forkChild(manager.submit(Model, "next", cost))
        yield* TestClock.adjust("5 minutes")
        const waited = (yield* Fiber.join(next)).result - submitted
        assert.isAtLeast(waited, estimate - 1.1, `seed ${seed}: ${algorithm}`)
        // Requests that do not fill a window cost up to a fifth of each.
        assert.isAtMost(waited, 1.3 * estimate + 10_000, `seed ${seed}: ${algorithm}`)
        yield* manager.unregisterQueue(Model)
      }
    }).pipe(Effect.provide(Manager)))

  it.effect("counts the shares of other tenants, and the permits by the mean processing time", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("model", {
        rateLimiters: [RateLimiter.rpm(10, { timePeriod: "10 seconds" })],
        tenants: { byId: { b: { weight: 3 } } }
      })
      yield* manager.registerQueue(Model, (request) => Effect.succeed(request.params))
      for (let i = 0; i < 10; i++) yield* manager.submit(Model, "used")
      for (let i = 0; i < 9; i++) yield* fire(manager, Model, "a", { tenant: "a" })
      for (let i = 0; i < 100; i++) yield* fire(manager, Model, "b", { tenant: "b" })
      yield* TestClock.adjust(0)
      // Its own ten take four turns each: 40 requests.
      assert.strictEqual(Duration.toSeconds(yield* manager.estimateWait(Model, { tenant: "a" })), 40)
      assert.strictEqual(Duration.toSeconds(yield* manager.estimateWait(Model, { tenant: "c" })), 10)
      const Slow = ModelConfig.makeUntyped<string, string>("slow", { rateLimiters: [RateLimiter.concurrent(2)] })
      yield* manager.registerQueue(Slow, () => Effect.delay(Effect.succeed("ok"), "4 seconds"))
      yield* fire(manager, Slow, "first")
      yield* TestClock.adjust("4 seconds")
      assert.isTrue(Duration.isZero(yield* manager.estimateWait(Slow)))
      for (let i = 0; i < 5; i++) yield* fire(manager, Slow, "more")
      yield* TestClock.adjust(0)
      assert.strictEqual(Duration.toSeconds(yield* manager.estimateWait(Slow)), 8)
    }).pipe(Effect.provide(Manager)))

  it.effect("is that of a request of the region: its labels are asked for, too", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("model", {
        rateLimiters: [RateLimiter.tpm(100)],
        estimator: {
          make: () => ({
            estimate: ({ labels }) => ({
              inputTokens: labels?.["size"] === "large" ? 80 : 1,
              outputTokens: 0,
              observe: () => {}
            }),
            stats: () => []
          })
        }
      })
      yield* manager.registerQueue(Model, (request) => Effect.succeed(request.params))
      yield* manager.submit(Model, "used", tokens(50))
      assert.isTrue(Duration.isZero(yield* manager.estimateWait(Model)))
      const wait = yield* manager.estimateWait(Model).pipe(QueueManager.withLabels({ size: "large" }))
      assert.strictEqual(Duration.toSeconds(wait), 60)
    }).pipe(Effect.provide(Manager)))

  it.effect("fails for what would fail when it is submitted", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("model", { rateLimiters: [RateLimiter.tpm(100)] })
      const tagOf = (options: QueueRequest.EstimateOptions<string>) =>
        Effect.map(Effect.flip(manager.estimateWait(Model, options)), (error) => error._tag)
      assert.strictEqual(yield* tagOf({}), "ModelNotRegistered")
      yield* manager.registerQueue(Model, (request) => Effect.succeed(request.params))
      assert.strictEqual(yield* tagOf(tokens(101)), "RequestTooLarge")
      assert.strictEqual(yield* tagOf(tokens(Number.NaN)), "InvalidRequest")
      assert.strictEqual(yield* tagOf({ priority: Number.NaN }), "InvalidRequest")
    }).pipe(Effect.provide(Manager)))
})
