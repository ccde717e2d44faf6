/** What is wrong with a profile: it may be anything at run time, and its rules are read at the end of every request. */
import * as Cause from "effect/Cause"
import * as Exit from "effect/Exit"
import * as Schema from "effect/Schema"
import * as SchemaIssue from "effect/SchemaIssue"
import * as SchemaParser from "effect/SchemaParser"
import type * as ProviderProfile from "../../ProviderProfile.ts"
import type * as RateLimiter from "../../RateLimiter.ts"

type Codec<T> = Schema.Codec<T, unknown>

const text = Schema.optional(Schema.String)
const texts = Schema.optional(Schema.Array(Schema.String))
const numbers = Schema.optional(Schema.Array(Schema.Finite))

const types: Codec<ReadonlyArray<RateLimiter.Type>> = Schema.Array(
  Schema.Literals(["rpm", "rpd", "tpm", "tpd", "itpm", "otpm", "concurrent", "budget"])
)

const timeFormat: Codec<ProviderProfile.TimeFormat> = Schema.Literals([
  "duration",
  "seconds",
  "millis",
  "instant",
  "any"
])

const kind: Codec<RateLimiter.RefusalKind> = Schema.Literals([
  "rate",
  "ramp",
  "overload",
  "transient",
  "quota",
  "tooLarge",
  "auth"
])

const headerRule: Codec<ProviderProfile.HeaderRule> = Schema.Struct({
  types,
  limit: text,
  remaining: text,
  reset: text,
  asOf: Schema.optional(Schema.Literals(["arrival", "response"])),
  resetFormat: Schema.optional(timeFormat),
  rounding: Schema.optional(Schema.Finite.check(Schema.isGreaterThan(0))),
  unset: numbers,
  zeroLimit: Schema.optional(Schema.Literals(["ignored", "notAllowed"]))
})

const retryAfterRule: Codec<ProviderProfile.RetryAfterRule> = Schema.Struct({
  header: Schema.String,
  format: timeFormat
})

const errorRule: Codec<ProviderProfile.ErrorRule> = Schema.Struct({
  status: numbers,
  codes: texts,
  messages: texts,
  headers: Schema.optional(Schema.Record(Schema.String, Schema.Union([Schema.String, Schema.Literal(true)]))),
  kind,
  types: Schema.optional(types)
})

const limitName: Codec<ProviderProfile.LimitName> = Schema.Struct({
  includes: texts,
  codes: texts,
  types,
  ignoresHint: Schema.optional(Schema.Boolean)
})

/** They are checked where they are used. */
const fields = Schema.Record(Schema.String, Schema.Unknown)

const decode = SchemaParser.decodeUnknownExit(
  Schema.Struct({
    name: Schema.String,
    limits: Schema.Record(Schema.String, Schema.UndefinedOr(Schema.Struct({ charging: Schema.optional(fields) }))),
    estimation: Schema.optional(fields),
    headers: Schema.Array(headerRule),
    retryAfter: Schema.Array(retryAfterRule),
    errors: Schema.Array(errorRule),
    limitNames: Schema.Array(limitName)
  }),
  { errors: "all", reportInput: true }
)

const format = SchemaIssue.makeFormatterStandardSchemaV1()

/** Throws what a getter of the profile throws. */
export const checkProfile = (profile: unknown): ReadonlyArray<string> => {
  const exit = decode(profile)
  if (Exit.isSuccess(exit)) return []
  const issue = Cause.squash(exit.cause)
  if (!SchemaIssue.isIssue(issue)) throw issue
  return format(issue).issues.map(({ message, path }) => {
    const keys = (path ?? []).map((part) => typeof part === "object" ? part.key : part)
    const at = keys.map((key) => typeof key === "number" ? `[${key}]` : `.${String(key)}`).join("")
    return `provider${at}: ${message.slice(0, 1).toLowerCase()}${message.slice(1, 200)}`
  })
}
