/**
 * A model as a typed value: its id, the schemas of what goes in and comes out, its limits, and how its queue behaves.
 *
 * @since 0.1.0
 */
import type * as Duration from "effect/Duration"
import type * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type * as Types from "effect/Types"
import type * as ProviderProfile from "./ProviderProfile.ts"
import type * as RateLimiter from "./RateLimiter.ts"
import type * as TokenEstimator from "./TokenEstimator.ts"

/**
 * Tokens as a provider reports them: whole numbers, not negative.
 *
 * @category schemas
 * @since 0.1.0
 */
export const Usage = Schema.Struct({
  inputTokens: Schema.Int.check(Schema.isGreaterThanOrEqualTo(0)),
  outputTokens: Schema.Int.check(Schema.isGreaterThanOrEqualTo(0)),
  /** Those of the input tokens that the provider read from its cache. */
  cachedInputTokens: Schema.optional(Schema.Int.check(Schema.isGreaterThanOrEqualTo(0)))
}).annotate({ identifier: "Usage" })

/**
 * @category schemas
 * @since 0.1.0
 */
export type Usage = typeof Usage.Type

/**
 * A request's place in the order: a named level, or seconds of head start. A request is ordered by the time it was
 * submitted less its head start, so one that has waited long enough goes before any newer one.
 *
 * `"high"` is 60, `"normal"` 0 (the default), `"low"` −60. Between −86,400 and 86,400.
 *
 * @category models
 * @since 0.1.0
 */
export type Priority = "high" | "normal" | "low" | number

/**
 * What a tenant may use of a model, and its share beside other tenants.
 *
 * @category models
 * @since 0.1.0
 */
export interface Tenant {
  /** Its share beside others that wait too: one of weight 2 is served twice as much as one of weight 1. Default 1. */
  readonly weight?: number | undefined
  /**
   * Limits of its own, beside those of the model: the most that it may use. A tenant that is held by them holds nobody
   * else. Sliding windows without a margin unless they say otherwise: the model's `provider` says nothing about them.
   */
  readonly rateLimiters?: ReadonlyArray<RateLimiter.Config> | undefined
  /**
   * The part of each limit of the model that is kept for it, whatever others do: 0 to 1, all tenants together at most
   * 1. What it does not use of it nobody uses. Beyond it, it takes its share of the rest. Default 0.
   */
  readonly guaranteed?: number | undefined
}

/**
 * The tenants of a model: users, teams or tasks whose requests share its limits fairly. Any string can be a tenant; it
 * need not be named here.
 *
 * @category models
 * @since 0.1.0
 */
export interface Tenants {
  readonly byId?: Readonly<Record<string, Tenant>> | undefined
  /** For each tenant that is not named, and for the requests without one together. */
  readonly others?: Omit<Tenant, "guaranteed"> | undefined
}

/**
 * What happens to a request that finds the queue full: it waits for room (`suspend`, the default), it fails with
 * `QueueFull` (`reject`), or the request that has waited longest does (`dropOldest`).
 *
 * @category models
 * @since 0.1.0
 */
export type Strategy = "suspend" | "reject" | "dropOldest"

/**
 * How long finished requests keep their status and result.
 *
 * @category models
 * @since 0.1.0
 */
export interface Retention {
  /** Most finished requests kept, the newest. Default 1,000; 0 keeps none. */
  readonly count?: number | undefined
  /** Longest time one is kept. Default 1 hour. */
  readonly age?: Duration.Input | undefined
}

/**
 * Which requests share one call, and how long its result answers others.
 *
 * @category models
 * @since 0.1.0
 */
export interface Deduplicate<P> {
  /**
   * The key of requests that give no `dedupeKey`: `"params"` for all of their parameters, as the schema encodes them,
   * or a text made from them; `undefined` for a request that shares with none. Default: only those that give one share.
   */
  readonly key?: "params" | ((params: P) => string | undefined) | undefined
  /** How long the result of a call that succeeded answers requests of its key. Counts from its end. Default: not. */
  readonly keep?: Duration.Input | undefined
  /** Most results that are kept in memory. Default 1,000. */
  readonly count?: number | undefined
}

/**
 * How many failed requests are kept with their parameters, to be looked at and submitted again.
 *
 * @category models
 * @since 0.1.0
 */
export interface DeadLetters {
  /** Most requests kept, the newest. Default 0: parameters may be large, and secret. */
  readonly count?: number | undefined
  /** Longest time one is kept. Default 1 day. */
  readonly age?: Duration.Input | undefined
}

/**
 * What a queue does with its requests when it closes. In every case new requests fail with `QueueShutdown` from that
 * instant on, and at the deadline whatever is left is told `QueueShutdown`; processors are interrupted then, and not
 * waited for.
 *
 * @category models
 * @since 0.1.0
 */
export interface Shutdown {
  /**
   * - `drain` (default): requests that were accepted are still processed, within their limits
   * - `finishRunning`: requests that wait fail with `QueueShutdown`, those being processed end
   * - `interrupt`: those being processed are interrupted too, and waited for until the deadline
   */
  readonly policy?: "drain" | "finishRunning" | "interrupt" | undefined
  /** Counts from the start of the closing. Default 30 seconds. */
  readonly deadline?: Duration.Input | undefined
}

/**
 * When a request that the provider refused, or failed by a fault of its own, is attempted again. Only failures that
 * the model's `provider` recognises as such are; all others reach the submitter as they are.
 *
 * @category models
 * @since 0.1.0
 */
export interface Retry {
  /**
   * Fed with each refusal, it says how long to wait at least, or that there is no further attempt. What the provider
   * asks for (`Retry-After`) is waited for beyond that, and a rate limit that is paused. Default: half a second,
   * doubled up to 30 seconds, jittered; 5 further attempts.
   */
  readonly schedule?: Schedule.Schedule<unknown, RateLimiter.Refusal> | undefined
  /**
   * Attempts after a fault or an overload that each success pays for, so that retries cannot multiply the load on a
   * provider in trouble. Ten are paid for at the start, and saved at most, or
   * what about a minute's successes pay for if that is more. Default 0.1. Requests refused by a rate
   * limit are not counted: the limit itself holds them back.
   */
  readonly budget?: number | undefined
}

/**
 * When a queue stops sending to a provider that cannot answer.
 *
 * @category models
 * @since 0.1.0
 */
export interface CircuitBreaker {
  /**
   * Overloads, faults and attempts without an answer within their `processingTimeout`, in a row, after which nothing is
   * sent for the cooldown; one overload or fault with a `Retry-After` is enough. Default 5.
   */
  readonly failures?: number | undefined
  /**
   * Time without requests, after which one is sent to try, and another one when it is silent for 30 seconds; doubled, up to 30 seconds, each time that fails too. A
   * longer `Retry-After` goes before. Default 1 second.
   */
  readonly cooldown?: Duration.Input | undefined
  /** The same after a refusal for quota: in that time submissions fail with `QuotaExhausted`. Default 5 minutes. */
  readonly quotaCooldown?: Duration.Input | undefined
}

/**
 * Options of a model besides its schemas and limits.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options<P, A> {
  /**
   * Reads the actual token usage from a result; the reservation is settled with it when the processor succeeds. If it
   * throws or gives a malformed usage, a warning is logged and the estimate stays.
   */
  readonly usage?: ((result: A) => Usage) | undefined
  /**
   * The tokens of a request whose caller gave no figures. What it leaves out is estimated by the `estimator`. Only asked
   * when a limit counts tokens. `maxOutputTokens` is what is sent to the provider as `max_tokens`, `cachedInputTokens`
   * those of the input tokens that it is sure to read from its cache: none when left out, for they are never guessed. Not
   * asked when the request gives input and output: then its maximum and what is cached must be its own.
   */
  readonly estimate?:
    | ((params: P) => {
      readonly inputTokens?: number | undefined
      readonly cachedInputTokens?: number | undefined
      readonly outputTokens?: number | undefined
      readonly maxOutputTokens?: number | undefined
    })
    | undefined
  /**
   * Estimates tokens that nobody gave. Default: `TokenEstimator.learned()`, which begins with a quarter of the
   * characters in the parameters' strings and 1,024 output tokens (or what the tightest limit leaves for them, if that
   * is less), and learns from every usage that is reported.
   */
  readonly estimator?: TokenEstimator.TokenEstimator | undefined
  /**
   * How the provider counts, refuses and reports: `ProviderProfile.openai`, for instance. It fills in what the limits do
   * not say themselves, and tells which failures are worth another attempt. Default: none; then limits are exactly as
   * given, and nothing is attempted twice.
   */
  readonly provider?: ProviderProfile.ProviderProfile | undefined
  readonly retry?: Retry | undefined
  readonly circuitBreaker?: CircuitBreaker | undefined
  /** Most requests that wait at one time, at least 1. Default 10,000. */
  readonly capacity?: number | undefined
  readonly strategy?: Strategy | undefined
  readonly retention?: Retention | undefined
  readonly deadLetters?: DeadLetters | undefined
  readonly deduplicate?: Deduplicate<P> | undefined
  /** For requests that give none. Counts from submission. Default: no timeout. */
  readonly timeout?: Duration.Input | undefined
  /** For requests that give none. Counts from the start of an attempt. Default: no timeout. */
  readonly processingTimeout?: Duration.Input | undefined
  /** For requests that give none. Default `"normal"`. */
  readonly priority?: Priority | undefined
  /** Default: every tenant has weight 1 and no limits of its own. */
  readonly tenants?: Tenants | undefined
  /**
   * Most requests that may go before one that is first in order and blocked by a limit that they take less of. None
   * goes that could delay it, in any limit, and one permit is left for it. 0 keeps the order strictly. Default 16.
   */
  readonly bypass?: number | undefined
  /**
   * Whether a request that cannot be dispatched within its `timeout` fails with `QueueTimeout` when it is submitted, with
   * the wait that is predicted, and not at its deadline. Counted are the limits, with what is in flight taken to use
   * nothing, and the requests of its tenant that go before it. While the provider is unavailable for longer than that it
   * fails with `ProviderUnavailable`. Default `true`.
   */
  readonly failEarly?: boolean | undefined
  readonly shutdown?: Shutdown | undefined
}

/**
 * The limits of a model: a list, or the short form of one limit. `"unlimited"` says that there are none.
 *
 * @category models
 * @since 0.1.0
 */
export type Limits =
  | {
    /** Requests in any `timePeriod`. */
    readonly rateLimit: number
    readonly rateLimiterMode?: "requests_per_period" | undefined
    /** Default 1 minute. */
    readonly timePeriod?: Duration.Input | undefined
    readonly rateLimiters?: never
  }
  | {
    /** Requests being processed at one time. */
    readonly rateLimit: number
    readonly rateLimiterMode: "concurrent_requests"
    readonly timePeriod?: never
    readonly rateLimiters?: never
  }
  | {
    readonly rateLimiters: ReadonlyArray<RateLimiter.Config> | "unlimited"
    readonly rateLimit?: never
    readonly rateLimiterMode?: never
    readonly timePeriod?: never
  }

/**
 * Any model, whatever its types.
 *
 * @category models
 * @since 0.1.0
 */
export interface Any {
  readonly modelId: string
  readonly definition: Definition
}

/**
 * A model. Invariant in all three types, so that a processor with another error, or a request with other parameters,
 * does not compile.
 *
 * @category models
 * @since 0.1.0
 */
export interface ModelConfig<in out P, in out A, in out E> extends Any {
  readonly "~effect-llm-queue/ModelConfig": {
    readonly P: Types.Invariant<P>
    readonly A: Types.Invariant<A>
    readonly E: Types.Invariant<E>
  }
}

/**
 * What a model was made from, without its types.
 *
 * @category models
 * @since 0.1.0
 */
export type Definition =
  & {
    readonly params: Schema.Constraint | undefined
    readonly result: Schema.Constraint | undefined
    readonly error: Schema.Constraint | undefined
  }
  & Options<never, never>
  & Limits

/**
 * A schema whose decoding needs no services.
 *
 * @category models
 * @since 0.1.0
 */
// oxlint-disable-next-line typescript/no-explicit-any -- a constraint that every such schema meets
export type Codec = Schema.Codec<any, any>

/**
 * The type of an error schema; `never` when none was given, which leaves `E` at its constraint.
 *
 * @category models
 * @since 0.1.0
 */
export type Failure<E extends Codec> = Codec extends E ? never : E["Type"]

/**
 * A model whose processor gives a stream: each element is an `A`. Invariant in all three types.
 *
 * @category models
 * @since 0.1.0
 */
export interface StreamModelConfig<in out P, in out A, in out E> extends AnyStream {
  readonly "~effect-llm-queue/StreamModelConfig": {
    readonly P: Types.Invariant<P>
    readonly A: Types.Invariant<A>
    readonly E: Types.Invariant<E>
  }
}

/**
 * Any model whose processor gives a stream.
 *
 * @category models
 * @since 0.1.0
 */
export interface AnyStream extends Any {
  readonly definition: Definition & { readonly elementUsage?: ((element: never) => Usage | undefined) | undefined }
}

/**
 * Options of a model whose processor gives a stream.
 *
 * @category models
 * @since 0.1.0
 */
export interface StreamOptions<P, A> extends Omit<Options<P, never>, "usage" | "deadLetters" | "deduplicate"> {
  /**
   * Reads the token usage from an element, where it has one. The reservation is settled with the last one that was read
   * when the stream ends, however it ends; without any the estimate stays.
   */
  readonly usage?: ((element: A) => Usage | undefined) | undefined
}

const variance = {
  // oxlint-disable-next-line typescript/no-explicit-any -- one value stands for every instantiation
  P: (_: any) => _,
  // oxlint-disable-next-line typescript/no-explicit-any -- as above
  A: (_: any) => _,
  // oxlint-disable-next-line typescript/no-explicit-any -- as above
  E: (_: any) => _
}

/** What a model is built from, kept apart from the object that carries it: a `ModelQueue` class carries one too. */
const fields = <P, A, E>(
  modelId: string,
  definition: Definition
): ModelConfig<P, A, E> => ({
  "~effect-llm-queue/ModelConfig": variance,
  modelId,
  definition
})

const streamFields = <P, A, E>(
  modelId: string,
  { usage, ...options }:
    & {
      readonly params?: Codec
      readonly element?: Codec
      readonly error?: Codec | undefined
      // oxlint-disable-next-line typescript/no-explicit-any -- of the element's type
      readonly usage?: ((element: any) => Usage | undefined) | undefined
    }
    & Limits
): StreamModelConfig<P, A, E> => ({
  "~effect-llm-queue/StreamModelConfig": variance,
  modelId,
  definition: { params: undefined, result: options.element, error: undefined, ...options, elementUsage: usage }
})

/**
 * Makes a model from schemas. Nothing is checked yet: a configuration that cannot work fails the registration with
 * `InvalidConfiguration`.
 *
 * **Details**
 *
 * Parameters are checked at submission. Results and errors are typed and not checked: decode the provider's answer in
 * the processor. The id is the identity: two models with one id are one queue, whatever their types.
 *
 * **Example** (A model with three limits)
 *
 * ```ts
 * import { Schema } from "effect"
 * import { ModelConfig, RateLimiter } from "effect-llm-queue"
 *
 * const Gpt4 = ModelConfig.make("gpt-4", {
 *   params: Schema.Struct({ prompt: Schema.String }),
 *   result: Schema.Struct({ text: Schema.String, usage: ModelConfig.Usage }),
 *   rateLimiters: [RateLimiter.rpm(500), RateLimiter.tpm(30_000), RateLimiter.concurrent(20)],
 *   usage: (result) => result.usage
 * })
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = <P extends Codec, A extends Codec, E extends Codec = typeof Schema.Never>(
  modelId: string,
  options:
    & { readonly params: P; readonly result: A; readonly error?: E | undefined }
    & Options<NoInfer<P>["Type"], NoInfer<A>["Type"]>
    & Limits
): ModelConfig<P["Type"], A["Type"], Failure<E>> => fields(modelId, { error: undefined, ...options })

/**
 * Makes a model from types alone. Its parameters are not checked at submission.
 *
 * **Example** (Ten requests a minute)
 *
 * ```ts
 * import { ModelConfig } from "effect-llm-queue"
 *
 * const Draft = ModelConfig.makeUntyped<{ prompt: string }, string>("draft", { rateLimit: 10 })
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const makeUntyped = <P, A, E = never>(
  modelId: string,
  options: Options<P, A> & Limits
): ModelConfig<P, A, E> => fields(modelId, { params: undefined, result: undefined, error: undefined, ...options })

/**
 * Makes a model whose processor gives a stream, from schemas: `QueueManager.layerStream` registers it, and
 * `manager.stream` runs it.
 *
 * **Example** (A model that streams text)
 *
 * ```ts
 * import { Schema } from "effect"
 * import { ModelConfig, RateLimiter } from "effect-llm-queue"
 *
 * const Writer = ModelConfig.makeStream("writer", {
 *   params: Schema.Struct({ prompt: Schema.String }),
 *   element: Schema.Struct({ text: Schema.String, usage: Schema.optional(ModelConfig.Usage) }),
 *   rateLimiters: [RateLimiter.rpm(500), RateLimiter.tpm(30_000)],
 *   usage: (element) => element.usage
 * })
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const makeStream = <P extends Codec, A extends Codec, E extends Codec = typeof Schema.Never>(
  modelId: string,
  options:
    & { readonly params: P; readonly element: A; readonly error?: E | undefined }
    & StreamOptions<NoInfer<P>["Type"], NoInfer<A>["Type"]>
    & Limits
): StreamModelConfig<P["Type"], A["Type"], Failure<E>> => streamFields(modelId, options)

/**
 * Makes a model whose processor gives a stream, from types alone.
 *
 * **Example** (A model that streams strings)
 *
 * ```ts
 * import { ModelConfig } from "effect-llm-queue"
 *
 * const Writer = ModelConfig.makeStreamUntyped<{ prompt: string }, string>("writer", { rateLimit: 10 })
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const makeStreamUntyped = <P, A, E = never>(
  modelId: string,
  options: StreamOptions<P, A> & Limits
): StreamModelConfig<P, A, E> => streamFields(modelId, options)
