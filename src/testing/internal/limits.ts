/**
 * The algorithms of rate limits, each the literal definition made incremental. All instants are whole nanoseconds on
 * the clock of the ledger, so that a charge made at `s` leaves its window exactly at `s + period`. No operation costs
 * more than the logarithm of the charges so far, amortised.
 */
import type { Algorithm, Dimension } from "../ProviderSimulator.ts"
import { nextMidnight } from "./calendar.ts"

/** A limit with every default filled in. Times are milliseconds; `period` is `Infinity` for a concurrency limit. */
export interface Limit {
  readonly dimension: Dimension
  readonly limit: number
  readonly period: number
  readonly algorithm?: Algorithm | undefined
  readonly burst?: number | undefined
  readonly phase?: number | undefined
  readonly timeZone?: string | undefined
  readonly quantum?: number | undefined
  readonly countRefused?: "none" | "requests" | "all" | undefined
  readonly scope?: "key" | "project" | "org" | undefined
  readonly group?: string | undefined
  readonly pool?: "priority" | "fast" | undefined
}

export const nanos = (millis: number): number => Math.round(millis * 1e6)

/** Also longer ones, but not those of concurrency, which have no period. */
export const isDay = ({ period }: Pick<Limit, "period">): boolean => period >= 86_400_000 && period < Infinity

/** Whose charge it is: only those of admitted requests belong to the books. */
export type Owner = "admitted" | "refused" | "foreign"

/** Room for what adding up fractions may lose. Whole numbers are exact without it. */
const slack = (limit: number): number => Math.abs(limit) * 1e-9

// Negated, so that a limit of NaN refuses everything instead of admitting everything.
export const isOver = (sum: number, limit: number): boolean => !(sum <= limit + slack(limit))

/** What was charged to one limit, in order of time, with prefix sums in a binary indexed tree. */
export const makeHistory = () => {
  const at: Array<number> = []
  const amount: Array<number> = []
  const owner: Array<Owner> = []
  const tree: Array<number> = [0]

  return {
    at,
    amount,
    owner,
    append: (instant: number, value: number, by: Owner): number => {
      at.push(instant)
      amount.push(value)
      owner.push(by)
      const node = at.length
      let sum = value
      for (let step = 1; step < (node & -node); step *= 2) sum += tree[node - step] ?? 0
      tree.push(sum)
      return node - 1
    },
    rewrite: (index: number, value: number): number => {
      const delta = value - (amount[index] ?? 0)
      amount[index] = value
      for (let node = index + 1; node < tree.length; node += node & -node) tree[node] = (tree[node] ?? 0) + delta
      return delta
    },
    /** The sum of all before `index`. */
    before: (index: number): number => {
      let sum = 0
      for (let node = index; node > 0; node -= node & -node) sum += tree[node] ?? 0
      return sum
    },
    /** The first index at which the sum of all up to it, itself included, reaches `target`. */
    reaches: (target: number): number => {
      let node = 0
      let left = target
      for (let step = 2 ** Math.floor(Math.log2(Math.max(1, at.length))); step >= 1; step /= 2) {
        const value = node + step <= at.length ? tree[node + step] : undefined
        if (value !== undefined && value < left) {
          node += step
          left -= value
        }
      }
      return node
    }
  }
}

export type History = ReturnType<typeof makeHistory>

/**
 * One limit as its algorithm keeps it. `clock` never goes back. A `need` of 0 asks only that something is left.
 *
 * - `capacity`: no charge above it ever fits
 * - `fitsAt`: the first instant at which the need fits if nothing else happens; `Infinity` when time alone won't do
 * - `wholeAt`: the instant at which the whole limit is available again
 * - `added`, `rewritten`: tell of a change to the history; `sync` comes before either
 */
export interface Gauge {
  readonly capacity: () => number
  readonly remaining: (clock: number) => number
  readonly fits: (need: number, clock: number) => boolean
  readonly fitsAt: (need: number, clock: number) => number
  readonly wholeAt: (clock: number) => number
  readonly sync: (clock: number) => void
  readonly added: (amount: number) => void
  readonly rewritten: (index: number, delta: number) => void
  readonly setLimit: (limit: number) => void
  readonly restart: () => void
}

/** Charges dated in `(t - period, t]`. */
const sliding = (history: History, initial: number, period: number): Gauge => {
  let limit = initial
  let start = 0
  let sum = 0
  const fits = (need: number) => need === 0 ? sum < limit : !isOver(sum + need, limit)
  const sync = (clock: number) => {
    while (start < history.at.length && (history.at[start] ?? 0) + period <= clock) sum -= history.amount[start++] ?? 0
    if (start === history.at.length) sum = 0
  }
  return {
    capacity: () => limit,
    remaining: () => limit - sum,
    fits,
    fitsAt: (need, clock) => {
      if (fits(need)) return clock
      const excess = need === 0 ? sum - limit + slack(limit) : sum + need - limit - slack(limit)
      const freed = history.reaches(history.before(start) + excess)
      return freed < history.at.length ? (history.at[freed] ?? 0) + period : Infinity
    },
    wholeAt: (clock) => {
      if (!(sum > 0)) return clock
      const last = history.reaches(history.before(start) + sum - slack(sum))
      return (history.at[Math.min(last, history.at.length - 1)] ?? 0) + period
    },
    sync,
    added: (amount) => void (sum += amount),
    rewritten: (index, delta) => void (sum += index >= start ? delta : 0),
    setLimit: (value) => void (limit = value),
    restart: () => {
      start = history.at.length
      sum = 0
    }
  }
}

/** A level that refills at `limit` a `period` up to `burst`, by default the whole limit, and starts full. */
const bucket = (history: History, initial: number, period: number, burst: number | undefined): Gauge => {
  let limit = initial
  let capacity = burst ?? initial
  let level = capacity
  let last = 0
  let first = 0
  const fits = (need: number) => need === 0 ? level > 0 : need <= level + slack(capacity)
  return {
    capacity: () => capacity,
    remaining: () => level,
    fits,
    fitsAt: (need, clock) =>
      fits(need)
        ? clock
        : isOver(need, capacity)
        ? Infinity
        : clock + Math.ceil((need - level) * period / limit) + (need === 0 ? 1 : 0),
    wholeAt: (clock) => clock + Math.max(0, capacity - level) * period / limit,
    sync: (clock) => {
      level = Math.min(capacity, level + (clock - last) * limit / period)
      last = clock
    },
    added: (amount) => void (level -= amount),
    rewritten: (index, delta) => void (level = index >= first ? Math.min(capacity, level - delta) : level),
    setLimit: (value) => {
      limit = value
      capacity = burst ?? value
      level = Math.min(level, capacity)
    },
    restart: () => {
      level = capacity
      first = history.at.length
    }
  }
}

/** Windows one after another; `endAfter` gives the end of the one that holds an instant. */
const fixed = (history: History, initial: number, endAfter: (clock: number) => number): Gauge => {
  let limit = initial
  let end = 0
  let first = 0
  let sum = 0
  const fits = (need: number) => need === 0 ? sum < limit : !isOver(sum + need, limit)
  return {
    capacity: () => limit,
    remaining: () => limit - sum,
    fits,
    fitsAt: (need, clock) => fits(need) ? clock : isOver(need, limit) ? Infinity : end,
    wholeAt: (clock) => sum > 0 ? end : clock,
    sync: (clock) => {
      if (clock < end) return
      end = endAfter(clock)
      first = history.at.length
      sum = 0
    },
    added: (amount) => void (sum += amount),
    rewritten: (index, delta) => void (sum += index >= first ? delta : 0),
    setLimit: (value) => void (limit = value),
    restart: () => {
      first = history.at.length
      sum = 0
    }
  }
}

/**
 * A bucket of one second whose rate is twice the rate that got through lately, an average with a time constant of a
 * minute, at least `floor` and at most `ceiling` a period. A charge above one second's share passes when the bucket is
 * full.
 */
const dynamic = (initial: number, period: number, ceiling: number | undefined): Gauge => {
  const memory = nanos(60_000)
  const second = nanos(1000)
  let floor = initial
  let average = initial / 2
  let last = 0
  const rate = () => Math.min(ceiling ?? 10 * floor, Math.max(floor, 2 * average))
  const capacity = () => Math.max(1, rate() * second / period)
  let level = capacity()
  const target = (need: number) => Math.min(need, capacity())
  const fits = (need: number) => need === 0 ? level > 0 : target(need) <= level + slack(capacity())
  return {
    capacity: () => Infinity,
    remaining: () => level,
    fits,
    fitsAt: (need, clock) =>
      fits(need) ? clock : clock + Math.ceil((target(need) - level) * period / rate()) + (need === 0 ? 1 : 0),
    wholeAt: (clock) => clock + Math.max(0, capacity() - level) * period / rate(),
    sync: (clock) => {
      level = Math.min(capacity(), level + (clock - last) * rate() / period)
      average *= Math.exp((last - clock) / memory)
      last = clock
    },
    added: (amount) => {
      level -= amount
      average += amount * period / memory
    },
    rewritten: (_, delta) => void (level = Math.min(capacity(), level - delta)),
    setLimit: (value) => void (floor = value),
    restart: () => {
      average = floor / 2
      level = capacity()
    }
  }
}

/** The slots in use: what is added is taken away again when the request ends. */
const slots = (initial: number): Gauge => {
  let limit = initial
  let used = 0
  const fits = (need: number) => !isOver(used + need, limit)
  return {
    capacity: () => limit,
    remaining: () => limit - used,
    fits,
    fitsAt: (need, clock) => fits(need) ? clock : Infinity,
    wholeAt: (clock) => clock,
    sync: () => {},
    added: (amount) => void (used += amount),
    rewritten: () => {},
    setLimit: (value) => void (limit = value),
    restart: () => {}
  }
}

/** The end of the fixed window of `limit` that holds an instant. `epoch` is the Unix time of instant 0. */
export const fixedEnds = ({ period, phase = 0, timeZone }: Limit, epoch: number) => {
  if (timeZone !== undefined) return (clock: number) => nanos(nextMidnight(timeZone, epoch + clock / 1e6) - epoch)
  const length = nanos(period)
  const offset = nanos(((epoch - phase) % period + period) % period)
  return (clock: number) => (Math.floor((clock + offset) / length) + 1) * length - offset
}

/** The gauges of one limit: itself, and with a quantum its share of every quantum. */
export const gauges = (limit: Limit, history: History, epoch: number): ReadonlyArray<Gauge> => {
  const make = (spec: Limit): Gauge => {
    const period = nanos(spec.period)
    switch (spec.algorithm ?? "sliding") {
      case "sliding":
        return sliding(history, spec.limit, period)
      case "bucket":
        return bucket(history, spec.limit, period, spec.burst)
      case "fixed":
        return fixed(history, spec.limit, fixedEnds(spec, epoch))
      case "dynamic":
        return dynamic(spec.limit, period, spec.burst)
    }
  }
  if (limit.dimension === "concurrent") return [slots(limit.limit)]
  return limit.quantum === undefined ? [make(limit)] : [
    make(limit),
    make({
      ...limit,
      limit: quantumLimit(limit, limit.limit),
      period: limit.quantum,
      burst: undefined,
      timeZone: undefined
    })
  ]
}

/** What one quantum may use: its share, but never less than one request. */
export const quantumLimit = ({ dimension, period, quantum = period }: Limit, limit: number): number =>
  Math.max(limit * quantum / period, dimension === "requests" ? 1 : 0)
