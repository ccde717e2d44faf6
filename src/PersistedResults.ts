/**
 * Keeps the results of deduplicated requests in a store of Effect's Persistence: Redis, SQL, a key-value store. Other
 * processes that use the same store get them, too.
 *
 * `effect/persistence` is unstable: a minor version of Effect may need a new version of this module.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Hex from "effect/encoding/Hex"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Persistence from "effect/persistence/Persistence"
import * as Schema from "effect/Schema"
import type * as ModelConfig from "./ModelConfig.ts"
import * as ResultStore from "./ResultStore.ts"

/** Keys hold parameters: they may be long, and are nobody's business. */
const hashed = (key: string): Effect.Effect<string> =>
  Effect.map(
    Effect.promise(() => globalThis.crypto.subtle.digest("SHA-256", new TextEncoder().encode(key))),
    (digest) => Hex.encode(new Uint8Array(digest))
  )

/**
 * Results are encoded by the model's result schema; those of models without schemas must be JSON. What the store cannot
 * do, and what it has that cannot be decoded, is logged and counts as not kept. How many are kept is for the store.
 *
 * **Example** (Results in memory that several managers share)
 *
 * ```ts
 * import { Layer } from "effect"
 * import { QueueManager } from "effect-llm-queue"
 * import * as PersistedResults from "effect-llm-queue/PersistedResults"
 * import { Persistence } from "effect/persistence"
 *
 * const ManagerLive = QueueManager.layer.pipe(
 *   Layer.provide(PersistedResults.layer),
 *   Layer.provide(Persistence.layerBackingMemory)
 * )
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<never, never, Persistence.BackingPersistence> = Layer.effect(
  ResultStore.ResultStore,
  Effect.gen(function*() {
    const backing = yield* Persistence.BackingPersistence
    return {
      make: Effect.fnUntraced(function*({ modelId, schema }: ResultStore.Options) {
        const store = yield* backing.make(`effect-llm-queue:${modelId}`)
        const codec = schema === undefined ? Schema.Unknown : Schema.toCodecJson(schema as ModelConfig.Codec)
        const encode = Schema.encodeUnknownEffect(codec)
        const decode = Schema.decodeUnknownEffect(codec)
        return {
          get: (key) =>
            Effect.flatMap(hashed(key), store.get).pipe(
              Effect.flatMap((found) =>
                // What has no result is not from here.
                found === undefined || !("result" in found)
                  ? Effect.succeedNone
                  : Effect.asSome(decode(found["result"]))
              ),
              Effect.catchCause((cause) =>
                Effect.as(
                  Effect.logWarning(`A kept result of model ${modelId} cannot be read`, cause),
                  Option.none<unknown>()
                )
              )
            ),
          set: (key, result, ttl) =>
            Effect.flatMap(
              Effect.all([hashed(key), encode(result)]),
              ([hash, encoded]) =>
                store.set(hash, { result: encoded }, Number.isFinite(ttl) ? Duration.millis(ttl) : undefined)
            ).pipe(
              Effect.catchCause((cause) => Effect.logWarning(`A result of model ${modelId} cannot be kept`, cause))
            )
        }
      })
    }
  })
)
