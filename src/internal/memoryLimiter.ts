import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import * as Ref from "effect/Ref"
import * as Semaphore from "effect/Semaphore"
import type * as RateLimiter from "../RateLimiter.ts"
import { charge, type Charged, countsTokens, failsWhenExceeded, isAboutConcurrency, LimitState } from "./limitState.ts"
import { carry, type Charges, type Generation, update } from "./limitUpdate.ts"
import { type Tenant, TenantLimits } from "./tenantLimits.ts"
import * as time from "./time.ts"

/** What each windowed limit charged. */
interface Reservation extends RateLimiter.Reservation, Charges {
  /** What the limits of its tenant charged, if it has any. */
  readonly ofTenant: Charges | undefined
  /** Whether any limit of the model was charged. */
  readonly charged: boolean
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

const take = ({ states }: Generation, cost: RateLimiter.Cost, now: number): ReadonlyArray<Charged> => {
  const charges = new Array<Charged>(states.length)
  for (let i = 0; i < states.length; i++) charges[i] = states[i]!.take(charge(states[i]!.limit, cost), now)
  return charges
}

const admit = (
  generation: Generation,
  cost: RateLimiter.Cost,
  permit: boolean,
  options: RateLimiter.AdmitOptions,
  tenants: TenantLimits | undefined,
  now: number
): RateLimiter.Admission => {
  const { states } = generation
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
  const excess = excessOf(states, tenants, tenant, cost, now)
  if (excess !== undefined) return { _tag: "Exceeded", excess }
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
  const runs = permit ? tenant : undefined
  if (runs !== undefined) runs.running++
  const reservation: Reservation = {
    "~effect-llm-queue/Reservation": true,
    generation,
    charges: take(generation, cost, now),
    ofTenant: tenant === undefined || tenant.generation.states.length === 0
      ? undefined
      : { generation: tenant.generation, charges: take(tenant.generation, cost, now) },
    charged: states.length > 0,
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
    // It does not wait for those. They are looked at when all others would let it through.
    if (failsWhenExceeded(limit)) continue
    const amount = charge(limit, cost)
    const fits = states[i]!.fitsAt(amount, now, kept?.(i, amount))
    if (fits > at) {
      at = fits
      by = limit.type
    }
  }
  return by === undefined ? undefined : { at, by }
}

/** A budget that has less left than the request costs, and does not let it wait. */
const excessOf = (
  states: States,
  tenants: TenantLimits | undefined,
  tenant: Tenant | undefined,
  cost: RateLimiter.Cost,
  now: number
): RateLimiter.Excess | undefined => {
  for (let i = 0; i < states.length; i++) {
    const state = states[i]!
    if (!failsWhenExceeded(state.limit)) continue
    const amount = charge(state.limit, cost)
    const kept = tenants === undefined || tenant === undefined ? 0 : tenants.kept(tenant, i, amount, now)
    const excess = state.excess(amount, now, false, kept)
    if (excess !== undefined) return excess
  }
  for (const state of tenant?.own ?? []) {
    const excess = failsWhenExceeded(state.limit) ? state.excess(charge(state.limit, cost), now, true) : undefined
    if (excess !== undefined) return excess
  }
  return undefined
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
    if (failsWhenExceeded(limit)) continue
    const before = countsTokens(limit)
      ? charge(limit, ahead) * (limit.charging.refund ? ahead.usedPart : 1)
      : ahead.requests
    at = Math.max(at, state.through(before, charge(limit, cost), ahead.returnedPart, now))
  }
  return at - now
}

/** What is charged for a reservation and still matters, of the model and of the tenant. */
const forEachCharge = (reservation: Reservation, f: (state: LimitState, charged: Charged) => void): void => {
  visit(reservation, f)
  if (reservation.ofTenant !== undefined) visit(reservation.ofTenant, f)
}

const visit = (
  { charges, generation: { states } }: Charges,
  f: (state: LimitState, charged: Charged) => void
): void => {
  for (let i = 0; i < states.length; i++) {
    const charged = charges[i]
    if (charged !== undefined) f(states[i]!, charged)
  }
}

const settle = (
  reservation: Reservation,
  usage: RateLimiter.Tokens,
  now: number
): RateLimiter.Settlement => {
  if (reservation.settled) return "alreadySettled"
  const { charged, generation, ofTenant } = reservation
  let changed = (generation.states.length === 0 || !charged) && ofTenant === undefined
  forEachCharge(reservation, (state, charged) => {
    if (state.settle(charged, usage, now)) changed = true
  })
  if (!changed) return "expired"
  reservation.settled = true
  return "settled"
}

const complete = (reservation: Reservation, now: number): void => {
  if (reservation.completed) return
  reservation.completed = true
  if (reservation.tenant !== undefined) reservation.tenant.running--
  forEachCharge(reservation, (state, charged) => state.complete(charged, now))
}

/** Whether there was anything to give back. */
const giveBack = (reservation: Reservation, now: number): boolean => {
  if (reservation.completed) return false
  reservation.completed = reservation.settled = true
  if (reservation.tenant !== undefined) reservation.tenant.running--
  forEachCharge(reservation, (state, charged) => state.giveBack(charged, now))
  return true
}

const observe = (
  reservation: Reservation,
  observations: ReadonlyArray<RateLimiter.Observation>,
  now: number
): void => {
  const { charges, generation: { states } } = reservation
  for (const observation of observations) {
    const index = bestMatch(states, (state) => state.matches(observation))
    const charged = index === undefined ? undefined : charges[index]
    if (index !== undefined && charged !== undefined) states[index]!.observe(charged, observation, now)
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
  reservation: Reservation,
  refusal: RateLimiter.Refusal,
  observations: ReadonlyArray<RateLimiter.Observation>,
  now: number
): void => {
  if (reservation.completed) return
  reservation.completed = reservation.settled = true
  if (reservation.tenant !== undefined) reservation.tenant.running--
  const { charges, generation: { states } } = reservation
  const amounts = charges.map((charged) => charged?.amount ?? 0)
  // What an overloaded provider has counted is not known. It asks no money for it.
  const counts = refusal.kind === "overload"
  forEachCharge(reservation, (state, charged) => {
    if (counts && state.limit.type !== "budget") state.complete(charged, now)
    else state.refused(charged, now)
  })
  observe(reservation, observations, now)
  if ((refusal.kind !== "rate" && refusal.kind !== "ramp") || isAboutConcurrency(refusal)) return
  // Said by the provider; else the one that has the least left.
  const theirs = states.filter(({ limit }) => limit.type !== "budget")
  const named = theirs.filter(({ limit }) => refusal.types.includes(limit.type))
  const index = bestMatch(
    states,
    (state) => (named.length > 0 ? named : theirs).includes(state) ? state.suspicion(refusal, now) : undefined
  )
  const charged = index === undefined ? undefined : charges[index]
  if (index === undefined || charged === undefined) return
  const state = states[index]!
  const isSure = named.length > 0 && named.every(({ limit }) => limit.timePeriod === state.limit.timePeriod)
  const means = isSure ? "this" : named.length > 0 || refusal.types.length === 0 ? "maybeThis" : "others"
  state.pause(charged, amounts[index]!, refusal, means, now)
}

// The one place where a reservation handed out by this limiter is read back: callers see it as opaque.
const own = (reservation: RateLimiter.Reservation): Reservation => reservation as Reservation

/** @internal */
export const make = Effect.fnUntraced(function*(
  initial: ReadonlyArray<RateLimiter.Limit>,
  tenants?: RateLimiter.Tenants
) {
  const clock = yield* Clock.Clock
  const random = yield* Random.Random
  const now = time.monotonic(clock)
  const wall = () => clock.currentTimeMillisUnsafe()
  const makeState = (limit: RateLimiter.Limit, now: number) =>
    new LimitState(limit, wall, now, () => random.nextDoubleUnsafe())
  const windowed = (limits: ReadonlyArray<RateLimiter.Limit>) =>
    limits.filter(({ timePeriod }) => timePeriod !== undefined)
  let limits = initial
  const generation = yield* Ref.make<Generation>({
    states: windowed(limits).map((limit) => makeState(limit, now())),
    next: undefined
  })
  const byTenant = tenants === undefined ? undefined : new TenantLimits(tenants, limits, makeState, now())
  const step = <A>(f: (generation: Generation, now: number) => A): Effect.Effect<A> =>
    Ref.modify(generation, (generation) => [f(generation, now()), generation])
  /** A step about a reservation, which may have been made under other limits. */
  const of = <A>(
    reservation: RateLimiter.Reservation,
    f: (reservation: Reservation, now: number) => A
  ): Effect.Effect<A> =>
    step((_, now) => {
      const mine = own(reservation)
      if (mine.generation.next !== undefined) carry(mine, now)
      if (mine.ofTenant?.generation.next !== undefined) carry(mine.ofTenant, now)
      return f(mine, now)
    })

  const concurrency = (limits: ReadonlyArray<RateLimiter.Limit>) =>
    limits.find((limit) => limit.type === "concurrent")?.limit
  let permits = concurrency(limits)
  let semaphore = permits === undefined ? undefined : yield* Semaphore.make(permits)
  /** Requests on a permit of their own while there is no limit to them: one may come. */
  let unlimited = 0
  const releasePermit = Effect.suspend(() => {
    const held = semaphore
    if (held === undefined) {
      unlimited = Math.max(0, unlimited - 1)
      return Effect.void
    }
    // A permit that nobody holds must not raise the limit.
    return Effect.flatMap(held.release(0), (free) => free < permits! ? Effect.asVoid(held.release(1)) : Effect.void)
  })
  const noPermit = Effect.succeed(blocked("concurrent", Number.POSITIVE_INFINITY))
  const noKeptPermit = Effect.succeed(blocked("concurrent", Number.POSITIVE_INFINITY, "guaranteed"))

  /** Those at work keep their permits, also above the limit. */
  const setConcurrency = Effect.fnUntraced(function*(limit: number | undefined) {
    const taken = semaphore === undefined ? unlimited : permits! - (yield* semaphore.release(0))
    permits = limit
    if (limit === undefined) {
      unlimited = taken
      semaphore = undefined
      return
    }
    if (semaphore === undefined) {
      semaphore = yield* Semaphore.make(Math.max(limit, taken))
      yield* semaphore.takeIfAvailable(taken)
    }
    yield* semaphore.resize(limit)
  })

  const limiter: RateLimiter.Limiter = {
    admit: (cost, permit, options = none) => {
      const charged = step((generation, now) => {
        const admission = admit(generation, cost, permit, options, byTenant, now)
        if (semaphore === undefined && permit && admission._tag === "Admitted") unlimited++
        return admission
      })
      if (semaphore === undefined || permits === undefined || !permit) return charged
      const most = permits
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
        return free > byTenant.keptPermits(tenant, most) ? taken : noKeptPermit
      })
    },
    predict: (cost, ahead, tenant) =>
      step(({ states }, now) =>
        Math.max(
          predict(states, cost, ahead, now),
          byTenant === undefined ? 0 : predict(byTenant.get(tenant, now).own, cost, ahead, now)
        )
      ),
    exceeds: (cost, tenant) =>
      step(({ states }, now) => excessOf(states, byTenant, byTenant?.get(tenant, now), cost, now)),
    settle: (reservation, usage) => of(reservation, (mine, now) => settle(mine, usage, now)),
    complete: (reservation) => of(reservation, complete),
    giveBack: (reservation, permit) =>
      Effect.flatMap(
        of(reservation, giveBack),
        (given) => given && permit ? releasePermit : Effect.void
      ),
    observe: (reservation, observations) => of(reservation, (mine, now) => observe(mine, observations, now)),
    refuse: (reservation, refusal, observations) =>
      of(reservation, (mine, now) => refuse(mine, refusal, observations, now)),
    update: (next) =>
      Effect.andThen(
        Ref.update(generation, (generation) => {
          const at = now()
          limits = next
          byTenant?.update(windowed(next), at)
          return update(generation, windowed(next), (limit) => makeState(limit, at), at)
        }),
        Effect.suspend(() => setConcurrency(concurrency(next)))
      ),
    releasePermit,
    usage: Effect.gen(function*() {
      const free = semaphore === undefined ? 0 : yield* semaphore.release(0)
      return yield* step(({ states }, now) => {
        let index = 0
        return limits.map((limit): RateLimiter.Usage => {
          if (limit.timePeriod !== undefined) return states[index++]!.usage(now)
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
