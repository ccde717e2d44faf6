/**
 * The stored queue of one model: BullMQ's, as effects.
 *
 * What it is asked fails with a reason when the store does not answer in time. Ends come as they happen, by its stream of
 * events, and are looked up every few seconds besides: an event may be lost with a connection.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import * as settings from "../settings.ts"
import { cancelJob, type JobQueue, openEvents, openQueue, type Store, type StoredJob, timeOf } from "./engine.ts"
import { endOfReason, isEnd, isRequest, readEnd, type StoredEnd } from "./stored.ts"

/** What one who waits for an end hears: that the store has it no longer, or that this process does not listen any more. */
export type Heard = StoredEnd | "lost" | "closed"

export interface StoredQueue {
  readonly name: string
  readonly ask: <A>(f: (queue: JobQueue) => Promise<A>) => Effect.Effect<A, string>
  /** Goes on with something when nobody waits for it any more, as long as the queue is open. */
  readonly later: <A, E>(effect: Effect.Effect<A, E>) => Effect.Effect<Fiber.Fiber<unknown>>
  /** Calls back when a submission has ended, until that is undone. */
  readonly onEnd: (jobId: string, submission: string, f: (heard: Heard) => void) => () => void
  /** Looks whether those who wait for a job have missed its end. */
  readonly look: (jobId: string) => Effect.Effect<void, string>
  /** Writes that a submission was cancelled: its end from now on, unless it has ended. */
  readonly cancel: (jobId: string, end: StoredEnd) => Effect.Effect<"cancelled" | "ended" | "missing", string>
  /** Somebody has cancelled a submission. */
  readonly onCancel: (f: (jobId: string, submission: string) => void) => () => void
  /** The end of a submission that was cancelled lately, as far as that was heard. */
  readonly cancelled: (submission: string) => StoredEnd | undefined
  readonly onPause: (f: (isPaused: boolean) => void) => () => void
  /** What the server's clock is ahead of this one. */
  readonly offset: () => number
}

/** How often ends are looked up whose event did not come. */
const lookup = 5000
/** How many of those that wait are asked about at one time. */
const atOnce = 16
/** How many cancellations are remembered. */
const mostRecent = 10_000
/** How often the server's clock is read. */
const clockEvery = 30_000

/** Ids that BullMQ takes: it has its own meaning for colons and numbers. What cannot be an id is that of no job. */
export const jobIdOf = (id: string): string => `r-${settings.checkId(id) === undefined ? encodeURIComponent(id) : ""}`

export const idOf = (jobId: string): string => decodeURIComponent(jobId.slice(2))

/** Whether a job is one of ours, that this version can read. */
export const isOurs = (job: StoredJob | undefined): job is StoredJob => {
  if (job === undefined || !isRequest(job.data)) return false
  try {
    return jobIdOf(idOf(job.id)) === job.id
  } catch {
    return false
  }
}

const cancelledEnd = (progress: unknown): StoredEnd | undefined =>
  typeof progress === "object" && progress !== null && "cancelled" in progress && isEnd(progress.cancelled)
    ? progress.cancelled
    : undefined

/** How a job ended, if it has. Who cancelled it was told that it is, so that counts before all else. */
export const endOf = ({ failedReason, finishedOn, name, progress, returnvalue }: StoredJob): StoredEnd | undefined => {
  const cancelled = cancelledEnd(progress)
  if (cancelled !== undefined) return cancelled
  if (typeof finishedOn !== "number") return undefined
  // What a worker of ours has returned is an end, also if the store had a failure before it.
  return isEnd(returnvalue) ? returnvalue : endOfReason(name, failedReason ?? "")
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
  const scope = yield* Scope.Scope
  const context = yield* Effect.context()
  const run = Effect.runForkWith(context)
  const within = <A>(promise: () => Promise<A>): Effect.Effect<A, string> =>
    Effect.timeoutOrElse(Effect.tryPromise({ try: promise, catch: reasonOf }), {
      duration: commandTimeout,
      orElse: () => Effect.fail(`no answer within ${commandTimeout} milliseconds`)
    }).pipe(Effect.tap(() =>
      Effect.sync(() => {
        isDown = false
      })
    ))
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

  interface Waiter {
    readonly jobId: string
    readonly told: Set<(heard: Heard) => void>
    /** How often it was looked up in vain, one time after the other. */
    missed: number
  }
  /** By submission: a job may come to have the id of one that is gone. */
  const waiters = new Map<string, Waiter>()
  /** Of which was heard lately that they were cancelled: one that was just taken may be as it was before. */
  const recent = new Map<string, StoredEnd>()
  const cancels = new Set<(jobId: string, submission: string) => void>()
  const pauses = new Set<(isPaused: boolean) => void>()
  const tell = (submission: string, heard: Heard) => {
    const waiter = waiters.get(submission)
    waiters.delete(submission)
    for (const f of waiter?.told ?? []) f(heard)
  }
  yield* Effect.addFinalizer(() =>
    Effect.sync(() => {
      for (const submission of Array.from(waiters.keys())) tell(submission, "closed")
    })
  )
  const waitersOf = (jobId: string) => Array.from(waiters).filter(([, waiter]) => waiter.jobId === jobId)
  /** The end of whichever submission it was. */
  const ended = (jobId: string, end: StoredEnd | undefined) => {
    if (end === undefined) {
      if (waitersOf(jobId).length > 0) run(Effect.ignore(look(jobId)))
    } else if (store.backend === undefined || !waiters.has(end.submission)) tell(end.submission, end)
    // PostgreSQL numbers events before they can be seen, so one of them may be missed: that it was cancelled, for instance.
    else run(Effect.ensuring(Effect.ignore(look(jobId)), Effect.sync(() => tell(end.submission, end))))
  }
  events.on("completed", ({ jobId, returnvalue }) => ended(jobId, isEnd(returnvalue) ? returnvalue : undefined))
  events.on("failed", ({ failedReason, jobId }) => ended(jobId, readEnd(failedReason)))
  events.on("progress", ({ data, jobId }) => {
    const end = cancelledEnd(data)
    if (end === undefined) return
    recent.set(end.submission, end)
    if (recent.size > mostRecent) recent.delete(recent.keys().next().value!)
    for (const f of cancels) f(jobId, end.submission)
    tell(end.submission, end)
  })
  events.on("paused", () => {
    for (const f of pauses) f(true)
  })
  events.on("resumed", () => {
    for (const f of pauses) f(false)
  })

  const look = (jobId: string) =>
    Effect.map(within(() => queue.getJob(jobId)), (job) => {
      for (const [submission, waiter] of waitersOf(jobId)) {
        if (job?.name !== submission) {
          // It may not be there yet, or may be told at any moment.
          if (++waiter.missed > patience) tell(submission, "lost")
          continue
        }
        waiter.missed = 0
        const end = endOf(job)
        if (end !== undefined) tell(submission, end)
      }
    })
  /** How often one that waits is looked up in vain, until it is lost. */
  const patience = 1 + Math.ceil(commandTimeout / lookup)
  const over: ReadonlySet<string> = new Set(["completed", "failed", "unknown"])
  const find = Effect.suspend(() =>
    Effect.forEach(
      new Set(Array.from(waiters.values(), ({ jobId }) => jobId)),
      (jobId) =>
        // All of it is read only when there is something to read.
        Effect.ignore(
          Effect.flatMap(within(() => queue.getJobState(jobId)), (state) => over.has(state) ? look(jobId) : Effect.void)
        ),
      { concurrency: atOnce, discard: true }
    )
  )
  yield* Effect.forkScoped(Effect.forever(Effect.andThen(Effect.sleep(lookup), find)))
  yield* within(() => Promise.all([queue.waitUntilReady(), events.waitUntilReady()]))

  let offset = 0
  const readClock = Effect.suspend(() => {
    const before = clock.currentTimeMillisUnsafe()
    return Effect.map(within(() => timeOf(queue)), (time) => {
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
    later: (effect) => Effect.forkIn(Effect.exit(effect), scope),
    onEnd: (jobId, submission, f) => {
      const waiter = waiters.get(submission) ?? { jobId, told: new Set(), missed: 0 }
      waiters.set(submission, waiter)
      waiter.told.add(f)
      return () => {
        waiter.told.delete(f)
        if (waiter.told.size === 0 && waiters.get(submission) === waiter) waiters.delete(submission)
      }
    },
    look,
    cancel: (jobId, end) => within(() => cancelJob(queue, name, jobId, end.submission, { cancelled: end })),
    onCancel: listen(cancels),
    cancelled: (submission) => recent.get(submission),
    onPause: listen(pauses),
    offset: () => offset
  }
})
