/**
 * What is known about a request, from its acceptance until retention drops it: a union on `status`.
 *
 * @since 0.1.0
 */
import type * as Cause from "effect/Cause"
import type * as Duration from "effect/Duration"
import type * as QueueError from "./QueueError.ts"
import type * as QueueRequest from "./QueueRequest.ts"
import type * as RateLimiter from "./RateLimiter.ts"

/**
 * `pending` (waiting), `processing`, and one of the three ends: `completed`, `failed`, `cancelled`.
 *
 * @category models
 * @since 0.1.0
 */
export type RequestStatus = QueueResponse<unknown, unknown>["status"]

/**
 * An attempt that the provider refused.
 *
 * @category models
 * @since 0.1.0
 */
export interface RefusedAttempt {
  readonly kind: RateLimiter.RefusalKind
  /** Types of the limits that it may have been; empty when the provider did not say. */
  readonly limitTypes: ReadonlyArray<RateLimiter.Type>
  /** The provider's own words, shortened. */
  readonly message: string
  /** Time spent waiting before this attempt, since the submission or the attempt before. */
  readonly queueTime: Duration.Duration
  readonly processingTime: Duration.Duration
  /** What the provider asked to wait. */
  readonly retryAfter: Duration.Duration | undefined
}

/**
 * What every response holds.
 *
 * @category models
 * @since 0.1.0
 */
export interface Base {
  readonly requestId: string
  readonly modelId: string
  readonly tenant: string | undefined
  /** Wall-clock time of the submission, in milliseconds since 1970 UTC. */
  readonly createdAt: number
  /** Time spent waiting, from submission on, between attempts included; until now while it waits. */
  readonly queueTime: Duration.Duration
  /** Time spent being processed, all attempts together; until now while it runs. */
  readonly processingTime: Duration.Duration
  /** How often it was handed to its processor. */
  readonly attempts: number
  /** Of a stream: from the start of the attempt until its first element; `undefined` before that. */
  readonly timeToFirstElement: Duration.Duration | undefined
  /** Of a request with a deduplication key: the id of the call that it shares, which is a request of its own. */
  readonly sharedWith?: string | undefined
  /** Whether it was answered by the result of an earlier call, that was kept. */
  readonly isKept?: boolean | undefined
  /** The attempts that the provider refused and that were, or will be, followed by another one; in order. */
  readonly refusals: ReadonlyArray<RefusedAttempt>
  /** As reported by the model's `usage` or by `updateTokenUsage`; `undefined` until then. */
  readonly inputTokensUsed: number | undefined
  /** As reported by the model's `usage` or by `updateTokenUsage`; `undefined` until then. */
  readonly outputTokensUsed: number | undefined
}

/**
 * Accepted, not yet handed to its processor. It carries the types of the result, for `awaitCompletion`.
 *
 * @category models
 * @since 0.1.0
 */
export interface Pending<out A, out E> extends Base {
  readonly status: "pending"
  readonly "~A"?: (() => A) | undefined
  readonly "~E"?: (() => E) | undefined
}

/**
 * Handed to its processor.
 *
 * @category models
 * @since 0.1.0
 */
export interface Processing extends Base {
  readonly status: "processing"
}

/**
 * Ended with a result.
 *
 * @category models
 * @since 0.1.0
 */
export interface Completed<out A> extends Base {
  readonly status: "completed"
  readonly result: A
}

/**
 * Ended with a failure: the processor's own, or the queue's.
 *
 * @category models
 * @since 0.1.0
 */
export interface Failed<out E> extends Base {
  readonly status: "failed"
  readonly cause: Cause.Cause<E | QueueError.SubmitError>
}

/**
 * Cancelled before its end, by `cancelRequest` or by the interruption of its submitter.
 *
 * @category models
 * @since 0.1.0
 */
export interface Cancelled extends Base {
  readonly status: "cancelled"
}

/**
 * What is known about a request.
 *
 * @category models
 * @since 0.1.0
 */
export type QueueResponse<A, E> = Pending<A, E> | Processing | Completed<A> | Failed<E> | Cancelled

/**
 * A request that failed, kept with its parameters.
 *
 * @category models
 * @since 0.1.0
 */
export interface DeadLetter<in out P, in out A, in out E> {
  readonly requestId: string
  readonly request: QueueRequest.QueueRequest<P, A, E, boolean>
  readonly response: Failed<E>
  /** Wall-clock time of its end, in milliseconds since 1970 UTC. */
  readonly failedAt: number
}
