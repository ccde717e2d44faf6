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
const savedRetries = 10

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
  /** Failures in a row. */
  private failures = 0
  private cooldown: number
  /** Most in flight; `Infinity` when nothing reduces it. */
  private cap = Number.POSITIVE_INFINITY
  private fullCap = 0
  /** When the cap was last reduced: what was sent before says nothing about the reduced load. */
  private reducedAt = Number.NEGATIVE_INFINITY
  private retries = savedRetries

  constructor(settings: settings.ProviderSettings) {
    this.settings = settings
    this.cooldown = settings.cooldown
  }

  /** How long nothing may be sent: 0, a time, or `Infinity` until a request has ended. */
  wait(now: number, running: number): number {
    if (running >= this.cap) return Number.POSITIVE_INFINITY
    const paused = Math.max(0, this.pausedUntil - now)
    if (!this.isOpen) return paused
    if (this.probe !== undefined) return Number.POSITIVE_INFINITY
    return Math.max(paused, this.openUntil - now)
  }

  /** The same for a request that one in flight waits for: it goes as long as anything may. */
  nestedWait(now: number): number {
    return Math.max(0, this.pausedUntil - now, this.isOpen ? this.openUntil - now : 0)
  }

  /** Whether nothing is sent for the sake of the provider, for quota or for its health. */
  isBlocked(now: number): boolean {
    return this.isOpen && (this.probe !== undefined || now < this.openUntil)
  }

  readonly isQuotaExhausted = (now: number): boolean => this.quotaReason !== undefined && this.isBlocked(now)

  dispatched(entry: Entry): void {
    if (this.isOpen && this.probe === undefined) this.probe = entry
  }

  /** The attempt ended, but says nothing about the provider: by an interruption, or by the processor's own fault. */
  ended(entry: Entry): void {
    if (this.probe === entry) this.probe = undefined
  }

  /** The provider answered: with a result, or with a refusal that shows it well. */
  answered(entry: Entry, success: boolean): void {
    if (this.probe === entry) this.probe = undefined
    else if (this.isOpen) return
    this.isOpen = false
    this.quotaReason = undefined
    this.failures = 0
    this.cooldown = this.settings.cooldown
    if (!success) return
    this.retries = Math.min(savedRetries, this.retries + this.settings.budget)
    if (this.cap !== Number.POSITIVE_INFINITY && ++this.cap >= this.fullCap) this.cap = Number.POSITIVE_INFINITY
  }

  failed(entry: Entry, refusal: RateLimiter.Refusal, sentAt: number, running: number, now: number): void {
    const wasProbe = this.probe === entry
    if (wasProbe) this.probe = undefined
    this.reason = refusal.message
    if (refusal.kind === "quota") {
      this.quotaReason = refusal.message
      // What another try, sent before, comes to says nothing about it.
      this.probe = undefined
      this.open(now + Math.max(this.settings.quotaCooldown, refusal.retryAfter ?? 0))
      return
    }
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
    const isDue = wasProbe || this.failures >= this.settings.failures
    this.open(now + Math.max(refusal.retryAfter ?? 0, isDue ? this.cooldown : 0))
    if (isDue) this.cooldown = Math.min(Math.max(maxCooldown, this.settings.cooldown), this.cooldown * 2)
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
    this.reducedAt = now
  }

  /** What the provider has asked for before is not shortened. */
  private open(until: number): void {
    this.openUntil = this.isOpen ? Math.max(this.openUntil, until) : until
    this.isOpen = true
  }

  /** Takes a retry from the budget, if there is one. */
  readonly payRetry = (): boolean => {
    // Ten tenths come to a little less than one.
    if (this.retries < 1 - 1e-6) return false
    this.retries = Math.max(0, this.retries - 1)
    return true
  }

  info(now: number): QueueManager.ProviderInfo {
    return {
      name: this.settings.profile.name,
      state: !this.isOpen
        ? "available"
        : this.probe !== undefined || now >= this.openUntil
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
