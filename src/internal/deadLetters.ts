/** Failed requests with their parameters: the newest, for a time. */
import * as Effect from "effect/Effect"
import * as QueueError from "../QueueError.ts"
import type * as QueueResponse from "../QueueResponse.ts"
import type { AnyRequest, ProcessorFailure } from "./entry.ts"
import * as settings from "./settings.ts"

export interface DeadLetter {
  readonly requestId: string
  readonly request: AnyRequest
  readonly response: QueueResponse.Failed<ProcessorFailure>
  readonly failedAt: number
}

interface Kept {
  readonly letter: DeadLetter
  /** Its place among all that have failed. */
  readonly place: number
  /** Monotonic. */
  readonly until: number
}

export class DeadLetters {
  private readonly modelId: string
  private readonly count: number
  private readonly age: number
  private readonly now: () => number
  private readonly due: (at: number) => void
  private readonly kept = new Map<string, Kept>()
  private added = 0

  /** `due` is told when `expire` is to be called. */
  constructor(modelId: string, count: number, age: number, now: () => number, due: (at: number) => void) {
    this.modelId = modelId
    this.count = count
    this.age = age
    this.now = now
    this.due = due
  }

  get isKeeping(): boolean {
    return this.count > 0
  }

  /** When the first one is to be let go. */
  get nextDue(): number {
    for (const { until } of this.kept.values()) return until
    return Number.POSITIVE_INFINITY
  }

  add(letter: DeadLetter): void {
    // An id that failed before is a new letter, behind the others.
    this.kept.delete(letter.requestId)
    this.kept.set(letter.requestId, { letter, place: this.added++, until: this.now() + this.age })
    this.bound()
  }

  expire(): void {
    const at = this.now()
    for (const [id, { until }] of this.kept) {
      if (until > at) return
      this.kept.delete(id)
    }
  }

  readonly list: Effect.Effect<ReadonlyArray<DeadLetter>> = Effect.sync(() => {
    this.expire()
    return Array.from(this.kept.values(), ({ letter }) => letter)
  })

  /** Takes a letter away while it is submitted, so that nobody else submits it, and puts it back if that fails. */
  resubmit<A, E>(
    id: string,
    submit: (letter: DeadLetter) => Effect.Effect<A, E>
  ): Effect.Effect<A, E | QueueError.RequestNotFound> {
    return Effect.uninterruptibleMask((restore) =>
      Effect.suspend((): Effect.Effect<A, E | QueueError.RequestNotFound> => {
        this.expire()
        const kept = this.kept.get(id)
        if (kept === undefined) {
          return Effect.fail(
            new QueueError.RequestNotFound({ modelId: this.modelId, requestId: settings.nameOf(id) })
          )
        }
        this.kept.delete(id)
        return Effect.onError(restore(submit(kept.letter)), () => Effect.sync(() => this.putBack(id, kept)))
      })
    )
  }

  remove(ids: ReadonlyArray<string> | undefined): Effect.Effect<number> {
    return Effect.sync(() => {
      this.expire()
      const before = this.kept.size
      if (ids === undefined) this.kept.clear()
      else for (const id of ids) this.kept.delete(id)
      return before - this.kept.size
    })
  }

  private putBack(id: string, kept: Kept): void {
    if (!this.kept.has(id)) {
      const inOrder = [...this.kept, [id, kept] as const].toSorted(([, a], [, b]) => a.place - b.place)
      this.kept.clear()
      for (const [other, each] of inOrder) this.kept.set(other, each)
    }
    this.bound()
  }

  private bound(): void {
    for (const id of this.kept.keys()) {
      if (this.kept.size <= this.count) break
      this.kept.delete(id)
    }
    this.due(this.nextDue)
  }
}
