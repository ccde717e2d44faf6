/**
 * Shared limits with many processes: what Redis has to do, how long they stand in line, and whether they take turns. The
 * processes are queue managers of this one, each with its own limiter, on one connection to a Redis of its own.
 *
 *     npm run bench:scale                     10, 100 and 1,000 processes, and lines of up to 200: some minutes
 *     npm run bench:scale -- --only REGEX     those whose name matches
 */
import { Context, Effect, Layer, Logger, Queue } from "effect"
import { ModelConfig, QueueManager, QueueRequest, RateLimiter } from "effect-llm-queue"
import * as QueueRedis from "effect-llm-queue/Redis"
import { Redis as EffectRedis } from "effect/persistence"
import { Redis } from "ioredis"
import { cpus } from "node:os"
import { performance } from "node:perf_hooks"
import { argv, exit, version } from "node:process"
import { parseArgs } from "node:util"
import { limit } from "../limit.ts"
import { jain } from "../redis/fleet/fleet.ts"
import { quantile } from "./cases.ts"
import { startRedis } from "./subjects.ts"

const { values } = parseArgs({ args: argv.slice(2), options: { only: { type: "string", default: "" } } })

/** When scripts were sent, and how long their answers took. */
interface Asked {
  readonly at: number
  readonly took: number
}

/** One connection for the commands of all, and one on which all listen. */
const connection = (url: string, asked: Array<Asked> = []) =>
  Layer.effect(
    EffectRedis.Redis,
    Effect.gen(function*() {
      const redis = Context.get(yield* Layer.build(QueueRedis.layerClient(url)), EffectRedis.Redis)
      const listeners = new Map<string, Queue.Queue<EffectRedis.RedisMessage, EffectRedis.RedisError>>()
      const subscriber = new Redis(url)
      yield* Effect.addFinalizer(() => Effect.sync(() => subscriber.disconnect()))
      subscriber.on("message", (channel: string, message: string) => {
        const queue = listeners.get(channel)
        if (queue !== undefined) Queue.offerUnsafe(queue, { channel, message })
      })
      return EffectRedis.Redis.of({
        ...redis,
        eval: (script) => (...params) =>
          Effect.suspend(() => {
            const at = performance.now()
            return Effect.tap(
              redis.eval(script)(...params),
              () => Effect.sync(() => asked.push({ at, took: performance.now() - at }))
            )
          }),
        subscribe: (channel) =>
          Effect.tap(Queue.unbounded<EffectRedis.RedisMessage, EffectRedis.RedisError>(), (queue) =>
            Effect.andThen(
              Effect.sync(() => listeners.set(channel, queue)),
              Effect.promise(() => subscriber.subscribe(channel))
            ))
      })
    })
  )

/** What the server has done since it was last asked. */
const spent = async (client: Redis) => {
  const commands = await client.info("commandstats")
  const cpu = await client.info("cpu")
  await client.config("RESETSTAT")
  const of = (name: string) => {
    const [, calls, usec] = new RegExp(`cmdstat_${name}:calls=(\\d+),usec=(\\d+)`).exec(commands) ?? []
    return { calls: Number(calls ?? 0), micros: Number(usec ?? 0) }
  }
  const cpuOf = (name: string) => Number(new RegExp(`used_cpu_${name}:([\\d.]+)`).exec(cpu)![1])
  return { script: of("evalsha"), nudges: of("publish"), cpu: cpuOf("user") + cpuOf("sys") }
}

const withRedis = async <A>(f: (url: string, client: Redis) => Promise<A>): Promise<A> => {
  const { stop, url } = await startRedis()
  const client = new Redis(url)
  try {
    return await f(url, client)
  } finally {
    client.disconnect()
    stop()
  }
}

const inTurn = async <A, B>(all: ReadonlyArray<A>, f: (each: A) => Promise<B>): Promise<ReadonlyArray<B>> => {
  const found: Array<B> = []
  for (const each of all) found.push(await f(each))
  return found
}

/** 10,000 requests a minute, and 200 at one time. */
const period = 6000
const requests = 1000
const windows = 5

/** The most in any stretch of so many milliseconds. */
const busiest = (starts: ReadonlyArray<number>, period: number): number => {
  let most = 0
  let from = 0
  for (const [index, at] of starts.entries()) {
    while (starts[from]! <= at - period) from++
    most = Math.max(most, index - from + 1)
  }
  return most
}

interface Fleet {
  readonly count: number
  readonly margin: number
}

const granted = async (client: Redis) => {
  const [key] = await client.keys("*:cell:rpm:*")
  return Number(await client.hget(key!, "n"))
}

const fleet = ({ count, margin }: Fleet) =>
  withRedis((url, client) =>
    Effect.runPromise(
      Effect.gen(function*() {
        const asked: Array<Asked> = []
        const redis = yield* Layer.build(connection(url, asked))
        const Model = ModelConfig.makeUntyped<number, null>("gpt", {
          rateLimiters: [RateLimiter.rpm(requests, { timePeriod: period }), RateLimiter.concurrent(200)],
          // There is always more than one that waits.
          capacity: 2,
          shutdown: { policy: "interrupt", deadline: 0 }
        })
        const starts: Array<Array<number>> = []
        let isGoing = false
        yield* Effect.forEach(Array.from({ length: count }), () =>
          Effect.gen(function*() {
            const mine: Array<number> = []
            starts.push(mine)
            const context = yield* Layer.build(
              Layer.fresh(QueueManager.layer.pipe(Layer.provide(Layer.fresh(QueueRedis.layer({ margin })))))
            ).pipe(Effect.provide(redis))
            const manager = Context.get(context, QueueManager.QueueManager)
            yield* manager.registerQueue(Model, () =>
              Effect.suspend(() => {
                mine.push(performance.now())
                return Effect.as(Effect.sleep(300), null)
              }))
            const submit = manager.submitRequest(QueueRequest.make(Model, { params: 0, waitForCompletion: false }))
            yield* Effect.forkScoped(Effect.andThen(
              Effect.whileLoop({ while: () => !isGoing, body: () => Effect.sleep(50), step: () => {} }),
              Effect.forever(submit)
            ))
          }), { concurrency: 20 })
        const cycle = period + margin
        const before = yield* Effect.promise(() => spent(client))
        const grantedBefore = yield* Effect.promise(() => granted(client))
        const loop = performance.eventLoopUtilization()
        const from = performance.now()
        isGoing = true
        // All that can be sent is what so many windows hold, if each of them is full soon after it opens.
        yield* Effect.sleep((windows - 0.5) * cycle)
        const to = performance.now()
        const { utilization } = performance.eventLoopUtilization(loop)
        const after = yield* Effect.promise(() => spent(client))
        const grants = (yield* Effect.promise(() => granted(client))) - grantedBefore
        const seconds = (to - from) / 1000
        const during = starts.map((mine) => mine.filter((at) => at >= from && at < to))
        const total = during.reduce((sum, mine) => sum + mine.length, 0)
        const gaps = starts.flatMap((mine) =>
          mine.flatMap((at, index) => index > 0 && at >= from && at < to ? [at - mine[index - 1]!] : [])
        )
        const fair = count / requests * cycle / 1000
        return {
          processes: count,
          margin,
          "scripts a second": Math.round(after.script.calls / seconds),
          "for each admission": (after.script.calls / total).toFixed(2),
          "nudges a second": Math.round(after.nudges.calls / seconds),
          "script, µs": (after.script.micros / after.script.calls).toFixed(0),
          "Redis, % of a core": ((after.cpu - before.cpu) / seconds * 100).toFixed(0),
          "of what can be used": `${(total / (windows * requests) * 100).toFixed(1)} %`,
          "most in a period": busiest(starts.flat().toSorted((a, b) => a - b), period),
          "Jain index": jain(during.map((mine) => mine.length)).toFixed(3),
          "turn, fair s": fair.toFixed(2),
          "p50": (quantile(gaps, 0.5) / 1000).toFixed(2),
          "p99": (quantile(gaps, 0.99) / 1000).toFixed(2),
          "granted too late": `${Math.max(0, (1 - total / grants) * 100).toFixed(1)} %`,
          "scripts in 100 ms, most": busiest(asked.map(({ at }) => at).filter((at) => at >= from), 100),
          "answer, p99 ms": quantile(asked.filter(({ at }) => at >= from).map(({ took }) => took), 0.99).toFixed(0),
          "this process, %": (utilization * 100).toFixed(0)
        }
      }).pipe(Effect.scoped, Effect.provide(Logger.layer([])))
    )
  )

/** What one call costs when so many processes stand in line, with a charge in every slice of the window. */
const line = (length: number, amount: number) =>
  withRedis((url, client) =>
    Effect.runPromise(
      Effect.gen(function*() {
        const margin = 100
        const redis = yield* Layer.build(connection(url))
        const slices = 1024
        const window = 60_000 + margin
        const width = window / slices
        const limiters = yield* Effect.forEach(Array.from({ length }), () =>
          Effect.gen(function*() {
            const context = yield* Layer.build(Layer.fresh(QueueRedis.layer({ margin }))).pipe(Effect.provide(redis))
            return yield* Context.get(context, RateLimiter.RateLimiter).make("gpt", [
              limit("tpm", slices, { timePeriod: 60_000 })
            ])
          }), { concurrency: 20 })
        const [time] = yield* Effect.promise(() => client.time())
        const now = Math.floor(Number(time) * 1000 / width)
        const [key] = yield* Effect.promise(() => client.keys("*:cell:*"))
        const fields: Array<string | number> = ["u", slices - 1, "f", now - slices + 2, "e", now]
        for (let k = now - slices + 2; k <= now; k++) fields.push(k, 1)
        yield* Effect.promise(() => client.hset(key!, ...fields))
        const cost = { inputTokens: amount, outputTokens: 0 }
        const round = Effect.forEach(limiters, (limiter) => limiter.admit(cost, false), {
          concurrency: "unbounded",
          discard: true
        })
        yield* round
        yield* Effect.promise(() => spent(client))
        const end = performance.now() + 800
        yield* Effect.whileLoop({ while: () => performance.now() < end, body: () => round, step: () => {} })
        const { script } = yield* Effect.promise(() => spent(client))
        return {
          "in line": length,
          "each wants": amount,
          "script, µs": (script.micros / script.calls).toFixed(0),
          "scripts a second, on one core": Math.round(1e6 / (script.micros / script.calls))
        }
      }).pipe(Effect.scoped, Effect.provide(Logger.layer([])))
    )
  )

const only = new RegExp(values.only)
const fleets = [
  { count: 10, margin: 100 },
  { count: 100, margin: 100 },
  { count: 300, margin: 100 },
  { count: 1000, margin: 100 },
  { count: 1000, margin: 1000 }
].filter(({ count, margin }) => only.test(`${count} processes, margin ${margin}`))
const lines = [1, 16, 64, 200].flatMap((length) => [1, 16].map((amount) => ({ length, amount })))
  .filter(({ length }) => only.test(`line of ${length}`))

console.log(`Node ${version}, ${cpus().length} × ${cpus()[0]?.model}`)
if (fleets.length > 0) {
  console.log(`${requests} requests in ${period} ms, 200 at one time, all processes always have more to send`)
  console.table(await inTurn(fleets, fleet))
}
if (lines.length > 0) {
  console.log("One script, with a charge in every slice of a window that is full")
  console.table(await inTurn(lines, ({ amount, length }) => line(length, amount)))
}
exit(0)
