/**
 * SIGTERM ends the program in order: no new requests, those accepted are finished within the deadline, then the
 * processor's own services are released.
 *
 * The program sends itself the signal half a second after its start.
 */
import { NodeRuntime } from "@effect/platform-node"
import { Cause, Console, Context, Effect, Exit, Layer } from "effect"
import { ModelConfig, QueueManager, QueueRequest } from "effect-llm-queue"
import { kill, pid } from "node:process"

class Connection extends Context.Service<Connection, { send(text: string): Effect.Effect<string> }>()(
  "effect-llm-queue/examples/graceful-shutdown/Connection"
) {
  static readonly layer = Layer.effect(
    Connection,
    Effect.acquireRelease(
      Effect.succeed({ send: (text: string) => Effect.as(Effect.sleep("200 millis"), text.toUpperCase()) }),
      () => Console.log("connection closed")
    )
  )
}

const Echo = ModelConfig.makeUntyped<string, string>("echo", {
  rateLimit: 2,
  rateLimiterMode: "concurrent_requests",
  shutdown: { policy: "drain", deadline: "10 seconds" }
})

// The queue is drained before the connection is closed: the layer of the processor depends on the connection's.
const EchoLive = QueueManager.layerModel(
  Echo,
  (request) =>
    Connection.use((connection) => connection.send(request.params)).pipe(
      Effect.tap((answer) => Console.log(answer))
    )
).pipe(Layer.provide(Connection.layer))

const program = Effect.gen(function*() {
  const manager = yield* QueueManager.QueueManager
  for (const word of ["every", "accepted", "request", "is", "still", "answered"]) {
    yield* manager.submitRequest(QueueRequest.make(Echo, { params: word, waitForCompletion: false }))
  }
  yield* Effect.sync(() => kill(pid, "SIGTERM")).pipe(Effect.delay("500 millis"), Effect.forkChild)
  return yield* Effect.never
})

program.pipe(
  Effect.provide(EchoLive.pipe(Layer.provideMerge(QueueManager.layer))),
  NodeRuntime.runMain({
    // By default an interruption exits with 130; after an orderly end some supervisors want 0.
    teardown: (exit, onExit) => onExit(Exit.isSuccess(exit) || Cause.hasInterruptsOnly(exit.cause) ? 0 : 1)
  })
)
