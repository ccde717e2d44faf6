/** The queues of another program in this terminal. */
import * as Clock from "effect/Clock"
import * as Config from "effect/Config"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type { HttpClient } from "effect/http"
import * as Option from "effect/Option"
import type * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as Stdio from "effect/Stdio"
import * as Stream from "effect/Stream"
import * as Terminal from "effect/Terminal"
import * as Api from "../src/Api.ts"
import * as table from "../src/internal/table.ts"

/** What a person can do something about. */
export class Problem extends Data.TaggedError("Problem")<{ readonly message: string }> {}

interface Options {
  readonly url: string
  readonly token: Redacted.Redacted | undefined
}

const toRow = (queue: typeof Api.Queue.Type): Omit<table.Row, "perSecond"> => ({
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

const retry = Schedule.max([Schedule.exponential("500 millis"), Schedule.spaced("5 seconds")])

/** Draws them over and over on a terminal, and does nothing where there is none. */
export const show = Effect.fnUntraced(function*(
  options: Options
): Effect.fn.Return<never, never, HttpClient.HttpClient | Stdio.Stdio | Terminal.Terminal> {
  const terminal = yield* Terminal.Terminal
  const stdio = yield* Stdio.Stdio
  if (!(yield* stdio.stdoutIsTerminal)) return yield* Effect.never
  const noColor = yield* Effect.orElseSucceed(Effect.option(Config.NonEmptyString("NO_COLOR")), Option.none)
  const rates = new table.Rates()
  const screen = new table.Screen()
  const print = (text: string) => Effect.ignore(terminal.display(text))
  const draw = Effect.fnUntraced(function*(lines: (options: table.Options) => ReadonlyArray<string>) {
    const columns = yield* terminal.columns
    const rows = yield* terminal.rows
    yield* print(screen.frame(lines({
      columns: Math.max(20, columns - 1),
      rows: Math.max(3, rows - 1),
      colors: Option.isNone(noColor)
    })))
  })
  return yield* looks(options).pipe(
    Stream.runForEach((queues) =>
      Effect.flatMap(Clock.currentTimeMillis, (at) => {
        const rows = rates.read(at, queues.map(toRow))
        return draw((options) => table.render(rows, options))
      })
    ),
    // It may have stopped, and will be there again.
    Effect.andThen(Effect.fail(new Problem({ message: `${options.url} has closed the connection.` }))),
    Effect.tapError(({ message }) => draw(({ columns }) => [table.printable(message, columns), "Trying again…"])),
    Effect.retry(retry),
    Effect.orDie,
    Effect.ensuring(print(screen.end))
  )
})

/** As `show`, or one table. */
export const watch = Effect.fnUntraced(function*(
  { once, ...options }: Options & { readonly once: boolean }
): Effect.fn.Return<void, Problem, HttpClient.HttpClient | Stdio.Stdio | Terminal.Terminal> {
  const stdio = yield* Stdio.Stdio
  if (!once && (yield* stdio.stdoutIsTerminal)) return yield* show(options)
  const terminal = yield* Terminal.Terminal
  const queues = yield* Stream.runHead(looks(options))
  const rows = new table.Rates().read(0, Option.getOrElse(queues, () => []).map(toRow))
  const lines = table.render(rows, { columns: Number.MAX_SAFE_INTEGER, rows: Number.MAX_SAFE_INTEGER, colors: false })
  yield* Effect.ignore(terminal.display(lines.map((line) => `${line}\n`).join("")))
})
