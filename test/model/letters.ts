/** The dead letters of a queue: what failed after its acceptance, the newest, until it is too old or taken away. */
import type { Request } from "./request.ts"

export class Letters {
  readonly count: number
  readonly age: number
  /** In the order in which they failed. */
  private kept: ReadonlyArray<Request> = []
  private readonly order: Array<Request> = []

  constructor(count: number, age: number) {
    this.count = count
    this.age = age
  }

  failed(request: Request): void {
    this.order.push(request)
    this.keep(request)
  }

  /** Those of an instant. */
  at(now: number): ReadonlyArray<Request> {
    return this.kept.filter(({ endedAt }) => endedAt + this.age > now)
  }

  take(request: Request): void {
    this.kept = this.kept.filter((other) => other !== request)
  }

  /** Also back in its place, when it could not be submitted again. */
  keep(request: Request): void {
    const all = this.order.filter((other) => other === request || this.kept.includes(other))
    this.kept = all.slice(Math.max(0, all.length - this.count))
  }
}
