/**
 * How much of shared limits processes use, and how evenly, against a provider that refuses what is too much.
 *
 *     npm run bench:fleet                     4 and 8 processes, balanced and not: some minutes
 *     npm run bench:fleet -- --only REGEX     those whose name matches
 *     npm run bench:fleet -- --repeat N       of each; 3 by default
 */
import { Effect } from "effect"
import { cpus } from "node:os"
import { argv, exit, version } from "node:process"
import { parseArgs } from "node:util"
import * as fleet from "../redis/fleet/fleet.ts"
import { url } from "../redis/server.ts"

const { values } = parseArgs({
  args: argv.slice(2),
  options: { only: { type: "string", default: "" }, repeat: { type: "string", default: "3" } }
})

const limits = {
  period: 6000,
  margin: 200,
  added: 100,
  rpm: 400,
  tpm: 100_000,
  concurrent: 48,
  lease: 10_000,
  windows: 4
} as const
const seconds = limits.windows * (limits.period + limits.margin + limits.added) / 1000

const busy = { backlog: 100, rate: undefined }
const calm = { backlog: undefined, rate: 2 }
const cases = [4, 8].flatMap((count) => [
  { name: `${count} processes, all busy`, loads: Array.from({ length: count }, () => busy) },
  { name: `${count} processes, one busy`, loads: Array.from({ length: count }, (_, i) => i === 0 ? busy : calm) }
])

const median = (numbers: ReadonlyArray<number>): number =>
  numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)]!

/** What each would have if nobody had more than another, but for what another does not ask for. */
const fairShares = (total: number, asked: ReadonlyArray<number>): ReadonlyArray<number> => {
  let left = total
  const shares = asked.map(() => 0)
  const order = asked.map((_, index) => index).toSorted((a, b) => asked[a]! - asked[b]!)
  for (const [done, index] of order.entries()) {
    shares[index] = Math.min(asked[index]!, left / (order.length - done))
    left -= shares[index]
  }
  return shares
}

const one = ({ loads, name }: (typeof cases)[number]) =>
  Effect.gen(function*() {
    const options = { ...limits, redis: yield* url, prefix: `bench:${name}:${performance.now()}`, loads }
    const { done, limits: used, refused, refusedBy, utilisation } = yield* fleet.run(options).pipe(
      Effect.provide(fleet.layer(options))
    )
    if (refused > 0) console.log(`${name}: ${refused} refused, ${JSON.stringify(refusedBy)}`)
    const total = done.reduce((sum, { sent }) => sum + sent, 0)
    const fair = fairShares(
      total,
      loads.map(({ rate }) => rate === undefined ? Number.POSITIVE_INFINITY : rate * seconds)
    )
    const parts = done.map(({ sent }, index) => sent / fair[index]!)
    return {
      refused,
      failed: done.reduce((sum, { failed }) => sum + failed.length, 0),
      utilisation,
      limit: Math.max(...used.map((each) => each.utilisation)),
      jain: fleet.jain(parts),
      least: Math.min(...parts)
    }
  }).pipe(Effect.scoped)

const only = new RegExp(values.only)
const percent = (value: number) => `${(value * 100).toFixed(1)} %`

console.log(
  `Node ${version}, ${cpus().length} × ${cpus()[0]?.model}; ${limits.rpm} requests in ${limits.period} ms, `
    + `${limits.concurrent} at one time, a margin of ${limits.margin} + ${limits.added} ms; ${limits.windows} windows, `
    + `medians of ${values.repeat}`
)
const rows: Array<object> = []
let isRefused = false
for (const each of cases.filter(({ name }) => only.test(name))) {
  const runs: Array<Effect.Success<ReturnType<typeof one>>> = []
  for (let i = 0; i < Number(values.repeat); i++) runs.push(await Effect.runPromise(one(each)))
  const middle = (of: (run: (typeof runs)[number]) => number) => median(runs.map(of))
  const all = (of: (run: (typeof runs)[number]) => number) => runs.reduce((sum, run) => sum + of(run), 0)
  isRefused ||= all(({ failed, refused }) => refused + failed) > 0
  rows.push({
    "": each.name,
    "refused, all runs": all(({ refused }) => refused),
    "failed, all runs": all(({ failed }) => failed),
    "of what can be used": percent(middle(({ utilisation }) => utilisation)),
    "of the limit": percent(middle(({ limit }) => limit)),
    "Jain index": middle(({ jain }) => jain).toFixed(3),
    "least share": percent(middle(({ least }) => least))
  })
}
console.table(rows)
exit(isRefused ? 1 : 0)
