/** A real browser that looks at pages of this machine. */
import { Context, Effect, Layer, type Scope } from "effect"
import { existsSync } from "node:fs"
import { type Browser as Chromium, type BrowserContextOptions, chromium, type Page } from "playwright-core"

const executablePath = process.env["CHROMIUM"] ?? "/usr/bin/chromium"

export const hasBrowser = existsSync(executablePath)

export class Browser extends Context.Service<Browser, Chromium>()("effect-llm-queue/test/dashboard/browser") {
  static readonly layer = Layer.effect(
    Browser,
    Effect.acquireRelease(
      Effect.promise(() =>
        chromium.launch({
          executablePath,
          // It asks nobody but the pages' own server, and runs as root in containers.
          args: [
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync"
          ]
        })
      ),
      (browser) => Effect.promise(() => browser.close())
    )
  )
}

export interface Seen {
  readonly page: Page
  /** The addresses that it asked for. */
  readonly requests: Array<string>
  /** What should not happen: scripts that fail or are not let run, and dialogs, which only foreign scripts open. */
  readonly wrong: Array<string>
}

/** A page in a context of its own, until the scope closes. */
export const open = (
  url: string,
  options: BrowserContextOptions = {}
): Effect.Effect<Seen, never, Browser | Scope.Scope> =>
  Effect.gen(function*() {
    const browser = yield* Browser
    const context = yield* Effect.acquireRelease(
      Effect.promise(() => browser.newContext(options)),
      (context) => Effect.promise(() => context.close())
    )
    const page = yield* Effect.promise(() => context.newPage())
    page.setDefaultTimeout(20_000)
    const requests: Array<string> = []
    const wrong: Array<string> = []
    page.on("request", (request) => requests.push(request.url()))
    page.on("pageerror", (error) => wrong.push(`error: ${error.message}`))
    page.on("dialog", (dialog) => {
      wrong.push(`dialog: ${dialog.message()}`)
      void dialog.dismiss()
    })
    page.on("console", (message) => {
      // A server that is away, or does not answer who has no token, is no fault of the page.
      if (message.type() === "error" && !message.text().startsWith("Failed to load resource")) {
        wrong.push(`console: ${message.text()}`)
      }
    })
    yield* Effect.promise(() => page.goto(url))
    return { page, requests, wrong }
  })
