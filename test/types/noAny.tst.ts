import type { Effect, Layer, Schema, Stream } from "effect"
import {
  type ModelConfig,
  ModelQueue,
  type ProviderProfile,
  type QueueError,
  type QueueManager,
  type QueueRequest,
  type QueueResponse,
  type RateLimiter,
  type TokenEstimator
} from "effect-llm-queue"
import { describe, expect, test } from "tstyche"

type IsAny<T> = 0 extends 1 & T ? true : false

/** "any" when the type is one, or has one in its channels, its parameters or its result. */
type Leak<T> = IsAny<T> extends true ? "any"
  : T extends Effect.Effect<infer A, infer E, infer R> ? AnyOf<A> | AnyOf<E> | AnyOf<R> | AnyField<A>
  : T extends Layer.Layer<infer A, infer E, infer R> ? AnyOf<A> | AnyOf<E> | AnyOf<R>
  : T extends Stream.Stream<infer A, infer E, infer R> ? AnyOf<A> | AnyOf<E> | AnyOf<R> | AnyField<A>
  : T extends (...args: infer Args) => infer Result ? AnyOf<Args[number]> | AnyField<Args> | Leak<Result>
  : AnyField<T>

type AnyOf<T> = IsAny<T> extends true ? "any" : never

type AnyField<T> = T extends object ? { [K in keyof T]-?: AnyOf<T[K]> }[keyof T] : never

/** The names of what leaks. */
type Leaks<T> = { [K in keyof T]: [Extract<Leak<T[K]>, "any">] extends [never] ? never : K }[keyof T]

declare const manager: QueueManager.QueueManager["Service"]
declare const model: ModelConfig.ModelConfig<string, number, Error>

test("the search for any finds one wherever it is", () => {
  // oxlint-disable typescript/no-explicit-any -- what is searched for
  type Leaky = {
    readonly value: any
    readonly success: Effect.Effect<any>
    readonly error: Effect.Effect<string, any>
    readonly services: Effect.Effect<string, never, any>
    readonly field: Effect.Effect<{ readonly inner: any }>
    readonly parameter: (_: any) => void
    readonly result: () => Effect.Effect<any>
    readonly layer: Layer.Layer<never, any>
    readonly clean: (_: string) => Effect.Effect<string, Error>
  }
  // oxlint-enable typescript/no-explicit-any
  expect<Leaks<Leaky>>().type.toBe<Exclude<keyof Leaky, "clean">>()
})

describe("no any is in", () => {
  test("the manager's methods", () => {
    expect<Leaks<QueueManager.QueueManager["Service"]>>().type.toBe<never>()
  })

  test("a queue without a manager, and a model as a service", () => {
    expect<Leaks<ModelQueue.ModelQueue<string, number, Error>>>().type.toBe<never>()
    class Service extends ModelQueue.Service<Service>()("service", {
      params: null as unknown as Schema.Codec<string>,
      result: null as unknown as Schema.Codec<string>,
      rateLimit: 1
    }) {}
    expect<Leaks<Pick<typeof Service, "layer" | "submit" | "modelId" | "definition" | "key">>>().type.toBe<never>()
  })

  test("the functions of every module", () => {
    expect<Leaks<typeof QueueManager>>().type.toBe<never>()
    expect<Leaks<typeof QueueError>>().type.toBe<never>()
    expect<Leaks<typeof QueueRequest>>().type.toBe<never>()
    expect<Leaks<typeof RateLimiter>>().type.toBe<never>()
    expect<Leaks<typeof QueueResponse>>().type.toBe<never>()
    expect<Leaks<typeof ProviderProfile>>().type.toBe<never>()
    expect<Leaks<typeof TokenEstimator>>().type.toBe<never>()
  })

  test("what is read of a queue, a request, a limit and an error", () => {
    expect<AnyField<QueueManager.QueueInfo>>().type.toBe<never>()
    expect<AnyField<QueueResponse.QueueResponse<string, Error>>>().type.toBe<never>()
    expect<AnyField<QueueRequest.QueueRequest<string, number, Error>>>().type.toBe<never>()
    expect<AnyField<QueueRequest.RequestOptions>>().type.toBe<never>()
    expect<AnyField<ModelConfig.Any>>().type.toBe<never>()
    expect<AnyField<ModelConfig.Definition>>().type.toBe<never>()
    expect<AnyField<RateLimiter.Usage>>().type.toBe<never>()
    expect<AnyField<RateLimiter.Config>>().type.toBe<never>()
    expect<AnyField<RateLimiter.Refusal>>().type.toBe<never>()
    expect<AnyField<ProviderProfile.ProviderProfile>>().type.toBe<never>()
    expect<AnyField<QueueManager.ProviderInfo>>().type.toBe<never>()
    expect<AnyField<QueueError.QueueError>>().type.toBe<never>()
  })

  test("what a call gives", () => {
    expect<Leak<ReturnType<typeof manager.submit<string, number, Error>>>>().type.toBe<never>()
    expect<Leak<ReturnType<typeof manager.submitRequest<string, number, Error, true>>>>().type.toBe<never>()
    expect<Leak<ReturnType<typeof manager.submitRequest<string, number, Error, false>>>>().type.toBe<never>()
    expect<Leak<ReturnType<typeof manager.submitRequest<string, number, Error, boolean>>>>().type.toBe<never>()
    expect<Leak<typeof model>>().type.toBe<never>()
  })

  test("the error channel: what can go wrong has a name", () => {
    expect<QueueError.QueueError["_tag"]>().type.not.toBeAssignableFrom<string>()
    expect<QueueError.AcceptError>().type.toBeAssignableTo<QueueError.SubmitError>()
    expect<QueueError.SubmitError>().type.not.toBeAssignableFrom<Error>()
  })
})
