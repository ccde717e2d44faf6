/**
 * Durations and instants as providers write them. Every function gives milliseconds, or `undefined` for whatever is
 * not understood: nothing here throws or gives NaN, and its work is bounded however long the text is.
 */
import * as DateTime from "effect/DateTime"
import type * as ProviderProfile from "../../ProviderProfile.ts"

/** A longer time to wait is cut to this: more likely a bug or an attack than a rate limit. */
const longest = 7 * 86_400_000
/** What is longer still is no time to wait at all, but an instant, or nonsense. */
const nonsense = 366 * 86_400_000
/** No provider's duration or date is longer. */
const maxLength = 64

const bounded = (millis: number): number | undefined =>
  millis >= 0 && millis <= nonsense ? Math.min(millis, longest) : undefined

const short = (text: unknown): string | undefined => {
  if (typeof text !== "string" || text.length > maxLength) return undefined
  const trimmed = text.trim()
  return trimmed === "" ? undefined : trimmed
}

const units: Readonly<Record<string, number>> = {
  h: 3_600_000,
  m: 60_000,
  s: 1000,
  ms: 1,
  us: 1e-3,
  // The micro sign and the Greek letter.
  "\u00b5s": 1e-3,
  "\u03bcs": 1e-3,
  ns: 1e-6
}

const goPart = /(\d+\.?\d*|\.\d+)(ns|us|\u00b5s|\u03bcs|ms|h|m|s)/y

/** As Go prints a duration, the units in any mix: `12ms`, `6m0s`, `1h53m56.832s`. A unit is required. */
export const goDuration = (text: unknown): number | undefined => {
  const trimmed = short(text)
  if (trimmed === undefined) return undefined
  if (trimmed === "0") return 0
  let millis = 0
  goPart.lastIndex = 0
  while (goPart.lastIndex < trimmed.length) {
    const part = goPart.exec(trimmed)
    if (part === null) return undefined
    millis += Number(part[1]) * units[part[2]!]!
  }
  return bounded(millis)
}

const decimal = /^(?:\d+\.?\d*|\.\d+)$/

/** A plain number that is not negative: no sign, no exponent, no unit. */
const plain = (text: unknown): number | undefined => {
  const trimmed = short(text)
  if (trimmed === undefined || !decimal.test(trimmed)) return undefined
  const value = Number(trimmed)
  return Number.isFinite(value) ? value : undefined
}

const scaled = (text: unknown, unit: number): number | undefined => {
  const value = plain(text)
  return value === undefined ? undefined : bounded(value * unit)
}

/** A plain number of seconds: `20`, `0.5`. */
export const seconds = (text: unknown): number | undefined => scaled(text, 1000)

/** A plain number of milliseconds. */
export const millis = (text: unknown): number | undefined => scaled(text, 1)

const epochMillis = (
  year: number,
  month: number,
  day: number,
  hour: number,
  minute: number,
  second: number
): number | undefined => {
  const date = DateTime.makeUnsafe({ year, month, day })
  // A month or a day that does not exist has become another one.
  if (DateTime.getPartUtc(date, "month") !== month || DateTime.getPartUtc(date, "day") !== day) return undefined
  // A leap second is written as the sixtieth.
  if (hour > 23 || minute > 59 || second > 60) return undefined
  return date.epochMilliseconds + hour * 3_600_000 + minute * 60_000 + second * 1000
}

const rfc3339Shape = /^(\d{4})-(\d{2})-(\d{2})[Tt ](\d{2}):(\d{2}):(\d{2})(\.\d{1,9})?(?:[Zz]|([+-])(\d{2}):(\d{2}))$/

/** `2026-11-23T12:00:59Z`, with or without a fraction, with any offset: milliseconds since 1970. */
export const rfc3339 = (text: unknown): number | undefined => {
  const trimmed = short(text)
  const match = trimmed === undefined ? null : rfc3339Shape.exec(trimmed)
  if (match === null) return undefined
  const [, year, month, day, hour, minute, second, fraction, sign, offsetHours, offsetMinutes] = match
  const local = epochMillis(Number(year), Number(month), Number(day), Number(hour), Number(minute), Number(second))
  if (local === undefined || Number(offsetHours ?? 0) > 23 || Number(offsetMinutes ?? 0) > 59) return undefined
  const offset = Number(offsetHours ?? 0) * 3_600_000 + Number(offsetMinutes ?? 0) * 60_000
  return local + Number(`0${fraction ?? ""}`) * 1000 - (sign === "-" ? -offset : offset)
}

const months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
const httpDateShape = /^(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), (\d{2}) ([A-Z][a-z]{2}) (\d{4}) (\d{2}):(\d{2}):(\d{2}) GMT$/

/** `Sun, 06 Nov 1994 08:49:37 GMT`, the one form that servers may write: milliseconds since 1970. */
export const httpDate = (text: unknown): number | undefined => {
  const trimmed = short(text)
  const match = trimmed === undefined ? null : httpDateShape.exec(trimmed)
  if (match === null) return undefined
  const [, day, month, year, hour, minute, second] = match
  return epochMillis(
    Number(year),
    months.indexOf(month!) + 1,
    Number(day),
    Number(hour),
    Number(minute),
    Number(second)
  )
}

/** Unix time in seconds or milliseconds, told apart by its size; smaller numbers are no time of this century. */
export const unixTime = (text: unknown): number | undefined => {
  const value = plain(text)
  if (value === undefined) return undefined
  if (value >= 1e9 && value < 1e11) return value * 1000
  return value >= 1e12 && value < 1e14 ? value : undefined
}

/** An instant in any of the forms above: milliseconds since 1970. */
export const instant = (text: unknown): number | undefined => rfc3339(text) ?? httpDate(text) ?? unixTime(text)

/** Milliseconds from `now` until an instant. Stamps of whole seconds cannot tell the last second from now. */
const until = (at: number | undefined, now: number | undefined): number | undefined => {
  if (at === undefined || now === undefined) return undefined
  const difference = at - now
  return bounded(difference < 0 && difference > -1000 ? 0 : difference)
}

const formats: Readonly<
  Record<ProviderProfile.TimeFormat, (text: unknown, now: number | undefined) => number | undefined>
> = {
  duration: goDuration,
  seconds,
  millis,
  instant: (text, now) => until(instant(text), now),
  any: (text, now) => goDuration(text) ?? seconds(text) ?? until(instant(text), now)
}

/**
 * Milliseconds that a text says to wait. `now` is the wall clock that instants are compared with, in milliseconds
 * since 1970; without it they say nothing.
 */
export const wait = (
  format: ProviderProfile.TimeFormat,
  text: unknown,
  now: number | undefined
): number | undefined => formats[format](text, now)

/** The JSON form of a protobuf duration: `"18s"`, `"18.186484543s"`, `{ seconds: 18, nanos: 186484543 }`. */
export const protobufDuration = (value: unknown): number | undefined => {
  if (typeof value === "string") return goDuration(value)
  if (typeof value !== "object" || value === null) return undefined
  const { nanos, seconds }: { seconds?: unknown; nanos?: unknown } = value
  if (seconds === undefined && nanos === undefined) return undefined
  const whole = number(seconds)
  const part = number(nanos)
  return whole === undefined || part === undefined || part < 0 || part >= 1e9
    ? undefined
    : bounded(whole * 1000 + part / 1e6)
}

/** 64-bit integers are written as strings. */
const number = (value: unknown): number | undefined =>
  value === undefined ? 0 : typeof value === "number" ? value : plain(value)

/** How much of an error message is looked at: a hint that comes later is not for people either. */
const maxMessage = 4096
const hintStart = /\b(?:try(?:ing)? again|retry(?:ing)?)\s{1,4}(?:in|after)\s{1,4}/gi
const hintPart =
  /(?:\s{0,4}(?:,|and)?\s{0,4})(\d{1,15}(?:\.\d{0,15})?)\s{0,4}(milliseconds?|millis|microseconds?|nanoseconds?|seconds?|minutes?|hours?|days?|secs?|mins?|hrs?|ns|us|\u00b5s|\u03bcs|ms|h|m|s|d)(?![a-z])/iy

const hintUnits: Readonly<Record<string, number>> = {
  ...units,
  millisecond: 1,
  millis: 1,
  microsecond: 1e-3,
  nanosecond: 1e-6,
  second: 1000,
  sec: 1000,
  minute: 60_000,
  min: 60_000,
  hour: 3_600_000,
  hr: 3_600_000,
  day: 86_400_000,
  d: 86_400_000
}

const hintUnit = (name: string): number | undefined => {
  const lower = name.toLowerCase()
  return hintUnits[lower] ?? hintUnits[lower.replace(/s$/, "")]
}

/** The time in a sentence such as "Please try again in 6m0s", "retry in 548ms" or "retry after 20 seconds". */
export const hint = (message: string): number | undefined => {
  const text = message.length > maxMessage ? message.slice(0, maxMessage) : message
  for (const start of text.matchAll(hintStart)) {
    let sum: number | undefined
    hintPart.lastIndex = start.index + start[0].length
    for (let count = 0; count < 8; count++) {
      const part = hintPart.exec(text)
      if (part === null) break
      const unit = hintUnit(part[2]!)
      if (unit === undefined) break
      sum = (sum ?? 0) + Number(part[1]) * unit
    }
    if (sum !== undefined) return bounded(sum)
  }
  return undefined
}
