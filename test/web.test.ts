/**
 * What strangers can send to the API and the page: nothing of it changes a queue, hurts the server, or is answered with
 * more than it must be. A failure of the random one names its seed, which `SEED` takes back.
 */
import { NodeHttpServer } from "@effect/platform-node"
import { assert, describe, it } from "@effect/vitest"
import { Deferred, Effect, Layer, Redacted } from "effect"
import { ModelConfig, QueueManager, QueueRequest, RateLimiter } from "effect-llm-queue"
import * as QueueApi from "effect-llm-queue/Api"
import * as Dashboard from "effect-llm-queue/Dashboard"
import { FetchHttpClient, HttpRouter } from "effect/http"
import { createServer, type IncomingHttpHeaders, request as sendRequest } from "node:http"
import process from "node:process"
import { gzipSync } from "node:zlib"
import { type Random, random } from "./laws/schedule.ts"
import { port } from "./port.ts"

const token = "a long secret"
const authorization = `Bearer ${token}`
const json = { authorization, "content-type": "application/json" }
const timeout = 30_000

const Model = ModelConfig.makeUntyped<string, string, string>("model", {
  rateLimiters: [RateLimiter.rpm(100), RateLimiter.concurrent(1)],
  deadLetters: { count: 10 },
  shutdown: { policy: "interrupt", deadline: 0 }
})

const serve = Effect.provide(
  HttpRouter.serve(Dashboard.layer({ token: Redacted.make(token), actions: true }), {
    disableLogger: true,
    disableListenLog: true
  }).pipe(
    Layer.provideMerge(NodeHttpServer.layer(createServer, { host: "127.0.0.1", port: 0 })),
    Layer.provideMerge(FetchHttpClient.layer),
    Layer.provideMerge(QueueManager.layer)
  )
)

interface Sent {
  readonly method?: string
  readonly path: string
  readonly headers?: Record<string, string>
  readonly body?: string | Buffer
}

interface Answer {
  readonly status: number
  readonly headers: IncomingHttpHeaders
  readonly body: string
}

const send = ({ body, headers = { authorization }, method = "GET", path }: Sent) =>
  Effect.flatMap(port, (port) =>
    Effect.callback<Answer>((resume) => {
      const sent = sendRequest({ host: "127.0.0.1", port, path, method, headers, agent: false }, (response) => {
        let text = ""
        response.on("data", (part: Buffer) => text += part.toString())
        response.on("end", () =>
          resume(Effect.succeed({ status: response.statusCode!, headers: response.headers, body: text })))
      })
      // It may hang up on who goes on sending what it has refused.
      sent.on("error", () => {})
      sent.end(body)
    }))

const below = "/llm-queue/queues/model"

/** A queue with one request that runs, one that waits, and one that has failed. */
const busy = Effect.gen(function*() {
  const manager = yield* QueueManager.QueueManager
  const [begun, never] = [yield* Deferred.make<void>(), yield* Deferred.make<string>()]
  yield* manager.registerQueue(Model, ({ params }) =>
    params === "fails"
      ? Effect.fail("it does")
      : Effect.andThen(Deferred.succeed(begun, undefined), Deferred.await(never)))
  yield* Effect.exit(manager.submit(Model, "fails", { id: "failed" }))
  for (const id of ["runs", "waits"]) {
    yield* manager.submitRequest(QueueRequest.make(Model, { params: id, id, waitForCompletion: false }))
  }
  yield* Deferred.await(begun)
  /** All that an action would change. */
  const state = Effect.gen(function*() {
    const info = yield* manager.getQueueInfo(Model)
    return {
      state: info.state,
      limits: info.rateLimiters.map(({ limit, timePeriod, type }) => ({ type, limit, timePeriod })),
      requests: (yield* manager.getRequests(Model)).map(({ priority, requestId, status }) => ({
        requestId,
        priority,
        status
      })),
      letters: (yield* manager.deadLetters(Model)).map(({ requestId }) => requestId)
    }
  })
  const before = yield* state
  assert.deepStrictEqual(before.requests.map(({ status }) => status), ["processing", "pending"])
  return Effect.map(state, (now) => assert.deepStrictEqual(now, before))
})

const actions: ReadonlyArray<Sent> = [
  { method: "POST", path: `${below}/pause` },
  { method: "POST", path: `${below}/resume` },
  { method: "POST", path: `${below}/drain` },
  { method: "POST", path: `${below}/cancel`, body: "{}" },
  { method: "POST", path: `${below}/requests/waits/priority`, body: "{\"priority\":60}" },
  { method: "PUT", path: `${below}/limits`, body: "{\"limits\":[{\"type\":\"rpm\",\"limit\":7}]}" },
  { method: "PATCH", path: `${below}/limits`, body: "{\"type\":\"rpm\",\"limit\":7}" },
  { method: "POST", path: `${below}/dead-letters/failed/resubmit` },
  { method: "POST", path: `${below}/dead-letters/remove`, body: "{}" }
]

/** Nothing of the program, of the machine, or of Effect. */
const tellsNothing = ({ body }: Answer, of: string) => {
  assert.notMatch(body, /node_modules|\.ts:\d|\.js:\d|\n\s+at |\/src\/|Error:/, of)
}

describe("strangers on the web", () => {
  it.live(
    "are told of each answer, failures too, that it is not to be kept, nor to be taken for a page",
    () =>
      Effect.gen(function*() {
        const unchanged = yield* busy
        const answers: ReadonlyArray<readonly [number, Sent]> = [
          [200, { path: "/llm-queue/queues" }],
          [200, { path: "/llm-queue/openapi.json", headers: {} }],
          [200, { path: "/llm-queue/dashboard", headers: {} }],
          [200, { path: "/llm-queue/dashboard/main.js", headers: {} }],
          [200, { path: "/llm-queue/dashboard/style.css", headers: {} }],
          [401, { path: "/llm-queue/queues", headers: {} }],
          [401, { path: `/llm-queue/queues?token=${encodeURIComponent(token)}`, headers: {} }],
          [401, { path: "/llm-queue/queues", headers: { authorization: `Basic ${btoa(`:${token}`)}` } }],
          [403, { path: "/llm-queue/queues", headers: { authorization, origin: "http://evil.example" } }],
          [404, { path: "/llm-queue/queues/none" }],
          [404, { path: "/llm-queue/none" }],
          [404, { path: "/llm-queue/dashboard/../../../etc/passwd" }],
          [400, { path: `${below}/requests?limit=many` }],
          [400, { method: "POST", path: `${below}/cancel`, headers: json, body: "{" }],
          [413, { method: "POST", path: `${below}/cancel`, headers: json, body: `{"tenant":"${"x".repeat(70_000)}"}` }],
          [415, { method: "POST", path: `${below}/cancel`, headers: { authorization, "content-type": "text/plain" } }],
          [422, { method: "PATCH", path: `${below}/limits`, headers: json, body: "{\"type\":\"rpm\",\"limit\":-1}" }]
        ]
        for (const [status, sent] of answers) {
          const answer = yield* send(sent)
          const of = `${status} ${sent.path.slice(0, 100)}`
          assert.strictEqual(answer.status, status, of)
          assert.strictEqual(answer.headers["cache-control"], "no-store", of)
          assert.strictEqual(answer.headers["x-content-type-options"], "nosniff", of)
          assert.match(String(answer.headers["content-security-policy"]), /^default-src 'none';/, of)
          assert.notProperty(answer.headers, "access-control-allow-origin", of)
          assert.notProperty(answer.headers, "location", of)
          // The script of the page has errors of its own.
          if (!sent.path.includes("/dashboard")) tellsNothing(answer, of)
        }
        yield* unchanged
      }).pipe(Effect.scoped, serve),
    timeout
  )

  it.live("change nothing by a method that only asks, nor by what a form can send", () =>
    Effect.gen(function*() {
      const unchanged = yield* busy
      for (const { body, path } of actions) {
        for (const method of ["GET", "HEAD", "OPTIONS", "DELETE"]) {
          const { status } = yield* send({ method, path })
          assert.isAtLeast(status, 400, `${method} ${path}`)
        }
        // Pages send these to others without asking.
        for (const type of ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]) {
          if (body === undefined) continue
          const { status } = yield* send({
            method: "POST",
            path,
            headers: { authorization, "content-type": type },
            body
          })
          assert.isAtLeast(status, 400, `${type} ${path}`)
        }
      }
      // With everything but the token, with that of a page elsewhere, and one that is nearly right.
      for (const action of actions) {
        for (
          const headers of [
            { "content-type": "application/json" },
            { ...json, origin: "https://evil.example" },
            { ...json, "sec-fetch-site": "cross-site" },
            { ...json, authorization: `${authorization}x` }
          ]
        ) {
          const { status } = yield* send({ ...action, headers })
          assert.isTrue(status === 401 || status === 403, `${status} ${action.path}`)
        }
      }
      yield* unchanged
    }).pipe(Effect.scoped, serve), timeout)

  it.live("cannot send more than a body may have, however they do it", () =>
    Effect.gen(function*() {
      const unchanged = yield* busy
      const packed = gzipSync(JSON.stringify({ tenant: "x".repeat(50_000_000) }))
      assert.isBelow(packed.length, 64 * 1024)
      const bomb = yield* send({
        method: "POST",
        path: `${below}/cancel`,
        headers: { ...json, "content-encoding": "gzip" },
        body: packed
      })
      assert.strictEqual(bomb.status, 400)
      const most = 256 * 1024 * 1024
      const endless = yield* Effect.flatMap(port, (port) =>
        Effect.callback<{ readonly status: number; readonly written: number }>((resume) => {
          const part = Buffer.alloc(64 * 1024, " ")
          let written = 0
          let isOver = false
          const sent = sendRequest({
            host: "127.0.0.1",
            port,
            path: `${below}/cancel`,
            method: "POST",
            headers: { ...json, "transfer-encoding": "chunked" },
            agent: false
          }, (response) => {
            isOver = true
            resume(Effect.succeed({ status: response.statusCode!, written }))
            sent.destroy()
          })
          sent.on("error", () => {})
          const more = () => {
            if (isOver || written >= most) {
              return
            }
            written += part.length
            sent.write(part, more)
          }
          more()
        }))
      assert.strictEqual(endless.status, 413)
      assert.isBelow(endless.written, most / 4)
      yield* unchanged
    }).pipe(Effect.scoped, serve), timeout)

  it.live("reach what has an id as long as an id may be", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      for (
        const id of ["x".repeat(256), "漢".repeat(256), "😀".repeat(128), "/".repeat(256), "..", "%2e%2e", "a?b#c"]
      ) {
        const Long = ModelConfig.makeUntyped<null, string>(id, { rateLimiters: "unlimited" })
        yield* manager.registerQueue(Long, () => Effect.succeed(""))
        yield* manager.pauseQueue(Long)
        yield* manager.submitRequest(QueueRequest.make(Long, { id, params: null, waitForCompletion: false }))
        const name = encodeURIComponent(id)
        const one = yield* send({ path: `/llm-queue/queues/${name}` })
        assert.strictEqual(JSON.parse(one.body).modelId, id)
        const moved = yield* send({
          method: "POST",
          path: `/llm-queue/queues/${name}/requests/${name}/priority`,
          headers: json,
          body: "{\"priority\":60}"
        })
        assert.deepStrictEqual(JSON.parse(moved.body), { changed: true })
      }
      // Nothing grows with what they make up.
      const { status } = yield* send({ path: `/llm-queue/queues/${"x".repeat(10_000)}` })
      assert.strictEqual(status, 404)
    }).pipe(Effect.scoped, serve), timeout)

  it.live("may send anything: it is refused, and the next one is served", () => {
    const seed = Number(process.env["SEED"] ?? Math.floor(Math.random() * 1e9))
    const any = random(seed)
    return Effect.gen(function*() {
      const unchanged = yield* busy
      for (let i = 0; i < 400; i++) {
        const action = any.pick(actions)
        // A body that is none, where one is needed: those that need none are tried above.
        const sent: Sent = action.body === undefined || any.chance(0.3)
          ? { path: somePath(any), method: any.pick(["GET", "POST", "PUT", "PATCH", "QUERY", "DELETE"]), headers: json }
          : { ...action, headers: json, body: someBody(any) }
        const answer = yield* send(sent)
        const of = `SEED=${seed}: ${i} ${sent.method} ${sent.path} ${String(sent.body).slice(0, 200)}`
        assert.isAtLeast(answer.status, 400, of)
        assert.isBelow(answer.status, 500, of)
        tellsNothing(answer, of)
      }
      assert.strictEqual((yield* send({ path: "/llm-queue/queues" })).status, 200)
      yield* unchanged
      const { queues } = yield* QueueApi.makeClient({
        url: `http://127.0.0.1:${yield* port}`,
        token: Redacted.make(token)
      })
      assert.strictEqual((yield* queues.get({ params: { modelId: "model" } })).depth, 1)
    }).pipe(Effect.scoped, serve)
  }, timeout)
})

/** No JSON, JSON that is no filter, priority or limit, and JSON that nobody should have to read. */
const someBody = ({ between, pick }: Random): string =>
  pick([
    () => "",
    () => "{",
    () => "\u0000",
    () => "[".repeat(between(1, 30_000)),
    () => `{"ids":${"[".repeat(5000)}${"]".repeat(5000)}}`,
    () => `{"ids":${"{\"a\":".repeat(5000)}1${"}".repeat(5000)},"limit":[],"priority":{}}`,
    () => "null",
    () => "[]",
    () => "\"\ud800\"",
    () => "1e999",
    () => String(between(0, 1e9)),
    () => "{\"ids\":7,\"limits\":7,\"limit\":\"7\",\"priority\":\"high\"}",
    () => "{\"ids\":[null],\"limits\":[null],\"type\":\"__proto__\",\"limit\":1,\"priority\":null}",
    () => "{\"labels\":[],\"ids\":{\"__proto__\":[]},\"limits\":{},\"type\":[],\"priority\":true}",
    () =>
      "{\"olderThanMillis\":\"NaN\",\"ids\":\"\",\"priority\":\"Infinity\",\"type\":\"rpm\",\"limit\":-1,\"limits\":[]}"
  ])()

const somePath = ({ between, pick }: Random): string => {
  const part = () =>
    pick([
      "queues",
      "model",
      "none",
      "__proto__",
      "constructor",
      "..",
      "%2e%2e",
      "%00",
      "%ff",
      "%",
      "",
      "x".repeat(3000),
      "%F0%9F%98%80",
      "..%2f..%2fetc%2fpasswd"
    ])
  return `/llm-queue/${Array.from({ length: between(1, 6) }, part).join("/")}/none${
    pick(["", "?", "?limit=-1", "?__proto__[a]=1", `?${"a&".repeat(500)}`])
  }`
}
