/**
 * More charges than a window keeps apart: above 32,768 of them some leave later by at most period / 32,768, and none
 * leaves earlier. Random as in `neverOver.test.ts`, and replayed in the same way by `SEED`.
 */
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { RateLimiter } from "effect-llm-queue"
import { TestClock } from "effect/testing"
import { limit as makeLimit } from "../limit.ts"
import { random } from "./schedule.ts"

const seed = Number(process.env["SEED"] ?? Math.floor(Math.random() * 1e9))
const period = 60_000
const tolerance = period / 32_768

interface Charge {
  readonly date: number
  amount: number
  readonly reservation: RateLimiter.Reservation
}

describe("a window with more than 32,768 charges", () => {
  it.effect(
    "never lets a dispatch over its limit, and holds none back for longer than the resolution",
    () =>
      Effect.gen(function*() {
        const { between, chance } = random(seed)
        const limit = 300_000
        const service = yield* RateLimiter.RateLimiter
        const limiter = yield* service.make("model", [
          makeLimit("tpm", limit, { timePeriod: period })
        ])
        const charges: Array<Charge> = []
        let gone = 0
        let exact = 0
        let certainlyGone = 0
        let held = 0
        let now = 0
        let blocked = 0
        let most = 0
        for (let i = 0; i < 130_000; i++) {
          const pause = between(1, 4) / 4
          now += pause
          yield* TestClock.adjust(pause)
          while (gone < charges.length && charges[gone]!.date + period <= now) exact -= charges[gone++]!.amount
          while (certainlyGone < gone && charges[certainlyGone]!.date + period + tolerance <= now) {
            held -= charges[certainlyGone++]!.amount
          }
          const cost = between(0, 7)
          const admission = yield* limiter.admit({ inputTokens: cost, outputTokens: 0 }, true)
          if (admission._tag === "Admitted") {
            if (exact + cost > limit) assert.fail(`SEED=${seed}: ${exact} + ${cost} at ${now}`)
            charges.push({ date: now, amount: cost, reservation: admission.reservation })
            exact += cost
            held += cost
            most = Math.max(most, charges.length - gone)
          } else {
            blocked++
            if (held + cost <= limit) assert.fail(`SEED=${seed}: ${held} + ${cost} is held back at ${now}`)
          }
          if (chance(0.2)) {
            const charge = charges[between(gone, charges.length - 1)]
            if (charge === undefined) continue
            const used = between(0, 8)
            const settlement = yield* limiter.settle(charge.reservation, { inputTokens: used, outputTokens: 0 })
            if (settlement === "expired") assert.fail(`SEED=${seed}: a charge of ${charge.date} is gone at ${now}`)
            if (settlement !== "settled") continue
            exact += used - charge.amount
            held += used - charge.amount
            charge.amount = used
          }
        }
        assert.isAbove(most, 50_000)
        assert.isAbove(blocked, 1000)
        yield* TestClock.adjust(period + 2)
        assert.strictEqual((yield* limiter.usage)[0]?.used, 0)
      }),
    120_000
  )
})
