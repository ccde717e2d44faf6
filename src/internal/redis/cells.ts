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
  /**
   * Whether what was charged so many milliseconds ago, at that time of the server, still counts when the server hears that
   * it is sent only now: else others may have been let in in its place.
   */
  readonly outlives: (late: number, wall: number) => boolean
  /** What fits at once when nothing is used. */
  readonly capacity: (enforced: number) => number
}

/** For how long the server keeps what counts for ever and nobody asks about. */
export const year = 365 * 86_400_000

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
  /** What a cell is told of how much of the limit is enforced, so that others enforce no more. */
  const part = (enforced: number) => enforced / limit.limit
  const rate = (enforced: number) => enforced / period
  const base = `${prefix}${type}:${period}`
  /** With as much time to spare for the way to the server. */
  const within = (length: number) => (late: number) => 2 * late <= length

  const sliding = (name: string, length: number, share: (limit: number) => number): Cell => ({
    name: `${base}:${name}:${length + late}`,
    kind: "sliding",
    paces: false,
    length: length + late,
    outlives: within(length + late),
    capacity: share,
    describe: (enforced) => ({
      ...common,
      k: "s",
      dated,
      keep: length + late,
      len: length + late,
      cap: share(enforced),
      part: part(enforced)
    })
  })

  const bucket = (
    name: string,
    most: (enforced: number, largest: number) => number,
    options: {
      readonly paces: boolean
      readonly kept: number
      readonly late: number
      readonly until?: number | undefined
    }
  ): Cell => {
    const capacity = (enforced: number, largest = 1) => {
      const all = most(enforced, largest)
      return Math.max(all - options.kept * rate(enforced), all / 2, Math.min(all, 1))
    }
    const full = Math.max(period, most(limit.limit, 1) / rate(limit.limit))
    return {
      name: `${base}:${name}`,
      kind: "bucket",
      paces: options.paces,
      length: full,
      outlives: within(full),
      capacity,
      describe: (enforced, largest) => {
        const all = most(enforced, largest)
        const cap = capacity(enforced, largest)
        // What is sent in a time, and is as much later as it can be, must be no more than the bucket and its refill: where
        // not enough can be kept back for that, the refill is slower.
        const slow = options.late === 0
          ? Number.POSITIVE_INFINITY
          : Math.max((all - cap) / options.late, cap / (options.late + cap / rate(enforced)) * (all <= 1 ? 1 : 0))
        return {
          ...common,
          k: "b",
          dated: dated || options.paces,
          keep: full,
          cap,
          part: options.paces ? undefined : part(enforced),
          fixed: burst !== undefined,
          burst: all,
          rate: Math.min(rate(enforced), slow),
          cold: coldStart,
          pace: options.until
        }
      }
    }
  }

  const secondsRefill = (enforced: number) => Math.max(1, rate(enforced) * (1000 - limit.margin))
  const cells: Array<Cell> = []
  if (period === Number.POSITIVE_INFINITY) {
    cells.push({
      name: `${base}:total`,
      kind: "total",
      paces: false,
      length: period,
      outlives: () => true,
      capacity: (enforced) => enforced,
      describe: (enforced) => ({ ...common, k: "t", dated, keep: year, cap: enforced, part: part(enforced) })
    })
  } else if (algorithm === "tokenBucket") {
    cells.push(bucket("bucket", (enforced) => burst ?? enforced, { paces: false, kept: headroom + late, late }))
  } else if (algorithm === "fixedWindow") {
    const edges = windowAt(period, limit.timeZone)
    const guard = Math.min(late, period / 4)
    cells.push({
      name: `${base}:fixed:${limit.timeZone}`,
      kind: "fixed",
      paces: false,
      length: period + 2 * guard,
      outlives: (late, wall) => wall + 2 * late <= edges(wall).end,
      capacity: (enforced) => enforced,
      describe: (enforced, _largest, wall) => {
        const { end, start } = edges(wall)
        return {
          ...common,
          k: "f",
          dated,
          keep: 2 * period,
          from: start,
          to: end,
          after: edges(end).end,
          margin: guard,
          cap: enforced,
          part: part(enforced)
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
        kept: 0,
        late: 0
      })
    )
  } else if (coldStart && algorithm !== "tokenBucket") {
    cells.push(bucket("cold", secondsRefill, { paces: true, kept: 0, late: 0, until: period + late }))
  }
  return cells
}

/** What a tenant runs at one time. */
export const permitsOf = (limit: number, prefix: string): Cell => ({
  name: `${prefix}concurrent`,
  kind: "permits",
  paces: false,
  length: 0,
  outlives: () => true,
  capacity: () => limit,
  describe: () => ({ k: "p", cap: limit, unit: 1 })
})
