/**
 * What a run is made of and what was seen in it. Times are in steps: whole numbers of a small piece of virtual time.
 */
import type { ModelConfig, QueueManager, RateLimiter } from "effect-llm-queue"

/** Milliseconds in a step. */
export const step = 10

/** What somebody does: the caller, or a processor in its turn. */
export type Action =
  /** Submits; with `waits`, until the end. */
  | { readonly _tag: "Submit"; readonly request: Request; readonly waits: boolean }
  | { readonly _tag: "Await"; readonly id: string }
  | { readonly _tag: "Cancel"; readonly id: string }
  /** Interrupts the caller that submits the request. */
  | { readonly _tag: "Interrupt"; readonly id: string }
  | { readonly _tag: "Report"; readonly id: string; readonly usage: RateLimiter.Tokens }
  /** Closes, and perhaps does not wait for the end. */
  | { readonly _tag: "Close"; readonly what: Closing; readonly patience?: number | undefined }
  /** All at the same time. */
  | { readonly _tag: "Together"; readonly actions: ReadonlyArray<Action> }

type Closing =
  | { readonly _tag: "ShutdownAll"; readonly options: Required<ModelConfig.Shutdown> | undefined }
  | { readonly _tag: "Unregister" }
  | { readonly _tag: "CloseRegistration" }

/** A request, and what its processor does. */
export interface Request {
  readonly id: string
  readonly tokens: RateLimiter.Tokens
  readonly timeout?: number | undefined
  readonly processingTimeout?: number | undefined
  readonly priority?: ModelConfig.Priority | undefined
  /** How long the processor works before its actions. */
  readonly work: number
  /** Whether it can be interrupted. */
  readonly stubborn?: boolean | undefined
  readonly actions?: ReadonlyArray<Action> | undefined
  readonly end: "succeed" | "fail" | "die" | "throw" | "interrupt" | "never"
  readonly usage: RateLimiter.Tokens
}

export interface Plan {
  readonly limits: ReadonlyArray<Limit>
  readonly options: {
    readonly capacity?: number | undefined
    readonly strategy?: ModelConfig.Strategy | undefined
    readonly shutdown?: ModelConfig.Shutdown | undefined
  }
  /** Whether the model reads the usage from the result. */
  readonly settles: boolean
  /** What callers do, and when. */
  readonly callers: ReadonlyArray<{ readonly at: number; readonly action: Action }>
  /** What callers do when the processor of a request starts. */
  readonly onStart: ReadonlyArray<{ readonly id: string; readonly action: Action }>
}

export interface Limit {
  readonly type: RateLimiter.Type
  readonly limit: number
  /** Steps, the margin not included; 0 for `concurrent`. */
  readonly period: number
  readonly margin?: number | undefined
  readonly chargedAt?: RateLimiter.ChargedAt | undefined
}

/** Tag of an error, or `completed`, `accepted`, `interrupted`. */
export type Outcome = string

export type Event =
  & { readonly at: number }
  & (
    /** Somebody starts to wait for an answer. */
    | {
      readonly _tag: "Asked"
      readonly waiter: string
      readonly id: string
      readonly kind: "submit" | "accept" | "await"
      /** The request whose processor asks. */
      readonly parent: string | undefined
    }
    | { readonly _tag: "Heard"; readonly waiter: string; readonly outcome: Outcome }
    /** From the manager's own events, in their order. */
    | {
      readonly _tag: "Status"
      readonly id: string
      readonly status: "pending" | "processing" | "ended"
      readonly outcome: Outcome | undefined
      /** When it happened by the queue's own account. */
      readonly since: number
    }
    /** A processor. */
    | { readonly _tag: "Started"; readonly id: string }
    | { readonly _tag: "Stopped"; readonly id: string; readonly outcome: Outcome }
    | {
      readonly _tag: "Reported"
      readonly id: string
      readonly usage: RateLimiter.Tokens
      readonly answer: string
    }
    /** Asked for by a caller, or inside a processor. */
    | { readonly _tag: "Closing"; readonly closing: number; readonly deadline: number; readonly inside: boolean }
    | { readonly _tag: "Closed"; readonly closing: number }
    /** Nothing was ready to run. */
    | { readonly _tag: "Sample"; readonly info: QueueManager.QueueInfo; readonly last: boolean }
    | { readonly _tag: "Logged"; readonly message: string }
    /** The run was given up. */
    | { readonly _tag: "Hung"; readonly reason: string }
  )

export interface History {
  readonly plan: Plan
  /** Whether the clock moved on only when nothing else was ready, so that all times are exact. */
  readonly exact: boolean
  readonly events: ReadonlyArray<Event>
}

/** Every request of a plan, by id. */
export const requestsOf = (plan: Plan): ReadonlyMap<string, Request> => {
  const requests = new Map<string, Request>()
  const collect = (action: Action): void => {
    if (action._tag === "Together") action.actions.forEach(collect)
    else if (action._tag === "Submit") {
      requests.set(action.request.id, action.request)
      action.request.actions?.forEach(collect)
    }
  }
  for (const { action } of plan.callers) collect(action)
  for (const { action } of plan.onStart) collect(action)
  return requests
}
