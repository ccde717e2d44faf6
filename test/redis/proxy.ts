/** A line between a client and a server that can be cut in the ways in which networks cut lines. */
import { Effect } from "effect"
import { connect, createServer, type Socket } from "node:net"
import { setTimeout as sleep } from "node:timers/promises"

/**
 * - `pass`: as if it was not there
 * - `slow`: each piece comes later by so many milliseconds
 * - `swallow`: connections stay open, and nothing arrives on either side
 * - `mute`: the server hears, and is not heard
 *
 *   A connection that has lost something that way is reset when somebody says more on it later: no network leaves something
 *   out.
 * - `refuse`: connections are reset, those that are there and new ones
 * - `absent`: the same, and nobody listens
 */
export type Mode = "pass" | "swallow" | "mute" | "refuse" | "absent" | { readonly slow: number }

const isCut = (mode: Mode) => mode === "refuse" || mode === "absent"

export const make = Effect.fnUntraced(function*(port: number) {
  let mode: Mode = "pass"
  const lines = new Set<readonly [Socket, Socket]>()
  const carry = (from: Socket, to: Socket, isAnswer: boolean) => {
    // Nothing overtakes what was sent before.
    let last = Promise.resolve()
    let hasLost = false
    from.on("data", (data) => {
      if (mode === "swallow" || isCut(mode) || (mode === "mute" && isAnswer)) {
        hasLost = true
        return
      }
      if (hasLost) return void from.resetAndDestroy()
      const there = typeof mode === "object" ? sleep(mode.slow) : undefined
      last = last.then(() => there).then(() => void to.write(data))
    })
    from.on("close", () => void to.destroy())
    from.on("error", () => void to.destroy())
  }
  const server = createServer((client) => {
    if (isCut(mode)) {
      client.on("error", () => {})
      return void client.resetAndDestroy()
    }
    const upstream = connect(port, "127.0.0.1")
    const line = [client, upstream] as const
    lines.add(line)
    client.on("close", () => void lines.delete(line))
    carry(client, upstream, false)
    carry(upstream, client, true)
  })
  const listen = (at: number) =>
    Effect.callback<void>((resume) => {
      server.listen(at, "127.0.0.1", () => resume(Effect.void))
    })
  yield* Effect.acquireRelease(listen(0), () =>
    Effect.sync(() => {
      server.close()
      for (const [client, upstream] of lines) {
        client.destroy()
        upstream.destroy()
      }
    }))
  const address = server.address() as { readonly port: number }
  return {
    port: address.port,
    url: `redis://127.0.0.1:${address.port}`,
    /** How it carries from now on. */
    set: (next: Mode) =>
      Effect.suspend(() => {
        mode = next
        if (isCut(next)) { for (const [client] of lines) client.resetAndDestroy() }
        if (next === "absent") server.close()
        return next === "absent" || server.listening ? Effect.void : listen(address.port)
      })
  }
})
