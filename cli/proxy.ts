/** The dashboard's page, with the API of another program under it. */
import * as ByteSize from "effect/ByteSize"
import * as Effect from "effect/Effect"
import {
  FetchHttpClient,
  HttpBody,
  HttpClient,
  HttpClientRequest,
  type HttpMethod,
  HttpRouter,
  HttpServerRequest,
  HttpServerResponse
} from "effect/http"
import * as Layer from "effect/Layer"
import type * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import * as access from "../src/internal/access.ts"
import * as page from "../src/internal/dashboard/page.ts"

const methods: ReadonlySet<string> = new Set(["GET", "POST", "PUT", "PATCH"])

/** What the API has, below its prefix. What else a program serves is none of this page's business. */
const places: ReadonlySet<string> = new Set(["access", "events", "history", "live", "openapi.json", "queues"])

/** What the API answers with: nothing that a browser would take for a page. */
const types = /^(?:application\/(?:json|x-ndjson|ndjson)|text\/event-stream)\b/

const answer = (status: number, message: string) =>
  HttpServerResponse.jsonUnsafe({ message }, { status, headers: access.headers })

/** Passes a request on, without what says whose page it comes from: that has been looked at here. */
const forward = (url: string, token: Redacted.Redacted | undefined) =>
  Effect.gen(function*() {
    const request = yield* HttpServerRequest.HttpServerRequest
    const { authorization, "content-type": contentType } = request.headers
    const problem = access.problem(request, /^Bearer (.*)$/i.exec(authorization ?? "")?.[1] ?? "", token)
    if (problem !== undefined) return answer(problem === "token" ? 401 : 403, access.messages[problem])
    const target = new URL(url + request.url)
    // As the other server will read it: dots are gone, and what is encoded is part of a model's id.
    const below = target.href.startsWith(`${url}/llm-queue/`) ? target.href.slice(`${url}/llm-queue/`.length) : ""
    if (!places.has(/^[^/?#]*/.exec(below)![0])) return answer(404, "There is nothing here.")
    if (!methods.has(request.method)) return answer(405, `${request.method} is not known.`)
    const hasBody = request.method !== "GET"
    const body = hasBody ? yield* request.text : ""
    const response = yield* HttpClient.execute(
      HttpClientRequest.make(request.method as HttpMethod.HttpMethod)(target, {
        headers: authorization === undefined ? {} : { authorization },
        ...(hasBody ? { body: HttpBody.text(body, contentType ?? "application/json") } : {})
      })
    )
    const type = response.headers["content-type"] ?? ""
    // A redirect leads elsewhere, and nothing else of the API is a 3xx.
    if (response.status >= 300 && response.status < 400) {
      return answer(502, `${url} has answered with a redirect.`)
    }
    return HttpServerResponse.stream(Stream.catchCause(response.stream, () => Stream.empty), {
      status: response.status,
      contentType: types.test(type) ? type : "application/octet-stream",
      headers: access.headers
    })
  }).pipe(
    Effect.catchTag("HttpClientError", () => Effect.succeed(answer(502, `${url} does not answer.`))),
    Effect.catchTag("HttpServerError", () =>
      Effect.succeed(answer(413, "The body is too large, or was not sent whole."))),
    Effect.provideService(HttpServerRequest.MaxBodySize, ByteSize.kibibytes(64)),
    Effect.provideService(FetchHttpClient.RequestInit, { redirect: "manual" })
  )

export const layer = ({ token, url }: {
  readonly url: string
  readonly token: Redacted.Redacted | undefined
}): Layer.Layer<never, never, HttpClient.HttpClient | HttpRouter.HttpRouter> =>
  Layer.merge(
    page.layer,
    Layer.unwrap(HttpClient.HttpClient.use((client) =>
      Effect.succeed(
        HttpRouter.add("*", "/llm-queue/*", Effect.provideService(forward(url, token), HttpClient.HttpClient, client))
      )
    ))
  )
