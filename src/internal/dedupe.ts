/**
 * Requests with one key share one call.
 *
 * It stands in front of a queue. The call is a request of the queue like any other, with an id and without a timeout of
 * its own; those who share it are kept here, each with an id, a timeout and an end of its own. The call is cancelled
 * when the last of them has left.
 */
import * as Cause from "effect/Cause"
import type * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import type * as ModelConfig from "../ModelConfig.ts"
import * as QueueError from "../QueueError.ts"
import type * as QueueManager from "../QueueManager.ts"
import * as QueueRequest from "../QueueRequest.ts"
import type * as QueueResponse from "../QueueResponse.ts"
import type * as ResultStore from "../ResultStore.ts"
import { type AnyRequest, CurrentEntry, type Failure, type ProcessorFailure, type Snapshot } from "./entry.ts"
import type { ModelQueue } from "./modelQueue.ts"
import * as requestContext from "./requestContext.ts"
import * as requestId from "./requestId.ts"
import * as settings from "./settings.ts"
import * as streams from "./streams.ts"
import * as time from "./time.ts"

type Completed = QueueResponse.Completed<unknown>

interface Flight {
  readonly key: string
  /** The id of the call. */
  readonly id: string
  /** The highest one of those who share it. */
  headStart: number
  priority: ModelConfig.Priority | undefined
  readonly sharers: Set<Sharer>
  readonly accepted: Deferred.Deferred<void, QueueError.AcceptError>
  fiber: Fiber.Fiber<void> | undefined
  isAccepted: boolean
  /** How it has ended, while that is being kept. */
  landed: Completed | undefined
}

/** A request that shares a call. */
interface Sharer {
  readonly id: string
  readonly flight: Flight
  readonly tenant: string | undefined
  readonly labels: Readonly<Record<string, string>> | undefined
  /** Whether the call was there before it. */
  readonly isFollower: boolean
  /** Wall clock, and monotonic. */
  readonly createdAt: number
  readonly submittedAt: number
  readonly timeout: number
  readonly hasDeadline: boolean
  readonly told: Deferred.Deferred<Completed, Failure>
  /** From its end on. */
  ended: { readonly response: Snapshot; readonly exit: Exit.Exit<Completed, Failure>; readonly at: number } | undefined
}

const zero = Duration.zero

/** How long a store may take: a result that is not there by then counts as not kept. */
const patience = "5 seconds"

export const make = (
  queue: ModelQueue,
  config: settings.Settings,
  store: ResultStore.ResultStore | undefined,
  clock: Clock.Clock,
  publish: (snapshot: () => Snapshot) => void
): ModelQueue => {
  const { modelId } = config
  const { keep } = config.deduplicate
  const now = time.monotonic(clock)
  const flights = new Map<string, Flight>()
  const calls = new Set<string>()
  /** Those that share a call now, and those that have, as long as they are retained; in the order of their ends. */
  const sharers = new Map<string, Sharer>()
  const retained = new Map<string, Sharer>()
  /** Of those that share now, how many joined. */
  let followers = 0

  /** What a store answers; nothing when it breaks or takes too long. */
  const patiently = <A>(effect: Effect.Effect<A>): Effect.Effect<Option.Option<A>> =>
    Effect.catchCause(
      Effect.timeoutOption(effect, patience),
      (cause) => Effect.as(Effect.logWarning(`The store of results of model ${modelId} broke`, cause), Option.none())
    )

  const invalid = (id: unknown, problem: string) =>
    new QueueError.InvalidRequest({ modelId, requestId: settings.nameOf(id), problems: [problem] })

  // ---------------------------------------------------------------------------------------------------------------
  // What is known of a sharer
  // ---------------------------------------------------------------------------------------------------------------

  const asOf = (sharer: Sharer, call: Snapshot): Snapshot => ({
    ...call,
    requestId: sharer.id,
    tenant: sharer.tenant,
    createdAt: sharer.createdAt,
    sharedWith: sharer.flight.id
  })

  const unknownCall = (sharer: Sharer): QueueResponse.Base => ({
    requestId: sharer.id,
    modelId,
    tenant: sharer.tenant,
    createdAt: sharer.createdAt,
    queueTime: Duration.millis(now() - sharer.submittedAt),
    processingTime: zero,
    attempts: 0,
    timeToFirstElement: undefined,
    refusals: [],
    inputTokensUsed: undefined,
    outputTokensUsed: undefined,
    sharedWith: sharer.flight.id
  })

  const status = (sharer: Sharer): Effect.Effect<Snapshot> =>
    sharer.ended !== undefined ? Effect.succeed(sharer.ended.response) : Effect.match(queue.status(sharer.flight.id), {
      onSuccess: (call) => asOf(sharer, call),
      onFailure: (): Snapshot => ({ ...unknownCall(sharer), status: "pending" })
    })

  const expire = () => {
    for (const [id, sharer] of retained) {
      if (retained.size <= config.retainCount && sharer.ended!.at + config.retainAge > now()) return
      retained.delete(id)
      if (sharers.get(id) === sharer) sharers.delete(id)
    }
  }

  const find = (id: string): Sharer | undefined => {
    if (sharers.size === 0) return undefined
    expire()
    return sharers.get(id)
  }

  /** Ends a sharer, unless it has ended already. The call goes on as long as others share it. */
  const end = (sharer: Sharer, exit: Exit.Exit<Completed, Failure>, call: Snapshot | undefined): boolean => {
    if (sharer.ended !== undefined) return false
    const base = call === undefined ? unknownCall(sharer) : asOf(sharer, call)
    const response: Snapshot = Exit.isSuccess(exit)
      ? { ...base, status: "completed", result: exit.value.result }
      : Cause.findErrorOption(exit.cause).pipe(Option.filter(isCancelled), Option.isSome)
      ? { ...base, status: "cancelled" }
      : { ...base, status: "failed", cause: exit.cause }
    sharer.ended = {
      response,
      exit: Exit.isSuccess(exit) ? Exit.succeed(response as Completed) : exit,
      at: now()
    }
    if (sharer.isFollower) followers--
    sharer.flight.sharers.delete(sharer)
    retained.set(sharer.id, sharer)
    expire()
    publish(() => response)
    Deferred.doneUnsafe(sharer.told, sharer.ended.exit)
    return true
  }

  const isCancelled = (error: Failure) => QueueError.isQueueError(error) && error._tag === "RequestCancelled"

  /** Ends a sharer before its call has ended, and the call if it was the last one. */
  const leave = (sharer: Sharer, error: QueueError.SubmitError): Effect.Effect<boolean> =>
    Effect.map(Effect.option(queue.status(sharer.flight.id)), (call) => {
      const { flight } = sharer
      if (!end(sharer, Exit.fail(error), Option.getOrUndefined(call))) return false
      if (flight.sharers.size === 0) abandon(flight)
      return true
    })

  const abandon = (flight: Flight) => {
    if (flights.get(flight.key) !== flight || flight.landed !== undefined) return
    flights.delete(flight.key)
    if (flight.isAccepted) {
      Effect.runFork(Effect.ignore(queue.cancel(flight.id)))
    } else {
      calls.delete(flight.id)
      flight.fiber?.interruptUnsafe()
    }
  }

  // ---------------------------------------------------------------------------------------------------------------
  // Sharing
  // ---------------------------------------------------------------------------------------------------------------

  /** Submits the call, tells those who share it how it ended, and keeps its result. */
  const fly = (flight: Flight, request: AnyRequest): Effect.Effect<void> =>
    Effect.gen(function*() {
      const call = QueueRequest.make<unknown, unknown, ProcessorFailure, false>(request.model, {
        ...request,
        id: flight.id,
        params: request.params,
        priority: flight.priority,
        dedupeKey: false,
        // Each of those who share it has its own.
        timeout: Duration.infinity,
        deadline: undefined,
        waitForCompletion: false
      })
      const pending = yield* Effect.exit(queue.accept(call)).pipe(
        Effect.updateService(requestContext.CurrentRequestContext, (context) => ({ ...context, deadline: undefined }))
      )
      if (Exit.isFailure(pending)) return yield* land(flight, Exit.failCause(pending.cause))
      flight.isAccepted = true
      Deferred.doneUnsafe(flight.accepted, Exit.void)
      // It belongs to nobody: who asked first may leave.
      const exit = yield* queue.awaitCompletion(flight.id).pipe(
        // It is known: it has just been accepted, and who waits for it keeps it.
        Effect.mapError((error) => error as Failure),
        Effect.exit,
        Effect.provideService(CurrentEntry, undefined)
      )
      yield* land(flight, exit)
    })

  const land = Effect.fnUntraced(function*(flight: Flight, exit: Exit.Exit<Completed, Failure>) {
    const call = Option.getOrUndefined(yield* Effect.option(queue.status(flight.id)))
    const completed = Exit.isSuccess(exit) && store !== undefined ? exit.value : undefined
    // Before anybody is told: who comes now asks anew, or gets what is being kept.
    flight.landed = completed
    if (completed === undefined && flights.get(flight.key) === flight) flights.delete(flight.key)
    calls.delete(flight.id)
    // A request that was not accepted fails those who share it in the same way.
    if (Exit.isFailure(exit)) {
      const cause = Cause.map(exit.cause, (error) => error as QueueError.AcceptError)
      Deferred.doneUnsafe(flight.accepted, Exit.failCause(cause))
    }
    for (const sharer of Array.from(flight.sharers)) end(sharer, exit, call)
    if (completed === undefined || store === undefined) return
    yield* patiently(store.set(flight.key, completed.result, keep))
    if (flights.get(flight.key) === flight) flights.delete(flight.key)
  })

  /** The id, or a new one in place of one that nobody chose; `undefined` when it is taken. */
  const freeId = (id: string): string | undefined =>
    find(id) === undefined && !queue.has(id) ? id : requestId.isGenerated(id) ? requestId.generate() : undefined

  /** What is wrong with a request as far as it is its own; the rest is checked when the call is submitted. */
  const prepare = (request: AnyRequest, context: requestContext.RequestContext) => {
    const problems: Array<string> = []
    const idProblem = settings.checkId(request.id)
    if (idProblem !== undefined) problems.push(`id: ${idProblem}`)
    const number = (name: string, value: number | string): number => {
      if (typeof value === "number") return value
      problems.push(`${name}: ${value}`)
      return 0
    }
    const timeout = request.timeout === undefined
      ? config.timeout
      : number("timeout", settings.timeout(request.timeout))
    const wall = clock.currentTimeMillisUnsafe()
    const deadline = request.deadline === undefined
      ? context.deadline
      : settings.earlier(context.deadline, request.deadline)
    const left = deadline === undefined
      ? Number.POSITIVE_INFINITY
      : number("deadline", settings.instant(deadline)) - wall
    const tenant = request.tenant ?? context.tenant
    const tenantProblem = tenant === undefined ? undefined : settings.checkId(tenant)
    if (tenantProblem !== undefined) problems.push(`tenant: ${tenantProblem}`)
    const priority = request.priority ?? context.priority
    const headStart = priority === undefined ? config.headStart : number("priority", settings.headStart(priority))
    return {
      problems,
      wall,
      timeout: Math.min(timeout, left),
      hasDeadline: left < timeout,
      tenant,
      priority,
      headStart
    }
  }

  /** Lets a request share the call of its key, which is started if there is none. One synchronous step. */
  const join = (key: string, request: AnyRequest): Effect.Effect<Sharer, QueueError.AcceptError> =>
    Effect.withFiber((fiber): Effect.Effect<Sharer, QueueError.AcceptError> => {
      const context = fiber.getRef(requestContext.CurrentRequestContext)
      const { hasDeadline, headStart, priority, problems, tenant, timeout, wall } = prepare(request, context)
      if (problems.length > 0) {
        return Effect.fail(
          new QueueError.InvalidRequest({ modelId, requestId: settings.nameOf(request.id), problems })
        )
      }
      if (timeout <= 0) {
        return Effect.fail(
          new QueueError.QueueTimeout({
            modelId,
            requestId: request.id,
            limit: "deadline",
            timeoutMillis: timeout,
            queueTimeMillis: 0,
            processingTimeMillis: 0
          })
        )
      }
      const id = freeId(request.id)
      if (id === undefined) {
        return Effect.fail(new QueueError.DuplicateRequest({ modelId, requestId: request.id }))
      }
      const found = flights.get(key)
      const shared = found?.landed === undefined ? found : undefined
      if (shared !== undefined && request.waitForCompletion && queue.isWithin(shared.id, fiber.getRef(CurrentEntry))) {
        return Effect.fail(
          invalid(id, "a processor cannot wait for the call that it is part of: its dedupeKey is the same")
        )
      }
      if (shared !== undefined && followers >= config.capacity) {
        return Effect.fail(new QueueError.QueueFull({ modelId, requestId: id, capacity: config.capacity }))
      }
      const flight: Flight = shared ?? {
        key,
        id: requestId.generate(),
        headStart,
        priority,
        sharers: new Set(),
        accepted: Deferred.makeUnsafe(),
        fiber: undefined,
        isAccepted: false,
        landed: undefined
      }
      const sharer: Sharer = {
        id,
        flight,
        tenant,
        labels: request.labels,
        isFollower: shared !== undefined,
        createdAt: wall,
        submittedAt: now(),
        timeout,
        hasDeadline,
        told: Deferred.makeUnsafe(),
        ended: undefined
      }
      flight.sharers.add(sharer)
      sharers.set(id, sharer)
      if (sharer.isFollower) followers++
      publish(() => ({ ...unknownCall(sharer), status: "pending" }))
      if (shared === undefined) {
        flights.set(key, flight)
        calls.add(flight.id)
        return Effect.map(Effect.forkDetach(fly(flight, request)), (fiber) => {
          flight.fiber = fiber
          return sharer
        })
      }
      if (headStart <= flight.headStart || priority === undefined) return Effect.succeed(sharer)
      flight.headStart = headStart
      flight.priority = priority
      return Effect.as(Effect.ignore(queue.changePriority(flight.id, priority)), sharer)
    })

  const late = (sharer: Sharer) =>
    new QueueError.QueueTimeout({
      modelId,
      requestId: sharer.id,
      limit: sharer.hasDeadline ? "deadline" : "timeout",
      timeoutMillis: sharer.timeout,
      queueTimeMillis: now() - sharer.submittedAt,
      processingTimeMillis: 0
    })

  /** Waits for the end of a sharer. By a processor of this queue, its call may run on that one's permit. */
  const awaitEnd = (sharer: Sharer): Effect.Effect<Completed, Failure> =>
    Effect.flatMap(CurrentEntry, (current) => {
      const told = Deferred.await(sharer.told)
      if (current === undefined) return told
      const lending = Effect.andThen(
        Deferred.await(sharer.flight.accepted),
        Effect.exit(queue.awaitCompletion(sharer.flight.id))
      )
      return Effect.raceFirst(told, Effect.andThen(Effect.exit(lending), told))
    })

  const timed = (sharer: Sharer, wait: Effect.Effect<Completed, Failure>): Effect.Effect<Completed, Failure> =>
    sharer.timeout === Number.POSITIVE_INFINITY ? wait : Effect.timeoutOrElse(wait, {
      duration: Duration.millis(sharer.timeout),
      orElse: () => Effect.andThen(leave(sharer, late(sharer)), Deferred.await(sharer.told))
    })

  const cancelled = (sharer: Sharer) => new QueueError.RequestCancelled({ modelId, requestId: sharer.id })

  /** The result that is kept for a key: an end without a call. */
  const kept = (key: string, request: AnyRequest): Effect.Effect<Completed | undefined> =>
    Effect.suspend(() => {
      const flight = flights.get(key)
      if (store === undefined || (flight !== undefined && flight.landed === undefined)) return Effect.undefined
      const found: Effect.Effect<Option.Option<unknown>> = flight?.landed === undefined
        ? Effect.map(patiently(store.get(key)), Option.flatten)
        : Effect.succeedSome(flight.landed.result)
      return Effect.map(
        found,
        Option.match({
          onNone: () => undefined,
          onSome: (result): Completed => ({
            requestId: request.id,
            modelId,
            tenant: request.tenant,
            createdAt: clock.currentTimeMillisUnsafe(),
            queueTime: zero,
            processingTime: zero,
            attempts: 0,
            timeToFirstElement: undefined,
            refusals: [],
            inputTokensUsed: undefined,
            outputTokensUsed: undefined,
            isKept: true,
            status: "completed",
            result
          })
        })
      )
    })

  /** Remembers a request that was answered by a kept result, as one that has ended. */
  const remember = (key: string, response: Completed) => {
    const flight: Flight = {
      key,
      id: response.requestId,
      headStart: 0,
      priority: undefined,
      sharers: new Set(),
      accepted: Deferred.makeUnsafe(),
      fiber: undefined,
      isAccepted: true,
      landed: response
    }
    const sharer: Sharer = {
      id: response.requestId,
      flight,
      tenant: response.tenant,
      labels: undefined,
      isFollower: false,
      createdAt: response.createdAt,
      submittedAt: now(),
      timeout: Number.POSITIVE_INFINITY,
      hasDeadline: false,
      told: Deferred.makeUnsafe(),
      ended: { response, exit: Exit.succeed(response), at: now() }
    }
    sharers.set(sharer.id, sharer)
    retained.set(sharer.id, sharer)
    publish(() => response)
    expire()
  }

  const keyOf = (request: AnyRequest): string | undefined | QueueError.InvalidRequest => {
    if (request.dedupeKey === false || streams.isStream(request)) return undefined
    if (request.dedupeKey !== undefined) {
      const problem = settings.checkId(request.dedupeKey)
      return problem === undefined ? `key ${request.dedupeKey}` : invalid(request.id, `dedupeKey: ${problem}`)
    }
    const key = config.deduplicate.keyOf?.(request.params)
    return typeof key === "object" ? invalid(request.id, key.problem) : key === undefined ? undefined : `params ${key}`
  }

  const keyed = <A>(
    request: AnyRequest,
    plain: (request: AnyRequest) => Effect.Effect<A, Failure>,
    fromKept: (response: Completed) => A,
    then: (
      sharer: Sharer,
      restore: <B, E>(effect: Effect.Effect<B, E>) => Effect.Effect<B, E>
    ) => Effect.Effect<A, Failure>
  ): Effect.Effect<A, Failure> => {
    const key = keyOf(request)
    if (key === undefined) {
      return sharers.size > 0 && find(request.id) !== undefined && !requestId.isGenerated(request.id)
        ? Effect.fail(new QueueError.DuplicateRequest({ modelId, requestId: request.id }))
        : plain(request)
    }
    if (typeof key === "object") return Effect.fail(key)
    return Effect.uninterruptibleMask((restore) =>
      Effect.flatMap(restore(kept(key, request)), (found): Effect.Effect<A, Failure> => {
        if (found !== undefined) {
          const id = freeId(found.requestId)
          if (id === undefined) {
            return Effect.fail(new QueueError.DuplicateRequest({ modelId, requestId: found.requestId }))
          }
          const response = { ...found, requestId: id }
          remember(key, response)
          return Effect.succeed(fromKept(response))
        }
        return Effect.flatMap(join(key, request), (sharer) => then(sharer, restore))
      })
    )
  }

  // ---------------------------------------------------------------------------------------------------------------
  // The queue as it is seen from outside
  // ---------------------------------------------------------------------------------------------------------------

  const mayBeShared = (request: AnyRequest) =>
    request.dedupeKey !== undefined || config.deduplicate.keyOf !== undefined || sharers.size > 0

  return {
    ...queue,
    submit: (request) =>
      mayBeShared(request)
        ? keyed(request, queue.submit, (response) => response, (sharer, restore) =>
          Effect.onInterrupt(
            restore(timed(sharer, awaitEnd(sharer))),
            () => leave(sharer, cancelled(sharer))
          ))
        : queue.submit(request),
    accept: (request) =>
      mayBeShared(request)
        ? Effect.mapError(
          keyed(
            request,
            queue.accept,
            (response): QueueResponse.Pending<unknown, ProcessorFailure> => ({ ...response, status: "pending" }),
            (sharer, restore) =>
              Effect.gen(function*() {
                if (sharer.timeout !== Number.POSITIVE_INFINITY) {
                  yield* Effect.forkDetach(
                    Effect.ignore(timed(sharer, Deferred.await(sharer.told))).pipe(
                      Effect.provideService(CurrentEntry, undefined)
                    )
                  )
                }
                yield* Effect.onInterrupt(
                  restore(Effect.raceFirst(Deferred.await(sharer.flight.accepted), Deferred.await(sharer.told))),
                  () => leave(sharer, cancelled(sharer))
                )
                return { ...(yield* status(sharer)), status: "pending" as const }
              })
          ),
          // Whatever it fails with fails its acceptance.
          (error) => error as QueueError.AcceptError
        )
        : queue.accept(request),
    awaitCompletion: (id) =>
      Effect.suspend(() => {
        const sharer = find(id)
        return sharer === undefined ? queue.awaitCompletion(id) : sharer.ended?.exit ?? awaitEnd(sharer)
      }),
    status: (id) =>
      Effect.suspend(() => {
        const sharer = find(id)
        return sharer === undefined ? queue.status(id) : status(sharer)
      }),
    cancel: (id) =>
      Effect.suspend(() => {
        const sharer = find(id)
        return sharer === undefined ? queue.cancel(id) : leave(sharer, cancelled(sharer))
      }),
    cancelAll: (filter) => sharers.size === 0 ? queue.cancelAll(filter) : cancelAll(filter),
    changePriority: (id, priority) => queue.changePriority(find(id)?.flight.id ?? id, priority),
    reportUsage: (id, usage) => queue.reportUsage(find(id)?.flight.id ?? id, usage)
  }

  function cancelAll(filter: QueueManager.RequestFilter): Effect.Effect<number, QueueError.InvalidRequest> {
    return Effect.gen(function*() {
      const matches = settings.requestFilter(filter)
      if (typeof matches !== "function") {
        return yield* new QueueError.InvalidRequest({ modelId, requestId: "", problems: matches })
      }
      // A call is for those who share it to cancel.
      const cancelled_ = yield* queue.cancelAll({
        ...filter,
        where: (response) => !calls.has(response.requestId) && (filter.where?.(response) ?? true)
      })
      let count = cancelled_
      for (const sharer of Array.from(sharers.values())) {
        if (sharer.ended !== undefined) continue
        const response = yield* status(sharer)
        const described = {
          id: sharer.id,
          tenant: sharer.tenant,
          labels: sharer.labels,
          status: response.status === "processing" ? "processing" as const : "pending" as const,
          age: now() - sharer.submittedAt
        }
        if (matches(described, () => response) && (yield* leave(sharer, cancelled(sharer)))) count++
      }
      return count
    })
  }
}
