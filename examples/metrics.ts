/**
 * Metrics of a queue, served to Prometheus: what waits and why, how long, and what estimates were worth.
 */
import { NodeHttpServer, NodeRuntime } from "@effect/platform-node"
import { Console, Effect, Layer } from "effect"
import { ModelConfig, QueueManager, RateLimiter } from "effect-llm-queue"
import * as Metrics from "effect-llm-queue/Metrics"
import * as Prometheus from "effect-llm-queue/Prometheus"
import { FetchHttpClient, HttpClient, HttpRouter, HttpServer } from "effect/http"
import { createServer } from "node:http"

const Model = ModelConfig.makeUntyped<string, ModelConfig.Usage>("gpt-4", {
  rateLimiters: [RateLimiter.rpm(5, { timePeriod: "1 second" }), RateLimiter.tpm(10_000)],
  usage: (result) => result
})

const ModelLive = QueueManager.layerModel(
  Model,
  ({ params }) => Effect.delay(Effect.succeed({ inputTokens: params.length, outputTokens: 8 }), "20 millis")
)

const ManagerLive = QueueManager.layer.pipe(Layer.provide(Metrics.layer({ priorities: true })))

const ServerLive = HttpRouter.serve(Prometheus.layerHttp(), { disableLogger: true, disableListenLog: true }).pipe(
  Layer.provideMerge(NodeHttpServer.layer(createServer, { host: "127.0.0.1", port: 0 }))
)

const program = Effect.gen(function*() {
  const manager = yield* QueueManager.QueueManager
  yield* Effect.forEach(
    Array.from({ length: 12 }, (_, index) => index),
    (index) =>
      manager.submit(Model, "Name a colour.", {
        estimatedInputTokens: 10,
        estimatedOutputTokens: 16,
        priority: index % 3 === 0 ? "high" : "normal"
      }),
    { concurrency: "unbounded" }
  )
  // What Prometheus would ask for from time to time.
  const url = yield* HttpServer.addressFormattedWith((url) => Effect.succeed(url))
  const text = yield* Effect.flatMap(HttpClient.get(`${url}/metrics`), (response) => response.text)
  const lines = text.split("\n").filter((line) =>
    /^llm_queue_(requests|blocked|limit_used|wait_seconds_sum)/.test(line)
  )
  yield* Console.log(lines.filter((line) => !line.endsWith(" 0")).join("\n"))
})

program.pipe(
  Effect.provide(ModelLive.pipe(
    Layer.provideMerge(ManagerLive),
    Layer.provideMerge(ServerLive),
    Layer.provideMerge(FetchHttpClient.layer)
  )),
  NodeRuntime.runMain
)
