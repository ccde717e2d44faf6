/** Which of the requests that a queue holds are meant by a filter, and which of them come first. */
import * as QueueError from "../QueueError.ts"
import type * as QueueManager from "../QueueManager.ts"
import { type Entry, type EntryList, type EntrySet, response } from "./entry.ts"
import type { Heap } from "./heap.ts"
import type { Sum } from "./lane.ts"
import * as order from "./order.ts"
import type { Scheduler } from "./scheduler.ts"
import * as settings from "./settings.ts"

/** What a queue holds. */
export interface Contents {
  readonly modelId: string
  readonly suspended: EntryList
  /** In order of acceptance, wherever else they are: `nested`, `delayed` or in the scheduler. */
  readonly waiting: EntryList
  readonly nested: ReadonlySet<Entry>
  readonly delayed: Heap<Entry>
  readonly running: EntrySet
  readonly scheduler: Scheduler
  readonly now: () => number
}

const invalid = ({ modelId }: Contents, problems: ReadonlyArray<string>) =>
  new QueueError.InvalidRequest({ modelId, requestId: "", problems })

/** Those that have not ended and are meant, what is being processed first. */
export const meant = (
  contents: Contents,
  filter: QueueManager.RequestFilter
): Array<Entry> | QueueError.InvalidRequest => {
  const { now, running, suspended, waiting } = contents
  const matches = settings.requestFilter(filter)
  if (typeof matches !== "function") return invalid(contents, matches)
  const at = now()
  const meant: Array<Entry> = []
  // There may be very many, so one description and one function serve them all.
  let entry: Entry
  const described: settings.Described = { id: "", tenant: "", labels: {}, headStart: 0, status: "pending", age: 0 }
  const responseTo = () => response(entry, at)
  try {
    // Somebody else's function may change the lists.
    const held = filter.where === undefined ? [suspended, waiting] : [Array.from(suspended), Array.from(waiting)]
    for (const list of [Array.from(running), ...held]) {
      for (entry of list) {
        if (entry.outcome !== undefined) continue
        described.id = entry.id
        described.tenant = entry.tenant
        described.labels = entry.request!.labels
        described.headStart = entry.headStart
        described.status = entry.state === "dispatched" ? "processing" : "pending"
        described.age = at - entry.submittedAt
        if (matches(described, responseTo)) meant.push(entry)
      }
    }
  } catch (error) {
    return invalid(contents, [`filter.where: threw ${settings.show(error)}`])
  }
  return meant
}

/**
 * Those that a list begins with if it is of all, or of all with a status, without going through all that wait; as long as
 * they are all in order.
 */
const firstOnes = (
  { delayed, nested, running, scheduler, suspended, waiting }: Contents,
  filter: QueueManager.RequestFilter,
  most: number
): Array<Entry> | undefined => {
  if (typeof settings.requestFilter(filter) !== "function") return undefined
  const { status, ...others } = filter
  if (Object.values(others).some((condition) => condition !== undefined)) return undefined
  if (scheduler.count + delayed.size + nested.size !== waiting.size) return undefined
  const pending = status === "processing" ? [] : [
    ...suspended,
    ...nested,
    ...delayed.values(),

    ...scheduler.earliest(most)
  ]
  return [...(status === "pending" ? [] : running), ...pending].filter(({ outcome }) => outcome === undefined)
}

/** The first of those that are meant, and what goes before each of them that waits. */
export const list = (
  contents: Contents,
  filter: QueueManager.RequestFilter,
  limit: unknown
):
  | { readonly listed: ReadonlyArray<Entry>; readonly ahead: ReadonlyMap<Entry, Sum> }
  | QueueError.InvalidRequest =>
{
  const problems: Array<string> = []
  const most = settings.whole("limit", limit, 100, problems)
  if (problems.length > 0) return invalid(contents, problems)
  const firsts = firstOnes(contents, filter, most)
  const among = firsts ?? meant(contents, filter)
  if (!Array.isArray(among)) return among
  const listed = order.first(among, most)
  const pending = listed.filter(({ state }) => state !== "dispatched")
  // Of all that wait, all that go before one of the list are in it.
  const accepted = firsts === undefined ? contents.waiting : pending.filter(({ state }) => state === "waiting")
  return { listed, ahead: order.before(pending, accepted) }
}
