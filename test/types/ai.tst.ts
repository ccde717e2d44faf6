import { Effect, type Layer, Schema, type Stream } from "effect"
import { type QueueError, QueueManager, RateLimiter } from "effect-llm-queue"
import * as QueuedEmbeddingModel from "effect-llm-queue/EmbeddingModel"
import * as QueuedHttpClient from "effect-llm-queue/HttpClient"
import * as QueuedLanguageModel from "effect-llm-queue/LanguageModel"
import { type AiError, type EmbeddingModel, type LanguageModel, type Response, Tool, Toolkit } from "effect/ai"
import type { HttpClient } from "effect/http"
import { describe, expect, test } from "tstyche"

class Failed extends Schema.TaggedError<Failed>()("Failed", {}) {}

const Ask = Tool.make("Ask", {
  parameters: Schema.Struct({ question: Schema.String }),
  success: Schema.Finite,
  failure: Failed
})
const Tools = Toolkit.make(Ask)

describe("queued services of effect/ai", () => {
  test("need the service that they queue, and a manager", () => {
    expect(QueuedLanguageModel.layer({ rateLimit: 1 })).type.toBe<
      Layer.Layer<
        LanguageModel.LanguageModel,
        QueueError.RegisterError,
        LanguageModel.LanguageModel | QueueManager.QueueManager
      >
    >()
    expect(QueuedEmbeddingModel.layer({ rateLimiters: [RateLimiter.rpm(1)] })).type.toBe<
      Layer.Layer<
        EmbeddingModel.EmbeddingModel,
        QueueError.RegisterError,
        EmbeddingModel.EmbeddingModel | QueueManager.QueueManager
      >
    >()
    expect(QueuedHttpClient.layer({ models: { "gpt-4": { rateLimit: 1 } } })).type.toBe<
      Layer.Layer<HttpClient.HttpClient, QueueError.RegisterError, HttpClient.HttpClient | QueueManager.QueueManager>
    >()
  })

  test("are the services themselves: no call has other types", () => {
    expect(Effect.provide(QueuedLanguageModel.make({ rateLimit: 1 }), QueueManager.layer)).type.toBeAssignableTo<
      Effect.Effect<LanguageModel.LanguageModel, unknown, unknown>
    >()
    const make = Effect.gen(function*() {
      const model = yield* QueuedLanguageModel.make({ rateLimit: 1 })
      expect(model).type.toBe<LanguageModel.LanguageModel>()
      const text = model.generateText({ prompt: "", toolkit: Tools })
      expect(text).type.toBeAssignableTo<
        Effect.Effect<unknown, AiError.AiError | Failed | AiError.AiErrorReason, Tool.HandlersFor<typeof Tools.tools>>
      >()
      const stream = model.streamText({ prompt: "" })
      expect(stream).type.toBeAssignableTo<Stream.Stream<Response.StreamPart<{}>, AiError.AiError>>()
      const object = model.generateObject({ prompt: "", schema: Schema.Struct({ a: Schema.Finite }) })
      expect<Effect.Success<typeof object>["value"]>().type.toBe<{ readonly a: number }>()
      return model
    })
    expect(make).type.toBeAssignableTo<Effect.Effect<LanguageModel.LanguageModel, unknown, unknown>>()
  })

  test("take the options of a queue, with limits in one form", () => {
    expect(QueuedLanguageModel.layer).type.not.toBeCallableWith({})
    expect(QueuedLanguageModel.layer).type.not.toBeCallableWith({ rateLimit: 1, rateLimiters: [] })
    expect(QueuedLanguageModel.layer).type.not.toBeCallableWith({ rateLimit: 1, usage: () => undefined })
    expect(QueuedHttpClient.layer).type.not.toBeCallableWith({ models: { "gpt-4": {} } })
    QueuedLanguageModel.layer({
      rateLimit: 1,
      request: (call) => {
        expect(call).type.toBe<QueuedLanguageModel.Call>()
        return { priority: "high" }
      }
    })
  })
})
