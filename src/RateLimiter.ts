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
import type * as Stream from "effect/Stream"
import * as memory from "./internal/memoryLimiter.ts"
import type * as QueueError from "./QueueError.ts"

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
 * | `budget` | money, by the prices of tokens | a day |
 *
 * @category models
 * @since 0.1.0
 */
export type Type = "rpm" | "rpd" | "tpm" | "tpd" | "itpm" | "otpm" | "concurrent" | "budget"

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
 * How a provider counts a windowed limit, and so how requests are let through.
 *
 * | algorithm | lets through | safe with servers that use | costs |
 * | --- | --- | --- | --- |
 * | `slidingWindow` | `limit` in any period, at once if need be | sliding windows, fixed windows of any phase, buckets of a whole limit | `margin / (period + margin)` of the throughput |
 * | `tokenBucket` | what has been refilled at `limit / period`, and after idleness up to `burst` at once | buckets of at least `burst` | a pause of one margin after a full burst |
 * | `fixedWindow` | `limit` in each window of the wall clock | windows aligned to the same clock | nothing but the margin at both ends of a window, which is the largest delay and clock difference here |
 * | `paced` | as `slidingWindow`, and never more than `burst` at once | all of the above, and buckets of a second's refill if that is enough for the largest request and the margin's refill | as `slidingWindow`; no bursts; reservations are paced, whatever is given back |
 *
 * @category models
 * @since 0.1.0
 */
export type Algorithm = "slidingWindow" | "tokenBucket" | "fixedWindow" | "paced"

/**
 * What a provider charges a limit for a request, and what it corrects when the real usage is known.
 *
 * @category models
 * @since 0.1.0
 */
export interface Charging {
  /**
   * The output tokens that are reserved: those the request is `"expected"` to produce (the default), or the `"maximum"`
   * it may produce, for providers that count `max_tokens` on arrival.
   */
  readonly output?: "expected" | "maximum" | undefined
  /** Whether a limit on all tokens counts the sum of input and output (the default), or the larger of the two. */
  readonly combine?: "sum" | "maximum" | undefined
  /** Charge for each input token. Default 1; 0 when a limit on tokens does not count them. */
  readonly inputWeight?: number | undefined
  /** Charge for each output token. Default 1; 0 when a limit on tokens does not count them. */
  readonly outputWeight?: number | undefined
  /** Whether the provider gives back what was reserved and not used. Default `true`. */
  readonly refund?: boolean | undefined
  /** Whether input tokens that the provider read from its cache count. Default `true`. */
  readonly cachedInput?: boolean | undefined
  /** Whether an attempt that the provider refused counts as a request. Default `false`. Its tokens never do. */
  readonly refused?: boolean | undefined
}

/**
 * One limit of a model. Build it with `rpm`, `tpm`, `concurrent` …, or with `make`; it is checked when the model is
 * registered.
 *
 * @category models
 * @since 0.1.0
 */
export interface Config {
  readonly type: Type
  /** Whole number of requests or tokens, at least 1. Of a `budget`: an amount of money, more than 0. */
  readonly limit: number
  /** Length of the period. Not for `concurrent`. `Duration.infinity`, for a `budget` only: all of the registration. */
  readonly timePeriod?: Duration.Input | undefined
  /**
   * The spread of the network delay that is allowed for; for `fixedWindow`, the largest delay and the largest difference
   * of the clocks. Default that of the model's provider, else 0. Not for `concurrent`.
   */
  readonly margin?: Duration.Input | undefined
  /** Default that of the model's provider, else `dispatch`. Not for `concurrent`. */
  readonly chargedAt?: ChargedAt | undefined
  /** Default that of the model's provider, else `slidingWindow`. Not for `concurrent`. */
  readonly algorithm?: Algorithm | undefined
  /**
   * Most that goes through at once after idleness, in requests or tokens. For `tokenBucket`: what the provider's bucket
   * holds, by default the whole limit. For `paced`: by default one second's refill less the margin's, and at least 1 and
   * the largest request so far. A request above it is let through when it is full, and delays those behind it.
   */
  readonly burst?: number | undefined
  /** For `tokenBucket`: refill time kept back from the burst, to absorb what others use unseen. Default 0. */
  readonly headroom?: Duration.Input | undefined
  /** The provider also enforces the limit's share of every window of this length, such as 10 seconds. */
  readonly quantum?: Duration.Input | undefined
  /** For `fixedWindow`: the time zone whose midnight windows are aligned to. Default `UTC`. */
  readonly timeZone?: string | undefined
  /** Whether nothing is known about earlier use at the start: no burst until the provider or one period has told. */
  readonly coldStart?: boolean | undefined
  readonly charging?: Charging | undefined
  /** For `budget`, which needs it. */
  readonly price?: Price | undefined
  /** For `budget`. Default `"fail"`. */
  readonly onExceeded?: OnExceeded | undefined
}

/**
 * What a million tokens cost, in any currency: the one that the budget is given in.
 *
 * @category models
 * @since 0.1.0
 */
export interface Price {
  readonly input: number
  readonly output: number
  /** Of input tokens that the provider read from its cache. Default as `input`. */
  readonly cachedInput?: number | undefined
}

/**
 * What happens to a request that costs more than is left of a budget: it fails with `BudgetExceeded` (`"fail"`), or it
 * waits like for any other limit, and those behind it do (`"wait"`).
 *
 * @category models
 * @since 0.1.0
 */
export type OnExceeded = "fail" | "wait"

/**
 * Options of a budget.
 *
 * @category models
 * @since 0.1.0
 */
export interface BudgetOptions {
  /** Per million tokens. */
  readonly price: Price
  /** Any time of this length; `Duration.infinity` for all of the registration. Default a day. */
  readonly timePeriod?: Duration.Input | undefined
  /** `"slidingWindow"` (the default), or `"fixedWindow"` for calendar days, or parts of a day, in the `timeZone`. */
  readonly algorithm?: "slidingWindow" | "fixedWindow" | undefined
  readonly timeZone?: string | undefined
  readonly chargedAt?: ChargedAt | undefined
  readonly onExceeded?: OnExceeded | undefined
  /**
   * `{ output: "maximum" }` reserves the price of `maxOutputTokens`, so that no request can cost more than it reserves.
   * `{ refused: true }` is for providers that want money for what they refuse. The other fields are not for budgets.
   */
  readonly charging?: Pick<Charging, "output" | "refused"> | undefined
}

/**
 * Options of the constructors of windowed limits.
 *
 * @category models
 * @since 0.1.0
 */
export interface WindowOptions extends Omit<Config, "type" | "limit" | "price" | "onExceeded"> {}

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
 * Money per day, or per `timePeriod`, by the prices of tokens.
 *
 * **Details**
 *
 * A budget is a limit like any other: the price of the tokens that a request reserves is charged in the same step as all
 * other limits, and the price of what it used replaces it. So what is spent goes over the budget by no more than the
 * running requests cost beyond their reservations. An attempt that the provider refused costs nothing.
 *
 * A request that costs more than is left fails with `BudgetExceeded`: when it is submitted, or at its turn, when what was
 * left then is gone. Requests that wait reserve nothing. One that costs more than the whole budget is `RequestTooLarge`.
 *
 * **Example** (Five dollars a day, New York's days)
 *
 * ```ts
 * import { RateLimiter } from "effect-llm-queue"
 *
 * RateLimiter.budget(5, {
 *   price: { input: 2.5, cachedInput: 1.25, output: 10 },
 *   algorithm: "fixedWindow",
 *   timeZone: "America/New_York"
 * })
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const budget = (amount: number, options: BudgetOptions): Config => ({
  ...options,
  type: "budget",
  limit: amount
})

/**
 * Tokens of one request.
 *
 * @category models
 * @since 0.1.0
 */
export interface Tokens {
  readonly inputTokens: number
  readonly outputTokens: number
  /** Those of the input tokens that the provider read from its cache. Default 0. */
  readonly cachedInputTokens?: number | undefined
}

/**
 * What a request is charged until its usage is known.
 *
 * @category models
 * @since 0.1.0
 */
export interface Cost extends Tokens {
  /** The most output tokens it may produce; those expected when left out. */
  readonly maxOutputTokens?: number | undefined
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
  readonly algorithm: Algorithm
  readonly burst: number | undefined
  /** Milliseconds. */
  readonly headroom: number
  /** Milliseconds. */
  readonly quantum: number | undefined
  readonly timeZone: string
  readonly coldStart: boolean
  readonly charging: { readonly [K in keyof Charging]-?: Exclude<Charging[K], undefined> }
  /** Per million tokens, of a budget. */
  readonly price: { readonly [K in keyof Price]-?: Exclude<Price[K], undefined> } | undefined
  readonly onExceeded: OnExceeded
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
  /** What is enforced now: less than `limit` after refusals that cannot be explained, or when the provider says so. */
  readonly enforced: number
  /** Time for which the provider asked to send nothing that this limit counts; `undefined` when it did not. */
  readonly pausedFor: Duration.Duration | undefined
  /** Net charges in the window, reservations included; permits taken for `concurrent`. Can exceed the limit by debt. */
  readonly used: number
  /** `enforced − used`, at least 0. */
  readonly available: number
  /**
   * Zero when something is available; else the time until something is, if nothing but time passes; `undefined`
   * when no passing of time frees it (permits, and reservations that have no date yet).
   */
  readonly timeUntilNextCapacity: Duration.Duration | undefined
}

/**
 * What a provider said about one limit in the headers of a response.
 *
 * @category models
 * @since 0.1.0
 */
export interface Observation {
  /** The limits it may be about. When there are several, the period that `reset` implies decides. */
  readonly types: ReadonlyArray<Type>
  readonly limit: number | undefined
  /** What was left after the charge of the request; negative when it is overdrawn. */
  readonly remaining: number | undefined
  /** `remaining` is a multiple of this, rounded to the nearest one. 1 when it is exact. */
  readonly rounding: number
  /** Milliseconds until the limit is full again. */
  readonly reset: number | undefined
  /**
   * When that was so: at the `"arrival"` of the request (the default), or when its `"response"` was sent, others that
   * arrived meanwhile included.
   */
  readonly asOf?: "arrival" | "response" | undefined
}

/**
 * Why a provider did not answer a request.
 *
 * | kind | meaning | what the queue does |
 * | --- | --- | --- |
 * | `rate` | a rate limit | pauses that limit, and lets the request through again when it fits |
 * | `ramp` | traffic grew too fast | slows all down, and lets the request through again |
 * | `overload` | the provider has no capacity | fewer at one time, a circuit breaker, and another attempt later |
 * | `transient` | a fault that may pass | a circuit breaker, and another attempt later |
 * | `quota` | money, or a spending limit | stops the queue: no attempt can succeed |
 * | `tooLarge` | the request can never fit | nothing: the failure is the caller's |
 * | `auth` | the key is not valid or not allowed | nothing: the failure is the caller's |
 *
 * @category models
 * @since 0.1.0
 */
export type RefusalKind = "rate" | "ramp" | "overload" | "transient" | "quota" | "tooLarge" | "auth"

/**
 * A failure of a provider, understood.
 *
 * @category models
 * @since 0.1.0
 */
export interface Refusal {
  readonly kind: RefusalKind
  /** The limits that it may be about; empty when the provider did not say. */
  readonly types: ReadonlyArray<Type>
  readonly limit: number | undefined
  readonly used: number | undefined
  readonly requested: number | undefined
  /** Milliseconds until another attempt may succeed, as the provider said. */
  readonly retryAfter: number | undefined
  readonly status: number | undefined
  /** The provider's own words, shortened. */
  readonly message: string
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
 * What a request asks of a budget that has less left.
 *
 * @category models
 * @since 0.1.0
 */
export interface Excess {
  readonly limit: number
  /** Milliseconds; `Infinity` for all of the registration. */
  readonly timePeriod: number
  /** Spent and reserved in the period, and kept for others. */
  readonly used: number
  readonly requested: number
  /** Milliseconds until it fits if nothing but time passes; `Infinity` when no passing of time brings that. */
  readonly wait: number
  /** Whether it is a budget of the tenant's own. */
  readonly ofTenant: boolean
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
    /**
     * Whom it concerns: everybody (`model`, the default), only requests of this tenant, because of a limit of its own
     * (`tenant`), or all but the tenants that something is kept for (`guaranteed`).
     */
    readonly scope?: "model" | "tenant" | "guaranteed" | undefined
  }
  /** All other limits would let it through, and a budget that does not wait has less left. */
  | { readonly _tag: "Exceeded"; readonly excess: Excess }
  /** The limiter cannot be reached, and will tell by its `changes` when it can. */
  | {
    readonly _tag: "Unavailable"
    /** Why the request is to fail; `undefined` when it is to wait. */
    readonly reason: string | undefined
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
 * Whose request is admitted, and who must not be delayed by it.
 *
 * @category models
 * @since 0.1.0
 */
export interface AdmitOptions {
  readonly tenant?: string | undefined
  /**
   * What the request that is first in order costs. Another one is admitted before it only if that cannot make it later
   * than it would be if nothing but time passed, in any limit, and leaves it a permit; else it is `Blocked` for
   * `Infinity`.
   */
  readonly protect?: Cost | undefined
}

/**
 * Requests that go before another one: how many, and the sums of their tokens.
 *
 * @category models
 * @since 0.1.0
 */
export interface Ahead extends Cost {
  readonly requests: number
  /** What they will use of that on the average, 0 to 1, where what is not used is given back. */
  readonly usedPart: number
  /** The part of what is in flight that is taken to be given back at once, 0 to 1, where that is possible. */
  readonly returnedPart: number
}

/**
 * What a tenant may use of a model.
 *
 * @category models
 * @since 0.1.0
 */
export interface TenantLimits {
  /** Limits of its own, beside those of the model. */
  readonly limits: ReadonlyArray<Limit>
  /** The part of each limit of the model that is kept for it, 0 to 1. */
  readonly guaranteed: number
}

/**
 * What the tenants of a model may use.
 *
 * @category models
 * @since 0.1.0
 */
export interface Tenants {
  readonly byId: ReadonlyMap<string, TenantLimits>
  /** For each tenant that is not named, and for the requests without one. Nothing can be guaranteed to them. */
  readonly others: ReadonlyArray<Limit>
}

/**
 * A request that asks to be admitted.
 *
 * @category models
 * @since 0.1.0
 */
export interface Candidate extends AdmitOptions {
  readonly cost: Cost
}

/**
 * What others did to a limit that several processes share.
 *
 * @category models
 * @since 0.1.0
 */
export type Change =
  /** Something may fit that did not before. */
  | { readonly _tag: "Freed" }
  /** There are other limits from now on. */
  | { readonly _tag: "LimitsChanged"; readonly limits: ReadonlyArray<Limit> }

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
  readonly admit: (cost: Cost, permit: boolean, options?: AdmitOptions) => Effect.Effect<Admission>
  /**
   * The same for several requests, each on a permit of its own, as if they were asked for one after the other: the answers
   * of those that are admitted, and of the first that is not. For limiters that are far away.
   */
  readonly admitAll?: ((candidates: ReadonlyArray<Candidate>) => Effect.Effect<ReadonlyArray<Admission>>) | undefined
  /** What others did, for a limiter that is shared. */
  readonly changes?: Stream.Stream<Change> | undefined
  /**
   * Milliseconds until all windows fit a request behind others, if nothing but time passes. With a `returnedPart` of 1
   * no admission is possible before. `Infinity` when no passing of time allows it.
   */
  readonly predict: (cost: Cost, ahead: Ahead, tenant: string | undefined) => Effect.Effect<number>
  /** The budget, if any, that makes a request fail now that is submitted. Charges nothing. */
  readonly exceeds: (cost: Cost, tenant: string | undefined) => Effect.Effect<Excess | undefined>
  /** Replaces the estimate of a reservation by the actual usage; once. */
  readonly settle: (reservation: Reservation, usage: Tokens) => Effect.Effect<Settlement>
  /** The processor has ended: dates what was held until now. */
  readonly complete: (reservation: Reservation) => Effect.Effect<void>
  /** The headers of the response to a request say how much the provider has left: lowers at once, raises with care. */
  readonly observe: (reservation: Reservation, observations: ReadonlyArray<Observation>) => Effect.Effect<void>
  /**
   * The provider refused a request: gives back what refused attempts are not charged for (of an overload: money only),
   * and pauses the limits that the refusal is about. `observations` are what its headers say.
   */
  readonly refuse: (
    reservation: Reservation,
    refusal: Refusal,
    observations: ReadonlyArray<Observation>
  ) => Effect.Effect<void>
  /** The request was never dispatched: takes the whole charge back, its permit included. */
  readonly giveBack: (reservation: Reservation, permit: boolean) => Effect.Effect<void>
  /** Gives back one permit of the concurrency limit. */
  readonly releasePermit: Effect.Effect<void>
  /**
   * Replaces the limits. What was charged, and what the provider has said, is carried over as far as it means something
   * to the new ones: never over a new limit for what is known. Reservations made before stay good.
   */
  readonly update: (limits: ReadonlyArray<Limit>) => Effect.Effect<void>
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
  readonly make: (
    modelId: string,
    limits: ReadonlyArray<Limit>,
    tenants?: Tenants
  ) => Effect.Effect<
    Limiter,
    QueueError.InvalidConfiguration | QueueError.LimitConflict | QueueError.QueueUnavailable,
    Scope.Scope
  >
}>("effect-llm-queue/RateLimiter", {
  defaultValue: () => ({ make: (_modelId, limits, tenants) => memory.make(limits, tenants) })
})
