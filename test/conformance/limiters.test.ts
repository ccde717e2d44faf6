/**
 * What a queue does is the same wherever its limits are counted: each test runs with limits in memory and with limits on
 * a server.
 *
 * Where limits are shared, some laws cannot hold exactly. What holds instead is tested here, or where it says:
 *
 * | in memory | on a server | tested |
 * | --- | --- | --- |
 * | a charge of a window counts for the period | for up to a 1,024th of it longer | `about` |
 * | `updateTokenUsage` is `expired` from the instant on at which the charge is gone | up to a 1,024th of the period later | here |
 * | what changes has changed when the call returns | when the server has been told, in the next call | `calm` |
 * | small requests pass a blocked one (`bypass`) | none do | here |
 * | a part of a limit is guaranteed to a tenant | such a registration fails with `InvalidConfiguration` | here |
 * | a limit whose period or algorithm changes remembers what was sent | it begins empty; pauses stay | here |
 * | what others held blocks for ever | it is asked for again each second: others end what they hold | redis/laws.test.ts |
 * | a bucket that begins cold is set by the first header | it is only lowered by it, and fills with time | |
 * | growth that was too fast goes evenly until it has grown back | it goes in bursts of what is enforced | |
 */
import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import { Cause, Clock, Duration, Effect, Exit, Fiber, Layer, Schedule, Scope, Stream } from "effect"
import { ModelConfig, QueueManager, type QueueRequest, RateLimiter } from "effect-llm-queue"
import * as QueueRedis from "effect-llm-queue/Redis"
import { Redis } from "effect/persistence"
import { TestClock } from "effect/testing"
import process from "node:process"
import * as instant from "../redis/instant.ts"
import { hasRedis, url } from "../redis/server.ts"
import * as provider from "../refusals/provider.ts"

interface Asked {
  readonly id: string
  /** When it is submitted, in milliseconds; 0 when left out. In order. */
  readonly at?: number
  /** Input tokens that it reserves. */
  readonly tokens?: number
  readonly output?: number
  /** How long it takes. */
  readonly works?: number
  /** Input tokens that it has used in the end, when they are not those. */
  readonly uses?: number
  readonly priority?: QueueRequest.RequestOptions["priority"]
  readonly tenant?: string
  /** How long after its submission it is cancelled. */
  readonly cancelled?: number
}

interface Used {
  readonly usage: ModelConfig.Usage
}

const model = (
  rateLimiters: ReadonlyArray<RateLimiter.Config>,
  options?: Partial<ModelConfig.Options<Asked, Used>>
) =>
  ModelConfig.makeUntyped<Asked, Used, string>("model", {
    bypass: 0,
    ...options,
    rateLimiters,
    usage: ({ usage }) => usage
  })

type Model = ReturnType<typeof model>

/** What has been said to a server has been heard by it. */
const calm = Effect.forEach(Array.from({ length: 40 }), () => Effect.yieldNow, { discard: true })

/** In steps, or time would overtake who has something to say. */
const pass = (millis: number): Effect.Effect<void> =>
  Effect.suspend(() => {
    const step = Math.min(millis, millis <= 500 ? 10 : millis <= 5000 ? 50 : 1000)
    const first = Effect.andThen(TestClock.adjust(step), calm)
    return step === millis ? first : Effect.andThen(first, pass(millis - step))
  })

/** A window on a server lets go of something up to a slice late. */
const about = (actual: number | undefined, expected: number, period: number, what = "") =>
  assert.isTrue(
    actual !== undefined && actual >= expected - 1e-3 && actual <= expected + period / 1024 + 0.05,
    `${what}: ${actual} is not about ${expected}`
  )

const tag = provider.tagOf

const open = Effect.fnUntraced(function*(Model: Model) {
  const manager = yield* QueueManager.QueueManager
  const clock = yield* Clock.Clock
  const zero = clock.currentTimeMillisUnsafe()
  /** When each of them began. */
  const began = new Map<string, number>()
  const running = new Set<string>()
  let most = 0
  yield* manager.registerQueue(Model, ({ params }) =>
    Effect.suspend(() => {
      began.set(params.id, clock.currentTimeMillisUnsafe() - zero)
      running.add(params.id)
      most = Math.max(most, running.size)
      return Effect.sleep(params.works ?? 0).pipe(
        Effect.as({ usage: { inputTokens: params.uses ?? params.tokens ?? 0, outputTokens: params.output ?? 0 } }),
        Effect.ensuring(Effect.sync(() => running.delete(params.id)))
      )
    }))
  yield* calm
  const submit = (asked: Asked) =>
    Effect.forkChild(
      Effect.exit(manager.submit(Model, asked, {
        id: asked.id,
        estimatedInputTokens: asked.tokens ?? 0,
        estimatedOutputTokens: asked.output ?? 0,
        priority: asked.priority,
        tenant: asked.tenant
      })),
      { startImmediately: true }
    )
  /** Submits them at their times, and lets time pass until then. */
  const play = Effect.fnUntraced(function*(all: ReadonlyArray<Asked>, until: number) {
    const ends = new Map<string, Fiber.Fiber<Exit.Exit<unknown, unknown>>>()
    for (const asked of all) {
      const wait = zero + (asked.at ?? 0) - clock.currentTimeMillisUnsafe()
      if (wait > 0) yield* pass(wait)
      ends.set(asked.id, yield* submit(asked))
      if (asked.cancelled !== undefined) {
        yield* Effect.forkChild(
          Effect.andThen(Effect.sleep(asked.cancelled), Effect.ignore(manager.cancelRequest(Model, asked.id)))
        )
      }
      yield* calm
    }
    const rest = zero + until - clock.currentTimeMillisUnsafe()
    if (rest > 0) yield* pass(rest)
    /** How a request has ended. */
    return (id: string): string => {
      const exit = ends.get(id)!.pollUnsafe()
      return exit === undefined ? "pending" : Exit.isFailure(exit) ? "interrupted" : tag(exit.value)
    }
  })
  const used = Effect.map(manager.getQueueInfo(Model), ({ rateLimiters }) => rateLimiters.map(({ used }) => used))
  return { manager, began, play, submit, used, most: () => most }
})

const ids = (count: number, asked: Omit<Asked, "id">): ReadonlyArray<Asked> =>
  Array.from({ length: count }, (_, index) => ({ id: `r${index}`, ...asked }))

const laws = (Manager: Layer.Layer<QueueManager.QueueManager>) => {
  const test = (name: string, run: Effect.Effect<void, unknown, QueueManager.QueueManager | Scope.Scope>) =>
    it.effect(name, () => Effect.provide(run, Layer.fresh(Manager)))

  for (const type of ["rpm", "tpm", "itpm", "otpm"] as const) {
    for (const algorithm of ["slidingWindow", "tokenBucket", "fixedWindow", "paced"] as const) {
      test(
        `${type} lets go what it may, when it may (${algorithm})`,
        Effect.gen(function*() {
          const limit = RateLimiter.make({ type, limit: 10, timePeriod: 1000, algorithm })
          const { began, play } = yield* open(model([limit]))
          // One unit of each.
          const split = { tokens: type === "otpm" ? 0 : 1, output: type === "otpm" ? 1 : 0 }
          yield* play(ids(24, split), 3000)
          const times = Array.from(began.values())
          assert.lengthOf(times, 24)
          for (const [index, at] of times.entries()) {
            const window = Math.floor(index / 10) * 1000
            if (algorithm === "slidingWindow") about(at, window, index < 10 ? 0 : 2000, `${index}`)
            else if (algorithm === "fixedWindow") about(at, window, 0, `${index}`)
            else if (algorithm === "tokenBucket") about(at, Math.max(0, index - 9) * 100, 0, `${index}`)
            // One second's refill is all of it.
            else about(at, Math.max(window, index < 10 ? 0 : (index - 9) * 100), 3000, `${index}`)
          }
        })
      )
    }
  }

  test(
    "a bucket has its burst after idleness, less what is kept back of it, and no more",
    Effect.gen(function*() {
      const limit = RateLimiter.tpm(1000, {
        timePeriod: 10_000,
        algorithm: "tokenBucket",
        burst: 100,
        headroom: 200,
        charging: { refund: false }
      })
      const { began, play } = yield* open(model([limit]))
      yield* play([
        { id: "first", tokens: 80 },
        { id: "second", tokens: 10 },
        // What is above the burst less the headroom waits until all of it is there.
        { id: "large", tokens: 90, at: 2000 },
        { id: "last", tokens: 10, at: 2000 }
      ], 6000)
      about(began.get("first"), 0, 0)
      about(began.get("second"), 100, 0)
      about(began.get("large"), 2000, 0)
      about(began.get("last"), 2200, 0)
    })
  )

  test(
    "a budget of its whole registration fails what is more than is left, and says so",
    Effect.gen(function*() {
      const limit = RateLimiter.budget(1, { price: { input: 1e4, output: 0 }, timePeriod: Duration.infinity })
      const { manager, play, submit } = yield* open(model([limit]))
      const end = yield* play([{ id: "a", tokens: 60, uses: 40 }, { id: "b", tokens: 50 }], 10)
      assert.deepStrictEqual([end("a"), end("b")], ["success", "success"])
      yield* pass(60_000)
      const exit = yield* Fiber.join(yield* submit({ id: "c", tokens: 20 }))
      assert(Exit.isFailure(exit))
      const error = Cause.squash(exit.cause) as Record<string, unknown>
      assert.deepInclude(error, {
        _tag: "BudgetExceeded",
        budget: 1,
        requested: 0.2,
        periodMillis: undefined,
        retryAfterMillis: undefined
      })
      assert.closeTo(error["used"] as number, 0.9, 1e-9)
      assert.closeTo((yield* manager.getQueueInfo("model")).rateLimiters[0]!.available, 0.1, 1e-9)
    })
  )

  test(
    "a budget that waits lets a request wait, and one of a time is there again after it",
    Effect.gen(function*() {
      const waits = RateLimiter.budget(1, {
        price: { input: 1e4, output: 0 },
        timePeriod: 5000,
        onExceeded: "wait"
      })
      const { began, play } = yield* open(model([waits]))
      yield* play([{ id: "a", tokens: 60 }, { id: "b", tokens: 50 }], 6000)
      about(began.get("b"), 5000, 5000)
    })
  )

  for (const chargedAt of ["dispatch", "completion", "production"] as const) {
    test(
      `a charge counts from its date (${chargedAt}), and by what was used`,
      Effect.gen(function*() {
        const Model = model([RateLimiter.tpm(10, { timePeriod: 1000, chargedAt })])
        const { began, manager, play, used } = yield* open(Model)
        yield* play([{ id: "a", tokens: 8, works: 400 }], 200)
        assert.deepStrictEqual(yield* used, [8])
        assert.strictEqual(yield* manager.updateTokenUsage(Model, "a", { inputTokens: 6, outputTokens: 0 }), "settled")
        yield* calm
        assert.deepStrictEqual(yield* used, [6])
        const again = yield* manager.updateTokenUsage(Model, "a", { inputTokens: 1, outputTokens: 0 })
        assert.strictEqual(again, "alreadySettled")
        yield* play([{ id: "b", tokens: 10, at: 300 }], 3000)
        about(began.get("b"), chargedAt === "dispatch" ? 1000 : chargedAt === "completion" ? 1400 : 1200, 1000)
      })
    )
  }

  test(
    "what was reserved and not used is there at once, and a debt is paid before anything goes",
    Effect.gen(function*() {
      const { began, play } = yield* open(model([RateLimiter.tpm(10, { timePeriod: 1000 })]))
      yield* play([
        { id: "a", tokens: 10, uses: 4, works: 100 },
        { id: "b", tokens: 6, uses: 36, works: 100 },
        { id: "c", tokens: 1 }
      ], 3000)
      about(began.get("b"), 100, 0)
      about(began.get("c"), 1100, 1000)
    })
  )

  test(
    "a report comes too late when the charge has left its window",
    Effect.gen(function*() {
      const Model = model([RateLimiter.tpm(10, { timePeriod: 1024 })])
      const { manager, play, used } = yield* open(Model)
      yield* play([{ id: "a", tokens: 10, works: 5000 }], 1023)
      assert.deepStrictEqual(yield* used, [10])
      yield* pass(2)
      assert.deepStrictEqual(yield* used, [0])
      assert.strictEqual(yield* manager.updateTokenUsage(Model, "a", { inputTokens: 1, outputTokens: 0 }), "expired")
    })
  )

  test(
    "so many run at one time, the first in order first",
    Effect.gen(function*() {
      const { began, most, play, used } = yield* open(model([RateLimiter.concurrent(3)]))
      const end = yield* play([
        ...ids(5, { works: 100 }),
        { id: "low", priority: "low", works: 100 },
        { id: "high", priority: "high", works: 100 }
      ], 50)
      assert.deepStrictEqual(yield* used, [3])
      yield* pass(1000)
      assert.strictEqual(end("low"), "success")
      assert.strictEqual(most(), 3)
      assert.deepStrictEqual([...began.keys()], ["r0", "r1", "r2", "high", "r3", "r4", "low"])
      assert.deepStrictEqual([...began.values()], [0, 0, 0, 100, 100, 100, 200])
      assert.deepStrictEqual(yield* used, [0])
    })
  )

  test(
    "nested requests run on the permit of the one that waits for them",
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<number, number, unknown>("model", {
        rateLimiters: [RateLimiter.concurrent(1), RateLimiter.rpm(100)]
      })
      yield* manager.registerQueue(Model, ({ params }) =>
        params === 0 ? Effect.succeed(0) : Effect.andThen(
          Effect.sleep(10),
          Effect.map(
            Effect.all([manager.submit(Model, params - 1), manager.submit(Model, params - 1)], {
              concurrency: 2
            }),
            (all) => all.length
          )
        ))
      const fiber = yield* Effect.forkChild(manager.submit(Model, 3), { startImmediately: true })
      yield* pass(200)
      assert.strictEqual(tag(fiber.pollUnsafe()), "success")
      const { rateLimiters, running } = yield* manager.getQueueInfo(Model)
      assert.deepStrictEqual([running, ...rateLimiters.map(({ used }) => used)], [0, 0, 15])
    })
  )

  test(
    "tenants share by their weights, and keep to limits of their own that hold back nobody else",
    Effect.gen(function*() {
      const { began, play } = yield* open(model([RateLimiter.rpm(8, { timePeriod: 1000 })], {
        tenants: {
          byId: { heavy: { weight: 3 }, slow: { rateLimiters: [RateLimiter.rpm(1, { timePeriod: 400 })] } },
          others: { rateLimiters: [RateLimiter.concurrent(1)] }
        }
      }))
      yield* play([
        { id: "slow 0", tenant: "slow" },
        { id: "slow 1", tenant: "slow" },
        { id: "one 0", tenant: "one", works: 300 },
        { id: "one 1", tenant: "one" },
        { id: "two 0", tenant: "two" }
      ], 900)
      assert.deepStrictEqual(
        ["slow 0", "one 0", "two 0", "one 1"].map((id) => began.get(id)),
        [0, 0, 0, 300]
      )
      about(began.get("slow 1"), 400, 400)
      began.clear()
      // Two windows later.
      const backlog = Array.from({ length: 12 }, (_, index): ReadonlyArray<Asked> => [
        { id: `h${index}`, tenant: "heavy", at: 3000 },
        { id: `l${index}`, tenant: "light", at: 3000 }
      ]).flat()
      yield* play(backlog, 3010)
      const heavy = [...began.keys()].filter((id) => id.startsWith("h")).length
      assert.strictEqual(began.size, 8)
      assert.isTrue(heavy >= 4, `${heavy} of 8`)
    })
  )

  test(
    "other limits hold for what waits, and count what has been sent",
    Effect.gen(function*() {
      const Model = model([RateLimiter.rpm(2, { timePeriod: 1000 }), RateLimiter.concurrent(10)])
      const { began, manager, play, used } = yield* open(Model)
      yield* play(ids(9, { works: 5000 }), 100)
      assert.deepStrictEqual(yield* used, [2, 2])
      yield* manager.changeLimit(Model, { type: "rpm", limit: 4 })
      yield* pass(100)
      assert.strictEqual(began.size, 4)
      yield* manager.updateRateLimiters(Model, [RateLimiter.rpm(20, { timePeriod: 1000 }), RateLimiter.concurrent(6)])
      yield* pass(100)
      assert.strictEqual(began.size, 6)
      yield* manager.updateRateLimiters(Model, [RateLimiter.rpm(7, { timePeriod: 1000 })])
      yield* pass(100)
      assert.strictEqual(began.size, 7)
      assert.deepStrictEqual(yield* used, [7])
      yield* pass(900)
      assert.strictEqual(began.size, 9)
    })
  )

  test(
    "a bucket of another size is at the level it had, and refilled at its new rate",
    Effect.gen(function*() {
      const bucket = (limit: number, timePeriod = 1000) =>
        RateLimiter.rpm(limit, { timePeriod, algorithm: "tokenBucket", burst: limit })
      const Model = model([bucket(2)])
      const { began, manager, play } = yield* open(Model)
      yield* play(ids(6, {}), 10)
      assert.strictEqual(began.size, 2)
      yield* manager.updateRateLimiters(Model, [bucket(20)])
      yield* pass(39)
      assert.strictEqual(began.size, 2)
      yield* pass(200)
      assert.strictEqual(began.size, 6)
    })
  )

  test(
    "a paused queue sends nothing, and goes on; a drained one is empty",
    Effect.gen(function*() {
      const Model = model([RateLimiter.rpm(2, { timePeriod: 1000 })])
      const { began, manager, play, submit } = yield* open(Model)
      yield* manager.pauseQueue(Model)
      yield* play(ids(4, {}), 500)
      assert.strictEqual(began.size, 0)
      yield* manager.resumeQueue(Model)
      yield* pass(1)
      assert.strictEqual(began.size, 2)
      const drained = yield* Effect.forkChild(manager.drainQueue(Model), { startImmediately: true })
      yield* calm
      const refused = yield* Fiber.join(yield* submit({ id: "late" }))
      assert.isTrue(Exit.isFailure(refused))
      yield* pass(900)
      assert.isUndefined(drained.pollUnsafe())
      yield* pass(200)
      assert.strictEqual(tag(drained.pollUnsafe()), "success")
      assert.strictEqual(began.size, 4)
    })
  )

  test(
    "estimates say when a request would go, behind those that wait, and never too late",
    Effect.gen(function*() {
      for (const algorithm of ["slidingWindow", "tokenBucket", "fixedWindow"] as const) {
        const Model = model([RateLimiter.rpm(4, { timePeriod: 1000, algorithm })])
        const { began, manager, play, submit } = yield* open(Model)
        const start = yield* Clock.currentTimeMillis
        const estimate = Effect.map(manager.estimateWait(Model), Duration.toMillis)
        assert.strictEqual(yield* estimate, 0)
        yield* play(ids(10, {}), 0)
        const wait = yield* estimate
        const now = (yield* Clock.currentTimeMillis) - start
        yield* submit({ id: "last" })
        yield* pass(3000)
        const slices = algorithm === "slidingWindow" ? 3000 : 0
        about(began.get("last")! - now, wait, slices, `${algorithm}: estimated`)
        assert.isTrue(began.get("last")! + 0.05 >= now + wait, algorithm)
        yield* manager.unregisterQueue(Model)
        // At the edge of the next window.
        yield* pass(1000 - ((yield* Clock.currentTimeMillis) % 1000))
      }
    })
  )

  test(
    "a request that cannot be in time fails, and one that can does not",
    Effect.gen(function*() {
      const Model = model([RateLimiter.rpm(4, { timePeriod: 1000, algorithm: "fixedWindow" })])
      const { began, manager, play } = yield* open(Model)
      yield* play(ids(7, {}), 500)
      const options = { failEarly: true, timeout: 600 }
      const inTime = yield* Effect.forkChild(Effect.exit(manager.submit(Model, { id: "in time" }, options)), {
        startImmediately: true
      })
      yield* calm
      assert.isUndefined(inTime.pollUnsafe())
      yield* pass(600)
      assert.isDefined(began.get("in time"))
    })
  )

  test(
    "information has the numbers of each limit",
    Effect.gen(function*() {
      const Model = model([
        RateLimiter.rpm(10, { timePeriod: 1000, margin: 24 }),
        RateLimiter.tpm(100, { timePeriod: 1000, margin: 24, chargedAt: "completion" }),
        RateLimiter.concurrent(2)
      ])
      const { manager, play } = yield* open(Model)
      yield* play([{ id: "a", tokens: 60, works: 100 }, { id: "b", tokens: 50, works: 100 }], 50)
      const { depth, rateLimiters, running } = yield* manager.getQueueInfo(Model)
      assert.deepStrictEqual([depth, running], [1, 1])
      const [requests, tokens, permits] = rateLimiters
      assert.deepInclude(requests, {
        type: "rpm",
        limit: 10,
        enforced: 10,
        used: 1,
        available: 9,
        pausedFor: undefined
      })
      assert.deepInclude(tokens, { type: "tpm", limit: 100, used: 60, available: 40 })
      assert.deepInclude(permits, { type: "concurrent", limit: 2, used: 1, available: 1, timePeriod: undefined })
      assert.strictEqual(Duration.toMillis(tokens!.margin), 24)
    })
  )

  test(
    "a refused request goes again when the provider asked for it, and its numbers are followed",
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = provider.model("model", {
        rateLimiters: [RateLimiter.tpm(1000, { timePeriod: 60_000 })],
        retry: { schedule: Schedule.spaced(100) }
      })
      const message = "on tokens per min (TPM): Limit 800, Used 700, Requested 50."
      const { exact, processor } = provider.scripted({ a: [provider.rate(3000, message)], b: [provider.transient()] })
      yield* manager.registerQueue(Model, processor)
      const options = { estimatedInputTokens: 50, estimatedOutputTokens: 0 }
      const first = yield* provider.start(Effect.exit(manager.submit(Model, "a", options)))
      yield* pass(10)
      assert.deepInclude((yield* manager.getQueueInfo(Model)).rateLimiters[0], {
        enforced: 800,
        used: 700,
        available: 100
      })
      yield* pass(3100)
      assert.strictEqual(tag(first.pollUnsafe()), "success")
      assert.isTrue(exact[1]! - exact[0]! >= 3000 && exact[1]! - exact[0]! <= 3051, exact.join())
      const second = yield* provider.start(
        Effect.exit(manager.submit(Model, "b", { ...options, estimatedInputTokens: 10 }))
      )
      yield* pass(300)
      assert.strictEqual(tag(second.pollUnsafe()), "success")
    })
  )

  test(
    "streams are charged and settled like others",
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeStreamUntyped<number, number>("model", {
        rateLimiters: [RateLimiter.concurrent(1), RateLimiter.tpm(100, { timePeriod: 60_000 })],
        usage: (element) => element === 2 ? { inputTokens: 10, outputTokens: 0 } : undefined
      })
      yield* manager.registerStream(Model, () => Stream.tap(Stream.fromIterable([1, 2]), () => Effect.sleep(100)))
      const options = { estimatedInputTokens: 80, estimatedOutputTokens: 0 }
      const both = yield* Effect.forkChild(
        Effect.all(
          [Stream.runCollect(manager.stream(Model, 0, options)), Stream.runCollect(manager.stream(Model, 0, options))],
          { concurrency: 2 }
        ),
        { startImmediately: true }
      )
      const used = Effect.map(manager.getQueueInfo(Model), ({ rateLimiters }) => rateLimiters.map(({ used }) => used))
      yield* pass(50)
      assert.deepStrictEqual(yield* used, [1, 80])
      yield* pass(500)
      assert.strictEqual(tag(Exit.succeed(both.pollUnsafe())), "success")
      assert.isDefined(both.pollUnsafe())
      assert.deepStrictEqual(yield* used, [0, 20])
    })
  )

  test(
    "cancelled at any moment, a request leaves no permit, and what it holds back is for others",
    Effect.gen(function*() {
      for (let millis = 0; millis <= 12; millis++) {
        const Model = model([RateLimiter.concurrent(1), RateLimiter.tpm(100, { timePeriod: 1000 })])
        const { began, manager, play, used } = yield* open(Model)
        const end = yield* play([
          { id: "first", tokens: 10, works: 5 },
          { id: "cancelled", tokens: 80, works: 5, cancelled: millis },
          { id: "last", tokens: 1, works: 5 }
        ], 50)
        assert.strictEqual(end("last"), "success", `${millis}`)
        assert.isAtMost(began.get("last")!, 10, `${millis}`)
        // A charge stays when it was sent.
        assert.deepStrictEqual(yield* used, [0, began.has("cancelled") ? 91 : 11])
        yield* manager.unregisterQueue(Model)
        yield* pass(2000)
      }
    })
  )

  for (const policy of ["drain", "finishRunning", "interrupt"] as const) {
    test(
      `ends what runs and what waits as it is told (${policy})`,
      Effect.gen(function*() {
        const Model = model([RateLimiter.concurrent(1)], { shutdown: { policy, deadline: 5000 } })
        const { manager, play } = yield* open(Model)
        const end = yield* play([{ id: "runs", works: 100 }, { id: "waits", works: 100 }], 50)
        const closing = yield* Effect.forkChild(manager.unregisterQueue(Model), { startImmediately: true })
        yield* pass(500)
        assert.isDefined(closing.pollUnsafe())
        assert.deepStrictEqual(
          [end("runs"), end("waits")],
          policy === "drain"
            ? ["success", "success"]
            : policy === "finishRunning"
            ? ["success", "QueueShutdown"]
            : ["QueueShutdown", "QueueShutdown"]
        )
      })
    )
  }
}

const InMemory = QueueManager.layerWith({ shutdown: { policy: "interrupt", deadline: 0 } })

describe("a queue whose limits are in memory", () => {
  laws(InMemory)

  it.effect("lets small requests pass, and keeps for tenants what is guaranteed", () =>
    Effect.gen(function*() {
      const Model = model([RateLimiter.tpm(100, { timePeriod: 1000 })], { bypass: 5 })
      const { began, play } = yield* open(Model)
      yield* play([{ id: "a", tokens: 60 }, { id: "b", tokens: 60 }, { id: "c", tokens: 10 }], 10)
      assert.deepStrictEqual([...began.keys()], ["a", "c"])
    }).pipe(Effect.provide(InMemory)))
})

describe.runIf(hasRedis)("a queue whose limits are on a server", () => {
  const name = `conformance:${process.pid}:${Math.random().toString(36)}`
  let count = 0
  const scope = Scope.makeUnsafe()
  let connection: ReturnType<typeof instant.connection> | undefined
  beforeAll(() =>
    Effect.runPromise(Scope.provide(
      Effect.map(url, (url) => {
        connection = instant.connection(url)
      }),
      scope
    ))
  )
  afterAll(() => {
    connection?.close()
    return Effect.runPromise(Scope.close(scope, Exit.void))
  })
  const Server = Layer.effect(Redis.Redis, Effect.map(Clock.Clock, (clock) => connection!.service(clock)))
  const Manager = Layer.suspend(() =>
    InMemory.pipe(
      Layer.provide(QueueRedis.layer({ prefix: `${name}:${count++}`, margin: 0, commandTimeout: "1 hour" })),
      Layer.provide(Server)
    )
  )
  laws(Manager)

  it.effect("lets nobody pass, and guarantees nothing", () =>
    Effect.gen(function*() {
      const Model = model([RateLimiter.tpm(100, { timePeriod: 1000 })], { bypass: 5 })
      const { began, manager, play } = yield* open(Model)
      yield* play([{ id: "a", tokens: 60 }, { id: "b", tokens: 60 }, { id: "c", tokens: 10 }], 10)
      assert.deepStrictEqual([...began.keys()], ["a"])
      yield* pass(1100)
      assert.deepStrictEqual([...began.keys()], ["a", "b", "c"])
      const Guaranteed = ModelConfig.makeUntyped<Asked, Used, string>("guaranteed", {
        rateLimiters: [RateLimiter.rpm(10)],
        tenants: { byId: { a: { guaranteed: 0.5 } } }
      })
      const failed = yield* Effect.flip(manager.registerQueue(Guaranteed, () => Effect.never))
      assert.strictEqual(failed._tag, "InvalidConfiguration")
    }).pipe(Effect.provide(Layer.fresh(Manager))))

  it.effect("begins empty when a period changes, and waits on for what the provider has asked for", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = provider.model("model", { rateLimiters: [RateLimiter.rpm(2, { timePeriod: 1000 })] })
      const { exact, processor } = provider.scripted({ a: [provider.rate(3000)] })
      yield* manager.registerQueue(Model, processor)
      yield* provider.start(Effect.exit(manager.submit(Model, "a")))
      yield* pass(10)
      yield* manager.updateRateLimiters(Model, [RateLimiter.rpm(2, { timePeriod: 2000 })])
      yield* pass(2900)
      assert.lengthOf(exact, 1)
      yield* pass(200)
      assert.lengthOf(exact, 2)
    }).pipe(Effect.provide(Layer.fresh(Manager))))
})
