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
import { History, RecentEvents, RecentWaits, type Waits } from "./recent.ts"

type Queue = typeof Api.Queue.Type

export interface Options {
  readonly interval: Duration.Duration
  readonly maxStreams: number
  readonly toQueue: (info: QueueManager.QueueInfo, waits: Waits | null) => Queue
  readonly toEvent: (response: QueueResponse.QueueResponse<unknown, unknown>) => typeof Api.Event.Type
}

const historyStep = Duration.seconds(5)
/** How many queues are read before others have their turn, and for how long they are waited for. */
const readAtOnce = 50
const patience = Duration.seconds(2)

interface Counts {
  readonly at: number
  readonly completed: number
  readonly failed: number
}

interface Watched {
  /** Since the last picture, and what that said of them. */
  readonly waits: RecentWaits
  shown: Waits | null
  readonly history: History
  /** At the last step of the history. */
  counts: Counts | undefined
  /** As it was told last. */
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
  /** Of requests dispatched in the last interval; `null` while nobody looks. */
  readonly waits: (modelId: string) => Waits | null
  /** The parts of a stream of server-sent events; `None` when there are too many readers. */
  readonly stream: Effect.Effect<Option.Option<Stream.Stream<Uint8Array>>>
  /** Another stream that counts as one of them. */
  readonly counted: <A>(stream: Stream.Stream<A>) => Option.Option<Stream.Stream<A>>
  /** Of all queues together without a model's id. */
  readonly history: (modelId: string | undefined) => ReadonlyArray<typeof Api.Sample.Type>
}

export const make = Effect.fnUntraced(function*(
  manager: QueueManager.QueueManager["Service"],
  { interval, maxStreams, toEvent, toQueue }: Options
): Effect.fn.Return<Live, never, Scope.Scope> {
  const clock = yield* Clock.Clock
  const watched = new Map<string, Watched>()
  const total = new History()
  const totalWaits = new RecentWaits()
  const failures = new RecentEvents()
  const events = new RecentEvents()
  const taking = Semaphore.makeUnsafe(1)
  /** Models that have gone since the last picture. */
  let removed: Array<string> = []
  let streams = 0
  let lookers = 0
  let picture: Picture = {
    at: Number.NEGATIVE_INFINITY,
    version: 0,
    changes: new Uint8Array(),
    all: () => new Uint8Array(),
    next: Deferred.makeUnsafe()
  }

  const watch = (modelId: string, counts?: Counts): Watched => {
    let found = watched.get(modelId)
    if (found === undefined) {
      found = { waits: new RecentWaits(), shown: null, history: new History(), counts, json: "" }
      watched.set(modelId, found)
    }
    return found
  }

  const forget = (modelId: string): void => {
    if (watched.delete(modelId)) removed.push(modelId)
  }

  /** Whether the queues that open are those that were there before. */
  let isBefore = true
  yield* observer.observe(manager, {
    open: ({ modelId, responseTo }) => {
      const counts = isBefore ? undefined : { at: clock.currentTimeMillisUnsafe(), completed: 0, failed: 0 }
      const { history, waits } = watch(modelId, counts)
      const ignored = () => {}
      return {
        dispatched: (request, waited) => {
          history.waits.add(waited)
          total.waits.add(waited)
          waits.add(waited)
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
  isBefore = false

  /** Reads every queue, some at a time. One whose limiter does not answer is left out. */
  const read = (each: (info: QueueManager.QueueInfo) => void) =>
    Effect.gen(function*() {
      const ids = yield* manager.getRegisteredModels
      for (let from = 0; from < ids.length; from += readAtOnce) {
        if (from > 0) yield* Effect.yieldNow
        yield* Effect.forEach(
          ids.slice(from, from + readAtOnce),
          (modelId) => Effect.map(Effect.option(manager.getQueueInfo(modelId)), Option.map(each)),
          { concurrency: "unbounded", discard: true }
        ).pipe(Effect.timeoutOption(patience))
      }
      // A manager that is not observed does not say when its queues close.
      if (watched.size > ids.length) {
        const there = new Set(ids)
        for (const modelId of watched.keys()) if (!there.has(modelId)) forget(modelId)
      }
      // A span for each reading of each queue would tell nobody anything.
    }).pipe(Effect.withTracerEnabled(false))

  /** A step of the history. */
  const sample = Effect.gen(function*() {
    const at = yield* Clock.currentTimeMillis
    const sum = { at, depth: 0, running: 0, completedPerSecond: 0, failedPerSecond: 0 }
    yield* read(({ completed, depth, failed, modelId, running }) => {
      const mine = watch(modelId)
      const before = mine.counts
      mine.counts = { at, completed, failed }
      const seconds = before === undefined ? 0 : (at - before.at) / 1000
      const perSecond = (count: number, then: number | undefined) =>
        then === undefined || seconds <= 0 ? 0 : Math.max(0, count - then) / seconds
      const one = {
        at,
        depth,
        running,
        completedPerSecond: perSecond(completed, before?.completed),
        failedPerSecond: perSecond(failed, before?.failed)
      }
      mine.history.add(one)
      sum.depth += depth
      sum.running += running
      sum.completedPerSecond += one.completedPerSecond
      sum.failedPerSecond += one.failedPerSecond
    })
    total.add(sum)
  })

  /**
   * Makes what those who look are sent. Who does that may leave before it is done: what was read counts as told only with
   * the others.
   */
  const take = taking.withPermit(Effect.gen(function*() {
    const at = yield* Clock.currentTimeMillis
    const changed = new Map<string, { readonly of: Watched; readonly json: string }>()
    yield* read((info) => {
      const mine = watch(info.modelId)
      mine.shown = mine.waits.take()
      const json = JSON.stringify(toQueue(info, mine.shown))
      if (json !== mine.json) changed.set(info.modelId, { of: mine, json })
    })
    for (const [modelId, { json, of }] of changed) {
      // It may have gone meanwhile, or be another one by now.
      if (watched.get(modelId) === of) of.json = json
      else changed.delete(modelId)
    }
    const waits = totalWaits.take()
    const head = { at, complete: false, waits, removed: removed.filter((modelId) => !watched.has(modelId)) }
    removed = []
    const changes = message(
      { ...head, failures: failures.take(), events: events.take() },
      Array.from(changed.values(), ({ json }) => json)
    )
    // What has happened by now: what comes later is told with what changes next.
    const known = { failures: failures.all, events: events.all }
    let all: Uint8Array | undefined
    const { next, version } = picture
    picture = {
      at,
      version: version + 1,
      changes,
      all: () =>
        all ??= message(
          { ...head, ...known, complete: true, removed: [] },
          Array.from(watched.values(), ({ json }) => json).filter((json) => json !== "")
        ),
      next: Deferred.makeUnsafe()
    }
    Deferred.doneUnsafe(next, Effect.void)
  }))

  /** Nobody looks: who comes next is told everything anew. */
  const rest = Effect.sync(() => {
    failures.take()
    events.take()
    removed = []
    picture = { ...picture, at: Number.NEGATIVE_INFINITY }
  })

  const repeatedly = (effect: Effect.Effect<void>, every: Duration.Duration) =>
    Effect.forkScoped(Effect.forever(Effect.andThen(effect, Effect.sleep(every))), { startImmediately: true })

  yield* repeatedly(sample, historyStep)
  yield* repeatedly(Effect.suspend(() => lookers === 0 ? rest : take), interval)

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

  const come = Effect.sync(() => {
    if (lookers++ > 0) return
    // Those of the time when nobody looked are not of now.
    totalWaits.take()
    for (const mine of watched.values()) {
      mine.waits.take()
      mine.shown = null
    }
  })

  const look = Stream.unwrap(
    Effect.acquireRelease(come, () => Effect.sync(() => lookers--)).pipe(
      Effect.andThen(Clock.currentTimeMillis),
      Effect.flatMap((now) => Math.abs(now - picture.at) < Duration.toMillis(interval) ? Effect.void : take),
      Effect.as(pictures)
    )
  )

  return {
    waits: (modelId) => lookers === 0 ? null : watched.get(modelId)?.shown ?? null,
    stream: Effect.sync(() => counted(look)),
    counted,
    history: (modelId) => (modelId === undefined ? total : watched.get(modelId)?.history)?.all ?? []
  }
})
