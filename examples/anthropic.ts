/**
 * Anthropic's own client behind a queue, with whole answers and streams, its own retries off: the queue is the only one
 * that sends again.
 *
 * Against the real API when ANTHROPIC_API_KEY is set (and ANTHROPIC_MODEL, if you like); else against a local simulator
 * that speaks Anthropic's protocol and counts the way Anthropic does: input when a request arrives, output while it is
 * produced. Put the numbers of your own tier into the limits.
 */
import Anthropic from "@anthropic-ai/sdk"
import { NodeHttpServer, NodeRuntime } from "@effect/platform-node"
import { Config, Console, Context, Effect, Layer, Option, Schema } from "effect"
import { ModelConfig, ProviderProfile, QueueManager, RateLimiter } from "effect-llm-queue"
import { ProviderSimulator } from "effect-llm-queue/testing"
import { HttpRouter, HttpServer } from "effect/http"
import { createServer } from "node:http"

// ---------------------------------------------------------------------------------------------------------------
// The model
// ---------------------------------------------------------------------------------------------------------------

class AnthropicError extends Schema.TaggedError<AnthropicError>()("AnthropicError", { cause: Schema.Defect() }) {}

const Claude = ModelConfig.make("claude-haiku-4-5", {
  params: Schema.Struct({ prompt: Schema.String, stream: Schema.Boolean }),
  result: Schema.Struct({ text: Schema.String, usage: ModelConfig.Usage }),
  error: AnthropicError,
  provider: ProviderProfile.anthropic,
  // max_tokens costs nothing here: output is counted as it is produced, and what is reserved is learned.
  rateLimiters: [RateLimiter.rpm(50), RateLimiter.itpm(50_000), RateLimiter.otpm(10_000)],
  usage: (result) => result.usage
})

// ---------------------------------------------------------------------------------------------------------------
// The processor: one call of the client
// ---------------------------------------------------------------------------------------------------------------

class Client extends Context.Service<Client, { readonly anthropic: Anthropic; readonly model: string }>()(
  "effect-llm-queue/examples/anthropic/Client"
) {}

// The queue finds the provider's status, headers and body in the cause by itself.
const attempt = <A>(call: (signal: AbortSignal) => PromiseLike<A>) =>
  Effect.tryPromise({ try: call, catch: (cause) => new AnthropicError({ cause }) })

const answerOf = (message: Anthropic.Message) => {
  const { cache_creation_input_tokens, cache_read_input_tokens, input_tokens, output_tokens } = message.usage
  const cachedInputTokens = cache_read_input_tokens ?? 0
  return {
    text: message.content.map((block) => block.type === "text" ? block.text : "").join(""),
    usage: {
      // All input, what came from the cache included: the profile knows that Anthropic does not count that.
      inputTokens: input_tokens + (cache_creation_input_tokens ?? 0) + cachedInputTokens,
      outputTokens: output_tokens,
      cachedInputTokens
    }
  }
}

const question = (model: string, prompt: string) => ({
  model,
  max_tokens: 1024,
  messages: [{ role: "user" as const, content: prompt }]
})

const ask = Effect.fn("ask")(function*(prompt: string) {
  const { anthropic, model } = yield* Client
  const { data, response } = yield* attempt((signal) =>
    anthropic.messages.create(question(model, prompt), { signal }).withResponse()
  )
  // What the headers say is left keeps the queue in step with others who use the same key.
  yield* ProviderProfile.observe(response)
  return answerOf(data)
})

const askForStream = Effect.fn("askForStream")(function*(prompt: string) {
  const { anthropic, model } = yield* Client
  const stream = yield* Effect.acquireRelease(
    Effect.sync(() => anthropic.messages.stream(question(model, prompt))),
    (stream) => Effect.sync(() => stream.abort())
  )
  // The headers come long before the end of the stream: they are read now.
  const { response } = yield* attempt(() => stream.withResponse())
  yield* ProviderProfile.observe(response)
  return answerOf(yield* attempt(() => stream.finalMessage()))
})

const ClaudeLive = QueueManager.layerModel(
  Claude,
  ({ params: { prompt, stream } }) => stream ? askForStream(prompt) : ask(prompt)
)

// ---------------------------------------------------------------------------------------------------------------
// The provider: real, or simulated on a free port of 127.0.0.1
// ---------------------------------------------------------------------------------------------------------------

const Simulator = HttpRouter.serve(ProviderSimulator.layerHttp, { disableLogger: true, disableListenLog: true }).pipe(
  Layer.provideMerge(ProviderSimulator.layer({
    models: {
      [Claude.modelId]: {
        dialect: "anthropic",
        charge: "anthropic",
        limits: [
          { dimension: "requests", limit: 50, algorithm: "bucket" },
          { dimension: "input", limit: 50_000, algorithm: "bucket" },
          { dimension: "output", limit: 10_000, algorithm: "bucket" }
        ]
      }
    },
    serviceTime: { base: 50, perOutputToken: 1 }
  })),
  Layer.provideMerge(NodeHttpServer.layer(createServer, { host: "127.0.0.1", port: 0 }))
)

const ClientLive = Layer.unwrap(Effect.gen(function*() {
  const key = yield* Config.option(Config.String("ANTHROPIC_API_KEY"))
  const model = yield* Config.withDefault(Config.String("ANTHROPIC_MODEL"), Claude.modelId)
  if (Option.isSome(key)) {
    return Layer.succeed(Client, { model, anthropic: new Anthropic({ apiKey: key.value, maxRetries: 0 }) })
  }
  return Layer.effect(
    Client,
    HttpServer.addressFormattedWith((url) =>
      Effect.succeed({ model, anthropic: new Anthropic({ apiKey: "none", baseURL: url, maxRetries: 0 }) })
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
    (prompt, index) => manager.submit(Claude, { prompt, stream: index % 2 === 1 }, { timeout: "2 minutes" }),
    { concurrency: "unbounded" }
  )
  for (const [index, { result }] of answers.entries()) {
    yield* Console.log(`${prompts[index]} ${result.text.trim().slice(0, 60)} (${result.usage.outputTokens} tokens)`)
  }
  const { provider, rateLimiters } = yield* manager.getQueueInfo(Claude)
  yield* Console.log(`provider: ${provider?.state}, refused: ${provider?.refusals.rate}`)
  for (const limit of rateLimiters) {
    yield* Console.log(`${limit.type}: ${Math.floor(limit.available)} of ${limit.limit} left`)
  }
})

program.pipe(
  Effect.provide(ClaudeLive.pipe(Layer.provideMerge(QueueManager.layer), Layer.provide(ClientLive))),
  NodeRuntime.runMain
)
