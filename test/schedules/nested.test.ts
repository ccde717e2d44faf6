import { describe, it } from "@effect/vitest"
import type { Action, Limit, Plan, Request } from "./history.ts"
import * as plans from "./plans.ts"
import type { Random } from "./seededScheduler.ts"
import { explore, patience } from "./simulation.ts"

/** Processors submit to their own queue, to any depth, and wait for what they and others submitted. */
const nesting = (random: Random): Plan => {
  const budget = plans.int(random, 2, 9)
  let next = 0
  const make = (depth: number): Request => {
    const index = next++
    const actions: Array<Action> = []
    if (depth < 3) {
      while (next < budget && plans.chance(random, 0.6)) actions.push(...ask(depth, index))
    }
    return plans.request(random, index, {
      work: plans.int(random, 0, 2),
      actions,
      end: plans.pick(random, ["succeed", "succeed", "succeed", "fail"]),
      timeout: plans.maybe(random, 0.15, () => plans.int(random, 2, 20)),
      processingTimeout: plans.maybe(random, 0.25, () => plans.int(random, 1, 4))
    })
  }
  const ask = (depth: number, asker: number): ReadonlyArray<Action> => {
    const kind = plans.pick(random, ["submit", "accept", "await", "acceptAndAwait", "together", "together"])
    // Only for younger ones: nobody waits in a circle.
    if (kind === "await") return [{ _tag: "Await", id: plans.id(asker + plans.int(random, 1, 4)) }]
    const request = make(depth + 1)
    if (kind === "submit") return [plans.submit(request, true)]
    if (kind === "accept") return [plans.submit(request, false)]
    if (kind === "acceptAndAwait") return [plans.submit(request, false), { _tag: "Await", id: request.id }]
    return [{ _tag: "Together", actions: [plans.submit(request, true), ...ask(depth, asker)] }]
  }
  const callers: Array<Plan["callers"][number]> = []
  while (next < budget) {
    callers.push({ at: plans.int(random, 0, 4), action: plans.submit(make(0), plans.chance(random, 0.7)) })
  }
  const limits: ReadonlyArray<Limit> = [
    { type: "concurrent", limit: plans.pick(random, [1, 1, 1, 2]), period: 0 },
    ...(plans.chance(random, 0.4)
      ? [{ type: "rpm" as const, limit: plans.int(random, 1, 3), period: plans.int(random, 2, 6) }]
      : [])
  ]
  return plans.plan({
    limits,
    options: { capacity: plans.maybe(random, 0.5, () => plans.int(random, 1, 3)) },
    callers: [
      ...callers,
      ...plans.list(plans.int(random, 0, 3), (): Plan["callers"][number] => ({
        at: plans.int(random, 0, 10),
        action: { _tag: plans.pick(random, ["Cancel", "Interrupt"]), id: plans.id(plans.int(random, 0, budget - 1)) }
      }))
    ]
  })
}

describe("nested submits", () => {
  it.effect(
    "never wait for the permit of their own ancestor, and never take more than there are",
    () => explore("nested", nesting, 1_200),
    patience
  )
})
