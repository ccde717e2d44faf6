/**
 * A model that streams: the reader gets the pieces as they come, the permit is held until the stream has ended, and the
 * tokens are settled from the last piece, also when the reader has had enough.
 */
import { NodeRuntime } from "@effect/platform-node"
import { Console, Duration, Effect, Layer, Schema, Stream } from "effect"
import { ModelConfig, QueueManager, RateLimiter } from "effect-llm-queue"

const Writer = ModelConfig.makeStream("writer", {
  params: Schema.Struct({ prompt: Schema.String }),
  element: Schema.Struct({ text: Schema.String, usage: Schema.optional(ModelConfig.Usage) }),
  rateLimiters: [RateLimiter.concurrent(1), RateLimiter.tpm(10_000)],
  // Providers report usage in the last piece, and some of them in each.
  usage: (element) => element.usage
})

// Stream your provider's answer here. What its scope holds, a connection for instance, is closed when it ends.
const WriterLive = QueueManager.layerStream(Writer, ({ params }) =>
  Stream.fromIterable(params.prompt.split(" ")).pipe(
    Stream.mapEffect((word, index) =>
      Effect.sleep("10 millis").pipe(
        Effect.as({ text: `${word} `, usage: { inputTokens: 5, outputTokens: index + 1 } })
      )
    )
  ))

const program = Effect.gen(function*() {
  const manager = yield* QueueManager.QueueManager
  const options = { estimatedInputTokens: 10, estimatedOutputTokens: 100 }

  const prompt = "the quick brown fox jumps over the lazy dog"
  yield* manager.stream(Writer, { prompt }, { ...options, id: "whole", timeout: "30 seconds" }).pipe(
    Stream.runForEach(({ text }) => Console.log(text))
  )
  const status = yield* manager.getStatus("writer", "whole")
  if (status.timeToFirstElement !== undefined) {
    yield* Console.log(`first piece after some ${Math.round(Duration.toMillis(status.timeToFirstElement))} ms`)
  }

  // Leaving early cancels the request, gives its permit back, and pays for what has come so far.
  const words = yield* manager.stream(Writer, { prompt }, options).pipe(Stream.take(3), Stream.runCollect)
  yield* Console.log(words.map(({ text }) => text).join(""))

  const info = yield* manager.getQueueInfo(Writer)
  yield* Console.log(`${info.running} running, ${info.rateLimiters[1]!.used} tokens used`)
})

program.pipe(
  Effect.provide(WriterLive.pipe(Layer.provideMerge(QueueManager.layer))),
  NodeRuntime.runMain
)
