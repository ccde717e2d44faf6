/**
 * Queues as a small live table on a terminal.
 *
 * @since 0.1.0
 */
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Stdio from "effect/Stdio"
import type * as Terminal from "effect/Terminal"
import * as screen from "./internal/screen.ts"
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

const toReading = (info: QueueManager.QueueInfo): screen.Reading => ({
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
  const readings = Effect.map(manager.getAllQueuesInfo, (infos) => Array.from(infos.values(), toReading))
  return yield* Effect.scoped(Effect.gen(function*() {
    const { draw, isTerminal, print } = yield* screen.make
    const every = isTerminal ? interval : lines
    if (every === undefined) return yield* Effect.never
    const once = Effect.flatMap(readings, (queues) => isTerminal ? draw(queues) : print(queues, false))
    return yield* Effect.forever(Effect.andThen(once, Effect.sleep(every))).pipe(
      // As it was at the end.
      Effect.ensuring(isTerminal ? once : Effect.void)
    )
  }))
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
