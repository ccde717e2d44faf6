/** Processes whose clocks are wrong: only the server's counts. */
import { Clock, Effect, Scope } from "effect"
import { ModelConfig, RateLimiter } from "effect-llm-queue"
import { own } from "../server.ts"
import { type Outcome, start } from "./campaign.ts"

const period = 1500
const most = 12
/** The machine does other things. */
const margin = 400

const Sliding = ModelConfig.makeUntyped<void, void>("sliding", {
  rateLimiters: [RateLimiter.rpm(most, { timePeriod: period })]
})
const Fixed = ModelConfig.makeUntyped<void, void>("fixed", {
  rateLimiters: [RateLimiter.rpm(most, { timePeriod: period, algorithm: "fixedWindow" })]
})
const Bucket = ModelConfig.makeUntyped<void, void>("bucket", {
  rateLimiters: [RateLimiter.rpm(most, { timePeriod: period, algorithm: "tokenBucket" })]
})
const models = [Sliding, Fixed, Bucket]

/** A clock that is wrong by so many milliseconds. */
export const shifted = (by: number): Effect.Effect<Clock.Clock> =>
  Clock.clockWith((clock) =>
    Effect.succeed<Clock.Clock>({
      sleep: (duration) => clock.sleep(duration),
      currentTimeMillisUnsafe: () => clock.currentTimeMillisUnsafe() + by,
      currentTimeMillis: Effect.map(clock.currentTimeMillis, (now) => now + by),
      currentTimeNanosUnsafe: () => clock.currentTimeNanosUnsafe() + BigInt(by) * 1_000_000n,
      currentTimeNanos: Effect.map(clock.currentTimeNanos, (now) => now + BigInt(by) * 1_000_000n),
      monotonicTimeNanosUnsafe: () => clock.monotonicTimeNanosUnsafe(),
      monotonicTimeNanos: clock.monotonicTimeNanos
    })
  )

const over = (modelId: string, sent: ReadonlyArray<number>): number => {
  if (modelId === "fixed") {
    const windows = new Map<number, number>()
    for (const at of sent) windows.set(Math.floor(at / period), (windows.get(Math.floor(at / period)) ?? 0) + 1)
    return Math.max(0, ...Array.from(windows.values(), (count) => count - most))
  }
  // Of a bucket: what it holds, and what is refilled in the time between.
  let worst = 0
  for (const [from, first] of sent.entries()) {
    for (let to = from; to < sent.length; to++) {
      const span = sent[to]! - first
      if (modelId === "sliding" && span >= period) break
      const allowed = modelId === "sliding" ? most : most + span * most / period
      worst = Math.max(worst, to - from + 1 - allowed)
    }
  }
  return worst
}

/** Two processes, one of which has a clock that is wrong by so many milliseconds. */
export const run = (by: number, lasts = 8000) =>
  Effect.gen(function*() {
    const problems: Array<string> = []
    const server = yield* own()
    const sent = new Map(models.map(({ modelId }) => [modelId, [] as Array<number>]))
    const counts = [0, 0]
    const origin = (yield* Clock.currentTimeMillis) - performance.now()
    const one = (index: number) =>
      Effect.gen(function*() {
        const { manager, scope } = yield* start(server.url, "ioredis", { margin })
        for (const model of models) {
          yield* Effect.provideService(
            manager.registerQueue(model, () =>
              Effect.sync(() => {
                counts[index]!++
                sent.get(model.modelId)!.push(origin + performance.now())
              })),
            Scope.Scope,
            scope
          )
          for (let i = 0; i < 20; i++) {
            yield* Effect.forkChild(Effect.forever(manager.submit(model, undefined)))
          }
        }
        yield* Effect.sleep(lasts)
      })
    yield* Effect.all([one(0), Effect.provideService(one(1), Clock.Clock, yield* shifted(by))], {
      concurrency: "unbounded"
    })
    for (const [modelId, times] of sent) {
      const excess = over(modelId, times.toSorted((a, b) => a - b))
      if (excess > 1e-6) problems.push(`${excess} over the limit of ${modelId}`)
      if (times.length <= most) problems.push(`${modelId} has sent only ${times.length}`)
    }
    const least = Math.min(...counts)
    if (least < 0.1 * (counts[0]! + counts[1]!)) {
      problems.push(`one has sent only ${least} of ${counts[0]! + counts[1]!}`)
    }
    return { problems, back: 0, submitted: counts[0]! + counts[1]! } satisfies Outcome
  }).pipe(
    Effect.scoped,
    Effect.catchCause((cause) =>
      Effect.succeed<Outcome>({ problems: [`the run itself: ${String(cause)}`], back: Number.NaN, submitted: 0 })
    )
  )
