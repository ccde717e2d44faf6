/**
 * The limits of the simulator against their definitions, written out by brute force over everything that was admitted.
 */
import { assert, describe, it } from "@effect/vitest"
import { DateTime, Effect, Schema } from "effect"
import type { ProviderSimulator } from "../../src/testing/index.ts"
import type { Rules } from "../../src/testing/internal/charging.ts"
import * as ledger from "../../src/testing/internal/ledger.ts"
import type { Limit } from "../../src/testing/internal/limits.ts"

interface Charged {
  readonly at: number
  readonly amount: number
}

/** Whether `amount` more at `t` would keep to the definition, given what was charged until then. */
type Definition = (charged: ReadonlyArray<Charged>, t: number, amount: number) => boolean

const sum = (charged: ReadonlyArray<Charged>) => charged.reduce((total, { amount }) => total + amount, 0)

const sliding = (limit: number, period: number): Definition => (charged, t, amount) =>
  sum(charged.filter(({ at }) => at > t - period)) + amount <= limit

/** Over every interval that ends at `t`. Those that end earlier were checked then. */
const bucket = (limit: number, period: number, burst = limit): Definition => (charged, t, amount) =>
  [t, ...charged.map(({ at }) => at)].every((from) =>
    sum(charged.filter(({ at }) => at >= from)) + amount <= burst + limit / period * (t - from) + 1e-6
  )

const fixed = (limit: number, windowOf: (t: number) => unknown): Definition => (charged, t, amount) =>
  sum(charged.filter(({ at }) => windowOf(at) === windowOf(t))) + amount <= limit

const both = (a: Definition, b: Definition): Definition => (charged, t, amount) =>
  a(charged, t, amount) && b(charged, t, amount)

const utc = (text: string): number => DateTime.makeUnsafe(text).epochMilliseconds

const epoch = 1_700_000_012_345

const cases: ReadonlyArray<readonly [name: string, limit: Limit, definition: Definition, capacity: number]> = [
  ["sliding", { dimension: "input", limit: 40, period: 100 }, sliding(40, 100), 40],
  ["bucket", { dimension: "input", limit: 40, period: 100, algorithm: "bucket" }, bucket(40, 100), 40],
  [
    "bucket with a small burst",
    { dimension: "input", limit: 40, period: 100, algorithm: "bucket", burst: 15 },
    bucket(40, 100, 15),
    15
  ],
  [
    "bucket with a large burst",
    { dimension: "input", limit: 10, period: 70, algorithm: "bucket", burst: 50 },
    bucket(10, 70, 50),
    50
  ],
  [
    "fixed",
    { dimension: "input", limit: 40, period: 100, algorithm: "fixed" },
    fixed(40, (t) => Math.floor((epoch + t) / 100)),
    40
  ],
  [
    "fixed with a phase",
    { dimension: "input", limit: 40, period: 100, algorithm: "fixed", phase: 30 },
    fixed(40, (t) => Math.floor((epoch + t - 30) / 100)),
    40
  ],
  [
    "sliding with a quantum",
    { dimension: "input", limit: 60, period: 100, quantum: 50 },
    both(sliding(60, 100), sliding(30, 50)),
    30
  ],
  [
    "bucket with a quantum",
    { dimension: "input", limit: 60, period: 100, algorithm: "bucket", quantum: 50 },
    both(bucket(60, 100), bucket(60, 100, 30)),
    30
  ],
  [
    "fixed with a quantum",
    { dimension: "input", limit: 60, period: 100, algorithm: "fixed", quantum: 50 },
    both(fixed(60, (t) => Math.floor((epoch + t) / 100)), fixed(30, (t) => Math.floor((epoch + t) / 50))),
    30
  ]
]

const Requests = Schema.Array(Schema.Struct({
  gap: Schema.Literals([0, 0, 1, 3, 7, 20, 50, 130]),
  amount: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 33 }))
})).check(Schema.isMinLength(20), Schema.isMaxLength(60))

describe("limits", () => {
  for (const [name, limit, definition, capacity] of cases) {
    it.effect.prop(
      `${name}: admits exactly what the definition allows, and tells the first instant at which it will`,
      { requests: Requests },
      ({ requests }) =>
        Effect.sync(() => {
          const books = ledger.make({ models: { m: { limits: [limit] } }, epoch })
          const charged: Array<Charged> = []
          let now = 0
          for (const { amount, gap } of requests) {
            now += gap
            const decision = books.admit("m", { input: amount, maxOutput: 1 }, now)
            const isAllowed = amount <= capacity && definition(charged, now, amount)
            assert.strictEqual(decision?.refusal === undefined, isAllowed)
            assert.strictEqual(decision?.refusal?.tooLarge ?? false, amount > capacity)
            if (isAllowed) charged.push({ at: now, amount })
            else if (amount <= capacity) {
              const wait = decision?.refusal?.retryAfter ?? NaN
              assert.isTrue(definition(charged, now + wait, amount), `after ${wait}`)
              assert.isFalse(definition(charged, now + wait - 1e-3, amount), `before ${wait}`)
            }
          }
        }),
      { arbitrary: { runs: 100, seed: 1 }, timeout: 30_000 }
    )
  }

  it.effect.prop(
    "fixed with a time zone: days are those of the calendar there, summer time or not",
    {
      requests: Schema.Array(Schema.Struct({
        gap: Schema.Literals([0, 59_000, 1_800_000, 7_200_000, 30_000_000]),
        amount: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 33 }))
      })).check(Schema.isMinLength(20), Schema.isMaxLength(60)),
      // Two days before clocks go forward and back in Los Angeles, and in a zone with a half-hour offset.
      start: Schema.Literals([utc("2026-03-06T05:00:00Z"), utc("2026-10-30T05:00:00Z"), utc("2026-04-03T01:00:00Z")]),
      timeZone: Schema.Literals(["UTC", "America/Los_Angeles", "Australia/Lord_Howe", "Asia/Kathmandu"])
    },
    ({ requests, start, timeZone }) =>
      Effect.sync(() => {
        const format = new Intl.DateTimeFormat("sv-SE", { timeZone, dateStyle: "short" })
        const dayOf = (t: number) => format.format(start + t)
        const definition = fixed(40, dayOf)
        const books = ledger.make({
          models: {
            m: { limits: [{ dimension: "input", limit: 40, period: 86_400_000, algorithm: "fixed", timeZone }] }
          },
          epoch: start
        })
        const charged: Array<Charged> = []
        let now = 0
        for (const { amount, gap } of requests) {
          now += gap
          const decision = books.admit("m", { input: amount, maxOutput: 1 }, now)
          assert.strictEqual(decision?.refusal === undefined, definition(charged, now, amount))
          if (decision?.refusal === undefined) charged.push({ at: now, amount })
          else {
            const wait = decision.refusal.retryAfter ?? NaN
            assert.notStrictEqual(dayOf(now + wait), dayOf(now))
            assert.strictEqual(dayOf(now + wait - 1), dayOf(now))
          }
        }
      }),
    { arbitrary: { runs: 100, seed: 1 }, timeout: 30_000 }
  )

  it("a day in Los Angeles has 23 hours when clocks go forward and 25 when they go back", () => {
    const untilMidnight = (epoch: number) => {
      const books = ledger.make({
        models: {
          m: {
            limits: [{
              dimension: "requests",
              limit: 1,
              period: 86_400_000,
              algorithm: "fixed",
              timeZone: "America/Los_Angeles"
            }]
          }
        },
        epoch
      })
      books.admit("m", { input: 1, maxOutput: 1 }, 0)
      return (books.admit("m", { input: 1, maxOutput: 1 }, 0)?.refusal?.retryAfter ?? 0) / 3_600_000
    }
    assert.deepStrictEqual(
      [utc("2026-03-07T08:00:00Z"), utc("2026-03-08T08:00:00Z"), utc("2026-11-01T07:00:00Z")].map(untilMidnight),
      [24, 23, 25]
    )
  })

  const rules = (charge: ProviderSimulator.Charging, more: Partial<Rules> = {}): Rules => ({
    charge,
    refund: true,
    outputWeight: 1,
    cacheReadCounts: true,
    price: { input: 0, output: 0 },
    ...more
  })

  const one = (limit: Limit, own: Rules) => {
    const books = ledger.make({ models: { m: { limits: [limit], rules: own } } })
    const remaining = (now: number) => books.quotas("m", now)[0]?.remaining
    return { ...books, remaining }
  }

  it("bucket: a refund raises the level, at most to the burst, and a debt makes it negative", () => {
    const tokens = { dimension: "tokens", limit: 100, period: 1000, algorithm: "bucket" } as const
    const books = one(tokens, rules("reserve"))
    const first = books.admit("m", { input: 10, maxOutput: 80 }, 0)
    assert.strictEqual(books.remaining(0), 10)
    books.complete(first?.id ?? 0, 20, 100)
    assert.strictEqual(books.remaining(100), 10 + 10 + 60)
    const second = books.admit("m", { input: 10, maxOutput: 50 }, 100)
    assert.strictEqual(books.remaining(700), 80)
    books.complete(second?.id ?? 0, 1, 700)
    assert.strictEqual(books.remaining(700), 100)

    const weighted = one(tokens, rules("reserve", { outputWeight: 5 }))
    weighted.complete(weighted.admit("m", { input: 10, maxOutput: 40 }, 0)?.id ?? 0, 40, 0)
    assert.strictEqual(weighted.remaining(0), 100 - 210)
    assert.strictEqual(weighted.admit("m", { input: 1, maxOutput: 9 }, 0)?.refusal?.retryAfter, 1200)
    assert.isUndefined(weighted.admit("m", { input: 1, maxOutput: 9 }, 1200)?.refusal)
  })

  it("sliding: a debt may go over the limit and refuses until it has aged out", () => {
    const books = one({ dimension: "tokens", limit: 100, period: 1000 }, rules("reserve", { outputWeight: 5 }))
    books.complete(books.admit("m", { input: 10, maxOutput: 40 }, 200)?.id ?? 0, 40, 300)
    assert.strictEqual(books.remaining(300), -110)
    assert.deepInclude(books.admit("m", { input: 1, maxOutput: 1 }, 300)?.refusal, { used: 210, retryAfter: 900 })
    assert.strictEqual(books.remaining(1200), 100)
  })

  it("dynamic: the limit grows with what gets through, to the ceiling, and falls back to the floor", () => {
    const books = one(
      { dimension: "requests", limit: 60, period: 60_000, algorithm: "dynamic", burst: 300 },
      rules("reserve")
    )
    const admitted = (from: number, seconds: number) => {
      let count = 0
      for (let i = 0; i < seconds * 20; i++) {
        if (books.admit("m", { input: 1, maxOutput: 1 }, from + i * 50)?.refusal === undefined) count++
      }
      return count / seconds
    }
    const start = admitted(0, 10)
    assert.closeTo(start, 1, 0.5)
    admitted(10_000, 600)
    assert.closeTo(admitted(610_000, 60), 5, 0.1)
    assert.closeTo(admitted(3_600_000, 10), 1, 0.5)
  })

  describe("charging", () => {
    const tokens = { dimension: "tokens", limit: 1000, period: 60_000 } as const
    const usage = { input: 90, cached: 40, output: 20 }
    const schedule = { firstByteAfter: 1000, perToken: 100, usage }

    /** What is left of each limit at admission, after the first byte, half way, and after completion. */
    const course = (own: Rules) => {
      const books = ledger.make({
        models: {
          m: {
            limits: [tokens, { ...tokens, dimension: "input" }, { ...tokens, dimension: "output" }, {
              ...tokens,
              dimension: "spend"
            }],
            rules: own
          }
        }
      })
      const used = (now: number) =>
        books.quotas("m", now).map(({ limit, remaining }) => Math.round((limit - remaining) * 1e6) / 1e6)
      const id = books.admit("m", { input: 100, maxOutput: 50, characters: 400 }, 0)?.id ?? 0
      books.begin(id, schedule)
      const seen = [used(0), used(1000), used(2000)]
      books.complete(id, usage.output, 3000)
      return [...seen, used(3000)]
    }

    it("reserve: prompt and max_tokens at once, what was used at the end", () => {
      assert.deepStrictEqual(course(rules("reserve")), [
        [150, 100, 50, 0],
        [150, 100, 50, 0],
        [150, 100, 50, 0],
        [110, 90, 20, 0]
      ])
      assert.deepStrictEqual(course(rules("reserve", { refund: false }))[3], [150, 100, 50, 0])
      assert.deepStrictEqual(course(rules("reserve", { cacheReadCounts: false, outputWeight: 2 }))[3], [90, 50, 40, 0])
    })

    it("openai: the larger of max_tokens and a quarter of the characters", () => {
      assert.deepStrictEqual(course(rules("openai", { refund: false })).map(([tokens]) => tokens), [100, 100, 100, 100])
      const books = one(tokens, rules("openai"))
      books.complete(books.admit("m", { input: 10, maxOutput: 500, characters: 40 }, 0)?.id ?? 0, 20, 0)
      assert.strictEqual(books.remaining(0), 970)
      books.complete(books.admit("m", { input: 10, maxOutput: 15, characters: 40 }, 0)?.id ?? 0, 15, 0)
      assert.strictEqual(books.remaining(0), 955)
    })

    it("anthropic: prompt at once, corrected at the first byte; output as it is produced", () => {
      assert.deepStrictEqual(course(rules("anthropic")), [
        [100, 100, 0, 0],
        [90, 90, 0, 0],
        [100, 90, 10, 0],
        [110, 90, 20, 0]
      ])
      assert.deepStrictEqual(course(rules("anthropic", { cacheReadCounts: false }))[3], [70, 50, 20, 0])
    })

    it("actual: everything at the end, when something is left at the beginning", () => {
      assert.deepStrictEqual(course(rules("actual", { price: { input: 1e4, output: 1e5 } })), [
        [0, 0, 0, 0],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
        [110, 90, 20, 2.9]
      ])
      const books = one({ ...tokens, limit: 5 }, rules("actual"))
      books.complete(books.admit("m", { input: 100, maxOutput: 50 }, 0)?.id ?? 0, 20, 10_000)
      assert.strictEqual(books.remaining(10_000), -115)
      // It is dated at completion.
      assert.strictEqual(books.admit("m", { input: 1, maxOutput: 1 }, 10_000)?.refusal?.retryAfter, 60_000)
    })

    it("input: only the prompt", () => {
      assert.deepStrictEqual(course(rules("input")), [
        [100, 100, 0, 0],
        [100, 100, 0, 0],
        [100, 100, 0, 0],
        [90, 90, 0, 0]
      ])
    })

    it("an abort keeps the admission charge and what was produced until then", () => {
      const output = { ...tokens, dimension: "output" } as const
      const books = one(output, rules("anthropic"))
      const id = books.admit("m", { input: 100, maxOutput: 50 }, 0)?.id ?? 0
      books.begin(id, schedule)
      books.abort(id, 1750)
      assert.strictEqual(books.remaining(1750), 1000 - 7)
      assert.strictEqual(books.remaining(5000), 1000 - 7)
      assert.deepInclude(books.arrivals()[0]?.net, { input: 90, output: 7, concurrent: 0 })
    })

    it("output of anthropic may go negative, and then nothing is admitted until some is left", () => {
      const books = one({ ...tokens, dimension: "output", limit: 10, algorithm: "bucket" }, rules("anthropic"))
      const id = books.admit("m", { input: 1, maxOutput: 50 }, 0)?.id ?? 0
      books.begin(id, { ...schedule, firstByteAfter: 0, perToken: 0 })
      books.complete(id, 20, 0)
      assert.strictEqual(books.remaining(0), -10)
      const wait = books.admit("m", { input: 1, maxOutput: 50 }, 0)?.refusal?.retryAfter ?? NaN
      assert.closeTo(wait, 60_000, 1e-3)
      assert.isUndefined(books.admit("m", { input: 1, maxOutput: 50 }, wait)?.refusal)
    })
  })

  it("refusals count as told: nothing, one request, or all that was asked for", () => {
    const expected = { none: [1, 60], requests: [2, 60], all: [2, 130] }
    for (const countRefused of ["none", "requests", "all"] as const) {
      const books = ledger.make({
        models: {
          m: {
            limits: [
              { dimension: "requests", limit: 10, period: 1000, countRefused },
              { dimension: "input", limit: 100, period: 1000, countRefused }
            ]
          }
        }
      })
      books.admit("m", { input: 60, maxOutput: 1 }, 0)
      assert.isDefined(books.admit("m", { input: 70, maxOutput: 1 }, 0)?.refusal)
      assert.deepStrictEqual(
        books.quotas("m", 0).map(({ limit, remaining }) => limit - remaining),
        expected[
          countRefused
        ]
      )
      // Only what was admitted is in the books.
      assert.deepStrictEqual(books.report(0, undefined, 1000).models[0]?.limits.map(({ worstWindow }) => worstWindow), [
        1,
        60
      ])
    }
  })

  it("limits of a day are named last, after all others", () => {
    const books = ledger.make({
      models: {
        m: {
          limits: [
            { dimension: "requests", limit: 1, period: 86_400_000 },
            { dimension: "tokens", limit: 10, period: 1000 }
          ]
        }
      }
    })
    books.admit("m", { input: 5, maxOutput: 1 }, 0)
    assert.strictEqual(books.admit("m", { input: 5, maxOutput: 1 }, 0)?.refusal?.dimension, "tokens")
    assert.strictEqual(books.admit("m", { input: 5, maxOutput: 1 }, 1000)?.refusal?.dimension, "requests")
  })

  it("a changed limit holds at once, and utilisation counts each limit for its time", () => {
    const limits = [{ dimension: "input", limit: 100, period: 1000 }, {
      dimension: "input",
      limit: 200,
      period: 2000,
      algorithm: "bucket"
    }] as const
    const books = ledger.make({ models: { m: { limits } } })
    books.admit("m", { input: 60, maxOutput: 1 }, 0)
    books.setLimits("m", { scale: 0.5 }, 500)
    assert.deepStrictEqual(books.quotas("m", 500).map(({ remaining }) => remaining), [-10, 100])
    assert.strictEqual(books.admit("m", { input: 20, maxOutput: 1 }, 500)?.refusal?.limit, 50)
    books.setLimits("m", [{ dimension: "input", period: 1000, limit: 200 }], 900)
    assert.deepStrictEqual(books.quotas("m", 900).map(({ limit }) => limit), [200, 100])
    const { models: [report] } = books.report(1000, undefined, 1000)
    assert.strictEqual(report?.limits[0]?.utilisation, 60 / (0.5 * 100 + 0.4 * 50 + 0.1 * 200))
  })

  it("a restart makes every limit whole, and what ran before it is not corrected any more", () => {
    for (const algorithm of ["sliding", "bucket", "fixed"] as const) {
      const books = one({ dimension: "tokens", limit: 100, period: 60_000, algorithm }, rules("reserve"))
      const id = books.admit("m", { input: 10, maxOutput: 90 }, 0)?.id ?? 0
      books.restart(10)
      assert.strictEqual(books.remaining(10), 100)
      books.admit("m", { input: 10, maxOutput: 70 }, 10)
      books.complete(id, 1, 10)
      assert.strictEqual(books.remaining(10), 20)
      assert.deepInclude(books.report(10, undefined, 10).models[0], { arrivals: 2, admitted: 2, running: 1 })
    }
  })

  it("a foreign load takes what it can at its own pace, and is not in the books", () => {
    const books = ledger.make({
      models: {
        m: {
          limits: [{ dimension: "requests", limit: 60, period: 60_000 }, {
            dimension: "tokens",
            limit: 400,
            period: 60_000
          }]
        }
      }
    })
    books.foreign("m", { rpm: 60, tpm: 600 }, 0)
    const used = (now: number) => books.quotas("m", now).map(({ limit, remaining }) => limit - remaining)
    assert.deepStrictEqual(used(10_000), [10, 100])
    assert.deepStrictEqual(used(59_000), [40, 400])
    const { models: [report] } = books.report(60_000, undefined, 60_000)
    assert.deepInclude(report, { arrivals: 0, foreign: { sent: 60, admitted: 40 } })
    assert.deepStrictEqual(report?.limits.map(({ utilisation }) => utilisation), [0, 0])
    books.foreign("m", { rpm: 0, tpm: 0 }, 60_000)
    assert.deepStrictEqual(used(200_000), [0, 0])
  })

  it("a hundred thousand arrivals are booked without looking through the window each time", () => {
    const books = ledger.make({
      models: { m: { limits: [{ dimension: "requests", limit: 50_000, period: 1e9, countRefused: "requests" }] } }
    })
    let refused = 0
    for (let i = 0; i < 100_000; i++) {
      const decision = books.admit("m", { input: 1, maxOutput: 1 }, i)
      if (decision?.refusal === undefined) books.complete(decision?.id ?? 0, 1, i)
      else refused++
    }
    assert.strictEqual(refused, 50_000)
  }, 20_000)
})
