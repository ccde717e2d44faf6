import { assert, describe, it } from "@effect/vitest"
import type { Entry } from "../../src/internal/entry.ts"
import { Scheduler } from "../../src/internal/scheduler.ts"
import * as random from "../model/random.ts"

interface Request {
  readonly id: number
  readonly tenant: string | undefined
  readonly cost: number
  readonly submittedAt: number
  headStart: number
  order: unknown
  sequence: number
}

const request = (id: number, tenant: string | undefined, cost: number, submittedAt = id, headStart = 0): Request => ({
  id,
  tenant,
  cost,
  submittedAt,
  headStart,
  order: undefined,
  sequence: id
})

// The scheduler reads no more of an entry than this.
const entry = (request: Request) => request as unknown as Entry
const own = (entry: Entry | undefined) => entry as unknown as Request

const make = (weights: Readonly<Record<string, number>> = {}) =>
  new Scheduler((tenant) => weights[tenant ?? ""] ?? 1, (entry) => own(entry).cost)

/** Serves the first one in order. */
const serve = (scheduler: Scheduler): Request => {
  const first = scheduler.peek()
  assert(first !== undefined)
  scheduler.serve(first)
  scheduler.remove(first)
  return own(first)
}

describe("Scheduler", () => {
  it("orders by submission time less the head start, and keeps the order of equals", () => {
    const scheduler = make()
    const requests = [request(0, "a", 1, 10), request(1, "a", 1, 10), request(2, "a", 1, 12, 5), request(3, "a", 1, 9)]
    for (const each of requests) scheduler.add(entry(each))
    assert.deepStrictEqual([0, 1, 2, 3].map(() => serve(scheduler).id), [2, 3, 0, 1])
    assert.isUndefined(scheduler.peek())
  })

  it("those of the same time keep the order of acceptance, whenever they come", () => {
    const scheduler = make()
    const [first, second] = [request(0, "a", 1, 5), request(1, "a", 1, 5)]
    scheduler.add(entry(second))
    scheduler.add(entry(first))
    assert.strictEqual(serve(scheduler), first)
    scheduler.add(entry(first))
    assert.strictEqual(serve(scheduler), first)
  })

  it("tenants take turns, whatever their priorities and however many requests they have", () => {
    const scheduler = make()
    for (let i = 0; i < 50; i++) scheduler.add(entry(request(i, "loud", 1, i, 86_400_000)))
    for (let i = 50; i < 55; i++) scheduler.add(entry(request(i, "quiet", 1)))
    const served = Array.from({ length: 10 }, () => serve(scheduler).tenant)
    assert.strictEqual(served.filter((tenant) => tenant === "quiet").length, 5)
  })

  it("idleness saves nothing: who comes back does not catch up", () => {
    const scheduler = make()
    for (let i = 0; i < 100; i++) scheduler.add(entry(request(i, "a", 1)))
    scheduler.add(entry(request(100, "b", 1)))
    for (let i = 0; i < 60; i++) serve(scheduler)
    for (let i = 200; i < 220; i++) scheduler.add(entry(request(i, "b", 1)))
    const served = Array.from({ length: 10 }, () => serve(scheduler).tenant)
    assert.strictEqual(served.filter((tenant) => tenant === "b").length, 5)
  })

  it("one that leaves and comes back at once gains nothing", () => {
    const scheduler = make()
    for (let i = 0; i < 200; i++) scheduler.add(entry(request(i, "a", 1)))
    let served = 0
    for (let i = 0; i < 40; i++) {
      scheduler.add(entry(request(1000 + i, "b", 3)))
      for (;;) {
        served++
        if (serve(scheduler).tenant === "b") break
      }
    }
    // Three of a for one of b.
    assert.isTrue(served >= 150 && served <= 165, `${served}`)
  })

  it("a tenant that is held is left out until its time, or until something happens to it", () => {
    const scheduler = make()
    const requests = ["a", "a", "b", "b"].map((tenant, id) => request(id, tenant, 1))
    for (const each of requests) scheduler.add(entry(each))
    scheduler.hold(entry(requests[0]!), 50, "itself")
    assert.strictEqual(scheduler.resume(0), 50)
    scheduler.happened("b")
    assert.strictEqual(own(scheduler.peek()).tenant, "b")
    scheduler.hold(entry(requests[2]!), Number.POSITIVE_INFINITY, "others")
    assert.isUndefined(scheduler.peek())
    scheduler.happened("a")
    assert.strictEqual(serve(scheduler).tenant, "a")
    // Held by others: anything that happens releases it.
    assert.strictEqual(serve(scheduler).tenant, "b")
    scheduler.hold(entry(requests[1]!), 70, "itself")
    assert.strictEqual(own(scheduler.peek()).tenant, "b")
    assert.strictEqual(scheduler.resume(69), 70)
    assert.strictEqual(scheduler.resume(70), Number.POSITIVE_INFINITY)
    assert.sameMembers([serve(scheduler).tenant, serve(scheduler).tenant], ["a", "b"])
  })

  it("tenants without waiting requests are forgotten", () => {
    const scheduler = make()
    scheduler.add(entry(request(0, "busy", 1)))
    scheduler.add(entry(request(1, "busy", 1)))
    for (let i = 2; i < 1000; i++) {
      scheduler.add(entry(request(i, `t${i}`, 1)))
      scheduler.add(entry(request(1000 + i, "busy", 1)))
      serve(scheduler)
      serve(scheduler)
      assert.isAtMost(scheduler.size, 5)
    }
    while (scheduler.peek() !== undefined) serve(scheduler)
    assert.strictEqual(scheduler.size, 0)
  })

  it("law: while two tenants wait, |Si/wi − Sj/wj| is at most ci/wi + cj/wj; what is let past keeps it", () => {
    for (let seed = 1; seed <= 300; seed++) {
      const choose = random.make(seed)
      const names = ["a", "b", "c", "d"].slice(0, choose.int(2, 4))
      const weights = Object.fromEntries(names.map((name) => [name, choose.pick([0.1, 0.5, 1, 2, 3, 10])]))
      const scheduler = make(weights)
      const largest = Object.fromEntries(names.map((name) => [name, choose.pick([0.01, 0.1, 0.5, 1])]))
      const waiting = new Map(names.map((name) => [name, new Map<number, number>()]))
      const held = new Set<string>()
      /** What each of a pair was served since both have waiting requests and neither is held. */
      const since = new Map<string, { a: number; b: number }>()
      const isIn = (name: string) => waiting.get(name)!.size > 0 && !held.has(name)
      const update = () => {
        for (const a of names) {
          for (const b of names) {
            if (a >= b) continue
            const key = `${a} ${b}`
            if (!isIn(a) || !isIn(b)) since.delete(key)
            else if (!since.has(key)) since.set(key, { a: 0, b: 0 })
          }
        }
      }
      let id = 0
      for (let step = 0; step < 400; step++) {
        const action = choose.int(0, 9)
        const first = scheduler.peek()
        if (action < 4 || first === undefined) {
          const tenant = choose.pick(names)
          const cost = largest[tenant]! * choose.pick([0.001, 0.3, 1])
          const headStart = choose.pick([0, 1000])
          // What is held is the first request: a new first one is not.
          const places = waiting.get(tenant)!
          if (step - headStart < Math.min(...places.values())) held.delete(tenant)
          places.set(id, step - headStart)
          scheduler.add(entry(request(id++, tenant, cost, step, headStart)))
        } else if (action === 4) {
          held.add(own(first).tenant!)
          scheduler.hold(first, Number.POSITIVE_INFINITY, "itself")
        } else if (action === 5 && held.size > 0) {
          const tenant = choose.pick([...held])
          held.delete(tenant)
          scheduler.happened(tenant)
        } else {
          const past = action === 6 ? scheduler.behind(first, 8) : []
          const next = past.length > 0 ? choose.pick([...past]) : first
          const { cost, id, tenant } = own(next)
          assert.isFalse(held.has(tenant!), `seed ${seed}`)
          scheduler.serve(next)
          scheduler.remove(next)
          waiting.get(tenant!)!.delete(id)
          for (const [key, served] of since) {
            const [a, b] = key.split(" ") as [string, string]
            if (a === tenant) served.a += cost
            if (b === tenant) served.b += cost
            const apart = Math.abs(served.a / weights[a]! - served.b / weights[b]!)
            const most = largest[a]! / weights[a]! + largest[b]! / weights[b]!
            assert.isAtMost(apart, most + 1e-9, `seed ${seed}, step ${step}: ${key}`)
          }
        }
        update()
      }
    }
  })
})
