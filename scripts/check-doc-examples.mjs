// Type-checks the examples in the documentation comments of src: each ```ts block becomes a file of its own.
import { execFileSync } from "node:child_process"
import fs from "node:fs"
import { join, relative } from "node:path"

const out = "node_modules/.cache/doc-examples"
fs.rmSync(out, { recursive: true, force: true })
fs.mkdirSync(out, { recursive: true })

let count = 0
for (
  const file of fs.readdirSync("src", { encoding: "utf8", recursive: true }).filter((name) => name.endsWith(".ts"))
) {
  const source = fs.readFileSync(join("src", file), "utf8")
  for (const [, block] of source.matchAll(/^ *\* ```ts\n([\s\S]*?)^ *\* ```$/gm)) {
    const code = block.replaceAll(/^ *\* ?/gm, "")
    fs.writeFileSync(join(out, `${file.replaceAll(/[/.]/g, "-")}-${count++}.ts`), `// ${file}\n${code}\nexport {}\n`)
  }
}

const root = relative(out, ".")
fs.writeFileSync(
  join(out, "tsconfig.json"),
  JSON.stringify({
    extends: `${root}/tsconfig.json`,
    include: ["*.ts"],
    compilerOptions: { noUnusedLocals: false, plugins: [] }
  })
)
execFileSync("tsc", ["-p", out], { stdio: "inherit" })
console.log(`${count} examples in documentation comments compile`)
