import { Effect } from "effect"
import { RateLimiter } from "effect-llm-queue"

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

/** With a limiter that is far away, for half of the seeds. */
export const sometimesFar = (seed: number) => <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Math.imul(seed, 0x9e3779b1) < 0 ? Effect.provideServiceEffect(effect, RateLimiter.RateLimiter, make) : effect
