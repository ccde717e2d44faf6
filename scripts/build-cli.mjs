// Builds the command (cli/) into one file that needs nothing but Node.js: dist/cli.js, or the path given. The licenses of
// what it contains are at its end.
import fs from "node:fs"
import { dirname, join } from "node:path"
import process from "node:process"
import { build } from "vite"

const out = process.argv[2] ?? "dist/cli.js"

const { output } = [
  await build({
    configFile: false,
    logLevel: "warn",
    publicDir: false,
    ssr: { noExternal: true, resolve: { conditions: ["llmq-source"] } },
    build: {
      write: false,
      ssr: "cli/main.ts",
      target: "node22",
      minify: true,
      reportCompressedSize: false,
      // Used by WebSockets when they are there, which the command does not have.
      rolldownOptions: { external: ["bufferutil", "utf-8-validate"], output: { codeSplitting: false } }
    }
  })
].flat()[0]

const chunks = output.filter(({ type }) => type === "chunk")
if (chunks.length !== 1) throw new Error(`expected one file, got ${chunks.map(({ fileName }) => fileName)}`)
const [{ code, moduleIds }] = chunks

const packages = new Set(moduleIds.flatMap((id) => /^.*\/node_modules\/(?:@[^/]+\/)?[^/]+(?=\/)/.exec(id)?.[0] ?? []))
const notices = [...packages].toSorted((a, b) => a.localeCompare(b)).map((directory) => {
  const { license, name, version } = JSON.parse(fs.readFileSync(join(directory, "package.json"), "utf8"))
  const file = fs.readdirSync(directory).find((name) => /^licen[sc]e/i.test(name))
  const text = file === undefined ? license : fs.readFileSync(join(directory, file), "utf8").trim()
  return `${name} ${version}\n\n${text}`.replaceAll("*/", "* /")
})

fs.mkdirSync(dirname(out), { recursive: true })
fs.writeFileSync(
  out,
  `${code.startsWith("#!") ? "" : "#!/usr/bin/env node\n"}${code}\n/*!\n${notices.join("\n\n---\n\n")}\n*/\n`,
  { mode: 0o755 }
)
console.log(`${out}: ${Math.round(fs.statSync(out).size / 1024)} KiB with ${packages.size} packages`)
