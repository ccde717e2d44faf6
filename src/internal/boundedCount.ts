/**
 * Token counts of any text in bounded time. Byte pair encoders take quadratic time for a piece that has no word
 * boundaries, and any encoder takes long for a long text.
 */

/** Longest text that is counted as a whole. */
const wholeLength = 32_768
const samples = 8
/** Longest text the encoder is given at once. */
const pieceLength = 256

const isLowSurrogate = (code: number): boolean => code >= 0xdc00 && code <= 0xdfff

/** Where to cut a text: encoders keep the last space before a word with the word, so a cut there changes nothing. */
const cut = (text: string, start: number, most: number): number => {
  for (let at = most; at > start; at--) {
    if (text[at] === " " && !/\s/.test(text[at + 1]!)) return at
  }
  return isLowSurrogate(text.charCodeAt(most)) ? most - 1 : most
}

const countPart = (text: string, from: number, to: number, encoder: (piece: string) => number): number => {
  let tokens = 0
  let start = from
  while (start < to) {
    const most = start + pieceLength
    const end = most >= to ? to : cut(text, start, most)
    tokens += encoder(text.slice(start, end))
    start = end
  }
  return tokens
}

/** Tokens of a text: of the whole up to 32,768 characters, above that as eight parts of 4,096 across it say. */
export const boundedCount = (text: string, encoder: (piece: string) => number): number => {
  const length = text.length
  if (length <= wholeLength) return countPart(text, 0, length, encoder)
  const partLength = wholeLength / samples
  let tokens = 0
  for (let i = 0; i < samples; i++) {
    const from = Math.floor(((length - partLength) * i) / (samples - 1))
    tokens += countPart(text, from, from + partLength, encoder)
  }
  return Math.ceil((tokens * length) / wholeLength)
}
