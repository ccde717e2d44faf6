/**
 * A simulated LLM provider that enforces rate limits to the letter and keeps the books.
 *
 * Per model it holds a list of limits, each exact by the definition of its algorithm. A request is checked against all
 * of them and charged to all or to none, by the charging rule of its model. Every arrival is recorded, so that a test
 * can ask the provider, not the client, how much was refused and how much of each limit was used.
 *
 * It has three faces with the same books. `complete` and `start` answer in process. `handle` takes a request as it
 * stands on the wire and answers in the format of OpenAI, Azure, Anthropic, Gemini and others, with their headers,
 * streams, refusals and failures. Both run under the `Clock` of the caller, so that ten minutes pass at once under
 * `TestClock`. `layerHttp` serves `handle` to any client. The simulator shares no code with the limiters that it is
 * there to test.
 *
 * **Gotchas**
 *
 * The ledger remembers every request for as long as the simulator lives.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as eventstream from "./internal/eventstream.ts"
import * as faults from "./internal/faults.ts"
import * as openai from "./internal/openai.ts"
import * as server from "./internal/server.ts"

/**
 * What a limit counts.
 *
 * | dimension | counts |
 * | --- | --- |
 * | `requests` | requests |
 * | `input` | prompt tokens, see `promptTokens` |
 * | `output` | output tokens |
 * | `tokens` | both |
 * | `concurrent` | requests from their admission to their end, also by an abort |
 * | `spend` | dollars by the model's `price`, charged at completion |
 *
 * How many tokens are charged, and when, is the model's `Charging`.
 *
 * @category models
 * @since 0.1.0
 */
export type Dimension = "requests" | "tokens" | "input" | "output" | "concurrent" | "spend"

/**
 * How a limit of `L` a period `T` is enforced.
 *
 * - `sliding`: net charges dated in any `(t - T, t]` are at most `L`. A correction rewrites the charge where it stands.
 * - `bucket`: a level starts at `burst`, by default `L`, refills at `L / T` up to there, and no charge may exceed it. A
 *   correction changes the level at once.
 * - `fixed`: net charges in each window `[k * T + phase, (k + 1) * T + phase)` of Unix time are at most `L`; with a
 *   `timeZone`, in each calendar day there.
 * - `dynamic`: a bucket of one second whose rate is twice what got through lately, an average with a time constant of a
 *   minute, at least `L / T` and at most `burst / T`, by default ten times `L / T`. A charge above one second's share
 *   passes when the bucket is full.
 *
 * **Gotchas**
 *
 * `dynamic` stands for providers, such as Together, that tell only that their limits grow with use: its numbers are
 * assumptions. So is the algorithm of Azure, Bedrock, Cohere and Cerebras, whichever you choose for them.
 *
 * @category models
 * @since 0.1.0
 */
export type Algorithm = "sliding" | "bucket" | "fixed" | "dynamic"

/**
 * When tokens are charged, and how many.
 *
 * | rule | at admission | later |
 * | --- | --- | --- |
 * | `reserve` | prompt and `max_tokens` | with `refund`, at completion, what was really used |
 * | `openai` | `max_tokens` or a quarter of the characters, the larger | with `refund`, what was used if less |
 * | `anthropic` | prompt; some `output` must be left | prompt corrected at first byte; output as it is produced |
 * | `actual` | nothing, but something must be left | everything at completion |
 * | `input` | prompt | prompt corrected at completion |
 *
 * **Gotchas**
 *
 * Assumptions: that OpenAI takes the larger of the two, not their sum, and gives nothing back; that `outputWeight` does
 * not multiply a reservation; that a reservation is corrected at completion only, although Bedrock corrects it on the
 * way as well. Input at admission is a guess that `charsPerToken` makes wrong.
 *
 * @category models
 * @since 0.1.0
 */
export type Charging = "reserve" | "openai" | "anthropic" | "actual" | "input"

/**
 * Whose headers, refusals and errors a model answers with. The path of a request decides the shape of the request and
 * of the answer.
 *
 * **Gotchas**
 *
 * Assumptions, for want of a source: the words of Cohere's refusals, and that a limit of four weeks or more is the
 * monthly one of its trial keys, which alone have headers; that `reset` of Cerebras is the time until the limit is whole;
 * what Mistral, Groq, Cohere, Cerebras and Bedrock answer when traffic rises too sharply; the answers to a wrong key
 * apart from those of OpenAI, Anthropic, DeepSeek and Mistral.
 *
 * @category models
 * @since 0.1.0
 */
export type DialectName =
  | "openai"
  | "azure"
  | "anthropic"
  | "gemini"
  | "groq"
  | "mistral"
  | "bedrock"
  | "deepseek"
  | "openrouter"
  | "together"
  | "cohere"
  | "cerebras"

/**
 * One limit of a model. `period` is a minute when left out, a day with a `timeZone`, and means nothing for
 * `concurrent`. Several limits may count the same dimension (per minute and per day); where a dialect has headers for
 * one of them only, they describe the first of those under a day.
 *
 * - `algorithm`: `sliding` when left out
 * - `burst`: for `bucket`, its size; for `dynamic`, the highest limit
 * - `phase`: for `fixed`, when windows begin, counted from any whole number of periods of Unix time. Default 0.
 * - `timeZone`: for `fixed`, an IANA zone whose days are the windows, such as `America/Los_Angeles`
 * - `quantum`: the limit's share of every such time is enforced as well, by the same algorithm; of requests at least 1
 * - `countRefused`: what a refused request still counts in this limit: nothing, one request, or all it asked for.
 *   Default: what the simulator's `countRefused` says.
 * - `scope`: whether each key, project or organization of `Options.keys` has one of its own. Default `org`.
 * - `group`: models that name the same group share the limit, if dimension, period and algorithm are the same too. The
 *   first of them says the rest.
 * - `pool`: a limit of Anthropic's Priority Tier or fast mode, which has headers of its own. A request draws from
 *   `priority` limits when it fits all of them and is served without them otherwise: they never refuse. A `fast` limit
 *   refuses as any other; give the fast variant of a model an id of its own.
 *
 * @category models
 * @since 0.1.0
 */
export interface Limit {
  readonly dimension: Dimension
  readonly limit: number
  readonly period?: Duration.Input | undefined
  readonly algorithm?: Algorithm | undefined
  readonly burst?: number | undefined
  readonly phase?: Duration.Input | undefined
  readonly timeZone?: string | undefined
  readonly quantum?: Duration.Input | undefined
  readonly countRefused?: "none" | "requests" | "all" | undefined
  readonly scope?: "key" | "project" | "org" | undefined
  readonly group?: string | undefined
  readonly pool?: "priority" | "fast" | undefined
}

/**
 * How fast traffic may rise: with a request, what was admitted in the last minute may not be above `floor` and above
 * `factor` times the most that was ever in a minute up to a request of the `period` before that last minute. Else it is
 * refused as the provider refuses when traffic rises too sharply, without a hint when to come back.
 *
 * - `dimension`: what is counted, as charged at admission. Default `input`.
 * - `factor`: default 1.5
 * - `floor`: an amount a minute. Default 1,000,000.
 * - `period`: default 15 minutes
 *
 * **Gotchas**
 *
 * The defaults are what OpenAI advises. No provider tells how it really decides: the minute, that refusals and
 * corrections do not count, and that the last minute is left out of what it is compared with are assumptions.
 *
 * @category models
 * @since 0.1.0
 */
export interface Accel {
  readonly dimension?: Dimension | undefined
  readonly factor?: number | undefined
  readonly floor?: number | undefined
  readonly period?: Duration.Input | undefined
}

/**
 * Whose key it is. Keys of the same project or organization share the limits of that scope.
 *
 * - `project`: default: a project of its own
 * - `org`: default: the same as of all keys that do not say
 *
 * @category models
 * @since 0.1.0
 */
export interface Key {
  readonly project?: string | undefined
  readonly org?: string | undefined
}

/**
 * A lognormal distribution. A `sigma` of 0 always gives the median.
 *
 * @category models
 * @since 0.1.0
 */
export interface Lognormal<A> {
  readonly median: A
  readonly sigma: number
}

/**
 * How long an admitted request takes: `base` and `ttft` until the first byte, then `perOutputToken` for each token
 * produced. In a stream the tokens come at this pace. All are zero when left out.
 *
 * @category models
 * @since 0.1.0
 */
export interface ServiceTime {
  readonly base?: Duration.Input | undefined
  readonly ttft?: Duration.Input | Lognormal<Duration.Input> | undefined
  readonly perOutputToken?: Duration.Input | Lognormal<Duration.Input> | undefined
}

/**
 * What goes wrong.
 *
 * Answered instead of a completion; the request is not admitted:
 *
 * - a status: `429` without any hint, `400`, `401`, `402`, `403`, `404`, `408`, `409`, `413`, `500`, `503`, `504`, `529`
 * - `slow_down`: a 429 because traffic rose too sharply
 * - `daily_quota`: a 429 for the day; Gemini's comes with a short delay that means nothing
 * - `credit_balance_exhausted`, `organization_spend_limit_exceeded`, `project_spend_limit_exceeded`,
 *   `organization_usage_limit_exceeded`, `insufficient_quota`, `enforced_spend_limit_reached`: 429, never to be retried
 * - `usage_limits_reached`: a 400, never to be retried
 * - `in_flight_budget_exhausted`: a 402 that may be retried; `weight_exceeds_budget`, `openrouter_credits`,
 *   `openrouter_key_limit`: one that may not
 * - `html_502`: a 502 with a page of HTML
 *
 * The request is admitted and charged, and then:
 *
 * - `never`: nothing comes; `silence`: headers come, then nothing; `stall`: half an answer comes, then nothing
 * - `reset`: the connection is lost before the headers; `reset_mid_body`: after half of the body
 * - `truncated`: half of the body comes, and ends there as if it were whole
 * - `stream_error`: an overload inside a stream before any content; `stream_error_late`: after half of it.
 *   `stream_429` and `stream_429_late`: a rate refusal there. Without a stream, a 500.
 * - `keep_alive`: four comments, or blank lines without a stream, come before the first byte
 * - `in_band_429`: a streamed answer is a rate refusal inside a 200, with a `retry-after` header of 1 second unless
 *   `retryAfter` says otherwise
 *
 * @category faults
 * @since 0.1.0
 */
export type FaultKind = server.FaultKind

/**
 * A fault, and when it happens: at the `nth` requests of its model (counted from 1), at `every` so many, with
 * probability `p`, from `from` on and before `to` on the clock of the simulator. All conditions given must hold. The
 * first fault of a list that is due happens.
 *
 * - `retryAfter`: the `retry-after` header as it stands, such as `"0"`, `"0.5"`, `"-1"` or `"soon"`
 * - `retryAfterDate`: an HTTP date in that header, so far from now
 *
 * @category faults
 * @since 0.1.0
 */
export interface Fault {
  readonly when?: {
    readonly nth?: number | ReadonlyArray<number> | undefined
    readonly every?: number | undefined
    readonly p?: number | undefined
    readonly from?: Duration.Input | undefined
    readonly to?: Duration.Input | undefined
  } | undefined
  readonly kind: FaultKind
  readonly retryAfter?: string | undefined
  readonly retryAfterDate?: Duration.Input | undefined
}

/**
 * A model. Only `limits` is required; an empty list means no limit.
 *
 * - `dialect`: whose headers and errors; without it the path decides
 * - `charge`: default `reserve`; `refund`: whether a reservation is corrected at completion, default true, but false for
 *   `openai`
 * - `outputWeight`: what an output token counts for when it is corrected or charged late. Default 1.
 * - `cacheReadCounts`: whether tokens read from the cache count. Default true.
 * - `cachedShare`: the share of a prompt that is read from the cache when a prompt with the same first 1024 characters
 *   came in the last five minutes. Default 0.
 * - `price`: dollars for a million tokens
 * - `accel`: how fast traffic may rise; without it, as fast as it likes
 * - `onAbort`: whether the answer is still produced, and its slot held, when the client has hung up. Default `stop`.
 * - `abortCharge`: what a client that has hung up is charged. `full`, the default, leaves the admission charge as it is;
 *   `produced` corrects it, like a completion, to what was produced in the end. Output that is charged as it is
 *   produced, or at completion, is charged as far as it was produced either way. Which providers do which is an
 *   assumption: Anthropic alone says that a request is billed after the client has gone.
 * - `defaultMaxTokens`: what a request without `max_tokens` may produce. Default 16.
 * - `charsPerToken`: how many characters a prompt token really has, as against the 4 that are assumed at admission
 * - `outputTokens`: how long answers are, cut at `max_tokens`; without it any length up to there is equally likely
 * - `tokensPerEvent`: how many tokens one event of a stream carries. Default 1.
 * - `serviceTime`: instead of the simulator's
 * - `faults`: before the simulator's
 * - `requestsHeader`: whether headers about requests describe the limit of a minute or of a day
 * - `dropHeaders`: names of response headers that get lost; a name that ends in `*` stands for all that begin so
 * - `staleHeaders`: headers about limits show a state of up to so long ago
 * - `headerSkewMs`: how far the server's wall clock is ahead, in headers only
 * - `inBandRefusals`: whether refusals of streamed requests come inside a 200. Default false.
 *
 * @category models
 * @since 0.1.0
 */
export interface Model {
  readonly limits: ReadonlyArray<Limit>
  readonly dialect?: DialectName | undefined
  readonly charge?: Charging | undefined
  readonly refund?: boolean | undefined
  readonly outputWeight?: number | undefined
  readonly cacheReadCounts?: boolean | undefined
  readonly cachedShare?: number | undefined
  readonly price?: { readonly input?: number | undefined; readonly output?: number | undefined } | undefined
  readonly accel?: Accel | undefined
  readonly onAbort?: "stop" | "continue" | undefined
  readonly abortCharge?: "full" | "produced" | undefined
  readonly defaultMaxTokens?: number | undefined
  readonly charsPerToken?: number | Lognormal<number> | undefined
  readonly outputTokens?: number | Lognormal<number> | undefined
  readonly tokensPerEvent?: number | undefined
  readonly serviceTime?: ServiceTime | undefined
  readonly faults?: ReadonlyArray<Fault> | undefined
  readonly requestsHeader?: "rpm" | "rpd" | undefined
  readonly dropHeaders?: ReadonlyArray<string> | undefined
  readonly staleHeaders?: Duration.Input | undefined
  readonly headerSkewMs?: number | undefined
  readonly inBandRefusals?: boolean | undefined
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
 * - `models`: each model by its id, or only its limits. Other models are answered 404.
 * - `serviceTime`: of models that have none of their own
 * - `seed`: chooses the length and the words of the answers, service times and chances. The same seed and prompt give
 *   the same answer. Default 0.
 * - `countRefused`: whether a refused request still counts as one request, and so delays its own retry. Default false.
 * - `faults`: of all models, after their own
 * - `keys`: the API keys there are, as sent in `authorization: Bearer`, `x-api-key`, `api-key`, `x-goog-api-key` or the
 *   query's `key`. Other keys, and none, are answered 401 and never arrive. Without it every key will do, and all are
 *   one tenant. Requests in process are of the first key.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  readonly models: Readonly<Record<string, ReadonlyArray<Limit> | Model>>
  readonly serviceTime?: ServiceTime | undefined
  readonly seed?: number | undefined
  readonly countRefused?: boolean | undefined
  readonly faults?: ReadonlyArray<Fault> | undefined
  readonly keys?: Readonly<Record<string, Key>> | undefined
}

/**
 * The part of OpenAI's chat completion request that the simulator understands; other fields are ignored.
 * `max_completion_tokens` goes before `max_tokens`; without either, 16 output tokens are reserved. With `n` answers all
 * of it is reserved `n` times, and the answers share the words.
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
 * A request as it stands on the wire. `path` may have a query. These headers change what the simulator does with it:
 *
 * - `x-sim-output-tokens`: how long the answer is, cut at `max_tokens`
 * - `x-sim-service-ms`: how long it takes in all, its tokens evenly spread
 * - `x-sim-fault`: a `FaultKind` that happens to it
 * - `x-sim-request-id`: the same for all attempts at the same thing, see `ModelReport`
 *
 * @category models
 * @since 0.1.0
 */
export interface WireRequest {
  readonly method: string
  readonly path: string
  readonly headers: Readonly<Record<string, string>>
  readonly body: string
}

/**
 * A response as it stands on the wire: a whole body, or one that comes in pieces, such as the server-sent events of a
 * streamed answer. A stream may be run once; the request is completed when it ends. In the binary events of Bedrock each
 * character is a byte.
 *
 * @category models
 * @since 0.1.0
 */
export interface WireResponse {
  readonly status: number
  readonly headers: Readonly<Record<string, string>>
  readonly body: string | Stream.Stream<string, Disconnected>
}

/**
 * A steady consumer of the same limits: `rpm` requests a minute that share `tpm` input tokens a minute, each taken only
 * if it fits. With `Options.keys` it uses those of `key`, by default of the first.
 *
 * @category models
 * @since 0.1.0
 */
export interface ForeignLoad {
  readonly key?: string | undefined
  readonly rpm: number
  readonly tpm: number
  /** Output tokens per minute. Default 0. */
  readonly otpm?: number | undefined
}

/**
 * New limits: all multiplied, or those of a dimension (and a period in milliseconds, when given) replaced.
 *
 * @category models
 * @since 0.1.0
 */
export type LimitChange =
  | { readonly scale: number }
  | ReadonlyArray<{
    readonly dimension: Dimension
    readonly period?: number | undefined
    readonly limit: number
  }>

/**
 * One request as the ledger holds it. Times are milliseconds on the clock of the simulator, which starts at 0 when the
 * simulator is made and is exact to a nanosecond.
 *
 * - `key`: its API key, when there are `Options.keys`
 * - `levels`: what was left of each limit just before, in the order of `Level`
 * - `charge`: what the request asked for at `at`
 * - `net`: what it has been charged by now: `charge` as corrected since, and what was charged later; nothing for a
 *   refused request, unless refused requests count
 * - `corrections`: when the charge was corrected or added to, and what it was from then on
 * - `failedDimension`: for a request refused by a limit, the first dimension without room
 * - `reason`: for a refused request, the dimension, `tooLarge`, `slow_down` when traffic rose too fast, or the kind of
 *   the fault
 * - `retryAfter`: for a refused request, milliseconds after `at` until it would have fitted
 * - `requestId`, `attempt`: from `x-sim-request-id`, and which attempt of it this is
 * - `usage`: for a completed request
 * - `completedAt`, `abortedAt`: when an admitted request was served whole, or its client hung up
 *
 * @category models
 * @since 0.1.0
 */
export interface Arrival {
  readonly id: number
  readonly model: string
  readonly key: string | undefined
  readonly at: number
  readonly levels: ReadonlyArray<number>
  readonly charge: Charge
  readonly net: Charge
  readonly corrections: ReadonlyArray<{ readonly at: number; readonly net: Charge }>
  readonly admitted: boolean
  readonly failedDimension: Dimension | undefined
  readonly reason: string | undefined
  readonly retryAfter: number | undefined
  readonly requestId: string | undefined
  readonly attempt: number
  readonly usage:
    | { readonly inputTokens: number; readonly outputTokens: number; readonly cachedTokens: number }
    | undefined
  readonly completedAt: number | undefined
  readonly abortedAt: number | undefined
}

/**
 * One limit as it stands. Levels come in the order in which refusals look at limits.
 *
 * - `remaining`: what is left, free slots for `concurrent`; below 0 after a correction
 * - `reset`: milliseconds until the limit is whole again if nothing else arrives; 0 for `concurrent`
 *
 * @category models
 * @since 0.1.0
 */
export interface Level {
  readonly dimension: Dimension
  readonly limit: number
  readonly period: number | undefined
  readonly remaining: number
  readonly reset: number
}

/**
 * How one limit fared. `period` is in milliseconds.
 *
 * - `owner`: the key, project or organization it is of, when there are `Options.keys`
 * - `charged`, `net`: total charges of admitted requests, at admission and as corrected
 * - `refused`: how often it was the limit that a refusal named
 * - `worstWindow`: recomputed from the ledger: the largest sum of net charges in any window so far; for buckets, in any
 *   time at all less what that time refills; for `concurrent`, the most requests at one time
 * - `utilisation`: net charges dated in `(from, to]` divided by `limit * (to - from) / period`, with the limit as it was
 *   at each time; for `concurrent`, the share of slot time in use
 *
 * @category models
 * @since 0.1.0
 */
export interface LimitReport {
  readonly dimension: Dimension
  readonly owner: string | undefined
  readonly limit: number
  readonly period: number | undefined
  readonly algorithm: Algorithm | undefined
  readonly charged: number
  readonly net: number
  readonly refused: number
  readonly worstWindow: number
  readonly utilisation: number
}

/**
 * What happened to one model since the start: `arrivals` = `admitted` + `refused`, and `admitted` = `completed` +
 * `aborted` + `running`, where a request that is produced without its client still runs. `limits` come in the order in
 * which refusals look at them; one that several models or keys share counts what all of them did.
 *
 * - `refusedBy`: refusals by the dimension they named; `refusedFor`: by their reason, faults included
 * - `attemptsAfterFinal`: requests with an `x-sim-request-id` that had been told never to come back
 * - `attemptsTooEarly`: such requests that came before the time they had been told to wait for
 * - `goodput`: what was completed in `(from, to]`
 * - `foreign`: what the foreign load tried and got
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
  readonly refusedFor: Readonly<Record<string, number>>
  readonly completed: number
  readonly aborted: number
  readonly running: number
  readonly maxConcurrent: number
  readonly attemptsAfterFinal: number
  readonly attemptsTooEarly: number
  readonly goodput: { readonly requests: number; readonly inputTokens: number; readonly outputTokens: number }
  readonly foreign: { readonly sent: number; readonly admitted: number }
  readonly limits: ReadonlyArray<LimitReport>
}

/**
 * What happened so far. `from` and `to`, in milliseconds, bound utilisation and goodput only.
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
 * the order requests, tokens, input, output, concurrent, spend, and limits of a day last; when traffic rose too fast for
 * `Model.accel`, what that counts. Its `message` is the text that OpenAI sends.
 *
 * - `used`, `requested`: what the limit held, and what this request would have added
 * - `retryAfter`: milliseconds until the first instant at which all limits have room, if nothing else is admitted or
 *   refunded; waiting a nanosecond less is refused. Absent when only a free slot is missing, when traffic rose too
 *   fast, or when `tooLarge`.
 * - `tooLarge`: the request alone is over the limit and will never fit
 *
 * @category errors
 * @since 0.1.0
 */
export class Refused extends Schema.TaggedError<Refused>("effect-llm-queue/testing/Refused")("Refused", {
  message: Schema.String,
  model: Schema.String,
  dimension: Schema.Literals(["requests", "tokens", "input", "output", "concurrent", "spend"]),
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
 * The connection was lost, before the headers or in the middle of the body: the faults `reset` and `reset_mid_body`.
 *
 * @category errors
 * @since 0.1.0
 */
export class Disconnected
  extends Schema.TaggedError<Disconnected>("effect-llm-queue/testing/Disconnected")("Disconnected", {
    message: Schema.String
  })
{
  readonly isRetryable = true
}

/**
 * The simulated provider.
 *
 * - `complete`: sends a chat request and waits for the whole answer. Interrupting it is a client that hangs up: the
 *   slot becomes free, the charge stays.
 * - `start`: sends a chat request, given as the parsed JSON body, and returns as soon as it is admitted. It belongs to
 *   the scope: see `Generation`. Faults do not happen to either of them.
 * - `handle`: answers a request as it stands on the wire, see `layerHttp` for the paths. The effect ends when the
 *   headers are there: for a stream at the first byte, else with the whole answer. Interrupting it, or closing the
 *   scope before the body has ended, is a client that hangs up.
 * - `setLimits`, `setFaults`: change a model from now on. Levels and windows stay as they are.
 * - `restart`: the limits forget everything; the books do not
 * - `foreign`: from now on somebody else uses the limits of a model too; an `rpm` of 0 ends it
 * - `now`: milliseconds on the clock of the simulator
 * - `levels`: the limits of a model as they stand now, for a key, by default the first
 * - `arrivals`: a copy of the ledger, in order of arrival
 * - `report`: totals since the start, and utilisation and goodput over `(from, to]`, by default from the start (a request at 0
 *   included) to now
 *
 * @category services
 * @since 0.1.0
 */
export class ProviderSimulator extends Context.Service<ProviderSimulator, {
  readonly complete: (request: ChatRequest) => Effect.Effect<Completion, Refused | BadRequest>
  readonly start: (body: unknown) => Effect.Effect<Generation, Refused | BadRequest, Scope.Scope>
  readonly handle: (request: WireRequest) => Effect.Effect<WireResponse, Disconnected, Scope.Scope>
  readonly setLimits: (model: string, change: LimitChange) => Effect.Effect<void>
  readonly setFaults: (model: string, faults: ReadonlyArray<Fault>) => Effect.Effect<void>
  readonly restart: Effect.Effect<void>
  readonly foreign: (model: string, load: ForeignLoad) => Effect.Effect<void>
  readonly now: Effect.Effect<number>
  readonly levels: (model: string, key?: string) => Effect.Effect<ReadonlyArray<Level>>
  readonly arrivals: Effect.Effect<ReadonlyArray<Arrival>>
  readonly report: (options?: {
    readonly from?: number | undefined
    readonly to?: number | undefined
  }) => Effect.Effect<Report>
}>()("effect-llm-queue/testing/ProviderSimulator") {}

/**
 * The prompt tokens that the simulator assumes at admission: a quarter of the characters in all message texts, rounded
 * up, and 3 for each message. A stand-in for a tokenizer that is cheap, deterministic and easy to predict.
 *
 * @category accessors
 * @since 0.1.0
 */
export const promptTokens = (request: ChatRequest): number => server.estimate(openai.toPrompt(request))

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
    const epoch = yield* Clock.currentTimeMillis
    const now = Effect.map(Clock.monotonicTimeNanos, (nanos) => Number(nanos - origin) / 1e6)
    const provider = server.make(options, {
      epoch,
      now,
      disconnected: (message) => new Disconnected({ message })
    })
    const { books } = provider

    const start = Effect.fn("ProviderSimulator.start")(function*(body: unknown) {
      const request = yield* Effect.mapError(
        openai.decode(body),
        (error) => new BadRequest({ status: 400, code: null, message: `Invalid request body: ${error.message}` })
      )
      const { model } = request
      // The scope may close at any point from here on; aborting does nothing once the request has completed.
      const opened = yield* Effect.acquireRelease(
        Effect.map(now, (at) => provider.open(openai.toPrompt(request), {}, at)),
        (opened) => opened ? Effect.map(now, (at) => books.abort(opened.decision.id, at)) : Effect.void
      )
      if (opened === undefined) {
        return yield* new BadRequest({ status: 404, code: "model_not_found", message: server.noSuchModel(model) })
      }
      const { decision } = opened
      const headers = openai.rateLimitHeaders({
        quotas: decision.quotas,
        requestsHeader: provider.settings(model)?.requestsHeader
      })
      if (decision.refusal !== undefined) {
        const { dimension, isRamp, limit, requested, retryAfter, tooLarge, used } = decision.refusal
        return yield* new Refused({
          message: isRamp ? faults.usual.slow_down.message : openai.refusalMessage(model, decision.refusal),
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
      const words = provider.words(opened)
      const { firstByteAfter, perToken, usage } = opened.schedule
      const completion: Completion = {
        id: `chatcmpl-${decision.id}`,
        model,
        text: words.join(""),
        finishReason: opened.isCut ? "length" : "stop",
        usage: { inputTokens: usage.input, outputTokens: usage.output },
        headers
      }
      // Each token is due at an instant, not after the one before it: a late timer does not delay the rest.
      const produced = (tokens: number) =>
        Effect.flatMap(now, (at) => Effect.sleep(Math.max(0, decision.at + firstByteAfter + perToken * tokens - at)))
      const completed = Effect.map(now, (at) => books.complete(decision.id, usage.output, at))
      const generation: Generation = {
        request,
        completion,
        wait: Effect.andThen(produced(usage.output), completed),
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
      handle: provider.handle,
      setLimits: (model, change) => Effect.map(now, (at) => books.setLimits(model, change, at)),
      setFaults: (model, faults) => Effect.sync(() => provider.setFaults(model, faults)),
      restart: Effect.map(now, books.restart),
      foreign: (model, load) => Effect.map(now, (at) => books.foreign(model, load, at)),
      now,
      levels: (model, key) =>
        Effect.map(now, (at) =>
          books.levels(model, at, key).map(({ dimension, limit, period, remaining, reset }) => ({
            dimension,
            limit,
            period: period < Infinity ? period : undefined,
            remaining,
            reset
          }))),
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

/** The connection under a request, where the platform has one that can be cut. */
interface Connected {
  readonly socket: { readonly destroy: () => void }
}

const isConnected = (source: object): source is Connected =>
  "socket" in source && typeof source.socket === "object" && source.socket !== null && "destroy" in source.socket

/** Frames of AWS are bytes, one to a character. */
const encode = (body: Stream.Stream<string, Disconnected>, contentType: string | undefined) =>
  contentType === eventstream.contentType ? Stream.map(body, eventstream.bytesOf) : Stream.encodeText(body)

/**
 * Serves the simulator over HTTP. The server and its port are yours: `HttpRouter.serve(layerHttp)` with a platform's
 * `HttpServer`, bound to 127.0.0.1.
 *
 * - `POST /v1/chat/completions`, `/v1/responses`, `/v1/embeddings`: OpenAI; also without `/v1` and under `/openai/v1`,
 *   `/api/v1` and `/compatibility/v1`
 * - `POST /openai/deployments/{model}/chat/completions`, `…/embeddings`: Azure
 * - `POST /v1/messages`: Anthropic
 * - `POST /v1beta/models/{model}:generateContent`, `:streamGenerateContent`: Gemini
 * - `POST /model/{model}/converse`, `…/converse-stream`: Bedrock
 * - `GET /__sim/stats?from=&to=`: the report as JSON
 * - `POST /__sim/limits`, `{ model, scale }` or `{ model, limits }`: `setLimits`
 * - `POST /__sim/script`, `{ model, faults }`: `setFaults`
 * - `POST /__sim/reset`: `restart`
 *
 * A request arrives when its body has been read. A client that disconnects aborts its request. Any API key
 * will do unless there are `Options.keys`.
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

    const respond = Effect.gen(function*() {
      const request = yield* HttpServerRequest.HttpServerRequest
      const body = request.method === "GET" ? "" : yield* Effect.orElseSucceed(request.text, () => "")
      const response = yield* simulator.handle({
        method: request.method,
        path: request.url,
        headers: request.headers,
        body
      })
      const { "content-type": contentType, ...headers } = response.headers
      return typeof response.body === "string"
        ? HttpServerResponse.text(response.body, { status: response.status, contentType, headers })
        : HttpServerResponse.stream(encode(response.body, contentType), {
          status: response.status,
          contentType,
          headers
        })
    }).pipe(
      // The client sees its connection end without an answer, and that ends this fiber.
      Effect.catchTag("Disconnected", () =>
        HttpServerRequest.HttpServerRequest.use((request) => {
          if (isConnected(request.source)) request.source.socket.destroy()
          return Effect.never
        }))
    )

    yield* router.add("POST", "*", respond)
    yield* router.add("GET", "/__sim/stats", respond)
  })
)
