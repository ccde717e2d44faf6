/**
 * Budgets under random costs, usages, concurrency and failures: every dispatch fits what is left by brute force over all
 * that was sent, so that what is spent goes over by no more than the running requests cost beyond their reservations.
 * Replayed as `neverOver.test.ts`, by `SEED`.
 */
import { assert, describe, it } from "@effect/vitest"
import { Clock, Context, Effect, Exit, Layer, Scope } from "effect"
import { ModelConfig, QueueManager, RateLimiter } from "effect-llm-queue"
import { TestClock } from "effect/testing"
import { errorOf, tagOf } from "../model/request.ts"
import { random } from "./schedule.ts"

const given = process.env["SEED"]
const first = given === undefined ? Math.floor(Math.random() * 1e9) : Number(given)
const runs = Number(process.env["RUNS"] ?? (given === undefined ? 400 : 1))

interface Spent {
  readonly at: number
  readonly reserved: number
  net: number
  running: boolean
}

describe("a budget", () => {
  it.effect(
    "is never exceeded by more than what the running requests cost beyond their reservations",
    () =>
      Effect.gen(function*() {
        const ends = new Map<unknown, number>()
        for (let seed = first; seed < first + runs; seed++) {
          const { between, chance, pick } = random(seed)
          const zero = Math.ceil((yield* Clock.currentTimeMillis) / 86_400_000) * 86_400_000
          yield* TestClock.setTime(zero)
          const clock = yield* Clock.Clock
          const now = () => clock.currentTimeMillisUnsafe()
          const scope = yield* Scope.make()
          const manager = Context.get(
            yield* Layer.buildWithScope(QueueManager.layer, scope),
            QueueManager.QueueManager
          )
          const price = { input: between(0, 5), output: between(1, 20), cachedInput: pick([undefined, 0, 1]) }
          const priceOf = (inputTokens: number, outputTokens: number, cachedInputTokens = 0) =>
            ((inputTokens - cachedInputTokens) * price.input + outputTokens * price.output
              + cachedInputTokens * (price.cachedInput ?? price.input)) / 1e6
          let budget = between(1, 40) / 1000
          const period = pick([1000, 5000, Number.POSITIVE_INFINITY])
          const isFixed = Number.isFinite(period) && chance(0.3)
          const onExceeded = pick(["fail", "fail", "wait"] as const)
          const concurrent = pick([undefined, 1, 2, 4])
          const isTenants = chance(0.2)
          const limits = () => [
            RateLimiter.budget(budget, {
              price,
              timePeriod: period,
              onExceeded,
              algorithm: isFixed ? "fixedWindow" : "slidingWindow"
            }),
            ...(concurrent === undefined ? [] : [RateLimiter.concurrent(concurrent)])
          ]
          const model = ModelConfig.makeUntyped<number, ModelConfig.Usage, string>("model", {
            ...(isTenants
              ? { rateLimiters: [RateLimiter.rpm(1_000_000)], tenants: { others: { rateLimiters: limits() } } }
              : { rateLimiters: limits() }),
            usage: (usage) => usage,
            shutdown: { policy: "interrupt" }
          })
          const spent: Array<Spent> = []
          const counts = ({ at }: Spent) =>
            isFixed
              ? Math.floor(at / period) === Math.floor(now() / period)
              : at + period > now()
          const sum = () => spent.filter(counts).reduce((total, { net }) => total + net, 0)
          /** Nobody hears what fails in the fiber of a processor. */
          const problems: Array<string> = []
          const fail = (what: string) => problems.push(`SEED=${seed}: ${what} at ${now() - zero}, budget ${budget}`)
          /** What may be spent beyond the budget. */
          let debt = 0
          const check = () => {
            if (sum() > budget + debt + 1e-9) fail(`${sum()} is spent, and ${debt} may be beyond the budget`)
          }
          const plans = Array.from({ length: 30 }, () => ({
            input: between(0, 800),
            output: between(0, 800),
            takes: between(0, 800),
            end: pick(["succeed", "succeed", "succeed", "fail", "die", "interrupt"]),
            usage: { inputTokens: between(0, 1200), outputTokens: between(0, 900), cachedInputTokens: 0 }
          }))
          for (const { usage } of plans) if (chance(0.3)) usage.cachedInputTokens = between(0, usage.inputTokens)
          yield* Scope.provide(scope)(manager.registerQueue(model, ({ params }) => {
            const plan = plans[params]!
            const reserved = priceOf(plan.input, plan.output)
            if (sum() + reserved > budget + 1e-9) fail(`${params} is sent with ${sum()} + ${reserved}`)
            debt = 0
            const mine: Spent = { at: now(), reserved, net: reserved, running: true }
            spent.push(mine)
            return Effect.sleep(plan.takes).pipe(
              Effect.andThen(Effect.suspend(() => {
                if (plan.end === "die") return Effect.die("broken")
                if (plan.end === "interrupt") return Effect.interrupt
                if (plan.end === "fail") return Effect.fail("failed")
                const { cachedInputTokens, inputTokens, outputTokens } = plan.usage
                mine.net = priceOf(inputTokens, outputTokens, cachedInputTokens)
                debt += Math.max(0, mine.net - mine.reserved)
                check()
                return Effect.succeed(plan.usage)
              })),
              Effect.ensuring(Effect.sync(() => {
                mine.running = false
              }))
            )
          })).pipe(Effect.orDie)
          for (const [index, plan] of plans.entries()) {
            const cost = priceOf(plan.input, plan.output)
            const submission = manager.submit(model, index, {
              estimatedInputTokens: plan.input,
              estimatedOutputTokens: plan.output,
              ...(chance(0.1) ? { timeout: between(1, 3000) } : {})
            })
            yield* Effect.forkDetach(
              Effect.onExit(submission, (exit) =>
                Effect.sync(() => {
                  const tag = tagOf(errorOf(exit))
                  ends.set(tag, (ends.get(tag) ?? 0) + 1)
                  if (tag === "RequestTooLarge" && cost <= budget) fail(`${index} is not too large`)
                  if (tag !== "BudgetExceeded") return
                  if (onExceeded === "wait") fail(`${index} fails and should wait`)
                  if (sum() + cost <= budget - 1e-9) fail(`${index} fails with ${sum()} + ${cost}`)
                })),
              { startImmediately: true }
            )
            if (!isTenants && chance(0.05)) {
              const before = budget
              budget = between(1, 40) / 1000
              debt += Math.max(0, before - budget) + Math.max(0, sum() - budget)
              yield* manager.updateRateLimiters(model, limits())
            }
            if (chance(0.6)) yield* TestClock.adjust(between(0, 900))
            for (let turn = 0; turn < 8; turn++) yield* Effect.yieldNow
            check()
            const { depth } = yield* manager.getQueueInfo(model)
            const running = spent.filter(({ running }) => running).length
            if (onExceeded === "fail" && depth > 0 && running < (concurrent ?? 1e9)) fail(`${depth} wait for nothing`)
            assert.deepStrictEqual(problems, [])
          }
          yield* TestClock.adjust(60_000)
          assert.deepStrictEqual(problems, [])
          yield* Scope.close(scope, Exit.void)
        }
        for (const end of [undefined, "BudgetExceeded", "RequestTooLarge", "failed"]) {
          assert.isAbove(ends.get(end) ?? 0, 0, String(end))
        }
      }),
    120_000
  )
})
