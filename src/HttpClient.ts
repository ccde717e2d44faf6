/**
 * An `HttpClient` whose requests go through queues: those to an LLM API wait for their turn, and for the limits of the
 * model that they name.
 *
 * `effect/http` is unstable: a minor version of Effect may need a new version of this module.
 *
 * @since 0.1.0
 */
import type * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as HttpClient from "effect/http/HttpClient"
import * as HttpClientError from "effect/http/HttpClientError"
import type * as HttpClientRequest from "effect/http/HttpClientRequest"
import type * as HttpClientResponse from "effect/http/HttpClientResponse"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as calls from "./internal/calls.ts"
import * as bodies from "./internal/http/request.ts"
import * as responses from "./internal/http/response.ts"
import type * as ModelConfig from "./ModelConfig.ts"
import * as ProviderProfile from "./ProviderProfile.ts"
import * as QueueError from "./QueueError.ts"
import type * as QueueManager from "./QueueManager.ts"

/**
 * What a queue knows of an HTTP request, and estimates its tokens from.
 *
 * @category models
 * @since 0.1.0
 */
export interface Call {
  /** Its JSON body; `undefined` if it has none. */
  readonly body: unknown
}

/**
 * The queue of one model: its limits, all that a queue of streams can be given, and `request`, which says what a single HTTP
 * request asks of the queue.
 *
 * @category models
 * @since 0.1.0
 */
export type QueueOptions = calls.Options<Call>

/**
 * Options of a queued HTTP client.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /**
   * Queues, by the id of their model. `"*"` is the queue of all requests that name no other one here; without it they are
   * not queued.
   */
  readonly models: Readonly<Record<string, QueueOptions>>
  /**
   * The id of the model that a request names. Default: `model` of its JSON body, or what stands in its path behind
   * `models/` (Gemini), `deployments/` (Azure) or `model/` (Bedrock).
   */
  readonly key?: ((request: HttpClientRequest.HttpClientRequest, call: Call) => string | undefined) | undefined
}

/**
 * The error of the queue that an error of the client stands for, or has as its cause: `QueueTimeout`, `RequestTooLarge`, …
 *
 * **Example** (Telling the queue's failures from the network's)
 *
 * ```ts
 * import { Effect, Option } from "effect"
 * import { queueError } from "effect-llm-queue/HttpClient"
 * import { HttpClient } from "effect/http"
 *
 * const program = HttpClient.post("https://api.openai.com/v1/chat/completions").pipe(
 *   Effect.tapError((error) =>
 *     Option.match(queueError(error), {
 *       onNone: () => Effect.logError("The call failed"),
 *       onSome: ({ _tag }) => Effect.logError(`It was not sent: ${_tag}`)
 *     })
 *   )
 * )
 * ```
 *
 * @category accessors
 * @since 0.1.0
 */
export const queueError = (error: unknown): Option.Option<QueueError.QueueError> => {
  let current = error
  for (let depth = 0; depth < maxDepth && typeof current === "object" && current !== null; depth++) {
    if (QueueError.isQueueError(current)) return Option.some(current)
    current = "cause" in current ? current.cause : undefined
  }
  return Option.none()
}

const maxDepth = 8

/**
 * A response that is a refusal, or a fault: its status, headers and body are what the queue reads. Where the client fails
 * by itself for its status, `error` is that.
 */
class Refused {
  readonly status: number
  readonly headers: Readonly<Record<string, string>>
  readonly body: string
  readonly response: HttpClientResponse.HttpClientResponse
  readonly #error: HttpClientError.HttpClientError | undefined

  constructor(
    response: HttpClientResponse.HttpClientResponse,
    body: string,
    error: HttpClientError.HttpClientError | undefined
  ) {
    this.status = response.status
    this.headers = response.headers
    this.body = body
    this.response = response
    this.#error = error
  }

  /** As it is without a queue. */
  get exit(): Effect.Effect<HttpClientResponse.HttpClientResponse, HttpClientError.HttpClientError> {
    return this.#error === undefined ? Effect.succeed(this.response) : Effect.fail(this.#error)
  }
}

type Failure = HttpClientError.HttpClientError | Refused

/** The response, and then what it used. */
type Element =
  | {
    readonly response: HttpClientResponse.HttpClientResponse
    /** Tells who reads a body that has not come yet. */
    readonly fail?: (cause: Cause.Cause<HttpClientError.HttpClientError>) => void
  }
  | { readonly usage: ModelConfig.Usage | undefined }

const usage = (element: unknown): ModelConfig.Usage | undefined => {
  const part = element as Element
  return "usage" in part ? part.usage : undefined
}

/** The same error, with a response whose body can be read once more. */
const withResponse = (
  error: HttpClientError.HttpClientError,
  response: HttpClientResponse.HttpClientResponse
): HttpClientError.HttpClientError => {
  const { reason } = error
  if (reason._tag !== "StatusCodeError") return error
  const { cause, description, request } = reason
  return new HttpClientError.HttpClientError({
    reason: new HttpClientError.StatusCodeError({ request, response, cause, description })
  })
}

const refused = (
  response: HttpClientResponse.HttpClientResponse,
  error?: HttpClientError.HttpClientError
): Stream.Stream<never, Failure> =>
  Stream.unwrap(
    Effect.map(responses.buffered(response), ({ response, text }) =>
      Stream.fail(new Refused(response, text, error === undefined ? undefined : withResponse(error, response))))
  )

/** A request while it is being processed: its response, and then its usage when all of its body has come. */
const run = (
  execute: Effect.Effect<HttpClientResponse.HttpClientResponse, HttpClientError.HttpClientError>
): Stream.Stream<Element, Failure> =>
  Stream.unwrap(
    execute.pipe(
      Effect.tap((response) => response.status >= 400 ? Effect.void : ProviderProfile.observe(response)),
      Effect.map((response): Stream.Stream<Element, Failure> => {
        if (response.status >= 400) return refused(response)
        if (!responses.isStream(response)) {
          return Stream.flatMap(
            Stream.fromEffect(responses.buffered(response)),
            ({ response, usage }) => Stream.make({ response }, { usage })
          )
        }
        const { fail, read, response: passed } = responses.passedOn(response)
        return Stream.concat(
          Stream.make({ response: passed, fail }),
          Stream.map(Stream.fromEffect(read), (usage) => ({ usage }))
        )
      }),
      Effect.catch((error) =>
        Effect.succeed(error.response === undefined ? Stream.fail(error) : refused(error.response, error))
      )
    )
  )

/** What a caller hears of the queue's own failures: the last response where there was one. */
const toError = (request: HttpClientRequest.HttpClientRequest) => (error: QueueError.SubmitError): Failure => {
  const last = "cause" in error ? error.cause : undefined
  if (last instanceof Refused || HttpClientError.isHttpClientError(last)) return last
  const details = { request, cause: error, description: error.message }
  const isItsOwnFault = error._tag === "RequestTooLarge" || error._tag === "InvalidRequest"
    || error._tag === "DuplicateRequest"
  return new HttpClientError.HttpClientError({
    reason: isItsOwnFault ? new HttpClientError.EncodeError(details) : new HttpClientError.TransportError(details)
  })
}

/**
 * The response as soon as it is there. The request goes on until all of its body has come, or its reader leaves; without a
 * response it ends with its caller.
 */
const answered = (
  elements: Stream.Stream<Element, Failure>
): Effect.Effect<HttpClientResponse.HttpClientResponse, HttpClientError.HttpClientError> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.gen(function*() {
      const answer = yield* Deferred.make<HttpClientResponse.HttpClientResponse, HttpClientError.HttpClientError>()
      let fail: (cause: Cause.Cause<HttpClientError.HttpClientError>) => void = () => {}
      const fiber = yield* elements.pipe(
        Stream.runForEach((element) => {
          if (!("response" in element)) return Effect.void
          fail = element.fail ?? fail
          return Deferred.succeed(answer, element.response)
        }),
        Effect.catch((error) => error instanceof Refused ? Deferred.into(error.exit, answer) : Effect.fail(error)),
        Effect.catchCause((cause) => {
          fail(cause)
          return Deferred.failCause(answer, cause)
        }),
        Effect.forkDetach({ startImmediately: true })
      )
      return yield* restore(Deferred.await(answer)).pipe(Effect.onInterrupt(() => Fiber.interrupt(fiber)))
    })
  )

/**
 * A client that tells the queue around it what the rate-limit headers of its responses say. It is for a queue around the
 * model (`effect-llm-queue/LanguageModel`), which sees no headers: give it to the provider's client as `transformClient`.
 * Outside of a queue it does nothing; a client of `layer` or `make` needs it not.
 *
 * @category combinators
 * @since 0.1.0
 */
export const observe = (client: HttpClient.HttpClient): HttpClient.HttpClient =>
  HttpClient.transformResponse(
    client,
    Effect.tap((response) => response.status >= 400 ? Effect.void : ProviderProfile.observe(response))
  )

/**
 * A function that puts the requests of a client through queues, which live as long as the scope. It is what the clients of
 * providers take as `transformClient`.
 *
 * See `layer`.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fnUntraced(function*(
  { key = bodies.key, models }: Options
): Effect.fn.Return<
  (client: HttpClient.HttpClient) => HttpClient.HttpClient,
  QueueError.RegisterError,
  QueueManager.QueueManager | Scope.Scope
> {
  const queues = new Map<string, { readonly queue: calls.Calls<Call>; readonly options: QueueOptions }>()
  for (const [modelId, options] of Object.entries(models)) {
    const { request: _, ...queueOptions } = options
    const queue = yield* calls.make<Call>(
      modelId,
      queueOptions,
      usage,
      (failure) => failure instanceof Refused || HttpClientError.isHttpClientError(failure)
    )
    queues.set(modelId, { queue, options })
  }
  return HttpClient.transform((execute, request) =>
    Effect.suspend(() => {
      const call: Call = { body: bodies.json(request) }
      const modelId = key(request, call)
      const found = (modelId === undefined ? undefined : queues.get(modelId)) ?? queues.get("*")
      if (found === undefined) return execute
      return answered(found.queue.stream({
        params: call,
        options: { ...bodies.tokens(request, call.body), ...found.options.request?.(call) },
        stream: run(execute),
        hasActed: () => false,
        toError: toError(request)
      }))
    })
  )
})

/**
 * Takes an `HttpClient` and provides one whose requests wait for their turn, and for the limits, in the queue of the model
 * that they name.
 *
 * **Details**
 *
 * - A request holds its permit until its response is there with all of its body. A body that comes bit by bit
 *   (`text/event-stream` and the like) is passed on as it comes, and read at the provider's pace: a reader that is slow, or
 *   never comes, holds no permit. One that leaves early, or an interruption before the response, aborts the request.
 *   A scope of `HttpClient.withScope` does so when it closes. A body that nobody reads and that never ends keeps its permit
 *   until the queue's `processingTimeout`, so give it one: there is none by default.
 * - Input tokens are estimated from the strings of the JSON body, and better with every response; the most output tokens
 *   are what it says itself (`max_tokens`, `max_completion_tokens`, `max_output_tokens`, `maxOutputTokens`). `estimate` and
 *   `request` can say more. The reservation is settled by the usage in the response, of a stream by that in its events.
 * - Rate-limit headers of every response keep the queue in step, with a `provider`.
 * - What the `provider`'s profile recognises as a refusal or a fault is attempted again by the queue, until the response is
 *   there. When there is no further attempt, the caller has what it has without a queue: the last response, or the error.
 *   Nothing else is to attempt it again, so neither `retryTransient` nor `withRateLimiter` belong on this client.
 * - The queue's own failures are an `HttpClientError`: an `EncodeError` for a request that can never be sent, else a
 *   `TransportError`. `queueError` gives the original.
 * - Priority, tenant, deadline and labels are those of the region (`QueueManager.withPriority`, …), or of `request`.
 *
 * **Example** (A queued client)
 *
 * ```ts
 * import { Layer } from "effect"
 * import { ProviderProfile, QueueManager, RateLimiter } from "effect-llm-queue"
 * import * as QueuedHttpClient from "effect-llm-queue/HttpClient"
 * import { FetchHttpClient } from "effect/http"
 *
 * const ClientLive = QueuedHttpClient.layer({
 *   models: {
 *     "gpt-4": {
 *       provider: ProviderProfile.openai,
 *       rateLimiters: [RateLimiter.rpm(500), RateLimiter.tpm(30_000)]
 *     }
 *   }
 * }).pipe(Layer.provide([FetchHttpClient.layer, QueueManager.layer]))
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (
  options: Options
): Layer.Layer<
  HttpClient.HttpClient,
  QueueError.RegisterError,
  HttpClient.HttpClient | QueueManager.QueueManager
> =>
  Layer.effect(
    HttpClient.HttpClient,
    Effect.flatMap(make(options), (queued) => Effect.map(HttpClient.HttpClient, queued))
  )
