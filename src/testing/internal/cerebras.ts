/**
 * The headers and errors of Cerebras around OpenAI's requests: headers name the time they count, and a refusal has none.
 *
 * Known: limits a minute, hour and day, names of the headers and the flat errors. Assumed: that `reset` is the time until
 * the limit is whole, as elsewhere, and that a limit of another time has no header.
 */
import { usual } from "./faults.ts"
import type { Refusal } from "./ledger.ts"
import * as wire from "./wire.ts"

const times: ReadonlyMap<number, string> = new Map([[60_000, "minute"], [3_600_000, "hour"], [86_400_000, "day"]])

const headers = ({ quotas }: wire.Situation): Record<string, string> => {
  const found: Record<string, string> = {}
  for (const quota of quotas) {
    const time = times.get(quota.period)
    if (time === undefined || (quota.dimension !== "requests" && quota.dimension !== "tokens")) continue
    const name = `${quota.dimension}-${time}`
    found[`x-ratelimit-limit-${name}`] = wire.whole(quota.limit)
    found[`x-ratelimit-remaining-${name}`] = wire.remaining(quota)
    found[`x-ratelimit-reset-${name}`] = String(Math.ceil(quota.reset) / 1000)
  }
  return found
}

const reply = (error: wire.WireError): wire.Reply => ({
  status: error.status,
  headers: wire.json,
  body: JSON.stringify({
    message: error.message,
    type: error.type,
    param: error.status === 429 ? "quota" : null,
    code: error.code
  })
})

const limited = (limit: Pick<Refusal, "dimension" | "period">): wire.WireError => {
  const time = times.get(limit.period) ?? wire.goDuration(limit.period)
  return wire.counted(limit) === "requests"
    ? {
      ...usual["429"],
      type: "too_many_requests_error",
      code: "request_quota_exceeded",
      message: `Requests per ${time} limit exceeded - too many requests sent.`
    }
    : {
      ...usual["429"],
      type: "too_many_tokens_error",
      code: "token_quota_exceeded",
      message: `Tokens per ${time} limit exceeded - too many tokens processed.`
    }
}

export const dialect: wire.Dialect = {
  headers,
  refusal: (_, refusal) => {
    const error = { ...limited(refusal), isRetryable: !refusal.tooLarge }
    return { error, ...reply(error) }
  },
  error: (_, error) => reply(error),
  errors: {
    "429": limited({ dimension: "requests", period: 60_000 }),
    daily_quota: { ...limited({ dimension: "tokens", period: 86_400_000 }), isRetryable: false }
  }
}
