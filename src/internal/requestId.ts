const prefix = "req_"

let seed: string | undefined
let counter = 0

/** Unique in this process by a counter, and among processes by 64 random bits. */
export const generate = (): string => {
  if (seed === undefined) {
    const bits = globalThis.crypto.getRandomValues(new Uint32Array(2))
    seed = prefix + bits[0]!.toString(36) + bits[1]!.toString(36) + "_"
  }
  return seed + (counter++).toString(36)
}

/** Whether an id came from `generate`, so that nobody chose it. */
export const isGenerated = (id: string): boolean => seed !== undefined && id.startsWith(seed)
