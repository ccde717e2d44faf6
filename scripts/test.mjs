// Everything that must hold before a change is merged, one stage after another; the first failure ends the run.
//
// The stages are npm scripts, so that each can be run alone. A skipped, todo or focused test counts as a failure in CI:
// what does not run does not protect anything. Elsewhere a test that needs a program that is not installed may be. The
// last line of the output gives the counts of the unit tests, the type tests and the examples together: "N passed, N
// failed, N skipped".
import { spawn } from "node:child_process"
import fs from "node:fs"
import { dirname } from "node:path"

const unitReport = "node_modules/.cache/unit-tests.json"

const none = { failed: 0, passed: 0, skipped: 0 }

/** Vitest's own JSON report. */
const countUnitTests = () => {
  if (!fs.existsSync(unitReport)) return none
  const report = JSON.parse(fs.readFileSync(unitReport, "utf8"))
  const failedFiles = report.testResults.filter((file) =>
    file.status === "failed" && file.assertionResults.length === 0
  )
  return {
    failed: report.numFailedTests + failedFiles.length,
    passed: report.numPassedTests,
    skipped: report.numPendingTests + report.numTodoTests
  }
}

/** A summary line such as "Tests:  1 failed, 2 skipped, 12 passed, 15 total". */
const countSummary = (output, label) => {
  const line = output.findLast((line) => line.startsWith(`${label}:`)) ?? ""
  const count = (word) => Number(new RegExp(`(\\d+) ${word}`).exec(line)?.[1] ?? 0)
  return {
    failed: count("failed"),
    passed: count("passed"),
    skipped: count("skipped") + count("todo") + count("fixme")
  }
}

/** The type tests; a skipped assertion in a test that runs is a skip too. */
const countTypeTests = (output) => {
  const tests = countSummary(output, "Tests")
  return { ...tests, skipped: Math.max(tests.skipped, countSummary(output, "Assertions").skipped) }
}

const stages = [
  { title: "format", script: "format" },
  { title: "lint", script: "lint" },
  { title: "types", script: "check:types" },
  { title: "documentation examples", script: "check:docs" },
  { title: "Effect diagnostics", script: "check:effect" },
  { title: "unused code and dependencies", script: "unused" },
  { title: "package: build, publint, are the types wrong", script: "package" },
  {
    title: "unit and property tests",
    script: "test:unit",
    args: ["--allowOnly=false", "--reporter=default", "--reporter=json", `--outputFile.json=${unitReport}`],
    count: countUnitTests
  },
  { title: "type tests", script: "test:types", count: countTypeTests },
  { title: "examples", script: "examples", count: (output) => countSummary(output, "Examples") }
]

/** Runs one npm script, shows its output as it comes, and resolves to its exit code and lines. */
const run = ({ args = [], script }) =>
  new Promise((resolve) => {
    const env = { ...process.env, TSTYCHE_NO_INTERACTIVE: "true" }
    if (!process.stdout.isTTY) env.NO_COLOR = "1"
    const child = spawn("npm", ["run", "--silent", script, ...(args.length === 0 ? [] : ["--", ...args])], {
      env,
      shell: process.platform === "win32",
      stdio: ["ignore", "pipe", "inherit"]
    })
    let output = ""
    child.stdout.setEncoding("utf8")
    child.stdout.on("data", (chunk) => {
      output += chunk
      process.stdout.write(chunk)
    })
    child.on("error", (error) => {
      console.error(error)
      resolve({ code: 1, output: [] })
    })
    child.on("close", (code) => {
      // oxlint-disable-next-line no-control-regex
      resolve({ code: code ?? 1, output: output.replaceAll(/\u001b\[[\d;]*m/g, "").split("\n") })
    })
  })

fs.rmSync(unitReport, { force: true })
fs.mkdirSync(dirname(unitReport), { recursive: true })

const total = { ...none }
let failure
for (const [index, stage] of stages.entries()) {
  console.log(`\n=== ${index + 1}/${stages.length} ${stage.title} (npm run ${stage.script})`)
  const started = performance.now()
  const { code, output } = await run(stage)
  const seconds = ((performance.now() - started) / 1000).toFixed(1)
  const counts = stage.count?.(output)
  const passed = counts?.passed ?? 0
  const skipped = counts?.skipped ?? 0
  // A stage that ends with an error without naming a failed test, such as the linter, counts as one failure.
  const failed = code === 0 ? counts?.failed ?? 0 : Math.max(1, counts?.failed ?? 0)
  total.passed += passed
  total.skipped += skipped
  total.failed += failed
  failure = failed > 0
    ? `${stage.title}: failed`
    : skipped > 0 && process.env.CI !== undefined
    ? `${stage.title}: ${skipped} skipped or todo`
    : counts !== undefined && passed === 0
    ? `${stage.title}: ran no test`
    : undefined
  console.log(`=== ${failure ?? `${stage.title}: ok`} (${seconds} s)`)
  if (failure !== undefined) break
}

if (failure !== undefined) process.exitCode = 1
console.log(`\n${failure === undefined ? "All checks passed." : `Stopped. ${failure}.`}\n`)
console.log(`${total.passed} passed, ${total.failed} failed, ${total.skipped} skipped`)
