/**
 * Testing a program that uses the queue: time is virtual, and the provider is the simulator, which keeps the books.
 */
import { NodeRuntime } from "@effect/platform-node"
import { Console, Effect, Fiber, Layer, Schema } from "effect"
import { ModelConfig, QueueManager, RateLimiter } from "effect-llm-queue"
import { ProviderSimulator } from "effect-llm-queue/testing"
import { TestClock } from "effect/testing"
import assert from "node:assert/strict"

class ProviderError extends Schema.TaggedError<ProviderError>()("ProviderError", { message: Schema.String }) {}

const Gpt4 = ModelConfig.make("gpt-4", {
  params: Schema.Struct({ prompt: Schema.String }),
  result: Schema.Struct({ text: Schema.String, usage: ModelConfig.Usage }),
  error: ProviderError,
  rateLimiters: [RateLimiter.rpm(10), RateLimiter.tpm(2000)],
  usage: (result) => result.usage
})

// In the tests the simulator stands where the HTTP client would.
const Gpt4Test = QueueManager.layerModel(
  Gpt4,
  (request) =>
    ProviderSimulator.ProviderSimulator.use((provider) =>
      provider.complete({
        model: "gpt-4",
        messages: [{ role: "user", content: request.params.prompt }],
        max_tokens: 100
      })
    ).pipe(Effect.mapError((error) => new ProviderError({ message: error.message })))
)

// What is to be tested.
const summarizeAll = (documents: ReadonlyArray<string>) =>
  Effect.gen(function*() {
    const manager = yield* QueueManager.QueueManager
    return yield* Effect.forEach(
      documents,
      (prompt) => manager.submit(Gpt4, { prompt }, { estimatedInputTokens: 30, estimatedOutputTokens: 100 }),
      { concurrency: "unbounded" }
    )
  })

const test = Effect.gen(function*() {
  const documents = Array.from({ length: 25 }, (_, index) => `document number ${index}`)
  const summaries = yield* Effect.forkChild(summarizeAll(documents), { startImmediately: true })
  yield* TestClock.adjust("3 minutes")
  assert.equal((yield* Fiber.join(summaries)).length, 25)

  const provider = yield* ProviderSimulator.ProviderSimulator
  const { models } = yield* provider.report()
  assert.equal(models[0]!.refused, 0)
  for (const limit of models[0]!.limits) {
    yield* Console.log(`${limit.dimension}: at most ${limit.worstWindow} of ${limit.limit} in any minute`)
  }
})

test.pipe(
  Effect.provide(
    Gpt4Test.pipe(
      Layer.provideMerge(QueueManager.layer),
      Layer.provideMerge(ProviderSimulator.layer({
        models: { "gpt-4": [{ dimension: "requests", limit: 10 }, { dimension: "tokens", limit: 2000 }] },
        serviceTime: { base: "1 second" }
      })),
      Layer.provideMerge(TestClock.layer())
    )
  ),
  NodeRuntime.runMain
)
