/** Whose limits they are, how fast traffic may rise, what an abort leaves behind, and what the books remember. */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, Schema } from "effect"
import { TestClock } from "effect/testing"
import { ProviderSimulator } from "../../src/testing/index.ts"
import type { Rules } from "../../src/testing/internal/charging.ts"
import * as ledger from "../../src/testing/internal/ledger.ts"

type Provider = ProviderSimulator.ProviderSimulator["Service"]

const paths = {
  chat: "/v1/chat/completions",
  messages: "/v1/messages",
  gemini: "/v1beta/models/m:generateContent",
  azure: "/openai/deployments/m/chat/completions"
}

const chat = (model = "m"): ProviderSimulator.ChatRequest => ({
  model,
  messages: [{ role: "user", content: "Hello there" }],
  max_tokens: 10
})
const geminiBody = { contents: [{ parts: [{ text: "Hello there" }] }] }

const ask = (provider: Provider, path: string, body: object, headers: Record<string, string> = {}) =>
  Effect.scoped(Effect.map(
    provider.handle({ method: "POST", path, headers, body: JSON.stringify(body) }),
    ({ body, headers, status }) => ({ status, headers, json: JSON.parse(body as string) })
  ))

const minute = 60_000

describe("keys", () => {
  const requests = (limit: number, scope?: "key" | "project" | "org") =>
    ({ dimension: "requests", limit, scope }) as const

  const as = (provider: Provider, key: string, model = "m") =>
    Effect.map(ask(provider, paths.chat, chat(model), { authorization: `Bearer ${key}` }), ({ status }) => status)

  it.effect("each key, project and organization has limits of its own", () =>
    Effect.gen(function*() {
      const keys = { a: { project: "p" }, b: { project: "p" }, c: { project: "q" }, d: { org: "other" } }
      const admitted = (scope: "key" | "project" | "org" | undefined) =>
        Effect.gen(function*() {
          const provider = yield* ProviderSimulator.make({ models: { m: [requests(2, scope)] }, keys })
          const counts: Record<string, number> = {}
          for (const key of ["a", "b", "c", "d"]) {
            const statuses = yield* Effect.replicateEffect(as(provider, key), 3)
            counts[key] = statuses.filter((status) => status === 200).length
          }
          const { models: [report] } = yield* provider.report()
          return [counts, report?.limits.map(({ net, owner }) => [owner, net])]
        })
      assert.deepStrictEqual(yield* admitted("key"), [{ a: 2, b: 2, c: 2, d: 2 }, [["a", 2], ["b", 2], ["c", 2], [
        "d",
        2
      ]]])
      assert.deepStrictEqual(yield* admitted("project"), [
        { a: 2, b: 0, c: 2, d: 2 },
        [["p", 2], ["q", 2], ["project of d", 2]]
      ])
      const byOrganization = [{ a: 2, b: 0, c: 0, d: 2 }, [["org-simulator", 2], ["other", 2]]]
      assert.deepStrictEqual(yield* admitted("org"), byOrganization)
      assert.deepStrictEqual(yield* admitted(undefined), byOrganization)
    }))

  it.effect("are found where each provider has them, and others are turned away before they arrive", () =>
    Effect.gen(function*() {
      const provider = yield* ProviderSimulator.make({ models: { m: [] }, keys: { good: {} } })
      const errorOf = (path: string, body: object, headers: Record<string, string> = {}) =>
        Effect.map(ask(provider, path, body, headers), ({ json, status }) => [
          status,
          json.error?.type ?? json.error?.status ?? json.error?.code ?? "served"
        ])
      assert.deepStrictEqual(yield* errorOf(paths.chat, chat(), { Authorization: "Bearer good" }), [200, "served"])
      assert.deepStrictEqual(yield* errorOf(paths.messages, chat(), { "x-api-key": "good" }), [200, "served"])
      assert.deepStrictEqual(yield* errorOf(paths.azure, chat(), { "api-key": "good" }), [200, "served"])
      assert.deepStrictEqual(yield* errorOf(paths.gemini, geminiBody, { "x-goog-api-key": "good" }), [200, "served"])
      assert.deepStrictEqual(yield* errorOf(`${paths.gemini}?key=good`, geminiBody), [200, "served"])
      assert.deepStrictEqual((yield* provider.arrivals).map(({ key }) => key), ["good", "good", "good", "good", "good"])

      assert.deepStrictEqual(yield* errorOf(paths.chat, chat(), { authorization: "Bearer bad" }), [
        401,
        "invalid_request_error"
      ])
      assert.deepStrictEqual(yield* errorOf(paths.chat, chat(), { authorization: "Bearer toString" }), [
        401,
        "invalid_request_error"
      ])
      assert.deepStrictEqual(yield* errorOf(paths.chat, {}), [401, "invalid_request_error"])
      assert.deepStrictEqual(yield* errorOf(paths.messages, chat()), [401, "authentication_error"])
      assert.deepStrictEqual(yield* errorOf(paths.azure, chat()), [401, "401"])
      assert.deepStrictEqual(yield* errorOf(paths.gemini, geminiBody), [401, "UNAUTHENTICATED"])
      assert.strictEqual((yield* provider.arrivals).length, 5)
    }))

  it.effect("without any, every key will do and all are one", () =>
    Effect.gen(function*() {
      const provider = yield* ProviderSimulator.make({ models: { m: [requests(1, "key")] } })
      assert.deepStrictEqual([yield* as(provider, "a"), yield* as(provider, "b")], [200, 429])
      const [arrival] = yield* provider.arrivals
      assert.isUndefined(arrival?.key)
      assert.isUndefined((yield* provider.report()).models[0]?.limits[0]?.owner)
    }))

  it.effect("in process the first one asks", () =>
    Effect.gen(function*() {
      const provider = yield* ProviderSimulator.make({ models: { m: [requests(1, "key")] }, keys: { a: {}, b: {} } })
      yield* provider.complete({ model: "m", messages: [{ role: "user", content: "Hello" }] })
      assert.deepStrictEqual([yield* as(provider, "a"), yield* as(provider, "b")], [429, 200])
      assert.deepStrictEqual((yield* provider.levels("m", "b")).map(({ remaining }) => remaining), [0])
    }))

  it.effect("stale headers show what the same key saw", () =>
    Effect.gen(function*() {
      const provider = yield* ProviderSimulator.make({
        models: { m: { limits: [requests(10, "key")], staleHeaders: "1 hour" } },
        keys: { a: {}, b: {} }
      })
      const remaining = (key: string) =>
        Effect.map(
          ask(provider, paths.chat, chat(), { "api-key": key }),
          ({ headers }) => headers["x-ratelimit-remaining-requests"]
        )
      yield* provider.complete({ model: "m", messages: [{ role: "user", content: "Hello" }] })
      assert.deepStrictEqual([yield* remaining("a"), yield* remaining("b"), yield* remaining("a")], ["8", "9", "8"])
    }))

  it.effect("a foreign load takes from the limits of its key, and a change of limits meets all", () =>
    Effect.gen(function*() {
      const provider = yield* ProviderSimulator.make({ models: { m: [requests(10, "key")] }, keys: { a: {}, b: {} } })
      const left = Effect.map(
        Effect.all([provider.levels("m", "a"), provider.levels("m", "b")]),
        (levels) => levels.map(([level]) => level?.remaining)
      )
      yield* provider.foreign("m", { rpm: 60, tpm: 60, key: "b" })
      yield* TestClock.adjust("3 seconds")
      assert.deepStrictEqual(yield* left, [10, 7])
      yield* provider.setLimits("m", { scale: 0.5 })
      assert.deepStrictEqual(yield* left, [5, 2])
    }))
})

describe("groups", () => {
  const pooled = (limit: number) => ({ dimension: "requests", limit, group: "family" }) as const

  it.effect("models of a group share a limit, beside those of their own", () =>
    Effect.gen(function*() {
      const provider = yield* ProviderSimulator.make({
        models: {
          a: [pooled(3), { dimension: "tokens", limit: 20 }],
          b: [pooled(99)],
          c: [{ ...pooled(1), period: "1 hour" }],
          d: [{ ...pooled(1), group: "other" }]
        }
      })
      const status = (model: string) =>
        Effect.map(ask(provider, paths.chat, chat(model), { "x-sim-output-tokens": "9" }), ({ status }) => status)
      assert.deepStrictEqual([yield* status("a"), yield* status("b"), yield* status("b"), yield* status("b")], [
        200,
        200,
        200,
        429
      ])
      assert.deepStrictEqual([yield* status("a"), yield* status("c"), yield* status("d")], [429, 200, 200])
      const { models } = yield* provider.report()
      assert.deepStrictEqual(
        models.map(({ admitted, limits, model }) => [
          model,
          admitted,
          limits.map(({ charged, limit, net, refused }) => [limit, charged, net, refused])
        ]),
        [
          ["a", 1, [[3, 3, 3, 2], [20, 16, 15, 0]]],
          ["b", 2, [[3, 3, 3, 2]]],
          ["c", 1, [[1, 1, 1, 0]]],
          ["d", 1, [[1, 1, 1, 0]]]
        ]
      )
    }))

  it("slots of a group are counted together, by the books as well", () => {
    const slots = { dimension: "concurrent", limit: 2, period: Infinity, group: "family" } as const
    const books = ledger.make({ models: { a: { limits: [slots] }, b: { limits: [slots] } } })
    const admit = (model: string, at: number) => books.admit(model, { input: 1, maxOutput: 1 }, at)
    const first = admit("a", 0)
    admit("b", 100)
    assert.strictEqual(admit("a", 100)?.refusal?.dimension, "concurrent")
    books.complete(first?.id ?? 0, 1, 200)
    assert.isUndefined(admit("b", 300)?.refusal)
    books.abort(2, 400)
    for (const report of books.report(500, undefined, 500).models) {
      // 200 + 300 + 200 ms of slots, of 2 * 500
      assert.deepInclude(report.limits[0], { charged: 3, net: 1, worstWindow: 2, utilisation: 0.7 })
    }
  })
})

describe("a ramp", () => {
  interface Charged {
    readonly at: number
    readonly amount: number
  }

  const rateAt = (charged: ReadonlyArray<Charged>, t: number) =>
    charged.filter(({ at }) => at > t - minute && at <= t).reduce((sum, { amount }) => sum + amount, 0)

  it.effect.prop(
    "admits what keeps to the floor, or to the factor of the highest minute of the period before",
    {
      requests: Schema.Array(Schema.Struct({
        gap: Schema.Literals([0, 1000, 7000, 20_000, 45_000, 60_000, 200_000]),
        amount: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 60 }))
      })).check(Schema.isMinLength(40), Schema.isMaxLength(120)),
      factor: Schema.Literals([1.5, 2]),
      period: Schema.Literals([180_000, 900_000])
    },
    ({ factor, period, requests }) =>
      Effect.sync(() => {
        const floor = 50
        const books = ledger.make({
          models: { m: { limits: [], accel: { dimension: "input", factor, floor, period } } }
        })
        const charged: Array<Charged> = []
        let now = 0
        for (const { amount, gap } of requests) {
          now += gap
          const rates = charged.filter(({ at }) => at > now - minute - period && at <= now - minute)
            .map(({ at }) => rateAt(charged, at))
          const limit = Math.max(floor, factor * Math.max(0, ...rates))
          const rate = rateAt(charged, now)
          const refusal = books.admit("m", { input: amount, maxOutput: 1 }, now)?.refusal
          assert.strictEqual(refusal === undefined, rate + amount <= limit)
          if (refusal === undefined) charged.push({ at: now, amount })
          else {
            assert.deepInclude(refusal, { isRamp: true, limit, used: rate, requested: amount, retryAfter: undefined })
          }
        }
      }),
    { arbitrary: { runs: 100, seed: 1 }, timeout: 30_000 }
  )

  it.effect("is refused in the words of the provider, and named in the books", () =>
    Effect.gen(function*() {
      const accel = { floor: 7 }
      const limits = [{ dimension: "requests", limit: 9 }, { dimension: "input", limit: 100 }] as const
      const provider = yield* ProviderSimulator.make({
        models: {
          m: { limits, accel },
          together: { limits, accel, dialect: "together" },
          tokens: { limits, accel: { dimension: "requests", floor: 1 }, dialect: "together" }
        }
      })
      // 6 input tokens each
      assert.strictEqual((yield* ask(provider, paths.chat, chat())).status, 200)
      const openai = yield* ask(provider, paths.chat, chat())
      assert.strictEqual(openai.status, 429)
      assert.deepInclude(openai.json.error, { type: "rate_limit_error", code: "slow_down" })
      assert.notProperty(openai.headers, "retry-after")
      const anthropic = yield* ask(provider, paths.messages, chat())
      assert.strictEqual(anthropic.status, 429)
      assert.strictEqual(anthropic.json.error.type, "rate_limit_error")
      assert.include(anthropic.json.error.message, "acceleration limit")
      const error = yield* Effect.flip(provider.complete(chat()))
      assert.deepInclude(error, {
        _tag: "Refused",
        dimension: "input",
        limit: 7,
        used: 6,
        requested: 6,
        tooLarge: false
      })
      assert.include(error.message, "slow down")
      for (
        const [model, type] of [["together", "dynamic_token_limited"], ["tokens", "dynamic_request_limited"]] as const
      ) {
        yield* ask(provider, paths.chat, chat(model))
        assert.deepInclude((yield* ask(provider, paths.chat, chat(model))).json.error, { type })
      }
      const { models: [report] } = yield* provider.report()
      assert.deepStrictEqual(report?.refusedFor, { slow_down: 3 })
      assert.strictEqual(report?.refusedBy.input, 0)
      assert.deepStrictEqual(report?.limits.map(({ net, refused }) => [net, refused]), [[1, 0], [6, 0]])
      // The limits go first, and a minute later the same is no rise any more.
      yield* TestClock.adjust("1 minute")
      assert.strictEqual((yield* ask(provider, paths.chat, chat())).status, 200)
    }))

  it.effect("each organization rises by itself, and a restart forgets how far", () =>
    Effect.gen(function*() {
      const provider = yield* ProviderSimulator.make({
        models: { m: { limits: [], accel: { floor: 7 } } },
        keys: { a: {}, b: {}, c: { org: "other" } }
      })
      const status = (key: string) =>
        Effect.map(ask(provider, paths.chat, chat(), { "api-key": key }), ({ status }) => status)
      assert.deepStrictEqual([yield* status("a"), yield* status("b"), yield* status("c")], [200, 429, 200])
      yield* provider.restart
      assert.deepStrictEqual([yield* status("b"), yield* status("a")], [200, 429])
    }))
})

describe("a client that hangs up", () => {
  const rules = (charge: ProviderSimulator.Charging, more: Partial<Rules>): Rules => ({
    ...ledger.defaultRules,
    charge,
    ...more
  })

  const limits = [
    { dimension: "input", limit: 1000, period: minute },
    { dimension: "output", limit: 1000, period: minute },
    { dimension: "concurrent", limit: 10, period: Infinity }
  ] as const

  /** Input and output charged, and slots in use, after the abort in the middle of the answer and after its end. */
  const course = (own: Rules) => {
    const books = ledger.make({ models: { m: { limits, rules: own } } })
    const used = (now: number) => books.levels("m", now).map(({ limit, remaining }) => limit - remaining)
    const id = books.admit("m", { input: 100, maxOutput: 50 }, 0)?.id ?? 0
    books.begin(id, { firstByteAfter: 1000, perToken: 100, usage: { input: 90, cached: 0, output: 20 } })
    books.abort(id, 1750)
    books.abort(id, 1800)
    books.complete(id, 20, 1900)
    const seen = [used(1900), used(2999), used(3000), used(5000)]
    assert.strictEqual(books.arrivals()[0]?.abortedAt, 1750)
    assert.deepInclude(books.report(5000, undefined, 5000).models[0], { aborted: 1, completed: 0, running: 0 })
    return seen
  }

  it("stops the answer and keeps the reservation, or is charged what was produced", () => {
    const full = course(rules("reserve", {}))
    assert.deepStrictEqual(full, Array.from({ length: 4 }, () => [100, 50, 0]))
    assert.deepStrictEqual(course(rules("reserve", { onAbort: "stop", abortCharge: "full" })), full)
    assert.deepStrictEqual(
      course(rules("reserve", { abortCharge: "produced" })),
      Array.from({ length: 4 }, () => [90, 7, 0])
    )
    assert.deepStrictEqual(course(rules("anthropic", {})), Array.from({ length: 4 }, () => [90, 7, 0]))
    assert.deepStrictEqual(course(rules("actual", {})), Array.from({ length: 4 }, () => [90, 7, 0]))
  })

  it("or the answer goes on without it, in its slot, to its end", () => {
    assert.deepStrictEqual(course(rules("reserve", { onAbort: "continue" })), [
      [100, 50, 1],
      [100, 50, 1],
      [100, 50, 0],
      [100, 50, 0]
    ])
    assert.deepStrictEqual(course(rules("reserve", { onAbort: "continue", abortCharge: "produced" })), [
      [100, 50, 1],
      [100, 50, 1],
      [90, 20, 0],
      [90, 20, 0]
    ])
    assert.deepStrictEqual(course(rules("anthropic", { onAbort: "continue" })), [[90, 9, 1], [90, 19, 1], [90, 20, 0], [
      90,
      20,
      0
    ]])
    assert.deepStrictEqual(course(rules("actual", { onAbort: "continue" })), [[0, 0, 1], [0, 0, 1], [90, 20, 0], [
      90,
      20,
      0
    ]])
  })

  it.effect("the model says which", () =>
    Effect.gen(function*() {
      const provider = yield* ProviderSimulator.make({
        models: {
          m: {
            limits: [{ dimension: "tokens", limit: 100 }],
            onAbort: "continue",
            abortCharge: "produced",
            serviceTime: { base: 1000 }
          }
        }
      })
      const fiber = yield* Effect.forkChild(ask(provider, paths.chat, chat(), { "x-sim-output-tokens": "1" }))
      yield* TestClock.adjust(500)
      yield* Fiber.interrupt(fiber)
      const seen = Effect.map(
        Effect.all([provider.report(), provider.levels("m")]),
        ([{ models: [report] }, [level]]) => [report?.running, report?.aborted, level?.remaining]
      )
      assert.deepStrictEqual(yield* seen, [1, 0, 84])
      yield* TestClock.adjust(500)
      assert.deepStrictEqual(yield* seen, [0, 1, 93])
    }))
})

describe("the books", () => {
  it("list every correction with its time", () => {
    const schedule = { firstByteAfter: 1000, perToken: 100, usage: { input: 90, cached: 0, output: 3 } }
    const course = (charge: ProviderSimulator.Charging) => {
      const books = ledger.make({
        models: { m: { limits: [], rules: { ...ledger.defaultRules, charge, price: { input: 1e4, output: 0 } } } }
      })
      const id = books.admit("m", { input: 100, maxOutput: 50 }, 0)?.id ?? 0
      books.begin(id, schedule)
      books.complete(id, 3, 1300)
      books.admit("m", { input: 1, maxOutput: 1 }, 1300)
      const [arrival, other] = books.arrivals()
      assert.deepStrictEqual(other?.corrections, [])
      return arrival?.corrections.map(({ at, net }) => [at, net.input, net.output, net.spend])
    }
    assert.deepStrictEqual(course("reserve"), [[1300, 90, 3, 0.9]])
    assert.deepStrictEqual(course("actual"), [[1300, 90, 3, 0.9]])
    assert.deepStrictEqual(course("anthropic"), [
      [1000, 90, 0, 0],
      [1100, 90, 1, 0],
      [1200, 90, 2, 0],
      [1300, 90, 3, 0.9]
    ])
  })

  it.effect("tell the level of each limit at every arrival and at any time", () =>
    Effect.gen(function*() {
      const provider = yield* ProviderSimulator.make({
        models: {
          m: [
            { dimension: "concurrent", limit: 5 },
            { dimension: "requests", limit: 2, algorithm: "bucket" },
            { dimension: "tokens", limit: 100 }
          ]
        },
        serviceTime: { base: "1 minute" }
      })
      const levels = provider.levels("m")
      assert.deepStrictEqual(yield* levels, [
        { dimension: "requests", limit: 2, period: minute, remaining: 2, reset: 0 },
        { dimension: "tokens", limit: 100, period: minute, remaining: 100, reset: 0 },
        { dimension: "concurrent", limit: 5, period: undefined, remaining: 5, reset: 0 }
      ])
      yield* Effect.forkChild(ask(provider, paths.chat, chat()), { startImmediately: true })
      yield* TestClock.adjust("15 seconds")
      yield* Effect.forkChild(ask(provider, paths.chat, chat()), { startImmediately: true })
      assert.deepStrictEqual((yield* levels).map(({ remaining, reset }) => [remaining, reset]), [
        [0.5, 45_000],
        [68, minute],
        [3, 0]
      ])
      yield* ask(provider, paths.chat, chat())
      yield* TestClock.adjust("6 seconds")
      yield* ask(provider, paths.chat, chat(), { "x-sim-fault": "500" })
      assert.deepStrictEqual((yield* provider.arrivals).map(({ levels }) => levels), [
        [2, 100, 5],
        [1.5, 84, 4],
        [0.5, 68, 3],
        [0.7, 68, 3]
      ])
      assert.deepStrictEqual(yield* provider.levels("unknown"), [])
    }))

  it.effect("tell what was completed in the time asked for", () =>
    Effect.gen(function*() {
      const provider = yield* ProviderSimulator.make({ models: { m: [] }, serviceTime: { base: 1000 } })
      for (const output of ["3", "4", "5"]) {
        yield* Effect.forkChild(ask(provider, paths.chat, chat(), { "x-sim-output-tokens": output }))
        yield* TestClock.adjust(1000)
      }
      yield* Effect.forkChild(ask(provider, paths.chat, chat()))
      yield* TestClock.adjust(999)
      const goodput = (range?: { readonly from: number; readonly to: number }) =>
        Effect.map(provider.report(range), ({ models: [report] }) => report?.goodput)
      assert.deepStrictEqual(yield* goodput(), { requests: 3, inputTokens: 18, outputTokens: 12 })
      assert.deepStrictEqual(yield* goodput({ from: 1000, to: 2000 }), { requests: 1, inputTokens: 6, outputTokens: 4 })
    }))
})
