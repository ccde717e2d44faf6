/**
 * Runs plans under schedules.
 *
 * A plan (callers, processors, times) comes from a seed, and so does the schedule it runs under: the order of what is
 * ready, and where fibers give way. What happened is then judged by the oracles of `oracles.ts`.
 *
 * A failure names its seed. To see one again, or to search longer:
 *
 *     SEED=17 npm run test:unit -- test/schedules/cancel.test.ts
 *     RUNS=100000 npm run test:unit -- test/schedules
 *
 * Callers and processors act at whole steps of virtual time, so they meet each other and the queue's own timers at the
 * same instants, where only the schedule decides who is first. In three runs of four the clock moves on only when
 * nothing is ready, so that all times are exact and the oracles compare them; in the fourth it overtakes who is slow.
 */
import { assert } from "@effect/vitest"
import {
  Cause,
  Clock,
  Context,
  Deferred,
  Duration,
  Effect,
  Exit,
  Fiber,
  Layer,
  Logger,
  Scheduler,
  Scope,
  Stream
} from "effect"
import { ModelConfig, QueueManager, QueueRequest, RateLimiter } from "effect-llm-queue"
import { TestClock } from "effect/testing"
import { env } from "node:process"
import { isShared, sometimesFar } from "../farLimiter.ts"
import { type Action, type Event, type History, type Outcome, type Plan, type Request, step } from "./history.ts"
import { check } from "./oracles.ts"
import { type Random, random, SeededScheduler } from "./seededScheduler.ts"

/** Virtual time in which every plan must have ended. */
const maxSteps = 600

type Result = { readonly id: string; readonly usage: ModelConfig.Usage }

class Refused {
  readonly _tag = "Refused"
}

/** An event without its time. */
type Unstamped<A> = A extends Event ? Omit<A, "at"> : never

const outcomeOf = (exit: Exit.Exit<unknown, unknown>, success: Outcome): Outcome => {
  if (Exit.isSuccess(exit)) return success
  for (const reason of exit.cause.reasons) {
    if (Cause.isFailReason(reason)) {
      const { error } = reason
      return typeof error === "object" && error !== null && "_tag" in error ? String(error._tag) : String(error)
    }
    if (Cause.isDieReason(reason)) return `died of ${String(reason.defect)}`
  }
  return "interrupted"
}

const millis = (steps: number | undefined): Duration.Duration | undefined =>
  steps === undefined ? undefined : Duration.millis(steps * step)

const simulate = Effect.fnUntraced(function*(
  name: string,
  seed: number,
  plan: Plan,
  scheduler: SeededScheduler,
  exact: boolean,
  events: Array<Event>
) {
  const clock = yield* Clock.Clock
  const now = () => clock.currentTimeMillisUnsafe() / step
  const log = (event: Unstamped<Event>) => events.push({ ...event, at: now() })

  const managerScope = yield* Scope.make()
  const registrationScope = yield* Scope.make()
  const manager = Context.get(
    yield* Layer.buildWithScope(QueueManager.layerWith({ eventCapacity: 100_000 }), managerScope).pipe(
      sometimesFar(seed)
    ),
    QueueManager.QueueManager
  )
  const Model = ModelConfig.makeUntyped<Request, Result, Refused>(name, {
    bypass: 0,
    failEarly: false,
    ...plan.options,
    rateLimiters: plan.limits.length === 0 ? "unlimited" : plan.limits.map((limit) =>
      RateLimiter.make({
        type: limit.type,
        limit: limit.limit,
        ...(limit.type === "concurrent" ? {} : {
          timePeriod: limit.period * step,
          margin: (limit.margin ?? 0) * step,
          chargedAt: limit.chargedAt
        })
      })
    ),
    retention: { count: 1_000, age: "10 days" },
    usage: plan.settles ? (result) => result.usage : undefined
  })

  // ---- Who acts

  const submitters = new Map<string, Fiber.Fiber<unknown, unknown>>()
  const starts = new Map<string, Deferred.Deferred<void>>()
  for (const { id } of plan.onStart) starts.set(id, yield* Deferred.make<void>())
  const running = new Set<string>()
  const ended = new Set<string>()
  const accepted = new Set<string>()
  let waiters = 0
  let closings = 0

  const pause = (steps: number) => Effect.andThen(Effect.sleep(steps * step), scheduler.hop)

  const listen = <A, E>(
    kind: "submit" | "accept" | "await",
    id: string,
    parent: string | undefined,
    wait: Effect.Effect<A, E>
  ): Effect.Effect<void> =>
    Effect.uninterruptibleMask((restore) => {
      const waiter = `${kind} ${id}${parent === undefined ? "" : ` in ${parent}`} #${waiters++}`
      log({ _tag: "Asked", waiter, id, kind, parent })
      return Effect.flatMap(Effect.exit(restore(wait)), (exit) => {
        const outcome = outcomeOf(exit, kind === "accept" ? "accepted" : "completed")
        log({ _tag: "Heard", waiter, outcome })
        return outcome === "interrupted" ? restore(Effect.void) : Effect.void
      })
    })

  const submission = (request: Request, waits: boolean) =>
    QueueRequest.make(Model, {
      params: request,
      id: request.id,
      waitForCompletion: waits,
      estimatedInputTokens: request.tokens.inputTokens,
      estimatedOutputTokens: request.tokens.outputTokens,
      priority: request.priority,
      timeout: millis(request.timeout),
      processingTimeout: millis(request.processingTimeout)
    })

  const perform = (action: Action, parent: string | undefined): Effect.Effect<void> => {
    switch (action._tag) {
      case "Submit":
        return Effect.withFiber((fiber) => {
          if (parent === undefined) submitters.set(action.request.id, fiber)
          return listen(
            action.waits ? "submit" : "accept",
            action.request.id,
            parent,
            manager.submitRequest(submission(action.request, action.waits))
          )
        })
      case "Await":
        return listen("await", action.id, parent, manager.awaitCompletion(Model, action.id))
      case "Cancel":
        return Effect.ignore(manager.cancelRequest(Model, action.id))
      case "Interrupt":
        return Effect.sync(() => submitters.get(action.id)?.interruptUnsafe())
      case "Report":
        // Whoever is interrupted here has settled it all the same.
        return Effect.uninterruptible(Effect.flatMap(
          Effect.exit(manager.updateTokenUsage(Model, action.id, action.usage)),
          (exit) =>
            Effect.sync(() => {
              const answer = Exit.isSuccess(exit) ? exit.value : outcomeOf(exit, "")
              log({ _tag: "Reported", id: action.id, usage: action.usage, answer })
            })
        ))
      case "Close":
        return Effect.suspend(() => {
          const { what } = action
          const closing = closings++
          const deadline = what._tag === "ShutdownAll" && what.options !== undefined ?
            what.options.deadline :
            plan.options.shutdown?.deadline
          log({
            _tag: "Closing",
            closing,
            inside: parent !== undefined,
            deadline: deadline === undefined
              ? 30_000 / step
              : Duration.toMillis(Duration.fromInputUnsafe(deadline)) / step
          })
          const closed = what._tag === "ShutdownAll"
            ? manager.shutdownAll(what.options)
            : what._tag === "Unregister"
            ? Effect.ignore(manager.unregisterQueue(name))
            : Scope.close(registrationScope, Exit.void)
          const waited = action.patience === undefined
            ? closed
            : Effect.timeoutOption(closed, action.patience * step)
          return Effect.andThen(waited, Effect.sync(() => log({ _tag: "Closed", closing })))
        })
      case "Together":
        return Effect.forEach(action.actions, (action) => Effect.andThen(scheduler.hop, perform(action, parent)), {
          concurrency: "unbounded",
          discard: true
        })
    }
  }

  // ---- What is done

  const finish = (request: Request): Effect.Effect<Result, Refused> => {
    switch (request.end) {
      case "succeed":
        return Effect.succeed({ id: request.id, usage: request.usage })
      case "fail":
        return Effect.fail(new Refused())
      case "interrupt":
        return Effect.interrupt
      case "never":
        return Effect.never
      default:
        return Effect.die(new Error(request.id))
    }
  }

  const processor = (queued: QueueRequest.QueueRequest<Request, Result, Refused, boolean>) => {
    const request = queued.params
    const { id } = request
    const start = () => {
      running.add(id)
      log({ _tag: "Started", id })
      const started = starts.get(id)
      if (started !== undefined) scheduler.post(() => Deferred.doneUnsafe(started, Exit.void))
    }
    const stop = (outcome: Outcome) => {
      running.delete(id)
      log({ _tag: "Stopped", id, outcome })
    }
    if (request.end === "throw") {
      start()
      stop("thrown")
      throw new Error(id)
    }
    return Effect.uninterruptibleMask((restore) => {
      start()
      const work = Effect.gen(function*() {
        if (request.work > 0) yield* pause(request.work)
        for (const action of request.actions ?? []) yield* perform(action, id)
        return yield* finish(request)
      })
      return Effect.onExit(
        request.stubborn === true ? work : restore(work),
        (exit) => Effect.sync(() => stop(outcomeOf(exit, "completed")))
      )
    })
  }

  // ---- The run

  yield* manager.events.pipe(
    Stream.runForEach((response) =>
      Effect.sync(() => {
        const id = response.requestId
        let since = response.createdAt + Duration.toMillis(response.queueTime)
        if (response.status === "pending") accepted.add(id)
        else if (response.status !== "processing") {
          ended.add(id)
          since += Duration.toMillis(response.processingTime)
        }
        log({
          _tag: "Status",
          id,
          status: response.status === "pending" || response.status === "processing" ? response.status : "ended",
          outcome: response.status === "failed"
            ? outcomeOf(Exit.failCause(response.cause), "")
            : response.status === "cancelled"
            ? "RequestCancelled"
            : response.status,
          since: since / step
        })
      })
    ),
    Effect.forkChild
  )
  yield* scheduler.settled
  yield* Effect.orDie(Scope.provide(manager.registerQueue(Model, processor), registrationScope))
  yield* scheduler.settled

  const busy = new Map<number, string>()
  const actors: Array<Effect.Effect<void>> = [
    ...plan.callers.map(({ action, at }) => Effect.andThen(pause(at), perform(action, undefined))),
    ...plan.onStart.map(({ action, id }) =>
      Deferred.await(starts.get(id)!).pipe(Effect.andThen(scheduler.hop), Effect.andThen(perform(action, undefined)))
    )
  ]
  for (const [index, actor] of actors.entries()) {
    const caller = plan.callers[index]
    if (caller !== undefined) {
      busy.set(index, `${caller.action._tag} ${"id" in caller.action ? caller.action.id : ""} at ${caller.at}`)
    }
    yield* Effect.forkChild(Effect.onExit(actor, () => Effect.sync(() => busy.delete(index))))
  }

  const sample = (last: boolean) =>
    Effect.ignore(Effect.map(manager.getQueueInfo(Model), (info) => log({ _tag: "Sample", info, last })))

  const isDone = () => busy.size === 0 && running.size === 0 && ended.size === accepted.size

  const advance = Effect.fnUntraced(function*(done: () => boolean) {
    for (let steps = 0; steps < maxSteps; steps++) {
      if (exact || steps > maxSteps / 2) {
        yield* scheduler.settled
        if (exact) yield* sample(false)
        if (done()) return true
      }
      yield* TestClock.adjust(step)
    }
    return false
  })

  const hung = (what: string) => {
    const pending = [...accepted].filter((id) => !ended.has(id))
    const reason = `${what} after ${now()} steps; callers: ${[...busy.values()].join(", ") || "none"}; `
      + `processors: ${[...running].join(", ") || "none"}; accepted and not ended: ${pending.join(", ") || "none"}`
    log({ _tag: "Hung", reason })
    scheduler.stop(reason)
    return Effect.never
  }

  if (!(yield* advance(isDone))) return yield* hung("hangs")
  yield* sample(false)
  // A charge of the last step leaves the longest window.
  yield* TestClock.adjust(Math.max(0, ...plan.limits.map((limit) => limit.period + (limit.margin ?? 0))) * step)
  yield* scheduler.settled
  yield* sample(true)

  let isClosed = false
  yield* Effect.forkChild(
    Scope.close(registrationScope, Exit.void).pipe(
      Effect.andThen(Scope.close(managerScope, Exit.void)),
      Effect.andThen(Effect.sync(() => {
        isClosed = true
      }))
    )
  )
  if (!(yield* advance(() => isClosed))) return yield* hung("the closing of an idle manager hangs")
})

const yields = [0, 0.05, 0.2]

/** Runs the plan of a seed under the schedule of the same seed. */
const run = Effect.fnUntraced(function*(name: string, makePlan: (random: Random) => Plan, seed: number) {
  const plan = makePlan(random(seed))
  const exact = !isShared && Math.floor(seed / yields.length) % 4 !== 3
  const scheduler = new SeededScheduler({
    random: random(~seed),
    yields: yields[seed % yields.length]!,
    budget: 3_000_000
  })
  const events: Array<Event> = []
  const recorder = Logger.make(({ message }) => {
    events.push({ _tag: "Logged", at: Number.NaN, message: String(message) })
  })
  const fiber = yield* simulate(name, seed, plan, scheduler, exact, events).pipe(
    Effect.provide(Layer.mergeAll(Logger.layer([recorder]), TestClock.layer())),
    Effect.provideService(Scheduler.Scheduler, scheduler),
    Effect.forkDetach
  )
  const stopped = yield* Effect.raceFirst(
    Effect.as(Fiber.join(fiber), undefined),
    scheduler.whenStopped
  )
  if (stopped !== undefined && !events.some((event) => event._tag === "Hung")) {
    events.push({ _tag: "Hung", at: Number.NaN, reason: stopped })
  }
  const history: History = { plan, exact, events }
  return history
})

const show = (event: Event): string => {
  const { _tag, at, ...rest } = event
  if (_tag === "Sample") {
    const { completed: _c, failed: _f, cancelled: _x, capacity: _p, modelId: _m, rateLimiters, ...counts } = event.info
    return `${at} Sample ${JSON.stringify(counts)} ${
      rateLimiters.map((usage) => `${usage.type} ${usage.used}`).join(" ")
    }`
  }
  return `${at} ${_tag} ${JSON.stringify(rest)}`
}

/**
 * Runs `runs` seeds (RUNS, if it is set), or the one in SEED, and fails at the first whose history breaks an oracle.
 */
export const explore = (name: string, makePlan: (random: Random) => Plan, runs: number) =>
  Effect.gen(function*() {
    const only = env["SEED"] === undefined ? undefined : Number(env["SEED"])
    const from = only ?? 0
    const until = only === undefined ? Number(env["RUNS"] ?? runs) : only + 1
    for (let seed = from; seed < until; seed++) {
      const history = yield* run(name, makePlan, seed)
      const problems = check(history)
      if (problems.length > 0) {
        const details = only === undefined
          ? `See it again with SEED=${seed}.`
          : `${JSON.stringify(history.plan, undefined, 1)}\n${history.events.map(show).join("\n")}`
        assert.fail(`${name}, seed ${seed}:\n${problems.slice(0, 10).join("\n")}\n${details}`)
      }
    }
  })

/** Longest real time of one scenario, in milliseconds. */
export const patience = env["RUNS"] === undefined ? 300_000 : 24 * 3_600_000
