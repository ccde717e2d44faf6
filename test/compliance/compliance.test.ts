/**
 * A few cells of the compliance run, which `npm run compliance` makes whole: zero refusals, at the highest throughput
 * that the provider's rules allow.
 */
import { assert, describe, it } from "@effect/vitest"
import * as jobs from "./jobs.ts"
import * as report from "./report.ts"

describe("compliance", () => {
  for (const job of jobs.all) {
    if (!job.reduced) continue
    it(job.name, () => {
      const outcome = jobs.run(job.name, 1)
      assert.deepStrictEqual(report.verdict([outcome]), [], JSON.stringify(outcome.results, undefined, 2))
    }, 60_000)
  }
})
