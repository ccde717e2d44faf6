/** Where a secret of a request can be seen, and where it cannot: see docs/reliability.md. */
import { NodeHttpServer } from "@effect/platform-node"
import { assert, describe, it } from "@effect/vitest"
import { Cause, Effect, Exit, Fiber, Layer, Logger, Metric, Redacted, Schedule, Schema, Stream, Tracer } from "effect"
import { ModelConfig, ProviderProfile, QueueManager, type QueueRequest, RateLimiter } from "effect-llm-queue"
import * as QueueApi from "effect-llm-queue/Api"
import * as Metrics from "effect-llm-queue/Metrics"
import { FetchHttpClient, HttpClient, HttpClientRequest, HttpRouter } from "effect/http"
import * as PrometheusMetrics from "effect/observability/PrometheusMetrics"
import { createServer } from "node:http"
import { inspect } from "node:util"
import { port } from "./port.ts"

const canary = "c4n4ry"
const timeout = 30_000

class Secret extends Schema.TaggedError<Secret>()("Secret", { prompt: Schema.String }) {
  override get message() {
    return `could not answer ${this.prompt}`
  }
}

interface Params {
  readonly how: string
  readonly prompt: string
  readonly key: Redacted.Redacted
}

const Model = ModelConfig.makeUntyped<Params, { readonly text: string }, object>("model", {
  rateLimiters: [RateLimiter.rpm(1000), RateLimiter.concurrent(2)],
  provider: { ...ProviderProfile.openai, limits: {} },
  retry: { schedule: Schedule.recurs(0) },
  deadLetters: { count: 100 },
  deduplicate: { key: (params) => params.prompt },
  shutdown: { policy: "interrupt", deadline: 0 }
})

const Checked = ModelConfig.make("checked", {
  params: Schema.Struct({ prompt: Schema.String, size: Schema.Finite }),
  result: Schema.String,
  rateLimiters: [RateLimiter.rpm(1000)]
})

const Writer = ModelConfig.makeStreamUntyped<Params, string, object>("writer", {
  rateLimiters: [RateLimiter.rpm(1000)]
})

const refusal = {
  status: 429,
  headers: { "retry-after": "3600", "x-request-id": canary, authorization: `Bearer ${canary}` },
  error: { message: `Rate limit reached for ${canary}`, type: "requests", code: "rate_limit_exceeded" }
}

const process = ({ params: { how, prompt } }: { readonly params: Params }) => {
  switch (how) {
    case "fails":
      return Effect.fail(new Secret({ prompt }))
    case "dies":
      return Effect.die(new Error(`defect ${prompt}`))
    case "throws":
      throw new Error(`thrown ${prompt}`)
    case "refused":
      return Effect.fail(refusal)
    case "never":
      return Effect.never
    default:
      return Effect.succeed({ text: `answer to ${prompt}` })
  }
}

/** All that is shown to somebody who did not submit. */
const watched = () => {
  const logs: Array<string> = []
  const spans: Array<Tracer.NativeSpan> = []
  const logger = Logger.make(({ cause, message }) => {
    logs.push(inspect([message, Cause.pretty(cause)], { depth: 10 }))
  })
  const tracer = Tracer.make({
    span: (options) => {
      const span = new Tracer.NativeSpan(options)
      spans.push(span)
      return span
    }
  })
  return { logs, spans, logger, tracer }
}

describe("secrets", () => {
  it.live("are shown nowhere but to who has asked", () => {
    const { logger, logs, spans, tracer } = watched()
    return Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      yield* manager.registerQueue(Model, process)
      yield* manager.registerQueue(Checked, ({ params }) => Effect.succeed(params.prompt))
      yield* manager.registerStream(Writer, ({ params: { how, prompt } }) =>
        how === "fails"
          ? Stream.concat(Stream.make(prompt), Stream.fail(new Secret({ prompt })))
          : Stream.make(prompt, prompt))
      const url = `http://127.0.0.1:${yield* port}`
      const { actions, queues } = yield* QueueApi.makeClient({
        url,
        token: Redacted.make(`token ${canary}`)
      })
      let told = ""
      const listening = yield* Effect.forEach(
        ["live", "events"],
        (name) =>
          HttpClientRequest.get(`${url}/llm-queue/${name}`).pipe(
            HttpClientRequest.bearerToken(`token ${canary}`),
            HttpClient.execute,
            Effect.flatMap(({ stream }) =>
              Stream.runForEach(Stream.decodeText(stream), (text) => Effect.sync(() => void (told += text)))
            ),
            Effect.forkChild
          )
      )
      const paramsOf = (how: string) => ({ how, prompt: `${canary} ${how}`, key: Redacted.make(`key ${canary}`) })
      const ask = (how: string, options?: QueueRequest.RequestOptions) =>
        Effect.exit(
          manager.submit(Model, paramsOf(how), { id: how, metadata: { note: canary }, tenant: "acme", ...options })
        )
      const ends = yield* Effect.forEach(["works", "fails", "dies", "throws", "refused"], (how) => ask(how))
      const late = yield* ask("never", { id: "late", timeout: "100 millis", dedupeKey: false })
      const cancelled = yield* Effect.forkChild(ask("never", { id: "cancelled" }))
      const waits = yield* Effect.forkChild(ask("never", { id: "runs", dedupeKey: false }))
      while ((yield* manager.getRequests(Model)).length < 2) yield* Effect.sleep(5)
      yield* manager.cancelRequest(Model, "cancelled")
      const invalid = yield* Effect.exit(manager.submit(Checked, { prompt: canary, size: canary } as never))
      for (const how of ["works", "fails"]) yield* Effect.exit(Stream.runDrain(manager.stream(Writer, paramsOf(how))))
      // Those who submitted are told.
      assert.include(inspect(ends[0], { depth: 10 }), canary)
      assert.include(inspect(ends[1], { depth: 10 }), canary)
      assert.isTrue(Exit.isFailure(late) && Exit.isFailure(invalid) && Exit.isFailure(yield* Fiber.join(cancelled)))
      // All of it has been told to who listens.
      while (!told.includes("\"cancelled\"")) yield* Effect.sleep(20)
      const letters = yield* queues.deadLetters({ params: { modelId: "model" }, query: {} })
      assert.isAbove(letters.length, 3)
      const [{ requestId } = { requestId: "" }] = letters
      const seen = {
        told,
        queues: yield* queues.list(),
        requests: yield* queues.requests({ params: { modelId: "model" }, query: {} }),
        letters,
        history: yield* queues.history({ query: {} }),
        resubmitted: yield* actions.resubmit({ params: { modelId: "model", requestId } }),
        refused: yield* Effect.flip(actions.resubmit({ params: { modelId: "model", requestId: "none" } })),
        infos: Array.from(yield* manager.getAllQueuesInfo),
        active: yield* manager.getRequests(Model),
        metrics: yield* Metric.snapshot,
        prometheus: yield* PrometheusMetrics.format(),
        logs
      }
      assert.strictEqual(seen.requests.length, 1)
      assert.isAbove(seen.prometheus.length, 1000)
      for (const [name, value] of Object.entries(seen)) {
        assert.notInclude(inspect(value, { depth: 20, maxArrayLength: null, maxStringLength: null }), canary, name)
      }
      for (const fiber of listening) yield* Fiber.interrupt(fiber)
      yield* Fiber.interrupt(waits)

      // Spans end with the failure of the processor, and those of a method with what it gives, as all of Effect's do. What
      // else is in them is for everybody, and so is the end of those that are the queue's own.
      const ofQueue = spans.filter(({ name }) => /^(?:Model)?Queue/.test(name))
      assert.isAbove(ofQueue.length, 20)
      const leaks = ofQueue.filter(({ attributes, events, name, status }) =>
        inspect([attributes, events], { depth: 10 }).includes(canary)
        || (name.startsWith("ModelQueue") && status._tag === "Ended" && Exit.isSuccess(status.exit) &&
          inspect(status.exit, { depth: 10 }).includes(canary))
      )
      assert.deepStrictEqual(leaks.map(({ name }) => name), [])
    }).pipe(
      Effect.scoped,
      Effect.provide(
        HttpRouter.serve(
          QueueApi.layer({ token: Redacted.make(`token ${canary}`), actions: true, interval: "50 millis" }),
          {
            disableLogger: true,
            disableListenLog: true
          }
        ).pipe(
          Layer.provideMerge(NodeHttpServer.layer(createServer, { host: "127.0.0.1", port: 0 })),
          Layer.provideMerge(FetchHttpClient.layer),
          Layer.provideMerge(QueueManager.layer),
          Layer.provideMerge(Metrics.layer({ tenants: 5, priorities: true })),
          Layer.provideMerge(Logger.layer([logger]))
        )
      ),
      Effect.provideService(Metric.MetricRegistry, new Map()),
      Effect.withTracer(tracer)
    )
  }, timeout)
})
