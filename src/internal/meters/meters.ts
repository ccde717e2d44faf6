/**
 * The meters of one windowed limit, as one.
 */
import type * as RateLimiter from "../../RateLimiter.ts"
import { BucketMeter } from "./bucketMeter.ts"
import { FixedMeter } from "./fixedMeter.ts"
import type { History, Mark, Meter, Remembered } from "./meter.ts"
import { SlidingMeter } from "./slidingMeter.ts"

/** What a limit charges for one request. */
export interface Sent {
  /** Net of what is known. */
  amount: number
  /** Of the first meter that counts, which mostly is the only one; `undefined` until the charge has a date. */
  counted: Mark | undefined
  /** Of the others that count. */
  alsoCounted: ReadonlyArray<Mark>
  /** Of the meters that only spread requests, which it meets when it is sent. */
  paced: ReadonlyArray<Mark>
  /**
   * Where a charge was carried over from a bucket: this much of it counts at dates of which nothing is known, and cannot
   * be given back.
   */
  least: number | undefined
}

/** In place of an empty list in every charge. */
export const none: ReadonlyArray<never> = []

/**
 * A limit: something fits when it fits all of its meters. What is used, and what a provider says, is about the first
 * one that counts; the others only slow down.
 */
export interface LimitMeter extends Omit<Meter, "charge" | "adjust" | "landed" | "part" | "replay"> {
  /** The limit's own, and that of its quantum. */
  readonly counting: readonly [Meter, ...ReadonlyArray<Meter>]
  readonly pacing: ReadonlyArray<Meter>
  /** What all who share the limit have sent, and what is available, after the charge that is made; if others share it. */
  readonly shared?: { readonly sent: number; readonly available: number } | undefined
  /** The least that any of its meters lets through at once. */
  readonly atOnce: number
  /** A charge without a date: it only spreads what follows. */
  send(sent: Sent, now: number): void
  /** Gives a charge its date. */
  date(sent: Sent, now: number): void
  landed(sent: Sent, now: number): void
  /** Changes a charge. `false` when it no longer matters. */
  adjust(sent: Sent, by: number, now: number): boolean
  /** Another limit from now on, in the same period. */
  setLimit(limit: number, now: number): void
  /** The numbers of another configuration, of which `isSameShape` holds. `setLimit` has to follow. */
  configure(limit: RateLimiter.Limit): void
  /** What it remembers. */
  history(now: number): History
  /** When what it remembers began. */
  since(now: number): number
  /** What another meter remembers: a mark of each that counts. */
  replay(entry: Remembered, now: number): ReadonlyArray<Mark>
  /** The marks of one of the charges that were replayed together, of `amount`: it changes for itself. */
  part(all: ReadonlyArray<Mark>, amount: number): ReadonlyArray<Mark>
  /**
   * At most `unseen` of what others have been seen to use has ended since: the rest, which is returned, is so still.
   * Windows only.
   */
  confirmOthers(unseen: number, now: number): number
  /** The provider has told its state: ends the cold start. */
  warm(now: number): void
  /** Whether nothing goes in bursts from now on, whatever has been saved up. */
  pace(isPaced: boolean, now: number): void
}

/** Whether one limit can follow another on the same meters, with other numbers. */
export const isSameShape = (a: RateLimiter.Limit, b: RateLimiter.Limit): boolean =>
  a.algorithm === b.algorithm && a.quantum === b.quantum && (
    (a.algorithm === "tokenBucket" && a.quantum === undefined)
    || (a.timePeriod === b.timePeriod && a.margin === b.margin
      && (a.algorithm !== "fixedWindow" || a.timeZone === b.timeZone))
  )

const unpaced = { margin: () => 0, headroom: () => 0 }

/** Paces a limit until `end`: that of a cold start, about whose earlier use nothing is known, and one that grows back. */
class PacedUntil implements Meter {
  private readonly pace: BucketMeter
  end: number

  constructor(pace: BucketMeter, end: number) {
    this.pace = pace
    this.end = end
  }

  get capacity(): number {
    return this.pace.capacity
  }

  used(now: number): number {
    return now < this.end ? this.pace.used(now) : 0
  }

  available(now: number): number {
    return now < this.end ? this.pace.available(now) : Number.POSITIVE_INFINITY
  }

  fitsAt(amount: number, held: number, now: number): number {
    if (now >= this.end) return now
    return Math.min(this.end, this.pace.fitsAt(amount, held, now))
  }

  through(ahead: number, amount: number, held: number, now: number): number {
    if (now >= this.end) return now
    return Math.min(this.end, this.pace.through(ahead, amount, held, now))
  }

  charge(amount: number, now: number): Mark {
    return this.pace.charge(amount, now)
  }

  replay({ amount }: Remembered, now: number): Mark {
    return this.pace.charge(amount, now)
  }

  part(mark: Mark, amount: number): Mark {
    return this.pace.part(mark, amount)
  }

  landed(mark: Mark, now: number): void {
    this.pace.landed(mark, now)
  }

  adjust(mark: Mark, by: number, now: number): boolean {
    return this.pace.adjust(mark, by, now) && now < this.end
  }

  lower(_available: number, _now: number): void {}

  raise(_available: number, _now: number): void {}

  warm(now: number): void {
    this.end = Math.min(this.end, now)
  }
}

/**
 * What was charged when, for as long as four periods at least: a bucket does not remember it, and windows that follow
 * one have to know. What is given back stays in it.
 */
class Log {
  readonly entries: Array<{ at: number; amount: number; readonly others: number }> = []
  /** When what it remembers began. */
  since = Number.NEGATIVE_INFINITY
  private readonly resolution: number
  private began = Number.NEGATIVE_INFINITY

  constructor(period: number) {
    this.resolution = period / 512
  }

  add(amount: number, now: number): void {
    const last = this.entries.at(-1)
    if (last !== undefined && now - this.began < this.resolution) {
      last.at = now
      last.amount += amount
      return
    }
    if (this.entries.length === 4096) {
      this.since = this.entries[2047]!.at
      this.entries.splice(0, 2048)
    }
    this.began = now
    this.entries.push({ at: now, amount, others: 0 })
  }
}

class All implements LimitMeter {
  readonly shared = undefined
  readonly counting: LimitMeter["counting"]
  readonly pacing: ReadonlyArray<Meter>
  readonly setLimit: LimitMeter["setLimit"]
  readonly configure: LimitMeter["configure"]
  readonly confirmOthers: LimitMeter["confirmOthers"]
  readonly warm: LimitMeter["warm"]
  readonly pace: LimitMeter["pace"]
  private readonly log: Log | undefined
  private readonly widen: (amount: number, now: number) => void

  constructor(
    options: Pick<LimitMeter, "counting" | "pacing" | "setLimit" | "configure" | "confirmOthers" | "warm" | "pace"> & {
      readonly widen: (amount: number, now: number) => void
      readonly log: Log | undefined
    }
  ) {
    this.log = options.log
    this.counting = options.counting
    this.pacing = options.pacing
    this.setLimit = options.setLimit
    this.configure = options.configure
    this.confirmOthers = options.confirmOthers
    this.warm = options.warm
    this.pace = options.pace
    this.widen = options.widen
  }

  get capacity(): number {
    return this.counting[0].capacity
  }

  get atOnce(): number {
    let least = Number.POSITIVE_INFINITY
    for (const meter of this.counting) least = Math.min(least, meter.capacity)
    for (const meter of this.pacing) least = Math.min(least, meter.capacity)
    return least
  }

  used(now: number): number {
    return this.counting[0].used(now)
  }

  available(now: number): number {
    return this.counting[0].available(now)
  }

  fitsAt(amount: number, held: number, now: number): number {
    let at = now
    for (const meter of this.counting) at = Math.max(at, meter.fitsAt(amount, held, now))
    for (const meter of this.pacing) at = Math.max(at, meter.fitsAt(amount, 0, now))
    return at
  }

  through(ahead: number, amount: number, held: number, now: number): number {
    let at = now
    for (const meter of this.counting) at = Math.max(at, meter.through(ahead, amount, held, now))
    for (const meter of this.pacing) at = Math.max(at, meter.through(ahead, amount, 0, now))
    return at
  }

  send(sent: Sent, now: number): void {
    if (this.pacing.length === 0) return
    const { amount } = sent
    this.widen(amount, now)
    sent.paced = this.pacing.map((meter) => meter.charge(amount, now))
  }

  date(sent: Sent, now: number): void {
    const { amount } = sent
    this.log?.add(amount, now)
    sent.counted = this.counting[0].charge(amount, now)
    if (this.counting.length > 1) sent.alsoCounted = this.counting.slice(1).map((meter) => meter.charge(amount, now))
  }

  history(now: number): History {
    const [own] = this.counting
    if (own instanceof SlidingMeter || own instanceof FixedMeter) return own.history(now)
    return { entries: this.log?.entries ?? [], find: () => undefined, isAnonymous: true }
  }

  since(now: number): number {
    const [own] = this.counting
    if (own instanceof SlidingMeter) return now - own.length
    return own instanceof FixedMeter ? own.since(now) : this.log?.since ?? now
  }

  replay(entry: Remembered, now: number): ReadonlyArray<Mark> {
    this.log?.add(entry.amount, entry.at)
    for (const meter of this.pacing) meter.replay(entry, now)
    return this.counting.map((meter) => meter.replay(entry, now))
  }

  part(all: ReadonlyArray<Mark>, amount: number): ReadonlyArray<Mark> {
    return all.map((mark, index) => this.counting[index]!.part(mark, amount))
  }

  landed({ alsoCounted, counted, paced }: Sent, now: number): void {
    if (counted !== undefined) this.counting[0].landed(counted, now)
    for (let i = 0; i < alsoCounted.length; i++) this.counting[i + 1]!.landed(alsoCounted[i]!, now)
    for (let i = 0; i < paced.length; i++) this.pacing[i]!.landed(paced[i]!, now)
  }

  adjust(sent: Sent, change: number, now: number): boolean {
    const { alsoCounted, counted, least, paced } = sent
    const by = least === undefined ? change : Math.max(change, least - sent.amount)
    for (let i = 0; i < paced.length; i++) this.pacing[i]!.adjust(paced[i]!, by, now)
    let changed = true
    if (counted !== undefined) {
      if (by > 0) this.log?.add(by, now)
      changed = this.counting[0].adjust(counted, by, now)
      for (let i = 0; i < alsoCounted.length; i++) {
        if (this.counting[i + 1]!.adjust(alsoCounted[i]!, by, now)) changed = true
      }
    }
    if (changed) sent.amount += by
    return changed
  }

  lower(available: number, now: number): void {
    this.counting[0].lower(available, now)
  }

  raise(available: number, now: number): void {
    this.counting[0].raise(available, now)
  }
}

/**
 * The meters of a windowed limit.
 *
 * - A burst of `paced` is one second's refill less what the margin lets bunch up, and at least one unit and the largest
 *   request so far: a server that lets that through has as much.
 * - A cold start lets the first request through, whatever its size, and then paces from an empty bucket: a bucket until
 *   it is filled, others for one period and its margin.
 *
 * `wall` is read in milliseconds since the epoch, and only for fixed windows.
 */
export const make = (initial: RateLimiter.Limit, wall: () => number, now: number): LimitMeter => {
  let limit = initial
  const { algorithm, coldStart, margin, quantum } = limit
  const period = limit.timePeriod!
  // Money has no smallest unit here.
  const tolerance = limit.type === "budget" ? limit.limit * 1e-9 : undefined
  const counting: Array<Meter> = []
  const pacing: Array<Meter> = []
  const setters: Array<(limit: number, now: number) => void> = []
  const buckets: Array<BucketMeter> = []

  const sliding = (share: (limit: number) => number, length: number) => {
    const meter = new SlidingMeter({ capacity: share(limit.limit), length: length + margin, tolerance })
    counting.push(meter)
    setters.push((limit) => meter.setCapacity(share(limit)))
  }

  const bucket = (
    burst: (limit: number) => number,
    options: { readonly margin: () => number; readonly headroom: () => number; readonly cold: boolean },
    each = limit.limit,
    at = now
  ) => {
    const rate = (each: number) => each / limit.timePeriod!
    const meter = new BucketMeter({
      burst: burst(each),
      rate: rate(each),
      margin: options.margin(),
      headroom: options.headroom() * rate(each),
      initialLevel: options.cold ? 0 : undefined,
      cold: options.cold,
      now: at
    })
    setters.push((each, now) =>
      meter.reshape(burst(each), rate(each), options.headroom() * rate(each), now, options.margin())
    )
    buckets.push(meter)
    return meter
  }

  let largest = 1
  const secondsRefill = (each: number) => Math.max(1, each / limit.timePeriod! * (1000 - limit.margin))
  let current = limit.limit

  switch (algorithm) {
    case "slidingWindow":
      sliding((limit) => limit, period)
      break
    case "tokenBucket":
      counting.push(bucket((each) => limit.burst ?? each, {
        margin: () => limit.margin,
        headroom: () => limit.headroom,
        cold: coldStart
      }))
      break
    case "fixedWindow": {
      const meter = new FixedMeter({ capacity: limit.limit, period, margin, timeZone: limit.timeZone, tolerance, wall })
      counting.push(meter)
      setters.push((limit) => meter.setCapacity(limit))
      break
    }
    case "paced":
      sliding((limit) => limit, period)
      pacing.push(
        bucket((each) => limit.burst ?? Math.max(largest, secondsRefill(each)), {
          ...unpaced,
          cold: coldStart
        })
      )
      break
  }
  if (quantum !== undefined) sliding((limit) => Math.max(1, Math.floor(limit * quantum / period)), quantum)
  let cold: PacedUntil | undefined
  let growth: PacedUntil | undefined
  if (coldStart && (algorithm === "slidingWindow" || algorithm === "fixedWindow")) {
    cold = new PacedUntil(bucket(secondsRefill, { ...unpaced, cold: true }), now + period + margin)
    pacing.push(cold)
  }
  return new All({
    counting: counting as [Meter, ...Array<Meter>],
    log: algorithm === "tokenBucket" ? new Log(period) : undefined,
    pacing,
    widen: (amount, now) => {
      if (amount <= largest) return
      largest = amount
      for (const set of setters) set(current, now)
    },
    setLimit: (limit, now) => {
      current = limit
      for (const set of setters) set(limit, now)
    },
    configure: (next) => {
      limit = next
    },
    confirmOthers: (unseen, now) => {
      const own = counting[0]
      if (!(own instanceof SlidingMeter)) return 0
      const others = Math.max(0, own.others(now) - unseen)
      if (others > 0) own.confirm(others, now)
      return others
    },
    warm: (now) => {
      cold?.warm(now)
      for (const bucket of buckets) bucket.warm()
    },
    pace: (isPaced, now) => {
      if (growth === undefined) {
        if (!isPaced) return
        growth = new PacedUntil(
          bucket(secondsRefill, { ...unpaced, cold: false }, current, now),
          Number.POSITIVE_INFINITY
        )
        pacing.push(growth)
      }
      growth.end = isPaced ? Number.POSITIVE_INFINITY : Math.min(growth.end, now)
    }
  })
}
