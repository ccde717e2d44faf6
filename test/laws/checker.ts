/**
 * What the limits allow, computed by brute force from what was seen to happen. Nothing here is shared with the
 * library: every question is answered by going through all requests.
 */
import type { ModelConfig, RateLimiter } from "effect-llm-queue"
import type { LimitPlan, RequestPlan } from "./schedule.ts"

/** What was seen of a request. */
export interface Seen {
  readonly plan: RequestPlan
  arrivedAt: number | undefined
  /** Position among the submissions. */
  sequence: number
  state: "new" | "refused" | "waiting" | "left" | "running" | "ended"
  dispatchedAt: number | undefined
  /** When the processor ended. */
  endedAt: number | undefined
  /** Net charge of each limit. */
  readonly amounts: Array<number>
  /** Date of each charge; `undefined` while it is held. */
  readonly dates: Array<number | undefined>
  /** Whether any limit was charged for it. */
  charged: boolean
  settled: boolean
  /** How it may have ended; the first cause wins, and what coincides with it may too. */
  readonly ends: Array<{ readonly at: number; readonly end: End }>
}

export type End = "completed" | "failed" | "died" | "timedOut" | "cancelled" | "tooLarge"

const charge = (type: RateLimiter.Type, { inputTokens, outputTokens }: RateLimiter.Tokens): number =>
  type === "itpm"
    ? inputTokens
    : type === "otpm"
    ? outputTokens
    : type === "tpm" || type === "tpd"
    ? inputTokens + outputTokens
    : 1

export class Checker {
  readonly problems: Array<string> = []
  /** Everything that happened, for the message of a failure. */
  readonly log: Array<string> = []
  readonly seen: ReadonlyArray<Seen>
  limits: ReadonlyArray<LimitPlan>
  /** Before this time nothing is known of what each limit was charged. */
  private knownSince: ReadonlyArray<number>
  private sequence = 0

  constructor(limits: ReadonlyArray<LimitPlan>, requests: ReadonlyArray<RequestPlan>) {
    this.limits = limits
    this.knownSince = limits.map(() => Number.NEGATIVE_INFINITY)
    this.seen = requests.map((plan) => ({
      plan,
      arrivedAt: undefined,
      sequence: 0,
      state: "new",
      dispatchedAt: undefined,
      endedAt: undefined,
      amounts: [],
      dates: [],
      charged: false,
      settled: false,
      ends: []
    }))
  }

  note(at: number, what: string): void {
    this.log.push(`${at}: ${what}`)
  }

  problem(at: number, what: string): void {
    this.note(at, `PROBLEM ${what}`)
    this.problems.push(what)
  }

  // What the limits hold

  private length(limit: LimitPlan): number {
    return limit.timePeriod + limit.margin
  }

  isTooLarge(plan: RequestPlan): boolean {
    return this.limits.some(({ limit, type }) => charge(type, plan.tokens) > limit)
  }

  running(): number {
    return this.seen.filter(({ state }) => state === "running").length
  }

  used(index: number, at: number): number {
    const limit = this.limits[index]!
    if (limit.type === "concurrent") return this.running()
    let sum = 0
    for (const { amounts, dates, dispatchedAt } of this.seen) {
      if (dispatchedAt === undefined) continue
      const date = dates[index]
      if (date === undefined || date + this.length(limit) > at) sum += amounts[index]!
    }
    return sum
  }

  /** The limits that the request does not fit. */
  misfits(plan: RequestPlan, at: number): ReadonlyArray<string> {
    return this.limits.flatMap((limit, index) => {
      const used = this.used(index, at)
      const cost = charge(limit.type, plan.tokens)
      return used + cost > limit.limit
        ? [`${used} + ${cost} > ${limit.limit} of ${limit.type}/${limit.timePeriod}`]
        : []
    })
  }

  /** Instants after `at` at which a charge leaves a window. */
  expiries(at: number, of: ReadonlyArray<Seen> = this.seen): ReadonlyArray<number> {
    return of.flatMap(({ dates }) =>
      this.limits.flatMap((limit, index) => {
        const date = dates[index]
        return date !== undefined && limit.type !== "concurrent" && date + this.length(limit) > at
          ? [date + this.length(limit)]
          : []
      })
    )
  }

  /** Milliseconds until something of the limit is available; `undefined` when no passing of time brings it. */
  untilCapacity(index: number, at: number): number | undefined {
    const { limit, type } = this.limits[index]!
    if (this.used(index, at) < limit) return 0
    if (type === "concurrent") return undefined
    const instants = this.expiries(at).toSorted((a, b) => a - b)
    const first = instants.find((instant) => this.used(index, instant) < limit)
    return first === undefined ? undefined : first - at
  }

  // What happens

  arrive(request: Seen, at: number): void {
    request.arrivedAt = at
    request.sequence = this.sequence++
    request.state = "waiting"
    this.note(at, `${request.plan.id} arrives`)
  }

  private isBefore(a: Seen, b: Seen): boolean {
    const key = ({ arrivedAt, plan }: Seen) => arrivedAt! - plan.priority * 1000
    return key(a) < key(b) || (key(a) === key(b) && a.sequence < b.sequence)
  }

  deadline({ arrivedAt, plan }: Seen): number {
    return plan.timeout === undefined ? Number.POSITIVE_INFINITY : arrivedAt! + plan.timeout
  }

  head(at: number): Seen | undefined {
    let head: Seen | undefined
    for (const request of this.seen) {
      if (request.state !== "waiting" || this.deadline(request) <= at) continue
      if (head === undefined || this.isBefore(request, head)) head = request
    }
    return head
  }

  dispatch(request: Seen, at: number): void {
    const { plan } = request
    this.note(at, `${plan.id} dispatched`)
    if (request.state !== "waiting") this.problem(at, `${plan.id} is dispatched while it is ${request.state}`)
    if (this.deadline(request) < at) this.problem(at, `${plan.id} is dispatched after its timeout`)
    const head = this.head(at)
    if (head !== undefined && head !== request && !this.isBefore(request, head)) {
      this.problem(at, `${plan.id} is dispatched before ${head.plan.id}`)
    }
    const misfits = this.misfits(plan, at)
    if (misfits.length > 0) this.problem(at, `OVER: ${plan.id} is dispatched with ${misfits.join(", ")}`)
    request.state = "running"
    request.dispatchedAt = at
    request.charged = this.limits.some(({ type }) => type !== "concurrent")
    for (const [index, limit] of this.limits.entries()) {
      request.amounts[index] = charge(limit.type, plan.tokens)
      request.dates[index] = limit.chargedAt === "dispatch" ? at : undefined
    }
  }

  /** The processor has ended; `usage` when the model reads it from its result. */
  end(request: Seen, at: number, end: End | undefined, usage: ModelConfig.Usage | undefined): void {
    this.note(at, `${request.plan.id} processed: ${end ?? "interrupted"}`)
    if (usage !== undefined) this.settle(request, at, usage)
    if (end !== undefined) request.ends.push({ at, end })
    for (const index of this.limits.keys()) request.dates[index] ??= at
    request.state = "ended"
    request.endedAt = at
  }

  settle(request: Seen, at: number, usage: ModelConfig.Usage): RateLimiter.Settlement | "refused" {
    if (request.dispatchedAt === undefined) return "refused"
    if (request.settled) return "alreadySettled"
    let open = !request.charged || this.limits.every(({ type }) => type === "concurrent")
    for (const [index, limit] of this.limits.entries()) {
      if (limit.type === "concurrent") continue
      const date = request.dates[index]
      if (date !== undefined && date + this.length(limit) <= at) continue
      open = true
      request.amounts[index] = charge(limit.type, usage)
      if (date === undefined && limit.chargedAt === "production") request.dates[index] = at
    }
    if (!open) return "expired"
    request.settled = true
    return "settled"
  }

  /**
   * Other limits. A limit with the same window as the one before of its type keeps what that has. Any other begins with
   * what the limit has that counts the same and knows most: its own, if that knows no less.
   */
  update(limits: ReadonlyArray<LimitPlan>, at: number): void {
    this.note(at, `limits ${JSON.stringify(limits)}`)
    const before = this.limits
    const taken = new Set<LimitPlan>()
    const own = new Map<LimitPlan, LimitPlan>()
    for (const isSame of [(a: LimitPlan, b: LimitPlan) => a.timePeriod === b.timePeriod, () => true]) {
      for (const limit of limits) {
        const old = before.find((old) => old.type === limit.type && !taken.has(old) && isSame(old, limit))
        if (old === undefined || own.has(limit)) continue
        own.set(limit, old)
        taken.add(old)
      }
    }
    const kind = ({ type }: LimitPlan) => type === "rpd" ? "rpm" : type === "tpd" ? "tpm" : type
    const sources = limits.map((limit) => {
      const mine = own.get(limit)
      if (mine !== undefined && mine.timePeriod === limit.timePeriod && mine.margin === limit.margin) return mine
      const since = (old: LimitPlan) =>
        Math.max(
          at - this.length(limit),
          at - this.length(old),
          this.knownSince[before.indexOf(old)]!
        )
      const others = before.filter((old) => old !== mine && kind(old) === kind(limit))
      const all = mine === undefined ? others : [mine, ...others]
      return all.find((old) => all.every((other) => since(old) <= since(other)))
    })
    for (const { amounts, dates, dispatchedAt } of this.seen) {
      if (dispatchedAt === undefined) continue
      const carried = sources.map((source) => {
        const index = source === undefined ? -1 : before.indexOf(source)
        const date = dates[index]
        const counts = source !== undefined && (date === undefined || date + this.length(source) > at)
        return counts ? { amount: amounts[index]!, date } : { amount: 0, date: Number.NEGATIVE_INFINITY }
      })
      amounts.splice(0, amounts.length, ...carried.map(({ amount }) => amount))
      dates.splice(0, dates.length, ...carried.map(({ date }) => date))
    }
    this.knownSince = sources.map((source) =>
      source === undefined
        ? at
        : Math.max(at - this.length(source), this.knownSince[before.indexOf(source)]!)
    )
    this.limits = limits
    for (const request of this.seen) {
      if (request.state !== "waiting" || !this.isTooLarge(request.plan)) continue
      if (this.deadline(request) > at) this.abort(request, at, "tooLarge")
    }
  }

  /** Somebody ends it, whether it waits or runs. */
  abort(request: Seen, at: number, end: End): void {
    this.note(at, `${request.plan.id} ${end}`)
    request.ends.push({ at, end })
    if (request.state === "waiting") request.state = "left"
  }

  /** Timeouts that have come. */
  expire(at: number): void {
    for (const request of this.seen) {
      const { arrivedAt, dispatchedAt, plan, state } = request
      if (arrivedAt === undefined || state === "refused" || request.ends.some(({ end }) => end === "timedOut")) continue
      const processing = dispatchedAt === undefined || plan.processingTimeout === undefined
        ? Number.POSITIVE_INFINITY
        : dispatchedAt + plan.processingTimeout
      const deadline = Math.min(this.deadline(request), processing)
      if (deadline > at) continue
      if (request.ends.every((end) => end.at >= deadline)) this.abort(request, deadline, "timedOut")
    }
  }

  // What must hold when everything has settled

  settled(at: number): void {
    this.expire(at)
    const head = this.head(at)
    if (head !== undefined && this.misfits(head.plan, at).length === 0) {
      this.problem(at, `IDLE: ${head.plan.id} fits every limit and is not dispatched`)
    }
  }

  /** Ways in which the request may have ended. */
  allowed(request: Seen): ReadonlyArray<End> {
    const first = Math.min(...request.ends.map(({ at }) => at))
    return request.ends.filter(({ at }) => at === first).map(({ end }) => end)
  }
}
