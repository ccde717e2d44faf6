/** A PostgreSQL server for tests: the one at DATABASE_URL, or one of their own that ends with the scope. */
import { Effect, Schedule } from "effect"
import { type ChildProcess, spawn, spawnSync } from "node:child_process"
import { chownSync, existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import process from "node:process"
import { freePort } from "../redis/server.ts"

// Debian has them apart from each other, by version.
const debian = "/usr/lib/postgresql"
const directories = [
  ...(process.env["PATH"] ?? "").split(":"),
  ...(existsSync(debian)
    ? readdirSync(debian).toSorted().toReversed().map((version) => join(debian, version, "bin"))
    : [])
]
const bin = directories.find((directory) =>
  ["initdb", "postgres", "pg_isready"].every((program) => existsSync(join(directory, program)))
)

/** Whether one can be started. */
export const canStart = bin !== undefined

/** Whether there is one, or can be one. */
export const hasPostgres = process.env["DATABASE_URL"] !== undefined || canStart

const number = (flag: string): number => Number(spawnSync("id", [flag, "postgres"]).stdout.toString())

const ended = (child: ChildProcess) =>
  child.exitCode !== null || child.signalCode !== null
    ? Effect.void
    : Effect.callback<void>((resume) => void child.once("exit", () => resume(Effect.void)))

/** A server that can be stopped and started again on its port. */
export const own = Effect.gen(function*() {
  const directory = mkdtempSync(join(tmpdir(), "llmq-postgres-"))
  yield* Effect.addFinalizer(() => Effect.sync(() => rmSync(directory, { recursive: true, force: true })))
  // It refuses to run as root.
  const user = process.getuid?.() === 0 ? { uid: number("-u"), gid: number("-g") } : {}
  if (user.uid !== undefined) chownSync(directory, user.uid, user.gid)
  const options = { ...user, cwd: directory, stdio: "ignore" } as const
  const data = join(directory, "data")
  spawnSync(join(bin!, "initdb"), ["-D", data, "-A", "trust", "-U", "postgres", "--no-sync"], options)
  const port = yield* freePort
  let child: ChildProcess | undefined
  const start = Effect.suspend(() => {
    child = spawn(
      join(bin!, "postgres"),
      `-D ${data} -p ${port} -k ${directory} -h 127.0.0.1 -c fsync=off`.split(" "),
      options
    )
    return Effect.suspend(() =>
      spawnSync(join(bin!, "pg_isready"), ["-h", "127.0.0.1", "-p", `${port}`]).status === 0
        ? Effect.void
        : Effect.fail("not yet")
    ).pipe(Effect.retry(Schedule.spaced(100)), Effect.timeout("30 seconds"), Effect.orDie)
  })
  /** `SIGQUIT` without a word, `SIGINT` in order. */
  const stop = (signal: "SIGQUIT" | "SIGINT") =>
    Effect.suspend(() => {
      const mine = child
      mine?.kill(signal)
      return mine === undefined ? Effect.void : ended(mine)
    })
  yield* start
  yield* Effect.addFinalizer(() => stop("SIGQUIT"))
  return {
    port,
    url: `postgres://postgres@127.0.0.1:${port}/postgres`,
    start,
    stop,
    kill: stop("SIGQUIT")
  }
})

/** The address of a server. */
export const url = Effect.suspend(() => {
  const given = process.env["DATABASE_URL"]
  return given === undefined ? Effect.map(own, ({ url }) => url) : Effect.succeed(given)
})
