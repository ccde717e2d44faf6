import { assert, describe, it } from "@effect/vitest"
import { Duration, Effect, Random } from "effect"
import type { RateLimiter } from "effect-llm-queue"
import { TestClock } from "effect/testing"
import { limit } from "../limit.ts"
import { make, neverOver, refusal, says } from "./limiter.ts"

const minute = 60_000
const hour = 60 * minute

const pausedFor = (usage: RateLimiter.Usage) =>
  usage.pausedFor === undefined ? undefined : Duration.toMillis(usage.pausedFor)

/** Without the chance that spreads what comes back at one instant. */
const withoutChance = Effect.provideService(Random.Random, {
  nextIntUnsafe: () => 0,
  nextDoubleUnsafe: () => 0
})

describe("headers", () => {
  for (const algorithm of ["slidingWindow", "tokenBucket", "fixedWindow", "paced"] as const) {
    it.effect(`what others have used is taken away at once (${algorithm})`, () =>
      Effect.gen(function*() {
        const tokens = limit("tpm", 1000, {
          timePeriod: minute,
          algorithm,
          burst: algorithm === "paced" ? 1000 : undefined
        })
        const limiter = yield* make(tokens)
        const first = yield* limiter.request(100)
        assert.strictEqual(yield* limiter.available(), 900)
        yield* limiter.observe(first, says("tpm", 600))
        assert.strictEqual(yield* limiter.available(), 600)
        assert.isTrue((yield* limiter.wait(601)) > 0)
        assert.strictEqual(yield* limiter.wait(600), 0)
      }))

    it.effect(`an answer that comes after ten thousand later requests takes nothing away (${algorithm})`, () =>
      Effect.gen(function*() {
        const period = 60 * minute
        const limiter = yield* make(limit("rpm", 100_000, { timePeriod: period, margin: 4, algorithm, burst: 100_000 }))
        const first = yield* limiter.request()
        for (let i = 0; i < 10_000; i++) {
          yield* TestClock.adjust(2)
          yield* limiter.complete(yield* limiter.request())
        }
        const before = yield* limiter.available()
        yield* limiter.observe(first, says("rpm", 99_999))
        assert.strictEqual(yield* limiter.available(), before)
        yield* limiter.observe(first, says("rpm", 99_899))
        assert.isAtLeast(yield* limiter.available(), before - 100)
      }))

    it.effect(`what our own later requests have used is not taken away twice (${algorithm})`, () =>
      Effect.gen(function*() {
        const tokens = limit("tpm", 1000, {
          timePeriod: minute,
          algorithm,
          margin: 200,
          burst: algorithm === "paced" ? 1000 : undefined
        })
        const limiter = yield* make(tokens)
        const first = yield* limiter.request(100)
        yield* TestClock.adjust(100)
        yield* limiter.request(50)
        // The second has overtaken the first on its way.
        yield* limiter.observe(first, says("tpm", 850))
        const left = yield* limiter.available()
        assert.isTrue(left >= 850 && left < 860, `${left}`)
        // One unit more was somebody else's.
        yield* limiter.observe(first, says("tpm", 750))
        const less = yield* limiter.available()
        assert.isTrue(less >= 750 && less < 760, `${less}`)
      }))

    it.effect(`what is left of a late header is less what was sent since (${algorithm})`, () =>
      Effect.gen(function*() {
        const tokens = limit("tpm", 1000, {
          timePeriod: minute,
          algorithm,
          margin: 200,
          burst: algorithm === "paced" ? 1000 : undefined
        })
        const limiter = yield* make(tokens)
        const first = yield* limiter.request(100)
        yield* TestClock.adjust(1000)
        yield* limiter.request(50)
        yield* limiter.observe(first, says("tpm", 600))
        const left = yield* limiter.available()
        const refilled = algorithm === "tokenBucket" ? 1000 / 60 : 0
        assert.isTrue(left <= 550 + refilled + 1e-6 && left >= 550 - 1e-6, `${left}`)
      }))

    it.effect(`the same news, in the headers of several responses, is taken once (${algorithm})`, () =>
      Effect.gen(function*() {
        const tokens = limit("tpm", 1000, {
          timePeriod: minute,
          algorithm,
          margin: 200,
          burst: algorithm === "paced" ? 1000 : undefined
        })
        const limiter = yield* make(tokens)
        const requests = yield* Effect.forEach([1, 2, 3, 4], () => limiter.request(50))
        for (const [index, request] of requests.entries()) {
          yield* limiter.observe(request, says("tpm", 700 - 50 * (index + 1)))
        }
        const left = yield* limiter.available()
        assert.isTrue(left > 499 && left < 510, `${left}`)
      }))

    it.effect(`nothing is raised by headers that show more than is known here (${algorithm})`, () =>
      Effect.gen(function*() {
        const tokens = limit("tpm", 1000, {
          timePeriod: minute,
          algorithm,
          burst: algorithm === "paced" ? 1000 : undefined
        })
        const limiter = yield* make(tokens)
        for (let i = 0; i < 9; i++) {
          const request = yield* limiter.request(100)
          yield* limiter.observe(request, says("tpm", 999))
        }
        assert.strictEqual(yield* limiter.available(), 100)
      }))
  }

  it.effect("what is rounded counts as half a unit more", () =>
    Effect.gen(function*() {
      const limiter = yield* make(limit("itpm", 10_000, { timePeriod: minute }))
      const first = yield* limiter.request(400)
      yield* limiter.observe(first, says("itpm", 9000, { rounding: 1000 }))
      assert.strictEqual(yield* limiter.available(), 9500)
      yield* limiter.observe(first, says("itpm", 9000, { rounding: 1000 }))
      assert.strictEqual(yield* limiter.available(), 9500)
    }))

  it.effect("a cold start believes the first header, in both directions, and only the first", () =>
    Effect.gen(function*() {
      for (const algorithm of ["slidingWindow", "tokenBucket"] as const) {
        const limiter = yield* make(
          limit("tpm", 60_000, { timePeriod: minute, algorithm, coldStart: true, margin: 100 })
        )
        const first = yield* limiter.request(100)
        assert.isTrue((yield* limiter.wait(5000)) > 0, "no burst before the provider has told")
        yield* limiter.observe(first, says("tpm", 40_000))
        assert.closeTo(yield* limiter.available(), 40_000, 1)
        const second = yield* limiter.request(100)
        yield* limiter.observe(second, says("tpm", 59_000))
        assert.closeTo(yield* limiter.available(), 39_900, 1)
      }
    }))

  it.effect("a cold start sends one request and waits for its answer, for three seconds at most", () =>
    Effect.gen(function*() {
      const limits = limit("rpm", 6000, { timePeriod: minute, algorithm: "tokenBucket", coldStart: true })
      const unanswered = yield* make(limits)
      yield* unanswered.request()
      assert.strictEqual(yield* unanswered.wait(), 3000)
      yield* TestClock.adjust(3000)
      assert.strictEqual(yield* unanswered.wait(), 0)
      for (const answer of ["observe", "complete", "giveBack", "refuse"] as const) {
        const limiter = yield* make(limits)
        const first = yield* limiter.request()
        yield* TestClock.adjust(100)
        assert.strictEqual(yield* limiter.wait(), 2900, answer)
        if (answer === "observe") yield* limiter.observe(first, says("rpm", 5000))
        else if (answer === "giveBack") yield* limiter.giveBack(first, true)
        else if (answer === "refuse") yield* limiter.refuse(first, refusal({ kind: "auth" }))
        else yield* limiter.complete(first)
        assert.strictEqual(yield* limiter.wait(), 0, answer)
      }
    }))

  it.effect("a cold start subtracts what was sent since the request that the header is about", () =>
    Effect.gen(function*() {
      const limiter = yield* make(
        limit("tpm", 60_000, { timePeriod: minute, algorithm: "slidingWindow", coldStart: true, margin: 100 })
      )
      const first = yield* limiter.request(1000)
      // The answer is late: after three seconds the start goes on without it.
      yield* TestClock.adjust(3000)
      yield* limiter.request(900)
      yield* limiter.observe(first, says("tpm", 40_000))
      assert.strictEqual(yield* limiter.available(), 39_100)
    }))

  it.effect("what a bucket without refunds gives back unsaid is believed after three responses", () =>
    Effect.gen(function*() {
      const limiter = yield* make(
        limit("tpm", 60_000, { timePeriod: hour, algorithm: "tokenBucket", charging: { refund: false } })
      )
      for (let i = 0; i < 3; i++) {
        const before = yield* limiter.available()
        const request = yield* limiter.request(1000)
        yield* TestClock.adjust(10)
        yield* limiter.observe(request, says("tpm", 59_800))
        const after = yield* limiter.available()
        if (i < 2) assert.isTrue(after < before, `response ${i}`)
        // The least that any of them showed.
        else assert.closeTo(after, 57_800, 2)
      }
    }))

  it.effect("one response in between that shows no more begins the count anew", () =>
    Effect.gen(function*() {
      const limiter = yield* make(
        limit("tpm", 60_000, { timePeriod: hour, algorithm: "tokenBucket", charging: { refund: false } })
      )
      for (const [index, remaining] of [59_900, 59_900, undefined, 59_900, 59_900].entries()) {
        const request = yield* limiter.request(1000)
        const left = yield* limiter.available()
        yield* limiter.observe(request, says("tpm", remaining ?? Math.floor(left)))
        assert.closeTo(yield* limiter.available(), left, 1, `response ${index}`)
      }
    }))

  it.effect("a bucket that gives refunds is never raised by headers", () =>
    Effect.gen(function*() {
      const limiter = yield* make(limit("tpm", 60_000, { timePeriod: hour, algorithm: "tokenBucket" }))
      for (let i = 0; i < 5; i++) {
        const request = yield* limiter.request(1000)
        yield* limiter.observe(request, says("tpm", 59_900))
      }
      assert.closeTo(yield* limiter.available(), 55_000, 1)
    }))

  it.effect("a lower limit holds at once, and a higher one when it has been said for a minute, up to the configured one", () =>
    Effect.gen(function*() {
      const limiter = yield* make(limit("rpm", 100, { timePeriod: minute }))
      const told = Effect.fnUntraced(function*(limit: number) {
        const request = yield* limiter.request()
        yield* limiter.observe(request, says("rpm", undefined, { limit }))
        return (yield* limiter.state()).enforced
      })
      assert.strictEqual(yield* told(50), 50)
      yield* TestClock.adjust(30_000)
      assert.strictEqual(yield* told(100), 50)
      yield* TestClock.adjust(29_999)
      assert.strictEqual(yield* told(100), 50)
      yield* TestClock.adjust(1)
      assert.strictEqual(yield* told(100), 100)
      assert.strictEqual(yield* told(1000), 100)
      assert.strictEqual(yield* told(60), 60)
      yield* TestClock.adjust(59_000)
      assert.strictEqual(yield* told(60), 60, "said again: the minute begins anew")
      yield* TestClock.adjust(2000)
      assert.strictEqual(yield* told(100), 60)
      yield* TestClock.adjust(58_000)
      assert.strictEqual(yield* told(100), 100)
    }))

  for (const algorithm of ["slidingWindow", "tokenBucket", "fixedWindow"] as const) {
    it.effect(`a lower limit that several responses tell is taken away once (${algorithm})`, () =>
      Effect.gen(function*() {
        const limiter = yield* make(limit("rpm", 1000, { timePeriod: minute, algorithm }))
        const sent = yield* Effect.forEach(Array.from({ length: 5 }), () => limiter.request())
        for (const [i, each] of sent.entries()) {
          yield* limiter.observe(each, says("rpm", 499 - i, { limit: 500 }))
          yield* limiter.complete(each)
        }
        assert.closeTo(yield* limiter.available(), 495, 5)
      }))
  }

  it.effect("of requests per minute and per day the reset tells which is meant", () =>
    Effect.gen(function*() {
      const both = () =>
        make(
          limit("rpm", 500, { timePeriod: minute, algorithm: "tokenBucket" }),
          limit("rpd", 10_000, { timePeriod: 86_400_000, algorithm: "tokenBucket" })
        )
      const types = ["rpm", "rpd"] as const
      const day = yield* both()
      const first = yield* day.request()
      // 1,000 of a day, a fifth used: full again in a fifth of a day.
      yield* day.observe(first, says("rpd", 800, { types, limit: 1000, reset: 86_400_000 / 5 }))
      assert.strictEqual((yield* day.state(0)).enforced, 500)
      assert.strictEqual((yield* day.state(1)).enforced, 1000)
      const aMinute = yield* both()
      const second = yield* aMinute.request()
      yield* aMinute.observe(second, says("rpm", 200, { types, limit: 250, reset: minute / 5 }))
      assert.strictEqual((yield* aMinute.state(0)).enforced, 250)
      assert.strictEqual((yield* aMinute.state(1)).enforced, 10_000)
      // A limit that is known by its number needs no reset.
      const known = yield* both()
      const third = yield* known.request()
      yield* known.observe(third, says("rpd", 5000, { types, limit: 10_000 }))
      assert.strictEqual((yield* known.state(0)).available, 499)
      assert.strictEqual((yield* known.state(1)).available, 5000)
      // Neither by number nor by period: nothing is believed.
      const unknown = yield* both()
      const fourth = yield* unknown.request()
      for (const reset of [undefined, 60 * minute]) {
        yield* unknown.observe(fourth, says("rpm", 10, { types, limit: 777, reset }))
      }
      assert.strictEqual((yield* unknown.state(0)).available, 499)
      assert.strictEqual((yield* unknown.state(1)).available, 9999)
    }))

  it.effect("the share of a quantum is not taken for the limit", () =>
    Effect.gen(function*() {
      const limiter = yield* make(limit("rpm", 120, { timePeriod: minute, quantum: 10_000 }))
      const first = yield* limiter.request()
      yield* limiter.observe(first, says("rpm", 0, { limit: 20 }))
      assert.deepInclude(yield* limiter.state(), { enforced: 120, available: 119 })
      yield* limiter.observe(first, says("rpm", 30, { limit: 120 }))
      assert.strictEqual(yield* limiter.available(), 30)
    }))

  it.effect("headers about limits that the model does not have change nothing", () =>
    Effect.gen(function*() {
      const limiter = yield* make(limit("rpm", 100, { timePeriod: minute }))
      const first = yield* limiter.request()
      yield* limiter.observe(first, [...says("tpm", 0, { limit: 1 }), ...says("rpd", 0, { limit: 1 })])
      assert.deepInclude(yield* limiter.state(), { enforced: 100, available: 99 })
    }))

  it.effect("usage beyond the estimate, which had looked like somebody else's, is not counted twice", () =>
    Effect.gen(function*() {
      const limiter = yield* make(limit("tpm", 1000, { timePeriod: minute }))
      const first = yield* limiter.request(100)
      yield* limiter.observe(first, says("tpm", 700))
      assert.strictEqual(yield* limiter.available(), 700)
      yield* limiter.settle(first, { inputTokens: 300, outputTokens: 0 })
      assert.strictEqual(yield* limiter.available(), 700)
    }))

  it.effect("headroom: usage beyond the estimate, which had looked like somebody else's, raises by no more than itself", () =>
    Effect.gen(function*() {
      const limiter = yield* make(
        limit("tpm", 6000, { timePeriod: minute, algorithm: "tokenBucket", headroom: 2000 })
      )
      const first = yield* limiter.request(1000)
      yield* limiter.observe(first, says("tpm", 4000))
      assert.closeTo(yield* limiter.available(), 4000, 1)
      // The provider has counted it already: it has 4,000 left all the time.
      yield* limiter.settle(first, { inputTokens: 1001, outputTokens: 0 })
      const left = yield* limiter.available()
      assert.isTrue(left <= 4001, `${left} of 4000`)
    }))

  it.effect("headroom: headers that agree with what is known take nothing away and blame nobody", () =>
    Effect.gen(function*() {
      const limiter = yield* make(
        limit("tpm", 6000, { timePeriod: minute, algorithm: "tokenBucket", headroom: 2000 })
      )
      let server = 4000
      yield* limiter.observe(yield* limiter.request(1000), says("tpm", server))
      for (let i = 0; i < 10; i++) {
        const request = yield* limiter.request(100)
        server -= 100
        yield* limiter.observe(request, says("tpm", server))
        // One token more than estimated, which that header did not yet know of.
        yield* limiter.settle(request, { inputTokens: 101, outputTokens: 0 })
        server -= 1
        const left = yield* limiter.available()
        assert.isTrue(left <= server + 1, `${left} here, ${server} there`)
      }
    }))

  it.effect("a cold start without margin subtracts what was sent since, too", () =>
    Effect.gen(function*() {
      const limiter = yield* make(limit("tpm", 60_000, { timePeriod: minute, coldStart: true }))
      const first = yield* limiter.request(1000)
      // The answer is late: after three seconds the start goes on without it.
      yield* TestClock.adjust(3000)
      yield* limiter.request(900)
      yield* limiter.observe(first, says("tpm", 40_000))
      assert.strictEqual(yield* limiter.available(), 39_100)
    }))
})

describe("refusals", () => {
  it.effect("the numbers of a refusal are taken exactly: what is used, and the limit", () =>
    Effect.gen(function*() {
      for (const algorithm of ["slidingWindow", "tokenBucket", "fixedWindow"] as const) {
        const limiter = yield* make(limit("tpm", 1000, { timePeriod: minute, algorithm }))
        const first = yield* limiter.request(300)
        yield* limiter.refuse(
          first,
          refusal({ types: ["tpm"], limit: 1000, used: 800, requested: 300, retryAfter: 6000 })
        )
        const state = yield* limiter.state()
        assert.closeTo(state.available, 200, 1e-6, algorithm)
        assert.strictEqual(state.enforced, 1000, "a refusal that is explained lowers nothing")
        assert.isTrue(pausedFor(state)! >= 6000 && pausedFor(state)! <= 6050)
      }
    }).pipe(withoutChance))

  it.effect("a bucket is set by the time to wait alone: what was asked for less the refill until then", () =>
    Effect.gen(function*() {
      const limiter = yield* make(limit("tpm", 60_000, { timePeriod: minute, algorithm: "tokenBucket" }))
      const first = yield* limiter.request(5000)
      yield* limiter.refuse(first, refusal({ types: ["tpm"], retryAfter: 2000 }))
      assert.closeTo(yield* limiter.available(), 3000, 1)
      yield* TestClock.adjust(2000)
      assert.strictEqual(pausedFor(yield* limiter.state()), undefined)
    }).pipe(withoutChance))

  it.effect("a pause holds back exactly as long as the provider asks, and never less for a shorter one after it", () =>
    Effect.gen(function*() {
      const limiter = yield* make(limit("rpm", 100, { timePeriod: minute }), limit("tpm", 1000, { timePeriod: minute }))
      const first = yield* limiter.request()
      const second = yield* limiter.request()
      yield* limiter.refuse(first, refusal({ types: ["rpm"], retryAfter: 10_000 }))
      yield* limiter.refuse(second, refusal({ types: ["rpm"], retryAfter: 1000 }))
      assert.strictEqual(yield* limiter.wait(), 10_000)
      assert.strictEqual(pausedFor(yield* limiter.state(1)), undefined)
      yield* TestClock.adjust(9999)
      assert.strictEqual(yield* limiter.wait(), 1)
      yield* TestClock.adjust(1)
      assert.strictEqual(yield* limiter.wait(), 0)
    }).pipe(withoutChance))

  it.effect("those that wait for one instant are spread by up to fifty milliseconds", () =>
    Effect.gen(function*() {
      const waits = new Set<number>()
      for (let i = 0; i < 40; i++) {
        const limiter = yield* make(limit("rpm", 100, { timePeriod: minute }))
        yield* limiter.refuse(yield* limiter.request(), refusal({ retryAfter: 1000 }))
        const wait = yield* limiter.wait()
        assert.isTrue(wait >= 1000 && wait <= 1050, `${wait}`)
        waits.add(wait)
      }
      assert.isTrue(waits.size > 20)
    }))

  it.effect("without a time to wait the pause is a quarter of the period, doubled up to the period, until a success", () =>
    Effect.gen(function*() {
      const limiter = yield* make(limit("tpm", 1000, { timePeriod: 8000 }))
      const waits: Array<number | undefined> = []
      for (let i = 0; i < 5; i++) {
        yield* limiter.refuse(yield* limiter.request(), refusal())
        waits.push(pausedFor(yield* limiter.state()))
        yield* TestClock.adjust(8001)
      }
      // Half of it, without chance.
      assert.deepStrictEqual(waits, [1000, 2000, 4000, 4000, 4000])
      yield* limiter.complete(yield* limiter.request())
      yield* limiter.refuse(yield* limiter.request(), refusal())
      assert.strictEqual(pausedFor(yield* limiter.state()), 1000)
    }).pipe(withoutChance))

  it.effect("a refusal that does not name its limit is about the one that has the least left", () =>
    Effect.gen(function*() {
      const limiter = yield* make(limit("rpm", 100, { timePeriod: minute }), limit("tpm", 1000, { timePeriod: minute }))
      const first = yield* limiter.request(600)
      const second = yield* limiter.request(100)
      yield* limiter.refuse(second, refusal({ retryAfter: 5000 }))
      assert.strictEqual(pausedFor(yield* limiter.state(0)), undefined)
      assert.strictEqual(pausedFor(yield* limiter.state(1)), 5000)
      yield* limiter.complete(first)
    }).pipe(withoutChance))

  it.effect("of the limits that it names, the one with its number is meant", () =>
    Effect.gen(function*() {
      const limiter = yield* make(
        limit("rpm", 100, { timePeriod: minute }),
        limit("rpd", 1000, { timePeriod: 86_400_000 })
      )
      for (let i = 0; i < 50; i++) yield* limiter.request()
      yield* limiter.refuse(yield* limiter.request(), refusal({ types: ["rpm", "rpd"], limit: 1000, retryAfter: 5000 }))
      assert.strictEqual(pausedFor(yield* limiter.state(0)), undefined)
      assert.strictEqual(pausedFor(yield* limiter.state(1)), 5000)
    }).pipe(withoutChance))

  it.effect("an unexplained refusal takes 15 % of the limit, once for all that were sent before it", () =>
    Effect.gen(function*() {
      const limiter = yield* make(limit("rpm", 100, { timePeriod: minute }))
      const burst = yield* Effect.forEach([1, 2, 3, 4, 5], () => limiter.request())
      yield* TestClock.adjust(100)
      for (const request of burst) {
        yield* limiter.refuse(request, refusal({ retryAfter: 1000 }))
        yield* TestClock.adjust(10)
      }
      assert.closeTo((yield* limiter.state()).enforced, 85, 1e-9)
      yield* TestClock.adjust(1100)
      const next = yield* limiter.request()
      yield* limiter.refuse(next, refusal({ retryAfter: 1000 }))
      assert.closeTo((yield* limiter.state()).enforced, 72.4, 0.3)
    }))

  it.effect("after a pause that nothing explains one request goes first, and what it meets says nothing about the rate", () =>
    Effect.gen(function*() {
      for (const kind of ["rate", "ramp"] as const) {
        const limiter = yield* make(limit("rpm", 6000, { timePeriod: minute }))
        yield* limiter.refuse(yield* limiter.request(), refusal({ kind }))
        const { enforced } = yield* limiter.state()
        assert.isTrue(enforced < 6000, kind)
        // A quarter of the period at most.
        yield* TestClock.adjust(15_000)
        const probe = yield* limiter.request()
        assert.strictEqual(yield* limiter.wait(), 3000, kind)
        yield* TestClock.adjust(100)
        yield* limiter.refuse(probe, refusal({ kind }))
        assert.isAtLeast((yield* limiter.state()).enforced, enforced, kind)
        yield* TestClock.adjust(30_000)
        const second = yield* limiter.request()
        yield* limiter.complete(second)
        assert.strictEqual(yield* limiter.wait(), 0, kind)
        // One that did not go alone is about the rate again.
        const before = (yield* limiter.state()).enforced
        yield* limiter.refuse(yield* limiter.request(), refusal({ kind }))
        assert.isBelow((yield* limiter.state()).enforced, before, kind)
      }
    }))

  it.effect("a point of it comes back every ten seconds, up to the whole limit", () =>
    Effect.gen(function*() {
      const limiter = yield* make(limit("rpm", 100, { timePeriod: minute }))
      yield* limiter.refuse(yield* limiter.request(), refusal({ retryAfter: 1000 }))
      for (const seconds of [10, 20, 30]) {
        yield* TestClock.adjust(10_000)
        yield* limiter.wait()
        assert.closeTo((yield* limiter.state()).enforced, 85 + seconds / 10, 0.11)
      }
      yield* TestClock.adjust(119_000)
      yield* limiter.wait()
      assert.isTrue((yield* limiter.state()).enforced < 100)
      yield* TestClock.adjust(2000)
      yield* limiter.wait()
      assert.strictEqual((yield* limiter.state()).enforced, 100)
    }))

  it.effect("refusals that go on never take everything", () =>
    Effect.gen(function*() {
      const limiter = yield* make(limit("rpm", 1000, { timePeriod: 1000 }))
      for (let i = 0; i < 100; i++) {
        yield* limiter.refuse(yield* limiter.request(), refusal({ kind: i % 2 === 0 ? "rate" : "ramp", retryAfter: 0 }))
        yield* TestClock.adjust(1100)
      }
      const { enforced } = yield* limiter.state()
      assert.isTrue(enforced >= 20 && enforced < 100, `${enforced}`)
    }))

  it.effect("growth that was too fast cuts to 60 % of what was accepted, and grows back by a fifth each minute", () =>
    Effect.gen(function*() {
      const limiter = yield* make(limit("rpm", 1000, { timePeriod: minute }))
      const sent = yield* Effect.forEach(Array.from({ length: 600 }), () => limiter.request())
      yield* TestClock.adjust(10)
      for (const [i, each] of sent.slice(0, 100).entries()) {
        yield* limiter.refuse(each, refusal({ kind: "ramp", retryAfter: 1000 }))
        assert.closeTo((yield* limiter.state()).enforced, 0.6 * (599 - i), 1e-6)
      }
      yield* TestClock.adjust(minute)
      yield* limiter.wait()
      assert.closeTo((yield* limiter.state()).enforced, 360, 1)
      yield* TestClock.adjust(6 * minute)
      yield* limiter.wait()
      yield* limiter.wait()
      assert.strictEqual((yield* limiter.state()).enforced, 1000)
    }))

  it.effect("refusals of other kinds pause and change nothing", () =>
    Effect.gen(function*() {
      const limiter = yield* make(limit("rpm", 100, { timePeriod: minute }))
      for (const kind of ["transient", "quota", "tooLarge", "auth"] as const) {
        yield* limiter.refuse(
          yield* limiter.request(),
          refusal({ kind, types: ["rpm"], limit: 5, used: 5, retryAfter: minute })
        )
      }
      assert.deepInclude(yield* limiter.state(), { enforced: 100, used: 0, pausedFor: undefined })
    }))

  it.effect("an overloaded provider has counted the request, and asks no money for it", () =>
    Effect.gen(function*() {
      const price = { input: 10, cachedInput: 10, output: 10 }
      const limiter = yield* make(
        limit("rpm", 100, { timePeriod: minute }),
        limit("tpm", 1000, { timePeriod: minute }),
        limit("budget", 1, { timePeriod: minute, price })
      )
      const first = yield* limiter.request(100)
      yield* limiter.refuse(first, refusal({ kind: "overload", types: ["rpm"], limit: 5, used: 5, retryAfter: minute }))
      for (const [i, used] of [1, 100, 0].entries()) {
        assert.deepInclude(yield* limiter.state(i), { used, pausedFor: undefined })
      }
      yield* limiter.complete(first)
      yield* limiter.giveBack(first, true)
      assert.strictEqual((yield* limiter.state(0)).used, 1)
    }))

  it.effect("money is asked for a refused request where the budget says so", () =>
    Effect.gen(function*() {
      for (const refused of [false, true]) {
        const price = { input: 10, cachedInput: 10, output: 10 }
        const limiter = yield* make(limit("budget", 1, { timePeriod: minute, price, charging: { refused } }))
        yield* limiter.refuse(yield* limiter.request(100), refusal())
        assert.closeTo((yield* limiter.state()).used, refused ? 0.001 : 0, 1e-12)
      }
    }))

  it.effect("a limit of days that has the least left is not paused for hours when the refusal says nothing", () =>
    Effect.gen(function*() {
      for (const algorithm of ["slidingWindow", "tokenBucket", "fixedWindow"] as const) {
        for (const types of [[], ["itpm"], ["rpd", "rpm"]] as const) {
          const limiter = yield* make(
            limit("rpm", 1000, { timePeriod: minute }),
            limit("rpd", 10, { timePeriod: 24 * hour, algorithm })
          )
          for (let i = 0; i < 5; i++) yield* limiter.complete(yield* limiter.request())
          const waits: Array<number> = []
          for (let i = 0; i < 8; i++) {
            yield* limiter.refuse(yield* limiter.request(), refusal({ types }))
            const wait = pausedFor(yield* limiter.state(1))!
            waits.push(wait)
            yield* TestClock.adjust(wait)
          }
          // Half of them, without chance.
          assert.deepStrictEqual(waits.map((wait) => wait / 1000), [7.5, 15, 30, 60, 120, 150, 150, 150], algorithm)
        }
      }
    }).pipe(withoutChance))

  it.effect("a limit of days that the refusal names is tried less and less often", () =>
    Effect.gen(function*() {
      const limiter = yield* make(
        limit("rpm", 1000, { timePeriod: minute }),
        limit("rpd", 100, { timePeriod: 24 * hour })
      )
      let tries = 0
      for (let at = 0; at < 24 * hour; tries++) {
        yield* limiter.refuse(yield* limiter.request(), refusal({ types: ["rpd"] }))
        const wait = pausedFor(yield* limiter.state(1))!
        yield* TestClock.adjust(wait)
        at += wait
      }
      assert.isAtMost(tries, 14)
    }).pipe(withoutChance))

  it.effect("a calendar day that is spent is waited for to its end, and the next one is whole", () =>
    Effect.gen(function*() {
      const limiter = yield* make(
        limit("rpm", 1000, { timePeriod: minute }),
        limit("rpd", 100, { timePeriod: 24 * hour, algorithm: "fixedWindow" }),
        limit("tpd", 10_000, { timePeriod: 24 * hour, algorithm: "fixedWindow" })
      )
      for (const types of [["rpd"], ["rpd", "tpd"]] as const) {
        const sent = [yield* limiter.request(), yield* limiter.request()]
        for (const each of sent) yield* limiter.refuse(each, refusal({ types }))
        const wait = yield* limiter.wait()
        assert.closeTo(wait, 24 * hour - minute / 2, minute)
        yield* TestClock.adjust(wait)
        assert.strictEqual(yield* limiter.wait(), 0)
        assert.deepInclude(yield* limiter.state(1), { enforced: 100, used: 0, pausedFor: undefined })
        yield* TestClock.adjust(minute / 2)
      }
    }).pipe(withoutChance))

  it.effect("a refusal for what runs at once pauses no window", () =>
    Effect.gen(function*() {
      const limiter = yield* make(limit("rpm", 100, { timePeriod: minute }), limit("concurrent", 5))
      yield* limiter.refuse(yield* limiter.request(), refusal({ types: ["concurrent"], limit: 2, retryAfter: 5000 }))
      assert.deepInclude(yield* limiter.state(), { enforced: 100, used: 0, pausedFor: undefined })
    }))

  it.effect("a bucket that was cut waits as long as the provider says, as before the cut", () =>
    Effect.gen(function*() {
      for (const headroom of [0, 100]) {
        const bucket = limit("tpm", 60_000, { timePeriod: minute, algorithm: "tokenBucket", headroom })
        const limiter = yield* make(bucket)
        yield* limiter.refuse(yield* limiter.request(1000), refusal({ types: ["tpm"] }))
        assert.closeTo((yield* limiter.state()).enforced, 51_000, 1)
        yield* TestClock.adjust(30_000)
        yield* limiter.complete(yield* limiter.request(1))
        const first = yield* limiter.request(5000)
        yield* limiter.refuse(first, refusal({ types: ["tpm"], retryAfter: 1000 }))
        const wait = yield* limiter.wait(5000)
        // By the rate that the cuts have left.
        assert.isTrue(wait >= 1000 && wait <= (1000 + headroom) / 0.7, `${wait}`)
      }
    }).pipe(withoutChance))

  it.effect("what grew too fast goes evenly until it has grown back, whatever a bucket has saved up", () =>
    Effect.gen(function*() {
      for (const algorithm of ["slidingWindow", "tokenBucket", "fixedWindow", "paced"] as const) {
        const limiter = yield* make(limit("rpm", 6000, { timePeriod: minute, algorithm }))
        const sent = yield* Effect.forEach(Array.from({ length: 50 }), () => limiter.request())
        yield* TestClock.adjust(20)
        for (const each of sent) yield* limiter.refuse(each, refusal({ kind: "ramp", retryAfter: minute }))
        yield* TestClock.adjust(minute + 1)
        const { enforced } = yield* limiter.state()
        let most = 0
        for (let second = 0; second < 30; second++) {
          let count = 0
          for (; (yield* limiter.wait()) === 0; count++) yield* limiter.complete(yield* limiter.request())
          most = Math.max(most, count)
          yield* TestClock.adjust(1000)
        }
        // A second's worth, at the rate that it has grown to, and one.
        assert.isAtMost(most, (1.2 * enforced) / 60 + 1, algorithm)
        yield* TestClock.adjust(40 * minute)
        let count = 0
        // A bucket begins empty then.
        assert.strictEqual((yield* limiter.wait()) > 0, algorithm === "tokenBucket", algorithm)
        yield* TestClock.adjust(minute)
        for (; (yield* limiter.wait()) === 0; count++) yield* limiter.complete(yield* limiter.request())
        assert.strictEqual(count, algorithm === "paced" ? 100 : 6000, algorithm)
      }
    }))

  it.effect("one reservation is refused once, and nothing of it can be given back or completed after that", () =>
    Effect.gen(function*() {
      const limiter = yield* make(
        limit("rpm", 100, { timePeriod: minute, charging: { refused: true } }),
        limit("tpm", 1000, { timePeriod: minute, charging: { refused: true } }),
        limit("concurrent", 1)
      )
      const first = yield* limiter.request(100)
      yield* limiter.refuse(first, refusal({ types: ["rpm"], retryAfter: 0 }))
      for (let i = 0; i < 2; i++) {
        yield* limiter.refuse(first, refusal({ types: ["rpm"], retryAfter: minute }))
        yield* limiter.complete(first)
        yield* limiter.giveBack(first, true)
        assert.strictEqual(yield* limiter.settle(first, { inputTokens: 900, outputTokens: 0 }), "alreadySettled")
      }
      assert.deepStrictEqual((yield* limiter.usage).map(({ used }) => used), [1, 0, 1])
    }).pipe(withoutChance))

  it.effect("what a held reservation was to cost is given back too", () =>
    Effect.gen(function*() {
      for (const chargedAt of ["completion", "production"] as const) {
        const limiter = yield* make(limit("tpm", 1000, { timePeriod: minute, chargedAt }))
        const first = yield* limiter.request(400)
        assert.strictEqual((yield* limiter.state()).used, 400)
        yield* limiter.refuse(first, refusal({ retryAfter: 0, limit: 1000 }))
        assert.strictEqual((yield* limiter.state()).used, 0)
      }
    }))

  it.effect("where refused requests count, pauses without a time to wait grow all the same", () =>
    Effect.gen(function*() {
      const limiter = yield* make(limit("rpm", 1000, { timePeriod: 8000, charging: { refused: true } }))
      const waits: Array<number> = []
      for (let i = 0; i < 3; i++) {
        yield* limiter.refuse(yield* limiter.request(), refusal())
        waits.push(Duration.toMillis((yield* limiter.state()).pausedFor!))
        yield* TestClock.adjust(8001)
      }
      assert.isTrue(waits[1]! > 2000 && waits[2]! > 3999, waits.join())
    }))
})

describe("words that make no sense", () => {
  for (const algorithm of ["slidingWindow", "tokenBucket", "paced"] as const) {
    it.effect(`never let more through than the limit (${algorithm})`, () =>
      neverOver(algorithm, {
        remaining: [-5, -1, 0, 3],
        limit: [undefined, -1, 0, 1e15],
        count: [undefined, -1, 0, 1e15]
      }))
  }

  for (const remaining of [-1e6, -999_999_999_999_999]) {
    for (const algorithm of ["slidingWindow", "fixedWindow"] as const) {
      it.effect(`a nonsense of ${remaining} left does not stop the limit for more than two periods (${algorithm})`, () =>
        Effect.gen(function*() {
          const limiter = yield* make(limit("tpm", 1000, { timePeriod: minute, algorithm }))
          yield* limiter.observe(yield* limiter.request(10), says("tpm", remaining))
          yield* TestClock.adjust(2 * minute)
          assert.strictEqual(yield* limiter.wait(10), 0)
        }))
    }
  }

  it.effect("a limit that makes no sense is not adopted", () =>
    Effect.gen(function*() {
      const limiter = yield* make(limit("rpm", 100, { timePeriod: minute }))
      const first = yield* limiter.request()
      for (const value of [-1, 0, 1e15]) {
        yield* limiter.observe(first, says("rpm", undefined, { limit: value }))
        assert.strictEqual((yield* limiter.state()).enforced, 100, `${value}`)
      }
    }))

  it.effect("the state stays a number whatever is said, and is whole again some time later", () =>
    Effect.gen(function*() {
      for (const algorithm of ["slidingWindow", "tokenBucket", "fixedWindow", "paced"] as const) {
        for (const coldStart of [false, true]) {
          for (const remaining of [-1, -500, 0, 0.5, 1, 999, 1000, 5000, 1e15]) {
            const limiter = yield* make(limit("tpm", 1000, { timePeriod: 1000, algorithm, coldStart }))
            const first = yield* limiter.request(10)
            yield* limiter.observe(first, says("tpm", remaining))
            yield* limiter.complete(first)
            yield* TestClock.adjust(10_000)
            assert.strictEqual(yield* limiter.wait(10), 0, `${algorithm} ${coldStart} ${remaining}`)
            assert.isTrue(Number.isFinite((yield* limiter.state()).used))
          }
        }
      }
    }))
})

const algorithms = ["slidingWindow", "tokenBucket", "fixedWindow"] as const

describe("what providers say that is not to be taken at its word", () => {
  for (const algorithm of algorithms) {
    it.effect(`a header with a lower limit and what is left of it takes away no more than that (${algorithm})`, () =>
      Effect.gen(function*() {
        const limiter = yield* make(limit("rpm", 100, { timePeriod: minute, algorithm }))
        const first = yield* limiter.request()
        yield* limiter.observe(first, says("rpm", 19, { limit: 20 }))
        assert.closeTo(yield* limiter.available(), 19, 1e-6)
        assert.strictEqual(yield* limiter.wait(), 0)
      }))
  }

  it.effect("a day limit that is lower than configured does not stop the queue for days", () =>
    Effect.gen(function*() {
      const limiter = yield* make(limit("rpd", 10_000, { timePeriod: 86_400_000, algorithm: "tokenBucket" }))
      const first = yield* limiter.request()
      yield* limiter.observe(first, says("rpd", 800, { limit: 1000 }))
      assert.strictEqual(yield* limiter.wait(), 0)
    }))

  it.effect("a refusal by a limit that the model does not have changes the numbers of none that it has", () =>
    Effect.gen(function*() {
      const limiter = yield* make(limit("rpm", 1000, { timePeriod: minute }))
      yield* limiter.refuse(
        yield* limiter.request(),
        refusal({ types: ["rpd"], limit: 50, used: 50, requested: 1, retryAfter: 1000 })
      )
      yield* TestClock.adjust(1051)
      assert.strictEqual((yield* limiter.state()).enforced, 1000)
      assert.strictEqual(yield* limiter.available(), 1000)
    }))

  it.effect("a lower limit that only a refusal told does not hold for ever", () =>
    Effect.gen(function*() {
      const limiter = yield* make(limit("rpm", 1000, { timePeriod: minute }))
      yield* limiter.refuse(yield* limiter.request(), refusal({ types: ["rpm"], limit: 10, retryAfter: 1000 }))
      yield* TestClock.adjust("1 day")
      yield* limiter.wait()
      assert.strictEqual((yield* limiter.state()).enforced, 1000)
    }))

  it.effect("what is enforced is told as it is now, recovery included", () =>
    Effect.gen(function*() {
      const limiter = yield* make(limit("rpm", 100, { timePeriod: minute }))
      yield* limiter.refuse(yield* limiter.request(), refusal({ retryAfter: 1000 }))
      yield* TestClock.adjust("10 minutes")
      assert.strictEqual((yield* limiter.state()).enforced, 100)
    }))

  for (const remaining of [-1e6, -999_999_999_999_999]) {
    it.effect(`a nonsense of ${remaining} left does not stop a bucket for more than two periods`, () =>
      Effect.gen(function*() {
        const limiter = yield* make(limit("tpm", 1000, { timePeriod: minute, algorithm: "tokenBucket" }))
        yield* limiter.observe(yield* limiter.request(10), says("tpm", remaining))
        yield* TestClock.adjust(2 * minute)
        assert.strictEqual(yield* limiter.wait(10), 0)
      }))
  }

  for (const algorithm of algorithms) {
    it.effect(`what is no number corrupts nothing (${algorithm})`, () =>
      Effect.gen(function*() {
        const nonsense = [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]
        for (const value of nonsense) {
          for (const coldStart of [false, true]) {
            const limiter = yield* make(limit("tpm", 1000, { timePeriod: minute, algorithm, coldStart }))
            yield* limiter.observe(
              yield* limiter.request(1),
              says("tpm", value, { limit: value, rounding: value, reset: value })
            )
            for (const name of ["limit", "used", "requested", "retryAfter"] as const) {
              yield* TestClock.adjust(minute)
              const next = yield* limiter.admit({ inputTokens: 1, outputTokens: 0 }, true)
              assert(next._tag === "Admitted", `${value} ${coldStart} ${name}`)
              yield* limiter.refuse(next.reservation, refusal({ types: ["tpm"], [name]: value }))
            }
            yield* TestClock.adjust(2 * minute)
            const state = yield* limiter.state()
            assert.isTrue(Number.isFinite(state.used) && Number.isFinite(state.enforced), `${value} ${coldStart}`)
            assert.strictEqual(yield* limiter.wait(1), 0)
          }
        }
      }))
  }

  for (const algorithm of ["slidingWindow", "tokenBucket"] as const) {
    it.effect(`what is no number never lets more through than the limit (${algorithm})`, () =>
      neverOver(algorithm, {
        remaining: [0, Number.NaN],
        limit: [undefined, Number.NaN, Number.POSITIVE_INFINITY],
        count: [undefined, Number.NaN, -1]
      }))
  }
})
