/**
 * Limits of a model, and the limiter that holds them.
 *
 * A limit is plain data: `rpm(500)` says "at most 500 requests in any minute". All limits of a model are decided
 * together: a request is charged to every one of them or to none.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as memory from "./internal/memoryLimiter.ts"

/**
 * What a limit counts.
 *
 * | type | counts | default period |
 * | --- | --- | --- |
 * | `rpm`, `rpd` | requests | a minute, a day |
 * | `tpm`, `tpd` | input and output tokens together | a minute, a day |
 * | `itpm` | input tokens | a minute |
 * | `otpm` | output tokens | a minute |
 * | `concurrent` | requests being processed at one time | none |
 *
 * @category models
 * @since 0.1.0
 */
export type Type = "rpm" | "rpd" | "tpm" | "tpd" | "itpm" | "otpm" | "concurrent"

/**
 * The meaning of `rateLimit` in the short form of a model's configuration.
 *
 * @category models
 * @since 0.1.0
 */
export type Mode = "requests_per_period" | "concurrent_requests"

/**
 * When a charge gets its date, which is the instant from which its window counts.
 *
 * - `dispatch`: when the request is handed to its processor (for servers that count on arrival)
 * - `completion`: when the processor has ended (for servers that debit actual usage at the end)
 * - `production`: when the usage is reported, during processing or at its end (for servers that count output
 *   as it is produced)
 *
 * Until it has a date the reservation is held: it counts, and no passing of time frees it.
 *
 * @category models
 * @since 0.1.0
 */
export type ChargedAt = "dispatch" | "completion" | "production"

/**
 * One limit of a model. Build it with `rpm`, `tpm`, `concurrent` …, or with `make`; it is checked when the model is
 * registered.
 *
 * @category models
 * @since 0.1.0
 */
export interface Config {
  readonly type: Type
  /** Whole number of requests or tokens, at least 1. */
  readonly limit: number
  /** Length of the sliding window. Not for `concurrent`. */
  readonly timePeriod?: Duration.Input | undefined
  /** Time added to the period, to allow for the spread of network delay. Default 0. Not for `concurrent`. */
  readonly margin?: Duration.Input | undefined
  /** Default `dispatch`. Not for `concurrent`. */
  readonly chargedAt?: ChargedAt | undefined
}

/**
 * Options of the constructors of windowed limits.
 *
 * @category models
 * @since 0.1.0
 */
export interface WindowOptions {
  readonly timePeriod?: Duration.Input | undefined
  readonly margin?: Duration.Input | undefined
  readonly chargedAt?: ChargedAt | undefined
}

/**
 * Makes a limit of any type.
 *
 * **Example** (Thirty requests in any ten seconds)
 *
 * ```ts
 * import { RateLimiter } from "effect-llm-queue"
 *
 * RateLimiter.make({ type: "rpm", limit: 30, timePeriod: "10 seconds", margin: "250 millis" })
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (options: Config): Config => options

const windowed = (type: Type) => (limit: number, options?: WindowOptions): Config => ({ ...options, type, limit })

/**
 * Requests per minute, or per `timePeriod`.
 *
 * @category constructors
 * @since 0.1.0
 */
export const rpm: (limit: number, options?: WindowOptions) => Config = windowed("rpm")

/**
 * Requests per day: any 24 hours, or any `timePeriod`.
 *
 * @category constructors
 * @since 0.1.0
 */
export const rpd: (limit: number, options?: WindowOptions) => Config = windowed("rpd")

/**
 * Input and output tokens per minute, or per `timePeriod`.
 *
 * @category constructors
 * @since 0.1.0
 */
export const tpm: (limit: number, options?: WindowOptions) => Config = windowed("tpm")

/**
 * Input and output tokens per day: any 24 hours, or any `timePeriod`.
 *
 * @category constructors
 * @since 0.1.0
 */
export const tpd: (limit: number, options?: WindowOptions) => Config = windowed("tpd")

/**
 * Input tokens per minute, or per `timePeriod`.
 *
 * @category constructors
 * @since 0.1.0
 */
export const itpm: (limit: number, options?: WindowOptions) => Config = windowed("itpm")

/**
 * Output tokens per minute, or per `timePeriod`.
 *
 * @category constructors
 * @since 0.1.0
 */
export const otpm: (limit: number, options?: WindowOptions) => Config = windowed("otpm")

/**
 * Requests being processed at one time. A permit is taken when a request is dispatched and comes back when the fiber
 * of its processor has ended, however it ends.
 *
 * @category constructors
 * @since 0.1.0
 */
export const concurrent = (limit: number): Config => ({ type: "concurrent", limit })

/**
 * Tokens of one request.
 *
 * @category models
 * @since 0.1.0
 */
export interface Tokens {
  readonly inputTokens: number
  readonly outputTokens: number
}

/**
 * A limit with every default filled in and every duration in milliseconds.
 *
 * @category models
 * @since 0.1.0
 */
export interface Limit {
  readonly type: Type
  readonly limit: number
  /** Milliseconds, without the margin; `undefined` for `concurrent`. */
  readonly timePeriod: number | undefined
  /** Milliseconds. */
  readonly margin: number
  readonly chargedAt: ChargedAt
}

/**
 * The state of one limit.
 *
 * @category models
 * @since 0.1.0
 */
export interface Usage {
  readonly type: Type
  readonly limit: number
  /** `undefined` for `concurrent`. */
  readonly timePeriod: Duration.Duration | undefined
  readonly margin: Duration.Duration
  /** Net charges in the window, reservations included; permits taken for `concurrent`. Can exceed the limit by debt. */
  readonly used: number
  /** `limit − used`, at least 0. */
  readonly available: number
  /**
   * Zero when something is available; else the time until something is, if nothing but time passes; `undefined`
   * when no passing of time frees it (permits, and reservations that have no date yet).
   */
  readonly timeUntilNextCapacity: Duration.Duration | undefined
}

/**
 * What an admission charged: the handle by which it is settled, completed or given back.
 *
 * @category models
 * @since 0.1.0
 */
export interface Reservation {
  readonly "~effect-llm-queue/Reservation": true
}

/**
 * The answer to "admit these charges now, or tell me when".
 *
 * @category models
 * @since 0.1.0
 */
export type Admission =
  | { readonly _tag: "Admitted"; readonly reservation: Reservation }
  | {
    readonly _tag: "Blocked"
    /** A limit that does not fit. `concurrent` is named only when it is what blocks. */
    readonly by: Type
    /** Milliseconds until all windows fit if nothing but time passes; `Infinity` when only an event can free them. */
    readonly wait: number
  }

/**
 * The answer to a usage report. `alreadySettled`: a report was taken before, and this one changed nothing.
 * `expired`: the charge has left its longest window.
 *
 * @category models
 * @since 0.1.0
 */
export type Settlement = "settled" | "alreadySettled" | "expired"

/**
 * The limiter of one model: all of its limits, decided in one step.
 *
 * @category models
 * @since 0.1.0
 */
export interface Limiter {
  /**
   * Charges every limit, or none and says when. With `permit: false` the request runs on a permit that its caller
   * already holds: the concurrency limit is not asked.
   */
  readonly admit: (cost: Tokens, permit: boolean) => Effect.Effect<Admission>
  /** Replaces the estimate of a reservation by the actual usage; once. */
  readonly settle: (reservation: Reservation, usage: Tokens) => Effect.Effect<Settlement>
  /** The processor has ended: dates what was held until now. */
  readonly complete: (reservation: Reservation) => Effect.Effect<void>
  /** The request was never dispatched: takes the whole charge back, its permit included. */
  readonly giveBack: (reservation: Reservation, permit: boolean) => Effect.Effect<void>
  /** Gives back one permit of the concurrency limit. */
  readonly releasePermit: Effect.Effect<void>
  /** The state of every limit, in the order of the configuration. */
  readonly usage: Effect.Effect<ReadonlyArray<Usage>>
}

/**
 * Makes the limiter of a model when the model is registered. The default keeps everything in the memory of the
 * process; provide another one to `QueueManager.layer` to keep it elsewhere.
 *
 * @category services
 * @since 0.1.0
 */
export const RateLimiter = Context.Reference<{
  readonly make: (modelId: string, limits: ReadonlyArray<Limit>) => Effect.Effect<Limiter, never, Scope.Scope>
}>("effect-llm-queue/RateLimiter", {
  defaultValue: () => ({ make: (_modelId, limits) => memory.make(limits) })
})
