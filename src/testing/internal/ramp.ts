/** How fast traffic may rise: the literal definition, made incremental. */
import type { Dimension } from "../ProviderSimulator.ts"
import { nanos } from "./limits.ts"

/** With every default filled in. `floor` is an amount a minute, `period` in milliseconds. */
export interface Accel {
  readonly dimension: Dimension
  readonly factor: number
  readonly floor: number
  readonly period: number
}

const minute = nanos(60_000)

/**
 * The rate at an instant is what was admitted in the minute up to it. With what a request asks for, the rate may not be
 * above the floor and above `factor` times the highest rate at any charge of the `period` before this minute.
 */
export const make = ({ dimension, factor, floor, period }: Accel) => {
  const before = nanos(period)
  const at: Array<number> = []
  const amounts: Array<number> = []
  const rates: Array<number> = []
  /** The first charge of the last minute. */
  let first = 0
  let rate = 0
  /** Charges of the period before it, each with a higher rate than all after it. */
  let peaks: Array<number> = []

  const sync = (clock: number): void => {
    for (; first < at.length && (at[first] ?? 0) + minute <= clock; first++) {
      rate -= amounts[first] ?? 0
      while (peaks.length > 0 && (rates[peaks.at(-1) ?? 0] ?? 0) <= (rates[first] ?? 0)) peaks.pop()
      peaks.push(first)
    }
    while (peaks.length > 0 && (at[peaks[0] ?? 0] ?? 0) + minute + before <= clock) peaks.shift()
    if (first === at.length) rate = 0
  }

  return {
    dimension,
    /** The rate now, and the highest that is allowed. */
    state: (clock: number) => {
      sync(clock)
      return { rate, limit: Math.max(floor, factor * (peaks.length > 0 ? rates[peaks[0] ?? 0] ?? 0 : 0)) }
    },
    added: (amount: number, clock: number): void => {
      sync(clock)
      rate += amount
      at.push(clock)
      amounts.push(amount)
      rates.push(rate)
    },
    restart: (): void => {
      first = at.length
      rate = 0
      peaks = []
    }
  }
}

export type Ramp = ReturnType<typeof make>
