/**
 * Calls of a service of `effect/ai` as requests of a queue. A call is an effect or a stream of its caller: it runs in the
 * processor's fiber, in its caller's context, as a stream, of one element if it is an effect.
 */
import type * as AiError from "effect/ai/AiError"
import * as Model from "effect/ai/Model"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as ModelConfig from "../../ModelConfig.ts"
import * as ProviderProfile from "../../ProviderProfile.ts"
import * as QueueError from "../../QueueError.ts"
import * as QueueManager from "../../QueueManager.ts"
import type * as QueueRequest from "../../QueueRequest.ts"
import { CurrentEntry } from "../entry.ts"
import * as errors from "./errors.ts"

/** What a queue's options leave to a service of `effect/ai`. */
export type Options<P> =
  & Omit<ModelConfig.StreamOptions<P, never>, "usage">
  & ModelConfig.Limits
  & {
    /** The id of the model in the queue manager. Default: the `Model.ModelName` of `effect/ai`, if there is one. */
    readonly modelId?: string | undefined
    /** What a request asks for besides: its priority, tenant, timeout, labels, … Asked for each call. */
    readonly request?: ((call: P) => QueueRequest.RequestOptions) | undefined
  }

const runKey = Symbol("effect-llm-queue/internal/run")

type Failure = AiError.AiError | errors.Unread

/** What is seen of a call, and how it is run. */
type Running<P> = P & { readonly [runKey]: Stream.Stream<unknown, Failure> }

/** The names that the packages of Effect give to providers. */
const profiles: Readonly<Record<string, ProviderProfile.ProviderProfile>> = {
  openai: ProviderProfile.openai,
  azure: ProviderProfile.azure,
  "azure-openai": ProviderProfile.azure,
  anthropic: ProviderProfile.anthropic,
  google: ProviderProfile.gemini,
  gemini: ProviderProfile.gemini,
  groq: ProviderProfile.groq,
  mistral: ProviderProfile.mistral,
  bedrock: ProviderProfile.bedrock,
  "amazon-bedrock": ProviderProfile.bedrock,
  deepseek: ProviderProfile.deepseek,
  openrouter: ProviderProfile.openrouter,
  together: ProviderProfile.together,
  togetherai: ProviderProfile.together
}

const profileOf = (name: string): ProviderProfile.ProviderProfile | undefined => {
  const key = name.toLowerCase()
  return Object.hasOwn(profiles, key) ? profiles[key] : undefined
}

/**
 * Whether a failure is the provider's: only those are read, and may be attempted again. Once tools have run, what failed
 * may be theirs, and none of them is to run twice.
 */
const isProviders = (cause: Cause.Cause<unknown>, hasActed: () => boolean): cause is Cause.Cause<AiError.AiError> =>
  !hasActed() && cause.reasons.length > 0
  && cause.reasons.every((reason) => Cause.isFailReason(reason) && errors.isProviders(reason.error))

export interface Call<P, A, E, R> {
  readonly method: string
  readonly params: P
  readonly options?: QueueRequest.RequestOptions | undefined
  readonly stream: Stream.Stream<A, E, R>
  /** Whether it has done something that must not be done twice. */
  readonly hasActed: () => boolean
}

export interface Calls<P> {
  /** The stream of a call, once it is its turn. Fails with what the call fails with, or with an `AiError`. */
  readonly stream: <A, E, R>(call: Call<P, A, E, R>) => Stream.Stream<A, E | AiError.AiError, Exclude<R, Scope.Scope>>
  /** The same of a call whose stream has one element. */
  readonly effect: <A, E, R>(call: Call<P, A, E, R>) => Effect.Effect<A, E | AiError.AiError, R>
}

/** Registers a queue for calls. */
export const make = Effect.fnUntraced(function*<P extends object>(
  { modelId: given, request, ...options }: Options<P>,
  usage: (element: unknown) => ModelConfig.Usage | undefined
): Effect.fn.Return<
  Calls<P>,
  QueueError.RegisterError,
  QueueManager.QueueManager | Scope.Scope
> {
  const manager = yield* QueueManager.QueueManager
  const modelId = given ?? Option.getOrUndefined(yield* Effect.serviceOption(Model.ModelName))
  if (modelId === undefined) {
    return yield* new QueueError.InvalidConfiguration({
      modelId: "",
      problems: ["modelId: expected an id, as there is no Model.ModelName to take it from"]
    })
  }
  const providerName = Option.getOrUndefined(yield* Effect.serviceOption(Model.ProviderName))
  const model = ModelConfig.makeStreamUntyped<Running<P>, unknown, Failure>(modelId, {
    ...options,
    provider: "provider" in options || providerName === undefined ? options.provider : profileOf(providerName),
    usage
  })
  yield* manager.registerStream(model, ({ params }) => params[runKey])

  const submit = <A, E, R>(
    { hasActed, method, options, params, stream }: Call<P, A, E, R>,
    caller: Context.Context<R>
  ): Stream.Stream<A, E | AiError.AiError> => {
    const run: Stream.Stream<A, Failure> = stream.pipe(
      Stream.catchCause((cause): Stream.Stream<never, Failure> =>
        isProviders(cause, hasActed) ? Stream.failCause(cause) : Stream.fail(new errors.Unread(cause))
      ),
      // Of the processor's own context only what makes a call inside this one a nested request.
      Stream.updateContext((own: Context.Context<never>) =>
        Context.merge(caller, Context.pick(CurrentEntry, QueueManager.CurrentRequestContext)(own))
      )
    )
    const elements = manager.stream(model, { ...params, [runKey]: run }, { ...request?.(params), ...options })
    // They are those of this call's stream, which have no type in its queue.
    return Stream.catch(
      elements as Stream.Stream<A, Failure | QueueError.SubmitError>,
      (error) => failure(error, method)
    )
  }

  return {
    stream: <A, E, R>(call: Call<P, A, E, R>) =>
      Stream.unwrap(Effect.map(Effect.context<R>(), (caller) => submit(call, caller))),
    // To its end: what has not ended when its reader leaves is cancelled.
    effect: <A, E, R>(call: Call<P, A, E, R>) =>
      Effect.flatMap(
        Effect.context<R>(),
        (caller) => Effect.map(Stream.runLast(submit(call, caller)), Option.getOrThrow)
      )
  }
})

/** What a call's caller hears of. */
const failure = (error: Failure | QueueError.SubmitError, method: string): Stream.Stream<never, AiError.AiError> => {
  if (error instanceof errors.Unread) return Stream.failCause(typed(error.inner))
  if (!QueueError.isQueueError(error)) return Stream.fail(error)
  return error._tag === "ProcessingError" && Cause.isCause(error.cause)
    ? Stream.failCause(typed(error.cause))
    : Stream.unwrap(
      Effect.map(Clock.currentTimeMillis, (wall) => Stream.fail(errors.toAiError(error, method, wall)))
    )
}

// What a call fails with has no type in its queue, and its caller's again outside.
const typed = (cause: Cause.Cause<unknown>) => cause as Cause.Cause<never>
