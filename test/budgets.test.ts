import { assert, describe, it } from "@effect/vitest"
import { Duration, Effect, Fiber } from "effect"
import { ModelConfig, ProviderProfile, QueueManager, QueueRequest, RateLimiter } from "effect-llm-queue"
import { TestClock } from "effect/testing"
import { limit } from "./limit.ts"
import * as sync from "./refusals/limiter.ts"

const price = { input: 1, output: 10 }

/** One unit of money for each million input tokens. */
const costing = (money: number): QueueRequest.RequestOptions => ({
  estimatedInputTokens: money * 1e6,
  estimatedOutputTokens: 0
})

const model = (
  rateLimiters: ReadonlyArray<RateLimiter.Config>,
  options?: ModelConfig.Options<number, ModelConfig.Usage | undefined>
) => ModelConfig.makeUntyped<number, ModelConfig.Usage | undefined>("model", { rateLimiters, ...options })

const sleeps = (request: { readonly params: number }) => Effect.as(Effect.sleep(request.params), undefined)

const state = Effect.fnUntraced(function*(manager: QueueManager.QueueManager["Service"], index = 0) {
  const usage = (yield* manager.getQueueInfo("model")).rateLimiters[index]
  assert(usage !== undefined)
  return usage
})

describe("a budget", () => {
  it.effect("fails a request that costs more than is left, when it is submitted, with the numbers", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const limited = model([RateLimiter.budget(10, { price, timePeriod: "1 hour" })])
      yield* manager.registerQueue(limited, sleeps)
      yield* manager.submit(limited, 0, costing(7))
      yield* TestClock.adjust("10 minutes")
      const request = QueueRequest.make(limited, {
        params: 0,
        id: "late",
        waitForCompletion: false,
        ...costing(4)
      })
      const error = yield* Effect.flip(manager.submitRequest(request))
      assert(error._tag === "BudgetExceeded")
      assert.deepInclude(error, {
        modelId: "model",
        requestId: "late",
        tenant: undefined,
        budget: 10,
        used: 7,
        requested: 4,
        periodMillis: 3_600_000,
        retryAfterMillis: 3_000_000,
        isRetryable: true
      })
      assert.include(error.message, "costs 4, and of the budget of 10 for 1h, 7 is spent or reserved. Try again in 50m")
      // Nothing of it was accepted, and what fits is.
      assert.strictEqual((yield* Effect.flip(manager.getStatus(limited, "late")))._tag, "RequestNotFound")
      yield* manager.submit(limited, 0, costing(3))
      assert.strictEqual((yield* state(manager)).available, 0)
      yield* TestClock.adjust("50 minutes")
      yield* manager.submit(limited, 0, costing(7))
    }).pipe(Effect.provide(QueueManager.layer)))

  it.effect("fails at its turn what no longer fits, and lets those behind it go", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const limited = model([RateLimiter.budget(10, { price }), RateLimiter.concurrent(1)])
      yield* manager.registerQueue(limited, sleeps)
      const submit = (money: number) =>
        Effect.forkChild(Effect.exit(manager.submit(limited, 1000, costing(money))), { startImmediately: true })
      const [first, second, third] = [yield* submit(6), yield* submit(4), yield* submit(2)]
      yield* manager.submitRequest(
        QueueRequest.make(limited, { params: 1000, id: "fourth", waitForCompletion: false, ...costing(4) })
      )
      yield* TestClock.adjust(3000)
      assert.strictEqual((yield* Fiber.join(first))._tag, "Success")
      assert.strictEqual((yield* Fiber.join(second))._tag, "Success")
      const failed = yield* Fiber.join(third)
      assert(failed._tag === "Failure")
      assert.include(String(failed.cause), "BudgetExceeded")
      const status = yield* manager.getStatus(limited, "fourth")
      assert.strictEqual(status.status, "failed")
      assert.strictEqual((yield* state(manager)).used, 10)
    }).pipe(Effect.provide(QueueManager.layer)))

  it.effect("can let requests wait like any other limit", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const limited = model([RateLimiter.budget(10, { price, timePeriod: "1 minute", onExceeded: "wait" })])
      yield* manager.registerQueue(limited, sleeps)
      yield* manager.submit(limited, 0, costing(7))
      const fiber = yield* Effect.forkChild(manager.submit(limited, 0, costing(4)), { startImmediately: true })
      yield* TestClock.adjust("59 seconds")
      assert.isUndefined(fiber.pollUnsafe())
      yield* TestClock.adjust("1 second")
      yield* Fiber.join(fiber)
    }).pipe(Effect.provide(QueueManager.layer)))

  it.effect("calls a request too large that costs more than all of it", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const limited = model([RateLimiter.budget(10, { price })])
      yield* manager.registerQueue(limited, sleeps)
      const error = yield* Effect.flip(manager.submit(limited, 0, costing(10.5)))
      assert(error._tag === "RequestTooLarge")
      assert.deepInclude(error, { limitType: "budget", limit: 10, requested: 10.5 })
      // What is only guessed makes none too large: 1,024 output tokens cost more than this.
      yield* manager.updateRateLimiters(limited, [RateLimiter.budget(0.001, { price })])
      yield* manager.submit(limited, 0)
      assert.closeTo((yield* state(manager)).used, 0.001, 1e-5)
    }).pipe(Effect.provide(QueueManager.layer)))

  it.effect("is settled by the usage, with the price of what came from the cache", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const limited = model([RateLimiter.budget(10, { price: { ...price, cachedInput: 0.1 } })], {
        usage: () => ({ inputTokens: 2_000_000, outputTokens: 100_000, cachedInputTokens: 1_000_000 })
      })
      yield* manager.registerQueue(limited, sleeps)
      yield* manager.submit(limited, 0, costing(9))
      assert.closeTo((yield* state(manager)).used, 1 + 0.1 + 1, 1e-12)
      yield* manager.submit(limited, 0, costing(7))
      assert.closeTo((yield* state(manager)).used, 2 * 2.1, 1e-12)
    }).pipe(Effect.provide(QueueManager.layer)))

  it.effect("for all of the registration is never retryable, and an update keeps what was spent", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const limited = model([RateLimiter.budget(10, { price })])
      yield* manager.registerQueue(limited, sleeps)
      yield* manager.submit(limited, 0, costing(8))
      const forever = (amount: number) => RateLimiter.budget(amount, { price, timePeriod: Duration.infinity })
      yield* manager.updateRateLimiters(limited, [forever(10)])
      yield* TestClock.adjust("400 days")
      const error = yield* Effect.flip(manager.submit(limited, 0, costing(3)))
      assert.deepInclude(error, { used: 8, periodMillis: undefined, retryAfterMillis: undefined, isRetryable: false })
      assert.isFalse(Duration.isFinite((yield* state(manager)).timePeriod!))
      yield* manager.updateRateLimiters(limited, [forever(11)])
      yield* manager.submit(limited, 0, costing(3))
    }).pipe(Effect.provide(QueueManager.layer)))

  it.effect("of calendar days begins anew at midnight in its time zone", () =>
    Effect.gen(function*() {
      yield* TestClock.setTime(27 * 3_600_000)
      const manager = yield* QueueManager.QueueManager
      const limited = model([
        RateLimiter.budget(10, { price, algorithm: "fixedWindow", timeZone: "America/New_York" })
      ])
      yield* manager.registerQueue(limited, sleeps)
      yield* manager.submit(limited, 0, costing(10))
      const error = yield* Effect.flip(manager.submit(limited, 0, costing(1)))
      assert(error._tag === "BudgetExceeded")
      assert.closeTo(error.retryAfterMillis!, 2 * 3_600_000, 1)
      yield* TestClock.adjust("121 minutes")
      yield* manager.submit(limited, 0, costing(10))
    }).pipe(Effect.provide(QueueManager.layer)))

  it.effect("may be a tenant's own", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const limited = model([RateLimiter.rpm(100)], {
        tenants: { others: { rateLimiters: [RateLimiter.budget(5, { price })] } }
      })
      yield* manager.registerQueue(limited, sleeps)
      yield* manager.submit(limited, 0, { ...costing(5), tenant: "a" })
      const error = yield* Effect.flip(manager.submit(limited, 0, { ...costing(1), tenant: "a" }))
      assert.deepInclude(error, { _tag: "BudgetExceeded", tenant: "a", budget: 5, used: 5 })
      yield* manager.submit(limited, 0, { ...costing(5), tenant: "b" })
    }).pipe(Effect.provide(QueueManager.layer)))

  it.effect("is no matter of the provider: no rule, header or refusal is about it", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const limited = model([RateLimiter.budget(10, { price })], { provider: ProviderProfile.openai })
      yield* manager.registerQueue(limited, sleeps)
      assert.deepInclude(yield* state(manager), { type: "budget", limit: 10, margin: Duration.zero })
      const limiter = yield* sync.make(
        limit("budget", 10, { price: { input: 1, output: 1, cachedInput: 1 }, onExceeded: "fail", timePeriod: 60_000 }),
        limit("rpm", 10, { timePeriod: 60_000 })
      )
      const first = yield* limiter.request(4e6)
      yield* limiter.observe(first, sync.says("budget", 1))
      assert.strictEqual(yield* limiter.available(), 6)
      yield* limiter.refuse(first, sync.refusal({ retryAfter: 30_000 }))
      assert.strictEqual(yield* limiter.available(), 10)
      assert.isUndefined((yield* limiter.state()).pausedFor)
      assert.isDefined((yield* limiter.state(1)).pausedFor)
    }).pipe(Effect.provide(QueueManager.layer)))

  it.effect("that cannot work is named with every problem", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const problemsOf = (...limits: ReadonlyArray<unknown>) =>
        Effect.map(
          Effect.flip(manager.updateRateLimiters("model", limits as ReadonlyArray<RateLimiter.Config>)),
          (error) => error._tag === "InvalidConfiguration" ? error.problems : [error._tag]
        )
      yield* manager.registerQueue(model([RateLimiter.rpm(1)]), sleeps)
      const problems = yield* problemsOf(
        {
          type: "budget",
          limit: 0,
          price: { input: -1, output: "2", cachedInput: Number.NaN },
          margin: 1,
          burst: 1,
          algorithm: "paced",
          charging: { refund: false },
          onExceeded: "queue"
        },
        { type: "budget", limit: 1 },
        { type: "budget", limit: 1, timePeriod: "2 days", price: { input: 0, output: 0 } },
        { type: "rpm", limit: 1, price, onExceeded: "fail", timePeriod: Duration.infinity }
      )
      for (
        const start of [
          "rateLimiters[0].limit: expected an amount",
          "rateLimiters[0].price.input: expected a number",
          "rateLimiters[0].price.output: expected a number",
          "rateLimiters[0].price.cachedInput: expected a number",
          "rateLimiters[0].margin: a budget has none",
          "rateLimiters[0].burst: a budget has none",
          "rateLimiters[0].algorithm: expected \"slidingWindow\"",
          "rateLimiters[0].charging.refund: a budget has none",
          "rateLimiters[0].onExceeded: expected",
          "rateLimiters[1].price: expected { input, output }",
          "rateLimiters[2].price: nothing costs anything",
          "rateLimiters[3].price: only a budget",
          "rateLimiters[3].onExceeded: only a budget",
          "rateLimiters[3].timePeriod: expected a duration"
        ]
      ) assert.isTrue(problems.some((problem) => problem.startsWith(start)), `${start}\n${problems.join("\n")}`)
      assert.strictEqual(problems.length, 14, problems.join("\n"))
    }).pipe(Effect.provide(QueueManager.layer)))
})
