import { assert, describe, it } from "@effect/vitest"
import { Duration, Effect, Exit, Fiber, Option, Stream, Tracer } from "effect"
import { ModelConfig, ProviderProfile, QueueManager, RateLimiter } from "effect-llm-queue"
import { TestClock } from "effect/testing"

interface Params {
  /** Milliseconds. */
  readonly takes?: number
  readonly fails?: object
}

const Model = ModelConfig.makeUntyped<Params, ModelConfig.Usage, object>("gpt-4", {
  rateLimiters: [RateLimiter.concurrent(1), RateLimiter.tpm(10_000)],
  provider: ProviderProfile.openai,
  usage: (result) => result,
  shutdown: { policy: "interrupt", deadline: 0 }
})

const options = { estimatedInputTokens: 20, estimatedOutputTokens: 10, maxOutputTokens: 30 }

/** All spans, in the order in which they were begun. */
const collected = () => {
  const spans: Array<Tracer.NativeSpan> = []
  const tracer = Tracer.make({
    span: (options) => {
      const span = new Tracer.NativeSpan(options)
      spans.push(span)
      return span
    }
  })
  return { spans, tracer }
}

const parentOf = (span: Tracer.NativeSpan) => {
  const parent = Option.getOrUndefined(span.parent)
  return parent?._tag === "Span" ? parent.name : undefined
}

/** Milliseconds. */
const times = ({ status }: Tracer.NativeSpan) => {
  assert(status._tag === "Ended")
  return [Number(status.startTime / 1_000_000n), Number(status.endTime / 1_000_000n)]
}

const failed = ({ status }: Tracer.NativeSpan) => status._tag === "Ended" && Exit.isFailure(status.exit)

const process = ({ params: { fails, takes = 0 } }: { readonly params: Params }) =>
  Effect.sleep(Duration.millis(takes)).pipe(
    Effect.andThen(fails === undefined ? Effect.succeed({ inputTokens: 15, outputTokens: 4 }) : Effect.fail(fails)),
    Effect.withSpan("call")
  )

const run = <A, E>(effect: Effect.Effect<A, E, QueueManager.QueueManager>, processor = process) => {
  const { spans, tracer } = collected()
  return Effect.gen(function*() {
    const manager = yield* QueueManager.QueueManager
    yield* manager.registerQueue(Model, processor)
    yield* effect
    yield* TestClock.adjust(0)
    return spans.filter(({ name }) => !name.startsWith("QueueManager.register"))
  }).pipe(Effect.scoped, Effect.provide(QueueManager.layer), Effect.withTracer(tracer))
}

const submit = (params: Params, more?: object) =>
  QueueManager.QueueManager.use((manager) => manager.submit(Model, params, { ...options, ...more }))

describe("traces", () => {
  it.effect("have what a request waited and its attempt below its submission, and its processor below that", () =>
    Effect.gen(function*() {
      const spans = yield* run(Effect.gen(function*() {
        const first = yield* Effect.forkChild(submit({ takes: 2000 }, { id: "one" }))
        yield* TestClock.adjust("500 millis")
        const second = yield* Effect.forkChild(
          submit({ takes: 1000 }, { id: "two", tenant: "acme" }).pipe(Effect.withSpan("program"))
        )
        yield* TestClock.adjust("10 seconds")
        yield* Fiber.join(first)
        yield* Fiber.join(second)
      }))
      const ofSecond = spans.filter(({ attributes }) => attributes.get("llm_queue.request_id") === "two")
      assert.deepStrictEqual(
        ofSecond.map((span) => [span.name, parentOf(span)]),
        [
          ["QueueManager.submitRequest", "program"],
          ["ModelQueue.queued", "QueueManager.submitRequest"],
          ["ModelQueue.attempt", "QueueManager.submitRequest"]
        ]
      )
      const [, queued, attempt] = ofSecond
      assert.deepStrictEqual(times(queued!), [500, 2000])
      assert.deepStrictEqual(times(attempt!), [2000, 3000])
      assert.strictEqual(queued!.attributes.get("llm_queue.waited_for"), "concurrent")
      assert.deepStrictEqual(Object.fromEntries(attempt!.attributes), {
        "llm_queue.model": "gpt-4",
        "llm_queue.request_id": "two",
        "llm_queue.attempt": 1,
        "llm_queue.tenant": "acme",
        "llm_queue.estimated.input_tokens": 20,
        "llm_queue.estimated.output_tokens": 10,
        "gen_ai.request.model": "gpt-4",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.max_tokens": 30,
        "gen_ai.usage.input_tokens": 15,
        "gen_ai.usage.output_tokens": 4
      })
      assert.deepStrictEqual(spans.filter(({ name }) => name === "call").map(parentOf), [
        "ModelQueue.attempt",
        "ModelQueue.attempt"
      ])
      assert.strictEqual(new Set(ofSecond.map(({ traceId }) => traceId)).size, 1)
      assert.isFalse(spans.some(failed))
    }))

  it.effect("have each attempt, and say what it was refused for", () =>
    Effect.gen(function*() {
      let attempts = 0
      const spans = yield* run(
        Effect.gen(function*() {
          const fiber = yield* Effect.forkChild(submit({}))
          yield* TestClock.adjust("1 minute")
          yield* Fiber.join(fiber)
        }),
        () =>
          attempts++ === 0
            ? Effect.fail({ status: 429, headers: { "retry-after": "7" } })
            : Effect.succeed({ inputTokens: 1, outputTokens: 1 })
      )
      const tries = spans.filter(({ name }) => name === "ModelQueue.attempt")
      assert.deepStrictEqual(tries.map(({ attributes }) => attributes.get("llm_queue.attempt")), [1, 2])
      assert.deepStrictEqual(tries.map(({ attributes }) => attributes.get("llm_queue.refusal")), ["rate", undefined])
      assert.deepStrictEqual(tries.map(failed), [true, false])
      const waits = spans.filter(({ name }) => name === "ModelQueue.queued")
      assert.strictEqual(waits.length, 2)
      const [begun, ended] = times(waits[1]!)
      assert.strictEqual(begun, 0)
      assert.isAtLeast(ended!, 7000)
    }))

  it.effect("end with what the request ended with: failure, timeout while waiting and at work, cancellation", () =>
    Effect.gen(function*() {
      const spans = yield* run(Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        const ask = (id: string, params: Params, more?: object) =>
          Effect.forkChild(Effect.exit(submit(params, { id, ...more })), { startImmediately: true })
        const fibers = [
          yield* ask("fails", { takes: 1000, fails: { message: "no" } }),
          yield* ask("late at work", { takes: 60_000 }, { timeout: "5 seconds" }),
          yield* ask("late in line", {}, { timeout: "3 seconds" }),
          yield* ask("cancelled", {})
        ]
        yield* TestClock.adjust(0)
        yield* manager.cancelRequest(Model, "cancelled")
        yield* TestClock.adjust("2 minutes")
        for (const fiber of fibers) yield* Fiber.join(fiber)
      }))
      const of = (id: string) =>
        spans.filter(({ attributes, name }) =>
          attributes.get("llm_queue.request_id") === id && name.startsWith("ModelQueue")
        ).map((span) => [span.name, failed(span)])
      assert.deepStrictEqual(of("fails"), [["ModelQueue.queued", false], ["ModelQueue.attempt", true]])
      assert.deepStrictEqual(of("late at work"), [["ModelQueue.queued", false], ["ModelQueue.attempt", true]])
      assert.deepStrictEqual(of("late in line"), [["ModelQueue.queued", true]])
      assert.deepStrictEqual(of("cancelled"), [["ModelQueue.queued", true]])
      assert.isTrue(spans.every(({ status }) => status._tag === "Ended"))
    }))

  it.effect("say when the first element of a stream was there", () =>
    Effect.gen(function*() {
      const { spans, tracer } = collected()
      const Writer = ModelConfig.makeStreamUntyped<null, number>("writer", { rateLimit: 10 })
      yield* Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        yield* manager.registerStream(Writer, () =>
          Stream.fromIterable([1, 2]).pipe(Stream.mapEffect((n) => Effect.as(Effect.sleep("2 seconds"), n))))
        const fiber = yield* Effect.forkChild(Stream.runDrain(manager.stream(Writer, null)))
        yield* TestClock.adjust("10 seconds")
        yield* Fiber.join(fiber)
      }).pipe(Effect.scoped, Effect.provide(QueueManager.layer), Effect.withTracer(tracer))
      const attempt = spans.find(({ name }) =>
        name === "ModelQueue.attempt"
      )!
      assert.deepStrictEqual(attempt.events.map(([name, at]) => [name, Number(at / 1_000_000n)]), [
        ["llm_queue.first_element", 2000]
      ])
      assert.deepStrictEqual(times(attempt), [0, 4000])
    }))

  it.effect("do no harm when the tracer breaks", () =>
    Effect.gen(function*() {
      let breaks = false
      const refuse = () => {
        if (breaks) throw new Error("a broken tracer")
      }
      class Broken extends Tracer.NativeSpan {
        override attribute(key: string, value: unknown) {
          refuse()
          super.attribute(key, value)
        }
        override end(...args: Parameters<Tracer.NativeSpan["end"]>) {
          // Effect's own spans are not ours to guard.
          if (this.name.startsWith("ModelQueue")) refuse()
          super.end(...args)
        }
      }
      const tracer = Tracer.make({ span: (options) => new Broken(options) })
      yield* Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        yield* manager.registerQueue(Model, ({ params }) => {
          breaks = true
          return Effect.as(Effect.sleep(params.takes ?? 0), { inputTokens: 1, outputTokens: 1 })
        })
        const fiber = yield* Effect.forkChild(
          Effect.onExit(manager.submit(Model, { takes: 100 }, options), () => Effect.sync(() => breaks = false))
        )
        const cancelled = yield* Effect.forkChild(manager.submit(Model, {}, options))
        yield* TestClock.adjust(0)
        yield* Fiber.interrupt(cancelled)
        yield* TestClock.adjust("1 second")
        assert.strictEqual((yield* Fiber.join(fiber)).status, "completed")
        const { depth, running } = yield* manager.getQueueInfo(Model)
        assert.deepStrictEqual([depth, running], [0, 0])
      }).pipe(Effect.scoped, Effect.provide(QueueManager.layer), Effect.withTracer(tracer))
    }))

  it.effect("have no texts in them", () =>
    Effect.gen(function*() {
      const Texts = ModelConfig.makeUntyped<string, string>("texts", { rateLimit: 10 })
      const { spans, tracer } = collected()
      yield* Effect.gen(function*() {
        const manager = yield* QueueManager.QueueManager
        yield* manager.registerQueue(Texts, () => Effect.succeed("the completion"))
        yield* manager.submit(Texts, "the prompt", { metadata: { note: "the prompt" } })
      }).pipe(Effect.scoped, Effect.provide(QueueManager.layer), Effect.withTracer(tracer))
      const all = spans.map(({ attributes, events, status }) => [
        Object.fromEntries(attributes),
        events.map(([name, , attributes]) => [name, attributes]),
        String(status._tag === "Ended" ? status.exit : status._tag)
      ])
      assert.isAbove(all.length, 2)
      const own = JSON.stringify(all.filter((_, index) => spans[index]!.name.startsWith("ModelQueue")))
      assert.notInclude(own, "the prompt")
      assert.notInclude(own, "the completion")
    }))
})
