/** The files of the dashboard's page, and what browsers may do with them. */
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as access from "../access.ts"
import * as assets from "./assets.ts"

export const path = "/llm-queue/dashboard"

const files = [
  { path, contentType: "text/html; charset=utf-8", body: assets.html },
  { path: `${path}/main.js`, contentType: "text/javascript; charset=utf-8", body: assets.script },
  { path: `${path}/style.css`, contentType: "text/css; charset=utf-8", body: assets.style },
  { path: `${path}/icon.svg`, contentType: "image/svg+xml", body: assets.icon }
] as const

/** Nothing from elsewhere, nothing inline, no markup made from texts, and nobody puts it in a frame. */
const policy = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self'",
  "img-src 'self'",
  "connect-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
  "require-trusted-types-for 'script'",
  "trusted-types 'none'"
].join("; ")

const headers = {
  ...access.headers,
  "content-security-policy": policy,
  "cross-origin-opener-policy": "same-origin",
  "referrer-policy": "no-referrer",
  "x-frame-options": "DENY"
}

export const layer = HttpRouter.addAll(
  files.map(({ body, contentType, path }) =>
    HttpRouter.route("GET", path, HttpServerResponse.text(body, { contentType, headers }))
  )
)
