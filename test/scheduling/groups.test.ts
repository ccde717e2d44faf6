import { assert, describe, it } from "@effect/vitest"
import { Duration, Effect, Fiber } from "effect"
import { ModelConfig, ModelGroup, ProviderProfile, QueueManager, RateLimiter } from "effect-llm-queue"
import { TestClock } from "effect/testing"
import * as random from "../model/random.ts"

/** Its end waits for nobody, so that a test can leave requests behind. */
const Manager = QueueManager.layerWith({ shutdown: { policy: "interrupt", deadline: 0 } })

interface Failure {
  readonly status: number
}

const one = ModelConfig.makeUntyped<string, string, Failure>("one", {
  rateLimiters: [RateLimiter.rpm(2)],
  provider: { ...ProviderProfile.generic, limits: {}, margin: 0 }
})
const two = ModelConfig.makeUntyped<string, string, Failure>("two", {
  rateLimiters: [RateLimiter.rpm(4)],
  provider: { ...ProviderProfile.generic, limits: {}, margin: 0 }
})

/** Both models, and what each was asked. */
const open = Effect.fnUntraced(function*(
  behaviours: { readonly one?: Effect.Effect<string, Failure>; readonly two?: Effect.Effect<string, Failure> } = {}
) {
  const manager = yield* QueueManager.QueueManager
  const asked: Array<string> = []
  for (const [model, behaviour] of [[one, behaviours.one], [two, behaviours.two]] as const) {
    yield* manager.registerQueue(model, (request) =>
      Effect.suspend(() => {
        asked.push(`${model.modelId} ${request.params}`)
        return behaviour ?? Effect.succeed(model.modelId)
      }))
  }
  return { manager, asked }
})

const group = ModelGroup.make([one, two])
const ordered = ModelGroup.make([one, two], { strategy: "ordered" })

describe("a group of models", () => {
  it.effect("sends a request to the one that can take it soonest, of equals to the first", () =>
    Effect.gen(function*() {
      yield* open()
      const models: Array<string> = []
      for (let i = 0; i < 6; i++) models.push((yield* ModelGroup.submit(group, `${i}`)).modelId)
      assert.deepStrictEqual(models, ["one", "one", "two", "two", "two", "two"])
      const ranks = yield* ModelGroup.rank(group)
      assert.deepStrictEqual(ranks.map(({ modelId, wait }) => [modelId, Duration.toSeconds(wait)]), [
        ["one", 60],
        ["two", 60]
      ])
    }).pipe(Effect.provide(Manager)))

  it.effect("in order goes to the first, until that cannot be in time", () =>
    Effect.gen(function*() {
      yield* open()
      const models: Array<string> = []
      for (let i = 0; i < 4; i++) {
        models.push((yield* ModelGroup.submit(ordered, `${i}`, { timeout: "10 seconds" })).modelId)
      }
      assert.deepStrictEqual(models, ["one", "one", "two", "two"])
      for (let i = 0; i < 2; i++) yield* ModelGroup.submit(ordered, `${i}`, { timeout: "10 seconds" })
      const error = yield* Effect.flip(ModelGroup.submit(ordered, "late", { timeout: "10 seconds" }))
      assert.deepInclude(error, { _tag: "QueueTimeout", modelId: "two", predictedWaitMillis: 60_000 })
    }).pipe(Effect.provide(Manager)))

  it.effect("goes on when the quota of one is exhausted, and stays away from it after that", () =>
    Effect.gen(function*() {
      const { asked } = yield* open({ one: Effect.fail({ status: 402 }) })
      for (let i = 0; i < 3; i++) assert.strictEqual((yield* ModelGroup.submit(ordered, `${i}`)).modelId, "two")
      assert.deepStrictEqual(asked, ["one 0", "two 0", "two 1", "two 2"])
    }).pipe(Effect.provide(Manager)))

  it.effect("goes on when the circuit breaker of one opens, also for what waits there", () =>
    Effect.gen(function*() {
      const { asked } = yield* open({ one: Effect.delay(Effect.fail({ status: 503 }), "1 second") })
      const fibers: Array<Fiber.Fiber<{ readonly modelId: string }, unknown>> = []
      for (const id of ["a", "b", "c"]) {
        fibers.push(yield* Effect.forkChild(ModelGroup.submit(ordered, id), { startImmediately: true }))
        yield* TestClock.adjust(0)
      }
      // c waits for the limit of one.
      assert.deepStrictEqual(asked, ["one a", "one b"])
      yield* TestClock.adjust("10 minutes")
      for (const fiber of fibers) assert.strictEqual((yield* Fiber.join(fiber)).modelId, "two")
      assert.isFalse(asked.includes("one c"))
    }).pipe(Effect.provide(Manager)))

  it.effect("does not go on after an error of the processor's own, unless it is told so", () =>
    Effect.gen(function*() {
      const { asked } = yield* open({ one: Effect.fail({ status: 418 }) })
      assert.deepStrictEqual(yield* Effect.flip(ModelGroup.submit(ordered, "a")), { status: 418 })
      const always = ModelGroup.make([one, two], { strategy: "ordered", fallbackOn: () => true })
      assert.strictEqual((yield* ModelGroup.submit(always, "b")).modelId, "two")
      assert.deepStrictEqual(asked, ["one a", "one b", "two b"])
    }).pipe(Effect.provide(Manager)))

  it.effect("fails with the last failure when all have failed, and for what no model can take", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      assert.deepInclude(yield* Effect.flip(ModelGroup.submit(group, "a")), { _tag: "ModelNotRegistered" })
      yield* open({ one: Effect.fail({ status: 402 }), two: Effect.fail({ status: 402 }) })
      assert.deepInclude(yield* Effect.flip(ModelGroup.submit(ordered, "a")), {
        _tag: "QuotaExhausted",
        modelId: "two"
      })
      assert.deepInclude(yield* Effect.flip(ModelGroup.submit(ordered, "a", { timeout: -1 })), {
        _tag: "InvalidRequest"
      })
      assert.deepInclude(yield* Effect.flip(ModelGroup.submit(ModelGroup.make<string, string, []>([]), "a")), {
        _tag: "ModelNotRegistered"
      })
      yield* manager.shutdownAll()
      assert.deepInclude(yield* Effect.flip(ModelGroup.submit(ordered, "a")), { _tag: "QueueShutdown" })
    }).pipe(Effect.provide(Manager)))

  it.effect("one timeout holds for all models together", () =>
    Effect.gen(function*() {
      yield* open({ one: Effect.delay(Effect.fail({ status: 402 }), "6 seconds"), two: Effect.never })
      const late = yield* Effect.forkChild(Effect.flip(ModelGroup.submit(ordered, "a", { timeout: "10 seconds" })), {
        startImmediately: true
      })
      yield* TestClock.adjust("9999 millis")
      assert.isUndefined(late.pollUnsafe())
      yield* TestClock.adjust("1 millis")
      assert.deepInclude(yield* Fiber.join(late), { _tag: "QueueTimeout", modelId: "two" })
    }).pipe(Effect.provide(Manager)))

  it.effect(
    "law: a request is in one model at a time, is served once, and interrupting it ends it everywhere",
    () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        for (let seed = 1; seed <= 40; seed++) {
          const choose = random.make(seed)
          const inside = new Map<string, number>()
          const served = new Map<string, number>()
          let problem: string | undefined
          const models = [0, 1, 2].map((index) =>
            ModelConfig.makeUntyped<string, string, Failure>(`s${seed} m${index}`, {
              rateLimiters: [RateLimiter.rpm(choose.int(1, 4), { timePeriod: "2 seconds" }), RateLimiter.concurrent(2)],
              provider: { ...ProviderProfile.generic, limits: {}, margin: 0 }
            })
          )
          for (const model of models) {
            yield* manager.registerQueue(model, ({ params }) =>
              Effect.gen(function*() {
                const count = (inside.get(params) ?? 0) + 1
                inside.set(params, count)
                if (count > 1) problem ??= `seed ${seed}: ${params} is in ${count} models`
                yield* Effect.sleep(choose.int(0, 500)).pipe(
                  Effect.ensuring(Effect.sync(() => inside.set(params, inside.get(params)! - 1)))
                )
                const status = choose.pick([200, 200, 200, 402, 503, 429, 418])
                if (status !== 200) return yield* Effect.fail({ status })
                served.set(params, (served.get(params) ?? 0) + 1)
                return "ok"
              }))
          }
          const all = ModelGroup.make(models, { strategy: choose.pick(["fastest", "ordered"]) })
          const fibers = new Map<string, Fiber.Fiber<unknown, unknown>>()
          for (let i = 0; i < 20; i++) {
            const options = choose.chance(0.5) ? { timeout: choose.int(1, 5000) } : {}
            fibers.set(`r${i}`, yield* Effect.forkChild(ModelGroup.submit(all, `r${i}`, options)))
            yield* TestClock.adjust(choose.int(0, 400))
            const [id, fiber] = choose.pick([...fibers])
            if (choose.chance(0.1)) {
              yield* Fiber.interrupt(fiber)
              yield* TestClock.adjust(0)
              if ((inside.get(id) ?? 0) > 0) problem ??= `seed ${seed}: ${id} goes on`
            }
          }
          yield* TestClock.adjust("1 hour")
          for (const [id, fiber] of fibers) {
            const exit = fiber.pollUnsafe()
            assert.isDefined(exit, `seed ${seed}: ${id} hangs`)
            if (exit._tag === "Success") assert.strictEqual(served.get(id), 1, `seed ${seed}: ${id}`)
          }
          assert.isUndefined(problem)
          for (const model of models) yield* manager.unregisterQueue(model)
        }
      }).pipe(Effect.provide(Manager)),
    60_000
  )
})
