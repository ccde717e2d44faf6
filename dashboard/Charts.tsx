import { Chart, type Line } from "./Chart.tsx"
import * as format from "./format.ts"
import type { Point } from "./store.ts"

const throughput: ReadonlyArray<Line> = [
  { name: "completed", color: "--good", value: ({ completed }) => completed },
  { name: "failed", color: "--bad", value: ({ failed }) => failed }
]
const waits: ReadonlyArray<Line> = [
  { name: "p50", color: "--main", value: ({ p50 }) => p50 },
  { name: "p95", color: "--warn", value: ({ p95 }) => p95 }
]
const numbers: ReadonlyArray<Line> = [
  { name: "waiting", color: "--main", value: ({ depth }) => depth },
  { name: "running", color: "--good", value: ({ running }) => running }
]

export const Charts = ({ points, theme }: { readonly points: ReadonlyArray<Point>; readonly theme: string }) => (
  <div class="charts">
    <Chart title="Requests / s" lines={throughput} points={points} format={format.rate} theme={theme} />
    <Chart title="Wait" lines={waits} points={points} format={format.duration} theme={theme} />
    <Chart title="Requests" lines={numbers} points={points} format={format.count} theme={theme} />
  </div>
)
