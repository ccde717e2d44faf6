/**
 * Two models that can do the same work: requests go to the one that can take them soonest, and on to the other one when
 * the account of the first has no credit left, when its provider is down, or when it could not be in time.
 */
import { NodeRuntime } from "@effect/platform-node"
import { Console, Duration, Effect, Layer, Schema } from "effect"
import { ModelConfig, ModelGroup, ProviderProfile, QueueManager, RateLimiter } from "effect-llm-queue"

class ApiError extends Schema.TaggedError<ApiError>()("ApiError", { status: Schema.Int }) {}

const Chat = { params: Schema.String, result: Schema.String, error: ApiError }

const Primary = ModelConfig.make("primary", {
  ...Chat,
  provider: ProviderProfile.generic,
  // Unlike those of the profile, these let a burst through.
  rateLimiters: [RateLimiter.rpm(2, { algorithm: "slidingWindow", coldStart: false })]
})
const Secondary = ModelConfig.make("secondary", { ...Chat, rateLimiters: [RateLimiter.rpm(100)] })

let hasCredit = true

const ModelsLive = QueueManager.layerModels(
  QueueManager.registration(
    Primary,
    ({ params }) => hasCredit ? Effect.succeed(`primary: ${params}`) : Effect.fail(new ApiError({ status: 402 }))
  ),
  QueueManager.registration(Secondary, ({ params }) => Effect.succeed(`secondary: ${params}`))
)

// The first one while it can take a request at once, then the other one.
const Any = ModelGroup.make([Primary, Secondary])

// The first one as long as that answers in time.
const Preferred = ModelGroup.make([Primary, Secondary], { strategy: "ordered" })

const program = Effect.gen(function*() {
  for (const prompt of ["one", "two", "three"]) {
    const response = yield* ModelGroup.submit(Any, prompt)
    yield* Console.log(response.result)
  }
  for (const { modelId, wait } of yield* ModelGroup.rank(Any)) {
    yield* Console.log(`  ${modelId} would take a request in ${Math.ceil(Duration.toSeconds(wait))} s`)
  }

  // The primary's limit is used up for a minute: it could not be in time there.
  const inTime = yield* ModelGroup.submit(Preferred, "in time", { timeout: "10 seconds" })
  yield* Console.log(inTime.result)

  hasCredit = false
  const paid = yield* ModelGroup.submit(Any, "no credit")
  yield* Console.log(paid.result)
})

program.pipe(
  Effect.provide(ModelsLive.pipe(Layer.provideMerge(QueueManager.layer))),
  NodeRuntime.runMain
)
