import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import * as Ref from "effect/Ref"
import * as Semaphore from "effect/Semaphore"
import type * as RateLimiter from "../RateLimiter.ts"
import { charge, type Charged, countsTokens, LimitState } from "./limitState.ts"
import { type Tenant, TenantLimits } from "./tenantLimits.ts"
import * as time from "./time.ts"

/** What each windowed limit charged. */
interface Reservation extends RateLimiter.Reservation {
  /** Those of the model, and then those of the tenant. */
  readonly states: States
  readonly charges: ReadonlyArray<Charged>
  /** Whose running request it is; `undefined` on a permit that its caller already holds. */
  readonly tenant: Tenant | undefined
  settled: boolean
  completed: boolean
}

// The states are mutable and every operation on them runs inside one `Ref.modify`: synchronous, so atomic. Copying
// them would make an admission cost what the windows hold.
type States = ReadonlyArray<LimitState>

const none: RateLimiter.AdmitOptions = {}

const blocked = (by: RateLimiter.Type, wait: number, scope?: "tenant" | "guaranteed"): RateLimiter.Admission =>
  scope === undefined ? { _tag: "Blocked", by, wait } : { _tag: "Blocked", by, wait, scope }

const admit = (
  states: States,
  cost: RateLimiter.Cost,
  permit: boolean,
  options: RateLimiter.AdmitOptions,
  tenants: TenantLimits | undefined,
  now: number
): RateLimiter.Admission => {
  const tenant = tenants?.get(options.tenant, now)
  if (tenant !== undefined) {
    if (permit && tenant.running >= tenant.concurrent) return blocked("concurrent", Number.POSITIVE_INFINITY, "tenant")
    const own = lastToFit(tenant.own, cost, now)
    if (own !== undefined) return blocked(own.by, own.at - now, "tenant")
  }
  const last = lastToFit(states, cost, now)
  if (last !== undefined) return blocked(last.by, last.at - now)
  if (tenants !== undefined && tenant !== undefined) {
    const kept = lastToFit(states, cost, now, (i, amount) => tenants.kept(tenant, i, amount, now))
    if (kept !== undefined) return blocked(kept.by, kept.at - now, "guaranteed")
  }
  const { protect } = options
  if (protect !== undefined) {
    const { at = now } = lastToFit(states, protect, now) ?? {}
    if (at === Number.POSITIVE_INFINITY) return blocked("concurrent", at)
    for (const state of states) {
      const { limit } = state
      if (state.delays(charge(limit, cost), charge(limit, protect), at, now)) {
        return blocked(limit.type, Number.POSITIVE_INFINITY)
      }
    }
  }
  const all = tenant === undefined || tenant.states.length === 0 ? states : [...states, ...tenant.states]
  const charges = new Array<Charged>(all.length)
  for (let i = 0; i < all.length; i++) charges[i] = all[i]!.take(charge(all[i]!.limit, cost), now)
  const runs = permit ? tenant : undefined
  if (runs !== undefined) runs.running++
  const reservation: Reservation = {
    "~effect-llm-queue/Reservation": true,
    states: all,
    charges,
    tenant: runs,
    settled: false,
    completed: false
  }
  return { _tag: "Admitted", reservation }
}

/** The limit that fits last, when some do not fit now. */
const lastToFit = (
  states: States,
  cost: RateLimiter.Cost,
  now: number,
  kept?: (index: number, amount: number) => number
): { readonly at: number; readonly by: RateLimiter.Type } | undefined => {
  let at = now
  let by: RateLimiter.Type | undefined
  for (let i = 0; i < states.length; i++) {
    const { limit } = states[i]!
    const amount = charge(limit, cost)
    const fits = states[i]!.fitsAt(amount, now, kept?.(i, amount))
    if (fits > at) {
      at = fits
      by = limit.type
    }
  }
  return by === undefined ? undefined : { at, by }
}

const predict = (
  states: States,
  cost: RateLimiter.Cost,
  ahead: RateLimiter.Ahead,
  now: number
): number => {
  let at = now
  for (const state of states) {
    const { limit } = state
    const before = countsTokens(limit)
      ? charge(limit, ahead) * (limit.charging.refund ? ahead.usedPart : 1)
      : ahead.requests
    at = Math.max(at, state.through(before, charge(limit, cost), ahead.returnedPart, now))
  }
  return at - now
}

const settle = (
  reservation: Reservation,
  usage: RateLimiter.Tokens,
  now: number
): RateLimiter.Settlement => {
  const { states } = reservation
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

const complete = (reservation: Reservation, now: number): void => {
  const { states, tenant } = reservation
  if (reservation.completed) return
  reservation.completed = true
  if (tenant !== undefined) tenant.running--
  for (let i = 0; i < states.length; i++) states[i]!.complete(reservation.charges[i]!, now)
}

/** Whether there was anything to give back. */
const giveBack = (reservation: Reservation, now: number): boolean => {
  const { states, tenant } = reservation
  if (reservation.completed) return false
  reservation.completed = reservation.settled = true
  if (tenant !== undefined) tenant.running--
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
  if (reservation.tenant !== undefined) reservation.tenant.running--
  const amounts = reservation.charges.map(({ amount }) => amount)
  for (let i = 0; i < reservation.states.length; i++) reservation.states[i]!.refused(reservation.charges[i]!, now)
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
export const make = Effect.fnUntraced(function*(
  limits: ReadonlyArray<RateLimiter.Limit>,
  tenants?: RateLimiter.Tenants
) {
  const clock = yield* Clock.Clock
  const random = yield* Random.Random
  const now = time.monotonic(clock)
  const wall = () => clock.currentTimeMillisUnsafe()
  const makeState = (limit: RateLimiter.Limit, now: number) =>
    new LimitState(limit, wall, now, () => random.nextDoubleUnsafe())
  const states = yield* Ref.make<States>(
    limits.flatMap((limit) => limit.timePeriod === undefined ? [] : [makeState(limit, now())])
  )
  const byTenant = tenants === undefined ? undefined : new TenantLimits(tenants, limits, makeState, now())
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
  const noPermit = Effect.succeed(blocked("concurrent", Number.POSITIVE_INFINITY))
  const noKeptPermit = Effect.succeed(blocked("concurrent", Number.POSITIVE_INFINITY, "guaranteed"))

  const limiter: RateLimiter.Limiter = {
    admit: (cost, permit, options = none) => {
      const charged = step((state, now) => admit(state, cost, permit, options, byTenant, now))
      if (semaphore === undefined || concurrent === undefined || !permit) return charged
      const chargedOrReleased = Effect.flatMap(
        charged,
        (admission) => Effect.as(admission._tag === "Admitted" ? Effect.void : releasePermit, admission)
      )
      const taken = Effect.flatMap(
        semaphore.takeIfAvailable(1),
        (taken) => taken ? chargedOrReleased : noPermit
      )
      if (byTenant === undefined && options.protect === undefined) return taken
      return Effect.flatMap(semaphore.release(0), (free) => {
        // The one that is first in order keeps a permit.
        if (options.protect !== undefined && free < 2) return noPermit
        if (free === 0 || byTenant === undefined) return taken
        const tenant = byTenant.get(options.tenant, now())
        return free > byTenant.keptPermits(tenant, concurrent.limit) ? taken : noKeptPermit
      })
    },
    predict: (cost, ahead, tenant) =>
      step((state, now) =>
        Math.max(
          predict(state, cost, ahead, now),
          byTenant === undefined ? 0 : predict(byTenant.get(tenant, now).own, cost, ahead, now)
        )
      ),
    settle: (reservation, usage) => step((_, now) => settle(own(reservation), usage, now)),
    complete: (reservation) => step((_, now) => complete(own(reservation), now)),
    giveBack: (reservation, permit) =>
      Effect.flatMap(
        step((_, now) => giveBack(own(reservation), now)),
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
