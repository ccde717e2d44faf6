import { assert, describe, it } from "@effect/vitest"
import { Cause, Clock, Context, Deferred, Duration, Effect, Exit, Fiber, Layer, Scope } from "effect"
import { ModelConfig, ProviderProfile, QueueManager, QueueRequest, RateLimiter } from "effect-llm-queue"
import { TestClock } from "effect/testing"
import * as random from "../model/random.ts"

/** Its end waits for nobody, so that a test can leave requests behind. */
const Manager = QueueManager.layerWith({ shutdown: { policy: "interrupt", deadline: 0 } })

/** A model whose processor takes `params` milliseconds, and what it was given. */
const open = Effect.fnUntraced(function*(options: ModelConfig.Options<number, string> & ModelConfig.Limits) {
  const manager = yield* QueueManager.QueueManager
  const Model = ModelConfig.makeUntyped<number, string, string>("model", options)
  const started: Array<string> = []
  const ended: Array<string> = []
  yield* manager.registerQueue(Model, (request) =>
    Effect.gen(function*() {
      started.push(request.id)
      if (request.params < 0) return yield* Effect.fail("failed")
      if (request.params > 0) yield* Effect.sleep(request.params)
      ended.push(request.id)
      return "ok"
    }))
  const submit = (id: string, options?: QueueRequest.RequestOptions, params = 0) =>
    manager.submitRequest(QueueRequest.make(Model, { ...options, id, params, waitForCompletion: false }))
  const state = Effect.map(manager.getQueueInfo(Model), ({ state }) => state)
  return { manager, Model, started, ended, submit, state }
})

describe("getRequests", () => {
  it.effect("lists what is being processed and what waits, in order, as far as it is asked for", () =>
    Effect.gen(function*() {
      const { Model, manager, submit } = yield* open({ rateLimiters: [RateLimiter.concurrent(1)] })
      yield* submit("runs", { tenant: "acme", labels: { task: "summary" } }, 10_000)
      yield* TestClock.adjust("1 second")
      yield* submit("first")
      yield* TestClock.adjust("1 second")
      yield* submit("urgent", { priority: "high" })
      yield* submit("late", { priority: -30 })
      yield* TestClock.adjust("1 second")
      const ids = (filter?: QueueManager.RequestFilter, limit?: number) =>
        Effect.map(
          manager.getRequests(Model, filter, { limit }),
          (requests) => requests.map(({ requestId }) => requestId)
        )
      assert.deepStrictEqual(yield* ids(), ["runs", "urgent", "first", "late"])
      assert.deepStrictEqual(yield* ids({}, 2), ["runs", "urgent"])
      assert.deepStrictEqual(yield* ids({ status: "pending" }), ["urgent", "first", "late"])
      assert.deepStrictEqual(yield* ids({ tenant: "acme" }), ["runs"])
      const [running, urgent] = yield* manager.getRequests("model")
      assert.deepStrictEqual(running, {
        requestId: "runs",
        status: "processing",
        tenant: "acme",
        priority: 0,
        labels: { task: "summary" },
        createdAt: 0,
        queueTime: Duration.millis(0),
        processingTime: Duration.millis(3000),
        attempts: 1,
        predictedWait: undefined
      })
      assert.deepInclude(urgent, { status: "pending", priority: 60, queueTime: Duration.millis(1000), attempts: 0 })
      assert.strictEqual((yield* Effect.flip(manager.getRequests("none")))._tag, "ModelNotRegistered")
      const bad = yield* Effect.flip(manager.getRequests(Model, { tenant: 1 as never }, { limit: 0 }))
      assert(bad._tag === "InvalidRequest")
      assert.isAbove(bad.problems.length, 0)
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(yield* ids(), [])
    }).pipe(Effect.provide(Manager)))

  it.effect("predicts how much longer each one waits", () =>
    Effect.gen(function*() {
      const { Model, manager, started, submit } = yield* open({ rateLimiters: [RateLimiter.rpm(10)] })
      for (let i = 0; i < 35; i++) yield* submit(`${i}`, { tenant: ["a", "b"][i % 2], labels: { third: `${i % 3}` } })
      yield* TestClock.adjust("1 second")
      assert.strictEqual(started.length, 10)
      const waits = (filter?: QueueManager.RequestFilter) =>
        Effect.map(
          manager.getRequests(Model, filter),
          (requests) => requests.map(({ predictedWait }) => Duration.toSeconds(predictedWait!))
        )
      // The margin of a minute's window is there too.
      const predicted = yield* waits()
      assert.deepStrictEqual(predicted.map((wait) => Math.floor(wait)), [
        ...Array.from({ length: 10 }, () => 59),
        ...Array.from({ length: 10 }, () => 119),
        ...Array.from({ length: 5 }, () => 179)
      ])
      const some = yield* manager.getRequests(Model, { labels: { third: "0" } })
      assert.deepStrictEqual(
        some.map(({ predictedWait }) => predictedWait),
        (yield* manager.getRequests(Model)).filter(({ labels }) => labels["third"] === "0")
          .map(({ predictedWait }) => predictedWait)
      )
      let passed = 0
      for (const [index, wait] of [...new Set(predicted)].entries()) {
        yield* TestClock.adjust(Duration.seconds(wait - passed - 0.001))
        assert.strictEqual(started.length, 10 * (index + 1))
        yield* TestClock.adjust("1 millis")
        assert.strictEqual(started.length, Math.min(35, 10 * (index + 2)))
        passed = wait
      }
      yield* manager.pauseQueue(Model)
      yield* submit("late")
      assert.deepStrictEqual(yield* waits(), [Number.POSITIVE_INFINITY])
    }).pipe(Effect.provide(Manager)))
})

describe("getRequests of everything", () => {
  it.effect("says what going through all that wait says", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      for (let seed = 1; seed <= 40; seed++) {
        const choose = random.make(seed)
        const Model = ModelConfig.makeUntyped<number, string, { readonly status: number }>(`model${seed}`, {
          rateLimiters: [RateLimiter.concurrent(choose.int(1, 3)), RateLimiter.rpm(20, { timePeriod: "1 second" })],
          capacity: choose.pick([10, 1000]),
          provider: ProviderProfile.openai,
          tenants: { byId: { a: { weight: 2 } } }
        })
        yield* manager.registerQueue(Model, (request) =>
          Effect.gen(function*() {
            if (request.params % 5 === 0) return yield* Effect.fail({ status: 503 })
            // Of its own, which wait on its permit.
            if (request.params % 7 === 0) yield* Effect.exit(manager.submit(Model, 1, { timeout: "1 second" }))
            yield* Effect.sleep(request.params)
            return "ok"
          }))
        for (let step = 0; step < 60; step++) {
          for (let i = choose.int(0, 3); i > 0; i--) {
            yield* Effect.forkChild(
              Effect.exit(manager.submit(Model, choose.int(1, 500), {
                priority: choose.int(-3, 3),
                tenant: choose.pick(["a", "b", "c"])
              })),
              { startImmediately: true }
            )
          }
          yield* TestClock.adjust(choose.int(0, 60))
          const limit = choose.pick([1, 5, 1000])
          const status = choose.pick(["pending", "processing", undefined] as const)
          assert.deepStrictEqual(
            yield* manager.getRequests(Model, { status }, { limit }),
            yield* manager.getRequests(Model, { status, where: () => true }, { limit }),
            `seed ${seed}, step ${step}`
          )
        }
        yield* manager.unregisterQueue(Model)
      }
    }).pipe(Effect.provide(Manager)), 60_000)
})

describe("cancelRequest", () => {
  it.effect("of a request that is just being dispatched, by who was let in for it, keeps it from its processor", () =>
    Effect.gen(function*() {
      const { Model, manager, started, submit } = yield* open({
        rateLimiters: [RateLimiter.concurrent(1)],
        capacity: 1
      })
      yield* submit("runs", {}, 1000)
      yield* TestClock.adjust(0)
      yield* submit("next")
      // It waits for the room that the next one leaves, and is told at once.
      const late = yield* Effect.forkChild(
        Effect.andThen(submit("late"), manager.cancelRequest(Model, "next")),
        { startImmediately: true }
      )
      yield* TestClock.adjust("1 second")
      assert.isTrue(yield* Fiber.join(late))
      assert.deepStrictEqual(started, ["runs", "late"])
      assert.strictEqual((yield* manager.getStatus(Model, "next")).status, "cancelled")
      const { running } = yield* manager.getQueueInfo(Model)
      assert.strictEqual(running, 0)
    }).pipe(Effect.provide(Manager)))
})

describe("pauseQueue", () => {
  it.effect("dispatches nothing until it is resumed; what runs goes on, and timeouts do", () =>
    Effect.gen(function*() {
      const { Model, ended, manager, started, state, submit } = yield* open({ rateLimiters: "unlimited" })
      yield* submit("runs", {}, 1000)
      yield* TestClock.adjust(0)
      yield* manager.pauseQueue(Model)
      yield* manager.pauseQueue(Model)
      assert.strictEqual(yield* state, "paused")
      yield* submit("waits")
      const late = yield* Effect.forkChild(Effect.flip(manager.submit(Model, 0, { timeout: "5 seconds" })))
      yield* TestClock.adjust("5 seconds")
      assert.deepStrictEqual([started, ended], [["runs"], ["runs"]])
      assert.deepInclude(yield* Fiber.join(late), { _tag: "QueueTimeout" })
      yield* manager.resumeQueue(Model)
      assert.strictEqual(yield* state, "open")
      yield* TestClock.adjust(0)
      assert.deepStrictEqual(ended, ["runs", "waits"])
    }).pipe(Effect.provide(Manager)))

  it.effect("what is being processed can end: the requests it waits for itself still go", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Agent = ModelConfig.makeUntyped<number, number, string>("agent", {
        rateLimiters: [RateLimiter.concurrent(1)]
      })
      const go = yield* Deferred.make<void>()
      yield* manager.registerQueue(Agent, (request) =>
        request.params === 0
          ? Effect.succeed(0)
          : Effect.andThen(
            Deferred.await(go),
            Effect.map(manager.submit(Agent, request.params - 1), ({ result }) => result + 1)
          ).pipe(Effect.mapError(String)))
      const outer = yield* Effect.forkChild(manager.submit(Agent, 3), { startImmediately: true })
      yield* TestClock.adjust(0)
      yield* manager.pauseQueue(Agent)
      yield* Deferred.succeed(go, undefined)
      yield* TestClock.adjust(0)
      assert.strictEqual((yield* Fiber.join(outer)).result, 3)
    }).pipe(Effect.provide(Manager)))

  it.effect("is ended by a shutdown, by each policy", () =>
    Effect.gen(function*() {
      for (const policy of ["drain", "finishRunning", "interrupt"] as const) {
        const scope = yield* Scope.make()
        const manager = Context.get(
          yield* Layer.buildWithScope(QueueManager.layerWith({ shutdown: { policy } }), scope),
          QueueManager.QueueManager
        )
        const { Model, ended, submit } = yield* open({ rateLimiters: "unlimited" }).pipe(
          Effect.provideService(QueueManager.QueueManager, manager),
          Scope.provide(scope)
        )
        yield* manager.pauseQueue(Model)
        yield* submit("waits")
        yield* TestClock.adjust(0)
        const closing = yield* Effect.forkChild(Scope.close(scope, Exit.void), { startImmediately: true })
        yield* TestClock.adjust(0)
        yield* Fiber.join(closing)
        assert.deepStrictEqual(ended, policy === "drain" ? ["waits"] : [])
      }
    }))
})

describe("drainQueue", () => {
  it.effect("takes nothing more, and ends when all that was accepted has ended", () =>
    Effect.gen(function*() {
      const { Model, ended, manager, state, submit } = yield* open({
        rateLimiters: [RateLimiter.concurrent(1)],
        capacity: 2
      })
      yield* submit("runs", {}, 1000)
      yield* TestClock.adjust(0)
      yield* submit("waits 1", {}, 1000)
      yield* submit("waits 2", {}, 1000)
      const noRoom = yield* Effect.forkChild(Effect.flip(submit("has no room")), { startImmediately: true })
      yield* manager.pauseQueue(Model)
      const drained = yield* Effect.forkChild(manager.drainQueue(Model), { startImmediately: true })
      const interrupted = yield* Effect.forkChild(manager.drainQueue(Model), { startImmediately: true })
      yield* Fiber.interrupt(interrupted)
      assert.strictEqual(yield* state, "draining")
      assert.strictEqual((yield* Fiber.join(noRoom))._tag, "QueueDraining")
      assert.strictEqual((yield* Effect.flip(submit("comes later")))._tag, "QueueDraining")
      yield* TestClock.adjust("2999 millis")
      assert.isUndefined(drained.pollUnsafe())
      yield* TestClock.adjust("1 millis")
      assert.isTrue(yield* Fiber.join(drained))
      assert.deepStrictEqual(ended, ["runs", "waits 1", "waits 2"])
      assert.isTrue(yield* manager.drainQueue(Model))
      yield* manager.resumeQueue(Model)
      yield* submit("after it")
      yield* TestClock.adjust(0)
      assert.strictEqual(ended.at(-1), "after it")
    }).pipe(Effect.provide(Manager)))

  it.effect("ends with false when the queue is resumed, with true when it is closed", () =>
    Effect.gen(function*() {
      const { Model, manager, submit } = yield* open({ rateLimiters: "unlimited" })
      yield* submit("runs", {}, 100_000)
      yield* TestClock.adjust(0)
      const resumed = yield* Effect.forkChild(manager.drainQueue(Model), { startImmediately: true })
      yield* manager.resumeQueue(Model)
      assert.isFalse(yield* Fiber.join(resumed))
      const closed = yield* Effect.forkChild(manager.drainQueue(Model), { startImmediately: true })
      yield* Effect.forkChild(manager.unregisterQueue(Model), { startImmediately: true })
      yield* TestClock.adjust("1 minute")
      assert.isTrue(yield* Fiber.join(closed))
    }).pipe(Effect.provide(Manager)))

  it.effect("a processor that drains its own queue does not wait for itself", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, boolean>("model", { rateLimiters: "unlimited" })
      yield* manager.registerQueue(Model, () => Effect.orDie(manager.drainQueue(Model)))
      assert.isTrue((yield* manager.submit(Model, "")).result)
    }).pipe(Effect.provide(Manager)))

  it.effect("processors that drain their queue do not wait for one another, and others wait for them", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, boolean>("model", { rateLimiters: "unlimited" })
      const go = yield* Deferred.make<void>()
      yield* manager.registerQueue(Model, () =>
        Deferred.await(go).pipe(
          Effect.andThen(Effect.orDie(manager.drainQueue(Model))),
          Effect.delay("1 second")
        ))
      const requests = [
        yield* Effect.forkChild(manager.submit(Model, ""), { startImmediately: true }),
        yield* Effect.forkChild(manager.submit(Model, ""), { startImmediately: true })
      ]
      yield* TestClock.adjust(0)
      const outside = yield* Effect.forkChild(manager.drainQueue(Model), { startImmediately: true })
      yield* TestClock.adjust("1 second")
      assert.isUndefined(outside.pollUnsafe())
      yield* Deferred.succeed(go, undefined)
      yield* TestClock.adjust(0)
      for (const request of requests) assert.isTrue((yield* Fiber.join(request)).result)
      assert.isTrue(yield* Fiber.join(outside))
    }).pipe(Effect.provide(Manager)))

  it.effect("by a processor lets what waits run on its permit, in the order of the queue", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, boolean>("model", {
        rateLimiters: [RateLimiter.concurrent(1)],
        capacity: 2
      })
      const go = yield* Deferred.make<void>()
      const started: Array<string> = []
      yield* manager.registerQueue(Model, ({ params }) => {
        started.push(params)
        return params === "drains"
          ? Effect.andThen(Deferred.await(go), Effect.orDie(manager.drainQueue(Model)))
          : Effect.delay(Effect.succeed(true), "1 second")
      })
      const fork = (params: string, options?: QueueRequest.RequestOptions) =>
        Effect.forkChild(manager.submit(Model, params, options), { startImmediately: true })
      const drains = yield* fork("drains")
      yield* TestClock.adjust(0)
      yield* fork("low", { priority: "low" })
      yield* fork("high", { priority: "high" })
      yield* TestClock.adjust(0)
      const noRoom = yield* fork("no room")
      yield* Deferred.succeed(go, undefined)
      assert.deepInclude(yield* Effect.flip(Fiber.join(noRoom)), { _tag: "QueueDraining" })
      yield* TestClock.adjust("1999 millis")
      assert.isUndefined(drains.pollUnsafe())
      yield* TestClock.adjust("1 millis")
      assert.isTrue((yield* Fiber.join(drains)).result)
      assert.deepStrictEqual(started, ["drains", "high", "low"])
    }).pipe(Effect.provide(Manager)))

  it.effect("that a processor gives up leaves what waits as it was: a pause holds it, and it counts", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, void>("model", {
        rateLimiters: [RateLimiter.concurrent(1)],
        capacity: 2,
        strategy: "reject"
      })
      const go = yield* Deferred.make<void>()
      const started: Array<string> = []
      yield* manager.registerQueue(Model, ({ params }) => {
        started.push(params)
        if (params !== "drains") return Effect.sleep("5 seconds")
        return Deferred.await(go).pipe(
          Effect.andThen(Effect.timeoutOption(Effect.orDie(manager.drainQueue(Model)), "1 second")),
          Effect.andThen(Effect.sleep("10 seconds"))
        )
      })
      const submit = (params: string) =>
        manager.submitRequest(QueueRequest.make(Model, { params, waitForCompletion: false }))
      yield* submit("drains")
      yield* TestClock.adjust(0)
      for (const params of ["a", "b"]) yield* submit(params)
      yield* TestClock.adjust(0)
      yield* Deferred.succeed(go, undefined)
      yield* TestClock.adjust("2 seconds")
      assert.deepStrictEqual(started, ["drains", "a"])
      yield* manager.resumeQueue(Model)
      yield* manager.pauseQueue(Model)
      yield* submit("c")
      assert.strictEqual((yield* Effect.flip(submit("d")))._tag, "QueueFull")
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(started, ["drains", "a"])
      yield* manager.resumeQueue(Model)
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(started, ["drains", "a", "b", "c"])
    }).pipe(Effect.provide(Manager)))

  it.effect("lets nobody in, so nobody knows how long it would wait", () =>
    Effect.gen(function*() {
      const { Model, manager } = yield* open({ rateLimiters: "unlimited" })
      assert.isTrue(Duration.isZero(yield* manager.estimateWait(Model)))
      yield* manager.drainQueue(Model)
      assert.isFalse(Duration.isFinite(yield* manager.estimateWait(Model)))
      yield* manager.resumeQueue(Model)
      assert.isTrue(Duration.isZero(yield* manager.estimateWait(Model)))
    }).pipe(Effect.provide(Manager)))

  it.effect("ends with false when one that is refused by it resumes the queue at once", () =>
    Effect.gen(function*() {
      const { Model, manager, state, submit } = yield* open({ rateLimiters: [RateLimiter.concurrent(1)], capacity: 1 })
      yield* submit("runs", {}, 1000)
      yield* TestClock.adjust(0)
      yield* submit("waits", {}, 1000)
      yield* Effect.forkChild(Effect.catch(submit("no room"), () => manager.resumeQueue(Model)), {
        startImmediately: true
      })
      const drained = yield* Effect.forkChild(manager.drainQueue(Model), { startImmediately: true })
      assert.strictEqual(yield* state, "open")
      assert.isDefined(drained.pollUnsafe())
      assert.isFalse(yield* Fiber.join(drained))
    }).pipe(Effect.provide(Manager)))
})

describe("cancelRequests", () => {
  it.effect("ends what is meant, waiting, without room or being processed, and nothing else", () =>
    Effect.gen(function*() {
      const { Model, manager, started, submit } = yield* open({
        rateLimiters: [RateLimiter.concurrent(1)],
        capacity: 4
      })
      yield* submit("a1", { tenant: "a" }, 10_000)
      yield* TestClock.adjust("10 seconds")
      yield* submit("b1", { tenant: "b", labels: { task: "x" } }, 10_000)
      yield* TestClock.adjust(0)
      for (const id of ["a2", "a3"]) yield* submit(id, { tenant: "a" })
      yield* submit("b2", { tenant: "b", labels: { task: "x", more: "y" } })
      yield* submit("b3", { tenant: "b" })
      yield* Effect.forkChild(Effect.exit(submit("a4", { tenant: "a" })), { startImmediately: true })
      yield* TestClock.adjust("1 second")
      const count = (filter: QueueManager.RequestFilter) => manager.cancelRequests(Model, filter)
      assert.strictEqual(yield* count({ tenant: "a", status: "processing" }), 0)
      assert.strictEqual(yield* count({ ids: ["a2", "b2", "nobody"], tenant: "b", labels: { task: "x" } }), 1)
      assert.strictEqual(yield* count({ olderThan: "2 seconds" }), 0)
      assert.strictEqual(yield* count({ where: (response) => response.requestId === "a3" }), 1)
      assert.strictEqual(yield* count({ tenant: "a" }), 2)
      assert.strictEqual(yield* count({ labels: { task: "x" }, status: "processing" }), 1)
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(started, ["a1", "b1", "b3"])
      assert.strictEqual(yield* count({}), 0)
      assert.strictEqual((yield* manager.getStatus(Model, "a4")).status, "cancelled")
    }).pipe(Effect.provide(Manager)))

  it.effect("ends agents together with what they wait for, and counts each of them", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      // The last one waits.
      const Agent = ModelConfig.makeUntyped<number, string>("agent", {
        rateLimiters: [RateLimiter.concurrent(2), RateLimiter.rpm(5)]
      })
      let went = 0
      yield* manager.registerQueue(Agent, (request) =>
        Effect.gen(function*() {
          if (request.params === 0) return yield* Effect.never
          yield* Effect.exit(manager.submit(Agent, request.params - 1))
          went++
          return "ok"
        }))
      for (const depth of [3, 1]) {
        const agent = yield* Effect.forkChild(Effect.flip(manager.submit(Agent, depth)))
        yield* TestClock.adjust(0)
        assert.strictEqual(yield* manager.cancelRequests(Agent, {}), depth + 1)
        assert.strictEqual((yield* Fiber.join(agent))._tag, "RequestCancelled")
      }
      yield* TestClock.adjust(0)
      assert.strictEqual(went, 0)
      assert.strictEqual((yield* manager.getQueueInfo(Agent)).cancelled, 6)
    }).pipe(Effect.provide(Manager)))

  it.effect("by priority are those that have it, by their own choice, by default or by a change", () =>
    Effect.gen(function*() {
      const { Model, manager, submit } = yield* open({ rateLimiters: [RateLimiter.concurrent(1)], priority: "low" })
      yield* submit("runs", { priority: 7 }, 1000)
      yield* TestClock.adjust(0)
      yield* submit("by default")
      yield* submit("own", { priority: -60 })
      yield* submit("changed", { priority: "high" })
      yield* submit("other", { priority: "high" })
      yield* manager.changePriority(Model, "changed", "low")
      assert.strictEqual(yield* manager.cancelRequests(Model, { priority: "low" }), 3)
      assert.strictEqual((yield* manager.getStatus(Model, "other")).status, "pending")
      assert.strictEqual(yield* manager.cancelRequests(Model, { priority: 0 }), 0)
      assert.strictEqual(yield* manager.cancelRequests(Model, { priority: 7 }), 1)
    }).pipe(Effect.provide(Manager)))

  it.effect("give their room to those that wait for it, whatever the strategy", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      for (const strategy of ["suspend", "reject", "dropOldest"] as const) {
        const Model = ModelConfig.makeUntyped<string, string>(strategy, {
          rateLimiters: [RateLimiter.concurrent(1)],
          capacity: 2,
          strategy
        })
        yield* manager.registerQueue(Model, () => Effect.never)
        const submit = (id: string) =>
          manager.submitRequest(QueueRequest.make(Model, { params: "", id, waitForCompletion: false }))
        yield* submit("runs")
        yield* TestClock.adjust(0)
        for (const id of ["a", "b"]) yield* submit(id)
        const c = yield* Effect.forkChild(Effect.exit(submit("c")), { startImmediately: true })
        assert.strictEqual(c.pollUnsafe() === undefined, strategy === "suspend")
        const ids = strategy === "dropOldest" ? ["b"] : ["a"]
        assert.strictEqual(yield* manager.cancelRequests(Model, { ids }), 1)
        yield* submit(strategy === "suspend" ? "free" : "d").pipe(
          Effect.timeoutOption("1 second"),
          Effect.forkChild({ startImmediately: true })
        )
        yield* TestClock.adjust("1 second")
        const { depth, suspended } = yield* manager.getQueueInfo(Model)
        assert.deepStrictEqual([depth, suspended], [2, 0], strategy)
      }
    }).pipe(Effect.provide(Manager)))

  it.effect("a filter that makes no sense is an invalid request, and changes nothing", () =>
    Effect.gen(function*() {
      const { Model, manager, submit } = yield* open({ rateLimiters: [RateLimiter.concurrent(1)] })
      yield* submit("a", {}, 1000)
      yield* submit("b", {}, 1000)
      const nonsense: ReadonlyArray<QueueManager.RequestFilter> = [
        { olderThan: Number.NaN },
        { priority: Number.NaN },
        {
          where: () => {
            throw new Error("broken")
          }
        }
      ]
      for (const filter of nonsense) {
        assert.strictEqual((yield* Effect.flip(manager.cancelRequests(Model, filter)))._tag, "InvalidRequest")
      }
      assert.strictEqual((yield* manager.getQueueInfo(Model)).cancelled, 0)
    }).pipe(Effect.provide(Manager)))
})

describe("changePriority", () => {
  it.effect("moves a waiting request, which keeps the time of its submission", () =>
    Effect.gen(function*() {
      const { Model, manager, started, submit } = yield* open({
        rateLimiters: [RateLimiter.concurrent(1)],
        capacity: 4
      })
      yield* submit("runs", {}, 1000)
      yield* TestClock.adjust(0)
      for (const id of ["a", "b", "c", "d"]) yield* submit(id)
      yield* Effect.forkChild(submit("e"), { startImmediately: true })
      assert.isTrue(yield* manager.changePriority(Model, "c", "high"))
      assert.isTrue(yield* manager.changePriority(Model, "a", -10))
      assert.isTrue(yield* manager.changePriority(Model, "e", 100))
      assert.isFalse(yield* manager.changePriority(Model, "runs", 100))
      const error = yield* Effect.flip(manager.changePriority(Model, "a", Number.NaN))
      assert.strictEqual(error._tag, "InvalidRequest")
      assert.strictEqual((yield* Effect.flip(manager.changePriority(Model, "x", 0)))._tag, "RequestNotFound")
      yield* TestClock.adjust("1 second")
      // There was no room for e until one had gone.
      assert.deepStrictEqual(started, ["runs", "c", "e", "b", "d", "a"])
      assert.isFalse(yield* manager.changePriority(Model, "a", 0))
    }).pipe(Effect.provide(Manager)))
})

describe("changePriority of a request", () => {
  it.effect("is what its processor sees, what that submits has, and what a dead letter keeps", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Tool = ModelConfig.makeUntyped<string, unknown>("tool", { rateLimiters: "unlimited" })
      const Model = ModelConfig.makeUntyped<string, string, string>("model", {
        rateLimiters: [RateLimiter.concurrent(1)],
        deadLetters: { count: 10 }
      })
      const seen: Array<unknown> = []
      yield* manager.registerQueue(Tool, ({ priority }) => Effect.succeed(priority))
      yield* manager.registerQueue(Model, (request) =>
        Effect.gen(function*() {
          seen.push(request.priority, (yield* Effect.orDie(manager.submit(Tool, ""))).result)
          yield* Effect.sleep("1 second")
          return yield* Effect.fail("failed")
        }))
      const submit = (id: string) =>
        manager.submitRequest(QueueRequest.make(Model, { params: "", id, priority: 1, waitForCompletion: false }))
      yield* submit("a")
      yield* TestClock.adjust(0)
      yield* submit("b")
      assert.isTrue(yield* manager.changePriority(Model, "b", "high"))
      assert.isFalse(yield* manager.changePriority(Model, "a", "high"))
      yield* TestClock.adjust("2 seconds")
      assert.deepStrictEqual(seen, [1, 1, "high", "high"])
      const letters = yield* manager.deadLetters(Model)
      assert.deepStrictEqual(letters.map(({ request }) => request.priority), [1, "high"])
    }).pipe(Effect.provide(Manager)))
})

describe("dead letters", () => {
  it.effect("are failed requests with their parameters, bounded by number and age", () =>
    Effect.gen(function*() {
      const { Model, manager, submit } = yield* open({
        rateLimiters: "unlimited",
        deadLetters: { count: 2, age: "1 minute" },
        retention: { count: 0 }
      })
      yield* submit("well")
      yield* submit("is cancelled", {}, 1000)
      for (const id of ["one", "two", "three"]) yield* submit(id, { tenant: "t", metadata: { of: id } }, -1)
      yield* TestClock.adjust(10)
      yield* manager.cancelRequest(Model, "is cancelled")
      const letters = yield* manager.deadLetters(Model)
      assert.deepStrictEqual(letters.map(({ requestId }) => requestId), ["two", "three"])
      const [letter] = letters
      assert(letter !== undefined)
      assert.deepInclude(letter.request, { params: -1, tenant: "t", metadata: { of: "two" } })
      assert.strictEqual(Cause.squash(letter.response.cause), "failed")
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(yield* manager.deadLetters(Model), [])
    }).pipe(Effect.provide(Manager)))

  it.effect("are not kept unless the model says so", () =>
    Effect.gen(function*() {
      const { Model, manager, submit } = yield* open({ rateLimiters: "unlimited" })
      yield* submit("fails", {}, -1)
      yield* TestClock.adjust(0)
      assert.deepStrictEqual(yield* manager.deadLetters(Model), [])
    }).pipe(Effect.provide(Manager)))

  it.effect("can be submitted again, once, and stay when that is not accepted", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string, string>("model", {
        rateLimiters: "unlimited",
        deadLetters: { count: 10 }
      })
      let isWell = false
      const options: Array<unknown> = []
      yield* manager.registerQueue(Model, (request) => {
        options.push(request.timeout)
        return isWell ? Effect.succeed(request.params) : Effect.fail("failed")
      })
      yield* Effect.flip(manager.submit(Model, "hello", { id: "first", timeout: "1 minute", deadline: 1000 }))
      yield* TestClock.adjust("1 hour")
      yield* manager.drainQueue(Model)
      assert.strictEqual((yield* Effect.flip(manager.resubmitDeadLetter(Model, "first")))._tag, "QueueDraining")
      yield* manager.resumeQueue(Model)
      isWell = true
      const pending = yield* manager.resubmitDeadLetter(Model, "first", { timeout: "2 minutes" })
      assert.notStrictEqual(pending.requestId, "first")
      assert.strictEqual((yield* manager.awaitCompletion(pending)).result, "hello")
      assert.deepStrictEqual(options, ["1 minute", "2 minutes"])
      assert.strictEqual((yield* Effect.flip(manager.resubmitDeadLetter(Model, "first")))._tag, "RequestNotFound")
      isWell = false
      for (const id of ["a", "b", "c"]) yield* Effect.flip(manager.submit(Model, "", { id }))
      assert.strictEqual(yield* manager.removeDeadLetters(Model, ["b", "nobody"]), 1)
      assert.strictEqual(yield* manager.removeDeadLetters(Model), 2)
    }).pipe(Effect.provide(Manager)))
})

describe("a dead letter whose submission is given up", () => {
  it.effect("is put back in its place, within their number and its age", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      for (const [count, expected] of [[1, ["b"]], [2, ["a", "b"]]] as const) {
        const Model = ModelConfig.makeUntyped<number, string, string>(`model ${count}`, {
          rateLimiters: [RateLimiter.concurrent(1)],
          capacity: 1,
          deadLetters: { count, age: "1 minute" }
        })
        yield* manager.registerQueue(Model, ({ params }) => Effect.delay(Effect.fail("failed"), params))
        const submit = (id: string, params: number) =>
          manager.submitRequest(QueueRequest.make(Model, { params, id, waitForCompletion: false }))
        const ids = Effect.map(manager.deadLetters(Model), (letters) => letters.map(({ requestId }) => requestId))
        yield* submit("a", 0)
        yield* TestClock.adjust(1)
        for (const id of ["b", "c"]) {
          yield* submit(id, 1000)
          yield* TestClock.adjust(0)
        }
        yield* manager.pauseQueue(Model)
        const again = yield* Effect.forkChild(manager.resubmitDeadLetter(Model, "a"), { startImmediately: true })
        yield* TestClock.adjust("1 second")
        assert.deepStrictEqual(yield* ids, ["b"])
        yield* Fiber.interrupt(again)
        assert.deepStrictEqual(yield* ids, [...expected])
        yield* TestClock.adjust("59 seconds")
        assert.deepStrictEqual(yield* ids, ["b"])
      }
    }).pipe(Effect.provide(Manager)))

  it.effect("keeps its place among those that failed at the same instant", () =>
    Effect.gen(function*() {
      const { Model, manager, submit } = yield* open({ rateLimiters: "unlimited", deadLetters: { count: 10 } })
      for (const id of ["a", "b", "c"]) yield* submit(id, {}, -1)
      yield* TestClock.adjust(0)
      yield* manager.drainQueue(Model)
      const error = yield* Effect.flip(manager.resubmitDeadLetter(Model, "b"))
      assert.strictEqual(error._tag, "QueueDraining")
      const letters = yield* manager.deadLetters(Model)
      assert.deepStrictEqual(letters.map(({ requestId }) => requestId), ["a", "b", "c"])
    }).pipe(Effect.provide(Manager)))
})

describe("an operator at random", () => {
  it.effect("loses no request, dispatches none while it is paused, and keeps the order", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      for (let seed = 1; seed <= 60; seed++) {
        const choose = random.make(seed)
        const Model = ModelConfig.makeUntyped<number, string>(`model${seed}`, {
          rateLimiters: [RateLimiter.concurrent(choose.int(1, 3)), RateLimiter.rpm(20, { timePeriod: "1 second" })],
          capacity: choose.pick([3, 100]),
          bypass: 0,
          retention: { count: 1000 }
        })
        let isPaused = false
        let problem: string | undefined
        /** Those that wait, with the time that orders them. */
        const keys = new Map<string, number>()
        const ids: Array<string> = []
        yield* manager.registerQueue(Model, (request) =>
          Effect.gen(function*() {
            if (isPaused) problem ??= `seed ${seed}: ${request.id} is dispatched in a pause`
            const key = keys.get(request.id)!
            keys.delete(request.id)
            for (const [id, other] of keys) {
              if (other < key) problem ??= `seed ${seed}: ${request.id} goes before ${id}`
            }
            yield* Effect.sleep(request.params)
            return "ok"
          }))
        for (let step = 0; step < 80; step++) {
          // Everything that was due at the instant before has been done.
          yield* TestClock.adjust(choose.int(1, 100))
          const now = yield* Clock.currentTimeMillis
          const action = choose.int(0, 9)
          const info = yield* manager.getQueueInfo(Model)
          if (action < 5 && info.state !== "draining") {
            if (info.depth >= info.capacity) continue
            const id = `r${step}`
            const priority = choose.int(-3, 3)
            ids.push(id)
            keys.set(id, now - priority * 1000)
            yield* manager.submitRequest(
              QueueRequest.make(Model, { id, priority, params: choose.int(0, 200), waitForCompletion: false })
            )
          } else if (action === 5) {
            isPaused = info.state !== "draining"
            if (isPaused) yield* manager.pauseQueue(Model)
          } else if (action === 6) {
            isPaused = false
            yield* manager.resumeQueue(Model)
          } else if (action === 7) {
            const meant = choose.pick([...ids, "nobody"])
            keys.delete(meant)
            yield* manager.cancelRequests(Model, { ids: [meant] })
          } else if (action === 8 && keys.size > 0) {
            const id = choose.pick([...keys.keys()])
            const priority = choose.int(-3, 3)
            const response = yield* manager.getStatus(Model, id)
            keys.set(id, response.createdAt - priority * 1000)
            if (!(yield* manager.changePriority(Model, id, priority))) problem ??= `seed ${seed}: ${id} does not wait`
          } else if (choose.chance(0.3)) {
            isPaused = false
            yield* Effect.forkChild(manager.drainQueue(Model), { startImmediately: true })
          }
        }
        yield* manager.resumeQueue(Model)
        isPaused = false
        yield* TestClock.adjust("1 minute")
        assert.isUndefined(problem)
        for (const id of ids) {
          const { status } = yield* manager.getStatus(Model, id)
          assert.isTrue(status === "completed" || status === "cancelled", `seed ${seed}: ${id} is ${status}`)
        }
        yield* manager.unregisterQueue(Model)
      }
    }).pipe(Effect.provide(Manager)), 60_000)
})
