import * as Cause from "effect/Cause"
import * as Duration from "effect/Duration"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import type * as ModelConfig from "../ModelConfig.ts"
import type * as RateLimiter from "../RateLimiter.ts"

/** A model's configuration, checked, with every default filled in and every duration in milliseconds. */
export interface Settings {
  readonly modelId: string
  readonly limits: ReadonlyArray<RateLimiter.Limit>
  readonly capacity: number
  readonly strategy: ModelConfig.Strategy
  readonly retainCount: number
  readonly retainAge: number
  /** `Infinity` for none, as `processingTimeout`. */
  readonly timeout: number
  readonly processingTimeout: number
  readonly headStart: number
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
  otpm: 60_000
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

/** An id for an error's field, also when it is none. */
export const nameOf = (id: unknown): string => typeof id === "string" ? id : show(id)

const unsafeCharacters = /[\p{Cc}\u2028\u2029]/u
const loneSurrogate = /\p{Surrogate}/u

/** What is wrong with an id, if anything. */
export const checkId = (id: unknown): string | undefined => {
  if (typeof id !== "string") return `expected a string, got ${show(id)}`
  if (id.length === 0) return "expected at least one character, got an empty string"
  if (id.length > maxId) return `expected at most ${maxId} characters, got ${id.length}`
  if (unsafeCharacters.test(id)) return `expected no control characters, got ${show(id)}`
  if (loneSurrogate.test(id)) return "expected well-formed Unicode, got a lone surrogate"
  return undefined
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
const millis = (input: unknown): number | undefined => {
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

/** A token count in whole tokens, or what is wrong with it. */
export const tokens = (input: unknown): number | string =>
  typeof input === "number" && input >= 0 && input <= maxLimit
    ? Math.ceil(input)
    : `expected a number of tokens from 0 to ${maxLimit}, got ${show(input)}`

/** A usage report, or what is wrong with it. */
export const usage = (input: unknown): RateLimiter.Tokens | ReadonlyArray<string> => {
  if (typeof input !== "object" || input === null) {
    return [`expected { inputTokens, outputTokens }, got ${show(input)}`]
  }
  const report: { inputTokens?: unknown; outputTokens?: unknown } = input
  const inputTokens = tokens(report.inputTokens)
  const outputTokens = tokens(report.outputTokens)
  if (typeof inputTokens === "number" && typeof outputTokens === "number") return { inputTokens, outputTokens }
  return [
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

const isType = (value: unknown): value is RateLimiter.Type =>
  value === "concurrent" || (typeof value === "string" && Object.hasOwn(defaultPeriods, value))

const resolveLimits = (definition: ModelConfig.Limits, problems: Array<string>): ReadonlyArray<RateLimiter.Limit> => {
  const given: { rateLimiters?: unknown; rateLimit?: unknown; rateLimiterMode?: unknown; timePeriod?: unknown } =
    definition
  if (given.rateLimit !== undefined) {
    if (given.rateLimiters !== undefined) {
      problems.push("rateLimit: cannot be given together with rateLimiters; use one form")
    }
    const mode = given.rateLimiterMode ?? "requests_per_period"
    if (mode === "concurrent_requests") {
      return resolveLimit({ type: "concurrent", limit: given.rateLimit, timePeriod: given.timePeriod }, {
        limit: "rateLimit",
        timePeriod: "timePeriod"
      }, problems)
    }
    if (mode === "requests_per_period") {
      return resolveLimit({ type: "rpm", limit: given.rateLimit, timePeriod: given.timePeriod }, {
        limit: "rateLimit",
        timePeriod: "timePeriod"
      }, problems)
    }
    problems.push(`rateLimiterMode: expected "requests_per_period" or "concurrent_requests", got ${show(mode)}`)
    return []
  }
  const { rateLimiters } = given
  if (rateLimiters === "unlimited") return []
  if (!Array.isArray(rateLimiters)) {
    problems.push(
      `rateLimiters: expected a list of limits or "unlimited", got ${show(rateLimiters)}`
    )
    return []
  }
  if (rateLimiters.length === 0) {
    problems.push(`rateLimiters: the list is empty; say "unlimited" for a model without limits`)
  }
  const limits: Array<RateLimiter.Limit> = []
  for (const [index, config] of rateLimiters.entries()) {
    const at = `rateLimiters[${index}]`
    for (const limit of resolveLimit(config, { limit: `${at}.limit`, timePeriod: `${at}.timePeriod` }, problems, at)) {
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

const resolveLimit = (
  config: unknown,
  names: { readonly limit: string; readonly timePeriod: string },
  problems: Array<string>,
  at = "rateLimit"
): ReadonlyArray<RateLimiter.Limit> => {
  if (typeof config !== "object" || config === null) {
    problems.push(`${at}: expected a limit such as RateLimiter.rpm(500), got ${show(config)}`)
    return []
  }
  const given: { type?: unknown; limit?: unknown; timePeriod?: unknown; margin?: unknown; chargedAt?: unknown } = config
  const before = problems.length
  if (!isType(given.type)) {
    problems.push(
      `${at}.type: expected one of ${[...Object.keys(defaultPeriods), "concurrent"].join(", ")}, got ${
        show(given.type)
      }`
    )
  }
  if (!isWhole(given.limit, 1, maxLimit)) {
    problems.push(`${names.limit}: expected a whole number from 1 to ${maxLimit}, got ${show(given.limit)}`)
  }
  const type = isType(given.type) ? given.type : "rpm"
  if (type === "concurrent") {
    for (const name of ["timePeriod", "margin", "chargedAt"] as const) {
      if (given[name] !== undefined) {
        problems.push(`${name === "timePeriod" ? names.timePeriod : `${at}.${name}`}: a concurrent limit has none`)
      }
    }
    if (problems.length > before) return []
    return [{ type, limit: given.limit as number, timePeriod: undefined, margin: 0, chargedAt: "dispatch" }]
  }
  const timePeriod = given.timePeriod === undefined ? defaultPeriods[type] : millis(given.timePeriod)
  if (timePeriod === undefined || timePeriod < 1 || timePeriod > maxPeriod) {
    problems.push(
      `${names.timePeriod}: expected a duration from 1 millisecond to 366 days, got ${show(given.timePeriod)}`
    )
  }
  const margin = given.margin === undefined ? 0 : millis(given.margin)
  if (margin === undefined || margin < 0 || margin > maxPeriod) {
    problems.push(`${at}.margin: expected a duration from zero to 366 days, got ${show(given.margin)}`)
  }
  const chargedAt = given.chargedAt ?? "dispatch"
  if (chargedAt !== "dispatch" && chargedAt !== "completion" && chargedAt !== "production") {
    problems.push(`${at}.chargedAt: expected "dispatch", "completion" or "production", got ${show(chargedAt)}`)
  }
  if (problems.length > before) return []
  return [{
    type,
    limit: given.limit as number,
    timePeriod: timePeriod!,
    margin: margin!,
    chargedAt: chargedAt as RateLimiter.ChargedAt
  }]
}

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

/** The settings of a model, or everything that is wrong with its configuration. */
export const resolve = (
  modelId: string,
  definition: ModelConfig.Definition,
  defaultsShutdown: ShutdownSettings
): Settings | ReadonlyArray<string> => {
  const problems: Array<string> = []
  const idProblem = checkId(modelId)
  if (idProblem !== undefined) problems.push(`modelId: ${idProblem}`)
  const limits = resolveLimits(definition, problems)
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
  const number = (name: string, value: number | string, otherwise: number): number => {
    if (typeof value === "number") return value
    problems.push(`${name}: ${value}`)
    return otherwise
  }
  const settings: Settings = {
    modelId,
    limits,
    capacity,
    strategy,
    retainCount,
    retainAge: retainAge ?? 0,
    timeout: number("timeout", timeout(definition.timeout), 0),
    processingTimeout: number("processingTimeout", timeout(definition.processingTimeout), 0),
    headStart: number("priority", headStart(definition.priority ?? "normal"), 0),
    shutdown: shutdown(definition.shutdown, defaultsShutdown, problems),
    checkParams: paramsChecker(Schema.isSchema(definition.params) ? definition.params : undefined),
    usage: definition.usage as ((result: unknown) => unknown) | undefined,
    estimate: definition.estimate as ((params: unknown) => unknown) | undefined
  }
  for (const name of ["usage", "estimate"] as const) {
    if (definition[name] !== undefined && typeof definition[name] !== "function") {
      problems.push(`${name}: expected a function, got ${show(definition[name])}`)
    }
  }
  return problems.length > 0 ? problems : settings
}
