/** A Redis server for tests: the one at REDIS_URL, or one of their own, from the path, that ends with the scope. */
import { Clock, Context, Effect, Schedule } from "effect"
import { Redis } from "ioredis"
import { type ChildProcess, spawn, spawnSync } from "node:child_process"
import { mkdtempSync, rmSync } from "node:fs"
import { createServer } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import process from "node:process"

/** Whether one can be started. */
export const canStart = spawnSync("redis-server", ["--version"]).status === 0

/** Whether there is one, or can be one. */
export const hasRedis = process.env["REDIS_URL"] !== undefined || canStart

export const freePort = Effect.callback<number>((resume) => {
  const server = createServer().listen(0, "127.0.0.1", () => {
    const { port } = server.address() as { readonly port: number }
    server.close(() => resume(Effect.succeed(port)))
  })
})

const ended = (child: ChildProcess) =>
  child.exitCode !== null || child.signalCode !== null
    ? Effect.void
    : Effect.callback<void>((resume) => void child.once("exit", () => resume(Effect.void)))

const command = (port: number, ...args: readonly [string, ...Array<string>]) =>
  Effect.acquireUseRelease(
    Effect.sync(() => {
      const client = new Redis({
        port,
        lazyConnect: true,
        enableReadyCheck: false,
        retryStrategy: () => null,
        maxRetriesPerRequest: 0
      })
      client.on("error", () => {})
      return client
    }),
    (client) =>
      Effect.tryPromise(async () => {
        await client.connect()
        return await client.call(...args)
      }),
    (client) => Effect.sync(() => client.disconnect())
  )

/** A server that can be stopped and started again on its port; with persistence if asked. */
export const own = Effect.fnUntraced(function*(...options: ReadonlyArray<string>) {
  const directory = mkdtempSync(join(tmpdir(), "llmq-redis-"))
  yield* Effect.addFinalizer(() => Effect.sync(() => rmSync(directory, { recursive: true, force: true })))
  const port = yield* freePort
  let child: ChildProcess | undefined
  const signal = (name: NodeJS.Signals) => Effect.sync(() => void child?.kill(name))
  const start = Effect.suspend(() => {
    child = spawn(
      "redis-server",
      [
        `--port ${port}`,
        "--bind 127.0.0.1",
        "--save",
        "",
        `--dir ${directory}`,
        "--loglevel warning",
        ...options
      ].flatMap((option) => option === "" ? [""] : option.split(" ")),
      { stdio: "ignore" }
    )
    return command(port, "PING").pipe(
      Effect.retry(Schedule.spaced(20)),
      Effect.timeout("10 seconds"),
      Effect.orDie,
      // Also in a test on virtual time.
      Effect.provideService(Clock.Clock, Context.get(Context.empty(), Clock.Clock))
    )
  })
  const kill = Effect.suspend(() => {
    const mine = child
    child?.kill("SIGKILL")
    return mine === undefined ? Effect.void : ended(mine)
  })
  yield* start
  yield* Effect.addFinalizer(() => kill)
  return {
    port,
    url: `redis://127.0.0.1:${port}`,
    start,
    kill,
    signal,
    command: (...args: readonly [string, ...Array<string>]) => Effect.orDie(command(port, ...args))
  }
})

/** The address of a server, for those that leave it as it is. */
export const url = Effect.suspend(() => {
  const given = process.env["REDIS_URL"]
  return given === undefined ? Effect.map(own(), ({ url }) => url) : Effect.succeed(given)
})
