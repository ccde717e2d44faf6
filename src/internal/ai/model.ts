/** Which model of which provider a service of `effect/ai` is. */
import * as Model from "effect/ai/Model"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as ProviderProfile from "../../ProviderProfile.ts"
import * as QueueError from "../../QueueError.ts"

/** The names that the packages of Effect give to providers. */
const profiles: Readonly<Record<string, ProviderProfile.ProviderProfile>> = {
  openai: ProviderProfile.openai,
  azure: ProviderProfile.azure,
  "azure-openai": ProviderProfile.azure,
  anthropic: ProviderProfile.anthropic,
  google: ProviderProfile.gemini,
  gemini: ProviderProfile.gemini,
  groq: ProviderProfile.groq,
  mistral: ProviderProfile.mistral,
  bedrock: ProviderProfile.bedrock,
  "amazon-bedrock": ProviderProfile.bedrock,
  deepseek: ProviderProfile.deepseek,
  openrouter: ProviderProfile.openrouter,
  together: ProviderProfile.together,
  togetherai: ProviderProfile.together
}

const profileOf = (name: string): ProviderProfile.ProviderProfile | undefined => {
  const key = name.toLowerCase()
  return Object.hasOwn(profiles, key) ? profiles[key] : undefined
}

/** The id and the provider of a model: those that are given, or those that it says itself. */
export const resolve = Effect.fnUntraced(function*(
  given: {
    readonly modelId?: string | undefined
    readonly provider?: ProviderProfile.ProviderProfile | undefined
  }
) {
  const modelId = given.modelId ?? Option.getOrUndefined(yield* Effect.serviceOption(Model.ModelName))
  if (modelId === undefined) {
    return yield* new QueueError.InvalidConfiguration({
      modelId: "",
      problems: ["modelId: expected an id, as there is no Model.ModelName to take it from"]
    })
  }
  const providerName = Option.getOrUndefined(yield* Effect.serviceOption(Model.ProviderName))
  const provider = "provider" in given || providerName === undefined ? given.provider : profileOf(providerName)
  return { modelId, provider }
})
