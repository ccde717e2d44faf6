import * as QueueError from "../QueueError.ts"
import type * as RateLimiter from "../RateLimiter.ts"
import type * as TokenEstimator from "../TokenEstimator.ts"
import { charge, countsTokens, moneyTolerance } from "./limitState.ts"
import * as settings from "./settings.ts"
import { measure } from "./tokenEstimator.ts"

/** Which of a request's tokens are not its caller's own figure. */
export interface Guessed {
  readonly input: boolean
  readonly output: boolean
}

const guesses = [false, true].map((input) => [false, true].map((output): Guessed => ({ input, output })))

const guess = (input: boolean, output: boolean): Guessed => guesses[Number(input)]![Number(output)]!

/** What a request is charged until its usage is known. */
export interface Estimated extends RateLimiter.Cost {
  readonly guessed: Guessed
  /** Learns from what it really used; `undefined` when nothing was estimated. */
  readonly observe: ((usage: RateLimiter.Tokens) => void) | undefined
}

/** What a request says about what it costs. */
interface Figures {
  readonly params?: unknown
  readonly labels?: Readonly<Record<string, string>> | undefined
  readonly estimatedInputTokens?: number | undefined
  readonly estimatedCachedInputTokens?: number | undefined
  readonly estimatedOutputTokens?: number | undefined
  readonly maxOutputTokens?: number | undefined
}

/** What a request is charged until its usage is known. What is wrong with its own figures is added to `problems`. */
const estimate = (
  config: settings.Settings,
  estimator: TokenEstimator.Estimator,
  request: Figures,
  problems: Array<string>
): Estimated => {
  const read = (name: string, value: unknown): number | undefined => {
    if (value === undefined) return undefined
    const parsed = settings.tokens(value)
    if (typeof parsed === "number") return parsed
    problems.push(`${name}: ${parsed}`)
    return 0
  }
  let inputTokens = read("estimatedInputTokens", request.estimatedInputTokens)
  let cachedInputTokens = read("estimatedCachedInputTokens", request.estimatedCachedInputTokens)
  let outputTokens = read("estimatedOutputTokens", request.estimatedOutputTokens)
  let maxOutputTokens = read("maxOutputTokens", request.maxOutputTokens)
  const guessed = guess(inputTokens === undefined, outputTokens === undefined && maxOutputTokens === undefined)
  let observe: Estimated["observe"]
  if (config.limits.some(countsTokens)) {
    if (config.estimate !== undefined && (inputTokens === undefined || outputTokens === undefined)) {
      try {
        const given = config.estimate(request.params)
        if (typeof given === "object" && given !== null) {
          const tokens: {
            inputTokens?: unknown
            cachedInputTokens?: unknown
            outputTokens?: unknown
            maxOutputTokens?: unknown
          } = given
          inputTokens ??= read("estimate(params).inputTokens", tokens.inputTokens)
          cachedInputTokens ??= read("estimate(params).cachedInputTokens", tokens.cachedInputTokens)
          outputTokens ??= read("estimate(params).outputTokens", tokens.outputTokens)
          maxOutputTokens ??= read("estimate(params).maxOutputTokens", tokens.maxOutputTokens)
        }
      } catch (error) {
        problems.push(`estimate(params): threw ${settings.show(error)}`)
      }
    }
    if (inputTokens === undefined || outputTokens === undefined) {
      const learned = estimator.estimate({ params: request.params, labels: request.labels, maxOutputTokens })
      observe = learned.observe
      // What was learned never makes a request too large that by its characters alone is not.
      inputTokens ??= clamp(learned.inputTokens, cachedInputTokens ?? 0, request.params, config.limits)
      if (outputTokens === undefined) {
        outputTokens = learned.outputTokens
        for (const limit of config.limits) {
          if (limit.charging.output === "maximum" && maxOutputTokens !== undefined) continue
          const left = limit.limit - charge(limit, { inputTokens, cachedInputTokens, outputTokens: 0 })
          const each = charge(limit, { inputTokens: 0, outputTokens: 1 })
          if (countsTokens(limit) && each > 0) {
            outputTokens = Math.min(outputTokens, Math.max(0, Math.floor(left / each)))
          }
        }
      }
    }
  }
  return {
    inputTokens: inputTokens ?? 0,
    // More than all of it would be taken from what others count.
    cachedInputTokens: cachedInputTokens === undefined ? undefined : Math.min(cachedInputTokens, inputTokens ?? 0),
    outputTokens: outputTokens ?? 0,
    maxOutputTokens,
    guessed,
    observe
  }
}

const clamp = (
  learned: number,
  cached: number,
  params: unknown,
  limits: ReadonlyArray<RateLimiter.Limit>
): number => {
  let most = Number.POSITIVE_INFINITY
  for (const limit of limits) {
    const each = countsTokens(limit) ? charge(limit, { inputTokens: 1, outputTokens: 0 }) : 0
    if (each === 0) continue
    const left = limit.limit - charge(limit, { inputTokens: cached, cachedInputTokens: cached, outputTokens: 0 })
    most = Math.min(most, cached + Math.floor(left / each))
  }
  return learned > most && measure(params).tokens <= most ? most : learned
}

/** What a request costs, unless something is wrong with it: `problems` of it, or what is larger than a limit. */
export const costOf = (
  config: settings.Settings,
  estimator: TokenEstimator.Estimator,
  request: Figures & { readonly id?: string | undefined; readonly tenant?: string | undefined },
  problems: Array<string>
): Estimated | QueueError.InvalidRequest | QueueError.RequestTooLarge => {
  const { modelId } = config
  const requestId = settings.nameOf(request.id ?? "")
  const cost = estimate(config, estimator, request, problems)
  if (problems.length > 0) return new QueueError.InvalidRequest({ modelId, requestId, problems })
  const { tenant } = request
  const large = config.tenantLimits === undefined
    ? tooLarge(config.limits, cost)
    : tooLarge(config.limits, cost, (limit) => config.mostOf(tenant, limit))
      ?? tooLarge(config.limitsOf(tenant), cost)
  if (large === undefined) return cost
  return new QueueError.RequestTooLarge({
    modelId,
    requestId,
    limitType: large.limit.type,
    limit: large.limit.limit,
    requested: large.requested,
    estimated: charge(large.limit, {
      inputTokens: cost.guessed.input ? cost.inputTokens : 0,
      outputTokens: cost.guessed.output ? cost.outputTokens : 0
    }) > 0
  })
}

/** The first limit that could never admit the request, of which it can have no more than `mostOf` says. */
const tooLarge = (
  limits: ReadonlyArray<RateLimiter.Limit>,
  cost: RateLimiter.Cost,
  mostOf?: (limit: RateLimiter.Limit) => number
): { readonly limit: RateLimiter.Limit; readonly requested: number } | undefined => {
  for (const limit of limits) {
    const requested = charge(limit, cost)
    const whole = mostOf?.(limit) ?? limit.limit
    // Rounding.
    const most = limit.type === "budget" || whole !== limit.limit ? whole * (1 + moneyTolerance) : whole
    if (requested > most) return { limit: whole === limit.limit ? limit : { ...limit, limit: whole }, requested }
  }
  return undefined
}

/** The largest part of a limit that a request takes: what it costs beside others. */
export const largestShare = (limits: ReadonlyArray<RateLimiter.Limit>, cost: RateLimiter.Cost): number => {
  let largest = limits.length === 0 ? 1 : 0
  for (const limit of limits) largest = Math.max(largest, charge(limit, cost) / limit.limit)
  return largest
}
