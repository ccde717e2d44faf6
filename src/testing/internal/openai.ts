/**
 * The wire format of OpenAI's chat completions: what a request looks like, and what the headers, bodies and stream
 * chunks of the answers look like. Pure functions only.
 */
import * as Schema from "effect/Schema"
import type { Completion } from "../ProviderSimulator.ts"
import type { Limit, Quota, Refusal } from "./ledger.ts"

/** Keeps a careless `max_tokens` from asking for an answer that does not fit in memory. */
const maxOutputTokens = 131_072

const TokenCount = Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: maxOutputTokens }))
const ContentPart = Schema.Struct({ type: Schema.String, text: Schema.optional(Schema.String) })

export const ChatRequest = Schema.Struct({
  model: Schema.String,
  messages: Schema.NonEmptyArray(Schema.Struct({
    role: Schema.Literals(["developer", "system", "user", "assistant", "tool", "function"]),
    content: Schema.optional(Schema.NullOr(Schema.Union([Schema.String, Schema.Array(ContentPart)])))
  })),
  max_tokens: Schema.optional(Schema.NullOr(TokenCount)),
  max_completion_tokens: Schema.optional(Schema.NullOr(TokenCount)),
  n: Schema.optional(Schema.NullOr(Schema.Literal(1))),
  stream: Schema.optional(Schema.NullOr(Schema.Boolean)),
  stream_options: Schema.optional(Schema.NullOr(Schema.Struct({ include_usage: Schema.optional(Schema.Boolean) })))
})

export type ChatRequest = typeof ChatRequest.Type

export const decode = Schema.decodeUnknownEffect(ChatRequest)

export const promptText = (request: ChatRequest): string =>
  request.messages.map(({ content }) =>
    typeof content === "string" ? content : (content ?? []).map((part) => part.text ?? "").join("")
  ).join("")

export const maxTokens = (request: ChatRequest): number => request.max_completion_tokens ?? request.max_tokens ?? 16

/** As Go prints a duration, rounded up to whole milliseconds: `12ms`, `1.378s`, `6m0s`. */
export const goDuration = (millis: number): string => {
  const total = Math.ceil(millis)
  if (total > 0 && total < 1000) return `${total}ms`
  const hours = Math.floor(total / 3_600_000)
  const minutes = Math.floor(total / 60_000)
  return `${hours > 0 ? `${hours}h` : ""}${minutes > 0 ? `${minutes % 60}m` : ""}${(total % 60_000) / 1000}s`
}

/** The first requests limit and the first tokens limit of the model, as they stand after this request. */
export const rateLimitHeaders = (quotas: ReadonlyArray<Quota>): Record<string, string> => {
  const headers: Record<string, string> = {}
  for (const dimension of ["requests", "tokens"] as const) {
    const quota = quotas.find((quota) => quota.dimension === dimension)
    if (quota === undefined) continue
    headers[`x-ratelimit-limit-${dimension}`] = String(quota.limit)
    headers[`x-ratelimit-remaining-${dimension}`] = String(quota.remaining)
    headers[`x-ratelimit-reset-${dimension}`] = goDuration(quota.reset)
  }
  return headers
}

export const refusalHeaders = ({ retryAfter, tooLarge }: Refusal): Record<string, string> => ({
  ...(retryAfter === undefined ? {} : {
    "retry-after": String(Math.ceil(retryAfter / 1000)),
    "retry-after-ms": String(Math.ceil(retryAfter))
  }),
  ...(tooLarge ? { "x-should-retry": "false" } : {})
})

const limitName = ({ dimension, period }: Pick<Limit, "dimension" | "period">): string => {
  if (dimension === "concurrent") return "concurrent requests"
  const counted = dimension === "input" || dimension === "output" ? `${dimension} tokens` : dimension
  const initials = counted.split(" ").map((word) => word.charAt(0).toUpperCase()).join("")
  return period === 60_000
    ? `${counted} per min (${initials}PM)`
    : period === 86_400_000
    ? `${counted} per day (${initials}PD)`
    : `${counted} per ${goDuration(period)}`
}

export const refusalMessage = (model: string, refusal: Refusal): string => {
  const { limit, requested, retryAfter, tooLarge, used } = refusal
  const on = `${model} in organization org-simulator on ${limitName(refusal)}: Limit ${limit}`
  const visit = "Visit https://platform.openai.com/account/rate-limits to learn more."
  return tooLarge
    ? `Request too large for ${on}, Requested ${requested}. `
      + `The input or output tokens must be reduced in order to run successfully. ${visit}`
    : `Rate limit reached for ${on}, Used ${used}, Requested ${requested}. `
      + `${retryAfter === undefined ? "" : `Please try again in ${goDuration(retryAfter)}. `}${visit}`
}

export const errorBody = (error: {
  readonly message: string
  readonly type: string
  readonly code: string | null
}) => ({ error: { message: error.message, type: error.type, param: null, code: error.code } })

const usage = ({ usage }: Completion) => ({
  prompt_tokens: usage.inputTokens,
  completion_tokens: usage.outputTokens,
  total_tokens: usage.inputTokens + usage.outputTokens
})

export const completionBody = (completion: Completion, created: number) => ({
  id: completion.id,
  object: "chat.completion",
  created,
  model: completion.model,
  choices: [{
    index: 0,
    message: { role: "assistant", content: completion.text, refusal: null },
    logprobs: null,
    finish_reason: completion.finishReason
  }],
  usage: usage(completion)
})

/** The events of a stream: `head`, one `token` for each piece of text, and `tail` when the last one has gone out. */
export const streamEvents = (completion: Completion, created: number, includeUsage: boolean) => {
  const event = (fields: object): string =>
    `data: ${
      JSON.stringify({
        id: completion.id,
        object: "chat.completion.chunk",
        created,
        model: completion.model,
        ...(includeUsage ? { usage: null } : {}),
        ...fields
      })
    }\n\n`
  const choice = (delta: object, finishReason: string | null): string =>
    event({ choices: [{ index: 0, delta, logprobs: null, finish_reason: finishReason }] })
  return {
    head: choice({ role: "assistant", content: "", refusal: null }, null),
    token: (content: string) => choice({ content }, null),
    tail: choice({}, completion.finishReason)
      + (includeUsage ? event({ choices: [], usage: usage(completion) }) : "")
      + "data: [DONE]\n\n"
  }
}
