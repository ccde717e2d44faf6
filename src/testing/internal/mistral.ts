/** The headers and errors of Mistral: no reset and no Retry-After, and errors without an envelope. */
import { usual } from "./faults.ts"
import * as wire from "./wire.ts"

const rateLimitHeaders = (situation: wire.Situation): Record<string, string> => {
  const requests = wire.quotaOf(situation, "requests")
  const tokens = wire.quotaOf(situation, "tokens")
  return {
    ...(requests && {
      "x-ratelimit-limit-req-minute": wire.whole(requests.limit),
      "x-ratelimit-remaining-req-minute": wire.remaining(requests)
    }),
    ...(tokens && {
      "x-ratelimit-limit-tokens-minute": wire.whole(tokens.limit),
      "x-ratelimit-remaining-tokens-minute": wire.remaining(tokens)
    }),
    "x-ratelimit-tokens-query-cost": String(situation.cost)
  }
}

const body = (error: wire.WireError): string =>
  error.status === 401 ? JSON.stringify({ detail: "Unauthorized" }) : JSON.stringify({
    object: "error",
    message: error.message,
    type: error.type,
    param: null,
    code: error.code,
    raw_status_code: error.status
  })

const limited: wire.WireError = {
  ...usual["429"],
  type: "rate_limited",
  code: "1300",
  message: "Rate limit exceeded"
}

export const dialect: wire.Dialect = {
  headers: rateLimitHeaders,
  refusal: (situation, refusal) => ({
    error: { ...limited, isRetryable: !refusal.tooLarge },
    status: 429,
    headers: { ...wire.json, ...rateLimitHeaders(situation) },
    body: body(limited)
  }),
  error: (situation, error) => ({
    status: error.status,
    headers: { ...wire.json, ...rateLimitHeaders(situation) },
    body: body(error)
  }),
  errors: {
    "429": limited,
    slow_down: {
      ...limited,
      type: "service_tier_capacity_exceeded",
      code: "3505",
      message: "Service tier capacity exceeded for this model."
    }
  }
}
