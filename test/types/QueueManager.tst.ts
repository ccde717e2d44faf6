// @effect-diagnostics floatingEffect:off missingEffectError:off
// oxlint-disable typescript/unbound-method -- nothing is called here, only types are looked at
import { type Cause, Context, Effect, Layer, Schema, type Scope, type Stream } from "effect"
import {
  ModelConfig,
  type QueueError,
  QueueManager,
  QueueRequest,
  type QueueResponse,
  RateLimiter
} from "effect-llm-queue"
import { describe, expect, test } from "tstyche"

class OpenAiError extends Schema.TaggedError<OpenAiError>()("OpenAiError", { status: Schema.Int }) {}
class OtherError extends Schema.TaggedError<OtherError>()("OtherError", {}) {}

class Http extends Context.Service<Http, { readonly call: (prompt: string) => Effect.Effect<string> }>()(
  "effect-llm-queue/test/types/QueueManager.tst/Http"
) {}
class Db extends Context.Service<Db, { readonly find: (key: string) => Effect.Effect<string> }>()(
  "effect-llm-queue/test/types/QueueManager.tst/Db"
) {}

const Gpt4 = ModelConfig.make("gpt-4", {
  params: Schema.Struct({ prompt: Schema.String }),
  result: Schema.Struct({ text: Schema.String }),
  error: OpenAiError,
  rateLimit: 1
})
type P = { readonly prompt: string }
type A = { readonly text: string }

const Echo = ModelConfig.make("echo", { params: Schema.String, result: Schema.String, rateLimit: 1 })
const Echo2 = ModelConfig.make("echo-2", { params: Schema.String, result: Schema.String, rateLimit: 1 })

declare const manager: QueueManager.QueueManager["Service"]

const Manager = QueueManager.QueueManager

describe("submit", () => {
  test("gives the completed response, and fails with the model's error or the queue's", () => {
    expect(manager.submit(Gpt4, { prompt: "a" }, { priority: "high", timeout: "30 seconds" })).type.toBe<
      Effect.Effect<QueueResponse.Completed<A>, OpenAiError | QueueError.SubmitError>
    >()
    expect(Manager.use((manager) => manager.submit(Gpt4, { prompt: "a" }))).type.toBe<
      Effect.Effect<QueueResponse.Completed<A>, OpenAiError | QueueError.SubmitError, QueueManager.QueueManager>
    >()
  })

  test("of a model without errors fails with nothing but the queue's", () => {
    expect(manager.submit(Echo, "a")).type.toBe<
      Effect.Effect<QueueResponse.Completed<string>, QueueError.SubmitError>
    >()
  })

  test("the result is the model's, and no any", () => {
    const text = Effect.map(manager.submit(Gpt4, { prompt: "a" }), (response) => response.result.text)
    expect(text).type.toBe<Effect.Effect<string, OpenAiError | QueueError.SubmitError>>()
    // @ts-expect-error Property 'txt' does not exist on type
    Effect.map(manager.submit(Gpt4, { prompt: "a" }), (response) => response.result.txt)
  })

  test("refuses wrong parameters, options and models", () => {
    expect(manager.submit).type.toBeCallableWith(Echo, "a")
    expect(manager.submit).type.not.toBeCallableWith(Echo, 1)
    expect(manager.submit).type.not.toBeCallableWith(Gpt4, { promt: "a" })
    expect(manager.submit).type.not.toBeCallableWith(Gpt4, "a")
    expect(manager.submit).type.not.toBeCallableWith(Echo, "a", { priority: "urgent" })
    expect(manager.submit).type.not.toBeCallableWith(Echo, "a", { waitForCompletion: false })
    expect(manager.submit).type.not.toBeCallableWith("echo", "a")
  })

  test("a generic function of a model keeps what it infers", () => {
    const ask = <A, E>(model: ModelConfig.ModelConfig<string, A, E>) =>
      Manager.use((manager) => manager.submit(model, "x"))
    expect(ask(Echo)).type.toBe<
      Effect.Effect<QueueResponse.Completed<string>, QueueError.SubmitError, QueueManager.QueueManager>
    >()
    const Other = ModelConfig.make("o", {
      params: Schema.String,
      result: Schema.Int,
      error: OpenAiError,
      rateLimit: 1
    })
    expect(ask(Other)).type.toBe<
      Effect.Effect<QueueResponse.Completed<number>, OpenAiError | QueueError.SubmitError, QueueManager.QueueManager>
    >()
    // @ts-expect-error is not assignable to parameter of type 'ModelConfig<string
    ask(Gpt4)
  })

  test("a generic function of parameters too keeps what it infers", () => {
    const ask = <P, A, E>(model: ModelConfig.ModelConfig<P, A, E>, params: NoInfer<P>) =>
      Manager.use((manager) =>
        manager.submitRequest(QueueRequest.make(model, { params, waitForCompletion: false })).pipe(
          Effect.flatMap((pending) => manager.awaitCompletion(pending)),
          Effect.map((response) => response.result)
        )
      )
    expect(ask(Gpt4, { prompt: "a" })).type.toBe<
      Effect.Effect<
        A,
        OpenAiError | QueueError.SubmitError | QueueError.RequestNotFound,
        QueueManager.QueueManager
      >
    >()
  })
})

describe("operators", () => {
  test("dead letters have the types of their model, and so has what is submitted again", () => {
    expect(manager.deadLetters(Gpt4)).type.toBe<
      Effect.Effect<ReadonlyArray<QueueResponse.DeadLetter<P, A, OpenAiError>>, QueueError.ModelNotRegistered>
    >()
    expect(manager.resubmitDeadLetter(Gpt4, "id")).type.toBe<
      Effect.Effect<QueueResponse.Pending<A, OpenAiError>, QueueError.AcceptError | QueueError.RequestNotFound>
    >()
    // By its id alone the types of a model are not known.
    expect(manager.deadLetters("gpt-4")).type.toBe<
      Effect.Effect<
        ReadonlyArray<QueueResponse.DeadLetter<unknown, unknown, unknown>>,
        QueueError.ModelNotRegistered
      >
    >()
  })

  test("a filter and a priority are what a request can have", () => {
    expect(manager.cancelRequests).type.toBeCallableWith("gpt-4", { priority: "low", status: "pending", tenant: "a" })
    expect(manager.cancelRequests).type.not.toBeCallableWith("gpt-4", { priority: "urgent" })
    expect(manager.cancelRequests).type.not.toBeCallableWith("gpt-4", { status: "completed" })
    expect(manager.changePriority).type.not.toBeCallableWith("gpt-4", "id", "urgent")
  })

  test("a context changes nothing but the requests inside", () => {
    const program = manager.submit(Gpt4, { prompt: "a" })
    expect(QueueManager.withTenant(program, "t")).type.toBe<typeof program>()
    expect(program.pipe(QueueManager.withPriority("high"))).type.toBe<typeof program>()
    expect(QueueManager.withPriority).type.not.toBeCallableWith(program, "urgent")
    expect(QueueManager.withLabels).type.not.toBeCallableWith(program, { a: 1 })
  })
})

describe("awaitCompletion", () => {
  type Awaited = Effect.Effect<
    QueueResponse.Completed<A>,
    OpenAiError | QueueError.SubmitError | QueueError.RequestNotFound
  >

  test("by the ticket of a submission", () => {
    const ticket = manager.submitRequest(QueueRequest.make(Gpt4, { params: { prompt: "a" }, waitForCompletion: false }))
    const end = Effect.flatMap(ticket, (pending) => {
      expect(manager.awaitCompletion(pending)).type.toBe<Awaited>()
      return manager.awaitCompletion(pending)
    })
    expect(end).type.toBe<Awaited>()
  })

  test("by model and id", () => {
    expect(manager.awaitCompletion(Gpt4, "id")).type.toBe<Awaited>()
  })

  test("refuses a model's name, and a response that is no ticket", () => {
    expect(manager.awaitCompletion).type.not.toBeCallableWith("gpt-4", "id")
    expect(manager.awaitCompletion).type.not.toBeCallableWith(Gpt4)
    expect(manager.awaitCompletion).type.not.toBeCallableWith({ requestId: "id", modelId: "gpt-4" })
  })
})

describe("getStatus", () => {
  type NotKnown = QueueError.ModelNotRegistered | QueueError.RequestNotFound

  test("by a model knows the types", () => {
    expect(manager.getStatus(Gpt4, "id")).type.toBe<
      Effect.Effect<QueueResponse.QueueResponse<A, OpenAiError>, NotKnown>
    >()
  })

  test("by a model's name knows none", () => {
    expect(manager.getStatus("gpt-4", "id")).type.toBe<
      Effect.Effect<QueueResponse.QueueResponse<unknown, unknown>, NotKnown>
    >()
  })

  test("narrows on the status", () => {
    const narrow = (response: QueueResponse.QueueResponse<A, OpenAiError>) => {
      switch (response.status) {
        case "pending":
          expect(response).type.toBe<QueueResponse.Pending<A, OpenAiError>>()
          return
        case "processing":
          expect(response).type.toBe<QueueResponse.Processing>()
          return
        case "completed":
          expect(response).type.toBe<QueueResponse.Completed<A>>()
          expect(response.result).type.toBe<A>()
          return
        case "failed":
          expect(response).type.toBe<QueueResponse.Failed<OpenAiError>>()
          expect(response.cause).type.toBe<Cause.Cause<OpenAiError | QueueError.SubmitError>>()
          return
        case "cancelled":
          expect(response).type.toBe<QueueResponse.Cancelled>()
          return
        default: {
          const none: never = response
          return none
        }
      }
    }
    expect(manager.getStatus(Gpt4, "id").pipe(Effect.map(narrow))).type.toBeAssignableTo<
      Effect.Effect<unknown, NotKnown>
    >()
  })

  test("a result is there only when the request completed", () => {
    expect<QueueResponse.QueueResponse<A, OpenAiError>>().type.not.toHaveProperty("result")
    expect<QueueResponse.Completed<A>>().type.toHaveProperty("result")
    expect<QueueResponse.Processing>().type.not.toHaveProperty("result")
    expect<QueueResponse.RequestStatus>().type.toBe<
      "pending" | "processing" | "completed" | "failed" | "cancelled"
    >()
  })
})

describe("registerQueue", () => {
  test("needs a scope and what the processor needs", () => {
    expect(manager.registerQueue(Echo, (request) => Http.use((http) => http.call(request.params)))).type.toBe<
      Effect.Effect<void, QueueError.RegisterError, Http | Scope.Scope>
    >()
    expect(manager.registerQueue(Echo, (request) => Effect.succeed(request.params))).type.toBe<
      Effect.Effect<void, QueueError.RegisterError, Scope.Scope>
    >()
  })

  test("the processor knows its request, and may fail with less than the declared error", () => {
    manager.registerQueue(Gpt4, (request) => {
      expect(request).type.toBe<QueueRequest.QueueRequest<P, A, OpenAiError, boolean>>()
      return Effect.succeed({ text: request.params.prompt })
    })
    manager.registerQueue(Gpt4, () => Effect.fail(new OpenAiError({ status: 500 })))
    manager.registerQueue(Gpt4, () => Effect.never)
  })

  test("a processor with an undeclared error or another result does not compile", () => {
    // @ts-expect-error Property 'status' is missing in type 'OtherError'
    manager.registerQueue(Gpt4, () => Effect.fail(new OtherError()))
    // @ts-expect-error Type 'OpenAiError' is not assignable to type 'never'
    manager.registerQueue(Echo, () => Effect.fail(new OpenAiError({ status: 500 })))
    // @ts-expect-error Type 'number' is not assignable to type 'string'
    manager.registerQueue(Echo, () => Effect.succeed(1))
    // @ts-expect-error is not assignable to type 'Effect<string, never
    manager.registerQueue(Echo, () => "text")
  })

  test("fails with the errors of registration alone", () => {
    expect<QueueError.RegisterError["_tag"]>().type.toBe<
      "InvalidConfiguration" | "ModelAlreadyRegistered" | "QueueShutdown" | "LimitConflict" | "QueueUnavailable"
    >()
  })
})

describe("several models", () => {
  const gpt4 = QueueManager.registration(
    Gpt4,
    (request) => Effect.map(Http.use((http) => http.call(request.params.prompt)), (text) => ({ text }))
  )
  const echo = QueueManager.registration(Echo, (request) => Db.use((db) => db.find(request.params)))

  test("a registration carries what its processor needs", () => {
    expect(gpt4).type.toBe<QueueManager.Registration<Http>>()
    expect(QueueManager.registration(Echo, (request) => Effect.succeed(request.params))).type.toBe<
      QueueManager.Registration<never>
    >()
  })

  test("a registration's processor is checked like any other", () => {
    // @ts-expect-error Type 'OpenAiError' is not assignable to type 'never'
    QueueManager.registration(Echo, () => Effect.fail(new OpenAiError({ status: 500 })))
    // @ts-expect-error Type 'number' is not assignable to type 'string'
    QueueManager.registration(Echo, () => Effect.succeed(1))
    // @ts-expect-error Type 'number' is not assignable to type 'string'
    QueueManager.layerModels(QueueManager.registration(Echo, () => Effect.succeed(1)))
  })

  test("registerAllQueues of registrations needs the union of what they need", () => {
    expect(manager.registerAllQueues([gpt4, echo])).type.toBe<
      Effect.Effect<void, QueueError.RegisterError, Http | Db | Scope.Scope>
    >()
    expect(manager.registerAllQueues([
      QueueManager.registration(Echo, (request) => Db.use((db) => db.find(request.params))),
      QueueManager.registration(Gpt4, (request) => Effect.succeed({ text: request.params.prompt }))
    ])).type.toBe<Effect.Effect<void, QueueError.RegisterError, Db | Scope.Scope>>()
    const list: ReadonlyArray<QueueManager.Registration<Http | Db>> = [gpt4, echo]
    expect(manager.registerAllQueues(list)).type.toBe<
      Effect.Effect<void, QueueError.RegisterError, Http | Db | Scope.Scope>
    >()
  })

  test("registerAllQueues of models of one type takes one processor", () => {
    expect(manager.registerAllQueues([Echo, Echo2], (request) => Effect.succeed(request.params))).type.toBe<
      Effect.Effect<void, QueueError.RegisterError, Scope.Scope>
    >()
    expect(manager.registerAllQueues([Echo, Echo2], (request) => Db.use((db) => db.find(request.params)))).type.toBe<
      Effect.Effect<void, QueueError.RegisterError, Db | Scope.Scope>
    >()
  })

  test("models of different types with one processor do not compile", () => {
    expect(manager.registerAllQueues).type.not.toBeCallableWith([Echo, Gpt4], () => Effect.never)
    expect(manager.registerAllQueues).type.not.toBeCallableWith([Echo, Gpt4], () => Effect.succeed("text"))
    expect(manager.registerAllQueues).type.not.toBeCallableWith([Echo, Echo2])
    expect(manager.registerAllQueues).type.not.toBeCallableWith([Echo], () => Effect.succeed(1))
  })
})

describe("layers", () => {
  test("a manager needs nothing and cannot fail", () => {
    expect(QueueManager.layer).type.toBe<Layer.Layer<QueueManager.QueueManager>>()
    expect(QueueManager.layerWith({ shutdown: { policy: "drain", deadline: "1 minute" } })).type.toBe<
      Layer.Layer<QueueManager.QueueManager>
    >()
  })

  test("layerModel needs the manager and what the processor needs, but no scope", () => {
    const live = QueueManager.layerModel(
      Gpt4,
      Effect.fnUntraced(function*(request) {
        const http = yield* Http
        yield* Effect.acquireRelease(Effect.void, () => Effect.void)
        if (request.params.prompt === "") return yield* new OpenAiError({ status: 400 })
        return { text: yield* http.call(request.params.prompt) }
      })
    )
    expect(live).type.toBe<Layer.Layer<never, QueueError.RegisterError, QueueManager.QueueManager | Http>>()
    expect(QueueManager.layerModel(Echo, (request) => Effect.succeed(request.params))).type.toBe<
      Layer.Layer<never, QueueError.RegisterError, QueueManager.QueueManager>
    >()
    expect(QueueManager.layerModel(Echo, () => Effect.as(Effect.scope, "text"))).type.toBe<
      Layer.Layer<never, QueueError.RegisterError, QueueManager.QueueManager>
    >()
  })

  test("layerModel checks its processor", () => {
    // @ts-expect-error Type 'OpenAiError' is not assignable to type 'never'
    QueueManager.layerModel(Echo, () => Effect.fail(new OpenAiError({ status: 500 })))
    // @ts-expect-error Type 'number' is not assignable to type 'string'
    QueueManager.layerModel(Echo, () => Effect.succeed(1))
  })

  test("layerModels needs the union of what the processors need, but no scope", () => {
    expect(QueueManager.layerModels(
      QueueManager.registration(
        Gpt4,
        (request) => Effect.map(Http.use((http) => http.call(request.params.prompt)), (text) => ({ text }))
      ),
      QueueManager.registration(
        Echo,
        (request) => Effect.andThen(Effect.scope, Db.use((db) => db.find(request.params)))
      )
    )).type.toBe<Layer.Layer<never, QueueError.RegisterError, QueueManager.QueueManager | Http | Db>>()
    expect(QueueManager.layerModels()).type.toBe<
      Layer.Layer<never, QueueError.RegisterError, QueueManager.QueueManager>
    >()
  })

  test("a program that still needs the manager, or a processor's service, does not run", () => {
    const program = Manager.use((manager) => manager.submit(Gpt4, { prompt: "a" }))
    const live = QueueManager.layerModel(
      Gpt4,
      (request) => Effect.map(Http.use((http) => http.call(request.params.prompt)), (text) => ({ text }))
    )
    const HttpLive = Layer.succeed(Http, { call: Effect.succeed })
    expect(Effect.runPromise).type.not.toBeCallableWith(program)
    expect(Effect.runPromise).type.not.toBeCallableWith(
      program.pipe(Effect.provide(live.pipe(Layer.provideMerge(QueueManager.layer))))
    )
    expect(Effect.runPromise).type.toBeCallableWith(
      program.pipe(Effect.provide(live.pipe(Layer.provideMerge(QueueManager.layer), Layer.provide(HttpLive))))
    )
  })
})

describe("the other methods", () => {
  test("have exact types", () => {
    expect(manager.unregisterQueue("gpt-4")).type.toBe<Effect.Effect<void, QueueError.ModelNotRegistered>>()
    expect(manager.cancelRequest(Gpt4, "id")).type.toBe<
      Effect.Effect<boolean, QueueError.ModelNotRegistered | QueueError.RequestNotFound>
    >()
    expect(manager.getQueueInfo(Gpt4)).type.toBe<
      Effect.Effect<QueueManager.QueueInfo, QueueError.ModelNotRegistered>
    >()
    expect(manager.getAllQueuesInfo).type.toBe<Effect.Effect<ReadonlyMap<string, QueueManager.QueueInfo>>>()
    expect(manager.getRegisteredModels).type.toBe<Effect.Effect<ReadonlyArray<string>>>()
    expect(manager.updateTokenUsage(Gpt4, "id", { inputTokens: 1, outputTokens: 1 })).type.toBe<
      Effect.Effect<
        RateLimiter.Settlement,
        QueueError.ModelNotRegistered | QueueError.RequestNotFound | QueueError.InvalidRequest
      >
    >()
    expect(manager.updateRateLimiters(Gpt4, [RateLimiter.rpm(1)])).type.toBe<
      Effect.Effect<void, QueueError.ModelNotRegistered | QueueError.InvalidConfiguration>
    >()
    expect(manager.updateRateLimiters).type.toBeCallableWith("gpt-4", "unlimited")
    expect(manager.updateRateLimiters).type.not.toBeCallableWith("gpt-4", "none")
    expect(manager.shutdownAll({ policy: "interrupt", deadline: "1 second" })).type.toBe<Effect.Effect<void>>()
    expect(manager.events).type.toBe<Stream.Stream<QueueResponse.QueueResponse<unknown, unknown>>>()
  })

  test("the state of a queue has the names of its documentation, and no others", () => {
    expect<QueueManager.QueueInfo>().type.toHaveProperty("rateLimiters")
    expect<QueueManager.QueueInfo>().type.not.toHaveProperty("rate_limit")
    expect<QueueManager.QueueInfo["rateLimiters"]>().type.toBe<ReadonlyArray<RateLimiter.Usage>>()
  })
})
