/** Things that are to happen at an instant, the earliest first and those of one instant in the order they were set. */
interface Timer {
  readonly at: number
  readonly order: number
  readonly run: () => void
}

const isBefore = (a: Timer, b: Timer): boolean => a.at < b.at || (a.at === b.at && a.order < b.order)

export const make = () => {
  const heap: Array<Timer> = []
  let order = 0

  return {
    set: (at: number, run: () => void): void => {
      const timer = { at, order: order++, run }
      let index = heap.length
      heap.push(timer)
      while (index > 0) {
        const above = (index - 1) >> 1
        const parent = heap[above]
        if (parent === undefined || !isBefore(timer, parent)) break
        heap[index] = parent
        index = above
      }
      heap[index] = timer
    },
    /** The next one, if it is due by `clock`. */
    takeDue: (clock: number): Timer | undefined => {
      const first = heap[0]
      if (first === undefined || first.at > clock) return undefined
      const last = heap.pop()
      if (last === undefined || last === first) return first
      let index = 0
      for (;;) {
        const left = heap[2 * index + 1]
        const right = heap[2 * index + 2]
        if (left === undefined) break
        const isRight = right !== undefined && isBefore(right, left)
        const child = isRight ? right : left
        if (!isBefore(child, last)) break
        heap[index] = child
        index = 2 * index + (isRight ? 2 : 1)
      }
      heap[index] = last
      return first
    },
    clear: (): void => void (heap.length = 0)
  }
}
