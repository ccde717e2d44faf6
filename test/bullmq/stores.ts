/** The stores that stored queues are tested on, and processes, as far as a store can tell. */
import { createPostgresBackend } from "bullmq"
import { Context, Effect, Exit, Layer, Scope } from "effect"
import { QueueManager } from "effect-llm-queue"
import * as BullMq from "effect-llm-queue/BullMq"
import process from "node:process"
import { hasRedis, url } from "../redis/server.ts"
import * as postgres from "./postgres.ts"

let prefixes = 0

export const newPrefix = () => `test-${process.pid}-${Math.random()}-${prefixes++}`

/** The server of one test. */
export const place = Effect.map(url, (url) => {
  const { hostname, port } = new URL(url)
  return { url, connection: { host: hostname, port: Number(port) } }
})

export const stores = [
  {
    name: "on Redis",
    isThere: hasRedis,
    options: Effect.map(place, ({ connection }): BullMq.Options => ({ connection, commandTimeout: "10 seconds" }))
  },
  {
    name: "on PostgreSQL",
    isThere: postgres.hasPostgres,
    options: Effect.map(postgres.url, (connectionString): BullMq.Options => ({
      backend: createPostgresBackend,
      connection: { connectionString, migrate: true },
      commandTimeout: "10 seconds"
    }))
  }
]

/** A process, as far as the store can tell. */
export const start = Effect.fnUntraced(function*(options: BullMq.Options) {
  const scope = yield* Scope.make()
  yield* Effect.addFinalizer(() => Scope.close(scope, Exit.void))
  const context = yield* Layer.buildWithScope(Layer.fresh(BullMq.layer(options)), scope)
  return {
    manager: Context.get(context, QueueManager.QueueManager),
    close: Scope.close(scope, Exit.void),
    scope
  }
})
