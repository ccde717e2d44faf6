import { defineConfig } from "vitest/config"

export default defineConfig({
  // Tests import the package by its own name and get the source, not the build.
  ssr: { resolve: { conditions: ["llmq-source"] } },
  test: {
    include: ["test/**/*.test.ts"],
    sequence: { concurrent: true },
    coverage: {
      provider: "v8",
      include: ["src/**/*.ts"],
      exclude: ["src/index.ts", "src/testing/index.ts"],
      reporter: ["text"],
      thresholds: { lines: 90 }
    }
  }
})
