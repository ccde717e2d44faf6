/** The headers and errors of Azure around OpenAI's requests. */
import { usual } from "./faults.ts"
import type { Quota } from "./ledger.ts"
import * as openai from "./openai.ts"
import * as wire from "./wire.ts"

const identity = ({ id }: wire.Situation): Record<string, string> => ({
  "apim-request-id": wire.uuid(id),
  "x-ms-region": "East US",
  "x-request-id": wire.uuid(id + 1)
})

/** A limit that is evaluated in a quantum is told as what one quantum allows. */
const told = ({ limit, period, quantum }: Quota): string => wire.whole(limit * (quantum ?? period) / period)

const rateLimitHeaders = (situation: wire.Situation): Record<string, string> => {
  const headers: Record<string, string> = {}
  for (const dimension of ["requests", "tokens"] as const) {
    const quota = wire.quotaOf(situation, dimension)
    if (quota === undefined) continue
    headers[`x-ratelimit-limit-${dimension}`] = told(quota)
    // Negative after a correction, as it is there.
    headers[`x-ratelimit-remaining-${dimension}`] = String(Math.floor(quota.remaining + 1e-6))
    headers[`x-ratelimit-reset-${dimension}`] = String(wire.seconds(quota.reset))
  }
  return headers
}

const body = (error: wire.WireError): string =>
  JSON.stringify({ error: { code: error.code ?? String(error.status), message: error.message } })

export const dialect: wire.Dialect = {
  headers: (situation) => ({ ...identity(situation), ...rateLimitHeaders(situation) }),
  refusal: (situation, refusal) => {
    const wait = refusal.retryAfter === undefined
      ? ""
      : ` Please retry after ${wire.seconds(refusal.retryAfter)} seconds.`
    const error = {
      status: 429,
      type: wire.counted(refusal),
      code: "429",
      message: `Requests to this deployment have been limited. Rate limit is exceeded on ${refusal.dimension}.${wait}`,
      isRetryable: !refusal.tooLarge
    }
    return {
      error: { ...error, code: "rate_limit_exceeded" },
      status: 429,
      headers: {
        ...wire.json,
        ...identity(situation),
        ...rateLimitHeaders(situation),
        ...openai.refusalHeaders(refusal)
      },
      body: body(error)
    }
  },
  error: (situation, error) => ({
    status: error.status,
    headers: { ...wire.json, ...identity(situation) },
    body: body(error)
  }),
  errors: {
    "401": { ...usual["401"], code: "401", message: "Access denied: the key or the endpoint is not the right one." },
    "429": { ...usual["429"], code: "429", message: "Rate limit is exceeded. Try again later." },
    slow_down: {
      ...usual.slow_down,
      code: "429",
      message: "System is experiencing high demand and cannot process your request. Please retry later."
    }
  }
}
