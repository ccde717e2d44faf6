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
  readonly data: StoredRequest
  /** Milliseconds since 1970, by the clock of the process that did it. */
  readonly finishedOn?: number | null | undefined
  readonly processedOn?: number | null | undefined
  readonly failedReason?: string | null | undefined
  readonly progress?: unknown
  readonly returnvalue: StoredEnd | null
  readonly stalledCounter: number
  readonly updateData: (data: StoredRequest) => Promise<void>
  readonly updateProgress: (progress: object) => Promise<void>
  readonly changePriority: (options: { readonly priority: number }) => Promise<void>
  readonly getState: () => Promise<string>
  readonly moveToWait: (token: string) => Promise<number>
  readonly remove: () => Promise<void>
}

type State = "active" | "prioritized" | "waiting" | "failed" | "completed" | "delayed" | "paused"

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
  readonly getJobCounts: (...states: ReadonlyArray<State>) => Promise<Partial<Record<State, number>>>
  readonly isPaused: () => Promise<boolean>
  readonly pause: () => Promise<void>
  readonly resume: () => Promise<void>
  readonly backend: {
    readonly client?: Promise<{
      readonly defineCommand: (
        name: string,
        definition: { readonly numberOfKeys: number; readonly lua: string }
      ) => void
      readonly runCommand: (name: string, args: []) => Promise<readonly [string | number, string | number]>
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

/** Milliseconds since 1970 by the server's clock, if it has one that can be asked for. */
export const timeOf = (queue: JobQueue): Promise<number> | undefined =>
  queue.backend.client?.then((client) => {
    client.defineCommand("llmqTime", { numberOfKeys: 0, lua: "return redis.call('TIME')" })
    return client.runCommand("llmqTime", [])
  }).then(([seconds, micros]) => Number(seconds) * 1000 + Number(micros) / 1000)

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
      maxStalledCount: options.maxCrashes
    }, backend as undefined) as unknown as JobWorker
  )

export { UnrecoverableError, WaitingError } from "bullmq"
