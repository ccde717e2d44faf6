/** What the page knows, and how it stays connected. */
import * as api from "./api.ts"

/** What is worked out from two readings of a queue. */
export interface Row {
  readonly queue: api.Queue
  readonly completedPerSecond: number
  readonly failedPerSecond: number
  /** The fullest of its limits, 0 to 1 and more. */
  readonly fullest: api.Limit | undefined
}

export interface Point {
  readonly at: number
  readonly completed: number
  readonly failed: number
  readonly depth: number
  readonly running: number
  readonly p50: number | null
  readonly p95: number | null
}

export type Connection =
  | { readonly state: "connecting" }
  | { readonly state: "live" }
  /** Nobody looks at the page. */
  | { readonly state: "asleep" }
  | { readonly state: "waiting"; readonly why: string }
  | { readonly state: "locked"; readonly why: string | undefined }
  | { readonly state: "refused"; readonly why: string }

const recent = 100
const historyMillis = 15 * 60_000
/** The server says something every second: when it says nothing for so long, it is gone. */
const silenceMillis = 15_000
const hiddenMillis = 60_000
const longestPause = 10_000

export const used = ({ limit, used }: api.Limit): number => limit > 0 ? used / limit : 0

const rowOf = (queue: api.Queue, before: Row | undefined, seconds: number): Row => {
  const rate = (now: number, then: number | undefined) =>
    then === undefined || seconds <= 0 ? 0 : Math.max(0, now - then) / seconds
  let fullest: api.Limit | undefined
  for (const limit of queue.limits) if (fullest === undefined || used(limit) > used(fullest)) fullest = limit
  return {
    queue,
    completedPerSecond: rate(queue.completed, before?.queue.completed),
    failedPerSecond: rate(queue.failed, before?.queue.failed),
    fullest
  }
}

const pointOf = (sample: api.Sample): Point => ({
  at: sample.at,
  completed: sample.completedPerSecond,
  failed: sample.failedPerSecond,
  depth: sample.depth,
  running: sample.running,
  p50: sample.waitP50Millis,
  p95: sample.waitP95Millis
})

const append = (points: Array<Point>, point: Point): Array<Point> => {
  const from = points.findIndex(({ at }) => at > point.at - historyMillis)
  return [...(from < 0 ? [] : points.slice(from)), point]
}

export class Store {
  rows: ReadonlyMap<string, Row> = new Map()
  total: Array<Point> = []
  /** Of the model that is looked at. */
  points: { readonly modelId: string; readonly points: Array<Point> } | undefined
  failures: ReadonlyArray<api.Event> = []
  events: ReadonlyArray<api.Event> = []
  connection: Connection = { state: "connecting" }
  canAct = false
  /** When the last message was made, by the server's clock. */
  at = 0
  private readonly listeners = new Set<() => void>()
  private isChanged = false
  private abort: AbortController | undefined
  private goOn: (() => void) | undefined

  subscribe(listener: () => void): () => void {
    this.listeners.add(listener)
    return () => this.listeners.delete(listener)
  }

  /** At most once a frame. */
  private changed(): void {
    if (this.isChanged) return
    this.isChanged = true
    const tell = () => {
      if (!this.isChanged) return
      this.isChanged = false
      for (const listener of this.listeners) listener()
    }
    requestAnimationFrame(tell)
    // Nothing is drawn of a page that is hidden.
    setTimeout(tell, 250)
  }

  private connect(connection: Connection): void {
    this.connection = connection
    this.changed()
  }

  /** Which model is looked at, whose history is wanted. */
  look(modelId: string | undefined): void {
    if (modelId === this.points?.modelId) return
    this.points = modelId === undefined ? undefined : { modelId, points: [] }
    if (modelId !== undefined) void this.readHistory(modelId)
    this.changed()
  }

  private async readHistory(modelId: string | undefined): Promise<void> {
    try {
      const points = (await api.history(modelId)).map(pointOf)
      const merged = (now: Array<Point>) => [...points, ...now.filter(({ at }) => at > (points.at(-1)?.at ?? 0))]
      if (modelId === undefined) this.total = merged(this.total)
      else if (this.points?.modelId === modelId) this.points = { modelId, points: merged(this.points.points) }
      this.changed()
    } catch {
      // What comes from now on is shown.
    }
  }

  signIn(value: string): void {
    api.token.set(value)
    this.connect({ state: "connecting" })
    this.goOn?.()
  }

  signOut(): void {
    api.token.forget()
    this.rows = new Map()
    this.total = []
    this.points = this.points === undefined ? undefined : { ...this.points, points: [] }
    this.failures = this.events = []
    this.canAct = false
    this.abort?.abort()
  }

  /** For as long as the page is there. */
  async run(): Promise<never> {
    let hidden: ReturnType<typeof setTimeout> | undefined
    document.addEventListener("visibilitychange", () => {
      clearTimeout(hidden)
      if (document.hidden) {
        hidden = setTimeout(() => {
          this.connect({ state: "asleep" })
          this.abort?.abort()
        }, hiddenMillis)
      } else if (this.connection.state === "asleep") this.goOn?.()
    })
    let attempts = 0
    for (;;) {
      const abort = this.abort = new AbortController()
      let silence: ReturnType<typeof setTimeout> | undefined
      const listen = () => {
        clearTimeout(silence)
        silence = setTimeout(() => abort.abort(), silenceMillis)
      }
      let why = "The connection was closed."
      try {
        listen()
        await api.live(abort.signal, (message) => {
          listen()
          this.receive(message)
          if (this.connection.state === "live") return
          attempts = 0
          this.connect({ state: "live" })
          void this.readHistory(undefined)
          if (this.points !== undefined) void this.readHistory(this.points.modelId)
          api.access().then(({ actions }) => {
            this.canAct = actions
            this.changed()
          }, () => {})
        })
      } catch (error) {
        if (error instanceof api.Refused && error.status === 401) {
          const isWrong = api.token.get() !== null
          api.token.forget()
          this.connect({ state: "locked", why: isWrong ? "That token is not the right one." : undefined })
          await this.pause(undefined)
          continue
        }
        if (error instanceof api.Refused && error.status === 403) {
          this.connect({ state: "refused", why: error.message })
          await this.pause(undefined)
          continue
        }
        why = error instanceof api.Refused ? error.message : "The server does not answer."
      } finally {
        clearTimeout(silence)
      }
      if (this.connection.state === "asleep") await this.pause(undefined)
      else {
        this.connect({ state: "waiting", why })
        // Not all at once, when a server comes back.
        await this.pause(Math.min(longestPause, 500 * 2 ** attempts++) * (0.5 + Math.random() / 2))
      }
      this.connect({ state: "connecting" })
    }
  }

  private async pause(millis: number | undefined): Promise<void> {
    let timer: ReturnType<typeof setTimeout> | undefined
    await new Promise<void>((resolve) => {
      this.goOn = resolve
      if (millis !== undefined) timer = setTimeout(resolve, millis)
    })
    clearTimeout(timer)
    this.goOn = undefined
  }

  private receive(message: api.Live): void {
    const seconds = this.at === 0 ? 0 : (message.at - this.at) / 1000
    this.at = message.at
    const before = this.rows
    const rows = new Map(message.complete ? [] : before)
    for (const modelId of message.removed) rows.delete(modelId)
    if (!message.complete) {
      // What has not changed has completed nothing.
      for (const [modelId, row] of rows) {
        if (row.completedPerSecond > 0 || row.failedPerSecond > 0) {
          rows.set(modelId, { ...row, completedPerSecond: 0, failedPerSecond: 0 })
        }
      }
    }
    for (const queue of message.queues) {
      rows.set(queue.modelId, rowOf(queue, before.get(queue.modelId), seconds))
    }
    this.rows = rows
    this.failures = message.complete ? message.failures : [...this.failures, ...message.failures].slice(-recent)
    this.events = message.complete ? message.events : [...this.events, ...message.events].slice(-recent)
    const sum = { completed: 0, failed: 0, depth: 0, running: 0 }
    for (const { completedPerSecond, failedPerSecond, queue } of rows.values()) {
      sum.completed += completedPerSecond
      sum.failed += failedPerSecond
      sum.depth += queue.depth
      sum.running += queue.running
    }
    const { at, waits } = message
    if (before.size > 0 || rows.size === 0) {
      this.total = append(this.total, { at, ...sum, p50: waits?.p50Millis ?? null, p95: waits?.p95Millis ?? null })
      const mine = this.points === undefined ? undefined : rows.get(this.points.modelId)
      if (this.points !== undefined && mine !== undefined) {
        const { completedPerSecond: completed, failedPerSecond: failed, queue: { depth, running, waits } } = mine
        this.points = {
          ...this.points,
          points: append(this.points.points, {
            at,
            completed,
            failed,
            depth,
            running,
            p50: waits?.p50Millis ?? null,
            p95: waits?.p95Millis ?? null
          })
        }
      }
    }
    this.changed()
  }
}
