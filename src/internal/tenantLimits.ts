/**
 * What tenants use of a model, in memory: limits of their own, and what is kept for those it was guaranteed to.
 *
 * Tenants come and go without notice. One that is idle is forgotten: nothing it did still counts.
 */
import type * as RateLimiter from "../RateLimiter.ts"
import { keptPart, type LimitState } from "./limitState.ts"
import { type Generation, update } from "./limitUpdate.ts"

export interface Tenant {
  /** The model's limits do not come in here: what is `Blocked` by these concerns this tenant only. */
  readonly own: ReadonlyArray<LimitState>
  /** Most at one time. */
  readonly concurrent: number
  running: number
  readonly guaranteed: number
  /** Its part of each of the model's windows; empty when nothing is guaranteed. */
  parts: ReadonlyArray<LimitState>
  /** All of the above that keep charges. */
  generation: Generation
}

/** A part is counted as the limit is, and nobody but the provider corrects that. */
const partOf = (limit: RateLimiter.Limit): RateLimiter.Limit => ({ ...limit, coldStart: false })

/** Tenants that are looked at for each new one, so that those that are idle are forgotten. */
const swept = 2

export class TenantLimits {
  private readonly tenants: RateLimiter.Tenants
  private windows: ReadonlyArray<RateLimiter.Limit>
  private readonly makeState: (limit: RateLimiter.Limit, now: number) => LimitState
  private readonly known = new Map<string | undefined, Tenant>()
  private readonly guaranteed: Array<Tenant> = []

  constructor(
    tenants: RateLimiter.Tenants,
    limits: ReadonlyArray<RateLimiter.Limit>,
    makeState: (limit: RateLimiter.Limit, now: number) => LimitState,
    now: number
  ) {
    this.tenants = tenants
    this.windows = limits.filter(({ timePeriod }) => timePeriod !== undefined)
    this.makeState = makeState
    for (const [id, { guaranteed }] of tenants.byId) {
      if (guaranteed > 0) this.guaranteed.push(this.get(id, now))
    }
  }

  /** How many there are in memory. */
  get size(): number {
    return this.known.size
  }

  get(id: string | undefined, now: number): Tenant {
    const found = this.known.get(id)
    if (found !== undefined) return found
    this.sweep(now)
    const { guaranteed, limits } = (id === undefined ? undefined : this.tenants.byId.get(id))
      ?? { limits: this.tenants.others, guaranteed: 0 }
    const own = limits.flatMap((limit) => limit.timePeriod === undefined ? [] : [this.makeState(limit, now)])
    const parts = guaranteed === 0 ? [] : this.windows.map((limit) => this.makeState(partOf(limit), now))
    const tenant: Tenant = {
      own,
      concurrent: limits.find(({ type }) => type === "concurrent")?.limit ?? Number.POSITIVE_INFINITY,
      running: 0,
      guaranteed,
      parts,
      generation: { states: [...own, ...parts], next: undefined }
    }
    this.known.set(id, tenant)
    return tenant
  }

  /** Other limits of the model: what each tenant has used of its part counts on. */
  update(windows: ReadonlyArray<RateLimiter.Limit>, now: number): void {
    this.windows = windows
    for (const tenant of this.guaranteed) {
      // Its own limits come first, so they continue themselves.
      const limits = [...tenant.own.map(({ limit }) => limit), ...windows.map(partOf)]
      tenant.generation = update(tenant.generation, limits, (limit) => this.makeState(limit, now), now)
      tenant.parts = tenant.generation.states.slice(tenant.own.length)
    }
  }

  /** What must be left of a window for others when a tenant takes `amount`; nothing if that is its own part. */
  kept(tenant: Tenant, window: number, amount: number, now: number): number {
    const limit = this.windows[window]!
    const own = tenant.guaranteed === 0 ? 0 : keptPart(limit, tenant.guaranteed)
    if (own > 0 && tenant.parts[window]!.used(now) + amount <= own) return 0
    let kept = 0
    for (const other of this.guaranteed) {
      if (other !== tenant) kept += Math.max(0, keptPart(limit, other.guaranteed) - other.parts[window]!.used(now))
    }
    return kept
  }

  /** The same for the permits of a concurrency limit. */
  keptPermits(tenant: Tenant, permits: number): number {
    const limit = { limit: permits, type: "concurrent" } as const
    if (tenant.running < keptPart(limit, tenant.guaranteed)) return 0
    let kept = 0
    for (const other of this.guaranteed) {
      if (other !== tenant) kept += Math.max(0, keptPart(limit, other.guaranteed) - other.running)
    }
    return kept
  }

  /** The oldest ones go to the end when they are not idle, so that all are looked at in turn. */
  private sweep(now: number): void {
    let left = swept
    for (const [id, tenant] of this.known) {
      if (left-- === 0) return
      this.known.delete(id)
      const isIdle = tenant.running === 0 && tenant.guaranteed === 0 &&
        tenant.generation.states.every((state) => state.isIdle(now))
      if (!isIdle) this.known.set(id, tenant)
    }
  }
}
