/**
 * What is used of BullMQ. Its own types are made for its own generics; here they say what this library stores.
 */
import {
  type ConnectionOptions,
  type createPostgresBackend,
  type PostgresConnectionOptions,
  Queue,
  QueueEvents,
  Worker
} from "bullmq"
import { pause } from "../redis/client.ts"
import type { StoredEnd, StoredRequest } from "./stored.ts"

export interface StoredJob {
  readonly id: string
  /** Of which submission it is: there may have been another job with its id before. */
  readonly name: string
  readonly data: StoredRequest
  /** Milliseconds since 1970, by the clock of the process that did it. */
  readonly finishedOn?: number | null | undefined
  readonly processedOn?: number | null | undefined
  readonly failedReason?: string | null | undefined
  readonly progress?: unknown
  readonly returnvalue: unknown
  readonly updateData: (data: StoredRequest) => Promise<void>
  readonly changePriority: (options: { readonly priority: number }) => Promise<void>
  readonly moveToWait: (token: string) => Promise<number>
  readonly remove: () => Promise<void>
}

export type State = "active" | "prioritized" | "waiting" | "failed" | "completed" | "delayed" | "paused"

export interface JobQueue {
  readonly add: (
    name: string,
    data: StoredRequest,
    options: {
      readonly jobId: string
      readonly priority: number
      readonly attempts: number
      readonly removeOnComplete: Kept
      readonly removeOnFail: Kept
    }
  ) => Promise<StoredJob>
  readonly getJob: (jobId: string) => Promise<StoredJob | undefined>
  readonly getJobs: (states: ReadonlyArray<State>, start: number, end: number, ascending: boolean) => Promise<
    ReadonlyArray<StoredJob | undefined>
  >
  readonly getJobState: (jobId: string) => Promise<State | "unknown" | "waiting-children">
  readonly getJobCounts: (...states: ReadonlyArray<State>) => Promise<Partial<Record<State, number>>>
  readonly isPaused: () => Promise<boolean>
  readonly pause: () => Promise<void>
  readonly resume: () => Promise<void>
  readonly toKey: (type: string) => string
  readonly keys: { readonly events: string }
  readonly backend: {
    readonly changePriority: (jobId: string, priority: number) => Promise<void>
    /** Of Redis. */
    readonly client?: Promise<{
      readonly defineCommand: (
        name: string,
        definition: { readonly numberOfKeys: number; readonly lua: string }
      ) => void
      readonly runCommand: (name: string, args: ReadonlyArray<string>) => Promise<unknown>
    }>
    /** Of PostgreSQL. */
    readonly query?: (text: string, values: ReadonlyArray<unknown>) => Promise<{
      readonly rows: ReadonlyArray<Readonly<Record<string, unknown>>>
    }>
  }
  readonly waitUntilReady: () => Promise<unknown>
  readonly close: () => Promise<void>
  readonly disconnect: () => Promise<void>
  readonly on: (event: "error", f: (error: Error) => void) => unknown
}

/** How many ended jobs are kept, and for how many seconds. */
export interface Kept {
  readonly age?: number | undefined
  readonly count: number
}

export interface JobEvents {
  readonly on: {
    (event: "completed", f: (args: { readonly jobId: string; readonly returnvalue: unknown }) => void): unknown
    (event: "failed", f: (args: { readonly jobId: string; readonly failedReason: string }) => void): unknown
    (event: "progress", f: (args: { readonly jobId: string; readonly data: unknown }) => void): unknown
    (event: "paused" | "resumed", f: () => void): unknown
    (event: "error", f: (error: Error) => void): unknown
  }
  readonly waitUntilReady: () => Promise<unknown>
  readonly close: () => Promise<void>
  readonly disconnect: () => Promise<void>
}

export interface JobWorker {
  readonly on: {
    (event: "lockRenewalFailed", f: (jobIds: ReadonlyArray<string>) => void): unknown
    (event: "error", f: (error: Error) => void): unknown
  }
  readonly waitUntilReady: () => Promise<unknown>
  readonly pause: (doNotWaitActive: boolean) => Promise<void>
  readonly close: () => Promise<void>
  readonly disconnect: () => Promise<void>
  readonly lockManager: { readonly close: () => Promise<void> }
  readonly backend: {
    readonly client?: Promise<{ readonly disconnect: () => void }>
    readonly blockingClient?: Promise<{ readonly disconnect: () => void }>
    readonly close: (force: boolean) => Promise<void>
  }
}

/** Where the jobs are. */
export interface Store {
  readonly prefix: string
  readonly commandTimeout: number
  /** Of clients that are asked, and of those that wait for something to come. */
  readonly asked: ConnectionOptions | PostgresConnectionOptions
  readonly waiting: ConnectionOptions | PostgresConnectionOptions
  readonly backend: typeof createPostgresBackend | undefined
}

const runLua = (
  { backend }: JobQueue,
  name: string,
  lua: string,
  keys: ReadonlyArray<string>,
  args: ReadonlyArray<string>
): Promise<unknown> =>
  backend.client!.then((client) => {
    client.defineCommand(name, { numberOfKeys: keys.length, lua })
    return client.runCommand(name, [...keys, ...args])
  })

/** Milliseconds since 1970 by the server's clock. */
export const timeOf = (queue: JobQueue): Promise<number> =>
  queue.backend.query === undefined
    ? runLua(queue, "llmqTime", "return redis.call('TIME')", [], []).then((time) => {
      // What the server says to that command.
      const [seconds, micros] = time as readonly [string, string]
      return Number(seconds) * 1000 + Number(micros) / 1000
    })
    : queue.backend.query("SELECT extract(epoch FROM clock_timestamp()) * 1000 AS now", [])
      .then(({ rows }) => Number(rows[0]!["now"]))

const cancelLua = `
local job = redis.call('HMGET', KEYS[1], 'name', 'finishedOn', 'progress')
if not job[1] then return 'missing' end
if job[1] ~= ARGV[2] then return 'missing' end
if job[2] or (job[3] and string.find(job[3], '"cancelled"', 1, true)) then return 'ended' end
redis.call('HSET', KEYS[1], 'progress', ARGV[3])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', 10000, '*', 'event', 'progress', 'jobId', ARGV[1], 'data', ARGV[3])
return 'cancelled'
`

const cancelSql = `
WITH job AS (
  SELECT finished_at_ms IS NOT NULL OR coalesce(jsonb_exists(progress, 'cancelled'), false) AS ended
  FROM job WHERE queue = $1 AND id = $2 AND name = $3 FOR UPDATE
)
SELECT ended, CASE WHEN ended THEN NULL ELSE update_progress($1, $2, $4::jsonb) END FROM job
`

type Cancelled = "cancelled" | "ended" | "missing"

/**
 * Writes at a job that it was cancelled, if it has not ended, in one step: from then on that is its end, whatever comes of
 * who may be processing it. It is of this submission only.
 */
export const cancelJob = (
  queue: JobQueue,
  name: string,
  jobId: string,
  submission: string,
  cancelled: { readonly cancelled: StoredEnd }
): Promise<Cancelled> => {
  const text = JSON.stringify(cancelled)
  if (queue.backend.query === undefined) {
    const keys = [queue.toKey(jobId), queue.keys.events]
    // The script's own words.
    return runLua(queue, "llmqCancel", cancelLua, keys, [jobId, submission, text]).then((answer) => answer as Cancelled)
  }
  return queue.backend.query(cancelSql, [name, jobId, submission, text]).then(({ rows: [row] }) =>
    row === undefined ? "missing" : row["ended"] === true ? "ended" : "cancelled"
  )
}

/** Seconds for which a client waits for something to come, in one command. */
const blocks = 5

/**
 * Of connections to a Redis that may be away, or silent. Without them one that has gone silent is waited for without an end,
 * and with it whatever its process does.
 */
export const patience = (commandTimeout: number, random: () => number) => {
  const options = {
    connectTimeout: commandTimeout,
    // After a failover the server that was written to only reads: another connection finds the new one.
    reconnectOnError: (error: Error) => error.message.startsWith("READONLY"),
    retryStrategy: pause(random)
  }
  return {
    asked: { ...options, socketTimeout: 2 * commandTimeout },
    waiting: { ...options, socketTimeout: 1000 * blocks + 2 * commandTimeout }
  }
}

/**
 * Ends a worker that does not close: BullMQ waits for a store that is away without an end, and keeps the process alive.
 */
export const abandon = ({ backend, lockManager }: JobWorker): Promise<unknown> => {
  // Nothing more comes of what waits on them.
  for (const client of [backend.client, backend.blockingClient]) void client?.then((client) => client.disconnect())
  return Promise.all([lockManager.close(), backend.close(true)])
}

interface PostgresClient {
  readonly on: (event: "error", f: () => void) => unknown
}

/**
 * A client of `pg` that somebody works with when its server goes away says so as an event, which ends a process that does
 * not listen. Who works with it hears of it besides.
 */
const guarded = <A>(client: A): A => {
  const { connection } = (client as {
    readonly backend: {
      readonly connection: {
        readonly pool?: { readonly on: (event: "connect", f: (client: PostgresClient) => void) => unknown }
      }
    }
  }).backend
  connection.pool?.on("connect", (client) => client.on("error", () => {}))
  return client
}

// The three places where BullMQ's types become these.
export const openQueue = (name: string, { asked, backend, prefix }: Store): JobQueue =>
  guarded(
    new Queue(name, { connection: asked as ConnectionOptions, prefix }, backend as undefined) as unknown as JobQueue
  )

export const openEvents = (name: string, { backend, prefix, waiting }: Store): JobEvents =>
  guarded(
    new QueueEvents(
      name,
      { connection: waiting as ConnectionOptions, prefix, blockingTimeout: 1000 * blocks },
      backend as undefined
    )
  )

export const openWorker = (
  name: string,
  { backend, prefix, waiting }: Store,
  process: (job: StoredJob, token: string) => Promise<StoredEnd>,
  options: { readonly concurrency: number; readonly lock: number; readonly maxCrashes: number }
): JobWorker =>
  guarded(
    new Worker(name, process as never, {
      connection: waiting as ConnectionOptions,
      prefix,
      concurrency: options.concurrency,
      drainDelay: blocks,
      // After an error of the store.
      runRetryDelay: 1000,
      lockDuration: options.lock,
      lockRenewTime: options.lock / 3,
      stalledInterval: Math.max(1000, options.lock / 3),
      // The next one is too much.
      maxStalledCount: options.maxCrashes - 1
    }, backend as undefined) as unknown as JobWorker
  )

export { UnrecoverableError, WaitingError } from "bullmq"
