/**
 * The meters of one windowed limit, as one.
 */
import type * as RateLimiter from "../../RateLimiter.ts"
import { BucketMeter } from "./bucketMeter.ts"
import { FixedMeter } from "./fixedMeter.ts"
import type { Mark, Meter } from "./meter.ts"
import { SlidingMeter } from "./slidingMeter.ts"

/** What a limit charges for one request. */
export interface Sent {
  amount: number
  /** Of the meters that count; `undefined` until the charge has a date. */
  counted: ReadonlyArray<Mark> | undefined
  /** Of the meters that only spread requests, which it meets when it is sent. */
  readonly paced: ReadonlyArray<Mark>
}

/**
 * A limit: something fits when it fits all of its meters. What is used, and what a provider says, is about the first
 * one that counts; the others only slow down.
 */
export interface LimitMeter extends Omit<Meter, "charge" | "adjust" | "landed"> {
  /** The limit's own, and that of its quantum. */
  readonly counting: readonly [Meter, ...ReadonlyArray<Meter>]
  readonly pacing: ReadonlyArray<Meter>
  /** The least that any of its meters lets through at once. */
  readonly atOnce: number
  /** A charge without a date: it only spreads what follows. */
  send(amount: number, now: number): Sent
  /** Gives a charge its date. */
  date(sent: Sent, now: number): void
  /** `send` and `date`. */
  charge(amount: number, now: number): Sent
  landed(sent: Sent, now: number): void
  /** Changes a charge. `false` when it no longer matters. */
  adjust(sent: Sent, by: number, now: number): boolean
  /** Another limit from now on, in the same period. */
  setLimit(limit: number, now: number): void
  /**
   * At most `unseen` of what others have been seen to use has ended since: the rest, which is returned, is so still.
   * Windows only.
   */
  confirmOthers(unseen: number, now: number): number
  /** The provider has told its state: ends the cold start. */
  warm(now: number): void
}

/** Paces the first `length` milliseconds of a limit about whose earlier use nothing is known. */
class ColdStart implements Meter {
  private readonly pace: BucketMeter
  private end: number

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

class All implements LimitMeter {
  readonly counting: LimitMeter["counting"]
  readonly pacing: ReadonlyArray<Meter>
  readonly setLimit: LimitMeter["setLimit"]
  readonly confirmOthers: LimitMeter["confirmOthers"]
  readonly warm: LimitMeter["warm"]
  private readonly widen: (amount: number, now: number) => void

  constructor(
    options: Pick<LimitMeter, "counting" | "pacing" | "setLimit" | "confirmOthers" | "warm"> & {
      readonly widen: (amount: number, now: number) => void
    }
  ) {
    this.counting = options.counting
    this.pacing = options.pacing
    this.setLimit = options.setLimit
    this.confirmOthers = options.confirmOthers
    this.warm = options.warm
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

  send(amount: number, now: number): Sent {
    if (this.pacing.length > 0) this.widen(amount, now)
    return { amount, counted: undefined, paced: this.pacing.map((meter) => meter.charge(amount, now)) }
  }

  date(sent: Sent, now: number): void {
    sent.counted = this.counting.map((meter) => meter.charge(sent.amount, now))
  }

  charge(amount: number, now: number): Sent {
    const sent = this.send(amount, now)
    this.date(sent, now)
    return sent
  }

  landed({ counted = [], paced }: Sent, now: number): void {
    for (let i = 0; i < counted.length; i++) this.counting[i]!.landed(counted[i]!, now)
    for (let i = 0; i < paced.length; i++) this.pacing[i]!.landed(paced[i]!, now)
  }

  adjust(sent: Sent, by: number, now: number): boolean {
    const { counted, paced } = sent
    let changed = counted === undefined
    sent.amount += by
    for (let i = 0; i < paced.length; i++) this.pacing[i]!.adjust(paced[i]!, by, now)
    if (counted === undefined) return changed
    for (let i = 0; i < counted.length; i++) {
      if (this.counting[i]!.adjust(counted[i]!, by, now)) changed = true
    }
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
export const make = (limit: RateLimiter.Limit, wall: () => number, now: number): LimitMeter => {
  const period = limit.timePeriod!
  const { algorithm, coldStart, headroom, margin, quantum } = limit
  const counting: Array<Meter> = []
  const pacing: Array<Meter> = []
  const setters: Array<(limit: number, now: number) => void> = []
  const buckets: Array<BucketMeter> = []

  const sliding = (share: (limit: number) => number, length: number) => {
    const meter = new SlidingMeter({ capacity: share(limit.limit), length: length + margin })
    counting.push(meter)
    setters.push((limit) => meter.setCapacity(share(limit)))
  }

  const bucket = (
    burst: (limit: number) => number,
    options: { readonly margin: number; readonly headroom: number; readonly cold: boolean }
  ) => {
    const rate = (limit: number) => limit / period
    const meter = new BucketMeter({
      burst: burst(limit.limit),
      rate: rate(limit.limit),
      margin: options.margin,
      headroom: options.headroom * rate(limit.limit),
      initialLevel: options.cold ? 0 : undefined,
      cold: options.cold,
      now
    })
    setters.push((limit, now) => meter.reshape(burst(limit), rate(limit), options.headroom * rate(limit), now))
    buckets.push(meter)
    return meter
  }

  let largest = 1
  const secondsRefill = (limit: number) => Math.max(1, limit / period * (1000 - margin))
  let current = limit.limit

  switch (algorithm) {
    case "slidingWindow":
      sliding((limit) => limit, period)
      break
    case "tokenBucket":
      counting.push(bucket((each) => limit.burst ?? each, { margin, headroom, cold: coldStart }))
      break
    case "fixedWindow": {
      const meter = new FixedMeter({ capacity: limit.limit, period, margin, timeZone: limit.timeZone, wall })
      counting.push(meter)
      setters.push((limit) => meter.setCapacity(limit))
      break
    }
    case "paced":
      sliding((limit) => limit, period)
      pacing.push(
        bucket((each) => limit.burst ?? Math.max(largest, secondsRefill(each)), {
          margin: 0,
          headroom: 0,
          cold: coldStart
        })
      )
      break
  }
  if (quantum !== undefined) sliding((limit) => Math.max(1, Math.floor(limit * quantum / period)), quantum)
  let cold: ColdStart | undefined
  if (coldStart && (algorithm === "slidingWindow" || algorithm === "fixedWindow")) {
    cold = new ColdStart(bucket(secondsRefill, { margin: 0, headroom: 0, cold: true }), now + period + margin)
    pacing.push(cold)
  }
  return new All({
    counting: counting as [Meter, ...Array<Meter>],
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
    }
  })
}
