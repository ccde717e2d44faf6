/**
 * The stored queue of one model: BullMQ's, as effects.
 *
 * What it is asked fails with a reason when the store does not answer in time. Ends come as they happen, by its stream of
 * events, and are looked up every few seconds besides: an event may be lost with a connection.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as settings from "../settings.ts"
import { type JobQueue, openEvents, openQueue, type Store, type StoredJob, timeOf } from "./engine.ts"
import { endOfReason, noTimes, type StoredEnd } from "./stored.ts"

/** What is told to whoever holds a job. */
export interface Notice {
  readonly cancel: true
}

export interface StoredQueue {
  readonly name: string
  readonly ask: <A>(f: (queue: JobQueue) => Promise<A>) => Effect.Effect<A, string>
  /** Calls back when the job has ended, until that is undone. */
  readonly onEnd: (jobId: string, f: (end: StoredEnd) => void) => () => void
  /** Somebody has been told something about a job. */
  readonly onNotice: (f: (jobId: string, notice: Notice) => void) => () => void
  readonly onPause: (f: (isPaused: boolean) => void) => () => void
  /** What the server's clock is ahead of this one. */
  readonly offset: () => number
}

/** How often ends are looked up whose event did not come. */
const lookup = 5000
/** How often the server's clock is read. */
const clockEvery = 30_000

/** Ids that BullMQ takes: it has its own meaning for colons and numbers. What cannot be an id is that of no job. */
export const jobIdOf = (id: string): string => `r-${settings.checkId(id) === undefined ? encodeURIComponent(id) : ""}`

export const idOf = (jobId: string): string => decodeURIComponent(jobId.slice(2))

/** How a job ended, if it has. */
export const endOf = (job: StoredJob): StoredEnd | undefined => {
  const { cancelledAt, early } = job.data
  if (cancelledAt !== undefined) return early ?? { ...noTimes, status: "cancelled" }
  if (job.finishedOn === undefined || job.finishedOn === null) return undefined
  // What a worker of ours has returned is an end, also if the store had a failure before it.
  const { failedReason, returnvalue } = job
  if (returnvalue !== null) return returnvalue
  return failedReason === undefined || failedReason === null || failedReason === ""
    ? undefined
    : endOfReason(failedReason)
}

const reasonOf = (error: unknown): string => error instanceof Error ? error.message : String(error)

export const make = Effect.fnUntraced(function*(
  store: Store,
  modelId: string
): Effect.fn.Return<StoredQueue, string, Scope.Scope> {
  const { commandTimeout } = store
  const model = encodeURIComponent(modelId)
  // PostgreSQL knows queues by their names only.
  const name = store.backend === undefined ? model : `${encodeURIComponent(store.prefix)}/${model}`
  const clock = yield* Clock.Clock
  const context = yield* Effect.context()
  const run = Effect.runForkWith(context)
  const within = <A>(promise: () => Promise<A>): Effect.Effect<A, string> =>
    Effect.timeoutOrElse(Effect.tryPromise({ try: promise, catch: reasonOf }), {
      duration: commandTimeout,
      orElse: () => Effect.fail(`no answer within ${commandTimeout} milliseconds`)
    })
  const closed = (
    { close, disconnect }: { readonly close: () => Promise<void>; readonly disconnect: () => Promise<void> }
  ) =>
    Effect.catch(Effect.interruptible(within(close)), () =>
      // Of a server that is away it does not end.
      Effect.sync(() => void disconnect().catch(() => {})))
  let isDown = false
  const onError = (error: Error) => {
    if (isDown) return
    isDown = true
    run(Effect.logWarning(`The store of the queue of model ${modelId} has a problem`, error.message))
  }
  const queue = yield* Effect.acquireRelease(
    Effect.sync(() => openQueue(name, store)),
    (queue) => closed({ close: () => queue.close(), disconnect: () => queue.disconnect() })
  )
  const events = yield* Effect.acquireRelease(
    Effect.sync(() => openEvents(name, store)),
    (events) => closed({ close: () => events.close(), disconnect: () => events.disconnect() })
  )
  queue.on("error", onError)
  events.on("error", onError)

  const waiters = new Map<string, Set<(end: StoredEnd) => void>>()
  const notices = new Set<(jobId: string, notice: Notice) => void>()
  const pauses = new Set<(isPaused: boolean) => void>()
  const ended = (jobId: string, end: StoredEnd) => {
    const told = waiters.get(jobId)
    waiters.delete(jobId)
    for (const f of told ?? []) f(end)
  }
  // What a worker of ours has returned is an end.
  events.on("completed", ({ jobId, returnvalue }) => ended(jobId, returnvalue as StoredEnd))
  events.on("failed", ({ failedReason, jobId }) => ended(jobId, endOfReason(failedReason)))
  events.on("progress", ({ data, jobId }) => {
    isDown = false
    if (typeof data !== "object" || data === null || !("cancel" in data)) return
    for (const f of notices) f(jobId, { cancel: true })
    // It has ended, whoever holds it.
    if (waiters.has(jobId)) run(Effect.ignore(look(jobId)))
  })
  events.on("paused", () => {
    for (const f of pauses) f(true)
  })
  events.on("resumed", () => {
    for (const f of pauses) f(false)
  })

  const look = (jobId: string) =>
    Effect.map(within(() => queue.getJob(jobId)), (job) => {
      const end = job === undefined ? undefined : endOf(job)
      if (end !== undefined) ended(jobId, end)
    })
  const find = Effect.suspend(() => Effect.forEach(Array.from(waiters.keys()), look, { discard: true }))
  yield* Effect.forkScoped(Effect.forever(Effect.andThen(Effect.sleep(lookup), Effect.ignore(find))))
  yield* within(() => Promise.all([queue.waitUntilReady(), events.waitUntilReady()]))

  // Of a server without a clock to be asked for, the processes' own have to agree.
  let offset = 0
  const readClock = Effect.suspend(() => {
    const asked = timeOf(queue)
    if (asked === undefined) return Effect.void
    const before = clock.currentTimeMillisUnsafe()
    return Effect.map(within(() => asked), (time) => {
      offset = time - (before + clock.currentTimeMillisUnsafe()) / 2
    })
  })
  yield* readClock
  yield* Effect.forkScoped(Effect.forever(Effect.andThen(Effect.sleep(clockEvery), Effect.ignore(readClock))))

  const listen = <F>(to: Set<F>) => (f: F) => {
    to.add(f)
    return () => void to.delete(f)
  }
  return {
    name,
    ask: (f) => within(() => f(queue)),
    onEnd: (jobId, f) => {
      const mine = waiters.get(jobId) ?? new Set()
      waiters.set(jobId, mine)
      mine.add(f)
      return () => {
        mine.delete(f)
        if (mine.size === 0 && waiters.get(jobId) === mine) waiters.delete(jobId)
      }
    },
    onNotice: listen(notices),
    onPause: listen(pauses),
    offset: () => offset
  }
})
