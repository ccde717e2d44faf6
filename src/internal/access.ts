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

export const messages = {
  origin: "Requests of other pages are not answered.",
  token: "A bearer token is needed: Authorization: Bearer …",
  elsewhere: "Without a token only this machine is answered, by its own name. Give the API one to let in others."
} as const

/** Why a request is not answered, with what it gave as a token. */
export const problem = (
  { headers, remoteAddress }: HttpServerRequest.HttpServerRequest,
  given: string,
  token: Redacted.Redacted | undefined
): keyof typeof messages | undefined => {
  const { host = "", origin } = headers
  // A page of somebody else that the browser of an operator shows.
  if (origin !== undefined && origin.replace(/^https?:\/\//i, "") !== host) return "origin"
  if (token !== undefined) return isSame(Redacted.value(token), given) ? undefined : "token"
  // The name of another host that leads here is how pages reach what is on this machine.
  return ownNames.test(host) && Option.match(remoteAddress, { onNone: () => true, onSome: isLoopback })
    ? undefined
    : "elsewhere"
}
