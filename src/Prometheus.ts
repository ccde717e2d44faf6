/**
 * Serves the metrics of the queues to Prometheus.
 *
 * `effect/http` and `effect/observability` are unstable: a minor version of Effect may need a new version of this module.
 *
 * @since 0.1.0
 */
import type * as HttpRouter from "effect/http/HttpRouter"
import type * as Layer from "effect/Layer"
import * as PrometheusMetrics from "effect/observability/PrometheusMetrics"

/**
 * A route that answers with all metrics of Effect's registry, those of `effect-llm-queue/Metrics` among them, in the text
 * format of Prometheus: `GET /metrics`, unless `path` says another one. `prefix` is put before all names.
 *
 * It asks nobody who they are: serve it where only those who may know can ask.
 *
 * **Example** (A server for Prometheus)
 *
 * ```ts
 * import { NodeHttpServer } from "@effect/platform-node"
 * import { Layer } from "effect"
 * import { QueueManager } from "effect-llm-queue"
 * import * as Metrics from "effect-llm-queue/Metrics"
 * import * as Prometheus from "effect-llm-queue/Prometheus"
 * import { HttpRouter } from "effect/http"
 * import { createServer } from "node:http"
 *
 * const ManagerLive = QueueManager.layer.pipe(Layer.provide(Metrics.layer()))
 *
 * const ServerLive = HttpRouter.serve(Prometheus.layerHttp()).pipe(
 *   Layer.provide(NodeHttpServer.layer(createServer, { host: "127.0.0.1", port: 9464 }))
 * )
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layerHttp: (
  options?: PrometheusMetrics.HttpOptions
) => Layer.Layer<never, never, HttpRouter.HttpRouter> = PrometheusMetrics.layerHttp
