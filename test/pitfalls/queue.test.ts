import { assert, describe, it } from "@effect/vitest"
import { Cause, Clock, Context, Deferred, Duration, Effect, Exit, Fiber, Layer, Schedule, Schema } from "effect"
import { ModelConfig, ProviderProfile, QueueError, QueueManager, QueueRequest, RateLimiter } from "effect-llm-queue"
import { TestClock } from "effect/testing"
import { setImmediate } from "node:timers/promises"
import { setFlagsFromString } from "node:v8"
import { runInNewContext } from "node:vm"

setFlagsFromString("--expose-gc")
const collectGarbage: () => void = runInNewContext("gc")

/** Its end waits for nobody, so that a test can leave requests behind. */
const Manager = QueueManager.layerWith({ shutdown: { policy: "interrupt", deadline: 0 } })

const submit = <P, A, E>(
  manager: QueueManager.QueueManager["Service"],
  model: ModelConfig.ModelConfig<P, A, E>,
  params: NoInfer<P>,
  options?: QueueRequest.RequestOptions
) => manager.submitRequest(QueueRequest.make(model, { ...options, params, waitForCompletion: false }))

class Refused extends Schema.TaggedError<Refused>()("Refused", { status: Schema.Int }) {}

describe("pitfalls: queue", () => {
  it.effect("as many requests run at one time as the limit allows, and never more", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<number, number>("five-at-once", {
        rateLimiters: [RateLimiter.concurrent(5)]
      })
      let running = 0
      const seen: Array<number> = []
      yield* manager.registerQueue(Model, (request) =>
        Effect.sync(() => seen.push(++running)).pipe(
          Effect.andThen(Effect.sleep("200 millis")),
          Effect.andThen(Effect.sync(() => (running--, request.params)))
        ))
      const all = yield* Effect.forkChild(
        Effect.forEach(Array.from({ length: 12 }, (_, i) => i), (i) => manager.submit(Model, i), {
          concurrency: "unbounded"
        })
      )
      yield* TestClock.adjust(0)
      assert.deepStrictEqual(seen, [1, 2, 3, 4, 5])
      assert.strictEqual((yield* manager.getQueueInfo(Model)).depth, 7)
      yield* TestClock.adjust(400)
      assert.strictEqual(Math.max(...seen), 5)
      yield* TestClock.adjust(200)
      assert.strictEqual((yield* Fiber.join(all)).length, 12)
    }).pipe(Effect.provide(Manager)))

  it.effect("without a limit on concurrency all requests of a period start at once, however long each takes", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<number, string>("a-minute-at-once", {
        rateLimiters: [RateLimiter.rpm(500)]
      })
      let started = 0
      yield* manager.registerQueue(Model, () => Effect.andThen(Effect.sync(() => started++), Effect.never))
      for (let i = 0; i < 600; i++) yield* submit(manager, Model, i)
      yield* TestClock.adjust(0)
      assert.strictEqual(started, 500)
    }).pipe(Effect.provide(Manager)))

  it.effect("a small request with priority does not wait behind a large one that does not fit yet", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("no-blocked-head", { rateLimiters: [RateLimiter.tpm(100)] })
      const started: Array<string> = []
      yield* manager.registerQueue(Model, (request) => Effect.sync(() => (started.push(request.params), "ok")))
      const tokens = (n: number) => ({ estimatedInputTokens: n, estimatedOutputTokens: 0 })
      yield* submit(manager, Model, "first", tokens(90))
      yield* TestClock.adjust(0)
      yield* submit(manager, Model, "large", tokens(100))
      yield* submit(manager, Model, "small", { ...tokens(1), priority: "high" })
      yield* TestClock.adjust(0)
      assert.deepStrictEqual(started, ["first", "small"])
    }).pipe(Effect.provide(Manager)))

  it.effect("a processor's error reaches the caller and the status as itself, with its class, data and cause", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.make("error-kept", {
        params: Schema.String,
        result: Schema.String,
        error: Refused,
        rateLimiters: "unlimited"
      })
      class Trace extends Context.Service<Trace, string>()("effect-llm-queue/test/pitfalls/queue.test/Trace") {}
      const error = new Refused({ status: 418 })
      const cause = Cause.annotate(Cause.fail(error), Context.make(Trace, "where it happened"))
      yield* manager.registerQueue(Model, () => Effect.failCause(cause))
      const exit = yield* Effect.exit(manager.submit(Model, "a", { id: "the request" }))
      assert(Exit.isFailure(exit))
      assert.strictEqual(Cause.squash(exit.cause), error)
      const status = yield* manager.getStatus(Model, "the request")
      assert(status.status === "failed")
      assert.strictEqual(Cause.squash(status.cause), error)
      for (const kept of [exit.cause, status.cause]) {
        assert.strictEqual(
          Context.get(Cause.reasonAnnotations(kept.reasons[0]!) as Context.Context<Trace>, Trace),
          "where it happened"
        )
      }
    }).pipe(Effect.provide(Manager)))

  it.effect("a defect keeps the error that was thrown, even one without a message", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("defect-kept", { rateLimiters: "unlimited" })
      const bug = new RangeError()
      yield* manager.registerQueue(Model, (request) => {
        if (request.params === "synchronous") throw bug
        return Effect.die(bug)
      })
      for (const params of ["synchronous", "in the effect"]) {
        const error = yield* Effect.flip(manager.submit(Model, params))
        assert(error._tag === "ProcessingError")
        assert(Cause.isCause(error.cause))
        assert.strictEqual(Cause.squash(error.cause), bug)
      }
    }).pipe(Effect.provide(Manager)))

  it.effect("a processor that interrupts itself hurts its own request and not the queue", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("self-interruption", {
        rateLimiters: [RateLimiter.concurrent(1)]
      })
      yield* manager.registerQueue(Model, (request) => {
        switch (request.params) {
          case "interrupts":
            return Effect.interrupt
          case "is interrupted":
            return Effect.withFiber((fiber) => {
              fiber.interruptUnsafe()
              return Effect.never
            })
          default:
            return Effect.succeed("ok")
        }
      })
      for (const params of ["interrupts", "is interrupted"]) {
        assert.strictEqual((yield* Effect.flip(manager.submit(Model, params)))._tag, "ProcessingError")
        assert.strictEqual((yield* manager.submit(Model, "good")).result, "ok")
      }
      assert.strictEqual((yield* manager.getQueueInfo(Model)).running, 0)
    }).pipe(Effect.provide(Manager)))

  it.effect("a second request with the id of an active or a retained one is refused, and the first is untouched", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("same-id", { rateLimiters: [RateLimiter.concurrent(1)] })
      const gate = yield* Deferred.make<void>()
      yield* manager.registerQueue(Model, (request) => Effect.as(Deferred.await(gate), request.params))
      const pending = yield* submit(manager, Model, "first", { id: "mine" })
      const again = Effect.flip(submit(manager, Model, "second", { id: "mine" }))
      assert.strictEqual((yield* again)._tag, "DuplicateRequest")
      yield* Deferred.succeed(gate, undefined)
      assert.strictEqual((yield* manager.awaitCompletion(pending)).result, "first")
      assert.strictEqual((yield* again)._tag, "DuplicateRequest")
    }).pipe(Effect.provide(Manager)))

  it.effect("the request of an interrupted caller does not run, wherever it waits", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("caller-gone", {
        rateLimiters: [RateLimiter.concurrent(1)],
        capacity: 1
      })
      const started: Array<string> = []
      const interrupted: Array<string> = []
      const gate = yield* Deferred.make<void>()
      yield* manager.registerQueue(Model, (request) =>
        Effect.sync(() => started.push(request.params)).pipe(
          Effect.andThen(request.params === "last" ? Effect.succeed("ok") : Effect.as(Deferred.await(gate), "ok")),
          Effect.onInterrupt(() => Effect.sync(() => interrupted.push(request.params)))
        ))
      const call = (params: string) =>
        Effect.tap(
          Effect.forkChild(manager.submit(Model, params), { startImmediately: true }),
          () => TestClock.adjust(0)
        )
      const processing = yield* call("processing")
      const waiting = yield* call("waiting")
      const suspended = yield* call("suspended")
      yield* Fiber.interrupt(suspended)
      yield* Fiber.interrupt(waiting)
      yield* Fiber.interrupt(processing)
      yield* TestClock.adjust(0)
      assert.strictEqual((yield* manager.submit(Model, "last")).result, "ok")
      assert.deepStrictEqual(started, ["processing", "last"])
      assert.deepStrictEqual(interrupted, ["processing"])
    }).pipe(Effect.provide(Manager)))

  it.effect("a queue is bounded, and a caller waits no longer than its timeout", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("bounded", {
        rateLimiters: [RateLimiter.concurrent(1)],
        capacity: 2,
        strategy: "reject"
      })
      yield* manager.registerQueue(Model, () => Effect.never)
      const caller = yield* Effect.forkChild(Effect.flip(manager.submit(Model, "processing", { timeout: "5 seconds" })))
      yield* TestClock.adjust(0)
      yield* submit(manager, Model, "a")
      yield* submit(manager, Model, "b", { timeout: "1 second", id: "b" })
      assert.strictEqual((yield* Effect.flip(submit(manager, Model, "c")))._tag, "QueueFull")
      yield* TestClock.adjust("5 seconds")
      assert.strictEqual((yield* Fiber.join(caller))._tag, "QueueTimeout")
      const error = yield* Effect.flip(manager.awaitCompletion(Model, "b"))
      assert(error._tag === "QueueTimeout")
      assert.deepStrictEqual([error.queueTimeMillis, error.processingTimeMillis], [1000, 0])
    }).pipe(Effect.provide(Manager)))

  it.effect("the status of a request that nobody waited for holds its result and its times", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("status-result", {
        rateLimiters: [RateLimiter.concurrent(1)]
      })
      yield* manager.registerQueue(Model, (request) => Effect.as(Effect.sleep("2 seconds"), request.params))
      const first = yield* submit(manager, Model, "first")
      const second = yield* submit(manager, Model, "second")
      yield* TestClock.adjust("3 seconds")
      const running = yield* manager.getStatus(Model, second.requestId)
      assert.strictEqual(running.status, "processing")
      assert.deepStrictEqual([running.queueTime, running.processingTime], [Duration.seconds(2), Duration.seconds(1)])
      yield* TestClock.adjust("10 seconds")
      for (const [pending, result, queued] of [[first, "first", 0], [second, "second", 2]] as const) {
        const status = yield* manager.getStatus(Model, pending.requestId)
        assert(status.status === "completed")
        assert.strictEqual(status.result, result)
        assert.deepStrictEqual(status.queueTime, Duration.seconds(queued))
        assert.deepStrictEqual(status.processingTime, Duration.seconds(2))
        assert.deepStrictEqual([status.attempts, status.createdAt], [1, 0])
        assert.strictEqual((yield* manager.awaitCompletion(pending)).result, result)
      }
    }).pipe(Effect.provide(Manager)))

  it.effect("a status is a plain word, and there is one for being cancelled", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("status-words", {
        rateLimiters: [RateLimiter.concurrent(1)]
      })
      yield* manager.registerQueue(Model, () => Effect.never)
      yield* submit(manager, Model, "a", { id: "a" })
      yield* submit(manager, Model, "b", { id: "b" })
      yield* submit(manager, Model, "c", { id: "c", timeout: 1 })
      yield* TestClock.adjust(1)
      yield* manager.cancelRequest(Model, "b")
      const word = (id: string) => Effect.map(manager.getStatus(Model, id), (response): string => response.status)
      assert.deepStrictEqual([yield* word("a"), yield* word("b"), yield* word("c")], [
        "processing",
        "cancelled",
        "failed"
      ])
    }).pipe(Effect.provide(Manager)))

  it.effect("what waits and what runs are counted apart", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("counted-apart", {
        rateLimiters: [RateLimiter.concurrent(2)]
      })
      yield* manager.registerQueue(Model, () => Effect.never)
      for (const params of ["a", "b", "c", "d", "e"]) yield* submit(manager, Model, params)
      yield* TestClock.adjust(0)
      const info = yield* manager.getQueueInfo(Model)
      assert.deepStrictEqual([info.running, info.depth], [2, 3])
    }).pipe(Effect.provide(Manager)))

  it.effect("as many finished requests are kept as the configuration says, the newest, and no longer than it says", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<number, number>("retention", {
        rateLimiters: "unlimited",
        retention: { count: 10, age: "1 minute" }
      })
      yield* manager.registerQueue(Model, (request) => Effect.succeed(request.params))
      for (let i = 0; i < 11; i++) yield* manager.submit(Model, i, { id: `request ${i}` })
      const known = Effect.filter(
        Array.from({ length: 11 }, (_, i) => i),
        (i) => Effect.isSuccess(manager.getStatus(Model, `request ${i}`))
      )
      assert.deepStrictEqual(yield* known, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
      yield* TestClock.adjust(59_999)
      assert.strictEqual((yield* known).length, 10)
      yield* TestClock.adjust(1)
      assert.deepStrictEqual(yield* known, [])
    }).pipe(Effect.provide(Manager)))

  it.effect("what is known of a finished request holds its result and not its parameters", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<{ readonly prompt: string }, string>("no-prompts", {
        rateLimiters: "unlimited"
      })
      const held: Array<QueueRequest.QueueRequest<{ readonly prompt: string }, string, never, boolean>> = []
      yield* manager.registerQueue(Model, (request) => Effect.sync(() => (held.push(request), "ok")))
      const response = yield* manager.submit(Model, { prompt: "a secret" }, { metadata: { user: "a secret" } })
      const status = yield* manager.getStatus(Model, response.requestId)
      const pending = yield* submit(manager, Model, { prompt: "a secret" })
      for (const known of [response, status, pending]) assert.notInclude(JSON.stringify(known), "secret")
      assert.strictEqual(held[0]?.params.prompt, "a secret")
    }).pipe(Effect.provide(Manager)))

  it.effect("the parameters of a finished request are let go, while its status and result are still there", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<{ readonly prompt: string }, string, string>("prompts-let-go", {
        rateLimiters: [RateLimiter.concurrent(1)]
      })
      yield* manager.registerQueue(Model, (request) => {
        switch (request.id) {
          case "completed":
            return Effect.succeed("ok")
          case "failed":
            return Effect.fail("failed")
          default:
            return Effect.never
        }
      })
      const refs: Array<WeakRef<object>> = []
      const call = (id: string) =>
        Effect.suspend(() => {
          const params = { prompt: `the prompt of ${id}` }
          refs.push(new WeakRef(params))
          return Effect.asVoid(submit(manager, Model, params, { id }))
        })
      const ends = ["completed", "failed", "cancelled while it ran", "cancelled while it waited"]
      yield* Effect.forEach(ends, call, { discard: true })
      yield* TestClock.adjust(0)
      yield* manager.cancelRequest(Model, "cancelled while it waited")
      yield* manager.cancelRequest(Model, "cancelled while it ran")
      yield* TestClock.adjust(0)
      for (let i = 0; i < 3; i++) {
        yield* Effect.promise(() => setImmediate())
        collectGarbage()
      }
      assert.deepStrictEqual(refs.map((ref) => ref.deref()), ends.map(() => undefined))
      const statuses = yield* Effect.forEach(ends, (id) => manager.getStatus(Model, id))
      assert.deepStrictEqual(statuses.map(({ status }) => status), ["completed", "failed", "cancelled", "cancelled"])
    }).pipe(Effect.provide(Manager)))

  it.effect("a queue that was closed is let go, though the scope of its registration stays open", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const results: Array<WeakRef<object>> = []
      for (let i = 0; i < 20; i++) {
        const Model = ModelConfig.makeUntyped<string, object>(`let-go-${i}`, { rateLimiters: "unlimited" })
        yield* manager.registerQueue(Model, () => Effect.sync(() => ({ large: "x".repeat(10) })))
        results.push(new WeakRef((yield* manager.submit(Model, "x")).result))
        yield* manager.unregisterQueue(Model)
      }
      for (let i = 0; i < 3; i++) {
        yield* Effect.promise(() => setImmediate())
        collectGarbage()
      }
      assert.isBelow(results.filter((result) => result.deref() !== undefined).length, 3)
    }).pipe(Effect.scoped, Effect.provide(QueueManager.layer)))

  it.effect("what a processor does to its request changes neither the queue's records nor the caller's request", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("request-of-its-own", {
        rateLimiters: [RateLimiter.tpm(100)]
      })
      yield* manager.registerQueue(Model, (request) =>
        Effect.sync(() => {
          Object.assign(request, { id: "stolen", params: "changed", estimatedInputTokens: -5, status: "completed" })
          return "ok"
        }))
      const request = QueueRequest.make(Model, {
        params: "mine",
        id: "own",
        estimatedInputTokens: 10,
        estimatedOutputTokens: 0
      })
      const response = yield* manager.submitRequest(request)
      assert.deepStrictEqual([response.requestId, request.id, request.params], ["own", "own", "mine"])
      assert.strictEqual((yield* manager.getStatus(Model, "own")).status, "completed")
      assert.strictEqual((yield* Effect.flip(manager.getStatus(Model, "stolen")))._tag, "RequestNotFound")
      assert.strictEqual((yield* manager.getQueueInfo(Model)).rateLimiters[0]?.used, 10)
    }).pipe(Effect.provide(Manager)))

  it.effect("a request is handed over at the very instant it fits: nothing polls, and nobody wakes to look", () =>
    Effect.gen(function*() {
      const test = yield* Clock.Clock
      const sleeps: Array<number> = []
      const counting = new Proxy(test, {
        get: (target, key): unknown =>
          key !== "sleep" ? Reflect.get(target, key) : (duration: Duration.Duration) =>
            Effect.suspend(() => {
              sleeps.push(Duration.toMillis(duration))
              return target.sleep(duration)
            })
      })
      yield* Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const Model = ModelConfig.makeUntyped<string, string>("no-polling", {
          rateLimiters: [RateLimiter.rpm(1, { timePeriod: 1050 })],
          retention: { count: 0 }
        })
        const started: Array<readonly [string, number]> = []
        yield* manager.registerQueue(
          Model,
          (request) => Effect.map(Clock.currentTimeMillis, (now) => (started.push([request.params, now]), "ok"))
        )
        yield* TestClock.adjust("1 hour")
        assert.deepStrictEqual(sleeps, [])
        yield* submit(manager, Model, "a")
        yield* submit(manager, Model, "b")
        for (let i = 0; i < 105; i++) yield* TestClock.adjust(10)
        const hour = 3_600_000
        assert.deepStrictEqual(started, [["a", hour], ["b", hour + 1050]])
        assert.deepStrictEqual(sleeps, [1050])
      }).pipe(Effect.provide(Manager), Effect.provideService(Clock.Clock, counting))
    }))

  it.effect("a freed permit is used at the very instant it comes back", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("permit-at-once", {
        rateLimiters: [RateLimiter.concurrent(1)]
      })
      const started: Array<readonly [string, number]> = []
      yield* manager.registerQueue(Model, (request) =>
        Clock.currentTimeMillis.pipe(
          Effect.andThen((now) => Effect.sync(() => started.push([request.params, now]))),
          Effect.andThen(Effect.sleep("50 millis")),
          Effect.as("ok")
        ))
      yield* submit(manager, Model, "a")
      yield* submit(manager, Model, "b")
      yield* submit(manager, Model, "c")
      yield* TestClock.adjust(100)
      assert.deepStrictEqual(started, [["a", 0], ["b", 50], ["c", 100]])
    }).pipe(Effect.provide(Manager)))

  it.effect("a request that could never fit fails at submission with the numbers, and the queue goes on", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("never-fits", { rateLimiters: [RateLimiter.tpm(100)] })
      yield* manager.registerQueue(Model, () => Effect.succeed("ok"))
      const error = yield* Effect.flip(
        submit(manager, Model, "a", { estimatedInputTokens: 99, estimatedOutputTokens: 2 })
      )
      assert(error._tag === "RequestTooLarge")
      assert.deepStrictEqual([error.limitType, error.limit, error.requested, error.estimated], ["tpm", 100, 101, false])
      assert.strictEqual(
        (yield* manager.submit(Model, "b", { estimatedInputTokens: 1, estimatedOutputTokens: 0 })).result,
        "ok"
      )
    }).pipe(Effect.provide(Manager)))

  it.effect("every error that is declared can happen", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const limited = {
        rateLimiters: [RateLimiter.concurrent(1), RateLimiter.tpm(100)],
        capacity: 1,
        strategy: "reject"
      } as const
      const Model = ModelConfig.makeUntyped<string, string>("errors", limited)
      const estimate = { estimatedInputTokens: 1, estimatedOutputTokens: 1 }
      const happened = new Set<string>()
      const fails = <A, E extends { readonly _tag: string }, R>(effect: Effect.Effect<A, E, R>) =>
        Effect.map(Effect.flip(effect), (error) => {
          assert.isTrue(QueueError.isQueueError(error))
          happened.add(error._tag)
        })
      const register = manager.registerQueue(Model, (request) =>
        request.params === "dies" ? Effect.die("bug") : Effect.never)
      yield* fails(manager.submit(Model, "too early"))
      yield* fails(manager.registerQueue(ModelConfig.makeUntyped<string, string>("", { rateLimit: 0 }), () =>
        Effect.never))
      yield* register
      yield* fails(register)
      yield* fails(manager.submit(Model, "a", { timeout: -1 }))
      yield* fails(manager.submit(Model, "a", { estimatedInputTokens: 101 }))
      yield* fails(manager.submit(Model, "dies", estimate))
      yield* fails(manager.getStatus(Model, "nobody"))
      yield* submit(manager, Model, "runs", { id: "runs", timeout: "1 second", ...estimate })
      yield* fails(submit(manager, Model, "runs", { id: "runs", ...estimate }))
      yield* TestClock.adjust(0)
      yield* submit(manager, Model, "waits", { id: "waits", ...estimate })
      yield* fails(submit(manager, Model, "no room", estimate))
      yield* manager.cancelRequest(Model, "waits")
      yield* fails(manager.awaitCompletion(Model, "waits"))
      yield* TestClock.adjust("1 second")
      yield* fails(manager.awaitCompletion(Model, "runs"))
      const Bought = ModelConfig.makeUntyped<string, string>("bought", {
        rateLimiters: [RateLimiter.budget(1, { price: { input: 1e6, output: 0 } })]
      })
      yield* manager.registerQueue(Bought, () =>
        Effect.succeed("ok"))
      yield* manager.submit(Bought, "spends all", estimate)
      yield* fails(manager.submit(Bought, "needs more", estimate))
      const Refused = ModelConfig.makeUntyped<number, string, { readonly status: number; readonly body?: unknown }>(
        "refused",
        { rateLimiters: "unlimited", provider: ProviderProfile.generic, retry: { schedule: Schedule.recurs(0) } }
      )
      yield* manager.registerQueue(Refused, ({ params: status }) =>
        Effect.fail({ status }))
      for (const status of [429, 503, 402]) {
        yield* fails(
          Effect.catchIf(manager.submit(Refused, status), (error) => "status" in error, (error) => Effect.die(error))
        )
      }
      yield* manager.drainQueue(Refused)
      yield* fails(submit(manager, Refused, 429))
      yield* manager.shutdownAll()
      yield* fails(manager.submit(Model, "too late", estimate))
      // Limits that are elsewhere: where others have other ones, and where they cannot be reached.
      const inMemory = yield* RateLimiter.RateLimiter
      const elsewhere = (make: typeof inMemory.make) =>
        Effect.provideService(
          Effect.map(Layer.build(Layer.fresh(QueueManager.layer)), (built) =>
            Context.get(built, QueueManager.QueueManager)),
          RateLimiter.RateLimiter,
          { make }
        )
      const conflict = new QueueError.LimitConflict({ modelId: "errors", ours: "[]", theirs: "[]", processes: 1 })
      const others = yield* elsewhere(() => Effect.fail(conflict))
      yield* fails(others.registerQueue(Model, () => Effect.never))
      const away = yield* elsewhere((...args) =>
        Effect.map(inMemory.make(...args), (limiter): RateLimiter.Limiter => ({
          ...limiter,
          admit: () => Effect.succeed({ _tag: "Unavailable", reason: "it is away" })
        }))
      )
      yield* away.registerQueue(Model, () => Effect.never)
      yield* fails(away.submit(Model, "not let in", estimate))
      const declared = Object.keys(QueueError).filter((name) => name !== "isQueueError")
      assert.sameMembers(Array.from(happened), declared)
    }).pipe(Effect.provide(Manager)))
})
