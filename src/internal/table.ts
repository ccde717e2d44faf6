/** Queues as a table of a few lines, for terminals. */

/** What is shown of a limit. */
export interface Limit {
  readonly type: string
  readonly used: number
  readonly limit: number
}

/** What is shown of a queue. */
export interface Row {
  readonly modelId: string
  readonly state: string
  readonly depth: number
  readonly running: number
  readonly completed: number
  readonly failed: number
  readonly perSecond: number
  readonly limits: ReadonlyArray<Limit>
}

export interface Options {
  readonly columns: number
  /** Lines, the one of the names included. */
  readonly rows: number
  readonly colors: boolean
}

const widest = 32
const barWidth = 8

const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 })

const number = (value: number): string => value < 10_000 ? String(Math.round(value)) : compact.format(value)

const rate = (perSecond: number): string =>
  perSecond < 0.05 ? "0" : perSecond < 10 ? perSecond.toFixed(1) : number(perSecond)

/** Ids are strangers' texts: what would move the cursor, color the screen or ring a bell is not shown. */
export const printable = (text: string, width: number): string => {
  const safe = Array.from(text.replaceAll(/[\p{C}\p{Zl}\p{Zp}]/gu, "�"))
  return safe.length <= width ? safe.join("") : `${safe.slice(0, width - 1).join("")}…`
}

const codes = { bold: 1, dim: 2, red: 31, green: 32, yellow: 33, blue: 34 }

/** A piece of a line, of which the length is known whatever its color. */
interface Piece {
  readonly text: string
  readonly color?: keyof typeof codes | undefined
}

const line = (pieces: ReadonlyArray<Piece>, { colors, columns }: Options): string => {
  let left = columns
  let text = ""
  for (const piece of pieces) {
    const part = Array.from(piece.text).slice(0, left).join("")
    left -= Array.from(part).length
    text += colors && piece.color !== undefined && part !== "" ? `\u001b[${codes[piece.color]}m${part}\u001b[0m` : part
  }
  return text.trimEnd()
}

const states: Readonly<Record<string, keyof typeof codes>> = { open: "green" }

const bar = ({ limit, type, used }: Limit): ReadonlyArray<Piece> => {
  const part = limit > 0 ? used / limit : 0
  const full = Math.min(barWidth, Math.round(part * barWidth))
  const color = part >= 0.98 ? "red" : part >= 0.8 ? "yellow" : "blue"
  return [
    { text: `  ${type} ` },
    { text: "█".repeat(full), color },
    { text: "░".repeat(barWidth - full), color: "dim" },
    { text: ` ${number(used)}/${number(limit)}` }
  ]
}

/** The lines of a table, those with the most requests first if there is no room for all. */
export const render = (queues: ReadonlyArray<Row>, options: Options): ReadonlyArray<string> => {
  const most = Math.max(1, options.rows - 2)
  const shown = queues.length <= most
    ? queues
    : queues.toSorted((a, b) => b.depth + b.running - (a.depth + a.running)).slice(0, most)
  const names = shown.map(({ modelId }) => printable(modelId, widest))
  const width = names.reduce((width, name) => Math.max(width, Array.from(name).length), "MODEL".length)
  const head = `${"MODEL".padEnd(width)}  STATE      WAITING  RUNNING     DONE    /S   FAILED  LIMITS`
  const lines = [line([{ text: head, color: "dim" }], options)]
  for (const [index, queue] of shown.entries()) {
    const name = names[index]!
    lines.push(line([
      { text: name + " ".repeat(width - Array.from(name).length), color: "bold" },
      { text: "  " },
      { text: printable(queue.state, 9).padEnd(9), color: states[queue.state] ?? "yellow" },
      { text: number(queue.depth).padStart(9) },
      { text: number(queue.running).padStart(9) },
      { text: number(queue.completed).padStart(9) },
      { text: rate(queue.perSecond).padStart(6) },
      { text: number(queue.failed).padStart(9), color: queue.failed > 0 ? "red" : undefined },
      ...queue.limits.flatMap((limit) => bar({ ...limit, type: printable(limit.type, 12) }))
    ], options))
  }
  if (shown.length < queues.length) {
    lines.push(line([{ text: `… and ${queues.length - shown.length} more`, color: "dim" }], options))
  }
  return lines
}

/** Draws lines over those that were drawn before. */
export class Screen {
  private height = 0

  frame(lines: ReadonlyArray<string>): string {
    const back = this.height === 0 ? "" : `\u001b[${this.height}A`
    this.height = lines.length
    return `\u001b[?25l${back}\r${lines.map((line) => `${line}\u001b[K\n`).join("")}\u001b[J`
  }

  /** The cursor is back; what was drawn stays. */
  readonly end = "\u001b[?25h"
}

const rateMillis = 3000

/** How many a second, over the last seconds: of one reading to the next they would hop. */
export class Rates {
  private readings: Array<{ readonly at: number; readonly completed: ReadonlyMap<string, number> }> = []

  /** At a time in milliseconds. */
  read(at: number, queues: ReadonlyArray<Omit<Row, "perSecond">>): ReadonlyArray<Row> {
    this.readings = this.readings.filter((reading) => reading.at >= at - rateMillis && reading.at < at)
    const [first] = this.readings
    this.readings.push({ at, completed: new Map(queues.map(({ completed, modelId }) => [modelId, completed])) })
    return queues.map((queue) => {
      const before = first?.completed.get(queue.modelId)
      return {
        ...queue,
        perSecond: before === undefined ? 0 : Math.max(0, queue.completed - before) / ((at - first!.at) / 1000)
      }
    })
  }
}
