/** What a queue has charged: everything that was ever dispatched, added up anew each time. */
import type { Options, Request, Tokens } from "./request.ts"

/** A limit over a period. */
export interface Window {
  readonly counts: "requests" | "tokens"
  readonly limit: number
  /** What exceeds it fails, and does not wait. */
  readonly fails: boolean
  /** It counts the requests of one tenant. */
  readonly isOwn: boolean
}

/** A report of this very instant may have come before or after what is looked at. */
type Bound = "known" | "least" | "most"

export const sum = ({ inputTokens, outputTokens }: Tokens): number => inputTokens + outputTokens

/** Parts of limits are no whole numbers. */
const rounding = 1e-6

export class Books {
  /** Newest last. */
  readonly dispatched: Array<Request> = []
  private readonly options: Options

  constructor(options: Options) {
    this.options = options
  }

  /** The model's. */
  get windows(): ReadonlyArray<Window> {
    const { limits: { budget, requests, tokens } } = this.options
    const window = (counts: Window["counts"], limit: number | undefined, fails = false): ReadonlyArray<Window> =>
      limit === undefined ? [] : [{ counts, limit, fails, isOwn: false }]
    return [
      ...window("requests", requests),
      ...window("tokens", tokens),
      ...window("tokens", budget?.tokens, budget?.fails)
    ]
  }

  /** Of the tenant's own. */
  own(tenant: string | undefined): ReadonlyArray<Window> {
    const own = tenant === "a" ? undefined : this.options.tenants?.own
    return (["requests", "tokens"] as const).flatMap((counts) => {
      const limit = own?.[counts]
      return limit === undefined ? [] : [{ counts, limit, fails: false, isOwn: true }]
    })
  }

  amount({ counts }: Window, request: Request): number {
    return counts === "requests" ? 1 : sum(request.tokens)
  }

  used(window: Window, now: number, tenant: string | undefined, bound: Bound = "known"): number {
    let used = 0
    for (const request of this.dispatched) {
      if (request.dispatchedAt + this.options.limits.period <= now) continue
      if (window.isOwn && request.context.tenant !== tenant) continue
      if (window.counts === "requests") used++
      else used += this.charge(request, now, bound)
    }
    return used
  }

  private charge({ reportedAt, tokens, usage }: Request, now: number, bound: Bound): number {
    const estimate = sum(tokens)
    if (usage === undefined || reportedAt > now) return estimate
    if (reportedAt < now || bound === "known") return sum(usage)
    return bound === "least" ? Math.min(estimate, sum(usage)) : Math.max(estimate, sum(usage))
  }

  /** The part that is kept for `a`, whether it uses it or not. */
  part({ counts, isOwn, limit }: Window, tenant: string | undefined): number {
    const guaranteed = isOwn || tenant === "a" ? 0 : this.options.tenants?.guaranteed ?? 0
    return counts === "requests" ? Math.floor(guaranteed * limit) : guaranteed * limit
  }

  /** What of it is still to be kept. */
  private kept(window: Window, tenant: string | undefined, now: number, bound: Bound): number {
    const part = this.part(window, tenant)
    return part === 0 ? 0 : Math.max(0, part - this.used({ ...window, isOwn: true }, now, "a", bound))
  }

  /** The window that a dispatch has gone over. */
  over({ context: { tenant }, dispatchedAt }: Request): Window | undefined {
    return [...this.windows, ...this.own(tenant)].find((window) =>
      this.used(window, dispatchedAt, tenant, "least") + this.kept(window, tenant, dispatchedAt, "most")
        > window.limit + rounding
    )
  }

  /** Whether more than is left fails it. */
  exceeds(request: Request, now: number): boolean {
    const { tenant } = request.context
    return this.windows.some((window) =>
      window.fails && this.used(window, now, tenant, "most") + this.kept(window, tenant, now, "least")
            + this.amount(window, request) > window.limit - rounding
    )
  }

  private fit(windows: ReadonlyArray<Window>, request: Request, now: number, keeps: boolean): boolean {
    const { tenant } = request.context
    return windows.every((window) =>
      window.fails
      || this.used(window, now, tenant) + this.amount(window, request)
            + (keeps ? this.kept(window, tenant, now, "known") : 0) <= window.limit + rounding
    )
  }

  fits(request: Request, now: number): boolean {
    return this.fit(this.windows, request, now, true) && this.fit(this.own(request.context.tenant), request, now, true)
  }

  /** Whether only its tenant is kept back: by its own limits, or by what is kept for another one. */
  isHeld(request: Request, now: number): boolean {
    return !this.fit(this.own(request.context.tenant), request, now, true)
      || (this.fit(this.windows, request, now, false) && !this.fit(this.windows, request, now, true))
  }

  isTooLarge(request: Request): boolean {
    const { tenant } = request.context
    return [...this.windows, ...this.own(tenant)].some((window) =>
      this.amount(window, request) > window.limit - this.part(window, tenant) + rounding
    )
  }

  /** When it fits the model's windows if nothing but time passes. */
  earliest(request: Request, now: number): number {
    const times = this.dispatched.map(({ dispatchedAt }) => dispatchedAt + this.options.limits.period)
    return [now, ...times.filter((time) => time > now).toSorted((a, b) => a - b)]
      .find((time) => this.fit(this.windows, request, time, false)) ?? Number.POSITIVE_INFINITY
  }

  /** When the last of some that go one after the other does, if nothing but time passes and what runs uses nothing. */
  private through(windows: ReadonlyArray<Window>, queue: ReadonlyArray<Request>, now: number): number {
    const { period } = this.options.limits
    const charges = this.dispatched.map((request) => ({
      at: request.dispatchedAt,
      tenant: request.context.tenant,
      requests: 1,
      tokens: request.alive && request.usage === undefined ? 0 : this.charge(request, now, "known")
    }))
    let at = now
    for (const request of queue) {
      const { tenant } = request.context
      const fits = (time: number) =>
        windows.every((window) =>
          charges.filter((charge) => charge.at + period > time && (!window.isOwn || charge.tenant === tenant))
            .reduce((used, charge) => used + charge[window.counts], this.amount(window, request))
            <= window.limit + rounding
        )
      const times = [at, ...charges.map((charge) => charge.at + period).filter((time) => time > at)]
      at = times.toSorted((a, b) => a - b).find(fits) ?? Number.POSITIVE_INFINITY
      charges.push({ at, tenant, requests: 1, tokens: sum(request.tokens) })
    }
    return at
  }

  /** How long the last of some must wait at least, and how long if those before it use what they reserve. */
  waits(queue: ReadonlyArray<Request>, now: number): { readonly least: number; readonly most: number } {
    const windows = [...this.windows, ...this.own(queue.at(-1)?.context.tenant)].filter(({ fails }) => !fails)
    const ofRequests = windows.filter(({ counts }) => counts === "requests")
    return {
      least: Math.max(0, ...ofRequests.map((window) => this.through([window], queue, now) - now)),
      most: this.through(windows, queue, now) - now
    }
  }

  /** The largest part of a limit that it takes. */
  share(request: Request): number {
    const { concurrent } = this.options.limits
    const parts = this.windows.map((window) => this.amount(window, request) / window.limit)
    if (concurrent !== undefined) parts.push(1 / concurrent)
    return parts.length === 0 ? 1 : Math.max(...parts)
  }
}
