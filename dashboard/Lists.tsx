/** What waits for a model or is being processed, and its dead letters: asked for again and again. */
import { useEffect, useState } from "preact/hooks"
import * as api from "./api.ts"
import * as format from "./format.ts"
import { type Act, Dialog, Failure } from "./parts.tsx"

const listedEveryMillis = 2000

interface Operator {
  readonly act: Act
  readonly canAct: boolean
  /** Counts what has been done here. */
  readonly changes: number
  readonly isLive: boolean
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

export const Requests = ({ act, canAct, changes, isLive, queue }: Operator & { readonly queue: api.Queue }) => {
  const { modelId } = queue
  const items = useList(() => api.requests(modelId), modelId, isLive, changes)
  const [moved, setMoved] = useState<{ readonly requestId: string; readonly priority: string }>()
  const [cancelled, setCancelled] = useState<string>()
  const all = queue.depth + queue.suspended + queue.running
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
                          onClick={() => setCancelled(request.requestId)}
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
      {cancelled !== undefined && (
        <Dialog
          title={`Cancel ${cancelled}`}
          confirm="Cancel it"
          onClose={() => setCancelled(undefined)}
          onConfirm={() => act(() => api.act.cancel(modelId, cancelled))}
        >
          <p>It fails in the program that has submitted it.</p>
        </Dialog>
      )}
      {moved !== undefined && (
        <Dialog
          title={`Priority of ${moved.requestId}`}
          confirm="Change"
          onClose={() => setMoved(undefined)}
          onConfirm={() => act(() => api.act.changePriority(modelId, moved.requestId, Number(moved.priority)))}
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

export const Letters = ({ act, canAct, changes, isLive, modelId }: Operator & { readonly modelId: string }) => {
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
                      onClick={() => act(() => api.act.resubmit(modelId, requestId))}
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
          onConfirm={() => act(() => api.act.removeDeadLetters(modelId))}
        >
          <p>Their parameters are lost, and they cannot be submitted again.</p>
        </Dialog>
      )}
    </section>
  )
}
