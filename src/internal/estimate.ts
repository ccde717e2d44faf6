import type * as RateLimiter from "../RateLimiter.ts"
import { charge, countsTokens } from "./memoryLimiter.ts"
import * as settings from "./settings.ts"

const charactersPerToken = 4
const defaultOutputTokens = 1024

/** Characters in all strings of a value; object keys and bytes not counted. Safe on cycles. */
const countCharacters = (value: unknown): number => {
  let count = 0
  const seen = new Set<object>()
  const open: Array<unknown> = [value]
  while (open.length > 0) {
    const next = open.pop()
    if (typeof next === "string") {
      count += next.length
    } else if (typeof next === "object" && next !== null && !ArrayBuffer.isView(next) && !seen.has(next)) {
      seen.add(next)
      for (const inner of next instanceof Map ? next.values() : next instanceof Set ? next : Object.values(next)) {
        open.push(inner)
      }
    }
  }
  return count
}

/** Which of a request's tokens are not its caller's own figure. */
export interface Guessed {
  readonly input: boolean
  readonly output: boolean
}

/** What a request is charged until its usage is known, or what is wrong with its estimates. */
export const estimate = (
  config: settings.Settings,
  request: {
    readonly params: unknown
    readonly estimatedInputTokens?: number | undefined
    readonly estimatedOutputTokens?: number | undefined
  },
  problems: Array<string>
): RateLimiter.Tokens & { readonly guessed: Guessed } => {
  const read = (name: string, value: unknown): number | undefined => {
    if (value === undefined) return undefined
    const parsed = settings.tokens(value)
    if (typeof parsed === "number") return parsed
    problems.push(`${name}: ${parsed}`)
    return 0
  }
  let inputTokens = read("estimatedInputTokens", request.estimatedInputTokens)
  let outputTokens = read("estimatedOutputTokens", request.estimatedOutputTokens)
  const guessed = { input: inputTokens === undefined, output: outputTokens === undefined }
  if ((inputTokens === undefined || outputTokens === undefined) && config.limits.some(countsTokens)) {
    if (config.estimate !== undefined) {
      try {
        const given = config.estimate(request.params)
        if (typeof given === "object" && given !== null) {
          const tokens: { inputTokens?: unknown; outputTokens?: unknown } = given
          inputTokens ??= read("estimate(params).inputTokens", tokens.inputTokens)
          outputTokens ??= read("estimate(params).outputTokens", tokens.outputTokens)
        }
      } catch (error) {
        problems.push(`estimate(params): threw ${settings.show(error)}`)
      }
    }
    try {
      inputTokens ??= Math.max(1, Math.ceil(countCharacters(request.params) / charactersPerToken))
    } catch (error) {
      problems.push(`params: could not be read to estimate their tokens: ${settings.show(error)}`)
    }
    if (outputTokens === undefined) {
      outputTokens = defaultOutputTokens
      for (const limit of config.limits) {
        // The guess never makes a request too large that its input does not.
        const room = limit.limit - charge(limit.type, { inputTokens: inputTokens ?? 0, outputTokens: 0 })
        if (countsTokens(limit) && limit.type !== "itpm") outputTokens = Math.min(outputTokens, Math.max(0, room))
      }
    }
  }
  return { inputTokens: inputTokens ?? 0, outputTokens: outputTokens ?? 0, guessed }
}

/** The first limit that could never admit the request. */
export const tooLarge = (
  limits: ReadonlyArray<RateLimiter.Limit>,
  tokens: RateLimiter.Tokens
): { readonly limit: RateLimiter.Limit; readonly requested: number } | undefined => {
  for (const limit of limits) {
    const requested = charge(limit.type, tokens)
    if (requested > limit.limit) return { limit, requested }
  }
  return undefined
}
