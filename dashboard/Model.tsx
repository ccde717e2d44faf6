import { useEffect, useState } from "preact/hooks"
import * as api from "./api.ts"
import { Charts } from "./Charts.tsx"
import * as format from "./format.ts"
import { Letters, Requests } from "./Lists.tsx"
import { type Act, Dialog, Events, Fact, Meter, State } from "./parts.tsx"
import { type Store, used } from "./store.ts"

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
          onConfirm={() => act(() => api.act.changeLimit(modelId, limit, Number(asked)))}
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

const kinds: Readonly<Record<string, string>> = { tooLarge: "too large" }

const ProviderFacts = ({ provider }: { readonly provider: NonNullable<api.Queue["provider"]> }) => {
  const refusals = Object.entries(provider.refusals).filter(([, count]) => count > 0)
  return (
    <>
      <Fact name="Provider">
        {provider.name}
        {provider.retryInMillis !== null && (
          <span class="warn">, tries again in {format.duration(provider.retryInMillis)}</span>
        )}
        {provider.concurrency !== null && <span class="warn">, at most {provider.concurrency} at one time</span>}
      </Fact>
      <Fact name="Refusals">
        {refusals.length === 0
          ? "none"
          : refusals.map(([kind, count]) => `${format.count(count)} ${kinds[kind] ?? kind}`).join(", ")}
      </Fact>
    </>
  )
}

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
  const operator = { act, canAct, changes, isLive: store.connection.state === "live" }
  const mine = (events: ReadonlyArray<api.Event>) => events.filter((event) => event.modelId === modelId)
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
                    onClick={() => act(() => api.act.resume(modelId))}
                  >
                    Resume
                  </button>
                )
                : (
                  <button type="button" onClick={() => act(() => api.act.pause(modelId))}>
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
          <Fact name="Waiting">
            {format.count(queue.depth)} <span class="quiet">of {format.count(queue.capacity)}</span>
          </Fact>
          {queue.suspended > 0 && <Fact name="Waiting for room">{format.count(queue.suspended)}</Fact>}
          <Fact name="Running">{format.count(queue.running)}</Fact>
          <Fact name="Completed">{format.count(queue.completed)}</Fact>
          <Fact name="Failed">{format.count(queue.failed)}</Fact>
          <Fact name="Cancelled">{format.count(queue.cancelled)}</Fact>
          {queue.provider !== null && <ProviderFacts provider={queue.provider} />}
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
      <Requests queue={queue} {...operator} />
      <Letters modelId={modelId} {...operator} />
      <div class="pair">
        <Events title="Recent failures" events={mine(store.failures)} empty="Nothing has failed lately." />
        <Events title="Recent events" events={mine(store.events)} empty="Nothing has happened lately." />
      </div>
      {asked === "drain" && (
        <Dialog
          title={`Drain ${modelId}`}
          confirm="Drain"
          onClose={() => setAsked(undefined)}
          onConfirm={() => act(() => api.act.drain(modelId))}
        >
          <p>It takes no more requests, which fail, until it is resumed. What was accepted is still processed.</p>
        </Dialog>
      )}
      {asked === "cancel" && (
        <Dialog
          title={`Cancel all that wait for ${modelId}`}
          confirm="Cancel them"
          onClose={() => setAsked(undefined)}
          onConfirm={() => act(() => api.act.cancelWaiting(modelId))}
        >
          <p>{format.count(queue.depth + queue.suspended)} requests fail in the programs that have submitted them.</p>
        </Dialog>
      )}
    </>
  )
}
