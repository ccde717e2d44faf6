import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import * as fleet from "./fleet/fleet.ts"
import { hasRedis, url } from "./server.ts"

/** Wide margins: other tests run at the same time. */
const periods = { period: 3000, margin: 600, added: 100 }
const limits = { rpm: 90, tpm: 100_000, concurrent: 16 }

describe.runIf(hasRedis)("processes that share limits", () => {
  for (
    const { loads, name } of [
      { name: "that all have work", loads: Array.from({ length: 3 }, () => ({ backlog: 40, rate: undefined })) },
      {
        name: "of which one has most of it",
        loads: [{ backlog: 40, rate: undefined }, { backlog: undefined, rate: 3 }, { backlog: undefined, rate: 3 }]
      }
    ]
  ) {
    it.live(`${name} are refused nothing, and use what there is`, () =>
      Effect.gen(function*() {
        const options: fleet.Options = {
          ...periods,
          ...limits,
          redis: yield* url,
          prefix: `fleet:${name}`,
          lease: 5000,
          windows: 3,
          loads
        }
        const { done, jain, refused, utilisation } = yield* Effect.provide(fleet.run(options), fleet.layer(options))
        assert.strictEqual(refused, 0)
        assert.deepStrictEqual(done.flatMap(({ failed }) => failed), [])
        // All that was sent came back.
        for (const { completed, sent } of done) assert.strictEqual(completed, sent)
        // How much it is, is measured by the benchmark: here, that nobody waits for what is there.
        assert.isAbove(utilisation, 0.6)
        if (loads.every(({ backlog }) => backlog !== undefined)) assert.isAbove(jain, 0.8)
      }).pipe(Effect.scoped), 60_000)
  }
})
