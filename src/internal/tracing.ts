/**
 * Spans of a request, in the trace of its submitter: what it waited, and each attempt. No texts are in them.
 *
 * A tracer is somebody's code: one that throws is not asked again for that request, which goes on.
 *
 * A request without a trace, or with the native tracer, which shows its spans to nobody, has no spans of its own: its
 * processor's are children of the submitter's.
 */
import type * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Tracer from "effect/Tracer"
import type * as RateLimiter from "../RateLimiter.ts"
import type { Reason } from "./observer.ts"

export interface Described {
  readonly modelId: string
  readonly provider: string | undefined
  readonly requestId: string
  readonly tenant: string | undefined
  readonly attempt: number
  readonly cost: RateLimiter.Cost
}

export class Trace {
  private readonly parent: Tracer.AnySpan | undefined
  private tracer: Tracer.Tracer | undefined
  private readonly clock: Clock.Clock
  private since: bigint
  private attempt: Tracer.Span | undefined
  /** What kept it back, while it was the first in order. */
  waitedFor: Reason | undefined

  constructor(parent: Tracer.AnySpan | undefined, tracer: Tracer.Tracer | undefined, clock: Clock.Clock) {
    this.parent = parent
    this.tracer = tracer
    this.clock = clock
    this.since = tracer === undefined ? 0n : clock.currentTimeNanosUnsafe()
  }

  private safely<A>(use: () => A): A | undefined {
    try {
      return use()
    } catch {
      this.tracer = this.attempt = undefined
      return undefined
    }
  }

  private span(name: string, kind: Tracer.SpanKind, startTime: bigint): Tracer.Span | undefined {
    const { parent, tracer } = this
    return tracer?.span({
      name,
      kind,
      startTime,
      parent: Option.fromUndefinedOr(parent),
      annotations: Context.empty(),
      links: [],
      root: parent === undefined,
      sampled: parent?.sampled ?? true
    })
  }

  /** It has waited, until an attempt or, without one, its end. */
  waited({ modelId, requestId }: Pick<Described, "modelId" | "requestId">, exit: Exit.Exit<unknown, unknown>): void {
    if (this.tracer === undefined) return
    this.safely(() => {
      const span = this.span("ModelQueue.queued", "internal", this.since)
      span?.attribute("llm_queue.model", modelId)
      span?.attribute("llm_queue.request_id", requestId)
      if (this.waitedFor !== undefined) span?.attribute("llm_queue.waited_for", this.waitedFor)
      span?.end(this.clock.currentTimeNanosUnsafe(), exit)
    })
    this.waitedFor = undefined
  }

  /** An attempt begins. Gives the span that its processor is in. */
  begin({ attempt, cost, modelId, provider, requestId, tenant }: Described): Tracer.AnySpan | undefined {
    if (this.tracer === undefined) return this.parent
    return this.safely(() => {
      const span = this.attempt = this.span("ModelQueue.attempt", "client", this.clock.currentTimeNanosUnsafe())!
      span.attribute("llm_queue.model", modelId)
      span.attribute("llm_queue.request_id", requestId)
      span.attribute("llm_queue.attempt", attempt)
      span.attribute("llm_queue.estimated.input_tokens", cost.inputTokens)
      span.attribute("llm_queue.estimated.output_tokens", cost.outputTokens)
      if (tenant !== undefined) span.attribute("llm_queue.tenant", tenant)
      span.attribute("gen_ai.request.model", modelId)
      if (provider !== undefined) span.attribute("gen_ai.provider.name", provider)
      if (cost.maxOutputTokens !== undefined) span.attribute("gen_ai.request.max_tokens", cost.maxOutputTokens)
      return span
    }) ?? this.parent
  }

  firstElement(): void {
    const { attempt } = this
    if (attempt === undefined) return
    this.safely(() => attempt.event("llm_queue.first_element", this.clock.currentTimeNanosUnsafe()))
  }

  /** The attempt is over, and if there is another one it waits from now on. */
  end(
    exit: Exit.Exit<unknown, unknown>,
    usage: RateLimiter.Tokens | undefined,
    refusal?: RateLimiter.RefusalKind
  ): void {
    const { attempt } = this
    if (attempt === undefined) return
    this.attempt = undefined
    const at = this.since = this.clock.currentTimeNanosUnsafe()
    this.safely(() => {
      if (usage !== undefined) {
        attempt.attribute("gen_ai.usage.input_tokens", usage.inputTokens)
        attempt.attribute("gen_ai.usage.output_tokens", usage.outputTokens)
      }
      if (refusal !== undefined) attempt.attribute("llm_queue.refusal", refusal)
      // The result may be secret.
      attempt.end(at, Exit.isSuccess(exit) ? Exit.void : exit)
    })
  }
}

/** The trace of the fiber that submits, if there is one. */
export const of = (fiber: Fiber.Fiber<unknown, unknown>, clock: Clock.Clock): Trace | undefined => {
  const parent = Context.getOrUndefined(fiber.context, Tracer.ParentSpan)
  const tracer = fiber.getRef(Tracer.Tracer)
  const isSeen = tracer !== Tracer.nativeTracer
  return parent === undefined && !isSeen ? undefined : new Trace(parent, isSeen ? tracer : undefined, clock)
}
