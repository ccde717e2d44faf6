/** Which format a path has, and the dialect of each provider by its name. */
import type { DialectName } from "../ProviderSimulator.ts"
import * as anthropic from "./anthropic.ts"
import * as azure from "./azure.ts"
import * as bedrock from "./bedrock.ts"
import * as cerebras from "./cerebras.ts"
import * as cohere from "./cohere.ts"
import * as deepseek from "./deepseek.ts"
import * as embeddings from "./embeddings.ts"
import * as gemini from "./gemini.ts"
import * as groq from "./groq.ts"
import * as mistral from "./mistral.ts"
import * as openai from "./openai.ts"
import * as openrouter from "./openrouter.ts"
import * as responses from "./responses.ts"
import * as together from "./together.ts"
import type { Dialect, Format } from "./wire.ts"

export const byName: Readonly<Record<DialectName, Dialect>> = {
  openai: openai.dialect,
  azure: azure.dialect,
  anthropic: anthropic.dialect,
  gemini: gemini.dialect,
  groq: groq.dialect,
  mistral: mistral.dialect,
  bedrock: bedrock.dialect,
  deepseek: deepseek.dialect,
  openrouter: openrouter.dialect,
  together: together.dialect,
  cohere: cohere.dialect,
  cerebras: cerebras.dialect
}

export interface Route {
  readonly format: Format
  /** What a model speaks that does not say otherwise, and what is spoken when there is no such model. */
  readonly dialect: DialectName
  readonly model: string | undefined
}

const named: ReadonlyArray<readonly [path: RegExp, format: Format, dialect: DialectName]> = [
  [/^\/openai\/deployments\/([^/]+)\/chat\/completions$/, openai.chat, "azure"],
  [/^\/openai\/deployments\/([^/]+)\/embeddings$/, embeddings.format, "azure"],
  [/^\/v1(?:beta)?\/models\/([^/:]+):generateContent$/, gemini.whole, "gemini"],
  [/^\/v1(?:beta)?\/models\/([^/:]+):streamGenerateContent$/, gemini.stream, "gemini"],
  [/^\/model\/([^/]+)\/converse$/, bedrock.whole, "bedrock"],
  [/^\/model\/([^/]+)\/converse-stream$/, bedrock.stream, "bedrock"]
]

const ends: ReadonlyArray<readonly [end: string, format: Format, dialect: DialectName]> = [
  ["/chat/completions", openai.chat, "openai"],
  ["/responses", responses.format, "openai"],
  ["/embeddings", embeddings.format, "openai"],
  ["/messages", anthropic.format, "anthropic"]
]

const bases: ReadonlySet<string> = new Set(["", "/v1", "/openai/v1", "/api/v1", "/compatibility/v1"])

export const route = (path: string): Route | undefined => {
  for (const [end, format, dialect] of ends) {
    if (path.endsWith(end) && bases.has(path.slice(0, -end.length))) return { format, dialect, model: undefined }
  }
  for (const [pattern, format, dialect] of named) {
    const model = pattern.exec(path)?.[1]
    if (model !== undefined) return { format, dialect, model: decodeURIComponent(model) }
  }
  return undefined
}
