/**
 * Programs of `effect/ai`, in real time, over HTTP, against a provider that keeps its own books: with a queue around the
 * model, with one around its HTTP client, and with none. The limits are those of minutes made to seconds.
 */
import { NodeHttpServer } from "@effect/platform-node"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Layer, Schema, Stream } from "effect"
import { ProviderProfile, QueueManager, RateLimiter } from "effect-llm-queue"
import * as QueuedEmbeddingModel from "effect-llm-queue/EmbeddingModel"
import * as QueuedHttpClient from "effect-llm-queue/HttpClient"
import * as QueuedLanguageModel from "effect-llm-queue/LanguageModel"
import { EmbeddingModel, LanguageModel, Tool, Toolkit } from "effect/ai"
import { FetchHttpClient, HttpRouter, HttpServer } from "effect/http"
import { createServer } from "node:http"
import { ProviderSimulator } from "../../src/testing/index.ts"
import * as anthropic from "../ai/anthropic.ts"
import * as openai from "../ai/openai.ts"

const timeout = 60_000

/** One that does not close connections between requests: a client that uses one just then loses its request. */
const makeServer = () => createServer({ keepAliveTimeout: 60_000 })

const period = "6 seconds"
/** What the profiles keep back of a bucket, two seconds of it, would only make the test take longer. */
const per = { timePeriod: period, headroom: "100 millis" } as const

const Weather = Tool.make("Weather", {
  parameters: Schema.Struct({ city: Schema.String }),
  success: Schema.String
})
const Tools = Toolkit.make(Weather)
const ToolsLive = Tools.toLayer({ Weather: ({ city }) => Effect.succeed(`sunny in ${city}`) })

const Agent = Tool.make("Agent", { parameters: Schema.Struct({ task: Schema.String }), success: Schema.Finite })
const Agents = Toolkit.make(Agent)

const serve = (models: ProviderSimulator.Options["models"]) =>
  HttpRouter.serve(ProviderSimulator.layerHttp, { disableLogger: true, disableListenLog: true }).pipe(
    Layer.provideMerge(NodeHttpServer.layer(makeServer, { host: "127.0.0.1", port: 0 })),
    Layer.provideMerge(FetchHttpClient.layer),
    Layer.provideMerge(ProviderSimulator.layer({ models, seed: 1 })),
    Layer.provideMerge(QueueManager.layer)
  )

const providers = [{
  name: "openai",
  layer: openai.layer,
  profile: ProviderProfile.openai,
  server: {
    charge: "openai",
    limits: [
      { dimension: "requests", limit: 60, period, algorithm: "bucket" },
      { dimension: "tokens", limit: 6000, period, algorithm: "bucket" },
      { dimension: "concurrent", limit: 8 }
    ],
    serviceTime: { base: 20, perOutputToken: 0.3 }
  } as const,
  rateLimiters: [RateLimiter.rpm(60, per), RateLimiter.tpm(6000, per), RateLimiter.concurrent(8)]
}, {
  name: "anthropic",
  layer: anthropic.layer,
  profile: ProviderProfile.anthropic,
  server: {
    dialect: "anthropic",
    charge: "anthropic",
    limits: [
      { dimension: "requests", limit: 60, period, algorithm: "bucket" },
      { dimension: "input", limit: 6000, period, algorithm: "bucket" },
      { dimension: "output", limit: 3000, period, algorithm: "bucket" },
      { dimension: "concurrent", limit: 8 }
    ],
    serviceTime: { base: 20, perOutputToken: 0.3 }
  } as const,
  rateLimiters: [
    RateLimiter.rpm(60, per),
    RateLimiter.itpm(6000, per),
    RateLimiter.otpm(3000, per),
    RateLimiter.concurrent(8)
  ]
}] as const

const places = ["no queue", "a queue around the model", "a queue around the HTTP client"] as const

type Served = Pick<(typeof providers)[number], "layer" | "name" | "profile"> & {
  readonly rateLimiters: ReadonlyArray<RateLimiter.Config>
  readonly maxTokens?: number
}

/** The model of a provider, with a queue in a place. */
const modelAt = (
  { layer, maxTokens = 60, name, profile, rateLimiters }: Served,
  place: (typeof places)[number]
) =>
  Layer.unwrap(Effect.gen(function*() {
    const url = yield* HttpServer.addressFormattedWith((url) => Effect.succeed(url))
    const options = { url, model: name, maxTokens }
    const queue = { rateLimiters: [...rateLimiters], provider: { ...profile, margin: "300 millis" } } as const
    if (place === "no queue") return layer(options)
    if (place === "a queue around the model") {
      return QueuedLanguageModel.layer({ ...queue, maxOutputTokens: maxTokens }).pipe(
        Layer.provide(layer({ ...options, transformClient: QueuedHttpClient.observe }))
      )
    }
    const transformClient = yield* QueuedHttpClient.make({ models: { [name]: queue } })
    return layer({ ...options, transformClient })
  }))

/** One call of each kind. */
const calls = (prompt: string) => [
  LanguageModel.generateText({ prompt }).pipe(Effect.map(({ text }) => text)),
  Stream.runFold(
    LanguageModel.streamText({ prompt }),
    () => "",
    (text, part) => part.type === "text-delta" ? text + part.delta : text
  ),
  LanguageModel.generateObject({ prompt, schema: Schema.Struct({ a: Schema.String, b: Schema.Array(Schema.Finite) }) })
    .pipe(Effect.map(({ value }) => JSON.stringify(value))),
  LanguageModel.generateText({ prompt: `${prompt} call Weather {"city":"Bern"}`, toolkit: Tools }).pipe(
    Effect.map(({ toolResults }) => JSON.stringify(toolResults.map(({ result }) => result)))
  ),
  Stream.runFold(
    LanguageModel.streamText({ prompt: `${prompt} call Weather {"city":"Bern"}`, toolkit: Tools }),
    () => "",
    (text, part) => part.type === "tool-result" ? text + JSON.stringify(part.result) : text
  )
]

const report = (name: string) =>
  ProviderSimulator.ProviderSimulator.use((simulator) =>
    Effect.map(simulator.report(), ({ models }) => models.find(({ model }) => model === name)!)
  )

describe("programs of effect/ai against a server that keeps the books", () => {
  for (const provider of providers) {
    it.live(`${provider.name}: say the same with a queue and without`, () =>
      Effect.gen(function*() {
        const said: Array<ReadonlyArray<string>> = []
        for (const place of places) {
          const before = yield* report(provider.name)
          said.push(
            yield* Effect.all(calls("Name a colour.")).pipe(Effect.provide([modelAt(provider, place), ToolsLive]))
          )
          const after = yield* report(provider.name)
          assert.strictEqual(after.admitted - before.admitted, 5)
        }
        assert.strictEqual(said[0]![3], "[\"sunny in Bern\"]")
        assert.strictEqual(said[0]![2], "{\"a\":\"text\",\"b\":[1]}")
        assert.deepStrictEqual(said[1], said[0])
        assert.deepStrictEqual(said[2], said[0])
      }).pipe(Effect.provide(serve({ [provider.name]: provider.server }))), timeout)

    for (const place of places) {
      it.live(
        `${provider.name}: with ${place} ${place === "no queue" ? "are refused" : "are never refused"}`,
        () =>
          Effect.gen(function*() {
            const count = 20
            const exits = yield* Effect.forEach(
              Array.from({ length: count }, (_, index) => calls(`Question ${index}: name a colour.`)).flat(),
              Effect.exit,
              { concurrency: "unbounded" }
            ).pipe(Effect.provide([modelAt(provider, place), ToolsLive]))
            const failed = exits.filter(Exit.isFailure).length
            const books = yield* report(provider.name)
            if (place === "no queue") {
              assert.isAbove(books.refused, 0)
              assert.strictEqual(failed, books.refused)
              return
            }
            assert.deepInclude(books, {
              arrivals: 5 * count,
              completed: 5 * count,
              refused: 0,
              aborted: 0
            })
            assert.strictEqual(failed, 0)
            const info = yield* QueueManager.QueueManager.use((manager) => manager.getAllQueuesInfo)
            // The queue is gone with its layer.
            assert.strictEqual(info.size, 0)
          }).pipe(Effect.provide(serve({ [provider.name]: provider.server }))),
        timeout
      )
    }
  }

  for (const provider of providers) {
    it.live(
      `${provider.name}: agents that start agents take turns on the one permit that there is`,
      () =>
        Effect.gen(function*() {
          const agent = (task: string): Effect.Effect<number, never, LanguageModel.LanguageModel> =>
            Effect.gen(function*() {
              const model = yield* LanguageModel.LanguageModel
              const handlers = Agents.toLayer({
                Agent: ({ task }) => Effect.provideService(agent(task), LanguageModel.LanguageModel, model)
              })
              const { toolResults } = yield* LanguageModel.generateText({ prompt: task, toolkit: Agents }).pipe(
                Effect.provide(handlers),
                Effect.orDie
              )
              return toolResults.reduce((sum, { result }) => sum + Number(result), 1)
            })
          const call = (task: string) => `call Agent ${JSON.stringify({ task })}`
          const middle = `${call("leaf 1")} and ${call("leaf 2")}`
          const one = {
            ...provider,
            maxTokens: 200,
            rateLimiters: [RateLimiter.rpm(60, per), RateLimiter.concurrent(1)]
          }
          const count = yield* agent(`${call(middle)} and ${call(middle)} and ${call("leaf 3")}`).pipe(
            QueueManager.withTenant("acme"),
            Effect.provide(modelAt(one, "a queue around the model"))
          )
          assert.strictEqual(count, 8)
          const books = yield* report(provider.name)
          assert.deepInclude(books, { admitted: 8, completed: 8, refused: 0, maxConcurrent: 1 })
        }).pipe(Effect.provide(serve({
          [provider.name]: {
            ...provider.server,
            limits: [
              { dimension: "requests", limit: 60, period, algorithm: "bucket" },
              { dimension: "concurrent", limit: 1 }
            ]
          }
        }))),
      timeout
    )
  }

  it.live("openai: embeddings in requests that fit, never refused", () =>
    Effect.gen(function*() {
      const url = yield* HttpServer.addressFormattedWith((url) => Effect.succeed(url))
      const inputs = Array.from({ length: 200 }, (_, index) => `input ${index} ${"x".repeat(index)}`)
      const Queued = QueuedEmbeddingModel.layer({
        rateLimiters: [RateLimiter.rpm(60, per), RateLimiter.tpm(6000, per)],
        provider: { ...ProviderProfile.openai, margin: "300 millis" }
      }).pipe(Layer.provide(openai.layerEmbedding({ url, model: "embed" })))
      const response = yield* EmbeddingModel.EmbeddingModel.use((model) => model.embedMany(inputs)).pipe(
        Effect.provide(Queued)
      )
      assert.strictEqual(response.embeddings.length, inputs.length)
      assert(response.usage.inputTokens !== undefined)
      const books = yield* report("embed")
      assert.strictEqual(books.refused, 0)
      assert.isAbove(books.admitted, 3)
    }).pipe(Effect.provide(serve({
      embed: {
        charge: "openai",
        limits: [
          { dimension: "requests", limit: 60, period, algorithm: "bucket" },
          { dimension: "tokens", limit: 6000, period, algorithm: "bucket" }
        ]
      }
    }))), timeout)
})
