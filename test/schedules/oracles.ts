/**
 * What must be true of every history, whatever the plan and the schedule. Pure functions that share no code with the
 * library: each gives what is wrong.
 */
import type { RateLimiter } from "effect-llm-queue"
import { isShared } from "../farLimiter.ts"
import { type Event, type History, type Limit, type Outcome, type Request, requestsOf } from "./history.ts"

type Of<Tag extends Event["_tag"]> = Extract<Event, { readonly _tag: Tag }>

const of = <Tag extends Event["_tag"]>(history: History, tag: Tag): ReadonlyArray<Of<Tag>> =>
  history.events.filter((event): event is Of<Tag> => event._tag === tag)

type Oracle = (history: History) => ReadonlyArray<string>

/** Nothing hangs, and nothing is logged: what the queue logs here is that it broke. */
const ends: Oracle = (history) => [
  ...of(history, "Hung").map(({ reason }) => reason),
  ...of(history, "Logged").map(({ message }) => `logged: ${message}`)
]

/** Every accepted request goes pending, processing or not, and then ends; once. */
const oneEnd: Oracle = (history) => {
  const problems: Array<string> = []
  const states = new Map<string, string>()
  for (const { id, outcome, status } of of(history, "Status")) {
    const before = states.get(id)
    const expected = status === "pending"
      ? before === undefined
      : status === "processing"
      ? before === "pending"
      : before === "pending" || before === "processing"
    if (!expected) problems.push(`${id} became ${outcome ?? status} after ${before ?? "nothing"}`)
    states.set(id, status)
  }
  for (const [id, state] of states) if (state !== "ended") problems.push(`${id} never ended: it is ${state}`)
  return problems
}

/** Every waiter hears once, and what it hears is how the request ended; what was refused did not happen. */
const everyoneHears: Oracle = (history) => {
  const problems: Array<string> = []
  const ended = new Map<string, Outcome>()
  const accepted = new Set<string>()
  for (const event of of(history, "Status")) {
    if (event.status === "pending") accepted.add(event.id)
    if (event.status === "ended") ended.set(event.id, event.outcome!)
  }
  const heard = new Map<string, Outcome>()
  for (const { outcome, waiter } of of(history, "Heard")) {
    if (heard.has(waiter)) problems.push(`${waiter} heard twice: ${heard.get(waiter)} and ${outcome}`)
    heard.set(waiter, outcome)
  }
  for (const { id, kind, waiter } of of(history, "Asked")) {
    const outcome = heard.get(waiter)
    if (outcome === undefined) {
      problems.push(`${waiter} heard nothing`)
      continue
    }
    if (outcome === "interrupted") continue
    if (outcome.startsWith("died")) problems.push(`${waiter} ${outcome}`)
    if (kind === "accept") {
      if (accepted.has(id) !== (outcome === "accepted")) {
        problems.push(`${waiter} heard ${outcome}, and the request ${ended.has(id) ? "was" : "was not"} accepted`)
      }
      continue
    }
    if (kind === "await" && (outcome === "RequestNotFound" || outcome === "ModelNotRegistered")) continue
    const end = ended.get(id)
    if (end !== undefined && end !== outcome) problems.push(`${waiter} heard ${outcome}, but it ended as ${end}`)
    if (end === undefined && outcome === "completed") problems.push(`${waiter} heard ${outcome}, but it never did`)
  }
  return problems
}

/** A processor starts after its dispatch, at most once, and before the end. */
const processedOnce: Oracle = (history) => {
  const problems: Array<string> = []
  const started = new Set<string>()
  const stopped = new Map<string, Outcome>()
  const ended = new Set<string>()
  for (const event of history.events) {
    if (event._tag === "Status" && event.status === "ended") ended.add(event.id)
    if (event._tag === "Started") {
      if (started.has(event.id)) problems.push(`${event.id} was processed twice`)
      if (ended.has(event.id)) problems.push(`${event.id} was processed after its end`)
      started.add(event.id)
    } else if (event._tag === "Stopped") {
      stopped.set(event.id, event.outcome)
    } else if (event._tag === "Status" && event.outcome === "completed" && stopped.get(event.id) !== "completed") {
      problems.push(`${event.id} completed, but its processor ${stopped.get(event.id) ?? "has not stopped"}`)
    }
  }
  const dispatched = new Set(of(history, "Status").filter(({ status }) => status === "processing").map(({ id }) => id))
  for (const id of started) if (!dispatched.has(id)) problems.push(`${id} was processed without being dispatched`)
  return problems
}

/**
 * The requests being processed need no more permits than there are. A request that runs on the permit of an ancestor
 * takes none, and lends to one at a time: so what counts is how many of them are no ancestors of each other.
 */
const withinConcurrency: Oracle = (history) => {
  const limit = history.plan.limits.find((limit) => limit.type === "concurrent")?.limit
  if (limit === undefined) return []
  const problems: Array<string> = []
  const parents = new Map<string, Set<string>>()
  const running = new Set<string>()
  const isAncestor = (ancestor: string, id: string): boolean => {
    for (const parent of parents.get(id) ?? []) if (parent === ancestor || isAncestor(ancestor, parent)) return true
    return false
  }
  const unrelated = () => {
    const tops = [...running].filter((id) => ![...running].some((other) => other !== id && isAncestor(id, other)))
    return tops.length
  }
  for (const event of history.events) {
    if (event._tag === "Asked" && event.parent !== undefined && event.parent !== event.id) {
      parents.set(event.id, (parents.get(event.id) ?? new Set()).add(event.parent))
    } else if (event._tag === "Stopped") {
      running.delete(event.id)
    } else if (event._tag === "Started") {
      running.add(event.id)
      const count = parents.size === 0 ? running.size : unrelated()
      if (count > limit) problems.push(`${count} at work at ${event.at}, ${limit} allowed: ${[...running].join(", ")}`)
    }
  }
  return problems
}

const isNested = (history: History) => of(history, "Asked").some(({ parent }) => parent !== undefined)

/** The counts that the queue gives are those of what happened, whenever nothing is ready to run. */
const counts: Oracle = (history) => {
  const problems: Array<string> = []
  const waiting = new Set<string>()
  const running = new Set<string>()
  const asked = new Map<string, string>()
  const ended = { completed: 0, failed: 0, cancelled: 0 }
  for (const event of history.events) {
    switch (event._tag) {
      case "Asked":
        if (event.kind !== "await") asked.set(event.waiter, event.id)
        break
      case "Heard":
        asked.delete(event.waiter)
        break
      case "Started":
        running.add(event.id)
        break
      case "Stopped":
        running.delete(event.id)
        break
      case "Status":
        if (event.status === "pending") {
          waiting.add(event.id)
          for (const [waiter, id] of asked) if (id === event.id) asked.delete(waiter)
        } else {
          waiting.delete(event.id)
        }
        if (event.status === "ended") {
          ended[
            event.outcome === "completed"
              ? "completed"
              : event.outcome === "RequestCancelled"
              ? "cancelled"
              : "failed"
          ]++
        }
        break
      case "Sample": {
        const { info } = event
        const expected = { ...ended, depth: waiting.size, suspended: asked.size, running: running.size }
        for (const key of ["depth", "suspended", "running", "completed", "failed", "cancelled"] as const) {
          if (info[key] !== expected[key]) {
            problems.push(`at ${event.at}: ${key} is ${info[key]}, expected ${expected[key]}`)
          }
        }
        if (info.state === "open" && info.suspended > 0 && info.depth < info.capacity) {
          problems.push(
            `at ${event.at}: ${info.suspended} wait for room in a queue of ${info.depth} of ${info.capacity}`
          )
        }
        const permits = info.rateLimiters.find(({ type }) => type === "concurrent")
        if (permits === undefined) break
        const fits = isNested(history)
          ? permits.used <= running.size && (permits.used > 0) === (running.size > 0)
          : permits.used === running.size
        if (!fits) problems.push(`at ${event.at}: ${permits.used} permits are taken and ${running.size} are at work`)
      }
    }
  }
  return problems
}

/** What a limit counts of a request. */
const weigh = (type: RateLimiter.Type, { inputTokens, outputTokens }: RateLimiter.Tokens): number =>
  type === "itpm" ? inputTokens : type === "otpm" ? outputTokens : type.startsWith("t") ? inputTokens + outputTokens : 1

/** What is known of a dispatched request. */
interface Charged {
  readonly request: Request
  readonly at: number
  /** Its processor; the dispatch itself when that was not even started. */
  readonly stopped: { readonly at: number; readonly outcome: Outcome } | undefined
  readonly reported: { readonly at: number; readonly usage: RateLimiter.Tokens } | undefined
  readonly uncertain?: boolean
}

const lengthOf = (limit: Limit) => limit.period + (limit.margin ?? 0)

/** When the actual usage came in, and what it was. */
const settlement = (settles: boolean, { reported, request, stopped }: Charged) =>
  reported ?? (settles && stopped?.outcome === "completed" ? { at: stopped.at, usage: request.usage } : undefined)

/** When the charge was made; `undefined` while it is only held. */
const dateOf = (settles: boolean, limit: Limit, charged: Charged): number | undefined => {
  if (limit.chargedAt === "completion") return charged.stopped?.at
  if (limit.chargedAt !== "production") return charged.at
  const { stopped } = charged
  const produced = settlement(settles, charged)
  return produced === undefined ? stopped?.at : Math.min(produced.at, stopped?.at ?? produced.at)
}

const isIn = (settles: boolean, limit: Limit, charged: Charged, at: number): boolean => {
  const since = dateOf(settles, limit, charged)
  return since === undefined || since + lengthOf(limit) > at
}

/**
 * In exact time: at every instant a window holds the net charges of what was dispatched and nothing else; a charge is
 * gone exactly one period after its date; a request is dispatched only when it fits, and as soon as it fits.
 */
const charges: Oracle = (history) => {
  if (!history.exact) return []
  const { limits, settles } = history.plan
  const problems: Array<string> = []
  const requests = requestsOf(history.plan)
  const waiting = new Set<string>()
  const dispatched = new Map<string, number>()
  const started = new Set<string>()
  const stopped = new Map<string, { readonly at: number; readonly outcome: Outcome }>()
  const reported = new Map<string, Of<"Reported">>()
  const ended = new Map<string, Outcome>()
  let fresh: Array<string> = []
  for (const event of history.events) {
    if (event._tag === "Started") started.add(event.id)
    else if (event._tag === "Stopped") stopped.set(event.id, event)
    else if (event._tag === "Reported" && event.answer === "settled") reported.set(event.id, event)
    else if (event._tag === "Status") {
      if (event.status === "pending") waiting.add(event.id)
      else waiting.delete(event.id)
      if (event.status === "ended") ended.set(event.id, event.outcome!)
      if (event.status === "processing") {
        dispatched.set(event.id, event.since)
        fresh.push(event.id)
      }
    } else if (event._tag === "Sample") {
      const now = event.at
      const charged = [...dispatched].map(([id, at]): Charged => ({
        request: requests.get(id)!,
        at,
        stopped: started.has(id) ? stopped.get(id) : { at, outcome: "interrupted" },
        reported: reported.get(id),
        // Ended by somebody else when its processor was nearly through: its result may have been read, or not.
        uncertain: ended.get(id) !== "completed" && stopped.get(id)?.outcome === "completed"
      }))
      for (const id of fresh) {
        const at = dispatched.get(id)!
        if (at !== now) problems.push(`${id} was dispatched at ${at}, which was seen at ${now}`)
      }
      let fits = true
      for (const [index, limit] of limits.entries()) {
        const { used } = event.info.rateLimiters[index]!
        if (limit.type === "concurrent") {
          if (used >= limit.limit) fits = false
          continue
        }
        let expected = 0
        let certain = 0
        let doubt = 0
        for (const one of charged) {
          if (!isIn(settles, limit, one, now)) continue
          const actual = settlement(settles, one)
          const estimate = weigh(limit.type, one.request.tokens)
          const net = actual === undefined ? estimate : weigh(limit.type, actual.usage)
          expected += net
          const uncertain = settles && one.uncertain === true && one.reported === undefined
          if (uncertain) doubt += Math.abs(net - estimate)
          // A refund of this very instant may have come after the dispatch, a debt too.
          certain += actual !== undefined && actual.at < now && !uncertain ? net : Math.min(net, estimate)
        }
        if (Math.abs(used - expected) > doubt) {
          problems.push(`at ${now}: the ${limit.type} window holds ${used}, expected ${expected}`)
        }
        if (fresh.length > 0 && certain > limit.limit) {
          problems.push(
            `at ${now}: ${fresh.join(", ")} dispatched, which makes ${certain} ${limit.type} of ${limit.limit}`
          )
        }
        const largest = Math.max(...[...waiting].map((id) => weigh(limit.type, requests.get(id)!.tokens)))
        if (expected + doubt + largest > limit.limit) fits = false
      }
      if (waiting.size > 0 && fits) problems.push(`at ${now}: ${[...waiting].join(", ")} fit, and wait`)
      fresh = []
    }
  }
  return problems
}

/** In exact time, a report is answered as the windows stand; in any, it counts once. */
const reports: Oracle = (history) => {
  const { limits, settles } = history.plan
  const problems: Array<string> = []
  const requests = requestsOf(history.plan)
  const windows = limits.filter(({ type }) => type !== "concurrent")
  const dispatched = new Map<string, number>()
  const stopped = new Map<string, { readonly at: number; readonly outcome: Outcome }>()
  for (const event of of(history, "Status")) if (event.status === "processing") dispatched.set(event.id, event.since)
  // A processor that was not even started has stopped.
  for (const [id, at] of dispatched) stopped.set(id, { at, outcome: "interrupted" })
  for (const { id } of of(history, "Started")) stopped.delete(id)
  for (const event of of(history, "Stopped")) stopped.set(event.id, event)
  const settlers = new Set<string>()
  const reported = new Set(of(history, "Reported").filter(({ answer }) => answer === "settled").map(({ id }) => id))
  for (const event of of(history, "Reported")) {
    const { answer, at, id } = event
    const dispatch = dispatched.get(id)
    if (answer === "settled") {
      if (settlers.has(id)) problems.push(`${id} was settled twice`)
      settlers.add(id)
      if (dispatch === undefined) problems.push(`${id} was settled without being dispatched`)
      const end = stopped.get(id)
      if (settles && end?.outcome === "completed" && end.at < at && history.exact) {
        const charged: Charged = { request: requests.get(id)!, at: dispatch!, stopped: end, reported: undefined }
        if (windows.some((limit) => isIn(settles, limit, charged, end.at))) {
          problems.push(`${id} was settled by its result and again by a report`)
        }
      }
    } else if (answer === "alreadySettled") {
      if (!reported.has(id) && !(settles && stopped.get(id)?.outcome === "completed")) {
        problems.push(`${id} was answered alreadySettled, and nothing had settled it`)
      }
    } else if (answer === "expired" && history.exact) {
      const charged: Charged = {
        request: requests.get(id)!,
        at: dispatch!,
        stopped: stopped.get(id),
        reported: undefined
      }
      if (windows.some((limit) => isIn(settles, limit, charged, at))) {
        problems.push(`${id} was answered expired at ${at}, and is in a window`)
      }
    }
  }
  return problems
}

/** At the end nothing is left: no permit, no reservation, nobody in the queue. */
const nothingLeft: Oracle = (history) => {
  const info = of(history, "Sample").find(({ last }) => last)?.info
  if (info === undefined) return []
  // When it has closed, nobody asks the server any more what a window holds.
  const asked = info.rateLimiters.filter(({ type }) => !isShared || type === "concurrent")
  const left = asked.filter(({ used }) => used !== 0).map(({ type, used }) => `left of ${type}: ${used}`)
  const { depth, running, suspended } = info
  if (depth + running + suspended > 0) left.push(`left in the queue: ${depth} + ${suspended}, ${running} at work`)
  return left
}

/** In exact time, whoever has a timeout is told at that instant, and not earlier. */
const inTime: Oracle = (history) => {
  if (!history.exact) return []
  const problems: Array<string> = []
  const requests = requestsOf(history.plan)
  const dispatched = new Map<string, number>()
  for (const event of of(history, "Status")) if (event.status === "processing") dispatched.set(event.id, event.since)
  const heard = new Map<string, Of<"Heard">>()
  for (const event of of(history, "Heard")) heard.set(event.waiter, event)
  for (const { at, id, kind, waiter } of of(history, "Asked")) {
    const answer = heard.get(waiter)
    const request = requests.get(id)
    if (kind === "await" || answer === undefined || request === undefined) continue
    const deadline = Math.min(
      at + (request.timeout ?? Infinity),
      kind === "submit" ? (dispatched.get(id) ?? Infinity) + (request.processingTimeout ?? Infinity) : Infinity
    )
    if (answer.at > deadline) problems.push(`${waiter} heard ${answer.outcome} at ${answer.at}, after ${deadline}`)
    if (answer.outcome === "QueueTimeout" && answer.at < deadline) {
      problems.push(`${waiter} timed out at ${answer.at}, before ${deadline}`)
    }
  }
  return problems
}

/** A timer that is due at once takes this long. */
const resolution = 0.001

/** In exact time, a closing ends by its deadline; one that a processor asked for may go down with that. */
const closesInTime: Oracle = (history) => {
  if (!history.exact) return []
  const closed = new Map(of(history, "Closed").map(({ at, closing }) => [closing, at]))
  return of(history, "Closing").flatMap(({ at, closing, deadline, inside }) => {
    const end = closed.get(closing)
    const fine = end === undefined ? inside : end <= at + deadline + resolution
    return fine ? [] : [`closing ${closing} ended at ${end}, after ${at + deadline}`]
  })
}

/** In exact time, everybody has been told when the last deadline of a closing has passed. */
const toldAtTheDeadline: Oracle = (history) => {
  const closings = of(history, "Closing")
  if (!history.exact || closings.length === 0) return []
  const last = Math.max(...closings.map(({ at, deadline }) => at + deadline)) + resolution
  return of(history, "Status").filter(({ since, status }) => status === "ended" && since > last)
    .map(({ id, since }) => `${id} ended at ${since}, after the deadline of the closing at ${last}`)
}

/** In exact time, of requests of one priority the one submitted first is dispatched first. */
const inOrder: Oracle = (history) => {
  if (!history.exact || isNested(history)) return []
  const problems: Array<string> = []
  const requests = requestsOf(history.plan)
  const submitted = new Map<string, number>()
  const waiting = new Map<string, number>()
  for (const event of of(history, "Asked")) if (event.kind !== "await") submitted.set(event.id, event.at)
  for (const { id, since, status } of of(history, "Status")) {
    if (status === "pending") {
      waiting.set(id, submitted.get(id)!)
      continue
    }
    const mine = waiting.get(id)
    waiting.delete(id)
    if (status !== "processing") continue
    for (const [other, theirs] of waiting) {
      // Who came at this very instant may not have been seen yet.
      if (theirs < mine! && theirs < since && requests.get(other)!.priority === requests.get(id)!.priority) {
        problems.push(`${id} of ${mine} was dispatched at ${since} before ${other} of ${theirs}`)
      }
    }
  }
  return problems
}

/** When a queue drops what has waited longest to make room, it is that: nested requests take none. */
const dropsTheOldest: Oracle = (history) => {
  if (history.plan.options.strategy !== "dropOldest" || isNested(history)) return []
  const problems: Array<string> = []
  const waiting = new Set<string>()
  for (const { id, outcome, status } of of(history, "Status")) {
    const [oldest] = waiting
    if (status === "pending") waiting.add(id)
    else waiting.delete(id)
    if (outcome === "QueueFull" && id !== oldest) problems.push(`${id} was dropped, and ${oldest} had waited longer`)
  }
  return problems
}

/** In exact time, interrupting a submitter that waits ends its request there and then. */
const interruptionCancels: Oracle = (history) => {
  if (!history.exact) return []
  const ended = new Map(
    of(history, "Status").filter(({ status }) => status === "ended").map((event) => [event.id, event])
  )
  const asked = new Map(of(history, "Asked").map((event) => [event.waiter, event]))
  return of(history, "Heard").flatMap(({ at, outcome, waiter }) => {
    const { id, kind } = asked.get(waiter)!
    const end = ended.get(id)
    return outcome === "interrupted" && kind === "submit" && end !== undefined && end.since > at
      ? [`${waiter} was interrupted at ${at}, and the request ended at ${end.since} as ${end.outcome}`]
      : []
  })
}

const oracles: ReadonlyArray<Oracle> = [
  oneEnd,
  everyoneHears,
  processedOnce,
  withinConcurrency,
  counts,
  charges,
  reports,
  nothingLeft,
  inTime,
  closesInTime,
  toldAtTheDeadline,
  inOrder,
  dropsTheOldest,
  interruptionCancels
]

/** Everything that is wrong with a history. When it hangs, what that left behind is not news. */
export const check = (history: History): ReadonlyArray<string> => {
  const hung = ends(history)
  return hung.length > 0 ? hung : oracles.flatMap((oracle) => oracle(history))
}
