import Anthropic, * as AnthropicErrors from "@anthropic-ai/sdk"
import { NodeHttpServer } from "@effect/platform-node"
import { assert, describe, it } from "@effect/vitest"
import { Cause, Effect, Exit, Layer } from "effect"
import { FetchHttpClient, HttpRouter } from "effect/http"
import { createServer } from "node:http"
import OpenAI, * as OpenAIErrors from "openai"
import { ProviderSimulator } from "../../src/testing/index.ts"
import { port } from "../port.ts"

/** The server on a free port of 127.0.0.1, under the clock of the test, which stands still. */
const serve = (models: ProviderSimulator.Options["models"]) =>
  HttpRouter.serve(ProviderSimulator.layerHttp, { disableLogger: true, disableListenLog: true }).pipe(
    Layer.provideMerge(NodeHttpServer.layer(createServer, { host: "127.0.0.1", port: 0 })),
    Layer.provideMerge(FetchHttpClient.layer),
    Layer.provideMerge(ProviderSimulator.layer({ models }))
  )

const baseUrl = Effect.map(port, (port) => `http://127.0.0.1:${port}`)

const openai = Effect.map(baseUrl, (url) => new OpenAI({ baseURL: `${url}/v1`, apiKey: "any", maxRetries: 0 }))
const anthropic = Effect.map(baseUrl, (baseURL) => new Anthropic({ baseURL, apiKey: "any", maxRetries: 0 }))

/** What a promise of the SDK was rejected with. */
const rejection = (run: () => Promise<unknown>) =>
  Effect.map(Effect.exit(Effect.promise(run)), (exit) => {
    assert(Exit.isFailure(exit))
    return Cause.squash(exit.cause)
  })

const limited = [{ dimension: "requests", limit: 3, algorithm: "bucket" }, {
  dimension: "tokens",
  limit: 1000,
  algorithm: "bucket"
}] as const

describe("the server", () => {
  it.effect("sends the headers of an answer that never comes", () =>
    Effect.gen(function*() {
      const url = yield* baseUrl
      for (const stream of [false, true]) {
        const response = yield* Effect.promise((signal) =>
          fetch(`${url}/v1/chat/completions`, {
            method: "POST",
            headers: { "content-type": "application/json", "x-sim-fault": "silence" },
            body: JSON.stringify({
              model: "gpt",
              messages: [{ role: "user", content: "Hello" }],
              max_tokens: 5,
              stream
            }),
            signal
          })
        )
        assert.strictEqual(response.status, 200)
        assert.isDefined(response.headers.get("x-request-id"))
        yield* Effect.promise(() => response.body!.cancel())
      }
    }).pipe(Effect.provide(serve({ gpt: limited }))))
})

describe("the official SDKs against the simulator", () => {
  it.effect("openai: chat completions, whole and streamed, with usage", () =>
    Effect.gen(function*() {
      const client = yield* openai
      const body = {
        model: "gpt",
        messages: [{ role: "user" as const, content: "Hello there" }],
        max_completion_tokens: 20
      }
      const whole = yield* Effect.promise(() => client.chat.completions.create(body))
      assert.strictEqual(whole.object, "chat.completion")
      assert.strictEqual(whole.usage?.prompt_tokens, 6)
      const { text, usage } = yield* Effect.promise(async () => {
        const stream = await client.chat.completions.create({
          ...body,
          stream: true,
          stream_options: { include_usage: true }
        })
        let text = ""
        let usage: OpenAI.CompletionUsage | null | undefined
        for await (const chunk of stream) {
          text += chunk.choices[0]?.delta.content ?? ""
          usage = chunk.usage ?? usage
        }
        return { text, usage }
      })
      assert.strictEqual(text, whole.choices[0]?.message.content)
      assert.deepStrictEqual(usage, whole.usage)
      const { models: [report] } = yield* ProviderSimulator.ProviderSimulator.use((provider) => provider.report())
      assert.deepInclude(report, { admitted: 2, completed: 2, aborted: 0 })
    }).pipe(Effect.provide(serve({ gpt: limited }))))

  it.effect("openai: responses, whole and streamed", () =>
    Effect.gen(function*() {
      const client = yield* openai
      const body = { model: "gpt", input: "Hello there", max_output_tokens: 20 }
      const whole = yield* Effect.promise(() => client.responses.create(body))
      assert.isAbove(whole.output_text.length, 1)
      assert.strictEqual(whole.usage?.input_tokens, 6)
      const events = yield* Effect.promise(async () => {
        const events: Array<OpenAI.Responses.ResponseStreamEvent> = []
        for await (const event of await client.responses.create({ ...body, stream: true })) events.push(event)
        return events
      })
      assert.strictEqual(
        events.map((event) => event.type === "response.output_text.delta" ? event.delta : "").join(""),
        whole.output_text
      )
      assert.deepStrictEqual(events.map(({ sequence_number }) => sequence_number), events.map((_, index) => index))
      const last = events.at(-1)
      assert(last?.type === "response.completed" || last?.type === "response.incomplete")
      assert.deepStrictEqual(last.response.usage, whole.usage)
      // The SDK's own accumulator accepts the events too.
      const final = yield* Effect.promise(() => client.responses.stream(body).finalResponse())
      assert.strictEqual(final.output_text, whole.output_text)
    }).pipe(Effect.provide(serve({ gpt: limited }))))

  it.effect("openai: embeddings", () =>
    Effect.gen(function*() {
      const client = yield* openai
      const { data, usage } = yield* Effect.promise(() =>
        client.embeddings.create({ model: "embed", input: ["one", "two"], dimensions: 4 })
      )
      assert.deepStrictEqual(data.map(({ embedding }) => embedding.length), [4, 4])
      for (const { embedding } of data) assert.closeTo(Math.hypot(...embedding), 1, 1e-6)
      assert.deepStrictEqual(usage, { prompt_tokens: 8, total_tokens: 8 })
    }).pipe(Effect.provide(serve({ embed: [] }))))

  it.effect("openai: a refusal is its RateLimitError, with our headers", () =>
    Effect.gen(function*() {
      const client = yield* openai
      const body = { model: "gpt", messages: [{ role: "user" as const, content: "Hello there" }] }
      for (let i = 0; i < 3; i++) yield* Effect.promise(() => client.chat.completions.create(body))
      const error = yield* rejection(() => client.chat.completions.create(body))
      assert(error instanceof OpenAIErrors.RateLimitError)
      assert.strictEqual(error.status, 429)
      assert.strictEqual(error.code, "rate_limit_exceeded")
      assert.strictEqual(error.type, "requests")
      assert.include(error.message, "requests per min (RPM): Limit 3, Used 3, Requested 1. Please try again in 20s.")
      assert.strictEqual(error.headers.get("retry-after"), "20")
      assert.strictEqual(error.headers.get("retry-after-ms"), "20000")
      assert.strictEqual(error.headers.get("x-ratelimit-remaining-requests"), "0")
      assert.strictEqual(error.headers.get("x-ratelimit-reset-requests"), "1m0s")
      assert.strictEqual(error.requestID, error.headers.get("x-request-id"))
    }).pipe(Effect.provide(serve({ gpt: limited }))))

  it.effect("openai: an Azure refusal inside a stream is a failed response", () =>
    Effect.gen(function*() {
      const client = yield* openai
      const body = { model: "gpt", input: "Hello there", max_output_tokens: 20, stream: true } as const
      yield* Effect.promise(() => client.responses.create({ ...body, stream: false }))
      const { data, response } = yield* Effect.promise(() => client.responses.create(body).withResponse())
      assert.strictEqual(response.status, 200)
      assert.strictEqual(response.headers.get("retry-after"), "60")
      const events = yield* Effect.promise(async () => {
        const events: Array<OpenAI.Responses.ResponseStreamEvent> = []
        for await (const event of data) events.push(event)
        return events
      })
      assert(events[0]?.type === "response.failed")
      assert.strictEqual(events[0].response.error?.code, "rate_limit_exceeded")
    }).pipe(Effect.provide(serve({
      gpt: {
        dialect: "azure",
        inBandRefusals: true,
        limits: [{ dimension: "requests", limit: 1 }]
      }
    }))))

  it.effect("anthropic: messages, whole and streamed", () =>
    Effect.gen(function*() {
      const client = yield* anthropic
      const body = { model: "claude", messages: [{ role: "user" as const, content: "Hello there" }], max_tokens: 20 }
      const whole = yield* Effect.promise(() => client.messages.create(body))
      assert.strictEqual(whole.usage.input_tokens, 6)
      const final = yield* Effect.promise(() => client.messages.stream(body).finalMessage())
      assert.deepStrictEqual(final.content, whole.content)
      assert.strictEqual(final.usage.output_tokens, whole.usage.output_tokens)
      assert.strictEqual(final.stop_reason, whole.stop_reason)
    }).pipe(Effect.provide(serve({ claude: { charge: "anthropic", limits: limited } }))))

  it.effect("anthropic: a refusal is its RateLimitError, with our headers; 529 is its own error", () =>
    Effect.gen(function*() {
      const client = yield* anthropic
      const body = { model: "claude", messages: [{ role: "user" as const, content: "Hello there" }], max_tokens: 20 }
      yield* Effect.promise(() => client.messages.create(body))
      const error = yield* rejection(() => client.messages.create(body))
      assert(error instanceof AnthropicErrors.RateLimitError)
      assert.strictEqual(error.headers.get("retry-after"), "60")
      assert.strictEqual(error.headers.get("anthropic-ratelimit-requests-remaining"), "0")
      assert.strictEqual(error.headers.get("anthropic-ratelimit-requests-reset"), "1970-01-01T00:01:00Z")
      assert.strictEqual(error.headers.get("x-should-retry"), "true")
      assert.include(error.message, "of 1 requests per minute")
      const overloaded = yield* rejection(() => client.messages.create(body, { headers: { "x-sim-fault": "529" } }))
      assert(overloaded instanceof AnthropicErrors.InternalServerError)
      assert.strictEqual(overloaded.status, 529)
    }).pipe(Effect.provide(serve({
      claude: { charge: "anthropic", limits: [{ dimension: "requests", limit: 1, algorithm: "bucket" }] }
    }))))

  it.effect("both: a lost connection is their connection error, before the headers and in the middle of the body", () =>
    Effect.gen(function*() {
      const gpt = yield* openai
      const claude = yield* anthropic
      const chat = { model: "m", messages: [{ role: "user" as const, content: "Hello" }], max_tokens: 20 }
      const lost = yield* rejection(() => gpt.chat.completions.create(chat, { headers: { "x-sim-fault": "reset" } }))
      assert(lost instanceof OpenAIErrors.APIConnectionError)
      const cut = yield* rejection(async () => {
        const stream = await claude.messages.create({ ...chat, stream: true }, {
          headers: { "x-sim-fault": "reset_mid_body" }
        })
        for await (const _ of stream) { /* until it breaks */ }
      })
      assert.instanceOf(cut, Error)
      const late = yield* rejection(async () => {
        const stream = await claude.messages.create({ ...chat, stream: true }, {
          headers: { "x-sim-fault": "stream_error_late" }
        })
        for await (const _ of stream) { /* until the error event */ }
      })
      assert(late instanceof AnthropicErrors.APIError)
      assert.include(late.message, "overloaded_error")
    }).pipe(Effect.provide(serve({ m: [] }))))

  it.effect("calls the tools that the user asks for, whole and in pieces, as both SDKs read it", () =>
    Effect.gen(function*() {
      const prompt = "Please call weather {\"city\":\"Bern\",\"days\":[1,2]} and call now {}, but not call other {}."
      const schema = { type: "object" as const, properties: {} }
      const names = ["weather", "now"]
      const expected = [["weather", { city: "Bern", days: [1, 2] }], ["now", {}]]
      const gpt = yield* openai
      const request = {
        model: "gpt",
        messages: [{ role: "user" as const, content: prompt }],
        tools: names.map((name) => ({ type: "function" as const, function: { name, parameters: schema } })),
        max_tokens: 100
      }
      const whole = yield* Effect.promise(() => gpt.chat.completions.create(request))
      const { finish_reason, message } = whole.choices[0]!
      assert.strictEqual(finish_reason, "tool_calls")
      assert.isNull(message.content)
      const parsed = (calls: ReadonlyArray<OpenAI.ChatCompletionMessageToolCall>) =>
        calls.map((call) => {
          assert(call.type === "function")
          return [call.function.name, JSON.parse(call.function.arguments)]
        })
      assert.deepStrictEqual(parsed(message.tool_calls!), expected)
      // 26 and 2 characters.
      assert.strictEqual(whole.usage!.completion_tokens, 8)
      const streamed = yield* Effect.promise(() => gpt.chat.completions.stream(request).finalChatCompletion())
      assert.deepStrictEqual(parsed(streamed.choices[0]!.message.tool_calls!), expected)
      const answered = yield* Effect.promise(() =>
        gpt.chat.completions.create({
          ...request,
          messages: [
            ...request.messages,
            message,
            ...message.tool_calls!.map(({ id }) => ({ role: "tool" as const, tool_call_id: id, content: "sunny" }))
          ]
        })
      )
      assert.strictEqual(answered.choices[0]!.message.tool_calls, undefined)

      const claude = yield* anthropic
      const question = {
        model: "claude",
        messages: [{ role: "user" as const, content: prompt }],
        tools: names.map((name) => ({ name, input_schema: schema })),
        max_tokens: 100
      }
      const used = (content: ReadonlyArray<Anthropic.ContentBlock>) =>
        content.map((block) => block.type === "tool_use" ? [block.name, block.input] : block.type)
      const reply = yield* Effect.promise(() => claude.messages.create(question))
      assert.strictEqual(reply.stop_reason, "tool_use")
      assert.deepStrictEqual(used(reply.content), expected)
      const pieces = yield* Effect.promise(() => claude.messages.stream(question).finalMessage())
      assert.strictEqual(pieces.stop_reason, "tool_use")
      assert.deepStrictEqual(used(pieces.content), expected)
      const after = yield* Effect.promise(() =>
        claude.messages.create({
          ...question,
          messages: [...question.messages, { role: "assistant", content: reply.content }, {
            role: "user",
            content: reply.content.flatMap((block) =>
              block.type === "tool_use"
                ? [{ type: "tool_result", tool_use_id: block.id, content: "sunny" } as const]
                : []
            )
          }]
        })
      )
      assert.deepStrictEqual(used(after.content), ["text"])
      const cut = yield* Effect.promise(() => claude.messages.create({ ...question, max_tokens: 2 }))
      assert.strictEqual(cut.stop_reason, "max_tokens")
    }).pipe(Effect.provide(serve({ gpt: { limits: [], tokensPerEvent: 3 }, claude: [] }))))

  it.effect("answers with a value of the schema that is asked for, or with a call of the tool that is forced", () =>
    Effect.gen(function*() {
      const schema = {
        type: "object" as const,
        properties: {
          name: { type: "string" },
          kind: { enum: ["a", "b"] },
          parts: { type: "array", items: { $ref: "#/$defs/part" } },
          isDone: { type: ["boolean", "null"] }
        },
        $defs: { part: { type: "object", properties: { size: { type: "number", minimum: 3 } } } }
      }
      const value = { name: "text", kind: "a", parts: [{ size: 3 }], isDone: true }
      const gpt = yield* openai
      const { choices: [choice] } = yield* Effect.promise(() =>
        gpt.chat.completions.create({
          model: "gpt",
          messages: [{ role: "user", content: "Hello" }],
          response_format: { type: "json_schema", json_schema: { name: "thing", schema } },
          max_tokens: 100
        })
      )
      assert.deepStrictEqual(JSON.parse(choice!.message.content!), value)
      assert.strictEqual(choice!.finish_reason, "stop")
      const claude = yield* anthropic
      const { content: [block] } = yield* Effect.promise(() =>
        claude.messages.create({
          model: "claude",
          messages: [{ role: "user", content: "Hello" }],
          tools: [{ name: "thing", input_schema: schema }],
          tool_choice: { type: "tool", name: "thing" },
          max_tokens: 100
        })
      )
      assert(block?.type === "tool_use")
      assert.deepStrictEqual(block.input, value)
    }).pipe(Effect.provide(serve({ gpt: [], claude: [] }))))
})
