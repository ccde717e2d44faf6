/**
 * An HTTP client whose requests go through the queue of the model that they name, against a local server that allows
 * thirty requests and 3,000 tokens in any two seconds, and speaks OpenAI's format. What uses the client knows nothing of it.
 */
import { NodeHttpServer, NodeRuntime } from "@effect/platform-node"
import { Console, Effect, Layer, Stream } from "effect"
import { ProviderProfile, QueueManager, RateLimiter } from "effect-llm-queue"
import * as QueuedHttpClient from "effect-llm-queue/HttpClient"
import { ProviderSimulator } from "effect-llm-queue/testing"
import { FetchHttpClient, HttpBody, HttpClient, HttpClientRequest, HttpRouter, HttpServer } from "effect/http"
import { createServer } from "node:http"

const period = "2 seconds"

const ClientLive = QueuedHttpClient.layer({
  models: {
    "gpt-4": {
      // What its headers say, and which of its answers are worth another attempt.
      provider: ProviderProfile.openai,
      rateLimiters: [
        RateLimiter.rpm(30, { timePeriod: period, headroom: "100 millis" }),
        RateLimiter.tpm(3000, { timePeriod: period, headroom: "100 millis" }),
        RateLimiter.concurrent(10)
      ]
    }
  }
}).pipe(Layer.provide(FetchHttpClient.layer))

const ask = Effect.fn("ask")(function*(question: string, stream: boolean) {
  const url = yield* HttpServer.addressFormattedWith((url) => Effect.succeed(url))
  const response = yield* HttpClient.execute(
    HttpClientRequest.post(`${url}/v1/chat/completions`, {
      body: HttpBody.jsonUnsafe({
        model: "gpt-4",
        messages: [{ role: "user", content: question }],
        max_tokens: 40,
        stream,
        ...(stream ? { stream_options: { include_usage: true } } : {})
      })
    })
  )
  // A stream is passed on as it comes, and holds its permit until it has come.
  const events = Stream.decodeText(response.stream)
  return { status: response.status, events: yield* Stream.runCount(events) }
})

const program = Effect.gen(function*() {
  const answers = yield* Effect.forEach(
    Array.from({ length: 60 }, (_, index) => index),
    (index) => ask(`Question ${index}: name a colour.`, index % 2 === 0),
    { concurrency: "unbounded" }
  )
  const refused = answers.filter(({ status }) => status !== 200).length
  yield* Console.log(`${answers.length} answers, ${refused} refused`)
  const simulator = yield* ProviderSimulator.ProviderSimulator
  const [books] = (yield* simulator.report()).models
  const manager = yield* QueueManager.QueueManager
  const { rateLimiters, running } = yield* manager.getQueueInfo("gpt-4")
  yield* Console.log(`the server counted ${books!.admitted} requests and refused ${books!.refused}`)
  yield* Console.log(`${running} running, ${rateLimiters[0]!.used.toFixed(0)} requests still count`)
  if (books!.refused > 0) return yield* Effect.die("the server has refused a request")
})

program.pipe(
  Effect.provide(ClientLive.pipe(
    Layer.provideMerge(QueueManager.layer),
    Layer.provideMerge(HttpRouter.serve(ProviderSimulator.layerHttp, { disableLogger: true, disableListenLog: true })),
    Layer.provideMerge(ProviderSimulator.layer({
      models: {
        "gpt-4": {
          charge: "openai",
          limits: [
            { dimension: "requests", limit: 30, period, algorithm: "bucket" },
            { dimension: "tokens", limit: 3000, period, algorithm: "bucket" }
          ]
        }
      },
      serviceTime: { base: 20, perOutputToken: 1 }
    })),
    Layer.provideMerge(
      NodeHttpServer.layer(() => createServer({ keepAliveTimeout: 60_000 }), { host: "127.0.0.1", port: 0 })
    )
  )),
  NodeRuntime.runMain
)
