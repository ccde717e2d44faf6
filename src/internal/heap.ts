/** A place in a heap. Keep it to remove the value before its turn. */
export interface Node<A> {
  key: number
  sequence: number
  readonly value: A
  /** Position in the heap; −1 once it has left. */
  index: number
}

const before = (a: Node<unknown>, b: Node<unknown>) => a.key < b.key || (a.key === b.key && a.sequence < b.sequence)

/** A binary heap by key, first in first out among equal keys, with removal from the middle in O(log n). */
export class Heap<A> {
  private readonly nodes: Array<Node<A>> = []
  private sequence = 0

  /** Back in its old place among equal keys with the sequence that it had. */
  add(key: number, value: A, sequence = this.sequence++): Node<A> {
    const node: Node<A> = { key, sequence, value, index: this.nodes.length }
    this.nodes.push(node)
    this.up(node)
    return node
  }

  /** Moves a value to another place. */
  update(node: Node<A>, key: number, sequence: number): void {
    if (node.key === key && node.sequence === sequence) return
    node.key = key
    node.sequence = sequence
    this.up(node)
    this.down(node)
  }

  get size(): number {
    return this.nodes.length
  }

  peek(): Node<A> | undefined {
    return this.nodes[0]
  }

  /** In no order. */
  values(): ReadonlyArray<A> {
    return this.nodes.map(({ value }) => value)
  }

  /** The first ones, in order, without taking them out: O(count²) or better, whatever else there is. */
  first(count: number): ReadonlyArray<Node<A>> {
    const { nodes } = this
    const found: Array<Node<A>> = []
    const frontier = nodes.length === 0 ? [] : [nodes[0]!]
    while (found.length < count && frontier.length > 0) {
      let least = 0
      for (let i = 1; i < frontier.length; i++) if (before(frontier[i]!, frontier[least]!)) least = i
      const node = frontier[least]!
      frontier[least] = frontier.at(-1)!
      frontier.pop()
      found.push(node)
      for (const child of [2 * node.index + 1, 2 * node.index + 2]) {
        if (child < nodes.length) frontier.push(nodes[child]!)
      }
    }
    return found
  }

  remove(node: Node<A>): void {
    const { index } = node
    if (index < 0) return
    node.index = -1
    const last = this.nodes.pop()!
    if (last === node) return
    this.nodes[index] = last
    last.index = index
    this.up(last)
    this.down(last)
  }

  private up(node: Node<A>): void {
    let index = node.index
    while (index > 0) {
      const parent = this.nodes[(index - 1) >> 1]!
      if (!before(node, parent)) break
      this.nodes[index] = parent
      parent.index = index
      index = (index - 1) >> 1
    }
    this.nodes[index] = node
    node.index = index
  }

  private down(node: Node<A>): void {
    const { nodes } = this
    let index = node.index
    while (true) {
      let child = 2 * index + 1
      if (child >= nodes.length) break
      if (child + 1 < nodes.length && before(nodes[child + 1]!, nodes[child]!)) child++
      if (!before(nodes[child]!, node)) break
      nodes[index] = nodes[child]!
      nodes[index]!.index = index
      index = child
    }
    nodes[index] = node
    node.index = index
  }
}
