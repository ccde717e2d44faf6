/**
 * The provider as a pure model: limits in front of a ledger of everything that arrived. No clock inside, every
 * operation takes `now` in milliseconds. What is due between two operations, such as output that is charged while it is
 * produced, is booked at its own instant before the later one.
 */
import type {
  Arrival,
  Charge,
  Dimension,
  ForeignLoad,
  LimitChange,
  LimitReport,
  ModelReport,
  Report
} from "../ProviderSimulator.ts"
import * as charging from "./charging.ts"
import * as timers from "./heap.ts"
import type { Gauge, History, Limit, Owner } from "./limits.ts"
import * as limits from "./limits.ts"
import * as ramp from "./ramp.ts"

/** The level of one limit just after a request was decided. */
export interface Quota extends Limit {
  /** May be negative. */
  readonly remaining: number
  /** Milliseconds until the limit is whole again, if nothing else arrives. */
  readonly reset: number
}

export interface Refusal extends Limit {
  readonly used: number
  readonly requested: number
  readonly retryAfter: number | undefined
  readonly tooLarge: boolean
  /** Traffic rose too fast; the limit is the rate that was allowed. */
  readonly isRamp: boolean
}

export interface Decision {
  readonly id: number
  readonly at: number
  readonly quotas: ReadonlyArray<Quota>
  readonly refusal: Refusal | undefined
}

/** When and what an admitted request will produce. Times are milliseconds. */
export interface Schedule {
  readonly firstByteAfter: number
  readonly perToken: number
  readonly usage: charging.Usage
}

export interface ModelOptions {
  readonly limits: ReadonlyArray<Limit>
  readonly rules?: charging.Rules | undefined
  readonly accel?: ramp.Accel | undefined
}

/** Who owns what is limited by key, by project and by organization. */
export type Tenant = Readonly<Record<NonNullable<Limit["scope"]>, string>>

/** What is asked of a model. Without a `key`, by the first there is. */
export interface Ask extends charging.Ask {
  readonly requestId?: string | undefined
  readonly key?: string | undefined
}

type Entry = { -readonly [K in keyof Arrival]: Arrival[K] }

interface Window {
  readonly spec: Limit
  readonly dimension: Dimension
  readonly owner: string
  limit: number
  readonly history: History
  readonly gauges: ReadonlyArray<Gauge>
  /** The limit since each instant. */
  readonly changes: Array<{ readonly at: number; readonly limit: number }>
  refused: number
  charged: number
}

/** What one key meets when it asks for one model. */
interface Account {
  readonly windows: ReadonlyArray<Window>
  readonly ramp: ramp.Ramp | undefined
}

interface Model {
  readonly id: string
  readonly rules: charging.Rules
  readonly accounts: ReadonlyMap<string, Account>
  /** Each limit once, however many keys share it. */
  readonly windows: ReadonlySet<Window>
  foreign: { readonly load: ForeignLoad; sent: number; admitted: number; version: number }
  running: number
  maxConcurrent: number
  afterFinal: number
  tooEarly: number
}

interface Running {
  readonly entry: Entry
  readonly model: Model
  readonly account: Account
  readonly maxOutput: number
  readonly input: number
  /** The place of the admission charge in the history of each limit; -1 where nothing was charged. */
  readonly marks: ReadonlyArray<number>
  /** Whether it draws from limits of the priority pool. */
  readonly isPriority: boolean
  schedule: Schedule | undefined
  /** What the admission charge is by now. */
  settled: Charge
  producedSoFar: number
}

/** What is known of the attempts that name the same logical request. */
interface Attempts {
  count: number
  isFinal: boolean
  notBefore: number
}

const order: ReadonlyArray<Dimension> = ["requests", "tokens", "input", "output", "concurrent", "spend"]
const { isDay, nanos } = limits
const { nothing } = charging

const isTimed = ({ dimension }: Pick<Limit, "dimension">): boolean => dimension !== "concurrent"

/** The order in which a refusal looks for the limit to name: days come last. */
const byOrder = (a: Limit, b: Limit): number =>
  Number(isDay(a)) - Number(isDay(b)) || order.indexOf(a.dimension) - order.indexOf(b.dimension)

const add = (a: Charge, b: Charge, sign = 1): Charge => ({
  requests: a.requests + sign * b.requests,
  tokens: a.tokens + sign * b.tokens,
  input: a.input + sign * b.input,
  output: a.output + sign * b.output,
  concurrent: a.concurrent + sign * b.concurrent,
  spend: a.spend + sign * b.spend
})

export const defaultRules: charging.Rules = {
  charge: "reserve",
  refund: true,
  outputWeight: 1,
  cacheReadCounts: true,
  price: { input: 0, output: 0 }
}

const toWindow = (spec: Limit, owner: string, epoch: number): Window => {
  const history = limits.makeHistory()
  return {
    spec,
    dimension: spec.dimension,
    owner,
    limit: spec.limit,
    history,
    gauges: limits.gauges(spec, history, epoch),
    changes: [{ at: 0, limit: spec.limit }],
    refused: 0,
    charged: 0
  }
}

const uncorrected: Arrival["corrections"] = []
const nobody: Readonly<Record<string, Tenant>> = { "": { key: "", project: "", org: "" } }

/** Output that is charged while it is produced comes in at most so many pieces. */
const maxPieces = 16

export const make = (options: {
  readonly models: Readonly<Record<string, ModelOptions>>
  /** Unix time of instant 0, in milliseconds; fixed windows are aligned to it. */
  readonly epoch?: number | undefined
  readonly tenants?: Readonly<Record<string, Tenant>> | undefined
}) => {
  const { epoch = 0, tenants = nobody } = options
  const entries: Array<Entry> = []
  const running = new Map<number, Running>()
  const attempts = new Map<string, Attempts>()
  const timer = timers.make()
  let clock = 0

  const shared = new Map<string, Window>()
  const windowOf = (modelId: string, tenant: Tenant) => (spec: Limit, index: number): Window => {
    const { algorithm, dimension, group, period, scope = "org" } = spec
    const owner = tenant[scope]
    const place = group === undefined ? [modelId, index] : [group, dimension, period, algorithm]
    const name = JSON.stringify([scope, owner, ...place])
    const window = shared.get(name) ?? toWindow(spec, owner, epoch)
    shared.set(name, window)
    return window
  }

  const toModel = (id: string, { accel, limits, rules }: ModelOptions): Model => {
    const ramps = new Map<string, ramp.Ramp>()
    const accounts = new Map(
      Object.entries(tenants).map(([key, tenant]) => {
        if (accel !== undefined && !ramps.has(tenant.org)) ramps.set(tenant.org, ramp.make(accel))
        return [key, { windows: limits.toSorted(byOrder).map(windowOf(id, tenant)), ramp: ramps.get(tenant.org) }]
      })
    )
    return {
      id,
      rules: rules ?? defaultRules,
      accounts,
      windows: new Set(Array.from(accounts.values()).flatMap(({ windows }) => windows)),
      foreign: { load: { rpm: 0, tpm: 0 }, sent: 0, admitted: 0, version: 0 },
      running: 0,
      maxConcurrent: 0,
      afterFinal: 0,
      tooEarly: 0
    }
  }

  const models = new Map(Object.entries(options.models).map(([id, model]) => [id, toModel(id, model)]))

  const [firstKey = ""] = Object.keys(tenants)
  const accountOf = (model: Model, key = firstKey): Account =>
    model.accounts.get(key) ?? { windows: [], ramp: undefined }

  const advance = (now: number): number => {
    const target = Math.max(clock, nanos(now))
    for (let due = timer.takeDue(target); due !== undefined; due = timer.takeDue(target)) {
      clock = Math.max(clock, due.at)
      due.run()
    }
    clock = target
    return clock
  }

  const sync = (window: Window) => {
    for (const gauge of window.gauges) gauge.sync(clock)
  }

  const charge = (window: Window, amount: number, owner: Owner): number => {
    sync(window)
    const index = window.history.append(clock, amount, owner)
    for (const gauge of window.gauges) gauge.added(amount)
    return index
  }

  const rewrite = (window: Window, index: number, amount: number): void => {
    if (index < 0) return
    sync(window)
    const delta = window.history.rewrite(index, amount)
    if (delta !== 0) { for (const gauge of window.gauges) gauge.rewritten(index, delta) }
  }

  const level = (window: Window): number => Math.min(...window.gauges.map((gauge) => gauge.remaining(clock)))
  const capacity = (window: Window): number => Math.min(...window.gauges.map((gauge) => gauge.capacity()))
  const fits = (window: Window, need: number): boolean => window.gauges.every((gauge) => gauge.fits(need, clock))
  const fitsAt = (window: Window, need: number): number =>
    Math.max(...window.gauges.map((gauge) => gauge.fitsAt(need, clock)))

  const quota = (window: Window): Quota => {
    sync(window)
    const wholeAt = Math.max(...window.gauges.map((gauge) => gauge.wholeAt(clock)))
    return {
      ...window.spec,
      limit: window.limit,
      remaining: level(window),
      reset: Math.max(0, wholeAt - clock) / 1e6
    }
  }

  const quotasOf = ({ windows }: Account): ReadonlyArray<Quota> => windows.filter(isTimed).map(quota)

  const refusedCharge = (window: Window, asked: Charge): number => {
    switch (window.spec.countRefused ?? "none") {
      case "none":
        return 0
      case "requests":
        return window.dimension === "requests" ? asked.requests : 0
      case "all":
        return isTimed(window) ? asked[window.dimension] : 0
    }
  }

  const chargeRefused = ({ windows }: Account, entry: Entry): void => {
    for (const window of windows) {
      const amount = refusedCharge(window, entry.charge)
      if (amount === 0) continue
      charge(window, amount, "refused")
      entry.net = { ...entry.net, [window.dimension]: amount }
    }
  }

  const arrive = (model: Model, { key, requestId, ...ask }: Ask, levels: ReadonlyArray<number>): Entry => {
    const before = requestId === undefined ? undefined : attempts.get(requestId)
    if (before?.isFinal === true) model.afterFinal++
    else if (before !== undefined && clock < before.notBefore) model.tooEarly++
    const attempt = (before?.count ?? 0) + 1
    if (requestId !== undefined) {
      attempts.set(requestId, { count: attempt, isFinal: before?.isFinal ?? false, notBefore: 0 })
    }
    const entry: Entry = {
      id: entries.length + 1,
      model: model.id,
      key: options.tenants === undefined ? undefined : key ?? firstKey,
      at: clock / 1e6,
      levels,
      charge: charging.admission(model.rules, ask),
      net: nothing,
      corrections: uncorrected,
      admitted: true,
      failedDimension: undefined,
      reason: undefined,
      retryAfter: undefined,
      requestId,
      attempt,
      usage: undefined,
      completedAt: undefined,
      abortedAt: undefined
    }
    entries.push(entry)
    return entry
  }

  const isPriority = ({ spec }: Window): boolean => spec.pool === "priority"

  /** All limits as they stand, those of concurrency too. */
  const levels = (modelId: string, now: number, key?: string): ReadonlyArray<Quota> => {
    const model = models.get(modelId)
    advance(now)
    return model === undefined ? [] : accountOf(model, key).windows.map(quota)
  }

  /** Decides over all limits at once and charges all of them or none. `undefined` for a model that does not exist. */
  const admit = (modelId: string, ask: Ask, now: number): Decision | undefined => {
    const model = models.get(modelId)
    if (model === undefined) return undefined
    const at = advance(now)
    const account = accountOf(model, ask.key)
    const { windows } = account
    for (const window of windows) sync(window)
    const entry = arrive(model, ask, windows.map(level))
    const asked = entry.charge
    const need = (window: Window) => charging.needs(model.rules, asked, window.dimension)
    const hasRoom = (window: Window): boolean => {
      const amount = need(window)
      return amount === undefined || fits(window, amount)
    }
    const tooLarge = windows.find((window) => {
      const most = capacity(window)
      return !isPriority(window) && !((need(window) ?? 0) <= most + Math.abs(most) * 1e-9)
    })
    const failed = tooLarge ?? windows.find((window) => !isPriority(window) && !hasRoom(window))
    const decide = (refusal: Refusal | undefined): Decision => ({
      id: entry.id,
      at: entry.at,
      quotas: quotasOf(account),
      refusal
    })

    if (failed !== undefined) {
      const used = failed.limit - level(failed)
      entry.admitted = false
      entry.failedDimension = failed.dimension
      entry.reason = tooLarge === undefined ? failed.dimension : "tooLarge"
      failed.refused++
      chargeRefused(account, entry)
      if (tooLarge === undefined) {
        // After the refused request was charged: where it counts, it delays its own retry.
        let latest = at
        for (const window of windows) {
          const amount = need(window)
          if (amount !== undefined && isTimed(window) && !isPriority(window)) {
            latest = Math.max(latest, fitsAt(window, amount))
          }
        }
        entry.retryAfter = latest > at && latest < Infinity ? (latest - at) / 1e6 : undefined
      } else if (ask.requestId !== undefined) finish(ask.requestId)
      return decide({
        ...failed.spec,
        limit: failed.limit,
        used,
        requested: need(failed) ?? 0,
        retryAfter: entry.retryAfter,
        tooLarge: tooLarge !== undefined,
        isRamp: false
      })
    }

    if (account.ramp !== undefined) {
      const { dimension } = account.ramp
      const { limit, rate } = account.ramp.state(at)
      if (limits.isOver(rate + asked[dimension], limit)) {
        entry.admitted = false
        entry.reason = "slow_down"
        chargeRefused(account, entry)
        return decide({
          dimension,
          limit,
          period: 60_000,
          used: rate,
          requested: asked[dimension],
          retryAfter: undefined,
          tooLarge: false,
          isRamp: true
        })
      }
      account.ramp.added(asked[dimension], at)
    }

    const hasPriority = windows.every((window) => !isPriority(window) || hasRoom(window))
    entry.net = asked
    const marks = windows.map((window) => {
      const amount = asked[window.dimension]
      if (amount === 0 || (isPriority(window) && !hasPriority)) return -1
      window.charged += amount
      return charge(window, amount, "admitted")
    })
    running.set(entry.id, {
      entry,
      model,
      account,
      maxOutput: ask.maxOutput,
      input: ask.input,
      marks,
      isPriority: hasPriority,
      schedule: undefined,
      settled: asked,
      producedSoFar: 0
    })
    model.running++
    model.maxConcurrent = Math.max(model.maxConcurrent, model.running)
    return decide(undefined)
  }

  /** A request that was turned away before any limit was looked at. */
  const refuse = (modelId: string, ask: Ask, reason: string, now: number): Decision | undefined => {
    const model = models.get(modelId)
    if (model === undefined) return undefined
    advance(now)
    const account = accountOf(model, ask.key)
    for (const window of account.windows) sync(window)
    const entry = arrive(model, ask, account.windows.map(level))
    entry.admitted = false
    entry.reason = reason
    chargeRefused(account, entry)
    return { id: entry.id, at: entry.at, quotas: quotasOf(account), refusal: undefined }
  }

  const finish = (requestId: string): void => {
    const attempt = attempts.get(requestId)
    if (attempt !== undefined) attempt.isFinal = true
  }

  /** What the client was told: never again, or not before so many milliseconds from now. */
  const told = (requestId: string, advice: { readonly isFinal: boolean; readonly retryAfter: number | undefined }) => {
    const attempt = attempts.get(requestId)
    if (attempt === undefined) return
    attempt.isFinal ||= advice.isFinal
    attempt.notBefore = clock + nanos(advice.retryAfter ?? 0)
  }

  const apply = (request: Running, change: (window: Window, mark: number) => void): void => {
    request.account.windows.forEach((window, index) => {
      if (!isPriority(window) || request.isPriority) change(window, request.marks[index] ?? -1)
    })
  }

  const correct = (entry: Entry, net: Charge): void => {
    entry.net = net
    const { corrections } = entry
    const correction = { at: clock / 1e6, net }
    entry.corrections = corrections.at(-1)?.at === correction.at
      ? corrections.with(corrections.length - 1, correction)
      : [...corrections, correction]
  }

  const chargeLate = (request: Running, extra: Charge): void => {
    if (extra === nothing) return
    apply(request, (window) => {
      if (extra[window.dimension] > 0) charge(window, extra[window.dimension], "admitted")
    })
    correct(request.entry, add(request.entry.net, extra))
  }

  const produceUpTo = (request: Running, output: number): void => {
    if (output <= request.producedSoFar) return
    chargeLate(request, charging.produced(request.model.rules, output - request.producedSoFar))
    request.producedSoFar = output
  }

  /** Rewrites the charge where it stands: a refund keeps the date of the charge and expires with it. */
  const settle = (request: Running, usage: charging.Usage): void => {
    const { entry, model } = request
    const after = charging.settled(model.rules, entry.charge, usage)
    if (after === entry.charge) return
    apply(request, (window, mark) => rewrite(window, mark, after[window.dimension]))
    // What has been charged since the admission stays.
    correct(entry, add(entry.net, add(after, request.settled, -1)))
    request.settled = after
  }

  /** Tells what an admitted request is going to produce. Only models that charge while producing need it. */
  const begin = (id: number, schedule: Schedule): void => {
    const request = running.get(id)
    if (request === undefined) return
    request.schedule = schedule
    if (!charging.isLive(request.model.rules)) return
    const { firstByteAfter, perToken, usage } = schedule
    const from = clock + nanos(firstByteAfter)
    timer.set(from, () => {
      if (running.has(id)) settle(request, usage)
    })
    const pieces = Math.min(maxPieces, usage.output)
    for (let piece = 1; piece <= pieces; piece++) {
      const output = Math.round(usage.output * piece / pieces)
      timer.set(from + nanos(perToken * output), () => {
        if (running.has(id)) produceUpTo(request, output)
      })
    }
  }

  const end = ({ account, entry, marks, model }: Running): void => {
    running.delete(entry.id)
    account.windows.forEach((window, index) => {
      if (!isTimed(window) && (marks[index] ?? -1) >= 0) charge(window, -1, "admitted")
    })
    entry.net = { ...entry.net, concurrent: 0 }
    model.running--
  }

  /** Nothing when it has already ended, or when the client has hung up. */
  const complete = (id: number, output: number, now: number): void => {
    advance(now)
    const request = running.get(id)
    if (request === undefined || request.entry.abortedAt !== undefined) return
    const { entry, model } = request
    const usage = {
      input: request.schedule?.usage.input ?? request.input,
      cached: request.schedule?.usage.cached ?? 0,
      output: Math.min(output, request.maxOutput)
    }
    settle(request, usage)
    produceUpTo(request, usage.output)
    chargeLate(request, charging.late(model.rules, usage))
    entry.usage = { inputTokens: usage.input, outputTokens: usage.output, cachedTokens: usage.cached }
    entry.completedAt = clock / 1e6
    if (entry.requestId !== undefined) attempts.delete(entry.requestId)
    end(request)
  }

  /** Ends a request whose client has hung up. What was produced until now is charged. */
  const giveUp = (request: Running): void => {
    end(request)
    const { entry, model: { rules }, schedule } = request
    if (schedule === undefined) return
    const { firstByteAfter, perToken } = schedule
    const since = clock / 1e6 - entry.at - firstByteAfter
    const most = schedule.usage.output
    const output = since < 0 ? 0 : perToken > 0 ? Math.min(most, Math.floor(since / perToken + 1e-6)) : most
    const usage = { ...schedule.usage, output }
    if (rules.abortCharge === "produced") settle(request, usage)
    produceUpTo(request, output)
    chargeLate(request, charging.late(rules, usage))
  }

  /** The client hangs up. Nothing when the request has already ended. */
  const abort = (id: number, now: number): void => {
    advance(now)
    const request = running.get(id)
    if (request === undefined || request.entry.abortedAt !== undefined) return
    const { entry, model: { rules }, schedule } = request
    entry.abortedAt = clock / 1e6
    const until = rules.onAbort === "continue" && schedule !== undefined
      ? nanos(entry.at + schedule.firstByteAfter + schedule.perToken * schedule.usage.output)
      : clock
    if (until > clock) timer.set(until, () => giveUp(request))
    else giveUp(request)
  }

  const setLimits = (modelId: string, change: LimitChange, now: number): void => {
    const model = models.get(modelId)
    if (model === undefined) return
    advance(now)
    for (const window of model.windows) {
      const found = "scale" in change
        ? window.limit * change.scale
        : change.find((other) =>
          other.dimension === window.dimension
          && (other.period === undefined || other.period === window.spec.period)
        )?.limit
      if (found === undefined) continue
      sync(window)
      window.limit = found
      window.changes.push({ at: clock, limit: found })
      window.gauges.forEach((gauge, index) =>
        gauge.setLimit(index === 0 ? found : limits.quantumLimit(window.spec, found))
      )
    }
  }

  /** Every limit is whole again and what runs is no longer corrected; the books are kept. */
  const restart = (now: number): void => {
    advance(now)
    for (const window of shared.values()) {
      sync(window)
      for (const gauge of window.gauges) gauge.restart()
    }
    for (const { accounts } of models.values()) {
      for (const account of accounts.values()) account.ramp?.restart()
    }
  }

  const foreign = (modelId: string, load: ForeignLoad, now: number): void => {
    const model = models.get(modelId)
    if (model === undefined) return
    advance(now)
    const version = model.foreign.version + 1
    model.foreign = { ...model.foreign, load, version }
    if (!(load.rpm > 0)) return
    const { windows } = accountOf(model, load.key)
    const tokens = load.tpm / load.rpm
    const taken: Charge = { ...nothing, requests: 1, input: tokens, tokens, output: (load.otpm ?? 0) / load.rpm }
    const origin = clock
    const next = (count: number): void =>
      timer.set(origin + nanos(count * 60_000 / load.rpm), () => {
        if (model.foreign.version !== version) return
        model.foreign.sent++
        for (const window of windows) sync(window)
        const isAdmitted = windows.every((window) =>
          taken[window.dimension] === 0 || fits(window, taken[window.dimension])
        )
        if (isAdmitted) {
          model.foreign.admitted++
          for (const window of windows) {
            if (taken[window.dimension] > 0) charge(window, taken[window.dimension], "foreign")
          }
        }
        next(count + 1)
      })
    next(1)
  }

  const limitReport = (window: Window, from: number, to: number): LimitReport => ({
    dimension: window.dimension,
    owner: options.tenants === undefined ? undefined : window.owner,
    limit: window.limit,
    period: isTimed(window) ? window.spec.period : undefined,
    algorithm: isTimed(window) ? window.spec.algorithm ?? "sliding" : undefined,
    charged: window.charged,
    net: sumOf(window, -Infinity, Infinity),
    refused: window.refused,
    worstWindow: worstWindow(window, epoch),
    utilisation: utilisation(window, from, to)
  })

  const report = (now: number, from: number | undefined, to: number): Report => {
    advance(now)
    const isInside = (at: number) => at > (from ?? -Infinity) && at <= to
    return {
      now,
      from: from ?? 0,
      to,
      models: Array.from(models.values(), (model): ModelReport => {
        const refusedBy = { ...nothing }
        const refusedFor: Record<string, number> = {}
        const goodput = { requests: 0, inputTokens: 0, outputTokens: 0 }
        let arrivals = 0
        let admitted = 0
        let completed = 0
        for (const entry of entries) {
          if (entry.model !== model.id) continue
          arrivals++
          if (entry.admitted) admitted++
          if (entry.failedDimension !== undefined) refusedBy[entry.failedDimension]++
          if (entry.reason !== undefined) refusedFor[entry.reason] = (refusedFor[entry.reason] ?? 0) + 1
          if (entry.completedAt === undefined) continue
          completed++
          if (isInside(entry.completedAt)) {
            goodput.requests++
            goodput.inputTokens += entry.usage?.inputTokens ?? 0
            goodput.outputTokens += entry.usage?.outputTokens ?? 0
          }
        }
        return {
          model: model.id,
          arrivals,
          admitted,
          refused: arrivals - admitted,
          refusedBy,
          refusedFor,
          completed,
          aborted: admitted - completed - model.running,
          running: model.running,
          maxConcurrent: model.maxConcurrent,
          attemptsAfterFinal: model.afterFinal,
          attemptsTooEarly: model.tooEarly,
          goodput,
          foreign: { sent: model.foreign.sent, admitted: model.foreign.admitted },
          limits: Array.from(model.windows, (window) => limitReport(window, from ?? -Infinity, to))
        }
      })
    }
  }

  return {
    quotas: (modelId: string, now: number, key?: string): ReadonlyArray<Quota> =>
      levels(modelId, now, key).filter(isTimed),
    levels,
    admit,
    refuse,
    told,
    begin,
    complete,
    abort,
    setLimits,
    restart,
    foreign,
    report,
    arrivals: (): Array<Arrival> => Array.from(entries, (entry) => ({ ...entry }))
  }
}

/** What was charged to admitted requests in `(from, to]`, in milliseconds. */
const sumOf = ({ history: { amount, at, owner } }: Window, from: number, to: number): number => {
  let sum = 0
  for (let index = 0; index < at.length; index++) {
    const instant = (at[index] ?? 0) / 1e6
    if (owner[index] === "admitted" && instant > from && instant <= to) sum += amount[index] ?? 0
  }
  return sum
}

/**
 * The largest sum of net charges in any window, from the history alone: any `(t - period, t]`, the aligned windows of a
 * fixed limit, and for buckets the largest sum over any time less what that time refills. Where a fixed window ends is
 * all that it shares with the gauges that decide.
 */
const worstWindow = ({ changes, history, spec }: Window, epoch: number): number => {
  const { amount, at, owner } = history
  const period = nanos(spec.period)
  // Slots are a bucket that time does not fill again: what is charged for one is taken back when it is free.
  const algorithm = isTimed(spec) ? spec.algorithm ?? "sliding" : "bucket"
  const endAfter = algorithm === "fixed" ? limits.fixedEnds(spec, epoch) : undefined
  let worst = 0
  let sum = 0
  let start = 0
  let end = 0
  for (let index = 0; index < at.length; index++) {
    const instant = at[index] ?? 0
    if (endAfter !== undefined) {
      if (instant >= end) {
        end = endAfter(instant)
        sum = 0
      }
    } else if (algorithm === "sliding") {
      while ((at[start] ?? 0) + period <= instant) {
        sum -= owner[start] === "admitted" ? amount[start] ?? 0 : 0
        start++
      }
    } else if (index > 0) sum = Math.max(0, sum - allowed(changes, at[index - 1] ?? 0, instant) / period)
    sum += owner[index] === "admitted" ? amount[index] ?? 0 : 0
    worst = Math.max(worst, sum)
  }
  return worst
}

/** The integral of a limit over the time between two instants: it may have changed on the way. */
const allowed = (changes: Window["changes"], from: number, to: number): number =>
  changes.reduce((sum, { at, limit }, index) => {
    const until = Math.min(to, changes[index + 1]?.at ?? Infinity)
    return sum + limit * Math.max(0, until - Math.max(from, at))
  }, 0)

/** Net charges dated in `(from, to]`, or slots held during it, as a share of what the limit allows in that time. */
const utilisation = (window: Window, from: number, to: number): number => {
  const start = Math.max(0, from)
  if (!(to > start)) return 0
  const available = allowed(window.changes, nanos(start), nanos(to)) / 1e6
  if (isTimed(window)) return sumOf(window, from, to) / (available / window.spec.period)
  const { amount, at } = window.history
  const held = amount.reduce(
    (sum, slots, index) => sum + slots * Math.max(0, to - Math.max((at[index] ?? 0) / 1e6, start)),
    0
  )
  return held / available
}
