/**
 * Other limits for a limiter at work, without losing what is known.
 *
 * The states of the limits form a generation. An update makes the next one: a limit that stays keeps its state, with
 * what its provider has said about it, and a limit that is new, or counts in another way, begins with what the state
 * that remembers most about the same charges has. Reservations are not known to the limiter: each one refers to its
 * generation, and is carried to the newest when it is used next.
 */
import type * as RateLimiter from "../RateLimiter.ts"
import type { Carry, Charged, LimitState, Memory } from "./limitState.ts"

/** The states of the windowed limits, until the next update. */
export interface Generation {
  readonly states: ReadonlyArray<LimitState>
  next: Update | undefined
}

/** What is charged for one request, by state. */
export interface Charges {
  generation: Generation
  /** `undefined` where nothing is known, or nothing counts any longer. */
  charges: ReadonlyArray<Charged | undefined>
}

interface Update {
  readonly generation: Generation
  readonly carry: (charges: Charges["charges"], now: number) => Charges["charges"]
}

/** Brings the charges of a reservation to the newest generation. */
export const carry = (reservation: Charges, now: number): void => {
  for (let { next } = reservation.generation; next !== undefined; next = next.generation.next) {
    reservation.charges = next.carry(reservation.charges, now)
    reservation.generation = next.generation
  }
}

/** For each limit the index of the state that it continues: of the same type, and the same period if there is one. */
const match = (
  states: ReadonlyArray<LimitState>,
  limits: ReadonlyArray<RateLimiter.Limit>
): ReadonlyArray<number | undefined> => {
  const free = new Set(states.keys())
  const take = (is: (limit: RateLimiter.Limit) => boolean): number | undefined => {
    for (const index of free) {
      if (!is(states[index]!.limit)) continue
      free.delete(index)
      return index
    }
    return undefined
  }
  const exact = limits.map(({ timePeriod, type }) =>
    take((limit) => limit.type === type && limit.timePeriod === timePeriod)
  )
  return limits.map(({ type }, index) => exact[index] ?? take((limit) => limit.type === type))
}

const dimensions: Partial<Record<RateLimiter.Type, string>> = { rpd: "rpm", tpd: "tpm" }

/** Equal for limits that are charged the same for every request. */
const dimension = ({ charging, price, type }: RateLimiter.Limit): string => {
  const { cachedInput, combine, inputWeight, output, outputWeight } = charging
  const counted = dimensions[type] ?? type
  return counted === "rpm"
    ? counted
    : JSON.stringify([
      counted,
      price?.input,
      price?.output,
      price?.cachedInput,
      cachedInput,
      combine,
      inputWeight,
      output,
      outputWeight
    ])
}

/** The state that knows most about what a limit would have been charged: its own, if that knows no less. */
const sourceOf = (
  states: ReadonlyArray<LimitState>,
  limit: RateLimiter.Limit,
  own: number | undefined,
  now: number
): number | undefined => {
  // More than its window is of no use to it.
  const enough = now - limit.timePeriod! - limit.margin
  const since = (state: LimitState) => Math.max(enough, state.remembersSince(now))
  let best = own
  for (const [index, state] of states.entries()) {
    if (index === own || dimension(state.limit) !== dimension(limit)) continue
    const other = best === undefined ? undefined : states[best]!
    if (other === undefined || since(state) < since(other)) best = index
    // A bucket has no dates, and so cannot say what is given back.
    else if (since(state) === since(other) && !state.forgetsDates && other.forgetsDates) best = index
  }
  return best
}

/**
 * The generation of other limits, all of which have a period. Nothing is known of what was used by requests that no
 * limit of the kind was charged for.
 */
export const update = (
  generation: Generation,
  limits: ReadonlyArray<RateLimiter.Limit>,
  make: (limit: RateLimiter.Limit) => LimitState,
  now: number
): Generation => {
  const { states } = generation
  const matched = match(states, limits)
  // All memories are read before any of them changes.
  const memories = new Map<number, Memory>()
  const plans = limits.map((limit, index) => {
    const own = matched[index]
    const stays = own !== undefined && states[own]!.canFollow(limit)
    const source = stays ? undefined : sourceOf(states, limit, own, now)
    if (source !== undefined && !memories.has(source)) memories.set(source, states[source]!.memory(now))
    return { limit, own, source }
  })
  const next: Array<LimitState> = []
  const carries: Array<(charges: Charges["charges"], now: number) => Charged | undefined> = []
  for (const { limit, own, source } of plans) {
    const state = own === undefined ? make(limit) : states[own]!
    next.push(state)
    if (source !== undefined) {
      const carry: Carry = state.rebuild(limit, memories.get(source)!, own === source, now)
      carries.push((charges, now) => carry(own === undefined ? undefined : charges[own], charges[source], now))
    } else if (own !== undefined) {
      state.follow(limit, now)
      carries.push((charges) => charges[own])
    } else {
      state.begin(now)
      carries.push(() => undefined)
    }
  }
  const updated: Generation = { states: next, next: undefined }
  generation.next = {
    generation: updated,
    carry: (charges, now) => carries.map((carry) => carry(charges, now))
  }
  return updated
}
