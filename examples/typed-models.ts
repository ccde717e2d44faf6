/**
 * A model as a dependency: a program that submits to it does not compile until its layer is provided.
 */
import { NodeRuntime } from "@effect/platform-node"
import { Console, Context, Effect, Layer, Schema } from "effect"
import { ModelQueue, QueueManager, RateLimiter } from "effect-llm-queue"

class Overloaded extends Schema.TaggedError<Overloaded>()("Overloaded", { retryInSeconds: Schema.Int }) {}

class Translator extends ModelQueue.Service<Translator>()("translator", {
  params: Schema.Struct({ text: Schema.String, to: Schema.Literals(["de", "fr"]) }),
  result: Schema.String,
  error: Overloaded,
  rateLimiters: [RateLimiter.rpm(60), RateLimiter.concurrent(4)]
}) {}

// Some client the processor needs.
class Provider extends Context.Service<Provider, {
  translate(text: string, to: string): Effect.Effect<string, Overloaded>
}>()("effect-llm-queue/examples/typed-models/Provider") {
  static readonly layer = Layer.succeed(Provider, {
    translate: (text, to) =>
      text === "" ? Effect.fail(new Overloaded({ retryInSeconds: 3 })) : Effect.succeed(`${text} (${to})`)
  })
}

// Layer<Translator, RegisterError, QueueManager | Provider>
const TranslatorLive = Translator.layer((request) =>
  Provider.use((provider) => provider.translate(request.params.text, request.params.to))
)

// Effect<void, SubmitError, Translator>: the model's own error is handled, the queue's are left.
const program = Effect.gen(function*() {
  const response = yield* Translator.submit({ text: "Good morning", to: "de" }, { priority: "high" })
  yield* Console.log(response.result)

  const fallback = yield* Translator.submit({ text: "", to: "fr" }).pipe(
    Effect.map((response) => response.result),
    Effect.catchTag("Overloaded", (error) => Effect.succeed(`try again in ${error.retryInSeconds} s`))
  )
  yield* Console.log(fallback)
})

program.pipe(
  Effect.provide(TranslatorLive.pipe(Layer.provide([QueueManager.layer, Provider.layer]))),
  NodeRuntime.runMain
)
