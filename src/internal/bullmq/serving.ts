/**
 * How a process serves a stored model: what it takes from the store waits for the limits in a queue in memory, is processed,
 * and its end is stored.
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import type * as ModelConfig from "../../ModelConfig.ts"
import * as QueueError from "../../QueueError.ts"
import type * as QueueManager from "../../QueueManager.ts"
import * as QueueRequest from "../../QueueRequest.ts"
import type { AnyModel, AnyRequest, Failure, Snapshot } from "../entry.ts"
import type { Processor } from "../modelQueue.ts"
import * as requestContext from "../requestContext.ts"
import * as settings from "../settings.ts"
import { abandon, openWorker, type StoredJob, UnrecoverableError, WaitingError } from "./engine.ts"
import type { Options } from "./model.ts"
import { endOf, idOf, isOurs, jobIdOf, type StoredQueue } from "./queue.ts"
import * as stored from "./stored.ts"

/** The queue in memory that what is taken waits in. Its requests are untyped inside it. */
export interface Local {
  readonly register: (
    model: AnyModel,
    processor: Processor
  ) => Effect.Effect<void, QueueError.RegisterError, Scope.Scope>
  readonly submit: (request: AnyRequest) => Effect.Effect<Snapshot, Failure>
  readonly cancel: (modelId: string, id: string) => Effect.Effect<unknown>
  readonly cancelWaiting: (modelId: string) => Effect.Effect<unknown>
  readonly setPaused: (modelId: string, isPaused: boolean) => Effect.Effect<unknown>
  /** What says how all queues of the process end, if something does. */
  readonly shutdown: () => ModelConfig.Shutdown | undefined
  readonly info: (modelId: string) => Effect.Effect<QueueManager.QueueInfo | undefined>
}

/** A job that this process has taken. */
export interface Taken {
  readonly id: string
  readonly submission: string
  /** As it was given, and not the place in the order here. */
  readonly priority: ModelConfig.Priority | undefined
  dispatchedAt: number | undefined
  attempts: number
  processed: number
  isCancelled: boolean
}

/** What is known of the model that is served. */
export interface Served {
  readonly model: AnyModel
  readonly config: settings.Settings
  readonly codecs: stored.Codecs
  readonly options: Options
  readonly local: Local
  readonly queue: StoredQueue
  readonly running: Map<string, Taken>
  readonly now: () => number
  readonly timedOut: (id: string, data: stored.StoredRequest, times: stored.StoredTimes) => QueueError.QueueTimeout
  readonly interrupt: (jobId: string, submission: string) => Effect.Effect<unknown>
  readonly unavailable: (requestId: string | undefined) => (reason: string) => QueueError.QueueUnavailable
}

export const serve = Effect.fnUntraced(function*(
  { codecs, config, interrupt, local, model, now, options, queue, running, timedOut, unavailable }: Served,
  processor: Processor
) {
  const { modelId } = config
  const { commandTimeout } = options.store
  const scope = yield* Scope.Scope
  const context = yield* Effect.context()
  const runPromise = Effect.runPromiseWith(context)
  const run = Effect.runForkWith(context)
  const mine: AnyModel = {
    ...model,
    modelId,
    definition: {
      ...model.definition,
      capacity: 1_000_000,
      timeout: undefined,
      deadLetters: undefined,
      deduplicate: undefined,
      failEarly: false,
      retention: { count: 0 }
    }
  }
  yield* local.register(mine, (request) =>
    Effect.suspend(() => {
      const taken = running.get(jobIdOf(request.id))
      // It was not taken from the store, but submitted by what was.
      if (taken === undefined) return processor(request)
      const began = now()
      taken.dispatchedAt ??= began
      taken.attempts++
      const { priority } = taken
      const processed = Effect.updateService(
        processor({ ...request, priority }),
        requestContext.CurrentRequestContext,
        (context) => ({ ...context, priority })
      )
      return Effect.onExit(processed, () =>
        Effect.sync(() => {
          taken.processed += now() - began
        }))
    }))

  // One request ----------------------------------------------------------------------------------------------------

  const timesOf = (
    data: stored.StoredRequest,
    taken: Taken,
    exit: Exit.Exit<Snapshot, Failure>
  ): stored.StoredTimes => {
    const response = Exit.isSuccess(exit) ? exit.value : undefined
    return {
      queued: Math.max(0, (taken.dispatchedAt ?? now()) - data.createdAt),
      processed: taken.processed,
      attempts: taken.attempts,
      inputTokens: response?.inputTokensUsed,
      outputTokens: response?.outputTokensUsed
    }
  }

  /** What is in the store, as a request of the queue in memory. */
  const read = ({ data, id }: StoredJob, left: number | undefined) =>
    Effect.map(stored.requestOf(codecs, data), (asked) =>
      QueueRequest.make(mine as AnyRequest["model"], {
        ...asked,
        id: idOf(id),
        // In the order in which they were submitted, not taken.
        priority: Math.max(-86_400, Math.min(86_400, (data.headStart + now() - data.createdAt) / 1000)),
        timeout: left,
        deadline: data.deadline === undefined ? undefined : data.deadline - queue.offset(),
        processingTimeout: data.processingTimeout ?? Number.POSITIVE_INFINITY
      }))

  const attempt = Effect.fnUntraced(function*(job: StoredJob, taken: Taken) {
    const { data, name: submission } = job
    const of = { modelId, requestId: taken.id, submission }
    const times = () => ({ ...stored.noTimes, queued: now() - data.createdAt })
    const cancelled = endOf(job) ?? queue.cancelled(submission)
    if (cancelled !== undefined) {
      taken.isCancelled = true
      return cancelled
    }
    const left = data.expiresAt === undefined ? undefined : data.expiresAt - now()
    if (left !== undefined && left <= 0) {
      return yield* stored.endOf(codecs, of, Exit.fail(timedOut(taken.id, data, times())), times())
    }
    const request = yield* Effect.result(read(job, left))
    if (request._tag === "Failure") return stored.brokenEnd(submission, times(), "Undecodable")
    const submitted: Effect.Effect<Snapshot, Failure> = Effect.suspend(() =>
      taken.isCancelled
        ? Effect.fail(new QueueError.RequestCancelled({ modelId, requestId: taken.id }))
        : local.submit(request.success)
    ).pipe(
      // It may have been lost here and come back, and the first time may not be over yet.
      Effect.catchIf(
        (error) => error instanceof QueueError.DuplicateRequest && stored.isOwn(of, error),
        () => Effect.andThen(Effect.sleep(10), submitted)
      )
    )
    const exit = yield* Effect.exit(submitted)
    const spent = timesOf(data, taken, exit)
    return yield* stored.endOf(
      codecs,
      of,
      Exit.match(exit, {
        onSuccess: (response) => Exit.succeed(response.status === "completed" ? response.result : undefined),
        // Here it had what was left of its time.
        onFailure: (cause) =>
          Exit.failCause(
            Cause.map(cause, (error) =>
              error instanceof QueueError.QueueTimeout && stored.isOwn(of, error)
                && error.limit !== "processingTimeout" && left !== undefined
                ? timedOut(taken.id, data, spent)
                : error)
          )
      }),
      spent
    )
  })

  let isClosing = false
  /** For another process, or for this one later. */
  const giveBack = (job: StoredJob, token: string) =>
    Effect.andThen(Effect.ignore(queue.ask(() => job.moveToWait(token))), Effect.die(new WaitingError()))

  const fail = (end: stored.StoredEnd) => {
    const failure = new UnrecoverableError(JSON.stringify(end))
    // It is stored, too, and says nothing.
    failure.stack = ""
    return Effect.die(failure)
  }

  const process = Effect.fnUntraced(function*(job: StoredJob, token: string) {
    const { name: submission } = job
    if (!isOurs(job)) return yield* fail(stored.brokenEnd(submission, stored.noTimes, "Unreadable"))
    // A worker that is paused while it waits for something to come takes that still.
    if (isClosing) return yield* giveBack(job, token)
    // It was lost here, and has come back before that was noticed.
    while (running.has(job.id)) {
      yield* local.cancel(modelId, idOf(job.id))
      yield* Effect.sleep(10)
    }
    const taken: Taken = {
      id: idOf(job.id),
      submission,
      priority: job.data.options.priority,
      dispatchedAt: undefined,
      attempts: 0,
      processed: 0,
      isCancelled: false
    }
    running.set(job.id, taken)
    const ended = yield* attempt(job, taken).pipe(
      Effect.catchDefect((defect) =>
        Effect.succeed(stored.brokenEnd(submission, stored.noTimes, stored.kindOf(defect)))
      ),
      Effect.ensuring(Effect.sync(() => running.delete(job.id)))
    )
    if (ended.status === "completed") return ended
    // Nobody has cancelled it but this process, which has no time for it, or has lost it: it is for another one.
    if (ended.status === "cancelled" && !taken.isCancelled) return yield* giveBack(job, token)
    return yield* fail(ended)
  })

  // The worker -----------------------------------------------------------------------------------------------------

  const atRest = Effect.whileLoop({
    while: () => running.size > 0,
    body: () => Effect.sleep(10),
    step: () => {}
  })
  const interruptAll = Effect.suspend(() =>
    Effect.forEach(Array.from(running.values()), ({ id }) => local.cancel(modelId, id), { discard: true })
  )
  // What is said of requests is heard until the last one has ended.
  yield* Scope.addFinalizer(
    scope,
    Effect.sync(queue.onCancel((jobId, submission) => {
      if (running.has(jobId)) run(interrupt(jobId, submission))
    }))
  )
  yield* Scope.addFinalizer(
    scope,
    Effect.sync(queue.onPause((isPaused) => void run(local.setPaused(modelId, isPaused))))
  )
  const worker = yield* Effect.acquireRelease(
    Effect.sync(() =>
      openWorker(queue.name, options.store, (job, token) => runPromise(process(job, token)), {
        concurrency: options.takeAhead,
        lock: options.lock,
        maxCrashes: options.maxCrashes
      })
    ),
    (worker) =>
      Effect.gen(function*() {
        const { deadline, policy } = settings.shutdown(local.shutdown(), config.shutdown, [])
        isClosing = true
        const within = (promise: () => Promise<unknown>) =>
          Effect.ignore(Effect.interruptible(Effect.timeoutOption(Effect.tryPromise(promise), commandTimeout)))
        yield* within(() => worker.pause(true))
        yield* local.cancelWaiting(modelId)
        if (policy === "interrupt") yield* interruptAll
        yield* Effect.interruptible(Effect.timeoutOption(atRest, deadline))
        if (running.size > 0) yield* interruptAll
        yield* within(() => worker.close())
        yield* within(() => abandon(worker))
      })
  )
  worker.on("error", (error) => {
    run(Effect.logDebug(`A worker of the queue of model ${modelId} has a problem`, error.message))
  })
  // Somebody else may have it by now: what comes of it here counts no more.
  worker.on("lockRenewalFailed", (jobIds) => {
    for (const jobId of jobIds) {
      const taken = running.get(jobId)
      if (taken === undefined) continue
      run(Effect.andThen(
        Effect.logWarning(`The lock of request ${taken.id} of model ${modelId} is lost: it is interrupted`),
        local.cancel(modelId, taken.id)
      ))
    }
  })
  const isPaused = yield* Effect.mapError(queue.ask((queue) => queue.isPaused()), unavailable(undefined))
  if (isPaused) yield* local.setPaused(modelId, true)
  yield* Effect.ignore(Effect.timeoutOption(Effect.tryPromise(() => worker.waitUntilReady()), commandTimeout))
})
