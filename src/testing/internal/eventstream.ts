/** The binary frames of AWS: lengths, headers, a payload and two checksums, here as a string with one byte a character. */

export const contentType = "application/vnd.amazon.eventstream"

const crcOf = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1
  return crc
})

const crc32 = (bytes: Uint8Array): number => {
  let crc = 0xffffffff
  for (const byte of bytes) crc = (crc >>> 8) ^ (crcOf[(crc ^ byte) & 0xff] ?? 0)
  return ~crc >>> 0
}

const encoder = new TextEncoder()

/** Each header is its name, the type of a string, and its value. */
const headerBytes = (headers: Readonly<Record<string, string>>): ReadonlyArray<number> => {
  const bytes: Array<number> = []
  for (const [name, value] of Object.entries(headers)) {
    const text = encoder.encode(value)
    bytes.push(name.length, ...encoder.encode(name), 7, text.length >> 8, text.length & 0xff, ...text)
  }
  return bytes
}

export const frame = (headers: Readonly<Record<string, string>>, payload: object): string => {
  const head = headerBytes(headers)
  const body = encoder.encode(JSON.stringify(payload))
  const bytes = new Uint8Array(12 + head.length + body.length + 4)
  const view = new DataView(bytes.buffer)
  view.setUint32(0, bytes.length)
  view.setUint32(4, head.length)
  view.setUint32(8, crc32(bytes.subarray(0, 8)))
  bytes.set(head, 12)
  bytes.set(body, 12 + head.length)
  view.setUint32(bytes.length - 4, crc32(bytes.subarray(0, bytes.length - 4)))
  return Array.from(bytes, (byte) => String.fromCharCode(byte)).join("")
}

/** The bytes of a string made of frames. */
export const bytesOf = (text: string): Uint8Array => Uint8Array.from(text, (char) => char.charCodeAt(0))
