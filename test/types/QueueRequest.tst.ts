// oxlint-disable typescript/unbound-method, typescript/no-unnecessary-type-arguments -- only types are looked at
import { type Effect, Schema } from "effect"
import { ModelConfig, type QueueError, QueueManager, QueueRequest, type QueueResponse } from "effect-llm-queue"
import { describe, expect, test } from "tstyche"

class OpenAiError extends Schema.TaggedError<OpenAiError>()("OpenAiError", { status: Schema.Int }) {}

const Gpt4 = ModelConfig.make("gpt-4", {
  params: Schema.Struct({ prompt: Schema.String }),
  result: Schema.Struct({ text: Schema.String }),
  error: OpenAiError,
  rateLimit: 1
})
type P = { readonly prompt: string }
type A = { readonly text: string }

declare const manager: QueueManager.QueueManager["Service"]

const params = { prompt: "Tell me a joke" }
declare const flag: boolean

describe("QueueRequest.make", () => {
  test("a request waits for its result unless it says otherwise, and its type says so", () => {
    expect(QueueRequest.make(Gpt4, { params })).type.toBe<QueueRequest.QueueRequest<P, A, OpenAiError, true>>()
    expect(QueueRequest.make(Gpt4, { params, waitForCompletion: true })).type.toBe<
      QueueRequest.QueueRequest<P, A, OpenAiError, true>
    >()
    expect(QueueRequest.make(Gpt4, { params, waitForCompletion: false })).type.toBe<
      QueueRequest.QueueRequest<P, A, OpenAiError, false>
    >()
    expect(QueueRequest.make(Gpt4, { params, waitForCompletion: flag })).type.toBe<
      QueueRequest.QueueRequest<P, A, OpenAiError, boolean>
    >()
  })

  test("an undefined choice is either to the type", () => {
    expect(QueueRequest.make(Gpt4, { params, waitForCompletion: undefined })).type.toBe<
      QueueRequest.QueueRequest<P, A, OpenAiError, boolean>
    >()
  })

  test("its default W is true", () => {
    expect<QueueRequest.QueueRequest<P, A, never>>().type.toBe<QueueRequest.QueueRequest<P, A, never, true>>()
  })

  test("refuses parameters of another type, and unknown ones", () => {
    // @ts-expect-error Type 'number' is not assignable to type 'string'
    QueueRequest.make(Gpt4, { params: { prompt: 1 } })
    // @ts-expect-error 'promt' does not exist in type
    QueueRequest.make(Gpt4, { params: { promt: "a" } })
    // @ts-expect-error Property 'prompt' is missing in type
    QueueRequest.make(Gpt4, { params: {} })
    // @ts-expect-error 'temperature' does not exist in type
    QueueRequest.make(Gpt4, { params: { prompt: "a", temperature: 1 } })
    // @ts-expect-error Property 'params' is missing in type
    QueueRequest.make(Gpt4, { priority: "high" })
  })

  test("has a key of its own, or is kept apart by false", () => {
    QueueRequest.make(Gpt4, { params, dedupeKey: "k" })
    QueueRequest.make(Gpt4, { params, dedupeKey: false })
    QueueRequest.make(Gpt4, { params, dedupeKey: undefined })
    // @ts-expect-error Type 'true' is not assignable to type
    QueueRequest.make(Gpt4, { params, dedupeKey: true })
    // @ts-expect-error Type 'number' is not assignable to type
    QueueRequest.make(Gpt4, { params, dedupeKey: 1 })
  })

  test("refuses options of another type, and unknown ones", () => {
    // @ts-expect-error Type '"urgent"' is not assignable to type
    QueueRequest.make(Gpt4, { params, priority: "urgent" })
    // @ts-expect-error Type '"soon"' is not assignable to type
    QueueRequest.make(Gpt4, { params, timeout: "soon" })
    // @ts-expect-error Type 'string' is not assignable to type 'number'
    QueueRequest.make(Gpt4, { params, estimatedInputTokens: "many" })
    // @ts-expect-error 'retries' does not exist in type
    QueueRequest.make(Gpt4, { params, retries: 3 })
    // @ts-expect-error Type 'string' is not assignable to type 'boolean | undefined'
    QueueRequest.make(Gpt4, { params, waitForCompletion: "no" })
  })

  test("every option can be given as undefined", () => {
    expect(QueueRequest.make(Gpt4, {
      params,
      id: undefined,
      estimatedInputTokens: undefined,
      estimatedCachedInputTokens: undefined,
      estimatedOutputTokens: undefined,
      priority: undefined,
      timeout: undefined,
      processingTimeout: undefined,
      metadata: undefined
    })).type.toBe<QueueRequest.QueueRequest<P, A, OpenAiError, true>>()
  })

  test("an id is no model", () => {
    expect(QueueRequest.make).type.not.toBeCallableWith("gpt-4", { params })
  })
})

describe("submitRequest", () => {
  const submit = <W extends boolean>(request: QueueRequest.QueueRequest<P, A, OpenAiError, W>) =>
    QueueManager.QueueManager.use((manager) => manager.submitRequest(request))

  test("a waiting request gives its result, or the processor's error, or the queue's", () => {
    expect(submit(QueueRequest.make(Gpt4, { params }))).type.toBe<
      Effect.Effect<QueueResponse.Completed<A>, OpenAiError | QueueError.SubmitError, QueueManager.QueueManager>
    >()
  })

  test("a request that does not wait gives its ticket, or what kept it from being accepted", () => {
    expect(submit(QueueRequest.make(Gpt4, { params, waitForCompletion: false }))).type.toBe<
      Effect.Effect<QueueResponse.Pending<A, OpenAiError>, QueueError.AcceptError, QueueManager.QueueManager>
    >()
  })

  test("a request of which that is not known gives either", () => {
    expect(submit(QueueRequest.make(Gpt4, { params, waitForCompletion: flag }))).type.toBe<
      Effect.Effect<
        QueueResponse.Completed<A> | QueueResponse.Pending<A, OpenAiError>,
        OpenAiError | QueueError.SubmitError,
        QueueManager.QueueManager
      >
    >()
  })

  test("takes a request and nothing that only looks like one", () => {
    expect(manager.submitRequest).type.not.toBeCallableWith({ modelId: "gpt-4", params })
    expect(manager.submitRequest).type.not.toBeCallableWith({
      model: "gpt-4",
      params,
      id: "a",
      waitForCompletion: true
    })
  })
})
