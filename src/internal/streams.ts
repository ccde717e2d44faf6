/**
 * Streams as requests. A stream is an entry like any other: its processor runs the stream and hands the elements to a
 * bounded queue, which the submitter's stream reads. So it waits, is limited, times out and is cancelled like the others.
 */
import type * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Queue from "effect/Queue"
import * as Stream from "effect/Stream"
import type * as ModelConfig from "../ModelConfig.ts"
import type * as RateLimiter from "../RateLimiter.ts"
import { type AnyRequest, CurrentEntry, type Failure, type ProcessorFailure } from "./entry.ts"
import * as settings from "./settings.ts"

type Sink = Queue.Queue<unknown, Failure | Cause.Done>

/** Elements that are there before the submitter has asked for them. */
const bufferSize = 16

/** Where a request carries the queue of its elements. It goes along with each copy of the request. */
const sinkKey = Symbol("effect-llm-queue/internal/sink")

interface StreamRequest extends AnyRequest {
  readonly [sinkKey]?: Sink
}

/** Whether a request is for a stream. */
export const isStream = (request: StreamRequest): boolean => request[sinkKey] !== undefined

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
      return sink === undefined ? Effect.void : Queue.offerAll(sink, chunk)
    }
    yield* Stream.suspend(() => streamOf(request)).pipe(
      Stream.runForEachArray(take),
      // What it has used is known even when it was cut short.
      Effect.onExit(() => {
        const warning = problem === undefined ? Effect.void : Effect.logWarning(
          `The usage of an element of model ${modelId} cannot be read: ${problem}`
        )
        const settled = usage === undefined || entry === undefined ? Effect.void : entry.queue.settle(entry, usage)
        return Effect.andThen(warning, settled)
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
    const sink = yield* Queue.bounded<unknown, Failure | Cause.Done>(bufferSize)
    const carrying: StreamRequest = { ...request(), [sinkKey]: sink }
    yield* submit(carrying).pipe(
      Effect.onExit((exit) => Exit.isSuccess(exit) ? Queue.end(sink) : Queue.failCause(sink, exit.cause)),
      Effect.forkScoped({ startImmediately: true })
    )
    return Stream.fromQueue(sink)
  }))
