import { assert, describe, it } from "@effect/vitest"
import { DateTime } from "effect"
import { FixedMeter, windowAt } from "../../../src/internal/meters/fixedMeter.ts"
import { random } from "../../laws/schedule.ts"

const at = (iso: string): number => DateTime.makeUnsafe(iso).epochMilliseconds
const hour = 3_600_000
const day = 24 * hour
const minute = 60_000

/** A meter whose wall clock shows `start` at 0 on the monotonic clock, until it is set. */
const make = (options: {
  readonly capacity: number
  readonly period: number
  readonly margin?: number
  readonly timeZone?: string
  readonly start: number
}) => {
  let offset = options.start
  let now = 0
  const meter = new FixedMeter({
    capacity: options.capacity,
    period: options.period,
    margin: options.margin ?? 0,
    timeZone: options.timeZone ?? "UTC",
    wall: () => now + offset
  })
  return {
    set: (by: number) => {
      offset += by
    },
    /** Calls the meter at an instant of the monotonic clock. */
    at: <A>(instant: number, call: (meter: FixedMeter, now: number) => A): A => {
      now = instant
      return call(meter, instant)
    },
    wall: (instant: number) => instant + offset
  }
}

/** Edges of days, worked out by hand. */
const calendars = [
  {
    timeZone: "America/Los_Angeles",
    edges: ["2026-03-06T08:00Z", "2026-03-07T08:00Z", "2026-03-08T08:00Z", "2026-03-09T07:00Z", "2026-03-10T07:00Z"]
  },
  {
    timeZone: "America/Los_Angeles",
    edges: ["2026-10-31T07:00Z", "2026-11-01T07:00Z", "2026-11-02T08:00Z", "2026-11-03T08:00Z"]
  },
  {
    timeZone: "Europe/Berlin",
    edges: ["2026-03-27T23:00Z", "2026-03-28T23:00Z", "2026-03-29T22:00Z", "2026-03-30T22:00Z"]
  },
  {
    timeZone: "Europe/Berlin",
    edges: ["2026-10-23T22:00Z", "2026-10-24T22:00Z", "2026-10-25T23:00Z", "2026-10-26T23:00Z"]
  },
  { timeZone: "UTC", edges: ["2026-03-28T00:00Z", "2026-03-29T00:00Z", "2026-03-30T00:00Z"] },
  // Midnight does not exist, and comes twice.
  { timeZone: "Africa/Cairo", edges: ["2026-04-22T22:00Z", "2026-04-23T22:00Z", "2026-04-24T21:00Z"] },
  { timeZone: "America/Havana", edges: ["2026-10-31T04:00Z", "2026-11-01T04:00Z", "2026-11-02T05:00Z"] }
].map(({ edges, timeZone }) => ({ timeZone, edges: edges.map(at) }))

describe("FixedMeter", () => {
  it("days begin at midnight in their zone, whether they have 23, 24 or 25 hours", () => {
    for (const { edges, timeZone } of calendars) {
      const window = windowAt(day, timeZone)
      for (let i = 1; i < edges.length; i++) {
        const [start, end] = [edges[i - 1]!, edges[i]!]
        for (const wall of [start, start + 1, (start + end) / 2, end - 1, end - 1e-3]) {
          assert.deepStrictEqual(window(wall), { start, end }, `${timeZone} ${wall}`)
        }
      }
    }
  })

  it("weeks begin on Monday, parts of a day at midnight, anything else at the epoch", () => {
    assert.deepStrictEqual(windowAt(7 * day, "Europe/Berlin")(at("2026-10-25T00:30Z")), {
      start: at("2026-10-18T22:00Z"),
      end: at("2026-10-25T23:00Z")
    })
    assert.deepStrictEqual(windowAt(7 * day, "UTC")(at("2026-10-25T00:30Z")), {
      start: at("2026-10-19T00:00Z"),
      end: at("2026-10-26T00:00Z")
    })
    assert.deepStrictEqual(windowAt(hour, "Asia/Kolkata")(at("2026-10-25T00:40Z")), {
      start: at("2026-10-25T00:30Z"),
      end: at("2026-10-25T01:30Z")
    })
    assert.deepStrictEqual(windowAt(6 * hour, "America/Los_Angeles")(at("2026-03-09T06:30Z")), {
      start: at("2026-03-09T02:00Z"),
      end: at("2026-03-09T07:00Z")
    })
    assert.deepStrictEqual(windowAt(minute, "UTC")(at("2026-10-25T00:40:59.999Z")), {
      start: at("2026-10-25T00:40Z"),
      end: at("2026-10-25T00:41Z")
    })
    assert.deepStrictEqual(windowAt(7000, "Europe/Berlin")(15_000), { start: 14_000, end: 21_000 })
    assert.deepStrictEqual(windowAt(day, "No/Where")(at("2026-10-25T00:40Z")).start, at("2026-10-25T00:00Z"))
    assert.deepStrictEqual(windowAt(day, "+05:30")(at("2026-10-25T00:40Z")).start, at("2026-10-24T18:30Z"))
  })

  it("every day gets its whole limit, as soon as it has begun, across changes of the clocks", () => {
    for (const { edges, timeZone } of calendars) {
      const margin = 500
      const { at, wall } = make({ capacity: 5, period: day, margin, timeZone, start: edges[0]! })
      const sent: Array<number> = []
      let now = 0
      for (let i = 0; i < (edges.length - 1) * 5; i++) {
        now = at(now, (meter, now) => meter.fitsAt(1, 0, now))
        assert.strictEqual(at(now, (meter, now) => meter.fitsAt(1, 0, now)), now)
        at(now, (meter, now) => meter.charge(1, now))
        sent.push(wall(now))
      }
      const expected = edges.slice(0, -1).flatMap((edge) => Array.from({ length: 5 }, () => edge + margin))
      for (let i = 0; i < sent.length; i++) assert.closeTo(sent[i]!, expected[i]!, 2e-3, `${timeZone} ${i}`)
    }
  })

  it("no window of the server gets too much, whatever the delays and the difference of the clocks", () => {
    let full = 0
    for (let seed = 1; seed <= 300; seed++) {
      const { between, chance, next, pick } = random(seed)
      const capacity = pick([1, 5, 40])
      const [jitter, skew] = pick([[0, 0], [100, 0], [0, 300], [500, 2000]] as const)
      const start = at("2026-10-25T00:40Z") + next() * minute
      const ahead = skew * (2 * next() - 1)
      const { at: step } = make({ capacity, period: minute, margin: jitter + skew, start })
      const windows = new Map<number, number>()
      let now = 0
      for (let i = 0; i < 100; i++) {
        if (chance(0.2)) now += next() * minute
        const amount = between(1, Math.max(1, capacity / 4))
        const fits = step(now, (meter, now) => meter.fitsAt(amount, 0, now))
        if (fits > now) {
          const before = step(fits - 2e-3, (meter, now) => meter.fitsAt(amount, 0, now))
          assert.isAbove(before, fits - 2e-3)
        }
        now = fits
        assert.strictEqual(step(now, (meter, now) => meter.fitsAt(amount, 0, now)), now)
        step(now, (meter, now) => meter.charge(amount, now))
        const arrived = now + start + ahead + (chance(0.5) ? jitter * between(0, 1) : jitter * next())
        const window = Math.floor(arrived / minute)
        windows.set(window, (windows.get(window) ?? 0) + amount)
      }
      for (const sum of windows.values()) {
        if (sum > capacity) assert.fail(`seed ${seed}: ${sum} in one window`)
        if (sum === capacity) full++
      }
    }
    assert.isAbove(full, 1000)
  })

  it("nothing fits within the margin of an edge", () => {
    const { at } = make({ capacity: 5, period: minute, margin: 1000, start: 0 })
    const fits = (now: number) => at(now, (meter) => meter.fitsAt(1, 0, now))
    assert.closeTo(fits(0), 1000, 1e-3)
    assert.closeTo(fits(999), 1000, 1e-3)
    assert.strictEqual(fits(1000), 1000)
    assert.strictEqual(fits(58_999), 58_999)
    assert.closeTo(fits(59_000), 61_000, 1e-3)
    assert.closeTo(fits(60_500), 61_000, 1e-3)
  })

  it("what is charged within the margin before an edge counts on both sides of it", () => {
    const { at } = make({ capacity: 5, period: minute, margin: 1000, start: 0 })
    at(58_000, (meter, now) => meter.charge(2, now))
    const mark = at(59_500, (meter, now) => meter.charge(2, now))
    assert.strictEqual(at(59_600, (meter, now) => meter.used(now)), 4)
    // Four do not fit beside those two in the next window, but in the one after it.
    assert.closeTo(at(59_600, (meter, now) => meter.fitsAt(4, 0, now)), 121_000, 1e-3)
    assert.strictEqual(at(60_000, (meter, now) => meter.used(now)), 2)
    assert.isTrue(at(61_000, (meter, now) => meter.adjust(mark, -1, now)))
    assert.strictEqual(at(61_000, (meter, now) => meter.used(now)), 1)
    assert.strictEqual(at(120_000, (meter, now) => meter.used(now)), 0)
    assert.isFalse(at(120_000, (meter, now) => meter.adjust(mark, -1, now)))
  })

  it("a margin takes at most a quarter of a window at each end", () => {
    const { at } = make({ capacity: 5, period: 1000, margin: 5000, start: 0 })
    assert.closeTo(at(0, (meter, now) => meter.fitsAt(1, 0, now)), 250, 1e-3)
    assert.closeTo(at(750, (meter, now) => meter.fitsAt(1, 0, now)), 1250, 1e-3)
  })

  it("charges are changed while their window lasts; a debt does not outlive it", () => {
    const { at } = make({ capacity: 5, period: minute, start: 0 })
    const mark = at(10, (meter, now) => meter.charge(3, now))
    assert.isTrue(at(20, (meter, now) => meter.adjust(mark, 9, now)))
    assert.strictEqual(at(20, (meter, now) => meter.available(now)), -7)
    assert.closeTo(at(20, (meter, now) => meter.fitsAt(5, 0, now)), minute, 1e-3)
    assert.isTrue(at(30, (meter, now) => meter.adjust(mark, -10, now)))
    assert.strictEqual(at(30, (meter, now) => meter.fitsAt(3, 0, now)), 30)
    assert.isFalse(at(minute, (meter, now) => meter.adjust(mark, -1, now)))
    assert.strictEqual(at(minute, (meter, now) => meter.used(now)), 0)
  })

  it("reservations count in every window; more than the capacity fits when nothing else counts", () => {
    const { at } = make({ capacity: 5, period: minute, start: 0 })
    assert.strictEqual(at(0, (meter, now) => meter.fitsAt(2, 3, now)), 0)
    assert.strictEqual(at(0, (meter, now) => meter.fitsAt(3, 3, now)), Number.POSITIVE_INFINITY)
    assert.strictEqual(at(0, (meter, now) => meter.fitsAt(9, 0, now)), 0)
    at(0, (meter, now) => meter.charge(1, now))
    assert.closeTo(at(0, (meter, now) => meter.fitsAt(9, 0, now)), minute, 1e-3)
    at(0, (meter) => meter.setCapacity(10))
    assert.strictEqual(at(0, (meter, now) => meter.fitsAt(9, 0, now)), 0)
  })

  it("takes the provider's word for less, and for more as far as it had taken it for less", () => {
    const { at } = make({ capacity: 10, period: minute, start: 0 })
    at(0, (meter, now) => meter.charge(3, now))
    at(10, (meter, now) => meter.lower(9, now))
    assert.strictEqual(at(10, (meter, now) => meter.available(now)), 7)
    at(10, (meter, now) => meter.lower(1, now))
    assert.strictEqual(at(10, (meter, now) => meter.available(now)), 1)
    at(20, (meter, now) => meter.raise(4, now))
    assert.strictEqual(at(20, (meter, now) => meter.available(now)), 4)
    at(20, (meter, now) => meter.raise(100, now))
    assert.strictEqual(at(20, (meter, now) => meter.available(now)), 7)
    at(30, (meter, now) => meter.lower(0, now))
    assert.strictEqual(at(minute, (meter, now) => meter.available(now)), 10)
  })

  it("a clock that is set back within its window frees nothing", () => {
    const { at, set } = make({ capacity: 5, period: hour, start: 1 * day })
    at(1000, (meter, now) => meter.charge(5, now))
    at(30 * minute, (meter, now) => meter.used(now))
    set(-25 * minute)
    assert.strictEqual(at(30 * minute, (meter, now) => meter.used(now)), 5)
    assert.closeTo(at(30 * minute, (meter, now) => meter.fitsAt(1, 0, now)), 85 * minute, 1e-3)
  })

  it("a clock that is set back over an edge frees nothing, and what was charged meanwhile counts", () => {
    const { at, set } = make({ capacity: 5, period: hour, start: 1 * day })
    at(50 * minute, (meter, now) => meter.charge(4, now))
    at(61 * minute, (meter, now) => meter.charge(3, now))
    assert.strictEqual(at(61 * minute, (meter, now) => meter.used(now)), 3)
    set(-10 * minute)
    assert.strictEqual(at(61 * minute, (meter, now) => meter.used(now)), 7)
    assert.strictEqual(at(71 * minute, (meter, now) => meter.used(now)), 3)
  })

  it("a clock that was far ahead does not keep anybody waiting for the time that it showed", () => {
    const { at, set } = make({ capacity: 5, period: hour, start: 100 * day })
    at(0, (meter, now) => meter.charge(5, now))
    set(-10 * day)
    assert.strictEqual(at(minute, (meter, now) => meter.used(now)), 5)
    assert.closeTo(at(minute, (meter, now) => meter.fitsAt(1, 0, now)), hour, 1e-3)
    assert.strictEqual(at(61 * minute, (meter, now) => meter.used(now)), 0)
  })

  it("a clock that is set forward begins the window that it shows", () => {
    const { at, set } = make({ capacity: 5, period: hour, start: 1 * day })
    at(minute, (meter, now) => meter.charge(5, now))
    set(30 * minute)
    assert.strictEqual(at(minute, (meter, now) => meter.used(now)), 5)
    assert.closeTo(at(minute, (meter, now) => meter.fitsAt(1, 0, now)), 30 * minute, 1e-3)
    set(30 * minute)
    assert.strictEqual(at(minute, (meter, now) => meter.used(now)), 0)
  })

  it("a clock that is set all the time: never an error, a wait that is not positive, or unbounded state", () => {
    for (let seed = 1; seed <= 5; seed++) {
      const { between, next, pick } = random(seed)
      const { at, set } = make({ capacity: 5, period: minute, margin: 100, start: 1e12, timeZone: "Europe/Berlin" })
      let now = 0
      for (let i = 0; i < 500; i++) {
        set((2 * next() - 1) * pick([1, 1000, minute, 10 * minute, 10 * day]))
        now += next() * 1000
        const fits = at(now, (meter, now) => meter.fitsAt(between(1, 5), 0, now))
        if (!(fits >= now && fits <= now + 3 * minute)) assert.fail(`seed ${seed}: ${fits - now}`)
        at(now, (meter, now) => meter.charge(1, now))
        at(now, (meter) => {
          assert.isAtMost((Reflect.get(meter, "tallies") as ReadonlyArray<unknown>).length, 17)
        })
      }
    }
  })

  it("100,000 charges over 1,000 windows leave nothing behind", () => {
    const { at } = make({ capacity: 100, period: minute, margin: 50, start: 1e12 })
    let now = 0
    for (let i = 0; i < 100_000; i++) {
      now = at(now, (meter, now) => meter.fitsAt(1, 0, now))
      at(now, (meter, now) => meter.charge(1, now))
    }
    assert.closeTo(now, 1000 * minute, 2 * minute)
    at(now, (meter) => assert.isAtMost((Reflect.get(meter, "tallies") as ReadonlyArray<unknown>).length, 4))
  })
})
