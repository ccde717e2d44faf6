/** What those who look at queues see: one picture of all of them, taken once however many look, and how it was before. */
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import * as Stream from "effect/Stream"
import type * as Api from "../Api.ts"
import type * as QueueManager from "../QueueManager.ts"
import type * as QueueResponse from "../QueueResponse.ts"
import * as observer from "./observer.ts"

type Queue = typeof Api.Queue.Type
type Event = typeof Api.Event.Type
type Sample = typeof Api.Sample.Type
type Waits = NonNullable<Queue["waits"]>

export interface Options {
  readonly interval: Duration.Duration
  readonly maxStreams: number
  readonly toQueue: (info: QueueManager.QueueInfo, waits: Waits | null) => Queue
  readonly toEvent: (response: QueueResponse.QueueResponse<unknown, unknown>) => Event
}

const historyMillis = 5000
/** A quarter of an hour. */
const historySize = 180
/** Of the waits of an interval so many are kept: its last ones. */
const waitsSize = 256
/** How many events are kept, and how many of one interval. */
const recentSize = 100
const recentAtOnce = 25
/** How many queues are read before others have their turn. */
const readAtOnce = 50

/** The waits of requests that were dispatched in an interval. */
class RecentWaits {
  private readonly values: Array<number> = []
  private count = 0

  add(millis: number): void {
    this.values[this.count++ % waitsSize] = millis
  }

  take(): Waits | null {
    if (this.count === 0) return null
    const sorted = this.values.toSorted((a, b) => a - b)
    const at = (part: number) => sorted[Math.ceil(part * sorted.length) - 1]!
    const waits = { count: this.count, p50Millis: at(0.5), p95Millis: at(0.95) }
    this.values.length = this.count = 0
    return waits
  }
}

/** The newest ones, and those that have come since they were last taken. */
class Recent {
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
    return this.kept
  }

  take(): ReadonlyArray<Event> {
    const fresh = this.fresh
    this.fresh = []
    return fresh
  }
}

interface Counts {
  readonly at: number
  readonly completed: number
  readonly failed: number
}

/** How a queue, or all together, was, at steps of five seconds. Nothing is kept of one at which nothing has happened. */
class History {
  readonly waits = new RecentWaits()
  private readonly samples: Array<Sample> = []
  private last: Counts | undefined

  add(at: number, { completed, depth, failed, running }: Omit<Counts, "at"> & Pick<Queue, "depth" | "running">): void {
    const { last } = this
    this.last = { at, completed, failed }
    const waits = this.waits.take()
    if (last === undefined || at <= last.at) return
    const perSecond = (now: number, before: number) => Math.max(0, now - before) / ((at - last.at) / 1000)
    const sample = {
      at,
      depth,
      running,
      completedPerSecond: perSecond(completed, last.completed),
      failedPerSecond: perSecond(failed, last.failed),
      waitP50Millis: waits?.p50Millis ?? null,
      waitP95Millis: waits?.p95Millis ?? null
    }
    const isIdle = depth === 0 && running === 0 && completed === last.completed && failed === last.failed
    if (isIdle && this.samples.length === 0) return
    this.samples.push(sample)
    if (this.samples.length > historySize) this.samples.shift()
  }

  get all(): ReadonlyArray<Sample> {
    return this.samples
  }
}

interface Watched {
  readonly waits: RecentWaits
  readonly history: History
  json: string
}

/** What is there at an instant, and what of it is new. */
interface Picture {
  readonly at: number
  readonly version: number
  readonly changes: Uint8Array
  readonly all: () => Uint8Array
  /** Done when there is another one. */
  readonly next: Deferred.Deferred<void>
}

const encoder = new TextEncoder()

const message = (
  head: Omit<typeof Api.Live.Type, "queues">,
  queues: ReadonlyArray<string>
): Uint8Array => encoder.encode(`data: ${JSON.stringify(head).slice(0, -1)},"queues":[${queues.join(",")}]}\n\n`)

export interface Live {
  /** Of requests dispatched in the last interval that somebody looked at. */
  readonly waits: (modelId: string) => Waits | null
  /** The parts of a stream of server-sent events; `None` when there are too many readers. */
  readonly stream: Effect.Effect<Option.Option<Stream.Stream<Uint8Array>>>
  /** Another stream that counts as one of them. */
  readonly counted: <A>(stream: Stream.Stream<A>) => Option.Option<Stream.Stream<A>>
  /** Of all queues together without a model's id. */
  readonly history: (modelId: string | undefined) => ReadonlyArray<Sample>
}

export const make = Effect.fnUntraced(function*(
  manager: QueueManager.QueueManager["Service"],
  { interval, maxStreams, toEvent, toQueue }: Options
): Effect.fn.Return<Live, never, Scope.Scope> {
  const watched = new Map<string, Watched>()
  const total = new History()
  const totalWaits = new RecentWaits()
  const failures = new Recent()
  const events = new Recent()
  const lastWaits = new Map<string, Waits>()
  const lock = Semaphore.makeUnsafe(1)
  let removed: Array<string> = []
  let streams = 0
  let lookers = 0
  let historyAt = Number.NEGATIVE_INFINITY
  let picture: Picture = {
    at: Number.NEGATIVE_INFINITY,
    version: 0,
    changes: new Uint8Array(),
    all: () => new Uint8Array(),
    next: Deferred.makeUnsafe()
  }

  const watch = (modelId: string): Watched => {
    let found = watched.get(modelId)
    if (found === undefined) {
      found = { waits: new RecentWaits(), history: new History(), json: "" }
      watched.set(modelId, found)
    }
    return found
  }

  const forget = (modelId: string): void => {
    if (!watched.delete(modelId)) return
    lastWaits.delete(modelId)
    removed.push(modelId)
  }

  yield* observer.observe(manager, {
    open: ({ modelId, responseTo }) => {
      const { history, waits } = watch(modelId)
      const ignored = () => {}
      return {
        dispatched: (request, waited) => {
          waits.add(waited)
          history.waits.add(waited)
          total.waits.add(waited)
          totalWaits.add(waited)
          if (events.hasRoom) events.add(toEvent(responseTo(request)))
        },
        ended: (request, status) => {
          const isFailure = status === "failed" && failures.hasRoom
          if (!isFailure && !events.hasRoom) return
          const event = toEvent(responseTo(request))
          if (isFailure) failures.add(event)
          if (events.hasRoom) events.add(event)
        },
        firstElement: ignored,
        settled: ignored,
        retried: ignored,
        blocked: ignored,
        limitsChanged: ignored,
        closed: () => forget(modelId)
      }
    }
  })

  /**
   * Reads every queue, some at a time, and makes what those who look are sent. Who does that may leave before it is done:
   * what was read counts as told only with the others.
   */
  const take = Effect.gen(function*() {
    const at = yield* Clock.currentTimeMillis
    const isHistory = Math.abs(at - historyAt) >= historyMillis
    if (lookers === 0) {
      failures.take()
      events.take()
      if (!isHistory) return
    }
    if (isHistory) historyAt = at
    const ids = yield* manager.getRegisteredModels
    const changed = new Map<string, { readonly of: Watched; readonly json: string }>()
    const sum = { completed: 0, depth: 0, failed: 0, running: 0 }
    for (const [index, modelId] of ids.entries()) {
      if (index % readAtOnce === readAtOnce - 1) yield* Effect.yieldNow
      const info = yield* Effect.option(manager.getQueueInfo(modelId))
      if (Option.isNone(info)) continue
      const { completed, depth, failed, running } = info.value
      sum.completed += completed
      sum.depth += depth
      sum.failed += failed
      sum.running += running
      const mine = watch(modelId)
      if (isHistory) mine.history.add(at, info.value)
      if (lookers === 0) continue
      const waits = mine.waits.take()
      if (waits === null) lastWaits.delete(modelId)
      else lastWaits.set(modelId, waits)
      const json = JSON.stringify(toQueue(info.value, waits))
      if (json !== mine.json) changed.set(modelId, { of: mine, json })
    }
    // A manager that is not observed does not say when its queues close.
    if (watched.size > ids.length) {
      const there = new Set(ids)
      for (const modelId of watched.keys()) if (!there.has(modelId)) forget(modelId)
    }
    if (isHistory) total.add(at, sum)
    if (lookers === 0) return
    const gone = removed.filter((modelId) => !watched.has(modelId))
    removed = []
    for (const [modelId, { json, of }] of changed) {
      // It may have gone meanwhile, or be another one by now.
      if (watched.get(modelId) === of) of.json = json
      else changed.delete(modelId)
    }
    const waits = totalWaits.take()
    const changes = message({
      at,
      complete: false,
      waits,
      removed: gone,
      failures: failures.take(),
      events: events.take()
    }, Array.from(changed.values(), ({ json }) => json))
    let all: Uint8Array | undefined
    const before = picture.next
    picture = {
      at,
      version: picture.version + 1,
      changes,
      all: () =>
        all ??= message(
          { at, complete: true, waits, removed: [], failures: failures.all, events: events.all },
          Array.from(watched.values(), ({ json }) => json).filter((json) => json !== "")
        ),
      next: Deferred.makeUnsafe()
    }
    Deferred.doneUnsafe(before, Effect.void)
  }).pipe(
    (taking) => lock.withPermit(taking),
    // A span for each reading of each queue would tell nobody anything.
    Effect.withTracerEnabled(false)
  )

  yield* Effect.forkScoped(Effect.forever(Effect.andThen(take, Effect.sleep(interval))), { startImmediately: true })

  const counted: Live["counted"] = (stream) =>
    streams >= maxStreams ? Option.none() : Option.some(Stream.unwrap(
      Effect.as(
        Effect.acquireRelease(
          Effect.sync(() => streams++),
          () => Effect.sync(() => streams--)
        ),
        stream
      )
    ))

  /** Who has missed a picture, by reading too slowly, is sent all of the next one: nothing piles up for anybody. */
  const pictures = Stream.unfold(0, (seen) =>
    Effect.gen(function*() {
      while (picture.version === seen) yield* Deferred.await(picture.next)
      const { all, changes, version } = picture
      return [seen === version - 1 && seen > 0 ? changes : all(), version] as const
    }))

  const look = Stream.unwrap(
    Effect.acquireRelease(
      Effect.sync(() => lookers++),
      () => Effect.sync(() => lookers--)
    ).pipe(
      Effect.andThen(Clock.currentTimeMillis),
      // The picture may be an old one, or none.
      Effect.flatMap((now) => Math.abs(now - picture.at) < Duration.toMillis(interval) ? Effect.void : take),
      Effect.as(pictures)
    )
  )

  return {
    waits: (modelId) => lastWaits.get(modelId) ?? null,
    stream: Effect.sync(() => counted(look)),
    counted,
    history: (modelId) => (modelId === undefined ? total : watched.get(modelId)?.history)?.all ?? []
  }
})
