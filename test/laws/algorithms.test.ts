/**
 * One limit on tokens whose number and algorithm change while it is used: what was charged before counts on. Brute
 * force over everything that was sent, random as in `neverOver.test.ts`, and replayed in the same way by `SEED`.
 */
import { assert, describe, it } from "@effect/vitest"
import { Clock, Effect } from "effect"
import { RateLimiter } from "effect-llm-queue"
import { TestClock } from "effect/testing"
import { limit as makeLimit } from "../limit.ts"
import { random } from "./schedule.ts"

const given = process.env["SEED"]
const first = given === undefined ? Math.floor(Math.random() * 1e9) : Number(given)
const runs = Number(process.env["RUNS"] ?? (given === undefined ? 300 : 1))
const period = 1000
const algorithms = ["slidingWindow", "tokenBucket", "fixedWindow", "paced"] as const

interface Charge {
  readonly at: number
  amount: number
  readonly reservation: RateLimiter.Reservation
}

describe("a limit whose algorithm changes", () => {
  it.effect("never lets more through than the new one allows for what is known", () =>
    Effect.gen(function*() {
      let updates = 0
      let admitted = 0
      for (let seed = first; seed < first + runs; seed++) {
        const { between, chance, pick } = random(seed)
        const margin = chance(0.5) ? 0 : 20
        // At an edge of the fixed windows.
        yield* TestClock.setTime(Math.ceil((yield* Clock.currentTimeMillis) / period) * period)
        const draw = () => makeLimit("tpm", between(5, 60), { timePeriod: period, margin, algorithm: pick(algorithms) })
        let limit = draw()
        const limiter = yield* (yield* RateLimiter.RateLimiter).make("model", [limit])
        const charges: Array<Charge> = []
        let now = 0
        let knownSince = Number.NEGATIVE_INFINITY
        /** The buckets that followed one another, and the time from which on the first of them counts. */
        let buckets = [{ since: Number.NEGATIVE_INFINITY, limit: limit.limit }]
        const sum = (from: number) =>
          charges.filter(({ at }) => at >= from && at >= knownSince).reduce((total, { amount }) => total + amount, 0)
        const check = () => {
          const start = Math.floor(now / period) * period
          const over = (used: number, most: number) =>
            used > most + 1e-6
              ? assert.fail(`SEED=${seed}: ${used} of ${most} (${limit.algorithm}) at ${now}`)
              : undefined
          if (limit.algorithm === "fixedWindow") over(sum(start), limit.limit)
          else if (limit.algorithm === "tokenBucket") {
            for (const { at } of charges) {
              let refilled = 0
              for (const [index, bucket] of buckets.entries()) {
                const end = buckets[index + 1]?.since ?? now
                refilled += Math.max(0, end - Math.max(at, bucket.since)) * bucket.limit / period
              }
              const most = Math.max(...buckets.map((bucket) => bucket.limit))
              over(sum(at), most + refilled)
            }
          } else over(sum(now - period - margin + 1e-9), limit.limit)
        }
        for (let step = 0; step < 60; step++) {
          const by = pick([0, 1, between(1, 60), between(1, 300)])
          now += by
          yield* TestClock.adjust(by)
          if (chance(0.1)) {
            const next = chance(0.3) ? { ...limit, limit: between(5, 60) } : draw()
            if (limit.algorithm === "fixedWindow" && next.algorithm !== "fixedWindow") {
              knownSince = Math.max(knownSince, Math.floor(now / period) * period)
            } else if (limit.algorithm !== "tokenBucket" && next.algorithm === "tokenBucket") {
              // What is that old exactly is gone.
              knownSince = Math.max(knownSince, now - period - margin + 1e-9)
            }
            buckets = next.algorithm === "tokenBucket" && limit.algorithm === "tokenBucket"
              ? [...buckets, { since: now, limit: next.limit }]
              : [{ since: Number.NEGATIVE_INFINITY, limit: next.limit }]
            limit = next
            updates++
            yield* limiter.update([limit])
          }
          const amount = between(1, Math.min(20, limit.limit))
          const admission = yield* limiter.admit({ inputTokens: amount, outputTokens: 0 }, true)
          if (admission._tag === "Admitted") {
            admitted++
            charges.push({ at: now, amount, reservation: admission.reservation })
            check()
          }
          const charge = chance(0.3) ? charges[between(Math.max(0, charges.length - 6), charges.length - 1)] : undefined
          if (charge === undefined) continue
          const used = between(0, 25)
          const settlement = yield* limiter.settle(charge.reservation, { inputTokens: used, outputTokens: 0 })
          if (settlement === "settled") charge.amount = used
          if (chance(0.5)) yield* limiter.complete(charge.reservation)
        }
        // The largest debt, at the lowest limit.
        yield* TestClock.adjust(400 * period)
        const [usage] = yield* limiter.usage
        assert.closeTo(usage!.used, 0, 1e-6, `SEED=${seed}`)
        assert.strictEqual(usage!.enforced, limit.limit)
      }
      if (runs === 1) return
      assert.isAbove(updates, 1)
      assert.isAbove(admitted, 10)
    }), process.env["RUNS"] === undefined ? 120_000 : 24 * 3_600_000)
})
