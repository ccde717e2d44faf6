/**
 * Limits that several processes share, counted on a Redis server.
 *
 * `effect/persistence` is unstable: a minor version of Effect may need a new version of this module. It needs
 * `ioredis`, or any other `Redis` service of Effect.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redis from "effect/persistence/Redis"
import * as Queue from "effect/Queue"
import * as Random from "effect/Random"
import * as Schedule from "effect/Schedule"
import { type Cluster, Redis as Client, type RedisOptions } from "ioredis"
import * as client from "./internal/redis/client.ts"
import * as limiter from "./internal/redis/limiter.ts"
import * as settings from "./internal/settings.ts"
import * as RateLimiter from "./RateLimiter.ts"

/**
 * Options of shared limits.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /** What all keys begin with: processes share the limits of a model if they have the same prefix. Default `llmq`. */
  readonly prefix?: string | undefined
  /**
   * How long what a process holds stays taken when it has died: the permits of a concurrency limit, and reservations that
   * have no date yet. It tells that it is there three times in it. Default 30 seconds.
   */
  readonly lease?: Duration.Input | undefined
  /**
   * The time between an admission on the server and its dispatch here that is taken for nothing: it is added to every
   * window. What comes later counts from when it comes. Default 100 milliseconds.
   */
  readonly margin?: Duration.Input | undefined
  /** How long a command may take before the server is taken to be away. Default 2 seconds. */
  readonly commandTimeout?: Duration.Input | undefined
  /**
   * What becomes of requests while the server cannot be reached: they `"wait"` until it can, or their timeout ends (the
   * default), they `"fail"` with `QueueUnavailable`, or the process goes on with its `"share"`: an equal part of each limit
   * for each process that was there, after a window in which nothing goes. That is safe while the server is away for all; a
   * process that is cut off from it alone has its share on top of what the others use.
   */
  readonly whenAway?: "wait" | "fail" | "share" | undefined
  /**
   * What becomes of a registration whose limits are not those that other processes have for the model: it fails with
   * `LimitConflict` (the default), or its limits `"replace"` the others', in all processes.
   */
  readonly onConflict?: "fail" | "replace" | undefined
}

const millis = (value: Duration.Input | undefined, otherwise: number): number =>
  value === undefined ? otherwise : Duration.toMillis(Duration.fromInputUnsafe(value))

/** Options with every default, and what is wrong with them. */
const resolve = (options: Options): limiter.Options => {
  const problems: Array<string> = []
  const oneOf = <A extends string>(name: string, value: unknown, all: readonly [A, ...Array<A>]): A => {
    const found = value === undefined ? all[0] : all.find((each) => each === value)
    if (found !== undefined) return found
    problems.push(`${name}: expected ${all.map((each) => `"${each}"`).join(" or ")}, got ${settings.show(value)}`)
    return all[0]
  }
  const prefix = options.prefix ?? "llmq"
  const problem = settings.checkId(prefix)
  if (problem !== undefined) problems.push(`prefix: ${problem}`)
  return {
    prefix,
    lease: Math.ceil(settings.span("lease", options.lease, 30_000, 100, problems)),
    margin: settings.span("margin", options.margin, 100, 0, problems),
    commandTimeout: settings.span("commandTimeout", options.commandTimeout, 2000, 1, problems),
    whenAway: oneOf("whenAway", options.whenAway, ["wait", "fail", "share"]),
    onConflict: oneOf("onConflict", options.onConflict, ["fail", "replace"]),
    problems
  }
}

/**
 * Shares the limits of all models with every process that does the same on the same server: provide it to
 * `QueueManager.layer`.
 *
 * **Details**
 *
 * - What all processes together send is within every limit, on the server's clock: requests and tokens in sliding windows,
 *   buckets, windows of the calendar, budgets, and what runs at one time, those of tenants included. Each process asks for
 *   several requests at a time, and is told when the next one fits. Where they wait for the same limit they take turns, and
 *   nobody polls but for once a second, to be sure.
 * - Registration fails with `QueueUnavailable` when the server does not answer within `commandTimeout`. Later it may come
 *   and go: what runs goes on, and what it used is told when the server is back.
 * - `updateRateLimiters` and `changeLimit` hold for all processes.
 * - What a provider says in headers and refusals is learned by the process that hears it: pauses, lower limits and what
 *   strangers use are everybody's.
 *
 * **Gotchas**
 *
 * - A sliding window has 1,024 slices: something fits up to a 1,024th of the period later than it could.
 * - Small requests do not pass a blocked one (`bypass`), and nothing can be guaranteed to tenants.
 * - A limit whose period or algorithm changes begins empty. A new number of the same limit does not.
 * - A bucket with `coldStart` fills with time: what the provider says of it is only taken when it is less.
 * - The server has to keep what it is told: `maxmemory-policy noeviction`. When it has lost all the same (`FLUSHALL`, a
 *   restart without persistence), the processes tell what they have sent, and nothing is sent for a few seconds.
 *
 * **Example** (Several processes with one key)
 *
 * ```ts
 * import { Layer } from "effect"
 * import { QueueManager } from "effect-llm-queue"
 * import * as QueueRedis from "effect-llm-queue/Redis"
 *
 * const ManagerLive = QueueManager.layer.pipe(
 *   Layer.provide(QueueRedis.layer()),
 *   Layer.provide(QueueRedis.layerClient("redis://127.0.0.1:6379"))
 * )
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: Options = {}): Layer.Layer<never, never, Redis.Redis> =>
  Layer.effectContext(Effect.gen(function*() {
    const redis = yield* Redis.Redis
    const id = Math.floor((yield* Random.next) * 2 ** 53).toString(36) +
      Math.floor((yield* Random.next) * 2 ** 53).toString(36)
    const resolved = resolve(options)
    const listeners = new Map<string, () => void>()
    const process: limiter.Process = {
      id,
      redis,
      channel: `${resolved.prefix}:call:`,
      options: resolved,
      listen: (limiter, f) =>
        Effect.acquireRelease(
          Effect.sync(() => void listeners.set(limiter, f)),
          () => Effect.sync(() => void listeners.delete(limiter))
        )
    }
    const listen = Effect.scoped(Effect.flatMap(
      redis.subscribe(`${process.channel}${id}`),
      (messages) =>
        Effect.forever(Effect.map(Queue.take(messages), ({ message }) => {
          listeners.get(message)?.()
        }))
    ))
    // Without it everybody is told a second later.
    yield* Effect.forkScoped(Effect.retry(listen, Schedule.spaced("1 second")))
    return Context.make(RateLimiter.RateLimiter, {
      make: (modelId, limits, tenants) => limiter.make(process, modelId, limits, tenants)
    })
  }))

/**
 * Options of a connection.
 *
 * @category models
 * @since 0.1.0
 */
export interface ClientOptions {
  /** As in `Options`. Default 2 seconds. */
  readonly commandTimeout?: Duration.Input | undefined
}

/**
 * Where the server is, and who one is there, as `ioredis` has it.
 *
 * @category models
 * @since 0.1.0
 */
export type ConnectionOptions = Omit<RedisOptions, "replyMapping">

/**
 * Effect's Redis service on `ioredis`, for a server that may come and go: it connects again for ever, gives up a connection
 * that has gone silent, keeps no commands for later, and closes at once.
 *
 * **Details**
 *
 * With an address or options of ioredis. A function makes clients of one's own, such as those of a cluster: one for
 * commands and one to listen, which the layer closes.
 *
 * **Example** (A server with a password, and a cluster)
 *
 * ```ts
 * import * as QueueRedis from "effect-llm-queue/Redis"
 * import { Cluster } from "ioredis"
 *
 * const One = QueueRedis.layerClient({ host: "127.0.0.1", password: "secret" })
 * const Many = QueueRedis.layerClient(() => new Cluster([{ host: "127.0.0.1", port: 7000 }]))
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layerClient = (
  connection: string | ConnectionOptions | (() => Client | Cluster),
  options: ClientOptions = {}
): Layer.Layer<Redis.Redis> => {
  const commandTimeout = millis(options.commandTimeout, 2000)
  return Layer.effect(
    Redis.Redis,
    Effect.flatMap(Random.Random, (random) => {
      const settings = (given: ConnectionOptions) =>
        client.options(given, { commandTimeout, random: () => random.nextDoubleUnsafe() })
      return client.make(
        typeof connection === "function"
          ? connection
          : typeof connection === "string"
          ? () => new Client(connection, settings({}))
          : () => new Client(settings(connection)),
        commandTimeout
      )
    })
  )
}
