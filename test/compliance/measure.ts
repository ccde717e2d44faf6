/** What the provider's ledger says of one limit. */

export interface Charged {
  /** Milliseconds, in order. */
  readonly at: number
  readonly amount: number
}

/**
 * The share of a limit that was used in `(from, to]`.
 *
 * Charges come in bursts of a whole limit where windows are slid or fixed, so what is counted between two given
 * instants depends on how the bursts fall. Therefore whole limits are timed: how long after each charge of the first
 * limit's worth the one came that many limits later, on the average. A client that stops is caught by the plain count,
 * which can be short of the truth by one limit at each end, and by the silence at the end.
 */
export const utilisation = (
  charges: ReadonlyArray<Charged>,
  { from, limit, period, to }: {
    readonly limit: number
    readonly period: number
    readonly from: number
    readonly to: number
  }
): number => {
  const taken = charges.filter(({ amount, at }) => at > from && at <= to && amount > 0)
  const total = taken.reduce((sum, { amount }) => sum + amount, 0)
  const plain = total / limit * period / (to - from)
  const limits = Math.floor(total / limit) - 1
  if (limits < 1) return plain
  // The average over the amount, so that a charge counts for what it is.
  let later = 0
  let sumLater = taken[0]!.amount
  let sum = 0
  let elapsed = 0
  for (const { amount, at } of taken) {
    const part = Math.min(amount, limit - sum)
    if (part <= 0) break
    sum += part
    while (sumLater < sum + limits * limit && later < taken.length - 1) sumLater += taken[++later]!.amount
    elapsed += part * (taken[later]!.at - at)
  }
  const timed = limits * period / (elapsed / sum)
  // The next burst of a whole limit comes a period and the jitter after the last one, which is a third of it at most.
  const hasStopped = to - taken.at(-1)!.at > 1.4 * period
  return hasStopped ? plain : Math.min(timed, plain + 2 * period / (to - from))
}
