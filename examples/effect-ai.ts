/**
 * A program written against `effect/ai`, with and without a queue. Its calls are the same: one layer makes the difference.
 *
 * The provider is the simulator, which allows twenty requests in any second. Sixty calls at once are mostly refused
 * without a queue; with one none is.
 */
import { NodeRuntime } from "@effect/platform-node"
import { Console, Duration, Effect, Exit, Layer, Stream } from "effect"
import { QueueManager, RateLimiter } from "effect-llm-queue"
import * as QueuedLanguageModel from "effect-llm-queue/LanguageModel"
import { ProviderSimulator } from "effect-llm-queue/testing"
import { AiError, LanguageModel, Model, type Prompt, Response } from "effect/ai"

// ---------------------------------------------------------------------------------------------------------------
// The program. It knows nothing of queues.
// ---------------------------------------------------------------------------------------------------------------

const haiku = (subject: string) => LanguageModel.generateText({ prompt: `A haiku about ${subject}, please.` })

const story = (subject: string) =>
  LanguageModel.streamText({ prompt: `A story about ${subject}, please.` }).pipe(
    Stream.map((part) => part.type === "text-delta" ? part.delta : ""),
    Stream.mkString
  )

const program = Effect.forEach(
  Array.from({ length: 30 }, (_, index) => `subject ${index}`).flatMap((subject) => [haiku(subject), story(subject)]),
  Effect.exit<unknown, AiError.AiError, LanguageModel.LanguageModel>,
  { concurrency: "unbounded" }
)

// ---------------------------------------------------------------------------------------------------------------
// The model: a package such as @effect/ai-openai in a real program, the simulator here
// ---------------------------------------------------------------------------------------------------------------

const Gpt = Model.make(
  "openai",
  "gpt-4",
  Layer.effect(
    LanguageModel.LanguageModel,
    Effect.gen(function*() {
      const simulator = yield* ProviderSimulator.ProviderSimulator
      const complete = (prompt: Prompt.Prompt) =>
        simulator.complete({
          model: "gpt-4",
          messages: [{ role: "user", content: JSON.stringify(prompt.content) }],
          max_tokens: 20
        }).pipe(
          Effect.mapError(() =>
            AiError.make({ module: "Simulator", method: "complete", reason: new AiError.RateLimitError({}) })
          )
        )
      const finish = ({ inputTokens, outputTokens }: ProviderSimulator.Completion["usage"]) =>
        ({
          type: "finish",
          reason: "stop",
          usage: new Response.Usage({
            inputTokens: { total: inputTokens, uncached: inputTokens, cacheRead: undefined, cacheWrite: undefined },
            outputTokens: { total: outputTokens, text: outputTokens, reasoning: undefined }
          }),
          response: undefined
        }) as const
      return yield* LanguageModel.make({
        generateText: ({ prompt }) =>
          Effect.map(complete(prompt), ({ text, usage }) => [{ type: "text", text }, finish(usage)]),
        streamText: ({ prompt }) =>
          Stream.unwrap(
            Effect.map(complete(prompt), ({ text, usage }) =>
              Stream.make<ReadonlyArray<Response.StreamPartEncoded>>(
                { type: "text-start", id: "0" },
                { type: "text-delta", id: "0", delta: text },
                { type: "text-end", id: "0" },
                finish(usage)
              ))
          )
      })
    })
  )
)

const Simulator = ProviderSimulator.layer({
  models: { "gpt-4": [{ dimension: "requests", limit: 20, period: "1 second" }] },
  serviceTime: { base: 5, perOutputToken: 0.2 }
})

// ---------------------------------------------------------------------------------------------------------------
// The queue. Its id is the model's name; limits are those of your tier.
// ---------------------------------------------------------------------------------------------------------------

const QueuedGpt = QueuedLanguageModel.layer({
  rateLimiters: [
    RateLimiter.rpm(20, { timePeriod: Duration.seconds(1), margin: "50 millis" }),
    RateLimiter.tpm(100_000)
  ],
  // By its name it would be OpenAI's, whose limits are buckets: the simulator counts in another way.
  provider: undefined
}).pipe(Layer.provide(Gpt))

const compare = Effect.gen(function*() {
  const tell = (name: string, exits: ReadonlyArray<Exit.Exit<unknown, unknown>>) =>
    Console.log(`${name}: ${exits.filter(Exit.isFailure).length} of ${exits.length} calls were refused`)
  yield* tell("without a queue", yield* Effect.provide(program, Gpt))
  yield* Effect.sleep("1 second")
  const queued = yield* Effect.provide(program, QueuedGpt)
  yield* tell("with a queue", queued)
  if (queued.some(Exit.isFailure)) return yield* Effect.die("the provider has refused a queued call")
})

compare.pipe(Effect.provide([QueueManager.layer, Simulator]), NodeRuntime.runMain)
