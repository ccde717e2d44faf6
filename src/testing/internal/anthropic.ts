/** The wire format of Anthropic's messages, whole and as events, with its headers and errors. */
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { usual } from "./faults.ts"
import type { Quota, Refusal } from "./ledger.ts"
import { TokenCount } from "./openai.ts"
import * as scripted from "./scripted.ts"
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
  stream: Schema.optional(Schema.Boolean),
  tools: Schema.optional(
    Schema.Array(Schema.Struct({ name: Schema.String, input_schema: Schema.optional(Schema.Unknown) }))
  ),
  tool_choice: Schema.optional(Schema.Struct({ type: Schema.String, name: Schema.optional(Schema.String) }))
})

const decode = Schema.decodeUnknownResult(Request)

const textOf = (content: typeof Content.Type): string =>
  typeof content === "string" ? content : content.map((part) => part.text ?? "").join("")

const scriptOf = ({ messages, tool_choice, tools = [] }: typeof Request.Type): scripted.Scripted | undefined => {
  if (tool_choice?.type === "none") return undefined
  const { content, role } = messages.at(-1)!
  const isOfUser = role === "user"
    && (typeof content === "string" || content.every(({ type }) => type !== "tool_result"))
  return scripted.calls(
    tools.map(({ input_schema: schema, name }) => ({ name, schema })),
    tool_choice?.name,
    isOfUser ? textOf(content) : undefined
  )
}

const toPrompt = (request: typeof Request.Type): wire.Prompt => {
  const { max_tokens, messages, model, stream, system = "" } = request
  return {
    model,
    text: textOf(system) + messages.map(({ content }) => textOf(content)).join(""),
    messages: messages.length,
    maxOutput: max_tokens,
    n: 1,
    stream: stream === true,
    includeUsage: true,
    scripted: scriptOf(request)
  }
}

const usage = (answer: wire.Answer, output: number) => ({
  input_tokens: answer.input - answer.cached - answer.cacheWritten,
  cache_creation_input_tokens: answer.cacheWritten,
  cache_read_input_tokens: answer.cached,
  output_tokens: output
})

const event = (type: string, fields: object): string => wire.event(type, { type, ...fields })

const isCall = ({ prompt: { scripted } }: wire.Answer): boolean => scripted !== undefined && scripted.calls.length > 0

const stopReason = (answer: wire.Answer) => answer.isCut ? "max_tokens" : isCall(answer) ? "tool_use" : "end_turn"

const callId = (answer: wire.Answer, index: number): string => `toolu_${wire.hexId(answer.id, 20)}${index}`

/** Arguments that were cut short are no object. */
const inputOf = (json: string): unknown => {
  try {
    return JSON.parse(json)
  } catch {
    return {}
  }
}

const toolUses = (answer: wire.Answer) =>
  scripted.callsOf(answer.prompt.scripted!, answer.words).map(({ json, name }, index) => ({
    type: "tool_use",
    id: callId(answer, index),
    name,
    input: inputOf(json)
  }))

/** The pieces of streamed arguments: each call is a block of its own. */
const callDelta = (answer: wire.Answer, piece: string, at: number): string => {
  const { calls } = answer.prompt.scripted!
  const index = calls.findLastIndex(({ from }) => from <= at)
  const { from, name } = calls[index]!
  const delta = event("content_block_delta", { index, delta: { type: "input_json_delta", partial_json: piece } })
  if (from !== at) return delta
  return (index === 0 ? "" : event("content_block_stop", { index: index - 1 }))
    + event("content_block_start", {
      index,
      content_block: { type: "tool_use", id: callId(answer, index), name, input: {} }
    })
    + delta
}

const lastBlock = ({ prompt: { scripted }, words }: wire.Answer): number =>
  Math.max(0, (scripted?.calls.filter(({ from }) => from < words.length).length ?? 0) - 1)

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

export const format: wire.Format = {
  parse: (body) => Result.match(decode(body), { onSuccess: toPrompt, onFailure: (error) => error.message }),
  whole: (answer) =>
    message(answer, {
      content: isCall(answer) ? toolUses(answer) : [{ type: "text", text: answer.text }],
      stop_reason: stopReason(answer),
      usage: usage(answer, answer.words.length)
    }),
  head: (answer) =>
    event("message_start", { message: message(answer, { usage: usage(answer, 1) }) })
    + (isCall(answer) ? "" : event("content_block_start", { index: 0, content_block: { type: "text", text: "" } }))
    + event("ping", {}),
  token: (answer, text, index) =>
    isCall(answer)
      ? callDelta(answer, text, index)
      : event("content_block_delta", { index: 0, delta: { type: "text_delta", text } }),
  tail: (answer) =>
    event("content_block_stop", { index: lastBlock(answer) })
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
