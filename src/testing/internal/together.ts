/** The headers and errors of Together around OpenAI's requests. Its limits may be dynamic. */
import { usual } from "./faults.ts"
import type { Quota, Refusal } from "./ledger.ts"
import * as openai from "./openai.ts"
import * as wire from "./wire.ts"

/** Limits are told as requests or tokens a second. */
const aSecond = ({ limit, period }: Quota): string => String(Math.max(1, Math.round(limit * 1000 / period)))

const rateLimitHeaders = (situation: wire.Situation): Record<string, string> => {
  const requests = wire.quotaOf(situation, "requests")
  const tokens = wire.quotaOf(situation, "tokens")
  return {
    ...(requests && {
      "x-ratelimit-limit": aSecond(requests),
      "x-ratelimit-remaining": wire.remaining(requests),
      "x-ratelimit-reset": String(wire.seconds(requests.reset)),
      ...(requests.algorithm === "dynamic" ? { "x-ratelimit-limit-dynamic": aSecond(requests) } : {})
    }),
    ...(tokens && {
      "x-tokenlimit-limit": aSecond(tokens),
      "x-tokenlimit-remaining": wire.remaining(tokens)
    })
  }
}

const errorOf = (refusal: Refusal): wire.WireError => {
  const { algorithm, isRamp, tooLarge } = refusal
  const kind = wire.counted(refusal) === "requests" ? "request" : "token"
  return {
    status: 429,
    type: isRamp || algorithm === "dynamic" ? `dynamic_${kind}_limited` : `${kind}_limited`,
    code: null,
    message: `Too many ${kind}s for this model: you have reached the rate limit. Slow down and retry.`,
    isRetryable: !tooLarge
  }
}

export const dialect: wire.Dialect = {
  headers: rateLimitHeaders,
  tellsRamps: true,
  refusal: (situation, refusal) => {
    const error = errorOf(refusal)
    return {
      error,
      status: 429,
      headers: { ...wire.json, ...rateLimitHeaders(situation) },
      body: JSON.stringify(openai.errorBody(error))
    }
  },
  error: (situation, error) => ({
    status: error.status,
    headers: { ...wire.json, ...rateLimitHeaders(situation) },
    body: JSON.stringify(openai.errorBody(error))
  }),
  errors: {
    slow_down: { ...usual.slow_down, type: "dynamic_request_limited", code: null }
  }
}
