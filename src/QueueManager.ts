/**
 * The queues of an application's models, as one service.
 *
 * Provide `QueueManager.layer` once, at the top of the application: the limits of a model hold within one manager, so
 * two managers double them.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as DateTime from "effect/DateTime"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Function from "effect/Function"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import type * as Stream from "effect/Stream"
import type * as Types from "effect/Types"
import * as internal from "./internal/manager.ts"
import * as context from "./internal/requestContext.ts"
import * as settings from "./internal/settings.ts"
import type * as ModelConfig from "./ModelConfig.ts"
import type * as QueueError from "./QueueError.ts"
import type * as QueueRequest from "./QueueRequest.ts"
import type * as QueueResponse from "./QueueResponse.ts"
import type * as RateLimiter from "./RateLimiter.ts"
import type * as TokenEstimator from "./TokenEstimator.ts"

/**
 * What does the work of a model: gets a request, gives a result or the model's typed error. It runs in a fiber of its
 * own with a `Scope` that closes when it ends, and with the services that were there when it was registered. The
 * parent span is the submitter's.
 *
 * @category models
 * @since 0.1.0
 */
export type Processor<P, A, E, R> = (
  request: QueueRequest.QueueRequest<P, A, E, boolean>
) => Effect.Effect<NoInfer<A>, NoInfer<E>, R>

/**
 * What does the work of a model of streams. The stream is run when the request is dispatched, in a fiber of its own, and
 * its scope closes when it ends or is cut short: until then the request keeps its permit.
 *
 * @category models
 * @since 0.1.0
 */
export type StreamProcessor<P, A, E, R> = (
  request: QueueRequest.StreamRequest<P, A, E>
) => Stream.Stream<NoInfer<A>, NoInfer<E>, R>

/**
 * A model with its processor, for lists of models of different types.
 *
 * @category models
 * @since 0.1.0
 */
export interface Registration<out R> {
  readonly "~effect-llm-queue/Registration": { readonly R: Types.Covariant<R> }
}

/**
 * What a queue knows about its provider.
 *
 * @category models
 * @since 0.1.0
 */
export interface ProviderInfo {
  /** Of the profile. */
  readonly name: string
  /**
   * `unavailable` while the circuit breaker keeps requests back, `quotaExhausted` while they fail for quota, `probing`
   * while one request tries whether that is over.
   */
  readonly state: "available" | "unavailable" | "quotaExhausted" | "probing"
  /** Time until the next try; `undefined` when it is available. */
  readonly retryIn: Duration.Duration | undefined
  /** Most requests being processed at one time, after an overload; `undefined` when it is not reduced. */
  readonly concurrency: number | undefined
  /** Attempts that the provider refused or failed, since the registration, by kind. */
  readonly refusals: Readonly<Record<RateLimiter.RefusalKind, number>>
}

/**
 * The state of a queue.
 *
 * @category models
 * @since 0.1.0
 */
export interface QueueInfo {
  readonly modelId: string
  /**
   * `paused` by `pauseQueue`, `draining` by `drainQueue` (until it is resumed), `closing` from the start of a shutdown,
   * `closed` from its end.
   */
  readonly state: "open" | "paused" | "draining" | "closing" | "closed"
  readonly capacity: number
  /** Requests accepted and not yet dispatched. */
  readonly depth: number
  /** Submitters that wait for room in the queue. */
  readonly suspended: number
  /** Processors that have not ended, those of requests that have (by a timeout, for instance) included. */
  readonly running: number
  /** Since the registration, like `failed` and `cancelled`. */
  readonly completed: number
  readonly failed: number
  readonly cancelled: number
  /** In the order of the configuration. */
  readonly rateLimiters: ReadonlyArray<RateLimiter.Usage>
  /**
   * What estimates and `max_tokens` cost: for each limit on tokens, once a request has reported its usage. A
   * `throughput` of 0.16 says that reserving more than is used costs 84 % of the limit.
   */
  readonly reservations: ReadonlyArray<TokenEstimator.ReservationCost & { readonly type: RateLimiter.Type }>
  /** `undefined` for a model without a provider's profile. */
  readonly provider: ProviderInfo | undefined
}

/**
 * Which requests are meant: all that is given must hold.
 *
 * @category models
 * @since 0.1.0
 */
export interface RequestFilter {
  readonly ids?: ReadonlyArray<string> | undefined
  readonly tenant?: string | undefined
  /** All of these labels. */
  readonly labels?: Readonly<Record<string, string>> | undefined
  /** This one, whether the request gave it or has it by default: `"normal"` is also 0. */
  readonly priority?: ModelConfig.Priority | undefined
  readonly status?: "pending" | "processing" | undefined
  /** Submitted longer ago than this. */
  readonly olderThan?: Duration.Input | undefined
  readonly where?: ((response: QueueResponse.QueueResponse<unknown, unknown>) => boolean) | undefined
}

/**
 * Another number for a limit that a queue has.
 *
 * @category models
 * @since 0.1.0
 */
export interface LimitChange {
  readonly type: RateLimiter.Type
  /** Which one, where several have the type. */
  readonly timePeriod?: Duration.Input | undefined
  readonly limit: number
}

/**
 * A request that waits or is being processed.
 *
 * @category models
 * @since 0.1.0
 */
export interface ActiveRequest {
  readonly requestId: string
  readonly status: "pending" | "processing"
  readonly tenant: string | undefined
  /** Its head start in seconds: `"high"` is 60. */
  readonly priority: number
  readonly labels: Readonly<Record<string, string>>
  /** Milliseconds since 1970, by the system's clock. */
  readonly createdAt: number
  /** So far. */
  readonly queueTime: Duration.Duration
  readonly processingTime: Duration.Duration
  /** How often it was handed to its processor. */
  readonly attempts: number
  /**
   * How much longer it will wait, by what `estimateWait` goes by: `Duration.infinity` when nothing that is known ends the
   * wait, `undefined` for what is being processed.
   */
  readonly predictedWait: Duration.Duration | undefined
}

/**
 * Options of a manager.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /** For models that say nothing else, and for the end of the manager itself. */
  readonly shutdown?: ModelConfig.Shutdown | undefined
  /** Most events kept for a reader of `events` that falls behind; older ones are dropped. Default 1,024. */
  readonly eventCapacity?: number | undefined
}

/**
 * The queues of an application's models.
 *
 * **Example** (Submitting a request)
 *
 * ```ts
 * import { Effect, Layer, Schema } from "effect"
 * import { ModelConfig, QueueManager, QueueRequest, RateLimiter } from "effect-llm-queue"
 *
 * const Gpt4 = ModelConfig.make("gpt-4", {
 *   params: Schema.Struct({ prompt: Schema.String }),
 *   result: Schema.Struct({ text: Schema.String }),
 *   rateLimiters: [RateLimiter.rpm(500), RateLimiter.concurrent(20)]
 * })
 *
 * const Gpt4Live = QueueManager.layerModel(Gpt4, (request) => Effect.succeed({ text: request.params.prompt }))
 *
 * const program = Effect.gen(function*() {
 *   const manager = yield* QueueManager.QueueManager
 *   const response = yield* manager.submitRequest(QueueRequest.make(Gpt4, { params: { prompt: "Tell me a joke" } }))
 *   return response.result.text
 * })
 *
 * program.pipe(Effect.provide(Gpt4Live.pipe(Layer.provideMerge(QueueManager.layer))))
 * ```
 *
 * @category services
 * @since 0.1.0
 */
export class QueueManager extends Context.Service<QueueManager, {
  /**
   * Opens the queue of a model. It lives as long as the scope: closing that drains the queue by its shutdown policy,
   * while the processor's own services are still there.
   */
  registerQueue<P, A, E, R>(
    model: ModelConfig.ModelConfig<P, A, E>,
    processor: Processor<P, A, E, R>
  ): Effect.Effect<void, QueueError.RegisterError, R | Scope.Scope>

  /**
   * Opens several queues, or none: if one cannot be registered, no other is. They are drained together.
   */
  registerAllQueues<const Rs extends ReadonlyArray<Registration<unknown>>>(
    registrations: Rs
  ): Effect.Effect<void, QueueError.RegisterError, Scope.Scope | Registration.Services<Rs[number]>>
  registerAllQueues<P, A, E, R>(
    models: ReadonlyArray<ModelConfig.ModelConfig<P, A, E>>,
    processor: Processor<P, A, E, R>
  ): Effect.Effect<void, QueueError.RegisterError, R | Scope.Scope>

  /** Closes a queue by its shutdown policy before its scope does, and forgets it. */
  unregisterQueue(model: ModelConfig.Any | string): Effect.Effect<void, QueueError.ModelNotRegistered>

  /**
   * Submits a request. With `waitForCompletion` (the default) it ends when the request does: with the result, with
   * the processor's own error, or with the queue's. Interrupting it cancels the request: it leaves the queue, or its
   * processor is interrupted, without being waited for. Without, it ends when the request is accepted, and
   * interrupting it after that changes nothing.
   */
  submitRequest<P, A, E, W extends boolean>(
    request: QueueRequest.QueueRequest<P, A, E, W>
  ): Effect.Effect<
    W extends true ? QueueResponse.Completed<A> : QueueResponse.Pending<A, E>,
    W extends true ? E | QueueError.SubmitError : QueueError.AcceptError
  >

  /** `submitRequest` of a request that waits, in one call. */
  submit<P, A, E>(
    model: ModelConfig.ModelConfig<P, A, E>,
    params: NoInfer<P>,
    options?: QueueRequest.RequestOptions
  ): Effect.Effect<QueueResponse.Completed<A>, E | QueueError.SubmitError>

  /** Opens the queue of a model of streams, as `registerQueue`. */
  registerStream<P, A, E, R>(
    model: ModelConfig.StreamModelConfig<P, A, E>,
    processor: StreamProcessor<P, A, E, R>
  ): Effect.Effect<void, QueueError.RegisterError, R | Scope.Scope>

  /**
   * The stream of a model. Running it submits a request, which waits for its turn like any other; each run is a request
   * of its own. Elements come as they are produced, at most a few ahead of the reader: a slow reader keeps the permit, as
   * long as nobody else waits for it. Then up to 65,536 are read ahead, so that a reader may submit to the same queue.
   *
   * - Ending early, by `Stream.take` for instance, or interrupting cancels the request and interrupts the processor.
   * - A failure of the processor, a timeout, a cancellation or a shutdown fails the stream, after the elements that are
   *   there already. `timeout` is counted from the run on.
   * - What the provider refuses before the first element is attempted again unseen, as for other requests; after it the
   *   failure is the stream's.
   * - A completed request has the number of elements as its result. The elements are not kept.
   */
  stream<P, A, E>(
    model: ModelConfig.StreamModelConfig<P, A, E>,
    params: NoInfer<P>,
    options?: QueueRequest.RequestOptions
  ): Stream.Stream<A, E | QueueError.SubmitError>

  /**
   * Waits for the end of a request submitted before. Interrupting it cancels nothing.
   */
  awaitCompletion<A, E>(
    pending: QueueResponse.Pending<A, E>
  ): Effect.Effect<QueueResponse.Completed<A>, E | QueueError.SubmitError | QueueError.RequestNotFound>
  awaitCompletion<P, A, E>(
    model: ModelConfig.ModelConfig<P, A, E>,
    requestId: string
  ): Effect.Effect<QueueResponse.Completed<A>, E | QueueError.SubmitError | QueueError.RequestNotFound>

  /**
   * Cancels a request. It ends as `cancelled` and its waiters fail with `RequestCancelled`; a processor at work on it
   * is interrupted, and not waited for. `false` when it had ended already.
   */
  cancelRequest(
    model: ModelConfig.Any | string,
    requestId: string
  ): Effect.Effect<boolean, QueueError.ModelNotRegistered | QueueError.RequestNotFound>

  /**
   * Cancels all requests that meet a filter, in one step: none that it means is dispatched meanwhile. Says how many it
   * were. A filter without conditions means all that wait or are being processed.
   */
  cancelRequests(
    model: ModelConfig.Any | string,
    filter: RequestFilter
  ): Effect.Effect<number, QueueError.ModelNotRegistered | QueueError.InvalidRequest>

  /**
   * Gives a waiting request another priority; it keeps the time of its submission. Its processor, and what that submits,
   * see the new one. `false` when it does not wait any more.
   */
  changePriority(
    model: ModelConfig.Any | string,
    requestId: string,
    priority: ModelConfig.Priority
  ): Effect.Effect<
    boolean,
    QueueError.ModelNotRegistered | QueueError.RequestNotFound | QueueError.InvalidRequest
  >

  /**
   * Stops dispatching: requests are still accepted, and wait; their timeouts go on. What is being processed goes on, and
   * so do the requests it waits for itself. A shutdown ends the pause. A queue that drains takes no requests while it is
   * paused, either, and is empty only after `resumeQueue` or another `drainQueue`.
   */
  pauseQueue(model: ModelConfig.Any | string): Effect.Effect<void, QueueError.ModelNotRegistered>

  /** Ends a pause, and lets requests in again after `drainQueue`. */
  resumeQueue(model: ModelConfig.Any | string): Effect.Effect<void, QueueError.ModelNotRegistered>

  /**
   * Takes no more requests, which fail with `QueueDraining`, and ends with `true` when all that were accepted have
   * ended. The queue stays as it is, empty, until `resumeQueue`; that ends a draining that is under way with `false`. It
   * ends a pause. Interrupting it changes nothing: the queue goes on draining.
   *
   * A processor that drains its own queue is not waited for by itself, nor by others that do the same; what waits may run
   * on its permit meanwhile.
   */
  drainQueue(model: ModelConfig.Any | string): Effect.Effect<boolean, QueueError.ModelNotRegistered>

  /** The failed requests that are kept by the model's `deadLetters`, in the order in which they failed. */
  deadLetters<P, A, E>(
    model: ModelConfig.ModelConfig<P, A, E>
  ): Effect.Effect<ReadonlyArray<QueueResponse.DeadLetter<P, A, E>>, QueueError.ModelNotRegistered>
  deadLetters(
    modelId: string
  ): Effect.Effect<
    ReadonlyArray<QueueResponse.DeadLetter<unknown, unknown, unknown>>,
    QueueError.ModelNotRegistered
  >

  /**
   * Submits a dead letter again, as a request of its own with a new id, and removes it when it is accepted. Its timeout
   * counts anew; its deadline does not hold any more. Options replace those of the request.
   */
  resubmitDeadLetter<P, A, E>(
    model: ModelConfig.ModelConfig<P, A, E>,
    requestId: string,
    options?: QueueRequest.RequestOptions
  ): Effect.Effect<QueueResponse.Pending<A, E>, QueueError.AcceptError | QueueError.RequestNotFound>
  resubmitDeadLetter(
    modelId: string,
    requestId: string,
    options?: QueueRequest.RequestOptions
  ): Effect.Effect<QueueResponse.Pending<unknown, unknown>, QueueError.AcceptError | QueueError.RequestNotFound>

  /** Removes dead letters, those with the given ids or all, and says how many there were. */
  removeDeadLetters(
    model: ModelConfig.Any | string,
    requestIds?: ReadonlyArray<string>
  ): Effect.Effect<number, QueueError.ModelNotRegistered>

  /** What is known about a request, its result included, from its acceptance until retention drops it. */
  getStatus<P, A, E>(
    model: ModelConfig.ModelConfig<P, A, E>,
    requestId: string
  ): Effect.Effect<QueueResponse.QueueResponse<A, E>, QueueError.ModelNotRegistered | QueueError.RequestNotFound>
  getStatus(
    modelId: string,
    requestId: string
  ): Effect.Effect<
    QueueResponse.QueueResponse<unknown, unknown>,
    QueueError.ModelNotRegistered | QueueError.RequestNotFound
  >

  /**
   * How long a request that is submitted now would wait: by its limits and what waits before it, with the shares of
   * other tenants and the mean processing time of past requests. An estimate: requests that come later with a higher
   * priority, estimates that are wrong and requests that are cancelled change it. `Duration.infinity` when nothing that
   * is known ends the wait: of a queue that is paused or draining, for instance.
   */
  estimateWait<P, A, E>(
    model: ModelConfig.ModelConfig<P, A, E>,
    options?: QueueRequest.EstimateOptions<NoInfer<P>>
  ): Effect.Effect<
    Duration.Duration,
    QueueError.ModelNotRegistered | QueueError.InvalidRequest | QueueError.RequestTooLarge
  >

  /**
   * Those requests of a queue that have not ended and are meant by the filter, at most `limit` of them (default 100): first
   * what is being processed, then what waits, by the time of its submission less its head start, which is the order inside
   * of a tenant. Requests that share the call of another one are not among them.
   */
  getRequests(
    model: ModelConfig.Any | string,
    filter?: RequestFilter,
    options?: { readonly limit?: number | undefined }
  ): Effect.Effect<ReadonlyArray<ActiveRequest>, QueueError.ModelNotRegistered | QueueError.InvalidRequest>

  /** The state of a queue and of its limits. */
  getQueueInfo(model: ModelConfig.Any | string): Effect.Effect<QueueInfo, QueueError.ModelNotRegistered>

  /** The state of every queue, by model id. */
  readonly getAllQueuesInfo: Effect.Effect<ReadonlyMap<string, QueueInfo>>

  /** The ids of the registered models, in the order of registration. */
  readonly getRegisteredModels: Effect.Effect<ReadonlyArray<string>>

  /**
   * Reports what a request really used, in place of its estimate: during its processing or after it, as long as it is
   * retained. Once: a second report, and one after the model's own `usage` has settled it, is answered
   * `"alreadySettled"` and changes nothing. What was used beyond the estimate is charged, even above the limit.
   */
  updateTokenUsage(
    model: ModelConfig.Any | string,
    requestId: string,
    usage: ModelConfig.Usage
  ): Effect.Effect<
    RateLimiter.Settlement,
    QueueError.ModelNotRegistered | QueueError.RequestNotFound | QueueError.InvalidRequest
  >

  /**
   * Replaces the limits of a queue at work: `rateLimiters` as in the model's configuration, completed by the model's
   * provider in the same way. The limits hold for everything from that instant on, and nothing that is known is lost.
   *
   * - A limit continues the one of its type; of several, the one of the same period. Another number keeps what the
   *   window holds, or the level of the bucket as far as it has room, what the provider has said about it, and its
   *   pauses.
   * - A window that is new or longer, and another algorithm, begin with what any limit that counts the same still
   *   remembers, by its date. Of what is older, and of requests for which no such limit was there, nothing is known:
   *   those that use it start as empty as at a registration.
   * - What a bucket was charged is remembered and what it got back is not, so a window that follows a bucket may hold
   *   requests back for up to a period that would fit.
   * - Requests being processed go on and keep their permits, also when there are more than a lower `concurrent` allows.
   *   What they used is settled with the new limits.
   * - Requests that wait see it at once. Estimates that were not their callers' are made again. Those now too large fail
   *   with `RequestTooLarge`.
   *
   * Uninterruptible. Fails with `InvalidConfiguration`, which names every problem, and has changed nothing then.
   *
   * **Example** (Twice as many requests)
   *
   * ```ts
   * import { Effect } from "effect"
   * import { ModelConfig, QueueManager, RateLimiter } from "effect-llm-queue"
   *
   * const Gpt4 = ModelConfig.makeUntyped<string, string>("gpt-4", { rateLimiters: [RateLimiter.rpm(500)] })
   *
   * const program = Effect.gen(function*() {
   *   const manager = yield* QueueManager.QueueManager
   *   yield* manager.updateRateLimiters(Gpt4, [RateLimiter.rpm(1000)])
   * })
   * ```
   */
  updateRateLimiters(
    model: ModelConfig.Any | string,
    rateLimiters: ReadonlyArray<RateLimiter.Config> | "unlimited"
  ): Effect.Effect<void, QueueError.ModelNotRegistered | QueueError.InvalidConfiguration>

  /**
   * Gives one limit another number, and leaves the others, and all else about it, as they are. Otherwise as
   * `updateRateLimiters`.
   *
   * **Example** (Twice as many requests)
   *
   * ```ts
   * import { QueueManager } from "effect-llm-queue"
   *
   * const program = QueueManager.QueueManager.use((manager) =>
   *   manager.changeLimit("gpt-4", { type: "rpm", limit: 1000 })
   * )
   * ```
   */
  changeLimit(
    model: ModelConfig.Any | string,
    change: LimitChange
  ): Effect.Effect<void, QueueError.ModelNotRegistered | QueueError.InvalidConfiguration>

  /**
   * Closes all queues at once and ends when they have closed: immediately when they are idle, at the deadline at the
   * latest. From its start on submissions fail with `QueueShutdown`; statuses can still be read after it. Without
   * options each queue uses its own policy.
   */
  shutdownAll(options?: ModelConfig.Shutdown): Effect.Effect<void>

  /**
   * Every change of a request's status from now on, of all models. A reader that falls behind by more than the
   * manager's `eventCapacity` misses the oldest events; it delays nobody. Ends when the manager does.
   */
  readonly events: Stream.Stream<QueueResponse.QueueResponse<unknown, unknown>>
}>()("effect-llm-queue/QueueManager") {}

/**
 * @since 0.1.0
 */
export declare namespace Registration {
  /**
   * The services that registrations need.
   *
   * @category models
   * @since 0.1.0
   */
  export type Services<T> = T extends Registration<infer R> ? R : never
}

/**
 * A manager. When its layer's scope closes, it shuts down all of its queues that are still open.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerWith = (options: Options): Layer.Layer<QueueManager> =>
  Layer.effect(QueueManager, internal.make(options))

/**
 * A manager with default options.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<QueueManager> = layerWith({})

/**
 * A model with its processor, to be registered together with others by `layerModels` or `registerAllQueues`.
 *
 * @category constructors
 * @since 0.1.0
 */
export const registration: <P, A, E, R>(
  model: ModelConfig.ModelConfig<P, A, E>,
  processor: Processor<P, A, E, R>
) => Registration<R> = internal.registration

/**
 * Registers a model for as long as the layer lives. What the processor needs becomes what the layer needs.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerModel = <P, A, E, R>(
  model: ModelConfig.ModelConfig<P, A, E>,
  processor: Processor<P, A, E, R>
): Layer.Layer<never, QueueError.RegisterError, QueueManager | Exclude<R, Scope.Scope>> =>
  Layer.effectDiscard(QueueManager.use((manager) => manager.registerQueue(model, processor)))

/**
 * A model of streams with its processor, to be registered together with others.
 *
 * @category constructors
 * @since 0.1.0
 */
export const streamRegistration: <P, A, E, R>(
  model: ModelConfig.StreamModelConfig<P, A, E>,
  processor: StreamProcessor<P, A, E, R>
) => Registration<R> = internal.streamRegistration

/**
 * Registers a model of streams for as long as the layer lives. What the processor needs becomes what the layer needs.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerStream = <P, A, E, R>(
  model: ModelConfig.StreamModelConfig<P, A, E>,
  processor: StreamProcessor<P, A, E, R>
): Layer.Layer<never, QueueError.RegisterError, QueueManager | Exclude<R, Scope.Scope>> =>
  Layer.effectDiscard(QueueManager.use((manager) => manager.registerStream(model, processor)))

/**
 * Registers several models, or none, for as long as the layer lives. They are drained together.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerModels = <const Rs extends ReadonlyArray<Registration<unknown>>>(
  ...registrations: Rs
): Layer.Layer<
  never,
  QueueError.RegisterError,
  QueueManager | Exclude<Registration.Services<Rs[number]>, Scope.Scope>
> => Layer.effectDiscard(QueueManager.use((manager) => manager.registerAllQueues(registrations)))

/**
 * What the requests that are submitted in a region of a program have in common, unless they say otherwise themselves.
 *
 * @category models
 * @since 0.1.0
 */
export interface RequestContext {
  readonly priority?: ModelConfig.Priority | undefined
  readonly tenant?: string | undefined
  /** The earlier one of this and the request's own holds. */
  readonly deadline?: DateTime.DateTime.Input | undefined
  /** Together with the request's own. */
  readonly labels?: Readonly<Record<string, string>> | undefined
}

/**
 * The context of requests, set by `withPriority`, `withTenant`, `withDeadline` and `withLabels`. Fibers inherit it, and a
 * processor runs with that of the request it processes: what an agent submits belongs to the same tenant, has the same
 * priority and must be done by the same time.
 *
 * @category references
 * @since 0.1.0
 */
export const CurrentRequestContext: Context.Reference<RequestContext> = context.CurrentRequestContext

const updated = <A, E, R>(
  self: Effect.Effect<A, E, R>,
  update: (context: RequestContext) => RequestContext
): Effect.Effect<A, E, R> => Effect.updateService(self, CurrentRequestContext, update)

/**
 * Gives requests of a region of a program a priority.
 *
 * @category combinators
 * @since 0.1.0
 */
export const withPriority: {
  (priority: ModelConfig.Priority): <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  <A, E, R>(self: Effect.Effect<A, E, R>, priority: ModelConfig.Priority): Effect.Effect<A, E, R>
} = Function.dual(
  2,
  <A, E, R>(self: Effect.Effect<A, E, R>, priority: ModelConfig.Priority): Effect.Effect<A, E, R> =>
    updated(self, (context) => ({ ...context, priority }))
)

/**
 * Says whose requests those of a region of a program are.
 *
 * **Example** (The requests of a user)
 *
 * ```ts
 * import { Effect } from "effect"
 * import { ModelConfig, QueueManager } from "effect-llm-queue"
 *
 * const Draft = ModelConfig.makeUntyped<string, string>("draft", { rateLimit: 10 })
 *
 * const program = QueueManager.QueueManager.use((manager) => manager.submit(Draft, "hello")).pipe(
 *   QueueManager.withTenant("user-42"),
 *   QueueManager.withPriority("high")
 * )
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const withTenant: {
  (tenant: string): <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  <A, E, R>(self: Effect.Effect<A, E, R>, tenant: string): Effect.Effect<A, E, R>
} = Function.dual(
  2,
  <A, E, R>(self: Effect.Effect<A, E, R>, tenant: string): Effect.Effect<A, E, R> =>
    updated(self, (context) => ({ ...context, tenant }))
)

/**
 * Requests of a region of a program must have ended by an instant of the wall clock. Of deadlines inside one another the
 * earliest holds.
 *
 * @category combinators
 * @since 0.1.0
 */
export const withDeadline: {
  (deadline: DateTime.DateTime.Input): <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  <A, E, R>(self: Effect.Effect<A, E, R>, deadline: DateTime.DateTime.Input): Effect.Effect<A, E, R>
} = Function.dual(
  2,
  <A, E, R>(self: Effect.Effect<A, E, R>, deadline: DateTime.DateTime.Input): Effect.Effect<A, E, R> =>
    updated(self, (context) => ({ ...context, deadline: settings.earlier(context.deadline, deadline) }))
)

/**
 * Labels of the requests of a region of a program, beside those of the regions around it.
 *
 * @category combinators
 * @since 0.1.0
 */
export const withLabels: {
  (labels: Readonly<Record<string, string>>): <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  <A, E, R>(self: Effect.Effect<A, E, R>, labels: Readonly<Record<string, string>>): Effect.Effect<A, E, R>
} = Function.dual(
  2,
  <A, E, R>(self: Effect.Effect<A, E, R>, labels: Readonly<Record<string, string>>): Effect.Effect<A, E, R> =>
    updated(self, (context) => ({ ...context, labels: { ...context.labels, ...labels } }))
)
