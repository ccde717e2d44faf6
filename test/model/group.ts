/** A request to a group of models: in one of them at a time, and on to the next after what another may be spared. */
import { Exit } from "effect"
import type { Reference } from "./reference.ts"
import { type Asked, errorOf, isActive, must, type Request, tagOf } from "./request.ts"

/** A request goes on to the next model after these, and after a timeout that was foreseen. */
const passing = new Set<unknown>([
  "BudgetExceeded",
  "ModelNotRegistered",
  "QueueDraining",
  "QueueFull",
  "QueueShutdown",
  "RequestTooLarge"
])

export class Group {
  readonly asked: Asked
  /** In the order in which they were seen. */
  readonly requests: Array<Request> = []
  left = false

  constructor(asked: Asked) {
    this.asked = asked
  }

  /** It is seen in a queue: one timeout holds for all of them together. */
  seen(reference: Reference, at: number): Request {
    const found = this.requests.find((request) => request.reference === reference)
    if (found !== undefined) return found
    const { ownTimeout, submittedAt } = this.asked
    const asked = { ...this.asked, submittedAt: at, ownTimeout: ownTimeout - (at - submittedAt) }
    const request = reference.submit(asked, { isLate: true })
    request.cancelAsked = this.left
    this.requests.push(request)
    return request
  }

  check(): void {
    const active = this.requests.filter(isActive)
    must(
      active.length <= 1,
      () => `${this.asked.id} is in ${active.map(({ reference }) => reference.name).join(" and ")}`
    )
  }

  /** `others` are queues that it could have gone to, if it was answered now. */
  answered(exit: Exit.Exit<unknown, unknown>, others: ReadonlyArray<Reference>, now: number): void {
    const at = (what: string) => `${this.asked.id} was answered ${String(exit)}: ${what}`
    const last = this.requests.at(-1)
    for (const request of this.requests) {
      must(!isActive(request), () => at(`it goes on in ${request.reference.name}`))
      const tag = this.failure(request)
      if (request !== last) must(request.status === "refused" || passing.has(tag), () => at(`after ${String(tag)}`))
    }
    if (this.left) return
    if (Exit.isSuccess(exit)) {
      const { ending } = last ?? {}
      must(
        ending?.status === "completed" && (exit.value as { readonly result: unknown }).result === ending.result,
        () => at("another result")
      )
      return
    }
    const tag = tagOf(errorOf(exit))
    const free = others.find((reference) =>
      !this.requests.some((request) => request.reference === reference) && reference.isFree(this.asked, now)
    )
    must(!passing.has(tag) || free === undefined, () => at(`${free?.name} could have taken it`))
    const refusals = [...passing, "QueueTimeout"]
    must(
      tag === (last && this.failure(last)) || (refusals.includes(tag) && (last === undefined
        || last.status === "refused" || passing.has(this.failure(last)))),
      () => at(`after ${last?.status}`)
    )
  }

  private failure({ ending }: Request): unknown {
    return ending?.status === "cancelled"
      ? "RequestCancelled"
      : ending?.status === "failed"
      ? tagOf(errorOf(Exit.failCause(ending.cause)))
      : undefined
  }
}
