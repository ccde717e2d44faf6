import { assert, describe, it } from "@effect/vitest"
import { Duration, Effect, Fiber, Layer, Option, Schema, Stream, Tracer } from "effect"
import { ModelConfig, QueueManager, RateLimiter } from "effect-llm-queue"
import * as QueueApi from "effect-llm-queue/Api"
import { TestClock } from "effect/testing"
import * as pictures from "../../src/internal/live.ts"
import * as random from "../model/random.ts"

type Message = typeof QueueApi.Live.Type

const decode = Schema.decodeUnknownSync(Schema.fromJsonString(QueueApi.Live))

const read = (bytes: Uint8Array): Message => {
  const text = new TextDecoder().decode(bytes)
  assert.match(text, /^data: .*\n\n$/)
  return decode(text.slice("data: ".length))
}

const make = Effect.fnUntraced(function*(options?: Partial<pictures.Options>) {
  const manager = yield* QueueManager.QueueManager
  let taken = 0
  const live = yield* pictures.make(manager, {
    interval: Duration.seconds(1),
    maxStreams: 3,
    toQueue: (info, waits) => {
      taken++
      // What a limit has used changes without anybody.
      const { rateLimiters: _limits, reservations: _costs, ...rest } = info
      return { ...rest, limits: [], waits, provider: null }
    },
    toEvent: ({ attempts, modelId, requestId, status }) => ({
      requestId,
      modelId,
      tenant: null,
      status,
      createdAt: 0,
      queueTimeMillis: 0,
      processingTimeMillis: 0,
      attempts,
      inputTokens: null,
      outputTokens: null,
      error: null
    }),
    ...options
  })
  const look = Effect.fnUntraced(function*() {
    const seen: Array<Message> = []
    const stream = yield* live.stream
    assert(Option.isSome(stream))
    const fiber = yield* Effect.forkChild(
      Stream.runForEach(stream.value, (bytes) => Effect.sync(() => seen.push(read(bytes)))),
      { startImmediately: true }
    )
    yield* TestClock.adjust(0)
    return { seen, leave: Fiber.interrupt(fiber) }
  })
  return { live, look, manager, taken: () => taken }
})

const model = (id: string, timePeriod: Duration.Input = "1 minute") =>
  ModelConfig.makeUntyped<number, string, string>(id, { rateLimiters: [RateLimiter.rpm(2, { timePeriod })] })

const processor = ({ params }: { readonly params: number }) => params < 0 ? Effect.fail("no") : Effect.succeed("ok")

/** With a manager that takes time to say how a queue is, and that somebody else has made. */
const slowly = (delay: Duration.Input) =>
  Effect.updateService(QueueManager.QueueManager, (manager) => ({
    ...manager,
    getQueueInfo: (model: ModelConfig.Any | string) => Effect.delay(manager.getQueueInfo(model), delay)
  }))

const Manager = QueueManager.layerWith({ shutdown: { policy: "interrupt", deadline: 0 } })

const spans: Array<string> = []

const ids = (message: Message | undefined) => message?.queues.map(({ modelId }) => modelId)

describe("what those who look see", () => {
  it.effect("is all at first, then what has changed, and the same for everybody", () =>
    Effect.gen(function*() {
      const { look, manager, taken } = yield* make()
      const [A, B] = [model("a"), model("b")]
      yield* manager.registerQueue(A, processor)
      yield* manager.registerQueue(B, processor)
      yield* TestClock.adjust("10 seconds")
      assert.strictEqual(taken(), 0, "nobody looks")

      const first = yield* look()
      const second = yield* look()
      assert.deepStrictEqual(first.seen.map(ids), [["a", "b"]])
      assert.isTrue(first.seen[0]!.complete)
      assert.deepStrictEqual(second.seen, first.seen)
      assert.strictEqual(taken(), 2)

      yield* manager.submit(A, 1)
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(ids(first.seen[1]), ["a"])
      assert.isFalse(first.seen[1]!.complete)
      assert.deepInclude(first.seen[1]!.queues[0], { completed: 1, waits: { count: 1, p50Millis: 0, p95Millis: 0 } })
      assert.strictEqual(taken(), 4)
      // The waits were of that second.
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(ids(first.seen[2]), ["a"])
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(ids(first.seen[3]), [])
      assert.strictEqual(first.seen[3]!.at, 13_000)

      yield* manager.unregisterQueue(A)
      const C = model("c")
      yield* manager.registerQueue(C, processor)
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual([ids(first.seen[4]), first.seen[4]!.removed], [["c"], ["a"]])
      assert.deepStrictEqual(second.seen, first.seen)
      const third = yield* look()
      assert.deepStrictEqual(third.seen.map(ids), [["b", "c"]])

      for (const { leave } of [first, second, third]) yield* leave
      const before = taken()
      yield* TestClock.adjust("1 minute")
      assert.strictEqual(taken(), before, "nobody looks any more")
    }).pipe(Effect.provide(Manager)))

  it.effect("is all again for who was too slow, and nothing piles up", () =>
    Effect.gen(function*() {
      const { live, manager } = yield* make()
      const A = model("a")
      yield* manager.registerQueue(A, processor)
      const stream = yield* live.stream
      assert(Option.isSome(stream))
      const seen: Array<Message> = []
      yield* Effect.forkChild(
        Stream.runForEach(stream.value, (bytes) => {
          seen.push(read(bytes))
          return seen.length === 1 ? Effect.sleep("5500 millis") : Effect.void
        }),
        { startImmediately: true }
      )
      yield* TestClock.adjust("5 seconds")
      assert.strictEqual(seen.length, 1)
      yield* manager.submit(A, 1)
      yield* TestClock.adjust("2 seconds")
      assert.deepStrictEqual(seen.map(({ complete }) => complete), [true, true, false, false])
      assert.strictEqual(seen[1]!.queues[0]!.completed, 0)
      assert.strictEqual(seen[2]!.queues[0]!.completed, 1)
    }).pipe(Effect.provide(Manager)))

  it.effect("has recent events and failures, at most 25 of an interval, also of the time when nobody looked", () =>
    Effect.gen(function*() {
      const { look, manager } = yield* make()
      const A = ModelConfig.makeUntyped<number, string, string>("a", { rateLimiters: "unlimited" })
      yield* manager.registerQueue(A, processor)
      const submit = (count: number, params: number) =>
        Effect.forEach(Array.from({ length: count }), () => Effect.exit(manager.submit(A, params)), { discard: true })
      for (let i = 0; i < 3; i++) {
        yield* submit(20, -1)
        yield* TestClock.adjust("1 second")
      }
      const { seen } = yield* look()
      assert.strictEqual(seen[0]!.failures.length, 60)
      // Each of the first ones was dispatched, and failed.
      assert.strictEqual(seen[0]!.events.length, 75)
      yield* submit(5, -1)
      yield* submit(100, 1)
      yield* TestClock.adjust("1 second")
      assert.strictEqual(seen[1]!.failures.length, 5)
      assert.strictEqual(seen[1]!.events.length, 25)
      assert.deepStrictEqual(seen[1]!.events.slice(0, 3).map(({ status }) => status), [
        "processing",
        "failed",
        "processing"
      ])
      for (let i = 0; i < 10; i++) {
        yield* submit(20, -1)
        yield* TestClock.adjust("1 second")
      }
      const late = yield* look()
      assert.strictEqual(late.seen[0]!.failures.length, 100)
      assert.strictEqual(late.seen[0]!.events.length, 100)
      assert.isTrue(late.seen[0]!.failures.every(({ status }) => status === "failed"))
    }).pipe(Effect.provide(Manager)))

  it.effect("has a history of a quarter of an hour", () =>
    Effect.gen(function*() {
      const { live, manager } = yield* make()
      const A = model("a")
      yield* manager.registerQueue(A, processor)
      yield* manager.registerQueue(model("idle"), processor)
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(live.history("a"), [])
      for (let i = 0; i < 4; i++) yield* Effect.forkChild(manager.submit(A, 1), { startImmediately: true })
      yield* Effect.exit(manager.submit(A, -1, { priority: "high" }).pipe(Effect.timeout("1 millis"), Effect.forkChild))
      yield* TestClock.adjust("5 seconds")
      const [sample] = live.history("a")
      assert.deepStrictEqual(sample, {
        at: 65_000,
        depth: 2,
        running: 0,
        completedPerSecond: 2 / 5,
        failedPerSecond: 0,
        waitP50Millis: 0,
        waitP95Millis: 0
      })
      assert.deepStrictEqual(live.history(undefined), live.history("a"))
      yield* TestClock.adjust("2 minutes")
      const samples = live.history("a")
      assert.strictEqual(samples.length, 25)
      const waited = samples.find(({ waitP50Millis }) => waitP50Millis !== null && waitP50Millis > 0)!
      assert.isAbove(waited.waitP50Millis!, 59_000)
      yield* TestClock.adjust("20 minutes")
      assert.strictEqual(live.history("a").length, 180)
      assert.deepStrictEqual([live.history("idle"), live.history("none")], [[], []])
    }).pipe(Effect.provide(Manager)))

  it.effect("is whole for others when somebody leaves while it is taken", () =>
    Effect.gen(function*() {
      // Reading takes longer than the interval.
      const { look, manager } = yield* make()
      const models = Array.from({ length: 60 }, (_, index) => model(`${index}`, "1 second"))
      yield* manager.registerAllQueues(models, processor)
      const { seen } = yield* look()
      const choose = random.make(1)
      for (let i = 1; i <= 30; i++) {
        yield* TestClock.adjust(choose.int(0, 2000))
        yield* manager.submit(models[0]!, 1)
        // The picture may be an old one, so that another one is taken for who comes now, and leaves before it is there.
        const { leave } = yield* look()
        yield* TestClock.adjust(choose.int(0, 1400))
        yield* Effect.forkChild(leave)
        yield* TestClock.adjust("10 seconds")
        const told = seen.flatMap(({ queues }) => queues.filter(({ modelId }) => modelId === "0"))
        assert.strictEqual(told.at(-1)!.completed, i)
      }
    }).pipe(slowly("700 millis"), Effect.provide(Manager)))

  it.effect("has nothing that goes while it is taken", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const [A, B] = [model("a"), model("b")]
      let goes = false
      const { look } = yield* make({
        toQueue: (info, waits) => {
          // Read after the first one.
          if (goes && info.modelId === "b") Effect.runFork(manager.unregisterQueue(A))
          return { ...info, limits: [], waits, provider: null }
        }
      })
      yield* manager.registerQueue(A, processor)
      yield* manager.registerQueue(B, processor)
      const { seen } = yield* look()
      yield* manager.submit(A, 1)
      goes = true
      yield* TestClock.adjust("2 seconds")
      assert.deepStrictEqual(yield* manager.getRegisteredModels, ["b"])
      const known = new Set<string>()
      for (const { queues, removed } of seen) {
        for (const modelId of removed) known.delete(modelId)
        for (const { modelId } of queues) known.add(modelId)
      }
      assert.deepStrictEqual([...known], ["b"])
    }).pipe(Effect.provide(Manager)))

  it.effect("has nothing that went while nobody looked, however soon somebody comes", () =>
    Effect.gen(function*() {
      const { look, manager } = yield* make()
      const [A, B] = [model("a"), model("b")]
      yield* manager.registerQueue(A, processor)
      yield* manager.registerQueue(B, processor)
      yield* TestClock.adjust("500 millis")
      const { leave } = yield* look()
      yield* leave
      yield* TestClock.adjust("200 millis")
      yield* manager.unregisterQueue(A)
      yield* TestClock.adjust("500 millis")
      const { seen } = yield* look()
      assert.deepStrictEqual(ids(seen[0]), ["b"])
    }).pipe(Effect.provide(Manager)))

  it.effect("has each event once, whenever somebody comes", () =>
    Effect.gen(function*() {
      const { look, manager } = yield* make()
      const A = ModelConfig.makeUntyped<number, string, string>("a", { rateLimiters: "unlimited" })
      yield* manager.registerQueue(A, processor)
      const first = yield* look()
      for (let i = 0; i < 3; i++) {
        yield* Effect.exit(manager.submit(A, -1))
        yield* TestClock.adjust("500 millis")
        const { leave, seen } = yield* look()
        yield* TestClock.adjust("500 millis")
        yield* leave
        for (const kind of ["events", "failures"] as const) {
          const told = (messages: ReadonlyArray<Message>) =>
            messages.flatMap((message) => message[kind].map(({ requestId, status }) => `${requestId} ${status}`))
          assert.deepStrictEqual(told(seen), told(first.seen))
        }
      }
      assert.strictEqual(first.seen.flatMap(({ failures }) => failures).length, 3)
    }).pipe(Effect.provide(Manager)))

  it.effect("has waits of now, and none while nobody looks", () =>
    Effect.gen(function*() {
      const { live, look, manager } = yield* make()
      const A = model("a")
      yield* manager.registerQueue(A, processor)
      yield* manager.submit(A, 1)
      yield* TestClock.adjust("1 hour")
      const { leave, seen } = yield* look()
      assert.deepStrictEqual([seen[0]!.waits, seen[0]!.queues[0]!.waits], [null, null])
      yield* manager.submit(A, 1)
      yield* TestClock.adjust("1 second")
      assert.strictEqual(seen[1]!.waits!.count, 1)
      assert.strictEqual(live.waits("a")!.count, 1)
      yield* leave
      assert.isNull(live.waits("a"))
      yield* TestClock.adjust("1 minute")
      yield* manager.submit(A, 1)
      const again = yield* look()
      yield* TestClock.adjust("3 seconds")
      assert.deepStrictEqual(again.seen.map(({ waits }) => waits), [null, null, null, null])
    }).pipe(Effect.provide(Manager)))

  it.effect("has the throughput of all, also of those that come and go, in steps of five seconds", () =>
    Effect.gen(function*() {
      const { live, manager } = yield* make({ interval: Duration.minutes(1) })
      const free = (id: string) => ModelConfig.makeUntyped<number, string, string>(id, { rateLimiters: "unlimited" })
      const [A, B] = [free("a"), free("b")]
      const submit = (of: typeof A, count: number) =>
        Effect.forEach(Array.from({ length: count }), () => manager.submit(of, 1), { discard: true })
      yield* TestClock.adjust("1 second")
      yield* manager.registerQueue(A, processor)
      yield* submit(A, 100)
      yield* TestClock.adjust("4 seconds")
      yield* manager.registerQueue(B, processor)
      yield* manager.unregisterQueue(A)
      yield* submit(B, 50)
      yield* TestClock.adjust("5 seconds")
      const rates = (id?: string) => live.history(id).map(({ completedPerSecond }) => Math.round(completedPerSecond))
      // A was there for four of the five seconds, and B for all of them.
      assert.deepStrictEqual([rates(), rates("b"), rates("a")], [[25, 10], [10], []])
    }).pipe(Effect.provide(Manager)))

  it.effect("does not wait for queues that do not say how they are", () =>
    Effect.gen(function*() {
      const { live, look, manager } = yield* make()
      const A = model("a")
      yield* manager.registerQueue(A, processor)
      yield* manager.registerQueue(model("silent"), processor)
      const { seen } = yield* look()
      yield* manager.submit(A, 1)
      yield* TestClock.adjust("10 seconds")
      yield* manager.submit(A, 1)
      yield* TestClock.adjust("20 seconds")
      assert.deepStrictEqual(ids(seen[0]), ["a"])
      assert.isTrue(seen.some(({ complete, queues }) => !complete && queues[0]?.completed === 2))
      assert.isAbove(live.history(undefined).length, 0)
    }).pipe(
      Effect.updateService(QueueManager.QueueManager, (manager) => ({
        ...manager,
        getQueueInfo: (model: ModelConfig.Any | string) =>
          model === "silent" ? Effect.never : manager.getQueueInfo(model)
      })),
      Effect.provide(Manager)
    ))

  it.effect("leaves no spans", () =>
    Effect.gen(function*() {
      const { look, manager } = yield* make()
      yield* manager.registerQueue(model("a"), processor)
      const before = spans.length
      yield* look()
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(spans.slice(before), [])
    }).pipe(
      Effect.provide(Manager),
      Effect.provideService(
        Tracer.Tracer,
        Tracer.make({
          span: (options) => {
            spans.push(options.name)
            return new Tracer.NativeSpan(options)
          }
        })
      )
    ))

  it.effect("is for so many at one time, and shares one reading", () =>
    Effect.gen(function*() {
      const { live, look, manager, taken } = yield* make()
      yield* manager.registerQueue(model("a"), processor)
      const three = yield* Effect.forEach([1, 2, 3], look)
      assert.isTrue(Option.isNone(yield* live.stream))
      assert.isTrue(Option.isNone(live.counted(Stream.empty)))
      yield* TestClock.adjust("10 seconds")
      assert.strictEqual(taken(), 11)
      yield* three[0]!.leave
      yield* look()
      assert.isTrue(Option.isNone(yield* live.stream))
    }).pipe(Effect.provide(Manager)))

  it.effect("has the queues of a manager that somebody else has made", () =>
    Effect.gen(function*() {
      const { look, manager } = yield* make()
      const A = model("a")
      yield* manager.registerQueue(A, processor)
      const { seen } = yield* look()
      yield* manager.submit(A, 1)
      yield* TestClock.adjust("1 second")
      yield* manager.unregisterQueue(A)
      yield* TestClock.adjust("1 second")
      assert.deepInclude(seen[1]!.queues[0], { completed: 1, waits: null })
      assert.deepStrictEqual(seen[2]!.removed, ["a"])
    }).pipe(Effect.provide(
      Layer.effect(
        QueueManager.QueueManager,
        QueueManager.QueueManager.use((manager) => Effect.succeed({ ...manager }))
      ).pipe(Layer.provide(Manager))
    )))

  it.effect("is what is there, for readers of any speed, whatever comes and goes", () =>
    Effect.gen(function*() {
      for (let seed = 1; seed <= 40; seed++) {
        const choose = random.make(seed)
        yield* Effect.gen(function*() {
          const { live, manager } = yield* make({ maxStreams: 100 })
          const models = Array.from({ length: 6 }, (_, index) => model(`${seed} ${index}`, "3 seconds"))
          const registered = new Set<string>()
          let problem: string | undefined
          /** Puts together what it is told. */
          const begin = Effect.gen(function*() {
            const stream = yield* live.stream
            const known = new Map<string, number>()
            let events: ReadonlyArray<string> = []
            const slowness = choose.pick([0, 0, 1500, 4000])
            const fiber = yield* Effect.forkChild(
              Stream.runForEach(Option.getOrThrow(stream), (bytes) => {
                const { complete, events: told, queues, removed } = read(bytes)
                const names = told.map(({ attempts, requestId, status }) => `${requestId} ${status} ${attempts}`)
                events = complete ? names : [...events, ...names]
                if (new Set(events).size < events.length) problem ??= `seed ${seed}: told twice: ${events.join(", ")}`
                if (complete) known.clear()
                for (const modelId of removed) known.delete(modelId)
                for (const { completed, modelId } of queues) known.set(modelId, completed)
                return slowness === 0 ? Effect.void : Effect.sleep(choose.int(0, slowness))
              }),
              { startImmediately: true }
            )
            return { fiber, known }
          })
          const readers: Array<Effect.Success<typeof begin>> = []
          for (let step = 0; step < 60; step++) {
            const chosen = choose.pick(models)
            switch (choose.int(0, 5)) {
              case 0:
                if (!registered.has(chosen.modelId)) {
                  registered.add(chosen.modelId)
                  yield* manager.registerQueue(chosen, processor)
                }
                break
              case 1:
                if (registered.delete(chosen.modelId)) yield* manager.unregisterQueue(chosen)
                break
              case 2:
                if (readers.length < 5) readers.push(yield* begin)
                else yield* Fiber.interrupt(readers.shift()!.fiber)
                break
              default:
                if (registered.has(chosen.modelId)) yield* Effect.forkChild(Effect.exit(manager.submit(chosen, 1)))
            }
            yield* TestClock.adjust(choose.pick([0, 0, 300, 1000, 2500]))
            if (step % 10 !== 9) continue
            // What waits goes on meanwhile, and then nothing happens.
            yield* TestClock.adjust("30 seconds")
            const infos = yield* manager.getAllQueuesInfo
            const there = new Map(Array.from(infos.values(), ({ completed, modelId }) => [modelId, completed]))
            for (const { known } of readers) assert.deepStrictEqual(known, there, `seed ${seed}, step ${step}`)
          }
          assert.isUndefined(problem)
          for (const { fiber } of readers) yield* Fiber.interrupt(fiber)
        }).pipe(Effect.scoped, seed % 2 === 0 ? slowly("100 millis") : (self) => self)
      }
    }).pipe(Effect.provide(Manager)), 60_000)
})
