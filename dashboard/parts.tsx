/** What several views have. */
import type { ComponentChildren } from "preact"
import { useEffect, useRef, useState } from "preact/hooks"
import type { Event, Limit, Queue } from "./api.ts"
import * as format from "./format.ts"
import { used } from "./store.ts"

/** Does something, and says what has come of it: what the action itself says, or why it failed. */
export type Act = (action: () => Promise<string>) => void

export const linkTo = (modelId: string): string => `#/model/${encodeURIComponent(modelId)}`

export const State = ({ queue: { provider, state } }: { readonly queue: Queue }) => (
  <>
    <span class={`pill ${state}`}>{state}</span>
    {provider !== null && provider.state !== "available" && (
      <span class="pill bad">
        {provider.state === "quotaExhausted" ? "quota used up" : `provider ${provider.state}`}
      </span>
    )}
  </>
)

const levelOf = (part: number): string => part >= 0.98 ? "full" : part >= 0.8 ? "high" : ""

/** How much of a limit is used. The mark is what is enforced, where that is less. */
export const Meter = ({ limit, name }: { readonly limit: Limit; readonly name: string }) => {
  const part = used(limit)
  const enforced = limit.limit > 0 ? limit.enforced / limit.limit : 1
  return (
    <span
      class={`meter ${levelOf(limit.enforced > 0 ? limit.used / limit.enforced : part)}`}
      role="meter"
      aria-label={name}
      aria-valuemin={0}
      aria-valuemax={100}
      aria-valuenow={Math.min(100, Math.round(part * 100))}
      aria-valuetext={`${format.count(limit.used)} of ${format.count(limit.limit)}`}
    >
      <i style={{ width: `${Math.min(100, part * 100)}%` }} />
      {enforced < 1 && <b style={{ left: `${Math.max(0, enforced * 100)}%` }} />}
    </span>
  )
}

export const Fact = ({ children, name }: { readonly name: string; readonly children: ComponentChildren }) => (
  <div>
    <dt>{name}</dt>
    <dd>{children}</dd>
  </div>
)

export const Failure = ({ error }: { readonly error: Event["error"] }) =>
  error === null ? <>–</> : (
    <>
      <b>{error.name}</b>
      {error.message !== null && <>{error.message}</>}
    </>
  )

export const Events = (
  { empty, events, title }: {
    readonly title: string
    readonly events: ReadonlyArray<Event>
    readonly empty: string
  }
) => {
  const [isLong, setLong] = useState(false)
  const shown = events.toReversed().slice(0, isLong ? events.length : 10)
  return (
    <section class="card">
      <h2>{title}</h2>
      {shown.length === 0 ? <p class="quiet">{empty}</p> : (
        <ul class="events">
          {shown.map((event) => (
            <li key={`${event.requestId} ${event.status} ${event.attempts}`}>
              <span class={`pill ${event.status}`}>{event.status}</span>
              <a href={linkTo(event.modelId)}>{event.modelId}</a>
              <code>{event.requestId}</code>
              {event.tenant !== null && <span class="quiet">{event.tenant}</span>}
              <span class="quiet">
                waited {format.duration(event.queueTimeMillis)}
                {event.status !== "processing" && `, ran ${format.duration(event.processingTimeMillis)}`}
                {event.attempts > 1 && `, ${event.attempts} attempts`}
                {event.inputTokens !== null && `, ${format.count(event.inputTokens)} tokens in`}
                {event.outputTokens !== null && `, ${format.count(event.outputTokens)} out`}
              </span>
              {event.error !== null && (
                <span class="error">
                  <Failure error={event.error} />
                </span>
              )}
            </li>
          ))}
        </ul>
      )}
      {events.length > 10 && (
        <button type="button" class="quiet" onClick={() => setLong(!isLong)}>
          {isLong ? "Show fewer" : `Show all ${events.length}`}
        </button>
      )}
    </section>
  )
}

/** Asks before something is done, or for a number. Escape and a click beside it mean no. */
export const Dialog = (
  { children, confirm, onClose, onConfirm, title }: {
    readonly title: string
    readonly confirm: string
    readonly children: ComponentChildren
    readonly onConfirm: () => void
    readonly onClose: () => void
  }
) => {
  const dialog = useRef<HTMLDialogElement>(null)
  useEffect(() => dialog.current!.showModal(), [])
  return (
    <dialog
      ref={dialog}
      aria-label={title}
      onClose={onClose}
      onClick={(event) => event.target === event.currentTarget && event.currentTarget.close()}
    >
      <form
        onSubmit={(event) => {
          event.preventDefault()
          dialog.current!.close()
          onConfirm()
        }}
      >
        <h2>{title}</h2>
        {children}
        <div class="actions">
          <button type="submit" class="main">{confirm}</button>
          <button type="button" onClick={() => dialog.current!.close()}>Not now</button>
        </div>
      </form>
    </dialog>
  )
}
