// @effect-diagnostics floatingEffect:off missingEffectError:off
// oxlint-disable typescript/unbound-method, typescript/no-unnecessary-type-arguments -- only types are looked at
import { Context, Effect, Layer, Schema, type Scope } from "effect"
import {
  ModelConfig,
  ModelQueue,
  type QueueError,
  QueueManager,
  QueueRequest,
  type QueueResponse
} from "effect-llm-queue"
import { describe, expect, test } from "tstyche"

class AnthropicError extends Schema.TaggedError<AnthropicError>()("AnthropicError", { status: Schema.Int }) {}

class Http extends Context.Service<Http, { readonly call: (prompt: string) => Effect.Effect<string> }>()(
  "effect-llm-queue/test/types/ModelQueue.tst/Http"
) {}

class Claude extends ModelQueue.Service<Claude>()("claude", {
  params: Schema.Struct({ prompt: Schema.String }),
  result: Schema.Struct({ text: Schema.String }),
  error: AnthropicError,
  rateLimit: 1
}) {}
type P = { readonly prompt: string }
type A = { readonly text: string }

class Haiku extends ModelQueue.Service<Haiku>()("haiku", {
  params: Schema.Struct({ prompt: Schema.String }),
  result: Schema.Struct({ text: Schema.String }),
  error: AnthropicError,
  rateLimit: 1
}) {}

class Plain
  extends ModelQueue.Service<Plain>()("plain", { params: Schema.String, result: Schema.String, rateLimit: 1 })
{}

declare const manager: QueueManager.QueueManager["Service"]

const processor = (request: QueueRequest.QueueRequest<P, A, AnthropicError, boolean>) =>
  Effect.map(Http.use((http) => http.call(request.params.prompt)), (text) => ({ text }))

describe("ModelQueue.Service", () => {
  test("the class is a model, and is taken wherever one is", () => {
    expect<typeof Claude>().type.toBeAssignableTo<ModelConfig.ModelConfig<P, A, AnthropicError>>()
    expect<typeof Plain>().type.toBeAssignableTo<ModelConfig.ModelConfig<string, string, never>>()
    expect(QueueRequest.make(Claude, { params: { prompt: "a" } })).type.toBe<
      QueueRequest.QueueRequest<P, A, AnthropicError, true>
    >()
    expect(manager.submit(Claude, { prompt: "a" })).type.toBe<
      Effect.Effect<QueueResponse.Completed<A>, AnthropicError | QueueError.SubmitError>
    >()
    expect(manager.getStatus(Claude, "id")).type.toBe<
      Effect.Effect<
        QueueResponse.QueueResponse<A, AnthropicError>,
        QueueError.ModelNotRegistered | QueueError.RequestNotFound
      >
    >()
    expect(QueueManager.layerModel(Claude, processor)).type.toBe<
      Layer.Layer<never, QueueError.RegisterError, QueueManager.QueueManager | Http>
    >()
    expect(QueueManager.registration(Claude, processor)).type.toBe<QueueManager.Registration<Http>>()
  })

  test("its layer provides it, and needs the manager and what the processor needs, but no scope", () => {
    expect(Claude.layer(processor)).type.toBe<
      Layer.Layer<Claude, QueueError.RegisterError, QueueManager.QueueManager | Http>
    >()
    expect(Plain.layer((request) => Effect.as(Effect.scope, request.params))).type.toBe<
      Layer.Layer<Plain, QueueError.RegisterError, QueueManager.QueueManager>
    >()
    expect(Claude.layer(Effect.fnUntraced(function*(request) {
      const http = yield* Http
      if (request.params.prompt === "") return yield* new AnthropicError({ status: 400 })
      return { text: yield* http.call(request.params.prompt) }
    }))).type.toBe<Layer.Layer<Claude, QueueError.RegisterError, QueueManager.QueueManager | Http>>()
  })

  test("its layer checks the processor", () => {
    // @ts-expect-error Type 'AnthropicError' is not assignable to type 'never'
    Plain.layer(() => Effect.fail(new AnthropicError({ status: 500 })))
    // @ts-expect-error Type 'number' is not assignable to type 'string'
    Plain.layer(() => Effect.succeed(1))
  })

  test("submitting needs the class, and a forgotten registration is no possible failure", () => {
    expect(Claude.submit({ prompt: "a" }, { priority: "high" })).type.toBe<
      Effect.Effect<
        QueueResponse.Completed<A>,
        AnthropicError | Exclude<QueueError.SubmitError, QueueError.ModelNotRegistered>,
        Claude
      >
    >()
    expect(Plain.submit("a")).type.toBe<
      Effect.Effect<
        QueueResponse.Completed<string>,
        Exclude<QueueError.SubmitError, QueueError.ModelNotRegistered>,
        Plain
      >
    >()
    expect<ModelQueue.SubmitError["_tag"]>().type.not.toBeAssignableFrom<"ModelNotRegistered">()
    expect<ModelQueue.AcceptError["_tag"]>().type.not.toBeAssignableFrom<"ModelNotRegistered">()
  })

  test("as a service it is the queue of its model", () => {
    const queue = Effect.flatMap(Claude, (claude) => {
      expect(claude).type.toBe<ModelQueue.ModelQueue<P, A, AnthropicError>>()
      return claude.submit({ prompt: "a" })
    })
    expect(queue).type.toBe<
      Effect.Effect<QueueResponse.Completed<A>, AnthropicError | ModelQueue.SubmitError, Claude>
    >()
  })

  test("wrong parameters do not compile", () => {
    expect(Claude.submit).type.not.toBeCallableWith({ promt: "a" })
    expect(Claude.submit).type.not.toBeCallableWith("a")
    expect(Plain.submit).type.not.toBeCallableWith(1)
    expect(Plain.submit).type.toBeCallableWith("a")
  })

  test("two classes are not confusable, even when all their types are the same", () => {
    expect<typeof Haiku>().type.not.toBeAssignableTo<typeof Claude>()
    expect<typeof Claude>().type.not.toBeAssignableTo<typeof Haiku>()
    const program = Effect.provide(Claude.submit({ prompt: "a" }), Haiku.layer(() => Effect.never))
    expect(program).type.toBe<
      Effect.Effect<
        QueueResponse.Completed<A>,
        AnthropicError | ModelQueue.SubmitError | QueueError.RegisterError,
        Claude | QueueManager.QueueManager
      >
    >()
  })

  test("a program without the layer of its model does not run", () => {
    const program = Claude.submit({ prompt: "a" })
    const HttpLive = Layer.succeed(Http, { call: Effect.succeed })
    const live = Claude.layer(processor).pipe(Layer.provideMerge(QueueManager.layer), Layer.provide(HttpLive))
    expect(live).type.toBe<Layer.Layer<Claude | QueueManager.QueueManager, QueueError.RegisterError>>()
    expect(Effect.runPromise).type.not.toBeCallableWith(program)
    expect(Effect.runPromise).type.not.toBeCallableWith(program.pipe(Effect.provide(QueueManager.layer)))
    expect(Effect.runPromise).type.not.toBeCallableWith(
      program.pipe(Effect.provide(
        QueueManager.layerModel(Claude, processor).pipe(
          Layer.provideMerge(QueueManager.layer),
          Layer.provide(HttpLive)
        )
      ))
    )
    expect(Effect.runPromise).type.toBeCallableWith(program.pipe(Effect.provide(live)))
  })

  test("takes the options of a model, and refuses what a model refuses", () => {
    const service = ModelQueue.Service<{ readonly id: "some" }>()
    const text = { params: Schema.String, result: Schema.String }
    expect(service).type.toBeCallableWith("some", { ...text, rateLimiters: "unlimited" })
    expect(service).type.not.toBeCallableWith("some", text)
    expect(service).type.not.toBeCallableWith("some", { ...text, rateLimit: 1, rateLimiters: [] })
    expect(service).type.not.toBeCallableWith("some", {
      ...text,
      rateLimit: 1,
      rateLimiterMode: "concurrent_requests",
      timePeriod: "1 minute"
    })
    expect(service).type.not.toBeCallableWith("some", { params: Schema.String, rateLimit: 1 })
    // @ts-expect-error Property 'usage' does not exist on type 'string'
    service("some", { ...text, rateLimit: 1, usage: (result) => result.usage })
    // @ts-expect-error 'retries' does not exist in type
    service("some", { ...text, rateLimit: 1, retries: 3 })
  })
})

describe("ModelQueue.make", () => {
  const Draft = ModelConfig.makeUntyped<string, number>("draft", { rateLimit: 10 })

  test("opens a queue in a scope, without a manager", () => {
    expect(ModelQueue.make(Draft, (request) => Effect.succeed(request.params.length))).type.toBe<
      Effect.Effect<ModelQueue.ModelQueue<string, number, never>, QueueError.RegisterError, Scope.Scope>
    >()
    expect(ModelQueue.make(Claude, processor)).type.toBe<
      Effect.Effect<
        ModelQueue.ModelQueue<P, A, AnthropicError>,
        QueueError.RegisterError,
        Http | Scope.Scope
      >
    >()
  })

  test("checks its processor", () => {
    // @ts-expect-error Type 'string' is not assignable to type 'number'
    ModelQueue.make(Draft, (request) => Effect.succeed(request.params))
  })

  test("its methods have the manager's types, without the model", () => {
    Effect.map(Claude, (queue) => {
      expect(queue.enqueue({ prompt: "a" })).type.toBe<
        Effect.Effect<QueueResponse.Pending<A, AnthropicError>, ModelQueue.AcceptError>
      >()
      expect(queue.awaitCompletion("id")).type.toBe<
        Effect.Effect<
          QueueResponse.Completed<A>,
          AnthropicError | ModelQueue.SubmitError | QueueError.RequestNotFound
        >
      >()
      expect(queue.getStatus("id")).type.toBe<
        Effect.Effect<QueueResponse.QueueResponse<A, AnthropicError>, QueueError.RequestNotFound>
      >()
    })
  })
})
