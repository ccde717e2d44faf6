import { assert, describe, it } from "@effect/vitest"
import type { Scope } from "effect"
import { Effect, Schema } from "effect"
import { ModelConfig, QueueManager, QueueRequest, RateLimiter } from "effect-llm-queue"

const Prompt = Schema.Struct({ prompt: Schema.String, temperature: Schema.optionalKey(Schema.Finite) })

const manage = <A, E>(effect: Effect.Effect<A, E, QueueManager.QueueManager | Scope.Scope>) =>
  Effect.scoped(effect).pipe(Effect.provide(QueueManager.layer))

/** The tokens that an accepted request is charged. */
const chargeOf = <P>(
  params: P,
  options: QueueRequest.RequestOptions,
  model: ModelConfig.Options<P, string> & ModelConfig.Limits
) =>
  manage(Effect.scoped(Effect.gen(function*() {
    const manager = yield* QueueManager.QueueManager
    const Model = ModelConfig.makeUntyped<P, string>("charge", model)
    yield* manager.registerQueue(Model, () => Effect.succeed("x"))
    yield* manager.submit(Model, params, options)
    return (yield* manager.getQueueInfo(Model)).rateLimiters.map(({ used }) => used)
  })))

describe("QueueRequest", () => {
  it("making one checks nothing, generates distinct ids and keeps what it is given", () => {
    const Model = ModelConfig.makeUntyped<string, string>("make", { rateLimiters: "unlimited" })
    const ids = new Set(Array.from({ length: 1000 }, () => QueueRequest.make(Model, { params: "x" }).id))
    assert.strictEqual(ids.size, 1000)
    const request = QueueRequest.make(Model, { params: "x", id: "", timeout: -1, metadata: { user: 7 } })
    assert.deepStrictEqual([request.id, request.waitForCompletion, request.metadata?.["user"]], ["", true, 7])
    assert.isFalse(QueueRequest.make(Model, { params: "x", waitForCompletion: false }).waitForCompletion)
  })

  it.effect("the processor gets the request as it was made", () =>
    manage(Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, unknown>("as-made", { rateLimiters: "unlimited" })
      yield* manager.registerQueue(Model, (request) => Effect.succeed([request.id, request.params, request.metadata]))
      const { result } = yield* manager.submit(Model, "x", { id: "mine", metadata: { user: 7 } })
      assert.deepStrictEqual(result, ["mine", "x", { user: 7 }])
    })))

  it.effect("parameters that do not match the schema are refused, and every mismatch is named", () =>
    manage(Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.make("schema", { params: Prompt, result: Schema.String, rateLimiters: "unlimited" })
      yield* manager.registerQueue(Model, (request) => Effect.succeed(request.params.prompt))
      assert.strictEqual((yield* manager.submit(Model, { prompt: "x" })).result, "x")
      for (const params of [null, undefined, 7, "x", [], {}, { prompt: 7 }, { prompt: "x", temperature: Number.NaN }]) {
        const error = yield* Effect.flip(manager.submit(Model, params as never))
        assert(error._tag === "InvalidRequest")
        assert.isTrue(error.problems[0]?.startsWith("params: "))
      }
      const error = yield* Effect.flip(manager.submit(Model, { prompt: 7, temperature: "hot" } as never))
      assert(error._tag === "InvalidRequest")
      assert.isTrue(error.message.includes("prompt") && error.message.includes("temperature"))
    })))

  it.effect("bad ids, estimates, timeouts and priorities are refused, all named at once", () =>
    manage(Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("options", { rateLimiters: "unlimited" })
      yield* manager.registerQueue(Model, ({ params }) => Effect.succeed(params))
      const numbers = [Number.NaN, Number.POSITIVE_INFINITY, -1, 1e13, "1", null, {}, [], true]
      const durations = [0, -1, Number.NaN, "soon", "-1 seconds", null, {}, true]
      for (
        const [name, values] of [
          ["id", ["", "a\u0000", "\ud800", "x".repeat(257), 7, {}]],
          ["estimatedInputTokens", numbers],
          ["estimatedOutputTokens", numbers],
          ["timeout", durations],
          ["processingTimeout", durations],
          ["priority", ["urgent", "toString", "__proto__", Number.NaN, 86_401, -86_401, {}, null, true]]
        ] as const
      ) {
        for (const value of values) {
          const error = yield* Effect.flip(manager.submit(Model, "x", { [name]: value }))
          assert(error._tag === "InvalidRequest", `${name} ${typeof value}`)
          assert.strictEqual(error.problems.length, 1)
          assert.isTrue(error.problems[0]?.startsWith(`${name}: `), error.problems[0])
        }
      }
      const error = yield* Effect.flip(manager.submit(Model, "x", {
        id: "",
        estimatedInputTokens: -1,
        estimatedOutputTokens: -1,
        timeout: 0,
        processingTimeout: 0,
        priority: Number.NaN
      }))
      assert.strictEqual(error._tag === "InvalidRequest" && error.problems.length, 6)
      const info = yield* manager.getQueueInfo(Model)
      assert.deepStrictEqual([info.depth, info.failed, info.completed], [0, 0, 0])
    })))

  it.effect("any id of 1 to 256 printable characters works", () =>
    manage(Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("ids", { rateLimiters: "unlimited" })
      yield* manager.registerQueue(Model, ({ id }) => Effect.succeed(id))
      for (const id of ["__proto__", "constructor", "toString", "😀", "a b", "x".repeat(256)]) {
        assert.strictEqual((yield* manager.submit(Model, "x", { id })).result, id)
        assert.strictEqual((yield* manager.getStatus(Model, id)).requestId, id)
      }
    })))

  it.effect("what can never fit is refused with the numbers", () =>
    manage(Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("large", {
        rateLimiters: [RateLimiter.itpm(1000), RateLimiter.tpm(500)]
      })
      yield* manager.registerQueue(Model, ({ params }) => Effect.succeed(params))
      const given = yield* Effect.flip(
        manager.submit(Model, "x", { estimatedInputTokens: 400, estimatedOutputTokens: 101 })
      )
      assert(given._tag === "RequestTooLarge")
      assert.deepStrictEqual(
        [given.limitType, given.limit, given.requested, given.estimated, given.isRetryable],
        ["tpm", 500, 501, false, false]
      )
      const guessed = yield* Effect.flip(manager.submit(Model, "x".repeat(4004)))
      assert(guessed._tag === "RequestTooLarge")
      assert.deepStrictEqual([guessed.limitType, guessed.requested, guessed.estimated], ["itpm", 1001, true])
      yield* manager.submit(Model, "x", { estimatedInputTokens: 400, estimatedOutputTokens: 100 })
    })))

  it.effect("missing estimates: a quarter of the characters of all strings, and 1,024 tokens of output", () =>
    Effect.gen(function*() {
      const { itpm, otpm, tpm } = RateLimiter
      const limits = { rateLimiters: [itpm(1e6), otpm(1e6)] }
      assert.deepStrictEqual(yield* chargeOf("x".repeat(10), {}, limits), [3, 1024])
      assert.deepStrictEqual(yield* chargeOf(7, {}, limits), [1, 1024])
      const nested = { a: ["xxxx", { b: "xxxx" }], c: new Map([["k", "xxxx"]]), d: new Set(["xxxx"]) }
      assert.deepStrictEqual(yield* chargeOf(nested, {}, limits), [4, 1024])
      assert.deepStrictEqual(yield* chargeOf("x", { estimatedInputTokens: 5 }, limits), [5, 1024])
      assert.deepStrictEqual(yield* chargeOf("x", { estimatedOutputTokens: 5 }, limits), [1, 5])
      assert.deepStrictEqual(yield* chargeOf("x", { estimatedInputTokens: 1.2, estimatedOutputTokens: 0 }, limits), [
        2,
        0
      ])
      // The guess leaves room for the input in the tightest limit.
      assert.deepStrictEqual(yield* chargeOf("x".repeat(400), {}, { rateLimiters: [tpm(500)] }), [500])
    }))

  it.effect("a model's own estimate is asked for what the caller left out", () =>
    Effect.gen(function*() {
      const rateLimiters = [RateLimiter.itpm(1e6), RateLimiter.otpm(1e6)]
      const estimate = (params: string) => ({ inputTokens: params.length, outputTokens: 2 })
      assert.deepStrictEqual(yield* chargeOf("xxx", {}, { rateLimiters, estimate }), [3, 2])
      assert.deepStrictEqual(yield* chargeOf("xxx", { estimatedInputTokens: 9 }, { rateLimiters, estimate }), [9, 2])
      assert.deepStrictEqual(
        yield* chargeOf("xxx", {}, { rateLimiters, estimate: () => ({ outputTokens: 8 }) }),
        [1, 8]
      )
      assert.deepStrictEqual(
        yield* chargeOf("xxx", {}, { rateLimiters, estimate: () => undefined as never }),
        [1, 1024]
      )
    }))

  it.effect("an estimate that throws, or gives nonsense, refuses the request", () =>
    manage(Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("estimate-throws", {
        rateLimiters: [RateLimiter.tpm(1000)],
        estimate: (params) => {
          if (params === "throws") throw new Error("no idea")
          return { inputTokens: Number.NaN, outputTokens: -1 }
        }
      })
      yield* manager.registerQueue(Model, ({ params }) => Effect.succeed(params))
      const thrown = yield* Effect.flip(manager.submit(Model, "throws"))
      assert(thrown._tag === "InvalidRequest")
      assert.isTrue(thrown.problems[0]?.includes("no idea"))
      const nonsense = yield* Effect.flip(manager.submit(Model, "nonsense"))
      assert(nonsense._tag === "InvalidRequest")
      assert.strictEqual(nonsense.problems.length, 2)
    })))

  it.effect("cyclic parameters are estimated, and what cannot be read counts nothing", () =>
    Effect.gen(function*() {
      const cyclic: Record<string, unknown> = { text: "xxxxxxxx" }
      cyclic["self"] = [cyclic, cyclic]
      assert.deepStrictEqual(yield* chargeOf(cyclic, {}, { rateLimiters: [RateLimiter.itpm(100)] }), [2])
      const trap = {
        get text(): string {
          throw new Error("trap")
        }
      }
      assert.deepStrictEqual(yield* chargeOf(trap, {}, { rateLimiters: [RateLimiter.itpm(100)] }), [1])
    }))

  it.effect("an id is refused while another request with it is active or retained", () =>
    manage(Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("duplicate", { rateLimiters: [RateLimiter.rpm(1)] })
      yield* manager.registerQueue(Model, ({ params }) => Effect.succeed(params))
      yield* manager.submit(Model, "x", { id: "ended" })
      yield* manager.submitRequest(QueueRequest.make(Model, { params: "x", id: "waits", waitForCompletion: false }))
      for (const id of ["ended", "waits"]) {
        const error = yield* Effect.flip(manager.submit(Model, "y", { id }))
        assert(error._tag === "DuplicateRequest")
        assert.strictEqual(error.requestId, id)
      }
      yield* manager.cancelRequest(Model, "waits")
    })))

  it.effect("a request with a generated id can be submitted again, as Effect.retry does", () =>
    manage(Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const ids: Array<string> = []
      const Model = ModelConfig.makeUntyped<string, string, string>("retry", { rateLimiters: "unlimited" })
      yield* manager.registerQueue(Model, ({ id }) => {
        ids.push(id)
        return ids.length < 3 ? Effect.fail("busy") : Effect.succeed("done")
      })
      const request = QueueRequest.make(Model, { params: "x" })
      const response = yield* manager.submitRequest(request).pipe(Effect.retry({ times: 5 }))
      assert.strictEqual(response.result, "done")
      assert.strictEqual(ids[0], request.id)
      assert.strictEqual(response.requestId, ids[2])
      assert.strictEqual(new Set(ids).size, 3)
    })))

  it.effect("the caller's own figure is not called an estimate of the queue", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("own-figure", { rateLimiters: [RateLimiter.itpm(10)] })
      yield* manager.registerQueue(Model, (request) => Effect.succeed(request.params))
      const given = yield* Effect.flip(manager.submit(Model, "x", { estimatedInputTokens: 11 }))
      const guessed = yield* Effect.flip(manager.submit(Model, "x".repeat(44)))
      assert(given._tag === "RequestTooLarge" && guessed._tag === "RequestTooLarge")
      assert.deepStrictEqual([given.requested, given.estimated], [11, false])
      assert.deepStrictEqual([guessed.requested, guessed.estimated], [11, true])
    }).pipe(Effect.scoped, Effect.provide(QueueManager.layer)))
})
