/** Limits of a day, over several of them, and of money. */
import { ProviderProfile, RateLimiter } from "effect-llm-queue"
import { instant } from "./matrix.ts"
import { utilisation } from "./measure.ts"
import type { Result } from "./report.ts"
import type * as server from "./server.ts"
import { type Plan, World } from "./world.ts"

const minute = 60_000
const day = 24 * 60 * minute
const jitter = 200

interface Scenario {
  readonly name: string
  readonly profile: ProviderProfile.ProviderProfile
  readonly server: server.Options
  readonly limits: ReadonlyArray<RateLimiter.Config>
  readonly wall: number
  readonly days: number
  /** The limits that are looked at. Default those of a day. */
  readonly period?: number
  /** Instants of true time between which the limit of a day is whole, when it is one of the calendar. */
  readonly midnights?: ReadonlyArray<number>
  readonly load: Plan["load"]
}

const service = { firstByte: 400, perToken: 1 }
const tiny: Plan["load"] = { input: [8, 12], output: [4, 10], maxOutput: 16 }

const pacific = (name: string, wall: number, midnights: ReadonlyArray<number>): Scenario => ({
  name,
  profile: ProviderProfile.gemini,
  server: {
    dialect: "gemini",
    limits: [
      { dimension: "requests", limit: 10, period: minute, algorithm: "fixed", countRefused: "requests" },
      {
        dimension: "requests",
        limit: 250,
        period: day,
        algorithm: "fixed",
        timeZone: "America/Los_Angeles",
        countRefused: "requests"
      },
      { dimension: "input", limit: 250_000, period: minute, algorithm: "fixed" }
    ],
    charge: "input",
    refund: true,
    ...service
  },
  limits: [RateLimiter.rpm(10), RateLimiter.rpd(250), RateLimiter.tpm(250_000)],
  wall,
  days: (midnights.at(-1)! - wall) / day + 0.02,
  midnights,
  load: tiny
})

const scenarios: ReadonlyArray<Scenario> = [
  {
    name: "openai-free: 3 RPM, 200 RPD of a bucket, 5 days",
    profile: ProviderProfile.openai,
    server: {
      dialect: "openai",
      limits: [
        { dimension: "requests", limit: 3, period: minute, algorithm: "bucket", countRefused: "requests" },
        { dimension: "requests", limit: 200, period: day, algorithm: "bucket", countRefused: "requests" }
      ],
      charge: "openai",
      refund: false,
      requestsHeader: "rpd",
      ...service
    },
    limits: [RateLimiter.rpm(3), RateLimiter.rpd(200)],
    wall: instant("2026-11-23T08:00:17.300Z"),
    days: 5,
    load: tiny
  },
  {
    name: "groq-free: 30 RPM, 1k RPD, 8k TPM, 200k TPD of buckets, 4 days of small requests",
    profile: ProviderProfile.groq,
    server: {
      dialect: "groq",
      limits: [
        { dimension: "requests", limit: 30, period: minute, algorithm: "bucket" },
        { dimension: "requests", limit: 1000, period: day, algorithm: "bucket" },
        { dimension: "tokens", limit: 8000, period: minute, algorithm: "bucket" },
        { dimension: "tokens", limit: 200_000, period: day, algorithm: "bucket" }
      ],
      charge: "reserve",
      refund: true,
      requestsHeader: "rpd",
      ...service
    },
    limits: [RateLimiter.rpm(30), RateLimiter.rpd(1000), RateLimiter.tpm(8000), RateLimiter.tpd(200_000)],
    wall: instant("2026-11-23T08:00:17.300Z"),
    days: 4,
    load: tiny
  },
  {
    name: "groq-free: 12 days of usual requests",
    profile: ProviderProfile.groq,
    server: {
      dialect: "groq",
      limits: [
        { dimension: "requests", limit: 30, period: minute, algorithm: "bucket" },
        { dimension: "requests", limit: 1000, period: day, algorithm: "bucket" },
        { dimension: "tokens", limit: 8000, period: minute, algorithm: "bucket" },
        { dimension: "tokens", limit: 200_000, period: day, algorithm: "bucket" }
      ],
      charge: "reserve",
      refund: true,
      requestsHeader: "rpd",
      ...service
    },
    limits: [RateLimiter.rpm(30), RateLimiter.rpd(1000), RateLimiter.tpm(8000), RateLimiter.tpd(200_000)],
    wall: instant("2026-11-23T08:00:17.300Z"),
    days: 12,
    load: { input: [600, 1600], output: [120, 520], maxOutput: 1024 }
  },
  {
    name: "bedrock: 60 RPM, 3k TPM, 60k TPD of sliding windows, 6 days",
    profile: ProviderProfile.bedrock,
    server: {
      dialect: "bedrock",
      limits: [
        { dimension: "requests", limit: 60, period: minute, algorithm: "sliding" },
        { dimension: "tokens", limit: 3000, period: minute, algorithm: "sliding" },
        { dimension: "tokens", limit: 60_000, period: day, algorithm: "sliding" }
      ],
      charge: "reserve",
      refund: true,
      outputWeight: 5,
      ...service
    },
    limits: [RateLimiter.rpm(60), RateLimiter.tpm(3000), RateLimiter.tpd(60_000)],
    wall: instant("2026-11-23T08:00:17.300Z"),
    days: 6,
    load: tiny
  },
  {
    name: "gemini: 50 dollars in any ten minutes, held by a budget, 4 hours",
    profile: ProviderProfile.gemini,
    server: {
      dialect: "gemini",
      limits: [
        { dimension: "requests", limit: 3000, period: minute, algorithm: "fixed", countRefused: "requests" },
        { dimension: "input", limit: 4_000_000, period: minute, algorithm: "fixed" },
        { dimension: "spend", limit: 50, period: 10 * minute, algorithm: "sliding" }
      ],
      charge: "input",
      refund: true,
      price: { input: 50, output: 400 },
      ...service
    },
    limits: [
      RateLimiter.rpm(3000),
      RateLimiter.tpm(4_000_000),
      RateLimiter.budget(50, {
        price: { input: 50, output: 400 },
        timePeriod: "10 minutes",
        chargedAt: "completion",
        onExceeded: "wait"
      })
    ],
    wall: instant("2026-11-23T08:00:17.300Z"),
    days: 1 / 6,
    period: 10 * minute,
    load: { input: [80, 120], output: [25, 75], maxOutput: 100 }
  },
  // Midnight on the Pacific coast is 07:00 UTC in summer and 08:00 in winter.
  pacific("gemini-free: 250 RPD at midnight Pacific, a day of 25 hours", instant("2026-10-30T20:00:00Z"), [
    instant("2026-10-31T07:00:00Z"),
    instant("2026-11-01T07:00:00Z"),
    instant("2026-11-02T08:00:00Z"),
    instant("2026-11-03T08:00:00Z")
  ]),
  pacific("gemini-free: 250 RPD at midnight Pacific, a day of 23 hours", instant("2027-03-12T20:00:00Z"), [
    instant("2027-03-13T08:00:00Z"),
    instant("2027-03-14T08:00:00Z"),
    instant("2027-03-15T07:00:00Z"),
    instant("2027-03-16T07:00:00Z")
  ])
]

export const names: ReadonlyArray<string> = scenarios.map(({ name }) => name)

export const run = (name: string, seed: number, trace?: (line: string) => void): Result => {
  const scenario = scenarios.find((each) => each.name === name)!
  const duration = scenario.days * day
  const { arrivals } = new World({
    server: scenario.server,
    client: { provider: { ...scenario.profile, margin: jitter }, limits: scenario.limits },
    network: { uplink: 20, jitter, spread: "uniform", downlink: 20 },
    load: scenario.load,
    stream: false,
    duration,
    wall: scenario.wall,
    trace
  }, seed).run(seed)
  const { period = day } = scenario
  const long = scenario.server.limits.filter((limit) => limit.period === period).map(({ dimension, limit }) => {
    const charges = arrivals.filter(({ admitted }) => admitted).map(({ at, net }) => ({ at, amount: net[dimension] }))
    const { midnights, wall } = scenario
    const used = midnights === undefined
      ? utilisation(charges, { limit, period, from: 2 * period, to: duration - minute })
      // Of the days that are seen whole, the least used.
      : Math.min(
        ...midnights.slice(1).map((end, i) =>
          charges.reduce(
            (sum, { amount, at }) => wall + at >= midnights[i]! && wall + at < end ? sum + amount : sum,
            0
          ) / limit
        )
      )
    return { dimension, used }
  })
  const binding = long.reduce((a, b) => b.used > a.used ? b : a)
  return {
    cell: name,
    profile: scenario.profile.name,
    algorithm: `${scenario.server.limits.at(-1)!.algorithm} of ${period === day ? "a day" : "ten minutes"}`,
    charge: `${scenario.server.charge}${scenario.server.refund === true ? " + refund" : ""}`,
    jitterMs: jitter,
    seed,
    knownAlgorithm: true,
    admissions: arrivals.filter(({ admitted }) => admitted).length,
    refusals: arrivals.filter(({ admitted }) => !admitted).length,
    utilisation: binding.used,
    bound: 1,
    required: 0.997,
    binding: `${binding.dimension} of ${period === day ? "a day" : "ten minutes"}`
  }
}
