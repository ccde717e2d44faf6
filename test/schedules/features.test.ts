/**
 * Tenants, shared calls, streams, groups and an operator, all at one time, under a scheduler that decides by a seed which
 * fiber goes next. As in the other scenarios `SEED` replays one run and `RUNS` makes more of them.
 */
import { assert, describe, it } from "@effect/vitest"
import {
  Cause,
  Clock,
  Context,
  Duration,
  Effect,
  Exit,
  Fiber,
  Layer,
  Logger,
  Random,
  Scheduler,
  Scope,
  Stream
} from "effect"
import { ModelConfig, ModelGroup, ProviderProfile, QueueManager, QueueRequest, RateLimiter } from "effect-llm-queue"
import { TestClock } from "effect/testing"
import { env } from "node:process"
import { sometimesFar } from "../farLimiter.ts"
import * as random from "../model/random.ts"
import { SeededScheduler } from "./seededScheduler.ts"
import { patience } from "./simulation.ts"

interface Failure {
  readonly status: number
}

/** What a request asks its processor to do. */
interface Work {
  readonly key: string
  readonly millis: number
  readonly status: number
  /** It submits so many others to its own queue, one inside the other. */
  readonly nested: number
  /** It drains its own queue, and resumes it. */
  readonly drains: boolean
  /** Whose it is, by itself or its region; nobody knows of one that shares a call. */
  readonly tenant: string | undefined
}

/** Of every request. */
const tokens = 10

/** Milliseconds of virtual time that pass at once: what is dispatched may start so much later. */
const step = 10
const maxSteps = 6000
const profile = { ...ProviderProfile.generic, limits: {}, margin: 0 }

const simulate = Effect.fnUntraced(function*(seed: number, scheduler: SeededScheduler) {
  const choose = random.make(seed)
  // Else time goes on while some have still something to do: then nobody knows when a request was dispatched.
  const isExact = seed % 4 !== 3
  // What waits may run on the permit of a processor that drains: then nobody but the queue knows who has which.
  const mayDrain = seed % 5 === 4
  const problems: Array<string> = []
  const problem = (text: string) => problems.push(text)
  const scope = yield* Scope.make()
  const manager = Context.get(
    yield* Layer.buildWithScope(QueueManager.layer, scope).pipe(sometimesFar(seed)),
    QueueManager.QueueManager
  )
  const permits = choose.int(1, 3)
  const tenantPermits = choose.int(1, 3)
  let limit = choose.int(2, 8)
  const period = 200
  // A second limit on the same requests, some of which fail by it.
  const affordable = choose.pick([undefined, 3, 6])
  const onExceeded = choose.pick(["fail", "wait"] as const)
  const rateLimiters = () => [
    RateLimiter.concurrent(permits),
    RateLimiter.rpm(limit, { timePeriod: period }),
    ...(affordable === undefined ? [] : [
      RateLimiter.budget((affordable * tokens) / 1e6, {
        price: { input: 1, output: 1 },
        timePeriod: period,
        onExceeded
      })
    ])
  ]
  const options = {
    rateLimiters: rateLimiters(),
    estimate: () => ({ inputTokens: tokens, outputTokens: 0 }),
    provider: profile,
    capacity: choose.pick([3, 1000]),
    strategy: choose.pick(["suspend", "reject", "dropOldest"] as const),
    bypass: choose.pick([0, 16]),
    failEarly: choose.chance(0.5),
    retention: { count: 10_000 },
    deadLetters: { count: 5 },
    tenants: {
      byId: { b: { weight: 3, ...(permits > 1 ? { guaranteed: 0.5 } : {}) } },
      others: { rateLimiters: [RateLimiter.concurrent(tenantPermits)] }
    }
  }
  const One = ModelConfig.makeUntyped<Work, string, Failure | string>("one", options)
  const Two = ModelConfig.makeUntyped<Work, string, Failure | string>("two", { ...options, deduplicate: { keep: 300 } })
  const Streams = ModelConfig.makeStreamUntyped<Work, string, Failure>("streams", {
    rateLimiters: options.rateLimiters,
    provider: profile,
    usage: (element) => element === "3" ? { inputTokens: 1, outputTokens: 1 } : undefined
  })
  const group = ModelGroup.make([One, Two], { strategy: choose.pick(["fastest", "ordered"]) })

  const cancelled = new Set<string>()
  const running = new Map<string, number>([["one", 0], ["two", 0], ["streams", 0]])
  const byTenant = new Map<string, number>()
  const dispatched = new Map<string, Array<number>>([["one", []], ["two", []], ["streams", []]])
  const paid = new Map<string, Array<number>>([["one", []], ["two", []], ["streams", []]])
  /** Since when. */
  const paused = new Map<string, number>()
  const operated = new Set<string>()
  /** Who would leave a queue paused if it was interrupted. */
  const operators = new Set<string>()
  /** How many processors drain a queue. */
  const draining = new Map<string, number>()
  const change = (map: Map<string, number>, key: string, by: number) => {
    const value = (map.get(key) ?? 0) + by
    map.set(key, value)
    return value
  }

  const enter = (model: string, request: { readonly id: string; readonly tenant?: string | undefined }, work: Work) =>
    Effect.map(Clock.currentTimeMillis, (now) => {
      const isNested = work.key.startsWith("nested")
      const own = `${model} ${request.tenant ?? "nobody"}`
      if (work.tenant !== "shared" && work.tenant !== request.tenant) {
        problem(`${request.id} of ${work.tenant} is of ${request.tenant}`)
      }
      // A nested request may run on the permit of the one that waits for it, which does nothing meanwhile.
      if (isNested) return () => {}
      const count = change(running, model, 1)
      if (count > permits && !mayDrain) problem(`${count} run in ${model}, ${permits} may`)
      const ofTenant = change(byTenant, own, 1)
      if (model !== "streams" && request.tenant !== "b" && ofTenant > tenantPermits && !mayDrain) {
        problem(`${ofTenant} run of ${own}`)
      }
      if (isExact && now > (paused.get(model) ?? now) + step) {
        problem(`${request.id} is dispatched while ${model} is paused`)
      }
      const dates = dispatched.get(model)!
      const payments = paid.get(model)!
      const within = (dates: Array<number>) => {
        dates.push(now)
        return dates.filter((date) => date > now - period + step).length
      }
      const [used, spent] = [within(dates), within(payments)]
      if (isExact && used > limit) problem(`${used} of ${limit} in ${model}`)
      if (isExact && affordable !== undefined && model !== "streams" && spent > affordable) {
        problem(`${spent} of ${affordable} paid in ${model}`)
      }
      return () => {
        // What was refused by a rate limit is not charged, and an overload costs no money.
        if (work.status === 429) dates.splice(dates.indexOf(now), 1)
        if (work.status === 429 || work.status === 503) payments.splice(payments.indexOf(now), 1)
        change(running, model, -1)
        change(byTenant, own, -1)
      }
    })

  /** Together with others that do, but not while an operator is at work: it would end what that one has begun. */
  const drain = ({ modelId }: ModelConfig.Any) =>
    Effect.suspend(() => {
      if (operated.has(modelId) && (draining.get(modelId) ?? 0) === 0) return Effect.void
      operated.add(modelId)
      change(draining, modelId, 1)
      return Effect.ensuring(
        Effect.orDie(manager.drainQueue(modelId)),
        Effect.suspend(() => {
          if (change(draining, modelId, -1) === 0) operated.delete(modelId)
          return Effect.ignore(manager.resumeQueue(modelId))
        })
      )
    })

  for (const model of [One, Two]) {
    yield* manager.registerQueue(model, (request) => {
      const work = request.params
      if (cancelled.has(`${model.modelId} ${request.id}`)) problem(`${request.id} starts after its cancellation`)
      return Effect.acquireUseRelease(
        enter(model.modelId, request, work),
        () =>
          Effect.gen(function*() {
            if (work.millis > 0) yield* Effect.sleep(work.millis)
            if (work.nested > 0) {
              yield* manager.submit(
                model,
                {
                  ...work,
                  key: `nested ${work.key}`,
                  nested: work.nested - 1,
                  status: 200,
                  tenant: work.millis > 10 ? "shared" : work.tenant
                },
                {
                  dedupeKey: work.millis > 50 ? `nested ${request.id}` : work.millis > 10 ? "nested" : undefined
                }
              )
                .pipe(
                  Effect.mapError((error) => typeof error === "object" && "_tag" in error ? error._tag : error)
                )
            }
            if (work.drains) yield* drain(model)
            return work.status === 200 ? "ok" : yield* Effect.fail<Failure>({ status: work.status })
          }),
        (leave) => Effect.sync(leave)
      )
    }).pipe(Scope.provide(scope), Effect.orDie)
  }
  let openStreams = 0
  yield* manager.registerStream(Streams, (request) =>
    Stream.unwrap(Effect.map(
      Effect.acquireRelease(
        Effect.andThen(Effect.sync(() => openStreams++), enter("streams", request, request.params)),
        (leave) =>
          Effect.sync(() => {
            openStreams--
            leave()
          })
      ),
      () =>
        Stream.range(0, 5).pipe(
          Stream.mapEffect((i) => Effect.as(Effect.sleep(request.params.millis / 5), `${i}`)),
          (elements) => request.params.status === 200 ? elements : Stream.concat(elements, Stream.fail(request.params))
        )
    ))).pipe(Scope.provide(scope), Effect.orDie)

  const work = (tenant: string | undefined, key = ""): Work => ({
    key,
    millis: choose.pick([0, 0, 20, 100]),
    status: choose.pick([200, 200, 200, 200, 429, 503, 418]),
    nested: choose.pick([0, 0, 0, 1, 2]),
    drains: mayDrain && choose.chance(0.3),
    tenant: key === "" ? tenant : "shared"
  })
  const actors = new Map<string, Fiber.Fiber<unknown, unknown>>()
  const ids: Array<string> = []
  const models = [One, Two] as const

  const act = Effect.fnUntraced(function*(index: number) {
    const id = `r${index}`
    const model = choose.pick(models)
    const region = choose.pick([undefined, undefined, "a", "b"])
    const tenant = choose.pick([undefined, "a", "b", "c"])
    const timeout = choose.chance(0.2) ? choose.int(1, 400) : undefined
    const timeToDeadline = choose.chance(0.1) ? choose.int(1, 400) : undefined
    const at = yield* Clock.currentTimeMillis
    const given = {
      id,
      ...(tenant === undefined ? {} : { tenant }),
      priority: choose.int(-2, 2),
      ...(timeout === undefined ? {} : { timeout })
    }
    const owner = tenant ?? region
    const fork = (effect: Effect.Effect<unknown, unknown>) =>
      Effect.map(Effect.forkChild(effect), (fiber) => void actors.set(id, fiber))
    /** In its region. Who submits hears how it ended when its time is up. */
    const forkInTime = (effect: Effect.Effect<unknown, unknown>) => {
      const inTenant = region === undefined ? effect : QueueManager.withTenant(effect, region)
      const until = at + Math.min(timeout ?? Number.POSITIVE_INFINITY, timeToDeadline ?? Number.POSITIVE_INFINITY)
      return fork(Effect.ensuring(
        timeToDeadline === undefined ? inTenant : QueueManager.withDeadline(inTenant, at + timeToDeadline),
        Effect.map(Clock.currentTimeMillis, (now) => {
          if (isExact && now > until + step) problem(`${id} ends at ${now}, and must by ${until}`)
        })
      ))
    }
    switch (choose.int(0, 15)) {
      case 0:
      case 1:
      case 2: {
        ids.push(`${model.modelId} ${id}`)
        return yield* forkInTime(manager.submit(model, work(owner), given))
      }
      case 3: {
        ids.push(`${model.modelId} ${id}`)
        const request = QueueRequest.make(model, { ...given, params: work(owner), waitForCompletion: false })
        return yield* forkInTime(manager.submitRequest(request))
      }
      case 4:
      case 5: {
        ids.push(`${model.modelId} ${id}`)
        const key = choose.pick(["x", "y"])
        const params = work(owner, key)
        return yield* forkInTime(
          choose.chance(0.7)
            ? manager.submit(model, params, { ...given, dedupeKey: key })
            : manager.submitRequest(
              QueueRequest.make(model, { ...given, params, dedupeKey: key, waitForCompletion: false })
            )
        )
      }
      case 6:
      case 7:
        return yield* forkInTime(
          manager.stream(Streams, { ...work(owner), nested: 0 }, given).pipe(
            Stream.take(choose.pick([1, 3, 100])),
            Stream.runDrain
          )
        )
      case 8:
        return yield* forkInTime(
          Effect.provideService(
            ModelGroup.submit(group, { ...work(owner), nested: 0 }, given),
            QueueManager.QueueManager,
            manager
          )
        )
      case 9: {
        const victim = choose.pick([...actors].filter(([name]) => !operators.has(name)))?.[1]
        return victim === undefined ? undefined : yield* fork(Fiber.interrupt(victim))
      }
      case 10: {
        const [name, victim] = (choose.pick(ids) ?? "one nobody").split(" ") as [string, string]
        return yield* fork(Effect.ignore(Effect.map(
          manager.cancelRequest(name, victim),
          (isCancelled) => isCancelled && cancelled.add(`${name} ${victim}`)
        )))
      }
      case 11:
        return yield* fork(
          manager.cancelRequests(model, choose.pick([{ tenant: "a" }, { status: "pending" }, { olderThan: 50 }]))
        )
      case 12: {
        const [name, other] = (choose.pick(ids) ?? "one nobody").split(" ") as [string, string]
        if (choose.chance(0.3)) {
          return yield* fork(Effect.map(manager.estimateWait(model, { tenant, priority: given.priority }), (wait) => {
            if (!(Duration.toMillis(wait) >= 0)) problem(`a wait of ${String(wait)}`)
          }))
        }
        return yield* fork(Effect.ignore(manager.changePriority(name, other, choose.int(-5, 5))))
      }
      case 13: {
        // One operator at a time: a second one would resume what the first has paused.
        if (operated.has(model.modelId)) return undefined
        operated.add(model.modelId)
        operators.add(id)
        return yield* fork(
          Effect.andThen(manager.pauseQueue(model), Clock.currentTimeMillis).pipe(
            Effect.map((now) => paused.set(model.modelId, now)),
            Effect.andThen(Effect.sleep(choose.int(0, 100))),
            Effect.andThen(Effect.sync(() => paused.delete(model.modelId))),
            Effect.andThen(manager.resumeQueue(model)),
            Effect.ensuring(Effect.sync(() => operated.delete(model.modelId)))
          )
        )
      }
      case 14: {
        limit = Math.max(limit, choose.int(2, 8))
        return yield* fork(manager.updateRateLimiters(choose.pick([One, Two, Streams]), rateLimiters()))
      }
      default: {
        if (choose.chance(0.5)) {
          return yield* fork(
            Effect.flatMap(manager.deadLetters(model), (letters) =>
              letters[0] === undefined
                ? Effect.void
                : Effect.ignore(manager.resubmitDeadLetter(model, letters[0].requestId)))
          )
        }
        if (operated.has(model.modelId)) return undefined
        operated.add(model.modelId)
        operators.add(id)
        const millis = choose.int(1, 200)
        return yield* fork(
          Effect.raceFirst(manager.drainQueue(model), Effect.sleep(millis)).pipe(
            Effect.andThen(manager.resumeQueue(model)),
            Effect.ensuring(Effect.sync(() => operated.delete(model.modelId)))
          )
        )
      }
    }
  })

  const count = choose.int(5, 40)
  for (let index = 0; index < count; index++) {
    yield* act(index)
    if (choose.chance(0.5)) yield* scheduler.hop
    if (choose.chance(0.4)) {
      for (let steps = choose.int(1, 5); steps > 0; steps--) {
        if (isExact) yield* scheduler.settled
        yield* TestClock.adjust(step)
      }
    }
  }
  const pending = () => [...actors].filter(([, fiber]) => fiber.pollUnsafe() === undefined).map(([id]) => id)
  let left = ["?"]
  for (let steps = 0; steps < maxSteps && left.length > 0; steps++) {
    yield* scheduler.settled
    left = pending()
    if (left.length > 0) yield* TestClock.adjust(steps < 200 ? step : step * steps)
  }
  if (left.length > 0) {
    problem(`${left.join(", ")} hang`)
    return problems
  }
  for (const model of [One, Two]) {
    const letters = yield* Effect.orDie(manager.deadLetters(model))
    if (letters.length > 5) problem(`${letters.length} dead letters of ${model.modelId}`)
    for (const { requestId } of letters) {
      const { status } = yield* Effect.orDie(manager.getStatus(model, requestId))
      if (status !== "failed") problem(`${requestId} is a dead letter, and ${status}`)
    }
  }
  yield* TestClock.adjust("1 hour")
  yield* scheduler.settled
  for (const model of [One, Two, Streams]) {
    const info = yield* Effect.orDie(manager.getQueueInfo(model))
    if (info.running + info.depth + info.suspended > 0) {
      problem(`${model.modelId}: ${info.running} run, ${info.depth} wait, ${info.suspended} have no room`)
    }
    for (const { type, used } of info.rateLimiters) if (used !== 0) problem(`${model.modelId}: ${used} of ${type} used`)
  }
  if (openStreams !== 0) problem(`${openStreams} streams are open`)
  for (const [id, fiber] of actors) {
    const exit = fiber.pollUnsafe()
    if (exit === undefined || Exit.isSuccess(exit)) continue
    if (exit.cause.reasons.some(Cause.isDieReason)) problem(`${id} died: ${Cause.pretty(exit.cause)}`)
  }
  for (const each of ids) {
    const [name, id] = each.split(" ") as [string, string]
    const status = yield* Effect.option(manager.getStatus(name, id))
    if (status._tag === "Some" && (status.value.status === "pending" || status.value.status === "processing")) {
      problem(`${each} is ${status.value.status}`)
    }
  }
  let isClosed = false
  yield* Effect.forkChild(Effect.andThen(Scope.close(scope, Exit.void), Effect.sync(() => isClosed = true)))
  for (let steps = 0; steps < 100 && !isClosed; steps++) {
    yield* scheduler.settled
    yield* TestClock.adjust("1 second")
  }
  if (!isClosed) problem("the closing hangs")
  return problems
})

const run = Effect.fnUntraced(function*(seed: number) {
  const choose = random.make(~seed)
  const scheduler = new SeededScheduler({
    random: choose.next,
    yields: [0, 0.05, 0.2][seed % 3]!,
    budget: 10_000_000
  })
  const logged: Array<string> = []
  const recorder = Logger.make(({ logLevel, message }) => {
    if (logLevel === "Error" || logLevel === "Fatal") logged.push(String(message))
  })
  const fiber = yield* simulate(seed, scheduler).pipe(
    Effect.provide(Layer.mergeAll(Logger.layer([recorder]), TestClock.layer())),
    Effect.provideService(Scheduler.Scheduler, scheduler),
    // The delays of retries, too.
    Effect.provideService(Random.Random, {
      nextIntUnsafe: () => choose.int(Number.MIN_SAFE_INTEGER / 2, Number.MAX_SAFE_INTEGER / 2),
      nextDoubleUnsafe: choose.next
    }),
    Effect.forkDetach
  )
  const problems = yield* Effect.raceFirst(
    Fiber.join(fiber),
    Effect.map(scheduler.whenStopped, (reason) => [reason])
  )
  return [...problems, ...logged.map((message) => `logged: ${message}`)]
})

describe("all that a queue can do, at one time", () => {
  it.effect("keeps its limits, loses nothing and leaves nothing behind", () =>
    Effect.gen(function*() {
      const only = env["SEED"] === undefined ? undefined : Number(env["SEED"])
      const until = only === undefined ? Number(env["RUNS"] ?? 300) : only + 1
      for (let seed = only ?? Number(env["FROM"] ?? 0); seed < until; seed++) {
        const problems = yield* run(seed)
        if (problems.length > 0) {
          assert.fail(`features, seed ${seed}:\n${problems.slice(0, 10).join("\n")}\nSee it again with SEED=${seed}.`)
        }
      }
    }), patience)
})
