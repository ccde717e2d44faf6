import { assert, describe, it } from "@effect/vitest"
import { Deferred, Effect, Exit, Fiber, Layer, Option, Schedule, Stream } from "effect"
import { ProviderProfile, QueueManager, RateLimiter } from "effect-llm-queue"
import * as Queued from "effect-llm-queue/HttpClient"
import { HttpBody, HttpClient, HttpClientError, HttpClientRequest, HttpClientResponse } from "effect/http"
import { TestClock } from "effect/testing"

const encoder = new TextEncoder()

type Answer = (request: HttpClientRequest.HttpClientRequest) => Effect.Effect<Response, HttpClientError.HttpClientError>

/** A server that answers by a script, its last entry again and again. */
const server = (...answers: ReadonlyArray<Answer>) => {
  let calls = 0
  return {
    calls: () => calls,
    layer: Layer.succeed(
      HttpClient.HttpClient,
      HttpClient.make((request) =>
        Effect.map(
          Effect.suspend(() => answers[Math.min(calls++, answers.length - 1)]!(request)),
          (response) => HttpClientResponse.fromWeb(request, response)
        )
      )
    )
  }
}

const json = (body: unknown, init?: ResponseInit): Answer => () => Effect.sync(() => Response.json(body, init))

const chat = (output: number) => ({
  choices: [{ message: { content: "yes" } }],
  usage: { prompt_tokens: 100, completion_tokens: output, total_tokens: 100 + output }
})

const fails: Answer = (request) =>
  Effect.fail(
    new HttpClientError.HttpClientError({ reason: new HttpClientError.TransportError({ request, cause: "gone" }) })
  )

/** Events that come when they are told to. */
const events = (...parts: ReadonlyArray<string | Effect.Effect<string>>) => {
  let cancelled = false
  const queue = [...parts]
  const answer: Answer = () =>
    Effect.sync(() =>
      new Response(
        new ReadableStream({
          pull: async (controller) => {
            const next = queue.shift()
            if (next === undefined) return controller.close()
            const data = typeof next === "string" ? next : await Effect.runPromise(next)
            controller.enqueue(encoder.encode(`data: ${data}\n\n`))
          },
          cancel: () => {
            cancelled = true
          }
        }, { highWaterMark: 0 }),
        { headers: { "content-type": "text/event-stream; charset=utf-8" } }
      )
    )
  return { answer, isCancelled: () => cancelled }
}

const limits = {
  rateLimiters: [RateLimiter.rpm(100), RateLimiter.tpm(10_000), RateLimiter.concurrent(1)],
  shutdown: { policy: "interrupt", deadline: 0 }
} as const

const withQueue = (
  of: { readonly layer: Layer.Layer<HttpClient.HttpClient> },
  options: Partial<Queued.QueueOptions> = {},
  more: Partial<Queued.Options> = {}
) =>
  Queued.layer({ models: { "gpt-4": { ...limits, ...options } as Queued.QueueOptions }, ...more }).pipe(
    Layer.provide(of.layer),
    Layer.provideMerge(QueueManager.layer)
  )

const info = QueueManager.QueueManager.use((manager) => manager.getQueueInfo("gpt-4"))
const used = Effect.map(info, ({ rateLimiters }) => rateLimiters.find(({ type }) => type === "tpm")!.used)

/** The promises of the platform's streams take turns of their own. */
const calm = Effect.repeat(Effect.andThen(TestClock.adjust(0), Effect.promise(() => new Promise(setImmediate))), {
  times: 20
})

const atRest = Effect.gen(function*() {
  yield* calm
  const { depth, rateLimiters, running } = yield* info
  assert.deepStrictEqual([depth, running], [0, 0])
  assert.strictEqual(rateLimiters.find(({ type }) => type === "concurrent")!.used, 0)
})

const post = (body: object, url = "http://localhost/v1/chat/completions") =>
  HttpClient.post(url, { body: HttpBody.jsonUnsafe(body) })

const ask = post({ model: "gpt-4", messages: [{ role: "user", content: "hello" }], max_tokens: 50 })

const text = Effect.flatMap(ask, (response) => response.text)

describe("HttpClient", () => {
  it.effect("sends what its limits have room for, and settles what the response says it used", () =>
    Effect.gen(function*() {
      const response = yield* ask
      assert.strictEqual(response.status, 200)
      assert.strictEqual(response.url, "http://localhost/v1/chat/completions")
      assert.deepStrictEqual(yield* response.json, chat(20))
      // As often as it is asked.
      assert.deepStrictEqual(JSON.parse(yield* response.text), chat(20))
      assert.strictEqual(yield* used, 120)
      yield* atRest
    }).pipe(Effect.provide(withQueue(server(json(chat(20)))))))

  it.effect("reserves what the body says, and keeps it back until there is room", () =>
    Effect.gen(function*() {
      const fake = server(() => Effect.never)
      yield* Effect.gen(function*() {
        const first = yield* Effect.forkChild(ask)
        yield* calm
        // "gpt-4", "user" and "hello" are 14 characters.
        assert.strictEqual(yield* used, 54)
        const second = yield* Effect.forkChild(ask)
        yield* calm
        assert.strictEqual(fake.calls(), 1)
        assert.strictEqual((yield* info).depth, 1)
        yield* Fiber.interrupt(first)
        yield* calm
        assert.strictEqual(fake.calls(), 2)
        yield* Fiber.interrupt(second)
        yield* atRest
      }).pipe(Effect.provide(withQueue(fake, {
        rateLimiters: [RateLimiter.tpm(1000, { charging: { output: "maximum" } }), RateLimiter.concurrent(1)]
      })))
    }))

  it.effect("queues what names a model, in its body or its path, and lets all else pass", () =>
    Effect.gen(function*() {
      const fake = server(json(chat(1)))
      yield* Effect.gen(function*() {
        yield* HttpClient.get("http://localhost/v1/models")
        yield* post({ model: "another" })
        assert.strictEqual((yield* info).completed, 0)
        yield* post({ contents: [] }, "http://localhost/v1beta/models/gpt-4:generateContent")
        yield* post({ messages: [] }, "http://localhost/openai/deployments/gpt-4/chat/completions?api-version=1")
        yield* calm
        assert.strictEqual((yield* info).completed, 2)
        assert.strictEqual(fake.calls(), 4)
      }).pipe(Effect.provide(withQueue(fake)))
      yield* Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        yield* HttpClient.get("http://localhost/v1/models")
        yield* calm
        assert.strictEqual((yield* manager.getQueueInfo("*")).completed, 1)
      }).pipe(Effect.provide(withQueue(fake, {}, { models: { "*": { rateLimit: 10 } } })))
    }))

  it.effect("passes a stream on as it comes, and holds the permit until all of it has come", () =>
    Effect.gen(function*() {
      const gate = yield* Deferred.make<string>()
      const stream = events("one", Deferred.await(gate), JSON.stringify({ choices: [], usage: chat(7).usage }))
      yield* Effect.gen(function*() {
        const response = yield* ask
        const seen: Array<string> = []
        const reader = yield* Effect.forkChild(
          Stream.runForEach(Stream.decodeText(response.stream), (part) => Effect.sync(() => seen.push(part)))
        )
        yield* calm
        assert.deepStrictEqual(seen, ["data: one\n\n"])
        assert.strictEqual((yield* info).running, 1)
        yield* Deferred.succeed(gate, "two")
        yield* Fiber.join(reader)
        assert.strictEqual(seen.length, 3)
        yield* atRest
        assert.strictEqual(yield* used, 107)
      }).pipe(Effect.provide(withQueue(server(stream.answer))))
    }))

  it.effect("gives the permit back though nobody reads the stream, and its text to who reads it later", () =>
    Effect.gen(function*() {
      const response = yield* ask
      yield* atRest
      assert.strictEqual(yield* response.text, "data: one\n\ndata: two\n\n")
    }).pipe(Effect.provide(withQueue(server(events("one", "two").answer)))))

  it.effect("aborts a request whose reader leaves, or whose caller does before it is answered", () =>
    Effect.gen(function*() {
      const stream = events("one", Effect.never)
      const stopped = yield* Deferred.make<void>()
      const fake = server(
        stream.answer,
        () => Effect.onInterrupt(Effect.never, () => Deferred.succeed(stopped, undefined))
      )
      yield* Effect.gen(function*() {
        const response = yield* ask
        yield* Stream.runDrain(Stream.take(response.stream, 1))
        yield* atRest
        assert.isTrue(stream.isCancelled())
        const fiber = yield* Effect.forkChild(ask)
        yield* calm
        yield* Fiber.interrupt(fiber)
        yield* Deferred.await(stopped)
        yield* atRest
      }).pipe(Effect.provide(withQueue(fake)))
    }))

  it.effect("attempts again what the profile recognises, at the time that the response says", () =>
    Effect.gen(function*() {
      const fake = server(
        json({ error: { code: "rate_limit_exceeded" } }, { status: 429, headers: { "retry-after": "20" } }),
        fails,
        json(chat(1))
      )
      yield* Effect.gen(function*() {
        const fiber = yield* Effect.forkChild(text)
        yield* calm
        yield* TestClock.adjust("19 seconds")
        assert.strictEqual(fake.calls(), 1)
        for (let i = 0; i < 20; i++) yield* TestClock.adjust("5 seconds").pipe(Effect.andThen(calm))
        assert.deepStrictEqual(JSON.parse(yield* Fiber.join(fiber)), chat(1))
        assert.strictEqual(fake.calls(), 3)
        yield* atRest
      }).pipe(Effect.provide(withQueue(fake, { provider: ProviderProfile.openai })))
    }))

  it.effect("gives the last response, or error, when there is no further attempt", () =>
    Effect.gen(function*() {
      const patiently = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
        Effect.gen(function*() {
          const fiber = yield* Effect.forkChild(effect)
          for (let i = 0; i < 30; i++) yield* Effect.andThen(TestClock.adjust("5 seconds"), calm)
          return yield* Fiber.join(fiber)
        })
      const options = { provider: ProviderProfile.openai, retry: { schedule: Schedule.recurs(1) } }
      const body = { error: { code: "rate_limit_exceeded", message: "slow down" } }
      const busy = server(json(body, { status: 429 }))
      yield* Effect.gen(function*() {
        const response = yield* patiently(ask)
        assert.strictEqual(response.status, 429)
        assert.deepStrictEqual(yield* response.json, body)
        assert.strictEqual(busy.calls(), 2)
        const error = yield* Effect.flip(
          HttpClient.HttpClient.use((client) =>
            patiently(
              HttpClient.filterStatusOk(client).execute(
                HttpClientRequest.post("http://localhost", { body: HttpBody.jsonUnsafe({ model: "gpt-4" }) })
              )
            )
          )
        )
        assert.strictEqual(error.reason._tag, "StatusCodeError")
        assert.deepStrictEqual(yield* error.response!.json, body)
      }).pipe(Effect.provide(withQueue(busy, options)))
      // A client that fails for the status itself, below the queue.
      const below = server(json(body, { status: 429 }))
      yield* Effect.gen(function*() {
        const error = yield* Effect.flip(patiently(ask))
        assert.strictEqual(error.reason._tag, "StatusCodeError")
        assert.deepStrictEqual(yield* error.response!.json, body)
        assert.strictEqual(below.calls(), 2)
      }).pipe(Effect.provide(withQueue({
        layer: Layer.effect(HttpClient.HttpClient, Effect.map(HttpClient.HttpClient, HttpClient.filterStatusOk)).pipe(
          Layer.provide(below.layer)
        )
      }, options)))
      const gone = server(fails)
      yield* Effect.gen(function*() {
        const error = yield* Effect.flip(patiently(ask))
        assert.strictEqual(error.reason._tag, "TransportError")
        assert.isTrue(Option.isNone(Queued.queueError(error)))
        assert.strictEqual(gone.calls(), 2)
      }).pipe(Effect.provide(withQueue(gone, options)))
    }))

  it.effect("leaves the status of a request that is at fault itself to its caller", () =>
    Effect.gen(function*() {
      const fake = server(json({ error: { message: "no" } }, { status: 404 }))
      yield* Effect.gen(function*() {
        const response = yield* ask
        assert.strictEqual(response.status, 404)
        assert.strictEqual(fake.calls(), 1)
        yield* atRest
      }).pipe(Effect.provide(withQueue(fake, { provider: ProviderProfile.openai })))
    }))

  it.effect("says with an error of the client what the queue fails with, also to who reads a stream", () =>
    Effect.gen(function*() {
      const stream = events("one", Effect.never)
      yield* Effect.gen(function*() {
        const response = yield* ask
        const late = yield* Effect.forkChild(Effect.flip(ask))
        const reader = yield* Effect.forkChild(Effect.flip(Stream.runDrain(response.stream)))
        yield* calm
        yield* TestClock.adjust("3 seconds")
        yield* calm
        const error = yield* Fiber.join(late)
        assert.strictEqual(error.reason._tag, "TransportError")
        assert.strictEqual(Option.getOrThrow(Queued.queueError(error))._tag, "QueueTimeout")
        assert.strictEqual(Option.getOrThrow(Queued.queueError(yield* Fiber.join(reader)))._tag, "QueueTimeout")
        assert.isTrue(stream.isCancelled())
        yield* atRest
        const large = yield* Effect.flip(post({ model: "gpt-4", max_tokens: 20_000 }))
        assert.strictEqual(large.reason._tag, "EncodeError")
        assert.strictEqual(Option.getOrThrow(Queued.queueError(large))._tag, "RequestTooLarge")
      }).pipe(Effect.provide(withQueue(server(stream.answer), {
        rateLimiters: [RateLimiter.concurrent(1), RateLimiter.tpm(10_000, { charging: { output: "maximum" } })],
        request: () => ({ timeout: "2 seconds" })
      })))
    }))

  it.effect("dies with what the client dies with", () =>
    Effect.gen(function*() {
      const exit = yield* Effect.exit(ask)
      assert.isTrue(Exit.hasDies(exit))
      yield* atRest
    }).pipe(Effect.provide(withQueue(server(() => Effect.die("broken"))))))
})
