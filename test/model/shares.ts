/**
 * What tenants were served while they waited together. For each two of them, and from the time on since when both have
 * waited, the difference by weight is no more than their largest requests are by weight.
 */
import type { Request } from "./request.ts"

interface Pair {
  readonly tenants: readonly [string | undefined, string | undefined]
  /** What the first was served more than the second, by weight. */
  difference: number
}

export class Shares {
  private pairs = new Map<string, Pair>()
  private readonly weightOf: (tenant: string | undefined) => number
  private readonly largest = new Map<string | undefined, number>()
  /** What goes before all others has made a difference that lasts until nobody waits. */
  private isOff = false

  constructor(weightOf: (tenant: string | undefined) => number) {
    this.weightOf = weightOf
  }

  /** Other limits: what is served costs something else. */
  reset(): void {
    this.pairs.clear()
    this.largest.clear()
    this.isOff = true
  }

  /** Says whose share is not as it should be. `waiting` is what waits for its turn, the request included. */
  serve(
    request: Request,
    waiting: ReadonlyArray<Request>,
    costOf: (request: Request) => number
  ): string | undefined {
    const tenants = Array.from(new Set(waiting.map(({ context }) => context.tenant)))
      .toSorted((one, two) => (one ?? "").localeCompare(two ?? ""))
    if (request.nested || request.onceNested) this.isOff = true
    else if (tenants.length < 2) {
      this.isOff = waiting.length > 1 && this.isOff
      this.pairs.clear()
    }
    for (const other of waiting) {
      const { tenant } = other.context
      this.largest.set(tenant, Math.max(this.largest.get(tenant) ?? 0, costOf(other) / this.weightOf(tenant)))
    }
    const before = this.pairs
    this.pairs = new Map()
    if (this.isOff) return undefined
    let problem: string | undefined
    const cost = costOf(request) / this.weightOf(request.context.tenant)
    for (const [index, one] of tenants.entries()) {
      for (const two of tenants.slice(index + 1)) {
        const pair = before.get(`${one} ${two}`) ?? { tenants: [one, two], difference: 0 }
        this.pairs.set(`${one} ${two}`, pair)
        if (request.context.tenant === one) pair.difference += cost
        if (request.context.tenant === two) pair.difference -= cost
        const most = this.largest.get(one)! + this.largest.get(two)!
        if (Math.abs(pair.difference) > most + 1e-9) problem = `${one} was served ${pair.difference} more than ${two}`
      }
    }
    return problem
  }
}
