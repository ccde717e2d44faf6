/**
 * OpenAI's own client behind a queue, with whole answers and streams, its own retries off: the queue is the only one
 * that sends again.
 *
 * Against the real API when OPENAI_API_KEY is set (and OPENAI_MODEL, if you like); else against a local simulator that
 * speaks OpenAI's protocol and counts the way OpenAI does. Put the numbers of your own tier into the limits.
 */
import { NodeHttpServer, NodeRuntime } from "@effect/platform-node"
import { Config, Console, Context, Effect, Layer, Option, Schema } from "effect"
import { ModelConfig, ProviderProfile, QueueManager, RateLimiter } from "effect-llm-queue"
import { ProviderSimulator } from "effect-llm-queue/testing"
import { HttpRouter, HttpServer } from "effect/http"
import { createServer } from "node:http"
import OpenAI from "openai"

// ---------------------------------------------------------------------------------------------------------------
// The model
// ---------------------------------------------------------------------------------------------------------------

class OpenAiError extends Schema.TaggedError<OpenAiError>()("OpenAiError", { cause: Schema.Defect() }) {}

const Gpt = ModelConfig.make("gpt-4o-mini", {
  params: Schema.Struct({ prompt: Schema.String, stream: Schema.Boolean }),
  result: Schema.Struct({ text: Schema.String, usage: ModelConfig.Usage }),
  error: OpenAiError,
  // How OpenAI counts, what its headers say, and which of its errors are worth another attempt.
  provider: ProviderProfile.openai,
  rateLimiters: [RateLimiter.rpm(500), RateLimiter.tpm(200_000), RateLimiter.rpd(10_000)],
  // OpenAI counts max_tokens on arrival: what is sent below is what is reserved.
  estimate: () => ({ maxOutputTokens: 200 }),
  usage: (result) => result.usage
})

// ---------------------------------------------------------------------------------------------------------------
// The processor: one call of the client
// ---------------------------------------------------------------------------------------------------------------

class Client extends Context.Service<Client, { readonly openai: OpenAI; readonly model: string }>()(
  "effect-llm-queue/examples/openai/Client"
) {}

// The queue finds the provider's status, headers and body in the cause by itself.
const attempt = <A>(call: (signal: AbortSignal) => PromiseLike<A>) =>
  Effect.tryPromise({ try: call, catch: (cause) => new OpenAiError({ cause }) })

const usageOf = (usage: OpenAI.CompletionUsage | null | undefined) => ({
  inputTokens: usage?.prompt_tokens ?? 0,
  outputTokens: usage?.completion_tokens ?? 0
})

const ask = Effect.fn("ask")(function*(prompt: string) {
  const { model, openai } = yield* Client
  const { data, response } = yield* attempt((signal) =>
    openai.chat.completions.create({ model, messages: [{ role: "user", content: prompt }], max_tokens: 200 }, {
      signal
    }).withResponse()
  )
  // What the headers say is left keeps the queue in step with others who use the same key.
  yield* ProviderProfile.observe(response)
  return { text: data.choices[0]?.message.content ?? "", usage: usageOf(data.usage) }
})

const askForStream = Effect.fn("askForStream")(function*(prompt: string) {
  const { model, openai } = yield* Client
  const { data, response } = yield* attempt((signal) =>
    openai.chat.completions.create({
      model,
      messages: [{ role: "user", content: prompt }],
      max_tokens: 200,
      stream: true,
      // Without this a stream does not say what it used, and the reservation would stay at its estimate.
      stream_options: { include_usage: true }
    }, { signal }).withResponse()
  )
  // The headers come long before the end of the stream: they are read now.
  yield* ProviderProfile.observe(response)
  let text = ""
  let usage = usageOf(undefined)
  yield* attempt(async () => {
    for await (const chunk of data) {
      text += chunk.choices[0]?.delta.content ?? ""
      if (chunk.usage) usage = usageOf(chunk.usage)
    }
  })
  return { text, usage }
})

const GptLive = QueueManager.layerModel(
  Gpt,
  ({ params: { prompt, stream } }) => stream ? askForStream(prompt) : ask(prompt)
)

// ---------------------------------------------------------------------------------------------------------------
// The provider: real, or simulated on a free port of 127.0.0.1
// ---------------------------------------------------------------------------------------------------------------

const Simulator = HttpRouter.serve(ProviderSimulator.layerHttp, { disableLogger: true, disableListenLog: true }).pipe(
  Layer.provideMerge(ProviderSimulator.layer({
    models: {
      "gpt-4o-mini": {
        dialect: "openai",
        charge: "openai",
        limits: [
          { dimension: "requests", limit: 500, algorithm: "bucket", countRefused: "requests" },
          { dimension: "tokens", limit: 200_000, algorithm: "bucket" },
          { dimension: "requests", limit: 10_000, period: "1 day", algorithm: "bucket" }
        ]
      }
    },
    serviceTime: { base: 50, perOutputToken: 1 }
  })),
  Layer.provideMerge(NodeHttpServer.layer(createServer, { host: "127.0.0.1", port: 0 }))
)

const ClientLive = Layer.unwrap(Effect.gen(function*() {
  const key = yield* Config.option(Config.String("OPENAI_API_KEY"))
  const model = yield* Config.withDefault(Config.String("OPENAI_MODEL"), Gpt.modelId)
  if (Option.isSome(key)) {
    return Layer.succeed(Client, { model, openai: new OpenAI({ apiKey: key.value, maxRetries: 0 }) })
  }
  return Layer.effect(
    Client,
    HttpServer.addressFormattedWith((url) =>
      Effect.succeed({ model, openai: new OpenAI({ apiKey: "none", baseURL: `${url}/v1`, maxRetries: 0 }) })
    )
  ).pipe(Layer.provide(Simulator))
}))

// ---------------------------------------------------------------------------------------------------------------
// The work
// ---------------------------------------------------------------------------------------------------------------

const program = Effect.gen(function*() {
  const manager = yield* QueueManager.QueueManager
  const prompts = ["Name a colour.", "Name a river.", "Name a star.", "Name a tree.", "Name a bird.", "Name a city."]
  const answers = yield* Effect.forEach(
    prompts,
    (prompt, index) => manager.submit(Gpt, { prompt, stream: index % 2 === 1 }, { timeout: "2 minutes" }),
    { concurrency: "unbounded" }
  )
  for (const [index, { result }] of answers.entries()) {
    yield* Console.log(`${prompts[index]} ${result.text.trim().slice(0, 60)} (${result.usage.outputTokens} tokens)`)
  }
  const { provider, rateLimiters, reservations } = yield* manager.getQueueInfo(Gpt)
  yield* Console.log(`provider: ${provider?.state}, refused: ${provider?.refusals.rate}`)
  for (const limit of rateLimiters) {
    yield* Console.log(`${limit.type}: ${Math.floor(limit.available)} of ${limit.limit} left`)
  }
  for (const { throughput, type } of reservations) {
    yield* Console.log(`${type}: reserving max_tokens lets ${Math.round(throughput * 100)} % of it be real tokens`)
  }
})

program.pipe(
  Effect.provide(GptLive.pipe(Layer.provideMerge(QueueManager.layer), Layer.provide(ClientLive))),
  NodeRuntime.runMain
)
