/** The queues of another program in this terminal. */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type { HttpClient } from "effect/http"
import * as Option from "effect/Option"
import type * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import type * as Stdio from "effect/Stdio"
import * as Stream from "effect/Stream"
import type * as Terminal from "effect/Terminal"
import * as Api from "../src/Api.ts"
import * as screen from "../src/internal/screen.ts"

/** What a person can do something about. */
export class Problem extends Data.TaggedError("Problem")<{ readonly message: string }> {}

interface Options {
  readonly url: string
  readonly token: Redacted.Redacted | undefined
}

const toReading = (queue: typeof Api.Queue.Type): screen.Reading => ({
  ...queue,
  depth: queue.depth + queue.suspended
})

const problemOf = (url: string) => (error: { readonly _tag: string; readonly message?: string }): Problem =>
  new Problem({
    message: error._tag === "Unauthorized"
      ? `${url} needs a token, or another one: give it as LLM_QUEUE_TOKEN.`
      : error._tag === "Forbidden" || error._tag === "Busy"
      ? `${url} has answered: ${error.message}`
      : `${url} does not answer as effect-llm-queue/Api does: is it served there? ${error.message ?? ""}`
  })

/** All queues, each time that something has come. */
const looks = (options: Options): Stream.Stream<
  ReadonlyArray<typeof Api.Queue.Type>,
  Problem,
  HttpClient.HttpClient
> =>
  Stream.unwrap(Effect.gen(function*() {
    const client = yield* Api.makeClient(options)
    const live = yield* client.queues.live()
    return Stream.mapAccum(live, () => new Map<string, typeof Api.Queue.Type>(), (known, message) => {
      if (message.complete) known.clear()
      for (const modelId of message.removed) known.delete(modelId)
      for (const queue of message.queues) known.set(queue.modelId, queue)
      return [known, [[...known.values()]]] as const
    })
  })).pipe(Stream.mapError(problemOf(options.url)))

/** Soon, then less often; anew once it has answered. */
const again = Schedule.min([Schedule.exponential("500 millis"), Schedule.spaced("5 seconds")])

/** Draws them over and over on a terminal, and does nothing where there is none. */
export const show = (
  options: Options
): Effect.Effect<never, never, HttpClient.HttpClient | Stdio.Stdio | Terminal.Terminal> =>
  Effect.scoped(Effect.gen(function*() {
    const { draw, isTerminal, say } = yield* screen.make
    if (!isTerminal) return yield* Effect.never
    const closed = new Problem({ message: `${options.url} has closed the connection.` })
    yield* looks(options).pipe(
      // It may have stopped, and will be there again.
      Stream.concat(Stream.fail(closed)),
      Stream.tapError(({ message }) => say([message, "Trying again…"])),
      Stream.retry(again),
      Stream.runForEach((queues) => draw(queues.map(toReading))),
      Effect.orDie
    )
    return yield* Effect.never
  }))

/** As `show`, or one table. */
export const watch = (
  { once, ...options }: Options & { readonly once: boolean }
): Effect.Effect<void, Problem, HttpClient.HttpClient | Stdio.Stdio | Terminal.Terminal> =>
  Effect.scoped(Effect.gen(function*() {
    const { isTerminal, print } = yield* screen.make
    if (isTerminal && !once) return yield* show(options)
    const queues = yield* Stream.runHead(looks(options))
    yield* print(Option.getOrElse(queues, () => []).map(toReading), true)
  }))
