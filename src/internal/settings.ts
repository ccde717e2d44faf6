import * as Cause from "effect/Cause"
import * as DateTime from "effect/DateTime"
import * as Duration from "effect/Duration"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type * as ModelConfig from "../ModelConfig.ts"
import type * as ProviderProfile from "../ProviderProfile.ts"
import type * as QueueManager from "../QueueManager.ts"
import type * as QueueResponse from "../QueueResponse.ts"
import type * as RateLimiter from "../RateLimiter.ts"
import type * as TokenEstimator from "../TokenEstimator.ts"
import { keptPart } from "./limitState.ts"
import { checkProfile } from "./provider/check.ts"

/** A model's configuration, checked, with every default filled in and every duration in milliseconds. */
export interface Settings {
  readonly modelId: string
  readonly limits: ReadonlyArray<RateLimiter.Limit>
  readonly provider: ProviderSettings | undefined
  readonly estimator: TokenEstimator.TokenEstimator | undefined
  readonly capacity: number
  readonly strategy: ModelConfig.Strategy
  readonly retainCount: number
  readonly retainAge: number
  readonly deduplicate: {
    /** A key from parameters, or what is wrong with them; `undefined` when only requests have keys. */
    readonly keyOf: ((params: unknown) => string | undefined | { readonly problem: string }) | undefined
    /** 0 for not. */
    readonly keep: number
    readonly count: number
  }
  readonly letterCount: number
  readonly letterAge: number
  /** `Infinity` for none, as `processingTimeout`. */
  readonly timeout: number
  readonly processingTimeout: number
  readonly headStart: number
  /** `undefined` when no tenant has limits of its own. */
  readonly tenantLimits: RateLimiter.Tenants | undefined
  readonly limitsOf: (tenant: string | undefined) => ReadonlyArray<RateLimiter.Limit>
  /** The most that a tenant can have of a limit of the model: what is kept for others it never has. */
  readonly mostOf: (tenant: string | undefined, limit: RateLimiter.Limit) => number
  readonly weightOf: (tenant: string | undefined) => number
  /** Most requests that may go before a blocked one. */
  readonly bypass: number
  readonly failEarly: boolean
  /** Whether its processor gives streams. */
  readonly isStream: boolean
  readonly shutdown: ShutdownSettings
  /** Names what is wrong with parameters. */
  readonly checkParams: (params: unknown) => ReadonlyArray<string>
  readonly usage: ((result: unknown) => unknown) | undefined
  readonly estimate: ((params: unknown) => unknown) | undefined
}

export interface ShutdownSettings {
  readonly policy: "drain" | "finishRunning" | "interrupt"
  readonly deadline: number
}

const maxId = 256
const maxLimit = 1e12
const maxCount = 1e9
const day = 86_400_000
const maxPeriod = 366 * day

const defaultPeriods: Record<Exclude<RateLimiter.Type, "concurrent">, number> = {
  rpm: 60_000,
  rpd: day,
  tpm: 60_000,
  tpd: day,
  itpm: 60_000,
  otpm: 60_000,
  budget: day
}

/** Any value in a message, short; whatever it is, this does not throw. */
export const show = (value: unknown): string => {
  if (typeof value === "string") return JSON.stringify(value.length > 80 ? `${value.slice(0, 80)}…` : value)
  try {
    if (value instanceof Error) return `${value.name}: ${value.message}`
    if (Duration.isDuration(value)) return Duration.format(value)
    return typeof value === "object" && value !== null ? Object.prototype.toString.call(value) : String(value)
  } catch {
    return `some ${typeof value}`
  }
}

/** An id for an error's field, also when it is none: then it may be of any length. */
export const nameOf = (id: unknown): string =>
  typeof id !== "string" ? show(id) : id.length > maxId ? `${id.slice(0, maxId)}…` : id

const loneSurrogate = /\p{Surrogate}/u
const unsafeCharacters = /[\p{Cc}\u2028\u2029\p{Surrogate}]/u

/** What is wrong with an id, if anything. */
export const checkId = (id: unknown): string | undefined => {
  if (typeof id !== "string") return `expected a string, got ${show(id)}`
  if (id.length === 0) return "expected at least one character, got an empty string"
  if (id.length > maxId) return `expected at most ${maxId} characters, got ${id.length}`
  if (!unsafeCharacters.test(id)) return undefined
  return loneSurrogate.test(id)
    ? "expected well-formed Unicode, got a lone surrogate"
    : `expected no control characters, got ${show(id)}`
}

const namedHeadStarts: Record<string, number> = { high: 60, normal: 0, low: -60 }

/** A priority's head start in milliseconds, or what is wrong with it. */
export const headStart = (priority: unknown): number | string => {
  const seconds = typeof priority === "string" && Object.hasOwn(namedHeadStarts, priority)
    ? namedHeadStarts[priority]
    : priority
  return typeof seconds === "number" && Math.abs(seconds) <= 86_400
    ? seconds * 1000
    : `expected "high", "normal", "low" or a number of seconds from -86400 to 86400, got ${show(priority)}`
}

const units = new Set(["weeks", "days", "hours", "minutes", "seconds", "milliseconds", "microseconds", "nanoseconds"])

/** Milliseconds of a duration input, which may be anything at run time; `undefined` when it is none. */
export const millis = (input: unknown): number | undefined => {
  if (typeof input === "number" && Number.isNaN(input)) return undefined
  // An object without any unit is read as zero.
  if (typeof input === "object" && input !== null && !Duration.isDuration(input) && !Array.isArray(input)) {
    if (!Object.keys(input).some((key) => units.has(key))) return undefined
  }
  const duration = Duration.fromInput(input as Duration.Input)
  return Option.isSome(duration) ? Duration.toMillis(duration.value) : undefined
}

/** A timeout in milliseconds (`Infinity` for none), or what is wrong with it. */
export const timeout = (input: unknown): number | string => {
  if (input === undefined) return Number.POSITIVE_INFINITY
  const parsed = millis(input)
  return parsed !== undefined && parsed > 0 ? parsed : `expected a duration of more than zero, got ${show(input)}`
}

export interface Described {
  id: string
  tenant: string | undefined
  labels: Readonly<Record<string, string>> | undefined
  headStart: number
  status: "pending" | "processing"
  /** Milliseconds since it was submitted. */
  age: number
}

/** Tells whether a request is meant; or what is wrong with the filter. */
export const requestFilter = (
  filter: QueueManager.RequestFilter
):
  | ((request: Described, response: () => QueueResponse.QueueResponse<unknown, unknown>) => boolean)
  | ReadonlyArray<string> =>
{
  if (typeof filter !== "object" || filter === null) return [`filter: expected an object, got ${show(filter)}`]
  const { ids, labels, olderThan, priority, status, tenant, where } = filter
  const problems: Array<string> = []
  const age = olderThan === undefined ? Number.NEGATIVE_INFINITY : millis(olderThan)
  if (age === undefined) problems.push(`filter.olderThan: expected a duration, got ${show(olderThan)}`)
  if (ids !== undefined && !Array.isArray(ids)) problems.push(`filter.ids: expected a list of ids, got ${show(ids)}`)
  if (tenant !== undefined && typeof tenant !== "string") {
    problems.push(`filter.tenant: expected a string, got ${show(tenant)}`)
  }
  if (status !== undefined && status !== "pending" && status !== "processing") {
    problems.push(`filter.status: expected "pending" or "processing", got ${show(status)}`)
  }
  const start = priority === undefined ? undefined : headStart(priority)
  if (typeof start === "string") problems.push(`filter.priority: ${start}`)
  const labelProblem = labels === undefined ? undefined : checkLabels(labels)
  if (labelProblem !== undefined) problems.push(`filter.labels: ${labelProblem}`)
  if (where !== undefined && typeof where !== "function") {
    problems.push(`filter.where: expected a function, got ${show(where)}`)
  }
  if (problems.length > 0) return problems
  const chosen = ids === undefined ? undefined : new Set(ids)
  const wanted = Object.entries(labels ?? {})
  return (request, response) =>
    (chosen === undefined || chosen.has(request.id))
    && (tenant === undefined || request.tenant === tenant)
    && (status === undefined || request.status === status)
    && (start === undefined || request.headStart === start)
    && (age === undefined || request.age > age)
    && wanted.every(([name, value]) => request.labels?.[name] === value)
    && (where === undefined || where(response()))
}

/** Milliseconds since 1970, or what is wrong with it. */
export const instant = (input: unknown): number | string => {
  try {
    // What is no input at all is none of the cases, or throws.
    const parsed = DateTime.make(input as DateTime.DateTime.Input)
    if (Option.isSome(parsed)) return parsed.value.epochMilliseconds
  } catch {
    // Named below.
  }
  return `expected an instant such as a DateTime, a Date or an ISO string, got ${show(input)}`
}

/** The earlier of two deadlines; one that is none is kept, to be named when a request is submitted. */
export const earlier = (
  first: DateTime.DateTime.Input | undefined,
  second: DateTime.DateTime.Input
): DateTime.DateTime.Input => {
  if (first === undefined) return second
  const [a, b] = [instant(first), instant(second)]
  if (typeof a === "string") return first
  return typeof b === "string" || b < a ? second : first
}

/** A token count in whole tokens, or what is wrong with it. */
export const tokens = (input: unknown): number | string =>
  typeof input === "number" && input >= 0 && input <= maxLimit
    ? Math.ceil(input)
    : `expected a number of tokens from 0 to ${maxLimit}, got ${show(input)}`

/** What is wrong with the labels of a request, if anything. */
export const checkLabels = (labels: unknown): string | undefined => {
  if (typeof labels !== "object" || labels === null || Array.isArray(labels)) {
    return `expected an object of strings, got ${show(labels)}`
  }
  const entries = Object.entries(labels)
  if (entries.length > 16) return `expected at most 16, got ${entries.length}`
  for (const [name, value] of entries) {
    if (typeof value !== "string") return `${show(name)}: expected a string, got ${show(value)}`
    if (value.length > maxId || name.length > maxId) return `${show(name)}: expected at most ${maxId} characters`
  }
  return undefined
}

/** A usage report, or what is wrong with it. */
export const usage = (input: unknown): RateLimiter.Tokens | ReadonlyArray<string> => {
  if (typeof input !== "object" || input === null) {
    return [`expected { inputTokens, outputTokens }, got ${show(input)}`]
  }
  const report: { inputTokens?: unknown; outputTokens?: unknown; cachedInputTokens?: unknown } = input
  const inputTokens = tokens(report.inputTokens)
  const outputTokens = tokens(report.outputTokens)
  const cachedInputTokens = report.cachedInputTokens === undefined ? undefined : tokens(report.cachedInputTokens)
  if (
    typeof inputTokens === "number" && typeof outputTokens === "number" && typeof cachedInputTokens !== "string"
  ) {
    return cachedInputTokens === undefined
      ? { inputTokens, outputTokens }
      : { inputTokens, outputTokens, cachedInputTokens }
  }
  return [
    ...(typeof cachedInputTokens === "string" ? [`cachedInputTokens: ${cachedInputTokens}`] : []),
    ...(typeof inputTokens === "string" ? [`inputTokens: ${inputTokens}`] : []),
    ...(typeof outputTokens === "string" ? [`outputTokens: ${outputTokens}`] : [])
  ]
}

const isWhole = (value: unknown, min: number, max: number): value is number =>
  typeof value === "number" && Number.isInteger(value) && value >= min && value <= max

/** A whole number of at least `min`, or its default when it is left out or wrong. */
export const whole = (name: string, value: unknown, otherwise: number, problems: Array<string>, min = 1): number => {
  if (value === undefined) return otherwise
  if (isWhole(value, min, maxCount)) return value
  problems.push(`${name}: expected a whole number from ${min} to ${maxCount}, got ${show(value)}`)
  return otherwise
}

/** Milliseconds of an option that is a duration from `least` to a day. */
export const span = (
  name: string,
  value: unknown,
  otherwise: number,
  least: number,
  problems: Array<string>
): number => {
  const parsed = value === undefined ? otherwise : millis(value)
  if (parsed !== undefined && parsed >= least && parsed <= day) return parsed
  problems.push(
    `${name}: expected a duration from ${Duration.format(Duration.millis(least))} to a day, got ${show(value)}`
  )
  return otherwise
}

const isType = (value: unknown): value is RateLimiter.Type =>
  value === "concurrent" || (typeof value === "string" && Object.hasOwn(defaultPeriods, value))

const resolveLimits = (
  definition: ModelConfig.Limits,
  provider: ProviderProfile.ProviderProfile | undefined,
  problems: Array<string>
): ReadonlyArray<RateLimiter.Limit> => {
  const given: { rateLimiters?: unknown; rateLimit?: unknown; rateLimiterMode?: unknown; timePeriod?: unknown } =
    definition
  if (given.rateLimit !== undefined) {
    if (given.rateLimiters !== undefined) {
      problems.push("rateLimit: cannot be given together with rateLimiters; use one form")
    }
    const mode = given.rateLimiterMode ?? "requests_per_period"
    if (mode === "concurrent_requests") {
      return resolveLimit({ type: "concurrent", limit: given.rateLimit, timePeriod: given.timePeriod }, provider, {
        limit: "rateLimit",
        timePeriod: "timePeriod"
      }, problems)
    }
    if (mode === "requests_per_period") {
      return resolveLimit({ type: "rpm", limit: given.rateLimit, timePeriod: given.timePeriod }, provider, {
        limit: "rateLimit",
        timePeriod: "timePeriod"
      }, problems)
    }
    problems.push(`rateLimiterMode: expected "requests_per_period" or "concurrent_requests", got ${show(mode)}`)
    return []
  }
  return resolveList(given.rateLimiters, provider, problems, "rateLimiters")
}

/** A list of limits, or `"unlimited"`. */
const resolveList = (
  given: unknown,
  provider: ProviderProfile.ProviderProfile | undefined,
  problems: Array<string>,
  name: string
): ReadonlyArray<RateLimiter.Limit> => {
  if (given === "unlimited") return []
  if (!Array.isArray(given)) {
    problems.push(`${name}: expected a list of limits or "unlimited", got ${show(given)}`)
    return []
  }
  if (given.length === 0) problems.push(`${name}: the list is empty; say "unlimited" where there are no limits`)
  const limits: Array<RateLimiter.Limit> = []
  for (const [index, config] of given.entries()) {
    const at = `${name}[${index}]`
    const names = { limit: `${at}.limit`, timePeriod: `${at}.timePeriod` }
    for (const limit of resolveLimit(config, provider, names, problems, at)) {
      if (limits.some((other) => other.type === limit.type && other.timePeriod === limit.timePeriod)) {
        problems.push(
          `${at}: a second ${limit.type} limit${
            limit.timePeriod === undefined ? "" : ` over ${Duration.format(Duration.millis(limit.timePeriod))}`
          }`
        )
      }
      limits.push(limit)
    }
  }
  return limits
}

const algorithms: ReadonlySet<unknown> = new Set(["slidingWindow", "tokenBucket", "fixedWindow", "paced"])

const isTimeZone = (value: unknown): value is string => {
  if (typeof value !== "string") return false
  try {
    return new Intl.DateTimeFormat("en", { timeZone: value }).resolvedOptions().timeZone !== ""
  } catch {
    return false
  }
}

const resolveCharging = (
  given: unknown,
  at: string,
  problems: Array<string>
): RateLimiter.Limit["charging"] => {
  if (given !== undefined && (typeof given !== "object" || given === null)) {
    problems.push(`${at}: expected an object, got ${show(given)}`)
  }
  const charging: { readonly [K in keyof RateLimiter.Charging]: unknown } = given ?? {}
  const flag = (name: "refund" | "cachedInput" | "refused", otherwise: boolean): boolean => {
    const value = charging[name] ?? otherwise
    if (typeof value === "boolean") return value
    problems.push(`${at}.${name}: expected true or false, got ${show(value)}`)
    return otherwise
  }
  const weight = (name: "inputWeight" | "outputWeight"): number => {
    const value = charging[name] ?? 1
    if (typeof value === "number" && value >= 0 && value <= 1000) return value
    problems.push(`${at}.${name}: expected a number from 0 to 1000, got ${show(value)}`)
    return 1
  }
  const output = charging.output ?? "expected"
  if (output !== "expected" && output !== "maximum") {
    problems.push(`${at}.output: expected "expected" or "maximum", got ${show(output)}`)
  }
  const combine = charging.combine ?? "sum"
  if (combine !== "sum" && combine !== "maximum") {
    problems.push(`${at}.combine: expected "sum" or "maximum", got ${show(combine)}`)
  }
  return {
    output: output === "maximum" ? "maximum" : "expected",
    combine: combine === "maximum" ? "maximum" : "sum",
    inputWeight: weight("inputWeight"),
    outputWeight: weight("outputWeight"),
    refund: flag("refund", true),
    cachedInput: flag("cachedInput", true),
    refused: flag("refused", false)
  }
}

const windowOptions = [
  "timePeriod",
  "margin",
  "chargedAt",
  "algorithm",
  "burst",
  "headroom",
  "quantum",
  "timeZone",
  "coldStart",
  "charging"
] as const

const budgetOptions = ["price", "onExceeded"] as const

/** What a budget has no use for: it is not the provider's. */
const notOfBudgets = ["margin", "burst", "headroom", "quantum", "coldStart"] as const
const chargingNotOfBudgets = ["combine", "inputWeight", "outputWeight", "refund", "cachedInput"] as const

const isPrice = (value: unknown): value is number => typeof value === "number" && value >= 0 && value <= maxLimit

const resolvePrice = (given: unknown, at: string, problems: Array<string>): RateLimiter.Limit["price"] => {
  if (typeof given !== "object" || given === null) {
    problems.push(`${at}: expected { input, output } for a million tokens, got ${show(given)}`)
    return undefined
  }
  const { cachedInput, input, output }: { readonly [K in keyof RateLimiter.Price]?: unknown } = given
  for (const [name, value] of Object.entries({ input, output, cachedInput: cachedInput ?? 0 })) {
    if (!isPrice(value)) problems.push(`${at}.${name}: expected a number from 0 to ${maxLimit}, got ${show(value)}`)
  }
  if (input === 0 && output === 0) problems.push(`${at}: nothing costs anything, so there is nothing to limit`)
  return {
    input: Number(input),
    output: Number(output),
    cachedInput: Number(cachedInput ?? input)
  }
}

/** What is wrong with a limit because it is a budget, or because it is none. */
const checkBudget = (
  given: ReturnType<typeof withRule>,
  type: RateLimiter.Type,
  at: string,
  problems: Array<string>
): void => {
  if (type !== "budget") {
    for (const name of budgetOptions) {
      if (given[name] !== undefined) problems.push(`${at}.${name}: only a budget has one`)
    }
    return
  }
  for (const name of notOfBudgets) {
    if (given[name] !== undefined) problems.push(`${at}.${name}: a budget has none`)
  }
  if (given.algorithm === "tokenBucket" || given.algorithm === "paced") {
    problems.push(
      `${at}.algorithm: expected "slidingWindow" or "fixedWindow" for a budget, got ${show(given.algorithm)}`
    )
  }
  if (typeof given.charging === "object" && given.charging !== null) {
    const charging: { readonly [K in keyof RateLimiter.Charging]?: unknown } = given.charging
    for (const name of chargingNotOfBudgets) {
      if (charging[name] !== undefined) problems.push(`${at}.charging.${name}: a budget has none; its price says it`)
    }
  }
  const { onExceeded = "fail" } = given
  if (onExceeded !== "fail" && onExceeded !== "wait") {
    problems.push(`${at}.onExceeded: expected "fail" or "wait", got ${show(onExceeded)}`)
  }
}

/** What is given, and where it says nothing what the provider's profile says of limits of its type. */
const withRule = (
  config: object,
  type: RateLimiter.Type,
  provider: ProviderProfile.ProviderProfile | undefined
): { readonly [K in (typeof windowOptions | typeof budgetOptions)[number] | "type" | "limit"]?: unknown } => {
  if (provider === undefined || type === "concurrent" || type === "budget") return config
  const given = Object.fromEntries(Object.entries(config).filter(([, value]) => value !== undefined))
  const rule = provider.limits[type]
  const own: unknown = given["charging"]
  const charging = own === undefined || typeof own === "object" ? { ...rule?.charging, ...own } : own
  return { margin: provider.margin, ...rule, ...given, charging }
}

const limitProblem = (type: RateLimiter.Type, limit: unknown): string | undefined => {
  if (type === "budget") {
    return isPrice(limit) && limit > 0
      ? undefined
      : `expected an amount of more than 0 and up to ${maxLimit}, got ${show(limit)}`
  }
  return isWhole(limit, 1, maxLimit)
    ? undefined
    : `expected a whole number from 1 to ${maxLimit}, got ${show(limit)}`
}

const resolveLimit = (
  config: unknown,
  provider: ProviderProfile.ProviderProfile | undefined,
  names: { readonly limit: string; readonly timePeriod: string },
  problems: Array<string>,
  at = "rateLimit"
): ReadonlyArray<RateLimiter.Limit> => {
  if (typeof config !== "object" || config === null) {
    problems.push(`${at}: expected a limit such as RateLimiter.rpm(500), got ${show(config)}`)
    return []
  }
  const before = problems.length
  const named: { readonly type?: unknown } = config
  if (!isType(named.type)) {
    problems.push(
      `${at}.type: expected one of ${[...Object.keys(defaultPeriods), "concurrent"].join(", ")}, got ${
        show(named.type)
      }`
    )
  }
  const type = isType(named.type) ? named.type : "rpm"
  const given = withRule(config, type, provider)
  checkBudget(given, type, at, problems)
  const limitIsWrong = limitProblem(type, given.limit)
  if (limitIsWrong !== undefined) problems.push(`${names.limit}: ${limitIsWrong}`)
  if (type === "concurrent") {
    for (const name of windowOptions) {
      if (given[name] !== undefined) {
        problems.push(`${name === "timePeriod" ? names.timePeriod : `${at}.${name}`}: a concurrent limit has none`)
      }
    }
  }
  const span = (name: string, value: unknown, otherwise: number, min: number, what: string): number => {
    const parsed = value === undefined ? otherwise : millis(value)
    if (parsed !== undefined && parsed >= min && parsed <= maxPeriod) return parsed
    if (type === "budget" && parsed === Number.POSITIVE_INFINITY) return parsed
    problems.push(`${name}: expected a duration from ${what} to 366 days, got ${show(value)}`)
    return otherwise
  }
  const timePeriod = type === "concurrent"
    ? undefined
    : span(names.timePeriod, given.timePeriod, defaultPeriods[type], 1, "1 millisecond")
  const margin = type === "concurrent" ? 0 : span(`${at}.margin`, given.margin, 0, 0, "zero")
  const headroom = type === "concurrent" ? 0 : span(`${at}.headroom`, given.headroom, 0, 0, "zero")
  const quantum = given.quantum === undefined || type === "concurrent"
    ? undefined
    : span(`${at}.quantum`, given.quantum, 0, 1, "1 millisecond")
  if (quantum !== undefined && timePeriod !== undefined && quantum >= timePeriod) {
    problems.push(`${at}.quantum: expected less than the period of the limit, got ${show(given.quantum)}`)
  }
  const chargedAt = given.chargedAt ?? "dispatch"
  if (chargedAt !== "dispatch" && chargedAt !== "completion" && chargedAt !== "production") {
    problems.push(`${at}.chargedAt: expected "dispatch", "completion" or "production", got ${show(chargedAt)}`)
  }
  const algorithm = given.algorithm ?? "slidingWindow"
  if (!algorithms.has(algorithm)) {
    problems.push(
      `${at}.algorithm: expected "slidingWindow", "tokenBucket", "fixedWindow" or "paced", got ${show(algorithm)}`
    )
  }
  const { burst, coldStart = false, timeZone = "UTC" } = given
  if (burst !== undefined && !(typeof burst === "number" && burst >= 1 && burst <= maxLimit)) {
    problems.push(`${at}.burst: expected a number from 1 to ${maxLimit}, got ${show(burst)}`)
  }
  if (algorithm === "fixedWindow" && timePeriod !== undefined && day % timePeriod !== 0) {
    problems.push(
      `${names.timePeriod}: expected a day or a part that divides it for fixed windows, got ${show(given.timePeriod)}`
    )
  }
  if (!isTimeZone(timeZone)) problems.push(`${at}.timeZone: expected a time zone such as "UTC", got ${show(timeZone)}`)
  if (typeof coldStart !== "boolean") {
    problems.push(`${at}.coldStart: expected true or false, got ${show(coldStart)}`)
  }
  const charging = resolveCharging(given.charging, `${at}.charging`, problems)
  const price = type === "budget" ? resolvePrice(given.price, `${at}.price`, problems) : undefined
  if (problems.length > before) return []
  return [{
    type,
    limit: given.limit as number,
    timePeriod,
    margin,
    chargedAt: chargedAt as RateLimiter.ChargedAt,
    algorithm: algorithm as RateLimiter.Algorithm,
    burst: burst as number | undefined,
    headroom,
    quantum,
    timeZone: timeZone as string,
    coldStart: coldStart as boolean,
    charging,
    price,
    onExceeded: type === "budget" ? (given.onExceeded ?? "fail") as RateLimiter.OnExceeded : "wait"
  }]
}

/** How failures of the provider are treated; `undefined` for a model without a provider's profile. */
export interface ProviderSettings {
  readonly profile: ProviderProfile.ProviderProfile
  readonly schedule: Schedule.Schedule<unknown, RateLimiter.Refusal>
  readonly budget: number
  readonly failures: number
  readonly cooldown: number
  readonly quotaCooldown: number
}

/** Half a second, doubled up to half a minute, spread by chance; five times. */
const defaultSchedule: ProviderSettings["schedule"] = Schedule.max([
  Schedule.min([Schedule.exponential("500 millis"), Schedule.spaced("30 seconds")]),
  Schedule.recurs(5)
]).pipe(Schedule.jittered)

const isProfile = (provider: unknown, problems: Array<string>): provider is ProviderProfile.ProviderProfile => {
  if (typeof provider !== "object" || provider === null) {
    problems.push(`provider: expected a profile such as ProviderProfile.openai, got ${show(provider)}`)
    return false
  }
  const before = problems.length
  try {
    problems.push(...checkProfile(provider))
    const { margin }: { readonly margin?: unknown } = provider
    if (millis(margin) === undefined) problems.push(`provider.margin: expected a duration, got ${show(margin)}`)
  } catch (error) {
    problems.push(`provider: could not be read: ${show(error)}`)
  }
  return problems.length === before
}

const resolveProvider = (
  definition: ModelConfig.Definition,
  problems: Array<string>
): ProviderSettings | undefined => {
  const { circuitBreaker, provider, retry } = definition
  for (const [name, value] of [["retry", retry], ["circuitBreaker", circuitBreaker]] as const) {
    if (value === undefined) continue
    if (typeof value !== "object" || value === null) problems.push(`${name}: expected an object, got ${show(value)}`)
    else if (provider === undefined) problems.push(`${name}: needs a provider, which tells failures apart`)
  }
  if (provider === undefined) return undefined
  if (!isProfile(provider, problems)) return undefined
  const span = (name: string, value: unknown, otherwise: number): number => {
    const parsed = value === undefined ? otherwise : millis(value)
    if (parsed !== undefined && parsed > 0 && parsed <= maxPeriod) return parsed
    problems.push(`${name}: expected a duration of more than zero and up to 366 days, got ${show(value)}`)
    return otherwise
  }
  const schedule = retry?.schedule ?? defaultSchedule
  if (!Schedule.isSchedule(schedule)) problems.push(`retry.schedule: expected a Schedule, got ${show(schedule)}`)
  const budget = retry?.budget ?? 0.1
  if (!(typeof budget === "number" && budget >= 0 && budget <= 100)) {
    problems.push(`retry.budget: expected a number of retries per success from 0 to 100, got ${show(budget)}`)
  }
  return {
    profile: provider,
    schedule,
    budget,
    failures: whole("circuitBreaker.failures", circuitBreaker?.failures, 5, problems),
    cooldown: span("circuitBreaker.cooldown", circuitBreaker?.cooldown, 1000),
    quotaCooldown: span("circuitBreaker.quotaCooldown", circuitBreaker?.quotaCooldown, 300_000)
  }
}

const resolveEstimator = (
  { estimator }: ModelConfig.Definition,
  problems: Array<string>
): TokenEstimator.TokenEstimator | undefined => {
  if (estimator === undefined || (typeof estimator === "object" && estimator !== null && "make" in estimator)) {
    return estimator
  }
  problems.push(`estimator: expected one such as TokenEstimator.learned(), got ${show(estimator)}`)
  return undefined
}

/** A text that tells values apart, but for the order of an object's keys; `exotic` is for what JSON has no word for. */
const canonical = (value: unknown, exotic: (value: object) => string): string => {
  if (typeof value === "string") return JSON.stringify(value)
  if (typeof value === "bigint") return `${value}n`
  if (Object.is(value, -0)) return "-0"
  if (typeof value === "function") return exotic(value)
  // Throws for a symbol.
  if (typeof value !== "object" || value === null) return `${value as undefined}`
  if (Array.isArray(value)) return `[${Array.from(value, (item) => canonical(item, exotic)).join()}]`
  const prototype: unknown = Object.getPrototypeOf(value)
  if (prototype !== Object.prototype && prototype !== null) return exotic(value)
  const parts = Object.entries(value)
    .filter(([, part]) => part !== undefined)
    .toSorted(([a], [b]) => a < b ? -1 : a > b ? 1 : 0)
    .map(([name, part]) => `${JSON.stringify(name)}:${canonical(part, exotic)}`)
  return `{${parts.join()}}`
}

const noJson = (value: object): never => {
  throw new TypeError(`${show(value)} is not JSON`)
}

/**
 * The key of parameters and of what a schema encodes them to. A schema can encode different ones alike (a union of
 * numbers and texts has `NaN` and `"NaN"`, and parameters may have fields that it does not know), and never are
 * different ones to share.
 */
const paramsKey = (params: unknown, encoded: unknown): string => {
  const key = canonical(encoded, noJson)
  const given = canonical(params, (value) => Object.prototype.toString.call(value))
  return key === given ? key : `${key} ${given}`
}

const resolveDeduplicate = (
  definition: ModelConfig.Definition,
  problems: Array<string>
): Settings["deduplicate"] => {
  const given: unknown = definition.deduplicate
  if (given !== undefined && (typeof given !== "object" || given === null)) {
    problems.push(`deduplicate: expected an object, got ${show(given)}`)
  }
  const { count, keep, key }: { readonly count?: unknown; readonly keep?: unknown; readonly key?: unknown } =
    typeof given === "object" && given !== null ? given : {}
  const parsed = keep === undefined ? 0 : millis(keep)
  if (parsed === undefined || parsed < 0) {
    problems.push(`deduplicate.keep: expected a duration of zero or more, got ${show(keep)}`)
  }
  const settings = {
    keep: parsed ?? 0,
    count: whole("deduplicate.count", count, 1000, problems)
  }
  if (key === undefined) return { ...settings, keyOf: undefined }
  if (typeof key === "function") {
    return {
      ...settings,
      keyOf: (params) => {
        try {
          const made: unknown = key(params)
          return made === undefined || typeof made === "string"
            ? made
            : { problem: `deduplicate.key: expected a text, got ${show(made)}` }
        } catch (error) {
          return { problem: `deduplicate.key: threw ${show(error)}` }
        }
      }
    }
  }
  if (key !== "params") problems.push(`deduplicate.key: expected "params" or a function, got ${show(key)}`)
  if (!Schema.isSchema(definition.params)) {
    problems.push(`deduplicate.key: "params" needs a schema of the parameters; give a function`)
    return { ...settings, keyOf: undefined }
  }
  const encode = Schema.encodeUnknownExit(Schema.toCodecJson(definition.params as ModelConfig.Codec))
  return {
    ...settings,
    keyOf: (params) => {
      try {
        const exit = encode(params)
        if (Exit.isSuccess(exit)) return paramsKey(params, exit.value)
        return { problem: `params: they cannot be encoded: ${show(Cause.squash(exit.cause))}` }
      } catch (error) {
        return { problem: `params: they cannot be encoded: ${show(error)}` }
      }
    }
  }
}

/** What tenants may use, and how they share. */
const resolveTenants = (
  given: unknown,
  limits: ReadonlyArray<RateLimiter.Limit>,
  problems: Array<string>
): Pick<Settings, "tenantLimits" | "limitsOf" | "mostOf" | "weightOf"> => {
  const none: Pick<Settings, "tenantLimits" | "limitsOf" | "mostOf" | "weightOf"> = {
    tenantLimits: undefined,
    limitsOf: () => [],
    mostOf: (_, { limit }) => limit,
    weightOf: () => 1
  }
  if (given === undefined) return none
  if (typeof given !== "object" || given === null) {
    problems.push(`tenants: expected an object, got ${show(given)}`)
    return none
  }
  const resolveTenant = (tenant: unknown, at: string) => {
    if (typeof tenant !== "object" || tenant === null) {
      problems.push(`${at}: expected an object, got ${show(tenant)}`)
      return { weight: 1, limits: [], guaranteed: 0 }
    }
    const { guaranteed = 0, rateLimiters, weight = 1 }: {
      readonly weight?: unknown
      readonly rateLimiters?: unknown
      readonly guaranteed?: unknown
    } = tenant
    if (!(typeof weight === "number" && weight > 0 && weight <= maxWeight)) {
      problems.push(`${at}.weight: expected a number of more than 0 and up to ${maxWeight}, got ${show(weight)}`)
    }
    if (!(typeof guaranteed === "number" && guaranteed >= 0 && guaranteed <= 1)) {
      problems.push(`${at}.guaranteed: expected a part of the limits from 0 to 1, got ${show(guaranteed)}`)
    }
    return {
      weight: Number(weight),
      limits: rateLimiters === undefined
        ? []
        : resolveList(rateLimiters, undefined, problems, `${at}.rateLimiters`),
      guaranteed: Number(guaranteed)
    }
  }
  const { byId = {}, others = {} }: { readonly byId?: unknown; readonly others?: unknown } = given
  if (typeof byId !== "object" || byId === null) {
    problems.push(`tenants.byId: expected an object with a tenant's options for each id, got ${show(byId)}`)
    return none
  }
  const tenants = new Map(
    Object.entries(byId).map(([id, tenant]) => {
      const problem = checkId(id)
      if (problem !== undefined) problems.push(`tenants.byId[${show(id)}]: ${problem}`)
      return [id, resolveTenant(tenant, `tenants.byId[${show(id)}]`)] as const
    })
  )
  const rest = resolveTenant(others, "tenants.others")
  if (rest.guaranteed > 0) {
    problems.push("tenants.others.guaranteed: nothing can be guaranteed to tenants that are not named; use byId")
  }
  const sum = Array.from(tenants.values()).reduce((sum, { guaranteed }) => sum + guaranteed, 0)
  if (sum > 1 + 1e-9) problems.push(`tenants: ${sum} of each limit is guaranteed, which is more than all of it`)
  const isLimited = rest.limits.length > 0
    || Array.from(tenants.values()).some(({ guaranteed, limits }) => limits.length > 0 || guaranteed > 0)
  const of = (tenant: string | undefined) => (tenant === undefined ? undefined : tenants.get(tenant)) ?? rest
  if (sum > 0 && limits.length === 0) problems.push("tenants: without limits there is nothing to guarantee a part of")
  return {
    tenantLimits: isLimited ? { byId: tenants, others: rest.limits } : undefined,
    limitsOf: (tenant) => of(tenant).limits,
    mostOf: (tenant, limit) => {
      let most = limit.limit
      for (const [id, { guaranteed }] of sum === 0 ? [] : tenants) {
        if (id !== tenant && guaranteed > 0) most -= keptPart(limit, guaranteed)
      }
      return most
    },
    weightOf: (tenant) => of(tenant).weight
  }
}

const maxWeight = 1e6

/** Checks shutdown options; what is left out, or is wrong, comes from `base`. */
export const shutdown = (
  options: ModelConfig.Shutdown | undefined,
  base: ShutdownSettings,
  problems: Array<string>
): ShutdownSettings => {
  let { deadline, policy } = base
  if (options !== undefined && (typeof options !== "object" || options === null)) {
    problems.push(`shutdown: expected an object, got ${show(options)}`)
  }
  const given: { readonly policy?: unknown; readonly deadline?: unknown } = options ?? {}
  if (given.policy === "drain" || given.policy === "finishRunning" || given.policy === "interrupt") {
    policy = given.policy
  } else if (given.policy !== undefined) {
    problems.push(`shutdown.policy: expected "drain", "finishRunning" or "interrupt", got ${show(given.policy)}`)
  }
  if (given.deadline !== undefined) {
    const parsed = millis(given.deadline)
    if (parsed !== undefined && parsed >= 0) deadline = parsed
    else problems.push(`shutdown.deadline: expected a duration of zero or more, got ${show(given.deadline)}`)
  }
  return { policy, deadline }
}

export const defaultShutdown: ShutdownSettings = { policy: "drain", deadline: 30_000 }

const paramsChecker = (schema: Schema.Constraint | undefined): Settings["checkParams"] => {
  if (schema === undefined) return () => []
  const decode = Schema.decodeUnknownExit(Schema.toType(schema as ModelConfig.Codec))
  return (params) => {
    try {
      const exit = decode(params, { errors: "all" })
      if (Exit.isSuccess(exit)) return []
      const error = Cause.squash(exit.cause)
      return [`params: ${error instanceof Error ? error.message : show(error)}`]
    } catch (error) {
      return [`params: could not be read: ${show(error)}`]
    }
  }
}

/** Other limits for a model, or everything that is wrong with them. */
export const resolveUpdate = (
  rateLimiters: unknown,
  { provider, tenantLimits }: Settings
): { readonly limits: ReadonlyArray<RateLimiter.Limit> } | ReadonlyArray<string> => {
  const problems: Array<string> = []
  const limits = resolveLimits({ rateLimiters } as ModelConfig.Limits, provider?.profile, problems)
  if (
    rateLimiters === "unlimited" && Array.from(tenantLimits?.byId.values() ?? []).some((each) => each.guaranteed > 0)
  ) {
    problems.push("rateLimiters: without limits there is nothing of which tenants are guaranteed a part")
  }
  return problems.length > 0 ? problems : { limits }
}

/** The limits with another number in one of them, or everything that is wrong with that. */
export const resolveChange = (
  { limit, timePeriod, type }: QueueManager.LimitChange,
  { limits }: Settings
): { readonly limits: ReadonlyArray<RateLimiter.Limit> } | ReadonlyArray<string> => {
  const named = ({ timePeriod, type }: RateLimiter.Limit) =>
    timePeriod === undefined ? type : `${type} over ${Duration.format(Duration.millis(timePeriod))}`
  const ofType = limits.filter((each) => each.type === type)
  if (ofType.length === 0) {
    return [`type: there is no such limit, only ${limits.map(named).join(", ") || "none at all"}; got ${show(type)}`]
  }
  const period = timePeriod === undefined ? undefined : millis(timePeriod)
  const meant = timePeriod === undefined ? ofType : ofType.filter((each) => each.timePeriod === period)
  if (meant.length !== 1) {
    return [`timePeriod: expected that of one of ${ofType.map(named).join(", ")}; got ${show(timePeriod)}`]
  }
  const problem = limitProblem(type, limit)
  if (problem !== undefined) return [`limit: ${problem}`]
  return { limits: limits.map((each) => each === meant[0] ? { ...each, limit } : each) }
}

/** The settings of a model, or everything that is wrong with its configuration. */
export const resolve = (
  modelId: string,
  definition: ModelConfig.Definition,
  defaultsShutdown: ShutdownSettings
): Settings | ReadonlyArray<string> => {
  const problems: Array<string> = []
  const idProblem = checkId(modelId)
  if (idProblem !== undefined) problems.push(`modelId: ${idProblem}`)
  const provider = resolveProvider(definition, problems)
  const limits = resolveLimits(definition, provider?.profile, problems)
  const capacity = whole("capacity", definition.capacity, 10_000, problems)
  const strategy = definition.strategy ?? "suspend"
  if (strategy !== "suspend" && strategy !== "reject" && strategy !== "dropOldest") {
    problems.push(`strategy: expected "suspend", "reject" or "dropOldest", got ${show(strategy)}`)
  }
  if (definition.retention !== undefined && typeof definition.retention !== "object") {
    problems.push(`retention: expected an object, got ${show(definition.retention)}`)
  }
  for (const name of ["params", "result", "error"] as const) {
    if (definition[name] !== undefined && !Schema.isSchema(definition[name])) {
      problems.push(`${name}: expected a schema, got ${show(definition[name])}`)
    }
  }
  const retainCount = whole("retention.count", definition.retention?.count, 1000, problems, 0)
  const age = definition.retention?.age
  const retainAge = age === undefined ? 3_600_000 : millis(age)
  if (retainAge === undefined || retainAge < 0) {
    problems.push(`retention.age: expected a duration of zero or more, got ${show(age)}`)
  }
  if (definition.deadLetters !== undefined && typeof definition.deadLetters !== "object") {
    problems.push(`deadLetters: expected an object, got ${show(definition.deadLetters)}`)
  }
  const givenLetterAge = definition.deadLetters?.age
  const letterAge = givenLetterAge === undefined ? day : millis(givenLetterAge)
  if (letterAge === undefined || letterAge < 0) {
    problems.push(`deadLetters.age: expected a duration of zero or more, got ${show(givenLetterAge)}`)
  }
  const number = (name: string, value: number | string, otherwise: number): number => {
    if (typeof value === "number") return value
    problems.push(`${name}: ${value}`)
    return otherwise
  }
  const settings: Settings = {
    modelId,
    limits,
    provider,
    estimator: resolveEstimator(definition, problems),
    capacity,
    strategy,
    retainCount,
    retainAge: retainAge ?? 0,
    deduplicate: resolveDeduplicate(definition, problems),
    letterCount: whole("deadLetters.count", definition.deadLetters?.count, 0, problems, 0),
    letterAge: letterAge ?? 0,
    timeout: number("timeout", timeout(definition.timeout), 0),
    processingTimeout: number("processingTimeout", timeout(definition.processingTimeout), 0),
    headStart: number("priority", headStart(definition.priority ?? "normal"), 0),
    ...resolveTenants(definition.tenants, limits, problems),
    bypass: whole("bypass", definition.bypass, 16, problems, 0),
    failEarly: definition.failEarly ?? true,
    isStream: Object.hasOwn(definition, "elementUsage"),
    shutdown: shutdown(definition.shutdown, defaultsShutdown, problems),
    checkParams: paramsChecker(Schema.isSchema(definition.params) ? definition.params : undefined),
    usage: definition.usage as ((result: unknown) => unknown) | undefined,
    estimate: definition.estimate as ((params: unknown) => unknown) | undefined
  }
  if (typeof settings.failEarly !== "boolean") {
    problems.push(`failEarly: expected true or false, got ${show(definition.failEarly)}`)
  }
  for (const name of ["usage", "estimate"] as const) {
    if (definition[name] !== undefined && typeof definition[name] !== "function") {
      problems.push(`${name}: expected a function, got ${show(definition[name])}`)
    }
  }
  return problems.length > 0 ? problems : settings
}
