/** A provider that does what a script says, and a profile that understands it and changes no limit. */
import { assert } from "@effect/vitest"
import { Cause, Clock, Data, Duration, Effect, Exit } from "effect"
import type { QueueRequest } from "effect-llm-queue"
import { ModelConfig, ProviderProfile, QueueManager } from "effect-llm-queue"

/** A failed response, as a client library throws it. */
export class HttpFailure extends Data.TaggedError("HttpFailure")<{
  readonly status: number
  readonly headers: Readonly<Record<string, string>>
  readonly message: string
}> {}

/** Its headers, retry hints and failures are those of any provider; its limits are as given. */
export const profile = ProviderProfile.make({
  name: "scripted",
  margin: 0,
  limits: { rpm: {}, rpd: {}, tpm: {}, tpd: {}, itpm: {}, otpm: {}, concurrent: {} }
})

const failure = (status: number, message: string) => (retryAfter?: number, more = "") =>
  new HttpFailure({
    status,
    headers: retryAfter === undefined ? {} : { "retry-after-ms": String(retryAfter) },
    message: more === "" ? message : `${message} ${more}`
  })

export const rate = failure(429, "Rate limit reached.")
export const overload = failure(503, "No capacity.")
export const transient = failure(500, "Something broke.")
export const quota = failure(402, "No credit left.")
export const tooLarge = failure(413, "Too many tokens in one request.")
export const auth = failure(401, "The key is wrong.")
/** Not the provider's: no rule knows it. */
export const own = failure(418, "A teapot.")

export type Answer = Effect.Effect<string, HttpFailure>

/** A model of strings whose provider is the scripted one. */
export const model = (
  modelId: string,
  options?: Partial<ModelConfig.Options<string, string> & { readonly rateLimiters: ModelConfig.Limits["rateLimiters"] }>
): ModelConfig.ModelConfig<string, string, HttpFailure> =>
  ModelConfig.makeUntyped<string, string, HttpFailure>(modelId, {
    provider: profile,
    ...options,
    rateLimiters: options?.rateLimiters ?? "unlimited"
  })

/**
 * Answers the nth attempt of a request with the nth answer under its parameters, and with its parameters when there is
 * none. Keeps what it has seen as `"<second> <parameters>"`, the second cut to tenths.
 */
export const scripted = (script: Readonly<Record<string, ReadonlyArray<Answer | HttpFailure>>>) => {
  const seen: Array<string> = []
  const counts = new Map<string, number>()
  const exact: Array<number> = []
  return {
    seen,
    /** When each attempt began, in milliseconds. */
    exact,
    processor: ({ params }: QueueRequest.QueueRequest<string, string, HttpFailure, boolean>): Answer =>
      Effect.flatMap(Clock.currentTimeMillis, (now) => {
        const count = counts.get(params) ?? 0
        counts.set(params, count + 1)
        seen.push(`${Math.floor(now / 100) / 10} ${params}`)
        exact.push(now)
        const answer = script[params]?.[count] ?? Effect.succeed(params)
        return answer instanceof HttpFailure ? Effect.fail(answer) : answer
      })
  }
}

/** A manager whose own end waits for nobody, so that a test can leave requests behind. */
export const Manager = QueueManager.layerWith({ shutdown: { policy: "interrupt", deadline: 0 } })

/** Runs at once up to the first thing that it waits for. */
export const start = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.forkChild(effect, { startImmediately: true })

/** What is left in a queue in which everything has ended. */
export const left = Effect.fnUntraced(function*(modelId: string) {
  const info = yield* QueueManager.QueueManager.use((manager) => manager.getQueueInfo(modelId))
  return { depth: info.depth, suspended: info.suspended, running: info.running }
})

export const nothing = { depth: 0, suspended: 0, running: 0 }

export const providerOf = Effect.fnUntraced(function*(modelId: string) {
  const { provider } = yield* QueueManager.QueueManager.use((manager) => manager.getQueueInfo(modelId))
  assert(provider !== undefined)
  return {
    state: provider.state,
    retryIn: provider.retryIn === undefined ? undefined : Duration.toMillis(provider.retryIn),
    concurrency: provider.concurrency
  }
})

export const tagOf = (exit: Exit.Exit<unknown, unknown> | undefined): string => {
  if (exit === undefined) return "pending"
  if (Exit.isSuccess(exit)) return "success"
  const error = Cause.squash(exit.cause)
  return typeof error === "object" && error !== null && "_tag" in error ? String(error._tag) : "no tag"
}
