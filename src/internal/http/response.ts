/** Responses whose bodies are read while their request is being processed. */
import type * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Sse from "effect/encoding/Sse"
import * as Cookies from "effect/http/Cookies"
import type * as HttpClientError from "effect/http/HttpClientError"
import * as HttpClientResponse from "effect/http/HttpClientResponse"
import * as Queue from "effect/Queue"
import * as Stream from "effect/Stream"
import type * as ModelConfig from "../../ModelConfig.ts"
import { Reader } from "./usage.ts"

type Response = HttpClientResponse.HttpClientResponse

const contentType = ({ headers }: Response): string => (headers["content-type"] ?? "").toLowerCase()

const isEvents = (response: Response): boolean => contentType(response).startsWith("text/event-stream")

/** Whether the body comes bit by bit, and is of use before its end. */
export const isStream = (response: Response): boolean =>
  isEvents(response) ||
  /^application\/(x-ndjson|jsonl|stream\+json|vnd\.amazon\.eventstream)/.test(contentType(response))

const withoutBody = new Set([101, 204, 205, 304])

/** The same response with another body. */
const withBody = (response: Response, body: BodyInit | null): Response => {
  const { status } = response
  const headers = new Headers()
  for (const [name, value] of Object.entries(response.headers)) if (name !== "set-cookie") headers.set(name, value)
  for (const cookie of Cookies.toSetCookieHeaders(response.cookies)) headers.append("set-cookie", cookie)
  // No response of the platform can have another status.
  const isValid = status >= 200 && status <= 599
  const source = new globalThis.Response(withoutBody.has(status) ? null : body, {
    headers,
    status: isValid ? status : 200
  })
  const same = HttpClientResponse.fromWeb(response.request, source)
  Object.defineProperty(same, "url", { value: response.url })
  if (!isValid) Object.defineProperty(same, "status", { value: status })
  return same
}

/** Reads the body. What is returned has it, as often as it is asked. */
export const buffered = (
  response: Response
): Effect.Effect<
  { readonly response: Response; readonly text: string; readonly usage: ModelConfig.Usage | undefined },
  HttpClientError.HttpClientError
> =>
  Effect.map(response.arrayBuffer, (bytes) => {
    const text = new TextDecoder().decode(bytes)
    const reader = new Reader()
    reader.read(text)
    return { response: withBody(response, bytes), text, usage: reader.usage }
  })

/** Follows the usage in a body that comes bit by bit. */
const follow = (response: Response, reader: Reader): (chunk: Uint8Array) => void => {
  const decoder = new TextDecoder()
  if (isEvents(response)) {
    const parser = Sse.makeParser((event) => event._tag === "Event" ? reader.read(event.data) : undefined)
    return (chunk) => void parser.feed(decoder.decode(chunk, { stream: true }))
  }
  let rest = ""
  return (chunk) => {
    const lines = (rest + decoder.decode(chunk, { stream: true })).split("\n")
    rest = lines.pop()!.slice(-maxLine)
    for (const line of lines) reader.read(line)
  }
}

/** A line that is longer says no usage. */
const maxLine = 1_000_000

/**
 * A response whose body is passed on as it comes, and what has to run until it has come. That ends with the usage, when
 * the body has ended or its reader has left.
 */
export const passedOn = (
  response: Response
): {
  readonly response: Response
  readonly read: Effect.Effect<ModelConfig.Usage | undefined, HttpClientError.HttpClientError>
  /** Ends the body, if it has not ended. */
  readonly fail: (cause: Cause.Cause<HttpClientError.HttpClientError>) => void
} => {
  const body = Effect.runSync(Queue.unbounded<Uint8Array, HttpClientError.HttpClientError | Cause.Done>())
  const reader = new Reader()
  const see = follow(response, reader)
  const stream = Stream.ensuring(Stream.fromQueue(body), Queue.shutdown(body))
  const passed = withBody(response, Stream.toReadableStream(stream, { strategy: { highWaterMark: 0 } }))
  // Its errors are not wrapped by those of the platform's stream.
  Object.defineProperty(passed, "stream", { value: stream })
  const read = response.stream.pipe(
    Stream.runForEach((chunk) => {
      see(chunk)
      return Queue.offer(body, chunk)
    }),
    Effect.andThen(Effect.sync(() => Queue.endUnsafe(body)))
  )
  // The reader may leave while nothing comes.
  const left = Effect.exit(Queue.await(body))
  return {
    response: passed,
    read: Effect.map(Effect.raceFirst(read, left), () => reader.usage),
    fail: (cause) => Queue.failCauseUnsafe(body, cause)
  }
}
