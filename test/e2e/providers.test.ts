/** What providers say inside streams and instead of answers, to a program of `effect/ai` over HTTP. */
import { NodeHttpServer } from "@effect/platform-node"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Layer, Stream } from "effect"
import { ProviderProfile, QueueManager, RateLimiter } from "effect-llm-queue"
import * as QueuedHttpClient from "effect-llm-queue/HttpClient"
import * as QueuedLanguageModel from "effect-llm-queue/LanguageModel"
import { AiError, LanguageModel } from "effect/ai"
import { FetchHttpClient, HttpRouter, HttpServer } from "effect/http"
import { createServer } from "node:http"
import { ProviderSimulator } from "../../src/testing/index.ts"
import * as anthropic from "../ai/anthropic.ts"
import * as openai from "../ai/openai.ts"

const providers = [
  {
    name: "openai",
    layer: openai.layer,
    profile: ProviderProfile.openai,
    early: ["stream_429", "in_band_429"],
    late: ["stream_429_late"]
  },
  {
    name: "anthropic",
    layer: anthropic.layer,
    profile: ProviderProfile.anthropic,
    early: ["stream_error", "stream_429", "in_band_429"],
    late: ["stream_error_late", "stream_429_late"]
  }
] as const

/** A server whose first requests go wrong, and a queued model of it that says little. */
const withFaults = (
  { layer, name, profile }: (typeof providers)[number],
  faults: ReadonlyArray<ProviderSimulator.Fault>
) =>
  Layer.unwrap(Effect.gen(function*() {
    const url = yield* HttpServer.addressFormattedWith((url) => Effect.succeed(url))
    return QueuedLanguageModel.layer({
      rateLimiters: [RateLimiter.concurrent(2)],
      provider: { ...profile, margin: "1 millis" },
      maxOutputTokens: 20
    }).pipe(
      Layer.provide(layer({ url, model: name, maxTokens: 20, transformClient: QueuedHttpClient.observe }))
    )
  })).pipe(
    Layer.provideMerge(HttpRouter.serve(ProviderSimulator.layerHttp, { disableLogger: true, disableListenLog: true })),
    Layer.provideMerge(NodeHttpServer.layer(createServer, { host: "127.0.0.1", port: 0 })),
    Layer.provideMerge(FetchHttpClient.layer),
    Layer.provideMerge(ProviderSimulator.layer({
      models: { [name]: { dialect: name, limits: [], faults, serviceTime: { base: 1, perOutputToken: 0 } } },
      seed: 1
    })),
    Layer.provideMerge(QueueManager.layer)
  )

const text = LanguageModel.generateText({ prompt: "Name a colour." }).pipe(Effect.map(({ text }) => text))

const parts = Stream.runCollect(LanguageModel.streamText({ prompt: "Name a colour." }))

const requests = (name: string) =>
  ProviderSimulator.ProviderSimulator.use((simulator) =>
    Effect.map(simulator.report(), ({ models }) => models.find(({ model }) => model === name)!.arrivals)
  )

const theQueue = QueueManager.QueueManager.use((manager) =>
  Effect.map(manager.getAllQueuesInfo, (infos) => [...infos.values()][0]!)
)

const typesOf = (parts: ReadonlyArray<{ readonly type: string }>) => new Set(parts.map(({ type }) => type))

const first = (kind: ProviderSimulator.FaultKind, rest: Partial<ProviderSimulator.Fault> = {}) => [
  { when: { nth: 1 }, kind, ...rest }
]

for (const provider of providers) {
  describe(`programs of effect/ai, when ${provider.name}`, () => {
    for (const kind of provider.early) {
      it.live(`refuses inside a stream before any content (${kind}): it is attempted again`, () =>
        Effect.gen(function*() {
          const types = typesOf(yield* parts)
          assert.isTrue(types.has("finish"))
          assert.isFalse(types.has("error"))
          assert.strictEqual(yield* requests(provider.name), 2)
        }).pipe(Effect.provide(withFaults(provider, first(kind, { retryAfter: "0.01" })))))
    }

    for (const kind of provider.late) {
      it.live(`refuses inside a stream that has begun (${kind}): the stream fails after what has come`, () =>
        Effect.gen(function*() {
          const come: Array<string> = []
          const exit = yield* LanguageModel.streamText({ prompt: "Name a colour." }).pipe(
            Stream.runForEach(({ type }) => Effect.sync(() => come.push(type))),
            Effect.exit
          )
          assert.include(come, "text-delta")
          assert.notInclude(come, "error")
          const error = yield* Effect.flip(exit)
          assert(AiError.isAiError(error))
          assert.isTrue(error.isRetryable)
          assert.strictEqual(yield* requests(provider.name), 1)
          // The refusal counts, and the permits are back.
          const queue = yield* theQueue
          assert.strictEqual(Object.values(queue.provider!.refusals).reduce((sum, count) => sum + count, 0), 1)
          assert.strictEqual(queue.rateLimiters[0]!.used, 0)
        }).pipe(Effect.provide(withFaults(provider, first(kind)))))
    }

    for (const kind of ["503", "429", "slow_down", "html_502", "reset"] as const) {
      it.live(`refuses (${kind}): it is attempted again`, () =>
        Effect.gen(function*() {
          assert.notStrictEqual(yield* text, "")
          assert.strictEqual(yield* requests(provider.name), 2)
        }).pipe(Effect.provide(withFaults(provider, first(kind, { retryAfter: "0.01" })))))
    }

    for (const kind of ["insufficient_quota", "402", "401"] as const) {
      it.live(`refuses for good (${kind}): it is not attempted again, and the reason is told`, () =>
        Effect.gen(function*() {
          const exit = yield* Effect.exit(text)
          assert(Exit.isFailure(exit))
          const error = yield* Effect.flip(exit)
          assert(AiError.isAiError(error))
          assert.strictEqual(error.reason._tag, kind === "401" ? "AuthenticationError" : "QuotaExhaustedError")
          assert.strictEqual(yield* requests(provider.name), 1)
        }).pipe(Effect.provide(withFaults(provider, first(kind)))))
    }
  })
}

it.live("what a stream says that no profile knows is passed on", () =>
  Effect.gen(function*() {
    const all = yield* parts
    assert.strictEqual(all.at(-1)?.type, "error")
    assert.strictEqual(yield* requests("openai"), 1)
    const queue = yield* theQueue
    assert.deepStrictEqual([queue.completed, queue.rateLimiters[0]!.used], [1, 0])
  }).pipe(Effect.provide(withFaults(providers[0], first("stream_error")))))
