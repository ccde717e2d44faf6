import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, Layer, Option } from "effect"
import { QueueManager, RateLimiter } from "effect-llm-queue"
import * as Queued from "effect-llm-queue/EmbeddingModel"
import { queueError } from "effect-llm-queue/LanguageModel"
import { AiError, EmbeddingModel, Tokenizer } from "effect/ai"
import { TestClock } from "effect/testing"

/** The vector of an input is its length; a token is four characters. */
const provider = () => {
  const requests: Array<ReadonlyArray<string>> = []
  return {
    requests,
    layer: Layer.effect(
      EmbeddingModel.EmbeddingModel,
      EmbeddingModel.make({
        embedMany: ({ inputs }) => {
          requests.push(inputs)
          if (inputs.includes("fails")) {
            return Effect.fail(AiError.make({
              module: "Fake",
              method: "embedMany",
              reason: new AiError.InvalidRequestError({ description: "no" })
            }))
          }
          if (inputs.includes("never")) return Effect.never
          return Effect.succeed({
            results: inputs.map(({ length }) => [length]),
            usage: { inputTokens: Math.ceil(inputs.join("").length / 4) }
          })
        }
      })
    )
  }
}

const withQueue = (of: ReturnType<typeof provider>, options: Partial<Queued.Options> = {}) =>
  Queued.layer({
    modelId: "fake",
    rateLimiters: [RateLimiter.rpm(100), RateLimiter.tpm(1000)],
    shutdown: { policy: "interrupt", deadline: 0 },
    ...options
  } as Queued.Options).pipe(Layer.provide(of.layer), Layer.provideMerge(QueueManager.layer))

const info = QueueManager.QueueManager.use((manager) => manager.getQueueInfo("fake"))
const used = Effect.map(info, ({ rateLimiters }) => rateLimiters.find(({ type }) => type === "tpm")!.used)
const embedMany = (inputs: ReadonlyArray<string>) =>
  EmbeddingModel.EmbeddingModel.use((model) => model.embedMany(inputs))
const embed = (input: string) => EmbeddingModel.EmbeddingModel.use((model) => model.embed(input))
const lengths = ({ embeddings }: EmbeddingModel.EmbedManyResponse) => embeddings.map(({ vector }) => vector[0])

describe("EmbeddingModel", () => {
  it.effect("embeds in requests that fit, and gives the results in order and the usage of all", () =>
    Effect.gen(function*() {
      const fake = provider()
      yield* Effect.gen(function*() {
        const inputs = [400, 400, 400, 100, 1200, 4].map((length) => "x".repeat(length))
        const response = yield* embedMany(inputs)
        assert.deepStrictEqual(lengths(response), [400, 400, 400, 100, 1200, 4])
        assert.strictEqual(response.usage.inputTokens, 626)
        // A quarter of 1,000 tokens is 1,000 characters.
        assert.deepStrictEqual(fake.requests.map((inputs) => inputs.map(({ length }) => length)), [
          [400, 400],
          [400, 100],
          [1200],
          [4]
        ])
        assert.strictEqual(yield* used, 626)
        assert.deepStrictEqual(lengths(yield* embedMany([])), [])
        assert.strictEqual(fake.requests.length, 4)
      }).pipe(Effect.provide(withQueue(fake)))
    }))

  it.effect("puts no more inputs together than it may", () =>
    Effect.gen(function*() {
      const fake = provider()
      const response = yield* embedMany(["a", "bb", "ccc", "dddd", "eeeee"]).pipe(
        Effect.provide(withQueue(fake, { maxInputs: 2 }))
      )
      assert.deepStrictEqual(lengths(response), [1, 2, 3, 4, 5])
      assert.deepStrictEqual(fake.requests.map(({ length }) => length), [2, 2, 1])
    }))

  it.effect("puts calls together that are made together, but not those of different tenants", () =>
    Effect.gen(function*() {
      const fake = provider()
      yield* Effect.gen(function*() {
        const [a, b, c] = yield* Effect.all([
          embed("a"),
          embed("bb"),
          QueueManager.withTenant(embed("ccc"), "other"),
          QueueManager.withTenant(embed("dddd"), "other")
        ], { concurrency: "unbounded" })
        assert.deepStrictEqual([a, b, c].map(({ vector }) => vector[0]), [1, 2, 3])
        assert.deepStrictEqual(fake.requests, [["a", "bb"], ["ccc", "dddd"]])
        const labelled = (input: string, labels: Record<string, string>) =>
          QueueManager.withLabels(embed(input), labels)
        yield* Effect.all([
          labelled("a", { x: "1", y: "2" }),
          labelled("bb", { y: "2", x: "1" }),
          labelled("ccc", { x: "2" })
        ], { concurrency: "unbounded" })
        assert.deepStrictEqual(fake.requests.slice(2), [["a", "bb"], ["ccc"]])
        const events = yield* info
        assert.strictEqual(events.completed, 4)
        const never = yield* Effect.forkChild(QueueManager.withTenant(embed("never"), "acme"))
        yield* TestClock.adjust(0)
        const [request] = yield* QueueManager.QueueManager.use((manager) => manager.getRequests("fake"))
        assert.strictEqual(request!.tenant, "acme")
        yield* Fiber.interrupt(never)
      }).pipe(Effect.provide(withQueue(fake)))
    }))

  it.effect("waits for its limits, and counts with a tokenizer", () =>
    Effect.gen(function*() {
      const fake = provider()
      yield* Effect.gen(function*() {
        const call = yield* Effect.forkChild(embedMany(["a", "b", "c"]))
        yield* TestClock.adjust(0)
        assert.strictEqual(fake.requests.length, 2)
        yield* TestClock.adjust("1 minute")
        assert.deepStrictEqual(lengths(yield* Fiber.join(call)), [1, 1, 1])
      }).pipe(
        Effect.provideService(
          Tokenizer.Tokenizer,
          Tokenizer.make({ tokenize: () => Effect.succeed(Array.from({ length: 400 }, () => 0)) })
        ),
        Effect.provide(withQueue(fake, {
          rateLimiters: [RateLimiter.tpm(1000, { charging: { refund: false } })]
        }))
      )
    }))

  it.effect("cancels the requests of an embedMany that is interrupted", () =>
    Effect.gen(function*() {
      const fiber = yield* Effect.forkChild(embedMany(["never", "a"]))
      yield* TestClock.adjust(0)
      assert.strictEqual((yield* info).running, 1)
      yield* Fiber.interrupt(fiber)
      yield* TestClock.adjust(0)
      const { cancelled, running } = yield* info
      assert.deepStrictEqual([cancelled, running], [1, 0])
    }).pipe(Effect.provide(withQueue(provider()))))

  it.effect("fails with what one request fails with, and cancels the others", () =>
    Effect.gen(function*() {
      const fake = provider()
      yield* Effect.gen(function*() {
        const error = yield* Effect.flip(embedMany(["never", "fails"]))
        assert.strictEqual(error.module, "Fake")
        yield* TestClock.adjust(0)
        const { cancelled, failed, running } = yield* info
        assert.deepStrictEqual([cancelled, failed, running], [1, 1, 0])
        const large = yield* Effect.flip(embedMany(["x".repeat(40_000)]))
        assert.strictEqual(Option.getOrThrow(queueError(large))._tag, "RequestTooLarge")
      }).pipe(Effect.provide(withQueue(fake, { maxInputs: 1 })))
    }))
})
