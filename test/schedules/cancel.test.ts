import { describe, it } from "@effect/vitest"
import type { Action, Plan } from "./history.ts"
import * as plans from "./plans.ts"
import type { Random } from "./seededScheduler.ts"
import { explore, patience } from "./simulation.ts"

/** Requests are cancelled, and their submitters interrupted, at any time and exactly when they are granted. */
const cancelling = (random: Random): Plan => {
  const count = plans.int(random, 2, 8)
  const span = plans.int(random, 0, 6)
  const requests = plans.list(
    count,
    (index) => plans.request(random, index, { stubborn: plans.maybe(random, 0.2, () => true) })
  )
  const strike = (): Action => ({
    _tag: plans.pick(random, ["Cancel", "Interrupt"]),
    id: plans.pick(random, requests).id
  })
  return plans.plan({
    limits: plans.limits(random),
    options: {
      capacity: plans.maybe(random, 0.6, () => plans.int(random, 1, 3)),
      strategy: plans.pick(random, ["suspend", "suspend", "dropOldest"])
    },
    settles: plans.chance(random, 0.5),
    callers: [
      ...requests.map((request) => ({
        at: plans.int(random, 0, span),
        action: plans.submit(request, plans.chance(random, 0.7))
      })),
      ...plans.list(plans.int(random, 1, 8), () => ({ at: plans.int(random, 0, span + 6), action: strike() })),
      ...plans.list(plans.int(random, 0, 2), () => ({
        at: plans.int(random, 0, span),
        action: { _tag: "Await" as const, id: plans.pick(random, requests).id }
      }))
    ],
    onStart: plans.list(plans.int(random, 0, 3), () => ({ id: plans.pick(random, requests).id, action: strike() }))
  })
}

describe("cancellation and interruption", () => {
  it.effect(
    "at any point, the grant included, give everything back and disturb nobody else",
    () => explore("cancel", cancelling, 600),
    patience
  )
})
