// Runs every examples/*.ts from source, one at a time, each with a time limit.
//
//   node scripts/run-examples.mjs            all of them
//   node scripts/run-examples.mjs quick re   those whose name contains one of the words
//
// Prints one line per example and the output of those that failed; exits 1 when one failed.
import { spawn } from "node:child_process"
import fs from "node:fs"
import { basename, join } from "node:path"

const directory = "examples"
const timeLimitSeconds = 60
const atOnce = 1

const words = process.argv.slice(2)
const names = fs.readdirSync(directory)
  .filter((name) => name.endsWith(".ts") && !name.endsWith(".d.ts"))
  .filter((name) => words.length === 0 || words.some((word) => name.includes(word)))
  .toSorted()

if (names.length === 0) {
  console.error(`no example in ${directory}/ to run`)
  process.exit(1)
}

/** Runs one example; resolves to what went wrong, or to undefined. */
const run = (name) =>
  new Promise((resolve) => {
    const started = performance.now()
    const output = []
    let timedOut = false
    const child = spawn(process.execPath, ["-C", "llmq-source", join(directory, name)], {
      stdio: ["ignore", "pipe", "pipe"]
    })
    const timer = setTimeout(() => {
      timedOut = true
      child.kill("SIGKILL")
    }, timeLimitSeconds * 1000)
    child.stdout.on("data", (chunk) => output.push(chunk))
    child.stderr.on("data", (chunk) => output.push(chunk))
    child.on("error", (error) => output.push(Buffer.from(String(error))))
    child.on("close", (code, signal) => {
      clearTimeout(timer)
      resolve({
        failure: timedOut
          ? `still running after ${timeLimitSeconds} s`
          : code === 0
          ? undefined
          : signal === null
          ? `exit code ${code}`
          : `ended by ${signal}`,
        output: Buffer.concat(output).toString("utf8").trimEnd(),
        seconds: (performance.now() - started) / 1000
      })
    })
  })

const width = Math.max(...names.map((name) => basename(name, ".ts").length))
const queue = [...names]
let failed = 0

const worker = async () => {
  for (let name = queue.shift(); name !== undefined; name = queue.shift()) {
    const { failure, output, seconds } = await run(name)
    const line = `${basename(name, ".ts").padEnd(width)}  ${seconds.toFixed(1).padStart(5)} s`
    if (failure === undefined) {
      console.log(`${line}  ok`)
    } else {
      failed++
      console.log(`${line}  failed: ${failure}`)
      console.log(output.replaceAll(/^/gm, "  | "))
    }
  }
}

await Promise.all(Array.from({ length: atOnce }, worker))
console.log(`Examples: ${names.length - failed} passed, ${failed} failed`)
process.exitCode = failed === 0 ? 0 : 1
