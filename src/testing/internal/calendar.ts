/** Days of a time zone, from the runtime's own zone data. */

const dayLength = 86_400_000
const formats = new Map<string, Intl.DateTimeFormat>()

const formatOf = (timeZone: string): Intl.DateTimeFormat => {
  let format = formats.get(timeZone)
  if (format === undefined) {
    format = new Intl.DateTimeFormat("en-US", {
      timeZone,
      year: "numeric",
      month: "2-digit",
      day: "2-digit",
      era: "short"
    })
    formats.set(timeZone, format)
  }
  return format
}

/** A number that grows with the calendar day at this instant of Unix time. */
const dayOf = (timeZone: string, millis: number): number => {
  let day = 0
  for (const { type, value } of formatOf(timeZone).formatToParts(millis)) {
    if (type === "year") day += Number(value) * 10_000
    if (type === "month") day += Number(value) * 100
    if (type === "day") day += Number(value)
  }
  return day
}

/** The first instant after `millis` of Unix time that lies in another day: 23, 24 or 25 hours after the one before. */
export const nextMidnight = (timeZone: string, millis: number): number => {
  if (timeZone === "UTC") return (Math.floor(millis / dayLength) + 1) * dayLength
  const from = Math.floor(millis)
  const day = dayOf(timeZone, from)
  let before = from
  let after = from + dayLength + 7_200_000
  while (dayOf(timeZone, after) === day) after += dayLength
  while (after - before > 1) {
    const middle = Math.floor((before + after) / 2)
    if (dayOf(timeZone, middle) > day) after = middle
    else before = middle
  }
  return after
}
