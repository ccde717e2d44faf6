import { assert, describe, it } from "@effect/vitest"
import * as bound from "./bound.ts"

const percent = (fraction: number, digits = 2) => (fraction * 100).toFixed(digits)

describe("the bounds of zero refusals", () => {
  const minute = { period: 60, limit: 500 }

  it("in a sliding minute are those that were measured", () => {
    assert.deepStrictEqual(
      [0.05, 0.2, 1, 5].map((jitter) => percent(bound.sliding({ ...minute, jitter }), 3)),
      ["99.917", "99.668", "98.361", "92.308"]
    )
  })

  it("in a sliding minute allow the jitter that a goal leaves", () => {
    for (const [goal, jitter] of [[0.999, 0.06], [0.995, 0.3], [0.99, 0.61], [0.98, 1.22]] as const) {
      assert.closeTo(bound.sliding({ ...minute, jitter }), goal, 0.0001)
    }
  })

  it("lose up to the largest charge in a window that counts tokens", () => {
    const tokens = { period: 60, limit: 30_000, jitter: 0.2 }
    assert.closeTo(bound.sliding(tokens) - bound.sliding({ ...tokens, largest: 300 }), 0.01, 1e-12)
  })

  it("in a bucket of one request need the spacing to grow by the jitter", () => {
    const one = (limit: number, jitter: number) =>
      percent(bound.bucket({ limit, period: 60, jitter, capacity: 1, largest: 1 }))
    assert.deepStrictEqual([one(60, 0.05), one(60, 0.2)], ["95.24", "83.33"])
    assert.deepStrictEqual([one(120, 0.05), one(120, 0.2)], ["90.91", "71.43"])
  })

  it("in a bucket with room for the jitter are the whole limit", () => {
    const capacity = (capacity: number) => bound.bucket({ limit: 60, period: 60, jitter: 0.2, capacity })
    assert.strictEqual(capacity(60), 1)
    assert.strictEqual(capacity(1.2), 1)
    assert.isBelow(capacity(1.19), 1)
  })

  it("in fixed windows depend on whether the phase is known", () => {
    assert.strictEqual(bound.fixed({ ...minute, jitter: 0.2, phaseKnown: true }), 1)
    assert.strictEqual(percent(bound.fixed({ ...minute, jitter: 0.2, phaseKnown: false }), 3), "99.668")
  })

  it("in quanta are those of the quantum, in whole requests", () => {
    const quantum = (limit: number, quantum: number, jitter: number) =>
      percent(bound.quantised({ limit, period: 60, quantum, jitter }), 1)
    assert.deepStrictEqual([quantum(600, 10, 0.2), quantum(500, 10, 0.2)], ["98.0", "97.6"])
    assert.deepStrictEqual([quantum(600, 1, 0.2), quantum(500, 1, 0.2)], ["83.3", "80.0"])
    assert.deepStrictEqual([quantum(600, 1, 0.05), quantum(500, 1, 0.05)], ["95.2", "91.4"])
  })

  it("of slots lose one round trip", () => {
    assert.strictEqual(percent(bound.concurrency({ residency: 5, roundTrip: 0.2 })), "96.15")
  })

  it("of reservations that are given back are those of what is reserved for nothing", () => {
    const of = (maximum: number) => bound.refundCap({ period: 60, residency: 10, used: 800, unused: maximum - 300 })
    assert.strictEqual(of(4096), 1)
    assert.strictEqual(percent(of(16_384), 0), "30")
  })

  it("of reservations that are not given back are what was used of them", () => {
    assert.strictEqual(percent(bound.noRefundCap({ used: 1420, charged: 8192 + 1100 }), 1), "15.3")
  })

  it("of usage that is debited at the end lose the residency too", () => {
    const held = { ...minute, jitter: 0.2, residency: 0.6, reserved: 1, used: 1 }
    assert.strictEqual(percent(bound.reserving({ ...held, dated: "end" }), 3), percent(60 / 60.8, 3))
    assert.strictEqual(bound.reserving({ ...held, dated: "start" }), bound.sliding({ ...minute, jitter: 0.2 }))
    assert.isBelow(
      bound.reserving({ ...held, reserved: 2, dated: "start" }),
      bound.reserving({ ...held, reserved: 1, dated: "start" })
    )
  })
})
