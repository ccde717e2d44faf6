/**
 * Random requests to a provider that answers at random, on virtual time, against rules that hold whatever happens.
 *
 * A failure prints its seed. `SEED=<seed> RUNS=1` replays that sequence alone, with everything that was done;
 * `SEED=<any> RUNS=<many>` looks at others.
 */
import { assert, describe, it } from "@effect/vitest"
import { Cause, Clock, Context, Effect, Exit, Fiber, Layer, Schedule, Scope, Stream } from "effect"
import { ModelConfig, QueueManager, QueueRequest, RateLimiter } from "effect-llm-queue"
import { TestClock } from "effect/testing"
import * as random from "../model/random.ts"
import { auth, type HttpFailure, overload, own, profile, quota, rate, tooLarge, transient } from "./provider.ts"

const firstSeed = Number(process.env["SEED"] ?? 1)
const runs = Number(process.env["RUNS"] ?? 300)

const refusals = { rate, overload, transient, quota, tooLarge, auth, own }

type Kind = keyof typeof refusals | "success" | "die" | "thrown" | "interrupt" | "never"

const isRetried = (kind: Kind) => kind === "rate" || kind === "overload" || kind === "transient" || kind === "thrown"

interface Attempt {
  readonly kind: Kind
  readonly retryAfter: number | undefined
  readonly at: number
  ended: number | undefined
}

interface Request {
  readonly id: string
  /** How many requests it is inside of. */
  readonly depth: number
  readonly attempts: Array<Attempt>
  readonly timeout: number | undefined
  readonly waits: boolean
  running: boolean
  terminal: number
  heard: string | undefined
  readonly fiber: () => Fiber.Fiber<unknown, unknown> | undefined
}

/** The ends that a request may come to after its last attempt. */
const ends: Readonly<Record<Kind, string>> = {
  success: "success",
  rate: "RateLimitExceeded",
  overload: "ProviderUnavailable",
  transient: "HttpFailure",
  thrown: "ProcessingError",
  quota: "QuotaExhausted",
  tooLarge: "HttpFailure",
  auth: "HttpFailure",
  own: "HttpFailure",
  die: "ProcessingError",
  interrupt: "ProcessingError",
  never: "none of its own"
}

/** Those that have to do with time, with the others, or with the will of a user. */
const othersEnds = new Set(["QueueTimeout", "QuotaExhausted", "RequestCancelled", "interrupted"])

const endOf = (exit: Exit.Exit<unknown, unknown>): string => {
  if (Exit.isSuccess(exit)) return "success"
  if (Cause.hasInterruptsOnly(exit.cause)) return "interrupted"
  const error = Cause.squash(exit.cause)
  return typeof error === "object" && error !== null && "_tag" in error ? String(error._tag) : "unknown"
}

const start = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.forkDetach(effect, { startImmediately: true })

const sequence = Effect.fnUntraced(function*(seed: number, trace: Array<string>) {
  const choose = random.make(seed)
  const clock = yield* Clock.Clock
  const now = () => clock.currentTimeMillisUnsafe()
  const scope = yield* Scope.make()
  const manager = Context.get(
    yield* Layer.buildWithScope(QueueManager.layerWith({ eventCapacity: 1_000_000 }), scope),
    QueueManager.QueueManager
  )
  const concurrent = choose.pick([undefined, 1, 2, 4])
  const requestLimit = choose.pick([undefined, 5, 1000])
  const further = choose.int(0, 4)
  const spacing = choose.pick([0, 100, 1000])
  const budget = choose.pick([0, 0.5, 100])
  const quotaCooldown = choose.pick([1000, 20_000])
  const rateLimiters = [
    ...(concurrent === undefined ? [] : [RateLimiter.concurrent(concurrent)]),
    ...(requestLimit === undefined ? [] : [RateLimiter.rpm(requestLimit, {
      timePeriod: "5 seconds",
      charging: { refused: choose.chance(0.5) }
    })])
  ]
  const Model = ModelConfig.makeUntyped<string, string, HttpFailure>("model", {
    provider: profile,
    rateLimiters: rateLimiters.length === 0 ? "unlimited" : rateLimiters,
    capacity: choose.pick([3, 10_000]),
    strategy: choose.pick(["suspend", "reject", "dropOldest"]),
    retry: { schedule: Schedule.max([Schedule.spaced(spacing), Schedule.recurs(further)]), budget },
    circuitBreaker: {
      failures: choose.pick([1, 2, 5, 100]),
      cooldown: choose.pick([100, 2000]),
      quotaCooldown
    },
    processingTimeout: "8 seconds",
    retention: { count: 10_000, age: "100 days" }
  })
  /** The provider's mood: how often it answers well. */
  const health = choose.pick([0.2, 0.5, 0.9])
  const kinds: ReadonlyArray<Kind> = choose.pick<ReadonlyArray<Kind>>([
    ["rate"],
    ["overload"],
    ["transient", "thrown"],
    ["rate", "overload", "transient", "thrown", "tooLarge", "auth", "own", "die", "interrupt", "never"],
    ["rate", "overload", "transient", "quota", "own", "die", "never"]
  ])
  /** Whether requests submit others to their own queue and wait for them. */
  const isNesting = choose.chance(0.4)
  const byId = new Map<string, Request>()
  const problems: Array<string> = []
  /** What the rounding of large times may take away, in milliseconds. */
  const rounding = 0.001
  const object = (condition: boolean, problem: string) => {
    if (condition) return
    problems.push(`${now()} ${problem}`)
    trace.push(`  !!! ${problem}`)
  }
  let faultRetries = 0
  let successes = 0
  let pausedUntil = 0
  let quotaUntil = 0
  /** Attempts in flight that were sent although the provider was not available. */
  const tries = new Set<Attempt>()
  let inFlight = 0
  let ids = 0

  const processor = Effect.fnUntraced(
    function*({ params }: QueueRequest.QueueRequest<string, string, HttpFailure, boolean>) {
      const request = byId.get(params)!
      const at = now()
      const previous = request.attempts.at(-1)
      const kind: Kind = choose.chance(health) ? "success" : choose.pick(kinds)
      const retryAfter = choose.chance(0.4) ? choose.pick([0, 50, 500, 4000, 60_000]) : undefined
      const attempt: Attempt = { kind, retryAfter, at, ended: undefined }
      trace.push(`  ${at} ${params} attempt ${request.attempts.length + 1} will be ${kind} ${retryAfter ?? ""}`)
      object(!request.running, `${params}: two attempts at one time`)
      object(
        request.terminal === 0 && (request.heard === undefined || !request.waits),
        `${params}: an attempt after its end`
      )
      object(request.attempts.length <= further, `${params}: more attempts than the schedule allows`)
      if (previous !== undefined) {
        object(isRetried(previous.kind), `${params}: another attempt after ${previous.kind}`)
        object(
          at + rounding >= previous.ended! + (previous.retryAfter ?? 0),
          `${params}: another attempt before its Retry-After`
        )
        object(at + rounding >= previous.ended! + spacing, `${params}: another attempt before its schedule`)
        if (previous.kind !== "rate") {
          faultRetries++
          object(faultRetries <= 10 + budget * successes + 1e-6, `${params}: a retry that nobody paid for`)
        }
      }
      object(requestLimit === undefined || at + rounding >= pausedUntil, `${params}: sent while the limit is paused`)
      object(at + rounding >= quotaUntil, `${params}: sent while the quota is exhausted`)
      inFlight++
      object(concurrent === undefined || isNesting || inFlight <= concurrent, `${params}: ${inFlight} at one time`)
      const info = yield* Effect.orDie(manager.getQueueInfo(Model))
      if (info.provider?.state !== "available") {
        tries.add(attempt)
        object(tries.size === 1 || isNesting, `${params}: ${tries.size} tries at one time`)
      }
      request.attempts.push(attempt)
      request.running = true
      const end = Effect.sync(() => {
        request.running = false
        attempt.ended = now()
        inFlight--
        tries.delete(attempt)
      })
      return yield* Effect.gen(function*() {
        for (let children = isNesting && request.depth < 3 ? choose.int(0, 2) : 0; children > 0; children--) {
          const child = `r${++ids}`
          trace.push(`  ${now()} ${params} submits ${child}`)
          yield* submitAs(child, request.depth + 1, choose.chance(0.5), undefined, choose.chance(0.5))
        }
        if (kind === "never") return yield* Effect.never
        if (choose.chance(0.7)) yield* Effect.sleep(choose.int(1, 2500))
        if (kind === "success") {
          successes++
          return params
        }
        if (kind === "die") return yield* Effect.die(new RangeError("a bug"))
        if (kind === "interrupt") return yield* Effect.interrupt
        if (kind === "thrown") return yield* Effect.die(transient(retryAfter))
        if (kind === "rate") pausedUntil = Math.max(pausedUntil, now() + (retryAfter ?? 0))
        if (kind === "quota") {
          // What tries already, sent before this, may show the opposite.
          if (tries.size === 0 || tries.has(attempt)) {
            quotaUntil = Math.max(quotaUntil, now() + Math.max(quotaCooldown, retryAfter ?? 0))
          }
        }
        return yield* refusals[kind](retryAfter)
      }).pipe(Effect.ensuring(end))
    }
  )

  yield* manager.registerQueue(Model, processor).pipe(Scope.provide(scope))
  yield* start(Stream.runForEach(manager.events, (event) =>
    Effect.sync(() => {
      trace.push(`    ${now()} ${event.requestId} ${event.status}`)
      const request = byId.get(event.requestId)!
      object(event.attempts >= event.refusals.length, `${event.requestId}: more refusals than attempts`)
      if (event.status === "pending" || event.status === "processing") {
        object(request.terminal === 0, `${event.requestId}: ${event.status} after its end`)
        object(
          event.refusals.length === event.attempts - (event.status === "processing" ? 1 : 0),
          `${event.requestId}: ${event.refusals.length} refusals while ${event.status} after ${event.attempts} attempts`
        )
      } else {
        request.terminal++
        object(request.terminal === 1, `${event.requestId}: ended twice`)
      }
    })))

  const refused = new Set<string>()
  /** Ends when the request is accepted or, if `here`, when it has ended. */
  const submitAs = Effect.fnUntraced(function*(
    id: string,
    depth: number,
    waits: boolean,
    timeout: number | undefined,
    here: boolean
  ) {
    let fiber: Fiber.Fiber<unknown, unknown> | undefined
    const request: Request = {
      id,
      depth,
      timeout,
      waits,
      attempts: [],
      running: false,
      terminal: 0,
      heard: undefined,
      fiber: () => fiber
    }
    byId.set(id, request)
    const options = { id, params: id, timeout, priority: choose.pick(["high", "normal", "low"] as const) }
    const hear = (exit: Exit.Exit<unknown, unknown>) =>
      Effect.sync(() => {
        object(request.heard === undefined, `${id}: heard twice`)
        request.heard = endOf(exit)
        trace.push(`    ${now()} ${id} heard ${request.heard}`)
      })
    const caller: Effect.Effect<unknown, unknown> = waits
      ? Effect.onExit(manager.submitRequest(QueueRequest.make(Model, options)), hear)
      : Effect.matchCauseEffect(
        manager.submitRequest(QueueRequest.make(Model, { ...options, waitForCompletion: false })),
        {
          onFailure: (cause) => hear(Exit.failCause(cause)),
          onSuccess: (pending) =>
            Effect.andThen(
              depth > 0 && choose.chance(0.5) ? Effect.sleep(choose.int(0, 500)) : Effect.void,
              Effect.onExit(manager.awaitCompletion(pending), hear)
            )
        }
      )
    if (here) yield* Effect.exit(caller)
    else fiber = yield* start(caller)
  })

  const submit = Effect.fnUntraced(function*() {
    const id = `r${++ids}`
    const timeout = choose.chance(0.3) ? choose.int(1, 20_000) : undefined
    const waits = choose.chance(0.7)
    trace.push(`${now()} submit ${id} timeout ${timeout} waits ${waits}`)
    yield* submitAs(id, 0, waits, timeout, false)
  })

  for (let step = choose.int(5, 40); step > 0; step--) {
    const what = choose.int(0, 9)
    if (what <= 4) yield* submit()
    else if (what <= 7) {
      const by = choose.pick([0, 10, 500, 3000, 30_000])
      trace.push(`${now()} + ${by}`)
      yield* TestClock.adjust(by)
    } else if (ids > 0) {
      const id = `r${choose.int(1, ids)}`
      trace.push(`${now()} ${what === 8 ? "cancel" : "interrupt"} ${id}`)
      if (what === 8) yield* Effect.ignore(manager.cancelRequest(Model, id))
      else if (byId.get(id)!.waits && byId.get(id)!.depth === 0 && byId.get(id)!.heard === undefined) {
        yield* Fiber.interrupt(byId.get(id)!.fiber()!)
      }
    }
    if (problems.length > 0) break
  }

  // Ten hours are more than any of them can wait.
  for (let i = 0; i < 40; i++) yield* TestClock.adjust("15 minutes")
  for (const request of byId.values()) {
    const { attempts, heard, id } = request
    // A waiter inside a processor ends with it.
    object(heard !== undefined || request.depth > 0, `${id}: its submitter never hears`)
    const status = yield* Effect.result(manager.getStatus(Model, id))
    if (status._tag === "Failure") {
      refused.add(id)
      object(attempts.length === 0, `${id}: was attempted and is unknown`)
      continue
    }
    const { success } = status
    object(success.status !== "pending" && success.status !== "processing", `${id}: never ends`)
    object(request.terminal === 1, `${id}: ${request.terminal} ends told`)
    object(success.attempts === attempts.length, `${id}: ${success.attempts} attempts told of ${attempts.length}`)
    const last = attempts.at(-1)
    const own = last === undefined ? "none" : ends[last.kind]
    const mayBeUnavailable = heard === "ProviderUnavailable" && request.timeout !== undefined
    object(
      heard === own || request.depth > 0 || othersEnds.has(heard ?? "") || mayBeUnavailable
        || (heard === "QueueFull" && attempts.length <= further)
        || (heard === "RateLimitExceeded" && last?.kind === "rate"),
      `${id}: ends as ${heard} after ${last?.kind}`
    )
    object(heard !== "success" || success.status === "completed", `${id}: ${success.status} after a success`)
  }
  const info = yield* Effect.orDie(manager.getQueueInfo(Model))
  object(info.depth === 0 && info.suspended === 0 && info.running === 0, "something is left in the queue")
  object(inFlight === 0, `${inFlight} processors are left`)
  object(
    info.completed + info.failed + info.cancelled === byId.size - refused.size,
    "the counts do not add up to the requests"
  )
  const permits = info.rateLimiters.find(({ type }) => type === "concurrent")
  object(permits === undefined || permits.used === 0, `${permits?.used} permits are left`)
  yield* Scope.close(scope, Exit.void)
  return problems
})

describe("refusals at random", () => {
  it.effect(`${runs} sequences keep the rules`, () =>
    Effect.gen(function*() {
      for (let seed = firstSeed; seed < firstSeed + runs; seed++) {
        const trace: Array<string> = []
        const problems = yield* sequence(seed, trace)
        if (problems.length === 0) continue
        assert.fail(`SEED=${seed}: ${problems.slice(0, 5).join("; ")}\n${runs === 1 ? trace.join("\n") : ""}`)
      }
    }), 300_000)
})
