import { assert, describe, it } from "@effect/vitest"
import { Duration, Effect, Fiber, Layer, Logger, Metric, Stream } from "effect"
import { ModelConfig, ProviderProfile, QueueManager, RateLimiter } from "effect-llm-queue"
import * as Metrics from "effect-llm-queue/Metrics"
import { TestClock } from "effect/testing"

interface Params {
  /** Milliseconds. */
  readonly takes?: number
  readonly fails?: object
}

const usage = { inputTokens: 30, outputTokens: 5, cachedInputTokens: 10 }

const process = ({ params: { fails, takes = 0 } }: { readonly params: Params }) =>
  Effect.andThen(
    Effect.sleep(Duration.millis(takes)),
    fails === undefined ? Effect.succeed(usage) : Effect.fail(fails)
  )

const Model = ModelConfig.makeUntyped<Params, ModelConfig.Usage, object>("gpt-4", {
  rateLimiters: [RateLimiter.rpm(3), RateLimiter.tpm(1000), RateLimiter.concurrent(2)],
  usage: (result) => result,
  provider: { ...ProviderProfile.openai, limits: {} },
  shutdown: { policy: "interrupt", deadline: 0 }
})

const estimates = { estimatedInputTokens: 20, estimatedOutputTokens: 10 }

/** What is in the registry: names with labels, and their numbers. */
const all = Effect.map(Metric.snapshot, (snapshot) =>
  new Map(snapshot.map(({ attributes, id, state }) => [
    `${id} ${
      Object.entries(attributes ?? {}).toSorted(([a], [b]) => a < b ? -1 : 1).map(([key, value]) => `${key}=${value}`)
        .join(" ")
    }`,
    state
  ])))

/** A counter, a gauge, or how many a histogram has and their sum. */
const value = (name: string) =>
  Effect.map(all, (series) => {
    const state = series.get(name)
    assert(state !== undefined, `${name} is not among ${Array.from(series.keys()).join("; ")}`)
    return "count" in state && "sum" in state
      ? [state.count, state.sum]
      : "count" in state
      ? state.count
      : "value" in state
      ? state.value
      : undefined
  })

const is = (name: string, expected: unknown) =>
  Effect.map(value(name), (actual) => assert.deepStrictEqual(actual, expected, name))

const withMetrics = (options?: Metrics.Options) =>
  Effect.fnUntraced(function*<A, E>(effect: Effect.Effect<A, E, QueueManager.QueueManager>) {
    return yield* effect.pipe(
      Effect.provide(QueueManager.layer.pipe(Layer.provide(Metrics.layer(options)))),
      Effect.provideService(Metric.MetricRegistry, new Map())
    )
  })

describe("Metrics", () => {
  it.effect("say how requests went, how long they waited, and what they used", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      yield* Effect.scoped(Effect.gen(function*() {
        yield* manager.registerQueue(Model, process)
        yield* is("llm_queue_depth model=gpt-4", 0)
        const ask = (params: Params, options?: object) =>
          Effect.forkChild(Effect.exit(manager.submit(Model, params, { ...estimates, ...options })), {
            startImmediately: true
          })
        const succeeds = yield* ask({ takes: 1000 })
        const late = yield* ask({ takes: 5000 }, { timeout: "2 seconds" })
        const waits = yield* ask({ takes: 500, fails: { message: "its own" } })
        const cancelled = yield* ask({}, { id: "cancelled" })
        yield* TestClock.adjust(0)
        yield* is("llm_queue_depth model=gpt-4", 2)
        yield* is("llm_queue_running model=gpt-4", 2)
        yield* is("llm_queue_limit model=gpt-4 period=60 type=rpm", 3)
        yield* is("llm_queue_limit_used model=gpt-4 period=60 type=rpm", 2)
        yield* is("llm_queue_limit_used model=gpt-4 period= type=concurrent", 2)
        yield* is("llm_queue_reserved_tokens_total direction=input model=gpt-4", 40)
        yield* is("llm_queue_provider_available model=gpt-4", 1)
        yield* manager.cancelRequest(Model, "cancelled")
        yield* TestClock.adjust("10 seconds")
        for (const fiber of [succeeds, late, waits, cancelled]) yield* Fiber.join(fiber)

        yield* is("llm_queue_depth model=gpt-4", 0)
        yield* is("llm_queue_running model=gpt-4", 0)
        yield* is("llm_queue_requests_total model=gpt-4 outcome=completed", 1)
        yield* is("llm_queue_requests_total model=gpt-4 outcome=failed", 2)
        yield* is("llm_queue_requests_total model=gpt-4 outcome=cancelled", 1)
        yield* is("llm_queue_processing_seconds model=gpt-4 outcome=completed", [1, 1])
        yield* is("llm_queue_processing_seconds model=gpt-4 outcome=failed", [2, 2.5])
        // Two at once, one after a second.
        yield* is("llm_queue_wait_seconds model=gpt-4", [3, 1])
        yield* is("llm_queue_blocked_seconds_total model=gpt-4 reason=concurrent", 1)
        yield* is("llm_queue_used_tokens_total direction=input model=gpt-4", 30)
        yield* is("llm_queue_used_tokens_total direction=cached model=gpt-4", 10)
        yield* is("llm_queue_used_tokens_total direction=output model=gpt-4", 5)
        yield* is("llm_queue_estimate_ratio direction=input model=gpt-4", [1, 1.5])
        yield* is("llm_queue_estimate_ratio direction=output model=gpt-4", [1, 0.5])

        // The window is full: what waits for it waits for rpm.
        const blocked = yield* ask({})
        yield* TestClock.adjust("20 seconds")
        yield* manager.pauseQueue(Model)
        yield* TestClock.adjust("40 seconds")
        yield* manager.resumeQueue(Model)
        yield* TestClock.adjust("1 minute")
        yield* Fiber.join(blocked)
        const waited = (yield* value("llm_queue_blocked_seconds_total model=gpt-4 reason=rpm")) as number
        assert.isAtLeast(waited, 20)

        yield* manager.updateRateLimiters(Model, [RateLimiter.rpm(7, { timePeriod: "1 hour" })])
        yield* is("llm_queue_limit model=gpt-4 period=3600 type=rpm", 7)
        assert.isFalse((yield* all).has("llm_queue_limit model=gpt-4 period=60 type=tpm"))
      }))
      // The model is gone.
      assert.strictEqual((yield* all).size, 0)
    }).pipe(withMetrics()))

  it.effect("count refusals by kind, and attempts after them", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      let attempts = 0
      yield* Effect.scoped(Effect.gen(function*() {
        yield* manager.registerQueue(Model, () =>
          attempts++ === 0
            ? Effect.fail({ status: 429, headers: { "retry-after": "3" } })
            : Effect.succeed(usage))
        const fiber = yield* Effect.forkChild(manager.submit(Model, {}, estimates))
        yield* TestClock.adjust("1 second")
        yield* is("llm_queue_refusals_total kind=rate model=gpt-4", 1)
        const paused = yield* Effect.forEach(
          ["period=60 type=rpm", "period=60 type=tpm"],
          (labels) => value(`llm_queue_limit_paused_seconds model=gpt-4 ${labels}`)
        )
        assert.isAbove(Math.max(...paused as Array<number>), 1.9)
        yield* TestClock.adjust("30 seconds")
        yield* Fiber.join(fiber)
        yield* is("llm_queue_retries_total model=gpt-4", 1)
        yield* is("llm_queue_requests_total model=gpt-4 outcome=completed", 1)
        yield* is("llm_queue_reserved_tokens_total direction=input model=gpt-4", 40)
        const [count] = (yield* value("llm_queue_wait_seconds model=gpt-4")) as ReadonlyArray<number>
        assert.strictEqual(count, 2)
      }))
    }).pipe(withMetrics()))

  it.effect("tell how long a stream takes to begin", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Writer = ModelConfig.makeStreamUntyped<null, number>("writer", { rateLimit: 10 })
      yield* Effect.scoped(Effect.gen(function*() {
        yield* manager.registerStream(Writer, () =>
          Stream.fromIterable([1, 2, 3]).pipe(Stream.mapEffect((n) => Effect.as(Effect.sleep("2 seconds"), n))))
        const fiber = yield* Effect.forkChild(Stream.runDrain(manager.stream(Writer, null)))
        yield* TestClock.adjust("10 seconds")
        yield* Fiber.join(fiber)
        yield* is("llm_queue_first_element_seconds model=writer", [1, 2])
        yield* is("llm_queue_processing_seconds model=writer outcome=completed", [1, 6])
      }))
    }).pipe(withMetrics()))

  it.effect("have labels of priorities and of so many tenants, if they are asked for", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Plain = ModelConfig.makeUntyped<Params, ModelConfig.Usage, object>("plain", { rateLimiters: "unlimited" })
      yield* Effect.scoped(Effect.gen(function*() {
        yield* manager.registerQueue(Plain, process)
        for (
          const [tenant, priority] of [["a", "high"], ["b", 0], ["c", -5], ["a", 1], [undefined, undefined]] as const
        ) {
          yield* manager.submit(Plain, {}, { tenant, priority })
        }
        const count = (labels: string) => value(`llm_queue_requests_total model=plain outcome=completed ${labels}`)
        assert.strictEqual(yield* count("priority=high tenant=a"), 2)
        assert.strictEqual(yield* count("priority=normal tenant=b"), 1)
        assert.strictEqual(yield* count("priority=low tenant=other"), 1)
        assert.strictEqual(yield* count("priority=normal tenant="), 1)
      }))
      assert.strictEqual((yield* all).size, 0)
    }).pipe(withMetrics({ priorities: true, tenants: 2 })))

  it.effect("are as many as were asked for, and numbers, whatever tenants there are and whatever is reported", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Plain = ModelConfig.makeUntyped<unknown, unknown, object>("plain", {
        rateLimiters: [RateLimiter.tpm(1_000_000)],
        usage: (result) => result as ModelConfig.Usage
      })
      yield* Effect.scoped(Effect.gen(function*() {
        const nonsense = [Number.NaN, Number.POSITIVE_INFINITY, -1, 1e300, "7", null, {}]
        yield* manager.registerQueue(
          Plain,
          ({ params }) => Effect.succeed({ inputTokens: params, outputTokens: params })
        )
        const ask = (index: number) =>
          manager.submit(Plain, nonsense[index % nonsense.length], { ...estimates, tenant: `tenant ${index}` })
        for (let index = 0; index < 20; index++) yield* ask(index)
        const few = (yield* all).size
        for (let index = 20; index < 1000; index++) yield* ask(index)
        const many = yield* all
        assert.strictEqual(many.size, few)
        const values = Array.from(many, ([name, state]) => [name, "sum" in state ? state.sum : Object.values(state)[0]])
        for (const [name, number] of values) assert.isTrue(Number.isFinite(number), `${name}: ${number}`)
        assert.strictEqual(
          yield* value("llm_queue_requests_total model=plain outcome=completed tenant=other"),
          1000 - 3
        )
      }))
      assert.strictEqual((yield* all).size, 0)
    }).pipe(withMetrics({ tenants: 3 }), Effect.provide(Logger.layer([]))))

  it.effect("are not kept where nobody asks for them", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      yield* Effect.scoped(Effect.andThen(manager.registerQueue(Model, process), manager.submit(Model, {}, estimates)))
      assert.strictEqual((yield* all).size, 0)
    }).pipe(Effect.provide(QueueManager.layer), Effect.provideService(Metric.MetricRegistry, new Map())))
})
