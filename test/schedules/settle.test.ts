import { describe, it } from "@effect/vitest"
import type { Action, Limit, Plan } from "./history.ts"
import * as plans from "./plans.ts"
import type { Random } from "./seededScheduler.ts"
import { explore, patience } from "./simulation.ts"

/** Usage comes from results and from reports, before, while and after it is needed, and more than once. */
const settling = (random: Random): Plan => {
  const count = plans.int(random, 2, 7)
  const span = plans.int(random, 0, 8)
  const report = (id: string): Action => ({ _tag: "Report", id, usage: plans.tokens(random) })
  const chargedAt = () => plans.pick(random, ["dispatch", "dispatch", "dispatch", "completion", "production"] as const)
  const limits: ReadonlyArray<Limit> = [
    {
      type: plans.pick(random, ["tpm", "itpm", "otpm"]),
      limit: plans.int(random, 12, 24),
      period: plans.int(random, 2, 10),
      chargedAt: chargedAt()
    },
    ...(plans.chance(random, 0.5)
      ? [{
        type: "tpd" as const,
        limit: plans.int(random, 16, 40),
        period: plans.int(random, 8, 16),
        chargedAt: chargedAt()
      }]
      : []),
    ...(plans.chance(random, 0.5) ? [{ type: "concurrent" as const, limit: plans.int(random, 1, 2), period: 0 }] : [])
  ]
  const requests = plans.list(count, (index) =>
    plans.request(random, index, {
      end: plans.pick(random, ["succeed", "succeed", "succeed", "fail", "interrupt"]),
      actions: plans.chance(random, 0.3) ? [report(plans.id(index))] : []
    }))
  const reports = plans.int(random, 1, 8)
  return plans.plan({
    limits,
    settles: plans.chance(random, 0.6),
    callers: [
      ...requests.map((request) => ({
        at: plans.int(random, 0, span),
        action: plans.submit(request, plans.chance(random, 0.6))
      })),
      ...plans.list(reports, (): { readonly at: number; readonly action: Action } => {
        const { id } = plans.pick(random, requests)
        return {
          at: plans.int(random, 0, span + 12),
          action: plans.chance(random, 0.5) ? report(id) : { _tag: "Together", actions: [report(id), report(id)] }
        }
      }),
      ...plans.list(plans.int(random, 0, 2), () => ({
        at: plans.int(random, 0, span),
        action: { _tag: "Cancel" as const, id: plans.pick(random, requests).id }
      }))
    ],
    onStart: plans.list(plans.int(random, 0, 2), () => {
      const { id } = plans.pick(random, requests)
      return { id, action: report(id) }
    })
  })
}

describe("settlement", () => {
  it.effect(
    "counts once, at the date of the charge, whoever reports the usage first",
    () => explore("settle", settling, 600),
    patience
  )
})
