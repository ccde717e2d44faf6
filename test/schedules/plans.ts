/** The parts that the plans of all scenarios are made from. */
import type { Action, Limit, Plan, Request } from "./history.ts"
import type { Random } from "./seededScheduler.ts"

/** A whole number between two, both included. */
export const int = (random: Random, from: number, to: number): number => from + Math.floor(random() * (to - from + 1))

export const chance = (random: Random, probability: number): boolean => random() < probability

export const pick = <A>(random: Random, items: ReadonlyArray<A>): A => items[Math.floor(random() * items.length)]!

/** `undefined` in some cases. */
export const maybe = <A>(random: Random, probability: number, value: () => A): A | undefined =>
  chance(random, probability) ? value() : undefined

export const list = <A>(length: number, make: (index: number) => A): ReadonlyArray<A> =>
  Array.from({ length }, (_, i) => make(i))

/** The request's number in its id: who waits for whom goes by it, so that nobody waits in a circle. */
export const id = (index: number): string => `r${index}`

export const tokens = (random: Random) => ({ inputTokens: int(random, 0, 6), outputTokens: int(random, 0, 6) })

export const request = (random: Random, index: number, options?: Partial<Request>): Request => ({
  id: id(index),
  tokens: tokens(random),
  usage: tokens(random),
  work: int(random, 0, 4),
  end: pick(random, ["succeed", "succeed", "succeed", "succeed", "fail", "die", "throw", "interrupt"]),
  ...options
})

export const submit = (request: Request, waits: boolean): Action => ({ _tag: "Submit", request, waits })

/** Some of: a concurrency limit, a window of requests, a window of tokens. Every request fits. */
export const limits = (random: Random): ReadonlyArray<Limit> => {
  const kind = int(random, 0, 5)
  const concurrent: Limit = { type: "concurrent", limit: int(random, 1, 3), period: 0 }
  const requests: Limit = {
    type: "rpm",
    limit: int(random, 1, 4),
    period: int(random, 2, 12),
    margin: maybe(random, 0.3, () => int(random, 1, 3))
  }
  const tokens: Limit = {
    type: pick(random, ["tpm", "itpm", "otpm"]),
    limit: int(random, 12, 24),
    period: int(random, 2, 12)
  }
  return kind === 0
    ? [concurrent]
    : kind === 1
    ? [requests]
    : kind === 2
    ? [concurrent, requests]
    : kind === 3
    ? [tokens, concurrent]
    : [requests, tokens, concurrent]
}

export const plan = (options: Partial<Plan>): Plan => ({
  limits: [],
  options: {},
  settles: false,
  callers: [],
  onStart: [],
  ...options
})
