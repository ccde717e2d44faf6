/** What a program around a queue can do to it: break its logger, put the machine to sleep, fill it, and say anything. */
import { assert, describe, it } from "@effect/vitest"
import { Cause, Clock, Duration, Effect, Exit, Fiber, Layer, Logger, Schedule, Stream } from "effect"
import { ModelConfig, ProviderProfile, QueueManager, QueueRequest, RateLimiter } from "effect-llm-queue"
import { TestClock } from "effect/testing"
import { setImmediate } from "node:timers/promises"

const tagOf = (exit: Exit.Exit<unknown, unknown>): string => {
  if (Exit.isSuccess(exit)) return "completed"
  const error: unknown = Cause.squash(exit.cause)
  return typeof error === "object" && error !== null && "_tag" in error ? String(error._tag) : String(error)
}

describe("a logger that throws", () => {
  it.effect("keeps no request from its end, and no permit", () => {
    let logged = 0
    const broken = Logger.make(() => {
      logged++
      throw new Error("a broken logger")
    })
    const breaks = (): never => {
      throw new Error("broken")
    }
    return Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      // Each of them is told in the log.
      const Model = ModelConfig.makeUntyped<string, string, object>("broken logger", {
        rateLimiters: [RateLimiter.concurrent(1), RateLimiter.tpm(100_000)],
        provider: { ...ProviderProfile.openai, limits: {} },
        retry: { schedule: Schedule.fromStep(Effect.succeed(() => Effect.die("broken"))) },
        estimator: { make: () => ({ estimate: breaks, observe: () => {}, stats: breaks }) },
        usage: breaks
      })
      yield* manager.registerQueue(Model, ({ params }) =>
        params === "refused"
          ? Effect.fail({ status: 503, headers: { "retry-after": "1" } })
          : Effect.succeed(params))
      const ask = (params: string) => Effect.forkChild(Effect.exit(manager.submit(Model, params)))
      const fibers = yield* Effect.forEach(["a", "refused", "b"], ask)
      yield* TestClock.adjust("2 minutes")
      for (const fiber of fibers) assert.isDefined(fiber.pollUnsafe())
      const ends = yield* Effect.forEach(fibers, Fiber.join)
      assert.deepStrictEqual(ends.map(Exit.isSuccess), [true, false, true])
      const { depth, rateLimiters, running } = yield* manager.getQueueInfo(Model)
      assert.deepStrictEqual([depth, running, rateLimiters[0]!.used], [0, 0, 0])
      const Writer = ModelConfig.makeStreamUntyped<null, number>("broken logger, stream", {
        rateLimiters: [RateLimiter.concurrent(1), RateLimiter.tpm(100_000)],
        usage: breaks
      })
      yield* manager.registerStream(Writer, () => Stream.make(1, 2, 3))
      assert.deepStrictEqual(yield* Stream.runCollect(manager.stream(Writer, null)), [1, 2, 3])
      assert.isAbove(logged, 3)
      yield* manager.shutdownAll()
    }).pipe(Effect.scoped, Effect.provide(Layer.provideMerge(QueueManager.layer, Logger.layer([broken]))))
  })
})

/** A clock that stands until it jumps; then all timers whose time has come meanwhile ring, as after a sleep. */
const standing = () => {
  let now = 1_800_000_000_000
  const sleepers = new Map<() => void, number>()
  const nanos = () => BigInt(now) * 1_000_000n
  const clock: Clock.Clock = {
    currentTimeMillisUnsafe: () => now,
    currentTimeMillis: Effect.sync(() => now),
    currentTimeNanosUnsafe: nanos,
    currentTimeNanos: Effect.sync(nanos),
    monotonicTimeNanosUnsafe: nanos,
    monotonicTimeNanos: Effect.sync(nanos),
    sleep: (duration) =>
      Effect.callback((resume) => {
        const ring = () => resume(Effect.void)
        sleepers.set(ring, now + Duration.toMillis(duration))
        return Effect.sync(() => sleepers.delete(ring))
      })
  }
  const jump = (seconds: number) =>
    Effect.gen(function*() {
      now += seconds * 1000
      // What was woken may sleep for no time at all.
      for (let turn = 0; turn < 100; turn++) {
        for (const [ring, at] of sleepers) {
          if (at > now) continue
          sleepers.delete(ring)
          ring()
        }
        yield* Effect.promise(() => setImmediate())
      }
    })
  return { clock, jump }
}

describe("a machine that sleeps", () => {
  it.live("wakes to one window of requests, and to the timeouts that have passed", () => {
    const { clock, jump } = standing()
    return Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, void>("sleeps", {
        rateLimiters: [RateLimiter.rpm(5), RateLimiter.concurrent(10)],
        failEarly: false,
        shutdown: { policy: "interrupt", deadline: 0 }
      })
      const started: Array<string> = []
      yield* manager.registerQueue(Model, ({ id }) => Effect.sync(() => void started.push(id)))
      const ask = (kind: string, count: number, timeout: Duration.Input) =>
        Effect.forEach(
          Array.from({ length: count }),
          (_, index) =>
            Effect.forkChild(Effect.exit(manager.submit(Model, "", { id: `${kind} ${index}`, timeout })), {
              startImmediately: true
            })
        )
      const short = yield* ask("short", 20, "1 hour")
      const long = yield* ask("long", 12, "10 hours")
      yield* jump(10)
      assert.deepStrictEqual(started, ["short 0", "short 1", "short 2", "short 3", "short 4"])
      yield* jump(8 * 3600)
      assert.deepStrictEqual(started.slice(5), ["long 0", "long 1", "long 2", "long 3", "long 4"])
      for (const [index, fiber] of short.entries()) {
        assert.isDefined(fiber.pollUnsafe())
        assert.strictEqual(tagOf(yield* Fiber.join(fiber)), index < 5 ? "completed" : "QueueTimeout")
      }
      const { rateLimiters } = yield* manager.getQueueInfo(Model)
      assert.deepStrictEqual(rateLimiters.map(({ used }) => used), [5, 0])
      yield* jump(59)
      assert.strictEqual(started.length, 10)
      yield* jump(1)
      assert.strictEqual(started.length, 15)
      yield* jump(60)
      for (const fiber of long) assert.isDefined(fiber.pollUnsafe())
    }).pipe(Effect.scoped, Effect.provide(QueueManager.layer), Effect.provideService(Clock.Clock, clock))
  }, 30_000)
})

describe("a queue with a hundred thousand waiting", () => {
  it.effect(
    "follows each change of its limits, starts nothing twice, and is emptied in one step",
    () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const count = 100_000
        const Model = ModelConfig.makeUntyped<number, void>("many", {
          rateLimiters: [RateLimiter.rpm(1)],
          capacity: count,
          retention: { count: 0 }
        })
        const started: Array<number> = []
        yield* manager.registerQueue(Model, ({ params }) => Effect.sync(() => void started.push(params)))
        for (let params = 0; params < count; params++) {
          yield* manager.submitRequest(QueueRequest.make(Model, { params, waitForCompletion: false }))
        }
        yield* TestClock.adjust(0)
        const are = (length: number) => assert.deepStrictEqual(started, Array.from({ length }, (_, index) => index))
        are(1)
        yield* manager.updateRateLimiters(Model, [RateLimiter.rpm(1000)])
        yield* TestClock.adjust(0)
        are(1000)
        yield* manager.updateRateLimiters(Model, [RateLimiter.rpm(10), RateLimiter.tpm(1e9)])
        yield* TestClock.adjust("59 seconds")
        are(1000)
        yield* TestClock.adjust("1 second")
        are(1010)
        assert.strictEqual(yield* manager.cancelRequests(Model, {}), count - 1010)
        assert.strictEqual((yield* manager.getQueueInfo(Model)).depth, 0)
      }).pipe(Effect.scoped, Effect.provide(QueueManager.layer)),
    60_000
  )
})

describe("a queue that everybody leaves", () => {
  it.effect("is empty, however many leave at one time, and serves the next one", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<number, number>("left", {
        rateLimiters: [RateLimiter.rpm(10), RateLimiter.concurrent(5)],
        capacity: 30_000
      })
      yield* manager.registerQueue(Model, ({ params }) => params < 0 ? Effect.succeed(params) : Effect.never)
      // More than there is room for.
      const fibers = yield* Effect.forEach(Array.from({ length: 40_000 }), (_, params) =>
        Effect.forkChild(manager.submit(Model, params), { startImmediately: true }))
      yield* TestClock.adjust(0)
      const full = yield* manager.getQueueInfo(Model)
      assert.deepStrictEqual([full.running, full.depth, full.suspended], [5, 30_000, 9995])
      yield* Fiber.interruptAll(fibers)
      const { depth, rateLimiters, running, suspended } = yield* manager.getQueueInfo(Model)
      assert.deepStrictEqual([running, depth, suspended], [0, 0, 0])
      // Those five were seen by the provider.
      assert.deepStrictEqual(
        rateLimiters.map(({ used }) =>
          used
        ),
        [5, 0]
      )
      assert.strictEqual((yield* manager.submit(Model, -1)).result, -1)
    }).pipe(Effect.scoped, Effect.provide(QueueManager.layer)), 60_000)
})

describe("texts of strangers", () => {
  const texts = [
    "__proto__",
    "constructor",
    "toString",
    "hasOwnProperty",
    "",
    "a\u0000b",
    "a\nb",
    "\ud800",
    "{tag}",
    "a:b*c?",
    "\u202e\u2028",
    "漢字",
    "x".repeat(257),
    "x".repeat(1_000_000)
  ]

  it.effect("are a tenant, a label, a key or an id like any other, or refused, and nothing else", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const before = Object.getOwnPropertyNames(Object.prototype)
      const Model = ModelConfig.makeUntyped<unknown, string>("texts", {
        rateLimiters: [RateLimiter.rpm(1_000_000)],
        tenants: { others: { rateLimiters: [RateLimiter.rpm(1000)] } },
        deadLetters: { count: 10 }
      })
      const calls: Array<string> = []
      yield* manager.registerQueue(Model, ({ id }) => Effect.sync(() => (calls.push(id), id)))
      const own = (key: string, value: string): Readonly<Record<string, string>> => Object.fromEntries([[key, value]])
      const places = (text: string): ReadonlyArray<QueueRequest.RequestOptions> => [
        { id: text },
        { tenant: text },
        { dedupeKey: text },
        { labels: own(text, "value") },
        { labels: { name: text } },
        { labels: Object.fromEntries([[text, 7 as never]]) },
        { metadata: own(text, text) }
      ]
      for (const text of texts) {
        const named = JSON.stringify(text.slice(0, 20))
        for (const options of places(text)) {
          const at = `${Object.keys(options)[0]} ${named}`
          const called = calls.length
          const exit = yield* Effect.exit(manager.submit(Model, own(text, text), options))
          const end = tagOf(exit)
          assert.include(["completed", "InvalidRequest"], end, at)
          // A refused one is not called.
          assert.strictEqual(calls.length, called + (end === "completed" ? 1 : 0), at)
          if (Exit.isFailure(exit)) {
            assert.isBelow(Cause.pretty(exit.cause).length, 10_000, at)
            continue
          }
          const status = yield* manager.getStatus(Model, exit.value.requestId)
          assert.strictEqual(status.tenant, options.tenant, at)
        }
        const exits: ReadonlyArray<Exit.Exit<unknown, unknown>> = [
          yield* Effect.exit(manager.getStatus(Model, `not there ${text}`)),
          yield* Effect.exit(manager.cancelRequest(Model, `not there ${text}`)),
          yield* Effect.exit(manager.resubmitDeadLetter(Model, text))
        ]
        for (const exit of exits) assert.strictEqual(tagOf(exit), "RequestNotFound", named)
        const filter = { tenant: text, labels: own(text, text), ids: [text] }
        assert.deepStrictEqual(yield* Effect.orElseSucceed(manager.getRequests(Model, filter), () => []), [])
      }
      assert.deepStrictEqual(Object.getOwnPropertyNames(Object.prototype), before)
      assert.isAbove(calls.length, 40)
    }).pipe(Effect.scoped, Effect.provide(QueueManager.layer)))
})
