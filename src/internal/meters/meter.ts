/**
 * The counting of one windowed limit, whatever the algorithm.
 *
 * Times are monotonic milliseconds and never go back from call to call. Amounts are at least 0 and may be fractions.
 * An amount up to `tolerance` too much is let through, so that the rounding of fractions cannot keep a request waiting.
 */

/** What rounding may add to a limit. */
export const tolerance = 1e-6

/** A dated charge. Only the meter that made it can read it. */
export interface Mark {
  readonly "~effect-llm-queue/Mark": true
}

/** What a meter remembers of a charge, or of several together. */
export interface Remembered {
  /** Its date, or a later one. */
  readonly at: number
  readonly amount: number
  /** The part of it that others have used. */
  readonly others: number
}

/** What a meter remembers, by date. */
export interface History {
  readonly entries: ReadonlyArray<Remembered>
  /** Which of the entries a charge is part of; `undefined` when it no longer matters. */
  readonly find: (mark: Mark) => number | undefined
  /** Whether nothing can be found: it knows what was charged when, but not by whom. */
  readonly isAnonymous?: boolean | undefined
}

export interface Meter {
  /** The most that is available, ever: what is available when nothing is used. */
  readonly capacity: number
  /** Net amount of dated charges that counts now: `capacity − available`. Above `capacity` by debt. */
  used(now: number): number
  /** What dated charges have left. Negative by debt. Reservations without a date are the caller's to subtract. */
  available(now: number): number
  /**
   * The first instant, not before `now`, at which `amount` more fits if nothing but time passes and `held` without a
   * date stays what it is. `now` when it fits now; `Infinity` when only an event can make it fit.
   *
   * More than the capacity fits when nothing else counts. Asked again at the instant it gave, the answer is that
   * instant, unless something happened in between.
   */
  fitsAt(amount: number, held: number, now: number): number
  /**
   * The first instant at which `amount` can fit behind requests that take `ahead`, if they go as soon as they fit and
   * nothing but time passes: `fitsAt` when there are none.
   */
  through(ahead: number, amount: number, held: number, now: number): number
  /** Dates a charge now. It is never refused: what does not fit is debt. */
  charge(amount: number, now: number): Mark
  /** A charge that another meter remembers. They come by date, and before all charges of this meter's own. */
  replay(entry: Remembered, now: number): Mark
  /** One of the charges that were replayed together, of `amount`: it changes for itself. */
  part(mark: Mark, amount: number): Mark
  /** The request of a charge has ended, or has been answered: the provider has counted it by now. */
  landed(mark: Mark, now: number): void
  /** Changes a dated charge. `false` when it no longer matters and nothing changed. */
  adjust(mark: Mark, by: number, now: number): boolean
  /**
   * No more than this is available now, as `available` counts it: what a provider has left, less charges on their way
   * and less what is kept back. Never raises what is available.
   */
  lower(available: number, now: number): void
  /** No less than this is available now, as far as it is less than the capacity. Never lowers what is available. */
  raise(available: number, now: number): void
}
