/**
 * How many tokens a request will use, before it is sent; and what reserving too many costs.
 *
 * An estimator learns from every usage that comes back. `learned` is the default of every model.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as internal from "./internal/tokenEstimator.ts"
import type * as RateLimiter from "./RateLimiter.ts"

/**
 * What is known of a request before it is sent.
 *
 * @category models
 * @since 0.1.0
 */
export interface Request {
  readonly params: unknown
  /** Requests with equal labels are taken to be alike. Default: none. */
  readonly labels?: Readonly<Record<string, string>> | undefined
  /** The most output tokens it may produce. Default: unknown. */
  readonly maxOutputTokens?: number | undefined
}

/**
 * An estimate in whole tokens, and where its truth is to be reported.
 *
 * @category models
 * @since 0.1.0
 */
export interface Estimate {
  readonly inputTokens: number
  readonly outputTokens: number
  /**
   * Learns what a completed request really used: its input tokens with those from the cache among them. Once; what is
   * reported again has no effect. Requests that were cut short teach the wrong output: leave them out.
   */
  readonly observe: (usage: RateLimiter.Tokens) => void
}

/**
 * What has been learned of the requests with the same labels.
 *
 * @category models
 * @since 0.1.0
 */
export interface Stats {
  /** Empty for the model as a whole, which is the first of the list. */
  readonly labels: Readonly<Record<string, string>>
  /** Usages learned from. */
  readonly observations: number
  /** Actual input tokens per measured token, beside the fixed ones. 1 before the first observation. */
  readonly ratio: number
  /** Input tokens that come with every request, whatever its size. */
  readonly fixedTokens: number
  /** Standard deviation of actual input tokens per measured token. */
  readonly deviation: number
  /** Output tokens that a request without `maxOutputTokens` is estimated at. */
  readonly outputTokens: number
  /** Share of the input tokens that the provider read from its cache, 0 to 1. */
  readonly cachedShare: number
}

/**
 * The estimator of one model. Its functions are synchronous, return soon and do not throw.
 *
 * @category models
 * @since 0.1.0
 */
export interface Estimator {
  readonly estimate: (request: Request) => Estimate
  readonly stats: () => ReadonlyArray<Stats>
}

/**
 * Makes the estimator of a model when the model is registered.
 *
 * @category models
 * @since 0.1.0
 */
export interface TokenEstimator {
  readonly make: (modelId: string) => Estimator
}

/**
 * Options of `learned`. A number out of its range is taken as its default.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /**
   * Tokens in a text, such as an exact tokenizer says. Default: a quarter of its characters. What it says is corrected
   * like any other measure, since a provider adds tokens of its own. It sees about 65,536 characters of a request; the
   * rest is taken to be like them. A text for which it throws is measured by the default.
   */
  readonly counter?: ((text: string) => number) | undefined
  /** Standard deviations added to the input that is expected, 0 to 10. Default 1. */
  readonly deviations?: number | undefined
  /** Share of the completions that the estimate of their output is to cover, 0.01 to 1. Default 0.9. */
  readonly quantile?: number | undefined
  /** Most sets of labels kept apart for a model; the one not used for longest goes first. At least 1. Default 100. */
  readonly keys?: number | undefined
  /**
   * Never estimates input below a quarter of the characters, for providers that charge that on arrival (OpenAI, Azure).
   * Default `false`.
   */
  readonly atLeastCharacters?: boolean | undefined
}

/**
 * The default estimator: it measures the text of a request, and corrects the measure by what the provider reported.
 *
 * **Details**
 *
 * A request is measured as a quarter of the characters of all strings in its parameters, however deep, or by a
 * `counter`. Object keys and bytes count nothing, and no request counts less than 1. An object that appears twice counts
 * once. A file counts 1,000 tokens: a base64 data URL, or a string of more than 4,000 characters that is base64 and
 * nothing else.
 *
 * - Input: `measure × (ratio + deviations × deviation) + fixedTokens`, rounded up, at least 1. `ratio` and `deviation`
 *   are the moving mean and standard deviation of actual over measured tokens; the newest observation weighs a
 *   twentieth, and more among the first. `fixedTokens` is what every request brings unseen, such as a system prompt that
 *   the processor adds; it is 0 until requests of different sizes show it. Before the first observation the ratio is 1,
 *   without deviation.
 * - Output: the 0.9 quantile of the last 300 completions. Until there are ten, it is 1,024 or the largest of them,
 *   whichever is more. Never above the request's `maxOutputTokens`.
 *
 * Both are learned for each model and set of labels. Labels that have fewer than ten observations are estimated by all
 * of their model's requests. So give labels to tasks that differ, and leave identities out of them.
 *
 * From the sixth on, an observation that differs from what is expected by more than a quarter and four deviations
 * counts as that far off; before, one that differs by more than a factor of 8. So one wrong report moves little, and a
 * lasting change is followed within some twenty requests. A usage of zero input tokens teaches nothing about input. One
 * of zero tokens, of more than 10,000,000 input or 1,000,000 output tokens, or with a number that is negative or not
 * finite teaches nothing at all.
 *
 * **Gotchas**
 *
 * Until it has learned, a quarter of the characters is about 10 % low for English prose at 3.6 characters per token,
 * 20 % for tables and markup, and two to four times too low for Chinese, Japanese and Korean (1 to 2 characters per
 * token) and for base64 among other text and identifiers (1.5 to 2). Code lies on either side, by its indentation. One deviation covers
 * about five requests of six, not all. An output cut off by `maxOutputTokens` is learned as it is: keep requests with
 * different maxima apart by labels.
 *
 * **Example** (An exact tokenizer)
 *
 * ```ts
 * import { TokenEstimator } from "effect-llm-queue"
 * import * as o200kBase from "effect-llm-queue/tokenizers/o200kBase"
 *
 * const estimator = TokenEstimator.learned({ counter: o200kBase.countTokens })
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const learned = (options: Options = {}): TokenEstimator => ({ make: () => internal.learned(options) })

/**
 * What a limit on tokens has been charged for reservations, over at most 300 completions, the newest.
 *
 * @category models
 * @since 0.1.0
 */
export interface ReservationCost {
  readonly completions: number
  /** Mean charge of a request when it was let through. */
  readonly charged: number
  /** Mean charge of what it then really used. */
  readonly used: number
  /**
   * The share of the limit that goes to real tokens with such reservations when the queue always has work, 0 to 1. 0.16
   * says that `max_tokens` costs 84 % of the limit.
   */
  readonly throughput: number
  /** Output that nine of ten completions stayed within, as the limit counts it. */
  readonly outputP90: number
  /** Output of the longest completion, as the limit counts it. */
  readonly outputLargest: number
  /** What `throughput` would be if no request had reserved more output than `outputLargest`. */
  readonly throughputAtLargest: number
}

/**
 * The share of a limit on tokens, 0 to 1, that goes to real tokens when every request reserves more than it uses. The
 * rest is held for tokens that are never produced.
 *
 * **Details**
 *
 * | what the provider does | share |
 * | --- | --- |
 * | gives back what was not used, `slidingWindow` | `used / (used + (charged − used) × min(1, duration / period))` |
 * | gives back what was not used, `tokenBucket` | `min(1, used / charged × (1 + period / duration))` |
 * | gives back what was not used, `paced` | about `used / charged` |
 * | gives nothing back | `used / charged` |
 *
 * All are means, for a queue that always has work. A bucket is taken to have had what is given back as early as it can,
 * when it may not have had room for it.
 *
 * **Example** (`max_tokens: 16_384` for answers of 300 tokens)
 *
 * ```ts
 * import { TokenEstimator } from "effect-llm-queue"
 *
 * TokenEstimator.throughput({ charged: 500 + 16_384, used: 500 + 300, duration: "10 seconds" }) // 0.23
 * TokenEstimator.throughput({ charged: 500 + 16_384, used: 500 + 300, duration: "10 seconds", refund: false }) // 0.05
 * ```
 *
 * @category accessors
 * @since 0.1.0
 */
export const throughput = (options: {
  /** Tokens that the limit is charged when a request is let through. */
  readonly charged: number
  /** Tokens that it really uses, counted in the same way. */
  readonly used: number
  /** From the reservation to its correction. */
  readonly duration: Duration.Input
  /** Of the limit. Default 1 minute. */
  readonly period?: Duration.Input | undefined
  /** Whether the provider gives back what was reserved and not used. Default `true`. */
  readonly refund?: boolean | undefined
  /** Default `slidingWindow`, which `fixedWindow` is like. For `paced` give `refund: false`. */
  readonly algorithm?: RateLimiter.Algorithm | undefined
}): number =>
  internal.throughput({
    charged: options.charged,
    used: options.used,
    refund: options.refund ?? true,
    bucket: options.algorithm === "tokenBucket",
    duration: Duration.toMillis(options.duration),
    period: Duration.toMillis(options.period ?? "1 minute")
  })
