import { NodeHttpServer } from "@effect/platform-node"
import { assert, describe, it } from "@effect/vitest"
import { Deferred, Duration, Effect, Fiber, Layer, Schema, Stream } from "effect"
import { FetchHttpClient, HttpClient, HttpClientRequest, HttpRouter, HttpServer } from "effect/http"
import { TestClock } from "effect/testing"
import { createServer } from "node:http"
import { crc32 } from "node:zlib"
import { ProviderSimulator } from "../../src/testing/index.ts"
import * as ledger from "../../src/testing/internal/ledger.ts"
import type { Limit } from "../../src/testing/internal/limits.ts"
import * as openai from "../../src/testing/internal/openai.ts"

type Request = ProviderSimulator.ChatRequest

/** A request of `input` prompt tokens that reserves `output` tokens. */
const request = (input: number, output: number, model = "m"): Request => ({
  model,
  messages: [{ role: "user", content: "x".repeat((input - 3) * 4) }],
  max_tokens: output
})

const oneRequest = request(10, 10)

describe("ProviderSimulator", () => {
  describe("windows", () => {
    it.effect("a charge leaves its window exactly one period after it was made", () =>
      Effect.gen(function*() {
        const provider = yield* ProviderSimulator.make({
          models: { m: [{ dimension: "requests", limit: 2, period: "1 second" }] }
        })
        const ask = Effect.isSuccess(provider.complete(oneRequest))
        yield* TestClock.adjust(Duration.nanos(100_000n))
        assert.deepStrictEqual([yield* ask, yield* ask, yield* ask], [true, true, false])
        yield* TestClock.adjust(Duration.nanos(999_999_999n))
        assert.isFalse(yield* ask)
        yield* TestClock.adjust(Duration.nanos(1n))
        assert.deepStrictEqual([yield* ask, yield* ask, yield* ask], [true, true, false])
      }))

    it("instants are exact to a nanosecond at any fraction of a millisecond", () => {
      const period = 60_000
      for (let i = 0; i < 2000; i++) {
        const books = ledger.make({
          models: { m: { limits: [{ dimension: "requests", limit: 1, period }] } }
        })
        const nanos = 123_456_789 * (i + 1)
        assert.isUndefined(books.admit("m", { input: 1, maxOutput: 1 }, nanos / 1e6)?.refusal)
        assert.strictEqual(
          books.admit("m", { input: 1, maxOutput: 1 }, (nanos + period * 1e6 - 1) / 1e6)?.refusal?.retryAfter,
          1e-6
        )
        assert.isUndefined(books.admit("m", { input: 1, maxOutput: 1 }, (nanos + period * 1e6) / 1e6)?.refusal)
      }
    })

    it("a correction never adds, time never goes back, and a limit that is not a number admits nothing", () => {
      const books = ledger.make({
        models: {
          m: { limits: [{ dimension: "output", limit: 100, period: 1000 }] },
          n: { limits: [{ dimension: "output", limit: NaN, period: 1000 }] }
        }
      })
      books.complete(books.admit("m", { input: 1, maxOutput: 60 }, 500)?.id ?? 0, 90, 600)
      assert.deepInclude(books.admit("m", { input: 1, maxOutput: 41 }, 0)?.refusal, { used: 60, retryAfter: 900 })
      assert.deepStrictEqual(books.arrivals().map(({ at }) => at), [500, 600])
      assert.isTrue(books.admit("n", { input: 1, maxOutput: 1 }, 0)?.refusal?.tooLarge)
    })

    it.effect("a refusal names the first dimension without room and charges none", () =>
      Effect.gen(function*() {
        const provider = yield* ProviderSimulator.make({
          models: {
            m: [
              { dimension: "output", limit: 20 },
              { dimension: "input", limit: 30 },
              { dimension: "tokens", limit: 45 },
              { dimension: "requests", limit: 3 }
            ]
          }
        })
        const refused = (input: number, output: number) =>
          Effect.map(Effect.flip(provider.complete(request(input, output))), (error) =>
            error._tag === "Refused" ? [error.dimension, error.used, error.requested] : error._tag)

        yield* provider.complete(request(20, 1))
        assert.deepStrictEqual(yield* refused(15, 20), ["tokens", 21, 35])
        assert.deepStrictEqual(yield* refused(11, 1), ["input", 20, 11])
        assert.deepStrictEqual(yield* refused(4, 20), ["output", 1, 20])
        assert.deepStrictEqual(yield* refused(15, 20), ["tokens", 21, 35])
        yield* provider.complete(request(4, 1))
        yield* provider.complete(request(4, 1))
        assert.deepStrictEqual(yield* refused(15, 20), ["requests", 3, 1])
        const { models: [report] } = yield* provider.report()
        assert.deepStrictEqual(report?.limits.map((limit) => [limit.dimension, limit.net]), [
          ["requests", 3],
          ["tokens", 31],
          ["input", 28],
          ["output", 3]
        ])
        assert.deepStrictEqual(report?.refusedBy, {
          requests: 1,
          tokens: 2,
          input: 1,
          output: 1,
          concurrent: 0,
          spend: 0
        })
      }))

    it.effect("models do not share limits", () =>
      Effect.gen(function*() {
        const provider = yield* ProviderSimulator.make({
          models: { a: [{ dimension: "requests", limit: 1 }], b: [{ dimension: "requests", limit: 1 }], c: [] }
        })
        yield* provider.complete(request(10, 10, "a"))
        yield* provider.complete(request(10, 10, "b"))
        yield* Effect.flip(provider.complete(request(10, 10, "a")))
        yield* Effect.replicateEffect(provider.complete(request(10, 10, "c")), 5)
      }))

    it.effect("completion rewrites the charge, which keeps the date of its admission", () =>
      Effect.gen(function*() {
        const provider = yield* ProviderSimulator.make({
          models: { m: [{ dimension: "output", limit: 1000, period: "10 seconds" }] },
          serviceTime: { base: "4 seconds" }
        })
        const fiber = yield* Effect.forkChild(provider.complete(request(10, 900)))
        yield* TestClock.adjust("3 seconds")
        const before = yield* Effect.flip(provider.complete(request(10, 900)))
        assert(before._tag === "Refused")
        assert.strictEqual(before.used, 900)
        yield* TestClock.adjust("1 second")
        const produced = (yield* Fiber.join(fiber)).usage.outputTokens
        assert.isBelow(produced, 900)

        const after = yield* Effect.flip(provider.complete(request(10, 1000)))
        assert(after._tag === "Refused")
        assert.strictEqual(after.used, produced)
        assert.strictEqual(after.retryAfter, 6000)
        yield* TestClock.adjust("6 seconds")
        yield* Effect.scoped(provider.start(request(10, 1000)))

        const [first] = yield* provider.arrivals
        assert.deepInclude(first, { at: 0, completedAt: 4000, abortedAt: undefined, admitted: true })
        assert.deepStrictEqual(first?.charge, {
          requests: 1,
          tokens: 910,
          input: 10,
          output: 900,
          concurrent: 1,
          spend: 0
        })
        assert.deepStrictEqual(first?.net, {
          requests: 1,
          tokens: 10 + produced,
          input: 10,
          output: produced,
          concurrent: 0,
          spend: 0
        })
      }))

    it.effect("a correction after the window has passed changes no later window", () =>
      Effect.gen(function*() {
        const provider = yield* ProviderSimulator.make({
          models: { m: [{ dimension: "output", limit: 1000, period: "1 second" }] },
          serviceTime: { base: "3 seconds" }
        })
        const fiber = yield* Effect.forkChild(provider.complete(request(10, 900)))
        yield* TestClock.adjust("2500 millis")
        const second = yield* Effect.forkChild(provider.complete(request(10, 1000)))
        yield* TestClock.adjust("500 millis")
        assert.isBelow((yield* Fiber.join(fiber)).usage.outputTokens, 900)
        const refused = yield* Effect.flip(provider.complete(request(10, 1)))
        assert(refused._tag === "Refused")
        assert.strictEqual(refused.used, 1000)
        yield* Fiber.interrupt(second)
      }))

    it.effect("waiting exactly retry-after is admitted, a millisecond less is refused", () =>
      Effect.gen(function*() {
        for (
          const [input, dimension, wait] of [[5, "requests", 900], [60, "requests", 4100], [
            90,
            "requests",
            4900
          ]] as const
        ) {
          const provider = yield* ProviderSimulator.make({
            models: {
              m: [
                { dimension: "requests", limit: 3, period: "2 seconds" },
                { dimension: "tokens", limit: 100, period: "5 seconds" }
              ]
            }
          })
          yield* provider.complete(request(30, 1))
          yield* TestClock.adjust(200)
          yield* provider.complete(request(19, 1))
          yield* TestClock.adjust(800)
          yield* provider.complete(request(29, 1))
          yield* TestClock.adjust(100)
          const ask = provider.complete(request(input, 1))
          const refused = yield* Effect.flip(ask)
          assert.deepInclude(refused, { dimension, retryAfter: wait, isRetryable: true })
          yield* TestClock.adjust(wait - 1)
          assert.deepInclude(yield* Effect.flip(ask), { retryAfter: 1 })
          yield* TestClock.adjust(1)
          yield* ask
        }
      }))

    it.effect("a refused request counts as a request only when asked to, and then delays its own retry", () =>
      Effect.gen(function*() {
        for (const countRefused of [false, true]) {
          const provider = yield* ProviderSimulator.make({
            models: { m: [{ dimension: "requests", limit: 1, period: 1000 }, { dimension: "tokens", limit: 100 }] },
            countRefused
          })
          yield* provider.complete(request(60, 1))
          yield* TestClock.adjust(400)
          const refused = yield* Effect.flip(provider.complete(request(5, 1)))
          assert(refused._tag === "Refused")
          assert.deepInclude(refused, { used: 1, retryAfter: countRefused ? 1000 : 600 })
          assert.strictEqual(refused.headers["x-ratelimit-remaining-tokens"], "39")
          yield* TestClock.adjust(600)
          assert.strictEqual(yield* Effect.isSuccess(provider.complete(request(5, 1))), !countRefused)
          const { models: [report] } = yield* provider.report()
          assert.deepInclude(report?.limits[1], { dimension: "tokens", net: countRefused ? 61 : 67 })
        }
      }))

    it.effect("what can never fit is refused for good, even when other limits are full", () =>
      Effect.gen(function*() {
        const provider = yield* ProviderSimulator.make({
          models: { m: [{ dimension: "requests", limit: 1 }, { dimension: "tokens", limit: 100 }] }
        })
        yield* provider.complete(request(50, 50))
        const refused = yield* Effect.flip(provider.complete(request(50, 51)))
        assert.deepInclude(refused, {
          _tag: "Refused",
          dimension: "tokens",
          requested: 101,
          retryAfter: undefined,
          tooLarge: true,
          isRetryable: false,
          message: "Request too large for m in organization org-simulator on tokens per min (TPM): Limit 100, "
            + "Requested 101. The input or output tokens must be reduced in order to run successfully. "
            + "Visit https://platform.openai.com/account/rate-limits to learn more."
        })
        yield* TestClock.adjust("1 minute")
        yield* provider.complete(request(50, 50))
      }))

    const Limits = Schema.Array(Schema.Struct({
      dimension: Schema.Literals(["requests", "tokens", "input", "output", "concurrent"]),
      limit: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 60 })),
      period: Schema.Literals([50, 100, 300])
    })).check(Schema.isMinLength(1), Schema.isMaxLength(4))

    const Requests = Schema.Array(Schema.Struct({
      gap: Schema.Literals([0, 0, 1, 7, 25, 50]),
      input: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 15 })),
      output: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 15 })),
      actual: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 15 })),
      service: Schema.Literals([0, 10, 60, 120]),
      aborts: Schema.Boolean
    })).check(Schema.isMinLength(20), Schema.isMaxLength(60))

    it.effect.prop(
      "decisions, retry times and reports are those of the definition",
      { limits: Limits, requests: Requests },
      ({ limits, requests }) =>
        Effect.sync(() => {
          const order = ["requests", "tokens", "input", "output", "concurrent"] as const
          const books = ledger.make({
            models: {
              m: {
                limits: limits.map((limit) => limit.dimension === "concurrent" ? { ...limit, period: Infinity } : limit)
              }
            }
          })
          interface Admitted {
            readonly id: number
            readonly at: number
            readonly end: number
            readonly aborts: boolean
            readonly reserved: ProviderSimulator.Charge
            readonly corrected: ProviderSimulator.Charge
          }
          const admitted: Array<Admitted> = []
          const ended = new Set<number>()
          const level = ({ dimension, period }: Limit, t: number): number => {
            let sum = 0
            for (const entry of admitted) {
              const net = ended.has(entry.id) ? entry.corrected : entry.reserved
              if (dimension === "concurrent" ? !ended.has(entry.id) : entry.at > t - period) sum += net[dimension]
            }
            return sum
          }
          const endUntil = (t: number) => {
            for (const entry of admitted.filter(({ end, id }) => end <= t && !ended.has(id))) {
              if (entry.aborts) books.abort(entry.id, entry.end)
              else books.complete(entry.id, entry.corrected.output, entry.end)
              ended.add(entry.id)
            }
          }

          let now = 0
          for (const { aborts, actual, gap, input, output, service } of requests) {
            now += gap
            // Corrections reach the ledger in the order of time, as they do in a running server.
            admitted.sort((a, b) => a.end - b.end)
            endUntil(now)
            const reserved = { requests: 1, tokens: input + output, input, output, concurrent: 1, spend: 0 }
            const fits = (limit: Limit, t: number) => level(limit, t) + reserved[limit.dimension] <= limit.limit
            const byOrder = order.flatMap((dimension) => limits.filter((limit) => limit.dimension === dimension))
            const tooLarge = byOrder.find((limit) => reserved[limit.dimension] > limit.limit)
            const failed = tooLarge ?? byOrder.find((limit) => !fits(limit, now))
            const decision = books.admit("m", { input, maxOutput: output }, now)
            assert.strictEqual(decision?.refusal?.dimension, failed?.dimension)
            assert.strictEqual(decision?.refusal?.tooLarge ?? false, tooLarge !== undefined)
            if (failed === undefined) {
              const produced = aborts ? output : Math.min(actual, output)
              admitted.push({
                id: decision?.id ?? 0,
                at: now,
                end: now + service,
                aborts,
                reserved,
                corrected: { ...reserved, tokens: input + produced, output: produced, concurrent: 0 }
              })
            } else if (tooLarge === undefined) {
              const timed = limits.filter((limit) => limit.dimension !== "concurrent")
              const wait = Array.from({ length: 302 }, (_, i) => i).find((i) =>
                timed.every((limit) => fits(limit, now + i))
              )
              assert.strictEqual(decision?.refusal?.retryAfter, wait === 0 ? undefined : wait)
            }
          }

          admitted.sort((a, b) => a.end - b.end)
          endUntil(Infinity)
          const { models: [report] } = books.report(now, 100, 200)
          for (const limit of report?.limits ?? []) {
            if (limit.dimension === "concurrent") continue
            const period = limit.period ?? 0
            const netIn = (from: number, to: number) =>
              admitted.filter(({ at }) => at > from && at <= to)
                .reduce((sum, entry) => sum + entry.corrected[limit.dimension], 0)
            assert.strictEqual(limit.worstWindow, Math.max(0, ...admitted.map(({ at }) => netIn(at - period, at))))
            assert.isAtMost(limit.worstWindow, limit.limit)
            assert.closeTo(limit.utilisation, netIn(100, 200) / (limit.limit * 100 / period), 1e-9)
          }
        }),
      { arbitrary: { runs: 300, seed: 1 } }
    )
  })

  describe("requests", () => {
    it.effect("concurrent slots are freed by completion and by hanging up, which keeps the charge", () =>
      Effect.gen(function*() {
        const provider = yield* ProviderSimulator.make({
          models: { m: [{ dimension: "concurrent", limit: 2 }, { dimension: "tokens", limit: 1000 }] },
          serviceTime: { base: "10 seconds" }
        })
        const [first, second] = [
          yield* Effect.forkChild(provider.complete(request(10, 100))),
          yield* Effect.forkChild(provider.complete(request(10, 100)))
        ]
        yield* TestClock.adjust("4 seconds")
        const refused = yield* Effect.flip(provider.complete(oneRequest))
        assert.deepInclude(refused, { dimension: "concurrent", used: 2, retryAfter: undefined, isRetryable: true })
        yield* Fiber.interrupt(first)
        const third = yield* Effect.forkChild(provider.complete(request(10, 1)))
        yield* TestClock.adjust("6 seconds")
        const { usage } = yield* Fiber.join(second)
        const fourth = yield* Effect.forkChild(provider.complete(request(10, 1)))
        yield* TestClock.adjust("10 seconds")
        yield* Fiber.join(third)
        yield* Fiber.join(fourth)
        yield* Effect.scoped(provider.start(request(10, 1)))

        const arrivals = yield* provider.arrivals
        assert.deepStrictEqual(arrivals.map(({ abortedAt, completedAt }) => [completedAt, abortedAt]), [
          [undefined, 4000],
          [10_000, undefined],
          [undefined, undefined],
          [14_000, undefined],
          [20_000, undefined],
          [undefined, 20_000]
        ])
        const { models: [report] } = yield* provider.report({ from: 0, to: 10_000 })
        assert.deepInclude(report, {
          arrivals: 6,
          admitted: 5,
          refused: 1,
          completed: 3,
          aborted: 2,
          running: 0,
          maxConcurrent: 2
        })
        const [tokens, concurrent] = report?.limits ?? []
        assert.deepInclude(tokens, { charged: 110 + 110 + 3 * 11, net: 110 + 10 + usage.outputTokens + 3 * 11 })
        // In these 10 seconds the two slots were held for 4, 10 and 6 seconds.
        assert.deepInclude(concurrent, { worstWindow: 2, utilisation: 1 })
        const later = yield* provider.report({ from: 10_000, to: 20_000 })
        assert.strictEqual(later.models[0]?.limits[1]?.utilisation, (4 + 10) / 20)
      }))

    it.effect("utilisation counts the net charges dated in (from, to]", () =>
      Effect.gen(function*() {
        const provider = yield* ProviderSimulator.make({
          models: { m: [{ dimension: "input", limit: 100, period: "1 second" }] }
        })
        for (let i = 0; i < 4; i++) {
          yield* provider.complete(request(20 + i, 1))
          yield* TestClock.adjust("1 second")
        }
        const utilisation = (options?: { readonly from?: number; readonly to?: number }) =>
          Effect.map(provider.report(options), ({ models: [report] }) => report?.limits[0]?.utilisation)
        assert.strictEqual(yield* utilisation(), (20 + 21 + 22 + 23) / 400)
        assert.strictEqual(yield* utilisation({ from: 1000, to: 3000 }), (22 + 23) / 200)
        assert.strictEqual(yield* utilisation({ from: 0, to: 2000 }), (21 + 22) / 200)
        assert.strictEqual(yield* utilisation({ from: 5, to: 5 }), 0)
      }))

    it.effect("an answer takes the base time and the time of each token", () =>
      Effect.gen(function*() {
        const provider = yield* ProviderSimulator.make({
          models: { m: [] },
          serviceTime: { base: 500, perOutputToken: 0.3 }
        })
        const fiber = yield* Effect.forkChild(provider.complete(request(10, 1000)))
        yield* TestClock.adjust("1 hour")
        const { usage } = yield* Fiber.join(fiber)
        assert.isAbove(usage.outputTokens, 1)
        const [arrival] = yield* provider.arrivals
        assert.closeTo(arrival?.completedAt ?? 0, 500 + 0.3 * usage.outputTokens, 1e-6)
      }))

    it.effect("tokens of a stream come at their pace, and closing the scope before the last one aborts", () =>
      Effect.gen(function*() {
        const provider = yield* ProviderSimulator.make({
          models: { m: [{ dimension: "concurrent", limit: 5 }] },
          serviceTime: { base: 1000, perOutputToken: 100 }
        })
        const stream = (take: number) =>
          Effect.scoped(Effect.gen(function*() {
            const { completion, tokens } = yield* provider.start(request(10, 50))
            const seen: Array<number> = []
            const text = yield* Stream.runFold(
              Stream.take(tokens, take),
              () => "",
              (text, token) => (seen.push(0), text + token)
            )
            return { completion, text, seen, at: yield* provider.now }
          }))
        const whole = yield* Effect.forkChild(stream(Infinity))
        const part = yield* Effect.forkChild(stream(2))
        yield* TestClock.adjust("1 hour")
        const { completion, text, at } = yield* Fiber.join(whole)
        assert.strictEqual(text, completion.text)
        assert.isAbove(completion.usage.outputTokens, 2)
        assert.strictEqual(at, 1000 + 100 * completion.usage.outputTokens)
        assert.strictEqual((yield* Fiber.join(part)).at, 1200)
        const arrivals = yield* provider.arrivals
        assert.deepStrictEqual(arrivals.map(({ abortedAt, completedAt }) => [completedAt, abortedAt]), [
          [at, undefined],
          [undefined, 1200]
        ])
      }))

    it.effect("answers depend on prompt and seed only, and have 1 to max_tokens tokens", () =>
      Effect.gen(function*() {
        const lengths = (seed: number) =>
          Effect.gen(function*() {
            const provider = yield* ProviderSimulator.make({ models: { m: [] }, seed })
            return yield* Effect.forEach(Array.from({ length: 300 }, (_, i) => `prompt ${i}`), (content) =>
              Effect.map(
                provider.complete({ model: "m", messages: [{ role: "user", content }], max_tokens: 5 }),
                ({ finishReason, text, usage }) => {
                  assert.strictEqual(text.split(" ").length, usage.outputTokens)
                  assert.strictEqual(finishReason, usage.outputTokens === 5 ? "length" : "stop")
                  return usage.outputTokens
                }
              ))
          })
        const first = yield* lengths(1)
        assert.deepStrictEqual(yield* lengths(1), first)
        assert.notDeepEqual(yield* lengths(2), first)
        for (const length of [1, 2, 3, 4, 5]) {
          const share = first.filter((n) => n === length).length / first.length
          assert.closeTo(share, 0.2, 0.08)
        }
      }))

    it("prompt tokens are a quarter of the characters and three a message", () => {
      const messages: Request["messages"] = [
        { role: "system", content: "12345" },
        { role: "user", content: [{ type: "text", text: "678" }, { type: "image_url" }, { type: "text", text: "9" }] },
        { role: "assistant", content: null }
      ]
      assert.strictEqual(ProviderSimulator.promptTokens({ model: "m", messages }), 3 + 3 * 3)
    })

    it.effect("without max_tokens 16 are reserved, and max_completion_tokens goes first", () =>
      Effect.gen(function*() {
        const provider = yield* ProviderSimulator.make({ models: { m: [] } })
        const { messages } = oneRequest
        yield* provider.complete({ model: "m", messages })
        yield* provider.complete({ model: "m", messages, max_tokens: 7 })
        yield* provider.complete({ model: "m", messages, max_tokens: 7, max_completion_tokens: 9 })
        assert.deepStrictEqual((yield* provider.arrivals).map(({ charge }) => charge.output), [16, 7, 9])
      }))
  })

  it("durations print as in Go, rounded up to milliseconds", () => {
    assert.deepStrictEqual(
      [0, 0.2, 12, 999, 1000, 1378, 60_000, 360_000, 432_000, 3_600_000, 83_909_144].map(openai.goDuration),
      ["0s", "1ms", "12ms", "999ms", "1s", "1.378s", "1m0s", "6m0s", "7m12s", "1h0m0s", "23h18m29.144s"]
    )
  })

  // The server and its client run on real sockets, but time stands still unless a test moves it.
  describe("over HTTP", () => {
    const serve = (options: ProviderSimulator.Options) =>
      HttpServer.layerTestClient.pipe(
        Layer.provide(FetchHttpClient.layer),
        Layer.merge(HttpRouter.serve(ProviderSimulator.layerHttp, { disableLogger: true, disableListenLog: true })),
        Layer.provide(NodeHttpServer.layer(createServer, { host: "127.0.0.1", port: 0 })),
        Layer.provideMerge(ProviderSimulator.layer(options))
      )

    const post = (body: unknown) =>
      HttpClient.execute(HttpClientRequest.bodyJsonUnsafe(HttpClientRequest.post("/v1/chat/completions"), body))

    const until = (condition: Effect.Effect<boolean, never, ProviderSimulator.ProviderSimulator>) =>
      Effect.repeat(Effect.andThen(Effect.yieldNow, condition), { until: (done) => done })

    const count = (key: "running" | "completed" | "aborted") =>
      Effect.map(
        ProviderSimulator.ProviderSimulator.use((provider) => provider.report()),
        ({ models: [report] }) => report?.[key]
      )

    it.effect("an answer has the body and the rate-limit headers of OpenAI", () =>
      Effect.gen(function*() {
        yield* TestClock.adjust("5 seconds")
        const response = yield* post({ ...oneRequest, temperature: 0.5 })
        assert.strictEqual(response.status, 200)
        assert.deepInclude(response.headers, {
          "content-type": "application/json",
          "x-ratelimit-limit-requests": "500",
          "x-ratelimit-remaining-requests": "499",
          "x-ratelimit-reset-requests": "1m0s",
          "x-ratelimit-limit-tokens": "100",
          "x-ratelimit-remaining-tokens": "80",
          "x-ratelimit-reset-tokens": "1.5s"
        })
        const provider = yield* ProviderSimulator.ProviderSimulator
        const { text, usage } = yield* provider.complete(oneRequest)
        assert.deepStrictEqual(yield* response.json, {
          id: "chatcmpl-1",
          object: "chat.completion",
          created: 5,
          model: "m",
          choices: [{
            index: 0,
            message: { role: "assistant", content: text, refusal: null },
            logprobs: null,
            finish_reason: usage.outputTokens === 10 ? "length" : "stop"
          }],
          usage: {
            prompt_tokens: 10,
            completion_tokens: usage.outputTokens,
            total_tokens: 10 + usage.outputTokens
          }
        })
      }).pipe(Effect.provide(serve({
        models: {
          m: [
            { dimension: "requests", limit: 500 },
            { dimension: "tokens", limit: 100, period: 1500 },
            { dimension: "tokens", limit: 100_000, period: "1 day" }
          ]
        }
      }))))

    it.effect("a refusal is a 429 with the body and the hints of OpenAI", () =>
      Effect.gen(function*() {
        yield* post(request(60, 1))
        yield* TestClock.adjust(1234)
        const response = yield* post(request(50, 1))
        assert.strictEqual(response.status, 429)
        assert.deepInclude(response.headers, {
          "retry-after": "59",
          "retry-after-ms": "58766",
          "x-ratelimit-limit-tokens": "100",
          "x-ratelimit-remaining-tokens": "39",
          "x-ratelimit-reset-tokens": "58.766s"
        })
        assert.notProperty(response.headers, "x-should-retry")
        assert.notProperty(response.headers, "x-ratelimit-limit-requests")
        assert.deepStrictEqual(yield* response.json, {
          error: {
            message: "Rate limit reached for m in organization org-simulator on tokens per min (TPM): Limit 100, "
              + "Used 61, Requested 51. Please try again in 58.766s. "
              + "Visit https://platform.openai.com/account/rate-limits to learn more.",
            type: "tokens",
            param: null,
            code: "rate_limit_exceeded"
          }
        })
        const tooLarge = yield* post(request(100, 1))
        assert.strictEqual(tooLarge.status, 429)
        assert.deepInclude(tooLarge.headers, { "x-should-retry": "false", "x-ratelimit-remaining-tokens": "39" })
        assert.notProperty(tooLarge.headers, "retry-after")
      }).pipe(Effect.provide(serve({ models: { m: [{ dimension: "tokens", limit: 100 }] } }))))

    it.effect("bad input is answered 400 or 404 and never arrives", () =>
      Effect.gen(function*() {
        const { messages } = oneRequest
        const errorOf = Effect.fnUntraced(function*(body: unknown) {
          const response = yield* post(body)
          const { error } = yield* Schema.decodeUnknownEffect(Schema.Struct({
            error: Schema.Struct({
              message: Schema.NonEmptyString,
              type: Schema.String,
              param: Schema.Null,
              code: Schema.NullOr(Schema.String)
            })
          }))(yield* response.json)
          return [response.status, error.type, error.code]
        })
        for (
          const body of [
            null,
            [],
            "text",
            {},
            { messages },
            { model: 1, messages },
            { model: "m", messages: [] },
            { model: "m", messages: [{ role: "nobody", content: "x" }] },
            { model: "m", messages: [{ role: "user", content: 1 }] },
            { model: "m", messages, max_tokens: 0 },
            { model: "m", messages, max_tokens: 1.5 },
            { model: "m", messages, max_tokens: 1e15 },
            { model: "m", messages, n: 0 },
            { model: "m", messages, n: 129 },
            { model: "m", messages, stream: "yes" }
          ]
        ) {
          assert.deepStrictEqual(yield* errorOf(body), [400, "invalid_request_error", null], JSON.stringify(body))
        }
        for (const model of ["unknown", "constructor", "__proto__", ""]) {
          assert.deepStrictEqual(yield* errorOf({ model, messages }), [
            404,
            "invalid_request_error",
            "model_not_found"
          ])
        }
        for (const text of ["", "{", "\u0000"]) {
          const response = yield* HttpClient.execute(
            HttpClientRequest.bodyText(HttpClientRequest.post("/v1/chat/completions"), text, "application/json")
          )
          assert.strictEqual(response.status, 400)
          assert.include(yield* response.text, "\"invalid_request_error\"")
        }
        assert.strictEqual((yield* HttpClient.get("/__sim/stats?from=soon")).status, 400)
        const provider = yield* ProviderSimulator.ProviderSimulator
        assert.deepStrictEqual(yield* provider.arrivals, [])
      }).pipe(Effect.provide(serve({ models: { m: [] } }))))

    it.effect("a stream is made of chunks, with usage only when asked for, and ends with [DONE]", () =>
      Effect.gen(function*() {
        const provider = yield* ProviderSimulator.ProviderSimulator
        const { text, usage } = yield* provider.complete(oneRequest)
        for (const include_usage of [false, true]) {
          const response = yield* post({ ...oneRequest, stream: true, stream_options: { include_usage } })
          assert.strictEqual(response.status, 200)
          assert.strictEqual(response.headers["content-type"], "text/event-stream")
          assert.strictEqual(response.headers["x-ratelimit-limit-requests"], "9")
          const events = (yield* response.text).split("\n\n")
          assert.strictEqual(events.pop(), "")
          assert.strictEqual(events.pop(), "data: [DONE]")
          const chunks = events.map((event) => JSON.parse(event.replace(/^data: /, "")))
          assert.isTrue(chunks.every((chunk) => chunk.object === "chat.completion.chunk" && chunk.id === chunks[0].id))
          assert.isTrue(chunks.every((chunk) => ("usage" in chunk) === include_usage))
          if (include_usage) {
            const last = chunks.pop()
            assert.deepStrictEqual(last.choices, [])
            assert.deepStrictEqual(last.usage, {
              prompt_tokens: 10,
              completion_tokens: usage.outputTokens,
              total_tokens: 10 + usage.outputTokens
            })
          }
          const deltas = chunks.map((chunk) => chunk.choices[0])
          assert.deepStrictEqual(deltas[0].delta, { role: "assistant", content: "", refusal: null })
          assert.deepStrictEqual(deltas.at(-1).delta, {})
          assert.strictEqual(deltas.length, usage.outputTokens + 2)
          assert.strictEqual(deltas.slice(1, -1).map(({ delta }) => delta.content).join(""), text)
          assert.deepStrictEqual(
            deltas.map((choice) => choice.finish_reason).filter((reason) => reason !== null),
            [usage.outputTokens === 10 ? "length" : "stop"]
          )
        }
        assert.strictEqual(yield* count("completed"), 3)
      }).pipe(Effect.provide(serve({ models: { m: [{ dimension: "requests", limit: 9 }] } }))))

    it.effect("a client that hangs up while it waits aborts its request", () =>
      Effect.gen(function*() {
        const fiber = yield* Effect.forkChild(post(oneRequest))
        yield* until(Effect.map(count("running"), (running) => running === 1))
        yield* Fiber.interrupt(fiber)
        yield* until(Effect.map(count("aborted"), (aborted) => aborted === 1))
        assert.strictEqual(yield* count("running"), 0)
      }).pipe(Effect.provide(serve({ models: { m: [] }, serviceTime: { base: "1 hour" } }))))

    it.effect("a client that hangs up in the middle of a stream aborts its request", () =>
      Effect.gen(function*() {
        const begun = yield* Deferred.make<void>()
        const fiber = yield* post({ ...oneRequest, stream: true }).pipe(
          Effect.flatMap((response) => Stream.runForEach(response.stream, () => Deferred.succeed(begun, undefined))),
          Effect.forkChild
        )
        yield* Deferred.await(begun)
        assert.strictEqual(yield* count("running"), 1)
        yield* Fiber.interrupt(fiber)
        yield* until(Effect.map(count("aborted"), (aborted) => aborted === 1))
        assert.strictEqual(yield* count("running"), 0)
      }).pipe(Effect.provide(serve({ models: { m: [] }, serviceTime: { perOutputToken: "1 hour" } }))))

    it.effect("binary events are sent as bytes", () =>
      Effect.gen(function*() {
        const response = yield* HttpClient.execute(HttpClientRequest.bodyJsonUnsafe(
          HttpClientRequest.post("/model/m/converse-stream"),
          { messages: [{ role: "user", content: [{ text: "Hello" }] }] }
        ))
        assert.strictEqual(response.headers["content-type"], "application/vnd.amazon.eventstream")
        const bytes = Buffer.from(yield* response.arrayBuffer)
        const first = bytes.subarray(0, bytes.readUInt32BE(0))
        assert.strictEqual(first.readUInt32BE(first.length - 4), crc32(first.subarray(0, -4)))
      }).pipe(Effect.provide(serve({ models: { m: [] } }))))

    it.effect("the stats are the report", () =>
      Effect.gen(function*() {
        yield* post(oneRequest)
        yield* TestClock.adjust("1 minute")
        const provider = yield* ProviderSimulator.ProviderSimulator
        const whole = yield* HttpClient.get("/__sim/stats")
        assert.deepEqual(yield* whole.json, JSON.parse(JSON.stringify(yield* provider.report())))
        const part = yield* HttpClient.get("/__sim/stats?from=30000&to=40000")
        assert.deepEqual(
          yield* part.json,
          JSON.parse(JSON.stringify(yield* provider.report({ from: 30_000, to: 40_000 })))
        )
      }).pipe(Effect.provide(serve({ models: { m: [{ dimension: "requests", limit: 9 }] } }))))
  })
})
