/** Draws queues on a terminal, over what was drawn before. */
import * as Clock from "effect/Clock"
import * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as Stdio from "effect/Stdio"
import * as Terminal from "effect/Terminal"
import * as table from "./table.ts"

/** What is shown of a queue, but for what two readings of it say. */
export type Reading = Omit<table.Row, "perSecond">

export interface Screen {
  readonly isTerminal: boolean
  /** A table over what was drawn before. */
  readonly draw: (queues: ReadonlyArray<Reading>) => Effect.Effect<void>
  /** A text over what was drawn before. */
  readonly say: (lines: ReadonlyArray<string>) => Effect.Effect<void>
  /** Plain lines below what was printed before, with the names of the columns or without. */
  readonly print: (queues: ReadonlyArray<Reading>, hasHead: boolean) => Effect.Effect<void>
}

const everything = { columns: Number.MAX_SAFE_INTEGER, rows: Number.MAX_SAFE_INTEGER, colors: false }

/** Standard output. The cursor comes back when the scope closes, and what was drawn last stays. */
export const make: Effect.Effect<Screen, never, Scope.Scope | Stdio.Stdio | Terminal.Terminal> = Effect.gen(
  function*() {
    const terminal = yield* Terminal.Terminal
    const stdio = yield* Stdio.Stdio
    const isTerminal = yield* stdio.stdoutIsTerminal
    const noColor = yield* Effect.orElseSucceed(Effect.option(Config.NonEmptyString("NO_COLOR")), Option.none)
    const rates = new table.Rates()
    const frames = new table.Frames()
    const write = (text: string) => Effect.ignore(terminal.display(text))
    const read = (queues: ReadonlyArray<Reading>) => Effect.map(Clock.currentTimeMillis, (at) => rates.read(at, queues))
    const over = (render: (options: table.Options) => ReadonlyArray<string>) =>
      Effect.gen(function*() {
        const columns = yield* terminal.columns
        const rows = yield* terminal.rows
        yield* write(frames.next(render({
          // The last column of a line may wrap it.
          columns: Math.max(20, columns - 1),
          rows: Math.max(3, rows - 1),
          colors: Option.isNone(noColor)
        })))
      })
    if (isTerminal) yield* Effect.addFinalizer(() => write(frames.end))
    return {
      isTerminal,
      draw: (queues) => Effect.flatMap(read(queues), (rows) => over((options) => table.render(rows, options))),
      say: (lines) => over(({ columns }) => lines.map((line) => table.printable(line, columns))),
      print: (queues, hasHead) =>
        Effect.flatMap(
          read(queues),
          (rows) => write(table.render(rows, everything).slice(hasHead ? 0 : 1).map((line) => `${line}\n`).join(""))
        )
    }
  }
)
