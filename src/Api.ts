/**
 * What an operator sees and does, over HTTP: a typed `HttpApi`, its OpenAPI document, and a client.
 *
 * `effect/http` and `effect/http-api` are unstable: a minor version of Effect may need a new version of this module.
 *
 * @since 0.1.0
 */
import * as ByteSize from "effect/ByteSize"
import * as Cause from "effect/Cause"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as FileSystem from "effect/FileSystem"
import * as HttpApi from "effect/http-api/HttpApi"
import * as HttpApiBuilder from "effect/http-api/HttpApiBuilder"
import * as HttpApiClient from "effect/http-api/HttpApiClient"
import * as HttpApiEndpoint from "effect/http-api/HttpApiEndpoint"
import * as HttpApiGroup from "effect/http-api/HttpApiGroup"
import * as HttpApiMiddleware from "effect/http-api/HttpApiMiddleware"
import * as HttpApiSchema from "effect/http-api/HttpApiSchema"
import * as HttpApiSecurity from "effect/http-api/HttpApiSecurity"
import * as OpenApi from "effect/http-api/OpenApi"
import type * as Etag from "effect/http/Etag"
import * as HttpClient from "effect/http/HttpClient"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import * as HttpEffect from "effect/http/HttpEffect"
import type * as HttpPlatform from "effect/http/HttpPlatform"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as HttpServerRespondable from "effect/http/HttpServerRespondable"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type * as Path from "effect/Path"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import * as access from "./internal/access.ts"
import * as pictures from "./internal/live.ts"
import * as QueueError from "./QueueError.ts"
import * as QueueManager from "./QueueManager.ts"
import type * as QueueResponse from "./QueueResponse.ts"
import type * as RateLimiter from "./RateLimiter.ts"

// ---------------------------------------------------------------------------------------------------------------
// What is seen
// ---------------------------------------------------------------------------------------------------------------

const Millis = Schema.NullOr(Schema.Finite)

/**
 * A limit of a queue. `null` where there is none: a limit without a period, a pause, a time after which there is capacity.
 *
 * @category models
 * @since 0.1.0
 */
export const Limit = Schema.Struct({
  type: Schema.String,
  limit: Schema.Finite,
  /** Less while the provider asks for less. */
  enforced: Schema.Finite,
  used: Schema.Finite,
  available: Schema.Finite,
  periodMillis: Millis,
  marginMillis: Schema.Finite,
  pausedForMillis: Millis,
  nextCapacityMillis: Millis
})

const Waits = Schema.NullOr(Schema.Struct({
  count: Schema.Finite,
  p50Millis: Schema.Finite,
  p95Millis: Schema.Finite
}))

/**
 * A queue and its limits, as `QueueManager.QueueInfo` has them.
 *
 * @category models
 * @since 0.1.0
 */
export const Queue = Schema.Struct({
  modelId: Schema.String,
  state: Schema.Literals(["open", "paused", "draining", "closing", "closed"]),
  capacity: Schema.Finite,
  depth: Schema.Finite,
  suspended: Schema.Finite,
  running: Schema.Finite,
  completed: Schema.Finite,
  failed: Schema.Finite,
  cancelled: Schema.Finite,
  limits: Schema.Array(Limit),
  /** Of requests that were dispatched in the last interval of `live`, while somebody reads that; else `null`. */
  waits: Waits,
  provider: Schema.NullOr(Schema.Struct({
    name: Schema.String,
    state: Schema.Literals(["available", "unavailable", "quotaExhausted", "probing"]),
    retryInMillis: Millis,
    concurrency: Schema.NullOr(Schema.Finite),
    refusals: Schema.Record(Schema.String, Schema.Finite)
  }))
})

/**
 * A request that waits or is being processed. Its parameters are never shown.
 *
 * @category models
 * @since 0.1.0
 */
export const ActiveRequest = Schema.Struct({
  requestId: Schema.String,
  status: Schema.Literals(["pending", "processing"]),
  tenant: Schema.NullOr(Schema.String),
  /** Seconds of head start. */
  priority: Schema.Finite,
  labels: Schema.Record(Schema.String, Schema.String),
  /** Milliseconds since 1970. */
  createdAt: Schema.Finite,
  queueTimeMillis: Schema.Finite,
  processingTimeMillis: Schema.Finite,
  attempts: Schema.Finite,
  /** How much longer it will wait; `null` for what is being processed, and when nothing that is known ends the wait. */
  predictedWaitMillis: Millis
})

const Failure = Schema.Struct({ name: Schema.String, message: Schema.NullOr(Schema.String) })

/**
 * A change of a request's status. Results are never shown, and of failures that are not the queue's own only the name: their
 * texts may quote a prompt.
 *
 * @category models
 * @since 0.1.0
 */
export const Event = Schema.Struct({
  requestId: Schema.String,
  modelId: Schema.String,
  tenant: Schema.NullOr(Schema.String),
  status: Schema.Literals(["pending", "processing", "completed", "failed", "cancelled"]),
  createdAt: Schema.Finite,
  queueTimeMillis: Schema.Finite,
  processingTimeMillis: Schema.Finite,
  attempts: Schema.Finite,
  inputTokens: Schema.NullOr(Schema.Finite),
  outputTokens: Schema.NullOr(Schema.Finite),
  error: Schema.NullOr(Failure)
})

/**
 * What is new since the message before, or all (`complete`): the first message, and one after some that were not read in
 * time. Of an interval the first 25 events are told, and the first 25 failures; all has the newest 100.
 *
 * @category models
 * @since 0.1.0
 */
export const Live = Schema.Struct({
  /** Milliseconds since 1970. */
  at: Schema.Finite,
  complete: Schema.Boolean,
  /** Of all queues together. */
  waits: Waits,
  /** Those that have changed; all of them if `complete`. */
  queues: Schema.Array(Queue),
  /** The ids of models that are not registered any more. */
  removed: Schema.Array(Schema.String),
  failures: Schema.Array(Event),
  events: Schema.Array(Event)
})

/**
 * How a queue was, or all together, at a time of the last 15 minutes; there is one for each five seconds, from the first
 * on in which something happened.
 *
 * @category models
 * @since 0.1.0
 */
export const Sample = Schema.Struct({
  /** Milliseconds since 1970. */
  at: Schema.Finite,
  depth: Schema.Finite,
  running: Schema.Finite,
  completedPerSecond: Schema.Finite,
  failedPerSecond: Schema.Finite,
  /** Of requests that were dispatched in those five seconds. */
  waitP50Millis: Millis,
  waitP95Millis: Millis
})

/**
 * A failed request that is kept, and can be submitted again. Its parameters are never shown.
 *
 * @category models
 * @since 0.1.0
 */
export const DeadLetter = Schema.Struct({
  requestId: Schema.String,
  tenant: Schema.NullOr(Schema.String),
  labels: Schema.Record(Schema.String, Schema.String),
  /** Milliseconds since 1970. */
  failedAt: Schema.Finite,
  attempts: Schema.Finite,
  error: Schema.NullOr(Failure)
})

// ---------------------------------------------------------------------------------------------------------------
// What can go wrong
// ---------------------------------------------------------------------------------------------------------------

/**
 * There is no such model, or no such request.
 *
 * @category errors
 * @since 0.1.0
 */
export class NotFound extends Schema.TaggedError<NotFound>("effect-llm-queue/Api/NotFound")(
  "NotFound",
  { message: Schema.String },
  { httpApiStatus: 404 }
) {}

/**
 * What is asked for makes no sense.
 *
 * @category errors
 * @since 0.1.0
 */
export class Invalid extends Schema.TaggedError<Invalid>("effect-llm-queue/Api/Invalid")(
  "Invalid",
  { problems: Schema.Array(Schema.String) },
  { httpApiStatus: 422 }
) {}

/**
 * The token is missing or wrong.
 *
 * @category errors
 * @since 0.1.0
 */
export class Unauthorized extends Schema.TaggedError<Unauthorized>("effect-llm-queue/Api/Unauthorized")(
  "Unauthorized",
  { message: Schema.String },
  { httpApiStatus: 401 }
) {}

/**
 * It is not for those that ask: an action where there are none, another host or page.
 *
 * @category errors
 * @since 0.1.0
 */
export class Forbidden extends Schema.TaggedError<Forbidden>("effect-llm-queue/Api/Forbidden")(
  "Forbidden",
  { message: Schema.String },
  { httpApiStatus: 403 }
) {}

/**
 * It makes sense, but not now: the queue is full or draining, the provider's quota is used up.
 *
 * @category errors
 * @since 0.1.0
 */
export class Refused extends Schema.TaggedError<Refused>("effect-llm-queue/Api/Refused")(
  "Refused",
  { name: Schema.String, message: Schema.String },
  { httpApiStatus: 409 }
) {}

/**
 * There are too many readers of streams.
 *
 * @category errors
 * @since 0.1.0
 */
export class Busy extends Schema.TaggedError<Busy>("effect-llm-queue/Api/Busy")(
  "Busy",
  { message: Schema.String },
  { httpApiStatus: 503 }
) {}

// ---------------------------------------------------------------------------------------------------------------
// The API
// ---------------------------------------------------------------------------------------------------------------

/**
 * Lets in who may see: with a bearer token where the server has one, else from the same machine only.
 *
 * @category middleware
 * @since 0.1.0
 */
export class Authorization extends HttpApiMiddleware.Service<Authorization, { provides: never; requires: never }>()(
  "effect-llm-queue/Api/Authorization",
  {
    requiredForClient: true,
    security: { bearer: HttpApiSecurity.bearer },
    error: [Unauthorized, Forbidden]
  }
) {}

/**
 * Lets those act who may.
 *
 * @category middleware
 * @since 0.1.0
 */
export class Actions
  extends HttpApiMiddleware.Service<Actions, { provides: never; requires: never }>()("effect-llm-queue/Api/Actions", {
    error: Forbidden
  })
{}

const model = { modelId: Schema.String }
const request = { modelId: Schema.String, requestId: Schema.String }

const Filter = Schema.Struct({
  ids: Schema.optional(Schema.Array(Schema.String)),
  tenant: Schema.optional(Schema.String),
  labels: Schema.optional(Schema.Record(Schema.String, Schema.String)),
  priority: Schema.optional(Schema.Finite),
  status: Schema.optional(Schema.Literals(["pending", "processing"])),
  olderThanMillis: Schema.optional(Schema.Finite)
})

const Seen = HttpApiGroup.make("queues").add(
  HttpApiEndpoint.get("list", "/queues", { success: Schema.Array(Queue) }),
  HttpApiEndpoint.get("get", "/queues/:modelId", { params: model, success: Queue, error: NotFound }),
  HttpApiEndpoint.get("requests", "/queues/:modelId/requests", {
    params: model,
    query: {
      status: Schema.optional(Schema.Literals(["pending", "processing"])),
      tenant: Schema.optional(Schema.String),
      limit: Schema.optional(Schema.FiniteFromString)
    },
    success: Schema.Array(ActiveRequest),
    error: [NotFound, Invalid]
  }),
  HttpApiEndpoint.get("deadLetters", "/queues/:modelId/dead-letters", {
    params: model,
    query: { limit: Schema.optional(Schema.FiniteFromString) },
    success: Schema.Array(DeadLetter),
    error: [NotFound, Invalid]
  }),
  HttpApiEndpoint.get("history", "/history", {
    query: { modelId: Schema.optional(Schema.String) },
    success: Schema.Array(Sample)
  }),
  HttpApiEndpoint.get("events", "/events", { success: HttpApiSchema.StreamNdjson({ schema: Event }), error: Busy }),
  HttpApiEndpoint.get("live", "/live", { success: HttpApiSchema.StreamSse({ data: Live }), error: Busy }),
  HttpApiEndpoint.get("access", "/access", { success: Schema.Struct({ actions: Schema.Boolean }) })
).middleware(Authorization)

const Acts = HttpApiGroup.make("actions").add(
  HttpApiEndpoint.post("pause", "/queues/:modelId/pause", { params: model, error: NotFound }),
  HttpApiEndpoint.post("resume", "/queues/:modelId/resume", { params: model, error: NotFound }),
  HttpApiEndpoint.post("drain", "/queues/:modelId/drain", { params: model, error: NotFound }),
  HttpApiEndpoint.post("cancel", "/queues/:modelId/cancel", {
    params: model,
    payload: Filter,
    success: Schema.Struct({ cancelled: Schema.Finite }),
    error: [NotFound, Invalid]
  }),
  HttpApiEndpoint.post("changePriority", "/queues/:modelId/requests/:requestId/priority", {
    params: request,
    payload: Schema.Struct({ priority: Schema.Finite }),
    success: Schema.Struct({ changed: Schema.Boolean }),
    error: [NotFound, Invalid]
  }),
  HttpApiEndpoint.put("updateLimits", "/queues/:modelId/limits", {
    params: model,
    payload: Schema.Struct({
      limits: Schema.Array(Schema.Struct({
        type: Schema.Literals(["rpm", "rpd", "tpm", "tpd", "itpm", "otpm", "concurrent"]),
        limit: Schema.Finite,
        periodMillis: Schema.optional(Schema.Finite)
      }))
    }),
    error: [NotFound, Invalid]
  }),
  HttpApiEndpoint.patch("changeLimit", "/queues/:modelId/limits", {
    params: model,
    payload: Schema.Struct({
      type: Schema.Literals(["rpm", "rpd", "tpm", "tpd", "itpm", "otpm", "concurrent", "budget"]),
      periodMillis: Schema.optional(Schema.Finite),
      limit: Schema.Finite
    }),
    error: [NotFound, Invalid]
  }),
  HttpApiEndpoint.post("resubmit", "/queues/:modelId/dead-letters/:requestId/resubmit", {
    params: request,
    success: Schema.Struct({ requestId: Schema.String }),
    error: [NotFound, Invalid, Refused]
  }),
  HttpApiEndpoint.post("removeDeadLetters", "/queues/:modelId/dead-letters/remove", {
    params: model,
    payload: Schema.Struct({ ids: Schema.optional(Schema.Array(Schema.String)) }),
    success: Schema.Struct({ removed: Schema.Finite }),
    error: NotFound
  })
).middleware(Actions).middleware(Authorization)

/**
 * The whole API, under `/llm-queue`. It has no code of the server.
 *
 * @category api
 * @since 0.1.0
 */
export class Api extends HttpApi.make("effect-llm-queue").add(Seen).add(Acts).prefix("/llm-queue").annotateMerge(
  OpenApi.annotations({
    title: "effect-llm-queue",
    description: "Queues of LLM requests: their state, what waits, and what an operator can do."
  })
) {}

// ---------------------------------------------------------------------------------------------------------------
// The server
// ---------------------------------------------------------------------------------------------------------------

const millis = (duration: Duration.Duration | undefined): number | null => {
  if (duration === undefined) return null
  const value = Duration.toMillis(duration)
  return Number.isFinite(value) ? value : null
}

const toLimit = (usage: RateLimiter.Usage): typeof Limit.Type => ({
  type: usage.type,
  limit: usage.limit,
  enforced: usage.enforced,
  used: usage.used,
  available: usage.available,
  periodMillis: millis(usage.timePeriod),
  marginMillis: Duration.toMillis(usage.margin),
  pausedForMillis: millis(usage.pausedFor),
  nextCapacityMillis: millis(usage.timeUntilNextCapacity)
})

const toQueue = (info: QueueManager.QueueInfo, waits: (typeof Queue.Type)["waits"]): typeof Queue.Type => ({
  modelId: info.modelId,
  state: info.state,
  capacity: info.capacity,
  depth: info.depth,
  suspended: info.suspended,
  running: info.running,
  completed: info.completed,
  failed: info.failed,
  cancelled: info.cancelled,
  limits: info.rateLimiters.map(toLimit),
  waits,
  provider: info.provider === undefined ? null : {
    name: info.provider.name,
    state: info.provider.state,
    retryInMillis: millis(info.provider.retryIn),
    concurrency: info.provider.concurrency ?? null,
    refusals: info.provider.refusals
  }
})

const mostText = 1000

const nameOf = (error: unknown): string => {
  // It is somebody else's, and may be anything.
  try {
    const tag = typeof error === "object" && error !== null && "_tag" in error ? error._tag : undefined
    const name: unknown = typeof tag === "string" ? tag : error instanceof Error ? error.name : typeof error
    return typeof name === "string" ? name.slice(0, mostText) : "Error"
  } catch {
    return "Error"
  }
}

const errorOf = (cause: Cause.Cause<unknown>): typeof Failure.Type => {
  const error: unknown = Cause.squash(cause)
  if (!QueueError.isQueueError(error) || error._tag === "ProcessingError") return { name: nameOf(error), message: null }
  // The provider's words may be in what it has caused.
  const isTold = !("cause" in error) || error.cause === undefined
  return { name: error._tag, message: isTold ? error.message.slice(0, mostText) : null }
}

const toEvent = (response: QueueResponse.QueueResponse<unknown, unknown>): typeof Event.Type => ({
  requestId: response.requestId,
  modelId: response.modelId,
  tenant: response.tenant ?? null,
  status: response.status,
  createdAt: response.createdAt,
  queueTimeMillis: Duration.toMillis(response.queueTime),
  processingTimeMillis: Duration.toMillis(response.processingTime),
  attempts: response.attempts,
  inputTokens: response.inputTokensUsed ?? null,
  outputTokens: response.outputTokensUsed ?? null,
  error: response.status === "failed" ? errorOf(response.cause) : null
})

const toDeadLetter = (
  { failedAt, request, requestId, response }: QueueResponse.DeadLetter<unknown, unknown, unknown>
): typeof DeadLetter.Type => ({
  requestId,
  tenant: response.tenant ?? null,
  labels: request.labels ?? {},
  failedAt,
  attempts: response.attempts,
  error: errorOf(response.cause)
})

const notFound = (error: { readonly message: string }) => Effect.fail(new NotFound({ message: error.message }))

const missing = { ModelNotRegistered: notFound, RequestNotFound: notFound } as const

const invalid = ({ problems }: { readonly problems: ReadonlyArray<string> }) => Effect.fail(new Invalid({ problems }))

/**
 * Options of the server.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /**
   * What a client has to know; an empty one is none. Without it only those are let in that ask for this machine by its own name (`localhost`,
   * `127.0.0.1`, `[::1]`), and nobody can act.
   */
  readonly token?: Redacted.Redacted | undefined
  /** Whether clients with the token can act: pause, resume, drain, cancel, change priorities and limits. Default `false`. */
  readonly actions?: boolean | undefined
  /** How often `live` tells the state of the queues: from 50 milliseconds to 5 seconds. Default: once a second. */
  readonly interval?: Duration.Input | undefined
  /** Most readers of `live` and `events` at one time; more are answered `Busy`. Default 100. */
  readonly maxStreams?: number | undefined
}

/** Looking more often than that shows nobody more. */
const shortest = Duration.millis(50)
/** Who hears nothing for longer takes the server to be gone. */
const longest = Duration.seconds(5)

/**
 * A server that has stopped listening waits for its connections, which must not be used again and again. Only the servers of
 * Node.js can be asked.
 */
const isListening = ({ source }: HttpServerRequest.HttpServerRequest): boolean => {
  const { socket } = source as { readonly socket?: { readonly server?: { readonly listening?: unknown } } }
  return socket?.server?.listening !== false
}

const told = (
  request: HttpServerRequest.HttpServerRequest,
  response: HttpServerResponse.HttpServerResponse
): HttpServerResponse.HttpServerResponse =>
  HttpServerResponse.setHeaders(response, {
    ...access.headers,
    ...(isListening(request) ? {} : { connection: "close" })
  })

const authorization = ({ token }: Options) =>
  Layer.succeed(Authorization, {
    bearer: (effect, { credential }) =>
      Effect.gen(function*() {
        const request = yield* HttpServerRequest.HttpServerRequest
        const problem = access.problem(request, Redacted.value(credential), token)
        if (problem === undefined) return yield* effect
        return yield* problem === "token"
          ? new Unauthorized({ message: access.messages[problem] })
          : new Forbidden({ message: access.messages[problem] })
      })
  })

/** A filter with a thousand ids is smaller. */
const mostBody = ByteSize.kibibytes(64)

const canAct = ({ actions = false, token }: Options): boolean => actions && access.usable(token) !== undefined

const acting = (options: Options) =>
  Layer.succeed(Actions, (effect) =>
    canAct(options)
      ? Effect.provideService(effect, HttpServerRequest.MaxBodySize, mostBody)
      : Effect.fail(new Forbidden({ message: "Actions are off. They need the options `actions: true` and `token`." })))

/** A stream without an end would keep a server that stops. */
const whileListening = <A>(stream: Stream.Stream<A>): Effect.Effect<
  Stream.Stream<A>,
  never,
  HttpServerRequest.HttpServerRequest
> =>
  Effect.map(HttpServerRequest.HttpServerRequest, (request) =>
    Stream.interruptWhen(
      stream,
      Effect.repeat(Effect.sleep("200 millis"), { while: () => isListening(request) })
    ))

const busy = Effect.fail(new Busy({ message: "There are as many readers as are let in. Try again later." }))

const mostStreams = 100
const defaultLimit = 100
/** More of a list would keep all others waiting while it is put together. */
const mostLimit = 1000

const checkLimit = (limit: number) =>
  Number.isSafeInteger(limit) && limit >= 0 && limit <= mostLimit
    ? Effect.void
    : invalid({ problems: [`limit: expected a whole number from 0 to ${mostLimit}, got ${limit}`] })

const seen = (options: Options) =>
  HttpApiBuilder.group(
    Api,
    "queues",
    Effect.fnUntraced(function*(handlers) {
      const { interval = "1 second", maxStreams = mostStreams, token } = options
      const manager = yield* QueueManager.QueueManager
      if (token !== undefined && access.usable(token) === undefined) {
        yield* Effect.logWarning(
          "The token of the API is empty, so there is none: it answers this machine only, and nobody acts."
        )
      }
      const live = yield* pictures.make(manager, {
        interval: Duration.clamp(Option.getOrElse(Duration.fromInput(interval), () => Duration.seconds(1)), {
          minimum: shortest,
          maximum: longest
        }),
        maxStreams: maxStreams >= 0 ? maxStreams : mostStreams,
        toQueue,
        toEvent
      })
      const toShown = (info: QueueManager.QueueInfo) => toQueue(info, live.waits(info.modelId))
      return handlers
        .handle("list", () => Effect.map(manager.getAllQueuesInfo, (infos) => Array.from(infos.values(), toShown)))
        .handle("get", ({ params }) =>
          Effect.map(manager.getQueueInfo(params.modelId), toShown).pipe(
            Effect.catchTag("ModelNotRegistered", notFound)
          ))
        .handle(
          "requests",
          ({ params, query: { limit = defaultLimit, ...filter } }) =>
            Effect.andThen(checkLimit(limit), manager.getRequests(params.modelId, filter, { limit })).pipe(
              Effect.map((requests) =>
                requests.map(({ predictedWait, processingTime, queueTime, tenant, ...rest }) => ({
                  ...rest,
                  tenant: tenant ?? null,
                  queueTimeMillis: Duration.toMillis(queueTime),
                  processingTimeMillis: Duration.toMillis(processingTime),
                  predictedWaitMillis: millis(predictedWait)
                }))
              ),
              Effect.catchTags({ ModelNotRegistered: notFound, InvalidRequest: invalid })
            )
        )
        .handle(
          "deadLetters",
          ({ params, query: { limit = defaultLimit } }) =>
            Effect.andThen(checkLimit(limit), manager.deadLetters(params.modelId)).pipe(
              Effect.map((letters) =>
                letters.slice(Math.max(0, letters.length - limit)).toReversed().map(toDeadLetter)
              ),
              Effect.catchTag("ModelNotRegistered", notFound)
            )
        )
        .handle("history", ({ query }) => Effect.sync(() => live.history(query.modelId)))
        .handle("events", () =>
          Option.match(live.counted(Stream.map(manager.events, toEvent)), {
            onNone: () => busy,
            onSome: whileListening
          }))
        // Written once for all that look.
        .handleRaw("live", () =>
          Effect.flatMap(
            live.stream,
            Option.match({
              onNone: () => busy,
              onSome: (stream) =>
                Effect.map(
                  whileListening(stream),
                  (stream) =>
                    HttpServerResponse.stream(stream, {
                      contentType: "text/event-stream",
                      // Proxies must not wait for more.
                      headers: { "x-accel-buffering": "no" }
                    })
                )
            })
          ))
        .handle("access", () => Effect.succeed({ actions: canAct(options) }))
    })
  )

/** It has been refused for now. */
const refused = (error: QueueError.QueueError) => Effect.fail(new Refused({ name: error._tag, message: error.message }))

const acts = HttpApiBuilder.group(
  Api,
  "actions",
  Effect.fnUntraced(function*(handlers) {
    const manager = yield* QueueManager.QueueManager
    return handlers.handleAll({
      pause: ({ params }) => manager.pauseQueue(params.modelId).pipe(Effect.catchTag("ModelNotRegistered", notFound)),
      resume: ({ params }) => manager.resumeQueue(params.modelId).pipe(Effect.catchTag("ModelNotRegistered", notFound)),
      // It lasts as long as what was accepted, which nobody waits for here.
      drain: ({ params }) =>
        Effect.andThen(
          manager.getQueueInfo(params.modelId).pipe(Effect.catchTag("ModelNotRegistered", notFound)),
          Effect.asVoid(
            Effect.forkDetach(Effect.ignore(manager.drainQueue(params.modelId)), { startImmediately: true })
          )
        ),
      cancel: ({ params, payload: { olderThanMillis, ...filter } }) =>
        manager.cancelRequests(params.modelId, {
          ...filter,
          olderThan: olderThanMillis === undefined ? undefined : Duration.millis(olderThanMillis)
        }).pipe(
          Effect.map((cancelled) => ({ cancelled })),
          Effect.catchTags({ ModelNotRegistered: notFound, InvalidRequest: invalid })
        ),
      changePriority: ({ params, payload }) =>
        manager.changePriority(params.modelId, params.requestId, payload.priority).pipe(
          Effect.map((changed) => ({ changed })),
          Effect.catchTags({ ...missing, InvalidRequest: invalid })
        ),
      updateLimits: ({ params, payload }) =>
        manager.updateRateLimiters(
          params.modelId,
          payload.limits.map(({ limit, periodMillis, type }) => ({
            type,
            limit,
            ...(periodMillis === undefined ? {} : { timePeriod: Duration.millis(periodMillis) })
          }))
        ).pipe(Effect.catchTags({ ModelNotRegistered: notFound, InvalidConfiguration: invalid })),
      changeLimit: ({ params, payload: { periodMillis, ...change } }) =>
        manager.changeLimit(params.modelId, {
          ...change,
          timePeriod: periodMillis === undefined ? undefined : Duration.millis(periodMillis)
        }).pipe(Effect.catchTags({ ModelNotRegistered: notFound, InvalidConfiguration: invalid })),
      resubmit: ({ params }) =>
        manager.resubmitDeadLetter(params.modelId, params.requestId).pipe(
          Effect.map(({ requestId }) => ({ requestId })),
          Effect.catchTags({ ...missing, InvalidRequest: invalid }, refused)
        ),
      removeDeadLetters: ({ params, payload }) =>
        manager.removeDeadLetters(params.modelId, payload.ids).pipe(
          Effect.map((removed) => ({ removed })),
          Effect.catchTag("ModelNotRegistered", notFound)
        )
    })
  })
)

/** The longest id, as it is written in an address. */
const maxParamLength = 256 * "%EF%BF%BF".length

/** On a router of their own: that of the server takes no ids of more than a hundred characters, if it is not told to. */
const routes = (options: Options) =>
  HttpApiBuilder.layer(Api, { openapiPath: "/llm-queue/openapi.json" }).pipe(
    Layer.provide([seen(options), acts]),
    Layer.provide([authorization(options), acting(options)])
  )

/**
 * The routes of the API, for any HTTP server; its OpenAPI document is at `/llm-queue/openapi.json`.
 *
 * **Details**
 *
 * - Without a `token` it answers only requests for this machine by its own name, and shows. With one every request needs it,
 *   and with `actions: true` clients can act. Serve it on a loopback address all the same, unless others have to see it.
 * - Requests of pages of other origins are refused, and bodies of more than 64 KiB.
 * - Parameters, results and the texts of processors' failures are never shown; ids, tenants and labels are.
 *
 * **Example** (A server for operators)
 *
 * ```ts
 * import { NodeHttpServer } from "@effect/platform-node"
 * import { Layer, Redacted } from "effect"
 * import { QueueManager } from "effect-llm-queue"
 * import * as QueueApi from "effect-llm-queue/Api"
 * import { HttpRouter } from "effect/http"
 * import { createServer } from "node:http"
 *
 * const ServerLive = HttpRouter.serve(QueueApi.layer({ token: Redacted.make("secret"), actions: true })).pipe(
 *   Layer.provide(NodeHttpServer.layer(createServer, { host: "127.0.0.1", port: 4100 })),
 *   Layer.provide(QueueManager.layer)
 * )
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: Options = {}): Layer.Layer<
  never,
  never,
  | Etag.Generator
  | FileSystem.FileSystem
  | HttpPlatform.HttpPlatform
  | HttpRouter.HttpRouter
  | Path.Path
  | QueueManager.QueueManager
> =>
  HttpRouter.use((router) =>
    HttpRouter.toHttpEffect(routes(options)).pipe(
      Effect.provideService(HttpRouter.RouterConfig, { maxParamLength }),
      // With that of the context it would be the server's own router again.
      Effect.provideService(Layer.CurrentMemoMap, Layer.makeMemoMapUnsafe()),
      Effect.flatMap((handled) =>
        router.add(
          "*",
          "/llm-queue/*",
          // Failures become responses further out: they are told in the same way.
          HttpEffect.withPreResponseHandler(
            Effect.catchTag(handled, "HttpServerError", HttpServerRespondable.toResponse),
            (request, response) => Effect.succeed(told(request, response))
          )
        )
      )
    )
  )

/**
 * A typed client of the API, on the `HttpClient` of the context.
 *
 * **Example** (Pausing a queue from elsewhere)
 *
 * ```ts
 * import { Effect, Redacted } from "effect"
 * import * as QueueApi from "effect-llm-queue/Api"
 *
 * const program = Effect.gen(function*() {
 *   const client = yield* QueueApi.makeClient({ url: "http://127.0.0.1:4100", token: Redacted.make("secret") })
 *   yield* client.actions.pause({ params: { modelId: "gpt-4" } })
 * })
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const makeClient = (options: {
  readonly url: string
  readonly token?: Redacted.Redacted | undefined
}): Effect.Effect<HttpApiClient.ForApi<typeof Api>, never, HttpClient.HttpClient> =>
  Effect.gen(function*() {
    const authorized = HttpApiMiddleware.layerClient(
      Authorization,
      ({ next, request }) =>
        next(options.token === undefined ? request : HttpClientRequest.bearerToken(request, options.token))
    )
    return yield* Effect.provideContext(
      HttpApiClient.make(Api, { transformClient: HttpClient.mapRequest(HttpClientRequest.prependUrl(options.url)) }),
      // It holds nothing that would have to be closed.
      yield* Effect.scoped(Layer.build(authorized))
    )
  })
