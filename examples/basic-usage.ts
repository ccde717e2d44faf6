/**
 * The smallest whole program: one model, one limit, one request.
 */
import { NodeRuntime } from "@effect/platform-node"
import { Console, Effect, Layer, Schema } from "effect"
import { ModelConfig, QueueManager, QueueRequest, RateLimiter } from "effect-llm-queue"

const Gpt4 = ModelConfig.make("gpt-4", {
  params: Schema.Struct({ prompt: Schema.String }),
  result: Schema.Struct({ text: Schema.String }),
  rateLimiters: [RateLimiter.rpm(10)]
})

// Call your provider here. Whatever services the effect needs become requirements of the layer.
const Gpt4Live = QueueManager.layerModel(
  Gpt4,
  (request) => Effect.succeed({ text: `You said: ${request.params.prompt}` })
)

const program = Effect.gen(function*() {
  const manager = yield* QueueManager.QueueManager
  const response = yield* manager.submitRequest(QueueRequest.make(Gpt4, {
    params: { prompt: "Tell me a joke" },
    timeout: "30 seconds"
  }))
  yield* Console.log(response.status, response.result.text)

  const info = yield* manager.getQueueInfo(Gpt4)
  yield* Console.log(`${info.completed} completed, ${info.rateLimiters[0]!.available} requests left this minute`)
})

program.pipe(
  Effect.provide(Gpt4Live.pipe(Layer.provideMerge(QueueManager.layer))),
  NodeRuntime.runMain
)
