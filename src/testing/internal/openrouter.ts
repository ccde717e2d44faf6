/** The headers and errors of OpenRouter around OpenAI's requests: headers only on its own refusals. */
import type { Refusal } from "./ledger.ts"
import * as wire from "./wire.ts"

const body = (error: wire.WireError, metadata: object): string =>
  JSON.stringify({ error: { code: error.status, message: error.message, metadata } })

/** The reset is in milliseconds of Unix time. */
const rateLimitHeaders = (situation: wire.Situation, refusal: Refusal): Record<string, string> => {
  const quota = situation.quotas.find(({ dimension, period }) =>
    dimension === refusal.dimension && period === refusal.period
  )
  return {
    "X-RateLimit-Limit": wire.whole(refusal.limit),
    "X-RateLimit-Remaining": quota === undefined ? "0" : wire.remaining(quota),
    ...(refusal.retryAfter === undefined
      ? {}
      : { "X-RateLimit-Reset": String(Math.ceil(situation.wall + refusal.retryAfter)) })
  }
}

export const dialect: wire.Dialect = {
  streamFailure: ({ created, id, model }, { message, status }) =>
    wire.data({
      id: `gen-${id}`,
      object: "chat.completion.chunk",
      created,
      model,
      provider: "Upstream",
      error: { code: status, message },
      choices: [{ index: 0, delta: { content: "" }, finish_reason: "error" }]
    }),
  headers: () => ({}),
  refusal: (situation, refusal) => {
    const error = {
      status: 429,
      type: "rate_limit_exceeded",
      code: "rate_limit_exceeded",
      message: "Rate limit exceeded",
      isRetryable: !refusal.tooLarge
    }
    return {
      error,
      status: 429,
      headers: { ...wire.json, ...rateLimitHeaders(situation, refusal) },
      body: body(error, { error_type: "rate_limit_exceeded" })
    }
  },
  error: (_, error) => ({
    status: error.status,
    headers: wire.json,
    body: body(
      error,
      error.status === 402
        ? { error_type: "payment_required", reason: error.code }
        : error.status === 429
        ? { error_type: "rate_limit_exceeded", provider_code: 429, provider_name: "Upstream" }
        : { error_type: error.type }
    )
  })
}
