/**
 * A provider of `effect/ai` for OpenAI's chat completions and embeddings, as far as the tests need it: what the packages
 * for real providers do, on Effect's HTTP client.
 */
import { Effect, Layer, Stream } from "effect"
import { EmbeddingModel, LanguageModel, Model, type Prompt, Response, Tool } from "effect/ai"
import { Sse } from "effect/encoding"
import { HttpBody, HttpClient, HttpClientRequest, type HttpClientResponse } from "effect/http"
import * as http from "./http.ts"

export interface Options {
  readonly url: string
  readonly model: string
  readonly maxTokens?: number
  readonly transformClient?: (client: HttpClient.HttpClient) => HttpClient.HttpClient
}

interface Call {
  readonly index?: number
  readonly id?: string
  readonly function: { readonly name?: string; readonly arguments: string }
}

interface Usage {
  readonly prompt_tokens: number
  readonly completion_tokens: number
  readonly prompt_tokens_details?: { readonly cached_tokens: number }
}

interface Chat {
  readonly id: string
  readonly model: string
  readonly choices: ReadonlyArray<{
    readonly message?: { readonly content: string | null; readonly tool_calls?: ReadonlyArray<Call> }
    readonly delta?: { readonly content?: string | null; readonly tool_calls?: ReadonlyArray<Call> }
    readonly finish_reason: string | null
  }>
  readonly usage?: Usage | null
}

const textOf = (content: ReadonlyArray<{ readonly type: string; readonly text?: string }>) =>
  content.map((part) => part.text ?? "").join("")

const toMessages = (message: Prompt.Message): ReadonlyArray<object> => {
  switch (message.role) {
    case "system":
      return [{ role: "system", content: message.content }]
    case "user":
      return [{
        role: "user",
        content: message.content.map((part) =>
          part.type === "text"
            ? { type: "text", text: part.text }
            : { type: "image_url", image_url: { url: "data:image/png;base64,AAAA" } }
        )
      }]
    case "assistant": {
      const calls = message.content.filter((part) => part.type === "tool-call")
      return [{
        role: "assistant",
        content: textOf(message.content.filter((part) => part.type === "text")),
        ...(calls.length === 0 ? {} : {
          tool_calls: calls.map(({ id, name, params }) => ({
            id,
            type: "function",
            function: { name, arguments: JSON.stringify(params) }
          }))
        })
      }]
    }
    case "tool":
      return message.content.flatMap((part) =>
        part.type === "tool-result"
          ? [{ role: "tool", tool_call_id: part.id, content: JSON.stringify(part.result) }]
          : []
      )
  }
}

const usageOf = ({ completion_tokens, prompt_tokens, prompt_tokens_details }: Usage): Response.Usage =>
  new Response.Usage({
    inputTokens: {
      total: prompt_tokens,
      uncached: prompt_tokens - (prompt_tokens_details?.cached_tokens ?? 0),
      cacheRead: prompt_tokens_details?.cached_tokens,
      cacheWrite: undefined
    },
    outputTokens: { total: completion_tokens, text: completion_tokens, reasoning: undefined }
  })

const reasons: Record<string, Response.FinishReason> = { stop: "stop", length: "length", tool_calls: "tool-calls" }

const finish = (reason: string | null, usage: Usage): Response.FinishPartEncoded => ({
  type: "finish",
  reason: reasons[reason ?? ""] ?? "other",
  usage: usageOf(usage),
  response: undefined
})

const bodyOf = (
  { maxTokens, model }: Options,
  { prompt, responseFormat, toolChoice, tools }: LanguageModel.ProviderOptions
) => ({
  model,
  messages: prompt.content.flatMap(toMessages),
  ...(maxTokens === undefined ? {} : { max_tokens: maxTokens }),
  ...(tools.length === 0 ? {} : {
    tools: tools.map((tool) => ({
      type: "function",
      function: { name: tool.name, description: Tool.getDescription(tool), parameters: Tool.getJsonSchema(tool) }
    })),
    tool_choice: typeof toolChoice !== "object"
      ? toolChoice
      : "tool" in toolChoice
      ? { type: "function", function: { name: toolChoice.tool } }
      : toolChoice.mode ?? "auto"
  }),
  ...(responseFormat.type === "text" ? {} : {
    response_format: {
      type: "json_schema",
      json_schema: { name: responseFormat.objectName, schema: Tool.getJsonSchemaFromSchema(responseFormat.schema) }
    }
  })
})

const clientOf = ({ transformClient = (client) => client, url }: Options) =>
  Effect.map(
    HttpClient.HttpClient,
    (client) => transformClient(HttpClient.mapRequest(client, HttpClientRequest.prependUrl(`${url}/v1`)))
  )

const make = (options: Options) =>
  Effect.gen(function*() {
    const client = yield* clientOf(options)
    const send = (method: string, path: string, body: object) =>
      http.send(client, method, path, HttpBody.jsonUnsafe(body))
    const language = yield* LanguageModel.make({
      generateText: (asked) =>
        Effect.gen(function*() {
          const response = yield* send("generateText", "/chat/completions", bodyOf(options, asked))
          const { choices: [choice], usage } = yield* http.json<Chat>("generateText", response)
          const { content, tool_calls = [] } = choice!.message!
          return [
            ...(content === null ? [] : [{ type: "text", text: content } as const]),
            ...tool_calls.map((call) => ({
              type: "tool-call" as const,
              id: call.id!,
              name: call.function.name!,
              params: JSON.parse(call.function.arguments)
            })),
            finish(choice!.finish_reason, usage!)
          ]
        }),
      streamText: (asked) =>
        Stream.unwrap(
          Effect.map(
            send("streamText", "/chat/completions", {
              ...bodyOf(options, asked),
              stream: true,
              stream_options: { include_usage: true }
            }),
            streamOf
          )
        )
    })
    const embedding = yield* EmbeddingModel.make({
      embedMany: ({ inputs }) =>
        Effect.gen(function*() {
          const response = yield* send("embedMany", "/embeddings", { model: options.model, input: inputs })
          const { data, usage } = yield* http.json<{
            readonly data: ReadonlyArray<{ readonly embedding: Array<number> }>
            readonly usage: { readonly prompt_tokens: number }
          }>("embedMany", response)
          return { results: data.map(({ embedding }) => embedding), usage: { inputTokens: usage.prompt_tokens } }
        })
    })
    return { language, embedding }
  })

const streamOf = (response: HttpClientResponse.HttpClientResponse) => {
  let isOpen = false
  let reason: string | null = null
  const calls: Array<{ id: string; name: string; json: string }> = []
  const partsOf = (event: Chat | { readonly error: unknown }): ReadonlyArray<Response.StreamPartEncoded> => {
    if ("error" in event) return [{ type: "error", error: event.error }]
    const { choices, usage } = event
    const parts: Array<Response.StreamPartEncoded> = []
    for (const { delta, finish_reason } of choices) {
      if (delta?.content) {
        if (!isOpen) parts.push({ type: "text-start", id: "0" })
        isOpen = true
        parts.push({ type: "text-delta", id: "0", delta: delta.content })
      }
      for (const call of delta?.tool_calls ?? []) {
        const known = calls[call.index!]
        if (known !== undefined) known.json += call.function.arguments
        else calls[call.index!] = { id: call.id!, name: call.function.name!, json: call.function.arguments }
      }
      reason = finish_reason ?? reason
    }
    if (!usage) return parts
    if (isOpen) parts.push({ type: "text-end", id: "0" })
    for (const { id, json, name } of calls) parts.push({ type: "tool-call", id, name, params: JSON.parse(json) })
    return [...parts, finish(reason, usage)]
  }
  return response.stream.pipe(
    Stream.decodeText,
    Stream.pipeThroughChannel(Sse.decode()),
    Stream.mapError((error) => http.failure("streamText", error)),
    Stream.filter(({ data }) => data !== "[DONE]"),
    Stream.mapEffect(({ data }) =>
      http.read("streamText", () => partsOf(JSON.parse(data) as Chat | { readonly error: unknown }))
    ),
    Stream.flattenIterable
  )
}

/** The model, as the packages of providers give it. */
export const layer = (options: Options) =>
  Model.make(
    "openai",
    options.model,
    Layer.effect(LanguageModel.LanguageModel, Effect.map(make(options), ({ language }) => language))
  )

export const layerEmbedding = (options: Options) =>
  Model.make(
    "openai",
    options.model,
    Layer.effect(EmbeddingModel.EmbeddingModel, Effect.map(make(options), ({ embedding }) => embedding))
  )
