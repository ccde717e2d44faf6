import type { Effect } from "effect"
import { ModelConfig, ModelGroup, type QueueError, type QueueManager, type QueueResponse } from "effect-llm-queue"
import { describe, expect, test } from "tstyche"

class A extends Error {}
class B extends Error {
  readonly b = 1
}

const One = ModelConfig.makeUntyped<{ prompt: string }, number, A>("one", { rateLimit: 1 })
const Two = ModelConfig.makeUntyped<{ prompt: string }, number, B>("two", { rateLimit: 1 })
const Never = ModelConfig.makeUntyped<{ prompt: string }, number>("never", { rateLimit: 1 })
const Other = ModelConfig.makeUntyped<string, number>("other", { rateLimit: 1 })

describe("a group of models", () => {
  test("has the errors of all of them", () => {
    expect(ModelGroup.make([One, Two, Never])).type.toBe<ModelGroup.ModelGroup<{ prompt: string }, number, A | B>>()
    expect(ModelGroup.submit(ModelGroup.make([One, Two]), { prompt: "" })).type.toBe<
      Effect.Effect<QueueResponse.Completed<number>, A | B | QueueError.SubmitError, QueueManager.QueueManager>
    >()
    ModelGroup.make([One, Two], {
      fallbackOn: (error) => {
        expect(error).type.toBe<A | B | QueueError.SubmitError>()
        return true
      }
    })
  })

  test("takes models of the same parameters and results only", () => {
    expect(ModelGroup.make).type.not.toBeCallableWith([One, Other])
    expect(ModelGroup.submit).type.not.toBeCallableWith(ModelGroup.make([One]), "text")
  })
})
