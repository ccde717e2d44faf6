import { type Place, SlidingWindow } from "../slidingWindow.ts"
import { type History, type Mark, type Meter, type Remembered, tolerance } from "./meter.ts"

/** Phantoms kept apart. Above it, each new one takes the older half's amounts along to its own, later date. */
const phantomLimit = 1024

interface Phantom {
  readonly place: Place
  amount: number
}

// The two places where an opaque mark is made and read back.
const mark = (place: Place): Mark => place as unknown as Mark
const place = (mark: Mark): Place => mark as unknown as Place

/**
 * At most `capacity` in any window of `length` milliseconds.
 *
 * With length = T + J it is safe with a server that counts T, when delays differ by at most J: two arrivals less than
 * T apart were sent less than T + J apart.
 *
 * Where the provider has less left than is known here, others have used it. Nobody knows when, so it is charged now
 * (a phantom), for a whole length.
 */
export class SlidingMeter implements Meter {
  capacity: number
  readonly length: number
  private readonly tolerance: number
  private readonly window: SlidingWindow
  /** By date, the first `gone` of them without effect. */
  private readonly phantoms: Array<Phantom> = []
  private gone = 0

  constructor(options: {
    readonly capacity: number
    /** `Infinity` for ever. */
    readonly length: number
    readonly tolerance?: number | undefined
  }) {
    this.tolerance = options.tolerance ?? tolerance
    this.capacity = options.capacity
    this.length = options.length
    this.window = new SlidingWindow(options.length)
  }

  used(now: number): number {
    const window = this.window
    window.expire(now)
    // Fractions may leave a rounding error behind: an empty window has used nothing.
    if (
      window.used !== 0 && this.length < Number.POSITIVE_INFINITY &&
      window.freedAt(Number.NEGATIVE_INFINITY) === Number.POSITIVE_INFINITY
    ) window.used = 0
    return window.used
  }

  available(now: number): number {
    return this.capacity - this.used(now)
  }

  fitsAt(amount: number, held: number, now: number): number {
    const { tolerance } = this
    const used = this.used(now)
    const room = Math.max(this.capacity, amount) - held - amount
    if (used <= room + tolerance) return now
    if (room < -tolerance) return Number.POSITIVE_INFINITY
    // Half of the tolerance is for the rounding of the sum that is freed.
    const freed = this.window.freedAt(used - room - tolerance / 2)
    return freed === Number.POSITIVE_INFINITY ? now + this.length : Math.max(now, freed)
  }

  through(ahead: number, amount: number, held: number, now: number): number {
    const sum = ahead + Math.min(amount, this.capacity)
    // No more than the capacity goes through in any length.
    const lengths = Math.max(0, Math.ceil(sum / this.capacity - 1e-9) - 1)
    return this.fitsAt(sum - lengths * this.capacity, held, now) + (lengths === 0 ? 0 : lengths * this.length)
  }

  charge(amount: number, now: number): Mark {
    this.window.expire(now)
    return mark(this.window.add(now, amount))
  }

  replay({ amount, at, others }: Remembered, _now: number): Mark {
    const place = this.window.add(at, amount)
    if (others > 0) this.phantoms.push({ place, amount: others })
    return mark(place)
  }

  part(mark: Mark, _amount: number): Mark {
    return mark
  }

  history(now: number): History {
    const find = this.window.indexes(now)
    const others = new Map<number, number>()
    for (const phantom of this.phantoms) {
      const index = find(phantom.place)
      if (index !== undefined) others.set(index, (others.get(index) ?? 0) + phantom.amount)
    }
    return {
      entries: this.window.entries(now).map(({ amount, at }, index) => ({
        at,
        amount,
        others: others.get(index) ?? 0
      })),
      find: (mark) => find(place(mark))
    }
  }

  landed(_mark: Mark, _now: number): void {}

  adjust(mark: Mark, by: number, now: number): boolean {
    return this.window.adjust(now, place(mark), by)
  }

  lower(available: number, now: number): void {
    const amount = this.available(now) - available
    if (amount <= 0) return
    const phantoms = this.phantoms
    while (this.gone < phantoms.length && !this.window.adjust(now, phantoms[this.gone]!.place, 0)) this.gone++
    let moved = 0
    if (phantoms.length >= phantomLimit) {
      const kept = Math.max(this.gone, phantomLimit / 2)
      for (let i = this.gone; i < kept; i++) {
        this.window.adjust(now, phantoms[i]!.place, -phantoms[i]!.amount)
        moved += phantoms[i]!.amount
      }
      phantoms.splice(0, kept)
      this.gone = 0
    }
    phantoms.push({ place: this.window.add(now, amount + moved), amount: amount + moved })
  }

  raise(available: number, now: number): void {
    let amount = available - this.available(now)
    // The oldest first: those that stay are gone the latest.
    for (; amount > 0 && this.gone < this.phantoms.length; this.gone++) {
      const phantom = this.phantoms[this.gone]!
      const by = Math.min(phantom.amount, amount)
      if (!this.window.adjust(now, phantom.place, -by)) continue
      phantom.amount -= by
      amount -= by
      if (phantom.amount > 0) return
    }
  }

  /** This much of what others use is so still: the latest of it counts for a whole length from now on. */
  confirm(others: number, now: number): void {
    let amount = 0
    for (let phantom = this.phantoms.pop(); phantom !== undefined; phantom = this.phantoms.pop()) {
      const by = Math.min(phantom.amount, others - amount)
      if (!this.window.adjust(now, phantom.place, -by)) break
      phantom.amount -= by
      amount += by
      if (phantom.amount > 0) {
        this.phantoms.push(phantom)
        break
      }
    }
    if (amount > 0) this.phantoms.push({ place: this.window.add(now, amount), amount })
  }

  /** What others use, as far as it has been told. */
  others(now: number): number {
    this.window.expire(now)
    let amount = 0
    for (const phantom of this.phantoms) if (this.window.adjust(now, phantom.place, 0)) amount += phantom.amount
    return amount
  }

  setCapacity(capacity: number): void {
    this.capacity = capacity
  }
}
