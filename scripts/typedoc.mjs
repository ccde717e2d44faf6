// The API reference: `npm run docs` writes it to docs/api.
import { Converter, OptionDefaults, ReflectionKind } from "typedoc"
import ts from "typescript"

/** The comment above a file's imports describes the module, also without an `@module` tag. */
const fileComments = (app) => {
  app.converter.on(Converter.EVENT_CREATE_DECLARATION, (context, reflection) => {
    if (!reflection.kindOf([ReflectionKind.Module, ReflectionKind.Namespace])) return
    if (reflection.comment !== undefined && reflection.comment.summary.length > 0) return
    const file = context.getSymbolFromReflection(reflection)?.declarations?.find(ts.isSourceFile)
    const first = file?.statements[0]
    if (first === undefined || !ts.isImportDeclaration(first)) return
    reflection.comment = context.getNodeComment(first, false) ?? reflection.comment
  })
}

/** @type {import("typedoc").TypeDocOptions} */
export default {
  name: "effect-llm-queue",
  entryPoints: [
    "../src/index.ts",
    "../src/Api.ts",
    "../src/EmbeddingModel.ts",
    "../src/HttpClient.ts",
    "../src/LanguageModel.ts",
    "../src/Metrics.ts",
    "../src/PersistedResults.ts",
    "../src/Prometheus.ts",
    "../src/testing/index.ts",
    "../src/tokenizers/o200kBase.ts",
    "../src/tokenizers/cl100kBase.ts"
  ],
  tsconfig: "../src/tsconfig.json",
  out: "../docs/api",
  plugin: [fileComments],
  readme: "none",
  blockTags: [...OptionDefaults.blockTags, "@stability"],
  categorizeByGroup: false,
  disableSources: true,
  excludeExternals: true,
  excludeInternal: true,
  hideGenerator: true,
  validation: { invalidLink: true, invalidPath: true, notExported: false }
}
