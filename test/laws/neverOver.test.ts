/**
 * Random schedules on virtual time, watched by a checker that shares no code with the library: no dispatch goes over
 * any limit, nothing that fits is left waiting, everything ends once.
 *
 * Each run draws new schedules. A failure names the seed of its schedule: `SEED=123` runs that one alone, and
 * `SEED=123 RUNS=50` the fifty from it on. `RUNS` alone says how many are drawn; 1,000 if it is not given.
 */
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import * as schedule from "./schedule.ts"
import { simulate } from "./simulate.ts"

const given = process.env["SEED"]
const first = given === undefined ? Math.floor(Math.random() * 1e9) : Number(given)
const runs = Number(process.env["RUNS"] ?? (given === undefined ? 1000 : 1))

describe("random schedules", () => {
  it.effect(
    "never go over a limit, never leave what fits waiting, and end everything once",
    () =>
      Effect.gen(function*() {
        let dispatches = 0
        for (let seed = first; seed < first + runs; seed++) {
          const plan = schedule.make(seed)
          const report = yield* simulate(plan)
          dispatches += report.dispatches
          if (report.problems.length > 0) {
            const limits = plan.limits.map((limit) => JSON.stringify(limit)).join("\n")
            assert.fail(
              `SEED=${seed}: ${report.problems.join("; ")}\n${limits}\n${report.log.slice(-60).join("\n")}`
            )
          }
        }
        assert.isAbove(dispatches, runs)
      }),
    600_000
  )
})
