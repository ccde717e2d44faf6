/** How long the core takes to load, and how large it is in a bundle. Of what is published: `npm run build` comes first. */
import { execFileSync } from "node:child_process"
import { readFileSync } from "node:fs"
import { execPath } from "node:process"
import { fileURLToPath } from "node:url"
import { gzipSync } from "node:zlib"
import { build, type Rollup } from "vite"
import type { Figure } from "./cases.ts"

const root = fileURLToPath(new URL("../../", import.meta.url))

/** Milliseconds to import a module, when Effect is there already. */
const importTime = (): number =>
  Number(
    execFileSync(execPath, [
      "--input-type=module",
      "--eval",
      `await import("effect"); await import("effect/persistence"); const t = performance.now();`
      + `await import("effect-llm-queue"); console.log(performance.now() - t)`
    ], { cwd: root }).toString()
  )

const bundled = async (external: ReadonlyArray<RegExp>): Promise<number> => {
  const output = await build({
    root,
    logLevel: "silent",
    configFile: false,
    build: {
      write: false,
      minify: true,
      lib: { entry: `${root}dist/index.js`, formats: ["es"] },
      rollupOptions: { external: [...external] }
    }
  })
  const [{ output: [chunk] }] = output as unknown as [Rollup.RollupOutput]
  return gzipSync(chunk.code).length
}

export const size = async (): Promise<ReadonlyArray<Figure>> => {
  execFileSync("npm", ["run", "-s", "build"], { cwd: root })
  const { version } = JSON.parse(readFileSync(`${root}node_modules/effect/package.json`, "utf8")) as { version: string }
  return [
    { subject: "ours", metric: "import", unit: "ms", value: importTime() },
    {
      subject: "ours",
      metric: "minified and gzipped, without effect",
      unit: "bytes",
      value: await bundled([/^effect/])
    },
    {
      subject: "ours",
      metric: `minified and gzipped, with effect ${version}`,
      unit: "bytes",
      value: await bundled([])
    }
  ]
}
