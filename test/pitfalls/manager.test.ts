import { assert, describe, it } from "@effect/vitest"
import { Clock, Context, Deferred, type Duration, Effect, Exit, Fiber, Layer, Logger, Schema, Scope } from "effect"
import { ModelConfig, QueueManager, QueueRequest, RateLimiter } from "effect-llm-queue"
import { TestClock } from "effect/testing"

/** Its end waits for nobody, so that a test can leave requests behind. */
const Manager = QueueManager.layerWith({ shutdown: { policy: "interrupt", deadline: 0 } })

const quiet = Logger.layer([])

const submit = <P, A, E>(
  manager: QueueManager.QueueManager["Service"],
  model: ModelConfig.ModelConfig<P, A, E>,
  params: NoInfer<P>,
  options?: QueueRequest.RequestOptions
) => manager.submitRequest(QueueRequest.make(model, { ...options, params, waitForCompletion: false }))

describe("pitfalls: manager", () => {
  it.effect("queues and limits belong to the manager they were registered with, and not to the process", () =>
    Effect.gen(function*() {
      const Shared = ModelConfig.makeUntyped<string, string>("per-manager", { rateLimiters: [RateLimiter.rpm(1)] })
      const Only = ModelConfig.makeUntyped<string, string>("in-the-first-only", { rateLimit: 1 })
      const first = Context.get(yield* Layer.build(Layer.fresh(Manager)), QueueManager.QueueManager)
      const second = Context.get(yield* Layer.build(Layer.fresh(Manager)), QueueManager.QueueManager)
      yield* first.registerQueue(Only, () => Effect.succeed("ok"))
      yield* first.registerQueue(Shared, () => Effect.succeed("first"))
      yield* second.registerQueue(Shared, () => Effect.succeed("second"))
      assert.strictEqual((yield* first.submit(Shared, "a")).result, "first")
      assert.strictEqual((yield* second.submit(Shared, "a")).result, "second")
      assert.deepStrictEqual(yield* second.getRegisteredModels, ["per-manager"])
      assert.strictEqual((yield* Effect.flip(second.submit(Only, "a")))._tag, "ModelNotRegistered")
      yield* first.shutdownAll()
      const info = yield* second.getQueueInfo(Shared)
      assert.deepStrictEqual([info.state, info.completed], ["open", 1])
    }).pipe(Effect.provide(quiet)))

  it.effect("a program can be run again in the same process, with a manager and limits of its own", () =>
    Effect.gen(function*() {
      const Model = ModelConfig.makeUntyped<string, string>("run-again", { rateLimiters: [RateLimiter.rpm(1)] })
      const run = QueueManager.QueueManager.use((manager) => manager.submit(Model, "a")).pipe(
        Effect.provide(
          QueueManager.layerModel(Model, () => Effect.succeed("ok")).pipe(Layer.provideMerge(Layer.fresh(Manager)))
        )
      )
      for (let i = 0; i < 3; i++) assert.strictEqual((yield* run).result, "ok")
    }))

  it.effect("models of different types live in one manager, each with its own types", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Length = ModelConfig.makeUntyped<string, number>("types-length", { rateLimit: 1 })
      const Text = ModelConfig.makeUntyped<{ readonly n: number }, string>("types-text", { rateLimit: 1 })
      yield* manager.registerAllQueues([
        QueueManager.registration(Length, (request) => Effect.succeed(request.params.length)),
        QueueManager.registration(Text, (request) => Effect.succeed(`${request.params.n}`))
      ])
      assert.strictEqual((yield* manager.submit(Length, "four")).result, 4)
      assert.strictEqual((yield* manager.submit(Text, { n: 4 })).result, "4")
    }).pipe(Effect.provide(Manager)))

  it.effect("registering an id twice fails typed and leaves the first registration alone", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const First = ModelConfig.makeUntyped<string, string>("id-twice", { rateLimiters: [RateLimiter.rpm(1)] })
      const Second = ModelConfig.makeUntyped<string, string>("id-twice", { rateLimiters: [RateLimiter.rpm(2)] })
      yield* manager.registerQueue(First, () => Effect.succeed("first"))
      const error = yield* Effect.flip(manager.registerQueue(Second, () => Effect.succeed("second")))
      assert.deepStrictEqual([error._tag, error.modelId], ["ModelAlreadyRegistered", "id-twice"])
      assert.strictEqual((yield* manager.submit(First, "a")).result, "first")
      assert.strictEqual((yield* manager.getQueueInfo(First)).rateLimiters[0]?.limit, 1)
    }).pipe(Effect.provide(Manager)))

  it.effect("a registration can be ended, and the id registered again with other limits", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const First = ModelConfig.makeUntyped<string, string>("id-again", { rateLimiters: [RateLimiter.rpm(1)] })
      const Second = ModelConfig.makeUntyped<string, string>("id-again", { rateLimiters: [RateLimiter.rpm(2)] })
      yield* manager.registerQueue(First, () => Effect.succeed("first"))
      yield* manager.unregisterQueue("id-again")
      assert.strictEqual((yield* Effect.flip(manager.submit(First, "a")))._tag, "ModelNotRegistered")
      yield* manager.registerQueue(Second, () => Effect.succeed("second"))
      assert.strictEqual((yield* manager.submit(Second, "a")).result, "second")
      assert.strictEqual((yield* manager.getQueueInfo(Second)).rateLimiters[0]?.limit, 2)
      const scope = yield* Scope.make()
      yield* manager.unregisterQueue("id-again")
      yield* Scope.provide(manager.registerQueue(First, () => Effect.succeed("first")), scope)
      yield* Scope.close(scope, Exit.void)
      yield* manager.registerQueue(Second, () => Effect.succeed("second"))
    }).pipe(Effect.provide(Manager)))

  it.effect("registering several registers all of them or none, and skips nothing", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const [A, B, C, Bad] = ["all-a", "all-b", "all-c", ""].map((id) =>
        ModelConfig.makeUntyped<string, string>(id, { rateLimit: 1 })
      ) as [Model, Model, Model, Model]
      type Model = ModelConfig.ModelConfig<string, string, never>
      const processor = () => Effect.succeed("ok")
      yield* manager.registerQueue(B, processor)
      const known = yield* Effect.flip(manager.registerAllQueues([A, B, C], processor))
      assert.deepStrictEqual([known._tag, known.modelId], ["ModelAlreadyRegistered", "all-b"])
      assert.strictEqual(
        (yield* Effect.flip(manager.registerAllQueues([A, Bad], processor)))._tag,
        "InvalidConfiguration"
      )
      assert.strictEqual(
        (yield* Effect.flip(manager.registerAllQueues([A, A], processor)))._tag,
        "ModelAlreadyRegistered"
      )
      assert.deepStrictEqual(yield* manager.getRegisteredModels, ["all-b"])
      yield* manager.registerAllQueues([A, C], processor)
      assert.deepStrictEqual(yield* manager.getRegisteredModels, ["all-b", "all-a", "all-c"])
    }).pipe(Effect.provide(Manager)))

  it.effect("the state of a queue tells of every limit, and of what waits, runs and has ended", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string, string>("state", {
        rateLimiters: [RateLimiter.tpm(100), RateLimiter.concurrent(1), RateLimiter.rpm(10)]
      })
      yield* manager.registerQueue(
        Model,
        (request) =>
          request.params === "fails"
            ? Effect.fail("failed")
            : request.params === "runs"
            ? Effect.never
            : Effect.succeed("ok")
      )
      const tokens = { estimatedInputTokens: 10, estimatedOutputTokens: 10 }
      yield* manager.submit(Model, "a", tokens)
      yield* Effect.flip(manager.submit(Model, "fails", tokens))
      yield* submit(manager, Model, "runs", tokens)
      yield* TestClock.adjust(0)
      yield* submit(manager, Model, "waits", tokens)
      yield* manager.cancelRequest(Model, (yield* submit(manager, Model, "cancelled", tokens)).requestId)
      const info = yield* manager.getQueueInfo("state")
      assert.deepStrictEqual(
        [info.modelId, info.state, info.depth, info.running, info.completed, info.failed, info.cancelled],
        ["state", "open", 1, 1, 1, 1, 1]
      )
      assert.deepStrictEqual(
        info.rateLimiters.map((limit) => [limit.type, limit.limit, limit.used, limit.available]),
        [["tpm", 100, 60, 40], ["concurrent", 1, 1, 0], ["rpm", 10, 3, 7]]
      )
      assert.deepStrictEqual(yield* manager.getAllQueuesInfo, new Map([["state", info]]))
    }).pipe(Effect.provide(Manager)))

  it.effect("the shutdown of idle queues takes no time", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const models = ["idle-a", "idle-b", "idle-c"].map((id) =>
        ModelConfig.makeUntyped<string, string>(id, { rateLimiters: [RateLimiter.rpm(1)] })
      )
      yield* manager.registerAllQueues(models, () => Effect.succeed("ok"))
      yield* Effect.forEach(models, (model) => manager.submit(model, "a"))
      // The clock stands still: this ends only if it waits for nothing.
      yield* manager.shutdownAll()
      for (const info of (yield* manager.getAllQueuesInfo).values()) assert.strictEqual(info.state, "closed")
      assert.strictEqual(yield* Clock.currentTimeMillis, 0)
    }).pipe(Effect.provide(QueueManager.layer)))

  it.effect("from the start of a shutdown new requests are refused, and those accepted are answered", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("draining", {
        rateLimiters: [RateLimiter.rpm(1, { timePeriod: "1 second" })]
      })
      yield* manager.registerQueue(Model, (request) => Effect.succeed(request.params))
      const first = yield* submit(manager, Model, "first")
      const second = yield* submit(manager, Model, "second")
      const shutdown = yield* Effect.forkChild(manager.shutdownAll(), { startImmediately: true })
      assert.strictEqual((yield* Effect.flip(manager.submit(Model, "late")))._tag, "QueueShutdown")
      assert.strictEqual(
        (yield* Effect.flip(manager.registerQueue(
          ModelConfig.makeUntyped<string, string>("late", { rateLimit: 1 }),
          () => Effect.succeed("ok")
        )))._tag,
        "QueueShutdown"
      )
      yield* TestClock.adjust("1 second")
      yield* Fiber.join(shutdown)
      for (const [pending, result] of [[first, "first"], [second, "second"]] as const) {
        const status = yield* manager.getStatus(Model, pending.requestId)
        assert(status.status === "completed")
        assert.strictEqual(status.result, result)
      }
      assert.strictEqual((yield* Effect.flip(manager.submit(Model, "later")))._tag, "QueueShutdown")
    }).pipe(Effect.provide(QueueManager.layer)))

  it.effect("a shutdown ends at its deadline, for all queues at once, and tells those it leaves", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const models = ["deadline-a", "deadline-b", "deadline-c"].map((id) =>
        ModelConfig.makeUntyped<string, string>(id, { rateLimiters: [RateLimiter.rpd(1)] })
      )
      yield* manager.registerAllQueues(models, () => Effect.succeed("ok"))
      const left: Array<Fiber.Fiber<{ readonly _tag: string }, unknown>> = []
      for (const model of models) {
        yield* manager.submit(model, "today")
        left.push(yield* Effect.forkChild(Effect.flip(manager.submit(model, "tomorrow"))))
      }
      yield* TestClock.adjust(0)
      const shutdown = yield* Effect.forkChild(manager.shutdownAll({ deadline: "10 seconds" }))
      yield* TestClock.adjust(9999)
      assert.isUndefined(shutdown.pollUnsafe())
      yield* TestClock.adjust(1)
      yield* Fiber.join(shutdown)
      for (const fiber of left) assert.strictEqual((yield* Fiber.join(fiber))._tag, "QueueShutdown")
    }).pipe(Effect.provide(QueueManager.layer)))

  it.effect("nothing of a manager runs on after its end", () =>
    Effect.gen(function*() {
      const test = yield* Clock.Clock
      let asleep = 0
      const counting = new Proxy(test, {
        get: (target, key): unknown =>
          key !== "sleep" ? Reflect.get(target, key) : (duration: Duration.Duration) =>
            Effect.suspend(() => {
              asleep++
              return Effect.ensuring(target.sleep(duration), Effect.sync(() => asleep--))
            })
      })
      let running = 0
      const Model = ModelConfig.makeUntyped<string, string>("no-leftovers", {
        rateLimiters: [RateLimiter.rpm(2), RateLimiter.concurrent(5)],
        timeout: "1 hour"
      })
      yield* Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        yield* manager.registerQueue(Model, () =>
          Effect.acquireUseRelease(
            Effect.sync(() => running++),
            () => Effect.as(Effect.sleep("1 day"), "ok"),
            () => Effect.sync(() => running--)
          ))
        for (const params of ["a", "b", "c"]) yield* submit(manager, Model, params)
        yield* TestClock.adjust(0)
        assert.strictEqual(running, 2)
        assert.isAtLeast(asleep, 3)
      }).pipe(Effect.scoped, Effect.provide(Layer.fresh(Manager)), Effect.provideService(Clock.Clock, counting))
      yield* TestClock.adjust(0)
      assert.deepStrictEqual([running, asleep], [0, 0])
    }))

  it("to make a model or a request does nothing, so that both can be module constants", () => {
    const Wrong = ModelConfig.makeUntyped<string, string>("", { rateLimiters: [RateLimiter.rpm(NaN)], capacity: -1 })
    const request = QueueRequest.make(Wrong, { params: "a", estimatedInputTokens: NaN, timeout: -1 })
    assert.isTrue(request.waitForCompletion)
    assert.isString(request.id)
  })

  it.effect("what is wrong with a request is told at submission, all of it", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.make("wrong-request", { params: Schema.Int, result: Schema.Int, rateLimit: 1 })
      yield* manager.registerQueue(Model, (request) => Effect.succeed(request.params))
      const error = yield* Effect.flip(manager.submit(Model, 1.5, {
        id: "",
        estimatedInputTokens: -1,
        estimatedOutputTokens: NaN,
        timeout: -1,
        priority: NaN
      }))
      assert(error._tag === "InvalidRequest")
      assert.sameMembers(error.problems.map((problem) => problem.split(":")[0]), [
        "id",
        "timeout",
        "priority",
        "params",
        "estimatedInputTokens",
        "estimatedOutputTokens"
      ])
      assert.strictEqual((yield* manager.getQueueInfo(Model)).depth, 0)
    }).pipe(Effect.provide(Manager)))

  it.effect("what the queue has to say goes to the application's logger", () => {
    const lines: Array<string> = []
    const Model = ModelConfig.makeUntyped<string, string>("logged", {
      rateLimit: 1,
      usage: () => {
        throw new Error("no usage in this result")
      }
    })
    return Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      yield* manager.registerQueue(Model, () => Effect.succeed("ok"))
      yield* manager.submit(Model, "a")
      assert.strictEqual(lines.length, 1)
      assert.include(lines[0], "no usage in this result")
      assert.include(lines[0], "logged")
    }).pipe(
      Effect.provide(Layer.merge(
        Manager,
        Logger.layer([Logger.make(({ logLevel, message }) => void lines.push(`${logLevel} ${String(message)}`))])
      ))
    )
  })

  it.effect("a result comes to whoever awaits it, early or late, and as often as it is asked for", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("awaited", { rateLimit: 1 })
      const gate = yield* Deferred.make<void>()
      yield* manager.registerQueue(Model, () => Effect.as(Deferred.await(gate), "ok"))
      const pending = yield* submit(manager, Model, "a")
      const early = yield* Effect.forkChild(manager.awaitCompletion(pending))
      yield* TestClock.adjust(0)
      yield* Deferred.succeed(gate, undefined)
      assert.strictEqual((yield* Fiber.join(early)).result, "ok")
      assert.strictEqual((yield* manager.awaitCompletion(pending)).result, "ok")
      assert.strictEqual((yield* manager.awaitCompletion(Model, pending.requestId)).result, "ok")
    }).pipe(Effect.provide(Manager)))
})
