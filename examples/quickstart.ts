/**
 * Two models behind one queue manager, against a provider that counts for itself.
 *
 * A local HTTP server speaks the OpenAI chat-completions format and enforces strict sliding limits: 60 requests in any
 * 3 seconds for one model, 9,000 tokens in any 3 seconds for the other. Enough prompts are submitted at once to fill
 * more than four windows of each. The queue sends them as fast as the limits allow, settles the token reservations
 * from the responses, and at the end the server's books are compared with ours.
 *
 * Exits with 1 when the server refused anything, anything was lost, or the utilisation is under 90 % of its bound.
 */
import { NodeHttpServer, NodeRuntime, NodeServices } from "@effect/platform-node"
import { Clock, Effect, Fiber, Layer, Schema } from "effect"
import { ModelConfig, QueueManager, QueueRequest, RateLimiter } from "effect-llm-queue"
import * as TerminalView from "effect-llm-queue/TerminalView"
import { ProviderSimulator } from "effect-llm-queue/testing"
import { FetchHttpClient, HttpClient, HttpClientRequest, HttpClientResponse, HttpRouter, HttpServer } from "effect/http"
import { createServer } from "node:http"

const period = 3000
/** How far apart the ways from here to the server may be in time, the event loop's delays included. */
const margin = 300
const windows = 4

// ---------------------------------------------------------------------------------------------------------------
// The models: what goes in, what comes out, what can fail, and their limits
// ---------------------------------------------------------------------------------------------------------------

class ProviderError extends Schema.TaggedError<ProviderError>()("ProviderError", {
  status: Schema.Int,
  body: Schema.String
}) {}

const Chat = {
  params: Schema.Struct({ prompt: Schema.String, maxTokens: Schema.Int }),
  result: Schema.Struct({ text: Schema.String, usage: ModelConfig.Usage }),
  error: ProviderError,
  usage: (result: { readonly usage: ModelConfig.Usage }) => result.usage
}

const Small = ModelConfig.make("small-model", {
  ...Chat,
  rateLimiters: [RateLimiter.rpm(60, { timePeriod: period, margin }), RateLimiter.concurrent(16)]
})

const Large = ModelConfig.make("large-model", {
  ...Chat,
  rateLimiters: [RateLimiter.tpm(9000, { timePeriod: period, margin }), RateLimiter.concurrent(16)]
})

// ---------------------------------------------------------------------------------------------------------------
// The processor: one HTTP call. It knows nothing of limits.
// ---------------------------------------------------------------------------------------------------------------

const ChatCompletion = Schema.Struct({
  choices: Schema.Array(Schema.Struct({ message: Schema.Struct({ content: Schema.String }) })),
  usage: Schema.Struct({ prompt_tokens: Schema.Int, completion_tokens: Schema.Int })
})

const complete = Effect.fn("complete")(
  function*(model: string, { maxTokens, prompt }: typeof Chat.params.Type) {
    const response = yield* HttpClientRequest.post("/v1/chat/completions").pipe(
      HttpClientRequest.bodyJsonUnsafe({
        model,
        messages: [{ role: "user", content: prompt }],
        max_tokens: maxTokens
      }),
      HttpClient.execute
    )
    if (response.status !== 200) {
      return yield* new ProviderError({ status: response.status, body: yield* response.text })
    }
    const { choices, usage } = yield* HttpClientResponse.schemaBodyJson(ChatCompletion)(response)
    return {
      text: choices.map((choice) => choice.message.content).join(""),
      usage: { inputTokens: usage.prompt_tokens, outputTokens: usage.completion_tokens }
    }
  },
  Effect.catchTag(
    ["HttpClientError", "SchemaError"],
    (error) => Effect.fail(new ProviderError({ status: 0, body: error.message }))
  )
)

const ModelsLive = QueueManager.layerModels(
  QueueManager.registration(Small, (request) => complete("small-model", request.params)),
  QueueManager.registration(Large, (request) => complete("large-model", request.params))
)

// ---------------------------------------------------------------------------------------------------------------
// The provider, on a free port of 127.0.0.1
// ---------------------------------------------------------------------------------------------------------------

const ProviderLive = HttpRouter.serve(ProviderSimulator.layerHttp, { disableLogger: true, disableListenLog: true })
  .pipe(
    Layer.provideMerge(Layer.mergeAll(
      HttpServer.layerTestClient.pipe(Layer.provide(FetchHttpClient.layer)),
      ProviderSimulator.layer({
        models: {
          "small-model": [{ dimension: "requests", limit: 60, period }],
          "large-model": [{ dimension: "tokens", limit: 9000, period }],
          "warm-up": []
        },
        serviceTime: { base: 20, perOutputToken: 0.3 }
      })
    )),
    Layer.provideMerge(NodeHttpServer.layer(createServer, { host: "127.0.0.1", port: 0 }))
  )

// ---------------------------------------------------------------------------------------------------------------
// The work: more than four full windows of each model
// ---------------------------------------------------------------------------------------------------------------

const words = "the queue sends as fast as the limits allow and never faster so nothing is refused".split(" ")

const prompt = (index: number) =>
  Array.from({ length: 10 + (index * 37) % 90 }, (_, i) => words[(index + i) % words.length]).join(" ")

const requests = (model: typeof Small, count: number) =>
  Array.from({ length: count }, (_, index) => {
    const maxTokens = 40 + (index * 53) % 160
    const params = { prompt: prompt(index), maxTokens }
    return QueueRequest.make(model, {
      params,
      // What this provider counts on arrival: a token for four characters and three a message, and max_tokens.
      estimatedInputTokens: Math.ceil(params.prompt.length / 4) + 3,
      estimatedOutputTokens: maxTokens
    })
  })

const work = [
  { model: Small, requests: requests(Small, 60 * windows + 30) },
  { model: Large, requests: requests(Large, 300) }
]

class Disappointing extends Schema.TaggedError<Disappointing>()("Disappointing", { message: Schema.String }) {}

const program = Effect.gen(function*() {
  const manager = yield* QueueManager.QueueManager
  const provider = yield* ProviderSimulator.ProviderSimulator
  const started = yield* Clock.currentTimeMillis
  // Opens the connections: the first requests would take longer on their way than the margin allows for.
  yield* Effect.forEach(Array.from({ length: 64 }), () => complete("warm-up", { prompt: "hello", maxTokens: 50 }), {
    concurrency: 32
  })
  const begin = yield* provider.now
  const watcher = yield* Effect.forkChild(TerminalView.show({ lines: "2 seconds" }))

  const results = yield* Effect.forEach(
    work,
    ({ model, requests }) =>
      Effect.map(
        Effect.forEach(requests, (request) => Effect.result(manager.submitRequest(request)), {
          concurrency: "unbounded"
        }),
        (results) => ({ model, results })
      ),
    { concurrency: "unbounded" }
  )

  yield* Fiber.interrupt(watcher)
  const seconds = ((yield* Clock.currentTimeMillis) - started) / 1000

  const bound = period / (period + margin)
  const arrivals = yield* provider.arrivals
  const rows = yield* Effect.forEach(results, ({ model, results }) =>
    Effect.gen(function*() {
      // Utilisation over whole cycles of a period and its margin, as long as there was work for them.
      const last = arrivals.findLast((arrival) => arrival.model === model.modelId)!
      const cycles = Math.floor((last.at - begin) / (period + margin))
      const { models } = yield* provider.report({ from: begin, to: begin + cycles * (period + margin) })
      const books = models.find((entry) => entry.model === model.modelId)!
      const whole = (yield* provider.report()).models.find((entry) => entry.model === model.modelId)!
      const completed = results.filter((result) => result._tag === "Success").length
      return {
        model: model.modelId,
        limit: `${books.limits[0]!.limit} ${books.limits[0]!.dimension} / ${period / 1000} s`,
        sent: results.length,
        completed,
        refused: whole.refused,
        lost: results.length - completed - whole.refused,
        windows: cycles,
        utilisation: books.limits[0]!.utilisation
      }
    }))

  console.table(rows.map((row) => ({
    ...row,
    utilisation: `${(row.utilisation * 100).toFixed(1)} %`,
    bound: `${(bound * 100).toFixed(1)} %`
  })))
  console.log(
    `${seconds.toFixed(1)} s; the bound is T / (T + margin) for periods of ${period} ms and a margin of ${margin} ms`
  )

  for (const row of rows) {
    if (row.refused > 0 || row.lost > 0) {
      return yield* new Disappointing({ message: `${row.model}: ${row.refused} refused, ${row.lost} lost` })
    }
    if (row.windows < windows || row.utilisation < 0.9 * bound) {
      return yield* new Disappointing({ message: `${row.model}: ${row.utilisation} of ${row.windows} windows used` })
    }
  }
})

program.pipe(
  Effect.provide(
    ModelsLive.pipe(
      Layer.provideMerge(QueueManager.layer),
      Layer.provideMerge(ProviderLive),
      Layer.provideMerge(NodeServices.layer)
    )
  ),
  NodeRuntime.runMain
)
