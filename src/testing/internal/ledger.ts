/**
 * The provider as a pure model: strict sliding logs in front of a ledger of everything that arrived. No clock inside,
 * every operation takes `now` in milliseconds. Instants are compared in whole nanoseconds, so that a charge made at
 * `s` is gone exactly at `s + period`, whatever floating point makes of the sum.
 */
import type { Arrival, Charge, Dimension, LimitReport, ModelReport, Report } from "../ProviderSimulator.ts"

/** A limit with its period in milliseconds; `Infinity` for a concurrency limit. */
export interface Limit {
  readonly dimension: Dimension
  readonly limit: number
  readonly period: number
}

/** The level of one limit just after a request was decided. */
export interface Quota extends Limit {
  readonly remaining: number
  /** Milliseconds until the limit is whole again, if nothing else arrives. */
  readonly reset: number
}

export interface Refusal extends Limit {
  readonly used: number
  readonly requested: number
  readonly retryAfter: number | undefined
  readonly tooLarge: boolean
}

interface Decision {
  readonly id: number
  readonly at: number
  readonly quotas: ReadonlyArray<Quota>
  readonly refusal: Refusal | undefined
}

type Entry = { -readonly [K in keyof Arrival]: Arrival[K] }

/**
 * The entries of the log from `start` on are inside the window, and `sum` is what they are charged. A concurrency limit
 * is a window that never expires and whose charge is given back when the request ends.
 */
interface Window extends Limit {
  start: number
  sum: number
}

interface Model {
  readonly id: string
  readonly windows: ReadonlyArray<Window>
  readonly log: Array<Entry>
  running: number
  maxConcurrent: number
}

/** The order in which a refusal looks for the limit to name. */
const order: ReadonlyArray<Dimension> = ["requests", "tokens", "input", "output", "concurrent"]
const nothing: Charge = { requests: 0, tokens: 0, input: 0, output: 0, concurrent: 0 }
const nanos = (millis: number): number => Math.round(millis * 1e6)
const expiry = (arrival: Arrival, limit: Limit): number => nanos(arrival.at) + nanos(limit.period)

const isTimed = (limit: Limit): boolean => limit.dimension !== "concurrent"

// Negated, so that a limit of NaN refuses everything instead of admitting everything.
const isOver = (sum: number, window: Window): boolean => !(sum <= window.limit)

export const make = (options: {
  readonly models: Readonly<Record<string, ReadonlyArray<Limit>>>
  readonly countRefused: boolean
}) => {
  const entries: Array<Entry> = []
  const models = new Map<string, Model>(
    Object.entries(options.models).map(([id, limits]) => [id, {
      id,
      windows: limits
        .toSorted((a, b) => order.indexOf(a.dimension) - order.indexOf(b.dimension))
        .map(({ dimension, limit, period }) => ({ dimension, limit, period, start: 0, sum: 0 })),
      log: [],
      running: 0,
      maxConcurrent: 0
    }])
  )
  const running = new Map<number, { readonly entry: Entry; readonly model: Model }>()
  let clock = 0

  const advance = (model: Model, now: number): number => {
    clock = Math.max(clock, nanos(now))
    for (const window of model.windows) {
      let entry = model.log[window.start]
      while (entry !== undefined && expiry(entry, window) <= clock) {
        window.sum -= entry.net[window.dimension]
        window.start++
        entry = model.log[window.start]
      }
    }
    return clock
  }

  /** The first instant at which the charge fits the window, in nanoseconds, if nothing else happens. */
  const fitsAt = (model: Model, window: Window, charge: Charge): number => {
    let at = clock
    let sum = window.sum + charge[window.dimension]
    let next = window.start
    while (isOver(sum, window)) {
      const entry = model.log[next++]
      if (entry === undefined) return Infinity
      sum -= entry.net[window.dimension]
      at = expiry(entry, window)
    }
    return at
  }

  const quota = (model: Model, window: Window): Quota => {
    const { dimension, limit, period } = window
    const last = model.log.findLast((entry) => entry.net[dimension] > 0)
    const reset = last === undefined ? 0 : Math.max(0, expiry(last, window) - clock) / 1e6
    return { dimension, limit, period, remaining: Math.max(0, limit - window.sum), reset }
  }

  /** Decides over all limits at once and charges all of them or none. `undefined` for a model that does not exist. */
  const admit = (modelId: string, input: number, output: number, now: number): Decision | undefined => {
    const model = models.get(modelId)
    if (model === undefined) return undefined
    const at = advance(model, now)
    const charge: Charge = { requests: 1, tokens: input + output, input, output, concurrent: 1 }
    const tooLarge = model.windows.find((window) => isOver(charge[window.dimension], window))
    const failed = tooLarge ?? model.windows.find((window) => isOver(window.sum + charge[window.dimension], window))
    const used = failed?.sum ?? 0
    const entry: Entry = {
      id: entries.length + 1,
      model: modelId,
      at: at / 1e6,
      charge,
      net: failed === undefined ? charge : options.countRefused ? { ...nothing, requests: 1 } : nothing,
      admitted: failed === undefined,
      failedDimension: failed?.dimension,
      retryAfter: undefined,
      completedAt: undefined,
      abortedAt: undefined
    }
    entries.push(entry)
    if (entry.net !== nothing) {
      model.log.push(entry)
      for (const window of model.windows) window.sum += entry.net[window.dimension]
    }
    if (failed === undefined) {
      running.set(entry.id, { entry, model })
      model.running++
      model.maxConcurrent = Math.max(model.maxConcurrent, model.running)
    } else if (tooLarge === undefined) {
      // After the refused request was charged: where it counts, it delays its own retry.
      const latest = Math.max(...model.windows.filter(isTimed).map((window) => fitsAt(model, window, charge)))
      entry.retryAfter = latest > at && latest < Infinity ? (latest - at) / 1e6 : undefined
    }
    return {
      id: entry.id,
      at: entry.at,
      quotas: model.windows.filter(isTimed).map((window) => quota(model, window)),
      refusal: failed && {
        dimension: failed.dimension,
        limit: failed.limit,
        period: failed.period,
        used,
        requested: charge[failed.dimension],
        retryAfter: entry.retryAfter,
        tooLarge: tooLarge !== undefined
      }
    }
  }

  /** Rewrites the charge where it stands: a refund keeps the date of the charge and expires with it. */
  const end = (id: number, now: number, correct: (net: Charge) => Charge): Entry | undefined => {
    const request = running.get(id)
    if (request === undefined) return undefined
    const { entry, model } = request
    running.delete(id)
    advance(model, now)
    const net = { ...correct(entry.net), concurrent: 0 }
    for (const window of model.windows) {
      if (expiry(entry, window) > clock) window.sum += net[window.dimension] - entry.net[window.dimension]
    }
    entry.net = net
    model.running--
    return entry
  }

  const complete = (id: number, output: number, now: number): void => {
    const entry = end(id, now, (net) => {
      const actual = Math.min(output, net.output)
      return { ...net, output: actual, tokens: net.input + actual }
    })
    if (entry !== undefined) entry.completedAt = clock / 1e6
  }

  /** Frees the slot and keeps the charge. Does nothing when the request has already ended. */
  const abort = (id: number, now: number): void => {
    const entry = end(id, now, (net) => net)
    if (entry !== undefined) entry.abortedAt = clock / 1e6
  }

  const report = (now: number, from: number | undefined, to: number): Report => ({
    now,
    from: from ?? 0,
    to,
    models: Array.from(models.values(), (model): ModelReport => {
      const arrived = entries.filter((entry) => entry.model === model.id)
      const admitted = arrived.filter((entry) => entry.admitted)
      const refusedBy = { ...nothing }
      for (const { failedDimension } of arrived) if (failedDimension !== undefined) refusedBy[failedDimension]++
      return {
        model: model.id,
        arrivals: arrived.length,
        admitted: admitted.length,
        refused: arrived.length - admitted.length,
        refusedBy,
        completed: admitted.filter((entry) => entry.completedAt !== undefined).length,
        aborted: admitted.filter((entry) => entry.abortedAt !== undefined).length,
        running: model.running,
        maxConcurrent: model.maxConcurrent,
        limits: model.windows.map(({ dimension, limit, period }): LimitReport => ({
          dimension,
          limit,
          period: period < Infinity ? period : undefined,
          charged: admitted.reduce((sum, entry) => sum + entry.charge[dimension], 0),
          net: admitted.reduce((sum, entry) => sum + entry.net[dimension], 0),
          worstWindow: dimension === "concurrent"
            ? model.maxConcurrent
            : worstWindow(admitted, { dimension, limit, period }),
          utilisation: utilisation(admitted, { dimension, limit, period }, from ?? -Infinity, to)
        }))
      }
    })
  })

  return {
    admit,
    complete,
    abort,
    report,
    arrivals: (): Array<Arrival> => Array.from(entries, (entry) => ({ ...entry }))
  }
}

/**
 * The largest sum of net charges in any `(t - period, t]`, from the ledger alone. It knows nothing of the logs above:
 * it is what they are checked with.
 */
const worstWindow = (admitted: ReadonlyArray<Arrival>, limit: Limit): number => {
  let worst = 0
  let sum = 0
  let start = 0
  for (const last of admitted) {
    sum += last.net[limit.dimension]
    let first = admitted[start]
    while (first !== undefined && expiry(first, limit) <= nanos(last.at)) {
      sum -= first.net[limit.dimension]
      first = admitted[++start]
    }
    worst = Math.max(worst, sum)
  }
  return worst
}

/** Net charges dated in `(from, to]`, or slots held during it, as a share of what the limit allows in that time. */
const utilisation = (
  admitted: ReadonlyArray<Arrival>,
  { dimension, limit, period }: Limit,
  from: number,
  to: number
): number => {
  const duration = to - Math.max(0, from)
  if (!(duration > 0)) return 0
  const isHeld = dimension === "concurrent"
  const used = admitted.reduce((sum, { abortedAt, at, completedAt, net }) =>
    isHeld
      ? sum + Math.max(0, Math.min(completedAt ?? abortedAt ?? to, to) - Math.max(at, from))
      : at > from && at <= to
      ? sum + net[dimension]
      : sum, 0)
  return used / (limit * (isHeld ? duration : duration / period))
}
