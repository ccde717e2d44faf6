import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Stream } from "effect"
import { TestClock } from "effect/testing"
import { crc32 } from "node:zlib"
import { ProviderSimulator } from "../../src/testing/index.ts"

type Provider = ProviderSimulator.ProviderSimulator["Service"]

const chatBody = { model: "m", messages: [{ role: "user", content: "Hello there" }], max_tokens: 10 }
const geminiBody = { contents: [{ parts: [{ text: "Hello there" }] }], generationConfig: { maxOutputTokens: 10 } }

const paths = {
  chat: "/v1/chat/completions",
  responses: "/v1/responses",
  messages: "/v1/messages",
  gemini: "/v1beta/models/m:generateContent",
  geminiStream: "/v1beta/models/m:streamGenerateContent?alt=sse",
  azure: "/openai/deployments/m/chat/completions?api-version=2024-10-21"
}

const post = (provider: Provider, path: string, body: object, headers: Record<string, string> = {}) =>
  Effect.scoped(Effect.gen(function*() {
    const response = yield* provider.handle({ method: "POST", path, headers, body: JSON.stringify(body) })
    const text = typeof response.body === "string" ? response.body : yield* Stream.mkString(response.body)
    return { status: response.status, headers: response.headers, text }
  }))

/** The same, with the body parsed. */
const ask = (provider: Provider, path: string, body: object, headers: Record<string, string> = {}) =>
  Effect.map(post(provider, path, body, headers), (response) => ({ ...response, json: JSON.parse(response.text) }))

/** Headers without those that only identify. */
const about = (headers: Readonly<Record<string, string>>, pattern: RegExp) =>
  Object.fromEntries(Object.entries(headers).filter(([name]) => pattern.test(name.toLowerCase())))

const limitHeaders = /ratelimit|tokenlimit|retry/

const minute = 60_000

const bucket = (dimension: ProviderSimulator.Dimension, limit: number, period = minute) =>
  ({ dimension, limit, period, algorithm: "bucket" }) as const

const make = (model: ProviderSimulator.Model, more: Omit<ProviderSimulator.Options, "models"> = {}) =>
  ProviderSimulator.make({ models: { m: model }, ...more })

const events = (text: string) =>
  text.split("\n\n").filter((event) => event !== "").map((event) => {
    const name = /^event: (.*)$/m.exec(event)?.[1]
    const data = /^data: (.*)$/m.exec(event)?.[1] ?? ""
    return { name, data: data.startsWith("{") ? JSON.parse(data) : data }
  })

/** The binary events of AWS, with their checksums verified. */
const frames = (text: string) => {
  const bytes = Buffer.from(text, "latin1")
  const found: Array<{ readonly headers: Record<string, string>; readonly payload: ReturnType<typeof JSON.parse> }> = []
  for (let start = 0; start < bytes.length;) {
    const frame = bytes.subarray(start, start + bytes.readUInt32BE(start))
    assert.strictEqual(frame.readUInt32BE(8), crc32(frame.subarray(0, 8)))
    assert.strictEqual(frame.readUInt32BE(frame.length - 4), crc32(frame.subarray(0, -4)))
    const end = 12 + frame.readUInt32BE(4)
    const headers: Record<string, string> = {}
    for (let at = 12; at < end;) {
      const name = frame.toString("utf8", at + 1, at += 1 + frame.readUInt8(at))
      assert.strictEqual(frame.readUInt8(at), 7)
      headers[name] = frame.toString("utf8", at + 3, at += 3 + frame.readUInt16BE(at + 1))
    }
    found.push({ headers, payload: JSON.parse(frame.toString("utf8", end, frame.length - 4)) })
    start += frame.length
  }
  return found
}

describe("dialects", () => {
  it.effect("openai: six headers on every answer, a bucket's numbers in the refusal", () =>
    Effect.gen(function*() {
      yield* TestClock.adjust("90 seconds")
      const provider = yield* make({ limits: [bucket("requests", 500), bucket("tokens", 100)] })
      const body = { ...chatBody, max_tokens: 74 }
      const first = yield* ask(provider, paths.chat, body, { "x-sim-output-tokens": "74" })
      assert.deepStrictEqual(first.headers, {
        "content-type": "application/json",
        "x-request-id": first.headers["x-request-id"] ?? "",
        "openai-organization": "org-simulator",
        "openai-processing-ms": "0",
        "openai-version": "2020-10-01",
        "x-ratelimit-limit-requests": "500",
        "x-ratelimit-remaining-requests": "499",
        "x-ratelimit-reset-requests": "120ms",
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "20",
        "x-ratelimit-reset-tokens": "48s",
        date: "Thu, 01 Jan 1970 00:01:30 GMT"
      })
      assert.match(first.headers["x-request-id"] ?? "", /^req_[0-9a-f]{32}$/)
      yield* TestClock.adjust("3 seconds")
      const refused = yield* ask(provider, paths.chat, body)
      assert.strictEqual(refused.status, 429)
      // (75 + 80 - 100) * 60 / 100 seconds
      assert.deepStrictEqual(refused.json, {
        error: {
          message:
            "Rate limit reached for m in organization org-simulator on tokens per min (TPM): Limit 100, Used 75, "
            + "Requested 80. Please try again in 33s. "
            + "Visit https://platform.openai.com/account/rate-limits to learn more.",
          type: "tokens",
          param: null,
          code: "rate_limit_exceeded"
        }
      })
      assert.deepInclude(refused.headers, {
        "retry-after": "33",
        "retry-after-ms": "33000",
        "x-ratelimit-remaining-requests": "500",
        "x-ratelimit-remaining-tokens": "25",
        "x-ratelimit-reset-tokens": "45s"
      })
    }))

  it.effect("openai: headers about requests may describe the day, be dropped, be stale, and be of another clock", () =>
    Effect.gen(function*() {
      const limits = [bucket("requests", 500), bucket("requests", 10_000, 86_400_000)]
      const day = yield* make({
        limits,
        requestsHeader: "rpd",
        dropHeaders: ["x-ratelimit-limit-*"],
        headerSkewMs: 5000
      })
      const first = yield* ask(day, paths.chat, chatBody)
      assert.deepStrictEqual(about(first.headers, limitHeaders), {
        "x-ratelimit-remaining-requests": "9999",
        "x-ratelimit-reset-requests": "8.64s"
      })
      assert.strictEqual(first.headers["date"], "Thu, 01 Jan 1970 00:00:05 GMT")

      const stale = yield* make({ limits: [{ dimension: "requests", limit: 100 }], staleHeaders: "5 seconds" })
      const seen: Array<string | undefined> = []
      for (let i = 0; i < 4; i++) {
        seen.push((yield* ask(stale, paths.chat, chatBody)).headers["x-ratelimit-remaining-requests"])
        yield* TestClock.adjust("2 seconds")
      }
      assert.deepStrictEqual(seen, ["99", "99", "99", "96"])
    }))

  it.effect("anthropic: four groups of headers, tokens rounded to thousands, times of full replenishment", () =>
    Effect.gen(function*() {
      yield* TestClock.adjust("10 minutes")
      const provider = yield* make({
        charge: "anthropic",
        limits: [bucket("requests", 50), bucket("input", 50_000), bucket("output", 8000)]
      })
      const body = { ...chatBody, messages: [{ role: "user", content: "x".repeat(4 * (5597)) }] }
      const first = yield* ask(provider, paths.messages, body, { "x-sim-output-tokens": "10" })
      assert.deepStrictEqual(about(first.headers, limitHeaders), {
        "anthropic-ratelimit-requests-limit": "50",
        "anthropic-ratelimit-requests-remaining": "49",
        "anthropic-ratelimit-requests-reset": "1970-01-01T00:10:02Z",
        "anthropic-ratelimit-tokens-limit": "50000",
        "anthropic-ratelimit-tokens-remaining": "44000",
        "anthropic-ratelimit-tokens-reset": "1970-01-01T00:10:07Z",
        "anthropic-ratelimit-input-tokens-limit": "50000",
        "anthropic-ratelimit-input-tokens-remaining": "44000",
        "anthropic-ratelimit-input-tokens-reset": "1970-01-01T00:10:07Z",
        "anthropic-ratelimit-output-tokens-limit": "8000",
        "anthropic-ratelimit-output-tokens-remaining": "8000",
        "anthropic-ratelimit-output-tokens-reset": "1970-01-01T00:10:00Z"
      })
      assert.deepInclude(first.json, { type: "message", role: "assistant", model: "m", stop_reason: "max_tokens" })
      assert.deepStrictEqual(first.json.usage, {
        input_tokens: 5600,
        cache_creation_input_tokens: 0,
        cache_read_input_tokens: 0,
        output_tokens: 10
      })
      const refused = yield* ask(provider, paths.messages, {
        ...body,
        messages: [{ role: "user", content: "x".repeat(4 * 49_997) }]
      })
      assert.strictEqual(refused.status, 429)
      assert.deepInclude(refused.headers, { "retry-after": "7", "x-should-retry": "true" })
      assert.notProperty(refused.headers, "retry-after-ms")
      assert.deepStrictEqual(refused.json, {
        type: "error",
        error: {
          type: "rate_limit_error",
          message: "This request would exceed the rate limit for your organization "
            + "(00000000-0000-4000-8000-000000000000) of 50,000 input tokens per minute. "
            + "Reduce the prompt length or the maximum tokens requested, or try again later."
        },
        request_id: refused.headers["request-id"]
      })
    }))

  it.effect("anthropic: a prompt that was seen before is read from the cache and not counted", () =>
    Effect.gen(function*() {
      const provider = yield* make({
        charge: "anthropic",
        cacheReadCounts: false,
        cachedShare: 0.5,
        limits: [{ dimension: "input", limit: 50_000 }]
      })
      const usages: Array<unknown> = []
      for (let i = 0; i < 3; i++) {
        const { json } = yield* ask(provider, paths.messages, chatBody, { "x-sim-output-tokens": "1" })
        usages.push([
          json.usage.input_tokens,
          json.usage.cache_creation_input_tokens,
          json.usage.cache_read_input_tokens
        ])
        yield* TestClock.adjust(i === 1 ? "301 seconds" : "1 second")
      }
      assert.deepStrictEqual(usages, [[3, 3, 0], [3, 0, 3], [3, 3, 0]])
      assert.deepStrictEqual((yield* provider.arrivals).map(({ net }) => net.input), [6, 3, 6])
    }))

  it.effect("anthropic: a stream of its events, at its pace", () =>
    Effect.gen(function*() {
      const provider = yield* make({ limits: [], serviceTime: { ttft: 1000, perOutputToken: 100 } })
      const fiber = yield* Effect.forkChild(
        post(provider, paths.messages, { ...chatBody, stream: true }, { "x-sim-output-tokens": "3" })
      )
      yield* TestClock.adjust("2 seconds")
      const { headers, text } = yield* Fiber.join(fiber)
      assert.strictEqual(headers["content-type"], "text/event-stream")
      const all = events(text)
      assert.deepStrictEqual(all.map(({ name }) => name), [
        "message_start",
        "content_block_start",
        "ping",
        "content_block_delta",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop"
      ])
      assert.isTrue(all.every(({ data, name }) => data.type === name))
      assert.deepInclude(all[0]?.data.message.usage, { input_tokens: 6, output_tokens: 1 })
      assert.deepStrictEqual(all[7]?.data, {
        type: "message_delta",
        delta: { stop_reason: "end_turn", stop_sequence: null },
        usage: { output_tokens: 3 }
      })
      assert.strictEqual((yield* provider.arrivals)[0]?.completedAt, 1300)
    }))

  it.effect("gemini: no headers; the quota and a delay in the body, a meaningless one for a day", () =>
    Effect.gen(function*() {
      const provider = yield* make({
        charge: "input",
        limits: [
          { dimension: "requests", limit: 1, algorithm: "fixed" },
          { dimension: "requests", limit: 2, algorithm: "fixed", timeZone: "America/Los_Angeles" }
        ]
      })
      const first = yield* ask(provider, paths.gemini, geminiBody, { "x-sim-output-tokens": "3" })
      assert.deepStrictEqual(about(first.headers, limitHeaders), {})
      assert.deepStrictEqual(first.json.usageMetadata, {
        promptTokenCount: 6,
        candidatesTokenCount: 3,
        totalTokenCount: 9
      })
      assert.strictEqual(first.json.candidates[0].finishReason, "STOP")
      yield* TestClock.adjust(41_813.515457)
      const refused = yield* ask(provider, paths.gemini, geminiBody)
      assert.strictEqual(refused.status, 429)
      assert.deepStrictEqual(about(refused.headers, limitHeaders), {})
      assert.deepStrictEqual(refused.json.error, {
        code: 429,
        message: "You exceeded your current quota, please check your plan and billing details.\n"
          + "* Quota exceeded for metric: generativelanguage.googleapis.com/generate_content_free_tier_requests, "
          + "limit: 1, model: m\nPlease retry in 18.186484543s.",
        status: "RESOURCE_EXHAUSTED",
        details: [
          {
            "@type": "type.googleapis.com/google.rpc.QuotaFailure",
            violations: [{
              quotaMetric: "generativelanguage.googleapis.com/generate_content_free_tier_requests",
              quotaId: "GenerateRequestsPerMinutePerProjectPerModel-FreeTier",
              quotaDimensions: { location: "global", model: "m" },
              quotaValue: "1"
            }]
          },
          { "@type": "type.googleapis.com/google.rpc.RetryInfo", retryDelay: "18s" }
        ]
      })
      yield* TestClock.adjust("1 minute")
      yield* ask(provider, paths.gemini, geminiBody)
      yield* TestClock.adjust("1 minute")
      const ofDay = yield* ask(provider, paths.gemini, geminiBody)
      const [failure, retry] = ofDay.json.error.details
      assert.strictEqual(failure.violations[0].quotaId, "GenerateRequestsPerDayPerProjectPerModel-FreeTier")
      assert.isBelow(Number.parseInt(retry.retryDelay, 10), 61)
      assert.isAbove((yield* provider.arrivals).at(-1)?.retryAfter ?? 0, 7 * 3_600_000)
      assert.strictEqual((yield* provider.arrivals).at(-1)?.reason, "requests")
    }))

  it.effect("gemini: a stream of parts, the last with the finish reason and the usage", () =>
    Effect.gen(function*() {
      const provider = yield* make({ limits: [] })
      const { text } = yield* post(provider, paths.geminiStream, geminiBody, { "x-sim-output-tokens": "3" })
      const all = events(text).map(({ data }) => data)
      assert.strictEqual(all.length, 4)
      assert.deepStrictEqual(all.map((part) => part.candidates[0].finishReason), [
        undefined,
        undefined,
        undefined,
        "STOP"
      ])
      assert.strictEqual(all.at(-1).usageMetadata.totalTokenCount, 9)
      const whole = yield* ask(provider, paths.gemini, geminiBody, { "x-sim-output-tokens": "3" })
      assert.strictEqual(
        all.map((part) => part.candidates[0].content.parts[0].text).join(""),
        whole.json.candidates[0].content.parts[0].text
      )
    }))

  it.effect("azure: the deployment in the path, whole seconds, the limit of one quantum, negative remaining", () =>
    Effect.gen(function*() {
      const provider = yield* make({
        outputWeight: 20,
        limits: [
          { dimension: "requests", limit: 120, quantum: "10 seconds" },
          { dimension: "tokens", limit: 100 }
        ]
      })
      const { model: _, ...body } = chatBody
      const first = yield* ask(provider, paths.azure, body, { "x-sim-output-tokens": "10" })
      assert.deepStrictEqual(about(first.headers, limitHeaders), {
        "x-ratelimit-limit-requests": "20",
        "x-ratelimit-remaining-requests": "19",
        "x-ratelimit-reset-requests": "60",
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "84",
        "x-ratelimit-reset-tokens": "60"
      })
      yield* TestClock.adjust(500)
      const refused = yield* ask(provider, paths.azure, body)
      assert.strictEqual(refused.status, 429)
      assert.deepInclude(refused.headers, {
        "x-ratelimit-remaining-tokens": "-106",
        "retry-after": "60",
        "retry-after-ms": "59500"
      })
      assert.deepStrictEqual(refused.json, {
        error: {
          code: "429",
          message: "Requests to this deployment have been limited. Rate limit is exceeded on tokens. "
            + "Please retry after 60 seconds."
        }
      })
    }))

  it.effect("azure: a refusal of a stream may come inside a 200, with retry-after", () =>
    Effect.gen(function*() {
      const provider = yield* make({
        dialect: "azure",
        inBandRefusals: true,
        limits: [{ dimension: "requests", limit: 1 }]
      })
      const body = { model: "m", input: "Hello there", stream: true }
      yield* post(provider, "/openai/v1/responses", body)
      const refused = yield* post(provider, "/openai/v1/responses", body)
      assert.strictEqual(refused.status, 200)
      assert.deepInclude(refused.headers, { "content-type": "text/event-stream", "retry-after": "60" })
      const [event] = events(refused.text)
      assert.strictEqual(event?.name, "response.failed")
      assert.strictEqual(event?.data.response.error.code, "rate_limit_exceeded")
      // Without a stream it is a 429 as ever.
      assert.strictEqual((yield* post(provider, "/openai/v1/responses", { ...body, stream: false })).status, 429)
    }))

  it.effect("groq: requests headers of the day, tokens headers of the minute, 413 for what never fits", () =>
    Effect.gen(function*() {
      const provider = yield* make({
        dialect: "groq",
        limits: [
          bucket("requests", 2),
          bucket("requests", 1000, 86_400_000),
          bucket("tokens", 6000),
          bucket("tokens", 200_000, 86_400_000)
        ]
      })
      const first = yield* ask(provider, "/openai/v1/chat/completions", chatBody)
      assert.deepStrictEqual(about(first.headers, limitHeaders), {
        "x-ratelimit-limit-requests": "1000",
        "x-ratelimit-remaining-requests": "999",
        "x-ratelimit-reset-requests": "1m26.4s",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-tokens": "5984",
        "x-ratelimit-reset-tokens": "160ms"
      })
      yield* ask(provider, "/openai/v1/chat/completions", chatBody)
      const refused = yield* ask(provider, "/openai/v1/chat/completions", chatBody)
      assert.strictEqual(refused.headers["retry-after"], "30")
      assert.deepStrictEqual(refused.json, {
        error: {
          message: "Rate limit reached for model `m` in organization `org_simulator` service tier `on_demand` on "
            + "requests per minute (RPM): Limit 2, Used 2, Requested 1. Please try again in 30s.",
          type: "requests",
          code: "rate_limit_exceeded"
        }
      })
      const tooLarge = yield* ask(provider, "/openai/v1/chat/completions", { ...chatBody, max_tokens: 6000 })
      assert.strictEqual(tooLarge.status, 413)
      assert.deepInclude(tooLarge.json.error, { code: "rate_limit_exceeded", type: "tokens" })
      assert.notProperty(tooLarge.headers, "retry-after")
    }))

  it.effect("mistral: what is left after the answer, its cost, no reset, and a flat error without a hint", () =>
    Effect.gen(function*() {
      const provider = yield* make({
        dialect: "mistral",
        charge: "actual",
        limits: [{ dimension: "requests", limit: 2 }, { dimension: "tokens", limit: 100 }]
      })
      const first = yield* ask(provider, paths.chat, chatBody, { "x-sim-output-tokens": "7" })
      assert.deepStrictEqual(about(first.headers, limitHeaders), {
        "x-ratelimit-limit-req-minute": "2",
        "x-ratelimit-remaining-req-minute": "1",
        "x-ratelimit-limit-tokens-minute": "100",
        "x-ratelimit-remaining-tokens-minute": "87",
        "x-ratelimit-tokens-query-cost": "13"
      })
      yield* ask(provider, paths.chat, chatBody)
      const refused = yield* ask(provider, paths.chat, chatBody)
      assert.strictEqual(refused.status, 429)
      assert.deepStrictEqual(refused.json, {
        object: "error",
        message: "Rate limit exceeded",
        type: "rate_limited",
        param: null,
        code: "1300",
        raw_status_code: 429
      })
      assert.notProperty(refused.headers, "retry-after")
      assert.strictEqual(refused.headers["x-ratelimit-remaining-req-minute"], "0")
      assert.deepStrictEqual((yield* ask(provider, paths.chat, chatBody, { "x-sim-fault": "401" })).json, {
        detail: "Unauthorized"
      })
    }))

  it.effect("bedrock: throttling without a hint; tokens and requests are told apart", () =>
    Effect.gen(function*() {
      const provider = yield* make({ limits: [bucket("requests", 1), bucket("tokens", 100)] })
      const path = "/model/m/converse"
      const body = (maxTokens: number) => ({
        messages: [{ role: "user", content: [{ text: "Hello there" }] }],
        inferenceConfig: { maxTokens }
      })
      const first = yield* ask(provider, path, body(20), { "x-sim-output-tokens": "20" })
      assert.deepStrictEqual(first.json.usage, { inputTokens: 6, outputTokens: 20, totalTokens: 26 })
      assert.strictEqual(first.json.stopReason, "max_tokens")
      const requests = yield* ask(provider, path, body(20))
      assert.strictEqual(requests.status, 429)
      assert.strictEqual(requests.headers["x-amzn-errortype"], "ThrottlingException")
      assert.deepStrictEqual(about(requests.headers, limitHeaders), {})
      assert.deepStrictEqual(requests.json, { message: "Too many requests, please wait before trying again." })
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual((yield* ask(provider, path, body(200))).json, {
        message: "Too many tokens, please wait before trying again."
      })
    }))

  it.effect("deepseek: concurrency only, no headers, its own words", () =>
    Effect.gen(function*() {
      const provider = yield* make({
        dialect: "deepseek",
        limits: [{ dimension: "concurrent", limit: 1 }],
        serviceTime: { base: 1000 }
      })
      const fiber = yield* Effect.forkChild(ask(provider, paths.chat, chatBody))
      yield* TestClock.adjust(500)
      const refused = yield* ask(provider, paths.chat, chatBody)
      assert.strictEqual(refused.status, 429)
      assert.deepStrictEqual(about(refused.headers, limitHeaders), {})
      assert.strictEqual(refused.json.error.message, "Rate limit reached")
      yield* TestClock.adjust(500)
      assert.strictEqual((yield* Fiber.join(fiber)).status, 200)
      const balance = yield* ask(provider, paths.chat, chatBody, { "x-sim-fault": "402" })
      assert.deepStrictEqual([balance.status, balance.json.error.message], [402, "Insufficient Balance"])
      const auth = yield* post(provider, paths.chat, chatBody, { "x-sim-fault": "401" })
      assert.deepStrictEqual([auth.status, auth.headers["content-type"]], [401, "text/plain"])
    }))

  it.effect("openrouter: headers only on its own refusals; a 402 says whether it is for good", () =>
    Effect.gen(function*() {
      const provider = yield* make({ dialect: "openrouter", limits: [bucket("requests", 20)] })
      const path = "/api/v1/chat/completions"
      for (let i = 0; i < 20; i++) {
        assert.deepStrictEqual(about((yield* ask(provider, path, chatBody)).headers, limitHeaders), {})
      }
      const refused = yield* ask(provider, path, chatBody)
      assert.deepStrictEqual(about(refused.headers, limitHeaders), {
        "X-RateLimit-Limit": "20",
        "X-RateLimit-Remaining": "0",
        "X-RateLimit-Reset": "3000"
      })
      assert.deepStrictEqual(refused.json, {
        error: { code: 429, message: "Rate limit exceeded", metadata: { error_type: "rate_limit_exceeded" } }
      })
      const budget = yield* ask(provider, path, chatBody, { "x-sim-fault": "in_flight_budget_exhausted" })
      assert.strictEqual(budget.status, 402)
      assert.strictEqual(budget.json.error.metadata.reason, "in_flight_budget_exhausted")
    }))

  it.effect("together: limits a second, and dynamic refusals", () =>
    Effect.gen(function*() {
      const provider = yield* make({
        dialect: "together",
        limits: [{ dimension: "requests", limit: 60, algorithm: "dynamic" }, { dimension: "tokens", limit: 60_000 }]
      })
      const first = yield* ask(provider, paths.chat, chatBody)
      assert.deepStrictEqual(about(first.headers, limitHeaders), {
        "x-ratelimit-limit": "1",
        "x-ratelimit-remaining": "0",
        "x-ratelimit-reset": "1",
        "x-ratelimit-limit-dynamic": "1",
        "x-tokenlimit-limit": "1000",
        "x-tokenlimit-remaining": "59984"
      })
      const refused = yield* ask(provider, paths.chat, chatBody)
      assert.strictEqual(refused.status, 429)
      assert.strictEqual(refused.json.error.type, "dynamic_request_limited")
    }))

  it.effect("openai: the tokens of the project have headers of their own", () =>
    Effect.gen(function*() {
      const provider = yield* make({
        limits: [{ ...bucket("tokens", 100), scope: "project" }, bucket("tokens", 1000)]
      })
      const { headers } = yield* ask(provider, paths.chat, chatBody)
      assert.deepStrictEqual(about(headers, limitHeaders), {
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "984",
        "x-ratelimit-reset-tokens": "960ms",
        "x-ratelimit-limit-project-tokens": "100",
        "x-ratelimit-remaining-project-tokens": "84",
        "x-ratelimit-reset-project-tokens": "9.6s"
      })
    }))

  it.effect("anthropic: limits of the Priority Tier and of fast mode have headers of their own", () =>
    Effect.gen(function*() {
      const provider = yield* make({
        charge: "anthropic",
        limits: [
          bucket("requests", 50),
          { ...bucket("input", 6000), pool: "priority" },
          bucket("input", 20_000),
          { ...bucket("output", 3000), pool: "priority" },
          { ...bucket("input", 12_000), pool: "fast" }
        ]
      })
      const body = { ...chatBody, messages: [{ role: "user", content: "x".repeat(4 * 4997) }] }
      const send = ask(provider, paths.messages, body, { "x-sim-output-tokens": "10" })
      const names = (headers: Readonly<Record<string, string>>) => about(headers, /anthropic-(?!org)/)
      assert.deepStrictEqual(names((yield* send).headers), {
        "anthropic-ratelimit-requests-limit": "50",
        "anthropic-ratelimit-requests-remaining": "49",
        "anthropic-ratelimit-requests-reset": "1970-01-01T00:00:02Z",
        "anthropic-ratelimit-tokens-limit": "20000",
        "anthropic-ratelimit-tokens-remaining": "15000",
        "anthropic-ratelimit-tokens-reset": "1970-01-01T00:00:15Z",
        "anthropic-ratelimit-input-tokens-limit": "20000",
        "anthropic-ratelimit-input-tokens-remaining": "15000",
        "anthropic-ratelimit-input-tokens-reset": "1970-01-01T00:00:15Z",
        "anthropic-priority-input-tokens-limit": "6000",
        "anthropic-priority-input-tokens-remaining": "1000",
        "anthropic-priority-input-tokens-reset": "1970-01-01T00:00:50Z",
        "anthropic-priority-output-tokens-limit": "3000",
        "anthropic-priority-output-tokens-remaining": "3000",
        "anthropic-priority-output-tokens-reset": "1970-01-01T00:00:00Z",
        "anthropic-fast-input-tokens-limit": "12000",
        "anthropic-fast-input-tokens-remaining": "7000",
        "anthropic-fast-input-tokens-reset": "1970-01-01T00:00:25Z"
      })
      // What does not fit the priority limits is served without them, its output too.
      const second = yield* send
      assert.strictEqual(second.status, 200)
      assert.deepInclude(second.headers, {
        "anthropic-ratelimit-input-tokens-remaining": "10000",
        "anthropic-priority-input-tokens-remaining": "1000",
        "anthropic-fast-input-tokens-remaining": "2000"
      })
      const output = (yield* provider.levels("m")).find(({ dimension }) => dimension === "output")
      assert.strictEqual(output?.remaining, 2990)
      // The fast ones refuse.
      assert.strictEqual((yield* send).status, 429)
      assert.deepStrictEqual((yield* provider.arrivals).at(-1)?.retryAfter, 15_000)
    }))

  it.effect("cohere: headers for trial keys only, and flat refusals without any", () =>
    Effect.gen(function*() {
      const path = "/compatibility/v1/chat/completions"
      const month = { dimension: "requests", limit: 1000, period: "30 days" } as const
      const trial = yield* make({
        dialect: "cohere",
        limits: [month, { dimension: "requests", limit: 2 }, { dimension: "tokens", limit: 100_000 }]
      })
      const first = yield* ask(trial, path, chatBody)
      assert.deepStrictEqual(first.headers, {
        "content-type": "application/json",
        "x-endpoint-monthly-call-limit": "1000",
        "x-trial-endpoint-call-limit": "2",
        "x-trial-endpoint-call-remaining": "1",
        date: "Thu, 01 Jan 1970 00:00:00 GMT"
      })
      yield* ask(trial, path, chatBody)
      const requests = yield* ask(trial, path, chatBody)
      assert.strictEqual(requests.status, 429)
      assert.deepStrictEqual(requests.headers, {
        "content-type": "application/json",
        date: "Thu, 01 Jan 1970 00:00:00 GMT"
      })
      assert.match(requests.json.id, /^[0-9a-f]{32}$/)
      assert.strictEqual(
        requests.json.message,
        "You are using a Trial key, which is limited to 2 API calls / minute."
      )
      yield* TestClock.adjust("1 minute")
      assert.strictEqual(
        (yield* ask(trial, path, { ...chatBody, max_tokens: 100_000 })).json.message,
        "trial token rate limit exceeded, limit is 100000 tokens per minute"
      )
      const production = yield* make({ dialect: "cohere", limits: [{ dimension: "requests", limit: 500 }] })
      assert.deepStrictEqual(about((yield* ask(production, path, chatBody)).headers, /limit/), {})
      const monthly = yield* make({ dialect: "cohere", limits: [{ ...month, limit: 1 }] })
      yield* ask(monthly, path, chatBody)
      assert.include((yield* ask(monthly, path, chatBody)).json.message, "1 API calls / month")
    }))

  it.effect("cerebras: headers by minute, hour and day, and flat refusals without any", () =>
    Effect.gen(function*() {
      const limits = [bucket("requests", 1), bucket("requests", 900, 3_600_000), bucket("tokens", 14_400, 86_400_000)]
      const provider = yield* make({ dialect: "cerebras", limits: [...limits, bucket("tokens", 999, 5000)] })
      const first = yield* ask(provider, paths.chat, chatBody)
      assert.deepStrictEqual(first.headers, {
        "content-type": "application/json",
        "x-ratelimit-limit-requests-minute": "1",
        "x-ratelimit-remaining-requests-minute": "0",
        "x-ratelimit-reset-requests-minute": "60",
        "x-ratelimit-limit-requests-hour": "900",
        "x-ratelimit-remaining-requests-hour": "899",
        "x-ratelimit-reset-requests-hour": "4",
        "x-ratelimit-limit-tokens-day": "14400",
        "x-ratelimit-remaining-tokens-day": "14384",
        "x-ratelimit-reset-tokens-day": "96",
        date: "Thu, 01 Jan 1970 00:00:00 GMT"
      })
      const requests = yield* ask(provider, paths.chat, chatBody)
      assert.strictEqual(requests.status, 429)
      assert.deepStrictEqual(requests.headers, {
        "content-type": "application/json",
        date: "Thu, 01 Jan 1970 00:00:00 GMT"
      })
      assert.deepStrictEqual(requests.json, {
        message: "Requests per minute limit exceeded - too many requests sent.",
        type: "too_many_requests_error",
        param: "quota",
        code: "request_quota_exceeded"
      })
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual((yield* ask(provider, paths.chat, { ...chatBody, max_tokens: 20_000 })).json, {
        message: "Tokens per 5s limit exceeded - too many tokens processed.",
        type: "too_many_tokens_error",
        param: "quota",
        code: "token_quota_exceeded"
      })
    }))

  it.effect("bedrock: a stream is made of binary events, and its exceptions come inside of it", () =>
    Effect.gen(function*() {
      const provider = yield* make({ limits: [{ dimension: "tokens", limit: 40 }], inBandRefusals: true })
      const body = {
        messages: [{ role: "user", content: [{ text: "Hello there" }] }],
        inferenceConfig: { maxTokens: 9 }
      }
      const send = (headers: Record<string, string> = {}) =>
        Effect.map(
          post(provider, "/model/m/converse-stream", body, { "x-sim-output-tokens": "2", ...headers }),
          ({ headers, status, text }) => ({ status, headers, frames: frames(text) })
        )
      const first = yield* send()
      assert.deepInclude(first.headers, { "content-type": "application/vnd.amazon.eventstream" })
      assert.match(first.headers["x-amzn-requestid"] ?? "", /^[0-9a-f]{8}-/)
      assert.deepStrictEqual(first.frames.map(({ headers }) => [headers[":message-type"], headers[":event-type"]]), [
        ["event", "messageStart"],
        ["event", "contentBlockDelta"],
        ["event", "contentBlockDelta"],
        ["event", "contentBlockStop"],
        ["event", "messageStop"],
        ["event", "metadata"]
      ])
      assert.deepStrictEqual(first.frames.at(-1)?.payload.usage, { inputTokens: 6, outputTokens: 2, totalTokens: 8 })
      const whole = yield* ask(provider, "/model/m/converse", body, { "x-sim-output-tokens": "2" })
      assert.strictEqual(
        first.frames.map(({ payload }) => payload.delta?.text ?? "").join(""),
        whole.json.output.message.content[0].text
      )
      const exceptionOf = Effect.fnUntraced(function*(headers?: Record<string, string>) {
        const { frames, status } = yield* send(headers)
        const last = frames.at(-1)
        assert.strictEqual(last?.headers[":message-type"], "exception")
        return [status, frames.length, last?.headers[":exception-type"], last?.payload.message]
      })
      yield* provider.restart
      const overloaded = [200, 3, "serviceUnavailableException", "Overloaded"]
      assert.deepStrictEqual(yield* exceptionOf({ "x-sim-fault": "stream_error_late" }), overloaded)
      assert.deepStrictEqual(yield* exceptionOf({ "x-sim-fault": "in_band_429" }), [
        200,
        1,
        "throttlingException",
        "Too many requests, please wait before trying again."
      ])
      yield* post(provider, "/model/m/converse", { ...body, inferenceConfig: { maxTokens: 25 } }, {
        "x-sim-output-tokens": "25"
      })
      assert.deepStrictEqual(yield* exceptionOf(), [
        200,
        1,
        "throttlingException",
        "Too many tokens, please wait before trying again."
      ])
    }))

  it.effect("every header of an answer and of a refusal is one that the provider has", () =>
    Effect.gen(function*() {
      const limits = [{ dimension: "requests", limit: 1 }, { dimension: "tokens", limit: 99 }] as const
      const openaiLimits = ["limit", "remaining", "reset"].flatMap((what) => [
        `x-ratelimit-${what}-requests`,
        `x-ratelimit-${what}-tokens`
      ])
      const openai = [
        "x-request-id",
        "openai-organization",
        "openai-processing-ms",
        "openai-version",
        ...openaiLimits
      ]
      const azure = ["apim-request-id", "x-ms-region", "x-request-id", ...openaiLimits]
      // Its requests headers are of the day, and there is no such limit.
      const groq = ["x-groq-region", "x-request-id", ...openaiLimits.filter((name) => name.endsWith("-tokens"))]
      const anthropic = [
        "request-id",
        "anthropic-organization-id",
        ...["limit", "remaining", "reset"].flatMap((what) => [
          `anthropic-ratelimit-requests-${what}`,
          `anthropic-ratelimit-tokens-${what}`
        ])
      ]
      const mistral = [
        "x-ratelimit-limit-req-minute",
        "x-ratelimit-remaining-req-minute",
        "x-ratelimit-limit-tokens-minute",
        "x-ratelimit-remaining-tokens-minute",
        "x-ratelimit-tokens-query-cost"
      ]
      const together = [
        "x-ratelimit-limit",
        "x-ratelimit-remaining",
        "x-ratelimit-reset",
        "x-tokenlimit-limit",
        "x-tokenlimit-remaining"
      ]
      const cerebras = ["limit", "remaining", "reset"].flatMap((what) => [
        `x-ratelimit-${what}-requests-minute`,
        `x-ratelimit-${what}-tokens-minute`
      ])
      const expected: Record<
        ProviderSimulator.DialectName,
        readonly [answer: ReadonlyArray<string>, refusal: ReadonlyArray<string>]
      > = {
        openai: [openai, [...openai, "retry-after", "retry-after-ms"]],
        azure: [azure, [...azure, "retry-after", "retry-after-ms"]],
        groq: [groq, [...groq, "retry-after"]],
        anthropic: [anthropic, [...anthropic, "retry-after", "x-should-retry"]],
        mistral: [mistral, mistral],
        together: [together, together],
        gemini: [[], []],
        deepseek: [[], []],
        bedrock: [["x-amzn-requestid"], ["x-amzn-requestid", "x-amzn-errortype"]],
        openrouter: [[], ["X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"]],
        cohere: [[], []],
        cerebras: [cerebras, []]
      }
      for (const [dialect, [answer, refusal]] of Object.entries(expected)) {
        const provider = yield* make({ dialect: dialect as ProviderSimulator.DialectName, limits })
        for (const [status, names] of [[200, answer], [429, refusal]] as const) {
          const response = yield* ask(provider, paths.chat, chatBody)
          assert.strictEqual(response.status, status)
          assert.sameMembers(Object.keys(response.headers), ["content-type", "date", ...names], `${dialect} ${status}`)
        }
      }
    }))

  it.effect("paths: unknown ones, models and bodies are refused in the words of their dialect, and never arrive", () =>
    Effect.gen(function*() {
      const provider = yield* make({ limits: [] })
      const status = (path: string, body: object) =>
        Effect.map(ask(provider, path, body), ({ json, status }) => [
          status,
          json.error?.type ?? json.error?.status ?? json.message
        ])
      assert.deepStrictEqual(yield* status("/v1/unknown", chatBody), [404, "invalid_request_error"])
      assert.deepStrictEqual(yield* status(paths.messages, { ...chatBody, model: "x" }), [404, "not_found_error"])
      assert.deepStrictEqual(yield* status(paths.messages, { model: "m" }), [400, "invalid_request_error"])
      assert.deepStrictEqual(yield* status(paths.gemini, {}), [400, "INVALID_ARGUMENT"])
      assert.deepStrictEqual(yield* status("/v1/responses", { model: "m" }), [400, "invalid_request_error"])
      assert.deepStrictEqual(yield* status("/v1/embeddings", { model: "m" }), [400, "invalid_request_error"])
      assert.deepStrictEqual(yield* provider.arrivals, [])
    }))
})

describe("service time", () => {
  it.effect("is drawn from its distribution, by the seed", () =>
    Effect.gen(function*() {
      const times = (seed: number) =>
        Effect.gen(function*() {
          const provider = yield* make(
            {
              limits: [],
              serviceTime: { ttft: { median: 400, sigma: 0.5 }, perOutputToken: { median: 10, sigma: 0.3 } }
            },
            { seed }
          )
          yield* Effect.forkChild(
            Effect.replicateEffect(post(provider, paths.chat, chatBody, { "x-sim-output-tokens": "10" }), 301)
          )
          yield* TestClock.adjust("1 hour")
          return (yield* provider.arrivals).map(({ at, completedAt }) => (completedAt ?? NaN) - at)
        })
      const first = yield* times(1)
      assert.closeTo(first.toSorted((a, b) => a - b)[150] ?? 0, 500, 60)
      assert.isAbove(new Set(first).size, 290)
      assert.deepStrictEqual(
        (yield* times(1)).map((time) => time.toFixed(3)),
        first.map((time) => time.toFixed(3))
      )
      assert.notDeepEqual(yield* times(2), first)
    }))

  it.effect("and the length of the answer may be set for a request", () =>
    Effect.gen(function*() {
      const provider = yield* make({ limits: [], outputTokens: 5, serviceTime: { base: "1 hour" } })
      const fiber = yield* Effect.forkChild(
        ask(provider, paths.chat, chatBody, { "X-Sim-Service-Ms": "70", "x-sim-output-tokens": "99" })
      )
      yield* TestClock.adjust(70)
      assert.strictEqual((yield* Fiber.join(fiber)).json.usage.completion_tokens, 10)
      const other = yield* Effect.forkChild(ask(provider, paths.chat, chatBody, { "x-sim-service-ms": "1" }))
      yield* TestClock.adjust(1)
      assert.strictEqual((yield* Fiber.join(other)).json.usage.completion_tokens, 5)
    }))
})

describe("faults", () => {
  const statusOf = (provider: Provider, kind: string) =>
    Effect.map(ask(provider, paths.chat, chatBody, { "x-sim-fault": kind }), ({ headers, json, status }) => {
      assert.notProperty(headers, "retry-after")
      return [status, json.error.type, json.error.code]
    })

  it.effect("refusals have the status, type and code of the provider, and no hint", () =>
    Effect.gen(function*() {
      const provider = yield* make({ limits: [{ dimension: "requests", limit: 1 }] })
      const expected = {
        "429": [429, "requests", "rate_limit_exceeded"],
        slow_down: [429, "rate_limit_error", "slow_down"],
        credit_balance_exhausted: [429, "insufficient_quota", "credit_balance_exhausted"],
        organization_spend_limit_exceeded: [429, "insufficient_quota", "organization_spend_limit_exceeded"],
        project_spend_limit_exceeded: [429, "insufficient_quota", "project_spend_limit_exceeded"],
        organization_usage_limit_exceeded: [429, "insufficient_quota", "organization_usage_limit_exceeded"],
        insufficient_quota: [429, "insufficient_quota", "insufficient_quota"],
        daily_quota: [429, "requests", "rate_limit_exceeded"],
        "400": [400, "invalid_request_error", null],
        "401": [401, "invalid_request_error", "invalid_api_key"],
        "402": [402, "billing_error", "billing_error"],
        "403": [403, "permission_error", "permission_denied"],
        "404": [404, "invalid_request_error", "model_not_found"],
        "413": [413, "invalid_request_error", "request_too_large"],
        "408": [408, "timeout_error", null],
        "409": [409, "conflict_error", null],
        "500": [500, "server_error", null],
        "503": [503, "service_unavailable_error", "server_is_overloaded"],
        "504": [504, "timeout_error", null]
      }
      for (const [kind, error] of Object.entries(expected)) {
        assert.deepStrictEqual(yield* statusOf(provider, kind), error)
      }
      const { models: [report] } = yield* provider.report()
      assert.deepInclude(report, { arrivals: 19, admitted: 0, refused: 19 })
      assert.deepStrictEqual(report?.refusedFor, Object.fromEntries(Object.keys(expected).map((kind) => [kind, 1])))
    }))

  it.effect("anthropic's are its own: overload, spend limits, acceleration", () =>
    Effect.gen(function*() {
      const provider = yield* make({ limits: [] })
      const errorOf = (kind: string) =>
        Effect.map(ask(provider, paths.messages, chatBody, { "x-sim-fault": kind }), ({ headers, json, status }) => [
          status,
          json.error.type,
          json.error.details?.error_code,
          headers["x-should-retry"]
        ])
      assert.deepStrictEqual(yield* errorOf("529"), [529, "overloaded_error", undefined, "true"])
      assert.deepStrictEqual(yield* errorOf("slow_down"), [429, "rate_limit_error", undefined, "true"])
      assert.deepStrictEqual(yield* errorOf("500"), [500, "api_error", undefined, undefined])
      assert.deepStrictEqual(yield* errorOf("504"), [504, "timeout_error", undefined, undefined])
      assert.deepStrictEqual(yield* errorOf("402"), [402, "billing_error", undefined, undefined])
      const others = {
        "400": "invalid_request_error",
        "401": "authentication_error",
        "403": "permission_error",
        "404": "not_found_error",
        "413": "request_too_large"
      }
      for (const [kind, type] of Object.entries(others)) {
        assert.deepStrictEqual(yield* errorOf(kind), [Number(kind), type, undefined, undefined])
      }
      assert.deepStrictEqual(yield* errorOf("enforced_spend_limit_reached"), [
        429,
        "rate_limit_error",
        "enforced_spend_limit_reached",
        undefined
      ])
      assert.deepStrictEqual(yield* errorOf("usage_limits_reached"), [
        400,
        "invalid_request_error",
        undefined,
        undefined
      ])
    }))

  it.effect("the quota of a day is refused for good, by Gemini with a delay that means nothing", () =>
    Effect.gen(function*() {
      const provider = yield* make({ limits: [] })
      const refused = yield* ask(provider, paths.gemini, geminiBody, {
        "x-sim-fault": "daily_quota",
        "x-sim-request-id": "a"
      })
      assert.strictEqual(refused.status, 429)
      const [failure, retry] = refused.json.error.details
      assert.strictEqual(failure.violations[0].quotaId, "GenerateRequestsPerDayPerProjectPerModel-FreeTier")
      assert.match(retry.retryDelay, /^\d\ds$/)
      yield* ask(provider, paths.gemini, geminiBody, { "x-sim-request-id": "a" })
      assert.deepInclude((yield* provider.report()).models[0], { attemptsAfterFinal: 1, attemptsTooEarly: 0 })
      const anthropic = yield* ask(provider, paths.messages, chatBody, { "x-sim-fault": "daily_quota" })
      assert.strictEqual(anthropic.json.error.details.error_code, "enforced_spend_limit_reached")
    }))

  it.effect("happen when the script says, the first that is due", () =>
    Effect.gen(function*() {
      const provider = yield* make({
        limits: [],
        faults: [
          { when: { nth: [2, 3] }, kind: "500" },
          { when: { every: 3 }, kind: "503", retryAfter: "0.5" },
          { when: { from: "10 seconds", to: "11 seconds" }, kind: "529", retryAfterDate: "1 minute" }
        ]
      })
      const seen: Array<unknown> = []
      for (let i = 0; i < 6; i++) {
        const { headers, status } = yield* post(provider, paths.chat, chatBody)
        seen.push([status, headers["retry-after"]])
      }
      yield* TestClock.adjust("10 seconds")
      const { headers, status } = yield* post(provider, paths.chat, chatBody)
      seen.push([status, headers["retry-after"]])
      yield* TestClock.adjust("1 second")
      seen.push([(yield* post(provider, paths.chat, chatBody)).status])
      assert.deepStrictEqual(seen, [
        [200, undefined],
        [500, undefined],
        [500, undefined],
        [200, undefined],
        [200, undefined],
        [503, "0.5"],
        [529, "Thu, 01 Jan 1970 00:01:10 GMT"],
        [200]
      ])
      yield* provider.setFaults("m", [{ when: { p: 0.3 }, kind: "500" }])
      const statuses = yield* Effect.replicateEffect(post(provider, paths.chat, chatBody), 400)
      assert.closeTo(statuses.filter(({ status }) => status === 500).length / 400, 0.3, 0.07)
    }))

  it.effect("a page of HTML, half of the JSON, and blank lines before it", () =>
    Effect.gen(function*() {
      const provider = yield* make({ limits: [], serviceTime: { base: 1000 } })
      const html = yield* post(provider, paths.chat, chatBody, { "x-sim-fault": "html_502" })
      assert.deepStrictEqual([html.status, html.headers["content-type"]], [502, "text/html"])
      assert.include(html.text, "<h1>502 Bad Gateway</h1>")
      const send = (kind: string) =>
        Effect.gen(function*() {
          const fiber = yield* Effect.forkChild(post(provider, paths.chat, chatBody, { "x-sim-fault": kind }))
          yield* TestClock.adjust(1000)
          return yield* Fiber.join(fiber)
        })
      const half = yield* send("truncated")
      assert.strictEqual(half.status, 200)
      assert.throws(() => JSON.parse(half.text))
      const slow = yield* send("keep_alive")
      assert.match(slow.text, /^\n\n\n\n\{/)
      assert.strictEqual(JSON.parse(slow.text).object, "chat.completion")
      assert.deepInclude((yield* provider.report()).models[0], { completed: 2, refused: 1 })
    }))

  it.effect("a connection that is lost is a typed failure, and the request is aborted", () =>
    Effect.gen(function*() {
      const provider = yield* make({ limits: [] })
      for (const stream of [false, true]) {
        const headers = yield* Effect.flip(
          post(provider, paths.chat, { ...chatBody, stream }, { "x-sim-fault": "reset" })
        )
        assert.strictEqual(headers._tag, "Disconnected")
        const body = yield* Effect.flip(
          post(provider, paths.chat, { ...chatBody, stream }, { "x-sim-fault": "reset_mid_body" })
        )
        assert.strictEqual(body._tag, "Disconnected")
      }
      assert.deepInclude((yield* provider.report()).models[0], { admitted: 4, aborted: 4, running: 0 })
    }))

  it.effect("an answer that never comes, that stops after the headers or half way, holds its slot until it is given up", () =>
    Effect.gen(function*() {
      const provider = yield* make({ limits: [{ dimension: "concurrent", limit: 10 }] })
      const running = Effect.map(provider.report(), ({ models: [report] }) => report?.running)
      for (const stream of [false, true]) {
        for (const kind of ["never", "silence", "stall"]) {
          const fiber = yield* Effect.forkChild(
            post(provider, paths.chat, { ...chatBody, stream }, { "x-sim-fault": kind }),
            { startImmediately: true }
          )
          yield* TestClock.adjust("1 hour")
          assert.isUndefined(fiber.pollUnsafe(), kind)
          assert.strictEqual(yield* running, 1, kind)
          yield* Fiber.interrupt(fiber)
          assert.strictEqual(yield* running, 0, kind)
        }
      }
    }))

  it.effect("openai: several answers to one request share its words, and each of them is reserved", () =>
    Effect.gen(function*() {
      const provider = yield* make({ limits: [bucket("tokens", 1000)], charge: "openai", refund: true })
      const headers = { "x-sim-output-tokens": "7" }
      const whole = yield* ask(provider, paths.chat, { ...chatBody, n: 3 }, headers)
      assert.strictEqual(whole.headers["x-ratelimit-remaining-tokens"], "970")
      assert.strictEqual(whole.json.usage.completion_tokens, 7)
      const contents: ReadonlyArray<string> = whole.json.choices.map(
        (choice: { readonly message: { readonly content: string } }) => choice.message.content
      )
      assert.deepStrictEqual(whole.json.choices.map(({ index }: { readonly index: number }) => index), [0, 1, 2])
      assert.deepStrictEqual(contents.map((content) => content.trim().split(" ").length), [2, 2, 3])
      const stream = yield* post(provider, paths.chat, { ...chatBody, n: 3, stream: true }, headers)
      const texts = ["", "", ""]
      const ends: Array<number> = []
      for (const { data } of events(stream.text)) {
        for (const { delta, finish_reason, index } of data.choices ?? []) {
          texts[index] += delta.content ?? ""
          if (finish_reason !== null) ends.push(index)
        }
      }
      assert.deepStrictEqual(texts.map((text) => text.trim().split(" ").length), [2, 2, 3])
      assert.deepStrictEqual(ends, [0, 1, 2])
    }))

  it.effect("openrouter: an error inside a stream is a chunk that ends with it", () =>
    Effect.gen(function*() {
      const provider = yield* make({ limits: [], dialect: "openrouter" })
      for (const [kind, code] of [["stream_error_late", 529], ["stream_429_late", 429]] as const) {
        const { text } = yield* post(
          provider,
          paths.chat,
          { ...chatBody, stream: true },
          { "x-sim-fault": kind, "x-sim-output-tokens": "4" }
        )
        const last = events(text).at(-1)?.data
        assert.strictEqual(last.error.code, code)
        assert.deepStrictEqual(last.choices, [{ index: 0, delta: { content: "" }, finish_reason: "error" }])
      }
    }))

  it.effect("errors inside a stream come before or after content, in the words of the format", () =>
    Effect.gen(function*() {
      const provider = yield* make({ limits: [] })
      const send = (path: string, body: object, kind: string) =>
        Effect.map(
          post(provider, path, { ...body, stream: true }, { "x-sim-fault": kind, "x-sim-output-tokens": "4" }),
          ({ status, text }) => ({ status, events: events(text) })
        )
      const early = yield* send(paths.messages, chatBody, "stream_error")
      assert.strictEqual(early.status, 200)
      assert.notInclude(early.events.map(({ name }) => name), "content_block_delta")
      assert.deepStrictEqual(early.events.at(-1), {
        name: "error",
        data: { type: "error", error: { type: "overloaded_error", message: "Overloaded" } }
      })
      const late = yield* send(paths.messages, chatBody, "stream_error_late")
      assert.strictEqual(late.events.filter(({ name }) => name === "content_block_delta").length, 2)
      assert.strictEqual(late.events.at(-1)?.name, "error")
      const chat = yield* send(paths.chat, chatBody, "stream_error_late")
      assert.strictEqual(chat.events.at(-1)?.data.error.message, "Overloaded")
      const responses = yield* send(paths.responses, { model: "m", input: "Hi" }, "stream_error_late")
      assert.strictEqual(responses.events.at(-1)?.name, "response.failed")
      for (const [kind, contents] of [["stream_429", 0], ["stream_429_late", 2]] as const) {
        const { events } = yield* send(paths.chat, chatBody, kind)
        const said = events.filter(({ data }) => data.choices?.[0]?.delta.content?.length > 0)
        assert.deepStrictEqual([said.length, events.at(-1)?.data.error.code], [contents, "rate_limit_exceeded"])
      }
      const inBand = yield* send(paths.responses, { model: "m", input: "Hi" }, "in_band_429")
      assert.strictEqual(inBand.events[0]?.data.response.error.code, "rate_limit_exceeded")
      const kept = yield* post(provider, paths.chat, { ...chatBody, stream: true }, { "x-sim-fault": "keep_alive" })
      assert.match(kept.text, /^(: keep-alive\n\n){4}data: /)
      assert.match(kept.text, /data: \[DONE\]\n\n$/)
    }))
})

describe("the books", () => {
  it.effect("know every way in which a time to come back was told", () =>
    Effect.gen(function*() {
      const tells = [
        { kind: "429", retryAfter: "9" },
        { kind: "503", retryAfterDate: 9000 },
        { kind: "html_502", retryAfter: "9" },
        { kind: "html_502", retryAfterDate: 9000 }
      ] as const
      for (const fault of tells) {
        const provider = yield* make({ limits: [], faults: [{ when: { nth: 1 }, ...fault }], headerSkewMs: 60_000 })
        const attempt = post(provider, paths.chat, chatBody, { "x-sim-request-id": "a" })
        yield* attempt
        // Dates are in whole seconds.
        yield* TestClock.adjust(7900)
        yield* attempt
        assert.strictEqual((yield* provider.report()).models[0]?.attemptsTooEarly, 1, JSON.stringify(fault))
        yield* TestClock.adjust(1100)
        yield* attempt
        assert.strictEqual((yield* provider.report()).models[0]?.attemptsTooEarly, 1, JSON.stringify(fault))
      }
    }))

  it.effect("the worst window of a bucket counts with the limit of each time", () =>
    Effect.gen(function*() {
      for (const scale of [0.5, 2]) {
        const provider = yield* make({ limits: [{ dimension: "requests", limit: 60, algorithm: "bucket" }] })
        const worst = Effect.map(provider.report(), ({ models }) => models[0]?.limits[0]?.worstWindow ?? 0)
        for (let i = 0; i < 60; i++) yield* post(provider, paths.chat, chatBody)
        for (let second = 0; second < 60; second++) {
          yield* TestClock.adjust("1 second")
          yield* post(provider, paths.chat, chatBody)
        }
        yield* provider.setLimits("m", { scale })
        for (let step = 0; step < 60; step++) {
          yield* TestClock.adjust(1000 / scale)
          yield* post(provider, paths.chat, chatBody)
        }
        assert.closeTo(yield* worst, 60, 1e-6, `scaled by ${scale}`)
      }
    }))

  it.effect("tell who came back too early, and who came back after a refusal for good", () =>
    Effect.gen(function*() {
      const provider = yield* make({
        limits: [{ dimension: "requests", limit: 1 }, { dimension: "tokens", limit: 100 }]
      })
      const attempt = (id: string, more: object = {}) =>
        Effect.map(
          post(provider, paths.chat, { ...chatBody, ...more }, { "x-sim-request-id": id }),
          ({ status }) => status
        )
      const wrong = Effect.map(
        provider.report(),
        ({ models: [report] }) => [report?.attemptsTooEarly, report?.attemptsAfterFinal]
      )
      assert.strictEqual(yield* attempt("a"), 200)
      assert.strictEqual(yield* attempt("b"), 429)
      yield* TestClock.adjust(59_999)
      assert.strictEqual(yield* attempt("b"), 429)
      assert.deepStrictEqual(yield* wrong, [1, 0])
      yield* TestClock.adjust(1)
      assert.strictEqual(yield* attempt("b"), 200)
      assert.deepStrictEqual(yield* wrong, [1, 0])
      assert.strictEqual(yield* attempt("c", { max_tokens: 500 }), 429)
      yield* TestClock.adjust("1 hour")
      assert.strictEqual(yield* attempt("c"), 200)
      assert.deepStrictEqual(yield* wrong, [1, 1])
      assert.deepStrictEqual((yield* provider.arrivals).map(({ attempt, requestId }) => [requestId, attempt]), [
        ["a", 1],
        ["b", 1],
        ["b", 2],
        ["b", 3],
        ["c", 1],
        ["c", 2]
      ])
    }))

  it.effect("can be read, and the limits and the script changed, by requests", () =>
    Effect.gen(function*() {
      const provider = yield* make({ limits: [{ dimension: "requests", limit: 4 }] })
      const status = Effect.map(post(provider, paths.chat, chatBody), ({ status }) => status)
      const control = (path: string, body: object) => Effect.map(post(provider, path, body), ({ status }) => status)
      assert.strictEqual(yield* control("/__sim/limits", { model: "m", scale: 0.5 }), 200)
      assert.deepStrictEqual([yield* status, yield* status, yield* status], [200, 200, 429])
      assert.strictEqual(
        yield* control("/__sim/limits", { model: "m", limits: [{ dimension: "requests", limit: 3 }] }),
        200
      )
      assert.deepStrictEqual([yield* status, yield* status], [200, 429])
      assert.strictEqual(yield* control("/__sim/reset", {}), 200)
      assert.strictEqual(yield* status, 200)
      assert.strictEqual(yield* control("/__sim/script", { model: "m", faults: [{ kind: "529" }] }), 200)
      assert.strictEqual(yield* status, 529)
      assert.strictEqual(yield* control("/__sim/script", { model: "m", faults: [{ kind: "nonsense" }] }), 400)
      assert.strictEqual(yield* control("/__sim/limits", { scale: 2 }), 400)
      assert.strictEqual(yield* control("/__sim/nothing", {}), 404)
      const stats = yield* Effect.scoped(
        provider.handle({ method: "GET", path: "/__sim/stats?from=0&to=60000", headers: {}, body: "" })
      )
      assert.deepEqual(
        JSON.parse(stats.body as string),
        JSON.parse(JSON.stringify(yield* provider.report({ from: 0, to: 60_000 })))
      )
    }))

  it.effect("a client that gives up while it waits frees its slot and keeps its charge", () =>
    Effect.gen(function*() {
      const provider = yield* make({
        limits: [{ dimension: "concurrent", limit: 1 }, { dimension: "tokens", limit: 100 }],
        serviceTime: { base: "1 minute" }
      })
      for (const stream of [false, true]) {
        const fiber = yield* Effect.forkChild(post(provider, paths.chat, { ...chatBody, stream }))
        yield* TestClock.adjust("1 second")
        assert.isTrue(Exit.hasInterrupts(yield* Fiber.interrupt(fiber).pipe(Effect.andThen(Fiber.await(fiber)))))
      }
      const { models: [report] } = yield* provider.report()
      assert.deepInclude(report, { admitted: 2, aborted: 2, running: 0 })
      assert.strictEqual(report?.limits[0]?.net, 32)
    }))
})
