/** What is asked of a queue, and what is known of it. */
import { Cause, Exit } from "effect"
import type { QueueResponse } from "effect-llm-queue"
import type { Reference } from "./reference.ts"

export interface Tokens {
  readonly inputTokens: number
  readonly outputTokens: number
}

/** What a request, or the region of a program, says of itself. Times are milliseconds. */
export interface Context {
  readonly headStart?: number
  readonly tenant?: string
  readonly labels?: Readonly<Record<string, string>>
  /** An instant. */
  readonly deadline?: number
}

/** How something is submitted. */
export interface Submission {
  readonly own: Omit<Context, "deadline"> & {
    readonly timeout?: number
    readonly processingTimeout?: number
    readonly timeToDeadline?: number
    readonly key?: string
    /** Of a stream no more than the first element is read. */
    readonly leaves?: boolean
  }
  readonly region: Omit<Context, "deadline"> & { readonly timeToDeadline?: number }
}

export type Step =
  | { readonly do: "sleep"; readonly millis: number }
  | {
    readonly do: "submit"
    readonly queue: string
    readonly waits: boolean
    readonly plan: Plan
    readonly as: Submission
  }
  | { readonly do: "submitAndAwait"; readonly queue: string; readonly plan: Plan; readonly as: Submission }
  | { readonly do: "report"; readonly tokens: Tokens }
  | { readonly do: "shutdown" }

/** What the processor of a request will do. */
export interface Plan {
  readonly steps: ReadonlyArray<Step>
  readonly end: "succeed" | "fail" | "die" | "interrupt" | "throw" | "never" | "stubborn"
  readonly usage: Tokens
}

export interface Limits {
  readonly concurrent: number | undefined
  readonly requests: number | undefined
  readonly tokens: number | undefined
  /** Money, as so many tokens. */
  readonly budget: { readonly tokens: number; readonly fails: boolean } | undefined
  readonly period: number
}

/** What `a` has that others have not, and what all others have beside the model's limits. */
export interface Tenants {
  readonly weight: number
  readonly guaranteed: number
  readonly own: Partial<Pick<Limits, "concurrent" | "requests" | "tokens">> | undefined
}

export interface Options {
  /** Others after an update. */
  limits: Limits
  readonly capacity: number
  readonly strategy: "suspend" | "reject" | "dropOldest"
  readonly retainCount: number
  readonly retainAge: number
  readonly readsUsage: boolean
  /** Of requests that say nothing. */
  readonly headStart: number
  readonly letterCount: number
  readonly letterAge: number
  readonly tenants: Tenants | undefined
  readonly bypass: number
  readonly failEarly: boolean
  /** How long results of calls are kept. */
  readonly keep: number
  /** Its processor gives streams. */
  readonly streams: boolean
}

/** What is submitted. */
export interface Asked {
  readonly id: string
  readonly plan: Plan
  readonly waits: boolean
  readonly submittedAt: number
  /** What it has from itself, its region and the request whose processor submits it. Its own children have it too. */
  context: Context
  /** Its own, the deadline not included. */
  readonly ownTimeout: number
  readonly processingTimeout: number
  readonly tokens: Tokens
  readonly malformed: boolean
  readonly leaves: boolean
  readonly parent: Request | undefined
}

export interface Request extends Asked {
  /** Of one that shares a call. */
  readonly key: string | undefined
  call: Request | undefined
  /** Of a call. */
  readonly sharers: Array<Request> | undefined
  readonly timeout: number
  readonly reference: Reference
  /** Waits for its result, or is waited for, inside a processor of its own queue. */
  nested: boolean
  /** Then it may run on the permit of what has waited for it. */
  onceNested: boolean
  /** How long it had to wait as things stood when it was submitted. */
  readonly expected: { readonly least: number; readonly most: number } | undefined
  /** How many that came later went before it. */
  passed: number
  /** When nobody has waited for it any longer. */
  leftAt: number
  readonly whileClosing: boolean
  readonly whileDraining: boolean
  status: "submitted" | "refused" | QueueResponse.RequestStatus
  /** Position in the order of acceptance. */
  accepted: number
  dispatchedAt: number
  endedAt: number
  ending: QueueResponse.QueueResponse<unknown, unknown> | undefined
  /** Somebody asked for its cancellation, or interrupted who submitted it. */
  cancelAsked: boolean
  /** The queue has said that it is cancelled. */
  isCancelled: boolean
  /** Its submitter has heard that it failed. */
  hasFailed: boolean
  /** Its submitter was interrupted before it had an answer. */
  left: boolean
  starts: number
  alive: boolean
  exit: Exit.Exit<unknown, unknown> | undefined
  /** What its processor waits for. */
  waitsFor: Request | undefined
  onceWaited: boolean
  startedAt: number
  acceptedAt: number
  /** Its usage, as far as the queue took it, and when. */
  usage: Tokens | undefined
  reportedAt: number
}

export const objection = (message: string): never => {
  throw new Error(message)
}

export const must = (condition: boolean, message: () => string): void => {
  if (!condition) objection(message())
}

export const errorOf = (exit: Exit.Exit<unknown, unknown>): unknown => {
  if (Exit.isSuccess(exit)) return undefined
  const fail = exit.cause.reasons.find(Cause.isFailReason)
  return fail === undefined ? Cause.squash(exit.cause) : fail.error
}

export const tagOf = (error: unknown): unknown =>
  typeof error === "object" && error !== null && "_tag" in error ? error._tag : error

export const isEnd = (status: Request["status"]): status is "completed" | "failed" | "cancelled" =>
  status === "completed" || status === "failed" || status === "cancelled"

export const isActive = ({ status }: Request): boolean => !isEnd(status) && status !== "refused"

/** What is nearer goes first; labels add up, and the earliest deadline holds. */
export const within = (outer: Context, inner: Context): Context => {
  const deadline = Math.min(outer.deadline ?? Number.POSITIVE_INFINITY, inner.deadline ?? Number.POSITIVE_INFINITY)
  return {
    ...outer,
    ...inner,
    ...(outer.labels === undefined && inner.labels === undefined
      ? {}
      : { labels: { ...outer.labels, ...inner.labels } }),
    ...(Number.isFinite(deadline) ? { deadline } : {})
  }
}

/** What `cancelRequests` is asked for. */
export interface Filter {
  readonly ids?: ReadonlyArray<string>
  readonly tenant?: string
  readonly labels?: Readonly<Record<string, string>>
  readonly headStart?: number
  readonly status?: "pending" | "processing"
  readonly olderThan?: number
}

export const isBelow = (request: Request, ancestor: Request): boolean => {
  for (let above = request.parent; above !== undefined; above = above.parent) if (above === ancestor) return true
  return false
}

/** Whether a queue processes a request, or one that waits for it. */
export const isOf = (reference: Reference, request: Request | undefined): boolean => {
  for (let waiter = request; waiter !== undefined;) {
    if (waiter.reference === reference && waiter.alive) return true
    const { parent, status }: Request = waiter
    waiter = parent?.waitsFor === waiter && !isEnd(status) ? parent : undefined
  }
  return false
}
