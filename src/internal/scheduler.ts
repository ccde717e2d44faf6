/**
 * Who goes next: fair among tenants, by priority and age inside one.
 *
 * **Among tenants** it is start-time fair queueing. Each tenant has a tag: what it was served so far, divided by its
 * weight. The one with the smallest tag goes next, and its tag grows by the cost of what it is served. One that comes
 * back starts at the tag of the one served last, so that idleness saves nothing. Then for two tenants that have waiting
 * requests all the time, the difference of their tags stays within [−a, b], where a and b are their largest costs
 * divided by their weights: the difference of what they are served meanwhile is at most a + b.
 *
 * **Inside a tenant** the order is by submission time less the head start, so whoever has waited long enough is first.
 *
 * A tenant whose first request is held, by limits of its own, is left out until that may go, or another one is the
 * first, and then starts like one that comes back.
 */
import type { Entry } from "./entry.ts"
import { Heap, type Node } from "./heap.ts"
import { emptySum, Lane, type Sum } from "./lane.ts"
import * as order from "./order.ts"

/** What requests cost together. */
export interface Tenant {
  readonly id: string | undefined
  readonly weight: number
  /** Its waiting requests, by head start. */
  readonly lanes: Map<number, Lane>
  /** Its lanes, by their first ones. */
  readonly order: Heap<Lane>
  /** How many of its requests wait. */
  size: number
  tag: number
  /** The largest cost that it was served since it came, divided by its weight. */
  largest: number
  /** Among those that may go, by tag. */
  place: Node<Tenant> | undefined
  /** Among those that are held, by time. */
  held: Node<Tenant> | undefined
}

const add = (sum: Sum, lane: Lane, part: number): void => {
  sum.requests += lane.requests * part
  sum.inputTokens += lane.inputTokens * part
  sum.cachedInputTokens += lane.cachedInputTokens * part
  sum.outputTokens += lane.outputTokens * part
  sum.maxOutputTokens += lane.maxOutputTokens * part
}

const first = ({ order }: Tenant): Entry | undefined => order.peek()?.value.peek()

export class Scheduler {
  private readonly weightOf: (tenant: string | undefined) => number
  private readonly costOf: (entry: Entry) => number
  /** Those with waiting requests, and those that have been served more than the others. */
  private readonly tenants = new Map<string | undefined, Tenant>()
  private readonly ready = new Heap<Tenant>()
  private readonly held = new Heap<Tenant>()
  /** Without waiting requests, by tag. */
  private readonly idle = new Heap<Tenant>()
  private readonly heldByOthers = new Set<Tenant>()
  /** Counts what may end a hold. */
  changes = 0
  /** How many requests are in order. */
  count = 0
  /** The tag of the tenant served last, before it was served. */
  private virtualTime = 0

  constructor(weightOf: (tenant: string | undefined) => number, costOf: (entry: Entry) => number) {
    this.weightOf = weightOf
    this.costOf = costOf
  }

  /** How many tenants are in memory. */
  get size(): number {
    return this.tenants.size
  }

  get isHolding(): boolean {
    return this.held.size > 0
  }

  /** Puts an entry in its place: by its head start, then in the order of acceptance. */
  add(entry: Entry): void {
    const tenant = this.tenants.get(entry.tenant) ?? this.come(entry.tenant)
    const isBack = tenant.size++ === 0 && tenant.held === undefined
    this.count++
    let lane = tenant.lanes.get(entry.headStart)
    if (lane === undefined) tenant.lanes.set(entry.headStart, lane = new Lane(entry.headStart))
    lane.add(entry)
    if (lane.place === undefined) lane.place = tenant.order.add(lane.key, lane, entry.sequence)
    else if (entry.early !== undefined) tenant.order.update(lane.place, lane.key, lane.peek()!.sequence!)
    if (tenant.held !== undefined && first(tenant) === entry) this.release(tenant)
    if (!isBack) return
    if (tenant.place !== undefined) this.idle.remove(tenant.place)
    this.start(tenant)
  }

  /** Takes an entry out that is in order. */
  remove(entry: Entry): void {
    const tenant = this.tenants.get(entry.tenant)!
    const wasFirst = tenant.held !== undefined && first(tenant) === entry
    const lane = entry.lane!
    lane.remove(entry)
    this.count--
    const next = lane.peek()
    if (next === undefined) {
      tenant.order.remove(lane.place!)
      tenant.lanes.delete(lane.headStart)
    } else tenant.order.update(lane.place!, lane.key, next.sequence!)
    if (--tenant.size === 0) this.leave(tenant)
    else if (wasFirst) this.release(tenant)
  }

  /** An entry costs something else from now on. */
  recount(entry: Entry, cost: Entry["cost"]): void {
    entry.lane?.count(entry, -1)
    entry.cost = cost
    entry.lane?.count(entry, 1)
  }

  /** The first in order of those that are not held. */
  peek(): Entry | undefined {
    const tenant = this.ready.peek()?.value
    return tenant === undefined ? undefined : first(tenant)
  }

  /** An entry is served: to be called before it is removed. Also for one that is not in order. */
  serve(entry: Entry): void {
    // Alone, it need not be compared with anybody.
    if (this.tenants.size === 0 || (this.tenants.size === 1 && this.tenants.has(entry.tenant))) return
    const tenant = this.tenants.get(entry.tenant) ?? this.come(entry.tenant)
    const cost = this.costOf(entry) / tenant.weight
    const next = this.ready.peek()
    if (next !== undefined) this.virtualTime = Math.max(this.virtualTime, next.value.tag)
    tenant.tag += cost
    tenant.largest = Math.max(tenant.largest, cost)
    if (tenant.held !== undefined) return
    const order = tenant.size === 0 ? this.idle : this.ready
    if (tenant.place !== undefined) order.remove(tenant.place)
    tenant.place = order.add(tenant.tag, tenant)
    this.forget()
  }

  /**
   * What would go before a request of a tenant that is submitted now: its own requests of the same head start or more,
   * and, with `others`, as much of those of other tenants as their weights allow meanwhile. Older ones of a lower head
   * start are left out.
   */
  ahead(id: string | undefined, headStart: number, others: boolean): Sum {
    const ahead = emptySum()
    for (const lane of this.tenants.get(id)?.lanes.values() ?? []) if (lane.headStart >= headStart) add(ahead, lane, 1)
    return others ? this.withOthers(id, ahead) : ahead
  }

  /** Adds as much of other tenants as their weights allow until so much of a tenant's own has gone. */
  withOthers(id: string | undefined, own: Sum): Sum {
    if (this.tenants.size < 2) return own
    const weight = this.tenants.get(id)?.weight ?? this.weightOf(id)
    const turns = own.requests + 1
    for (const tenant of this.tenants.values()) {
      if (tenant.id === id || tenant.size === 0) continue
      const part = Math.min(1, (turns * tenant.weight) / weight / tenant.size)
      for (const lane of tenant.lanes.values()) add(own, lane, part)
    }
    return own
  }

  /**
   * The next ones behind the first, at most `count`: those of its own tenant, and the first ones of others whose share
   * allows that they go now.
   */
  behind(head: Entry, count: number): ReadonlyArray<Entry> {
    const tenant = this.tenants.get(head.tenant)!
    const place = (entry: Entry) => entry.submittedAt - entry.headStart
    const found = tenant.order.first(count + 1).flatMap(({ value: lane }) => lane.first(count + 1))
      .filter((entry) => entry !== head)
      .toSorted((a, b) => place(a) - place(b) || a.sequence! - b.sequence!)
    if (this.ready.size === 1) return found.slice(0, count)
    const others = this.ready.first(count + 1).flatMap(({ value: other }) => {
      if (other === tenant) return []
      const entry = first(other)!
      const cost = this.costOf(entry) / other.weight
      return other.tag + cost <= tenant.tag + Math.max(other.largest, cost) ? [entry] : []
    })
    return [...others, ...found].slice(0, count)
  }

  /** The first `count` in order of those that are not held, as they go when each of them is served. */
  next(count: number): ReadonlyArray<Entry> {
    const place = (entry: Entry) => entry.submittedAt - entry.headStart
    const tenants = this.ready.first(count).map(({ value: { order, tag, weight } }) => ({
      tag,
      weight,
      entries: order.first(count).flatMap(({ value: lane }) => lane.first(count))
        .toSorted((a, b) => place(a) - place(b) || a.sequence! - b.sequence!)[Symbol.iterator]()
    }))
    const found: Array<Entry> = []
    while (found.length < count && tenants.length > 0) {
      const least = tenants.reduce((least, tenant) => tenant.tag < least.tag ? tenant : least)
      const { done, value } = least.entries.next()
      if (done) {
        tenants.splice(tenants.indexOf(least), 1)
        continue
      }
      found.push(value)
      least.tag += this.costOf(value) / least.weight
    }
    return found
  }

  /** The first ones of all tenants by the time of submission less the head start, as `order` has them. */
  earliest(count: number): ReadonlyArray<Entry> {
    const lanes = Array.from(this.tenants.values(), ({ lanes }) => [...lanes.values()]).flat()
    let found: ReadonlyArray<Entry> = []
    for (const lane of lanes.toSorted((a, b) => a.key - b.key)) {
      const last = found[count - 1]
      if (last !== undefined && lane.key > last.submittedAt - last.headStart) break
      found = order.first([...found, ...lane.first(count)], count)
    }
    return found
  }

  /**
   * Leaves its tenant out: until a time, or until something happens to itself, or to anybody, that may end it. Only if
   * nothing has happened since what says so was asked, and it is still the first: `changes` is what it was before that.
   */
  hold(entry: Entry, until: number, by: "itself" | "others", changes = this.changes): void {
    const tenant = this.tenants.get(entry.tenant)!
    if (changes !== this.changes || first(tenant) !== entry) return
    this.ready.remove(tenant.place!)
    tenant.place = undefined
    tenant.held = this.held.add(until, tenant)
    if (by === "others") this.heldByOthers.add(tenant)
  }

  /** Releases those whose time has come, and says when the next one's does. */
  resume(now: number): number {
    for (let node = this.held.peek(); node !== undefined; node = this.held.peek()) {
      if (node.key > now) return node.key
      this.release(node.value)
    }
    return Number.POSITIVE_INFINITY
  }

  /** Something that the tenant did is over, or was settled: it may go on, and those that others hold. */
  happened(id: string | undefined): void {
    this.changes++
    if (this.held.size === 0) return
    const tenant = this.tenants.get(id)
    if (tenant?.held !== undefined) this.release(tenant)
    for (const other of this.heldByOthers) this.release(other)
  }

  /** Releases everybody. */
  releaseAll(): void {
    this.changes++
    for (let node = this.held.peek(); node !== undefined; node = this.held.peek()) this.release(node.value)
  }

  private come(id: string | undefined): Tenant {
    const tenant: Tenant = {
      id,
      weight: this.weightOf(id),
      lanes: new Map(),
      order: new Heap(),
      size: 0,
      tag: this.virtualTime,
      largest: 0,
      place: undefined,
      held: undefined
    }
    this.tenants.set(id, tenant)
    return tenant
  }

  private start(tenant: Tenant): void {
    tenant.tag = Math.max(tenant.tag, this.virtualTime)
    tenant.place = this.ready.add(tenant.tag, tenant)
  }

  private release(tenant: Tenant): void {
    this.held.remove(tenant.held!)
    tenant.held = undefined
    this.heldByOthers.delete(tenant)
    this.start(tenant)
  }

  /** Its last waiting request is gone. */
  private leave(tenant: Tenant): void {
    if (tenant.held !== undefined) {
      this.held.remove(tenant.held)
      tenant.held = undefined
      this.heldByOthers.delete(tenant)
    } else this.ready.remove(tenant.place!)
    tenant.place = this.idle.add(tenant.tag, tenant)
    if (this.ready.size === 0 && this.held.size === 0) {
      // Nobody waits for anybody: all start anew.
      for (let node = this.idle.peek(); node !== undefined; node = this.idle.peek()) this.drop(node)
      this.virtualTime = 0
    } else this.forget()
  }

  /** Those that have no more than they would start with are forgotten. */
  private forget(): void {
    for (let node = this.idle.peek(); node !== undefined && node.key <= this.virtualTime; node = this.idle.peek()) {
      this.drop(node)
    }
  }

  private drop(node: Node<Tenant>): void {
    this.idle.remove(node)
    this.tenants.delete(node.value.id)
  }
}
