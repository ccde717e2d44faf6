/** The cells of steady load: each one a provider's rules, a client that is told them, and a load that never ends. */
import { DateTime, Duration } from "effect"
import { ProviderProfile, RateLimiter } from "effect-llm-queue"
import * as bound from "./bound.ts"
import { utilisation } from "./measure.ts"
import type { Result } from "./report.ts"
import type * as server from "./server.ts"
import { type Load, type Plan, World } from "./world.ts"

export interface Cell {
  readonly name: string
  readonly profile: string
  readonly algorithm: string
  readonly charge: string
  readonly jitterMs: number
  readonly knownAlgorithm: boolean
  readonly plan: Plan
  /** The best that is possible for each limit of the server, in the same order; `undefined` where it is not looked at. */
  readonly bounds: ReadonlyArray<number | undefined>
  /** How far below the bound a cell may be. */
  readonly tolerance: number
  /** Cells of the reduced matrix. */
  readonly reduced: boolean
}

const minute = 60_000
/** Milliseconds since 1970. */
export const instant = (text: string): number => DateTime.makeUnsafe(text).epochMilliseconds
/** No edge of any window. */
export const wall = instant("2026-11-23T08:00:17.3Z")
/** What arrives in the last moments may still be running when the books are read. */
const drain = 30_000

const line = (jitter: number) => ({ uplink: 20, jitter, spread: "uniform", downlink: 20 }) as const

const periodOf = ({ period = minute }: server.Limit) => Duration.toMillis(period)

const mean = ([least, most]: readonly [number, number]) => (least + most) / 2

// ---------------------------------------------------------------------------------------------------------------------
// A small provider: every algorithm with every rule of charging
// ---------------------------------------------------------------------------------------------------------------------

const algorithms = ["bucket", "bucket 1 s", "sliding", "fixed", "quantised 10 s", "concurrency"] as const
const charges = ["maximum", "refund", "anthropic", "actual", "input"] as const
type Algorithm = typeof algorithms[number]
type Charge = typeof charges[number]

const serverLimit = (
  algorithm: Algorithm,
  dimension: server.Limit["dimension"],
  limit: number
): server.Limit => {
  const base = { dimension, limit, period: minute }
  switch (algorithm) {
    case "bucket":
      return { ...base, algorithm: "bucket" }
    case "bucket 1 s":
      return { ...base, algorithm: "bucket", burst: limit / 60 }
    case "sliding":
    case "concurrency":
      return { ...base, algorithm: "sliding" }
    case "fixed":
      return { ...base, algorithm: "fixed" }
    case "quantised 10 s":
      return { ...base, algorithm: "sliding", quantum: 10_000 }
  }
}

const clientLimit = (algorithm: Algorithm, limit: number): RateLimiter.WindowOptions => {
  switch (algorithm) {
    case "bucket":
      return { algorithm: "tokenBucket" }
    case "bucket 1 s":
      return { algorithm: "tokenBucket", burst: limit / 60 }
    case "sliding":
    case "concurrency":
      return { algorithm: "slidingWindow" }
    case "fixed":
      return { algorithm: "fixedWindow" }
    case "quantised 10 s":
      return { algorithm: "slidingWindow", quantum: "10 seconds" }
  }
}

/** What a request is charged on the average: until its usage is known, and after it. */
interface Amounts {
  readonly reserved: number
  readonly used: number
  readonly largest: number
  /** Whether the charge counts from when it is known. */
  readonly isLate: boolean
}

const boundOf = (
  algorithm: Algorithm,
  { amounts, jitter, limit, residency }: {
    readonly limit: number
    readonly jitter: number
    readonly amounts: Amounts
    readonly residency: number
  }
): number => {
  const { isLate, largest, reserved, used } = amounts
  const base = { limit, period: minute, jitter, largest }
  const dated = isLate ? "end" : "start"
  switch (algorithm) {
    case "bucket":
      return bound.bucket({ ...base, capacity: limit })
    case "bucket 1 s": {
      const capacity = limit / 60
      const rate = bound.bucket({ ...base, capacity, largest: reserved })
      return rate === 1
        ? bound.refundCap({
          period: capacity * minute / limit,
          residency,
          used,
          unused: isLate ? reserved : reserved - used
        })
        // Where the bucket is the size of the jitter, what is reserved holds up what is sent.
        : rate * used / reserved
    }
    case "sliding":
    case "concurrency":
      return bound.reserving({ ...base, residency, reserved, used, dated })
    case "fixed":
      return bound.fixed({ ...base, phaseKnown: true })
    case "quantised 10 s":
      return bound.reserving({
        ...base,
        limit: limit / 6,
        period: minute / 6,
        residency,
        reserved,
        used,
        dated
      }) * Math.floor(limit / 6) / (limit / 6)
  }
}

const smallLoad: Load = { input: [80, 120], output: [25, 75], maxOutput: 100 }
const smallService = { firstByte: 200, perToken: 2 }
const slowService = { firstByte: 4900, perToken: 2 }

const smallCell = (algorithm: Algorithm, charge: Charge, jitterMs: number): Cell => {
  const isSlots = algorithm === "concurrency"
  const rpm = algorithm === "bucket 1 s" ? 2000 : 1000
  const [, mostInput] = smallLoad.input
  const input = mean(smallLoad.input)
  const output = mean(smallLoad.output)
  /** What nine of ten answers stay below, which is what the queue learns to expect. */
  const expected = smallLoad.output[0] + 0.9 * (smallLoad.output[1] - smallLoad.output[0])
  const isLate = charge === "actual" || charge === "anthropic"
  // Where only a part of the limit can be used at one time, a request must be a smaller part of it.
  const less = algorithm === "bucket 1 s" || algorithm === "quantised 10 s" ? 1 : 2
  const [types, limit, amounts] = ({
    maximum: [["tpm"], 60_000 / less, {
      reserved: input + smallLoad.maxOutput,
      used: input + smallLoad.maxOutput,
      largest: mostInput + smallLoad.maxOutput,
      isLate
    }],
    refund: [["tpm"], 60_000 / less, {
      reserved: input + smallLoad.maxOutput,
      used: input + output,
      largest: mostInput + smallLoad.maxOutput,
      isLate
    }],
    anthropic: [["itpm", "otpm"], (algorithm === "bucket 1 s" ? 40_000 : 20_000) / less, {
      reserved: expected,
      used: output,
      largest: smallLoad.output[1],
      isLate
    }],
    actual: [["tpm"], 60_000 / less, {
      reserved: input + expected,
      used: input + output,
      largest: mostInput + smallLoad.output[1],
      isLate
    }],
    input: [["tpm"], 40_000 / less, { reserved: input, used: input, largest: mostInput, isLate }]
  } as const)[charge]
  const rules = {
    maximum: { tpm: { charging: { output: "maximum", combine: "sum", refund: false } } },
    refund: { tpm: { charging: { output: "maximum", combine: "sum", refund: true } } },
    anthropic: { itpm: { chargedAt: "dispatch" }, otpm: { chargedAt: "production", charging: { output: "expected" } } },
    actual: { tpm: { chargedAt: "completion", charging: { output: "expected" } } },
    input: { tpm: { charging: { outputWeight: 0 } } }
  } as const satisfies Record<Charge, ProviderProfile.ProviderProfile["limits"]>
  const likeness = charge === "anthropic" ? ProviderProfile.anthropic : ProviderProfile.openai
  const { errors, headers, limitNames } = likeness
  const slots = 20
  const tokens = isSlots ? 1_000_000 : limit
  const requests = isSlots ? 100_000 : rpm
  const options = { margin: jitterMs, ...clientLimit(algorithm, tokens) }
  const tokenLimits = types.map((type) =>
    RateLimiter.make({
      type,
      limit: type === "itpm" ? 4 * tokens : tokens,
      ...options,
      ...(algorithm === "bucket 1 s" && type === "itpm" ? { burst: 4 * tokens / 60 } : {})
    })
  )
  const dimension = (type: typeof types[number]) => type === "itpm" ? "input" : type === "otpm" ? "output" : "tokens"
  const service = isSlots ? slowService : smallService
  const residency = service.firstByte + output * service.perToken + 40 + jitterMs / 2
  const one: Amounts = { reserved: 1, used: 1, largest: 1, isLate: false }
  const inputs: Amounts = { reserved: input, used: input, largest: mostInput, isLate: false }
  return {
    name: `small, ${algorithm}, ${charge}, J ${jitterMs} ms`,
    profile: "small",
    algorithm,
    charge,
    jitterMs,
    knownAlgorithm: true,
    plan: {
      server: {
        dialect: charge === "anthropic" ? "anthropic" : "openai",
        limits: [
          serverLimit(algorithm, "requests", requests),
          ...types.map((type) => serverLimit(algorithm, dimension(type), type === "itpm" ? 4 * tokens : tokens)),
          ...(isSlots ? [{ dimension: "concurrent", limit: slots } as const] : [])
        ],
        charge: charge === "maximum" || charge === "refund" ? "reserve" : charge,
        refund: charge === "refund",
        ...service
      },
      client: {
        provider: ProviderProfile.make({
          name: "small",
          limits: rules[charge],
          errors,
          headers,
          limitNames
        }),
        limits: [
          RateLimiter.rpm(requests, { margin: jitterMs, ...clientLimit(algorithm, requests) }),
          ...tokenLimits,
          ...(isSlots ? [RateLimiter.concurrent(slots)] : [])
        ]
      },
      network: line(jitterMs),
      load: smallLoad,
      stream: false,
      // Longer where the delays themselves decide, so that their mean is near to what is expected.
      duration: (isSlots ? 36 : charge === "maximum" ? 14 : 12) * minute + drain,
      wall
    },
    bounds: isSlots
      ? [
        undefined,
        ...types.map(() => undefined),
        bound.concurrency({
          residency: service.firstByte + output * service.perToken,
          roundTrip: 40 + jitterMs / 2
        })
      ]
      : [
        boundOf(algorithm, { limit: requests, jitter: jitterMs, amounts: one, residency }),
        ...types.map((type) =>
          type === "itpm"
            ? boundOf(algorithm, { limit: 4 * tokens, jitter: jitterMs, amounts: inputs, residency })
            : boundOf(algorithm, { limit: tokens, jitter: jitterMs, amounts, residency })
        )
      ],
    tolerance: 0.003,
    reduced: jitterMs === 200 && charge === ({
          bucket: "refund",
          "bucket 1 s": "input",
          sliding: "anthropic",
          fixed: "maximum",
          "quantised 10 s": "actual",
          concurrency: "input"
        } satisfies Record<Algorithm, Charge>)[algorithm]
  }
}

export const jitters = [0, 50, 200, 1000] as const

const small = algorithms.flatMap((algorithm) =>
  charges.flatMap((charge) => jitters.map((jitter) => smallCell(algorithm, charge, jitter)))
)

// ---------------------------------------------------------------------------------------------------------------------
// The providers as they are
// ---------------------------------------------------------------------------------------------------------------------

/** The sizes that providers' limits were looked at with. */
const usual: Load = { input: [600, 1600], output: [120, 520], maxOutput: 1024 }
/** Requests so small that only their number counts. */
const tiny: Load = { input: [8, 12], output: [4, 10], maxOutput: 16 }

interface Provider {
  readonly name: string
  readonly profile: ProviderProfile.ProviderProfile
  readonly server: server.Options
  readonly limits: ReadonlyArray<RateLimiter.Config>
  readonly load: Load
  /** The algorithm that the client uses of those that the provider is known to use, for the bound. */
  readonly bounds: (jitter: number) => ReadonlyArray<number | undefined>
  readonly minutes: number
  readonly knownAlgorithm?: boolean
  readonly tolerance?: number
}

const service = { firstByte: 400, perToken: 10 }

const bucketServer = (
  dimension: server.Limit["dimension"],
  limit: number,
  more: Partial<server.Limit> = {}
): server.Limit => ({ dimension, limit, period: minute, algorithm: "bucket", ...more })
const slidingServer = (
  dimension: server.Limit["dimension"],
  limit: number,
  more: Partial<server.Limit> = {}
): server.Limit => ({ dimension, limit, period: minute, algorithm: "sliding", ...more })
const fixedServer = (dimension: server.Limit["dimension"], limit: number): server.Limit => ({
  dimension,
  limit,
  period: minute,
  algorithm: "fixed"
})
const slidingBound = (limit: number, largest: number) => (jitter: number) =>
  bound.sliding({ limit, period: minute, jitter, largest })

const openai = (
  name: string,
  rpm: number,
  tpm: number,
  load: Load,
  minutes: number,
  options: { readonly refund?: boolean; readonly rpd?: number } = {}
): Provider => ({
  name,
  profile: ProviderProfile.openai,
  server: {
    dialect: "openai",
    limits: [
      bucketServer("requests", rpm, { countRefused: "requests" }),
      bucketServer("tokens", tpm),
      ...(options.rpd === undefined
        ? []
        : [bucketServer("requests", options.rpd, { period: 24 * 60 * minute, countRefused: "requests" })])
    ],
    charge: "openai",
    refund: options.refund ?? false,
    ...service
  },
  limits: [
    RateLimiter.rpm(rpm),
    RateLimiter.tpm(tpm),
    ...(options.rpd === undefined ? [] : [RateLimiter.rpd(options.rpd)])
  ],
  load,
  minutes,
  bounds: () => [1, 1, undefined]
})

const anthropic = (
  name: string,
  rpm: number,
  itpm: number,
  otpm: number,
  load: Load,
  minutes: number,
  burst?: number
): Provider => ({
  name,
  profile: ProviderProfile.anthropic,
  server: {
    dialect: "anthropic",
    limits: [
      bucketServer("requests", rpm, burst === undefined ? {} : { burst }),
      bucketServer("input", itpm),
      bucketServer("output", otpm)
    ],
    charge: "anthropic",
    refund: true,
    ...service
  },
  limits: [
    RateLimiter.rpm(rpm, burst === undefined ? {} : { burst }),
    RateLimiter.itpm(itpm),
    RateLimiter.otpm(otpm)
  ],
  load,
  minutes,
  bounds: (jitter) => [
    bound.bucket({ limit: rpm, period: minute, jitter, capacity: burst ?? rpm, largest: 1 }),
    1,
    1
  ]
})

const generic = (algorithm: "sliding" | "fixed" | "bucket"): Provider => ({
  name: `generic against ${algorithm}`,
  profile: ProviderProfile.generic,
  server: {
    dialect: "openai",
    limits: [{ dimension: "requests", limit: 200, period: minute, algorithm, countRefused: "requests" }],
    charge: "reserve",
    refund: false,
    ...service
  },
  limits: [RateLimiter.rpm(200)],
  load: tiny,
  minutes: 12,
  bounds: (jitter) => [minute / (minute + jitter)],
  knownAlgorithm: false,
  tolerance: 0.01
})

const providers: ReadonlyArray<Provider> = [
  openai("openai-t1 / 2, requests", 250, 15_000, tiny, 13, { rpd: 10_000 }),
  openai("openai-t1, tokens", 500, 30_000, usual, 90, { rpd: 10_000 }),
  openai("openai-t1, tokens refunded", 500, 30_000, usual, 90, { rpd: 10_000, refund: true }),
  openai("openai-t4 / 20, tokens", 500, 100_000, usual, 27),
  openai("openai-t5 / 40, requests", 250, 750_000, usual, 13),
  anthropic("anthropic-eval, requests", 50, 30_000, 8000, tiny, 45),
  anthropic("anthropic-eval, requests, 1 s", 50, 30_000, 8000, tiny, 76, 1),
  anthropic("anthropic-eval, output", 50, 30_000, 8000, usual, 90),
  anthropic("anthropic-eval, input", 50, 30_000, 8000, { ...usual, output: [50, 100] }, 80),
  anthropic("anthropic-start / 4, requests", 250, 500_000, 100_000, usual, 13),
  anthropic("anthropic-scale / 40, output", 250, 250_000, 50_000, usual, 15),
  {
    name: "azure-240k / 6, requests",
    profile: ProviderProfile.azure,
    server: {
      dialect: "azure",
      limits: [
        slidingServer("requests", 240, { quantum: 10_000, countRefused: "requests" }),
        slidingServer("tokens", 40_000)
      ],
      charge: "reserve",
      refund: false,
      ...service
    },
    limits: [RateLimiter.rpm(240), RateLimiter.tpm(40_000)],
    load: tiny,
    minutes: 12,
    bounds: (jitter) => [bound.quantised({ limit: 240, period: minute, quantum: 10_000, jitter }), undefined]
  },
  {
    name: "azure-240k, tokens",
    profile: ProviderProfile.azure,
    server: {
      dialect: "azure",
      limits: [
        slidingServer("requests", 1440, { quantum: 10_000, countRefused: "requests" }),
        slidingServer("tokens", 240_000)
      ],
      charge: "reserve",
      refund: false,
      ...service
    },
    limits: [RateLimiter.rpm(1440), RateLimiter.tpm(240_000)],
    load: usual,
    minutes: 25,
    bounds: (jitter) => [undefined, slidingBound(240_000, usual.input[1] + usual.maxOutput)(jitter)]
  },
  {
    name: "groq-free, requests of the minute",
    profile: ProviderProfile.groq,
    server: {
      dialect: "groq",
      limits: [bucketServer("requests", 30), bucketServer("tokens", 8000)],
      charge: "reserve",
      refund: true,
      ...service
    },
    limits: [RateLimiter.rpm(30), RateLimiter.tpm(8000)],
    load: tiny,
    minutes: 75,
    bounds: () => [1, 1]
  },
  {
    name: "groq-free, tokens of the minute",
    profile: ProviderProfile.groq,
    server: {
      dialect: "groq",
      limits: [bucketServer("requests", 30), bucketServer("tokens", 8000)],
      charge: "reserve",
      refund: true,
      ...service
    },
    limits: [RateLimiter.rpm(30), RateLimiter.tpm(8000)],
    load: usual,
    minutes: 380,
    bounds: () => [1, 1]
  },
  {
    name: "gemini-free, requests of the minute",
    profile: ProviderProfile.gemini,
    server: {
      dialect: "gemini",
      limits: [fixedServer("requests", 10), fixedServer("input", 250_000)],
      charge: "input",
      refund: true,
      ...service
    },
    limits: [RateLimiter.rpm(10), RateLimiter.tpm(250_000)],
    load: usual,
    minutes: 220,
    bounds: (jitter) => [bound.fixed({ limit: 10, period: minute, jitter, phaseKnown: false }), undefined]
  },
  {
    name: "gemini-t1 / 4, requests",
    profile: ProviderProfile.gemini,
    server: {
      dialect: "gemini",
      limits: [fixedServer("requests", 250), fixedServer("input", 250_000)],
      charge: "input",
      refund: true,
      ...service
    },
    limits: [RateLimiter.rpm(250), RateLimiter.tpm(250_000)],
    load: tiny,
    minutes: 12,
    bounds: (jitter) => [bound.fixed({ limit: 250, period: minute, jitter, phaseKnown: false }), undefined]
  },
  {
    name: "gemini-t1 / 4, input",
    profile: ProviderProfile.gemini,
    server: {
      dialect: "gemini",
      limits: [fixedServer("requests", 250), fixedServer("input", 250_000)],
      charge: "input",
      refund: true,
      ...service
    },
    limits: [RateLimiter.rpm(250), RateLimiter.tpm(250_000)],
    load: usual,
    minutes: 12,
    bounds: (jitter) => [
      undefined,
      bound.fixed({ limit: 250_000, period: minute, jitter, phaseKnown: false, largest: usual.input[1] })
    ]
  },
  {
    name: "bedrock-claude",
    profile: ProviderProfile.bedrock,
    server: {
      dialect: "bedrock",
      limits: [slidingServer("tokens", 1_000_000)],
      charge: "reserve",
      refund: true,
      outputWeight: 5,
      ...service
    },
    limits: [RateLimiter.tpm(1_000_000)],
    load: usual,
    minutes: 12,
    bounds: (jitter) => [bound.reserving({
      limit: 1_000_000,
      period: minute,
      jitter,
      residency: service.firstByte + mean(usual.output) * service.perToken + 40 + jitter / 2,
      reserved: mean(usual.input) + 5 * usual.maxOutput,
      used: mean(usual.input) + 5 * mean(usual.output),
      largest: usual.input[1] + 5 * usual.maxOutput,
      dated: "start"
    })]
  },
  {
    name: "mistral-8b, requests",
    profile: ProviderProfile.mistral,
    server: {
      dialect: "mistral",
      limits: [slidingServer("requests", 188), slidingServer("tokens", 625_000)],
      charge: "actual",
      refund: true,
      ...service
    },
    limits: [RateLimiter.rpm(188), RateLimiter.tpm(625_000)],
    load: usual,
    minutes: 14,
    bounds: (jitter) => [slidingBound(188, 1)(jitter), undefined]
  },
  {
    name: "mistral-8b / 4, tokens",
    profile: ProviderProfile.mistral,
    server: {
      dialect: "mistral",
      limits: [slidingServer("requests", 188), slidingServer("tokens", 156_250)],
      charge: "actual",
      refund: true,
      ...service
    },
    limits: [RateLimiter.rpm(188), RateLimiter.tpm(156_250)],
    load: usual,
    minutes: 22,
    bounds: (jitter) => [
      undefined,
      bound.reserving({
        limit: 156_250,
        period: minute,
        jitter,
        residency: service.firstByte + mean(usual.output) * service.perToken + 40 + jitter / 2,
        reserved: mean(usual.input) + usual.output[0] + 0.9 * (usual.output[1] - usual.output[0]),
        used: mean(usual.input) + mean(usual.output),
        largest: usual.input[1] + usual.output[1],
        dated: "end"
      })
    ]
  },
  {
    name: "mistral-large, requests",
    profile: ProviderProfile.mistral,
    server: {
      dialect: "mistral",
      limits: [slidingServer("requests", 4), slidingServer("tokens", 250_000)],
      charge: "actual",
      refund: true,
      ...service
    },
    limits: [RateLimiter.rpm(4), RateLimiter.tpm(250_000)],
    load: usual,
    minutes: 520,
    bounds: (jitter) => [slidingBound(4, 1)(jitter), undefined]
  },
  {
    name: "deepseek / 25",
    profile: ProviderProfile.deepseek,
    server: {
      dialect: "deepseek",
      limits: [{ dimension: "concurrent", limit: 20 }],
      charge: "input",
      refund: true,
      firstByte: 5000,
      perToken: 0
    },
    limits: [RateLimiter.concurrent(20)],
    load: tiny,
    minutes: 12,
    bounds: (jitter) => [bound.concurrency({ residency: 5000, roundTrip: 40 + jitter / 2 })]
  },
  {
    name: "openrouter-free, requests of the minute",
    profile: ProviderProfile.openrouter,
    server: { dialect: "openrouter", limits: [slidingServer("requests", 20)], ...service },
    limits: [RateLimiter.rpm(20)],
    load: tiny,
    minutes: 110,
    bounds: (jitter) => [slidingBound(20, 1)(jitter)]
  },
  {
    name: "together at its floor",
    profile: ProviderProfile.together,
    server: {
      dialect: "together",
      limits: [{ dimension: "requests", limit: 600, period: minute, algorithm: "dynamic" }],
      charge: "reserve",
      refund: true,
      ...service
    },
    limits: [RateLimiter.rpm(600)],
    load: tiny,
    minutes: 12,
    bounds: (jitter) => [bound.quantised({ limit: 600, period: minute, quantum: 1000, jitter })]
  },
  {
    name: "ci-mini",
    profile: ProviderProfile.make({
      name: "ci-mini",
      limits: {
        rpm: { algorithm: "slidingWindow" },
        tpm: { algorithm: "slidingWindow", charging: { refund: false, output: "maximum" } }
      },
      headers: ProviderProfile.openai.headers,
      errors: ProviderProfile.openai.errors,
      limitNames: ProviderProfile.openai.limitNames
    }),
    server: {
      dialect: "openai",
      limits: [slidingServer("requests", 60, { period: 3000 }), slidingServer("tokens", 6000, { period: 3000 })],
      charge: "reserve",
      refund: false,
      firstByte: 20,
      perToken: 1
    },
    limits: [
      RateLimiter.rpm(60, { timePeriod: "3 seconds" }),
      RateLimiter.tpm(6000, { timePeriod: "3 seconds" })
    ],
    load: tiny,
    minutes: 11,
    bounds: (jitter) => [bound.sliding({ limit: 60, period: 3000, jitter }), undefined]
  },
  generic("sliding"),
  generic("fixed"),
  generic("bucket")
]

/** Limits as they are given, without a profile. */
const plainCell = (jitterMs: number): Cell => ({
  name: `plain limits, J ${jitterMs} ms`,
  profile: "none",
  algorithm: "sliding",
  charge: "requests only",
  jitterMs,
  knownAlgorithm: true,
  plan: {
    server: { dialect: "openai", limits: [slidingServer("requests", 60)], firstByte: 200, perToken: 1 },
    client: { provider: undefined, limits: [RateLimiter.rpm(60, { margin: jitterMs })] },
    network: line(jitterMs),
    load: tiny,
    stream: false,
    duration: 36 * minute + drain,
    wall
  },
  bounds: [slidingBound(60, 1)(jitterMs)],
  tolerance: 0.003,
  reduced: jitterMs === 1000
})

const providerCell = (provider: Provider, jitterMs: number): Cell => ({
  name: `${provider.name}, J ${jitterMs} ms`,
  profile: provider.profile.name,
  algorithm: [
    ...new Set(provider.server.limits.map(({ algorithm, burst, dimension, quantum }) =>
      dimension === "concurrent"
        ? "concurrency"
        : `${algorithm}${burst === undefined ? "" : ` ${burst}`}${
          quantum === undefined ? "" : ` + ${Duration.toMillis(quantum) / 1000} s`
        }`
    ))
  ].join("/"),
  charge: `${provider.server.charge}${provider.server.refund ? " + refund" : ""}`,
  jitterMs,
  knownAlgorithm: provider.knownAlgorithm ?? true,
  plan: {
    server: provider.server,
    client: { provider: { ...provider.profile, margin: jitterMs }, limits: provider.limits },
    network: line(jitterMs),
    load: provider.load,
    stream: false,
    duration: provider.minutes * minute + drain,
    wall
  },
  bounds: provider.bounds(jitterMs),
  tolerance: provider.tolerance ?? 0.003,
  reduced: provider.name === "generic against sliding" && jitterMs === 200
})

const asTheyAre = providers.flatMap((provider) => jitters.map((jitter) => providerCell(provider, jitter)))

export const cells: ReadonlyArray<Cell> = [...jitters.map(plainCell), ...asTheyAre, ...small]

// ---------------------------------------------------------------------------------------------------------------------

/** Runs a cell, and reads the provider's books. Even seeds have the worst spread of the delay there is. */
export const runCell = (cell: Cell, seed: number, trace?: (line: string) => void): Result => {
  const plan: Plan = {
    ...cell.plan,
    network: { ...cell.plan.network, spread: seed % 2 === 0 ? "twoPoint" : "uniform" }
  }
  const world = new World(trace === undefined ? plan : { ...plan, trace }, seed)
  const { arrivals } = world.run(seed)
  const to = plan.duration - drain
  const limits = plan.server.limits.flatMap((limit, index) => {
    const best = cell.bounds[index]
    if (best === undefined) return []
    const { dimension } = limit
    const used = dimension === "concurrent"
      ? arrivals.reduce(
        (sum, { abortedAt, admitted, at, completedAt }) =>
          admitted ? sum + Math.max(0, Math.min(completedAt ?? abortedAt ?? to, to) - Math.max(at, 2 * minute)) : sum,
        0
      )
        / (limit.limit * (to - 2 * minute))
      : utilisation(arrivals.map(({ at, net }) => ({ at, amount: net[dimension] })), {
        limit: limit.limit,
        period: periodOf(limit),
        from: 2 * Math.max(minute, periodOf(limit)),
        to
      })
    return [{ name: dimension, used, best }]
  })
  const binding = limits.reduce((a, b) => b.used / b.best > a.used / a.best ? b : a)
  return {
    cell: cell.name,
    profile: cell.profile,
    algorithm: cell.algorithm,
    charge: cell.charge,
    jitterMs: cell.jitterMs,
    seed,
    knownAlgorithm: cell.knownAlgorithm,
    admissions: arrivals.filter(({ admitted }) => admitted).length,
    refusals: arrivals.filter(({ admitted }) => !admitted).length,
    utilisation: binding.used,
    bound: binding.best,
    required: binding.best - cell.tolerance,
    binding: binding.name
  }
}
