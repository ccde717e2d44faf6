/** Processes that share limits, against a provider that keeps the books. */
import { NodeHttpServer } from "@effect/platform-node"
import { Effect, Layer } from "effect"
import { ProviderSimulator } from "effect-llm-queue/testing"
import { HttpRouter, HttpServer } from "effect/http"
import { type ChildProcess, fork } from "node:child_process"
import { createServer } from "node:http"
import { fileURLToPath } from "node:url"
import type { Done, Settings } from "./worker.ts"

export interface Options extends Omit<Settings, "url" | "backlog" | "rate"> {
  /** What each process does. */
  readonly loads: ReadonlyArray<Pick<Settings, "backlog" | "rate">>
  /** For how many windows and their margins. */
  readonly windows: number
  /** Milliseconds that the server's margin adds. */
  readonly added: number
  /** Called with the processes, as long as they work. */
  readonly meanwhile?: ((children: ReadonlyArray<ChildProcess>) => Effect.Effect<void>) | undefined
}

const worker = fileURLToPath(new URL("worker.ts", import.meta.url))

const next = <A>(child: ChildProcess) =>
  Effect.callback<A>((resume) => {
    const message = (message: unknown) => resume(Effect.succeed(message as A))
    const exit = (code: number | null) => resume(Effect.die(new Error(`a process has ended with ${code}`)))
    child.once("message", message)
    child.once("exit", exit)
    return Effect.sync(() => {
      child.off("message", message)
      child.off("exit", exit)
    })
  })

const ended = (child: ChildProcess) =>
  child.exitCode !== null || child.signalCode !== null
    ? Effect.void
    : Effect.callback<void>((resume) => void child.once("exit", () => resume(Effect.void)))

/** 1 when all have had the same, 1 / n when one has had everything. */
export const jain = (shares: ReadonlyArray<number>): number =>
  shares.reduce((sum, share) => sum + share, 0) ** 2 /
  (shares.length * shares.reduce((sum, share) => sum + share ** 2, 0))

export const run = Effect.fnUntraced(function*(options: Options) {
  const { added, concurrent, loads, margin, meanwhile, period, rpm, tpm, windows } = options
  const simulator = yield* ProviderSimulator.ProviderSimulator
  const url = yield* HttpServer.addressFormattedWith((url) => Effect.succeed(url))
  const children = loads.map((load) =>
    fork(worker, [JSON.stringify({ ...options, ...load, url, loads: undefined, meanwhile: undefined })], {
      execArgv: ["-C", "llmq-source"]
    })
  )
  yield* Effect.addFinalizer(() =>
    Effect.sync(() => {
      for (const child of children) child.kill("SIGKILL")
    })
  )
  yield* Effect.forEach(children, (child) => next(child), { concurrency: "unbounded" })
  const begin = yield* simulator.now
  for (const child of children) child.send("go")
  // All that one window and its margins allow is there at its beginning; the last one has time for its own.
  const cycle = period + margin + added
  yield* Effect.andThen(
    meanwhile?.(children) ?? Effect.void,
    Effect.suspend(() => Effect.flatMap(simulator.now, (now) => Effect.sleep(begin + windows * cycle - now)))
  )
  const report = yield* simulator.report({ from: begin, to: begin + windows * cycle })
  const done = yield* Effect.forEach(children.filter((child) => child.connected), (child) => {
    const answer = next<Done>(child)
    return Effect.andThen(Effect.sync(() => child.send("stop")), answer)
  }, { concurrency: "unbounded" })
  yield* Effect.forEach(children, ended)
  const whole = (yield* simulator.report()).models.find(({ model }) => model === "gpt")!
  const books = report.models.find(({ model }) => model === "gpt")!
  const bound = period / cycle
  return {
    done,
    refused: whole.refused,
    refusedBy: whole.refusedBy,
    maxConcurrent: whole.maxConcurrent,
    admitted: whole.admitted,
    /** Of the limit that is used most, as a part of what can be used of it without refusals. */
    utilisation: Math.max(
      ...books.limits.filter(({ dimension }) => dimension !== "concurrent").map(({ utilisation }) =>
        utilisation / bound
      )
    ),
    limits: books.limits,
    jain: jain(done.map(({ sent }) => sent)),
    rpm,
    tpm,
    concurrent
  }
}, Effect.scoped)

export const layer = ({ concurrent, period, rpm, tpm }: Pick<Options, "concurrent" | "period" | "rpm" | "tpm">) =>
  HttpRouter.serve(ProviderSimulator.layerHttp, { disableLogger: true, disableListenLog: true }).pipe(
    Layer.provideMerge(ProviderSimulator.layer({
      models: {
        gpt: [
          { dimension: "requests", limit: rpm, period },
          { dimension: "tokens", limit: tpm, period },
          { dimension: "concurrent", limit: concurrent }
        ],
        "warm-up": []
      },
      serviceTime: { base: 40, perOutputToken: 1 }
    })),
    Layer.provideMerge(NodeHttpServer.layer(createServer, { host: "127.0.0.1", port: 0 }))
  )
