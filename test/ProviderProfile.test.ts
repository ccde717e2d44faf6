import * as Anthropic from "@anthropic-ai/sdk"
import { assert, describe, it } from "@effect/vitest"
import { Cause, Duration, Effect, Exit } from "effect"
import { ProviderProfile, type RateLimiter } from "effect-llm-queue"
import { AiError } from "effect/ai"
import { HttpClientError, HttpClientRequest, HttpClientResponse } from "effect/http"
import { isDeepStrictEqual } from "node:util"
import * as OpenAI from "openai"
import * as Random from "./model/random.ts"

const {
  anthropic,
  azure,
  bedrock,
  classify,
  deepseek,
  gemini,
  generic,
  groq,
  mistral,
  observations,
  openai,
  openrouter,
  together
} = ProviderProfile

const all = [openai, azure, anthropic, gemini, groq, mistral, bedrock, deepseek, openrouter, together, generic]
const noon = 1_795_435_200_000 // 2026-11-23T12:00:00Z
const date = "Mon, 23 Nov 2026 12:00:00 GMT"

const observation = (
  types: ReadonlyArray<RateLimiter.Type>,
  limit: number | undefined,
  remaining: number | undefined,
  reset?: number,
  rounding = 1
): RateLimiter.Observation => ({ types, limit, remaining, rounding, reset })

const rounded = (found: ReadonlyArray<RateLimiter.Observation>) =>
  found.map((one) => ({ ...one, reset: one.reset === undefined ? undefined : Math.round(one.reset * 1e3) / 1e3 }))

/** Where a refusal is not as expected, in what the case says something about. */
const difference = (
  refusal: RateLimiter.Refusal | undefined,
  expected: Partial<RateLimiter.Refusal> | undefined
): unknown => {
  if (refusal === undefined || expected === undefined) {
    return refusal === expected ? undefined : { refusal, expected }
  }
  const actual = Object.fromEntries(Object.keys(expected).map((key) => [key, Reflect.get(refusal, key)]))
  return isDeepStrictEqual(actual, { ...expected }) ? undefined : { actual, expected }
}

const tokensPerMinute = {
  error: {
    message: "Rate limit reached for gpt-4o in organization org-x on tokens per min (TPM): Limit 30000, Used 22999, "
      + "Requested 12528. Please try again in 11.054s. Visit https://platform.openai.com/account/rate-limits to learn "
      + "more.",
    type: "tokens",
    param: null,
    code: "rate_limit_exceeded"
  }
}
const requestsPerDay = {
  error: {
    message: "Rate limit reached for gpt-4o in organization org-x on requests per day (RPD): Limit 200, Used 200, "
      + "Requested 1. Please try again in 7m12s. Visit https://platform.openai.com/account/rate-limits to learn more.",
    type: "requests",
    param: null,
    code: "rate_limit_exceeded"
  }
}
const tooLarge = {
  error: {
    message: "Request too large for gpt-4o in organization org-x on tokens per min (TPM): Limit 30000, Requested "
      + "80715. The input or output tokens must be reduced in order to run successfully.",
    type: "tokens",
    param: null,
    code: "rate_limit_exceeded"
  }
}
const openaiError = (code: string | null, type: string, message = "Something happened.") => ({
  error: { message, type, param: null, code }
})
const inputPerMinute = {
  type: "error",
  error: {
    type: "rate_limit_error",
    message: "This request would exceed the rate limit for your organization (0f0f) of 50,000 input tokens per "
      + "minute. For details, refer to: https://docs.claude.com/en/api/rate-limits."
  },
  request_id: "req_1"
}
const anthropicError = (type: string, message = "Something happened.", details?: object) => ({
  type: "error",
  error: { type, message, ...(details === undefined ? {} : { details }) },
  request_id: "req_1"
})
const geminiBody = (violations: ReadonlyArray<object>, retryDelay = "18s", retry = "18.186484543s") => ({
  error: {
    code: 429,
    status: "RESOURCE_EXHAUSTED",
    message: "You exceeded your current quota.\n* Quota exceeded for metric: generativelanguage.googleapis.com/"
      + `generate_content_free_tier_requests, limit: 10, model: gemini-2.5-flash\nPlease retry in ${retry}.`,
    details: [
      { "@type": "type.googleapis.com/google.rpc.QuotaFailure", violations },
      { "@type": "type.googleapis.com/google.rpc.RetryInfo", retryDelay }
    ]
  }
})
const perMinute = {
  quotaMetric: "generativelanguage.googleapis.com/generate_content_free_tier_requests",
  quotaId: "GenerateRequestsPerMinutePerProjectPerModel-FreeTier",
  quotaValue: "10"
}
const perDay = { ...perMinute, quotaId: "GenerateRequestsPerDayPerProjectPerModel-FreeTier", quotaValue: "250" }
const inputTokens = {
  quotaMetric: "generativelanguage.googleapis.com/generate_content_free_tier_input_token_count",
  quotaId: "GenerateContentInputTokensPerModelPerMinute-FreeTier",
  quotaValue: "250000"
}
const groqTokens = {
  error: {
    message: "Rate limit reached for model `m` in organization `o` service tier `on_demand` on tokens per minute "
      + "(TPM): Limit 6000, Used 4678, Requested 1522. Please try again in 2s. Need more tokens? Upgrade.",
    type: "tokens",
    code: "rate_limit_exceeded"
  }
}

interface Case {
  readonly name: string
  readonly profile: ProviderProfile.ProviderProfile
  readonly error: unknown
  readonly expected: Partial<RateLimiter.Refusal> | undefined
}

const cases: ReadonlyArray<Case> = [
  // OpenAI
  {
    name: "OpenAI, tokens of the minute",
    profile: openai,
    error: { status: 429, headers: { "Retry-After": "12" }, body: tokensPerMinute },
    expected: {
      kind: "rate",
      types: ["tpm"],
      limit: 30_000,
      used: 22_999,
      requested: 12_528,
      retryAfter: 12_000,
      status: 429
    }
  },
  {
    name: "OpenAI, retry-after-ms is more exact than retry-after",
    profile: openai,
    error: { status: 429, headers: { "retry-after": "12", "retry-after-ms": "11054" }, body: tokensPerMinute },
    expected: { kind: "rate", retryAfter: 11_054 }
  },
  {
    name: "OpenAI, the body's own hint without headers",
    profile: openai,
    error: { status: 429, body: tokensPerMinute },
    expected: { kind: "rate", retryAfter: 11_054 }
  },
  {
    name: "OpenAI, Retry-After as a date",
    profile: openai,
    error: { status: 429, headers: { date, "retry-after": "Mon, 23 Nov 2026 12:00:20 GMT" }, body: tokensPerMinute },
    expected: { kind: "rate", retryAfter: 20_000 }
  },
  {
    name: "OpenAI, a Retry-After that makes no sense",
    profile: openai,
    error: { status: 429, headers: { "retry-after": "-5", "retry-after-ms": "soon" }, body: openaiError(null, "x") },
    expected: { kind: "rate", retryAfter: undefined, types: [] }
  },
  {
    name: "OpenAI, requests of the day",
    profile: openai,
    error: { status: 429, body: requestsPerDay },
    expected: { kind: "rate", types: ["rpd"], limit: 200, used: 200, requested: 1, retryAfter: 432_000 }
  },
  {
    name: "OpenAI, only the type names the limit",
    profile: openai,
    error: { status: 429, body: openaiError("rate_limit_exceeded", "requests", "Too many.") },
    expected: { kind: "rate", types: ["rpm", "rpd"] }
  },
  {
    name: "OpenAI, larger than the limit",
    profile: openai,
    error: { status: 429, headers: { "x-should-retry": "false" }, body: tooLarge },
    expected: { kind: "tooLarge", types: ["tpm"], limit: 30_000, requested: 80_715 }
  },
  {
    name: "OpenAI, larger than the limit by its numbers alone",
    profile: openai,
    error: {
      status: 429,
      body: openaiError("rate_limit_exceeded", "tokens", "On tokens per min (TPM): Limit 100, Used 5, Requested 101.")
    },
    expected: { kind: "tooLarge", limit: 100, used: 5, requested: 101 }
  },
  {
    name: "OpenAI, exactly the limit can fit",
    profile: openai,
    error: {
      status: 429,
      body: openaiError("rate_limit_exceeded", "tokens", "On tokens per min (TPM): Limit 100, Used 5, Requested 100.")
    },
    expected: { kind: "rate", requested: 100 }
  },
  ...[
    "insufficient_quota",
    "credit_balance_exhausted",
    "organization_spend_limit_exceeded",
    "project_spend_limit_exceeded",
    "organization_usage_limit_exceeded",
    "billing_hard_limit_reached",
    "billing_not_active"
  ].flatMap((code): ReadonlyArray<Case> => [
    {
      name: `OpenAI, code ${code}`,
      profile: openai,
      error: { status: 429, body: openaiError(code, "billing") },
      expected: { kind: "quota", status: 429 }
    },
    {
      name: `OpenAI, type ${code}`,
      profile: openai,
      error: { status: 429, body: openaiError("rate_limit_exceeded", code) },
      expected: { kind: "quota" }
    }
  ]),
  {
    name: "OpenAI, the hard limit of billing, as a request at fault",
    profile: openai,
    error: { status: 400, body: openaiError("billing_hard_limit_reached", "invalid_request_error") },
    expected: { kind: "quota", status: 400 }
  },
  {
    name: "OpenAI, slow down inside the limits",
    profile: openai,
    error: { status: 429, body: openaiError("slow_down", "rate_limit_error") },
    expected: { kind: "ramp" }
  },
  {
    name: "OpenAI, slow down of older endpoints",
    profile: openai,
    error: { status: 503, body: openaiError("slow_down", "service_unavailable_error") },
    expected: { kind: "ramp" }
  },
  {
    name: "OpenAI, overloaded",
    profile: openai,
    error: { status: 503, body: openaiError("server_is_overloaded", "service_unavailable_error") },
    expected: { kind: "overload", status: 503 }
  },
  {
    name: "OpenAI, flex tier without capacity",
    profile: openai,
    error: { status: 429, body: openaiError(null, "x", "Resource Unavailable") },
    expected: { kind: "overload" }
  },
  {
    name: "OpenAI, refused inside a stream",
    profile: openai,
    error: {
      type: "response.failed",
      response: {
        id: "resp_1",
        status: "failed",
        error: {
          code: "rate_limit_exceeded",
          message: "Rate limit reached on tokens per min (TPM): Limit 30000, "
            + "Used 29000, Requested 1500. Please try again in 1s."
        }
      }
    },
    expected: { kind: "rate", types: ["tpm"], retryAfter: 1000, status: undefined }
  },
  {
    name: "OpenAI, a fault inside a stream",
    profile: openai,
    error: { type: "response.failed", response: { error: { code: "server_error", message: "Sorry." } } },
    expected: { kind: "transient" }
  },
  {
    name: "OpenAI, a request at fault",
    profile: openai,
    error: { status: 400, body: openaiError(null, "invalid_request_error") },
    expected: undefined
  },
  {
    name: "OpenAI, a model that does not exist",
    profile: openai,
    error: { status: 404, body: openaiError("model_not_found", "invalid_request_error") },
    expected: undefined
  },
  {
    name: "OpenAI, a wrong key",
    profile: openai,
    error: { status: 401, body: openaiError("invalid_api_key", "invalid_request_error", "Incorrect API key.") },
    expected: { kind: "auth", status: 401, message: "Incorrect API key." }
  },
  {
    name: "a conflict that the server wants to see again",
    profile: openai,
    error: { status: 409, headers: { "x-should-retry": "true" } },
    expected: { kind: "transient", status: 409 }
  },
  { name: "a conflict", profile: openai, error: { status: 409 }, expected: undefined },
  {
    name: "a 500 that is not to be retried",
    profile: openai,
    error: { status: 500, headers: { "x-should-retry": "false" } },
    expected: undefined
  },
  {
    name: "a 429 that is not to be retried",
    profile: openai,
    error: { status: 429, headers: { "x-should-retry": "false" } },
    expected: { kind: "tooLarge" }
  },
  {
    name: "a spent quota that is not to be retried",
    profile: openai,
    error: { status: 429, headers: { "x-should-retry": "false" }, body: openaiError("insufficient_quota", "x") },
    expected: { kind: "quota" }
  },
  // Azure
  {
    name: "Azure, the token rate",
    profile: azure,
    error: {
      status: 429,
      headers: { "retry-after": "9", "retry-after-ms": "8700" },
      body: {
        error: {
          code: "429",
          message: "Requests to the ChatCompletions_Create Operation under Azure OpenAI API version 2024-02-01 have "
            + "exceeded token rate limit of your current OpenAI S0 pricing tier. Please retry after 9 seconds."
        }
      }
    },
    expected: { kind: "rate", types: ["tpm"], retryAfter: 8700, status: 429 }
  },
  {
    name: "Azure, the call rate, with the status in the body only",
    profile: azure,
    error: {
      error: {
        code: "429",
        message: "Requests to the Embeddings_Create Operation under Azure OpenAI API version 2023-07-01-preview have "
          + "exceeded call rate limit of your current OpenAI S0 pricing tier. Please retry after 2 seconds."
      }
    },
    expected: { kind: "rate", types: ["rpm"], retryAfter: 2000, status: 429 }
  },
  {
    name: "Azure, no capacity",
    profile: azure,
    error: { status: 429, body: { error: { code: "429", message: "System is experiencing high demand." } } },
    expected: { kind: "overload" }
  },
  {
    name: "Azure, a stream refused with status 200",
    profile: azure,
    error: {
      status: 200,
      headers: { "retry-after": "7" },
      body: "event: response.failed\ndata: {\"type\":\"response.failed\",\"response\":{\"error\":{\"code\":"
        + "\"rate_limit_exceeded\",\"message\":\"Too many tokens.\"}}}\n\n"
    },
    expected: { kind: "rate", retryAfter: 7000, status: 200, message: "Too many tokens." }
  },
  {
    name: "Azure, a status 200 that says when to come back, and nothing else",
    profile: azure,
    error: { status: 200, headers: { "retry-after": "7" } },
    expected: { kind: "rate", retryAfter: 7000 }
  },
  { name: "Azure, a status 200", profile: azure, error: { status: 200, headers: {} }, expected: undefined },
  // Anthropic
  {
    name: "Anthropic, input tokens",
    profile: anthropic,
    error: { status: 429, headers: { "retry-after": "11" }, body: inputPerMinute },
    expected: { kind: "rate", types: ["itpm"], limit: 50_000, retryAfter: 11_000 }
  },
  {
    name: "Anthropic, output tokens",
    profile: anthropic,
    error: {
      status: 429,
      body: anthropicError(
        "rate_limit_error",
        "This would exceed your organization's limit of 8,000 output tokens per minute"
      )
    },
    expected: { kind: "rate", types: ["otpm"], limit: 8000 }
  },
  {
    name: "Anthropic, requests",
    profile: anthropic,
    error: { status: 429, body: anthropicError("rate_limit_error", "the rate limit of 50 requests per minute") },
    expected: { kind: "rate", types: ["rpm"], limit: 50 }
  },
  {
    name: "Anthropic, a spending cap",
    profile: anthropic,
    error: {
      status: 429,
      body: anthropicError("rate_limit_error", "Spend limit.", { error_code: "enforced_spend_limit_reached" })
    },
    expected: { kind: "quota", status: 429 }
  },
  {
    name: "Anthropic, the user's own limit",
    profile: anthropic,
    error: {
      status: 400,
      body: anthropicError(
        "invalid_request_error",
        "You have reached your specified API usage limits. You will regain access on 2026-12-01."
      )
    },
    expected: { kind: "quota", status: 400 }
  },
  {
    name: "Anthropic, no credit left",
    profile: anthropic,
    error: {
      status: 400,
      body: anthropicError(
        "invalid_request_error",
        "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing."
      )
    },
    expected: { kind: "quota", status: 400 }
  },
  {
    name: "Anthropic, no credit left, without a status",
    profile: anthropic,
    error: anthropicError("invalid_request_error", "Your credit balance is too low."),
    expected: { kind: "quota" }
  },
  {
    name: "Anthropic, growing too fast",
    profile: anthropic,
    error: {
      status: 429,
      body: anthropicError(
        "rate_limit_error",
        "This request would exceed your organization's maximum usage increase rate for input tokens per minute."
      )
    },
    expected: { kind: "ramp", types: ["itpm"] }
  },
  ...([
    [529, "overloaded_error", "overload"],
    [500, "api_error", "transient"],
    [504, "timeout_error", "transient"],
    [402, "billing_error", "quota"],
    [413, "request_too_large", "tooLarge"],
    [401, "authentication_error", "auth"],
    [403, "permission_error", "auth"]
  ] as const).flatMap(([status, type, kind]): ReadonlyArray<Case> => [
    {
      name: `Anthropic, ${type}`,
      profile: anthropic,
      error: { status, body: anthropicError(type) },
      expected: { kind, status }
    },
    {
      name: `Anthropic, ${type} inside a stream`,
      profile: anthropic,
      error: anthropicError(type),
      expected: { kind, status: undefined }
    }
  ]),
  {
    name: "Anthropic, a request at fault",
    profile: anthropic,
    error: { status: 400, body: anthropicError("invalid_request_error") },
    expected: undefined
  },
  // Gemini
  {
    name: "Gemini, requests of the minute: the hint is not rounded down",
    profile: gemini,
    error: geminiBody([perMinute]),
    expected: { kind: "rate", types: ["rpm"], limit: 10, retryAfter: 18_186.484543, status: 429 }
  },
  {
    name: "Gemini, requests of the day: the hint means nothing",
    profile: gemini,
    error: { status: 429, body: geminiBody([perDay], "33s", "33.2s") },
    expected: { kind: "rate", types: ["rpd"], retryAfter: undefined }
  },
  {
    name: "Gemini, the minute and the day at once: it is about the day",
    profile: gemini,
    error: { status: 429, body: geminiBody([perMinute, perDay], "33s", "33.2s") },
    expected: { kind: "rate", types: ["rpd"], limit: 250, retryAfter: undefined }
  },
  {
    name: "Gemini, input tokens, as the JSON in a message",
    profile: gemini,
    error: Object.assign(new Error(JSON.stringify(geminiBody([inputTokens], "5s", "5.5s"))), {
      name: "ApiError",
      status: 429
    }),
    expected: { kind: "rate", types: ["tpm"], retryAfter: 5500, status: 429 }
  },
  {
    name: "Gemini, JSON in JSON in words",
    profile: gemini,
    error: new Error(
      `got status: 429 Too Many Requests. ${
        JSON.stringify({
          error: { message: JSON.stringify(geminiBody([perDay])), code: 429, status: "Too Many Requests" }
        })
      }`
    ),
    expected: { kind: "rate", types: ["rpd"], retryAfter: undefined, status: 429 }
  },
  {
    name: "Gemini, a hint as seconds and nanoseconds",
    profile: gemini,
    error: {
      error: {
        code: 429,
        status: "RESOURCE_EXHAUSTED",
        message: "No.",
        details: [{ retryDelay: { seconds: "2", nanos: 500_000_000 } }]
      }
    },
    expected: { kind: "rate", retryAfter: 2500, types: [] }
  },
  {
    name: "Gemini, a model that the plan does not allow",
    profile: gemini,
    error: {
      error: {
        code: 429,
        status: "RESOURCE_EXHAUSTED",
        message: "Quota exceeded for metric: generativelanguage.googleapis.com/generate_content_free_tier_requests, "
          + "limit: 0, model: gemini-3-pro\nPlease retry in 45.5s."
      }
    },
    expected: { kind: "auth" }
  },
  {
    name: "Gemini, a monthly cap on spending",
    profile: gemini,
    error: {
      error: {
        code: 429,
        status: "RESOURCE_EXHAUSTED",
        message: "Your billing account has exceeded its monthly spending cap. Please go to AI Studio."
      }
    },
    expected: { kind: "quota" }
  },
  ...[402, 429].map((code): Case => ({
    name: `Gemini, prepaid credits used up, status ${code}`,
    profile: gemini,
    error: { error: { code, status: "RESOURCE_EXHAUSTED", message: "Your prepayment credits are depleted." } },
    expected: { kind: "quota" }
  })),
  {
    name: "Vertex, shared capacity",
    profile: gemini,
    error: {
      error: { code: 429, status: "RESOURCE_EXHAUSTED", message: "Resource exhausted, please try again later." }
    },
    expected: { kind: "overload" }
  },
  {
    name: "Gemini, overloaded",
    profile: gemini,
    error: { error: { code: 503, status: "UNAVAILABLE", message: "The model is overloaded." } },
    expected: { kind: "overload", status: 503 }
  },
  // Groq
  {
    name: "Groq, tokens of the minute",
    profile: groq,
    error: { status: 429, headers: { "retry-after": "2" }, body: groqTokens },
    expected: { kind: "rate", types: ["tpm"], limit: 6000, used: 4678, requested: 1522, retryAfter: 2000 }
  },
  {
    name: "Groq, larger than the limit",
    profile: groq,
    error: {
      status: 413,
      body: openaiError(
        "rate_limit_exceeded",
        "tokens",
        "Request too large for model `m` on tokens per minute (TPM): Limit 8000, Requested 32979."
      )
    },
    expected: { kind: "tooLarge", types: ["tpm"], limit: 8000, requested: 32_979 }
  },
  { name: "Groq, flex tier without capacity", profile: groq, error: { status: 498 }, expected: { kind: "overload" } },
  // Mistral
  {
    name: "Mistral, what is left names the limit",
    profile: mistral,
    error: {
      status: 429,
      headers: {
        "x-ratelimit-limit-req-minute": "188",
        "x-ratelimit-remaining-req-minute": "0",
        "x-ratelimit-limit-tokens-minute": "625000",
        "x-ratelimit-remaining-tokens-minute": "600000"
      },
      body: {
        object: "error",
        message: "Rate limit exceeded",
        type: "rate_limited",
        param: null,
        code: "1300",
        raw_status_code: 429
      }
    },
    expected: { kind: "rate", types: ["rpm"], status: 429, message: "Rate limit exceeded" }
  },
  {
    name: "Mistral, a model that is not allowed",
    profile: mistral,
    error: {
      status: 429,
      headers: { "x-ratelimit-limit-req-minute": "0", "x-ratelimit-remaining-req-minute": "0" },
      body: { message: "Rate limit exceeded", type: "rate_limited", code: "1300" }
    },
    expected: { kind: "auth" }
  },
  {
    name: "Mistral, no capacity of the tier",
    profile: mistral,
    error: {
      object: "error",
      message: "Capacity",
      type: "service_tier_capacity_exceeded",
      code: "3505",
      raw_status_code: 429
    },
    expected: { kind: "overload", status: 429 }
  },
  {
    name: "Mistral, a wrong key",
    profile: mistral,
    error: { status: 401, body: "{\"detail\":\"Unauthorized\"}" },
    expected: { kind: "auth", message: "Unauthorized" }
  },
  // Bedrock
  {
    name: "Bedrock, tokens of the minute",
    profile: bedrock,
    error: Object.assign(new Error("Too many tokens, please wait before trying again."), {
      name: "ThrottlingException",
      $fault: "client",
      $metadata: { httpStatusCode: 429, requestId: "1", attempts: 1 }
    }),
    expected: { kind: "rate", types: ["tpm"], status: 429, retryAfter: undefined }
  },
  {
    name: "Bedrock, tokens of the day",
    profile: bedrock,
    error: {
      __type: "com.amazon.coral.availability#ThrottlingException",
      message: "Too many tokens per day, please wait before trying again."
    },
    expected: { kind: "rate", types: ["tpd"] }
  },
  {
    name: "Bedrock, requests, as an event of a stream",
    profile: bedrock,
    error: { throttlingException: { message: "Too many requests, please wait before trying again." } },
    expected: { kind: "rate", types: ["rpm"] }
  },
  {
    name: "Bedrock, overloaded inside a stream",
    profile: bedrock,
    error: { serviceUnavailableException: { message: "Try again later." } },
    expected: { kind: "overload" }
  },
  {
    name: "Bedrock, a fault inside a stream",
    profile: bedrock,
    error: { modelStreamErrorException: { message: "Retry your request." } },
    expected: { kind: "transient" }
  },
  {
    name: "Bedrock, a request at fault",
    profile: bedrock,
    error: Object.assign(new Error("Malformed input"), {
      name: "ValidationException",
      $metadata: { httpStatusCode: 400 }
    }),
    expected: undefined
  },
  // DeepSeek
  {
    name: "DeepSeek, too many at one time",
    profile: deepseek,
    error: { status: 429, body: openaiError(null, "rate_limit_reached", "Rate limit reached") },
    expected: { kind: "rate", types: ["concurrent"] }
  },
  { name: "DeepSeek, no money", profile: deepseek, error: { status: 402 }, expected: { kind: "quota" } },
  { name: "DeepSeek, overloaded", profile: deepseek, error: { status: 503 }, expected: { kind: "overload" } },
  {
    name: "DeepSeek, a wrong key in plain text",
    profile: deepseek,
    error: { status: 401, body: "Authentication Fails" },
    expected: { kind: "auth", message: "Authentication Fails" }
  },
  {
    name: "DeepSeek, an answer that ended for lack of resources",
    profile: deepseek,
    error: {
      id: "1",
      choices: [{ index: 0, finish_reason: "insufficient_system_resource", message: { content: "" } }]
    },
    expected: { kind: "overload" }
  },
  // OpenRouter
  {
    name: "OpenRouter, its own limit",
    profile: openrouter,
    error: {
      error: {
        code: 429,
        message: "Rate limit exceeded",
        metadata: {
          error_type: "rate_limit_exceeded",
          headers: { "X-RateLimit-Limit": "20", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1795435260000" }
        }
      }
    },
    expected: { kind: "rate", types: ["rpm", "rpd"], status: 429 }
  },
  {
    name: "OpenRouter, a budget that is only held",
    profile: openrouter,
    error: {
      status: 402,
      headers: { "retry-after": "3" },
      body: { error: { code: 402, message: "Payment required", metadata: { reason: "in_flight_budget_exhausted" } } }
    },
    expected: { kind: "transient", retryAfter: 3000, status: 402 }
  },
  {
    name: "OpenRouter, a request above the budget",
    profile: openrouter,
    error: {
      status: 402,
      body: { error: { code: 402, message: "No", metadata: { reason: "weight_exceeds_budget" } } }
    },
    expected: { kind: "tooLarge" }
  },
  ...["openrouter_credits", "openrouter_key_limit"].map((reason): Case => ({
    name: `OpenRouter, ${reason}`,
    profile: openrouter,
    error: { error: { code: 402, message: "No", metadata: { reason } } },
    expected: { kind: "quota", status: 402 }
  })),
  {
    name: "OpenRouter, refused inside a stream of status 200",
    profile: openrouter,
    error: { status: 200, body: { error: { code: 429, message: "Rate limit exceeded" } } },
    expected: { kind: "rate", status: 429 }
  },
  {
    name: "a time to wait as a Duration",
    profile: openrouter,
    error: { status: 429, retryAfter: Duration.seconds(3) },
    expected: { kind: "rate", retryAfter: 3000 }
  },
  {
    name: "a time to wait as a number in the body",
    profile: openrouter,
    error: { status: 429, body: { error: { message: "No", metadata: { retry_after: 1.5 } } } },
    expected: { kind: "rate", retryAfter: 1500 }
  },
  {
    name: "OpenRouter, refused inside a stream",
    profile: openrouter,
    error: {
      id: "gen-1",
      object: "chat.completion.chunk",
      error: { code: 429, message: "Rate limit exceeded" },
      choices: [{ index: 0, delta: { content: "" }, finish_reason: "error" }]
    },
    expected: { kind: "rate", status: 429 }
  },
  // Together
  {
    name: "Together, requests grow too fast",
    profile: together,
    error: { status: 429, body: openaiError(null, "dynamic_request_limited") },
    expected: { kind: "ramp", types: ["rpm"] }
  },
  {
    name: "Together, tokens grow too fast",
    profile: together,
    error: { status: 429, body: { error: { message: "dynamic_token_limited: slow down" } } },
    expected: { kind: "ramp", types: ["tpm"] }
  },
  { name: "Together, overloaded", profile: together, error: { status: 503 }, expected: { kind: "overload" } }
]

const responseOf = (status: number, body: unknown, headers: Record<string, string> = {}) =>
  HttpClientResponse.fromWeb(
    HttpClientRequest.post("http://127.0.0.1/v1/chat/completions"),
    new Response(JSON.stringify(body), { status, headers })
  )

const headersOf = (record: Record<string, string>) => new Headers(record)

const failureOf = <A, E>(effect: Effect.Effect<A, E>) =>
  Effect.map(Effect.exit(effect), (exit) => {
    if (Exit.isSuccess(exit)) throw new Error("it did not fail")
    return Cause.squash(exit.cause)
  })

describe("ProviderProfile", () => {
  describe("observations", () => {
    it("reads OpenAI's headers", () => {
      const headers = {
        date,
        "x-ratelimit-limit-requests": "500",
        "x-ratelimit-limit-tokens": "30000",
        "x-ratelimit-remaining-requests": "499",
        "x-ratelimit-remaining-tokens": "29977",
        "x-ratelimit-reset-requests": "120ms",
        "x-ratelimit-reset-tokens": "46ms"
      }
      const expected = [observation(["rpm", "rpd"], 500, 499, 120), observation(["tpm"], 30_000, 29_977, 46)]
      assert.deepStrictEqual(rounded(observations(openai, headers)), expected)
      // The day's requests, a time above a minute.
      assert.deepStrictEqual(
        rounded(observations(openai, {
          "x-ratelimit-limit-requests": "10000",
          "x-ratelimit-remaining-requests": "290",
          "x-ratelimit-reset-requests": "23h18m29.144s"
        })),
        [observation(["rpm", "rpd"], 10_000, 290, 83_909_144)]
      )
    })

    it("takes an organization's and a project's tokens together", () => {
      assert.deepStrictEqual(
        rounded(observations(openai, {
          "x-ratelimit-limit-tokens": "30000000",
          "x-ratelimit-remaining-tokens": "500000",
          "x-ratelimit-reset-tokens": "59s",
          "x-ratelimit-limit-project-tokens": "1000000",
          "x-ratelimit-remaining-project-tokens": "900000",
          "x-ratelimit-reset-project-tokens": "6s"
        })),
        [observation(["tpm"], 1_000_000, 500_000, 59_000)]
      )
      assert.deepStrictEqual(
        rounded(observations(openai, {
          "x-ratelimit-limit-tokens": "1000000",
          "x-ratelimit-remaining-tokens": "900000",
          "x-ratelimit-remaining-project-tokens": "100000",
          "x-ratelimit-reset-project-tokens": "54s"
        })),
        [observation(["tpm"], 1_000_000, 100_000, 54_000)]
      )
    })

    it("reads Azure's tokens, negative ones too, but not its requests and what it has not set", () => {
      const headers = (remaining: string, limit = "240000") => ({
        "x-ratelimit-limit-requests": "20",
        "x-ratelimit-remaining-requests": "19",
        "x-ratelimit-limit-tokens": limit,
        "x-ratelimit-remaining-tokens": remaining,
        "x-ratelimit-reset-tokens": "7"
      })
      assert.deepStrictEqual(observations(azure, headers("-27689")), [observation(["tpm"], 240_000, -27_689, 7000)])
      assert.deepStrictEqual(observations(azure, headers("-1")), [observation(["tpm"], 240_000, undefined, 7000)])
      assert.deepStrictEqual(observations(azure, headers("5", "0")), [])
      assert.deepStrictEqual(observations(azure, headers("5", "-1")), [])
    })

    it("reads Anthropic's headers, by the response's own clock", () => {
      const headers = {
        date,
        "anthropic-ratelimit-requests-limit": "1000",
        "anthropic-ratelimit-requests-remaining": "999",
        "anthropic-ratelimit-requests-reset": "2026-11-23T12:00:00Z",
        "anthropic-ratelimit-tokens-limit": "400000",
        "anthropic-ratelimit-tokens-remaining": "1000",
        "anthropic-ratelimit-tokens-reset": "2026-11-23T12:00:59Z",
        "anthropic-ratelimit-input-tokens-limit": "2000000",
        "anthropic-ratelimit-input-tokens-remaining": "1989000",
        "anthropic-ratelimit-input-tokens-reset": "2026-11-23T12:00:01.5Z",
        "anthropic-ratelimit-output-tokens-limit": "400000",
        "anthropic-ratelimit-output-tokens-remaining": "1000",
        "anthropic-ratelimit-output-tokens-reset": "2026-11-23T12:00:59Z"
      }
      const expected = [
        observation(["rpm"], 1000, 999, 0),
        observation(["itpm"], 2_000_000, 1_989_000, 1500, 1000),
        observation(["otpm"], 400_000, 1000, 59_000, 1000)
      ]
      // A wall clock an hour off changes nothing.
      assert.deepStrictEqual(observations(anthropic, headers, noon + 3_600_000), expected)
      assert.deepStrictEqual(observations(anthropic, { ...headers, date: "" }, noon), expected)
      assert.deepStrictEqual(
        observations(anthropic, { ...headers, date: "" }),
        expected.map(({ limit, remaining, rounding, types }) =>
          observation(types, limit, remaining, undefined, rounding)
        )
      )
    })

    it("reads Groq's requests as those of the day", () => {
      assert.deepStrictEqual(
        rounded(observations(groq, {
          "x-ratelimit-limit-requests": "1000",
          "x-ratelimit-limit-tokens": "8000",
          "x-ratelimit-remaining-requests": "998",
          "x-ratelimit-remaining-tokens": "7914",
          "x-ratelimit-reset-requests": "2m52.8s",
          "x-ratelimit-reset-tokens": "645ms"
        })),
        [observation(["rpd"], 1000, 998, 172_800), observation(["tpm"], 8000, 7914, 645)]
      )
    })

    it("reads Mistral's headers, where a limit of 0 is a model that is not allowed", () => {
      assert.deepStrictEqual(
        observations(mistral, {
          "x-ratelimit-limit-req-minute": "188",
          "x-ratelimit-remaining-req-minute": "187",
          "x-ratelimit-limit-tokens-minute": "0",
          "x-ratelimit-remaining-tokens-minute": "0",
          "x-ratelimit-tokens-query-cost": "42"
        }),
        [{ ...observation(["rpm"], 188, 187), asOf: "response" }, observation(["tpm"], 0, 0)]
      )
    })

    it("reads OpenRouter's headers, with a reset in seconds or milliseconds of Unix time", () => {
      for (const reset of ["1795435260", "1795435260000"]) {
        assert.deepStrictEqual(
          observations(openrouter, {
            date,
            "X-RateLimit-Limit": "20",
            "X-RateLimit-Remaining": "0",
            "X-RateLimit-Reset": reset
          }),
          [observation(["rpm", "rpd"], 20, 0, 60_000)]
        )
      }
    })

    it("reads nothing where nothing is sent, or where it is not known what it means", () => {
      const everything = { "x-ratelimit-limit": "1", "x-ratelimit-remaining": "0", "x-tokenlimit-limit": "1" }
      for (const profile of [gemini, bedrock, deepseek, together]) {
        assert.deepStrictEqual(observations(profile, everything), [])
      }
      for (const profile of all) assert.deepStrictEqual(observations(profile, { "content-type": "text/html" }), [])
    })

    it("an unknown provider is read as OpenAI and as Anthropic", () => {
      assert.deepStrictEqual(
        observations(generic, {
          "x-ratelimit-limit-requests": "60",
          "x-ratelimit-remaining-requests": "59",
          "x-ratelimit-reset-requests": "1",
          "x-ratelimit-limit-tokens": "5000",
          "x-ratelimit-remaining-tokens": "-1",
          "anthropic-ratelimit-input-tokens-limit": "40000",
          "anthropic-ratelimit-input-tokens-remaining": "39000"
        }),
        [
          observation(["rpm", "rpd"], 60, 59, 1000),
          observation(["tpm", "tpd"], 5000, undefined),
          observation(["itpm"], 40_000, 39_000, undefined, 1000)
        ]
      )
    })

    it("headers can be of any make and any case", () => {
      const record = { "X-RateLimit-Limit-Requests": "500", "X-RateLimit-Remaining-Requests": "7" }
      const lower = { "x-ratelimit-limit-requests": "500", "x-ratelimit-remaining-requests": "7" }
      const expected = [observation(["rpm", "rpd"], 500, 7)]
      assert.deepStrictEqual(observations(openai, record), expected)
      assert.deepStrictEqual(observations(openai, headersOf(record)), expected)
      assert.deepStrictEqual(observations(openai, new Map(Object.entries(lower))), expected)
      assert.deepStrictEqual(observations(openai, responseOf(200, {}, record).headers), expected)
      assert.deepStrictEqual(
        observations(openai, {
          "X-RateLimit-Limit-Requests": ["500", "1"],
          "x-ratelimit-remaining-requests": ["7"],
          "x-ratelimit-reset-requests": undefined
        }),
        expected
      )
    })

    it("values that make no sense are left out, and nothing throws", () => {
      const wrong = ["", " ", "abc", "NaN", "1e9", "0x10", "12ms", "1,000", "9".repeat(400), "9".repeat(20), "∞"]
      for (const value of wrong) {
        assert.deepStrictEqual(
          observations(openai, {
            "x-ratelimit-limit-requests": value,
            "x-ratelimit-remaining-requests": value,
            "x-ratelimit-reset-requests": "1s"
          }),
          [],
          value
        )
      }
      assert.deepStrictEqual(
        observations(openai, {
          "x-ratelimit-limit-requests": "500",
          "x-ratelimit-remaining-requests": "499.0",
          "x-ratelimit-reset-requests": "-1s"
        }),
        [observation(["rpm", "rpd"], 500, 499)]
      )
      const broken = {
        get: (): string => {
          throw new Error("no headers")
        }
      }
      assert.deepStrictEqual(observations(openai, broken), [])
      const trapped = new Proxy({}, {
        get: () => {
          throw new Error("trap")
        },
        ownKeys: () => {
          throw new Error("trap")
        }
      })
      assert.deepStrictEqual(observations(openai, trapped), [])
    })

    it("never gives NaN, infinity or a time out of range, whatever the headers are", () => {
      const random = Random.make(5)
      const values = [
        "5",
        "-5",
        "0",
        "1s",
        "6m0s",
        "NaN",
        "",
        "1e3",
        "2026-11-23T12:00:00Z",
        "1795435260",
        "\ud800",
        "9".repeat(15)
      ]
      for (let count = 0; count < 3000; count++) {
        for (const profile of all) {
          const headers = Object.fromEntries(
            profile.headers.flatMap((rule) =>
              [rule.limit, rule.remaining, rule.reset].flatMap((name) =>
                name === undefined || random.chance(0.2) ? [] : [[name, random.pick(values)]]
              )
            )
          )
          for (const { limit, remaining, reset, rounding } of observations(profile, headers, noon)) {
            assert.isTrue(limit === undefined || (Number.isSafeInteger(limit) && limit >= 0))
            assert.isTrue(remaining === undefined || Number.isSafeInteger(remaining))
            assert.isTrue(limit !== undefined || remaining !== undefined)
            assert.isTrue(reset === undefined || (reset >= 0 && reset <= 7 * 86_400_000))
            assert.isTrue(rounding >= 1)
          }
        }
      }
    })
  })

  describe("classify", () => {
    for (const { error, expected, name, profile } of cases) {
      it(`understands ${name}`, () => {
        assert.isUndefined(difference(classify(profile, error, noon), expected), name)
      })
    }

    it("the generic profile understands what the providers' own do", () => {
      // What means something on one provider only.
      const own = new Set([
        "Azure, a status 200 that says when to come back, and nothing else",
        "DeepSeek, too many at one time",
        "Mistral, a model that is not allowed"
      ])
      const others = cases.filter(({ error, expected, name }) =>
        !own.has(name) && classify(generic, error, noon)?.kind !== expected?.kind
      )
      assert.deepStrictEqual(others.map(({ name }) => name), [])
    })

    it("understands errors of OpenAI's SDK", () => {
      const make = (status: number, body: object, headers: Record<string, string> = {}) =>
        OpenAI.APIError.generate(status, body, undefined, headersOf(headers))
      assert.isUndefined(
        difference(classify(openai, make(429, tokensPerMinute, { "retry-after-ms": "11054" })), {
          kind: "rate",
          types: ["tpm"],
          limit: 30_000,
          used: 22_999,
          requested: 12_528,
          retryAfter: 11_054,
          status: 429,
          message: tokensPerMinute.error.message
        }),
        "rate"
      )
      assert.isUndefined(
        difference(classify(openai, make(429, tooLarge, { "x-should-retry": "false" })), { kind: "tooLarge" }),
        "too large"
      )
      assert.isUndefined(
        difference(classify(openai, make(429, openaiError("insufficient_quota", "x"))), { kind: "quota" }),
        "quota"
      )
      assert.isUndefined(
        difference(classify(openai, make(503, openaiError(null, "x"))), { kind: "overload", status: 503 }),
        "overload"
      )
      assert.isUndefined(difference(classify(openai, make(401, openaiError(null, "x"))), { kind: "auth" }), "auth")
      assert.isUndefined(
        difference(classify(openai, make(400, openaiError(null, "invalid_request_error"))), undefined),
        "bad request"
      )
      // As the SDK throws it in the middle of a stream.
      const inStream = new OpenAI.APIError(undefined, tokensPerMinute.error, undefined, headersOf({}))
      assert.isUndefined(
        difference(classify(openai, inStream), { kind: "rate", types: ["tpm"], status: undefined }),
        "in stream"
      )
      assert.isUndefined(
        difference(classify(openai, new OpenAI.APIConnectionError({ message: "no" })), { kind: "transient" }),
        "connection"
      )
      assert.isUndefined(
        difference(classify(openai, new OpenAI.APIConnectionTimeoutError()), {
          kind: "transient",
          message: "Request timed out."
        }),
        "timeout"
      )
      assert.isUndefined(difference(classify(openai, new OpenAI.APIUserAbortError()), undefined), "aborted by the user")
    })

    it("understands errors of Anthropic's SDK", () => {
      const make = (status: number, body: object, headers: Record<string, string> = {}) =>
        Anthropic.APIError.generate(status, body, undefined, headersOf(headers))
      assert.isUndefined(
        difference(classify(anthropic, make(429, inputPerMinute, { "retry-after": "11" })), {
          kind: "rate",
          types: ["itpm"],
          limit: 50_000,
          retryAfter: 11_000,
          status: 429,
          message: inputPerMinute.error.message
        }),
        "rate"
      )
      const cap = anthropicError("rate_limit_error", "No.", { error_code: "enforced_spend_limit_reached" })
      assert.isUndefined(difference(classify(anthropic, make(429, cap)), { kind: "quota" }), "spend cap")
      assert.isUndefined(
        difference(classify(anthropic, make(529, anthropicError("overloaded_error", "Overloaded"))), {
          kind: "overload",
          status: 529,
          message: "Overloaded"
        }),
        "overload"
      )
      const inStream = new Anthropic.APIError(undefined, anthropicError("overloaded_error"), undefined, headersOf({}))
      assert.isUndefined(
        difference(classify(anthropic, inStream), { kind: "overload", status: undefined }),
        "in stream"
      )
      assert.isUndefined(
        difference(classify(anthropic, new Anthropic.APIConnectionError({ message: "no" })), {
          kind: "transient"
        }),
        "connection"
      )
      assert.isUndefined(
        difference(classify(anthropic, new Anthropic.APIConnectionTimeoutError()), { kind: "transient" }),
        "timeout"
      )
      assert.isUndefined(
        difference(classify(anthropic, new Anthropic.APIUserAbortError()), undefined),
        "aborted by the user"
      )
    })

    it.effect("understands errors of Effect's HTTP client", () =>
      Effect.gen(function*() {
        const refused = yield* failureOf(
          HttpClientResponse.filterStatusOk(responseOf(429, tokensPerMinute, { "retry-after": "12" }))
        )
        // The body of a response is not read by then: its status and headers tell.
        assert.isUndefined(
          difference(classify(openai, refused), { kind: "rate", types: [], retryAfter: 12_000, status: 429 }),
          "status"
        )
        const request = HttpClientRequest.post("http://127.0.0.1/")
        const transport = new HttpClientError.HttpClientError({
          reason: new HttpClientError.TransportError({ request, description: "Connection refused" })
        })
        assert.isUndefined(
          difference(classify(openai, transport), { kind: "transient", status: undefined }),
          "transport"
        )
        const url = new HttpClientError.HttpClientError({
          reason: new HttpClientError.InvalidUrlError({ request, description: "no url" })
        })
        assert.isUndefined(difference(classify(openai, url), undefined), "an address that is none")
      }))

    it("understands errors of Effect's AI packages", () => {
      const make = (reason: AiError.AiErrorReason) => AiError.make({ module: "OpenAi", method: "generateText", reason })
      const http = {
        response: { status: 429, headers: { "retry-after": "12" } },
        body: JSON.stringify(tokensPerMinute)
      }
      assert.isUndefined(
        difference(classify(openai, make(new AiError.RateLimitError({ http }))), {
          kind: "rate",
          types: ["tpm"],
          limit: 30_000,
          retryAfter: 12_000,
          status: 429,
          message: tokensPerMinute.error.message
        }),
        "with a body"
      )
      assert.isUndefined(
        difference(classify(openai, make(new AiError.RateLimitError({ retryAfter: Duration.seconds(3) }))), {
          kind: "rate",
          retryAfter: 3000
        }),
        "with a time only"
      )
      assert.isUndefined(
        difference(classify(openai, make(new AiError.QuotaExhaustedError({}))), { kind: "quota" }),
        "quota"
      )
      // Their own reading of a 429 overlooks what the body says.
      const spent = { ...http, body: JSON.stringify(openaiError("project_spend_limit_exceeded", "x")) }
      assert.isUndefined(
        difference(classify(openai, make(new AiError.RateLimitError({ http: spent }))), { kind: "quota" }),
        "spend limit"
      )
      assert.isUndefined(
        difference(classify(openai, make(new AiError.AuthenticationError({ kind: "InvalidKey" }))), { kind: "auth" }),
        "auth"
      )
      assert.isUndefined(
        difference(classify(openai, make(new AiError.InternalProviderError({ description: "x" }))), {
          kind: "transient"
        }),
        "internal"
      )
      const network = (reason: "TransportError" | "EncodeError") =>
        make(new AiError.NetworkError({ reason, method: "POST", url: "http://127.0.0.1/" }))
      assert.isUndefined(difference(classify(openai, network("TransportError")), { kind: "transient" }), "network")
      assert.isUndefined(difference(classify(openai, network("EncodeError")), undefined), "encoding")
      assert.isUndefined(
        difference(classify(openai, make(new AiError.InvalidRequestError({}))), undefined),
        "invalid request"
      )
    })

    it("understands failures of fetch", () => {
      const reset = Object.assign(new Error("read ECONNRESET"), { code: "ECONNRESET" })
      assert.isUndefined(
        difference(classify(openai, new TypeError("fetch failed", { cause: reset })), { kind: "transient" }),
        "reset"
      )
      assert.isUndefined(
        difference(classify(openai, new TypeError("fetch failed")), { kind: "transient" }),
        "fetch failed"
      )
      assert.isUndefined(
        difference(classify(openai, new TypeError("terminated")), { kind: "transient" }),
        "body cut short"
      )
      assert.isUndefined(difference(classify(openai, new TypeError("x is not a function")), undefined), "a bug")
      const response = new Response("<html>Bad gateway</html>", { status: 502, headers: { "retry-after": "1" } })
      assert.isUndefined(
        difference(classify(openai, response), { kind: "transient", status: 502, retryAfter: 1000 }),
        "response"
      )
      assert.isUndefined(difference(classify(openai, new Response("ok")), undefined), "a good response")
    })

    it("finds the provider's failure at the end of a chain of causes", () => {
      const sdk = OpenAI.APIError.generate(429, tokensPerMinute, undefined, headersOf({ "retry-after": "12" }))
      class Domain extends Error {
        readonly _tag = "Domain"
        readonly status = "open"
        readonly reason = "the weather"
      }
      const wrapped = new Domain("could not answer", { cause: new Error("layer", { cause: sdk }) })
      assert.isUndefined(
        difference(classify(openai, wrapped), { kind: "rate", types: ["tpm"], retryAfter: 12_000, status: 429 }),
        "wrapped"
      )
      assert.isUndefined(
        difference(classify(openai, { _tag: "AnswerFailed", error: sdk }), { kind: "rate", status: 429 }),
        "in a field"
      )
      const retried = Object.assign(new Error("Failed after 3 attempts"), {
        reason: "maxRetriesExceeded",
        errors: [sdk, sdk],
        lastError: {
          statusCode: 429,
          responseHeaders: { "retry-after": "12" },
          responseBody: JSON.stringify(tokensPerMinute)
        }
      })
      assert.isUndefined(
        difference(classify(openai, retried), { kind: "rate", types: ["tpm"], retryAfter: 12_000 }),
        "retried"
      )
      assert.isUndefined(difference(classify(openai, new AggregateError([sdk])), { kind: "rate" }), "aggregate")
    })

    it("statuses decide where nothing else does", () => {
      const kinds = {
        200: undefined,
        400: undefined,
        401: "auth",
        402: "quota",
        403: "auth",
        404: undefined,
        408: "transient",
        409: undefined,
        413: "tooLarge",
        422: undefined,
        429: "rate",
        500: "transient",
        501: undefined,
        502: "transient",
        503: "overload",
        504: "transient",
        524: "transient",
        529: "overload"
      }
      for (const profile of all) {
        for (const [status, kind] of Object.entries(kinds)) {
          const found = classify(profile, { status: Number(status), headers: {} })
          assert.strictEqual(found?.kind, kind, `${profile.name} ${status}`)
          assert.strictEqual(found?.status, kind === undefined ? undefined : Number(status))
        }
      }
    })

    it("what is not the provider's is nobody's business", () => {
      const foreign: ReadonlyArray<unknown> = [
        undefined,
        null,
        0,
        429,
        "",
        "429",
        "rate limit exceeded, retry after 5s",
        {},
        [],
        [429],
        Symbol("429"),
        429n,
        () => 429,
        new Error("Limit 5, Used 4, Requested 3. Please try again in 5s"),
        new Error("429 Too Many Requests"),
        { _tag: "RateLimitError", message: "mine" },
        { _tag: "TransportError" },
        { status: "429 but not really" },
        { status: 42 },
        { status: 429.5 },
        { status: Number.NaN },
        { code: "ENOENT", message: "no such file" },
        { code: 7 },
        { message: "Connection error." },
        { type: "tokens" },
        { headers: { "retry-after": "5" } },
        new Map([["status", 429]])
      ]
      for (const profile of all) {
        for (const error of foreign) assert.isUndefined(classify(profile, error), `${profile.name} ${String(error)}`)
      }
    })

    it("getters that throw, cycles, deep chains and broken proxies are survived", () => {
      const trapped = {
        status: 429,
        get headers(): never {
          throw new Error("no")
        },
        get message(): never {
          throw new Error("no")
        }
      }
      assert.isUndefined(difference(classify(openai, trapped), { kind: "rate", message: "HTTP status 429" }), "getters")
      const cycle: { status: number; cause?: unknown; error?: unknown } = { status: 429 }
      cycle.cause = cycle
      cycle.error = { cause: cycle }
      assert.isUndefined(difference(classify(openai, cycle), { kind: "rate" }), "cycle")
      const hub: Record<string, unknown> = {}
      for (const name of ["error", "cause", "reason", "response", "body"]) hub[name] = hub
      hub["data"] = { data: { data: { data: { data: { status: 429 } } } } }
      assert.isUndefined(difference(classify(openai, hub), { kind: "rate" }), "a way out of a cycle")
      const endlessly = (): object =>
        new Proxy({}, { get: (_, key) => typeof key === "string" ? endlessly() : undefined })
      assert.isUndefined(classify(openai, endlessly()))
      let deep: unknown = { status: 429 }
      for (let depth = 0; depth < 100_000; depth++) deep = { cause: deep }
      assert.isUndefined(classify(openai, deep))
      const refusing = new Proxy({}, {
        get: () => {
          throw new Error("trap")
        },
        has: () => {
          throw new Error("trap")
        },
        ownKeys: () => {
          throw new Error("trap")
        },
        getPrototypeOf: () => {
          throw new Error("trap")
        }
      })
      assert.isUndefined(classify(openai, refusing))
      assert.isUndefined(
        difference(classify(openai, { status: 429, cause: refusing }), { kind: "rate" }),
        "proxy as a cause"
      )
      const { proxy, revoke } = Proxy.revocable({}, {})
      revoke()
      assert.isUndefined(classify(openai, proxy))
      const endless: object = new Proxy({}, { get: (_, key) => typeof key === "string" ? endless : undefined })
      assert.isUndefined(classify(openai, endless))
      const wide = { status: 429, errors: Array.from({ length: 100_000 }, () => ({ status: 401 })) }
      assert.isUndefined(difference(classify(openai, wide), { kind: "rate" }), "wide")
    })

    it("never throws and gives only numbers that make sense, whatever it is given", () => {
      const random = Random.make(7)
      const keys = [
        "status",
        "code",
        "type",
        "message",
        "headers",
        "error",
        "cause",
        "body",
        "details",
        "retryDelay",
        "quotaId",
        "quotaValue",
        "$metadata",
        "httpStatusCode",
        "name",
        "retry_after"
      ]
      const texts = [
        "429",
        "rate_limit_exceeded",
        "Limit 5, Used x, Requested -3",
        "try again in 9h9m",
        "{\"error\":{\"code\":429}}",
        "{",
        "\ud800",
        "",
        "ThrottlingException",
        "PerDay"
      ]
      const value = (depth: number): unknown => {
        const kind = random.int(0, depth > 3 ? 4 : 7)
        if (kind === 0) return random.pick(texts)
        if (kind === 1) return random.pick([429, 500, 0, -1, Number.NaN, Number.POSITIVE_INFINITY, 1e300, 4.29])
        if (kind === 2) return random.pick([null, undefined, true, 5n, Symbol("s"), () => 1])
        if (kind === 3) return String.fromCharCode(random.int(0, 0xffff), random.int(0, 0xffff), random.int(0, 0xffff))
        if (kind === 4) {
          return { "retry-after": random.pick(texts), "x-should-retry": random.pick(["true", "false", ""]) }
        }
        if (kind === 5) return Array.from({ length: random.int(0, 3) }, () => value(depth + 1))
        return Object.fromEntries(
          Array.from({ length: random.int(0, 6) }, () => [random.pick(keys), value(depth + 1)])
        )
      }
      let understood = 0
      for (let count = 0; count < 20_000; count++) {
        const refusal = classify(random.pick(all), value(0), noon)
        if (refusal === undefined) continue
        understood++
        const { limit, message, requested, retryAfter, used } = refusal
        for (const number of [limit, requested, used]) {
          assert.isTrue(number === undefined || (Number.isSafeInteger(number) && number >= 0))
        }
        assert.isTrue(retryAfter === undefined || (retryAfter >= 0 && retryAfter <= 7 * 86_400_000))
        assert.isAtMost(message.length, 300)
      }
      assert.isAbove(understood, 300)
    })

    it("shortens the provider's words to 300 characters, in one line", () => {
      const long = classify(openai, {
        status: 429,
        body: { error: { message: `A\n\n  line ${"😀".repeat(100_000)}` } }
      })
      assert.isAtMost(long?.message.length ?? 0, 300)
      assert.isTrue(long?.message.startsWith("A line 😀"))
      assert.isTrue(long?.message.endsWith("😀…"))
      assert.strictEqual(classify(openai, { status: 429, message: "short" })?.message, "short")
    })

    it("a body of more than 100,000 characters is not parsed", () => {
      const body = (length: number) =>
        JSON.stringify({ error: { code: "insufficient_quota" }, pad: " ".repeat(length) })
      assert.strictEqual(classify(openai, { status: 429, body: body(99_000) })?.kind, "quota")
      assert.strictEqual(classify(openai, { status: 429, body: body(100_000) })?.kind, "rate")
    })

    it("a megabyte of body costs no more than a kilobyte", () => {
      for (const piece of ["{", "[", "a", "Limit ", "try again in ", "of 1", " ", "used "]) {
        const text = piece.repeat(1_000_000 / piece.length)
        const start = performance.now()
        assert.strictEqual(classify(generic, { status: 429, message: text, body: text })?.kind, "rate")
        assert.isBelow(performance.now() - start, 2000, piece)
      }
    })
  })

  describe("profiles", () => {
    it("each says what it is built on, and where that is from", () => {
      for (const profile of all) {
        assert.isAbove(profile.facts.length, 0, profile.name)
        for (const fact of profile.facts) {
          assert.isAbove(fact.says.length, 3)
          if (fact.basis !== "unverified") assert.isString(fact.source, `${profile.name}: ${fact.says}`)
        }
      }
      assert.strictEqual(new Set(all.map(({ name }) => name)).size, all.length)
    })

    it("each can be changed by spreading it", () => {
      const patient: ProviderProfile.ProviderProfile = {
        ...openai,
        margin: "1 second",
        errors: [{ codes: ["Over_Budget"], kind: "quota" }, ...openai.errors]
      }
      assert.isUndefined(
        difference(classify(patient, { status: 429, body: openaiError("over_budget", "x") }), { kind: "quota" }),
        "own rule"
      )
      assert.isUndefined(
        difference(classify(openai, { status: 429, body: openaiError("over_budget", "x") }), { kind: "rate" }),
        "without it"
      )
    })

    it("a profile is made from what differs from the generic one", () => {
      assert.deepStrictEqual(ProviderProfile.make({ name: "mine" }), { ...generic, name: "mine", facts: [] })
      const mine = ProviderProfile.make({
        name: "mine",
        margin: "2 seconds",
        limits: { rpm: { algorithm: "tokenBucket" } },
        headers: [{
          types: ["rpm"],
          limit: "Quota-Limit",
          remaining: "quota-remaining",
          reset: "quota-reset-ms",
          resetFormat: "millis",
          rounding: 10
        }],
        retryAfter: [{ header: "Wait-Ms", format: "millis" }],
        errors: [
          { status: [420], headers: { "X-Calm": "YES" }, kind: "ramp", types: ["rpm"] },
          { status: [420], headers: { "x-calm": true }, kind: "overload" },
          { kind: "auth" }
        ],
        limitNames: [{ codes: ["CALLS"], types: ["rpd"] }]
      })
      assert.deepStrictEqual(mine.limits, { ...generic.limits, rpm: { algorithm: "tokenBucket" } })
      assert.strictEqual(mine.margin, "2 seconds")
      assert.deepStrictEqual(
        observations(mine, { "quota-limit": "100", "quota-remaining": "30", "quota-reset-ms": "42" }),
        [observation(["rpm"], 100, 30, 42, 10)]
      )
      assert.isUndefined(
        difference(classify(mine, { status: 420, headers: { "x-calm": "yes", "wait-ms": "7" } }), {
          kind: "ramp",
          types: ["rpm"],
          retryAfter: 7
        }),
        "a header's value"
      )
      assert.isUndefined(
        difference(classify(mine, { status: 420, headers: { "x-calm": "no" }, code: "calls" }), {
          kind: "overload",
          types: []
        }),
        "a header's presence"
      )
      assert.isUndefined(
        difference(classify(mine, { status: 420 }), undefined),
        "a rule without conditions never holds"
      )
    })

    it("the rules for limits are those of the providers", () => {
      assert.deepStrictEqual(openai.limits.tpm?.charging, { output: "maximum", combine: "maximum", refund: false })
      assert.isTrue(openai.limits.rpm?.coldStart)
      for (const profile of [openai, groq]) {
        for (const type of ["rpm", "rpd", "tpm", "tpd"] as const) {
          assert.strictEqual(profile.limits[type]?.algorithm, "tokenBucket")
        }
        assert.isUndefined(profile.limits.rpd?.coldStart)
        assert.isUndefined(profile.limits.tpd?.coldStart)
      }
      assert.strictEqual(azure.limits.rpm?.quantum, "10 seconds")
      assert.strictEqual(anthropic.limits.otpm?.chargedAt, "production")
      assert.isFalse(anthropic.limits.itpm?.charging?.cachedInput)
      assert.strictEqual(gemini.limits.tpm?.charging?.outputWeight, 0)
      assert.strictEqual(gemini.limits.rpd?.timeZone, "America/Los_Angeles")
      assert.strictEqual(mistral.limits.tpm?.chargedAt, "completion")
      assert.strictEqual(bedrock.limits.tpm?.charging?.outputWeight, 5)
      assert.deepStrictEqual(Object.keys(deepseek.limits), ["concurrent"])
      assert.strictEqual(openrouter.limits.rpd?.timeZone, "UTC")
      assert.strictEqual(together.limits.rpm?.quantum, "1 second")
      assert.deepStrictEqual(generic.limits.tpm, {
        algorithm: "paced",
        coldStart: true,
        chargedAt: "completion",
        charging: { output: "maximum", combine: "sum", refund: false }
      })
    })
  })
})
