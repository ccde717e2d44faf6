import type { RateLimiter } from "effect-llm-queue"

/** A limit as a limiter gets it: of one second unless it says otherwise, and with every default. */
export const limit = (
  type: RateLimiter.Type,
  limit: number,
  options?: Partial<Omit<RateLimiter.Limit, "charging">> & { readonly charging?: RateLimiter.Charging }
): RateLimiter.Limit => ({
  type,
  limit,
  timePeriod: type === "concurrent" ? undefined : 1000,
  margin: 0,
  chargedAt: "dispatch",
  algorithm: "slidingWindow",
  burst: undefined,
  headroom: 0,
  quantum: undefined,
  timeZone: "UTC",
  coldStart: false,
  price: undefined,
  onExceeded: "wait",
  ...options,
  charging: {
    output: options?.charging?.output ?? "expected",
    combine: options?.charging?.combine ?? "sum",
    inputWeight: options?.charging?.inputWeight ?? 1,
    outputWeight: options?.charging?.outputWeight ?? 1,
    refund: options?.charging?.refund ?? true,
    cachedInput: options?.charging?.cachedInput ?? true,
    refused: options?.charging?.refused ?? false
  }
})
