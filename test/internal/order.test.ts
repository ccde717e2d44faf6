import { assert, describe, it } from "@effect/vitest"
import type { Entry } from "../../src/internal/entry.ts"
import * as order from "../../src/internal/order.ts"
import * as random from "../model/random.ts"

const entries = (seed: number, count: number): Array<Entry> => {
  const next = random.make(seed)
  return Array.from({ length: count }, (_, sequence) =>
    ({
      sequence,
      tenant: next.pick(["a", "b", undefined]),
      state: next.int(0, 9) === 0 ? "dispatched" : "waiting",
      headStart: next.int(0, 2) * 5,
      submittedAt: next.int(0, 19),
      cost: { requests: 1, inputTokens: next.int(0, 99), outputTokens: next.int(0, 9) }
    }) as unknown as Entry)
}

const place = ({ headStart, sequence, state, submittedAt }: Entry): ReadonlyArray<number> => [
  state === "dispatched" ? 0 : 1,
  submittedAt - headStart,
  sequence!
]

const compare = (a: Entry, b: Entry): number => {
  const other = place(b)
  for (const [i, each] of place(a).entries()) if (each !== other[i]) return each - other[i]!
  return 0
}

describe("the order of a list", () => {
  it("has the first ones, whatever comes behind", () => {
    for (let seed = 0; seed < 200; seed++) {
      const all = entries(seed, seed * 3)
      for (const count of [0, 1, 10, 1000]) {
        assert.deepStrictEqual(order.first(all, count), all.toSorted(compare).slice(0, count), `seed ${seed}`)
      }
    }
  })

  it("counts what of its own tenant goes before each", () => {
    for (let seed = 0; seed < 200; seed++) {
      const all = entries(seed, 100).filter(({ state }) => state === "waiting")
      const some = all.filter((_, i) => (i + seed) % 7 === 0).toSorted(compare)
      const sums = order.before(some, all)
      for (const entry of some) {
        const ahead = all.filter((other) => other.tenant === entry.tenant && compare(other, entry) < 0)
        assert.deepInclude(sums.get(entry), {
          requests: ahead.length,
          inputTokens: ahead.reduce((sum, { cost }) => sum + cost.inputTokens, 0),
          maxOutputTokens: ahead.reduce((sum, { cost }) => sum + cost.outputTokens, 0)
        }, `seed ${seed}`)
      }
    }
  })
})
