/**
 * At most five calls at one time, however many are submitted.
 */
import { NodeRuntime } from "@effect/platform-node"
import { Console, Effect, Layer } from "effect"
import { ModelConfig, QueueManager } from "effect-llm-queue"

// The short form of one limit. The types alone describe this model: nothing is checked at run time.
const Local = ModelConfig.makeUntyped<number, string>("local-llama", {
  rateLimit: 5,
  rateLimiterMode: "concurrent_requests"
})

let inFlight = 0
let most = 0

const LocalLive = QueueManager.layerModel(Local, (request) =>
  Effect.gen(function*() {
    most = Math.max(most, ++inFlight)
    yield* Effect.sleep("50 millis")
    return `answer ${request.params}`
  }).pipe(Effect.ensuring(Effect.sync(() => inFlight--))))

const program = Effect.gen(function*() {
  const manager = yield* QueueManager.QueueManager
  const responses = yield* Effect.forEach(
    Array.from({ length: 20 }, (_, index) => index),
    (index) => manager.submit(Local, index),
    { concurrency: "unbounded" }
  )
  yield* Console.log(`${responses.length} answers, at most ${most} in flight`)
})

program.pipe(
  Effect.provide(LocalLive.pipe(Layer.provideMerge(QueueManager.layer))),
  NodeRuntime.runMain
)
