/**
 * Plants known mistakes in a copy of the source, one at a time, and checks that the tests notice.
 *
 * Each patch in this directory is one mutant; its first line says what is wrong with it. A mutant that no test catches
 * is a hole in the tests, and a patch that no longer applies protects nothing: both end with exit code 1.
 *
 *     npm run mutants
 *     npm run mutants -- permit-leak      only those whose name contains it
 */
import { execFile, execFileSync } from "node:child_process"
import { cpSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync } from "node:fs"
import { tmpdir } from "node:os"
import { basename, join } from "node:path"
import { argv, execPath, exit } from "node:process"
import { fileURLToPath } from "node:url"

const root = fileURLToPath(new URL("../../", import.meta.url))
const mutants = join(root, "test/mutants")
const copied = ["src", "test", "package.json", "tsconfig.json"]
const suites = [
  "test/model",
  "test/schedules",
  "test/laws",
  "test/refusals",
  "test/scheduling",
  "test/internal",
  "test/updateRateLimiters.test.ts",
  "test/ai",
  "test/HttpClient.test.ts",
  "test/Metrics.test.ts",
  "test/tracing.test.ts",
  "test/conformance",
  "test/redis/laws.test.ts",
  "test/redis/sharing.test.ts",
  "test/bullmq/BullMq.test.ts",
  "test/bullmq/races.test.ts"
].filter((suite) => existsSync(join(root, suite)))

/** A mutant may hang where no scheduler sees it. */
const patience = 300_000

interface Verdict {
  readonly passed: boolean
  /** Name of the first test that failed. */
  readonly failure: string
  readonly seconds: number
}

/** A copy of the project to spoil. */
const withCopy = async <A>(use: (directory: string) => Promise<A>): Promise<A> => {
  const directory = mkdtempSync(join(tmpdir(), "mutant-"))
  try {
    for (const name of copied) cpSync(join(root, name), join(directory, name), { recursive: true })
    symlinkSync(join(root, "node_modules"), join(directory, "node_modules"), "dir")
    return await use(directory)
  } finally {
    rmSync(directory, { recursive: true, force: true })
  }
}

const test = (directory: string): Promise<Verdict> =>
  new Promise((resolve) => {
    const started = performance.now()
    const options = [
      "--config",
      "test/vitest.config.ts",
      "--root",
      ".",
      "--bail",
      "1",
      "--reporter",
      "json",
      "--outputFile",
      "report.json"
    ]
    execFile(
      execPath,
      [join(directory, "node_modules/vitest/vitest.mjs"), "run", ...options, ...suites],
      { cwd: directory, timeout: patience, killSignal: "SIGKILL", maxBuffer: 1 << 28 },
      (error) => {
        const seconds = (performance.now() - started) / 1000
        resolve({
          passed: error === null,
          failure: error === null
            ? ""
            : error.killed === true
            ? "(hangs)"
            : firstFailure(join(directory, "report.json")),
          seconds
        })
      }
    )
  })

interface Report {
  readonly testResults: ReadonlyArray<{
    readonly name: string
    readonly message: string
    readonly assertionResults: ReadonlyArray<{
      readonly status: string
      readonly title: string
      readonly failureMessages: ReadonlyArray<string>
    }>
  }>
}

const firstFailure = (file: string): string => {
  if (!existsSync(file)) return "(no report)"
  const report = JSON.parse(readFileSync(file, "utf8")) as Report
  const failures = report.testResults.flatMap(({ assertionResults, name }) =>
    assertionResults.filter(({ status }) => status === "failed").map(({ failureMessages, title }) => ({
      message: failureMessages[0] ?? "",
      test: `${basename(name, ".test.ts")}: ${title}`
    }))
  )
  // The other tests were given up then, which counts as a failure of theirs.
  const failure = failures.find(({ message }) => message.includes("AssertionError")) ?? failures[0]
  if (failure === undefined) {
    return `(no test: ${report.testResults.find(({ message }) => message !== "")?.message ?? "unknown"})`
  }
  const seed = /seed \d+/.exec(failure.message)
  return seed === null ? failure.test : `${failure.test} (${seed[0]})`
}

const main = async (): Promise<boolean> => {
  const filter = argv[2] ?? ""
  const patches = readdirSync(mutants).filter((name) => name.endsWith(".patch") && name.includes(filter)).toSorted()
  const rows: Array<readonly [string, string, string]> = []
  let sound = true

  const unmutated = await withCopy(test)
  console.log(
    `unmutated source: ${unmutated.passed ? "passes" : `fails: ${unmutated.failure}`} in ${
      unmutated.seconds.toFixed(1)
    } s`
  )
  if (!unmutated.passed) return false

  for (const patch of patches) {
    const name = basename(patch, ".patch")
    const row = await withCopy(async (directory): Promise<readonly [string, string, string]> => {
      try {
        execFileSync("git", ["apply", join(mutants, patch)], { cwd: directory, stdio: "pipe" })
      } catch (error) {
        sound = false
        return [name, `DOES NOT APPLY: ${error instanceof Error ? error.message : String(error)}`, ""]
      }
      const { failure, passed, seconds } = await test(directory)
      if (passed) sound = false
      return [name, passed ? "SURVIVES" : failure, seconds.toFixed(1)]
    })
    console.log(row.join("  "))
    rows.push(row)
  }

  const width = Math.max(...rows.map(([name]) => name.length))
  console.log(`\n${"mutant".padEnd(width)}  seconds  caught by`)
  for (const [name, caught, seconds] of rows) console.log(`${name.padEnd(width)}  ${seconds.padStart(7)}  ${caught}`)
  for (const patch of patches) {
    const [description] = readFileSync(join(mutants, patch), "utf8").split("\n")
    console.log(`${basename(patch, ".patch").padEnd(width)}  ${description}`)
  }
  return sound
}

exit(await main() ? 0 : 1)
