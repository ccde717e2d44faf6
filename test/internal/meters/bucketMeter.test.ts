import { assert, describe, it } from "@effect/vitest"
import { BucketMeter } from "../../../src/internal/meters/bucketMeter.ts"
import type { Mark } from "../../../src/internal/meters/meter.ts"
import { type Random, random } from "../../laws/schedule.ts"

/** What reached a server: a charge at `at`, or a refund (a negative amount). */
interface Event {
  readonly at: number
  readonly amount: number
}

/** A server's bucket over everything that reached it. Returns the least that was left after a charge. */
const leastLeft = (events: ReadonlyArray<Event>, burst: number, rate: number): number => {
  let level = burst
  let at = Number.NEGATIVE_INFINITY
  let least = Number.POSITIVE_INFINITY
  // Of one instant in their order: what was sent because a refund was heard of comes after it.
  for (const event of events.toSorted((a, b) => a.at - b.at)) {
    level = Math.min(burst, level + rate * (event.at - at))
    at = event.at
    level = Math.min(burst, level - event.amount)
    if (event.amount > 0) least = Math.min(least, level)
  }
  return least
}

/** Delays from 0 to `jitter`, of several kinds. */
const delays = ({ next, pick }: Random, jitter: number): (sent: number) => number => {
  const kind = pick(["any", "none or all", "all", "stalls"])
  const stall = jitter * (1 + 3 * next())
  return (sent) => {
    if (kind === "any") return jitter * next()
    if (kind === "none or all") return next() < 0.5 ? 0 : jitter
    if (kind === "all") return jitter
    // Everything that was sent up to `jitter` before a stall ends arrives when it ends.
    const end = Math.ceil(sent / stall) * stall
    return end - sent <= jitter ? end - sent : 0
  }
}

interface Sent {
  readonly mark: Mark
  readonly sent: number
  latest: number
  net: number
  /** Its usage has been more than expected: it is not changed again. */
  grown: boolean
}

/** What is surely left: the definition over all charges, each as late as it may arrive. */
const surelyLeft = (charges: ReadonlyArray<Sent>, burst: number, rate: number, now: number): number => {
  const until = (latest: number) => Math.min(latest, now)
  let least = Number.POSITIVE_INFINITY
  for (const from of [now, ...charges.map(({ latest }) => until(latest))]) {
    let left = burst + rate * (now - from)
    for (const charge of charges) if (until(charge.latest) >= from) left -= charge.net
    least = Math.min(least, left)
  }
  return least
}

describe("BucketMeter", () => {
  it("no server refuses, whatever the delays, refunds and answers", () => {
    let refunds = 0
    let tight = 0
    for (let seed = 1; seed <= 300; seed++) {
      const rng = random(seed)
      const { between, chance, next, pick } = rng
      const burst = pick([1, 3, 10, 1000])
      const rate = burst / pick([10, 1000, 60_000])
      const jitter = pick([0, 0.2, 1, 3]) * Math.min(burst, 1) / rate
      const delay = delays(rng, jitter)
      const answers = chance(0.7)
      const meter = new BucketMeter({ burst, rate, margin: jitter, now: 0 })
      const events: Array<Event> = []
      const later: Array<{ readonly at: number; readonly run: (now: number) => void }> = []
      let now = 0
      for (let i = 0; i < 120; i++) {
        if (chance(0.1)) now += next() * 3 * burst / rate
        const amount = chance(0.3) ? burst * next() : between(1, Math.max(1, burst / 10))
        while (true) {
          later.sort((a, b) => a.at - b.at)
          const at = meter.fitsAt(amount, 0, now)
          if (later.length > 0 && later[0]!.at <= at) {
            const { at: due, run } = later.shift()!
            now = Math.max(now, due)
            run(now)
            continue
          }
          now = at
          break
        }
        const mark = meter.charge(amount, now)
        const arrived = now + delay(now)
        events.push({ at: arrived, amount })
        if (!answers) continue
        // Some answers are immediate, and some refunds are heard of much later than they happened.
        const answered = arrived + (chance(0.3) ? 0 : next() * 5 / rate)
        later.push({ at: answered, run: (now) => meter.landed(mark, now) })
        if (chance(0.6)) {
          const refund = amount * next()
          const refunded = arrived + (answered - arrived) * (chance(0.5) ? 0 : next())
          events.push({ at: refunded, amount: -refund })
          const heard = answered + (chance(0.5) ? 0 : next() * 3 * burst / rate)
          later.push({ at: heard, run: (now) => void meter.adjust(mark, -refund, now) })
          refunds++
        }
      }
      const least = leastLeft(events, burst, rate)
      if (least < 1e-6 * burst) tight++
      if (least < -1e-6) assert.fail(`seed ${seed}: the server had ${-least} too little`)
    }
    assert.isAbove(refunds, 5000)
    assert.isAbove(tight, 50)
  })

  it("what is available is what is surely left, and the instant is the first at which it is enough", () => {
    for (let seed = 1; seed <= 80; seed++) {
      const { between, chance, next, pick } = random(seed)
      const burst = pick([4, 50])
      const rate = pick([0.01, 1])
      const jitter = pick([0, 0.5, 4, 20]) / rate
      const meter = new BucketMeter({ burst, rate, margin: jitter, now: 0 })
      const charges: Array<Sent> = []
      const check = (now: number) => {
        const left = surelyLeft(charges, burst, rate, now)
        assert.closeTo(meter.available(now), left, 1e-6, `seed ${seed}`)
        assert.closeTo(meter.used(now), meter.capacity - meter.available(now), 1e-9)
      }
      let now = 0
      for (let i = 0; i < 80; i++) {
        if (chance(0.6)) now += next() * pick([0.5, 2, 10]) / rate
        check(now)
        const index = between(0, charges.length)
        const charge = charges[index]
        const isPending = charge !== undefined && charge.latest > now
        if (charge === undefined || chance(0.5)) {
          const amount = between(1, burst)
          const fits = meter.fitsAt(amount, 0, now)
          assert.isAtMost(fits === now ? 0 : amount, Math.max(0, surelyLeft(charges, burst, rate, fits) + 1e-6))
          if (fits > now) {
            const before = Math.max(now, fits - 1e-3)
            assert.isBelow(surelyLeft(charges, burst, rate, before), amount)
          }
          if (chance(0.8)) now = fits
          // A charge that does not fit is made all the same.
          charges.push({ mark: meter.charge(amount, now), sent: now, latest: now + jitter, net: amount, grown: false })
        } else if (charge.grown) {
          continue
        } else if (chance(0.4)) {
          meter.landed(charge.mark, now)
          charge.latest = Math.min(charge.latest, now)
        } else if (charge.net > 0 && chance(0.7)) {
          const by = -charge.net * pick([0.25, 1])
          const changed = meter.adjust(charge.mark, by, now)
          const before = surelyLeft(charges, burst, rate, now)
          charge.net += by
          if (!changed) assert.closeTo(surelyLeft(charges, burst, rate, now), before, 1e-9)
        } else {
          const by = between(1, 5)
          assert.isTrue(meter.adjust(charge.mark, by, now))
          if (isPending) charge.net += by
          else {
            charges.push({ mark: charge.mark, sent: now, latest: now, net: by, grown: true })
            charge.grown = true
          }
        }
        check(now)
      }
    }
  })

  it("after idleness all of the burst goes at once, and then nothing until the margin has passed", () => {
    const meter = new BucketMeter({ burst: 10, rate: 1, margin: 5, now: 0 })
    for (let i = 0; i < 10; i++) {
      assert.strictEqual(meter.fitsAt(1, 0, 100), 100)
      meter.charge(1, 100)
    }
    assert.closeTo(meter.fitsAt(1, 0, 100), 106, 1e-5)
  })

  it("uses all of the rate, whatever the margin, when requests are smaller than the bucket", () => {
    for (const margin of [0, 1, 50, 90]) {
      const meter = new BucketMeter({ burst: 100, rate: 1, margin, now: 0 })
      let now = 0
      for (let i = 0; i < 5000; i++) {
        now = meter.fitsAt(2, 0, now)
        meter.charge(2, now)
      }
      assert.closeTo(now, 10_000 - 100 + margin, 2 + 1e-3, `margin ${margin}`)
    }
  })

  it("an answer ends the doubt about when a charge arrived", () => {
    const meter = new BucketMeter({ burst: 4, rate: 1, margin: 100, now: 0 })
    const mark = meter.charge(4, 0)
    assert.closeTo(meter.fitsAt(1, 0, 10), 101, 1e-5)
    meter.landed(mark, 10)
    meter.landed(mark, 10)
    assert.closeTo(meter.fitsAt(1, 0, 10), 11, 1e-5)
    assert.strictEqual(meter.used(10), 4)
  })

  it("reservations without a date count, and only an event can make room beside them", () => {
    const meter = new BucketMeter({ burst: 10, rate: 1, now: 0 })
    meter.charge(5, 0)
    assert.strictEqual(meter.fitsAt(2, 3, 0), 0)
    assert.closeTo(meter.fitsAt(4, 3, 0), 2, 1e-5)
    assert.strictEqual(meter.fitsAt(4, 7, 0), Number.POSITIVE_INFINITY)
    assert.strictEqual(meter.fitsAt(11, 1, 0), Number.POSITIVE_INFINITY)
  })

  it("keeps the headroom back from small requests, and gives it whole to a large one that waits for it", () => {
    const meter = new BucketMeter({ burst: 10, rate: 1, headroom: 4, now: 0 })
    assert.strictEqual(meter.capacity, 6)
    assert.strictEqual(meter.available(1000), 6)
    meter.charge(6, 1000)
    assert.closeTo(meter.fitsAt(6, 0, 1000), 1006, 1e-5)
    assert.closeTo(meter.fitsAt(8, 0, 1000), 1008, 1e-5)
    // A refund while it waits does not take away what has been refilled above the capacity.
    const at = 1007
    assert.strictEqual(meter.available(at), 6)
    assert.closeTo(meter.fitsAt(8, 0, at), 1008, 1e-5)
    meter.charge(8, 1008.00001)
    assert.closeTo(meter.available(1008.00001), -2, 1e-3)
  })

  it("a small request forgets what was refilled above the capacity", () => {
    const meter = new BucketMeter({ burst: 10, rate: 1, headroom: 4, now: 0 })
    meter.charge(1, 1000)
    assert.strictEqual(meter.available(1000), 5)
    assert.closeTo(meter.fitsAt(10, 0, 1000), 1005, 1e-5)
  })

  it("half of a bucket and one unit stay usable, however much headroom is asked for", () => {
    assert.strictEqual(new BucketMeter({ burst: 10, rate: 1, headroom: 100, now: 0 }).capacity, 5)
    assert.strictEqual(new BucketMeter({ burst: 1, rate: 1, headroom: 100, now: 0 }).capacity, 1)
    assert.strictEqual(new BucketMeter({ burst: 0.5, rate: 1, headroom: 100, now: 0 }).capacity, 0.5)
  })

  it("small requests never touch the headroom of the server's bucket, whatever the delays", () => {
    for (let seed = 1; seed <= 100; seed++) {
      const rng = random(seed)
      const { between, chance, next } = rng
      const jitter = 20
      const delay = delays(rng, jitter)
      const meter = new BucketMeter({ burst: 30, rate: 0.5, margin: jitter, headroom: 8, now: 0 })
      const events: Array<Event> = []
      let now = 0
      for (let i = 0; i < 200; i++) {
        if (chance(0.05)) now += next() * 100
        const amount = chance(0.02) ? between(23, 30) : between(1, 5)
        now = meter.fitsAt(amount, 0, now)
        meter.charge(amount, now)
        if (amount <= 22) events.push({ at: now + delay(now), amount })
        // What a large one leaves is not less than if it had been paid out of the capacity.
        else events.push({ at: now + delay(now), amount: 22 })
      }
      assert.isAtLeast(leastLeft(events, 30, 0.5), 8 - 1e-6, `seed ${seed}`)
    }
  })

  it("a request larger than the bucket goes when it is full, and what follows waits for it", () => {
    const meter = new BucketMeter({ burst: 2, rate: 1, margin: 3, now: 0 })
    meter.charge(2, 0)
    const at = meter.fitsAt(10, 0, 0)
    assert.closeTo(at, 5, 1e-5)
    meter.charge(10, at)
    assert.closeTo(meter.fitsAt(1, 0, at), at + 3 + 9, 1e-5)
    assert.closeTo(meter.fitsAt(10, 0, at), at + 3 + 10, 1e-5)
  })

  it("starts at the level it is given; a cold start lets one request of any size through", () => {
    const empty = new BucketMeter({ burst: 10, rate: 1, initialLevel: 0, now: 50 })
    assert.closeTo(empty.fitsAt(3, 0, 50), 53, 1e-5)
    const cold = new BucketMeter({ burst: 10, rate: 1, initialLevel: 0, cold: true, now: 50 })
    assert.strictEqual(cold.fitsAt(40, 0, 50), 50)
    cold.charge(7, 50)
    assert.closeTo(cold.fitsAt(1, 0, 50), 58, 1e-5)
    const warm = new BucketMeter({ burst: 10, rate: 1, initialLevel: 0, cold: true, now: 50 })
    warm.warm()
    assert.closeTo(warm.fitsAt(3, 0, 50), 53, 1e-5)
  })

  it("takes the provider's word for less and for more, never above the capacity", () => {
    const meter = new BucketMeter({ burst: 10, rate: 1, margin: 5, headroom: 2, now: 0 })
    meter.charge(3, 0)
    meter.lower(9, 0)
    assert.strictEqual(meter.available(0), 5)
    meter.lower(2, 0)
    assert.strictEqual(meter.available(0), 2)
    meter.raise(1, 0)
    assert.strictEqual(meter.available(0), 2)
    meter.raise(4, 0)
    assert.strictEqual(meter.available(0), 4)
    // What is on its way is certain.
    meter.raise(100, 0)
    assert.strictEqual(meter.available(0), 5)
    meter.lower(-4, 0)
    assert.closeTo(meter.fitsAt(1, 0, 0), 5, 1e-5)
  })

  it("a refund that the provider has reported before is not counted twice", () => {
    const meter = new BucketMeter({ burst: 10, rate: 0.001, now: 0 })
    const mark = meter.charge(6, 0)
    meter.charge(2, 0)
    meter.raise(7, 0)
    meter.adjust(mark, -5, 0)
    assert.closeTo(meter.available(0), 8, 1e-9)
  })

  it("a refund cannot give back what later charges have used of a full bucket", () => {
    const meter = new BucketMeter({ burst: 10, rate: 1, now: 0 })
    const first = meter.charge(4, 0)
    const second = meter.charge(5, 4)
    assert.isFalse(meter.adjust(first, -4, 4))
    assert.strictEqual(meter.available(4), 5)
    assert.isTrue(meter.adjust(second, -5, 4))
    assert.strictEqual(meter.available(4), 10)
  })

  it("another bucket holds what was in the old one, as far as there is room", () => {
    const meter = new BucketMeter({ burst: 10, rate: 1, now: 0 })
    meter.charge(4, 0)
    meter.reshape(20, 2, 0, 0)
    assert.strictEqual(meter.available(0), 6)
    assert.strictEqual(meter.capacity, 20)
    assert.closeTo(meter.fitsAt(8, 0, 0), 1, 1e-5)
    meter.reshape(5, 2, 0, 0)
    assert.strictEqual(meter.available(0), 5)
    meter.reshape(8, 2, 0, 0)
    assert.strictEqual(meter.available(0), 5)
    assert.strictEqual(meter.available(100), 8)
    meter.reshape(4, 1, 0, 100)
    assert.strictEqual(meter.available(100), 4)
  })

  it("at the instant it gives it really fits, at any time and rate", () => {
    for (let seed = 1; seed <= 1000; seed++) {
      const { between, next } = random(seed)
      const now = 10 ** (12 * next())
      const burst = Math.ceil(10 ** (8 * next()))
      const rate = burst / 10 ** (1 + 7 * next())
      const margin = next() < 0.5 ? 0 : next() * 1000
      const meter = new BucketMeter({ burst, rate, margin, now })
      let at = now
      for (let i = 0; i < 10; i++) {
        const amount = between(1, burst) * (next() < 0.5 ? 1 : 0.1)
        const fits = meter.fitsAt(amount, 0, at)
        assert.isTrue(Number.isFinite(fits) && fits >= at)
        at = fits
        assert.strictEqual(meter.fitsAt(amount, 0, at), at, `seed ${seed}`)
        assert.isAtLeast(meter.available(at), amount * (1 - 1e-12), `seed ${seed}`)
        meter.charge(amount, at)
      }
    }
  })

  it("keeps a bounded state over any number of charges, and is never over for it", () => {
    const burst = 40_000
    const meter = new BucketMeter({ burst, rate: 0.001, now: 0 })
    const charges: Array<Sent> = []
    let largest = 0
    for (let i = 0; i < 20_000; i++) {
      const now = i / 1000
      charges.push({ mark: meter.charge(1, now), sent: now, latest: now, net: 1, grown: false })
      largest = Math.max(largest, Reflect.get(meter, "size"))
    }
    assert.isAtMost(largest, 8193)
    for (let i = 0; i < 20_000; i += 7) {
      const charge = charges[i]!
      meter.adjust(charge.mark, -1, 20)
      charge.net = 0
    }
    // The definition, from the last charge to the first, in one pass.
    let sum = 0
    let least = burst
    for (const { latest, net } of charges.toReversed()) {
      sum += net
      least = Math.min(least, burst + 0.001 * (20 - latest) - sum)
    }
    assert.isAtMost(meter.available(20), least + 1e-6)
    assert.isAtLeast(meter.available(20), least - 300)
    const joined = meter.available(20)
    for (let i = 1; i <= 16; i++) assert.closeTo(meter.available(20 + i * 1e6), joined + i * 1000, 1e-3)
  })

  it("keeps bounded what is on its way, and is late by at most margin / 4096", () => {
    const meter = new BucketMeter({ burst: 1e6, rate: 1, margin: 1000, now: 0 })
    let largest = 0
    for (let i = 0; i < 100_000; i++) {
      meter.charge(1, i / 100)
      largest = Math.max(largest, Reflect.get(meter, "pendingSize"))
    }
    assert.isAtMost(largest, 2 * 4096 + 2)
    // All that was sent in the first half has arrived in its time: the bucket was full until it came.
    const left = meter.available(1500)
    assert.isAtMost(left, 1e6 - 100_000 + 500 + 1e-6)
    assert.isAtLeast(left, 1e6 - 100_000 + 500 - 1)
  })

  it("of charges that share an arrival, none arrives before it can", () => {
    const meter = new BucketMeter({ burst: 1e6, rate: 1000, margin: 1000, now: 0 })
    for (let i = 0; i < 5000; i++) meter.charge(0, i / 1000)
    meter.charge(1000, 5.2)
    meter.charge(1000, 5.4)
    meter.charge(1000, 5.6)
    assert.strictEqual(meter.available(1005.199), 1e6 - 3000)
    assert.strictEqual(meter.available(1005.399), 1e6 - 3000)
  })
})
