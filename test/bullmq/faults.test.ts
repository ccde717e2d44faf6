/**
 * What becomes of stored requests when processes are killed and the store is restarted: a short version of the campaign, of
 * which `npm run faults` has the whole.
 */
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { canStart as hasRedis } from "../redis/server.ts"
import * as kills from "./faults/kills.ts"
import * as outages from "./faults/outages.ts"
import { canStart as hasPostgres } from "./postgres.ts"

describe("stored requests whose processes are killed and whose store is restarted", () => {
  for (
    const { isThere, ...options } of [
      { kind: "Redis", isThere: hasRedis, kills: 3, restarts: 1, stalls: 0 },
      // The limits are on Redis all the same.
      { kind: "PostgreSQL", isThere: hasRedis && hasPostgres, kills: 2, restarts: 1, stalls: 0 }
    ] as const
  ) {
    it.live.runIf(isThere)(
      `end once each, on ${options.kind}`,
      () => Effect.map(kills.run(options), ({ problems }) => assert.deepStrictEqual(problems, [])),
      120_000
    )
  }
})

describe.runIf(hasRedis)("requests that are", () => {
  for (const { name, run } of outages.rows) {
    if (!name.endsWith("that is behind a line that swallows everything, at work, 1000 ms")) continue
    it.live(name, () => Effect.map(run, ({ problems }) => assert.deepStrictEqual(problems, [])), 240_000)
  }
})
