/**
 * What an operator can do with a queue that is at work: pause it, put a request first, cancel by filter, change its
 * limits, drain it, and submit again what has failed.
 */
import { NodeRuntime } from "@effect/platform-node"
import { Console, Duration, Effect, Layer } from "effect"
import { ModelConfig, QueueManager, QueueRequest, RateLimiter } from "effect-llm-queue"

const Model = ModelConfig.makeUntyped<string, string, string>("gpt-4", {
  rateLimiters: [RateLimiter.rpm(2, { timePeriod: "1 second" })],
  // Off unless it is asked for: it keeps parameters.
  deadLetters: { count: 100, age: "1 hour" }
})

let isBroken = true

const ModelLive = QueueManager.layerModel(Model, ({ params }) =>
  params === "breaks" && isBroken
    ? Effect.fail("broken")
    : Effect.as(Console.log(`  does ${params}`), params))

const program = Effect.gen(function*() {
  const manager = yield* QueueManager.QueueManager
  const submit = (params: string, options?: QueueRequest.RequestOptions) =>
    manager.submitRequest(QueueRequest.make(Model, { ...options, params, id: params, waitForCompletion: false }))

  yield* manager.pauseQueue(Model)
  for (const params of ["a", "b", "breaks", "urgent"]) yield* submit(params)
  for (const params of ["x", "y"]) yield* submit(params, { tenant: "crawler" })
  yield* Console.log(`paused, ${(yield* manager.getQueueInfo(Model)).depth} wait`)

  yield* manager.changePriority(Model, "urgent", "high")
  yield* Console.log(`cancelled ${yield* manager.cancelRequests(Model, { tenant: "crawler" })} of the crawler`)

  yield* manager.resumeQueue(Model)
  yield* Effect.sleep("100 millis")
  const wait = yield* manager.estimateWait(Model)
  yield* Console.log(`another one would wait about ${Math.ceil(Duration.toSeconds(wait))} s`)

  // Five times as much, from now on: what waits goes at once.
  yield* manager.updateRateLimiters(Model, [RateLimiter.rpm(10, { timePeriod: "1 second" })])
  yield* manager.drainQueue(Model)
  const refused = yield* Effect.flip(submit("too late"))
  yield* Console.log(refused.message)

  isBroken = false
  yield* manager.resumeQueue(Model)
  for (const letter of yield* manager.deadLetters(Model)) {
    const pending = yield* manager.resubmitDeadLetter(Model, letter.requestId)
    yield* manager.awaitCompletion(pending)
  }
})

program.pipe(
  Effect.provide(ModelLive.pipe(Layer.provideMerge(QueueManager.layer))),
  NodeRuntime.runMain
)
