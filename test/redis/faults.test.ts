/**
 * What becomes of shared limits when the server, or the line to it, is not what it should be: with requests in flight,
 * waiting and settling, nothing is lost, nothing hangs, no limit is exceeded, and work goes on when it is over.
 */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Scope } from "effect"
import { ModelConfig, QueueRequest, RateLimiter } from "effect-llm-queue"
import type * as QueueRedis from "effect-llm-queue/Redis"
import * as campaign from "./faults/campaign.ts"
import * as clocks from "./faults/clocks.ts"
import { faults } from "./faults/faults.ts"
import * as kills from "./faults/kills.ts"
import * as proxy from "./proxy.ts"
import { canStart, own } from "./server.ts"

const { commandTimeout } = campaign
const period = 1500
const tight = 20

/** Enough to be busy all the time. */
const Free = ModelConfig.makeUntyped<number, number>("free", {
  rateLimiters: [RateLimiter.rpm(1e6), RateLimiter.tpm(1e9), RateLimiter.concurrent(4)],
  usage: () => ({ inputTokens: 1, outputTokens: 1 }),
  shutdown: { policy: "interrupt", deadline: "5 seconds" }
})

/** Full all the time. */
const Tight = ModelConfig.makeUntyped<number, number>("tight", {
  rateLimiters: [RateLimiter.rpm(tight, { timePeriod: period }), RateLimiter.tpd(1e9, { chargedAt: "completion" })],
  shutdown: { policy: "interrupt", deadline: "5 seconds" }
})

const wait = Effect.sleep(3 * commandTimeout)

const start = (url: string, options: QueueRedis.Options = {}) =>
  campaign.start(url, "ioredis", { lease: "2 seconds", margin: 400, ...options })

describe.runIf(canStart)("processes that share limits", () => {
  it.live(
    "have what another one held that was killed, when its lease is over",
    () => Effect.map(kills.run(2), ({ problems }) => assert.deepStrictEqual(problems, [])),
    60_000
  )

  it.live(
    "need no clocks that are right",
    () => Effect.map(clocks.run(3_600_000, 4000), ({ problems }) => assert.deepStrictEqual(problems, [])),
    60_000
  )
})

describe.runIf(canStart)("a server that", () => {
  for (const { happen, name, options = [] } of faults) {
    it.live(name, () =>
      Effect.gen(function*() {
        const server = yield* own(...options)
        const line = yield* proxy.make(server.port)
        const processes = yield* Effect.forEach([1, 2], () => start(line.url))
        const sent: Array<number> = []
        let done = 0
        let isOver = false
        const workers = yield* Effect.forEach(processes, ({ manager, scope }) =>
          Effect.gen(function*() {
            yield* Scope.provide(
              manager.registerQueue(Free, ({ params }) => Effect.delay(Effect.succeed(params), 15)),
              scope
            )
            yield* Scope.provide(
              manager.registerQueue(Tight, ({ params }) =>
                Effect.sync(() => {
                  sent.push(performance.now())
                  return params
                })),
              scope
            )
            const keepBusy = <P, A, E>(model: ModelConfig.ModelConfig<P, A, E>, params: NoInfer<P>, count: number) =>
              Effect.forEach(
                Array.from({ length: count }),
                () =>
                  Effect.whileLoop({
                    while: () => !isOver,
                    body: () => Effect.tap(manager.submit(model, params), () => Effect.sync(() => void done++)),
                    step: () => {}
                  }),
                { concurrency: "unbounded", discard: true }
              )
            return yield* Effect.forkChild(Effect.all([keepBusy(Free, 1, 8), keepBusy(Tight, 1, 15)], {
              concurrency: "unbounded"
            }))
          }))
        while (done < 60) yield* Effect.sleep(20)
        yield* happen(server, line, wait)
        // Both go on: what each of them has submitted since then comes back.
        const goesOn = Effect.forEach(processes, ({ manager }) => manager.submit(Free, 1), { concurrency: "unbounded" })
        yield* Effect.timeout(goesOn, "20 seconds")
        const before = sent.length
        while (sent.length < before + tight) yield* Effect.sleep(20)
        isOver = true
        // Whatever has been submitted ends.
        for (const worker of workers) yield* Fiber.join(worker)
        for (const [index, at] of sent.entries()) {
          const first = sent[index - tight]
          if (first !== undefined) assert.isAtLeast(at - first, period, `${tight + 1} within a period`)
        }
        // Nothing that was held is held for ever.
        for (const { manager } of processes) {
          while ((yield* manager.getQueueInfo(Free)).rateLimiters.find(({ type }) => type === "concurrent")!.used > 0) {
            yield* Effect.sleep(50)
          }
        }
      }).pipe(Effect.scoped), 60_000)
  }

  it.live("is away fails those that say so, and times out those that wait", () =>
    Effect.gen(function*() {
      const server = yield* own()
      const fails = yield* start(server.url, { whenAway: "fail" })
      const waits = yield* start(server.url)
      for (const { manager, scope } of [fails, waits]) {
        yield* Scope.provide(manager.registerQueue(Free, ({ params }) => Effect.succeed(params)), scope)
        assert.strictEqual((yield* manager.submit(Free, 2)).result, 2)
      }
      yield* server.kill
      assert.strictEqual((yield* Effect.flip(fails.manager.submit(Free, 1)))._tag, "QueueUnavailable")
      const late = yield* Effect.flip(waits.manager.submit(Free, 1, { timeout: "1 second" }))
      assert.strictEqual(late._tag, "QueueTimeout")
      // One that begins now says so, and does not hang.
      const begins = yield* start(server.url)
      const error = yield* Effect.flip(
        Scope.provide(begins.manager.registerQueue(Free, ({ params }) => Effect.succeed(params)), begins.scope)
      )
      assert.strictEqual(error._tag, "QueueUnavailable")
      const pending = yield* waits.manager.submitRequest(
        QueueRequest.make(Free, { params: 3, waitForCompletion: false })
      )
      yield* server.start
      assert.strictEqual((yield* waits.manager.awaitCompletion(pending)).result, 3)
    }).pipe(Effect.scoped), 60_000)

  it.live("is away keeps no scope open", () =>
    Effect.gen(function*() {
      const server = yield* own()
      const { manager, scope } = yield* start(server.url)
      yield* Scope.provide(manager.registerQueue(Free, () => Effect.never), scope)
      yield* Effect.forkChild(Effect.exit(manager.submit(Free, 1)))
      while ((yield* manager.getQueueInfo(Free)).running === 0) yield* Effect.sleep(10)
      yield* server.signal("SIGSTOP")
      yield* Effect.timeout(Scope.close(scope, Exit.void), "10 seconds")
    }).pipe(Effect.scoped), 60_000)
})
