/**
 * What a process may use by itself while the server is away: an equal part of each limit for each of the processes that
 * were there.
 *
 * **Why together they are within the limits.** Nobody is let in by a server that is away. Each process begins with its part
 * taken as a whole at that instant. In a window that begins before it, all that was let in was let in by the server, and
 * within the limit; in one that begins later, what each has let in is within its own part, and the parts together are no
 * more than the limit. So for a whole window nothing goes, and of a limit of a day nothing for a day.
 *
 * That is for a server that is away for everybody. One that only this process cannot reach goes on with the whole limit for
 * the others, and this part comes on top of it.
 */
import type * as RateLimiter from "../../RateLimiter.ts"
import { charge, failsWhenExceeded, LimitState } from "../limitState.ts"
import type { Reservation } from "../reservation.ts"

/** An equal part, of what comes in ones only whole ones; `undefined` when that is nothing. */
const partOf = (limit: RateLimiter.Limit, processes: number): RateLimiter.Limit | undefined => {
  const part = limit.type === "budget" ? limit.limit / processes : Math.floor(limit.limit / processes)
  if (part <= 0) return undefined
  return {
    ...limit,
    limit: part,
    burst: limit.burst === undefined ? undefined : Math.max(1, limit.burst / processes),
    coldStart: false
  }
}

interface Clocks {
  readonly now: () => number
  readonly wall: () => number
  readonly random: () => number
}

/** The parts of some limits; `undefined` where one of them is nothing. */
const partsOf = (
  limits: ReadonlyArray<RateLimiter.Limit>,
  processes: number,
  { now, random, wall }: Clocks
): ReadonlyArray<LimitState> | undefined => {
  const at = now()
  const states: Array<LimitState> = []
  for (const limit of limits) {
    if (limit.timePeriod === undefined) continue
    const part = partOf(limit, processes)
    if (part === undefined) return undefined
    const state = new LimitState(part, wall, at, random)
    const taken = state.take(part.limit, at)
    state.complete(taken, at)
    states.push(state)
  }
  return states
}

export class Share {
  private readonly clocks: Clocks
  private readonly processes: number
  private readonly model: ReadonlyArray<LimitState> | undefined
  private readonly ofTenant: (id: string | undefined) => ReadonlyArray<RateLimiter.Limit>
  private readonly tenants = new Map<string | undefined, ReadonlyArray<LimitState> | undefined>()
  private readonly permits: number

  constructor(
    limits: ReadonlyArray<RateLimiter.Limit>,
    ofTenant: (id: string | undefined) => ReadonlyArray<RateLimiter.Limit>,
    processes: number,
    clocks: Clocks
  ) {
    this.clocks = clocks
    this.processes = processes
    this.ofTenant = ofTenant
    this.model = partsOf(limits, processes, clocks)
    const concurrent = limits.find(({ type }) => type === "concurrent")
    this.permits = concurrent === undefined ? Number.POSITIVE_INFINITY : Math.floor(concurrent.limit / processes)
  }

  /** Lets a request in, or says when. `running` are the permits that this process has. */
  admit(
    { cost, tenant }: RateLimiter.Candidate,
    permit: boolean,
    running: number
  ): Omit<Reservation, "~effect-llm-queue/Reservation"> | Extract<RateLimiter.Admission, { readonly _tag: "Blocked" }> {
    const at = this.clocks.now()
    const own = this.tenantStates(tenant)
    const never = { _tag: "Blocked", by: "concurrent", wait: Number.POSITIVE_INFINITY } as const
    if (this.model === undefined || own === undefined || (permit && running >= this.permits)) return never
    let last = at
    let by: RateLimiter.Type | undefined
    for (const state of [...this.model, ...own]) {
      const amount = charge(state.limit, cost)
      // More than the whole part never fits it, though it would fit the limit.
      const fits = amount > state.limit.limit && !failsWhenExceeded(state.limit)
        ? Number.POSITIVE_INFINITY
        : state.fitsAt(amount, at)
      if (fits > last) {
        last = fits
        by = state.limit.type
      }
    }
    if (by !== undefined) return { _tag: "Blocked", by, wait: last - at }
    const charges = (states: ReadonlyArray<LimitState>) =>
      states.map((state) => state.take(charge(state.limit, cost), at))
    return {
      generation: { states: this.model, next: undefined },
      charges: charges(this.model),
      ofTenant: own.length === 0 ? undefined : { generation: { states: own, next: undefined }, charges: charges(own) },
      charged: this.model.length > 0,
      tenant: undefined,
      settled: false,
      completed: false
    }
  }

  private tenantStates(id: string | undefined): ReadonlyArray<LimitState> | undefined {
    if (this.tenants.has(id)) return this.tenants.get(id)
    const states = partsOf(this.ofTenant(id), this.processes, this.clocks)
    this.tenants.set(id, states)
    return states
  }
}
