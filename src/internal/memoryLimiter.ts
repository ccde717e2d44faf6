import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import type * as RateLimiter from "../RateLimiter.ts"
import { charge, type Charged, countsTokens, failsWhenExceeded, LimitState, usageOfPermits } from "./limitState.ts"
import { carry, type Generation, update } from "./limitUpdate.ts"
import { complete, giveBack, observe, own, refuse, type Reservation, settle } from "./reservation.ts"
import { type Tenant, TenantLimits } from "./tenantLimits.ts"
import * as time from "./time.ts"

// The states are mutable, and every operation on them is one synchronous step, so atomic. Copying them would make an
// admission cost what the windows hold.
type States = ReadonlyArray<LimitState>

const none: RateLimiter.AdmitOptions = {}

const blocked = (by: RateLimiter.Type, wait: number, scope?: "tenant" | "guaranteed"): RateLimiter.Admission =>
  scope === undefined ? { _tag: "Blocked", by, wait } : { _tag: "Blocked", by, wait, scope }

const noPermit = blocked("concurrent", Number.POSITIVE_INFINITY)
const noKeptPermit = blocked("concurrent", Number.POSITIVE_INFINITY, "guaranteed")

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

/** What a limiter that answers at once is asked for each request. */
export interface Immediate {
  /** The monotonic time that the others are told. */
  readonly now: () => number
  readonly admit: (
    cost: RateLimiter.Cost,
    permit: boolean,
    options: RateLimiter.AdmitOptions,
    now: number
  ) => RateLimiter.Admission
  /** `settle` if there is a usage, `complete`, and `releasePermit` if it has one. */
  readonly finish: (
    reservation: RateLimiter.Reservation,
    usage: RateLimiter.Tokens | undefined,
    permit: boolean,
    now: number
  ) => RateLimiter.Settlement | undefined
}

// By identity: a limiter that wraps one of these, and was spread from it, is asked by its own effects.
const immediates = new WeakMap<RateLimiter.Limiter, Immediate>()

/** How to ask a limiter without an effect, if it can be. */
export const immediately = (limiter: RateLimiter.Limiter): Immediate | undefined => immediates.get(limiter)

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
  const concurrency = (limits: ReadonlyArray<RateLimiter.Limit>) =>
    limits.find((limit) => limit.type === "concurrent")?.limit ?? Number.POSITIVE_INFINITY
  let limits = initial
  let generation: Generation = {
    states: windowed(limits).map((limit) => makeState(limit, now())),
    next: undefined
  }
  const byTenant = tenants === undefined ? undefined : new TenantLimits(tenants, limits, makeState, now())
  let permits = concurrency(limits)
  /** Requests on a permit of their own: after an update there may be more than permits. */
  let taken = 0

  const releasePermit = () => {
    // A permit that nobody holds must not raise the limit.
    taken = Math.max(0, taken - 1)
  }

  /** A reservation, which may have been made under other limits. */
  const current = (reservation: RateLimiter.Reservation, now: number): Reservation => {
    const mine = own(reservation)
    if (mine.generation.next !== undefined) carry(mine, now)
    if (mine.ofTenant?.generation.next !== undefined) carry(mine.ofTenant, now)
    return mine
  }

  const immediate: Immediate = {
    now,
    admit: (cost, permit, options, at) => {
      if (permit) {
        const free = permits - taken
        // The one that is first in order keeps a permit.
        if (free <= 0 || (options.protect !== undefined && free < 2)) return noPermit
        if (
          byTenant !== undefined && free !== Number.POSITIVE_INFINITY
          && free <= byTenant.keptPermits(byTenant.get(options.tenant, at), permits)
        ) return noKeptPermit
      }
      const admission = admit(generation, cost, permit, options, byTenant, at)
      if (permit && admission._tag === "Admitted") taken++
      return admission
    },
    finish: (reservation, usage, permit, at) => {
      const mine = current(reservation, at)
      const settlement = usage === undefined ? undefined : settle(mine, usage, at)
      complete(mine, at)
      if (permit) releasePermit()
      return settlement
    }
  }

  /** A step about a reservation. */
  const of = <A>(
    reservation: RateLimiter.Reservation,
    f: (reservation: Reservation, now: number) => A
  ): Effect.Effect<A> =>
    Effect.sync(() => {
      const at = now()
      return f(current(reservation, at), at)
    })

  const limiter: RateLimiter.Limiter = {
    admit: (cost, permit, options = none) => Effect.sync(() => immediate.admit(cost, permit, options, now())),
    predict: (cost, ahead, tenant) =>
      Effect.sync(() => {
        const at = now()
        return Math.max(
          predict(generation.states, cost, ahead, at),
          byTenant === undefined ? 0 : predict(byTenant.get(tenant, at).own, cost, ahead, at)
        )
      }),
    exceeds: (cost, tenant) =>
      Effect.sync(() => {
        const at = now()
        return excessOf(generation.states, byTenant, byTenant?.get(tenant, at), cost, at)
      }),
    settle: (reservation, usage) => of(reservation, (mine, now) => settle(mine, usage, now)),
    complete: (reservation) => of(reservation, complete),
    giveBack: (reservation, permit) =>
      of(reservation, (mine, now) => {
        if (giveBack(mine, now) && permit) releasePermit()
      }),
    observe: (reservation, observations) => of(reservation, (mine, now) => observe(mine, observations, now)),
    refuse: (reservation, refusal, observations) =>
      of(reservation, (mine, now) => refuse(mine, refusal, observations, now)),
    update: (next) =>
      Effect.sync(() => {
        const at = now()
        limits = next
        byTenant?.update(windowed(next), at)
        generation = update(generation, windowed(next), (limit) => makeState(limit, at), at)
        permits = concurrency(next)
      }),
    releasePermit: Effect.sync(releasePermit),
    usage: Effect.sync(() => {
      const at = now()
      let index = 0
      return limits.map((limit): RateLimiter.Usage => {
        if (limit.timePeriod !== undefined) return generation.states[index++]!.usage(at)
        return usageOfPermits(limit, taken)
      })
    })
  }
  immediates.set(limiter, immediate)
  return limiter
})
