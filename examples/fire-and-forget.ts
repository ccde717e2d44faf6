/**
 * Submit now, ask for the result later: by waiting for it, or by looking at the status.
 */
import { NodeRuntime } from "@effect/platform-node"
import { Console, Duration, Effect, Layer, Schema } from "effect"
import { ModelConfig, QueueManager, QueueRequest, RateLimiter } from "effect-llm-queue"

const Summaries = ModelConfig.make("summaries", {
  params: Schema.Struct({ document: Schema.String }),
  result: Schema.Struct({ summary: Schema.String }),
  rateLimiters: [RateLimiter.rpm(2, { timePeriod: "100 millis" })],
  // How many finished requests keep their result, and for how long.
  retention: { count: 10_000, age: "1 hour" }
})

const SummariesLive = QueueManager.layerModel(
  Summaries,
  (request) => Effect.succeed({ summary: request.params.document.slice(0, 12) })
)

const program = Effect.gen(function*() {
  const manager = yield* QueueManager.QueueManager

  const pending = yield* Effect.forEach(
    ["one document", "another document", "the last document"],
    (document) =>
      manager.submitRequest(QueueRequest.make(Summaries, { params: { document }, waitForCompletion: false }))
  )
  yield* Console.log(pending.map((response) => response.status).join(", "))

  // A pending response knows the type of its result.
  const last = yield* manager.awaitCompletion(pending[2]!)
  yield* Console.log(`${last.result.summary}, after ${Math.round(Duration.toMillis(last.queueTime))} ms in the queue`)

  // A status can be asked for by the id alone, as an HTTP handler would.
  const status = yield* manager.getStatus(Summaries, pending[0]!.requestId)
  if (status.status === "completed") yield* Console.log(status.result.summary)

  // And what is not wanted any more can be cancelled.
  const unwanted = yield* manager.submitRequest(
    QueueRequest.make(Summaries, { params: { document: "never mind" }, waitForCompletion: false, id: "unwanted" })
  )
  yield* Console.log(`cancelled: ${yield* manager.cancelRequest(Summaries, unwanted.requestId)}`)
})

program.pipe(
  Effect.provide(SummariesLive.pipe(Layer.provideMerge(QueueManager.layer))),
  NodeRuntime.runMain
)
