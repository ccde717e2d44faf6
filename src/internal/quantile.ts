/** Quantiles of the most recent values: exact, in memory that never exceeds the capacity. */
export class RecentQuantile {
  /** By age: a ring that starts at `next` once it is full. */
  private readonly values: Array<number> = []
  private readonly sorted: Array<number> = []
  private next = 0
  private readonly capacity: number

  constructor(capacity: number) {
    this.capacity = capacity
  }

  get size(): number {
    return this.values.length
  }

  /** 0 when there are none. */
  get largest(): number {
    return this.sorted.at(-1) ?? 0
  }

  add(value: number): void {
    if (this.values.length === this.capacity) {
      this.sorted.splice(this.firstNotBelow(this.values[this.next]!), 1)
    }
    this.values[this.next] = value
    this.next = (this.next + 1) % this.capacity
    this.sorted.splice(this.firstNotBelow(value), 0, value)
  }

  /**
   * A value that the next one stays at or below with a probability of at least `q`, when all come from one
   * distribution: of n values the one of rank ⌈q·(n + 1)⌉, or the largest while n is too small for that. 0 when there
   * are none.
   */
  quantile(q: number): number {
    const rank = Math.ceil(q * (this.sorted.length + 1))
    return this.sorted[Math.min(Math.max(rank, 1), this.sorted.length) - 1] ?? 0
  }

  private firstNotBelow(value: number): number {
    let low = 0
    let high = this.sorted.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (this.sorted[middle]! < value) low = middle + 1
      else high = middle
    }
    return low
  }
}
