/** What processes that share limits owe each other, on virtual time. */
import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import { Clock, Context, Duration, Effect, Exit, Layer, Scope } from "effect"
import { ModelConfig, QueueManager, RateLimiter } from "effect-llm-queue"
import * as QueueRedis from "effect-llm-queue/Redis"
import { Redis as EffectRedis } from "effect/persistence"
import { TestClock } from "effect/testing"
import { Redis } from "ioredis"
import process from "node:process"
import { BucketMeter } from "../../src/internal/meters/bucketMeter.ts"
import { random } from "../laws/schedule.ts"
import { limit } from "../limit.ts"
import { refusal, says } from "../refusals/limiter.ts"
import * as instant from "./instant.ts"
import { hasRedis, url } from "./server.ts"

const name = `sharing:${process.pid}:${Math.random().toString(36)}`
const scope = Scope.makeUnsafe()
let count = 0
let connection: ReturnType<typeof instant.connection> | undefined
let client: Redis | undefined

beforeAll(() =>
  hasRedis
    ? Effect.runPromise(Scope.provide(
      Effect.map(url, (url) => {
        connection = instant.connection(url)
        client = new Redis(url)
      }),
      scope
    ))
    : undefined
)
afterAll(() => {
  connection?.close()
  client?.disconnect()
  return Effect.runPromise(Scope.close(scope, Exit.void))
})

const newPrefix = () => `${name}:${count++}`

const keysOf = (prefix: string) => Effect.promise(() => client!.keys(`{${prefix}:*`))

const calm = Effect.forEach(Array.from({ length: 40 }), () => Effect.yieldNow, { discard: true })

const pass = (millis: number, step = 1000): Effect.Effect<void> =>
  Effect.suspend(() => {
    const by = Math.min(millis, step)
    const first = Effect.andThen(TestClock.adjust(by), calm)
    return by === millis ? first : Effect.andThen(first, pass(millis - by, step))
  })

/**
 * A process: what it says is on its way for `delay` milliseconds, and nowhere when it is dead; what the server answers is on
 * its way for `back`, and does not come `lost` times.
 */
const start = Effect.fnUntraced(function*(prefix: string, options?: QueueRedis.Options) {
  const state = { isDead: false, delay: 0, back: 0, lost: 0 }
  const service = connection!.service(yield* Clock.Clock)
  const redis = {
    ...service,
    eval: (script: Parameters<typeof service.eval>[0]) => (...params: ReadonlyArray<unknown>) =>
      Effect.suspend(() => {
        if (state.isDead) return Effect.never
        const answer = Effect.tap(service.eval(script)(...params), () => {
          if (state.lost === 0) return Effect.void
          state.lost--
          return Effect.fail(new EffectRedis.RedisError({ cause: new Error("the connection is lost") }))
        })
        const { back } = state
        const heard = back === 0 ? answer : Effect.flatMap(answer, (said) => Effect.delay(Effect.succeed(said), back))
        return state.delay === 0 ? heard : Effect.delay(heard, state.delay)
      })
  }
  const own = yield* Scope.make()
  yield* Effect.addFinalizer(() =>
    Effect.andThen(
      Effect.sync(() => {
        state.isDead = true
      }),
      Effect.forkDetach(Scope.close(own, Exit.void))
    )
  )
  const layer = QueueRedis.layer({ prefix, margin: 0, commandTimeout: "1 hour", ...options }).pipe(
    Layer.provide(Layer.succeed(EffectRedis.Redis, redis as unknown as EffectRedis.Redis["Service"]))
  )
  const context = yield* Layer.buildWithScope(Layer.fresh(layer), own)
  const limiters = Context.get(context, RateLimiter.RateLimiter)
  const make = (limits: ReadonlyArray<RateLimiter.Limit>, tenants?: RateLimiter.Tenants) =>
    Scope.provide(limiters.make("model", limits, tenants), own)
  return { state, make, context, scope: own }
})

const cost = (inputTokens: number) => ({ inputTokens, outputTokens: 0 })

const granted = (admission: RateLimiter.Admission): RateLimiter.Reservation => {
  assert(admission._tag === "Admitted", admission._tag)
  return admission.reservation
}

const waitOf = (admission: RateLimiter.Admission): number => {
  assert(admission._tag === "Blocked", admission._tag)
  return admission.wait
}

const used = (limiter: RateLimiter.Limiter) => Effect.map(limiter.usage, (usages) => usages.map(({ used }) => used))

describe.runIf(hasRedis)("processes that share limits", () => {
  it.effect("are refused options that mean nothing", () =>
    Effect.gen(function*() {
      for (
        const options of [
          { lease: Number.NaN },
          { lease: 0 },
          { lease: Duration.infinity },
          { margin: -1 },
          { margin: Duration.infinity },
          { commandTimeout: 0 },
          { prefix: "" },
          { prefix: "a\ud800" },
          { whenAway: "panic" as never },
          { onConflict: "both" as never }
        ] satisfies ReadonlyArray<QueueRedis.Options>
      ) {
        const { make } = yield* start(newPrefix(), options)
        const error = yield* Effect.flip(make([limit("rpm", 1)]))
        assert.strictEqual(error._tag, "InvalidConfiguration", JSON.stringify(options))
      }
    }))

  it.effect("may be several managers of one, and one that registers again", () =>
    Effect.gen(function*() {
      const { make } = yield* start(newPrefix())
      const limits = [limit("concurrent", 2), limit("rpm", 10)]
      const [one, two] = [yield* make(limits), yield* make(limits)]
      granted(yield* one.admit(cost(1), true))
      granted(yield* two.admit(cost(1), true))
      assert.strictEqual(waitOf(yield* one.admit(cost(1), true)), Number.POSITIVE_INFINITY)
      yield* one.releasePermit
      yield* calm
      // It was the first in the line.
      granted(yield* one.admit(cost(1), true))
      assert.deepStrictEqual(yield* used(one), [2, 3])
      assert.deepStrictEqual(yield* used(yield* make(limits)), [2, 3])
    }))

  it.effect("keep what they have of a tenant, however long that counts, and leave nothing for ever", () =>
    Effect.gen(function*() {
      const prefix = `{${newPrefix()}`
      const { make } = yield* start(prefix)
      const tenants: RateLimiter.Tenants = {
        byId: new Map(),
        others: [limit("rpd", 5, { timePeriod: 86_400_000 }), limit("concurrent", 1)]
      }
      const limiter = yield* make(
        [limit("rpm", 100), limit("tpm", 100, { chargedAt: "completion" }), limit("concurrent", 1)],
        tenants
      )
      granted(yield* limiter.admit(cost(1), true, { tenant: "a b}" }))
      waitOf(yield* limiter.admit(cost(1), true, { tenant: "c" }))
      yield* calm
      const keys = yield* Effect.promise(() => client!.keys(`*${name}*`))
      const mine = keys.filter((key) => key.includes(prefix.slice(1)))
      const times = yield* Effect.promise(() => Promise.all(mine.map((key) => client!.pttl(key))))
      for (const [index, key] of mine.entries()) assert.isAbove(times[index]!, 0, key)
      const ofDay = mine.findIndex((key) => key.includes("rpd"))
      assert.isAbove(times[ofDay]!, 86_400_000, mine[ofDay])
    }))

  it.effect("count a tenant's requests for as long as they run, and hand its permit on at once", () =>
    Effect.gen(function*() {
      const prefix = newPrefix()
      const { make } = yield* start(prefix, { lease: 600 })
      const tenants: RateLimiter.Tenants = { byId: new Map(), others: [limit("concurrent", 1)] }
      const limiter = yield* make([limit("rpm", 100)], tenants)
      const first = granted(yield* limiter.admit(cost(1), true, { tenant: "a" }))
      // The server forgets by its own clock.
      yield* TestClock.withLive(Effect.sleep(700))
      yield* pass(300, 100)
      yield* TestClock.withLive(Effect.sleep(700))
      assert.strictEqual(waitOf(yield* limiter.admit(cost(1), true, { tenant: "a" })), Number.POSITIVE_INFINITY)
      yield* limiter.complete(first)
      granted(yield* limiter.admit(cost(1), true, { tenant: "a" }))
    }))

  it.effect("date what a dead one held when its lease is over, of a tenant too that nobody has asked about", () =>
    Effect.gen(function*() {
      const prefix = newPrefix()
      const tenants: RateLimiter.Tenants = {
        byId: new Map(),
        others: [limit("tpm", 100, { timePeriod: 10_000, chargedAt: "completion" })]
      }
      const limits = [limit("tpm", 1000, { timePeriod: 10_000, chargedAt: "completion" }), limit("concurrent", 1)]
      const dies = yield* start(prefix)
      const lives = yield* start(prefix)
      const [one, two] = [yield* dies.make(limits, tenants), yield* lives.make(limits, tenants)]
      granted(yield* one.admit(cost(80), true, { tenant: "a" }))
      dies.state.isDead = true
      assert.strictEqual(waitOf(yield* two.admit(cost(1), true)), Number.POSITIVE_INFINITY)
      yield* pass(31_000)
      assert.deepStrictEqual(yield* used(two), [80, 0])
      const wait = waitOf(yield* two.admit(cost(50), true, { tenant: "a" }))
      assert.isTrue(wait > 5000 && wait < 10_020, `${wait}`)
      yield* pass(11_000)
      granted(yield* two.admit(cost(50), true, { tenant: "a" }))
    }))

  it.effect("wait a while, and not for ever, for what others hold", () =>
    Effect.gen(function*() {
      const prefix = newPrefix()
      const limits = [limit("tpm", 100, { chargedAt: "completion" })]
      const one = yield* (yield* start(prefix)).make(limits)
      const two = yield* (yield* start(prefix)).make(limits)
      const mine = granted(yield* one.admit(cost(80), true))
      assert.strictEqual(waitOf(yield* two.admit(cost(50), true)), 1000)
      assert.strictEqual(waitOf(yield* one.admit(cost(50), true)), Number.POSITIVE_INFINITY)
      yield* one.giveBack(mine, true)
      yield* calm
      granted(yield* two.admit(cost(50), true))
    }))

  it.effect("count once what several of them see that strangers use, each time that it is more", () =>
    Effect.gen(function*() {
      const prefix = newPrefix()
      const limits = [limit("tpm", 1000, { timePeriod: 60_000 })]
      const processes = [yield* start(prefix), yield* start(prefix)] as const
      const [one, two] = [yield* processes[0].make(limits), yield* processes[1].make(limits)]
      const mine = granted(yield* one.admit(cost(10), true))
      const theirs = granted(yield* two.admit(cost(10), true))
      yield* one.observe(mine, says("tpm", 1000 - 10 - 100 / 3))
      yield* two.observe(theirs, says("tpm", 1000 - 20 - 100 / 3))
      // Neither of them has heard of the other.
      for (const { state } of processes) state.delay = 10
      yield* pass(100, 10)
      for (const { state } of processes) state.delay = 0
      assert.closeTo((yield* used(two))[0]!, 20 + 100 / 3, 1e-6)
      const next = granted(yield* two.admit(cost(10), true))
      yield* two.observe(next, says("tpm", 1000 - 30 - 200 / 3))
      yield* calm
      assert.closeTo((yield* used(one))[0]!, 30 + 200 / 3, 1e-6)
    }))

  it.effect("all wait when the provider asks one of them to, and enforce what it was told", () =>
    Effect.gen(function*() {
      const prefix = newPrefix()
      for (const algorithm of ["slidingWindow", "tokenBucket"] as const) {
        const limits = [
          limit("rpm", 100, { timePeriod: 60_000, algorithm, burst: algorithm === "tokenBucket" ? 10 : undefined })
        ]
        const one = yield* (yield* start(`${prefix}:${algorithm}`)).make(limits)
        const two = yield* (yield* start(`${prefix}:${algorithm}`)).make(limits)
        const mine = granted(yield* one.admit(cost(1), true))
        yield* one.refuse(mine, refusal({ types: ["rpm"], limit: 50, used: 5, retryAfter: 2000 }), [])
        yield* calm
        const wait = waitOf(yield* two.admit(cost(1), true))
        assert.isTrue(wait >= 2000 && wait <= 2050, `${wait}`)
        yield* pass(2100, 100)
        const isBucket = algorithm === "tokenBucket"
        for (let i = 0; i < (isBucket ? 10 : 45); i++) granted(yield* two.admit(cost(1), true))
        assert.strictEqual((yield* one.usage)[0]!.enforced, 50)
        // A bucket is refilled as slowly as the one who was told knows.
        const next = waitOf(yield* two.admit(cost(1), true))
        if (isBucket) assert.closeTo(next, 1200, 1)
      }
    }))

  it.effect("count what they hear of late from when they hear of it, in every algorithm", () =>
    Effect.gen(function*() {
      for (const algorithm of ["slidingWindow", "tokenBucket", "fixedWindow", "paced"] as const) {
        const { make, state } = yield* start(newPrefix(), { margin: 50 })
        const limiter = yield* make([
          limit("tpm", 100, { timePeriod: 1000, algorithm, burst: algorithm === "paced" ? 100 : undefined })
        ])
        // In the middle of a window of the calendar.
        yield* TestClock.adjust(1000 - (yield* Clock.currentTimeMillis) % 1000 + 300)
        state.back = 400
        const fiber = yield* Effect.forkChild(limiter.admit(cost(80), true))
        yield* calm
        state.back = 0
        yield* pass(400, 50)
        const exit = fiber.pollUnsafe()
        assert(exit !== undefined && Exit.isSuccess(exit))
        const mine = granted(exit.value)
        // A window of the calendar ends when it ends.
        const wait = algorithm === "fixedWindow" ? 350 : algorithm === "tokenBucket" ? 650 : 1050
        assert.closeTo(waitOf(yield* limiter.admit(cost(80), true)), wait, 2, algorithm)
        assert.closeTo((yield* used(limiter))[0]!, 80, 1e-6, algorithm)
        // It can still be settled, where it is now.
        yield* limiter.settle(mine, cost(10))
        yield* calm
        assert.closeTo((yield* used(limiter))[0]!, 10, 1e-6, algorithm)
      }
    }))

  it.effect("ask again when they hear so late that others may have been let in in their place", () =>
    Effect.gen(function*() {
      for (const algorithm of ["slidingWindow", "tokenBucket", "fixedWindow"] as const) {
        const prefix = newPrefix()
        const stands = yield* start(prefix, { margin: 0 })
        const goes = yield* start(prefix, { margin: 0 })
        const limits = [limit("rpm", 10, { timePeriod: 1000, algorithm })]
        const [one, two] = [yield* stands.make(limits), yield* goes.make(limits)]
        yield* TestClock.adjust(1000 - (yield* Clock.currentTimeMillis) % 1000 + 300)
        // Then it knows the time there.
        yield* used(one)
        stands.state.back = algorithm === "fixedWindow" ? 800 : 1500
        const fiber = yield* Effect.forkChild(one.admitAll!(Array.from({ length: 10 }, () => ({ cost: cost(1) }))))
        yield* calm
        stands.state.back = 0
        yield* pass(algorithm === "fixedWindow" ? 750 : 1100, 50)
        // All that there is is theirs by now.
        let others = 0
        while ((yield* two.admit(cost(1), false))._tag === "Admitted") others++
        assert.isAbove(others, 0)
        yield* pass(1000, 50)
        const exit = fiber.pollUnsafe()
        assert(exit !== undefined && Exit.isSuccess(exit))
        assert.deepStrictEqual(exit.value.map(({ _tag }) => _tag), ["Blocked"], algorithm)
        // Nothing is kept of it.
        yield* pass(2000, 100)
        assert.strictEqual((yield* used(two))[0], 0, algorithm)
      }
    }))

  it.effect(
    "have as much of a bucket as one process has in memory, whatever is given back and in whichever order",
    () =>
      Effect.gen(function*() {
        for (let seed = 1; seed <= 10; seed++) {
          const { between, chance, pick } = random(seed)
          const prefix = newPrefix()
          const limits = [limit("tpm", 100, { timePeriod: 1000, algorithm: "tokenBucket" })]
          const limiters = yield* Effect.forEach(
            [1, 2],
            () => Effect.flatMap(start(prefix), ({ make }) => make(limits))
          )
          const now = yield* Clock.currentTimeMillis
          const meter = new BucketMeter({ burst: 100, rate: 0.1, now })
          const sent: Array<{
            readonly by: RateLimiter.Limiter
            readonly at: number
            readonly amount: number
            readonly mark: ReturnType<BucketMeter["charge"]>
            readonly reservation: RateLimiter.Reservation
          }> = []
          const said: Array<string> = []
          for (let step = 0; step < 120; step++) {
            const at = yield* Clock.currentTimeMillis
            const one = pick(sent)
            const dice = between(0, 3)
            if (dice < 2) {
              const amount = between(1, 30)
              // Nobody is to wait: who waits is let in before others.
              if (meter.available(at) < amount + 1e-6) {
                continue
              }
              const by = pick(limiters)
              const reservation = granted(yield* by.admit(cost(amount), true))
              sent.push({ by, at, amount, mark: meter.charge(amount, at), reservation })
              said.push(`${at - now}: ${amount}`)
            } else if (dice === 2 && one !== undefined) {
              sent.splice(sent.indexOf(one), 1)
              if (at - one.at >= 1000) continue
              if (chance(0.6)) {
                yield* one.by.giveBack(one.reservation, true)
                meter.adjust(one.mark, -one.amount, at)
                said.push(`${at - now}: ${one.amount} of ${one.at - now} is given back`)
              } else {
                const uses = between(0, 40)
                yield* one.by.settle(one.reservation, cost(uses))
                meter.adjust(one.mark, uses - one.amount, at)
                said.push(`${at - now}: ${one.amount} of ${one.at - now} uses ${uses}`)
              }
              yield* calm
            } else yield* pass(between(1, 300))
            const [mine] = yield* used(limiters[0]!)
            const theirs = meter.used(yield* Clock.currentTimeMillis)
            assert.closeTo(mine!, theirs, 1e-6, `${seed}\n${said.join("\n")}`)
          }
        }
      }),
    60_000
  )

  it.effect("go on with a share of their own while the server is away, and tell it when it is back", () =>
    Effect.gen(function*() {
      const prefix = newPrefix()
      const options = { commandTimeout: 100, whenAway: "share", lease: 3000 } as const
      const limits = [limit("rpm", 10, { timePeriod: 8000 }), limit("concurrent", 4)]
      const processes = yield* Effect.forEach([1, 2], () => start(prefix, options))
      const limiters = yield* Effect.forEach(processes, ({ make }) => make(limits))
      yield* pass(1500, 100)
      const sent: Array<number> = []
      const sendAll = Effect.fnUntraced(function*(limiter: RateLimiter.Limiter) {
        for (let i = 0; i < 20; i++) {
          const asked = yield* Effect.forkChild(limiter.admit(cost(1), true))
          yield* pass(300, 100)
          const exit = asked.pollUnsafe()
          assert(exit !== undefined && Exit.isSuccess(exit))
          if (exit.value._tag !== "Admitted") return
          sent.push(yield* Clock.currentTimeMillis)
          yield* limiter.complete(exit.value.reservation)
          yield* limiter.releasePermit
        }
      })
      for (const limiter of limiters) {
        for (let i = 0; i < 5; i++) {
          granted(yield* limiter.admit(cost(1), true))
          yield* limiter.releasePermit
        }
      }
      for (const { state } of processes) state.lost = Number.POSITIVE_INFINITY
      // What each finds out first.
      for (const limiter of limiters) {
        const asked = yield* Effect.forkChild(limiter.admit(cost(1), true))
        yield* pass(200, 100)
        assert.isDefined(asked.pollUnsafe())
      }
      const from = yield* Clock.currentTimeMillis
      // Until something has just been sent, so that it counts when the server is back.
      for (let at = from; at < from + 28_000 || sent.at(-1)! < at - 1000; at = yield* Clock.currentTimeMillis) {
        for (const limiter of limiters) yield* sendAll(limiter)
        yield* pass(100, 100)
      }
      // Nothing for a window, and then no more than the limit in any.
      assert.isAbove(sent.length, 10)
      assert.isAtLeast(sent[0]!, from + 7500)
      for (const [index, at] of sent.entries()) {
        const first = sent[index - 10]
        if (first !== undefined) assert.isAtLeast(at - first, 8000)
      }
      for (const { state } of processes) state.lost = 0
      // It is asked again within two seconds. Then what was sent last counts, and all wait until all can have told.
      let usage = (yield* limiters[0]!.usage)[0]!
      for (let i = 0; i < 25 && usage.pausedFor === undefined; i++) {
        yield* pass(100, 100)
        usage = (yield* limiters[0]!.usage)[0]!
      }
      assert.isDefined(usage.pausedFor)
      assert.isAbove(usage.used, 0)
      waitOf(yield* limiters[0]!.admit(cost(1), true))
      yield* pass(16_000, 100)
      for (const limiter of limiters) granted(yield* limiter.admit(cost(1), true))
    }))

  it.effect("do once what they say twice, because they have not heard that it was done", () =>
    Effect.gen(function*() {
      const { make, state } = yield* start(newPrefix())
      const limiter = yield* make([
        limit("tpm", 100, { timePeriod: 60_000, chargedAt: "completion" }),
        limit("rpm", 100, { timePeriod: 60_000 }),
        limit("concurrent", 9)
      ])
      state.lost = 2
      const asked = yield* limiter.admit(cost(10), true)
      assert.strictEqual(asked._tag, "Unavailable")
      yield* pass(5000, 50)
      // It was let in, and given back when that was heard.
      assert.deepStrictEqual(yield* used(limiter), [0, 0, 0])
      const mine = granted(yield* limiter.admit(cost(10), true))
      state.lost = 2
      yield* limiter.settle(mine, cost(40))
      yield* limiter.complete(mine)
      yield* limiter.releasePermit
      yield* pass(5000, 50)
      assert.deepStrictEqual(yield* used(limiter), [40, 1, 0])
    }))

  it.effect("adopt what one of them changes, all of them, and it stays", () =>
    Effect.gen(function*() {
      const prefix = newPrefix()
      const [rpm, more] = [[limit("rpm", 1)], [limit("rpm", 3)]]
      const one = yield* (yield* start(prefix)).make(rpm)
      const two = yield* (yield* start(prefix)).make(rpm)
      const error = yield* Effect.flip((yield* start(prefix)).make(more))
      assert(error._tag === "LimitConflict")
      assert.strictEqual(error.processes, 2)
      yield* one.update(more)
      granted(yield* two.admit(cost(1), true))
      granted(yield* two.admit(cost(1), true))
      granted(yield* one.admit(cost(1), true))
      waitOf(yield* two.admit(cost(1), true))
      yield* pass(16_000)
      for (const limiter of [one, two]) assert.strictEqual((yield* limiter.usage)[0]!.limit, 3)
      const three = yield* (yield* start(prefix)).make(more)
      assert.strictEqual((yield* three.usage)[0]!.limit, 3)
    }))

  it.effect("tell a server that has lost everything what they have sent, before they ask", () =>
    Effect.gen(function*() {
      const prefix = newPrefix()
      const limits = [
        limit("rpm", 4, { timePeriod: 60_000 }),
        limit("budget", 1, {
          timePeriod: Number.POSITIVE_INFINITY,
          price: { input: 1e6, cachedInput: 0, output: 0 },
          onExceeded: "fail"
        }),
        limit("concurrent", 9)
      ]
      const one = yield* (yield* start(prefix)).make(limits)
      const two = yield* (yield* start(prefix)).make(limits)
      for (const limiter of [one, one, two]) granted(yield* limiter.admit(cost(0.2), true))
      const keys = yield* keysOf(prefix)
      assert.isNotEmpty(keys)
      yield* Effect.promise(() => client!.del(...keys))
      const [first] = yield* one.admitAll!(Array.from({ length: 4 }, () => ({ cost: cost(0.1) })))
      assert.strictEqual(first!._tag, "Blocked")
      yield* pass(16_000)
      assert.deepStrictEqual((yield* used(two)).map((n) => Math.round(n * 10) / 10), [3, 0.6, 3])
      granted(yield* two.admit(cost(0.4), true))
      assert.strictEqual((yield* one.admit(cost(0.1), true))._tag, "Blocked")
    }))

  it.effect("tell it also when the first that they say is that the limits change, and all adopt those", () =>
    Effect.gen(function*() {
      const prefix = newPrefix()
      const limits = [limit("rpm", 4, { timePeriod: 60_000 })]
      const one = yield* (yield* start(prefix)).make(limits)
      const two = yield* (yield* start(prefix)).make(limits)
      for (const limiter of [one, one, two]) granted(yield* limiter.admit(cost(1), true))
      const keys = yield* keysOf(prefix)
      yield* Effect.promise(() => client!.del(...keys))
      yield* two.update([limit("rpm", 5, { timePeriod: 60_000 })])
      waitOf(yield* one.admit(cost(1), true))
      yield* pass(16_000)
      for (const limiter of [one, two]) {
        const [usage] = yield* limiter.usage
        assert.deepInclude(usage, { limit: 5, used: 3 })
      }
      granted(yield* one.admit(cost(1), true))
      granted(yield* two.admit(cost(1), true))
      waitOf(yield* one.admit(cost(1), true))
    }))

  it.effect(
    "tell a server that has lost everything what they hold, before anybody is let in, whoever is back first",
    () =>
      Effect.gen(function*() {
        const concurrent = limit("concurrent", 4)
        for (
          const { limits, tenants } of [
            { limits: [concurrent], tenants: undefined },
            { limits: [limit("rpm", 4, { timePeriod: 60_000 })], tenants: undefined },
            // Not one is refilled meanwhile.
            { limits: [limit("rpm", 4, { timePeriod: 120_000, algorithm: "tokenBucket" })], tenants: undefined },
            { limits: [], tenants: { byId: new Map(), others: [concurrent] } }
          ]
        ) {
          const prefix = newPrefix()
          const processes = yield* Effect.forEach([1, 2], () => start(prefix, { commandTimeout: 100, lease: 1500 }))
          const [one, two] = yield* Effect.forEach(processes, ({ make }) => make(limits, tenants))
          const ask = (limiter: RateLimiter.Limiter) => limiter.admit(cost(1), true, { tenant: "a" })
          for (const limiter of [one!, one!, two!, two!]) granted(yield* ask(limiter))
          for (const { state } of processes) state.isDead = true
          yield* pass(5000, 100)
          const keys = yield* keysOf(prefix)
          yield* Effect.promise(() => client!.del(...keys))
          processes[0]!.state.isDead = false
          // The other one finds out later, as far as pauses go.
          for (let i = 0; i < 8; i++) {
            yield* pass(500, 100)
            assert.notStrictEqual((yield* ask(one!))._tag, "Admitted")
          }
          processes[1]!.state.isDead = false
          yield* pass(12_000, 100)
          for (const limiter of [one!, two!]) assert.strictEqual((yield* ask(limiter))._tag, "Blocked")
        }
      }),
    30_000
  )

  it.effect(
    "hold what they have while nobody can reach the server, however long that is",
    () =>
      Effect.gen(function*() {
        const prefix = newPrefix()
        const limits = [limit("rpd", 8, { timePeriod: 20_000, chargedAt: "completion" }), limit("concurrent", 4)]
        const tenants = { byId: new Map(), others: [limit("concurrent", 2)] }
        const lease = 6000
        const processes = yield* Effect.forEach([1, 2], () => start(prefix, { commandTimeout: 100, lease }))
        const [one, two] = yield* Effect.forEach(processes, ({ make }) => make(limits, tenants))
        const ask = (limiter: RateLimiter.Limiter, tenant: string) => limiter.admit(cost(1), true, { tenant })
        granted(yield* ask(one!, "a"))
        const theirs = [granted(yield* ask(two!, "b")), granted(yield* ask(two!, "b"))]
        for (const { state } of processes) state.isDead = true
        yield* pass(lease + 3000, 100)
        processes[0]!.state.isDead = false
        yield* pass(2500, 100)
        // Of four there is one.
        assert.strictEqual((yield* ask(one!, "b"))._tag, "Blocked")
        granted(yield* ask(one!, "a"))
        assert.strictEqual((yield* ask(one!, "c"))._tag, "Blocked")
        processes[1]!.state.isDead = false
        yield* pass(10_000, 100)
        assert.strictEqual((yield* ask(one!, "c"))._tag, "Blocked")
        // What was charged when it ended has its date then, and not when the server was away.
        for (const reservation of theirs) {
          yield* two!.complete(reservation)
          yield* two!.releasePermit
        }
        yield* pass(18_000)
        const [first] = yield* one!.usage
        assert.strictEqual(first!.used, 4)
        // Who does not come back loses it all the same.
        yield* pass(10_000)
        processes[0]!.state.isDead = true
        yield* pass(lease + 1000)
        for (let i = 0; i < 4; i++) granted(yield* ask(two!, `${i}`))
      }),
    30_000
  )

  it.effect("all go on, whoever dies: nobody starves", () =>
    Effect.gen(function*() {
      const prefix = newPrefix()
      const Model = ModelConfig.makeUntyped<number, void>("model", {
        rateLimiters: [RateLimiter.rpm(6, { timePeriod: 1000 }), RateLimiter.concurrent(3)],
        tenants: { others: { rateLimiters: [RateLimiter.concurrent(1)] } }
      })
      const processes = yield* Effect.forEach(Array.from({ length: 5 }), () => start(prefix, { lease: "3 seconds" }))
      const done = processes.map(() => 0)
      for (const [index, { context, scope }] of processes.entries()) {
        const layer = Layer.provide(
          QueueManager.layerWith({ shutdown: { policy: "interrupt", deadline: 0 } }),
          Layer.succeedContext(context)
        )
        const manager = Context.get(
          yield* Layer.buildWithScope(Layer.fresh(layer), scope),
          QueueManager.QueueManager
        )
        yield* Scope.provide(
          manager.registerQueue(Model, () => Effect.andThen(Effect.sleep(130), Effect.sync(() => void done[index]!++))),
          scope
        )
        for (let i = 0; i < 60; i++) {
          yield* Effect.forkChild(Effect.exit(manager.submit(Model, i, { tenant: `t${i % 3}` })))
        }
      }
      yield* pass(4000, 50)
      for (const [index, n] of done.entries()) assert.isAtLeast(n, 2, `${index}: ${done.join()}`)
      assert.isAbove(done.reduce((sum, n) => sum + n, 0), 18, done.join())
      for (const index of [0, 1]) processes[index]!.state.isDead = true
      yield* pass(4000, 50)
      const before = [...done]
      yield* pass(6000, 50)
      for (const index of [2, 3, 4]) {
        assert.isAtLeast(done[index]! - before[index]!, 6, `${before.join()}, ${done.join()}`)
      }
    }), 60_000)
})
