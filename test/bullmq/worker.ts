/** A process that works on stored requests, for tests that kill it. It tells what it begins, and what it ends. */
import { Effect, type Layer, Schema } from "effect"
import { ModelConfig, QueueManager, RateLimiter } from "effect-llm-queue"
import * as BullMq from "effect-llm-queue/BullMq"
import process from "node:process"

export const lock = 1500

export const Model = ModelConfig.make("crashes", {
  params: Schema.Struct({ text: Schema.String }),
  result: Schema.Struct({ text: Schema.String }),
  rateLimiters: [RateLimiter.concurrent(4)],
  shutdown: { policy: "finishRunning", deadline: "5 seconds" }
})

export interface Message {
  readonly ready?: true
  readonly began?: string
  readonly ended?: string
}

export const layer = (
  redis: string,
  prefix: string,
  options: BullMq.Options = {}
): Layer.Layer<QueueManager.QueueManager> => {
  const { hostname, port } = new URL(redis)
  return BullMq.layer({ connection: { host: hostname, port: Number(port) }, prefix, lock, takeAhead: 6, ...options })
}

const say = (message: Message) => Effect.sync(() => void process.send?.(message))

const [, , redis, prefix, how] = process.argv

if (process.send !== undefined && redis !== undefined && prefix !== undefined) {
  const program = Effect.gen(function*() {
    const manager = yield* QueueManager.QueueManager
    yield* manager.registerQueue(Model, ({ id, params: { text } }) =>
      Effect.gen(function*() {
        yield* say({ began: id })
        if (text === "poison") yield* Effect.sync(() => process.kill(process.pid, "SIGKILL"))
        yield* Effect.sleep(60)
        // A pause of the whole process that is longer than its lock.
        if (text === "stall" && how === "stalls") {
          yield* Effect.sync(() => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 4 * lock))
        }
        yield* say({ ended: id })
        return { text: text.toUpperCase() }
      }))
    yield* say({ ready: true })
    yield* Effect.callback<void>((resume) => {
      process.on("message", () => resume(Effect.void))
      process.once("disconnect", () => resume(Effect.void))
    })
  })
  await Effect.runPromise(program.pipe(Effect.scoped, Effect.provide(layer(redis, prefix))))
  process.disconnect()
}
