/**
 * Whatever way a call ends in, its permit comes back and it is settled once; and it ends as it does without a queue, if the
 * queue is not what ends it. Random calls, replayed by `SEED`.
 */
import { assert, describe, it } from "@effect/vitest"
import { Cause, Duration, Effect, Exit, Fiber, Layer, Option, Schema, Stream } from "effect"
import { QueueManager, RateLimiter } from "effect-llm-queue"
import * as Queued from "effect-llm-queue/LanguageModel"
import { AiError, LanguageModel, type Prompt, Response, Tool, Toolkit } from "effect/ai"
import { TestClock } from "effect/testing"
import { random } from "../laws/schedule.ts"

const given = process.env["SEED"]
const first = given === undefined ? 1 : Number(given)
const runs = Number(process.env["RUNS"] ?? (given === undefined ? 150 : 1))

class ToolFailure extends Schema.TaggedError<ToolFailure>()("ToolFailure", {}) {}

const Act = Tool.make("Act", {
  parameters: Schema.Struct({ id: Schema.String }),
  success: Schema.String,
  failure: ToolFailure
})
const Tools = Toolkit.make(Act)

const endings = ["answers", "refuses", "breaks", "dies", "interrupts", "is silent"] as const
const toolEndings = ["answers", "fails", "dies", "is silent"] as const

/** What happens in a call. Times are in milliseconds. */
interface Script {
  readonly id: string
  readonly method: "generateText" | "generateObject" | "streamText"
  readonly at: number
  readonly takes: number
  readonly ending: (typeof endings)[number]
  readonly tool: (typeof toolEndings)[number] | undefined
  readonly usage: { readonly input: number; readonly output: number }
  /** Until its caller leaves. */
  readonly patience: number
  /** How much of a stream is read. */
  readonly elements: number
}

const estimate = { estimatedInputTokens: 30, estimatedOutputTokens: 20 } as const
const estimated = 50

const draw = (seed: number): ReadonlyArray<Script> => {
  const { between, chance, pick } = random(seed)
  return Array.from({ length: between(3, 9) }, (_, index) => ({
    id: `call-${index}`,
    method: pick(["generateText", "generateObject", "streamText"] as const),
    at: between(0, 60),
    takes: chance(0.3) ? 0 : between(1, 40),
    ending: chance(0.6) ? "answers" : pick(endings),
    tool: chance(0.5) ? pick(toolEndings) : undefined,
    usage: { input: between(1, 60), output: between(1, 60) },
    patience: chance(0.4) ? between(0, 120) : 10_000,
    elements: chance(0.3) ? between(1, 6) : 1000
  }))
}

const error = (reason: AiError.AiErrorReason) => AiError.make({ module: "Fake", method: "call", reason })

const contentOf = ({ id, method, tool, usage }: Script): ReadonlyArray<Response.PartEncoded> => [
  { type: "text", text: method === "generateObject" ? "{\"a\":1}" : "some words" },
  ...(tool === undefined ? [] : [{ type: "tool-call", id, name: "Act", params: { id } } as const]),
  {
    type: "finish",
    reason: tool === undefined ? "stop" : "tool-calls",
    usage: new Response.Usage({
      inputTokens: { total: usage.input, uncached: undefined, cacheRead: undefined, cacheWrite: undefined },
      outputTokens: { total: usage.output, text: undefined, reasoning: undefined }
    }),
    response: undefined
  }
]

/** Ends as a script says, after some time. */
const end = <A>(script: Script, value: A): Effect.Effect<A, AiError.AiError> =>
  Effect.andThen(
    Effect.sleep(Duration.millis(script.takes)),
    Effect.suspend(() => {
      switch (script.ending) {
        case "answers":
          return Effect.succeed(value)
        case "refuses":
          return Effect.fail(error(new AiError.RateLimitError({})))
        case "breaks":
          return Effect.fail(error(new AiError.InvalidOutputError({ description: "broken" })))
        case "dies":
          return Effect.die("broken")
        case "interrupts":
          return Effect.interrupt
        case "is silent":
          return Effect.never
      }
    })
  )

/** The world of a run: a provider and tools that do what the calls' scripts say, and count what was asked of them. */
const world = (scripts: ReadonlyArray<Script>) => {
  const byId = new Map(scripts.map((script) => [script.id, script] as const))
  const asked = new Set<string>()
  const scriptOf = (prompt: Prompt.Prompt): Script => {
    const { content } = prompt.content[0]!
    const part = typeof content === "string" ? undefined : content[0]
    assert(part?.type === "text")
    asked.add(part.text)
    return byId.get(part.text)!
  }
  const streamed = (parts: ReadonlyArray<Response.PartEncoded>): ReadonlyArray<Response.StreamPartEncoded> =>
    parts.flatMap((part): ReadonlyArray<Response.StreamPartEncoded> =>
      part.type === "text"
        ? [{ type: "text-start", id: "0" }, { type: "text-delta", id: "0", delta: part.text }, {
          type: "text-end",
          id: "0"
        }]
        : part.type === "tool-call" || part.type === "finish"
        ? [part]
        : []
    )
  const model = Layer.effect(
    LanguageModel.LanguageModel,
    LanguageModel.make({
      generateText: ({ prompt }) =>
        Effect.suspend(() => {
          const script = scriptOf(prompt)
          return end(script, [...contentOf(script)])
        }),
      streamText: ({ prompt }) =>
        Stream.suspend(() => {
          const script = scriptOf(prompt)
          const parts = streamed(contentOf(script))
          // In the middle of it.
          return Stream.concat(
            Stream.fromIterable(parts.slice(0, 1)),
            Stream.flatMap(Stream.fromEffect(end(script, parts.slice(1))), Stream.fromIterable)
          )
        })
    })
  )
  const tools = Tools.toLayer({
    Act: ({ id }) =>
      Effect.suspend(() => {
        switch (byId.get(id)!.tool!) {
          case "answers":
            return Effect.succeed("done")
          case "fails":
            return Effect.fail(new ToolFailure())
          case "dies":
            return Effect.die("a broken tool")
          case "is silent":
            return Effect.never
        }
      })
  })
  return { asked, layer: Layer.merge(model, tools) }
}

const call = ({ elements, id, method, tool }: Script): Effect.Effect<
  unknown,
  unknown,
  LanguageModel.LanguageModel | Tool.HandlersFor<typeof Tools.tools>
> => {
  const options = { prompt: id }
  switch (method) {
    case "generateText":
      return tool === undefined
        ? Effect.map(LanguageModel.generateText(options), ({ content }) => content.map(({ type }) => type))
        : Effect.map(
          LanguageModel.generateText({ ...options, toolkit: Tools }),
          ({ content }) => content.map(({ type }) => type)
        )
    case "generateObject":
      return Effect.map(
        LanguageModel.generateObject({ ...options, toolkit: Tools, schema: Schema.Struct({ a: Schema.Finite }) }),
        ({ value }) => value
      )
    case "streamText": {
      const parts: Stream.Stream<
        Response.AnyPart,
        unknown,
        LanguageModel.LanguageModel | Tool.HandlersFor<typeof Tools.tools>
      > = tool === undefined
        ? LanguageModel.streamText(options)
        : LanguageModel.streamText({ ...options, toolkit: Tools })
      return Effect.map(Stream.runCollect(Stream.take(parts, elements)), (all) => all.map(({ type }) => type))
    }
  }
}

/** How each of the calls has ended, or that its caller has left. */
const play = (scripts: ReadonlyArray<Script>) =>
  Effect.gen(function*() {
    const fibers = yield* Effect.forEach(scripts, (script) =>
      Effect.forkChild(
        Effect.delay(Effect.timeoutOption(Effect.exit(call(script)), script.patience), script.at)
      ))
    yield* TestClock.adjust("1 minute")
    return yield* Effect.forEach(fibers, Fiber.join)
  })

const shown = (exit: Option.Option<Exit.Exit<unknown, unknown>>): unknown =>
  Option.match(exit, {
    onNone: () => "left",
    onSome: Exit.match({
      onSuccess: (value) => value,
      onFailure: (cause) => cause.reasons.map((reason) => [reason._tag, String(Cause.squash(cause))])
    })
  })

describe("every way out of a call", () => {
  it.effect("gives the permit back and settles once, and is as without a queue", () =>
    Effect.gen(function*() {
      let ended = 0
      for (let seed = first; seed < first + runs; seed++) {
        const scripts = draw(seed)
        const plain = yield* Effect.flatMap(
          Effect.sync(() => world(scripts)),
          ({ layer }) => Effect.provide(play(scripts), layer)
        )
        const { asked, layer } = world(scripts)
        const concurrent = random(seed).between(1, 4)
        yield* Effect.gen(function*() {
          const exits = yield* play(scripts)
          yield* TestClock.adjust(0)
          const info = yield* QueueManager.QueueManager.use((manager) => manager.getQueueInfo("fake"))
          const where = `SEED=${seed}`
          assert.deepStrictEqual([info.running, info.depth], [0, 0], where)
          const [tokens, permits] = info.rateLimiters
          assert.strictEqual(permits!.used, 0, where)
          assert.strictEqual(info.completed + info.failed + info.cancelled, scripts.length, where)
          // What has certainly been used, and what may have been.
          let least = 0
          let most = 0
          for (const [index, script] of scripts.entries()) {
            const exit = exits[index]!
            if (!asked.has(script.id)) continue
            const used = script.usage.input + script.usage.output
            const isWhole = Option.isSome(exit) && Exit.isSuccess(exit.value) && script.elements === 1000
            least += isWhole ? used : Math.min(estimated, used)
            most += isWhole ? used : Math.max(estimated, used)
            // Others may keep it waiting, and one that waits can be left that would else have ended.
            if (Option.isNone(exit) || Option.isNone(plain[index]!)) continue
            ended++
            assert.deepStrictEqual(shown(exit), shown(plain[index]!), `${where}: ${script.id}`)
          }
          assert.isAtLeast(tokens!.used, least, where)
          assert.isAtMost(tokens!.used, most, where)
        }).pipe(Effect.provide(
          Queued.layer({
            modelId: "fake",
            rateLimiters: [
              RateLimiter.tpm(100_000, { timePeriod: "10 hours" }),
              RateLimiter.concurrent(concurrent)
            ],
            request: () => estimate
          }).pipe(Layer.provideMerge(layer), Layer.provideMerge(QueueManager.layer))
        ))
      }
      if (runs > 10) assert.isAbove(ended, runs)
    }), 120_000)
})
