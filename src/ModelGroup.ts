/**
 * Several models that can do the same work: a request goes to the one that can take it soonest, and to the next one
 * when that cannot do it.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Types from "effect/Types"
import * as settings from "./internal/settings.ts"
import type * as ModelConfig from "./ModelConfig.ts"
import * as QueueError from "./QueueError.ts"
import * as QueueManager from "./QueueManager.ts"
import * as QueueRequest from "./QueueRequest.ts"
import type * as QueueResponse from "./QueueResponse.ts"

/**
 * Models that take the same parameters and give the same results. `E` is any of their errors.
 *
 * @category models
 * @since 0.1.0
 */
export interface ModelGroup<in out P, in out A, out E> {
  readonly "~effect-llm-queue/ModelGroup": {
    readonly P: Types.Invariant<P>
    readonly A: Types.Invariant<A>
    readonly E: Types.Covariant<E>
  }
  readonly models: ReadonlyArray<ModelConfig.Any>
  readonly strategy: Strategy
  readonly fallbackOn: ((error: unknown) => boolean) | undefined
}

/**
 * Which model a request goes to: the one with the smallest predicted wait (`fastest`), or the first one of the list
 * whose provider answers (`ordered`). Of equals the first one of the list.
 *
 * @category models
 * @since 0.1.0
 */
export type Strategy = "fastest" | "ordered"

/**
 * Options of a group.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options<E> {
  /** Default `fastest`. */
  readonly strategy?: Strategy | undefined
  /**
   * Whether the next model is tried after a failure. Default: after those of the queue and of the provider that another
   * model may not have, see `submit`; never after an error of the processor's own.
   */
  readonly fallbackOn?: ((error: E | QueueError.SubmitError) => boolean) | undefined
}

/** A model of a group, whatever its errors. */
interface Member<in out P, in out A> extends ModelConfig.Any {
  readonly "~effect-llm-queue/ModelConfig": {
    readonly P: Types.Invariant<P>
    readonly A: Types.Invariant<A>
    readonly E: unknown
  }
}

/**
 * The errors of the models of a list.
 *
 * @category models
 * @since 0.1.0
 */
export type Errors<Models extends ReadonlyArray<ModelConfig.Any>> = Models[number] extends infer M
  ? M extends { readonly "~effect-llm-queue/ModelConfig": { readonly E: Types.Invariant<infer E> } } ? E : never
  : never

const variance: ModelGroup<never, never, never>["~effect-llm-queue/ModelGroup"] = {
  P: (_) => _,
  A: (_) => _,
  E: (_) => _
}

/**
 * Makes a group of models with the same parameters and results; each is registered on its own, with its own limits.
 *
 * **Example** (Two providers)
 *
 * ```ts
 * import { ModelConfig, ModelGroup, RateLimiter } from "effect-llm-queue"
 *
 * const Gpt = ModelConfig.makeUntyped<string, string, Error>("gpt", { rateLimiters: [RateLimiter.rpm(500)] })
 * const Claude = ModelConfig.makeUntyped<string, string>("claude", { rateLimiters: [RateLimiter.rpm(50)] })
 *
 * const Chat = ModelGroup.make([Gpt, Claude])
 *
 * const answer = ModelGroup.submit(Chat, "hello", { timeout: "30 seconds" })
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = <P, A, const Models extends ReadonlyArray<ModelConfig.Any>>(
  models: Models & ReadonlyArray<Member<P, A>>,
  options?: Options<Errors<Models>>
): ModelGroup<P, A, Errors<Models>> => ({
  // One value stands for every instantiation.
  "~effect-llm-queue/ModelGroup": variance as unknown as ModelGroup<
    P,
    A,
    Errors<Models>
  >["~effect-llm-queue/ModelGroup"],
  models,
  strategy: options?.strategy ?? "fastest",
  fallbackOn: options?.fallbackOn as ((error: unknown) => boolean) | undefined
})

/** What another model may be spared: the state of one queue, one provider or one account. */
const passes = new Set([
  "ModelNotRegistered",
  "BudgetExceeded",
  "QuotaExhausted",
  "ProviderUnavailable",
  "RateLimitExceeded",
  "QueueFull",
  "QueueShutdown",
  "QueueDraining",
  "RequestTooLarge"
])

const mayPass = (error: unknown): boolean =>
  QueueError.isQueueError(error)
  && (passes.has(error._tag) || (error._tag === "QueueTimeout" && error.predictedWaitMillis !== undefined))

/** A model of a group, with what is behind its id. */
type Model<P, A, E> = ModelConfig.ModelConfig<P, A, E>

/**
 * How long a request would wait in each model of a group, in the order in which they would be tried. Models that are not
 * registered, or that the request is too large for, are left out.
 *
 * @category accessors
 * @since 0.1.0
 */
export const rank = Effect.fn("ModelGroup.rank")(function*<P, A, E>(
  group: ModelGroup<P, A, E>,
  options?: QueueRequest.EstimateOptions<NoInfer<P>>
) {
  const manager = yield* QueueManager.QueueManager
  const waits: Array<{ readonly modelId: string; readonly wait: Duration.Duration }> = []
  for (const model of group.models) {
    // Its errors do not matter for the wait.
    const wait = yield* Effect.option(manager.estimateWait(model as Model<P, A, E>, options))
    if (wait._tag === "Some") waits.push({ modelId: model.modelId, wait: wait.value })
  }
  if (group.strategy === "fastest") {
    return waits.toSorted((a, b) => Duration.toMillis(a.wait) - Duration.toMillis(b.wait) || 0)
  }
  const infos = yield* manager.getAllQueuesInfo
  const isAway = ({ modelId }: { readonly modelId: string }) => {
    const info = infos.get(modelId)
    return info?.state === "paused" || info?.state === "draining"
      || info?.provider?.state === "unavailable" || info?.provider?.state === "quotaExhausted"
  }
  return waits.toSorted((a, b) => Number(isAway(a)) - Number(isAway(b)))
})

/**
 * Submits a request to a group and waits for the result: `modelId` of the response says whose it is.
 *
 * **Details**
 *
 * It goes to one model at a time, and to the next one only after it has ended there; so it is never charged in two
 * models at once. It goes on after `QuotaExhausted`, `BudgetExceeded`, `ProviderUnavailable`, `RateLimitExceeded`, `QueueFull`,
 * `QueueShutdown`, `QueueDraining`, `RequestTooLarge`, `ModelNotRegistered`, and after a `QueueTimeout` with a predicted
 * wait (it could not be in time there). The attempts that the model's own retry policy makes come before. A request that
 * waits when the circuit breaker of its provider opens goes on at once, unless there is no other model left: then it
 * waits for that one. When all have failed, the failure is that of the last one.
 *
 * `timeout` counts from this call and holds for all models together, as a `deadline` does. Interrupting it cancels the
 * request where it is.
 *
 * @category operations
 * @since 0.1.0
 */
export const submit: <P, A, E>(
  group: ModelGroup<P, A, E>,
  params: NoInfer<P>,
  options?: QueueRequest.RequestOptions
) => Effect.Effect<QueueResponse.Completed<A>, E | QueueError.SubmitError, QueueManager.QueueManager> = Effect.fn(
  "ModelGroup.submit"
)(function*<P, A, E>(
  group: ModelGroup<P, A, E>,
  params: P,
  options?: QueueRequest.RequestOptions
): Effect.fn.Return<QueueResponse.Completed<A>, E | QueueError.SubmitError, QueueManager.QueueManager> {
  const manager = yield* QueueManager.QueueManager
  const begin = yield* Clock.monotonicTimeNanos
  const timeout = options?.timeout === undefined ? Number.POSITIVE_INFINITY : settings.timeout(options.timeout)
  const decides = group.fallbackOn ?? mayPass
  const tried = new Set<string>()
  let failure: E | QueueError.SubmitError = new QueueError.ModelNotRegistered({
    modelId: group.models.map(({ modelId }) => modelId).join(", ")
  })
  while (true) {
    // Anew each time: what was said before the last try may be over.
    const left = (yield* rank(group, { ...options, params })).filter(({ modelId }) => !tried.has(modelId))
    const next = left[0] ?? { modelId: group.models.find(({ modelId }) => !tried.has(modelId))?.modelId }
    const model = group.models.find(({ modelId }) => modelId === next.modelId)
    if (model === undefined) return yield* Effect.fail(failure)
    tried.add(model.modelId)
    const elapsed = Number((yield* Clock.monotonicTimeNanos) - begin) / 1e6
    // What is no timeout is named by the queue.
    const remaining = typeof timeout === "string" || timeout === Number.POSITIVE_INFINITY
      ? options?.timeout
      : Math.max(timeout - elapsed, 1e-3)
    const request = QueueRequest.make(model as Model<P, A, E>, {
      ...options,
      params,
      ...(remaining === undefined ? {} : { timeout: remaining }),
      whenUnavailable: options?.whenUnavailable ?? (left.length > 1 ? "fail" : "wait")
    })
    const result = yield* Effect.result(manager.submitRequest(request))
    if (result._tag === "Success") return result.success
    failure = result.failure
    if (!decides(failure)) return yield* Effect.fail(failure)
  }
})
