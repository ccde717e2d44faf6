import { describe, it } from "@effect/vitest"
import type { Plan } from "./history.ts"
import * as plans from "./plans.ts"
import type { Random } from "./seededScheduler.ts"
import { explore, patience } from "./simulation.ts"

/** Callers of all kinds race for room, permits and windows. */
const racing = (random: Random): Plan => {
  const count = plans.int(random, 2, 10)
  const span = plans.int(random, 0, 8)
  const requests = plans.list(count, (index) =>
    plans.request(random, index, {
      priority: plans.maybe(random, 0.2, () => plans.pick(random, ["high", "low"]))
    }))
  return plans.plan({
    limits: plans.limits(random),
    options: {
      capacity: plans.maybe(random, 0.7, () => plans.int(random, 1, 4)),
      strategy: plans.pick(random, ["suspend", "reject", "dropOldest"])
    },
    settles: plans.chance(random, 0.5),
    callers: [
      ...requests.map((request) => ({
        at: plans.int(random, 0, span),
        action: plans.submit(request, plans.chance(random, 0.6))
      })),
      ...requests.filter(() => plans.chance(random, 0.3)).map(({ id }) => ({
        at: plans.int(random, 0, span + 4),
        action: { _tag: "Await" as const, id }
      }))
    ]
  })
}

describe("submitters", () => {
  it.effect(
    "that race each other all hear how their requests ended, within all limits and in order",
    () => explore("submit", racing, 600),
    patience
  )
})
