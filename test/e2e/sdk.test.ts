/**
 * The whole way, in real time: a queue, the official client of a provider, HTTP, and a provider that keeps its own
 * books. The limits are those of minutes made to seconds. Nothing here depends on how fast the machine is.
 */
import Anthropic from "@anthropic-ai/sdk"
import { NodeHttpServer } from "@effect/platform-node"
import { assert, describe, it } from "@effect/vitest"
import { Deferred, Duration, Effect, Exit, Fiber, Layer, Schedule, Schema } from "effect"
import { ModelConfig, ProviderProfile, QueueError, QueueManager, QueueRequest, RateLimiter } from "effect-llm-queue"
import { HttpRouter, HttpServer } from "effect/http"
import { createServer } from "node:http"
import OpenAI from "openai"
import { ProviderSimulator } from "../../src/testing/index.ts"

class SdkError extends Schema.TaggedError<SdkError>()("SdkError", { cause: Schema.Defect() }) {}

const Question = Schema.Struct({ prompt: Schema.String, maxTokens: Schema.Int, stream: Schema.Boolean })
type Question = typeof Question.Type

const Answer = Schema.Struct({ text: Schema.String, usage: ModelConfig.Usage })
type Answer = typeof Answer.Type

/** Sends a question, and says when the first piece of a streamed answer is there. */
type Ask = (
  question: Question,
  headers: Record<string, string>,
  onPiece: () => void
) => Effect.Effect<Answer, SdkError>

const attempt = <A>(call: (signal: AbortSignal) => PromiseLike<A>) =>
  Effect.tryPromise({ try: call, catch: (cause) => new SdkError({ cause }) })

const askOpenAi = (url: string, model: string): Ask => {
  const sdk = new OpenAI({ apiKey: "none", baseURL: `${url}/v1`, maxRetries: 0 })
  const usageOf = (usage: OpenAI.CompletionUsage | null | undefined) => ({
    inputTokens: usage?.prompt_tokens ?? 0,
    outputTokens: usage?.completion_tokens ?? 0
  })
  return Effect.fnUntraced(function*({ maxTokens, prompt, stream }, headers, onPiece) {
    const body = { model, messages: [{ role: "user" as const, content: prompt }], max_tokens: maxTokens }
    if (!stream) {
      const { data, response } = yield* attempt((signal) =>
        sdk.chat.completions.create(body, { headers, signal }).withResponse()
      )
      yield* ProviderProfile.observe(response)
      return { text: data.choices[0]?.message.content ?? "", usage: usageOf(data.usage) }
    }
    const { data, response } = yield* attempt((signal) =>
      sdk.chat.completions.create({ ...body, stream: true, stream_options: { include_usage: true } }, {
        headers,
        signal
      }).withResponse()
    )
    yield* ProviderProfile.observe(response)
    return yield* attempt(async () => {
      let text = ""
      let usage = usageOf(undefined)
      for await (const chunk of data) {
        text += chunk.choices[0]?.delta.content ?? ""
        if (text !== "") onPiece()
        if (chunk.usage) usage = usageOf(chunk.usage)
      }
      return { text, usage }
    }).pipe(Effect.onInterrupt(() => Effect.sync(() => data.controller.abort())))
  })
}

const askAnthropic = (url: string, model: string): Ask => {
  const sdk = new Anthropic({ apiKey: "none", baseURL: url, maxRetries: 0 })
  const answerOf = ({ content, usage }: Anthropic.Message) => ({
    text: content.map((block) => block.type === "text" ? block.text : "").join(""),
    usage: { inputTokens: usage.input_tokens, outputTokens: usage.output_tokens }
  })
  return Effect.fnUntraced(function*({ maxTokens, prompt, stream }, headers, onPiece) {
    const body = { model, messages: [{ role: "user" as const, content: prompt }], max_tokens: maxTokens }
    if (!stream) {
      const { data, response } = yield* attempt((signal) =>
        sdk.messages.create(body, { headers, signal }).withResponse()
      )
      yield* ProviderProfile.observe(response)
      return answerOf(data)
    }
    const events = yield* Effect.acquireRelease(
      Effect.sync(() => sdk.messages.stream(body, { headers }).on("text", onPiece)),
      (events) => Effect.sync(() => events.abort())
    )
    const { response } = yield* attempt(() => events.withResponse())
    yield* ProviderProfile.observe(response)
    return answerOf(yield* attempt(() => events.finalMessage()))
  }, Effect.scoped)
}

const period = 3000

/** The server's limits are buckets of the same period. */
const bucket = (dimension: ProviderSimulator.Dimension, limit: number): ProviderSimulator.Limit => ({
  dimension,
  limit,
  period,
  algorithm: "bucket"
})

const per = { timePeriod: period }
/** Where the two seconds of a minute that are kept back would only make the test take longer. */
const brief = { timePeriod: period, headroom: "100 millis" } as const

/**
 * A stall of the event loop delays requests by more than any margin. But those on their way are so few that what the
 * profiles keep back of a bucket, two seconds of it, has room for all of them.
 */
const inFlight = RateLimiter.concurrent(12)

const OpenAi = {
  name: "OpenAI",
  makeAsk: askOpenAi,
  profile: ProviderProfile.openai,
  dialect: "openai",
  charge: "openai",
  limitHeaders: "x-ratelimit-*",
  /** A refusal for quota, and what is in its message. */
  quota: "insufficient_quota",
  quotaSays: "The quota is used up",
  limits: [RateLimiter.rpm(60, per), RateLimiter.tpm(6000, per), inFlight],
  serverLimits: [{ ...bucket("requests", 60), countRefused: "requests" }, bucket("tokens", 6000)]
} as const

const Claude = {
  name: "Anthropic",
  makeAsk: askAnthropic,
  profile: ProviderProfile.anthropic,
  dialect: "anthropic",
  charge: "anthropic",
  limitHeaders: "anthropic-*",
  quota: "enforced_spend_limit_reached",
  quotaSays: "spend limit",
  limits: [RateLimiter.rpm(60, per), RateLimiter.itpm(6000, per), RateLimiter.otpm(3000, per), inFlight],
  serverLimits: [bucket("requests", 60), bucket("input", 6000), bucket("output", 3000)]
} as const

type Provider = typeof OpenAi | typeof Claude

/** One that does not close connections between requests: a client that uses one just then loses its request. */
const makeServer = () => createServer({ keepAliveTimeout: 60_000 })

/** A server on a free port of 127.0.0.1, and a queue whose processor is the client of that provider. */
const start = Effect.fnUntraced(function*(
  provider: Provider,
  name: string,
  server: Omit<ProviderSimulator.Model, "dialect" | "charge">,
  options: Partial<ModelConfig.Options<Question, Answer>> & {
    readonly rateLimiters: ReadonlyArray<RateLimiter.Config> | "unlimited"
    readonly onPiece?: () => void
  }
) {
  const { onPiece, ...definition } = options
  const model = `${provider.name} ${name}`
  const live = QueueManager.layer.pipe(
    Layer.provideMerge(
      HttpRouter.serve(ProviderSimulator.layerHttp, { disableLogger: true, disableListenLog: true }).pipe(
        Layer.provideMerge(ProviderSimulator.layer({
          models: { [model]: { ...server, dialect: provider.dialect, charge: provider.charge } },
          seed: 1
        })),
        Layer.provideMerge(NodeHttpServer.layer(makeServer, { host: "127.0.0.1", port: 0 }))
      )
    )
  )
  const services = yield* Layer.build(live)
  return yield* Effect.gen(function*() {
    const manager = yield* QueueManager.QueueManager
    const simulator = yield* ProviderSimulator.ProviderSimulator
    const ask = yield* HttpServer.addressFormattedWith((url) => Effect.sync(() => provider.makeAsk(url, model)))
    const Model = ModelConfig.make(model, {
      params: Question,
      result: Answer,
      error: SdkError,
      // The client, the server and all other tests share one event loop: its delays are delays of the network.
      provider: { ...provider.profile, margin: "300 millis" },
      estimate: ({ maxTokens }) => ({ maxOutputTokens: maxTokens }),
      usage: (result) => result.usage,
      ...definition
    })
    yield* manager.registerQueue(
      Model,
      ({ id, params }) => ask(params, { "x-sim-request-id": id }, onPiece ?? (() => {}))
    )
    return {
      Model,
      manager,
      simulator,
      submit: (id: string, question?: Partial<Question>) =>
        manager.submitRequest(QueueRequest.make(Model, {
          id,
          params: { prompt: "Name a colour.", maxTokens: 20, stream: false, ...question }
        })),
      report: Effect.map(simulator.report(), ({ models }) => models[0]!)
    }
  }).pipe(Effect.provideContext(services))
})

const words = "the queue sends as fast as the limits allow and never faster so nothing is refused".split(" ")

/** Every other one is streamed, and their sizes differ. */
const questions = (count: number): ReadonlyArray<Question> =>
  Array.from({ length: count }, (_, index) => ({
    prompt: Array.from({ length: 10 + (index * 37) % 90 }, (_, i) => words[(index + i) % words.length]).join(" "),
    maxTokens: 40 + (index * 53) % 121,
    stream: index % 2 === 1
  }))

const percent = (share: number) => `${(100 * share).toFixed(1)} %`

const timeout = 60_000

const providers: ReadonlyArray<Provider> = [OpenAi, Claude]

// The tests run at the same time, a few at once: those that take long come first.
describe("the official clients against a server that keeps the books", () => {
  // What the server says is left would hide it if the queue itself sent too fast.
  for (const provider of providers) {
    for (const told of provider === OpenAi ? [true, false] : [true]) {
      it.live(
        `${provider.name}: the work of more than four periods is all done, and none of it is refused${
          told ? "" : ", with no word from the server on what is left"
        }`,
        ({ annotate }) =>
          Effect.gen(function*() {
            const count = 260
            const { Model, manager, report, simulator, submit } = yield* start(
              provider,
              told ? "saturated" : "silent",
              {
                limits: provider.serverLimits,
                serviceTime: { base: 20, perOutputToken: 0.3 },
                tokensPerEvent: 8,
                dropHeaders: told ? [] : [provider.limitHeaders]
              },
              { rateLimiters: provider.limits }
            )
            const responses = yield* Effect.forEach(
              questions(count),
              (question, index) => submit(`request ${index}`, question),
              { concurrency: "unbounded" }
            )

            const books = yield* report
            assert.deepInclude(books, {
              arrivals: count,
              admitted: count,
              completed: count,
              refused: 0,
              aborted: 0,
              attemptsTooEarly: 0,
              attemptsAfterFinal: 0
            })
            for (const limit of books.limits) {
              assert.isAtMost(limit.worstWindow, limit.limit, `${limit.dimension} in any period`)
            }

            // Each request was answered once, and what it was settled with is what the server has in its books.
            const arrivals = new Map(
              (yield* simulator.arrivals).map((arrival) => [arrival.requestId, arrival] as const)
            )
            assert.strictEqual(arrivals.size, count)
            for (const { inputTokensUsed, outputTokensUsed, requestId, result } of responses) {
              const { inputTokens, outputTokens } = arrivals.get(requestId)!.usage!
              assert.deepStrictEqual({ inputTokensUsed, outputTokensUsed }, {
                inputTokensUsed: inputTokens,
                outputTokensUsed: outputTokens
              })
              assert.strictEqual(result.text.trim().split(/\s+/).length, outputTokens)
            }
            const info = yield* manager.getQueueInfo(Model)
            assert.deepInclude(info, { completed: count, failed: 0, cancelled: 0, depth: 0, running: 0 })
            assert.deepInclude(info.provider?.refusals, { rate: 0, ramp: 0, overload: 0, quota: 0 })
            for (const { enforced, limit } of info.rateLimiters) assert.strictEqual(enforced, limit)

            const last = Math.max(...Array.from(arrivals.values(), ({ at }) => at))
            const { models } = yield* simulator.report({ from: 0, to: last })
            const used = models[0]!.limits.map(({ dimension, limit, utilisation, worstWindow }) =>
              `${dimension} ${percent(utilisation)} used, at most ${Math.round(worstWindow)} of ${limit} in any period`
            )
            yield* Effect.promise(() => annotate(`${(last / 1000).toFixed(1)} s: ${used.join("; ")}`))
          }),
        timeout
      )
    }
  }

  for (const provider of providers) {
    it.live(
      `${provider.name}: a limit twice as high as the server's costs refusals and waiting, and no request`,
      () =>
        Effect.gen(function*() {
          // So many that the server cannot take them all, whatever the machine delays: what it holds at first, and then
          // half of what is sent, is less. So few that the machine can send them at that pace.
          const count = 12
          const { Model, manager, report, submit } = yield* start(provider, "halved", {
            limits: [bucket("requests", 4)],
            // Else the first answer would correct it.
            dropHeaders: [provider.limitHeaders]
          }, { rateLimiters: [RateLimiter.rpm(8, brief)] })
          const responses = yield* Effect.forEach(
            questions(count),
            ({ prompt, stream }, index) => submit(`request ${index}`, { prompt, stream }),
            { concurrency: "unbounded" }
          )
          const books = yield* report
          assert.deepInclude(books, { completed: count, aborted: 0, attemptsTooEarly: 0, attemptsAfterFinal: 0 })
          assert.isAtLeast(books.refusedBy.requests, 1)
          assert.strictEqual(books.refused, books.refusedBy.requests)
          assert.strictEqual(responses.length, count)
          const refusals = responses.flatMap((response) => response.refusals)
          assert.strictEqual(refusals.length, books.refused)
          for (const { attempts, refusals } of responses) assert.strictEqual(attempts, 1 + refusals.length)
          for (const { kind, limitTypes, retryAfter } of refusals) {
            assert.strictEqual(kind, "rate")
            if (provider === OpenAi) assert.include(limitTypes, "rpm")
            assert(retryAfter !== undefined)
          }
          const { provider: state, rateLimiters } = yield* manager.getQueueInfo(Model)
          assert.strictEqual(state?.refusals.rate, books.refused)
          assert.isBelow(rateLimiters[0]!.enforced, 8)
        }),
      timeout
    )
  }

  for (const provider of providers) {
    it.live(
      `${provider.name}: a refused request waits for as long as it is told to, then completes`,
      () =>
        Effect.gen(function*() {
          const { report, submit } = yield* start(provider, "refusing", {
            limits: [],
            faults: [
              { when: { nth: 1 }, kind: "429", retryAfter: "0.7" },
              { when: { nth: 2 }, kind: "429", retryAfter: "1" }
            ]
          }, { rateLimiters: [RateLimiter.rpm(60, brief), RateLimiter.concurrent(1)] })
          const response = yield* submit("request")
          assert.strictEqual(response.attempts, 3)
          assert.deepStrictEqual(
            response.refusals.map(({ kind, retryAfter }) => ({ kind, retryAfter: Duration.toMillis(retryAfter!) })),
            [{ kind: "rate", retryAfter: 700 }, { kind: "rate", retryAfter: 1000 }]
          )
          // The server has looked at when they came, too.
          assert.deepInclude(yield* report, { arrivals: 3, refused: 2, completed: 1, attemptsTooEarly: 0 })
        }),
      timeout
    )
  }

  for (const provider of providers) {
    it.live(
      `${provider.name}: when the quota is used up all are told, and the server is left alone until one is sent to try`,
      () =>
        Effect.gen(function*() {
          const { Model, manager, report, simulator, submit } = yield* start(provider, "without quota", {
            limits: [],
            faults: [{ kind: provider.quota }]
          }, {
            rateLimiters: provider.limits,
            circuitBreaker: { quotaCooldown: "3 seconds" }
          })
          const submitAll = (name: string) =>
            Effect.forEach(
              Array.from({ length: 20 }, (_, index) => `${name} ${index}`),
              (id, index) => Effect.flip(submit(id, { stream: index % 2 === 1 })),
              { concurrency: "unbounded" }
            )
          const errors = yield* submitAll("first")
          const { arrivals } = yield* report
          // Those that submit again while they are told are told again; these come later.
          yield* Effect.yieldNow
          errors.push(...(yield* submitAll("second")))
          for (const error of errors) {
            assert(error instanceof QueueError.QuotaExhausted)
            assert.include(error.reason, provider.quotaSays)
          }
          // Those that had been sent when the first answer came, and not one more.
          assert.deepInclude(yield* report, { arrivals, refused: arrivals, completed: 0, attemptsAfterFinal: 0 })
          const { provider: state } = yield* manager.getQueueInfo(Model)
          assert(state?.state === "quotaExhausted")
          assert.strictEqual(state.refusals.quota, arrivals)

          yield* Effect.sleep(Duration.sum(state.retryIn!, Duration.millis(50)))
          const again = yield* submitAll("third")
          for (const error of again) assert(error instanceof QueueError.QuotaExhausted)
          assert.deepInclude(yield* report, { arrivals: arrivals + 1, attemptsAfterFinal: 0 })

          yield* simulator.setFaults(Model.modelId, [])
          const { provider: still } = yield* manager.getQueueInfo(Model)
          yield* Effect.sleep(Duration.sum(still!.retryIn!, Duration.millis(50)))
          yield* submit("last")
          assert.deepInclude(yield* report, { arrivals: arrivals + 2, completed: 1, attemptsAfterFinal: 0 })
        }),
      timeout
    )
  }

  for (const provider of providers) {
    it.live(
      `${provider.name}: a stream whose submitter has left is cut off, and its permit comes back`,
      () =>
        Effect.gen(function*() {
          const begun = yield* Deferred.make<void>()
          const { Model, manager, report, simulator, submit } = yield* start(provider, "cut off", {
            limits: [bucket("concurrent", 1)],
            outputTokens: 600,
            // An answer of its own length would take longer than the test may.
            serviceTime: { perOutputToken: 200 }
          }, {
            rateLimiters: [RateLimiter.concurrent(1)],
            onPiece: () => Deferred.doneUnsafe(begun, Exit.void)
          })
          const streaming = yield* Effect.forkChild(submit("stream", { stream: true, maxTokens: 600 }))
          yield* Deferred.await(begun)
          const permits = Effect.map(manager.getQueueInfo(Model), ({ rateLimiters }) => rateLimiters[0]?.available)
          assert.strictEqual(yield* permits, 0)
          yield* Fiber.interrupt(streaming)
          // The processor has ended before the server is told so, by its socket.
          yield* report.pipe(
            Effect.repeat({ until: ({ running }) => running === 0, schedule: Schedule.spaced("20 millis") }),
            Effect.timeout("30 seconds")
          )
          assert.deepInclude(yield* report, { arrivals: 1, aborted: 1, completed: 0 })

          assert.strictEqual(yield* permits, 1)
          const response = yield* submit("next", { maxTokens: 1 })
          assert.strictEqual(response.attempts, 1)
          assert.deepInclude(yield* report, { arrivals: 2, refused: 0, aborted: 1, completed: 1, maxConcurrent: 1 })
          const [cut] = yield* simulator.arrivals
          assert.isDefined(cut?.abortedAt)
          assert.deepInclude(yield* manager.getQueueInfo(Model), { completed: 1, cancelled: 1, failed: 0, running: 0 })
        }),
      timeout
    )
  }

  for (const provider of providers) {
    it.live(
      `${provider.name}: a lost connection, a broken stream and a server in trouble are tried again, and nothing is lost`,
      () =>
        Effect.gen(function*() {
          const count = 8
          const { Model, manager, report, submit } = yield* start(provider, "in trouble", {
            limits: [],
            serviceTime: { base: 10, perOutputToken: 1 },
            faults: [
              { when: { nth: 1 }, kind: "reset" },
              { when: { nth: 3 }, kind: "503", retryAfter: "1" },
              { when: { nth: [4, 5] }, kind: "reset_mid_body" }
            ]
          }, { rateLimiters: [RateLimiter.rpm(60, per)] })
          const responses = yield* Effect.forEach(
            questions(count),
            ({ prompt, stream }, index) => submit(`request ${index}`, { prompt, stream }),
            { concurrency: "unbounded" }
          )
          const books = yield* report
          assert.deepInclude(books, { refused: 1, attemptsTooEarly: 0, attemptsAfterFinal: 0 })
          const refusals = responses.flatMap((response) => response.refusals)
          assert.strictEqual(refusals.length, 4)
          for (const { kind } of refusals) assert.include(["transient", "overload"], kind)
          assert.strictEqual(
            responses.reduce((sum, { attempts }) => sum + attempts, 0),
            count + 4
          )
          assert.strictEqual(books.arrivals, count + 4)
          assert.deepInclude(yield* manager.getQueueInfo(Model), { completed: count, failed: 0 })
        }),
      timeout
    )
  }
})
