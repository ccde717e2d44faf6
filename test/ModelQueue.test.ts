import { assert, describe, it } from "@effect/vitest"
import { Context, Deferred, Effect, Exit, Fiber, Layer, Schema, Scope } from "effect"
import { ModelConfig, ModelQueue, QueueError, QueueManager, QueueRequest, RateLimiter } from "effect-llm-queue"

class Claude extends ModelQueue.Service<Claude>()("claude", {
  params: Schema.Struct({ prompt: Schema.String }),
  result: Schema.String,
  error: Schema.Literal("overloaded"),
  rateLimiters: [RateLimiter.concurrent(1)],
  shutdown: { policy: "interrupt" }
}) {}

const ClaudeLive = Claude.layer(({ params }) => {
  if (params.prompt === "never") return Effect.never
  return params.prompt === "fail" ? Effect.fail("overloaded") : Effect.succeed(`You said: ${params.prompt}`)
})

describe("ModelQueue", () => {
  describe("Service", () => {
    it.effect("is a queue as a dependency, with the types of its model", () =>
      Effect.gen(function*() {
        const { result } = yield* Claude.submit({ prompt: "hello" }, { priority: "high" })
        assert.strictEqual(result, "You said: hello")
        assert.strictEqual(yield* Effect.flip(Claude.submit({ prompt: "fail" })), "overloaded")
        const error = yield* Effect.flip(Claude.submit({ prompt: 7 } as never))
        assert(typeof error === "object")
        assert.strictEqual(error._tag, "InvalidRequest")
      }).pipe(Effect.provide(ClaudeLive.pipe(Layer.provide(QueueManager.layer)))))

    it.effect("is a model that the manager's methods accept", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const queue = yield* Claude
        const made = QueueRequest.make(Claude, { params: { prompt: "hello" }, id: "a" })
        assert.strictEqual((yield* manager.submitRequest(made)).result, "You said: hello")
        assert.strictEqual((yield* manager.submit(Claude, { prompt: "again" })).result, "You said: again")
        assert.strictEqual((yield* manager.getStatus(Claude, "a")).status, "completed")
        assert.strictEqual((yield* queue.getStatus("a")).status, "completed")
        assert.deepStrictEqual(yield* manager.getRegisteredModels, ["claude"])
      }).pipe(Effect.provide(ClaudeLive.pipe(Layer.provideMerge(QueueManager.layer)))))

    it.effect("has the methods of the manager, without the model", () =>
      Effect.gen(function*() {
        const queue = yield* Claude
        const pending = yield* queue.enqueue({ prompt: "hello" }, { id: "a" })
        assert.strictEqual(pending.status, "pending")
        assert.strictEqual((yield* queue.awaitCompletion("a")).result, "You said: hello")
        assert.strictEqual((yield* queue.getStatus("a")).status, "completed")
        assert.strictEqual(yield* queue.updateTokenUsage("a", { inputTokens: 1, outputTokens: 2 }), "settled")
        yield* queue.enqueue({ prompt: "never" }, { id: "b" })
        assert.isTrue(yield* queue.cancelRequest("b"))
        assert.strictEqual((yield* queue.getStatus("b")).status, "cancelled")
        assert.strictEqual((yield* queue.getQueueInfo).cancelled, 1)
        assert.strictEqual((yield* Effect.flip(queue.getStatus("c")))._tag, "RequestNotFound")
      }).pipe(Effect.provide(ClaudeLive.pipe(Layer.provide(QueueManager.layer)))))

    it.effect("a layer that was provided twice registers once", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        assert.deepStrictEqual(yield* manager.getRegisteredModels, ["claude"])
      }).pipe(Effect.provide(Layer.mergeAll(ClaudeLive, ClaudeLive).pipe(Layer.provideMerge(QueueManager.layer)))))

    it.effect("what its processor needs is what its layer needs", () =>
      Effect.gen(function*() {
        class Client
          extends Context.Service<Client, { readonly reply: string }>()("effect-llm-queue/test/ModelQueue.test/Client")
        {}
        const Live = Claude.layer(() => Client.use(({ reply }) => Effect.succeed(reply))).pipe(
          Layer.provide(Layer.succeed(Client, Client.of({ reply: "from the client" }))),
          Layer.provide(QueueManager.layer)
        )
        const { result } = yield* Claude.submit({ prompt: "hello" }).pipe(Effect.provide(Live))
        assert.strictEqual(result, "from the client")
      }))
  })

  describe("make", () => {
    it.effect("opens a queue without a manager, until its scope closes", () =>
      Effect.gen(function*() {
        const Draft = ModelConfig.makeUntyped<string, number>("model-queue-make", { rateLimit: 10 })
        const scope = yield* Scope.make()
        const queue = yield* ModelQueue.make(Draft, ({ params }) => Effect.succeed(params.length)).pipe(
          Scope.provide(scope)
        )
        const response = yield* queue.submit("four", { id: "a" })
        assert.strictEqual(response.result, 4)
        assert.strictEqual((yield* queue.getQueueInfo).completed, 1)
        yield* Scope.close(scope, Exit.void)
        const errors = [
          yield* Effect.flip(queue.submit("four", { id: "b" })),
          yield* Effect.flip(queue.enqueue("four")),
          yield* Effect.flip(queue.getQueueInfo),
          yield* Effect.flip(queue.getStatus("a")),
          yield* Effect.flip(queue.awaitCompletion("a")),
          yield* Effect.flip(queue.cancelRequest("a")),
          yield* Effect.flip(queue.updateTokenUsage("a", { inputTokens: 1, outputTokens: 1 }))
        ]
        assert.deepStrictEqual(errors.map(({ _tag }) => _tag), [
          "QueueShutdown",
          "QueueShutdown",
          "QueueShutdown",
          "RequestNotFound",
          "RequestNotFound",
          "RequestNotFound",
          "RequestNotFound"
        ])
      }))

    it.effect("interrupting a submission cancels it", () =>
      Effect.gen(function*() {
        const started = yield* Deferred.make<void>()
        const Draft = ModelConfig.makeUntyped<string, string>("model-queue-interrupt", {
          rateLimiters: [RateLimiter.concurrent(1)]
        })
        const queue = yield* ModelQueue.make(Draft, () =>
          Effect.andThen(Deferred.succeed(started, undefined), Effect.never))
        const submitter = yield* Effect.forkChild(queue.submit("x", { id: "x" }), { startImmediately: true })
        yield* Deferred.await(started)
        yield* Fiber.interrupt(submitter)
        assert.strictEqual((yield* queue.getStatus("x")).status, "cancelled")
      }))

    it.effect("an invalid configuration fails it", () =>
      Effect.gen(function*() {
        const Draft = ModelConfig.makeUntyped<string, string>("model-queue-invalid", { rateLimit: 0 })
        const error = yield* Effect.flip(Effect.scoped(ModelQueue.make(Draft, ({ params }) => Effect.succeed(params))))
        assert.strictEqual(error._tag, "InvalidConfiguration")
      }))
  })

  it.effect("a processor submits to its own service, on the permit it has", () => {
    class Agent extends ModelQueue.Service<Agent>()("own-service", {
      params: Schema.Int,
      result: Schema.String,
      rateLimiters: [RateLimiter.concurrent(1)]
    }) {}
    const AgentLive = Agent.layer((request) =>
      request.params === 0
        ? Effect.succeed("leaf")
        : Agent.submit(request.params - 1).pipe(Effect.map(({ result }) => `(${result})`), Effect.orDie)
    )
    return Effect.gen(function*() {
      assert.strictEqual((yield* Agent.submit(3)).result, "(((leaf)))")
    }).pipe(Effect.provide(AgentLive.pipe(Layer.provide(QueueManager.layer))))
  })

  it.effect("a broken processor is named by the error's message, and the queue's errors can be told from others", () =>
    Effect.gen(function*() {
      const Model = ModelConfig.makeUntyped<string, string, string>("broken", { rateLimiters: "unlimited" })
      const queue = yield* ModelQueue.make(
        Model,
        ({ params }) =>
          params === "own"
            ? Effect.fail("own")
            : Effect.die(params === "odd" ? Object.create(null) : new TypeError("no x"))
      )
      const message = (params: string) =>
        Effect.catchIf(queue.submit(params), QueueError.isQueueError, (error) => Effect.succeed(error.message))
      assert.include(yield* message("bug"), "TypeError: no x")
      assert.include(yield* message("odd"), "broke on request")
      assert.strictEqual(yield* Effect.flip(message("own")), "own")
    }).pipe(Effect.scoped))
})
