/**
 * Random schedules: a model's limits, and what its submitters, processors and reporters do. A schedule is a pure
 * function of its seed.
 */
import type { ModelConfig, RateLimiter } from "effect-llm-queue"

export interface Random {
  /** From 0, less than 1. */
  readonly next: () => number
  /** A whole number, both ends included. */
  readonly between: (min: number, max: number) => number
  readonly chance: (probability: number) => boolean
  readonly pick: <A>(items: ReadonlyArray<A>) => A
}

/** Mulberry32. */
export const random = (seed: number): Random => {
  let state = seed | 0
  const next = () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
  return {
    next,
    between: (min, max) => min + Math.floor(next() * (max - min + 1)),
    chance: (probability) => next() < probability,
    pick: (items) => items[Math.floor(next() * items.length)]!
  }
}

/** All times in milliseconds. */
export interface LimitPlan {
  readonly type: RateLimiter.Type
  readonly limit: number
  readonly timePeriod: number
  readonly margin: number
  readonly chargedAt: RateLimiter.ChargedAt
}

/** An instant that is known only once something has happened. `expiry` is the next at which a charge leaves a window. */
export interface Moment {
  readonly from: "previous" | "arrival" | "dispatch" | "end" | "expiry"
  readonly delay: number
}

export interface RequestPlan {
  readonly id: string
  readonly arrival: Moment
  readonly tokens: RateLimiter.Tokens
  readonly wait: boolean
  readonly priority: number
  readonly timeout: number | undefined
  readonly processingTimeout: number | undefined
  readonly duration: number
  readonly ending: "succeed" | "fail" | "die" | "interrupt" | "throw"
  readonly uninterruptible: boolean
  readonly usage: ModelConfig.Usage | undefined
  readonly reports: ReadonlyArray<Moment & { readonly usage: ModelConfig.Usage }>
  readonly cancellations: ReadonlyArray<Moment>
  readonly interruption: Moment | undefined
}

export interface Schedule {
  readonly seed: number
  readonly limits: ReadonlyArray<LimitPlan>
  readonly capacity: number
  /** Whether the model reads the usage of its results. */
  readonly usage: boolean
  readonly requests: ReadonlyArray<RequestPlan>
  /** Other limits, so long after a request's arrival. */
  readonly updates: ReadonlyArray<
    { readonly request: number; readonly delay: number; readonly limits: ReadonlyArray<LimitPlan> }
  >
}

const types: ReadonlyArray<RateLimiter.Type> = ["rpm", "rpd", "tpm", "tpd", "itpm", "otpm", "concurrent"]
const periods = [100, 250.5, 1000, 7000, 60_000, 3_600_000, 86_400_000]
const ample = 60

export const make = (seed: number): Schedule => {
  const { between, chance, next, pick } = random(seed)
  const unit = chance(0.7) ? 1 : 0.25
  /** A duration of at most about `max`, on the grid of the schedule, often one of the small ones. */
  const span = (max: number): number => {
    const draw = next()
    if (draw < 0.2) return 0
    if (draw < 0.4) return unit * between(1, 3)
    return Math.max(unit, Math.round(next() * max / unit) * unit)
  }

  const base = pick(periods)
  const chargedAt = chance(0.4) ? pick(["dispatch", "completion", "production"] as const) : undefined
  const draw = (type: RateLimiter.Type): LimitPlan => {
    const timePeriod = type === "concurrent"
      ? 0
      : chance(0.5)
      ? base
      : chance(0.7)
      ? base * between(2, 6)
      : pick(periods)
    const counts = type === "rpm" || type === "rpd"
      ? between(1, 6)
      : type === "concurrent"
      ? between(1, 4)
      : between(1, 80)
    return {
      type,
      limit: counts,
      timePeriod,
      margin: type === "concurrent" || chance(0.6) ? 0 : span(base / 2),
      chargedAt: type === "concurrent"
        ? "dispatch"
        : chargedAt ?? pick(["dispatch", "dispatch", "completion", "production"] as const)
    }
  }
  const distinct = (limits: ReadonlyArray<LimitPlan>): ReadonlyArray<LimitPlan> =>
    limits.filter(({ timePeriod, type }, index) =>
      index === limits.findIndex((other) => other.type === type && other.timePeriod === timePeriod)
    )
  const count = between(1, 4)
  let limits: ReadonlyArray<LimitPlan> = []
  while (limits.length < count) limits = distinct([...limits, draw(pick(types))])

  const most = (kinds: ReadonlyArray<RateLimiter.Type>) =>
    limits.reduce((least, { limit, type }) => kinds.includes(type) ? Math.min(least, limit) : least, ample)
  const mostInput = most(["itpm"])
  const mostOutput = most(["otpm"])
  const mostTotal = most(["tpm", "tpd"])
  const tokens = (): RateLimiter.Tokens => {
    if (chance(0.03)) return { inputTokens: between(0, 2 * ample), outputTokens: between(0, 2 * ample) }
    const size = pick([0, 0.2, 0.2, 0.5, 0.5, 1])
    const amount = (max: number) => chance(0.2) ? Math.floor(max * size) : between(0, Math.floor(max * size))
    const inputTokens = amount(Math.min(mostInput, mostTotal))
    return { inputTokens, outputTokens: amount(Math.min(mostOutput, mostTotal - inputTokens)) }
  }
  const usage = (of: RateLimiter.Tokens): ModelConfig.Usage => {
    const draw = next()
    if (draw < 0.2) return { inputTokens: 0, outputTokens: 0 }
    if (draw < 0.4) return of
    if (draw < 0.7) return { inputTokens: between(0, of.inputTokens), outputTokens: between(0, of.outputTokens) }
    return { inputTokens: between(0, 2 * of.inputTokens + 3), outputTokens: between(0, 2 * of.outputTokens + 9) }
  }

  const prioritized = chance(0.25)
  const capacity = !prioritized && chance(0.15) ? between(1, 4) : 10_000
  const calm = chance(0.3)
  const requests: Array<RequestPlan> = []
  const size = between(5, chance(0.2) ? 40 : 20)
  for (let i = 0; i < size; i++) {
    const estimated = tokens()
    const edge = () => pick([-unit, 0, 0, unit])
    requests.push({
      id: `r${i}`,
      arrival: chance(0.3)
        ? { from: "expiry", delay: edge() }
        : { from: "previous", delay: chance(0.5) ? 0 : span(base / 2) },
      tokens: estimated,
      wait: capacity < 10_000 || chance(0.7),
      priority: prioritized ? between(-2, 2) * base / 2000 : 0,
      timeout: !calm && chance(0.15) ? unit + span(2 * base) : undefined,
      processingTimeout: !calm && chance(0.15) ? unit + span(base) : undefined,
      duration: span(pick([base / 4, base / 4, 2 * base])),
      ending: calm || chance(0.7) ? "succeed" : pick(["fail", "die", "interrupt", "throw"] as const),
      uninterruptible: chance(0.15),
      usage: chance(0.9) ? usage(estimated) : undefined,
      reports: Array.from({ length: chance(0.4) ? between(1, 3) : 0 }, () => {
        const from = pick(["arrival", "dispatch", "dispatch", "end", "expiry"] as const)
        return { from, delay: from === "expiry" ? edge() : span(base / 2), usage: usage(estimated) }
      }),
      cancellations: Array.from({ length: !calm && chance(0.15) ? between(1, 2) : 0 }, () => ({
        from: pick(["arrival", "arrival", "dispatch", "end"] as const),
        delay: span(base)
      })),
      interruption: !calm && chance(0.1)
        ? { from: pick(["arrival", "dispatch"] as const), delay: span(base) }
        : undefined
    })
  }
  const updates: Array<Schedule["updates"][number]> = []
  let current = limits
  for (let i = chance(0.5) ? between(1, 5) : 0; i > 0; i--) {
    const changed = current.flatMap((limit): ReadonlyArray<LimitPlan> => {
      if (chance(0.1)) return []
      if (chance(0.2)) return [limit]
      const other = draw(limit.type)
      if (chance(0.5)) return [{ ...limit, limit: other.limit }]
      return [{ ...other, chargedAt: chance(0.8) ? limit.chargedAt : other.chargedAt }]
    })
    current = distinct([...changed, ...(chance(0.4) || changed.length === 0 ? [draw(pick(types))] : [])])
    if (chance(0.2)) current = current.toReversed()
    updates.push({ request: between(0, size - 1), delay: span(base), limits: current })
  }
  return { seed, limits, capacity, usage: chance(0.6), requests, updates }
}
