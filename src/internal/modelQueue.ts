/**
 * The queue of one model.
 *
 * One dispatcher fiber drains the intake into the waiting set and admits from it in order; each attempt runs in a
 * fiber of its own; one housekeeping fiber watches deadlines and retention. Every change of an entry's state is one
 * synchronous step, and completing somebody's Deferred is the last thing such a step does: it may run their code at
 * once.
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Pull from "effect/Pull"
import * as Queue from "effect/Queue"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import * as Stream from "effect/Stream"
import * as Tracer from "effect/Tracer"
import type * as ModelConfig from "../ModelConfig.ts"
import * as ProviderProfile from "../ProviderProfile.ts"
import * as QueueError from "../QueueError.ts"
import type * as QueueManager from "../QueueManager.ts"
import type * as QueueRequest from "../QueueRequest.ts"
import type * as QueueResponse from "../QueueResponse.ts"
import type * as RateLimiter from "../RateLimiter.ts"
import * as TokenEstimator from "../TokenEstimator.ts"
import { ask, overdue } from "./asked.ts"
import { DeadLetters } from "./deadLetters.ts"
import {
  type AnyRequest,
  baseOf,
  beginWaiting,
  CurrentEntry,
  deadlock,
  type Entry,
  EntryList,
  EntrySet,
  type Failure,
  isOrAwaits,
  none,
  type Outcome,
  processingTime,
  type ProcessorFailure,
  releaseWaiters,
  response,
  type Snapshot,
  stopWaiting,
  waitingTime,
  withWaiters
} from "./entry.ts"
import { costOf, largestShare } from "./estimate.ts"
import { Heap } from "./heap.ts"
import { charge, countsTokens, failsWhenExceeded, isAboutConcurrency } from "./limitState.ts"
import * as listing from "./listing.ts"
import { immediately } from "./memoryLimiter.ts"
import type { Observers, QueueObserver, Reason } from "./observer.ts"
import { failureHeaders } from "./provider/classify.ts"
import { ProviderGate } from "./providerGate.ts"
import * as requestContext from "./requestContext.ts"
import * as requestId from "./requestId.ts"
import { Scheduler } from "./scheduler.ts"
import * as settings from "./settings.ts"
import { begin, type Step, toEffect, waitFor } from "./step.ts"
import * as streams from "./streams.ts"
import * as time from "./time.ts"
import * as tokenEstimator from "./tokenEstimator.ts"
import * as tracing from "./tracing.ts"

/** What happens to requests, for those who read it. */
export interface Events {
  readonly areRead: () => boolean
  readonly publish: (event: Snapshot) => void
  readonly observers: Observers
}

/** A processor whose services are in the context of its registration. */
export type Processor = (request: AnyRequest) => Effect.Effect<unknown, ProcessorFailure>

export interface ModelQueue {
  readonly modelId: string
  /** Whether others count for the same limits: then it is no matter how many queues there are. */
  readonly sharesLimits: boolean
  /** Closes with the queue. */
  readonly scope: Scope.Scope
  /** Accepts and waits for the end. With the `fiber` that runs the effect at once, it is let in now. */
  readonly submit: (
    request: AnyRequest,
    fiber?: Fiber.Fiber<unknown, unknown>
  ) => Effect.Effect<QueueResponse.Completed<unknown>, Failure>
  /** Waits for acceptance only. `entered` is called when it is let in, which may be before there is room for it. */
  readonly accept: (
    request: AnyRequest,
    fiber?: Fiber.Fiber<unknown, unknown>,
    entered?: (entry: Entry) => void
  ) => Effect.Effect<QueueResponse.Pending<unknown, ProcessorFailure>, QueueError.AcceptError>
  readonly awaitCompletion: (
    id: string
  ) => Effect.Effect<QueueResponse.Completed<unknown>, Failure | QueueError.RequestNotFound>
  readonly status: (
    id: string
  ) => Effect.Effect<Snapshot, QueueError.RequestNotFound>
  readonly cancel: (id: string) => Effect.Effect<boolean, QueueError.RequestNotFound>
  readonly reportUsage: (
    id: string,
    usage: unknown
  ) => Effect.Effect<RateLimiter.Settlement, QueueError.RequestNotFound | QueueError.InvalidRequest>
  /** Of those that are meant, the first that have not ended. */
  readonly list: (
    filter: QueueManager.RequestFilter,
    limit: unknown
  ) => Effect.Effect<ReadonlyArray<QueueManager.ActiveRequest>, QueueError.InvalidRequest>
  /** Of those that are meant, all that have not ended. */
  readonly cancelAll: (filter: QueueManager.RequestFilter) => Effect.Effect<number, QueueError.InvalidRequest>
  /** `false` when it does not wait. */
  readonly changePriority: (
    id: string,
    priority: unknown
  ) => Effect.Effect<boolean, QueueError.RequestNotFound | QueueError.InvalidRequest>
  readonly pause: Effect.Effect<void>
  readonly resume: Effect.Effect<void>
  readonly drain: Effect.Effect<boolean>
  readonly letters: DeadLetters
  /** Whether a request is known under the id. */
  readonly has: (id: string) => boolean
  /** The end of a request, whether or not it is still known under its id. Lends it no permit. */
  readonly awaitEntry: (entry: Entry) => Effect.Effect<QueueResponse.Completed<unknown>, Failure>
  /** Whether this queue is processing a request, or one that waits for it. */
  readonly isProcessing: (current: Entry | undefined) => boolean
  /** What is being processed, when it has all permits and none of it lends one to the request. */
  readonly blockedBy: (entry: Entry) => EntrySet | undefined
  /** Makes the dispatcher look again. */
  readonly wake: () => void
  /** Why nothing new is let in, if that is so. */
  readonly refusal: (
    id: string,
    isNested: boolean
  ) => QueueError.QueueShutdown | QueueError.QueueDraining | undefined
  /** What the stream of an entry that is being processed has used. */
  readonly settle: (entry: Entry, usage: RateLimiter.Tokens) => Effect.Effect<RateLimiter.Settlement>
  /** The first element of its stream is there: it cannot be attempted again unseen. */
  readonly streaming: (entry: Entry) => void
  /** Streams whose readers hold them up. */
  readonly stalled: Set<() => void>
  /** Adds one, which is called when something waits for what is being processed. */
  readonly stall: (goOn: () => void) => void
  /** The headers of the response to a request that is being processed have come. */
  readonly observe: (entry: Entry, headers: ProviderProfile.HeadersInput) => Effect.Effect<void>
  readonly estimateWait: (
    options: QueueRequest.EstimateOptions<unknown>
  ) => Effect.Effect<Duration.Duration, QueueError.InvalidRequest | QueueError.RequestTooLarge>
  readonly info: Effect.Effect<QueueManager.QueueInfo>
  readonly updateLimits: (rateLimiters: unknown) => Effect.Effect<void, QueueError.InvalidConfiguration>
  readonly changeLimit: (change: QueueManager.LimitChange) => Effect.Effect<void, QueueError.InvalidConfiguration>
  /** Refuses requests from now on; nobody is told yet. Several queues that close together stop before any tells. */
  readonly stop: (options: settings.ShutdownSettings) => void
  /** Stops, and ends when everything has ended, or at the deadline. Idempotent. */
  readonly close: (options: settings.ShutdownSettings) => Effect.Effect<void>
  readonly shutdown: settings.ShutdownSettings
}

/** Who waits for the queue to be empty. */
interface Emptying {
  /** The requests of the queue that it belongs to. */
  readonly exempt: ReadonlySet<Entry>
  /** The request whose processor it is, and which lends its permit to what waits. */
  readonly by: Entry | undefined
  readonly adopted: Array<Entry>
  readonly told: Deferred.Deferred<boolean>
}

type Blocked = Extract<RateLimiter.Admission, { readonly _tag: "Blocked" }>

/** Wakes the dispatcher without bringing a request. */
const wakeUp = Symbol()

/** Runs to its end whatever happens to who waits for it. */
export const unstoppable = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(
      Effect.forkDetach(effect, { startImmediately: true }),
      (fiber) => restore(Fiber.join(fiber))
    )
  )

/** How many calls of `outside` are on the stack. */
let depth = 0
const maxDepth = 32

/**
 * Runs what may run somebody's code at once, which may come back here: a waiter that is told may end a request that
 * another one waits for, and so on. A chain of any length must not fill the stack.
 */
const outside = (f: () => void): void => {
  if (depth === maxDepth) {
    Effect.runFork(Effect.andThen(Effect.yieldNow, Effect.sync(() => outside(f))))
    return
  }
  depth++
  try {
    f()
  } finally {
    depth--
  }
}

const tell = (waiter: (() => void) | undefined): void => {
  if (waiter !== undefined) outside(waiter)
}

/** Refused attempts of a request that its status tells of. */
const keptRefusals = 16

/** How many requests are looked at when the first one is blocked. */
const looksBehind = 8

/**
 * How many requests are admitted before other fibers have their turn. A limiter that takes time is asked for one: until
 * it has answered, nothing interrupts.
 */
const admissionsAtOnce = 1024

/** How many requests a limiter that takes time is asked for at once. */
const asksAtOnce = 64

/** The shortest sleep, in milliseconds: any clock moves on by it, whatever the rounding of its readings. */
const resolution = 0.001

export const make = Effect.fnUntraced(function*(
  initial: settings.Settings,
  processor: Processor,
  limiters: (typeof RateLimiter.RateLimiter)["Service"],
  events: Events
) {
  let config = initial
  const { modelId } = config
  const context = Context.omit(Tracer.ParentSpan, requestContext.CurrentRequestContext)(yield* Effect.context())
  const clock = yield* Clock.Clock
  const scope = yield* Scope.make()
  const limiter = yield* limiters.make(modelId, config.limits, config.tenantLimits).pipe(Scope.provide(scope))
  /** `undefined` for a limiter that may take time. */
  const immediate = immediately(limiter)
  const now = immediate?.now ?? time.monotonic(clock)
  const intake = yield* Queue.unbounded<Entry | typeof wakeUp>()
  const bell = yield* Queue.sliding<void>(1)
  const drained = yield* Deferred.make<void>()

  const entries = new Map<string, Entry>()
  const suspended = new EntryList()
  /** Accepted and not dispatched, in order of acceptance: what the capacity counts, and the nested ones beside. */
  const waiting = new EntryList()
  const scheduler = new Scheduler(config.weightOf, ({ cost }) => largestShare(config.limits, cost))
  /** Waiting, but not to be attempted before a time. */
  const delayed = new Heap<Entry>()
  const nested = new Set<Entry>()
  const running = new EntrySet()
  const stalled = new Set<() => void>()
  /**
   * Being processed, but not waited for: they are what asked for the closing, and have until its deadline, which is the
   * value.
   */
  const exempt = new Map<Entry, number>()
  const deadlines = new Heap<Entry>()
  const ended = new EntryList()
  const byDefault = TokenEstimator.learned(config.provider?.profile.estimation).make(modelId)
  const estimator = config.estimator === undefined
    ? byDefault
    : tokenEstimator.guard(config.estimator.make(modelId), byDefault, (problem) => {
      Effect.runForkWith(context)(
        Effect.logWarning(`The token estimator of model ${modelId} broke, the default stands in: ${problem}`)
      )
    })
  const countWindows = (limits: ReadonlyArray<RateLimiter.Limit>) =>
    limits.filter(({ timePeriod, type }) => timePeriod !== undefined && type !== "budget").length
  const meterTokens = (limits: ReadonlyArray<RateLimiter.Limit>) =>
    limits.filter(countsTokens).map((limit) => ({ limit, meter: new tokenEstimator.ReservationMeter() }))
  let hasBudget = config.limits.some(failsWhenExceeded)
  const mayExceed = (tenant: string | undefined) =>
    hasBudget || (config.tenantLimits !== undefined && config.limitsOf(tenant).some(failsWhenExceeded))
  let windows = countWindows(config.limits)
  const hasWindows = (tenant: string | undefined) =>
    windows > 0 || (config.tenantLimits !== undefined && countWindows(config.limitsOf(tenant)) > 0)
  let tokenLimits = meterTokens(config.limits)
  const gate = config.provider === undefined ? undefined : new ProviderGate(config.provider)
  /** Of attempts that succeeded, the later ones counting more. */
  const processing = { mean: 0, counted: 0 }
  /** Permits that are taken. */
  let held = 0
  let counted = 0
  let accepted = 0
  let completed = 0
  let failed = 0
  let cancelled = 0
  let state: QueueManager.QueueInfo["state"] = "open"
  let draining = false
  /** Whether what waits is kept back, and whether nothing new is let in: by an operator, until resumed. */
  let isPaused = false
  let isEmptying = false
  const emptied = new Set<Emptying>()
  const contents: listing.Contents = { modelId, suspended, waiting, nested, delayed, running, scheduler, now }
  const letters = new DeadLetters(modelId, config.letterCount, config.letterAge, now, (at) => due(at))
  /** Whether the dispatcher has to look again, and whether it does so anyway before it waits. */
  let woken = false
  let isAdmitting = false
  let nextDue = Number.POSITIVE_INFINITY

  const fork = Effect.runForkWith(context)

  let observer: QueueObserver | undefined
  let unobserve = () => {}
  /** What keeps the first one in order back, as far as the dispatcher knows. */
  let reason: Reason | undefined

  // ---------------------------------------------------------------------------------------------------------------
  // Waking the two fibers
  // ---------------------------------------------------------------------------------------------------------------

  const wake = () => {
    if (woken) return
    woken = true
    if (!isAdmitting) Queue.offerUnsafe(intake, wakeUp)
  }

  const due = (at: number) => {
    if (at >= nextDue) return
    nextDue = at
    Queue.offerUnsafe(bell, undefined)
  }

  const setDeadline = (entry: Entry, at: number) => {
    if (entry.deadline !== undefined) deadlines.remove(entry.deadline)
    entry.deadline = at === Number.POSITIVE_INFINITY ? undefined : deadlines.add(at, entry)
    due(at)
  }

  const sleepUntilOr = (at: number, signal: Effect.Effect<unknown>): Effect.Effect<unknown> =>
    at === Number.POSITIVE_INFINITY
      ? signal
      : Effect.raceFirst(signal, Effect.sleep(Duration.millis(Math.max(at - now(), resolution))))

  // ---------------------------------------------------------------------------------------------------------------
  // States of an entry
  // ---------------------------------------------------------------------------------------------------------------

  /** Tells those who read events. */
  const changed = (entry: Entry) => {
    if (events.areRead()) events.publish(response(entry, now()))
  }

  const hasRoom = () => counted < config.capacity

  /** Nested requests take no room: their ancestor already has it, and could wait for it for ever. */
  const enqueue = (entry: Entry) => {
    entry.state = "waiting"
    entry.sequence ??= accepted++
    waiting.add(entry)
    if (!entry.nested) counted++
    Queue.offerUnsafe(intake, entry)
    changed(entry)
    tell(entry.accepted)
  }

  const leaveWaiting = (entry: Entry) => {
    waiting.remove(entry)
    if (entry.earlier?.delayed !== undefined) {
      delayed.remove(entry.earlier.delayed)
      entry.earlier.delayed = undefined
    }
    if (entry.lane !== undefined) scheduler.remove(entry)
    if (entry.nested) nested.delete(entry)
    else counted--
  }

  /** If a request waits in a circle of requests and permits, the queues of that circle look for it. */
  const breakDeadlock = (entry: Entry) => {
    for (const each of deadlock(entry) ?? []) if (each.state !== "dispatched") each.queue.wake()
  }

  /** A processor waits for a request, which may run on its permit if it is one of this queue. */
  const adopt = (entry: Entry, by: Entry): void => {
    if (entry.outcome !== undefined) return
    beginWaiting(by, entry)
    wake()
    breakDeadlock(by)
    if (entry.nested || !isProcessing(by)) return
    entry.nested = true
    // It has its own permit, and may need another one for a further attempt.
    if (entry.state === "dispatched") return
    if (entry.state === "suspended") {
      suspended.remove(entry)
      enqueue(entry)
      return
    }
    counted--
    if (entry.lane !== undefined) {
      scheduler.remove(entry)
      nested.add(entry)
    }
    admitSuspended()
  }

  /** It does not wait any longer. When nobody does, the request takes room, and its turn, like any other one again. */
  const orphan = (entry: Entry, by: Entry): void => {
    if (!stopWaiting(by, entry)) return
    breakDeadlock(by)
    if (!entry.nested || entry.awaitedBy.some(isProcessing)) return
    entry.nested = false
    if (entry.state === "dispatched") return
    counted++
    if (nested.delete(entry)) putInOrder(entry)
    wake()
  }

  const admitSuspended = () => {
    while (suspended.first !== undefined && hasRoom() && state === "open" && !isEmptying) {
      const entry = suspended.first
      suspended.remove(entry)
      enqueue(entry)
    }
  }

  const retain = (entry: Entry) => {
    ended.add(entry)
    due(entry.endedAt! + config.retainAge)
    while (ended.size > config.retainCount) forget(ended.first!)
  }

  const forget = (entry: Entry) => {
    ended.remove(entry)
    entries.delete(entry.id)
  }

  const isDrained = () => {
    if (waiting.size > 0 || suspended.size > 0) return false
    if (exempt.size === 0) return running.size === 0
    for (const entry of running) if (!exempt.has(entry)) return false
    return true
  }

  /** Whether something waits for what is being processed: a request, or the closing of the queue. */
  const isWaitedFor = () => waiting.size > 0 || state !== "open" || isEmptying

  const checkDrained = () => {
    if (state === "closing" && isDrained()) Deferred.doneUnsafe(drained, Exit.void)
    if (emptied.size > 0) checkEmptied()
  }

  /** Those that wait for it are not waited for by one another: else none of them could end. */
  const checkEmptied = () => {
    const asking = new Set<Entry>()
    for (const { exempt } of emptied) for (const entry of exempt) asking.add(entry)
    if (suspended.size > 0 || waiting.size + running.size > asking.size) return
    for (let entry = waiting.first; entry !== undefined; entry = entry.next) if (!asking.has(entry)) return
    for (const entry of running) if (!asking.has(entry)) return
    for (const waiter of Array.from(emptied)) {
      const isOutside = waiter.exempt.size === 0
      if ((isOutside && waiting.size + running.size > 0) || !emptied.delete(waiter)) continue
      outside(() => Deferred.doneUnsafe(waiter.told, Exit.succeed(true)))
    }
  }

  const bury = (entry: Entry, { cause }: Outcome & { readonly status: "failed" }) => {
    letters.add({
      requestId: entry.id,
      request: entry.request!,
      response: { ...baseOf(entry, now()), status: "failed", cause },
      failedAt: clock.currentTimeMillisUnsafe()
    })
  }

  /** Ends an entry, unless it has ended already. Its processor may still be running. */
  const end = (entry: Entry, otherwise: Outcome, at = now()): boolean => {
    if (entry.outcome !== undefined) return false
    const outcome = entry.outcome = entry.produced ?? otherwise
    entry.produced = undefined
    entry.endedAt = at
    if (entry.deadline !== undefined) deadlines.remove(entry.deadline)
    if (outcome.status === "failed" && letters.isKeeping && entry.state !== "suspended") bury(entry, outcome)
    // The parameters may be large, and secret: they are kept no longer than the processor needs them.
    if (entry.fiber === undefined) {
      if (entry.trace !== undefined && entry.state !== "dispatched") {
        entry.trace.waited({ modelId, requestId: entry.id }, exitOf(entry, outcome))
      }
      entry.request = entry.trace = undefined
    }
    // It runs on nobody's permit from now on, and must not keep those who waited for it, nor those they waited for.
    const waiters = releaseWaiters(entry)
    if (entry.state === "suspended") {
      suspended.remove(entry)
      entries.delete(entry.id)
    } else {
      if (entry.state === "waiting") {
        leaveWaiting(entry)
        wake()
      }
      if (outcome.status === "completed") completed++
      else if (outcome.status === "failed") failed++
      else cancelled++
      observer?.ended(entry, outcome.status, entry.dispatchedAt === undefined ? undefined : at - entry.dispatchedAt)
      retain(entry)
      changed(entry)
    }
    admitSuspended()
    tell(entry.accepted)
    tell(entry.ended)
    entry.accepted = entry.ended = undefined
    const { done } = entry
    if (done !== undefined) outside(() => Deferred.doneUnsafe(done, Exit.succeed(entry)))
    // They may wait for others, too.
    for (const by of waiters) breakDeadlock(by)
    checkDrained()
    return true
  }

  /** How a trace shows an end. */
  const exitOf = (entry: Entry, outcome: Outcome): Exit.Exit<unknown, unknown> => {
    switch (outcome.status) {
      case "completed":
        return Exit.void
      case "failed":
        return Exit.failCause(outcome.cause)
      case "cancelled":
        return Exit.fail(new QueueError.RequestCancelled({ modelId, requestId: entry.id }))
    }
  }

  const fail = (entry: Entry, error: QueueError.SubmitError) =>
    end(entry, { status: "failed", cause: Cause.fail(error) })

  /** Ends an entry before its processor has, and interrupts that. */
  const abort = (entry: Entry, outcome: Outcome): boolean => {
    if (!end(entry, outcome)) return false
    const { fiber } = entry
    if (fiber !== undefined) outside(() => fiber.interruptUnsafe())
    return true
  }

  const shutdownOf = (entry: Entry): Outcome => ({
    status: "failed",
    cause: Cause.fail(new QueueError.QueueShutdown({ modelId, requestId: entry.id }))
  })

  const nameOfTimeout = ({ hasDeadline }: Entry) => hasDeadline ? "deadline" as const : "timeout" as const

  const expire = (entry: Entry) => {
    const at = now()
    if (entry.state === "suspended" && !entry.request!.waitForCompletion) {
      fail(entry, queueFull(entry.id))
      return
    }
    const closesAt = exempt.get(entry)
    if (closesAt !== undefined && at >= closesAt) {
      abort(entry, shutdownOf(entry))
      return
    }
    if (entry.dispatchedAt === undefined && gate?.isBlocked(at)) {
      fail(entry, unavailable(entry, gate.reason, Math.max(0, gate.openUntil - at)))
      return
    }
    const total = at >= entry.submittedAt + entry.timeout
    const error = new QueueError.QueueTimeout({
      modelId,
      requestId: entry.id,
      limit: total ? nameOfTimeout(entry) : "processingTimeout",
      timeoutMillis: total ? entry.timeout : entry.processingTimeout,
      queueTimeMillis: waitingTime(entry, at),
      processingTimeMillis: processingTime(entry, at)
    })
    const wasBlocked = gate?.isBlocked(at)
    if (!total && entry.firstElementAt === undefined) gate?.timedOut(entry, at)
    abort(entry, { status: "failed", cause: Cause.fail(error) })
    if (wasBlocked === false) failUnavailable()
  }

  /** The provider may have just become unavailable: some do not wait for it. */
  const failUnavailable = () => {
    if (!gate?.isBlocked(now())) return
    for (const waiter of [...Array.from(suspended), ...Array.from(waiting)]) {
      if (leavesWhenUnavailable(waiter)) fail(waiter, unavailable(waiter, gate.reason, reopensIn(gate)))
    }
  }

  const unavailable = (entry: Entry, reason: string, retryAfterMillis: number | undefined, cause?: unknown) =>
    new QueueError.ProviderUnavailable({
      modelId,
      requestId: entry.id,
      attempts: entry.attempts,
      retryAfterMillis,
      reason,
      cause
    })

  const leavesWhenUnavailable = (entry: Entry): boolean => entry.request?.whenUnavailable === "fail" && !entry.nested

  const reopensIn = (gate: ProviderGate): number => Math.max(0, gate.openUntil - now())

  const quotaExhausted = (requestId: string) =>
    new QueueError.QuotaExhausted({
      modelId,
      requestId,
      reason: gate?.quotaReason ?? "",
      retryInMillis: Math.max(0, (gate?.openUntil ?? 0) - now())
    })

  const queueFull = (requestId: string) => new QueueError.QueueFull({ modelId, requestId, capacity: config.capacity })

  // ---------------------------------------------------------------------------------------------------------------
  // Submission
  // ---------------------------------------------------------------------------------------------------------------

  /** Whether this queue is processing a request, or one that waits for it. */
  const isProcessing = (entry: Entry | undefined): boolean => {
    if (entry === undefined) return false
    for (const waiter of withWaiters([entry])) if (running.has(waiter)) return true
    return false
  }

  /** Checks a request and makes its entry; nothing has changed if it is refused. */
  const prepare = (
    request: AnyRequest,
    fiber: Fiber.Fiber<unknown, unknown>
  ): Entry | QueueError.AcceptError => {
    const problems: Array<string> = []
    if (streams.isStream(request) !== config.isStream) problems.push(streams.mismatch(config.isStream))
    const inherited = fiber.getRef(requestContext.CurrentRequestContext)
    const context = inherited === requestContext.none && request.deadline === undefined
      ? request
      : requestContext.within(inherited, request)
    const wall = clock.currentTimeMillisUnsafe()
    const asked = ask(config, request, context, wall, problems)
    let complete = context === request ? request : { ...request, ...context }
    const cost = costOf(config, estimator, complete, problems)
    if ("_tag" in cost) return cost
    const late = overdue(modelId, request.id, asked)
    if (late !== undefined) return late
    const { hasDeadline, headStart, processingTimeout, tenant, timeout } = asked
    // A generated id was chosen by nobody: a request submitted again gets a new one.
    let { id } = request
    if (entries.has(id) && requestId.isGenerated(id)) {
      id = requestId.generate()
      complete = { ...complete, id }
    }
    const submittedAt = now()
    return {
      queue,
      request: complete,
      id,
      cost,
      createdAt: wall,
      submittedAt,
      headStart,
      tenant,
      passed: 0,
      timeout,
      hasDeadline,
      processingTimeout,
      context: context === request ? requestContext.given(request) : context,
      trace: tracing.of(fiber, clock),
      awaitedBy: none,
      awaits: undefined,
      nested: request.waitForCompletion && isProcessing(fiber.getRef(CurrentEntry)),
      state: "suspended",
      attempts: 0,
      firstElementAt: undefined,
      earlier: undefined,
      dispatchedAt: undefined,
      retry: undefined,
      endedAt: undefined,
      outcome: undefined,
      produced: undefined,
      usage: undefined,
      reservation: undefined,
      fiber: undefined,
      ended: undefined,
      done: undefined,
      accepted: undefined,
      lane: undefined,
      ahead: undefined,
      behind: undefined,
      early: undefined,
      sequence: undefined,
      deadline: undefined,
      previous: undefined,
      next: undefined,
      holdsPermit: false,
      lender: undefined,
      borrower: undefined,
      place: -1
    }
  }

  const refusal: ModelQueue["refusal"] = (id, isNested) => {
    if (state !== "open" && !(state === "closing" && draining && isNested)) {
      return new QueueError.QueueShutdown({ modelId, requestId: id })
    }
    return isEmptying && state === "open" && !isNested
      ? new QueueError.QueueDraining({ modelId, requestId: id })
      : undefined
  }

  /** Whether the provider is not asked again before its time is up. */
  const isLateFor = (entry: Entry, gate: ProviderGate): boolean =>
    config.failEarly && !entry.nested && gate.closedFor(now()) >= entry.timeout

  const mustWaitForRoom = (entry: Entry) => !entry.nested && (!hasRoom() || suspended.size > 0)

  /** Lets a request in, or says why not. */
  const enter = (entry: Entry, submitter: Entry | undefined): QueueError.AcceptError | undefined => {
    if (entries.has(entry.id)) return new QueueError.DuplicateRequest({ modelId, requestId: entry.id })
    const closed = refusal(entry.id, entry.nested)
    if (closed !== undefined) return closed
    if (gate?.isQuotaExhausted(now())) return quotaExhausted(entry.id)
    if (gate?.isBlocked(now()) && (leavesWhenUnavailable(entry) || isLateFor(entry, gate))) {
      return unavailable(entry, gate.reason, reopensIn(gate))
    }
    // A processor that waits for room in its own queue could be what the room waits for.
    const mayWait = config.strategy !== "reject" && !(config.strategy === "suspend" && isProcessing(submitter))
    if (!entry.nested && !hasRoom() && !mayWait) return queueFull(entry.id)
    entries.set(entry.id, entry)
    setDeadline(entry, entry.submittedAt + entry.timeout)
    if (submitter !== undefined && entry.request!.waitForCompletion) beginWaiting(submitter, entry)
    if (!mustWaitForRoom(entry)) {
      enqueue(entry)
    } else if (config.strategy === "dropOldest") {
      let oldest = waiting.first
      while (oldest !== undefined && oldest.nested) oldest = oldest.next
      // In this order: who is dropped may submit again before this returns.
      enqueue(entry)
      if (oldest !== undefined) fail(oldest, queueFull(oldest.id))
    } else {
      suspended.add(entry)
      // Until it is accepted.
      if (submitter !== undefined && !entry.request!.waitForCompletion) beginWaiting(submitter, entry)
      breakDeadlock(entry)
    }
    return undefined
  }

  /** What goes before a request that is submitted now. */
  /** The part of their estimates that requests use. */
  const expectedUse = (): number => tokenLimits.reduce((least, { meter }) => Math.min(least, meter.usedPart), 1)

  const ahead = (
    { headStart, tenant }: Pick<Entry, "headStart" | "tenant">,
    isEarliest: boolean
  ): RateLimiter.Ahead => {
    const usedPart = expectedUse()
    return {
      ...scheduler.ahead(tenant, headStart, !isEarliest),
      usedPart,
      returnedPart: isEarliest ? 1 : 1 - usedPart
    }
  }

  /** How long one waits that has so much before it, from now on. */
  const predictedWait = (
    { cost, earlier, tenant }: Pick<Entry, "cost" | "earlier" | "tenant">,
    before: RateLimiter.Ahead
  ): Effect.Effect<Duration.Duration> => {
    if (isPaused && state === "open") return Effect.succeed(Duration.infinity)
    return Effect.map(limiter.predict(cost, before, tenant), (wait) => {
      // Those in front of it that find no permit each wait for the end of another one.
      const most = mostPermits()
      const late = Math.max(0, before.requests + running.size + 1 - most)
      const forPermit = late === 0 ? 0 : (late / most) * processing.mean
      const at = now()
      const forProvider = gate === undefined ? 0 : gate.closedFor(at)
      const forAttempt = earlier?.delayed === undefined ? 0 : earlier.notBefore - at
      return Duration.millis(Math.max(wait, forPermit, forProvider, forAttempt))
    })
  }

  /** Fails when a request cannot be dispatched in time. Others that wait may leave, but only those of its tenant count. */
  const inTime = (entry: Entry): Effect.Effect<void, QueueError.QueueTimeout> =>
    Effect.flatMap(limiter.predict(entry.cost, ahead(entry, true), entry.tenant), (wait) => {
      if (wait === Number.POSITIVE_INFINITY || now() + wait <= entry.submittedAt + entry.timeout) return Effect.void
      return Effect.fail(
        new QueueError.QueueTimeout({
          modelId,
          requestId: entry.id,
          limit: nameOfTimeout(entry),
          timeoutMillis: entry.timeout,
          queueTimeMillis: now() - entry.submittedAt,
          processingTimeMillis: 0,
          predictedWaitMillis: wait
        })
      )
    })

  const budgetExceeded = (
    { id, tenant }: Entry,
    { limit, ofTenant, requested, timePeriod, used, wait }: RateLimiter.Excess
  ) =>
    new QueueError.BudgetExceeded({
      modelId,
      requestId: id,
      tenant: ofTenant ? tenant : undefined,
      budget: limit,
      used,
      requested,
      periodMillis: Number.isFinite(timePeriod) ? timePeriod : undefined,
      retryAfterMillis: Number.isFinite(wait) ? wait : undefined
    })

  const affordable = (entry: Entry): Effect.Effect<void, QueueError.BudgetExceeded> =>
    Effect.flatMap(
      limiter.exceeds(entry.cost, entry.tenant),
      (excess) => excess === undefined ? Effect.void : Effect.fail(budgetExceeded(entry, excess))
    )

  /** What has to be asked before a request is let in, if anything. */
  const asked = (
    entry: Entry
  ): Effect.Effect<void, QueueError.QueueTimeout | QueueError.BudgetExceeded> | undefined => {
    const mayBeLate = config.failEarly && entry.timeout !== Number.POSITIVE_INFINITY && !entry.nested
      && hasWindows(entry.tenant)
    if (!mayExceed(entry.tenant)) return mayBeLate ? inTime(entry) : undefined
    return mayBeLate ? Effect.andThen(affordable(entry), inTime(entry)) : affordable(entry)
  }

  /** Checks a request, asks what has to be asked, and goes on. */
  const admitToQueue = <A, E>(
    request: AnyRequest,
    fiber: Fiber.Fiber<unknown, unknown> | undefined,
    go: (entry: Entry, submitter: Entry | undefined) => Effect.Effect<A, E>
  ): Effect.Effect<A, E | QueueError.AcceptError | QueueError.QueueTimeout> => {
    if (fiber === undefined) return Effect.withFiber((fiber) => admitToQueue(request, fiber, go))
    const entry = prepare(request, fiber)
    if (!("queue" in entry)) return Effect.fail(entry)
    const submitter = fiber.getRef(CurrentEntry)
    const question = asked(entry)
    return question === undefined ? go(entry, submitter) : Effect.flatMap(question, () => go(entry, submitter))
  }

  const doneOf = (entry: Entry): Deferred.Deferred<Entry> => entry.done ??= Deferred.makeUnsafe()

  const result = (entry: Entry): Effect.Effect<QueueResponse.Completed<unknown>, Failure> => {
    const outcome = entry.outcome!
    switch (outcome.status) {
      case "completed":
        return Effect.succeed(response(entry, now()) as QueueResponse.Completed<unknown>)
      case "failed":
        return Effect.failCause(outcome.cause)
      case "cancelled":
        return Effect.fail(new QueueError.RequestCancelled({ modelId, requestId: entry.id }))
    }
  }

  const awaitEnd = (entry: Entry): Effect.Effect<QueueResponse.Completed<unknown>, Failure> =>
    entry.outcome !== undefined ? result(entry) : Effect.flatMap(Deferred.await(doneOf(entry)), result)

  // Letting a request in, and knowing that its submitter waits for it, is one step that nothing can interrupt.
  const submit: ModelQueue["submit"] = (request, fiber) =>
    admitToQueue(
      request,
      fiber,
      (entry, submitter) =>
        Effect.callback<QueueResponse.Completed<unknown>, Failure>((resume) => {
          const refused = enter(entry, submitter)
          if (refused !== undefined) return resume(Effect.fail(refused))
          if (entry.outcome !== undefined) return resume(result(entry))
          entry.ended = () => resume(result(entry))
          return Effect.sync(() => abort(entry, { status: "cancelled" }))
        })
    )

  const accept: ModelQueue["accept"] = (request, fiber, entered) =>
    admitToQueue(request, fiber, (entry, submitter) => {
      const pending = { ...baseOf(entry, entry.submittedAt), status: "pending" as const }
      if (!mustWaitForRoom(entry)) {
        const refused = enter(entry, submitter)
        if (refused !== undefined) return Effect.fail(refused)
        entered?.(entry)
        return Effect.succeed(pending)
      }
      return Effect.callback<typeof pending, QueueError.AcceptError>((resume) => {
        const refused = enter(entry, submitter)
        if (refused !== undefined) return resume(Effect.fail(refused))
        // Before anybody else knows of it, who may let it in, or end it.
        if (entry.state === "suspended") {
          entry.accepted = () => {
            if (submitter !== undefined) stopWaiting(submitter, entry)
            resume(
              entry.state === "suspended"
                // Whatever ends a request before its acceptance is a reason not to accept it.
                ? Effect.as(Effect.mapError(result(entry), (error) => error as QueueError.AcceptError), pending)
                : Effect.succeed(pending)
            )
          }
        }
        entered?.(entry)
        if (entry.accepted === undefined) return resume(Effect.succeed(pending))
        return Effect.sync(() => entry.state === "suspended" && end(entry, { status: "cancelled" }))
      })
    })

  // ---------------------------------------------------------------------------------------------------------------
  // Processing
  // ---------------------------------------------------------------------------------------------------------------

  /** What a result used, or what is wrong with what it says. */
  const readUsage = (exit: Exit.Exit<unknown, ProcessorFailure>): RateLimiter.Tokens | string | undefined => {
    if (config.usage === undefined || !Exit.isSuccess(exit)) return undefined
    try {
      const usage = settings.usage(config.usage(exit.value))
      return "inputTokens" in usage ? usage : usage.join("; ")
    } catch (error) {
      return `it threw ${settings.show(error)}`
    }
  }

  const settled = (entry: Entry, usage: RateLimiter.Tokens, settlement: RateLimiter.Settlement) => {
    if (settlement !== "alreadySettled" && entry.usage === undefined) {
      entry.usage = usage
      observer?.settled(entry, usage)
      if (entry.outcome?.status === "completed") learn(entry)
    }
    scheduler.happened(entry.tenant)
    wake()
    return settlement
  }

  const settle = (entry: Entry, usage: RateLimiter.Tokens): Effect.Effect<RateLimiter.Settlement> =>
    Effect.map(limiter.settle(entry.reservation!, usage), (settlement) => settled(entry, usage, settlement))

  /** What was cut short says nothing about what requests use. */
  const learn = (entry: Entry, at = now()) => {
    const { cost, usage } = entry
    if (usage === undefined) return
    cost.observe?.(usage)
    const duration = (entry.endedAt ?? at) - entry.dispatchedAt!
    for (const { limit, meter } of tokenLimits) {
      meter.add({
        charged: charge(limit, cost),
        chargedOutput: charge(limit, cost, 0),
        used: charge(limit, usage),
        usedOutput: charge(limit, usage, 0),
        duration
      })
    }
  }

  /**
   * The processor's fiber is ending: its permit goes to whoever runs on it, back to its lender, or, as this tells, to the
   * limiter.
   */
  const returnsPermit = (entry: Entry): boolean => {
    const { borrower, holdsPermit, lender } = entry
    entry.holdsPermit = false
    entry.lender = entry.borrower = undefined
    if (borrower !== undefined) {
      borrower.holdsPermit = holdsPermit
      borrower.lender = lender
    }
    if (lender !== undefined) lender.borrower = borrower
    if (!holdsPermit || borrower !== undefined) return false
    held--
    return true
  }

  const outcomeOf = (entry: Entry, exit: Exit.Exit<unknown, ProcessorFailure>): Outcome => {
    if (Exit.isSuccess(exit)) return { status: "completed", result: exit.value }
    const { cause } = exit
    return {
      status: "failed",
      cause: cause.reasons.some(Cause.isFailReason)
        ? cause
        : Cause.fail(new QueueError.ProcessingError({ modelId, requestId: entry.id, cause }))
    }
  }

  /** What `Effect.scoped` does, but that the scope comes with the fiber. */
  const attempt = (
    entry: Entry,
    request: AnyRequest,
    scope: Scope.Closeable
  ): Effect.Effect<unknown, ProcessorFailure> =>
    Effect.withFiber((fiber) => {
      entry.fiber = fiber
      return entry.outcome === undefined
        ? Effect.onExit(processor(request), (exit) => Scope.closeUnsafe(scope, exit) ?? Effect.void)
        : Effect.interrupt
    })

  /** What a foreign limiter or a logger can break: no request is kept from its end by it. */
  const survive = function*(effect: () => Effect.Effect<unknown>): Step<void> {
    const exit = yield* waitFor(Effect.exit(Effect.suspend(effect)))
    if (Exit.isSuccess(exit)) return
    yield* waitFor(Effect.exit(Effect.logError(`The end of a request of model ${modelId} went wrong`, exit.cause)))
  }

  /** What a failure means when it is the provider's, and what its headers say. */
  const readFailure = (cause: Cause.Cause<ProcessorFailure>, { settings: { profile } }: ProviderGate) => {
    const wall = clock.currentTimeMillisUnsafe()
    for (const reason of cause.reasons) {
      const error: unknown = Cause.isFailReason(reason)
        ? reason.error
        : Cause.isDieReason(reason)
        ? reason.defect
        : undefined
      const refusal = ProviderProfile.classify(profile, error, wall)
      if (refusal !== undefined) return { refusal, observations: failureHeaders(profile, error, wall) }
    }
    return undefined
  }

  /** The end of a request that the provider refused, without a further attempt. */
  const endOf = (
    entry: Entry,
    cause: Cause.Cause<ProcessorFailure>,
    refusal: RateLimiter.Refusal
  ): Outcome => {
    switch (refusal.kind) {
      case "rate":
      case "ramp": {
        const error = new QueueError.RateLimitExceeded({
          modelId,
          requestId: entry.id,
          attempts: entry.attempts,
          limitTypes: [...refusal.types],
          retryAfterMillis: refusal.retryAfter,
          cause: Cause.squash(cause)
        })
        return { status: "failed", cause: Cause.fail(error) }
      }
      case "overload": {
        const error = unavailable(entry, refusal.message, refusal.retryAfter, Cause.squash(cause))
        return { status: "failed", cause: Cause.fail(error) }
      }
      case "quota":
        return { status: "failed", cause: Cause.fail(quotaExhausted(entry.id)) }
      default:
        return outcomeOf(entry, Exit.failCause(cause))
    }
  }

  /** Milliseconds until a refused request may be attempted again at the earliest; `undefined` for never. */
  const delayOf = Effect.fnUntraced(function*(
    entry: Entry,
    refusal: RateLimiter.Refusal,
    { isQuotaExhausted, payRetry, settings }: ProviderGate
  ) {
    const isHealthy = refusal.kind === "rate" || refusal.kind === "ramp"
    if (!isHealthy && refusal.kind !== "overload" && refusal.kind !== "transient") return undefined
    if (entry.firstElementAt !== undefined) return undefined
    if (state !== "open" && !(state === "closing" && draining)) return undefined
    if (isQuotaExhausted(now())) return undefined
    const next = yield* Effect.exit(Effect.flatMap(
      entry.retry === undefined ? Schedule.toStep(settings.schedule) : Effect.succeed(entry.retry),
      (step) => (entry.retry = step)(clock.currentTimeMillisUnsafe(), refusal)
    ))
    if (Exit.isFailure(next)) {
      if (!Pull.isDoneCause(next.cause)) {
        // A logger can break, too.
        yield* Effect.exit(
          Effect.logWarning(`The retry schedule of model ${modelId} broke: there is no further attempt`, next.cause)
        )
      }
      return undefined
    }
    const delay = Math.max(Duration.toMillis(next.value[1]), refusal.retryAfter ?? 0)
    if (now() + delay >= entry.submittedAt + entry.timeout) return undefined
    return isHealthy || payRetry(now()) ? delay : undefined
  })

  /** Back to the waiting ones, in its old place or, by descent, ahead of those who came later. */
  const requeue = (entry: Entry, refusal: RateLimiter.Refusal, delay: number) => {
    const at = now()
    const before = entry.earlier
    const queueTime = entry.dispatchedAt! - (before?.since ?? entry.submittedAt)
    const processingTime = at - entry.dispatchedAt!
    entry.earlier = {
      refusals: [...before?.refusals.slice(1 - keptRefusals) ?? [], {
        kind: refusal.kind,
        limitTypes: refusal.types,
        message: refusal.message,
        queueTime: Duration.millis(queueTime),
        processingTime: Duration.millis(processingTime),
        retryAfter: refusal.retryAfter === undefined ? undefined : Duration.millis(refusal.retryAfter)
      }],
      waited: (before?.waited ?? 0) + queueTime,
      processed: (before?.processed ?? 0) + processingTime,
      since: at,
      notBefore: at + delay,
      delayed: undefined
    }
    observer?.retried(entry)
    entry.dispatchedAt = undefined
    entry.reservation = undefined
    entry.usage = undefined
    setDeadline(entry, entry.submittedAt + entry.timeout)
    enqueue(entry)
    for (const waiter of emptied) lend(waiter, entry)
  }

  const finishRefused = function*(
    entry: Entry,
    cause: Cause.Cause<ProcessorFailure>,
    { observations, refusal }: NonNullable<ReturnType<typeof readFailure>>,
    gate: ProviderGate
  ): Step<void> {
    gate.refusals[refusal.kind]++
    const failed = refusal.kind === "overload" || refusal.kind === "transient"
    // Then it was accepted, and what it has produced is charged.
    const hasBegun = entry.firstElementAt !== undefined
    const wasBlocked = gate.isBlocked(now())
    if (failed || refusal.kind === "quota") gate.failed(entry, refusal, entry.dispatchedAt!, running.size, now())
    else gate.answered(entry, false, now())
    const isLimited = refusal.kind === "rate" || refusal.kind === "ramp"
    if (isLimited && (windows === 0 || hasBegun || isAboutConcurrency(refusal))) {
      gate.limited(refusal, entry.dispatchedAt!, running.size, now())
    }
    const outcome = endOf(entry, cause, refusal)
    yield* survive(() =>
      refusal.kind === "transient" || hasBegun
        ? Effect.andThen(limiter.observe(entry.reservation!, observations), limiter.complete(entry.reservation!))
        : limiter.refuse(entry.reservation!, refusal, observations)
    )
    if (returnsPermit(entry)) yield* survive(() => limiter.releasePermit)
    entry.trace?.end(Exit.failCause(cause), entry.usage, refusal.kind)
    const delay = entry.outcome === undefined ? yield* waitFor(delayOf(entry, refusal, gate)) : undefined
    running.delete(entry)
    entry.fiber = undefined
    scheduler.happened(entry.tenant)
    wake()
    if (delay !== undefined && entry.outcome === undefined && !exempt.has(entry)) {
      requeue(entry, refusal, delay)
    } else {
      exempt.delete(entry)
      entry.trace = undefined
      if (!end(entry, outcome)) {
        entry.request = undefined
        checkDrained()
      }
    }
    if (!wasBlocked) failUnavailable()
    if (refusal.kind !== "quota") return
    for (const list of [suspended, waiting]) {
      while (list.first !== undefined) fail(list.first, quotaExhausted(list.first.id))
    }
  }

  const outcomeFor = (entry: Entry, exit: Exit.Exit<unknown, ProcessorFailure>): Outcome =>
    entry.outcome ?? (entry.produced = outcomeOf(entry, exit))

  /** The limiter has been told of the end: now everybody is. */
  const finished = (entry: Entry, outcome: Outcome, at: number): void => {
    running.delete(entry)
    exempt.delete(entry)
    entry.fiber = entry.trace = undefined
    scheduler.happened(entry.tenant)
    wake()
    if (outcome.status === "completed") {
      learn(entry, at)
      const weight = 1 / Math.min(++processing.counted, 100)
      processing.mean += weight * (at - entry.dispatchedAt! - processing.mean)
    }
    if (end(entry, outcome, at)) return
    entry.request = undefined
    checkDrained()
  }

  /** After the fiber of the attempt has ended, and its children with it. Most end so that nobody need be waited for. */
  const finish = (entry: Entry, exit: Exit.Exit<unknown, ProcessorFailure>): void => {
    const usage = readUsage(exit)
    if (immediate === undefined || Exit.isFailure(exit) || typeof usage === "string") {
      begin(finishSlowly(entry, exit, usage), fork)
      return
    }
    const at = now()
    gate?.answered(entry, true, at)
    const outcome = outcomeFor(entry, exit)
    const settlement = immediate.finish(entry.reservation!, usage, returnsPermit(entry), at)
    if (usage !== undefined) settled(entry, usage, settlement!)
    // A further report would say the same, so its charges need not be kept as long as its status.
    if (settlement === "settled") entry.reservation = undefined
    entry.trace?.end(exit, entry.usage)
    finished(entry, outcome, at)
  }

  const finishSlowly = function*(
    entry: Entry,
    exit: Exit.Exit<unknown, ProcessorFailure>,
    usage: RateLimiter.Tokens | string | undefined
  ): Step<void> {
    if (gate !== undefined) {
      let failure: ReturnType<typeof readFailure>
      try {
        failure = Exit.isSuccess(exit) ? undefined : readFailure(exit.cause, gate)
      } catch (error) {
        // Then it is not the provider's.
        yield* survive(() => Effect.die(error))
      }
      if (Exit.isFailure(exit) && failure !== undefined) return yield* finishRefused(entry, exit.cause, failure, gate)
      if (Exit.isSuccess(exit)) gate.answered(entry, true, now())
      else gate.ended(entry)
    }
    const outcome = outcomeFor(entry, exit)
    if (typeof usage === "string") {
      yield* survive(() =>
        Effect.logWarning(
          `The usage of a result of model ${modelId} cannot be read, its estimate stays charged: ${usage}`
        )
      )
    } else if (usage !== undefined) yield* survive(() => settle(entry, usage))
    yield* survive(() => limiter.complete(entry.reservation!))
    if (returnsPermit(entry)) yield* survive(() => limiter.releasePermit)
    entry.trace?.end(exit, entry.usage)
    finished(entry, outcome, now())
  }

  const dispatch = (entry: Entry, reservation: RateLimiter.Reservation) => {
    // Its own copy: what a processor does to it is nobody else's business.
    const request = { ...entry.request! }
    scheduler.serve(entry)
    leaveWaiting(entry)
    entry.state = "dispatched"
    entry.dispatchedAt = now()
    entry.attempts++
    observer?.dispatched(entry, entry.dispatchedAt - (entry.earlier?.since ?? entry.submittedAt))
    gate?.dispatched(entry, entry.dispatchedAt)
    entry.reservation = reservation
    running.add(entry)
    if (entry.processingTimeout !== Number.POSITIVE_INFINITY) {
      setDeadline(
        entry,
        Math.min(entry.submittedAt + entry.timeout, entry.dispatchedAt + entry.processingTimeout)
      )
    }
    changed(entry)
    admitSuspended()
    const scope = Scope.makeUnsafe()
    let inner = Context.add(Context.add(context, CurrentEntry, entry), Scope.Scope, scope)
    if (entry.context !== requestContext.none) {
      inner = Context.add(inner, requestContext.CurrentRequestContext, entry.context)
    }
    const { trace } = entry
    if (trace !== undefined) {
      const described = { modelId, requestId: entry.id }
      trace.waited(described, Exit.void)
      const span = trace.begin({
        ...described,
        provider: config.provider?.profile.name,
        tenant: entry.tenant,
        attempt: entry.attempts,
        cost: entry.cost
      })
      if (span !== undefined) inner = Context.add(inner, Tracer.ParentSpan, span)
    }
    Effect.runForkWith(inner)(attempt(entry, request, scope)).addObserver((exit) => finish(entry, exit))
  }

  // ---------------------------------------------------------------------------------------------------------------
  // Dispatcher
  // ---------------------------------------------------------------------------------------------------------------

  const drainIntake = () => {
    woken = false
    for (let taken = Queue.takeUnsafe(intake); taken !== undefined; taken = Queue.takeUnsafe(intake)) {
      if (Exit.isFailure(taken)) return
      const entry = taken.value
      if (entry === wakeUp || entry.outcome !== undefined) continue
      const { earlier } = entry
      if (earlier !== undefined && earlier.notBefore > now()) {
        earlier.delayed = delayed.add(earlier.notBefore, entry)
      } else putInOrder(entry)
    }
  }

  const putInOrder = (entry: Entry) => {
    if (entry.nested) {
      nested.add(entry)
      return
    }
    scheduler.add(entry)
  }

  /** Puts in order what need not be delayed any longer, and says how long the next one must. */
  const resumeDelayed = (): number => {
    for (let node = delayed.peek(); node !== undefined; node = delayed.peek()) {
      const at = now()
      if (node.key > at) return node.key - at
      delayed.remove(node)
      node.value.earlier!.delayed = undefined
      putInOrder(node.value)
    }
    return Number.POSITIVE_INFINITY
  }

  const mostPermits = (): number =>
    config.limits.find(({ type }) => type === "concurrent")?.limit ?? Number.POSITIVE_INFINITY

  /** The first whose permit nobody runs on. */
  const firstToLend = (entries: Iterable<Entry>): Entry | undefined => {
    for (const entry of entries) {
      const isOnPermit = entry.holdsPermit || entry.lender !== undefined
      if (entry.queue === queue && isOnPermit && entry.borrower === undefined) return entry
    }
    return undefined
  }

  const blockedBy: ModelQueue["blockedBy"] = (entry) => {
    if (held < mostPermits()) return undefined
    return firstToLend(withWaiters([entry])) === undefined ? running : undefined
  }

  /** Whose permit it may run on: of what waits for it, or, in a deadlock, of what waits at all. */
  const lenderOf = (entry: Entry): Entry | undefined =>
    firstToLend(withWaiters([entry])) ?? firstToLend(deadlock(entry) ?? [])

  /** Whether everything being processed waits for some nested request, so that nothing but those can end. */
  const onlyWaitersRun = () => {
    const waiters = new Set(withWaiters(nested))
    for (const entry of running) if (!waiters.has(entry)) return false
    return true
  }

  const gateWait = (entry: Entry, gate: ProviderGate): number =>
    entry.nested ? gate.closedFor(now()) : gate.wait(now(), running.size)

  /**
   * Dispatches an admitted request, on its own permit or on its lender's, unless one of them left meanwhile, or the
   * queue has to wait: then its charge is to be given back.
   */
  const use = (entry: Entry, reservation: RateLimiter.Reservation, lender?: Entry): boolean => {
    const left = entry.outcome !== undefined || (lender !== undefined && lenderOf(entry) !== lender)
    const mustWait = isPaused && state === "open" && !entry.nested
    if (left || mustWait || (gate !== undefined && gateWait(entry, gate) > 0)) {
      scheduler.happened(entry.tenant)
      return false
    }
    if (lender === undefined) {
      entry.holdsPermit = true
      held++
    } else {
      entry.lender = lender
      lender.borrower = entry
    }
    dispatch(entry, reservation)
    return true
  }

  const useOrGiveBack = function*(
    entry: Entry,
    reservation: RateLimiter.Reservation,
    lender?: Entry
  ): Step<void> {
    if (!use(entry, reservation, lender)) yield* waitFor(limiter.giveBack(reservation, lender === undefined))
  }

  const admit = function*(
    cost: RateLimiter.Cost,
    permit: boolean,
    options: RateLimiter.AdmitOptions
  ): Step<RateLimiter.Admission> {
    return immediate === undefined
      ? yield* waitFor(limiter.admit(cost, permit, options))
      : immediate.admit(cost, permit, options, now())
  }

  const keptBack = (entry: Entry, by: Reason): void => {
    reason = by
    if (entry.trace !== undefined) entry.trace.waitedFor = by
  }

  /** The limiter cannot be reached: it tells when it can. A request that is not to wait for that fails. */
  const awaitReturn = (entry: Entry, failure: string | undefined): number => {
    keptBack(entry, "unavailable")
    if (failure === undefined) return Number.POSITIVE_INFINITY
    fail(entry, new QueueError.QueueUnavailable({ modelId, requestId: entry.id, reason: failure }))
    return 0
  }

  /** Whether only the tenant of a request is kept back. */
  const isHeld = ({ scope }: Blocked): boolean => scope !== undefined && scope !== "model"

  /**
   * Lets a request go before the first one, which is blocked by something that this one takes less of, if that cannot
   * delay it. Says how long until one can: 0 when one went.
   */
  const pass = function*(first: Entry, { by, wait }: Blocked): Step<number> {
    if (by === "concurrent" || wait === Number.POSITIVE_INFINITY || first.passed >= config.bypass) return wait
    // It may have left while the limiter was asked.
    if (first.lane === undefined) return 0
    const limit = config.limits.find(({ type }) => type === by)
    let least = wait
    for (const entry of limit === undefined ? [] : scheduler.behind(first, looksBehind)) {
      if (charge(limit!, entry.cost) >= charge(limit!, first.cost)) continue
      const admission = yield* admit(entry.cost, true, { tenant: entry.tenant, protect: first.cost })
      // It fails when it is its turn.
      if (admission._tag === "Exceeded") continue
      if (admission._tag === "Blocked") {
        least = Math.min(least, admission.wait)
        continue
      }
      if (admission._tag === "Unavailable") return least
      first.passed++
      yield* useOrGiveBack(entry, admission.reservation)
      return 0
    }
    return least
  }

  /** Whether others have to wait for what was answered, and how long: 0 when a request was admitted, or has failed. */
  interface Answer {
    readonly wait: number
    readonly isFinal: boolean
  }

  /**
   * What is being processed may wait for nested requests, so these go first. One that lacks a permit holds back nobody:
   * its siblings have it, and may in turn wait for a nested request behind it.
   */
  const admitNested = function*(): Step<Answer> {
    const closedFor = gate === undefined ? 0 : gate.closedFor(now())
    if (closedFor > 0) {
      reason = "provider"
      return { wait: closedFor, isFinal: false }
    }
    let hasPermit = true
    let heldWait = Number.POSITIVE_INFINITY
    for (const entry of Array.from(nested)) {
      if (entry.outcome !== undefined) continue
      let admission = hasPermit ? yield* admit(entry.cost, true, entry) : undefined
      let lender: Entry | undefined
      if (admission === undefined || (admission._tag === "Blocked" && admission.by === "concurrent")) {
        // Then there is none for the others either: the limiter, which may be far away, is asked once.
        if (admission === undefined || !isHeld(admission)) hasPermit = false
        lender = lenderOf(entry)
        if (lender === undefined) continue
        admission = yield* admit(entry.cost, false, entry)
      }
      if (admission._tag === "Admitted") {
        yield* useOrGiveBack(entry, admission.reservation, lender)
        return { wait: 0, isFinal: true }
      }
      if (admission._tag === "Exceeded") {
        fail(entry, budgetExceeded(entry, admission.excess))
        return { wait: 0, isFinal: true }
      }
      if (admission._tag === "Unavailable") return { wait: awaitReturn(entry, admission.reason), isFinal: true }
      if (admission.wait === Number.POSITIVE_INFINITY && onlyWaitersRun()) {
        const { by } = admission
        const limit = [...config.limits, ...config.limitsOf(entry.tenant)].find((limit) => limit.type === by)
        // Else the limits have changed since.
        if (limit !== undefined) {
          fail(
            entry,
            new QueueError.RequestTooLarge({
              modelId,
              requestId: entry.id,
              limitType: by,
              limit: limit.limit,
              requested: charge(limit, entry.cost),
              estimated: false
            })
          )
        }
        return { wait: 0, isFinal: true }
      }
      keptBack(entry, admission.by)
      if (!isHeld(admission)) return { wait: admission.wait, isFinal: true }
      heldWait = Math.min(heldWait, admission.wait)
    }
    return { wait: heldWait, isFinal: false }
  }

  /** What becomes of the first one when it is not admitted on a permit of its own. Says how long nothing can be. */
  const otherwise = function*(
    head: Entry,
    first: RateLimiter.Admission,
    changes: number
  ): Step<number> {
    let admission = first
    let lender: Entry | undefined
    if (admission._tag === "Blocked" && admission.by === "concurrent" && !isHeld(admission)) {
      lender = lenderOf(head)
      if (lender !== undefined) admission = yield* admit(head.cost, false, head)
    }
    if (admission._tag === "Admitted") {
      yield* useOrGiveBack(head, admission.reservation, lender)
      return 0
    }
    if (admission._tag === "Exceeded") {
      fail(head, budgetExceeded(head, admission.excess))
      return 0
    }
    if (admission._tag === "Unavailable") return awaitReturn(head, admission.reason)
    keptBack(head, admission.by)
    if (!isHeld(admission)) return yield* pass(head, admission)
    // The requests of its tenant wait, and hold back nobody else.
    if (head.lane !== undefined) {
      scheduler.hold(head, now() + admission.wait, admission.scope === "tenant" ? "itself" : "others", changes)
    }
    return 0
  }

  /** How many requests the provider takes now, of those that a limiter may be asked for at once. */
  const mostAtOnce = (at: number): number => {
    if (limiter.admitAll === undefined) return 1
    const most = Math.min(asksAtOnce, scheduler.count)
    if (gate === undefined) return most
    let count = 1
    while (count < most && gate.wait(at, running.size + count) <= 0) count++
    return count
  }

  /** Asks for the first one in order, and for those behind it if they can be asked for together. Answers for the last. */
  const admitHeads = function*(head: Entry, at: number): Step<readonly [Entry, RateLimiter.Admission]> {
    const heads = mostAtOnce(at) > 1 ? scheduler.next(mostAtOnce(at)) : []
    if (heads.length < 2 || heads[0] !== head) return [head, yield* waitFor(limiter.admit(head.cost, true, head))]
    const admissions = yield* waitFor(limiter.admitAll!(heads))
    for (let i = 0; i < admissions.length - 1; i++) {
      const admission = admissions[i]!
      if (admission._tag === "Admitted") yield* useOrGiveBack(heads[i]!, admission.reservation)
    }
    return [heads[admissions.length - 1]!, admissions.at(-1)!]
  }

  /**
   * Admits what can be, so many at a time, and says how long nothing can be. Most requests are the first one in order,
   * and admitted at once: there nothing is allocated but what they keep.
   */
  const admitSome = function*(): Step<number> {
    const most = immediate === undefined ? 1 : admissionsAtOnce
    isAdmitting = true
    for (let i = 0; i < most; i++) {
      drainIntake()
      reason = undefined
      const at = now()
      const delay = Math.min(
        resumeDelayed(),
        scheduler.isHolding ? scheduler.resume(at) - at : Number.POSITIVE_INFINITY
      )
      const answer = nested.size === 0 ? undefined : yield* admitNested()
      let wait = answer === undefined ? Number.POSITIVE_INFINITY : answer.wait
      if (answer === undefined || !answer.isFinal) {
        const isHeldBack = isPaused && state === "open"
        if (isHeldBack && waiting.size > 0) reason = "paused"
        const head = isHeldBack ? undefined : scheduler.peek()
        const gateWait = head === undefined || gate === undefined ? 0 : gate.wait(at, running.size)
        if (gateWait > 0) {
          keptBack(head!, "provider")
          wait = Math.min(wait, gateWait)
        } else if (head !== undefined) {
          const { changes } = scheduler
          let entry = head
          let admission: RateLimiter.Admission
          if (immediate === undefined) [entry, admission] = yield* admitHeads(head, at)
          else admission = immediate.admit(head.cost, true, head, at)
          if (admission._tag === "Admitted") {
            if (!use(entry, admission.reservation)) yield* waitFor(limiter.giveBack(admission.reservation, true))
            continue
          }
          wait = Math.min(wait, yield* otherwise(entry, admission, changes))
        }
      }
      wait = Math.min(wait, delay)
      if (wait > 0 && !woken && Queue.sizeUnsafe(intake) === 0) {
        isAdmitting = false
        return wait
      }
    }
    isAdmitting = false
    return 0
  }

  const dispatcher = Effect.gen(function*() {
    while (true) {
      // Uninterruptible, so that the closing of the queue does not lose what the limiter has given.
      const wait = yield* Effect.uninterruptible(toEffect(admitSome))
      if (wait === 0) {
        yield* Effect.yieldNow
      } else if (Queue.sizeUnsafe(intake) === 0) {
        if (stalled.size > 0 && isWaitedFor()) { for (const goOn of Array.from(stalled)) outside(goOn) }
        const since = now()
        const by = reason
        yield* sleepUntilOr(since + wait, Queue.peek(intake))
        if (by !== undefined) observer?.blocked(by, now() - since)
      }
    }
  })

  /** Outlives the closing as long as some processor that was not waited for has a deadline. */
  const housekeeper = Effect.gen(function*() {
    while (state !== "closed" || deadlines.peek() !== undefined) {
      const at = now()
      for (let node = deadlines.peek(); node !== undefined && node.key <= at; node = deadlines.peek()) {
        deadlines.remove(node)
        expire(node.value)
      }
      while (ended.first !== undefined && ended.first.endedAt! + config.retainAge <= at) forget(ended.first)
      if (letters.isKeeping) letters.expire()
      const retained = ended.first === undefined ? Number.POSITIVE_INFINITY : ended.first.endedAt! + config.retainAge
      nextDue = Math.min(deadlines.peek()?.key ?? Number.POSITIVE_INFINITY, retained, letters.nextDue)
      yield* sleepUntilOr(nextDue, Queue.take(bell))
    }
  })

  /**
   * These loops hold everybody up when they end, which only a foreign limiter or clock can make them do: by dying, or by
   * an interruption that is not this fiber's own (which no handler sees).
   */
  const supervised = (loop: Effect.Effect<void>): Effect.Effect<void> =>
    Effect.catchCause(
      loop,
      (cause) =>
        Effect.logError(`A fiber of the queue of model ${modelId} ended and starts again in a second`, cause).pipe(
          Effect.delay("1 second"),
          Effect.andThen(supervised(loop))
        )
    )

  // ---------------------------------------------------------------------------------------------------------------
  // Closing
  // ---------------------------------------------------------------------------------------------------------------

  const abortAll = (list: Iterable<Entry>) => {
    for (const entry of Array.from(list)) if (!exempt.has(entry)) abort(entry, shutdownOf(entry))
  }

  const stop: ModelQueue["stop"] = (options) => {
    if (state === "closed") return
    // A later call can only ask for more.
    draining = options.policy === "drain" && (state === "open" || draining)
    state = "closing"
    // A pause is over.
    wake()
  }

  const close: ModelQueue["close"] = (options) =>
    unstoppable(Effect.gen(function*() {
      if (state === "closed") return
      const asking = yield* CurrentEntry
      for (const entry of asking === undefined ? [] : withWaiters([asking])) {
        if (!running.has(entry)) continue
        const closesAt = Math.min(exempt.get(entry) ?? Number.POSITIVE_INFINITY, now() + options.deadline)
        exempt.set(entry, closesAt)
        if (entry.outcome !== undefined) continue
        setDeadline(entry, Math.min(closesAt, entry.deadline?.key ?? Number.POSITIVE_INFINITY))
      }
      stop(options)
      const until = now() + options.deadline
      while (suspended.first !== undefined) abort(suspended.first, shutdownOf(suspended.first))
      if (!draining) { while (waiting.first !== undefined) abort(waiting.first, shutdownOf(waiting.first)) }
      if (options.policy === "interrupt") abortAll(running)
      checkDrained()
      if (options.deadline > 0) yield* sleepUntilOr(until, Deferred.await(drained))
      while (waiting.first !== undefined) abort(waiting.first, shutdownOf(waiting.first))
      abortAll(running)
      state = "closed"
      unobserve()
      Deferred.doneUnsafe(drained, Exit.void)
      tellEmptied(true)
      due(now())
      // It waits for the dispatcher, and so for a foreign limiter that may never answer: no longer than the deadline.
      const released = yield* Effect.forkDetach(Scope.close(scope, Exit.void), { startImmediately: true })
      if (until > now()) yield* sleepUntilOr(until, Fiber.await(released))
    }))

  // ---------------------------------------------------------------------------------------------------------------
  // Other limits
  // ---------------------------------------------------------------------------------------------------------------

  /** What was guessed depends on the limits, and without any on tokens there is no guess. */
  const estimateAgain = (entry: Entry): QueueError.SubmitError | undefined => {
    const cost = costOf(config, estimator, entry.request!, [])
    if ("_tag" in cost) return cost
    if (entry.cost.guessed.input || entry.cost.guessed.output) scheduler.recount(entry, cost)
    return undefined
  }

  const adoptLimits = (limits: ReadonlyArray<RateLimiter.Limit>) => {
    config = { ...config, limits }
    windows = countWindows(limits)
    hasBudget = limits.some(failsWhenExceeded)
    const before = tokenLimits
    tokenLimits = meterTokens(limits).map((each) => {
      const { timePeriod, type } = each.limit
      const same = before.find(({ limit }) => limit.type === type && limit.timePeriod === timePeriod)
      return same === undefined ? each : { limit: each.limit, meter: same.meter }
    })
    const refused: Array<readonly [Entry, QueueError.SubmitError]> = []
    for (const list of [waiting, suspended]) {
      for (let entry = list.first; entry !== undefined; entry = entry.next) {
        const error = estimateAgain(entry)
        if (error !== undefined) refused.push([entry, error])
      }
    }
    observer?.limitsChanged()
    scheduler.releaseAll()
    wake()
    for (const [entry, error] of refused) if (entry.state !== "dispatched") fail(entry, error)
  }

  /** What others did to limits that are shared. */
  const heard = (change: RateLimiter.Change): void => {
    if (change._tag === "LimitsChanged") return adoptLimits(change.limits)
    scheduler.releaseAll()
    wake()
  }

  /** One at a time: a limiter that is far away must not end up with other limits than the queue. */
  const updating = Semaphore.makeUnsafe(1)

  const update = (
    resolve: () => ReturnType<typeof settings.resolveUpdate>
  ): Effect.Effect<void, QueueError.InvalidConfiguration> =>
    updating.withPermit(Effect.suspend(() => {
      const resolved = resolve()
      if (!("limits" in resolved)) {
        return Effect.fail(new QueueError.InvalidConfiguration({ modelId, problems: resolved }))
      }
      const { limits } = resolved
      return Effect.uninterruptible(Effect.map(limiter.update(limits), () => adoptLimits(limits)))
    }))

  // ---------------------------------------------------------------------------------------------------------------
  // Lookup
  // ---------------------------------------------------------------------------------------------------------------

  /** The housekeeper may come a moment later, and does not come once the queue is closed. */
  const known = (id: string): Entry | undefined => {
    const entry = entries.get(id)
    if (entry?.endedAt === undefined || entry.endedAt + config.retainAge > now()) return entry
    forget(entry)
    return undefined
  }

  const find = (id: string): Effect.Effect<Entry, QueueError.RequestNotFound> =>
    Effect.suspend(() => {
      const entry = known(id)
      return entry === undefined
        ? Effect.fail(new QueueError.RequestNotFound({ modelId, requestId: settings.nameOf(id) }))
        : Effect.succeed(entry)
    })

  const tellEmptied = (isEmpty: boolean) => {
    const waiters = Array.from(emptied)
    emptied.clear()
    for (const { told } of waiters) outside(() => Deferred.doneUnsafe(told, Exit.succeed(isEmpty)))
  }

  /** What waits may run on the permit of a processor that waits for it: there may be no other one. */
  const lend = ({ adopted, by }: Emptying, entry: Entry) => {
    if (by === undefined || isOrAwaits(entry, by) || entry.awaitedBy.includes(by)) return
    adopt(entry, by)
    adopted.push(entry)
  }

  /** Waits until all that was accepted has ended, but for the requests that ask for it. */
  const drainOut: Effect.Effect<boolean> = Effect.withFiber((fiber) => {
    if (state === "closed") return Effect.succeed(true)
    const current = fiber.getRef(CurrentEntry)
    const exempt = new Set<Entry>()
    for (const entry of current === undefined ? [] : withWaiters([current])) {
      if (entry.queue === queue) exempt.add(entry)
    }
    isEmptying = true
    isPaused = false
    wake()
    const by = isProcessing(current) ? current : undefined
    const waiter: Emptying = { exempt, by, adopted: [], told: Deferred.makeUnsafe() }
    emptied.add(waiter)
    for (const entry of Array.from(suspended)) {
      if (entry.outcome === undefined) fail(entry, new QueueError.QueueDraining({ modelId, requestId: entry.id }))
    }
    // Who has failed may have resumed the queue.
    if (by !== undefined && emptied.has(waiter)) {
      const inOrder = Array.from(waiting).toSorted((a, b) =>
        a.submittedAt - a.headStart - (b.submittedAt - b.headStart)
      )
      for (const entry of inOrder) lend(waiter, entry)
    }
    checkEmptied()
    return Effect.onExit(Deferred.await(waiter.told), () =>
      Effect.sync(() => {
        emptied.delete(waiter)
        for (const entry of waiter.adopted) orphan(entry, by!)
      }))
  })

  const cancelAll = (filter: QueueManager.RequestFilter) =>
    Effect.suspend(() => {
      // Else what is being processed would hear that what it waits for was cancelled, and go on: it is first.
      const meant = listing.meant(contents, filter)
      if (!Array.isArray(meant)) return Effect.fail(meant)
      // One may cancel another that it waits for, which counts all the same.
      for (const entry of meant) cancelEntry(entry)
      return Effect.succeed(meant.filter(({ outcome }) => outcome?.status === "cancelled").length)
    })

  const list: ModelQueue["list"] = (filter, limit) =>
    Effect.suspend(() => {
      const found = listing.list(contents, filter, limit)
      if ("_tag" in found) return Effect.fail(found)
      const { ahead, listed } = found
      const at = now()
      const usedPart = expectedUse()
      return Effect.forEach(listed, (entry) => {
        const before = ahead.get(entry)
        const predicted = before === undefined ? Effect.undefined : predictedWait(entry, {
          ...scheduler.withOthers(entry.tenant, before),
          usedPart,
          returnedPart: 1 - usedPart
        })
        return Effect.map(predicted, (predictedWait): QueueManager.ActiveRequest => ({
          requestId: entry.id,
          status: entry.state === "dispatched" ? "processing" : "pending",
          tenant: entry.tenant,
          priority: entry.headStart / 1000,
          labels: entry.request?.labels ?? {},
          createdAt: entry.createdAt,
          queueTime: Duration.millis(waitingTime(entry, at)),
          processingTime: Duration.millis(processingTime(entry, at)),
          attempts: entry.attempts,
          predictedWait
        }))
      })
    })

  const cancelEntry = (entry: Entry): boolean => {
    if (entry.state === "suspended" && entry.outcome === undefined) {
      // Accepted first, so that its end is retained and a fire-and-forget submitter has its answer.
      suspended.remove(entry)
      enqueue(entry)
    }
    return abort(entry, { status: "cancelled" }) && entry.outcome?.status === "cancelled"
  }

  const queue: ModelQueue = {
    modelId,
    sharesLimits: limiter.changes !== undefined,
    scope,
    submit,
    accept,
    awaitCompletion: (id) =>
      Effect.withFiber((fiber) =>
        Effect.flatMap(find(id), (entry) => {
          // Awaited by a request of its own queue, it must not wait for that one's permit.
          const current = fiber.getRef(CurrentEntry)
          if (current !== undefined && isOrAwaits(entry, current)) {
            const problems = ["a processor cannot wait for the end of the request that it is processing"]
            return Effect.fail(new QueueError.InvalidRequest({ modelId, requestId: id, problems }))
          }
          if (current === undefined) return awaitEnd(entry)
          return Effect.acquireUseRelease(
            Effect.sync(() => adopt(entry, current)),
            () => awaitEnd(entry),
            () => Effect.sync(() => orphan(entry, current))
          )
        })
      ),
    status: (id) => Effect.map(find(id), (entry) => response(entry, now())),
    cancel: (id) => Effect.map(find(id), cancelEntry),
    cancelAll,
    list,
    changePriority: (id, priority) =>
      Effect.flatMap(find(id), (entry) => {
        const headStart = settings.headStart(priority)
        if (typeof headStart === "string") {
          return Effect.fail(
            new QueueError.InvalidRequest({ modelId, requestId: id, problems: [`priority: ${headStart}`] })
          )
        }
        if (entry.outcome !== undefined || entry.state === "dispatched") return Effect.succeed(false)
        const isInOrder = entry.lane !== undefined
        if (isInOrder) scheduler.remove(entry)
        entry.headStart = headStart
        if (isInOrder) scheduler.add(entry)
        // It is checked to be one.
        const changed = { priority: priority as ModelConfig.Priority }
        entry.context = { ...entry.context, ...changed }
        entry.request = { ...entry.request!, ...changed }
        wake()
        return Effect.succeed(true)
      }),
    pause: Effect.sync(() => {
      isPaused = true
    }),
    resume: Effect.sync(() => {
      isPaused = false
      isEmptying = false
      tellEmptied(false)
      wake()
    }),
    drain: drainOut,
    letters,
    has: (id) => known(id) !== undefined,
    awaitEntry: (entry) => Effect.suspend(() => awaitEnd(entry)),
    isProcessing,
    blockedBy,
    wake,
    refusal,
    settle,
    streaming: (entry) => {
      entry.firstElementAt = now()
      observer?.firstElement(entry, entry.firstElementAt - entry.dispatchedAt!)
      entry.trace?.firstElement()
      gate?.streaming(entry, entry.firstElementAt)
      wake()
    },
    stalled,
    stall: (goOn) => {
      stalled.add(goOn)
      if (isWaitedFor()) wake()
    },
    reportUsage: (id, report) =>
      Effect.flatMap(find(id), (entry) => {
        const usage = settings.usage(report)
        if (!("inputTokens" in usage)) {
          return Effect.fail(new QueueError.InvalidRequest({ modelId, requestId: id, problems: usage }))
        }
        if (entry.reservation === undefined) {
          if (entry.usage !== undefined) return Effect.succeed("alreadySettled" as const)
          return Effect.fail(
            new QueueError.InvalidRequest({
              modelId,
              requestId: id,
              problems: ["usage: the request was not handed to its processor, so nothing is charged for it"]
            })
          )
        }
        return settle(entry, usage)
      }),
    observe: (entry, headers) => {
      const { reservation } = entry
      if (config.provider === undefined || reservation === undefined) return Effect.void
      const observations = ProviderProfile.observations(
        config.provider.profile,
        headers,
        clock.currentTimeMillisUnsafe()
      )
      return observations.length === 0 ? Effect.void : Effect.map(limiter.observe(reservation, observations), wake)
    },
    estimateWait: (options) =>
      Effect.withFiber((fiber) => {
        const inherited = fiber.getRef(requestContext.CurrentRequestContext)
        const { priority = inherited.priority, tenant = inherited.tenant } = options
        const problems: Array<string> = []
        const headStart = priority === undefined ? config.headStart : settings.headStart(priority)
        if (typeof headStart === "string") {
          return Effect.fail(
            new QueueError.InvalidRequest({ modelId, requestId: "", problems: [`priority: ${headStart}`] })
          )
        }
        const labels = inherited.labels === undefined ? options.labels : { ...inherited.labels, ...options.labels }
        const cost = costOf(config, estimator, { ...options, tenant, labels }, problems)
        if ("_tag" in cost) return Effect.fail(cost)
        if (isEmptying && state === "open") return Effect.succeed(Duration.infinity)
        return predictedWait({ cost, earlier: undefined, tenant }, ahead({ headStart, tenant }, false))
      }),
    info: Effect.map(limiter.usage, (rateLimiters) => ({
      modelId,
      state: state !== "open" ? state : isPaused ? "paused" : isEmptying ? "draining" : "open",
      capacity: config.capacity,
      depth: waiting.size,
      suspended: suspended.size,
      running: running.size,
      completed,
      failed,
      cancelled,
      rateLimiters,
      reservations: tokenLimits.flatMap(({ limit, meter }) => {
        const cost = limit.type === "budget" ? undefined : meter.cost({
          refund: limit.charging.refund && limit.algorithm !== "paced",
          bucket: limit.algorithm === "tokenBucket",
          period: limit.timePeriod!
        })
        return cost === undefined ? [] : [{ ...cost, type: limit.type }]
      }),
      provider: gate?.info(now())
    })),
    updateLimits: (rateLimiters) => update(() => settings.resolveUpdate(rateLimiters, config)),
    changeLimit: (change) => update(() => settings.resolveChange(change, config)),
    stop,
    close,
    shutdown: config.shutdown
  }

  unobserve = events.observers.open(
    { modelId, info: queue.info, responseTo: (entry) => response(entry as Entry, now()) },
    (next) => {
      observer = next
    }
  )
  yield* Effect.forkIn(supervised(dispatcher), scope, { startImmediately: true })
  if (limiter.changes !== undefined) {
    yield* Effect.forkIn(Stream.runForEach(limiter.changes, (change) => Effect.sync(() => heard(change))), scope)
  }
  yield* Effect.forkDetach(supervised(housekeeper), { startImmediately: true })
  return queue
})
