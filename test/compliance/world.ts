/**
 * A client, a network and a provider on one virtual time. The client is the library as a user has it: a manager, a model
 * with limits and a profile, and a processor that sends and reads headers. The provider counts by its own books.
 */
import { Cause, Clock, Effect, Exit, Fiber, Latch, Layer, Logger, Scope } from "effect"
import { ModelConfig, ProviderProfile, QueueManager, QueueRequest, type RateLimiter } from "effect-llm-queue"
import { random } from "../schedules/seededScheduler.ts"
import * as network from "./network.ts"
import { VirtualRuntime } from "./runtime.ts"
import * as server from "./server.ts"

/** What is asked: sizes drawn evenly from these ranges. */
export interface Load {
  readonly input: readonly [least: number, most: number]
  readonly output: readonly [least: number, most: number]
  readonly maxOutput: number
}

export interface Plan {
  readonly server: server.Options
  readonly client: {
    readonly limits: ReadonlyArray<RateLimiter.Config>
    readonly provider: ProviderProfile.ProviderProfile | undefined
    /** See `runtime.ClockOptions`. */
    readonly drift?: number | undefined
  }
  readonly network: network.Options
  readonly load: Load
  /** Whether headers come with the first byte, or with the whole answer. */
  readonly stream: boolean
  /** Milliseconds of virtual time. */
  readonly duration: number
  /** Wall time at the start. */
  readonly wall: number
  /** How far the provider's wall clock is ahead of the client's. */
  readonly serverSkew?: number | undefined
  /** When the client starts. Default at once. */
  readonly clientStartsAt?: number | undefined
  /** What else happens, from the start on. */
  readonly script?: ((world: World) => Effect.Effect<void>) | undefined
  readonly trace?: ((line: string) => void) | undefined
}

/** One sending of a request, as the network saw it. Milliseconds of true time. */
export interface Attempt {
  readonly requestId: string
  readonly sent: number
  arrived: number
  /** When the headers had reached the client; `Infinity` when they did not. */
  told: number
  /** When the client had the whole of a failure. */
  failed: number
  status: number | undefined
}

/** A request as the provider is asked it. */
interface Ask {
  readonly input: number
  readonly output: number
}

/** What a processor fails with: what any HTTP client makes of an answer that is no success, or of none. */
export type HttpFailure =
  | { readonly status: number; readonly headers: Readonly<Record<string, string>>; readonly body: unknown }
  | { readonly code: "ECONNRESET"; readonly message: string }

const silent = Logger.layer([])

export class World {
  readonly runtime = new VirtualRuntime()
  readonly attempts: Array<Attempt> = []
  readonly plan: Plan
  readonly clientClock
  readonly serverClock
  provider!: server.Server
  private readonly line: network.Network
  private readonly next: () => number
  private readonly open = Latch.makeUnsafe(true)
  private client:
    | { readonly scope: Scope.Closeable; readonly manager: QueueManager.QueueManager["Service"] }
    | undefined
  private asked = 0

  constructor(plan: Plan, seed: number) {
    this.plan = plan
    this.clientClock = this.runtime.clock({ wall: plan.wall, drift: plan.client.drift })
    this.serverClock = this.runtime.clock({ wall: plan.wall + (plan.serverSkew ?? 0) })
    this.line = network.make(plan.network, seed * 7919 + 1)
    this.next = random(seed * 104_729 + 2)
  }

  private range([least, most]: readonly [number, number]): number {
    return Math.floor(least + this.next() * (most - least + 1))
  }

  private readonly process = (request: QueueRequest.QueueRequest<Ask, ModelConfig.Usage, HttpFailure, boolean>) => {
    const { attempts, line, plan, provider, runtime } = this
    const attempt: Attempt = {
      requestId: request.id,
      sent: runtime.now(),
      arrived: Number.POSITIVE_INFINITY,
      told: Number.POSITIVE_INFINITY,
      failed: Number.POSITIVE_INFINITY,
      status: undefined
    }
    attempts.push(attempt)
    return Effect.gen({ self: this }, function*() {
      yield* Effect.sleep(line.up())
      attempt.arrived = runtime.now()
      const head = yield* this.atServer(provider.ask({
        requestId: request.id,
        input: request.params.input,
        output: request.params.output,
        maxOutput: plan.load.maxOutput,
        stream: plan.stream
      }))
      attempt.status = head.status
      yield* Effect.sleep(line.down())
      attempt.told = runtime.now()
      yield* ProviderProfile.observe(head)
      const answer = yield* this.atServer(head.answer)
      if (plan.stream) yield* Effect.sleep(line.down())
      const { usage } = answer
      plan.trace?.(
        `${request.id} sent ${attempt.sent.toFixed(3)} arrived ${attempt.arrived.toFixed(3)} told ${
          attempt.told.toFixed(3)
        } ${head.status} ${JSON.stringify(usage ?? answer.body)} ${JSON.stringify(head.headers)}`
      )
      if (usage === undefined) {
        attempt.failed = runtime.now()
        return yield* Effect.fail<HttpFailure>({ status: head.status, headers: head.headers, body: answer.body })
      }
      return usage
    }).pipe(
      Effect.scoped,
      Effect.catchTag("Disconnected", ({ message }) => {
        attempt.told = runtime.now()
        plan.trace?.(`${request.id} sent ${attempt.sent.toFixed(3)} disconnected: ${message}`)
        return Effect.fail<HttpFailure>({ code: "ECONNRESET", message })
      })
    )
  }

  private atServer<A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> {
    return Effect.provideService(effect, Clock.Clock, this.serverClock)
  }

  /** Starts the client, with nothing remembered. */
  readonly startClient: Effect.Effect<void> = Effect.gen({ self: this }, function*() {
    const { plan } = this
    const scope = yield* Scope.make()
    const services = yield* Layer.buildWithScope(QueueManager.layer, scope)
    const manager = yield* Effect.provide(QueueManager.QueueManager, services)
    const model = ModelConfig.makeUntyped<Ask, ModelConfig.Usage, HttpFailure>(server.model, {
      rateLimiters: plan.client.limits,
      ...(plan.client.provider === undefined ? {} : { provider: plan.client.provider }),
      usage: (usage) => usage,
      capacity: 16,
      retention: { count: 0 },
      shutdown: { policy: "interrupt" }
    })
    yield* Scope.provide(manager.registerQueue(model, this.process), scope)
    const submitOne = Effect.suspend(() => {
      const ask: Ask = { input: this.range(plan.load.input), output: this.range(plan.load.output) }
      return manager.submitRequest(QueueRequest.make(model, {
        id: `r${++this.asked}`,
        params: ask,
        waitForCompletion: false,
        estimatedInputTokens: ask.input,
        maxOutputTokens: plan.load.maxOutput
      }))
    })
    yield* Effect.forkIn(
      Effect.forever(Effect.andThen(this.open.await, submitOne)).pipe(
        // Nothing can be submitted while the quota is exhausted: it is tried again, as a caller would.
        Effect.catch(() => Effect.sleep(1000)),
        Effect.forever
      ),
      scope
    )
    this.client = { scope, manager }
  }).pipe(Effect.orDie)

  /** Ends the client in the midst of what it does, as a process that is killed. */
  readonly stopClient: Effect.Effect<void> = Effect.suspend(() => {
    const { client } = this
    this.client = undefined
    return client === undefined ? Effect.void : Scope.close(client.scope, Exit.void)
  })

  readonly pauseLoad: Effect.Effect<void> = Effect.suspend(() => Effect.asVoid(this.open.close))
  readonly resumeLoad: Effect.Effect<void> = Effect.suspend(() => Effect.asVoid(this.open.open))

  /** What the queue says of itself. */
  readonly info: Effect.Effect<QueueManager.QueueInfo | undefined> = Effect.suspend(() =>
    this.client === undefined
      ? Effect.succeed(undefined)
      : Effect.orDie(this.client.manager.getQueueInfo(server.model))
  )

  /** Lets it all happen. */
  run(seed: number): server.Books {
    const { plan } = this
    const main = Effect.gen({ self: this }, function*() {
      this.provider = yield* this.atServer(server.make(plan.server, seed))
      const { clientStartsAt = 0 } = plan
      const script = plan.script === undefined ? undefined : yield* Effect.forkChild(plan.script(this))
      yield* Effect.sleep(clientStartsAt)
      yield* this.startClient
      yield* Effect.sleep(plan.duration - clientStartsAt)
      const books = yield* this.atServer(this.provider.books)
      if (script !== undefined) yield* Fiber.interrupt(script)
      yield* this.stopClient
      return books
    }).pipe(Effect.provide(silent))
    const exit = this.runtime.run(main, { clock: this.clientClock, seed })
    if (Exit.isFailure(exit)) throw new Error(Cause.pretty(exit.cause))
    return exit.value
  }
}
