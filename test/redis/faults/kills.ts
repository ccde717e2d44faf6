/** A process that is killed while it holds what there is: it comes back when its lease is over. */
import { Effect, Fiber, Scope } from "effect"
import { ModelConfig, RateLimiter } from "effect-llm-queue"
import { fork } from "node:child_process"
import { fileURLToPath } from "node:url"
import { own } from "../server.ts"
import { type Outcome, start } from "./campaign.ts"

export const lease = 1500
const atOnce = 4

export const Held = ModelConfig.makeUntyped<void, void>("held", {
  rateLimiters: [RateLimiter.rpm(1e6), RateLimiter.concurrent(atOnce)],
  shutdown: { policy: "interrupt", deadline: "1 second" }
})

const hold = (url: string, prefix: string, count: number) =>
  Effect.acquireRelease(
    Effect.callback<() => void>((resume) => {
      const child = fork(fileURLToPath(new URL("worker.ts", import.meta.url)), [url, prefix, `${count}`], {
        execArgv: ["-C", "llmq-source"]
      })
      child.once("message", () => resume(Effect.succeed(() => void child.kill("SIGKILL"))))
      child.once("exit", () => resume(Effect.die(new Error("a process has ended"))))
    }),
    (kill) => Effect.sync(kill)
  )

/** One after the other, on one server: nothing is left of those that were killed before. */
export const run = (rounds: number) =>
  Effect.gen(function*() {
    const problems: Array<string> = []
    const server = yield* own()
    const prefix = "kills"
    const { manager, scope } = yield* start(server.url, "ioredis", { prefix, lease })
    let begun = 0
    let longest = 0
    yield* manager.registerQueue(Held, () => Effect.delay(Effect.sync(() => void begun++), 20)).pipe(
      Effect.provideService(Scope.Scope, scope)
    )
    for (let round = 0; round < rounds; round++) {
      yield* Effect.gen(function*() {
        // All of it, or all but one.
        const count = atOnce - round % 2
        const kill = yield* hold(server.url, prefix, count)
        const before = begun
        const waiting = yield* Effect.forkChild(
          Effect.forEach(Array.from({ length: 3 * atOnce }), () => manager.submit(Held, undefined), {
            concurrency: "unbounded"
          })
        )
        yield* Effect.sleep(300)
        if (count === atOnce && begun > before) problems.push("something was let in beside what was held")
        kill()
        const killed = performance.now()
        yield* Effect.timeoutOrElse(Fiber.join(waiting), {
          duration: 20_000,
          orElse: () => Effect.sync(() => void problems.push("permits of a process that was killed do not come back"))
        })
        longest = Math.max(longest, performance.now() - killed)
        // Its last word was a third of a lease before that at most. Those who wait look once a second.
        const used = Effect.map(
          manager.getQueueInfo(Held),
          ({ rateLimiters }) => rateLimiters.find(({ type }) => type === "concurrent")!.used
        )
        while ((yield* used) > 0) {
          yield* Effect.sleep(20)
          if (performance.now() - killed > 20_000) return void problems.push("usage is not 0")
        }
      }).pipe(Effect.scoped)
    }
    if (longest > lease + 2000) {
      problems.push(`${Math.round(longest)} ms after one was killed, more than ${lease + 2000}`)
    }
    return { problems: Array.from(new Set(problems)), back: longest, submitted: begun } satisfies Outcome
  }).pipe(
    Effect.scoped,
    Effect.catchCause((cause) =>
      Effect.succeed<Outcome>({ problems: [`the run itself: ${String(cause)}`], back: Number.NaN, submitted: 0 })
    )
  )
