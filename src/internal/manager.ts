import type * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Queue from "effect/Queue"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as Tracer from "effect/Tracer"
import type * as ModelConfig from "../ModelConfig.ts"
import * as QueueError from "../QueueError.ts"
import type * as QueueManager from "../QueueManager.ts"
import * as QueueRequest from "../QueueRequest.ts"
import type * as QueueResponse from "../QueueResponse.ts"
import * as RateLimiter from "../RateLimiter.ts"
import * as ResultStore from "../ResultStore.ts"
import * as dedupe from "./dedupe.ts"
import type { AnyModel, AnyRequest, Failure, ProcessorFailure, Snapshot } from "./entry.ts"
import * as modelQueue from "./modelQueue.ts"
import { attach, CurrentObserver, Observers } from "./observer.ts"
import * as settings from "./settings.ts"
import * as streams from "./streams.ts"

/** A registration as the manager sees it. */
interface Registration extends QueueManager.Registration<never> {
  readonly model: AnyModel
  readonly processor: modelQueue.Processor
}

// The manager holds models of all types in one map. Inside it they are untyped; the types come back here, at the
// public signatures, where a model value stands for what is behind its id.
const typed = (manager: Untyped) => manager as unknown as QueueManager.QueueManager["Service"]

type Untyped = { readonly [K in keyof QueueManager.QueueManager["Service"]]: unknown }

export const registration = <R>(model: unknown, processor: unknown): QueueManager.Registration<R> => {
  const registration: Registration = {
    "~effect-llm-queue/Registration": { R: (_) => _ },
    model: model as AnyModel,
    processor: processor as modelQueue.Processor
  }
  return registration
}

export const streamRegistration = <R>(model: ModelConfig.AnyStream, processor: unknown): QueueManager.Registration<R> =>
  registration(
    model,
    // What is no function is named when it is registered.
    typeof processor === "function" ? streams.processor(model, processor as StreamOf) : processor
  )

type StreamOf = Parameters<typeof streams.processor>[1]

const notRegistered = (model: AnyModel | string) =>
  Effect.fail(new QueueError.ModelNotRegistered({ modelId: settings.nameOf(idOf(model)) }))

const idOf = (model: AnyModel | string): string => typeof model === "string" ? model : model.modelId

/** How many live managers of the process hold a model id: their limits do not know of each other. */
const holders = new Map<string, number>()

const hold = ({ modelId, sharesLimits }: modelQueue.ModelQueue): Effect.Effect<void> =>
  Effect.suspend(() => {
    if (sharesLimits) return Effect.void
    const count = (holders.get(modelId) ?? 0) + 1
    holders.set(modelId, count)
    return count === 1 ? Effect.void : Effect.logWarning(
      `Model ${modelId} is registered in ${count} queue managers of this process: each holds its limits for itself, so `
        + `together they allow ${count} times as much. Provide QueueManager.layer once, at the top.`
    )
  })

const letGo = ({ modelId, sharesLimits }: modelQueue.ModelQueue) => {
  if (sharesLimits) return
  const count = (holders.get(modelId) ?? 0) - 1
  if (count > 0) holders.set(modelId, count)
  else holders.delete(modelId)
}

export const make = Effect.fnUntraced(function*(options: QueueManager.Options) {
  const optionProblems: Array<string> = []
  const defaultShutdown = settings.shutdown(options.shutdown, settings.defaultShutdown, optionProblems)
  const eventCapacity = settings.whole("eventCapacity", options.eventCapacity, 1024, optionProblems)
  if (optionProblems.length > 0) {
    yield* Effect.logWarning("Options of the queue manager are wrong, and left at their defaults", ...optionProblems)
  }
  // The manager's, not the registering fiber's: it is provided where the limits are shared.
  const limiters = yield* RateLimiter.RateLimiter
  const stores = yield* ResultStore.ResultStore
  const clock = yield* Clock.Clock
  const queues = new Map<string, modelQueue.ModelQueue>()
  /** Queues registered together, less those that have closed: all that their scope's finalizer keeps. */
  const groups = new Map<modelQueue.ModelQueue, Set<modelQueue.ModelQueue>>()
  /** Ids whose registration has begun. */
  const claimed = new Set<string>()
  const readers = new Set<Queue.Queue<Snapshot, Cause.Done>>()
  let open = true
  let gone = false

  const observers = new Observers()
  const own = yield* CurrentObserver
  if (own !== undefined) observers.add(own)

  const events: modelQueue.Events = {
    observers,
    areRead: () => readers.size > 0,
    publish: (event) => {
      for (const reader of readers) Queue.offerUnsafe(reader, event)
    }
  }

  const queueOf = (model: AnyModel | string): Effect.Effect<modelQueue.ModelQueue, QueueError.ModelNotRegistered> =>
    Effect.suspend(() => {
      const queue = queues.get(idOf(model))
      return queue === undefined ? notRegistered(model) : Effect.succeed(queue)
    })

  // ---------------------------------------------------------------------------------------------------------------
  // Registration
  // ---------------------------------------------------------------------------------------------------------------

  const configure = (registrations: ReadonlyArray<Registration>) => {
    const configs: Array<settings.Settings> = []
    const problems: Array<readonly [string, ReadonlyArray<string>]> = []
    for (const { model, processor } of registrations) {
      const config = settings.resolve(model.modelId, model.definition, defaultShutdown)
      const found = "modelId" in config ? [] : [...config]
      if ("modelId" in config) configs.push(config)
      if (typeof processor !== "function") found.push("processor: expected a function of the request to an Effect")
      if (found.length > 0) problems.push([settings.nameOf(model.modelId), found])
    }
    return { configs, problems }
  }

  const closeTogether = (
    queues: ReadonlyArray<modelQueue.ModelQueue>,
    options?: ModelConfig.Shutdown
  ): Effect.Effect<void> =>
    Effect.suspend(() => {
      const closing = queues.map((queue) => ({
        queue,
        options: settings.shutdown(options, queue.shutdown, [])
      }))
      for (const { options, queue } of closing) queue.stop(options)
      return Effect.forEach(closing, ({ options, queue }) => queue.close(options), {
        concurrency: "unbounded",
        discard: true
      })
    })

  const closeAndForget = (closing: ReadonlyArray<modelQueue.ModelQueue>): Effect.Effect<void> =>
    modelQueue.unstoppable(Effect.map(closeTogether(closing), () => {
      // After `shutdownAll` statuses stay readable until the manager is gone.
      if (!open) return
      for (const queue of closing) {
        if (queues.get(queue.modelId) !== queue) continue
        queues.delete(queue.modelId)
        claimed.delete(queue.modelId)
        letGo(queue)
        groups.get(queue)?.delete(queue)
        groups.delete(queue)
      }
    }))

  const register = Effect.fnUntraced(function*(registrations: ReadonlyArray<Registration>) {
    const scope = yield* Scope.Scope
    const { configs, problems } = configure(registrations)
    if (problems.length > 0) {
      return yield* new QueueError.InvalidConfiguration({
        modelId: problems[0]![0],
        problems: problems.length === 1
          ? problems[0]![1]
          : problems.flatMap(([modelId, found]) => found.map((problem) => `${modelId}: ${problem}`))
      })
    }
    const mine = new Set<string>()
    for (const { modelId } of configs) {
      if (!open) return yield* new QueueError.QueueShutdown({ modelId, requestId: undefined })
      if (claimed.has(modelId) || mine.has(modelId)) return yield* new QueueError.ModelAlreadyRegistered({ modelId })
      mine.add(modelId)
    }
    for (const modelId of mine) claimed.add(modelId)
    const made = new Set<modelQueue.ModelQueue>()
    const undo = () => {
      for (const modelId of mine) claimed.delete(modelId)
      return Effect.forEach(made, (queue) => queue.close({ policy: "interrupt", deadline: 0 }), { discard: true })
    }
    yield* Effect.forEach(
      configs,
      (config, index) =>
        Effect.gen(function*() {
          const { model, processor } = registrations[index]!
          const queue = yield* modelQueue.make(config, processor, limiters, events)
          const store = config.deduplicate.keep === 0 ? undefined : yield* Scope.provide(
            stores.make({
              modelId: config.modelId,
              schema: model.definition.result,
              count: config.deduplicate.count
            }),
            queue.scope
          )
          made.add(dedupe.make(queue, config, store, clock, events))
        }),
      { discard: true }
    ).pipe(
      // Only a foreign limiter can fail here, or take so long that the manager has shut down.
      Effect.onError(undo)
    )
    if (!open && configs[0] !== undefined) {
      yield* undo()
      return yield* new QueueError.QueueShutdown({ modelId: configs[0].modelId, requestId: undefined })
    }
    for (const queue of made) {
      queues.set(queue.modelId, queue)
      groups.set(queue, made)
      yield* hold(queue)
    }
    yield* Scope.addFinalizer(
      scope,
      Effect.suspend(() => closeAndForget(Array.from(made)))
    )
  }, Effect.uninterruptible)

  // ---------------------------------------------------------------------------------------------------------------
  // Shutdown
  // ---------------------------------------------------------------------------------------------------------------

  const shutdownAll = Effect.fn("QueueManager.shutdownAll")(function*(options?: ModelConfig.Shutdown) {
    open = false
    yield* closeTogether(Array.from(queues.values()), options)
  })

  yield* Effect.addFinalizer(() =>
    Effect.ensuring(
      shutdownAll(),
      Effect.sync(() => {
        for (const queue of queues.values()) letGo(queue)
        queues.clear()
        for (const reader of readers) Queue.endUnsafe(reader)
        gone = true
      })
    )
  )

  // ---------------------------------------------------------------------------------------------------------------
  // Service
  // ---------------------------------------------------------------------------------------------------------------

  const submitRequest = (request: AnyRequest): Effect.Effect<Snapshot, Failure> =>
    Effect.withFiber((fiber): Effect.Effect<Snapshot, Failure> => {
      const queue = queues.get(idOf(request.model))
      if (queue === undefined) return notRegistered(request.model)
      // The native tracer shows its spans to nobody.
      if (fiber.getRef(Tracer.Tracer) === Tracer.nativeTracer) {
        return request.waitForCompletion ? queue.submit(request, fiber) : queue.accept(request, fiber)
      }
      const submission: Effect.Effect<Snapshot, Failure> = request.waitForCompletion
        ? queue.submit(request)
        : queue.accept(request)
      return Effect.withSpan(submission, "QueueManager.submitRequest", {
        attributes: { "llm_queue.model": queue.modelId, "llm_queue.request_id": settings.nameOf(request.id) },
        // At this point it would show the runtime only.
        captureStackTrace: false
      })
    })

  const manager = typed({
    registerQueue: (model: AnyModel, processor: modelQueue.Processor) =>
      register([registration(model, processor) as Registration]),
    registerAllQueues: (items: ReadonlyArray<AnyModel | Registration>, processor?: modelQueue.Processor) =>
      register(
        items.map((item) => "processor" in item ? item : registration(item, processor) as Registration)
      ),
    registerStream: (model: ModelConfig.AnyStream, processor: StreamOf) =>
      register([streamRegistration(model, processor) as Registration]),
    stream: (model: AnyModel, params: unknown, options?: QueueRequest.RequestOptions) =>
      streams.consume(
        // Its elements are read where it is submitted; what is behind the id is a model of streams.
        () => QueueRequest.make(model as AnyRequest["model"], { ...options, params }),
        submitRequest
      ),
    unregisterQueue: Effect.fn("QueueManager.unregisterQueue")(function*(model: AnyModel | string) {
      yield* closeAndForget([yield* queueOf(model)])
    }),
    submitRequest,
    submit: (model: AnyRequest["model"], params: unknown, options?: QueueRequest.RequestOptions) =>
      Effect.suspend(() => submitRequest(QueueRequest.make(model, { ...options, params }))),
    awaitCompletion: Effect.fn("QueueManager.awaitCompletion")(
      function*(model: AnyModel | QueueResponse.Pending<unknown, ProcessorFailure>, requestId?: string) {
        const id = "requestId" in model ? model.requestId : String(requestId)
        return yield* (yield* queueOf(model.modelId)).awaitCompletion(id)
      }
    ),
    cancelRequest: Effect.fn("QueueManager.cancelRequest")(function*(model: AnyModel | string, requestId: string) {
      return yield* (yield* queueOf(model)).cancel(requestId)
    }),
    cancelRequests: Effect.fn("QueueManager.cancelRequests")(
      function*(model: AnyModel | string, filter: QueueManager.RequestFilter) {
        return yield* (yield* queueOf(model)).cancelAll(filter)
      }
    ),
    changePriority: Effect.fn("QueueManager.changePriority")(
      function*(model: AnyModel | string, requestId: string, priority: ModelConfig.Priority) {
        return yield* (yield* queueOf(model)).changePriority(requestId, priority)
      }
    ),
    pauseQueue: Effect.fn("QueueManager.pauseQueue")(function*(model: AnyModel | string) {
      yield* (yield* queueOf(model)).pause
    }),
    resumeQueue: Effect.fn("QueueManager.resumeQueue")(function*(model: AnyModel | string) {
      yield* (yield* queueOf(model)).resume
    }),
    drainQueue: Effect.fn("QueueManager.drainQueue")(function*(model: AnyModel | string) {
      return yield* (yield* queueOf(model)).drain
    }),
    deadLetters: Effect.fn("QueueManager.deadLetters")(function*(model: AnyModel | string) {
      return yield* (yield* queueOf(model)).letters.list
    }),
    resubmitDeadLetter: Effect.fn("QueueManager.resubmitDeadLetter")(
      function*(model: AnyModel | string, requestId: string, options?: QueueRequest.RequestOptions) {
        const queue = yield* queueOf(model)
        return yield* queue.letters.resubmit(requestId, ({ request }) =>
          queue.accept(
            QueueRequest.make<unknown, unknown, ProcessorFailure, false>(request.model, {
              ...request,
              id: undefined,
              deadline: undefined,
              ...options,
              params: request.params,
              waitForCompletion: false
            })
          ))
      }
    ),
    removeDeadLetters: Effect.fn("QueueManager.removeDeadLetters")(
      function*(model: AnyModel | string, requestIds?: ReadonlyArray<string>) {
        return yield* (yield* queueOf(model)).letters.remove(requestIds)
      }
    ),
    getStatus: Effect.fn("QueueManager.getStatus")(function*(model: AnyModel | string, requestId: string) {
      return yield* (yield* queueOf(model)).status(requestId)
    }),
    getRequests: Effect.fn("QueueManager.getRequests")(
      function*(
        model: AnyModel | string,
        filter?: QueueManager.RequestFilter,
        options?: { readonly limit?: number | undefined }
      ) {
        return yield* (yield* queueOf(model)).list(filter ?? {}, options?.limit)
      }
    ),
    getQueueInfo: Effect.fn("QueueManager.getQueueInfo")(function*(model: AnyModel | string) {
      return yield* (yield* queueOf(model)).info
    }),
    estimateWait: Effect.fn("QueueManager.estimateWait")(
      function*(model: AnyModel, options?: QueueRequest.EstimateOptions<unknown>) {
        return yield* (yield* queueOf(model)).estimateWait(options ?? {})
      }
    ),
    getAllQueuesInfo: Effect.suspend(() =>
      Effect.map(
        Effect.forEach(Array.from(queues.values()), (queue) => queue.info),
        (infos) => new Map(infos.map((info) => [info.modelId, info]))
      )
    ),
    getRegisteredModels: Effect.sync(() => open ? Array.from(queues.keys()) : []),
    updateTokenUsage: Effect.fn("QueueManager.updateTokenUsage")(
      function*(model: AnyModel | string, requestId: string, usage: ModelConfig.Usage) {
        return yield* (yield* queueOf(model)).reportUsage(requestId, usage)
      }
    ),
    updateRateLimiters: Effect.fn("QueueManager.updateRateLimiters")(
      function*(model: AnyModel | string, rateLimiters: ModelConfig.Limits["rateLimiters"]) {
        yield* (yield* queueOf(model)).updateLimits(rateLimiters)
      }
    ),
    changeLimit: Effect.fn("QueueManager.changeLimit")(
      function*(model: AnyModel | string, change: QueueManager.LimitChange) {
        yield* (yield* queueOf(model)).changeLimit(change)
      }
    ),
    shutdownAll,
    events: Stream.unwrap(Effect.suspend(() =>
      gone ? Effect.succeed(Stream.empty) : Effect.map(
        Effect.acquireRelease(
          Effect.tap(
            Queue.sliding<Snapshot, Cause.Done>(eventCapacity),
            (reader) => Effect.sync(() => readers.add(reader))
          ),
          (reader) => Effect.sync(() => readers.delete(reader))
        ),
        Stream.fromQueue
      )
    ))
  })
  attach(manager, observers)
  return manager
})
