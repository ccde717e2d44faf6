/**
 * What one queue has learnt about its provider's health: a circuit breaker, the number of requests worth having in
 * flight, and a budget of retries. It only counts and decides; the queue acts.
 *
 * A breaker is `closed` (requests flow), `open` until an instant, or `probing`: one request is out to try.
 */
import * as Duration from "effect/Duration"
import type * as QueueManager from "../QueueManager.ts"
import type * as RateLimiter from "../RateLimiter.ts"
import type { Entry } from "./entry.ts"
import type * as settings from "./settings.ts"

const maxCooldown = 30_000
/** How long a try, or what was sent before the cap was reduced, holds others up when it gives no answer. */
const patience = 30_000
/** Retries that can be saved at the least; more when a minute's successes pay for more. */
const savedRetries = 10
const minute = 60_000

export class ProviderGate {
  readonly settings: settings.ProviderSettings
  readonly refusals: Record<RateLimiter.RefusalKind, number> = {
    rate: 0,
    ramp: 0,
    overload: 0,
    transient: 0,
    quota: 0,
    tooLarge: 0,
    auth: 0
  }
  /** The provider's words when its quota was exhausted, until a request has succeeded again. */
  quotaReason: string | undefined
  /** Its words when it failed last. */
  reason = ""
  openUntil = Number.NEGATIVE_INFINITY
  private isOpen = false
  private pausedUntil = Number.NEGATIVE_INFINITY
  private probe: Entry | undefined
  private probeUntil = Number.NEGATIVE_INFINITY
  /** Failures in a row. */
  private failures = 0
  private cooldown: number
  /** Most in flight; `Infinity` when nothing reduces it. */
  private cap = Number.POSITIVE_INFINITY
  private fullCap = 0
  /** When the cap was last reduced: what was sent before says nothing about the reduced load. */
  private reducedAt = Number.NEGATIVE_INFINITY
  private readonly sentSince = new Set<Entry>()
  private cappedAt = Number.NEGATIVE_INFINITY
  private retries = savedRetries
  /** Successes of about the last minute: each counts less with time. */
  private recent = 0
  private succeededAt = 0

  constructor(settings: settings.ProviderSettings) {
    this.settings = settings
    this.cooldown = settings.cooldown
  }

  /** How long no request that nobody in flight waits for may be sent, unless one ends before. */
  wait(now: number, running: number): number {
    // Requests that never answer hold nobody up for ever.
    if (now >= this.cappedAt + patience) this.raiseCap(now)
    const inFlight = now < this.reducedAt + patience ? running : this.sentSince.size
    const forCap = inFlight < this.cap ? 0 : this.cappedAt + patience - now
    return Math.max(forCap, this.closedFor(now), this.isProbing(now) ? this.probeUntil - now : 0)
  }

  /** How long nothing at all may be sent. */
  closedFor(now: number): number {
    return Math.max(0, this.pausedUntil - now, this.isOpen ? this.openUntil - now : 0)
  }

  private isProbing(now: number): boolean {
    return this.isOpen && this.probe !== undefined && now < this.probeUntil
  }

  /** Whether nothing is sent for the sake of the provider, for quota or for its health. */
  isBlocked(now: number): boolean {
    return this.isProbing(now) || (this.isOpen && now < this.openUntil)
  }

  readonly isQuotaExhausted = (now: number): boolean => this.quotaReason !== undefined && this.isBlocked(now)

  dispatched(entry: Entry, now: number): void {
    if (this.cap !== Number.POSITIVE_INFINITY) this.sentSince.add(entry)
    if (!this.isOpen || this.isProbing(now)) return
    this.probe = entry
    this.probeUntil = now + patience
  }

  /** The first element of a stream is there, however long the others take. */
  streaming(entry: Entry, now: number): void {
    if (this.probe === entry) this.answered(entry, false, now)
    this.raiseCap(now)
  }

  /** The attempt ended, but says nothing about the provider: by an interruption, or by the processor's own fault. */
  ended(entry: Entry): void {
    this.sentSince.delete(entry)
    if (this.probe === entry) this.probe = undefined
  }

  /** The provider answered: with a result, or with a refusal that shows it well. */
  answered(entry: Entry, success: boolean, now: number): void {
    const wasProbe = this.probe === entry
    this.ended(entry)
    if (this.isOpen && !wasProbe) return
    this.isOpen = false
    this.quotaReason = undefined
    this.failures = 0
    this.cooldown = this.settings.cooldown
    if (!success) return
    this.recent = this.recentAt(now) + 1
    this.succeededAt = now
    this.retries = this.saved(now, this.retries + this.settings.budget)
    if (entry.firstElementAt === undefined) this.raiseCap(now)
  }

  private recentAt(now: number): number {
    return this.recent * Math.exp((this.succeededAt - now) / minute)
  }

  private saved(now: number, retries: number): number {
    return Math.min(retries, Math.max(savedRetries, this.recentAt(now) * this.settings.budget))
  }

  private raiseCap(now: number): void {
    if (this.cap === Number.POSITIVE_INFINITY) return
    this.cappedAt = now
    if (++this.cap < this.fullCap) return
    this.cap = Number.POSITIVE_INFINITY
    this.sentSince.clear()
  }

  /** No answer within the time that a request has for its processing. */
  timedOut(entry: Entry, now: number): void {
    const wasProbe = this.probe === entry
    this.ended(entry)
    if (this.isOpen || wasProbe) return
    this.reason = "there was no answer within the processingTimeout"
    if (++this.failures >= this.settings.failures) this.trip(now, 0)
  }

  failed(entry: Entry, refusal: RateLimiter.Refusal, sentAt: number, running: number, now: number): void {
    const wasProbe = this.probe === entry
    this.ended(entry)
    this.reason = refusal.message
    if (refusal.kind === "quota") {
      this.quotaReason = refusal.message
      // What another try, sent before, comes to says nothing about it.
      this.probe = undefined
      this.open(now + Math.max(this.settings.quotaCooldown, refusal.retryAfter ?? 0))
      return
    }
    // The try for quota met something else: the others wait for that.
    if (wasProbe) this.quotaReason = undefined
    if (refusal.kind === "overload") this.reduce(sentAt, running, now)
    if (this.isOpen && !wasProbe) {
      if (refusal.retryAfter !== undefined && this.quotaReason === undefined) {
        this.openUntil = Math.max(this.openUntil, now + refusal.retryAfter)
      }
      return
    }
    this.failures++
    if (!wasProbe && this.failures < this.settings.failures && refusal.retryAfter === undefined) return
    // A provider that says when to come back is not asked before.
    if (wasProbe || this.failures >= this.settings.failures) this.trip(now, refusal.retryAfter ?? 0)
    else this.open(now + (refusal.retryAfter ?? 0))
  }

  private trip(now: number, retryAfter: number): void {
    this.open(now + Math.max(retryAfter, this.cooldown))
    this.cooldown = Math.min(Math.max(maxCooldown, this.settings.cooldown), this.cooldown * 2)
  }

  /** A rate limit that none of the model's limits can be paused for. */
  limited(refusal: RateLimiter.Refusal, sentAt: number, running: number, now: number): void {
    if (refusal.retryAfter === undefined) this.reduce(sentAt, running, now)
    else this.pausedUntil = Math.max(this.pausedUntil, now + refusal.retryAfter)
  }

  private reduce(sentAt: number, running: number, now: number): void {
    if (sentAt <= this.reducedAt) return
    if (this.cap === Number.POSITIVE_INFINITY) this.fullCap = Math.max(2, running)
    this.cap = Math.max(1, Math.floor(Math.min(this.cap, running) / 2))
    this.reducedAt = this.cappedAt = now
    this.sentSince.clear()
  }

  /** What the provider has asked for before is not shortened. */
  private open(until: number): void {
    this.openUntil = this.isOpen ? Math.max(this.openUntil, until) : until
    this.isOpen = true
  }

  /** Takes a retry from the budget, if there is one. */
  readonly payRetry = (now: number): boolean => {
    const saved = this.saved(now, this.retries)
    // Ten tenths come to a little less than one.
    if (saved < 1 - 1e-6) return false
    this.retries = Math.max(0, saved - 1)
    return true
  }

  info(now: number): QueueManager.ProviderInfo {
    return {
      name: this.settings.profile.name,
      state: !this.isOpen
        ? "available"
        : this.isProbing(now) || now >= this.openUntil
        ? "probing"
        : this.quotaReason === undefined
        ? "unavailable"
        : "quotaExhausted",
      retryIn: this.isOpen ? Duration.millis(Math.max(0, this.openUntil - now)) : undefined,
      concurrency: this.cap === Number.POSITIVE_INFINITY ? undefined : this.cap,
      refusals: { ...this.refusals }
    }
  }
}
