/**
 * Many users on one limit: fair shares by weight whatever their priorities, a limit for each of them, a part that is
 * kept for one, and an agent whose requests all belong to the user who asked.
 */
import { NodeRuntime } from "@effect/platform-node"
import { Console, DateTime, Effect, Fiber, Layer } from "effect"
import { ModelConfig, QueueManager, RateLimiter } from "effect-llm-queue"

const Model = ModelConfig.makeUntyped<string, string>("gpt-4", {
  rateLimiters: [RateLimiter.rpm(20, { timePeriod: "1 second" })],
  tenants: {
    byId: {
      // Served three times as much as others while all wait.
      team: { weight: 3 },
      // A fifth of the limit is there for it at any time.
      support: { guaranteed: 0.2 }
    },
    // Everybody else has a limit of its own, too.
    others: { rateLimiters: [RateLimiter.rpm(5, { timePeriod: "1 second" })] }
  }
})

const served = new Map<string, number>()

const ModelLive = QueueManager.layerModel(Model, (request) =>
  Effect.sync(() => {
    const tenant = request.tenant ?? "nobody"
    served.set(tenant, (served.get(tenant) ?? 0) + 1)
    return request.params
  }))

/** Everything that runs in it belongs to the user, and must have ended in time. */
const asUser = (user: string) => <A, E, R>(self: Effect.Effect<A, E, R>) =>
  Effect.flatMap(DateTime.now, (now) =>
    self.pipe(
      QueueManager.withTenant(user),
      QueueManager.withDeadline(DateTime.add(now, { seconds: 20 })),
      QueueManager.withLabels({ feature: "chat" })
    ))

const agent = (questions: number) =>
  QueueManager.QueueManager.use((manager) =>
    Effect.forEach(Array.from({ length: questions }), () => manager.submit(Model, "question", { priority: "high" }), {
      concurrency: "unbounded",
      discard: true
    })
  )

const program = Effect.gen(function*() {
  const manager = yield* QueueManager.QueueManager
  const fibers = yield* Effect.forEach(
    [["team", 40], ["alice", 12], ["bob", 12]] as const,
    ([user, questions]) => Effect.forkChild(agent(questions).pipe(asUser(user)))
  )
  yield* Effect.sleep("1500 millis")
  yield* Console.log("after a second and a half:", Object.fromEntries(served))

  // What is kept for it is there at once.
  yield* manager.submit(Model, "urgent", { tenant: "support" })
  yield* Console.log("support was served")

  yield* Effect.forEach(fibers, Fiber.join)
  yield* Console.log("in the end:", Object.fromEntries(served))
})

program.pipe(
  Effect.provide(ModelLive.pipe(Layer.provideMerge(QueueManager.layer))),
  NodeRuntime.runMain
)
