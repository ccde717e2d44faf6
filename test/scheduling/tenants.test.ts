import { assert, describe, it } from "@effect/vitest"
import { Clock, Effect, Fiber } from "effect"
import { ModelConfig, ProviderProfile, QueueManager, QueueRequest, RateLimiter } from "effect-llm-queue"
import { TestClock } from "effect/testing"
import * as random from "../model/random.ts"

/** Its end waits for nobody, so that a test can leave requests behind. */
const Manager = QueueManager.layerWith({ shutdown: { policy: "interrupt", deadline: 0 } })

const tokens = (n: number) => ({ estimatedInputTokens: n, estimatedOutputTokens: 0 })

/** A model whose processor takes `params` milliseconds, and what it was given, when. */
const open = Effect.fnUntraced(function*(
  options: ModelConfig.Options<number, string> & ModelConfig.Limits
) {
  const manager = yield* QueueManager.QueueManager
  const Model = ModelConfig.makeUntyped<number, string>("model", options)
  const started: Array<{ readonly at: number; readonly id: string; readonly tenant: string }> = []
  yield* manager.registerQueue(Model, (request) =>
    Effect.gen(function*() {
      started.push({ at: yield* Clock.currentTimeMillis, id: request.id, tenant: request.tenant ?? "" })
      if (request.params > 0) yield* Effect.sleep(request.params)
      return "ok"
    }))
  const submit = (id: string, tenant: string | undefined, options?: QueueRequest.RequestOptions, params = 0) =>
    manager.submitRequest(QueueRequest.make(Model, { ...options, id, tenant, params, waitForCompletion: false }))
  const ids = () => started.map(({ id }) => id)
  const count = (tenant: string) => started.filter((each) => each.tenant === tenant).length
  return { manager, Model, started, submit, ids, count }
})

describe("tenants", () => {
  it.effect("share a limit by their weights, whatever their priorities and numbers of requests", () =>
    Effect.gen(function*() {
      const { count, submit } = yield* open({
        rateLimiters: [RateLimiter.rpm(1, { timePeriod: "1 second" })],
        tenants: { byId: { b: { weight: 2 } } }
      })
      for (let i = 0; i < 200; i++) yield* submit(`a${i}`, "a", { priority: "high" })
      for (let i = 0; i < 80; i++) yield* submit(`b${i}`, "b", { priority: "low" })
      for (let i = 0; i < 30; i++) yield* submit(`none${i}`, undefined)
      yield* TestClock.adjust("59 seconds")
      assert.deepStrictEqual([count("a"), count("b"), count("")], [15, 30, 15])
    }).pipe(Effect.provide(Manager)))

  it.effect("are charged by the largest part of a limit that a request takes", () =>
    Effect.gen(function*() {
      const { started, submit } = yield* open({
        rateLimiters: [RateLimiter.rpm(60), RateLimiter.tpm(6000), RateLimiter.concurrent(1)],
        tenants: { byId: {} }
      })
      // One request is all of the permits: the tokens do not matter.
      for (let i = 0; i < 10; i++) yield* submit(`a${i}`, "a", tokens(400), 10)
      for (let i = 0; i < 10; i++) yield* submit(`b${i}`, "b", tokens(1), 10)
      yield* TestClock.adjust("100 millis")
      const tenants = started.slice(0, 10).map(({ tenant }) => tenant)
      assert.strictEqual(tenants.filter((tenant) => tenant === "a").length, 5)
    }).pipe(Effect.provide(Manager)))

  it.effect("one that is held by a limit of its own holds nobody else, and goes when that fits", () =>
    Effect.gen(function*() {
      const { started, submit } = yield* open({
        rateLimiters: [RateLimiter.rpm(100)],
        tenants: { byId: { a: { rateLimiters: [RateLimiter.rpm(2, { timePeriod: "10 seconds" })] } } }
      })
      for (let i = 0; i < 5; i++) yield* submit(`a${i}`, "a")
      for (let i = 0; i < 5; i++) yield* submit(`b${i}`, "b")
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(started.filter(({ tenant }) => tenant === "a").map(({ at }) => at), [
        0,
        0,
        10_000,
        10_000,
        20_000
      ])
      assert.isTrue(started.every(({ at, tenant }) => tenant === "a" || at === 0))
    }).pipe(Effect.provide(Manager)))

  it.effect("one that is held goes on at once with another first request that fits", () =>
    Effect.gen(function*() {
      const { Model, ids, manager, submit } = yield* open({
        rateLimiters: [RateLimiter.rpm(100)],
        tenants: { others: { rateLimiters: [RateLimiter.tpm(100)] } }
      })
      yield* submit("first", "a", tokens(60))
      yield* TestClock.adjust(0)
      yield* submit("large", "a", tokens(50))
      yield* submit("small", "a", tokens(10))
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(ids(), ["first"])
      yield* submit("small and before it", "a", { ...tokens(10), priority: "high" })
      yield* TestClock.adjust(0)
      assert.deepStrictEqual(ids(), ["first", "small and before it"])
      yield* manager.cancelRequest(Model, "large")
      yield* TestClock.adjust(0)
      assert.deepStrictEqual(ids(), ["first", "small and before it", "small"])
      yield* submit("large again", "a", tokens(50))
      yield* submit("small again", "a", tokens(10))
      yield* TestClock.adjust(0)
      yield* manager.changePriority(Model, "small again", "high")
      yield* TestClock.adjust(0)
      assert.strictEqual(ids().at(-1), "small again")
    }).pipe(Effect.provide(Manager)))

  it.effect("permits of a tenant come back however its requests end", () =>
    Effect.gen(function*() {
      const { Model, ids, manager, submit } = yield* open({
        rateLimiters: [RateLimiter.concurrent(10)],
        tenants: { others: { rateLimiters: [RateLimiter.concurrent(1)] } }
      })
      yield* submit("ends", "a", {}, 1000)
      yield* submit("is cancelled", "a", {}, 1000)
      yield* submit("takes too long", "a", { processingTimeout: "1 second" }, 5000)
      yield* submit("goes", "a", {}, 1000)
      yield* submit("of another", "b", {}, 1000)
      yield* TestClock.adjust(0)
      assert.deepStrictEqual(ids(), ["ends", "of another"])
      yield* TestClock.adjust(1000)
      assert.deepStrictEqual(ids().slice(2), ["is cancelled"])
      yield* manager.cancelRequest(Model, "is cancelled")
      yield* TestClock.adjust(0)
      assert.deepStrictEqual(ids().slice(3), ["takes too long"])
      yield* TestClock.adjust(1000)
      assert.deepStrictEqual(ids().slice(4), ["goes"])
    }).pipe(Effect.provide(Manager)))

  it.effect("an agent of a tenant with one permit does not wait for itself", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Agent = ModelConfig.makeUntyped<number, number, string>("agent", {
        rateLimiters: [RateLimiter.concurrent(5)],
        tenants: { others: { rateLimiters: [RateLimiter.concurrent(1)] } }
      })
      yield* manager.registerQueue(Agent, (request) =>
        request.params === 0 ? Effect.succeed(0) : Effect.map(
          Effect.all([
            manager.submit(Agent, request.params - 1, { tenant: "a" }),
            manager.submit(Agent, request.params - 1, { tenant: "a" })
          ], { concurrency: 2 }),
          ([left, right]) => 1 + left.result + right.result
        ).pipe(Effect.mapError(String)))
      const response = yield* manager.submit(Agent, 4, { tenant: "a" })
      assert.strictEqual(response.result, 15)
    }).pipe(Effect.provide(Manager)))

  it.effect("a part that is guaranteed is kept, and beyond it a tenant takes its share of the rest", () =>
    Effect.gen(function*() {
      const { count, submit } = yield* open({
        rateLimiters: [RateLimiter.tpm(1000)],
        tenants: { byId: { a: { guaranteed: 0.3 } } }
      })
      for (let i = 0; i < 20; i++) yield* submit(`b${i}`, "b", tokens(100))
      yield* TestClock.adjust("1 second")
      assert.strictEqual(count("b"), 7)
      for (let i = 0; i < 10; i++) yield* submit(`a${i}`, "a", tokens(100))
      yield* TestClock.adjust("1 second")
      assert.strictEqual(count("a"), 3)
      assert.strictEqual(count("b"), 7)
      // What a uses of its part nobody else may use; the rest is shared.
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual([count("a"), count("b")], [3 + 5, 7 + 5])
    }).pipe(Effect.provide(Manager)))

  it.effect("permits that are guaranteed are kept, and the rest is taken by whoever comes", () =>
    Effect.gen(function*() {
      const { count, submit } = yield* open({
        rateLimiters: [RateLimiter.concurrent(4)],
        tenants: { byId: { a: { guaranteed: 0.5 } } }
      })
      for (let i = 0; i < 6; i++) yield* submit(`b${i}`, "b", {}, 10_000)
      yield* TestClock.adjust(0)
      assert.strictEqual(count("b"), 2)
      for (let i = 0; i < 6; i++) yield* submit(`a${i}`, "a", {}, 1000)
      yield* TestClock.adjust(0)
      assert.strictEqual(count("a"), 2)
      yield* TestClock.adjust(9999)
      assert.deepStrictEqual([count("a"), count("b")], [6, 2])
    }).pipe(Effect.provide(Manager)))

  it.effect("a request larger than a limit of its tenant fails when it is submitted", () =>
    Effect.gen(function*() {
      const { submit } = yield* open({
        rateLimiters: [RateLimiter.tpm(1000)],
        tenants: { others: { rateLimiters: [RateLimiter.tpm(100)] }, byId: { big: {} } }
      })
      const error = yield* Effect.flip(submit("a", "a", tokens(200)))
      assert.strictEqual(error._tag, "RequestTooLarge")
      yield* submit("b", "big", tokens(200))
    }).pipe(Effect.provide(Manager)))

  it.effect("a request that needs what is kept for others fails when it is submitted", () =>
    Effect.gen(function*() {
      const { count, submit } = yield* open({
        rateLimiters: [RateLimiter.tpm(1000), RateLimiter.rpm(3), RateLimiter.concurrent(1)],
        // Of what comes in ones only whole ones are kept: no request and no permit.
        tenants: { byId: { a: { guaranteed: 0.3 } } }
      })
      const error = yield* Effect.flip(submit("too large", "b", tokens(701)))
      assert.deepInclude(error, { _tag: "RequestTooLarge", limit: 700, requested: 701 })
      yield* submit("b", "b", tokens(700))
      yield* submit("a", "a", tokens(1000))
      yield* TestClock.adjust("2 minutes")
      assert.deepStrictEqual([count("a"), count("b")], [1, 1])
    }).pipe(Effect.provide(Manager)))

  it.effect("what is kept holds nobody up for ever when the limit is lowered", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<string, string, { readonly status: number }>("model", {
        rateLimiters: [RateLimiter.rpm(2, { timePeriod: "1 second" })],
        provider: { ...ProviderProfile.generic, limits: {}, margin: 0 },
        tenants: { byId: { a: { guaranteed: 0.5 } } }
      })
      let attempts = 0
      yield* manager.registerQueue(Model, () => attempts++ === 0 ? Effect.fail({ status: 429 }) : Effect.succeed("ok"))
      const fiber = yield* Effect.forkChild(manager.submit(Model, "", { tenant: "b" }))
      yield* TestClock.adjust("10 seconds")
      assert.strictEqual((yield* Fiber.join(fiber)).attempts, 2)
    }).pipe(Effect.provide(Manager)))

  it.effect("every problem of their configuration is named", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Model = ModelConfig.makeUntyped<number, string>("model", {
        rateLimiters: [RateLimiter.rpm(1)],
        bypass: -1,
        tenants: {
          byId: {
            "": { weight: 0 },
            a: { guaranteed: 0.8, rateLimiters: [RateLimiter.rpm(0)] },
            b: { guaranteed: 0.3 }
          },
          others: { weight: Number.NaN }
        }
      })
      const error = yield* Effect.flip(manager.registerQueue(Model, () => Effect.succeed("")))
      assert(error._tag === "InvalidConfiguration")
      for (
        const name of ["bypass", "[\"\"]", ".weight", "rateLimiters[0].limit", "guaranteed, which", "others.weight"]
      ) {
        assert.isTrue(error.problems.some((problem) => problem.includes(name)), `${name}: ${error.problems.join("\n")}`)
      }
    }).pipe(Effect.provide(Manager)))

  it.effect(
    "law: while two tenants wait, their served shares by weight differ by at most a largest request of each",
    () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        for (let seed = 1; seed <= 40; seed++) {
          const choose = random.make(seed)
          const names = ["a", "b", "c"]
          const weights = Object.fromEntries(names.map((name) => [name, choose.pick([0.3, 1, 2, 5])]))
          const largest = Object.fromEntries(names.map((name) => [name, choose.pick([10, 40, 100])]))
          const Model = ModelConfig.makeUntyped<string, string>(`model${seed}`, {
            rateLimiters: [
              RateLimiter.tpm(100, { timePeriod: "1 second", algorithm: choose.pick(["slidingWindow", "tokenBucket"]) })
            ],
            bypass: choose.pick([0, 16]),
            tenants: { byId: Object.fromEntries(names.map((name) => [name, { weight: weights[name] }])) }
          })
          const served: Record<string, number> = { a: 0, b: 0, c: 0 }
          const left: Record<string, number> = { a: 0, b: 0, c: 0 }
          let problem: string | undefined
          let counting = false
          yield* manager.registerQueue(Model, (request) =>
            Effect.sync(() => {
              const tenant = request.tenant!
              left[tenant]!--
              served[tenant]! += counting ? request.estimatedInputTokens! : 0
              for (const a of names) {
                for (const b of names) {
                  if (![a, b].every((name) => left[name]! > 0)) continue
                  const apart = Math.abs(served[a]! / weights[a]! - served[b]! / weights[b]!)
                  const most = largest[a]! / weights[a]! + largest[b]! / weights[b]!
                  if (apart > most + 1e-6) problem ??= `seed ${seed}: ${a} and ${b} are ${apart} apart, at most ${most}`
                }
              }
              return "ok"
            }))
          for (let i = 0; i < 120; i++) {
            const tenant = choose.pick(names)
            left[tenant]!++
            yield* manager.submitRequest(QueueRequest.make(Model, {
              params: "",
              tenant,
              priority: choose.pick([0, 50, -20]),
              waitForCompletion: false,
              ...tokens(Math.ceil(largest[tenant]! * choose.pick([0.05, 0.5, 1])))
            }))
          }
          // All of them wait from here on.
          counting = true
          yield* TestClock.adjust("20 seconds")
          assert.isUndefined(problem)
          assert.isAbove(served["a"]! + served["b"]! + served["c"]!, 500, `seed ${seed}`)
          yield* manager.unregisterQueue(Model)
        }
      }).pipe(Effect.provide(Manager)),
    60_000
  )

  it.effect(
    "law: a tenant never uses more than its limits, nor what is kept for another",
    () =>
      Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        for (let seed = 1; seed <= 40; seed++) {
          const choose = random.make(seed)
          const chargedAt = choose.pick<RateLimiter.ChargedAt>(["dispatch", "completion"])
          const own = choose.int(20, 60)
          const Model = ModelConfig.makeUntyped<number, string>(`model${seed}`, {
            rateLimiters: [RateLimiter.tpm(100, { timePeriod: "1 second", chargedAt }), RateLimiter.concurrent(6)],
            tenants: {
              byId: { kept: { guaranteed: 0.3 } },
              others: { rateLimiters: [RateLimiter.tpm(own, { timePeriod: "1 second" }), RateLimiter.concurrent(2)] }
            }
          })
          const charges: Array<{ readonly at: number; readonly tenant: string; readonly amount: number }> = []
          const running: Record<string, number> = { kept: 0, a: 0, b: 0 }
          let problem: string | undefined
          yield* manager.registerQueue(Model, (request) =>
            Effect.gen(function*() {
              const at = yield* Clock.currentTimeMillis
              const tenant = request.tenant!
              charges.push({ at, tenant, amount: request.estimatedInputTokens! })
              running[tenant]!++
              const sum = (names: ReadonlyArray<string>) =>
                charges.filter((each) => each.at > at - 1000 && names.includes(each.tenant))
                  .reduce((sum, { amount }) => sum + amount, 0)
              if (tenant !== "kept" && sum([tenant]) > own) problem ??= `seed ${seed}: ${tenant} used ${sum([tenant])}`
              if (tenant !== "kept" && running[tenant]! > 2) problem ??= `seed ${seed}: ${running[tenant]} of ${tenant}`
              if (sum(["a", "b"]) > 70) problem ??= `seed ${seed}: the others used ${sum(["a", "b"])}`
              // A third of six, rounded down, is kept.
              if (running["a"]! + running["b"]! > 5) problem ??= `seed ${seed}: too many of the others run`
              yield* Effect.sleep(request.params).pipe(Effect.ensuring(Effect.sync(() => running[tenant]!--)))
              return "ok"
            }))
          for (let i = 0; i < 60; i++) {
            yield* manager.submitRequest(QueueRequest.make(Model, {
              params: choose.pick([0, 1, 300]),
              tenant: choose.pick(["kept", "a", "b"]),
              waitForCompletion: false,
              ...tokens(choose.int(1, 20))
            }))
            if (choose.chance(0.3)) yield* TestClock.adjust(choose.int(1, 300))
          }
          yield* TestClock.adjust("60 seconds")
          assert.isUndefined(problem)
          assert.strictEqual(charges.length, 60, `seed ${seed}: all have gone`)
          yield* manager.unregisterQueue(Model)
        }
      }).pipe(Effect.provide(Manager)),
    60_000
  )
})

describe("priorities", () => {
  it.effect("law: under a flood of the highest, the lowest waits its boost and the work ahead, and no longer", () =>
    Effect.gen(function*() {
      const { Model, manager, started, submit } = yield* open({
        rateLimiters: [RateLimiter.rpm(5, { timePeriod: "1 second", algorithm: "tokenBucket", burst: 1 })],
        capacity: 20,
        strategy: "reject"
      })
      const boost = 120_000
      // Ahead of it at its submission.
      for (let i = 0; i < 10; i++) yield* submit(`ahead${i}`, undefined, { priority: "high" })
      const low = yield* Effect.forkChild(manager.submit(Model, 0, { id: "low", priority: "low" }), {
        startImmediately: true
      })
      let floods = 0
      // Twice what is admitted, until after the bound.
      for (let at = 0; at < 130_000; at += 200) {
        yield* submit(`flood${floods++}`, undefined, { priority: "high" }).pipe(Effect.ignore)
        yield* submit(`flood${floods++}`, undefined, { priority: "high" }).pipe(Effect.ignore)
        yield* TestClock.adjust(200)
      }
      yield* Fiber.join(low)
      const { at } = started.find(({ id }) => id === "low")!
      // Whatever came within the boost, as far as the queue has room for it, and what was ahead before.
      const bound = boost + (20 + 1) / 5 * 1000
      assert.isAtMost(at, bound)
      assert.isAbove(at, boost)
    }).pipe(Effect.provide(Manager)))
})

describe("bypass", () => {
  it.effect("a smaller request goes before one that is blocked, if that is not delayed by it", () =>
    Effect.gen(function*() {
      const { started, submit } = yield* open({ rateLimiters: [RateLimiter.tpm(100), RateLimiter.rpm(100)] })
      yield* submit("first", undefined, tokens(60))
      yield* TestClock.adjust("10 seconds")
      yield* submit("second", undefined, tokens(20))
      yield* TestClock.adjust("10 seconds")
      // 20 are left; at 60 s 80 are.
      yield* submit("large", undefined, tokens(70))
      yield* submit("too much for it", undefined, tokens(11))
      yield* submit("small", undefined, tokens(10))
      yield* submit("none", undefined, tokens(0))
      yield* TestClock.adjust("2 minutes")
      const at = Object.fromEntries(started.map(({ at, id }) => [id, at]))
      assert.deepStrictEqual(at, {
        first: 0,
        second: 10_000,
        small: 20_000,
        none: 20_000,
        large: 60_000,
        "too much for it": 70_000
      })
    }).pipe(Effect.provide(Manager)))

  it.effect("goes as soon as a smaller one fits, without an event", () =>
    Effect.gen(function*() {
      const { started, submit } = yield* open({ rateLimiters: [RateLimiter.tpm(100)] })
      yield* submit("a", undefined, tokens(30))
      yield* TestClock.adjust("10 seconds")
      yield* submit("b", undefined, tokens(70))
      yield* submit("large", undefined, tokens(60))
      yield* submit("small", undefined, tokens(30))
      yield* TestClock.adjust("2 minutes")
      // 30 are free at 60 s, and 100 at 70 s: then 60 and 30.
      assert.deepStrictEqual(started.map(({ at, id }) => `${id} ${at}`), [
        "a 0",
        "b 10000",
        "small 60000",
        "large 70000"
      ])
    }).pipe(Effect.provide(Manager)))

  it.effect("leaves a permit for the first one", () =>
    Effect.gen(function*() {
      const { ids, submit } = yield* open({ rateLimiters: [RateLimiter.tpm(100), RateLimiter.concurrent(2)] })
      yield* submit("used", undefined, tokens(60))
      yield* TestClock.adjust(0)
      yield* submit("large", undefined, tokens(50), 600_000)
      yield* submit("small 1", undefined, tokens(5), 600_000)
      yield* submit("small 2", undefined, tokens(5), 600_000)
      yield* TestClock.adjust("59 seconds")
      assert.deepStrictEqual(ids(), ["used", "small 1"])
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(ids(), ["used", "small 1", "large"])
    }).pipe(Effect.provide(Manager)))

  it.effect("at most so many pass, and none when it is turned off", () =>
    Effect.gen(function*() {
      for (const bypass of [0, 3]) {
        const { Model, count, manager, submit } = yield* open({ rateLimiters: [RateLimiter.tpm(100)], bypass })
        yield* submit("used", undefined, tokens(60))
        yield* TestClock.adjust(0)
        yield* submit("large", "small", tokens(50))
        for (let i = 0; i < 8; i++) yield* submit(`small ${i}`, "small", tokens(1))
        yield* TestClock.adjust("59 seconds")
        assert.strictEqual(count("small"), bypass)
        yield* manager.unregisterQueue(Model)
      }
    }).pipe(Effect.provide(Manager)))

  it.effect("law: nobody that passes makes the first one later than it would have been", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      for (let seed = 1; seed <= 60; seed++) {
        const choose = random.make(seed)
        const algorithm = choose.pick<RateLimiter.Algorithm>(["slidingWindow", "tokenBucket", "fixedWindow", "paced"])
        const limits = [
          RateLimiter.tpm(100, { timePeriod: "10 seconds", algorithm }),
          RateLimiter.rpm(8, { timePeriod: "4 seconds", ...(choose.chance(0.5) ? { algorithm } : {}) })
        ]
        const history = Array.from(
          { length: choose.int(1, 6) },
          () => [choose.int(1, 40), choose.int(0, 3000)] as const
        )
        const large = choose.int(40, 100)
        const small = Array.from({ length: 8 }, () => choose.int(0, 30))
        const startOf = Effect.fnUntraced(function*(name: string, withSmall: boolean) {
          const Model = ModelConfig.makeUntyped<string, string>(name, { rateLimiters: limits })
          let started: number | undefined
          let passed = 0
          yield* manager.registerQueue(Model, (request) =>
            Effect.map(Clock.currentTimeMillis, (now) => {
              if (request.id === "large") started = now
              else if (request.id.startsWith("small") && started === undefined) passed++
              return "ok"
            }))
          const submit = (id: string, amount: number) =>
            manager.submitRequest(
              QueueRequest.make(Model, { id, params: "", waitForCompletion: false, ...tokens(amount) })
            )
          const begin = yield* Clock.currentTimeMillis
          for (const [index, [amount, gap]] of history.entries()) {
            yield* submit(`history ${index}`, amount)
            yield* TestClock.adjust(gap)
          }
          yield* submit("large", large)
          if (withSmall) { for (const [index, amount] of small.entries()) yield* submit(`small ${index}`, amount) }
          // The same phase of fixed windows each time.
          yield* TestClock.adjust(120_000 - (yield* Clock.currentTimeMillis) + begin)
          yield* manager.unregisterQueue(Model)
          return { started, passed }
        })
        const alone = yield* startOf(`alone ${seed}`, false)
        const among = yield* startOf(`among ${seed}`, true)
        assert.isDefined(alone.started)
        assert.isAtMost(among.started! - 120_000, alone.started + 1e-3, `seed ${seed}: ${algorithm}`)
      }
    }).pipe(Effect.provide(Manager)), 60_000)
})
