/** What is kept of requests that have ended does not grow with how many there were. A file of its own: it weighs the heap. */
import { assert, it } from "@effect/vitest"
import { Effect, Fiber, Layer } from "effect"
import { ModelConfig, QueueManager, RateLimiter } from "effect-llm-queue"
import * as Metrics from "effect-llm-queue/Metrics"
import { TestClock } from "effect/testing"
import process from "node:process"
import { setImmediate } from "node:timers/promises"
import { setFlagsFromString } from "node:v8"
import { runInNewContext } from "node:vm"

setFlagsFromString("--expose-gc")
const collectGarbage = runInNewContext("gc") as () => void

const weigh = Effect.gen(function*() {
  for (let i = 0; i < 4; i++) {
    yield* Effect.promise(() => setImmediate())
    collectGarbage()
  }
  return process.memoryUsage().heapUsed
})

it.effect("thirty thousand requests leave no more behind than ten thousand do", () =>
  Effect.gen(function*() {
    const manager = yield* QueueManager.QueueManager
    const Model = ModelConfig.makeUntyped<string, string, string>("memory", {
      rateLimiters: [RateLimiter.rpm(1000), RateLimiter.tpm(1e9), RateLimiter.concurrent(100)],
      usage: () => ({ inputTokens: 10, outputTokens: 10 }),
      retention: { count: 100 },
      deadLetters: { count: 10 },
      deduplicate: { key: (params) => params, keep: "1 minute", count: 10 },
      tenants: { others: { rateLimiters: [RateLimiter.rpm(1000)] } }
    })
    yield* manager.registerQueue(Model, ({ params }) =>
      params.endsWith("7") ? Effect.fail(params) : Effect.succeed(`${params} ${"x".repeat(1000)}`))
    let next = 0
    const some = Effect.gen(function*() {
      for (let round = 0; round < 10; round++) {
        const fiber = yield* Effect.forkChild(
          Effect.forEach(Array.from({ length: 1000 }), () => {
            const id = `${next++}`
            return Effect.exit(
              manager.submit(Model, `${"y".repeat(1000)} ${id}`, { id, tenant: `tenant ${id}`, timeout: "1 hour" })
            )
          }, { concurrency: "unbounded", discard: true }),
          { startImmediately: true }
        )
        yield* TestClock.adjust("1 minute")
        yield* Fiber.join(fiber)
      }
      yield* TestClock.adjust("3 minutes")
      return yield* weigh
    })
    const first = yield* some
    yield* some
    const last = yield* some
    const { cancelled, completed, failed } = yield* manager.getQueueInfo(Model)
    assert.deepStrictEqual([completed + failed + cancelled, next], [30_000, 30_000])
    // Twenty thousand more: what each left behind is less than a few pointers.
    assert.isBelow((last - first) / 20_000, 32)
  }).pipe(Effect.scoped, Effect.provide(Layer.provide(QueueManager.layer, Metrics.layer({ tenants: 10 })))), 120_000)
