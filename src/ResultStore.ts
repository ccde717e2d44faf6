/**
 * Where results of deduplicated requests are kept for a time. In memory by default; `PersistedResults` keeps them in any
 * store of Effect's Persistence.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as time from "./internal/time.ts"

/**
 * The kept results of one model.
 *
 * @category models
 * @since 0.1.0
 */
export interface ResultStore {
  readonly get: (key: string) => Effect.Effect<Option.Option<unknown>>
  /** Keeps a result for `ttl` milliseconds. */
  readonly set: (key: string, result: unknown, ttl: number) => Effect.Effect<void>
}

/**
 * The results of a model that are kept at the most, and the schema they have.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  readonly modelId: string
  /** `undefined` for a model without schemas. */
  readonly schema: Schema.Constraint | undefined
  /** Most results that are kept. */
  readonly count: number
}

const memory = ({ count }: Options): Effect.Effect<ResultStore> =>
  Effect.map(Clock.Clock, (clock) => {
    const now = time.monotonic(clock)
    /** The ones that were kept first, first. */
    const kept = new Map<string, { readonly result: unknown; readonly until: number }>()
    const expire = () => {
      for (const [key, { until }] of kept) {
        if (until > now() && kept.size <= count) return
        kept.delete(key)
      }
    }
    return {
      get: (key) =>
        Effect.sync(() => {
          expire()
          const found = kept.get(key)
          return found === undefined ? Option.none() : Option.some(found.result)
        }),
      set: (key, result, ttl) =>
        Effect.sync(() => {
          kept.delete(key)
          kept.set(key, { result, until: now() + ttl })
          expire()
        })
    }
  })

/**
 * Makes the store of a model when the model is registered.
 *
 * @category services
 * @since 0.1.0
 */
export const ResultStore = Context.Reference<{
  readonly make: (options: Options) => Effect.Effect<ResultStore, never, Scope.Scope>
}>("effect-llm-queue/ResultStore", { defaultValue: () => ({ make: memory }) })
