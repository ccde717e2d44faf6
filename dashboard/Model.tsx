import { useEffect, useState } from "preact/hooks"
import * as api from "./api.ts"
import { Charts } from "./Charts.tsx"
import * as format from "./format.ts"
import { Dialog, Events, Failure, Meter, State } from "./parts.tsx"
import { type Row, type Store, used } from "./store.ts"

/** Does something, and says what has come of it. */
export type Act = (what: string, action: () => Promise<unknown>) => void

const listedEveryMillis = 2000

const LimitView = (
  { act, canAct, limit, modelId }: {
    readonly act: Act
    readonly canAct: boolean
    readonly limit: api.Limit
    readonly modelId: string
  }
) => {
  const [asked, setAsked] = useState<string>()
  const name = `${limit.type} ${format.period(limit.periodMillis)}`
  return (
    <li class="limit">
      <div class="head">
        <b>{limit.type}</b>
        <span class="quiet">{format.period(limit.periodMillis)}</span>
        <span class="number">{format.percent(used(limit))}</span>
      </div>
      <Meter limit={limit} name={name} />
      <div class="quiet">
        {format.count(limit.used)} of {format.count(limit.limit)}
        {limit.enforced < limit.limit && <b class="warn">, {format.count(limit.enforced)} enforced</b>}
        {limit.available <= 0 && limit.nextCapacityMillis !== null && limit.nextCapacityMillis > 0 && (
          <>, more in {format.duration(limit.nextCapacityMillis)}</>
        )}
        {limit.pausedForMillis !== null && (
          <b class="warn">, paused by the provider for {format.duration(limit.pausedForMillis)}</b>
        )}
        {limit.marginMillis > 0 && <>, margin {format.duration(limit.marginMillis)}</>}
      </div>
      {canAct && (
        <button type="button" onClick={() => setAsked(String(limit.limit))} aria-label={`Change ${name}`}>
          Change
        </button>
      )}
      {asked !== undefined && (
        <Dialog
          title={`Change ${name}`}
          confirm="Change"
          onClose={() => setAsked(undefined)}
          onConfirm={() => act(`${name} is ${asked} now.`, () => api.act.changeLimit(modelId, limit, Number(asked)))}
        >
          <label>
            Limit
            <input
              type="number"
              min={limit.type === "budget" ? undefined : 1}
              step={limit.type === "budget" ? "any" : 1}
              required
              value={asked}
              onInput={(event) => setAsked(event.currentTarget.value)}
            />
          </label>
          <p class="quiet">It holds from now on, and all that is known counts on. A restart brings the old one back.</p>
        </Dialog>
      )}
    </li>
  )
}

/** A list that the server is asked for again and again, as long as it is looked at. */
const useList = <A extends object>(
  read: () => Promise<ReadonlyArray<A>>,
  key: string,
  isLive: boolean,
  changes: number
) => {
  const [list, setList] = useState<{ readonly key: string; readonly items: ReadonlyArray<A> }>()
  useEffect(() => {
    if (!isLive) return
    let isGone = false
    let timer: ReturnType<typeof setTimeout> | undefined
    const ask = async () => {
      try {
        const items = document.hidden ? undefined : await read()
        if (isGone) return
        if (items !== undefined) setList({ key, items })
      } catch {
        // The connection says what is wrong.
      }
      if (!isGone) timer = setTimeout(ask, listedEveryMillis)
    }
    void ask()
    return () => {
      isGone = true
      clearTimeout(timer)
    }
  }, [key, isLive, changes])
  return list?.key === key ? list.items : undefined
}

const Requests = (
  { act, canAct, changes, isLive, row }: {
    readonly isLive: boolean
    readonly act: Act
    readonly canAct: boolean
    readonly row: Row
    readonly changes: number
  }
) => {
  const { modelId } = row.queue
  const items = useList(() => api.requests(modelId), modelId, isLive, changes)
  const [moved, setMoved] = useState<{ readonly requestId: string; readonly priority: string }>()
  const all = row.queue.depth + row.queue.suspended + row.queue.running
  return (
    <section class="card">
      <h2>
        Requests{" "}
        <span class="quiet">
          {items !== undefined && all > items.length ? `the first ${items.length} of ${format.count(all)}` : ""}
        </span>
      </h2>
      {items === undefined || items.length === 0
        ? <p class="quiet">{items === undefined ? "Asking…" : "Nothing waits, and nothing is being processed."}</p>
        : (
          <div class="scroll">
            <table class="requests">
              <thead>
                <tr>
                  <th scope="col">Request</th>
                  <th scope="col">Status</th>
                  <th scope="col">Tenant</th>
                  <th scope="col" class="number">Priority</th>
                  <th scope="col" class="number">Waited</th>
                  <th scope="col" class="number">Starts in</th>
                  <th scope="col" class="number">Attempts</th>
                  {canAct && <th scope="col">Actions</th>}
                </tr>
              </thead>
              <tbody>
                {items.map((request) => (
                  <tr key={request.requestId}>
                    <th scope="row">
                      <code>{request.requestId}</code>
                      {Object.entries(request.labels).map(([name, value]) => (
                        <span key={name} class="label">{name}: {value}</span>
                      ))}
                    </th>
                    <td data-name="Status">
                      <span class={`pill ${request.status}`}>{request.status}</span>
                    </td>
                    <td data-name="Tenant">{request.tenant ?? "–"}</td>
                    <td class="number" data-name="Priority">
                      {request.priority === 0 ? "normal" : `${request.priority > 0 ? "+" : ""}${request.priority} s`}
                    </td>
                    <td class="number" data-name="Waited">{format.duration(request.queueTimeMillis)}</td>
                    <td class="number" data-name="Starts in">
                      {request.status === "processing"
                        ? `running ${format.duration(request.processingTimeMillis)}`
                        : request.predictedWaitMillis === null
                        ? "unknown"
                        : request.predictedWaitMillis < 1
                        ? "now"
                        : format.duration(request.predictedWaitMillis)}
                    </td>
                    <td class="number" data-name="Attempts">{request.attempts}</td>
                    {canAct && (
                      <td data-name="Actions" class="actions">
                        {request.status === "pending" && (
                          <button
                            type="button"
                            aria-label={`Change the priority of ${request.requestId}`}
                            onClick={() =>
                              setMoved({ requestId: request.requestId, priority: String(request.priority) })}
                          >
                            Priority
                          </button>
                        )}
                        <button
                          type="button"
                          class="danger"
                          aria-label={`Cancel ${request.requestId}`}
                          onClick={() =>
                            act(
                              `${request.requestId} is cancelled.`,
                              () => api.act.cancel(modelId, { ids: [request.requestId] })
                            )}
                        >
                          Cancel
                        </button>
                      </td>
                    )}
                  </tr>
                ))}
              </tbody>
            </table>
          </div>
        )}
      {moved !== undefined && (
        <Dialog
          title={`Priority of ${moved.requestId}`}
          confirm="Change"
          onClose={() => setMoved(undefined)}
          onConfirm={() =>
            act(
              `${moved.requestId} has another priority.`,
              () => api.act.changePriority(modelId, moved.requestId, Number(moved.priority))
            )}
        >
          <label>
            Head start in seconds
            <input
              type="number"
              step="any"
              required
              value={moved.priority}
              onInput={(event) => setMoved({ ...moved, priority: event.currentTarget.value })}
            />
          </label>
        </Dialog>
      )}
    </section>
  )
}

const Letters = (
  { act, canAct, changes, isLive, modelId }: {
    readonly isLive: boolean
    readonly act: Act
    readonly canAct: boolean
    readonly modelId: string
    readonly changes: number
  }
) => {
  const items = useList(() => api.deadLetters(modelId), modelId, isLive, changes)
  const [isAsked, setAsked] = useState(false)
  if (items === undefined || items.length === 0) return null
  return (
    <section class="card">
      <div class="head">
        <h2>Dead letters</h2>
        {canAct && <button type="button" class="danger" onClick={() => setAsked(true)}>Remove all</button>}
      </div>
      <div class="scroll">
        <table class="letters">
          <thead>
            <tr>
              <th scope="col">Request</th>
              <th scope="col">Failed at</th>
              <th scope="col">Tenant</th>
              <th scope="col" class="number">Attempts</th>
              <th scope="col">Cause</th>
              {canAct && <th scope="col">Actions</th>}
            </tr>
          </thead>
          <tbody>
            {items.map(({ attempts, error, failedAt, requestId, tenant }) => (
              <tr key={requestId}>
                <th scope="row">
                  <code>{requestId}</code>
                </th>
                <td data-name="Failed at">{format.time(failedAt)}</td>
                <td data-name="Tenant">{tenant ?? "–"}</td>
                <td class="number" data-name="Attempts">{attempts}</td>
                <td data-name="Cause" class="error">
                  <Failure error={error} />
                </td>
                {canAct && (
                  <td data-name="Actions" class="actions">
                    <button
                      type="button"
                      aria-label={`Submit again: ${requestId}`}
                      onClick={() =>
                        act(`${requestId} is submitted again.`, () => api.act.resubmit(modelId, requestId))}
                    >
                      Submit again
                    </button>
                  </td>
                )}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      {isAsked && (
        <Dialog
          title="Remove all dead letters"
          confirm="Remove"
          onClose={() => setAsked(false)}
          onConfirm={() => act("The dead letters are removed.", () => api.act.removeDeadLetters(modelId))}
        >
          <p>Their parameters are lost, and they cannot be submitted again.</p>
        </Dialog>
      )}
    </section>
  )
}

const kinds: Readonly<Record<string, string>> = { tooLarge: "too large" }

export const ModelView = (
  { act, changes, modelId, store, theme }: {
    readonly act: Act
    /** Counts what has been done here. */
    readonly changes: number
    readonly modelId: string
    readonly store: Store
    readonly theme: string
  }
) => {
  const [asked, setAsked] = useState<"drain" | "cancel">()
  const row = store.rows.get(modelId)
  useEffect(() => {
    store.look(modelId)
    return () => store.look(undefined)
  }, [modelId])
  if (row === undefined) {
    return (
      <section class="card">
        <h1>{modelId}</h1>
        <p>
          {store.at === 0 ? "Waiting for the server…" : "No model of that name is registered."}{" "}
          <a href="#/">All models</a>
        </p>
      </section>
    )
  }
  const { queue } = row
  const { canAct } = store
  const isLive = store.connection.state === "live"
  const mine = (events: ReadonlyArray<api.Event>) => events.filter((event) => event.modelId === modelId)
  const refusals = Object.entries(queue.provider?.refusals ?? {}).filter(([, count]) => count > 0)
  const isStopped = queue.state === "paused" || queue.state === "draining"
  return (
    <>
      <nav aria-label="Where you are">
        <a href="#/">All models</a>
      </nav>
      <section class="card">
        <div class="head">
          <h1>{modelId}</h1>
          <State queue={queue} />
          {canAct && (
            <div class="actions">
              {isStopped
                ? (
                  <button
                    type="button"
                    class="main"
                    onClick={() => act(`${modelId} goes on.`, () => api.act.resume(modelId))}
                  >
                    Resume
                  </button>
                )
                : (
                  <button type="button" onClick={() => act(`${modelId} is paused.`, () => api.act.pause(modelId))}>
                    Pause
                  </button>
                )}
              <button type="button" disabled={queue.state === "draining"} onClick={() => setAsked("drain")}>
                Drain
              </button>
              <button
                type="button"
                class="danger"
                disabled={queue.depth + queue.suspended === 0}
                onClick={() => setAsked("cancel")}
              >
                Cancel all that wait
              </button>
            </div>
          )}
        </div>
        <dl class="facts">
          <div>
            <dt>Waiting</dt>
            <dd>
              {format.count(queue.depth)} <span class="quiet">of {format.count(queue.capacity)}</span>
            </dd>
          </div>
          {queue.suspended > 0 && (
            <div>
              <dt>Waiting for room</dt>
              <dd>{format.count(queue.suspended)}</dd>
            </div>
          )}
          <div>
            <dt>Running</dt>
            <dd>{format.count(queue.running)}</dd>
          </div>
          <div>
            <dt>Completed</dt>
            <dd>{format.count(queue.completed)}</dd>
          </div>
          <div>
            <dt>Failed</dt>
            <dd>{format.count(queue.failed)}</dd>
          </div>
          <div>
            <dt>Cancelled</dt>
            <dd>{format.count(queue.cancelled)}</dd>
          </div>
          {queue.provider !== null && (
            <div>
              <dt>Provider</dt>
              <dd>
                {queue.provider.name}
                {queue.provider.retryInMillis !== null && (
                  <span class="warn">, tries again in {format.duration(queue.provider.retryInMillis)}</span>
                )}
                {queue.provider.concurrency !== null && (
                  <span class="warn">, at most {queue.provider.concurrency} at one time</span>
                )}
              </dd>
            </div>
          )}
          {queue.provider !== null && (
            <div>
              <dt>Refusals</dt>
              <dd>
                {refusals.length === 0
                  ? "none"
                  : refusals.map(([kind, count]) => `${format.count(count)} ${kinds[kind] ?? kind}`).join(", ")}
              </dd>
            </div>
          )}
        </dl>
        {queue.limits.length === 0 ? <p class="quiet">It has no limits.</p> : (
          <ul class="limits">
            {queue.limits.map((limit) => (
              <LimitView
                key={`${limit.type} ${limit.periodMillis}`}
                limit={limit}
                modelId={modelId}
                canAct={canAct}
                act={act}
              />
            ))}
          </ul>
        )}
      </section>
      <Charts points={store.points?.modelId === modelId ? store.points.points : []} theme={theme} />
      <Requests row={row} canAct={canAct} act={act} changes={changes} isLive={isLive} />
      <Letters modelId={modelId} canAct={canAct} act={act} changes={changes} isLive={isLive} />
      <div class="pair">
        <Events title="Recent failures" events={mine(store.failures)} empty="Nothing has failed lately." />
        <Events title="Recent events" events={mine(store.events)} empty="Nothing has happened lately." />
      </div>
      {asked === "drain" && (
        <Dialog
          title={`Drain ${modelId}`}
          confirm="Drain"
          onClose={() => setAsked(undefined)}
          onConfirm={() => act(`${modelId} takes no more requests.`, () => api.act.drain(modelId))}
        >
          <p>It takes no more requests, which fail, until it is resumed. What was accepted is still processed.</p>
        </Dialog>
      )}
      {asked === "cancel" && (
        <Dialog
          title={`Cancel all that wait for ${modelId}`}
          confirm="Cancel them"
          onClose={() => setAsked(undefined)}
          onConfirm={() =>
            act(`All that waited for ${modelId} is cancelled.`, () => api.act.cancel(modelId, { status: "pending" }))}
        >
          <p>{format.count(queue.depth + queue.suspended)} requests fail in the programs that have submitted them.</p>
        </Dialog>
      )}
    </>
  )
}
