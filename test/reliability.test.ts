import { assert, describe, it } from "@effect/vitest"
import { existsSync, readdirSync, readFileSync } from "node:fs"

const page = readFileSync("docs/reliability.md", "utf8")

/** `file › name`, as the page names a test. */
const named = Array.from(page.matchAll(/`(test\/[^`\n]+?) › ([^`\n]+)`/g), ([, file, name]) => [file!, name!] as const)

/** Rows of the failure model: a number, what happens to whom, what becomes of it, what shows it. */
const rows = page.split("\n").filter((line) => /^\| \d+ /.test(line)).map((line) =>
  line.split(/(?<!\\)\|/).slice(1, -1).map((cell) => cell.trim())
)

const scripts = Object.keys(
  (JSON.parse(readFileSync("package.json", "utf8")) as { readonly scripts: Record<string, string> }).scripts
)

describe("the document of reliability", () => {
  it("numbers its rows, and each has a test, or says in words why not", () => {
    assert.isAbove(rows.length, 80)
    assert.deepStrictEqual(rows.map(([number]) => Number(number)), rows.map((_, index) => index + 1))
    for (const [number, fault, what, shown] of rows) {
      for (const cell of [fault, what, shown]) assert.isAbove(cell?.length ?? 0, 10, `row ${number}`)
    }
  })

  it("names tests that exist, in files that run", () => {
    assert.isAbove(named.length, 100)
    for (const [file, name] of named) {
      assert.isTrue(existsSync(file), file)
      // Other files hold the names of tests that a file beside them runs.
      assert.match(file, /\.test\.ts$|^test\/redis\/faults\/faults\.ts$/)
      // As a title is written: in quotes, and nothing before or after it.
      const titles = [JSON.stringify(name), `\`${name}\``]
      assert.isTrue(titles.some((title) => readFileSync(file, "utf8").includes(title)), `${file} › ${name}`)
    }
  })

  it("names commands and documents that there are", () => {
    for (const [, script] of page.matchAll(/npm run ([a-z:]+)/g)) assert.include(scripts, script)
    for (const [, path] of page.matchAll(/\]\(([^)#]+)(?:#[^)]*)?\)/g)) {
      assert.isTrue(path!.startsWith("http") || existsSync(`docs/${path}`), path)
    }
    for (const [, name] of page.matchAll(/`([a-z-]+)\.patch`/g)) {
      assert.include(readdirSync("test/mutants"), `${name}.patch`)
    }
  })
})
