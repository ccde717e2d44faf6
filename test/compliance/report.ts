/** The rows of a run, and the table of them. */

export interface Row {
  readonly profile: string
  readonly algorithm: string
  readonly charge: string
  readonly jitterMs: number
  readonly seed: number
  readonly knownAlgorithm: boolean
  readonly admissions: number
  readonly refusals: number
  /** Of the limit that binds, as a fraction of 1. */
  readonly utilisation: number
  readonly bound: number
}

/** A row with what the table and the verdict need. */
export interface Result extends Row {
  readonly cell: string
  /** The least utilisation that is accepted. */
  readonly required: number
  /** Which limit binds. */
  readonly binding: string
}

/** How an event was come through. */
export interface EventResult {
  readonly event: string
  readonly cell: string
  readonly seed: number
  readonly refusals: number
  /** Most refusals by one limit: one is accepted. */
  readonly perLimit: number
  /** Of the refusals, those of requests that were sent before the client could have been told. */
  readonly early: number
  /** Whether the provider changed while requests were on their way, so that nothing could have kept those back. */
  readonly sudden: boolean
  /** Nothing but refusals tells the client of it, so that each try to have more may cost one. */
  readonly untold: boolean
  /** From two periods after the event. */
  readonly utilisation: number
  readonly bound: number
  readonly required: number
}

/** A rule and what broke it. */
export interface RuleResult {
  readonly rule: string
  readonly cell: string
  readonly seed: number
  readonly counted: string
  readonly problems: ReadonlyArray<string>
}

export type Outcome =
  | { readonly kind: "cell"; readonly results: ReadonlyArray<Result> }
  | { readonly kind: "event"; readonly results: ReadonlyArray<EventResult> }
  | { readonly kind: "rule"; readonly results: ReadonlyArray<RuleResult> }
  | {
    readonly kind: "broken"
    readonly results: ReadonlyArray<{ readonly cell: string; readonly seed: number; readonly problem: string }>
  }

export const rowOf = (
  { admissions, algorithm, bound, charge, jitterMs, knownAlgorithm, profile, refusals, seed, utilisation }: Result
): Row => ({
  profile,
  algorithm,
  charge,
  jitterMs,
  seed,
  knownAlgorithm,
  admissions,
  refusals,
  utilisation,
  bound
})

export const cellPasses = ({ refusals, required, utilisation }: Result): boolean =>
  refusals === 0 && utilisation >= required

/** In ten minutes of others whom nothing tells of: the tries, and what is left unused between them. */
const mostTries = 10
const leastUntold = 0.9

export const eventPasses = (
  { bound, early, perLimit, refusals, required, sudden, untold, utilisation }: EventResult
): boolean =>
  untold
    ? perLimit <= mostTries && utilisation >= leastUntold * bound
    : (perLimit <= 1 || (sudden && refusals <= early)) && utilisation >= required

const percent = (fraction: number) => (fraction * 100).toFixed(2)

const table = (head: ReadonlyArray<string>, rows: ReadonlyArray<ReadonlyArray<string>>): string => {
  const widths = head.map((name, i) => Math.max(name.length, ...rows.map((row) => row[i]!.length)))
  const line = (cells: ReadonlyArray<string>) =>
    cells.map((cell, i) => i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!)).join("  ").trimEnd()
  return [line(head), widths.map((width) => "-".repeat(width)).join("  "), ...rows.map(line)].join("\n")
}

const groups = <A extends { readonly cell: string }>(results: ReadonlyArray<A>): ReadonlyArray<ReadonlyArray<A>> => {
  const byCell = new Map<string, Array<A>>()
  for (const result of results) {
    const group = byCell.get(result.cell)
    if (group === undefined) byCell.set(result.cell, [result])
    else group.push(result)
  }
  return [...byCell.values()]
}

const worst = <A>(items: ReadonlyArray<A>, value: (item: A) => number): number => Math.max(...items.map(value))
const least = <A>(items: ReadonlyArray<A>, value: (item: A) => number): number => Math.min(...items.map(value))

/** One line a cell: the worst of its seeds. */
export const cellTable = (results: ReadonlyArray<Result>): string =>
  table(
    ["cell", "binding", "seeds", "admissions", "refusals", "utilisation %", "bound %", "short by", ""],
    groups(results).map((group) => {
      const shortBy = worst(group, ({ bound, utilisation }) => bound - utilisation)
      return [
        group[0]!.cell,
        group[0]!.binding,
        String(group.length),
        String(least(group, ({ admissions }) => admissions)),
        String(worst(group, ({ refusals }) => refusals)),
        percent(least(group, ({ utilisation }) => utilisation)),
        percent(group[0]!.bound),
        percent(shortBy),
        group.every(cellPasses) ? "pass" : "FAIL"
      ]
    })
  )

/** Where the rules of the provider and the jitter leave less than 99 %, whatever is done. */
export const bounded = (results: ReadonlyArray<Result>): string =>
  groups(results).filter((group) => group[0]!.bound < 0.99).map((group) =>
    `${group[0]!.cell}: the bound is ${percent(group[0]!.bound)} %, ${
      percent(least(group, ({ utilisation }) => utilisation))
    } % are reached`
  ).join("\n")

export const eventTable = (results: ReadonlyArray<EventResult>): string =>
  table(
    [
      "event",
      "seeds",
      "refusals",
      "most by one limit",
      "of all, sent before it could be known",
      "utilisation %",
      "required %",
      ""
    ],
    groups(results).map((group) => [
      group[0]!.cell,
      String(group.length),
      String(worst(group, ({ refusals }) => refusals)),
      String(worst(group, ({ perLimit }) => perLimit)),
      String(worst(group, ({ early }) => early)),
      percent(least(group, ({ utilisation }) => utilisation)),
      percent(group[0]!.required),
      group.every(eventPasses)
        ? group.every(({ perLimit }) => perLimit <= 1)
          ? "pass"
          : group.some(({ untold }) => untold)
          ? "out of reach: only refusals tell of others"
          : "pass, but for what was on its way"
        : "FAIL"
    ])
  )

export const ruleTable = (results: ReadonlyArray<RuleResult>): string =>
  table(
    ["rule", "seeds", "counted", "broken", ""],
    groups(results).map((group) => {
      const problems = group.flatMap(({ problems }) => problems)
      return [
        group[0]!.cell,
        String(group.length),
        group[0]!.counted,
        problems.length === 0 ? "0" : `${problems.length}: ${problems[0]!}`,
        problems.length === 0 ? "pass" : "FAIL"
      ]
    })
  )

/** Events that do not meet what is asked of the others, because nothing but refusals tells of them. */
export const outOfReach = (outcomes: ReadonlyArray<Outcome>): ReadonlyArray<string> =>
  outcomes.flatMap((outcome) =>
    outcome.kind !== "event" ? [] : outcome.results
      .filter((result) => result.untold && eventPasses(result))
      .filter(({ perLimit, required, utilisation }) => perLimit > 1 || utilisation < required)
      .map(({ cell, perLimit, required, seed, utilisation }) =>
        `${cell}, seed ${seed}: ${perLimit} refusals by one limit, ${percent(utilisation)} % of ${percent(required)} %`
      )
  )

/** What does not pass, in words. */
export const verdict = (outcomes: ReadonlyArray<Outcome>): ReadonlyArray<string> =>
  outcomes.flatMap((outcome) => {
    switch (outcome.kind) {
      case "cell":
        return outcome.results.filter((result) => !cellPasses(result)).map(
          ({ binding, bound, cell, refusals, seed, utilisation }) =>
            `${cell}, seed ${seed}: ${refusals} refusals; ${percent(utilisation)} % of the ${binding}, bound ${
              percent(bound)
            } %`
        )
      case "event":
        return outcome.results.filter((result) => !eventPasses(result)).map(
          ({ cell, early, perLimit, refusals, required, seed, utilisation }) =>
            `${cell}, seed ${seed}: ${refusals} refusals, ${perLimit} by one limit, ${early} of them sent before it could be known; ${
              percent(utilisation)
            } %, required ${percent(required)} %`
        )
      case "rule":
        return outcome.results.filter(({ problems }) => problems.length > 0).map(({ cell, problems, seed }) =>
          `${cell}, seed ${seed}: ${problems.join("; ")}`
        )
      case "broken":
        return outcome.results.map(({ cell, problem, seed }) => `${cell}, seed ${seed}: ${problem}`)
    }
  })
