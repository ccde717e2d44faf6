/**
 * Code that asks something which may answer at once, or by an effect that takes time.
 *
 * A step yields the effects that it has to wait for. One that yields none is over as soon as it is begun, and needs no
 * fiber: this is what a request costs least in.
 */
import * as Effect from "effect/Effect"

export type Step<A> = Generator<Effect.Effect<unknown>, A, unknown>

/** Waits for an effect. If that fails the step is left where it is. */
export const waitFor = function*<A>(effect: Effect.Effect<A>): Step<A> {
  return (yield effect) as A
}

const rest = <A>(step: Step<A>, effect: Effect.Effect<unknown>): Effect.Effect<A> =>
  Effect.flatMap(effect, (value) => {
    const next = step.next(value)
    return next.done ? Effect.succeed(next.value) : rest(step, next.value)
  })

/** Begins a step when it is run. */
export const toEffect = <A>(begin: () => Step<A>): Effect.Effect<A> =>
  Effect.suspend(() => {
    const step = begin()
    const first = step.next()
    return first.done ? Effect.succeed(first.value) : rest(step, first.value)
  })

/** Begins a step now, and gives what is left of it, if anything is, to `fork`. */
export const begin = (step: Step<void>, fork: (rest: Effect.Effect<void>) => void): void => {
  const first = step.next()
  if (!first.done) fork(rest(step, first.value))
}
