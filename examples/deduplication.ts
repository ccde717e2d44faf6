/**
 * Equal requests that are in flight at one time share one call and one charge; its result answers more of them for a
 * while.
 */
import { NodeRuntime } from "@effect/platform-node"
import { Console, Effect, Fiber, Layer, Schema } from "effect"
import { ModelConfig, QueueManager, RateLimiter } from "effect-llm-queue"

const Translate = ModelConfig.make("translate", {
  params: Schema.Struct({ text: Schema.String, to: Schema.Literals(["de", "fr"]) }),
  result: Schema.String,
  rateLimiters: [RateLimiter.rpm(100)],
  // Equal parameters are equal requests. Without it, only requests with the same `dedupeKey` are.
  deduplicate: { key: "params", keep: "10 minutes" }
})

let calls = 0

const TranslateLive = QueueManager.layerModel(Translate, ({ params }) =>
  Effect.sync(() => {
    calls++
    return `${params.text} (${params.to})`
  }).pipe(Effect.delay("50 millis")))

const program = Effect.gen(function*() {
  const manager = yield* QueueManager.QueueManager
  const ask = manager.submit(Translate, { text: "hello", to: "de" }, { timeout: "10 seconds" })

  // Ten users ask the same at one time. One of them leaves, which the others do not notice.
  const users = yield* Effect.forEach(Array.from({ length: 10 }), () => Effect.forkChild(ask))
  yield* Effect.sleep("10 millis")
  yield* Fiber.interrupt(users[0]!)
  const answers = yield* Effect.forEach(users.slice(1), Fiber.join)
  yield* Console.log(`${answers.length} answers of ${calls} call: ${answers[0]!.result}`)

  // Later ones are answered by what was kept, until ten minutes after the call.
  const later = yield* ask
  yield* Console.log(`kept: ${later.isKept}, still ${calls} call`)

  const info = yield* manager.getQueueInfo(Translate)
  yield* Console.log(`${info.rateLimiters[0]!.used} request counted`)
})

program.pipe(
  Effect.provide(TranslateLive.pipe(Layer.provideMerge(QueueManager.layer))),
  NodeRuntime.runMain
)
