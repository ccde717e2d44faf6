import { assert, describe, it } from "@effect/vitest"
import { Clock, ConfigProvider, Deferred, Effect, Fiber, Layer, Queue, Stdio, Terminal } from "effect"
import { ModelConfig, QueueManager, RateLimiter } from "effect-llm-queue"
import * as TerminalView from "effect-llm-queue/TerminalView"
import { HttpClient, HttpClientError, HttpClientResponse } from "effect/http"
import { TestClock } from "effect/testing"
import * as view from "../cli/view.ts"
import * as table from "../src/internal/table.ts"

const row = (modelId: string, more: Partial<table.Row> = {}): table.Row => ({
  modelId,
  state: "open",
  depth: 0,
  running: 0,
  completed: 0,
  failed: 0,
  perSecond: 0,
  limits: [],
  ...more
})

const plain = { columns: 200, rows: 50, colors: false }

describe("a table of queues", () => {
  it("has a line for each, with its numbers and limits", () => {
    const lines = table.render([
      row("gpt-4", {
        depth: 12,
        running: 3,
        completed: 45_678,
        failed: 1,
        perSecond: 4.25,
        limits: [{ type: "rpm", used: 250, limit: 500 }, { type: "tpm", used: 0, limit: 60_000 }]
      }),
      row("a", { state: "paused" })
    ], plain)
    assert.deepStrictEqual(lines, [
      "MODEL  STATE      WAITING  RUNNING     DONE    /S   FAILED  LIMITS",
      "gpt-4  open            12        3    45.7K   4.3        1  rpm ████░░░░ 250/500  tpm ░░░░░░░░ 0/60K",
      "a      paused           0        0        0     0        0"
    ])
  })

  it("is as wide and as high as it may be, with the busiest first when there are too many", () => {
    const many = Array.from({ length: 100 }, (_, index) => row(`model ${index}`, { depth: index }))
    const lines = table.render(many, { columns: 30, rows: 5, colors: false })
    assert.deepStrictEqual(lines, [
      "MODEL     STATE      WAITING",
      "model 99  open            99",
      "model 98  open            98",
      "model 97  open            97",
      "… and 97 more"
    ])
    assert.isTrue(table.render(many, { ...plain, columns: 3 }).every((line) => line.length <= 3))
    assert.strictEqual(table.render([], plain).length, 1)
  })

  it("has colors, which take no room", () => {
    const [, line] = table.render([row("x".repeat(100))], { columns: 40, rows: 9, colors: true })
    // oxlint-disable-next-line no-control-regex
    const seen = line!.replaceAll(/\u001b\[\d+m/g, "")
    assert.strictEqual(seen, `${"x".repeat(31)}…  open  `)
    assert.include(line, "\u001b[32mopen")
  })

  it("shows nothing of ids that a terminal would obey", () => {
    const [, line] = table.render([row("\u001b[2J\u0007evil\r\n\u202e\u2028ids")], plain)
    assert.strictEqual(line!.slice(0, 16), "�[2J�evil����ids")
    // oxlint-disable-next-line no-control-regex
    assert.notMatch(line!, /[\u0000-\u001f]/)
  })

  it("knows what is wide, and what takes no room", () => {
    const queues = [row("漢字のモデル名".repeat(9), { depth: 1 }), row("é".normalize("NFD").repeat(5)), row("🚀 x")]
    const lines = table.render(queues, { ...plain, columns: 79 })
    assert.strictEqual(lines[1]!.slice(0, 19), "漢字のモデル名漢字のモデル名漢…  o")
    // All of them have the numbers in the same columns: a wide one has fewer characters, a mark more.
    const at = lines.map((line) => line.search(/open|STATE/))
    assert.deepStrictEqual(at, [33, 33 - 15, 33 + 5, 33])
    for (const columns of [20, 21, 30, 31]) {
      const [, line] = table.render(queues, { ...plain, columns })
      const taken = Array.from(line!).reduce((sum, character) => sum + (/[\u3000-\u9fff]/.test(character) ? 2 : 1), 0)
      assert.isAtMost(taken, columns)
    }
  })

  it("is drawn over the one before", () => {
    const frames = new table.Frames()
    assert.strictEqual(frames.next(["a", "b"]), "\u001b[?25l\ra\u001b[K\nb\u001b[K\n\u001b[J")
    assert.strictEqual(frames.next(["c"]), "\u001b[?25l\u001b[2A\rc\u001b[K\n\u001b[J")
    assert.strictEqual(frames.next([]), "\u001b[?25l\u001b[1A\r\u001b[J")
  })

  it("has the throughput of the last three seconds", () => {
    const rates = new table.Rates()
    const read = (at: number, completed: number) => rates.read(at, [row("a", { completed })])[0]!.perSecond
    assert.deepStrictEqual(
      [read(0, 10), read(0, 12), read(1000, 20), read(2000, 20), read(3000, 70), read(4000, 70), read(60_000, 90)],
      [0, 0, 8, 4, 58 / 3, 50 / 3, 0]
    )
  })
})

/** A terminal that keeps what is printed. */
const terminal = (isTerminal: boolean) => {
  const printed: Array<string> = []
  return {
    printed,
    layer: Layer.merge(
      Layer.succeed(
        Terminal.Terminal,
        Terminal.make({
          columns: Effect.succeed(81),
          rows: Effect.succeed(10),
          size: Queue.unbounded(),
          readInput: Queue.unbounded(),
          readLine: Effect.never,
          display: (text) => Effect.sync(() => void printed.push(text))
        })
      ),
      Stdio.layerTest({ stdoutIsTerminal: Effect.succeed(isTerminal) })
    )
  }
}

const Manager = QueueManager.layerWith({ shutdown: { policy: "interrupt", deadline: 0 } })

const work = Effect.gen(function*() {
  const manager = yield* QueueManager.QueueManager
  const Model = ModelConfig.makeUntyped<number, string>("gpt-4", { rateLimiters: [RateLimiter.concurrent(2)] })
  const go = yield* Deferred.make<void>()
  yield* manager.registerQueue(Model, () => Effect.as(Deferred.await(go), "ok"))
  for (let i = 0; i < 3; i++) yield* Effect.forkChild(manager.submit(Model, i), { startImmediately: true })
  return go
})

describe("TerminalView", () => {
  it.effect("draws as long as it is there, and once more at the end", () => {
    const { layer, printed } = terminal(true)
    return Effect.gen(function*() {
      const go = yield* work
      const view = yield* Effect.forkChild(TerminalView.show({ interval: "1 second" }), { startImmediately: true })
      yield* TestClock.adjust("2 seconds")
      assert.strictEqual(printed.length, 3)
      assert.include(printed[2], "\u001b[1mgpt-4\u001b[0m")
      assert.match(printed[2]!, / 1 +2 +0 /)
      yield* Deferred.succeed(go, undefined)
      yield* TestClock.adjust("100 millis")
      yield* Fiber.interrupt(view)
      assert.match(printed[3]!, / 0 +0 +3 /)
      assert.strictEqual(printed.at(-1), "\u001b[?25h")
    }).pipe(
      Effect.provide(Layer.merge(Manager, layer)),
      Effect.provideService(ConfigProvider.ConfigProvider, ConfigProvider.fromUnknown({}))
    )
  })

  it.effect("has no colors where none are wanted", () => {
    const { layer, printed } = terminal(true)
    return Effect.gen(function*() {
      const go = yield* work
      yield* TestClock.adjust("1 second")
      assert.strictEqual(printed.length, 2)
      assert.notInclude(printed.join(""), "\u001b[1m")
      yield* Deferred.succeed(go, undefined)
    }).pipe(
      Effect.provide(
        TerminalView.layer({ interval: "1 second" }).pipe(
          Layer.provideMerge(Manager),
          Layer.provideMerge(layer)
        )
      ),
      Effect.provideService(ConfigProvider.ConfigProvider, ConfigProvider.fromUnknown({ NO_COLOR: "1" }))
    )
  })

  it.effect("prints plain lines, or nothing, where there is no terminal", () => {
    const { layer, printed } = terminal(false)
    return Effect.gen(function*() {
      const go = yield* work
      const quiet = yield* Effect.forkChild(TerminalView.show(), { startImmediately: true })
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(printed, [])
      yield* Fiber.interrupt(quiet)
      const lines = yield* Effect.forkChild(TerminalView.show({ lines: "2 seconds" }), { startImmediately: true })
      yield* TestClock.adjust("3 seconds")
      assert.strictEqual(printed.length, 2)
      assert.match(printed[1]!, /^gpt-4  open +1 +2 +0 .*concurrent ████████ 2\/2\n$/)
      yield* Fiber.interrupt(lines)
      yield* Deferred.succeed(go, undefined)
    }).pipe(Effect.provide(Layer.merge(Manager, layer)))
  })
})

describe("the command", () => {
  const message = JSON.stringify({
    at: 0,
    complete: true,
    waits: null,
    queues: [],
    removed: [],
    failures: [],
    events: []
  })

  it.effect("looks again soon when the server is away, and every five seconds later on; anew once it has answered", () => {
    const { layer, printed } = terminal(true)
    const asked: Array<number> = []
    let isThere = false
    const client = HttpClient.make((request) =>
      Effect.gen(function*() {
        asked.push((yield* Clock.currentTimeMillis) / 1000)
        if (!isThere) {
          return yield* new HttpClientError.HttpClientError({
            reason: new HttpClientError.TransportError({ request, cause: "away" })
          })
        }
        const headers = { "content-type": "text/event-stream" }
        return HttpClientResponse.fromWeb(request, new Response(`data: ${message}\n\n`, { headers }))
      })
    )
    return Effect.gen(function*() {
      const fiber = yield* Effect.forkChild(view.show({ url: "http://localhost", token: undefined }))
      yield* TestClock.adjust("30 seconds")
      assert.deepStrictEqual(asked, [0, 0.5, 1.5, 3.5, 7.5, 12.5, 17.5, 22.5, 27.5])
      assert.include(printed.at(-1), "Trying again…")
      // It answers and hangs up, again and again.
      isThere = true
      asked.length = 0
      yield* TestClock.adjust("6 seconds")
      assert.deepStrictEqual(asked.slice(0, 5), [32.5, 33, 33.5, 34, 34.5])
      yield* Fiber.interrupt(fiber)
      assert.strictEqual(printed.at(-1), "\u001b[?25h")
    }).pipe(Effect.provide(layer), Effect.provideService(HttpClient.HttpClient, client))
  })
})
