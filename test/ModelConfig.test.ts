import { assert, describe, it } from "@effect/vitest"
import { Effect, Schema } from "effect"
import { ModelConfig, ProviderProfile, QueueManager, RateLimiter } from "effect-llm-queue"

type Options = ModelConfig.Options<string, string> & ModelConfig.Limits

/** The problems of a configuration, which may be anything at run time. */
const problemsOf = (options: unknown, modelId: unknown = "model") =>
  Effect.gen(function*() {
    const manager = yield* QueueManager.QueueManager
    const model = ModelConfig.makeUntyped<string, string>(modelId as string, options as Options)
    return yield* Effect.scoped(manager.registerQueue(model, ({ params }) => Effect.succeed(params))).pipe(
      Effect.as<ReadonlyArray<string>>([]),
      Effect.catchTag("InvalidConfiguration", ({ problems }) => Effect.succeed(problems))
    )
  }).pipe(Effect.provide(QueueManager.layer))

const hostile: ReadonlyArray<unknown> = [
  null,
  Number.NaN,
  Number.POSITIVE_INFINITY,
  Number.NEGATIVE_INFINITY,
  -1,
  "1",
  "",
  true,
  {},
  [],
  [1],
  Symbol("s"),
  () => 1,
  Object.create(null)
]

describe("ModelConfig", () => {
  it.effect("accepts every limit, both short forms and unlimited", () =>
    Effect.gen(function*() {
      const { concurrent, itpm, otpm, rpd, rpm, tpd, tpm } = RateLimiter
      for (
        const options of [
          { rateLimiters: [rpm(1), rpd(2), tpm(3), tpd(4), itpm(5), otpm(6), concurrent(7)] },
          { rateLimiters: [rpm(1, { timePeriod: "1 second", margin: 0, chargedAt: "completion" })] },
          { rateLimiters: [rpm(1), rpm(10, { timePeriod: "1 hour" })] },
          { rateLimiters: "unlimited" },
          { rateLimit: 1 },
          { rateLimit: 1, rateLimiterMode: "requests_per_period", timePeriod: "1 second" },
          { rateLimit: 1, rateLimiterMode: "concurrent_requests" }
        ]
      ) {
        assert.deepStrictEqual(yield* problemsOf(options), [])
      }
    }))

  it.effect("the short form limits requests per minute, or per its period, or at one time", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const limitsOf = (modelId: string, limits: ModelConfig.Limits) =>
        Effect.gen(function*() {
          const model = ModelConfig.makeUntyped<string, string>(modelId, limits)
          yield* manager.registerQueue(model, ({ params }) => Effect.succeed(params))
          const { rateLimiters } = yield* manager.getQueueInfo(model)
          return rateLimiters.map(({ limit, timePeriod, type }) => [type, limit, timePeriod?.toString()])
        })
      assert.deepStrictEqual(yield* limitsOf("short-1", { rateLimit: 7 }), [["rpm", 7, "60000 millis"]])
      assert.deepStrictEqual(yield* limitsOf("short-2", { rateLimit: 7, timePeriod: "1 second" }), [
        ["rpm", 7, "1000 millis"]
      ])
      assert.deepStrictEqual(
        yield* limitsOf("short-3", { rateLimit: 7, rateLimiterMode: "concurrent_requests" }),
        [["concurrent", 7, undefined]]
      )
    }).pipe(Effect.provide(QueueManager.layer)))

  it.effect("a limit is a whole number of at least 1", () =>
    Effect.gen(function*() {
      for (const limit of [0, 0.5, 1.5, 1e13, undefined, ...hostile]) {
        for (const type of ["rpm", "rpd", "tpm", "tpd", "itpm", "otpm", "concurrent"]) {
          const problems = yield* problemsOf({ rateLimiters: [{ type, limit }] })
          assert.strictEqual(problems.length, 1)
          assert.isTrue(problems[0]?.startsWith("rateLimiters[0].limit: "), problems[0])
        }
        if (limit !== undefined) {
          assert.isTrue((yield* problemsOf({ rateLimit: limit }))[0]?.startsWith("rateLimit: "))
        }
      }
    }))

  it.effect("a period is from 1 millisecond to 366 days, a margin from zero", () =>
    Effect.gen(function*() {
      for (const timePeriod of [0, 0.5, -5, "367 days", "soon", "Infinity", ...hostile]) {
        const problems = yield* problemsOf({ rateLimiters: [{ type: "rpm", limit: 1, timePeriod }] })
        assert.isTrue(problems[0]?.startsWith("rateLimiters[0].timePeriod: "), String(problems))
        assert.isTrue((yield* problemsOf({ rateLimit: 1, timePeriod }))[0]?.startsWith("timePeriod: "))
      }
      for (const margin of [-1, "-1 seconds", "367 days", "soon", null, Number.NaN, "1", true]) {
        const problems = yield* problemsOf({ rateLimiters: [{ type: "rpm", limit: 1, margin }] })
        assert.isTrue(problems[0]?.startsWith("rateLimiters[0].margin: "), String(problems))
      }
    }))

  it.effect("a concurrent limit has no period, margin or date of charge", () =>
    Effect.gen(function*() {
      const problems = yield* problemsOf({
        rateLimiters: [{ type: "concurrent", limit: 1, timePeriod: "1 second", margin: 0, chargedAt: "dispatch" }]
      })
      assert.strictEqual(problems.length, 3)
      const short = { rateLimit: 1, rateLimiterMode: "concurrent_requests", timePeriod: "1 second" }
      assert.strictEqual((yield* problemsOf(short)).length, 1)
    }))

  it.effect("limits are a list that is not empty, of known types, each of them once per period", () =>
    Effect.gen(function*() {
      for (
        const rateLimiters of [undefined, [], {}, "none", null, 5, [null], ["rpm"], [{}], [{
          type: "toString",
          limit: 1
        }]]
      ) {
        assert.isAbove((yield* problemsOf({ rateLimiters })).length, 0)
      }
      const { concurrent, rpm } = RateLimiter
      assert.deepStrictEqual(
        (yield* problemsOf({ rateLimiters: [rpm(1), rpm(2), concurrent(1), concurrent(2)] })).map((problem) =>
          problem.slice(0, 16)
        ),
        ["rateLimiters[1]:", "rateLimiters[3]:"]
      )
      assert.isAbove((yield* problemsOf({ rateLimiters: [{ type: "rpm", limit: 1, chargedAt: "later" }] })).length, 0)
    }))

  it.effect("the two forms do not mix, and the mode is a known one", () =>
    Effect.gen(function*() {
      assert.isAbove((yield* problemsOf({ rateLimit: 1, rateLimiters: [RateLimiter.rpm(1)] })).length, 0)
      assert.isAbove((yield* problemsOf({ rateLimit: 1, rateLimiterMode: "per_minute" })).length, 0)
    }))

  it.effect("a model id is 1 to 256 printable characters", () =>
    Effect.gen(function*() {
      for (
        const id of ["", "a\u0000b", "a\nb", "a\u007fb", "a\u2028b", "\ud800", "a\udc00", "x".repeat(257), null, 7, {}]
      ) {
        const problems = yield* problemsOf({ rateLimiters: "unlimited" }, id)
        assert.isTrue(problems[0]?.startsWith("modelId: "), JSON.stringify(id))
      }
      for (const id of ["a", "__proto__", "constructor", "😀", "ünïcode / with: spaces", "x".repeat(256)]) {
        assert.deepStrictEqual(yield* problemsOf({ rateLimiters: "unlimited" }, id), [])
      }
    }))

  it.effect("a model called __proto__ works like any other", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const model = ModelConfig.makeUntyped<string, string>("__proto__", { rateLimiters: "unlimited" })
      yield* manager.registerQueue(model, ({ params }) => Effect.succeed(params))
      const { result } = yield* manager.submit(model, "x", { id: "__proto__" })
      assert.strictEqual(result, "x")
      assert.strictEqual((yield* manager.getStatus(model, "__proto__")).status, "completed")
    }).pipe(Effect.provide(QueueManager.layer)))

  it.effect("names each option that is wrong", () =>
    Effect.gen(function*() {
      const durations = [-1, Number.NaN, "soon", null, true, "1"]
      for (
        const [name, values] of [
          ["capacity", [0, 1.5, ...hostile]],
          ["strategy", ["drop", 1, {}]],
          ["retention.count", [1.5, ...hostile]],
          ["retention.age", durations],
          ["timeout", [0, ...durations]],
          ["processingTimeout", [0, ...durations]],
          ["priority", ["urgent", "toString", 86_401, -86_401, Number.NaN, {}, [], true]],
          ["shutdown.policy", ["wait", 1, null]],
          ["shutdown.deadline", durations],
          ["usage", [1, "x", {}]],
          ["estimate", [1, "x", {}]]
        ] as const
      ) {
        for (const value of values) {
          const [outer, inner] = name.split(".")
          const option = { [outer!]: inner === undefined ? value : { [inner]: value } }
          const problems = yield* problemsOf({ rateLimiters: "unlimited", ...option })
          assert.strictEqual(problems.length, 1, `${name} ${typeof value}`)
          assert.isTrue(problems[0]?.startsWith(`${name}: `), problems[0])
        }
      }
    }))

  it.effect("names everything that is wrong at once", () =>
    Effect.gen(function*() {
      const problems = yield* problemsOf({
        rateLimiters: [RateLimiter.rpm(0), RateLimiter.tpm(Number.NaN, { timePeriod: 0 })],
        capacity: 0,
        strategy: "none",
        retention: { count: -1, age: -1 },
        timeout: 0,
        processingTimeout: 0,
        priority: "urgent",
        shutdown: { policy: "none", deadline: -1 }
      }, "")
      assert.strictEqual(problems.length, 13)
    }))

  it.effect("a duration that is no duration is a problem, also as an object", () =>
    Effect.gen(function*() {
      for (const name of ["retention", "shutdown"]) {
        const field = name === "retention" ? "age" : "deadline"
        const problems = yield* problemsOf({ rateLimiters: "unlimited", [name]: { [field]: { lightyears: 1 } } })
        assert.strictEqual(problems.length, 1, `${name}.${field}`)
      }
    }))

  it.effect("options that are no objects, and schemas that are no schemas, are problems", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      for (const option of [{ retention: 5 }, { shutdown: "drain" }, { params: null }, { params: "string" }]) {
        const model = ModelConfig.makeUntyped<string, string>("no-object", {
          rateLimiters: "unlimited",
          ...(option as object)
        })
        const exit = yield* Effect.exit(
          Effect.flip(Effect.scoped(manager.registerQueue(model, ({ params }) => Effect.succeed(params))))
        )
        assert.strictEqual(exit._tag === "Success" && exit.value._tag, "InvalidConfiguration", JSON.stringify(option))
      }
    }).pipe(Effect.provide(QueueManager.layer)))

  it.effect("a profile is checked down to its last rule", () =>
    Effect.gen(function*() {
      const { facts: _, ...openai } = ProviderProfile.openai
      const problems = (provider: unknown) => problemsOf({ rateLimiters: "unlimited", provider })
      for (const profile of Object.values(ProviderProfile).filter((each) => typeof each === "object")) {
        assert.deepStrictEqual(yield* problems(profile), [], profile.name)
      }
      assert.deepStrictEqual(yield* problems({ ...openai, estimation: undefined, limits: { rpm: undefined } }), [])
      assert.deepStrictEqual(
        yield* problems({
          name: 1,
          margin: "soon",
          limits: { rpm: 5, tpm: { charging: "all" } },
          estimation: "none",
          headers: [
            { types: "rpm", limit: 1, asOf: "now", resetFormat: "go", rounding: 0, unset: -1, zeroLimit: 0 },
            1
          ],
          retryAfter: [{ header: 1, format: "date" }, {}],
          errors: [
            { status: 429, codes: [429], messages: "no", headers: { a: 1 }, kind: "other", types: ["rpx"] },
            { codes: ["a"] }
          ],
          limitNames: [{ includes: [1], codes: "a", types: undefined, ignoresHint: "yes" }]
        }),
        [
          "provider.name: expected string, got 1",
          "provider.limits.rpm: expected object | undefined, got 5",
          "provider.limits.tpm.charging: expected object | undefined, got \"all\"",
          "provider.estimation: expected object | undefined, got \"none\"",
          "provider.headers[0].types: expected array, got \"rpm\"",
          "provider.headers[0].limit: expected string | undefined, got 1",
          "provider.headers[0].asOf: expected \"arrival\" | \"response\", got \"now\"",
          "provider.headers[0].resetFormat: expected \"duration\" | \"seconds\" | \"millis\" | \"instant\" | \"any\", got \"go\"",
          "provider.headers[0].rounding: expected a value greater than 0, got 0",
          "provider.headers[0].unset: expected array | undefined, got -1",
          "provider.headers[0].zeroLimit: expected \"ignored\" | \"notAllowed\" | undefined, got 0",
          "provider.headers[1]: expected object, got 1",
          "provider.retryAfter[0].header: expected string, got 1",
          "provider.retryAfter[0].format: expected \"duration\" | \"seconds\" | \"millis\" | \"instant\" | \"any\", got \"date\"",
          "provider.retryAfter[1].header: missing key",
          "provider.retryAfter[1].format: missing key",
          "provider.errors[0].status: expected array | undefined, got 429",
          "provider.errors[0].codes[0]: expected string, got 429",
          "provider.errors[0].messages: expected array | undefined, got \"no\"",
          "provider.errors[0].headers.a: expected string | true, got 1",
          "provider.errors[0].kind: expected \"rate\" | \"ramp\" | \"overload\" | \"transient\" | \"quota\" | \"tooLarge\" | \"auth\", "
          + "got \"other\"",
          "provider.errors[0].types[0]: expected \"rpm\" | \"rpd\" | \"tpm\" | \"tpd\" | \"itpm\" | \"otpm\" | \"concurrent\" | "
          + "\"budget\", got \"rpx\"",
          "provider.errors[1].kind: missing key",
          "provider.limitNames[0].includes[0]: expected string, got 1",
          "provider.limitNames[0].codes: expected array | undefined, got \"a\"",
          "provider.limitNames[0].types: expected array, got undefined",
          "provider.limitNames[0].ignoresHint: expected boolean | undefined, got \"yes\"",
          "provider.margin: expected a duration, got \"soon\""
        ]
      )
      const broken = {
        get name(): string {
          throw new Error("no")
        }
      }
      assert.deepStrictEqual(yield* problems({ ...openai, errors: [broken] }), [
        "provider.errors[0].kind: missing key"
      ])
      assert.deepStrictEqual(yield* problems(broken), ["provider: could not be read: Error: no"])
      for (const value of hostile) {
        for (const name of Object.keys(openai)) {
          const found = yield* problems({ ...openai, [name]: value })
          for (const problem of found) assert.match(problem, /^provider[.]/)
        }
        assert.isAtLeast((yield* problems({ ...openai, errors: [{ status: [429], kind: value }] })).length, 1)
      }
    }))

  it("constructors are pure and never throw", () => {
    for (const value of hostile) {
      assert.doesNotThrow(() => {
        ModelConfig.makeUntyped<string, string>(value as string, value as Options)
        RateLimiter.make(value as RateLimiter.Config)
        RateLimiter.rpm(value as number, value as RateLimiter.WindowOptions)
        RateLimiter.concurrent(value as number)
      })
    }
  })

  it("Usage takes whole numbers that are not negative", () => {
    const isUsage = Schema.is(ModelConfig.Usage)
    assert.isTrue(isUsage({ inputTokens: 0, outputTokens: 1 }))
    for (const tokens of [-1, 0.5, Number.NaN, Number.POSITIVE_INFINITY, "1", null]) {
      assert.isFalse(isUsage({ inputTokens: tokens, outputTokens: 1 }))
    }
  })
})
