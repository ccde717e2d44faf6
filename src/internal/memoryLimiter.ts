import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Ref from "effect/Ref"
import * as Semaphore from "effect/Semaphore"
import type * as RateLimiter from "../RateLimiter.ts"
import { type Place, SlidingWindow } from "./slidingWindow.ts"
import * as time from "./time.ts"

/** How much of a limit a request takes. */
export const charge = (type: RateLimiter.Type, tokens: RateLimiter.Tokens): number => {
  switch (type) {
    case "rpm":
    case "rpd":
    case "concurrent":
      return 1
    case "tpm":
    case "tpd":
      return tokens.inputTokens + tokens.outputTokens
    case "itpm":
      return tokens.inputTokens
    case "otpm":
      return tokens.outputTokens
  }
}

/** Whether a limit counts tokens. */
export const countsTokens = ({ type }: RateLimiter.Limit): boolean =>
  type === "tpm" || type === "tpd" || type === "itpm" || type === "otpm"

/** A windowed limit: its dated charges, and the sum of the reservations that have no date yet. */
interface Window {
  readonly limit: RateLimiter.Limit
  readonly dated: SlidingWindow
  held: number
}

/** Per window: the amount charged, and its place once it is dated. */
interface Reservation extends RateLimiter.Reservation {
  readonly amounts: Array<number>
  readonly places: Array<Place | undefined>
  settled: boolean
  completed: boolean
}

const isHeld = (reservation: Reservation, index: number) => reservation.places[index] === undefined

const date = (window: Window, reservation: Reservation, index: number, now: number): void => {
  const amount = reservation.amounts[index]!
  window.held -= amount
  window.dated.expire(now)
  reservation.places[index] = window.dated.add(now, amount)
}

// The windows are mutable and every operation on them runs inside one `Ref.modify`: synchronous, so atomic. Copying
// them would make an admission cost what the windows hold.
const admit = (windows: ReadonlyArray<Window>, cost: RateLimiter.Tokens, now: number): RateLimiter.Admission => {
  let at = now
  let by: RateLimiter.Type | undefined
  for (const window of windows) {
    window.dated.expire(now)
    const excess = window.dated.used + window.held + charge(window.limit.type, cost) - window.limit.limit
    if (excess > 0) {
      const freed = window.dated.freedAt(excess)
      if (by === undefined || freed > at) {
        at = freed
        by = window.limit.type
      }
    }
  }
  if (by !== undefined) return { _tag: "Blocked", by, wait: at - now }
  const amounts = new Array<number>(windows.length)
  const places = new Array<Place | undefined>(windows.length)
  for (let i = 0; i < windows.length; i++) {
    const window = windows[i]!
    const amount = amounts[i] = charge(window.limit.type, cost)
    if (window.limit.chargedAt === "dispatch") {
      places[i] = window.dated.add(now, amount)
    } else {
      places[i] = undefined
      window.held += amount
    }
  }
  const reservation: Reservation = {
    "~effect-llm-queue/Reservation": true,
    amounts,
    places,
    settled: false,
    completed: false
  }
  return { _tag: "Admitted", reservation }
}

const settle = (
  windows: ReadonlyArray<Window>,
  reservation: Reservation,
  usage: RateLimiter.Tokens,
  now: number
): RateLimiter.Settlement => {
  if (reservation.settled) return "alreadySettled"
  let changed = windows.length === 0
  for (let i = 0; i < windows.length; i++) {
    const window = windows[i]!
    const by = charge(window.limit.type, usage) - reservation.amounts[i]!
    const place = reservation.places[i]
    if (place !== undefined) {
      if (window.dated.adjust(now, place, by)) {
        reservation.amounts[i]! += by
        changed = true
      }
    } else {
      reservation.amounts[i]! += by
      window.held += by
      changed = true
      if (window.limit.chargedAt === "production") date(window, reservation, i, now)
    }
  }
  if (!changed) return "expired"
  reservation.settled = true
  return "settled"
}

const complete = (windows: ReadonlyArray<Window>, reservation: Reservation, now: number): void => {
  if (reservation.completed) return
  reservation.completed = true
  for (let i = 0; i < windows.length; i++) {
    if (isHeld(reservation, i)) date(windows[i]!, reservation, i, now)
  }
}

/** Whether there was anything to give back. */
const giveBack = (windows: ReadonlyArray<Window>, reservation: Reservation, now: number): boolean => {
  if (reservation.completed) return false
  reservation.completed = true
  reservation.settled = true
  for (let i = 0; i < windows.length; i++) {
    const window = windows[i]!
    const place = reservation.places[i]
    const amount = reservation.amounts[i]!
    if (place === undefined) window.held -= amount
    else window.dated.adjust(now, place, -amount)
  }
  return true
}

const windowUsage = (window: Window, now: number): RateLimiter.Usage => {
  window.dated.expire(now)
  const { limit, margin, timePeriod, type } = window.limit
  const used = window.dated.used + window.held
  const freed = used < limit ? now : window.dated.freedAt(used - limit + 1)
  return {
    type,
    limit,
    timePeriod: Duration.millis(timePeriod!),
    margin: Duration.millis(margin),
    used,
    available: Math.max(0, limit - used),
    timeUntilNextCapacity: Number.isFinite(freed) ? Duration.millis(freed - now) : undefined
  }
}

// The one place where a reservation handed out by this limiter is read back: callers see it as opaque.
const own = (reservation: RateLimiter.Reservation): Reservation => reservation as Reservation

/** @internal */
export const make = Effect.fnUntraced(function*(limits: ReadonlyArray<RateLimiter.Limit>) {
  const now = time.monotonic(yield* Clock.Clock)
  const windows = yield* Ref.make<ReadonlyArray<Window>>(
    limits.flatMap((limit) =>
      limit.timePeriod === undefined
        ? []
        : [{ limit, dated: new SlidingWindow(limit.timePeriod + limit.margin), held: 0 }]
    )
  )
  const step = <A>(f: (windows: ReadonlyArray<Window>, now: number) => A): Effect.Effect<A> =>
    Ref.modify(windows, (state) => [f(state, now()), state])

  const concurrent = limits.find((limit) => limit.type === "concurrent")
  const semaphore = concurrent === undefined ? undefined : yield* Semaphore.make(concurrent.limit)
  const releasePermit = concurrent === undefined || semaphore === undefined
    ? Effect.void
    // A permit that nobody holds must not raise the limit.
    : Effect.flatMap(
      semaphore.release(0),
      (free) => free < concurrent.limit ? Effect.asVoid(semaphore.release(1)) : Effect.void
    )
  const noPermit = Effect.succeed<RateLimiter.Admission>({
    _tag: "Blocked",
    by: "concurrent",
    wait: Number.POSITIVE_INFINITY
  })

  const limiter: RateLimiter.Limiter = {
    admit: (cost, permit) => {
      const charged = step((state, now) => admit(state, cost, now))
      if (semaphore === undefined || !permit) return charged
      const chargedOrReleased = Effect.flatMap(
        charged,
        (admission) => Effect.as(admission._tag === "Admitted" ? Effect.void : releasePermit, admission)
      )
      return Effect.flatMap(semaphore.takeIfAvailable(1), (taken) => taken ? chargedOrReleased : noPermit)
    },
    settle: (reservation, usage) => step((state, now) => settle(state, own(reservation), usage, now)),
    complete: (reservation) => step((state, now) => complete(state, own(reservation), now)),
    giveBack: (reservation, permit) =>
      Effect.flatMap(
        step((state, now) => giveBack(state, own(reservation), now)),
        (given) => given && permit ? releasePermit : Effect.void
      ),
    releasePermit,
    usage: Effect.gen(function*() {
      const free = semaphore === undefined ? 0 : yield* semaphore.release(0)
      return yield* step((state, now) => {
        let window = 0
        return limits.map((limit): RateLimiter.Usage => {
          if (limit.timePeriod !== undefined) return windowUsage(state[window++]!, now)
          const used = limit.limit - free
          return {
            type: limit.type,
            limit: limit.limit,
            timePeriod: undefined,
            margin: Duration.zero,
            used,
            available: Math.max(0, free),
            timeUntilNextCapacity: free > 0 ? Duration.zero : undefined
          }
        })
      })
    })
  }
  return limiter
})
