import { assert, describe, it } from "@effect/vitest"
import { Cause, Clock, Duration, Effect, Exit, Fiber, Latch, Layer, Logger, Schedule, Stream } from "effect"
import type { QueueResponse } from "effect-llm-queue"
import { ProviderProfile, QueueManager, QueueRequest, RateLimiter } from "effect-llm-queue"
import { TestClock } from "effect/testing"
import {
  auth,
  HttpFailure,
  left,
  Manager,
  model,
  nothing,
  overload,
  own,
  profile,
  providerOf,
  quota,
  rate,
  scripted,
  start,
  tagOf,
  tooLarge,
  transient
} from "./provider.ts"

const minute = 60_000
const hour = 3_600_000

/** Another attempt at once, as often as need be. */
const atOnce = Schedule.forever

const usageOf = Effect.fnUntraced(function*(modelId: string, type: RateLimiter.Type) {
  const info = yield* QueueManager.QueueManager.use((manager) => manager.getQueueInfo(modelId))
  const usage = info.rateLimiters.find((usage) => usage.type === type)
  assert(usage !== undefined)
  return usage
})

describe("refusals by a rate limit", () => {
  it.effect("the same request runs again when the time the provider asked for has passed, and the caller hears only the result", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("rate-again", { rateLimiters: [RateLimiter.rpm(100)] })
      const provider = scripted({ a: [rate(7000), rate(3000)] })
      yield* manager.registerQueue(Model, provider.processor)
      const caller = yield* start(manager.submit(Model, "a"))
      yield* TestClock.adjust(6999)
      assert.deepStrictEqual(provider.seen, ["0 a"])
      yield* TestClock.adjust(51)
      assert.deepStrictEqual(provider.seen, ["0 a", "7 a"])
      yield* TestClock.adjust(2949)
      assert.deepStrictEqual(provider.seen, ["0 a", "7 a"])
      yield* TestClock.adjust(200)
      const response = yield* Fiber.join(caller)
      assert.deepInclude(response, { result: "a", attempts: 3 })
      assert.isTrue(provider.exact[1]! >= 7000 && provider.exact[1]! <= 7050)
      assert.isTrue(provider.exact[2]! >= provider.exact[1]! + 3000 && provider.exact[2]! <= provider.exact[1]! + 3050)
    }).pipe(Effect.provide(Manager)))

  it.effect("the limit is paused for the whole queue: no other request is sent in that time", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("rate-pauses", { rateLimiters: [RateLimiter.rpm(100), RateLimiter.rpd(1000)] })
      const provider = scripted({ a: [rate(10_000)] })
      yield* manager.registerQueue(Model, provider.processor)
      yield* start(manager.submit(Model, "a"))
      yield* TestClock.adjust(1000)
      yield* start(manager.submit(Model, "b"))
      yield* start(manager.submit(Model, "c", { priority: "high" }))
      const usages = (yield* manager.getQueueInfo(Model)).rateLimiters
      const paused = usages.filter((usage) => usage.pausedFor !== undefined)
      assert.strictEqual(paused.length, 1)
      const pausedFor = Duration.toMillis(paused[0]!.pausedFor!)
      assert.isTrue(pausedFor >= 9000 && pausedFor <= 9050, `${pausedFor}`)
      yield* TestClock.adjust(8999)
      assert.deepStrictEqual(provider.seen, ["0 a"])
      yield* TestClock.adjust(51)
      assert.sameMembers(provider.seen, ["0 a", "10 a", "10 b", "10 c"])
      assert.deepStrictEqual(yield* left("rate-pauses"), nothing)
    }).pipe(Effect.provide(Manager)))

  it.effect("the limit that the refusal names is the one that is paused, and each keeps the longest time asked for", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("rate-named", { rateLimiters: [RateLimiter.rpm(100), RateLimiter.tpm(1000)] })
      const provider = scripted({
        a: [Effect.delay(Effect.fail(rate(20_000, "on tokens per min (TPM)")), 100)],
        b: [Effect.delay(Effect.fail(rate(5000, "on tokens per min (TPM)")), 200)]
      })
      yield* manager.registerQueue(Model, provider.processor)
      yield* start(manager.submit(Model, "a", { estimatedInputTokens: 1, estimatedOutputTokens: 1 }))
      yield* TestClock.adjust(1)
      yield* start(manager.submit(Model, "b", { estimatedInputTokens: 1, estimatedOutputTokens: 1 }))
      yield* TestClock.adjust(300)
      const pausedFor = Duration.toMillis((yield* usageOf("rate-named", "tpm")).pausedFor!)
      assert.isTrue(pausedFor >= 19_799 && pausedFor <= 19_849, `${pausedFor}`)
      assert.strictEqual((yield* usageOf("rate-named", "rpm")).pausedFor, undefined)
      yield* TestClock.adjust(19_849)
      assert.deepStrictEqual(provider.seen, ["0 a", "0 b", "20.1 a", "20.1 b"])
    }).pipe(Effect.provide(Manager)))

  it.effect("no permit is held while a request waits for its next attempt", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("rate-permit", {
        rateLimiters: [RateLimiter.concurrent(1)],
        retry: { schedule: Schedule.spaced("10 seconds") }
      })
      const provider = scripted({
        a: [transient()],
        b: [Effect.as(Effect.sleep("4 seconds"), "b")],
        c: [Effect.as(Effect.sleep("20 seconds"), "c")]
      })
      yield* manager.registerQueue(Model, provider.processor)
      yield* start(manager.submit(Model, "a"))
      yield* TestClock.adjust(100)
      assert.strictEqual((yield* usageOf("rate-permit", "concurrent")).used, 0)
      assert.deepStrictEqual(yield* left("rate-permit"), { depth: 1, suspended: 0, running: 0 })
      yield* start(manager.submit(Model, "b"))
      yield* start(manager.submit(Model, "c"))
      yield* TestClock.adjust(5000)
      assert.deepStrictEqual(provider.seen, ["0 a", "0.1 b", "4.1 c"])
      yield* TestClock.adjust(19_000)
      assert.deepStrictEqual(provider.seen, ["0 a", "0.1 b", "4.1 c", "24.1 a"])
    }).pipe(Effect.provide(Manager)))

  it.effect("it goes before what was submitted after it, and not before a higher priority", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("rate-order", {
        rateLimiters: [RateLimiter.rpm(100), RateLimiter.concurrent(1)],
        retry: { schedule: atOnce }
      })
      const provider = scripted({ b: [rate(5000)] })
      yield* manager.registerQueue(Model, provider.processor)
      yield* start(manager.submit(Model, "b"))
      yield* TestClock.adjust(100)
      yield* start(manager.submit(Model, "c"))
      yield* start(manager.submit(Model, "low", { priority: "low" }))
      yield* start(manager.submit(Model, "high", { priority: "high" }))
      yield* TestClock.adjust(6000)
      assert.deepStrictEqual(provider.seen, ["0 b", "5 high", "5 b", "5 c", "5 low"])
    }).pipe(Effect.provide(Manager)))

  it.effect("several refused together come back in the order in which they were submitted", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("rate-order-2", { rateLimiters: [RateLimiter.rpm(100)], retry: { schedule: atOnce } })
      const provider = scripted({
        a: [Effect.delay(Effect.fail(rate(5000)), 300)],
        b: [Effect.delay(Effect.fail(rate(5000)), 100)],
        c: [Effect.delay(Effect.fail(rate(5000)), 200)]
      })
      yield* manager.registerQueue(Model, provider.processor)
      for (const params of ["a", "b", "c", "d"]) {
        yield* start(manager.submit(Model, params))
        yield* TestClock.adjust(1)
      }
      yield* TestClock.adjust(6000)
      assert.deepStrictEqual(provider.seen.slice(4), ["5.3 a", "5.3 b", "5.3 c"])
    }).pipe(Effect.provide(Manager)))

  it.effect("its tokens are given back, and its request is charged where refused requests count", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const tokens = { estimatedInputTokens: 60, estimatedOutputTokens: 40 }
      for (const refused of [true, false]) {
        const id = `rate-charges-${refused}`
        const Model = model(id, {
          rateLimiters: [
            RateLimiter.rpm(100, { charging: { refused } }),
            RateLimiter.tpm(1000, { charging: { refused, refund: false } })
          ]
        })
        yield* manager.registerQueue(Model, scripted({ a: [rate(10_000), Effect.never] }).processor)
        yield* start(manager.submit(Model, "a", tokens))
        yield* TestClock.adjust(10)
        assert.strictEqual((yield* usageOf(id, "tpm")).used, 0)
        assert.strictEqual((yield* usageOf(id, "rpm")).used, refused ? 1 : 0)
        yield* TestClock.adjust(10_100)
        assert.strictEqual((yield* usageOf(id, "tpm")).used, 100)
        assert.strictEqual((yield* usageOf(id, "rpm")).used, refused ? 2 : 1)
      }
    }).pipe(Effect.provide(Manager)))

  it.effect("a fault of the provider is charged in full, as is the attempt after it", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("fault-charges", {
        rateLimiters: [RateLimiter.rpm(100), RateLimiter.tpm(1000)],
        retry: { schedule: Schedule.spaced(1000) }
      })
      yield* manager.registerQueue(Model, scripted({ a: [transient(), Effect.never] }).processor)
      yield* start(manager.submit(Model, "a", { estimatedInputTokens: 60, estimatedOutputTokens: 40 }))
      yield* TestClock.adjust(2000)
      assert.strictEqual((yield* usageOf("fault-charges", "tpm")).used, 200)
      assert.strictEqual((yield* usageOf("fault-charges", "rpm")).used, 2)
    }).pipe(Effect.provide(Manager)))

  it.effect("an overload counts as a request, and takes nothing from a budget of money", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("overload-charges", {
        rateLimiters: [RateLimiter.rpm(100), RateLimiter.budget(1, { price: { input: 1000, output: 1000 } })],
        retry: { schedule: Schedule.spaced(1000) }
      })
      yield* manager.registerQueue(Model, scripted({ a: [overload(), overload(), Effect.never] }).processor)
      yield* start(manager.submit(Model, "a", { estimatedInputTokens: 400, estimatedOutputTokens: 0 }))
      yield* TestClock.adjust(5000)
      assert.strictEqual((yield* usageOf("overload-charges", "rpm")).used, 3)
      assert.closeTo((yield* usageOf("overload-charges", "budget")).used, 0.4, 1e-9)
    }).pipe(Effect.provide(Manager)))

  it.effect("the numbers in a refusal correct the limit", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("rate-numbers", { rateLimiters: [RateLimiter.tpm(1000)] })
      const message = "on tokens per min (TPM): Limit 800, Used 700, Requested 150."
      yield* manager.registerQueue(Model, scripted({ a: [rate(10_000, message)] }).processor)
      yield* start(manager.submit(Model, "a", { estimatedInputTokens: 150, estimatedOutputTokens: 0 }))
      yield* TestClock.adjust(10)
      assert.deepInclude(yield* usageOf("rate-numbers", "tpm"), { enforced: 800, used: 700, available: 100 })
    }).pipe(Effect.provide(Manager)))

  it.effect("a time to wait of an hour is waited for", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("rate-hour", { rateLimiters: [RateLimiter.rpm(100)] })
      const provider = scripted({ a: [rate(hour)] })
      yield* manager.registerQueue(Model, provider.processor)
      const caller = yield* start(manager.submit(Model, "a"))
      yield* TestClock.adjust(hour - 1)
      assert.strictEqual(provider.seen.length, 1)
      yield* TestClock.adjust(51)
      assert.strictEqual((yield* Fiber.join(caller)).attempts, 2)
    }).pipe(Effect.provide(Manager)))

  it.effect("a time to wait that passes the request's deadline fails it at once, with the time", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("rate-fast", { rateLimiters: [RateLimiter.rpm(100)] })
      const refusal = rate(minute, "on requests per min (RPM)")
      const provider = scripted({ a: [Effect.delay(Effect.fail(refusal), 2000)] })
      yield* manager.registerQueue(Model, provider.processor)
      const caller = yield* start(manager.submit(Model, "a", { id: "fast", timeout: minute }))
      yield* TestClock.adjust(2000)
      const exit = caller.pollUnsafe()
      assert(exit !== undefined && Exit.isFailure(exit), "told at once, not at its deadline")
      const error = Cause.squash(exit.cause)
      assert.deepInclude(error, {
        _tag: "RateLimitExceeded",
        modelId: "rate-fast",
        requestId: "fast",
        attempts: 1,
        retryAfterMillis: minute,
        limitTypes: ["rpm"],
        isRetryable: true,
        cause: refusal,
        message: `The provider refused request "fast" to model "rate-fast" by its rpm limit, after 1 attempt. `
          + `The provider asks to wait 1m. Check that the configured limits are those of the account, `
          + `and that nobody else uses them.`
      })
      assert.deepStrictEqual(yield* left("rate-fast"), nothing)
      // For the others the limit is paused all the same.
      yield* start(manager.submit(Model, "b"))
      yield* TestClock.adjust(minute - 1)
      assert.deepStrictEqual(provider.seen, ["0 a"])
      yield* TestClock.adjust(51)
      assert.deepStrictEqual(provider.seen, ["0 a", "62 b"])
    }).pipe(Effect.provide(Manager)))

  it.effect("a deadline just after the time to wait leaves room for another attempt", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("rate-in-time", { rateLimiters: [RateLimiter.rpm(100)], retry: { schedule: atOnce } })
      yield* manager.registerQueue(Model, scripted({ a: [rate(5000)] }).processor)
      const caller = yield* start(manager.submit(Model, "a", { timeout: 5100 }))
      yield* TestClock.adjust(5100)
      assert.strictEqual((yield* Fiber.join(caller)).attempts, 2)
    }).pipe(Effect.provide(Manager)))

  it.effect("a request that grew too fast slows everything down and runs again", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("ramp", { rateLimiters: [RateLimiter.rpm(100)], retry: { schedule: atOnce } })
      const slow = new HttpFailure({
        status: 503,
        headers: { "retry-after-ms": "2000" },
        message: "slow_down"
      })
      const provider = scripted({ a: [Effect.fail(Object.assign(slow, { code: "slow_down" }))] })
      yield* manager.registerQueue(Model, provider.processor)
      yield* start(manager.submit(Model, "a"))
      yield* TestClock.adjust(10)
      const usage = yield* usageOf("ramp", "rpm")
      assert.isTrue(usage.enforced <= 60, `${usage.enforced}`)
      assert.isDefined(usage.pausedFor)
      assert.strictEqual((yield* manager.getQueueInfo(Model)).provider?.refusals.ramp, 1)
      yield* TestClock.adjust(2100)
      assert.deepStrictEqual(provider.seen, ["0 a", "2 a"])
    }).pipe(Effect.provide(Manager)))

  it.effect("refusals without a time to wait pause the limit by chance within a quarter of the period", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("rate-no-hint", { rateLimiters: [RateLimiter.rpm(100)], retry: { schedule: atOnce } })
      const provider = scripted({ a: [rate()] })
      yield* manager.registerQueue(Model, provider.processor)
      yield* start(manager.submit(Model, "a"))
      yield* TestClock.adjust(0)
      const pausedFor = Duration.toMillis((yield* usageOf("rate-no-hint", "rpm")).pausedFor!)
      assert.isTrue(pausedFor >= 7500 && pausedFor <= 15_000, `${pausedFor}`)
      yield* TestClock.adjust(7000)
      assert.strictEqual(provider.seen.length, 1)
      yield* TestClock.adjust(8000)
      assert.strictEqual(provider.seen.length, 2)
    }).pipe(Effect.provide(Manager)))
})

describe("the retry schedule", () => {
  it.effect("by default waits half a second, doubled and jittered, and makes five further attempts", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("schedule-default", { circuitBreaker: { failures: 100 } })
      const provider = scripted({ a: Array.from({ length: 20 }, () => transient()) })
      yield* manager.registerQueue(Model, provider.processor)
      const caller = yield* start(Effect.exit(manager.submit(Model, "a")))
      yield* TestClock.adjust("5 minutes")
      assert.isTrue(Exit.isFailure(yield* Fiber.join(caller)))
      assert.strictEqual(provider.exact.length, 6)
      const waits = provider.exact.slice(1).map((at, index) => at - provider.exact[index]!)
      waits.forEach((wait, index) => {
        const base = 500 * 2 ** index
        assert.isTrue(wait >= 0.8 * base - 1 && wait <= 1.2 * base + 1, `wait ${index} is ${wait}`)
      })
    }).pipe(Effect.provide(Manager)))

  it.effect("is replaced by the user's own: its number of attempts and its delays", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const cases = [
        [Schedule.recurs(0), ["0 a"]],
        [Schedule.recurs(2), ["0 a", "0 a", "0 a"]],
        [
          Schedule.max([Schedule.spaced("3 seconds"), Schedule.recurs(2)]),
          ["0 a", "3 a", "6 a"]
        ],
        [Schedule.max([Schedule.exponential("1 second", 3), Schedule.recurs(3)]), ["0 a", "1 a", "4 a", "13 a"]]
      ] as const
      for (const [index, [schedule, expected]] of cases.entries()) {
        const begin = yield* Clock.currentTimeMillis
        const Model = model(`schedule-${index}`, { retry: { schedule }, circuitBreaker: { failures: 100 } })
        const provider = scripted({ a: Array.from({ length: 9 }, () => transient()) })
        yield* manager.registerQueue(Model, provider.processor)
        const caller = yield* start(Effect.exit(manager.submit(Model, "a")))
        yield* TestClock.adjust("1 minute")
        assert.isTrue(Exit.isFailure(yield* Fiber.join(caller)))
        assert.deepStrictEqual(provider.exact.map((at) => `${(at - begin) / 1000} a`), [...expected])
      }
    }).pipe(Effect.provide(Manager)))

  it.effect("sees each refusal, and each request has its own course through it", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const inputs: Array<readonly [RateLimiter.RefusalKind, number | undefined, number | undefined]> = []
      const schedule = Schedule.max([Schedule.spaced(1000), Schedule.recurs(1)]).pipe(
        Schedule.setInputType<RateLimiter.Refusal>(),
        Schedule.while(({ input }) => {
          inputs.push([input.kind, input.retryAfter, input.status])
          return Effect.succeed(input.kind !== "overload")
        })
      )
      const Model = model("schedule-input", { retry: { schedule }, circuitBreaker: { failures: 100 } })
      const provider = scripted({ a: [transient(), rate(50), transient()], b: [rate()], c: [overload()] })
      yield* manager.registerQueue(Model, provider.processor)
      const exits: Array<unknown> = []
      for (const params of ["a", "b", "c"]) {
        yield* start(
          Effect.map(Effect.exit(manager.submit(Model, params)), (exit) => exits.push([params, tagOf(exit)]))
        )
        yield* TestClock.adjust(1)
      }
      yield* TestClock.adjust(10_000)
      assert.deepStrictEqual(exits, [["c", "ProviderUnavailable"], ["a", "RateLimitExceeded"], ["b", "success"]])
      assert.deepStrictEqual(inputs, [
        ["transient", undefined, 500],
        ["rate", undefined, 429],
        ["overload", undefined, 503]
      ])
      assert.deepStrictEqual(provider.seen, ["0 a", "0 b", "0 c", "1 a", "1 b"])
    }).pipe(Effect.provide(Manager)))

  it.effect("its delay is the least, what the provider asks for goes beyond it", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      for (const [retryAfter, expected] of [[1000, 5000], [9000, 9000]] as const) {
        const begin = yield* Clock.currentTimeMillis
        const Model = model(`schedule-least-${retryAfter}`, { retry: { schedule: Schedule.spaced("5 seconds") } })
        const provider = scripted({ a: [rate(retryAfter)] })
        yield* manager.registerQueue(Model, provider.processor)
        yield* start(manager.submit(Model, "a"))
        yield* TestClock.adjust(20_000)
        assert.deepStrictEqual(provider.exact.map((at) => at - begin), [0, expected])
      }
    }).pipe(Effect.provide(Manager)))

  it.effect("a delay that passes the request's deadline ends it at once", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("schedule-late", { retry: { schedule: Schedule.spaced("5 seconds") } })
      yield* manager.registerQueue(Model, scripted({ a: [transient()], b: [rate()] }).processor)
      for (const [params, tag] of [["a", "HttpFailure"], ["b", "RateLimitExceeded"]] as const) {
        const caller = yield* start(manager.submit(Model, params, { timeout: "5 seconds" }))
        yield* TestClock.adjust(0)
        assert.strictEqual(tagOf(caller.pollUnsafe()), tag)
      }
    }).pipe(Effect.provide(Manager)))

  it.effect("without a provider nothing is attempted twice", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("no-provider", { provider: undefined })
      const provider = scripted({ a: [rate(1000)] })
      yield* manager.registerQueue(Model, provider.processor)
      const error = yield* Effect.flip(manager.submit(Model, "a"))
      assert.strictEqual(error._tag, "HttpFailure")
      assert.strictEqual((yield* manager.getQueueInfo(Model)).provider, undefined)
      assert.strictEqual(provider.seen.length, 1)
    }).pipe(Effect.provide(Manager)))
})

describe("the end of a refused request", () => {
  it.effect("a fault that lasts gives the processor's own error, its cause intact", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("ends-transient", { retry: { schedule: Schedule.recurs(1) } })
      const last = transient(undefined, "again")
      const cause = Cause.combine(Cause.fail(last), Cause.die("a finalizer broke too"))
      yield* manager.registerQueue(Model, scripted({ a: [transient(), Effect.failCause(cause)] }).processor)
      const exit = yield* Effect.exit(manager.submit(Model, "a", { id: "lasting" }))
      assert(Exit.isFailure(exit))
      assert.strictEqual(exit.cause.reasons.length, 2)
      assert.strictEqual(Cause.squash(exit.cause), last)
      const status = yield* manager.getStatus(Model, "lasting")
      assert(status.status === "failed")
      assert.strictEqual(Cause.squash(status.cause), last)
      assert.strictEqual(status.attempts, 2)
    }).pipe(Effect.provide(Manager)))

  it.effect("an overload that lasts gives ProviderUnavailable, with the provider's words, its hint and the failure", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("ends-overload", { retry: { schedule: Schedule.recurs(1) } })
      const last = overload(4000)
      yield* manager.registerQueue(Model, scripted({ a: [overload(), last] }).processor)
      const error = yield* Effect.flip(manager.submit(Model, "a", { id: "x" }))
      assert.deepInclude(error, {
        _tag: "ProviderUnavailable",
        modelId: "ends-overload",
        requestId: "x",
        attempts: 2,
        retryAfterMillis: 4000,
        reason: "No capacity.",
        cause: last,
        isRetryable: true,
        message: `The provider of model "ends-overload" is unavailable: request "x" was not completed in 2 attempts. `
          + "Try again in 4s. The provider said: No capacity."
      })
    }).pipe(Effect.provide(Manager)))

  it.effect("a rate limit that lasts gives RateLimitExceeded with the number of attempts", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("ends-rate", { retry: { schedule: Schedule.recurs(2) } })
      yield* manager.registerQueue(Model, scripted({ a: [rate(), rate(), rate()] }).processor)
      const error = yield* Effect.flip(manager.submit(Model, "a"))
      assert.deepInclude(error, { _tag: "RateLimitExceeded", attempts: 3, retryAfterMillis: undefined })
    }).pipe(Effect.provide(Manager)))

  it.effect("what is too large, not allowed, or not the provider's reaches the caller as it is, after one attempt", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("ends-own", { retry: { schedule: atOnce } })
      const errors = { large: tooLarge(1000), auth: auth(1000), own: own(1000) }
      const provider = scripted({ large: [errors.large], auth: [errors.auth], own: [errors.own] })
      yield* manager.registerQueue(Model, provider.processor)
      for (const params of ["large", "auth", "own"] as const) {
        const error = yield* Effect.flip(manager.submit(Model, params))
        assert.strictEqual(error, errors[params])
      }
      assert.deepStrictEqual(provider.seen, ["0 large", "0 auth", "0 own"])
      assert.strictEqual((yield* providerOf("ends-own")).state, "available")
    }).pipe(Effect.provide(Manager)))

  it.effect("the provider's word that another try is useless is believed", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("ends-no-retry", { retry: { schedule: atOnce } })
      const error = new HttpFailure({ status: 500, headers: { "x-should-retry": "false" }, message: "No." })
      const provider = scripted({ a: [error] })
      yield* manager.registerQueue(Model, provider.processor)
      assert.strictEqual(yield* Effect.flip(manager.submit(Model, "a")), error)
      assert.strictEqual(provider.seen.length, 1)
    }).pipe(Effect.provide(Manager)))

  it.effect("defects and interruptions of a processor are not retried", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("ends-defect", { retry: { schedule: atOnce } })
      const provider = scripted({ die: [Effect.die(new RangeError("a bug"))], interrupt: [Effect.interrupt] })
      yield* manager.registerQueue(Model, provider.processor)
      for (const params of ["die", "interrupt"]) {
        assert.strictEqual((yield* Effect.flip(manager.submit(Model, params)))._tag, "ProcessingError")
      }
      assert.deepStrictEqual(provider.seen, ["0 die", "0 interrupt"])
    }).pipe(Effect.provide(Manager)))

  it.effect("a provider's error that is thrown as a defect is understood, and when it lasts stays a defect", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("ends-thrown", { retry: { schedule: Schedule.recurs(1) } })
      const last = transient()
      const provider = scripted({
        a: [Effect.die(transient())],
        b: [Effect.die(transient()), Effect.die(last)],
        c: [Effect.die(rate()), Effect.die(rate())]
      })
      yield* manager.registerQueue(Model, provider.processor)
      assert.strictEqual((yield* manager.submit(Model, "a")).attempts, 2)
      const error = yield* Effect.flip(manager.submit(Model, "b"))
      assert(error._tag === "ProcessingError" && Cause.isCause(error.cause))
      assert.strictEqual(Cause.squash(error.cause), last)
      assert.strictEqual((yield* Effect.flip(manager.submit(Model, "c")))._tag, "RateLimitExceeded")
    }).pipe(Effect.provide(Manager)))
})

/** A limiter that takes a second to answer when an attempt has ended. */
const slowLimiter = Effect.map(RateLimiter.RateLimiter, (memory) =>
  Layer.succeed(RateLimiter.RateLimiter, {
    make: (modelId, limits) =>
      Effect.map(memory.make(modelId, limits), (limiter): RateLimiter.Limiter => ({
        ...limiter,
        complete: (reservation) => Effect.delay(limiter.complete(reservation), 1000),
        refuse: (...refusal) => Effect.delay(limiter.refuse(...refusal), 1000)
      }))
  }))

describe("the end of a request at any point of its retries", () => {
  type Act = "cancel" | "interrupt" | "timeout"
  // The attempt takes a second, the limiter a second, the wait ten.
  const moments = {
    "during the first attempt": 500,
    "while the limiter is told": 1500,
    between: 6000,
    "during the second attempt": 12_500
  }

  for (const act of ["cancel", "interrupt", "timeout"] as const satisfies ReadonlyArray<Act>) {
    for (const [name, at] of Object.entries(moments)) {
      it.effect(`${act} ${name}: it ends at once, is not attempted again, and leaves nothing behind`, () =>
        Effect.gen(function*() {
          const manager = yield* QueueManager.QueueManager
          const id = `ends-${act}-${at}`
          const Model = model(id, {
            rateLimiters: [RateLimiter.concurrent(1), RateLimiter.rpm(100)],
            retry: { schedule: Schedule.spaced(10_000) }
          })
          const attempt = Effect.delay(Effect.fail(transient()), 1000)
          const provider = scripted({ a: [attempt, attempt, attempt] })
          yield* manager.registerQueue(Model, provider.processor)
          const caller = yield* start(
            manager.submit(Model, "a", { id: "a", timeout: act === "timeout" ? 13_000 : undefined })
          )
          const deadline = act === "timeout"
          // A deadline before the next attempt would end the request before: here only the last moments remain.
          yield* TestClock.adjust(deadline ? Math.max(at, 13_000) : at)
          if (act === "cancel") assert.isTrue(yield* manager.cancelRequest(Model, "a"))
          if (act === "interrupt") yield* Fiber.interrupt(caller)
          const exit = caller.pollUnsafe()
          assert(exit !== undefined && Exit.isFailure(exit))
          if (act === "cancel") assert.strictEqual(tagOf(exit), "RequestCancelled")
          if (act === "timeout") assert.strictEqual(tagOf(exit), "QueueTimeout")
          if (act === "interrupt") assert.isTrue(Cause.hasInterruptsOnly(exit.cause))
          const attempts = provider.seen.length
          assert.strictEqual(attempts, at < 12_000 && !deadline ? 1 : 2)
          yield* TestClock.adjust("5 minutes")
          assert.strictEqual(provider.seen.length, attempts)
          assert.deepStrictEqual(yield* left(id), nothing)
          assert.strictEqual((yield* usageOf(id, "concurrent")).used, 0)
          const next = yield* start(manager.submit(Model, "next"))
          yield* TestClock.adjust(1000)
          assert.strictEqual((yield* Fiber.join(next)).result, "next")
        }).pipe(Effect.provide(Manager.pipe(Layer.provide(Layer.unwrap(slowLimiter))))))
    }
  }

  it.effect("a processing timeout is no refusal: it ends the request in its second attempt as in its first", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("ends-processing", { retry: { schedule: Schedule.spaced(5000) } })
      const provider = scripted({ a: [Effect.delay(Effect.fail(transient()), 900), Effect.never] })
      yield* manager.registerQueue(Model, provider.processor)
      const caller = yield* start(manager.submit(Model, "a", { processingTimeout: 1000 }))
      yield* TestClock.adjust(6899)
      assert.strictEqual(tagOf(caller.pollUnsafe()), "pending")
      yield* TestClock.adjust(1)
      const exit = caller.pollUnsafe()
      assert(exit !== undefined && Exit.isFailure(exit))
      assert.deepInclude(Cause.squash(exit.cause), {
        _tag: "QueueTimeout",
        limit: "processingTimeout",
        queueTimeMillis: 5000,
        processingTimeMillis: 1900
      })
      assert.deepStrictEqual(yield* left("ends-processing"), nothing)
    }).pipe(Effect.provide(Manager)))

  it.effect("a deadline while the limiter pauses tells where the time went", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("ends-paused", { rateLimiters: [RateLimiter.rpm(100)], retry: { schedule: atOnce } })
      const provider = scripted({
        a: [Effect.delay(Effect.fail(rate(2000)), 500)],
        b: [Effect.delay(Effect.fail(rate(9000)), 600)]
      })
      yield* manager.registerQueue(Model, provider.processor)
      const caller = yield* start(manager.submit(Model, "a", { timeout: 4000 }))
      yield* start(manager.submit(Model, "b"))
      yield* TestClock.adjust(4000)
      const exit = caller.pollUnsafe()
      assert(exit !== undefined && Exit.isFailure(exit))
      assert.deepInclude(Cause.squash(exit.cause), {
        _tag: "QueueTimeout",
        limit: "timeout",
        queueTimeMillis: 3500,
        processingTimeMillis: 500
      })
      yield* TestClock.adjust(9000)
      assert.deepStrictEqual(yield* left("ends-paused"), nothing)
    }).pipe(Effect.provide(Manager)))

  for (const [name, at] of Object.entries(moments)) {
    it.effect(`draining ${name} still makes the attempts that are left`, () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const id = `drains-${at}`
        const Model = model(id, { retry: { schedule: Schedule.spaced(10_000) } })
        const provider = scripted({
          a: [Effect.delay(Effect.fail(transient()), 1000), Effect.as(Effect.sleep(1000), "a")]
        })
        yield* manager.registerQueue(Model, provider.processor)
        const caller = yield* start(manager.submit(Model, "a"))
        yield* TestClock.adjust(at)
        const closing = yield* start(manager.shutdownAll({ policy: "drain", deadline: minute }))
        yield* TestClock.adjust(20_000)
        assert.strictEqual((yield* Fiber.join(caller)).attempts, 2)
        assert.isDefined(closing.pollUnsafe())
      }).pipe(Effect.provide(Manager.pipe(Layer.provide(Layer.unwrap(slowLimiter))))))

    it.effect(`a closing that finishes what runs, ${name}, makes no further attempt`, () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const id = `finishes-${at}`
        const Model = model(id, { retry: { schedule: Schedule.spaced(10_000) } })
        const attempt = Effect.delay(Effect.fail(transient()), 1000)
        const provider = scripted({ a: [attempt, attempt, attempt] })
        yield* manager.registerQueue(Model, provider.processor)
        const caller = yield* start(manager.submit(Model, "a"))
        yield* TestClock.adjust(at)
        const attempts = provider.seen.length
        const closing = yield* start(manager.shutdownAll({ policy: "finishRunning", deadline: minute }))
        yield* TestClock.adjust(5000)
        assert.strictEqual(tagOf(caller.pollUnsafe()), at === moments.between ? "QueueShutdown" : "HttpFailure")
        assert.isDefined(closing.pollUnsafe())
        yield* TestClock.adjust(minute)
        assert.strictEqual(provider.seen.length, attempts)
      }).pipe(Effect.provide(Manager.pipe(Layer.provide(Layer.unwrap(slowLimiter))))))

    it.effect(`an interrupting closing ${name} tells QueueShutdown at once`, () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const id = `interrupts-${at}`
        const Model = model(id, { retry: { schedule: Schedule.spaced(10_000) } })
        const attempt = Effect.delay(Effect.fail(transient()), 1000)
        const provider = scripted({ a: [attempt, attempt, attempt] })
        yield* manager.registerQueue(Model, provider.processor)
        const caller = yield* start(manager.submit(Model, "a"))
        yield* TestClock.adjust(at)
        const attempts = provider.seen.length
        const closing = yield* start(manager.shutdownAll({ policy: "interrupt", deadline: minute }))
        assert.strictEqual(tagOf(caller.pollUnsafe()), "QueueShutdown")
        yield* TestClock.adjust(5000)
        assert.isDefined(closing.pollUnsafe())
        yield* TestClock.adjust(minute)
        assert.strictEqual(provider.seen.length, attempts)
      }).pipe(Effect.provide(Manager.pipe(Layer.provide(Layer.unwrap(slowLimiter))))))
  }

  it.effect("a drain that the retries outlast tells QueueShutdown at its deadline", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("drain-outlasted", { rateLimiters: [RateLimiter.rpm(10)] })
      yield* manager.registerQueue(Model, scripted({ a: [rate(hour)] }).processor)
      const caller = yield* start(manager.submit(Model, "a"))
      yield* TestClock.adjust(1000)
      const closing = yield* start(manager.shutdownAll({ policy: "drain", deadline: minute }))
      yield* TestClock.adjust(minute - 1)
      assert.isUndefined(closing.pollUnsafe())
      yield* TestClock.adjust(1)
      assert.isDefined(closing.pollUnsafe())
      assert.strictEqual(tagOf(caller.pollUnsafe()), "QueueShutdown")
    }).pipe(Effect.provide(Manager)))
})

describe("requests inside requests", () => {
  for (
    const [name, refusal] of Object.entries({ rate: rate(3000), overload: overload(), transient: transient(2000) })
  ) {
    it.effect(`a nested request that is refused (${name}) runs again on its ancestor's permit`, () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const id = `nested-${name}`
        const Model = model(id, {
          rateLimiters: [RateLimiter.concurrent(1), RateLimiter.rpm(100)],
          circuitBreaker: { failures: 1 }
        })
        const inner = manager.submit(Model, "inner").pipe(Effect.map(({ result }) => `outer ${result}`), Effect.orDie)
        const provider = scripted({ outer: [Effect.andThen(Effect.sleep(100), inner)], inner: [Effect.fail(refusal)] })
        yield* manager.registerQueue(Model, provider.processor)
        const caller = yield* start(manager.submit(Model, "outer"))
        yield* TestClock.adjust(50)
        const behind = yield* start(manager.submit(Model, "behind"))
        yield* TestClock.adjust(minute)
        assert.strictEqual((yield* Fiber.join(caller)).result, "outer inner")
        assert.strictEqual((yield* Fiber.join(behind)).result, "behind")
        assert.deepStrictEqual(yield* left(id), nothing)
        assert.strictEqual((yield* usageOf(id, "concurrent")).used, 0)
      }).pipe(Effect.provide(Manager)))
  }

  it.effect("outer and inner are refused again and again, five deep, on one permit, and all end", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("nested-deep", {
        rateLimiters: [RateLimiter.concurrent(1), RateLimiter.rpm(1000)],
        retry: { schedule: Schedule.recurs(3), budget: 100 }
      })
      const counts = new Map<string, number>()
      yield* manager.registerQueue(Model, ({ params }) =>
        Effect.gen(function*() {
          const depth = Number(params)
          const count = (counts.get(params) ?? 0) + 1
          counts.set(params, count)
          const inner = depth === 5 ? "" : (yield* manager.submit(Model, `${depth + 1}`).pipe(Effect.orDie)).result
          if (count === 1) return yield* rate(100)
          if (count === 3) return yield* overload(100)
          return `${params}${inner}`
        }))
      const caller = yield* start(manager.submit(Model, "0"))
      yield* TestClock.adjust("1 hour")
      assert.strictEqual((yield* Fiber.join(caller)).result, "012345")
      assert.deepStrictEqual(yield* left("nested-deep"), nothing)
    }).pipe(Effect.provide(Manager)))

  it.effect("a request that waits for its next attempt is lent a permit by one that begins to wait for it", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("nested-adopted", {
        rateLimiters: [RateLimiter.concurrent(1)],
        retry: { schedule: Schedule.spaced(5000) }
      })
      const provider = scripted({
        a: [transient()],
        waits: [Effect.map(Effect.orDie(manager.awaitCompletion(Model, "a")), ({ result }) => `waited for ${result}`)]
      })
      yield* manager.registerQueue(Model, provider.processor)
      yield* start(manager.submit(Model, "a", { id: "a" }))
      yield* TestClock.adjust(100)
      const caller = yield* start(manager.submit(Model, "waits"))
      yield* TestClock.adjust(5000)
      assert.strictEqual((yield* Fiber.join(caller)).result, "waited for a")
      assert.deepStrictEqual(yield* left("nested-adopted"), nothing)
    }).pipe(Effect.provide(Manager)))

  it.effect("a quota that a nested request meets fails it, and its ancestor decides what to make of it", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("nested-quota", { rateLimiters: [RateLimiter.concurrent(1)] })
      const inner = manager.submit(Model, "inner").pipe(
        Effect.as("unexpected"),
        Effect.catchTag("QuotaExhausted", () => Effect.succeed("made do")),
        Effect.orDie
      )
      yield* manager.registerQueue(Model, scripted({ outer: [inner], inner: [quota()] }).processor)
      const caller = yield* start(manager.submit(Model, "outer"))
      yield* TestClock.adjust(1000)
      assert.strictEqual((yield* Fiber.join(caller)).result, "made do")
      assert.deepStrictEqual(yield* left("nested-quota"), nothing)
    }).pipe(Effect.provide(Manager)))
})

describe("what is seen of retries", () => {
  it.effect("status, events and result tell each attempt with its waits", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("seen", { retry: { schedule: Schedule.spaced(4000) } })
      const provider = scripted({
        a: [
          Effect.delay(Effect.fail(rate(1000, "on tokens per min (TPM)")), 500),
          Effect.delay(Effect.fail(overload(8000)), 300),
          Effect.as(Effect.sleep(200), "a")
        ]
      })
      yield* manager.registerQueue(Model, provider.processor)
      const events: Array<unknown> = []
      const summary = (response: QueueResponse.QueueResponse<unknown, unknown>) => [
        response.status,
        response.attempts,
        response.refusals.length,
        Duration.toMillis(response.queueTime),
        Duration.toMillis(response.processingTime)
      ]
      yield* start(Stream.runForEach(manager.events, (event) => Effect.sync(() => events.push(summary(event)))))
      const pending = yield* manager.submitRequest(
        QueueRequest.make(Model, { id: "a", params: "a", waitForCompletion: false })
      )
      const status = Effect.map(manager.getStatus(Model, "a"), summary)
      yield* TestClock.adjust(200)
      assert.deepStrictEqual(yield* status, ["processing", 1, 0, 0, 200])
      yield* TestClock.adjust(1300)
      assert.deepStrictEqual(yield* status, ["pending", 1, 1, 1000, 500])
      yield* TestClock.adjust(3100)
      assert.deepStrictEqual(yield* status, ["processing", 2, 1, 4000, 600])
      const waiter = yield* start(manager.awaitCompletion(pending))
      yield* TestClock.adjust(1200)
      assert.deepStrictEqual(yield* status, ["pending", 2, 2, 5000, 800])
      yield* TestClock.adjust(7100)
      assert.deepStrictEqual(yield* status, ["processing", 3, 2, 12_000, 900])
      yield* TestClock.adjust(100)
      const response = yield* Fiber.join(waiter)
      assert.deepStrictEqual(summary(response), ["completed", 3, 2, 12_000, 1000])
      assert.deepStrictEqual(response.refusals, [
        {
          kind: "rate",
          limitTypes: ["tpm"],
          message: "Rate limit reached. on tokens per min (TPM)",
          queueTime: Duration.millis(0),
          processingTime: Duration.millis(500),
          retryAfter: Duration.millis(1000)
        },
        {
          kind: "overload",
          limitTypes: [],
          message: "No capacity.",
          queueTime: Duration.millis(4000),
          processingTime: Duration.millis(300),
          retryAfter: Duration.millis(8000)
        }
      ])
      yield* TestClock.adjust(10_000)
      assert.deepStrictEqual(yield* status, ["completed", 3, 2, 12_000, 1000])
      assert.deepStrictEqual(events, [
        ["pending", 0, 0, 0, 0],
        ["processing", 1, 0, 0, 0],
        ["pending", 1, 1, 0, 500],
        ["processing", 2, 1, 4000, 500],
        ["pending", 2, 2, 4000, 800],
        ["processing", 3, 2, 12_000, 800],
        ["completed", 3, 2, 12_000, 1000]
      ])
      assert.deepInclude((yield* manager.getQueueInfo(Model)).provider?.refusals, {
        rate: 1,
        overload: 1,
        transient: 0
      })
    }).pipe(Effect.provide(Manager)))

  it.effect("what was told once does not change with the attempts after it", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("seen-kept", { retry: { schedule: Schedule.spaced(1000) } })
      yield* manager.registerQueue(Model, scripted({ a: [transient(), transient()] }).processor)
      yield* start(manager.submit(Model, "a", { id: "a" }))
      yield* TestClock.adjust(500)
      const before = yield* manager.getStatus(Model, "a")
      yield* TestClock.adjust(1000)
      assert.strictEqual(before.refusals.length, 1)
      assert.strictEqual((yield* manager.getStatus(Model, "a")).refusals.length, 2)
    }).pipe(Effect.provide(Manager)))

  it.effect("the status keeps the latest sixteen refusals of a request that is refused for ever", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("seen-bounded", { retry: { schedule: Schedule.spaced(1000) } })
      const provider = scripted({ a: Array.from({ length: 40 }, (_, index) => rate(undefined, `no. ${index}`)) })
      yield* manager.registerQueue(Model, provider.processor)
      const caller = yield* start(manager.submit(Model, "a"))
      yield* TestClock.adjust(minute)
      const { attempts, refusals } = yield* Fiber.join(caller)
      assert.strictEqual(attempts, 41)
      assert.strictEqual(refusals.length, 16)
      assert.isTrue(refusals[0]?.message.endsWith("no. 24"))
      assert.isTrue(refusals[15]?.message.endsWith("no. 39"))
    }).pipe(Effect.provide(Manager)))

  it.effect("fire-and-forget: its submitter goes on at once, and who awaits it hears of the last attempt only", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("seen-forget", { retry: { schedule: Schedule.spaced(1000) } })
      const last = transient(undefined, "last")
      yield* manager.registerQueue(
        Model,
        scripted({
          good: [transient(), overload()],
          bad: [transient(), Effect.fail(last)],
          hopeless: [transient(), auth()]
        }).processor
      )
      const later = (params: string) =>
        manager.submitRequest(QueueRequest.make(Model, { id: params, params, waitForCompletion: false }))
      const good = yield* later("good")
      yield* later("hopeless")
      assert.strictEqual(good.status, "pending")
      const early = yield* start(manager.awaitCompletion(good))
      const hopeless = yield* start(manager.awaitCompletion(Model, "hopeless"))
      yield* TestClock.adjust(500)
      const between = yield* start(manager.awaitCompletion(Model, "good"))
      assert.strictEqual(tagOf(early.pollUnsafe()), "pending")
      assert.strictEqual(tagOf(hopeless.pollUnsafe()), "pending")
      yield* TestClock.adjust(5000)
      for (const waiter of [early, between]) assert.strictEqual((yield* Fiber.join(waiter)).attempts, 3)
      assert.deepInclude(yield* Effect.flip(Fiber.join(hopeless)), { status: 401 })
      assert.deepStrictEqual(yield* left("seen-forget"), nothing)
    }).pipe(Effect.provide(Manager)))

  it.effect("each attempt is handed the request as it was submitted, whatever the one before did to it", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("seen-same", { retry: { schedule: Schedule.spaced(1000) } })
      const seen: Array<readonly [string, string]> = []
      yield* manager.registerQueue(Model, (request) => {
        seen.push([request.id, request.params])
        return seen.length < 3 ? Effect.fail(transient()) : Effect.succeed("ok")
      })
      const caller = yield* start(manager.submit(Model, "a", { id: "a" }))
      yield* TestClock.adjust(5000)
      yield* Fiber.join(caller)
      assert.deepStrictEqual(seen, [["a", "a"], ["a", "a"], ["a", "a"]])
    }).pipe(Effect.provide(Manager)))
})

describe("the capacity across retries", () => {
  it.effect("a refused request takes its place again, even in a queue that is full, and nobody is lost", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      for (const strategy of ["suspend", "reject", "dropOldest"] as const) {
        const id = `capacity-${strategy}`
        const Model = model(id, {
          rateLimiters: [RateLimiter.concurrent(1)],
          capacity: 1,
          strategy,
          retry: { schedule: Schedule.spaced(1000) }
        })
        const provider = scripted({ a: [Effect.delay(Effect.fail(transient()), 100)] })
        yield* manager.registerQueue(Model, provider.processor)
        const a = yield* start(manager.submit(Model, "a"))
        yield* TestClock.adjust(1)
        const b = yield* start(manager.submit(Model, "b"))
        yield* TestClock.adjust(5000)
        assert.strictEqual((yield* Fiber.join(a)).attempts, 2)
        assert.strictEqual((yield* Fiber.join(b)).attempts, 1)
        assert.deepStrictEqual(yield* left(id), nothing)
      }
    }).pipe(Effect.provide(Manager)))

  it.effect("a submitter that waits for room gets it only when the refused request has left", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("capacity-counts", { capacity: 1, retry: { schedule: Schedule.spaced(1000) } })
      const provider = scripted({ a: [transient()] })
      yield* manager.registerQueue(Model, provider.processor)
      yield* start(manager.submit(Model, "a"))
      yield* TestClock.adjust(1)
      yield* start(manager.submit(Model, "b"))
      yield* TestClock.adjust(500)
      assert.deepStrictEqual(yield* left("capacity-counts"), { depth: 1, suspended: 1, running: 0 })
      yield* TestClock.adjust(500)
      assert.deepStrictEqual(provider.seen, ["0 a", "1 a", "1 b"])
    }).pipe(Effect.provide(Manager)))
})

describe("a broken limiter", () => {
  it.effect("keeps no request from its next attempt, nor from its end", () =>
    Effect.gen(function*() {
      const memory = yield* RateLimiter.RateLimiter
      const broken = Layer.succeed(RateLimiter.RateLimiter, {
        make: (modelId, limits) =>
          Effect.map(memory.make(modelId, limits), (limiter): RateLimiter.Limiter => ({
            ...limiter,
            complete: () => Effect.die("no"),
            refuse: () => Effect.interrupt
          }))
      })
      yield* Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const Model = model("broken-limiter", {
          rateLimiters: [RateLimiter.concurrent(1)],
          retry: { schedule: Schedule.recurs(2) }
        })
        yield* manager.registerQueue(
          Model,
          scripted({ a: [rate(), transient()], b: [rate(), rate(), rate()] }).processor
        )
        const a = yield* start(manager.submit(Model, "a"))
        const b = yield* start(Effect.exit(manager.submit(Model, "b")))
        yield* TestClock.adjust(minute)
        assert.strictEqual((yield* Fiber.join(a)).attempts, 3)
        assert.strictEqual(tagOf(yield* Fiber.join(b)), "RateLimitExceeded")
        assert.deepStrictEqual(yield* left("broken-limiter"), nothing)
      }).pipe(Effect.provide([Manager.pipe(Layer.provide(broken)), Logger.layer([])]))
    }))

  it.effect("a processor at rest in the middle of an attempt is not disturbed by the refusals of others", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("undisturbed", { rateLimiters: [RateLimiter.rpm(100)] })
      const gate = yield* Latch.make()
      const provider = scripted({ a: [Effect.as(gate.await, "a")], b: [rate(1000)], c: [quota()] })
      yield* manager.registerQueue(Model, provider.processor)
      const a = yield* start(manager.submit(Model, "a"))
      yield* start(manager.submit(Model, "b"))
      yield* TestClock.adjust(2000)
      yield* Effect.exit(manager.submit(Model, "c"))
      yield* gate.open
      assert.deepInclude(yield* Fiber.join(a), { result: "a", attempts: 1 })
    }).pipe(Effect.provide(Manager)))

  it.effect("an untyped profile that lacks a part fails the registration, or understands no failure; nothing hangs", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const { limitNames: _, retryAfter: __, ...part } = profile
      const Model = model("partial-profile", { provider: part as typeof profile })
      yield* Effect.gen(function*() {
        yield* manager.registerQueue(Model, scripted({ a: [rate(1000)] }).processor)
        const caller = yield* start(Effect.exit(manager.submit(Model, "a")))
        yield* TestClock.adjust(minute)
        assert.isDefined(caller.pollUnsafe())
      }).pipe(Effect.catchTag("InvalidConfiguration", () => Effect.void))
    }).pipe(Effect.provide(Manager)))
})

describe("a profile that breaks after its registration", () => {
  it.effect("says nothing about a failure, which is told in the log: the failure ends its request, and its permit is free", () => {
    const logged: Array<string> = []
    const recorder = Logger.make(({ logLevel, message }) => {
      if (logLevel === "Error") logged.push(String(message))
    })
    return Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const errors = [...profile.errors]
      const Model = model("breaks-later", {
        provider: { ...profile, errors },
        rateLimiters: [RateLimiter.concurrent(1)]
      })
      yield* manager.registerQueue(Model, scripted({ a: [overload()] }).processor)
      errors.unshift({ codes: [429 as never], kind: "rate" })
      const a = yield* start(Effect.exit(manager.submit(Model, "a")))
      const b = yield* start(manager.submit(Model, "b"))
      yield* TestClock.adjust(minute)
      assert.strictEqual(tagOf(yield* Fiber.join(a)), "HttpFailure")
      assert.deepInclude(yield* Fiber.join(b), { result: "b", attempts: 1 })
      assert.deepStrictEqual(yield* left("breaks-later"), nothing)
      assert.strictEqual(logged.length, 1)
      assert.include(logged[0], "breaks-later")
    }).pipe(Effect.provide([Manager, Logger.layer([recorder])]))
  })
})

describe("refusals among other requests", () => {
  it.effect("a request that a running one has submitted and awaits, refused for overload, does not wait for that one to end", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("child-overloaded")
      const child = Effect.gen(function*() {
        const pending = yield* manager.submitRequest(
          QueueRequest.make(Model, { params: "child", waitForCompletion: false })
        )
        yield* Effect.sleep(10)
        return `parent of ${(yield* manager.awaitCompletion(pending)).result}`
      })
      const provider = scripted({
        parent: [Effect.orDie(child)],
        child: [Effect.delay(Effect.fail(overload()), 100)]
      })
      yield* manager.registerQueue(Model, provider.processor)
      const caller = yield* start(manager.submit(Model, "parent"))
      yield* TestClock.adjust("1 hour")
      assert.isDefined(
        caller.pollUnsafe(),
        "hangs: fewer may run at one time, and the one that runs waits for the other"
      )
      assert.strictEqual((yield* Fiber.join(caller)).result, "parent of child")
    }).pipe(Effect.provide(Manager)))

  it.effect("the same with permits: who is awaited by all that run runs again on one of theirs", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("child-refused", {
        rateLimiters: [RateLimiter.concurrent(2)],
        retry: { schedule: Schedule.spaced(1000) }
      })
      const wait = Effect.as(Effect.orDie(manager.awaitCompletion(Model, "child")), "waited")
      const parent = Effect.as(Effect.orDie(manager.awaitCompletion(Model, "first")), "waited")
      const provider = scripted({
        child: [Effect.delay(Effect.fail(transient()), 100)],
        first: [wait],
        second: [parent]
      })
      yield* manager.registerQueue(Model, provider.processor)
      const callers = yield* start(
        Effect.forEach(["child", "first", "second"], (id) => manager.submit(Model, id, { id }), {
          concurrency: "unbounded"
        })
      )
      yield* TestClock.adjust("1 hour")
      assert.isDefined(callers.pollUnsafe(), "hangs: both permits wait for the one that has none")
      yield* Fiber.join(callers)
    }).pipe(Effect.provide(Manager)))

  it.effect("what was in flight when the quota ran out, and is refused after it, does not wait for the next try", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      for (const error of [rate(100), overload(), transient()]) {
        const Model = model(`quota-late-${error.status}`)
        const provider = scripted({ late: [Effect.delay(Effect.fail(error), 1000)], a: [quota()] })
        yield* manager.registerQueue(Model, provider.processor)
        const late = yield* start(Effect.exit(manager.submit(Model, "late")))
        yield* TestClock.adjust(10)
        yield* Effect.exit(manager.submit(Model, "a"))
        yield* TestClock.adjust(2000)
        const exit = late.pollUnsafe()
        assert(exit !== undefined, `${error.status}: waits for the end of the cooldown`)
        assert(Exit.isSuccess(exit) && Exit.isFailure(exit.value))
      }
    }).pipe(Effect.provide(Manager)))

  it.effect("the usage that is told is that of the attempt that succeeded, not of one that failed", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("usage-again", {
        rateLimiters: [RateLimiter.tpm(1000)],
        retry: { schedule: Schedule.spaced(1000) },
        usage: () => ({ inputTokens: 100, outputTokens: 50 })
      })
      const report = manager.updateTokenUsage(Model, "a", { inputTokens: 10, outputTokens: 0 })
      const provider = scripted({ a: [Effect.andThen(Effect.orDie(report), Effect.fail(transient()))] })
      yield* manager.registerQueue(Model, provider.processor)
      const caller = yield* start(
        manager.submit(Model, "a", { id: "a", estimatedInputTokens: 10, estimatedOutputTokens: 10 })
      )
      yield* TestClock.adjust(2000)
      assert.deepInclude(yield* Fiber.join(caller), { attempts: 2, inputTokensUsed: 100, outputTokensUsed: 50 })
    }).pipe(Effect.provide(Manager)))

  it.effect("a retry schedule that breaks ends its request, and holds nobody up", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const broken = {
        "dies at a step": Schedule.fromStep(Effect.succeed(() => Effect.die("broken"))),
        "throws at a step": Schedule.fromStep<RateLimiter.Refusal, number, never, never, never, never>(
          Effect.succeed(() => {
            throw new Error("broken")
          })
        ),
        "dies at its start": Schedule.fromStep<RateLimiter.Refusal, number, never, never, never, never>(
          Effect.die("broken")
        )
      }
      for (const [name, schedule] of Object.entries(broken)) {
        const Model = model(name, { retry: { schedule }, rateLimiters: [RateLimiter.concurrent(1)] })
        yield* manager.registerQueue(Model, scripted({ a: [transient()] }).processor)
        const caller = yield* start(Effect.exit(manager.submit(Model, "a")))
        yield* TestClock.adjust(minute)
        assert.isDefined(caller.pollUnsafe(), name)
        assert.deepStrictEqual(yield* left(name), nothing)
        assert.strictEqual((yield* manager.submit(Model, "b")).result, "b")
      }
    }).pipe(Effect.provide([Manager, Logger.layer([])])))

  it.effect("a request that is cancelled while its retry schedule takes time is not attempted again", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const step = Effect.delay(Effect.succeed<[number, Duration.Duration]>([0, Duration.zero]), 1000)
      const Model = model("schedule-slow", { retry: { schedule: Schedule.fromStep(Effect.succeed(() => step)) } })
      const provider = scripted({ a: [transient()], b: [transient()] })
      yield* manager.registerQueue(Model, provider.processor)
      const cancelled = yield* start(manager.submit(Model, "a", { id: "a" }))
      const patient = yield* start(manager.submit(Model, "b"))
      yield* TestClock.adjust(500)
      assert.isTrue(yield* manager.cancelRequest(Model, "a"))
      assert.strictEqual(tagOf(cancelled.pollUnsafe()), "RequestCancelled")
      yield* TestClock.adjust(5000)
      assert.strictEqual((yield* Fiber.join(patient)).attempts, 2)
      assert.deepStrictEqual(provider.seen, ["0 a", "0 b", "1 b"])
      assert.deepStrictEqual(yield* left("schedule-slow"), nothing)
    }).pipe(Effect.provide(Manager)))

  it.effect("a rate limit of the provider's that the model does not have holds the others back as well", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      for (const rateLimiters of ["unlimited", [RateLimiter.concurrent(5)]] as const) {
        const Model = model(`no-window-${rateLimiters.length}`, { rateLimiters })
        const provider = scripted({ a: [rate(10_000)] })
        yield* manager.registerQueue(Model, provider.processor)
        yield* start(manager.submit(Model, "a"))
        yield* TestClock.adjust(1000)
        yield* start(manager.submit(Model, "b"))
        yield* TestClock.adjust(1000)
        assert.strictEqual(provider.seen.length, 1, "sent while the provider asks to wait")
        yield* TestClock.adjust(10_000)
      }
    }).pipe(Effect.provide(Manager)))

  it.effect("the headers of a failure are read like those of a success", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("failure-headers", {
        provider: { ...profile, headers: ProviderProfile.generic.headers },
        rateLimiters: [RateLimiter.rpm(100)],
        retry: { schedule: Schedule.recurs(0) }
      })
      const error = new HttpFailure({
        status: 500,
        headers: { "x-ratelimit-limit-requests": "100", "x-ratelimit-remaining-requests": "40" },
        message: "Broken."
      })
      yield* manager.registerQueue(Model, scripted({ a: [error] }).processor)
      yield* Effect.exit(manager.submit(Model, "a"))
      yield* TestClock.adjust(10)
      assert.strictEqual((yield* manager.getQueueInfo(Model)).rateLimiters[0]?.available, 40)
    }).pipe(Effect.provide(Manager)))

  it.effect("a refused request keeps its place before those submitted in the same millisecond", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("same-place", { rateLimiters: [RateLimiter.concurrent(1), RateLimiter.rpm(100)] })
      const provider = scripted({ a: [rate(5000)] })
      yield* manager.registerQueue(Model, provider.processor)
      for (const params of ["a", "b", "c"]) yield* start(manager.submit(Model, params))
      yield* TestClock.adjust(6000)
      assert.deepStrictEqual(provider.seen, ["0 a", "5 a", "5 b", "5 c"])
    }).pipe(Effect.provide(Manager)))

  it.effect("a request whose turn the limiter was asked for is not sent when the breaker opens meanwhile", () =>
    Effect.gen(function*() {
      const memory = yield* RateLimiter.RateLimiter
      const slow = Layer.succeed(RateLimiter.RateLimiter, {
        make: (modelId, limits) =>
          Effect.map(memory.make(modelId, limits), (limiter): RateLimiter.Limiter => ({
            ...limiter,
            admit: (cost, permit) => Effect.delay(limiter.admit(cost, permit), 100)
          }))
      })
      yield* Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const Model = model("slow-admission", { circuitBreaker: { failures: 1, cooldown: "10 seconds" } })
        const provider = scripted({ a: [Effect.delay(Effect.fail(transient()), 50)] })
        yield* manager.registerQueue(Model, provider.processor)
        yield* start(Effect.exit(manager.submit(Model, "a")))
        yield* start(Effect.exit(manager.submit(Model, "b")))
        yield* TestClock.adjust(5000)
        assert.deepStrictEqual(provider.seen, ["0.1 a"])
        yield* TestClock.adjust(20_000)
        assert.strictEqual(provider.seen.length, 3)
      }).pipe(Effect.provide(Manager.pipe(Layer.provide(slow))))
    }))
})
