import { Clock, Context, Effect, Layer } from "effect"
import { RateLimiter } from "effect-llm-queue"
import * as QueueRedis from "effect-llm-queue/Redis"
import { Redis } from "effect/persistence"
import process from "node:process"
import * as instant from "./redis/instant.ts"

const moment = <A>(effect: Effect.Effect<A>): Effect.Effect<A> =>
  Effect.andThen(Effect.yieldNow, Effect.tap(effect, () => Effect.yieldNow))

/**
 * The default limiter, but that it takes a moment for each answer, as one in another process does. The queue asks it by
 * its effects, and much can happen before it hears the answer.
 */
const make = Effect.map(RateLimiter.RateLimiter, (limiters) => ({
  make: (...args: Parameters<typeof limiters.make>) =>
    Effect.map(limiters.make(...args), (limiter): RateLimiter.Limiter => ({
      admit: (...args) => moment(limiter.admit(...args)),
      predict: (...args) => moment(limiter.predict(...args)),
      exceeds: (...args) => moment(limiter.exceeds(...args)),
      settle: (...args) => moment(limiter.settle(...args)),
      complete: (...args) => moment(limiter.complete(...args)),
      observe: (...args) => moment(limiter.observe(...args)),
      refuse: (...args) => moment(limiter.refuse(...args)),
      giveBack: (...args) => moment(limiter.giveBack(...args)),
      update: (...args) => moment(limiter.update(...args)),
      releasePermit: moment(limiter.releasePermit),
      usage: moment(limiter.usage)
    }))
}))

/**
 * With `SHARED=1` all limits are on the server at `REDIS_URL`, and let go of what they have counted a moment late:
 *
 *     SHARED=1 REDIS_URL=redis://127.0.0.1:6379 npm run test:unit -- test/schedules
 */
export const isShared = process.env["SHARED"] !== undefined

let connection: ReturnType<typeof instant.connection> | undefined
let count = 0

const makeShared = Effect.map(RateLimiter.RateLimiter, (limiters) => ({
  make: (...[modelId, limits, tenants]: Parameters<typeof limiters.make>) =>
    Effect.gen(function*() {
      // Nothing can be guaranteed where limits are shared.
      if (Array.from(tenants?.byId.values() ?? []).some(({ guaranteed }) => guaranteed > 0)) {
        return yield* limiters.make(modelId, limits, tenants)
      }
      connection ??= instant.connection(process.env["REDIS_URL"]!)
      const prefix = `far:${process.pid}:${Math.random().toString(36)}:${count++}`
      const context = yield* Layer.build(
        QueueRedis.layer({ prefix, margin: 0, commandTimeout: "1 hour" }).pipe(
          Layer.provide(Layer.succeed(Redis.Redis, connection.service(yield* Clock.Clock)))
        )
      )
      return yield* Context.get(context, RateLimiter.RateLimiter).make(modelId, limits, tenants)
    })
}))

/** With a limiter that is far away, for half of the seeds. */
export const sometimesFar = (seed: number) => <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  isShared
    ? Effect.provideServiceEffect(effect, RateLimiter.RateLimiter, makeShared)
    : Math.imul(seed, 0x9e3779b1) < 0
    ? Effect.provideServiceEffect(effect, RateLimiter.RateLimiter, make)
    : effect
