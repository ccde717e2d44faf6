/** A line between a client and a server that can be cut in the ways in which networks cut lines. */
import { Effect } from "effect"
import { connect, createServer, type Socket } from "node:net"
import { setTimeout as sleep } from "node:timers/promises"

/**
 * - `pass`: as if it was not there
 * - `slow`: each piece comes later by so many milliseconds
 * - `swallow`: connections stay open, and nothing arrives on either side
 * - `mute`: the server hears, and is not heard
 * - `refuse`: connections are reset, those that are there and new ones
 */
export type Mode = "pass" | "swallow" | "mute" | "refuse" | { readonly slow: number }

export const make = Effect.fnUntraced(function*(port: number) {
  let mode: Mode = "pass"
  const lines = new Set<readonly [Socket, Socket]>()
  const carry = (from: Socket, to: Socket, isAnswer: boolean) => {
    // Nothing overtakes what was sent before.
    let last = Promise.resolve()
    from.on("data", (data) => {
      if (mode === "swallow" || mode === "refuse" || (mode === "mute" && isAnswer)) return
      const there = typeof mode === "object" ? sleep(mode.slow) : undefined
      last = last.then(() => there).then(() => void to.write(data))
    })
    from.on("close", () => void to.destroy())
    from.on("error", () => void to.destroy())
  }
  const server = createServer((client) => {
    if (mode === "refuse") {
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
  yield* Effect.acquireRelease(
    Effect.callback<void>((resume) => {
      server.listen(0, "127.0.0.1", () => resume(Effect.void))
    }),
    () =>
      Effect.sync(() => {
        server.close()
        for (const [client, upstream] of lines) {
          client.destroy()
          upstream.destroy()
        }
      })
  )
  const address = server.address() as { readonly port: number }
  return {
    port: address.port,
    url: `redis://127.0.0.1:${address.port}`,
    /** How it carries from now on. What was swallowed stays so. */
    set: (next: Mode) =>
      Effect.sync(() => {
        mode = next
        if (next === "refuse") { for (const [client] of lines) client.resetAndDestroy() }
      })
  }
})
