import { NodeHttpServer } from "@effect/platform-node"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Layer, Metric } from "effect"
import { ModelConfig, ProviderProfile, QueueManager, RateLimiter } from "effect-llm-queue"
import * as Metrics from "effect-llm-queue/Metrics"
import * as Prometheus from "effect-llm-queue/Prometheus"
import { FetchHttpClient, HttpClient, HttpRouter, HttpServer } from "effect/http"
import { spawnSync } from "node:child_process"
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { createServer } from "node:http"
import { tmpdir } from "node:os"
import { join } from "node:path"

const hasPromtool = spawnSync("promtool", ["--version"]).status === 0

/** What a server says of a queue that has done some work. Its model's name is hostile. */
const exported = Effect.gen(function*() {
  const manager = yield* QueueManager.QueueManager
  const Model = ModelConfig.makeUntyped<null, ModelConfig.Usage>("gpt \"4\" \\ <b>é</b>", {
    rateLimiters: [RateLimiter.rpm(100), RateLimiter.tpm(10_000)],
    provider: ProviderProfile.openai,
    usage: (result) => result
  })
  yield* manager.registerQueue(Model, () => Effect.succeed({ inputTokens: 10, outputTokens: 5 }))
  yield* manager.submit(Model, null, { estimatedInputTokens: 20, estimatedOutputTokens: 5, tenant: "a\nb\"c" }).pipe(
    Effect.exit
  )
  yield* manager.submit(Model, null, { estimatedInputTokens: 20, estimatedOutputTokens: 5, tenant: "a b\"c" })
  const url = yield* HttpServer.addressFormattedWith((url) => Effect.succeed(url))
  const response = yield* HttpClient.get(`${url}/metrics`)
  assert.strictEqual(response.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8")
  return yield* response.text
}).pipe(
  Effect.scoped,
  Effect.provide(
    HttpRouter.serve(Prometheus.layerHttp(), { disableLogger: true, disableListenLog: true }).pipe(
      Layer.provideMerge(NodeHttpServer.layer(createServer, { host: "127.0.0.1", port: 0 })),
      Layer.provideMerge(FetchHttpClient.layer),
      Layer.provideMerge(QueueManager.layer),
      Layer.provideMerge(Metrics.layer({ tenants: 5 }))
    )
  ),
  Effect.provideService(Metric.MetricRegistry, new Map())
)

describe("Prometheus", () => {
  it.live("is told of every metric, with its labels", () =>
    Effect.gen(function*() {
      const text = yield* exported
      assert.include(
        text,
        "llm_queue_requests_total{model=\"gpt \\\"4\\\" \\\\ <b>é</b>\",tenant=\"a b\\\"c\",outcome=\"completed\"} 1"
      )
      assert.include(text, "# TYPE llm_queue_wait_seconds histogram")
      const families = new Set(Array.from(text.matchAll(/^# TYPE (\S+)/gm), (match) => match[1]))
      for (const name of Object.keys(Metrics.names)) {
        // Nothing had to wait.
        if (name !== "llm_queue_blocked_seconds_total") assert.isTrue(families.has(name), name)
      }
    }))

  it.live.skipIf(!hasPromtool)("understands all of it", () =>
    Effect.gen(function*() {
      const text = yield* exported
      // It exits with 3 for what is wrong in form, and for names and types that are not as they should be.
      const { status, stderr } = spawnSync("promtool", ["check", "metrics"], { input: text })
      assert.strictEqual(status, 0, stderr.toString())
    }))
})

describe("the dashboard for Grafana", () => {
  const panels = (JSON.parse(readFileSync("examples/grafana/dashboard.json", "utf8")) as {
    readonly panels: ReadonlyArray<{ readonly targets: ReadonlyArray<{ readonly expr: string }> }>
  }).panels
  const questions = panels.flatMap(({ targets }) => targets.map(({ expr }) => expr))

  it("asks for metrics that there are, and for each of them", () => {
    const asked = new Set(
      questions.flatMap((question) =>
        Array.from(question.matchAll(/llm_queue_\w+/g), ([name]) => name.replace(/_bucket$/, ""))
      )
    )
    const unused = new Set(["llm_queue_limit_enforced", "llm_queue_estimate_ratio"])
    assert.deepStrictEqual(
      Array.from(asked).toSorted(),
      Object.keys(Metrics.names).filter((name) => !unused.has(name)).toSorted()
    )
  })

  it.skipIf(!hasPromtool)("asks in PromQL", () => {
    const directory = mkdtempSync(join(tmpdir(), "rules-"))
    try {
      const file = join(directory, "rules.yml")
      const rules = questions.map((question, index) => ({
        record: `question:${index}`,
        expr: question.replaceAll("$__rate_interval", "5m").replaceAll("$model", ".*")
      }))
      // JSON is YAML.
      writeFileSync(file, JSON.stringify({ groups: [{ name: "dashboard", rules }] }))
      const { status, stderr } = spawnSync("promtool", ["check", "rules", file])
      assert.strictEqual(status, 0, stderr.toString())
    } finally {
      rmSync(directory, { recursive: true })
    }
  })
})
