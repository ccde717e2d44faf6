/**
 * The waiting requests of one tenant that have the same head start: by the time of their submission, then in the order
 * of their acceptance. Nearly all come in that order and form a list; those that come back to an earlier place, after
 * a refusal or with another priority, are in a heap beside it.
 */
import type { Entry } from "./entry.ts"
import { Heap, type Node } from "./heap.ts"

const isBefore = (a: Entry, b: Entry): boolean =>
  a.submittedAt < b.submittedAt || (a.submittedAt === b.submittedAt && a.sequence! < b.sequence!)

const byOrder = (a: Entry, b: Entry): number => isBefore(a, b) ? -1 : 1

/** How many requests, and what they cost together. */
export interface Sum {
  requests: number
  inputTokens: number
  cachedInputTokens: number
  outputTokens: number
  maxOutputTokens: number
}

export const emptySum = (): Sum => ({
  requests: 0,
  inputTokens: 0,
  cachedInputTokens: 0,
  outputTokens: 0,
  maxOutputTokens: 0
})

export const addCost = (sum: Sum, cost: Entry["cost"], times = 1): void => {
  sum.requests += times
  sum.inputTokens += times * cost.inputTokens
  sum.cachedInputTokens += times * (cost.cachedInputTokens ?? 0)
  sum.outputTokens += times * cost.outputTokens
  sum.maxOutputTokens += times * (cost.maxOutputTokens ?? cost.outputTokens)
}

export class Lane implements Sum {
  readonly headStart: number
  /** Among the lanes of its tenant, by its first one. */
  place: Node<Lane> | undefined
  /** What its requests cost together. */
  requests = 0
  inputTokens = 0
  cachedInputTokens = 0
  outputTokens = 0
  maxOutputTokens = 0
  private head: Entry | undefined
  private last: Entry | undefined
  private readonly early = new Heap<Entry>()

  constructor(headStart: number) {
    this.headStart = headStart
  }

  /** Where its first one is in the order of its tenant. */
  get key(): number {
    return this.peek()!.submittedAt - this.headStart
  }

  add(entry: Entry): void {
    entry.lane = this
    this.count(entry, 1)
    const { last } = this
    if (last !== undefined && isBefore(entry, last)) {
      entry.early = this.early.add(entry.submittedAt, entry, entry.sequence)
      return
    }
    entry.ahead = last
    if (last === undefined) this.head = entry
    else last.behind = entry
    this.last = entry
  }

  remove(entry: Entry): void {
    entry.lane = undefined
    this.count(entry, -1)
    if (entry.early !== undefined) {
      this.early.remove(entry.early)
      entry.early = undefined
      return
    }
    const { ahead, behind } = entry
    if (ahead === undefined) this.head = behind
    else ahead.behind = behind
    if (behind === undefined) this.last = ahead
    else behind.ahead = ahead
    entry.ahead = entry.behind = undefined
  }

  peek(): Entry | undefined {
    const early = this.early.peek()?.value
    const { head } = this
    return early !== undefined && (head === undefined || isBefore(early, head)) ? early : head
  }

  /** The first ones, in order, without taking them out. */
  first(count: number): ReadonlyArray<Entry> {
    const found = this.early.first(count).map(({ value }) => value)
    let left = count
    for (let entry = this.head; entry !== undefined && left > 0; entry = entry.behind, left--) found.push(entry)
    return found.toSorted(byOrder).slice(0, count)
  }

  count({ cost }: Pick<Entry, "cost">, by: 1 | -1): void {
    addCost(this, cost, by)
  }
}
