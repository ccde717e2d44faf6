import { assert, describe, it } from "@effect/vitest"
import { utilisation } from "./measure.ts"

const range = { limit: 60, period: 60, from: 120, to: 1320 }

/** Bursts of the whole limit, so far apart. */
const bursts = (apart: number, until = 1320) =>
  Array.from(
    { length: Math.floor(until / apart) + 1 },
    (_, burst) => Array.from({ length: 60 }, () => ({ at: burst * apart, amount: 1 }))
  ).flat()

describe("utilisation", () => {
  it("of bursts is exact, wherever they fall in what is looked at", () => {
    assert.closeTo(utilisation(bursts(60), range), 1, 1e-9)
    assert.closeTo(utilisation(bursts(66), range), 60 / 66, 1e-9)
    assert.closeTo(utilisation(bursts(66), { ...range, from: 131, to: 1319 }), 60 / 66, 1e-9)
  })

  it("of even charges is their rate", () => {
    const even = Array.from({ length: 660 }, (_, i) => ({ at: 2 * i, amount: 1 }))
    assert.closeTo(utilisation(even, range), 0.5, 1e-9)
  })

  it("counts amounts, and not charges", () => {
    const weighted = Array.from({ length: 660 }, (_, i) => ({ at: 2 * i, amount: i % 2 === 0 ? 3 : 1 }))
    assert.closeTo(utilisation(weighted, range), 1, 0.002)
  })

  it("sees a client that stops", () => {
    assert.isBelow(utilisation(bursts(60, 700), range), 0.62)
    assert.isBelow(utilisation(bursts(60).filter(({ at }) => at < 600 || at > 900), range), 0.87)
  })

  it("sees a client that stops one and a half periods before the end", () => {
    const even = (until: number) => Array.from({ length: until }, (_, at) => ({ at, amount: 1 }))
    const minutes = { limit: 60, period: 60, from: 120, to: 720 }
    assert.closeTo(utilisation(even(720), minutes), 1, 1e-9)
    assert.closeTo(utilisation(even(630), minutes), 0.85, 0.01)
    assert.closeTo(utilisation(even(612), minutes), 0.82, 0.01)
  })

  it("of next to nothing is next to nothing", () => {
    assert.strictEqual(utilisation([], range), 0)
    assert.closeTo(utilisation([{ at: 500, amount: 6 }], range), 0.005, 1e-9)
  })
})
