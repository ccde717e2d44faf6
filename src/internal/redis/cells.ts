/** How a limit is counted on the server: in one cell or several, of which the first is the limit's own. */
import type * as RateLimiter from "../../RateLimiter.ts"
import { countsTokens, failsWhenExceeded, moneyTolerance } from "../limitState.ts"
import { windowAt } from "../meters/fixedMeter.ts"
import { tolerance } from "../meters/meter.ts"

export interface Cell {
  /** What it is known by on the server: other numbers of the limit do not change it. */
  readonly name: string
  readonly kind: "sliding" | "bucket" | "fixed" | "total" | "permits"
  /** Whether it only spreads requests: it is charged when they are sent. */
  readonly paces: boolean
  /** Milliseconds for which a charge counts, at least. */
  readonly length: number
  /** What the server is told of it. `enforced` is the limit as it is now, `largest` the largest charge so far. */
  readonly describe: (enforced: number, largest: number, wall: number) => Record<string, unknown>
  /** Refill of a bucket, per millisecond. */
  readonly rate: (enforced: number) => number
}

/** How much of a limit is asked for when it is asked when there is more. */
export const unitOf = ({ limit, type }: RateLimiter.Limit): number => type === "budget" ? limit * 1e-6 : 1

/** The cells of a windowed limit. `margin` is added to its own. */
export const cellsOf = (limit: RateLimiter.Limit, prefix: string, margin: number): ReadonlyArray<Cell> => {
  const { algorithm, burst, coldStart, headroom, quantum, type } = limit
  const period = limit.timePeriod!
  const late = limit.margin + margin
  const dated = limit.chargedAt === "dispatch"
  const common = {
    tolerance: type === "budget" ? limit.limit * moneyTolerance : tolerance,
    unit: unitOf(limit),
    fails: failsWhenExceeded(limit),
    returns: limit.charging.refund && countsTokens(limit)
  }
  const rate = (enforced: number) => enforced / period
  const base = `${prefix}${type}:${period}`

  const sliding = (name: string, length: number, share: (limit: number) => number): Cell => ({
    name: `${base}:${name}:${length + late}`,
    kind: "sliding",
    paces: false,
    length: length + late,
    rate,
    describe: (enforced) => ({
      ...common,
      k: "s",
      dated,
      len: length + late,
      cap: share(enforced),
      nominal: share(limit.limit)
    })
  })

  const bucket = (
    name: string,
    most: (enforced: number, largest: number) => number,
    options: { readonly paces: boolean; readonly kept: number; readonly until?: number | undefined }
  ): Cell => ({
    name: `${base}:${name}`,
    kind: "bucket",
    paces: options.paces,
    length: period,
    rate,
    describe: (enforced, largest) => {
      const capacity = (limit: number) => {
        const all = most(limit, largest)
        return Math.max(all - options.kept * rate(limit), all / 2, Math.min(all, 1))
      }
      return {
        ...common,
        k: "b",
        dated: dated || options.paces,
        cap: capacity(enforced),
        nominal: options.paces ? undefined : capacity(limit.limit),
        burst: most(enforced, largest),
        rate: rate(enforced),
        cold: coldStart,
        pace: options.until
      }
    }
  })

  const secondsRefill = (enforced: number) => Math.max(1, rate(enforced) * (1000 - limit.margin))
  const cells: Array<Cell> = []
  if (period === Number.POSITIVE_INFINITY) {
    cells.push({
      name: `${base}:total`,
      kind: "total",
      paces: false,
      length: period,
      rate: () => 0,
      describe: (enforced) => ({ ...common, k: "t", dated, cap: enforced, nominal: limit.limit })
    })
  } else if (algorithm === "tokenBucket") {
    cells.push(bucket("bucket", (enforced) => burst ?? enforced, { paces: false, kept: headroom + late }))
  } else if (algorithm === "fixedWindow") {
    const edges = windowAt(period, limit.timeZone)
    const guard = Math.min(late, period / 4)
    cells.push({
      name: `${base}:fixed:${limit.timeZone}`,
      kind: "fixed",
      paces: false,
      length: period + 2 * guard,
      rate,
      describe: (enforced, _largest, wall) => {
        const { end, start } = edges(wall)
        return {
          ...common,
          k: "f",
          dated,
          from: start,
          to: end,
          after: edges(end).end,
          margin: guard,
          cap: enforced,
          nominal: limit.limit
        }
      }
    })
  } else cells.push(sliding("window", period, (enforced) => enforced))
  if (quantum !== undefined) {
    cells.push(sliding("quantum", quantum, (limit) => Math.max(1, Math.floor((limit * quantum) / period))))
  }
  if (algorithm === "paced") {
    cells.push(
      bucket("pace", (enforced, largest) => burst ?? Math.max(largest, secondsRefill(enforced)), {
        paces: true,
        kept: 0
      })
    )
  } else if (coldStart && algorithm !== "tokenBucket") {
    cells.push(bucket("cold", secondsRefill, { paces: true, kept: 0, until: period + late }))
  }
  return cells
}

/** What a tenant runs at one time. */
export const permitsOf = (limit: number, prefix: string): Cell => ({
  name: `${prefix}concurrent`,
  kind: "permits",
  paces: false,
  length: 0,
  rate: () => 0,
  describe: () => ({ k: "p", cap: limit, unit: 1 })
})
