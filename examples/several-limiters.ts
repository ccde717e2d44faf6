/**
 * Requests per minute and per day, tokens per minute, and concurrency, decided together; and what happens to a token
 * reservation once the real usage is known.
 */
import { NodeRuntime } from "@effect/platform-node"
import { Console, Effect, Layer, Schema } from "effect"
import { ModelConfig, QueueManager, RateLimiter } from "effect-llm-queue"

const Gpt4 = ModelConfig.make("gpt-4", {
  params: Schema.Struct({ prompt: Schema.String }),
  result: Schema.Struct({ text: Schema.String, usage: ModelConfig.Usage }),
  rateLimiters: [
    // The margin allows for the spread of network delay: what we send 60.25 s apart arrives at least 60 s apart.
    RateLimiter.rpm(500, { margin: "250 millis" }),
    RateLimiter.tpm(30_000, { margin: "250 millis" }),
    RateLimiter.rpd(10_000),
    RateLimiter.concurrent(20)
  ],
  // Settles every reservation from its result, without a second call.
  usage: (result) => result.usage
})

const Gpt4Live = QueueManager.layerModel(
  Gpt4,
  (request) => Effect.succeed({ text: request.params.prompt, usage: { inputTokens: 85, outputTokens: 40 } })
)

// A model that does not report its usage with its result: its caller does.
const Legacy = ModelConfig.makeUntyped<string, string>("legacy", { rateLimiters: [RateLimiter.tpm(1000)] })

const LegacyLive = QueueManager.layerModel(Legacy, (request) => Effect.succeed(request.params.toUpperCase()))

const program = Effect.gen(function*() {
  const manager = yield* QueueManager.QueueManager

  const response = yield* manager.submit(Gpt4, { prompt: "hello" }, {
    estimatedInputTokens: 100,
    estimatedOutputTokens: 500
  })
  yield* Console.log(`reserved 600 tokens, used ${response.inputTokensUsed} + ${response.outputTokensUsed}`)
  for (const limit of (yield* manager.getQueueInfo(Gpt4)).rateLimiters) {
    yield* Console.log(`  ${limit.type}: ${limit.used} of ${limit.limit}`)
  }

  const { requestId } = yield* manager.submit(Legacy, "hello", { estimatedInputTokens: 100, estimatedOutputTokens: 50 })
  const first = yield* manager.updateTokenUsage(Legacy, requestId, { inputTokens: 20, outputTokens: 10 })
  const second = yield* manager.updateTokenUsage(Legacy, requestId, { inputTokens: 0, outputTokens: 0 })
  yield* Console.log(`first report: ${first}, second: ${second}`)

  // What can never fit fails at once, with the numbers.
  const error = yield* Effect.flip(
    manager.submit(Legacy, "x", { estimatedInputTokens: 2000, estimatedOutputTokens: 0 })
  )
  yield* Console.log(error.message)
})

program.pipe(
  Effect.provide(Layer.mergeAll(Gpt4Live, LegacyLive).pipe(Layer.provideMerge(QueueManager.layer))),
  NodeRuntime.runMain
)
