/**
 * How many calls get through in the worst second when ten in any second are allowed: Effect's own rate limiter, with
 * either of its algorithms, beside this queue. On virtual time, so the numbers are exact and the run takes no time.
 */
import { NodeRuntime } from "@effect/platform-node"
import { Clock, Console, Effect, Layer } from "effect"
import { ModelConfig, QueueManager, RateLimiter } from "effect-llm-queue"
import * as EffectRateLimiter from "effect/persistence/RateLimiter"
import { TestClock } from "effect/testing"

const limit = 10
const window = 1000
const calls = 40

/** Nothing for most of a second, then everything at once: what a window's edge makes of it. */
const arrivals = Array.from({ length: calls }, (_, index) => index === 0 ? 0 : 950)

/** Starts in the busiest (t − window, t]. */
const worst = (starts: ReadonlyArray<number>) =>
  Math.max(...starts.map((end) => starts.filter((start) => start > end - window && start <= end).length))

const measure = <E, R>(call: (start: Effect.Effect<void>) => Effect.Effect<unknown, E, R>) =>
  Effect.gen(function*() {
    const starts: Array<number> = []
    const start = Effect.map(Clock.currentTimeMillis, (now) => void starts.push(now))
    for (const arrival of arrivals) {
      yield* call(start).pipe(Effect.delay(arrival), Effect.forkChild)
    }
    for (let second = 0; second < 60; second++) yield* TestClock.adjust(window)
    return { calls: starts.length, worst: worst(starts) }
  })

const effects = (algorithm: "fixed-window" | "token-bucket") =>
  measure((start) =>
    Effect.gen(function*() {
      const limiter = yield* EffectRateLimiter.RateLimiter
      const { delay } = yield* limiter.consume({ key: "calls", limit, window, algorithm, onExceeded: "delay" })
      yield* Effect.delay(start, delay)
    })
  ).pipe(Effect.provide(EffectRateLimiter.layer.pipe(Layer.provide(EffectRateLimiter.layerStoreMemory))))

const Model = ModelConfig.makeUntyped<Effect.Effect<void>, void>("calls", {
  rateLimiters: [RateLimiter.rpm(limit, { timePeriod: window })]
})

const queue = Effect.gen(function*() {
  const manager = yield* QueueManager.QueueManager
  yield* manager.registerQueue(Model, (request) => request.params)
  return yield* measure((start) => manager.submit(Model, start))
}).pipe(Effect.scoped, Effect.provide(QueueManager.layer))

Effect.gen(function*() {
  const fixed = yield* Effect.provide(effects("fixed-window"), TestClock.layer())
  const bucket = yield* Effect.provide(effects("token-bucket"), TestClock.layer())
  const ours = yield* Effect.provide(queue, TestClock.layer())
  yield* Console.table([
    { limiter: "effect/persistence/RateLimiter, fixed-window", allowed: limit, "worst second": fixed.worst },
    { limiter: "effect/persistence/RateLimiter, token-bucket", allowed: limit, "worst second": bucket.worst },
    { limiter: "effect-llm-queue", allowed: limit, "worst second": ours.worst }
  ])
  if (ours.calls !== calls || ours.worst > limit) return yield* Effect.die(new Error("over the limit"))
}).pipe(NodeRuntime.runMain)
