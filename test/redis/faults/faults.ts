/** What may become of a server, or of the line to it. */
import { Effect } from "effect"
import type * as proxy from "../proxy.ts"
import type { own } from "../server.ts"

type Redis = Effect.Success<ReturnType<typeof own>>
type Line = Effect.Success<ReturnType<typeof proxy.make>>

export interface Fault<Server = Redis> {
  readonly name: string
  /** How long it takes is for the caller to say. Ends when it is over. */
  readonly happen: (server: Server, line: Line, meanwhile: Effect.Effect<unknown>) => Effect.Effect<unknown>
  /** Of the server. */
  readonly options?: ReadonlyArray<string>
  /** Nobody is let in while it lasts. */
  readonly isAway: boolean
  /** What it knew is gone. */
  readonly loses?: boolean
}

/** Of a server that loses nothing when it is killed. */
export const kept = ["--appendonly yes", "--appendfsync always"]

/** Begins, lasts, and ends whatever happens meanwhile. */
export const lasting = <Server = Redis>(
  name: string,
  begin: (server: Server, line: Line) => Effect.Effect<unknown>,
  end: (server: Server, line: Line) => Effect.Effect<unknown>,
  options: Omit<Fault, "happen" | "name"> = { isAway: true }
): Fault<Server> => ({
  ...options,
  name,
  happen: (server, line, meanwhile) =>
    Effect.andThen(begin(server, line), Effect.ensuring(meanwhile, end(server, line)))
})

const sudden = (name: string, happen: (server: Redis) => Effect.Effect<unknown>, loses = false): Fault => ({
  name,
  loses,
  happen: (server, _, meanwhile) => Effect.andThen(happen(server), meanwhile),
  isAway: false
})

const line = (name: string, mode: proxy.Mode, isAway = true): Fault =>
  lasting(name, (_, { set }) => set(mode), (_, { set }) => set("pass"), { isAway })

export const faults: ReadonlyArray<Fault> = [
  lasting("is killed and comes back", ({ kill }) => kill, ({ start }) => start, { isAway: true, options: kept }),
  lasting("is killed and comes back with nothing", ({ kill }) => kill, ({ start }) => start, {
    isAway: true,
    loses: true
  }),
  lasting("stands still", ({ signal }) => signal("SIGSTOP"), ({ signal }) => signal("SIGCONT")),
  sudden("forgets its scripts", ({ command }) => command("SCRIPT", "FLUSH")),
  sudden("forgets everything", ({ command }) => command("FLUSHALL"), true),
  sudden("closes its connections", ({ command }) => command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")),
  sudden("closes what only listens", ({ command }) => command("CLIENT", "KILL", "TYPE", "pubsub")),
  lasting(
    "has no memory left",
    ({ command }) => command("CONFIG", "SET", "maxmemory", "1"),
    ({ command }) => command("CONFIG", "SET", "maxmemory", "0")
  ),
  lasting(
    "only reads",
    ({ command }) => command("REPLICAOF", "127.0.0.1", "1"),
    ({ command }) => command("REPLICAOF", "NO", "ONE")
  ),
  lasting(
    "is busy with a script",
    // Until then it answers.
    ({ command }) =>
      Effect.andThen(
        Effect.forkDetach(Effect.exit(command("EVAL", "while true do end", "0"))),
        Effect.sleep(100)
      ),
    ({ command }) => command("SCRIPT", "KILL"),
    { isAway: true, options: ["--busy-reply-threshold 50"] }
  ),
  line("cannot be heard", "mute"),
  line("is behind a line that swallows everything", "swallow"),
  line("is behind a line that is reset", "refuse"),
  line("is behind a line that is not there", "absent"),
  line("is far away for a while", { slow: 150 }, false)
]

/** Takes longer, and is no more than the others: for campaigns. */
export const rare: ReadonlyArray<Fault> = [
  lasting(
    "has much to load when it comes back",
    // Loading takes a millisecond a key.
    ({ command, kill }) =>
      Effect.andThen(
        command("EVAL", "for i = 1, 1500 do redis.call('SET', 'much:' .. i, i) end", "0"),
        Effect.andThen(command("BGREWRITEAOF"), Effect.andThen(Effect.sleep(300), kill))
      ),
    ({ start }) => start,
    { isAway: true, options: [...kept, "--key-load-delay 1000", "--loading-process-events-interval-bytes 1024"] }
  )
]
