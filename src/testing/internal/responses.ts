/** The wire format of OpenAI's responses, whole and as events. */
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { TokenCount, withModel } from "./openai.ts"
import * as wire from "./wire.ts"

const Item = Schema.Struct({
  content: Schema.optional(Schema.Union([
    Schema.String,
    Schema.Array(Schema.Struct({ text: Schema.optional(Schema.String) }))
  ]))
})

const Request = Schema.Struct({
  model: Schema.String,
  input: Schema.Union([Schema.String, Schema.Array(Item)]),
  instructions: Schema.optional(Schema.NullOr(Schema.String)),
  max_output_tokens: Schema.optional(Schema.NullOr(TokenCount)),
  stream: Schema.optional(Schema.NullOr(Schema.Boolean))
})

const decode = Schema.decodeUnknownResult(Request)

const toPrompt = ({ input, instructions, max_output_tokens, model, stream }: typeof Request.Type): wire.Prompt => {
  const items = typeof input === "string" ?
    [input] :
    input.map(({ content = [] }) =>
      typeof content === "string" ? content : content.map((part) => part.text ?? "").join("")
    )
  const texts = instructions ? [instructions, ...items] : items
  return {
    model,
    text: texts.join(""),
    messages: texts.length,
    maxOutput: max_output_tokens ?? undefined,
    n: 1,
    stream: stream === true,
    includeUsage: true
  }
}

const responseId = ({ id }: Pick<wire.Answer, "id">): string => `resp_${wire.hexId(id, 32)}`
const messageId = ({ id }: wire.Answer): string => `msg_${wire.hexId(id, 32)}`

const part = (text: string) => ({ type: "output_text", text, annotations: [], logprobs: [] })

const message = (answer: wire.Answer, isDone: boolean) => ({
  id: messageId(answer),
  type: "message",
  status: isDone ? (answer.isCut ? "incomplete" : "completed") : "in_progress",
  role: "assistant",
  content: isDone ? [part(answer.text)] : []
})

const response = (answer: Pick<wire.Answer, "id" | "model" | "created">, fields: object) => ({
  id: responseId(answer),
  object: "response",
  created_at: answer.created,
  status: "in_progress",
  error: null,
  incomplete_details: null,
  instructions: null,
  metadata: {},
  model: answer.model,
  output: [],
  parallel_tool_calls: true,
  temperature: 1,
  tool_choice: "auto",
  tools: [],
  top_p: 1,
  usage: null,
  ...fields
})

const done = (answer: wire.Answer) =>
  response(answer, {
    status: answer.isCut ? "incomplete" : "completed",
    incomplete_details: answer.isCut ? { reason: "max_output_tokens" } : null,
    output: [message(answer, true)],
    usage: {
      input_tokens: answer.input,
      input_tokens_details: { cached_tokens: answer.cached },
      output_tokens: answer.words.length,
      output_tokens_details: { reasoning_tokens: 0 },
      total_tokens: answer.input + answer.words.length
    }
  })

const event = (type: string, sequence: number, fields: object): string =>
  wire.event(type, { type, sequence_number: sequence, ...fields })

const place = (answer: wire.Answer) => ({ item_id: messageId(answer), output_index: 0, content_index: 0 })

export const format: wire.Format = {
  parse: (body, modelInPath) =>
    Result.match(decode(withModel(body, modelInPath)), { onSuccess: toPrompt, onFailure: (error) => error.message }),
  whole: done,
  head: (answer) =>
    event("response.created", 0, { response: response(answer, {}) })
    + event("response.in_progress", 1, { response: response(answer, {}) })
    + event("response.output_item.added", 2, { output_index: 0, item: message(answer, false) })
    + event("response.content_part.added", 3, { ...place(answer), part: part("") }),
  token: (answer, delta, index) =>
    event("response.output_text.delta", 4 + index, { ...place(answer), delta, logprobs: [] }),
  tail: (answer) => {
    const next = 4 + answer.words.length
    return event("response.output_text.done", next, { ...place(answer), text: answer.text, logprobs: [] })
      + event("response.content_part.done", next + 1, { ...place(answer), part: part(answer.text) })
      + event("response.output_item.done", next + 2, { output_index: 0, item: message(answer, true) })
      + event(answer.isCut ? "response.incomplete" : "response.completed", next + 3, { response: done(answer) })
  },
  failure: (answer, error) =>
    event("response.failed", 0, {
      response: response(answer, {
        status: "failed",
        error: { code: error.code ?? error.type, message: error.message }
      })
    })
}
