/** Who is told of what happens in queues, as numbers. It is told at once, in the queue's own steps: it must be quick. */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type * as QueueManager from "../QueueManager.ts"
import type * as QueueResponse from "../QueueResponse.ts"
import type * as RateLimiter from "../RateLimiter.ts"

/** A request whose processor has begun or ended. Milliseconds. */
export interface Attempt {
  readonly tenant: string | undefined
  readonly headStart: number
  readonly cost: RateLimiter.Cost
}

export interface QueueObserver {
  /** An attempt begins, after waiting so long since its submission or the attempt before. */
  readonly dispatched: (request: Attempt, waited: number) => void
  /** The first element of a stream is there, so long after its attempt began. */
  readonly firstElement: (request: Attempt, after: number) => void
  /** What a request has used is known. */
  readonly settled: (request: Attempt, usage: RateLimiter.Tokens) => void
  /** It has ended; after so long in its last attempt, if it had one. */
  readonly ended: (
    request: Attempt,
    status: "completed" | "failed" | "cancelled",
    processed: number | undefined
  ) => void
  /** The provider has refused it, and it is attempted again. */
  readonly retried: (request: Attempt) => void
  /** The queue has waited for so long because the first one in order was held back by that. */
  readonly blocked: (by: Reason, millis: number) => void
  /** There are other limits from now on. */
  readonly limitsChanged: () => void
  readonly closed: () => void
}

/** What keeps the first request in order back. */
export type Reason = RateLimiter.Type | "provider" | "paused" | "unavailable"

/** What a queue can be asked. */
export interface Observed {
  readonly modelId: string
  readonly info: Effect.Effect<QueueManager.QueueInfo>
  /** What is known about a request that it has told of, while it tells. */
  readonly responseTo: (request: Attempt) => QueueResponse.QueueResponse<unknown, unknown>
}

export interface Observer {
  /** A queue begins, or was there before the observer. */
  readonly open: (queue: Observed) => QueueObserver
}

/** One that tells several. */
const together = (all: ReadonlyArray<QueueObserver>): QueueObserver => ({
  dispatched: (request, waited) => {
    for (const each of all) each.dispatched(request, waited)
  },
  firstElement: (request, after) => {
    for (const each of all) each.firstElement(request, after)
  },
  settled: (request, usage) => {
    for (const each of all) each.settled(request, usage)
  },
  ended: (request, status, processed) => {
    for (const each of all) each.ended(request, status, processed)
  },
  retried: (request) => {
    for (const each of all) each.retried(request)
  },
  blocked: (by, millis) => {
    for (const each of all) each.blocked(by, millis)
  },
  limitsChanged: () => {
    for (const each of all) each.limitsChanged()
  },
  closed: () => {
    for (const each of all) each.closed()
  }
})

interface Watched {
  readonly queue: Observed
  /** Who tells the queue's observers from now on; `undefined` when there are none. */
  readonly use: (observer: QueueObserver | undefined) => void
  readonly by: Map<Observer, QueueObserver>
}

const use = ({ by, use }: Watched): void => {
  const all = [...by.values()]
  use(all.length < 2 ? all[0] : together(all))
}

/** The observers of a manager, and the queues that they observe. Both come and go. */
export class Observers {
  private readonly observers = new Set<Observer>()
  private readonly queues = new Set<Watched>()

  /** A queue begins. To be called when it has closed: what this returns. */
  open(queue: Observed, how: Watched["use"]): () => void {
    const watched: Watched = { queue, use: how, by: new Map() }
    this.queues.add(watched)
    for (const observer of this.observers) watched.by.set(observer, observer.open(queue))
    use(watched)
    return () => {
      if (!this.queues.delete(watched)) return
      for (const observer of watched.by.values()) observer.closed()
    }
  }

  add(observer: Observer): void {
    this.observers.add(observer)
    for (const watched of this.queues) {
      watched.by.set(observer, observer.open(watched.queue))
      use(watched)
    }
  }

  /** It is not told that queues close. */
  remove(observer: Observer): void {
    this.observers.delete(observer)
    for (const watched of this.queues) if (watched.by.delete(observer)) use(watched)
  }
}

const ofManagers = new WeakMap<object, Observers>()

export const attach = (manager: object, observers: Observers): void => void ofManagers.set(manager, observers)

/** What is seen of one manager is seen of another one, which it stands behind. */
export const show = (manager: object, behind: object): void => {
  const observers = ofManagers.get(behind)
  if (observers !== undefined) ofManagers.set(manager, observers)
}

/** Observes the queues of a manager until the scope closes. A manager that somebody else has made shows nothing. */
export const observe = (manager: object, observer: Observer): Effect.Effect<void, never, Scope.Scope> => {
  const observers = ofManagers.get(manager)
  return observers === undefined ? Effect.void : Effect.acquireRelease(
    Effect.sync(() => observers.add(observer)),
    () => Effect.sync(() => observers.remove(observer))
  )
}

export const CurrentObserver = Context.Reference<Observer | undefined>("effect-llm-queue/internal/Observer", {
  defaultValue: () => undefined
})
