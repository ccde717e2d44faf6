import { assert, describe, it } from "@effect/vitest"
import * as TokenEstimator from "effect-llm-queue/TokenEstimator"
import * as cl100k from "effect-llm-queue/tokenizers/cl100kBase"
import * as o200k from "effect-llm-queue/tokenizers/o200kBase"
import * as exactCl100k from "gpt-tokenizer/encoding/cl100k_base"
import * as exactO200k from "gpt-tokenizer/encoding/o200k_base"
import { boundedCount } from "../../src/internal/boundedCount.ts"
import { random } from "../laws/schedule.ts"

const asText = { disallowedSpecial: new Set<string>() }
const encodings = [
  [o200k.countTokens, (text: string) => exactO200k.countTokens(text, asText)],
  [cl100k.countTokens, (text: string) => exactCl100k.countTokens(text, asText)]
] as const

const words =
  "a the queue, admits  requests\n\n  in order (oldest first); \"limits\" = {rpm: 500} isn't 12,345.67 Überprüfung привет 東京 😀\t"
    .split(" ")

const prose = (seed: number, length: number): string => {
  const { pick } = random(seed)
  let text = ""
  while (text.length < length) text += `${pick(words)} `
  return text.slice(0, length)
}

describe("tokenizers of gpt-tokenizer", () => {
  it("count as the encoding does, texts of any length up to 32,768", () => {
    for (const [count, exact] of encodings) {
      for (const length of [0, 1, 10, 255, 256, 257, 512, 2000, 32_768]) {
        const text = prose(length, length)
        assert.strictEqual(count(text), exact(text))
      }
    }
    assert.strictEqual(o200k.countTokens("Hello, world!"), 4)
  })

  it("count indented code as the encoding does", () => {
    const line =
      "      if (tokens[index]   !== undefined) {\n        return   tokens[index] // the last one\n      }\n\n"
    for (const [count, exact] of encodings) assert.strictEqual(count(line.repeat(100)), exact(line.repeat(100)))
  })

  it("are off by a token for each cut at most where a text has no spaces", () => {
    const { between } = random(1)
    const kanji = Array.from({ length: 5000 }, () => String.fromCharCode(0x4e00 + between(0, 2000))).join("")
    const hex = Array.from({ length: 5000 }, () => between(0, 15).toString(16)).join("")
    for (const [count, exact] of encodings) {
      for (const text of [kanji, hex, "😀".repeat(2500), " ".repeat(5000), "\n".repeat(5000), "a".repeat(5000)]) {
        assert.approximately(count(text), exact(text), Math.ceil(5000 / 255))
      }
    }
  })

  it("take special tokens and broken characters for text", () => {
    for (const [count, exact] of encodings) {
      for (const text of ["<|endoftext|>", "a <|im_start|> b", "<|endoftext|> ".repeat(100), "\ud800", "\udc00a\0"]) {
        assert.strictEqual(count(text), exact(text))
        assert.isAbove(count(text), 0)
      }
    }
  })

  it("sample texts that are longer, within a few percent", () => {
    for (const [count, exact] of encodings) {
      const text = prose(1, 300_000)
      assert.approximately(count(text), exact(text), exact(text) * 0.03)
    }
  })

  it("see no more than 256 characters at a time, of no more than 32,768", () => {
    for (const text of ["a".repeat(1_000_000), "a b".repeat(100_000), "😀".repeat(500_000), " ".repeat(40_000)]) {
      let seen = 0
      const tokens = boundedCount(text, (piece) => {
        assert.isAtMost(piece.length, 256)
        assert.isAbove(piece.length, 0)
        seen += piece.length
        return piece.length
      })
      assert.isAtMost(seen, 32_768)
      assert.strictEqual(tokens, text.length)
    }
  })

  it("cut no character in two", () => {
    const text = `a${"😀".repeat(1000)}`
    let seen = ""
    boundedCount(text, (piece) => {
      assert.notMatch(piece, /\p{Surrogate}/u)
      seen += piece
      return 1
    })
    assert.strictEqual(seen, text)
  })

  it("make an estimator exact", () => {
    const estimator = TokenEstimator.learned({ counter: o200k.countTokens }).make("gpt-5")
    for (let i = 1; i < 100; i++) {
      const prompt = prose(i, 50 + 70 * (i % 20))
      const actual = exactO200k.countTokens(prompt, asText) + 7
      const estimated = estimator.estimate({ params: { messages: [{ content: prompt }] } })
      if (i > 30) assert.approximately(estimated.inputTokens, actual, 5 + actual * 0.03)
      estimated.observe({ inputTokens: actual, outputTokens: 1 })
    }
    assert.approximately(estimator.stats()[0]!.fixedTokens, 7, 1)
  })
})
