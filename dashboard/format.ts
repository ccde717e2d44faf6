/** Numbers and times as people read them. */
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 })
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 })
const clock = new Intl.DateTimeFormat("en", { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false })

export const count = (value: number): string => Math.abs(value) < 100_000 ? whole.format(value) : short.format(value)

export const rate = (perSecond: number): string =>
  perSecond < 0.05 ? "0" : perSecond < 10 ? perSecond.toFixed(1) : count(perSecond)

export const percent = (part: number): string => `${Math.round(part * 100)} %`

const units = [["d", 86_400_000], ["h", 3_600_000], ["min", 60_000]] as const

export const duration = (millis: number): string => {
  if (millis < 1) return "0 s"
  if (millis < 1000) return `${Math.round(millis)} ms`
  if (millis < 60_000) return `${(millis / 1000).toFixed(millis < 10_000 ? 1 : 0)} s`
  for (const [index, [name, size]] of units.entries()) {
    if (millis < size) continue
    const smaller = units[index + 1] ?? ["s", 1000] as const
    const rest = Math.floor((millis % size) / smaller[1])
    return `${Math.floor(millis / size)} ${name}${rest === 0 ? "" : ` ${rest} ${smaller[0]}`}`
  }
  return ""
}

export const time = (at: number): string => clock.format(at)

/** A period as limits have them: whole units have no number. */
export const period = (millis: number | null): string =>
  millis === null
    ? "at one time"
    : `per ${({ 1000: "second", 60_000: "minute", 3_600_000: "hour", 86_400_000: "day" })[millis] ?? duration(millis)}`
