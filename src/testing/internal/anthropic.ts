/** The wire format of Anthropic's messages, whole and as events, with its headers and errors. */
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { usual } from "./faults.ts"
import type { Quota, Refusal } from "./ledger.ts"
import { TokenCount } from "./openai.ts"
import * as wire from "./wire.ts"

const Content = Schema.Union([
  Schema.String,
  Schema.Array(Schema.Struct({ type: Schema.String, text: Schema.optional(Schema.String) }))
])

const Request = Schema.Struct({
  model: Schema.String,
  max_tokens: TokenCount,
  system: Schema.optional(Content),
  messages: Schema.NonEmptyArray(Schema.Struct({ role: Schema.Literals(["user", "assistant"]), content: Content })),
  stream: Schema.optional(Schema.Boolean)
})

const decode = Schema.decodeUnknownResult(Request)

const textOf = (content: typeof Content.Type): string =>
  typeof content === "string" ? content : content.map((part) => part.text ?? "").join("")

const toPrompt = ({ max_tokens, messages, model, stream, system = "" }: typeof Request.Type): wire.Prompt => ({
  model,
  text: textOf(system) + messages.map(({ content }) => textOf(content)).join(""),
  messages: messages.length,
  maxOutput: max_tokens,
  n: 1,
  stream: stream === true,
  includeUsage: true
})

const usage = (answer: wire.Answer, output: number) => ({
  input_tokens: answer.input - answer.cached - answer.cacheWritten,
  cache_creation_input_tokens: answer.cacheWritten,
  cache_read_input_tokens: answer.cached,
  output_tokens: output
})

const stopReason = ({ isCut }: wire.Answer) => isCut ? "max_tokens" : "end_turn"

const message = (answer: wire.Answer, fields: object) => ({
  id: `msg_${wire.hexId(answer.id, 24)}`,
  type: "message",
  role: "assistant",
  model: answer.model,
  content: [],
  stop_reason: null,
  stop_sequence: null,
  ...fields
})

const event = (type: string, fields: object): string => wire.event(type, { type, ...fields })

export const format: wire.Format = {
  parse: (body) => Result.match(decode(body), { onSuccess: toPrompt, onFailure: (error) => error.message }),
  whole: (answer) =>
    message(answer, {
      content: [{ type: "text", text: answer.text }],
      stop_reason: stopReason(answer),
      usage: usage(answer, answer.words.length)
    }),
  head: (answer) =>
    event("message_start", { message: message(answer, { usage: usage(answer, 1) }) })
    + event("content_block_start", { index: 0, content_block: { type: "text", text: "" } })
    + event("ping", {}),
  token: (_, text) => event("content_block_delta", { index: 0, delta: { type: "text_delta", text } }),
  tail: (answer) =>
    event("content_block_stop", { index: 0 })
    + event("message_delta", {
      delta: { stop_reason: stopReason(answer), stop_sequence: null },
      usage: { output_tokens: answer.words.length }
    })
    + event("message_stop", {}),
  failure: (_, error) => event("error", { error: { type: error.type, message: error.message } })
}

const limitHeaders = (name: string, quota: Quota, wall: number, unit: number): Record<string, string> => ({
  [`anthropic-${quota.pool ?? "ratelimit"}-${name}-limit`]: wire.whole(quota.limit),
  [`anthropic-${quota.pool ?? "ratelimit"}-${name}-remaining`]: String(
    Math.max(0, Math.round(quota.remaining / unit) * unit)
  ),
  [`anthropic-${quota.pool ?? "ratelimit"}-${name}-reset`]: wire.rfc3339(wall + quota.reset)
})

/** The tokens headers show the token limit of which the smallest share is left. */
const tightest = (quotas: ReadonlyArray<Quota>): Quota | undefined => {
  let found: Quota | undefined
  for (const quota of quotas) {
    if (quota.pool !== undefined) continue
    if (quota.dimension !== "tokens" && quota.dimension !== "input" && quota.dimension !== "output") continue
    if (found === undefined || quota.remaining / quota.limit < found.remaining / found.limit) found = quota
  }
  return found
}

const identity = ({ id }: wire.Situation): Record<string, string> => ({
  "request-id": `req_${wire.hexId(id, 24)}`,
  "anthropic-organization-id": "00000000-0000-4000-8000-000000000000"
})

const rateLimitHeaders = (situation: wire.Situation): Record<string, string> => {
  const { quotas, wall } = situation
  const requests = wire.quotaOf(situation, "requests")
  const tokens = tightest(quotas)
  const input = wire.quotaOf(situation, "input")
  const output = wire.quotaOf(situation, "output")
  const ofPools = quotas.filter(({ dimension, pool }) =>
    pool !== undefined && (dimension === "input" || dimension === "output")
  )
  return {
    ...Object.assign({}, ...ofPools.map((quota) => limitHeaders(`${quota.dimension}-tokens`, quota, wall, 1000))),
    ...(requests && limitHeaders("requests", requests, wall, 1)),
    ...(tokens && limitHeaders("tokens", tokens, wall, 1000)),
    ...(input && limitHeaders("input-tokens", input, wall, 1000)),
    ...(output && limitHeaders("output-tokens", output, wall, 1000))
  }
}

const per = (period: number): string =>
  period === 60_000 ? "per minute" : period === 86_400_000 ? "per day" : `per ${wire.goDuration(period)}`

const limitName = ({ dimension, limit, period }: Refusal): string =>
  dimension === "concurrent"
    ? `${wire.whole(limit)} concurrent requests`
    : `${Math.round(limit).toLocaleString("en-US")} ${
      dimension === "input" || dimension === "output" ? `${dimension} tokens` : dimension
    } ${per(period)}`

const organization = "00000000-0000-4000-8000-000000000000"

const errorBody = ({ id }: Pick<wire.Situation, "id">, error: wire.WireError): string =>
  JSON.stringify({
    type: "error",
    error: {
      type: error.type,
      message: error.message,
      ...(error.code === null ? {} : { details: { error_code: error.code } })
    },
    request_id: `req_${wire.hexId(id, 24)}`
  })

const as = (error: wire.WireError, type: string): wire.WireError => ({ ...error, type, code: null })

const spendLimit = usual.enforced_spend_limit_reached

export const dialect: wire.Dialect = {
  headers: (situation) => ({ ...identity(situation), ...rateLimitHeaders(situation) }),
  refusal: (situation, refusal) => {
    const error = {
      status: 429,
      type: "rate_limit_error",
      code: null,
      message: `This request would exceed the rate limit for your organization (${organization}) of ${
        limitName(refusal)
      }. Reduce the prompt length or the maximum tokens requested, or try again later.`,
      isRetryable: !refusal.tooLarge
    }
    return {
      error,
      status: 429,
      headers: {
        ...wire.json,
        ...identity(situation),
        ...rateLimitHeaders(situation),
        ...(refusal.retryAfter === undefined ? {} : { "retry-after": String(wire.seconds(refusal.retryAfter)) }),
        "x-should-retry": String(!refusal.tooLarge)
      },
      body: errorBody(situation, error)
    }
  },
  error: (situation, error) => ({
    status: error.status,
    headers: {
      ...wire.json,
      ...identity(situation),
      ...((error.status === 429 && error.isRetryable) || error.status === 529 ? { "x-should-retry": "true" } : {})
    },
    body: errorBody(situation, error)
  }),
  errors: {
    "429": as(usual["429"], "rate_limit_error"),
    slow_down: {
      ...as(usual.slow_down, "rate_limit_error"),
      message: "This request would exceed the acceleration limit of your organization. Scale up more gradually."
    },
    credit_balance_exhausted: as(
      { ...usual["400"], message: "Your credit balance is too low." },
      "invalid_request_error"
    ),
    organization_spend_limit_exceeded: spendLimit,
    project_spend_limit_exceeded: spendLimit,
    organization_usage_limit_exceeded: usual.usage_limits_reached,
    insufficient_quota: spendLimit,
    daily_quota: spendLimit,
    "401": as(usual["401"], "authentication_error"),
    "402": as(usual["402"], "billing_error"),
    "403": as(usual["403"], "permission_error"),
    "404": as(usual["404"], "not_found_error"),
    "413": as(usual["413"], "request_too_large"),
    "500": as(usual["500"], "api_error"),
    "503": as(usual["503"], "api_error"),
    "504": as(usual["504"], "timeout_error"),
    "408": as(usual["408"], "timeout_error"),
    "409": as(usual["409"], "invalid_request_error")
  }
}
