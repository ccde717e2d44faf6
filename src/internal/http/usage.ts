/**
 * What a response says that it used, in the formats of OpenAI (chat, responses, embeddings) and those who follow it, of
 * Anthropic and of Gemini: as one body, or spread over the events of a stream.
 */
import type * as ModelConfig from "../../ModelConfig.ts"

type Fields = Readonly<Record<string, unknown>>

const isFields = (value: unknown): value is Fields =>
  typeof value === "object" && value !== null && !Array.isArray(value)

const fieldsOf = (value: unknown, ...path: ReadonlyArray<string>): Fields | undefined => {
  let current: unknown = value
  for (const key of path) current = isFields(current) ? current[key] : undefined
  return isFields(current) ? current : undefined
}

const count = (fields: Fields | undefined, ...names: ReadonlyArray<string>): number | undefined => {
  for (const name of names) {
    const value = fields?.[name]
    if (typeof value === "number" && value >= 0 && Number.isFinite(value)) return value
  }
  return undefined
}

/** What is known so far. */
interface Known {
  readonly input?: number | undefined
  readonly cached?: number | undefined
  readonly output?: number | undefined
}

const openai = (usage: Fields): Known => ({
  input: count(usage, "prompt_tokens", "input_tokens", "total_tokens"),
  cached: count(fieldsOf(usage, "prompt_tokens_details"), "cached_tokens")
    ?? count(fieldsOf(usage, "input_tokens_details"), "cached_tokens")
    ?? count(usage, "prompt_cache_hit_tokens"),
  output: count(usage, "completion_tokens", "output_tokens")
})

/** Its input is what was neither read from the cache nor written to it. */
const anthropic = (usage: Fields): Known => {
  const read = count(usage, "cache_read_input_tokens")
  const written = count(usage, "cache_creation_input_tokens")
  const fresh = count(usage, "input_tokens")
  return {
    input: fresh === undefined ? undefined : fresh + (read ?? 0) + (written ?? 0),
    cached: read,
    output: count(usage, "output_tokens")
  }
}

const gemini = (usage: Fields): Known => {
  const visible = count(usage, "candidatesTokenCount")
  const thought = count(usage, "thoughtsTokenCount")
  return {
    input: count(usage, "promptTokenCount"),
    cached: count(usage, "cachedContentTokenCount"),
    output: visible === undefined && thought === undefined ? undefined : (visible ?? 0) + (thought ?? 0)
  }
}

const find = (body: unknown): Known => {
  const ofGemini = fieldsOf(body, "usageMetadata")
  if (ofGemini !== undefined) return gemini(ofGemini)
  const usage = fieldsOf(body, "usage") ?? fieldsOf(body, "message", "usage") ?? fieldsOf(body, "response", "usage")
    ?? fieldsOf(body, "x_groq", "usage")
  if (usage === undefined) return {}
  return "cache_read_input_tokens" in usage || "cache_creation_input_tokens" in usage ? anthropic(usage) : openai(usage)
}

/** Follows what a response says, event by event: of each figure the last one counts. */
export class Reader {
  private known: Known = {}

  read(text: string): void {
    // Most events say nothing about it.
    if (!text.includes("usage")) return
    let body: unknown
    try {
      body = JSON.parse(text)
    } catch {
      return
    }
    // Some answer with a list of what others stream.
    for (const each of Array.isArray(body) ? body : [body]) {
      const { cached, input, output } = find(each)
      if (input === undefined && output === undefined) continue
      this.known = {
        // Some leave out later what came from the cache.
        input: Math.max(input ?? 0, this.known.input ?? 0),
        cached: cached ?? this.known.cached,
        output: output ?? this.known.output
      }
    }
  }

  get usage(): ModelConfig.Usage | undefined {
    const { cached, input, output } = this.known
    if (input === undefined && output === undefined) return undefined
    const usage = { inputTokens: input ?? 0, outputTokens: output ?? 0 }
    return cached === undefined ? usage : { ...usage, cachedInputTokens: cached }
  }
}
