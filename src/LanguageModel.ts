/**
 * A `LanguageModel` of `effect/ai` whose calls go through a queue: a program that is written against that service is
 * queued by one layer, and none of its calls is touched.
 *
 * `effect/ai` is unstable: a minor version of Effect may need a new version of this module.
 *
 * @since 0.1.0
 */
import type * as AiError from "effect/ai/AiError"
import * as AiLanguageModel from "effect/ai/LanguageModel"
import * as Prompt from "effect/ai/Prompt"
import type * as Response from "effect/ai/Response"
import * as Tokenizer from "effect/ai/Tokenizer"
import type * as Tool from "effect/ai/Tool"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as errors from "./internal/ai/errors.ts"
import { resolve } from "./internal/ai/model.ts"
import * as prompts from "./internal/ai/prompt.ts"
import * as calls from "./internal/calls.ts"
import type { ProcessorFailure } from "./internal/entry.ts"
import { measure } from "./internal/tokenEstimator.ts"
import type * as ModelConfig from "./ModelConfig.ts"
import * as ProviderProfile from "./ProviderProfile.ts"
import type * as QueueError from "./QueueError.ts"
import type * as QueueManager from "./QueueManager.ts"

/**
 * What a queue knows of a call, and estimates its tokens from.
 *
 * @category models
 * @since 0.1.0
 */
export interface Call {
  /** What is sent as text: the messages, the calls and results of tools, the tools' definitions, the output's schema. */
  readonly text: ReadonlyArray<string>
}

/**
 * Options of a queued language model: its limits, all that a queue of streams can be given, and `request`, which says what a
 * single call asks of the queue; the method that is called is in the request's `metadata.method`.
 *
 * @category models
 * @since 0.1.0
 */
export type Options =
  & calls.Options<Call>
  & {
    /** The id of the model in the queue manager. Default: the `Model.ModelName` of the context, if it has one. */
    readonly modelId?: string | undefined
    /**
     * The most output tokens of a call, as they are configured in the provider's client (what it sends as `max_tokens`).
     * Limits reserve it where the provider counts it on arrival. Default: none.
     */
    readonly maxOutputTokens?: number | undefined
  }

/**
 * The error of the queue that an `AiError` stands for, if it stands for one: `QueueTimeout`, `RateLimitExceeded`, … Its
 * fields are also in the reason's `metadata["effect-llm-queue"]`, where they survive serialization.
 *
 * **Example** (A reader that knows the queue)
 *
 * ```ts
 * import { Effect, Option } from "effect"
 * import { LanguageModel } from "effect/ai"
 * import { queueError } from "effect-llm-queue/LanguageModel"
 *
 * const program = LanguageModel.generateText({ prompt: "hello" }).pipe(
 *   Effect.catch((error) => {
 *     const original = Option.getOrUndefined(queueError(error))
 *     return original?._tag === "QueueTimeout" ? Effect.succeed({ text: "Try later." }) : Effect.fail(error)
 *   })
 * )
 * ```
 *
 * @category accessors
 * @since 0.1.0
 */
export const queueError = (error: unknown): Option.Option<QueueError.QueueError> =>
  Option.fromUndefinedOr(errors.original(error))

const sum = (parts: ReadonlyArray<number | undefined>): number | undefined => {
  const known = parts.filter((part) => part !== undefined)
  return known.length === 0 ? undefined : known.reduce((total, part) => total + part, 0)
}

const larger = (a: number | undefined, b: number | undefined): number | undefined =>
  a === undefined || b === undefined ? a ?? b : Math.max(a, b)

/** What a response used: all of its input, of which some came from the cache, and all of its output. */
const usageOf = ({ inputTokens, outputTokens }: Response.Usage): ModelConfig.Usage | undefined => {
  const input = larger(
    inputTokens.total,
    sum([inputTokens.uncached, inputTokens.cacheRead, inputTokens.cacheWrite])
  )
  const output = larger(outputTokens.total, sum([outputTokens.text, outputTokens.reasoning]))
  if (input === undefined && output === undefined) return undefined
  const usage = { inputTokens: input ?? 0, outputTokens: output ?? 0 }
  return inputTokens.cacheRead === undefined ? usage : { ...usage, cachedInputTokens: inputTokens.cacheRead }
}

const usage = (element: unknown): ModelConfig.Usage | undefined => {
  if (element instanceof AiLanguageModel.GenerateTextResponse) return usageOf(element.usage)
  const part = element as Response.AnyPart
  return part.type === "finish" ? usageOf(part.usage) : undefined
}

/** Parts that say nothing yet. */
const opening: ReadonlySet<string> = new Set(["response-metadata", "text-start", "reasoning-start"])

/**
 * The parts of a stream, of which an `error` that the provider's profile recognises is a failure: providers put refusals
 * inside streams that have begun. What says nothing waits for the part behind it, so that a stream that is refused before
 * it has said anything is attempted again.
 */
const refusing =
  (provider: ProviderProfile.ProviderProfile | undefined) =>
  <A, E, R>(parts: Stream.Stream<A, E, R>): Stream.Stream<A, E | Response.ErrorPart, R> =>
    provider === undefined ? parts : Stream.mapAccumEffect(
      parts,
      (): ReadonlyArray<A> => [],
      (held, element) => {
        const part: unknown = element
        if (errors.isErrorPart(part)) {
          return Effect.flatMap(
            Clock.currentTimeMillis,
            (wall) =>
              ProviderProfile.classify(provider, part, wall) === undefined
                ? Effect.succeed([[], [...held, element]] as const)
                : Effect.fail(part)
          )
        }
        const all = held.length === 0 ? [element] : [...held, element]
        return Effect.succeed(opening.has((part as Response.AnyPart).type) ? [all, []] as const : [[], all] as const)
      },
      { onHalt: (held) => held }
    )

/** A toolkit without its types. */
interface AnyToolkit {
  readonly tools: Readonly<Record<string, Tool.Any>>
  readonly handle: (...args: ReadonlyArray<unknown>) => Effect.Effect<unknown>
}

/** What the methods of the service have in common; each one's own types are those of the service. */
interface CallOptions {
  readonly prompt: Prompt.RawInput
  readonly toolkit?: AnyToolkit | Effect.Effect<AnyToolkit> | undefined
  readonly toolChoice?: AiLanguageModel.ToolChoice<string> | undefined
  readonly schema?: Schema.Top | undefined
}

/** The tools that are sent: a choice may leave some out. */
const toolsOf = ({ toolChoice }: CallOptions, toolkit: AnyToolkit | undefined): ReadonlyArray<Tool.Any> => {
  const tools = Object.values(toolkit?.tools ?? {})
  return typeof toolChoice === "object" && "oneOf" in toolChoice
    ? tools.filter(({ name }) => toolChoice.oneOf.includes(name))
    : tools
}

/**
 * A language model whose calls go through a queue of its own, which lives as long as the scope.
 *
 * See `layer`.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fnUntraced(function*(
  { maxOutputTokens, modelId: given, request, ...options }: Options
): Effect.fn.Return<
  AiLanguageModel.LanguageModel,
  QueueError.RegisterError,
  AiLanguageModel.LanguageModel | QueueManager.QueueManager | Scope.Scope
> {
  const model = yield* AiLanguageModel.LanguageModel
  const ownTokenizer = yield* Effect.serviceOption(Tokenizer.Tokenizer)
  const { modelId, provider } = yield* resolve({ ...options, modelId: given })
  const queue = yield* calls.make<Call>(modelId, { ...options, provider }, usage, errors.isProviders)

  /** Exact as far as the tokenizer goes. One that fails is not needed. */
  const counted = (prompt: Prompt.Prompt, others: ReadonlyArray<string>): Effect.Effect<number | undefined> =>
    Effect.flatMap(
      Effect.serviceOption(Tokenizer.Tokenizer),
      (theirs) =>
        Option.match(Option.orElse(theirs, () => ownTokenizer), {
          onNone: () => Effect.undefined,
          onSome: ({ tokenize }) =>
            Effect.matchCause(tokenize(prompt), {
              onFailure: () => undefined,
              onSuccess: (tokens) => tokens.length + Math.ceil(measure(others).tokens)
            })
        })
    )

  /** A call of a method, with a toolkit that tells when it is used. */
  const prepare = <A, E, R>(
    method: "generateText" | "generateObject" | "streamText",
    given: CallOptions,
    run: (options: CallOptions) => Stream.Stream<A, E, R>
  ): Effect.Effect<calls.Call<Call, A, E, R, AiError.AiError>> =>
    Effect.gen(function*() {
      const toolkit = Effect.isEffect(given.toolkit) ? yield* given.toolkit : given.toolkit
      const prompt = Prompt.make(given.prompt)
      let hasActed = false
      const own: AnyToolkit | undefined = toolkit === undefined ? undefined : {
        ...toolkit,
        handle: (...args) => {
          hasActed = true
          return toolkit.handle(...args)
        }
      }
      const others = toolsOf(given, toolkit).map(prompts.ofTool)
      if (given.schema !== undefined) others.push(prompts.ofSchema(given.schema))
      const estimatedInputTokens = yield* counted(prompt, others)
      const params: Call = { text: [...prompts.ofPrompt(prompt), ...others] }
      return {
        params,
        options: {
          ...request?.(params),
          metadata: { method },
          ...(estimatedInputTokens === undefined ? {} : { estimatedInputTokens }),
          ...(maxOutputTokens === undefined ? {} : { maxOutputTokens })
        },
        // A service may begin its work when it is asked, not when the effect is run.
        stream: Stream.suspend(() => run(own === undefined ? given : { ...given, toolkit: own })),
        hasActed: () => hasActed,
        toError: (error, wall) => errors.toAiError(error, method, wall)
      }
    })

  const effect =
    (method: "generateText" | "generateObject", run: (options: CallOptions) => Effect.Effect<unknown, CallFailure>) =>
    (given: CallOptions) =>
      Effect.flatMap(prepare(method, given, (options) => Stream.fromEffect(run(options))), queue.effect)

  const untyped = asUntyped(model)
  return asTyped({
    ...untyped,
    generateText: effect("generateText", untyped.generateText),
    generateObject: effect("generateObject", untyped.generateObject),
    streamText: (given) =>
      Stream.unwrap(Effect.map(
        prepare("streamText", given, (options) => refusing(provider)(untyped.streamText(options))),
        (call) =>
          // One that is told as it came is a part again.
          Stream.catchIf(queue.stream(call), errors.isErrorPart, (part): Stream.Stream<unknown> => Stream.succeed(part))
      ))
  })
})

type CallFailure = ProcessorFailure | AiError.AiError

/** The service without the types of its overloads, which its calls keep: whatever goes in and comes out is passed on. */
interface Untyped {
  readonly generateText: (options: CallOptions) => Effect.Effect<unknown, CallFailure>
  readonly generateObject: (options: CallOptions) => Effect.Effect<unknown, CallFailure>
  readonly streamText: (options: CallOptions) => Stream.Stream<unknown, CallFailure>
}

// The two places where the types of the service are left, and where it has them again.
const asUntyped = (model: AiLanguageModel.LanguageModel): Untyped => model as unknown as Untyped
const asTyped = (model: Untyped): AiLanguageModel.LanguageModel => model as unknown as AiLanguageModel.LanguageModel

/**
 * Takes a `LanguageModel` and provides one whose calls wait for their turn, and for the limits, in a queue of its own.
 *
 * **Details**
 *
 * - One call of `generateText`, `generateObject` or `streamText` is one request. It holds its permit until its tools have
 *   run, or its stream has ended. A tool that calls the model meanwhile runs on that permit: one is enough for agents of
 *   any depth. To hold it for the provider's answer only, put the queue around the HTTP client
 *   (`effect-llm-queue/HttpClient`).
 * - Input tokens are estimated from the messages, the tools' definitions and the output's schema, a file as 1,000 tokens,
 *   and better with every response; or counted by the `Tokenizer` of `effect/ai` where there is one. The reservation is
 *   settled by the response's usage: all input, of it `cacheRead` as cached, and all output. A call whose tools fail, or
 *   whose response cannot be read, keeps its estimate.
 * - The provider's profile is that of `Model.ProviderName`, unless `provider` says another one. What it recognises as a
 *   refusal is attempted again by the queue, until the first part of a stream that says something is there, or the first
 *   tool has run. An `error` part that it recognises is such a refusal, and fails a stream that has begun; others are
 *   passed on.
 * - Failures of the call are its own. Those of the queue are an `AiError` of module `QueueManager`: `RateLimitError` with
 *   `retryAfter` (`RateLimitExceeded`, `QueueTimeout`, `QueueFull`), `QuotaExhaustedError` (`QuotaExhausted`,
 *   `BudgetExceeded`), `InternalProviderError` (`ProviderUnavailable`, a `processingTimeout`), `InvalidRequestError`
 *   (`RequestTooLarge`, `InvalidRequest`), and `UnknownError`; `queueError` gives the original. Nothing else is to attempt
 *   them again.
 * - Priority, tenant, deadline and labels are those of the region (`QueueManager.withPriority`, …), or of `request`.
 * - Interrupting a call takes it out of the queue, or interrupts it.
 *
 * **Example** (A queued model)
 *
 * ```ts
 * import { Effect, Layer } from "effect"
 * import { LanguageModel, type Model } from "effect/ai"
 * import { QueueManager, RateLimiter } from "effect-llm-queue"
 * import * as QueuedLanguageModel from "effect-llm-queue/LanguageModel"
 *
 * declare const Gpt: Model.Model<"openai", LanguageModel.LanguageModel, never>
 *
 * const Queued = QueuedLanguageModel.layer({ rateLimiters: [RateLimiter.rpm(500), RateLimiter.tpm(30_000)] }).pipe(
 *   Layer.provide(Gpt),
 *   Layer.provide(QueueManager.layer)
 * )
 *
 * const program = LanguageModel.generateText({ prompt: "hello" }).pipe(Effect.provide(Queued))
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (
  options: Options
): Layer.Layer<
  AiLanguageModel.LanguageModel,
  QueueError.RegisterError,
  AiLanguageModel.LanguageModel | QueueManager.QueueManager
> => Layer.effect(AiLanguageModel.LanguageModel, make(options))
