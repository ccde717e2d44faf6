import { describe, it } from "@effect/vitest"
import type { Plan } from "./history.ts"
import * as plans from "./plans.ts"
import type { Random } from "./seededScheduler.ts"
import { explore, patience } from "./simulation.ts"

/** Deadlines of both kinds meet ends, grants and each other at the same instants. */
const expiring = (random: Random): Plan => {
  const count = plans.int(random, 2, 8)
  const span = plans.int(random, 0, 6)
  const requests = plans.list(count, (index) => {
    const timeout = plans.maybe(random, 0.7, () => plans.int(random, 1, 8))
    const processingTimeout = plans.maybe(random, 0.5, () => plans.int(random, 1, 5))
    const request = plans.request(random, index, {
      timeout,
      processingTimeout,
      stubborn: plans.maybe(random, 0.2, () => true)
    })
    const bounded = request.stubborn !== true && (timeout !== undefined || processingTimeout !== undefined)
    return bounded && plans.chance(random, 0.2) ? { ...request, end: "never" as const } : request
  })
  return plans.plan({
    limits: plans.limits(random),
    options: {
      capacity: plans.maybe(random, 0.6, () => plans.int(random, 1, 3)),
      strategy: plans.pick(random, ["suspend", "suspend", "reject", "dropOldest"])
    },
    settles: plans.chance(random, 0.5),
    callers: [
      ...requests.map((request) => ({
        at: plans.int(random, 0, span),
        action: plans.submit(request, plans.chance(random, 0.7))
      })),
      ...requests.filter(() => plans.chance(random, 0.2)).map(({ id }) => ({
        at: plans.int(random, 0, span + 4),
        action: { _tag: "Await" as const, id }
      }))
    ]
  })
}

describe("timeouts", () => {
  it.effect(
    "are told at their instant, race what they meet, and stop nobody else",
    () => explore("timeouts", expiring, 600),
    patience
  )
})
