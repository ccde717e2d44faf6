import type { Duration, Effect, Scope } from "effect"
import { type QueueError, RateLimiter } from "effect-llm-queue"
import { expect, test } from "tstyche"

test("the plain constructors give a limit as data", () => {
  expect(RateLimiter.rpm(1)).type.toBe<RateLimiter.Config>()
  expect(RateLimiter.rpd(1)).type.toBe<RateLimiter.Config>()
  expect(RateLimiter.tpm(1)).type.toBe<RateLimiter.Config>()
  expect(RateLimiter.tpd(1)).type.toBe<RateLimiter.Config>()
  expect(RateLimiter.itpm(1)).type.toBe<RateLimiter.Config>()
  expect(RateLimiter.otpm(1)).type.toBe<RateLimiter.Config>()
  expect(RateLimiter.concurrent(1)).type.toBe<RateLimiter.Config>()
})

test("make takes a type, a limit, and optionally a period and a margin", () => {
  expect(RateLimiter.make({ type: "tpm", limit: 1, timePeriod: undefined, margin: undefined })).type.toBe<
    RateLimiter.Config
  >()
  expect(RateLimiter.make).type.toBeCallableWith({ type: "rpm", limit: 30, timePeriod: "10 seconds", margin: 250 })
  expect(RateLimiter.make).type.not.toBeCallableWith({ type: "rpm" })
  expect(RateLimiter.make).type.not.toBeCallableWith({ limit: 1 })
  expect(RateLimiter.make).type.not.toBeCallableWith({ type: "rph", limit: 1 })
  expect(RateLimiter.make).type.not.toBeCallableWith({ type: "rpm", limit: "1" })
  expect(RateLimiter.make).type.not.toBeCallableWith({ type: "rpm", limit: 1, window: "1 second" })
})

test("types and modes are closed sets of names", () => {
  expect<RateLimiter.Type>().type.toBe<"rpm" | "rpd" | "tpm" | "tpd" | "itpm" | "otpm" | "concurrent" | "budget">()
  expect<RateLimiter.Mode>().type.toBe<"requests_per_period" | "concurrent_requests">()
})

test("a budget needs prices, and takes no options of a provider's limit", () => {
  const price = { input: 1, output: 2 }
  expect(RateLimiter.budget(1, { price })).type.toBe<RateLimiter.Config>()
  expect(RateLimiter.budget).type.toBeCallableWith(0.5, {
    price: { ...price, cachedInput: undefined },
    timePeriod: "Infinity",
    algorithm: "fixedWindow",
    timeZone: "Europe/Berlin",
    onExceeded: "wait"
  })
  expect(RateLimiter.budget).type.not.toBeCallableWith(1)
  expect(RateLimiter.budget).type.not.toBeCallableWith(1, { price: { input: 1 } })
  expect(RateLimiter.budget).type.not.toBeCallableWith(1, { price, burst: 1 })
  expect(RateLimiter.budget).type.not.toBeCallableWith(1, { price, algorithm: "paced" })
  expect(RateLimiter.rpm).type.not.toBeCallableWith(1, { price })
})

test("a concurrency limit takes no period", () => {
  expect(RateLimiter.concurrent).type.not.toBeCallableWith(1, { timePeriod: "1 minute" })
})

test("the limiter service is made in a scope, and answers without failing", () => {
  type Service = typeof RateLimiter.RateLimiter["Service"]
  expect<ReturnType<Service["make"]>>().type.toBe<
    Effect.Effect<
      RateLimiter.Limiter,
      QueueError.InvalidConfiguration | QueueError.LimitConflict | QueueError.QueueUnavailable,
      Scope.Scope
    >
  >()
  expect<ReturnType<RateLimiter.Limiter["admit"]>>().type.toBe<Effect.Effect<RateLimiter.Admission>>()
  expect<ReturnType<RateLimiter.Limiter["settle"]>>().type.toBe<Effect.Effect<RateLimiter.Settlement>>()
  expect<RateLimiter.Limiter["usage"]>().type.toBe<Effect.Effect<ReadonlyArray<RateLimiter.Usage>>>()
  expect<RateLimiter.Usage["timeUntilNextCapacity"]>().type.toBe<Duration.Duration | undefined>()
})
