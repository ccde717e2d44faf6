/**
 * Limits that are counted on a real server, for tests on virtual time: each call is answered at once, and the server's
 * clock is that of the test. The process stands still until there is an answer, so nothing depends on how long that takes.
 */
import { type Clock, Effect, Queue } from "effect"
import type { Redis as EffectRedis } from "effect/persistence"
import { MessageChannel, receiveMessageOnPort, Worker } from "node:worker_threads"

const source = `
const { Redis } = require("ioredis")
const { workerData: { url, port, signal } } = require("node:worker_threads")
const client = new Redis(url)
const shas = new Map()
port.on("message", async ([script, ...args]) => {
  let answer
  try {
    if (!shas.has(script)) shas.set(script, await client.script("LOAD", script))
    answer = { value: await client.evalsha(shas.get(script), ...args) }
  } catch (error) {
    answer = { error: String(error) }
  }
  port.postMessage(answer)
  Atomics.store(signal, 0, 1)
  Atomics.notify(signal, 0)
})
`

/** Runs scripts on a server, and waits for each. */
const connect = (url: string) => {
  const signal = new Int32Array(new SharedArrayBuffer(4))
  const { port1, port2 } = new MessageChannel()
  const worker = new Worker(source, { eval: true, workerData: { url, port: port2, signal }, transferList: [port2] })
  worker.unref()
  port1.unref()
  return {
    run: (script: string, ...args: ReadonlyArray<string | number>): unknown => {
      Atomics.store(signal, 0, 0)
      port1.postMessage([script, ...args])
      // That of the answer before may come so late that it is this one that it wakes.
      while (Atomics.load(signal, 0) === 0) {
        if (Atomics.wait(signal, 0, 0, 30_000) === "timed-out") throw new Error("the server does not answer")
      }
      const { error, value } = receiveMessageOnPort(port1)!.message as {
        readonly error?: string
        readonly value?: unknown
      }
      if (error !== undefined) throw new Error(error)
      return value
    },
    close: () => void worker.terminate()
  }
}

// The server's clock becomes an argument, and what it tells others becomes part of the answer.
const instant = (lua: string): string =>
  `local sent = {}\n${
    lua.replace("redis.call('TIME')", "{ ARGV[2], ARGV[3] }")
      .replace(
        "redis.call('PUBLISH', call.channel .. each.claim.process, each.pid)",
        "sent[#sent + 1] = { call.channel .. each.claim.process, each.pid }"
      )
      .replace(/\nreturn reply\n$/u, "\nreturn { reply, cjson.encode(sent) }\n")
  }`

/** A connection, whose server has the time of the clock. */
export const connection = (url: string) => {
  const { close, run } = connect(url)
  const listeners = new Map<string, Queue.Queue<EffectRedis.RedisMessage, EffectRedis.RedisError>>()
  const scripts = new Map<string, string>()
  const service = (clock: Clock.Clock) => ({
    send: () => Effect.die("not here"),
    reserve: Effect.die("not here"),
    subscribe: (channel: string) =>
      Effect.acquireRelease(
        Effect.tap(
          Queue.unbounded<EffectRedis.RedisMessage, EffectRedis.RedisError>(),
          (queue) => Effect.sync(() => listeners.set(channel, queue))
        ),
        () => Effect.sync(() => listeners.delete(channel))
      ),
    eval:
      (script: { readonly lua: string; readonly params: (...params: Array<never>) => ReadonlyArray<unknown> }) =>
      (...params: ReadonlyArray<unknown>) =>
        Effect.sync(() => {
          const lua = scripts.get(script.lua) ?? instant(script.lua)
          scripts.set(script.lua, lua)
          const args = script.params(...params as Array<never>).map(String)
          const now = clock.currentTimeMillisUnsafe() + 1e12
          const seconds = Math.floor(now / 1000)
          const micros = (now - seconds * 1000) * 1000
          const answer = run(lua, args.length - 1, ...args, seconds, micros)
          if (!Array.isArray(answer)) return answer
          const [reply, sent] = answer as [string, string]
          for (const [channel, message] of Object.values(JSON.parse(sent) as Array<[string, string]>)) {
            const queue = listeners.get(channel)
            if (queue !== undefined) Queue.offerUnsafe(queue, { channel, message })
          }
          return reply
        })
  })
  return { close, service }
}
