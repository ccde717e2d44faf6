/** The page: what it shows depends on its address, and on whether the server answers. */
import { render } from "preact"
import { useEffect, useReducer, useState } from "preact/hooks"
import "uplot/dist/uPlot.min.css"
import * as api from "./api.ts"
import { ModelView } from "./Model.tsx"
import { Overview } from "./Overview.tsx"
import type { Act } from "./parts.tsx"
import { type Connection, Store } from "./store.ts"
import "./style.css"

const modelOf = (hash: string): string | undefined => {
  const [, id] = /^#\/model\/(.+)$/.exec(hash) ?? []
  try {
    return id === undefined ? undefined : decodeURIComponent(id)
  } catch {
    return undefined
  }
}

const themes = ["auto", "light", "dark"] as const
type Theme = (typeof themes)[number]
const themeKey = "effect-llm-queue/theme"
const prefersDark = matchMedia("(prefers-color-scheme: dark)")

const useTheme = () => {
  const stored = localStorage.getItem(themeKey)
  const [theme, setTheme] = useState<Theme>(themes.find((theme) => theme === stored) ?? "auto")
  const [isDark, setDark] = useState(prefersDark.matches)
  useEffect(() => prefersDark.addEventListener("change", () => setDark(prefersDark.matches)), [])
  const shown = theme === "auto" ? isDark ? "dark" : "light" : theme
  document.documentElement.dataset["theme"] = shown
  const next = themes[(themes.indexOf(theme) + 1) % themes.length]!
  return {
    theme,
    shown,
    toggle: () => {
      localStorage.setItem(themeKey, next)
      setTheme(next)
    }
  }
}

const said = (connection: Connection): string => {
  switch (connection.state) {
    case "live":
      return "Live"
    case "asleep":
      return "Asleep"
    case "waiting":
      return `${connection.why} Trying again…`
    case "locked":
      return "Locked"
    case "refused":
      return "Refused"
    case "connecting":
      return "Connecting…"
  }
}

const SignIn = ({ store, why }: { readonly store: Store; readonly why: string | undefined }) => {
  const [value, setValue] = useState("")
  return (
    <section class="card narrow">
      <h1>Which token?</h1>
      <form
        onSubmit={(event) => {
          event.preventDefault()
          store.signIn(value.trim())
        }}
      >
        {/* So that password managers know where it belongs. */}
        <input type="text" name="username" autocomplete="username" value="effect-llm-queue" hidden readOnly />
        <label>
          Bearer token of the API
          <input
            type="password"
            autocomplete="current-password"
            required
            autofocus
            value={value}
            aria-describedby={why === undefined ? undefined : "why"}
            onInput={(event) => setValue(event.currentTarget.value)}
          />
        </label>
        {why !== undefined && <p id="why" role="alert" class="error">{why}</p>}
        <button type="submit" class="main">Sign in</button>
        <p class="quiet">It is kept in this tab, and forgotten with it.</p>
      </form>
    </section>
  )
}

const App = ({ store }: { readonly store: Store }) => {
  const [, redraw] = useReducer((drawn: number) => drawn + 1, 0)
  const [hash, setHash] = useState(location.hash)
  const [told, setTold] = useState<{ readonly text: string; readonly isBad: boolean }>()
  const [changes, setChanges] = useState(0)
  const { shown, theme, toggle } = useTheme()
  useEffect(() => store.subscribe(() => redraw(0)), [])
  useEffect(() => {
    const moved = () => {
      setHash(location.hash)
      window.scrollTo(0, 0)
      // The link that was followed is gone: who hears the page goes on at its new content.
      document.getElementById("content")!.focus({ preventScroll: true })
    }
    addEventListener("hashchange", moved)
    return () => removeEventListener("hashchange", moved)
  }, [])
  useEffect(() => {
    if (told === undefined || told.isBad) return
    const timer = setTimeout(() => setTold(undefined), 5000)
    return () => clearTimeout(timer)
  }, [told])

  const act: Act = (action) => {
    action().then(
      (text) => setTold({ text, isBad: false }),
      (error) => setTold({ text: error instanceof Error ? error.message : String(error), isBad: true })
    ).finally(() => setChanges((changes) => changes + 1))
  }

  const modelId = modelOf(hash)
  const { connection } = store
  useEffect(() => {
    document.title = modelId === undefined ? "effect-llm-queue" : `${modelId} – effect-llm-queue`
  }, [modelId])

  return (
    <>
      <a
        class="skip"
        href="#content"
        onClick={(event) => {
          event.preventDefault()
          document.getElementById("content")!.focus()
        }}
      >
        Skip to the content
      </a>
      <header>
        <a class="title" href="#/">effect-llm-queue</a>
        <span class={`connection ${connection.state}`} role="status">{said(connection)}</span>
        <button type="button" onClick={toggle} aria-label={`Colors: ${theme}. Change.`}>◐ {theme}</button>
        {api.token.get() !== null && connection.state !== "locked" && (
          <button
            type="button"
            onClick={() => store.signOut()}
          >
            Sign out
          </button>
        )}
      </header>
      <main id="content" tabIndex={-1} class={connection.state === "live" ? "" : "old"}>
        {connection.state === "locked"
          ? <SignIn store={store} why={connection.why} />
          : connection.state === "refused"
          ? (
            <section class="card narrow">
              <h1>Not answered</h1>
              <p role="alert">{connection.why}</p>
            </section>
          )
          : modelId === undefined
          ? <Overview store={store} theme={shown} />
          : <ModelView modelId={modelId} store={store} theme={shown} act={act} changes={changes} />}
      </main>
      <div class={`told ${told?.isBad === true ? "bad" : ""}`} role={told?.isBad === true ? "alert" : "status"}>
        {told !== undefined && (
          <>
            <span>{told.text}</span>
            <button type="button" onClick={() => setTold(undefined)} aria-label="Close the message">×</button>
          </>
        )}
      </div>
    </>
  )
}

const store = new Store()
render(<App store={store} />, document.getElementById("app")!)
void store.run()
