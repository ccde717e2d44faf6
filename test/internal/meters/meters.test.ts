import { assert, describe, it } from "@effect/vitest"
import type { RateLimiter } from "effect-llm-queue"
import { make, none, type Sent } from "../../../src/internal/meters/meters.ts"

const limit = (options: Partial<RateLimiter.Limit>): RateLimiter.Limit => ({
  type: "tpm",
  limit: 600,
  timePeriod: 60_000,
  price: undefined,
  onExceeded: "wait",
  margin: 0,
  chargedAt: "dispatch",
  algorithm: "slidingWindow",
  burst: undefined,
  headroom: 0,
  quantum: undefined,
  timeZone: "UTC",
  coldStart: false,
  charging: {
    output: "expected",
    combine: "sum",
    inputWeight: 1,
    outputWeight: 1,
    refund: true,
    cachedInput: true,
    refused: false
  },
  ...options
})

const meter = (options: Partial<RateLimiter.Limit>, wall: () => number = () => 0) => {
  const meter = make(limit(options), wall, 0)
  return Object.assign(meter, {
    charge: (amount: number, now: number): Sent => {
      const sent: Sent = { amount, counted: undefined, alsoCounted: none, paced: none, least: undefined }
      meter.send(sent, now)
      meter.date(sent, now)
      return sent
    }
  })
}

describe("meters", () => {
  it("a sliding window counts for its period and its margin", () => {
    const sliding = meter({ margin: 250 })
    assert.strictEqual(sliding.capacity, 600)
    sliding.charge(600, 0)
    assert.strictEqual(sliding.used(0), 600)
    assert.strictEqual(sliding.fitsAt(1, 0, 0), 60_250)
  })

  it("a bucket is the whole limit unless a burst is given, and keeps the headroom back", () => {
    assert.strictEqual(meter({ algorithm: "tokenBucket" }).capacity, 600)
    const bucket = meter({ algorithm: "tokenBucket", burst: 100, headroom: 2000, margin: 1000 })
    assert.strictEqual(bucket.capacity, 80)
    bucket.charge(80, 0)
    // Ten a second, from when it has arrived for certain.
    assert.closeTo(bucket.fitsAt(10, 0, 0), 2000, 1e-3)
  })

  it("a fixed window follows the wall clock", () => {
    const fixed = meter({ algorithm: "fixedWindow", margin: 100 }, () => 59_000)
    fixed.charge(600, 0)
    assert.closeTo(fixed.fitsAt(1, 0, 0), 1100, 1e-3)
  })

  it("a paced limit lets one second's refill through at once, and its limit in a period", () => {
    const paced = meter({ algorithm: "paced", margin: 200 })
    assert.strictEqual(paced.capacity, 600)
    assert.strictEqual(paced.pacing[0]!.capacity, 8)
    assert.strictEqual(meter({ algorithm: "paced", limit: 6 }).pacing[0]!.capacity, 1)
    assert.strictEqual(meter({ algorithm: "paced", burst: 50 }).pacing[0]!.capacity, 50)
    let now = 0
    for (let i = 0; i < 600; i++) {
      now = paced.fitsAt(1, 0, now)
      paced.charge(1, now)
    }
    assert.closeTo(now, 59_200, 1)
    assert.strictEqual(paced.fitsAt(1, 0, now), 60_200)
    // What is used and available is about the limit, not about the pace.
    assert.strictEqual(paced.used(now), 600)
    assert.strictEqual(paced.available(now), 0)
  })

  it("a quantum enforces its share, rounded down, and at least one", () => {
    const quantised = meter({ limit: 65, quantum: 10_000, margin: 100 })
    for (let i = 0; i < 10; i++) quantised.charge(1, 0)
    assert.strictEqual(quantised.fitsAt(1, 0, 0), 10_100)
    assert.strictEqual(quantised.available(0), 55)
    assert.strictEqual(quantised.counting[1]!.capacity, 10)
    assert.strictEqual(meter({ limit: 3, quantum: 1000 }).counting[1]!.capacity, 1)
  })

  it("refunds, give-backs and answers reach all of them", () => {
    const all = meter({ algorithm: "paced", quantum: 10_000 })
    const mark = all.charge(10, 0)
    assert.isTrue(all.adjust(mark, -10, 0))
    for (const each of [...all.counting, ...all.pacing]) assert.strictEqual(each.used(0), 0)
    const bucket = meter({ algorithm: "tokenBucket", margin: 1000 })
    const sent = bucket.charge(600, 0)
    bucket.landed(sent, 0)
    assert.closeTo(bucket.fitsAt(1, 0, 0), 100, 1e-3)
    const late = meter({})
    const expired = late.charge(10, 0)
    assert.isFalse(late.adjust(expired, -10, 60_000))
  })

  it("the provider's word is about the limit itself", () => {
    const paced = meter({ algorithm: "paced" })
    paced.lower(5, 0)
    assert.strictEqual(paced.available(0), 5)
    assert.strictEqual(paced.pacing[0]!.available(0), 10)
    paced.raise(100, 0)
    assert.strictEqual(paced.available(0), 100)
  })

  it("another limit reaches all of them", () => {
    const paced = meter({ algorithm: "paced", quantum: 10_000 })
    paced.setLimit(1200, 0)
    assert.deepStrictEqual([...paced.counting, ...paced.pacing].map(({ capacity }) => capacity), [1200, 200, 20])
    const bucket = meter({ algorithm: "tokenBucket", headroom: 6000 })
    bucket.charge(540, 0)
    bucket.setLimit(60, 0)
    assert.strictEqual(bucket.capacity, 54)
    assert.closeTo(bucket.fitsAt(1, 0, 0), 1000, 1e-3)
    const fixed = meter({ algorithm: "fixedWindow" })
    fixed.setLimit(10, 0)
    assert.strictEqual(fixed.capacity, 10)
  })

  it("a cold start lets one request through, then paces, until a period and its margin have passed", () => {
    for (const algorithm of ["slidingWindow", "fixedWindow"] as const) {
      let now = 0
      const cold = meter({ algorithm, margin: 1000, coldStart: true }, () => 3600_000 + 1000 + now)
      assert.strictEqual(cold.fitsAt(100, 0, 0), 0, algorithm)
      cold.charge(100, 0)
      assert.closeTo(cold.fitsAt(1, 0, 0), 10_100, 1e-2)
      now = 10_101
      const mark = cold.charge(1, now)
      assert.closeTo(cold.fitsAt(1, 0, now), 10_201, 1e-2)
      now = 60_999
      cold.charge(10, now)
      assert.strictEqual(cold.fitsAt(1, 0, now), 61_000)
      now = 62_000
      assert.strictEqual(cold.fitsAt(500, 0, now), now, algorithm)
      cold.adjust(mark, 1, now)
      cold.charge(500, now)
      assert.strictEqual(cold.fitsAt(1, 0, now), now, algorithm)
    }
  })

  it("a cold bucket starts empty but for one request", () => {
    for (const algorithm of ["tokenBucket", "paced"] as const) {
      const cold = meter({ algorithm, coldStart: true })
      assert.strictEqual(cold.fitsAt(30, 0, 0), 0)
      cold.charge(30, 0)
      assert.closeTo(cold.fitsAt(1, 0, 0), 3100, 1e-2, algorithm)
    }
  })

  it("the provider's state ends a cold start", () => {
    const sliding = meter({ coldStart: true })
    sliding.charge(100, 0)
    assert.isAbove(sliding.fitsAt(1, 0, 10), 10)
    sliding.warm(10)
    assert.strictEqual(sliding.fitsAt(500, 0, 10), 10)
    const bucket = meter({ algorithm: "tokenBucket", coldStart: true })
    bucket.warm(0)
    assert.closeTo(bucket.fitsAt(10, 0, 0), 1000, 1e-3)
    bucket.raise(600, 0)
    assert.strictEqual(bucket.fitsAt(600, 0, 0), 0)
  })
})
