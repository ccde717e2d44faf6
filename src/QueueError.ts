/**
 * The failures of the queue, as data. Each is a tagged error with the numbers a caller needs to act on it, a message
 * in plain words, and `isRetryable`: whether the same request can succeed later without being changed.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Duration from "effect/Duration"
import * as Schema from "effect/Schema"
import { show } from "./internal/settings.ts"

const TypeId = "~effect-llm-queue/QueueError"

const times = (attempts: number): string => attempts === 1 ? "1 attempt" : `${attempts} attempts`

/** Sums of money carry the rounding of their fractions. */
const money = (amount: number): string => String(Number(amount.toPrecision(6)))

const duration = (millis: number): string => Duration.format(Duration.millis(Math.round(millis)))

/**
 * No queue is registered under the model id, or its registration has ended.
 *
 * @category errors
 * @since 0.1.0
 */
export class ModelNotRegistered extends Schema.TaggedError<ModelNotRegistered>("effect-llm-queue/ModelNotRegistered")(
  "ModelNotRegistered",
  { modelId: Schema.String }
) {
  readonly [TypeId] = TypeId
  readonly isRetryable = false
  override get message() {
    return `No queue is registered for model ${JSON.stringify(this.modelId)}. `
      + `Provide QueueManager.layerModel(model, processor), or call registerQueue in a scope that is still open.`
  }
}

/**
 * A queue is already registered under the model id. A registration lives as long as its scope; end it with
 * `unregisterQueue`, or by closing the scope, before registering the id again.
 *
 * @category errors
 * @since 0.1.0
 */
export class ModelAlreadyRegistered
  extends Schema.TaggedError<ModelAlreadyRegistered>("effect-llm-queue/ModelAlreadyRegistered")(
    "ModelAlreadyRegistered",
    { modelId: Schema.String }
  )
{
  readonly [TypeId] = TypeId
  readonly isRetryable = false
  override get message() {
    return `Model ${JSON.stringify(this.modelId)} is already registered. Unregister it first, or use another id.`
  }
}

/**
 * Other processes share the limits of the model, and have other ones: with both, nobody would know which hold. End the
 * others, or let the newest win (`onConflict: "replace"` of `effect-llm-queue/Redis`).
 *
 * @category errors
 * @since 0.1.0
 */
export class LimitConflict extends Schema.TaggedError<LimitConflict>("effect-llm-queue/LimitConflict")(
  "LimitConflict",
  {
    modelId: Schema.String,
    /** The limits of this registration, as JSON. */
    ours: Schema.String,
    /** Those that the others have. */
    theirs: Schema.String,
    /** How many others there are. */
    processes: Schema.Finite
  }
) {
  readonly [TypeId] = TypeId
  readonly isRetryable = true
  override get message() {
    return `${this.processes} other ${this.processes === 1 ? "process shares" : "processes share"} the limits of model `
      + `${JSON.stringify(this.modelId)} and ${
        this.processes === 1 ? "has" : "have"
      } other ones: ${this.theirs}, and not `
      + `${this.ours}. Give them the same limits, or let the newest win with onConflict: "replace".`
  }
}

/**
 * The store that holds the state of a queue, or of its limits, cannot be reached.
 *
 * @category errors
 * @since 0.1.0
 */
export class QueueUnavailable extends Schema.TaggedError<QueueUnavailable>("effect-llm-queue/QueueUnavailable")(
  "QueueUnavailable",
  { modelId: Schema.String, requestId: Schema.UndefinedOr(Schema.String), reason: Schema.String }
) {
  readonly [TypeId] = TypeId
  readonly isRetryable = true
  override get message() {
    return `The store of model ${JSON.stringify(this.modelId)} cannot be reached`
      + `${this.requestId === undefined ? "" : `, so request ${this.requestId} cannot be let in`}: ${this.reason}. `
      + "Is the server up, and its address right? Try again later."
  }
}

/**
 * A model's configuration cannot work. `problems` names every problem found, not only the first.
 *
 * @category errors
 * @since 0.1.0
 */
export class InvalidConfiguration
  extends Schema.TaggedError<InvalidConfiguration>("effect-llm-queue/InvalidConfiguration")(
    "InvalidConfiguration",
    { modelId: Schema.String, problems: Schema.Array(Schema.String) }
  )
{
  readonly [TypeId] = TypeId
  readonly isRetryable = false
  override get message() {
    return `The configuration of model ${JSON.stringify(this.modelId)} is invalid:\n${
      this.problems.map((problem) => `  - ${problem}`).join("\n")
    }`
  }
}

/**
 * A request, or a report about one, is malformed: parameters that do not match the model's schema, a negative or NaN
 * token estimate, a bad timeout, priority or id.
 *
 * @category errors
 * @since 0.1.0
 */
export class InvalidRequest extends Schema.TaggedError<InvalidRequest>("effect-llm-queue/InvalidRequest")(
  "InvalidRequest",
  { modelId: Schema.String, requestId: Schema.String, problems: Schema.Array(Schema.String) }
) {
  readonly [TypeId] = TypeId
  readonly isRetryable = false
  override get message() {
    return `Request ${JSON.stringify(this.requestId)} to model ${JSON.stringify(this.modelId)} is invalid:\n${
      this.problems.map((problem) => `  - ${problem}`).join("\n")
    }`
  }
}

/**
 * The request needs more than a whole limit allows, so it could never be admitted. `estimated` says that `requested`
 * comes from the queue's own estimate and not from the caller's.
 *
 * @category errors
 * @since 0.1.0
 */
export class RequestTooLarge extends Schema.TaggedError<RequestTooLarge>("effect-llm-queue/RequestTooLarge")(
  "RequestTooLarge",
  {
    modelId: Schema.String,
    requestId: Schema.String,
    limitType: Schema.String,
    limit: Schema.Finite,
    requested: Schema.Finite,
    estimated: Schema.Boolean
  }
) {
  readonly [TypeId] = TypeId
  readonly isRetryable = false
  override get message() {
    return `Request ${JSON.stringify(this.requestId)} to model ${
      JSON.stringify(this.modelId)
    } needs ${this.requested} of the ${this.limitType} limit, which allows ${this.limit}: it could never be admitted. ${
      this.estimated
        ? "The need was estimated from the parameters; if it is wrong, give estimatedInputTokens and estimatedOutputTokens."
        : "Make the request smaller, or raise the limit."
    }`
  }
}

/**
 * The request costs more than is left of a budget of the model, or of its tenant: what is spent and reserved in the
 * period, and the request, come to more than the budget. `requested` is what the request would reserve.
 *
 * Retryable when the passing of time makes room for it. What running requests turn out not to have spent may do so before.
 *
 * @category errors
 * @since 0.1.0
 */
export class BudgetExceeded extends Schema.TaggedError<BudgetExceeded>("effect-llm-queue/BudgetExceeded")(
  "BudgetExceeded",
  {
    modelId: Schema.String,
    requestId: Schema.String,
    /** Whose budget it is; `undefined` for that of the model. */
    tenant: Schema.UndefinedOr(Schema.String),
    budget: Schema.Finite,
    /** Spent and reserved in the period, and kept for tenants that a part is guaranteed to. */
    used: Schema.Finite,
    requested: Schema.Finite,
    /** `undefined` for all of the registration. */
    periodMillis: Schema.UndefinedOr(Schema.Finite),
    /** Until it fits if nothing but time passes; `undefined` when that brings nothing. */
    retryAfterMillis: Schema.UndefinedOr(Schema.Finite)
  }
) {
  readonly [TypeId] = TypeId
  get isRetryable(): boolean {
    return this.retryAfterMillis !== undefined
  }
  override get message() {
    const whose = this.tenant === undefined ? "" : ` of tenant ${JSON.stringify(this.tenant)}`
    const period = this.periodMillis === undefined ? "" : ` for ${duration(this.periodMillis)}`
    return `Request ${JSON.stringify(this.requestId)} to model ${JSON.stringify(this.modelId)} costs ${
      money(this.requested)
    }, and of the budget${whose} of ${this.budget}${period}, ${money(this.used)} is spent or reserved. ${
      this.retryAfterMillis === undefined
        ? "Raise the budget, or make the request smaller."
        : `Try again in ${duration(this.retryAfterMillis)}, raise the budget, or make the request smaller.`
    }`
  }
}

/**
 * Another request with this id is waiting, running, or still retained after its end.
 *
 * @category errors
 * @since 0.1.0
 */
export class DuplicateRequest extends Schema.TaggedError<DuplicateRequest>("effect-llm-queue/DuplicateRequest")(
  "DuplicateRequest",
  { modelId: Schema.String, requestId: Schema.String }
) {
  readonly [TypeId] = TypeId
  readonly isRetryable = false
  override get message() {
    return `Model ${JSON.stringify(this.modelId)} already knows a request ${
      JSON.stringify(this.requestId)
    }, active or retained. Use another id, or leave it out.`
  }
}

/**
 * The queue holds as many waiting requests as its capacity. With the `reject` strategy the new request fails with
 * it; with `dropOldest` the request that has waited longest does; with `suspend` a fire-and-forget request does when
 * its timeout ends before there is room, and at once when a processor submits it to its own queue.
 *
 * @category errors
 * @since 0.1.0
 */
export class QueueFull extends Schema.TaggedError<QueueFull>("effect-llm-queue/QueueFull")(
  "QueueFull",
  { modelId: Schema.String, requestId: Schema.String, capacity: Schema.Finite }
) {
  readonly [TypeId] = TypeId
  readonly isRetryable = true
  override get message() {
    return `The queue of model ${
      JSON.stringify(this.modelId)
    } is full (capacity ${this.capacity}): no room for request ${
      JSON.stringify(this.requestId)
    }. Submit more slowly, or raise the capacity.`
  }
}

/**
 * The queue, or the whole manager, is shutting down or has shut down.
 *
 * @category errors
 * @since 0.1.0
 */
export class QueueShutdown extends Schema.TaggedError<QueueShutdown>("effect-llm-queue/QueueShutdown")(
  "QueueShutdown",
  { modelId: Schema.String, requestId: Schema.UndefinedOr(Schema.String) }
) {
  readonly [TypeId] = TypeId
  readonly isRetryable = false
  override get message() {
    return this.requestId === undefined
      ? `The queue of model ${JSON.stringify(this.modelId)}, or its manager, has shut down.`
      : `The queue of model ${JSON.stringify(this.modelId)} has shut down: request ${
        JSON.stringify(this.requestId)
      } was not completed.`
  }
}

/**
 * A request's time ran out. `limit` says which: its `timeout`, which counts from submission, its `deadline`, whose
 * `timeoutMillis` are those from submission to it, or the `processingTimeout` of an attempt. `queueTimeMillis` and `processingTimeMillis` say where the time went.
 *
 * With `predictedWaitMillis` it failed when it was submitted: by the limits and what waits before it, it could not have
 * been dispatched in time.
 *
 * @category errors
 * @since 0.1.0
 */
export class QueueTimeout extends Schema.TaggedError<QueueTimeout>("effect-llm-queue/QueueTimeout")(
  "QueueTimeout",
  {
    modelId: Schema.String,
    requestId: Schema.String,
    limit: Schema.Literals(["timeout", "deadline", "processingTimeout"]),
    timeoutMillis: Schema.Finite,
    queueTimeMillis: Schema.Finite,
    processingTimeMillis: Schema.Finite,
    predictedWaitMillis: Schema.optional(Schema.Finite)
  }
) {
  readonly [TypeId] = TypeId
  readonly isRetryable = true
  override get message() {
    if (this.predictedWaitMillis !== undefined) {
      return `Request ${JSON.stringify(this.requestId)} to model ${JSON.stringify(this.modelId)} would wait ${
        duration(this.predictedWaitMillis)
      } at least, and its ${this.limit} is ${
        duration(this.timeoutMillis)
      }. Give it more time, or send it when the queue is shorter.`
    }
    if (this.limit === "deadline" && this.timeoutMillis <= 0) {
      return `Request ${JSON.stringify(this.requestId)} to model ${JSON.stringify(this.modelId)} was submitted ${
        duration(-this.timeoutMillis)
      } after its deadline.`
    }
    return `Request ${JSON.stringify(this.requestId)} to model ${
      JSON.stringify(this.modelId)
    } passed its ${this.limit} of ${duration(this.timeoutMillis)}: ${duration(this.queueTimeMillis)} in the queue, ${
      duration(this.processingTimeMillis)
    } in processing.`
  }
}

/**
 * The queue is being drained: it takes no requests until `resumeQueue`.
 *
 * @category errors
 * @since 0.1.0
 */
export class QueueDraining extends Schema.TaggedError<QueueDraining>("effect-llm-queue/QueueDraining")(
  "QueueDraining",
  { modelId: Schema.String, requestId: Schema.String }
) {
  readonly [TypeId] = TypeId
  readonly isRetryable = true
  override get message() {
    return `The queue of model ${JSON.stringify(this.modelId)} is being drained and takes no requests: request ${
      JSON.stringify(this.requestId)
    } was not accepted. Submit it again when the queue has been resumed.`
  }
}

/**
 * The request was cancelled: by `cancelRequest`, or because the fiber that submitted it was interrupted.
 *
 * @category errors
 * @since 0.1.0
 */
export class RequestCancelled extends Schema.TaggedError<RequestCancelled>("effect-llm-queue/RequestCancelled")(
  "RequestCancelled",
  { modelId: Schema.String, requestId: Schema.String }
) {
  readonly [TypeId] = TypeId
  readonly isRetryable = false
  override get message() {
    return `Request ${JSON.stringify(this.requestId)} to model ${JSON.stringify(this.modelId)} was cancelled.`
  }
}

/**
 * The provider refused the request by a rate limit, and it is not attempted again: the retry schedule has ended, or
 * the time that the provider asks for is longer than the request has. `cause` is the last failure of the processor.
 *
 * @category errors
 * @since 0.1.0
 */
export class RateLimitExceeded extends Schema.TaggedError<RateLimitExceeded>("effect-llm-queue/RateLimitExceeded")(
  "RateLimitExceeded",
  {
    modelId: Schema.String,
    requestId: Schema.String,
    attempts: Schema.Finite,
    /** Types of the limits that it may have been. */
    limitTypes: Schema.Array(Schema.String),
    /** What the provider asked to wait. */
    retryAfterMillis: Schema.UndefinedOr(Schema.Finite),
    cause: Schema.Defect()
  }
) {
  readonly [TypeId] = TypeId
  readonly isRetryable = true
  override get message() {
    const limits = this.limitTypes.length === 0 ? "a rate limit" : `its ${this.limitTypes.join(" or ")} limit`
    const hint = this.retryAfterMillis === undefined
      ? ""
      : ` The provider asks to wait ${duration(this.retryAfterMillis)}.`
    return `The provider refused request ${JSON.stringify(this.requestId)} to model ${
      JSON.stringify(this.modelId)
    } by ${limits}, after ${times(this.attempts)}.${hint} Check that the configured limits are those of the account, `
      + `and that nobody else uses them.`
  }
}

/**
 * The provider answers no request any more because of money: no credit, or a spending limit. All requests that wait
 * fail with it, and new ones until the circuit breaker's `quotaCooldown` has passed; then one is sent to try.
 *
 * @category errors
 * @since 0.1.0
 */
export class QuotaExhausted extends Schema.TaggedError<QuotaExhausted>("effect-llm-queue/QuotaExhausted")(
  "QuotaExhausted",
  {
    modelId: Schema.String,
    requestId: Schema.String,
    /** The provider's own words. */
    reason: Schema.String,
    /** Until requests are accepted again. */
    retryInMillis: Schema.Finite
  }
) {
  readonly [TypeId] = TypeId
  readonly isRetryable = false
  override get message() {
    return `The quota of the provider of model ${JSON.stringify(this.modelId)} is exhausted: request ${
      JSON.stringify(this.requestId)
    } was not completed. Check the account's credit and spending limits; the queue tries again in ${
      duration(this.retryInMillis)
    }. The provider said: ${this.reason}`
  }
}

/**
 * The provider is overloaded: the retry schedule or its budget has ended; or the circuit breaker was open when the
 * request's time was up. A fault that is not attempted again (500, a lost connection) ends in the processor's own
 * failure. `cause` is the last failure of the request's processor, if it had an attempt.
 *
 * @category errors
 * @since 0.1.0
 */
export class ProviderUnavailable
  extends Schema.TaggedError<ProviderUnavailable>("effect-llm-queue/ProviderUnavailable")(
    "ProviderUnavailable",
    {
      modelId: Schema.String,
      requestId: Schema.String,
      attempts: Schema.Finite,
      /** What the provider asked to wait, or until the next try. */
      retryAfterMillis: Schema.UndefinedOr(Schema.Finite),
      /** The provider's own words. */
      reason: Schema.String,
      cause: Schema.UndefinedOr(Schema.Defect())
    }
  )
{
  readonly [TypeId] = TypeId
  readonly isRetryable = true
  override get message() {
    const hint = this.retryAfterMillis === undefined ? "" : ` Try again in ${duration(this.retryAfterMillis)}.`
    return `The provider of model ${JSON.stringify(this.modelId)} is unavailable: request ${
      JSON.stringify(this.requestId)
    } was not completed in ${times(this.attempts)}.${hint} The provider said: ${this.reason}`
  }
}

/**
 * The processor did not end in a result or in its declared error: it died, or interrupted itself. `cause` is what
 * happened, whole: a `Cause`, which `Cause.isCause` narrows and `Cause.pretty` shows with its stack.
 *
 * @category errors
 * @since 0.1.0
 */
export class ProcessingError extends Schema.TaggedError<ProcessingError>("effect-llm-queue/ProcessingError")(
  "ProcessingError",
  { modelId: Schema.String, requestId: Schema.String, cause: Schema.Defect() }
) {
  readonly [TypeId] = TypeId
  readonly isRetryable = false
  override get message() {
    return `The processor of model ${JSON.stringify(this.modelId)} broke on request ${
      JSON.stringify(this.requestId)
    }: ${show(Cause.isCause(this.cause) ? Cause.squash(this.cause) : this.cause)}`
  }
}

/**
 * The model has no such request: it was never submitted, was refused at submission, or has ended and left the
 * retained ones.
 *
 * @category errors
 * @since 0.1.0
 */
export class RequestNotFound extends Schema.TaggedError<RequestNotFound>("effect-llm-queue/RequestNotFound")(
  "RequestNotFound",
  { modelId: Schema.String, requestId: Schema.String }
) {
  readonly [TypeId] = TypeId
  readonly isRetryable = false
  override get message() {
    return `Model ${JSON.stringify(this.modelId)} knows no request ${
      JSON.stringify(this.requestId)
    }: never accepted, or no longer retained.`
  }
}

/**
 * What registering a model can fail with.
 *
 * @category models
 * @since 0.1.0
 */
export type RegisterError =
  | InvalidConfiguration
  | ModelAlreadyRegistered
  | QueueShutdown
  | LimitConflict
  | QueueUnavailable

/**
 * What can keep a request from being accepted.
 *
 * @category models
 * @since 0.1.0
 */
export type AcceptError =
  | ModelNotRegistered
  | InvalidRequest
  | RequestTooLarge
  | BudgetExceeded
  | DuplicateRequest
  | QueueFull
  | QueueShutdown
  | QueueDraining
  | QuotaExhausted
  | ProviderUnavailable
  | QueueUnavailable
  | QueueTimeout

/**
 * What a submitted request can fail with, besides its processor's own typed error.
 *
 * @category models
 * @since 0.1.0
 */
export type SubmitError =
  | AcceptError
  | RequestCancelled
  | RateLimitExceeded
  | ProcessingError

/**
 * Every error of this module.
 *
 * @category models
 * @since 0.1.0
 */
export type QueueError = RegisterError | SubmitError | RequestNotFound

/**
 * Whether a value is one of the queue's own errors, and not for instance a processor's.
 *
 * **Example** (Telling the queue's failures from the processor's)
 *
 * ```ts
 * import { QueueError } from "effect-llm-queue"
 *
 * QueueError.isQueueError(new QueueError.ModelNotRegistered({ modelId: "gpt-4" })) // => true
 * ```
 *
 * @category guards
 * @since 0.1.0
 */
export const isQueueError = <E>(u: E): u is E & QueueError => typeof u === "object" && u !== null && TypeId in u
