import { assert, describe, it } from "@effect/vitest"
import { Cause, Deferred, Effect, Exit, Fiber, Layer, Option, Schedule, Schema, Stream } from "effect"
import { ProviderProfile, QueueManager, RateLimiter } from "effect-llm-queue"
import * as Queued from "effect-llm-queue/LanguageModel"
import { AiError, LanguageModel, Model, Prompt, Response, Tokenizer, Tool, Toolkit } from "effect/ai"
import { TestClock } from "effect/testing"

const finish = (input: number, output: number, cacheRead?: number) =>
  ({
    type: "finish",
    reason: "stop",
    usage: new Response.Usage({
      inputTokens: { uncached: input - (cacheRead ?? 0), total: input, cacheRead, cacheWrite: undefined },
      outputTokens: { total: output, text: output, reasoning: undefined }
    }),
    response: undefined
  }) as const

const text = (value: string) => ({ type: "text", text: value }) as const

type Answer = Effect.Effect<Array<Response.PartEncoded>, AiError.AiError>

/** A provider that answers by a script, its last entry again and again. */
const provider = (...answers: ReadonlyArray<(options: LanguageModel.ProviderOptions) => Answer>) => {
  let calls = 0
  const next = (options: LanguageModel.ProviderOptions) => answers[Math.min(calls++, answers.length - 1)]!(options)
  return {
    calls: () => calls,
    layer: Layer.effect(
      LanguageModel.LanguageModel,
      LanguageModel.make({
        generateText: next,
        streamText: (options) =>
          Stream.unwrap(Effect.map(next(options), (parts) =>
            Stream.fromIterable(
              parts.flatMap((part): ReadonlyArray<Response.StreamPartEncoded> =>
                part.type === "text"
                  ? [
                    { type: "text-start", id: "1" },
                    ...Array.from(part.text, (delta) => ({ type: "text-delta", id: "1", delta }) as const),
                    { type: "text-end", id: "1" }
                  ]
                  : part.type === "finish" || part.type === "tool-call"
                  ? [part]
                  : []
              )
            )))
      })
    )
  }
}

const says = (...parts: Array<Response.PartEncoded>) => () => Effect.succeed(parts)

const fails = (reason: AiError.AiErrorReason) => () =>
  Effect.fail(AiError.make({ module: "Fake", method: "generateText", reason }))

const limits = {
  rateLimiters: [RateLimiter.rpm(100), RateLimiter.tpm(10_000), RateLimiter.concurrent(1)],
  // A test that fails would else wait for what it has left.
  shutdown: { policy: "interrupt", deadline: 0 }
} as const

const withQueue = (
  of: { readonly layer: Layer.Layer<LanguageModel.LanguageModel> },
  options: Partial<Queued.Options> = {}
) =>
  Queued.layer({ modelId: "fake", ...limits, ...options } as Queued.Options).pipe(
    Layer.provide(of.layer),
    Layer.provideMerge(QueueManager.layer)
  )

const info = QueueManager.QueueManager.use((manager) => manager.getQueueInfo("fake"))

const used = Effect.map(info, ({ rateLimiters }) => rateLimiters.find(({ type }) => type === "tpm")!.used)

/** The queue is as if nothing was running. */
const atRest = Effect.gen(function*() {
  yield* TestClock.adjust(0)
  const { depth, rateLimiters, running } = yield* info
  assert.deepStrictEqual([depth, running], [0, 0])
  assert.strictEqual(rateLimiters.find(({ type }) => type === "concurrent")!.used, 0)
})

/** What looks like a refusal of the provider, but is a tool's own. */
class ToolFailure
  extends Schema.TaggedError<ToolFailure>()("ToolFailure", { why: Schema.String, status: Schema.Int })
{}

const Ask = Tool.make("Ask", {
  parameters: Schema.Struct({ question: Schema.String }),
  success: Schema.String,
  failure: ToolFailure
})
const Tools = Toolkit.make(Ask)
const asks = (question: string) =>
  ({ type: "tool-call", id: `call-${question}`, name: "Ask", params: { question } }) as const

describe("LanguageModel", () => {
  it.effect("generates text, objects and streams as the model does, and settles what they used", () =>
    Effect.gen(function*() {
      const response = yield* LanguageModel.generateText({ prompt: "hello" })
      assert.instanceOf(response, LanguageModel.GenerateTextResponse)
      assert.strictEqual(response.text, "{\"a\":1}")
      assert.strictEqual(yield* used, 150)
      const object = yield* LanguageModel.generateObject({
        prompt: "an object",
        schema: Schema.Struct({ a: Schema.Finite })
      })
      assert.deepStrictEqual(object.value, { a: 1 })
      assert.strictEqual(yield* used, 300)
      const parts = yield* Stream.runCollect(LanguageModel.streamText({ prompt: "hello" }))
      assert.strictEqual(
        parts.map((part) => part.type === "text-delta" ? part.delta : "").join(""),
        "{\"a\":1}"
      )
      assert.strictEqual(yield* used, 450)
      yield* atRest
      assert.strictEqual((yield* info).completed, 3)
    }).pipe(Effect.provide(withQueue(provider(says(text("{\"a\":1}"), finish(100, 50)))))))

  it.effect("counts all input, of it what came from the cache as cached", () =>
    Effect.gen(function*() {
      yield* LanguageModel.generateText({ prompt: "hello" })
      const itpm = (yield* info).rateLimiters.find(({ type }) => type === "itpm")!
      assert.strictEqual(itpm.used, 20)
    }).pipe(Effect.provide(withQueue(provider(says(text("yes"), finish(100, 50, 80))), {
      rateLimiters: [RateLimiter.itpm(10_000, { charging: { cachedInput: false } })]
    }))))

  it.effect("estimates messages, tools and schemas, a file as a thousand tokens", () =>
    Effect.gen(function*() {
      const seen: Array<number> = []
      const estimate = (call: Queued.Call) => {
        seen.push(call.text.join("").length)
        return { inputTokens: 1, outputTokens: 1 }
      }
      yield* Effect.gen(function*() {
        yield* LanguageModel.generateText({ prompt: "x".repeat(100) })
        yield* LanguageModel.generateText({ prompt: "x".repeat(100), toolkit: Tools }).pipe(
          Effect.provide(Tools.toLayer({ Ask: () => Effect.succeed("") }))
        )
        yield* Effect.ignore(
          LanguageModel.generateObject({ prompt: "x", schema: Schema.Struct({ aName: Schema.String }) })
        )
      }).pipe(Effect.provide(withQueue(provider(says(text("yes"), finish(1, 1))), { estimate })))
      assert.strictEqual(seen[0], 100)
      assert.isAbove(seen[1]!, 150)
      assert.isAbove(seen[2]!, 50)
      yield* Effect.gen(function*() {
        const image = Prompt.make([{
          role: "user",
          content: [{ type: "file", mediaType: "image/png", data: new Uint8Array(1_000_000) }]
        }])
        const call = yield* Effect.forkChild(LanguageModel.generateText({ prompt: image }))
        yield* TestClock.adjust(0)
        assert.strictEqual(yield* used, 2024)
        yield* Fiber.interrupt(call)
      }).pipe(Effect.provide(withQueue(provider(() => Effect.never))))
    }))

  it.effect("counts with the tokenizer of its caller, or of its layer", () =>
    Effect.gen(function*() {
      const tokenizer = (tokens: number) =>
        Tokenizer.make({ tokenize: () => Effect.succeed(Array.from({ length: tokens }, () => 0)) })
      const call = LanguageModel.generateText({ prompt: "hello" })
      const reserved = Effect.fnUntraced(function*(call: Effect.Effect<unknown, unknown, LanguageModel.LanguageModel>) {
        const before = yield* used
        const fiber = yield* Effect.forkChild(call)
        yield* TestClock.adjust(0)
        const reserved = (yield* used) - before
        yield* Fiber.interrupt(fiber)
        return reserved
      })
      yield* Effect.gen(function*() {
        assert.strictEqual(yield* reserved(call), 77 + 23)
        assert.strictEqual(yield* reserved(Effect.provideService(call, Tokenizer.Tokenizer, tokenizer(50))), 50 + 23)
        const broken = Tokenizer.make({ tokenize: () => Effect.die("broken") })
        assert.strictEqual(yield* reserved(Effect.provideService(call, Tokenizer.Tokenizer, broken)), 2 + 23)
      }).pipe(
        Effect.provide(
          withQueue(provider(() => Effect.never), {
            request: () => ({ estimatedOutputTokens: 23 })
          }).pipe(Layer.provide(Layer.succeed(Tokenizer.Tokenizer, tokenizer(77))))
        )
      )
    }))

  it.effect("takes its id and its provider's profile from the model it is given", () =>
    Effect.gen(function*() {
      const manager = yield* QueueManager.QueueManager
      assert.deepStrictEqual(yield* manager.getRegisteredModels, ["claude-x"])
      assert.strictEqual((yield* manager.getQueueInfo("claude-x")).provider!.name, "anthropic")
      assert.strictEqual((yield* LanguageModel.generateText({ prompt: "hello" })).text, "yes")
    }).pipe(Effect.provide(
      Queued.layer({ rateLimiters: [RateLimiter.rpm(5)] }).pipe(
        Layer.provide(Model.make("anthropic", "claude-x", provider(says(text("yes"), finish(1, 1))).layer)),
        Layer.provideMerge(QueueManager.layer)
      )
    )))

  it.effect("fails its layer without an id", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(Layer.build(
        Queued.layer({ rateLimiters: "unlimited" }).pipe(
          Layer.provide(provider(says()).layer),
          Layer.provide(QueueManager.layer)
        )
      ))
      assert.strictEqual(error._tag, "InvalidConfiguration")
    }).pipe(Effect.scoped))

  it.effect("attempts again what the provider refuses, as it says, and nothing else", () =>
    Effect.gen(function*() {
      const fake = provider(
        fails(new AiError.RateLimitError({ http: { response: { status: 429, headers: { "retry-after": "20" } } } })),
        says(text("yes"), finish(1, 1))
      )
      yield* Effect.gen(function*() {
        const fiber = yield* Effect.forkChild(LanguageModel.generateText({ prompt: "hello" }))
        yield* TestClock.adjust("19 seconds")
        assert.strictEqual(fake.calls(), 1)
        yield* TestClock.adjust("1 minute")
        assert.strictEqual((yield* Fiber.join(fiber)).text, "yes")
        assert.strictEqual(fake.calls(), 2)
        yield* atRest
      }).pipe(Effect.provide(withQueue(fake, { provider: ProviderProfile.openai })))
      const refused = provider(fails(new AiError.AuthenticationError({ kind: "InvalidKey" })))
      const error = yield* Effect.flip(LanguageModel.generateText({ prompt: "hello" })).pipe(
        Effect.provide(withQueue(refused, { provider: ProviderProfile.openai }))
      )
      assert.strictEqual(error.reason._tag, "AuthenticationError")
      assert.strictEqual(error.module, "Fake")
      assert.strictEqual(refused.calls(), 1)
    }))

  it.effect("says with an AiError what the queue fails with", () =>
    Effect.gen(function*() {
      const refused = fails(new AiError.RateLimitError({ metadata: { openai: { a: 1 } } }))
      yield* Effect.gen(function*() {
        const fiber = yield* Effect.forkChild(Effect.flip(LanguageModel.generateText({ prompt: "hello" })))
        yield* TestClock.adjust("5 minutes")
        const error = yield* Fiber.join(fiber)
        assert.strictEqual(error.module, "QueueManager")
        assert.strictEqual(error.method, "generateText")
        assert(error.reason._tag === "RateLimitError")
        assert.deepStrictEqual(error.reason.metadata["openai"], { a: 1 })
        assert.include(error.reason.metadata["effect-llm-queue"], { tag: "RateLimitExceeded", modelId: "fake" })
        assert.strictEqual(Option.getOrThrow(Queued.queueError(error))._tag, "RateLimitExceeded")
      }).pipe(Effect.provide(withQueue(provider(refused), {
        provider: ProviderProfile.openai,
        retry: { schedule: Schedule.recurs(1) }
      })))
      yield* Effect.gen(function*() {
        yield* Effect.forkChild(LanguageModel.generateText({ prompt: "hello" }))
        yield* TestClock.adjust(0)
        const fiber = yield* Effect.forkChild(
          Effect.flip(Stream.runDrain(LanguageModel.streamText({ prompt: "hello" })))
        )
        yield* TestClock.adjust("2 seconds")
        const error = yield* Fiber.join(fiber)
        assert(error.reason._tag === "RateLimitError")
        const original = Option.getOrThrow(Queued.queueError(error))
        assert(original._tag === "QueueTimeout")
        assert.isTrue(error.isRetryable)
        const large = yield* Effect.flip(LanguageModel.generateText({ prompt: "x".repeat(1_000_000) }))
        assert.strictEqual(large.reason._tag, "InvalidRequestError")
        assert.isFalse(large.isRetryable)
        assert.strictEqual(Option.getOrThrow(Queued.queueError(large))._tag, "RequestTooLarge")
      }).pipe(Effect.provide(withQueue(provider(() => Effect.never), { request: () => ({ timeout: "2 seconds" }) })))
    }))

  it.effect("fails and dies with what the call does, its tools' errors among it, and does not run tools twice", () =>
    Effect.gen(function*() {
      const fake = provider(says(asks("a"), finish(1, 1)))
      let ran = 0
      const handlers = Tools.toLayer({
        Ask: () => Effect.suspend(() => (ran++, Effect.fail(new ToolFailure({ why: "rate limit", status: 429 }))))
      })
      yield* Effect.gen(function*() {
        const error = yield* Effect.flip(LanguageModel.generateText({ prompt: "hello", toolkit: Tools }))
        assert.instanceOf(error, ToolFailure)
        assert.strictEqual(ran, 1)
        const inStream = yield* Effect.forkChild(
          Effect.flip(Stream.runDrain(LanguageModel.streamText({ prompt: "hello", toolkit: Tools })))
        )
        yield* TestClock.adjust("1 minute")
        assert.instanceOf(yield* Fiber.join(inStream), ToolFailure)
        assert.strictEqual(ran, 2)
        assert.deepStrictEqual((yield* info).provider!.refusals.rate, 0)
        yield* atRest
      }).pipe(Effect.provide(Layer.merge(handlers, withQueue(fake, { provider: ProviderProfile.openai }))))
      // A tool that asks another model, which refuses.
      const Other = Tool.make("Ask", {
        parameters: Schema.Struct({ question: Schema.String }),
        success: Schema.String,
        failure: AiError.AiError
      })
      const others = Toolkit.make(Other)
      const refusal = AiError.make({ module: "Other", method: "call", reason: new AiError.RateLimitError({}) })
      ran = 0
      const ofOther = yield* Effect.flip(LanguageModel.generateText({ prompt: "hello", toolkit: others })).pipe(
        Effect.provide(Layer.merge(
          others.toLayer({ Ask: () => Effect.suspend(() => (ran++, Effect.fail(refusal))) }),
          withQueue(fake, { provider: ProviderProfile.openai })
        ))
      )
      assert.strictEqual(ofOther, refusal)
      assert.strictEqual(ran, 1)
      const defect = yield* Effect.exit(LanguageModel.generateText({ prompt: "hello" })).pipe(
        Effect.provide(withQueue(provider(() => Effect.die("broken"))))
      )
      assert(Exit.isFailure(defect))
      assert.strictEqual(Cause.squash(defect.cause), "broken")
      const interrupted = yield* Effect.exit(LanguageModel.generateText({ prompt: "hello" })).pipe(
        Effect.provide(withQueue(provider(() => Effect.interrupt)))
      )
      assert(Exit.isFailure(interrupted))
      assert.isTrue(Cause.hasInterruptsOnly(interrupted.cause))
    }))

  it.effect("lets tools call the model on the permit of the call that they belong to", () =>
    Effect.gen(function*() {
      // Whoever has tools uses them, down to the third level.
      const fake = provider(({ prompt }) => {
        const level = JSON.stringify(prompt.content).split("again").length
        return Effect.succeed(
          level < 3
            ? ["1", "2"].map((id) =>
              asks(`${JSON.stringify(prompt.content).includes("again") ? "again" : "first"} ${id}`)
            )
            : [text("answer"), finish(10, 10)]
        )
      })
      const call: (prompt: string) => Effect.Effect<string, ToolFailure, LanguageModel.LanguageModel> = (prompt) =>
        LanguageModel.generateText({ prompt, toolkit: Tools }).pipe(
          Effect.map((response) =>
            response.text + response.toolResults.map(({ result }) => typeof result === "string" ? result : "").join("")
          ),
          Effect.catchTag("AiError", (error) => Effect.fail(new ToolFailure({ why: error.message, status: 500 }))),
          Effect.provide(handlers)
        )
      const handlers: Layer.Layer<Tool.HandlersFor<typeof Tools.tools>, never, LanguageModel.LanguageModel> = Tools
        .toLayer(
          Effect.map(
            LanguageModel.LanguageModel,
            (model) => ({
              Ask: ({ question }) =>
                Effect.provideService(call(`${question} again`), LanguageModel.LanguageModel, model)
            })
          )
        )
      yield* Effect.gen(function*() {
        assert.strictEqual(yield* call("root"), "answer".repeat(4))
        assert.strictEqual(fake.calls(), 7)
        yield* atRest
      }).pipe(Effect.provide(withQueue(fake)))
    }))

  it.effect("cancels what is interrupted, waiting or at work, and a stream that is left early", () =>
    Effect.gen(function*() {
      const begun = yield* Deferred.make<void>()
      const stopped = yield* Deferred.make<void>()
      const fake = provider(
        () =>
          Deferred.succeed(begun, undefined).pipe(
            Effect.andThen(Effect.never),
            Effect.onInterrupt(() => Deferred.succeed(stopped, undefined))
          ),
        says(text("abcdefghijklmnopqrstuvwxyz".repeat(10)), finish(5, 5))
      )
      yield* Effect.gen(function*() {
        const first = yield* Effect.forkChild(LanguageModel.generateText({ prompt: "hello" }))
        yield* Deferred.await(begun)
        const second = yield* Effect.forkChild(LanguageModel.generateText({ prompt: "hello" }))
        yield* TestClock.adjust(0)
        assert.strictEqual((yield* info).depth, 1)
        yield* Fiber.interrupt(second)
        assert.strictEqual((yield* info).depth, 0)
        yield* Fiber.interrupt(first)
        yield* Deferred.await(stopped)
        yield* atRest
        const parts = yield* Stream.runCollect(Stream.take(LanguageModel.streamText({ prompt: "hello" }), 3))
        assert.strictEqual(parts.length, 3)
        yield* atRest
        assert.strictEqual((yield* info).cancelled, 3)
      }).pipe(Effect.provide(withQueue(fake)))
    }))
})
