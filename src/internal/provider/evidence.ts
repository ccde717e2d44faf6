/**
 * Reads what a failure says, whatever client library made it: SDK errors, Effect's HTTP and AI errors, responses,
 * parsed and unparsed bodies, events of a stream, and any of these as the cause of something else.
 */
import * as Duration from "effect/Duration"
import * as headers from "./headers.ts"
import * as times from "./times.ts"

export interface Evidence {
  /** The HTTP status, an error's before a success's. */
  readonly status: number | undefined
  readonly headers: headers.Lookup
  /** Codes, types, names and reasons, in lower case, without their namespace. */
  readonly codes: ReadonlySet<string>
  /** Messages as written, the provider's own before those wrapped around it. */
  readonly messages: ReadonlyArray<string>
  /** The quotas that were exceeded: their names in lower case, and the limit where it is a number of its own. */
  readonly quotas: ReadonlyArray<{ readonly name: string; readonly limit: number | undefined }>
  /** Milliseconds, from the body. */
  readonly hints: ReadonlyArray<number>
}

/** Chains of causes are short; this is what bounds the work on any other. */
const maxNodes = 64
const maxElements = 16
const maxBody = 100_000
const maxCode = 128

/** Where the next part of a failure is, in the order of how much it knows. Requests are never read. */
const children = [
  "error",
  "cause",
  "reason",
  "response",
  "http",
  "body",
  "responseBody",
  "data",
  "details",
  "violations",
  "metadata",
  "errors",
  "lastError",
  "choices",
  "$metadata",
  "$response"
]
const headerFields = ["headers", "responseHeaders"]
const statusFields = ["status", "statusCode", "httpStatusCode", "raw_status_code"]
const codeFields = [
  "code",
  "type",
  "status",
  "name",
  "reason",
  "errorCode",
  "error_code",
  "error_type",
  "provider_code",
  "finish_reason",
  "__type"
]
const messageFields = ["message", "description", "detail", "error_description"]

/** Marks that Effect's own errors carry; their tags are read only beside one, being anybody's words elsewhere. */
const aiReasonMark = "~effect/ai/AiError/Reason"
const httpErrorMark = "~effect/http/HttpClientError"
const effectTags = new Set([
  "RateLimitError",
  "QuotaExhaustedError",
  "AuthenticationError",
  "InternalProviderError"
])

/** Errors of connections that carry no code: by the class, or by the message where class names are shortened. */
const connectionClasses = new Set(["APIConnectionError", "APIConnectionTimeoutError"])
const connectionMessages = new Set(["connection error.", "request timed out.", "fetch failed", "terminated"])

/** The code that stands for a failed connection. */
export const connectionCode = "connection_error"

/** Getters and proxies may throw. */
const read = (node: object, key: string): unknown => {
  try {
    return Reflect.get(node, key)
  } catch {
    return undefined
  }
}

const isObject = (value: unknown): value is object => typeof value === "object" && value !== null

const asStatus = (value: unknown): number | undefined => {
  const status = typeof value === "string" && /^\d{3}$/.test(value) ? Number(value) : value
  return typeof status === "number" && Number.isInteger(status) && status >= 100 && status <= 599 ? status : undefined
}

/** The JSON in a text, which may have words or an event's framing around it. */
const parse = (text: string): unknown => {
  if (text.length > maxBody) return undefined
  for (const [open, close] of [["{", "}"], ["[", "]"]] as const) {
    const start = text.indexOf(open)
    const end = text.lastIndexOf(close)
    if (start === -1 || end <= start) continue
    try {
      const value: unknown = JSON.parse(text.slice(start, end + 1))
      if (isObject(value)) return value
    } catch {
      // Not JSON: the text is a message.
    }
  }
  return undefined
}

const className = (node: object): ReadonlyArray<string> => {
  const names: Array<string> = []
  try {
    let prototype: unknown = Object.getPrototypeOf(node)
    for (let count = 0; count < 6 && isObject(prototype); count++) {
      const constructor: unknown = Reflect.get(prototype, "constructor")
      if (typeof constructor === "function") names.push(constructor.name)
      prototype = Object.getPrototypeOf(prototype)
    }
  } catch {
    // A proxy may refuse.
  }
  return names
}

/** The members of a map with one entry for each kind of event, as Bedrock streams them. */
const exceptions = (node: object): ReadonlyArray<string> => {
  try {
    return Object.keys(node).slice(0, maxElements).filter((key) => key.endsWith("Exception"))
  } catch {
    return []
  }
}

const has = (node: object, key: string): boolean => {
  try {
    return key in node
  } catch {
    return false
  }
}

const isError = (value: unknown): boolean => {
  try {
    return value instanceof Error
  } catch {
    return false
  }
}

const isArray = (node: object): node is ReadonlyArray<unknown> => {
  try {
    return Array.isArray(node)
  } catch {
    return false
  }
}

const withoutNamespace = (code: string): string => {
  const name = code.slice(code.lastIndexOf("#") + 1)
  const colon = name.indexOf(":")
  return (colon > 0 ? name.slice(0, colon) : name).toLowerCase()
}

export const collect = (failure: unknown): Evidence => {
  const seen = new Set<object>()
  const statuses: Array<number> = []
  const lookups: Array<headers.Lookup> = []
  const codes = new Set<string>()
  const bodies: Array<string> = []
  const others: Array<string> = []
  const quotas: Array<Evidence["quotas"][number]> = []
  const hints: Array<number> = []

  const addCode = (value: unknown) => {
    if (typeof value === "string" && value !== "" && value.length <= maxCode) codes.add(withoutNamespace(value))
    else if (typeof value === "number" && Number.isInteger(value)) codes.add(String(value))
  }
  const addHint = (value: number | undefined) => {
    if (value !== undefined) hints.push(value)
  }
  const queue: Array<{ readonly value: unknown; readonly provider: boolean }> = [
    { value: failure, provider: !isError(failure) }
  ]

  const readText = (text: string, provider: boolean) => {
    const parsed = parse(text)
    if (parsed !== undefined) queue.push({ value: parsed, provider: true })
    else if (text.trim() !== "") (provider ? bodies : others).push(text)
  }

  const readObject = (node: object, provider: boolean) => {
    if (isArray(node)) {
      for (const element of node.slice(0, maxElements)) {
        if (isObject(element)) queue.push({ value: element, provider })
      }
      return
    }
    for (const field of statusFields) {
      const status = asStatus(read(node, field))
      if (status !== undefined) statuses.push(status)
    }
    const code = asStatus(read(node, "code"))
    if (code !== undefined && code >= 400) statuses.push(code)
    for (const field of headerFields) {
      const value = read(node, field)
      if (isObject(value)) lookups.push(headers.lookup(value))
    }
    for (const field of codeFields) {
      const value = read(node, field)
      // The status as a number is no code.
      if (field !== "status" || typeof value === "string") addCode(value)
    }
    const tag = read(node, "_tag")
    const reason = read(node, "reason")
    if (has(node, aiReasonMark)) {
      if (typeof tag === "string" && effectTags.has(tag)) addCode(`effect_${tag}`)
      if (reason === "TransportError") codes.add(connectionCode)
    }
    if (has(node, httpErrorMark) && isObject(reason) && read(reason, "_tag") === "TransportError") {
      codes.add(connectionCode)
    }
    const message = read(node, "message")
    const shortened = typeof message === "string" && message.length < 64 ? message.toLowerCase() : ""
    const classes = className(node)
    if (
      classes.some((name) => connectionClasses.has(name))
      || (connectionMessages.has(shortened) && (has(node, "requestID") || classes.includes("TypeError")))
    ) codes.add(connectionCode)
    for (const field of messageFields) {
      const text = read(node, field)
      if (typeof text === "string") readText(text, provider)
    }
    const quota = read(node, "quotaId")
    if (typeof quota === "string" && quota.length <= maxCode) {
      const metric = read(node, "quotaMetric")
      const value = read(node, "quotaValue")
      const number = typeof value === "string" && /^\d{1,15}$/.test(value) ? Number(value) : value
      quotas.push({
        name: `${quota} ${typeof metric === "string" && metric.length <= maxCode ? metric : ""}`.toLowerCase(),
        limit: typeof number === "number" && Number.isSafeInteger(number) && number > 0 ? number : undefined
      })
    }
    addHint(times.protobufDuration(read(node, "retryDelay")))
    for (const field of ["retry_after", "retry_after_seconds", "retryAfterSeconds"]) {
      const value = read(node, field)
      addHint(times.seconds(typeof value === "number" ? String(value) : value))
    }
    const retryAfter = read(node, "retryAfter")
    if (Duration.isDuration(retryAfter)) addHint(times.millis(String(Duration.toMillis(retryAfter))))
    for (const field of exceptions(node)) {
      const value = read(node, field)
      if (isObject(value)) {
        addCode(field)
        queue.push({ value, provider: true })
      }
    }
    for (const field of children) {
      const value = read(node, field)
      const fromProvider = provider || (field !== "cause" && field !== "reason" && field !== "lastError")
      if (isObject(value)) queue.push({ value, provider: fromProvider && !isError(value) })
      else if (typeof value === "string" && (field === "error" || field === "body" || field === "responseBody")) {
        readText(value, true)
      }
    }
  }

  for (let index = 0; index < queue.length && index < maxNodes; index++) {
    const { provider, value } = queue[index]!
    if (typeof value === "string") readText(value, provider)
    else if (isObject(value) && !seen.has(value)) {
      seen.add(value)
      try {
        readObject(value, provider)
      } catch {
        // A proxy can refuse in ways that no single read foresees: what it has told so far counts.
      }
    }
  }

  return {
    status: statuses.find((status) => status >= 400) ?? statuses[0],
    headers: (name) => {
      for (const lookup of lookups) {
        const value = lookup(name)
        if (value !== undefined) return value
      }
      return undefined
    },
    codes,
    messages: [...bodies, ...others],
    quotas,
    hints
  }
}
