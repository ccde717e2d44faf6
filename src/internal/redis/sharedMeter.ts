/**
 * The meter of a limit that is counted on the server. It decides nothing: it knows what the server last said, and turns
 * what becomes of a charge into effects that the server is told.
 */
import type * as RateLimiter from "../../RateLimiter.ts"
import type { History, Mark, Meter } from "../meters/meter.ts"
import type { LimitMeter, Sent } from "../meters/meters.ts"
import { type Cell, cellsOf } from "./cells.ts"

/** A part of a charge, in one cell. */
export interface Part {
  readonly cell: Cell
  readonly meter: SharedMeter
  /** The reservation. */
  readonly id: string
  /** Where it is, in the server's words. -1 without a date. */
  mark: number | string
  /** Its date, or its latest change, in local time. */
  at: number
}

/** A change of a part: by an amount, and, if it gets its date, of so much. */
export interface Effect {
  readonly part: Part
  readonly by: number
  readonly dates: number | undefined
}

/** What a server says of a cell: used, held, sent, taken away, paused for, how old it is, its capacity. */
export type Told = readonly [number, number, number, number, number, number, number]

/** What a server says of a part of a charge: its cell, its mark, what has been sent by then, what is available after it. */
export type Granted = readonly [number, number | string, number, number]

/** What was charged when, by slices, as far as it may still count: for a server that has lost it. */
class Book {
  private readonly resolution: number
  private readonly isForEver: boolean
  private readonly amounts = new Map<number, number>()

  constructor(length: number) {
    this.isForEver = length === Number.POSITIVE_INFINITY
    this.resolution = this.isForEver ? 60_000 : length / 1024
  }

  add(at: number, amount: number): void {
    const slice = Math.floor(at / this.resolution)
    this.amounts.set(slice, (this.amounts.get(slice) ?? 0) + amount)
    if (this.amounts.size <= 2048) return
    // By date, but for what was changed since: the first one is as good as gone, unless it counts for ever.
    const [[first, oldest]] = this.amounts as unknown as [[number, number]]
    this.amounts.delete(first)
    if (!this.isForEver) return
    const [[second, next]] = this.amounts as unknown as [[number, number]]
    this.amounts.set(second, next + oldest)
  }

  since(at: number): ReadonlyArray<{ readonly at: number; readonly amount: number }> {
    return Array.from(this.amounts, ([slice, amount]) => ({ at: (slice + 1) * this.resolution, amount }))
      .filter((each) => each.at >= at && each.amount > 0)
  }
}

export interface Outbox {
  /** `said` is called once, with what the server is asked next. */
  readonly effects: (id: string, effects: ReadonlyArray<Effect>, said: () => void) => void
  readonly lower: (cell: Cell, by: number, seen: number, said: () => void) => void
  readonly redate: (id: string, parts: ReadonlyArray<Part>, amount: number, late: number) => void
  readonly warm: (cell: Cell) => void
}

// What counts is asked for what is kept for tenants, of which there is nothing where limits are shared.
const asMeter = (meter: SharedMeter): Meter => meter as unknown as Meter

// The two places where an opaque mark is made and read back.
const mark = (parts: ReadonlyArray<Part>): Mark => parts as unknown as Mark
const own = (mark: Mark): ReadonlyArray<Part> => mark as unknown as ReadonlyArray<Part>

export class SharedMeter implements LimitMeter {
  cells: ReadonlyArray<Cell>
  readonly pacing = []
  readonly atOnce = 0
  /** Of a limit of the model: those of its tenants begin anew when they are lost. */
  readonly book: Book | undefined
  /** What is there after the charge that is being made. */
  readonly shared: { sent: number; available: number } = { sent: 0, available: 0 }
  enforced: number
  largest = 1
  lowered = 0
  /** Reservations without a date that are this process's own. */
  held: () => number = () => 0
  /** When there is more, for as long as that is asked. */
  next: number | undefined
  /** What the server has granted, until it is charged. */
  private granted: ReadonlyArray<Part> = []
  /** As the server has told it, with what it is being told, and what it is still to be told. */
  private known = 0
  private telling = 0
  private untold = 0
  private ceiling = Number.POSITIVE_INFINITY
  private limit: RateLimiter.Limit
  private readonly prefix: string
  private readonly margin: number
  private readonly outbox: Outbox

  constructor(limit: RateLimiter.Limit, prefix: string, margin: number, outbox: Outbox) {
    this.limit = limit
    this.prefix = prefix
    this.margin = margin
    this.cells = cellsOf(limit, prefix, margin)
    this.enforced = limit.limit
    this.book = prefix === "" ? new Book(limit.timePeriod!) : undefined
    this.outbox = outbox
  }

  get counting(): LimitMeter["counting"] {
    return [asMeter(this)]
  }

  get capacity(): number {
    return Math.min(this.cells[0]!.capacity(this.enforced), this.ceiling)
  }

  /** What the server says. */
  told([used, held, , lowered, , , capacity]: Told): void {
    this.known = used + held
    this.telling = 0
    this.lowered = lowered
    this.ceiling = capacity
  }

  /** Before a charge is made: what the server has put where. */
  grant(
    id: string,
    marks: ReadonlyArray<Granted>,
    amount: number,
    now: number
  ): void {
    const [, , sent, available] = marks[0]!
    this.shared.sent = sent
    this.shared.available = available
    this.book?.add(now, amount)
    this.granted = marks.map(([, mark], index) => ({
      cell: this.cells[index]!,
      meter: this,
      id,
      mark,
      at: now
    }))
  }

  used(_now: number): number {
    return this.known + this.telling + this.untold - this.held()
  }

  available(now: number): number {
    return this.capacity - this.used(now)
  }

  fitsAt(_amount: number, _held: number, now: number): number {
    return this.next ?? now
  }

  through(_ahead: number, _amount: number, _held: number, now: number): number {
    return now
  }

  send(sent: Sent, _now: number): void {
    sent.paced = [mark(this.granted)]
  }

  date({ amount, paced }: Sent, now: number): void {
    const parts = own(paced[0]!)
    this.apply(parts.filter(({ cell, mark }) => !cell.paces && mark === -1), 0, amount, now)
  }

  landed(_sent: Sent, _now: number): void {}

  /** It is sent so late that it has to count from now on. */
  redate({ amount, paced }: Sent, late: number): void {
    const parts = own(paced[0]!).filter(({ mark }) => mark !== -1)
    if (parts.length > 0) this.outbox.redate(parts[0]!.id, parts, amount, late)
  }

  adjust(sent: Sent, by: number, now: number): boolean {
    const parts = own(sent.paced[0]!).filter((part) => this.counts(part, by, now))
    if (by === 0) return parts.length > 0
    this.apply(parts, by, undefined, now)
    const changed = parts.some(({ cell }) => !cell.paces)
    if (changed) sent.amount += by
    return changed
  }

  lower(available: number, now: number): void {
    const by = this.available(now) - available
    if (by <= 0) return
    this.outbox.lower(this.cells[0]!, by, this.lowered, this.changes(by))
    this.lowered += by
  }

  raise(_available: number, _now: number): void {}

  confirmOthers(_unseen: number, _now: number): number {
    return 0
  }

  warm(_now: number): void {
    for (const cell of this.cells) if (cell.paces) this.outbox.warm(cell)
  }

  pace(_isPaced: boolean, _now: number): void {}

  setLimit(limit: number, _now: number): void {
    this.enforced = limit
  }

  configure(limit: RateLimiter.Limit): void {
    this.limit = limit
    this.cells = cellsOf(limit, this.prefix, this.margin)
    this.ceiling = Number.POSITIVE_INFINITY
  }

  charge(_amount: number, _now: number): Mark {
    return mark([])
  }

  history(_now: number): History {
    return { entries: [], find: () => undefined }
  }

  since(now: number): number {
    return now - this.limit.timePeriod!
  }

  replay(): ReadonlyArray<Mark> {
    return []
  }

  part(all: ReadonlyArray<Mark>): ReadonlyArray<Mark> {
    return all
  }

  /** Whether a change of it still means something. What is used beyond an estimate is a debt of a bucket, however late. */
  private counts({ at, cell, mark }: Part, by: number, now: number): boolean {
    if (mark === -1 || cell.kind === "total" || (cell.kind === "bucket" && by > 0)) return true
    return now - at < cell.length * (1 + 1 / 1024)
  }

  /** What is used changes, and the server does not know yet. */
  private changes(by: number): () => void {
    this.untold += by
    let isSaid = false
    return () => {
      if (isSaid) return
      isSaid = true
      this.untold -= by
      this.telling += by
    }
  }

  private apply(parts: ReadonlyArray<Part>, by: number, dates: number | undefined, now: number): void {
    if (parts.length === 0) return
    const isOwn = parts.some(({ cell }) => cell.name === this.cells[0]!.name)
    this.outbox.effects(parts[0]!.id, parts.map((part) => ({ part, by, dates })), this.changes(isOwn ? by : 0))
    if (by !== 0) this.book?.add(parts[0]!.at, by)
    if (dates !== undefined) { for (const part of parts) part.at = now }
  }
}
