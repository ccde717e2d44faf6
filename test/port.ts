import { assert } from "@effect/vitest"
import { Effect } from "effect"
import { HttpServer } from "effect/http"

/** Where the server of a test listens. */
export const port = Effect.map(HttpServer.HttpServer, ({ address }) => {
  assert(address._tag === "InetAddressV4")
  return address.port
})
