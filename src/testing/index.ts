export * as ProviderSimulator from "./ProviderSimulator.ts"
