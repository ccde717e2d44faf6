/**
 * A page that shows queues at work, live, beside the API that it reads.
 *
 * `effect/http` and `effect/http-api` are unstable: a minor version of Effect may need a new version of this module.
 *
 * @since 0.1.0
 */
import * as Layer from "effect/Layer"
import * as Api from "./Api.ts"
import * as page from "./internal/dashboard/page.ts"

/**
 * Options of the dashboard: those of its API.
 *
 * @category models
 * @since 0.1.0
 */
export type Options = Api.Options

/**
 * The routes of the page, `GET /llm-queue/dashboard`, and of the API (`effect-llm-queue/Api`), for any HTTP server. With it
 * the layer of the API itself is not needed.
 *
 * **Details**
 *
 * - It shows every model with what waits and runs, its limits, throughput and waits of the last 15 minutes, the first
 *   requests in order with their predicted starts, failures, events and dead letters. With `actions: true` and a `token` it
 *   pauses, resumes, drains, cancels, changes priorities and limits, and submits dead letters again.
 * - Who may see it is who may use the API: without a `token` this machine by its own name, with one who knows it. The page
 *   asks for the token, and keeps it as long as its tab is open. The files of the page itself, which have nothing to hide,
 *   are served to everybody.
 * - The page loads nothing from elsewhere, and its policy lets it: scripts and styles of its own origin, none of them inline,
 *   no frames around it. Ids, tenants, labels and errors are shown as text.
 * - All that look share one reading of the queues, once a second, and one text of what has changed.
 *
 * **Example** (A dashboard for this machine)
 *
 * ```ts
 * import { NodeHttpServer } from "@effect/platform-node"
 * import { Layer } from "effect"
 * import { QueueManager } from "effect-llm-queue"
 * import * as Dashboard from "effect-llm-queue/Dashboard"
 * import { HttpRouter } from "effect/http"
 * import { createServer } from "node:http"
 *
 * // http://127.0.0.1:4100/llm-queue/dashboard
 * const ServerLive = HttpRouter.serve(Dashboard.layer()).pipe(
 *   Layer.provide(NodeHttpServer.layer(createServer, { host: "127.0.0.1", port: 4100 })),
 *   Layer.provide(QueueManager.layer)
 * )
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: Options = {}): ReturnType<typeof Api.layer> =>
  Layer.merge(page.layer, Api.layer(options))
