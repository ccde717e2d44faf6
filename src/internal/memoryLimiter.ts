import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import * as Ref from "effect/Ref"
import * as Semaphore from "effect/Semaphore"
import type * as RateLimiter from "../RateLimiter.ts"
import { charge, type Charged, LimitState } from "./limitState.ts"
import * as time from "./time.ts"

/** What each windowed limit charged. */
interface Reservation extends RateLimiter.Reservation {
  readonly charges: ReadonlyArray<Charged>
  settled: boolean
  completed: boolean
}

// The states are mutable and every operation on them runs inside one `Ref.modify`: synchronous, so atomic. Copying
// them would make an admission cost what the windows hold.
type States = ReadonlyArray<LimitState>

const admit = (states: States, cost: RateLimiter.Cost, now: number): RateLimiter.Admission => {
  let at = now
  let by: RateLimiter.Type | undefined
  for (const state of states) {
    const fits = state.fitsAt(charge(state.limit, cost), now)
    if (fits > at) {
      at = fits
      by = state.limit.type
    }
  }
  if (by !== undefined) return { _tag: "Blocked", by, wait: at - now }
  const charges = new Array<Charged>(states.length)
  for (let i = 0; i < states.length; i++) charges[i] = states[i]!.take(charge(states[i]!.limit, cost), now)
  const reservation: Reservation = {
    "~effect-llm-queue/Reservation": true,
    charges,
    settled: false,
    completed: false
  }
  return { _tag: "Admitted", reservation }
}

const settle = (
  states: States,
  reservation: Reservation,
  usage: RateLimiter.Tokens,
  now: number
): RateLimiter.Settlement => {
  if (reservation.settled) return "alreadySettled"
  let changed = states.length === 0
  for (let i = 0; i < states.length; i++) {
    const state = states[i]!
    if (state.settle(reservation.charges[i]!, usage, now)) changed = true
  }
  if (!changed) return "expired"
  reservation.settled = true
  return "settled"
}

const complete = (states: States, reservation: Reservation, now: number): void => {
  if (reservation.completed) return
  reservation.completed = true
  for (let i = 0; i < states.length; i++) states[i]!.complete(reservation.charges[i]!, now)
}

/** Whether there was anything to give back. */
const giveBack = (states: States, reservation: Reservation, now: number): boolean => {
  if (reservation.completed) return false
  reservation.completed = reservation.settled = true
  for (let i = 0; i < states.length; i++) states[i]!.giveBack(reservation.charges[i]!, now)
  return true
}

const observe = (
  states: States,
  reservation: Reservation,
  observations: ReadonlyArray<RateLimiter.Observation>,
  now: number
): void => {
  for (const observation of observations) {
    const index = bestMatch(states, (state) => state.matches(observation))
    if (index !== undefined) states[index]!.observe(reservation.charges[index]!, observation, now)
  }
}

const bestMatch = (states: States, score: (state: LimitState) => number | undefined): number | undefined => {
  let best: number | undefined
  let least = Number.POSITIVE_INFINITY
  for (let i = 0; i < states.length; i++) {
    const value = score(states[i]!)
    if (value === undefined || value >= least) continue
    best = i
    least = value
  }
  return best
}

const refuse = (
  states: States,
  reservation: Reservation,
  refusal: RateLimiter.Refusal,
  observations: ReadonlyArray<RateLimiter.Observation>,
  now: number
): void => {
  if (reservation.completed) return
  reservation.completed = reservation.settled = true
  const amounts = reservation.charges.map(({ amount }) => amount)
  for (let i = 0; i < states.length; i++) states[i]!.refused(reservation.charges[i]!, now)
  observe(states, reservation, observations, now)
  if (refusal.kind !== "rate" && refusal.kind !== "ramp") return
  // Said by the provider; else the one that has the least left.
  const named = states.filter(({ limit }) => refusal.types.includes(limit.type))
  const index = bestMatch(
    states,
    (state) => named.length > 0 && !named.includes(state) ? undefined : state.suspicion(refusal, now)
  )
  if (index === undefined) return
  const isOurs = named.length > 0 || refusal.types.length === 0
  states[index]!.pause(reservation.charges[index]!, amounts[index]!, refusal, isOurs, now)
}

// The one place where a reservation handed out by this limiter is read back: callers see it as opaque.
const own = (reservation: RateLimiter.Reservation): Reservation => reservation as Reservation

/** @internal */
export const make = Effect.fnUntraced(function*(limits: ReadonlyArray<RateLimiter.Limit>) {
  const clock = yield* Clock.Clock
  const random = yield* Random.Random
  const now = time.monotonic(clock)
  const wall = () => clock.currentTimeMillisUnsafe()
  const states = yield* Ref.make<States>(
    limits.flatMap((limit) =>
      limit.timePeriod === undefined ? [] : [new LimitState(limit, wall, now(), () => random.nextDoubleUnsafe())]
    )
  )
  const step = <A>(f: (states: States, now: number) => A): Effect.Effect<A> =>
    Ref.modify(states, (state) => [f(state, now()), state])

  const concurrent = limits.find((limit) => limit.type === "concurrent")
  const semaphore = concurrent === undefined ? undefined : yield* Semaphore.make(concurrent.limit)
  const releasePermit = concurrent === undefined || semaphore === undefined
    ? Effect.void
    // A permit that nobody holds must not raise the limit.
    : Effect.flatMap(
      semaphore.release(0),
      (free) => free < concurrent.limit ? Effect.asVoid(semaphore.release(1)) : Effect.void
    )
  const noPermit = Effect.succeed<RateLimiter.Admission>({
    _tag: "Blocked",
    by: "concurrent",
    wait: Number.POSITIVE_INFINITY
  })

  const limiter: RateLimiter.Limiter = {
    admit: (cost, permit) => {
      const charged = step((state, now) => admit(state, cost, now))
      if (semaphore === undefined || !permit) return charged
      const chargedOrReleased = Effect.flatMap(
        charged,
        (admission) => Effect.as(admission._tag === "Admitted" ? Effect.void : releasePermit, admission)
      )
      return Effect.flatMap(semaphore.takeIfAvailable(1), (taken) => taken ? chargedOrReleased : noPermit)
    },
    settle: (reservation, usage) => step((state, now) => settle(state, own(reservation), usage, now)),
    complete: (reservation) => step((state, now) => complete(state, own(reservation), now)),
    giveBack: (reservation, permit) =>
      Effect.flatMap(
        step((state, now) => giveBack(state, own(reservation), now)),
        (given) => given && permit ? releasePermit : Effect.void
      ),
    observe: (reservation, observations) => step((state, now) => observe(state, own(reservation), observations, now)),
    refuse: (reservation, refusal, observations) =>
      step((state, now) => refuse(state, own(reservation), refusal, observations, now)),
    releasePermit,
    usage: Effect.gen(function*() {
      const free = semaphore === undefined ? 0 : yield* semaphore.release(0)
      return yield* step((state, now) => {
        let index = 0
        return limits.map((limit): RateLimiter.Usage => {
          if (limit.timePeriod !== undefined) return state[index++]!.usage(now)
          const used = limit.limit - free
          return {
            type: limit.type,
            limit: limit.limit,
            enforced: limit.limit,
            pausedFor: undefined,
            timePeriod: undefined,
            margin: Duration.zero,
            used,
            available: Math.max(0, free),
            timeUntilNextCapacity: free > 0 ? Duration.zero : undefined
          }
        })
      })
    })
  }
  return limiter
})
