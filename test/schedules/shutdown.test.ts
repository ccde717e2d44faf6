import { describe, it } from "@effect/vitest"
import { type Action, type Plan, step } from "./history.ts"
import * as plans from "./plans.ts"
import type { Random } from "./seededScheduler.ts"
import { explore, patience } from "./simulation.ts"

/** Queues are closed in all ways, by callers and by processors, once or twice, while requests come. */
const closing = (random: Random): Plan => {
  const count = plans.int(random, 2, 8)
  const span = plans.int(random, 0, 6)
  const options = () => ({
    policy: plans.pick(random, ["drain", "finishRunning", "interrupt"] as const),
    deadline: plans.int(random, 0, 12) * step
  })
  const close = (): Action => ({
    _tag: "Close",
    what: plans.pick(random, [
      { _tag: "ShutdownAll", options: plans.maybe(random, 0.7, options) },
      { _tag: "Unregister" },
      { _tag: "CloseRegistration" }
    ]),
    patience: plans.maybe(random, 0.2, () => plans.int(random, 0, 4))
  })
  const requests = plans.list(count, (index) => {
    const request = plans.request(random, index, {
      stubborn: plans.maybe(random, 0.15, () => true),
      actions: plans.chance(random, 0.15)
        ? [plans.chance(random, 0.5) ? close() : { _tag: "Together", actions: [close(), close()] }]
        : []
    })
    return request.stubborn !== true && plans.chance(random, 0.1) ? { ...request, end: "never" as const } : request
  })
  return plans.plan({
    limits: plans.limits(random),
    options: {
      capacity: plans.maybe(random, 0.6, () => plans.int(random, 1, 3)),
      strategy: plans.pick(random, ["suspend", "suspend", "reject", "dropOldest"]),
      shutdown: options()
    },
    settles: plans.chance(random, 0.3),
    callers: [
      ...requests.map((request) => ({
        at: plans.int(random, 0, span + 4),
        action: plans.submit(request, plans.chance(random, 0.7))
      })),
      ...plans.list(plans.int(random, 1, 2), () => ({ at: plans.int(random, 0, span + 4), action: close() })),
      // Ends what never would.
      {
        at: span + 12,
        action: { _tag: "Close", what: { _tag: "ShutdownAll", options: { policy: "interrupt", deadline: 0 } } }
      }
    ],
    onStart: plans.list(plans.int(random, 0, 1), () => ({ id: plans.pick(random, requests).id, action: close() }))
  })
}

describe("closing", () => {
  it.effect(
    "in any way, at any point, twice or from inside a processor, tells everybody and ends by its deadline",
    () => explore("shutdown", closing, 600),
    patience
  )
})
