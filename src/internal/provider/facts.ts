/** What the profiles are built on, and where it is said. */
import type * as ProviderProfile from "../../ProviderProfile.ts"

type Facts = ReadonlyArray<ProviderProfile.Fact>
type About = ProviderProfile.Fact["about"]

const documented = (about: About, says: string, source: string): ProviderProfile.Fact => ({
  about,
  says,
  basis: "documented",
  source
})

const measured = (about: About, says: string, source: string): ProviderProfile.Fact => ({
  about,
  says,
  basis: "measured",
  source
})

const unverified = (about: About, says: string, source?: string): ProviderProfile.Fact => ({
  about,
  says,
  basis: "unverified",
  ...(source === undefined ? {} : { source })
})

const openaiLimits = "developers.openai.com/api/docs/guides/rate-limits"
const openaiHelp = "help.openai.com/en/articles/6891753"
const refusalBodies = "bodies of real refusals, compared with the formula of a bucket"

export const openai: Facts = [
  documented(
    "limits",
    "RPM, RPD, TPM and TPD, per organization and per project, per model; some models share one limit",
    openaiLimits
  ),
  measured(
    "algorithm",
    "A bucket of one whole limit that refills all the time, by the minute and by the day: the time to wait is "
      + "(used + requested - limit) * period / limit in 28 of 29 refusals by TPM, 2 of 2 by RPM, 3 of 3 by RPD",
    refusalBodies
  ),
  documented("algorithm", "A limit can be enforced in shorter windows: 60,000 a minute as 1,000 a second", openaiHelp),
  documented(
    "charge",
    "Tokens on arrival: the larger of max_tokens and an estimate of the input by its characters",
    openaiLimits
  ),
  unverified("charge", "Whether it is the larger of the two, or their sum"),
  unverified("charge", "Tokens from the cache count", "community.openai.com/t/1138631"),
  unverified("correction", "What was reserved and not used is not given back when the request ends"),
  documented("refused", "Requests that fail count against the limit of the minute", openaiLimits),
  unverified("refused", "Whether refused requests count against the requests of the minute"),
  documented(
    "headers",
    "x-ratelimit-{limit,remaining,reset}-{requests,tokens}, those of tokens also for the project; "
      + "Retry-After is the least time to wait, in seconds",
    openaiLimits
  ),
  measured(
    "headers",
    "reset is the time until the limit is full, as a Go duration: (limit - remaining) * period / limit in 8 of 8 "
      + "responses",
    "headers of real responses"
  ),
  measured(
    "headers",
    "With a limit on requests per day, the headers about requests may describe the day",
    "headers of real responses"
  ),
  measured(
    "errors",
    "A request above the limit is refused as \"Request too large\" with x-should-retry: false",
    "bodies and headers of real refusals"
  ),
  documented(
    "errors",
    "429 slow_down inside the limits: traffic has grown too fast; from 1M input tokens a minute, at most 50 % more "
      + "every 15 minutes",
    openaiLimits
  ),
  documented(
    "errors",
    "Spending: insufficient_quota, credit_balance_exhausted, organization_spend_limit_exceeded, "
      + "project_spend_limit_exceeded, organization_usage_limit_exceeded, as code or as type",
    openaiLimits
  ),
  measured(
    "errors",
    "429 billing_not_active, as code and type: an account that cannot pay",
    "github.com/BerriAI/litellm/issues/2743"
  ),
  measured(
    "errors",
    "billing_hard_limit_reached, a 400 of type invalid_request_error",
    "github.com/dfinke/PowerShellAI/issues/127"
  ),
  documented("errors", "503 server_is_overloaded of type service_unavailable_error", openaiLimits),
  documented("errors", "429 Resource Unavailable of the flex tier is no capacity, and is not billed", openaiLimits),
  documented("streams", "A refusal can come inside a stream of status 200, as response.failed", openaiLimits)
]

const azureQuota = "learn.microsoft.com, Azure OpenAI quota and 429 pages"

export const azure: Facts = [
  documented("limits", "TPM of a deployment, and RPM in proportion to it", azureQuota),
  documented("algorithm", "RPM is enforced over 1 or 10 seconds", azureQuota),
  measured(
    "algorithm",
    "120 RPM were reported as a limit of 20: that of 10 seconds",
    "learn.microsoft.com/answers/questions/2265464"
  ),
  unverified(
    "algorithm",
    "Tokens over a sliding minute and requests over 10 seconds, as the vendor's simulator does",
    "github.com/microsoft/aoai-api-simulator"
  ),
  documented("charge", "Estimated prompt, max_tokens and best_of, in full, on arrival", azureQuota),
  unverified("correction", "What was reserved and not used is not given back"),
  documented("refused", "Failed requests count; a 400 can", azureQuota),
  documented("headers", "A limit that is lowered for a time shows in x-ratelimit-limit-tokens", azureQuota),
  measured(
    "headers",
    "Values of -1 and 0 in successful responses",
    "github.com/openai/openai-dotnet/issues/838"
  ),
  measured("headers", "remaining-tokens can be negative, also on requests that are served", "real responses"),
  documented("errors", "\"System is experiencing high demand\" is no capacity: more quota does not help", azureQuota),
  measured(
    "errors",
    "Messages name the token rate limit or the call rate limit",
    "github.com/langchain-ai/langchain/issues/12986 and 14339"
  ),
  measured(
    "streams",
    "A refused stream has status 200, a retry-after header and rate_limit_exceeded inside",
    "real responses"
  )
]

const anthropicLimits = "platform.claude.com/docs/en/api/rate-limits"

export const anthropic: Facts = [
  documented(
    "limits",
    "RPM, ITPM and OTPM per organization and class of models, some classes pooled; workspaces can have lower ones; "
      + "no limit on concurrency",
    anthropicLimits
  ),
  documented("algorithm", "A token bucket that refills all the time, up to the limit", anthropicLimits),
  documented(
    "algorithm",
    "A limit can be enforced in shorter windows: 60 RPM as 1 request a second",
    anthropicLimits
  ),
  measured(
    "algorithm",
    "Input with 19 of 40,000 left was full 60 seconds later: the bucket holds one limit",
    "headers"
  ),
  measured(
    "algorithm",
    "In March 2024 resets were at whole minutes: algorithms change",
    "github.com/anthropics/anthropic-sdk-typescript/issues/357"
  ),
  unverified("algorithm", "How many requests the bucket of RPM holds"),
  documented(
    "charge",
    "Input is estimated at the beginning; output counts as it is produced, max_tokens does not",
    anthropicLimits
  ),
  documented("charge", "Input read from the cache does not count, except for Haiku 3.5", anthropicLimits),
  documented("correction", "Input is corrected while the request runs", anthropicLimits),
  unverified("refused", "Whether refused and failed requests count"),
  documented(
    "headers",
    "anthropic-ratelimit-{requests,input-tokens,output-tokens}-{limit,remaining,reset}; remaining tokens are rounded "
      + "to the nearest thousand; reset is the RFC 3339 time of being full",
    anthropicLimits
  ),
  documented(
    "headers",
    "anthropic-ratelimit-tokens-* repeat the most restrictive limit in force; anthropic-priority-* and "
      + "anthropic-fast-* are about other limits: none of these is read",
    anthropicLimits
  ),
  documented("errors", "Attempts before retry-after fail", anthropicLimits),
  documented(
    "errors",
    "A spending cap is a 429 rate_limit_error with error_code enforced_spend_limit_reached and no retry-after; a limit "
      + "set by the user is a 400 that says so",
    anthropicLimits
  ),
  measured(
    "errors",
    "No credit left: a 400 invalid_request_error, \"Your credit balance is too low to access the Anthropic API\"",
    "github.com/anthropics/claude-code/issues/66314"
  ),
  documented(
    "errors",
    "529 overloaded_error, 500 api_error, 504 timeout_error, 402 billing_error, 413",
    "platform.claude.com/docs/en/api/errors"
  ),
  documented(
    "errors",
    "Traffic that grows sharply is refused with 429; the threshold is not published",
    anthropicLimits
  ),
  unverified("errors", "The words of that refusal: \"usage increase rate\" or \"acceleration limit\""),
  documented("streams", "After status 200 an error comes as an event of type error", anthropicLimits)
]

const geminiLimits = "ai.google.dev/gemini-api/docs/rate-limits"

export const gemini: Facts = [
  documented(
    "limits",
    "RPM, TPM of input only, RPD per project and model; the day ends at midnight Pacific time",
    geminiLimits
  ),
  measured(
    "algorithm",
    "Fixed minutes of the clock: times to wait up to 52 seconds at 5 RPM, and two that end at a whole minute",
    "bodies of real refusals; two samples, so only likely"
  ),
  unverified("algorithm", "Fixed minutes on paid tiers, and the day of a limit on tokens per day"),
  documented("charge", "Only input tokens count", geminiLimits),
  unverified("charge", "Whether input from the cache counts"),
  unverified("refused", "Failed requests count against the quota", "forum and support answers"),
  measured("headers", "None", "real responses"),
  measured(
    "errors",
    "A quotaId with PerDay comes with a retryDelay of seconds, which means nothing",
    "bodies of real refusals"
  ),
  measured(
    "errors",
    "\"limit: 0\" is a model that the plan does not allow",
    "github.com/continuedev/continue/issues/9570"
  ),
  documented(
    "errors",
    "Vertex AI: \"Resource exhausted, please try again later.\" is shared capacity, no limit of the project",
    "docs.cloud.google.com/vertex-ai/generative-ai/docs/standard-paygo"
  ),
  documented(
    "limits",
    "Spending over a rolling 10 minutes is limited too, by tier: a budget of 10 minutes that waits, charged at completion, holds it",
    geminiLimits
  ),
  documented(
    "errors",
    "Prepaid credits that are used up: 402 RESOURCE_EXHAUSTED, formerly 429",
    "discuss.ai.google.dev/t/183654"
  ),
  unverified(
    "errors",
    "429 RESOURCE_EXHAUSTED \"exceeded its monthly spending cap\": of a project or of a billing account",
    "help.apiyi.com/en/ai-studio-monthly-spending-cap-429-solution-en.html"
  )
]

const groqLimits = "console.groq.com/docs/rate-limits"

export const groq: Facts = [
  documented(
    "limits",
    "RPM, RPD, TPM, TPD, for some ITPM and OTPM, per organization and model",
    groqLimits
  ),
  measured(
    "algorithm",
    "A bucket of one whole limit that refills all the time, the days too: 10 of 10 refusals by TPM, 6 of 8 by TPD, "
      + "1 of 1 by RPD",
    refusalBodies
  ),
  measured(
    "charge",
    "Input and max_completion_tokens on arrival",
    "github.com/Alishahryar1/free-claude-code/pull/1634"
  ),
  documented("charge", "Input from the cache does not count", groqLimits),
  unverified("correction", "What was reserved and not used is given back: what is left matches small use"),
  documented(
    "headers",
    "x-ratelimit-*-requests are about the day, x-ratelimit-*-tokens about the minute; retry-after only on 429",
    groqLimits
  ),
  measured("errors", "A request above the limit: 413 with rate_limit_exceeded", "bodies of real refusals"),
  documented("errors", "498 is no capacity of the flex tier", "console.groq.com/docs/errors")
]

export const mistral: Facts = [
  documented(
    "limits",
    "Requests per second, tokens per minute and per month, per organization",
    "docs.mistral.ai/deployment/ai-studio/tier"
  ),
  measured("limits", "Really per minute and model: at 4 a minute, 4 of 8 at once were served", "real responses"),
  measured("algorithm", "A sliding minute", "real responses"),
  measured(
    "charge",
    "The actual tokens when the request ends, nothing before; the cache does not make it less",
    "header x-ratelimit-tokens-query-cost of real responses"
  ),
  measured(
    "headers",
    "x-ratelimit-{limit,remaining}-{req,tokens}-minute on every response, refusals too; no reset, no Retry-After",
    "github.com/mistralai/client-ts/issues/169"
  ),
  measured("headers", "A limit of 0 is a model that is not allowed", "real responses"),
  measured(
    "errors",
    "429 of type rate_limited, code 1300; service_tier_capacity_exceeded, code 3505, is no capacity",
    "bodies of real refusals"
  )
]

const bedrockQuotas = "docs.aws.amazon.com/bedrock/latest/userguide/quotas-runtime.html"

export const bedrock: Facts = [
  documented(
    "limits",
    "bedrock-runtime: TPM of input and output per model, region and account, TPD of 1440 times that, less for new "
      + "accounts; RPM only for embeddings",
    bedrockQuotas
  ),
  unverified("algorithm", "The algorithm is not known"),
  documented(
    "charge",
    "Input and max_tokens at the start; without max_tokens the most that the model can produce",
    bedrockQuotas
  ),
  documented(
    "charge",
    "Output weighs 5 for Claude up to 4.7, 10 for 5.x, 15 for 4.8, 1 for other models",
    "docs.aws.amazon.com/bedrock/latest/userguide/quotas-token-burndown.html"
  ),
  unverified("charge", "Whether max_tokens is weighed at the start: sources disagree"),
  documented(
    "correction",
    "What was reserved and not used is given back at the end, with reads from the cache",
    bedrockQuotas
  ),
  measured(
    "errors",
    "ThrottlingException \"Too many tokens, please wait before trying again.\" without a time to wait",
    "github.com/anthropics/claude-code/issues/236"
  ),
  measured("headers", "None", "github.com/anthropics/claude-code/issues/236"),
  documented(
    "streams",
    "throttlingException, serviceUnavailableException, internalServerException, modelStreamErrorException and "
      + "modelTimeoutException come as events",
    "docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ResponseStream.html"
  )
]

const deepseekLimits = "api-docs.deepseek.com/quick_start/rate_limit"

export const deepseek: Facts = [
  documented("limits", "Concurrency of an account only, from being sent until complete", deepseekLimits),
  documented("refused", "429 at once above it", deepseekLimits),
  documented("headers", "None", deepseekLimits),
  documented("errors", "402 is the balance, 503 is overload", deepseekLimits),
  documented(
    "streams",
    "A response of status 200 can end with finish_reason insufficient_system_resource",
    deepseekLimits
  )
]

const openrouterLimits = "github.com/OpenRouterTeam/docs, api_reference/limits.mdx"

export const openrouter: Facts = [
  documented(
    "limits",
    "Free models: 20 RPM, and 50 or 1000 requests a day in UTC, for the account; paid ones have those of the provider "
      + "behind them",
    openrouterLimits
  ),
  unverified("algorithm", "The algorithm of the minute is not known"),
  documented("headers", "X-RateLimit-* only on refusals by OpenRouter itself", openrouterLimits),
  unverified("headers", "X-RateLimit-Reset is Unix time; the docs do not say whether of seconds or milliseconds"),
  documented("headers", "Retry-After only when every provider behind it gave one", openrouterLimits),
  documented(
    "errors",
    "402 with reason in_flight_budget_exhausted passes; weight_exceeds_budget, openrouter_credits and "
      + "openrouter_key_limit do not",
    openrouterLimits
  ),
  unverified("errors", "weight_exceeds_budget is about the one request, so others may still fit"),
  documented("streams", "An error inside a stream is a chunk with error.code and finish_reason error", openrouterLimits)
]

const togetherLimits = "docs.together.ai/docs/rate-limits"

export const together: Facts = [
  documented("limits", "Dynamic, per organization and model: they grow with steady success", togetherLimits),
  documented("algorithm", "Enforced each second: 60 RPM are 1 a second", togetherLimits),
  unverified("charge", "All of the maximum output on arrival"),
  unverified("correction", "Nothing is given back"),
  documented(
    "headers",
    "x-ratelimit-{limit,remaining,reset}, x-tokenlimit-{limit,remaining}, x-ratelimit-limit-dynamic",
    togetherLimits
  ),
  unverified("headers", "Whether their numbers are those of a second or of a minute, so they are not read"),
  documented(
    "errors",
    "429 dynamic_request_limited or dynamic_token_limited above the dynamic rate; below it, 503",
    togetherLimits
  )
]

export const generic: Facts = [
  unverified("limits", "Nothing is known: the rules are those that hold for all known ways of counting and charging")
]
