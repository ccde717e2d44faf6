/**
 * A scheduler that decides by a seed: which of the tasks that are ready runs next, and at which operations a fiber
 * gives way to others. The same seed gives the same run, whatever the machine does.
 */
import { Deferred, Effect, type Fiber, type Scheduler } from "effect"

/** Numbers from 0 to 1, the same ones for the same seed. */
export type Random = () => number

export const random = (seed: number): Random => {
  let state = seed | 0
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296
  }
}

export interface Options {
  readonly random: Random
  /** How likely a fiber gives way before an operation. */
  readonly yields: number
  /** Most operations of a run. One that needs more goes round and round. */
  readonly budget: number
}

export class SeededScheduler implements Scheduler.Scheduler {
  readonly executionMode = "async"
  readonly options: Options
  private tasks: Array<() => void> = []
  private idle: Array<() => void> = []
  private scheduled = false
  private ran = 0
  private stopped: Deferred.Deferred<string> = Deferred.makeUnsafe()

  constructor(options: Options) {
    this.options = options
  }

  shouldYield(fiber: Fiber.Fiber<unknown, unknown>): boolean {
    this.ran++
    // A fiber that is interrupted before it has begun must not give way before that: it would begin all the same.
    const mayYield = this.options.random() < this.options.yields && fiber.currentOpCount > 1
    return mayYield || fiber.currentOpCount >= 2048
  }

  makeDispatcher(): Scheduler.SchedulerDispatcher {
    return { scheduleTask: (task) => this.post(task), flush: () => this.run() }
  }

  /** Makes a task ready. */
  post(task: () => void): void {
    this.tasks.push(task)
    this.schedule()
  }

  /** Lets the others that are ready go first, or not. */
  readonly hop: Effect.Effect<void> = Effect.callback((resume) => this.post(() => resume(Effect.void)))

  /** Ends when nothing else is ready. */
  readonly settled: Effect.Effect<void> = Effect.callback((resume) => {
    this.idle.push(() => resume(Effect.void))
    this.schedule()
  })

  /** Drops what is ready, and runs nothing more. */
  stop(reason: string): void {
    Deferred.doneUnsafe(this.stopped, Effect.succeed(reason))
  }

  /** Ends when the scheduler was stopped, with the reason. */
  readonly whenStopped: Effect.Effect<string> = Effect.suspend(() => Deferred.await(this.stopped))

  private schedule(): void {
    if (this.scheduled) return
    this.scheduled = true
    setImmediate(() => this.run())
  }

  private run(): void {
    const { tasks } = this
    while (!Deferred.isDoneUnsafe(this.stopped)) {
      if (tasks.length === 0) {
        const next = this.idle.shift()
        if (next === undefined) break
        next()
        continue
      }
      if (++this.ran > this.options.budget) {
        this.stop(`more than ${this.options.budget} operations: something goes round and round`)
        break
      }
      const index = Math.floor(this.options.random() * tasks.length)
      const task = tasks[index]!
      tasks[index] = tasks.at(-1)!
      tasks.pop()
      task()
    }
    this.scheduled = false
  }
}
