#!/usr/bin/env node
/** `npx effect-llm-queue`: looks at the queues of a program that serves `effect-llm-queue/Api`, from outside. */
import { NodeHttpServer, NodeRuntime, NodeServices } from "@effect/platform-node"
import { Command, Flag } from "effect/cli"
import * as Config from "effect/Config"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import { FetchHttpClient, HttpRouter, HttpServer } from "effect/http"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import { createServer } from "node:http"
import packageJson from "../package.json" with { type: "json" }
import * as access from "../src/internal/access.ts"
import * as page from "../src/internal/dashboard/page.ts"
import * as proxy from "./proxy.ts"
import * as view from "./view.ts"

const url = Flag.String("url").pipe(
  Flag.withAlias("u"),
  Flag.withMetavar("URL"),
  Flag.withDescription("Where the program serves effect-llm-queue/Api, such as http://127.0.0.1:4100"),
  Flag.filter(
    (url) => URL.canParse(url) && /^https?:$/.test(new URL(url).protocol),
    (url) => `an address that begins with http:// or https://, got ${url}`
  ),
  Flag.map((url) => new URL(url).href.replace(/\/+(?:llm-queue(?:\/dashboard)?\/*)?$/, ""))
)

const token = Flag.Redacted("token").pipe(
  Flag.withMetavar("TOKEN"),
  Flag.withDescription("Its bearer token. Better given as LLM_QUEUE_TOKEN: other users of this machine see arguments"),
  Flag.withFallbackConfig(Config.Redacted("LLM_QUEUE_TOKEN")),
  Flag.filter((token) => access.usable(token) !== undefined, () => "a token that is not empty"),
  Flag.optional
)

const watch = Command.make("watch", {
  url,
  token,
  once: Flag.Boolean("once").pipe(
    Flag.withDescription("Print one table and end, as where there is no terminal"),
    Flag.withDefault(false)
  )
}, ({ once, token, url }) => view.watch({ once, token: Option.getOrUndefined(token), url })).pipe(
  Command.withDescription("Show the queues in this terminal"),
  Command.withExamples([{ command: "effect-llm-queue watch --url http://127.0.0.1:4100" }])
)

/** One page has a stream and a few requests: these are many pages. */
const mostConnections = 256

const makeServer = () => {
  const server = createServer()
  server.maxConnections = mostConnections
  return server
}

const dashboard = Command.make("dashboard", {
  url,
  token,
  host: Flag.String("host").pipe(
    Flag.withDescription("The address to listen on; with a token it may be another one than this machine's own"),
    Flag.withDefault("127.0.0.1")
  ),
  port: Flag.Int("port").pipe(
    Flag.withAlias("p"),
    Flag.withDescription("The port to listen on; 0 takes a free one"),
    Flag.filter((port) => port >= 0 && port <= 65_535, (port) => `0 to 65535, got ${port}`),
    Flag.withDefault(4180)
  )
}, ({ host, port, token: given, url }) =>
  Effect.gen(function*() {
    const token = Option.getOrUndefined(given)
    if (token === undefined && host !== "localhost" && !access.isLoopback(host)) {
      return yield* new view.Problem({
        message: `Who can reach ${host} could see the queues: give a token, or leave out --host.`
      })
    }
    const serve = Effect.gen(function*() {
      const own = yield* HttpServer.addressFormattedWith((own) => Effect.succeed(own))
      yield* Console.log(`${own}${page.path} shows ${url}. Ctrl-C ends it.`)
      return yield* view.show({ token, url })
    })
    return yield* serve.pipe(
      Effect.provide(
        HttpRouter.serve(proxy.layer({ token, url }), { disableLogger: true, disableListenLog: true }).pipe(
          Layer.provideMerge(
            // A browser keeps a connection that it may need, which a server waits for.
            NodeHttpServer.layer(makeServer, { host, port, gracefulShutdownTimeout: "500 millis" })
          )
        )
      ),
      Effect.catchTag("ServeError", () =>
        new view.Problem({
          message: `Nothing can listen on ${host}:${port}: give another --port, or 0 for a free one.`
        }))
    )
  })).pipe(
    Command.withDescription("Serve the dashboard of a running program"),
    Command.withExamples([
      { command: "effect-llm-queue dashboard --url http://127.0.0.1:4100" },
      { command: "LLM_QUEUE_TOKEN=… effect-llm-queue dashboard --url https://queues.example --port 8080" }
    ])
  )

Command.make("effect-llm-queue").pipe(
  Command.withDescription("Look at the queues of a running program"),
  Command.withSubcommands([dashboard, watch]),
  Command.run({ version: packageJson.version }),
  Effect.catchTag(
    "Problem",
    ({ message }) => Effect.andThen(Console.error(message), Effect.sync(() => process.exitCode = 1))
  ),
  Effect.provide([NodeServices.layer, FetchHttpClient.layer]),
  NodeRuntime.runMain
)
