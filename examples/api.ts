/**
 * What operators see and do over HTTP: a server with the API beside a program that submits requests, and a typed client
 * that looks, pauses, and raises a limit.
 */
import { NodeHttpServer, NodeRuntime } from "@effect/platform-node"
import { Console, Effect, Fiber, Layer, Redacted, Stream } from "effect"
import { ModelConfig, QueueManager, RateLimiter } from "effect-llm-queue"
import * as QueueApi from "effect-llm-queue/Api"
import { FetchHttpClient, HttpRouter, HttpServer } from "effect/http"
import { createServer } from "node:http"

const Model = ModelConfig.makeUntyped<string, string>("gpt-4", {
  rateLimiters: [RateLimiter.rpm(5, { timePeriod: "1 hour" }), RateLimiter.concurrent(2)]
})

const ModelLive = QueueManager.layerModel(Model, ({ params }) => Effect.delay(Effect.succeed(params), "20 millis"))

const token = Redacted.make("a long secret")

const ServerLive = HttpRouter.serve(QueueApi.layer({ token, actions: true, interval: "100 millis" }), {
  disableLogger: true,
  disableListenLog: true
}).pipe(
  Layer.provideMerge(NodeHttpServer.layer(createServer, { host: "127.0.0.1", port: 0 }))
)

const program = Effect.gen(function*() {
  const manager = yield* QueueManager.QueueManager
  const work = yield* Effect.forkChild(Effect.forEach(
    Array.from({ length: 8 }, (_, index) => `question ${index}`),
    (question) => manager.submit(Model, question, { tenant: "acme" }),
    { concurrency: "unbounded" }
  ))

  // Elsewhere: another process, a script, a dashboard.
  const url = yield* HttpServer.addressFormattedWith((url) => Effect.succeed(url))
  const { actions, queues } = yield* QueueApi.makeClient({ url, token })
  const params = { modelId: "gpt-4" }
  yield* Effect.flatMap(queues.live(), (looks) =>
    looks.pipe(
      Stream.flatMap(({ queues }) => Stream.fromIterable(queues)),
      Stream.takeUntil(({ completed, running }) => completed === 5 && running === 0),
      Stream.runDrain
    ))
  const [limit] = (yield* queues.get({ params })).limits
  yield* Console.log(`${limit!.used} of ${limit!.limit} requests of this hour are used`)
  const waiting = yield* queues.requests({ params, query: { status: "pending" } })
  yield* Console.log(
    `${waiting.length} wait, all of them for ${new Set(waiting.map(({ tenant }) => tenant)).size} tenant`
  )

  yield* actions.changeLimit({ params, payload: { type: "rpm", limit: 100 } })
  const answers = yield* Fiber.join(work)
  yield* Console.log(`${answers.length} are answered`)
})

program.pipe(
  Effect.provide(ModelLive.pipe(
    Layer.provideMerge(ServerLive),
    Layer.provideMerge(QueueManager.layer),
    Layer.provideMerge(FetchHttpClient.layer)
  )),
  NodeRuntime.runMain
)
