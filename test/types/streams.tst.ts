// oxlint-disable typescript/unbound-method -- nothing is called here
import { Context, type Effect, type Layer, Schema, type Scope, Stream } from "effect"
import { ModelConfig, type QueueError, QueueManager } from "effect-llm-queue"
import { describe, expect, test } from "tstyche"

class Refused extends Schema.TaggedError<Refused>()("Refused", {}) {}
class Http extends Context.Service<Http, { readonly get: Stream.Stream<string> }>()(
  "effect-llm-queue/test/types/streams.tst/Http"
) {}

const Writer = ModelConfig.makeStream("writer", {
  params: Schema.Struct({ prompt: Schema.String }),
  element: Schema.Struct({ text: Schema.String, usage: Schema.optional(ModelConfig.Usage) }),
  error: Refused,
  rateLimit: 1,
  usage: (element) => element.usage
})
type Element = { readonly text: string; readonly usage?: ModelConfig.Usage | undefined }

declare const manager: QueueManager.QueueManager["Service"]

describe("models of streams", () => {
  test("infer their types from schemas, or have none", () => {
    expect(Writer).type.toBe<ModelConfig.StreamModelConfig<{ readonly prompt: string }, Element, Refused>>()
    expect(ModelConfig.makeStreamUntyped<string, number>("x", { rateLimit: 1 })).type.toBe<
      ModelConfig.StreamModelConfig<string, number, never>
    >()
  })

  test("give the submitter a typed stream", () => {
    expect(manager.stream(Writer, { prompt: "" })).type.toBe<
      Stream.Stream<Element, Refused | QueueError.SubmitError>
    >()
    expect(manager.stream).type.not.toBeCallableWith(Writer, { promt: "" })
  })

  test("what their processors need is needed by the layer, and their errors are the model's", () => {
    expect(
      QueueManager.layerStream(
        Writer,
        () => Stream.map(Stream.unwrap(Http.use(({ get }) => stream(get))), (text) => ({ text }))
      )
    ).type.toBe<Layer.Layer<never, QueueError.RegisterError, QueueManager.QueueManager | Http>>()
    expect(manager.registerStream(Writer, () => Stream.make({ text: "" }))).type.toBe<
      Effect.Effect<void, QueueError.RegisterError, Scope.Scope>
    >()
    expect(manager.registerStream<{ readonly prompt: string }, Element, Refused, never>).type.not.toBeCallableWith(
      Writer,
      () => Stream.fail("undeclared")
    )
  })

  test("are no plain models, nor the other way round, but both can be looked at", () => {
    const Plain = ModelConfig.makeUntyped<string, number>("plain", { rateLimit: 1 })
    expect(manager.submit).type.not.toBeCallableWith(Writer, { prompt: "" })
    expect(manager.stream).type.not.toBeCallableWith(Plain, "")
    expect(manager.getQueueInfo).type.toBeCallableWith(Writer)
    expect(manager.cancelRequest).type.toBeCallableWith(Writer, "id")
  })
})

declare const stream: (self: Stream.Stream<string>) => Effect.Effect<Stream.Stream<string>>
