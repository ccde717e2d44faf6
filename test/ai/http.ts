/** What the providers of the tests have in common: their failures, as the packages for real providers tell them. */
import { Duration, Effect } from "effect"
import { AiError } from "effect/ai"
import {
  type HttpBody,
  type HttpClient,
  HttpClientError,
  HttpClientRequest,
  type HttpClientResponse
} from "effect/http"

const reasonOf = (
  response: HttpClientResponse.HttpClientResponse,
  body: string
): AiError.AiErrorReason => {
  const { headers, status } = response
  const http = { response: { status, headers: { ...headers } }, body }
  const seconds = Number(headers["retry-after"])
  if (status === 402 || (status === 429 && /"insufficient_quota"|_exhausted"|spend_limit/.test(body))) {
    return new AiError.QuotaExhaustedError({ http })
  }
  return status === 429
    ? new AiError.RateLimitError({
      http,
      retryAfter: Number.isFinite(seconds) ? Duration.seconds(seconds) : undefined
    })
    : AiError.reasonFromHttpStatus({ status, http, body })
}

/** What an event of a stream says. */
export const read = <A>(method: string, parts: () => ReadonlyArray<A>) =>
  Effect.try({
    try: parts,
    catch: (error) =>
      AiError.make({
        module: "Test",
        method,
        reason: new AiError.InvalidOutputError({ description: String(error) })
      })
  })

export const failure = (method: string, error: unknown): AiError.AiError =>
  AiError.isAiError(error) ? error : AiError.make({
    module: "Test",
    method,
    reason: HttpClientError.isHttpClientError(error)
      ? new AiError.NetworkError({
        reason: error.reason._tag === "EncodeError" ? "EncodeError" : "TransportError",
        method: error.request.method,
        url: error.request.url,
        description: error.message,
        cause: error
      })
      : new AiError.UnknownError({ description: String(error) })
  })

/** Sends a body; what is no success fails. */
export const send = (
  client: HttpClient.HttpClient,
  method: string,
  path: string,
  body: HttpBody.HttpBody
): Effect.Effect<HttpClientResponse.HttpClientResponse, AiError.AiError> =>
  client.execute(HttpClientRequest.post(path, { body })).pipe(
    Effect.mapError((error) => failure(method, error)),
    Effect.tap((response) =>
      response.status < 400 ? Effect.void : Effect.flatMap(
        Effect.mapError(response.text, (error) => failure(method, error)),
        (body) => Effect.fail(AiError.make({ module: "Test", method, reason: reasonOf(response, body) }))
      )
    )
  )

export const json = <A>(
  method: string,
  response: HttpClientResponse.HttpClientResponse
): Effect.Effect<A, AiError.AiError> =>
  // What the tests' own server says is taken as it is.
  Effect.mapError(response.json as Effect.Effect<unknown, HttpClientError.HttpClientError>, (error) =>
    failure(method, error)) as Effect.Effect<A, AiError.AiError>
