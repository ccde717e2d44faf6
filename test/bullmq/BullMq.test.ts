import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Layer, Schema } from "effect"
import { ModelConfig, QueueError, QueueManager, QueueRequest, RateLimiter } from "effect-llm-queue"
import * as BullMq from "effect-llm-queue/BullMq"
import { hasRedis, url } from "../redis/server.ts"

class Broken extends Schema.TaggedError<Broken>()("Broken", { why: Schema.String }) {}

const Model = ModelConfig.make("gpt:4", {
  params: Schema.Struct({ text: Schema.String }),
  result: Schema.Struct({ text: Schema.String, usage: ModelConfig.Usage }),
  error: Broken,
  rateLimiters: [RateLimiter.rpm(1000), RateLimiter.concurrent(4)],
  usage: ({ usage }) => usage
})

let prefixes = 0

const layer = (options: BullMq.Options = {}) =>
  Layer.unwrap(Effect.map(url, (url) => {
    const { hostname, port } = new URL(url)
    return BullMq.layer({
      connection: { host: hostname, port: Number(port) },
      prefix: `test-${process.pid}-${Math.random()}-${prefixes++}`,
      ...options
    })
  }))

const usage = { inputTokens: 1, outputTokens: 2 }

describe.runIf(hasRedis)("stored queues", () => {
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
    }).pipe(Effect.scoped, Effect.provide(layer()), Effect.scoped), 30_000)

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
    }).pipe(Effect.scoped, Effect.provide(layer()), Effect.scoped), 30_000)
})
