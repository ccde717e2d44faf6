/**
 * Four processes with one API key, whose limits are counted on Redis.
 *
 * This file starts itself four times. The processes know nothing of each other: each has its own queue manager, and all
 * send to one provider, an HTTP server that enforces strict limits of 75 requests in any 2.5 seconds and 16 at one time,
 * and keeps books. Two have more work than the limits let through, two have a little now and then. One of the busy ones is
 * killed in the middle: what it was allowed stays counted, what it held comes back, and the others go on.
 *
 * It uses the Redis at REDIS_URL, or starts one of its own from the PATH. Exits with 1 when the provider refused anything,
 * one that is alive had nothing, or much of what the limits allow was left.
 */
import { NodeRuntime } from "@effect/platform-node"
import { Effect, Layer, Schema } from "effect"
import { ModelConfig, QueueManager, QueueRequest, RateLimiter } from "effect-llm-queue"
import * as QueueRedis from "effect-llm-queue/Redis"
import { ProviderSimulator } from "effect-llm-queue/testing"
import { FetchHttpClient, HttpClient, HttpClientRequest, HttpServer } from "effect/http"
import { fork } from "node:child_process"
import process from "node:process"
import { fileURLToPath } from "node:url"
import { Disappointing, findRedis, isOver, provider, told, until } from "./processes/processes.ts"

const period = 2500
/** Wide, so that this runs beside anything else. */
const margin = 500
/** What the shared limits add to it, for the way from Redis to here: their `margin`. */
const added = 100
const windows = 3
const requests = 75
const atOnce = 16

// ---------------------------------------------------------------------------------------------------------------
// One of the processes
// ---------------------------------------------------------------------------------------------------------------

interface Job {
  readonly name: string
  readonly redis: string
  readonly prefix: string
  readonly provider: string
  /** Milliseconds between its requests; 0 for more work than there is room for. */
  readonly every: number
}

class ProviderError extends Schema.TaggedError<ProviderError>()("ProviderError", { message: Schema.String }) {}

const Model = ModelConfig.make("gpt", {
  params: Schema.Struct({ prompt: Schema.String }),
  result: Schema.Void,
  error: ProviderError,
  // The same in every process: one that says otherwise is not let in.
  rateLimiters: [RateLimiter.rpm(requests, { timePeriod: period, margin }), RateLimiter.concurrent(atOnce)],
  // A submission waits for room here, so a busy process always has so many waiting.
  capacity: 40,
  // At the end nothing more is sent, and what runs may finish.
  shutdown: { policy: "finishRunning", deadline: "5 seconds" }
})

/** All that a process needs to share its limits: the same prefix, on the same server. */
const sharedManager = (url: string, prefix: string) =>
  QueueManager.layer.pipe(
    // What a process held when it died comes back after the lease: 30 seconds, if not said otherwise.
    Layer.provide(QueueRedis.layer({ prefix, lease: "3 seconds" })),
    Layer.provide(QueueRedis.layerClient(url))
  )

/** What a process says to the one that has started it. */
type Message = "ready" | "sent" | "completed" | "refused"

const say = (message: Message) => Effect.sync(() => void process.send?.(message))

const call = Effect.fn("call")(function*(provider: string, model: string, prompt: string) {
  const response = yield* HttpClientRequest.post(`${provider}/v1/chat/completions`).pipe(
    HttpClientRequest.bodyJsonUnsafe({ model, messages: [{ role: "user", content: prompt }], max_tokens: 30 }),
    HttpClient.execute
  )
  const body = yield* response.text
  if (response.status !== 200) return yield* new ProviderError({ message: body })
}, Effect.catchTag("HttpClientError", (error) => Effect.fail(new ProviderError({ message: error.message }))))

const work = (job: Job) =>
  Effect.gen(function*() {
    const { every, name, provider } = job
    const manager = yield* QueueManager.QueueManager
    // Opens the connections: the first requests would take longer on their way than the margin allows for.
    yield* Effect.forEach(Array.from({ length: 2 * atOnce }), () => call(provider, "warm-up", "hello"), {
      concurrency: atOnce
    })
    yield* manager.registerQueue(Model, ({ params }) =>
      Effect.tapError(
        Effect.andThen(say("sent"), Effect.andThen(call(provider, "gpt", params.prompt), say("completed"))),
        () => say("refused")
      ))
    yield* say("ready")
    yield* told("go")
    const submit = manager.submitRequest(
      QueueRequest.make(Model, { params: { prompt: `a question of process ${name}` }, waitForCompletion: false })
    )
    const submitAll = Effect.forever(every === 0 ? submit : Effect.andThen(submit, Effect.sleep(every)))
    yield* Effect.raceFirst(submitAll, told("stop"))
  }).pipe(Effect.scoped, Effect.provide(Layer.merge(sharedManager(job.redis, job.prefix), FetchHttpClient.layer)))

// ---------------------------------------------------------------------------------------------------------------
// The one that starts them, and has the provider
// ---------------------------------------------------------------------------------------------------------------

const loads = [
  { name: "A", every: 0 },
  { name: "B", every: 0 },
  { name: "C", every: 400 },
  { name: "D", every: 700 }
]

const start = (job: Job) =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const child = fork(fileURLToPath(import.meta.url), [JSON.stringify(job)])
      const did = { ready: 0, sent: 0, completed: 0, refused: 0 }
      child.on("message", (message: Message) => did[message]++)
      return { name: job.name, child, did }
    }),
    ({ child }) => Effect.sync(() => void child.kill("SIGKILL"))
  )

const main = Effect.gen(function*() {
  const redis = yield* findRedis
  if (redis === undefined) {
    return yield* Effect.sync(() =>
      console.log("Nothing was done: there is no REDIS_URL, and no redis-server on the PATH")
    )
  }
  const simulator = yield* ProviderSimulator.ProviderSimulator
  const address = yield* HttpServer.addressFormattedWith((url) => Effect.succeed(url))
  const prefix = `example:${process.pid}`
  const processes = yield* Effect.forEach(loads, (load) => start({ ...load, redis, prefix, provider: address }))
  yield* until(() => processes.every(({ child, did }) => did.ready > 0 || isOver(child)))

  const begin = yield* simulator.now
  for (const { child } of processes) child.send("go")
  // All that a window allows may be sent at its beginning, and again after a period and its margins.
  const length = windows * (period + margin + added)
  yield* Effect.sleep(length / 2)
  const killed = processes[1]!
  killed.child.kill("SIGKILL")
  yield* Effect.sleep(length / 2)
  const { models } = yield* simulator.report({ from: begin, to: begin + length })
  for (const { child } of processes) if (!isOver(child)) child.send("stop")
  yield* until(() => processes.every(({ child }) => isOver(child)))

  const bound = period / (period + margin + added)
  const utilisation = models.find(({ model }) => model === "gpt")!.limits[0]!.utilisation
  const books = (yield* simulator.report()).models.find(({ model }) => model === "gpt")!
  console.table(processes.map(({ child, did: { completed, sent }, name }, index) => ({
    process: name,
    work: loads[index]!.every === 0 ? "more than fits" : `one every ${loads[index]!.every} ms`,
    sent,
    completed,
    end: child === killed.child ? "killed in the middle" : "finished what ran"
  })))
  console.log(
    `The provider admitted ${books.admitted} and refused ${books.refused}, with at most ${books.maxConcurrent} of ${atOnce} at one time. `
      + `${(utilisation * 100).toFixed(1)} % of the limit was used, of ${
        (bound * 100).toFixed(1)
      } % that can be with these margins.`
  )
  if (books.refused > 0) return yield* new Disappointing({ message: `${books.refused} refused` })
  const short = processes.find(({ child, did }) =>
    child !== killed.child && (did.sent === 0 || did.completed < did.sent)
  )
  if (short !== undefined) return yield* new Disappointing({ message: `${short.name} has not got its share back` })
  if (utilisation < 0.8 * bound) return yield* new Disappointing({ message: `only ${utilisation} was used` })
}).pipe(Effect.scoped, Effect.provide(provider({ requests, period, atOnce, perRequest: 100 })))

const [, , job] = process.argv

if (job === undefined) NodeRuntime.runMain(main)
else NodeRuntime.runMain(Effect.andThen(work(JSON.parse(job) as Job), Effect.sync(() => process.disconnect())))
