/**
 * Requests of one key share a call. The call is a request like any other, which nobody submits; those who share it are
 * not in the queue, and each ends with it or alone.
 */
import { Duration, Exit } from "effect"
import type { QueueResponse } from "effect-llm-queue"
import type { Reference } from "./reference.ts"
import { errorOf, isActive, must, type Request, tagOf } from "./request.ts"

export class Sharing {
  readonly all = new Map<string, Request>()
  readonly ended: Array<Request> = []
  private readonly reference: Reference
  private readonly full = new Set<Request>()
  /** The queue does not know them any more. */
  private readonly lost: Array<Request> = []

  constructor(reference: Reference) {
    this.reference = reference
  }

  private get calls(): ReadonlyArray<Request> {
    return this.reference.all.filter(({ sharers }) => sharers !== undefined)
  }

  private keyOf(call: Request): string | undefined {
    return call.sharers?.[0]?.key
  }

  /** Where the queue has put one that was submitted: to a call, or nowhere. */
  joined(
    sharer: Request,
    status: Exit.Exit<QueueResponse.QueueResponse<unknown, unknown>, unknown>
  ): Request | undefined {
    const at = (what: string) => `${this.reference.name}/${sharer.id} of ${sharer.key}: ${what}`
    const calls = this.calls.filter((call) => this.keyOf(call) === sharer.key)
    const active = calls.find(isActive)
    const followers = Array.from(this.all.values()).filter((other) =>
      isActive(other) && other.call !== undefined && other.call.sharers![0] !== other
    )
    if (followers.length >= this.reference.options.capacity) this.full.add(sharer)
    const kept = this.kept(sharer)
    if (Exit.isFailure(status)) {
      must(kept === undefined || !this.mayBeAnswered(sharer), () => at("there is a result"))
      this.lost.push(sharer)
      return undefined
    }
    const { isKept, sharedWith } = status.value
    if (isKept === true) {
      must(kept !== undefined, () => at("there is no result"))
      return undefined
    }
    must(kept === undefined, () => at("there is a result"))
    must(active === undefined || active.id === sharedWith, () => at(`shares ${sharedWith}, and ${active?.id} goes on`))
    if (active !== undefined) {
      must(!this.isFull(sharer), () => at(`shares a call as ${followers.length} others do`))
      active.sharers!.push(sharer)
      sharer.call = active
      const headStart = this.reference.headStart(sharer)
      const isWaiting = active.status === "pending" || active.status === "submitted"
      if (isWaiting && headStart > this.reference.headStart(active)) active.context = { ...active.context, headStart }
      return undefined
    }
    return this.begin(sharer, String(sharedWith))
  }

  private begin(sharer: Request, id: string): Request {
    const { deadline: _, ...context } = sharer.context
    const call = this.reference.submit({
      ...sharer,
      id,
      context: { ...context, headStart: this.reference.headStart(sharer) },
      ownTimeout: Number.POSITIVE_INFINITY
    }, { sharers: [sharer] })
    sharer.call = call
    return call
  }

  /** A call that was over before anybody could ask for it. */
  find(id: string, createdAt: number): Request | undefined {
    const sharer = this.lost.find(({ call, submittedAt }) => call === undefined && submittedAt === createdAt)
    return sharer && this.begin(sharer, id)
  }

  /** The newest result that is kept for it. */
  private kept({ key, submittedAt }: Request): Request | undefined {
    const { keep } = this.reference.options
    return this.calls.findLast((call) =>
      this.keyOf(call) === key && call.status === "completed" && call.endedAt + keep > submittedAt
    )
  }

  /** And its end can be looked up. */
  private mayBeAnswered({ malformed, timeout, whileClosing, whileDraining }: Request): boolean {
    return !malformed && !whileClosing && !whileDraining && timeout > 0 && this.reference.options.retainCount > 0
  }

  /** Whether as many as may wait for calls of others. */
  isFull(sharer: Request): boolean {
    return this.full.has(sharer)
  }

  end(
    sharer: Request,
    event: QueueResponse.QueueResponse<unknown, unknown>,
    at: (what: string) => string
  ): void {
    const { call } = sharer
    const kept = this.kept(sharer)
    must(
      sharer.status === "pending" || (event.isKept === true && sharer.status === "submitted"),
      () => at("not forward")
    )
    if (event.status === "pending" || event.status === "processing") return
    sharer.status = event.status
    sharer.ending = event
    sharer.endedAt = sharer.submittedAt + Duration.toMillis(event.queueTime) + Duration.toMillis(event.processingTime)
    this.ended.push(sharer)
    if (event.isKept === true) {
      must(sharer.endedAt === sharer.submittedAt, () => at("not at once"))
      must(
        event.status === "completed" && kept?.ending?.status === "completed" && kept.ending.result === event.result,
        () => at("another result")
      )
      return
    }
    must(event.sharedWith === call?.id, () => at("another call"))
    const tag = event.status === "failed" ? tagOf(errorOf(Exit.failCause(event.cause))) : undefined
    if (tag === "QueueTimeout" && sharer.endedAt === sharer.submittedAt + sharer.timeout) return
    if (event.status === "cancelled" && sharer.cancelAsked) return
    const ending = call?.ending
    must(ending?.status === event.status && call?.endedAt === sharer.endedAt, () => at("its call ended otherwise"))
    if (event.status === "completed") {
      must(ending?.status === "completed" && ending.result === event.result, () => at("another result"))
    }
    if (event.status !== "failed") return
    const failure = ending?.status === "failed" ? errorOf(Exit.failCause(ending.cause)) : undefined
    must(failure === errorOf(Exit.failCause(event.cause)), () => at("another failure"))
  }

  /** A call that was never accepted leaves nothing behind when those who share it have gone. */
  settle(): void {
    for (const call of this.calls) {
      if (call.status === "submitted" && !call.sharers!.some(isActive)) call.status = "refused"
    }
  }

  check(now: number): void {
    for (const sharer of this.all.values()) {
      const at = (what: string) => `${this.reference.name}/${sharer.id} at ${now}: ${what}`
      if (!isActive(sharer)) continue
      must(sharer.submittedAt + sharer.timeout > now, () => at("is past its timeout"))
      must(sharer.call !== undefined && isActive(sharer.call), () => at("its call has ended"))
      must(sharer.status === "pending" || sharer.call?.status === "submitted", () => at("its call was accepted"))
    }
    for (const call of this.calls) {
      must(!isActive(call) || call.sharers!.some(isActive), () => `${call.id} goes on for nobody`)
    }
  }
}
