/**
 * A dashboard for the queues of a program. On a terminal, or with `--stay`, it stays until Ctrl-C, with a table of the
 * queues: open the address that it prints. Elsewhere it ends by itself.
 */
import { NodeHttpServer, NodeRuntime, NodeServices } from "@effect/platform-node"
import { Console, Effect, Layer, Random, Redacted, Schedule } from "effect"
import { ModelConfig, ProviderProfile, QueueManager, RateLimiter } from "effect-llm-queue"
import * as Dashboard from "effect-llm-queue/Dashboard"
import * as TerminalView from "effect-llm-queue/TerminalView"
import { HttpRouter, HttpServer } from "effect/http"
import { createServer } from "node:http"

class Overloaded extends Error {
  readonly status = 529
}

const models = [
  { id: "gpt-4", limits: [RateLimiter.rpm(300), RateLimiter.tpm(60_000), RateLimiter.concurrent(8)] },
  { id: "claude", limits: [RateLimiter.rpm(120), RateLimiter.itpm(40_000), RateLimiter.otpm(8000)] },
  { id: "embeddings", limits: [RateLimiter.rpm(3000), RateLimiter.concurrent(20)] }
].map(({ id, limits }) =>
  ModelConfig.makeUntyped<string, string, Overloaded>(id, {
    rateLimiters: limits,
    provider: ProviderProfile.generic,
    deadLetters: { count: 100 },
    shutdown: { policy: "interrupt", deadline: 0 }
  })
)

const ModelsLive = Layer.effectDiscard(
  QueueManager.QueueManager.use((manager) =>
    manager.registerAllQueues(models, ({ params }) =>
      Effect.gen(function*() {
        yield* Effect.sleep(yield* Random.nextIntBetween(50, 1500))
        if ((yield* Random.next) < 0.03) return yield* Effect.fail(new Overloaded("overloaded"))
        return params
      }))
  )
)

const traffic = Effect.gen(function*() {
  const manager = yield* QueueManager.QueueManager
  const model = models[yield* Random.nextIntBetween(0, models.length)]!
  const tenant = ["acme", "globex", "initech"][yield* Random.nextIntBetween(0, 3)]!
  const priority = (yield* Random.next) < 0.1 ? "high" : "normal"
  yield* Effect.forkChild(
    Effect.ignore(
      manager.submit(model, "a question", { tenant, priority, maxOutputTokens: 100, timeout: "5 minutes" })
    )
  )
}).pipe(Effect.repeat(Schedule.spaced("60 millis")))

const stays = process.stdout.isTTY || process.argv.includes("--stay")
const token = Redacted.make(process.env["DASHBOARD_TOKEN"] ?? "secret")

const ServerLive = HttpRouter.serve(Dashboard.layer({ token, actions: true }), {
  disableLogger: true,
  disableListenLog: true
}).pipe(
  Layer.provideMerge(NodeHttpServer.layer(createServer, {
    host: "127.0.0.1",
    port: stays ? 4100 : 0,
    // A browser keeps a connection that it may need, which a server waits for.
    gracefulShutdownTimeout: "500 millis"
  }))
)

const program = Effect.gen(function*() {
  const url = yield* HttpServer.addressFormattedWith((url) => Effect.succeed(url))
  yield* Console.log(`${url}/llm-queue/dashboard, the token is "${Redacted.value(token)}"`)
  yield* stays
    ? Effect.raceFirst(traffic, TerminalView.show())
    : Effect.timeoutOption(traffic, "1 second")
})

program.pipe(
  Effect.provide(
    ModelsLive.pipe(
      Layer.provideMerge(ServerLive),
      Layer.provideMerge(QueueManager.layer),
      Layer.provideMerge(NodeServices.layer)
    )
  ),
  NodeRuntime.runMain
)
