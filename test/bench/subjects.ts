/**
 * What is compared. Each subject gets so many requests at once, waits until the last one has been processed, and says
 * how long that took: a backlog. `Shape` is what the processor does.
 */
import Bottleneck from "bottleneck"
import { Queue as BullQueue, Worker } from "bullmq"
import { Deferred, Effect, Layer, Queue, type Scope } from "effect"
import { ModelConfig, QueueManager, QueueRequest, RateLimiter } from "effect-llm-queue"
import { RateLimiter as EffectLimiter } from "effect/persistence"
import { RateLimiter as Limiter } from "limiter"
import { spawn, spawnSync } from "node:child_process"
import { mkdtempSync, rmSync } from "node:fs"
import { type AddressInfo, createServer } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import PQueue from "p-queue"

export interface Shape {
  readonly requests: number
  /** Whether the processor gives other fibers their turn; else it is done at once. */
  readonly yields: boolean
  /** How many priorities they have, by turns. */
  readonly priorities: number
}

export interface Subject {
  readonly name: string
  /** More would take minutes. */
  readonly most: number
  /** The same with priorities, if it knows any. */
  readonly mostByPriority?: number
  readonly run: (shape: Shape) => Promise<number>
}

const concurrency = 100
/** A limit that never binds. */
const unlimited = 1_000_000_000

const promise = (effect: Effect.Effect<number, unknown, Scope.Scope>): Promise<number> =>
  Effect.runPromise(Effect.scoped(effect))

/** Counts down to the end. */
const countdown = (requests: number) => {
  let left = requests
  let resolve: () => void
  const end = new Promise<void>((done) => (resolve = done))
  return { one: () => --left === 0 ? resolve() : undefined, end }
}

/** An intake queue drained with takeAll, and one fiber and one Deferred a request: what Effect costs for this shape. */
const floor = ({ requests, yields }: Shape) =>
  promise(Effect.gen(function*() {
    const intake = yield* Queue.unbounded<Deferred.Deferred<number>>()
    const last = yield* Deferred.make<void>()
    let left = requests
    const started = performance.now()
    yield* Effect.forkChild(Effect.forever(Effect.gen(function*() {
      for (const deferred of yield* Queue.takeAll(intake)) {
        yield* Effect.forkChild(
          Effect.flatMap(yields ? Effect.as(Effect.yieldNow, 1) : Effect.succeed(1), (value) => {
            Deferred.doneUnsafe(deferred, Effect.succeed(value))
            if (--left === 0) Deferred.doneUnsafe(last, Effect.void)
            return Effect.void
          })
        )
      }
    })))
    for (let i = 0; i < requests; i++) yield* Queue.offer(intake, Deferred.makeUnsafe<number>())
    yield* Deferred.await(last)
    return performance.now() - started
  }))

/** Requests and tokens a minute, requests a day and requests at one time, with usage settled and statuses kept. */
export const makeModel = (capacity: number, limits: { readonly rpm?: number; readonly concurrent?: number } = {}) =>
  ModelConfig.makeUntyped<number, ModelConfig.Usage>("bench", {
    rateLimiters: [
      RateLimiter.rpm(limits.rpm ?? unlimited),
      RateLimiter.tpm(unlimited),
      RateLimiter.rpd(unlimited),
      RateLimiter.concurrent(limits.concurrent ?? concurrency)
    ],
    capacity,
    usage: (result) => result
  })

export const estimates = { estimatedInputTokens: 10, estimatedOutputTokens: 10 } as const
export const request = { ...estimates, waitForCompletion: false } as const
export const usage = { inputTokens: 10, outputTokens: 5 }
export const Manager = Layer.fresh(QueueManager.layer)

export const ours = (
  { priorities, requests, yields }: Shape,
  manager: Layer.Layer<QueueManager.QueueManager> = Manager
) =>
  promise(
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const last = yield* Deferred.make<void>()
      const result = yields ? Effect.as(Effect.yieldNow, usage) : Effect.succeed(usage)
      let left = requests
      const Model = makeModel(requests)
      yield* manager.registerQueue(Model, () => {
        if (--left === 0) Deferred.doneUnsafe(last, Effect.void)
        return result
      })
      const started = performance.now()
      for (let i = 0; i < requests; i++) {
        yield* manager.submitRequest(QueueRequest.make(
          Model,
          priorities === 1 ? { ...request, params: i } : { ...request, params: i, priority: 60 * (i % priorities) }
        ))
      }
      yield* Deferred.await(last)
      return performance.now() - started
    }).pipe(Effect.provide(manager))
  )

/** A task as a library of promises wants it. */
const task = ({ yields }: Shape, one: () => void) =>
  yields
    ? async () => {
      await new Promise<void>((resolve) => void setImmediate(resolve))
      one()
    }
    // oxlint-disable-next-line typescript/require-await -- it is what these libraries are given
    : async () => one()

const pQueue = async (shape: Shape): Promise<number> => {
  const { priorities } = shape
  const queue = new PQueue({ concurrency, interval: 60_000, intervalCap: unlimited })
  const { end, one } = countdown(shape.requests)
  const run = task(shape, one)
  const started = performance.now()
  for (let i = 0; i < shape.requests; i++) void queue.add(run, priorities === 1 ? {} : { priority: i % priorities })
  await end
  return performance.now() - started
}

const bottleneck = async (shape: Shape): Promise<number> => {
  const limiter = new Bottleneck({ maxConcurrent: concurrency, reservoir: unlimited })
  const { end, one } = countdown(shape.requests)
  const run = task(shape, one)
  const started = performance.now()
  for (let i = 0; i < shape.requests; i++) void limiter.schedule({ weight: 1 }, run)
  await end
  const taken = performance.now() - started
  await limiter.disconnect()
  return taken
}

const limiter = async (shape: Shape): Promise<number> => {
  const limiter = new Limiter({ tokensPerInterval: unlimited, interval: "minute" })
  const { end, one } = countdown(shape.requests)
  const run = task(shape, one)
  const started = performance.now()
  for (let i = 0; i < shape.requests; i++) void limiter.removeTokens(1).then(run)
  await end
  return performance.now() - started
}

/** Three keys a request: requests a minute, tokens a minute, requests a day. */
const effectLimiter = ({ requests, yields }: Shape) =>
  promise(
    Effect.gen(function*() {
      const limiter = yield* EffectLimiter.RateLimiter
      const consume = (key: string, window: "1 minute" | "1 day", tokens: number) =>
        limiter.consume({ key, window, tokens, limit: unlimited, onExceeded: "delay", algorithm: "token-bucket" })
      const one = Effect.gen(function*() {
        yield* consume("rpm", "1 minute", 1)
        yield* consume("tpm", "1 minute", 20)
        yield* consume("rpd", "1 day", 1)
        if (yields) yield* Effect.yieldNow
      })
      const started = performance.now()
      yield* Effect.forEach(Array.from({ length: requests }), () => one, { concurrency, discard: true })
      return performance.now() - started
    }).pipe(
      Effect.provide(EffectLimiter.layer.pipe(Layer.provide(EffectLimiter.layerStoreMemory)))
    )
  )

/** A server of its own that writes nothing to the disk, if not told otherwise. */
export const startRedis = async (appends: "yes" | "no" = "no") => {
  const directory = mkdtempSync(join(tmpdir(), "llmq-bench-"))
  const port = await new Promise<number>((resolve) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const { port } = server.address() as AddressInfo
      server.close(() => resolve(port))
    })
  })
  const args = ["--bind", "127.0.0.1", "--port", `${port}`, "--save", "", "--appendonly", appends, "--dir", directory]
  const child = spawn("redis-server", args, { stdio: ["ignore", "pipe", "inherit"] })
  await new Promise<void>((resolve) =>
    child.stdout.on("data", (text: Buffer) => text.includes("Ready to accept connections") && resolve())
  )
  const stop = () => {
    child.kill("SIGKILL")
    rmSync(directory, { recursive: true, force: true })
  }
  return { port, url: `redis://127.0.0.1:${port}`, stop }
}

/** Jobs in Redis that survive a crash, done by a worker of the same process: what a durable queue costs. */
const bullmq = async (shape: Shape): Promise<number> => {
  const redis = await startRedis()
  const connection = { host: "127.0.0.1", port: redis.port }
  const { end, one } = countdown(shape.requests)
  const queue = new BullQueue("bench", { connection })
  const worker = new Worker("bench", task(shape, one), {
    connection,
    concurrency,
    removeOnComplete: { count: 1000 }
  })
  await worker.waitUntilReady()
  const started = performance.now()
  const add = (from: number) =>
    queue.addBulk(Array.from({ length: Math.min(1000, shape.requests - from) }, (_, index) => ({
      name: "request",
      data: from + index,
      ...(shape.priorities === 1 ? {} : { opts: { priority: 1 + (index % shape.priorities) } })
    })))
  for (let from = 0; from < shape.requests; from += 1000) await add(from)
  await end
  const taken = performance.now() - started
  await worker.close()
  await queue.close()
  redis.stop()
  return taken
}

/** Jobs that are in Redis already, taken and ended by one worker. */
export const bullmqBacklog = async (
  connection: { readonly host: string; readonly port: number },
  requests: number,
  concurrency: number
): Promise<number> => {
  const { end, one } = countdown(requests)
  const queue = new BullQueue("bench", { connection })
  for (let from = 0; from < requests; from += 100) {
    await Promise.all(
      Array.from({ length: 100 }, (_, index) =>
        queue.add("request", { params: "{}" }, {
          priority: 10,
          jobId: `r-${from + index}`,
          removeOnComplete: { count: 1000 }
        }))
    )
  }
  const started = performance.now()
  const worker = new Worker("bench", () => {
    one()
    return Promise.resolve({ status: "completed", result: "{}" })
  }, { connection, concurrency })
  await end
  const taken = performance.now() - started
  await worker.close()
  await queue.close()
  return taken
}

export const hasRedis = spawnSync("redis-server", ["--version"]).status === 0

export const subjects: ReadonlyArray<Subject> = [
  { name: "floor", most: 1_000_000, run: floor },
  { name: "ours", most: 1_000_000, mostByPriority: 1_000_000, run: (shape) => ours(shape) },
  { name: "p-queue", most: 1_000_000, mostByPriority: 100_000, run: pQueue },
  { name: "bottleneck", most: 10_000, run: bottleneck },
  { name: "limiter", most: 100_000, run: limiter },
  { name: "effect", most: 100_000, run: effectLimiter },
  ...(hasRedis ? [{ name: "bullmq", most: 10_000, mostByPriority: 10_000, run: bullmq }] : [])
]
