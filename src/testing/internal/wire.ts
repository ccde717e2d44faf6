/** What the wire formats have in common. */
import * as DateTime from "effect/DateTime"
import type { Quota, Refusal } from "./ledger.ts"
import { isDay } from "./limits.ts"
import type { Scripted } from "./scripted.ts"

/** A request, whatever its format. `maxOutput` is for one of its `n` answers. */
export interface Prompt {
  readonly model: string
  readonly text: string
  readonly messages: number
  readonly maxOutput: number | undefined
  readonly n: number
  readonly stream: boolean
  readonly includeUsage: boolean
  /** The answer that it asks for, if it asks for one. */
  readonly scripted?: Scripted | undefined
}

/** An answer, whatever its format. `created` is in seconds of Unix time. */
export interface Answer {
  readonly prompt: Prompt
  readonly id: number
  readonly model: string
  readonly text: string
  readonly words: ReadonlyArray<string>
  readonly isCut: boolean
  readonly input: number
  readonly cached: number
  readonly cacheWritten: number
  readonly created: number
  readonly includeUsage: boolean
}

/** An error as a provider thinks of it, before its dialect writes it down. */
export interface WireError {
  readonly status: number
  readonly type: string
  readonly code: string | null
  readonly message: string
  /** Whether a client that knows the provider may try again. */
  readonly isRetryable: boolean
}

/** The shape of a request, of its answer, and of the pieces of a streamed answer. */
export interface Format {
  /** The prompt, or what is wrong with the body. */
  readonly parse: (body: unknown, modelInPath: string | undefined) => Prompt | string
  readonly whole: (answer: Answer) => unknown
  readonly head: (answer: Answer) => string
  readonly token: (answer: Answer, text: string, index: number) => string
  readonly tail: (answer: Answer) => string
  /** An error inside a stream. */
  readonly failure: (answer: Pick<Answer, "id" | "model" | "created">, error: WireError) => string
  /** Of streams, where it is not `text/event-stream`. Its pieces are bytes: one to a character. */
  readonly streamType?: string | undefined
}

/** What a dialect may say in headers and refusals. `wall` is the server's Unix time in milliseconds. */
export interface Situation {
  readonly id: number
  readonly model: string
  readonly quotas: ReadonlyArray<Quota>
  readonly wall: number
  readonly requestsHeader: "rpm" | "rpd" | undefined
  readonly processing: number
  /** Tokens that this request cost so far. */
  readonly cost: number
}

export interface Reply {
  readonly status: number
  readonly headers: Readonly<Record<string, string>>
  readonly body: string
  /** How long to wait where no header says so, in milliseconds. */
  readonly hint?: number | undefined
}

/** What differs from one provider to another around the same requests. */
export interface Dialect {
  readonly headers: (situation: Situation) => Record<string, string>
  readonly refusal: (situation: Situation, refusal: Refusal) => { readonly error: WireError } & Reply
  readonly error: (situation: Situation, error: WireError) => Reply
  /** Errors of this provider where they differ from the usual ones. */
  readonly errors?: Readonly<Record<string, WireError>> | undefined
  /** An error inside a stream, where it is not as the format writes it. */
  readonly streamFailure?: Format["failure"] | undefined
  /** Whether `refusal` has words of its own for traffic that rises too fast; else it is the error `slow_down`. */
  readonly tellsRamps?: boolean | undefined
}

export { isDay }

/** What headers about a dimension describe: no limit of a project or of a pool, which have headers of their own. */
export const quotaOf = (
  { quotas, requestsHeader }: Pick<Situation, "quotas" | "requestsHeader">,
  dimension: Quota["dimension"]
): Quota | undefined => {
  const found = quotas.filter((quota) =>
    quota.dimension === dimension && quota.pool === undefined
    && !(dimension === "tokens" && quota.scope === "project")
  )
  return dimension === "requests" && requestsHeader !== undefined
    ? found.find((quota) => isDay(quota) === (requestsHeader === "rpd")) ?? found[0]
    : found[0]
}

/** Every provider tells two kinds of limits apart: slots are requests, and whatever else is counted is tokens. */
export const counted = ({ dimension }: Pick<Quota, "dimension">): "requests" | "tokens" =>
  dimension === "requests" || dimension === "concurrent" ? "requests" : "tokens"

/** As Go prints a duration, rounded up to whole milliseconds: `12ms`, `1.378s`, `6m0s`. */
export const goDuration = (millis: number): string => {
  // What is left of a nanosecond by floating point does not make another millisecond.
  const total = Math.ceil(millis - 1e-6)
  if (total > 0 && total < 1000) return `${total}ms`
  const hours = Math.floor(total / 3_600_000)
  const minutes = Math.floor(total / 60_000)
  return `${hours > 0 ? `${hours}h` : ""}${minutes > 0 ? `${minutes % 60}m` : ""}${(total % 60_000) / 1000}s`
}

/** `2026-11-23T12:00:59Z`, rounded up to whole seconds. */
export const rfc3339 = (wall: number): string =>
  DateTime.formatIso(DateTime.makeUnsafe(Math.ceil(wall / 1000) * 1000)).replace(".000Z", "Z")

/** `Mon, 23 Nov 2026 12:00:59 GMT`. */
export const httpDate = (wall: number): string =>
  DateTime.toDateUtc(DateTime.makeUnsafe(Math.floor(wall / 1000) * 1000)).toUTCString()

export const seconds = (millis: number): number => Math.ceil(millis / 1000 - 1e-9)

/** The same number always makes the same id of so many hexadecimal digits. */
export const hexId = (id: number, digits: number): string => {
  let text = ""
  let h = Math.imul(id + 1, 0x9e3779b1)
  while (text.length < digits) {
    h = Math.imul(h ^ (h >>> 15), 0x85ebca6b) + 0x6d2b79f5
    text += (h >>> 0).toString(16).padStart(8, "0")
  }
  return text.slice(0, digits)
}

export const uuid = (id: number): string => `${hexId(id, 8)}-0000-4000-8000-${hexId(id + 1, 12)}`

export const whole = (value: number): string => String(Math.round(value))
export const remaining = ({ remaining }: Quota): string => String(Math.max(0, Math.floor(remaining + 1e-6)))

export const json = { "content-type": "application/json" }

/** One server-sent event. */
export const event = (name: string, data: object): string => `event: ${name}\ndata: ${JSON.stringify(data)}\n\n`
export const data = (value: object): string => `data: ${JSON.stringify(value)}\n\n`
