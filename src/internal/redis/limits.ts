/**
 * The limits of a model that processes share, and those of its tenants, as this process has them: the cells that they are
 * counted in, and which states of this process those cells belong to.
 */
import type * as Clock from "effect/Clock"
import * as Hash from "effect/Hash"
import type * as RateLimiter from "../../RateLimiter.ts"
import { LimitState } from "../limitState.ts"
import type { Generation } from "../limitUpdate.ts"
import { type Cell, permitsOf, year } from "./cells.ts"
import { type Outbox, SharedMeter } from "./sharedMeter.ts"

export interface Shared {
  readonly state: LimitState
  readonly meter: SharedMeter
}

/** The limits of one tenant, or of the model. */
export interface Limits {
  readonly generation: Generation
  readonly shared: ReadonlyArray<Shared>
  /** What a tenant runs at one time. */
  readonly permits: Cell | undefined
}

/** Tenants whose limits are in memory. The server has what they used. */
const mostTenants = 10_000

export const cellsOf = ({ shared }: Limits): ReadonlyArray<Cell> => shared.flatMap(({ meter }) => meter.cells)

// What the encoding has no number for.
const replacer = (_: string, value: unknown): unknown => value === Number.POSITIVE_INFINITY ? "Infinity" : value
const reviver = (_: string, value: unknown): unknown => value === "Infinity" ? Number.POSITIVE_INFINITY : value

/** What the server has written of limits. */
export const read = (text: string): ReadonlyArray<RateLimiter.Limit> =>
  JSON.parse(text, reviver) as ReadonlyArray<RateLimiter.Limit>

export interface Options {
  readonly limits: ReadonlyArray<RateLimiter.Limit>
  readonly tenants: RateLimiter.Tenants | undefined
  readonly margin: number
  readonly outbox: Outbox
  readonly clock: Clock.Clock
  readonly now: () => number
  readonly random: () => number
}

export class ModelLimits {
  all: ReadonlyArray<RateLimiter.Limit>
  model: Limits
  /** Of the model. */
  cells: ReadonlyArray<Cell>
  /** As the server has them, and what is the same where they are the same. */
  written = ""
  config = ""
  private readonly options: Options
  private readonly tenants = new Map<string | undefined, Limits>()
  /** Whose a cell is. */
  private readonly owners = new WeakMap<Cell, Shared>()

  constructor(options: Options) {
    this.options = options
    this.all = options.limits
    this.model = this.make(options.limits, "", false)
    this.cells = cellsOf(this.model)
    this.write()
  }

  /** What may run at one time, if there is a limit of it. */
  get permits(): number | undefined {
    return this.all.find(({ type }) => type === "concurrent")?.limit
  }

  /** How long something counts at most, of a tenant or of the model. */
  get longest(): number {
    const { tenants } = this.options
    const ofTenants = [tenants?.others ?? [], ...Array.from(tenants?.byId.values() ?? [], ({ limits }) => limits)]
      .flatMap((limits) => limits.map(({ timePeriod = 0 }) => timePeriod))
    return [...ofTenants, ...this.cells.map(({ length }) => length)].reduce(
      (longest, length) => Math.max(longest, Math.min(length, year)),
      0
    )
  }

  limitsOf(tenant: string | undefined): ReadonlyArray<RateLimiter.Limit> {
    const { tenants } = this.options
    return tenants === undefined
      ? []
      : (tenant === undefined ? undefined : tenants.byId.get(tenant)?.limits) ?? tenants.others
  }

  tenantOf(id: string | undefined): Limits | undefined {
    if (this.options.tenants === undefined) return undefined
    const found = this.tenants.get(id)
    if (found !== undefined) return found
    const made = this.make(this.limitsOf(id), `tenant:${id === undefined ? "" : encodeURIComponent(id)}:`, true)
    if (this.tenants.size >= mostTenants) this.tenants.delete(this.tenants.keys().next().value)
    this.tenants.set(id, made)
    return made
  }

  ownerOf(cell: Cell): Shared | undefined {
    return this.owners.get(cell)
  }

  typeOf(cell: Cell | undefined): RateLimiter.Type {
    return (cell === undefined ? undefined : this.owners.get(cell)?.state.limit.type) ?? "concurrent"
  }

  describe(cell: Cell, wall: number): object {
    const owner = this.owners.get(cell)
    return owner === undefined
      ? cell.describe(0, 1, wall)
      : cell.describe(owner.meter.enforced, owner.meter.largest, wall)
  }

  /** Goes on with other limits. What the provider has said about one that stays is kept. */
  adopt(next: ReadonlyArray<RateLimiter.Limit>): void {
    const at = this.options.now()
    const before = this.model.shared
    const made = this.make(next, "", false)
    const shared = made.shared.map((each) => {
      const ofType = before.filter(({ state }) => state.limit.type === each.state.limit.type)
      const same = ofType.find(({ state }) => state.canFollow(each.state.limit))
      if (same === undefined) {
        const pausedFor = ofType[0]?.state.pausedFor(at) ?? 0
        if (pausedFor > 0) each.state.heard({ sent: 0, lowered: 0, pausedFor, isWarm: false }, at)
        return each
      }
      same.state.follow(each.state.limit, at)
      this.own(same)
      return same
    })
    this.all = next
    this.model = { ...made, shared, generation: { states: shared.map(({ state }) => state), next: undefined } }
    this.cells = cellsOf(this.model)
    this.write()
  }

  private write(): void {
    this.written = JSON.stringify(this.all, replacer)
    this.config = `${Hash.string(this.written)}:${this.written.length}`
  }

  private own(shared: Shared): void {
    for (const cell of shared.meter.cells) this.owners.set(cell, shared)
  }

  private make(limits: ReadonlyArray<RateLimiter.Limit>, prefix: string, ofTenant: boolean): Limits {
    const { clock, margin, now, outbox, random } = this.options
    const at = now()
    const shared = limits.flatMap((limit): ReadonlyArray<Shared> => {
      if (limit.timePeriod === undefined) return []
      const meter = new SharedMeter(limit, prefix, margin, outbox)
      const state = new LimitState(limit, () => clock.currentTimeMillisUnsafe(), at, random, meter)
      meter.held = () => state.held
      return [{ state, meter }]
    })
    for (const each of shared) this.own(each)
    const concurrent = ofTenant ? limits.find(({ type }) => type === "concurrent") : undefined
    return {
      generation: { states: shared.map(({ state }) => state), next: undefined },
      shared,
      permits: concurrent === undefined ? undefined : permitsOf(concurrent.limit, prefix)
    }
  }
}
