/** Seeded text and numbers: the same seed and prompt always give the same answer of the same length. */
const words = ["to", "be", "or", "not", "that", "is", "the", "question", "whether", "it", "nobler", "in", "mind"]
const laterWords = words.map((word) => ` ${word}`)

/** FNV-1a over UTF-16 code units, with a final mix that spreads short inputs over all 32 bits. */
export const hash = (seed: number, text: string): number => {
  let h = 0x811c9dc5 ^ seed
  for (let i = 0; i < text.length; i++) h = Math.imul(h ^ text.charCodeAt(i), 0x01000193)
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b)
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35)
  return (h ^ (h >>> 16)) >>> 0
}

/** A number in [0, 1) that depends on the hash and on which of its numbers it is. */
export const fraction = (hash: number, index: number): number => {
  let h = Math.imul(hash ^ (index + 1) * 0x9e3779b1, 0x85ebca6b)
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35)
  h ^= h >>> 16
  h = Math.imul(h ^ (h >>> 15), 0x2c1b3c6d)
  return ((h ^ (h >>> 13)) >>> 0) / 2 ** 32
}

/** A lognormal number, from two fractions. */
export const lognormal = (median: number, sigma: number, hash: number, index: number): number => {
  const radius = Math.sqrt(-2 * Math.log(1 - fraction(hash, index)))
  return median * Math.exp(sigma * radius * Math.cos(2 * Math.PI * fraction(hash, index + 1)))
}

/** Between 1 and `max`, every length as likely as any other. */
export const lengthOf = (start: number, max: number): number => 1 + Math.floor(start / 2 ** 32 * max)

/** So many words, one a token, each with its leading space. */
export const generate = (start: number, length: number): Array<string> => {
  const answer: Array<string> = []
  for (let i = 0; i < length; i++) {
    const word = (start + i) % words.length
    answer.push((i === 0 ? words[word] : laterWords[word]) ?? "")
  }
  return answer
}
