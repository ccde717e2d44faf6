import { GptEncoding } from "gpt-tokenizer/GptEncoding"
import { boundedCount } from "./boundedCount.ts"

/** Text that looks like a special token is text: that is what providers make of it. */
const asText = { disallowedSpecial: new Set<string>() }

/** A counter that builds its encoding when it is first asked. */
export const counter = (
  name: "o200k_base" | "cl100k_base",
  ranks: () => Array<string | Array<number>>
): (text: string) => number => {
  let encoding: GptEncoding | undefined
  return (text) => {
    const known = encoding ??= GptEncoding.getEncodingApi(name, ranks)
    const tokens = boundedCount(text, (piece) => known.countTokens(piece, asText))
    // What it remembers are slices, each of which keeps its whole text alive.
    known.clearMergeCache()
    return tokens
  }
}
