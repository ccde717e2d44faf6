/** What is kept of the recent past: waits, events, and how a queue was at steps of time. All of it is bounded. */
import type * as Api from "../Api.ts"

type Event = typeof Api.Event.Type
type Sample = typeof Api.Sample.Type
export type Waits = NonNullable<(typeof Api.Queue.Type)["waits"]>

/** A quarter of an hour of steps of five seconds. */
const historySize = 180
/** Of the waits of an interval so many are kept: its last ones. */
const waitsSize = 256
/** How many events are kept, and how many of one interval. */
const recentSize = 100
const recentAtOnce = 25

/** The waits of requests that were dispatched in an interval. */
export class RecentWaits {
  private readonly values: Array<number> = []
  private count = 0

  add(millis: number): void {
    this.values[this.count++ % waitsSize] = millis
  }

  /** Those since it was asked last. */
  take(): Waits | null {
    if (this.count === 0) return null
    const sorted = this.values.toSorted((a, b) => a - b)
    const at = (part: number) => sorted[Math.ceil(part * sorted.length) - 1]!
    const waits = { count: this.count, p50Millis: at(0.5), p95Millis: at(0.95) }
    this.values.length = this.count = 0
    return waits
  }
}

/** The newest events, and those that have come since they were last taken. */
export class RecentEvents {
  private readonly kept: Array<Event> = []
  private fresh: Array<Event> = []

  get hasRoom(): boolean {
    return this.fresh.length < recentAtOnce
  }

  add(event: Event): void {
    this.fresh.push(event)
    this.kept.push(event)
    if (this.kept.length > recentSize) this.kept.shift()
  }

  get all(): ReadonlyArray<Event> {
    return [...this.kept]
  }

  take(): ReadonlyArray<Event> {
    const fresh = this.fresh
    this.fresh = []
    return fresh
  }
}

const isIdle = ({ completedPerSecond, depth, failedPerSecond, running }: Sample): boolean =>
  depth === 0 && running === 0 && completedPerSecond === 0 && failedPerSecond === 0

/** How a queue, or all together, was at each step, from the first one on at which something happened. */
export class History {
  readonly waits = new RecentWaits()
  private readonly samples: Array<Sample> = []

  add(sample: Omit<Sample, "waitP50Millis" | "waitP95Millis">): void {
    const waits = this.waits.take()
    const whole = { ...sample, waitP50Millis: waits?.p50Millis ?? null, waitP95Millis: waits?.p95Millis ?? null }
    if (this.samples.length === 0 && isIdle(whole)) return
    this.samples.push(whole)
    if (this.samples.length > historySize) this.samples.shift()
  }

  get all(): ReadonlyArray<Sample> {
    return this.samples
  }
}
