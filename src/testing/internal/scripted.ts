/** Answers that a request asks for itself: calls of its tools, and values of its schema. */

/** An answer in pieces of a token each. */
export interface Scripted {
  readonly pieces: ReadonlyArray<string>
  /** Calls of tools: their arguments begin with a piece. Without any it is text. */
  readonly calls: ReadonlyArray<{ readonly name: string; readonly from: number }>
}

export interface Tool {
  readonly name: string
  readonly schema: unknown
}

type Fields = Readonly<Record<string, unknown>>

const isFields = (value: unknown): value is Fields =>
  typeof value === "object" && value !== null && !Array.isArray(value)

const charactersPerToken = 4
const deepest = 16

const toPieces = (text: string): ReadonlyArray<string> =>
  Array.from(
    { length: Math.ceil(text.length / charactersPerToken) },
    (_, index) => text.slice(index * charactersPerToken, (index + 1) * charactersPerToken)
  )

/** A value that a JSON schema allows. */
export const sample = (schema: unknown): unknown => {
  const root = schema
  const resolve = (reference: string): unknown =>
    reference.split("/").slice(1).reduce((found: unknown, key) => isFields(found) ? found[key] : undefined, root)
  const of = (schema: unknown, depth: number): unknown => {
    if (!isFields(schema) || depth > deepest) return null
    if (typeof schema["$ref"] === "string") return of(resolve(schema["$ref"]), depth + 1)
    if ("const" in schema) return schema["const"]
    if (Array.isArray(schema["enum"])) return schema["enum"][0]
    for (const key of ["anyOf", "oneOf", "allOf"]) {
      const options = schema[key]
      if (Array.isArray(options) && options.length > 0) return of(options[0], depth + 1)
    }
    switch (Array.isArray(schema["type"]) ? schema["type"][0] : schema["type"]) {
      case "object":
        return isFields(schema["properties"])
          ? Object.fromEntries(Object.entries(schema["properties"]).map(([name, each]) => [name, of(each, depth + 1)]))
          : {}
      case "array":
        return schema["items"] === undefined ? [] : [of(schema["items"], depth + 1)]
      case "string":
        return "text"
      case "integer":
      case "number":
        return typeof schema["minimum"] === "number" ? schema["minimum"] : 1
      case "boolean":
        return true
      default:
        return null
    }
  }
  return of(schema, 0)
}

/** The JSON object at the start of a text. */
const leadingObject = (text: string): string | undefined => {
  for (let end = text.indexOf("}"); end !== -1; end = text.indexOf("}", end + 1)) {
    const candidate = text.slice(0, end + 1)
    try {
      JSON.parse(candidate)
      return candidate
    } catch {
      // A brace inside it.
    }
  }
  return undefined
}

const callOf = (calls: ReadonlyArray<{ readonly name: string; readonly json: string }>): Scripted => {
  const pieces: Array<string> = []
  const found = calls.map(({ json, name }) => {
    const from = pieces.length
    pieces.push(...toPieces(json))
    return { name, from }
  })
  return { pieces, calls: found }
}

export const text = (value: unknown): Scripted => ({ pieces: toPieces(JSON.stringify(value)), calls: [] })

/**
 * What is to be called: the tool that is forced, with arguments that its schema allows; else each `call NAME {…}` in the
 * last message, if that is the user's.
 */
export const calls = (
  tools: ReadonlyArray<Tool>,
  forced: string | undefined,
  lastMessage: string | undefined
): Scripted | undefined => {
  const tool = tools.find(({ name }) => name === forced)
  if (tool !== undefined) return callOf([{ name: tool.name, json: JSON.stringify(sample(tool.schema)) }])
  if (lastMessage === undefined) return undefined
  const found: Array<{ readonly name: string; readonly json: string }> = []
  for (const match of lastMessage.matchAll(/\bcall ([\w.-]+) (?=\{)/g)) {
    const json = leadingObject(lastMessage.slice(match.index + match[0].length))
    if (json !== undefined && tools.some(({ name }) => name === match[1])) found.push({ name: match[1]!, json })
  }
  return found.length === 0 ? undefined : callOf(found)
}

/** The calls of an answer that may have been cut short, with their arguments as far as they came. */
export const callsOf = (
  { calls }: Scripted,
  words: ReadonlyArray<string>
): ReadonlyArray<{ readonly name: string; readonly json: string; readonly from: number }> =>
  calls
    .filter(({ from }) => from < words.length)
    .map(({ from, name }, index) => ({ name, from, json: words.slice(from, calls[index + 1]?.from).join("") }))
