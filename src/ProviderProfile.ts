/**
 * How a provider counts, refuses and reports, as data.
 *
 * A profile fills in what the limits of a model leave out, names the headers that tell how much is left, and says
 * what failures mean. The functions here read that data and know no provider by name, so a profile can be changed or
 * made like any other value. What each one is built on is in its `facts`.
 *
 * **Example** (A profile of your own)
 *
 * ```ts
 * import { ProviderProfile } from "effect-llm-queue"
 *
 * const patient: ProviderProfile.ProviderProfile = { ...ProviderProfile.openai, margin: "1 second" }
 *
 * const gateway = ProviderProfile.make({
 *   name: "gateway",
 *   limits: { rpm: { algorithm: "tokenBucket" } },
 *   errors: [{ codes: ["over_budget"], kind: "quota" }, ...ProviderProfile.generic.errors]
 * })
 * ```
 *
 * @since 0.1.0
 */
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { CurrentEntry } from "./internal/entry.ts"
import * as classifier from "./internal/provider/classify.ts"
import * as facts from "./internal/provider/facts.ts"
import * as reader from "./internal/provider/headers.ts"
import * as standard from "./internal/provider/standard.ts"
import type * as RateLimiter from "./RateLimiter.ts"
import type * as TokenEstimator from "./TokenEstimator.ts"

/**
 * How a provider treats limits of one type: what a limit of a model says itself goes first.
 *
 * @category models
 * @since 0.1.0
 */
export type LimitRule = Omit<RateLimiter.Config, "type" | "limit" | "timePeriod">

/**
 * How a time is written. None of them reads a negative time, or one of more than a year; more than seven days are read as
 * seven.
 *
 * | format | reads |
 * | --- | --- |
 * | `duration` | Go durations, with units: `12ms`, `6m0s`, `1h53m56.832s` |
 * | `seconds`, `millis` | a plain number of them: `20`, `0.5` |
 * | `instant` | RFC 3339, an HTTP date, Unix time in seconds or milliseconds |
 * | `any` | all of these; a plain number is seconds, unless it is too large for anything but Unix time |
 *
 * @category models
 * @since 0.1.0
 */
export type TimeFormat = "duration" | "seconds" | "millis" | "instant" | "any"

/**
 * Headers that tell the state of a limit. Names are found whatever their case.
 *
 * @category models
 * @since 0.1.0
 */
export interface HeaderRule {
  /** The limits that they may be about. When there are several, the period that the reset implies decides. */
  readonly types: ReadonlyArray<RateLimiter.Type>
  /** The header with the limit. */
  readonly limit?: string | undefined
  /** The header with what is left. */
  readonly remaining?: string | undefined
  /** The header with the time until the limit is full again. */
  readonly reset?: string | undefined
  /** When what is left was so: at the request's `"arrival"` (the default), or when the `"response"` was sent. */
  readonly asOf?: "arrival" | "response" | undefined
  /** Default `any`. */
  readonly resetFormat?: TimeFormat | undefined
  /** What is left is rounded to the nearest multiple of this. Default 1: it is exact. */
  readonly rounding?: number | undefined
  /** Values of what is left that say nothing. Default none. */
  readonly unset?: ReadonlyArray<number> | undefined
  /**
   * What a limit of 0 means: that the headers say nothing (the default), or that the model is not allowed, so that a
   * refusal which carries it is `auth`. A negative limit says nothing.
   */
  readonly zeroLimit?: "ignored" | "notAllowed" | undefined
}

/**
 * A header that tells how long to wait after a refusal.
 *
 * @category models
 * @since 0.1.0
 */
export interface RetryAfterRule {
  readonly header: string
  readonly format: TimeFormat
}

/**
 * What a failure means, by what it carries. All conditions that are given must hold; a rule without any never does.
 * Words are compared whatever their case.
 *
 * @category models
 * @since 0.1.0
 */
export interface ErrorRule {
  /** The HTTP status is one of these. */
  readonly status?: ReadonlyArray<number> | undefined
  /** A code, type, name or reason anywhere in the failure is one of these. */
  readonly codes?: ReadonlyArray<string> | undefined
  /** A message includes one of these. */
  readonly messages?: ReadonlyArray<string> | undefined
  /** The response has these headers: with this value, or `true` for any. */
  readonly headers?: Readonly<Record<string, string | true>> | undefined
  readonly kind: RateLimiter.RefusalKind
  /** The limits that it is about, when the failure does not name them. */
  readonly types?: ReadonlyArray<RateLimiter.Type> | undefined
}

/**
 * How a refusal names the limits that it is about. Words are compared whatever their case.
 *
 * @category models
 * @since 0.1.0
 */
export interface LimitName {
  /** The id of the quota, or else a message, includes all of these. */
  readonly includes?: ReadonlyArray<string> | undefined
  /** A code or type is one of these, when no quota and no message names a limit. */
  readonly codes?: ReadonlyArray<string> | undefined
  readonly types: ReadonlyArray<RateLimiter.Type>
  /** The time to wait that comes with it means nothing. Default `false`. */
  readonly ignoresHint?: boolean | undefined
}

/**
 * Something that a profile is built on.
 *
 * | basis | meaning |
 * | --- | --- |
 * | `documented` | the provider says so |
 * | `measured` | seen in real responses |
 * | `unverified` | assumed, or said only by others: check it before you rely on it |
 *
 * @category models
 * @since 0.1.0
 */
export interface Fact {
  readonly about: "limits" | "algorithm" | "charge" | "correction" | "refused" | "headers" | "errors" | "streams"
  readonly says: string
  readonly basis: "documented" | "measured" | "unverified"
  /** Where it is said or was seen: an address without its scheme, or a few words. */
  readonly source?: string | undefined
}

/**
 * How a provider counts, refuses and reports.
 *
 * @category models
 * @since 0.1.0
 */
export interface ProviderProfile {
  readonly name: string
  /** The spread of the network delay that its limits allow for, unless a limit says otherwise. */
  readonly margin: Duration.Input
  readonly limits: { readonly [T in Exclude<RateLimiter.Type, "budget">]?: LimitRule | undefined }
  /** How the tokens of a request are estimated, unless the model has an estimator of its own. */
  readonly estimation?: TokenEstimator.Options | undefined
  /** Rules that give the same limits are taken together: the least of what they say holds. */
  readonly headers: ReadonlyArray<HeaderRule>
  /** The first one that is there decides; without any, a time in the body does. */
  readonly retryAfter: ReadonlyArray<RetryAfterRule>
  /** The first one that matches decides. A failure that none matches is not the provider's. */
  readonly errors: ReadonlyArray<ErrorRule>
  /** The first one that matches a quota, a message or a code names its limits. */
  readonly limitNames: ReadonlyArray<LimitName>
  readonly facts: ReadonlyArray<Fact>
}

/**
 * Headers as fetch, the official SDKs and Effect's HTTP client hand them out.
 *
 * @category models
 * @since 0.1.0
 */
export type HeadersInput =
  | { readonly get: (name: string) => string | null | undefined }
  | Readonly<Record<string, string | ReadonlyArray<string> | undefined>>

/**
 * What the headers of a response say about the limits, once for each set of limits. Values that make no sense are left
 * out; this never throws.
 *
 * Resets that are instants are compared with the `date` header of the response, or else with `wallClockMillis`
 * (milliseconds since 1970); without either they are left out.
 *
 * **Example** (Reading headers)
 *
 * ```ts
 * import { ProviderProfile } from "effect-llm-queue"
 *
 * ProviderProfile.observations(ProviderProfile.openai, {
 *   "x-ratelimit-limit-requests": "500",
 *   "x-ratelimit-remaining-requests": "499",
 *   "x-ratelimit-reset-requests": "120ms"
 * })
 * // [{ types: ["rpm", "rpd"], limit: 500, remaining: 499, rounding: 1, reset: 120 }]
 * ```
 *
 * @category accessors
 * @since 0.1.0
 */
export const observations = (
  profile: ProviderProfile,
  headers: HeadersInput,
  wallClockMillis?: number
): ReadonlyArray<RateLimiter.Observation> => {
  const lookup = reader.lookup(headers)
  return reader.observations(profile.headers, lookup, reader.responseTime(lookup, wallClockMillis))
}

/**
 * What a failure means, when it is the provider's; `undefined` when it is not, or when only the request is at fault.
 *
 * Reads errors of the official SDKs, of Effect's HTTP client and AI packages and of others like them, responses,
 * bodies parsed or not, and events of a stream, at any place in a chain of causes. It never throws and its work is
 * bounded. `wallClockMillis` is as for `observations`.
 *
 * A header `x-should-retry: false` is believed: such a failure is never `rate`, `ramp`, `overload` or `transient`.
 *
 * **Example** (Understanding a refusal)
 *
 * ```ts
 * import { ProviderProfile } from "effect-llm-queue"
 *
 * const refusal = ProviderProfile.classify(ProviderProfile.openai, {
 *   status: 429,
 *   headers: { "retry-after": "12" },
 *   body: {
 *     error: {
 *       message: "Rate limit reached on tokens per min (TPM): Limit 30000, Used 29000, Requested 7000.",
 *       type: "tokens",
 *       code: "rate_limit_exceeded"
 *     }
 *   }
 * })
 * // refusal?.kind is "rate", refusal?.types are ["tpm"], refusal?.retryAfter is 12000
 * ```
 *
 * @category accessors
 * @since 0.1.0
 */
export const classify = (
  profile: ProviderProfile,
  error: unknown,
  wallClockMillis?: number
): RateLimiter.Refusal | undefined => classifier.classify(profile, error, wallClockMillis)

const margin: Duration.Input = "250 millis"

/** The headers of OpenAI and of those who follow it. */
const openaiHeader = (
  name: string,
  types: ReadonlyArray<RateLimiter.Type>,
  options?: Omit<HeaderRule, "types" | "limit" | "remaining" | "reset">
): HeaderRule => ({
  ...options,
  types,
  limit: `x-ratelimit-limit-${name}`,
  remaining: `x-ratelimit-remaining-${name}`,
  reset: `x-ratelimit-reset-${name}`
})

const anthropicHeader = (
  name: string,
  types: ReadonlyArray<RateLimiter.Type>,
  options?: Pick<HeaderRule, "rounding">
): HeaderRule => ({
  ...options,
  types,
  limit: `anthropic-ratelimit-${name}-limit`,
  remaining: `anthropic-ratelimit-${name}-remaining`,
  reset: `anthropic-ratelimit-${name}-reset`,
  resetFormat: "instant"
})

const anthropicHeaders: ReadonlyArray<HeaderRule> = [
  anthropicHeader("requests", ["rpm"]),
  anthropicHeader("input-tokens", ["itpm"], { rounding: 1000 }),
  anthropicHeader("output-tokens", ["otpm"], { rounding: 1000 })
]

/** A bucket whose minute is also used by others: no burst before the provider has told, and never all of it. */
const minuteBucket = { algorithm: "tokenBucket", headroom: "2 seconds", coldStart: true } as const satisfies LimitRule

/** The server's own estimate on arrival is a quarter of the characters. */
const byCharacters = { atLeastCharacters: true } as const satisfies TokenEstimator.Options

/** The most that any provider charges for a request. */
const mostTokens = { output: "maximum", combine: "sum", refund: false } as const satisfies RateLimiter.Charging

const openaiTokens = { output: "maximum", combine: "maximum", refund: false } as const satisfies RateLimiter.Charging

/**
 * OpenAI: requests and tokens, per minute and per day, for an organization and for a project.
 *
 * - **Counts** with buckets that refill all the time and hold one full limit, the days too (measured).
 * - **Charges** tokens on arrival: the larger of `max_tokens` and an estimate of the input. Give
 *   `maxOutputTokens`, and keep it close to what is needed: it is charged whether used or not.
 * - **Corrects** nothing when the request ends, as far as is known: whether it does is unverified.
 * - **Refused** requests count as requests.
 * - **Headers** `x-ratelimit-*` on every response. Those about requests may describe the minute or the day.
 *
 * @category profiles
 * @since 0.1.0
 */
export const openai: ProviderProfile = {
  name: "openai",
  margin,
  limits: {
    rpm: { ...minuteBucket, charging: { refused: true } },
    rpd: { algorithm: "tokenBucket", charging: { refused: true } },
    tpm: { ...minuteBucket, charging: openaiTokens },
    tpd: { algorithm: "tokenBucket", charging: openaiTokens },
    itpm: { ...minuteBucket, charging: { refund: false } },
    otpm: { ...minuteBucket, charging: { output: "maximum", refund: false } }
  },
  estimation: byCharacters,
  headers: [
    openaiHeader("requests", ["rpm", "rpd"], { resetFormat: "duration" }),
    openaiHeader("tokens", ["tpm"], { resetFormat: "duration" }),
    openaiHeader("project-tokens", ["tpm"], { resetFormat: "duration" })
  ],
  retryAfter: standard.retryAfter,
  errors: [...standard.openai, ...standard.fallback],
  limitNames: standard.limitNames,
  facts: facts.openai
}

/**
 * Azure OpenAI: tokens and requests per minute of a deployment.
 *
 * - **Counts** tokens over a minute, and requests over one or ten seconds: 120 in a minute are 20 in any ten seconds.
 * - **Charges** on arrival: estimated input and all of `max_tokens`.
 * - **Corrects** nothing, until seen otherwise.
 * - **Refused** and failed requests count.
 * - **Headers** about tokens are read; those about requests are not, because they may be about ten seconds. They can
 *   be negative, and −1 says nothing.
 * - **Streams** can be refused in a response of status 200.
 *
 * @category profiles
 * @since 0.1.0
 */
export const azure: ProviderProfile = {
  name: "azure",
  margin,
  limits: {
    rpm: { algorithm: "paced", quantum: "10 seconds", charging: { refused: true } },
    tpm: { algorithm: "slidingWindow", coldStart: true, charging: mostTokens }
  },
  estimation: byCharacters,
  headers: [openaiHeader("tokens", ["tpm"], { unset: [-1] })],
  retryAfter: standard.retryAfter,
  errors: [
    ...standard.azure,
    ...standard.openai,
    { status: [200], headers: { "retry-after": true }, kind: "rate" },
    ...standard.fallback
  ],
  limitNames: [
    { includes: ["token rate limit"], types: ["tpm"] },
    { includes: ["call rate limit"], types: ["rpm"] },
    ...standard.limitNames
  ],
  facts: facts.azure
}

/**
 * Anthropic: requests, input tokens and output tokens per minute.
 *
 * - **Counts** with buckets that refill all the time.
 * - **Charges** input when the request arrives, and output as it is produced: `max_tokens` costs nothing.
 * - **Corrects** the input to what it was, without what came from the cache. Give `estimatedCachedInputTokens` where
 *   that is most of a prompt, so that it is not reserved.
 * - **Refused** requests are not charged here; whether they count is unverified.
 * - **Headers** `anthropic-ratelimit-*` on every response, tokens rounded to thousands. Those of all tokens together
 *   repeat the narrowest of the limits and are not read, nor are those of the priority and fast modes.
 *
 * @category profiles
 * @since 0.1.0
 */
export const anthropic: ProviderProfile = {
  name: "anthropic",
  margin,
  limits: {
    rpm: minuteBucket,
    itpm: { ...minuteBucket, chargedAt: "dispatch", charging: { cachedInput: false } },
    otpm: { ...minuteBucket, chargedAt: "production", charging: { output: "expected" } }
  },
  headers: anthropicHeaders,
  retryAfter: standard.retryAfter,
  errors: [...standard.anthropic, ...standard.fallback],
  limitNames: standard.limitNames,
  facts: facts.anthropic
}

/**
 * Google Gemini API: requests per minute and day, input tokens per minute.
 *
 * - **Counts** in fixed minutes whose start is not known (measured twice), and in days from midnight Pacific time.
 * - **Charges** input tokens only: write their limit as `tpm`.
 * - **Corrects** to the actual input.
 * - **Refused** and failed requests count.
 * - **Headers**: none.
 * - A refusal by the day carries a time to wait that means nothing and is ignored.
 *
 * @category profiles
 * @since 0.1.0
 */
export const gemini: ProviderProfile = {
  name: "gemini",
  margin,
  limits: {
    rpm: { algorithm: "paced", coldStart: true, charging: { refused: true } },
    tpm: { algorithm: "paced", coldStart: true, charging: { outputWeight: 0 } },
    rpd: {
      algorithm: "fixedWindow",
      timeZone: "America/Los_Angeles",
      margin: "5 seconds",
      charging: { refused: true }
    },
    tpd: { algorithm: "slidingWindow" },
    itpm: { algorithm: "paced" }
  },
  headers: [],
  retryAfter: standard.retryAfter,
  errors: [...standard.gemini, ...standard.fallback],
  limitNames: [...standard.geminiLimitNames, ...standard.limitNames],
  facts: facts.gemini
}

const groqTokens = {
  output: "maximum",
  combine: "sum",
  refund: true,
  cachedInput: false
} as const satisfies RateLimiter.Charging

/**
 * Groq: requests and tokens, per minute and per day.
 *
 * - **Counts** with buckets that refill all the time and hold one full limit, the days too (measured).
 * - **Charges** input and `max_completion_tokens` on arrival; input from the cache is free.
 * - **Corrects** to the actual use when the request ends: seen in what is left, otherwise unverified.
 * - **Headers** are about the requests of the day and the tokens of the minute, always.
 * - A request above the limit is refused with status 413.
 *
 * @category profiles
 * @since 0.1.0
 */
export const groq: ProviderProfile = {
  name: "groq",
  margin,
  limits: {
    rpm: minuteBucket,
    rpd: { algorithm: "tokenBucket" },
    tpm: { ...minuteBucket, charging: groqTokens },
    tpd: { algorithm: "tokenBucket", charging: groqTokens },
    itpm: { ...minuteBucket, charging: { cachedInput: false } },
    otpm: { ...minuteBucket, charging: { output: "maximum" } }
  },
  headers: [
    openaiHeader("requests", ["rpd"], { resetFormat: "duration" }),
    openaiHeader("tokens", ["tpm"], { resetFormat: "duration" })
  ],
  retryAfter: standard.retryAfter,
  errors: [...standard.groq, ...standard.openai, ...standard.fallback],
  limitNames: standard.limitNames,
  facts: facts.groq
}

/**
 * Mistral: requests and tokens per minute of a model.
 *
 * - **Counts** over a sliding minute (measured); the documents speak of requests per second. Requests are paced here,
 *   and both start cold, so that a start, or others, cause few refusals.
 * - **Charges** the actual tokens when the request ends, nothing before.
 * - **Headers** on every response, without a reset, and no `Retry-After`. A limit of 0 means that the model is not
 *   allowed.
 *
 * @category profiles
 * @since 0.1.0
 */
export const mistral: ProviderProfile = {
  name: "mistral",
  margin,
  limits: {
    rpm: { algorithm: "paced", coldStart: true },
    tpm: { algorithm: "slidingWindow", coldStart: true, chargedAt: "completion", charging: { output: "expected" } }
  },
  headers: [
    {
      types: ["rpm"],
      limit: "x-ratelimit-limit-req-minute",
      remaining: "x-ratelimit-remaining-req-minute",
      asOf: "response",
      zeroLimit: "notAllowed"
    },
    {
      types: ["tpm"],
      limit: "x-ratelimit-limit-tokens-minute",
      remaining: "x-ratelimit-remaining-tokens-minute",
      asOf: "response",
      zeroLimit: "notAllowed"
    }
  ],
  retryAfter: standard.retryAfter,
  errors: [...standard.mistral, ...standard.fallback],
  limitNames: standard.limitNames,
  facts: facts.mistral
}

const bedrockTokens = {
  output: "maximum",
  combine: "sum",
  outputWeight: 5,
  refund: true,
  cachedInput: false
} as const satisfies RateLimiter.Charging

/**
 * Amazon Bedrock (`bedrock-runtime`): input and output tokens together, per minute and per day.
 *
 * - **Counts** by an algorithm that is not known. Tokens go by a sliding minute, which is safe with a fixed one and with
 *   a bucket of a whole minute too; pacing would cost what reservations take beyond the actual use.
 * - **Charges** input and `max_tokens` on arrival, and weighs output: 5 for Claude up to 4.7, 10 for 5.x, 15 for 4.8,
 *   1 for other models. The profile says 5; for another model write
 *   `tpm(limit, { charging: { outputWeight: 1 } })`. Whether `max_tokens` is weighed on arrival is unverified.
 * - **Corrects** to the actual use when the request ends; input from the cache is free then.
 * - **Headers**: none. Refusals carry no time to wait.
 *
 * @category profiles
 * @since 0.1.0
 */
export const bedrock: ProviderProfile = {
  name: "bedrock",
  margin,
  limits: {
    rpm: { algorithm: "paced" },
    tpm: { algorithm: "slidingWindow", charging: bedrockTokens },
    tpd: { algorithm: "slidingWindow", charging: bedrockTokens }
  },
  headers: [],
  retryAfter: standard.retryAfter,
  errors: [...standard.bedrock, ...standard.fallback],
  limitNames: [...standard.bedrockLimitNames, ...standard.limitNames],
  facts: facts.bedrock
}

/**
 * DeepSeek: requests at one time, from being sent until they are complete, and nothing else.
 *
 * - **Refused** at once with 429 above the limit, so a 429 is about `concurrent`.
 * - **Headers**: none.
 *
 * @category profiles
 * @since 0.1.0
 */
export const deepseek: ProviderProfile = {
  name: "deepseek",
  margin,
  limits: { concurrent: {} },
  headers: [],
  retryAfter: standard.retryAfter,
  errors: [
    ...standard.deepseek,
    { status: [429], kind: "rate", types: ["concurrent"] },
    ...standard.fallback
  ],
  limitNames: standard.limitNames,
  facts: facts.deepseek
}

/**
 * OpenRouter: limits of its own for free models only; paid ones have those of the provider behind it.
 *
 * - **Counts** requests of a minute, paced here because the algorithm is not known, and of a day in UTC.
 * - **Headers** only on refusals by OpenRouter itself.
 * - Status 402 can pass: when the budget is only held by requests in flight.
 *
 * @category profiles
 * @since 0.1.0
 */
export const openrouter: ProviderProfile = {
  name: "openrouter",
  margin,
  limits: {
    rpm: { algorithm: "paced" },
    rpd: { algorithm: "fixedWindow", timeZone: "UTC", margin: "5 seconds" }
  },
  headers: [{
    types: ["rpm", "rpd"],
    limit: "x-ratelimit-limit",
    remaining: "x-ratelimit-remaining",
    reset: "x-ratelimit-reset"
  }],
  retryAfter: standard.retryAfter,
  errors: [...standard.openrouter, ...standard.openai, ...standard.fallback],
  limitNames: standard.limitNames,
  facts: facts.openrouter
}

/**
 * Together: requests and tokens per minute, enforced each second, by limits that grow with steady use.
 *
 * - **Counts** each second: 60 requests a minute are one a second.
 * - **Charges** as assumed to be safe: all of the maximum output, nothing given back. This is unverified.
 * - **Headers** are not read: whether their numbers are those of a second or a minute is unverified.
 * - Growing faster than the dynamic limit is refused with 429 and is a `ramp`; below it, 503 is an overload.
 *
 * @category profiles
 * @since 0.1.0
 */
export const together: ProviderProfile = {
  name: "together",
  margin,
  limits: {
    rpm: { algorithm: "paced", quantum: "1 second" },
    tpm: { algorithm: "paced", quantum: "1 second", charging: mostTokens }
  },
  headers: [],
  retryAfter: standard.retryAfter,
  errors: [...standard.together, ...standard.openai, ...standard.fallback],
  limitNames: standard.limitNames,
  facts: facts.together
}

/** Held until the request has ended, and then for a whole period: whenever the server dates it, it still counts here. */
const mostHeld = { chargedAt: "completion", charging: mostTokens } as const satisfies LimitRule

/**
 * A provider that nothing is known about.
 *
 * Its limits cannot be exceeded on servers that charge tokens in any known way: all of the maximum output, the larger
 * of that and the input, the input and what is produced, the actual use at the end, or the input only. They hold
 * for sliding windows, fixed windows of any phase, and buckets that hold a second's refill, no less than the largest
 * request and the margin's refill. Two things are up to you: estimate the input no lower than the server does (a model's
 * own `estimator` replaces the profile's), and give `maxOutputTokens`.
 *
 * What that costs:
 *
 * - a request reserves its maximum output and gets nothing back: it uses `(input + maximum) / (input + output)` times
 *   what it needs;
 * - the charge counts from the start of the request until one period after its end: requests of ten seconds leave
 *   `60 / 70` of a minute's tokens;
 * - bursts are spread over the period, and nothing bursts before the provider, or one period, has told.
 *
 * So pick the provider's own profile when there is one. Otherwise change what you know: `algorithm: "tokenBucket"`
 * for buckets of a whole limit, `charging: { refund: true }` where `remaining` jumps back up at the end of requests,
 * `chargedAt: "dispatch"` where it drops by the whole charge on arrival, `quantum` where the limit is enforced in
 * shorter windows, `charging: { outputWeight: 0 }` where only input counts.
 *
 * It reads the headers of OpenAI and Anthropic, and the failures of all providers here.
 *
 * @category profiles
 * @since 0.1.0
 */
export const generic: ProviderProfile = {
  name: "generic",
  margin,
  limits: {
    rpm: { algorithm: "paced", coldStart: true, charging: { refused: true } },
    rpd: { algorithm: "slidingWindow", charging: { refused: true } },
    tpm: { algorithm: "paced", coldStart: true, ...mostHeld },
    tpd: { algorithm: "slidingWindow", ...mostHeld },
    itpm: { algorithm: "paced", coldStart: true, ...mostHeld },
    otpm: { algorithm: "paced", coldStart: true, ...mostHeld },
    concurrent: {}
  },
  estimation: byCharacters,
  headers: [
    openaiHeader("requests", ["rpm", "rpd"], { unset: [-1] }),
    openaiHeader("tokens", ["tpm", "tpd"], { unset: [-1] }),
    ...anthropicHeaders
  ],
  retryAfter: standard.retryAfter,
  errors: [
    ...standard.openrouter,
    ...standard.together,
    ...standard.groq,
    ...standard.azure,
    ...standard.openai,
    ...standard.anthropic,
    ...standard.gemini,
    ...standard.mistral,
    ...standard.bedrock,
    ...standard.deepseek,
    ...standard.fallback
  ],
  limitNames: [...standard.geminiLimitNames, ...standard.bedrockLimitNames, ...standard.limitNames],
  facts: facts.generic
}

/**
 * What `make` takes: a name, and what differs from `generic`.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  readonly name: string
  /** Default 250 milliseconds. */
  readonly margin?: Duration.Input | undefined
  /** Types that are left out are those of `generic`. */
  readonly limits?: ProviderProfile["limits"] | undefined
  readonly estimation?: TokenEstimator.Options | undefined
  readonly headers?: ReadonlyArray<HeaderRule> | undefined
  readonly retryAfter?: ReadonlyArray<RetryAfterRule> | undefined
  readonly errors?: ReadonlyArray<ErrorRule> | undefined
  readonly limitNames?: ReadonlyArray<LimitName> | undefined
  /** Default none. */
  readonly facts?: ReadonlyArray<Fact> | undefined
}

/**
 * Makes a profile; what is left out is that of `generic`. To change another one, spread it:
 * `{ ...ProviderProfile.openai, margin: "1 second" }`.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (options: Options): ProviderProfile => ({
  name: options.name,
  margin: options.margin ?? generic.margin,
  limits: { ...generic.limits, ...options.limits },
  estimation: options.estimation ?? generic.estimation,
  headers: options.headers ?? generic.headers,
  retryAfter: options.retryAfter ?? generic.retryAfter,
  errors: options.errors ?? generic.errors,
  limitNames: options.limitNames ?? generic.limitNames,
  facts: options.facts ?? []
})

/**
 * Tells the queue what the headers of a response say, from inside the processor of a request; as soon as they are
 * there, which in a stream is long before its end. Takes anything with `headers`: a fetch `Response`, that of an
 * official SDK's `withResponse()`, or of Effect's HTTP client.
 *
 * Does nothing outside a processor, and for a model without a `provider`. What headers a failure carries is read by the
 * queue itself.
 *
 * @category accessors
 * @since 0.1.0
 */
export const observe = (response: { readonly headers: HeadersInput }): Effect.Effect<void> =>
  Effect.flatMap(
    CurrentEntry,
    (entry) => entry === undefined ? Effect.void : entry.queue.observe(entry, response.headers)
  )
