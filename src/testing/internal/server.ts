/**
 * The provider as a server: parses what comes in, asks the ledger, and writes what goes out at its time. It runs under
 * the clock of its caller; its only state is the ledger's and the counters of the script.
 */
import * as Clock from "effect/Clock"
import * as DateTime from "effect/DateTime"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type {
  Disconnected,
  Fault,
  Key,
  Limit,
  Lognormal,
  Model,
  Options,
  ServiceTime,
  WireRequest,
  WireResponse
} from "../ProviderSimulator.ts"
import type { Rules, Usage } from "./charging.ts"
import * as dialects from "./dialects.ts"
import * as faults from "./faults.ts"
import * as generate from "./generate.ts"
import * as ledger from "./ledger.ts"
import type * as limits from "./limits.ts"
import * as openai from "./openai.ts"
import * as wire from "./wire.ts"

const afterAdmission = [
  "never",
  "silence",
  "stall",
  "reset",
  "reset_mid_body",
  "truncated",
  "stream_error",
  "stream_error_late",
  "stream_429",
  "stream_429_late",
  "keep_alive",
  "in_band_429"
] as const

export type FaultKind = faults.RefusalKind | "html_502" | (typeof afterAdmission)[number]

const isFaultKind = (kind: string): kind is FaultKind =>
  faults.isRefusal(kind) || kind === "html_502" || afterAdmission.some((other) => other === kind)

/** Errors inside a stream: which, and whether half of the answer comes before. */
const streamErrors: Partial<Record<FaultKind, { readonly error: faults.RefusalKind; readonly isLate: boolean }>> = {
  stream_error: { error: "529", isLate: false },
  stream_error_late: { error: "529", isLate: true },
  stream_429: { error: "429", isLate: false },
  stream_429_late: { error: "429", isLate: true }
}

interface Distribution {
  readonly median: number
  readonly sigma: number
}

interface ScriptedFault {
  readonly when: faults.When
  readonly kind: FaultKind
  readonly retryAfter: string | undefined
  readonly retryAfterDate: number | undefined
}

interface Settings {
  readonly id: string
  readonly dialect: wire.Dialect | undefined
  readonly requestsHeader: "rpm" | "rpd" | undefined
  readonly charging: Rules
  readonly cachedShare: number
  readonly defaultMaxTokens: number
  readonly charsPerToken: Distribution | undefined
  readonly outputTokens: Distribution | undefined
  readonly tokensPerEvent: number
  readonly base: number
  readonly ttft: Distribution
  readonly perToken: Distribution
  readonly dropHeaders: ReadonlyArray<string>
  readonly staleHeaders: number
  readonly headerSkew: number
  readonly inBandRefusals: boolean
  faults: ReadonlyArray<ScriptedFault>
  count: number
  /** What stale headers still show, by key. */
  readonly shown: Map<string, { readonly at: number; readonly quotas: ReadonlyArray<ledger.Quota> }>
  /** When each prompt was last seen, by the hash of its beginning. */
  readonly cache: Map<number, number>
}

/** What the headers of a request change. */
interface Overrides {
  readonly outputTokens?: number | undefined
  readonly service?: number | undefined
  readonly fault?: FaultKind | undefined
  readonly requestId?: string | undefined
  readonly key?: string | undefined
}

/** A request on its way, and what is known of it. */
interface Served {
  readonly own: Settings
  readonly dialect: wire.Dialect
  readonly format: wire.Format
  readonly prompt: wire.Prompt
  readonly overrides: Overrides
  readonly kind: FaultKind | undefined
}

/** A request that the limits have been asked about. */
interface Opened {
  readonly decision: ledger.Decision
  readonly schedule: ledger.Schedule & { readonly usage: Usage }
  readonly cacheWritten: number
  readonly isCut: boolean
  readonly start: number
  readonly scripted: wire.Prompt["scripted"]
}

const cacheLifetime = 300_000
const cachePrefix = 1024
const organization = "org-simulator"

const isLognormal = <A>(value: unknown): value is Lognormal<A> =>
  typeof value === "object" && value !== null && "median" in value && "sigma" in value

const durations = (value: ServiceTime["ttft"]): Distribution =>
  isLognormal<Duration.Input>(value)
    ? { median: Duration.toMillis(value.median), sigma: value.sigma }
    : { median: Duration.toMillis(value ?? 0), sigma: 0 }

const numbers = (value: number | Lognormal<number> | undefined): Distribution | undefined =>
  typeof value === "number" ? { median: value, sigma: 0 } : value

const draw = ({ median, sigma }: Distribution, hash: number, index: number): number =>
  sigma === 0 ? median : generate.lognormal(median, sigma, hash, index)

const toLimit = (limit: Limit, countRefused: boolean): limits.Limit => ({
  ...limit,
  period: limit.dimension === "concurrent"
    ? Infinity
    : Duration.toMillis(limit.period ?? (limit.timeZone === undefined ? "1 minute" : "1 day")),
  phase: limit.phase === undefined ? undefined : Duration.toMillis(limit.phase),
  quantum: limit.quantum === undefined ? undefined : Duration.toMillis(limit.quantum),
  countRefused: limit.countRefused ?? (countRefused ? "requests" : "none")
})

const toFault = ({ kind, retryAfter, retryAfterDate, when }: Fault): ScriptedFault => ({
  when: {
    nth: when?.nth,
    every: when?.every,
    p: when?.p,
    from: when?.from === undefined ? -Infinity : Duration.toMillis(when.from),
    to: when?.to === undefined ? Infinity : Duration.toMillis(when.to)
  },
  kind,
  retryAfter,
  retryAfterDate: retryAfterDate === undefined ? undefined : Duration.toMillis(retryAfterDate)
})

const toTenants = (keys: Readonly<Record<string, Key>>): Readonly<Record<string, ledger.Tenant>> =>
  Object.fromEntries(
    Object.entries(keys).map(([key, { org = organization, project = `project of ${key}` }]) => [
      key,
      { key, project, org }
    ])
  )

const isModel = (model: ReadonlyArray<Limit> | Model): model is Model => "limits" in model
const toModel = (model: ReadonlyArray<Limit> | Model): Model => isModel(model) ? model : { limits: model }

const toSettings = (id: string, model: Model, options: Options): Settings => {
  const serviceTime = model.serviceTime ?? options.serviceTime
  const charge = model.charge ?? "reserve"
  return {
    id,
    dialect: model.dialect === undefined ? undefined : dialects.byName[model.dialect],
    requestsHeader: model.requestsHeader,
    charging: {
      charge,
      refund: model.refund ?? charge !== "openai",
      outputWeight: model.outputWeight ?? 1,
      cacheReadCounts: model.cacheReadCounts ?? true,
      price: { input: model.price?.input ?? 0, output: model.price?.output ?? 0 },
      onAbort: model.onAbort,
      abortCharge: model.abortCharge
    },
    cachedShare: model.cachedShare ?? 0,
    defaultMaxTokens: model.defaultMaxTokens ?? 16,
    charsPerToken: numbers(model.charsPerToken),
    outputTokens: numbers(model.outputTokens),
    tokensPerEvent: Math.max(1, model.tokensPerEvent ?? 1),
    base: Duration.toMillis(serviceTime?.base ?? 0),
    ttft: durations(serviceTime?.ttft),
    perToken: durations(serviceTime?.perOutputToken),
    dropHeaders: (model.dropHeaders ?? []).map((name) => name.toLowerCase()),
    staleHeaders: Duration.toMillis(model.staleHeaders ?? 0),
    headerSkew: model.headerSkewMs ?? 0,
    inBandRefusals: model.inBandRefusals ?? false,
    faults: [...(model.faults ?? []), ...(options.faults ?? [])].map(toFault),
    count: 0,
    shown: new Map(),
    cache: new Map()
  }
}

export const estimate = ({ messages, text }: wire.Prompt): number => Math.ceil(text.length / 4) + 3 * messages

export const noSuchModel = (model: string): string =>
  `The model \`${model}\` does not exist or you do not have access to it.`

const overridesOf = (headers: Readonly<Record<string, string>>): Overrides => {
  const found: { -readonly [K in keyof Overrides]: Overrides[K] } = {}
  for (const name in headers) {
    if (name.length < 6 || name.slice(0, 6).toLowerCase() !== "x-sim-") continue
    const value = headers[name] ?? ""
    switch (name.toLowerCase()) {
      case "x-sim-output-tokens":
        found.outputTokens = Number(value)
        break
      case "x-sim-service-ms":
        found.service = Number(value)
        break
      case "x-sim-fault":
        if (isFaultKind(value)) found.fault = value
        break
      case "x-sim-request-id":
        found.requestId = value
    }
  }
  return found
}

/** The API key, wherever a provider looks for it. */
const keyOf = ({ headers, path }: WireRequest): string | undefined => {
  for (const [name, value] of Object.entries(headers)) {
    const lower = name.toLowerCase()
    if (lower === "authorization") return value.replace(/^bearer +/i, "")
    if (lower === "x-api-key" || lower === "api-key" || lower === "x-goog-api-key") return value
  }
  return new URLSearchParams(path.slice(path.indexOf("?") + 1)).get("key") ?? undefined
}

const dropped = (
  headers: Readonly<Record<string, string>>,
  names: ReadonlyArray<string>
): Readonly<Record<string, string>> =>
  names.length === 0 ? headers : Object.fromEntries(
    Object.entries(headers).filter(([name]) =>
      !names.some((pattern) =>
        pattern.endsWith("*") ? name.toLowerCase().startsWith(pattern.slice(0, -1)) : name.toLowerCase() === pattern
      )
    )
  )

const refusalOf = (dialect: wire.Dialect, situation: wire.Situation, refusal: ledger.Refusal) => {
  if (!refusal.isRamp || dialect.tellsRamps === true) return dialect.refusal(situation, refusal)
  const error = faults.errorOf(dialect, "slow_down")
  return { error, ...dialect.error(situation, error) }
}

const invalid = (message: string): wire.WireError => ({ ...faults.usual["400"], message })

/** One piece of a body that comes in pieces: the milliseconds after admission at which it is due, and what happens. */
interface Step {
  readonly after: number
  readonly text: (() => string) | undefined
  readonly act?: "end" | "reset" | "never" | undefined
  /** For `end`: the tokens produced by then. */
  readonly output?: number | undefined
}

/** Headers, which a server sends with the first piece of a body, and then nothing. */
const silence = (after: number): ReadonlyArray<Step> => [
  { after, text: () => "" },
  { after, text: undefined, act: "never" }
]

const Kinds = Schema.String.check(Schema.makeFilter(isFaultKind))
const OneOrMany = Schema.Union([Schema.Finite, Schema.Array(Schema.Finite)])
const FaultScript = Schema.Struct({
  model: Schema.String,
  faults: Schema.Array(Schema.Struct({
    when: Schema.optional(Schema.Struct({
      nth: Schema.optional(OneOrMany),
      every: Schema.optional(Schema.Finite),
      p: Schema.optional(Schema.Finite),
      from: Schema.optional(Schema.Finite),
      to: Schema.optional(Schema.Finite)
    })),
    kind: Kinds,
    retryAfter: Schema.optional(Schema.String),
    retryAfterDate: Schema.optional(Schema.Finite)
  }))
})
const LimitScript = Schema.Struct({
  model: Schema.String,
  scale: Schema.optional(Schema.Finite),
  limits: Schema.optional(Schema.Array(Schema.Struct({
    dimension: Schema.Literals(["requests", "tokens", "input", "output", "concurrent", "spend"]),
    period: Schema.optional(Schema.Finite),
    limit: Schema.Finite
  })))
})
const decodeFaultScript = Schema.decodeUnknownResult(FaultScript)
const decodeLimitScript = Schema.decodeUnknownResult(LimitScript)

export const make = (options: Options, { disconnected, epoch, now }: {
  readonly epoch: number
  readonly now: Effect.Effect<number>
  readonly disconnected: (message: string) => Disconnected
}) => {
  const seed = options.seed ?? 0
  const settings = new Map<string, Settings>()
  const models: Record<string, ledger.ModelOptions> = {}
  for (const [id, given] of Object.entries(options.models)) {
    const model = toModel(given)
    const own = toSettings(id, model, options)
    settings.set(id, own)
    models[id] = {
      limits: model.limits.map((limit) => toLimit(limit, options.countRefused ?? false)),
      rules: own.charging,
      accel: model.accel && {
        dimension: model.accel.dimension ?? "input",
        factor: model.accel.factor ?? 1.5,
        floor: model.accel.floor ?? 1_000_000,
        period: Duration.toMillis(model.accel.period ?? "15 minutes")
      }
    }
  }
  const { keys } = options
  const books = ledger.make({ models, epoch, tenants: keys && toTenants(keys) })

  const maxOutputOf = (own: Settings, prompt: wire.Prompt): number => prompt.maxOutput ?? own.defaultMaxTokens

  const askOf = (own: Settings, prompt: wire.Prompt, overrides: Overrides) => ({
    input: estimate(prompt),
    maxOutput: maxOutputOf(own, prompt) * prompt.n,
    characters: prompt.text.length,
    requestId: overrides.requestId,
    key: overrides.key
  })

  const lookUpCache = (own: Settings, text: string, tokens: number, at: number) => {
    if (own.cachedShare === 0) return { cached: 0, written: 0 }
    const key = generate.hash(seed, text.slice(0, cachePrefix))
    const seen = own.cache.get(key)
    own.cache.set(key, at)
    const share = Math.floor(tokens * own.cachedShare)
    return seen !== undefined && at - seen <= cacheLifetime
      ? { cached: share, written: 0 }
      : { cached: 0, written: share }
  }

  const outputOf = (own: Settings, overrides: Overrides, start: number, most: number): number => {
    if (most === 0) return 0
    const wanted = overrides.outputTokens
      ?? (own.outputTokens === undefined ? undefined : Math.round(draw(own.outputTokens, start, 0)))
    return wanted === undefined ? generate.lengthOf(start, most) : Math.min(most, Math.max(1, wanted))
  }

  /** Asks the limits. `undefined` when there is no such model. */
  const open = (prompt: wire.Prompt, overrides: Overrides, at: number): Opened | undefined => {
    const own = settings.get(prompt.model)
    if (own === undefined) return undefined
    const ask = askOf(own, prompt, overrides)
    const decision = books.admit(own.id, ask, at)
    if (decision === undefined) return undefined
    const start = generate.hash(seed, prompt.text)
    const chance = generate.hash(seed, `${own.id} ${decision.id}`)
    const asked = prompt.scripted?.pieces.length
    const output = asked === undefined
      ? outputOf(own, overrides, start, ask.maxOutput)
      : Math.min(asked, ask.maxOutput)
    const input = own.charsPerToken === undefined
      ? ask.input
      : Math.ceil(prompt.text.length / draw(own.charsPerToken, start, 2)) + 3 * prompt.messages
    const { cached, written } = decision.refusal === undefined
      ? lookUpCache(own, prompt.text, input, decision.at)
      : { cached: 0, written: 0 }
    const share = overrides.service === undefined ? undefined : overrides.service / (output + 1)
    const schedule = {
      firstByteAfter: share ?? own.base + draw(own.ttft, chance, 0),
      perToken: share ?? draw(own.perToken, chance, 2),
      usage: { input, cached, output }
    }
    if (decision.refusal === undefined) books.begin(decision.id, schedule)
    const isCut = asked === undefined ? output === ask.maxOutput && output > 0 : output < asked
    return { decision, schedule, cacheWritten: written, isCut, start, scripted: prompt.scripted }
  }

  const words = ({ schedule, scripted, start }: Opened): Array<string> =>
    scripted === undefined
      ? generate.generate(start, schedule.usage.output)
      : scripted.pieces.slice(0, schedule.usage.output)

  const faultOf = (own: Settings, overrides: Overrides, at: number): ScriptedFault | undefined => {
    own.count++
    if (overrides.fault !== undefined) {
      return {
        when: { from: -Infinity, to: Infinity },
        kind: overrides.fault,
        retryAfter: undefined,
        retryAfterDate: undefined
      }
    }
    if (own.faults.length === 0) return undefined
    const chance = generate.hash(seed, `${own.id} fault ${own.count}`)
    return own.faults.find(({ when }, index) => faults.isDue(when, own.count, at, generate.fraction(chance, index)))
  }

  const quotasToShow = (
    { shown, staleHeaders }: Settings,
    quotas: ReadonlyArray<ledger.Quota>,
    key: string,
    at: number
  ): ReadonlyArray<ledger.Quota> => {
    const old = shown.get(key)
    if (staleHeaders === 0) return quotas
    if (old !== undefined && at - old.at <= staleHeaders) return old.quotas
    shown.set(key, { at, quotas })
    return quotas
  }

  const situationOf = (
    { overrides, own }: Pick<Served, "own" | "overrides">,
    decision: Pick<ledger.Decision, "id" | "quotas">,
    at: number,
    wallClock: number,
    processing = 0,
    cost = 0
  ): wire.Situation => ({
    id: decision.id,
    model: own.id,
    quotas: quotasToShow(own, decision.quotas, overrides.key ?? "", at),
    wall: wallClock + own.headerSkew,
    requestsHeader: own.requestsHeader,
    processing,
    cost
  })

  const send = (
    own: Settings,
    situation: wire.Situation,
    status: number,
    headers: Readonly<Record<string, string>>,
    body: WireResponse["body"]
  ): WireResponse => ({
    status,
    headers: dropped({ ...headers, date: wire.httpDate(situation.wall) }, own.dropHeaders),
    body
  })

  /** What a refusal told the client is remembered, to see whether it heeds it. */
  const tell = (
    requestId: string | undefined,
    { error, headers, hint }: Pick<wire.Reply, "headers" | "hint"> & {
      readonly error: Pick<wire.WireError, "isRetryable">
    },
    wall: number
  ): void => {
    if (requestId === undefined) return
    const millis = Number(headers["retry-after-ms"])
    const after = headers["retry-after"] ?? ""
    const seconds = Number(after)
    const date = Number.isNaN(seconds) ? Option.getOrUndefined(DateTime.make(after)) : undefined
    // A date that has passed, and what is neither, asks for nothing.
    const given = millis > 0
      ? millis
      : seconds > 0
      ? seconds * 1000
      : date && Math.max(0, date.epochMilliseconds - wall)
    books.told(requestId, {
      isFinal: !error.isRetryable || headers["x-should-retry"] === "false",
      retryAfter: given ?? hint
    })
  }

  const retryAfterHeader = (fault: ScriptedFault, wall: number): Record<string, string> =>
    fault.retryAfterDate === undefined
      ? fault.retryAfter === undefined ? {} : { "retry-after": fault.retryAfter }
      : { "retry-after": wire.httpDate(wall + fault.retryAfterDate) }

  const play = (decision: ledger.Decision, steps: ReadonlyArray<Step>): Stream.Stream<string, Disconnected> =>
    Stream.fromIterable(steps).pipe(
      Stream.mapEffect((step) =>
        Effect.flatMap(now, (at) => {
          // Each piece is due at an instant, not after the one before it: a late timer does not delay the rest.
          const wait = decision.at + step.after - at
          const piece = Effect.suspend((): Effect.Effect<string, Disconnected> => {
            switch (step.act) {
              case "never":
                return Effect.never
              case "reset":
                return Effect.fail(disconnected("The connection was lost in the middle of the body."))
              case "end":
                return Effect.map(now, (at) => {
                  books.complete(decision.id, step.output ?? 0, at)
                  return step.text?.() ?? ""
                })
              case undefined:
                return Effect.sync(() => step.text?.() ?? "")
            }
          })
          return wait > 0 ? Effect.delay(piece, wait) : piece
        })
      )
    )

  const eventSteps = (
    { dialect, format, kind, own }: Served,
    answer: wire.Answer,
    { firstByteAfter, perToken }: ledger.Schedule
  ): ReadonlyArray<Step> => {
    const { words } = answer
    const due = (tokens: number) => firstByteAfter + perToken * tokens
    const streamError = kind === undefined ? undefined : streamErrors[kind]
    const failure = (tokens: number, error: faults.RefusalKind): Step => ({
      after: due(tokens),
      text: () => (dialect.streamFailure ?? format.failure)(answer, faults.errorOf(dialect, error)),
      act: "end",
      output: tokens
    })
    if (kind === "silence") return silence(firstByteAfter)
    const isCutShort = kind === "stall" || kind === "reset_mid_body" || kind === "truncated"
      || streamError?.isLate === true
    const last = isCutShort ? Math.ceil(words.length / 2) : words.length
    const steps: Array<Step> = []
    if (kind === "keep_alive") {
      for (let i = 0; i < 4; i++) {
        steps.push({
          after: firstByteAfter * i / 4,
          text: () => format.streamType === undefined ? ": keep-alive\n\n" : ""
        })
      }
    }
    steps.push({ after: firstByteAfter, text: () => format.head(answer) })
    if (streamError?.isLate === false) return [...steps, failure(0, streamError.error)]
    // No event is about two calls.
    const starts = answer.prompt.scripted?.calls.map(({ from }) => from) ?? []
    for (let sent = 0; sent < last;) {
      const next = starts.find((from) => from > sent) ?? last
      const until = Math.min(last, next, sent + own.tokensPerEvent)
      const index = sent
      steps.push({
        after: due(until),
        text: () => format.token(answer, words.slice(index, until).join(""), index)
      })
      sent = until
    }
    switch (kind) {
      case "stall":
        return [...steps, { after: due(last), text: undefined, act: "never" }]
      case "reset_mid_body":
        return [...steps, { after: due(last), text: undefined, act: "reset" }]
      case "truncated":
        return [...steps, { after: due(last), text: () => format.tail(answer).slice(0, 12), act: "end", output: last }]
      default:
        if (streamError !== undefined) return [...steps, failure(last, streamError.error)]
        return [...steps, { after: due(last), text: () => format.tail(answer), act: "end", output: last }]
    }
  }

  const control = (method: string, path: string, query: string, body: string, at: number): wire.Reply => {
    const bad = (message: string): wire.Reply => ({
      status: 400,
      headers: wire.json,
      body: JSON.stringify(openai.errorBody(invalid(message)))
    })
    const done: wire.Reply = { status: 200, headers: wire.json, body: "{}" }
    if (method === "GET" && path === "/__sim/stats") {
      const parameters = new URLSearchParams(query)
      const from = parameters.get("from")
      const to = parameters.get("to")
      const numbers = [from, to].map((text) => text === null ? undefined : text.trim() === "" ? NaN : Number(text))
      if (numbers.some(Number.isNaN)) return bad("`from` and `to` are numbers of milliseconds.")
      return { ...done, body: JSON.stringify(books.report(at, numbers[0], numbers[1] ?? at)) }
    }
    if (method === "POST" && path === "/__sim/reset") {
      books.restart(at)
      return done
    }
    const parsed = parseJson(body)
    if (method === "POST" && path === "/__sim/limits") {
      const script = decodeLimitScript(parsed)
      if (Result.isFailure(script)) return bad(script.failure.message)
      const { limits, model, scale } = script.success
      books.setLimits(model, limits ?? { scale: scale ?? 1 }, at)
      return done
    }
    if (method === "POST" && path === "/__sim/script") {
      const script = decodeFaultScript(parsed)
      if (Result.isFailure(script)) return bad(script.failure.message)
      setFaults(script.success.model, script.success.faults as ReadonlyArray<Fault>)
      return done
    }
    return notFound(path)
  }

  const setFaults = (model: string, script: ReadonlyArray<Fault>): void => {
    const own = settings.get(model)
    if (own !== undefined) own.faults = script.map(toFault)
  }

  const answerOf = (prompt: wire.Prompt, opened: Opened, situation: wire.Situation): wire.Answer => {
    const produced = words(opened)
    return {
      prompt,
      id: opened.decision.id,
      model: situation.model,
      words: produced,
      text: produced.join(""),
      isCut: opened.isCut,
      input: opened.schedule.usage.input,
      cached: opened.schedule.usage.cached,
      cacheWritten: opened.cacheWritten,
      created: Math.floor(situation.wall / 1000),
      includeUsage: prompt.includeUsage
    }
  }

  const answerWhole = Effect.fnUntraced(function*(
    served: Served,
    opened: Opened
  ): Effect.fn.Return<WireResponse, Disconnected> {
    const { dialect, format, kind, overrides, own, prompt } = served
    const { decision, schedule: { firstByteAfter, perToken, usage } } = opened
    const total = firstByteAfter + perToken * usage.output
    if (total > 0 && kind !== "keep_alive") yield* Effect.sleep(total)
    const at = yield* now
    const isInPieces = kind === "keep_alive" || kind === "silence" || kind === "stall" || kind === "reset_mid_body"
    if (!isInPieces) books.complete(decision.id, usage.output, at)
    const quotas = own.charging.charge === "actual" ? books.quotas(own.id, at, overrides.key) : decision.quotas
    const situation = situationOf(
      served,
      { id: decision.id, quotas },
      at,
      yield* Clock.currentTimeMillis,
      total,
      usage.input + usage.output
    )
    if (kind !== undefined && streamErrors[kind] !== undefined) {
      const { body, headers, status } = dialect.error(situation, faults.errorOf(dialect, "500"))
      return send(own, situation, status, headers, body)
    }
    const text = JSON.stringify(format.whole(answerOf(prompt, opened, situation)))
    const half = text.slice(0, Math.ceil(text.length / 2))
    const pieces = (): ReadonlyArray<Step> => {
      switch (kind) {
        case "keep_alive":
          return [
            ...Array.from({ length: 4 }, (_, i) => ({ after: total * i / 4, text: () => "\n" })),
            { after: total, text: () => text, act: "end", output: usage.output }
          ]
        case "silence":
          return silence(total)
        default:
          return [
            { after: total, text: () => half },
            { after: total, text: undefined, act: kind === "stall" ? "never" : "reset" }
          ]
      }
    }
    const body = isInPieces ? play(decision, pieces()) : kind === "truncated" ? half : text
    return send(own, situation, 200, { ...wire.json, ...dialect.headers(situation) }, body)
  })

  const streamHeaders = ({ streamType = "text/event-stream" }: wire.Format) => ({ "content-type": streamType })

  const answerStream = Effect.fnUntraced(function*(
    served: Served,
    opened: Opened
  ): Effect.fn.Return<WireResponse, Disconnected> {
    const { dialect, format, kind, own, prompt } = served
    const { decision, schedule } = opened
    const { firstByteAfter } = schedule
    if (firstByteAfter > 0 && kind !== "keep_alive" && kind !== "silence") yield* Effect.sleep(firstByteAfter)
    const situation = situationOf(served, decision, decision.at, yield* Clock.currentTimeMillis, firstByteAfter)
    const answer = answerOf(prompt, opened, situation)
    return send(
      own,
      situation,
      200,
      { ...streamHeaders(format), ...dialect.headers(situation) },
      play(decision, eventSteps(served, answer, schedule))
    )
  })

  const answer = Effect.fnUntraced(function*(
    served: Served,
    opened: Opened
  ): Effect.fn.Return<WireResponse, Disconnected> {
    switch (served.kind) {
      case "never":
        return yield* Effect.never
      case "reset":
        yield* Effect.sleep(opened.schedule.firstByteAfter)
        return yield* disconnected("The connection was lost before the headers.")
      default:
        return yield* served.prompt.stream ? answerStream(served, opened) : answerWhole(served, opened)
    }
  })

  const inBand = (
    { format, own }: Served,
    situation: wire.Situation,
    error: wire.WireError,
    headers: Readonly<Record<string, string>>
  ): WireResponse =>
    send(
      own,
      situation,
      200,
      { ...headers, ...streamHeaders(format) },
      Stream.succeed(format.failure(
        { id: situation.id, model: situation.model, created: Math.floor(situation.wall / 1000) },
        error
      ))
    )

  const inference = Effect.fnUntraced(function*(
    route: dialects.Route,
    request: WireRequest
  ): Effect.fn.Return<WireResponse, Disconnected, Scope.Scope> {
    const at = yield* now
    const wallClock = yield* Clock.currentTimeMillis
    const parsed = parseJson(request.body)
    const prompt = parsed === undefined
      ? "We could not parse the JSON body of your request."
      : route.format.parse(parsed, route.model)
    const own = typeof prompt === "string" ? undefined : settings.get(prompt.model)
    const dialect = own?.dialect ?? dialects.byName[route.dialect]
    const key = keys === undefined ? undefined : keyOf(request)
    const reject = (error: wire.WireError) =>
      dialect.error(
        { id: 0, model: "", quotas: [], wall: wallClock, requestsHeader: undefined, processing: 0, cost: 0 },
        error
      )
    if (keys !== undefined && (key === undefined || !Object.hasOwn(keys, key))) {
      return reject(faults.errorOf(dialect, "401"))
    }
    if (typeof prompt === "string") return reject(invalid(prompt))
    if (own === undefined) {
      return reject({ ...faults.errorOf(dialect, "404"), message: noSuchModel(prompt.model) })
    }
    const overrides = { ...overridesOf(request.headers), key }
    const { requestId } = overrides
    const fault = faultOf(own, overrides, at)
    const served: Served = { own, dialect, format: route.format, prompt, overrides, kind: fault?.kind }

    if (
      fault !== undefined && (faults.isRefusal(fault.kind) || fault.kind === "html_502" || fault.kind === "in_band_429")
    ) {
      const decision = books.refuse(own.id, askOf(own, prompt, overrides), fault.kind, at)
      const situation = situationOf(served, decision ?? { id: 0, quotas: [] }, at, wallClock)
      const retryAfter = retryAfterHeader(fault, situation.wall)
      if (fault.kind === "html_502") {
        tell(requestId, { error: { isRetryable: true }, headers: retryAfter }, situation.wall)
        return send(own, situation, 502, { "content-type": "text/html", ...retryAfter }, faults.badGateway)
      }
      const error = faults.errorOf(dialect, fault.kind === "in_band_429" ? "429" : fault.kind)
      if (fault.kind === "in_band_429" && prompt.stream) {
        const headers = { "retry-after": "1", ...retryAfter }
        tell(requestId, { error, headers }, situation.wall)
        return inBand(served, situation, { ...error, code: "rate_limit_exceeded" }, headers)
      }
      const reply = dialect.error(situation, error)
      const headers = { ...reply.headers, ...retryAfter }
      tell(requestId, { ...reply, error, headers }, situation.wall)
      return send(own, situation, reply.status, headers, reply.body)
    }

    const opened = open(prompt, overrides, at)
    if (opened === undefined) return notFound(request.path)
    const { decision } = opened
    if (decision.refusal !== undefined) {
      const situation = situationOf(served, decision, at, wallClock)
      const reply = refusalOf(dialect, situation, decision.refusal)
      tell(requestId, reply, situation.wall)
      return own.inBandRefusals && prompt.stream
        ? inBand(served, situation, reply.error, reply.headers)
        : send(own, situation, reply.status, reply.headers, reply.body)
    }
    // Aborting does nothing once the request has completed.
    yield* Effect.addFinalizer(() => Effect.map(now, (at) => books.abort(decision.id, at)))
    return yield* answer(served, opened)
  })

  const handle = (request: WireRequest): Effect.Effect<WireResponse, Disconnected, Scope.Scope> => {
    const mark = request.path.indexOf("?")
    const path = mark < 0 ? request.path : request.path.slice(0, mark)
    if (path.startsWith("/__sim/")) {
      const query = mark < 0 ? "" : request.path.slice(mark + 1)
      return Effect.map(now, (at) => control(request.method, path, query, request.body, at))
    }
    const route = request.method === "POST" ? dialects.route(path) : undefined
    return route === undefined ? Effect.succeed(notFound(path)) : inference(route, request)
  }

  return { books, handle, open, words, setFaults, settings: (model: string) => settings.get(model) }
}

const parseJson = (text: string): unknown => {
  const parsed = Result.try((): unknown => JSON.parse(text))
  return Result.isSuccess(parsed) ? parsed.success : undefined
}

const notFound = (path: string): wire.Reply => ({
  status: 404,
  headers: wire.json,
  body: JSON.stringify(
    openai.errorBody({ message: `Unknown path: ${path}`, type: "invalid_request_error", code: null })
  )
})
