/** The order in which requests are listed: what is processed first, then by the time of submission less the head start. */
import type { Entry } from "./entry.ts"
import { addCost, emptySum, type Sum } from "./lane.ts"

const isRunning = ({ state }: Entry): number => state === "dispatched" ? 1 : 0

const compare = (a: Entry, b: Entry): number =>
  isRunning(b) - isRunning(a)
  || a.submittedAt - a.headStart - (b.submittedAt - b.headStart)
  || (a.sequence ?? 0) - (b.sequence ?? 0)

/** The first `count` of many, in order, without sorting the others. */
export const first = (entries: ReadonlyArray<Entry>, count: number): ReadonlyArray<Entry> => {
  const most = Math.max(2 * count, 64)
  let found: Array<Entry> = []
  let last: Entry | undefined
  for (const entry of entries) {
    if (last !== undefined && compare(entry, last) > 0) continue
    found.push(entry)
    if (found.length < most) continue
    found = found.toSorted(compare).slice(0, count)
    last = found.at(-1)
  }
  return found.toSorted(compare).slice(0, count)
}

/** What of `all` that wait goes before each of `some` of them, which are in order: requests of the same tenant only. */
export const before = (some: ReadonlyArray<Entry>, all: Iterable<Entry>): ReadonlyMap<Entry, Sum> => {
  const sums = new Map<Entry, Sum>()
  const byTenant = new Map<string | undefined, Array<Entry>>()
  for (const entry of some) {
    sums.set(entry, emptySum())
    const others = byTenant.get(entry.tenant)
    if (others === undefined) byTenant.set(entry.tenant, [entry])
    else others.push(entry)
  }
  for (const entry of all) {
    const own = byTenant.get(entry.tenant)
    // Nearly all go behind those that are listed.
    if (own === undefined || compare(own.at(-1)!, entry) <= 0) continue
    // The first one of its tenant that it goes before.
    let low = 0
    let high = own.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (compare(own[middle]!, entry) > 0) high = middle
      else low = middle + 1
    }
    addCost(sums.get(own[low]!)!, entry.cost)
  }
  for (const own of byTenant.values()) {
    for (let i = 1; i < own.length; i++) {
      const sum = sums.get(own[i]!)!
      const earlier = sums.get(own[i - 1]!)!
      for (const key of Object.keys(sum) as Array<keyof Sum>) sum[key] += earlier[key]
    }
  }
  return sums
}
