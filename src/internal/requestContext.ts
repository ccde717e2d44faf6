import * as Context from "effect/Context"
import type * as DateTime from "effect/DateTime"
import type * as ModelConfig from "../ModelConfig.ts"
import * as settings from "./settings.ts"

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

/** What a request has in common with what its processor submits. */
export const given = ({ deadline, labels, priority, tenant }: RequestContext): RequestContext =>
  priority === undefined && tenant === undefined && labels === undefined && deadline === undefined
    ? none
    : { priority, tenant, deadline, labels }

/** What a request has in common with others of its region, its own words before those of the region. */
export const within = (inherited: RequestContext, request: RequestContext): RequestContext => {
  const { deadline, labels, priority, tenant } = request
  return {
    priority: priority ?? inherited.priority,
    tenant: tenant ?? inherited.tenant,
    deadline: deadline === undefined ? inherited.deadline : settings.earlier(inherited.deadline, deadline),
    // What is no object of strings is named as it is.
    labels: typeof labels === "object" && labels !== null && !Array.isArray(labels)
      ? { ...inherited.labels, ...labels }
      : labels ?? inherited.labels
  }
}
