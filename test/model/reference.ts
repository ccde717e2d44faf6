/**
 * What a queue must do, as plain data. It does not predict: it is told what was asked of the queue and what the queue
 * says happened, in order, and objects to everything that the rules do not allow. It shares no code with the package.
 */
import { Cause, Duration, Exit } from "effect"
import type { QueueError, QueueManager, QueueResponse } from "effect-llm-queue"
import { Books, sum, type Window } from "./books.ts"
import { Letters } from "./letters.ts"
import {
  type Asked,
  errorOf,
  type Filter,
  isActive,
  isBelow,
  isEnd,
  isOf,
  must,
  objection,
  type Options,
  type Request,
  tagOf,
  type Tokens
} from "./request.ts"
import { Shares } from "./shares.ts"
import { Sharing } from "./sharing.ts"

export class Reference {
  readonly requests = new Map<string, Request>()
  readonly ended: Array<Request> = []
  counts = { completed: 0, failed: 0, cancelled: 0 }
  closing = false
  paused = false
  draining = false
  private acceptances = 0
  /** Taken when it was last looked at. */
  private permits = 0
  private othersBefore = 0

  readonly name: string
  readonly options: Options
  readonly letters: Letters
  readonly books: Books
  readonly shares: Shares
  readonly sharing: Sharing

  constructor(name: string, options: Options) {
    this.name = name
    this.options = options
    this.sharing = new Sharing(this)
    this.letters = new Letters(options.letterCount, options.letterAge)
    this.books = new Books(options)
    this.shares = new Shares((tenant) => tenant === "a" ? options.tenants?.weight ?? 1 : 1)
  }

  submit(
    asked: Asked,
    of: { readonly key?: string; readonly sharers?: Array<Request>; readonly isLate?: boolean } = {}
  ): Request {
    const { context, id, ownTimeout, parent, submittedAt, waits } = asked
    const nested = waits && isOf(this, parent)
    const request: Request = {
      ...asked,
      timeout: Math.min(ownTimeout, (context.deadline ?? Number.POSITIVE_INFINITY) - submittedAt),
      reference: this,
      key: of.key,
      call: undefined,
      sharers: of.sharers,
      nested,
      onceNested: nested,
      // In the middle of something nobody but the queue knows what it has done.
      expected: parent === undefined && of.isLate !== true ? this.expect(asked) : undefined,
      passed: 0,
      leftAt: -1,
      whileClosing: this.closing,
      whileDraining: this.draining && !this.closing,
      status: "submitted",
      accepted: -1,
      acceptedAt: -1,
      dispatchedAt: -1,
      endedAt: -1,
      ending: undefined,
      cancelAsked: false,
      isCancelled: false,
      hasFailed: false,
      left: false,
      starts: 0,
      startedAt: -1,
      alive: false,
      exit: undefined,
      waitsFor: undefined,
      onceWaited: false,
      usage: undefined,
      reportedAt: -1
    }
    if (of.key === undefined) this.requests.set(id, request)
    else this.sharing.all.set(id, request)
    return request
  }

  /** By what waits before it in its tenant. */
  expect(asked: Pick<Asked, "context" | "tokens" | "submittedAt">): ReturnType<Books["waits"]> {
    const request = asked as Request
    const before = this.waiting.filter((other) =>
      !other.nested && other.context.tenant === request.context.tenant
      && this.headStart(other) >= this.headStart(request)
    )
    return this.books.waits([...before, request], request.submittedAt)
  }

  get all(): ReadonlyArray<Request> {
    return Array.from(this.requests.values())
  }

  get active(): ReadonlyArray<Request> {
    return this.all.filter((request) => request.status === "pending" || request.status === "processing")
  }

  get waiting(): ReadonlyArray<Request> {
    return this.all.filter((request) => request.status === "pending").toSorted((a, b) => a.accepted - b.accepted)
  }

  get alive(): ReadonlyArray<Request> {
    return this.all.filter((request) => request.alive)
  }

  get suspended(): ReadonlyArray<Request> {
    return this.all.filter((request) => request.status === "submitted")
  }

  headStart({ context }: Request): number {
    return context.headStart ?? this.options.headStart
  }

  /** When it is dispatched before others: earlier is before later. */
  private key(request: Request): number {
    return request.submittedAt - this.headStart(request)
  }

  /** Those in front of all others of their tenant, of what waits for its turn. */
  private get heads(): ReadonlyArray<Request> {
    const heads = new Map<string | undefined, Request>()
    for (const request of this.waiting) {
      const head = heads.get(request.context.tenant)
      if (!request.nested && (head === undefined || this.key(request) < this.key(head))) {
        heads.set(request.context.tenant, request)
      }
    }
    return Array.from(heads.values())
  }

  /** Whether only what is waited for itself may go. */
  get isHeld(): boolean {
    return this.paused && !this.closing
  }

  get state(): QueueManager.QueueInfo["state"] {
    return this.paused ? "paused" : this.draining ? "draining" : "open"
  }

  isEmpty(): boolean {
    return this.suspended.length === 0 && this.waiting.length === 0 && this.alive.length === 0
  }

  /** What a filter means. */
  meant(filter: Filter, now: number): ReadonlyArray<Request> {
    return [...this.all, ...this.sharing.all.values()].filter((request) => {
      // A call is for those who share it to cancel.
      if (!isActive(request) || request.sharers !== undefined) return false
      const { call = request, context: { labels, tenant }, id, submittedAt } = request
      const status = call.status === "processing" ? "processing" : "pending"
      return (filter.ids?.includes(id) ?? true)
        && (filter.tenant === undefined || filter.tenant === tenant)
        && Object.entries(filter.labels ?? {}).every(([name, value]) => labels?.[name] === value)
        && (filter.headStart === undefined || filter.headStart === this.headStart(call))
        && (filter.status === undefined || filter.status === status)
        && (filter.olderThan === undefined || now - submittedAt > filter.olderThan)
    })
  }

  isForgotten(request: Request, now: number): boolean {
    const ended = request.key === undefined ? this.ended : this.sharing.ended
    const index = ended.indexOf(request)
    return index >= 0 && (index < ended.length - this.options.retainCount
      || request.endedAt + this.options.retainAge <= now)
  }

  /** After a shutdown statuses stay as they are, so an old one may or may not be there. */
  mayBeForgotten(request: Request, now: number): boolean {
    return this.closing && this.isForgotten(request, now)
  }

  // What the queue says ---------------------------------------------------------------------------------------------

  find(id: string): Request | undefined {
    return this.requests.get(id) ?? this.sharing.all.get(id)
  }

  observe(event: QueueResponse.QueueResponse<unknown, unknown>): void {
    const request = this.find(event.requestId) ?? objection(`event of an unknown request ${event.requestId}`)
    const at = (what: string) => `${this.name}/${request.id} ${request.status} -> ${event.status}: ${what}`
    must(event.createdAt === request.submittedAt, () => at("createdAt"))
    const queueTime = Duration.toMillis(event.queueTime)
    const processingTime = Duration.toMillis(event.processingTime)
    if (event.status === "pending") {
      must(request.status === "submitted", () => at("not forward"))
      must(!request.whileClosing || request.nested, () => at("accepted while closing"))
      must(!request.whileDraining || request.nested, () => at("accepted while draining"))
      must(!request.malformed, () => at("accepted and malformed"))
      must(
        !this.options.failEarly || request.nested || request.key !== undefined
          || (request.expected?.least ?? 0) <= request.timeout,
        () => at(`cannot be in time: it must wait ${request.expected?.least} of ${request.timeout}`)
      )
      request.status = "pending"
      request.accepted = this.acceptances++
      request.acceptedAt = request.submittedAt + queueTime
      return
    }
    if (event.status === "processing") {
      must(request.status === "pending", () => at("not forward"))
      request.status = "processing"
      request.dispatchedAt = request.submittedAt + queueTime
      must(event.attempts === 1, () => at("attempts"))
      this.dispatch(request, at)
      return
    }
    if (request.key !== undefined) return this.sharing.end(request, event, at)
    must(request.status === "pending" || request.status === "processing", () => at("not forward"))
    const wasDispatched = request.status === "processing"
    request.status = event.status
    request.endedAt = request.submittedAt + queueTime + processingTime
    request.ending = event
    if (wasDispatched) must(request.dispatchedAt === request.submittedAt + queueTime, () => at("queueTime"))
    else must(processingTime === 0 && event.attempts === 0, () => at("never processed"))
    this.ended.push(request)
    if (event.status === "failed") this.letters.failed(request)
    this.counts[event.status]++
    this.justify(request, event, wasDispatched, at)
  }

  /** A dispatch keeps every window, and the order. */
  private dispatch(request: Request, at: (what: string) => string): void {
    const now = request.dispatchedAt
    const waiting = this.waiting.filter(({ nested }) => !nested)
    const { tenants } = this.options
    const problem = this.shares.serve(request, [...waiting, request], (other) => this.books.share(other))
    must(
      problem === undefined || tenants?.own !== undefined || (tenants?.guaranteed ?? 0) > 0,
      () => at(problem!)
    )
    const inTurn = !request.nested && request.leftAt < now
    if (inTurn) {
      must(!this.isHeld, () => at("in a pause"))
      // One that was accepted at this very instant may have come a moment later.
      const before = waiting.filter((other) =>
        other.context.tenant === request.context.tenant && this.compare(other, request) < 0
      ).toSorted((a, b) => this.compare(a, b))
      const isSure = (other: Request) => other.leftAt !== now && other.acceptedAt !== now
      const first = before.find(isSure)
      if (first !== undefined) {
        must(this.options.bypass > 0, () => at(`before ${first.id}`))
        // Else the first one may have been another one, which alone is protected.
        if (first === before[0]) this.pass(request, first, now, at)
      }
    }
    this.books.dispatched.push(request)
    const over = this.books.over(request)
    must(over === undefined, () => at(`over ${JSON.stringify(over)}`))
  }

  /** Earlier in the order, if they are of one tenant. */
  private compare(one: Request, two: Request): number {
    return this.key(one) - this.key(two) || one.accepted - two.accepted
  }

  /** It goes before the first of its tenant, which loses nothing by it. */
  private pass(request: Request, first: Request, now: number, at: (what: string) => string): void {
    const { bypass, limits: { concurrent } } = this.options
    must(++first.passed <= bypass, () => at(`before ${first.id}, as ${bypass} others did`))
    must(sum(request.tokens) < sum(first.tokens), () => at(`before ${first.id}, and takes no less`))
    // Reports of this very instant may have come later.
    if (this.all.some(({ reportedAt }) => reportedAt === now)) return
    const earliest = this.books.earliest(first, now)
    must(earliest > now, () => at(`before ${first.id}, which fits`))
    this.books.dispatched.push(request)
    const then = this.books.earliest(first, now)
    this.books.dispatched.pop()
    must(then <= earliest, () => at(`before ${first.id}, which can go at ${then} and not at ${earliest}`))
    const atWork = this.all.filter((other) => other.status === "processing" || other.alive)
    if (concurrent === undefined || atWork.some(({ onceWaited }) => onceWaited)) return
    must(atWork.length < concurrent, () => at(`before ${first.id}, for which no permit is left`))
  }

  private justify(
    request: Request,
    event: QueueResponse.QueueResponse<unknown, unknown>,
    wasDispatched: boolean,
    at: (what: string) => string
  ): void {
    if (event.status === "completed") {
      must(request.exit !== undefined && Exit.isSuccess(request.exit), () => at("its processor has no result"))
      must(request.exit?._tag === "Success" && request.exit.value === event.result, () => at("another's result"))
      return
    }
    if (event.status === "cancelled") {
      must(
        request.cancelAsked || request.sharers?.every((sharer) => sharer.hasFailed || !isActive(sharer)) === true,
        () => at("nobody asked")
      )
      return
    }
    if (event.status !== "failed") return
    const error = errorOf(Exit.failCause(event.cause))
    switch (tagOf(error)) {
      case "typed":
        return must(wasDispatched && request.plan.end === "fail", () => at("did not fail"))
      case "ProcessingError":
        return must(
          wasDispatched && ["die", "interrupt", "throw"].includes(request.plan.end),
          () => at(`did not break: ${String(error)}`)
        )
      case "QueueTimeout":
        return must(
          request.endedAt === request.submittedAt + request.timeout
            || (wasDispatched && request.endedAt === request.dispatchedAt + request.processingTimeout),
          () => at(`timed out at ${request.endedAt}, dispatched at ${request.dispatchedAt}`)
        )
      case "QueueFull":
        return must(!wasDispatched && this.options.strategy === "dropOldest", () => at("dropped"))
      case "QueueShutdown":
        return must(this.closing, () => at("not closing"))
      case "RequestTooLarge":
        return must(!wasDispatched && this.isTooLarge(request), () => at("it fits"))
      case "BudgetExceeded":
        return must(!wasDispatched && this.books.exceeds(request, request.endedAt), () => at("it is within the budget"))
      default:
        return objection(at(`unexpected ${String(error)}`))
    }
  }

  isTooLarge(request: Request): boolean {
    return this.books.isTooLarge(request)
  }

  // What submitters and other callers hear --------------------------------------------------------------------------

  /** The answer to a submission; called once all events so far were observed. */
  answered(request: Request, exit: Exit.Exit<unknown, unknown>): void {
    const at = (what: string) => `${this.name}/${request.id} was answered ${String(exit)}: ${what}`
    const error = errorOf(exit)
    if (Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause)) {
      must(request.left || request.cancelAsked, () => at("nobody interrupted it"))
      if (request.status === "submitted") request.status = "refused"
      return
    }
    if (request.status === "submitted") {
      request.status = "refused"
      switch (tagOf(error)) {
        case "InvalidRequest":
          return must(request.malformed, () => at("it is well formed"))
        case "RequestTooLarge":
          return must(this.isTooLarge(request.call ?? request), () => at("it fits"))
        case "BudgetExceeded":
          return must(this.books.exceeds(request, request.submittedAt), () => at("it is within the budget"))
        case "QueueShutdown":
        case "ModelNotRegistered":
          return must(this.closing, () => at("not closing"))
        case "QueueDraining":
          return must(this.draining || request.whileDraining, () => at("not draining"))
        case "QueueFull":
          return must(
            this.options.strategy === "reject" || !request.waits || this.sharing.isFull(request),
            () => at("the queue suspends")
          )
        case "QueueTimeout":
          if ((error as QueueError.QueueTimeout).predictedWaitMillis !== undefined) {
            return must(
              this.options.failEarly && request.key === undefined &&
                (request.expected?.most ?? Number.POSITIVE_INFINITY) > request.timeout,
              () => at(`it can go in ${request.expected?.most}`)
            )
          }
          return must(
            request.timeout <= 0 || (request.waits && Number.isFinite(request.timeout)),
            () => at("it has no timeout")
          )
        case "RequestCancelled":
          return must(request.cancelAsked, () => at("nobody asked"))
        default:
          return objection(at("unexpected"))
      }
    }
    if (!request.waits) return must(Exit.isSuccess(exit), () => at("it was accepted"))
    this.heard(request, exit)
  }

  /** A waiter's answer is the request's end. */
  heard(request: Request, exit: Exit.Exit<unknown, unknown>): void {
    const at = (what: string) => `${this.name}/${request.id} ${request.status} told ${String(exit)}: ${what}`
    const { ending } = request
    // It waited for room, and was never accepted.
    if (request.leaves && Exit.isSuccess(exit)) return must(request.starts > 0, () => at("there was nothing to read"))
    if (request.status === "refused") return must(Exit.isFailure(exit), () => at("it was refused"))
    if (ending === undefined) return objection(at("it has not ended"))
    switch (ending.status) {
      case "completed":
        return must(
          Exit.isSuccess(exit) && typeof exit.value === "object" && exit.value !== null && "result" in exit.value
            && exit.value.result === ending.result,
          () => at("another result")
        )
      case "failed":
        return must(
          Exit.isFailure(exit) && tagOf(errorOf(exit)) === tagOf(errorOf(Exit.failCause(ending.cause))),
          () => at("another failure")
        )
      case "cancelled":
        return must(tagOf(errorOf(exit)) === "RequestCancelled", () => at("another failure"))
      default:
        return objection(at("no end"))
    }
  }

  /** Whether nothing happens at this instant, and nothing keeps a request from being dispatched at once. */
  isFree(asked: Asked, now: number): boolean {
    const request = asked as Request
    return this.state === "open" && !this.closing && this.isEmpty()
      && !this.all.some(({ endedAt, submittedAt }) => endedAt === now || submittedAt === now)
      && !this.isTooLarge(request) && this.books.fits(request, now) && !this.books.exceeds(request, now)
  }

  /** What the queue says how long a request would wait that is submitted now. */
  estimated(
    exit: Exit.Exit<Duration.Duration, unknown>,
    asked: Pick<Asked, "context" | "tokens" | "submittedAt">
  ): void {
    const at = (what: string) => `${this.name} estimates ${String(exit)} for ${JSON.stringify(asked)}: ${what}`
    if (this.books.isTooLarge(asked as Request)) {
      return must(tagOf(errorOf(exit)) === "RequestTooLarge", () => at("it is too large"))
    }
    if (Exit.isFailure(exit)) return objection(at("it fits"))
    const wait = Duration.toMillis(exit.value)
    if (this.closing) return
    if (this.paused || this.draining) {
      return must(wait === Number.POSITIVE_INFINITY, () => at("nobody knows"))
    }
    const { least, most } = this.expect(asked)
    must(wait >= least, () => at(`at least ${least}`))
    const isIdle = this.waiting.length + this.suspended.length + this.alive.length === 0
    if (isIdle) must(wait === most, () => at(`nothing but the limits makes it wait, for ${most}`))
    const onlyRequests = this.options.limits.concurrent === undefined
      && this.books.windows.every(({ counts }) => counts === "requests")
      && this.waiting.every((other) => !other.nested && other.context.tenant === asked.context.tenant)
    if (onlyRequests && this.options.tenants?.own === undefined) {
      must(wait === most, () => at(`those before it make it wait for ${most}`))
    }
  }

  // Charges ---------------------------------------------------------------------------------------------------------

  /** Takes a usage report; says what the queue must answer, or `undefined` when more than one answer is right. */
  report(request: Request, usage: Tokens, now: number): string | undefined {
    if (request.startedAt < 0) return "InvalidRequest"
    if (request.usage !== undefined) return "alreadySettled"
    const windows = [...this.books.windows, ...this.books.own(request.context.tenant)]
    const countsTokens = windows.some(({ counts }) => counts === "tokens")
    const inWindow = request.startedAt + this.options.limits.period > now
    if (countsTokens && !inWindow) return "expired"
    request.usage = usage
    request.reportedAt = now
    if (inWindow || windows.length === 0) return "settled"
    request.usage = undefined
    return undefined
  }

  // The state of the queue when nothing moves any more --------------------------------------------------------------

  check(info: QueueManager.QueueInfo, now: number): void {
    const at = (what: string) => `${this.name} at ${now}: ${what} ${JSON.stringify(info)}`
    this.sharing.check(now)
    for (const request of this.all) {
      const on = (what: string) => at(`${request.id} ${request.status} ${what}`)
      must(request.starts <= 1, () => on("started twice"))
      if (isActive(request)) {
        must(request.submittedAt + request.timeout > now, () => on("is past its timeout"))
      }
      if (request.status === "processing") {
        must(request.dispatchedAt + request.processingTimeout > now, () => on("is past its processingTimeout"))
        must(request.alive, () => on("has no processor"))
      }
    }
    const { suspended } = this
    const expected = {
      depth: this.waiting.length,
      suspended: suspended.length,
      running: this.alive.length,
      ...this.counts,
      ...(this.closing ? {} : { state: this.state })
    }
    for (const [name, count] of Object.entries(expected)) {
      must(info[name as keyof typeof expected] === count, () => at(`expected ${name} ${count}`))
    }
    const room = this.waiting.filter((request) => !request.nested).length < this.options.capacity
    must(!room || suspended.length === 0, () => at("there is room for what is suspended"))
    must(!this.draining || suspended.length === 0, () => at("nothing waits for room while draining"))
    must(this.options.strategy === "suspend" || suspended.length === 0, () => at("nothing may be suspended"))
    const usedOf = (counts: Window["counts"]) =>
      this.books.used({ counts, limit: 0, fails: false, isOwn: false }, now, undefined)
    const used = { rpm: usedOf("requests"), tpm: usedOf("tokens") }
    let free = Number.POSITIVE_INFINITY
    for (const usage of info.rateLimiters) {
      if (usage.type === "rpm") must(usage.used === used.rpm, () => at(`expected ${used.rpm} requests`))
      else if (usage.type === "tpm") must(usage.used === used.tpm, () => at(`expected ${used.tpm} tokens`))
      else if (usage.type === "budget") {
        must(Math.abs(usage.used * 1e6 - used.tpm) < 1e-6, () => at(`expected to have spent ${used.tpm}`))
      } else {
        free = usage.limit - usage.used
        // A lower limit takes nobody's permit, and gives none.
        must(free >= 0 || usage.used <= this.permits, () => at("too many permits"))
        this.permits = usage.used
        // Each of those that have waited for another one lends its permit to one at a time.
        const lenders = this.alive.filter((request) => request.onceWaited).length
        must(usage.used <= this.alive.length && usage.used >= this.alive.length - lenders, () => at("permits"))
      }
    }
    // Nothing that could go is waiting, and nothing that never could.
    for (const request of [...this.waiting, ...suspended]) {
      must(!this.isTooLarge(request), () => at(`${request.id} is too large`))
    }
    const fits = (request: Request) => this.books.fits(request, now)
    this.checkTenants(at)
    const nested = this.waiting.filter((request) => request.nested)
    if (nested.length === 0 && !this.isHeld && free >= 1) this.checkHeads(free, now, at)
    for (const request of nested) {
      const { parent } = request
      const isAwaited = parent?.alive === true && parent.reference === this && parent.waitsFor === request
        && !this.alive.some((other) => other.onceNested && isBelow(other, parent))
      must(
        nested.length > 1 || !fits(request) || (this.hasPermit(request, free) !== "yes" && !isAwaited),
        () => at(`${request.id} could go, and ${parent?.id} waits for it`)
      )
    }
  }

  /** What is at work of a tenant, and whether each has a permit of its own: what is waited for may run on another's. */
  private permitsOf(tenant: string | undefined): { readonly taken: number; readonly isExact: boolean } {
    const alive = this.alive.filter(({ context }) => context.tenant === tenant)
    return { taken: alive.length, isExact: !this.alive.some(({ onceNested, onceWaited }) => onceNested || onceWaited) }
  }

  private mostPermits(tenant: string | undefined): number {
    return (tenant === "a" ? undefined : this.options.tenants?.own?.concurrent) ?? Number.POSITIVE_INFINITY
  }

  /** No tenant has more permits than it may. */
  private checkTenants(at: (what: string) => string): void {
    for (const tenant of [undefined, "b"]) {
      const { isExact, taken } = this.permitsOf(tenant)
      must(!isExact || taken <= this.mostPermits(tenant), () => at(`${taken} permits of ${tenant}`))
    }
    const { limits: { concurrent }, tenants } = this.options
    if (concurrent === undefined || tenants === undefined) return
    // A lower limit takes nobody's permit.
    const part = Math.floor(tenants.guaranteed * concurrent)
    if (part === 0 || this.alive.length > concurrent) return
    const ofA = this.permitsOf("a")
    const others = this.alive.length - ofA.taken
    must(
      !ofA.isExact || others <= Math.max(concurrent - part, this.othersBefore),
      () => at(`${others} permits of others, ${part} are guaranteed`)
    )
    this.othersBefore = others
  }

  /** Whether there is a permit that its tenant may take. */
  private hasPermit({ context: { tenant } }: Request, free: number): "yes" | "no" | "unknown" {
    const { limits: { concurrent }, tenants } = this.options
    const part = concurrent === undefined || tenant === "a" ? 0 : Math.floor((tenants?.guaranteed ?? 0) * concurrent)
    const most = this.mostPermits(tenant)
    if (free < 1) return "no"
    if (part === 0 && most === Number.POSITIVE_INFINITY) return "yes"
    const { isExact, taken } = this.permitsOf(tenant)
    if (!isExact) return "unknown"
    return taken < most && free > Math.max(0, part - this.permitsOf("a").taken) ? "yes" : "no"
  }

  /**
   * The first in order of those whose tenant is not kept back goes if it fits. Which tenant it is of only the queue
   * knows: so one goes if all fit.
   */
  private checkHeads(free: number, now: number, at: (what: string) => string): void {
    const heads = this.heads.filter((head) => !this.books.isHeld(head, now))
    const permits = heads.map((head) => this.hasPermit(head, free))
    if (permits.includes("unknown")) return
    const able = heads.filter((_, index) => permits[index] === "yes")
    must(
      able.length === 0 || !able.every((head) => this.books.fits(head, now)),
      () => at(`${able.map(({ id }) => id).join(" or ")} could go`)
    )
  }

  /** The end of all: nothing is active, nothing is held. */
  checkIdle(info: QueueManager.QueueInfo, now: number): void {
    this.check(info, now)
    for (const request of this.all) {
      must(
        isEnd(request.status) || request.status === "refused",
        () => `${this.name}/${request.id} is ${request.status} at the end: ${JSON.stringify(request.plan)}`
      )
    }
    must(info.running === 0, () => `${this.name}: ${info.running} still running`)
    for (const usage of info.rateLimiters) {
      if (usage.type === "concurrent") must(usage.used === 0, () => `${this.name}: permits are missing`)
    }
  }
}
