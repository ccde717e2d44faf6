import { assert, describe, it } from "@effect/vitest"
import { Cause, Clock, Duration, Effect, Exit, Fiber, Schedule, Stream } from "effect"
import { ModelConfig, QueueManager, QueueRequest, RateLimiter } from "effect-llm-queue"
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
  transient
} from "./provider.ts"

const minute = 60_000
const hour = 3_600_000

/** Another attempt at once, as often as need be. */
const atOnce = Schedule.forever

describe("an exhausted quota", () => {
  it.effect("fails all that wait at once, suspended submitters included, and lets what is in flight finish", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("quota-all", {
        rateLimiters: [RateLimiter.concurrent(2)],
        capacity: 2,
        circuitBreaker: { quotaCooldown: "1 minute" }
      })
      const provider = scripted({
        a: [Effect.delay(Effect.fail(quota()), 1000)],
        b: [Effect.as(Effect.sleep(5000), "b")]
      })
      yield* manager.registerQueue(Model, provider.processor)
      const exits = new Map<string, unknown>()
      for (const params of ["a", "b", "c", "d", "suspended"]) {
        yield* start(Effect.map(Effect.exit(manager.submit(Model, params)), (exit) => exits.set(params, tagOf(exit))))
        yield* TestClock.adjust(1)
      }
      const accepting = yield* start(
        Effect.exit(manager.submitRequest(QueueRequest.make(Model, { params: "later", waitForCompletion: false })))
      )
      assert.deepStrictEqual(yield* left("quota-all"), { depth: 2, suspended: 2, running: 2 })
      yield* TestClock.adjust(1000)
      assert.deepStrictEqual(Object.fromEntries(exits), {
        a: "QuotaExhausted",
        c: "QuotaExhausted",
        d: "QuotaExhausted",
        suspended: "QuotaExhausted"
      })
      assert.isDefined(accepting.pollUnsafe())
      assert.deepStrictEqual(yield* left("quota-all"), { depth: 0, suspended: 0, running: 1 })
      yield* TestClock.adjust(5000)
      assert.strictEqual(exits.get("b"), "success")
      assert.deepStrictEqual(yield* left("quota-all"), nothing)
    }).pipe(Effect.provide(Manager)))

  it.effect("is not attempted again, and says the provider's words and when the queue tries again", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("quota-error", { retry: { schedule: atOnce } })
      const provider = scripted({ a: [quota()] })
      yield* manager.registerQueue(Model, provider.processor)
      const error = yield* Effect.flip(manager.submit(Model, "a", { id: "x" }))
      assert.deepInclude(error, {
        _tag: "QuotaExhausted",
        modelId: "quota-error",
        requestId: "x",
        reason: "No credit left.",
        retryInMillis: 300_000,
        isRetryable: false,
        message: `The quota of the provider of model "quota-error" is exhausted: request "x" was not completed. `
          + `Check the account's credit and spending limits; the queue tries again in 5m. `
          + `The provider said: No credit left.`
      })
      yield* TestClock.adjust(100_000)
      const next = yield* Effect.flip(manager.submit(Model, "b"))
      assert.deepInclude(next, { _tag: "QuotaExhausted", retryInMillis: 200_000 })
      const accepted = yield* Effect.flip(
        manager.submitRequest(QueueRequest.make(Model, { params: "c", waitForCompletion: false }))
      )
      assert.strictEqual(accepted._tag, "QuotaExhausted")
      assert.strictEqual(provider.seen.length, 1)
    }).pipe(Effect.provide(Manager)))

  it.effect("after the cooldown one request is sent to try; its success opens the queue", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("quota-probe", { circuitBreaker: { quotaCooldown: "1 minute" } })
      const provider = scripted({
        a: [quota()],
        probe: [Effect.as(Effect.sleep(2000), "probe")]
      })
      yield* manager.registerQueue(Model, provider.processor)
      yield* Effect.flip(manager.submit(Model, "a"))
      assert.deepStrictEqual(yield* providerOf("quota-probe"), {
        state: "quotaExhausted",
        retryIn: minute,
        concurrency: undefined
      })
      yield* TestClock.adjust(minute - 1)
      assert.strictEqual((yield* Effect.flip(manager.submit(Model, "early")))._tag, "QuotaExhausted")
      yield* TestClock.adjust(1)
      const probe = yield* start(manager.submit(Model, "probe"))
      yield* TestClock.adjust(1000)
      assert.strictEqual((yield* providerOf("quota-probe")).state, "probing")
      assert.strictEqual((yield* Effect.flip(manager.submit(Model, "meanwhile")))._tag, "QuotaExhausted")
      yield* TestClock.adjust(1000)
      yield* Fiber.join(probe)
      assert.strictEqual((yield* providerOf("quota-probe")).state, "available")
      assert.strictEqual((yield* manager.submit(Model, "after")).result, "after")
      assert.deepStrictEqual(provider.seen, ["0 a", "60 probe", "62 after"])
    }).pipe(Effect.provide(Manager)))

  it.effect("of several submitted at the end of the cooldown one tries, and its failure fails the others", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("quota-probe-2", { circuitBreaker: { quotaCooldown: "1 minute" } })
      const provider = scripted({ a: [quota()], b: [Effect.delay(Effect.fail(quota()), 1000)] })
      yield* manager.registerQueue(Model, provider.processor)
      yield* Effect.flip(manager.submit(Model, "a"))
      yield* TestClock.adjust(minute)
      const callers = yield* start(
        Effect.forEach(["b", "c", "d"], (params) => Effect.exit(manager.submit(Model, params)), {
          concurrency: "unbounded"
        })
      )
      yield* TestClock.adjust(1000)
      assert.deepStrictEqual((yield* Fiber.join(callers)).map(tagOf), [
        "QuotaExhausted",
        "QuotaExhausted",
        "QuotaExhausted"
      ])
      assert.deepStrictEqual(provider.seen, ["0 a", "60 b"])
      assert.strictEqual((yield* providerOf("quota-probe-2")).retryIn, minute)
      yield* TestClock.adjust(minute - 1)
      assert.strictEqual((yield* Effect.flip(manager.submit(Model, "e")))._tag, "QuotaExhausted")
      yield* TestClock.adjust(1)
      assert.strictEqual((yield* manager.submit(Model, "f")).result, "f")
    }).pipe(Effect.provide(Manager)))

  it.effect("is told in events, to each request by its own", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("quota-events", { rateLimiters: [RateLimiter.concurrent(1)] })
      yield* manager.registerQueue(Model, scripted({ a: [Effect.delay(Effect.fail(quota()), 10)] }).processor)
      const events: Array<string> = []
      yield* start(Stream.runForEach(manager.events, (event) =>
        Effect.sync(() => {
          if (event.status === "failed") events.push(`${event.requestId} ${tagOf(Exit.failCause(event.cause))}`)
        })))
      for (const id of ["a", "b"]) yield* start(Effect.exit(manager.submit(Model, id, { id })))
      yield* TestClock.adjust(10)
      assert.sameMembers(events, ["a QuotaExhausted", "b QuotaExhausted"])
      assert.strictEqual((yield* manager.getQueueInfo(Model)).failed, 2)
      assert.strictEqual((yield* manager.getQueueInfo(Model)).provider?.refusals.quota, 1)
    }).pipe(Effect.provide(Manager)))

  it.effect("a request between two attempts fails with the others", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("quota-delayed", { retry: { schedule: Schedule.spaced(minute) } })
      yield* manager.registerQueue(Model, scripted({ a: [transient()], b: [quota()] }).processor)
      const waiting = yield* start(manager.submit(Model, "a"))
      yield* TestClock.adjust(1000)
      yield* Effect.flip(manager.submit(Model, "b"))
      yield* TestClock.adjust(0)
      assert.strictEqual(tagOf(waiting.pollUnsafe()), "QuotaExhausted")
      assert.deepStrictEqual(yield* left("quota-delayed"), nothing)
    }).pipe(Effect.provide(Manager)))

  it.effect("a quota that runs out while the provider asks for an hour leaves that hour to it", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("quota-hour", { retry: { schedule: Schedule.recurs(0) } })
      const provider = scripted({ a: [Effect.fail(overload(3_600_000))], b: [Effect.delay(Effect.fail(quota()), 100)] })
      yield* manager.registerQueue(Model, provider.processor)
      const late = yield* start(Effect.exit(manager.submit(Model, "b")))
      yield* TestClock.adjust(1)
      yield* Effect.exit(manager.submit(Model, "a"))
      yield* TestClock.adjust(100)
      yield* Fiber.join(late)
      const info = yield* manager.getQueueInfo(Model)
      assert.isTrue(Duration.toMillis(info.provider!.retryIn!) > 3_000_000)
    }).pipe(Effect.provide(Manager)))

  it.effect("a try that was sent before the quota ran out does not open the queue again by its success", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("quota-try", {
        retry: { schedule: Schedule.recurs(0) },
        circuitBreaker: { failures: 1, cooldown: 1000 }
      })
      const provider = scripted({
        slow: [Effect.delay(Effect.fail(quota()), 1500)],
        a: [transient()],
        try: [Effect.as(Effect.sleep(1000), "try")]
      })
      yield* manager.registerQueue(Model, provider.processor)
      yield* start(Effect.exit(manager.submit(Model, "slow")))
      yield* TestClock.adjust(1)
      yield* Effect.exit(manager.submit(Model, "a"))
      yield* start(Effect.exit(manager.submit(Model, "try")))
      yield* TestClock.adjust(3000)
      const exit = yield* Effect.exit(manager.submit(Model, "b"))
      assert.isTrue(Exit.isFailure(exit), "the quota ran out a second and a half ago")
    }).pipe(Effect.provide(Manager)))

  it.effect("a late refusal for quota does not shorten the time that an earlier one asked for", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("quota-longest", { circuitBreaker: { quotaCooldown: "1 minute" } })
      const provider = scripted({ a: [quota(hour)], late: [Effect.delay(Effect.fail(quota()), 1000)] })
      yield* manager.registerQueue(Model, provider.processor)
      const late = yield* start(Effect.exit(manager.submit(Model, "late")))
      yield* TestClock.adjust(1)
      yield* Effect.exit(manager.submit(Model, "a"))
      yield* TestClock.adjust(1000)
      yield* Fiber.join(late)
      assert.strictEqual((yield* providerOf("quota-longest")).retryIn, hour - 1000)
    }).pipe(Effect.provide(Manager)))
})

describe("the circuit breaker", () => {
  const failing = (count: number) =>
    Object.fromEntries(Array.from({ length: count }, (_, index) => [`f${index}`, [transient()]]))

  const noRetry = { schedule: Schedule.recurs(0) }

  it.effect("opens after so many failures in a row, and sends one request to try after the cooldown", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("breaker-opens", { retry: noRetry, circuitBreaker: { failures: 3, cooldown: "2 seconds" } })
      const provider = scripted({ ...failing(3), probe: [Effect.as(Effect.sleep(500), "probe")] })
      yield* manager.registerQueue(Model, provider.processor)
      yield* Effect.flip(manager.submit(Model, "f0"))
      yield* Effect.flip(manager.submit(Model, "f1"))
      assert.strictEqual((yield* providerOf("breaker-opens")).state, "available")
      yield* Effect.flip(manager.submit(Model, "f2"))
      assert.deepStrictEqual(yield* providerOf("breaker-opens"), {
        state: "unavailable",
        retryIn: 2000,
        concurrency: undefined
      })
      for (const params of ["probe", "b", "c"]) yield* start(manager.submit(Model, params))
      yield* TestClock.adjust(1999)
      assert.strictEqual(provider.seen.length, 3)
      yield* TestClock.adjust(1)
      assert.deepStrictEqual(provider.seen.slice(3), ["2 probe"])
      assert.strictEqual((yield* providerOf("breaker-opens")).state, "probing")
      yield* TestClock.adjust(499)
      assert.strictEqual(provider.seen.length, 4)
      yield* TestClock.adjust(1)
      assert.deepStrictEqual(provider.seen.slice(3), ["2 probe", "2.5 b", "2.5 c"])
      assert.strictEqual((yield* providerOf("breaker-opens")).state, "available")
    }).pipe(Effect.provide(Manager)))

  it.effect("a success, or a refusal that shows the provider well, begins the count anew", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("breaker-row", { retry: noRetry, circuitBreaker: { failures: 2 } })
      const provider = scripted({ ...failing(9), rate: [rate()], auth: [auth()] })
      yield* manager.registerQueue(Model, provider.processor)
      for (const params of ["f0", "good", "f1", "rate", "f2", "auth", "f3"]) {
        yield* Effect.exit(manager.submit(Model, params))
        assert.strictEqual((yield* providerOf("breaker-row")).state, "available", params)
      }
      yield* Effect.exit(manager.submit(Model, "f4"))
      assert.strictEqual((yield* providerOf("breaker-row")).state, "unavailable")
    }).pipe(Effect.provide(Manager)))

  it.effect("its cooldown doubles with each try that fails, up to thirty seconds, and is short again after a success", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("breaker-doubles", { retry: noRetry, circuitBreaker: { failures: 1, cooldown: "4 seconds" } })
      const provider = scripted(failing(9))
      yield* manager.registerQueue(Model, provider.processor)
      const waits: Array<number | undefined> = []
      for (const params of ["f0", "f1", "f2", "f3", "f4", "good", "f5"]) {
        const caller = yield* start(Effect.exit(manager.submit(Model, params)))
        const { retryIn } = yield* providerOf("breaker-doubles")
        yield* TestClock.adjust(retryIn ?? 0)
        yield* Fiber.join(caller)
        waits.push((yield* providerOf("breaker-doubles")).retryIn)
      }
      assert.deepStrictEqual(waits, [4000, 8000, 16_000, 30_000, 30_000, undefined, 4000])
    }).pipe(Effect.provide(Manager)))

  it.effect("a cooldown of more than thirty seconds stays as it is", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("breaker-long", { retry: noRetry, circuitBreaker: { failures: 1, cooldown: minute } })
      yield* manager.registerQueue(Model, scripted(failing(2)).processor)
      yield* Effect.exit(manager.submit(Model, "f0"))
      const caller = yield* start(Effect.exit(manager.submit(Model, "f1")))
      yield* TestClock.adjust(minute)
      yield* Fiber.join(caller)
      assert.strictEqual((yield* providerOf("breaker-long")).retryIn, minute)
    }).pipe(Effect.provide(Manager)))

  it.effect("a provider that says when to come back is not asked before, by anybody", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("breaker-hint", { circuitBreaker: { failures: 1, cooldown: "1 second" } })
      const provider = scripted({ a: [overload(90_000)] })
      yield* manager.registerQueue(Model, provider.processor)
      yield* start(manager.submit(Model, "a"))
      yield* TestClock.adjust(10_000)
      yield* start(manager.submit(Model, "b"))
      assert.strictEqual((yield* providerOf("breaker-hint")).retryIn, 80_000)
      yield* TestClock.adjust(79_999)
      assert.deepStrictEqual(provider.seen, ["0 a"])
      yield* TestClock.adjust(1)
      assert.deepStrictEqual(provider.seen, ["0 a", "90 a", "90 b"])
    }).pipe(Effect.provide(Manager)))

  it.effect("while it is open, a later hint of a request in flight lengthens it, and a late success does not close it", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("breaker-late", { retry: noRetry, circuitBreaker: { failures: 1, cooldown: "10 seconds" } })
      const provider = scripted({
        first: [transient()],
        good: [Effect.as(Effect.sleep(1000), "good")],
        late: [Effect.delay(Effect.fail(overload(20_000)), 2000)]
      })
      yield* manager.registerQueue(Model, provider.processor)
      yield* start(Effect.exit(manager.submit(Model, "good")))
      yield* start(Effect.exit(manager.submit(Model, "late")))
      yield* TestClock.adjust(0)
      yield* Effect.exit(manager.submit(Model, "first"))
      yield* TestClock.adjust(1500)
      assert.strictEqual((yield* providerOf("breaker-late")).retryIn, 8500)
      yield* TestClock.adjust(500)
      assert.deepInclude(yield* providerOf("breaker-late"), { state: "unavailable", retryIn: 20_000 })
    }).pipe(Effect.provide(Manager)))

  it.effect("a request whose time is up while it is open hears ProviderUnavailable", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("breaker-deadline", {
        retry: noRetry,
        failEarly: false,
        circuitBreaker: { failures: 1, cooldown: "20 seconds" }
      })
      const provider = scripted({ f: [transient()] })
      yield* manager.registerQueue(Model, provider.processor)
      yield* Effect.exit(manager.submit(Model, "f"))
      const caller = yield* start(manager.submit(Model, "a", { id: "a", timeout: "5 seconds" }))
      yield* TestClock.adjust(4999)
      assert.strictEqual(tagOf(caller.pollUnsafe()), "pending")
      yield* TestClock.adjust(1)
      const exit = caller.pollUnsafe()
      assert(exit !== undefined && Exit.isFailure(exit))
      assert.deepInclude(Cause.squash(exit.cause), {
        _tag: "ProviderUnavailable",
        attempts: 0,
        retryAfterMillis: 15_000,
        reason: "Something broke.",
        cause: undefined
      })
      assert.deepStrictEqual(yield* left("breaker-deadline"), nothing)
    }).pipe(Effect.provide(Manager)))

  it.effect("a request whose time is up before it closes hears ProviderUnavailable at once", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("breaker-late", { retry: noRetry, circuitBreaker: { failures: 1, cooldown: "20 seconds" } })
      const provider = scripted({ f: [transient()] })
      yield* manager.registerQueue(Model, provider.processor)
      yield* Effect.exit(manager.submit(Model, "f"))
      const late = yield* start(Effect.exit(manager.submit(Model, "late", { timeout: "20 seconds" })))
      const error = late.pollUnsafe()
      assert(error !== undefined && Exit.isSuccess(error) && Exit.isFailure(error.value))
      assert.deepInclude(Cause.squash(error.value.cause), { _tag: "ProviderUnavailable", retryAfterMillis: 20_000 })
      const inTime = yield* start(manager.submit(Model, "in time", { timeout: 20_001 }))
      assert.strictEqual(Duration.toMillis(yield* manager.estimateWait(Model)), 20_000)
      yield* TestClock.adjust(20_000)
      assert.strictEqual((yield* Fiber.join(inTime)).result, "in time")
    }).pipe(Effect.provide(Manager)))

  it.effect("a try that gives no answer is followed by another one after thirty seconds", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("breaker-silent", { retry: noRetry, circuitBreaker: { failures: 1, cooldown: "1 second" } })
      const provider = scripted({ f: [transient()], hangs: [Effect.never] })
      yield* manager.registerQueue(Model, provider.processor)
      yield* Effect.exit(manager.submit(Model, "f"))
      for (const params of ["hangs", "b", "c"]) yield* start(Effect.exit(manager.submit(Model, params)))
      yield* TestClock.adjust(30_999)
      assert.deepStrictEqual(provider.exact, [0, 1000])
      yield* TestClock.adjust(1)
      assert.deepStrictEqual(provider.exact, [0, 1000, 31_000, 31_000])
    }).pipe(Effect.provide(Manager)))

  it.effect("the first element of a stream ends a try", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeStreamUntyped<Stream.Stream<string, HttpFailure>, string, HttpFailure>(
        "breaker-stream",
        {
          provider: profile,
          rateLimiters: "unlimited",
          retry: noRetry,
          circuitBreaker: { failures: 1, cooldown: "1 second" }
        }
      )
      yield* manager.registerStream(Model, ({ params }) => params)
      const read = (stream: Stream.Stream<string, HttpFailure>) => Stream.runDrain(manager.stream(Model, stream))
      yield* Effect.exit(read(Stream.fail(overload())))
      yield* start(read(Stream.concat(Stream.make("first"), Stream.never)))
      const next = yield* start(read(Stream.make("all")))
      yield* TestClock.adjust(1000)
      assert.strictEqual((yield* providerOf("breaker-stream")).state, "available")
      yield* TestClock.adjust(1)
      assert.strictEqual(tagOf(next.pollUnsafe()), "success")
    }).pipe(Effect.provide(Manager)))

  it.effect("requests that have no answer within their processing time open it, and tell who does not wait", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("breaker-times", {
        rateLimiters: [RateLimiter.concurrent(1)],
        processingTimeout: 100,
        circuitBreaker: { failures: 3, cooldown: "1 second" }
      })
      const provider = scripted({ hangs: [Effect.never, Effect.never, Effect.never] })
      yield* manager.registerQueue(Model, provider.processor)
      for (let i = 0; i < 3; i++) yield* start(Effect.exit(manager.submit(Model, "hangs")))
      const fails = yield* start(manager.submit(Model, "fails", { whenUnavailable: "fail" }))
      const waits = yield* start(manager.submit(Model, "waits"))
      yield* TestClock.adjust(300)
      assert.strictEqual(tagOf(fails.pollUnsafe()), "ProviderUnavailable")
      assert.deepInclude(yield* providerOf("breaker-times"), { state: "unavailable", retryIn: 1000 })
      yield* TestClock.adjust(1000)
      assert.strictEqual((yield* Fiber.join(waits)).result, "waits")
      assert.deepStrictEqual(provider.exact, [0, 100, 200, 1300])
    }).pipe(Effect.provide(Manager)))

  it.effect("a try for quota that meets something else leaves no quota error behind", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("breaker-quota", { retry: noRetry, circuitBreaker: { quotaCooldown: "1 minute" } })
      const provider = scripted({ a: [quota()], b: [transient()] })
      yield* manager.registerQueue(Model, provider.processor)
      yield* Effect.exit(manager.submit(Model, "a"))
      yield* TestClock.adjust(minute)
      yield* Effect.exit(manager.submit(Model, "b"))
      const next = yield* start(manager.submit(Model, "c"))
      yield* TestClock.adjust(1000)
      assert.strictEqual((yield* Fiber.join(next)).result, "c")
    }).pipe(Effect.provide(Manager)))

  it.effect("a try that ends without a word about the provider is followed by another try", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      for (const [index, end] of [Effect.die("a bug"), Effect.interrupt, Effect.fail(own())].entries()) {
        const id = `breaker-mute-${index}`
        const begin = yield* Clock.currentTimeMillis
        const Model = model(id, { retry: noRetry, circuitBreaker: { failures: 1, cooldown: "1 second" } })
        const provider = scripted({ f: [transient()], mute: [Effect.delay(end, 100)] })
        yield* manager.registerQueue(Model, provider.processor)
        yield* Effect.exit(manager.submit(Model, "f"))
        for (const params of ["mute", "b", "c"]) yield* start(Effect.exit(manager.submit(Model, params)))
        yield* TestClock.adjust(2000)
        assert.deepStrictEqual(provider.exact.map((at) => at - begin), [0, 1000, 1100, 1100])
        assert.strictEqual((yield* providerOf(id)).state, "available")
      }
    }).pipe(Effect.provide(Manager)))

  it.effect("a try that is cancelled, or passes its time, is followed by another one", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      for (const how of ["cancel", "timeout", "processingTimeout", "interrupt"] as const) {
        const id = `breaker-${how}`
        const begin = yield* Clock.currentTimeMillis
        const Model = model(id, { retry: noRetry, circuitBreaker: { failures: 1, cooldown: "1 second" } })
        const provider = scripted({ f: [transient()], hangs: [Effect.never] })
        yield* manager.registerQueue(Model, provider.processor)
        yield* Effect.exit(manager.submit(Model, "f"))
        const hangs = yield* start(Effect.exit(manager.submit(Model, "hangs", {
          id: "hangs",
          timeout: how === "timeout" ? 1500 : undefined,
          processingTimeout: how === "processingTimeout" ? 500 : undefined
        })))
        const next = yield* start(manager.submit(Model, "b"))
        yield* TestClock.adjust(1500)
        if (how === "cancel") yield* manager.cancelRequest(Model, "hangs")
        if (how === "interrupt") yield* Fiber.interrupt(hangs)
        yield* TestClock.adjust(0)
        assert.strictEqual((yield* Fiber.join(next)).result, "b")
        assert.deepStrictEqual(provider.exact.map((at) => at - begin), [0, 1000, 1500])
      }
    }).pipe(Effect.provide(Manager)))

  it.effect("only a try that fails doubles the cooldown, not the failure before it that said how long to wait", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("cooldown-first", {
        retry: { schedule: Schedule.recurs(0) },
        circuitBreaker: { failures: 5, cooldown: "4 seconds" }
      })
      yield* manager.registerQueue(Model, scripted({ a: [transient(500)], b: [transient()] }).processor)
      yield* Effect.exit(manager.submit(Model, "a"))
      const caller = yield* start(Effect.exit(manager.submit(Model, "b")))
      yield* TestClock.adjust(500)
      yield* Fiber.join(caller)
      const { provider } = yield* manager.getQueueInfo(Model)
      assert.strictEqual(Duration.toMillis(provider!.retryIn!), 4000)
    }).pipe(Effect.provide(Manager)))

  it.effect("a try that fails does not shorten the time that a late failure asked for meanwhile", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("breaker-longest", { retry: noRetry, circuitBreaker: { failures: 1, cooldown: "1 second" } })
      const provider = scripted({
        late: [Effect.delay(Effect.fail(transient(minute)), 1500)],
        first: [transient()],
        try: [Effect.delay(Effect.fail(transient()), 1000)]
      })
      yield* manager.registerQueue(Model, provider.processor)
      yield* start(Effect.exit(manager.submit(Model, "late")))
      yield* TestClock.adjust(0)
      yield* Effect.exit(manager.submit(Model, "first"))
      const attempted = yield* start(Effect.exit(manager.submit(Model, "try")))
      yield* TestClock.adjust(2000)
      yield* Fiber.join(attempted)
      assert.deepStrictEqual(provider.seen, ["0 late", "0 first", "1 try"])
      assert.strictEqual((yield* providerOf("breaker-longest")).retryIn, minute - 500)
    }).pipe(Effect.provide(Manager)))
})

describe("fewer at one time after an overload", () => {
  const hold = (millis: number, error: HttpFailure) => Effect.delay(Effect.fail(error), millis)

  it.effect("half as many run as did, late failures of the same burst change nothing, and successes bring it back", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("cap-halves", { retry: { schedule: Schedule.recurs(0) }, circuitBreaker: { failures: 100 } })
      const script: Record<string, ReadonlyArray<Effect.Effect<string, HttpFailure>>> = {}
      for (let i = 0; i < 8; i++) script[`f${i}`] = [hold(1000 + i * 10, overload())]
      for (let i = 0; i < 40; i++) script[`g${i}`] = [Effect.as(Effect.sleep(1000), "g")]
      const provider = scripted(script)
      yield* manager.registerQueue(Model, provider.processor)
      for (let i = 0; i < 8; i++) yield* start(Effect.exit(manager.submit(Model, `f${i}`)))
      yield* TestClock.adjust(1000)
      assert.strictEqual((yield* providerOf("cap-halves")).concurrency, 4)
      yield* TestClock.adjust(100)
      assert.deepStrictEqual(yield* left("cap-halves"), nothing)
      assert.strictEqual((yield* providerOf("cap-halves")).concurrency, 4)
      for (let i = 0; i < 40; i++) yield* start(Effect.exit(manager.submit(Model, `g${i}`)))
      const seen: Array<number> = []
      for (let i = 0; i < 2; i++) {
        yield* TestClock.adjust(1)
        seen.push((yield* left("cap-halves")).running)
        yield* TestClock.adjust(1000)
      }
      assert.strictEqual(seen[0], 4)
      assert.strictEqual((yield* providerOf("cap-halves")).concurrency, undefined)
      yield* TestClock.adjust(20_000)
      assert.deepStrictEqual(yield* left("cap-halves"), nothing)
    }).pipe(Effect.provide(Manager)))

  it.effect("an overload of what was sent since halves it again, down to one", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("cap-again", { retry: { schedule: Schedule.recurs(0) }, circuitBreaker: { failures: 100 } })
      yield* manager.registerQueue(Model, () => hold(1000, overload()))
      const caps: Array<number | undefined> = []
      for (const burst of [16, 8, 4, 2, 1]) {
        for (let i = 0; i < burst; i++) yield* start(Effect.exit(manager.submit(Model, "a")))
        yield* TestClock.adjust(1001)
        caps.push((yield* providerOf("cap-again")).concurrency)
      }
      assert.deepStrictEqual(caps, [8, 4, 2, 1, 1])
      yield* start(Effect.exit(manager.submit(Model, "a")))
      yield* start(Effect.exit(manager.submit(Model, "a")))
      yield* TestClock.adjust(500)
      assert.deepStrictEqual(yield* left("cap-again"), { depth: 1, suspended: 0, running: 1 })
      yield* TestClock.adjust(2000)
      assert.deepStrictEqual(yield* left("cap-again"), nothing)
    }).pipe(Effect.provide(Manager)))

  it.effect("what was sent before holds nobody up for ever, nor does what gives no answer", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("cap-silent", { retry: { schedule: Schedule.recurs(0) }, circuitBreaker: { failures: 100 } })
      const provider = scripted({ hangs: Array.from({ length: 99 }, () => Effect.never), f: [hold(1000, overload())] })
      yield* manager.registerQueue(Model, provider.processor)
      for (const params of ["hangs", "hangs", "hangs", "f"]) yield* start(Effect.exit(manager.submit(Model, params)))
      yield* TestClock.adjust(1000)
      assert.strictEqual((yield* providerOf("cap-silent")).concurrency, 2)
      for (const params of ["hangs", "hangs", "hangs", "b"]) yield* start(Effect.exit(manager.submit(Model, params)))
      yield* TestClock.adjust(29_999)
      assert.strictEqual(provider.exact.length, 4)
      yield* TestClock.adjust(1)
      // One more each half a minute, until there are as many as before.
      assert.deepStrictEqual(provider.exact.slice(4), [31_000, 31_000, 31_000])
      assert.strictEqual((yield* providerOf("cap-silent")).concurrency, 3)
      yield* TestClock.adjust(30_000)
      assert.deepStrictEqual(provider.exact.slice(7), [61_000])
    }).pipe(Effect.provide(Manager)))

  it.effect("growth that was too fast does the same where there is no limit to slow down", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string, HttpFailure>("cap-ramp", {
        provider: {
          ...profile,
          errors: [{ messages: ["too fast"], kind: "ramp" }]
        },
        rateLimiters: "unlimited",
        retry: { schedule: Schedule.spaced(1000) }
      })
      const fast = [hold(10, new HttpFailure({ status: 429, headers: {}, message: "too fast" }))]
      const provider = scripted({ a: fast, b: fast, c: fast, d: fast })
      yield* manager.registerQueue(Model, provider.processor)
      for (const params of ["a", "b", "c", "d"]) yield* start(Effect.exit(manager.submit(Model, params)))
      yield* TestClock.adjust(10)
      assert.strictEqual((yield* providerOf("cap-ramp")).concurrency, 2)
    }).pipe(Effect.provide(Manager)))

  it.effect("a refusal for what runs at once does the same, and the windows of the model stay open", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("cap-concurrent", {
        rateLimiters: [RateLimiter.rpm(100), RateLimiter.concurrent(10)],
        retry: { schedule: Schedule.spaced(1000) }
      })
      const refused = rate(undefined, "Too many concurrent requests.")
      const provider = scripted({
        a: [hold(10, refused)],
        b: [Effect.never],
        c: [Effect.never],
        d: [Effect.never]
      })
      yield* manager.registerQueue(Model, provider.processor)
      for (const params of ["a", "b", "c", "d"]) yield* start(Effect.exit(manager.submit(Model, params)))
      yield* TestClock.adjust(10)
      const { provider: state, rateLimiters } = yield* manager.getQueueInfo(Model)
      assert.isBelow(state!.concurrency!, 4)
      assert.deepInclude(rateLimiters[0], { enforced: 100, pausedFor: undefined })
    }).pipe(Effect.provide(Manager)))

  it.effect("faults and rate limits reduce nothing", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("cap-others", {
        rateLimiters: [RateLimiter.rpm(100)],
        retry: { schedule: Schedule.recurs(0) }
      })
      const provider = scripted({ a: [hold(10, transient())], b: [hold(10, rate())], c: [hold(10, auth())] })
      yield* manager.registerQueue(Model, provider.processor)
      for (const params of ["a", "b", "c", "d"]) yield* start(Effect.exit(manager.submit(Model, params)))
      yield* TestClock.adjust(10)
      assert.strictEqual((yield* providerOf("cap-others")).concurrency, undefined)
    }).pipe(Effect.provide(Manager)))
})

describe("the budget of retries", () => {
  const circuitBreaker = { failures: 1000 }
  const faults = (count: number) => Array.from({ length: count }, () => transient())

  it.effect("ten faults are retried at the start, then none until successes have paid", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("budget", { retry: { schedule: atOnce, budget: 0.5 }, circuitBreaker })
      const provider = scripted({ a: faults(99), b: faults(99), c: faults(99), d: faults(99) })
      yield* manager.registerQueue(Model, provider.processor)
      assert.strictEqual((yield* Effect.flip(manager.submit(Model, "a")))._tag, "HttpFailure")
      assert.strictEqual(provider.seen.length, 11)
      yield* Effect.flip(manager.submit(Model, "b"))
      assert.strictEqual(provider.seen.length, 12)
      yield* manager.submit(Model, "good")
      yield* Effect.flip(manager.submit(Model, "c"))
      assert.strictEqual(provider.seen.length, 14)
      yield* manager.submit(Model, "good")
      yield* Effect.flip(manager.submit(Model, "d"))
      assert.strictEqual(provider.seen.length, 17)
      for (let i = 0; i < 20; i++) yield* manager.submit(Model, "good")
      provider.seen.length = 0
      yield* Effect.flip(manager.submit(Model, "d"))
      assert.strictEqual(provider.seen.length, 11, "ten are saved at most, or what a minute's successes pay for")
    }).pipe(Effect.provide(Manager)))

  it.effect("of many successes a minute's are saved, so that what fails at one time can be attempted again", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("budget-minute", { retry: { schedule: atOnce }, circuitBreaker })
      const provider = scripted({ a: faults(9999), b: faults(9999) })
      yield* manager.registerQueue(Model, provider.processor)
      for (let i = 0; i < 1000; i++) yield* manager.submit(Model, "good")
      provider.seen.length = 0
      yield* Effect.flip(manager.submit(Model, "a"))
      // A tenth of them, and the first attempt.
      assert.strictEqual(provider.seen.length, 101)
      for (let i = 0; i < 1000; i++) yield* manager.submit(Model, "good")
      yield* TestClock.adjust(10 * minute)
      provider.seen.length = 0
      yield* Effect.flip(manager.submit(Model, "b"))
      assert.strictEqual(provider.seen.length, 11)
    }).pipe(Effect.provide(Manager)))

  it.effect("by default ten successes pay for one retry", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("budget-default", { retry: { schedule: atOnce }, circuitBreaker })
      const provider = scripted({ a: faults(99) })
      yield* manager.registerQueue(Model, provider.processor)
      yield* Effect.flip(manager.submit(Model, "a"))
      for (let i = 0; i < 9; i++) yield* manager.submit(Model, "good")
      provider.seen.length = 0
      yield* Effect.flip(manager.submit(Model, "a"))
      assert.strictEqual(provider.seen.length, 1)
      yield* manager.submit(Model, "good")
      provider.seen.length = 0
      yield* Effect.flip(manager.submit(Model, "a"))
      assert.strictEqual(provider.seen.length, 2)
    }).pipe(Effect.provide(Manager)))

  it.effect("refusals by a rate limit take nothing from it", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("budget-rate", { retry: { schedule: atOnce, budget: 0 }, circuitBreaker })
      const provider = scripted({ a: Array.from({ length: 30 }, () => rate()), b: faults(99) })
      yield* manager.registerQueue(Model, provider.processor)
      assert.strictEqual((yield* manager.submit(Model, "a")).attempts, 31)
      provider.seen.length = 0
      yield* Effect.flip(manager.submit(Model, "b"))
      assert.strictEqual(provider.seen.length, 11)
    }).pipe(Effect.provide(Manager)))

  it.effect("many that fail together cannot multiply: two hundred faults bring ten more attempts", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model("budget-many", { circuitBreaker: { failures: 100_000 } })
      const provider = scripted(Object.fromEntries(Array.from({ length: 200 }, (_, i) => [`${i}`, faults(99)])))
      yield* manager.registerQueue(Model, provider.processor)
      for (let i = 0; i < 200; i++) yield* start(Effect.exit(manager.submit(Model, `${i}`)))
      for (let i = 0; i < 10; i++) yield* TestClock.adjust(minute)
      assert.strictEqual(provider.seen.length, 210)
      assert.deepStrictEqual(yield* left("budget-many"), nothing)
    }).pipe(Effect.provide(Manager)))
})
