/** Runs a schedule on virtual time through the public interface, and has the checker watch. */
import { Cause, Clock, Context, Duration, Effect, Exit, Fiber, Layer, Logger, Scope, Stream } from "effect"
import { ModelConfig, type QueueError, QueueManager, QueueRequest, type QueueResponse } from "effect-llm-queue"
import { TestClock } from "effect/testing"
import { Checker, type End, type Seen } from "./checker.ts"
import { type Moment, random, type Schedule } from "./schedule.ts"

interface Action {
  readonly at: number
  /** Decides among actions of one instant. */
  readonly turn: number
  readonly run: Effect.Effect<void>
}

interface Result {
  readonly usage: ModelConfig.Usage | undefined
}

interface Report {
  readonly problems: ReadonlyArray<string>
  readonly log: ReadonlyArray<string>
  readonly steps: number
  readonly dispatches: number
}

/** Turns of the scheduler without a new event, after which nothing more happens at an instant. */
const quiet = 8

const endOf = (cause: Cause.Cause<string | QueueError.SubmitError>): End => {
  const reason = cause.reasons.find(Cause.isFailReason)
  if (reason === undefined) return "cancelled"
  if (typeof reason.error === "string") return "failed"
  switch (reason.error._tag) {
    case "QueueTimeout":
      return "timedOut"
    case "RequestCancelled":
      return "cancelled"
    case "RequestTooLarge":
      return "tooLarge"
    default:
      return "died"
  }
}

const configs = (limits: Schedule["limits"]) =>
  limits.map((limit) => limit.type === "concurrent" ? { type: limit.type, limit: limit.limit } : limit)

export const simulate = Effect.fnUntraced(function*(schedule: Schedule) {
  const clock = yield* Clock.Clock
  const zero = clock.currentTimeMillisUnsafe()
  const now = () => clock.currentTimeMillisUnsafe() - zero
  const { chance, next } = random(~schedule.seed)
  const checker = new Checker(schedule.limits, schedule.requests)
  const { seen } = checker
  const byId = new Map(seen.map((request) => [request.plan.id, request]))
  const submitters = new Map<Seen, Fiber.Fiber<unknown, string | QueueError.SubmitError>>()
  const accepted = new Set<Seen>()
  const logged: Array<string> = []
  const agenda: Array<Action> = []
  let dispatches = 0
  let steps = 0

  const later = (at: number, run: Effect.Effect<void> = Effect.void) =>
    agenda.push({ at: Math.max(at, now()), turn: next(), run })

  // Left open when a problem was found: a queue that holds requests would wait on virtual time to drain them.
  const scope = yield* Scope.make()
  const inScope = Scope.provide(scope)
  const services = yield* Layer.buildWithScope(QueueManager.layerWith({ eventCapacity: 100_000 }), scope)
  const manager = Context.get(services, QueueManager.QueueManager)

  const model = ModelConfig.makeUntyped<number, Result, string>("model", {
    rateLimiters: configs(schedule.limits),
    capacity: schedule.capacity,
    bypass: 0,
    failEarly: false,
    retention: { age: "10000 days" },
    shutdown: { policy: "interrupt" },
    ...(schedule.usage ? { usage: (result: Result) => result.usage! } : {})
  })

  // -------------------------------------------------------------------------------------------------------------------
  // What happens to a request
  // -------------------------------------------------------------------------------------------------------------------

  /** It left before there was room for it: it was never accepted, so nothing is kept of it. */
  const mayBeUnknown = ({ state }: Seen) => state === "left" && schedule.capacity < seen.length

  const report = (request: Seen, usage: ModelConfig.Usage): Effect.Effect<void> =>
    Effect.gen(function*() {
      const known = request.arrivedAt !== undefined && request.state !== "refused"
      const answer = yield* Effect.match(manager.updateTokenUsage(model, request.plan.id, usage), {
        onSuccess: (settlement) => settlement,
        onFailure: (error) => error._tag === "InvalidRequest" ? "refused" : error._tag
      })
      checker.expire(now())
      const expected = known ? checker.settle(request, now(), usage) : "RequestNotFound"
      checker.note(now(), `${request.plan.id} reports ${usage.inputTokens}+${usage.outputTokens}: ${answer}`)
      if (answer === "RequestNotFound" && mayBeUnknown(request)) return
      if (answer !== expected) {
        checker.problem(now(), `the report of ${request.plan.id} is answered ${answer} instead of ${expected}`)
      }
    })

  const cancel = (request: Seen): Effect.Effect<void> =>
    Effect.gen(function*() {
      if (request.state === "refused") return
      const cancelled = yield* manager.cancelRequest(model, request.plan.id)
      if (cancelled) checker.abort(request, now(), "cancelled")
      checker.expire(now())
      if (!cancelled && request.ends.length === 0) checker.problem(now(), `${request.plan.id} cannot be cancelled`)
    }).pipe(
      Effect.catchTag("RequestNotFound", (error) =>
        Effect.sync(() => {
          checker.expire(now())
          if (!mayBeUnknown(request)) checker.problem(now(), `${error.requestId} is not found`)
        })),
      Effect.orDie
    )

  const interrupt = (request: Seen): Effect.Effect<void> =>
    Effect.suspend(() => {
      const submitter = submitters.get(request)
      checker.expire(now())
      if (
        submitter === undefined || request.ends.length > 0 || submitter.pollUnsafe() !== undefined || !request.plan.wait
      ) return Effect.void
      checker.abort(request, now(), "cancelled")
      return Fiber.interrupt(submitter)
    })

  const after = (request: Seen, from: Moment["from"], base: number) => {
    const { cancellations, interruption, reports } = request.plan
    for (const moment of reports) {
      if (moment.from === from) later(base + moment.delay, report(request, moment.usage))
    }
    for (const moment of cancellations) if (moment.from === from) later(base + moment.delay, cancel(request))
    if (interruption?.from === from) later(base + interruption.delay, interrupt(request))
  }

  const ended = (request: Seen, end: End | undefined, usage: ModelConfig.Usage | undefined) => {
    checker.end(request, now(), end, schedule.usage ? usage : undefined)
    after(request, "end", now())
    after(request, "expiry", Math.max(now(), ...checker.expiries(now(), [request])))
  }

  const processor = (request: { readonly id: string }) => {
    const mine = byId.get(request.id)!
    const { plan } = mine
    dispatches++
    checker.dispatch(mine, now())
    later(now() + plan.duration)
    if (plan.processingTimeout !== undefined) later(now() + plan.processingTimeout)
    after(mine, "dispatch", now())
    if (plan.ending === "throw") {
      ended(mine, "died", undefined)
      throw new Error("a synchronous throw")
    }
    const endsAt = now() + plan.duration
    const work = Effect.andThen(
      plan.duration === 0 ? Effect.void : Effect.sleep(plan.duration),
      Effect.suspend((): Effect.Effect<Result, string> => {
        switch (plan.ending) {
          case "succeed":
            return Effect.succeed({ usage: plan.usage })
          case "fail":
            return Effect.fail("failed")
          case "die":
            return Effect.die(new Error("a defect"))
          default:
            return Effect.interrupt
        }
      })
    )
    return Effect.addFinalizer((exit) =>
      Effect.sync(() => {
        if (Exit.isSuccess(exit)) return ended(mine, "completed", plan.usage)
        if (!Cause.hasInterruptsOnly(exit.cause)) {
          return ended(mine, plan.ending === "die" ? "died" : "failed", undefined)
        }
        ended(mine, plan.ending === "interrupt" && now() >= endsAt ? "died" : undefined, undefined)
      })
    ).pipe(Effect.andThen(plan.uninterruptible ? Effect.uninterruptible(work) : work))
  }

  const update = (limits: Schedule["limits"]): Effect.Effect<void> =>
    Effect.suspend(() => {
      checker.expire(now())
      checker.update(limits, now())
      return Effect.orDie(manager.updateRateLimiters(model, configs(limits)))
    })

  const submit = (request: Seen): Effect.Effect<void> =>
    Effect.gen(function*() {
      const { plan } = request
      const made = QueueRequest.make<number, Result, string, boolean>(model, {
        id: plan.id,
        params: 0,
        waitForCompletion: plan.wait,
        estimatedInputTokens: plan.tokens.inputTokens,
        estimatedOutputTokens: plan.tokens.outputTokens,
        priority: plan.priority,
        timeout: plan.timeout,
        processingTimeout: plan.processingTimeout
      })
      checker.arrive(request, now())
      for (const { delay, limits, request: index } of schedule.updates) {
        if (seen[index] === request) later(now() + delay, update(limits))
      }
      const tooLarge = checker.isTooLarge(plan)
      if (tooLarge) request.state = "refused"
      after(request, "arrival", now())
      if (plan.timeout !== undefined && !tooLarge) later(now() + plan.timeout)
      const submission = plan.wait || tooLarge
        ? manager.submitRequest(made)
        : Effect.andThen(manager.submitRequest(made), manager.awaitCompletion(model, plan.id))
      const fiber = yield* Effect.forkIn(
        Effect.catchTag(submission, "RequestNotFound", Effect.die),
        scope,
        { startImmediately: true }
      )
      submitters.set(request, fiber)
      if (!tooLarge) return
      const exit = fiber.pollUnsafe()
      const error = exit !== undefined && Exit.isFailure(exit)
        ? exit.cause.reasons.find(Cause.isFailReason)?.error
        : undefined
      if (typeof error !== "object" || error._tag !== "RequestTooLarge") {
        checker.problem(now(), `${plan.id} is too large and not refused`)
      }
    })

  // -------------------------------------------------------------------------------------------------------------------
  // What must hold
  // -------------------------------------------------------------------------------------------------------------------

  const settle = Effect.gen(function*() {
    let length = -1
    for (let turns = 0; turns < quiet; turns++) {
      yield* Effect.yieldNow
      if (checker.log.length === length) continue
      length = checker.log.length
      turns = 0
    }
  })

  const verify = Effect.gen(function*() {
    yield* settle
    const at = now()
    steps++
    checker.settled(at)
    for (const { dispatchedAt, plan } of seen) {
      if (dispatchedAt !== undefined && dispatchedAt > lastStep && dispatchedAt < at) {
        checker.problem(at, `${plan.id} is dispatched at ${dispatchedAt}, when nothing had changed`)
      }
    }
    lastStep = at
    const info = yield* Effect.orDie(manager.getQueueInfo(model))
    const expect = (what: string, actual: unknown, expected: unknown) => {
      if (actual !== expected) checker.problem(at, `${what} is ${String(actual)} instead of ${String(expected)}`)
    }
    expect("running", info.running, checker.running())
    expect("the number that wait", info.depth + info.suspended, seen.filter(({ state }) => state === "waiting").length)
    expect("room left unused", info.suspended > 0 && info.depth < info.capacity, false)
    for (const [index, { limit, type }] of checker.limits.entries()) {
      const usage = info.rateLimiters[index]!
      const used = checker.used(index, at)
      expect(`used of ${type}`, usage.used, used)
      expect(`available of ${type}`, usage.available, Math.max(0, limit - used))
      const wait = usage.timeUntilNextCapacity
      expect(
        `the next capacity of ${type}`,
        wait === undefined ? undefined : Duration.toMillis(wait),
        checker.untilCapacity(index, at)
      )
    }
    for (const line of logged.splice(0)) {
      if (!line.includes("usage of a result")) checker.problem(at, `logged: ${line}`)
    }
    return checker.problems.length === 0
  })
  let lastStep = -1

  const advance = (to: number) => TestClock.adjust(to - now())

  // -------------------------------------------------------------------------------------------------------------------
  // The run
  // -------------------------------------------------------------------------------------------------------------------

  const events: Array<QueueResponse.QueueResponse<unknown, unknown>> = []

  const run = Effect.gen(function*() {
    yield* inScope(manager.registerQueue(model, processor)).pipe(Effect.orDie)
    yield* Effect.forkIn(
      Stream.runForEach(manager.events, (event) => Effect.sync(() => events.push(event))),
      scope,
      { startImmediately: true }
    )
    let arriving = 0
    const planArrival = () => {
      const request = seen[arriving++]
      if (request === undefined) return
      const { delay, from } = request.plan.arrival
      const base = from === "expiry" ? Math.min(...checker.expiries(now())) : now()
      later(
        Number.isFinite(base) ? base + delay : now() + 1,
        Effect.andThen(submit(request), Effect.sync(planArrival))
      )
    }
    planArrival()
    while (true) {
      const target = Math.min(...agenda.map(({ at }) => at), ...checker.expiries(now()))
      if (!Number.isFinite(target)) break
      if (target > now()) {
        // Just before, nothing has changed yet.
        if (target - 0.25 > now() && chance(0.3)) {
          yield* advance(target - 0.25)
          if (!(yield* verify)) return
        }
        yield* advance(target)
        // Everything that waited for this instant has its turn before or after those who act from outside.
        if (chance(0.5) && !(yield* verify)) return
      }
      const due = agenda.filter(({ at }) => at <= target).toSorted((a, b) => a.turn - b.turn)
      for (const action of due) {
        agenda.splice(agenda.indexOf(action), 1)
        yield* action.run
        if (checker.problems.length > 0 || (chance(0.3) && !(yield* verify))) return
      }
      if (!(yield* verify)) return
    }
    const at = now()
    for (const request of seen) {
      const { id } = request.plan
      if (request.state === "refused") continue
      const fiber = submitters.get(request)
      const exit = fiber?.pollUnsafe()
      if (exit === undefined) {
        checker.problem(at, `${id} has no end`)
        continue
      }
      const end = Exit.isSuccess(exit) ? "completed" : endOf(exit.cause)
      const allowed = checker.allowed(request)
      if (!allowed.includes(end)) checker.problem(at, `${id} ended as ${end} instead of ${allowed.join(" or ")}`)
      const mine = events.filter(({ requestId }) => requestId === id).map(({ status }) => status)
      if (mine.includes("pending")) accepted.add(request)
      else if (schedule.capacity >= seen.length) checker.problem(at, `${id} was never pending`)
      const last = end === "completed" || end === "cancelled" ? end : "failed"
      const expected = accepted.has(request)
        ? ["pending", ...(request.dispatchedAt === undefined ? [] : ["processing"]), last].join()
        : ""
      if (mine.join() !== expected) checker.problem(at, `the events of ${id} are ${mine.join()} instead of ${expected}`)
      if (!accepted.has(request)) continue
      const { status } = yield* Effect.orDie(manager.getStatus(model, id))
      if (status !== last) checker.problem(at, `the status of ${id} is ${status} instead of ${last}`)
    }
    const info = yield* Effect.orDie(manager.getQueueInfo(model))
    if (info.completed + info.failed + info.cancelled !== accepted.size) {
      checker.problem(at, `${accepted.size} were accepted, ${info.completed + info.failed + info.cancelled} ended`)
    }
    for (const { type, used } of info.rateLimiters) if (used !== 0) checker.problem(at, `${used} of ${type} stay used`)
    if (checker.problems.length === 0) yield* Scope.close(scope, Exit.void)
  })

  const logger = Logger.make(({ message }) => {
    logged.push(String(message))
  })
  yield* Effect.provide(run, Logger.layer([logger]))
  return { problems: checker.problems, log: checker.log, steps, dispatches } satisfies Report
})
