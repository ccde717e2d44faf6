import { assert, describe, it } from "@effect/vitest"
import { RecentQuantile } from "../../src/internal/quantile.ts"
import { random } from "../laws/schedule.ts"

describe("RecentQuantile", () => {
  it("is the value of its rank among the most recent values, at every moment", () => {
    for (const capacity of [1, 2, 7, 300]) {
      const { between } = random(capacity)
      const quantiles = new RecentQuantile(capacity)
      const all: Array<number> = []
      for (let i = 0; i < 3 * capacity + 5; i++) {
        // Few distinct values, so that equal ones come and go.
        const value = between(0, capacity)
        quantiles.add(value)
        all.push(value)
        const recent = all.slice(-capacity).toSorted((a, b) => a - b)
        assert.strictEqual(quantiles.size, recent.length)
        assert.strictEqual(quantiles.largest, Math.max(...recent))
        for (const q of [0.01, 0.5, 0.9, 0.99, 1]) {
          const value = quantiles.quantile(q)
          const rank = Math.ceil(q * (recent.length + 1))
          if (rank > recent.length) assert.strictEqual(value, Math.max(...recent))
          else assert.isTrue(recent.filter((other) => other <= value).length >= rank)
          if (rank <= recent.length) assert.isTrue(recent.filter((other) => other < value).length < rank)
        }
      }
    }
  })

  it("the next value stays within it as often as it says", () => {
    const { next } = random(3)
    for (const size of [10, 30, 300]) {
      let within = 0
      const rounds = 2000
      for (let round = 0; round < rounds; round++) {
        const quantiles = new RecentQuantile(300)
        for (let i = 0; i < size; i++) quantiles.add(next())
        if (next() <= quantiles.quantile(0.9)) within++
      }
      // Three standard deviations of a share of 0.9 over 2,000 rounds are 0.02; of ten values the tenth covers 10 / 11.
      assert.isAbove(within / rounds, 0.88)
      assert.isBelow(within / rounds, size === 10 ? 0.93 : 0.925)
    }
  })

  it("is 0 without values", () => {
    const quantiles = new RecentQuantile(3)
    assert.strictEqual(quantiles.quantile(0.9), 0)
    assert.strictEqual(quantiles.largest, 0)
    assert.strictEqual(quantiles.size, 0)
  })

  it("keeps no more values than its capacity", () => {
    const quantiles = new RecentQuantile(10)
    for (let i = 0; i < 1000; i++) quantiles.add(i)
    assert.lengthOf(Reflect.get(quantiles, "values"), 10)
    assert.lengthOf(Reflect.get(quantiles, "sorted"), 10)
    assert.strictEqual(quantiles.quantile(0.01), 990)
  })
})
