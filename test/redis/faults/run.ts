/**
 * What becomes of shared limits, and of stored requests, when the server, the line to it, or a process is not what it should
 * be: all faults, at whatever the processes do when they happen.
 *
 *     npm run faults
 *     npm run faults -- --only REGEX     those whose name matches
 *     npm run faults -- --rounds N       of each fault; 1
 *     npm run faults -- --kills N        processes that are killed; 20
 *     npm run faults -- --workers N      at one time; 2
 *     npm run faults -- --verbose        with what is logged
 */
import { Effect, Logger } from "effect"
import { argv, exit } from "node:process"
import { parseArgs } from "node:util"
import * as storedKills from "../../bullmq/faults/kills.ts"
import * as outages from "../../bullmq/faults/outages.ts"
import { canStart as hasPostgres } from "../../bullmq/postgres.ts"
import * as campaign from "./campaign.ts"
import * as clocks from "./clocks.ts"
import { faults, rare } from "./faults.ts"
import * as kills from "./kills.ts"

const { values } = parseArgs({
  args: argv.slice(2),
  options: {
    only: { type: "string", default: "" },
    rounds: { type: "string", default: "1" },
    kills: { type: "string", default: "20" },
    workers: { type: "string", default: "2" },
    verbose: { type: "boolean", default: false }
  }
})

interface Job {
  readonly name: string
  readonly run: Effect.Effect<campaign.Outcome>
}

const only = new RegExp(values.only)
const withServer: ReadonlyArray<Job> = [...faults, ...rare].flatMap((fault) =>
  campaign.phases.flatMap((phase) =>
    // Longer than a lease, and shorter.
    [1200, 4500].flatMap((length) =>
      (["ioredis", "redis"] as const).flatMap((driver) =>
        driver === "redis" && phase !== "under load" ? [] : [{
          name: `a server that ${fault.name}, ${phase}, ${length} ms${driver === "redis" ? ", node-redis" : ""}`,
          run: campaign.run({ fault, phase, driver, length })
        }]
      )
    )
  )
)

const stored: ReadonlyArray<Job> = [
  ...(["Redis", ...(hasPostgres ? ["PostgreSQL"] as const : [])] as const).map((kind) => ({
    name: `stored on a ${kind} that is restarted, by processes that are killed`,
    run: storedKills.run({ kind, kills: Number(values.kills), restarts: 4, stalls: 2 })
  })),
  ...outages.rows.filter(({ kind }) => hasPostgres || kind === "Redis")
]

const jobs: ReadonlyArray<Job> = [
  { name: "a process that is killed", run: kills.run(Number(values.kills)) },
  ...[-1, 1].map((by) => ({ name: `a clock that is wrong by ${by} h`, run: clocks.run(by * 3_600_000) })),
  ...withServer,
  ...stored
]

const rows: Array<object> = []
let isWrong = false
const one = ({ name, run }: Job) =>
  Effect.forEach(Array.from({ length: Number(values.rounds) }), () => run).pipe(
    Effect.map((outcomes) => {
      const problems = Array.from(new Set(outcomes.flatMap(({ problems }) => problems)))
      isWrong ||= problems.length > 0
      const stored = outcomes.flatMap(({ stored }) => stored === undefined ? [] : [stored])
      const most = (values: ReadonlyArray<number>) => Math.round(Math.max(...values))
      rows.push({
        "what": name,
        "requests": outcomes.reduce((sum, { submitted }) => sum + submitted, 0),
        "back after, ms": most(outcomes.map(({ back }) => back)),
        ...(stored.length === 0 ? {} : {
          "again": most(stored.map(({ again }) => again)),
          "lost": most(stored.map(({ lost }) => lost)),
          "at one time": most(stored.map(({ most }) => most)),
          "in a window": most(stored.map(({ worst }) => worst)),
          "what died after, ms": most(stored.map(({ crash }) => crash ?? 0))
        }),
        "wrong": problems.length
      })
      console.log(`${problems.length === 0 ? "holds" : "WRONG"}  ${name}`)
      for (const problem of problems) console.log(`         ${problem}`)
    })
  )

await Effect.runPromise(
  Effect.forEach(jobs.filter(({ name }) => only.test(name)), one, {
    concurrency: Number(values.workers),
    discard: true
  }).pipe(values.verbose ? (effect) => effect : Effect.provide(Logger.layer([])))
)
console.table(rows)
exit(isWrong ? 1 : 0)
