/**
 * The errors of Cohere around OpenAI's requests, and the headers of its trial keys.
 *
 * Known: flat errors, a request limit a minute and a month, and that headers come on answers to trial keys only and on
 * no refusal. Assumed: the words of a refusal, and that nothing tells when to come back.
 */
import { usual } from "./faults.ts"
import type { Quota } from "./ledger.ts"
import * as wire from "./wire.ts"

/** A limit of 28 days or more is the one of the month. */
const isMonth = ({ period }: Pick<Quota, "period">): boolean => period >= 28 * 86_400_000

/** A key with a limit of the month is a trial key. */
const headers = ({ quotas }: wire.Situation): Record<string, string> => {
  const requests = quotas.filter(({ dimension }) => dimension === "requests")
  const month = requests.find(isMonth)
  const minute = requests.find((quota) => !isMonth(quota))
  return month === undefined ? {} : {
    "x-endpoint-monthly-call-limit": wire.whole(month.limit),
    ...(minute && {
      "x-trial-endpoint-call-limit": wire.whole(minute.limit),
      "x-trial-endpoint-call-remaining": wire.remaining(minute)
    })
  }
}

const reply = ({ id }: wire.Situation, error: wire.WireError): wire.Reply => ({
  status: error.status,
  headers: wire.json,
  body: JSON.stringify({ id: wire.hexId(id, 32), message: error.message })
})

export const dialect: wire.Dialect = {
  headers,
  refusal: (situation, refusal) => {
    const { limit, period, tooLarge } = refusal
    const most = wire.whole(limit)
    const time = period === 60_000 ? "minute" : isMonth(refusal) ? "month" : wire.goDuration(period)
    const error: wire.WireError = {
      ...usual["429"],
      message: wire.counted(refusal) === "requests"
        ? `You are using a Trial key, which is limited to ${most} API calls / ${time}.`
        : `trial token rate limit exceeded, limit is ${most} tokens per ${time}`,
      isRetryable: !tooLarge
    }
    return { error, ...reply(situation, error) }
  },
  error: reply
}
