/**
 * What the examples of several processes have in common: the server that their processes share, the provider that they
 * all send to, and how the first process and the ones that it starts hear of each other.
 */
import { NodeHttpServer } from "@effect/platform-node"
import { type Duration, Effect, Layer, Schema } from "effect"
import { ProviderSimulator } from "effect-llm-queue/testing"
import { HttpRouter } from "effect/http"
import { type ChildProcess, spawn, spawnSync } from "node:child_process"
import { once } from "node:events"
import { createServer } from "node:http"
import { type AddressInfo, createServer as createSocket } from "node:net"
import process from "node:process"

const freePort = async () => {
  const socket = createSocket().listen(0, "127.0.0.1")
  await once(socket, "listening")
  const { port } = socket.address() as AddressInfo
  socket.close()
  return port
}

/** The Redis that there is, or one of our own for as long as the scope is open. */
export const findRedis = Effect.gen(function*() {
  const given = process.env["REDIS_URL"]
  if (given !== undefined) return given
  if (spawnSync("redis-server", ["--version"]).status !== 0) return undefined
  const port = yield* Effect.promise(freePort)
  const server = yield* Effect.acquireRelease(
    Effect.sync(() =>
      spawn("redis-server", ["--port", `${port}`, "--bind", "127.0.0.1", "--save", ""], {
        stdio: ["ignore", "pipe", "inherit"]
      })
    ),
    (server) => Effect.sync(() => void server.kill())
  )
  yield* Effect.callback<void>((resume) => {
    server.stdout.on("data", (text: Buffer) => text.includes("Ready to accept") && resume(Effect.void))
  })
  return `redis://127.0.0.1:${port}`
})

/** A provider with strict limits that keeps books, over HTTP; of the model "warm-up" it takes all. */
export const provider = ({ atOnce, perRequest, period, requests }: {
  readonly requests: number
  readonly period: Duration.Input
  readonly atOnce: number
  /** Milliseconds. */
  readonly perRequest: number
}) =>
  HttpRouter.serve(ProviderSimulator.layerHttp, { disableLogger: true, disableListenLog: true }).pipe(
    Layer.provideMerge(ProviderSimulator.layer({
      models: {
        gpt: [{ dimension: "requests", limit: requests, period }, { dimension: "concurrent", limit: atOnce }],
        "warm-up": []
      },
      serviceTime: { base: perRequest, perOutputToken: 2 }
    })),
    Layer.provideMerge(NodeHttpServer.layer(createServer, { host: "127.0.0.1", port: 0 }))
  )

/** What a process waits for that was started: a word, or the end of the one that has started it. */
export const told = (what: string) =>
  Effect.callback<void>((resume) => {
    process.on("message", (message) => message === what && resume(Effect.void))
    process.once("disconnect", () => resume(Effect.void))
  })

export const isOver = (child: ChildProcess) => child.exitCode !== null || child.signalCode !== null

export const until = (condition: () => boolean) =>
  Effect.whileLoop({ while: () => !condition(), body: () => Effect.sleep(20), step: () => {} })

export class Disappointing extends Schema.TaggedError<Disappointing>()("Disappointing", { message: Schema.String }) {}
