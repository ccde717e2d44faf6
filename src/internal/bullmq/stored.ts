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
  readonly options:
    & Omit<QueueRequest.EstimateOptions<never>, "params">
    & Pick<QueueRequest.RequestOptions, "whenUnavailable">
    & { readonly metadata?: string | undefined }
  /** Milliseconds, as all times. */
  readonly headStart: number
  readonly createdAt: number
  /** Until when it must have ended; `undefined` for ever. */
  readonly expiresAt: number | undefined
  readonly hasDeadline: boolean
  /** That it, and what its processor submits, were given. */
  readonly deadline?: number | undefined
  /** `null` for ever. */
  readonly processingTimeout: number | null
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
  | ({ readonly status: "completed"; readonly result: string } & Ended)
  | ({ readonly status: "cancelled" } & Ended)
  | ({ readonly status: "failed"; readonly error: StoredError } & Ended)

interface Ended extends StoredTimes {
  /** Which one with its id it was. */
  readonly submission: string
}

type StoredError =
  /** The processor's own, by the model's schema. */
  | { readonly of: "processor"; readonly text: string }
  /** The queue's. */
  | { readonly of: "queue"; readonly text: string }
  /** A defect: only what it is. */
  | { readonly of: "defect"; readonly name: string }
  /** Too many processes died over it, or stood still. */
  | { readonly of: "crashes" }

// What is in the store may have been written by another version, or by anybody.
const isObject = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === "object" && value !== null

/** Whether this version has written it, as the data of a job. */
export const isRequest = (data: unknown): data is StoredRequest =>
  isObject(data)
  && data["version"] === 1
  && typeof data["params"] === "string"
  && isObject(data["options"])
  && typeof data["headStart"] === "number"
  && typeof data["createdAt"] === "number"

const isError = (error: unknown): boolean =>
  isObject(error) && (
    error["of"] === "crashes"
    || (error["of"] === "defect" && typeof error["name"] === "string")
    || ((error["of"] === "processor" || error["of"] === "queue") && typeof error["text"] === "string")
  )

/** Whether this version has written it, as an end. */
export const isEnd = (end: unknown): end is StoredEnd =>
  isObject(end)
  && typeof end["submission"] === "string"
  && typeof end["queued"] === "number"
  && typeof end["processed"] === "number"
  && (
    end["status"] === "cancelled"
    || (end["status"] === "completed" && typeof end["result"] === "string")
    || (end["status"] === "failed" && isError(end["error"]))
  )

const QueueErrors = Schema.Union([
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
])

/** How the values of a model are written. */
export interface Codecs {
  readonly params: Values
  readonly result: Values
  readonly error: Values
  /** Of the queue's own errors. */
  readonly queueError: Values
  /** Of metadata: whatever JSON has. */
  readonly json: Values
}

interface Values {
  readonly encode: (value: unknown) => Effect.Effect<string, string>
  readonly decode: (text: string) => Effect.Effect<unknown, string>
}

/** A codec is somebody else's: it may break, and say what it has read. */
const through = <E>(f: ((text: string) => Effect.Effect<string, E>) | undefined, text: string) =>
  f === undefined
    ? Effect.succeed(text)
    : Effect.catchDefect(Effect.suspend(() => f(text)), () => Effect.fail("the codec broke"))

/** `undefined` for a model without schemas. */
export const codecsOf = (definition: ModelConfig.Definition, codec: Codec | undefined): Codecs | undefined => {
  const { error, params, result } = definition
  if (!Schema.isSchema(params) || !Schema.isSchema(result)) return undefined
  const write = codec === undefined ? undefined : (text: string) => codec.encode(text)
  const read = codec === undefined ? undefined : (text: string) => codec.decode(text)
  const values = (schema: Schema.Top): Values => {
    const json = Schema.toCodecJson(schema as ModelConfig.Codec)
    const encode = Schema.encodeUnknownEffect(json)
    const decode = Schema.decodeUnknownEffect(json)
    return {
      encode: (value) =>
        Effect.mapError(encode(value), String).pipe(
          Effect.flatMap((written) => through(write, JSON.stringify(written ?? null)))
        ),
      decode: (text) =>
        through(read, text).pipe(
          Effect.flatMap((text) => Effect.try({ try: () => JSON.parse(text) as unknown, catch: String })),
          Effect.flatMap((value) => Effect.mapError(decode(value), String))
        )
    }
  }
  return {
    params: values(params),
    result: values(result),
    error: values(Schema.isSchema(error) ? error : Schema.Never),
    queueError: values(QueueErrors),
    json: values(Schema.Json)
  }
}

/** Of what is nobody's word only the kind is said: its text may hold anything. */
export const kindOf = (error: unknown): string => error instanceof Error ? error.name : typeof error

/** What was asked, but for when. */
export const requestOf = (codecs: Codecs, { options, params }: StoredRequest) =>
  Effect.gen(function*() {
    const { metadata, ...others } = options
    return {
      ...others,
      params: yield* codecs.params.decode(params),
      metadata: metadata === undefined
        ? undefined
        // What JSON has of an object.
        : (yield* codecs.json.decode(metadata)) as QueueRequest.RequestOptions["metadata"]
    }
  })

const defect = (error: unknown): StoredError => ({ of: "defect", name: kindOf(error) })

/** What the provider said may hold what it was asked. */
const withoutCause = <E extends object>(error: E): E =>
  "cause" in error
    ? Object.assign(Object.create(Object.getPrototypeOf(error) as object), error, { cause: { message: "not stored" } })
    : error

/** Which request an end is of. */
export interface Of {
  readonly modelId: string
  readonly requestId: string
  readonly submission: string
}

/** Whether an error is this queue's word about this request: its processor may fail with those of others. */
export const isOwn = ({ modelId, requestId }: Pick<Of, "modelId" | "requestId">, error: unknown): boolean =>
  QueueError.isQueueError(error)
  && "requestId" in error
  && error.modelId === modelId
  && error.requestId === requestId

const errorOf = (codecs: Codecs, of: Of, cause: Cause.Cause<Failure>): Effect.Effect<StoredError> => {
  const reason = cause.reasons.find(Cause.isFailReason)
  if (reason === undefined) return Effect.succeed(defect(Cause.squash(cause)))
  const { error } = reason
  // Its cause is the processor's defect.
  if (error instanceof QueueError.ProcessingError) {
    return Effect.succeed(defect(Cause.isCause(error.cause) ? Cause.squash(error.cause) : error.cause))
  }
  const asQueues = Effect.suspend(() =>
    QueueError.isQueueError(error)
      ? Effect.map(codecs.queueError.encode(withoutCause(error)), (text): StoredError => ({ of: "queue", text }))
      : Effect.fail("")
  )
  const asProcessors = Effect.map(codecs.error.encode(error), (text): StoredError => ({ of: "processor", text }))
  const [first, second] = isOwn(of, error) ? [asQueues, asProcessors] : [asProcessors, asQueues]
  return Effect.catch(first, () => Effect.orElseSucceed(second, () => defect(error)))
}

/** What is stored of an end. A result that its schema does not take is the processor's fault. */
export const endOf = (
  codecs: Codecs,
  of: Of,
  exit: Exit.Exit<unknown, Failure>,
  times: StoredTimes
): Effect.Effect<StoredEnd> => {
  const ended = { ...times, submission: of.submission }
  if (Exit.isSuccess(exit)) {
    return codecs.result.encode(exit.value).pipe(
      Effect.map((result): StoredEnd => ({ ...ended, status: "completed", result })),
      Effect.orElseSucceed((): StoredEnd => ({
        ...ended,
        status: "failed",
        error: { of: "defect", name: "UnencodableResult" }
      }))
    )
  }
  const { cause } = exit
  const cancelled = cause.reasons.some((reason) =>
    Cause.isFailReason(reason) && reason.error instanceof QueueError.RequestCancelled && isOwn(of, reason.error)
  )
  if (cancelled || Cause.hasInterruptsOnly(cause)) return Effect.succeed({ ...ended, status: "cancelled" })
  return Effect.map(errorOf(codecs, of, cause), (error) => ({ ...ended, status: "failed", error }))
}

/** The end of a request that broke what looks after it: a codec, say. */
export const brokenEnd = (submission: string, times: StoredTimes, name: string): StoredEnd => ({
  ...times,
  submission,
  status: "failed",
  error: { of: "defect", name }
})

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
      return codecs.queueError.decode(error.text).pipe(
        // As its schema says.
        Effect.map((error) => Cause.fail(error as QueueError.SubmitError)),
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

/** What the engine says of a job that has failed: our end of it, or that it gave it up. */
export const endOfReason = (submission: string, reason: string): StoredEnd => {
  const end = readEnd(reason)
  if (end !== undefined) return end
  return {
    ...noTimes,
    submission,
    status: "failed",
    error: reason.includes("stalled") ? { of: "crashes" } : { of: "defect", name: "UnknownFailure" }
  }
}

/** An end that is written as text. */
export const readEnd = (text: string): StoredEnd | undefined => {
  try {
    const end: unknown = JSON.parse(text)
    return isEnd(end) ? end : undefined
  } catch {
    // It is not ours.
    return undefined
  }
}
