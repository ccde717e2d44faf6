/** Rules that hold for more than one provider. The words are matched in lower case. */
import type * as ProviderProfile from "../../ProviderProfile.ts"
import { connectionCode } from "./evidence.ts"

type ErrorRules = ReadonlyArray<ProviderProfile.ErrorRule>

/** Codes of connections that could not be made, or broke. */
const connectionCodes = [
  connectionCode,
  "econnreset",
  "econnrefused",
  "econnaborted",
  "etimedout",
  "epipe",
  "enotfound",
  "eai_again",
  "ehostunreach",
  "enetunreach",
  "und_err_connect_timeout",
  "und_err_headers_timeout",
  "und_err_body_timeout",
  "und_err_socket"
]

/** What is left when no code or message decides: the status, the connection, or what Effect's AI packages have found. */
export const fallback: ErrorRules = [
  { status: [413], kind: "tooLarge" },
  { status: [401, 403], kind: "auth" },
  { status: [402], kind: "quota" },
  { status: [429], kind: "rate" },
  { status: [503, 529], kind: "overload" },
  // 520 to 530 are those of a proxy in front of the provider.
  { status: [408, 500, 502, 504, 520, 521, 522, 523, 524, 525, 526, 527, 530], kind: "transient" },
  { codes: connectionCodes, kind: "transient" },
  { codes: ["effect_ratelimiterror"], kind: "rate" },
  { codes: ["effect_quotaexhaustederror"], kind: "quota" },
  { codes: ["effect_authenticationerror"], kind: "auth" },
  { codes: ["effect_internalprovidererror"], kind: "transient" }
]

export const limitNames: ReadonlyArray<ProviderProfile.LimitName> = [
  { includes: ["input tokens per min"], types: ["itpm"] },
  { includes: ["output tokens per min"], types: ["otpm"] },
  { includes: ["tokens per min"], types: ["tpm"] },
  { includes: ["(tpm)"], types: ["tpm"] },
  { includes: ["tokens per day"], types: ["tpd"] },
  { includes: ["(tpd)"], types: ["tpd"] },
  { includes: ["requests per min"], types: ["rpm"] },
  { includes: ["(rpm)"], types: ["rpm"] },
  { includes: ["requests per day"], types: ["rpd"] },
  { includes: ["(rpd)"], types: ["rpd"] },
  { includes: ["concurrent requests"], types: ["concurrent"] },
  { codes: ["tokens"], types: ["tpm", "tpd"] },
  { codes: ["requests"], types: ["rpm", "rpd"] }
]

/** An exact form of Retry-After goes before the one that is rounded to seconds. */
export const retryAfter: ReadonlyArray<ProviderProfile.RetryAfterRule> = [
  { header: "retry-after-ms", format: "millis" },
  { header: "retry-after", format: "any" }
]

export const openai: ErrorRules = [
  { status: [413], kind: "tooLarge" },
  { messages: ["request too large"], status: [400, 429], kind: "tooLarge" },
  { messages: ["request too large"], codes: ["rate_limit_exceeded"], kind: "tooLarge" },
  {
    codes: [
      "insufficient_quota",
      "credit_balance_exhausted",
      "organization_spend_limit_exceeded",
      "project_spend_limit_exceeded",
      "organization_usage_limit_exceeded",
      "billing_hard_limit_reached",
      "billing_not_active"
    ],
    kind: "quota"
  },
  { codes: ["slow_down"], kind: "ramp" },
  { codes: ["server_is_overloaded", "service_unavailable_error"], kind: "overload" },
  { status: [429], messages: ["resource unavailable"], kind: "overload" },
  { codes: ["rate_limit_exceeded"], kind: "rate" },
  { codes: ["server_error"], kind: "transient" }
]

export const azure: ErrorRules = [
  { status: [429, 503], messages: ["system is experiencing high demand"], kind: "overload" }
]

const anthropicSpending = ["you have reached your specified api usage limits", "your credit balance is too low"]

export const anthropic: ErrorRules = [
  { codes: ["enforced_spend_limit_reached", "billing_error"], kind: "quota" },
  { messages: anthropicSpending, status: [400, 429], kind: "quota" },
  { messages: anthropicSpending, codes: ["invalid_request_error", "rate_limit_error"], kind: "quota" },
  { codes: ["request_too_large"], kind: "tooLarge" },
  { codes: ["overloaded_error"], kind: "overload" },
  { codes: ["rate_limit_error"], messages: ["usage increase rate", "acceleration limit"], kind: "ramp" },
  { codes: ["rate_limit_error"], kind: "rate" },
  { codes: ["authentication_error", "permission_error"], kind: "auth" },
  { codes: ["api_error", "timeout_error"], kind: "transient" }
]

export const gemini: ErrorRules = [
  // Spending has the code of a rate limit, too.
  { status: [402], codes: ["resource_exhausted"], kind: "quota" },
  { status: [429], messages: ["monthly spending cap", "prepayment credits are depleted"], kind: "quota" },
  { status: [429], messages: ["limit: 0,"], kind: "auth" },
  {
    status: [429],
    messages: ["resource exhausted, please try again", "resource exhausted. please try again"],
    kind: "overload"
  },
  { codes: ["resource_exhausted"], kind: "rate" }
]

export const geminiLimitNames: ReadonlyArray<ProviderProfile.LimitName> = [
  { includes: ["perday", "request"], types: ["rpd"], ignoresHint: true },
  { includes: ["perday", "token"], types: ["tpd"], ignoresHint: true },
  { includes: ["perminute", "request"], types: ["rpm"] },
  { includes: ["perminute", "token"], types: ["tpm"] },
  { includes: ["quota exceeded for metric", "requests,"], types: ["rpm", "rpd"] },
  { includes: ["quota exceeded for metric", "token_count,"], types: ["tpm"] }
]

export const groq: ErrorRules = [
  { status: [498], kind: "overload" }
]

export const mistral: ErrorRules = [
  { codes: ["service_tier_capacity_exceeded"], kind: "overload" },
  // The numbers are too short to mean anything alone.
  { status: [429], codes: ["3505"], kind: "overload" },
  { codes: ["rate_limited"], kind: "rate" }
]

export const bedrock: ErrorRules = [
  { codes: ["throttlingexception"], kind: "rate" },
  { codes: ["serviceunavailableexception"], kind: "overload" },
  { codes: ["internalserverexception", "modelstreamerrorexception", "modeltimeoutexception"], kind: "transient" }
]

export const bedrockLimitNames: ReadonlyArray<ProviderProfile.LimitName> = [
  { includes: ["too many tokens per day"], types: ["tpd"] },
  { includes: ["too many tokens"], types: ["tpm"] },
  { includes: ["too many requests"], types: ["rpm"] }
]

export const deepseek: ErrorRules = [
  { codes: ["insufficient_system_resource"], kind: "overload" }
]

export const openrouter: ErrorRules = [
  { status: [402], codes: ["in_flight_budget_exhausted"], kind: "transient" },
  { status: [402], codes: ["weight_exceeds_budget"], kind: "tooLarge" }
]

export const together: ErrorRules = [
  { codes: ["dynamic_request_limited"], kind: "ramp", types: ["rpm"] },
  { codes: ["dynamic_token_limited"], kind: "ramp", types: ["tpm"] },
  { status: [429], messages: ["dynamic_request_limited"], kind: "ramp", types: ["rpm"] },
  { status: [429], messages: ["dynamic_token_limited"], kind: "ramp", types: ["tpm"] }
]
