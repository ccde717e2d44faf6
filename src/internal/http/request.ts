/** What a request to an LLM API says of itself: its model and its tokens. */
import type * as HttpClientRequest from "effect/http/HttpClientRequest"
import type * as QueueRequest from "../../QueueRequest.ts"

type Fields = Readonly<Record<string, unknown>>

const fieldsOf = (value: unknown): Fields =>
  typeof value === "object" && value !== null && !Array.isArray(value) ? value as Fields : {}

/** The JSON body of a request; `undefined` when it has none that can be read before it is sent. */
export const json = ({ body }: HttpClientRequest.HttpClientRequest): unknown => {
  const text = body._tag === "Uint8Array"
    ? new TextDecoder().decode(body.body)
    : body._tag === "Raw" && typeof body.body === "string"
    ? body.body
    : undefined
  if (text === undefined) return undefined
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

const inPath = /\/(?:models|deployments|model)\/([^/:?]+)/

export const key = (
  { url }: HttpClientRequest.HttpClientRequest,
  { body }: { readonly body: unknown }
): string | undefined => {
  const { model } = fieldsOf(body)
  if (typeof model === "string") return model
  const found = inPath.exec(url)?.[1]
  try {
    return found === undefined ? undefined : decodeURIComponent(found)
  } catch {
    return found
  }
}

const count = (value: unknown): number | undefined =>
  typeof value === "number" && value >= 0 && Number.isFinite(value) ? value : undefined

const maxNames = ["max_completion_tokens", "max_output_tokens", "max_tokens", "maxOutputTokens", "maxTokens"]

/** The most output tokens that a request says. Embeddings have none. */
export const tokens = (
  { url }: HttpClientRequest.HttpClientRequest,
  body: unknown
): Pick<QueueRequest.RequestOptions, "maxOutputTokens" | "estimatedOutputTokens"> => {
  const fields = fieldsOf(body)
  if (/\/embeddings$|:(?:batchE|e)mbedContents?$/.test(url.split("?")[0]!)) return { estimatedOutputTokens: 0 }
  const places = [fields, fieldsOf(fields["generationConfig"]), fieldsOf(fields["inferenceConfig"])]
  for (const place of places) {
    for (const name of maxNames) {
      const most = count(place[name])
      if (most !== undefined) return { maxOutputTokens: most * Math.max(1, count(fields["n"]) ?? 1) }
    }
  }
  return {}
}
