/** What is measured, apart from backlogs: each in a process of its own. */
import { NodeHttpServer } from "@effect/platform-node"
import { Deferred, Effect, Layer, Schema, type Scope, Stream, Tracer } from "effect"
import { ModelConfig, QueueManager, QueueRequest, RateLimiter } from "effect-llm-queue"
import * as QueueApi from "effect-llm-queue/Api"
import * as BullMq from "effect-llm-queue/BullMq"
import * as Metrics from "effect-llm-queue/Metrics"
import * as QueueRedis from "effect-llm-queue/Redis"
import { FetchHttpClient, HttpClient, HttpRouter, HttpServer } from "effect/http"
import { createServer } from "node:http"
import { cpuUsage, memoryUsage } from "node:process"
import { limit } from "../limit.ts"
import * as subjects from "./subjects.ts"

const unlimited = 1_000_000_000

/** One figure of one subject. */
export interface Figure {
  readonly subject: string
  readonly metric: string
  readonly unit: string
  readonly value: number
}

export interface Case {
  readonly name: string
  /** What is measured apart from each other: subjects, or the same one under different conditions. */
  readonly parts: ReadonlyArray<string>
  readonly run: (part: string) => Promise<ReadonlyArray<Figure>>
}

const promise = <A, E>(
  effect: Effect.Effect<A, E, Scope.Scope | QueueManager.QueueManager>,
  manager = subjects.Manager
): Promise<A> => Effect.runPromise(effect.pipe(Effect.scoped, Effect.provide(manager)))

export const quantile = (values: ReadonlyArray<number>, q: number): number =>
  values.toSorted((a, b) => a - b)[Math.min(values.length - 1, Math.floor(q * values.length))]!

const used = (): number => {
  globalThis.gc!()
  return memoryUsage().heapUsed
}

/** One request at a time, with the event loop at rest between them. */
const idle = (manager = subjects.Manager) =>
  promise(
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = subjects.makeModel(10)
      let begun = 0
      yield* manager.registerQueue(Model, () => {
        begun = performance.now()
        return Effect.succeed(subjects.usage)
      })
      const starts: Array<number> = []
      const ends: Array<number> = []
      for (let i = 0; i < 1500; i++) {
        yield* Effect.sleep(1)
        const asked = performance.now()
        yield* manager.submit(Model, i, subjects.estimates)
        const ended = performance.now()
        // The first ones meet code that is not compiled yet.
        if (i < 500) continue
        starts.push(begun - asked)
        ends.push(ended - asked)
      }
      return [starts, ends] as const
    }),
    manager
  )

const idleFigures = (subject: string, times: ReadonlyArray<readonly [string, ReadonlyArray<number>]>) =>
  times.flatMap(([what, values]) =>
    [0.5, 0.99].map((q): Figure => ({
      subject,
      metric: `submit to ${what}, p${q * 100}`,
      unit: "ms",
      value: quantile(values, q)
    }))
  )

/** Limits on a Redis of its own: a backlog, and one request at a time. */
const shared = async (part: string): Promise<ReadonlyArray<Figure>> => {
  const { stop, url } = await subjects.startRedis(part === "in memory" ? "no" : "yes")
  const manager = QueueManager.layer.pipe(
    Layer.fresh,
    Layer.provide(QueueRedis.layer()),
    Layer.provide(QueueRedis.layerClient(url))
  )
  const shape = { requests: 20_000, priorities: 1, yields: false }
  const millis = await subjects.ours(shape, manager)
  const [starts] = await idle(manager)
  stop()
  return [
    { subject: part, metric: "throughput", unit: "requests/s", value: shape.requests / millis * 1000 },
    ...idleFigures(part, [["start", starts]])
  ]
}

const Stored = ModelConfig.make("stored", {
  params: Schema.Struct({}),
  result: Schema.Struct({}),
  rateLimiters: [RateLimiter.concurrent(64)],
  retention: { count: 1000 },
  capacity: 100_000
})

const storedRequests = 10_000

/** What is stored, taken and ended of a backlog, and one request at a time; beside BullMQ with jobs of the same size. */
const stored = async (part: string): Promise<ReadonlyArray<Figure>> => {
  const { port, stop } = await subjects.startRedis()
  const connection = { host: "127.0.0.1", port }
  const figure = (millis: number): Figure => ({
    subject: part,
    metric: "taken from a backlog and ended",
    unit: "requests/s",
    value: storedRequests / millis * 1000
  })
  if (part === "bullmq") {
    const millis = await subjects.bullmqBacklog(connection, storedRequests, 64)
    stop()
    return [figure(millis)]
  }
  const [millis, starts] = await promise(
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      for (let from = 0; from < storedRequests; from += 100) {
        yield* Effect.forEach(
          Array.from({ length: 100 }),
          () => manager.submitRequest(QueueRequest.make(Stored, { params: {}, waitForCompletion: false })),
          { concurrency: "unbounded", discard: true }
        )
      }
      let left = storedRequests
      let begun = 0
      const last = yield* Deferred.make<void>()
      const started = performance.now()
      yield* manager.registerQueue(Stored, () =>
        Effect.suspend(() => {
          begun = performance.now()
          return Effect.as(--left === 0 ? Deferred.succeed(last, undefined) : Effect.void, {})
        }))
      yield* Deferred.await(last)
      const millis = performance.now() - started
      yield* Effect.sleep(500)
      const starts: Array<number> = []
      for (let i = 0; i < 300; i++) {
        yield* Effect.sleep(10)
        const asked = performance.now()
        yield* manager.submit(Stored, {})
        if (i >= 50) starts.push(begun - asked)
      }
      return [millis, starts] as const
    }),
    Layer.fresh(BullMq.layer({ connection }))
  )
  stop()
  return [figure(millis), ...idleFigures(part, [["start", starts]])]
}

/** How late a request is admitted after the instant that the limiter named, beside a bare timer in the same process. */
const wakeUp = () => {
  const named: Array<number> = []
  const late: Array<number> = []
  const period = 15
  const count = 150
  const Limiter = Effect.map(RateLimiter.RateLimiter, (limiters) => ({
    make: (...args: Parameters<typeof limiters.make>) =>
      Effect.map(limiters.make(...args), (limiter): RateLimiter.Limiter => ({
        ...limiter,
        admit: (...args) =>
          Effect.suspend(() => {
            // Before the limiter reads the time: what it names is not earlier than this says.
            const before = performance.now()
            return Effect.map(limiter.admit(...args), (admission) => {
              if (admission._tag === "Blocked") named.push(before + admission.wait)
              else if (named.length > 0) late.push(performance.now() - named.splice(0).at(-1)!)
              return admission
            })
          })
      }))
  }))
  return Effect.runPromise(
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<number, string>("wake-up", {
        rateLimiters: [RateLimiter.rpm(1, { timePeriod: period })],
        capacity: count
      })
      const last = yield* Deferred.make<void>()
      let left = count
      yield* manager.registerQueue(Model, () => {
        if (--left === 0) Deferred.doneUnsafe(last, Effect.void)
        return Effect.succeed("")
      })
      for (let i = 0; i < count; i++) {
        yield* manager.submitRequest(QueueRequest.make(Model, { params: i, waitForCompletion: false }))
      }
      yield* Deferred.await(last)
      const timers: Array<number> = []
      for (let i = 0; i < count; i++) {
        const due = performance.now() + period
        yield* Effect.callback<void>((resume) => void setTimeout(() => resume(Effect.void), period))
        timers.push(performance.now() - due)
      }
      return [late, timers] as const
    }).pipe(
      Effect.scoped,
      Effect.provide(subjects.Manager),
      Effect.provideServiceEffect(RateLimiter.RateLimiter, Limiter)
    )
  )
}

/** With what the dashboard keeps, served, and somebody who looks. */
const looked = (manager: Layer.Layer<QueueManager.QueueManager>) =>
  Layer.effectDiscard(Effect.gen(function*() {
    const url = yield* HttpServer.addressFormattedWith((url) => Effect.succeed(url))
    const begun = yield* Deferred.make<void>()
    yield* HttpClient.get(`${url}/llm-queue/live`).pipe(
      Effect.flatMap((response) => Stream.runForEach(response.stream, () => Deferred.succeed(begun, undefined))),
      Effect.forkScoped
    )
    yield* Deferred.await(begun)
  })).pipe(
    Layer.provide(HttpRouter.serve(QueueApi.layer(), { disableLogger: true, disableListenLog: true })),
    Layer.provide([
      FetchHttpClient.layer,
      Layer.orDie(NodeHttpServer.layer(createServer, { host: "127.0.0.1", port: 0 }))
    ]),
    Layer.provideMerge(manager)
  )

/** A tracer that keeps nothing: what its exporter costs is its own. */
const spans = Layer.succeed(Tracer.Tracer, Tracer.make({ span: (options) => new Tracer.NativeSpan(options) }))

const manyModels = () =>
  promise(
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const count = 1000
      const last = yield* Deferred.make<void>()
      let left = count
      const started = performance.now()
      for (let i = 0; i < count; i++) {
        const Model = ModelConfig.makeUntyped<number, string>(`model-${i}`, {
          rateLimiters: [RateLimiter.rpm(60), RateLimiter.concurrent(1)]
        })
        yield* manager.registerQueue(Model, () => {
          if (--left === 0) Deferred.doneUnsafe(last, Effect.void)
          return Effect.succeed("")
        })
        yield* manager.submitRequest(QueueRequest.make(Model, { params: i, waitForCompletion: false }))
      }
      yield* Deferred.await(last)
      return performance.now() - started
    })
  )

/** What a request costs in memory while it waits for a limit: fire-and-forget, or with a fiber that awaits it. */
const queued = (waits: boolean) =>
  Effect.gen(function*() {
    const manager = yield* QueueManager.QueueManager
    const count = 50_000
    const Model = ModelConfig.makeUntyped<number, ModelConfig.Usage>("heap", {
      rateLimiters: [RateLimiter.rpm(1, { timePeriod: "1 hour" })],
      capacity: count + 1,
      shutdown: { policy: "interrupt", deadline: 0 }
    })
    yield* manager.registerQueue(Model, () => Effect.succeed(subjects.usage))
    yield* manager.submit(Model, 0)
    const before = used()
    for (let i = 0; i < count; i++) {
      if (waits) yield* Effect.forkChild(manager.submit(Model, i, subjects.estimates), { startImmediately: true })
      else yield* manager.submitRequest(QueueRequest.make(Model, { ...subjects.request, params: i }))
    }
    yield* Effect.sleep(10)
    return (used() - before) / count
  }).pipe(promise)

/** A fiber that awaits a Deferred. */
const waitingFiber = () =>
  promise(
    Effect.gen(function*() {
      const count = 50_000
      const before = used()
      const deferreds: Array<Deferred.Deferred<number>> = []
      for (let i = 0; i < count; i++) {
        const deferred = Deferred.makeUnsafe<number>()
        deferreds.push(deferred)
        yield* Effect.forkChild(Deferred.await(deferred), { startImmediately: true })
      }
      yield* Effect.sleep(10)
      const each = (used() - before) / count
      for (const deferred of deferreds) Deferred.doneUnsafe(deferred, Effect.succeed(1))
      return each
    })
  )

/** What a million requests leave behind. */
const retention = () =>
  promise(
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = subjects.makeModel(10_000)
      yield* manager.registerQueue(Model, () => Effect.succeed(subjects.usage))
      const some = (count: number) =>
        Effect.gen(function*() {
          for (let i = 0; i < count; i++) {
            yield* manager.submitRequest(QueueRequest.make(Model, { ...subjects.request, params: i }))
          }
          yield* manager.drainQueue(Model)
          yield* manager.resumeQueue(Model)
        })
      yield* some(100_000)
      const before = used()
      yield* some(1_000_000)
      return used() - before
    })
  )

/** An admission, with so many charges in the windows. */
const admission = (content: number) =>
  Effect.gen(function*() {
    const { make } = yield* RateLimiter.RateLimiter
    const limiter = yield* make("bench", [
      limit("rpm", unlimited, { timePeriod: 3_600_000 }),
      limit("tpm", unlimited, { timePeriod: 3_600_000 }),
      limit("rpd", unlimited, { timePeriod: 86_400_000 })
    ])
    const cost = { inputTokens: 10, outputTokens: 10 }
    const admit = Effect.forEach(Array.from({ length: 1000 }), () => limiter.admit(cost, false), { discard: true })
    for (let i = 0; i < Math.max(20, content / 1000); i++) yield* admit
    const started = performance.now()
    for (let i = 0; i < 50; i++) yield* admit
    return (performance.now() - started) / 50_000 * 1000
  }).pipe(promise)

/** Requests that come one by one, two thousand a second. */
const steady = () =>
  promise(
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = subjects.makeModel(10_000)
      yield* manager.registerQueue(Model, () => Effect.succeed(subjects.usage))
      const before = cpuUsage()
      for (let i = 0; i < 4000; i++) {
        yield* manager.submitRequest(QueueRequest.make(Model, { ...subjects.request, params: i }))
        if (i % 2 === 1) yield* Effect.sleep(1)
      }
      const { system, user } = cpuUsage(before)
      return (system + user) / 4000
    })
  )

export const cases: ReadonlyArray<Case> = [
  {
    name: "idle",
    parts: ["ours"],
    run: async (subject) => {
      const [starts, ends] = await idle()
      return idleFigures(subject, [["start", starts], ["result", ends]])
    }
  },
  ...(subjects.hasRedis ? [{ name: "shared", parts: ["in memory", "appended to a file"], run: shared }] : []),
  ...(subjects.hasRedis ? [{ name: "stored", parts: ["ours", "bullmq"], run: stored }] : []),
  {
    name: "wake-up",
    parts: ["ours"],
    run: async () => {
      const [late, timers] = await wakeUp()
      return [
        { subject: "ours", metric: "late, least", unit: "ms", value: Math.min(...late) },
        { subject: "ours", metric: "late, p99", unit: "ms", value: quantile(late, 0.99) },
        { subject: "setTimeout", metric: "late, p99", unit: "ms", value: quantile(timers, 0.99) }
      ]
    }
  },
  {
    name: "steady flow, 2,000 a second",
    parts: ["ours"],
    run: async (subject) => [{ subject, metric: "CPU for each", unit: "µs", value: await steady() }]
  },
  {
    name: "1,000 models with one request each",
    parts: ["ours"],
    run: async (subject) => [{ subject, metric: "all", unit: "ms", value: await manyModels() }]
  },
  {
    name: "heap for a queued request",
    parts: ["fire-and-forget", "waiting", "floor"],
    run: async (part) => [
      part === "floor"
        ? { subject: "floor", metric: "waiting", unit: "bytes", value: await waitingFiber() }
        : { subject: "ours", metric: part, unit: "bytes", value: await queued(part === "waiting") }
    ]
  },
  {
    name: "observed",
    parts: ["nothing", "metrics", "metrics and dashboard", "metrics, dashboard and spans"],
    run: async (part) => {
      const shape = { requests: 300_000, priorities: 1, yields: false }
      const metrics = QueueManager.layer.pipe(Layer.provide(Metrics.layer({ priorities: true })), Layer.fresh)
      const millis = await (part === "nothing"
        ? subjects.ours(shape)
        : subjects.ours(
          shape,
          part === "metrics"
            ? metrics
            : part === "metrics and dashboard"
            ? looked(metrics)
            : Layer.merge(looked(metrics), spans)
        ))
      return [{ subject: "ours", metric: part, unit: "requests/s", value: shape.requests / millis * 1000 }]
    }
  },
  {
    name: "1,000,000 requests through retention",
    parts: ["ours"],
    run: async (subject) => [{ subject, metric: "heap left", unit: "bytes", value: await retention() }]
  },
  {
    name: "admission",
    parts: ["1", "1,000", "100,000", "1,000,000"],
    run: async (content) => [{
      subject: "ours",
      metric: `with ${content} charges in each window`,
      unit: "µs",
      value: await admission(Number(content.replaceAll(",", "")))
    }]
  }
]
