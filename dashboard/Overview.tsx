import { useMemo, useRef, useState } from "preact/hooks"
import { Charts } from "./Charts.tsx"
import * as format from "./format.ts"
import { Events, Fact, linkTo, Meter, State } from "./parts.tsx"
import { type Point, type Row, type Store, used } from "./store.ts"

const pageSize = 50

interface Column {
  readonly id: string
  readonly name: string
  readonly isNumber: boolean
  /** What it is sorted by: the largest first, or by name. */
  readonly by: (row: Row) => number | string
}

const columns: ReadonlyArray<Column> = [
  { id: "model", name: "Model", isNumber: false, by: ({ queue }) => queue.modelId },
  { id: "state", name: "State", isNumber: false, by: ({ queue }) => queue.state },
  { id: "waiting", name: "Waiting", isNumber: true, by: ({ queue }) => queue.depth + queue.suspended },
  { id: "running", name: "Running", isNumber: true, by: ({ queue }) => queue.running },
  { id: "rate", name: "Done / s", isNumber: true, by: ({ completedPerSecond }) => completedPerSecond },
  { id: "failed", name: "Failed", isNumber: true, by: ({ queue }) => queue.failed },
  { id: "wait", name: "Wait p95", isNumber: true, by: ({ queue }) => queue.waits?.p95Millis ?? -1 },
  {
    id: "limit",
    name: "Fullest limit",
    isNumber: true,
    by: ({ fullest }) => fullest === undefined ? -1 : used(fullest)
  }
]

const compare = (a: Row, b: Row, { by, isNumber }: Column): number => {
  const [x, y] = [by(a), by(b)]
  const order = isNumber ? Number(y) - Number(x) : String(x).localeCompare(String(y))
  return order === 0 ? a.queue.modelId.localeCompare(b.queue.modelId) : order
}

const Models = ({ rows }: { readonly rows: ReadonlyMap<string, Row> }) => {
  const [search, setSearch] = useState("")
  const [sorted, setSorted] = useState({ id: "waiting", isReverse: false })
  const [page, setPage] = useState(0)
  const table = useRef<HTMLTableSectionElement>(null)
  const last = useRef<{ readonly key: string; readonly order: ReadonlyArray<string> }>(null)

  const words = search.toLowerCase().split(/\s+/)
  const found = useMemo(
    () => [...rows.values()].filter(({ queue }) => words.every((word) => queue.modelId.toLowerCase().includes(word))),
    [rows, search]
  )
  const key = `${search} ${sorted.id} ${sorted.isReverse}`
  // Rows do not change places under somebody's hand.
  const isHeld = last.current?.key === key
    && (table.current?.matches(":hover") === true || table.current?.contains(document.activeElement) === true)
  const ordered = useMemo(() => {
    if (isHeld) {
      const places = new Map(last.current!.order.map((modelId, index) => [modelId, index]))
      const place = ({ queue }: Row) => places.get(queue.modelId) ?? places.size
      return found.toSorted((a, b) => place(a) - place(b))
    }
    const column = columns.find(({ id }) => id === sorted.id)!
    const order = found.toSorted((a, b) => compare(a, b, column))
    return sorted.isReverse ? order.toReversed() : order
  }, [found, key, isHeld])
  last.current = { key, order: ordered.map(({ queue }) => queue.modelId) }

  const pages = Math.max(1, Math.ceil(ordered.length / pageSize))
  const now = Math.min(page, pages - 1)
  const shown = ordered.slice(now * pageSize, (now + 1) * pageSize)

  return (
    <section class="card">
      <div class="head">
        <h2>Models</h2>
        <input
          type="search"
          placeholder="Search models"
          aria-label="Search models"
          value={search}
          onInput={(event) => {
            setSearch(event.currentTarget.value)
            setPage(0)
          }}
        />
      </div>
      <div class="scroll">
        <table class="models">
          <thead>
            <tr>
              {columns.map(({ id, isNumber, name }) => (
                <th
                  key={id}
                  scope="col"
                  class={isNumber ? "number" : ""}
                  aria-sort={sorted.id !== id ? "none" : isNumber !== sorted.isReverse ? "descending" : "ascending"}
                >
                  <button
                    type="button"
                    onClick={() => setSorted({ id, isReverse: sorted.id === id && !sorted.isReverse })}
                  >
                    {name}
                  </button>
                </th>
              ))}
            </tr>
          </thead>
          <tbody ref={table}>
            {shown.map(({ completedPerSecond, fullest, queue }) => (
              <tr key={queue.modelId}>
                <th scope="row">
                  <a href={linkTo(queue.modelId)}>{queue.modelId}</a>
                </th>
                <td data-name="State">
                  <State queue={queue} />
                </td>
                <td class="number" data-name="Waiting">
                  {format.count(queue.depth)}
                  {queue.suspended > 0 && (
                    <span class="quiet" title="These wait for room in the queue">+{format.count(queue.suspended)}</span>
                  )}
                </td>
                <td class="number" data-name="Running">{format.count(queue.running)}</td>
                <td class="number" data-name="Done / s">{format.rate(completedPerSecond)}</td>
                <td class={`number ${queue.failed > 0 ? "some" : ""}`} data-name="Failed">
                  {format.count(queue.failed)}
                </td>
                <td class="number" data-name="Wait p95">
                  {queue.waits === null ? "–" : format.duration(queue.waits.p95Millis)}
                </td>
                <td class="limit" data-name="Fullest limit">
                  {fullest === undefined ? <span class="quiet">unlimited</span> : (
                    <>
                      <Meter limit={fullest} name={`${fullest.type} of ${queue.modelId}`} />
                      <span>{fullest.type} {format.percent(used(fullest))}</span>
                    </>
                  )}
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      {ordered.length === 0 && (
        <p class="quiet">{rows.size === 0 ? "No model is registered." : "No model has such a name."}</p>
      )}
      {pages > 1 && (
        <nav class="pages" aria-label="Pages of models">
          <button type="button" disabled={now === 0} onClick={() => setPage(now - 1)}>Previous</button>
          <span>
            {now * pageSize + 1}–{now * pageSize + shown.length} of {format.count(ordered.length)}
          </span>
          <button type="button" disabled={now === pages - 1} onClick={() => setPage(now + 1)}>Next</button>
        </nav>
      )}
    </section>
  )
}

export const Overview = ({ store, theme }: { readonly store: Store; readonly theme: string }) => {
  const last = store.total.at(-1)
  // Of one second they would hop.
  const lately = store.total.filter(({ at }) => at > (last?.at ?? 0) - 5000)
  const mean = (of: (point: Point) => number) =>
    lately.length === 0 ? 0 : lately.reduce((sum, point) => sum + of(point), 0) / lately.length
  return (
    <>
      <h1 class="unseen">All models</h1>
      <dl class="tiles">
        <Fact name="Models">{format.count(store.rows.size)}</Fact>
        <Fact name="Waiting">{format.count(last?.depth ?? 0)}</Fact>
        <Fact name="Running">{format.count(last?.running ?? 0)}</Fact>
        <Fact name="Completed / s">{format.rate(mean(({ completed }) => completed))}</Fact>
        <Fact name="Failed / s">{format.rate(mean(({ failed }) => failed))}</Fact>
        <Fact name="Wait p95">{last?.p95 == null ? "–" : format.duration(last.p95)}</Fact>
      </dl>
      <Charts points={store.total} theme={theme} />
      <Models rows={store.rows} />
      <div class="pair">
        <Events title="Recent failures" events={store.failures} empty="Nothing has failed lately." />
        <Events title="Recent events" events={store.events} empty="Nothing has happened lately." />
      </div>
    </>
  )
}
