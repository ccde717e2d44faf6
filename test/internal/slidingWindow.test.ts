import { assert, describe, it } from "@effect/vitest"
import { exactCharges, type Place, SlidingWindow } from "../../src/internal/slidingWindow.ts"
import { random } from "../laws/schedule.ts"

const used = (window: SlidingWindow, now: number): number => {
  window.expire(now)
  return window.used
}

/** How many elements of the window's arrays a call reads: its cost without a stopwatch. */
const reads = (window: SlidingWindow, call: () => unknown): number => {
  let count = 0
  const counted = <A>(array: Array<A>): Array<A> =>
    new Proxy(array, {
      get: (target, key, receiver) => {
        if (typeof key === "string" && /^\d+$/.test(key)) count++
        return Reflect.get(target, key, receiver)
      }
    })
  const blocks: Array<Record<string, unknown>> = []
  for (let block = Reflect.get(window, "head"); block !== undefined; block = block.next) blocks.push(block)
  const originals = blocks.map(({ amounts, dates }) => [amounts, dates] as const)
  for (const block of blocks) {
    for (const name of ["amounts", "dates"]) block[name] = counted(block[name] as Array<number>)
  }
  call()
  for (const [index, block] of blocks.entries()) [block["amounts"], block["dates"]] = originals[index]!
  // Going from block to block counts too, as much as there is.
  return count + blocks.length
}

describe("SlidingWindow", () => {
  it("a charge counts until just before one period after it, and is gone exactly then", () => {
    for (const [at, period] of [[0, 1000], [12.25, 0.5], [86_400_000, 86_400_000], [1e9 + 0.5, 250.5]] as const) {
      const window = new SlidingWindow(period)
      window.add(at, 3)
      assert.strictEqual(used(window, at), 3)
      assert.strictEqual(window.freedAt(3), at + period)
      assert.strictEqual(used(window, at + period - 2 ** -10), 3)
      assert.strictEqual(used(window, at + period), 0)
      assert.strictEqual(window.freedAt(1), Number.POSITIVE_INFINITY)
    }
  })

  it("charges of one instant leave together, those of another do not", () => {
    const window = new SlidingWindow(100)
    window.add(0, 1)
    window.add(0, 2)
    window.add(1, 4)
    assert.strictEqual(used(window, 99), 7)
    assert.strictEqual(used(window, 100), 4)
    assert.strictEqual(used(window, 101), 0)
  })

  it("a charge after everything has left starts afresh", () => {
    const window = new SlidingWindow(10)
    for (let i = 0; i < 2000; i++) {
      const at = i * 20
      assert.strictEqual(used(window, at), 0)
      const place = window.add(at, 2)
      assert.isTrue(window.adjust(at + 9, place, -1))
      assert.strictEqual(window.freedAt(1), at + 10)
    }
  })

  it("a refund keeps the date of its charge and dies with it", () => {
    const window = new SlidingWindow(100)
    const place = window.add(0, 10)
    window.add(50, 1)
    assert.isTrue(window.adjust(99, place, -7))
    assert.strictEqual(used(window, 99), 4)
    assert.strictEqual(used(window, 100), 1)
    assert.isFalse(window.adjust(100, place, -3))
    assert.strictEqual(used(window, 100), 1)
    assert.strictEqual(used(window, 150), 0)
  })

  it("a debt counts from the date of its charge, above any limit", () => {
    const window = new SlidingWindow(100)
    const place = window.add(0, 10)
    window.add(20, 5)
    assert.isTrue(window.adjust(60, place, 1000))
    assert.strictEqual(used(window, 60), 1015)
    assert.strictEqual(window.freedAt(1010), 100)
    assert.strictEqual(window.freedAt(1011), 120)
    assert.strictEqual(used(window, 100), 5)
  })

  it("says when an amount will have been freed, over any number of charges", () => {
    const { between } = random(7)
    for (const count of [1, 255, 256, 257, 513, 3000]) {
      const window = new SlidingWindow(10_000)
      const charges = Array.from({ length: count }, (_, i) => ({ date: i * 3, amount: between(0, 4) }))
      const places = charges.map(({ amount, date }) => window.add(date, amount))
      for (let i = 0; i < count; i += 5) {
        const by = between(-charges[i]!.amount, 3)
        assert.isTrue(window.adjust(count * 3, places[i]!, by))
        charges[i]!.amount += by
      }
      for (const gone of [0, 1, Math.floor(count / 2), count - 1]) {
        window.expire(gone * 3 + 10_000 - 1)
        const left = charges.slice(gone)
        const total = left.reduce((sum, { amount }) => sum + amount, 0)
        assert.strictEqual(window.used, total)
        for (const amount of [1, Math.ceil(total / 3), total, total + 1]) {
          let sum = 0
          const last = left.find((charge) => (sum += charge.amount) >= amount)
          if (amount < 1) continue
          const expected = last === undefined ? Number.POSITIVE_INFINITY : last.date + 10_000
          assert.strictEqual(window.freedAt(amount), expected)
        }
      }
    }
  })

  it("keeps 32,768 charges apart, so each leaves on its own", () => {
    const period = exactCharges * 2
    const window = new SlidingWindow(period)
    for (let i = 0; i < exactCharges; i++) window.add(i, 1)
    for (let i = 0; i < exactCharges; i++) {
      assert.strictEqual(used(window, period + i - 0.5), exactCharges - i)
      assert.strictEqual(used(window, period + i), exactCharges - i - 1)
    }
  })

  it("above 32,768 charges some leave later by at most period / 32,768, none earlier, and what is kept is bounded", () => {
    const { between, chance, next } = random(11)
    const period = 60_000
    const tolerance = period / exactCharges
    const window = new SlidingWindow(period)
    const charges: Array<{ readonly date: number; amount: number; readonly place: Place }> = []
    let now = 0
    let gone = 0
    let goneForCertain = 0
    let exact = 0
    let certain = 0
    const check = () => {
      for (; gone < charges.length && charges[gone]!.date + period <= now; gone++) exact -= charges[gone]!.amount
      while (goneForCertain < gone && charges[goneForCertain]!.date + period + tolerance <= now) {
        certain -= charges[goneForCertain++]!.amount
      }
      window.expire(now)
      if (window.used < exact) assert.fail(`under-counted at ${now}`)
      if (window.used > certain) assert.fail(`late by more than the resolution at ${now}`)
    }
    for (let i = 0; i < 160_000; i++) {
      now += next() * 1.2
      check()
      const amount = between(0, 9)
      charges.push({ date: now, amount, place: window.add(now, amount) })
      exact += amount
      certain += amount
      if (chance(0.3)) {
        const charge = charges[between(gone, charges.length - 1)]!
        const by = between(-charge.amount, 9)
        if (!window.adjust(now, charge.place, by)) assert.fail(`a live charge cannot be changed at ${now}`)
        charge.amount += by
        exact += by
        certain += by
      }
    }
    let kept = 0
    for (let block = Reflect.get(window, "head"); block !== undefined; block = block.next) kept += block.dates.length
    assert.isAbove(charges.length - gone, 2 * exactCharges)
    assert.isAtMost(kept, 2 * exactCharges + 512)
    while (goneForCertain < charges.length) {
      now += between(1, 100)
      check()
    }
    assert.strictEqual(window.used, 0)
  })

  it("adding, changing and expiring one charge cost the same whatever else there is", () => {
    const filled = (count: number) => {
      const window = new SlidingWindow(100_000)
      const places = Array.from({ length: count }, (_, i) => window.add(i, 1))
      return { window, places }
    }
    const cost = (count: number, operation: "add" | "adjust" | "expire") => {
      const { places, window } = filled(count)
      const blocks = reads(window, () => undefined)
      return reads(window, () => {
        if (operation === "add") window.add(count, 1)
        else if (operation === "adjust") window.adjust(count, places[count >> 1]!, -1)
        else window.expire(100_000)
      }) - blocks
    }
    for (const operation of ["add", "adjust", "expire"] as const) {
      assert.strictEqual(cost(30_000, operation), cost(10, operation), operation)
      assert.isAtMost(cost(30_000, operation), 8, operation)
    }
  })

  it("asking when an amount is freed looks at the blocks and into one of them", () => {
    const window = new SlidingWindow(100_000)
    for (let i = 0; i < 30_000; i++) window.add(i, 1)
    for (const amount of [1, 100, 15_000, 30_000, 30_001]) {
      assert.isAtMost(reads(window, () => window.freedAt(amount)), 30_000 / 256 + 2 * 256 + 2, `${amount}`)
    }
  })
})
