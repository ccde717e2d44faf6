/**
 * A simulated LLM provider that enforces rate limits the strict way and keeps the books.
 *
 * Per model it holds a list of limits, each an exact sliding log over `(t - period, t]`. A request is checked against
 * all of them and charged to all or to none, when it is admitted: its prompt tokens, and its `max_tokens` reserved as
 * output. When it completes, the charge is rewritten where it stands to what was really produced. Every arrival is
 * recorded, so that a test can ask the provider, not the client, how much was refused and how much of each limit was
 * used.
 *
 * It has two faces with the same books: `complete` and `start` answer in process under the `Clock` of the caller, so
 * that ten minutes pass at once under `TestClock`; `layerHttp` serves OpenAI's chat completions to any client. It
 * shares no code with the limiters that it is there to test.
 *
 * **Gotchas**
 *
 * The ledger remembers every request for as long as the simulator lives.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { generate } from "./internal/generate.ts"
import * as ledger from "./internal/ledger.ts"
import * as openai from "./internal/openai.ts"

/**
 * What a limit counts.
 *
 * | dimension | charged at admission | after completion |
 * | --- | --- | --- |
 * | `requests` | 1 | 1 |
 * | `input` | prompt tokens, see `promptTokens` | the same |
 * | `output` | `max_tokens` | tokens produced |
 * | `tokens` | `input` + `output` | `input` + `output` |
 * | `concurrent` | 1 | 0, also after an abort |
 *
 * @category models
 * @since 0.1.0
 */
export type Dimension = "requests" | "tokens" | "input" | "output" | "concurrent"

/**
 * One limit of a model: net charges dated in any `(t - period, t]` never exceed `limit`. `period` is a minute when left
 * out, and means nothing for `concurrent`. Several limits may count the same dimension (per minute and per day); the
 * rate-limit headers describe the first of them.
 *
 * @category models
 * @since 0.1.0
 */
export interface Limit {
  readonly dimension: Dimension
  readonly limit: number
  readonly period?: Duration.Input | undefined
}

/**
 * An amount for each dimension.
 *
 * @category models
 * @since 0.1.0
 */
export type Charge = Readonly<Record<Dimension, number>>

/**
 * Settings of the simulator.
 *
 * - `models`: the limits of each model by its id; an empty list means no limit. Other models are answered 404.
 * - `serviceTime`: how long an admitted request takes, `base` plus `perOutputToken` for each token produced; in a stream
 *   the tokens come at this pace. Both are zero when left out.
 * - `seed`: chooses the length and the words of the answers. The same seed and prompt give the same answer, of 1 to
 *   `max_tokens` tokens. Default 0.
 * - `countRefused`: whether a refused request still counts as one request, and so delays its own retry. Default false.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  readonly models: Readonly<Record<string, ReadonlyArray<Limit>>>
  readonly serviceTime?: {
    readonly base?: Duration.Input | undefined
    readonly perOutputToken?: Duration.Input | undefined
  } | undefined
  readonly seed?: number | undefined
  readonly countRefused?: boolean | undefined
}

/**
 * The part of OpenAI's chat completion request that the simulator understands; other fields are ignored.
 * `max_completion_tokens` goes before `max_tokens`; without either, 16 output tokens are reserved. `n` may only be 1.
 *
 * @category models
 * @since 0.1.0
 */
export type ChatRequest = openai.ChatRequest

/**
 * The answer to an admitted request. `headers` are the `x-ratelimit-*` headers as they stood at admission, after the
 * charge of this request.
 *
 * @category models
 * @since 0.1.0
 */
export interface Completion {
  readonly id: string
  readonly model: string
  readonly text: string
  readonly finishReason: "stop" | "length"
  readonly usage: { readonly inputTokens: number; readonly outputTokens: number }
  readonly headers: Readonly<Record<string, string>>
}

/**
 * An admitted request whose answer is being produced. Run `wait` for the whole answer or `tokens` for its pieces; the
 * request is completed, and its charge corrected, when one of them ends. Closing the scope before that aborts it.
 *
 * @category models
 * @since 0.1.0
 */
export interface Generation {
  readonly request: ChatRequest
  readonly completion: Completion
  readonly wait: Effect.Effect<void>
  readonly tokens: Stream.Stream<string>
}

/**
 * One request as the ledger holds it. Times are milliseconds on the clock of the simulator, which starts at 0 when the
 * simulator is made and is exact to a nanosecond.
 *
 * - `charge`: what the request asked for at `at`
 * - `net`: what counts in the windows now, still dated `at`: `charge`, less the correction once it has completed;
 *   nothing for a refused request, or one request with `countRefused`
 * - `failedDimension`: for a refused request, the first dimension without room
 * - `retryAfter`: for a refused request, milliseconds after `at` until it would have fitted
 * - `completedAt`, `abortedAt`: when an admitted request ended; neither while it runs
 *
 * @category models
 * @since 0.1.0
 */
export interface Arrival {
  readonly id: number
  readonly model: string
  readonly at: number
  readonly charge: Charge
  readonly net: Charge
  readonly admitted: boolean
  readonly failedDimension: Dimension | undefined
  readonly retryAfter: number | undefined
  readonly completedAt: number | undefined
  readonly abortedAt: number | undefined
}

/**
 * How one limit fared. `period` is in milliseconds.
 *
 * - `charged`, `net`: total charges of admitted requests, at admission and as corrected
 * - `worstWindow`: the largest sum of net charges in any window so far, recomputed from the ledger; for `concurrent`,
 *   the most requests at one time
 * - `utilisation`: net charges dated in `(from, to]` divided by `limit * (to - from) / period`; for `concurrent`, the
 *   share of slot time in use
 *
 * @category models
 * @since 0.1.0
 */
export interface LimitReport {
  readonly dimension: Dimension
  readonly limit: number
  readonly period: number | undefined
  readonly charged: number
  readonly net: number
  readonly worstWindow: number
  readonly utilisation: number
}

/**
 * What happened to one model since the start: `arrivals` = `admitted` + `refused`, and `admitted` = `completed` +
 * `aborted` + `running`. `limits` come in the order in which refusals look at them.
 *
 * @category models
 * @since 0.1.0
 */
export interface ModelReport {
  readonly model: string
  readonly arrivals: number
  readonly admitted: number
  readonly refused: number
  readonly refusedBy: Charge
  readonly completed: number
  readonly aborted: number
  readonly running: number
  readonly maxConcurrent: number
  readonly limits: ReadonlyArray<LimitReport>
}

/**
 * What happened so far. `from` and `to`, in milliseconds, bound the utilisation only.
 *
 * @category models
 * @since 0.1.0
 */
export interface Report {
  readonly now: number
  readonly from: number
  readonly to: number
  readonly models: ReadonlyArray<ModelReport>
}

/**
 * The request did not fit the limits of its model; over HTTP, status 429. It names the first dimension without room, in
 * the order requests, tokens, input, output, concurrent, and its `message` is the text that OpenAI sends.
 *
 * - `used`, `requested`: what the window held, and what this request would have added
 * - `retryAfter`: milliseconds until the first instant at which all windows have room, if nothing else is admitted or
 *   refunded; waiting a millisecond less is refused. Absent when only a free slot is missing, or when `tooLarge`.
 * - `tooLarge`: the request alone is over the limit and will never fit
 *
 * @category errors
 * @since 0.1.0
 */
export class Refused extends Schema.TaggedError<Refused>("effect-llm-queue/testing/Refused")("Refused", {
  message: Schema.String,
  model: Schema.String,
  dimension: Schema.Literals(["requests", "tokens", "input", "output", "concurrent"]),
  limit: Schema.Finite,
  used: Schema.Finite,
  requested: Schema.Finite,
  retryAfter: Schema.optional(Schema.Finite),
  tooLarge: Schema.Boolean,
  headers: Schema.Record(Schema.String, Schema.String)
}) {
  get isRetryable(): boolean {
    return !this.tooLarge
  }
}

/**
 * The request is malformed (status 400), or its model does not exist (status 404, code `model_not_found`). It is not an
 * arrival and appears in no report.
 *
 * @category errors
 * @since 0.1.0
 */
export class BadRequest extends Schema.TaggedError<BadRequest>("effect-llm-queue/testing/BadRequest")("BadRequest", {
  status: Schema.Literals([400, 404]),
  code: Schema.NullOr(Schema.String),
  message: Schema.String
}) {
  readonly isRetryable = false
}

/**
 * The simulated provider.
 *
 * - `complete`: sends a request and waits for the whole answer. Interrupting it is a client that hangs up: the slot
 *   becomes free, the charge stays.
 * - `start`: sends a request, given as the parsed JSON body, and returns as soon as it is admitted. It belongs to the
 *   scope: see `Generation`.
 * - `now`: milliseconds on the clock of the simulator
 * - `arrivals`: a copy of the ledger, in order of arrival
 * - `report`: totals since the start, and utilisation over `(from, to]`, by default from the start (a request at 0
 *   included) to now
 *
 * @category services
 * @since 0.1.0
 */
export class ProviderSimulator extends Context.Service<ProviderSimulator, {
  readonly complete: (request: ChatRequest) => Effect.Effect<Completion, Refused | BadRequest>
  readonly start: (body: unknown) => Effect.Effect<Generation, Refused | BadRequest, Scope.Scope>
  readonly now: Effect.Effect<number>
  readonly arrivals: Effect.Effect<ReadonlyArray<Arrival>>
  readonly report: (options?: {
    readonly from?: number | undefined
    readonly to?: number | undefined
  }) => Effect.Effect<Report>
}>()("effect-llm-queue/testing/ProviderSimulator") {}

/**
 * The prompt tokens that the simulator charges: a quarter of the characters in all message texts, rounded up, and 3 for
 * each message. A stand-in for a tokenizer that is cheap, deterministic and easy to predict.
 *
 * @category accessors
 * @since 0.1.0
 */
export const promptTokens = (request: ChatRequest): number =>
  Math.ceil(openai.promptText(request).length / 4) + 3 * request.messages.length

/**
 * Makes a simulator. Its clock starts at 0 here and follows the monotonic time of the `Clock` that requests run under.
 *
 * **Example** (Asking the provider what it saw)
 *
 * ```ts
 * import { Effect } from "effect"
 * import { ProviderSimulator } from "effect-llm-queue/testing"
 *
 * const program = Effect.gen(function*() {
 *   const provider = yield* ProviderSimulator.make({
 *     models: { "gpt-4": [{ dimension: "requests", limit: 1, period: "1 minute" }] }
 *   })
 *   const ask = provider.complete({ model: "gpt-4", messages: [{ role: "user", content: "Hello" }] })
 *   yield* ask
 *   const refused = yield* Effect.flip(ask) // Rate limit reached ... Please try again in 1m0s.
 *   const { models } = yield* provider.report()
 *   return [refused.message, models[0]?.refused] // 1
 * })
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (options: Options): Effect.Effect<ProviderSimulator["Service"]> =>
  Effect.gen(function*() {
    const origin = yield* Clock.monotonicTimeNanos
    const now = Effect.map(Clock.monotonicTimeNanos, (nanos) => Number(nanos - origin) / 1e6)
    const base = Duration.toMillis(options.serviceTime?.base ?? 0)
    const perToken = Duration.toMillis(options.serviceTime?.perOutputToken ?? 0)
    const books = ledger.make({
      models: Object.fromEntries(
        Object.entries(options.models).map(([id, limits]) => [
          id,
          limits.map(({ dimension, limit, period }) => ({
            dimension,
            limit,
            period: dimension === "concurrent" ? Infinity : Duration.toMillis(period ?? "1 minute")
          }))
        ])
      ),
      countRefused: options.countRefused ?? false
    })

    const start = Effect.fn("ProviderSimulator.start")(function*(body: unknown) {
      const request = yield* Effect.mapError(
        openai.decode(body),
        (error) => new BadRequest({ status: 400, code: null, message: `Invalid request body: ${error.message}` })
      )
      const { model } = request
      const inputTokens = promptTokens(request)
      const maxTokens = openai.maxTokens(request)
      // The scope may close at any point from here on; aborting does nothing once the request has completed.
      const decision = yield* Effect.acquireRelease(
        Effect.map(now, (at) => books.admit(model, inputTokens, maxTokens, at)),
        (decision) => decision ? Effect.map(now, (at) => books.abort(decision.id, at)) : Effect.void
      )
      if (decision === undefined) {
        return yield* new BadRequest({
          status: 404,
          code: "model_not_found",
          message: `The model \`${model}\` does not exist or you do not have access to it.`
        })
      }
      const headers = openai.rateLimitHeaders(decision.quotas)
      if (decision.refusal !== undefined) {
        const { dimension, limit, requested, retryAfter, tooLarge, used } = decision.refusal
        return yield* new Refused({
          message: openai.refusalMessage(model, decision.refusal),
          model,
          dimension,
          limit,
          used,
          requested,
          retryAfter,
          tooLarge,
          headers: { ...headers, ...openai.refusalHeaders(decision.refusal) }
        })
      }
      const words = generate(options.seed ?? 0, openai.promptText(request), maxTokens)
      const completion: Completion = {
        id: `chatcmpl-${decision.id}`,
        model,
        text: words.join(""),
        finishReason: words.length < maxTokens ? "stop" : "length",
        usage: { inputTokens, outputTokens: words.length },
        headers
      }
      // Each token is due at an instant, not after the one before it: a late timer does not delay the rest.
      const produced = (tokens: number) =>
        Effect.flatMap(now, (at) => Effect.sleep(Math.max(0, decision.at + base + perToken * tokens - at)))
      const completed = Effect.map(now, (at) => books.complete(decision.id, words.length, at))
      const generation: Generation = {
        request,
        completion,
        wait: Effect.andThen(produced(words.length), completed),
        tokens: Stream.fromArray(words).pipe(
          Stream.zipWithIndex,
          Stream.mapEffect(([word, i]) => Effect.as(produced(i + 1), word)),
          Stream.onEnd(completed)
        )
      }
      return generation
    })

    return ProviderSimulator.of({
      start,
      complete: Effect.fn("ProviderSimulator.complete")(function*(request: ChatRequest) {
        const { completion, wait } = yield* start(request)
        yield* wait
        return completion
      }, Effect.scoped),
      now,
      arrivals: Effect.sync(() => books.arrivals()),
      report: (options) => Effect.map(now, (at) => books.report(at, options?.from, options?.to ?? at))
    })
  })

/**
 * Provides a simulator, to be shared by the program under test and by the test that asks for the report.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: Options): Layer.Layer<ProviderSimulator> =>
  Layer.effect(ProviderSimulator, make(options))

const toResponse = (error: Refused | BadRequest): HttpServerResponse.HttpServerResponse =>
  error._tag === "BadRequest"
    ? HttpServerResponse.jsonUnsafe(
      openai.errorBody({ message: error.message, type: "invalid_request_error", code: error.code }),
      { status: error.status }
    )
    : HttpServerResponse.jsonUnsafe(
      openai.errorBody({
        message: error.message,
        type: error.dimension === "requests" || error.dimension === "concurrent" ? "requests" : "tokens",
        code: "rate_limit_exceeded"
      }),
      { status: 429, headers: error.headers }
    )

/**
 * Serves the simulator in the format of OpenAI. The server and its port are yours: `HttpRouter.serve(layerHttp)` with a
 * platform's `HttpServer`, bound to 127.0.0.1.
 *
 * - `POST /v1/chat/completions`: answers with a `chat.completion`, or with server-sent events when `stream` is true.
 *   Answers and refusals (429) carry the `x-ratelimit-*` headers for requests and tokens; a refusal also has
 *   `retry-after` in whole seconds and `retry-after-ms`, or `x-should-retry: false` when the request is too large.
 *   A client that disconnects aborts its request.
 * - `GET /__sim/stats?from=&to=`: the report as JSON
 *
 * A request arrives when its body has been read.
 *
 * **Example** (Serving on Node)
 *
 * ```ts
 * import { NodeHttpServer } from "@effect/platform-node"
 * import { Layer } from "effect"
 * import { HttpRouter } from "effect/http"
 * import { ProviderSimulator } from "effect-llm-queue/testing"
 * import { createServer } from "node:http"
 *
 * const Server = HttpRouter.serve(ProviderSimulator.layerHttp).pipe(
 *   Layer.provide(ProviderSimulator.layer({ models: { "gpt-4": [{ dimension: "requests", limit: 500 }] } })),
 *   Layer.provide(NodeHttpServer.layer(createServer, { host: "127.0.0.1", port: 8080 }))
 * )
 * ```
 *
 * @stability unstable
 * @category layers
 * @since 0.1.0
 */
export const layerHttp: Layer.Layer<never, never, HttpRouter.HttpRouter | ProviderSimulator> = HttpRouter.use(
  Effect.fnUntraced(function*(router) {
    const simulator = yield* ProviderSimulator

    const chat = Effect.gen(function*() {
      const { json } = yield* HttpServerRequest.HttpServerRequest
      const body = yield* Effect.mapError(json, () =>
        new BadRequest({
          status: 400,
          code: null,
          message: "We could not parse the JSON body of your request."
        }))
      const created = Math.floor((yield* Clock.currentTimeMillis) / 1000)
      const { completion, request, tokens, wait } = yield* simulator.start(body)
      if (request.stream !== true) {
        yield* wait
        return HttpServerResponse.jsonUnsafe(openai.completionBody(completion, created), {
          headers: completion.headers
        })
      }
      const events = openai.streamEvents(completion, created, request.stream_options?.include_usage === true)
      return HttpServerResponse.stream(
        Stream.make(events.head).pipe(
          Stream.concat(Stream.map(tokens, events.token)),
          Stream.concat(Stream.make(events.tail)),
          Stream.encodeText
        ),
        { contentType: "text/event-stream", headers: completion.headers }
      )
    })

    const stats = Effect.gen(function*() {
      const range = yield* Effect.mapError(
        HttpServerRequest.schemaSearchParams(Schema.Struct({
          from: Schema.optional(Schema.FiniteFromString),
          to: Schema.optional(Schema.FiniteFromString)
        })),
        (error) => new BadRequest({ status: 400, code: null, message: error.message })
      )
      return HttpServerResponse.jsonUnsafe(yield* simulator.report(range))
    })

    const respond = Effect.catch((error: Refused | BadRequest) => Effect.succeed(toResponse(error)))
    yield* router.add("POST", "/v1/chat/completions", respond(chat))
    yield* router.add("GET", "/__sim/stats", respond(stats))
  })
)
