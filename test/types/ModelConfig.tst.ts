import { Context, type Effect, Schema } from "effect"
import { ModelConfig, RateLimiter } from "effect-llm-queue"
import { describe, expect, test } from "tstyche"

class OpenAiError extends Schema.TaggedError<OpenAiError>()("OpenAiError", { status: Schema.Int }) {}

class Vault extends Context.Service<Vault, { readonly open: Effect.Effect<string> }>()(
  "effect-llm-queue/test/types/ModelConfig.tst/Vault"
) {}

declare const Secret: Schema.Codec<string, string, Vault>
declare const Sealed: Schema.Codec<string, string, never, Vault>

const text = { params: Schema.String, result: Schema.String }

describe("ModelConfig.make", () => {
  test("infers parameters, result and error from the schemas, exactly", () => {
    const model = ModelConfig.make("gpt-4", {
      params: Schema.Struct({ prompt: Schema.String }),
      result: Schema.Struct({ text: Schema.String, usage: ModelConfig.Usage }),
      error: OpenAiError,
      rateLimiters: [RateLimiter.rpm(500), RateLimiter.concurrent(20)],
      usage: (result) => result.usage
    })
    expect(model).type.toBe<
      ModelConfig.ModelConfig<
        { readonly prompt: string },
        {
          readonly text: string
          readonly usage: ModelConfig.Usage
        },
        OpenAiError
      >
    >()
  })

  test("without an error schema the error is never", () => {
    expect(ModelConfig.make("m", { ...text, rateLimit: 1 })).type.toBe<
      ModelConfig.ModelConfig<string, string, never>
    >()
  })

  test("an error schema given as undefined is none", () => {
    expect(ModelConfig.make("m", { ...text, error: undefined, rateLimit: 1 })).type.toBe<
      ModelConfig.ModelConfig<string, string, never>
    >()
  })

  test("uses the decoded side of a schema", () => {
    const model = ModelConfig.make("m", {
      params: Schema.FiniteFromString,
      result: Schema.FiniteFromString,
      rateLimit: 1
    })
    expect(model).type.toBe<ModelConfig.ModelConfig<number, number, never>>()
  })

  test("a union of errors stays a union", () => {
    class Other extends Schema.TaggedError<Other>()("Other", {}) {}
    const model = ModelConfig.make("m", { ...text, error: Schema.Union([OpenAiError, Other]), rateLimit: 1 })
    expect(model).type.toBe<ModelConfig.ModelConfig<string, string, OpenAiError | Other>>()
  })

  test("the usage callback knows the result, the estimate callback the parameters", () => {
    ModelConfig.make("m", {
      params: Schema.Struct({ prompt: Schema.String }),
      result: Schema.Struct({ tokens: Schema.Int }),
      rateLimit: 1,
      usage: (result) => {
        expect(result).type.toBe<{ readonly tokens: number }>()
        return { inputTokens: result.tokens, outputTokens: 0 }
      },
      estimate: (params) => {
        expect(params).type.toBe<{ readonly prompt: string }>()
        return { inputTokens: params.prompt.length }
      }
    })
    // @ts-expect-error Property 'usage' does not exist on type 'string'
    ModelConfig.make("m", { ...text, rateLimit: 1, usage: (result) => result.usage })
    // @ts-expect-error Property 'prompt' does not exist on type 'string'
    ModelConfig.make("m", { ...text, rateLimit: 1, estimate: (params) => ({ inputTokens: params.prompt }) })
    // @ts-expect-error Property 'outputTokens' is missing in type
    ModelConfig.make("m", { ...text, rateLimit: 1, usage: () => ({ inputTokens: 1 }) })
  })

  test("a deduplication key is made of all parameters or of what the function takes", () => {
    ModelConfig.make("m", { ...text, rateLimit: 1, deduplicate: { key: "params", keep: "1 minute", count: 10 } })
    ModelConfig.make("m", {
      ...text,
      rateLimit: 1,
      deduplicate: {
        key: (params) => {
          expect(params).type.toBe<string>()
          return params.length > 0 ? params : undefined
        }
      }
    })
    // @ts-expect-error Type '"result"' is not assignable to type
    ModelConfig.make("m", { ...text, rateLimit: 1, deduplicate: { key: "result" } })
    // @ts-expect-error Type 'number' is not assignable to type
    ModelConfig.make("m", { ...text, rateLimit: 1, deduplicate: { key: (params: string) => params.length } })
    // @ts-expect-error 'age' does not exist in type
    ModelConfig.make("m", { ...text, rateLimit: 1, deduplicate: { age: 1 } })
  })

  test("every option can be given as undefined", () => {
    expect(ModelConfig.make("m", {
      ...text,
      rateLimit: 1,
      rateLimiterMode: undefined,
      timePeriod: undefined,
      usage: undefined,
      estimate: undefined,
      capacity: undefined,
      strategy: undefined,
      retention: { count: undefined, age: undefined },
      timeout: undefined,
      processingTimeout: undefined,
      priority: undefined,
      shutdown: { policy: undefined, deadline: undefined }
    })).type.toBe<ModelConfig.ModelConfig<string, string, never>>()
  })

  test("refuses schemas that need services", () => {
    // @ts-expect-error Type 'Vault' is not assignable to type 'never'
    ModelConfig.make("m", { params: Secret, result: Schema.String, rateLimit: 1 })
    // @ts-expect-error Type 'Vault' is not assignable to type 'never'
    ModelConfig.make("m", { params: Sealed, result: Schema.String, rateLimit: 1 })
    // @ts-expect-error Type 'Vault' is not assignable to type 'never'
    ModelConfig.make("m", { params: Schema.String, result: Secret, rateLimit: 1 })
    // @ts-expect-error Type 'Vault' is not assignable to type 'never'
    ModelConfig.make("m", { ...text, error: Secret, rateLimit: 1 })
    // @ts-expect-error Type 'Vault' is not assignable to type 'never'
    ModelConfig.make("m", { params: Schema.Struct({ inner: Secret }), result: Schema.String, rateLimit: 1 })
  })

  test("parameters and result have to be given", () => {
    // @ts-expect-error Property 'result' is missing
    ModelConfig.make("m", { params: Schema.String, rateLimit: 1 })
    // @ts-expect-error Property 'params' is missing
    ModelConfig.make("m", { result: Schema.String, rateLimit: 1 })
  })

  test("refuses unknown keys", () => {
    // @ts-expect-error 'requestsPerMinute' does not exist in type
    ModelConfig.make("m", { ...text, rateLimit: 1, requestsPerMinute: 10 })
    // @ts-expect-error 'retries' does not exist in type
    ModelConfig.make("m", { ...text, rateLimiters: "unlimited", retries: 3 })
    // @ts-expect-error 'maxAge' does not exist in type
    ModelConfig.make("m", { ...text, rateLimit: 1, retention: { maxAge: "1 hour" } })
  })
})

describe("ModelConfig.makeUntyped", () => {
  test("takes the types as they are said, and the error is never unless it is said", () => {
    expect(ModelConfig.makeUntyped<{ prompt: string }, number>("m", { rateLimit: 1 })).type.toBe<
      ModelConfig.ModelConfig<{ prompt: string }, number, never>
    >()
    expect(ModelConfig.makeUntyped<string, number, OpenAiError>("m", { rateLimiters: "unlimited" })).type.toBe<
      ModelConfig.ModelConfig<string, number, OpenAiError>
    >()
  })

  test("types its callbacks", () => {
    ModelConfig.makeUntyped<{ prompt: string }, { tokens: number }>("m", {
      rateLimit: 1,
      usage: (result) => {
        expect(result).type.toBe<{ tokens: number }>()
        return { inputTokens: result.tokens, outputTokens: 0 }
      },
      estimate: (params) => {
        expect(params).type.toBe<{ prompt: string }>()
        return {}
      }
    })
  })

  test("takes no schemas", () => {
    // @ts-expect-error 'params' does not exist in type
    ModelConfig.makeUntyped<string, string>("m", { params: Schema.String, rateLimit: 1 })
  })
})

describe("Limits", () => {
  test("the long form: a list of limits, or none by name", () => {
    expect<ModelConfig.Limits>().type.toBeAssignableFrom<{ rateLimiters: "unlimited" }>()
    expect<ModelConfig.Limits>().type.toBeAssignableFrom<{ rateLimiters: ReadonlyArray<RateLimiter.Config> }>()
    // @ts-expect-error Type '"none"' is not assignable to type
    ModelConfig.make("m", { ...text, rateLimiters: "none" })
    // @ts-expect-error Type 'number' is not assignable to type 'Config'
    ModelConfig.make("m", { ...text, rateLimiters: [10] })
  })

  test("the short form: one limit, of requests in a period or at one time", () => {
    ModelConfig.make("m", { ...text, rateLimit: 10 })
    ModelConfig.make("m", { ...text, rateLimit: 10, timePeriod: "10 seconds" })
    ModelConfig.make("m", { ...text, rateLimit: 10, rateLimiterMode: "requests_per_period", timePeriod: 500 })
    ModelConfig.make("m", { ...text, rateLimit: 10, rateLimiterMode: "concurrent_requests" })
    // @ts-expect-error Type '"concurrent"' is not assignable to type
    ModelConfig.make("m", { ...text, rateLimit: 10, rateLimiterMode: "concurrent" })
    // @ts-expect-error Type '"a while"' is not assignable to type
    ModelConfig.make("m", { ...text, rateLimit: 10, timePeriod: "a while" })
    // @ts-expect-error Type 'string' is not assignable to type 'number'
    ModelConfig.make("m", { ...text, rateLimit: "10" })
  })

  test("a limit on concurrency has no period", () => {
    const concurrent = { ...text, rateLimit: 10, rateLimiterMode: "concurrent_requests" } as const
    ModelConfig.make("m", concurrent)
    // @ts-expect-error Type '"concurrent_requests"' is not assignable to type
    ModelConfig.make("m", { ...concurrent, timePeriod: "1 minute" })
  })

  test("the two forms cannot be mixed", () => {
    // @ts-expect-error Type 'Config[]' is not assignable to type 'undefined'
    ModelConfig.make("m", { ...text, rateLimit: 10, rateLimiters: [RateLimiter.rpm(10)] })
    // @ts-expect-error Type 'Config[]' is not assignable to type 'undefined'
    ModelConfig.make("m", { ...text, timePeriod: "1 minute", rateLimiters: [RateLimiter.rpm(10)] })
    // @ts-expect-error Type 'string' is not assignable to type
    ModelConfig.make("m", { ...text, rateLimiterMode: "concurrent_requests", rateLimiters: "unlimited" })
  })

  test("leaving the limits out does not compile", () => {
    // @ts-expect-error Property 'rateLimiters' is missing
    ModelConfig.make("m", { ...text })
    // @ts-expect-error Property 'rateLimit' is missing
    ModelConfig.make("m", { ...text, timePeriod: "1 minute" })
    // @ts-expect-error Argument of type '{}' is not assignable to parameter of type
    ModelConfig.makeUntyped<string, string>("m", {})
  })
})

describe("ModelConfig.ModelConfig", () => {
  type Model<P, A, E> = ModelConfig.ModelConfig<P, A, E>

  test("is invariant in its three types", () => {
    expect<Model<"a", "a", "a">>().type.not.toBeAssignableTo<Model<string, "a", "a">>()
    expect<Model<string, "a", "a">>().type.not.toBeAssignableTo<Model<"a", "a", "a">>()
    expect<Model<"a", "a", "a">>().type.not.toBeAssignableTo<Model<"a", string, "a">>()
    expect<Model<"a", string, "a">>().type.not.toBeAssignableTo<Model<"a", "a", "a">>()
    expect<Model<"a", "a", "a">>().type.not.toBeAssignableTo<Model<"a", "a", string>>()
    expect<Model<"a", "a", string>>().type.not.toBeAssignableTo<Model<"a", "a", "a">>()
    expect<Model<string, string, never>>().type.not.toBeAssignableTo<Model<string, string, OpenAiError>>()
  })

  test("each is assignable to the type of any model", () => {
    expect<Model<string, number, OpenAiError>>().type.toBeAssignableTo<ModelConfig.Any>()
  })

  test("a value with the right fields is not a model", () => {
    expect<Model<string, string, never>>().type.not.toBeAssignableFrom<ModelConfig.Any>()
  })
})

test("ModelConfig.Usage is a schema of token counts", () => {
  expect<ModelConfig.Usage>().type.toBe<
    {
      readonly inputTokens: number
      readonly outputTokens: number
      readonly cachedInputTokens?: number | undefined
    }
  >()
})
