/** Seeded text: the same seed and prompt always give the same answer of the same length. */
const words = ["to", "be", "or", "not", "that", "is", "the", "question", "whether", "it", "nobler", "in", "mind"]

/** FNV-1a over UTF-16 code units, with a final mix that spreads short inputs over all 32 bits. */
const hash = (seed: number, text: string): number => {
  let h = 0x811c9dc5 ^ seed
  for (let i = 0; i < text.length; i++) h = Math.imul(h ^ text.charCodeAt(i), 0x01000193)
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b)
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35)
  return (h ^ (h >>> 16)) >>> 0
}

/** Between 1 and `max` words, one a token, each with its leading space. */
export const generate = (seed: number, prompt: string, max: number): Array<string> => {
  const start = hash(seed, prompt)
  const length = 1 + Math.floor(start / 2 ** 32 * max)
  return Array.from({ length }, (_, i) => (i === 0 ? "" : " ") + words[(start + i) % words.length])
}
