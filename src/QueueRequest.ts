/**
 * A request to a model: typed parameters, and how the request is to be treated.
 *
 * @since 0.1.0
 */
import type * as DateTime from "effect/DateTime"
import type * as Duration from "effect/Duration"
import * as requestId from "./internal/requestId.ts"
import type * as ModelConfig from "./ModelConfig.ts"

/**
 * Options of a request. Priority, tenant, deadline and labels can be given to a whole region of a program, see
 * `QueueManager.withTenant`.
 *
 * @category models
 * @since 0.1.0
 */
export interface RequestOptions {
  /** 1 to 256 characters, unique among the model's active and retained requests. Generated when left out. */
  readonly id?: string | undefined
  /** Tokens, at least 0; a fraction is rounded up. When left out, the model's `estimate` or default policy decides. */
  readonly estimatedInputTokens?: number | undefined
  /**
   * Those of the input tokens that the provider is sure to read from its cache, at least 0. Limits that do not count
   * them, such as Anthropic's, do not reserve them. Not for Bedrock, which counts them on arrival and gives them back at
   * the end. When left out, the model's `estimate`, or none.
   */
  readonly estimatedCachedInputTokens?: number | undefined
  /** Tokens, at least 0; a fraction is rounded up. When left out, the model's `estimate` or default policy decides. */
  readonly estimatedOutputTokens?: number | undefined
  /**
   * The most output tokens that the request may produce (what is sent as `max_tokens`), at least 0. Charged in place of
   * the estimate by limits of providers that reserve it. When left out, the model's `estimate`, or the estimate.
   */
  readonly maxOutputTokens?: number | undefined
  /** What kind of request it is, for the estimates learned from past ones: `{ task: "summary" }`. */
  readonly labels?: Readonly<Record<string, string>> | undefined
  readonly priority?: ModelConfig.Priority | undefined
  /** Whose request it is: 1 to 256 characters. Tenants share a model's limits fairly, by their weights. */
  readonly tenant?: string | undefined
  /** Counts from submission and includes waiting for room, for limits and the processing. More than zero. */
  readonly timeout?: Duration.Input | undefined
  /**
   * An instant of the wall clock by which it must have ended, read once when it is submitted: later changes of the clock
   * do not move it. With a `timeout` too the earlier one holds.
   */
  readonly deadline?: DateTime.DateTime.Input | undefined
  /** Counts from the start of an attempt. More than zero. */
  readonly processingTimeout?: Duration.Input | undefined
  /**
   * Requests of a model with the same key share one call and one charge while it waits or is processed: 1 to 256
   * characters. The call has the options of the first one, but its timeout: each has its own, and interrupts only
   * itself; the last one that leaves cancels the call. At most `capacity` requests share calls of others, beyond that
   * they fail with `QueueFull`; a processor that would wait for its own call fails with `InvalidRequest`. `false` keeps
   * a request apart where the model says that equal ones share. Streams do not share.
   */
  readonly dedupeKey?: string | false | undefined
  /**
   * What happens when the circuit breaker of the model's provider is open, or opens while it waits: it waits for the
   * provider (`wait`, the default), or fails at once with `ProviderUnavailable` (`fail`).
   */
  readonly whenUnavailable?: "wait" | "fail" | undefined
  /** Anything the processor should know besides the parameters. Not looked at by the queue. */
  readonly metadata?: Readonly<Record<string, unknown>> | undefined
}

/**
 * What a request would cost, and its place in the order: what its wait is estimated from.
 *
 * @category models
 * @since 0.1.0
 */
export interface EstimateOptions<P> extends
  Pick<
    RequestOptions,
    | "estimatedInputTokens"
    | "estimatedCachedInputTokens"
    | "estimatedOutputTokens"
    | "maxOutputTokens"
    | "labels"
    | "priority"
    | "tenant"
  >
{
  /** What tokens are estimated from where they are not given. */
  readonly params?: P | undefined
}

/**
 * A request. `W` says whether submitting it waits for the result.
 *
 * @category models
 * @since 0.1.0
 */
export interface QueueRequest<in out P, in out A, in out E, out W extends boolean = true> extends RequestOptions {
  readonly model: ModelConfig.ModelConfig<P, A, E>
  readonly id: string
  readonly params: P
  readonly waitForCompletion: W
}

/**
 * A request for a stream.
 *
 * @category models
 * @since 0.1.0
 */
export interface StreamRequest<in out P, in out A, in out E> extends RequestOptions {
  readonly model: ModelConfig.StreamModelConfig<P, A, E>
  readonly id: string
  readonly params: P
}

/**
 * Makes a request. Nothing is checked until it is submitted.
 *
 * **Gotchas**
 *
 * A generated id is new for each value made, not for each submission. Submitting one value again, as `Effect.retry`
 * does, gives the later submissions ids of their own; with an id of your own they fail with `DuplicateRequest`.
 *
 * **Example** (A request that returns as soon as it is accepted)
 *
 * ```ts
 * import { Schema } from "effect"
 * import { ModelConfig, QueueRequest } from "effect-llm-queue"
 *
 * const Gpt4 = ModelConfig.make("gpt-4", { params: Schema.String, result: Schema.String, rateLimit: 10 })
 *
 * const request = QueueRequest.make(Gpt4, {
 *   params: "Tell me a joke",
 *   waitForCompletion: false,
 *   estimatedInputTokens: 10,
 *   timeout: "30 seconds"
 * })
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = <P, A, E, const W extends boolean = true>(
  model: ModelConfig.ModelConfig<P, A, E>,
  options: { readonly params: NoInfer<P>; readonly waitForCompletion?: W | undefined } & RequestOptions
): QueueRequest<P, A, E, W> => {
  const waitForCompletion: boolean = options.waitForCompletion ?? true
  return {
    ...options,
    model,
    id: options.id ?? requestId.generate(),
    // `W` is `true` when the option is left out, by its default.
    waitForCompletion: waitForCompletion as W
  }
}
