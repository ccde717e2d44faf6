import type * as Clock from "effect/Clock"

/**
 * Reads a clock's monotonic time as milliseconds since this call. Only differences are used, and a wall clock that is
 * set back or forward does not show.
 */
export const monotonic = (clock: Clock.Clock): () => number => {
  const origin = clock.monotonicTimeNanosUnsafe()
  return () => Number(clock.monotonicTimeNanosUnsafe() - origin) / 1e6
}
