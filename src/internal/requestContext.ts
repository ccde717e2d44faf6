import * as Context from "effect/Context"
import type * as DateTime from "effect/DateTime"
import type * as ModelConfig from "../ModelConfig.ts"

/** What the requests of a region of a program have in common. */
export interface RequestContext {
  readonly priority?: ModelConfig.Priority | undefined
  readonly tenant?: string | undefined
  readonly deadline?: DateTime.DateTime.Input | undefined
  readonly labels?: Readonly<Record<string, string>> | undefined
}

export const none: RequestContext = {}

export const CurrentRequestContext = Context.Reference<RequestContext>("effect-llm-queue/CurrentRequestContext", {
  defaultValue: () => none
})
