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
import { Redis } from "effect/persistence"
import { TestClock } from "effect/testing"
import { random } from "../laws/schedule.ts"
import { limit } from "../limit.ts"
import * as instant from "./instant.ts"
import { hasRedis, url } from "./server.ts"

const given = process.env["SEED"]
const first = given === undefined ? Math.floor(Math.random() * 1e9) : Number(given)
const runs = Number(process.env["RUNS"] ?? (given === undefined ? 60 : 1))
/** That have failed before. */
const failed = given === undefined ? [492152719, 999576324, 20020234, 50010687, 70010767, 70020892, 30010257] : []
const seeds = [...failed, ...Array.from({ length: runs }, (_, index) => first + index)]

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
  // What an earlier run has left there is later than the time of this one.
  const prefix = `laws${seed}:${Math.random()}`
  const processes = yield* Effect.forEach(Array.from({ length: count }), () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      yield* Effect.addFinalizer(() => Scope.close(scope, Exit.void))
      const context = yield* Layer.buildWithScope(
        Layer.fresh(QueueRedis.layer({ prefix, lease, margin, commandTimeout: "1 hour" })),
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

/** One admission: what each limit of the model was charged, and each one of its tenant. */
interface Sent {
  readonly at: number
  readonly tenant: string
  readonly amounts: Array<number>
  reservation: RateLimiter.Reservation | undefined
  readonly by: number
}

/** Buckets, windows of the calendar, budgets and tenants: all of it dated when it is sent. */
const runOthers = Effect.fnUntraced(function*(seed: number) {
  const { between, chance, pick } = random(seed)
  const clock = yield* Clock.Clock
  const zero = clock.currentTimeMillisUnsafe()
  const now = () => clock.currentTimeMillisUnsafe() - zero
  /** As the server has it. */
  const wall = () => clock.currentTimeMillisUnsafe() + 1e12
  const margin = pick([0, 10])
  const marginOf = () => chance(0.5) ? 0 : between(1, 50)
  let limits: Array<RateLimiter.Limit> = []
  if (chance(0.6)) {
    const most = between(5, 200)
    limits.push(limit("tpm", most, {
      timePeriod: pick([1000, 7000, 60_000]),
      margin: marginOf(),
      algorithm: "tokenBucket",
      burst: chance(0.5) ? between(4, most) : undefined,
      headroom: chance(0.3) ? between(1, 100) : 0,
      charging: { refund: false }
    }))
  }
  if (chance(0.6)) {
    limits.push(limit("rpm", between(2, 12), {
      timePeriod: pick([1000, 8000, 40_000]),
      margin: marginOf(),
      algorithm: "fixedWindow"
    }))
  }
  if (chance(0.6) || limits.length === 0) {
    const timePeriod = pick([5000, 60_000, Number.POSITIVE_INFINITY])
    limits.push(limit("budget", between(20, 400), {
      timePeriod,
      price: { input: 1e6, cachedInput: 1e6, output: 1e6 },
      onExceeded: pick(["fail", "wait"])
    }))
  }
  const own = [limit("rpd", between(2, 8), { timePeriod: pick([1000, 9000]) }), limit("concurrent", between(1, 3))]
  const withTenants = chance(0.5)
  const tenants: RateLimiter.Tenants | undefined = withTenants ? { byId: new Map(), others: own } : undefined
  const count = between(1, 3)
  const prefix = `others${seed}:${Math.random()}`
  const processes = yield* Effect.forEach(Array.from({ length: count }), () =>
    Effect.gen(function*() {
      const context = yield* Layer.build(
        Layer.fresh(QueueRedis.layer({ prefix, lease, margin, commandTimeout: "1 hour" }))
      )
      return yield* Context.get(context, RateLimiter.RateLimiter).make("model", limits, tenants)
    }))
  const all: Array<Sent> = []
  /** What a bucket was told late that requests have used beyond what they were charged: a debt from then on. */
  const grown: Array<{ readonly at: number; readonly by: number }> = []
  const log: Array<string> = []
  const fail = (what: string): never =>
    assert.fail(
      `OTHERS SEED=${seed}: ${what}\nmargin ${margin}, ${count} processes\n${
        limits.map((each) => JSON.stringify(each)).join("\n")
      }\n${withTenants ? JSON.stringify(own) : ""}\n${log.slice(-40).join("\n")}`
    )
  const note = (what: string) => void log.push(`${now()}: ${what}`)
  const eps = 1e-6
  /** Whether it is nearer than the guard of a window of the calendar, or by so much farther, to an edge. */
  const isNearEdge = (each: RateLimiter.Limit, by: number) => {
    const period = each.timePeriod!
    const guard = Math.min(each.margin + margin, period / 4) + by
    const start = Math.floor(wall() / period) * period
    return wall() - start < guard || start + period - wall() < guard
  }
  /** What is sent when it is sent now, as a limit sees it: what must not be, if anything. */
  const over = (each: RateLimiter.Limit, index: number, sent: ReadonlyArray<Sent>, amount: number) => {
    const late = each.margin + margin
    const period = each.timePeriod!
    if (each.algorithm === "tokenBucket") {
      const burst = each.burst ?? each.limit
      let sum = amount
      for (let i = sent.length - 1; i >= 0; i--) {
        sum += sent[i]!.amounts[index]!
        const refill = each.limit / period * Math.max(0, now() - sent[i]!.at - late)
        if (sum > burst + refill + eps) return `${sum} since ${sent[i]!.at}, and ${burst} + ${refill} are there`
      }
      return undefined
    }
    if (each.algorithm === "fixedWindow") {
      const start = Math.floor(wall() / period) * period
      if (isNearEdge(each, -1e-3)) return "it is near the edge of a window"
      const used = sent.reduce((sum, { amounts, at }) => at + zero + 1e12 >= start ? sum + amounts[index]! : sum, 0)
      return used + amount > each.limit + eps ? `${used} + ${amount} in a window` : undefined
    }
    const used = sent.reduce((sum, { amounts, at }) => at + period + late > now() ? sum + amounts[index]! : sum, 0)
    return used > 0 && used + amount > each.limit * (1 + 1e-6) ? `${used} + ${amount}` : undefined
  }
  /** How long it takes to pay what was grown, if nothing else is paid meanwhile. */
  const paidIn = ({ limit, timePeriod }: RateLimiter.Limit) =>
    grown.reduce((until, { at, by }) => Math.max(until, at) + by * timePeriod! / limit, 0) - now()
  const costOf = (each: RateLimiter.Limit, tokens: number) => each.type === "rpm" || each.type === "rpd" ? 1 : tokens
  const largest = Math.min(
    40,
    ...limits.flatMap((each) =>
      each.type === "rpm"
        ? []
        : each.algorithm === "tokenBucket"
        ? [Math.min(each.limit, each.burst ?? each.limit)]
        : [each.limit]
    )
  )

  const admit = Effect.fnUntraced(function*(by: number) {
    const candidates = Array.from({ length: pick([1, 1, 3]) }, () => ({
      cost: { inputTokens: between(1, Math.floor(largest)), outputTokens: 0 },
      tenant: pick(["a", "b"])
    }))
    const admissions = yield* processes[by]!.admitAll!(candidates)
    for (const [index, admission] of admissions.entries()) {
      const { cost, tenant } = candidates[index]!
      const amounts = [...limits, own[0]!].map((each) => costOf(each, cost.inputTokens))
      const mine = all.filter((sent) => sent.tenant === tenant)
      const running = mine.filter(({ reservation }) => reservation !== undefined).length
      const problems = [
        ...limits.map((each, i) => over(each, i, all, amounts[i]!)),
        ...(withTenants
          ? [
            over(own[0]!, limits.length, mine, 1),
            running >= own[1]!.limit ? `${running} run for ${tenant}` : undefined
          ]
          : [])
      ]
      if (admission._tag === "Admitted") {
        const problem = problems.find((each) => each !== undefined)
        if (problem !== undefined) fail(`OVER: ${amounts.join()}: ${problem}`)
        all.push({ at: now(), tenant, amounts, reservation: admission.reservation, by })
        note(`${all.length - 1} of ${by} for ${tenant}: ${amounts.join()} admitted`)
      } else if (admission._tag === "Exceeded") {
        const at = limits.findIndex(({ type }) => type === "budget")
        const each = limits[at]!
        const { excess } = admission
        const slack = Number.isFinite(each.timePeriod!) ? (each.timePeriod! + margin) / 1024 + 1e-3 : 0
        const used = all.reduce(
          (sum, { amounts, at: date }) => date + each.timePeriod! + margin + slack > now() ? sum + amounts[at]! : sum,
          0
        )
        note(`${amounts.join()} of ${by} for ${tenant}: exceeds, ${excess.used} used`)
        if (excess.used > used + eps) fail(`${excess.used} are said to be used, and it is ${used}`)
        if (excess.used + excess.requested <= excess.limit + eps) fail("IDLE: there is enough of the budget")
      } else if (admission._tag === "Blocked") {
        note(`${amounts.join()} of ${by} for ${tenant}: blocked by ${admission.by} for ${admission.wait}`)
        // Nobody else waits before it, and no slice is about to end: something must be in the way.
        const wait = admission.wait
        const isAtEdge = limits.some((each) => each.algorithm === "fixedWindow" && isNearEdge(each, 1e-3))
        if (count > 1 || isAtEdge || problems.some((each) => each !== undefined)) continue
        const late = Math.max(
          0,
          ...[...limits, own[0]!].map((each) =>
            each.algorithm === "tokenBucket" ? 0 : Math.min(each.timePeriod!, 1e9) / 1024 + 1e-2
          )
        )
        const bucket = limits.find(({ algorithm }) => algorithm === "tokenBucket")
        // What is kept back is refilled in that time, or where it is much, in that of half a bucket.
        const kept = bucket === undefined ? 0 : bucket.timePeriod! * 2 + Math.max(0, paidIn(bucket))
        if (wait > late && wait > kept) fail(`IDLE: nothing is in its way, and it waits ${wait}`)
      } else fail(admission._tag)
    }
  })

  const steps = between(30, 80)
  for (let step = 0; step < steps; step++) {
    const dice = between(0, 99)
    const running = all.filter(({ reservation }) => reservation !== undefined)
    if (dice < 45) yield* admit(between(0, count - 1))
    else if (dice < 65 && running.length > 0) {
      const sent = pick(running)
      const limiter = processes[sent.by]!
      if (chance(0.3)) {
        yield* limiter.giveBack(sent.reservation!, true)
        sent.amounts.fill(0)
        note(`${all.indexOf(sent)} is given back`)
      } else {
        const budget = limits.findIndex(({ type }) => type === "budget")
        if (budget >= 0 && chance(0.5)) {
          const uses = between(0, 50)
          const answer = yield* limiter.settle(sent.reservation!, { inputTokens: uses, outputTokens: 0 })
          if (answer === "settled" && sent.at + limits[budget]!.timePeriod! + margin > now()) {
            sent.amounts[budget] = uses
          }
          // What was used beyond the estimate is a debt of other limits too. What of it comes back is another law's.
          for (const [i, { type }] of limits.entries()) {
            if (type !== "tpm" || uses <= sent.amounts[i]!) continue
            grown.push({ at: now(), by: uses - sent.amounts[i]! })
            sent.amounts[i] = uses
          }
          note(`${all.indexOf(sent)} uses ${uses}: ${answer}`)
        }
        yield* limiter.complete(sent.reservation!)
        yield* limiter.releasePermit
      }
      sent.reservation = undefined
    } else if (dice < 70) {
      const index = between(0, limits.length - 1)
      if (limits[index]!.algorithm !== "tokenBucket") {
        const to = limits[index]!.type === "budget" ? between(50, 400) : between(2, 12)
        limits = limits.map((each, i) => i === index ? Object.assign({}, each, { limit: to }) : each)
        const by = between(0, count - 1)
        yield* processes[by]!.update(limits)
        note(`${by} changes ${limits[index]!.type} to ${to}`)
      }
    } else {
      const millis = chance(0.5) ? between(1, 40) : between(1, 9000)
      yield* TestClock.adjust(millis)
      note(`${millis} pass`)
    }
    for (let turn = 0; turn < 12; turn++) yield* Effect.yieldNow
  }
  return all.length
}, Effect.scoped)

/** Each at a time of its own, so that a seed alone says what happens. */
const runAll = (one: (seed: number) => ReturnType<typeof run>) =>
  Effect.gen(function*() {
    const { close, service } = instant.connection(yield* url)
    yield* Effect.addFinalizer(() => Effect.sync(close))
    let admitted = 0
    for (const seed of seeds) {
      admitted += yield* Effect.gen(function*() {
        yield* TestClock.adjust((seed * 7919) % 200_000_000)
        return yield* Effect.provideService(one(seed), Redis.Redis, service(yield* Clock.Clock))
      }).pipe(Effect.provide(Layer.fresh(TestClock.layer())))
    }
    assert.isAbove(admitted, runs - 1)
  }).pipe(Effect.scoped)

describe.runIf(hasRedis)("limits on a server", () => {
  it.effect(
    "of any other kind are never exceeded, nor idle, by all together and for each tenant",
    () => runAll(runOthers),
    300_000
  )

  it.effect("are never exceeded by all together, and say when something fits", () => runAll(run), 300_000)
})
