/**
 * The limiter of one model, counted on a server that other processes use too.
 *
 * The server decides what fits. What a provider has said, and what becomes of a charge, is worked out here by the same
 * states as in memory: only their meters are others. All that does not need an answer is said later, with what comes next.
 */
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import type * as Redis from "effect/persistence/Redis"
import * as Queue from "effect/Queue"
import * as Random from "effect/Random"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as QueueError from "../../QueueError.ts"
import type * as RateLimiter from "../../RateLimiter.ts"
import { charge, countsTokens, usageOfPermits } from "../limitState.ts"
import * as reservations from "../reservation.ts"
import * as time from "../time.ts"
import type { Cell } from "./cells.ts"
import { cellsOf, type Limits, ModelLimits, read as readLimits, type Shared } from "./limits.ts"
import { type CellAt, Link, type List, list, longestPause, type Operation, type Problem } from "./link.ts"
import { Share } from "./share.ts"
import type { Granted, Outbox, Told } from "./sharedMeter.ts"

export interface Options {
  readonly prefix: string
  /** Milliseconds, like all times here. */
  readonly lease: number
  readonly margin: number
  readonly commandTimeout: number
  readonly whenAway: "wait" | "fail" | "share"
  readonly onConflict: "fail" | "replace"
  /** What is wrong with them. */
  readonly problems: ReadonlyArray<string>
}

/** What the models of a process have in common. */
export interface Process {
  readonly id: string
  readonly redis: Redis.Redis["Service"]
  readonly options: Options
  /** Called when the server has something for a limiter, as long as the scope is open. */
  readonly listen: (limiter: string, f: () => void) => Effect.Effect<void, never, Scope.Scope>
  readonly channel: string
}

interface Reservation extends reservations.Reservation {
  readonly id: string
  /** What a tenant runs. */
  permits: Cell | undefined
}

/** For how long a claim holds whose process does not come when it is its turn. */
const grace = 250
/** How often a process that waits asks, if it is not called. */
const poll = 1000
const longestBeat = 5000
/** What was let in without the server and is told at most: the latest. */
const mostUntold = 20_000

const none: RateLimiter.AdmitOptions = {}

/** Like the reason of a request that waits, but for something that no passing of time brings. */
const wait = (millis: unknown): number => typeof millis === "number" && millis >= 0 ? millis : Number.POSITIVE_INFINITY

export const make = Effect.fnUntraced(function*(
  process: Process,
  modelId: string,
  initial: ReadonlyArray<RateLimiter.Limit>,
  tenants: RateLimiter.Tenants | undefined
) {
  const { channel, options, redis } = process
  const { commandTimeout, lease, margin, onConflict, prefix, whenAway } = options
  if (options.problems.length > 0) {
    return yield* new QueueError.InvalidConfiguration({ modelId, problems: options.problems })
  }
  if (tenants !== undefined && Array.from(tenants.byId.values()).some(({ guaranteed }) => guaranteed > 0)) {
    const problems = ["tenants: nothing can be guaranteed to tenants of limits that processes share; give them limits"]
    return yield* new QueueError.InvalidConfiguration({ modelId, problems })
  }
  const clock = yield* Clock.Clock
  const random = yield* Random.Random
  const now = time.monotonic(clock)
  const changes = yield* Queue.unbounded<RateLimiter.Change>()
  const beat = Math.min(lease / 3, longestBeat)
  /** How long others may need to notice that the server is back: their pauses and their client's, one after the other. */
  const patience = Math.max(beat, Math.min(commandTimeout, longestBeat) + 2 * longestPause) + grace

  // What decides where on a cluster they are must not end early.
  const root = `{${prefix.replaceAll(/[{}]/gu, encodeURIComponent)}:${encodeURIComponent(modelId)}}`
  const keys = ["meta", "permits", "held", "leases", "line", "claims", "members", "replies"]
  const newId = () => Math.floor(random.nextDoubleUnsafe() * 2 ** 53).toString(36)
  /** A process may have several limiters of a model, one after the other or in several managers. */
  const id = `${process.id}:${newId()}`

  let epoch: string | undefined
  /** Whether the server is to be told the limits: at the beginning, when they change, and when it has lost them. */
  let joins: "agrees" | "replaces" | undefined = onConflict === "replace" ? "replaces" : "agrees"
  let joined: string | undefined
  /** How many processes there are. */
  let members = 1
  let conflict: QueueError.LimitConflict | undefined
  let counter = 0
  /** The permits that are taken: whose they are does not matter. */
  const permits = new Set<string>()
  /** Reservations that hold something until they have ended. */
  const undated = new Set<string>()
  /** What runs for tenants that have a limit of it. */
  const running = new Map<string, Cell>()
  let hasBegun = false
  let isWaiting = false

  // What is to be said ----------------------------------------------------------------------------------------------

  const say = (operation: object, cell?: Cell): Operation => ({
    weight: 1,
    say: (indexOf) => cell === undefined ? operation : { ...operation, cell: indexOf(cell) }
  })

  const outbox: Outbox = {
    effects: (id, effects, said) => {
      link.push({
        weight: 1,
        say: (indexOf) => {
          said()
          return {
            op: "effects",
            id,
            list: effects.map(({ by, dates, part }) => [indexOf(part.cell), part.mark, by, dates ?? -1])
          }
        },
        answered: (marks) => {
          for (const [index, mark] of list(marks as List<number | string>).entries()) effects[index]!.part.mark = mark
        }
      })
    },
    redate: (id, parts, amount, late) =>
      link.push({
        weight: 1,
        say: (indexOf) => ({
          op: "redate",
          id,
          late,
          list: parts.map(({ cell, mark }) => [indexOf(cell), mark, amount])
        }),
        answered: (marks) => {
          for (const [index, mark] of list(marks as List<number | string>).entries()) parts[index]!.mark = mark
        }
      }),
    lower: (cell, by, seen, said) =>
      link.push({
        weight: 1,
        say: (indexOf) => {
          said()
          return { op: "lower", by, seen, cell: indexOf(cell) }
        }
      }),
    warm: (cell) => link.push(say({ op: "warm" }, cell))
  }

  const limits = new ModelLimits({
    limits: initial,
    tenants,
    margin,
    outbox,
    clock,
    now,
    random: () => random.nextDoubleUnsafe()
  })

  // What the server says --------------------------------------------------------------------------------------------

  const heard = (
    { epoch: its, sync }: { readonly epoch: string; readonly sync: List<Told> },
    cellAt: CellAt
  ) => {
    if (epoch !== undefined && its !== epoch) { for (const each of replay()) link.push(each) }
    epoch = its
    if (joined === limits.config) joins = undefined
    const at = now()
    // By name: there may be other limits since that was asked.
    const all = new Map(list(sync).map((told, index) => [cellAt(index + 1)!.name, told]))
    for (const { meter, state } of limits.model.shared) {
      const told = all.get(meter.cells[0]!.name)
      if (told === undefined) continue
      const [, , sent, lowered, pausedFor, age] = told
      meter.told(told)
      state.heard({ sent, lowered, pausedFor, isWarm: sent > 0 && age > state.limit.timePeriod! + margin }, at)
    }
  }

  const follow = (text: string) => {
    const next = readLimits(text)
    limits.adopt(next)
    Queue.offerUnsafe(changes, { _tag: "LimitsChanged", limits: next })
    return Effect.as(Effect.logInfo(`Another process has changed the limits of model ${modelId}`), [])
  }

  const mend = (problem: Problem): Effect.Effect<ReadonlyArray<Operation>, string> =>
    Effect.suspend(() => {
      if ("lost" in problem) {
        const wasThere = epoch !== undefined
        epoch = undefined
        joins ??= "agrees"
        if (!wasThere) return Effect.succeed([])
        return Effect.as(
          Effect.logWarning(`The server has lost the state of the limits of model ${modelId}: it is told again`),
          replay()
        )
      }
      if ("changed" in problem) return follow(problem.changed)
      if ("conflict" in problem) {
        const { conflict: theirs, others } = problem
        // The server had lost the state, and they have been told of other limits since.
        if (hasBegun) {
          joins = undefined
          return follow(theirs)
        }
        conflict = new QueueError.LimitConflict({ modelId, ours: limits.written, theirs, processes: others })
        return Effect.fail(conflict.message)
      }
      return Effect.fail("it has heard of later calls of this process")
    })

  /** What this process has charged, as far as it still counts, and no more than that for as long as others may tell. */
  const replay = (): ReadonlyArray<Operation> => {
    const at = now()
    return [
      beats(),
      say({ op: "hold", millis: patience }),
      ...limits.model.shared.flatMap(({ meter }): ReadonlyArray<Operation> => [
        {
          weight: 1,
          say: (indexOf) => ({
            op: "replay",
            list: meter.cells.flatMap((cell) =>
              meter.book!.since(at - cell.length).map(({ amount, at: when }) => [indexOf(cell), at - when, amount])
            )
          })
        },
        say({ op: "pause", millis: patience }, meter.cells[0])
      ])
    ]
  }

  const joining = (): object => {
    joined = joins === undefined ? undefined : limits.config
    return joined === undefined ? {} : {
      join: { limits: limits.written, epoch: newId(), replace: joins === "replaces" }
    }
  }

  const link = yield* Link.make({
    modelId,
    redis,
    commandTimeout,
    keys: keys.map((key) => `${root}:${key}`),
    keyOf: ({ name }) => `${root}:cell:${name}`,
    cells: () => limits.cells,
    describe: (cell, wall) => limits.describe(cell, wall),
    header: () => ({
      pid: id,
      process: process.id,
      config: limits.config,
      epoch,
      lease,
      beat,
      grace,
      patience,
      poll,
      channel,
      permits: limits.permits,
      ...joining(),
      ttl: Math.ceil(2 * lease + 2 * Math.max(60_000, limits.longest))
    }),
    heard,
    mend,
    back: () => {
      for (const each of endShare()) link.push(each)
      link.push(beats())
      Queue.offerUnsafe(changes, { _tag: "Freed" })
    }
  })

  // Admission -------------------------------------------------------------------------------------------------------

  /** What this process knows that keeps a request back: what the provider has said. */
  const heldBack = (cost: RateLimiter.Cost, at: number): RateLimiter.Admission | undefined => {
    let last = at
    let by: RateLimiter.Type | undefined
    for (const { state } of limits.model.shared) {
      const fits = state.fitsAt(charge(state.limit, cost), at)
      if (fits <= last) continue
      last = fits
      by = state.limit.type
    }
    return by === undefined ? undefined : { _tag: "Blocked", by, wait: last - at }
  }

  const amounts = (shared: ReadonlyArray<Shared>, cost: RateLimiter.Cost): ReadonlyArray<number> =>
    shared.flatMap(({ meter, state }) => {
      const amount = charge(state.limit, cost)
      meter.largest = Math.max(meter.largest, amount)
      return meter.cells.map(() => amount)
    })

  /** Charges what the server has let in. */
  const take = (
    id: string,
    { cost, tenant }: RateLimiter.Candidate,
    permit: boolean,
    marks: ReadonlyArray<Granted>,
    of: Limits,
    late: number
  ): Reservation => {
    const at = now()
    let next = 0
    const charges = ({ shared }: Limits) =>
      shared.map(({ meter, state }) => {
        const amount = charge(state.limit, cost)
        meter.grant(id, marks.slice(next, next += meter.cells.length), amount, at)
        const charged = state.take(amount, at)
        // Else it would be gone before the provider forgets it.
        if (late > margin) meter.redate(charged, late)
        return charged
      })
    const theirs = limits.tenantOf(tenant)
    const charged = charges(of)
    const ofTenant = theirs === undefined || theirs.shared.length === 0
      ? undefined
      : { generation: theirs.generation, charges: charges(theirs) }
    if ([...of.shared, ...theirs?.shared ?? []].some(({ state }) => state.limit.chargedAt !== "dispatch")) {
      undated.add(id)
    }
    const own = permit ? theirs?.permits : undefined
    if (own !== undefined) running.set(id, own)
    return {
      "~effect-llm-queue/Reservation": true,
      id,
      generation: of.generation,
      charges: charged,
      ofTenant,
      charged: charged.length > 0,
      tenant: undefined,
      permits: own,
      settled: false,
      completed: false
    }
  }

  interface Read {
    readonly waits: List<number>
    readonly permits: number
  }

  interface Admitted {
    readonly grants: List<List<Granted>>
    readonly by?: number
    readonly wait?: number
    readonly exceeds?: number
  }

  /** Whether a request would fit sometime beside what this process holds: others end what they hold. */
  const isHeldByOthers = (cell: Cell, cost: RateLimiter.Cost): boolean => {
    const owner = limits.ownerOf(cell)
    if (owner === undefined || cell.kind === "total") return false
    const { meter, state: { held, limit } } = owner
    const amount = charge(limit, cost)
    return held <= Math.max(cell.capacity(meter.enforced), amount) - amount
  }

  const ask = (
    candidates: ReadonlyArray<RateLimiter.Candidate>,
    permit: boolean
  ): Effect.Effect<ReadonlyArray<RateLimiter.Admission>> => {
    const asked = Deferred.makeUnsafe<ReadonlyArray<RateLimiter.Admission>>()
    let began = 0
    let of = limits.model
    let ids: ReadonlyArray<string> = []
    let isGone = false

    const admitted = (
      answer: unknown,
      cellAt: (index: number) => Cell | undefined
    ): ReadonlyArray<RateLimiter.Admission> => {
      // The server's words are its script's.
      const { by, exceeds, grants, wait: millis } = answer as Admitted
      const late = now() - began
      const admissions = list(grants).map(
        (marks, index): RateLimiter.Admission => {
          const granted = ids[index]!
          if (permit) permits.add(granted)
          return {
            _tag: "Admitted",
            reservation: take(granted, candidates[index]!, permit, list(marks), of, isGone ? 0 : late)
          }
        }
      )
      isWaiting = by !== undefined
      if (by === undefined) return admissions
      const cell = by === 0 ? undefined : cellAt(by)
      const candidate = candidates[admissions.length]!
      const isTenants = by > cellsOf(of).length
      if (exceeds !== undefined) {
        const { limit } = limits.ownerOf(cell!)!.state
        const excess: RateLimiter.Excess = {
          limit: limit.limit,
          timePeriod: limit.timePeriod!,
          used: exceeds,
          requested: charge(limit, candidate.cost),
          wait: wait(millis),
          ofTenant: isTenants
        }
        return [...admissions, { _tag: "Exceeded", excess }]
      }
      const told = wait(millis)
      const blocked = {
        _tag: "Blocked",
        by: limits.typeOf(cell),
        wait: told === Number.POSITIVE_INFINITY && cell !== undefined && isHeldByOthers(cell, candidate.cost)
          ? poll
          : told
      } as const
      return [...admissions, isTenants ? { ...blocked, scope: "tenant" } : blocked]
    }

    link.push({
      weight: candidates.length,
      say: (indexOf) => {
        of = limits.model
        began = now()
        ids = candidates.map(() => `${id}:${(counter++).toString(36)}`)
        return {
          op: "admit",
          heads: candidates.map(({ cost, tenant }, index) => {
            const theirs = limits.tenantOf(tenant)
            const tenantCells = theirs === undefined ? [] : cellsOf(theirs)
            const tenantAmounts = theirs === undefined ? [] : amounts(theirs.shared, cost)
            const parts = tenantCells.map((cell, index) => [indexOf(cell), tenantAmounts[index]])
            if (permit && theirs?.permits !== undefined) parts.push([indexOf(theirs.permits), 1])
            return { id: ids[index], permit: permit ? 1 : 0, a: amounts(of.shared, cost), own: parts }
          })
        }
      },
      answered: (answer, cellAt) => {
        const late = now() - began
        const admissions = admitted(answer, cellAt)
        const isTooLate = late > margin &&
          (late > lease / 2 ||
            !of.shared.every(({ meter }) => meter.cells.every((cell) => cell.outlives(late, link.wall))))
        if (!isGone && !isTooLate) return Deferred.doneUnsafe(asked, Effect.succeed(admissions))
        let isGiven = false
        for (const admission of admissions) {
          if (admission._tag !== "Admitted") continue
          isGiven = true
          giveBack(mine(admission.reservation), permit)
        }
        if (isGone) return
        // Others may have been let in since then, so it is asked again.
        const again = { _tag: "Blocked", by: limits.all[0]?.type ?? "concurrent", wait: 0 } as const
        Deferred.doneUnsafe(asked, Effect.succeed(isGiven ? [again] : admissions))
      },
      away: (reason) => {
        if (isGone) return
        isGone = true
        Deferred.doneUnsafe(asked, Effect.succeed([unavailable(reason)]))
        if (whenAway === "share") Queue.offerUnsafe(changes, { _tag: "Freed" })
      }
    })
    return Deferred.await(asked)
  }

  // By itself ------------------------------------------------------------------------------------------------------

  let share: Share | undefined
  /** What was let in without the server, which it has to be told. */
  let untold: Array<{ readonly at: number; readonly reservation: Reservation }> = []

  const admitByItself = (
    candidates: ReadonlyArray<RateLimiter.Candidate>,
    permit: boolean
  ): ReadonlyArray<RateLimiter.Admission> => {
    const wall = () => clock.currentTimeMillisUnsafe()
    share ??= new Share(limits.all, (tenant) => limits.limitsOf(tenant), members, {
      now,
      wall,
      random: () => random.nextDoubleUnsafe()
    })
    const admissions: Array<RateLimiter.Admission> = []
    for (const candidate of candidates) {
      const at = now()
      const answer = heldBack(candidate.cost, at) ?? share.admit(candidate, permit, permits.size)
      if ("_tag" in answer) return [...admissions, answer]
      const granted = `${id}:${(counter++).toString(36)}`
      if (permit) permits.add(granted)
      const reservation: Reservation = {
        ...answer,
        "~effect-llm-queue/Reservation": true,
        id: granted,
        permits: undefined
      }
      if (untold.length >= mostUntold) untold = untold.slice(mostUntold / 2)
      untold.push({ at, reservation })
      admissions.push({ _tag: "Admitted", reservation })
    }
    return admissions
  }

  /** The server is told what was let in without it. Nobody is let in until all can have told it. */
  const endShare = (): ReadonlyArray<Operation> => {
    if (share === undefined) return []
    share = undefined
    const told = untold
    untold = []
    return [
      say({ op: "hold", millis: patience }),
      ...limits.model.shared.flatMap(({ meter, state }): ReadonlyArray<Operation> => {
        const charged = told.flatMap(({ at, reservation: { charges, generation } }) => {
          const index = generation.states.findIndex(({ limit }) =>
            limit.type === state.limit.type && limit.timePeriod === state.limit.timePeriod
          )
          const amount = charges[index]?.amount ?? 0
          return amount > 0 ? [{ at, amount }] : []
        })
        for (const { amount, at } of charged) meter.book!.add(at, amount)
        return [
          {
            weight: 1,
            say: (indexOf) => ({
              op: "replay",
              list: meter.cells.flatMap((cell) => charged.map(({ amount, at }) => [indexOf(cell), now() - at, amount]))
            })
          },
          say({ op: "pause", millis: patience }, meter.cells[0])
        ]
      })
    ]
  }

  const unavailable = (reason: string): RateLimiter.Admission => ({
    _tag: "Unavailable",
    reason: whenAway === "fail" ? reason : undefined
  })

  const admitAll = (
    candidates: ReadonlyArray<RateLimiter.Candidate>,
    permit: boolean
  ): Effect.Effect<ReadonlyArray<RateLimiter.Admission>> =>
    Effect.suspend(() => {
      if (link.away !== undefined) {
        return Effect.succeed(whenAway === "share" ? admitByItself(candidates, permit) : [unavailable(link.away)])
      }
      const at = now()
      const asked: Array<RateLimiter.Candidate> = []
      let blocked: RateLimiter.Admission | undefined
      for (const candidate of candidates) {
        blocked = heldBack(candidate.cost, at)
        if (blocked !== undefined) break
        asked.push(candidate)
        if (limits.model.shared.some(({ state }) => state.goesAlone)) break
      }
      if (asked.length === 0) {
        if (isWaiting) {
          isWaiting = false
          link.push(say({ op: "leave" }))
        }
        return Effect.succeed([blocked!])
      }
      return ask(asked, permit)
    })

  const mine = (reservation: RateLimiter.Reservation): Reservation => reservations.own(reservation) as Reservation

  const ended = (reservation: Reservation): void => {
    undated.delete(reservation.id)
    const { id, permits } = reservation
    if (permits === undefined) return
    reservation.permits = undefined
    running.delete(id)
    link.push({
      weight: 1,
      say: (indexOf) => ({ op: "effects", id, list: [[indexOf(permits), 0, 0, -1]] })
    })
  }

  const releasePermit = () => {
    const [any] = permits
    if (any === undefined) return
    permits.delete(any)
    link.push(say({ op: "release", ids: [any] }))
  }

  const giveBack = (reservation: Reservation, permit: boolean): void => {
    if (!reservations.giveBack(reservation, now())) return
    ended(reservation)
    if (permit) releasePermit()
  }

  /** Tells the others how long the provider wants nothing. */
  const tellPauses = () => {
    const at = now()
    for (const { meter, state } of limits.model.shared) {
      if (state.pausedFor(at) === 0) continue
      link.push({
        weight: 1,
        say: (indexOf) => ({ op: "pause", millis: state.pausedFor(now()), cell: indexOf(meter.cells[0]!) })
      })
    }
  }

  /** Asks something that is not worth waiting for when the server is away. */
  const question = <A>(
    otherwise: A,
    ask: Operation["say"],
    read: (answer: unknown, cellAt: (index: number) => Cell | undefined) => A
  ): Effect.Effect<A> =>
    Effect.suspend(() => {
      if (link.away !== undefined) return Effect.succeed(otherwise)
      const asked = Deferred.makeUnsafe<A>()
      link.push({
        weight: 1,
        say: ask,
        answered: (answer, cellAt) => Deferred.doneUnsafe(asked, Effect.sync(() => read(answer, cellAt))),
        away: () => Deferred.doneUnsafe(asked, Effect.succeed(otherwise))
      })
      return Deferred.await(asked)
    })

  const limiter: RateLimiter.Limiter = {
    admit: (cost, permit, { protect, tenant } = none) =>
      protect === undefined
        ? Effect.map(admitAll([{ cost, tenant }], permit), ([admission]) => admission!)
        : Effect.succeed<RateLimiter.Admission>({
          _tag: "Blocked",
          by: limits.all[0]?.type ?? "concurrent",
          wait: Number.POSITIVE_INFINITY
        }),
    admitAll: (candidates) => admitAll(candidates, true),
    changes: Stream.fromQueue(changes),
    predict: (cost, ahead, tenant) =>
      question(0, (indexOf) => {
        const parts = (of: Limits | undefined) =>
          of === undefined ? [] : of.shared.flatMap(({ meter, state: { limit } }) => {
            const before = countsTokens(limit)
              ? charge(limit, ahead) * (limit.charging.refund ? ahead.usedPart : 1)
              : ahead.requests
            return meter.cells.map((cell) => [indexOf(cell), charge(limit, cost), before])
          })
        const theirs = limits.tenantOf(tenant)
        return { op: "predict", earliest: ahead.returnedPart === 1, list: [...parts(limits.model), ...parts(theirs)] }
      }, (answer) => {
        const at = now()
        return Math.max(wait(answer), ...limits.model.shared.map(({ state }) => state.pausedFor(at)))
      }),
    exceeds: (cost, tenant) => {
      let count = 0
      return limits.model.shared.some(({ state }) => state.limit.type === "budget") || tenants !== undefined
        ? question<RateLimiter.Excess | undefined>(undefined, (indexOf) => {
          count = limits.cells.length
          const theirs = limits.tenantOf(tenant)
          const budgets = [...limits.model.shared, ...theirs?.shared ?? []].filter(({ state: { limit } }) =>
            limit.type === "budget" && limit.onExceeded === "fail"
          )
          return {
            op: "exceeds",
            list: budgets.flatMap(({ meter, state }) =>
              meter.cells.map((cell) => [indexOf(cell), charge(state.limit, cost)])
            )
          }
        }, (answer, cellAt) => {
          const [index, used, millis] = list(answer as List<number>)
          const cell = index === undefined ? undefined : cellAt(index)
          if (cell === undefined || used === undefined) return undefined
          const { limit } = limits.ownerOf(cell)!.state
          return {
            limit: limit.limit,
            timePeriod: limit.timePeriod!,
            used,
            requested: charge(limit, cost),
            wait: wait(millis),
            ofTenant: index! > count
          }
        })
        : Effect.undefined
    },
    settle: (reservation, usage) => Effect.sync(() => reservations.settle(mine(reservation), usage, now())),
    complete: (reservation) =>
      Effect.sync(() => {
        const own = mine(reservation)
        reservations.complete(own, now())
        ended(own)
      }),
    giveBack: (reservation, permit) => Effect.sync(() => giveBack(mine(reservation), permit)),
    observe: (reservation, observations) =>
      Effect.sync(() => {
        // What the others have sent since then is asked for first, and nobody waits for it.
        link.push({
          weight: 1,
          say: () => ({ op: "hear" }),
          answered: () => reservations.observe(mine(reservation), observations, now())
        })
      }),
    refuse: (reservation, refusal, observations) =>
      // Nor does it wait here, when the server is away.
      Effect.map(question(undefined, () => ({ op: "hear" }), () => undefined), () => {
        const own = mine(reservation)
        reservations.refuse(own, refusal, observations, now())
        ended(own)
        tellPauses()
      }),
    releasePermit: Effect.sync(releasePermit),
    update: (next) =>
      Effect.suspend(() => {
        limits.adopt(next)
        joins = "replaces"
        return question(undefined, () => ({ op: "hear" }), () => undefined)
      }),
    usage: question<Read | undefined>(
      undefined,
      () => ({ op: "read" }),
      (answer) => answer as Read
    ).pipe(Effect.map((read) => {
      const at = now()
      const waits = list(read?.waits)
      let index = 0
      let first = 0
      return limits.all.map((limit): RateLimiter.Usage => {
        if (limit.timePeriod !== undefined) {
          const { meter, state } = limits.model.shared[index++]!
          meter.next = at + Math.max(0, ...meter.cells.map(() => wait(waits[first++])))
          const usage = state.usage(at)
          meter.next = undefined
          return usage
        }
        return usageOfPermits(limit, read?.permits ?? permits.size)
      })
    }))
  }

  // Beginning and end -----------------------------------------------------------------------------------------------

  const beats = (): Operation => ({
    weight: 1,
    say: (indexOf) => ({
      op: "beat",
      permits: [...permits],
      tokens: [...undated],
      running: Array.from(running, ([id, cell]) => [indexOf(cell), id])
    }),
    answered: (answer) => {
      // The server's words are its script's.
      members = Math.max(1, (answer as { readonly members: number }).members)
    }
  })

  yield* Effect.mapError(
    link.begin([beats()]),
    (reason) => conflict ?? new QueueError.QueueUnavailable({ modelId, requestId: undefined, reason })
  )
  hasBegun = true
  yield* Effect.addFinalizer(() =>
    Effect.interruptible(link.end({
      weight: 1,
      say: () => ({ op: "bye", permits: [...permits].slice(0, 5000) })
    })).pipe(
      Effect.timeoutOption(commandTimeout),
      Effect.ignore,
      Effect.andThen(Effect.sync(() => link.close()))
    )
  )
  yield* process.listen(id, () => Queue.offerUnsafe(changes, { _tag: "Freed" }))
  yield* Effect.forkScoped(link.run, { startImmediately: true })
  yield* Effect.forkScoped(Effect.forever(Effect.andThen(
    Effect.sleep(beat),
    Effect.sync(() => {
      // Else there is one when it is back.
      if (link.away === undefined) link.push(beats())
    })
  )))
  yield* Effect.forkScoped(Effect.forever(Effect.andThen(
    Effect.sleep(poll),
    Effect.sync(() => {
      if (isWaiting) Queue.offerUnsafe(changes, { _tag: "Freed" })
    })
  )))
  return limiter
})
