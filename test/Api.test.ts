import { NodeHttpServer } from "@effect/platform-node"
import { assert, describe, it } from "@effect/vitest"
import { Deferred, Effect, Exit, Fiber, Layer, Option, Redacted, Schedule, Schema, Scope, Stream } from "effect"
import { ModelConfig, ProviderProfile, QueueManager, RateLimiter } from "effect-llm-queue"
import * as QueueApi from "effect-llm-queue/Api"
import { FetchHttpClient, HttpBody, HttpClient, HttpClientRequest, HttpRouter, HttpServerRequest } from "effect/http"
import { createServer, request as rawRequest } from "node:http"
import { port } from "./port.ts"

const hostile = "<script>alert(\"1\")</script> é/\\"

class Secret extends Schema.TaggedError<Secret>()("Secret", { prompt: Schema.String }) {
  override get message() {
    return `could not answer ${this.prompt}`
  }
}

const Model = ModelConfig.makeUntyped<
  { readonly prompt: string; readonly go?: Deferred.Deferred<void> },
  string,
  Secret
>(
  hostile,
  {
    rateLimiters: [RateLimiter.rpm(100), RateLimiter.concurrent(1)],
    provider: { ...ProviderProfile.openai, limits: {} },
    shutdown: { policy: "interrupt", deadline: 0 }
  }
)

const token = Redacted.make("a long secret")

/** In real time, beside all other tests. */
const timeout = 30_000

const serve = (options?: QueueApi.Options) =>
  HttpRouter.serve(QueueApi.layer(options), { disableLogger: true, disableListenLog: true }).pipe(
    Layer.provideMerge(NodeHttpServer.layer(createServer, { host: "127.0.0.1", port: 0 })),
    Layer.provideMerge(FetchHttpClient.layer),
    Layer.provideMerge(QueueManager.layer)
  )

const client = (token?: Redacted.Redacted) =>
  Effect.flatMap(port, (port) => QueueApi.makeClient({ url: `http://127.0.0.1:${port}`, token }))

/** A queue with one request that is being processed until it is told, and two that wait. */
const busy = Effect.gen(function*() {
  const manager = yield* QueueManager.QueueManager
  const go = yield* Deferred.make<void>()
  yield* manager.registerQueue(Model, ({ params: { go, prompt } }) =>
    go === undefined
      ? Effect.fail(new Secret({ prompt }))
      : Effect.as(Deferred.await(go), "the secret answer"))
  const submit = (id: string, options?: object, more?: object) =>
    Effect.forkChild(
      Effect.exit(manager.submit(Model, { prompt: "the secret prompt", ...more }, { id, ...options })),
      { startImmediately: true }
    )
  const runs = yield* submit("runs", { tenant: "acme", labels: { task: "a<b" } }, { go })
  const waits = [yield* submit("waits"), yield* submit("high", { priority: "high" })]
  return { go, manager, runs, waits }
})

const params = { modelId: hostile }

/** A request with headers that clients do not let one set. */
const raw = (path: string, headers: Record<string, string>, method = "GET") =>
  Effect.flatMap(port, (port) =>
    Effect.callback<{ readonly status: number; readonly body: string }>((resume) => {
      const sent = rawRequest({ host: "127.0.0.1", port, path, method, headers }, (response) => {
        let body = ""
        response.on("data", (part: Buffer) => body += part.toString())
        response.on("end", () => resume(Effect.succeed({ status: response.statusCode!, body })))
      })
      sent.end()
    }))

describe("Api", () => {
  it.live("shows queues, limits and requests, and no texts", () =>
    Effect.gen(function*() {
      const { go, manager, runs } = yield* busy
      const { queues } = yield* client()
      const [queue] = yield* queues.list()
      assert.deepInclude(queue, { modelId: hostile, state: "open", depth: 2, running: 1, completed: 0 })
      assert.deepInclude(queue!.limits[0], {
        type: "rpm",
        limit: 100,
        used: 1,
        periodMillis: 60_000,
        pausedForMillis: null
      })
      assert.deepInclude(queue!.limits[1], { type: "concurrent", used: 1, periodMillis: null })
      assert.deepInclude(queue!.provider, { name: "openai", state: "available", concurrency: null })
      assert.deepStrictEqual((yield* queues.get({ params })).modelId, hostile)
      const requests = yield* queues.requests({ params, query: {} })
      assert.deepStrictEqual(requests.map(({ requestId }) => requestId), ["runs", "high", "waits"])
      assert.deepInclude(requests[0], { tenant: "acme", labels: { task: "a<b" }, status: "processing", attempts: 1 })
      assert.strictEqual(requests[0]!.predictedWaitMillis, null)
      assert.deepStrictEqual(
        (yield* queues.requests({ params, query: { status: "pending", limit: 1 } })).map(({ priority }) => priority),
        [60]
      )
      assert.isAtLeast(requests[1]!.predictedWaitMillis!, 0)
      assert.strictEqual((yield* Effect.flip(queues.get({ params: { modelId: "none" } })))._tag, "NotFound")
      const bad = yield* Effect.flip(queues.requests({ params, query: { limit: -1 } }))
      assert.strictEqual(bad._tag, "Invalid")

      const begun = yield* Deferred.make<void>()
      const events = yield* Effect.forkChild(Effect.flatMap(queues.events(), (stream) =>
        stream.pipe(
          Stream.tap(() => Deferred.succeed(begun, undefined)),
          Stream.filter(({ status }) => status === "failed"),
          Stream.take(1),
          Stream.runCollect
        )))
      // The first event that it hears of says that it listens.
      while (!(yield* Deferred.isDone(begun))) {
        yield* Effect.timeoutOption(manager.submit(Model, { prompt: "" }), "20 millis")
      }
      yield* Deferred.succeed(go, undefined)
      assert.isTrue(Exit.isSuccess(yield* Fiber.join(runs)))
      const [failed] = yield* Fiber.join(events)
      // What it could not answer is nobody's business.
      assert.deepStrictEqual(failed!.error, { name: "Secret", message: null })
      const all = JSON.stringify([requests, failed, yield* queues.list()])
      assert.notInclude(all, "secret prompt")
      assert.notInclude(all, "secret answer")

      const looks = yield* Effect.forEach([1, 2, 3], () =>
        Effect.flatMap(queues.live(), (stream) => Stream.runCollect(Stream.take(stream, 2))), { concurrency: 3 })
      for (const [all, changes] of looks) {
        assert.deepStrictEqual(
          all!.queues.map(({ modelId }) =>
            modelId
          ),
          [hostile]
        )
        assert.deepStrictEqual(all!.failures.map(({ error }) => error), [
          { name: "Secret", message: null },
          { name: "Secret", message: null }
        ])
        assert.deepStrictEqual([all!.complete, changes!.complete], [true, false])
      }
      assert.notInclude(JSON.stringify(looks), "secret prompt")
      assert.strictEqual((yield* queues.list())[0]!.waits, null)
      assert.deepStrictEqual(yield* queues.access(), { actions: false })
      const document = yield* Effect.flatMap(
        HttpClient.get(`http://127.0.0.1:${yield* port}/llm-queue/openapi.json`),
        (response) => response.json
      )
      assert.deepInclude(document, { openapi: "3.1.0" })
    }).pipe(Effect.scoped, Effect.provide(serve({ interval: "20 millis" }))), timeout)

  it.live("lets those act who have the token, if there are actions", () =>
    Effect.gen(function*() {
      const { manager, runs, waits } = yield* busy
      const { actions, queues } = yield* client(token)
      yield* actions.pause({ params })
      assert.strictEqual((yield* queues.get({ params })).state, "paused")
      yield* actions.resume({ params })
      assert.strictEqual((yield* queues.get({ params })).state, "open")
      assert.deepStrictEqual(
        yield* actions.changePriority({ params: { ...params, requestId: "waits" }, payload: { priority: 600 } }),
        { changed: true }
      )
      const [, next] = yield* queues.requests({ params, query: {} })
      assert.deepInclude(next, { requestId: "waits", priority: 600 })
      const unknown = yield* Effect.flip(
        actions.changePriority({ params: { ...params, requestId: "none" }, payload: { priority: 1 } })
      )
      assert.strictEqual(unknown._tag, "NotFound")
      yield* actions.updateLimits({ params, payload: { limits: [{ type: "rpm", limit: 7, periodMillis: 1000 }] } })
      const { limits } = yield* queues.get({ params })
      assert.deepInclude(limits[0], { type: "rpm", limit: 7, periodMillis: 1000 })
      yield* actions.changeLimit({ params, payload: { type: "rpm", limit: 8 } })
      assert.deepInclude((yield* queues.get({ params })).limits[0], { type: "rpm", limit: 8, periodMillis: 1000 })
      const other = yield* Effect.flip(actions.changeLimit({ params, payload: { type: "tpm", limit: 8 } }))
      assert(other._tag === "Invalid")
      assert.match(other.problems[0]!, /only rpm over 1s/)
      assert.deepStrictEqual(yield* queues.access(), { actions: true })
      const wrong = yield* Effect.flip(
        actions.updateLimits({ params, payload: { limits: [{ type: "rpm", limit: -7 }] } })
      )
      assert(wrong._tag === "Invalid")
      assert.isAbove(wrong.problems.length, 0)
      const large = HttpClient.execute(
        HttpClientRequest.post(
          `http://127.0.0.1:${yield* port}/llm-queue/queues/${encodeURIComponent(hostile)}/cancel`,
          { body: HttpBody.jsonUnsafe({ tenant: "x".repeat(100_000) }) }
        ).pipe(HttpClientRequest.bearerToken(token))
      )
      assert.isAtLeast((yield* large).status, 400)
      assert.deepStrictEqual(yield* actions.cancel({ params, payload: { status: "processing" } }), { cancelled: 1 })
      for (const fiber of [runs, ...waits]) assert.isTrue(Exit.isFailure(yield* Fiber.join(fiber)))
      yield* actions.drain({ params })
      assert.strictEqual((yield* manager.getQueueInfo(Model)).state, "draining")
    }).pipe(Effect.scoped, Effect.provide(serve({ token, actions: true }))), timeout)

  it.live(
    "refuses a token that is wrong or missing, pages of others, and hosts of other names",
    () =>
      Effect.gen(function*() {
        yield* busy
        for (const wrong of [undefined, Redacted.make("a long secres"), Redacted.make("")]) {
          const { actions, queues } = yield* client(wrong)
          assert.strictEqual((yield* Effect.flip(queues.list()))._tag, "Unauthorized")
          assert.strictEqual((yield* Effect.flip(queues.live()))._tag, "Unauthorized")
          assert.strictEqual((yield* Effect.flip(actions.pause({ params })))._tag, "Unauthorized")
        }
        const { actions, queues } = yield* client(token)
        assert.strictEqual((yield* queues.list()).length, 1)
        // With the token, but without the option.
        assert.strictEqual((yield* Effect.flip(actions.pause({ params })))._tag, "Forbidden")
        const authorization = "Bearer a long secret"
        const page = yield* raw("/llm-queue/queues", { authorization, origin: "http://evil.example" })
        assert.strictEqual(page.status, 403)
        assert.strictEqual((yield* raw("/llm-queue/queues", { authorization, host: "queues.example" })).status, 200)
      }).pipe(Effect.scoped, Effect.provide(serve({ token }))),
    timeout
  )

  it.live(
    "answers without a token only for this machine by its own name, and never acts",
    () =>
      Effect.gen(function*() {
        yield* busy
        const { actions, queues } = yield* client()
        assert.strictEqual((yield* queues.list()).length, 1)
        assert.strictEqual((yield* Effect.flip(actions.pause({ params })))._tag, "Forbidden")
        for (
          const [host, status] of [
            ["localhost:4000", 200],
            ["[::1]:80", 200],
            ["evil.example", 403],
            ["127.0.0.1.evil.example", 403],
            ["localhost.evil.example", 403]
          ] as const
        ) {
          assert.strictEqual((yield* raw("/llm-queue/queues", { host })).status, status, host)
        }
        const own = yield* raw("/llm-queue/queues", { host: "localhost:1", origin: "http://localhost:1" })
        assert.strictEqual(own.status, 200)
        assert.strictEqual((yield* raw("/llm-queue/queues", { host: "localhost:1", origin: "null" })).status, 403)
        const path = `/llm-queue/queues/${encodeURIComponent(hostile)}/pause`
        assert.strictEqual((yield* raw(path, { host: "localhost" }, "POST")).status, 403)
        const url = `http://127.0.0.1:${yield* port}/llm-queue/queues`
        const response = yield* HttpClient.execute(HttpClientRequest.get(url))
        assert.strictEqual(response.headers["content-type"], "application/json")
      }).pipe(Effect.scoped, Effect.provide(serve({ actions: true }))),
    timeout
  )

  it.live("submits dead letters again, and removes them", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      const Letters = ModelConfig.makeUntyped<{ readonly prompt: string }, string, unknown>("letters", {
        rateLimiters: [RateLimiter.concurrent(1)],
        deadLetters: { count: 10 },
        retention: { count: 0 }
      })
      let fails = true
      const done: Array<string> = []
      // Somebody's error can be anything.
      const nasty = Object.defineProperty({}, "_tag", {
        enumerable: true,
        get: () => {
          throw new Error("the secret prompt")
        }
      })
      yield* manager.registerQueue(Letters, ({ id, params }) =>
        fails
          ? Effect.fail(id === "nasty" ? nasty : new Secret(params))
          : Effect.sync(() => (done.push(params.prompt), "ok")))
      for (const id of ["a", "b", "nasty"]) {
        yield* Effect.exit(manager.submit(Letters, { prompt: `the secret prompt ${id}` }, { id, tenant: "acme" }))
      }
      const { actions, queues } = yield* client(token)
      const params = { modelId: "letters" }
      const letters = yield* queues.deadLetters({ params, query: {} })
      assert.deepStrictEqual(letters.map(({ requestId }) => requestId), ["nasty", "b", "a"])
      assert.deepInclude(letters[0], { tenant: "acme", attempts: 1, error: { name: "Error", message: null } })
      assert.deepInclude(letters[1], { error: { name: "Secret", message: null } })
      assert.notInclude(JSON.stringify(letters), "secret prompt")
      assert.strictEqual((yield* queues.deadLetters({ params, query: { limit: 1 } }))[0]!.requestId, "nasty")
      assert.strictEqual((yield* Effect.flip(queues.deadLetters({ params, query: { limit: 0.5 } })))._tag, "Invalid")

      fails = false
      const { requestId } = yield* actions.resubmit({ params: { ...params, requestId: "b" } })
      assert.notStrictEqual(requestId, "b")
      const again = yield* Effect.flip(actions.resubmit({ params: { ...params, requestId: "b" } }))
      assert.strictEqual(again._tag, "NotFound")
      yield* actions.drain({ params })
      const refused = yield* Effect.flip(actions.resubmit({ params: { ...params, requestId: "a" } }))
      assert(refused._tag === "Refused")
      assert.strictEqual(refused.name, "QueueDraining")
      assert.deepStrictEqual(done, ["the secret prompt b"])
      assert.deepStrictEqual(yield* actions.removeDeadLetters({ params, payload: { ids: ["a"] } }), { removed: 1 })
      assert.deepStrictEqual(yield* actions.removeDeadLetters({ params, payload: {} }), { removed: 1 })
      const none = yield* Effect.flip(actions.removeDeadLetters({ params: { modelId: "none" }, payload: {} }))
      assert.strictEqual(none._tag, "NotFound")
    }).pipe(Effect.scoped, Effect.provide(serve({ token, actions: true }))), timeout)

  it.live("has a history, and so many readers at one time", () =>
    Effect.gen(function*() {
      yield* busy
      const { queues } = yield* client()
      assert.deepStrictEqual(yield* queues.history({ query: {} }), [])
      assert.deepStrictEqual(yield* queues.history({ query: { modelId: "none" } }), [])
      const look = Effect.gen(function*() {
        const begun = yield* Deferred.make<void>()
        const fiber = yield* Effect.forkScoped(
          Effect.flatMap(queues.live(), Stream.runForEach(() => Deferred.succeed(begun, undefined)))
        )
        yield* Deferred.await(begun)
        return fiber
      })
      const one = yield* look
      yield* look
      assert.strictEqual((yield* Effect.flip(queues.live()))._tag, "Busy")
      assert.strictEqual((yield* Effect.flip(queues.events()))._tag, "Busy")
      yield* Fiber.interrupt(one)
      // The server hears of it a moment later.
      const [message] = yield* queues.live().pipe(
        Effect.retry(Schedule.spaced("20 millis")),
        Effect.flatMap((stream) => Stream.runCollect(Stream.take(stream, 1))),
        Effect.timeout("10 seconds")
      )
      assert.isTrue(message!.complete)
    }).pipe(Effect.scoped, Effect.provide(serve({ maxStreams: 2 }))), timeout)

  it.live(
    "answers nobody from elsewhere without a token, whatever they call this machine",
    () =>
      Effect.gen(function*() {
        const path = "/llm-queue/queues"
        assert.strictEqual((yield* raw(path, { host: "localhost", "x-test-from": "127.0.0.1" })).status, 200)
        assert.strictEqual((yield* raw(path, { host: "localhost", "x-test-from": "::ffff:127.0.0.1" })).status, 200)
        assert.strictEqual((yield* raw(path, { host: "localhost", "x-test-from": "::1" })).status, 200)
        assert.strictEqual((yield* raw(path, { host: "localhost", "x-test-from": "192.168.1.7" })).status, 403)
        assert.strictEqual((yield* raw(path, { host: "localhost", "x-test-from": "127.evil" })).status, 403)
      }).pipe(
        Effect.scoped,
        Effect.provide(
          HttpRouter.serve(QueueApi.layer(), {
            disableLogger: true,
            disableListenLog: true,
            middleware: (app) =>
              Effect.updateService(
                app,
                HttpServerRequest.HttpServerRequest,
                (request) => request.modify({ remoteAddress: Option.fromNullishOr(request.headers["x-test-from"]) })
              )
          }).pipe(
            Layer.provideMerge(NodeHttpServer.layer(createServer, { host: "127.0.0.1", port: 0 })),
            Layer.provideMerge(QueueManager.layer)
          )
        )
      ),
    timeout
  )

  it.live("does not keep a server that stops, however many read its streams", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const context = yield* Layer.buildWithScope(serve({ interval: "1 hour" }), scope)
      const { ended } = yield* Effect.gen(function*() {
        const { queues } = yield* client()
        const begun = yield* Deferred.make<void>()
        const live = yield* Effect.forkScoped(
          Effect.flatMap(queues.live(), Stream.runForEach(() => Deferred.succeed(begun, undefined)))
        )
        const events = yield* Effect.forkScoped(Effect.flatMap(queues.events(), Stream.runDrain))
        yield* Deferred.await(begun)
        return { ended: Effect.andThen(Fiber.join(live), Fiber.join(events)) }
      }).pipe(Effect.provide(context))
      yield* Scope.close(scope, Exit.void)
      yield* ended
    }).pipe(Effect.scoped, Effect.timeout("15 seconds")), timeout)

  it.live("takes an empty token for none: it lets in nobody else, and nobody acts", () =>
    Effect.gen(function*() {
      yield* busy
      const pause = `/llm-queue/queues/${encodeURIComponent(hostile)}/pause`
      for (const authorization of [undefined, "Bearer ", "Bearer x"]) {
        const headers = authorization === undefined ? {} : { authorization }
        assert.strictEqual((yield* raw("/llm-queue/queues", { ...headers, host: "evil.example" })).status, 403)
        assert.strictEqual((yield* raw(pause, { ...headers, host: "evil.example" }, "POST")).status, 403)
        assert.strictEqual((yield* raw(pause, { ...headers, host: "localhost" }, "POST")).status, 403)
      }
      const { queues } = yield* client()
      assert.deepStrictEqual(yield* queues.access(), { actions: false })
      assert.strictEqual((yield* queues.list())[0]!.state, "open")
    }).pipe(Effect.scoped, Effect.provide(serve({ token: Redacted.make(""), actions: true }))), timeout)

  it.live(
    "answers no requests that browsers make for pages of others, and no endless lists",
    () =>
      Effect.gen(function*() {
        yield* busy
        const path = "/llm-queue/queues"
        for (
          const [site, status] of [["cross-site", 403], ["same-site", 403], ["same-origin", 200], [
            "none",
            200
          ]] as const
        ) {
          const answer = yield* raw(path, { host: "localhost", "sec-fetch-site": site, "sec-fetch-mode": "no-cors" })
          assert.strictEqual(answer.status, status, site)
        }
        const { queues } = yield* client()
        assert.strictEqual((yield* queues.requests({ params, query: { limit: 1000 } })).length, 3)
        assert.strictEqual((yield* Effect.flip(queues.requests({ params, query: { limit: 1001 } })))._tag, "Invalid")
        assert.strictEqual((yield* Effect.flip(queues.deadLetters({ params, query: { limit: 1001 } })))._tag, "Invalid")
      }).pipe(Effect.scoped, Effect.provide(serve())),
    timeout
  )
})
