/** Providers that fail, by a script: what a client must not do then, by the provider's books. */
import { ProviderProfile, RateLimiter } from "effect-llm-queue"
import type { ProviderSimulator } from "effect-llm-queue/testing"
import { wall } from "./matrix.ts"
import type { RuleResult } from "./report.ts"
import type * as server from "./server.ts"
import { World } from "./world.ts"

const minute = 60_000
const limit = 300
/** Answers take 400 ms and come at 5 a second; this many are on their way when something begins. */
const inFlight = 20

const profiles = {
  openai: ProviderProfile.openai,
  anthropic: ProviderProfile.anthropic,
  openrouter: ProviderProfile.openrouter
}

interface Scenario {
  readonly name: string
  readonly provider: keyof typeof profiles
  readonly faults: ReadonlyArray<ProviderSimulator.Fault>
  readonly accel?: ProviderSimulator.Accel
  readonly minutes: number
  readonly check: (seen: Seen) => ReadonlyArray<string>
}

interface Seen {
  readonly books: server.Books
  /** Requests that came while it lasted, or that a fault met. */
  readonly met: number
  /** Attempts for each request that was served. */
  readonly perSuccess: number
  /** Most attempts of one request. */
  readonly most: number
  /** Requests served in a minute at the end, of those that may be. */
  readonly after: number
}

const from = 2 * minute
const to = 3 * minute
const during = { from, to }

/** Nothing is asked again that was refused for good, and nothing before the time that was said. */
const always = ({ books, most }: Seen): ReadonlyArray<string> => [
  ...(books.model.attemptsAfterFinal > 0 ? [`${books.model.attemptsAfterFinal} attempts after a final refusal`] : []),
  ...(books.model.attemptsTooEarly > 0
    ? [`${books.model.attemptsTooEarly} attempts before the time that was said`]
    : []),
  ...(most > 6 ? [`${most} attempts of one request`] : [])
]

const atMost = (name: string, value: number, most: number) =>
  value > most ? [`${value} ${name}, at most ${most} are right`] : []

const recovers = ({ after }: Seen) => after < 0.95 ? [`${(after * 100).toFixed(1)} % of the limit used after it`] : []

const final = (kind: ProviderSimulator.FaultKind, provider: Scenario["provider"] = "openai"): Scenario => ({
  name: `refused for good: ${kind}, ${provider}`,
  provider,
  faults: [{ when: { from, every: 10 }, kind }],
  minutes: 6,
  check: always
})

/** The whole key is refused: nothing is sent but what tries whether that is over. */
const quota = (kind: ProviderSimulator.FaultKind, provider: Scenario["provider"] = "openai"): Scenario => ({
  name: `out of quota: ${kind}, ${provider}`,
  provider,
  faults: [{ when: { from, to: 13 * minute }, kind }],
  minutes: 22,
  check: (seen) => [...always(seen), ...atMost("requests met it", seen.met, inFlight + 3), ...recovers(seen)]
})

const told = (
  kind: ProviderSimulator.FaultKind,
  retryAfter: string | undefined,
  retryAfterDate?: number,
  provider: Scenario["provider"] = "openai"
): Scenario => ({
  name: `told to wait: ${kind}, ${retryAfter ?? `a date ${retryAfterDate} ms ahead`}`,
  provider,
  faults: [{
    when: { from, every: 50 },
    kind,
    ...(retryAfter === undefined ? { retryAfterDate } : { retryAfter })
  }],
  minutes: 6,
  check: always
})

const outage = (kind: ProviderSimulator.FaultKind): Scenario => ({
  name: `a minute of nothing but ${kind}`,
  provider: "openai",
  faults: [{ when: during, kind }],
  // A rate that had to be lowered comes back by a point in ten seconds.
  minutes: 9,
  check: (seen) => [...always(seen), ...atMost("requests met it", seen.met, inFlight + 30), ...recovers(seen)]
})

const sprinkled = (kind: ProviderSimulator.FaultKind): Scenario => ({
  name: `one in twenty meets ${kind}`,
  provider: "openai",
  faults: [{ when: { from, p: 0.05 }, kind }],
  minutes: 8,
  check: (seen) => [...always(seen), ...(seen.perSuccess > 1.2 ? [`${seen.perSuccess} attempts for each success`] : [])]
})

/**
 * A full bucket, of which much less may be used at first, and then half as much again each minute. Nobody can know that
 * before the first answer.
 */
const rising = (provider: Scenario["provider"], floor: number): Scenario => ({
  name: `traffic may rise by a half each minute, from ${floor} a minute: ${provider}`,
  provider,
  faults: [],
  accel: { dimension: "requests", factor: 1.5, floor },
  minutes: 25,
  check: (seen) => [...always(seen), ...atMost("requests rose too fast again", seen.met, 2), ...recovers(seen)]
})

const scenarios: ReadonlyArray<Scenario> = [
  rising("anthropic", 50),
  rising("openai", 100),
  ...(["400", "401", "403", "404", "413"] as const).map((kind) => final(kind)),
  ...([
    "insufficient_quota",
    "credit_balance_exhausted",
    "organization_spend_limit_exceeded",
    "project_spend_limit_exceeded",
    "organization_usage_limit_exceeded"
  ] as const).map((kind) => quota(kind)),
  quota("enforced_spend_limit_reached", "anthropic"),
  quota("usage_limits_reached", "anthropic"),
  quota("402", "anthropic"),
  quota("openrouter_credits", "openrouter"),
  quota("openrouter_key_limit", "openrouter"),
  final("weight_exceeds_budget", "openrouter"),
  ...(["429", "503"] as const).flatMap((kind) =>
    ["7", "0", "0.5", "3600", "-1", "soon"].map((retryAfter) => told(kind, retryAfter))
  ),
  told("429", undefined, 9000),
  told("529", "7"),
  told("slow_down", "7"),
  told("in_flight_budget_exhausted", "7", undefined, "openrouter"),
  ...(["429", "slow_down", "500", "503", "504", "529", "html_502", "reset", "reset_mid_body"] as const)
    .map((kind) => outage(kind)),
  ...(["500", "503", "529", "reset"] as const).map((kind) => sprinkled(kind))
]

export const names: ReadonlyArray<string> = scenarios.map(({ name }) => name)

export const run = (name: string, seed: number, trace?: (line: string) => void): RuleResult => {
  const scenario = scenarios.find((each) => each.name === name)!
  const duration = scenario.minutes * minute
  const world = new World({
    server: {
      dialect: scenario.provider,
      limits: [{ dimension: "requests", limit, period: minute, algorithm: "bucket" }],
      charge: "reserve",
      refund: true,
      firstByte: 400,
      perToken: 0,
      faults: scenario.faults,
      accel: scenario.accel
    },
    client: {
      provider: { ...profiles[scenario.provider], margin: 200 },
      limits: [RateLimiter.rpm(limit, { algorithm: "tokenBucket" })]
    },
    network: { uplink: 20, jitter: 200, spread: "uniform", downlink: 20 },
    load: { input: [8, 12], output: [4, 10], maxOutput: 16 },
    stream: false,
    duration,
    wall,
    trace
  }, seed)
  const books = world.run(seed)
  const attempts = new Map<string, number>()
  for (const { requestId } of books.arrivals) {
    if (requestId !== undefined) attempts.set(requestId, (attempts.get(requestId) ?? 0) + 1)
  }
  const served = books.arrivals.filter(({ admitted }) => admitted)
  const lastly = served.filter(({ at }) => at > duration - minute && at <= duration - 1000)
  const faulty = new Set(scenario.faults.map(({ kind }) => kind))
  const firstTold = Math.min(...world.attempts.filter(({ status }) => status === 429).map(({ told }) => told))
  const met = scenario.accel !== undefined
    ? world.attempts.filter(({ sent, status }) => status === 429 && sent > firstTold).length
    : scenario.faults.some(({ when }) => when?.to !== undefined)
    ? books.arrivals.filter(({ at }) =>
      scenario.faults.some(({ when }) => at >= Number(when?.from ?? 0) && at < Number(when?.to ?? 0))
    ).length
    : books.arrivals.filter(({ reason }) => reason !== undefined && faulty.has(reason as ProviderSimulator.FaultKind))
      .length
  const seen: Seen = {
    books,
    met,
    perSuccess: books.arrivals.length / Math.max(1, books.model.completed),
    most: Math.max(0, ...attempts.values()),
    after: lastly.length / (limit * 59 / 60)
  }
  return {
    rule: scenario.name,
    cell: scenario.name,
    seed,
    counted: `${met} met it, at most ${seen.most} attempts`,
    problems: scenario.check(seen)
  }
}
