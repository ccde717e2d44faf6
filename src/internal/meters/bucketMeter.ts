import type { Mark, Meter, Remembered } from "./meter.ts"

/** Charges on their way that are kept apart. Above it, those closer than margin / 4096 share the later arrival. */
const exactPending = 4096

/** Deficits kept apart. Above it, half of them join the next newer one. */
const exactDeficits = 8192

/**
 * A part of what is missing from a full bucket. Deficits form a stack, in the order in which they arose: refilling
 * pays the newest first, and the refund of a charge pays its own and then older ones.
 */
class Deficit {
  amount: number
  below: Deficit | undefined
  above: Deficit | undefined = undefined
  /** Paid deficits lead to the one below them, so that a charge finds what its refund can still pay. */
  live = true

  constructor(amount: number, below: Deficit | undefined) {
    this.amount = amount
    this.below = below
  }
}

/** Charges on their way that arrive at `at` at the latest; then their part of the stack. */
interface Arrival {
  at: number
  amount: number
  next: Arrival | undefined
  deficit: Deficit | undefined
}

interface Charge {
  amount: number
  arrival: Arrival
}

// The two places where an opaque mark is made and read back.
const mark = (charge: Charge): Mark => charge as unknown as Mark
const own = (mark: Mark): Charge => mark as unknown as Charge

/** Up, to whole nanoseconds; at large times to what a number can tell apart. */
const roundUp = (millis: number): number => Math.max(millis, Math.ceil(millis * 1e6) / 1e6)

/**
 * A bucket of `burst` that is refilled by `rate` per millisecond, as a server sees it that a charge reaches up to
 * `margin` (J) milliseconds later.
 *
 * **The rule.** `level` is the server's bucket if every charge arrived as late as it can: J after it was sent, or when
 * its request was answered. What is still on its way is subtracted at once, and is available = level − pending. A
 * request of q fits when q is available.
 *
 * **Why it is never over.** A server with burst B and refill R refuses none if, for any x ≤ y, what arrives in [x, y]
 * is at most B + R·(y − x). Let z be the last sent of what arrives in [x, y], sent at s ≤ y. When z was let through,
 * each of the others had been sent, and none could be later than its latest arrival, so each of them was pending or
 * had reached `level` at or after min(x, s). So their sum, z included, was at most B + R·(s − min(x, s)), which is B if
 * s ≤ x and at most B + R·(y − x) otherwise. The delays did not matter, so this holds for any delays in [0, J].
 *
 * **Why it is never idle.** With less than q available there are delays with which the server has less than q at
 * some instant at which this request may arrive: everything before it arrives as late as it can. So a burst of all of B
 * is possible after idleness, all of R is used, and what jitter costs is a pause of J after a full burst.
 *
 * **Refunds.** A server gives back at some unknown instant between arrival and now, and what does not fit into its
 * bucket then is lost. The least comes of it when that is at once: as if the charge had been smaller from the start.
 * So the level becomes what it would be then, and a refund is not counted twice where later charges have made room for
 * what the server had no room for. A charge that grows is the reverse: the least is left if that happens now.
 *
 * **Headroom** keeps `headroom` of the burst back from what others use unseen: b = B − headroom is what is there after
 * idleness. It is limited so that half of the bucket and one unit stay usable. A request of b < q ≤ B waits until the
 * level, which goes on to B, has reached q, which is (q − b) / R after full; afterwards b − q is left, so the headroom
 * is whole again before anything follows. A request of q > B is let through when the bucket is full and leaves b − q:
 * it is paced, and a server of B will refuse it.
 */
export class BucketMeter implements Meter {
  capacity = 0
  private margin: number
  private burst = 0
  private rate = 0
  /** More than what the rounding of sums comes to, and nothing to a server: it is refilled in a moment. */
  private rounding = 0
  private at: number
  private cold: boolean

  private readonly base = new Deficit(0, undefined)
  private top = this.base
  private size = 0
  private deficit = 0
  /** Refilled above `capacity`, for a request above it. Nothing is pending and nothing is missing then. */
  private surplus = 0

  private pending = 0
  private pendingSize = 0
  private first: Arrival | undefined
  private last: Arrival | undefined
  /** The first arrival merged into the last. */
  private mergedFrom = 0

  constructor(options: {
    readonly burst: number
    /** Per millisecond. */
    readonly rate: number
    readonly margin?: number | undefined
    /** Kept back from the burst. */
    readonly headroom?: number | undefined
    /** What is available at the start. Full by default. */
    readonly initialLevel?: number | undefined
    /** Whether the first request fits whatever its size. */
    readonly cold?: boolean | undefined
    readonly now: number
  }) {
    this.margin = options.margin ?? 0
    this.cold = options.cold ?? false
    this.at = options.now
    this.shape(options.burst, options.rate, options.headroom ?? 0)
    if (options.initialLevel !== undefined) this.debit(Math.max(0, this.capacity - options.initialLevel))
  }

  used(now: number): number {
    this.advance(now)
    return this.deficit + this.pending
  }

  available(now: number): number {
    return this.capacity - this.used(now)
  }

  fitsAt(amount: number, held: number, now: number): number {
    this.advance(now)
    if (this.cold && held === 0) return now
    const { rounding } = this
    const large = amount > this.capacity + rounding && amount <= this.burst + rounding
    const most = large ? this.burst : this.capacity
    const needed = held + Math.min(amount, most)
    if (needed > most + rounding) return Number.POSITIVE_INFINITY
    let at = Math.max(now, this.at)
    let level = this.capacity - this.deficit + this.surplus
    let pending = this.pending
    let next = this.first
    // While something is pending the level stops at the capacity. Up to there an arrival lowers both the level and
    // what is pending, so nothing changes by it.
    while (next !== undefined && needed + pending > this.capacity + rounding) {
      level = Math.min(this.capacity, level + this.rate * Math.max(0, next.at - at)) - next.amount
      at = Math.max(at, next.at)
      pending -= next.amount
      next = next.next
    }
    const missing = needed + pending - Math.min(level, most)
    if (missing <= rounding) return at
    let fits = roundUp(at + missing / this.rate)
    // The instant must be one at which it fits, and at large times a number may be too coarse to be exact.
    while ((fits - at) * this.rate < missing + rounding) fits += Math.max(1e-6, fits * 2 ** -52)
    return fits
  }

  through(ahead: number, amount: number, held: number, now: number): number {
    if (ahead === 0) return this.fitsAt(amount, held, now)
    const sum = ahead + Math.min(amount, this.capacity)
    const atOnce = Math.min(sum, this.capacity)
    return this.fitsAt(atOnce, held, now) + (sum - atOnce) / this.rate
  }

  charge(amount: number, now: number): Mark {
    this.advance(now)
    this.cold = false
    this.surplus = 0
    if (this.margin === 0 && this.first === undefined) {
      return mark({ amount, arrival: { at: now, amount: 0, next: undefined, deficit: this.debit(amount) } })
    }
    // A margin that was larger before may have left something that arrives later.
    return mark({ amount, arrival: this.send(amount, Math.max(this.at + this.margin, this.last?.at ?? 0)) })
  }

  replay({ amount, at }: Remembered, _now: number): Mark {
    return this.charge(amount, at)
  }

  part(all: Mark, amount: number): Mark {
    const charge = own(all)
    charge.amount -= amount
    return mark({ amount, arrival: charge.arrival })
  }

  landed(mark: Mark, now: number): void {
    this.advance(now)
    const charge = own(mark)
    const { arrival } = charge
    if (arrival.deficit !== undefined) return
    arrival.amount -= charge.amount
    this.pending -= charge.amount
    charge.arrival = { at: now, amount: 0, next: undefined, deficit: this.debit(charge.amount) }
  }

  adjust(mark: Mark, by: number, now: number): boolean {
    this.advance(now)
    const charge = own(mark)
    const { arrival } = charge
    charge.amount += by
    if (arrival.deficit === undefined) {
      arrival.amount += by
      this.pending += by
      return true
    }
    if (by > 0) {
      charge.arrival = { at: now, amount: 0, next: undefined, deficit: this.debit(by) }
      return true
    }
    let deficit = arrival.deficit = this.find(arrival.deficit)
    if (deficit === this.base) return false
    let left = -by
    while (left > 0 && deficit !== this.base) {
      const below: Deficit = deficit.below!
      left -= this.pay(deficit, left)
      deficit = below
    }
    return true
  }

  lower(available: number, now: number): void {
    this.advance(now)
    const level = this.capacity - this.deficit + this.surplus
    this.debit(level - (available + this.pending))
  }

  raise(available: number, now: number): void {
    this.advance(now)
    // The oldest first: what the provider has given back already may be reported as a refund later, and a refund pays
    // older deficits only.
    this.payOldest(available + this.pending - (this.capacity - this.deficit))
  }

  /** Another bucket from now on. What is in it stays, as far as it has room. */
  reshape(burst: number, rate: number, headroom: number, now: number, margin = this.margin): void {
    this.advance(now)
    this.margin = margin
    const level = this.capacity - this.deficit + this.surplus
    this.shape(burst, rate, headroom)
    const more = this.capacity - this.deficit - level
    this.surplus = Math.max(0, Math.min(this.surplus, this.burst - this.capacity, -more))
    if (more <= 0) this.payOldest(-more)
    else this.debitOldest(more)
  }

  /** The first request has to fit like any other. */
  warm(): void {
    this.cold = false
  }

  private shape(burst: number, rate: number, headroom: number): void {
    this.burst = burst
    this.capacity = Math.max(burst - headroom, burst / 2, Math.min(burst, 1))
    this.rate = rate
    this.rounding = burst * 2 ** -46
  }

  private advance(now: number): void {
    while (this.first !== undefined && this.first.at <= now) {
      const arrival = this.first
      this.refillUntil(arrival.at)
      this.first = arrival.next
      this.pendingSize--
      // An old arrival must not keep all that came after it.
      arrival.next = undefined
      this.pending -= arrival.amount
      arrival.deficit = this.debit(arrival.amount)
      if (this.first === undefined) {
        this.last = undefined
        this.pending = 0
      }
    }
    this.refillUntil(now)
  }

  private refillUntil(now: number): void {
    if (now <= this.at) return
    let left = this.rate * (now - this.at)
    this.at = now
    while (left > 0 && this.top !== this.base) left -= this.pay(this.top, left)
    if (this.top !== this.base) return
    this.deficit = 0
    if (this.first === undefined) this.surplus = Math.min(this.burst - this.capacity, this.surplus + left)
  }

  private send(amount: number, at: number): Arrival {
    this.pending += amount
    const { last } = this
    if (
      last !== undefined &&
      (last.at === at || (this.pendingSize >= exactPending && at - this.mergedFrom < this.margin / exactPending))
    ) {
      last.at = at
      last.amount += amount
      return last
    }
    const arrival: Arrival = { at, amount, next: undefined, deficit: undefined }
    if (last === undefined) this.first = arrival
    else last.next = arrival
    this.last = arrival
    this.mergedFrom = at
    this.pendingSize++
    return arrival
  }

  private debit(amount: number): Deficit {
    const fromSurplus = Math.min(this.surplus, amount)
    if (fromSurplus > 0) this.surplus -= fromSurplus
    const left = amount - Math.max(0, fromSurplus)
    if (left <= 0) return this.top
    const deficit = new Deficit(left, this.top)
    this.top.above = deficit
    this.top = deficit
    this.deficit += left
    this.size++
    if (this.size > exactDeficits) this.compact()
    return deficit
  }

  private debitOldest(amount: number): void {
    const { above } = this.base
    const deficit = new Deficit(amount, this.base)
    deficit.above = above
    this.base.above = deficit
    if (above === undefined) this.top = deficit
    else above.below = deficit
    this.deficit += amount
    this.size++
  }

  private payOldest(amount: number): void {
    let left = amount
    let deficit = this.base.above
    while (left > 0 && deficit !== undefined) {
      const above: Deficit | undefined = deficit.above
      left -= this.pay(deficit, left)
      deficit = above
    }
  }

  /** How much of it was paid. */
  private pay(deficit: Deficit, amount: number): number {
    if (deficit.amount > amount) {
      deficit.amount -= amount
      this.deficit -= amount
      return amount
    }
    this.remove(deficit)
    this.deficit = this.top === this.base ? 0 : this.deficit - deficit.amount
    return deficit.amount
  }

  private remove(deficit: Deficit): void {
    const { above } = deficit
    const below = deficit.below!
    deficit.live = false
    deficit.above = undefined
    below.above = above
    if (above === undefined) this.top = below
    else above.below = below
    this.size--
  }

  private find(deficit: Deficit): Deficit {
    let found = deficit
    while (!found.live) {
      const below = found.below!
      if (!below.live) found.below = below.below
      found = found.below!
    }
    return found
  }

  // What joins a newer deficit is out of reach of its own refunds: they pay older ones only, which is too little
  // rather than too much.
  private compact(): void {
    let deficit = this.base.above
    while (deficit !== undefined && deficit.above !== undefined) {
      const above: Deficit = deficit.above
      above.amount += deficit.amount
      this.remove(deficit)
      deficit = above.above
    }
  }
}
