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

/** What takes two columns: scripts of East Asia, and pictures. */
const wide =
  /[\u1100-\u115f\u2e80-\u303e\u3041-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6\u{20000}-\u{3fffd}]|\p{Emoji_Presentation}/u
const marks = /^\p{M}$/u

const widthOf = (character: string): number => marks.test(character) ? 0 : wide.test(character) ? 2 : 1

const columnsOf = (text: string): number => {
  let columns = 0
  for (const character of text) columns += widthOf(character)
  return columns
}

/** As much of a text as has room. */
const cut = (text: string, columns: number): string => {
  let left = columns
  let part = ""
  for (const character of text) {
    left -= widthOf(character)
    if (left < 0) break
    part += character
  }
  return part
}

/** Ids are strangers' texts: what would move the cursor, color the screen or ring a bell is not shown. */
export const printable = (text: string, columns: number): string => {
  const safe = text.replaceAll(/[\p{C}\p{Zl}\p{Zp}]/gu, "�")
  return columnsOf(safe) <= columns ? safe : `${cut(safe, columns - 1)}…`
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
    const part = cut(piece.text, left)
    // Nothing behind what has no room.
    left = part.length < piece.text.length ? 0 : left - columnsOf(part)
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
  const width = names.reduce((width, name) => Math.max(width, columnsOf(name)), "MODEL".length)
  const head = `${"MODEL".padEnd(width)}  STATE      WAITING  RUNNING     DONE    /S   FAILED  LIMITS`
  const lines = [line([{ text: head, color: "dim" }], options)]
  for (const [index, queue] of shown.entries()) {
    const name = names[index]!
    lines.push(line([
      { text: name + " ".repeat(width - columnsOf(name)), color: "bold" },
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

/** Lines that are drawn over those that were drawn before. */
export class Frames {
  private height = 0

  next(lines: ReadonlyArray<string>): string {
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
