import * as QueueError from "../QueueError.ts"
import type { AnyRequest } from "./entry.ts"
import type { RequestContext } from "./requestContext.ts"
import * as settings from "./settings.ts"

/** What a request asks for itself, by its own fields, its region's or the model's. Milliseconds; `Infinity` for none. */
export interface Asked {
  readonly tenant: string | undefined
  readonly headStart: number
  readonly timeout: number
  /** Whether that is until its deadline, which may be over. */
  readonly hasDeadline: boolean
  readonly processingTimeout: number
}

const number = (problems: Array<string>, name: string, value: number | string): number => {
  if (typeof value === "number") return value
  problems.push(`${name}: ${value}`)
  return 0
}

const check = (problems: Array<string>, name: string, problem: string | undefined): void => {
  if (problem !== undefined) problems.push(`${name}: ${problem}`)
}

/** Reads what a request asks, with the context that it is in. What is wrong with it is added to `problems`. */
export const ask = (
  config: settings.Settings,
  { id, params, processingTimeout, timeout, whenUnavailable }: AnyRequest,
  { deadline, labels, priority, tenant }: RequestContext,
  wall: number,
  problems: Array<string>
): Asked => {
  check(problems, "id", settings.checkId(id))
  const left = deadline === undefined
    ? Number.POSITIVE_INFINITY
    : number(problems, "deadline", settings.instant(deadline)) - wall
  const most = timeout === undefined ? config.timeout : number(problems, "timeout", settings.timeout(timeout))
  const headStart = priority === undefined
    ? config.headStart
    : number(problems, "priority", settings.headStart(priority))
  if (tenant !== undefined) check(problems, "tenant", settings.checkId(tenant))
  if (whenUnavailable !== undefined && whenUnavailable !== "wait" && whenUnavailable !== "fail") {
    problems.push(`whenUnavailable: expected "wait" or "fail", got ${settings.show(whenUnavailable)}`)
  }
  if (labels !== undefined) check(problems, "labels", settings.checkLabels(labels))
  const asked = {
    tenant,
    headStart,
    timeout: Math.min(most, left),
    hasDeadline: left < most,
    processingTimeout: processingTimeout === undefined
      ? config.processingTimeout
      : number(problems, "processingTimeout", settings.timeout(processingTimeout))
  }
  for (const problem of config.checkParams(params)) problems.push(problem)
  return asked
}

/** Why a request is not accepted whose deadline is over. */
export const overdue = (
  modelId: string,
  requestId: string,
  { hasDeadline, timeout }: Asked
): QueueError.QueueTimeout | undefined =>
  hasDeadline && timeout <= 0
    ? new QueueError.QueueTimeout({
      modelId,
      requestId,
      limit: "deadline",
      timeoutMillis: timeout,
      queueTimeMillis: 0,
      processingTimeMillis: 0
    })
    : undefined
