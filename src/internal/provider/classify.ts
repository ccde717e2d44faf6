import type * as ProviderProfile from "../../ProviderProfile.ts"
import type * as RateLimiter from "../../RateLimiter.ts"
import * as evidence from "./evidence.ts"
import * as headers from "./headers.ts"
import * as times from "./times.ts"

const maxMessage = 300
/** How much of a message is searched. */
const maxSearched = 4096

const anyOf = (words: ReadonlyArray<string>, texts: ReadonlyArray<string>): boolean =>
  words.some((word) => texts.some((text) => text.includes(word.toLowerCase())))

const matches = (
  rule: ProviderProfile.ErrorRule,
  found: evidence.Evidence,
  texts: ReadonlyArray<string>
): boolean => {
  if (
    rule.status === undefined && rule.codes === undefined && rule.messages === undefined && rule.headers === undefined
  ) return false
  if (rule.status !== undefined && (found.status === undefined || !rule.status.includes(found.status))) return false
  if (rule.codes !== undefined && !rule.codes.some((code) => found.codes.has(code.toLowerCase()))) return false
  if (rule.messages !== undefined && !anyOf(rule.messages, texts)) return false
  for (const [name, value] of Object.entries(rule.headers ?? {})) {
    const actual = found.headers(name.toLowerCase())
    if (actual === undefined || (value !== true && actual.toLowerCase() !== value.toLowerCase())) return false
  }
  return true
}

const count = (text: string, shape: RegExp): number | undefined => {
  const digits = shape.exec(text)?.[1]?.replaceAll(",", "")
  const value = digits === undefined || digits === "" ? Number.NaN : Number(digits)
  return Number.isSafeInteger(value) ? value : undefined
}

const limitShapes = [
  /\blimit:?\s{1,4}(?:is\s)?(\d[\d,]{0,20})/i,
  /\bof (\d[\d,]{0,20}) (?:(?:input|output) )?(?:tokens|requests) per\b/i
]
const usedShape = /\bused:?\s{1,4}(\d[\d,]{0,20})/i
const requestedShape = /\brequested:?\s{1,4}(\d[\d,]{0,20})/i

const firstCount = (texts: ReadonlyArray<string>, shapes: ReadonlyArray<RegExp>): number | undefined => {
  for (const text of texts) {
    for (const shape of shapes) {
      const value = count(text, shape)
      if (value !== undefined) return value
    }
  }
  return undefined
}

interface Named {
  readonly types: ReadonlyArray<RateLimiter.Type>
  readonly ignoresHint: boolean
  /** The least of the quotas that it is about. */
  readonly limit: number | undefined
}

const leastOf = (quotas: evidence.Evidence["quotas"]): number | undefined =>
  quotas.reduce<number | undefined>(
    (least, { limit }) => limit === undefined ? least : Math.min(limit, least ?? limit),
    undefined
  )

/** The limits that a failure is about: from its quotas, else its messages, else its codes. */
const named = (
  names: ReadonlyArray<ProviderProfile.LimitName>,
  found: evidence.Evidence,
  texts: ReadonlyArray<string>
): Named => {
  const nameOf = (text: string) =>
    names.find((name) => name.includes?.every((word) => text.includes(word.toLowerCase())) === true)
  const all = found.quotas.map((quota) => ({ quota, name: nameOf(quota.name) }))
  const known = all.filter(({ name }) => name !== undefined)
  // Several quotas can be exceeded at once: those that no hint ends are the last to end.
  const longest = known.filter(({ name }) => name!.ignoresHint === true)
  const exceeded = longest.length > 0 ? longest : known
  const limit = leastOf((exceeded.length > 0 ? exceeded : all).map(({ quota }) => quota))
  if (exceeded.length > 0) {
    return {
      types: [...new Set(exceeded.flatMap(({ name }) => name!.types))],
      ignoresHint: longest.length > 0,
      limit
    }
  }
  // Several messages say the same thing, one inside the other.
  const hit = texts.map(nameOf).find((name) => name !== undefined)
    ?? names.find(({ codes }) => codes?.some((code) => found.codes.has(code.toLowerCase())) === true)
  return { types: hit?.types ?? [], ignoresHint: hit?.ignoresHint === true, limit }
}

/** The limits that have nothing left, when the refusal itself names none. */
const emptied = (observed: ReadonlyArray<RateLimiter.Observation>): ReadonlyArray<RateLimiter.Type> => [
  ...new Set(observed.flatMap(({ remaining, types }) => remaining !== undefined && remaining <= 0 ? types : []))
]

const shorten = (text: string): string => {
  const line = text.slice(0, 4 * maxMessage).replaceAll(/\s+/g, " ").trim()
  if (line.length <= maxMessage) return line
  // A pair of surrogates is kept or dropped whole.
  return `${line.slice(0, maxMessage - 1).replace(/[\ud800-\udbff]$/, "")}…`
}

/** What a failure that is to be retried comes to when the provider says that another attempt cannot succeed. */
const withoutRetry = (
  kind: RateLimiter.RefusalKind,
  status: number | undefined
): RateLimiter.RefusalKind | undefined =>
  kind === "quota" || kind === "tooLarge" || kind === "auth"
    ? kind
    : status === 429 || kind === "rate" || kind === "ramp"
    ? "tooLarge"
    : undefined

export const classify = (
  profile: ProviderProfile.ProviderProfile,
  failure: unknown,
  wallClockMillis: number | undefined
): RateLimiter.Refusal | undefined => {
  const found = evidence.collect(failure)
  const { status } = found
  const texts = found.messages.map((message) => message.slice(0, maxSearched))
  const lower = texts.map((text) => text.toLowerCase())
  const rule = profile.errors.find((rule) => matches(rule, found, lower))
  const shouldRetry = found.headers("x-should-retry")?.toLowerCase()
  let kind = rule?.kind ?? (shouldRetry === "true" && status !== undefined && status >= 400 ? "transient" : undefined)
  if (kind === undefined) return undefined

  const now = headers.responseTime(found.headers, wallClockMillis)
  const isAboutLimits = kind === "rate" || kind === "ramp" || kind === "tooLarge"
  const numbers = isAboutLimits ? texts : []
  const { ignoresHint, limit: quota, types } = isAboutLimits
    ? named(profile.limitNames, found, lower)
    : { ignoresHint: false, limit: leastOf(found.quotas), types: [] }
  // Of several quotas the text may mean another one.
  const limit = quota ?? (found.quotas.length > 1 ? undefined : firstCount(numbers, limitShapes))
  const used = firstCount(numbers, [usedShape])
  const requested = firstCount(numbers, [requestedShape])
  // More than the whole limit never fits, whoever says "try again".
  if (kind === "rate" && limit !== undefined && limit > 0 && requested !== undefined && requested > limit) {
    kind = "tooLarge"
  }
  const observed = kind === "rate" ? headers.observations(profile.headers, found.headers, now) : []
  if (observed.some(({ limit }) => limit === 0)) kind = "auth"
  if (shouldRetry === "false") kind = withoutRetry(kind, status)
  if (kind === undefined) return undefined

  const hints = [...found.hints, ...texts.flatMap((text) => times.hint(text) ?? [])]
  return {
    kind,
    types: types.length > 0 ? types : rule?.types ?? emptied(observed),
    limit,
    used,
    requested,
    retryAfter: ignoresHint
      ? undefined
      : headers.retryAfter(profile.retryAfter, found.headers, now)
        // Rounded and exact forms of one hint stand side by side: the later one is safe.
        ?? (hints.length === 0 ? undefined : Math.max(...hints)),
    status,
    message: shorten(texts.find((text) => text.trim() !== "") ?? [...found.codes][0] ?? `HTTP status ${status}`)
  }
}

/** What the headers of a failed response say about the limits. */
export const failureHeaders = (
  profile: ProviderProfile.ProviderProfile,
  error: unknown,
  wallClockMillis: number
): ReadonlyArray<RateLimiter.Observation> => {
  const { headers: lookup } = evidence.collect(error)
  return headers.observations(profile.headers, lookup, headers.responseTime(lookup, wallClockMillis))
}
