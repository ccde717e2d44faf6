/**
 * What is stored of a request, and of its end. Parameters, results and the processor's errors are written by the model's
 * schemas and then by the user's codec; of anything else only its kind is kept: texts of failures may hold secrets.
 */
import * as Cause from "effect/Cause"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Schema from "effect/Schema"
import type * as ModelConfig from "../../ModelConfig.ts"
import * as QueueError from "../../QueueError.ts"
import type * as QueueRequest from "../../QueueRequest.ts"
import type * as QueueResponse from "../../QueueResponse.ts"
import type { Failure, ProcessorFailure, Snapshot } from "../entry.ts"

/** What is done to texts before they are stored, and after. */
export interface Codec {
  readonly encode: (text: string) => Effect.Effect<string>
  readonly decode: (text: string) => Effect.Effect<string, string>
}

/** The data of a job. */
export interface StoredRequest {
  readonly version: 1
  readonly params: string
  readonly options: Pick<
    QueueRequest.RequestOptions,
    | "estimatedInputTokens"
    | "estimatedCachedInputTokens"
    | "estimatedOutputTokens"
    | "maxOutputTokens"
    | "labels"
    | "tenant"
    | "whenUnavailable"
    | "metadata"
    | "priority"
  >
  /** Milliseconds, as all times. */
  readonly headStart: number
  readonly createdAt: number
  /** Until when it must have ended; `undefined` for ever. */
  readonly expiresAt: number | undefined
  readonly hasDeadline: boolean
  /** What it submits itself must end by then, too. */
  readonly deadline: number | undefined
  readonly processingTimeout: number | undefined
  /** Distinguishes a submission from an earlier one with the same id. */
  readonly submission: string
  readonly cancelledAt?: number | undefined
  /** How it has ended then, if that was not a cancellation. */
  readonly early?: StoredEnd | undefined
}

/** What is known about how a request went. */
export interface StoredTimes {
  readonly queued: number
  readonly processed: number
  readonly attempts: number
  readonly inputTokens: number | undefined
  readonly outputTokens: number | undefined
}

/** How a request ended. */
export type StoredEnd =
  | ({ readonly status: "completed"; readonly result: string } & StoredTimes)
  | ({ readonly status: "cancelled" } & StoredTimes)
  | ({ readonly status: "failed"; readonly error: StoredError } & StoredTimes)

type StoredError =
  /** The processor's own, by the model's schema. */
  | { readonly of: "processor"; readonly text: string }
  /** The queue's. */
  | { readonly of: "queue"; readonly error: unknown }
  /** A defect: only what it is. */
  | { readonly of: "defect"; readonly name: string }
  /** Too many processes died over it, or stood still. */
  | { readonly of: "crashes" }

const anyQueueError = Schema.toCodecJson(Schema.Union([
  QueueError.RequestTooLarge,
  QueueError.BudgetExceeded,
  QueueError.InvalidRequest,
  QueueError.QueueFull,
  QueueError.QueueShutdown,
  QueueError.QueueDraining,
  QueueError.QueueTimeout,
  QueueError.QueueUnavailable,
  QueueError.QuotaExhausted,
  QueueError.ProviderUnavailable,
  QueueError.RateLimitExceeded,
  QueueError.RequestCancelled,
  QueueError.DuplicateRequest,
  QueueError.ModelNotRegistered
]))

const encodeQueueError = Schema.encodeUnknownEffect(anyQueueError)
const decodeQueueError = Schema.decodeUnknownEffect(anyQueueError)

/** How the values of a model are written. */
export interface Codecs {
  readonly params: Values
  readonly result: Values
  readonly error: Values
}

interface Values {
  readonly encode: (value: unknown) => Effect.Effect<string, string>
  readonly decode: (text: string) => Effect.Effect<unknown, string>
}

/** `undefined` for a model without schemas. */
export const codecsOf = (definition: ModelConfig.Definition, codec: Codec): Codecs | undefined => {
  const { error, params, result } = definition
  if (!Schema.isSchema(params) || !Schema.isSchema(result)) return undefined
  const values = (schema: Schema.Top): Values => {
    const json = Schema.toCodecJson(schema as ModelConfig.Codec)
    const encode = Schema.encodeUnknownEffect(json)
    const decode = Schema.decodeUnknownEffect(json)
    return {
      encode: (value) =>
        Effect.mapError(encode(value), String).pipe(
          Effect.flatMap((written) => codec.encode(JSON.stringify(written ?? null)))
        ),
      decode: (text) =>
        codec.decode(text).pipe(
          Effect.flatMap((text) => Effect.try({ try: () => JSON.parse(text) as unknown, catch: String })),
          Effect.flatMap((value) => Effect.mapError(decode(value), String))
        )
    }
  }
  return {
    params: values(params),
    result: values(result),
    error: values(Schema.isSchema(error) ? error : Schema.Never)
  }
}

const defect = (error: unknown): StoredError => ({
  of: "defect",
  name: error instanceof Error ? error.name : typeof error
})

/** What the provider said may hold what it was asked. */
const withoutTexts = (error: unknown): unknown =>
  typeof error === "object" && error !== null && "cause" in error
    ? { ...error, cause: { message: "not stored" } }
    : error

const errorOf = (codecs: Codecs, cause: Cause.Cause<Failure>): Effect.Effect<StoredError> => {
  const reason = cause.reasons.find(Cause.isFailReason)
  if (reason === undefined) return Effect.succeed(defect(Cause.squash(cause)))
  const { error } = reason
  // Its cause is the processor's defect.
  if (error instanceof QueueError.ProcessingError) {
    return Effect.succeed(defect(Cause.isCause(error.cause) ? Cause.squash(error.cause) : error.cause))
  }
  const written = QueueError.isQueueError(error)
    ? Effect.mapBoth(encodeQueueError(error), {
      onSuccess: (error): StoredError => ({ of: "queue", error: withoutTexts(error) }),
      onFailure: String
    })
    : Effect.map(codecs.error.encode(error), (text): StoredError => ({ of: "processor", text }))
  return Effect.orElseSucceed(written, () => defect(error))
}

/** What is stored of an end. A result that its schema does not take is the processor's fault. */
export const endOf = (
  codecs: Codecs,
  exit: Exit.Exit<unknown, Failure>,
  times: StoredTimes
): Effect.Effect<StoredEnd> => {
  if (Exit.isSuccess(exit)) {
    return codecs.result.encode(exit.value).pipe(
      Effect.map((result): StoredEnd => ({ ...times, status: "completed", result })),
      Effect.catch((error) => Effect.succeed<StoredEnd>({ ...times, status: "failed", error: defect(error) }))
    )
  }
  const { cause } = exit
  const cancelled = cause.reasons.some((reason) =>
    Cause.isFailReason(reason) && reason.error instanceof QueueError.RequestCancelled
  )
  if (cancelled || Cause.hasInterruptsOnly(cause)) return Effect.succeed({ ...times, status: "cancelled" })
  return Effect.map(errorOf(codecs, cause), (error) => ({ ...times, status: "failed", error }))
}

export const noTimes: StoredTimes = {
  queued: 0,
  processed: 0,
  attempts: 0,
  inputTokens: undefined,
  outputTokens: undefined
}

/** What a queue says of every request. */
export const baseOf = (
  modelId: string,
  requestId: string,
  { createdAt, options: { tenant } }: Pick<StoredRequest, "createdAt" | "options">,
  { attempts, inputTokens, outputTokens, processed, queued }: StoredTimes
): QueueResponse.Base => ({
  requestId,
  modelId,
  tenant,
  createdAt,
  queueTime: Duration.millis(queued),
  processingTime: Duration.millis(processed),
  attempts,
  timeToFirstElement: undefined,
  refusals: [],
  inputTokensUsed: inputTokens,
  outputTokensUsed: outputTokens
})

/** What it said itself stayed where it was. */
const broken = (modelId: string, requestId: string, message: string) =>
  Cause.fail(new QueueError.ProcessingError({ modelId, requestId, cause: new Error(message) }))

const causeOf = (
  codecs: Codecs,
  modelId: string,
  requestId: string,
  error: StoredError
): Effect.Effect<Cause.Cause<Failure>> => {
  switch (error.of) {
    case "processor":
      // The processor's own: its type is known where its model is.
      return codecs.error.decode(error.text).pipe(
        Effect.map((error) => Cause.fail(error as ProcessorFailure)),
        Effect.orElseSucceed(() => broken(modelId, requestId, "its error does not fit the model's schema any more"))
      )
    case "queue":
      return decodeQueueError(error.error).pipe(
        Effect.map((error) => Cause.fail(error)),
        Effect.orElseSucceed(() => broken(modelId, requestId, "its error was written by another version"))
      )
    case "crashes":
      return Effect.succeed(
        broken(modelId, requestId, "the processes that held it died, or stood still, more often than maxCrashes allows")
      )
    case "defect":
      return Effect.succeed(broken(modelId, requestId, `it broke with ${error.name}`))
  }
}

/** The answer that an end stands for. */
export const responseOf = (
  codecs: Codecs,
  base: QueueResponse.Base,
  end: StoredEnd
): Effect.Effect<Snapshot> => {
  switch (end.status) {
    case "completed":
      return codecs.result.decode(end.result).pipe(
        Effect.map((result): Snapshot => ({ ...base, status: "completed", result })),
        Effect.catch(() =>
          Effect.succeed<Snapshot>({
            ...base,
            status: "failed",
            cause: broken(base.modelId, base.requestId, "its result does not fit the model's schema any more")
          })
        )
      )
    case "cancelled":
      return Effect.succeed({ ...base, status: "cancelled" })
    case "failed":
      return Effect.map(causeOf(codecs, base.modelId, base.requestId, end.error), (cause) => ({
        ...base,
        status: "failed",
        cause
      }))
  }
}

/** What the engine itself says of a job that it gave up. */
export const endOfReason = (reason: string): StoredEnd => {
  try {
    const parsed = JSON.parse(reason) as StoredEnd
    if (typeof parsed === "object" && parsed !== null && "status" in parsed) return parsed
  } catch {
    // It is not ours.
  }
  const error: StoredError = reason.includes("stalled")
    ? { of: "crashes" }
    : { of: "defect", name: reason.slice(0, 200) }
  return { ...noTimes, status: "failed", error }
}
