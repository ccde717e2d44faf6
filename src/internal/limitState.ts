/**
 * One windowed limit of a model: its meters, the reservations that have no date yet, and what the provider has said
 * about it in headers and refusals.
 *
 * Headers are read as differences. What a limit would have left after a request, if nobody else used it, is a lower
 * bound on what the provider then has left: its own books are never behind ours. When the provider says less, the
 * difference is what others used, and is taken from what is available. More is believed only about what others seemed
 * to use, at the first word after a start, and for what the provider gives back without our knowing.
 */
import * as Duration from "effect/Duration"
import type * as RateLimiter from "../RateLimiter.ts"
import type { History } from "./meters/meter.ts"
import * as meters from "./meters/meters.ts"

/** How much of a limit a request takes. */
export const charge = (
  { charging, price, type }: RateLimiter.Limit,
  cost: RateLimiter.Cost,
  inputTokens = cost.inputTokens
): number => {
  if (price !== undefined) {
    const fromCache = Math.min(inputTokens, cost.cachedInputTokens ?? 0)
    const output = charging.output === "maximum" ? cost.maxOutputTokens ?? cost.outputTokens : cost.outputTokens
    const input = (inputTokens - fromCache) * price.input + fromCache * price.cachedInput
    return (input + output * price.output) / 1e6
  }
  if (type === "rpm" || type === "rpd" || type === "concurrent") return 1
  const cached = charging.cachedInput ? 0 : cost.cachedInputTokens ?? 0
  const output = charging.output === "maximum" ? cost.maxOutputTokens ?? cost.outputTokens : cost.outputTokens
  const input = type === "otpm" ? 0 : Math.max(0, inputTokens - cached) * charging.inputWeight
  const produced = type === "itpm" ? 0 : output * charging.outputWeight
  return charging.combine === "maximum" ? Math.max(input, produced) : input + produced
}

/** What a reservation changes by when the usage is known. */
const correction = (limit: RateLimiter.Limit, reserved: number, usage: RateLimiter.Tokens): number => {
  const by = charge(limit, usage) - reserved
  if (!limit.charging.refund) return Math.max(0, by)
  if (limit.charging.combine === "sum") return by
  // On arrival the provider counts the larger of the two; in the end all that was used, as far as that is less.
  const used = charge({ ...limit, charging: { ...limit.charging, combine: "sum" } }, usage)
  return Math.min(reserved, used) - reserved
}

/** Whether a request that costs more than is left fails. */
export const failsWhenExceeded = ({ onExceeded, type }: RateLimiter.Limit): boolean =>
  type === "budget" && onExceeded === "fail"

/** What rounding may add to a sum of money. */
export const moneyTolerance = 1e-9

/** The part of a limit that is kept for a tenant: of what comes in ones, only whole ones. */
export const keptPart = (
  { limit, type }: Pick<RateLimiter.Limit, "limit" | "type">,
  guaranteed: number
): number =>
  type === "rpm" || type === "rpd" || type === "concurrent" ? Math.floor(guaranteed * limit + 1e-9) : guaranteed * limit

/** Whether a limit counts tokens, or what they cost. */
export const countsTokens = ({ type }: RateLimiter.Limit): boolean =>
  type === "budget" || type === "tpm" || type === "tpd" || type === "itpm" || type === "otpm"

/** What is used of a limit on what runs at one time. */
export const usageOfPermits = ({ limit, type }: RateLimiter.Limit, used: number): RateLimiter.Usage => {
  const available = Math.max(0, limit - used)
  return {
    type,
    limit,
    enforced: limit,
    pausedFor: undefined,
    timePeriod: undefined,
    margin: Duration.zero,
    used,
    available,
    timeUntilNextCapacity: available > 0 ? Duration.zero : undefined
  }
}

/** Whether a refusal is for what runs at once: then no window is to be paused. */
export const isAboutConcurrency = ({ types }: RateLimiter.Refusal): boolean =>
  types.length > 0 && types.every((type) => type === "concurrent")

/** What one reservation is charged by one limit. */
export interface Charged extends meters.Sent {
  isDated: boolean
  /** When it was sent, and what had been sent by then, itself included. */
  readonly at: number
  readonly sent: number
  /** What would be left after it if nobody else used the limit, of the capacity at that time. */
  expected: number
  capacity: number
  /** `lowered` at that time. */
  readonly lowered: number
  landed: boolean
  /** Whether it is what it will stay. */
  isKnown: boolean
}

/** What a limit knows, for one that follows it. */
export interface Memory {
  readonly history: History
  readonly held: number
  readonly unsettled: number
  readonly since: number
}

/** The charge of a limit that follows others: from its own before, if it had one, and from the one it knows it by. */
export type Carry = (own: Charged | undefined, source: Charged | undefined, now: number) => Charged | undefined

/** Sums of what was sent up to a time, for as long as a response may take; older ones are let go. */
class Sent {
  readonly resolution: number
  private readonly isShared: boolean
  private readonly times: Array<number> = []
  private readonly sums: Array<number> = []
  total = 0
  /** What was sent before the first that is still known. */
  private gone = 0

  constructor(resolution: number, isShared: boolean) {
    this.resolution = resolution
    this.isShared = isShared
  }

  add(now: number, amount: number): void {
    this.reach(now, this.total + amount)
  }

  /** So much has been sent by now, by others too. */
  reach(now: number, total: number): void {
    this.total = total
    const last = this.times.length - 1
    // Where others send too, the first one says what had been sent before.
    const isKept = this.isShared && last === 0
    if (last >= 0 && !isKept && now - this.times[last]! < this.resolution) {
      this.sums[last] = this.total
      return
    }
    if (this.times.length === 4096) {
      this.gone = this.sums[2047]!
      this.times.splice(0, 2048)
      this.sums.splice(0, 2048)
    }
    this.times.push(now)
    this.sums.push(this.total)
  }

  /**
   * What was sent by then, or a little later: as late as the first that is still known, and, where others send too, as
   * the next time that they were heard of.
   */
  until(at: number): number {
    let low = 0
    let high = this.times.length
    while (low < high) {
      const middle = (low + high) >> 1
      if (this.times[middle]! <= at) low = middle + 1
      else high = middle
    }
    if (this.isShared) return low < this.times.length ? this.sums[low]! : this.total
    return low === 0 ? this.gone : this.sums[low - 1]!
  }
}

/** Share of the limit given up at a refusal that nothing explains, and got back each ten seconds. */
const cut = 0.85
/** The same when others have taken what was free: room for the two not to meet. */
const contendedCut = 0.985
const leastContended = 0.9
/** What others use of a limit is not noticed below this share of it. */
const noticed = 0.02
const rampCut = 0.6
const recovery = 0.01 / 10_000
const rampRecovery = Math.log(1.2) / 60_000
const lowestScale = 0.02

/** Cuts that follow one another within this time make it come back more slowly, by so much at most. */
const relapse = 600_000
const slowest = 16

/** The longest time to wait for the answer to the one request that goes first. */
const longestProbe = 3000

/** How long a lower limit holds that the provider says once, in milliseconds; at least a period. */
const unconfirmed = 600_000

/** The longest time that a refusal can pause a limit for. */
const longestPause = 7 * 86_400_000

/** Refusals that say no time wait for this share of the period, or of a minute, first; then twice as long each. */
const firstBackoff = 0.25
const minute = 60_000
/** And no longer than a period, or than this where it is not sure that the limit is meant. */
const longestGuess = 5 * minute
/** Fixed windows that last longer than this are waited for to their end. */
const longWindow = 10 * minute

/** A number that a provider may have said: not more than `most` from zero, and none at all rather than no number. */
const sane = (value: number | undefined, most: number): number | undefined =>
  value === undefined || Number.isNaN(value) || Math.abs(value) === Number.POSITIVE_INFINITY
    ? undefined
    : Math.max(-most, Math.min(most, value))

export class LimitState {
  limit: RateLimiter.Limit
  /** Reservations without a date. */
  held = 0
  /** Of the charges, what may still be given back: reservations whose use is not known. */
  private unsettled = 0
  private meter: meters.LimitMeter
  private readonly wall: () => number
  private readonly sent: Sent
  private readonly random: () => number
  private period: number
  /** Before it nothing is known: at a registration nothing was charged before. */
  private began = Number.NEGATIVE_INFINITY
  private pausedUntil = Number.NEGATIVE_INFINITY
  /** The limit that the provider says, when it is lower than the configured one. */
  private adopted: number
  private loweredLimitAt = Number.NEGATIVE_INFINITY
  private scale = 1
  private scaledAt = 0
  private ramping = false
  /** What was sent in the period before growth was too fast, and not refused. */
  private accepted = 0
  /** What was sent before this has already been answered for. */
  private cutAt = Number.NEGATIVE_INFINITY
  private backoffs = 0
  /** How much more slowly than at first a cut limit comes back. */
  private slowness = 1
  private cold: boolean
  /**
   * After a cold start, and after a pause that the provider has not explained, one request goes first: until it was
   * answered, or for a while.
   */
  private awaitsProbe: boolean
  private probe: Charged | undefined
  private probedUntil = Number.NEGATIVE_INFINITY
  /** When others were last seen to use the limit. */
  private othersAt = Number.NEGATIVE_INFINITY
  /** When a response last showed that others use the limit. */
  private explainedAt = Number.NEGATIVE_INFINITY
  /** Taken away so far because others seemed to use it. */
  private lowered = 0
  /** Of that, what our own usage has not turned out to be. */
  private foreign = 0
  private foreignAt = Number.NEGATIVE_INFINITY
  /** Observations in a row that showed more than expected, and the least of their differences. */
  private more = 0
  private leastMore = Number.POSITIVE_INFINITY

  constructor(
    limit: RateLimiter.Limit,
    wall: () => number,
    now: number,
    random: () => number,
    meter: meters.LimitMeter = meters.make(limit, wall, now)
  ) {
    this.limit = limit
    this.meter = meter
    this.period = limit.timePeriod!
    this.sent = new Sent(Math.max(1, limit.margin / 4), meter.shared !== undefined)
    this.random = random
    this.wall = wall
    this.cold = limit.coldStart
    this.awaitsProbe = limit.coldStart
    this.adopted = limit.limit
    this.scaledAt = now
  }

  /** When what it remembers began. */
  remembersSince(now: number): number {
    return Math.max(this.began, this.meter.since(now))
  }

  /** Whether it cannot say which of what it remembers a charge was. */
  get forgetsDates(): boolean {
    return this.limit.algorithm === "tokenBucket"
  }

  memory(now: number): Memory {
    return {
      history: this.meter.history(now),
      held: this.held,
      unsettled: this.unsettled,
      since: this.remembersSince(now)
    }
  }

  /** Nothing is known of what was charged before. */
  begin(now: number): void {
    this.began = now
  }

  canFollow(limit: RateLimiter.Limit): boolean {
    return meters.isSameShape(this.limit, limit)
  }

  /** Other numbers from now on. What is charged, and what the provider has said, stays. */
  follow(limit: RateLimiter.Limit, now: number): void {
    this.configure(limit)
    this.meter.configure(limit)
    this.enforce(now)
  }

  /** Counts in another way from now on, and begins with what is known. What the provider has said stays. */
  rebuild(limit: RateLimiter.Limit, { held, history, since, unsettled }: Memory, isOwn: boolean, now: number): Carry {
    const before = this.meter
    const isLonger = limit.timePeriod! + limit.margin >= this.period + this.limit.margin
    const used = this.forgetsDates ? before.used(now) : undefined
    const others = isOwn || !isLonger ? 0 : before.history(now).entries.reduce((sum, { others }) => sum + others, 0)
    const { entries } = history
    const from = this.cold ? now : Math.min(now, entries[0]?.at ?? now)
    const meter = this.meter = meters.make({ ...limit, coldStart: this.cold }, this.wall, from)
    const replayed = entries.map((entry) => meter.replay(entry, now))
    this.configure(limit)
    this.held = held
    this.unsettled = unsettled
    this.began = since
    // What others use has no date in a bucket, and is not known to the other limits.
    const unseen = used === undefined ? others : Math.max(0, used - meter.used(now))
    if (unseen > 0) meter.lower(meter.available(now) - unseen, now)
    this.enforce(now)
    meter.pace(this.ramping, now)
    const { lowered } = this
    const { capacity } = meter
    const expected = meter.available(now) - held
    return (own, source, now) => {
      if (source === undefined) return undefined
      const { amount, isDated, isKnown } = source
      const charged: Charged = {
        ...(own ?? source),
        amount,
        counted: undefined,
        alsoCounted: meters.none,
        paced: meters.none,
        least: undefined,
        isDated,
        isKnown,
        expected,
        capacity,
        lowered
      }
      if (isDated && (history.isAnonymous || source.least !== undefined)) {
        charged.amount = 0
        meter.send(charged, now)
        meter.date(charged, now)
        charged.amount = charged.least = amount
        charged.paced = meters.none
      } else if (isDated) {
        const index = history.find(source.counted!)
        const found = index === undefined ? undefined : replayed[index]
        if (found === undefined) {
          if (!isKnown) this.unsettled -= amount
          return undefined
        }
        const [first, ...others] = meter.part(found, amount)
        charged.counted = first
        charged.alsoCounted = others
      }
      if (own !== undefined && own === this.probe) this.probe = charged
      return charged
    }
  }

  private configure(limit: RateLimiter.Limit): void {
    // What the provider said last is lower than the limit: it is asked again, as always, in a while.
    this.adopted = this.adopted < this.limit.limit ? Math.min(this.adopted, limit.limit) : limit.limit
    this.limit = limit
    this.period = limit.timePeriod!
  }

  /** When a charge fits beside `reserved`, if nothing but time passes: `now` when it does. */
  fitsAt(amount: number, now: number, reserved = 0): number {
    this.refresh(now)
    const at = Math.max(this.pausedUntil, this.probedUntil, this.meter.fitsAt(amount, this.held, now))
    if (reserved === 0) return at
    // Of a limit that is lower for now no more is kept than leaves room for the request.
    const kept = Math.min(reserved, Math.max(0, this.meter.capacity - amount))
    return Math.max(at, this.meter.counting[0].fitsAt(amount, this.held + kept, now))
  }

  /**
   * When `amount` can have gone through behind others that take `ahead`, if nothing but time passes and a part of what
   * is in flight is given back.
   */
  through(ahead: number, amount: number, returnedPart: number, now: number): number {
    this.refresh(now)
    const held = this.held - this.unsettled * returnedPart
    return Math.max(this.pausedUntil, this.meter.through(ahead, amount, held, now))
  }

  /** Whether a charge now could keep a later one of `protectedAmount` from what fits it at `at`. */
  delays(amount: number, protectedAmount: number, at: number, now: number): boolean {
    if (amount === 0) return false
    // What is larger waits until all of it is free.
    return amount + protectedAmount > this.meter.atOnce || this.fitsAt(amount + protectedAmount, now) > at
  }

  /** What is missing for a charge of a budget, beside `reserved`; `undefined` when it fits, or may wait. */
  excess(amount: number, now: number, ofTenant: boolean, reserved = 0): RateLimiter.Excess | undefined {
    const fits = this.fitsAt(amount, now, reserved)
    return fits <= now ? undefined : {
      limit: this.limit.limit,
      timePeriod: this.period,
      used: this.used(now) + reserved,
      requested: amount,
      wait: fits - now,
      ofTenant
    }
  }

  /** Net charges that count now, reservations included. */
  used(now: number): number {
    return this.meter.used(now) + this.held
  }

  /** Whether the next request has to be answered before another one goes. */
  get goesAlone(): boolean {
    return this.awaitsProbe
  }

  /** How long the provider has asked to send nothing. */
  pausedFor(now: number): number {
    return Math.max(0, this.pausedUntil - now)
  }

  /** What all who share the limit have done by now, and know about it. */
  heard(
    { isWarm, lowered, pausedFor, sent }: {
      readonly sent: number
      readonly lowered: number
      readonly pausedFor: number
      readonly isWarm: boolean
    },
    now: number
  ): void {
    this.sent.reach(now, sent)
    this.lowered = lowered
    if (pausedFor > 0) this.pausedUntil = Math.max(this.pausedUntil, now + pausedFor)
    if (isWarm && this.cold) {
      this.cold = false
      this.awaitsProbe = this.awaitsProbe && this.backoffs > 0
    }
  }

  /** Whether nothing would be lost if it was forgotten. */
  isIdle(now: number): boolean {
    const nothing = this.limit.type === "budget" ? this.limit.limit * moneyTolerance : 1e-6
    return this.held === 0 && this.pausedUntil <= now && this.meter.used(now) <= nothing
  }

  take(amount: number, now: number): Charged {
    const { mayShrink, sent } = this
    if (mayShrink) this.unsettled += amount
    const isDated = this.limit.chargedAt === "dispatch"
    const { shared } = this.meter
    if (shared === undefined) sent.add(now, amount)
    else sent.reach(now, shared.sent)
    const charged: Charged = {
      amount,
      counted: undefined,
      alsoCounted: meters.none,
      paced: meters.none,
      least: undefined,
      isDated,
      at: now,
      sent: sent.total,
      expected: 0,
      capacity: 0,
      lowered: this.lowered,
      landed: false,
      isKnown: !mayShrink
    }
    this.meter.send(charged, now)
    if (isDated) this.meter.date(charged, now)
    else this.held += amount
    charged.expected = shared?.available ?? this.available(now) - this.held
    charged.capacity = this.meter.capacity
    if (this.awaitsProbe) {
      this.awaitsProbe = false
      this.probe = charged
      this.probedUntil = now + Math.min(longestProbe, this.period / 20)
    }
    return charged
  }

  settle(charged: Charged, usage: RateLimiter.Tokens, now: number): boolean {
    const { chargedAt } = this.limit
    this.know(charged)
    const by = correction(this.limit, charged.amount, usage)
    // What the provider counted beyond our estimate has looked like somebody else's use.
    if (by > 0 && this.foreign > 0 && now - this.foreignAt < this.period) {
      const ours = Math.min(by, this.foreign)
      this.foreign -= ours
      this.raise(ours, now)
    }
    if (!charged.isDated) {
      this.meter.adjust(charged, by, now)
      this.held += by
      if (chargedAt === "production") this.date(charged, now)
      return true
    }
    return this.meter.adjust(charged, by, now)
  }

  /** The request has ended: dates its charge if it has no date, and knows that the provider has counted it. */
  complete(charged: Charged, now: number): void {
    this.know(charged)
    this.count(charged, now)
    this.probedUntil = Number.NEGATIVE_INFINITY
    if (charged.at > this.cutAt) this.backoffs = 0
  }

  giveBack(charged: Charged, now: number): void {
    this.know(charged)
    this.probedUntil = Number.NEGATIVE_INFINITY
    const { amount } = charged
    if (!charged.isDated) this.held -= amount
    this.meter.adjust(charged, -amount, now)
    charged.expected += amount
    charged.amount = 0
  }

  /** The provider refused the request. Whether the refusal is about this limit is for the caller to say. */
  refused(charged: Charged, now: number): void {
    this.know(charged)
    this.probedUntil = Number.NEGATIVE_INFINITY
    const counts = this.limit.charging.refused && (this.limit.type === "budget" || !countsTokens(this.limit))
    if (counts) this.count(charged, now)
    else this.giveBack(charged, now)
  }

  /** Follows a refusal by this limit, or one that `means` others: then its numbers mean nothing here. */
  pause(
    charged: Charged,
    amount: number,
    refusal: RateLimiter.Refusal,
    means: "this" | "maybeThis" | "others",
    now: number
  ): void {
    const isOurs = means !== "others"
    const most = 2 * this.limit.limit
    const limit = sane(refusal.limit, Number.MAX_SAFE_INTEGER)
    const used = sane(refusal.used, most)
    const requested = sane(refusal.requested, most) ?? amount
    const told = sane(refusal.retryAfter, longestPause)
    const retryAfter = told === undefined || told < 0 ? undefined : told
    const isNews = charged.at > this.cutAt
    // Its headers have shown it, and what is available says when to come back.
    const isContended = isOurs && this.explainedAt === now && this.limit.algorithm !== "tokenBucket"
    const isLower = limit !== undefined && limit > 0 && limit < this.adopted
    const isSpent = means === "this" && this.limit.algorithm === "fixedWindow" && this.period > longWindow
      && retryAfter === undefined && used === undefined
    const isExplained = isOurs
      && (used !== undefined || isSpent || isLower || this.explainedAt === now || this.loweredLimitAt === now)
    if (isOurs) {
      this.warm(now)
      if (isLower) this.adopt(limit, now)
      const capacity = limit ?? this.adopted
      if (used !== undefined) this.lowerTo(capacity - used, now)
      else if (isSpent) this.lowerTo(0, now)
      else if (retryAfter !== undefined && this.limit.algorithm === "tokenBucket") {
        this.lowerTo(requested - (retryAfter * capacity) / this.period, now)
      }
    }
    // One that went alone was not refused for the rate.
    const isAboutRate = isNews && charged !== this.probe
    if (refusal.kind === "ramp") {
      if (isAboutRate) this.accepted = this.sent.total - this.sent.until(now - this.period)
      // Of what was sent together, what is refused later was not accepted either.
      if (charged !== this.probe) {
        this.accepted -= amount
        this.rescale(Math.min(this.scale, rampCut * this.accepted / this.limit.limit), now, true)
      }
    } else if (isContended && isAboutRate) {
      if (this.scale > leastContended) this.rescale(this.scale * contendedCut, now, false)
    } else if (isOurs && isAboutRate && !isExplained) {
      this.slowness = now - this.cutAt < relapse ? Math.min(slowest, this.slowness * 2) : 1
      this.rescale(this.scale * cut, now, false)
    }
    const wait = retryAfter
      ?? (isExplained
        ? 0
        : this.backoff(means === "this" ? this.period : longestGuess) * (0.5 + 0.5 * this.random()))
    // Several processes that wait for one instant must not come back at it together.
    this.pausedUntil = Math.max(this.pausedUntil, now + wait + (retryAfter === undefined ? 0 : 50 * this.random()))
    if (isNews) {
      this.cutAt = now
      if (retryAfter === undefined && !isExplained) {
        this.backoffs++
        this.awaitsProbe = true
      }
    }
  }

  private backoff(most: number): number {
    return Math.min(this.period, most, Math.min(this.period, minute) * firstBackoff * 2 ** this.backoffs)
  }

  /** How well an observation fits this limit: the less the better; `undefined` when it is about another one. */
  matches(observation: RateLimiter.Observation): number | undefined {
    const { limit, remaining, reset, types } = observation
    if (!types.includes(this.limit.type) || this.limit.type === "budget") return undefined
    if (limit === undefined) return types.length === 1 ? 0 : undefined
    if (Math.abs(limit - this.share) <= 1) return undefined
    if (types.length === 1 || limit === this.limit.limit || limit === this.adopted) {
      return limit === this.limit.limit
        ? 0
        : 1
    }
    if (reset === undefined || remaining === undefined || remaining >= limit) return undefined
    const period = (reset * limit) / (limit - remaining)
    const off = Math.abs(Math.log(period / this.period))
    return off < 0.5 ? 1 + off : undefined
  }

  /** The least that the provider can have left by what we know, when it counted a request or when it answered it. */
  private lowest({ at, capacity, expected, lowered, sent }: Charged, isNow: boolean, now: number): number {
    if (isNow) return this.available(now) - this.held
    const overtaking = this.sent.until(at + this.limit.margin) - sent
    return expected + Math.min(0, this.meter.capacity - capacity) - overtaking - (this.lowered - lowered)
  }

  /** What was sent that may have reached the provider after a request: all since, and what it may have overtaken. */
  private besides({ amount, at, sent }: Charged): number {
    const before = Math.min(sent - amount, this.sent.until(at - this.limit.margin - this.sent.resolution))
    return this.sent.total - before - amount
  }

  /** How unlikely it is that a refusal is about this limit. */
  suspicion(refusal: RateLimiter.Refusal, now: number): number {
    const told = refusal.limit === undefined || refusal.limit === this.limit.limit || refusal.limit === this.adopted
    return (told ? 0 : 10) + Math.max(0, this.available(now) - this.held) / this.limit.limit
  }

  observe(charged: Charged, observation: RateLimiter.Observation, now: number): void {
    const limit = sane(observation.limit, Number.MAX_SAFE_INTEGER)
    const remaining = sane(observation.remaining, this.limit.limit)
    const rounding = sane(observation.rounding, this.limit.limit) ?? 1
    this.probedUntil = Number.NEGATIVE_INFINITY
    const isLower = limit !== undefined && limit > 0 && limit < this.adopted
    if (isLower) this.adopt(limit, now)
    // Lower at once, higher when it has stayed so for a minute.
    else if (limit === this.adopted) this.loweredLimitAt = now
    else if (limit !== undefined && limit > this.adopted && now - this.loweredLimitAt >= 60_000) {
      this.adopt(Math.min(limit, this.limit.limit), now)
    }
    // What is left of one quantum says nothing about the period.
    if (remaining === undefined || remaining <= this.share) return
    const slack = rounding > 1 ? rounding / 2 : 0
    if (this.cold) {
      const available = remaining - slack - (this.limit.chargedAt === "dispatch" ? this.besides(charged) : 0)
      this.warm(now)
      this.setTo(available, now)
      return
    }
    if (isLower) {
      this.lowerTo(remaining - slack - this.besides(charged), now)
      return
    }
    const difference = remaining + slack - this.kept - this.lowest(charged, observation.asOf === "response", now)
    const missing = -difference
    if (missing > 0) {
      this.more = 0
      this.leastMore = Number.POSITIVE_INFINITY
      this.lower(missing, now)
      this.lowered += missing
      this.explainedAt = this.othersAt = now
      this.foreign = (now - this.foreignAt < this.period ? this.foreign : 0) + missing
      this.foreignAt = now
      return
    }
    if (this.meter.confirmOthers(difference, now) > noticed * this.adopted) this.othersAt = now
    if (this.limit.charging.refund || this.limit.algorithm !== "tokenBucket") return
    // The provider may give back what the profile does not know of: then it has more than we think, time after time.
    const available = remaining - slack - this.besides(charged)
    const more = available - this.kept - this.available(now)
    if (more <= 0) {
      this.more = 0
      this.leastMore = Number.POSITIVE_INFINITY
      return
    }
    this.leastMore = Math.min(this.leastMore, more)
    if (++this.more < 3) return
    this.raise(this.leastMore, now)
    this.more = 0
    this.leastMore = Number.POSITIVE_INFINITY
  }

  usage(now: number): RateLimiter.Usage {
    this.refresh(now)
    const { limit, type } = this.limit
    const used = this.used(now)
    const enforced = Math.min(limit, this.adopted) * this.scale
    const freed = this.fitsAt(type === "budget" ? limit * 1e-6 : 1, now)
    return {
      type,
      limit,
      enforced,
      timePeriod: Duration.millis(this.period),
      margin: Duration.millis(this.limit.margin),
      pausedFor: this.pausedUntil > now ? Duration.millis(this.pausedUntil - now) : undefined,
      used,
      available: Math.max(0, enforced - used),
      timeUntilNextCapacity: Number.isFinite(freed) ? Duration.millis(freed - now) : undefined
    }
  }

  /** What one quantum allows, which some servers tell in place of the limit. */
  private get share(): number {
    const { limit, quantum } = this.limit
    return quantum === undefined ? Number.NEGATIVE_INFINITY : (limit * quantum) / this.period
  }

  /** What is left of the limit itself, whatever else slows it down. */
  private available(now: number): number {
    return this.meter.available(now)
  }

  /**
   * What the provider's books have beyond ours: what is kept back of a bucket, and what a cut holds back of a window. A
   * bucket that is cut is a smaller one at the same level.
   */
  private get kept(): number {
    const full = this.limit.algorithm === "tokenBucket" ? this.limit.burst ?? this.adopted * this.scale : this.adopted
    return Math.max(0, full - this.meter.capacity)
  }

  /** Requests stay what they are, and what is not given back may only grow. */
  private get mayShrink(): boolean {
    return this.limit.charging.refund && countsTokens(this.limit)
  }

  private know(charged: Charged): void {
    if (charged.isKnown) return
    charged.isKnown = true
    this.unsettled -= charged.amount
  }

  private date(charged: Charged, now: number): void {
    this.held -= charged.amount
    charged.isDated = true
    this.meter.date(charged, now)
  }

  private count(charged: Charged, now: number): void {
    if (!charged.isDated) this.date(charged, now)
    if (charged.landed) return
    charged.landed = true
    this.meter.landed(charged, now)
  }

  /** The provider has told how things stand: the caution of a start is over. */
  private warm(now: number): void {
    this.cold = false
    this.meter.warm(now)
  }

  /** As the provider says it, what we keep back included. */
  private setTo(told: number, now: number): void {
    this.meter.lower(told - this.kept, now)
    this.meter.raise(told - this.kept, now)
  }

  /** As the provider says it, what we keep back included. */
  private lowerTo(told: number, now: number): void {
    const by = this.available(now) + this.kept - told
    if (by <= 0) return
    this.lowered += by
    this.lower(by, now)
  }

  private lower(by: number, now: number): void {
    this.meter.lower(this.available(now) - by, now)
  }

  private raise(by: number, now: number): void {
    this.meter.raise(this.available(now) + by, now)
  }

  private adopt(limit: number, now: number): void {
    if (limit < this.adopted) this.loweredLimitAt = now
    this.adopted = limit
    this.enforce(now)
  }

  /** Lower limits and cuts end when nothing confirms them. */
  private refresh(now: number): void {
    if (this.scale < 1) this.recover(now)
    if (this.adopted < this.limit.limit && now - this.loweredLimitAt >= Math.max(unconfirmed, this.period)) {
      this.adopt(this.limit.limit, now)
    }
  }

  private recover(now: number): void {
    const passed = now - this.scaledAt
    if (passed < 1000) return
    if (now - this.othersAt < this.period) {
      this.scaledAt = now
      return
    }
    this.rescale(
      Math.min(
        1,
        this.ramping ? this.scale * Math.exp(rampRecovery * passed) : this.scale + (recovery / this.slowness) * passed
      ),
      now,
      this.ramping
    )
  }

  private rescale(scale: number, now: number, ramping: boolean): void {
    this.scale = Math.max(lowestScale, Math.min(1, scale))
    this.scaledAt = now
    const isPaced = ramping && scale < 1
    this.enforce(now)
    // What a bucket has saved up meanwhile would be the next growth that is too fast.
    if (this.ramping && !isPaced && this.limit.algorithm === "tokenBucket") this.meter.lower(0, now)
    this.ramping = isPaced
    this.meter.pace(isPaced, now)
  }

  private enforce(now: number): void {
    this.meter.setLimit(this.adopted * this.scale, now)
  }
}
