/** A process that takes permits and keeps them, to be killed. It tells when it has them. */
import { Effect, Layer } from "effect"
import { QueueManager } from "effect-llm-queue"
import * as QueueRedis from "effect-llm-queue/Redis"
import process from "node:process"
import { Held, lease } from "./kills.ts"

const [, , redis, prefix, count] = process.argv as [string, string, string, string, string]

const program = Effect.gen(function*() {
  const manager = yield* QueueManager.QueueManager
  let holds = 0
  yield* manager.registerQueue(Held, () =>
    Effect.suspend(() => {
      if (++holds === Number(count)) process.send!("holds")
      return Effect.never
    }))
  yield* Effect.forEach(Array.from({ length: Number(count) }), () => manager.submit(Held, undefined), {
    concurrency: "unbounded"
  })
})

const Live = QueueManager.layer.pipe(
  Layer.provide(QueueRedis.layer({ prefix, lease })),
  Layer.provide(QueueRedis.layerClient(redis))
)

await Effect.runPromise(program.pipe(Effect.scoped, Effect.provide(Live)))
