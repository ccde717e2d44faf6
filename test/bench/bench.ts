/**
 * What the queue costs, beside what Effect itself costs for the same flow, and beside other libraries. Each subject runs
 * in a process of its own, since the heap one leaves spoils the next; subjects alternate, and medians are printed.
 *
 *     npm run bench                           backlogs up to 100,000, and everything else: some minutes
 *     npm run bench -- --only REGEX           cases or sizes whose name matches
 *     npm run bench -- --full                 backlogs of 1,000,000, too
 *     npm run bench -- --repeat N             of each; 5 by default
 *     npm run bench -- --json FILE            the figures: an array of { case, subject, metric, unit, median, min, max }
 *     npm run bench -- --baseline             compares ratios with test/bench/baseline.json; exits with 1 if one is
 *                                             20 % worse
 */
import { execFileSync } from "node:child_process"
import { existsSync, readFileSync, writeFileSync } from "node:fs"
import { cpus } from "node:os"
import { argv, execArgv, execPath, exit, stdout, version } from "node:process"
import { fileURLToPath } from "node:url"
import { parseArgs } from "node:util"
import { cases, type Figure, quantile } from "./cases.ts"
import { size } from "./size.ts"
import { type Shape, subjects } from "./subjects.ts"

interface Row {
  readonly case: string
  readonly subject: string
  readonly metric: string
  readonly unit: string
  readonly median: number
  readonly min: number
  readonly max: number
}

const self = fileURLToPath(import.meta.url)
const thousands = (count: number): string => count.toLocaleString("en-US")

const backlogName = ({ priorities, requests, yields }: Shape) =>
  `backlog of ${thousands(requests)}, ${yields ? "a processor that yields" : "no-op processor"}`
  + (priorities === 1 ? "" : `, ${priorities} priorities`)

/** In the process of one subject. */
const measure = async (kind: string, subject: string): Promise<ReadonlyArray<Figure>> => {
  if (kind.startsWith("{")) {
    const shape = JSON.parse(kind) as Shape
    const millis = await subjects.find(({ name }) => name === subject)!.run(shape)
    return [{ subject, metric: "throughput", unit: "requests/s", value: shape.requests / millis * 1000 }]
  }
  return kind === "size" ? await size() : await cases.find(({ name }) => name === kind)!.run(subject)
}

const apart = (kind: string, subject: string): ReadonlyArray<Figure> =>
  JSON.parse(
    execFileSync(execPath, [...execArgv, "--max-old-space-size=8192", self, "--apart", kind, subject], {
      maxBuffer: 1 << 24,
      stdio: ["ignore", "pipe", "inherit"]
    }).toString()
  ) as ReadonlyArray<Figure>

const summarize = (name: string, figures: ReadonlyArray<Figure>): ReadonlyArray<Row> => {
  const rows = new Map<string, Array<Figure>>()
  for (const figure of figures) {
    const key = `${figure.subject} ${figure.metric}`
    rows.set(key, [...rows.get(key) ?? [], figure])
  }
  return Array.from(rows.values(), (same) => {
    const values = same.map(({ value }) => value)
    const { metric, subject, unit } = same[0]!
    return {
      case: name,
      subject,
      metric,
      unit,
      median: quantile(values, 0.5),
      min: Math.min(...values),
      max: Math.max(...values)
    }
  })
}

/** What another metric of ours is compared with. */
const bases = new Set(["with 1 charges in each window", "nothing"])

/** Ours beside each of the others, and with something beside without. */
const ratios = (rows: ReadonlyArray<Row>): ReadonlyMap<string, { readonly ratio: number; readonly isBetter: number }> =>
  new Map(
    rows.filter(({ subject }) => subject === "ours").flatMap((ours) =>
      rows.flatMap((other) => {
        if (other === ours || other.case !== ours.case || other.unit !== ours.unit) return []
        const isPeer = other.subject !== "ours" && other.metric === ours.metric
        if (!isPeer && !bases.has(other.metric)) return []
        const what = isPeer ? `ours / ${other.subject}, ${ours.metric}` : `${ours.metric} / ${other.metric}`
        const ratio = ours.median / other.median
        return [[`${ours.case}: ${what}`, { ratio, isBetter: ours.unit === "requests/s" ? ratio : 1 / ratio }]]
      })
    )
  )

const shown = (value: number): string =>
  Math.abs(value) >= 1000 ? thousands(Math.round(value)) : value.toFixed(Math.abs(value) >= 10 ? 1 : 3)

const main = () => {
  const { values: options } = parseArgs({
    args: argv.slice(2),
    options: {
      only: { type: "string", default: "" },
      full: { type: "boolean", default: false },
      repeat: { type: "string", default: "5" },
      json: { type: "string" },
      baseline: { type: "boolean", default: false }
    }
  })
  const only = new RegExp(options.only)
  const repeat = Number(options.repeat)
  const shapes: ReadonlyArray<Shape> = [
    ...[1000, 10_000, 100_000, ...(options.full ? [1_000_000] : [])].flatMap((requests) =>
      [1, 10].map((priorities) => ({ requests, priorities, yields: false }))
    ),
    { requests: 100_000, priorities: 1, yields: true }
  ]
  const jobs = [
    ...shapes.map((shape) => ({
      name: backlogName(shape),
      kind: JSON.stringify(shape),
      parts: subjects
        .filter(({ most, mostByPriority = 0 }) => (shape.priorities === 1 ? most : mostByPriority) >= shape.requests)
        .map(({ name }) => name)
    })),
    ...cases.map(({ name, parts }) => ({ name, kind: name, parts })),
    { name: "size", kind: "size", parts: ["ours"] }
  ].filter(({ name }) => only.test(name))
  console.log(`Node ${version}, ${cpus().length} × ${cpus()[0]?.model}, ${repeat} repetitions, one process each`)
  const rows: Array<Row> = []
  for (const { kind, name, parts } of jobs) {
    const figures: Array<Figure> = []
    for (let i = 0; i < (kind === "size" ? 1 : repeat); i++) {
      for (const part of i % 2 === 0 ? parts : parts.toReversed()) figures.push(...apart(kind, part))
    }
    const found = summarize(name, figures)
    rows.push(...found)
    console.log(`\n${name}`)
    console.table(
      found.map(({ max, median, metric, min, subject, unit }) => ({
        subject,
        metric,
        median: shown(median),
        min: shown(min),
        max: shown(max),
        unit
      }))
    )
    for (const [what, { ratio }] of ratios(found)) console.log(`${what.slice(name.length + 2)}: ${ratio.toFixed(2)}`)
  }
  if (options.json !== undefined) writeFileSync(options.json, JSON.stringify(rows, null, 2))
  if (!options.baseline) return true
  const file = fileURLToPath(new URL("baseline.json", import.meta.url))
  const before = ratios(existsSync(file) ? JSON.parse(readFileSync(file, "utf8")) as ReadonlyArray<Row> : [])
  const worse = Array.from(ratios(rows)).filter(([what, now]) => now.isBetter < 0.8 * (before.get(what)?.isBetter ?? 0))
  for (const [what, { ratio }] of worse) {
    console.log(`WORSE ${what}: ${ratio.toFixed(2)}, was ${before.get(what)?.ratio.toFixed(2)}`)
  }
  return worse.length === 0
}

if (argv[2] === "--apart") {
  stdout.write(JSON.stringify(await measure(argv[3]!, argv[4]!)))
  exit(0)
}
if (!main()) exit(1)
