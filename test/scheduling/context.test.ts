import { assert, describe, it } from "@effect/vitest"
import { DateTime, Effect, Fiber } from "effect"
import { ModelConfig, QueueManager, RateLimiter } from "effect-llm-queue"
import { TestClock } from "effect/testing"

/** Its end waits for nobody, so that a test can leave requests behind. */
const Manager = QueueManager.layerWith({ shutdown: { policy: "interrupt", deadline: 0 } })

const seen = (request: {
  readonly priority?: unknown
  readonly tenant?: unknown
  readonly labels?: unknown
}) => ({ priority: request.priority, tenant: request.tenant, labels: request.labels })

describe("the context of requests", () => {
  it.effect("is that of the region, less what the request says itself, less what the model says", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, ReturnType<typeof seen>>("model", { rateLimiters: "unlimited" })
      yield* manager.registerQueue(Model, (request) => Effect.succeed(seen(request)))
      const region = Effect.gen(function*() {
        const plain = yield* manager.submit(Model, "")
        const own = yield* manager.submit(Model, "", { priority: 5, tenant: "own", labels: { b: "2" } })
        return [plain.result, own.result, plain.tenant, own.tenant]
      })
      assert.deepStrictEqual(
        yield* region.pipe(
          QueueManager.withLabels({ b: "1", c: "3" }),
          QueueManager.withPriority("low"),
          QueueManager.withTenant("region"),
          QueueManager.withLabels({ a: "1", c: "0" })
        ),
        [
          { priority: "low", tenant: "region", labels: { a: "1", b: "1", c: "3" } },
          { priority: 5, tenant: "own", labels: { a: "1", b: "2", c: "3" } },
          "region",
          "own"
        ]
      )
      assert.deepStrictEqual((yield* region)[0], { priority: undefined, tenant: undefined, labels: undefined })
    }).pipe(Effect.provide(Manager)))

  it.effect("can be given before or after the program", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, ReturnType<typeof seen>>("model", { rateLimiters: "unlimited" })
      yield* manager.registerQueue(Model, (request) => Effect.succeed(seen(request)))
      const plain = Effect.map(manager.submit(Model, ""), ({ result }) => result)
      const first = QueueManager.withPriority(
        QueueManager.withTenant(QueueManager.withLabels(QueueManager.withDeadline(plain, 1000), { a: "1" }), "t"),
        "high"
      )
      const last = plain.pipe(
        QueueManager.withDeadline(1000),
        QueueManager.withLabels({ a: "1" }),
        QueueManager.withTenant("t"),
        QueueManager.withPriority("high")
      )
      assert.deepStrictEqual(yield* first, { priority: "high", tenant: "t", labels: { a: "1" } })
      assert.deepStrictEqual(yield* last, yield* first)
      yield* TestClock.adjust("2 seconds")
      for (const late of [first, last]) assert.strictEqual((yield* Effect.flip(late))._tag, "QueueTimeout")
    }).pipe(Effect.provide(Manager)))

  it.effect("is inherited by forked fibers, and by what a processor submits, from its request and nobody else", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Tool = ModelConfig.makeUntyped<string, ReturnType<typeof seen>>("tool", { rateLimiters: "unlimited" })
      const Agent = ModelConfig.makeUntyped<string, ReturnType<typeof seen>, string>("agent", {
        rateLimiters: [RateLimiter.concurrent(1)]
      })
      yield* manager.registerQueue(Tool, (request) => Effect.succeed(seen(request)))
      // Registered in a region of its own, which is not that of its requests.
      yield* manager.registerQueue(Agent, (request) =>
        request.params === ""
          ? Effect.map(
            Effect.flatMap(Effect.forkChild(manager.submit(Tool, "")), Fiber.join),
            ({ result }) => result
          ).pipe(Effect.mapError(String))
          : Effect.map(manager.submit(Agent, ""), ({ result }) => result).pipe(Effect.mapError(String))).pipe(
          QueueManager.withTenant("of the registration"),
          QueueManager.withPriority(1000)
        )
      const none = yield* manager.submit(Agent, "nested")
      assert.deepStrictEqual(none.result, { priority: undefined, tenant: undefined, labels: undefined })
      const some = yield* manager.submit(Agent, "nested", { priority: "high" }).pipe(QueueManager.withTenant("user"))
      assert.deepStrictEqual(some.result, { priority: "high", tenant: "user", labels: undefined })
    }).pipe(Effect.provide(Manager)))

  it.effect("what is no tenant, priority, label or deadline is named when a request is submitted", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("model", { rateLimiters: "unlimited" })
      yield* manager.registerQueue(Model, (request) => Effect.succeed(request.params))
      const error = yield* Effect.flip(
        manager.submit(Model, "").pipe(
          QueueManager.withTenant(""),
          QueueManager.withPriority(Number.NaN),
          QueueManager.withDeadline("no date"),
          QueueManager.withDeadline(0),
          QueueManager.withLabels({ a: "x".repeat(1000) })
        )
      )
      assert(error._tag === "InvalidRequest")
      assert.deepStrictEqual(error.problems.map((problem) => problem.split(":")[0]), [
        "deadline",
        "priority",
        "tenant",
        "labels"
      ])
    }).pipe(Effect.provide(Manager)))
})

describe("a deadline", () => {
  it.effect("ends a request at its instant, whatever the clock does later, and is named in the error", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("model", { rateLimiters: "unlimited" })
      yield* manager.registerQueue(Model, () => Effect.never)
      yield* TestClock.adjust("1 hour")
      const deadline = DateTime.addDuration(yield* DateTime.now, "10 seconds")
      const late = yield* Effect.forkChild(
        Effect.flip(manager.submit(Model, "", { deadline, timeout: "20 seconds" })),
        { startImmediately: true }
      )
      const early = yield* Effect.forkChild(
        Effect.flip(manager.submit(Model, "", { deadline: DateTime.toDate(deadline), timeout: "5 seconds" })),
        { startImmediately: true }
      )
      yield* TestClock.adjust("9999 millis")
      assert.isUndefined(late.pollUnsafe())
      yield* TestClock.adjust("1 millis")
      const error = yield* Fiber.join(late)
      assert(error._tag === "QueueTimeout")
      assert.deepInclude(error, { limit: "deadline", timeoutMillis: 10_000, processingTimeMillis: 10_000 })
      const other = yield* Fiber.join(early)
      assert(other._tag === "QueueTimeout")
      assert.strictEqual(other.limit, "timeout")
    }).pipe(Effect.provide(Manager)))

  it.effect("in the past fails a request when it is submitted", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("model", { rateLimiters: "unlimited" })
      yield* manager.registerQueue(Model, (request) => Effect.succeed(request.params))
      yield* TestClock.adjust("1 hour")
      const error = yield* Effect.flip(manager.submit(Model, "", { deadline: 0 }))
      assert(error._tag === "QueueTimeout")
      assert.isTrue(error.message.includes("1h after its deadline"), error.message)
    }).pipe(Effect.provide(Manager)))

  it.effect("of regions inside one another the earliest holds", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("model", { rateLimiters: "unlimited" })
      yield* manager.registerQueue(Model, () => Effect.never)
      for (const [outer, inner, own] of [[5, 7, 9], [7, 5, 9], [9, 7, 5]] as const) {
        const begin = DateTime.toEpochMillis(yield* DateTime.now)
        const at = (seconds: number) => begin + seconds * 1000
        const request = yield* Effect.forkChild(
          Effect.flip(manager.submit(Model, "", { deadline: at(own) })).pipe(
            QueueManager.withDeadline(at(inner)),
            QueueManager.withDeadline(at(outer))
          ),
          { startImmediately: true }
        )
        yield* TestClock.adjust("4999 millis")
        assert.isUndefined(request.pollUnsafe())
        yield* TestClock.adjust("1 millis")
        assert.strictEqual((yield* Fiber.join(request))._tag, "QueueTimeout")
      }
    }).pipe(Effect.provide(Manager)))
})
