/**
 * Several models, a batch, a monitor that watches every status, and typed failures.
 */
import { NodeRuntime } from "@effect/platform-node"
import { Cause, Console, Effect, Fiber, Layer, Schema, Stream } from "effect"
import { ModelConfig, QueueManager, QueueRequest, RateLimiter } from "effect-llm-queue"

class ContentRefused extends Schema.TaggedError<ContentRefused>()("ContentRefused", { reason: Schema.String }) {}

const Chat = { params: Schema.String, result: Schema.String, error: ContentRefused }

const Fast = ModelConfig.make("fast", { ...Chat, rateLimiters: [RateLimiter.rpm(600), RateLimiter.concurrent(8)] })
const Smart = ModelConfig.make("smart", {
  ...Chat,
  rateLimiters: [RateLimiter.rpm(4, { timePeriod: "1 second" }), RateLimiter.concurrent(2)],
  processingTimeout: "200 millis",
  retention: { count: 100, age: "10 minutes" }
})

// Models of the same types can share a processor.
const ModelsLive = Layer.effectDiscard(
  QueueManager.QueueManager.use((manager) =>
    manager.registerAllQueues([Fast, Smart], (request) =>
      Effect.gen(function*() {
        if (request.params.includes("secret")) return yield* new ContentRefused({ reason: "no secrets" })
        if (request.params.includes("slow")) return yield* Effect.never
        if (request.params.includes("bug")) return yield* Effect.die(new Error("a bug in the processor"))
        yield* Effect.sleep("10 millis")
        return `${request.model.modelId} says: ${request.params}`
      }))
  )
)

const program = Effect.gen(function*() {
  const manager = yield* QueueManager.QueueManager

  const counts = new Map<string, number>()
  const monitor = yield* manager.events.pipe(
    Stream.runForEach((event) =>
      Effect.sync(() => {
        const key = `${event.modelId} ${event.status}`
        counts.set(key, (counts.get(key) ?? 0) + 1)
      })
    ),
    Effect.forkChild({ startImmediately: true })
  )

  // A batch: as many at a time as the limits allow, results in the order of the questions.
  const questions = Array.from({ length: 12 }, (_, index) => `question ${index}`)
  const answers = yield* Effect.forEach(questions, (question) => manager.submit(Fast, question), {
    concurrency: "unbounded"
  })
  yield* Console.log(`${answers.length} answers, the last: ${answers.at(-1)!.result}`)

  // Every way to fail has a type, and the processor's own errors are among them.
  for (const question of ["a secret", "a slow one", "a bug", "fine"]) {
    const outcome = yield* manager.submit(Smart, question).pipe(
      Effect.map((response) => response.result),
      Effect.catchTags({
        ContentRefused: (error) => Effect.succeed(`refused: ${error.reason}`),
        QueueTimeout: (error) => Effect.succeed(`gave up after ${Math.round(error.processingTimeMillis)} ms or so`),
        ProcessingError: (error) => Effect.succeed(`broken: ${String(error.cause)}`)
      })
    )
    yield* Console.log(`${question} -> ${outcome}`)
  }

  // A status keeps the whole cause of a failure.
  const pending = yield* manager.submitRequest(QueueRequest.make(Smart, { params: "secret", waitForCompletion: false }))
  yield* Effect.ignore(manager.awaitCompletion(pending))
  const status = yield* manager.getStatus(Smart, pending.requestId)
  if (status.status === "failed") yield* Console.log(Cause.pretty(status.cause).split("\n")[0])

  yield* Fiber.interrupt(monitor)
  yield* Console.log(Object.fromEntries(counts))
})

program.pipe(
  Effect.provide(ModelsLive.pipe(Layer.provideMerge(QueueManager.layer))),
  NodeRuntime.runMain
)
