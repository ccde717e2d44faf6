/**
 * The queue manager whose requests are stored. In front is what all processes see, the store; behind it a queue in memory,
 * in which what this process has taken waits for the limits and is processed.
 */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as QueueError from "../../QueueError.ts"
import type * as QueueManager from "../../QueueManager.ts"
import * as QueueRequest from "../../QueueRequest.ts"
import type * as QueueResponse from "../../QueueResponse.ts"
import type { AnyModel, AnyRequest, Failure, ProcessorFailure, Snapshot } from "../entry.ts"
import * as memory from "../manager.ts"
import type { Processor } from "../modelQueue.ts"
import { show } from "../observer.ts"
import * as settings from "../settings.ts"
import type { JobQueue, State, StoredJob } from "./engine.ts"
import * as models from "./model.ts"
import { endOf, idOf, isOurs } from "./queue.ts"
import type { Local } from "./serving.ts"
import * as stored from "./stored.ts"

type Unopened = QueueError.InvalidConfiguration | QueueError.QueueUnavailable | QueueError.QueueShutdown

type Service = QueueManager.QueueManager["Service"]
type Untyped = { readonly [K in keyof Service]: unknown }

// Inside it models are untyped, as in the manager in memory; the types come back here.
const typed = (manager: Untyped) => manager as unknown as Service

const untyped = (manager: Service) =>
  manager as unknown as {
    readonly registerQueue: Local["register"]
    readonly submitRequest: Local["submit"]
  }

/** How many stored requests are looked at by what is about many. */
const mostListed = 10_000
/** How often a queue that drains is looked at. */
const drained = 200

const shutDown = (modelId: string, requestId: string | undefined) =>
  new QueueError.QueueShutdown({ modelId, requestId })

const modelIdOf = (model: AnyModel | string): string => typeof model === "string" ? model : model.modelId

export const make = Effect.fnUntraced(function*(options: models.Options, inMemory: QueueManager.Options) {
  const clock = yield* Clock.Clock
  const scope = yield* Scope.Scope
  const inner = yield* memory.make(inMemory)
  const own = untyped(inner)
  const opened = new Map<string, models.Model>()
  const registered = new Map<string, Scope.Closeable>()
  const opening = new Map<string, Fiber.Fiber<models.Model, Unopened>>()
  let isOpen = true
  const defaultShutdown = settings.shutdown(inMemory.shutdown, settings.defaultShutdown, [])
  /** Of all queues, while they are shut down together. */
  let shutdown: QueueManager.Options["shutdown"]

  const local: Local = {
    register: (model, processor) => own.registerQueue(model, processor),
    submit: (request) => own.submitRequest(request),
    cancel: (modelId, id) => Effect.ignore(inner.cancelRequest(modelId, id)),
    cancelWaiting: (modelId) => Effect.ignore(inner.cancelRequests(modelId, { status: "pending" })),
    setPaused: (modelId, isPaused) => Effect.ignore(isPaused ? inner.pauseQueue(modelId) : inner.resumeQueue(modelId)),
    shutdown: () => shutdown,
    info: (modelId) => Effect.orElseSucceed(inner.getQueueInfo(modelId), () => undefined)
  }

  // Models ---------------------------------------------------------------------------------------------------------

  const openNow = (model: AnyModel): Effect.Effect<models.Model, Unopened> =>
    Effect.suspend(() => {
      const config = settings.resolve(model.modelId, model.definition, defaultShutdown)
      const problems = "modelId" in config ? options.problems : [...options.problems, ...config]
      if (problems.length > 0 || !("modelId" in config)) {
        return Effect.fail(new QueueError.InvalidConfiguration({ modelId: settings.nameOf(model.modelId), problems }))
      }
      return Effect.flatMap(Scope.fork(scope), (mine) =>
        Scope.provide(models.make(model, config, options, local), mine).pipe(
          // What does not open leaves nothing open.
          Effect.onError((cause) =>
            Scope.close(mine, Exit.failCause(cause))
          ),
          Effect.tap((made) => Effect.sync(() => opened.set(made.modelId, made)))
        ))
    })

  /** What comes of an opening: it is cut short when the manager closes. */
  const joined = (
    modelId: string,
    fiber: Fiber.Fiber<models.Model, Unopened>
  ): Effect.Effect<models.Model, Unopened> =>
    Effect.flatMap(
      Fiber.await(fiber),
      (exit) => Exit.hasInterrupts(exit) ? Effect.fail(shutDown(modelId, undefined)) : exit
    )

  /** The stored queue of a model, opened when it is first needed: once, for all that need it at that time. */
  const open = (model: AnyModel): Effect.Effect<models.Model, Unopened> =>
    Effect.suspend(() => {
      const { modelId } = model
      const found = opened.get(modelId)
      if (found !== undefined) return Effect.succeed(found)
      if (!isOpen) return Effect.fail(shutDown(modelId, undefined))
      const others = opening.get(modelId)
      if (others !== undefined) return joined(modelId, others)
      const whole = Effect.ensuring(openNow(model), Effect.sync(() => opening.delete(modelId)))
      return Effect.flatMap(Effect.forkIn(whole, scope), (fiber) => {
        if (opened.get(modelId) === undefined) opening.set(modelId, fiber)
        return joined(modelId, fiber)
      })
    })

  const known = (model: AnyModel | string): Effect.Effect<models.Model, QueueError.ModelNotRegistered> =>
    Effect.suspend(() => {
      const found = opened.get(modelIdOf(model))
      return found === undefined
        ? Effect.fail(new QueueError.ModelNotRegistered({ modelId: settings.nameOf(modelIdOf(model)) }))
        : Effect.succeed(found)
    })

  // A value says what it is, so any process can ask about it.
  const modelOf = (model: AnyModel | string) =>
    typeof model === "string"
      ? known(model)
      : Effect.mapError(
        open(model),
        () => new QueueError.ModelNotRegistered({ modelId: settings.nameOf(model.modelId) })
      )

  interface Registration {
    readonly model: AnyModel
    readonly processor: Processor
  }

  const register = (items: ReadonlyArray<Registration>) =>
    Effect.uninterruptible(Effect.gen(function*() {
      const outer = yield* Scope.Scope
      for (const { model, processor } of items) {
        const config = settings.resolve(model.modelId, model.definition, defaultShutdown)
        const problems = "modelId" in config ? [] : [...config]
        if (typeof processor !== "function") problems.push("processor: expected a function of the request to an Effect")
        if (problems.length > 0) {
          return yield* new QueueError.InvalidConfiguration({ modelId: settings.nameOf(model.modelId), problems })
        }
      }
      const ids = new Set<string>(registered.keys())
      for (const { model: { modelId } } of items) {
        if (ids.has(modelId)) return yield* new QueueError.ModelAlreadyRegistered({ modelId })
        ids.add(modelId)
      }
      /** Closes alone, too, when its model is unregistered. */
      const registerOne = Effect.fnUntraced(function*({ model, processor }: Registration, mine: Scope.Closeable) {
        const opened = yield* open(model)
        const config = settings.resolve(model.modelId, model.definition, defaultShutdown)
        const problem = "modelId" in config ? opened.adopt(model, config) : undefined
        if (problem !== undefined) return yield* problem
        yield* Scope.provide(opened.serve(processor), mine)
      })
      const scopes = yield* Effect.forEach(items, ({ model }) =>
        Effect.map(Scope.make(), (mine) => {
          registered.set(model.modelId, mine)
          return [model.modelId, mine] as const
        }))
      const close = (exit: Exit.Exit<unknown, unknown>) =>
        Effect.forEach(scopes, ([modelId, mine]) => {
          if (registered.get(modelId) === mine) registered.delete(modelId)
          return Scope.close(mine, exit)
        }, { concurrency: "unbounded", discard: true })
      yield* Effect.forEach(items, (item, index) => registerOne(item, scopes[index]![1]), { discard: true }).pipe(
        Effect.onError((cause) => close(Exit.failCause(cause)))
      )
      yield* Scope.addFinalizerExit(outer, close)
    }))

  // Requests -------------------------------------------------------------------------------------------------------

  const submitRequest = (request: AnyRequest): Effect.Effect<Snapshot, Failure> =>
    Effect.suspend(() => {
      if (!isOpen) return Effect.fail(shutDown(request.model.modelId, request.id))
      // A model that cannot be stored is the caller's mistake.
      const model = Effect.catchTag(open(request.model), "InvalidConfiguration", ({ modelId, problems }) =>
        Effect.fail(new QueueError.InvalidRequest({ modelId, requestId: settings.nameOf(request.id), problems })))
      return Effect.flatMap(model, (model) =>
        model.submit(request))
    })

  /** What the store answers in time; else there is nothing, which the log says. */
  const readable = <A>(effect: Effect.Effect<A, string>, otherwise: A): Effect.Effect<A> =>
    Effect.catch(effect, (reason) => Effect.as(Effect.logWarning(`The store does not answer: ${reason}`), otherwise))

  // Where a signature has no error for it, a store that is away is a defect.
  const orDie = <A>(
    effect: Effect.Effect<A, QueueError.RequestNotFound | QueueError.QueueUnavailable>
  ): Effect.Effect<A, QueueError.RequestNotFound> => Effect.catchTag(effect, "QueueUnavailable", Effect.die)

  /** What has to have been written when this has ended. */
  const written = (model: models.Model, f: (queue: JobQueue) => Promise<unknown>) =>
    Effect.orDie(Effect.mapError(model.queue.ask(f), model.unavailable(undefined)))

  /** The stored requests that have not ended and are meant, what is taken first. */
  const meant = Effect.fnUntraced(function*(model: models.Model, filter: QueueManager.RequestFilter) {
    const matches = settings.requestFilter(filter)
    if (typeof matches !== "function") {
      return yield* new QueueError.InvalidRequest({ modelId: model.modelId, requestId: "", problems: matches })
    }
    const at = model.now()
    const listed = (taken: boolean, states: ReadonlyArray<State>) =>
      Effect.flatMap(
        readable(model.queue.ask((queue) => queue.getJobs(states, 0, mostListed - 1, true)), []),
        (jobs) =>
          Effect.forEach(
            jobs.filter((job): job is StoredJob => isOurs(job) && !model.isOver(job, taken)),
            (job) => Effect.map(model.snapshot(job, taken), (response) => ({ job, response }))
          )
      )
    const described = [...yield* listed(true, ["active"]), ...yield* listed(false, ["prioritized", "waiting"])]
    return yield* Effect.try({
      try: () =>
        described.filter(({ job: { data, id }, response }) =>
          matches({
            id: idOf(id),
            tenant: data.options.tenant,
            labels: data.options.labels,
            headStart: data.headStart,
            status: response.status === "processing" ? "processing" : "pending",
            age: at - data.createdAt
          }, () => response)
        ),
      catch: (error) =>
        new QueueError.InvalidRequest({
          modelId: model.modelId,
          requestId: "",
          problems: [`filter.where: threw ${settings.show(error)}`]
        })
    })
  })

  const info = Effect.fnUntraced(function*(model: models.Model): Effect.fn.Return<QueueManager.QueueInfo> {
    const counts = yield* readable(
      model.queue.ask((queue) =>
        queue.getJobCounts("active", "prioritized", "waiting", "paused", "completed", "failed")
      ),
      {}
    )
    const isPaused = yield* readable(model.queue.ask((queue) => queue.isPaused()), false)
    const here = yield* local.info(model.modelId)
    const taken = here?.depth ?? 0
    const { active = 0, completed = 0, failed = 0, paused = 0, prioritized = 0, waiting = 0 } = counts
    return {
      modelId: model.modelId,
      state: here?.state === "closing" || here?.state === "closed"
        ? here.state
        : isPaused
        ? "paused"
        : model.isDraining()
        ? "draining"
        : "open",
      capacity: model.config().capacity,
      depth: prioritized + waiting + paused + taken,
      suspended: model.suspended(),
      running: Math.max(0, active - taken),
      completed,
      failed,
      cancelled: here?.cancelled ?? 0,
      rateLimiters: here?.rateLimiters ?? [],
      reservations: here?.reservations ?? [],
      provider: here?.provider
    }
  })

  const isEmpty = (model: models.Model) =>
    Effect.map(
      readable(model.queue.ask((queue) => queue.getJobCounts("active", "prioritized", "waiting", "paused")), {
        active: 1
      }),
      (counts) => Object.values(counts).every((count) => count === 0)
    )

  const letters = Effect.fnUntraced(function*(model: models.Model) {
    const { letterCount, retainCount } = model.config()
    if (letterCount === 0) return []
    // Those that were cancelled are among them.
    const most = Math.min(mostListed, Math.max(letterCount, retainCount))
    const jobs = yield* readable(model.queue.ask((queue) => queue.getJobs(["failed"], 0, most - 1, false)), [])
    const listed = yield* Effect.forEach(
      jobs.filter((job): job is StoredJob => isOurs(job) && endOf(job)?.status === "failed")
        .slice(0, letterCount)
        .toReversed(),
      Effect.fnUntraced(function*(job) {
        const response = yield* model.snapshot(job, false)
        const request = yield* Effect.option(stored.requestOf(model.codecs(), job.data))
        if (response.status !== "failed" || request._tag === "None") return []
        const { createdAt, expiresAt, hasDeadline, headStart, processingTimeout } = job.data
        return [{
          requestId: response.requestId,
          request: QueueRequest.make(model.model() as AnyRequest["model"], {
            ...request.value,
            id: response.requestId,
            priority: headStart / 1000,
            timeout: expiresAt === undefined || hasDeadline ? undefined : expiresAt - createdAt,
            processingTimeout: processingTimeout ?? Number.POSITIVE_INFINITY
          }),
          response,
          failedAt: job.finishedOn ?? clock.currentTimeMillisUnsafe(),
          job
        }]
      })
    )
    return listed.flat()
  })

  /** What is known about its end stays, as long as ends are kept; its parameters do not. */
  const discard = (model: models.Model, job: StoredJob) =>
    written(model, () => model.config().retainCount === 0 ? job.remove() : job.updateData({ ...job.data, params: "" }))

  const close = (options: QueueManager.Options["shutdown"]): Effect.Effect<void> =>
    Effect.suspend(() => {
      isOpen = false
      shutdown = options
      const scopes = new Set(registered.values())
      registered.clear()
      return Effect.andThen(
        Effect.forEach(scopes, (scope) => Scope.close(scope, Exit.void), { concurrency: "unbounded", discard: true }),
        inner.shutdownAll(options)
      )
    })
  yield* Effect.addFinalizer(() => close(undefined))

  const noStreams = (model: AnyModel) => ({
    modelId: settings.nameOf(modelIdOf(model)),
    problems: ["a stream cannot be stored: register its model in a queue in memory"]
  })

  /** What is too large is told by the limits as they are. */
  const setLimits = (
    of: AnyModel | string,
    resolve: (config: settings.Settings) => ReturnType<typeof settings.resolveUpdate>
  ) =>
    Effect.sync(() => {
      const model = opened.get(modelIdOf(of))
      const resolved = model === undefined ? undefined : resolve(model.config())
      if (resolved !== undefined && "limits" in resolved) model?.setLimits(resolved.limits)
    })

  const manager = typed({
    registerQueue: (model: AnyModel, processor: Processor) => register([{ model, processor }]),
    registerAllQueues: (items: ReadonlyArray<AnyModel | Registration>, processor?: Processor) =>
      register(items.map((item) => "processor" in item ? item : { model: item, processor: processor! })),
    registerStream: (model: AnyModel) => Effect.fail(new QueueError.InvalidConfiguration(noStreams(model))),
    stream: (model: AnyModel) => Stream.fail(new QueueError.InvalidRequest({ ...noStreams(model), requestId: "" })),
    unregisterQueue: Effect.fn("QueueManager.unregisterQueue")(function*(model: AnyModel | string) {
      const scope = registered.get(modelIdOf(model))
      if (scope === undefined) return yield* new QueueError.ModelNotRegistered({ modelId: modelIdOf(model) })
      registered.delete(modelIdOf(model))
      yield* Scope.close(scope, Exit.void)
    }),
    submitRequest,
    submit: (model: AnyRequest["model"], params: unknown, options?: QueueRequest.RequestOptions) =>
      Effect.suspend(() => submitRequest(QueueRequest.make(model, { ...options, params }))),
    awaitCompletion: Effect.fn("QueueManager.awaitCompletion")(
      function*(of: AnyModel | QueueResponse.Pending<unknown, ProcessorFailure>, requestId?: string) {
        const id = "requestId" in of ? of.requestId : String(requestId)
        const model = yield* modelOf("requestId" in of ? of.modelId : of)
        return yield* model.awaitCompletion(id)
      }
    ),
    cancelRequest: Effect.fn("QueueManager.cancelRequest")(function*(model: AnyModel | string, requestId: string) {
      return yield* orDie((yield* modelOf(model)).cancel(requestId))
    }),
    cancelRequests: Effect.fn("QueueManager.cancelRequests")(
      function*(of: AnyModel | string, filter: QueueManager.RequestFilter) {
        const model = yield* modelOf(of)
        const cancelled = yield* Effect.forEach(
          yield* meant(model, filter),
          ({ job }) => orDie(model.end(idOf(job.id), job.name, job.data)),
          { concurrency: 16 }
        )
        return cancelled.filter((isCancelled) => isCancelled).length
      }
    ),
    changePriority: Effect.fn("QueueManager.changePriority")(
      function*(of: AnyModel | string, requestId: string, priority: unknown) {
        const model = yield* modelOf(of)
        const job = yield* orDie(model.find(requestId))
        const headStart = settings.headStart(priority)
        if (typeof headStart === "string") {
          const problems = [`priority: ${headStart}`]
          return yield* new QueueError.InvalidRequest({ modelId: model.modelId, requestId, problems })
        }
        const taken = yield* orDie(model.isTaken(job))
        if (taken || model.isOver(job, taken)) return false
        yield* written(
          model,
          () =>
            job.updateData({ ...job.data, headStart, options: { ...job.data.options, priority: headStart / 1000 } })
              .then(() => job.changePriority({ priority: model.priorityOf(job.data.createdAt, headStart) }))
        )
        return true
      }
    ),
    pauseQueue: Effect.fn("QueueManager.pauseQueue")(function*(of: AnyModel | string) {
      const model = yield* modelOf(of)
      yield* written(model, (queue) => queue.pause())
      yield* local.setPaused(model.modelId, true)
    }),
    resumeQueue: Effect.fn("QueueManager.resumeQueue")(function*(of: AnyModel | string) {
      const model = yield* modelOf(of)
      model.setDraining(false)
      yield* written(model, (queue) => queue.resume())
      yield* local.setPaused(model.modelId, false)
    }),
    drainQueue: Effect.fn("QueueManager.drainQueue")(function*(of: AnyModel | string) {
      const model = yield* modelOf(of)
      model.setDraining(true)
      yield* written(model, (queue) => queue.resume())
      yield* local.setPaused(model.modelId, false)
      while (model.isDraining()) {
        if (yield* isEmpty(model)) return true
        yield* Effect.sleep(drained)
      }
      return false
    }),
    deadLetters: Effect.fn("QueueManager.deadLetters")(function*(model: AnyModel | string) {
      return (yield* letters(yield* modelOf(model))).map(({ job: _, ...letter }) => letter)
    }),
    resubmitDeadLetter: Effect.fn("QueueManager.resubmitDeadLetter")(
      function*(of: AnyModel | string, requestId: string, options?: QueueRequest.RequestOptions) {
        const model = yield* modelOf(of)
        const letter = (yield* letters(model)).find((letter) => letter.requestId === requestId)
        if (letter === undefined) return yield* model.notFound(requestId)
        const { request } = letter
        const again = QueueRequest.make<unknown, unknown, ProcessorFailure, false>(request.model, {
          ...request,
          id: undefined,
          ...options,
          params: request.params,
          waitForCompletion: false
        })
        if (!isOpen) return yield* shutDown(model.modelId, again.id)
        const accepted = yield* model.accept(again)
        yield* discard(model, letter.job)
        return accepted
      }
    ),
    removeDeadLetters: Effect.fn("QueueManager.removeDeadLetters")(
      function*(of: AnyModel | string, requestIds?: ReadonlyArray<string>) {
        const model = yield* modelOf(of)
        const chosen = (yield* letters(model)).filter(({ requestId }) => requestIds?.includes(requestId) ?? true)
        for (const { job } of chosen) yield* discard(model, job)
        return chosen.length
      }
    ),
    getStatus: Effect.fn("QueueManager.getStatus")(function*(of: AnyModel | string, requestId: string) {
      const model = yield* modelOf(of)
      const job = yield* orDie(model.find(requestId))
      return yield* model.snapshot(job, yield* orDie(model.isTaken(job)))
    }),
    getRequests: Effect.fn("QueueManager.getRequests")(
      function*(
        of: AnyModel | string,
        filter?: QueueManager.RequestFilter,
        options?: { readonly limit?: number | undefined }
      ) {
        const model = yield* modelOf(of)
        const problems: Array<string> = []
        const most = settings.whole("limit", options?.limit, 100, problems)
        if (problems.length > 0) {
          return yield* new QueueError.InvalidRequest({ modelId: model.modelId, requestId: "", problems })
        }
        const listed = yield* meant(model, filter ?? {})
        const order = ({ job: { data }, response }: typeof listed[number]) =>
          (response.status === "processing" ? -1e15 : 0) + data.createdAt - data.headStart
        return listed.toSorted((a, b) => order(a) - order(b)).slice(0, most).map(
          ({ job: { data }, response }): QueueManager.ActiveRequest => ({
            requestId: response.requestId,
            status: response.status === "processing" ? "processing" : "pending",
            tenant: data.options.tenant,
            priority: data.headStart / 1000,
            labels: data.options.labels ?? {},
            createdAt: data.createdAt,
            queueTime: response.queueTime,
            processingTime: response.processingTime,
            attempts: response.attempts,
            predictedWait: response.status === "processing" ? undefined : Duration.infinity
          })
        )
      }
    ),
    getQueueInfo: Effect.fn("QueueManager.getQueueInfo")(function*(model: AnyModel | string) {
      return yield* info(yield* modelOf(model))
    }),
    estimateWait: (model: AnyModel, options?: QueueRequest.EstimateOptions<never>) =>
      inner.estimateWait(model as never, options),
    getAllQueuesInfo: Effect.suspend(() =>
      Effect.map(
        Effect.forEach(Array.from(opened.values()), info),
        (infos) => new Map(infos.map((info) => [info.modelId, info]))
      )
    ),
    getRegisteredModels: Effect.sync(() => isOpen ? Array.from(registered.keys()) : []),
    updateTokenUsage: (...args: Parameters<Service["updateTokenUsage"]>) => inner.updateTokenUsage(...args),
    updateRateLimiters: (...args: Parameters<Service["updateRateLimiters"]>) =>
      Effect.tap(
        inner.updateRateLimiters(...args),
        () => setLimits(args[0], (config) => settings.resolveUpdate(args[1], config))
      ),
    changeLimit: (...args: Parameters<Service["changeLimit"]>) =>
      Effect.tap(
        inner.changeLimit(...args),
        () => setLimits(args[0], (config) => settings.resolveChange(args[1], config))
      ),
    shutdownAll: close,
    events: inner.events
  })
  show(manager, inner)
  return manager
})
