/**
 * What the dashboard costs, and how it answers. Prints two tables; nothing is asserted.
 *
 *     npm run bench:dashboard
 *
 * - How late dispatches are when a limit ends, against the instant that the limiter named: with no viewer of the live
 *   stream and with 50 in another process, in turns, in one run. 100 models, five of them at work.
 * - How long a browser takes from an input to the next frame that shows its effect (Event Timing), with 1,000 models and
 *   100,000 queued requests, all shown live. It needs Chromium, at CHROMIUM or /usr/bin/chromium.
 */
import { NodeHttpServer } from "@effect/platform-node"
import { Effect, Layer, Schedule } from "effect"
import { ModelConfig, QueueManager, QueueRequest, RateLimiter } from "effect-llm-queue"
import * as Dashboard from "effect-llm-queue/Dashboard"
import { HttpRouter, HttpServer } from "effect/http"
import { type ChildProcess, fork } from "node:child_process"
import { existsSync } from "node:fs"
import { createServer } from "node:http"
import { cpus } from "node:os"
import { performance } from "node:perf_hooks"
import { argv, version } from "node:process"
import { setTimeout } from "node:timers/promises"
import { fileURLToPath } from "node:url"
import { chromium } from "playwright-core"

const viewers = 50
const period = 15
const dispatches = 400
const rounds = Number(argv[2] ?? 6)

const quantile = (values: ReadonlyArray<number>, part: number): number =>
  values.toSorted((a, b) => a - b)[Math.ceil(part * values.length) - 1]!

const ServerLive = HttpRouter.serve(Dashboard.layer(), { disableLogger: true, disableListenLog: true }).pipe(
  Layer.provideMerge(
    NodeHttpServer.layer(createServer, { host: "127.0.0.1", port: 0, gracefulShutdownTimeout: "100 millis" })
  ),
  Layer.provideMerge(QueueManager.layerWith({ shutdown: { policy: "interrupt", deadline: 0 } }))
)

const address = HttpServer.addressFormattedWith((url) => Effect.succeed(url))

// ---------------------------------------------------------------------------------------------------------------
// Viewers, in a process of their own
// ---------------------------------------------------------------------------------------------------------------

const look = async (url: string): Promise<void> => {
  let bytes = 0
  const read = async () => {
    const response = await fetch(`${url}/llm-queue/live`)
    for await (const chunk of response.body!) bytes += chunk.length
  }
  const all = Array.from({ length: viewers }, read)
  await setTimeout(1500)
  process.send!("looking")
  await Promise.allSettled(all)
}

const startViewers = (url: string) =>
  Effect.acquireRelease(
    Effect.callback<ChildProcess>((resume) => {
      const child = fork(fileURLToPath(import.meta.url), ["look", url])
      child.once("message", () => resume(Effect.succeed(child)))
    }),
    (child) =>
      Effect.callback<void>((resume) => {
        child.once("exit", () => resume(Effect.void))
        child.kill("SIGKILL")
      })
  )

// ---------------------------------------------------------------------------------------------------------------
// How late dispatches are
// ---------------------------------------------------------------------------------------------------------------

interface Meter {
  late: Array<number>
}

/** Limiters that tell how late a request is admitted after the instant that they named before. */
const measured = (meter: Meter) =>
  Effect.map(RateLimiter.RateLimiter, (limiters) => ({
    make: (...args: Parameters<typeof limiters.make>) =>
      Effect.map(limiters.make(...args), (limiter): RateLimiter.Limiter => {
        if (args[0] !== "measured") return limiter
        let named: number | undefined
        return {
          ...limiter,
          admit: (...args) =>
            Effect.suspend(() => {
              const before = performance.now()
              return Effect.map(limiter.admit(...args), (admission) => {
                if (admission._tag === "Blocked") named = before + admission.wait
                else if (named !== undefined) {
                  meter.late.push(performance.now() - named)
                  named = undefined
                }
                return admission
              })
            })
        }
      })
  }))

const lateness = Effect.gen(function*() {
  const meter: Meter = { late: [] }
  const results: Record<"none" | "many", Array<number>> = { none: [], many: [] }
  const all: Record<"none" | "many", Array<number>> = { none: [], many: [] }
  yield* Effect.gen(function*() {
    const manager = yield* QueueManager.QueueManager
    const url = yield* address
    const others = Array.from({ length: 100 }, (_, index) =>
      ModelConfig.makeUntyped<number, number>(`model ${index}`, {
        rateLimiters: [RateLimiter.rpm(6000), RateLimiter.tpm(1e9), RateLimiter.concurrent(10)]
      }))
    yield* manager.registerAllQueues(others, ({ params }) => Effect.delay(Effect.succeed(params), 5))
    const Measured = ModelConfig.makeUntyped<number, number>("measured", {
      rateLimiters: [RateLimiter.rpm(1, { timePeriod: period })],
      capacity: dispatches + 1
    })
    yield* manager.registerQueue(Measured, ({ params }) => Effect.succeed(params))
    const traffic = Effect.forEach(
      [0, 1, 2, 3, 4],
      (index) => Effect.forkChild(Effect.ignore(manager.submit(others[index]!, index, { tenant: `tenant ${index}` }))),
      { discard: true }
    ).pipe(Effect.repeat(Schedule.spaced("20 millis")))
    yield* Effect.forkScoped(traffic)
    const block = Effect.gen(function*() {
      meter.late = []
      yield* Effect.forEach(
        Array.from({ length: dispatches }, (_, index) => index),
        (index) => manager.submit(Measured, index),
        { concurrency: "unbounded", discard: true }
      )
      return meter.late
    })
    yield* block
    for (let round = 0; round < rounds; round++) {
      const kinds = round % 2 === 0 ? ["none", "many"] as const : ["many", "none"] as const
      for (const kind of kinds) {
        const late = yield* Effect.scoped(
          kind === "none" ? block : Effect.andThen(startViewers(url), block)
        )
        results[kind].push(quantile(late, 0.99))
        all[kind].push(...late)
        yield* Effect.sleep("300 millis")
      }
    }
  }).pipe(
    Effect.scoped,
    Effect.provide(ServerLive),
    Effect.provideServiceEffect(RateLimiter.RateLimiter, measured(meter))
  )
  return { results, all }
})

// ---------------------------------------------------------------------------------------------------------------
// How a browser answers
// ---------------------------------------------------------------------------------------------------------------

/** Collects how long each input took until its effect was on the screen, in steps of eight milliseconds. */
const observe = `
  window.inputs = []
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) if (entry.interactionId > 0) window.inputs.push(entry.duration)
  }).observe({ type: "event", durationThreshold: 16, buffered: true })
  window.long = []
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) window.long.push(entry.duration)
  }).observe({ type: "longtask", buffered: true })
`

const browser = Effect.gen(function*() {
  const manager = yield* QueueManager.QueueManager
  const url = yield* address
  const models = Array.from(
    { length: 1000 },
    (_, index) =>
      ModelConfig.makeUntyped<number, number>(`model ${String(index).padStart(4, "0")}`, {
        rateLimiters: [RateLimiter.rpm(600), RateLimiter.tpm(1e9), RateLimiter.concurrent(1)],
        capacity: 200_000
      })
  )
  yield* manager.registerAllQueues(models, ({ params }) => Effect.delay(Effect.succeed(params), 100))
  for (let i = 0; i < 100_000; i++) {
    const model = models[i < 50_000 ? 500 : i % 1000]!
    yield* manager.submitRequest(
      QueueRequest.make(model, { params: i, waitForCompletion: false, tenant: `tenant ${i % 10}` })
    )
  }
  return yield* Effect.promise(async () => {
    const chrome = await chromium.launch({
      executablePath: process.env["CHROMIUM"] ?? "/usr/bin/chromium",
      args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    })
    try {
      const page = await chrome.newPage({ viewport: { width: 1280, height: 900 } })
      await page.goto(`${url}/llm-queue/dashboard`)
      await page.getByText("1–50 of 1,000").waitFor()
      await page.evaluate(observe)
      for (let i = 0; i < 8; i++) {
        await page.getByRole("button", { name: i % 2 === 0 ? "Model" : "Waiting", exact: true }).click()
        await page.getByRole("button", { name: "Next" }).click()
        await page.getByRole("searchbox").pressSequentially("model 05", { delay: 30 })
        await page.getByRole("link", { name: "model 0500" }).first().click()
        await page.getByText("the first 100 of").waitFor()
        await setTimeout(1200)
        await page.getByRole("link", { name: "All models" }).click()
        await page.getByRole("searchbox").fill("")
        await page.getByText("1–50 of 1,000").waitFor()
        await setTimeout(1200)
      }
      const read = (name: string): Promise<Array<number>> => page.evaluate(`window.${name}`)
      return { inputs: await read("inputs"), long: await read("long") }
    } finally {
      await chrome.close()
    }
  })
}).pipe(Effect.scoped, Effect.provide(ServerLive))

const main = async (): Promise<void> => {
  console.log(`Node.js ${version}, ${cpus().length} × ${cpus()[0]!.model}`)
  const { all, results } = await Effect.runPromise(lateness)
  const rows = (["none", "many"] as const).map((kind) => ({
    viewers: kind === "none" ? 0 : viewers,
    dispatches: all[kind].length,
    "p50, ms": quantile(all[kind], 0.5).toFixed(3),
    "p99, ms": quantile(all[kind], 0.99).toFixed(3),
    "p99 of each round": results[kind].map((value) => value.toFixed(2)).join(" ")
  }))
  console.table(rows)
  const median = (kind: "none" | "many") => quantile(results[kind], 0.5)
  console.log(
    `p99 with ${viewers} viewers ÷ with none: ${
      (quantile(all.many, 0.99) / quantile(all.none, 0.99)).toFixed(2)
    } of all dispatches, ${(median("many") / median("none")).toFixed(2)} of the medians of the rounds`
  )
  if (!existsSync(process.env["CHROMIUM"] ?? "/usr/bin/chromium")) {
    console.log("There is no Chromium: the browser is not measured.")
    return
  }
  const { inputs, long } = await Effect.runPromise(browser)
  console.table([{
    "inputs of 16 ms and more": inputs.length,
    "p50, ms": quantile(inputs, 0.5),
    "p95, ms": quantile(inputs, 0.95),
    "longest, ms": Math.max(...inputs),
    "long tasks": long.length,
    "longest task, ms": Math.max(0, ...long)
  }])
}

if (argv[2] === "look") await look(argv[3]!)
else await main()
