/**
 * What becomes of shared limits when the server, or the line to it, is not what it should be: with requests in flight,
 * waiting and settling, nothing is lost, nothing hangs, no limit is exceeded, and work goes on when it is over.
 */
import { assert, describe, it } from "@effect/vitest"
import { Context, Effect, Exit, Fiber, Layer, Scope } from "effect"
import { ModelConfig, QueueManager, QueueRequest, RateLimiter } from "effect-llm-queue"
import * as QueueRedis from "effect-llm-queue/Redis"
import * as proxy from "./proxy.ts"
import { canStart, own } from "./server.ts"

const commandTimeout = 400
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

type Server = Effect.Success<ReturnType<typeof own>>
type Line = Effect.Success<ReturnType<typeof proxy.make>>

interface Fault {
  readonly name: string
  /** Ends when the fault is over. */
  readonly happen: (server: Server, line: Line) => Effect.Effect<unknown>
  readonly options?: ReadonlyArray<string>
}

const wait = Effect.sleep(3 * commandTimeout)
const during = (begin: Effect.Effect<unknown>, end: Effect.Effect<unknown>) =>
  Effect.andThen(begin, Effect.andThen(wait, end))

const kept = ["--appendonly yes", "--appendfsync always"]

const faults: ReadonlyArray<Fault> = [
  { name: "is killed and comes back", options: kept, happen: ({ kill, start }) => during(kill, start) },
  { name: "is killed and comes back with nothing", happen: ({ kill, start }) => during(kill, start) },
  { name: "stands still", happen: ({ signal }) => during(signal("SIGSTOP"), signal("SIGCONT")) },
  { name: "forgets its scripts", happen: ({ command }) => command("SCRIPT", "FLUSH") },
  { name: "forgets everything", happen: ({ command }) => command("FLUSHALL") },
  {
    name: "closes its connections",
    happen: ({ command }) => command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
  },
  {
    name: "has no memory left",
    happen: ({ command }) =>
      during(command("CONFIG", "SET", "maxmemory", "1"), command("CONFIG", "SET", "maxmemory", "0"))
  },
  {
    name: "only reads",
    happen: ({ command }) => during(command("REPLICAOF", "127.0.0.1", "1"), command("REPLICAOF", "NO", "ONE"))
  },
  {
    name: "is busy with a script",
    happen: ({ command }) =>
      during(
        Effect.forkDetach(Effect.exit(command("EVAL", "while true do end", "0"))),
        command("SCRIPT", "KILL")
      ),
    options: ["--busy-reply-threshold 50"]
  },
  { name: "cannot be heard", happen: (_, { set }) => during(set("mute"), set("pass")) },
  { name: "is behind a line that swallows everything", happen: (_, { set }) => during(set("swallow"), set("pass")) },
  { name: "is behind a line that is reset", happen: (_, { set }) => during(set("refuse"), set("pass")) },
  { name: "is far away for a while", happen: (_, { set }) => during(set({ slow: 150 }), set("pass")) }
]

/** A process, as far as the server can tell. */
const start = Effect.fnUntraced(function*(url: string, options: QueueRedis.Options = {}) {
  const scope = yield* Scope.make()
  yield* Effect.addFinalizer(() => Scope.close(scope, Exit.void))
  const context = yield* Layer.buildWithScope(
    Layer.fresh(QueueManager.layer).pipe(
      Layer.provide(Layer.fresh(QueueRedis.layer({ commandTimeout, lease: "2 seconds", ...options }))),
      Layer.provide(Layer.fresh(QueueRedis.layerClient(url, { commandTimeout })))
    ),
    scope
  )
  return { manager: Context.get(context, QueueManager.QueueManager), scope }
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
        yield* happen(server, line)
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
