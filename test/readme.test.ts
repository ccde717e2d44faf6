import { assert, describe, it } from "@effect/vitest"
import { readdirSync, readFileSync } from "node:fs"

const examples = readdirSync("examples")
  .filter((name) => name.endsWith(".ts"))
  .map((name) => readFileSync(`examples/${name}`, "utf8"))
const readme = readFileSync("README.md", "utf8")

describe("README", () => {
  const snippets = Array.from(readme.matchAll(/```ts\n([\s\S]*?)```/g), (match) => match[1]!)

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
