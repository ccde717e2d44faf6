/** What happens to a client in the midst of its work, and how it comes through. */
import { Effect } from "effect"
import { ProviderProfile, RateLimiter } from "effect-llm-queue"
import { wall } from "./matrix.ts"
import { utilisation } from "./measure.ts"
import type { EventResult } from "./report.ts"
import * as server from "./server.ts"
import { type Attempt, type Plan, World } from "./world.ts"

const minute = 60_000
/** When it happens. */
const at = 4 * minute
const duration = 13 * minute
const jitter = 200

interface Provider {
  readonly name: string
  readonly server: server.Options
  readonly profile: ProviderProfile.ProviderProfile
  readonly limits: ReadonlyArray<RateLimiter.Config>
  /** The limit that binds, of the server's. */
  readonly binding: number
  readonly bound: number
  /** Whether answers say what is left. */
  readonly tells: boolean
}

const service = { firstByte: 300, perToken: 5 }
const load = { input: [80, 120], output: [25, 75], maxOutput: 100 } as const
const period = minute

const providers: ReadonlyArray<Provider> = [
  {
    name: "openai",
    server: {
      dialect: "openai",
      limits: [
        { dimension: "requests", limit: 300, period, algorithm: "bucket", countRefused: "requests" },
        { dimension: "tokens", limit: 60_000, period, algorithm: "bucket" }
      ],
      charge: "openai",
      refund: false,
      ...service
    },
    profile: ProviderProfile.openai,
    limits: [RateLimiter.rpm(300), RateLimiter.tpm(60_000)],
    binding: 0,
    bound: 1,
    tells: true
  },
  {
    name: "groq, tokens",
    server: {
      dialect: "groq",
      limits: [
        { dimension: "requests", limit: 1000, period, algorithm: "bucket" },
        { dimension: "tokens", limit: 60_000, period, algorithm: "bucket" }
      ],
      charge: "reserve",
      refund: true,
      ...service
    },
    profile: ProviderProfile.groq,
    limits: [RateLimiter.rpm(1000), RateLimiter.tpm(60_000)],
    binding: 1,
    bound: 1,
    tells: true
  },
  {
    name: "anthropic, output",
    server: {
      dialect: "anthropic",
      limits: [
        { dimension: "requests", limit: 1000, period, algorithm: "bucket" },
        { dimension: "input", limit: 100_000, period, algorithm: "bucket" },
        { dimension: "output", limit: 20_000, period, algorithm: "bucket" }
      ],
      charge: "anthropic",
      refund: true,
      ...service
    },
    profile: ProviderProfile.anthropic,
    limits: [RateLimiter.rpm(1000), RateLimiter.itpm(100_000), RateLimiter.otpm(20_000)],
    binding: 2,
    bound: 1,
    tells: true
  },
  {
    name: "anthropic, input",
    server: {
      dialect: "anthropic",
      limits: [
        { dimension: "requests", limit: 1000, period, algorithm: "bucket" },
        { dimension: "input", limit: 40_000, period, algorithm: "bucket" },
        { dimension: "output", limit: 100_000, period, algorithm: "bucket" }
      ],
      charge: "anthropic",
      refund: true,
      ...service
    },
    profile: ProviderProfile.anthropic,
    limits: [RateLimiter.rpm(1000), RateLimiter.itpm(40_000), RateLimiter.otpm(100_000)],
    binding: 1,
    bound: 1,
    tells: true
  },
  {
    name: "mistral",
    server: {
      dialect: "mistral",
      limits: [
        { dimension: "requests", limit: 300, period, algorithm: "sliding" },
        { dimension: "tokens", limit: 200_000, period, algorithm: "sliding" }
      ],
      charge: "actual",
      refund: true,
      ...service
    },
    profile: ProviderProfile.mistral,
    limits: [RateLimiter.rpm(300), RateLimiter.tpm(200_000)],
    binding: 0,
    bound: minute / (minute + jitter),
    tells: true
  },
  {
    name: "gemini",
    server: {
      dialect: "gemini",
      limits: [
        { dimension: "requests", limit: 300, period, algorithm: "fixed", countRefused: "requests" },
        { dimension: "input", limit: 200_000, period, algorithm: "fixed" }
      ],
      charge: "input",
      refund: true,
      ...service
    },
    profile: ProviderProfile.gemini,
    limits: [RateLimiter.rpm(300), RateLimiter.tpm(200_000)],
    binding: 0,
    bound: minute / (minute + jitter),
    tells: false
  }
]

interface Event {
  readonly name: string
  readonly plan?: (plan: Plan, provider: Provider) => Plan
  readonly script: (world: World, provider: Provider) => Effect.Effect<void>
  /** What is left of the limit after it. */
  readonly left?: (books: server.Books, provider: Provider) => number
  /** The provider changes under the client's hands: what is on its way then may be refused. */
  readonly sudden?: boolean
  readonly concerns?: (provider: Provider) => boolean
}

const whole = ({ binding, server: { limits } }: Provider) => limits[binding]!

/** A load of so much of the limit that binds. */
const foreign = (world: World, provider: Provider, share: number) => {
  const { dimension, limit } = whole(provider)
  const tokens = dimension !== "requests"
  const rpm = tokens ? share * limit / 100 : share * limit
  return world.provider.simulator.foreign(server.model, {
    rpm,
    tpm: dimension === "output" ? rpm : tokens ? share * limit : rpm,
    otpm: dimension === "output" ? share * limit : 0
  })
}

const share = 0.5

export const events: ReadonlyArray<Event> = [
  {
    name: "cold start on a limit that others have just used up",
    plan: (plan) => ({ ...plan, clientStartsAt: at }),
    script: (world, provider) =>
      Effect.gen(function*() {
        yield* foreign(world, provider, 1)
        yield* Effect.sleep(at - 1)
        yield* world.provider.simulator.foreign(server.model, { rpm: 0, tpm: 0 })
      })
  },
  {
    name: "cold start on whole limits",
    plan: (plan) => ({ ...plan, clientStartsAt: at }),
    script: () => Effect.void
  },
  {
    name: "the client's process starts again",
    script: (world) =>
      Effect.gen(function*() {
        yield* Effect.sleep(at)
        yield* world.stopClient
        yield* world.startClient
      })
  },
  {
    name: "limits are halved",
    sudden: true,
    script: (world) =>
      Effect.andThen(Effect.sleep(at), world.provider.simulator.setLimits(server.model, { scale: share })),
    left: () => share
  },
  {
    name: "others take half",
    sudden: true,
    script: (world, provider) => Effect.andThen(Effect.sleep(at), foreign(world, provider, share)),
    left: ({ model: { foreign } }, { binding, server: { limits } }) => {
      const { dimension, limit } = limits[binding]!
      const each = dimension === "requests" ? 1 : 100
      return 1 - foreign.admitted * each / (limit * (duration - at) / period)
    }
  },
  {
    name: "the wall clock is set an hour ahead",
    script: (world) => Effect.andThen(Effect.sleep(at), Effect.sync(() => world.clientClock.shift(60 * minute)))
  },
  {
    name: "the wall clock is set an hour back",
    script: (world) => Effect.andThen(Effect.sleep(at), Effect.sync(() => world.clientClock.shift(-60 * minute)))
  },
  {
    name: "the provider's wall clock is 30 s ahead",
    plan: (plan) => ({ ...plan, serverSkew: 30_000 }),
    script: () => Effect.void
  },
  {
    name: "the client's clock is 200 ppm fast, its margin 15 ms wider",
    plan: (plan, { profile }) => ({
      ...plan,
      client: { ...plan.client, drift: 200, provider: { ...profile, margin: jitter + 15 } }
    }),
    script: () => Effect.void
  },
  {
    name: "a burst after three idle minutes",
    script: (world) =>
      Effect.gen(function*() {
        yield* Effect.sleep(at - 3 * minute)
        yield* world.pauseLoad
        yield* Effect.sleep(3 * minute)
        yield* world.resumeLoad
      })
  }
]

const cases = events.flatMap((event) =>
  providers.filter((provider) => event.concerns?.(provider) ?? true).map((provider) => ({ event, provider }))
)
const nameOf = ({ event, provider }: typeof cases[number]) => `${event.name}: ${provider.name}`

export const names: ReadonlyArray<string> = cases.map(nameOf)

/** When the client could have been told of what had happened: by a refusal, or by what an answer says is left. */
const firstTold = (attempts: ReadonlyArray<Attempt>, provider: Provider): number =>
  attempts.reduce(
    (first, { arrived, failed, told }) => arrived >= at ? Math.min(first, provider.tells ? told : failed) : first,
    Number.POSITIVE_INFINITY
  )

export const run = (name: string, seed: number, trace?: (line: string) => void): EventResult => {
  const { event, provider } = cases.find((each) => nameOf(each) === name)!
  const base: Plan = {
    server: provider.server,
    client: { provider: { ...provider.profile, margin: jitter }, limits: provider.limits },
    network: { uplink: 20, jitter, spread: "uniform", downlink: 20 },
    load,
    stream: true,
    duration,
    wall,
    script: (world) => event.script(world, provider),
    trace
  }
  const plan = event.plan === undefined ? base : event.plan(base, provider)
  const world = new World(plan, seed)
  const books = world.run(seed)
  const since = world.attempts.filter(({ arrived }) => arrived >= at)
  const refused = since.filter(({ status }) => status !== undefined && status !== 200)
  const told = firstTold(since, provider)
  const { dimension, limit } = whole(provider)
  const left = event.left?.(books, provider) ?? 1
  const bound = provider.bound * left
  return {
    event: event.name,
    cell: name,
    seed,
    perLimit: Math.max(
      0,
      ...provider.server.limits.map((limit) =>
        books.arrivals.filter(({ at: arrived, failedDimension }) =>
          arrived >= at && failedDimension === limit.dimension
        ).length
      )
    ),
    refusals: refused.length,
    early: refused.filter(({ sent }) => sent < told).length,
    sudden: event.sudden ?? false,
    untold: event.name === "others take half" && !provider.tells,
    utilisation: utilisation(
      books.arrivals.filter(({ admitted }) => admitted).map(({ at, net }) => ({ at, amount: net[dimension] })),
      { limit, period, from: at + 2 * period, to: duration - 30_000 }
    ),
    bound,
    required: 0.95 * bound
  }
}
