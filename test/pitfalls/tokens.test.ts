import { assert, describe, it } from "@effect/vitest"
import { Deferred, Duration, Effect, Fiber } from "effect"
import { ModelConfig, QueueManager, QueueRequest, RateLimiter } from "effect-llm-queue"
import { TestClock } from "effect/testing"

/** Its end waits for nobody, so that a test can leave requests behind. */
const Manager = QueueManager.layerWith({ shutdown: { policy: "interrupt", deadline: 0 } })

const tokens = (inputTokens: number, outputTokens = 0) => ({ inputTokens, outputTokens })
const estimate = (input: number, output = 0) => ({ estimatedInputTokens: input, estimatedOutputTokens: output })

/** What every limit of a model has used. */
const used = (manager: QueueManager.QueueManager["Service"], model: ModelConfig.Any) =>
  Effect.map(manager.getQueueInfo(model), (info) => info.rateLimiters.map((limit) => limit.used))

const submit = <P, A, E>(
  manager: QueueManager.QueueManager["Service"],
  model: ModelConfig.ModelConfig<P, A, E>,
  params: NoInfer<P>,
  options?: QueueRequest.RequestOptions
) => manager.submitRequest(QueueRequest.make(model, { ...options, params, waitForCompletion: false }))

describe("pitfalls: token accounting", () => {
  it.effect("each limit counts its own tokens: input, output, both, or one per request", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("each-its-own", {
        rateLimiters: [
          RateLimiter.itpm(100),
          RateLimiter.otpm(100),
          RateLimiter.tpm(100),
          RateLimiter.tpd(100),
          RateLimiter.rpm(100),
          RateLimiter.rpd(100),
          RateLimiter.concurrent(100)
        ]
      })
      yield* manager.registerQueue(Model, () => Effect.never)
      yield* submit(manager, Model, "a", estimate(30, 12))
      yield* TestClock.adjust(0)
      assert.deepStrictEqual(yield* used(manager, Model), [30, 12, 42, 42, 1, 1, 1])
    }).pipe(Effect.provide(Manager)))

  for (const limit of [RateLimiter.tpm(1), RateLimiter.tpd(1), RateLimiter.itpm(1), RateLimiter.otpm(1)]) {
    it.effect(`a request without an estimate does not get around a ${limit.type} limit`, () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const Model = ModelConfig.makeUntyped<string, string>(`no-estimate-${limit.type}`, { rateLimiters: [limit] })
        const started: Array<string> = []
        yield* manager.registerQueue(Model, (request) => Effect.sync(() => (started.push(request.params), "ok")))
        for (const params of ["a", "b", "c", "d", "e"]) yield* submit(manager, Model, params)
        yield* TestClock.adjust(0)
        assert.deepStrictEqual(started, ["a"])
        assert.deepStrictEqual(yield* used(manager, Model), [1])
      }).pipe(Effect.provide(Manager)))
  }

  it.effect("an image whose characters are more than the limit is not too large", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<object, string>("image", { rateLimiters: [RateLimiter.itpm(50_000)] })
      yield* manager.registerQueue(Model, () => Effect.succeed("ok"))
      const data = `iVBORw0KGgo${"A".repeat(1_000_000)}`
      const image = { type: "image", source: { type: "base64", media_type: "image/png", data } }
      yield* manager.submitRequest(QueueRequest.make(Model, { params: image }))
      assert.deepStrictEqual(yield* used(manager, Model), [1005])
    }).pipe(Effect.provide(Manager)))

  describe("input that is sure to come from the cache", () => {
    const uncached = (limit: number) => RateLimiter.itpm(limit, { charging: { cachedInput: false } })
    const cached = (input: number, cachedInput: number, output = 0) => ({
      ...estimate(input, output),
      estimatedCachedInputTokens: cachedInput
    })

    it.effect("is reserved by no limit that does not count it, at its price by a budget, and in full by the others", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const price = { input: 10, cachedInput: 1, output: 0 }
        const Model = ModelConfig.makeUntyped<string, string>("cached", {
          rateLimiters: [uncached(50_000), RateLimiter.tpm(50_000), RateLimiter.budget(10, { price })],
          estimate: (params) => ({ inputTokens: 30_000, cachedInputTokens: Number(params), outputTokens: 0 })
        })
        yield* manager.registerQueue(Model, () => Effect.never)
        yield* submit(manager, Model, "29000")
        yield* TestClock.adjust(0)
        assert.deepStrictEqual(yield* used(manager, Model), [1000, 30_000, 0.039])
        // What the request says goes first.
        yield* submit(manager, Model, "0", cached(20_000, 19_500))
        yield* TestClock.adjust(0)
        assert.deepStrictEqual((yield* used(manager, Model)).slice(0, 2), [1500, 50_000])
      }).pipe(Effect.provide(Manager)))

    it.effect("lets through a prompt that is larger than the limit, given or guessed", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const Model = ModelConfig.makeUntyped<string, string>("large-prompt", { rateLimiters: [uncached(50_000)] })
        yield* manager.registerQueue(Model, () => Effect.never)
        yield* submit(manager, Model, "a", cached(60_000, 59_000))
        yield* submit(manager, Model, "x".repeat(240_000), { estimatedCachedInputTokens: 58_000 })
        yield* TestClock.adjust(0)
        assert.deepStrictEqual(yield* used(manager, Model), [3000])
        const error = yield* Effect.flip(submit(manager, Model, "x".repeat(240_000)))
        assert.strictEqual(error._tag, "RequestTooLarge")
      }).pipe(Effect.provide(Manager)))

    it.effect("is charged when it did not, and what comes after waits for the debt", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const Model = ModelConfig.makeUntyped<string, string>("expired", {
          rateLimiters: [uncached(50_000)],
          usage: () => tokens(41_000)
        })
        const started: Array<string> = []
        yield* manager.registerQueue(Model, (request) => Effect.sync(() => (started.push(request.params), "ok")))
        yield* submit(manager, Model, "a", cached(41_000, 40_000))
        yield* TestClock.adjust(0)
        assert.deepStrictEqual(yield* used(manager, Model), [41_000])
        yield* submit(manager, Model, "b", cached(10_000, 0))
        yield* TestClock.adjust("59 seconds")
        assert.deepStrictEqual(started, ["a"])
        yield* TestClock.adjust("1 second")
        assert.deepStrictEqual(started, ["a", "b"])
      }).pipe(Effect.provide(Manager)))

    it.effect("delays nobody behind it, and nobody's wait is taken to be longer", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const Model = ModelConfig.makeUntyped<string, string>("wait", {
          rateLimiters: [uncached(50_000), RateLimiter.concurrent(1)]
        })
        yield* manager.registerQueue(Model, () => Effect.never)
        for (let i = 0; i < 10; i++) yield* submit(manager, Model, "a", cached(41_000, 40_000))
        // More than all of the input is all of it.
        for (let i = 0; i < 10; i++) yield* submit(manager, Model, "b", cached(1000, 1e9))
        yield* TestClock.adjust(0)
        const wait = yield* manager.estimateWait(Model, cached(41_000, 40_000))
        assert.strictEqual(Duration.toMillis(wait), 0)
        const full = yield* manager.estimateWait(Model, estimate(41_000))
        assert.strictEqual(Duration.toMillis(full), 60_000)
      }).pipe(Effect.provide(Manager)))

    it.effect("must be a number of tokens", () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const Model = ModelConfig.makeUntyped<string, string>("nonsense", { rateLimiters: [uncached(50_000)] })
        yield* manager.registerQueue(Model, () => Effect.never)
        const error = yield* Effect.flip(submit(manager, Model, "a", cached(10, Number.NaN)))
        assert(error._tag === "InvalidRequest")
        assert.match(error.problems.join(), /^estimatedCachedInputTokens: expected a number of tokens/)
      }).pipe(Effect.provide(Manager)))
  })

  it.effect("a refund ends with its charge, so that no window ever admits more than its limit", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("refund-date", {
        rateLimiters: [RateLimiter.tpm(100, { timePeriod: "1 second" })]
      })
      const started: Array<string> = []
      yield* manager.registerQueue(Model, (request) => Effect.sync(() => (started.push(request.params), "ok")))
      const first = yield* submit(manager, Model, "first", estimate(100))
      yield* TestClock.adjust(900)
      yield* manager.updateTokenUsage(Model, first.requestId, tokens(10))
      assert.deepStrictEqual(yield* used(manager, Model), [10])
      yield* submit(manager, Model, "second", estimate(90))
      yield* TestClock.adjust(200)
      // The first charge left at 1000 with its refund, so the second is all there is: not 90 less 90.
      assert.deepStrictEqual(yield* used(manager, Model), [90])
      yield* submit(manager, Model, "third", estimate(11))
      yield* TestClock.adjust(799)
      assert.deepStrictEqual(started, ["first", "second"])
      yield* TestClock.adjust(1)
      assert.deepStrictEqual(started, ["first", "second", "third"])
    }).pipe(Effect.provide(Manager)))

  it.effect("use beyond the estimate is charged even when it does not fit, and holds back what comes after", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("debt", {
        rateLimiters: [RateLimiter.tpm(100, { timePeriod: "1 second" })]
      })
      const started: Array<string> = []
      yield* manager.registerQueue(Model, (request) => Effect.sync(() => (started.push(request.params), "ok")))
      const first = yield* submit(manager, Model, "first", estimate(90))
      yield* TestClock.adjust(0)
      assert.strictEqual(yield* manager.updateTokenUsage(Model, first.requestId, tokens(190)), "settled")
      assert.deepStrictEqual(yield* used(manager, Model), [190])
      yield* submit(manager, Model, "second", estimate(1))
      yield* TestClock.adjust(999)
      assert.deepStrictEqual(started, ["first"])
      yield* TestClock.adjust(1)
      assert.deepStrictEqual(started, ["first", "second"])
    }).pipe(Effect.provide(Manager)))

  it.effect("a refund lets the next request go at once", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("refund-wakes", { rateLimiters: [RateLimiter.tpm(100)] })
      const started: Array<string> = []
      yield* manager.registerQueue(Model, (request) => Effect.sync(() => (started.push(request.params), "ok")))
      const first = yield* submit(manager, Model, "first", estimate(100))
      yield* submit(manager, Model, "second", estimate(90))
      yield* TestClock.adjust(0)
      assert.deepStrictEqual(started, ["first"])
      yield* manager.updateTokenUsage(Model, first.requestId, tokens(10))
      yield* TestClock.adjust(0)
      assert.deepStrictEqual(started, ["first", "second"])
    }).pipe(Effect.provide(Manager)))

  it.effect("a second report changes nothing and is told so", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("reported-twice", {
        rateLimiters: [RateLimiter.tpm(100), RateLimiter.tpd(1000)]
      })
      yield* manager.registerQueue(Model, () => Effect.succeed("ok"))
      const pending = yield* submit(manager, Model, "a", estimate(90))
      yield* manager.awaitCompletion(pending)
      const report = manager.updateTokenUsage(Model, pending.requestId, tokens(50))
      assert.deepStrictEqual([yield* report, yield* report, yield* report], [
        "settled",
        "alreadySettled",
        "alreadySettled"
      ])
      assert.deepStrictEqual(yield* used(manager, Model), [50, 50])
      assert.strictEqual(
        yield* manager.updateTokenUsage(Model, pending.requestId, tokens(0)),
        "alreadySettled"
      )
      assert.deepStrictEqual(yield* used(manager, Model), [50, 50])
      assert.strictEqual((yield* manager.getStatus(Model, pending.requestId)).inputTokensUsed, 50)
    }).pipe(Effect.provide(Manager)))

  it.effect("a report before the dispatch is refused and frees nothing, and the one after it counts", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("reported-early", {
        rateLimiters: [RateLimiter.tpm(100, { timePeriod: "1 second" })]
      })
      const started: Array<string> = []
      yield* manager.registerQueue(Model, (request) => Effect.sync(() => (started.push(request.params), "ok")))
      yield* submit(manager, Model, "first", estimate(90))
      const waiting = yield* submit(manager, Model, "waiting", estimate(90))
      yield* TestClock.adjust(0)
      const early = yield* Effect.flip(manager.updateTokenUsage(Model, waiting.requestId, tokens(0)))
      assert.strictEqual(early._tag, "InvalidRequest")
      yield* TestClock.adjust(999)
      assert.deepStrictEqual(started, ["first"])
      assert.deepStrictEqual(yield* used(manager, Model), [90])
      yield* TestClock.adjust(1)
      assert.deepStrictEqual(started, ["first", "waiting"])
      assert.strictEqual(yield* manager.updateTokenUsage(Model, waiting.requestId, tokens(20)), "settled")
      assert.deepStrictEqual(yield* used(manager, Model), [20])
    }).pipe(Effect.provide(Manager)))

  it.effect("a report about an unknown request or model fails", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("unknown-request", { rateLimit: 1 })
      const report = Effect.flip(manager.updateTokenUsage(Model, "nobody", tokens(1)))
      assert.strictEqual((yield* report)._tag, "ModelNotRegistered")
      yield* manager.registerQueue(Model, () => Effect.succeed("ok"))
      assert.strictEqual((yield* report)._tag, "RequestNotFound")
    }).pipe(Effect.provide(Manager)))

  it.effect("a malformed report is refused and leaves the report open", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("malformed-report", {
        rateLimiters: [RateLimiter.tpm(100)]
      })
      yield* manager.registerQueue(Model, () => Effect.succeed("ok"))
      const pending = yield* submit(manager, Model, "a", estimate(90))
      yield* manager.awaitCompletion(pending)
      for (const bad of [tokens(-5), tokens(NaN), tokens(1, Infinity), tokens(1, -1)]) {
        const error = yield* Effect.flip(manager.updateTokenUsage(Model, pending.requestId, bad))
        assert.strictEqual(error._tag, "InvalidRequest")
      }
      assert.deepStrictEqual(yield* used(manager, Model), [90])
      assert.strictEqual(yield* manager.updateTokenUsage(Model, pending.requestId, tokens(1, 2)), "settled")
      assert.deepStrictEqual(yield* used(manager, Model), [3])
    }).pipe(Effect.provide(Manager)))

  it.effect("a failed request keeps its estimate charged, and its use can still be reported", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string, string>("failed-report", {
        rateLimiters: [RateLimiter.tpm(100)],
        usage: () => tokens(1)
      })
      yield* manager.registerQueue(Model, () => Effect.fail("refused by the provider"))
      const pending = yield* submit(manager, Model, "a", estimate(80))
      assert.strictEqual(yield* Effect.flip(manager.awaitCompletion(pending)), "refused by the provider")
      assert.deepStrictEqual(yield* used(manager, Model), [80])
      assert.strictEqual(yield* manager.updateTokenUsage(Model, pending.requestId, tokens(0)), "settled")
      assert.deepStrictEqual(yield* used(manager, Model), [0])
    }).pipe(Effect.provide(Manager)))

  it.effect("usage is read from the result itself: no second call is needed", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, { readonly usage: ModelConfig.Usage }>("usage-of-result", {
        rateLimiters: [RateLimiter.tpm(100), RateLimiter.itpm(100), RateLimiter.otpm(100), RateLimiter.rpm(10)],
        usage: (result) => result.usage
      })
      yield* manager.registerQueue(Model, () => Effect.succeed({ usage: tokens(7, 11) }))
      const response = yield* manager.submit(Model, "a", estimate(40, 50))
      assert.deepStrictEqual(yield* used(manager, Model), [18, 7, 11, 1])
      assert.deepStrictEqual([response.inputTokensUsed, response.outputTokensUsed], [7, 11])
      assert.strictEqual(yield* manager.updateTokenUsage(Model, response.requestId, tokens(1, 1)), "alreadySettled")
      assert.deepStrictEqual(yield* used(manager, Model), [18, 7, 11, 1])
    }).pipe(Effect.provide(Manager)))

  it.effect("use can be reported while the processor still runs", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("reported-while-running", {
        rateLimiters: [RateLimiter.tpm(100)],
        usage: () => tokens(99)
      })
      const gate = yield* Deferred.make<void>()
      yield* manager.registerQueue(Model, () => Effect.as(Deferred.await(gate), "ok"))
      const pending = yield* submit(manager, Model, "a", estimate(50))
      yield* TestClock.adjust(0)
      assert.strictEqual(yield* manager.updateTokenUsage(Model, pending.requestId, tokens(20)), "settled")
      yield* Deferred.succeed(gate, undefined)
      const response = yield* manager.awaitCompletion(pending)
      assert.deepStrictEqual([response.inputTokensUsed, ...(yield* used(manager, Model))], [20, 20])
    }).pipe(Effect.provide(Manager)))

  it.effect("a malformed usage in a result neither hangs the caller nor loses the result", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const malformed: ReadonlyArray<() => unknown> = [
        () => tokens(-5),
        () => tokens(NaN),
        () => undefined,
        () => null,
        () => "12 tokens",
        () => ({ inputTokens: 1 }),
        () => Promise.resolve(tokens(1)),
        () => {
          throw new Error("no usage in this result")
        },
        () => {
          throw undefined
        }
      ]
      for (const [index, usage] of malformed.entries()) {
        const Model = ModelConfig.makeUntyped<string, string>(`malformed-${index}`, {
          rateLimiters: [RateLimiter.tpm(100), RateLimiter.concurrent(1)],
          usage: usage as () => ModelConfig.Usage
        })
        yield* manager.registerQueue(Model, (request) => Effect.succeed(request.params))
        const caller = yield* Effect.forkChild(manager.submit(Model, "kept", estimate(40)))
        yield* TestClock.adjust(0)
        const exit = caller.pollUnsafe()
        assert(exit !== undefined && exit._tag === "Success", `the caller hangs on usage ${index}`)
        assert.strictEqual(exit.value.result, "kept")
        assert.deepStrictEqual(yield* used(manager, Model), [40, 0])
      }
    }).pipe(Effect.provide(Manager)))

  it.effect("a usage callback that throws what cannot be shown costs nobody a permit or a result", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("unshowable", {
        rateLimiters: [RateLimiter.concurrent(1)],
        usage: () => {
          throw Object.create(null)
        }
      })
      yield* manager.registerQueue(Model, (request) => Effect.succeed(request.params))
      const caller = yield* Effect.forkChild(manager.submit(Model, "kept"))
      yield* TestClock.adjust(0)
      const exit = caller.pollUnsafe()
      assert(exit !== undefined && exit._tag === "Success", "the caller hangs")
      assert.strictEqual(exit.value.result, "kept")
      assert.deepStrictEqual(yield* used(manager, Model), [0])
    }).pipe(Effect.provide(Manager)))

  it.effect("tokens charged to a request that waited are dated when it is dispatched", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("dated-at-dispatch", {
        rateLimiters: [RateLimiter.tpm(100, { timePeriod: "1 second" })]
      })
      yield* manager.registerQueue(Model, () => Effect.succeed("ok"))
      yield* submit(manager, Model, "first", estimate(100))
      yield* submit(manager, Model, "second", estimate(100))
      yield* TestClock.adjust(1500)
      const info = yield* manager.getQueueInfo(Model)
      assert.strictEqual(info.rateLimiters[0]?.used, 100)
      assert.deepStrictEqual(info.rateLimiters[0]?.timeUntilNextCapacity, Duration.millis(500))
    }).pipe(Effect.provide(Manager)))

  it.effect("a cancelled caller's waiting request is charged nothing", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string>("cancelled-free", {
        rateLimiters: [RateLimiter.tpm(100), RateLimiter.rpm(10), RateLimiter.concurrent(2)]
      })
      yield* manager.registerQueue(Model, () => Effect.succeed("ok"))
      yield* submit(manager, Model, "first", estimate(60))
      const caller = yield* Effect.forkChild(manager.submit(Model, "second", estimate(60)))
      yield* TestClock.adjust(0)
      yield* Fiber.interrupt(caller)
      assert.deepStrictEqual(yield* used(manager, Model), [60, 1, 0])
      assert.strictEqual((yield* manager.getQueueInfo(Model)).depth, 0)
    }).pipe(Effect.provide(Manager)))
})
