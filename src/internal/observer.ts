/** Who is told of what happens in queues, as numbers. It is told at once, in the queue's own steps: it must be quick. */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type * as QueueManager from "../QueueManager.ts"
import type * as RateLimiter from "../RateLimiter.ts"

/** A request whose processor has begun or ended. Milliseconds. */
export interface Attempt {
  readonly tenant: string | undefined
  readonly headStart: number
  readonly cost: RateLimiter.Cost
}

export interface QueueObserver {
  /** An attempt begins, after waiting so long since its submission or the attempt before. */
  readonly dispatched: (request: Attempt, waited: number) => void
  /** The first element of a stream is there, so long after its attempt began. */
  readonly firstElement: (request: Attempt, after: number) => void
  /** What a request has used is known. */
  readonly settled: (request: Attempt, usage: RateLimiter.Tokens) => void
  /** It has ended; after so long in its last attempt, if it had one. */
  readonly ended: (
    request: Attempt,
    status: "completed" | "failed" | "cancelled",
    processed: number | undefined
  ) => void
  /** The provider has refused it, and it is attempted again. */
  readonly retried: (request: Attempt) => void
  /** The queue has waited for so long because the first one in order was held back by that. */
  readonly blocked: (by: Reason, millis: number) => void
  /** There are other limits from now on. */
  readonly limitsChanged: () => void
  readonly closed: () => void
}

/** What keeps the first request in order back. */
export type Reason = RateLimiter.Type | "provider" | "paused"

export interface Observer {
  /** A queue begins, which can be asked how it is. */
  readonly open: (modelId: string, info: Effect.Effect<QueueManager.QueueInfo>) => QueueObserver
}

export const CurrentObserver = Context.Reference<Observer | undefined>("effect-llm-queue/internal/Observer", {
  defaultValue: () => undefined
})
