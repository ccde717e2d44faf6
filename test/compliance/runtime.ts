/**
 * A runtime on virtual time: its own scheduler, whose ready tasks run at once, and its own clocks, whose sleepers wake
 * in the order of their times. Nothing waits for the machine, and the same program gives the same run.
 */
import { Clock, Duration, Effect, type Exit, type Fiber, Random, type Scheduler } from "effect"

const nanos = 1e6

export interface ClockOptions {
  /** Wall time at the start, in milliseconds since 1970. */
  readonly wall?: number | undefined
  /** How much faster than true time it goes, in parts per million. */
  readonly drift?: number | undefined
}

/** A clock whose wall time can be set. */
export interface VirtualClock extends Clock.Clock {
  /** Moves the wall time by milliseconds, and nothing else. */
  readonly shift: (millis: number) => void
}

interface Timer {
  readonly at: number
  readonly order: number
  readonly wake: () => void
  cancelled: boolean
}

/** The run can never end: nothing is ready, nobody sleeps, and it is not over. Or it goes round and round. */
export class Stuck extends Error {
  override readonly name = "Stuck"
}

const before = (a: Timer, b: Timer) => a.at < b.at || (a.at === b.at && a.order < b.order)

class Timers {
  private readonly heap: Array<Timer> = []

  get size(): number {
    return this.heap.length
  }

  push(timer: Timer): void {
    const { heap } = this
    let i = heap.length
    heap.push(timer)
    while (i > 0) {
      const parent = (i - 1) >> 1
      if (before(heap[parent]!, timer)) break
      heap[i] = heap[parent]!
      i = parent
    }
    heap[i] = timer
  }

  pop(): Timer | undefined {
    const { heap } = this
    const first = heap[0]
    const last = heap.pop()
    if (last === undefined || heap.length === 0) return first
    let i = 0
    for (;;) {
      let child = 2 * i + 1
      if (child >= heap.length) break
      if (child + 1 < heap.length && before(heap[child + 1]!, heap[child]!)) child++
      if (before(last, heap[child]!)) break
      heap[i] = heap[child]!
      i = child
    }
    heap[i] = last
    return first
  }
}

/** Most tasks without any time passing. */
const patience = 1_000_000

export class VirtualRuntime {
  /** Whole nanoseconds since the start. */
  private time = 0
  private readonly timers = new Timers()
  private order = 0
  private tasks: Array<readonly [task: () => void, priority: number]> = []
  private atOneTime = 0
  /** Timers that woke somebody. */
  wakes = 0

  /** Milliseconds since the start. */
  readonly now = (): number => this.time / nanos

  readonly scheduler: Scheduler.Scheduler = {
    executionMode: "async",
    shouldYield: (fiber) => fiber.currentOpCount >= 2048,
    makeDispatcher: () => ({
      scheduleTask: (task, priority) => void this.tasks.push([task, priority]),
      flush: () => this.drain()
    })
  }

  /** A clock of its own, over the same time. */
  clock(options: ClockOptions = {}): VirtualClock {
    const rate = 1 + (options.drift ?? 0) / 1e6
    let wall = options.wall ?? 0
    const local = () => rate === 1 ? this.time : Math.round(this.time * rate)
    const monotonicTimeNanosUnsafe = () => BigInt(local())
    const currentTimeMillisUnsafe = () => Math.floor(wall + local() / nanos)
    const currentTimeNanosUnsafe = () => BigInt(Math.round(wall * nanos)) + BigInt(local())
    return {
      shift: (millis) => {
        wall += millis
      },
      currentTimeMillisUnsafe,
      currentTimeMillis: Effect.sync(currentTimeMillisUnsafe),
      currentTimeNanosUnsafe,
      currentTimeNanos: Effect.sync(currentTimeNanosUnsafe),
      monotonicTimeNanosUnsafe,
      monotonicTimeNanos: Effect.sync(monotonicTimeNanosUnsafe),
      sleep: (duration) => {
        const millis = Duration.toMillis(duration)
        if (millis <= 0) return Effect.yieldNow
        if (!Number.isFinite(millis)) return Effect.never
        return Effect.callback<void>((resume) => {
          // Rounded up: nobody wakes before its time.
          const timer = this.at(this.time + Math.ceil(millis * nanos / rate - 1e-3), () => resume(Effect.void))
          return Effect.sync(() => {
            timer.cancelled = true
          })
        })
      }
    }
  }

  /** Runs a program to its end. Throws `Stuck` when it has none. */
  run<A, E>(effect: Effect.Effect<A, E>, options: { readonly clock: Clock.Clock; readonly seed: number }): Exit.Exit<
    A,
    E
  > {
    const fiber: Fiber.Fiber<A, E> = Effect.runFork(
      effect.pipe(
        Effect.provideService(Clock.Clock, options.clock),
        Random.withSeed(options.seed)
      ),
      { scheduler: this.scheduler }
    )
    for (;;) {
      this.drain()
      const exit = fiber.pollUnsafe()
      if (exit !== undefined) return exit
      const timer = this.timers.pop()
      if (timer === undefined) {
        throw new Stuck(`nothing is ready and nobody sleeps after ${this.now()} ms, and the run is not over`)
      }
      if (timer.cancelled) continue
      if (timer.at > this.time) {
        this.time = timer.at
        this.atOneTime = 0
      }
      this.wakes++
      timer.wake()
    }
  }

  private at(time: number, wake: () => void): Timer {
    const timer: Timer = { at: Math.max(time, this.time), order: this.order++, wake, cancelled: false }
    this.timers.push(timer)
    return timer
  }

  private drain(): void {
    while (this.tasks.length > 0) {
      const batch = this.tasks
      this.tasks = []
      if (batch.some(([, priority]) => priority !== batch[0]![1])) batch.sort(([, a], [, b]) => a - b)
      this.atOneTime += batch.length
      if (this.atOneTime > patience) {
        throw new Stuck(`more than ${patience} tasks at ${this.now()} ms without any time passing`)
      }
      for (const [task] of batch) task()
    }
  }
}
