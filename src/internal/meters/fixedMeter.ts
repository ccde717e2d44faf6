import * as DateTime from "effect/DateTime"
import * as Option from "effect/Option"
import { type History, type Mark, type Meter, type Remembered, tolerance } from "./meter.ts"

const day = 86_400_000

/** More than what rounding does to an instant of the wall clock, which a number tells to a quarter of a microsecond. */
const wallResolution = 5e-4

/** Tallies kept apart. Only a wall clock that is set again and again makes more. */
const tallyLimit = 16

/** Charges of one window, or of the guard at its end: those may be counted in the next window too. */
interface Tally {
  readonly start: number
  readonly end: number
  readonly guard: boolean
  /** When the last of them was made, on the monotonic clock. */
  last: number
  sum: number
  /** The part of the sum that others have used. */
  phantom: number
}

/** What counts in no window. */
const gone: Tally = {
  start: Number.NEGATIVE_INFINITY,
  end: Number.NEGATIVE_INFINITY,
  guard: false,
  last: Number.NEGATIVE_INFINITY,
  sum: 0,
  phantom: 0
}

// The two places where an opaque mark is made and read back.
const mark = (tally: Tally): Mark => tally as unknown as Mark
const own = (mark: Mark): Tally => mark as unknown as Tally

/** `[start, end)`, in milliseconds since the epoch. */
interface Window {
  readonly start: number
  readonly end: number
}

/**
 * The window of the wall clock that an instant is in.
 *
 * - Days, and whole numbers of days, begin at midnight in the zone, so a day may have 23 or 25 hours. Weeks begin on
 *   Monday; other numbers of days are counted from 1970-01-01.
 * - Parts of a day are counted from midnight in the zone; the last one ends with the day.
 * - Any other period is counted from the epoch.
 *
 * A zone that is not known is read as UTC.
 */
export const windowAt = (period: number, timeZone: string): (wall: number) => Window => {
  const zone = Option.getOrUndefined(DateTime.zoneFromString(timeZone))
  const days = period / day
  const wholeDays = Number.isInteger(days)
  if (zone === undefined || timeZone === "UTC" || (!wholeDays && !Number.isInteger(day / period))) {
    // 1970-01-05 was a Monday.
    const origin = wholeDays && days % 7 === 0 ? 4 * day : 0
    return (wall) => {
      const index = Math.floor((wall - origin) / period)
      return { start: origin + index * period, end: origin + (index + 1) * period }
    }
  }
  const midnight = (dayNumber: number): number =>
    DateTime.toEpochMillis(
      DateTime.makeZonedUnsafe(dayNumber * day, { timeZone: zone, adjustForTimeZone: true })
    )
  const dayAt = (wall: number): number => {
    const { day: dayOfMonth, month, year } = DateTime.toParts(DateTime.makeZonedUnsafe(wall, { timeZone: zone }))
    return DateTime.toEpochMillis(DateTime.makeUnsafe({ year, month, day: dayOfMonth })) / day
  }
  if (wholeDays) {
    const origin = days % 7 === 0 ? 4 : 0
    return (wall) => {
      const first = origin + Math.floor((dayAt(wall) - origin) / days) * days
      return { start: midnight(first), end: midnight(first + days) }
    }
  }
  return (wall) => {
    const today = dayAt(wall)
    const begin = midnight(today)
    const start = begin + Math.floor((wall - begin) / period) * period
    return { start, end: Math.min(start + period, midnight(today + 1)) }
  }
}

/**
 * At most `capacity` in each window of the wall clock.
 *
 * What is sent within `margin` of an edge may be counted on either side of it, when `margin` is the largest delay plus
 * the largest difference between the clocks. So nothing fits within `margin` before an edge nor within `margin` after
 * it, and what is charged there all the same counts in the window that ends and in the one that begins. The margin is
 * at most a quarter of the window: above that, little or no time would be left.
 *
 * The wall clock says which window it is; how long ago something was is said by the monotonic clock. When the wall
 * clock is set back, what was charged in the window that it shows now, and in later ones, counts; so setting it back
 * within a window or over an edge frees nothing. Nothing counts longer than a window and its margins last. When it is set
 * forward into another window, that window begins: the new time is taken to be right.
 */
export class FixedMeter implements Meter {
  capacity: number
  private readonly margin: number
  private readonly tolerance: number
  private readonly wall: () => number
  private readonly windowAt: (wall: number) => Window
  private window: Window
  private tallies: Array<Tally> = []

  constructor(options: {
    readonly capacity: number
    readonly period: number
    readonly margin: number
    readonly timeZone: string
    readonly tolerance?: number | undefined
    /** Milliseconds since the epoch. */
    readonly wall: () => number
  }) {
    this.capacity = options.capacity
    this.tolerance = options.tolerance ?? tolerance
    this.margin = Math.min(options.margin, options.period / 4)
    this.wall = options.wall
    this.windowAt = windowAt(options.period, options.timeZone)
    this.window = this.windowAt(this.wall())
  }

  used(now: number): number {
    this.wallNow()
    return this.sum(now)
  }

  available(now: number): number {
    return this.capacity - this.used(now)
  }

  fitsAt(amount: number, held: number, now: number): number {
    const { tolerance } = this
    const wall = this.wallNow()
    const { end, start } = this.window
    const room = Math.max(this.capacity, amount) - held - amount
    if (room < -tolerance) return Number.POSITIVE_INFINITY
    const until = (edge: number) => Math.max(now, Math.ceil((now + (edge - wall) + wallResolution) * 1e6) / 1e6)
    if (wall + this.margin < end && this.sum(now) <= room + tolerance) {
      return wall - this.margin < start ? until(start + this.margin) : now
    }
    const next = until(end + this.margin)
    let carried = 0
    for (const tally of this.tallies) {
      if (this.isRecent(tally, next) && this.countsIn(tally, end)) carried += tally.sum
    }
    return carried <= room + tolerance ? next : until(this.windowAt(end).end + this.margin)
  }

  through(ahead: number, amount: number, held: number, now: number): number {
    const sum = ahead + Math.min(amount, this.capacity)
    if (sum <= this.capacity) return this.fitsAt(sum, held, now)
    const wall = this.wallNow()
    const room = Math.max(0, this.capacity - held - this.sum(now))
    const windows = Math.ceil((sum - room) / this.capacity - 1e-9)
    if (windows <= 0) return this.fitsAt(this.capacity, held, now)
    const { end, start } = this.window
    return now + (end - wall) + (windows - 1) * (end - start) + this.margin
  }

  charge(amount: number, now: number): Mark {
    const tally = this.tally(this.wallNow(), now)
    tally.sum += amount
    return mark(tally)
  }

  replay({ amount, at, others }: Remembered, now: number): Mark {
    const wall = this.wallNow()
    // What was sent within a margin before the window may be counted in it.
    if (at < this.since(now) - this.margin) return mark(gone)
    const tally = this.tally(wall, now)
    tally.sum += amount
    tally.phantom += others
    return mark(tally)
  }

  part(mark: Mark, _amount: number): Mark {
    return mark
  }

  history(now: number): History {
    this.wallNow()
    const tallies = this.tallies.filter((tally) => this.counts(tally, now)).toSorted((a, b) => a.last - b.last)
    return {
      entries: tallies.map(({ last, phantom, sum }) => ({ at: last, amount: sum, others: phantom })),
      find: (mark) => {
        const index = tallies.indexOf(own(mark))
        return index < 0 ? undefined : index
      }
    }
  }

  /** When the window began. */
  since(now: number): number {
    const wall = this.wallNow()
    return now - (wall - this.window.start)
  }

  landed(_mark: Mark, _now: number): void {}

  adjust(mark: Mark, by: number, now: number): boolean {
    const tally = own(mark)
    this.wallNow()
    if (!this.counts(tally, now)) return false
    tally.sum += by
    return true
  }

  lower(available: number, now: number): void {
    const wall = this.wallNow()
    const amount = this.capacity - this.sum(now) - available
    if (amount <= 0) return
    const tally = this.tally(wall, now)
    tally.sum += amount
    tally.phantom += amount
  }

  raise(available: number, now: number): void {
    let amount = available - this.available(now)
    for (const tally of this.tallies) {
      if (amount <= 0) return
      if (!this.counts(tally, now)) continue
      const by = Math.min(tally.phantom, amount)
      tally.phantom -= by
      tally.sum -= by
      amount -= by
    }
  }

  setCapacity(capacity: number): void {
    this.capacity = capacity
  }

  private wallNow(): number {
    const wall = this.wall()
    if (wall < this.window.start || wall >= this.window.end) this.window = this.windowAt(wall)
    return wall
  }

  /** A window is at most this long ago when it still counts. */
  private isRecent(tally: Tally, now: number): boolean {
    return now - tally.last <= this.window.end - this.window.start + 2 * this.margin
  }

  private countsIn(tally: Tally, start: number): boolean {
    return tally.start >= start || (tally.guard && tally.end >= start)
  }

  private counts(tally: Tally, now: number): boolean {
    return this.isRecent(tally, now) && this.countsIn(tally, this.window.start)
  }

  private sum(now: number): number {
    let used = 0
    for (const tally of this.tallies) {
      if (this.counts(tally, now)) used += tally.sum
    }
    return used
  }

  /** The tally that what is charged now belongs to. */
  private tally(wall: number, now: number): Tally {
    const { end, start } = this.window
    const guard = wall + this.margin >= end
    const found = this.tallies.find((tally) => tally.start === start && tally.guard === guard)
    if (found !== undefined && this.isRecent(found, now)) {
      found.last = now
      return found
    }
    this.tallies = this.tallies.filter((tally) => this.isRecent(tally, now))
    if (this.tallies.length >= tallyLimit) {
      const [first, second] = this.tallies.splice(0, 2)
      this.tallies.unshift({
        start: Math.max(first!.start, second!.start),
        end: Math.max(first!.end, second!.end),
        guard: first!.guard || second!.guard,
        last: Math.max(first!.last, second!.last),
        sum: first!.sum + second!.sum,
        phantom: first!.phantom + second!.phantom
      })
    }
    const tally = { start, end, guard, last: now, sum: 0, phantom: 0 }
    this.tallies.push(tally)
    return tally
  }
}
