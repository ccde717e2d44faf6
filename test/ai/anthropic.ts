/** A provider of `effect/ai` for Anthropic's messages, as far as the tests need it. */
import { Effect, Layer, Stream } from "effect"
import { LanguageModel, Model, type Prompt, Response, Tool } from "effect/ai"
import { Sse } from "effect/encoding"
import { HttpBody, HttpClient, HttpClientRequest, type HttpClientResponse } from "effect/http"
import * as http from "./http.ts"
import type { Options } from "./openai.ts"

interface Usage {
  readonly input_tokens?: number
  readonly cache_creation_input_tokens?: number
  readonly cache_read_input_tokens?: number
  readonly output_tokens: number
}

type Block =
  | { readonly type: "text"; readonly text: string }
  | { readonly type: "tool_use"; readonly id: string; readonly name: string; readonly input: unknown }

interface Message {
  readonly content: ReadonlyArray<Block>
  readonly stop_reason: string | null
  readonly usage: Usage
}

type Event =
  | { readonly type: "message_start"; readonly message: Message }
  | { readonly type: "content_block_start"; readonly index: number; readonly content_block: Block }
  | {
    readonly type: "content_block_delta"
    readonly index: number
    readonly delta:
      | { readonly type: "text_delta"; readonly text: string }
      | { readonly type: "input_json_delta"; readonly partial_json: string }
  }
  | { readonly type: "content_block_stop"; readonly index: number }
  | { readonly type: "message_delta"; readonly delta: { readonly stop_reason: string }; readonly usage: Usage }
  | { readonly type: "message_stop" | "ping" }
  | { readonly type: "error"; readonly error: unknown }

const blocksOf = (message: Prompt.Message): ReadonlyArray<object> => {
  switch (message.role) {
    case "system":
      return []
    case "user":
      return message.content.map((part) =>
        part.type === "text"
          ? { type: "text", text: part.text }
          : { type: "image", source: { type: "base64", media_type: "image/png", data: "AAAA" } }
      )
    case "assistant":
      return message.content.flatMap((part): ReadonlyArray<object> =>
        part.type === "text"
          ? [{ type: "text", text: part.text }]
          : part.type === "tool-call"
          ? [{ type: "tool_use", id: part.id, name: part.name, input: part.params }]
          : []
      )
    case "tool":
      return message.content.flatMap((part) =>
        part.type === "tool-result"
          ? [{ type: "tool_result", tool_use_id: part.id, content: JSON.stringify(part.result) }]
          : []
      )
  }
}

const usageOf = (usage: Usage): Response.Usage => {
  const { cache_creation_input_tokens: cacheWrite, cache_read_input_tokens: cacheRead, input_tokens, output_tokens } =
    usage
  return new Response.Usage({
    inputTokens: {
      uncached: input_tokens,
      total: (input_tokens ?? 0) + (cacheRead ?? 0) + (cacheWrite ?? 0),
      cacheRead,
      cacheWrite
    },
    outputTokens: { total: output_tokens, text: output_tokens, reasoning: undefined }
  })
}

const reasons: Record<string, Response.FinishReason> = {
  end_turn: "stop",
  max_tokens: "length",
  tool_use: "tool-calls"
}

const finish = (reason: string | null, usage: Usage): Response.FinishPartEncoded => ({
  type: "finish",
  reason: reasons[reason ?? ""] ?? "other",
  usage: usageOf(usage),
  response: undefined
})

const modeOf = (choice: LanguageModel.ToolChoice<string>) =>
  typeof choice === "string" ? choice : "mode" in choice ? choice.mode ?? "auto" : "auto"

/** An object is what a tool of its name is called with. */
const bodyOf = (
  { maxTokens, model }: Options,
  { prompt, responseFormat, toolChoice, tools }: LanguageModel.ProviderOptions
) => {
  const definitions = tools.map((tool) => ({ name: tool.name, input_schema: Tool.getJsonSchema(tool) }))
  if (responseFormat.type === "json") {
    definitions.push({
      name: responseFormat.objectName,
      input_schema: Tool.getJsonSchemaFromSchema(responseFormat.schema)
    })
  }
  const forced = responseFormat.type === "json"
    ? responseFormat.objectName
    : typeof toolChoice === "object" && "tool" in toolChoice
    ? toolChoice.tool
    : undefined
  return {
    model,
    max_tokens: maxTokens ?? 1024,
    system: prompt.content.flatMap((message) => message.role === "system" ? [message.content] : []).join("\n"),
    messages: prompt.content.filter(({ role }) => role !== "system").map((message) => ({
      role: message.role === "assistant" ? "assistant" : "user",
      content: blocksOf(message)
    })),
    ...(definitions.length === 0 ? {} : { tools: definitions }),
    ...(definitions.length === 0 ? {} : {
      tool_choice: forced === undefined
        ? { type: { auto: "auto", none: "none", required: "any" }[modeOf(toolChoice)] }
        : { type: "tool", name: forced }
    })
  }
}

const make = (options: Options) =>
  Effect.gen(function*() {
    const { transformClient = (client) => client, url } = options
    const client = transformClient(
      HttpClient.mapRequest(yield* HttpClient.HttpClient, HttpClientRequest.prependUrl(`${url}/v1`))
    )
    const send = (method: string, body: object) => http.send(client, method, "/messages", HttpBody.jsonUnsafe(body))
    return yield* LanguageModel.make({
      generateText: (asked) =>
        Effect.gen(function*() {
          const response = yield* send("generateText", bodyOf(options, asked))
          const { content, stop_reason, usage } = yield* http.json<Message>("generateText", response)
          return [
            ...content.map((block): Response.PartEncoded =>
              block.type === "text"
                ? { type: "text", text: block.text }
                : asked.responseFormat.type === "json"
                ? { type: "text", text: JSON.stringify(block.input) }
                : { type: "tool-call", id: block.id, name: block.name, params: block.input }
            ),
            finish(stop_reason, usage)
          ]
        }),
      streamText: (asked) =>
        Stream.unwrap(Effect.map(send("streamText", { ...bodyOf(options, asked), stream: true }), streamOf))
    })
  })

const streamOf = (response: HttpClientResponse.HttpClientResponse) => {
  let usage: Usage = { output_tokens: 0 }
  let call: { readonly id: string; readonly name: string; json: string } | undefined
  const partsOf = (event: Event): ReadonlyArray<Response.StreamPartEncoded> => {
    switch (event.type) {
      case "message_start":
        usage = event.message.usage
        return [{ type: "response-metadata", id: undefined, modelId: undefined, timestamp: undefined }]
      case "content_block_start":
        if (event.content_block.type === "text") return [{ type: "text-start", id: String(event.index) }]
        call = { id: event.content_block.id, name: event.content_block.name, json: "" }
        return []
      case "content_block_delta":
        if (event.delta.type === "text_delta") {
          return [{ type: "text-delta", id: String(event.index), delta: event.delta.text }]
        }
        call!.json += event.delta.partial_json
        return []
      case "content_block_stop": {
        if (call === undefined) return [{ type: "text-end", id: String(event.index) }]
        const { id, json, name } = call
        call = undefined
        return [{ type: "tool-call", id, name, params: JSON.parse(json) }]
      }
      case "message_delta":
        return [finish(event.delta.stop_reason, { ...usage, ...event.usage })]
      case "error":
        return [{ type: "error", error: event.error }]
      default:
        return []
    }
  }
  return response.stream.pipe(
    Stream.decodeText,
    Stream.pipeThroughChannel(Sse.decode()),
    Stream.mapError((error) => http.failure("streamText", error)),
    Stream.mapEffect(({ data }) => http.read("streamText", () => partsOf(JSON.parse(data) as Event))),
    Stream.flattenIterable
  )
}

/** The model, as the packages of providers give it. */
export const layer = (options: Options) =>
  Model.make("anthropic", options.model, Layer.effect(LanguageModel.LanguageModel, make(options)))
