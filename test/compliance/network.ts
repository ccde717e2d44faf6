/** What lies between the client and the provider. */
import { type Random, random } from "../schedules/seededScheduler.ts"

export interface Options {
  /** Least one-way delay to the provider. Milliseconds, like all others. */
  readonly uplink: number
  /** Spread of the uplink: a delay is in `[uplink, uplink + jitter]`. */
  readonly jitter: number
  /** How the delays are spread: all equally likely, or only the two ends, which is the worst there is. */
  readonly spread: "uniform" | "twoPoint"
  readonly downlink: number
}

export interface Network extends Options {
  readonly up: () => number
  readonly down: () => number
}

export const make = (options: Options, seed: number): Network => {
  const next: Random = random(seed)
  return {
    ...options,
    up: () => {
      const x = next()
      return options.uplink + options.jitter * (options.spread === "uniform" ? x : Math.round(x))
    },
    down: () => options.downlink
  }
}
