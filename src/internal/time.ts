import type * as Clock from "effect/Clock"

const readers = new WeakMap<Clock.Clock, () => number>()

/**
 * Reads a clock's monotonic time as milliseconds since its first use here: readings of one clock can be compared, whoever
 * took them. Only differences mean anything, and a wall clock that is set back or forward does not show.
 */
export const monotonic = (clock: Clock.Clock): () => number => {
  let read = readers.get(clock)
  if (read === undefined) {
    const origin = clock.monotonicTimeNanosUnsafe()
    read = () => Number(clock.monotonicTimeNanosUnsafe() - origin) / 1e6
    readers.set(clock, read)
  }
  return read
}
