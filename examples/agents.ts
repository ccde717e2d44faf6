/**
 * An agent whose tool starts further agents, in parallel and in turn, on one queue: they share its limits and its budget,
 * inherit its tenant and priority, and run on one permit, since an agent that waits for another lends it its own.
 */
import { NodeRuntime } from "@effect/platform-node"
import { Console, Effect, Fiber, Layer, Option, Schema, Stream } from "effect"
import { QueueManager, RateLimiter } from "effect-llm-queue"
import * as QueuedLanguageModel from "effect-llm-queue/LanguageModel"
import { AiError, LanguageModel, Response, Tool, Toolkit } from "effect/ai"

// ---------------------------------------------------------------------------------------------------------------
// The agents. An agent answers, or has its task researched by others first.
// ---------------------------------------------------------------------------------------------------------------

const Research = Tool.make("Research", {
  description: "Has another agent look into a question.",
  parameters: Schema.Struct({ question: Schema.String }),
  success: Schema.String,
  failure: AiError.AiError
})
const Agents = Toolkit.make(Research)

const agent = (task: string): Effect.Effect<string, AiError.AiError, LanguageModel.LanguageModel> =>
  Effect.gen(function*() {
    const model = yield* LanguageModel.LanguageModel
    const response = yield* LanguageModel.generateText({ prompt: task, toolkit: Agents }).pipe(
      Effect.provide(Agents.toLayer({
        Research: ({ question }) => Effect.provideService(agent(question), LanguageModel.LanguageModel, model)
      })),
      Effect.catchIf((error) => !AiError.isAiError(error), Effect.die)
    )
    const found = response.toolResults.flatMap(({ result }) => typeof result === "string" ? [result] : [])
    return [response.text, ...found].filter((part) => part !== "").join(" + ")
  })

// ---------------------------------------------------------------------------------------------------------------
// A model that delegates twice, in place of one that thinks
// ---------------------------------------------------------------------------------------------------------------

const usage = new Response.Usage({
  inputTokens: { total: 1000, uncached: 1000, cacheRead: undefined, cacheWrite: undefined },
  outputTokens: { total: 200, text: 200, reasoning: undefined }
})

const Fake = Layer.effect(
  LanguageModel.LanguageModel,
  LanguageModel.make({
    generateText: ({ prompt }) =>
      Effect.delay(
        Effect.sync((): Array<Response.PartEncoded> => {
          const [message] = prompt.content
          const task = message?.role === "user" && message.content[0]?.type === "text" ? message.content[0].text : ""
          const parts = task.split(" of ").length <= 2
            ? ["half", "rest"].map((part, index) => ({
              type: "tool-call" as const,
              id: `${index}`,
              name: "Research",
              params: { question: `${part} of ${task}` }
            }))
            : [{ type: "text" as const, text: task }]
          return [...parts, { type: "finish", reason: "stop", usage, response: undefined }]
        }),
        "5 millis"
      ),
    streamText: () => Stream.empty
  })
)

// Dollars per million tokens.
const price = { input: 2.5, cachedInput: 1.25, output: 10 }

const Queued = QueuedLanguageModel.layer({
  modelId: "thinker",
  rateLimiters: [
    RateLimiter.rpm(600),
    RateLimiter.concurrent(1),
    RateLimiter.budget(0.08, { price, timePeriod: "1 day" })
  ],
  request: () => ({ estimatedInputTokens: 1000, estimatedOutputTokens: 200 })
}).pipe(Layer.provide(Fake), Layer.provideMerge(QueueManager.layer))

const program = Effect.gen(function*() {
  const manager = yield* QueueManager.QueueManager
  const events = yield* Effect.forkChild(
    manager.events.pipe(
      Stream.filter(({ status }) => status === "completed"),
      Stream.take(7),
      Stream.runCollect
    ),
    { startImmediately: true }
  )

  // Seven calls, four of them at the same level, on one permit.
  const report = yield* agent("the task").pipe(
    QueueManager.withTenant("acme"),
    QueueManager.withPriority("high"),
    Effect.timeout("10 seconds")
  )
  yield* Console.log(report)

  const { completed, rateLimiters, running } = yield* manager.getQueueInfo("thinker")
  yield* Console.log(`${completed} calls, ${running} running, $${rateLimiters[2]!.used.toFixed(4)} of $0.08 spent`)
  const tenants = new Set((yield* Fiber.join(events)).map(({ tenant }) => tenant))
  yield* Console.log(`all of them for ${Array.from(tenants).join(", ")}`)

  // What would go beyond the budget is not sent: of the third agent's calls only three are.
  yield* agent("another task")
  yield* agent("a third task").pipe(
    Effect.catch((error) => {
      // The queue's own error, of which the AiError tells as much as any program of effect/ai understands.
      const original = Option.getOrUndefined(QueuedLanguageModel.queueError(error))
      return Console.log(`${error.reason._tag}, for ${original?._tag}: ${original?.message}`)
    })
  )
})

program.pipe(Effect.provide(Queued), NodeRuntime.runMain)
