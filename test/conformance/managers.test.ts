/**
 * What a queue manager does is the same wherever its requests and its limits are: each test runs in memory, with limits on
 * Redis, and with requests stored on Redis and on PostgreSQL.
 *
 * Where requests are stored some things are different (see docs/durable.md), and what holds instead is tested here:
 *
 * | in memory | stored |
 * | --- | --- |
 * | a model that is not registered takes no requests | whoever has its value submits: others may process it |
 * | the defect of a processor is the cause | only the name of its class |
 * | what waits when its queue closes is processed, or fails with `QueueShutdown` | it waits on, for who registers the model next |
 * | what is interrupted when its queue closes fails with `QueueShutdown` | it is processed again, by who registers the model next |
 * | streams, and keys of deduplication | refused |
 * | what a processor submits to its own queue, and waits for, is a request like others | it is a part of its own, and not stored |
 *
 * What does not hold of stored requests and should is `missing`: there the test has to fail.
 */
import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import { createPostgresBackend } from "bullmq"
import {
  Cause,
  DateTime,
  Deferred,
  Duration,
  Effect,
  Exit,
  Fiber,
  Layer,
  Schedule,
  Schema,
  Scope,
  Stream
} from "effect"
import { ModelConfig, QueueError, QueueManager, QueueRequest, RateLimiter } from "effect-llm-queue"
import * as BullMq from "effect-llm-queue/BullMq"
import * as QueueRedis from "effect-llm-queue/Redis"
import process from "node:process"
import * as postgres from "../bullmq/postgres.ts"
import { hasRedis, url } from "../redis/server.ts"
import * as provider from "../refusals/provider.ts"

interface Backend {
  readonly name: string
  readonly isThere: boolean
  readonly isStored: boolean
  /** The address of its server. */
  readonly server: Effect.Effect<string, never, Scope.Scope>
  readonly manager: (server: string, prefix: string) => Layer.Layer<QueueManager.QueueManager>
}

const shutdown: ModelConfig.Shutdown = { policy: "interrupt", deadline: "1 second" }

const InMemory = QueueManager.layerWith({ shutdown })

const backends: ReadonlyArray<Backend> = [
  {
    name: "in memory",
    isThere: true,
    isStored: false,
    server: Effect.succeed(""),
    manager: () => InMemory
  },
  {
    name: "with limits on Redis",
    isThere: hasRedis,
    isStored: false,
    server: url,
    manager: (server, prefix) =>
      InMemory.pipe(
        Layer.provide(QueueRedis.layer({ prefix, margin: 0 })),
        Layer.provide(QueueRedis.layerClient(server))
      )
  },
  {
    name: "stored on Redis",
    isThere: hasRedis,
    isStored: true,
    server: url,
    manager: (server, prefix) => {
      const { hostname, port } = new URL(server)
      return BullMq.layer({
        connection: { host: hostname, port: Number(port) },
        prefix,
        commandTimeout: "10 seconds",
        manager: { shutdown }
      })
    }
  },
  {
    name: "stored on PostgreSQL",
    isThere: postgres.hasPostgres,
    isStored: true,
    server: postgres.url,
    manager: (server, prefix) =>
      BullMq.layer({
        backend: createPostgresBackend,
        connection: { connectionString: server, migrate: true },
        prefix,
        commandTimeout: "10 seconds",
        manager: { shutdown }
      })
  }
]

// What is asked for ---------------------------------------------------------------------------------------------------

const Params = Schema.Struct({
  text: Schema.String,
  /** `hold` waits until it is let go. */
  does: Schema.optional(Schema.Literals(["hold", "fail", "die"])),
  at: Schema.optional(Schema.Date)
})

type Params = typeof Params.Type

class Answer extends Schema.Class<Answer>("Answer")({
  text: Schema.String,
  at: Schema.DateFromString,
  usage: ModelConfig.Usage
}) {
  get length() {
    return this.text.length
  }
}

class Broken extends Schema.TaggedError<Broken>()("Broken", { why: Schema.String, at: Schema.Date }) {}

class Refused extends Schema.TaggedError<Refused>()("Refused", {
  status: Schema.Finite,
  headers: Schema.Record(Schema.String, Schema.String),
  message: Schema.String
}) {}

const date = DateTime.toDateUtc(DateTime.makeUnsafe("2026-02-28T12:34:56.789Z"))

const usage: ModelConfig.Usage = { inputTokens: 3, outputTokens: 5 }

const answer = (text: string) => new Answer({ text, at: date, usage })

let models = 0

type Options = Partial<ModelConfig.Options<Params, Answer>> & {
  readonly rateLimiters?: ModelConfig.Limits["rateLimiters"]
  readonly modelId?: string
}

const model = ({ modelId = `model-${models++}`, rateLimiters = "unlimited", ...options }: Options = {}) =>
  ModelConfig.make(modelId, {
    params: Params,
    result: Answer,
    error: Schema.Union([Broken, Refused]),
    shutdown,
    ...options,
    rateLimiters
  })

type Request = QueueRequest.QueueRequest<Params, Answer, Broken | Refused, boolean>

/** Asked for again and again, until it holds. */
const until = <E, R>(what: string, holds: Effect.Effect<boolean, E, R>): Effect.Effect<void, E, R> =>
  Effect.repeat(holds, { until: (holds) => holds, schedule: Schedule.spaced(5) }).pipe(
    Effect.timeoutOrElse({
      duration: "10 seconds",
      orElse: () => Effect.die(new Error(`not within ten seconds: ${what}`))
    }),
    Effect.asVoid
  )

/** A model at work, and what has been seen of its processor. */
const open = Effect.fnUntraced(function*(
  options: Options = {},
  first: (request: Request) => Effect.Effect<unknown, Broken | Refused, QueueManager.QueueManager> = () => Effect.void
) {
  const manager = yield* QueueManager.QueueManager
  const Model = model(options)
  const began: Array<string> = []
  const requests: Array<Request> = []
  const interrupted: Array<string> = []
  const gates = new Map<string, Deferred.Deferred<void>>()
  const gate = (id: string) => {
    const found = gates.get(id) ?? Deferred.makeUnsafe<void>()
    gates.set(id, found)
    return found
  }
  const processor = (request: Request): Effect.Effect<Answer, Broken | Refused> =>
    Effect.gen(function*() {
      const { id, params: { does, text } } = request
      began.push(id)
      requests.push(request)
      yield* Effect.provideService(first(request), QueueManager.QueueManager, manager)
      if (does === "hold") yield* Deferred.await(gate(id))
      if (does === "fail") return yield* new Broken({ why: text, at: date })
      if (does === "die") return yield* Effect.die(new TypeError(text))
      return answer(text.toUpperCase())
    }).pipe(Effect.onInterrupt(() => Effect.sync(() => void interrupted.push(request.id))))
  yield* manager.registerQueue(Model, processor)
  const submit = (id: string, params: Partial<Params> = {}, options?: QueueRequest.RequestOptions) =>
    manager.submit(Model, { text: id, ...params }, { id, ...options })
  const statusOf = (id: string) => Effect.map(manager.getStatus(Model, id), ({ status }) => status)
  return {
    manager,
    Model,
    processor,
    began,
    requests,
    interrupted,
    submit,
    /** It is there, and its end will be heard of. */
    start: Effect.fnUntraced(function*(
      id: string,
      params: Partial<Params> = {},
      options?: QueueRequest.RequestOptions
    ) {
      const fiber = yield* Effect.forkChild(Effect.exit(submit(id, params, options)), { startImmediately: true })
      yield* until(
        `${id} is there`,
        Effect.orElseSucceed(Effect.as(manager.getStatus(Model, id), true), () => fiber.pollUnsafe() !== undefined)
      )
      return fiber
    }),
    accept: (id: string, params: Partial<Params> = {}, options?: QueueRequest.RequestOptions) =>
      manager.submitRequest(
        QueueRequest.make(Model, { params: { text: id, ...params }, id, waitForCompletion: false, ...options })
      ),
    statusOf,
    reaches: (id: string, wanted: string) =>
      until(`${id} is ${wanted}`, Effect.map(statusOf(id), (is) => is === wanted)),
    /** Its processor is at work on it, and the queue says so. */
    runs: (id: string) =>
      until(
        `${id} runs`,
        Effect.map(statusOf(id), (status) => status === "processing" && began.includes(id))
      ),
    begins: (id: string) => until(`${id} has begun`, Effect.sync(() => began.includes(id))),
    isInterrupted: (id: string) => until(`${id} is interrupted`, Effect.sync(() => interrupted.includes(id))),
    release: (...ids: ReadonlyArray<string>) =>
      Effect.forEach(ids, (id) => Deferred.succeed(gate(id), undefined), { discard: true }),
    ended: (...ids: ReadonlyArray<string>) =>
      Effect.forEach(ids, (id) => Effect.exit(manager.awaitCompletion(Model, id)), { concurrency: "unbounded" }),
    info: manager.getQueueInfo(Model)
  }
})

const tag = provider.tagOf

/** The error of an end that was one. */
const errorOf = (exit: Exit.Exit<unknown, unknown>): unknown => {
  assert(Exit.isFailure(exit))
  return Cause.squash(exit.cause)
}

const tagged = <A, E extends { readonly _tag: string }, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.map(Effect.flip(effect), ({ _tag }) => _tag)

const hostileIds = [
  "__proto__",
  "constructor",
  "toString",
  "a:b",
  "{tag}",
  "0",
  "123",
  "-1",
  "r-0",
  "a/b?c#d%20",
  "%",
  "%E0%A4%A",
  " ",
  "*",
  "..",
  "quotes \"'`\\",
  "$1; DROP TABLE jobs; --",
  "e\u0301 ünïcødé 🚀 \u202e",
  "🚀".repeat(128)
]

const noProcessor = "no processor" as unknown as () => Effect.Effect<Answer>

const laws = ({ isStored }: Backend, Manager: Layer.Layer<QueueManager.QueueManager>) => {
  const prepared = <E>(run: Effect.Effect<void, E, QueueManager.QueueManager | Scope.Scope>) =>
    run.pipe(Effect.scoped, Effect.provide(Layer.fresh(Manager)), Effect.scoped)

  const test = (name: string, run: Effect.Effect<void, unknown, QueueManager.QueueManager | Scope.Scope>) =>
    it.live(name, () => prepared(run), 30_000)

  /** Does not hold yet of stored requests: `why`. It fails when it does. */
  const missing = (
    name: string,
    why: string,
    run: Effect.Effect<void, unknown, QueueManager.QueueManager | Scope.Scope>
  ) =>
    isStored
      ? it.live.fails(`${name} (not yet: ${why})`, () => prepared(Effect.timeout(run, "3 seconds")), 30_000)
      : test(name, run)

  // Ends --------------------------------------------------------------------------------------------------------------

  test(
    "a result comes back as what its schema says, and parameters arrive as what theirs says",
    Effect.gen(function*() {
      const { requests, submit } = yield* open({ usage: ({ usage }) => usage })
      const response = yield* submit("hello", { at: date }, { id: "id", tenant: "acme" })
      assert.instanceOf(response.result, Answer)
      assert.deepStrictEqual(response.result, answer("HELLO"))
      assert.strictEqual(response.result.length, 5)
      assert.deepInclude(response, {
        requestId: "id",
        status: "completed",
        tenant: "acme",
        attempts: 1,
        inputTokensUsed: 3,
        outputTokensUsed: 5
      })
      assert.isAtLeast(Duration.toMillis(response.queueTime), 0)
      assert.isAtLeast(Duration.toMillis(response.processingTime), 0)
      assert.deepStrictEqual(requests[0]!.params, { text: "hello", at: date })
    })
  )

  test(
    "the processor's own error reaches whoever asks as an instance of its class",
    Effect.gen(function*() {
      const { Model, manager, submit } = yield* open()
      const check = (error: unknown) => {
        assert.instanceOf(error, Broken)
        assert.deepStrictEqual(error, new Broken({ why: "failing", at: date }))
      }
      check(yield* Effect.flip(submit("failing", { does: "fail" })))
      check(yield* Effect.flip(manager.awaitCompletion(Model, "failing")))
      const status = yield* manager.getStatus(Model, "failing")
      assert(status.status === "failed")
      check(Cause.squash(status.cause))
      assert.strictEqual(status.attempts, 1)
    })
  )

  test(
    "a defect is a ProcessingError",
    Effect.gen(function*() {
      const { Model, manager, submit } = yield* open()
      const error = yield* Effect.flip(submit("dying", { does: "die" }))
      assert.instanceOf(error, QueueError.ProcessingError)
      assert.deepInclude(error, { modelId: Model.modelId, requestId: "dying" })
      assert.include(error.message, "TypeError")
      assert.strictEqual(error.message.includes("dying", error.message.indexOf(":")), !isStored)
      assert.strictEqual(yield* tagged(manager.awaitCompletion(Model, "dying")), "ProcessingError")
    })
  )

  test(
    "a request that nobody waits for is processed, and its end can be asked for",
    Effect.gen(function*() {
      const { Model, accept, manager } = yield* open()
      const pending = yield* accept("later", {}, { tenant: "acme" })
      assert.deepInclude(pending, {
        status: "pending",
        requestId: "later",
        modelId: Model.modelId,
        tenant: "acme",
        attempts: 0
      })
      const completed = yield* manager.awaitCompletion(pending)
      assert.deepStrictEqual(completed.result, answer("LATER"))
      assert.deepStrictEqual((yield* manager.awaitCompletion(Model, "later")).result, answer("LATER"))
      const status = yield* manager.getStatus(Model, "later")
      assert(status.status === "completed")
      assert.deepStrictEqual(status.result, answer("LATER"))
      assert.strictEqual(status.createdAt, pending.createdAt)
    })
  )

  test(
    "a request is pending, then processing, then completed",
    Effect.gen(function*() {
      const { Model, accept, ended, manager, release, runs, statusOf } = yield* open()
      yield* manager.pauseQueue(Model)
      yield* accept("a", { does: "hold" })
      assert.strictEqual(yield* statusOf("a"), "pending")
      yield* manager.resumeQueue(Model)
      yield* runs("a")
      assert.strictEqual((yield* manager.getStatus(Model, "a")).attempts, 1)
      yield* release("a")
      yield* ended("a")
      assert.strictEqual(yield* statusOf("a"), "completed")
    })
  )

  test(
    "a request that nobody has submitted is not found, whatever its id",
    Effect.gen(function*() {
      const { Model, manager } = yield* open({ deadLetters: { count: 10 } })
      for (const id of ["unknown", "__proto__", "constructor", "", "\ud800", "x".repeat(1000), "a\u0000b\n"]) {
        const all: ReadonlyArray<Effect.Effect<unknown, unknown>> = [
          manager.getStatus(Model, id),
          manager.cancelRequest(Model, id),
          manager.changePriority(Model, id, "high"),
          manager.awaitCompletion(Model, id),
          manager.resubmitDeadLetter(Model, id),
          manager.updateTokenUsage(Model, id, usage)
        ]
        for (const asked of all) {
          const error = yield* Effect.flip(asked)
          // What is too long to be an id is cut short.
          const requestId = id.length > 256 ? `${id.slice(0, 256)}…` : id
          assert.deepInclude(error, { _tag: "RequestNotFound", modelId: Model.modelId, requestId })
        }
      }
    })
  )

  test(
    "a model that nobody has registered is not known by its id",
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model()
      const all: ReadonlyArray<Effect.Effect<unknown, unknown>> = [
        manager.unregisterQueue("nobody"),
        manager.getStatus("nobody", "a"),
        manager.cancelRequest("nobody", "a"),
        manager.cancelRequests("nobody", {}),
        manager.changePriority("nobody", "a", "high"),
        manager.pauseQueue("nobody"),
        manager.resumeQueue("nobody"),
        manager.drainQueue("nobody"),
        manager.deadLetters("nobody"),
        manager.resubmitDeadLetter("nobody", "a"),
        manager.removeDeadLetters("nobody"),
        manager.getRequests("nobody"),
        manager.getQueueInfo("nobody"),
        manager.updateTokenUsage("nobody", "a", usage),
        manager.updateRateLimiters("nobody", [RateLimiter.rpm(1)]),
        manager.changeLimit("nobody", { type: "rpm", limit: 1 })
      ]
      for (const asked of all) {
        const error = yield* Effect.flip(asked)
        assert.deepStrictEqual(error, new QueueError.ModelNotRegistered({ modelId: "nobody" }))
      }
      assert.strictEqual(yield* tagged(manager.estimateWait(Model)), "ModelNotRegistered")
      const request = QueueRequest.make(Model, { params: { text: "" }, id: "a", waitForCompletion: false })
      const exit = yield* Effect.exit(manager.submitRequest(request))
      assert.strictEqual(tag(exit), isStored ? "success" : "ModelNotRegistered")
      assert.strictEqual(
        tag(yield* Effect.exit(manager.getStatus(Model, "a"))),
        isStored ? "success" : "ModelNotRegistered"
      )
    })
  )

  // Registration ------------------------------------------------------------------------------------------------------

  test(
    "a model is registered once, and again when it has been unregistered",
    Effect.gen(function*() {
      const { Model, manager, processor, submit } = yield* open()
      const again = manager.registerQueue(Model, processor)
      assert.deepStrictEqual(
        yield* Effect.flip(again),
        new QueueError.ModelAlreadyRegistered({ modelId: Model.modelId })
      )
      yield* submit("a")
      assert.deepStrictEqual(yield* manager.getRegisteredModels, [Model.modelId])
      yield* manager.unregisterQueue(Model)
      assert.deepStrictEqual(yield* manager.getRegisteredModels, [])
      assert.strictEqual(yield* tagged(manager.unregisterQueue(Model.modelId)), "ModelNotRegistered")
      yield* again
      assert.deepStrictEqual((yield* submit("b")).result, answer("B"))
    })
  )

  test(
    "what is wrong with a registration is named, all of it",
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = model({ capacity: 0, timeout: Number.NaN, retention: { count: -1 } })
      const error = yield* Effect.flip(manager.registerQueue(Model, noProcessor))
      assert(error._tag === "InvalidConfiguration")
      assert.deepStrictEqual(
        error.problems.map((problem) => problem.slice(0, problem.indexOf(":"))).toSorted(),
        ["capacity", "processor", "retention.count", "timeout"]
      )
      for (const modelId of ["", "\ud800", "x".repeat(257), "a\nb"]) {
        const Named = model({ modelId })
        assert.strictEqual(
          yield* tagged(manager.registerQueue(Named, () => Effect.never)),
          "InvalidConfiguration",
          modelId
        )
      }
      assert.deepStrictEqual(yield* manager.getRegisteredModels, [])
    })
  )

  test(
    "several models are registered, or none",
    Effect.gen(function*() {
      const { Model, manager, processor } = yield* open()
      const [First, Second, Wrong] = [model(), model(), model({ capacity: 0 })]
      assert.strictEqual(
        yield* tagged(manager.registerAllQueues([First, Model, Second], processor)),
        "ModelAlreadyRegistered"
      )
      assert.strictEqual(
        yield* tagged(manager.registerAllQueues([First, Second, First], processor)),
        "ModelAlreadyRegistered"
      )
      assert.strictEqual(yield* tagged(manager.registerAllQueues([First, Wrong], processor)), "InvalidConfiguration")
      assert.deepStrictEqual(yield* manager.getRegisteredModels, [Model.modelId])
      yield* manager.registerAllQueues([
        QueueManager.registration(First, processor),
        QueueManager.registration(Second, processor)
      ])
      assert.deepStrictEqual(yield* manager.getRegisteredModels, [Model, First, Second].map(({ modelId }) => modelId))
      for (const Each of [First, Second]) {
        assert.deepStrictEqual((yield* manager.submit(Each, { text: "a" })).result, answer("A"))
      }
      const all = yield* manager.getAllQueuesInfo
      assert.deepStrictEqual([...all.keys()], [Model, First, Second].map(({ modelId }) => modelId))
    })
  )

  test(
    "models may have any name",
    Effect.gen(function*() {
      const prefix = `${models++}`
      for (const name of ["__proto__", "constructor", "gpt:4{x}/%", `${prefix} ünïcødé 🚀`]) {
        const { Model, info, manager, submit } = yield* open({ modelId: name })
        assert.strictEqual((yield* submit("a")).modelId, name)
        assert.strictEqual((yield* info).modelId, name)
        assert.strictEqual((yield* manager.getStatus(name, "a")).status, "completed")
        yield* manager.unregisterQueue(Model)
      }
    })
  )

  test(
    "streams, and keys, where they can be had",
    Effect.gen(function*() {
      const { manager, submit } = yield* open()
      const Words = ModelConfig.makeStream(`words-${models++}`, {
        params: Schema.String,
        element: Schema.String,
        rateLimiters: "unlimited"
      })
      const registered = yield* Effect.exit(manager.registerStream(Words, ({ params }) => Stream.make(params, params)))
      assert.strictEqual(tag(registered), isStored ? "InvalidConfiguration" : "success")
      const read = yield* Effect.exit(Stream.runCollect(manager.stream(Words, "a")))
      assert.strictEqual(tag(read), isStored ? "InvalidRequest" : "success")
      const keyed = yield* Effect.exit(submit("a", {}, { dedupeKey: "a" }))
      assert.strictEqual(tag(keyed), isStored ? "InvalidRequest" : "success")
    })
  )

  // Requests ----------------------------------------------------------------------------------------------------------

  test(
    "what is wrong with a request is said, and nothing is accepted",
    Effect.gen(function*() {
      const { Model, began, info, manager, submit } = yield* open({ rateLimiters: [RateLimiter.tpm(1000)] })
      const many = Object.fromEntries(Array.from({ length: 17 }, (_, index) => [`${index}`, ""]))
      const wrong: Record<string, ReadonlyArray<unknown>> = {
        id: ["", "x".repeat(257), "\ud800", "a\nb", "a\u0000b", 123, {}, Symbol("id"), false],
        timeout: [Number.NaN, 0, -1, "soon", {}],
        processingTimeout: [Number.NaN, 0, -1, "soon"],
        priority: [Number.NaN, Number.POSITIVE_INFINITY, 86_401, "urgent", "__proto__", {}],
        deadline: ["whenever", Number.NaN],
        labels: [{ a: 1 }, [], "a", many, { a: "x".repeat(257) }, 5],
        tenant: ["", "x".repeat(257), "\udc00", 5, "a\nb"],
        estimatedInputTokens: [Number.NaN, -1, "5", 1e13],
        estimatedCachedInputTokens: [Number.NaN, -1],
        estimatedOutputTokens: [Number.NaN, -1],
        maxOutputTokens: [Number.NaN, -1],
        whenUnavailable: ["maybe", 1]
      }
      for (const [name, values] of Object.entries(wrong)) {
        for (const value of values) {
          for (const waitForCompletion of [true, false]) {
            const request = QueueRequest.make(Model, { params: { text: "" }, [name]: value, waitForCompletion })
            const exit = yield* Effect.exit(manager.submitRequest(request))
            const at = `${name}: ${typeof value} ${String(JSON.stringify(value)).slice(0, 20)}`
            assert(Exit.isFailure(exit), at)
            const error = errorOf(exit)
            assert(error instanceof QueueError.InvalidRequest, `${at}: ${tag(exit)} ${String(error)}`)
            assert.strictEqual(error.modelId, Model.modelId)
            assert.strictEqual(error.problems.length, 1, at)
            assert.strictEqual(error.problems[0]!.split(":")[0], name, at)
          }
        }
      }
      const params = yield* Effect.flip(manager.submit(Model, { text: 5 } as never))
      assert.strictEqual(params._tag, "InvalidRequest")
      const all = yield* Effect.flip(submit("", { text: 5 as never }, { timeout: 0, priority: Number.NaN }))
      assert(all._tag === "InvalidRequest")
      assert.isAtLeast(all.problems.length, 4)
      assert.deepInclude(yield* info, { depth: 0, running: 0, completed: 0, failed: 0, cancelled: 0 })
      assert.deepStrictEqual(began, [])
      yield* submit("a")
    })
  )

  test(
    "what is wrong with a filter is said",
    Effect.gen(function*() {
      const { Model, accept, manager } = yield* open()
      yield* manager.pauseQueue(Model)
      yield* accept("a")
      const filters = [
        { olderThan: Number.NaN },
        { ids: "a" },
        { status: "done" },
        { priority: Number.NaN },
        { tenant: 5 },
        { labels: [] },
        { where: "x" },
        {
          where: () => {
            throw new Error("no")
          }
        },
        5,
        null
      ] as unknown as ReadonlyArray<QueueManager.RequestFilter>
      for (const filter of filters) {
        assert.strictEqual(yield* tagged(manager.cancelRequests(Model, filter)), "InvalidRequest")
        if (filter !== null) assert.strictEqual(yield* tagged(manager.getRequests(Model, filter)), "InvalidRequest")
      }
      for (const limit of [0, Number.NaN, 1.5, "1" as never]) {
        assert.strictEqual(yield* tagged(manager.getRequests(Model, {}, { limit })), "InvalidRequest")
      }
      for (const priority of [Number.NaN, "urgent" as never, 86_401]) {
        assert.strictEqual(yield* tagged(manager.changePriority(Model, "a", priority)), "InvalidRequest")
      }
      assert.lengthOf(yield* manager.getRequests(Model), 1)
    })
  )

  test(
    "ids, tenants and labels may be any words",
    Effect.gen(function*() {
      const { Model, accept, ended, manager, requests } = yield* open()
      for (const id of hostileIds) {
        const labels = Object.fromEntries([[id, id]])
        const pending = yield* accept(id, { text: `${id}\u0000\n` }, { tenant: id, labels, metadata: { [id]: id } })
        assert.strictEqual(pending.requestId, id)
        assert.strictEqual(pending.tenant, id)
      }
      yield* ended(...hostileIds)
      for (const id of hostileIds) {
        const status = yield* manager.getStatus(Model, id)
        assert(status.status === "completed")
        assert.strictEqual(status.requestId, id)
        assert.strictEqual(status.tenant, id)
        assert.strictEqual(status.result.text, `${id}\u0000\n`.toUpperCase())
        const request = requests.find((request) => request.id === id)!
        assert.strictEqual(request.tenant, id)
        assert.deepStrictEqual(Object.entries(request.labels!), [[id, id]])
        assert.strictEqual(yield* tagged(accept(id)), "DuplicateRequest")
      }
      assert.lengthOf(requests, hostileIds.length)
    })
  )

  test(
    "texts are as they were, whatever they are",
    Effect.gen(function*() {
      const { requests, submit } = yield* open()
      for (const [index, text] of ["", "\u0000", "\ud83d", "\udc00 x", "\u2028\u2029", "x".repeat(100_000)].entries()) {
        const response = yield* submit(`${index}`, { text })
        assert.strictEqual(requests[index]!.params.text, text)
        assert.strictEqual(response.result.text, text.toUpperCase())
      }
    })
  )

  test(
    "an id is taken while its request is queued, while it runs, and as long as its end is kept",
    Effect.gen(function*() {
      const { Model, accept, manager, release, runs, start } = yield* open()
      const isTaken = Effect.fnUntraced(function*() {
        const again = yield* Effect.flip(accept("a"))
        assert.deepStrictEqual(again, new QueueError.DuplicateRequest({ modelId: Model.modelId, requestId: "a" }))
        const waiting = yield* Effect.flip(manager.submit(Model, { text: "other" }, { id: "a" }))
        assert.strictEqual(waiting._tag, "DuplicateRequest")
      })
      yield* manager.pauseQueue(Model)
      const fiber = yield* start("a", { does: "hold" })
      yield* isTaken()
      yield* manager.resumeQueue(Model)
      yield* runs("a")
      yield* isTaken()
      yield* release("a")
      assert.strictEqual(tag(yield* Fiber.join(fiber)), "success")
      yield* isTaken()
      assert.deepStrictEqual((yield* manager.awaitCompletion(Model, "a")).result, answer("A"))
      yield* manager.pauseQueue(Model)
      yield* accept("b")
      yield* manager.cancelRequest(Model, "b")
      assert.strictEqual(yield* tagged(accept("b")), "DuplicateRequest")
      yield* manager.resumeQueue(Model)
    })
  )

  test(
    "what could never fit is refused, and says how large it is",
    Effect.gen(function*() {
      const { Model, submit } = yield* open({ rateLimiters: [RateLimiter.rpm(10), RateLimiter.tpm(100)] })
      const error = yield* Effect.flip(
        submit("a", {}, { estimatedInputTokens: 80, estimatedOutputTokens: 21 })
      )
      assert.deepStrictEqual(
        error,
        new QueueError.RequestTooLarge({
          modelId: Model.modelId,
          requestId: "a",
          limitType: "tpm",
          limit: 100,
          requested: 101,
          estimated: false
        })
      )
      yield* submit("a", {}, { estimatedInputTokens: 80, estimatedOutputTokens: 20 })
    })
  )

  test(
    "what goes beyond a budget fails",
    Effect.gen(function*() {
      const budget = RateLimiter.budget(1, { price: { input: 1e4, output: 0 }, timePeriod: Duration.infinity })
      const { Model, began, manager, submit } = yield* open({ rateLimiters: [budget] })
      yield* submit("a", {}, { estimatedInputTokens: 60, estimatedOutputTokens: 0 })
      const options = { estimatedInputTokens: 50, estimatedOutputTokens: 0 }
      const error = yield* Effect.flip(submit("b", {}, options))
      assert(error instanceof QueueError.BudgetExceeded)
      assert.deepInclude(error, {
        modelId: Model.modelId,
        requestId: "b",
        tenant: undefined,
        budget: 1,
        used: 0.6,
        requested: 0.5,
        periodMillis: undefined,
        retryAfterMillis: undefined
      })
      const request = QueueRequest.make(Model, { params: { text: "c" }, id: "c", waitForCompletion: false, ...options })
      const accepted = Effect.flatMap(manager.submitRequest(request), (pending) => manager.awaitCompletion(pending))
      assert.strictEqual(yield* tagged(accepted), "BudgetExceeded")
      assert.deepStrictEqual(began, ["a"])
    })
  )

  // Time --------------------------------------------------------------------------------------------------------------

  test(
    "a timeout ends what waits, whoever waits for it",
    Effect.gen(function*() {
      const { Model, accept, began, manager, statusOf, submit } = yield* open()
      yield* manager.pauseQueue(Model)
      const error = yield* Effect.flip(submit("a", {}, { timeout: 50 }))
      assert(error instanceof QueueError.QueueTimeout)
      assert.deepInclude(error, {
        modelId: Model.modelId,
        requestId: "a",
        limit: "timeout",
        timeoutMillis: 50,
        processingTimeMillis: 0
      })
      assert.strictEqual(yield* statusOf("a"), "failed")
      const pending = yield* accept("b", {}, { timeout: 50 })
      const late = yield* Effect.flip(manager.awaitCompletion(pending))
      assert.deepInclude(late, { _tag: "QueueTimeout", limit: "timeout", timeoutMillis: 50 })
      assert.strictEqual(yield* statusOf("b"), "failed")
      yield* manager.resumeQueue(Model)
      yield* submit("c")
      assert.deepStrictEqual(began, ["c"])
    })
  )

  test(
    "a timeout that nobody waits for is an end, too",
    Effect.gen(function*() {
      const { Model, accept, manager, reaches } = yield* open()
      yield* manager.pauseQueue(Model)
      yield* accept("a", {}, { timeout: 50 })
      yield* reaches("a", "failed")
      assert.isFalse(yield* manager.cancelRequest(Model, "a"))
    })
  )

  test(
    "a timeout ends what is processed",
    Effect.gen(function*() {
      const { isInterrupted, reaches, start, submit } = yield* open({ timeout: 300 })
      const error = yield* Effect.flip(submit("a", { does: "hold" }))
      assert(error instanceof QueueError.QueueTimeout)
      assert.deepInclude(error, { requestId: "a", limit: "timeout", timeoutMillis: 300 })
      yield* isInterrupted("a")
      yield* reaches("a", "failed")
      const own = yield* start("b", { does: "hold" }, { timeout: 200 })
      assert.deepInclude(errorOf(yield* Fiber.join(own)), { _tag: "QueueTimeout", timeoutMillis: 200 })
    })
  )

  test(
    "a deadline ends what waits and what is processed, and what comes after it is not accepted",
    Effect.gen(function*() {
      const { Model, isInterrupted, manager, statusOf, submit } = yield* open()
      const now = yield* DateTime.now
      const past = yield* Effect.flip(submit("past", {}, { deadline: DateTime.subtract(now, { seconds: 5 }) }))
      assert(past instanceof QueueError.QueueTimeout)
      assert.strictEqual(past.limit, "deadline")
      assert.isAtMost(past.timeoutMillis, -5000)
      assert.strictEqual(yield* tagged(manager.getStatus(Model, "past")), "RequestNotFound")
      const soon = (millis: number) => Effect.map(DateTime.now, DateTime.add({ milliseconds: millis }))
      const running = yield* Effect.flip(
        submit("runs", { does: "hold" }, { deadline: yield* soon(300), timeout: "1 hour" })
      )
      assert.deepInclude(running, { _tag: "QueueTimeout", limit: "deadline" })
      yield* isInterrupted("runs")
      yield* manager.pauseQueue(Model)
      const waits = yield* Effect.flip(submit("waits", {}, { deadline: yield* soon(50) }))
      assert.deepInclude(waits, { _tag: "QueueTimeout", limit: "deadline" })
      assert.strictEqual(yield* statusOf("waits"), "failed")
    })
  )

  test(
    "an attempt has its own timeout, and may take all of it",
    Effect.gen(function*() {
      const { isInterrupted, statusOf, submit } = yield* open({ processingTimeout: "1 hour" })
      const error = yield* Effect.flip(submit("a", { does: "hold" }, { processingTimeout: 50, timeout: "1 hour" }))
      assert(error instanceof QueueError.QueueTimeout)
      assert.deepInclude(error, { requestId: "a", limit: "processingTimeout", timeoutMillis: 50 })
      assert.isAtLeast(error.processingTimeMillis, 49)
      yield* isInterrupted("a")
      assert.strictEqual(yield* statusOf("a"), "failed")
    })
  )

  // Cancellation ------------------------------------------------------------------------------------------------------

  test(
    "what waits is cancelled once",
    Effect.gen(function*() {
      const { Model, began, manager, start, statusOf, submit } = yield* open()
      yield* manager.pauseQueue(Model)
      const fiber = yield* start("a")
      assert.isTrue(yield* manager.cancelRequest(Model, "a"))
      const cancelled = new QueueError.RequestCancelled({ modelId: Model.modelId, requestId: "a" })
      assert.deepStrictEqual(errorOf(yield* Fiber.join(fiber)), cancelled)
      assert.strictEqual(yield* statusOf("a"), "cancelled")
      assert.isFalse(yield* manager.cancelRequest(Model, "a"))
      assert.deepStrictEqual(yield* Effect.flip(manager.awaitCompletion(Model, "a")), cancelled)
      assert.deepStrictEqual(yield* manager.getRequests(Model), [])
      yield* manager.resumeQueue(Model)
      yield* submit("b")
      assert.isFalse(yield* manager.cancelRequest(Model, "b"))
      assert.strictEqual(yield* statusOf("b"), "completed")
      assert.deepStrictEqual(began, ["b"])
    })
  )

  test(
    "what is processed is cancelled, and interrupted",
    Effect.gen(function*() {
      const { Model, info, isInterrupted, manager, runs, start, statusOf } = yield* open()
      const fiber = yield* start("a", { does: "hold" })
      yield* runs("a")
      assert.isTrue(yield* manager.cancelRequest(Model, "a"))
      assert.instanceOf(errorOf(yield* Fiber.join(fiber)), QueueError.RequestCancelled)
      yield* isInterrupted("a")
      assert.strictEqual(yield* statusOf("a"), "cancelled")
      assert.isFalse(yield* manager.cancelRequest(Model, "a"))
      yield* until("nothing runs", Effect.map(info, ({ running }) => running === 0))
      assert.deepInclude(yield* info, { completed: 0, cancelled: 1 })
    })
  )

  test(
    "interrupting a submission cancels its request",
    Effect.gen(function*() {
      const { Model, began, isInterrupted, manager, runs, start, statusOf, submit } = yield* open()
      const running = yield* start("runs", { does: "hold" })
      yield* runs("runs")
      yield* Fiber.interrupt(running)
      yield* isInterrupted("runs")
      assert.strictEqual(yield* statusOf("runs"), "cancelled")
      yield* manager.pauseQueue(Model)
      const waiting = yield* start("waits")
      yield* Fiber.interrupt(waiting)
      assert.strictEqual(yield* statusOf("waits"), "cancelled")
      yield* manager.resumeQueue(Model)
      yield* submit("last")
      assert.deepStrictEqual(began, ["runs", "last"])
    })
  )

  test(
    "interrupting who waits for an end changes nothing",
    Effect.gen(function*() {
      const { Model, accept, interrupted, manager, release, runs } = yield* open()
      const pending = yield* accept("a", { does: "hold" })
      yield* runs("a")
      const fiber = yield* Effect.forkChild(manager.awaitCompletion(pending), { startImmediately: true })
      const other = yield* Effect.forkChild(manager.awaitCompletion(Model, "a"), { startImmediately: true })
      yield* Effect.yieldNow
      yield* Fiber.interrupt(fiber)
      yield* release("a")
      assert.deepStrictEqual((yield* Fiber.join(other)).result, answer("A"))
      assert.deepStrictEqual(interrupted, [])
    })
  )

  test(
    "many are cancelled by what they have in common",
    Effect.gen(function*() {
      const { Model, accept, manager, reaches, release, runs, statusOf } = yield* open({
        rateLimiters: [RateLimiter.concurrent(1)]
      })
      yield* accept("runs", { does: "hold" }, { tenant: "acme" })
      yield* runs("runs")
      yield* manager.pauseQueue(Model)
      const each: Record<string, QueueRequest.RequestOptions> = {
        one: { tenant: "acme" },
        two: { tenant: "acme", labels: { task: "x", more: "y" } },
        three: { labels: { task: "x" } },
        four: { priority: "low" },
        five: { priority: 600 },
        six: {},
        seven: {}
      }
      for (const [id, options] of Object.entries(each)) yield* accept(id, {}, options)
      const cancelled = (filter: QueueManager.RequestFilter) => manager.cancelRequests(Model, filter)
      assert.strictEqual(yield* cancelled({ ids: ["none"] }), 0)
      assert.strictEqual(yield* cancelled({ olderThan: "1 hour" }), 0)
      assert.strictEqual(yield* cancelled({ tenant: "acme", status: "pending", labels: { task: "x" } }), 1)
      assert.strictEqual(yield* statusOf("two"), "cancelled")
      assert.strictEqual(yield* statusOf("one"), "pending")
      assert.strictEqual(yield* cancelled({ labels: { task: "x" } }), 1)
      assert.strictEqual(yield* statusOf("three"), "cancelled")
      assert.strictEqual(yield* cancelled({ priority: -60 }), 1)
      assert.strictEqual(yield* statusOf("four"), "cancelled")
      assert.strictEqual(yield* cancelled({ where: ({ requestId }) => requestId === "five" }), 1)
      assert.strictEqual(yield* statusOf("five"), "cancelled")
      assert.strictEqual(yield* cancelled({ ids: ["six", "two", "unknown"] }), 1)
      assert.strictEqual(yield* cancelled({ status: "processing" }), 1)
      yield* reaches("runs", "cancelled")
      assert.strictEqual(yield* cancelled({ olderThan: 0, priority: "normal" }), 2)
      assert.strictEqual(yield* cancelled({}), 0)
      yield* release("runs")
      yield* manager.resumeQueue(Model)
    })
  )

  // Order -------------------------------------------------------------------------------------------------------------

  const inOrder = Effect.fnUntraced(function*(
    submissions: ReadonlyArray<readonly [id: string, priority?: ModelConfig.Priority]>,
    change: (opened: Effect.Success<ReturnType<typeof open>>) => Effect.Effect<void, unknown> = () => Effect.void
  ) {
    const opened = yield* open({ rateLimiters: [RateLimiter.concurrent(1)] })
    const { Model, accept, began, ended, manager } = opened
    yield* manager.pauseQueue(Model)
    for (const [id, priority] of submissions) yield* accept(id, {}, { priority })
    yield* change(opened)
    assert.deepStrictEqual(began, [])
    yield* manager.resumeQueue(Model)
    yield* ended(...submissions.map(([id]) => id))
    return began
  })

  test(
    "a higher priority goes before",
    Effect.gen(function*() {
      const began = yield* inOrder([
        ["low", "low"],
        ["normal"],
        ["high", "high"],
        ["last", -86_400],
        ["first", 86_400],
        ["number", 30]
      ])
      assert.deepStrictEqual(began, ["first", "high", "number", "normal", "low", "last"])
    })
  )

  test(
    "of equal priorities the first goes first",
    Effect.gen(function*() {
      const all = Array.from({ length: 40 }, (_, index) => `${index}`)
      assert.deepStrictEqual(yield* inOrder(all.map((id) => [id])), all)
    })
  )

  test(
    "what waits is given another priority",
    Effect.gen(function*() {
      const began = yield* inOrder(
        [["a"], ["b"], ["c", "high"], ["d"]],
        ({ Model, manager }) =>
          Effect.gen(function*() {
            assert.isTrue(yield* manager.changePriority(Model, "d", 3600))
            assert.isTrue(yield* manager.changePriority(Model, "a", "low"))
            const listed = yield* manager.getRequests(Model)
            assert.deepStrictEqual(listed.map(({ priority, requestId }) => [requestId, priority]), [
              ["d", 3600],
              ["c", 60],
              ["b", 0],
              ["a", -60]
            ])
          })
      )
      assert.deepStrictEqual(began, ["d", "c", "b", "a"])
    })
  )

  test(
    "what does not wait keeps its priority",
    Effect.gen(function*() {
      const { Model, manager, release, runs, start } = yield* open()
      const fiber = yield* start("a", { does: "hold" })
      yield* runs("a")
      assert.isFalse(yield* manager.changePriority(Model, "a", "high"))
      yield* release("a")
      yield* Fiber.join(fiber)
      assert.isFalse(yield* manager.changePriority(Model, "a", "high"))
    })
  )

  // Limits ------------------------------------------------------------------------------------------------------------

  test(
    "so many run at one time",
    Effect.gen(function*() {
      let running = 0
      let most = 0
      const { accept, began, ended, info, release } = yield* open(
        { rateLimiters: [RateLimiter.concurrent(3)] },
        () =>
          Effect.sync(() => {
            running++
            most = Math.max(most, running)
          }).pipe(Effect.andThen(Effect.yieldNow))
      )
      const ids = Array.from({ length: 9 }, (_, index) => `${index}`)
      for (const id of ids) yield* accept(id, { does: "hold" })
      for (let done = 0; done < ids.length; done++) {
        const started = Math.min(ids.length, done + 3)
        yield* until(`${started} have begun`, Effect.sync(() => began.length === started))
        assert.strictEqual((yield* info).rateLimiters[0]!.used, Math.min(3, ids.length - done))
        running--
        yield* release(began[done]!)
        yield* ended(began[done]!)
      }
      assert.strictEqual(most, 3)
      assert.lengthOf(began, ids.length)
    })
  )

  test(
    "no more go than a limit allows, and more when it allows more",
    Effect.gen(function*() {
      const { Model, accept, began, begins, ended, info, manager, statusOf } = yield* open({
        rateLimiters: [RateLimiter.rpm(3, { timePeriod: "1 hour" })]
      })
      for (const id of ["a", "b", "c", "d", "e"]) yield* accept(id)
      yield* ended("a", "b", "c")
      assert.deepInclude((yield* info).rateLimiters[0], { type: "rpm", limit: 3, used: 3, available: 0 })
      assert.deepStrictEqual(began, ["a", "b", "c"])
      assert.strictEqual(yield* statusOf("d"), "pending")
      yield* manager.changeLimit(Model, { type: "rpm", limit: 4 })
      yield* begins("d")
      yield* ended("d")
      assert.deepInclude((yield* info).rateLimiters[0], { limit: 4, used: 4 })
      assert.strictEqual(yield* statusOf("e"), "pending")
      yield* manager.updateRateLimiters(Model, "unlimited")
      yield* ended("e")
      assert.deepStrictEqual((yield* info).rateLimiters, [])
    })
  )

  test(
    "limits that are wrong change nothing",
    Effect.gen(function*() {
      const { Model, info, manager } = yield* open({ rateLimiters: [RateLimiter.rpm(3)] })
      assert.strictEqual(
        yield* tagged(manager.changeLimit(Model, { type: "tpm", limit: 4 })),
        "InvalidConfiguration"
      )
      assert.strictEqual(
        yield* tagged(manager.changeLimit(Model, { type: "rpm", limit: Number.NaN })),
        "InvalidConfiguration"
      )
      assert.strictEqual(yield* tagged(manager.updateRateLimiters(Model, [])), "InvalidConfiguration")
      assert.strictEqual((yield* info).rateLimiters[0]!.limit, 3)
    })
  )

  test(
    "what was too large fits when its limit is raised, and what waits is too large when it is lowered",
    Effect.gen(function*() {
      const { Model, accept, ended, manager, start, submit } = yield* open({ rateLimiters: [RateLimiter.tpm(100)] })
      const large = { estimatedInputTokens: 500, estimatedOutputTokens: 0 }
      assert.strictEqual(yield* tagged(submit("a", {}, large)), "RequestTooLarge")
      yield* manager.updateRateLimiters(Model, [RateLimiter.tpm(1000)])
      assert.strictEqual((yield* submit("a", {}, large)).status, "completed")
      yield* manager.pauseQueue(Model)
      const waits = yield* start("b", {}, large)
      yield* accept("c", {}, { estimatedInputTokens: 1, estimatedOutputTokens: 0 })
      yield* manager.updateRateLimiters(Model, [RateLimiter.tpm(200), RateLimiter.rpm(10)])
      yield* manager.resumeQueue(Model)
      assert.deepInclude(errorOf(yield* Fiber.join(waits)), { _tag: "RequestTooLarge", limit: 200 })
      assert.strictEqual(yield* tagged(submit("d", {}, large)), "RequestTooLarge")
      yield* manager.updateRateLimiters(Model, "unlimited")
      yield* ended("c")
    })
  )

  test(
    "what was used is reported while it is processed, once",
    Effect.gen(function*() {
      const { Model, info, manager, release, runs, start } = yield* open({
        rateLimiters: [RateLimiter.tpm(100, { timePeriod: "1 hour" })]
      })
      const fiber = yield* start("a", { does: "hold" }, { estimatedInputTokens: 50, estimatedOutputTokens: 0 })
      yield* runs("a")
      const report = (inputTokens: number) => manager.updateTokenUsage(Model, "a", { inputTokens, outputTokens: 1 })
      assert.strictEqual(yield* tagged(report(Number.NaN)), "InvalidRequest")
      assert.strictEqual(yield* report(10), "settled")
      assert.strictEqual(yield* report(20), "alreadySettled")
      yield* until("it is settled", Effect.map(info, ({ rateLimiters }) => rateLimiters[0]!.used === 11))
      yield* release("a")
      const exit = yield* Fiber.join(fiber)
      assert(Exit.isSuccess(exit))
      assert.deepInclude(exit.value, { inputTokensUsed: 10, outputTokensUsed: 1 })
      assert.deepInclude(yield* manager.getStatus(Model, "a"), { inputTokensUsed: 10, outputTokensUsed: 1 })
    })
  )

  missing(
    "what was used is reported after the end, as long as that is kept",
    "the queue in memory has forgotten it, and answers RequestNotFound",
    Effect.gen(function*() {
      const { Model, info, manager, submit } = yield* open({
        rateLimiters: [RateLimiter.tpm(100, { timePeriod: "1 hour" })]
      })
      yield* submit("a", {}, { estimatedInputTokens: 50, estimatedOutputTokens: 0 })
      assert.strictEqual(yield* manager.updateTokenUsage(Model, "a", { inputTokens: 10, outputTokens: 1 }), "settled")
      yield* until("it is settled", Effect.map(info, ({ rateLimiters }) => rateLimiters[0]!.used === 11))
      assert.deepInclude(yield* manager.getStatus(Model, "a"), { inputTokensUsed: 10, outputTokensUsed: 1 })
    })
  )

  test(
    "a wait is estimated from the limits",
    Effect.gen(function*() {
      const { Model, manager, submit } = yield* open({
        rateLimiters: [RateLimiter.rpm(1, { timePeriod: "1 hour" }), RateLimiter.tpm(100)]
      })
      const none = { estimatedInputTokens: 0, estimatedOutputTokens: 0 }
      assert.strictEqual(Duration.toMillis(yield* manager.estimateWait(Model, none)), 0)
      yield* submit("a", {}, none)
      const wait = Duration.toMillis(yield* manager.estimateWait(Model, none))
      assert.isTrue(wait > 3_000_000 && wait <= 3_700_000, `${wait}`)
      assert.strictEqual(yield* tagged(manager.estimateWait(Model, { priority: Number.NaN })), "InvalidRequest")
      assert.strictEqual(
        yield* tagged(manager.estimateWait(Model, { ...none, estimatedInputTokens: 101 })),
        "RequestTooLarge"
      )
      yield* manager.pauseQueue(Model)
      assert.strictEqual(Duration.toMillis(yield* manager.estimateWait(Model, none)), Number.POSITIVE_INFINITY)
    })
  )

  // Refusals ----------------------------------------------------------------------------------------------------------

  const refusing = (...refusals: ReadonlyArray<provider.HttpFailure>) => {
    let count = 0
    return () =>
      Effect.suspend(() => {
        const refusal = refusals[count++]
        return refusal === undefined
          ? Effect.void
          : Effect.fail(new Refused({ status: refusal.status, headers: refusal.headers, message: refusal.message }))
      })
  }

  const patient: Options = { provider: provider.profile, retry: { schedule: Schedule.recurs(2) } }

  test(
    "what the provider refuses is attempted again, as the same request",
    Effect.gen(function*() {
      const { requests, statusOf, submit } = yield* open(patient, refusing(provider.transient(), provider.rate(20)))
      const options = { metadata: { n: 1 }, labels: { task: "x" }, tenant: "acme" }
      const response = yield* submit("a", {}, options)
      assert.strictEqual(response.attempts, 3)
      assert.strictEqual(yield* statusOf("a"), "completed")
      assert.lengthOf(requests, 3)
      for (const request of requests) {
        assert.deepInclude(request, { id: "a", ...options, params: { text: "a" } })
      }
    })
  )

  missing(
    "the refused attempts are told",
    "refusals are not stored",
    Effect.gen(function*() {
      const { Model, manager, submit } = yield* open(patient, refusing(provider.transient(), provider.rate(20)))
      const response = yield* submit("a")
      assert.deepStrictEqual(response.refusals.map(({ kind }) => kind), ["transient", "rate"])
      assert.lengthOf((yield* manager.getStatus(Model, "a")).refusals, 2)
    })
  )

  test(
    "what is refused to the end fails with what it was",
    Effect.gen(function*() {
      const { Model, manager, requests, submit } = yield* open(
        patient,
        refusing(
          provider.rate(),
          provider.rate(),
          provider.rate(),
          provider.own(),
          ...Array.from({ length: 3 }, () => provider.transient())
        )
      )
      const error = yield* Effect.flip(submit("a"))
      assert(error instanceof QueueError.RateLimitExceeded)
      assert.deepInclude(error, { modelId: Model.modelId, requestId: "a", attempts: 3 })
      assert.lengthOf(requests, 3)
      const status = yield* manager.getStatus(Model, "a")
      assert(status.status === "failed")
      assert.strictEqual(status.attempts, 3)
      // What the profile does not know is the processor's own.
      const own = yield* Effect.flip(submit("b"))
      assert(own instanceof Refused)
      assert.strictEqual(own.status, 418)
      const transient = yield* Effect.flip(submit("c"))
      assert(transient instanceof Refused)
      assert.strictEqual(transient.status, 500)
      assert.strictEqual((yield* manager.getStatus(Model, "c")).attempts, 3)
    })
  )

  // Capacity ----------------------------------------------------------------------------------------------------------

  test(
    "a full queue refuses (reject)",
    Effect.gen(function*() {
      const { Model, accept, ended, manager, submit } = yield* open({ capacity: 2, strategy: "reject" })
      yield* manager.pauseQueue(Model)
      yield* accept("a")
      yield* accept("b")
      const full = new QueueError.QueueFull({ modelId: Model.modelId, requestId: "c", capacity: 2 })
      assert.deepStrictEqual(yield* Effect.flip(accept("c")), full)
      assert.deepStrictEqual(yield* Effect.flip(submit("c")), full)
      assert.strictEqual(yield* tagged(manager.getStatus(Model, "c")), "RequestNotFound")
      yield* manager.resumeQueue(Model)
      yield* ended("a", "b")
      yield* Effect.retry(submit("c"), { while: ({ _tag }) => _tag === "QueueFull", schedule: Schedule.spaced(5) })
    })
  )

  missing(
    "what is cancelled leaves room",
    "it is counted until somebody takes it, which nobody does while the queue is paused",
    Effect.gen(function*() {
      const { Model, accept, info, manager } = yield* open({ capacity: 2, strategy: "reject" })
      yield* manager.pauseQueue(Model)
      yield* accept("a")
      yield* accept("b")
      yield* manager.cancelRequest(Model, "a")
      yield* until("there is room", Effect.map(info, ({ depth }) => depth === 1))
      yield* Effect.retry(accept("c"), {
        while: ({ _tag }) => _tag === "QueueFull",
        schedule: Schedule.max([Schedule.spaced(20), Schedule.recurs(50)])
      })
    })
  )

  test(
    "a full queue drops what has waited longest (dropOldest)",
    Effect.gen(function*() {
      const { Model, accept, began, ended, manager, start, statusOf } = yield* open({
        capacity: 2,
        strategy: "dropOldest"
      })
      yield* manager.pauseQueue(Model)
      const oldest = yield* start("a")
      yield* accept("b")
      yield* accept("c")
      assert.deepStrictEqual(
        errorOf(yield* Fiber.join(oldest)),
        new QueueError.QueueFull({ modelId: Model.modelId, requestId: "a", capacity: 2 })
      )
      assert.strictEqual(yield* statusOf("a"), "failed")
      yield* accept("d")
      assert.deepStrictEqual(
        (yield* manager.getRequests(Model)).map(({ requestId }) => requestId),
        ["c", "d"]
      )
      yield* manager.resumeQueue(Model)
      yield* ended("c", "d")
      assert.deepStrictEqual(began.toSorted(), ["c", "d"])
    })
  )

  missing(
    "what has waited longest is dropped, whatever its priority",
    "what is first in order is",
    Effect.gen(function*() {
      const { Model, accept, manager, statusOf } = yield* open({ capacity: 2, strategy: "dropOldest" })
      yield* manager.pauseQueue(Model)
      yield* accept("a", {}, { priority: "low" })
      yield* accept("b", {}, { priority: "high" })
      yield* accept("c")
      assert.deepStrictEqual([yield* statusOf("a"), yield* statusOf("b")], ["failed", "pending"])
    })
  )

  test(
    "a full queue lets wait for room (suspend)",
    Effect.gen(function*() {
      const { Model, accept, began, ended, info, manager, submit } = yield* open({ capacity: 2 })
      yield* manager.pauseQueue(Model)
      yield* accept("a")
      yield* accept("b")
      const waiting = yield* Effect.forkChild(submit("c"), { startImmediately: true })
      yield* until("it waits for room", Effect.map(info, ({ depth, suspended }) => depth === 2 && suspended === 1))
      const late = yield* Effect.flip(submit("late", {}, { timeout: 50 }))
      assert.deepInclude(late, { _tag: "QueueTimeout", limit: "timeout", timeoutMillis: 50 })
      assert.strictEqual(yield* tagged(manager.getStatus(Model, "late")), "RequestNotFound")
      const left = yield* Effect.forkChild(submit("left"), { startImmediately: true })
      yield* Fiber.interrupt(left)
      assert.deepStrictEqual(began, [])
      yield* manager.resumeQueue(Model)
      yield* Fiber.join(waiting)
      yield* ended("a", "b")
      assert.deepStrictEqual(began.toSorted(), ["a", "b", "c"])
      assert.deepInclude(yield* info, { suspended: 0 })
    })
  )

  // Control -----------------------------------------------------------------------------------------------------------

  test(
    "a queue that is paused accepts, and processes nothing more",
    Effect.gen(function*() {
      const { Model, accept, began, ended, info, manager, release, runs } = yield* open()
      assert.strictEqual((yield* info).state, "open")
      yield* accept("runs", { does: "hold" })
      yield* runs("runs")
      yield* manager.pauseQueue(Model)
      yield* accept("waits")
      assert.deepInclude(yield* info, { state: "paused", depth: 1, running: 1 })
      yield* release("runs")
      yield* ended("runs")
      assert.deepStrictEqual(began, ["runs"])
      yield* manager.pauseQueue(Model)
      yield* manager.resumeQueue(Model)
      yield* manager.resumeQueue(Model)
      yield* ended("waits")
      assert.deepInclude(yield* info, { state: "open", depth: 0 })
    })
  )

  test(
    "a queue that drains ends what it has, and takes nothing until it is resumed",
    Effect.gen(function*() {
      const { Model, accept, info, manager, release, runs, statusOf, submit } = yield* open({
        rateLimiters: [RateLimiter.concurrent(1)]
      })
      yield* accept("runs", { does: "hold" })
      yield* accept("waits")
      yield* runs("runs")
      const draining = yield* Effect.forkChild(manager.drainQueue(Model), { startImmediately: true })
      yield* until("it drains", Effect.map(info, ({ state }) => state === "draining"))
      const refused = new QueueError.QueueDraining({ modelId: Model.modelId, requestId: "late" })
      assert.deepStrictEqual(yield* Effect.flip(submit("late")), refused)
      assert.isUndefined(draining.pollUnsafe())
      yield* release("runs")
      assert.isTrue(yield* Fiber.join(draining))
      assert.strictEqual(yield* statusOf("waits"), "completed")
      assert.deepStrictEqual(yield* Effect.flip(accept("late")), refused)
      assert.isTrue(yield* manager.drainQueue(Model))
      yield* manager.resumeQueue(Model)
      assert.strictEqual((yield* info).state, "open")
      yield* submit("late")
    })
  )

  test(
    "resuming a queue ends its draining",
    Effect.gen(function*() {
      const { Model, info, manager, release, runs, start } = yield* open()
      const fiber = yield* start("a", { does: "hold" })
      yield* runs("a")
      const draining = yield* Effect.forkChild(manager.drainQueue(Model), { startImmediately: true })
      yield* until("it drains", Effect.map(info, ({ state }) => state === "draining"))
      yield* manager.resumeQueue(Model)
      assert.isFalse(yield* Fiber.join(draining))
      yield* release("a")
      yield* Fiber.join(fiber)
    })
  )

  test(
    "draining ends a pause",
    Effect.gen(function*() {
      const { Model, accept, manager, statusOf } = yield* open()
      yield* manager.pauseQueue(Model)
      yield* accept("a")
      assert.isTrue(yield* manager.drainQueue(Model))
      assert.strictEqual(yield* statusOf("a"), "completed")
    })
  )

  test(
    "who waits for room is told when the queue drains",
    Effect.gen(function*() {
      const { Model, accept, info, manager, release, runs, submit } = yield* open({
        capacity: 1,
        rateLimiters: [RateLimiter.concurrent(1)]
      })
      yield* accept("runs", { does: "hold" })
      yield* runs("runs")
      yield* manager.pauseQueue(Model)
      yield* accept("waits")
      const suspended = yield* Effect.forkChild(Effect.exit(submit("late")), { startImmediately: true })
      yield* until("it waits for room", Effect.map(info, ({ suspended }) => suspended === 1))
      const draining = yield* Effect.forkChild(manager.drainQueue(Model), { startImmediately: true })
      assert.strictEqual(tag(yield* Fiber.join(suspended)), "QueueDraining")
      yield* release("runs")
      assert.isTrue(yield* Fiber.join(draining))
    })
  )

  test(
    "the state of a queue has its numbers",
    Effect.gen(function*() {
      const { Model, accept, ended, info, manager, release, runs } = yield* open({
        capacity: 20,
        provider: provider.profile,
        rateLimiters: [RateLimiter.concurrent(1), RateLimiter.rpm(100)]
      })
      assert.deepInclude(yield* info, {
        modelId: Model.modelId,
        state: "open",
        capacity: 20,
        depth: 0,
        suspended: 0,
        running: 0,
        completed: 0,
        failed: 0,
        cancelled: 0,
        reservations: []
      })
      yield* accept("runs", { does: "hold" })
      yield* runs("runs")
      yield* accept("fails", { does: "fail" })
      yield* accept("succeeds")
      yield* accept("waits")
      yield* until("all wait", Effect.map(info, ({ depth, running }) => depth === 3 && running === 1))
      const { provider: known, rateLimiters } = yield* info
      assert.deepStrictEqual(rateLimiters.map(({ limit, type, used }) => [type, limit, used]), [
        ["concurrent", 1, 1],
        ["rpm", 100, 1]
      ])
      assert.deepInclude(known, { name: "scripted", state: "available" })
      yield* release("runs")
      yield* ended("runs", "fails", "succeeds", "waits")
      yield* until("all have ended", Effect.map(info, ({ depth, running }) => depth === 0 && running === 0))
      const ends = { completed: 3, failed: 1, cancelled: 0 }
      assert.deepInclude(yield* info, ends)
      assert.deepInclude((yield* manager.getAllQueuesInfo).get(Model.modelId), ends)
    })
  )

  missing(
    "what was cancelled has not failed",
    "it is counted as both",
    Effect.gen(function*() {
      const { Model, info, manager, runs, start } = yield* open()
      yield* start("a", { does: "hold" })
      yield* runs("a")
      yield* manager.cancelRequest(Model, "a")
      yield* until("nothing runs", Effect.map(info, ({ running }) => running === 0))
      assert.deepInclude(yield* info, { completed: 0, failed: 0, cancelled: 1 })
    })
  )

  test(
    "requests that have not ended are listed, first what is processed, then in order",
    Effect.gen(function*() {
      const { Model, accept, manager, release, runs } = yield* open({ rateLimiters: [RateLimiter.concurrent(1)] })
      yield* accept("runs", { does: "hold" }, { tenant: "acme", labels: { task: "x" } })
      yield* runs("runs")
      yield* manager.pauseQueue(Model)
      yield* accept("a", {}, { labels: { task: "x" } })
      yield* accept("b", {}, { priority: "high", tenant: "acme" })
      yield* accept("c", {}, { priority: 600 })
      const ids = (filter?: QueueManager.RequestFilter, limit?: number) =>
        Effect.map(
          manager.getRequests(Model, filter, { limit }),
          (listed) => listed.map(({ requestId }) => requestId)
        )
      assert.deepStrictEqual(yield* ids(), ["runs", "c", "b", "a"])
      assert.deepStrictEqual(yield* ids({}, 2), ["runs", "c"])
      assert.deepStrictEqual(yield* ids({ status: "pending" }, 1), ["c"])
      assert.deepStrictEqual(yield* ids({ status: "processing" }), ["runs"])
      assert.deepStrictEqual(yield* ids({ tenant: "acme" }), ["runs", "b"])
      assert.deepStrictEqual(yield* ids({ labels: { task: "x" } }), ["runs", "a"])
      assert.deepStrictEqual(yield* ids({ priority: 0 }), ["runs", "a"])
      assert.deepStrictEqual(yield* ids({ where: ({ attempts }) => attempts === 0 }), ["c", "b", "a"])
      const [first, , third] = yield* manager.getRequests(Model)
      assert.deepInclude(first, {
        requestId: "runs",
        status: "processing",
        tenant: "acme",
        priority: 0,
        labels: { task: "x" },
        attempts: 1,
        predictedWait: undefined
      })
      assert.deepInclude(third, { requestId: "b", status: "pending", priority: 60, labels: {}, attempts: 0 })
      assert.strictEqual(Duration.toMillis(third!.predictedWait!), Number.POSITIVE_INFINITY)
      assert.strictEqual(Duration.toMillis(third!.processingTime), 0)
      yield* release("runs")
      yield* manager.cancelRequests(Model, { status: "pending" })
      yield* manager.resumeQueue(Model)
    })
  )

  // What is kept ------------------------------------------------------------------------------------------------------

  test(
    "so many ends are kept, the newest",
    Effect.gen(function*() {
      const { Model, manager, statusOf, submit } = yield* open({ retention: { count: 2 } })
      for (const id of ["a", "b", "c", "d"]) yield* submit(id)
      for (const id of ["a", "b"]) {
        assert.strictEqual(yield* tagged(manager.getStatus(Model, id)), "RequestNotFound")
        assert.strictEqual(yield* tagged(manager.awaitCompletion(Model, id)), "RequestNotFound")
      }
      for (const id of ["c", "d"]) assert.strictEqual(yield* statusOf(id), "completed")
      assert.strictEqual((yield* submit("a")).status, "completed")
    })
  )

  missing(
    "ends of all kinds are counted together",
    "as many failed ones are kept besides",
    Effect.gen(function*() {
      const { Model, manager, statusOf, submit } = yield* open({ retention: { count: 2 } })
      yield* submit("a")
      yield* Effect.flip(submit("b", { does: "fail" }))
      yield* submit("c")
      assert.strictEqual(yield* tagged(manager.getStatus(Model, "a")), "RequestNotFound")
      assert.strictEqual(yield* statusOf("b"), "failed")
      assert.strictEqual(yield* statusOf("c"), "completed")
    })
  )

  test(
    "who waits has the result, also where no end is kept",
    Effect.gen(function*() {
      const { Model, manager, submit } = yield* open({ retention: { count: 0 } })
      for (let index = 0; index < 3; index++) {
        assert.deepStrictEqual((yield* submit("a")).result, answer("A"))
        assert.instanceOf(yield* Effect.flip(submit("a", { does: "fail" })), Broken)
      }
      assert.strictEqual(yield* tagged(manager.getStatus(Model, "a")), "RequestNotFound")
    })
  )

  test(
    "what has failed is kept with its parameters, and can be submitted again",
    Effect.gen(function*() {
      let isBroken = true
      const { Model, manager, reaches, requests, submit } = yield* open(
        { deadLetters: { count: 10 } },
        ({ params }) =>
          isBroken && params.text !== "fine" ? Effect.fail(new Broken({ why: params.text, at: date })) : Effect.void
      )
      yield* submit("fine")
      yield* Effect.flip(
        submit("a", { at: date }, { tenant: "acme", labels: { task: "x" }, metadata: { n: 1 }, priority: "high" })
      )
      yield* Effect.flip(submit("b"))
      yield* Effect.flip(submit("c"))
      const letters = yield* manager.deadLetters(Model)
      assert.deepStrictEqual(letters.map(({ requestId }) => requestId), ["a", "b", "c"])
      const [letter] = letters
      assert.deepInclude(letter!.request, { id: "a", tenant: "acme", labels: { task: "x" }, metadata: { n: 1 } })
      assert.deepStrictEqual(letter!.request.params, { text: "a", at: date })
      assert.deepStrictEqual(Cause.squash(letter!.response.cause), new Broken({ why: "a", at: date }))
      assert.strictEqual(letter!.response.status, "failed")
      assert.isAtLeast(letter!.failedAt, letter!.response.createdAt)
      isBroken = false
      const pending = yield* manager.resubmitDeadLetter(Model, "a")
      assert.notStrictEqual(pending.requestId, "a")
      assert.strictEqual(pending.tenant, "acme")
      assert.deepStrictEqual((yield* manager.awaitCompletion(pending)).result, answer("A"))
      assert.deepInclude(requests.at(-1), { labels: { task: "x" }, metadata: { n: 1 }, tenant: "acme" })
      const again = yield* manager.resubmitDeadLetter(Model, "b", { id: "again", tenant: "other" })
      assert.deepInclude(again, { requestId: "again", tenant: "other" })
      yield* reaches("again", "completed")
      assert.deepStrictEqual((yield* manager.deadLetters(Model)).map(({ requestId }) => requestId), ["c"])
      assert.strictEqual(yield* tagged(manager.resubmitDeadLetter(Model, "a")), "RequestNotFound")
      assert.strictEqual(yield* manager.removeDeadLetters(Model, ["a", "unknown"]), 0)
      assert.strictEqual(yield* manager.removeDeadLetters(Model), 1)
      assert.deepStrictEqual(yield* manager.deadLetters(Model), [])
    })
  )

  test(
    "so many that have failed are kept, the newest, and none that was cancelled",
    Effect.gen(function*() {
      const { Model, isInterrupted, manager, runs, start, submit } = yield* open({ deadLetters: { count: 2 } })
      for (const id of ["a", "b", "c"]) yield* Effect.flip(submit(id, { does: "fail" }))
      for (const id of ["x", "y"]) {
        const fiber = yield* start(id, { does: "hold" })
        yield* runs(id)
        yield* manager.cancelRequest(Model, id)
        yield* Fiber.join(fiber)
        yield* isInterrupted(id)
      }
      yield* until("none runs", Effect.map(manager.getQueueInfo(Model), ({ running }) => running === 0))
      const ids = Effect.map(manager.deadLetters(Model), (letters) => letters.map(({ requestId }) => requestId))
      assert.deepStrictEqual(yield* ids, ["b", "c"])
      assert.strictEqual(yield* manager.removeDeadLetters(Model, ["c"]), 1)
      assert.deepStrictEqual(yield* ids, ["b"])
    })
  )

  test(
    "what is known of a failed request outlives its letter",
    Effect.gen(function*() {
      const { Model, ended, manager, statusOf, submit } = yield* open({ deadLetters: { count: 2 } })
      yield* Effect.flip(submit("a", { does: "fail" }))
      yield* Effect.flip(submit("b", { does: "fail" }))
      yield* manager.removeDeadLetters(Model, ["a"])
      assert.strictEqual(yield* statusOf("a"), "failed")
      yield* ended((yield* manager.resubmitDeadLetter(Model, "b")).requestId)
      assert.strictEqual(yield* statusOf("b"), "failed")
    })
  )

  test(
    "the timeouts of what has failed count anew, and its deadline no more",
    Effect.gen(function*() {
      let isBroken = true
      const { Model, manager, submit } = yield* open(
        { deadLetters: { count: 10 } },
        ({ params }) => isBroken ? Effect.fail(new Broken({ why: params.text, at: date })) : Effect.never
      )
      const deadline = DateTime.add(yield* DateTime.now, { seconds: 60 })
      yield* Effect.flip(submit("timeout", {}, { timeout: 300, deadline }))
      yield* Effect.flip(submit("processing", {}, { processingTimeout: 100 }))
      const letters = yield* manager.deadLetters(Model)
      assert.lengthOf(letters, 2)
      isBroken = false
      for (const [id, limit] of [["timeout", "timeout"], ["processing", "processingTimeout"]] as const) {
        const pending = yield* manager.resubmitDeadLetter(Model, id)
        const error = yield* Effect.flip(Effect.timeout(manager.awaitCompletion(pending), "5 seconds"))
        assert.deepInclude(error, { _tag: "QueueTimeout", limit })
      }
    })
  )

  // Context -----------------------------------------------------------------------------------------------------------

  test(
    "requests have what their region says, and what they submit has it from them",
    Effect.gen(function*() {
      const deadline = DateTime.add(yield* DateTime.now, { hours: 1 })
      const seen: Array<QueueManager.RequestContext> = []
      const Inner = model()
      const { Model, manager, requests } = yield* open({}, ({ id }) =>
        Effect.gen(function*() {
          seen.push(yield* QueueManager.CurrentRequestContext)
          if (id === "a") {
            yield* Effect.ignore(
              QueueManager.QueueManager.use((manager) => manager.submit(Inner, { text: "" }, { id: "inner" }))
            )
          }
        }))
      const inner: Array<Request> = []
      yield* manager.registerQueue(Inner, (request) => {
        inner.push(request)
        return Effect.succeed(answer(""))
      })
      yield* manager.submit(Model, { text: "a" }, { id: "a", labels: { own: "1" } }).pipe(
        QueueManager.withTenant("acme"),
        QueueManager.withPriority("high"),
        QueueManager.withLabels({ region: "2", own: "0" }),
        QueueManager.withDeadline(deadline)
      )
      const labels = { region: "2", own: "1" }
      assert.deepInclude(requests[0], { tenant: "acme", labels })
      assert.deepInclude(inner[0], { tenant: "acme", labels })
      assert.deepInclude(seen[0], { tenant: "acme", labels })
      yield* manager.submit(Model, { text: "b" }, { id: "b", tenant: "other", priority: "low" }).pipe(
        QueueManager.withTenant("acme"),
        QueueManager.withPriority("high")
      )
      assert.deepInclude(requests[1], { id: "b", tenant: "other" })
      const past = manager.submit(Model, { text: "c" }, { deadline }).pipe(
        QueueManager.withDeadline(DateTime.subtract(deadline, { hours: 2 }))
      )
      assert.deepInclude(yield* Effect.flip(past), { _tag: "QueueTimeout", limit: "deadline" })
    })
  )

  test(
    "a processor sees the priority and the deadline of its request, and so does what it submits",
    Effect.gen(function*() {
      const deadline = DateTime.add(yield* DateTime.now, { hours: 1 })
      const seen: Array<QueueManager.RequestContext> = []
      const { Model, manager, requests } = yield* open(
        {},
        () => Effect.map(Effect.service(QueueManager.CurrentRequestContext), (context) => void seen.push(context))
      )
      yield* manager.submit(Model, { text: "a" }, { id: "a" }).pipe(
        QueueManager.withPriority("high"),
        QueueManager.withDeadline(deadline)
      )
      for (const { deadline: until, priority } of [requests[0]!, seen[0]!]) {
        assert.strictEqual(priority === "high" ? 60 : priority, 60)
        assert.strictEqual(DateTime.makeUnsafe(until!).epochMilliseconds, deadline.epochMilliseconds)
      }
    })
  )

  test(
    "a processor may wait for a request of its own queue",
    Effect.gen(function*() {
      const { Model, manager } = yield* open(
        { rateLimiters: [RateLimiter.concurrent(1)] },
        ({ id, model }) =>
          id === "outer"
            ? Effect.ignore(
              QueueManager.QueueManager.use((manager) => manager.submit(model, { text: "inner" }, { id: "inner" }))
            )
            : Effect.void
      )
      const outer = manager.submit(Model, { text: "outer" }, { id: "outer" })
      assert.deepStrictEqual((yield* Effect.timeout(outer, "3 seconds")).result, answer("OUTER"))
      const inner = Effect.map(manager.getStatus(Model, "inner"), ({ status }) => status)
      const found = Effect.catchTag(inner, "RequestNotFound", ({ _tag }) => Effect.succeed(_tag))
      assert.strictEqual(yield* found, isStored ? "RequestNotFound" : "completed")
    })
  )

  // Events ------------------------------------------------------------------------------------------------------------

  test(
    "events tell each step of what is processed here",
    Effect.gen(function*() {
      const { Model, manager, submit } = yield* open({ usage: ({ usage }) => usage })
      const events: Array<string> = []
      yield* Effect.forkScoped(
        Stream.runForEach(
          manager.events,
          ({ modelId, requestId, status }) =>
            Effect.sync(() => void (modelId === Model.modelId && events.push(`${requestId} ${status}`)))
        ),
        { startImmediately: true }
      )
      yield* Effect.yieldNow
      yield* submit("a")
      yield* Effect.flip(submit("b", { does: "fail" }))
      const expected = ["pending", "processing", "completed"].map((status) => `a ${status}`).concat(
        ["pending", "processing", "failed"].map((status) => `b ${status}`)
      )
      yield* until("all are told", Effect.sync(() => events.length >= expected.length))
      assert.deepStrictEqual(events, expected)
    })
  )

  // The end -----------------------------------------------------------------------------------------------------------

  for (const policy of ["drain", "finishRunning", "interrupt"] as const) {
    test(
      `a scope that closes ends what runs and what waits as it is told (${policy})`,
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const scope = yield* Scope.fork(yield* Scope.Scope)
        const { Model, began, interrupted, processor, release, runs, start } = yield* Scope.provide(
          open({
            shutdown: { policy, deadline: policy === "interrupt" ? "1 second" : "10 seconds" },
            rateLimiters: [RateLimiter.concurrent(1)]
          }),
          scope
        )
        const running = yield* start("runs", { does: "hold" })
        yield* runs("runs")
        const waits = yield* start("waits")
        const closing = yield* Effect.forkChild(Scope.close(scope, Exit.void), { startImmediately: true })
        yield* Effect.yieldNow
        if (policy !== "interrupt") {
          assert.isUndefined(closing.pollUnsafe())
          assert.deepStrictEqual(interrupted, [])
          yield* release("runs")
          assert.strictEqual(tag(yield* Fiber.join(running)), "success")
        }
        yield* Fiber.join(closing)
        if (policy === "interrupt") assert.deepStrictEqual(interrupted, ["runs"])
        if (!isStored) {
          assert.strictEqual(tag(yield* Fiber.join(waits)), policy === "drain" ? "success" : "QueueShutdown")
          if (policy === "interrupt") assert.strictEqual(tag(yield* Fiber.join(running)), "QueueShutdown")
          assert.deepStrictEqual(began, policy === "drain" ? ["runs", "waits"] : ["runs"])
          return
        }
        assert.deepStrictEqual(began, ["runs"])
        assert.isUndefined(waits.pollUnsafe())
        assert.strictEqual((yield* manager.getStatus(Model, "waits")).status, "pending")
        yield* release("runs")
        yield* manager.registerQueue(Model, processor)
        assert.strictEqual(tag(yield* Fiber.join(waits)), "success")
        assert.strictEqual(tag(yield* Fiber.join(running)), "success")
      })
    )
  }

  test(
    "a manager that has shut down takes nothing, and tells what it knows",
    Effect.gen(function*() {
      const { Model, accept, manager, processor, statusOf, submit } = yield* open()
      yield* submit("a")
      yield* manager.shutdownAll()
      assert.deepInclude(yield* Effect.flip(submit("b")), { _tag: "QueueShutdown", requestId: "b" })
      assert.strictEqual(yield* tagged(accept("b")), "QueueShutdown")
      assert.strictEqual(yield* tagged(manager.registerQueue(model(), processor)), "QueueShutdown")
      assert.strictEqual(yield* tagged(manager.registerQueue(Model, processor)), "QueueShutdown")
      assert.strictEqual(yield* statusOf("a"), "completed")
      assert.deepStrictEqual(yield* manager.getRegisteredModels, [])
      yield* manager.shutdownAll()
    })
  )

  test(
    "a shutdown may have a policy of its own",
    Effect.gen(function*() {
      const { interrupted, manager, runs, start } = yield* open({
        shutdown: { policy: "drain", deadline: "1 hour" }
      })
      const fiber = yield* start("a", { does: "hold" })
      yield* runs("a")
      yield* Effect.timeout(manager.shutdownAll({ policy: "interrupt", deadline: "1 second" }), "15 seconds")
      assert.deepStrictEqual(interrupted, ["a"])
      yield* Fiber.interrupt(fiber)
    })
  )

  test(
    "a manager's own policy is that of models that have none",
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const scope = yield* Scope.fork(yield* Scope.Scope)
      const { interrupted, runs, start } = yield* Scope.provide(open({ shutdown: undefined }), scope)
      const fiber = yield* start("a", { does: "hold" })
      yield* runs("a")
      yield* Effect.timeout(Scope.close(scope, Exit.void), "15 seconds")
      assert.deepStrictEqual(interrupted, ["a"])
      assert.deepStrictEqual(yield* manager.getRegisteredModels, [])
      yield* Fiber.interrupt(fiber)
    })
  )
}

for (const backend of backends) {
  describe.runIf(backend.isThere)(`a queue manager ${backend.name}`, () => {
    const name = `managers-${process.pid}-${Math.random().toString(36).slice(2)}`
    const scope = Scope.makeUnsafe()
    let count = 0
    let server = ""
    beforeAll(() =>
      Effect.runPromise(Scope.provide(
        Effect.map(backend.server, (url) => {
          server = url
        }),
        scope
      )), 60_000)
    afterAll(() => Effect.runPromise(Scope.close(scope, Exit.void)))
    laws(backend, Layer.suspend(() => backend.manager(server, `${name}-${count++}`)))
  })
}
