/**
 * Requests that outlive their process: the same `QueueManager`, with its requests stored by BullMQ, on Redis or PostgreSQL.
 *
 * @since 0.1.0
 */
import type { ConnectionOptions, createPostgresBackend, PostgresConnectionOptions } from "bullmq"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Random from "effect/Random"
import { patience } from "./internal/bullmq/engine.ts"
import * as manager from "./internal/bullmq/manager.ts"
import * as settings from "./internal/settings.ts"
import * as QueueManager from "./QueueManager.ts"

/**
 * What is done to parameters, results and errors before they are stored, and after they are read: encryption, for instance.
 *
 * @category models
 * @since 0.1.0
 */
export interface Codec {
  readonly encode: (text: string) => Effect.Effect<string>
  /** Fails with what is wrong. */
  readonly decode: (text: string) => Effect.Effect<string, string>
}

/**
 * Options of stored queues.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /**
   * Where the store is, as BullMQ has it: options of ioredis, or with a `backend` those of `pg`, where `migrate: true` makes
   * what is missing. Default a Redis on 127.0.0.1:6379.
   */
  readonly connection?: ConnectionOptions | PostgresConnectionOptions | undefined
  /** BullMQ's `createPostgresBackend`, for PostgreSQL. Default Redis. */
  readonly backend?: typeof createPostgresBackend | undefined
  /** What all keys begin with. Default `llmq-jobs`. */
  readonly prefix?: string | undefined
  /**
   * Requests of a model that a process takes from the store and has waiting, or being processed, at one time: what is taken
   * waits for its limits here, and a request of a higher priority that comes later waits behind it. Default 64.
   */
  readonly takeAhead?: number | undefined
  /** After how long what a process held is given to another one, if it has not said that it is there. Default 30 seconds. */
  readonly lock?: Duration.Input | undefined
  /** With how many deaths of processes that held it a request fails. Default 3. */
  readonly maxCrashes?: number | undefined
  /** How long the store may take to answer. Default 2 seconds. */
  readonly commandTimeout?: Duration.Input | undefined
  readonly codec?: Codec | undefined
  /** Of the queue in memory in which what is taken waits. */
  readonly manager?: QueueManager.Options | undefined
}

const resolve = (options: Options) => {
  const problems: Array<string> = []
  const { codec, prefix = "llmq-jobs" } = options
  const problem = settings.checkId(prefix)
  if (problem !== undefined) problems.push(`prefix: ${problem}`)
  if (codec !== undefined && (typeof codec.encode !== "function" || typeof codec.decode !== "function")) {
    problems.push("codec: expected { encode, decode }")
  }
  return {
    lock: settings.span("lock", options.lock, 30_000, 100, problems),
    commandTimeout: settings.span("commandTimeout", options.commandTimeout, 2000, 1, problems),
    takeAhead: settings.whole("takeAhead", options.takeAhead, 64, problems),
    maxCrashes: settings.whole("maxCrashes", options.maxCrashes, 3, problems),
    prefix,
    codec,
    problems
  }
}

/**
 * A queue manager whose requests are stored.
 *
 * **Details**
 *
 * - Any process can submit to a model, wait for an end, and ask for a status; those that have registered it process its
 *   requests. A submitter that dies loses nothing: the result can be asked for by the request's id, as long as the model's
 *   `retention` says.
 * - Each request is processed at least once: again, when a process dies over it, at most `maxCrashes` times. Its id is the
 *   same each time, and is what a provider's idempotency key can be made of.
 * - What a process has taken waits there for the limits, and its lock is renewed. Provide `effect-llm-queue/Redis` so that
 *   processes share them. One whose lock is lost is interrupted, and what comes of it is not stored.
 * - Closing the scope gives back what has not begun, and waits for what runs, as the model's `shutdown` says.
 * - Parameters and results are written by the model's schemas, and errors too, by what they are declared to be; of other
 *   failures only their names are stored.
 *
 * **Gotchas**
 *
 * - Models without schemas, and streams, are refused.
 * - `submitRequest` is answered when the request is stored. A queue is full when the store says so, as of a tenth of a second
 *   ago, so processes that submit together may go beyond its capacity.
 * - Requests whose submission times less head starts are within ten seconds of each other go in the order in which they were
 *   stored.
 * - `dedupeKey` is refused: give equal requests the same id.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: Options = {}): Layer.Layer<QueueManager.QueueManager> => {
  const { commandTimeout, prefix, ...resolved } = resolve(options)
  const connection = options.connection ?? { host: "127.0.0.1", port: 6379 }
  const isRedis = options.backend === undefined && typeof connection === "object" && !("duplicate" in connection)
  return Layer.effect(
    QueueManager.QueueManager,
    Effect.flatMap(Random.Random, (random) => {
      const { asked, waiting } = patience(commandTimeout, () => random.nextDoubleUnsafe())
      return manager.make({
        ...resolved,
        store: {
          prefix,
          commandTimeout,
          // What is asked for while the server is away fails, instead of being done when nobody waits for it any more.
          asked: isRedis
            ? { ...asked, ...connection, enableOfflineQueue: false, maxRetriesPerRequest: 1 }
            : connection,
          waiting: isRedis ? { ...waiting, ...connection, maxRetriesPerRequest: null } : connection,
          backend: options.backend
        }
      }, options.manager ?? {})
    })
  )
}
