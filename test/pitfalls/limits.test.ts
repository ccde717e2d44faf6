import { assert, describe, it } from "@effect/vitest"
import { Clock, Effect, Fiber } from "effect"
import { ModelConfig, QueueManager, QueueRequest, RateLimiter } from "effect-llm-queue"
import { TestClock } from "effect/testing"
import { exactCharges, SlidingWindow } from "../../src/internal/slidingWindow.ts"
import { limit as makeLimit } from "../limit.ts"

/** Its end waits for nobody, so that a test can leave requests behind. */
const Manager = QueueManager.layerWith({ shutdown: { policy: "interrupt", deadline: 0 } })

const submit = <P, A, E>(
  manager: QueueManager.QueueManager["Service"],
  model: ModelConfig.ModelConfig<P, A, E>,
  params: NoInfer<P>,
  options?: QueueRequest.RequestOptions
) => manager.submitRequest(QueueRequest.make(model, { ...options, params, waitForCompletion: false }))

const tokens = (n: number) => ({ estimatedInputTokens: n, estimatedOutputTokens: 0 })

/** What every limit of a model has used. */
const used = (manager: QueueManager.QueueManager["Service"], model: ModelConfig.Any) =>
  Effect.map(manager.getQueueInfo(model), (info) => info.rateLimiters.map((limit) => limit.used))

describe("pitfalls: limits", () => {
  it.effect("a reserved permit is not held while waiting for tokens", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("no-held-permit", {
        rateLimiters: [RateLimiter.concurrent(1), RateLimiter.rpm(10), RateLimiter.tpm(100)]
      })
      const started: Array<string> = []
      yield* manager.registerQueue(Model, (request) => Effect.sync(() => (started.push(request.params), "ok")))
      yield* submit(manager, Model, "first", tokens(100))
      yield* TestClock.adjust(0)
      yield* submit(manager, Model, "waits for tokens", tokens(50))
      yield* TestClock.adjust(0)
      assert.deepStrictEqual(yield* used(manager, Model), [0, 1, 100])
      yield* submit(manager, Model, "needs no tokens", { ...tokens(0), priority: "high" })
      yield* TestClock.adjust(0)
      assert.deepStrictEqual(started, ["first", "needs no tokens"])
      assert.deepStrictEqual(yield* used(manager, Model), [0, 2, 100])
    }).pipe(Effect.provide(Manager)))

  it.effect("a request is dated when it is dispatched, and not while it waits for another limit", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("dated-at-dispatch", {
        rateLimiters: [
          RateLimiter.rpm(1, { timePeriod: "2 seconds" }),
          RateLimiter.tpm(100, { timePeriod: "4 seconds" })
        ]
      })
      const started: Array<number> = []
      yield* manager.registerQueue(Model, () => Effect.map(Clock.currentTimeMillis, (now) => (started.push(now), "ok")))
      for (const params of ["a", "b", "c", "d"]) {
        yield* submit(manager, Model, params, tokens(params === "c" || params === "d" ? 1 : 99))
      }
      yield* TestClock.adjust("10 seconds")
      assert.deepStrictEqual(started, [0, 4000, 6000, 8000])
    }).pipe(Effect.provide(Manager)))

  it.effect("a request that one limit refuses is charged to none of the others, and takes back nobody else's charge", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("all-or-none", {
        failEarly: false,
        rateLimiters: [
          RateLimiter.rpm(3),
          RateLimiter.itpm(100),
          RateLimiter.tpd(1000),
          RateLimiter.tpm(10, { timePeriod: "1 second" }),
          RateLimiter.concurrent(2)
        ]
      })
      yield* manager.registerQueue(Model, () => Effect.succeed("ok"))
      yield* submit(manager, Model, "first", tokens(10))
      yield* submit(manager, Model, "second", tokens(10))
      for (let i = 0; i < 9; i++) {
        yield* TestClock.adjust(100)
        assert.deepStrictEqual(yield* used(manager, Model), [1, 10, 10, 10, 0])
        // Whatever wakes the queue, it asks again and must leave no trace.
        yield* submit(manager, Model, `more ${i}`, { ...tokens(10), timeout: 50 })
      }
      yield* TestClock.adjust(100)
      assert.deepStrictEqual(yield* used(manager, Model), [2, 20, 20, 10, 0])
    }).pipe(Effect.provide(Manager)))

  it.effect("the end of a request gives its permit back and nothing else", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("only-the-permit", {
        rateLimiters: [RateLimiter.concurrent(1), RateLimiter.rpm(5), RateLimiter.tpm(100)]
      })
      yield* manager.registerQueue(Model, () => Effect.succeed("ok"))
      yield* manager.submit(Model, "a", tokens(10))
      yield* TestClock.adjust(0)
      assert.deepStrictEqual(yield* used(manager, Model), [0, 1, 10])
    }).pipe(Effect.provide(Manager)))

  it.effect("no end of a request gives back more than its one permit", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string, string>("one-permit-each", {
        rateLimiters: [RateLimiter.concurrent(2)]
      })
      let running = 0
      const seen: Array<number> = []
      yield* manager.registerQueue(Model, (request) =>
        Effect.gen(function*() {
          seen.push(++running)
          switch (request.params) {
            case "fails":
              return yield* Effect.fail("failed")
            case "dies":
              return yield* Effect.die("bug")
            case "interrupts":
              return yield* Effect.interrupt
            case "sleeps":
              yield* Effect.sleep("1 second")
          }
          return "ok"
        }).pipe(Effect.ensuring(Effect.sync(() => running--))))
      for (const params of ["fails", "dies", "interrupts", "succeeds"]) {
        yield* Effect.exit(manager.submit(Model, params))
      }
      for (const end of ["cancel", "interrupt", "timeout"]) {
        const caller = yield* Effect.forkChild(
          Effect.exit(manager.submit(Model, "sleeps", { id: end, ...(end === "timeout" ? { timeout: 10 } : {}) })),
          { startImmediately: true }
        )
        yield* TestClock.adjust(0)
        if (end === "cancel") {
          yield* manager.cancelRequest(Model, end)
          yield* manager.cancelRequest(Model, end)
        }
        if (end === "interrupt") yield* Fiber.interrupt(caller)
        yield* TestClock.adjust(10)
      }
      assert.deepStrictEqual(yield* used(manager, Model), [0])
      for (let i = 0; i < 7; i++) yield* submit(manager, Model, "sleeps")
      yield* TestClock.adjust("10 seconds")
      assert.strictEqual(Math.max(...seen), 2)
      assert.deepStrictEqual(yield* used(manager, Model), [0])
    }).pipe(Effect.provide(Manager)))

  it.effect("a reservation given back or completed twice counts once", () =>
    Effect.gen(function*() {
      const limiter = yield* (yield* RateLimiter.RateLimiter).make("twice", [
        makeLimit("rpm", 5),
        makeLimit("tpm", 100, { chargedAt: "completion" })
      ])
      const admit = Effect.map(limiter.admit({ inputTokens: 10, outputTokens: 0 }, true), (admission) => {
        assert(admission._tag === "Admitted")
        return admission.reservation
      })
      const first = yield* admit
      const second = yield* admit
      yield* limiter.giveBack(first, false)
      yield* limiter.giveBack(first, false)
      yield* limiter.complete(second)
      yield* limiter.complete(second)
      yield* limiter.giveBack(second, false)
      yield* limiter.complete(first)
      assert.deepStrictEqual((yield* limiter.usage).map((limit) => limit.used), [1, 10])
    }))

  it.effect("a permit that nobody holds cannot be given back", () =>
    Effect.gen(function*() {
      const limiter = yield* (yield* RateLimiter.RateLimiter).make("unpaired", [
        makeLimit("concurrent", 2)
      ])
      for (let i = 0; i < 5; i++) yield* limiter.releasePermit
      const admissions = yield* Effect.forEach(
        [1, 2, 3],
        () => limiter.admit({ inputTokens: 1, outputTokens: 1 }, true)
      )
      assert.deepStrictEqual(admissions.map((admission) => admission._tag), ["Admitted", "Admitted", "Blocked"])
    }))

  it.effect("a wall clock set back or forward neither freezes a window nor opens it", () =>
    Effect.gen(function*() {
      const test = yield* Clock.Clock
      let shift = 0
      const jumping = new Proxy(test, {
        get: (target, key): unknown => {
          switch (key) {
            case "currentTimeMillisUnsafe":
              return () => target.currentTimeMillisUnsafe() + shift
            case "currentTimeMillis":
              return Effect.map(target.currentTimeMillis, (millis) => millis + shift)
            case "currentTimeNanosUnsafe":
              return () => target.currentTimeNanosUnsafe() + BigInt(shift) * 1_000_000n
            case "currentTimeNanos":
              return Effect.map(target.currentTimeNanos, (nanos) => nanos + BigInt(shift) * 1_000_000n)
            default:
              return Reflect.get(target, key)
          }
        }
      })
      yield* Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const Model = ModelConfig.makeUntyped<string, string>("wall-clock", {
          rateLimiters: [RateLimiter.rpm(1, { timePeriod: "1 second" })],
          timeout: "5 seconds",
          retention: { age: "1 minute" }
        })
        const started: Array<readonly [string, number]> = []
        const begin = test.monotonicTimeNanosUnsafe()
        yield* manager.registerQueue(Model, (request) =>
          Effect.sync(() => {
            started.push([request.params, Number(test.monotonicTimeNanosUnsafe() - begin) / 1e6])
            return "ok"
          }))
        yield* submit(manager, Model, "a")
        yield* submit(manager, Model, "b")
        yield* submit(manager, Model, "c")
        yield* TestClock.adjust(500)
        shift = -3_600_000
        yield* TestClock.adjust(500)
        shift = 3_600_000
        yield* TestClock.adjust(999)
        assert.deepStrictEqual(started, [["a", 0], ["b", 1000]])
        yield* TestClock.adjust(1)
        assert.deepStrictEqual(started[2], ["c", 2000])
        const info = yield* manager.getQueueInfo(Model)
        assert.deepStrictEqual([info.completed, info.failed], [3, 0])
      }).pipe(Effect.provide(Manager), Effect.provideService(Clock.Clock, jumping))
    }))

  it.effect("a limit keeps to its own period, from a quarter of a second to a day", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const limits = [
        [RateLimiter.rpm(1, { timePeriod: "250 millis" }), 250],
        [RateLimiter.rpm(1), 60_000],
        [RateLimiter.rpd(1), 86_400_000],
        [RateLimiter.tpm(1), 60_000],
        [RateLimiter.tpd(1), 86_400_000],
        [RateLimiter.itpm(1), 60_000],
        [RateLimiter.itpm(1, { timePeriod: "1 day" }), 86_400_000],
        [RateLimiter.tpm(1, { timePeriod: "1 second", margin: "200 millis" }), 1200]
      ] as const
      for (const [index, [limit, period]] of limits.entries()) {
        const Model = ModelConfig.makeUntyped<string, string>(`period-${index}`, { rateLimiters: [limit] })
        const started: Array<string> = []
        yield* manager.registerQueue(Model, (request) => Effect.sync(() => (started.push(request.params), "ok")))
        yield* submit(manager, Model, "a", tokens(1))
        yield* submit(manager, Model, "b", tokens(1))
        yield* TestClock.adjust(period - 1)
        assert.deepStrictEqual(started, ["a"])
        yield* TestClock.adjust(1)
        assert.deepStrictEqual(started, ["a", "b"])
      }
    }).pipe(Effect.provide(Manager)))

  it.effect("a configuration that cannot work is refused at registration with everything that is wrong in it", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const problems = (modelId: string, options: unknown) =>
        Effect.map(
          Effect.flip(manager.registerQueue(
            ModelConfig.makeUntyped<string, string>(modelId, options as { readonly rateLimit: number }),
            () => Effect.succeed("ok")
          )),
          (error) =>
            error._tag === "InvalidConfiguration" ? error.problems.map((problem) => problem.split(":")[0]) : error._tag
        )
      assert.deepStrictEqual(yield* problems("", { rateLimit: 1 }), ["modelId"])
      assert.deepStrictEqual(yield* problems("none", { rateLimiters: [] }), ["rateLimiters"])
      assert.deepStrictEqual(yield* problems("nothing", {}), ["rateLimiters"])
      assert.deepStrictEqual(
        yield* problems("twice", { rateLimiters: [RateLimiter.rpm(1), RateLimiter.rpm(2)] }),
        ["rateLimiters[1]"]
      )
      assert.deepStrictEqual(
        yield* problems("both forms", { rateLimit: 1, rateLimiters: [RateLimiter.rpm(1)] }),
        ["rateLimit"]
      )
      assert.deepStrictEqual(
        yield* problems("period of none", { rateLimit: 1, rateLimiterMode: "concurrent_requests", timePeriod: 1000 }),
        ["timePeriod"]
      )
      assert.deepStrictEqual(
        yield* problems("all of it", {
          rateLimiters: [
            { type: "rph", limit: 1 },
            RateLimiter.rpm(0),
            RateLimiter.rpm(1.5),
            RateLimiter.rpm(1, { timePeriod: -1 }),
            { ...RateLimiter.concurrent(1), timePeriod: "1 minute" }
          ],
          capacity: 0,
          timeout: 0
        }),
        [
          "rateLimiters[0].type",
          "rateLimiters[1].limit",
          "rateLimiters[2].limit",
          "rateLimiters[3].timePeriod",
          "rateLimiters[4].timePeriod",
          "capacity",
          "timeout"
        ]
      )
      assert.deepStrictEqual(yield* manager.getRegisteredModels, [])
    }).pipe(Effect.provide(Manager)))

  it.effect("two limits of one type over different periods hold together", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("two-periods", {
        rateLimiters: [RateLimiter.rpm(1, { timePeriod: "1 second" }), RateLimiter.rpm(2, { timePeriod: "10 seconds" })]
      })
      const started: Array<number> = []
      yield* manager.registerQueue(Model, () => Effect.map(Clock.currentTimeMillis, (now) => (started.push(now), "ok")))
      for (const params of ["a", "b", "c", "d"]) yield* submit(manager, Model, params)
      yield* TestClock.adjust("20 seconds")
      assert.deepStrictEqual(started, [0, 1000, 10_000, 11_000])
    }).pipe(Effect.provide(Manager)))

  it.effect("a model can have no limits, when it says so", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<number, string>("unlimited", { rateLimiters: "unlimited" })
      yield* manager.registerQueue(Model, () => Effect.never)
      for (let i = 0; i < 1000; i++) yield* submit(manager, Model, i)
      yield* TestClock.adjust(0)
      assert.strictEqual((yield* manager.getQueueInfo(Model)).running, 1000)
    }).pipe(Effect.provide(Manager)))

  describe("the cost of an admission", () => {
    /** A window with so many charges, one each millisecond, and the number of its numbers that an operation reads. */
    const filled = (charges: number) => {
      const window = new SlidingWindow(charges)
      for (let now = 1; now <= charges; now++) window.add(now, 1)
      let reads = 0
      const counted = (array: Array<number>) =>
        new Proxy(array, {
          get: (target, key): unknown => {
            if (typeof key === "string" && /^\d/.test(key)) reads++
            return Reflect.get(target, key)
          }
        })
      let blocks = 0
      for (let block = Reflect.get(window, "head"); block !== undefined; block = Reflect.get(block, "next")) {
        Reflect.set(block, "dates", counted(Reflect.get(block, "dates")))
        Reflect.set(block, "amounts", counted(Reflect.get(block, "amounts")))
        blocks++
      }
      return {
        blocks,
        window,
        reads: (operation: () => void) => {
          reads = 0
          operation()
          return reads
        }
      }
    }

    it("does not grow with what the window holds", () => {
      const costs = [1000, 10_000, exactCharges].map((charges) => {
        const { reads, window } = filled(charges)
        return {
          expireNothing: reads(() => window.expire(charges)),
          expireOne: reads(() => window.expire(charges + 1)),
          add: reads(() => window.add(charges + 1, 1)),
          untilOneIsFree: reads(() => window.freedAt(1)),
          usage: reads(() => window.used)
        }
      })
      assert.deepStrictEqual(costs[1], costs[0])
      assert.deepStrictEqual(costs[2], costs[0])
      assert.isAtMost(Object.values(costs[0]!).reduce((sum, reads) => sum + reads, 0), 20)
    })

    it("to find when much is free is to skip whole blocks and to read one", () => {
      const small = filled(1000)
      const large = filled(exactCharges)
      const bound = small.window.freedAt(1000) === 2000 ? 256 : 0
      assert.isAtMost(small.reads(() => small.window.freedAt(900)), bound)
      assert.isAtMost(large.reads(() => large.window.freedAt(exactCharges - 100)), bound)
      assert.isAtMost(large.blocks, exactCharges / 256 + 1)
    })
  })

  it("what has left the window is let go, even when an old charge is still held", () => {
    const window = new SlidingWindow(1000)
    const place = window.add(0, 1)
    for (let now = 1; now < 10_000; now++) {
      window.expire(now)
      window.add(now, 1)
    }
    let kept = 0
    for (let block: unknown = place.block; block !== undefined; block = Reflect.get(block as object, "next")) kept++
    assert.isAtMost(kept, 6)
    assert.strictEqual(window.used, 1000)
  })
})
