/** Everything there is to run, by name. */
import * as days from "./days.ts"
import * as events from "./events.ts"
import * as matrix from "./matrix.ts"
import type { Outcome } from "./report.ts"
import * as rules from "./rules.ts"

interface Job {
  readonly name: string
  readonly reduced: boolean
  /** More of them would show nothing new. */
  readonly seeds: number
  readonly run: (seed: number, trace?: (line: string) => void) => Outcome
}

export const all: ReadonlyArray<Job> = [
  ...matrix.cells.map((cell): Job => ({
    name: cell.name,
    reduced: cell.reduced,
    seeds: 5,
    run: (seed, trace) => ({ kind: "cell", results: [matrix.runCell(cell, seed, trace)] })
  })),
  ...events.names.map((name): Job => ({
    name,
    reduced: name === "limits are halved: openai" || name === "the client's process starts again: openai",
    seeds: 5,
    run: (seed, trace) => ({ kind: "event", results: [events.run(name, seed, trace)] })
  })),
  ...days.names.map((name): Job => ({
    name,
    reduced: name.includes("23 hours"),
    seeds: 2,
    run: (seed, trace) => ({ kind: "cell", results: [days.run(name, seed, trace)] })
  })),
  ...rules.names.map((name): Job => ({
    name,
    reduced: ["refused for good: 401, openai", "told to wait: 503, 7", "a minute of nothing but 503"].includes(name),
    seeds: 2,
    run: (seed, trace) => ({ kind: "rule", results: [rules.run(name, seed, trace)] })
  }))
]

/** Runs a job; one that cannot be run is an outcome too. */
export const run = (name: string, seed: number, trace?: (line: string) => void): Outcome => {
  const job = all.find((job) => job.name === name)
  try {
    if (job === undefined) throw new Error("there is no such job")
    return job.run(seed, trace)
  } catch (error) {
    return {
      kind: "broken",
      results: [{ cell: name, seed, problem: error instanceof Error ? error.message : String(error) }]
    }
  }
}
