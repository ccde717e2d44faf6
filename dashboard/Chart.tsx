import { useEffect, useRef } from "preact/hooks"
import uPlot from "uplot"
import { time } from "./format.ts"
import type { Point } from "./store.ts"

export interface Line {
  readonly name: string
  readonly color: string
  readonly value: (point: Point) => number | null
}

const colorOf = (name: string): string => getComputedStyle(document.documentElement).getPropertyValue(name).trim()

/** What happened over time. Its last values are said in words, for those who do not see it. */
export const Chart = (
  { format, lines, points, theme, title }: {
    readonly title: string
    readonly points: ReadonlyArray<Point>
    readonly lines: ReadonlyArray<Line>
    readonly format: (value: number) => string
    /** Another one needs other colors. */
    readonly theme: string
  }
) => {
  const box = useRef<HTMLDivElement>(null)
  const plot = useRef<uPlot>(null)

  useEffect(() => {
    const element = box.current!
    const axis = {
      stroke: colorOf("--quiet"),
      font: "11px system-ui, sans-serif",
      grid: { stroke: colorOf("--line"), width: 1 },
      ticks: { show: false }
    }
    const made = new uPlot(
      {
        width: Math.max(160, element.clientWidth),
        height: 150,
        legend: { show: false },
        cursor: { show: false },
        padding: [8, 8, 0, 0],
        scales: { y: { range: (_, _low, high) => [0, high > 0 ? high * 1.1 : 1] } },
        axes: [{ ...axis, size: 28, space: 76, values: (_, ticks) => ticks.map((at) => time(at * 1000)) }, {
          ...axis,
          size: 56,
          values: (_, ticks) => ticks.map(format)
        }],
        series: [
          {},
          ...lines.map(({ color, name }) => ({
            label: name,
            stroke: colorOf(color),
            width: 1.5,
            spanGaps: true,
            points: { show: false }
          }))
        ]
      },
      [[], ...lines.map(() => [])],
      element
    )
    plot.current = made
    const resized = new ResizeObserver(() => made.setSize({ width: Math.max(160, element.clientWidth), height: 150 }))
    resized.observe(element)
    return () => {
      resized.disconnect()
      made.destroy()
    }
  }, [theme])

  useEffect(() => {
    plot.current?.setData([
      points.map(({ at }) => at / 1000),
      ...lines.map(({ value }) => points.map(value))
    ])
  }, [points, theme])

  const lastOf = ({ value }: Line): number | null => {
    const last = points.at(-1)
    return last === undefined ? null : value(last)
  }
  const said = lines.map((line) => {
    const last = lastOf(line)
    return `${line.name} ${last === null ? "nothing" : format(last)}`
  })

  return (
    <figure class="chart">
      <figcaption>
        <span>{title}</span>
        {lines.map((line) => {
          const last = lastOf(line)
          return (
            <span key={line.name} class="key">
              <i class={`swatch ${line.color.slice(2)}`} />
              {line.name} <b>{last === null ? "–" : format(last)}</b>
            </span>
          )
        })}
      </figcaption>
      <div ref={box} class="plot" role="img" aria-label={`${title} of the last 15 minutes. Now: ${said.join(", ")}.`} />
    </figure>
  )
}
