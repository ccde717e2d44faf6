/** A PostgreSQL server for tests: the one at DATABASE_URL, or one of their own that ends with the scope. */
import { Effect, Schedule } from "effect"
import { spawn, spawnSync } from "node:child_process"
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

/** Whether there is one, or can be one. */
export const hasPostgres = process.env["DATABASE_URL"] !== undefined || bin !== undefined

const number = (flag: string): number => Number(spawnSync("id", [flag, "postgres"]).stdout.toString())

const own = Effect.gen(function*() {
  const directory = mkdtempSync(join(tmpdir(), "llmq-postgres-"))
  yield* Effect.addFinalizer(() => Effect.sync(() => rmSync(directory, { recursive: true, force: true })))
  // It refuses to run as root.
  const user = process.getuid?.() === 0 ? { uid: number("-u"), gid: number("-g") } : {}
  if (user.uid !== undefined) chownSync(directory, user.uid, user.gid)
  const options = { ...user, cwd: directory, stdio: "ignore" } as const
  const data = join(directory, "data")
  spawnSync(join(bin!, "initdb"), ["-D", data, "-A", "trust", "-U", "postgres", "--no-sync"], options)
  const port = yield* freePort
  yield* Effect.acquireRelease(
    Effect.sync(() =>
      spawn(
        join(bin!, "postgres"),
        `-D ${data} -p ${port} -k ${directory} -h 127.0.0.1 -c fsync=off`.split(" "),
        options
      )
    ),
    (server) =>
      Effect.callback<void>((resume) => {
        server.once("exit", () => resume(Effect.void))
        server.kill("SIGQUIT")
      })
  )
  yield* Effect.suspend(() =>
    spawnSync(join(bin!, "pg_isready"), ["-h", "127.0.0.1", "-p", `${port}`]).status === 0
      ? Effect.void
      : Effect.fail("not yet")
  ).pipe(Effect.retry(Schedule.spaced(100)), Effect.timeout("30 seconds"), Effect.orDie)
  return `postgres://postgres@127.0.0.1:${port}/postgres`
})

/** The address of a server. */
export const url = Effect.suspend(() => {
  const given = process.env["DATABASE_URL"]
  return given === undefined ? own : Effect.succeed(given)
})
