/** The errors of DeepSeek around OpenAI's requests. It has no rate-limit headers. */
import { usual } from "./faults.ts"
import * as openai from "./openai.ts"
import * as wire from "./wire.ts"

const limited: wire.WireError = { ...usual["429"], type: "rate_limit_reached", message: "Rate limit reached" }

const reply = (error: wire.WireError): wire.Reply =>
  error.status === 401
    ? { status: 401, headers: { "content-type": "text/plain" }, body: "Authentication Fails" }
    : { status: error.status, headers: wire.json, body: JSON.stringify(openai.errorBody(error)) }

export const dialect: wire.Dialect = {
  headers: () => ({}),
  refusal: (_, refusal) => ({ error: { ...limited, isRetryable: !refusal.tooLarge }, ...reply(limited) }),
  error: (_, error) => reply(error),
  errors: {
    "429": limited,
    "402": { ...usual["402"], type: "insufficient_balance", message: "Insufficient Balance" }
  }
}
