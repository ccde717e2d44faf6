/**
 * Effects and streams of others as requests of a queue. A call runs in the processor's fiber, in its caller's context, as
 * a stream, of one element if it is an effect.
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as ModelConfig from "../ModelConfig.ts"
import * as QueueError from "../QueueError.ts"
import * as QueueManager from "../QueueManager.ts"
import type * as QueueRequest from "../QueueRequest.ts"
import { CurrentEntry, type ProcessorFailure } from "./entry.ts"

/** What a queue of calls can be given: its limits, and all that a queue of streams has. */
export type Options<P> =
  & Omit<ModelConfig.StreamOptions<P, never>, "usage">
  & ModelConfig.Limits
  & {
    /** What a call asks of the queue besides: a priority, a tenant, a timeout, labels, … Default: nothing. */
    readonly request?: ((call: P) => QueueRequest.RequestOptions) | undefined
  }

/**
 * A failure of a call that is not for the queue to read: it says nothing about the provider. What the queue looks for in
 * failures is in none of its fields.
 */
class Unread {
  readonly inner: Cause.Cause<unknown>

  constructor(inner: Cause.Cause<unknown>) {
    this.inner = inner
  }
}

/** Where a call's parameters carry how it is run. It goes along with each copy of them, and is not measured. */
const runKey = Symbol("effect-llm-queue/internal/run")

/** What is seen of a call, and how it is run. */
type Running<P> = P & { readonly [runKey]: Stream.Stream<unknown, ProcessorFailure> }

export interface Call<P, A, E, R, Q> {
  readonly params: P
  readonly options: QueueRequest.RequestOptions
  readonly stream: Stream.Stream<A, E, R>
  /** Whether it has done something that must not be done twice. */
  readonly hasActed: () => boolean
  /** What its caller hears of the queue's own failures. */
  readonly toError: (error: QueueError.SubmitError, wall: number) => Q
}

export interface Calls<P> {
  /** The stream of a call, once it is its turn. */
  readonly stream: <A, E, R, Q>(call: Call<P, A, E, R, Q>) => Stream.Stream<A, E | Q, Exclude<R, Scope.Scope>>
  /** The same of a call whose stream has one element. */
  readonly effect: <A, E, R, Q>(call: Call<P, A, E, R, Q>) => Effect.Effect<A, E | Q, R>
}

/** Registers a queue for calls, of whose failures some are the provider's: only those are read by the queue. */
export const make = Effect.fnUntraced(function*<P extends object>(
  modelId: string,
  options: ModelConfig.StreamOptions<P, never> & ModelConfig.Limits,
  usage: (element: unknown) => ModelConfig.Usage | undefined,
  isProviders: (failure: unknown) => boolean
): Effect.fn.Return<Calls<P>, QueueError.RegisterError, QueueManager.QueueManager | Scope.Scope> {
  const manager = yield* QueueManager.QueueManager
  const model = ModelConfig.makeStreamUntyped<Running<P>, unknown, ProcessorFailure>(modelId, { ...options, usage })
  yield* manager.registerStream(model, ({ params }) => params[runKey])

  const submit = <A, E, R, Q>(
    { hasActed, options, params, stream, toError }: Call<P, A, E, R, Q>,
    caller: Context.Context<R>
  ): Stream.Stream<A, E | Q> => {
    // Once something was done that is not to be done twice, what failed may be that.
    const isRead = (cause: Cause.Cause<unknown>) =>
      !hasActed() && cause.reasons.length > 0
      && cause.reasons.every((reason) => Cause.isFailReason(reason) && isProviders(reason.error))
    const run = stream.pipe(
      Stream.catchCause((cause) => Stream.failCause(untyped(isRead(cause) ? cause : Cause.fail(new Unread(cause))))),
      // Of the processor's own context only what makes a call inside this one a nested request.
      Stream.updateContext((own: Context.Context<never>) =>
        Context.merge(caller, Context.pick(CurrentEntry, QueueManager.CurrentRequestContext)(own))
      )
    )
    const elements = manager.stream(model, { ...params, [runKey]: run }, options)
    return Stream.catch(asOf<A, E>(elements), (error): Stream.Stream<never, E | Q> => {
      if (error instanceof Unread) return Stream.failCause(error.inner as Cause.Cause<E>)
      if (!isOfQueue(error)) return Stream.fail(error)
      return error._tag === "ProcessingError" && Cause.isCause(error.cause)
        ? Stream.failCause(error.cause as Cause.Cause<never>)
        : Stream.unwrap(Effect.map(Clock.currentTimeMillis, (wall) => Stream.fail(toError(error, wall))))
    })
  }

  return {
    stream: <A, E, R, Q>(call: Call<P, A, E, R, Q>) =>
      Stream.unwrap(Effect.map(Effect.context<R>(), (caller) => submit(call, caller))),
    // To its end: what has not ended when its reader leaves is cancelled.
    effect: <A, E, R, Q>(call: Call<P, A, E, R, Q>) =>
      Effect.flatMap(
        Effect.context<R>(),
        (caller) => Effect.map(Stream.runLast(submit(call, caller)), Option.getOrThrow)
      )
  }
})

/** What a call itself fails with is no error of a queue, or was not read. */
const isOfQueue = (error: unknown): error is QueueError.SubmitError => QueueError.isQueueError(error)

// The two places where a call loses its types, which its queue does not know, and where it has them again.
const untyped = (cause: Cause.Cause<unknown>) => cause as Cause.Cause<ProcessorFailure>
const asOf = <A, E>(elements: Stream.Stream<unknown, ProcessorFailure | QueueError.SubmitError>) =>
  elements as unknown as Stream.Stream<A, E | Unread | QueueError.SubmitError>
