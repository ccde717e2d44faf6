/** What a request is charged, when, and what is corrected. Pure functions of the rules of a model. */
import type { Charge, Charging, Dimension } from "../ProviderSimulator.ts"

export interface Rules {
  readonly charge: Charging
  readonly refund: boolean
  readonly outputWeight: number
  readonly cacheReadCounts: boolean
  /** Dollars for a million tokens. */
  readonly price: { readonly input: number; readonly output: number }
  readonly onAbort?: "stop" | "continue" | undefined
  readonly abortCharge?: "full" | "produced" | undefined
}

/** What is known of a request when it arrives. `maxOutput` is what it may produce in all, `n` answers together. */
export interface Ask {
  readonly input: number
  readonly maxOutput: number
  readonly characters?: number | undefined
}

/** What is known when it has been served. `cached` of the `input` tokens came from a cache. */
export interface Usage {
  readonly input: number
  readonly cached: number
  readonly output: number
}

export const nothing: Charge = { requests: 0, tokens: 0, input: 0, output: 0, concurrent: 0, spend: 0 }

export const admission = (rules: Rules, { characters = 0, input, maxOutput }: Ask): Charge => {
  const whole = { requests: 1, input, output: 0, tokens: input, concurrent: 1, spend: 0 }
  switch (rules.charge) {
    case "reserve":
      return { ...whole, output: maxOutput, tokens: input + maxOutput }
    case "openai":
      return { ...whole, output: maxOutput, tokens: Math.max(maxOutput, Math.ceil(characters / 4)) }
    case "actual":
      return { ...whole, input: 0, tokens: 0 }
    case "anthropic":
    case "input":
      return whole
  }
}

/** What has to fit at admission; 0 when only something must be left, `undefined` when it does not matter. */
export const needs = (rules: Rules, charge: Charge, dimension: Dimension): number | undefined => {
  if (dimension === "spend") return 0
  if (rules.charge === "actual" && (dimension === "tokens" || dimension === "input" || dimension === "output")) return 0
  if (rules.charge === "anthropic" && dimension === "output") return 0
  return charge[dimension] > 0 ? charge[dimension] : undefined
}

/** Whether output is charged while it is produced. */
export const isLive = (rules: Rules): boolean => rules.charge === "anthropic"

const countedInput = (rules: Rules, { cached, input }: Usage): number => rules.cacheReadCounts ? input : input - cached

/** To what the admission charge is rewritten: for `anthropic` at the first byte, else at the end. */
export const settled = (rules: Rules, charge: Charge, usage: Usage): Charge => {
  const input = countedInput(rules, usage)
  const output = usage.output * rules.outputWeight
  switch (rules.charge) {
    case "reserve":
      return rules.refund ? { ...charge, input, output, tokens: input + output } : charge
    case "openai":
      return rules.refund
        ? { ...charge, input, output, tokens: Math.min(charge.tokens, input + output) }
        : charge
    case "anthropic":
    case "input":
      return { ...charge, input, tokens: input }
    case "actual":
      return charge
  }
}

/** What is charged for `output` tokens as they are produced, apart from the admission charge. */
export const produced = (rules: Rules, output: number): Charge =>
  isLive(rules) ? { ...nothing, output: output * rules.outputWeight, tokens: output * rules.outputWeight } : nothing

/** What is charged at the end, apart from the admission charge. */
export const late = (rules: Rules, usage: Usage): Charge => {
  const spend = (usage.input * rules.price.input + usage.output * rules.price.output) / 1e6
  if (rules.charge !== "actual") return spend === 0 ? nothing : { ...nothing, spend }
  const input = countedInput(rules, usage)
  const output = usage.output * rules.outputWeight
  return { ...nothing, input, output, tokens: input + output, spend }
}
