/**
 * What the queue costs: 100,000 fire-and-forget requests through limits that never bind, beside what Effect itself
 * costs for the same flow. Each subject runs in a process of its own, since the heap one leaves spoils the next;
 * subjects alternate, and medians are printed.
 *
 *     npm run bench
 *     npm run bench -- --json FILE
 */
import { Deferred, Effect, Layer, Queue } from "effect"
import { ModelConfig, QueueManager, QueueRequest, RateLimiter } from "effect-llm-queue"
import { execFileSync } from "node:child_process"
import { writeFileSync } from "node:fs"
import { cpus } from "node:os"
import { argv, execArgv, execPath, stdout, version } from "node:process"
import { fileURLToPath } from "node:url"

const requests = 100_000
const repetitions = 7

/** Intake queue, takeAll, one fiber and one Deferred a request. */
const floor = Effect.gen(function*() {
  const intake = yield* Queue.unbounded<Deferred.Deferred<number>>()
  const last = yield* Deferred.make<void>()
  let left = requests
  const started = performance.now()
  yield* Effect.forkChild(Effect.forever(Effect.gen(function*() {
    for (const deferred of yield* Queue.takeAll(intake)) {
      yield* Effect.forkChild(
        Effect.flatMap(Effect.succeed(1), (value) => {
          Deferred.doneUnsafe(deferred, Effect.succeed(value))
          if (--left === 0) Deferred.doneUnsafe(last, Effect.void)
          return Effect.void
        })
      )
    }
  })))
  for (let i = 0; i < requests; i++) yield* Queue.offer(intake, Deferred.makeUnsafe<number>())
  yield* Deferred.await(last)
  return performance.now() - started
})

const ours = Effect.gen(function*() {
  const manager = yield* QueueManager.QueueManager
  const last = yield* Deferred.make<void>()
  let left = requests
  const Model = ModelConfig.makeUntyped<number, ModelConfig.Usage>("bench", {
    rateLimiters: [
      RateLimiter.rpm(1_000_000_000),
      RateLimiter.tpm(1_000_000_000),
      RateLimiter.rpd(1_000_000_000),
      RateLimiter.concurrent(100)
    ],
    capacity: requests,
    usage: (result) => result
  })
  const result = { inputTokens: 10, outputTokens: 5 }
  yield* manager.registerQueue(Model, () => {
    if (--left === 0) Deferred.doneUnsafe(last, Effect.void)
    return Effect.succeed(result)
  })
  const started = performance.now()
  for (let i = 0; i < requests; i++) {
    yield* manager.submitRequest(QueueRequest.make(Model, {
      params: i,
      waitForCompletion: false,
      estimatedInputTokens: 10,
      estimatedOutputTokens: 10
    }))
  }
  yield* Deferred.await(last)
  return performance.now() - started
}).pipe(Effect.scoped, Effect.provide(Layer.fresh(QueueManager.layer)))

const subjects = { floor, ours }

const median = (values: ReadonlyArray<number>) => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)]!

const subject = argv[2]
if (subject === "floor" || subject === "ours") {
  stdout.write(String(await Effect.runPromise(Effect.scoped(subjects[subject]))))
} else {
  const rates: Record<keyof typeof subjects, Array<number>> = { floor: [], ours: [] }
  for (let repetition = 0; repetition < repetitions; repetition++) {
    for (const name of ["floor", "ours"] as const) {
      const millis = Number(execFileSync(execPath, [...execArgv, fileURLToPath(import.meta.url), name]).toString())
      rates[name].push(requests / millis * 1000)
    }
  }
  const rows = (["floor", "ours"] as const).map((name) => ({
    case: "fire-and-forget backlog of 100,000, no-op processor",
    subject: name,
    metric: "throughput",
    unit: "requests/s",
    median: Math.round(median(rates[name])),
    min: Math.round(Math.min(...rates[name])),
    max: Math.round(Math.max(...rates[name]))
  }))
  console.log(`Node ${version}, ${cpus()[0]?.model}, ${repetitions} alternating repetitions, one process each`)
  console.table(rows.map(({ median, min, max, subject, unit }) => ({ subject, median, min, max, unit })))
  console.log(`ours / floor: ${(rows[1]!.median / rows[0]!.median).toFixed(2)}`)
  const file = argv.indexOf("--json")
  if (file > 0) writeFileSync(argv[file + 1]!, JSON.stringify(rows, null, 2))
}
