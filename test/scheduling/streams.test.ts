import { assert, describe, it } from "@effect/vitest"
import { Cause, Context, Deferred, Duration, Effect, Exit, Fiber, Layer, Schedule, Scope, Stream } from "effect"
import { ModelConfig, ProviderProfile, QueueManager, RateLimiter } from "effect-llm-queue"
import { TestClock } from "effect/testing"
import * as random from "../model/random.ts"

/** Its end waits for nobody, so that a test can leave requests behind. */
const Manager = QueueManager.layerWith({ shutdown: { policy: "interrupt", deadline: 0 } })

interface Element {
  readonly text: string
  readonly usage?: ModelConfig.Usage
}

const tokens = (n: number) => ({ estimatedInputTokens: n, estimatedOutputTokens: 0 })

const makeModel = (name: string) =>
  ModelConfig.makeStreamUntyped<Stream.Stream<Element, string>, Element, string>(name, {
    rateLimiters: [RateLimiter.concurrent(1), RateLimiter.tpm(1000)],
    usage: (element) => element.usage
  })

/** What is used of the permits and of the tokens. */
const used = (manager: QueueManager.QueueManager["Service"], model: ModelConfig.Any) =>
  Effect.map(manager.getQueueInfo(model), ({ rateLimiters }) => rateLimiters.map(({ used }) => used))

const texts = (...all: ReadonlyArray<string>) => Stream.fromIterable(all.map((text): Element => ({ text })))

const last = (inputTokens: number) => Stream.succeed<Element>({ text: "last", usage: { inputTokens, outputTokens: 0 } })

describe("streams", () => {
  it.effect("give their elements, settle from the last usage, and end as completed with the number of elements", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = makeModel("model")
      yield* manager.registerStream(Model, (request) => request.params)
      const slow = Stream.concat(Stream.fromEffect(Effect.as(Effect.sleep("2 seconds"), { text: "a" })), last(30))
      const fiber = yield* Effect.forkChild(
        Stream.runCollect(manager.stream(Model, slow, { id: "one", ...tokens(100) })),
        { startImmediately: true }
      )
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(yield* used(manager, Model), [1, 100])
      assert.isUndefined((yield* manager.getStatus("model", "one")).timeToFirstElement)
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual((yield* Fiber.join(fiber)).map(({ text }) => text), ["a", "last"])
      assert.deepStrictEqual(yield* used(manager, Model), [0, 30])
      const response = yield* manager.getStatus("model", "one")
      assert(response.status === "completed" && response.timeToFirstElement !== undefined)
      assert.strictEqual(response.result, 2)
      assert.strictEqual(Duration.toSeconds(response.timeToFirstElement), 2)
      assert.strictEqual(response.inputTokensUsed, 30)
    }).pipe(Effect.provide(Manager)))

  it.effect("wait for their turn, and each run is a request of its own", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = makeModel("model")
      yield* manager.registerStream(Model, (request) => request.params)
      const stream = manager.stream(
        Model,
        Stream.fromEffect(Effect.as(Effect.sleep("1 second"), { text: "x" })),
        tokens(1)
      )
      const both = yield* Effect.forkChild(
        Effect.all([Stream.runCollect(stream), Stream.runCollect(stream)], { concurrency: 2 }),
        { startImmediately: true }
      )
      yield* TestClock.adjust("1999 millis")
      assert.strictEqual((yield* manager.getQueueInfo(Model)).completed, 1)
      yield* TestClock.adjust("1 millis")
      yield* Fiber.join(both)
      assert.strictEqual((yield* manager.getQueueInfo(Model)).completed, 2)
    }).pipe(Effect.provide(Manager)))

  it.effect("a slow reader holds the producer back, and the permit", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = makeModel("model")
      yield* manager.registerStream(Model, (request) => request.params)
      let produced = 0
      const endless = Stream.fromEffectRepeat(Effect.sync((): Element => ({ text: `${produced++}` })))
      const go = yield* Deferred.make<void>()
      const reader = yield* Effect.forkChild(
        manager.stream(Model, endless, tokens(1)).pipe(
          Stream.mapEffect((element) => Effect.as(Deferred.await(go), element)),
          Stream.take(100),
          Stream.runCollect
        ),
        { startImmediately: true }
      )
      yield* TestClock.adjust("30 seconds")
      assert.isAtMost(produced, 64)
      assert.deepStrictEqual(yield* used(manager, Model), [1, 1])
      yield* Deferred.succeed(go, undefined)
      yield* TestClock.adjust("1 second")
      assert.strictEqual((yield* Fiber.join(reader)).length, 100)
      assert.deepStrictEqual(yield* used(manager, Model), [0, 1])
    }).pipe(Effect.provide(Manager)))

  it.effect("a failure follows the elements that were there, and is the model's own", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = makeModel("model")
      yield* manager.registerStream(Model, (request) => request.params)
      const seen: Array<string> = []
      const run = (stream: Stream.Stream<Element, string>) =>
        manager.stream(Model, stream, tokens(1)).pipe(
          Stream.runForEach((element) => Effect.sync(() => seen.push(element.text))),
          Effect.exit
        )
      const failed = yield* run(Stream.concat(texts("a", "b"), Stream.fail("broken")))
      assert.deepStrictEqual(seen, ["a", "b"])
      assert(Exit.isFailure(failed))
      assert.strictEqual(Cause.squash(failed.cause), "broken")
      const died = yield* run(Stream.concat(texts("c"), Stream.die("bug")))
      assert(Exit.isFailure(died))
      assert.deepInclude(Cause.squash(died.cause), { _tag: "ProcessingError" })
      assert.deepStrictEqual(yield* used(manager, Model), [0, 2])
    }).pipe(Effect.provide(Manager)))

  it.effect("a usage that cannot be read leaves the estimate, and the stream goes on", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeStreamUntyped<string, string>("model", {
        rateLimiters: [RateLimiter.tpm(1000)],
        usage: () => {
          throw new Error("no usage")
        }
      })
      yield* manager.registerStream(Model, () => Stream.make("a", "b"))
      assert.deepStrictEqual(yield* Stream.runCollect(manager.stream(Model, "", tokens(7))), ["a", "b"])
      assert.deepStrictEqual(yield* used(manager, Model), [7])
    }).pipe(Effect.provide(Manager)))

  it.effect("what the provider refuses before the first element is attempted again unseen, and not after it", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeStreamUntyped<string, string, { readonly status: number }>("model", {
        rateLimiters: "unlimited",
        provider: ProviderProfile.generic
      })
      let attempts = 0
      yield* manager.registerStream(Model, (request) => {
        attempts++
        const elements = request.params === "late" || attempts > 2 ? Stream.make("a", "b") : Stream.empty
        return attempts > 2 && request.params !== "late"
          ? elements
          : Stream.concat(elements, Stream.fail({ status: 503 }))
      })
      const early = yield* Effect.forkChild(Stream.runCollect(manager.stream(Model, "early")), {
        startImmediately: true
      })
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(yield* Fiber.join(early), ["a", "b"])
      assert.strictEqual(attempts, 3)
      const seen: Array<string> = []
      const late = yield* manager.stream(Model, "late").pipe(
        Stream.runForEach((element) => Effect.sync(() => seen.push(element))),
        Effect.flip
      )
      assert.deepStrictEqual(seen, ["a", "b"])
      assert.deepInclude(late, { _tag: "ProviderUnavailable" })
      assert.strictEqual(attempts, 4)
    }).pipe(Effect.provide(Manager)))

  it.effect("agents that read a stream of their own queue do not wait for themselves", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Agent = ModelConfig.makeStreamUntyped<number, number, string>("agent", {
        rateLimiters: [RateLimiter.concurrent(1)]
      })
      yield* manager.registerStream(Agent, (request) =>
        request.params === 0
          ? Stream.make(0)
          : Stream.map(manager.stream(Agent, request.params - 1), (element) => element + 1).pipe(
            Stream.mapError(String)
          ))
      assert.deepStrictEqual(yield* Stream.runCollect(manager.stream(Agent, 4)), [4])
    }).pipe(Effect.provide(Manager)))

  for (
    const [name, read] of [
      [
        "submits to the same queue for each element",
        (manager, Model) =>
          Stream.mapEffect(manager.stream(Model, 200), () => Stream.runDrain(manager.stream(Model, 1)))
      ],
      ["does so in fibers of its own", (manager, Model) =>
        manager.stream(Model, 200).pipe(
          Stream.mapEffect(() => Stream.runDrain(manager.stream(Model, 1)), { concurrency: 3 })
        )],
      [
        "reads two streams side by side",
        (manager, Model) => Stream.zip(manager.stream(Model, 200), manager.stream(Model, 200))
      ],
      ["is an agent of the same queue", (manager, Model) => manager.stream(Model, 0)]
    ] as ReadonlyArray<
      readonly [
        string,
        (
          manager: QueueManager.QueueManager["Service"],
          model: ModelConfig.StreamModelConfig<number, number, string>
        ) => Stream.Stream<unknown, unknown>
      ]
    >
  ) {
    it.effect(`a reader that ${name} does not wait for itself`, () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const Model = ModelConfig.makeStreamUntyped<number, number, string>("model", {
          rateLimiters: [RateLimiter.concurrent(1)]
        })
        let running = 0
        let most = 0
        const count = (n: number) =>
          Stream.unwrap(Effect.as(
            Effect.acquireRelease(
              Effect.sync(() => most = Math.max(most, ++running)),
              () => Effect.sync(() => running--)
            ),
            Stream.rechunk(Stream.range(1, n), 1)
          ))
        yield* manager.registerStream(Model, ({ params }) =>
          params > 0 ? count(params) : manager.stream(Model, 200).pipe(
            Stream.mapEffect((element) => Effect.as(Stream.runDrain(manager.stream(Model, 1)), element)),
            Stream.mapError(String)
          ))
        const reader = yield* Effect.forkChild(Stream.runDrain(read(manager, Model)), { startImmediately: true })
        for (let turn = 0; turn < 50_000 && reader.pollUnsafe() === undefined; turn++) yield* Effect.yieldNow
        assert.isDefined(reader.pollUnsafe(), "it hangs")
        assert.isTrue(Exit.isSuccess(reader.pollUnsafe()!))
        // No permit is lent for it.
        assert.strictEqual(most, 1)
        assert.strictEqual((yield* manager.getQueueInfo(Model)).running, 0)
      }).pipe(Effect.provide(Manager)))
  }

  it.effect("a slow reader does not keep others waiting, and what is read ahead for them is bounded", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = makeModel("model")
      yield* manager.registerStream(Model, (request) => request.params)
      const go = yield* Deferred.make<void>()
      const readSlowly = (stream: Stream.Stream<Element, string>) =>
        Effect.forkChild(
          manager.stream(Model, stream, tokens(1)).pipe(
            Stream.runForEach(() => Deferred.await(go))
          ),
          { startImmediately: true }
        )
      let produced = 0
      const elements = Stream.fromEffectRepeat(Effect.sync((): Element => ({ text: `${produced++}` })))
      const first = yield* readSlowly(Stream.take(elements, 1000))
      yield* TestClock.adjust("1 second")
      assert.isAtMost(produced, 64)
      yield* Stream.runDrain(manager.stream(Model, texts("a"), tokens(1)))
      assert.strictEqual(produced, 1000)
      produced = 0
      const endless = yield* readSlowly(elements)
      const second = yield* Effect.forkChild(Stream.runDrain(manager.stream(Model, texts("a"), tokens(1))), {
        startImmediately: true
      })
      for (let turn = 0; turn < 200_000; turn++) yield* Effect.yieldNow
      assert.isUndefined(second.pollUnsafe())
      assert.isAtLeast(produced, 65_536)
      assert.isAtMost(produced, 65_536 + 64)
      yield* Fiber.interrupt(endless)
      yield* Fiber.join(second)
      yield* Deferred.succeed(go, undefined)
      yield* Fiber.join(first)
    }).pipe(Effect.provide(Manager)))

  it.effect("a reader that has stopped does not keep a queue from draining", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = makeModel("model")
      yield* manager.registerStream(Model, (request) => request.params)
      const elements = Stream.rechunk(Stream.map(Stream.range(1, 500), (i): Element => ({ text: `${i}` })), 1)
      let read = 0
      const reader = yield* Effect.forkChild(
        manager.stream(Model, elements, tokens(1)).pipe(
          Stream.tap(() => ++read === 1 ? manager.shutdownAll({ policy: "drain", deadline: "1 hour" }) : Effect.void),
          Stream.runDrain
        ),
        { startImmediately: true }
      )
      for (let turn = 0; turn < 50_000 && reader.pollUnsafe() === undefined; turn++) yield* Effect.yieldNow
      assert.deepStrictEqual(reader.pollUnsafe(), Exit.void)
      assert.strictEqual(read, 500)
    }).pipe(Effect.provide(Manager)))

  it.effect("a refusal after the first element keeps the charge, or what its elements have reported", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeStreamUntyped<Stream.Stream<Element, { status: number }>, Element, {
        readonly status: number
      }>("model", {
        // It gives back what was not used, unlike the generic profile's own.
        rateLimiters: [RateLimiter.make({ type: "tpm", limit: 1000, charging: { refund: true } })],
        provider: ProviderProfile.generic,
        retry: { schedule: Schedule.recurs(0) },
        usage: (element) => element.usage
      })
      yield* manager.registerStream(Model, (request) => request.params)
      const run = Effect.fnUntraced(function*(stream: Stream.Stream<Element, { status: number }>) {
        const reader = yield* Effect.forkChild(
          Effect.flip(Stream.runDrain(manager.stream(Model, stream, tokens(100)))),
          { startImmediately: true }
        )
        // The profile spreads what it sends.
        yield* TestClock.adjust("10 seconds")
        return yield* Fiber.join(reader)
      })
      const refused = Stream.fail({ status: 429 })
      assert.deepInclude(yield* run(Stream.concat(texts("a"), refused)), { _tag: "RateLimitExceeded" })
      assert.deepStrictEqual(yield* used(manager, Model), [100])
      // The refusal keeps others back all the same, where the limits cannot.
      assert.strictEqual((yield* manager.getQueueInfo(Model)).provider?.concurrency, 1)
      yield* run(Stream.concat(last(30), refused))
      assert.deepStrictEqual(yield* used(manager, Model), [130])
      yield* run(refused)
      assert.deepStrictEqual(yield* used(manager, Model), [130])
    }).pipe(Effect.provide(Manager)))

  it.effect("a limiter that breaks when it settles does not take back what was streamed", () =>
    Effect.gen(function*() {
      const memory = yield* RateLimiter.RateLimiter
      const broken = Layer.succeed(RateLimiter.RateLimiter, {
        make: (...args) =>
          Effect.map(memory.make(...args), (limiter) => ({ ...limiter, settle: () => Effect.die("no store") }))
      })
      yield* Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const Model = makeModel("model")
        yield* manager.registerStream(Model, (request) => request.params)
        assert.strictEqual((yield* Stream.runCollect(manager.stream(Model, last(30), tokens(50)))).length, 1)
        assert.deepStrictEqual(yield* used(manager, Model), [0, 50])
      }).pipe(Effect.provide(Manager.pipe(Layer.provide(broken))))
    }))

  it.effect("a model of the other kind with the same id is refused", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const models = (id: string) => ({
        Plain: ModelConfig.makeUntyped<string, string>(id, { rateLimit: 10 }),
        Streaming: ModelConfig.makeStreamUntyped<string, string>(id, { rateLimit: 10 })
      })
      const one = models("one")
      yield* manager.registerQueue(one.Plain, (request) => Effect.succeed(request.params))
      const stream = yield* Effect.flip(Stream.runCollect(manager.stream(one.Streaming, "")))
      assert.deepInclude(stream, { _tag: "InvalidRequest" })
      const two = models("two")
      yield* manager.registerStream(two.Streaming, () => Stream.make("x"))
      assert.deepInclude(yield* Effect.flip(manager.submit(two.Plain, "")), { _tag: "InvalidRequest" })
      for (const id of ["one", "two"]) {
        assert.deepStrictEqual((yield* manager.getQueueInfo(id)).rateLimiters.map(({ used }) => used), [0])
      }
    }).pipe(Effect.provide(Manager)))

  it.effect("law: every way to end returns the permit and settles once", () =>
    Effect.gen(function*() {
      const ways = [
        "completes",
        "take",
        "reader fails",
        "interrupted",
        "fails",
        "dies",
        "times out",
        "takes too long",
        "is cancelled",
        "shuts down"
      ] as const
      for (let seed = 1; seed <= 200; seed++) {
        const choose = random.make(seed)
        const way = ways[seed % ways.length]!
        const scope = yield* Scope.make()
        const manager = Context.get(yield* Layer.buildWithScope(Manager, scope), QueueManager.QueueManager)
        const Model = makeModel("model")
        let open = 0
        yield* manager.registerStream(Model, (request) =>
          Stream.unwrap(Effect.as(
            Effect.acquireRelease(Effect.sync(() => open++), () => Effect.sync(() => open--)),
            request.params
          ))).pipe(Scope.provide(scope))
        // Something else may be before it.
        const isBehind = choose.chance(0.4)
        if (isBehind) {
          yield* Effect.forkChild(
            Stream.runDrain(
              manager.stream(Model, Stream.fromEffect(Effect.as(Effect.sleep(500), { text: "" })), tokens(1))
            ),
            { startImmediately: true }
          )
        }
        const count = choose.int(0, 40)
        const pause = choose.pick([0, 1, 100])
        const usageAt = choose.chance(0.5) ? choose.int(0, 40) : -1
        let produced = -1
        const elements = Stream.range(0, count).pipe(
          Stream.mapEffect((i) => {
            const element: Element = i === usageAt
              ? { text: `${i}`, usage: { inputTokens: 17, outputTokens: 0 } }
              : { text: `${i}` }
            return Effect.sleep(pause).pipe(Effect.as(element), Effect.tap(() => Effect.sync(() => produced = i)))
          })
        )
        const end = way === "fails"
          ? Stream.fail("broken")
          : way === "dies"
          ? Stream.die("bug")
          : way === "completes"
          ? Stream.empty
          : Stream.never
        const stream = manager.stream(Model, Stream.concat(elements, end), {
          id: "it",
          ...tokens(50),
          ...(way === "times out" ? { timeout: choose.int(1, 2000) } : {}),
          ...(way === "takes too long" ? { processingTimeout: choose.int(1, 1000) } : {})
        })
        const reading = way === "take"
          ? Stream.take(stream, choose.int(0, count))
          : way === "reader fails"
          ? Stream.mapEffect(stream, (element, i) => i >= count / 2 ? Effect.fail("reader") : Effect.succeed(element))
          : stream
        const reader = yield* Effect.forkChild(Stream.runDrain(reading), { startImmediately: true })
        yield* TestClock.adjust(choose.int(0, 3000))
        if (way === "interrupted") yield* Fiber.interrupt(reader)
        if (way === "is cancelled") yield* Effect.exit(manager.cancelRequest(Model, "it"))
        if (way === "shuts down") yield* Effect.forkChild(manager.shutdownAll(), { startImmediately: true })
        yield* TestClock.adjust("20 seconds")
        assert.isDefined(reader.pollUnsafe(), `seed ${seed}: ${way} hangs`)
        const info = yield* manager.getQueueInfo(Model)
        const [permits, charged] = info.rateLimiters.map(({ used }) => used)
        assert.strictEqual(permits, 0, `seed ${seed}: ${way} keeps its permit`)
        assert.strictEqual(open, 0, `seed ${seed}: ${way} leaves the stream open`)
        assert.strictEqual(info.running + info.depth, 0, `seed ${seed}: ${way}`)
        const status = yield* Effect.option(manager.getStatus("model", "it"))
        const attempts = status._tag === "Some" ? status.value.attempts : 0
        const settled = usageAt >= 0 && usageAt <= produced
        const expected = (isBehind && (way !== "shuts down" || attempts > 0 || charged! % 10 === 1) ? 1 : 0)
          + (attempts === 0 ? 0 : settled ? 17 : 50)
        assert.strictEqual(charged, expected, `seed ${seed}: ${way}`)
        yield* Scope.close(scope, Exit.void)
      }
    }), 60_000)
})
