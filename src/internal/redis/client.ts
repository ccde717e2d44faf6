/**
 * Effect's Redis service on ioredis, set up so that nothing waits for a server that is away: it connects again for ever,
 * keeps no commands meanwhile, gives up a connection that has gone silent, and closes at once.
 */
import * as Effect from "effect/Effect"
import * as Redis from "effect/persistence/Redis"
import type { Cluster, Redis as Client, RedisOptions } from "ioredis"

const failure = (cause: unknown) => new Redis.RedisError({ cause })

/** Half of it by chance, so that many do not come back together. */
export const pause = (random: () => number) => (attempt: number): number =>
  Math.min(2000, 50 * 2 ** Math.min(attempt, 10)) * (0.5 + random() / 2)

export const options = (
  given: Omit<RedisOptions, "replyMapping">,
  { commandTimeout, random }: { readonly commandTimeout: number; readonly random: () => number }
): Omit<RedisOptions, "replyMapping"> => ({
  connectTimeout: commandTimeout,
  // After a failover the server that was written to only reads: another connection finds the new one.
  reconnectOnError: (error) => error.message.startsWith("READONLY"),
  retryStrategy: pause(random),
  // Longer than a command is waited for, or one slow command would take the others with it.
  socketTimeout: 2 * commandTimeout,
  ...given,
  autoResendUnfulfilledCommands: false,
  autoResubscribe: false,
  enableOfflineQueue: false,
  lazyConnect: false,
  // What is under way when a connection is lost fails at once.
  maxRetriesPerRequest: 0
})

const sendWith =
  (client: Client | Cluster) =>
  <A>(command: string, ...args: ReadonlyArray<string>): Effect.Effect<A, Redis.RedisError> =>
    Effect.tryPromise({
      // What a command answers is for who sends it to say.
      try: () => client.call(command, ...args) as Promise<A>,
      catch: failure
    })

/** Waits for the connection, but not for a server that is not there. */
const ready = (client: Client | Cluster, timeout: number): Effect.Effect<void> =>
  client.status === "ready" ? Effect.void : Effect.ignore(Effect.timeout(
    Effect.callback<void>((resume) => {
      const done = () => resume(Effect.void)
      client.once("ready", done)
      return Effect.sync(() => client.off("ready", done))
    }),
    timeout
  ))

/** The service, on clients that `open` makes and the scope closes. */
export const make = Effect.fnUntraced(function*(open: () => Client | Cluster, commandTimeout: number) {
  const context = yield* Effect.context()
  const log = Effect.runForkWith(context)
  const connect = Effect.fnUntraced(function*(what: string) {
    let connections = 0
    const client = yield* Effect.acquireRelease(
      Effect.sync(() => {
        const client = open()
        let isDown = false
        client.on("connect", () => {
          connections++
        })
        client.on("ready", () => {
          isDown = false
        })
        // Without a listener an error would end the process. Once for each time that it is lost.
        client.on("error", (cause: unknown) => {
          if (isDown) return
          isDown = true
          log(Effect.logWarning(`${what} of Redis is lost, and tried again`, cause))
        })
        return client
      }),
      (client) => Effect.sync(() => client.disconnect())
    )
    // What a new connection says first is waited for without an end: in silence it would never be ready.
    let begun: number | undefined
    const look = Effect.sync(() => {
      const isBeginning = client.status === "connect"
      if (isBeginning && begun === connections) client.disconnect(true)
      begun = isBeginning ? connections : undefined
    })
    yield* Effect.forkScoped(Effect.forever(Effect.delay(look, commandTimeout)))
    return client
  })
  const client = yield* connect("The connection")
  yield* ready(client, commandTimeout)
  return yield* Redis.make({
    send: sendWith(client),
    connect: Effect.sync(() => {
      const own = open()
      own.on("error", () => {})
      return { send: sendWith(own), close: Effect.sync(() => own.disconnect()) }
    }),
    subscribe: Effect.fnUntraced(function*(channel, onMessage) {
      const subscriber = yield* connect("The subscription")
      subscriber.on("message", (channel: string, message: string) => onMessage({ channel, message }))
      const say = (command: () => Promise<unknown>) =>
        Effect.ignore(Effect.tryPromise({ try: command, catch: failure }))
      const subscribe = say(() => subscriber.subscribe(channel))
      // By itself it forgets what it was subscribed to when a connection is lost before it was ready.
      subscriber.on("ready", () => log(subscribe))
      // A connection that only listens would not notice that nobody speaks any more.
      const check = say(() => subscriber.ping()).pipe(Effect.delay("5 seconds"), Effect.forever)
      return Effect.andThen(subscribe, check)
    })
  })
})
