/**
 * Bedrock's converse in its simplest shape, whole and as a stream of events, and its exceptions: no rate-limit headers
 * and no hint when to retry.
 */
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { contentType, frame } from "./eventstream.ts"
import { usual } from "./faults.ts"
import { TokenCount } from "./openai.ts"
import * as wire from "./wire.ts"

const Texts = Schema.Array(Schema.Struct({ text: Schema.optional(Schema.String) }))

const Request = Schema.Struct({
  messages: Schema.NonEmptyArray(Schema.Struct({ role: Schema.Literals(["user", "assistant"]), content: Texts })),
  system: Schema.optional(Texts),
  inferenceConfig: Schema.optional(Schema.Struct({ maxTokens: Schema.optional(TokenCount) }))
})

const decode = Schema.decodeUnknownResult(Request)

const textOf = (texts: typeof Texts.Type): string => texts.map((part) => part.text ?? "").join("")

const parse = (isStream: boolean) => (body: unknown, model = ""): wire.Prompt | string =>
  Result.match(decode(body), {
    onSuccess: ({ inferenceConfig, messages, system = [] }) => ({
      model,
      text: textOf(system) + messages.map(({ content }) => textOf(content)).join(""),
      messages: messages.length,
      maxOutput: inferenceConfig?.maxTokens,
      n: 1,
      stream: isStream,
      includeUsage: true
    }),
    onFailure: (error) => error.message
  })

const stopReason = ({ isCut }: wire.Answer) => isCut ? "max_tokens" : "end_turn"

const metadata = (answer: wire.Answer) => ({
  usage: {
    inputTokens: answer.input,
    outputTokens: answer.words.length,
    totalTokens: answer.input + answer.words.length,
    ...(answer.cached > 0 ? { cacheReadInputTokens: answer.cached } : {})
  },
  metrics: { latencyMs: 0 }
})

const event = (type: string, payload: object): string =>
  frame({ ":event-type": type, ":content-type": "application/json", ":message-type": "event" }, payload)

const exceptions: Readonly<Record<number, string>> = {
  400: "ValidationException",
  403: "AccessDeniedException",
  404: "ResourceNotFoundException",
  408: "ModelTimeoutException",
  429: "ThrottlingException",
  500: "InternalServerException",
  503: "ServiceUnavailableException",
  529: "ServiceUnavailableException"
}

const exceptionOf = (status: number): string => exceptions[status] ?? "InternalServerException"

export const whole: wire.Format = {
  parse: parse(false),
  whole: (answer) => ({
    output: { message: { role: "assistant", content: [{ text: answer.text }] } },
    stopReason: stopReason(answer),
    ...metadata(answer)
  }),
  head: () => event("messageStart", { role: "assistant" }),
  token: (_, text) => event("contentBlockDelta", { contentBlockIndex: 0, delta: { text } }),
  tail: (answer) =>
    event("contentBlockStop", { contentBlockIndex: 0 })
    + event("messageStop", { stopReason: stopReason(answer) })
    + event("metadata", metadata(answer)),
  // The names of exceptions begin small there.
  failure: (_, { message, status }) =>
    frame({
      ":exception-type": exceptionOf(status).replace(/^./, (first) => first.toLowerCase()),
      ":content-type": "application/json",
      ":message-type": "exception"
    }, { message }),
  streamType: contentType
}

export const stream: wire.Format = { ...whole, parse: parse(true) }

const throttled = (counted: string): wire.WireError => ({
  ...usual["429"],
  type: "ThrottlingException",
  code: null,
  message: `Too many ${counted}, please wait before trying again.`
})

const identity = ({ id }: wire.Situation): Record<string, string> => ({
  "x-amzn-requestid": wire.uuid(id)
})

const reply = (situation: wire.Situation, { message, status }: wire.WireError): wire.Reply => ({
  status,
  headers: { ...wire.json, ...identity(situation), "x-amzn-errortype": exceptionOf(status) },
  body: JSON.stringify({ message })
})

export const dialect: wire.Dialect = {
  headers: identity,
  refusal: (situation, refusal) => {
    const counted = wire.counted(refusal)
    const error = throttled(wire.isDay(refusal) ? `${counted} per day` : counted)
    return { error: { ...error, isRetryable: !refusal.tooLarge }, ...reply(situation, error) }
  },
  error: reply,
  errors: {
    "429": throttled("requests"),
    slow_down: throttled("tokens"),
    daily_quota: { ...throttled("tokens per day"), isRetryable: false }
  }
}
