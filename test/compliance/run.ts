/**
 * Zero refusals at the highest throughput that each provider's rules allow: measured on virtual time, by the provider's
 * books.
 *
 *     npm run compliance
 *     npm run compliance -- --json FILE     the rows of the cells
 *     npm run compliance -- --reduced       a few cells of each kind
 *     npm run compliance -- --only REGEX    those whose name matches
 *     npm run compliance -- --workers N     processes at one time; 2
 *     npm run compliance -- --seeds N       seeds of a cell; 5
 *     npm run compliance -- --trace         a line for each attempt, of the first seed, in this process
 */
import { type ChildProcess, fork } from "node:child_process"
import { writeFileSync } from "node:fs"
import { argv, exit, stderr, stdout } from "node:process"
import { fileURLToPath } from "node:url"
import { parseArgs } from "node:util"
import * as jobs from "./jobs.ts"
import * as report from "./report.ts"

const { values } = parseArgs({
  args: argv.slice(2),
  options: {
    json: { type: "string" },
    reduced: { type: "boolean", default: false },
    only: { type: "string" },
    workers: { type: "string", default: "2" },
    seeds: { type: "string", default: "5" },
    trace: { type: "boolean", default: false },
    worker: { type: "boolean", default: false }
  }
})

interface Work {
  readonly job: string
  readonly seed: number
}

const work = (): ReadonlyArray<Work> => {
  const only = values.only === undefined ? undefined : new RegExp(values.only)
  return jobs.all
    .filter((job) => (!values.reduced || job.reduced) && (only === undefined || only.test(job.name)))
    .flatMap((job) =>
      Array.from({ length: Math.min(Number(values.seeds), job.seeds) }, (_, i) => ({ job: job.name, seed: i + 1 }))
    )
}

if (values.worker) {
  process.on("message", ({ job, seed }: Work) => {
    process.send!(jobs.run(job, seed))
  })
} else if (values.trace) {
  for (const { job, seed } of work()) {
    if (seed > 1) continue
    stdout.write(`${job}\n`)
    const outcome = jobs.run(job, seed, (line) => void stdout.write(`${line}\n`))
    stdout.write(`${JSON.stringify(outcome.results, undefined, 2)}\n`)
  }
} else {
  const started = performance.now()
  const outcomes = await inProcesses(work(), Number(values.workers))
  const results = outcomes.flatMap((outcome) => outcome.kind === "cell" ? outcome.results : [])
  const events = outcomes.flatMap((outcome) => outcome.kind === "event" ? outcome.results : [])
  const rules = outcomes.flatMap((outcome) => outcome.kind === "rule" ? outcome.results : [])
  if (results.length > 0) stdout.write(`${report.cellTable(results)}\n\n`)
  const bounded = report.bounded(results)
  if (bounded.length > 0) stdout.write(`${bounded}\n\n`)
  if (events.length > 0) stdout.write(`${report.eventTable(events)}\n\n`)
  if (rules.length > 0) stdout.write(`${report.ruleTable(rules)}\n\n`)
  if (values.json !== undefined) {
    writeFileSync(values.json, `${JSON.stringify(results.map(report.rowOf), undefined, 2)}\n`)
  }
  const failures = report.verdict(outcomes)
  const unreachable = report.outOfReach(outcomes)
  const passed = outcomes.length - failures.length - unreachable.length
  stdout.write(
    `${outcomes.length} runs in ${((performance.now() - started) / 1000).toFixed(0)} s: ${passed} pass\n${
      unreachable.length === 0 ? "" : `${unreachable.length} are out of reach:\n${unreachable.join("\n")}\n`
    }${failures.length === 0 ? "" : `${failures.length} fail:\n${failures.join("\n")}\n`}`
  )
  exit(failures.length === 0 ? 0 : 1)
}

/** Gives each of a few processes a run at a time. */
async function inProcesses(all: ReadonlyArray<Work>, workers: number): Promise<ReadonlyArray<report.Outcome>> {
  const outcomes = new Array<report.Outcome>(all.length)
  let next = 0
  let done = 0
  const children: Array<ChildProcess> = []
  await new Promise<void>((resolve, reject) => {
    const give = (child: ChildProcess) => {
      const index = next++
      const item = all[index]
      if (item === undefined) {
        child.disconnect()
        return
      }
      child.once("message", (outcome: report.Outcome) => {
        outcomes[index] = outcome
        if (++done % 50 === 0) stderr.write(`${done} of ${all.length}\n`)
        if (done === all.length) resolve()
        give(child)
      })
      child.send(item)
    }
    if (all.length === 0) reject(new Error("nothing matches"))
    for (let i = 0; i < Math.min(workers, all.length); i++) {
      const child = fork(fileURLToPath(import.meta.url), ["--worker"])
      child.once("exit", (code) => {
        if (done < all.length && code !== 0) reject(new Error(`a worker ended with ${code}`))
      })
      children.push(child)
      give(child)
    }
  }).finally(() => {
    for (const child of children) child.kill()
  })
  return outcomes
}
