import type * as ProviderProfile from "../../ProviderProfile.ts"
import type * as RateLimiter from "../../RateLimiter.ts"
import * as times from "./times.ts"

/** A response has a few dozen headers. */
const maxHeaders = 512
const maxValue = 256

/** Reads one header by its name in lower case; whatever the headers are, this does not throw. */
export type Lookup = (name: string) => string | undefined

const text = (value: unknown): string | undefined => {
  const first: unknown = Array.isArray(value) ? value[0] : value
  return typeof first === "string" && first.length <= maxValue ? first.trim() : undefined
}

const noHeaders: Lookup = () => undefined

/** Headers of any make: with a `get` of their own, or a plain object with names in any case. */
export const lookup = (headers: unknown): Lookup => {
  if (typeof headers !== "object" || headers === null) return noHeaders
  try {
    const get: unknown = Reflect.get(headers, "get")
    if (typeof get === "function") {
      return (name) => {
        try {
          return text(Reflect.apply(get, headers, [name]))
        } catch {
          return undefined
        }
      }
    }
    const values = new Map<string, string>()
    for (const name of Object.keys(headers).slice(0, maxHeaders)) {
      const value = text(Reflect.get(headers, name))
      if (value !== undefined && !values.has(name.toLowerCase())) values.set(name.toLowerCase(), value)
    }
    return (name) => values.get(name)
  } catch {
    return noHeaders
  }
}

const countShape = /^(-?\d{1,15})(?:\.\d{1,15})?$/

/** A whole number of requests or tokens, which may be overdrawn. */
const count = (value: string | undefined): number | undefined => {
  const match = value === undefined ? null : countShape.exec(value)
  return match === null ? undefined : Number(match[1])
}

/** The wall clock to compare instants with: the response's own, so that the difference of the clocks drops out. */
export const responseTime = (headers: Lookup, wallClockMillis: number | undefined): number | undefined =>
  times.httpDate(headers("date")) ?? wallClockMillis

const observation = (
  rule: ProviderProfile.HeaderRule,
  headers: Lookup,
  now: number | undefined
): RateLimiter.Observation | undefined => {
  const read = (name: string | undefined) => name === undefined ? undefined : headers(name.toLowerCase())
  const limit = count(read(rule.limit))
  if (limit !== undefined && limit <= 0) {
    return limit === 0 && rule.zeroLimit === "notAllowed"
      ? { types: rule.types, limit: 0, remaining: 0, rounding: 1, reset: undefined }
      : undefined
  }
  const value = count(read(rule.remaining))
  const remaining = value !== undefined && rule.unset?.includes(value) === true ? undefined : value
  if (limit === undefined && remaining === undefined) return undefined
  return {
    types: rule.types,
    limit,
    remaining,
    rounding: rule.rounding ?? 1,
    reset: times.wait(rule.resetFormat ?? "any", read(rule.reset), now),
    ...(rule.asOf === undefined ? {} : { asOf: rule.asOf })
  }
}

const least = (a: number | undefined, b: number | undefined) =>
  a === undefined ? b : b === undefined ? a : Math.min(a, b)

/** Two limits that count the same, such as an organization's and a project's, hold together as the smaller of each. */
const both = (a: RateLimiter.Observation, b: RateLimiter.Observation): RateLimiter.Observation => ({
  types: a.types,
  limit: least(a.limit, b.limit),
  remaining: least(a.remaining, b.remaining),
  rounding: Math.max(a.rounding, b.rounding),
  reset: a.reset === undefined || b.reset === undefined ? a.reset ?? b.reset : Math.max(a.reset, b.reset),
  ...(a.asOf === "response" || b.asOf === "response" ? { asOf: "response" } : {})
})

/** What the headers say about each limit, once for each set of limits. */
export const observations = (
  rules: ReadonlyArray<ProviderProfile.HeaderRule>,
  headers: Lookup,
  now: number | undefined
): ReadonlyArray<RateLimiter.Observation> => {
  const byTypes = new Map<string, RateLimiter.Observation>()
  for (const rule of rules) {
    const next = observation(rule, headers, now)
    if (next === undefined) continue
    const key = rule.types.toSorted().join()
    const previous = byTypes.get(key)
    byTypes.set(key, previous === undefined ? next : both(previous, next))
  }
  return [...byTypes.values()]
}

/** Milliseconds to wait, from the first header that says so. */
export const retryAfter = (
  rules: ReadonlyArray<ProviderProfile.RetryAfterRule>,
  headers: Lookup,
  now: number | undefined
): number | undefined => {
  for (const rule of rules) {
    const wait = times.wait(rule.format, headers(rule.header.toLowerCase()), now)
    if (wait !== undefined) return wait
  }
  return undefined
}
