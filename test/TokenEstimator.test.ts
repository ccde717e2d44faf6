import { assert, describe, it } from "@effect/vitest"
import * as TokenEstimator from "effect-llm-queue/TokenEstimator"
import { guard, measure, ReservationMeter } from "../src/internal/tokenEstimator.ts"
import { random } from "./laws/schedule.ts"

const seeds = [1, 2, 3, 4, 5]

const generator = (seed: number) => {
  const { next } = random(seed)
  const normal = () => Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next())
  return { next, normal, logNormal: (median: number, sigma: number) => median * Math.exp(sigma * normal()) }
}

const text = (characters: number) => "x".repeat(Math.max(1, Math.round(characters)))

/** A file of random bytes. */
const base64 = (bytes: number, encoding: "base64" | "base64url" = "base64") => {
  const { between } = random(bytes)
  return Buffer.from(Array.from({ length: bytes }, () => between(0, 255))).toString(encoding)
}

const make = (options?: TokenEstimator.Options) => TokenEstimator.learned(options).make("model")

/** Asks and then tells, for each request in turn; what was estimated and what was used, after a warm-up. */
const stream = (
  estimator: TokenEstimator.Estimator,
  count: number,
  request: () => { readonly params: unknown; readonly inputTokens: number; readonly outputTokens?: number }
) => {
  const seen: Array<{ readonly estimated: TokenEstimator.Estimate; readonly input: number; readonly output: number }> =
    []
  for (let i = 0; i < count; i++) {
    const { inputTokens, outputTokens = 1, params } = request()
    const estimated = estimator.estimate({ params })
    const [input, output] = [Math.max(1, Math.round(inputTokens)), Math.round(outputTokens)]
    estimated.observe({ inputTokens: input, outputTokens: output })
    if (i >= count / 4) seen.push({ estimated, input, output })
  }
  const mean = (of: (one: (typeof seen)[number]) => number) => seen.reduce((sum, one) => sum + of(one), 0) / seen.length
  return {
    /** Share of the requests whose input was estimated high enough. */
    covered: mean(({ estimated, input }) => estimated.inputTokens >= input ? 1 : 0),
    outputCovered: mean(({ estimated, output }) => estimated.outputTokens >= output ? 1 : 0),
    excess: mean(({ estimated, input }) => estimated.inputTokens / input)
  }
}

describe("learned input", () => {
  it("is a quarter of the characters of all strings before anything was observed, and at least 1", () => {
    const cyclic: Record<string, unknown> = {
      prompt: text(40),
      aVeryLongKeyThatIsNotCounted: [text(3), { deep: text(1) }]
    }
    cyclic["self"] = cyclic
    const sizes = [
      [cyclic, 11],
      [text(401), 101],
      [new Map([["key", text(8)]]), 2],
      [new Set([text(8), text(9)]), 5],
      [{ bytes: new Uint8Array(4000), number: 123456789 }, 1],
      [undefined, 1],
      [null, 1],
      [{}, 1],
      [{ image: `data:image/png;base64,${text(100_000)}`, prompt: text(400) }, 1100]
    ] as const
    for (const [params, tokens] of sizes) assert.strictEqual(make().estimate({ params }).inputTokens, tokens)
  })

  it("is 1,000 tokens for a file in base64, wherever it is", () => {
    const files = [
      { source: { type: "base64", media_type: "image/png", data: base64(100_000) } },
      { parts: [{ inlineData: { mimeType: "image/png", data: base64(100_001) } }] },
      { type: "input_audio", input_audio: { format: "mp3", data: base64(100_002) } },
      // A second of silence first.
      { format: "pcm16", data: "A".repeat(64_000) + base64(90_000) },
      [base64(100_000, "base64url")],
      base64(3001)
    ]
    // With a few for the words that say what it is.
    for (const options of [undefined, { atLeastCharacters: true }, { counter: (text: string) => text.length / 4 }]) {
      for (const file of files) {
        assert.approximately(make(options).estimate({ params: [file, text(400)] }).inputTokens, 1102, 4)
      }
    }
  })

  it("is that of a text for a short base64, and for what is base64 in part or by chance", () => {
    const texts = [
      base64(3000),
      `Decode ${base64(30_000)}`,
      `${base64(30_000)}\n`,
      "x".repeat(40_000),
      "DEADBEEF01".repeat(1000),
      "deadbeef01".repeat(1000)
    ]
    for (const each of texts) {
      assert.strictEqual(make().estimate({ params: each }).inputTokens, Math.ceil(each.length / 4))
    }
  })

  it("never throws, whatever the parameters and labels are", () => {
    const hostile = {
      prompt: text(400),
      get trap(): string {
        throw new Error("read")
      }
    }
    const trapped = new Proxy({}, {
      get: () => {
        throw new Error("get")
      },
      ownKeys: () => {
        throw new Error("keys")
      }
    })
    const nested = { prompt: text(400), hostile: trapped }
    assert.strictEqual(make().estimate({ params: hostile, labels: trapped }).inputTokens, 1)
    assert.strictEqual(make().estimate({ params: nested }).inputTokens, 100)
    let deep: unknown = text(40)
    for (let i = 0; i < 100_000; i++) deep = [deep]
    assert.strictEqual(make().estimate({ params: deep }).inputTokens, 10)
  })

  it("finds the ratio of any language, and covers four requests of five", () => {
    for (const seed of seeds) {
      for (const ratio of [0.7, 1.11, 1.8, 3.5]) {
        const { logNormal, normal } = generator(seed)
        const estimator = make()
        const { covered, excess } = stream(estimator, 800, () => {
          const params = text(logNormal(4000, 0.8))
          return { params, inputTokens: (params.length / 4) * ratio * (1 + 0.1 * normal()) }
        })
        const [stats] = estimator.stats()
        assert.approximately(stats!.ratio, ratio, ratio * 0.08)
        assert.approximately(stats!.deviation, ratio * 0.1, ratio * 0.05)
        assert.isAbove(covered, 0.78)
        assert.isBelow(covered, 0.9)
        assert.isBelow(excess, 1.14)
      }
    }
  })

  it("is near after five requests", () => {
    for (const seed of seeds) {
      const { normal } = generator(seed)
      const estimator = make()
      stream(estimator, 5, () => ({ params: text(4000), inputTokens: 3000 * (1 + 0.05 * normal()) }))
      const { inputTokens } = estimator.estimate({ params: text(4000) })
      assert.isAbove(inputTokens, 2700)
      assert.isBelow(inputTokens, 4500)
    }
  })

  it("learns the tokens that come with every request, so that neither short nor long ones are far off", () => {
    for (const seed of seeds) {
      const { logNormal, normal } = generator(seed)
      const estimator = make()
      const { covered, excess } = stream(estimator, 400, () => {
        const params = text(logNormal(1000, 1.2))
        return { params, inputTokens: 2000 + (params.length / 4) * 1.11 * (1 + 0.1 * normal()) }
      })
      assert.approximately(estimator.stats()[0]!.fixedTokens, 2000, 50)
      assert.isAbove(covered, 0.78)
      assert.isBelow(excess, 1.2)
      assert.approximately(estimator.estimate({ params: text(1) }).inputTokens, 2000, 60)
      assert.approximately(estimator.estimate({ params: text(400_000) }).inputTokens, 2000 + 111_000 * 1.1, 15_000)
    }
  })

  it("does not take noise for tokens that come with every request", () => {
    for (const seed of seeds) {
      const { next, normal } = generator(seed)
      const estimator = make()
      stream(estimator, 300, () => {
        const params = text(4000 + 400 * next())
        return { params, inputTokens: (params.length / 4) * 1.1 * (1 + 0.1 * normal()) }
      })
      const { inputTokens } = estimator.estimate({ params: text(400_000) })
      assert.isAbove(inputTokens, 80_000)
      assert.isBelow(inputTokens, 140_000)
    }
  })

  it("does not take longer texts for free when those seen all took the same", () => {
    for (const seed of seeds) {
      const { next, normal } = generator(seed)
      const estimator = make()
      stream(estimator, 300, () => ({ params: text(4000 + 400 * next()), inputTokens: 1100 * (1 + 0.02 * normal()) }))
      assert.isAbove(estimator.estimate({ params: text(400_000) }).inputTokens, 50_000)
    }
  })

  it("with an exact counter, the deviation vanishes and the provider's own tokens stay", () => {
    const { logNormal } = generator(1)
    const estimator = make({ counter: (text) => text.length / 2 })
    const { covered, excess } = stream(estimator, 400, () => {
      const params = text(2 * Math.round(logNormal(500, 1)))
      return { params, inputTokens: params.length / 2 + 7 }
    })
    const [stats] = estimator.stats()
    assert.approximately(stats!.fixedTokens, 7, 0.5)
    assert.isBelow(stats!.deviation, 0.01)
    assert.strictEqual(covered, 1)
    assert.isBelow(excess, 1.02)
  })

  it("one wrong report moves it by less than a third, and is forgotten", () => {
    for (const wrong of [1, 10_000, 10_000_000]) {
      const estimator = make()
      let odd = 0
      const next = () => ({ params: text(4000), inputTokens: 1100 + 100 * (odd = 1 - odd) })
      stream(estimator, 300, next)
      const { inputTokens: before } = estimator.estimate({ params: text(4000) })
      estimator.estimate({ params: text(4000) }).observe({ inputTokens: wrong, outputTokens: 1 })
      const { inputTokens: after } = estimator.estimate({ params: text(4000) })
      assert.isAbove(after, before * 0.85)
      assert.isBelow(after, before * 1.33)
      stream(estimator, 100, next)
      assert.approximately(estimator.estimate({ params: text(4000) }).inputTokens, before, before * 0.02)
    }
  })

  it("a first report that is wrong is forgotten too", () => {
    const estimator = make()
    estimator.estimate({ params: text(4000) }).observe({ inputTokens: 10_000_000, outputTokens: 1 })
    assert.isBelow(estimator.estimate({ params: text(4000) }).inputTokens, 10_000)
    stream(estimator, 40, () => ({ params: text(4000), inputTokens: 1100 }))
    assert.isBelow(estimator.estimate({ params: text(4000) }).inputTokens, 1600)
  })

  it("a lasting change is followed within twenty requests, up and down", () => {
    const estimator = make()
    for (const ratio of [1, 4, 1]) {
      stream(estimator, 60, () => ({ params: text(4000), inputTokens: 1000 * ratio }))
      stream(estimator, 20, () => ({ params: text(4000), inputTokens: 1000 * ratio }))
      const { inputTokens } = estimator.estimate({ params: text(4000) })
      assert.isAtLeast(inputTokens, 1000 * ratio)
    }
    const rising = make()
    stream(rising, 100, () => ({ params: text(4000), inputTokens: 1000 }))
    stream(rising, 20, () => ({ params: text(4000), inputTokens: 4000 }))
    assert.isAbove(rising.estimate({ params: text(4000) }).inputTokens, 3800)
  })

  it("reports that cannot be true teach nothing", () => {
    const estimator = make()
    const reports = [
      [0, 0],
      [Number.NaN, 1],
      [1, Number.NaN],
      [-5, 1],
      [1, -5],
      [Number.POSITIVE_INFINITY, 1],
      [10_000_001, 1],
      [1, 1_000_001]
    ] as const
    for (const [inputTokens, outputTokens] of reports) {
      for (let i = 0; i < 20; i++) estimator.estimate({ params: text(4000) }).observe({ inputTokens, outputTokens })
    }
    assert.strictEqual(estimator.stats()[0]!.observations, 0)
    const { inputTokens, outputTokens } = estimator.estimate({ params: text(4000) })
    assert.deepStrictEqual([inputTokens, outputTokens], [1000, 1024])
  })

  it("stays a whole number of at least 1 after any sequence of reports", () => {
    for (const seed of seeds) {
      const { between, pick } = random(seed)
      const estimator = make({ deviations: pick([0, 1, 10]) })
      for (let i = 0; i < 2000; i++) {
        const estimated = estimator.estimate({ params: text(4 ** between(0, 8)), maxOutputTokens: pick([0, 5, 100.5]) })
        assert.isTrue(Number.isSafeInteger(estimated.inputTokens) && estimated.inputTokens >= 1)
        assert.isTrue(Number.isSafeInteger(estimated.outputTokens) && estimated.outputTokens >= 0)
        assert.isAtMost(estimated.outputTokens, 100)
        const tokens = () => pick([0, 1, 10, 1e3, 1e6, 1e7, 1e300, -1, Number.NaN, Number.POSITIVE_INFINITY])
        estimated.observe({ inputTokens: tokens(), outputTokens: tokens(), cachedInputTokens: tokens() })
      }
      for (const value of Object.values(estimator.stats()[0]!)) {
        if (typeof value === "number") assert.isTrue(Number.isFinite(value) && value >= 0)
      }
    }
  })

  it("learns from one report of a request, and not from a second", () => {
    const estimator = make()
    const estimated = estimator.estimate({ params: text(4000) })
    estimated.observe({ inputTokens: 1000, outputTokens: 10 })
    estimated.observe({ inputTokens: 8000, outputTokens: 10 })
    assert.strictEqual(estimator.stats()[0]!.observations, 1)
    assert.strictEqual(estimator.estimate({ params: text(4000) }).inputTokens, 1000)
  })

  it("is never below a quarter of the characters where the provider charges them", () => {
    const request = () => ({ params: text(4000), inputTokens: 500 })
    const [plain, atLeast] = [make(), make({ atLeastCharacters: true, counter: () => 500 })]
    stream(plain, 200, request)
    stream(atLeast, 200, request)
    assert.isBelow(plain.estimate({ params: text(4000) }).inputTokens, 600)
    assert.strictEqual(atLeast.estimate({ params: text(4000) }).inputTokens, 1000)
  })

  it("a counter that throws or answers nonsense is replaced by a quarter of the characters", () => {
    for (const answer of [Number.NaN, -1, Number.POSITIVE_INFINITY]) {
      assert.strictEqual(make({ counter: () => answer }).estimate({ params: text(400) }).inputTokens, 100)
    }
    const throwing = make({
      counter: () => {
        throw new Error("counter")
      }
    })
    assert.strictEqual(throwing.estimate({ params: text(400) }).inputTokens, 100)
  })

  it("a counter sees about 65,536 characters of a request, and the rest is taken to be like them", () => {
    let seen = 0
    const counter = (text: string) => {
      seen += text.length
      return text.length / 2
    }
    const params = Array.from({ length: 1000 }, () => text(1000))
    assert.strictEqual(measure(params, counter).tokens, 500_000)
    assert.strictEqual(seen, 66_000)
  })
})

describe("learned output", () => {
  it("starts at 1,024 or the request's maximum, and ten completions replace it", () => {
    const estimator = make()
    const output = (maxOutputTokens?: number) => estimator.estimate({ params: "", maxOutputTokens }).outputTokens
    assert.deepStrictEqual([output(), output(100), output(5000)], [1024, 100, 1024])
    estimator.estimate({ params: "" }).observe({ inputTokens: 10, outputTokens: 3000 })
    assert.deepStrictEqual([output(), output(100)], [3000, 100])
    stream(estimator, 8, () => ({ params: "", inputTokens: 10, outputTokens: 20 }))
    assert.strictEqual(output(), 3000)
    stream(estimator, 11, () => ({ params: "", inputTokens: 10, outputTokens: 20 }))
    assert.strictEqual(output(), 20)
  })

  it("covers the share of a log-normal stream that its quantile says", () => {
    for (const seed of seeds) {
      for (const quantile of [0.5, 0.9, 0.99]) {
        const { logNormal } = generator(seed)
        const { outputCovered } = stream(make({ quantile }), 2000, () => ({
          params: "",
          inputTokens: 10,
          outputTokens: logNormal(300, 0.8)
        }))
        // Three standard deviations of the share of 1,500, and those of the quantile's own sample of 300.
        const spread = 3 * Math.sqrt(quantile * (1 - quantile) / 1500) + 0.01
        assert.approximately(outputCovered, quantile, spread)
      }
    }
  })

  it("follows the last 300 completions", () => {
    const estimator = make()
    stream(estimator, 1000, () => ({ params: "", inputTokens: 10, outputTokens: 4000 }))
    stream(estimator, 269, () => ({ params: "", inputTokens: 10, outputTokens: 50 }))
    assert.strictEqual(estimator.estimate({ params: "" }).outputTokens, 4000)
    stream(estimator, 2, () => ({ params: "", inputTokens: 10, outputTokens: 50 }))
    assert.strictEqual(estimator.estimate({ params: "" }).outputTokens, 50)
  })

  it("is 0 for models that produce none", () => {
    const estimator = make()
    stream(estimator, 20, () => ({ params: "", inputTokens: 10, outputTokens: 0 }))
    assert.strictEqual(estimator.estimate({ params: "" }).outputTokens, 0)
  })

  it("options out of their range are the defaults", () => {
    for (const bad of [Number.NaN, -1, 0, Number.POSITIVE_INFINITY]) {
      const estimator = make({ quantile: bad, deviations: bad === 0 ? 11 : bad, keys: bad })
      let i = 0
      stream(estimator, 300, () => ({ params: text(4000), inputTokens: 1000 + 100 * (i % 2), outputTokens: i++ % 100 }))
      const { inputTokens, outputTokens } = estimator.estimate({ params: text(4000) })
      assert.strictEqual(outputTokens, 90)
      assert.approximately(inputTokens, 1100, 5)
    }
  })
})

describe("labels", () => {
  const observe = (
    estimator: TokenEstimator.Estimator,
    labels: Readonly<Record<string, string>> | undefined,
    inputTokens: number,
    count = 10
  ) => {
    for (let i = 0; i < count; i++) {
      estimator.estimate({ params: text(4000), labels }).observe({ inputTokens, outputTokens: inputTokens })
    }
  }

  it("keep tasks apart, in whatever order they are written", () => {
    const estimator = make()
    observe(estimator, { task: "translate", to: "ja" }, 4000, 100)
    observe(estimator, { task: "summarize" }, 1000, 100)
    const estimate = (labels: Record<string, string>) => estimator.estimate({ params: text(4000), labels })
    const { inputTokens, outputTokens } = estimate({ to: "ja", task: "translate" })
    assert.approximately(inputTokens, 4000, 100)
    assert.strictEqual(outputTokens, 4000)
    assert.approximately(estimate({ task: "summarize" }).inputTokens, 1000, 40)
    assert.strictEqual(estimate({ task: "summarize" }).outputTokens, 1000)
    assert.deepStrictEqual(estimator.stats().map(({ labels, observations }) => [labels, observations]), [
      [{}, 200],
      [{ task: "translate", to: "ja" }, 100],
      [{ task: "summarize" }, 100]
    ])
  })

  it("with fewer than ten observations are estimated by all requests of the model", () => {
    const estimator = make()
    observe(estimator, undefined, 1000, 100)
    observe(estimator, { task: "new" }, 1400, 9)
    assert.isBelow(estimator.estimate({ params: text(4000), labels: { task: "new" } }).inputTokens, 1390)
    assert.strictEqual(estimator.estimate({ params: text(4000), labels: { task: "new" } }).outputTokens, 1000)
    observe(estimator, { task: "new" }, 1400, 1)
    assert.strictEqual(estimator.estimate({ params: text(4000), labels: { task: "new" } }).outputTokens, 1400)
    const other = estimator.estimate({ params: text(4000), labels: { task: "other" } })
    const none = estimator.estimate({ params: text(4000) })
    assert.deepStrictEqual([other.inputTokens, other.outputTokens], [none.inputTokens, none.outputTokens])
  })

  it("are kept up to a number, and the one not used for longest goes", () => {
    const estimator = make({ keys: 3 })
    const kept = () => estimator.stats().slice(1).map(({ labels }) => labels["id"])
    for (const id of ["a", "b", "c"]) observe(estimator, { id }, 1000)
    estimator.estimate({ params: "", labels: { id: "a" } })
    observe(estimator, { id: "d" }, 1000, 1)
    assert.deepStrictEqual(kept(), ["c", "a", "d"])
    for (let i = 0; i < 10_000; i++) observe(estimator, { id: String(i) }, 1000, 1)
    assert.lengthOf(kept(), 3)
    const unbounded = make()
    for (let i = 0; i < 1000; i++) observe(unbounded, { id: String(i) }, 1000, 1)
    assert.lengthOf(unbounded.stats(), 101)
  })

  it("of one model teach nothing about another", () => {
    const estimators = TokenEstimator.learned()
    observe(estimators.make("a"), undefined, 4000)
    const { inputTokens, outputTokens } = estimators.make("b").estimate({ params: text(4000) })
    assert.deepStrictEqual([inputTokens, outputTokens], [1000, 1024])
  })

  it("the share read from the cache is known", () => {
    const estimator = make()
    for (let i = 0; i < 50; i++) {
      estimator.estimate({ params: "" }).observe({
        inputTokens: 100,
        outputTokens: 1,
        cachedInputTokens: i % 2 === 0 ? 90 : undefined
      })
    }
    assert.approximately(estimator.stats()[0]!.cachedShare, 0.45, 0.05)
  })
})

describe("somebody's estimator", () => {
  const whole = (inputTokens: number, outputTokens: number): TokenEstimator.Estimator => ({
    estimate: () => ({ inputTokens, outputTokens, observe: () => undefined }),
    stats: () => []
  })

  it("is asked, and its fractions are rounded up", () => {
    const problems: Array<string> = []
    const { inputTokens, outputTokens } = guard(whole(10.5, 0.1), make(), (problem) => problems.push(problem))
      .estimate({ params: text(4000) })
    assert.deepStrictEqual([inputTokens, outputTokens, problems], [11, 1, []])
  })

  it("may throw or answer nonsense: that is reported, and the fallback's estimate is taken", () => {
    const problems: Array<string> = []
    const report = (problem: string) => problems.push(problem)
    const throws = (): never => {
      throw new Error("mine")
    }
    const broken = [
      whole(Number.NaN, 1),
      whole(1, -1),
      { ...whole(1, 1), estimate: throws },
      { ...whole(1, 1), estimate: () => undefined as never }
    ]
    for (const estimator of broken) {
      const { inputTokens, outputTokens } = guard(estimator, make(), report).estimate({ params: text(4000) })
      assert.deepStrictEqual([inputTokens, outputTokens], [1000, 1024])
    }
    assert.lengthOf(problems, 4)
    assert.strictEqual(problems[0], "estimate: gave NaN input and 1 output tokens")
    assert.strictEqual(problems[2], "estimate: threw Error: mine")

    problems.length = 0
    const fallback = make()
    const deaf = guard(
      { estimate: () => ({ inputTokens: 1, outputTokens: 1, observe: throws }), stats: throws },
      fallback,
      report
    )
    deaf.estimate({ params: "" }).observe({ inputTokens: 1, outputTokens: 1 })
    assert.deepStrictEqual(deaf.stats(), [])
    assert.deepStrictEqual(problems, ["observe: threw Error: mine", "stats: threw Error: mine"])
    assert.strictEqual(fallback.stats()[0]!.observations, 1)
  })
})

/**
 * A queue that always has work, against a limit: what the requests that end in `[from, to)` really used, as a share of
 * what the limit allows in that time. Times in whole steps.
 */
const simulate = (plan: {
  readonly charged: number
  readonly used: number
  readonly duration: number
  readonly period: number
  readonly refund: boolean
  readonly bucket: boolean
  readonly from: number
  readonly to: number
}): number => {
  const { bucket, charged, duration, from, period, refund, to, used } = plan
  const limit = 10_000_000
  const back = refund ? charged - used : 0
  /** Per step: requests let through, and how much of each still counts in the window. */
  const started: Array<number> = []
  let level = limit
  let window = 0
  let ended = 0
  for (let now = 0; now < to; now++) {
    window -= (started[now - period] ?? 0) * (duration < period ? charged - back : charged)
    const done = started[now - duration] ?? 0
    if (duration < period) window -= done * back
    if (now >= from) ended += done
    level = Math.min(limit, level + done * back + (now > 0 ? limit / period : 0))
    const count = Math.floor((bucket ? level : limit - window) / charged)
    level -= count * charged
    window += count * charged
    started.push(count)
  }
  return (ended * used) / ((limit * (to - from)) / period)
}

describe("throughput", () => {
  const period = 600
  const reservations = [[900, 100], [4400, 100], [16_900, 100], [16_900, 400], [4400, 500], [4400, 900]] as const

  it("is what a queue that always has work gets out of a window, by simulation", () => {
    for (const refund of [true, false]) {
      for (const [charged, duration] of reservations) {
        const plan = { charged, used: 800, duration, period, refund }
        const simulated = simulate({ ...plan, bucket: false, from: 20 * period, to: 50 * period })
        assert.approximately(TokenEstimator.throughput(plan) / simulated, 1, 0.02, JSON.stringify(plan))
      }
    }
  })

  it("is what a queue gets out of a full bucket at first, which rises to everything, by simulation", () => {
    for (const [charged, duration] of reservations) {
      const plan = { charged, used: 800, duration, period, refund: true, algorithm: "tokenBucket" as const }
      const first = simulate({ ...plan, bucket: true, from: duration, to: 2 * duration })
      assert.approximately(TokenEstimator.throughput(plan) / Math.min(1, first), 1, 0.02, JSON.stringify(plan))
      const later = Math.ceil((5 * duration * charged) / 800)
      assert.isAbove(simulate({ ...plan, bucket: true, from: later, to: later + 20 * period }), 0.98)
    }
  })

  it("is what a queue gets out of a bucket that nothing is given back to, by simulation", () => {
    for (const [charged, duration] of reservations) {
      const plan = { charged, used: 800, duration, period, refund: false, algorithm: "tokenBucket" as const }
      const simulated = simulate({ ...plan, bucket: true, from: 20 * period, to: 50 * period })
      assert.approximately(TokenEstimator.throughput(plan) / simulated, 1, 0.02, JSON.stringify(plan))
    }
  })

  it("gives the known figures for a limit of a minute", () => {
    const plan = { used: 800, duration: "10 seconds", algorithm: "tokenBucket" } as const
    assert.strictEqual(TokenEstimator.throughput({ ...plan, charged: 500 + 4096 }), 1)
    assert.approximately(TokenEstimator.throughput({ ...plan, charged: 500 + 16_384 }), 0.332, 0.001)
    assert.approximately(
      TokenEstimator.throughput({ ...plan, charged: 500 + 16_384, algorithm: "slidingWindow" }),
      0.23,
      0.001
    )
    const kept = { used: 1420, charged: 8192, refund: false, duration: 0 }
    assert.approximately(TokenEstimator.throughput(kept), 0.173, 0.001)
  })

  it("is from 0 to 1 for any numbers", () => {
    const numbers = [0, 1, 1000, 1e300, -1, Number.NaN, Number.POSITIVE_INFINITY]
    for (const charged of numbers) {
      for (const used of numbers) {
        for (const duration of [0, 1, 1e9]) {
          for (const period of [0, 1, 60_000]) {
            for (const refund of [true, false]) {
              for (const algorithm of ["slidingWindow", "tokenBucket"] as const) {
                const share = TokenEstimator.throughput({ charged, used, duration, period, refund, algorithm })
                assert.isTrue(
                  share >= 0 && share <= 1,
                  JSON.stringify({ charged, used, duration, period, refund, share })
                )
              }
            }
          }
        }
      }
    }
    assert.strictEqual(TokenEstimator.throughput({ charged: 100, used: 100, duration: "1 minute" }), 1)
    assert.strictEqual(TokenEstimator.throughput({ charged: 100, used: 0, duration: "1 minute" }), 0)
  })
})

describe("ReservationMeter", () => {
  const minute = { refund: false, bucket: false, period: 60_000 }
  const completion = (usedOutput: number) => ({
    charged: 1100 + 8192,
    chargedOutput: 8192,
    used: 1100 + usedOutput,
    usedOutput,
    duration: 10_000
  })

  it("says what over-large reservations cost, and what the longest answer would have cost", () => {
    const meter = new ReservationMeter()
    assert.isUndefined(meter.cost(minute))
    for (let i = 1; i <= 99; i++) meter.add(completion(i * 5))
    const cost = meter.cost(minute)!
    assert.deepStrictEqual({ ...cost, throughput: 0, throughputAtLargest: 0 }, {
      completions: 99,
      charged: 9292,
      used: 1350,
      throughput: 0,
      outputP90: 450,
      outputLargest: 495,
      throughputAtLargest: 0
    })
    assert.approximately(cost.throughput, 1350 / 9292, 1e-9)
    assert.approximately(cost.throughputAtLargest, 1350 / 1595, 1e-9)
    assert.isAbove(meter.cost({ ...minute, refund: true })!.throughput, cost.throughput)
  })

  it("moves with the last 300 completions, and ignores what is not a number", () => {
    const meter = new ReservationMeter()
    for (let i = 0; i < 1000; i++) meter.add(completion(8192))
    meter.add({ ...completion(1), duration: Number.NaN })
    assert.strictEqual(meter.cost(minute)!.throughput, 1)
    for (let i = 0; i < 300; i++) meter.add(completion(0))
    const cost = meter.cost(minute)!
    assert.deepStrictEqual([cost.completions, cost.used, cost.outputLargest], [300, 1100, 0])
  })
})
