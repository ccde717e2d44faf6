/** The wire format of Gemini's generateContent, whole and as events. It has no rate-limit headers. */
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { usual } from "./faults.ts"
import type { Refusal } from "./ledger.ts"
import { TokenCount } from "./openai.ts"
import * as wire from "./wire.ts"

const Content = Schema.Struct({
  parts: Schema.Array(Schema.Struct({ text: Schema.optional(Schema.String) }))
})

const Request = Schema.Struct({
  contents: Schema.NonEmptyArray(Content),
  systemInstruction: Schema.optional(Content),
  generationConfig: Schema.optional(Schema.Struct({ maxOutputTokens: Schema.optional(TokenCount) }))
})

const decode = Schema.decodeUnknownResult(Request)

const textOf = ({ parts }: typeof Content.Type): string => parts.map((part) => part.text ?? "").join("")

const parse = (isStream: boolean) => (body: unknown, model: string | undefined): wire.Prompt | string =>
  Result.match(decode(body), {
    onSuccess: ({ contents, generationConfig, systemInstruction }) => ({
      model: model ?? "",
      text: [...(systemInstruction ? [systemInstruction] : []), ...contents].map(textOf).join(""),
      messages: contents.length,
      maxOutput: generationConfig?.maxOutputTokens,
      n: 1,
      stream: isStream,
      includeUsage: true
    }),
    onFailure: (error) => error.message
  })

const piece = (answer: wire.Answer, text: string, finishReason: string | undefined, output: number) => ({
  candidates: [{
    content: { parts: [{ text }], role: "model" },
    ...(finishReason === undefined ? {} : { finishReason }),
    index: 0
  }],
  usageMetadata: {
    promptTokenCount: answer.input,
    ...(answer.cached > 0 ? { cachedContentTokenCount: answer.cached } : {}),
    candidatesTokenCount: output,
    totalTokenCount: answer.input + output
  },
  modelVersion: answer.model,
  responseId: wire.hexId(answer.id, 22)
})

const finishReason = ({ isCut }: wire.Answer) => isCut ? "MAX_TOKENS" : "STOP"

export const whole: wire.Format = {
  parse: parse(false),
  whole: (answer) => piece(answer, answer.text, finishReason(answer), answer.words.length),
  head: () => "",
  token: (answer, text, index) => wire.data(piece(answer, text, undefined, index + 1)),
  tail: (answer) => wire.data(piece(answer, "", finishReason(answer), answer.words.length)),
  failure: (_, error) => wire.data(errorBody(error))
}

export const stream: wire.Format = { ...whole, parse: parse(true) }

const statuses: Readonly<Record<number, string>> = {
  400: "INVALID_ARGUMENT",
  401: "UNAUTHENTICATED",
  402: "FAILED_PRECONDITION",
  403: "PERMISSION_DENIED",
  404: "NOT_FOUND",
  408: "DEADLINE_EXCEEDED",
  409: "ABORTED",
  413: "INVALID_ARGUMENT",
  429: "RESOURCE_EXHAUSTED",
  500: "INTERNAL",
  503: "UNAVAILABLE",
  504: "DEADLINE_EXCEEDED",
  529: "UNAVAILABLE"
}

const errorBody = ({ message, status }: wire.WireError, details?: ReadonlyArray<object>) => ({
  error: {
    code: status,
    message,
    status: statuses[status] ?? "UNKNOWN",
    ...(details === undefined ? {} : { details })
  }
})

interface Quota {
  readonly metric: string
  readonly id: string
}

const quotaOf = ({ dimension, period }: Pick<Refusal, "dimension" | "period">): Quota => {
  const time = wire.isDay({ period }) ? "PerDay" : "PerMinute"
  const service = "generativelanguage.googleapis.com/generate_content_free_tier_"
  return dimension === "requests" || dimension === "concurrent"
    ? { metric: `${service}requests`, id: `GenerateRequests${time}PerProjectPerModel-FreeTier` }
    : dimension === "spend"
    ? { metric: `${service}spend`, id: "GenerateContentSpendPerProject-FreeTier" }
    : { metric: `${service}input_token_count`, id: `GenerateContentInputTokensPerModel${time}-FreeTier` }
}

/** A quota of the day comes with a short delay that means nothing. */
const misleadingDelay = (id: number): number => 10_000 + (id * 7919) % 50_000 + 0.25

const delay = (millis: number): string => `${Number((millis / 1000).toFixed(9))}s`

const exhausted = (
  situation: wire.Situation,
  refusal: Pick<Refusal, "dimension" | "limit" | "period">,
  wait: number | undefined
) => {
  const quota = quotaOf(refusal)
  const limit = wire.whole(refusal.limit)
  const error: wire.WireError = {
    status: 429,
    type: "RESOURCE_EXHAUSTED",
    code: null,
    message: "You exceeded your current quota, please check your plan and billing details.\n"
      + `* Quota exceeded for metric: ${quota.metric}, limit: ${limit}, model: ${situation.model}\n`
      + (wait === undefined ? "" : `Please retry in ${delay(wait)}.`),
    isRetryable: !wire.isDay(refusal)
  }
  return {
    error,
    status: 429,
    headers: wire.json,
    body: JSON.stringify(errorBody(error, [
      {
        "@type": "type.googleapis.com/google.rpc.QuotaFailure",
        violations: [{
          quotaMetric: quota.metric,
          quotaId: quota.id,
          quotaDimensions: { location: "global", model: situation.model },
          quotaValue: limit
        }]
      },
      ...(wait === undefined
        ? []
        : [{ "@type": "type.googleapis.com/google.rpc.RetryInfo", retryDelay: `${Math.floor(wait / 1000)}s` }])
    ])),
    // Whole seconds in RetryInfo are rounded down: who heeds only those is early by less than a second.
    hint: wait === undefined || wire.isDay(refusal) ? undefined : Math.floor(wait / 1000) * 1000
  }
}

export const dialect: wire.Dialect = {
  headers: () => ({}),
  refusal: (situation, refusal) => {
    const reply = exhausted(
      situation,
      refusal,
      wire.isDay(refusal) ? misleadingDelay(situation.id) : refusal.retryAfter
    )
    return refusal.tooLarge ? { ...reply, error: { ...reply.error, isRetryable: false } } : reply
  },
  error: (situation, error) =>
    error.type === "daily_quota"
      ? exhausted(situation, { dimension: "requests", limit: 250, period: 86_400_000 }, misleadingDelay(situation.id))
      : { status: error.status, headers: wire.json, body: JSON.stringify(errorBody(error)) },
  errors: {
    "429": { ...usual["429"], message: "Resource exhausted, please try again later." },
    "503": { ...usual["503"], message: "The model is overloaded. Please try again later." },
    daily_quota: { ...usual.daily_quota, type: "daily_quota" }
  }
}
