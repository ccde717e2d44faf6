/** What of a call counts as input, in strings that a token estimator measures. */
import type * as Prompt from "effect/ai/Prompt"
import * as Tool from "effect/ai/Tool"
import * as Schema from "effect/Schema"

/** Measured as one file, whatever its length. */
const file = "data:;base64,"

const json = (value: unknown): string => {
  try {
    return JSON.stringify(value) ?? ""
  } catch {
    return ""
  }
}

/** The texts of a prompt's messages, the calls and results of tools among them, and a mark for each file. */
export const ofPrompt = (prompt: Prompt.Prompt): ReadonlyArray<string> =>
  prompt.content.flatMap((message): ReadonlyArray<string> =>
    typeof message.content === "string" ? [message.content] : message.content.flatMap(ofPart)
  )

type Part = Exclude<Prompt.Message["content"], string>[number]

const ofPart = (part: Part): ReadonlyArray<string> => {
  switch (part.type) {
    case "text":
    case "reasoning":
      return [part.text]
    case "file":
      return [file]
    case "tool-call":
      return [part.name, json(part.params)]
    case "tool-result":
      return part.modelOutput === undefined
        ? [json(part.result)]
        : part.modelOutput.map((output) => output.type === "text" ? output.text : file)
    default:
      return []
  }
}

const definitions = new WeakMap<object, string>()

/** What a tool's definition is sent as, about. */
export const ofTool = (tool: Tool.Any): string => {
  const known = definitions.get(tool)
  if (known !== undefined) return known
  let definition = tool.name
  try {
    if (!Tool.isProviderDefined(tool)) {
      definition += `${Tool.getDescription(tool) ?? ""}${json(Tool.getJsonSchema(tool))}`
    }
  } catch {
    // What has no JSON schema is for the provider to refuse.
  }
  definitions.set(tool, definition)
  return definition
}

export const ofSchema = (schema: Schema.Top): string => {
  try {
    return json(Schema.toJsonSchemaDocument(schema))
  } catch {
    return ""
  }
}
