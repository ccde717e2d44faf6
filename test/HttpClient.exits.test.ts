/** Every way out of a request of a queued HTTP client gives its permit back. */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Layer, Schema, Scope, Stream } from "effect"
import { ProviderProfile, QueueManager, RateLimiter } from "effect-llm-queue"
import * as Queued from "effect-llm-queue/HttpClient"
import { HttpBody, HttpClient, HttpClientError, HttpClientResponse } from "effect/http"
import { TestClock } from "effect/testing"

const ways = [
  "whole",
  "whole stream",
  "nobody reads",
  "leaves early",
  "interrupted before",
  "scope closes",
  "refused",
  "at fault",
  "transport",
  "stream breaks",
  "defect"
] as const
type Way = typeof ways[number]

const encoder = new TextEncoder()

/** Three events and an end, or, with `hangs`, one event and then nothing until it is aborted. */
const body = (kind: "ends" | "hangs" | "breaks", signal: AbortSignal) => {
  let sent = 0
  return new ReadableStream<Uint8Array>({
    start: (controller) => {
      signal.addEventListener("abort", () => {
        try {
          controller.error(signal.reason)
        } catch {
          // It has ended.
        }
      })
    },
    pull: (controller) => {
      if (sent > 0 && kind === "hangs") return new Promise(() => {})
      if (sent > 0 && kind === "breaks") return controller.error(new Error("broken"))
      if (sent === 3) return controller.close()
      sent++
      controller.enqueue(encoder.encode(
        `data: ${JSON.stringify({ usage: { prompt_tokens: 10, completion_tokens: sent } })}\n\n`
      ))
    }
  }, { highWaterMark: 0 })
}

const sse = { headers: { "content-type": "text/event-stream" } }

const answer = (way: string, signal: AbortSignal): Response => {
  switch (way) {
    case "refused":
      return Response.json({ error: { code: "rate_limit_exceeded" } }, { status: 429, headers: { "retry-after": "0" } })
    case "at fault":
      return Response.json({ error: {} }, { status: 400 })
    case "whole":
      return Response.json({ usage: { prompt_tokens: 10, completion_tokens: 3 } })
    case "whole stream":
    case "nobody reads":
      return new Response(body("ends", signal), sse)
    case "stream breaks":
      return new Response(body("breaks", signal), sse)
    default:
      return new Response(body("hangs", signal), sse)
  }
}

const fake = Layer.succeed(
  HttpClient.HttpClient,
  HttpClient.make((request, _url, signal) => {
    const way = request.headers["x-way"]!
    if (way === "interrupted before") return Effect.never
    if (way === "defect") return Effect.die("defect")
    if (way === "transport") {
      return Effect.fail(
        new HttpClientError.HttpClientError({ reason: new HttpClientError.TransportError({ request, cause: "gone" }) })
      )
    }
    return Effect.sync(() => HttpClientResponse.fromWeb(request, answer(way, signal)))
  })
)

const calm = Effect.repeat(
  Effect.andThen(TestClock.adjust("1 minute"), Effect.promise(() => new Promise(setImmediate))),
  { times: 20 }
)

const send = <R>(way: Way, client: HttpClient.HttpClient.With<HttpClientError.HttpClientError, R>) =>
  client.post("http://localhost/v1/chat/completions", {
    headers: { "x-way": way },
    body: HttpBody.jsonUnsafe({ model: "gpt-4", messages: [], max_tokens: 5 })
  })

const call = (way: Way) =>
  Effect.gen(function*() {
    const client = yield* HttpClient.HttpClient
    switch (way) {
      case "interrupted before": {
        const fiber = yield* Effect.forkChild(send(way, client))
        yield* calm
        return yield* Fiber.interrupt(fiber)
      }
      case "scope closes": {
        const scope = yield* Scope.make()
        yield* send(way, HttpClient.withScope(client)).pipe(Effect.provideService(Scope.Scope, scope))
        return yield* Scope.close(scope, Exit.void)
      }
      case "nobody reads":
        return yield* send(way, client)
      case "leaves early":
        return yield* Effect.flatMap(send(way, client), ({ stream }) => Stream.runDrain(Stream.take(stream, 1)))
      default:
        return yield* Effect.flatMap(send(way, client), ({ stream }) => Stream.runDrain(stream))
    }
  })

const layer = (options: Partial<Queued.QueueOptions>) =>
  Queued.layer({
    models: {
      "gpt-4": {
        rateLimiters: [RateLimiter.tpm(1_000_000), RateLimiter.concurrent(1)],
        shutdown: { policy: "interrupt", deadline: 0 },
        ...options
      } as Queued.QueueOptions
    }
  }).pipe(Layer.provide(fake), Layer.provideMerge(QueueManager.layer))

const queued = layer({ provider: ProviderProfile.openai })

const atRest = (ways: ReadonlyArray<Way>) =>
  Effect.gen(function*() {
    const manager = yield* QueueManager.QueueManager
    const { depth, rateLimiters, running } = yield* manager.getQueueInfo("gpt-4")
    assert.deepStrictEqual(
      [depth, running, rateLimiters.find(({ type }) => type === "concurrent")!.used],
      [0, 0, 0],
      ways.join(", ")
    )
  })

const run = (list: ReadonlyArray<Way>) =>
  Effect.gen(function*() {
    for (const way of list) {
      const fiber = yield* Effect.forkChild(Effect.exit(call(way)))
      yield* calm
      yield* Fiber.join(fiber)
      yield* calm
      yield* atRest([...list.slice(0, list.indexOf(way)), way])
    }
  }).pipe(Effect.provide(queued))

describe("HttpClient", () => {
  for (const way of ways) it.effect(`gives the permit back: ${way}`, () => run([way]))

  it.effect("settles what a response says that it used, though nobody reads it", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      let expected = 0
      for (const way of ["whole", "whole stream", "nobody reads"] as const) {
        yield* call(way)
        for (let i = 0; i < 20; i++) yield* Effect.promise(() => new Promise(setImmediate))
        expected += 13
        const { rateLimiters } = yield* manager.getQueueInfo("gpt-4")
        assert.strictEqual(rateLimiters.find(({ type }) => type === "tpm")!.used, expected, way)
      }
    }).pipe(Effect.provide(layer({}))))

  it.effect("gives the permit back at the processing timeout of a stream that hangs and that nobody reads", () =>
    Effect.gen(function*() {
      const client = yield* HttpClient.HttpClient
      const manager = yield* QueueManager.QueueManager
      yield* send("leaves early", client)
      for (let i = 0; i < 20; i++) yield* Effect.promise(() => new Promise(setImmediate))
      assert.strictEqual((yield* manager.getQueueInfo("gpt-4")).running, 1)
      yield* calm
      yield* atRest(["leaves early"])
    }).pipe(Effect.provide(layer({ processingTimeout: "1 minute" }))))

  it.effect.prop(
    "gives the permit back after requests that end in random ways",
    [Schema.Array(Schema.Literals(ways)).check(Schema.isMaxLength(6))],
    ([list]) => run(list),
    { arbitrary: { runs: 25 }, timeout: 30_000 }
  )
})
