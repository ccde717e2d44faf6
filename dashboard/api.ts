/** The API that the page is served beside. Everything that comes from it is text of strangers: it is only ever shown. */
import type * as Api from "../src/Api.ts"
import { period } from "./format.ts"

export type Queue = typeof Api.Queue.Type
export type Limit = typeof Api.Limit.Type
export type Event = typeof Api.Event.Type
export type Live = typeof Api.Live.Type
export type Sample = typeof Api.Sample.Type
export type ActiveRequest = typeof Api.ActiveRequest.Type
export type DeadLetter = typeof Api.DeadLetter.Type

const tokenKey = "effect-llm-queue/token"

/** Of this tab only, and gone with it. */
export const token = {
  get: (): string | null => sessionStorage.getItem(tokenKey),
  set: (value: string): void => sessionStorage.setItem(tokenKey, value),
  forget: (): void => sessionStorage.removeItem(tokenKey)
}

export class Refused extends Error {
  readonly status: number

  constructor(status: number, message: string) {
    super(message)
    this.status = status
  }
}

const messageOf = (status: number, body: unknown): string => {
  if (typeof body === "object" && body !== null) {
    if ("problems" in body && Array.isArray(body.problems)) return body.problems.join("\n")
    if ("message" in body && typeof body.message === "string") return body.message
  }
  return `The server has answered with status ${status}.`
}

/** Fails with `Refused` when the server has answered, and with a `TypeError` when there is none. */
const send = async (
  path: string,
  init: { readonly method?: string; readonly body?: unknown; readonly signal?: AbortSignal } = {}
): Promise<Response> => {
  const known = token.get()
  const response = await fetch(path, {
    method: init.method ?? "GET",
    headers: {
      ...(known === null ? {} : { authorization: `Bearer ${known}` }),
      ...(init.body === undefined ? {} : { "content-type": "application/json" })
    },
    cache: "no-store",
    credentials: "same-origin",
    redirect: "error",
    ...(init.body === undefined ? {} : { body: JSON.stringify(init.body) }),
    ...(init.signal === undefined ? {} : { signal: init.signal })
  })
  if (response.ok) return response
  const body: unknown = await response.json().catch(() => undefined)
  throw new Refused(response.status, messageOf(response.status, body))
}

const get = async <A>(path: string): Promise<A> => (await send(path)).json() as Promise<A>

const queue = (modelId: string): string => `queues/${encodeURIComponent(modelId)}`

export const access = (): Promise<{ readonly actions: boolean }> => get("access")

export const history = (modelId?: string): Promise<ReadonlyArray<Sample>> =>
  get(modelId === undefined ? "history" : `history?modelId=${encodeURIComponent(modelId)}`)

export const requests = (modelId: string): Promise<ReadonlyArray<ActiveRequest>> => get(`${queue(modelId)}/requests`)

export const deadLetters = (modelId: string): Promise<ReadonlyArray<DeadLetter>> =>
  get(`${queue(modelId)}/dead-letters`)

const post = async <A = void>(path: string, body?: unknown, method = "POST"): Promise<A> => {
  const response = await send(path, { method, ...(body === undefined ? {} : { body }) })
  // What answers with nothing is asked for nothing.
  return (response.status === 204 ? undefined : await response.json()) as A
}

/** What an operator does. Each says what has come of it. */
export const act = {
  pause: async (modelId: string) => {
    await post(`${queue(modelId)}/pause`)
    return `${modelId} is paused.`
  },
  resume: async (modelId: string) => {
    await post(`${queue(modelId)}/resume`)
    return `${modelId} goes on.`
  },
  drain: async (modelId: string) => {
    await post(`${queue(modelId)}/drain`)
    return `${modelId} takes no more requests.`
  },
  cancel: async (modelId: string, requestId: string) => {
    const { cancelled } = await post<{ readonly cancelled: number }>(`${queue(modelId)}/cancel`, { ids: [requestId] })
    return cancelled === 0 ? `${requestId} had ended before.` : `${requestId} is cancelled.`
  },
  cancelWaiting: async (modelId: string) => {
    const { cancelled } = await post<{ readonly cancelled: number }>(`${queue(modelId)}/cancel`, { status: "pending" })
    return `Of what waited for ${modelId}, ${cancelled} are cancelled.`
  },
  changePriority: async (modelId: string, requestId: string, priority: number) => {
    const path = `${queue(modelId)}/requests/${encodeURIComponent(requestId)}/priority`
    const { changed } = await post<{ readonly changed: boolean }>(path, { priority })
    return changed ? `${requestId} has another priority.` : `${requestId} does not wait any more.`
  },
  changeLimit: async (modelId: string, { periodMillis, type }: Limit, limit: number) => {
    const change = { type, limit, ...(periodMillis === null ? {} : { periodMillis }) }
    await post(`${queue(modelId)}/limits`, change, "PATCH")
    return `${type} ${period(periodMillis)} is ${limit} now.`
  },
  resubmit: async (modelId: string, requestId: string) => {
    const path = `${queue(modelId)}/dead-letters/${encodeURIComponent(requestId)}/resubmit`
    const { requestId: next } = await post<{ readonly requestId: string }>(path)
    return `${requestId} is submitted again, as ${next}.`
  },
  removeDeadLetters: async (modelId: string) => {
    const { removed } = await post<{ readonly removed: number }>(`${queue(modelId)}/dead-letters/remove`, {})
    return `${removed} dead letters are removed.`
  }
}

/** Reads the live stream until it ends or fails. The first thing that comes is all that there is. */
export const live = async (signal: AbortSignal, onMessage: (message: Live) => void): Promise<void> => {
  const response = await send("live", { signal })
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader()
  let text = ""
  for (;;) {
    const { done, value } = await reader.read()
    if (done) return
    // The line ends behind a message may come one by one.
    const from = Math.max(0, text.length - 1)
    text += value
    for (let end = text.indexOf("\n\n", from); end >= 0; end = text.indexOf("\n\n")) {
      const event = text.slice(0, end)
      text = text.slice(end + 2)
      if (event.startsWith("data: ")) onMessage(JSON.parse(event.slice("data: ".length)) as Live)
    }
  }
}
