/** The command, built into one file and run where there are no packages. */
import { NodeHttpServer } from "@effect/platform-node"
import { assert, describe, layer } from "@effect/vitest"
import { Context, Deferred, Effect, Layer, Redacted, type Scope } from "effect"
import { ModelConfig, QueueManager, QueueRequest, RateLimiter } from "effect-llm-queue"
import * as QueueApi from "effect-llm-queue/Api"
import { HttpRouter, HttpServer, HttpServerResponse } from "effect/http"
import { type ChildProcess, execFile, execFileSync, spawn } from "node:child_process"
import { existsSync, mkdtempSync, rmSync } from "node:fs"
import { createServer, request as rawRequest } from "node:http"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { execPath } from "node:process"

const token = "a long secret"
const timeout = 60_000

class Cli extends Context.Service<Cli, { readonly directory: string; readonly path: string }>()(
  "effect-llm-queue/test/cli.test/Cli"
) {
  static readonly layer = Layer.effect(
    Cli,
    Effect.acquireRelease(
      Effect.sync(() => {
        const directory = mkdtempSync(join(tmpdir(), "llm-queue-cli-"))
        const path = join(directory, "cli.mjs")
        execFileSync(execPath, ["scripts/build-cli.mjs", path])
        return { directory, path }
      }),
      ({ directory }) => Effect.sync(() => rmSync(directory, { recursive: true }))
    )
  )
}

const env = (more: Record<string, string> = {}) => ({ PATH: process.env["PATH"], ...more })

/** Runs it to its end. */
const run = (args: ReadonlyArray<string>, variables?: Record<string, string>) =>
  Effect.gen(function*() {
    const { directory, path } = yield* Cli
    return yield* Effect.callback<{ readonly code: number; readonly stdout: string; readonly stderr: string }>(
      (resume) => {
        execFile(
          execPath,
          [path, ...args],
          { cwd: directory, env: env(variables), timeout },
          (error, stdout, stderr) => {
            resume(Effect.succeed({ code: typeof error?.code === "number" ? error.code : 0, stdout, stderr }))
          }
        )
      }
    )
  })

interface Running {
  readonly output: () => string
  /** As soon as it has printed something. */
  readonly printed: (pattern: RegExp) => Effect.Effect<RegExpExecArray>
  /** How it ends when it is asked to. */
  readonly end: Effect.Effect<number | null>
}

const watched = (child: ChildProcess): Running => {
  let output = ""
  const waiting = new Set<() => void>()
  for (const stream of [child.stdout!, child.stderr!]) {
    stream.setEncoding("utf8")
    stream.on("data", (text: string) => {
      output += text
      for (const look of waiting) look()
    })
  }
  const ended = Effect.callback<number | null>((resume) => {
    if (child.exitCode !== null) resume(Effect.succeed(child.exitCode))
    else child.on("exit", (code) => resume(Effect.succeed(code)))
  })
  return {
    output: () => output,
    printed: (pattern) =>
      Effect.callback<RegExpExecArray>((resume) => {
        const look = () => {
          const match = pattern.exec(output)
          if (match === null) return
          waiting.delete(look)
          resume(Effect.succeed(match))
        }
        waiting.add(look)
        look()
      }).pipe(
        Effect.timeoutOrElse({
          duration: "20 seconds",
          orElse: () => Effect.die(new Error(`not printed: ${pattern}\n${output}`))
        })
      ),
    end: Effect.andThen(Effect.sync(() => child.kill("SIGINT")), ended)
  }
}

const start = (
  args: ReadonlyArray<string>,
  variables: Record<string, string> = {},
  isTerminal = false
): Effect.Effect<Running, never, Cli | Scope.Scope> =>
  Effect.gen(function*() {
    const { directory, path } = yield* Cli
    const child = yield* Effect.acquireRelease(
      Effect.sync(() =>
        isTerminal
          ? spawn(
            "script",
            ["-qfec", `stty cols 100 rows 20; exec ${execPath} ${path} ${args.join(" ")}`, "/dev/null"],
            {
              cwd: directory,
              env: env(variables)
            }
          )
          : spawn(execPath, [path, ...args], { cwd: directory, env: env(variables) })
      ),
      (child) => Effect.sync(() => child.kill("SIGKILL"))
    )
    return watched(child)
  })

/** A program with a queue, one request being processed and two that wait. */
const program = Effect.gen(function*() {
  const manager = yield* QueueManager.QueueManager
  const Model = ModelConfig.makeUntyped<null, string>("gpt-4 \u202e x", { rateLimiters: [RateLimiter.concurrent(1)] })
  const go = yield* Deferred.make<void>()
  yield* manager.registerQueue(Model, () => Effect.as(Deferred.await(go), "ok"))
  for (const id of ["a", "b", "c"]) {
    yield* manager.submitRequest(QueueRequest.make(Model, { id, params: null, waitForCompletion: false }))
  }
  const url = yield* HttpServer.addressFormattedWith((url) => Effect.succeed(url))
  return { Model, go, manager, url }
})

const serve = (options: QueueApi.Options = { token: Redacted.make(token), actions: true }) =>
  HttpRouter.serve(
    Layer.merge(
      QueueApi.layer({ interval: "100 millis", ...options }),
      HttpRouter.addAll([
        HttpRouter.route("GET", "/metrics", HttpServerResponse.text("all of them")),
        HttpRouter.route("GET", "/llm-queue/redirect", HttpServerResponse.redirect("/metrics")),
        HttpRouter.route("GET", "/llm-queue/events/redirect", HttpServerResponse.redirect("/metrics")),
        HttpRouter.route("GET", "/llm-queue/events/html", HttpServerResponse.html("<script>alert(1)</script>"))
      ])
    ),
    {
      disableLogger: true,
      disableListenLog: true
    }
  ).pipe(
    Layer.provideMerge(
      NodeHttpServer.layer(createServer, { host: "127.0.0.1", port: 0, gracefulShutdownTimeout: "500 millis" })
    ),
    Layer.provideMerge(QueueManager.layerWith({ shutdown: { policy: "interrupt", deadline: 0 } }))
  )

interface Answer {
  readonly status: number
  readonly headers: Readonly<Record<string, unknown>>
  readonly body: string
}

const ask = (
  url: string,
  headers: Record<string, string> = {},
  { body, method = "GET" }: { readonly method?: string; readonly body?: string } = {}
) =>
  Effect.callback<Answer>((resume) => {
    const sent = rawRequest(url, { method, headers, agent: false }, (response) => {
      let text = ""
      response.on("data", (part: Buffer) => text += part.toString())
      response.on("end", () =>
        resume(Effect.succeed({ status: response.statusCode!, headers: response.headers, body: text })))
    })
    sent.on("error", () =>
      resume(Effect.succeed({ status: 0, headers: {}, body: "" })))
    sent.end(body)
  })

/** A path as it is: clients put addresses straight. */
const askAs = (url: string, path: string, headers: Record<string, string>) =>
  Effect.callback<{ readonly status: number }>((resume) => {
    const { hostname, port } = new URL(url)
    const sent = rawRequest({ host: hostname, port, path, headers, agent: false }, (response) => {
      response.resume()
      resume(Effect.succeed({ status: response.statusCode! }))
    })
    sent.end()
  })

const known = { LLM_QUEUE_TOKEN: token }

describe("effect-llm-queue", () => {
  layer(Cli.layer, { excludeTestServices: true, timeout })((it) => {
    it.effect("says what it can do, and what is wrong", () =>
      Effect.gen(function*() {
        const help = yield* run(["--help"])
        assert.match(help.stdout, /dashboard +Serve the dashboard/)
        assert.match(help.stdout, /watch +Show the queues/)
        const { url } = yield* program
        for (
          const [args, variables, problem] of [
            [["watch", "--url", "nonsense"], {}, /begins with http:\/\/ or https:\/\/, got nonsense/],
            [["watch", "--url", url], {}, /needs a token, or another one: give it as LLM_QUEUE_TOKEN/],
            [["watch", "--url", url], { LLM_QUEUE_TOKEN: "wrong" }, /needs a token, or another one/],
            [["watch", "--url", "http://127.0.0.1:9"], {}, /does not answer as effect-llm-queue\/Api does/],
            [["dashboard", "--url", url, "--host", "0.0.0.0"], {}, /could see the queues: give a token/],
            [["dashboard", "--url", url, "--host", "0.0.0.0", "--token", ""], {}, /a token that is not empty/],
            [["dashboard", "--url", url, "--host", "0.0.0.0"], { LLM_QUEUE_TOKEN: "" }, /token/],
            [["dashboard", "--url", url, "--port", new URL(url).port], known, /give another --port/]
          ] as const
        ) {
          const { code, stderr, stdout } = yield* run(args, variables)
          assert.match(stdout + stderr, problem)
          assert.strictEqual(code, 1, args.join(" "))
          assert.notInclude(stdout + stderr, "    at ")
        }
      }).pipe(Effect.scoped, Effect.provide(serve())), timeout)

    it.effect("prints one table where there is no terminal", () =>
      Effect.gen(function*() {
        const { url } = yield* program
        for (const address of [url, `${url}/`, `${url}/llm-queue/dashboard`]) {
          const { code, stdout } = yield* run(["watch", "--url", address], known)
          assert.match(stdout, /^MODEL .*\ngpt-4 � x  open +2 +1 .*concurrent ████████ 1\/1\n$/)
          assert.strictEqual(code, 0)
        }
      }).pipe(Effect.scoped, Effect.provide(serve())), timeout)

    it.effect("serves the dashboard of a program, for those who may see it", () =>
      Effect.gen(function*() {
        const { Model, manager, url } = yield* program
        const cli = yield* start(["dashboard", "--url", url, "--port", "0"])
        const [, own] = yield* cli.printed(/(http:\S+)\/llm-queue\/dashboard shows/)
        const page = yield* ask(`${own}/llm-queue/dashboard`)
        assert.strictEqual(page.status, 200)
        assert.include(String(page.headers["content-security-policy"]), "default-src 'none'")
        assert.strictEqual((yield* ask(`${own}/llm-queue/dashboard/main.js`)).status, 200)

        const authorization = `Bearer ${token}`
        const queues = `${own}/llm-queue/queues`
        assert.strictEqual((yield* ask(queues)).status, 401)
        assert.strictEqual((yield* ask(queues, { authorization: "Bearer wrong" })).status, 401)
        const answer = yield* ask(queues, { authorization })
        assert.deepInclude(JSON.parse(answer.body)[0], { modelId: Model.modelId, depth: 2 })
        assert.strictEqual(answer.headers["cache-control"], "no-store")
        // Names that lead here, and pages of others.
        assert.strictEqual((yield* ask(queues, { authorization, host: "evil.example" })).status, 403)
        assert.strictEqual((yield* ask(queues, { authorization, origin: "http://evil.example" })).status, 403)
        assert.strictEqual((yield* ask(`${own}/other`, { authorization })).status, 404)
        // What else the program serves is not passed on.
        assert.strictEqual((yield* ask(`${url}/metrics`)).status, 200)
        for (
          const path of [
            "/llm-queue/../metrics",
            "/llm-queue/%2e%2e/metrics",
            "/llm-queue/x/../../metrics",
            "/llm-queue/..%2fmetrics",
            "/llm-queue/%2e%2e%2fmetrics",
            "/llm-queue/..%5cmetrics",
            "/llm-queue/redirect",
            "/llm-queue/"
          ]
        ) assert.strictEqual((yield* askAs(own!, path, { authorization })).status, 404, path)
        // Nor is what it answers taken for a page, or followed.
        assert.strictEqual((yield* ask(`${own}/llm-queue/events/redirect`, { authorization })).status, 502)
        const html = yield* ask(`${own}/llm-queue/events/html`, { authorization })
        assert.strictEqual(html.headers["content-type"], "application/octet-stream")
        assert.include(String(html.headers["content-security-policy"]), "sandbox")
        assert.strictEqual((yield* ask(queues, { authorization }, { method: "DELETE" })).status, 405)

        const path = `${queues}/${encodeURIComponent(Model.modelId)}`
        const paused = yield* ask(`${path}/pause`, { authorization }, { method: "POST" })
        assert.strictEqual(paused.status, 204)
        assert.strictEqual((yield* manager.getQueueInfo(Model)).state, "paused")
        const cancelled = yield* ask(
          `${path}/cancel`,
          { authorization, "content-type": "application/json" },
          { method: "POST", body: "{\"status\":\"pending\"}" }
        )
        assert.deepStrictEqual(JSON.parse(cancelled.body), { cancelled: 2 })
        const large = yield* ask(
          `${path}/cancel`,
          { authorization, "content-type": "application/json" },
          { method: "POST", body: JSON.stringify({ tenant: "x".repeat(100_000) }) }
        )
        assert.isTrue(large.status === 413 || large.status === 0, `${large.status}`)
        assert.notInclude(cli.output(), "Error")
        yield* cli.end
      }).pipe(Effect.scoped, Effect.provide(serve())), timeout)

    it.effect(
      "asks for its own token before it passes anything on, and says when there is no program",
      () =>
        Effect.gen(function*() {
          const cli = yield* Effect.gen(function*() {
            const { url } = yield* program
            const cli = yield* start(["dashboard", "--url", url, "--port", "0"], known)
            const [, own] = yield* cli.printed(/(http:\S+)\/llm-queue\/dashboard shows/)
            assert.strictEqual((yield* ask(`${own}/llm-queue/queues`)).status, 401)
            assert.strictEqual(
              (yield* ask(`${own}/llm-queue/queues`, { authorization: `Bearer ${token}` })).status,
              200
            )
            return { ...cli, own }
          }).pipe(Effect.provide(serve({})))
          const gone = yield* ask(`${cli.own}/llm-queue/queues`, { authorization: `Bearer ${token}` })
          assert.strictEqual(gone.status, 502)
          assert.match(gone.body, /does not answer/)
          yield* cli.end
        }).pipe(Effect.scoped),
      timeout
    )

    if (existsSync("/usr/bin/script")) {
      it.effect("draws a live table on a terminal, until it is ended", () =>
        Effect.gen(function*() {
          const { go, url } = yield* program
          const cli = yield* start(["watch", "--url", url], known, true)
          yield* cli.printed(/MODEL[\s\S]*gpt-4 � x[\s\S]* 2 +1 +0 /)
          yield* Deferred.succeed(go, undefined)
          yield* cli.printed(/ 0 +0 +3 /)
          yield* cli.end
        }).pipe(Effect.scoped, Effect.provide(serve())), timeout)
    }
  })
})
