/**
 * One stored model in this process: its requests go into the store, and are asked about, awaited and cancelled there. How
 * they come out of it again is in serving.ts.
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as QueueError from "../../QueueError.ts"
import type * as QueueResponse from "../../QueueResponse.ts"
import * as TokenEstimator from "../../TokenEstimator.ts"
import { ask, overdue } from "../asked.ts"
import { type AnyModel, type AnyRequest, CurrentEntry, type Failure, type Snapshot, withWaiters } from "../entry.ts"
import { costOf } from "../estimate.ts"
import type { Processor } from "../modelQueue.ts"
import * as requestContext from "../requestContext.ts"
import * as requestId from "../requestId.ts"
import * as settings from "../settings.ts"
import type { Kept, Store, StoredJob } from "./engine.ts"
import { endOf, type Heard, idOf, isOurs, jobIdOf, make as makeQueue } from "./queue.ts"
import { type Local, serve, type Taken } from "./serving.ts"
import * as stored from "./stored.ts"

export interface Options {
  readonly store: Store
  readonly codec: stored.Codec | undefined
  /** Milliseconds. */
  readonly lock: number
  readonly takeAhead: number
  readonly maxCrashes: number
  /** What is wrong with them. */
  readonly problems: ReadonlyArray<string>
}

/** What is known of a request before it is written. */
type Prepared = Omit<stored.StoredRequest, "params" | "options"> & {
  readonly options: Omit<stored.StoredRequest["options"], "metadata">
}

/** A request that is in the store, and which one with its id it is. */
export interface Submitted {
  readonly id: string
  readonly submission: string
  readonly data: stored.StoredRequest
}

/** What its definition makes of a model: another one may be registered with its id. */
interface Shape {
  readonly model: AnyModel
  /** With the limits that this process has changed, if it has. */
  readonly config: settings.Settings
  readonly codecs: stored.Codecs
  readonly kept: Kept
  readonly letters: Kept
  readonly estimator: TokenEstimator.Estimator
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
/** Of fewer ends the latest may be gone before its submitter has looked. */
const brief = 100
/** How often the depth is asked for. */
const counted = 100

const shapeOf = (
  model: AnyModel,
  config: settings.Settings,
  codec: stored.Codec | undefined
): Shape | QueueError.InvalidConfiguration => {
  const { modelId } = config
  const codecs = stored.codecsOf(model.definition, codec)
  if (codecs === undefined || config.isStream) {
    const problems = [
      config.isStream
        ? "a stream cannot be stored: register its model in a queue in memory"
        : "params and result: a stored model needs schemas (ModelConfig.make), so that other processes can read its requests"
    ]
    return new QueueError.InvalidConfiguration({ modelId, problems })
  }
  return {
    model,
    config,
    codecs,
    kept: { age: seconds(config.retainAge), count: config.retainCount },
    letters: {
      age: seconds(Math.max(config.retainAge, config.letterCount > 0 ? config.letterAge : 0)),
      count: Math.max(config.retainCount, config.letterCount)
    },
    estimator: TokenEstimator.learned(config.provider?.profile.estimation).make(modelId)
  }
}

export type Model = Effect.Success<ReturnType<typeof make>>

export const make = Effect.fnUntraced(function*(
  model: AnyModel,
  initial: settings.Settings,
  options: Options,
  local: Local
) {
  const { codec, maxCrashes, store } = options
  const { modelId } = initial
  const first = shapeOf(model, initial, codec)
  if ("_tag" in first) return yield* first
  let shape = first
  const clock = yield* Clock.Clock
  const queue = yield* Effect.mapError(
    makeQueue(store, modelId),
    (reason) => new QueueError.QueueUnavailable({ modelId, requestId: undefined, reason })
  )
  const now = () => clock.currentTimeMillisUnsafe() + queue.offset()
  /** What this process has taken. */
  const running = new Map<string, Taken>()
  let isDraining = false

  const unavailable = (requestId: string | undefined) => (reason: string) =>
    new QueueError.QueueUnavailable({ modelId, requestId, reason })
  const notFound = (id: string) => new QueueError.RequestNotFound({ modelId, requestId: settings.nameOf(id) })

  // What is stored -------------------------------------------------------------------------------------------------

  const find = (id: string): Effect.Effect<StoredJob, QueueError.RequestNotFound | QueueError.QueueUnavailable> =>
    Effect.flatMap(
      Effect.mapError(queue.ask((queue) => queue.getJob(jobIdOf(id))), unavailable(id)),
      (job) => isOurs(job) ? Effect.succeed(job) : Effect.fail(notFound(id))
    )

  /** Whether a process has taken it. One that was given back still says when it was taken. */
  const isTaken = ({ finishedOn, id, processedOn }: StoredJob): Effect.Effect<boolean, QueueError.QueueUnavailable> =>
    typeof processedOn !== "number" || typeof finishedOn === "number"
      ? Effect.succeed(false)
      : running.has(id)
      ? Effect.succeed(true)
      : queue.ask((queue) => queue.getJobState(id)).pipe(
        Effect.mapBoth({ onSuccess: (state) => state === "active", onFailure: unavailable(idOf(id)) })
      )

  /** Whether its time is over, and nobody has been there to say so. */
  const isExpired = ({ data: { expiresAt } }: StoredJob, taken: boolean): boolean =>
    expiresAt !== undefined && expiresAt <= now() && !taken

  const isOver = (job: StoredJob, taken: boolean): boolean => endOf(job) !== undefined || isExpired(job, taken)

  const timedOut = (id: string, { createdAt, expiresAt, hasDeadline }: Prepared, times: stored.StoredTimes) =>
    new QueueError.QueueTimeout({
      modelId,
      requestId: id,
      limit: hasDeadline ? "deadline" : "timeout",
      timeoutMillis: expiresAt! - createdAt,
      queueTimeMillis: times.queued,
      processingTimeMillis: times.processed
    })

  const respond = (id: string, data: stored.StoredRequest, end: stored.StoredEnd): Effect.Effect<Snapshot> =>
    stored.responseOf(shape.codecs, stored.baseOf(modelId, id, data, end), end)

  const snapshot = (job: StoredJob, taken: boolean): Effect.Effect<Snapshot> => {
    const id = idOf(job.id)
    const { createdAt, expiresAt } = job.data
    const end = endOf(job)
    if (end !== undefined) return respond(id, job.data, end)
    if (isExpired(job, taken)) {
      const times = { ...stored.noTimes, queued: expiresAt! - createdAt }
      return Effect.succeed({
        ...stored.baseOf(modelId, id, job.data, times),
        status: "failed",
        cause: Cause.fail(timedOut(id, job.data, times))
      })
    }
    const here = running.get(job.id)
    const isRunning = here === undefined ? taken : here.dispatchedAt !== undefined
    const at = now()
    const queued = (here?.dispatchedAt ?? (isRunning ? job.processedOn ?? at : at)) - createdAt
    const base = stored.baseOf(modelId, id, job.data, {
      ...stored.noTimes,
      queued: Math.max(0, queued),
      processed: isRunning ? Math.max(0, at - createdAt - queued) : 0,
      attempts: here?.attempts ?? (isRunning ? 1 : 0)
    })
    return Effect.succeed({ ...base, status: isRunning ? "processing" : "pending" })
  }

  const pending = ({ data, id }: Submitted): Snapshot => ({
    ...stored.baseOf(modelId, id, data, stored.noTimes),
    status: "pending"
  })

  // Ends -----------------------------------------------------------------------------------------------------------

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

  /** Hears of the end of a submission from now on, for as long as it is used. */
  const listening = <A, E, R>(
    id: string,
    submission: string,
    use: (heard: Effect.Effect<Heard>) => Effect.Effect<A, E, R>
  ): Effect.Effect<A, E, R> =>
    Effect.acquireUseRelease(
      Effect.sync(() => {
        const done = Deferred.makeUnsafe<Heard>()
        const undo = queue.onEnd(jobIdOf(id), submission, (heard) => Deferred.doneUnsafe(done, Effect.succeed(heard)))
        return { heard: Deferred.await(done), undo }
      }),
      ({ heard }) => use(heard),
      ({ undo }) => Effect.sync(undo)
    )

  const completion = (
    { data, id, submission }: Submitted,
    heard: Effect.Effect<Heard>
  ): Effect.Effect<QueueResponse.Completed<unknown>, Failure> => {
    const ended = Effect.flatMap(heard, (heard): Effect.Effect<QueueResponse.Completed<unknown>, Failure> => {
      if (heard === "closed") return Effect.fail(new QueueError.QueueShutdown({ modelId, requestId: id }))
      if (heard === "lost") {
        return Effect.fail(unavailable(id)("the store has lost the request, or kept its end no longer"))
      }
      return Effect.flatMap(respond(id, data, heard), told)
    })
    const { expiresAt } = data
    if (expiresAt === undefined) return ended
    // Until its time is over: nobody else may be there to say so.
    return Effect.timeoutOrElse(ended, {
      duration: Math.max(0, expiresAt - now()),
      orElse: () => {
        const error = timedOut(id, data, { ...stored.noTimes, queued: now() - data.createdAt })
        return Effect.andThen(Effect.ignore(end(id, submission, data, error)), Effect.fail(error))
      }
    })
  }

  const awaitCompletion = (id: string) =>
    Effect.flatMap(find(id), (job) =>
      listening(id, job.name, (heard) =>
        // It may have ended before anybody listened.
        Effect.andThen(
          Effect.mapError(queue.look(job.id), unavailable(id)),
          completion({ id, submission: job.name, data: job.data }, heard)
        )))

  // Cancellation ---------------------------------------------------------------------------------------------------

  /** Ends a submission before its time, and no other one with its id. `false` when it has ended. */
  const end = (
    id: string,
    submission: string,
    { createdAt }: Pick<Prepared, "createdAt">,
    error?: QueueError.SubmitError
  ): Effect.Effect<boolean, QueueError.QueueUnavailable> =>
    Effect.gen(function*() {
      const times = { ...stored.noTimes, queued: now() - createdAt }
      const cause = error ?? new QueueError.RequestCancelled({ modelId, requestId: id })
      const of = { modelId, requestId: id, submission }
      const cancelled = yield* stored.endOf(shape.codecs, of, Exit.fail(cause), times)
      const jobId = jobIdOf(id)
      const answer = yield* Effect.mapError(queue.cancel(jobId, cancelled), unavailable(id))
      if (answer !== "cancelled") return false
      yield* interrupt(jobId, submission)
      // The next one that takes something takes it, and ends it at once.
      yield* Effect.ignore(queue.ask((queue) => queue.backend.changePriority(jobId, 1)))
      return true
    })

  /** What this process holds is not begun, or goes no further. */
  const interrupt = (jobId: string, submission: string) =>
    Effect.suspend(() => {
      const taken = running.get(jobId)
      if (taken === undefined || taken.submission !== submission) return Effect.void
      taken.isCancelled = true
      return local.cancel(modelId, taken.id)
    })

  const cancel = (id: string): Effect.Effect<boolean, QueueError.RequestNotFound | QueueError.QueueUnavailable> =>
    Effect.flatMap(
      find(id),
      (job) =>
        Effect.flatMap(
          isTaken(job),
          (taken) => isOver(job, taken) ? Effect.succeed(false) : end(id, job.name, job.data)
        )
    )

  // Room -----------------------------------------------------------------------------------------------------------

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
  const isFull = (id: string) => new QueueError.QueueFull({ modelId, requestId: id, capacity: shape.config.capacity })

  /** Whether there is room in the queue, as far as it is known here. */
  const hasRoom = (id: string): Effect.Effect<boolean, QueueError.QueueDraining | QueueError.QueueUnavailable> =>
    Effect.flatMap(Effect.mapError(readDepth, unavailable(id)), (count) =>
      isDraining
        ? Effect.fail(new QueueError.QueueDraining({ modelId, requestId: id }))
        : Effect.succeed(count < shape.config.capacity))

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
      const { strategy } = shape.config
      if (hasRoom) return Effect.void
      if (strategy === "suspend") return awaitRoom(request, data)
      if (strategy === "reject") return Effect.fail(isFull(id))
      return queue.ask((queue) => queue.getJobs(["prioritized", "waiting"], 0, mostOver, true)).pipe(
        Effect.mapError(unavailable(id)),
        Effect.flatMap((jobs) => {
          const oldest = jobs.find((job): job is StoredJob => isOurs(job) && !isOver(job, false))
          if (oldest === undefined) return Effect.void
          const dropped = idOf(oldest.id)
          return end(dropped, oldest.name, oldest.data, isFull(dropped))
        })
      )
    })

  // Submission -----------------------------------------------------------------------------------------------------

  const prepare = (
    request: AnyRequest,
    inherited: requestContext.RequestContext
  ): Prepared | QueueError.AcceptError => {
    const { config, estimator } = shape
    const problems: Array<string> = []
    const context = requestContext.within(inherited, request)
    const at = now()
    // Deadlines are of the wall clock here; the store's may be another one.
    const asked = ask(config, request, context, clock.currentTimeMillisUnsafe(), problems)
    if (request.dedupeKey !== undefined && request.dedupeKey !== false) {
      problems.push("dedupeKey: stored requests are told apart by their ids only; give equal ones the same id")
    }
    const cost = costOf(config, estimator, { ...request, ...context }, problems)
    if ("_tag" in cost) return cost
    const late = overdue(modelId, request.id, asked)
    if (late !== undefined) return late
    const { hasDeadline, headStart, processingTimeout, tenant, timeout } = asked
    const { estimatedCachedInputTokens, estimatedInputTokens, estimatedOutputTokens, maxOutputTokens } = request
    return {
      version: 1,
      options: {
        estimatedCachedInputTokens,
        estimatedInputTokens,
        estimatedOutputTokens,
        labels: context.labels,
        maxOutputTokens,
        priority: context.priority,
        tenant,
        whenUnavailable: request.whenUnavailable
      },
      headStart,
      createdAt: at,
      expiresAt: Number.isFinite(timeout) ? at + timeout : undefined,
      hasDeadline,
      deadline: context.deadline === undefined
        ? undefined
        : Number(settings.instant(context.deadline)) + queue.offset(),
      processingTimeout: Number.isFinite(processingTimeout) ? processingTimeout : null
    }
  }

  const write = (
    { id, metadata, params }: AnyRequest,
    prepared: Prepared
  ): Effect.Effect<stored.StoredRequest, QueueError.InvalidRequest> => {
    const { codecs } = shape
    const cannot = (name: string) => (error: unknown) =>
      new QueueError.InvalidRequest({
        modelId,
        requestId: id,
        problems: [`${name}: cannot be stored: ${settings.show(error)}`]
      })
    return Effect.gen(function*() {
      const text = yield* Effect.mapError(codecs.params.encode(params), cannot("params"))
      const written = metadata === undefined
        ? undefined
        : yield* Effect.mapError(codecs.json.encode(metadata), cannot("metadata"))
      return { ...prepared, params: text, options: { ...prepared.options, metadata: written } }
    })
  }

  /** Stores a submission. `false` when there is another one with its id. */
  const add = (
    { data, id, submission }: Submitted,
    heard: Effect.Effect<Heard>
  ): Effect.Effect<boolean, QueueError.QueueUnavailable> => {
    const jobId = jobIdOf(id)
    const isBrief = shape.kept.count < brief
    let adding: Promise<unknown> | undefined
    const added = queue.ask((queue) =>
      adding = queue.add(submission, data, {
        jobId,
        priority: priorityOf(data.createdAt, data.headStart),
        // What ends says so. Any other failure is the store's, which has not taken an end.
        attempts: maxCrashes + 1,
        removeOnComplete: shape.kept,
        removeOnFail: shape.letters
      })
    )
    const there = Effect.mapError(queue.ask((queue) => queue.getJob(jobId)), unavailable(id))
    const hasEnded = Effect.map(Effect.timeoutOption(heard, store.commandTimeout), ({ _tag }) => _tag === "Some")
    // An id that is there already is left as it is, and nothing is said.
    const isThere = Effect.flatMap(there, (job): Effect.Effect<boolean, QueueError.QueueUnavailable> => {
      if (job?.name === submission) return Effect.succeed(true)
      // Where ends are hardly kept it may be over, and gone, and followed by another one already: that will be heard.
      if (job !== undefined) return isBrief ? hasEnded : Effect.succeed(false)
      return Effect.flatMap(hasEnded, (hasEnded) =>
        // Else the one that was in its way has gone.
        hasEnded ? Effect.succeed(true) : add({ data, id, submission }, heard))
    })
    // It may be there, whatever has been heard of it, or be there later.
    const undo = Effect.suspend(() => {
      const added = adding
      return added === undefined
        ? Effect.void
        : Effect.asVoid(Effect.andThen(Effect.ignore(Effect.tryPromise(() => added)), end(id, submission, data)))
    })
    const storing = Effect.mapError(added, unavailable(id)).pipe(
      Effect.andThen(requestId.isGenerated(id) ? Effect.succeed(true) : isThere),
      Effect.onError((cause) =>
        Effect.flatMap(queue.later(undo), (undone) =>
          Cause.hasInterrupts(cause)
            ? Effect.flatMap(
              queue.later(Effect.timeoutOption(Fiber.await(undone), store.commandTimeout)),
              (waited) => Effect.asVoid(Fiber.await(waited))
            )
            : Effect.void)
      )
    )
    return isBrief && !requestId.isGenerated(id)
      ? Effect.flatMap(there, (job) => job === undefined ? storing : Effect.succeed(false))
      : storing
  }

  /** Stores a request, which is there when this goes on. */
  const accepted = <A, E>(
    request: AnyRequest,
    then: (submitted: Submitted, heard: Effect.Effect<Heard>) => Effect.Effect<A, E>
  ): Effect.Effect<A, QueueError.AcceptError | E> =>
    Effect.withFiber((fiber): Effect.Effect<A, QueueError.AcceptError | E> => {
      const { id } = request
      const prepared = prepare(request, fiber.getRef(requestContext.CurrentRequestContext))
      if ("_tag" in prepared) return Effect.fail(prepared)
      if (isDraining) return Effect.fail(new QueueError.QueueDraining({ modelId, requestId: id }))
      const submission = requestId.generate()
      return Effect.gen(function*() {
        yield* makeRoom(request, prepared)
        const submitted = { id, submission, data: yield* write(request, prepared) }
        return yield* listening(
          id,
          submission,
          (heard) =>
            Effect.flatMap(add(submitted, heard), (isNew): Effect.Effect<A, QueueError.AcceptError | E> => {
              depth++
              return isNew
                ? then(submitted, heard)
                : Effect.fail(new QueueError.DuplicateRequest({ modelId, requestId: id }))
            })
        )
      })
    })

  const accept = (request: AnyRequest): Effect.Effect<Snapshot, QueueError.AcceptError> =>
    accepted(request, (submitted) => Effect.succeed(pending(submitted)))

  /** Whether what submits is processing a request of this model here, or one that waits for it. */
  const isNested = (fiber: Fiber.Fiber<unknown, unknown>): boolean => {
    const entry = fiber.getRef(CurrentEntry)
    if (entry === undefined) return false
    for (const { id } of withWaiters([entry])) if (running.has(jobIdOf(id))) return true
    return false
  }

  const submit = (request: AnyRequest): Effect.Effect<Snapshot, Failure> =>
    Effect.withFiber((fiber): Effect.Effect<Snapshot, Failure> => {
      if (!request.waitForCompletion) return accept(request)
      // A part of what is processed here, and on its permit: others could not begin it before that has ended.
      if (isNested(fiber)) {
        const { timeout } = shape.config
        return local.submit({
          ...request,
          timeout: request.timeout ?? (Number.isFinite(timeout) ? timeout : undefined)
        })
      }
      return accepted(request, (submitted, heard) =>
        Effect.onInterrupt(
          completion(submitted, heard),
          () => Effect.ignore(end(submitted.id, submitted.submission, submitted.data))
        ))
    })

  return {
    modelId,
    queue,
    now,
    model: () => shape.model,
    config: () => shape.config,
    codecs: () => shape.codecs,
    /** Goes on as another definition has it. */
    adopt: (model: AnyModel, config: settings.Settings): QueueError.InvalidConfiguration | undefined => {
      const next = shapeOf(model, config, codec)
      if ("_tag" in next) return next
      shape = next
      return undefined
    },
    setLimits: (limits: settings.Settings["limits"]) => {
      shape = { ...shape, config: { ...shape.config, limits } }
    },
    serve: (processor: Processor) =>
      serve({
        model: shape.model,
        config: shape.config,
        codecs: shape.codecs,
        options,
        local,
        queue,
        running,
        now,
        timedOut,
        interrupt,
        unavailable
      }, processor),
    submit,
    accept,
    find,
    isTaken,
    isOver,
    snapshot,
    awaitCompletion,
    cancel,
    end,
    unavailable,
    notFound,
    priorityOf,
    setDraining: (draining: boolean) => {
      isDraining = draining
    },
    isDraining: () => isDraining,
    suspended: () => suspended
  }
})
