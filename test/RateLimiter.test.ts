import { assert, describe, it } from "@effect/vitest"
import { Duration, Effect, Fiber, Layer } from "effect"
import { ModelConfig, QueueManager, RateLimiter } from "effect-llm-queue"
import { TestClock } from "effect/testing"
import { limit } from "./limit.ts"

const tokens = (inputTokens: number, outputTokens = 0): RateLimiter.Tokens => ({ inputTokens, outputTokens })

const make = Effect.fnUntraced(function*(...limits: ReadonlyArray<RateLimiter.Limit>) {
  const service = yield* RateLimiter.RateLimiter
  const limiter = yield* service.make("model", limits)
  return {
    ...limiter,
    used: Effect.map(limiter.usage, (usages) => usages.map(({ used }) => used)),
    admitted: (cost: RateLimiter.Tokens, permit = true) =>
      Effect.flatMap(limiter.admit(cost, permit), (admission) =>
        admission._tag === "Admitted"
          ? Effect.succeed(admission.reservation)
          : Effect.die(new Error(`not admitted: ${JSON.stringify(admission)}`))),
    blocked: (cost: RateLimiter.Tokens, permit = true) =>
      Effect.flatMap(limiter.admit(cost, permit), (admission) =>
        admission._tag === "Blocked"
          ? Effect.succeed([admission.by, admission.wait] as const)
          : Effect.die(new Error("admitted")))
  }
})

const waits = (usages: ReadonlyArray<RateLimiter.Usage>) =>
  usages.map(({ timeUntilNextCapacity }) =>
    timeUntilNextCapacity === undefined ? undefined : Duration.toMillis(timeUntilNextCapacity)
  )

describe("RateLimiter", () => {
  it("the constructors are plain data", () => {
    assert.deepStrictEqual(RateLimiter.rpm(5), { type: "rpm", limit: 5 })
    assert.deepStrictEqual(RateLimiter.rpd(5), { type: "rpd", limit: 5 })
    assert.deepStrictEqual(RateLimiter.tpm(5, { margin: "1 second" }), { type: "tpm", limit: 5, margin: "1 second" })
    assert.deepStrictEqual(RateLimiter.tpd(5), { type: "tpd", limit: 5 })
    assert.deepStrictEqual(RateLimiter.itpm(5), { type: "itpm", limit: 5 })
    assert.deepStrictEqual(RateLimiter.otpm(5, { chargedAt: "production" }), {
      type: "otpm",
      limit: 5,
      chargedAt: "production"
    })
    assert.deepStrictEqual(RateLimiter.concurrent(5), { type: "concurrent", limit: 5 })
    const options: RateLimiter.Config = { type: "rpm", limit: 3, timePeriod: 10 }
    assert.deepStrictEqual(RateLimiter.make(options), options)
  })

  it.effect("a charge is gone at the very nanosecond, at any fraction of a millisecond", () =>
    Effect.gen(function*() {
      for (let i = 0; i < 2000; i++) {
        const limiter = yield* make(limit("rpm", 1, { timePeriod: 60_000 }))
        yield* TestClock.adjust(Duration.nanos(BigInt((i * 7_919_333) % 86_400_000_000)))
        yield* limiter.admitted(tokens(0))
        yield* TestClock.adjust(Duration.nanos(59_999_999_999n))
        yield* limiter.blocked(tokens(0))
        yield* TestClock.adjust(Duration.nanos(1n))
        yield* limiter.admitted(tokens(0))
      }
    }))

  it.effect("what is given back twice comes back once", () =>
    Effect.gen(function*() {
      const limiter = yield* make(limit("rpm", 2), limit("concurrent", 1))
      const reservation = yield* limiter.admitted(tokens(0))
      yield* limiter.giveBack(reservation, true)
      yield* limiter.giveBack(reservation, true)
      assert.deepStrictEqual(yield* limiter.used, [0, 0])
    }))

  it.effect("each type counts what it says", () =>
    Effect.gen(function*() {
      const types = ["rpm", "rpd", "tpm", "tpd", "itpm", "otpm", "concurrent"] as const
      const limiter = yield* make(...types.map((type) => limit(type, 100)))
      yield* limiter.admitted(tokens(3, 20))
      assert.deepStrictEqual(yield* limiter.used, [1, 1, 23, 23, 3, 20, 1])
    }))

  it.effect("without limits everything is admitted, and one report is taken", () =>
    Effect.gen(function*() {
      const limiter = yield* make()
      const reservation = yield* limiter.admitted(tokens(1e12))
      assert.strictEqual(yield* limiter.settle(reservation, tokens(1)), "settled")
      assert.strictEqual(yield* limiter.settle(reservation, tokens(1)), "alreadySettled")
      assert.deepStrictEqual(yield* limiter.usage, [])
    }))

  it.effect("a request is charged to every limit or to none", () =>
    Effect.gen(function*() {
      const limiter = yield* make(limit("rpm", 10), limit("itpm", 100), limit("otpm", 100), limit("concurrent", 5))
      yield* limiter.admitted(tokens(90, 10))
      assert.deepStrictEqual(yield* limiter.blocked(tokens(11, 10)), ["itpm", 1000])
      assert.deepStrictEqual(yield* limiter.blocked(tokens(0, 91)), ["otpm", 1000])
      assert.deepStrictEqual(yield* limiter.used, [1, 90, 10, 1])
      yield* limiter.admitted(tokens(10, 90))
      assert.deepStrictEqual(yield* limiter.used, [2, 100, 100, 2])
    }))

  it.effect("of many that ask at one time no more are admitted than fit", () =>
    Effect.gen(function*() {
      const limiter = yield* make(
        limit("concurrent", 7),
        limit("tpm", 10),
        limit("otpm", 9, { chargedAt: "completion" })
      )
      const admissions = yield* Effect.forEach(
        Array.from({ length: 50 }),
        () => Effect.andThen(Effect.yieldNow, limiter.admit(tokens(1, 2), true)),
        { concurrency: "unbounded" }
      )
      assert.strictEqual(admissions.filter(({ _tag }) => _tag === "Admitted").length, 3)
      assert.deepStrictEqual(yield* limiter.used, [3, 9, 6])
    }))

  it.effect("the wait is over when all windows fit, and names the limit that fits last", () =>
    Effect.gen(function*() {
      const limiter = yield* make(
        limit("tpm", 10, { timePeriod: 1000 }),
        limit("rpm", 2, { timePeriod: 3000, margin: 500 }),
        limit("itpm", 100)
      )
      yield* limiter.admitted(tokens(4))
      yield* TestClock.adjust(100)
      yield* limiter.admitted(tokens(6))
      assert.deepStrictEqual(yield* limiter.blocked(tokens(4)), ["rpm", 3400])
      yield* TestClock.adjust(Duration.nanos(3_399_999_999n))
      assert.deepStrictEqual(yield* limiter.used, [0, 2, 0])
      assert.strictEqual((yield* limiter.blocked(tokens(4)))[0], "rpm")
      yield* TestClock.adjust(Duration.nanos(1n))
      yield* limiter.admitted(tokens(4))
    }))

  it.effect("permits go back when the windows say no", () =>
    Effect.gen(function*() {
      const limiter = yield* make(limit("concurrent", 1), limit("rpm", 1))
      const first = yield* limiter.admitted(tokens(0))
      assert.deepStrictEqual(yield* limiter.blocked(tokens(0)), ["concurrent", Number.POSITIVE_INFINITY])
      yield* limiter.complete(first)
      yield* limiter.releasePermit
      for (let i = 0; i < 3; i++) assert.deepStrictEqual(yield* limiter.blocked(tokens(0)), ["rpm", 1000])
      assert.deepStrictEqual(yield* limiter.used, [0, 1])
      yield* TestClock.adjust(1000)
      yield* limiter.admitted(tokens(0))
      assert.deepStrictEqual(yield* limiter.used, [1, 1])
    }))

  it.effect("on a permit that the caller holds, the concurrency limit is not asked", () =>
    Effect.gen(function*() {
      const limiter = yield* make(limit("concurrent", 1), limit("rpm", 2))
      yield* limiter.admitted(tokens(0))
      const borrowed = yield* limiter.admitted(tokens(0), false)
      assert.deepStrictEqual(yield* limiter.blocked(tokens(0), false), ["rpm", 1000])
      assert.deepStrictEqual(yield* limiter.used, [1, 2])
      yield* limiter.giveBack(borrowed, false)
      assert.deepStrictEqual(yield* limiter.used, [1, 1])
    }))

  it.effect("what was never dispatched is given back whole, its permit included, and once", () =>
    Effect.gen(function*() {
      const limiter = yield* make(
        limit("concurrent", 2),
        limit("tpm", 20),
        limit("otpm", 10, { chargedAt: "completion" }),
        limit("itpm", 10, { chargedAt: "production" })
      )
      yield* limiter.admitted(tokens(1, 1))
      const reservation = yield* limiter.admitted(tokens(4, 5))
      assert.deepStrictEqual(yield* limiter.used, [2, 11, 6, 5])
      yield* limiter.giveBack(reservation, true)
      assert.deepStrictEqual(yield* limiter.used, [1, 2, 1, 1])
      yield* limiter.giveBack(reservation, false)
      yield* limiter.complete(reservation)
      assert.strictEqual(yield* limiter.settle(reservation, tokens(9, 9)), "alreadySettled")
      assert.deepStrictEqual(yield* limiter.used, [1, 2, 1, 1])
    }))

  it.effect("a report replaces the estimate, up or down, and only the first one", () =>
    Effect.gen(function*() {
      const limiter = yield* make(limit("tpm", 100), limit("rpm", 10))
      const less = yield* limiter.admitted(tokens(30, 20))
      const more = yield* limiter.admitted(tokens(30, 20))
      assert.strictEqual(yield* limiter.settle(less, tokens(1, 2)), "settled")
      assert.deepStrictEqual(yield* limiter.used, [53, 2])
      assert.strictEqual(yield* limiter.settle(more, tokens(100, 50)), "settled")
      assert.deepStrictEqual(yield* limiter.used, [153, 2])
      assert.strictEqual(yield* limiter.settle(less, tokens(0)), "alreadySettled")
      yield* limiter.complete(more)
      assert.strictEqual(yield* limiter.settle(more, tokens(0)), "alreadySettled")
      assert.deepStrictEqual(yield* limiter.used, [153, 2])
    }))

  it.effect("while there is debt nothing is admitted, not even what costs nothing", () =>
    Effect.gen(function*() {
      const limiter = yield* make(limit("tpm", 10))
      const first = yield* limiter.admitted(tokens(5))
      yield* TestClock.adjust(400)
      yield* limiter.admitted(tokens(5))
      yield* limiter.admitted(tokens(0))
      yield* limiter.settle(first, tokens(6))
      assert.deepStrictEqual(yield* limiter.blocked(tokens(0)), ["tpm", 600])
      assert.deepInclude((yield* limiter.usage)[0], { used: 11, available: 0 })
      yield* TestClock.adjust(600)
      assert.deepStrictEqual(yield* limiter.used, [5])
      yield* limiter.admitted(tokens(5))
    }))

  it.effect("a refund keeps the date of the charge and ends with it", () =>
    Effect.gen(function*() {
      const limiter = yield* make(limit("tpm", 10))
      const reservation = yield* limiter.admitted(tokens(10))
      yield* TestClock.adjust(999)
      yield* limiter.settle(reservation, tokens(4))
      yield* limiter.admitted(tokens(6))
      yield* TestClock.adjust(1)
      assert.deepStrictEqual(yield* limiter.used, [6])
      assert.deepStrictEqual(yield* limiter.blocked(tokens(5)), ["tpm", 999])
    }))

  it.effect("a report is taken until the charge has left its longest window, margin included", () =>
    Effect.gen(function*() {
      const limiter = yield* make(
        limit("tpm", 100, { timePeriod: 1000 }),
        limit("tpd", 100, { timePeriod: 5000, margin: 100 })
      )
      const [early, late, expired] = [
        yield* limiter.admitted(tokens(10)),
        yield* limiter.admitted(tokens(10)),
        yield* limiter.admitted(tokens(10))
      ] as const
      yield* TestClock.adjust(1000)
      assert.strictEqual(yield* limiter.settle(early, tokens(50)), "settled")
      assert.deepStrictEqual(yield* limiter.used, [0, 70])
      yield* TestClock.adjust(4099)
      assert.strictEqual(yield* limiter.settle(late, tokens(0)), "settled")
      assert.deepStrictEqual(yield* limiter.used, [0, 60])
      yield* TestClock.adjust(1)
      assert.strictEqual(yield* limiter.settle(expired, tokens(50)), "expired")
      assert.strictEqual(yield* limiter.settle(expired, tokens(50)), "expired")
      assert.strictEqual(yield* limiter.settle(early, tokens(50)), "alreadySettled")
      assert.deepStrictEqual(yield* limiter.used, [0, 0])
    }))

  it.effect("charged at dispatch, a window counts from the admission", () =>
    Effect.gen(function*() {
      const limiter = yield* make(limit("tpm", 10))
      const reservation = yield* limiter.admitted(tokens(10))
      yield* TestClock.adjust(700)
      yield* limiter.complete(reservation)
      assert.deepStrictEqual(yield* limiter.blocked(tokens(1)), ["tpm", 300])
    }))

  it.effect("charged at completion, the reservation is held until the processor has ended, and counts from then", () =>
    Effect.gen(function*() {
      const limiter = yield* make(limit("tpm", 10, { chargedAt: "completion" }))
      const reservation = yield* limiter.admitted(tokens(10))
      yield* TestClock.adjust(5000)
      assert.deepStrictEqual(yield* limiter.blocked(tokens(1)), ["tpm", Number.POSITIVE_INFINITY])
      assert.deepStrictEqual(waits(yield* limiter.usage), [undefined])
      // A report during processing changes what is held, and gives it no date.
      assert.strictEqual(yield* limiter.settle(reservation, tokens(9)), "settled")
      yield* TestClock.adjust(5000)
      assert.deepStrictEqual(yield* limiter.used, [9])
      assert.deepStrictEqual(yield* limiter.blocked(tokens(2)), ["tpm", Number.POSITIVE_INFINITY])
      yield* limiter.complete(reservation)
      assert.deepStrictEqual(yield* limiter.blocked(tokens(2)), ["tpm", 1000])
      yield* TestClock.adjust(999)
      yield* limiter.complete(reservation)
      assert.deepStrictEqual(yield* limiter.used, [9])
      yield* TestClock.adjust(1)
      assert.deepStrictEqual(yield* limiter.used, [0])
    }))

  it.effect("charged at production, a report gives the date; without one the end of the processor does", () =>
    Effect.gen(function*() {
      const limiter = yield* make(limit("otpm", 10, { chargedAt: "production" }))
      const reported = yield* limiter.admitted(tokens(0, 5))
      const silent = yield* limiter.admitted(tokens(0, 5))
      yield* TestClock.adjust(5000)
      assert.strictEqual(yield* limiter.settle(reported, tokens(0, 4)), "settled")
      assert.deepStrictEqual(yield* limiter.blocked(tokens(0, 2)), ["otpm", 1000])
      yield* TestClock.adjust(300)
      yield* limiter.complete(reported)
      yield* limiter.complete(silent)
      assert.strictEqual(yield* limiter.settle(silent, tokens(0, 3)), "settled")
      yield* TestClock.adjust(699)
      assert.deepStrictEqual(yield* limiter.used, [7])
      yield* TestClock.adjust(1)
      assert.deepStrictEqual(yield* limiter.used, [3])
      yield* TestClock.adjust(300)
      assert.deepStrictEqual(yield* limiter.used, [0])
    }))

  it.effect("usage tells what is used, what is available and when there will be more", () =>
    Effect.gen(function*() {
      const limiter = yield* make(
        limit("concurrent", 1),
        limit("tpm", 10, { margin: 250 }),
        limit("itpm", 10, { chargedAt: "completion" })
      )
      assert.deepStrictEqual(waits(yield* limiter.usage), [0, 0, 0])
      yield* limiter.admitted(tokens(4))
      yield* TestClock.adjust(100)
      yield* limiter.admitted(tokens(6), false)
      yield* TestClock.adjust(50)
      const [concurrent, total, input] = yield* limiter.usage
      assert.deepStrictEqual(concurrent, {
        type: "concurrent",
        limit: 1,
        enforced: 1,
        pausedFor: undefined,
        timePeriod: undefined,
        margin: Duration.zero,
        used: 1,
        available: 0,
        timeUntilNextCapacity: undefined
      })
      assert.deepStrictEqual(total, {
        type: "tpm",
        limit: 10,
        enforced: 10,
        pausedFor: undefined,
        timePeriod: Duration.seconds(1),
        margin: Duration.millis(250),
        used: 10,
        available: 0,
        timeUntilNextCapacity: Duration.millis(1100)
      })
      assert.deepInclude(input, { used: 10, available: 0, timeUntilNextCapacity: undefined })
      yield* TestClock.adjust(1100)
      assert.deepStrictEqual(waits(yield* limiter.usage), [undefined, 0, undefined])
    }))

  it.effect("another limiter is provided to the manager; while it takes its time, no finished result is lost", () =>
    Effect.gen(function*() {
      let made = 0
      const memory = yield* RateLimiter.RateLimiter
      const slow = Layer.succeed(RateLimiter.RateLimiter, {
        make: (modelId, limits) =>
          Effect.map(memory.make(modelId, limits), (limiter) => {
            made++
            return {
              ...limiter,
              complete: (reservation: RateLimiter.Reservation) =>
                Effect.delay(limiter.complete(reservation), "200 millis")
            }
          })
      })
      const Model = ModelConfig.makeUntyped<string, string>("slow-limiter", { rateLimiters: [RateLimiter.rpm(5)] })
      yield* Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        yield* manager.registerQueue(Model, (request) => Effect.succeed(request.params))
        const caller = yield* Effect.forkChild(manager.submit(Model, "paid for", { timeout: "100 millis" }), {
          startImmediately: true
        })
        yield* TestClock.adjust("100 millis")
        assert.isDefined(caller.pollUnsafe(), "told at its deadline")
        assert.strictEqual((yield* Fiber.join(caller)).result, "paid for")
        yield* TestClock.adjust("1 second")
      }).pipe(Effect.scoped, Effect.provide(QueueManager.layer.pipe(Layer.provide(slow))))
      assert.strictEqual(made, 1)
    }))
})
