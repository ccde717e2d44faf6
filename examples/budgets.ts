/**
 * Money as a limit: a budget for the whole run and one per tenant, settled by what requests really cost; what happens
 * when it is spent; and other limits for the queue while it runs.
 */
import { NodeRuntime } from "@effect/platform-node"
import { Console, Duration, Effect, Layer, Schema } from "effect"
import { ModelConfig, QueueManager, RateLimiter } from "effect-llm-queue"

// Dollars per million tokens. The queue knows no prices: these are yours.
const price = { input: 2.5, cachedInput: 1.25, output: 10 }

const Gpt = ModelConfig.make("gpt-4o", {
  params: Schema.Struct({ prompt: Schema.String }),
  result: Schema.Struct({ text: Schema.String, usage: ModelConfig.Usage }),
  rateLimiters: [RateLimiter.rpm(500), RateLimiter.budget(0.05, { price, timePeriod: Duration.infinity })],
  tenants: { others: { rateLimiters: [RateLimiter.budget(0.02, { price })] } },
  usage: (result) => result.usage
})

const GptLive = QueueManager.layerModel(
  Gpt,
  (request) => Effect.succeed({ text: request.params.prompt, usage: { inputTokens: 2000, outputTokens: 500 } })
)

const program = Effect.gen(function*() {
  const manager = yield* QueueManager.QueueManager

  const ask = (tenant: string) =>
    manager.submit(Gpt, { prompt: "hello" }, { tenant, estimatedInputTokens: 2000, estimatedOutputTokens: 1000 }).pipe(
      Effect.flatMap(() => Console.log(`${tenant}: answered`)),
      // The request was never sent, and the error says what is spent and when to come back.
      Effect.catchTag("BudgetExceeded", (error) => Console.log(`${tenant}: ${error.message}`))
    )
  const spent = Effect.map(manager.getQueueInfo(Gpt), ({ rateLimiters }) => rateLimiters[1]!.used.toFixed(3))

  yield* ask("acme")
  yield* ask("acme")
  yield* Console.log(`$${yield* spent} of $0.05 are spent`)
  for (const tenant of ["globex", "initech", "hooli", "umbrella"]) yield* ask(tenant)

  // More money, and fewer requests: what was spent, and the requests of the last minute, count on.
  yield* manager.updateRateLimiters(Gpt, [
    RateLimiter.rpm(100),
    RateLimiter.budget(0.1, { price, timePeriod: Duration.infinity })
  ])
  yield* ask("umbrella")
  yield* Console.log(`$${yield* spent} of $0.10 are spent`)
})

program.pipe(
  Effect.provide(GptLive.pipe(Layer.provideMerge(QueueManager.layer))),
  NodeRuntime.runMain
)
