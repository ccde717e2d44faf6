import { assert, describe, it } from "@effect/vitest"
import { readdirSync, readFileSync } from "node:fs"

const examples = readdirSync("examples")
  .filter((name) => name.endsWith(".ts"))
  .map((name) => readFileSync(`examples/${name}`, "utf8"))
const readme = readFileSync("README.md", "utf8")

const snippetsOf = (text: string) => Array.from(text.matchAll(/```ts\n([\s\S]*?)```/g), (match) => match[1]!)

describe("README", () => {
  const snippets = snippetsOf(readme)

  it("shows code", () => assert.isAbove(snippets.length, 2))

  it.each(snippets.map((snippet) => [snippet.split("\n")[0]!, snippet] as const))(
    "takes %j from an example that runs",
    (_, snippet) => assert.isTrue(examples.some((example) => example.includes(snippet)))
  )

  it("links to files that exist", () => {
    for (const [, path] of readme.matchAll(/\]\((examples\/[^)]+|LICENSE)\)/g)) {
      assert.isAbove(readFileSync(path!, "utf8").length, 0)
    }
  })
})

describe("the document of shared limits", () => {
  const snippets = snippetsOf(readFileSync("docs/distributed.md", "utf8"))

  it("shows code", () => assert.isAbove(snippets.length, 1))

  it.each(snippets.map((snippet) => [snippet.split("\n")[0]!, snippet] as const))(
    "takes %j from an example that runs",
    (_, snippet) => assert.isTrue(examples.some((example) => example.includes(snippet)))
  )
})
