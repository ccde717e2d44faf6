/**
 * A model as a typed dependency, and a queue without a manager.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as internal from "./internal/manager.ts"
import * as ModelConfig from "./ModelConfig.ts"
import * as QueueError from "./QueueError.ts"
import * as QueueManager from "./QueueManager.ts"
import * as QueueRequest from "./QueueRequest.ts"
import type * as QueueResponse from "./QueueResponse.ts"
import type * as RateLimiter from "./RateLimiter.ts"

/**
 * What a queue that is certainly registered can fail with; `QueueShutdown` once it no longer is.
 *
 * @category models
 * @since 0.1.0
 */
export type SubmitError = Exclude<QueueError.SubmitError, QueueError.ModelNotRegistered>

/**
 * As `SubmitError`, for acceptance alone.
 *
 * @category models
 * @since 0.1.0
 */
export type AcceptError = Exclude<QueueError.AcceptError, QueueError.ModelNotRegistered>

/**
 * The queue of one model: the methods of `QueueManager`, without the model and without `ModelNotRegistered`.
 *
 * @category models
 * @since 0.1.0
 */
export interface ModelQueue<P, A, E> {
  /** Submits and waits for the result. Interrupting it cancels the request. */
  submit(
    params: P,
    options?: QueueRequest.RequestOptions
  ): Effect.Effect<QueueResponse.Completed<A>, E | SubmitError>
  /** Submits and returns when the request is accepted. */
  enqueue(
    params: P,
    options?: QueueRequest.RequestOptions
  ): Effect.Effect<QueueResponse.Pending<A, E>, AcceptError>
  awaitCompletion(
    requestId: string
  ): Effect.Effect<QueueResponse.Completed<A>, E | SubmitError | QueueError.RequestNotFound>
  cancelRequest(requestId: string): Effect.Effect<boolean, QueueError.RequestNotFound>
  getStatus(requestId: string): Effect.Effect<QueueResponse.QueueResponse<A, E>, QueueError.RequestNotFound>
  updateTokenUsage(
    requestId: string,
    usage: ModelConfig.Usage
  ): Effect.Effect<RateLimiter.Settlement, QueueError.RequestNotFound | QueueError.InvalidRequest>
  /** Gives one limit another number: see `QueueManager.changeLimit`. */
  changeLimit(
    change: QueueManager.LimitChange
  ): Effect.Effect<void, QueueError.InvalidConfiguration | QueueError.QueueShutdown>
  /** Replaces the limits, and keeps what is known: see `QueueManager.updateRateLimiters`. */
  updateRateLimiters(
    rateLimiters: ReadonlyArray<RateLimiter.Config> | "unlimited"
  ): Effect.Effect<void, QueueError.InvalidConfiguration | QueueError.QueueShutdown>
  readonly getQueueInfo: Effect.Effect<QueueManager.QueueInfo, QueueError.QueueShutdown>
  estimateWait(
    options?: QueueRequest.EstimateOptions<P>
  ): Effect.Effect<
    Duration.Duration,
    QueueError.QueueShutdown | QueueError.InvalidRequest | QueueError.RequestTooLarge
  >
  cancelRequests(
    filter: QueueManager.RequestFilter
  ): Effect.Effect<number, QueueError.QueueShutdown | QueueError.InvalidRequest>
  changePriority(
    requestId: string,
    priority: ModelConfig.Priority
  ): Effect.Effect<boolean, QueueError.RequestNotFound | QueueError.InvalidRequest>
  readonly pause: Effect.Effect<void, QueueError.QueueShutdown>
  readonly resume: Effect.Effect<void, QueueError.QueueShutdown>
  /** See `drainQueue` of the manager. */
  readonly drain: Effect.Effect<boolean, QueueError.QueueShutdown>
  readonly deadLetters: Effect.Effect<ReadonlyArray<QueueResponse.DeadLetter<P, A, E>>, QueueError.QueueShutdown>
  resubmitDeadLetter(
    requestId: string,
    options?: QueueRequest.RequestOptions
  ): Effect.Effect<QueueResponse.Pending<A, E>, AcceptError | QueueError.RequestNotFound>
  removeDeadLetters(requestIds?: ReadonlyArray<string>): Effect.Effect<number, QueueError.QueueShutdown>
}

/**
 * A class that is a model and, as a service, its queue.
 *
 * @category models
 * @since 0.1.0
 */
export interface ServiceClass<in out Self, in out Id extends string, in out P, in out A, in out E>
  extends
    Context.ServiceClass<Self, `effect-llm-queue/ModelQueue/${Id}`, ModelQueue<P, A, E>>,
    ModelConfig.ModelConfig<P, A, E>
{
  /** Registers the model with the manager for as long as the layer lives, and provides its queue. */
  layer<R>(
    processor: QueueManager.Processor<P, A, E, R>
  ): Layer.Layer<Self, QueueError.RegisterError, QueueManager.QueueManager | Exclude<Exclude<R, Self>, Scope.Scope>>
  /** `ModelQueue.submit` of the queue in the context. */
  submit(
    params: P,
    options?: QueueRequest.RequestOptions
  ): Effect.Effect<QueueResponse.Completed<A>, E | SubmitError, Self>
}

/** The manager's methods for one model. A model that it no longer knows has shut down. */
const fromManager = <P, A, E>(
  manager: QueueManager.QueueManager["Service"],
  model: ModelConfig.ModelConfig<P, A, E>
): ModelQueue<P, A, E> => {
  const { modelId } = model
  const isGone = (error: unknown): error is QueueError.ModelNotRegistered =>
    // A processor's own error may be one too, of another model.
    error instanceof QueueError.ModelNotRegistered && error.modelId === modelId
  const shutdown = (requestId: string) => Effect.fail(new QueueError.QueueShutdown({ modelId, requestId }))
  const closed = () => Effect.fail(new QueueError.QueueShutdown({ modelId, requestId: undefined }))
  const notFound = (requestId: string) => Effect.fail(new QueueError.RequestNotFound({ modelId, requestId }))
  return {
    submit: (params, options) =>
      Effect.suspend(() => {
        const request = QueueRequest.make(model, { ...options, params })
        return Effect.catchIf(manager.submitRequest(request), isGone, () => shutdown(request.id))
      }),
    enqueue: (params, options) =>
      Effect.suspend(() => {
        const request = QueueRequest.make(model, { ...options, params, waitForCompletion: false })
        return Effect.catchIf(manager.submitRequest(request), isGone, () => shutdown(request.id))
      }),
    awaitCompletion: (requestId) =>
      Effect.catchIf(manager.awaitCompletion(model, requestId), isGone, () => notFound(requestId)),
    cancelRequest: (requestId) =>
      Effect.catchIf(manager.cancelRequest(model, requestId), isGone, () => notFound(requestId)),
    getStatus: (requestId) => Effect.catchIf(manager.getStatus(model, requestId), isGone, () => notFound(requestId)),
    updateTokenUsage: (requestId, usage) =>
      Effect.catchIf(manager.updateTokenUsage(model, requestId, usage), isGone, () => notFound(requestId)),
    changeLimit: (change) => Effect.catchIf(manager.changeLimit(model, change), isGone, closed),
    updateRateLimiters: (rateLimiters) =>
      Effect.catchIf(manager.updateRateLimiters(model, rateLimiters), isGone, closed),
    getQueueInfo: Effect.catchIf(manager.getQueueInfo(model), isGone, closed),
    estimateWait: (options) => Effect.catchIf(manager.estimateWait(model, options), isGone, closed),
    cancelRequests: (filter) => Effect.catchIf(manager.cancelRequests(model, filter), isGone, closed),
    changePriority: (requestId, priority) =>
      Effect.catchIf(manager.changePriority(model, requestId, priority), isGone, () => notFound(requestId)),
    pause: Effect.catchIf(manager.pauseQueue(model), isGone, closed),
    resume: Effect.catchIf(manager.resumeQueue(model), isGone, closed),
    drain: Effect.catchIf(manager.drainQueue(model), isGone, closed),
    deadLetters: Effect.catchIf(manager.deadLetters(model), isGone, closed),
    resubmitDeadLetter: (requestId, options) =>
      Effect.catchIf(manager.resubmitDeadLetter(model, requestId, options), isGone, () => shutdown(requestId)),
    removeDeadLetters: (requestIds) => Effect.catchIf(manager.removeDeadLetters(model, requestIds), isGone, closed)
  }
}

/**
 * Opens the queue of one model without a manager. It lives as long as the scope, and is drained by the model's
 * shutdown policy when that closes.
 *
 * **Example** (A queue in a scope)
 *
 * ```ts
 * import { Effect } from "effect"
 * import { ModelConfig, ModelQueue } from "effect-llm-queue"
 *
 * const Draft = ModelConfig.makeUntyped<string, number>("draft", { rateLimit: 10 })
 *
 * const program = Effect.gen(function*() {
 *   const queue = yield* ModelQueue.make(Draft, (request) => Effect.succeed(request.params.length))
 *   return (yield* queue.submit("four")).result
 * })
 *
 * Effect.runPromise(Effect.scoped(program)) // => 4
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = <P, A, E, R>(
  model: ModelConfig.ModelConfig<P, A, E>,
  processor: QueueManager.Processor<P, A, E, R>
): Effect.Effect<ModelQueue<P, A, E>, QueueError.RegisterError, R | Scope.Scope> =>
  Effect.gen(function*() {
    const manager = yield* internal.make({})
    yield* manager.registerQueue(model, processor)
    return fromManager(manager, model)
  })

/**
 * Declares a model as a class that is also the service of its queue. A program that submits through it needs it, so a
 * forgotten registration does not compile.
 *
 * **Example** (A model as a dependency)
 *
 * ```ts
 * import { Effect, Layer, Schema } from "effect"
 * import { ModelQueue, QueueManager, RateLimiter } from "effect-llm-queue"
 *
 * class Claude extends ModelQueue.Service<Claude>()("claude", {
 *   params: Schema.Struct({ prompt: Schema.String }),
 *   result: Schema.String,
 *   rateLimiters: [RateLimiter.rpm(50)]
 * }) {}
 *
 * const ClaudeLive = Claude.layer((request) => Effect.succeed(`You said: ${request.params.prompt}`))
 *
 * const program = Claude.submit({ prompt: "hello" }, { timeout: "30 seconds" })
 *
 * program.pipe(Effect.provide(ClaudeLive.pipe(Layer.provide(QueueManager.layer))))
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const Service = <Self>() =>
<
  const Id extends string,
  P extends ModelConfig.Codec,
  A extends ModelConfig.Codec,
  E extends ModelConfig.Codec = typeof Schema.Never
>(
  modelId: Id,
  options:
    & { readonly params: P; readonly result: A; readonly error?: E | undefined }
    & ModelConfig.Options<NoInfer<P>["Type"], NoInfer<A>["Type"]>
    & ModelConfig.Limits
): ServiceClass<Self, Id, P["Type"], A["Type"], ModelConfig.Failure<E>> => {
  type Params = P["Type"]
  type Result = A["Type"]
  type Failure = ModelConfig.Failure<E>
  const key = `effect-llm-queue/ModelQueue/${modelId}` as const
  const model = ModelConfig.make(modelId, options)
  const service = Context.Service<Self, ModelQueue<Params, Result, Failure>>()(key)
  return Object.assign(service, model, {
    layer: <R>(processor: QueueManager.Processor<Params, Result, Failure, R>) =>
      Layer.effect(
        service,
        QueueManager.QueueManager.use((manager) => {
          const queue = fromManager(manager, model)
          return Effect.as(
            manager.registerQueue(model, (request) => Effect.provideService(processor(request), service, queue)),
            queue
          )
        })
      ),
    submit: (params: Params, options?: QueueRequest.RequestOptions) =>
      service.use((queue) => queue.submit(params, options))
  })
}
