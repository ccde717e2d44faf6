/**
 * The wire format of OpenAI: chat completions, and the headers and error bodies that go with every OpenAI request.
 * Pure functions only.
 */
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import type { Quota, Refusal } from "./ledger.ts"
import type { Limit } from "./limits.ts"
import * as scripted from "./scripted.ts"
import * as wire from "./wire.ts"

/** Keeps a careless `max_tokens` from asking for an answer that does not fit in memory. */
export const maxOutputTokens = 131_072

/** The same for `n`. */
const maxAnswers = 128

export const TokenCount = Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: maxOutputTokens }))
const ContentPart = Schema.Struct({ type: Schema.String, text: Schema.optional(Schema.String) })

export const ChatRequest = Schema.Struct({
  model: Schema.String,
  messages: Schema.NonEmptyArray(Schema.Struct({
    role: Schema.Literals(["developer", "system", "user", "assistant", "tool", "function"]),
    content: Schema.optional(Schema.NullOr(Schema.Union([Schema.String, Schema.Array(ContentPart)])))
  })),
  max_tokens: Schema.optional(Schema.NullOr(TokenCount)),
  max_completion_tokens: Schema.optional(Schema.NullOr(TokenCount)),
  n: Schema.optional(Schema.NullOr(Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: maxAnswers })))),
  stream: Schema.optional(Schema.NullOr(Schema.Boolean)),
  stream_options: Schema.optional(Schema.NullOr(Schema.Struct({ include_usage: Schema.optional(Schema.Boolean) }))),
  tools: Schema.optional(Schema.Array(Schema.Struct({
    function: Schema.optional(Schema.Struct({ name: Schema.String, parameters: Schema.optional(Schema.Unknown) }))
  }))),
  tool_choice: Schema.optional(Schema.Union([
    Schema.String,
    Schema.Struct({ function: Schema.optional(Schema.Struct({ name: Schema.String })) })
  ])),
  response_format: Schema.optional(Schema.Struct({
    type: Schema.String,
    json_schema: Schema.optional(Schema.Struct({ schema: Schema.optional(Schema.Unknown) }))
  }))
})

export type ChatRequest = typeof ChatRequest.Type

export const decode = Schema.decodeUnknownEffect(ChatRequest)
const decodeResult = Schema.decodeUnknownResult(ChatRequest)

const textOf = ({ content }: ChatRequest["messages"][number]): string =>
  typeof content === "string" ? content : (content ?? []).map((part) => part.text ?? "").join("")

export const promptText = (request: ChatRequest): string => request.messages.map(textOf).join("")

const scriptOf = (
  { messages, response_format, tool_choice, tools = [] }: ChatRequest
): scripted.Scripted | undefined => {
  const last = messages.at(-1)!
  const forced = typeof tool_choice === "object" ? tool_choice.function?.name : undefined
  const called = tool_choice === "none" ? undefined : scripted.calls(
    tools.flatMap(({ function: tool }) => tool === undefined ? [] : [{ name: tool.name, schema: tool.parameters }]),
    forced,
    last.role === "user" ? textOf(last) : undefined
  )
  return called ?? (response_format?.json_schema === undefined
    ? undefined
    : scripted.text(scripted.sample(response_format.json_schema.schema)))
}

export const toPrompt = (request: ChatRequest): wire.Prompt => ({
  model: request.model,
  text: promptText(request),
  messages: request.messages.length,
  maxOutput: request.max_completion_tokens ?? request.max_tokens ?? undefined,
  n: request.n ?? 1,
  stream: request.stream === true,
  includeUsage: request.stream_options?.include_usage === true,
  scripted: scriptOf(request)
})

export const { goDuration } = wire

const usage = ({ cached, input, words }: wire.Answer) => ({
  prompt_tokens: input,
  completion_tokens: words.length,
  total_tokens: input + words.length,
  ...(cached > 0 ? { prompt_tokens_details: { cached_tokens: cached } } : {})
})

const isCall = ({ prompt: { scripted } }: wire.Answer): boolean => scripted !== undefined && scripted.calls.length > 0

const finishReason = (answer: wire.Answer) => answer.isCut ? "length" : isCall(answer) ? "tool_calls" : "stop"

const callId = (answer: wire.Answer, index: number): string => `call_${wire.hexId(answer.id, 20)}${index}`

const toolCalls = (answer: wire.Answer) =>
  scripted.callsOf(answer.prompt.scripted!, answer.words).map(({ json, name }, index) => ({
    id: callId(answer, index),
    type: "function",
    function: { name, arguments: json }
  }))

/** The pieces of streamed arguments, which may be of several calls: the first of each tells its name. */
const callDelta = (answer: wire.Answer, piece: string, at: number): string => {
  const { calls } = answer.prompt.scripted!
  const index = calls.findLastIndex(({ from }) => from <= at)
  const { from, name } = calls[index]!
  const call = from === at
    ? { index, id: callId(answer, index), type: "function", function: { name, arguments: piece } }
    : { index, function: { arguments: piece } }
  return choice(answer, 0, { tool_calls: [call] }, null)
}

/** The answers of a request for `n` of them share the words in equal parts, one after the other. */
const answers = ({ prompt: { n }, words }: wire.Answer): ReadonlyArray<string> =>
  Array.from(
    { length: n },
    (_, index) => words.slice(Math.floor(index * words.length / n), Math.floor((index + 1) * words.length / n)).join("")
  )

/** Whose word it is. */
const answerAt = ({ prompt: { n }, words }: wire.Answer, word: number): number =>
  Math.floor(((word + 1) * n - 1) / words.length)

const chunk = (answer: wire.Answer, fields: object): string =>
  wire.data({
    id: `chatcmpl-${answer.id}`,
    object: "chat.completion.chunk",
    created: answer.created,
    model: answer.model,
    ...(answer.includeUsage ? { usage: null } : {}),
    ...fields
  })

const choice = (answer: wire.Answer, index: number, delta: object, finishReason: string | null): string =>
  chunk(answer, { choices: [{ index, delta, logprobs: null, finish_reason: finishReason }] })

const each = (answer: wire.Answer, delta: object, finishReason: string | null): string =>
  answers(answer).map((_, index) => choice(answer, index, delta, finishReason)).join("")

export const chat: wire.Format = {
  parse: (body, modelInPath) =>
    Result.match(decodeResult(withModel(body, modelInPath)), {
      onSuccess: toPrompt,
      onFailure: (error) => error.message
    }),
  whole: (answer) => ({
    id: `chatcmpl-${answer.id}`,
    object: "chat.completion",
    created: answer.created,
    model: answer.model,
    choices: answers(answer).map((content, index) => ({
      index,
      message: isCall(answer)
        ? { role: "assistant", content: null, refusal: null, tool_calls: toolCalls(answer) }
        : { role: "assistant", content, refusal: null },
      logprobs: null,
      finish_reason: finishReason(answer)
    })),
    usage: usage(answer)
  }),
  head: (answer) => each(answer, { role: "assistant", content: isCall(answer) ? null : "", refusal: null }, null),
  token: (answer, content, word) =>
    isCall(answer)
      ? callDelta(answer, content, word)
      : choice(answer, answerAt(answer, word), { content }, null),
  tail: (answer) =>
    each(answer, {}, finishReason(answer))
    + (answer.includeUsage ? chunk(answer, { choices: [], usage: usage(answer) }) : "")
    + "data: [DONE]\n\n",
  failure: (_, error) => wire.data(errorBody(error))
}

/** Where the path names the model, as it does in a deployment of Azure, the body need not. */
export const withModel = (body: unknown, model: string | undefined): unknown =>
  model !== undefined && typeof body === "object" && body !== null ? { ...body, model } : body

export const errorBody = (error: Pick<wire.WireError, "message" | "type" | "code">) => ({
  error: { message: error.message, type: error.type, param: null, code: error.code }
})

/** The requests limit and the first tokens limits of organization and project, as they stand after this request. */
export const rateLimitHeaders = (
  situation: Pick<wire.Situation, "quotas" | "requestsHeader">
): Record<string, string> => {
  const headers: Record<string, string> = {}
  const tell = (name: string, quota: Quota | undefined): void => {
    if (quota === undefined) return
    headers[`x-ratelimit-limit-${name}`] = wire.whole(quota.limit)
    headers[`x-ratelimit-remaining-${name}`] = wire.remaining(quota)
    headers[`x-ratelimit-reset-${name}`] = goDuration(quota.reset)
  }
  tell("requests", wire.quotaOf(situation, "requests"))
  tell("tokens", wire.quotaOf(situation, "tokens"))
  tell("project-tokens", situation.quotas.find(({ dimension, scope }) => dimension === "tokens" && scope === "project"))
  return headers
}

export const refusalHeaders = ({ retryAfter, tooLarge }: Refusal): Record<string, string> => ({
  ...(retryAfter === undefined ? {} : {
    "retry-after": String(wire.seconds(retryAfter)),
    "retry-after-ms": String(Math.ceil(retryAfter - 1e-6))
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
  const on = `${model} in organization org-simulator on ${limitName(refusal)}: Limit ${wire.whole(limit)}`
  const visit = "Visit https://platform.openai.com/account/rate-limits to learn more."
  return tooLarge
    ? `Request too large for ${on}, Requested ${wire.whole(requested)}. `
      + `The input or output tokens must be reduced in order to run successfully. ${visit}`
    : `Rate limit reached for ${on}, Used ${wire.whole(used)}, Requested ${wire.whole(requested)}. `
      + `${retryAfter === undefined ? "" : `Please try again in ${goDuration(retryAfter)}. `}${visit}`
}

const identity = ({ id, processing }: wire.Situation): Record<string, string> => ({
  "x-request-id": `req_${wire.hexId(id, 32)}`,
  "openai-organization": "org-simulator",
  "openai-processing-ms": String(Math.round(processing)),
  "openai-version": "2020-10-01"
})

export const dialect: wire.Dialect = {
  headers: (situation) => ({ ...identity(situation), ...rateLimitHeaders(situation) }),
  refusal: (situation, refusal) => {
    const error = {
      status: 429,
      type: wire.counted(refusal),
      code: "rate_limit_exceeded",
      message: refusalMessage(situation.model, refusal),
      isRetryable: !refusal.tooLarge
    }
    return {
      error,
      status: 429,
      headers: {
        ...wire.json,
        ...identity(situation),
        ...rateLimitHeaders(situation),
        ...refusalHeaders(refusal)
      },
      body: JSON.stringify(errorBody(error))
    }
  },
  error: (situation, error) => ({
    status: error.status,
    headers: { ...wire.json, ...identity(situation) },
    body: JSON.stringify(errorBody(error))
  })
}
