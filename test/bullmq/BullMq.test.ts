import { assert, describe, it } from "@effect/vitest"
import { Deferred, Effect, Exit, Fiber, Layer, Schema, Scope } from "effect"
import { ModelConfig, QueueError, QueueManager, QueueRequest, RateLimiter } from "effect-llm-queue"
import * as BullMq from "effect-llm-queue/BullMq"
import { Redis } from "ioredis"
import type { StoredJob } from "../../src/internal/bullmq/engine.ts"
import { endOf } from "../../src/internal/bullmq/queue.ts"
import { noTimes } from "../../src/internal/bullmq/stored.ts"
import { observe } from "../../src/internal/observer.ts"
import { hasRedis, own } from "../redis/server.ts"
import * as stores from "./stores.ts"

class Broken extends Schema.TaggedError<Broken>()("Broken", { why: Schema.String }) {}

const Model = ModelConfig.make("gpt:4", {
  params: Schema.Struct({ text: Schema.String }),
  result: Schema.Struct({ text: Schema.String, usage: ModelConfig.Usage }),
  error: Broken,
  rateLimiters: [RateLimiter.rpm(1000), RateLimiter.concurrent(4)],
  usage: ({ usage }) => usage
})

type Params = { readonly text: string }
type Result = { readonly text: string; readonly usage: ModelConfig.Usage }

/** A process, as far as the store can tell. */
const start = Effect.fnUntraced(function*(options: BullMq.Options) {
  const { close, manager, scope } = yield* stores.start(options)
  return {
    manager,
    close,
    register: (processor: Parameters<typeof manager.registerQueue<Params, Result, Broken, never>>[1]) =>
      Scope.provide(manager.registerQueue(Model, processor), scope)
  }
})

const layer = (options: Effect.Effect<BullMq.Options, never, Scope.Scope>) =>
  Layer.unwrap(Effect.map(options, (options) => BullMq.layer({ prefix: stores.newPrefix(), ...options })))

const usage = { inputTokens: 1, outputTokens: 2 }

for (const { isThere, name, options } of stores.stores) {
  describe.runIf(isThere)(`stored queues ${name}`, () => {
    it.live("answer like queues in memory", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        yield* manager.registerQueue(Model, ({ params: { text } }) =>
          text === "fail"
            ? Effect.fail(new Broken({ why: "because" }))
            : text === "die"
            ? Effect.die(new TypeError("a secret"))
            : text === "wait"
            ? Effect.never
            : Effect.succeed({ text: text.toUpperCase(), usage }))
        const response = yield* manager.submit(Model, { text: "hello" })
        assert.deepStrictEqual(response.result, { text: "HELLO", usage })
        assert.deepInclude(response, { status: "completed", attempts: 1, inputTokensUsed: 1, outputTokensUsed: 2 })
        assert.deepStrictEqual(
          yield* Effect.flip(manager.submit(Model, { text: "fail" })),
          new Broken({ why: "because" })
        )
        const died = yield* Effect.flip(manager.submit(Model, { text: "die" }))
        assert(died._tag === "ProcessingError")
        assert.notInclude(died.message, "secret")
        // Ids are anybody's words.
        const id = "a: <b> {c} 1"
        const pending = yield* manager.submitRequest(
          QueueRequest.make(Model, { params: { text: "later" }, id, waitForCompletion: false })
        )
        assert.strictEqual(pending.status, "pending")
        assert.strictEqual((yield* manager.awaitCompletion(pending)).result.text, "LATER")
        assert.strictEqual((yield* manager.getStatus(Model, id)).status, "completed")
        const again = QueueRequest.make(Model, { params: { text: "later" }, id })
        assert.strictEqual((yield* Effect.flip(manager.submitRequest(again)))._tag, "DuplicateRequest")
        assert.strictEqual((yield* Effect.flip(manager.getStatus(Model, "unknown")))._tag, "RequestNotFound")
        const waits = yield* Effect.forkChild(Effect.exit(manager.submit(Model, { text: "wait" }, { id: "waits" })))
        while ((yield* manager.getRequests(Model, { status: "processing" })).length === 0) yield* Effect.sleep(10)
        assert.strictEqual((yield* manager.getStatus(Model, "waits")).status, "processing")
        assert.isTrue(yield* manager.cancelRequest(Model, "waits"))
        const exit = yield* Fiber.join(waits)
        assert.isTrue(Exit.isFailure(exit))
        assert.strictEqual((yield* manager.getStatus(Model, "waits")).status, "cancelled")
        assert.isFalse(yield* manager.cancelRequest(Model, "waits"))
        const late = yield* Effect.flip(manager.submit(Model, { text: "wait" }, { id: "late", timeout: "200 millis" }))
        assert.deepInclude(late, { _tag: "QueueTimeout", limit: "timeout", timeoutMillis: 200 })
        const status = yield* manager.getStatus(Model, "late")
        assert.strictEqual(status.status, "failed")
        while ((yield* manager.getQueueInfo(Model)).running > 0) yield* Effect.sleep(10)
      }).pipe(Effect.scoped, Effect.provide(layer(options)), Effect.scoped), 30_000)

    it.live(
      "belong to nobody: any process submits, asks, pauses and cancels, and the submitter may be gone",
      () =>
        Effect.gen(function*() {
          const store = yield* options
          const prefix = stores.newPrefix()
          const submitter = yield* start({ ...store, prefix })
          const early = yield* submitter.manager.submitRequest(
            QueueRequest.make(Model, { params: { text: "early" }, id: "early", waitForCompletion: false })
          )
          yield* submitter.manager.pauseQueue(Model)
          for (const [id, priority] of [["low", "low"], ["normal", "normal"], ["high", 600]] as const) {
            yield* submitter.manager.submitRequest(
              QueueRequest.make(Model, { params: { text: id }, id, priority, waitForCompletion: false, tenant: "acme" })
            )
          }
          yield* submitter.manager.submitRequest(
            QueueRequest.make(Model, { params: { text: "no" }, id: "no", waitForCompletion: false })
          )
          assert.isTrue(yield* submitter.manager.cancelRequest(Model, "no"))
          const interrupted = yield* Effect.forkChild(submitter.manager.submit(Model, { text: "gone" }, { id: "gone" }))
          while ((yield* submitter.manager.getRequests(Model, { ids: ["gone"] })).length === 0) yield* Effect.sleep(5)
          yield* Fiber.interrupt(interrupted)
          assert.isTrue(yield* submitter.manager.changePriority(Model, "low", 1200))
          assert.deepInclude(yield* submitter.manager.getQueueInfo(Model), { state: "paused", running: 0 })
          yield* submitter.close
          // Nobody who has submitted is there any more.
          const began: Array<string> = []
          const worker = yield* start({ ...store, prefix, takeAhead: 1 })
          yield* worker.register(({ id, params }) =>
            Effect.sync(() => {
              began.push(id)
              return { text: params.text, usage }
            })
          )
          const asker = yield* start({ ...store, prefix })
          assert.strictEqual((yield* asker.manager.getStatus(Model, "high")).status, "pending")
          yield* asker.manager.resumeQueue(Model)
          assert.strictEqual((yield* asker.manager.awaitCompletion(Model, early.requestId)).result.text, "early")
          for (const id of ["low", "normal", "high"]) yield* asker.manager.awaitCompletion(Model, id)
          assert.deepStrictEqual(began, ["low", "high", "early", "normal"])
          for (const id of ["no", "gone"]) {
            assert.strictEqual((yield* asker.manager.getStatus(Model, id)).status, "cancelled")
          }
          const status = yield* asker.manager.getStatus(Model, "normal")
          assert.deepInclude(status, { tenant: "acme", attempts: 1 })
        }).pipe(Effect.scoped),
      30_000
    )
  })
}

describe.runIf(hasRedis)("stored queues", () => {
  it.live("are seen like queues in memory, as far as this process works on them", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const seen: Array<string> = []
      const quiet = () => {}
      yield* observe(manager, {
        open: ({ modelId }) => ({
          dispatched: () => void seen.push(modelId),
          firstElement: quiet,
          settled: quiet,
          ended: quiet,
          retried: quiet,
          blocked: quiet,
          limitsChanged: quiet,
          closed: quiet
        })
      })
      yield* manager.registerQueue(Model, ({ params: { text } }) => Effect.succeed({ text, usage }))
      yield* manager.submit(Model, { text: "" })
      assert.deepStrictEqual(seen, [Model.modelId])
    }).pipe(Effect.scoped, Effect.provide(layer(stores.stores[0]!.options)), Effect.scoped), 30_000)

  it.live("refuse what cannot be stored", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Untyped = ModelConfig.makeUntyped<string, string>("untyped", { rateLimiters: "unlimited" })
      const error = yield* Effect.flip(manager.registerQueue(Untyped, () => Effect.succeed("")))
      assert.strictEqual(error._tag, "InvalidConfiguration")
      assert.include(error.message, "needs schemas")
      const submitted = yield* Effect.flip(manager.submit(Untyped, ""))
      assert(submitted instanceof QueueError.InvalidRequest)
      const keyed = yield* Effect.flip(manager.submit(Model, { text: "" }, { dedupeKey: "x" }))
      assert.include(keyed.message, "dedupeKey")
    }).pipe(Effect.scoped, Effect.provide(layer(stores.stores[0]!.options)), Effect.scoped), 30_000)

  it.live("say in the store only what their schemas say, and with a codec not even that", () =>
    Effect.gen(function*() {
      const canary = "c4n4ry"
      const flip = (text: string) => Effect.succeed(Array.from(text).toReversed().join(""))
      const { connection, url } = yield* stores.place
      const client = new Redis(url)
      yield* Effect.addFinalizer(() => Effect.sync(() => client.disconnect()))
      const found = Effect.fnUntraced(function*(codec: BullMq.Codec | undefined) {
        const prefix = stores.newPrefix()
        const { manager, register } = yield* start({ connection, prefix, codec })
        yield* register(({ params: { text } }) =>
          text.startsWith("fail")
            ? Effect.fail(new Broken({ why: text }))
            : text.startsWith("die")
            ? Effect.die(new Error(`defect ${canary}`))
            : Effect.succeed({ text, usage })
        )
        assert.strictEqual((yield* manager.submit(Model, { text: `fine ${canary}` })).result.text, `fine ${canary}`)
        const error = yield* Effect.flip(manager.submit(Model, { text: `fail ${canary}` }))
        assert.deepStrictEqual(error, new Broken({ why: `fail ${canary}` }))
        yield* Effect.flip(manager.submit(Model, { text: `die ${canary}` }))
        const keys = yield* Effect.promise(() => client.keys(`${prefix}*`))
        const texts = yield* Effect.forEach(keys, (key) =>
          Effect.gen(function*() {
            const type = yield* Effect.promise(() => client.type(key))
            if (type === "hash") return JSON.stringify(yield* Effect.promise(() => client.hgetall(key)))
            return type === "stream" ? JSON.stringify(yield* Effect.promise(() => client.xrange(key, "-", "+"))) : ""
          }))
        assert.isAbove(texts.filter((text) => text.length > 0).length, 2)
        return texts.join("\n")
      })
      const plain = yield* found(undefined)
      assert.include(plain, `fine ${canary}`)
      assert.include(plain, `fail ${canary}`)
      assert.notInclude(plain, `defect ${canary}`)
      assert.notInclude(yield* found({ encode: flip, decode: flip }), canary)
    }).pipe(Effect.scoped), 30_000)

  it("have the end that was stored, whatever the store had failed with before", () => {
    const returnvalue = { ...noTimes, submission: "s", status: "completed", result: "1" } as const
    const job = { data: {}, failedReason: "READONLY You can't write", finishedOn: 1, returnvalue } as StoredJob
    assert.deepStrictEqual(endOf(job), returnvalue)
  })

  it.live("are refused while the store is away, and what runs is stored when it is back", () =>
    Effect.gen(function*() {
      const server = yield* own("--appendonly yes", "--appendfsync always")
      const connection = { host: "127.0.0.1", port: server.port }
      const { close, manager, register } = yield* start({
        connection,
        commandTimeout: "1 second",
        prefix: stores.newPrefix()
      })
      const go = yield* Deferred.make<void>()
      yield* register(({ params }) => Effect.as(Deferred.await(go), { text: params.text, usage }))
      const pending = yield* manager.submitRequest(
        QueueRequest.make(Model, { params: { text: "runs" }, id: "runs", waitForCompletion: false })
      )
      while ((yield* manager.getQueueInfo(Model)).running === 0) yield* Effect.sleep(10)
      yield* server.kill
      assert.strictEqual((yield* Effect.flip(manager.submit(Model, { text: "no" })))._tag, "QueueUnavailable")
      yield* Deferred.succeed(go, undefined)
      yield* Effect.sleep(300)
      yield* server.start
      const patiently = <A, E extends { readonly _tag: string }>(effect: Effect.Effect<A, E>) =>
        Effect.retry(effect, { while: ({ _tag }) => _tag === "QueueUnavailable" })
      assert.strictEqual((yield* patiently(manager.awaitCompletion(pending))).result.text, "runs")
      assert.strictEqual((yield* patiently(manager.submit(Model, { text: "again" }))).result.text, "again")
      yield* server.kill
      yield* Effect.timeout(close, "10 seconds")
    }).pipe(Effect.scoped), 60_000)
})
