/** The dashboard in a real browser, in real time. */
import { NodeHttpServer } from "@effect/platform-node"
import { assert, describe, layer } from "@effect/vitest"
import axe from "axe-core"
import { Deferred, Effect, Exit, Layer, Redacted, Scope } from "effect"
import { ModelConfig, ProviderProfile, QueueManager, QueueRequest, RateLimiter } from "effect-llm-queue"
import * as Dashboard from "effect-llm-queue/Dashboard"
import { HttpRouter, HttpServer } from "effect/http"
import { createServer, type Server } from "node:http"
import type { AddressInfo } from "node:net"
import type { Page } from "playwright-core"
import { Browser, hasBrowser, open, type Seen } from "./browser.ts"

const token = "a long secret"
const timeout = 60_000

const serve = (options: Dashboard.Options, port = 0) =>
  HttpRouter.serve(Dashboard.layer({ interval: "100 millis", ...options }), {
    disableLogger: true,
    disableListenLog: true
  }).pipe(
    // A browser keeps a connection that it may need, which a server waits for.
    Layer.provideMerge(
      NodeHttpServer.layer(createServer, { host: "127.0.0.1", port, gracefulShutdownTimeout: "500 millis" })
    ),
    Layer.provideMerge(QueueManager.layerWith({ shutdown: { policy: "interrupt", deadline: 0 } }))
  )

const origin = HttpServer.addressFormattedWith((url) => Effect.succeed(url))

const dashboard = Effect.map(origin, (url) => `${url}/llm-queue/dashboard`)

/** A step of a browser. */
const step = <A>(f: () => Promise<A>): Effect.Effect<A> => Effect.promise(f)

const signIn = (page: Page, value = token) =>
  step(async () => {
    await page.getByLabel("Bearer token of the API").fill(value)
    await page.getByRole("button", { name: "Sign in" }).click()
  })

const isLive = (page: Page) => step(() => page.getByText("Live", { exact: true }).waitFor())

/** Nothing has run that is not the page's own, and nobody else was asked. */
const isClean = ({ requests, wrong }: Seen, url: string) => {
  assert.deepStrictEqual(wrong, [])
  assert.deepStrictEqual(requests.filter((request) => !request.startsWith(`${url}/llm-queue/`)), [])
}

class Failure extends Error {
  readonly status = 500
}

/** A queue whose requests wait until they are told, but for those that fail. */
const slow = Effect.fnUntraced(function*(modelId: string, options: Partial<ModelConfig.Options<string, string>> = {}) {
  const manager = yield* QueueManager.QueueManager
  const go = yield* Deferred.make<void>()
  const Model = ModelConfig.makeUntyped<string, string, Error>(modelId, {
    rateLimiters: [RateLimiter.rpm(100), RateLimiter.concurrent(1)],
    ...options
  })
  let isBroken = false
  yield* manager.registerQueue(Model, ({ params }) =>
    isBroken
      ? Effect.fail(new Failure(`it has said ${params}`))
      : Effect.as(Deferred.await(go), "ok"))
  const submit = (id: string, options?: QueueRequest.RequestOptions) =>
    manager.submitRequest(QueueRequest.make(Model, { ...options, id, params: "a secret", waitForCompletion: false }))
  /** Fails one. */
  const fail = Effect.fnUntraced(function*(id: string, options?: QueueRequest.RequestOptions) {
    isBroken = true
    yield* submit(id, options)
    yield* Effect.exit(manager.awaitCompletion(Model, id))
    isBroken = false
  })
  return { Model, fail, go, manager, submit }
})

/** Markup, paths, and what addresses and selectors are made of. */
const hostile = "<img src=x onerror=\"alert(1)\">'/../%2e%2f?a=b&c#d\\ é"
const script = "</script><script>alert(2)</script>"

describe.runIf(hasBrowser)("the dashboard", () => {
  layer(Browser.layer, { excludeTestServices: true, timeout })((it) => {
    it.effect("shows what happens while it happens", () =>
      Effect.gen(function*() {
        const { go, manager, submit } = yield* slow("gpt-4")
        const seen = yield* open(yield* dashboard)
        const { page } = seen
        yield* isLive(page)
        const row = page.getByRole("row", { name: /gpt-4/ })
        const waiting = row.locator("[data-name=Waiting]")
        yield* step(async () => assert.strictEqual(await waiting.textContent(), "0"))
        yield* submit("a")
        yield* step(() => row.locator("[data-name=Running]").filter({ hasText: /^1$/ }).waitFor())
        yield* submit("b", { tenant: "acme" })
        yield* submit("c", { priority: "high" })
        yield* step(() => waiting.filter({ hasText: /^2$/ }).waitFor())
        yield* step(() => page.getByRole("link", { name: "gpt-4" }).first().click())
        yield* step(() => page.getByRole("heading", { name: "gpt-4", level: 1 }).waitFor())
        // The waiting list has its order, and says when each one starts.
        const requests = page.locator("table.requests tbody tr")
        yield* step(() => requests.nth(2).waitFor())
        const rows = yield* step(() => requests.allTextContents())
        assert.deepStrictEqual(rows.map((row) => row[0]), ["a", "c", "b"])
        assert.include(rows[0], "processing")
        assert.include(rows[1], "+60 s")
        assert.include(rows[2], "acme")
        const meter = page.getByRole("meter", { name: "rpm per minute" })
        assert.strictEqual(yield* step(() => meter.getAttribute("aria-valuetext")), "1 of 100")
        yield* Deferred.succeed(go, undefined)
        yield* step(() => page.getByText("Nothing waits, and nothing is being processed.").waitFor())
        yield* step(() => page.getByRole("definition").filter({ hasText: /^3$/ }).waitFor())
        yield* step(() => page.locator(".events .pill.completed").nth(2).waitFor())
        // What it was asked and has answered is on no page.
        assert.notInclude(yield* step(() => page.content()), "a secret")
        assert.strictEqual(yield* step(() => page.getByRole("button", { name: "Pause" }).count()), 0)
        yield* step(() => page.goBack())
        yield* step(() => row.first().waitFor())
        yield* manager.unregisterQueue("gpt-4")
        yield* step(() => row.first().waitFor({ state: "detached" }))
        isClean(seen, yield* origin)
      }).pipe(Effect.scoped, Effect.provide(serve({}))), timeout)

    it.effect("does everything that an operator can do", () =>
      Effect.gen(function*() {
        const { Model, fail, go, manager, submit } = yield* slow("gpt-4", { deadLetters: { count: 10 } })
        const seen = yield* open(`${yield* dashboard}#/model/gpt-4`)
        const { page } = seen
        yield* signIn(page)
        const button = (name: string | RegExp) => page.getByRole("button", { name, exact: typeof name === "string" })
        const told = (text: string) => step(() => page.getByText(text).waitFor())
        const state = Effect.map(manager.getQueueInfo(Model), ({ state }) => state)
        const confirm = (name: string) => step(() => page.getByRole("dialog").getByRole("button", { name }).click())

        for (const id of ["runs", "first", "second", "third"]) yield* submit(id)
        yield* step(() => button("Pause").click())
        yield* told("gpt-4 is paused.")
        assert.strictEqual(yield* state, "paused")
        yield* step(() => button("Resume").click())
        yield* told("gpt-4 goes on.")
        assert.strictEqual(yield* state, "open")

        yield* step(() => button("Change rpm per minute").click())
        yield* step(() => page.getByRole("spinbutton", { name: "Limit" }).fill("77"))
        yield* confirm("Change")
        yield* told("rpm per minute is 77 now.")
        assert.deepInclude((yield* manager.getQueueInfo(Model)).rateLimiters[0], { type: "rpm", limit: 77 })
        // Of what is wrong the server says what it is.
        yield* step(() => button("Change rpm per minute").click())
        yield* step(() => page.getByRole("spinbutton", { name: "Limit" }).fill("1e15"))
        yield* confirm("Change")
        yield* told("limit: expected a whole number from 1 to 1000000000000")
        yield* step(() => button("Close the message").click())

        yield* step(() => button("Change the priority of third").click())
        yield* step(() => page.getByRole("spinbutton", { name: "Head start in seconds" }).fill("600"))
        yield* confirm("Change")
        yield* told("third has another priority.")
        assert.strictEqual((yield* manager.getRequests(Model, { ids: ["third"] }))[0]!.priority, 600)
        yield* step(() => button("Cancel second").click())
        yield* confirm("Cancel it")
        yield* told("second is cancelled.")
        assert.strictEqual((yield* manager.getStatus(Model, "second")).status, "cancelled")

        yield* step(() => button("Cancel all that wait").click())
        // No is an answer, too.
        yield* step(() => page.keyboard.press("Escape"))
        assert.strictEqual((yield* manager.getQueueInfo(Model)).depth, 2)
        yield* step(() => button("Cancel all that wait").click())
        yield* confirm("Cancel them")
        yield* told("Of what waited for gpt-4, 2 are cancelled.")
        assert.deepInclude(yield* manager.getQueueInfo(Model), { depth: 0, running: 1 })

        yield* Deferred.succeed(go, undefined)
        yield* fail("broken")
        yield* fail("lost")
        yield* step(() => button("Submit again: broken").waitFor())
        const letter = page.locator("table.letters").getByRole("row", { name: /broken/ })
        assert.include(yield* step(() => letter.textContent()), "Error")
        yield* step(() => button("Submit again: broken").click())
        yield* told("broken is submitted again, as req_")
        assert.strictEqual((yield* manager.deadLetters(Model)).length, 1)
        yield* step(() => button("Remove all").click())
        yield* confirm("Remove")
        yield* told("1 dead letters are removed.")
        assert.strictEqual((yield* manager.deadLetters(Model)).length, 0)

        yield* step(() => button("Drain").click())
        yield* confirm("Drain")
        yield* told("gpt-4 takes no more requests.")
        assert.strictEqual(yield* state, "draining")
        yield* step(() => button("Resume").click())
        yield* told("gpt-4 goes on.")
        assert.strictEqual(yield* state, "open")
        assert.notInclude(yield* step(() => page.content()), "a secret")
        isClean(seen, yield* origin)
      }).pipe(Effect.scoped, Effect.provide(serve({ token: Redacted.make(token), actions: true }))), timeout)

    it.effect("says when there was nothing to be done", () =>
      Effect.gen(function*() {
        const { go, manager, Model, submit } = yield* slow("gpt-4")
        const { page } = yield* open(`${yield* dashboard}#/model/gpt-4`)
        yield* signIn(page)
        for (const id of ["runs", "waits"]) yield* submit(id)
        yield* step(() => page.getByRole("button", { name: "Change the priority of waits" }).click())
        yield* Deferred.succeed(go, undefined)
        yield* manager.awaitCompletion(Model, "waits")
        yield* step(() => page.getByRole("dialog").getByRole("button", { name: "Change" }).click())
        yield* step(() => page.getByText("waits does not wait any more.").waitFor())
      }).pipe(Effect.scoped, Effect.provide(serve({ token: Redacted.make(token), actions: true }))), timeout)

    it.effect("shows hostile texts as the texts that they are", () =>
      Effect.gen(function*() {
        const { fail, submit } = yield* slow(hostile, { deadLetters: { count: 10 } })
        yield* fail(`${script} ${hostile}`, { tenant: script })
        for (const id of ["runs", hostile, script]) yield* submit(id, { tenant: script, labels: { [hostile]: script } })
        const seen = yield* open(yield* dashboard)
        const { page } = seen
        yield* signIn(page)
        yield* isLive(page)
        const link = page.getByRole("link", { name: hostile, exact: true }).first()
        assert.strictEqual(yield* step(() => link.textContent()), hostile)
        yield* step(() => link.click())
        yield* step(() => page.getByRole("heading", { name: hostile, level: 1, exact: true }).waitFor())
        yield* step(() => page.locator("table.requests tbody tr").nth(2).waitFor())
        const ids = yield* step(() => page.locator("table.requests tbody code").allTextContents())
        assert.deepStrictEqual(ids, ["runs", hostile, script])
        const label = yield* step(() => page.locator("table.requests .label").first().textContent())
        assert.strictEqual(label, `${hostile}: ${script}`)
        yield* step(() => page.locator("table.letters tbody tr").first().waitFor())
        // An action reaches the one that it is about.
        yield* step(() => page.getByRole("button", { name: `Cancel ${hostile}`, exact: true }).click())
        yield* step(() => page.getByRole("dialog").getByRole("button", { name: "Cancel it" }).click())
        yield* step(() => page.getByText(`${hostile} is cancelled.`).waitFor())
        yield* step(() => page.reload())
        yield* step(() => page.getByRole("heading", { name: hostile, level: 1, exact: true }).waitFor())
        const foreign = yield* step(() =>
          page.evaluate("document.querySelectorAll('img, script:not([src$=\"main.js\"]), iframe').length")
        )
        assert.strictEqual(foreign, 0)
        isClean(seen, yield* origin)
      }).pipe(Effect.scoped, Effect.provide(serve({ token: Redacted.make(token), actions: true }))), timeout)

    it.effect("lets no other script run, and is in no frame", () =>
      Effect.gen(function*() {
        const url = yield* dashboard
        const { page } = yield* open(url)
        yield* isLive(page)
        const ran = yield* step(() =>
          page.evaluate(`(() => {
            const tries = {}
            const attempt = (name, f) => {
              try {
                f()
              } catch {
                tries[name] = "refused"
              }
            }
            attempt("markup", () => { document.body.innerHTML += "<img src=x onerror='window.ran = 1'>" })
            attempt("address", () => { const a = document.createElement("script"); a.src = "https://evil.example/a.js" })
            const inline = document.createElement("script")
            attempt("inline", () => { inline.textContent = "window.ran = 1" })
            document.body.append(inline)
            return { ran: window.ran, ...tries }
          })()`)
        )
        assert.deepStrictEqual(ran, { ran: undefined, markup: "refused", address: "refused", inline: "refused" })
        const response = yield* step(() => page.request.get(url))
        const policy = (response.headers()["content-security-policy"] ?? "").split("; ")
        assert.includeMembers(policy, ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"])
        assert.strictEqual(response.headers()["cache-control"], "no-store")
        // Another place, which would answer anybody.
        let asked = 0
        const other = yield* Effect.acquireRelease(
          Effect.callback<Server>((resume) => {
            const server = createServer((_, response) => {
              asked++
              response.setHeader("access-control-allow-origin", "*")
              response.end()
            }).listen(0, "127.0.0.1", () => resume(Effect.succeed(server)))
          }),
          (server) => Effect.sync(() => server.close())
        )
        const { port } = other.address() as AddressInfo
        const answer = yield* step(() =>
          page.evaluate(`fetch("http://127.0.0.1:${port}").then(() => "answered", () => "refused")`)
        )
        assert.deepStrictEqual([answer, asked], ["refused", 0])
      }).pipe(Effect.scoped, Effect.provide(serve({}))), timeout)

    it.effect("is for who has the token, as long as the tab is there", () =>
      Effect.gen(function*() {
        yield* slow("gpt-4")
        const url = yield* dashboard
        const seen = yield* open(url)
        const { page } = seen
        const wrong = page.getByText("That token is not the right one.")
        yield* step(() => page.getByRole("heading", { name: "Which token?" }).waitFor())
        assert.strictEqual(yield* step(() => wrong.count()), 0)
        yield* signIn(page, "a long secres")
        yield* step(() => wrong.waitFor())
        assert.strictEqual(yield* step(() => page.getByText("gpt-4").count()), 0)
        yield* signIn(page)
        yield* step(() => page.getByRole("link", { name: "gpt-4" }).waitFor())
        yield* step(() => page.reload())
        yield* step(() => page.getByRole("link", { name: "gpt-4" }).waitFor())
        // It is nowhere but in this tab.
        const kept = yield* step(() => page.evaluate("JSON.stringify(localStorage) + document.cookie + location.href"))
        assert.notInclude(String(kept), "secret")
        // Actions are off.
        yield* step(() => page.getByRole("link", { name: "gpt-4" }).click())
        yield* step(() => page.getByRole("heading", { name: "gpt-4", level: 1 }).waitFor())
        assert.strictEqual(yield* step(() => page.getByRole("button", { name: "Pause" }).count()), 0)
        yield* step(() => page.getByRole("button", { name: "Sign out" }).click())
        yield* step(() => page.getByRole("heading", { name: "Which token?" }).waitFor())
        assert.strictEqual(yield* step(() => page.getByText("gpt-4").count()), 0)
        isClean(seen, yield* origin)
      }).pipe(Effect.scoped, Effect.provide(serve({ token: Redacted.make(token) }))), timeout)

    it.effect("comes back when its server does", () =>
      Effect.gen(function*() {
        const begin = (port: number, modelId: string) =>
          Effect.gen(function*() {
            const scope = yield* Scope.make()
            const context = yield* Layer.buildWithScope(serve({}, port), scope)
            const url = yield* Effect.provide(Effect.andThen(slow(modelId), origin), context).pipe(Scope.provide(scope))
            return { url, end: Scope.close(scope, Exit.void) }
          })
        const first = yield* begin(0, "before")
        const seen = yield* open(`${first.url}/llm-queue/dashboard`)
        const { page } = seen
        yield* step(() => page.getByRole("link", { name: "before" }).waitFor())
        yield* first.end
        yield* step(() => page.getByText("Trying again…").waitFor())
        const second = yield* begin(Number(new URL(first.url).port), "after")
        yield* step(() => page.getByRole("link", { name: "after" }).waitFor())
        yield* isLive(page)
        assert.strictEqual(yield* step(() => page.getByRole("link", { name: "before" }).count()), 0)
        yield* second.end
        isClean(seen, first.url)
      }).pipe(Effect.scoped), timeout)

    it.effect(
      "shows a thousand models and a hundred thousand requests, a page at a time",
      () =>
        Effect.gen(function*() {
          const manager = yield* QueueManager.QueueManager
          const models = Array.from({ length: 1000 }, (_, index) =>
            ModelConfig.makeUntyped<null, null>(`model ${String(index).padStart(4, "0")}`, {
              rateLimiters: [RateLimiter.rpm(1), RateLimiter.tpm(1000), RateLimiter.concurrent(1)],
              capacity: 200_000
            }))
          yield* manager.registerAllQueues(models, () =>
            Effect.never)
          for (let i = 0; i < 100_000; i++) {
            const model = models[i < 90_000 ? 500 : i % 1000]!
            yield* manager.submitRequest(
              QueueRequest.make(model, { params: null, waitForCompletion: false, tenant: `t${i % 10}` })
            )
          }
          const seen = yield* open(yield* dashboard)
          const { page } = seen
          yield* step(() =>
            page.getByText("1–50 of 1,000").waitFor()
          )
          const rows = page.locator("table.models tbody tr")
          assert.strictEqual(yield* step(() => rows.count()), 50)
          // The longest queue is first.
          assert.include(yield* step(() => rows.first().textContent()), "model 0500")
          yield* step(() => page.getByRole("button", { name: "Next" }).click())
          yield* step(() => page.getByText("51–100 of 1,000").waitFor())
          yield* step(() => page.getByRole("button", { name: "Model", exact: true }).click())
          yield* step(() => page.getByRole("button", { name: "Previous" }).click())
          assert.include(yield* step(() => rows.first().textContent()), "model 0000")
          yield* step(() => page.getByRole("searchbox").fill("99 el"))
          yield* step(() => page.getByText("model 0499").waitFor())
          assert.strictEqual(yield* step(() => rows.count()), 19)
          yield* step(() => page.getByRole("searchbox").fill("0500"))
          yield* step(() => page.getByRole("link", { name: "model 0500" }).first().click())
          yield* step(() => page.getByText("the first 100 of 90,010").waitFor())
          assert.strictEqual(yield* step(() => page.locator("table.requests tbody tr").count()), 100)
          isClean(seen, yield* origin)
        }).pipe(Effect.scoped, Effect.provide(serve({}))),
      timeout
    )

    for (
      const [colorScheme, viewport] of [
        ["light", { width: 1280, height: 900 }],
        ["dark", { width: 390, height: 844 }]
      ] as const
    ) {
      it.effect(`can be read by all, ${colorScheme}, ${viewport.width} pixels wide`, () =>
        Effect.gen(function*() {
          const { fail, submit } = yield* slow("gpt-4", {
            deadLetters: { count: 10 },
            provider: ProviderProfile.openai
          })
          yield* slow(`a model with a very long name ${"x".repeat(100)}`)
          yield* fail("broken")
          for (let i = 0; i < 5; i++) yield* submit(`request ${i}`, { labels: { task: "summary" } })
          const url = yield* dashboard
          const seen = yield* open(url, { colorScheme, viewport, bypassCSP: true })
          const { page } = seen
          const check = (what: string) =>
            Effect.gen(function*() {
              yield* step(() => page.evaluate(axe.source))
              const violations = yield* step(() =>
                page.evaluate(`axe.run().then(({ violations }) =>
                    violations.map(({ id, nodes }) => id + ": " + nodes.map(({ html }) => html).join(" ")))`)
              )
              assert.deepStrictEqual(violations, [], what)
              const overflow = yield* step(() =>
                page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
              )
              assert.strictEqual(overflow, 0, `${what} is too wide`)
            })
          yield* step(() => page.getByRole("heading", { name: "Which token?" }).waitFor())
          yield* check("the question for the token")
          yield* signIn(page)
          yield* step(() => page.getByRole("link", { name: "gpt-4" }).first().waitFor())
          yield* check("the overview")
          // By keyboard alone.
          yield* step(() => page.getByRole("button", { name: "Model", exact: true }).focus())
          yield* step(() => page.keyboard.press("Enter"))
          const sorted = page.locator("th[aria-sort=ascending]", { hasText: "Model" })
          yield* step(() => sorted.waitFor({ state: "attached" }))
          yield* step(() => page.getByRole("link", { name: "gpt-4" }).first().focus())
          yield* step(() => page.keyboard.press("Enter"))
          yield* step(() => page.getByRole("button", { name: "Submit again: broken" }).waitFor())
          assert.strictEqual(yield* step(() => page.evaluate("document.activeElement.id")), "content")
          yield* step(() => page.locator("table.requests tbody tr").nth(4).waitFor())
          yield* check("a model")
          yield* step(() => page.getByRole("button", { name: "Change rpm per minute" }).focus())
          yield* step(() => page.keyboard.press("Enter"))
          yield* step(() => page.getByRole("dialog").waitFor())
          yield* check("a dialog")
          yield* step(() => page.keyboard.press("Escape"))
          yield* step(() => page.getByRole("dialog").waitFor({ state: "detached" }))
          isClean(seen, yield* origin)
        }).pipe(Effect.scoped, Effect.provide(serve({ token: Redacted.make(token), actions: true }))), timeout)
    }
  })
})
