/** Who has submitted what and heard which end, what the processes have in their books, and what must hold of both. */
import { Effect, Exit, Schedule } from "effect"
import type { QueueManager } from "effect-llm-queue"
import { atOnce, limit, type Line, Model, period } from "./process.ts"

type Manager = QueueManager.QueueManager["Service"]

/** A submitted request; `by` is the execution whose result was heard. */
interface Entry {
  readonly id: string
  by: string | undefined
  ends: number
}

/** How a process died, or stood still, and when. */
interface Death {
  readonly name: string
  readonly at: number
}

/** A client that means it asks again while there is no answer. */
export const patiently = <A, E extends { readonly _tag: string }, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.retry(effect, { while: ({ _tag }) => _tag === "QueueUnavailable", schedule: Schedule.spaced(100) })

export { Model }

export const make = () => {
  const entries = new Map<string, Entry>()
  const problems = new Set<string>()
  let submitted = 0

  /** Submits one, under its own name, until it is accepted, and hears its end. */
  const submit = (manager: Manager, text: string, takes: number) =>
    Effect.suspend(() => {
      const id = `r${submitted++}`
      const entry: Entry = { id, by: undefined, ends: 0 }
      entries.set(id, entry)
      return patiently(manager.submit(Model, { text, takes }, { id })).pipe(
        // It was accepted, and that was not heard.
        Effect.catchTag("DuplicateRequest", () => patiently(manager.awaitCompletion(Model, id))),
        Effect.exit,
        Effect.tap((exit) =>
          Effect.sync(() => {
            entry.ends++
            if (Exit.isFailure(exit)) return void problems.add(`a request has failed: ${String(exit.cause)}`)
            const { result } = exit.value
            entry.by = result.by
            if (result.text !== text.toUpperCase()) problems.add(`a result is ${result.text} instead of ${text}`)
          })
        )
      )
    })

  /** What does not hold, when all is over. */
  const audit = (lines: ReadonlyArray<Line>, deaths: ReadonlyArray<Death>) => {
    const lost = Array.from(entries.values()).filter(({ ends }) => ends === 0).length
    if (lost > 0) problems.add(`${lost} requests are lost`)
    const diedAt = new Map(deaths.map(({ at, name }) => [name, at]))
    const executions = new Map<string, { readonly id: string; readonly began: number; ended: number }>()
    const byId = new Map<string, Array<{ readonly began: number; ended: number }>>()
    let locks = 0
    for (const [what, id, by, at] of lines.toSorted((a, b) => a[3] - b[3])) {
      if (what === "lost") locks++
      else if (what === "began") {
        const execution = { id, began: at, ended: diedAt.get(by.slice(0, by.lastIndexOf("-"))) ?? Infinity }
        executions.set(by, execution)
        byId.set(id, [...byId.get(id) ?? [], execution])
      } else executions.get(by)!.ended = at
    }
    for (const { by, id } of entries.values()) {
      if (by === undefined) continue
      const execution = executions.get(by)
      if (execution?.id !== id) {
        problems.add("a result is another request's")
        continue
      }
      // Another one could only begin because this one had lost its lock.
      const isLate = byId.get(id)!.some(({ began }) => began > execution.began && began < execution.ended)
      if (isLate) problems.add("a result counts that came when its process had lost the request")
    }
    const began = Array.from(executions).map(([by, { began }]) => [by.slice(0, by.lastIndexOf("-")), began] as const)
    let worst: ReadonlyArray<typeof began[number]> = []
    for (const [index, [, at]] of began.entries()) {
      let from = index
      while (from > 0 && at - began[from - 1]![1] < period) from--
      if (index - from + 1 > worst.length) worst = began.slice(from, index + 1)
    }
    if (worst.length > limit) {
      const of = worst.map(([name, at]) => `${name} ${Math.round(at - worst[0]![1])}`).join(", ")
      problems.add(`${worst.length} instead of ${limit} in a window: ${of}`)
    }
    const steps = Array.from(executions.values()).flatMap(({ began, ended }) => [[began, 1], [ended, -1]] as const)
      .toSorted(([a, up], [b, down]) => a - b || up - down)
    let running = 0
    let most = 0
    for (const [, step] of steps) {
      running += step
      most = Math.max(most, running)
    }
    if (most > atOnce) problems.add(`${most} instead of ${atOnce} at one time`)
    return {
      problems: Array.from(problems),
      submitted: entries.size,
      again: executions.size - byId.size,
      lost,
      locks,
      worst: worst.length,
      most
    }
  }

  return { entries, problems, submit, audit }
}
