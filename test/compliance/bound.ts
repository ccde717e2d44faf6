/**
 * How much of a limit can be used at most by a client that is never refused: what the provider's rules and the spread
 * of the network delay leave. Written from the mathematics alone, so nothing of the library is used here.
 *
 * These are bounds for a client that knows nothing of a request until it has been answered, and for the largest charge
 * at the worst moment. Charges of several sizes fit better than that, and answers that come back within the jitter tell
 * more, so that a little more than the bound may be reached.
 *
 * Times are in any one unit. `jitter` is the spread of the uplink delay: a request sent at `s` arrives somewhere in
 * `[s + d, s + d + jitter]`, and the client cannot know where.
 */

/**
 * The provider counts what arrived in the last `period`. A charge can only be sent again after `period + jitter`, since
 * the first may have been late and the second may be early; the head of a queue waits for room for all of its charge,
 * so up to the largest charge stays unused.
 */
export const sliding = (
  { jitter, largest = 0, limit, period }: {
    readonly limit: number
    readonly period: number
    readonly jitter: number
    readonly largest?: number | undefined
  }
): number => period / (period + jitter) - fragmentation(largest, limit)

/**
 * A bucket of `capacity` that is refilled continuously. Jitter takes `jitter` worth of refill from the burst and nothing
 * from the rate, as long as the bucket holds that and one charge. Of a smaller one, of `n` whole charges, `n + 1`
 * requests must be `jitter` further apart than the refill of what it cannot hold: for one of a single charge the
 * spacing grows by the jitter.
 */
export const bucket = (
  { capacity, jitter, largest = 1, limit, period }: {
    readonly limit: number
    readonly period: number
    readonly jitter: number
    readonly capacity: number
    readonly largest?: number | undefined
  }
): number => {
  const missing = largest + limit / period * jitter - capacity
  const whole = Math.max(1, Math.floor(capacity / largest)) * largest
  return missing <= 0 ? 1 : whole / (whole + missing)
}

/** Windows of a clock. Of unknown phase any instant may be an edge, and they are as strict as sliding ones. */
export const fixed = (
  { jitter, largest = 0, limit, period, phaseKnown }: {
    readonly limit: number
    readonly period: number
    readonly jitter: number
    readonly phaseKnown: boolean
    readonly largest?: number | undefined
  }
): number => phaseKnown ? 1 - fragmentation(largest, limit) : sliding({ limit, period, jitter, largest })

/** The limit's share is enforced in every window of `quantum`, whole units of it only. */
export const quantised = (
  { jitter, largest = 0, limit, period, quantum }: {
    readonly limit: number
    readonly period: number
    readonly quantum: number
    readonly jitter: number
    readonly largest?: number | undefined
  }
): number => {
  const share = limit * quantum / period
  const whole = Math.floor(share + 1e-9)
  return whole / share * (quantum / (quantum + jitter)) - fragmentation(largest, share)
}

/**
 * Slots for requests in process. The provider frees one before the client can know, so nothing is needed for safety,
 * and the slot is idle for one round trip.
 */
export const concurrency = (
  { residency, roundTrip }: { readonly residency: number; readonly roundTrip: number }
): number => residency / (residency + roundTrip)

/**
 * A window in which a request takes more than it uses, `reserved` instead of `used`, until the client knows better after
 * `residency`. With `dated: "end"` the provider debits only then, so that the reservation comes on top of the period.
 */
export const reserving = (
  { dated, jitter, largest = 0, limit, period, reserved, residency, used }: {
    readonly limit: number
    readonly period: number
    readonly jitter: number
    readonly residency: number
    readonly reserved: number
    readonly used: number
    readonly dated: "start" | "end"
    readonly largest?: number | undefined
  }
): number =>
  period * used / ((period + jitter) * used + residency * (dated === "end" ? reserved : Math.max(0, reserved - used)))
  - fragmentation(largest, limit)

/**
 * Reservations that are given back at the end still fill the bucket until then: with `unused` tokens too many reserved
 * for `residency`, no more than this of the limit can be used. 1 when they do not bind.
 */
export const refundCap = (
  { period, residency, unused, used }: {
    readonly period: number
    readonly residency: number
    readonly used: number
    readonly unused: number
  }
): number => unused <= 0 ? 1 : Math.min(1, period * used / (residency * unused))

/** The share of a charge that was used when nothing is given back. */
export const noRefundCap = (
  { charged, used }: { readonly charged: number; readonly used: number }
): number => used / charged

const fragmentation = (largest: number, limit: number): number => largest <= 1 ? 0 : largest / limit
