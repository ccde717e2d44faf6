import { assert, describe, it } from "@effect/vitest"
import { Duration, Effect, Fiber } from "effect"
import { ModelConfig, ModelQueue, ProviderProfile, QueueManager, QueueRequest, RateLimiter } from "effect-llm-queue"
import { TestClock } from "effect/testing"
import { limit } from "./limit.ts"
import * as sync from "./refusals/limiter.ts"

interface Params {
  readonly text?: string
  /** Milliseconds. */
  readonly takes?: number
}

const processor = (request: { readonly params: Params }) => Effect.sleep(Duration.millis(request.params.takes ?? 0))

const model = (
  rateLimiters: ReadonlyArray<RateLimiter.Config> | "unlimited",
  options?: ModelConfig.Options<Params, void>
) => ModelConfig.makeUntyped<Params, void>("model", { rateLimiters, ...options })

/** Submits, and gives what says what has become of it. */
const started = (
  manager: QueueManager.QueueManager["Service"],
  of: ModelConfig.ModelConfig<Params, void, never>,
  params: Params = {},
  options?: QueueRequest.RequestOptions
) =>
  Effect.map(
    Effect.forkChild(Effect.exit(manager.submit(of, params, options)), { startImmediately: true }),
    (fiber) =>
      Effect.sync(() => {
        const exit = fiber.pollUnsafe()
        if (exit === undefined) return "waits"
        if (exit._tag === "Failure" || exit.value._tag === "Success") return "ended"
        const error = exit.value.cause.reasons[0]
        return error?._tag === "Fail" ? error.error : "died"
      })
  )

const calm = TestClock.adjust(0)

describe("changeLimit", () => {
  it.effect("gives one limit another number, and keeps the others and all that is known", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const limited = model([
        RateLimiter.rpm(2, { margin: "3 seconds" }),
        RateLimiter.rpm(100, { timePeriod: "1 hour" }),
        RateLimiter.budget(5, { price: { input: 1, output: 1 } }),
        RateLimiter.concurrent(10)
      ])
      yield* manager.registerQueue(limited, processor)
      const states = yield* Effect.forEach([1, 2, 3, 4], () => started(manager, limited))
      yield* calm
      const before = yield* manager.getQueueInfo(limited)
      yield* manager.changeLimit("model", { type: "rpm", timePeriod: "1 minute", limit: 3 })
      yield* calm
      const after = yield* manager.getQueueInfo(limited)
      assert.deepStrictEqual(yield* Effect.all(states), ["ended", "ended", "ended", "waits"])
      assert.deepStrictEqual(after.rateLimiters.map(({ limit }) => limit), [3, 100, 5, 10])
      assert.deepStrictEqual(
        after.rateLimiters.map(({ margin, timePeriod, type }) => ({ margin, timePeriod, type })),
        before.rateLimiters.map(({ margin, timePeriod, type }) => ({ margin, timePeriod, type }))
      )
      yield* manager.changeLimit(limited, { type: "budget", limit: 0.5 })
      yield* manager.changeLimit(limited, { type: "concurrent", limit: 1 })

      const problem = (change: QueueManager.LimitChange) =>
        Effect.map(Effect.flip(manager.changeLimit(limited, change)), (error) => {
          assert(error._tag === "InvalidConfiguration")
          return error.problems.join()
        })
      assert.match(
        yield* problem({ type: "rpm", limit: 3 }),
        /timePeriod: expected that of one of rpm over 1m, rpm over 1h/
      )
      assert.match(yield* problem({ type: "rpm", limit: 3, timePeriod: "1 day" }), /timePeriod/)
      assert.match(
        yield* problem({ type: "tpm", limit: 3 }),
        /type: there is no such limit, only rpm over 1m, .*concurrent/
      )
      assert.match(yield* problem({ type: "concurrent", limit: 0.5 }), /limit: expected a whole number/)
      assert.match(yield* problem({ type: "budget", limit: 0 }), /limit: expected an amount/)
      assert.match(yield* problem({ type: "x" as never, limit: Number.NaN }), /got "x"/)
      assert.strictEqual(
        (yield* Effect.flip(manager.changeLimit("none", { type: "rpm", limit: 3 })))._tag,
        "ModelNotRegistered"
      )
      const unchanged = yield* manager.getQueueInfo(limited)
      assert.deepStrictEqual(unchanged.rateLimiters.map(({ limit }) => limit), [3, 100, 0.5, 1])
    }).pipe(Effect.provide(QueueManager.layerWith({ shutdown: { policy: "interrupt", deadline: 0 } }))))
})

describe("updateRateLimiters", () => {
  it.effect("lets those that wait go at once when the limit is raised", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const limited = model([RateLimiter.rpm(1)])
      yield* manager.registerQueue(limited, processor)
      const states = yield* Effect.forEach([1, 2, 3], () => started(manager, limited))
      yield* calm
      assert.deepStrictEqual(yield* Effect.all(states), ["ended", "waits", "waits"])
      yield* manager.updateRateLimiters(limited, [RateLimiter.rpm(2)])
      yield* calm
      assert.deepStrictEqual(yield* Effect.all(states), ["ended", "ended", "waits"])
      yield* manager.updateRateLimiters("model", "unlimited")
      yield* calm
      assert.deepStrictEqual(yield* Effect.all(states), ["ended", "ended", "ended"])
    }).pipe(Effect.provide(QueueManager.layer)))

  it.effect("fails those that are too large for the new limits, and no others", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const limited = model([RateLimiter.rpm(1), RateLimiter.tpm(100)])
      yield* manager.registerQueue(limited, processor)
      yield* manager.submit(limited, {}, { estimatedInputTokens: 1, estimatedOutputTokens: 0 })
      const large = yield* started(manager, limited, {}, {
        id: "l",
        estimatedInputTokens: 80,
        estimatedOutputTokens: 0
      })
      const small = yield* started(manager, limited, {}, { estimatedInputTokens: 50, estimatedOutputTokens: 0 })
      yield* manager.updateRateLimiters(limited, [RateLimiter.rpm(1), RateLimiter.tpm(50)])
      assert.deepInclude(yield* large, {
        _tag: "RequestTooLarge",
        requestId: "l",
        limitType: "tpm",
        limit: 50,
        requested: 80,
        estimated: false
      })
      assert.strictEqual(yield* small, "waits")
      yield* TestClock.adjust("1 minute")
      assert.strictEqual(yield* small, "ended")
    }).pipe(Effect.provide(QueueManager.layer)))

  it.effect("tells a submitter that waits for room that its request is too large now", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const limited = model([RateLimiter.rpm(1), RateLimiter.tpm(100)], {
        capacity: 1,
        shutdown: { policy: "interrupt" }
      })
      yield* manager.registerQueue(limited, processor)
      const options = { params: {}, estimatedInputTokens: 10, estimatedOutputTokens: 0, waitForCompletion: false }
      yield* manager.submitRequest(QueueRequest.make(limited, options))
      yield* calm
      yield* manager.submitRequest(QueueRequest.make(limited, options))
      const fiber = yield* Effect.forkChild(
        Effect.flip(manager.submitRequest(QueueRequest.make(limited, { ...options, estimatedInputTokens: 60 }))),
        { startImmediately: true }
      )
      yield* manager.updateRateLimiters(limited, [RateLimiter.rpm(1), RateLimiter.tpm(50)])
      assert.strictEqual((yield* Fiber.join(fiber))._tag, "RequestTooLarge")
    }).pipe(Effect.provide(QueueManager.layer)))

  it.effect("guesses the tokens of those that wait when limits begin to count them", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const limited = model([RateLimiter.rpm(1)])
      yield* manager.registerQueue(limited, processor)
      yield* manager.submit(limited, {})
      const waits = yield* started(manager, limited, { text: "x".repeat(40) })
      yield* manager.updateRateLimiters(limited, [RateLimiter.rpm(1), RateLimiter.tpm(100)])
      assert.strictEqual(yield* waits, "waits")
      yield* TestClock.adjust("1 minute")
      assert.strictEqual(yield* waits, "ended")
      const { rateLimiters } = yield* manager.getQueueInfo(limited)
      assert.strictEqual(rateLimiters[1]?.used, 100)
    }).pipe(Effect.provide(QueueManager.layer)))

  it.effect("names every problem, and changes nothing then", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const limited = model([RateLimiter.rpm(3)])
      yield* manager.registerQueue(limited, processor)
      yield* manager.submit(limited, {})
      const error = yield* Effect.flip(
        manager.updateRateLimiters(limited, [RateLimiter.rpm(-1), RateLimiter.tpm(1, { timePeriod: "0 seconds" })])
      )
      assert(error._tag === "InvalidConfiguration")
      assert.strictEqual(error.modelId, "model")
      assert.strictEqual(error.problems.length, 2)
      assert.include(error.problems[0], "rateLimiters[0].limit")
      assert.include(error.problems[1], "rateLimiters[1].timePeriod")
      const empty = yield* Effect.flip(manager.updateRateLimiters(limited, []))
      assert.strictEqual(empty._tag, "InvalidConfiguration")
      const { rateLimiters } = yield* manager.getQueueInfo(limited)
      assert.deepStrictEqual(rateLimiters.map(({ limit, used }) => [limit, used]), [[3, 1]])
      const unknown = yield* Effect.flip(manager.updateRateLimiters("other", "unlimited"))
      assert.strictEqual(unknown._tag, "ModelNotRegistered")
    }).pipe(Effect.provide(QueueManager.layer)))

  it.effect("keeps the permits of those at work when there may be fewer, none or any number at one time", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const limited = model("unlimited")
      yield* manager.registerQueue(limited, processor)
      const submit = (takes: number) => started(manager, limited, { takes })
      const first = [yield* submit(1000), yield* submit(2000), yield* submit(3000)]
      yield* calm
      yield* manager.updateRateLimiters(limited, [RateLimiter.concurrent(2)])
      const fourth = yield* submit(1000)
      const running = Effect.map(manager.getQueueInfo(limited), ({ rateLimiters, running }) => [
        running,
        rateLimiters[0]?.used,
        rateLimiters[0]?.available
      ])
      yield* TestClock.adjust(500)
      assert.deepStrictEqual(yield* running, [3, 3, 0])
      yield* TestClock.adjust(500)
      assert.deepStrictEqual(yield* running, [2, 2, 0])
      yield* manager.updateRateLimiters(limited, [RateLimiter.concurrent(3)])
      yield* calm
      assert.deepStrictEqual(yield* running, [3, 3, 0])
      yield* manager.updateRateLimiters(limited, "unlimited")
      yield* manager.updateRateLimiters(limited, [RateLimiter.concurrent(1)])
      assert.deepStrictEqual(yield* running, [3, 3, 0])
      yield* TestClock.adjust(2000)
      assert.deepStrictEqual(yield* running, [0, 0, 1])
      assert.deepStrictEqual(yield* Effect.all([...first, fourth]), ["ended", "ended", "ended", "ended"])
    }).pipe(Effect.provide(QueueManager.layer)))

  it.effect("settles what was reserved before with the limits of now", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const limited = model([RateLimiter.tpm(100)])
      yield* manager.registerQueue(limited, processor)
      yield* manager.submit(limited, {}, { id: "a", estimatedInputTokens: 60, estimatedOutputTokens: 0 })
      const waits = yield* started(manager, limited, {}, { estimatedInputTokens: 60, estimatedOutputTokens: 0 })
      yield* manager.updateRateLimiters(limited, [
        RateLimiter.tpd(90),
        RateLimiter.tpm(80, { timePeriod: "2 minutes" })
      ])
      const used = Effect.map(
        manager.getQueueInfo(limited),
        ({ rateLimiters }) => rateLimiters.map(({ used }) => used)
      )
      assert.deepStrictEqual(yield* used, [60, 60])
      yield* calm
      assert.strictEqual(yield* waits, "waits")
      const settlement = yield* manager.updateTokenUsage(limited, "a", { inputTokens: 20, outputTokens: 0 })
      assert.strictEqual(settlement, "settled")
      yield* calm
      assert.strictEqual(yield* waits, "ended")
      assert.deepStrictEqual(yield* used, [80, 80])
      yield* TestClock.adjust("2 minutes")
      assert.deepStrictEqual(yield* used, [80, 0])
    }).pipe(Effect.provide(QueueManager.layer)))

  it.effect("completes the new limits by the model's provider, as at the registration", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const provider = { ...ProviderProfile.openai, margin: "250 millis" as const }
      const limited = model([RateLimiter.rpm(100)], { provider })
      yield* manager.registerQueue(limited, processor)
      yield* manager.updateRateLimiters(limited, [RateLimiter.rpm(50)])
      const [usage] = (yield* manager.getQueueInfo(limited)).rateLimiters
      assert(usage !== undefined)
      assert.strictEqual(usage.limit, 50)
      assert.strictEqual(Duration.toMillis(usage.margin), 250)
    }).pipe(Effect.provide(QueueManager.layer)))

  it.effect("keeps for tenants their parts of the new limits, less what they have used", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const limited = model([RateLimiter.rpm(4)], {
        tenants: { byId: { a: { guaranteed: 0.5 }, b: { rateLimiters: [RateLimiter.rpm(1)] } } }
      })
      yield* manager.registerQueue(limited, processor)
      const submit = (tenant: string) => started(manager, limited, {}, { tenant })
      const states = [
        yield* submit("a"),
        yield* submit("b"),
        yield* submit("b"),
        yield* submit("c"),
        yield* submit("c")
      ]
      yield* calm
      // One of four is kept for a, and b has its own limit.
      assert.deepStrictEqual(yield* Effect.all(states), ["ended", "ended", "waits", "ended", "waits"])
      // Of six, three are for a, which has used one: four are left, and two of them are kept.
      yield* manager.updateRateLimiters(limited, [RateLimiter.rpm(6, { timePeriod: "2 minutes" })])
      const more = [yield* submit("c"), yield* submit("c"), yield* submit("a"), yield* submit("a")]
      yield* calm
      assert.deepStrictEqual(yield* Effect.all([...states.slice(2), ...more]), [
        "waits",
        "ended",
        "ended",
        "waits",
        "waits",
        "ended",
        "ended"
      ])
      const error = yield* Effect.flip(manager.updateRateLimiters(limited, "unlimited"))
      assert.strictEqual(error._tag, "InvalidConfiguration")
      yield* TestClock.adjust("2 minutes")
      assert.isFalse((yield* Effect.all([...states, ...more])).includes("waits"))
    }).pipe(Effect.provide(QueueManager.layer)))

  it.effect("is there for a queue without a manager too", () =>
    Effect.gen(function*() {
      const queue = yield* ModelQueue.make(model([RateLimiter.rpm(1)]), processor)
      yield* queue.submit({})
      yield* queue.updateRateLimiters([RateLimiter.rpm(2)])
      yield* queue.submit({})
      assert.strictEqual((yield* queue.getQueueInfo).rateLimiters[0]?.used, 2)
    }))
})

describe("Limiter.update", () => {
  it.effect("keeps a pause and a lower limit that the provider has asked for", () =>
    Effect.gen(function*() {
      const limiter = yield* sync.make(limit("rpm", 100, { timePeriod: 60_000 }))
      const reservation = yield* limiter.request()
      yield* limiter.refuse(reservation, sync.refusal({ types: ["rpm"], limit: 40, retryAfter: 5000 }))
      yield* limiter.update([limit("rpm", 80, { timePeriod: 120_000 })])
      const state = yield* limiter.state()
      assert.strictEqual(state.enforced, 40)
      assert.isAtLeast(Duration.toMillis(state.pausedFor!), 5000)
      yield* limiter.update([limit("rpm", 30, { timePeriod: 120_000 })])
      assert.strictEqual((yield* limiter.state()).enforced, 30)
    }))

  it.effect("dates at its end what is held, whatever the new limit counts", () =>
    Effect.gen(function*() {
      const limiter = yield* sync.make(limit("tpm", 100, { chargedAt: "completion" }))
      const reservation = yield* limiter.request(60)
      yield* limiter.update([limit("tpm", 100, { timePeriod: 2000, chargedAt: "dispatch" })])
      yield* TestClock.adjust(5000)
      assert.strictEqual(yield* limiter.wait(60), Number.POSITIVE_INFINITY)
      yield* limiter.complete(reservation)
      assert.strictEqual(yield* limiter.wait(60), 2000)
    }))

  it.effect("takes back from a window that follows a bucket only what was used beyond the estimate", () =>
    Effect.gen(function*() {
      const limiter = yield* sync.make(limit("tpm", 100, { algorithm: "tokenBucket" }))
      const less = yield* limiter.request(20)
      const more = yield* limiter.request(20)
      yield* limiter.update([limit("tpm", 100)])
      assert.strictEqual((yield* limiter.state()).used, 40)
      assert.strictEqual(yield* limiter.settle(less, { inputTokens: 0, outputTokens: 0 }), "settled")
      assert.strictEqual((yield* limiter.state()).used, 40)
      yield* limiter.settle(more, { inputTokens: 50, outputTokens: 0 })
      assert.strictEqual((yield* limiter.state()).used, 70)
    }))

  it.effect("takes back from a bucket that follows a window only what the charge itself has left to be refilled", () =>
    Effect.gen(function*() {
      const limiter = yield* sync.make(limit("tpm", 100))
      const more = yield* limiter.request(20)
      const less = yield* limiter.request(20)
      yield* limiter.update([limit("tpm", 100, { algorithm: "tokenBucket" })])
      yield* TestClock.adjust(24_000)
      assert.strictEqual((yield* limiter.state()).used, 0)
      yield* limiter.settle(more, { inputTokens: 50, outputTokens: 0 })
      assert.strictEqual((yield* limiter.state()).used, 30)
      yield* limiter.settle(less, { inputTokens: 0, outputTokens: 0 })
      assert.strictEqual((yield* limiter.state()).used, 30)
    }))

  it.effect("carries a reservation through several updates at once", () =>
    Effect.gen(function*() {
      const limiter = yield* sync.make(limit("tpm", 100))
      const reservation = yield* limiter.request(60)
      yield* limiter.update([limit("tpm", 100, { timePeriod: 2000 })])
      yield* limiter.update([limit("rpm", 5), limit("tpm", 100, { timePeriod: 3000 })])
      yield* limiter.update([limit("tpm", 100, { timePeriod: 4000, algorithm: "tokenBucket" })])
      yield* limiter.giveBack(reservation, true)
      assert.strictEqual((yield* limiter.state()).used, 0)
    }))

  it.effect("knows what others use of a limit that gets a longer window", () =>
    Effect.gen(function*() {
      const limiter = yield* sync.make(limit("tpm", 100))
      const reservation = yield* limiter.request(10)
      yield* limiter.observe(reservation, sync.says("tpm", 30))
      assert.strictEqual(yield* limiter.available(), 30)
      yield* limiter.update([limit("tpm", 100, { timePeriod: 2000 })])
      assert.strictEqual(yield* limiter.available(), 30)
      yield* TestClock.adjust(1500)
      assert.strictEqual(yield* limiter.available(), 30)
    }))
})
