/**
 * Work that survives the processes that do it.
 *
 * Two processes submit, four process, and all of the four share the limits of one API key. This file starts itself six
 * times. The provider is an HTTP server that enforces strict limits and keeps books. Workers are killed at random, without
 * a word, and new ones take their place: what they held is given to others, what they had sent stays counted, and whoever
 * has submitted a request hears how it ended.
 *
 * It uses the Redis at REDIS_URL, or starts one of its own from the PATH. Exits with 1 when the provider refused anything,
 * a request was lost, or one was sent more often than can be explained.
 */
import { NodeRuntime } from "@effect/platform-node"
import { Effect, Layer, Schema } from "effect"
import { ModelConfig, QueueManager, QueueRequest, RateLimiter } from "effect-llm-queue"
import * as BullMq from "effect-llm-queue/BullMq"
import * as QueueRedis from "effect-llm-queue/Redis"
import { ProviderSimulator } from "effect-llm-queue/testing"
import { FetchHttpClient, HttpClient, HttpClientRequest, HttpServer } from "effect/http"
import { fork } from "node:child_process"
import process from "node:process"
import { fileURLToPath } from "node:url"
import { Disappointing, findRedis, isOver, provider, told, until } from "./processes/processes.ts"

const period = 2000
/** Wide, so that this runs beside anything else. */
const margin = 500
const requests = 60
const atOnce = 12
const submitters = 2
const each = 90
const workers = 4
const kills = 3

// ---------------------------------------------------------------------------------------------------------------
// What all processes know: the model, and where its requests and its limits are
// ---------------------------------------------------------------------------------------------------------------

class ProviderError extends Schema.TaggedError<ProviderError>()("ProviderError", { message: Schema.String }) {}

const Model = ModelConfig.make("gpt", {
  params: Schema.Struct({ prompt: Schema.String }),
  result: Schema.Struct({ text: Schema.String }),
  error: ProviderError,
  rateLimiters: [RateLimiter.rpm(requests, { timePeriod: period, margin }), RateLimiter.concurrent(atOnce)],
  shutdown: { policy: "finishRunning", deadline: "5 seconds" }
})

interface Job {
  readonly role: "worker" | "submitter"
  readonly name: string
  readonly redis: string
  readonly prefix: string
  readonly provider: string
}

const durableManager = ({ prefix, redis }: Pick<Job, "prefix" | "redis">) => {
  const { hostname, port } = new URL(redis)
  return BullMq.layer({
    connection: { host: hostname, port: Number(port) },
    prefix: `${prefix}-jobs`,
    takeAhead: atOnce,
    // What a process held when it died is given to others after this: 30 seconds, if not said otherwise.
    lock: "3 seconds"
  }).pipe(
    Layer.provide(QueueRedis.layer({ prefix, lease: "3 seconds" })),
    Layer.provide(QueueRedis.layerClient(redis))
  )
}

// ---------------------------------------------------------------------------------------------------------------
// A worker: it registers the model, and processes what comes
// ---------------------------------------------------------------------------------------------------------------

const call = Effect.fn("call")(function*(provider: string, model: string, prompt: string, id: string) {
  const response = yield* HttpClientRequest.post(`${provider}/v1/chat/completions`).pipe(
    // The same when a request is processed again: a real provider takes it as its idempotency key.
    HttpClientRequest.setHeader("x-sim-request-id", id),
    HttpClientRequest.bodyJsonUnsafe({ model, messages: [{ role: "user", content: prompt }], max_tokens: 20 }),
    HttpClient.execute
  )
  const text = yield* response.text
  if (response.status !== 200) return yield* new ProviderError({ message: text })
  return { text }
}, Effect.catchTag("HttpClientError", (error) => Effect.fail(new ProviderError({ message: error.message }))))

const say = (message: object) => Effect.sync(() => void process.send?.(message))

const work = (job: Job) =>
  Effect.gen(function*() {
    const manager = yield* QueueManager.QueueManager
    // Opens the connections: the first requests would take longer on their way than the margin allows for.
    yield* Effect.forEach(Array.from({ length: atOnce }), () => call(job.provider, "warm-up", "hello", ""), {
      concurrency: atOnce
    })
    yield* manager.registerQueue(Model, ({ id, params }) => call(job.provider, "gpt", params.prompt, id))
    yield* say({ ready: true })
    yield* told("stop")
  }).pipe(Effect.scoped, Effect.provide(Layer.merge(durableManager(job), FetchHttpClient.layer)))

// ---------------------------------------------------------------------------------------------------------------
// A submitter: it has no processor, and hears how its requests end
// ---------------------------------------------------------------------------------------------------------------

const submit = (job: Job) =>
  Effect.gen(function*() {
    const manager = yield* QueueManager.QueueManager
    yield* Effect.forEach(
      Array.from({ length: each }, (_, index) => `${job.name}-${index}`),
      (id) =>
        manager.submitRequest(QueueRequest.make(Model, { id, params: { prompt: `Question ${id}` } })).pipe(
          Effect.matchEffect({
            onSuccess: () => say({ ended: "completed" }),
            onFailure: (error) => say({ ended: error._tag })
          })
        ),
      { concurrency: "unbounded", discard: true }
    )
  }).pipe(Effect.scoped, Effect.provide(durableManager(job)))

// ---------------------------------------------------------------------------------------------------------------
// The one that starts them, kills some, and has the provider
// ---------------------------------------------------------------------------------------------------------------

interface Message {
  readonly ready?: true
  readonly ended?: string
}

const start = (job: Job) =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const child = fork(fileURLToPath(import.meta.url), [JSON.stringify(job)])
      const did = { isReady: false, completed: 0, failed: 0 }
      child.on("message", ({ ended, ready }: Message) => {
        if (ready) did.isReady = true
        else if (ended === "completed") did.completed++
        else did.failed++
      })
      return { job, child, did }
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
  const common = { redis, provider: address, prefix: `example-${process.pid}` }
  const startWorker = (index: number) => start({ ...common, role: "worker", name: `worker ${index}` })
  const team = yield* Effect.forEach(Array.from({ length: workers }, (_, index) => index), startWorker)
  yield* until(() => team.every(({ child, did }) => did.isReady || isOver(child)))

  const askers = yield* Effect.forEach(
    Array.from({ length: submitters }, (_, index) => `submitter ${index}`),
    (name) => start({ ...common, role: "submitter", name })
  )
  const all = submitters * each
  const ended = () => askers.reduce((sum, { did: { completed, failed } }) => sum + completed + failed, 0)
  for (let killed = 0; killed < kills; killed++) {
    // In the middle of their work.
    yield* until(() => ended() >= (all * (killed + 1)) / (kills + 2))
    const victim = team.splice(Math.floor(Math.random() * team.length), 1)[0]!
    victim.child.kill("SIGKILL")
    team.push(yield* startWorker(workers + killed))
  }
  yield* until(() => askers.every(({ child }) => isOver(child)))
  for (const { child } of team) child.send("stop")
  yield* until(() => team.every(({ child }) => isOver(child)))

  const books = (yield* simulator.report()).models.find(({ model }) => model === "gpt")!
  const arrivals = (yield* simulator.arrivals).filter(({ model }) => model === "gpt")
  const asked = new Set(arrivals.map(({ requestId }) => requestId))
  const completed = askers.reduce((sum, { did }) => sum + did.completed, 0)
  console.table({
    submitted: all,
    completed,
    lost: all - ended(),
    "workers killed": kills,
    "sent again": arrivals.length - asked.size,
    refused: books.refused,
    "most in a window": `${books.limits[0]!.worstWindow} of ${requests}`,
    "most at one time": `${books.maxConcurrent} of ${atOnce}`
  })
  if (books.refused > 0) return yield* new Disappointing({ message: `${books.refused} refused` })
  if (completed < all) return yield* new Disappointing({ message: `only ${completed} of ${all} completed` })
  if (arrivals.length - asked.size > kills * atOnce) return yield* new Disappointing({ message: "too much sent again" })
}).pipe(Effect.scoped, Effect.provide(provider({ requests, period, atOnce, perRequest: 150 })))

const [, , job] = process.argv

const run = (job: Job) => job.role === "worker" ? work(job) : submit(job)

if (job === undefined) NodeRuntime.runMain(main)
else NodeRuntime.runMain(Effect.andThen(run(JSON.parse(job) as Job), Effect.sync(() => process.disconnect())))
