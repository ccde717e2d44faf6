/**
 * Random operations of several processes on the same limits, on virtual time and a real server, watched by a checker that
 * goes through everything that was charged.
 *
 * A failure names its seed: `SEED=123` runs that one alone, and `SEED=123 RUNS=50` the fifty from it on.
 */
import { assert, describe, it } from "@effect/vitest"
import { Clock, Context, Effect, Exit, Layer, Scope } from "effect"
import { RateLimiter } from "effect-llm-queue"
import * as QueueRedis from "effect-llm-queue/Redis"
import { TestClock } from "effect/testing"
import { random } from "../laws/schedule.ts"
import { limit } from "../limit.ts"
import * as instant from "./instant.ts"
import { hasRedis, url } from "./server.ts"

const given = process.env["SEED"]
const first = given === undefined ? Math.floor(Math.random() * 1e9) : Number(given)
const runs = Number(process.env["RUNS"] ?? (given === undefined ? 150 : 1))

const lease = 30_000

interface Charge {
  readonly reservation: RateLimiter.Reservation
  readonly by: number
  readonly id: number
  readonly permit: boolean
  /** By limit. */
  readonly amounts: Array<number>
  readonly dates: Array<number | undefined>
  state: "running" | "ended" | "orphaned"
  settled: boolean
}

const cost = (limit: RateLimiter.Limit, { inputTokens, outputTokens }: RateLimiter.Tokens): number =>
  limit.type === "rpm" || limit.type === "rpd" ? 1 : inputTokens + outputTokens

const periods = [100, 1000, 7000, 60_000, 86_400_000]

const run = Effect.fnUntraced(function*(seed: number) {
  const { between, chance, pick } = random(seed)
  const clock = yield* Clock.Clock
  const zero = clock.currentTimeMillisUnsafe()
  const now = () => clock.currentTimeMillisUnsafe() - zero
  const windowed: Array<RateLimiter.Limit> = []
  for (const type of ["rpm", "tpm", "rpd"] as const) {
    if (windowed.length > 0 && chance(0.4)) continue
    windowed.push(limit(type, type === "tpm" ? between(50, 400) : between(2, 12), {
      timePeriod: pick(periods),
      margin: chance(0.5) ? 0 : between(1, 50),
      chargedAt: pick(["dispatch", "dispatch", "completion", "production"] as const)
    }))
  }
  const permits = chance(0.6) ? between(1, 6) : undefined
  const limits = permits === undefined
    ? windowed
    : [...windowed, limit("concurrent", permits)]
  const count = between(1, 3)
  const margin = chance(0.5) ? 0 : 10
  const processes = yield* Effect.forEach(Array.from({ length: count }), () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      yield* Effect.addFinalizer(() => Scope.close(scope, Exit.void))
      const context = yield* Layer.buildWithScope(
        Layer.fresh(QueueRedis.layer({ prefix: `laws${seed}`, lease, margin, commandTimeout: "1 hour" })),
        scope
      )
      const limiter = yield* Scope.provide(
        Context.get(context, RateLimiter.RateLimiter).make("model", limits),
        scope
      )
      return { limiter, isAlive: true }
    }))
  const charges: Array<Charge> = []
  const log: Array<string> = []
  let ids = 0
  const note = (what: string) => void log.push(`${now()}: ${what}`)
  const fail = (what: string): never => {
    const described = limits.map((each) => JSON.stringify(each)).join("\n")
    return assert.fail(
      `SEED=${seed}: ${what}\nmargin ${margin}, ${count} processes\n${described}\n${log.slice(-50).join("\n")}`
    )
  }
  const length = (each: RateLimiter.Limit) => each.timePeriod! + each.margin + margin
  const slice = (each: RateLimiter.Limit) => length(each) / 1024 + 1e-3
  const used = (index: number, at: number, late = 0) =>
    charges.reduce((sum, { amounts, dates }) => {
      const date = dates[index]
      return date === undefined || date + length(windowed[index]!) + late > at ? sum + amounts[index]! : sum
    }, 0)
  const running = () => charges.filter(({ permit, state }) => permit && state === "running").length

  const admit = Effect.fnUntraced(function*(by: number) {
    const { limiter } = processes[by]!
    const candidates = Array.from({ length: chance(0.5) ? 1 : between(2, 5) }, () => ({
      cost: { inputTokens: between(0, 40), outputTokens: between(0, 20) }
    }))
    const admissions = yield* limiter.admitAll!(candidates)
    for (const [index, admission] of admissions.entries()) {
      const { cost: asked } = candidates[index]!
      const amounts = windowed.map((each) => cost(each, asked))
      if (admission._tag === "Admitted") {
        for (const [i, each] of windowed.entries()) {
          const before = used(i, now())
          if (before + amounts[i]! > each.limit + 1e-6 && before > 0) {
            fail(`OVER: ${before} + ${amounts[i]} > ${each.limit} of ${each.type}`)
          }
        }
        if (permits !== undefined && running() >= permits) fail(`OVER: more than ${permits} permits`)
        const charge: Charge = {
          reservation: admission.reservation,
          by,
          id: ids++,
          permit: true,
          amounts,
          dates: windowed.map((each) => each.chargedAt === "dispatch" ? now() : undefined),
          state: "running",
          settled: false
        }
        charges.push(charge)
        note(`${charge.id} of ${by}: ${amounts.join()} admitted`)
        continue
      }
      if (admission._tag !== "Blocked") return fail(`the answer is ${admission._tag}`)
      note(`${amounts.join()} of ${by}: blocked by ${admission.by} for ${admission.wait}`)
      // Alone, it is told when it fits: not before, and no more than a slice later.
      if (count > 1) continue
      const at = now() + admission.wait
      if (admission.by === "concurrent") {
        if (permits === undefined || running() < permits) fail("IDLE: there is a permit")
        continue
      }
      const fits = (at: number, late: boolean) =>
        windowed.every((each, i) => {
          const used_ = used(i, at, late ? slice(each) : 0)
          return used_ + amounts[i]! <= each.limit + 1e-6 || used_ === 0
        })
      if (fits(now(), true)) fail("IDLE: it fits")
      if (Number.isFinite(admission.wait)) {
        if (!fits(at + 1e-3, false)) fail(`it does not fit at ${at}`)
      } else if (charges.every(({ dates }) => !dates.includes(undefined))) {
        fail("nothing is held, and it waits for ever")
      }
    }
    return undefined
  })

  const end = Effect.fnUntraced(function*(charge: Charge) {
    const { limiter } = processes[charge.by]!
    const how = pick(["settled", "unsettled", "given back", "reported later"] as const)
    note(`${charge.id}: ${how}`)
    if (how === "given back") {
      yield* limiter.giveBack(charge.reservation, true)
      charge.amounts.fill(0)
      charge.settled = true
    } else {
      if (how === "settled") yield* settle(charge)
      yield* limiter.complete(charge.reservation)
      yield* limiter.releasePermit
    }
    charge.state = "ended"
    for (const index of windowed.keys()) charge.dates[index] ??= now()
  })

  const settle = Effect.fnUntraced(function*(charge: Charge) {
    const usage = { inputTokens: between(0, 60), outputTokens: between(0, 30) }
    const answer = yield* processes[charge.by]!.limiter.settle(charge.reservation, usage)
    note(`${charge.id}: uses ${usage.inputTokens + usage.outputTokens}: ${answer}`)
    if (charge.settled) {
      if (answer !== "alreadySettled") fail(`a second report is ${answer}`)
      return
    }
    if (answer === "expired") return
    charge.settled = true
    for (const [index, each] of windowed.entries()) {
      const date = charge.dates[index]
      // In its last slice a charge may be gone, or not.
      if (date !== undefined && date + length(each) <= now()) continue
      charge.amounts[index] = cost(each, usage)
      if (date === undefined && each.chargedAt === "production") charge.dates[index] = now()
    }
  })

  const steps = between(20, 60)
  for (let step = 0; step < steps; step++) {
    const alive = processes.flatMap(({ isAlive }, index) => isAlive ? [index] : [])
    const mine = charges.filter(({ by, state }) => state === "running" && processes[by]!.isAlive)
    const dice = between(0, 99)
    if (dice < 45) yield* admit(pick(alive))
    else if (dice < 70 && mine.length > 0) yield* end(pick(mine))
    else if (dice < 76 && charges.length > 0) {
      const charge = pick(charges)
      if (processes[charge.by]!.isAlive) yield* settle(charge)
    } else if (dice < 78 && alive.length > 1) {
      const index = pick(alive)
      note(`${index} is killed`)
      processes[index]!.isAlive = false
      for (const charge of charges) {
        if (charge.by !== index || charge.state !== "running") continue
        // Sooner or later: nobody will say when they ended.
        charge.state = "orphaned"
        for (const i of windowed.keys()) charge.dates[i] ??= now()
      }
    } else {
      const millis = chance(0.5) ? between(1, 30) : between(1, 20_000)
      yield* TestClock.adjust(millis)
      note(`${millis} pass`)
    }
    // What has become of a request is said in the next turn.
    for (let turn = 0; turn < 8; turn++) yield* Effect.yieldNow
  }
  // In the end everything comes back: what is left of the killed lapses.
  for (const charge of charges) if (charge.state === "running") yield* end(charge)
  yield* TestClock.adjust(1)
  return charges.length
}, Effect.scoped)

describe.runIf(hasRedis)("limits on a server", () => {
  it.effect("are never exceeded by all together, and say when something fits", () =>
    Effect.gen(function*() {
      let admitted = 0
      const layer = instant.layer(yield* url)
      yield* Effect.gen(function*() {
        for (let seed = first; seed < first + runs; seed++) admitted += yield* run(seed)
      }).pipe(Effect.provide(layer))
      assert.isAbove(admitted, runs)
    }).pipe(Effect.scoped), 120_000)
})
