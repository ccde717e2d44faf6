/**
 * Metrics of the queues, in Effect's own registry: whatever exports that exports them.
 *
 * They cost a request a few additions. What is a state, such as the depth of a queue, is read when it is exported. The
 * series of a model are removed with its registration.
 *
 * @since 0.1.0
 */
import type * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import { type Attempt, CurrentObserver, type Observer, type QueueObserver } from "./internal/observer.ts"
import type * as QueueManager from "./QueueManager.ts"
import type * as RateLimiter from "./RateLimiter.ts"

/**
 * What labels there are beside the model.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /**
   * Whether series of requests have a label `priority`: `high`, `normal` or `low`, as the head start is above zero, zero or
   * below. Default `false`.
   */
  readonly priorities?: boolean | undefined
  /**
   * For how many tenants of a model series of requests have a label `tenant` of their own, the first that come; the others
   * share `other`, and requests without one have an empty one. Default 0: no such label.
   */
  readonly tenants?: number | undefined
}

/**
 * The names of all metrics, with what they are. Every one has a label `model`.
 *
 * @category constants
 * @since 0.1.0
 */
export const names = {
  llm_queue_depth: "Requests that wait and were accepted",
  llm_queue_suspended: "Requests that wait for room in the queue",
  llm_queue_running: "Requests whose processors run",
  llm_queue_requests_total: "Requests that have ended, by outcome: completed, failed or cancelled",
  llm_queue_retries_total: "Attempts after the first one",
  llm_queue_refusals_total: "Refusals and faults of the provider, by kind",
  llm_queue_wait_seconds: "Time from submission, or from the attempt before, to an attempt",
  llm_queue_processing_seconds: "Time of the last attempt, by outcome",
  llm_queue_first_element_seconds: "Time from the beginning of an attempt to the first element of its stream",
  llm_queue_blocked_seconds_total:
    "Time that the first request in order was kept back, by reason: a type of limit, provider, paused or unavailable",
  llm_queue_reserved_tokens_total: "Tokens that were estimated, by direction: input or output",
  llm_queue_used_tokens_total:
    "Tokens that were reported as used, by direction: input, cached (of the input) or output",
  llm_queue_estimate_ratio: "Tokens that were used for one that was estimated, by direction",
  llm_queue_limit: "What a limit allows, by type and period (seconds)",
  llm_queue_limit_enforced: "What it allows for now: less while the provider asks for less",
  llm_queue_limit_used: "What of it is used or reserved",
  llm_queue_limit_paused_seconds: "For how long the provider has asked to wait",
  llm_queue_provider_available:
    "Whether requests are sent: 0 while the circuit breaker or an exhausted quota keeps them back"
} as const

type Name = keyof typeof names
type Labels = Readonly<Record<string, string>>

const waits = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600]
const times = [0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300]
const ratios = [0.1, 0.25, 0.5, 0.75, 0.9, 1, 1.1, 1.25, 1.5, 2, 4]

const statuses = ["completed", "failed", "cancelled"] as const
const directions = ["input", "output"] as const

/** As Effect's own histograms count: how many values were at most so large. */
class Distribution {
  private readonly boundaries: ReadonlyArray<number>
  private readonly counts: Array<number>
  private count = 0
  private sum = 0
  private min = Number.POSITIVE_INFINITY
  private max = Number.NEGATIVE_INFINITY

  constructor(boundaries: ReadonlyArray<number>) {
    this.boundaries = boundaries
    this.counts = boundaries.map(() => 0)
  }

  add(value: number): void {
    this.count++
    this.sum += value
    this.min = Math.min(this.min, value)
    this.max = Math.max(this.max, value)
    // Most values are in one of the first.
    for (let i = 0; i < this.boundaries.length; i++) {
      if (value > this.boundaries[i]!) continue
      this.counts[i]!++
      return
    }
  }

  get state(): Metric.HistogramState {
    let sum = 0
    const { count, max, min } = this
    return {
      buckets: this.boundaries.map((boundary, index) => [boundary, sum += this.counts[index]!]),
      count,
      min,
      max,
      sum: this.sum
    }
  }
}

const nothing = () => {}

/** Series in the registry, which are read when they are exported. */
class Series {
  private readonly registrations: Array<Metric.Registration> = []
  private readonly context: Context.Context<never>
  private readonly labels: Labels

  constructor(context: Context.Context<never>, labels: Labels) {
    this.context = context
    this.labels = labels
  }

  private register<State>(metric: Metric.Metric<never, State>, get: () => State): void {
    this.registrations.push(Metric.registerUnsafe(metric, this.context, { get, update: nothing, modify: nothing }))
  }

  gauge(name: Name, read: () => number, labels?: Labels): void {
    const attributes = { ...this.labels, ...labels }
    this.register(Metric.gauge(name, { description: names[name], attributes }), () => ({ value: read() }))
  }

  counter(name: Name, read: () => number, labels?: Labels): void {
    const attributes = { ...this.labels, ...labels }
    this.register(
      Metric.counter(name, { description: names[name], attributes, incremental: true }),
      () => ({ count: read(), incremental: true })
    )
  }

  histogram(name: Name, boundaries: ReadonlyArray<number>, labels?: Labels): Distribution {
    const distribution = new Distribution(boundaries)
    const attributes = { ...this.labels, ...labels }
    this.register(
      Metric.histogram(name, { description: names[name], attributes, boundaries }),
      () => distribution.state
    )
    return distribution
  }

  remove(): void {
    for (const registration of this.registrations.splice(0)) registration.remove()
  }
}

/** What is counted of the requests of a queue, or of those with the same labels. */
class Requests {
  readonly series: Series
  readonly wait: Distribution
  readonly first: Distribution
  readonly processing: Readonly<Record<(typeof statuses)[number], Distribution>>
  readonly ratio: Readonly<Record<(typeof directions)[number], Distribution>>
  readonly ended = { completed: 0, failed: 0, cancelled: 0 }
  readonly reserved = { input: 0, output: 0 }
  readonly used = { input: 0, cached: 0, output: 0 }
  retries = 0

  constructor(series: Series) {
    this.series = series
    this.wait = series.histogram("llm_queue_wait_seconds", waits)
    this.first = series.histogram("llm_queue_first_element_seconds", times)
    const processing = (outcome: string) => series.histogram("llm_queue_processing_seconds", times, { outcome })
    this.processing = {
      completed: processing("completed"),
      failed: processing("failed"),
      cancelled: processing("cancelled")
    }
    const ratio = (direction: string) => series.histogram("llm_queue_estimate_ratio", ratios, { direction })
    this.ratio = { input: ratio("input"), output: ratio("output") }
    for (const outcome of statuses) {
      series.counter("llm_queue_requests_total", () => this.ended[outcome], { outcome })
    }
    series.counter("llm_queue_retries_total", () => this.retries)
    for (const direction of directions) {
      series.counter("llm_queue_reserved_tokens_total", () => this.reserved[direction], { direction })
    }
    for (const direction of ["input", "cached", "output"] as const) {
      series.counter("llm_queue_used_tokens_total", () => this.used[direction], { direction })
    }
  }
}

const priorityOf = ({ headStart }: Attempt): string => headStart > 0 ? "high" : headStart < 0 ? "low" : "normal"

const kinds = ["rate", "ramp", "overload", "transient", "quota", "tooLarge", "auth"] as const

/** One reading of a queue's state for all series that are exported together. */
const cached = (info: Effect.Effect<QueueManager.QueueInfo>) => {
  let last: QueueManager.QueueInfo | undefined
  let isFresh = false
  return {
    get: (): QueueManager.QueueInfo | undefined => {
      if (isFresh) return last
      // A limiter that takes time has no state at once: then what it had is told.
      const exit = Effect.runSyncExit(info)
      if (Exit.isSuccess(exit)) last = exit.value
      isFresh = true
      globalThis.queueMicrotask(() => isFresh = false)
      return last
    },
    changed: () => {
      isFresh = false
    }
  }
}

const observe = (
  context: Context.Context<never>,
  { priorities = false, tenants = 0 }: Options,
  model: string,
  info: Effect.Effect<QueueManager.QueueInfo>
): QueueObserver => {
  const state = cached(info)
  const own = new Series(context, { model })
  const limits = new Series(context, { model })
  const byLabels = new Map<string, Requests>()
  const known = new Set<string>()
  const isLabelled = priorities || tenants > 0
  let isClosed = false

  const make = (labels: Labels): Requests => {
    const series = new Series(context, { model, ...labels })
    const requests = new Requests(series)
    // What ends after its queue is seen by nobody.
    if (isClosed) series.remove()
    return requests
  }
  const all = isLabelled ? undefined : make({})

  const of = (request: Attempt): Requests => {
    if (all !== undefined) return all
    let tenant = request.tenant ?? ""
    if (tenants > 0 && tenant !== "" && !known.has(tenant)) {
      if (known.size < tenants) known.add(tenant)
      else tenant = "other"
    }
    const priority = priorityOf(request)
    const key = `${priorities ? priority : ""} ${tenants > 0 ? tenant : ""}`
    let found = byLabels.get(key)
    if (found === undefined) {
      found = make({ ...(priorities ? { priority } : {}), ...(tenants > 0 ? { tenant } : {}) })
      byLabels.set(key, found)
    }
    return found
  }

  own.gauge("llm_queue_depth", () => state.get()?.depth ?? 0)
  own.gauge("llm_queue_suspended", () => state.get()?.suspended ?? 0)
  own.gauge("llm_queue_running", () => state.get()?.running ?? 0)
  if (state.get()?.provider !== undefined) {
    own.gauge("llm_queue_provider_available", () => state.get()?.provider?.state === "available" ? 1 : 0)
    for (const kind of kinds) {
      own.counter("llm_queue_refusals_total", () => state.get()?.provider?.refusals[kind] ?? 0, { kind })
    }
  }
  const blocked = new Map<string, number>()

  const limited = () => {
    limits.remove()
    state.changed()
    if (isClosed) return
    const now = state.get()?.rateLimiters ?? []
    for (const [index, { timePeriod, type }] of now.entries()) {
      const labels = {
        type,
        period: timePeriod === undefined ? "" : String(Duration.toSeconds(timePeriod))
      }
      const usage = (read: (usage: RateLimiter.Usage) => number) => () => {
        const usage = state.get()?.rateLimiters[index]
        return usage === undefined ? 0 : read(usage)
      }
      limits.gauge("llm_queue_limit", usage(({ limit }) => limit), labels)
      limits.gauge("llm_queue_limit_enforced", usage(({ enforced }) => enforced), labels)
      limits.gauge("llm_queue_limit_used", usage(({ used }) => used), labels)
      limits.gauge(
        "llm_queue_limit_paused_seconds",
        usage(({ pausedFor }) => pausedFor === undefined ? 0 : Duration.toSeconds(pausedFor)),
        labels
      )
    }
  }
  limited()

  return {
    dispatched: (request, waited) => {
      state.changed()
      const requests = of(request)
      requests.wait.add(waited / 1000)
      requests.reserved.input += request.cost.inputTokens
      requests.reserved.output += request.cost.outputTokens
    },
    firstElement: (request, after) => of(request).first.add(after / 1000),
    settled: (request, usage) => {
      const { ratio, used } = of(request)
      used.input += usage.inputTokens
      used.cached += usage.cachedInputTokens ?? 0
      used.output += usage.outputTokens
      const { inputTokens, outputTokens } = request.cost
      if (inputTokens > 0) ratio.input.add(usage.inputTokens / inputTokens)
      if (outputTokens > 0) ratio.output.add(usage.outputTokens / outputTokens)
    },
    ended: (request, status, processed) => {
      state.changed()
      const requests = of(request)
      requests.ended[status]++
      if (processed !== undefined) requests.processing[status].add(processed / 1000)
    },
    retried: (request) => of(request).retries++,
    blocked: (reason, millis) => {
      if (isClosed) return
      if (!blocked.has(reason)) {
        own.counter("llm_queue_blocked_seconds_total", () => blocked.get(reason)!, { reason })
      }
      blocked.set(reason, (blocked.get(reason) ?? 0) + millis / 1000)
    },
    limitsChanged: limited,
    closed: () => {
      isClosed = true
      own.remove()
      limits.remove()
      all?.series.remove()
      for (const { series } of byLabels.values()) series.remove()
      byLabels.clear()
    }
  }
}

/**
 * Makes the managers that it is provided to keep metrics. They are in the registry of the context that the layer is built
 * in, with the attributes of that context (`Metric.CurrentMetricAttributes`) beside their own labels.
 *
 * **Example** (Metrics of all queues, served to Prometheus)
 *
 * ```ts
 * import { Layer } from "effect"
 * import { QueueManager } from "effect-llm-queue"
 * import * as Metrics from "effect-llm-queue/Metrics"
 * import { PrometheusMetrics } from "effect/observability"
 *
 * const ManagerLive = QueueManager.layer.pipe(Layer.provide(Metrics.layer({ priorities: true })))
 *
 * // A route of any HTTP server: GET /metrics
 * const Route = PrometheusMetrics.layerHttp()
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: Options = {}): Layer.Layer<never> =>
  Layer.effect(
    CurrentObserver,
    Effect.contextWith((context: Context.Context<never>) =>
      Effect.succeed<Observer>({ open: ({ info, modelId }) => observe(context, options, modelId, info) })
    )
  )
