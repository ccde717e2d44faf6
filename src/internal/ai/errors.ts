/** The queue's errors as those of `effect/ai`, which programs that are written against it know. */
import * as AiError from "effect/ai/AiError"
import * as Response from "effect/ai/Response"
import * as DateTime from "effect/DateTime"
import * as Duration from "effect/Duration"
import * as Predicate from "effect/Predicate"
import type * as QueueError from "../../QueueError.ts"

const key = "effect-llm-queue"

const originals = new WeakMap<object, QueueError.QueueError>()

/** The error of the queue that an error of `effect/ai` stands for. */
export const original = (error: unknown): QueueError.QueueError | undefined =>
  AiError.isAiError(error) ? originals.get(error.reason) : undefined

/** Reasons that a provider's answer, or its silence, has. The others are about what the program itself does. */
const providers = new Set([
  "RateLimitError",
  "QuotaExhaustedError",
  "AuthenticationError",
  "InternalProviderError",
  "InvalidRequestError",
  "NetworkError",
  "UnknownError"
])

export const isErrorPart = (part: unknown): part is Response.ErrorPart =>
  Predicate.isObject(part) && "type" in part && part.type === "error" && Response.isPart(part)

export const isProviders = (error: unknown): boolean =>
  AiError.isAiError(error) ? providers.has(error.reason._tag) : isErrorPart(error)

/** What a provider's refusal said, where the queue's error stands for one. */
const refusal = (error: QueueError.SubmitError) => {
  const cause = "cause" in error && AiError.isAiError(error.cause) ? error.cause.reason : undefined
  return {
    http: cause !== undefined && "http" in cause ? cause.http : undefined,
    metadata: cause !== undefined && "metadata" in cause ? cause.metadata : {}
  }
}

const described = (error: QueueError.SubmitError): AiError.ProviderMetadata[string] => {
  const fields: Record<string, string | number | boolean | Array<string>> = { tag: error._tag, message: error.message }
  for (const [name, value] of Object.entries(error)) {
    if (typeof value === "string" || typeof value === "number" || typeof value === "boolean") fields[name] = value
    else if (Array.isArray(value) && value.every(Predicate.isString)) fields[name] = [...value]
  }
  delete fields["_tag"]
  return fields
}

const optional = (millis: number | undefined): Duration.Duration | undefined =>
  millis === undefined ? undefined : Duration.millis(millis)

const reasonOf = (error: QueueError.SubmitError, wall: number): AiError.AiErrorReason => {
  const { http, metadata: theirs } = refusal(error)
  const metadata = { ...theirs, [key]: described(error) }
  const description = error.message
  const until = (millis: number | undefined) => millis === undefined ? undefined : DateTime.makeUnsafe(wall + millis)
  switch (error._tag) {
    case "RateLimitExceeded":
      return new AiError.RateLimitError({ retryAfter: optional(error.retryAfterMillis), metadata, http })
    case "QueueFull":
      return new AiError.RateLimitError({ metadata })
    case "QueueTimeout":
      return error.limit === "processingTimeout"
        ? new AiError.InternalProviderError({ description, metadata })
        : new AiError.RateLimitError({ retryAfter: optional(error.predictedWaitMillis), metadata })
    case "BudgetExceeded":
      return new AiError.QuotaExhaustedError({ resetAt: until(error.retryAfterMillis), metadata })
    case "QuotaExhausted":
      return new AiError.QuotaExhaustedError({ resetAt: until(error.retryInMillis), metadata })
    case "ProviderUnavailable":
      return new AiError.InternalProviderError({ description, metadata, http })
    case "RequestTooLarge":
      return new AiError.InvalidRequestError({ parameter: "prompt", description, metadata })
    case "InvalidRequest":
    case "DuplicateRequest":
      return new AiError.InvalidRequestError({ description, metadata })
    default:
      return new AiError.UnknownError({ description, metadata })
  }
}

export const toAiError = (error: QueueError.SubmitError, method: string, wall: number): AiError.AiError => {
  const reason = reasonOf(error, wall)
  originals.set(reason, error)
  return AiError.make({ module: "QueueManager", method, reason })
}
