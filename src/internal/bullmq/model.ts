/**
 * One stored model in this process: its requests go into the store, and, where it is registered, come out of it into a
 * queue in memory that waits for the limits.
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { identity } from "effect/Function"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import type * as ModelConfig from "../../ModelConfig.ts"
import * as QueueError from "../../QueueError.ts"
import type * as QueueManager from "../../QueueManager.ts"
import * as QueueRequest from "../../QueueRequest.ts"
import type * as QueueResponse from "../../QueueResponse.ts"
import * as TokenEstimator from "../../TokenEstimator.ts"
import { ask, overdue } from "../asked.ts"
import type { AnyModel, AnyRequest, Failure, Snapshot } from "../entry.ts"
import { costOf } from "../estimate.ts"
import type { Processor } from "../modelQueue.ts"
import * as requestContext from "../requestContext.ts"
import * as requestId from "../requestId.ts"
import * as settings from "../settings.ts"
import {
  abandon,
  type Kept,
  openWorker,
  type Store,
  type StoredJob,
  UnrecoverableError,
  WaitingError
} from "./engine.ts"
import { endOf, idOf, jobIdOf, make as makeQueue } from "./queue.ts"
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

export interface Options {
  readonly store: Store
  readonly codec: stored.Codec
  /** Milliseconds. */
  readonly lock: number
  readonly takeAhead: number
  readonly maxCrashes: number
}

/** What is known of a request before it is written. */
type Prepared = Omit<stored.StoredRequest, "params">

/** A job that this process has taken. */
interface Taken {
  readonly id: string
  /** As it was given, and not the place in the order here. */
  readonly priority: ModelConfig.Priority | undefined
  dispatchedAt: number | undefined
  attempts: number
  processed: number
  isCancelled: boolean
}

/** Requests of one step go in the order in which they came; a step is one of BullMQ's priorities. */
const step = 10_000
const priorities = 2 ** 21 - 1

/**
 * The order of submission times less head starts, as far as BullMQ has numbers for it: they begin anew every 242 days.
 */
const priorityOf = (createdAt: number, headStart: number): number =>
  1 + Math.floor((createdAt - headStart) / step) % (priorities - 1)

const seconds = (millis: number): number | undefined =>
  Number.isFinite(millis) ? Math.max(1, Math.ceil(millis / 1000)) : undefined

/** How many that are over, and wait to be taken, may be before the one that is dropped. */
const mostOver = 100
/** How often the depth is asked for. */
const counted = 100

export type Model = Effect.Success<ReturnType<typeof make>>

export const make = Effect.fnUntraced(function*(
  model: AnyModel,
  config: settings.Settings,
  options: Options,
  local: Local
) {
  const { codec, lock, maxCrashes, store, takeAhead } = options
  const { modelId } = config
  /** With the limits that this process has changed, if it has. */
  let limited = config
  const codecs = stored.codecsOf(model.definition, codec)
  if (codecs === undefined || config.isStream) {
    const problems = [
      config.isStream
        ? "a stream cannot be stored: register its model in a queue in memory"
        : "params and result: a stored model needs schemas (ModelConfig.make), so that other processes can read its requests"
    ]
    return yield* new QueueError.InvalidConfiguration({ modelId, problems })
  }
  const clock = yield* Clock.Clock
  const queue = yield* Effect.mapError(
    makeQueue(store, modelId),
    (reason) => new QueueError.QueueUnavailable({ modelId, requestId: undefined, reason })
  )
  const estimator = TokenEstimator.learned(config.provider?.profile.estimation).make(modelId)
  const now = () => clock.currentTimeMillisUnsafe() + queue.offset()
  const kept: Kept = { age: seconds(config.retainAge), count: config.retainCount }
  const letters: Kept = {
    age: seconds(Math.max(config.retainAge, config.letterCount > 0 ? config.letterAge : 0)),
    count: Math.max(config.retainCount, config.letterCount)
  }

  const unavailable = (requestId: string | undefined) => (reason: string) =>
    new QueueError.QueueUnavailable({ modelId, requestId, reason })
  const notFound = (id: string) => new QueueError.RequestNotFound({ modelId, requestId: settings.nameOf(id) })

  // What is stored -------------------------------------------------------------------------------------------------

  const find = (id: string): Effect.Effect<StoredJob, QueueError.RequestNotFound | QueueError.QueueUnavailable> =>
    Effect.flatMap(
      Effect.mapError(queue.ask((queue) => queue.getJob(jobIdOf(id))), unavailable(id)),
      (job) => job === undefined ? Effect.fail(notFound(id)) : Effect.succeed(job)
    )

  /** Whether its time is over, and nobody has been there to say so. */
  const isExpired = (job: StoredJob): boolean => {
    const { expiresAt } = job.data
    return expiresAt !== undefined && expiresAt <= now() && !isTaken(job)
  }

  const isOver = (job: StoredJob): boolean => endOf(job) !== undefined || isExpired(job)

  const snapshot = (job: StoredJob): Effect.Effect<Snapshot> => {
    const id = idOf(job.id)
    const end = endOf(job)
    if (end !== undefined) return respond(id, job.data, end)
    if (isExpired(job)) {
      const times = { ...stored.noTimes, queued: job.data.expiresAt! - job.data.createdAt }
      return Effect.succeed({
        ...stored.baseOf(modelId, id, job.data, times),
        status: "failed",
        cause: Cause.fail(timedOut(id, job.data, times))
      })
    }
    const taken = running.get(job.id)
    const isRunning = taken === undefined ? isTaken(job) : taken.dispatchedAt !== undefined
    const at = now()
    const queued = (taken?.dispatchedAt ?? (isRunning ? job.processedOn ?? at : at)) - job.data.createdAt
    const base = stored.baseOf(modelId, id, job.data, {
      ...stored.noTimes,
      queued: Math.max(0, queued),
      processed: isRunning ? Math.max(0, at - job.data.createdAt - queued) : 0,
      attempts: taken?.attempts ?? (isRunning ? 1 : 0)
    })
    return Effect.succeed({ ...base, status: isRunning ? "processing" : "pending" })
  }

  const isTaken = ({ finishedOn, processedOn, progress }: StoredJob): boolean =>
    typeof processedOn === "number"
    && typeof finishedOn !== "number"
    && !(typeof progress === "object" && progress !== null && "back" in progress && progress.back === processedOn)

  /** What waiters are told at the end of a request. */
  const told = (response: Snapshot): Effect.Effect<QueueResponse.Completed<unknown>, Failure> => {
    switch (response.status) {
      case "completed":
        return Effect.succeed(response)
      case "failed":
        return Effect.failCause(response.cause)
      default:
        return Effect.fail(new QueueError.RequestCancelled({ modelId, requestId: response.requestId }))
    }
  }

  /** Hears of the end of a request from now on. Interrupting it changes nothing. */
  const awaitEnd = <E>(
    id: string,
    of: Effect.Effect<{ readonly data: stored.StoredRequest; readonly end: stored.StoredEnd | undefined }, E>,
    wait: (
      ended: Effect.Effect<stored.StoredEnd>,
      data: stored.StoredRequest
    ) => Effect.Effect<stored.StoredEnd, Failure> = identity
  ): Effect.Effect<QueueResponse.Completed<unknown>, Failure | E> =>
    Effect.acquireUseRelease(
      Effect.sync(() => {
        const done = Deferred.makeUnsafe<stored.StoredEnd>()
        return { done, undo: queue.onEnd(jobIdOf(id), (end) => Deferred.doneUnsafe(done, Effect.succeed(end))) }
      }),
      ({ done }) =>
        Effect.flatMap(of, ({ data, end }) =>
          Effect.flatMap(end === undefined ? wait(Deferred.await(done), data) : Effect.succeed(end), (end) =>
            Effect.flatMap(respond(id, data, end), told))),
      ({ undo }) =>
        Effect.sync(undo)
    )

  const respond = (id: string, data: stored.StoredRequest, end: stored.StoredEnd): Effect.Effect<Snapshot> =>
    stored.responseOf(codecs, stored.baseOf(modelId, id, data, end), end)

  /** Until its time is over: nobody else may be there to say so. */
  const inTime = (id: string) => (ended: Effect.Effect<stored.StoredEnd>, data: stored.StoredRequest) => {
    const { expiresAt } = data
    return expiresAt === undefined ? ended : Effect.raceFirst(
      ended,
      Effect.andThen(
        Effect.sleep(Math.max(0, expiresAt - now())),
        Effect.suspend(() => {
          const error = timedOut(id, data, { ...stored.noTimes, queued: now() - data.createdAt })
          return Effect.andThen(Effect.ignore(withdraw(id, data, error)), Effect.fail(error))
        })
      )
    )
  }

  const awaitCompletion = (id: string) =>
    awaitEnd(id, Effect.map(find(id), (job) => ({ data: job.data, end: endOf(job) })), inTime(id))

  // Submission -----------------------------------------------------------------------------------------------------

  let countedAt = Number.NEGATIVE_INFINITY
  let depth = 0
  const readDepth = Effect.suspend(() => {
    if (clock.currentTimeMillisUnsafe() - countedAt < counted) return Effect.succeed(depth)
    return Effect.map(queue.ask((queue) => queue.getJobCounts("prioritized", "waiting", "paused")), (counts) => {
      countedAt = clock.currentTimeMillisUnsafe()
      depth = Object.values(counts).reduce((sum, count) => sum + count, 0)
      return depth
    })
  })

  let suspended = 0
  const isFull = (id: string) => new QueueError.QueueFull({ modelId, requestId: id, capacity: config.capacity })

  /** Whether there is room in the queue, as far as it is known here. */
  const hasRoom = (id: string): Effect.Effect<boolean, QueueError.QueueDraining | QueueError.QueueUnavailable> =>
    Effect.flatMap(Effect.mapError(readDepth, unavailable(id)), (count) =>
      isDraining
        ? Effect.fail(new QueueError.QueueDraining({ modelId, requestId: id }))
        : Effect.succeed(count < config.capacity))

  /** Waits for room, for no longer than the request itself may wait. */
  const awaitRoom = (
    { id, waitForCompletion }: AnyRequest,
    data: Prepared
  ): Effect.Effect<void, QueueError.AcceptError> => {
    const wait = Effect.suspend((): Effect.Effect<boolean, QueueError.AcceptError> => {
      const left = data.expiresAt === undefined ? counted : data.expiresAt - now()
      if (left > 0) return Effect.andThen(Effect.sleep(Math.min(counted, left)), hasRoom(id))
      return Effect.fail(
        waitForCompletion ? timedOut(id, data, { ...stored.noTimes, queued: now() - data.createdAt }) : isFull(id)
      )
    })
    return Effect.acquireUseRelease(
      Effect.sync(() => {
        suspended++
      }),
      () => Effect.asVoid(Effect.repeat(wait, { until: (hasRoom) => hasRoom })),
      () =>
        Effect.sync(() => {
          suspended--
        })
    )
  }

  const makeRoom = (request: AnyRequest, data: Prepared): Effect.Effect<void, QueueError.AcceptError> =>
    Effect.flatMap(hasRoom(request.id), (hasRoom) => {
      const { id } = request
      if (hasRoom) return Effect.void
      if (config.strategy === "suspend") return awaitRoom(request, data)
      if (config.strategy === "reject") return Effect.fail(isFull(id))
      return queue.ask((queue) => queue.getJobs(["prioritized", "waiting"], 0, mostOver, true)).pipe(
        Effect.mapError(unavailable(id)),
        Effect.flatMap((jobs) => {
          const oldest = jobs.find((job) => job !== undefined && !isOver(job))
          return oldest === undefined ? Effect.void : end(oldest, isFull(idOf(oldest.id)))
        })
      )
    })

  const prepare = (request: AnyRequest, inherited: requestContext.RequestContext) => {
    const problems: Array<string> = []
    const context = requestContext.within(inherited, request)
    const at = now()
    // Deadlines are of the wall clock here; the store's may be another one.
    const asked = ask(config, request, context, clock.currentTimeMillisUnsafe(), problems)
    if (request.dedupeKey !== undefined && request.dedupeKey !== false) {
      problems.push("dedupeKey: stored requests are told apart by their ids only; give equal ones the same id")
    }
    const { metadata, whenUnavailable } = request
    try {
      JSON.stringify(metadata)
    } catch (error) {
      problems.push(`metadata: cannot be stored: ${settings.show(error)}`)
    }
    const cost = costOf(limited, estimator, { ...request, ...context }, problems)
    if ("_tag" in cost) return cost
    const late = overdue(modelId, request.id, asked)
    if (late !== undefined) return late
    const { hasDeadline, headStart, processingTimeout, tenant, timeout } = asked
    const { estimatedCachedInputTokens, estimatedInputTokens, estimatedOutputTokens, maxOutputTokens } = request
    const data: Prepared = {
      version: 1,
      options: {
        estimatedCachedInputTokens,
        estimatedInputTokens,
        estimatedOutputTokens,
        labels: context.labels,
        maxOutputTokens,
        metadata,
        priority: context.priority,
        tenant,
        whenUnavailable
      },
      headStart,
      createdAt: at,
      expiresAt: Number.isFinite(timeout) ? at + timeout : undefined,
      hasDeadline,
      deadline: context.deadline === undefined
        ? undefined
        : Number(settings.instant(context.deadline)) + queue.offset(),
      processingTimeout: Number.isFinite(processingTimeout) ? processingTimeout : undefined,
      submission: requestId.generate()
    }
    return data
  }

  /** Stores a request. It is there when this has ended. */
  const accept = (request: AnyRequest): Effect.Effect<stored.StoredRequest, QueueError.AcceptError> =>
    Effect.withFiber((fiber): Effect.Effect<stored.StoredRequest, QueueError.AcceptError> => {
      const { id, params } = request
      const prepared = prepare(request, fiber.getRef(requestContext.CurrentRequestContext))
      if ("_tag" in prepared) return Effect.fail(prepared)
      if (isDraining) return Effect.fail(new QueueError.QueueDraining({ modelId, requestId: id }))
      return Effect.gen(function*() {
        yield* makeRoom(request, prepared)
        const text = yield* Effect.mapError(codecs.params.encode(params), (error) =>
          new QueueError.InvalidRequest({
            modelId,
            requestId: id,
            problems: [`params: cannot be stored: ${settings.show(error)}`]
          }))
        const data = { ...prepared, params: text }
        const add = queue.ask((queue) =>
          queue.add("request", data, {
            jobId: jobIdOf(id),
            priority: priorityOf(data.createdAt, data.headStart),
            // What ends says so. Any other failure is the store's, which has not taken an end.
            attempts: maxCrashes + 1,
            removeOnComplete: kept,
            removeOnFail: letters
          })
        )
        // An id that is there already is left as it is, and nothing is said.
        const storing = requestId.isGenerated(id)
          ? Effect.as(add, true)
          : Effect.andThen(
            add,
            Effect.map(
              queue.ask((queue) => queue.getJob(jobIdOf(id))),
              (job) => job === undefined || job.data.submission === data.submission
            )
          )
        const isNew = yield* storing.pipe(
          // It may be there, whatever has been heard of it.
          Effect.onInterrupt(() => Effect.ignore(withdraw(id, data))),
          Effect.mapError(unavailable(id))
        )
        depth++
        return isNew ? data : yield* new QueueError.DuplicateRequest({ modelId, requestId: id })
      })
    })

  const timedOut = (
    id: string,
    { createdAt, expiresAt, hasDeadline }: Prepared,
    times: stored.StoredTimes
  ) =>
    new QueueError.QueueTimeout({
      modelId,
      requestId: id,
      limit: hasDeadline ? "deadline" : "timeout",
      timeoutMillis: expiresAt! - createdAt,
      queueTimeMillis: times.queued,
      processingTimeMillis: times.processed
    })

  const pending = (id: string, data: stored.StoredRequest): Snapshot => ({
    ...stored.baseOf(modelId, id, data, stored.noTimes),
    status: "pending"
  })

  const submit = (request: AnyRequest): Effect.Effect<Snapshot, Failure> => {
    if (!request.waitForCompletion) return Effect.map(accept(request), (data) => pending(request.id, data))
    const { id } = request
    const accepted = Effect.map(accept(request), (data) => ({ data, end: undefined }))
    return awaitEnd(
      id,
      accepted,
      (ended, data) => Effect.onInterrupt(inTime(id)(ended, data), () => Effect.ignore(withdraw(id, data)))
    )
  }

  // Cancellation ---------------------------------------------------------------------------------------------------

  /** Ends a request before its time. `false` when it has ended. */
  const end = (job: StoredJob, error?: QueueError.SubmitError): Effect.Effect<boolean, QueueError.QueueUnavailable> => {
    const id = idOf(job.id)
    if (endOf(job) !== undefined || (error === undefined && isExpired(job))) return Effect.succeed(false)
    return Effect.gen(function*() {
      const early = error === undefined
        ? undefined
        : yield* stored.endOf(codecs, Exit.fail(error), { ...stored.noTimes, queued: now() - job.data.createdAt })
      const data = { ...job.data, cancelledAt: now(), early }
      const waits = !isTaken(job)
      yield* Effect.mapError(
        queue.ask(() =>
          job.updateData(data)
            // Who holds it interrupts it; else the next that takes one takes it, and ends it at once.
            .then(() => job.updateProgress({ cancel: true }))
            .then(() => waits ? job.changePriority({ priority: 1 }) : undefined)
        ),
        unavailable(id)
      )
      yield* interrupt(job.id)
      return true
    })
  }

  /** What this process holds is not begun, or goes no further. */
  const interrupt = (jobId: string) =>
    Effect.suspend(() => {
      const taken = running.get(jobId)
      if (taken === undefined) return Effect.void
      taken.isCancelled = true
      return local.cancel(modelId, taken.id)
    })

  /** Ends a request that its submitter waits for no longer, and not another one with its id. */
  const withdraw = (id: string, { submission }: stored.StoredRequest, error?: QueueError.SubmitError) =>
    Effect.flatMap(find(id), (job) => job.data.submission === submission ? end(job, error) : Effect.succeed(false))

  const cancel = (id: string): Effect.Effect<boolean, QueueError.RequestNotFound | QueueError.QueueUnavailable> =>
    Effect.flatMap(find(id), (job) => end(job))

  // Processing -----------------------------------------------------------------------------------------------------

  const running = new Map<string, Taken>()
  let isDraining = false

  const serve = Effect.fnUntraced(function*(processor: Processor) {
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
    limited = config
    yield* local.register(mine, (request) =>
      Effect.suspend(() => {
        const taken = running.get(jobIdOf(request.id))
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

    const attempt = Effect.fnUntraced(function*(job: StoredJob, taken: Taken) {
      const { data } = job
      const id = idOf(job.id)
      if (data.cancelledAt !== undefined) {
        taken.isCancelled = true
        return data.early ?? { ...stored.noTimes, status: "cancelled" } satisfies stored.StoredEnd
      }
      const left = data.expiresAt === undefined ? undefined : data.expiresAt - now()
      if (left !== undefined && left <= 0) {
        const times = { ...stored.noTimes, queued: now() - data.createdAt }
        return yield* stored.endOf(codecs, Exit.fail(timedOut(id, data, times)), times)
      }
      const decoded = yield* Effect.exit(codecs.params.decode(data.params))
      if (Exit.isFailure(decoded)) {
        const times = { ...stored.noTimes, queued: now() - data.createdAt }
        return { ...times, status: "failed", error: { of: "defect", name: "Undecodable" } } satisfies stored.StoredEnd
      }
      const request = QueueRequest.make(mine as AnyRequest["model"], {
        ...data.options,
        id,
        params: decoded.value,
        // In the order in which they were submitted, not taken.
        priority: Math.max(-86_400, Math.min(86_400, (data.headStart + now() - data.createdAt) / 1000)),
        timeout: left,
        deadline: data.deadline === undefined ? undefined : data.deadline - queue.offset(),
        processingTimeout: data.processingTimeout
      })
      // It may have been lost here and come back, and the first time may not be over yet.
      const submitted = Effect.retry(local.submit(request), {
        while: (error) => error instanceof QueueError.DuplicateRequest,
        schedule: Schedule.spaced(10)
      })
      const exit = yield* Effect.exit(submitted)
      const times = timesOf(data, taken, exit)
      return yield* stored.endOf(
        codecs,
        Exit.match(exit, {
          onSuccess: (response) => Exit.succeed(response.status === "completed" ? response.result : undefined),
          // Here it had what was left of its time.
          onFailure: (cause) =>
            Exit.failCause(
              Cause.map(cause, (error) =>
                error instanceof QueueError.QueueTimeout && error.limit !== "processingTimeout" && left !== undefined
                  ? timedOut(id, data, times)
                  : error)
            )
        }),
        times
      )
    })

    let isClosing = false
    // For another process, or for this one later.
    const giveBack = Effect.fnUntraced(function*(job: StoredJob, token: string) {
      // When it was taken stays at the job.
      yield* Effect.ignore(queue.ask(() => job.updateProgress({ back: job.processedOn })))
      yield* Effect.ignore(queue.ask(() => job.moveToWait(token)))
      return yield* Effect.die(new WaitingError())
    })

    const process = Effect.fnUntraced(function*(job: StoredJob, token: string) {
      // A worker that is paused while it waits for something to come takes that still.
      if (isClosing) return yield* giveBack(job, token)
      // It was lost here, and has come back before that was noticed.
      while (running.has(job.id)) {
        yield* local.cancel(modelId, idOf(job.id))
        yield* Effect.sleep(10)
      }
      const taken: Taken = {
        id: idOf(job.id),
        priority: job.data.options.priority,
        dispatchedAt: undefined,
        attempts: 0,
        processed: 0,
        isCancelled: false
      }
      running.set(job.id, taken)
      const ended = yield* Effect.ensuring(attempt(job, taken), Effect.sync(() => running.delete(job.id)))
      if (ended.status === "completed") return ended
      // Nobody has cancelled it but this process, which has no time for it, or has lost it: it is for another one.
      if (ended.status === "cancelled" && !taken.isCancelled) return yield* giveBack(job, token)
      const failure = new UnrecoverableError(JSON.stringify(ended))
      // It is stored, too, and says nothing.
      failure.stack = ""
      return yield* Effect.die(failure)
    })

    const worker = yield* Effect.acquireRelease(
      Effect.sync(() =>
        openWorker(queue.name, store, (job, token) => runPromise(process(job, token)), {
          concurrency: takeAhead,
          lock,
          maxCrashes
        })
      ),
      (worker) =>
        Effect.gen(function*() {
          const { deadline, policy } = settings.shutdown(local.shutdown(), config.shutdown, [])
          isClosing = true
          const within = (promise: () => Promise<unknown>) =>
            Effect.ignore(Effect.interruptible(Effect.timeoutOption(Effect.tryPromise(promise), store.commandTimeout)))
          yield* within(() => worker.pause(true))
          yield* local.cancelWaiting(modelId)
          if (policy === "interrupt") yield* interruptAll
          yield* Effect.interruptible(Effect.timeoutOption(atRest, deadline))
          if (running.size > 0) yield* interruptAll
          yield* within(() => worker.close())
          yield* within(() => abandon(worker))
        })
    )
    const atRest = Effect.whileLoop({
      while: () => running.size > 0,
      body: () => Effect.sleep(10),
      step: () => {}
    })
    const interruptAll = Effect.suspend(() =>
      Effect.forEach(Array.from(running.values()), ({ id }) => local.cancel(modelId, id), { discard: true })
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
    yield* Scope.addFinalizer(
      scope,
      Effect.sync(queue.onNotice((jobId) => {
        if (running.has(jobId)) run(interrupt(jobId))
      }))
    )
    yield* Scope.addFinalizer(
      scope,
      Effect.sync(queue.onPause((isPaused) => {
        run(local.setPaused(modelId, isPaused))
      }))
    )
    const isPaused = yield* Effect.mapError(queue.ask((queue) => queue.isPaused()), unavailable(undefined))
    if (isPaused) yield* local.setPaused(modelId, true)
    yield* Effect.ignore(
      Effect.timeoutOption(Effect.tryPromise(() => worker.waitUntilReady()), store.commandTimeout)
    )
  })

  return {
    modelId,
    model,
    config,
    queue,
    codecs,
    now,
    running,
    serve,
    submit,
    accept,
    pending,
    find,
    snapshot,
    awaitCompletion,
    cancel,
    end,
    isOver,
    isTaken,
    unavailable,
    notFound,
    priorityOf,
    setDraining: (draining: boolean) => {
      isDraining = draining
    },
    isDraining: () => isDraining,
    limited: () => limited,
    setLimits: (limits: settings.Settings["limits"]) => {
      limited = { ...config, limits }
    },
    suspended: () => suspended
  }
})
