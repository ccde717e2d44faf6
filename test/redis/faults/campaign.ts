/**
 * One fault, once: two processes, as far as the server can tell, at whatever they do when it happens, and what holds when
 * it is over. What a run finds wrong is its answer.
 */
import { NodeRedis } from "@effect/platform-node"
import { Context, Deferred, Effect, Exit, Fiber, Layer, Schedule, Scope, Stream } from "effect"
import { ModelConfig, QueueManager, RateLimiter } from "effect-llm-queue"
import * as QueueRedis from "effect-llm-queue/Redis"
import * as proxy from "../proxy.ts"
import { own } from "../server.ts"
import type { Fault } from "./faults.ts"

export const phases = ["idle", "at work", "under load", "settling"] as const
type Phase = (typeof phases)[number]

export type Driver = "ioredis" | "redis"

export interface Options {
  readonly fault: Fault
  readonly phase: Phase
  readonly driver: Driver
  /** Milliseconds that the fault lasts. */
  readonly length: number
}

export interface Outcome {
  readonly problems: ReadonlyArray<string>
  /** Milliseconds after the end of the fault until each process had something let in. */
  readonly back: number
  readonly submitted: number
  /** Of stored requests. */
  readonly stored?: {
    /** Executions after the first. */
    readonly again: number
    readonly lost: number
    /** At one time, and within a window. */
    readonly most: number
    readonly worst: number
    /** Milliseconds until what a dead process held has ended. */
    readonly crash?: number
  }
}

export const commandTimeout = 400
const lease = 3000
const period = 8000
const tight = 20
const atOnce = 4

/** The pauses of the queue and of the client at their longest, one after the other, and time to do it. */
const bound = 2000 + 2000 + 2000
/** Where the server has lost it, nothing goes for as long as the last one may need to tell what it has sent. */
const boundOfLoss = bound + commandTimeout + 2 * 2000 + 250

const shutdown = { policy: "interrupt", deadline: "5 seconds" } as const

const Free = ModelConfig.makeUntyped<Effect.Effect<void>, void>("free", {
  rateLimiters: [RateLimiter.rpm(1e6), RateLimiter.tpm(1e9), RateLimiter.concurrent(atOnce)],
  usage: () => ({ inputTokens: 1, outputTokens: 1 }),
  shutdown
})
const Slots = ModelConfig.makeUntyped<Effect.Effect<void>, void>("slots", {
  rateLimiters: [RateLimiter.concurrent(atOnce)],
  shutdown
})
const Tight = ModelConfig.makeUntyped<Effect.Effect<void>, void>("tight", {
  rateLimiters: [
    RateLimiter.rpm(tight, { timePeriod: period }),
    RateLimiter.tpd(1e9, { chargedAt: "completion" })
  ],
  usage: () => ({ inputTokens: 1, outputTokens: 1 }),
  shutdown
})
const models = [Free, Slots, Tight]

const clients = {
  ioredis: (url: string) => QueueRedis.layerClient(url, { commandTimeout }),
  redis: (url: string) =>
    NodeRedis.layer({
      url,
      disableOfflineQueue: true,
      pingInterval: commandTimeout / 2,
      socket: {
        socketTimeout: 2 * commandTimeout,
        reconnectStrategy: (retries) => Math.min(2 ** retries * 50, 2000)
      }
    })
}

/** A process, as far as the server can tell. */
export const start = Effect.fnUntraced(function*(
  url: string,
  driver: Driver = "ioredis",
  options: QueueRedis.Options = {}
) {
  const scope = yield* Scope.make()
  // That of node-redis may never close.
  yield* Effect.addFinalizer(() =>
    driver === "redis" ? Effect.forkDetach(Scope.close(scope, Exit.void)) : Scope.close(scope, Exit.void)
  )
  const context = yield* Layer.buildWithScope(
    Layer.fresh(QueueManager.layerWith({ eventCapacity: 100_000 })).pipe(
      Layer.provide(Layer.fresh(QueueRedis.layer({ commandTimeout, lease, ...options }))),
      Layer.provide(Layer.fresh(clients[driver](url)))
    ),
    scope
  )
  return { manager: Context.get(context, QueueManager.QueueManager), scope }
})

type Process = Effect.Success<ReturnType<typeof start>>

const ends: ReadonlySet<string> = new Set(["completed", "failed", "cancelled"])

const until = (condition: () => boolean) =>
  Effect.whileLoop({ while: () => !condition(), body: () => Effect.sleep(10), step: () => {} })

const timed = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.suspend(() => {
    const began = performance.now()
    return Effect.map(effect, (value) => ({ value, took: performance.now() - began }))
  })

export const run = ({ driver, fault, length, phase }: Options) =>
  Effect.gen(function*() {
    const problems: Array<string> = []
    const server = yield* own(...fault.options ?? [])
    const line = yield* proxy.make(server.port)
    const processes = yield* Effect.forEach([1, 2], () => start(line.url, driver))

    // The books of what has happened -------------------------------------------------------------------------------

    const sent: Array<number> = []
    const running = new Map<string, number>()
    const endings = new Map<string, number>()
    let submitted = 0
    let answered = 0
    let isOver = false

    // Before anything has happened it may take longer only because the machine is busy.
    const register = ({ manager, scope }: Process) =>
      Effect.forEach(models, (model) =>
        Effect.retry(
          Scope.provide(
            manager.registerQueue(model, ({ params }) =>
              Effect.acquireUseRelease(
                Effect.sync(() => {
                  if (model === Tight) sent.push(performance.now())
                  const now = (running.get(model.modelId) ?? 0) + 1
                  running.set(model.modelId, now)
                  if (model !== Tight && now > atOnce) {
                    problems.push(`${now} of ${atOnce} at one time of ${model.modelId}`)
                  }
                }),
                () => params,
                () => Effect.sync(() => void running.set(model.modelId, running.get(model.modelId)! - 1))
              )),
            scope
          ),
          { times: 20, schedule: Schedule.spaced(100) }
        ), { discard: true })

    const submit = ({ manager }: Process, model: typeof Free, work: Effect.Effect<void>) =>
      Effect.suspend(() => {
        submitted++
        return Effect.tap(Effect.exit(manager.submit(model, work)), (exit) =>
          Effect.sync(() => {
            answered++
            if (Exit.isFailure(exit)) problems.push(`a request of ${model.modelId} has failed: ${String(exit.cause)}`)
          }))
      })

    for (const process of processes) {
      yield* Effect.forkChild(
        Stream.runForEach(process.manager.events, ({ requestId, status }) =>
          Effect.sync(() => {
            if (ends.has(status)) endings.set(requestId, (endings.get(requestId) ?? 0) + 1)
          })),
        { startImmediately: true }
      )
      yield* register(process)
      for (const model of models) yield* submit(process, model, Effect.void)
    }

    // What they do when it happens -----------------------------------------------------------------------------------

    const gate = yield* Deferred.make<void>()
    const fibers: Array<Fiber.Fiber<unknown, unknown>> = []
    const fork = (effect: Effect.Effect<unknown>) =>
      Effect.map(Effect.forkChild(effect), (fiber) => void fibers.push(fiber))
    if (phase === "at work" || phase === "settling") {
      for (const model of [Free, Slots]) {
        for (const process of processes) {
          for (let i = 0; i < atOnce / 2; i++) yield* fork(submit(process, model, Deferred.await(gate)))
        }
      }
      for (const process of processes) {
        // Together all that there is, and something more.
        for (let i = 0; i < tight / 2 + 2; i++) yield* fork(submit(process, Tight, Deferred.await(gate)))
      }
      yield* until(() => running.get("free") === atOnce && running.get("slots") === atOnce && sent.length >= tight)
    } else if (phase === "under load") {
      for (const process of processes) {
        for (const [model, count] of [[Free, 6], [Slots, 6], [Tight, 12]] as const) {
          for (let i = 0; i < count; i++) {
            yield* fork(Effect.whileLoop({
              while: () => !isOver,
              body: () => submit(process, model, Effect.sleep(15)),
              step: () => {}
            }))
          }
        }
      }
      yield* until(() => answered > 100 && sent.length >= tight)
    }
    const fails = yield* start(line.url, driver, { whenAway: "fail" })
    yield* register(fails)
    // Runs when it closes.
    yield* Effect.forkChild(Effect.exit(fails.manager.submit(Tight, Effect.never)))
    yield* Effect.sleep(100)

    // While it lasts -------------------------------------------------------------------------------------------------

    const end = performance.now() + length
    const expect = <E extends { readonly _tag: string }, R>(
      what: string,
      tag: string,
      effect: Effect.Effect<unknown, E, R>,
      [least, most]: readonly [number, number]
    ) =>
      Effect.map(timed(Effect.timeoutOption(Effect.exit(effect), 15_000)), ({ took, value }) => {
        if (value._tag === "None") return void problems.push(`${what}: hangs`)
        const error = Exit.isFailure(value.value)
          ? value.value.cause.reasons.find(({ _tag }) => _tag === "Fail")
          : undefined
        const is = error?._tag === "Fail" ? error.error._tag : String(value.value)
        if (is !== tag) problems.push(`${what}: ${is} instead of ${tag}`)
        if (took < least || took > most) problems.push(`${what}: after ${Math.round(took)} ms`)
      })
    const deadline = Math.min(1000, length * 0.8)
    const meanwhile = Effect.gen(function*() {
      if (phase === "settling") yield* Effect.delay(Deferred.succeed(gate, undefined), Math.min(200, length / 2))
      if (fault.isAway) {
        yield* Effect.all([
          expect(
            "with a timeout",
            "QueueTimeout",
            processes[0]!.manager.submit(Free, Effect.void, { timeout: deadline }),
            [deadline - 5, deadline + 500]
          ),
          expect("that does not wait", "QueueUnavailable", fails.manager.submit(Free, Effect.void), [
            0,
            commandTimeout + 1000
          ]),
          driver === "redis" ? Effect.void : Effect.gen(function*() {
            const late = yield* start(line.url, driver)
            yield* expect(
              "registration",
              "QueueUnavailable",
              Scope.provide(late.manager.registerQueue(Free, () => Effect.void), late.scope),
              [0, commandTimeout + 1000]
            )
          })
        ], { concurrency: "unbounded" })
        const { took, value } = yield* timed(Effect.timeoutOption(Scope.close(fails.scope, Exit.void), 20_000))
        if (value._tag === "None" || took > 10_000) problems.push(`its scope has closed after ${Math.round(took)} ms`)
      }
      yield* Effect.sleep(Math.max(0, end - performance.now()))
    })
    yield* fault.happen(
      server,
      line,
      Effect.provideService(meanwhile, Scope.Scope, yield* Effect.scope).pipe(Effect.orDie)
    )

    // And then -------------------------------------------------------------------------------------------------------

    let healed = performance.now()
    const goOn = Effect.forEach(
      processes.flatMap((process) => [Free, Slots].map((model) => [process, model] as const)),
      ([process, model]) =>
        Effect.timeoutOrElse(submit(process, model, Effect.void), {
          duration: 30_000,
          orElse: () => Effect.sync(() => void problems.push(`nothing more is let in of ${model.modelId}`))
        }),
      { concurrency: "unbounded", discard: true }
    )
    if (phase === "at work") {
      // All that there is, is still taken: nothing is let in beside it, whoever is heard first.
      const waiting = yield* Effect.forkChild(goOn)
      yield* Effect.sleep(3000)
      if (waiting.pollUnsafe() !== undefined) problems.push("more is let in than there is")
      healed = performance.now()
      yield* Deferred.succeed(gate, undefined)
      yield* Fiber.join(waiting)
    } else yield* goOn
    const back = performance.now() - healed
    const most = fault.loses ? boundOfLoss : bound
    if (back > most) problems.push(`let in again after ${Math.round(back)} ms, more than ${most}`)
    // One more window, as full as it gets.
    if (phase !== "under load") {
      for (const process of processes) {
        for (let i = 0; i < tight; i++) yield* fork(submit(process, Tight, Effect.void))
      }
    }
    const before = sent.length
    yield* Effect.timeoutOrElse(until(() => sent.length >= before + tight), {
      duration: 2 * period + boundOfLoss,
      orElse: () => Effect.sync(() => void problems.push(`${sent.length - before} of a window were sent`))
    })
    isOver = true
    const all = Effect.forEach(fibers, Fiber.join, { discard: true })
    yield* Effect.timeoutOrElse(all, {
      duration: 4 * period,
      orElse: () => Effect.sync(() => void problems.push(`${submitted - answered} requests hang`))
    })
    yield* Effect.sleep(50)
    if (answered !== submitted) problems.push(`${submitted} were submitted, ${answered} have ended`)
    const twice = Array.from(endings.values()).filter((count) => count !== 1).length
    if (twice > 0) problems.push(`${twice} have ended more than once`)
    for (const [index, at] of sent.entries()) {
      const first = sent[index - tight]
      if (first !== undefined && at - first < period) {
        problems.push(`${tight + 1} within ${Math.round(at - first)} of ${period} ms`)
        break
      }
    }
    for (const { manager } of processes) {
      for (const model of [Free, Slots]) {
        const used = Effect.map(
          manager.getQueueInfo(model),
          ({ rateLimiters }) => rateLimiters.find(({ type }) => type === "concurrent")!.used
        )
        let left = yield* used
        for (let i = 0; i < 100 && left > 0; i++) left = yield* Effect.delay(used, 50)
        if (left > 0) problems.push(`${left} permits of ${model.modelId} have not come back`)
      }
    }
    return { problems: Array.from(new Set(problems)), back, submitted } satisfies Outcome
  }).pipe(
    Effect.scoped,
    Effect.timeout(150_000),
    Effect.catchCause((cause) =>
      Effect.succeed<Outcome>({ problems: [`the run itself: ${String(cause)}`], back: Number.NaN, submitted: 0 })
    )
  )
