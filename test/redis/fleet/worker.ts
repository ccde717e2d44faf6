/**
 * One process of a fleet that shares limits. Told to go, it has `backlog` requests waiting all the time, or sends `rate` a
 * second; told to stop, it sends no more and says what it did.
 */
import { Data, Effect, Layer, Semaphore } from "effect"
import { ModelConfig, QueueManager, QueueRequest, RateLimiter } from "effect-llm-queue"
import * as QueueRedis from "effect-llm-queue/Redis"
import { FetchHttpClient, HttpClient, HttpClientRequest } from "effect/http"
import process from "node:process"

/** What a fleet has in common, and what one of its processes does. */
export interface Settings {
  readonly redis: string
  readonly prefix: string
  readonly url: string
  readonly period: number
  readonly margin: number
  readonly rpm: number
  readonly tpm: number
  readonly concurrent: number
  readonly lease: number
  readonly backlog: number | undefined
  readonly rate: number | undefined
}

/** What it did. */
export interface Done {
  readonly sent: number
  readonly completed: number
  readonly refused: number
  readonly failed: ReadonlyArray<string>
}

class Refused extends Data.TaggedError("Refused")<{ readonly message: string }> {}

const settings = JSON.parse(process.argv[2]!) as Settings
const { backlog, concurrent, margin, period, rate, rpm, tpm, url } = settings

const Model = ModelConfig.makeUntyped<number, { readonly input: number; readonly output: number }, Refused>("gpt", {
  rateLimiters: [
    RateLimiter.rpm(rpm, { timePeriod: period, margin }),
    RateLimiter.tpm(tpm, { timePeriod: period, margin }),
    RateLimiter.concurrent(concurrent)
  ],
  usage: ({ input, output }) => ({ inputTokens: input, outputTokens: output }),
  capacity: 100_000
})

const prompt = "tell me something about queues that nobody has told me before, and be brief about it please".repeat(2)

const call = Effect.fn(function*(model: string, maxTokens: number) {
  const response = yield* HttpClientRequest.post(`${url}/v1/chat/completions`).pipe(
    HttpClientRequest.bodyJsonUnsafe({ model, messages: [{ role: "user", content: prompt }], max_tokens: maxTokens }),
    HttpClient.execute
  )
  const body = yield* response.json
  if (response.status !== 200) return yield* new Refused({ message: JSON.stringify(body) })
  const { usage } = body as { readonly usage: { readonly prompt_tokens: number; readonly completion_tokens: number } }
  return { input: usage.prompt_tokens, output: usage.completion_tokens }
})

const told = (what: string) =>
  Effect.callback<void>((resume) => {
    const listener = (message: unknown) => {
      if (message === what) resume(Effect.void)
    }
    process.on("message", listener)
    return Effect.sync(() => process.off("message", listener))
  })

const program = Effect.gen(function*() {
  const manager = yield* QueueManager.QueueManager
  let sent = 0
  let completed = 0
  let refused = 0
  const failed: Array<string> = []
  yield* manager.registerQueue(Model, ({ params }) =>
    Effect.suspend(() => {
      sent++
      return Effect.mapError(call("gpt", params), ({ message }) => new Refused({ message }))
    }))
  // Connections take longer to open than the margin allows for.
  yield* Effect.forEach(Array.from({ length: concurrent }), () => call("warm-up", 5), { concurrency: concurrent })
  process.send!("ready")
  yield* told("go")
  let isOver = false
  const submit = (index: number) => {
    const output = 20 + (index * 53) % 60
    return manager.submitRequest(QueueRequest.make(Model, {
      params: output,
      estimatedInputTokens: Math.ceil(prompt.length / 4) + 3,
      estimatedOutputTokens: output
    })).pipe(Effect.matchEffect({
      onFailure: (error) =>
        Effect.sync(() => {
          if (error.message.includes("rate_limit")) refused++
          else failed.push(error.message)
        }),
      onSuccess: () => Effect.sync(() => void completed++)
    }))
  }
  const room = yield* Semaphore.make(backlog ?? 100_000)
  let index = 0
  const work = Effect.whileLoop({
    while: () => !isOver,
    body: () =>
      Effect.andThen(
        rate === undefined ? Effect.void : Effect.sleep(1000 / rate),
        Effect.andThen(room.take(1), Effect.forkChild(Effect.ensuring(submit(index++), room.release(1))))
      ),
    step: () => {}
  })
  yield* Effect.raceFirst(work, told("stop"))
  isOver = true
  yield* manager.cancelRequests(Model, { status: "pending" })
  while ((yield* manager.getQueueInfo(Model)).running > 0) yield* Effect.sleep(20)
  process.send!(
    { sent, completed, refused, failed: failed.filter((text) => !text.includes("cancelled")) } satisfies Done
  )
})

const Live = Layer.provideMerge(
  QueueManager.layer.pipe(
    Layer.provide(QueueRedis.layer({ prefix: settings.prefix, lease: settings.lease })),
    Layer.provide(QueueRedis.layerClient(settings.redis))
  ),
  FetchHttpClient.layer
)

await Effect.runPromise(program.pipe(Effect.scoped, Effect.provide(Live)))
process.disconnect()
