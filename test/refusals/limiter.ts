import { assert } from "@effect/vitest"
import { Effect } from "effect"
import { RateLimiter } from "effect-llm-queue"
import { TestClock } from "effect/testing"
import { limit } from "../limit.ts"
import * as random from "../model/random.ts"

const minute = 60_000

/** A limiter, with what tests ask of it. */
export const make = Effect.fnUntraced(function*(...limits: ReadonlyArray<RateLimiter.Limit>) {
  // Away from the edges of fixed windows.
  yield* TestClock.adjust(minute / 2)
  const limiter = yield* (yield* RateLimiter.RateLimiter).make("sync", limits)
  const admit = Effect.fnUntraced(function*(inputTokens = 1) {
    const admission = yield* limiter.admit({ inputTokens, outputTokens: 0 }, true)
    assert(admission._tag === "Admitted", `${inputTokens} are not admitted`)
    return admission.reservation
  })
  /** How long a request would have to wait, without sending it. */
  const wait = Effect.fnUntraced(function*(inputTokens = 1) {
    const admission = yield* limiter.admit({ inputTokens, outputTokens: 0 }, true)
    assert(admission._tag !== "Unavailable")
    if (admission._tag !== "Admitted") return admission._tag === "Blocked" ? admission.wait : admission.excess.wait
    yield* limiter.giveBack(admission.reservation, true)
    return 0
  })
  const usage = Effect.fnUntraced(function*(index = 0) {
    const usages = yield* limiter.usage
    assert(usages[index] !== undefined)
    return usages[index]
  })
  const refuse = (
    reservation: RateLimiter.Reservation,
    refusal: RateLimiter.Refusal,
    observations: ReadonlyArray<RateLimiter.Observation> = []
  ) => limiter.refuse(reservation, refusal, observations)
  const available = (index = 0) => Effect.map(usage(index), (usage) => usage.available)
  return {
    ...limiter,
    refuse,
    request: admit,
    wait,
    state: usage,
    available
  }
})

/** What a header says about one limit. */
export const says = (
  type: RateLimiter.Type,
  remaining: number | undefined,
  options?: Partial<RateLimiter.Observation>
): ReadonlyArray<RateLimiter.Observation> => [{
  types: [type],
  limit: undefined,
  remaining,
  rounding: 1,
  reset: undefined,
  ...options
}]

/** A refusal by a rate limit that says nothing. */
export const refusal = (options?: Partial<RateLimiter.Refusal>): RateLimiter.Refusal => ({
  kind: "rate",
  types: [],
  limit: undefined,
  used: undefined,
  requested: undefined,
  retryAfter: undefined,
  status: 429,
  message: "",
  ...options
})

/** Numbers that providers would not say, mixed with those that they do. */
export interface Words {
  readonly remaining: ReadonlyArray<number>
  readonly limit: ReadonlyArray<number | undefined>
  readonly count: ReadonlyArray<number | undefined>
}

/**
 * Random requests, answered with headers and refusals that are right, or with others that say no more than is left. No
 * sum of what was sent and not refused is ever more than the limit.
 */
export const neverOver = Effect.fnUntraced(function*(algorithm: RateLimiter.Algorithm, words: Words) {
  const most = 1000
  const period = 10_000
  for (let seed = 1; seed <= 60; seed++) {
    const choose = random.make(seed)
    const limiter = yield* make(
      limit("tpm", most, {
        timePeriod: period,
        algorithm,
        coldStart: choose.chance(0.3),
        margin: choose.pick([0, 100]),
        charging: { refund: false }
      })
    )
    const sent: Array<{ readonly at: number; readonly amount: number }> = []
    let now = 0
    for (let step = 0; step < 120; step++) {
      const by = choose.int(0, 400)
      now += by
      yield* TestClock.adjust(by)
      const amount = choose.int(1, 200)
      const admission = yield* limiter.admit({ inputTokens: amount, outputTokens: 0 }, true)
      if (admission._tag !== "Admitted") continue
      const counted = sent.filter(({ at }) => at > now - period).reduce((sum, each) => sum + each.amount, amount)
      // A bucket has a whole limit and what is refilled.
      const bound = algorithm === "tokenBucket" ? 2 * most : most
      assert.isTrue(counted <= bound + 1, `seed ${seed}, step ${step}: ${counted} of ${bound}`)
      const { reservation } = admission
      const what = choose.int(0, 3)
      if (what === 2) {
        yield* limiter.refuse(
          reservation,
          refusal({
            kind: choose.pick(["rate", "ramp"]),
            limit: choose.pick(words.limit),
            used: choose.pick(words.count),
            requested: choose.pick(words.count),
            retryAfter: choose.pick([undefined, 0, 5])
          })
        )
        continue
      }
      sent.push({ at: now, amount })
      if (what === 0) {
        yield* limiter.observe(reservation, says("tpm", Math.max(0, most - counted) - choose.pick([0, 50])))
      } else if (what === 1) {
        yield* limiter.observe(
          reservation,
          says("tpm", choose.pick(words.remaining), {
            limit: choose.pick(words.limit),
            rounding: choose.pick([1, 0, -1]),
            reset: choose.pick(words.count)
          })
        )
      }
      yield* limiter.complete(reservation)
    }
  }
})
