/** The wire format of OpenAI's embeddings: short vectors of unit length, and no output tokens. */
import * as Base64 from "effect/encoding/Base64"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { fraction, hash } from "./generate.ts"
import { errorBody, withModel } from "./openai.ts"
import * as wire from "./wire.ts"

const Request = Schema.Struct({
  model: Schema.String,
  input: Schema.Union([Schema.String, Schema.NonEmptyArray(Schema.String)]),
  dimensions: Schema.optional(Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 4096 }))),
  encoding_format: Schema.optional(Schema.Literals(["float", "base64"]))
})

const decode = Schema.decodeUnknownResult(Request)

const separator = "\u0000"

/** What the answer needs to know of the request besides the prompt. */
interface EmbeddingPrompt extends wire.Prompt {
  readonly dimensions: number
  readonly isBase64: boolean
}

const toPrompt = ({ dimensions = 8, encoding_format, input, model }: typeof Request.Type): EmbeddingPrompt => {
  const inputs = typeof input === "string" ? [input] : input
  return {
    model,
    text: inputs.join(separator),
    messages: inputs.length,
    maxOutput: 0,
    n: 1,
    stream: false,
    includeUsage: true,
    dimensions,
    isBase64: encoding_format === "base64"
  }
}

const vector = (text: string, dimensions: number): Float32Array => {
  const seed = hash(0, text)
  const values = Float32Array.from({ length: dimensions }, (_, index) => fraction(seed, index) - 0.5)
  const length = Math.hypot(...values)
  return values.map((value) => value / length)
}

export const format: wire.Format = {
  parse: (body, modelInPath) =>
    Result.match(decode(withModel(body, modelInPath)), { onSuccess: toPrompt, onFailure: (error) => error.message }),
  whole: ({ input, model, prompt }) => {
    const { dimensions, isBase64 } = prompt as EmbeddingPrompt
    return {
      object: "list",
      data: prompt.text.split(separator).map((text, index) => {
        const values = vector(text, dimensions)
        return {
          object: "embedding",
          index,
          embedding: isBase64 ? Base64.encode(new Uint8Array(values.buffer)) : Array.from(values)
        }
      }),
      model,
      usage: { prompt_tokens: input, total_tokens: input }
    }
  },
  head: () => "",
  token: () => "",
  tail: () => "",
  failure: (_, error) => wire.data(errorBody(error))
}
