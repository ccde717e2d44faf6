/**
 * What a process says to the server about one model: one call at a time, with all that there is to say when it is made.
 *
 * A call that fails, or whose reply does not come in time, is made again as it was until there is a reply: the server does
 * not do it twice. Until then what is asked is told that the server cannot be reached.
 */
import * as Cause from "effect/Cause"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Redis from "effect/persistence/Redis"
import * as Queue from "effect/Queue"
import * as Random from "effect/Random"
import type { Cell } from "./cells.ts"
import { decide } from "./script.ts"
import type { Told } from "./sharedMeter.ts"

/** Where a cell is among those of a call. */
export type IndexOf = (cell: Cell) => number

export type CellAt = (index: number) => Cell | undefined

/** Something to be said. */
export interface Operation {
  /** What is said, when it is. */
  readonly say: (indexOf: IndexOf) => object
  readonly answered?: ((answer: unknown, cellAt: CellAt) => void) | undefined
  /** The server cannot be reached. It is said all the same when it can. */
  readonly away?: ((reason: string) => void) | undefined
  readonly weight: number
}

/** What the server says of how things stand, besides its answers. */
export interface Reply {
  readonly wall: number
  readonly epoch: string
  readonly answers: List<unknown>
  readonly sync: List<Told>
}

/** What keeps the server from answering. */
export type Problem =
  | { readonly stale: true }
  | { readonly lost: true }
  | { readonly clock: number }
  | { readonly changed: string }
  | { readonly conflict: string; readonly others: number }

export interface Options {
  readonly modelId: string
  readonly redis: Redis.Redis["Service"]
  readonly commandTimeout: number
  /** The names of the keys that every call has. */
  readonly keys: ReadonlyArray<string>
  readonly keyOf: (cell: Cell) => string
  /** What is the same in every call. */
  readonly header: () => object
  /** The cells of the model's own limits. */
  readonly cells: () => ReadonlyArray<Cell>
  readonly describe: (cell: Cell, wall: number) => object
  readonly heard: (reply: Reply, cellAt: CellAt) => void
  /** Mends what keeps the server from answering. Before all else the server is told what it succeeds with. */
  readonly mend: (problem: Problem) => Effect.Effect<ReadonlyArray<Operation>, string>
  /** The server can be reached again. */
  readonly back: () => void
}

/** How much goes into one call, so that the server has time for others. */
const mostAtOnce = 256

/** One call: what it says does not change when it is made again. */
interface Call {
  readonly operations: ReadonlyArray<Operation>
  readonly prelude: object
  readonly keys: ReadonlyArray<string>
  readonly text: string
  readonly at: CellAt
}

const firstPause = 50
export const longestPause = 2000

/** The server's encoder writes an empty list like an empty object. */
export type List<A> = ReadonlyArray<A> | Readonly<Record<string, never>>

export const list = <A>(value: List<A> | undefined): ReadonlyArray<A> => Array.isArray(value) ? value : []

const shorten = (cause: Cause.Cause<unknown>): string => {
  const error = Cause.squash(cause)
  const inner = error instanceof Error && error.cause !== undefined ? error.cause : error
  const text = inner instanceof Error ? inner.message : String(inner)
  return text.length > 200 ? `${text.slice(0, 200)}…` : text
}

export class Link {
  /** Why the server cannot be reached, if so. */
  away: string | undefined
  private readonly options: Options
  private readonly signal: Queue.Queue<void>
  private outbox: Array<Operation> = []
  private inFlight: Call | undefined
  private sequence = 0
  /** The server's wall clock, as it was last heard. */
  wall = 0

  private constructor(options: Options, signal: Queue.Queue<void>) {
    this.options = options
    this.signal = signal
  }

  static readonly make = (options: Options): Effect.Effect<Link> =>
    Effect.map(Queue.sliding<void>(1), (signal) => new Link(options, signal))

  push(operation: Operation): void {
    this.outbox.push(operation)
    Queue.offerUnsafe(this.signal, undefined)
  }

  /** Says what there is to say, as it comes. */
  readonly run: Effect.Effect<never> = Effect.suspend(() =>
    Effect.andThen(Queue.take(this.signal), Effect.suspend(() => this.empty))
  ).pipe(Effect.forever)

  private readonly empty: Effect.Effect<void> = Effect.suspend(() =>
    this.outbox.length === 0 ? Effect.void : Effect.flatMap(this.exchange(this.take()), () => this.empty)
  )

  private take(): ReadonlyArray<Operation> {
    let weight = 0
    let count = 0
    for (const operation of this.outbox) {
      weight += operation.weight
      if (count > 0 && weight > mostAtOnce) break
      count++
    }
    return this.outbox.splice(0, count)
  }

  /** Says this once, before all else. Fails when there is no reply in time. */
  begin(operations: ReadonlyArray<Operation>): Effect.Effect<void, string> {
    return Effect.suspend(() => this.attempt(this.write(operations, {})))
  }

  /** Says the rest, and goodbye. */
  end(goodbye: Operation): Effect.Effect<void, string> {
    return Effect.suspend(() => {
      const { inFlight } = this
      const again = inFlight === undefined ? Effect.void : this.attempt(inFlight)
      const rest: Effect.Effect<void, string> = Effect.suspend(() => {
        if (this.outbox.length === 0) return this.attempt(this.write([goodbye], { last: true }))
        return Effect.flatMap(this.attempt(this.write(this.take(), {})), () => rest)
      })
      return Effect.andThen(again, rest)
    })
  }

  /** Nobody waits for an answer from now on. */
  close(): void {
    this.away = "it is closed"
    for (const operation of [...this.inFlight?.operations ?? [], ...this.outbox]) operation.away?.(this.away)
    this.outbox = []
  }

  private exchange(operations: ReadonlyArray<Operation>): Effect.Effect<void> {
    let pause = firstPause
    const again = (call: Call): Effect.Effect<void> =>
      Effect.catch(this.attempt(call), (reason) => {
        const isNews = this.away !== reason
        this.away = reason
        for (const operation of [...operations, ...this.outbox]) operation.away?.(reason)
        const delay = Effect.flatMap(
          Random.next,
          (random) => Effect.sleep(Duration.millis(pause * (0.5 + random / 2)))
        )
        pause = Math.min(longestPause, pause * 2)
        const { modelId } = this.options
        return Effect.andThen(
          isNews
            ? Effect.logWarning(`The shared limits of model ${modelId} cannot be reached, trying again: ${reason}`)
            : Effect.void,
          Effect.andThen(delay, Effect.suspend(() => again(this.inFlight ?? call)))
        )
      })
    return again(this.write(operations, {}))
  }

  /** One call, and those that it takes until there is an answer to what it says. */
  private attempt(call: Call): Effect.Effect<void, string> {
    const { back, commandTimeout, heard, mend, modelId, redis } = this.options
    this.inFlight = call
    return Effect.exit(
      Effect.interruptible(
        Effect.timeoutOrElse(redis.eval(decide)(call.keys, call.text), {
          duration: commandTimeout,
          orElse: () => Effect.fail(`no answer within ${commandTimeout} milliseconds`)
        })
      )
    ).pipe(Effect.flatMap((exit): Effect.Effect<void, string> => {
      if (Exit.isFailure(exit)) {
        return Cause.hasInterruptsOnly(exit.cause) ? Effect.interrupt : Effect.fail(shorten(exit.cause))
      }
      // The server's words are its script's.
      const reply = JSON.parse(exit.value) as Reply | Problem
      if (!("answers" in reply)) {
        if (!("clock" in reply)) {
          return Effect.flatMap(
            mend(reply),
            (first) => this.attempt(this.write([...first, ...call.operations], call.prelude, true))
          )
        }
        this.wall = reply.clock
        return this.attempt(this.write(call.operations, call.prelude, true))
      }
      this.inFlight = undefined
      this.wall = reply.wall
      const wasAway = this.away !== undefined
      this.away = undefined
      heard(reply, call.at)
      const answers = list(reply.answers)
      for (const [index, operation] of call.operations.entries()) operation.answered?.(answers[index], call.at)
      if (!wasAway) return Effect.void
      back()
      return Effect.logInfo(`The shared limits of model ${modelId} can be reached again`)
    }))
  }

  private write(operations: ReadonlyArray<Operation>, prelude: object, isRefused = false): Call {
    const { cells, describe, header, keyOf, keys } = this.options
    if (!isRefused) this.sequence++
    const all = [...cells()]
    const model = all.length
    const places = new Map(all.map((cell, index) => [cell.name, index]))
    const indexOf: IndexOf = (cell) => {
      const found = places.get(cell.name)
      if (found !== undefined) return found + 1
      places.set(cell.name, all.length)
      return all.push(cell)
    }
    const ops = operations.map((operation) => operation.say(indexOf))
    const text = JSON.stringify({
      ...header(),
      ...prelude,
      seq: this.sequence,
      model,
      cells: all.map((cell) => ({ name: cell.name, ...describe(cell, this.wall) })),
      ops
    })
    return { operations, prelude, at: (index) => all[index - 1], keys: [...keys, ...all.map(keyOf)], text }
  }
}
