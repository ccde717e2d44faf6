import { assert, describe, it } from "@effect/vitest"
import { execFileSync } from "node:child_process"
import { readdirSync, readFileSync } from "node:fs"
import { fileURLToPath } from "node:url"

const directory = fileURLToPath(new URL(".", import.meta.url))
const root = fileURLToPath(new URL("../../", import.meta.url))

describe("mutants", () => {
  const patches = readdirSync(directory).filter((name) => name.endsWith(".patch"))

  for (const patch of patches) {
    it(`${patch} applies to the source, and says what it breaks`, () => {
      const [description, blank] = readFileSync(directory + patch, "utf8").split("\n")
      assert.match(description!, /^[A-Z].*\.$/)
      assert.strictEqual(blank, "")
      execFileSync("git", ["apply", "--check", directory + patch], { cwd: root, stdio: "pipe" })
    })
  }
})
