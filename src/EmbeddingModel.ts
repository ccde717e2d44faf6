/**
 * An `EmbeddingModel` of `effect/ai` whose calls go through a queue, in requests that its limits have room for.
 *
 * `effect/ai` is unstable: a minor version of Effect may need a new version of this module.
 *
 * @since 0.1.0
 */
import * as AiEmbeddingModel from "effect/ai/EmbeddingModel"
import * as Tokenizer from "effect/ai/Tokenizer"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as errors from "./internal/ai/errors.ts"
import { resolve } from "./internal/ai/model.ts"
import * as calls from "./internal/calls.ts"
import { measure } from "./internal/tokenEstimator.ts"
import type * as ModelConfig from "./ModelConfig.ts"
import type * as QueueError from "./QueueError.ts"
import * as QueueManager from "./QueueManager.ts"

/**
 * What a queue knows of a call, and estimates its tokens from.
 *
 * @category models
 * @since 0.1.0
 */
export interface Call {
  readonly text: ReadonlyArray<string>
}

/**
 * Options of a queued embedding model: its limits, all that a queue of streams can be given, and `request`, which says what
 * a single request asks of the queue.
 *
 * @category models
 * @since 0.1.0
 */
export type Options =
  & calls.Options<Call>
  & {
    /** The id of the model in the queue manager. Default: the `Model.ModelName` of the context, if it has one. */
    readonly modelId?: string | undefined
    /** Most inputs of one request, at least 1. Default 2,048, which is the most that OpenAI takes. */
    readonly maxInputs?: number | undefined
    /**
     * Most tokens of one request, as they are estimated: inputs are put together up to it, and one that is larger is a
     * request of its own. Default: a quarter of the smallest limit on tokens, so that several fit.
     */
    readonly maxTokens?: number | undefined
  }

const mostInputs = 2048
const shareOfLimit = 0.25

const smallestLimit = (rateLimiters: Options["rateLimiters"]): number =>
  (Array.isArray(rateLimiters) ? rateLimiters : []).reduce(
    (least: number, { limit, type }) =>
      type === "tpm" || type === "itpm" || type === "tpd" ? Math.min(least, limit) : least,
    Number.POSITIVE_INFINITY
  )

interface Input {
  readonly text: string
  readonly tokens: number
  /** Whether a tokenizer has counted them. */
  readonly isExact: boolean
}

/** In order, as much in each as there may be. */
const batches = (inputs: ReadonlyArray<Input>, maxInputs: number, maxTokens: number): ReadonlyArray<Array<Input>> => {
  const found: Array<Array<Input>> = []
  let tokens = Number.POSITIVE_INFINITY
  for (const input of inputs) {
    const last = found.at(-1)
    if (last === undefined || last.length >= maxInputs || tokens + input.tokens > maxTokens) {
      found.push([input])
      tokens = input.tokens
    } else {
      last.push(input)
      tokens += input.tokens
    }
  }
  return found
}

/** Requests of different tenants, priorities, labels or deadlines are not put together. */
const keyOf = (region: QueueManager.RequestContext): unknown => {
  const { deadline, labels = {}, priority, tenant } = region
  // An instant has many forms: those of one region only are surely the same.
  if (deadline !== undefined) return region
  return JSON.stringify([tenant, priority, Object.entries(labels).toSorted(([a], [b]) => a < b ? -1 : 1)])
}

const usage = (element: unknown): ModelConfig.Usage | undefined => {
  const { inputTokens } = (element as AiEmbeddingModel.EmbedManyResponse).usage
  return inputTokens === undefined ? undefined : { inputTokens, outputTokens: 0 }
}

/**
 * An embedding model whose calls go through a queue of its own, which lives as long as the scope.
 *
 * See `layer`.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fnUntraced(function*(
  { maxInputs = mostInputs, maxTokens, modelId: given, request, ...options }: Options
): Effect.fn.Return<
  AiEmbeddingModel.EmbeddingModel,
  QueueError.RegisterError,
  AiEmbeddingModel.EmbeddingModel | QueueManager.QueueManager | Scope.Scope
> {
  const model = yield* AiEmbeddingModel.EmbeddingModel
  const ownTokenizer = yield* Effect.serviceOption(Tokenizer.Tokenizer)
  const { modelId, provider } = yield* resolve({ ...options, modelId: given })
  const queue = yield* calls.make<Call>(modelId, { ...options, provider }, usage, errors.isProviders)
  const mostTokens = maxTokens ?? smallestLimit(options.rateLimiters) * shareOfLimit

  /** Exact with a tokenizer. One that fails is not needed. */
  const counted = (text: string): Effect.Effect<Input> =>
    Effect.flatMap(Effect.serviceOption(Tokenizer.Tokenizer), (theirs) => {
      const estimated = { text, tokens: measure(text).tokens, isExact: false }
      return Option.match(Option.orElse(theirs, () => ownTokenizer), {
        onNone: () => Effect.succeed(estimated),
        onSome: ({ tokenize }) =>
          Effect.matchCause(tokenize(text), {
            onFailure: () => estimated,
            onSuccess: ({ length }) => ({ text, tokens: length, isExact: true })
          })
      })
    })

  const one = (inputs: ReadonlyArray<Input>) => {
    const text = inputs.map(({ text }) => text)
    const estimatedInputTokens = inputs.every(({ isExact }) => isExact)
      ? inputs.reduce((sum, { tokens }) => sum + tokens, 0)
      : undefined
    return queue.effect({
      params: { text },
      options: { ...request?.({ text }), estimatedOutputTokens: 0, estimatedInputTokens },
      // A service may begin its work when it is asked, not when the effect is run.
      stream: Stream.suspend(() => Stream.fromEffect(model.embedMany(text))),
      hasActed: () => false,
      toError: (error, wall) => errors.toAiError(error, "embedMany", wall)
    })
  }

  return yield* AiEmbeddingModel.make({
    batchKey: (context) => keyOf(Context.get(context, QueueManager.CurrentRequestContext)),
    embedMany: ({ inputs }) =>
      Effect.gen(function*() {
        const known = yield* Effect.forEach(inputs, counted)
        const responses = yield* Effect.forEach(batches(known, maxInputs, mostTokens), one, {
          concurrency: "unbounded"
        })
        const tokens = responses.map(({ usage }) => usage.inputTokens)
        return {
          results: responses.flatMap(({ embeddings }) => embeddings.map(({ vector }) => [...vector])),
          usage: { inputTokens: tokens.reduce((sum, part) => part === undefined ? sum : (sum ?? 0) + part, undefined) }
        }
      })
  })
})

/**
 * Takes an `EmbeddingModel` and provides one whose calls wait for their turn, and for the limits, in a queue of its own.
 *
 * **Details**
 *
 * - The inputs of a call, or of several `embed` calls that are made together, are put into as few requests as `maxInputs`
 *   and `maxTokens` allow, each of which waits for itself. The results are in the order of the inputs; the usage is that of
 *   all requests.
 * - When one request fails, so does the call, and its other requests are cancelled. So are those of an `embedMany` that is
 *   interrupted; `embed` calls that are put together go on together, as with any resolver of Effect.
 * - Input tokens are estimated from the characters, and better with every response; or counted by the `Tokenizer` of
 *   `effect/ai` where there is one. The reservation is settled by the usage.
 * - Failures are those of `effect-llm-queue/LanguageModel`, whose `queueError` gives the queue's own.
 *
 * **Example** (A queued model)
 *
 * ```ts
 * import { Effect, Layer } from "effect"
 * import { EmbeddingModel, type Model } from "effect/ai"
 * import { QueueManager, RateLimiter } from "effect-llm-queue"
 * import * as QueuedEmbeddingModel from "effect-llm-queue/EmbeddingModel"
 *
 * declare const Embeddings: Model.Model<"openai", EmbeddingModel.EmbeddingModel, never>
 *
 * const Queued = QueuedEmbeddingModel.layer({ rateLimiters: [RateLimiter.rpm(3000), RateLimiter.tpm(1_000_000)] }).pipe(
 *   Layer.provide(Embeddings),
 *   Layer.provide(QueueManager.layer)
 * )
 *
 * const program = EmbeddingModel.EmbeddingModel.use((model) => model.embedMany(["one", "two"])).pipe(
 *   Effect.provide(Queued)
 * )
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (
  options: Options
): Layer.Layer<
  AiEmbeddingModel.EmbeddingModel,
  QueueError.RegisterError,
  AiEmbeddingModel.EmbeddingModel | QueueManager.QueueManager
> => Layer.effect(AiEmbeddingModel.EmbeddingModel, make(options))
