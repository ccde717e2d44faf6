/**
 * What the default token estimator measures and learns.
 */
import type * as RateLimiter from "../RateLimiter.ts"
import type * as TokenEstimator from "../TokenEstimator.ts"
import { RecentQuantile } from "./quantile.ts"
import { show } from "./settings.ts"

const charactersPerToken = 4
/** A file in base64 is not text to the provider: about one image, whatever its length. */
const fileTokens = 1000
/** Characters of one request that go through a counter; the others are taken to be like them. */
const countedCharacters = 65_536
const defaultOutputTokens = 1024
/** Far above what any model takes in and produces: what is reported beyond it is a fault. */
const largestInput = 10_000_000
const largestOutput = 1_000_000
const recent = 300
/** Observations until a label is estimated by its own, and until outputs are estimated by their quantile alone. */
const ownObservations = 10
const defaultKeys = 100

/** The size of a request's text. `tokens` may be a fraction. */
interface Measure {
  readonly characters: number
  readonly tokens: number
}

const isDataUrl = (text: string): boolean => text.startsWith("data:") && text.slice(0, 256).includes(";base64,")

/** Whether it is base64 and nothing else, with letters of both cases and digits. A short one counts no more as text. */
const isBase64 = (text: string): boolean =>
  text.length > fileTokens * charactersPerToken
  && !/[^\w+/=-]/.test(text) && /[a-z]/.test(text) && /[A-Z]/.test(text) && /\d/.test(text)

/**
 * All strings of a value; object keys and bytes not counted. What throws when it is read is not counted either. Safe on
 * cycles: an object counts once, wherever it appears.
 */
export const measure = (value: unknown, counter?: (text: string) => number): Measure => {
  let characters = 0
  let counted = 0
  let tokens = 0
  let files = 0
  const seen = new Set<object>()
  const open: Array<unknown> = [value]
  while (open.length > 0) {
    const next = open.pop()
    if (typeof next === "string") {
      if (isDataUrl(next) || isBase64(next)) {
        files++
        continue
      }
      characters += next.length
      if (counter === undefined || counted >= countedCharacters) continue
      counted += next.length
      tokens += count(counter, next)
    } else if (typeof next === "object" && next !== null && !seen.has(next)) {
      seen.add(next)
      try {
        if (ArrayBuffer.isView(next)) continue
        for (const inner of next instanceof Map ? next.values() : next instanceof Set ? next : Object.values(next)) {
          open.push(inner)
        }
      } catch {
        // A getter that throws says nothing about the size.
      }
    }
  }
  const rate = counted === 0 ? 1 / charactersPerToken : tokens / counted
  return {
    characters: characters + files * fileTokens * charactersPerToken,
    tokens: tokens + (characters - counted) * rate + files * fileTokens
  }
}

const count = (counter: (text: string) => number, text: string): number => {
  try {
    const tokens = counter(text)
    if (tokens >= 0 && tokens < Number.POSITIVE_INFINITY) return tokens
  } catch {
    // Somebody's code: its failure must not become the request's.
  }
  return text.length / charactersPerToken
}

/** Weight of a new observation, once there are enough: the last twenty make up two thirds. */
const weight = 0.05
/** No text that is sent has fewer tokens than half of what it measures, whatever noise makes of requests of one size. */
const leastMultiple = 0.5
/** Observations that a moving mean of that weight is worth. */
const memory = (2 - weight) / weight

/**
 * Actual tokens per estimated token, as a moving straight line over 1 / estimate: a fixed number of tokens for each
 * request, which is the slope, and a multiple of its estimate. A template or tools that the parameters do not show are
 * such a fixed number; without them the line is flat, and a plain moving mean.
 */
export class Ratio {
  /** The first one is the assumption that the estimate is right. */
  private observations = 0
  private meanInverse = 0
  private mean = 1
  private inverseVariance = 0
  private variance = 0
  private covariance = 0

  /** Actual tokens that come with every request, whatever its size. */
  get fixed(): number {
    if (
      this.inverseVariance <= 0 || this.variance <= 0 || this.covariance <= 0 || this.observations < ownObservations
    ) {
      return 0
    }
    const explained = Math.min(1, this.covariance ** 2 / (this.inverseVariance * this.variance))
    // Of a slope that noise alone would produce nothing is left, of a perfect one everything.
    const noise = (4 * (1 - explained)) / (explained * (Math.min(this.observations, memory) - 2))
    const slope = (this.covariance / this.inverseVariance) * Math.max(0, 1 - noise)
    return Math.min(slope, Math.max(0, this.mean - leastMultiple) / this.meanInverse)
  }

  /** Actual tokens per estimated token beside the fixed ones. */
  get multiple(): number {
    return this.mean - this.fixed * this.meanInverse
  }

  /** Standard deviation of the ratio around its line. */
  get deviation(): number {
    const fixed = this.fixed
    return Math.sqrt(Math.max(0, this.variance - 2 * fixed * this.covariance + fixed ** 2 * this.inverseVariance))
  }

  observe(estimate: number, actual: number): void {
    const inverse = 1 / estimate
    if (this.observations === 0) {
      this.observations = 1
      this.meanInverse = inverse
    }
    const expected = this.multiple + this.fixed * inverse
    const surprise = 4 * this.deviation + expected / 4
    const [least, most] = this.observations <= 5
      ? [expected / 8, expected * 8]
      : [Math.max(0, expected - surprise), expected + surprise]
    const share = Math.max(weight, 2 / (this.observations + 2))
    const inverseDelta = inverse - this.meanInverse
    const delta = Math.min(Math.max(actual / estimate, least), most) - this.mean
    this.observations++
    this.meanInverse += share * inverseDelta
    this.mean += share * delta
    this.inverseVariance = (1 - share) * (this.inverseVariance + share * inverseDelta ** 2)
    this.variance = (1 - share) * (this.variance + share * delta ** 2)
    this.covariance = (1 - share) * (this.covariance + share * inverseDelta * delta)
  }
}

class State {
  readonly ratio = new Ratio()
  readonly outputs = new RecentQuantile(recent)
  observations = 0
  cachedShare = 0

  observe(estimate: number, usage: RateLimiter.Tokens): void {
    this.observations++
    if (usage.inputTokens > 0) {
      this.ratio.observe(estimate, usage.inputTokens)
      const cached = usage.cachedInputTokens ?? 0
      const share = cached > 0 ? Math.min(1, cached / usage.inputTokens) : 0
      this.cachedShare += Math.max(weight, 1 / this.observations) * (share - this.cachedShare)
    }
    this.outputs.add(usage.outputTokens)
  }

  outputTokens(quantile: number): number {
    if (this.outputs.size >= ownObservations) return this.outputs.quantile(quantile)
    return Math.max(defaultOutputTokens, this.outputs.largest)
  }
}

const isCount = (value: unknown): value is number =>
  typeof value === "number" && value >= 0 && value < Number.POSITIVE_INFINITY

/** One string for labels that are the same, in whatever order; the empty one for none. */
const labelKey = (labels: Readonly<Record<string, string>> | undefined): string => {
  if (labels === undefined) return ""
  try {
    const entries = Object.entries(labels)
    return entries.length === 0 ? "" : JSON.stringify(entries.toSorted(([a], [b]) => a < b ? -1 : 1))
  } catch {
    return ""
  }
}

const within = (value: number | undefined, least: number, most: number, otherwise: number): number =>
  value !== undefined && value >= least && value <= most ? value : otherwise

export const learned = (options: TokenEstimator.Options): TokenEstimator.Estimator => {
  const quantile = within(options.quantile, 0.01, 1, 0.9)
  const deviations = within(options.deviations, 0, 10, 1)
  const keys = Math.floor(within(options.keys, 1, Number.MAX_SAFE_INTEGER, defaultKeys))
  const counter = typeof options.counter === "function" ? options.counter : undefined
  const all = new State()
  /** The least recently used first. */
  const labelled = new Map<string, State>()

  const find = (key: string): State | undefined => {
    const found = labelled.get(key)
    if (found === undefined) return undefined
    labelled.delete(key)
    labelled.set(key, found)
    return found
  }

  const observe = (key: string, estimate: number, usage: RateLimiter.Tokens): void => {
    if (!isCount(usage.inputTokens) || !isCount(usage.outputTokens)) return
    // A report of nothing at all is no report.
    if (usage.inputTokens === 0 && usage.outputTokens === 0) return
    if (usage.inputTokens > largestInput || usage.outputTokens > largestOutput) return
    all.observe(estimate, usage)
    if (key === "") return
    let own = find(key)
    if (own === undefined) {
      if (labelled.size >= keys) labelled.delete(labelled.keys().next().value!)
      own = new State()
      labelled.set(key, own)
    }
    own.observe(estimate, usage)
  }

  return {
    estimate: (request) => {
      const key = labelKey(request.labels)
      const measured = measure(request.params, counter)
      const tokens = Math.max(1, measured.tokens)
      const own = key === "" ? undefined : find(key)
      const state = own !== undefined && own.observations >= ownObservations ? own : all
      const { deviation, fixed, multiple } = state.ratio
      const corrected = tokens * (multiple + deviations * deviation) + fixed
      const floor = options.atLeastCharacters === true ? measured.characters / charactersPerToken : 1
      const max = isCount(request.maxOutputTokens) ? Math.floor(request.maxOutputTokens) : Number.POSITIVE_INFINITY
      let open = true
      return {
        inputTokens: Math.min(Math.ceil(Math.max(1, floor, corrected)), Number.MAX_SAFE_INTEGER),
        outputTokens: Math.min(Math.ceil(state.outputTokens(quantile)), max),
        observe: (usage) => {
          if (!open) return
          open = false
          observe(key, tokens, usage)
        }
      }
    },
    stats: () =>
      [["", all] as const, ...labelled].map(([key, state]) => ({
        labels: key === "" ? {} : Object.fromEntries(JSON.parse(key) as ReadonlyArray<readonly [string, string]>),
        observations: state.observations,
        ratio: state.ratio.multiple,
        fixedTokens: state.ratio.fixed,
        deviation: state.ratio.deviation,
        outputTokens: state.outputTokens(quantile),
        cachedShare: state.cachedShare
      }))
  }
}

/**
 * An estimator that may be anybody's, made safe: what it throws or gets wrong is reported, and the estimate is that of
 * the fallback. Both hear of the usage.
 */
export const guard = (
  estimator: TokenEstimator.Estimator,
  fallback: TokenEstimator.Estimator,
  report: (problem: string) => void
): TokenEstimator.Estimator => ({
  estimate: (request) => {
    const other = fallback.estimate(request)
    try {
      const own = estimator.estimate(request)
      if (isCount(own.inputTokens) && isCount(own.outputTokens)) {
        return {
          inputTokens: Math.ceil(own.inputTokens),
          outputTokens: Math.ceil(own.outputTokens),
          observe: (usage) => {
            other.observe(usage)
            try {
              own.observe(usage)
            } catch (error) {
              report(`observe: threw ${show(error)}`)
            }
          }
        }
      }
      report(`estimate: gave ${show(own.inputTokens)} input and ${show(own.outputTokens)} output tokens`)
    } catch (error) {
      report(`estimate: threw ${show(error)}`)
    }
    return other
  },
  stats: () => {
    try {
      return estimator.stats()
    } catch (error) {
      report(`stats: threw ${show(error)}`)
      return []
    }
  }
})

/** Useful tokens as a share of the limit; see `TokenEstimator.throughput`. */
export const throughput = (options: {
  readonly charged: number
  readonly used: number
  readonly refund: boolean
  readonly bucket: boolean
  /** Milliseconds, both. */
  readonly duration: number
  readonly period: number
}): number => {
  const { bucket, charged, duration, period, refund, used } = options
  if (!(charged > used)) return 1
  if (!(used > 0)) return 0
  const kept = used / charged
  if (kept === 0) return 0
  if (!refund || !(period > 0 && period < Number.POSITIVE_INFINITY)) return kept
  if (bucket) return Math.min(1, kept * (1 + period / Math.max(duration, 0)))
  const held = Math.min(Math.max(duration, 0) / period, 1)
  return 1 / (1 + held * (charged / used - 1))
}

interface Completion {
  /** In the units of the limit, all that was reserved, and the output's part in it. */
  readonly charged: number
  readonly chargedOutput: number
  /** In the same units, once its usage is known. */
  readonly used: number
  readonly usedOutput: number
  /** Milliseconds from reservation to correction. */
  readonly duration: number
}

/** What reservations have cost a limit, over its last 300 completions. */
export class ReservationMeter {
  private readonly completions: Array<Completion> = []
  private next = 0

  private charged = 0
  private used = 0

  /** What is used of what is reserved, on the average; 1 when nothing is known. */
  get usedPart(): number {
    return this.charged === 0 ? 1 : Math.max(0, this.used / this.charged)
  }

  add(completion: Completion): void {
    const { charged, chargedOutput, duration, used, usedOutput } = completion
    if (!(isCount(charged) && isCount(chargedOutput) && isCount(used) && isCount(usedOutput) && isCount(duration))) {
      return
    }
    const previous = this.completions[this.next]
    this.charged += charged - (previous?.charged ?? 0)
    this.used += used - (previous?.used ?? 0)
    this.completions[this.next] = completion
    this.next = (this.next + 1) % recent
  }

  /** `undefined` before the first completion. */
  cost(limit: {
    readonly refund: boolean
    readonly bucket: boolean
    /** Milliseconds. */
    readonly period: number
  }): TokenEstimator.ReservationCost | undefined {
    const completions = this.completions.length
    if (completions === 0) return undefined
    const mean = (of: (completion: Completion) => number): number =>
      this.completions.reduce((sum, completion) => sum + of(completion), 0) / completions
    const outputs = new RecentQuantile(recent)
    for (const { usedOutput } of this.completions) outputs.add(usedOutput)
    const used = mean((completion) => completion.used)
    const duration = mean((completion) => completion.duration)
    const share = (charged: number) => throughput({ ...limit, charged, used, duration })
    const charged = mean((completion) => completion.charged)
    return {
      completions,
      charged,
      used,
      throughput: share(charged),
      outputP90: outputs.quantile(0.9),
      outputLargest: outputs.largest,
      throughputAtLargest: share(
        mean(({ charged, chargedOutput }) => charged - Math.max(0, chargedOutput - outputs.largest))
      )
    }
  }
}
