import type * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import type * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import type * as Fiber from "effect/Fiber"
import type * as Pull from "effect/Pull"
import type * as ModelConfig from "../ModelConfig.ts"
import type * as QueueError from "../QueueError.ts"
import type * as QueueRequest from "../QueueRequest.ts"
import type * as QueueResponse from "../QueueResponse.ts"
import type * as RateLimiter from "../RateLimiter.ts"
import type { Estimated } from "./estimate.ts"
import type { Node } from "./heap.ts"
import type { Lane } from "./lane.ts"
import type { ModelQueue } from "./modelQueue.ts"
import type { RequestContext } from "./requestContext.ts"
import type { Trace } from "./tracing.ts"

export type AnyModel = ModelConfig.Any
// oxlint-disable-next-line typescript/no-explicit-any -- the requests of a queue are untyped inside it
export type AnyRequest = QueueRequest.QueueRequest<any, any, any, boolean>

/** A failure of some processor: its type is known where its model is. */
export interface ProcessorFailure {
  readonly "~effect-llm-queue/ProcessorFailure": true
}

/** What a request can fail with. */
export type Failure = ProcessorFailure | QueueError.SubmitError

/** How a request ended. */
export type Outcome =
  | { readonly status: "completed"; readonly result: unknown }
  | { readonly status: "failed"; readonly cause: Cause.Cause<Failure> }
  | { readonly status: "cancelled" }

/** The next step of a retry schedule: a delay, or that there is none. */
export type RetryStep = (
  now: number,
  refusal: RateLimiter.Refusal
) => Pull.Pull<[unknown, Duration.Duration], never, unknown>

/** Attempts of a request that were refused, and its wait for the next one. */
export interface Earlier {
  /** The latest ones. */
  readonly refusals: ReadonlyArray<QueueResponse.RefusedAttempt>
  /** Milliseconds of waiting before them, and of their processing. */
  readonly waited: number
  readonly processed: number
  /** When the last of them ended. */
  readonly since: number
  /** Before this time there is not another one. */
  readonly notBefore: number
  delayed: Node<Entry> | undefined
}

/**
 * A request inside its queue.
 *
 * `suspended` waits for room, `waiting` was accepted and counts against the capacity, `dispatched` was handed to its
 * processor. An entry ends once, when `outcome` is set; a dispatched one can end before its processor has.
 */
export interface Entry {
  readonly queue: ModelQueue
  /** Until the processor has ended. */
  request: AnyRequest | undefined
  readonly id: string
  /** Estimated again when the limits change before it is dispatched. */
  cost: Estimated
  /** Wall clock. */
  readonly createdAt: number
  /** Monotonic, as all times below. */
  readonly submittedAt: number
  headStart: number
  readonly tenant: string | undefined
  /** How many that came later went before it, while it was the first. */
  passed: number
  readonly timeout: number
  /** Whether that is until its deadline. */
  readonly hasDeadline: boolean
  readonly processingTimeout: number
  /** For what its processor submits. */
  context: RequestContext
  /** Until its processor has ended. */
  trace: Trace | undefined
  /** Requests, of any queue, whose processors wait for its end; each as often as it does. */
  awaitedBy: ReadonlyArray<Entry>
  /** What its processor waits for. */
  awaits: Set<Entry> | undefined
  /** Some request that the same queue processes waits for it, directly or over others. */
  nested: boolean
  state: "suspended" | "waiting" | "dispatched"
  /** How often it was dispatched. */
  attempts: number
  /** When the first element of its stream was there. */
  firstElementAt: number | undefined
  /** What attempts before this one have left, if there were any. */
  earlier: Earlier | undefined
  /** Of the current attempt. */
  dispatchedAt: number | undefined
  /** Where the retry schedule stands. */
  retry: RetryStep | undefined
  endedAt: number | undefined
  outcome: Outcome | undefined
  /** What its processor ended in. The limiter is told before the outcome is, and nothing that comes between replaces it. */
  produced: Outcome | undefined
  usage: RateLimiter.Tokens | undefined
  reservation: RateLimiter.Reservation | undefined
  fiber: Fiber.Fiber<unknown, unknown> | undefined
  /** Tells its submitter that it has ended, if that waits. */
  ended: (() => void) | undefined
  /** Tells its submitter that it has left `suspended`, by acceptance or by its end, if that waits. */
  accepted: (() => void) | undefined
  /** Completed when the entry ends; made when somebody else waits for it. */
  done: Deferred.Deferred<Entry> | undefined
  /** Where it waits for its turn, and for others of its lane: who is ahead and behind, or its place among the early ones. */
  lane: Lane | undefined
  ahead: Entry | undefined
  behind: Entry | undefined
  early: Node<Entry> | undefined
  /** Its place in the order of acceptance. */
  sequence: number | undefined
  deadline: Node<Entry> | undefined
  previous: Entry | undefined
  next: Entry | undefined
  /** Whether it holds a permit of the concurrency limit itself; else it may run on its `lender`'s. */
  holdsPermit: boolean
  lender: Entry | undefined
  borrower: Entry | undefined
  /** Among those that are being processed. */
  place: number
}

/** The request whose processor the current fiber belongs to. */
export const CurrentEntry = Context.Reference<Entry | undefined>("effect-llm-queue/internal/CurrentEntry", {
  defaultValue: () => undefined
})

/** In place of an empty list in every entry. */
export const none: ReadonlyArray<never> = []

export const beginWaiting = (by: Entry, entry: Entry): void => {
  if (entry.awaitedBy === none) entry.awaitedBy = [by]
  else (entry.awaitedBy as Array<Entry>).push(by)
  by.awaits ??= new Set()
  by.awaits.add(entry)
}

/** Whether it has waited. */
export const stopWaiting = (by: Entry, entry: Entry): boolean => {
  const index = entry.awaitedBy.indexOf(by)
  if (index < 0) return false
  const waiters = entry.awaitedBy as Array<Entry>
  waiters.splice(index, 1)
  if (!entry.awaitedBy.includes(by)) by.awaits?.delete(entry)
  return true
}

/** Nobody waits for it any longer. Says who has. */
export const releaseWaiters = (entry: Entry): ReadonlyArray<Entry> => {
  const waiters = entry.awaitedBy
  entry.awaitedBy = none
  for (const by of waiters) by.awaits?.delete(entry)
  return waiters
}

/** Requests, and those whose processors wait for their ends, directly or over others: as many as are asked for. */
export const withWaiters = function*(entries: Iterable<Entry>): Generator<Entry, void> {
  const found = new Set(entries)
  // What is added meanwhile is visited, too.
  for (const each of found) {
    yield each
    for (const waiter of each.awaitedBy) found.add(waiter)
  }
}

/** Whether a request is another one, or waits for it, directly or over others. */
export const isOrAwaits = (entry: Entry, other: Entry): boolean => {
  for (const each of withWaiters([other])) if (each === entry) return true
  return false
}

/**
 * All that a request needs to go on, itself included, when none of it can: each is processed and waits for others, or
 * waits for a permit that those have. Else `undefined`.
 */
export const deadlock = (entry: Entry): ReadonlySet<Entry> | undefined => {
  const found = new Set<Entry>([entry])
  for (const each of found) {
    const needed = each.state === "dispatched" ? each.awaits : each.queue.blockedBy(each)
    if (needed === undefined || needed.size === 0) return undefined
    for (const other of needed) {
      // Mostly the first one is at work.
      if (other.state === "dispatched" && (other.awaits === undefined || other.awaits.size === 0)) return undefined
      found.add(other)
    }
  }
  return found
}

/** First in, first out, with removal from the middle in O(1). An entry is in one list at most. */
export class EntryList {
  first: Entry | undefined
  private last: Entry | undefined
  size = 0

  add(entry: Entry): void {
    entry.previous = this.last
    entry.next = undefined
    if (this.last === undefined) this.first = entry
    else this.last.next = entry
    this.last = entry
    this.size++
  }

  remove(entry: Entry): void {
    if (entry.previous === undefined) this.first = entry.next
    else entry.previous.next = entry.next
    if (entry.next === undefined) this.last = entry.previous
    else entry.next.previous = entry.previous
    entry.previous = entry.next = undefined
    this.size--
  }

  /** To be gone through at once: not while entries come and go. */
  *[Symbol.iterator](): Iterator<Entry> {
    for (let entry = this.first; entry !== undefined; entry = entry.next) yield entry
  }
}

/** In no order. An entry is in one of these at most. */
export class EntrySet {
  private readonly entries: Array<Entry> = []

  get size(): number {
    return this.entries.length
  }

  add(entry: Entry): void {
    entry.place = this.entries.length
    this.entries.push(entry)
  }

  has(entry: Entry): boolean {
    return this.entries[entry.place] === entry
  }

  delete(entry: Entry): void {
    if (!this.has(entry)) return
    const last = this.entries.pop()!
    if (last === entry) return
    this.entries[entry.place] = last
    last.place = entry.place
  }

  [Symbol.iterator](): Iterator<Entry> {
    return this.entries[Symbol.iterator]()
  }
}

/** Milliseconds spent waiting, until now or its end. */
export const waitingTime = (entry: Entry, until: number): number =>
  (entry.earlier?.waited ?? 0) + (entry.dispatchedAt ?? until) - (entry.earlier?.since ?? entry.submittedAt)

/** Milliseconds spent being processed, until now or its end. */
export const processingTime = (entry: Entry, until: number): number =>
  (entry.earlier?.processed ?? 0) + (entry.dispatchedAt === undefined ? 0 : until - entry.dispatchedAt)

const duration = (millis: number) => millis === 0 ? Duration.zero : Duration.millis(millis)

/** What the outside may know of an entry. */
export type Snapshot = QueueResponse.QueueResponse<unknown, ProcessorFailure>

export const baseOf = (entry: Entry, now: number): QueueResponse.Base => {
  const until = entry.endedAt ?? now
  return {
    requestId: entry.id,
    modelId: entry.queue.modelId,
    tenant: entry.tenant,
    createdAt: entry.createdAt,
    queueTime: duration(waitingTime(entry, until)),
    processingTime: duration(processingTime(entry, until)),
    attempts: entry.attempts,
    timeToFirstElement: entry.firstElementAt === undefined || entry.dispatchedAt === undefined
      ? undefined
      : Duration.millis(entry.firstElementAt - entry.dispatchedAt),
    refusals: entry.earlier?.refusals ?? none,
    inputTokensUsed: entry.usage?.inputTokens,
    outputTokensUsed: entry.usage?.outputTokens
  }
}

export const response = (entry: Entry, now: number): Snapshot => {
  const base = baseOf(entry, now)
  const { outcome } = entry
  if (outcome === undefined) {
    return entry.state === "dispatched" ? { ...base, status: "processing" } : { ...base, status: "pending" }
  }
  switch (outcome.status) {
    case "completed":
      return { ...base, status: "completed", result: outcome.result }
    case "failed":
      return { ...base, status: "failed", cause: outcome.cause }
    case "cancelled":
      return { ...base, status: "cancelled" }
  }
}
