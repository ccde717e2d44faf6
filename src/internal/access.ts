/** Who may look at queues over HTTP. */
import type * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"

/** Takes the same time whatever differs. */
const isSame = (a: string, b: string): boolean => {
  let difference = a.length ^ b.length
  for (let i = 0; i < a.length; i++) difference |= a.charCodeAt(i) ^ (b.charCodeAt(i) || 0)
  return difference === 0
}

const ownNames = /^(?:localhost|127\.0\.0\.1|\[::1\])(?::\d+)?$/i

export const isLoopback = (address: string): boolean => /^(?:(?:::ffff:)?127(?:\.\d{1,3}){3}|::1)$/.test(address)

/** An empty token is none: nobody has to know it, and it often is a variable that is not set. */
export const usable = (token: Redacted.Redacted | undefined): Redacted.Redacted | undefined =>
  token === undefined || Redacted.value(token) === "" ? undefined : token

/** Nobody keeps what is told, takes it for something else, or runs what is in it. */
export const headers = {
  "cache-control": "no-store",
  "content-security-policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
  "cross-origin-resource-policy": "same-origin",
  "x-content-type-options": "nosniff"
} as const

export const messages = {
  origin: "Requests of other pages are not answered.",
  token: "A bearer token is needed: Authorization: Bearer …",
  elsewhere: "Without a token only this machine is answered, by its own name. Give the API one to let in others."
} as const

/** Where browsers say that a request comes from: the page itself, or a person. Others say nothing. */
const ownSites: ReadonlySet<string | undefined> = new Set([undefined, "same-origin", "none"])

/** Why a request is not answered, with what it gave as a token. */
export const problem = (
  { headers, remoteAddress }: HttpServerRequest.HttpServerRequest,
  given: string,
  token: Redacted.Redacted | undefined
): keyof typeof messages | undefined => {
  const { host = "", origin } = headers
  // A page of somebody else that the browser of an operator shows. Of a GET that it cannot read it may say no origin.
  if (origin !== undefined && origin.replace(/^https?:\/\//i, "") !== host) return "origin"
  if (!ownSites.has(headers["sec-fetch-site"])) return "origin"
  const known = usable(token)
  if (known !== undefined) return isSame(Redacted.value(known), given) ? undefined : "token"
  // The name of another host that leads here is how pages reach what is on this machine.
  return ownNames.test(host) && Option.match(remoteAddress, { onNone: () => true, onSome: isLoopback })
    ? undefined
    : "elsewhere"
}
