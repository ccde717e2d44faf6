import { assert, describe, it } from "@effect/vitest"
import type { Mark } from "../../../src/internal/meters/meter.ts"
import { SlidingMeter } from "../../../src/internal/meters/slidingMeter.ts"
import { random } from "../../laws/schedule.ts"

/** Clocks tell whole nanoseconds. */
const nanos = (millis: number): number => Math.round(millis * 1e6) / 1e6

describe("SlidingMeter", () => {
  it("no window of a server has too much in it, whatever the delays", () => {
    let full = 0
    for (let seed = 1; seed <= 300; seed++) {
      const { between, chance, next, pick } = random(seed)
      const capacity = pick([1, 7, 500])
      const period = 1000
      const jitter = pick([0, 20, 300, 1500])
      const twoPoint = chance(0.5)
      const meter = new SlidingMeter({ capacity, length: period + jitter })
      const arrivals: Array<{ readonly at: number; readonly amount: number; readonly net: number }> = []
      const later: Array<{ readonly at: number; readonly run: (now: number) => void }> = []
      let now = 0
      for (let i = 0; i < 80; i++) {
        if (chance(0.2)) now = nanos(now + next() * period)
        const amount = between(1, Math.max(1, capacity / 4))
        while (true) {
          later.sort((a, b) => a.at - b.at)
          const at = meter.fitsAt(amount, 0, now)
          if (later.length === 0 || later[0]!.at > at) {
            now = at
            break
          }
          const { at: due, run } = later.shift()!
          now = nanos(Math.max(now, due))
          run(now)
        }
        const mark = meter.charge(amount, now)
        const at = nanos(now + (twoPoint ? jitter * between(0, 1) : jitter * next()))
        const refund = chance(0.5) ? between(0, amount) : 0
        const heard = nanos(at + next() * 2 * period)
        arrivals.push({ at, amount, net: amount - refund })
        if (refund > 0) later.push({ at: heard, run: (now) => void meter.adjust(mark, -refund, now) })
      }
      for (const last of arrivals) {
        let sum = 0
        for (const other of arrivals) {
          if (other.at > last.at - period + 1e-7 && other.at <= last.at) {
            sum += other === last
              ? other.amount
              : other.net
          }
        }
        if (sum > capacity) assert.fail(`seed ${seed}: ${sum} in one period`)
        if (sum === capacity) full++
      }
    }
    assert.isAbove(full, 1000)
  })

  it("the instant is the first at which it fits, by the definition", () => {
    for (let seed = 1; seed <= 100; seed++) {
      const { between, chance, next } = random(seed)
      const capacity = between(1, 30)
      const meter = new SlidingMeter({ capacity, length: 100 })
      const charges: Array<{ readonly at: number; amount: number; readonly mark: Mark }> = []
      const used = (t: number) => charges.reduce((sum, { amount, at }) => at + 100 > t + 1e-7 ? sum + amount : sum, 0)
      let now = 0
      for (let i = 0; i < 150; i++) {
        now = nanos(now + next() * 20)
        const amount = between(1, capacity)
        const held = chance(0.3) ? between(0, capacity) : 0
        assert.strictEqual(meter.used(now), used(now))
        assert.strictEqual(meter.available(now), capacity - used(now))
        const at = meter.fitsAt(amount, held, now)
        if (held + amount > capacity) assert.strictEqual(at, Number.POSITIVE_INFINITY)
        else {
          assert.isAtMost(used(at) + held + amount, capacity)
          if (at > now) assert.isAbove(used(at - 1e-3) + held + amount, capacity)
        }
        if (chance(0.7)) charges.push({ at: now, amount, mark: meter.charge(amount, now) })
        const charge = charges[between(0, charges.length - 1)]
        if (charge !== undefined && chance(0.5)) {
          const by = between(-charge.amount, 3)
          const counts = charge.at + 100 > now + 1e-7
          assert.strictEqual(meter.adjust(charge.mark, by, now), counts)
          if (counts) charge.amount += by
        }
      }
    }
  })

  it("fractions fill the capacity, keep nobody waiting for ever, and leave nothing behind", () => {
    const meter = new SlidingMeter({ capacity: 1, length: 100 })
    let now = 0
    for (let i = 0; i < 5000; i++) {
      const at = meter.fitsAt(0.1, 0, now)
      assert.isTrue(Number.isFinite(at))
      now = at
      assert.strictEqual(meter.fitsAt(0.1, 0, now), now)
      meter.charge(0.1, now)
    }
    assert.strictEqual(now, 499 * 100)
    assert.strictEqual(meter.fitsAt(1, 0, now), now + 100)
    assert.strictEqual(meter.used(now + 100), 0)
  })

  it("the rounding of fractions neither refuses nor delays", () => {
    const meter = new SlidingMeter({ capacity: 0.6, length: 100 })
    meter.charge(0.1, 0)
    meter.charge(0.2, 1)
    // 0.1 + 0.2 + 0.3 is more than 0.6.
    assert.strictEqual(meter.fitsAt(0.3, 0, 2), 2)
    meter.charge(0.3, 2)
    assert.strictEqual(meter.fitsAt(0.1, 0, 2), 100)
    assert.strictEqual(meter.fitsAt(0.6, 0, 2), 102)
    const { next } = random(3)
    let now = 2
    for (let i = 0; i < 2000; i++) {
      now = nanos(now + next())
      meter.charge(next() / 3, now)
    }
    assert.isAbove(meter.used(now), 20)
    assert.strictEqual(meter.used(now + 100), 0)
  })

  it("more than the capacity fits when nothing else counts", () => {
    const meter = new SlidingMeter({ capacity: 10, length: 100 })
    meter.charge(2, 0)
    meter.charge(3, 40)
    meter.setCapacity(4)
    assert.strictEqual(meter.available(50), -1)
    assert.strictEqual(meter.fitsAt(6, 0, 50), 140)
    assert.strictEqual(meter.fitsAt(6, 1, 50), Number.POSITIVE_INFINITY)
    assert.strictEqual(meter.fitsAt(1, 0, 50), 100)
    meter.setCapacity(6)
    assert.strictEqual(meter.fitsAt(1, 0, 50), 50)
    assert.strictEqual(meter.fitsAt(9, 0, 140), 140)
  })

  it("what others have used counts for a whole length, and goes first when there is more again", () => {
    const meter = new SlidingMeter({ capacity: 10, length: 100 })
    meter.charge(3, 0)
    meter.lower(8, 10)
    assert.strictEqual(meter.available(10), 7)
    meter.lower(5, 10)
    meter.lower(1, 50)
    assert.strictEqual(meter.available(50), 1)
    assert.strictEqual(meter.available(100), 4)
    // Those dated 10 go first, so the others stay until 150.
    meter.raise(7, 100)
    assert.strictEqual(meter.available(100), 7)
    assert.strictEqual(meter.available(149), 7)
    assert.strictEqual(meter.available(150), 10)
    meter.raise(100, 150)
    assert.strictEqual(meter.available(150), 10)
  })

  it("own charges are certain: the provider's word does not take them back", () => {
    const meter = new SlidingMeter({ capacity: 10, length: 100 })
    meter.charge(6, 0)
    meter.lower(3, 10)
    meter.raise(10, 20)
    assert.strictEqual(meter.available(20), 4)
    meter.raise(2, 20)
    assert.strictEqual(meter.available(20), 4)
  })

  it("any number of words from the provider is kept in bounded memory, and none of it is forgotten early", () => {
    const meter = new SlidingMeter({ capacity: 100_000, length: 1e6 })
    for (let i = 1; i <= 50_000; i++) {
      meter.lower(100_000 - i, i)
      assert.strictEqual(meter.available(i), 100_000 - i)
      assert.isAtMost((Reflect.get(meter, "phantoms") as ReadonlyArray<unknown>).length, 1025)
    }
    meter.raise(60_000, 50_000)
    assert.strictEqual(meter.available(50_000), 60_000)
    meter.raise(100_000, 50_000)
    assert.strictEqual(meter.available(50_000), 100_000)
    for (let i = 0; i < 50_000; i++) meter.lower(99_999, 60_000 + i * 2e6)
    assert.isAtMost((Reflect.get(meter, "phantoms") as ReadonlyArray<unknown>).length, 1025)
  })

  it("100,000 charges leave nothing behind", () => {
    const meter = new SlidingMeter({ capacity: 100, length: 1000 })
    let now = 0
    for (let i = 0; i < 100_000; i++) {
      now = meter.fitsAt(3, 0, now)
      meter.adjust(meter.charge(3, now), -1.5, now)
    }
    assert.isAtMost(meter.used(now), 100)
    assert.strictEqual(meter.used(now + 1000), 0)
    let kept = 0
    const window: object = Reflect.get(meter, "window")
    for (let block = Reflect.get(window, "head"); block !== undefined; block = block.next) kept += block.dates.length
    assert.isAtMost(kept, 600)
  })
})
