import { assert, describe, it } from "@effect/vitest"
import { Clock, Deferred, Effect, type Fiber } from "effect"
import { ModelConfig, QueueManager, QueueRequest, RateLimiter } from "effect-llm-queue"
import { TestClock } from "effect/testing"

const Manager = QueueManager.layerWith({ shutdown: { policy: "interrupt" } })

type Run = Effect.Effect<unknown, unknown>

const model = (id: string, permits = 1) =>
  ModelConfig.makeUntyped<Run, unknown, unknown>(id, { rateLimiters: [RateLimiter.concurrent(permits)] })

/** Registers models whose parameters are what their processors do. */
const register = Effect.fnUntraced(function*(...models: ReadonlyArray<ReturnType<typeof model>>) {
  const manager = yield* QueueManager.QueueManager
  for (const each of models) yield* manager.registerQueue(each, ({ params }) => params)
  const go = (model: ModelConfig.ModelConfig<Run, unknown, unknown>, run: Run, id?: string) =>
    manager.submit(model, run, { id })
  const leave = (model: ModelConfig.ModelConfig<Run, unknown, unknown>, run: Run, id?: string) =>
    manager.submitRequest(QueueRequest.make(model, { params: run, id, waitForCompletion: false }))
  return { manager, go, leave }
})

/** How many are at work, and how many were at one time. */
const counter = () => {
  const state = { now: 0, most: 0 }
  const work = (millis: number) =>
    Effect.suspend(() => {
      state.most = Math.max(state.most, ++state.now)
      return Effect.ensuring(Effect.sleep(millis), Effect.sync(() => state.now--))
    })
  return { state, work }
}

const start = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.forkChild(effect, { startImmediately: true })

const endsIn = (millis: number, ...fibers: ReadonlyArray<Fiber.Fiber<unknown, unknown>>) =>
  Effect.gen(function*() {
    yield* TestClock.adjust(millis)
    for (const fiber of fibers) assert.isDefined(fiber.pollUnsafe(), "it hangs")
  })

describe("permits of nested requests", () => {
  it.effect("are not those of a request that does not wait", () =>
    Effect.gen(function*() {
      const A = model("a", 2)
      const { go, leave } = yield* register(A)
      const { state, work } = counter()
      const child = Effect.all([go(A, work(10)), go(A, work(10))], { concurrency: "unbounded" })
      const parent = yield* start(go(A, Effect.andThen(leave(A, child), work(1000))))
      yield* endsIn(2000, parent)
      // The parent, and one after the other on the permit of the child.
      assert.strictEqual(state.most, 2)
    }).pipe(Effect.provide(Manager)))

  it.effect("are those of requests that wait for each other's permits, in two queues", () =>
    Effect.gen(function*() {
      const A = model("a")
      const B = model("b")
      const { go } = yield* register(A, B)
      const a = counter()
      const b = counter()
      const both = [
        yield* start(go(A, Effect.andThen(a.work(10), go(B, b.work(10))))),
        yield* start(go(B, Effect.andThen(b.work(10), go(A, a.work(10)))))
      ]
      yield* endsIn(100, ...both)
      assert.deepStrictEqual([a.state.most, b.state.most], [1, 1])
    }).pipe(Effect.provide(Manager)))

  it.effect("are lent to nobody as long as something goes on that can end the wait", () =>
    Effect.gen(function*() {
      const A = model("a", 2)
      const B = model("b")
      const { go } = yield* register(A, B)
      const a = counter()
      const started: Array<number> = []
      const note = Effect.map(Clock.currentTimeMillis, (now) => started.push(now))
      const fibers = [
        yield* start(go(A, Effect.andThen(Effect.sleep(10), go(B, Effect.void)))),
        yield* start(go(A, a.work(1000))),
        yield* start(go(B, Effect.andThen(Effect.sleep(10), go(A, note))))
      ]
      yield* endsIn(2000, ...fibers)
      assert.deepStrictEqual(started, [1000])
    }).pipe(Effect.provide(Manager)))

  it.effect("are found in a circle that is closed elsewhere, by waiting for what another one has submitted", () =>
    Effect.gen(function*() {
      const A = model("a")
      const B = model("b")
      const C = model("c")
      const { go, leave, manager } = yield* register(A, B, C)
      const close = yield* Deferred.make<void>()
      const fibers = [
        yield* start(go(A, Effect.andThen(Effect.sleep(10), go(B, Effect.void)))),
        // It waits for one that is being processed, and that waits for the permit of the first.
        yield* start(go(B, Effect.andThen(Deferred.await(close), manager.awaitCompletion(C, "c")))),
        yield* start(leave(C, Effect.andThen(Effect.sleep(20), go(A, Effect.void)), "c"))
      ]
      yield* TestClock.adjust(100)
      yield* Deferred.succeed(close, undefined)
      yield* endsIn(0, ...fibers)
    }).pipe(Effect.provide(Manager)))

  it.effect("are found in a circle that is closed by waiting for room, for the end or only for acceptance", () =>
    Effect.gen(function*() {
      for (const waits of [true, false]) {
        const full = { rateLimiters: [RateLimiter.concurrent(1)], capacity: 1 }
        const A = ModelConfig.makeUntyped<Run, unknown, unknown>(`a ${waits}`, full)
        const B = model(`b ${waits}`)
        const { go, leave } = yield* register(A, B)
        const more: Run = waits ? go(A, Effect.void) : leave(A, Effect.void)
        const again = Effect.andThen(Effect.sleep(10), more)
        const fibers = [
          yield* start(go(A, Effect.andThen(leave(B, again), go(B, Effect.void)))),
          // It has the room that the others wait for.
          yield* start(go(A, Effect.void))
        ]
        yield* endsIn(100, ...fibers)
      }
    }).pipe(Effect.provide(Manager)))

  it.effect("are found when what else a processor has waited for has ended", () =>
    Effect.gen(function*() {
      const A = model("a")
      const B = model("b")
      const C = model("c")
      const { go } = yield* register(A, B, C)
      const two = Effect.all([go(B, Effect.void), go(C, Effect.sleep(100))], { concurrency: "unbounded" })
      const fibers = [
        yield* start(go(A, Effect.andThen(Effect.sleep(10), two))),
        yield* start(go(B, Effect.andThen(Effect.sleep(10), go(A, Effect.void))))
      ]
      yield* TestClock.adjust(50)
      assert.isUndefined(fibers[0]!.pollUnsafe())
      yield* endsIn(100, ...fibers)
    }).pipe(Effect.provide(Manager)))

  it.effect("are found when a processor gives up one of two waits", () =>
    Effect.gen(function*() {
      const A = model("a")
      const B = model("b")
      const C = model("c")
      const { go, leave, manager } = yield* register(A, B, C)
      yield* leave(C, Effect.never, "never")
      const given = Effect.timeoutOption(manager.awaitCompletion(C, "never"), 100)
      const two = Effect.all([go(B, Effect.void), given], { concurrency: "unbounded" })
      const fibers = [
        yield* start(go(A, Effect.andThen(Effect.sleep(10), two))),
        yield* start(go(B, Effect.andThen(Effect.sleep(10), go(A, Effect.void))))
      ]
      yield* endsIn(200, ...fibers)
    }).pipe(Effect.provide(Manager)))
})

describe("a request that a processor does not wait for any longer", () => {
  it.effect("waits like any other one, in a pause and for its turn", () =>
    Effect.gen(function*() {
      const A = model("a")
      const { go, leave, manager } = yield* register(A)
      const order: Array<string> = []
      const note = (name: string) => Effect.sync(() => order.push(name))
      const first = yield* start(go(
        A,
        Effect.gen(function*() {
          yield* leave(A, note("child"), "child")
          yield* leave(A, note("sibling"), "sibling")
          yield* manager.pauseQueue(A)
          // What lends the permit is at work itself.
          yield* start(go(A, Effect.sleep(50)))
          yield* Effect.sleep(1)
          yield* Effect.timeoutOption(manager.awaitCompletion(A, "sibling"), 10)
          yield* Effect.sleep(100)
          order.push("parent")
        })
      ))
      yield* endsIn(200, first)
      assert.deepStrictEqual(order, ["parent"])
      yield* manager.resumeQueue(A)
      yield* TestClock.adjust(0)
      assert.deepStrictEqual(order, ["parent", "child", "sibling"])
    }).pipe(Effect.provide(Manager)))
})

describe("a circle of requests", () => {
  it.effect("that await each other fails and does not hang, whoever has submitted them", () =>
    Effect.gen(function*() {
      const A = ModelConfig.makeUntyped<Run, unknown, unknown>("a", { rateLimiters: "unlimited" })
      const { go, manager } = yield* register(A)
      const awaits = (id: string) => Effect.result(manager.awaitCompletion(A, id))
      const second: Run = Effect.delay(awaits("first"), 2000)
      const fibers = [
        yield* start(go(A, go(A, second, "second"))),
        yield* start(go(A, Effect.delay(awaits("second"), 1000), "first"))
      ]
      yield* endsIn(3000, ...fibers)
    }).pipe(Effect.provide(Manager)))
})
