import { assert, describe, it } from "@effect/vitest"
import { Clock, Deferred, Effect, Exit, Fiber } from "effect"
import { Stuck, VirtualRuntime } from "./runtime.ts"

const run = <A>(effect: Effect.Effect<A>, runtime = new VirtualRuntime(), clock = runtime.clock()) => {
  const exit = runtime.run(effect, { clock, seed: 1 })
  assert.isTrue(Exit.isSuccess(exit))
  return Exit.isSuccess(exit) ? exit.value : assert.fail()
}

describe("the virtual runtime", () => {
  it("wakes sleepers in the order of their times, at their times", () => {
    const runtime = new VirtualRuntime()
    const woken: Array<readonly [number, number]> = []
    run(
      Effect.forEach(
        [300, 100, 200, 100.5],
        (millis) => Effect.andThen(Effect.sleep(millis), Effect.sync(() => woken.push([millis, runtime.now()]))),
        { concurrency: "unbounded", discard: true }
      ),
      runtime
    )
    assert.deepStrictEqual(woken, [[100, 100], [100.5, 100.5], [200, 200], [300, 300]])
  })

  it("says when nothing can ever happen", () => {
    assert.throws(
      () => run(Effect.andThen(Effect.sleep(5), Effect.flatMap(Deferred.make<void>(), Deferred.await))),
      Stuck
    )
  })

  it("says when something goes round and round", () => {
    assert.throws(() => run(Effect.forever(Effect.yieldNow)), Stuck)
  })

  it("does not wait for a sleeper that was interrupted", () => {
    const runtime = new VirtualRuntime()
    run(
      Effect.gen(function*() {
        const fiber = yield* Effect.forkChild(Effect.sleep("1 hour"))
        yield* Effect.sleep(1)
        yield* Fiber.interrupt(fiber)
      }),
      runtime
    )
    assert.strictEqual(runtime.now(), 1)
  })

  it("keeps clocks that drift and are set", () => {
    const runtime = new VirtualRuntime()
    const fast = runtime.clock({ wall: 1000, drift: 100_000 })
    run(
      Effect.gen(function*() {
        yield* Effect.sleep(1100)
        assert.strictEqual(runtime.now(), 1000)
        assert.strictEqual(yield* Clock.currentTimeMillis, 2100)
        fast.shift(-500)
        assert.strictEqual(yield* Clock.currentTimeMillis, 1600)
        assert.strictEqual(yield* Clock.monotonicTimeNanos, 1_100_000_000n)
      }),
      runtime,
      fast
    )
  })
})
