/**
 * What a request was charged, by all limits that it met, and what becomes of it.
 */
import type * as RateLimiter from "../RateLimiter.ts"
import { type Charged, isAboutConcurrency, type LimitState } from "./limitState.ts"
import type { Charges } from "./limitUpdate.ts"

/** What each windowed limit charged. */
export interface Reservation extends RateLimiter.Reservation, Charges {
  /** What the limits of its tenant charged, if it has any. */
  readonly ofTenant: Charges | undefined
  /** Whether any limit of the model was charged. */
  readonly charged: boolean
  /** Whose running request it is; `undefined` on a permit that its caller already holds. */
  readonly tenant: { running: number } | undefined
  settled: boolean
  completed: boolean
}

// The one place where a reservation that was handed out is read back: callers see it as opaque.
export const own = (reservation: RateLimiter.Reservation): Reservation => reservation as Reservation

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

export const settle = (
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

export const complete = (reservation: Reservation, now: number): void => {
  if (reservation.completed) return
  reservation.completed = true
  if (reservation.tenant !== undefined) reservation.tenant.running--
  forEachCharge(reservation, (state, charged) => state.complete(charged, now))
}

/** Whether there was anything to give back. */
export const giveBack = (reservation: Reservation, now: number): boolean => {
  if (reservation.completed) return false
  reservation.completed = reservation.settled = true
  if (reservation.tenant !== undefined) reservation.tenant.running--
  forEachCharge(reservation, (state, charged) => state.giveBack(charged, now))
  return true
}

export const observe = (
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

const bestMatch = (
  states: ReadonlyArray<LimitState>,
  score: (state: LimitState) => number | undefined
): number | undefined => {
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

export const refuse = (
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
