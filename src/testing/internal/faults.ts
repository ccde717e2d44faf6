/** Which fault a script asks for, and what providers say when they fail. */
import type { Dialect, WireError } from "./wire.ts"

const wireError = (
  status: number,
  type: string,
  code: string | null,
  message: string,
  isRetryable = true
): WireError => ({
  status,
  type,
  code,
  message,
  isRetryable
})

const quota = (code: string, message: string): WireError => wireError(429, "insufficient_quota", code, message, false)

/** What OpenAI sends, or would; other dialects change what differs. */
export const usual = {
  "429": wireError(429, "requests", "rate_limit_exceeded", "Rate limit reached. Please try again later."),
  slow_down: wireError(429, "rate_limit_error", "slow_down", "Too sharp a rise in traffic: slow down, then ramp up."),
  credit_balance_exhausted: quota("credit_balance_exhausted", "The prepaid credits are used up."),
  organization_spend_limit_exceeded: quota(
    "organization_spend_limit_exceeded",
    "The organization has reached its spend limit."
  ),
  project_spend_limit_exceeded: quota("project_spend_limit_exceeded", "The project has reached its spend limit."),
  organization_usage_limit_exceeded: quota(
    "organization_usage_limit_exceeded",
    "The organization has reached its usage limit."
  ),
  insufficient_quota: quota("insufficient_quota", "The quota is used up: see plan and billing details."),
  enforced_spend_limit_reached: wireError(
    429,
    "rate_limit_error",
    "enforced_spend_limit_reached",
    "The enforced spend limit of the organization is reached.",
    false
  ),
  usage_limits_reached: wireError(
    400,
    "invalid_request_error",
    null,
    "You have reached your specified API usage limits.",
    false
  ),
  daily_quota: wireError(429, "requests", "rate_limit_exceeded", "The quota of the day is used up.", false),
  in_flight_budget_exhausted: wireError(
    402,
    "payment_required",
    "in_flight_budget_exhausted",
    "Requests in flight hold the rest of the budget."
  ),
  weight_exceeds_budget: wireError(
    402,
    "payment_required",
    "weight_exceeds_budget",
    "This request costs more than the budget.",
    false
  ),
  openrouter_credits: wireError(402, "payment_required", "openrouter_credits", "Insufficient credits.", false),
  openrouter_key_limit: wireError(
    402,
    "payment_required",
    "openrouter_key_limit",
    "The key's limit is reached.",
    false
  ),
  "400": wireError(400, "invalid_request_error", null, "The request is not valid.", false),
  "401": wireError(401, "invalid_request_error", "invalid_api_key", "Incorrect API key provided.", false),
  "402": wireError(402, "billing_error", "billing_error", "Insufficient balance.", false),
  "403": wireError(403, "permission_error", "permission_denied", "This key may not do that.", false),
  "404": wireError(404, "invalid_request_error", "model_not_found", "The model does not exist.", false),
  "408": wireError(408, "timeout_error", null, "The request took too long to arrive."),
  "409": wireError(409, "conflict_error", null, "The request conflicts with another one."),
  "413": wireError(413, "invalid_request_error", "request_too_large", "The request body is too large.", false),
  "500": wireError(500, "server_error", null, "The server had an error while processing the request."),
  "503": wireError(503, "service_unavailable_error", "server_is_overloaded", "The servers are overloaded."),
  "504": wireError(504, "timeout_error", null, "The request timed out inside the provider."),
  "529": wireError(529, "overloaded_error", null, "Overloaded")
} satisfies Record<string, WireError>

/** Refusals that come with a whole response of their own, before any limit is looked at. */
export type RefusalKind = keyof typeof usual

export const isRefusal = (kind: string): kind is RefusalKind => Object.hasOwn(usual, kind)

export const errorOf = (dialect: Dialect, kind: RefusalKind): WireError => dialect.errors?.[kind] ?? usual[kind]

/** Nginx and its like answer so when what is behind them does not. */
export const badGateway =
  "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n<center><h1>502 Bad Gateway</h1></center>\r\n"
  + "</body>\r\n</html>\r\n"

/** When a fault happens, with times in milliseconds. All that is given must hold. */
export interface When {
  readonly nth?: number | ReadonlyArray<number> | undefined
  readonly every?: number | undefined
  readonly p?: number | undefined
  readonly from: number
  readonly to: number
}

/** Whether it happens to request `count` of its model at `now`; `chance` is that request's number between 0 and 1. */
export const isDue = (when: When, count: number, now: number, chance: number): boolean =>
  now >= when.from && now < when.to
  && (when.nth === undefined || (typeof when.nth === "number" ? when.nth === count : when.nth.includes(count)))
  && (when.every === undefined || count % when.every === 0)
  && (when.p === undefined || chance < when.p)
