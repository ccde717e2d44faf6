/**
 * Random sequences of operations on a manager, on virtual time, against the rules in `reference.ts`.
 *
 * A failure prints its seed. `SEED=<seed> RUNS=1` replays that sequence alone, with everything that was done;
 * `SEED=<any> RUNS=<many>` looks at others.
 */
import { assert, describe, it } from "@effect/vitest"
import { Clock, Context as Services, Effect, Exit, Fiber, Latch, Layer, Scope, Stream } from "effect"
import { ModelConfig, ModelGroup, QueueManager, QueueRequest, RateLimiter } from "effect-llm-queue"
import { TestClock } from "effect/testing"
import { Group } from "./group.ts"
import * as random from "./random.ts"
import { Reference } from "./reference.ts"
import {
  type Context,
  errorOf,
  type Filter,
  isActive,
  isOf,
  type Limits,
  objection,
  type Options,
  type Plan,
  type Request,
  type Step,
  type Submission,
  tagOf,
  type Tenants,
  within
} from "./request.ts"

const firstSeed = Number(process.env["SEED"] ?? 1)
const runs = Number(process.env["RUNS"] ?? 800)
const mostOperations = 60
const names = ["model-a", "model-b"]

interface Result {
  readonly id: string
  readonly usage: ModelConfig.Usage
}

type Model = ModelConfig.ModelConfig<Plan, Result, string>

interface Element {
  readonly usage: ModelConfig.Usage | undefined
}

interface Live {
  readonly model: Model
  readonly reference: Reference
  readonly scope: Scope.Closeable
}

const makeContext = (choose: random.Random, probability: number) => ({
  ...(choose.chance(probability) ? { headStart: choose.int(-60, 60) * 1000 } : {}),
  ...(choose.chance(probability) ? { tenant: choose.pick(["a", "b"]) } : {}),
  ...(choose.chance(probability) ? { labels: { [choose.pick(["x", "y"])]: choose.pick(["1", "2"]) } } : {}),
  ...(choose.chance(probability / 4) ? { timeToDeadline: choose.int(0, 20_000) } : {})
})

const makeSubmission = (choose: random.Random, isNested: boolean): Submission => ({
  own: {
    ...makeContext(choose, isNested ? 0.1 : 0.3),
    ...(choose.chance(isNested ? 0.05 : 0.4) ? { timeout: choose.int(1, 8000) } : {}),
    ...(choose.chance(isNested ? 0.05 : 0.3) ? { processingTimeout: choose.int(1, 5000) } : {}),
    ...(choose.chance(0.3) ? { leaves: true } : {}),
    ...(!isNested && choose.chance(0.3) ? { key: choose.pick(["k", "l"]) } : {})
  },
  region: makeContext(choose, 0.1)
})

const makePlan = (choose: random.Random, queues: ReadonlyArray<string>, depth: number): Plan => {
  const steps: Array<Step> = []
  for (let i = choose.pick([0, 0, 1, 1, 2, 3]); i > 0; i--) {
    const kind = depth < 3 ? choose.int(0, 9) : choose.int(0, 5)
    if (kind <= 4) steps.push({ do: "sleep", millis: choose.int(0, 4000) })
    else if (kind === 5) {
      steps.push({ do: "report", tokens: { inputTokens: choose.int(0, 400), outputTokens: choose.int(0, 400) } })
    } else if (kind <= 8) {
      const queue = choose.pick(queues)
      const as = makeSubmission(choose, true)
      steps.push({ do: "submit", queue, waits: kind <= 7, plan: makePlan(choose, queues, depth + 1), as })
    } else {
      const as = makeSubmission(choose, true)
      steps.push({ do: "submitAndAwait", queue: choose.pick(queues), plan: makePlan(choose, queues, depth + 1), as })
    }
  }
  if (choose.chance(0.004)) steps.push({ do: "shutdown" })
  return {
    steps,
    end: choose.pick([
      "succeed",
      "succeed",
      "succeed",
      "succeed",
      "fail",
      "die",
      "interrupt",
      "throw",
      "never",
      "stubborn"
    ]),
    usage: { inputTokens: choose.int(0, 500), outputTokens: choose.int(0, 500) }
  }
}

const makeTenants = (choose: random.Random, mayGuarantee: boolean, mixes: boolean): Tenants | undefined => {
  const guaranteed = mayGuarantee ? choose.pick([0, 0.5]) : 0
  return choose.pick([
    undefined,
    { weight: 3, guaranteed: 0, own: undefined },
    { weight: 1, guaranteed, own: undefined },
    {
      weight: 1,
      guaranteed,
      own: {
        concurrent: mixes ? undefined : choose.pick([undefined, 1, 2]),
        requests: choose.pick([undefined, 1, 3]),
        tokens: choose.pick([undefined, 700])
      }
    }
  ])
}

const makeOptions = (choose: random.Random, mixes: boolean): Options => {
  const limits: Limits = {
    concurrent: choose.pick([undefined, 1, 1, 2, 3]),
    requests: choose.pick([undefined, undefined, 2, 5]),
    tokens: choose.pick([undefined, undefined, 1000]),
    budget: choose.pick(
      [undefined, undefined, undefined, true, false].map((fails) =>
        fails === undefined ? undefined : { tokens: 2000, fails }
      )
    ),
    period: choose.pick([1000, 10_000, 60_000])
  }
  const streams = choose.chance(0.2)
  return {
    limits,
    streams,
    tenants: makeTenants(
      choose,
      rateLimitersOf(limits) !== "unlimited" && !(mixes && limits.concurrent !== undefined),
      mixes
    ),
    bypass: choose.pick([0, 0, 1, 16]),
    failEarly: choose.chance(0.5),
    keep: streams ? 0 : choose.pick([0, 0, 5000]),
    capacity: choose.pick([1, 2, 5, 10_000]),
    strategy: choose.pick(["suspend", "suspend", "reject", "dropOldest"]),
    retainCount: choose.pick([0, 1, 5, 1000]),
    retainAge: choose.pick([5000, 60_000, 3_600_000]),
    readsUsage: choose.chance(0.3),
    headStart: choose.pick([0, 0, 5000]),
    letterCount: streams ? 0 : choose.pick([0, 2, 1000]),
    letterAge: choose.pick([5000, 86_400_000])
  }
}

const rateLimitersOf = ({ budget, concurrent, period, requests, tokens }: Limits) => {
  const rateLimiters = [
    ...(concurrent === undefined ? [] : [RateLimiter.concurrent(concurrent)]),
    ...(requests === undefined ? [] : [RateLimiter.rpm(requests, { timePeriod: period })]),
    ...(tokens === undefined ? [] : [RateLimiter.tpm(tokens, { timePeriod: period })]),
    ...(budget === undefined ? [] : [
      RateLimiter.budget(budget.tokens / 1e6, {
        price: { input: 1, output: 1 },
        timePeriod: period,
        onExceeded: budget.fails ? "fail" : "wait"
      })
    ])
  ]
  return rateLimiters.length === 0 ? "unlimited" as const : rateLimiters
}

const tenantsOf = ({ limits: { period }, tenants }: Pick<Options, "limits" | "tenants">) => {
  if (tenants === undefined) return undefined
  const { guaranteed, own, weight } = tenants
  const limits = own && rateLimitersOf({
    concurrent: undefined,
    requests: undefined,
    tokens: undefined,
    ...own,
    budget: undefined,
    period
  })
  return {
    byId: { a: { weight, guaranteed } },
    others: limits === undefined || limits === "unlimited" ? {} : { rateLimiters: limits }
  }
}

const commonOptions = ({ limits, ...options }: Options) => ({
  rateLimiters: rateLimitersOf(limits),
  capacity: options.capacity,
  priority: options.headStart / 1000,
  tenants: tenantsOf({ limits, ...options }),
  bypass: options.bypass,
  failEarly: options.failEarly,
  strategy: options.strategy,
  retention: { count: options.retainCount, age: options.retainAge },
  shutdown: { policy: "drain", deadline: 7000 } as const
})

const makeModel = (name: string, options: Options): Model =>
  ModelConfig.makeUntyped<Plan, Result, string>(name, {
    ...commonOptions(options),
    deduplicate: { keep: options.keep },
    deadLetters: { count: options.letterCount, age: options.letterAge },
    usage: options.readsUsage ? (result) => result.usage : undefined
  })

const makeStream = (name: string, options: Options) =>
  ModelConfig.makeStreamUntyped<Plan, Element, string>(name, {
    ...commonOptions(options),
    usage: options.readsUsage ? (element) => element.usage : undefined
  })

const start = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.forkDetach(effect, { startImmediately: true })

const sequence = Effect.fnUntraced(function*(seed: number, trace: Array<string>) {
  const choose = random.make(seed)
  /** Requests of one queue submit to the other one. Then nobody sees who waits for the permits of tenants: there are none. */
  const mixes = choose.chance(0.7)
  const clock = yield* Clock.Clock
  const services = yield* Effect.context()
  const now = () => clock.currentTimeMillisUnsafe()
  const managerScope = yield* Scope.make()
  const manager = Services.get(
    yield* Layer.buildWithScope(QueueManager.layerWith({ eventCapacity: 1_000_000 }), managerScope),
    QueueManager.QueueManager
  )
  const live = new Map<string, Live>()
  const byId = new Map<string, Request>()
  const answers: Array<() => void> = []
  /** Looked at after the answers to submissions, which say what was refused. */
  const heard: Array<() => void> = []
  const problems: Array<unknown> = []
  const groups = new Map<string, Group>()
  const groupFibers = new Map<Group, Fiber.Fiber<unknown, unknown>>()
  const submitters = new Map<Request, Fiber.Fiber<unknown, unknown>>()
  const waiters: Array<{ readonly request: Request; readonly fiber: Fiber.Fiber<unknown, unknown> }> = []
  const closings: Array<{ readonly fiber: Fiber.Fiber<unknown>; readonly by: number }> = []
  const drains = new Map<Fiber.Fiber<boolean, unknown>, { readonly reference: Reference; resumed: boolean }>()
  let hasShutDown = false
  let ids = 0
  let changes = 0
  let release = yield* Latch.make()

  const guarded = (f: () => void): void => {
    try {
      f()
    } catch (problem) {
      problems.push(problem)
    }
  }

  yield* start(Stream.runForEach(manager.events, (event) =>
    Effect.sync(() =>
      guarded(() => {
        changes++
        trace.push(`    ${now()} ${event.modelId}/${event.requestId} ${event.status}`)
        const group = groups.get(event.requestId)
        const reference = live.get(event.modelId)?.reference
        if (group !== undefined && reference !== undefined) group.seen(reference, event.createdAt)
        const request = reference?.find(event.requestId) ?? byId.get(event.requestId)
          ?? reference?.sharing.find(event.requestId, event.createdAt) ??
          objection(`event of unknown ${event.requestId}`)
        request.reference.observe(event)
      })
    )))

  // Submitting ------------------------------------------------------------------------------------------------------

  const contextOf = ({ headStart, labels, tenant, timeToDeadline }: Submission["region"]): Context => ({
    ...(headStart === undefined ? {} : { headStart }),
    ...(tenant === undefined ? {} : { tenant }),
    ...(labels === undefined ? {} : { labels }),
    ...(timeToDeadline === undefined ? {} : { deadline: now() + timeToDeadline })
  })

  const inRegion = <A>(
    { headStart, labels, tenant, timeToDeadline }: Submission["region"],
    effect: Effect.Effect<A, unknown>
  ): Effect.Effect<A, unknown> => {
    const regions: Array<(inner: Effect.Effect<A, unknown>) => Effect.Effect<A, unknown>> = [
      ...(headStart === undefined ? [] : [QueueManager.withPriority(headStart / 1000)]),
      ...(tenant === undefined ? [] : [QueueManager.withTenant(tenant)]),
      ...(labels === undefined ? [] : [QueueManager.withLabels(labels)]),
      ...(timeToDeadline === undefined ? [] : [QueueManager.withDeadline(now() + timeToDeadline)])
    ]
    return regions.reduce((inner, region) => region(inner), effect)
  }

  const submit = (
    name: string,
    plan: Plan,
    mayWait: boolean,
    parent: Request | undefined,
    { own, region }: Submission
  ): { readonly request: Request | undefined; readonly effect: Effect.Effect<unknown, unknown> } => {
    const target = live.get(name)
    const id = `r${ids++}`
    const tokens = { inputTokens: choose.int(0, 300), outputTokens: choose.int(0, 300) }
    const tooLarge = choose.chance(0.02)
    const malformed = choose.chance(0.02)
    const isStream = target?.reference.options.streams === true
    const waits = mayWait || isStream
    const key = isStream ? undefined : own.key
    const leaves = isStream && own.leaves === true
    const model = target?.model ?? makeModel(name, makeOptions(choose, mixes))
    const options = {
      id,
      estimatedInputTokens: malformed ? Number.NaN : tooLarge ? 1001 : tokens.inputTokens,
      estimatedOutputTokens: tokens.outputTokens,
      timeout: own.timeout,
      processingTimeout: own.processingTimeout,
      priority: own.headStart === undefined ? undefined : own.headStart / 1000,
      tenant: own.tenant,
      dedupeKey: key,
      labels: own.labels,
      deadline: own.timeToDeadline === undefined ? undefined : now() + own.timeToDeadline
    }
    const submission = inRegion(
      region,
      isStream
        ? manager.stream(makeStream(name, target.reference.options), plan, options).pipe(
          Stream.take(leaves ? 1 : Number.POSITIVE_INFINITY),
          Stream.runCount,
          Effect.map((result): unknown => ({ result }))
        )
        : manager.submitRequest(
          QueueRequest.make(model, { ...options, params: plan, waitForCompletion: waits })
        ) as Effect.Effect<unknown, unknown>
    )
    if (target === undefined) {
      return {
        request: undefined,
        effect: Effect.onExit(
          submission,
          (exit) => Effect.sync(() => guarded(() => assert.strictEqual(tagOf(errorOf(exit)), "ModelNotRegistered")))
        )
      }
    }
    const { reference } = target
    const request = reference.submit({
      id,
      plan,
      waits,
      submittedAt: now(),
      context: within(within(parent?.context ?? {}, contextOf(region)), contextOf(own)),
      ownTimeout: own.timeout ?? Number.POSITIVE_INFINITY,
      processingTimeout: own.processingTimeout ?? Number.POSITIVE_INFINITY,
      tokens: tooLarge ? { ...tokens, inputTokens: 1001 } : tokens,
      malformed,
      leaves,
      parent
    }, key === undefined ? {} : { key })
    return { request, effect: followed(request, submission) }
  }

  /** What is asked for a request, and what comes of it. */
  const followed = (
    request: Request,
    submission: Effect.Effect<unknown, unknown>,
    then?: (exit: Exit.Exit<unknown, unknown>) => void
  ) => {
    byId.set(request.id, request)
    return submission.pipe(
      Effect.onInterrupt(() =>
        Effect.sync(() => {
          request.left = true
          if (request.waits) request.cancelAsked = true
        })
      ),
      Effect.onExit((exit) =>
        Effect.sync(() => {
          changes++
          // The rest of a stream is not wanted.
          if (request.leaves && Exit.isSuccess(exit)) request.cancelAsked = true
          request.hasFailed = Exit.isFailure(exit)
          then?.(exit)
          answers.push(() => request.reference.answered(request, exit))
        })
      )
    )
  }

  // What processors do ----------------------------------------------------------------------------------------------

  const report = (request: Request, usage: ModelConfig.Usage): Effect.Effect<void> =>
    Effect.suspend(() => {
      const { reference } = request
      if (live.get(reference.name)?.reference !== reference) return Effect.void
      const { call = request } = request
      const isForgotten = [request, call].some((each) =>
        reference.isForgotten(each, now()) || each.status === "refused"
      )
      const isKept = request.ending?.isKept === true
      const expected = isForgotten
        ? "RequestNotFound"
        : isKept
        ? "InvalidRequest"
        : reference.report(call, usage, now())
      return Effect.flatMap(Effect.exit(manager.updateTokenUsage(reference.name, request.id, usage)), (exit) =>
        Effect.sync(() =>
          guarded(() => {
            const answer = Exit.isSuccess(exit) ? exit.value : tagOf(errorOf(exit))
            if (answer === "ModelNotRegistered" && reference.closing) {
              return
            }
            if (
              expected !== undefined && !reference.mayBeForgotten(request, now()) &&
              !reference.mayBeForgotten(call, now())
            ) {
              assert.strictEqual(answer, expected, `report of ${request.id}`)
            }
          })
        ))
    })

  const shutdown = (options: ModelConfig.Shutdown & { readonly deadline: number }) =>
    Effect.suspend(() => {
      hasShutDown = true
      for (const { reference } of live.values()) reference.closing = true
      return manager.shutdownAll(options)
    })

  const step = (current: Step, own: Request): Effect.Effect<unknown> => {
    switch (current.do) {
      case "sleep":
        return Effect.sleep(current.millis)
      case "report":
        return report(own, current.tokens)
      case "shutdown":
        return shutdown({ policy: "drain", deadline: 3000 })
      case "submit":
        return Effect.suspend(() => {
          const { effect, request } = submit(current.queue, current.plan, current.waits, own, current.as)
          own.waitsFor = request?.waits === true ? request : undefined
          own.onceWaited ||= current.waits || request?.waits === true
          return Effect.exit(effect)
        })
      case "submitAndAwait":
        return Effect.suspend(() => {
          const { effect, request } = submit(current.queue, current.plan, false, own, current.as)
          if (request === undefined) return Effect.exit(effect)
          if (request.waits) {
            own.waitsFor = request
            own.onceWaited = true
            return Effect.exit(effect)
          }
          return Effect.exit(Effect.andThen(effect, () => {
            own.waitsFor = request
            own.onceWaited = true
            if (isOf(request.reference, own)) request.nested = request.onceNested = true
            return Effect.onExit(awaitEnd(request), () =>
              Effect.sync(() => {
                own.waitsFor = undefined
                request.nested = false
                request.leftAt = now()
              }))
          }))
        })
    }
  }

  const awaitEnd = (request: Request): Effect.Effect<unknown, unknown> =>
    Effect.onExit(
      Effect.suspend(() => manager.awaitCompletion(makeModelOf(request), request.id)),
      (exit) =>
        Effect.sync(() => {
          changes++
          const tag = tagOf(errorOf(exit))
          heard.push(() => {
            // Its end may have been forgotten before anybody asked, or its queue.
            if (tag === "RequestNotFound" || tag === "ModelNotRegistered") return
            if (Exit.isFailure(exit) && Exit.hasInterrupts(exit) && tag !== "ProcessingError") return
            request.reference.heard(request, exit)
          })
        })
    )

  const makeModelOf = (request: Request): Model => makeModel(request.reference.name, request.reference.options)

  const begin = (
    reference: Reference,
    made: Pick<QueueRequest.QueueRequest<Plan, Result, string>, "id" | "tenant" | "labels" | "priority">
  ) => {
    // Its event has not been read yet.
    const createdAt = () => Effect.runSyncWith(services)(manager.getStatus(reference.name, made.id)).createdAt
    const request = reference.requests.get(made.id) ?? groups.get(made.id)?.seen(reference, createdAt())
      ?? objection(`processing of unknown ${made.id}`)
    guarded(() => {
      const { context } = request
      assert.isFalse(request.isCancelled, `${request.id} starts after its cancellation`)
      assert.strictEqual(made.tenant, context.tenant)
      assert.deepStrictEqual(made.labels, context.labels)
      assert.strictEqual(made.priority, context.headStart === undefined ? undefined : context.headStart / 1000)
    })
    request.starts++
    request.startedAt = now()
    changes++
    if (request.plan.end === "throw" && request.plan.steps.length === 0) throw new Error("thrown")
    return request
  }

  const work = (request: Request): Effect.Effect<Result, string> =>
    Effect.gen(function*() {
      const { plan } = request
      for (const current of plan.steps) {
        yield* step(current, request)
        request.waitsFor = undefined
      }
      const result = { id: request.id, usage: plan.usage }
      switch (plan.end) {
        case "succeed":
          return result
        case "fail":
          return yield* Effect.fail("typed")
        case "die":
          return yield* Effect.die(new Error("died"))
        case "interrupt":
          return yield* Effect.interrupt
        case "throw":
          throw new Error("thrown")
        case "never":
          return yield* Effect.never
        case "stubborn":
          return yield* Effect.uninterruptible(Effect.as(release.await, result))
      }
    })

  const alive = (request: Request) =>
    Effect.sync(() => {
      request.alive = true
    })

  const processor = (reference: Reference) => (made: QueueRequest.QueueRequest<Plan, Result, string, boolean>) => {
    const request = begin(reference, made)
    return Effect.acquireUseRelease(
      alive(request),
      () => work(request),
      (_, exit) =>
        Effect.sync(() => {
          changes++
          request.alive = false
          request.exit = exit
          if (Exit.isSuccess(exit) && reference.options.readsUsage) reference.report(request, request.plan.usage, now())
        })
    )
  }

  /** Two elements: one at once, and one when the work is done. */
  const streamProcessor = (reference: Reference) => (made: QueueRequest.StreamRequest<Plan, Element, string>) => {
    const request = begin(reference, made)
    const { usage } = request.plan
    let last: ModelConfig.Usage | undefined
    const first = Stream.sync((): Element => {
      last = { ...usage, outputTokens: 0 }
      return { usage: last }
    })
    const second = Stream.fromEffect(Effect.map(work(request), (): Element => {
      last = usage
      return { usage }
    }))
    return Stream.unwrap(Effect.as(
      Effect.acquireRelease(alive(request), (_, exit) =>
        Effect.sync(() => {
          changes++
          request.alive = false
          request.exit = Exit.isSuccess(exit) && last === usage ? Exit.succeed(2) : exit
          if (last !== undefined && reference.options.readsUsage) reference.report(request, last, now())
        })),
      Stream.concat(first, second)
    ))
  }

  // Looking ---------------------------------------------------------------------------------------------------------

  /** Lets everything run that can without the passing of time. */
  const settle = Effect.gen(function*() {
    yield* TestClock.adjust(0)
    let seen = -1
    for (let quiet = 0; quiet < 12; quiet++) {
      if (changes !== seen) quiet = 0
      seen = changes
      yield* Effect.yieldNow
    }
  })

  const look = Effect.gen(function*() {
    yield* settle
    for (const answer of answers.splice(0)) guarded(answer)
    for (const { reference } of live.values()) reference.sharing.settle()
    yield* lookForGroups
    for (const answer of heard.splice(0)) guarded(answer)
    const infos = yield* manager.getAllQueuesInfo
    for (const [name, { reference }] of live) {
      const info = infos.get(name)
      if (info === undefined) {
        assert.isTrue(reference.closing, `${name} is gone`)
        for (const request of [...reference.all, ...reference.sharing.all.values()]) {
          if (request.status === "submitted") objection(`${name}/${request.id} was never answered`)
          if (request.status === "pending" || request.status === "processing") {
            objection(`${name}/${request.id} is ${request.status}, and its queue is gone`)
          }
        }
        live.delete(name)
        continue
      }
      guarded(() => reference.check(info, now()))
      yield* checkLetters(reference)
      const known = [...reference.all, ...reference.sharing.all.values()]
      if (known.length > 0) {
        const request = choose.pick(known)
        const status = yield* Effect.exit(manager.getStatus(name, request.id))
        guarded(() => {
          if (reference.mayBeForgotten(request, now())) return
          if (request.status === "refused" || reference.isForgotten(request, now())) {
            assert.strictEqual(tagOf(errorOf(status)), "RequestNotFound", `${name}/${request.id} is forgotten`)
          } else {
            const { status: current } = isActive(request) ? request.call ?? request : request
            const expected = current === "submitted" ? "pending" : current
            assert(Exit.isSuccess(status), `${name}/${request.id} is known`)
            assert.strictEqual(status.value.status, expected)
          }
        })
      }
    }
    for (const { by, fiber } of closings) {
      if (now() > by && fiber.pollUnsafe() === undefined) objection(`a closing is not over at ${now()}`)
    }
    for (const [fiber, { reference, resumed }] of drains) {
      const exit = fiber.pollUnsafe()
      const isEmpty = reference.isEmpty()
      if (exit === undefined) {
        if (isEmpty || resumed) objection(`${reference.name} is empty or resumed, and its draining goes on`)
        continue
      }
      drains.delete(fiber)
      assert(Exit.isSuccess(exit))
      if (exit.value ? !isEmpty && !reference.closing : !resumed) {
        objection(`the draining of ${reference.name} ended with ${exit.value}`)
      }
    }
    for (const { fiber, request } of waiters) {
      if (request.ending !== undefined && fiber.pollUnsafe() === undefined) objection(`${request.id}: a waiter hangs`)
    }
    for (const [request, fiber] of submitters) {
      const isOver = request.ending !== undefined || (!request.waits && request.status !== "submitted")
      if (isOver && fiber.pollUnsafe() === undefined) objection(`${request.id}: its submitter hangs`)
    }
    if (problems.length > 0) throw problems[0]
  })

  // Operations ------------------------------------------------------------------------------------------------------

  const register = Effect.fnUntraced(function*(name: string) {
    const options = makeOptions(choose, mixes)
    const model = makeModel(name, options)
    const reference = new Reference(name, options)
    const scope = yield* Scope.make()
    const exit = yield* Effect.exit(Scope.provide(
      options.streams
        ? manager.registerStream(makeStream(name, options), streamProcessor(reference))
        : manager.registerQueue(model, processor(reference)),
      scope
    ))
    trace.push(`register ${name} ${JSON.stringify(options)} ${exit._tag}`)
    const expected = hasShutDown ? "QueueShutdown" : live.has(name) ? "ModelAlreadyRegistered" : undefined
    assert.strictEqual(tagOf(errorOf(exit)), expected)
    if (Exit.isSuccess(exit)) live.set(name, { model, reference, scope })
  })

  const submitOne = Effect.gen(function*() {
    const name = choose.pick(names)
    const waits = choose.chance(0.6)
    const plan = makePlan(choose, mixes ? names : [name], 0)
    const as = makeSubmission(choose, false)
    const { effect, request } = submit(name, plan, waits, undefined, as)
    trace.push(`submit ${name}/${request?.id} ${JSON.stringify({ waits, ...as, plan, tokens: request?.tokens })}`)
    const fiber = yield* start(effect)
    if (request === undefined) return
    submitters.set(request, fiber)
    if (request.key === undefined) return
    const call = request.reference.sharing.joined(request, yield* Effect.exit(manager.getStatus(name, request.id)))
    if (call !== undefined) byId.set(call.id, call)
  })

  const submitToGroup = Effect.gen(function*() {
    const references = Array.from(live.values(), ({ reference }) => reference).filter(({ options }) => !options.streams)
    if (references.length === 0) return
    const { own, region } = makeSubmission(choose, false)
    const id = `r${ids++}`
    const tokens = { inputTokens: choose.int(0, 600), outputTokens: choose.int(0, 600) }
    const group = new Group({
      id,
      plan: makePlan(choose, mixes ? names : [references[0]!.name], 2),
      waits: true,
      submittedAt: now(),
      context: within(contextOf(region), contextOf({ ...own })),
      ownTimeout: own.timeout ?? Number.POSITIVE_INFINITY,
      processingTimeout: own.processingTimeout ?? Number.POSITIVE_INFINITY,
      tokens,
      malformed: false,
      leaves: false,
      parent: undefined
    })
    groups.set(id, group)
    trace.push(`submit to a group ${id} ${JSON.stringify({ own, plan: group.asked.plan, tokens })}`)
    const models = ModelGroup.make(references.map(({ name, options }) => makeModel(name, options)), {
      strategy: choose.pick(["fastest", "ordered"])
    })
    const submission = ModelGroup.submit(models, group.asked.plan, {
      id,
      estimatedInputTokens: tokens.inputTokens,
      estimatedOutputTokens: tokens.outputTokens,
      timeout: own.timeout,
      processingTimeout: own.processingTimeout,
      priority: own.headStart === undefined ? undefined : own.headStart / 1000,
      tenant: own.tenant,
      labels: own.labels,
      deadline: own.timeToDeadline === undefined ? undefined : now() + own.timeToDeadline
    }).pipe(Effect.provideService(QueueManager.QueueManager, manager))
    const fiber = yield* start(
      inRegion(region, submission).pipe(
        Effect.onInterrupt(() =>
          Effect.sync(() => {
            group.left = true
            for (const request of group.requests) request.cancelAsked = true
          })
        ),
        Effect.onExit((exit) =>
          Effect.sync(() => {
            changes++
            const answeredAt = now()
            heard.push(() => group.answered(exit, answeredAt === now() ? references : [], now()))
          })
        )
      )
    )
    groupFibers.set(group, fiber)
  })

  /** What waits for room is in no event. */
  const lookForGroups = Effect.gen(function*() {
    for (const group of groups.values()) {
      for (const [name, { reference }] of live) {
        const status = yield* Effect.exit(manager.getStatus(name, group.asked.id))
        const request = group.requests.find((request) => request.reference === reference)
        if (Exit.isSuccess(status)) group.seen(reference, status.value.createdAt)
        else if (request?.status === "submitted") request.status = "refused"
      }
      guarded(() => group.check())
    }
  })

  const pickRequest = () => {
    const all: Array<Request> = []
    for (const { reference } of live.values()) all.push(...reference.all, ...reference.sharing.all.values())
    all.sort((a, b) => a.submittedAt - b.submittedAt)
    const recent = all.slice(-12)
    return recent.length === 0 ? undefined : choose.pick(recent)
  }

  const cancel = Effect.fnUntraced(function*(request: Request) {
    const { name } = request.reference
    trace.push(`cancel ${name}/${request.id}`)
    const before = request.status
    const isForgotten = request.reference.isForgotten(request, now()) || before === "refused"
    request.cancelAsked = true
    const exit = yield* Effect.exit(manager.cancelRequest(name, request.id))
    if (request.reference.mayBeForgotten(request, now())) return
    if (isForgotten) assert.strictEqual(tagOf(errorOf(exit)), "RequestNotFound")
    else {
      assert(Exit.isSuccess(exit))
      request.isCancelled = exit.value
      assert.strictEqual(exit.value, before === "submitted" || before === "pending" || before === "processing")
    }
  })

  const cancelMany = Effect.fnUntraced(function*(reference: Reference) {
    const all = reference.all.slice(-8)
    const filter: Filter = choose.pick([
      {},
      { ids: all.filter(() => choose.chance(0.5)).map(({ id }) => id) },
      { tenant: "a" },
      { labels: { x: "1" } },
      { headStart: all[0] === undefined ? 0 : reference.headStart(all[0]) },
      { status: choose.pick(["pending", "processing"]) },
      { olderThan: all[0] === undefined ? 0 : now() - all[0].submittedAt },
      { tenant: "b", status: "pending", olderThan: choose.int(0, 1000) }
    ])
    const meant = reference.meant(filter, now())
    trace.push(`cancel in ${reference.name} ${JSON.stringify(filter)}: ${meant.map(({ id }) => id).join(" ")}`)
    for (const request of meant) request.cancelAsked = true
    const { headStart, ...others } = filter
    const count = yield* manager.cancelRequests(reference.name, {
      ...others,
      ...(headStart === undefined ? {} : { priority: headStart / 1000 })
    })
    for (const request of meant) request.isCancelled = true
    heard.push(() => {
      const others = meant.filter(({ status }) => status !== "cancelled")
      assert.strictEqual(count + others.length, meant.length, JSON.stringify(filter))
      // Who waited for one of them may have submitted another one at once, or, in a call, have gone on to its end.
      for (const { ending, id } of others) {
        const isDropped = reference.sharing.all.size > 0 ? ending !== undefined : ending?.status === "failed"
          && tagOf(errorOf(Exit.failCause(ending.cause))) === "QueueFull"
        assert.isTrue(isDropped, `${id} is not cancelled`)
      }
    })
  })

  const changePriority = Effect.fnUntraced(function*(request: Request) {
    const { call = request, reference, status } = request
    const headStart = choose.int(-60, 60) * 1000
    trace.push(`change ${reference.name}/${request.id} to ${headStart}`)
    const isForgotten = reference.isForgotten(request, now()) || status === "refused"
    const exit = yield* Effect.exit(manager.changePriority(reference.name, request.id, headStart / 1000))
    if (reference.mayBeForgotten(request, now())) return
    if (isForgotten) return assert.strictEqual(tagOf(errorOf(exit)), "RequestNotFound")
    assert(Exit.isSuccess(exit))
    const isWaiting = isActive(request) && (call.status === "submitted" || call.status === "pending")
    assert.strictEqual(exit.value, isWaiting)
    if (exit.value) call.context = { ...call.context, headStart }
  })

  const resubmit = Effect.fnUntraced(function*({ letters, name, requests }: Reference) {
    const known = Array.from(requests.values())
    if (known.length === 0) return
    const kept = letters.at(now())
    const letter = choose.pick(kept.length === 0 || choose.chance(0.1) ? known : kept)
    const id = `r${ids++}`
    trace.push(`resubmit ${name}/${letter.id} as ${id}`)
    const resubmission: Effect.Effect<unknown, unknown> = manager.resubmitDeadLetter(makeModelOf(letter), letter.id, {
      id
    })
    if (!kept.includes(letter)) {
      return assert.strictEqual(tagOf(errorOf(yield* Effect.exit(resubmission))), "RequestNotFound")
    }
    const { deadline: _, ...context } = letter.context
    const request = letter.reference.submit({
      ...letter,
      id,
      waits: false,
      submittedAt: now(),
      context,
      parent: undefined
    })
    letters.take(letter)
    const fiber = yield* start(followed(request, resubmission, (exit) => {
      if (Exit.isFailure(exit)) letters.keep(letter)
    }))
    submitters.set(request, fiber)
  })

  const removeLetters = Effect.fnUntraced(function*({ letters, name }: Reference) {
    const kept = letters.at(now())
    const chosen = choose.chance(0.5) ? undefined : kept.filter(() => choose.chance(0.5))
    for (const letter of chosen ?? kept) letters.take(letter)
    trace.push(`remove letters of ${name}: ${chosen?.map(({ id }) => id).join(" ")}`)
    const count = yield* manager.removeDeadLetters(name, chosen?.map(({ id }) => id))
    assert.strictEqual(count, (chosen ?? kept).length)
  })

  const checkLetters = Effect.fnUntraced(function*(reference: Reference) {
    const found = yield* manager.deadLetters(makeModel(reference.name, reference.options))
    const kept = reference.letters.at(now())
    guarded(() => {
      assert.deepStrictEqual(found.map(({ requestId }) => requestId), kept.map(({ id }) => id), "dead letters")
      for (const [index, { failedAt, request, response }] of found.entries()) {
        const letter = kept[index]!
        assert.strictEqual(request.params, letter.plan)
        assert.strictEqual(failedAt, letter.endedAt)
        assert(letter.ending?.status === "failed")
        assert.strictEqual(response.cause, letter.ending.cause)
      }
    })
  })

  const estimateWait = Effect.fnUntraced(function*(reference: Reference) {
    const region = makeContext(choose, 0.2)
    const own = makeContext(choose, 0.3)
    const tokens = { inputTokens: choose.int(0, 600), outputTokens: choose.int(0, 600) }
    const estimate = manager.estimateWait(makeModel(reference.name, reference.options), {
      estimatedInputTokens: tokens.inputTokens,
      estimatedOutputTokens: tokens.outputTokens,
      tenant: own.tenant,
      labels: own.labels,
      priority: own.headStart === undefined ? undefined : own.headStart / 1000
    })
    trace.push(`estimate ${reference.name}`)
    const exit = yield* Effect.exit(inRegion(region, estimate))
    const context = within(contextOf(region), contextOf(own))
    reference.estimated(exit, { context, tokens, submittedAt: now() })
  })

  const operate = Effect.fnUntraced(function*(reference: Reference) {
    const what = choose.pick(["pause", "resume", "resume", "drain"])
    trace.push(`${what} ${reference.name}`)
    if (what === "pause") {
      reference.paused = true
      return yield* manager.pauseQueue(reference.name)
    }
    reference.paused = false
    reference.draining = what === "drain"
    if (what === "drain") {
      drains.set(yield* start(manager.drainQueue(reference.name)), { reference, resumed: false })
      return
    }
    for (const drain of drains.values()) if (drain.reference === reference) drain.resumed = true
    return yield* manager.resumeQueue(reference.name)
  })

  /** Other numbers; what was sent before counts on. */
  const updateLimits = Effect.gen(function*() {
    const name = choose.pick(names)
    const reference = live.get(name)?.reference
    if (reference === undefined) return
    const { budget, concurrent, period, requests, tokens } = reference.options.limits
    const limits = {
      concurrent: concurrent && choose.pick([1, 2, 3]),
      requests: requests && choose.pick([1, 2, 5]),
      tokens: tokens && choose.pick([400, 1000, 2000]),
      budget: budget && { ...budget, tokens: choose.pick([1000, 3000]) },
      period
    }
    trace.push(`update ${name} ${JSON.stringify(limits)}`)
    reference.options.limits = limits
    reference.shares.reset()
    yield* manager.updateRateLimiters(name, rateLimitersOf(limits))
  })

  const operation = Effect.gen(function*() {
    const kind = choose.int(0, 126)
    if (kind > 123) return yield* submitToGroup
    if (kind > 122) {
      const waiting = Array.from(groupFibers.values()).filter((fiber) => fiber.pollUnsafe() === undefined)
      return waiting.length === 0 ? undefined : yield* Fiber.interrupt(choose.pick(waiting))
    }
    if (kind >= 103) {
      const reference = live.get(choose.pick(names))?.reference
      if (reference === undefined) return
      const request = pickRequest()
      return kind < 106
        ? yield* cancelMany(reference)
        : kind > 116
        ? yield* estimateWait(reference)
        : kind > 112
        ? yield* resubmit(reference)
        : kind > 111
        ? yield* removeLetters(reference)
        : kind < 110
        ? yield* operate(reference)
        : request && (yield* changePriority(request))
    }
    if (kind >= 100) return yield* updateLimits
    if (kind < 38) return yield* submitOne
    if (kind < 68) {
      const millis = choose.pick([0, 1, choose.int(1, 500), choose.int(1, 5000), choose.int(1, 70_000)])
      trace.push(`adjust ${millis}`)
      return yield* TestClock.adjust(millis)
    }
    if (kind < 90) {
      const request = pickRequest()
      if (request === undefined) return
      const { name } = request.reference
      if (kind < 74) return yield* cancel(request)
      if (kind < 79) {
        const fiber = submitters.get(request)
        if (fiber === undefined) return
        trace.push(`interrupt the submitter of ${name}/${request.id}`)
        return yield* Fiber.interrupt(fiber)
      }
      if (kind < 84) {
        trace.push(`report ${name}/${request.id}`)
        return yield* report(request, { inputTokens: choose.int(0, 900), outputTokens: choose.int(0, 900) })
      }
      if (kind < 86) {
        const exit = yield* Effect.exit(
          manager.updateTokenUsage(name, request.id, { inputTokens: -1, outputTokens: Number.NaN })
        )
        const tag = tagOf(errorOf(exit))
        assert.isTrue(tag === "InvalidRequest" || tag === "RequestNotFound")
        return
      }
      trace.push(`await ${name}/${request.id}`)
      const fiber = yield* start(awaitEnd(request))
      waiters.push({ request, fiber })
      return
    }
    if (kind < 93) {
      const waiting = waiters.filter(({ fiber }) => fiber.pollUnsafe() === undefined)
      if (waiting.length === 0) return
      const { fiber, request } = choose.pick(waiting)
      trace.push(`interrupt a waiter of ${request.id}`)
      return yield* Fiber.interrupt(fiber)
    }
    if (kind < 95) {
      trace.push("release")
      const latch = release
      release = yield* Latch.make()
      return yield* latch.open
    }
    if (kind < 97) return yield* register(choose.pick(names))
    if (kind < 99) {
      const entry = live.get(choose.pick(names))
      if (entry === undefined) return
      const { reference, scope } = entry
      const closing = choose.chance(0.5) ? manager.unregisterQueue(reference.name) : Scope.close(scope, Exit.void)
      trace.push(`close ${reference.name}`)
      reference.closing = true
      const fiber = yield* start(Effect.ignore(closing))
      closings.push({ fiber, by: now() + 7001 })
      return
    }
    if (choose.chance(0.7)) return
    const deadline = choose.int(0, 10_000)
    const policy = choose.pick(["drain", "finishRunning", "interrupt"] as const)
    trace.push(`shutdownAll ${policy} ${deadline}`)
    const fiber = yield* start(shutdown({ policy, deadline }))
    closings.push({ fiber, by: now() + deadline + 1 })
  })

  for (const name of names) yield* register(name)
  yield* look
  for (let i = choose.int(10, mostOperations); i > 0; i--) {
    yield* operation
    yield* look
  }

  // Everything that can end does, without a shutdown: nothing hangs.
  trace.push("the end")
  yield* release.open
  for (const { reference } of live.values()) {
    reference.paused = reference.draining = false
    for (const drain of drains.values()) drain.resumed = true
    yield* manager.resumeQueue(reference.name)
  }
  yield* look
  for (let i = 0; i < 60; i++) {
    yield* TestClock.adjust("3 minutes")
    yield* look
    for (const { reference } of live.values()) {
      for (const request of reference.active) {
        if (request.plan.end === "never" && request.alive && request.waitsFor === undefined) yield* cancel(request)
      }
    }
    yield* look
    if (Array.from(live.values()).every(({ reference }) => reference.active.length === 0)) break
  }
  for (const [name, { reference }] of live) reference.checkIdle(yield* manager.getQueueInfo(name), now())
  yield* manager.shutdownAll({ policy: "drain" })
  yield* Scope.close(managerScope, Exit.void)
  for (const [request, fiber] of submitters) {
    if (fiber.pollUnsafe() === undefined) objection(`${request.id}: its submitter hangs at the end`)
  }
  for (const [group, fiber] of groupFibers) {
    if (fiber.pollUnsafe() === undefined) objection(`${group.asked.id}: the submitter to a group hangs at the end`)
  }
  for (const { fiber, request } of waiters) {
    if (fiber.pollUnsafe() === undefined) objection(`${request.id}: a waiter hangs at the end`)
  }
  return byId.size
})

describe("a manager under random operations", () => {
  it.effect(`keeps every rule in ${runs} sequences`, () =>
    Effect.gen(function*() {
      let submitted = 0
      for (let seed = firstSeed; seed < firstSeed + runs; seed++) {
        const trace: Array<string> = []
        // In a fiber of its own: one keeps the scheduler it began with, and the clock must see what its own wakes.
        const exit = yield* Effect.forkChild(sequence(seed, trace)).pipe(
          Effect.flatMap(Fiber.await),
          Effect.provide(TestClock.layer())
        )
        if (Exit.isFailure(exit)) {
          if (runs === 1) process.stdout.write(`${trace.join("\n")}\n`)
          const error = errorOf(exit)
          throw new Error(`SEED=${seed} RUNS=1 replays: ${error instanceof Error ? error.message : String(error)}`, {
            cause: error
          })
        }
        submitted += exit.value
      }
      assert.isAbove(submitted, runs)
    }), process.env["RUNS"] === undefined ? 120_000 : 24 * 3_600_000)
})
