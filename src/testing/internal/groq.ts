/** The headers and errors of Groq around OpenAI's requests: requests headers are of the day, tokens of the minute. */
import type { Refusal } from "./ledger.ts"
import * as openai from "./openai.ts"
import * as wire from "./wire.ts"

const identity = ({ id }: wire.Situation): Record<string, string> => ({
  "x-groq-region": "us-west-1",
  "x-request-id": `req_${wire.hexId(id, 26)}`
})

/** Of requests only the day is told, of tokens only the minute. */
const rateLimitHeaders = ({ quotas, requestsHeader = "rpd" }: wire.Situation): Record<string, string> =>
  openai.rateLimitHeaders({
    quotas: quotas.filter((quota) => quota.dimension === "requests" ? wire.isDay(quota) : !wire.isDay(quota)),
    requestsHeader
  })

const limitName = ({ dimension, period }: Refusal): string => {
  const counted = dimension === "requests" ? "requests" : dimension === "concurrent" ? "concurrent requests" : "tokens"
  const time = wire.isDay({ period }) ? "day" : "minute"
  return `${counted} per ${time} (${counted.charAt(0).toUpperCase()}P${time.charAt(0).toUpperCase()})`
}

export const dialect: wire.Dialect = {
  headers: (situation) => ({ ...identity(situation), ...rateLimitHeaders(situation) }),
  refusal: (situation, refusal) => {
    const { limit, requested, retryAfter, tooLarge, used } = refusal
    const where = `\`${situation.model}\` in organization \`org_simulator\` service tier \`on_demand\` on ${
      limitName(refusal)
    }: Limit ${wire.whole(limit)}`
    const error = {
      status: tooLarge ? 413 : 429,
      type: wire.counted(refusal),
      code: "rate_limit_exceeded",
      message: tooLarge
        ? `Request too large for model ${where}, Requested ${wire.whole(requested)}, `
          + "please reduce your message size and try again."
        : `Rate limit reached for model ${where}, Used ${wire.whole(used)}, Requested ${wire.whole(requested)}.${
          retryAfter === undefined ? "" : ` Please try again in ${wire.goDuration(retryAfter)}.`
        }`,
      isRetryable: !tooLarge
    }
    return {
      error,
      status: error.status,
      headers: {
        ...wire.json,
        ...identity(situation),
        ...rateLimitHeaders(situation),
        ...(retryAfter === undefined ? {} : { "retry-after": String(wire.seconds(retryAfter)) })
      },
      body: JSON.stringify({ error: { message: error.message, type: error.type, code: error.code } })
    }
  },
  error: (situation, error) => ({
    status: error.status,
    headers: { ...wire.json, ...identity(situation) },
    body: JSON.stringify({ error: { message: error.message, type: error.type, code: error.code } })
  })
}
