/**
 * Streams as requests. A stream is an entry like any other: its processor runs the stream and hands the elements to a
 * buffer, which the submitter's stream reads. So it waits, is limited, times out and is cancelled like the others.
 */
import type * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Queue from "effect/Queue"
import * as Stream from "effect/Stream"
import type * as ModelConfig from "../ModelConfig.ts"
import type * as RateLimiter from "../RateLimiter.ts"
import { type AnyRequest, CurrentEntry, type Failure, type ProcessorFailure } from "./entry.ts"
import type { ModelQueue } from "./modelQueue.ts"
import * as settings from "./settings.ts"

/** Elements that are there before the submitter has asked for them. */
const bufferSize = 16

/**
 * The same once something has had to wait for what is being processed. It may be the reader that waits, for a request of
 * its own to the same queue: the permit must not depend on its reading on, as that of a plain request does not.
 */
const wideBufferSize = 65_536

interface Sink {
  readonly elements: Queue.Queue<unknown, Failure | Cause.Done>
  most: number
  /** Lets the producer go on, if there is room for it. */
  check: () => void
}

const hasRoom = ({ elements, most }: Sink): boolean =>
  elements.state._tag !== "Open" || Queue.sizeUnsafe(elements) < most

const nothing = () => {}

/** Waits for the reader, or for something else to need what the producer holds. */
const room = (sink: Sink, queue: ModelQueue): Effect.Effect<void> =>
  Effect.callback((resume) => {
    const leave = () => {
      sink.check = nothing
      queue.stalled.delete(widen)
    }
    const widen = () => {
      sink.most = wideBufferSize
      sink.check()
    }
    sink.check = () => {
      if (!hasRoom(sink)) return
      leave()
      resume(Effect.void)
    }
    if (sink.most < wideBufferSize) queue.stall(widen)
    return Effect.sync(leave)
  })

/** Where a request carries the queue of its elements. It goes along with each copy of the request. */
const sinkKey = Symbol("effect-llm-queue/internal/sink")

interface StreamRequest extends AnyRequest {
  readonly [sinkKey]?: Sink
}

/** Whether a request is for a stream. */
export const isStream = (request: StreamRequest): boolean => request[sinkKey] !== undefined

/** What is wrong with a request of the other kind: two models of one id are one queue. */
export const mismatch = (isStream: boolean): string =>
  isStream
    ? "model: the one that is registered gives streams; use manager.stream"
    : "model: the one that is registered gives no streams; use manager.submit"

/** The processor of an entry from one that gives a stream: it ends with the number of elements. */
export const processor = (
  { definition: { elementUsage }, modelId }: ModelConfig.AnyStream,
  streamOf: (request: AnyRequest) => Stream.Stream<unknown, ProcessorFailure>
) =>
(request: StreamRequest): Effect.Effect<number, ProcessorFailure> =>
  Effect.gen(function*() {
    const entry = yield* CurrentEntry
    const sink = request[sinkKey]
    let elements = 0
    let usage: RateLimiter.Tokens | undefined
    let problem: string | undefined
    const read = (element: never) => {
      try {
        const given: unknown = elementUsage?.(element)
        if (given === undefined) return
        const found = settings.usage(given)
        if ("inputTokens" in found) usage = found
        else problem = found.join("; ")
      } catch (error) {
        problem = `it threw ${settings.show(error)}`
      }
    }
    const take = (chunk: ReadonlyArray<unknown>) => {
      if (elements === 0 && entry !== undefined) entry.queue.streaming(entry)
      elements += chunk.length
      // The schema's type is known where the model is.
      if (elementUsage !== undefined) { for (const element of chunk) read(element as never) }
      if (sink === undefined || entry === undefined) return Effect.void
      Queue.offerAllUnsafe(sink.elements, chunk)
      return hasRoom(sink) ? Effect.void : room(sink, entry.queue)
    }
    yield* Stream.suspend(() => streamOf(request)).pipe(
      Stream.runForEachArray(take),
      // What it has used is known even when it was cut short.
      Effect.onExit(() => {
        const warning = problem === undefined ? Effect.void : Effect.logWarning(
          `The usage of an element of model ${modelId} cannot be read: ${problem}`
        )
        const settled = usage === undefined || entry === undefined ? Effect.void : entry.queue.settle(entry, usage)
        // A foreign limiter, or a logger, does not take back what was produced.
        return Effect.catchCause(
          Effect.andThen(warning, settled),
          (cause) => Effect.exit(Effect.logError(`The usage of a stream of model ${modelId} is not settled`, cause))
        )
      })
    )
    return elements
  })

/** The submitter's stream. Each run submits a request of its own, and cancels it when the run ends before it. */
export const consume = (
  request: () => AnyRequest,
  submit: (request: AnyRequest) => Effect.Effect<unknown, Failure>
): Stream.Stream<unknown, Failure> =>
  Stream.unwrap(Effect.gen(function*() {
    const elements = yield* Queue.unbounded<unknown, Failure | Cause.Done>()
    const sink: Sink = { elements, most: bufferSize, check: nothing }
    const carrying: StreamRequest = { ...request(), [sinkKey]: sink }
    yield* submit(carrying).pipe(
      Effect.onExit((exit) =>
        Effect.sync(() => {
          if (Exit.isSuccess(exit)) Queue.endUnsafe(elements)
          else Queue.failCauseUnsafe(elements, exit.cause)
          sink.check()
        })
      ),
      Effect.forkScoped({ startImmediately: true })
    )
    const pull = Effect.map(Queue.takeBetween(elements, 1, bufferSize), (chunk) => {
      sink.check()
      // It has one at least.
      return chunk as [unknown, ...Array<unknown>]
    })
    return Stream.fromPull(Effect.succeed(pull))
  }))
