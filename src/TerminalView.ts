/**
 * Queues as a small live table on a terminal.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Config from "effect/Config"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Stdio from "effect/Stdio"
import * as Terminal from "effect/Terminal"
import * as table from "./internal/table.ts"
import * as QueueManager from "./QueueManager.ts"

/**
 * Options of the view.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /** How often it is drawn. Default: four times a second. */
  readonly interval?: Duration.Input | undefined
  /** How often a line for each queue is printed where there is no terminal. Default: never. */
  readonly lines?: Duration.Input | undefined
}

const toRow = (info: QueueManager.QueueInfo): Omit<table.Row, "perSecond"> => ({
  modelId: info.modelId,
  state: info.state,
  depth: info.depth + info.suspended,
  running: info.running,
  completed: info.completed,
  failed: info.failed,
  limits: info.rateLimiters
})

/**
 * Draws all queues of the manager over and over, until it is interrupted: what waits and runs, throughput, failures, and how
 * full each limit is. The last table stays. What the program prints meanwhile may be drawn over.
 *
 * Where standard output is no terminal it prints a plain line for each queue from time to time, if `lines` says so. There are
 * no colors when `NO_COLOR` is set.
 *
 * **Example** (Watching work)
 *
 * ```ts
 * import { NodeRuntime, NodeServices } from "@effect/platform-node"
 * import { Effect } from "effect"
 * import { QueueManager } from "effect-llm-queue"
 * import * as TerminalView from "effect-llm-queue/TerminalView"
 *
 * declare const work: Effect.Effect<void, never, QueueManager.QueueManager>
 *
 * work.pipe(
 *   Effect.raceFirst(TerminalView.show()),
 *   Effect.provide([QueueManager.layer, NodeServices.layer]),
 *   NodeRuntime.runMain
 * )
 * ```
 *
 * @category accessors
 * @since 0.1.0
 */
export const show = Effect.fnUntraced(function*(
  { interval = "250 millis", lines }: Options = {}
): Effect.fn.Return<never, never, QueueManager.QueueManager | Stdio.Stdio | Terminal.Terminal> {
  const manager = yield* QueueManager.QueueManager
  const terminal = yield* Terminal.Terminal
  const stdio = yield* Stdio.Stdio
  const isTerminal = yield* stdio.stdoutIsTerminal
  if (!isTerminal && lines === undefined) return yield* Effect.never
  const noColor = yield* Effect.orElseSucceed(Effect.option(Config.NonEmptyString("NO_COLOR")), Option.none)
  const rates = new table.Rates()
  const screen = new table.Screen()
  const print = (text: string) => Effect.ignore(terminal.display(text))

  const draw = Effect.gen(function*() {
    const at = yield* Clock.currentTimeMillis
    const infos = yield* manager.getAllQueuesInfo
    const rows = rates.read(at, Array.from(infos.values(), toRow))
    if (!isTerminal) {
      const plain = table.render(rows, { columns: Number.MAX_SAFE_INTEGER, rows: 100, colors: false })
      return yield* print(plain.slice(1).map((line) => `${line}\n`).join(""))
    }
    const columns = yield* terminal.columns
    const height = yield* terminal.rows
    yield* print(screen.frame(table.render(rows, {
      // The last column of a line may wrap it.
      columns: Math.max(20, columns - 1),
      rows: Math.max(3, height - 1),
      colors: Option.isNone(noColor)
    })))
  })

  return yield* Effect.forever(Effect.andThen(draw, Effect.sleep(isTerminal ? interval : lines!))).pipe(
    Effect.ensuring(isTerminal ? Effect.andThen(draw, print(screen.end)) : Effect.void)
  )
})

/**
 * `show` as long as the layer lives.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (
  options?: Options
): Layer.Layer<never, never, QueueManager.QueueManager | Stdio.Stdio | Terminal.Terminal> =>
  Layer.effectDiscard(Effect.forkScoped(show(options)))
