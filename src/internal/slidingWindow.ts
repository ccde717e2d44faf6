/**
 * One sliding window over dated charges: exact sums, whatever its content. Times come and go in milliseconds and are
 * kept in whole nanoseconds: the sum of two fractions may be rounded up, and a charge would outlive its period.
 *
 * A charge dated s counts in (t − period, t], so it is gone exactly at s + period. Charges live in blocks that carry
 * their own sum; adding and expiring are O(1) amortised, and asking when some amount will have been freed walks
 * blocks and then one block: O(√n). Blocks grow with their content.
 */

/** Distinct charges a window keeps apart. Above it, charges closer than period / 32,768 share the later date. */
export const exactCharges = 32_768

const blockSize = 256

class Block {
  readonly dates: Array<number> = []
  readonly amounts: Array<number> = []
  sum = 0
  next: Block | undefined = undefined
}

/** Where a charge was put. Several charges may share a place. */
export interface Place {
  readonly block: Block
  readonly index: number
}

const nanos = (millis: number): number => Math.round(millis * 1e6)

export class SlidingWindow {
  /** Net amount dated in the window, as of the last `expire`. */
  used = 0
  private head = new Block()
  private offset = 0
  private tail = this.head
  private size = 0
  /** The first date merged into the last place, so that merging cannot push a date further than the resolution. */
  private mergedFrom = 0

  private readonly period: number

  constructor(period: number) {
    this.period = nanos(period)
  }

  expire(now: number): void {
    const at = nanos(now)
    while (true) {
      const head = this.head
      if (this.offset === head.dates.length) {
        if (head.next === undefined) return
        this.head = head.next
        // A place in an old block must not keep all that came after it.
        head.next = undefined
        this.offset = 0
        continue
      }
      if (head.dates[this.offset]! + this.period > at) return
      const amount = head.amounts[this.offset]!
      head.sum -= amount
      this.used -= amount
      this.offset++
      this.size--
    }
  }

  add(now: number, amount: number): Place {
    const at = nanos(now)
    let block = this.tail
    const last = block.dates.length - 1
    if (last >= 0 && this.size > 0) {
      const crowded = this.size >= exactCharges && at - this.mergedFrom < this.period / exactCharges
      if (crowded || block.dates[last] === at) {
        block.dates[last] = at
        block.amounts[last]! += amount
        block.sum += amount
        this.used += amount
        return { block, index: last }
      }
    }
    if (block.dates.length === blockSize) {
      block = block.next = this.tail = new Block()
    }
    block.dates.push(at)
    block.amounts.push(amount)
    block.sum += amount
    this.used += amount
    this.size++
    this.mergedFrom = at
    return { block, index: block.dates.length - 1 }
  }

  /** Changes a charge where it is dated. `false` when it has left the window already, and nothing changed. */
  adjust(now: number, place: Place, by: number): boolean {
    this.expire(now)
    if (place.block.dates[place.index]! + this.period <= nanos(now)) return false
    place.block.amounts[place.index]! += by
    place.block.sum += by
    this.used += by
    return true
  }

  /** What is in the window, by date. */
  entries(now: number): ReadonlyArray<{ readonly at: number; readonly amount: number }> {
    this.expire(now)
    const entries: Array<{ readonly at: number; readonly amount: number }> = []
    for (let block: Block | undefined = this.head; block !== undefined; block = block.next) {
      for (let i = block === this.head ? this.offset : 0; i < block.dates.length; i++) {
        entries.push({ at: block.dates[i]! / 1e6, amount: block.amounts[i]! })
      }
    }
    return entries
  }

  /** Says where a place is among the entries of now; `undefined` when it has left the window. */
  indexes(now: number): (place: Place) => number | undefined {
    this.expire(now)
    const starts = new Map<Block, number>()
    let start = -this.offset
    for (let block: Block | undefined = this.head; block !== undefined; block = block.next) {
      starts.set(block, start)
      start += block.dates.length
    }
    return ({ block, index }) => {
      const start = starts.get(block)
      return start === undefined || start + index < 0 ? undefined : start + index
    }
  }

  /** The instant at which at least `amount` of what is in the window now has left it. */
  freedAt(amount: number): number {
    let remaining = amount
    let block: Block | undefined = this.head
    let index = this.offset
    while (block !== undefined) {
      if (block.sum < remaining) {
        remaining -= block.sum
        block = block.next
        index = 0
        continue
      }
      for (; index < block.dates.length; index++) {
        remaining -= block.amounts[index]!
        if (remaining <= 0) return (block.dates[index]! + this.period) / 1e6
      }
      block = block.next
      index = 0
    }
    return Number.POSITIVE_INFINITY
  }
}
