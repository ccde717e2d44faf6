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
import * as QueueError from "../QueueError.ts"
import type * as QueueManager from "../QueueManager.ts"
import * as QueueRequest from "../QueueRequest.ts"
import type * as QueueResponse from "../QueueResponse.ts"
import type * as ResultStore from "../ResultStore.ts"
import { ask as askFor, type Asked as Own } from "./asked.ts"
import {
  type AnyRequest,
  baseOf,
  CurrentEntry,
  type Entry,
  type Failure,
  processingTime,
  type ProcessorFailure,
  releaseWaiters,
  response,
  type Snapshot
} from "./entry.ts"
import type { Events, ModelQueue } from "./modelQueue.ts"
import * as requestContext from "./requestContext.ts"
import * as requestId from "./requestId.ts"
import * as settings from "./settings.ts"
import * as streams from "./streams.ts"
import * as time from "./time.ts"

type Completed = QueueResponse.Completed<unknown>

interface Flight {
  /** Keys may be whole parameters: empty when nobody looks for it any longer. */
  key: string
  /** The id of the call. */
  readonly id: string
  /** Where the call begins: the highest one of those who share it by then. */
  headStart: number
  readonly sharers: Set<Sharer>
  /** Requests that are being processed, of any queue, and wait for its end; each as often as it does. */
  readonly awaitedBy: Array<Entry>
  readonly entered: Deferred.Deferred<void>
  readonly accepted: Deferred.Deferred<void, QueueError.AcceptError>
  fiber: Fiber.Fiber<unknown, unknown> | undefined
  /** Once the queue has let it in, until all have been told how it ended. */
  call: Entry | undefined
  isAccepted: boolean
  /** How it has ended, while that is being kept. */
  landed: Completed | undefined
}

/** What a request asks, and when. */
interface Asked extends Own {
  /** Wall clock, and monotonic. */
  readonly createdAt: number
  readonly submittedAt: number
}

/** A request that shares a call. */
interface Sharer extends Asked {
  readonly id: string
  readonly flight: Flight
  readonly labels: Readonly<Record<string, string>> | undefined
  /** Whether its submitter waits for the end, and not only for its acceptance. */
  readonly waits: boolean
  /** Whether the call was there before it. */
  readonly isFollower: boolean
  readonly told: Deferred.Deferred<Completed, Failure>
  /** From its end on. */
  ended: { readonly response: Snapshot; readonly exit: Exit.Exit<Completed, Failure>; readonly at: number } | undefined
}

/** Which call an entry is: of all queues, as circles go through several. */
const flightOf = new WeakMap<Entry, Flight>()

/** Whether somebody waits for a request, directly or over others, whose end is that of the call. */
const isWithin = (flight: Flight, current: Entry | undefined): boolean => {
  const seen = new Set<Entry>()
  const open = current === undefined ? [] : [current]
  for (let entry = open.pop(); entry !== undefined; entry = open.pop()) {
    if (seen.has(entry)) continue
    seen.add(entry)
    const shared = flightOf.get(entry)
    if (shared === flight) return true
    open.push(...entry.awaitedBy)
    if (shared !== undefined) open.push(...shared.awaitedBy)
  }
  return false
}

const stopWaiting = (flight: Flight, current: Entry | undefined) => {
  const index = current === undefined ? -1 : flight.awaitedBy.indexOf(current)
  if (index >= 0) flight.awaitedBy.splice(index, 1)
}

const zero = Duration.zero

const ownCall = "a processor cannot wait for the call that it is part of: its dedupeKey is the same"

/** How long a store may take: a result that is not there by then counts as not kept. */
const patience = 5000

export const make = (
  queue: ModelQueue,
  config: settings.Settings,
  store: ResultStore.ResultStore | undefined,
  clock: Clock.Clock,
  events: Events
): ModelQueue => {
  const { modelId } = config
  const { keep } = config.deduplicate
  const now = time.monotonic(clock)
  const publish = (snapshot: () => Snapshot) => {
    if (events.areRead()) events.publish(snapshot())
  }
  const flights = new Map<string, Flight>()
  const calls = new Set<string>()
  /** Those that share a call now, and those that have, as long as they are retained; in the order of their ends. */
  const sharers = new Map<string, Sharer>()
  const retained = new Map<string, Sharer>()
  /** Of those that share now, how many joined. */
  let followers = 0

  /** What a store answers; nothing when it breaks or takes too long. */
  const patiently = <A>(effect: Effect.Effect<A>, most = patience): Effect.Effect<Option.Option<A>> =>
    Effect.catchCause(
      Effect.timeoutOption(effect, Duration.millis(most)),
      (cause) => Effect.as(Effect.logWarning(`The store of results of model ${modelId} broke`, cause), Option.none())
    )

  const invalid = (id: unknown, ...problems: ReadonlyArray<string>) =>
    new QueueError.InvalidRequest({ modelId, requestId: settings.nameOf(id), problems })

  // ---------------------------------------------------------------------------------------------------------------
  // What is known of a sharer
  // ---------------------------------------------------------------------------------------------------------------

  /** A call says how long it waited, those who share it how long they did. */
  const timesOf = ({ ended, flight: { call }, submittedAt }: Sharer) => {
    const at = ended?.at ?? now()
    const total = at - submittedAt
    const processing = call === undefined ? 0 : Math.min(total, processingTime(call, call.endedAt ?? at))
    return { queueTime: total - processing, processingTime: processing }
  }

  const ownOf = (sharer: Sharer) => {
    const { createdAt, flight, id, tenant } = sharer
    const times = timesOf(sharer)
    return {
      requestId: id,
      tenant,
      createdAt,
      queueTime: Duration.millis(times.queueTime),
      processingTime: Duration.millis(times.processingTime),
      sharedWith: flight.id
    }
  }

  const sharedBase = (sharer: Sharer): QueueResponse.Base => {
    const { call } = sharer.flight
    return call !== undefined ? { ...baseOf(call, now()), ...ownOf(sharer) } : {
      modelId,
      attempts: 0,
      timeToFirstElement: undefined,
      refusals: [],
      inputTokensUsed: undefined,
      outputTokensUsed: undefined,
      ...ownOf(sharer)
    }
  }

  /** As far as its call has come. */
  const snapshot = (sharer: Sharer): Snapshot => {
    const { call } = sharer.flight
    return call === undefined
      ? { ...sharedBase(sharer), status: "pending" }
      : { ...response(call, now()), ...ownOf(sharer) }
  }

  const status = (sharer: Sharer): Snapshot => sharer.ended?.response ?? snapshot(sharer)

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

  /** The cancellation of a sharer, or of its call; not one that its processor failed with. */
  const isCancelled = (error: Failure, { flight, id }: Sharer) =>
    QueueError.isQueueError(error) && error._tag === "RequestCancelled" && error.modelId === modelId
    && (error.requestId === id || error.requestId === flight.id)

  /** Ends a sharer, unless it has ended already. The call goes on as long as others share it. */
  const end = (sharer: Sharer, exit: Exit.Exit<Completed, Failure>, isKnown = sharer.flight.isAccepted): boolean => {
    if (sharer.ended !== undefined) return false
    const { flight, id } = sharer
    const base = sharedBase(sharer)
    const response: Snapshot = Exit.isSuccess(exit)
      ? { ...base, status: "completed", result: exit.value.result }
      : Option.exists(Cause.findErrorOption(exit.cause), (error) => isCancelled(error, sharer))
      ? { ...base, status: "cancelled" }
      : { ...base, status: "failed", cause: exit.cause }
    sharer.ended = {
      response,
      exit: Exit.isSuccess(exit) ? Exit.succeed(response as Completed) : exit,
      at: now()
    }
    if (sharer.isFollower) followers--
    flight.sharers.delete(sharer)
    if (isKnown) {
      retained.set(id, sharer)
      expire()
      publish(() => response)
    } else {
      // It has never been accepted: its submitter knows why, and its id is free.
      sharers.delete(id)
    }
    Deferred.doneUnsafe(sharer.told, sharer.ended.exit)
    return true
  }

  /** Ends a sharer before its call has ended, and the call if it was the last one. */
  const leave = (sharer: Sharer, error: QueueError.SubmitError, isKnown?: boolean): boolean => {
    if (!end(sharer, Exit.fail(error), isKnown)) return false
    if (sharer.flight.sharers.size === 0) abandon(sharer.flight)
    return true
  }

  /** Nobody finds it any longer. */
  const withdraw = (flight: Flight) => {
    if (flights.get(flight.key) === flight) flights.delete(flight.key)
    flight.key = ""
  }

  const abandon = (flight: Flight) => {
    if (flights.get(flight.key) !== flight || flight.landed !== undefined) return
    withdraw(flight)
    if (flight.call !== undefined && flight.call.state !== "suspended") {
      Effect.runFork(Effect.ignore(queue.cancel(flight.id)))
    } else {
      flight.fiber?.interruptUnsafe()
      calls.delete(flight.id)
    }
  }

  // ---------------------------------------------------------------------------------------------------------------
  // Sharing
  // ---------------------------------------------------------------------------------------------------------------

  const accepted = (flight: Flight) => {
    if (flight.isAccepted) return
    flight.isAccepted = true
    for (const sharer of flight.sharers) publish(() => ({ ...sharedBase(sharer), status: "pending" }))
  }

  /** Submits the call, tells those who share it how it ended, and keeps its result. */
  const fly = (flight: Flight, request: AnyRequest): Effect.Effect<void> =>
    Effect.withFiber((fiber) => {
      flight.fiber = fiber
      const call = QueueRequest.make<unknown, unknown, ProcessorFailure, boolean>(request.model, {
        ...request,
        id: flight.id,
        params: request.params,
        priority: flight.headStart / 1000,
        dedupeKey: false,
        // Each of those who share it has its own.
        timeout: Duration.infinity,
        deadline: undefined
      })
      const accept = queue.accept(call, undefined, (entry) => {
        flight.call = entry
        flightOf.set(entry, flight)
        // It belongs to nobody: who asked first may leave. Who waits for it lends it a permit as long as it waits.
        releaseWaiters(entry)
        if (entry.state !== "suspended") accepted(flight)
        Deferred.doneUnsafe(flight.entered, Exit.void)
      })
      return accept.pipe(
        Effect.updateService(requestContext.CurrentRequestContext, (context) => ({ ...context, deadline: undefined })),
        // It may have been accepted in the same moment.
        Effect.onInterrupt(() => Effect.ignore(queue.cancel(flight.id))),
        Effect.exit,
        Effect.flatMap((pending) => {
          const { call } = flight
          if (Exit.isFailure(pending) || call === undefined) {
            return land(flight, pending as Exit.Failure<never, Failure>)
          }
          accepted(flight)
          Deferred.doneUnsafe(flight.accepted, Exit.void)
          return Effect.flatMap(Effect.exit(queue.awaitEntry(call)), (exit) => land(flight, exit))
        })
      )
    })

  const land = Effect.fnUntraced(function*(flight: Flight, exit: Exit.Exit<Completed, Failure>) {
    const completed = Exit.isSuccess(exit) && store !== undefined ? exit.value : undefined
    const { key } = flight
    // Before anybody is told: who comes now asks anew, or gets what is being kept.
    flight.landed = completed
    if (completed === undefined) withdraw(flight)
    calls.delete(flight.id)
    for (const sharer of Array.from(flight.sharers)) end(sharer, exit)
    flight.call = undefined
    // A request that was not accepted fails those who share it in the same way.
    if (Exit.isFailure(exit)) {
      const cause = Cause.map(exit.cause, (error) => error as QueueError.AcceptError)
      Deferred.doneUnsafe(flight.accepted, Exit.failCause(cause))
    }
    if (completed === undefined || store === undefined) return
    if (key !== "") yield* patiently(store.set(key, completed.result, keep))
    withdraw(flight)
    flight.landed = undefined
  })

  /** The id, or a new one in place of one that nobody chose; `undefined` when it is taken. */
  const freeId = (id: string): string | undefined =>
    find(id) === undefined && !queue.has(id) ? id : requestId.isGenerated(id) ? requestId.generate() : undefined

  /** What a request wants for itself; the rest is checked when the call is submitted. */
  const ask = (
    request: AnyRequest,
    context: requestContext.RequestContext
  ): Asked | QueueError.InvalidRequest | QueueError.QueueTimeout => {
    const problems: Array<string> = []
    const createdAt = clock.currentTimeMillisUnsafe()
    const wanted = askFor(config, request, context, createdAt, problems)
    if (problems.length > 0) return invalid(request.id, ...problems)
    const mine: Asked = { ...wanted, createdAt, submittedAt: now() }
    return mine.timeout > 0 ? mine : late(request.id, mine)
  }

  /** What is wrong with a request that needs no call of its own, where the queue would have looked at it. */
  const problemsOf = (request: AnyRequest): ReadonlyArray<string> => {
    const problems: Array<string> = []
    for (
      const name of [
        "estimatedInputTokens",
        "estimatedCachedInputTokens",
        "estimatedOutputTokens",
        "maxOutputTokens"
      ] as const
    ) {
      const tokens = request[name] === undefined ? 0 : settings.tokens(request[name])
      if (typeof tokens === "string") problems.push(`${name}: ${tokens}`)
    }
    return problems
  }

  /** Lets a request share the call of its key, which is started if there is none. One synchronous step. */
  const join = (
    key: string,
    request: AnyRequest,
    asked: Asked,
    labels: Readonly<Record<string, string>> | undefined,
    current: Entry | undefined
  ): Effect.Effect<Sharer, QueueError.AcceptError> =>
    Effect.suspend((): Effect.Effect<Sharer, QueueError.AcceptError> => {
      const waits = request.waitForCompletion
      const id = freeId(request.id)
      if (id === undefined) {
        return Effect.fail(new QueueError.DuplicateRequest({ modelId, requestId: request.id }))
      }
      const found = flights.get(key)
      const shared = found?.landed === undefined ? found : undefined
      if (shared !== undefined) {
        const problems = problemsOf(request)
        if (problems.length > 0) return Effect.fail(invalid(id, ...problems))
        const closed = queue.refusal(id, waits && queue.isProcessing(current))
        if (closed !== undefined) return Effect.fail(closed)
        if (waits && isWithin(shared, current)) return Effect.fail(invalid(id, ownCall))
        if (followers >= config.capacity) {
          return Effect.fail(new QueueError.QueueFull({ modelId, requestId: id, capacity: config.capacity }))
        }
      }
      const flight: Flight = shared ?? {
        key,
        id: requestId.generate(),
        headStart: asked.headStart,
        sharers: new Set(),
        awaitedBy: [],
        entered: Deferred.makeUnsafe(),
        accepted: Deferred.makeUnsafe(),
        fiber: undefined,
        call: undefined,
        isAccepted: false,
        landed: undefined
      }
      const sharer: Sharer = {
        ...asked,
        id,
        flight,
        labels,
        waits,
        isFollower: shared !== undefined,
        told: Deferred.makeUnsafe(),
        ended: undefined
      }
      flight.sharers.add(sharer)
      sharers.set(id, sharer)
      if (sharer.isFollower) followers++
      if (waits && current !== undefined) flight.awaitedBy.push(current)
      if (shared === undefined) {
        flights.set(key, flight)
        calls.add(flight.id)
        // At once: it has its place before whatever is submitted next.
        return Effect.as(Effect.forkDetach(fly(flight, request), { startImmediately: true }), sharer)
      }
      if (flight.isAccepted) publish(() => ({ ...sharedBase(sharer), status: "pending" }))
      // Its place may have been changed since.
      if (asked.headStart <= (flight.call?.headStart ?? flight.headStart)) return Effect.succeed(sharer)
      flight.headStart = asked.headStart
      return Effect.as(Effect.ignore(queue.changePriority(flight.id, asked.headStart / 1000)), sharer)
    })

  const late = (
    id: string,
    { hasDeadline, submittedAt, timeout }: Asked,
    { processingTime, queueTime } = { queueTime: now() - submittedAt, processingTime: 0 }
  ) =>
    new QueueError.QueueTimeout({
      modelId,
      requestId: id,
      limit: hasDeadline ? "deadline" : "timeout",
      timeoutMillis: timeout,
      queueTimeMillis: queueTime,
      processingTimeMillis: processingTime
    })

  /** Where its time is up; without room for its call, who waits for acceptance only is told so, as without a key. */
  const expired = (sharer: Sharer) =>
    sharer.waits || sharer.flight.isAccepted
      ? late(sharer.id, sharer, timesOf(sharer))
      : new QueueError.QueueFull({ modelId, requestId: sharer.id, capacity: config.capacity })

  /** Waits for the end of a sharer. By a processor of this queue, its call may run on that one's permit. */
  const awaitEnd = (sharer: Sharer, current: Entry | undefined): Effect.Effect<Completed, Failure> => {
    const told = Deferred.await(sharer.told)
    if (current === undefined) return told
    const { entered, id } = sharer.flight
    const lending = Effect.andThen(Deferred.await(entered), Effect.exit(queue.awaitCompletion(id)))
    return Effect.raceFirst(told, Effect.andThen(lending, told))
  }

  const timed = (sharer: Sharer, wait: Effect.Effect<Completed, Failure>): Effect.Effect<Completed, Failure> =>
    sharer.timeout === Number.POSITIVE_INFINITY ? wait : Effect.timeoutOrElse(wait, {
      duration: Duration.millis(Math.max(0, sharer.submittedAt + sharer.timeout - now())),
      orElse: () => {
        leave(sharer, expired(sharer))
        return Deferred.await(sharer.told)
      }
    })

  const cancelled = (sharer: Sharer) => new QueueError.RequestCancelled({ modelId, requestId: sharer.id })

  /** By an operator: as one that was accepted, so that its end is known. */
  const cancel = (sharer: Sharer): boolean => {
    if (sharer.ended !== undefined) return false
    if (!sharer.flight.isAccepted) publish(() => ({ ...sharedBase(sharer), status: "pending" }))
    return leave(sharer, cancelled(sharer), true)
  }

  /** A request that is answered by a kept result is remembered as one that has ended. */
  const answer = (
    request: AnyRequest,
    asked: Asked,
    current: Entry | undefined,
    result: unknown
  ): Effect.Effect<Completed, QueueError.AcceptError> => {
    const id = freeId(request.id)
    if (id === undefined) return Effect.fail(new QueueError.DuplicateRequest({ modelId, requestId: request.id }))
    const problems = problemsOf(request)
    if (problems.length > 0) return Effect.fail(invalid(id, ...problems))
    const closed = queue.refusal(id, request.waitForCompletion && queue.isProcessing(current))
    if (closed !== undefined) return Effect.fail(closed)
    const response: Completed = {
      requestId: id,
      modelId,
      tenant: asked.tenant,
      createdAt: asked.createdAt,
      queueTime: Duration.millis(now() - asked.submittedAt),
      processingTime: zero,
      attempts: 0,
      timeToFirstElement: undefined,
      refusals: [],
      inputTokensUsed: undefined,
      outputTokensUsed: undefined,
      isKept: true,
      status: "completed",
      result
    }
    const flight: Flight = {
      key: "",
      id,
      headStart: 0,
      sharers: new Set(),
      awaitedBy: [],
      entered: Deferred.makeUnsafe(),
      accepted: Deferred.makeUnsafe(),
      fiber: undefined,
      call: undefined,
      isAccepted: true,
      landed: undefined
    }
    const sharer: Sharer = {
      ...asked,
      id,
      flight,
      labels: undefined,
      waits: true,
      isFollower: false,
      told: Deferred.makeUnsafe(),
      ended: { response, exit: Exit.succeed(response), at: now() }
    }
    sharers.set(id, sharer)
    retained.set(id, sharer)
    publish(() => response)
    expire()
    return Effect.succeed(response)
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
      current: Entry | undefined,
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
      Effect.withFiber((fiber): Effect.Effect<A, Failure> => {
        const context = requestContext.within(fiber.getRef(requestContext.CurrentRequestContext), request)
        const current = fiber.getRef(CurrentEntry)
        const asked = ask(request, context)
        if ("_tag" in asked) return Effect.fail(asked)
        const { labels } = context
        const share = () =>
          Effect.flatMap(join(key, request, asked, labels, current), (sharer) => then(sharer, current, restore))
        /** What waits to be kept can be had before it is. */
        const landed = () => flights.get(key)?.landed
        const here = landed()
        if (here !== undefined) return Effect.map(answer(request, asked, current, here.result), fromKept)
        if (store === undefined || flights.has(key)) return share()
        return Effect.flatMap(
          restore(patiently(store.get(key), Math.min(patience, asked.timeout))),
          (found): Effect.Effect<A, Failure> => {
            const there = landed()
            const result = there === undefined ? Option.flatten(found) : Option.some(there.result)
            if (Option.isSome(result)) return Effect.map(answer(request, asked, current, result.value), fromKept)
            return now() - asked.submittedAt >= asked.timeout ? Effect.fail(late(request.id, asked)) : share()
          }
        )
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
    submit: (request, fiber) =>
      mayBeShared(request)
        ? keyed(request, queue.submit, (response) =>
          response, (sharer, current, restore) =>
          restore(Effect.suspend(() =>
            timed(sharer, awaitEnd(sharer, current))
          )).pipe(
            Effect.onInterrupt(() => Effect.sync(() => leave(sharer, cancelled(sharer)))),
            Effect.ensuring(Effect.sync(() => stopWaiting(sharer.flight, current)))
          ))
        : queue.submit(request, fiber),
    accept: (request, fiber) =>
      mayBeShared(request)
        ? Effect.mapError(
          keyed(
            request,
            (request) => queue.accept(request),
            (response): QueueResponse.Pending<unknown, ProcessorFailure> => ({ ...response, status: "pending" }),
            (sharer, _, restore) =>
              Effect.gen(function*() {
                if (sharer.timeout !== Number.POSITIVE_INFINITY) {
                  yield* Effect.forkDetach(
                    Effect.ignore(timed(sharer, Deferred.await(sharer.told))).pipe(
                      Effect.provideService(CurrentEntry, undefined)
                    )
                  )
                }
                const accepted = Effect.raceFirst(Deferred.await(sharer.flight.accepted), Deferred.await(sharer.told))
                yield* restore(accepted).pipe(
                  // An operator cancels what was accepted.
                  Effect.catch((error) =>
                    sharer.ended?.response.status === "cancelled" ? Effect.void : Effect.fail(error)
                  ),
                  Effect.onInterrupt(() => Effect.sync(() => leave(sharer, cancelled(sharer))))
                )
                return { ...status(sharer), status: "pending" as const }
              })
          ),
          // Whatever it fails with fails its acceptance.
          (error) => error as QueueError.AcceptError
        )
        : queue.accept(request, fiber),
    awaitCompletion: (id) =>
      Effect.withFiber((fiber) => {
        const sharer = find(id)
        if (sharer === undefined) return queue.awaitCompletion(id)
        if (sharer.ended !== undefined) return sharer.ended.exit
        const { flight } = sharer
        const current = fiber.getRef(CurrentEntry)
        if (isWithin(flight, current)) return Effect.fail(invalid(id, ownCall))
        return Effect.acquireUseRelease(
          Effect.sync(() => current === undefined ? 0 : flight.awaitedBy.push(current)),
          () => awaitEnd(sharer, current),
          () => Effect.sync(() => stopWaiting(flight, current))
        )
      }),
    status: (id) =>
      Effect.suspend(() => {
        const sharer = find(id)
        return sharer === undefined ? queue.status(id) : Effect.succeed(status(sharer))
      }),
    cancel: (id) =>
      Effect.suspend(() => {
        const sharer = find(id)
        return sharer === undefined ? queue.cancel(id) : Effect.succeed(cancel(sharer))
      }),
    cancelAll: (filter) => sharers.size === 0 ? queue.cancelAll(filter) : cancelAll(filter),
    changePriority: (id, priority) =>
      Effect.suspend(() => {
        const sharer = find(id)
        if (sharer === undefined) return queue.changePriority(id, priority)
        const headStart = settings.headStart(priority)
        if (typeof headStart === "string") return Effect.fail(invalid(id, `priority: ${headStart}`))
        if (sharer.ended !== undefined) return Effect.succeed(false)
        sharer.flight.headStart = headStart
        return Effect.orElseSucceed(queue.changePriority(sharer.flight.id, priority), () => true)
      }),
    reportUsage: (id, usage) =>
      Effect.suspend(() => {
        const sharer = find(id)
        if (sharer === undefined) return queue.reportUsage(id, usage)
        if (sharer.ended?.response.isKept) {
          return Effect.fail(invalid(id, "usage: a kept result answered the request, so nothing is charged for it"))
        }
        return queue.reportUsage(sharer.flight.id, usage)
      })
  }

  /** Those that are meant and have not ended, or what is wrong with the filter. */
  function meantBy(filter: QueueManager.RequestFilter): ReadonlyArray<Sharer> | QueueError.InvalidRequest {
    const matches = settings.requestFilter(filter)
    if (typeof matches !== "function") return invalid("", ...matches)
    const meant: Array<Sharer> = []
    try {
      for (const sharer of sharers.values()) {
        if (sharer.ended !== undefined) continue
        const response = snapshot(sharer)
        const described = {
          id: sharer.id,
          tenant: sharer.tenant,
          labels: sharer.labels,
          // That of the call, which is the highest one.
          headStart: sharer.flight.call?.headStart ?? sharer.flight.headStart,
          status: response.status === "processing" ? "processing" as const : "pending" as const,
          age: now() - sharer.submittedAt
        }
        if (matches(described, () => response)) meant.push(sharer)
      }
    } catch (error) {
      return invalid("", `filter.where: threw ${settings.show(error)}`)
    }
    return meant
  }

  function cancelAll(filter: QueueManager.RequestFilter): Effect.Effect<number, QueueError.InvalidRequest> {
    return Effect.suspend(() => {
      const meant = meantBy(filter)
      if ("_tag" in meant) return Effect.fail(meant)
      // A call is for those who share it to cancel.
      const others = queue.cancelAll({
        ...filter,
        where: (response) => !calls.has(response.requestId) && (filter.where?.(response) ?? true)
      })
      return Effect.map(others, (count) => {
        for (const sharer of meant) cancel(sharer)
        return count + meant.filter(({ ended }) => ended?.response.status === "cancelled").length
      })
    })
  }
}
