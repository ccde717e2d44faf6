/** The simulated provider, as the harness asks it: over its wire format, with sizes instead of words. */
import { Effect, type Scope, Stream } from "effect"
import { ProviderSimulator } from "effect-llm-queue/testing"

export type Limit = ProviderSimulator.Limit

export interface Options extends
  Pick<
    ProviderSimulator.Model,
    | "dialect"
    | "limits"
    | "charge"
    | "refund"
    | "outputWeight"
    | "faults"
    | "requestsHeader"
    | "dropHeaders"
    | "accel"
    | "price"
  >
{
  /** Milliseconds to the first byte, and for each token after it. */
  readonly firstByte: number
  readonly perToken: number
}

export interface Ask {
  readonly requestId: string
  readonly input: number
  readonly output: number
  readonly maxOutput: number
  readonly stream: boolean
}

export interface Answer {
  readonly body: unknown
  readonly usage: { readonly inputTokens: number; readonly outputTokens: number } | undefined
}

/** The headers of an answer; `answer` ends when all of it is there. */
export interface Head {
  readonly status: number
  readonly headers: Readonly<Record<string, string>>
  readonly answer: Effect.Effect<Answer, ProviderSimulator.Disconnected>
}

export interface Books {
  readonly arrivals: ReadonlyArray<ProviderSimulator.Arrival>
  readonly model: ProviderSimulator.ModelReport
}

export interface Server {
  readonly ask: (ask: Ask) => Effect.Effect<Head, ProviderSimulator.Disconnected, Scope.Scope>
  readonly simulator: ProviderSimulator.ProviderSimulator["Service"]
  readonly books: Effect.Effect<Books>
}

export const model = "model"

/** A message of so many tokens. */
const prompts = new Map<number, string>()
const prompt = (tokens: number): string => {
  let text = prompts.get(tokens)
  if (text === undefined) {
    text = "word".repeat(Math.max(1, tokens - 3))
    prompts.set(tokens, text)
  }
  return text
}

const parsed = (text: string): unknown => {
  try {
    return JSON.parse(text)
  } catch {
    return text
  }
}

const usageOf = (body: unknown): Answer["usage"] => {
  const { usage } = body as { readonly usage?: { readonly prompt_tokens: number; readonly completion_tokens: number } }
  return usage === undefined || usage === null
    ? undefined
    : { inputTokens: usage.prompt_tokens, outputTokens: usage.completion_tokens }
}

/** The events of a stream: the last usage, or the error. */
const answerOf = (text: string): Answer => {
  const events = text.split("\n\n").filter((event) => event.startsWith("data: {")).map((event) =>
    parsed(event.slice(6))
  )
  const failure = events.find((event) => (event as { readonly error?: unknown }).error !== undefined)
  return failure === undefined
    ? { body: text, usage: events.map(usageOf).findLast((usage) => usage !== undefined) }
    : { body: failure, usage: undefined }
}

export const make = ({ firstByte, perToken, ...options }: Options, seed: number): Effect.Effect<Server> =>
  Effect.map(
    ProviderSimulator.make({
      models: {
        [model]: { ...options, tokensPerEvent: 1000, serviceTime: { ttft: firstByte, perOutputToken: perToken } }
      },
      seed
    }),
    (simulator) => ({
      simulator,
      ask: Effect.fnUntraced(function*({ input, maxOutput, output, requestId, stream }) {
        const response = yield* simulator.handle({
          method: "POST",
          path: "/v1/chat/completions",
          headers: { "x-sim-request-id": requestId, "x-sim-output-tokens": String(output) },
          body: JSON.stringify({
            model,
            messages: [{ role: "user", content: prompt(input) }],
            max_tokens: maxOutput,
            ...(stream ? { stream, stream_options: { include_usage: true } } : {})
          })
        })
        const { body, headers, status } = response
        if (typeof body !== "string") {
          return { status, headers, answer: Effect.map(Stream.mkString(body), answerOf) }
        }
        const whole = parsed(body)
        return {
          status,
          headers,
          answer: Effect.succeed({ body: whole, usage: status === 200 ? usageOf(whole) : undefined })
        }
      }),
      books: Effect.gen(function*() {
        const { models } = yield* simulator.report()
        return { arrivals: yield* simulator.arrivals, model: models[0]! }
      })
    })
  )
