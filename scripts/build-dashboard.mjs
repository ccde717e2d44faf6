// Builds the dashboard's page (dashboard/) into one module that holds its files as text, which the library serves without
// a file system: src/internal/dashboard/assets.ts. It is not committed; `npm install` and `npm test` build it.
import fs from "node:fs"
import { build } from "vite"

const out = "src/internal/dashboard/assets.ts"

const { output } = [
  await build({
    root: "dashboard",
    configFile: false,
    logLevel: "warn",
    publicDir: false,
    build: {
      write: false,
      target: "es2023",
      cssTarget: "es2023",
      modulePreload: false,
      reportCompressedSize: false,
      rolldownOptions: {
        input: "dashboard/main.tsx",
        output: { entryFileNames: "main.js", assetFileNames: "style[extname]" }
      }
    }
  })
].flat()[0]

const textOf = (name) => {
  const file = output.find(({ fileName }) => fileName === name)
  if (file === undefined) throw new Error(`the build has no ${name}: ${output.map(({ fileName }) => fileName)}`)
  return file.type === "chunk" ? file.code : String(file.source)
}

const license = (name) => fs.readFileSync(`node_modules/${name}/LICENSE`, "utf8").trim().replaceAll("*/", "* /")
const notice = `/*! This file contains preact and uPlot.\n\npreact: ${license("preact")}\n\nuPlot: ${
  license("uplot")
} */\n`

const assets = {
  html: fs.readFileSync("dashboard/index.html", "utf8"),
  icon: fs.readFileSync("dashboard/icon.svg", "utf8"),
  script: notice + textOf("main.js"),
  style: textOf("style.css")
}

fs.mkdirSync("src/internal/dashboard", { recursive: true })
fs.writeFileSync(
  out,
  `// Built by scripts/build-dashboard.mjs.\n${
    Object.entries(assets).map(([name, text]) => `export const ${name}: string = ${JSON.stringify(text)}\n`).join("")
  }`
)
console.log(
  `${out}: ${Object.entries(assets).map(([name, text]) => `${name} ${(text.length / 1024).toFixed(1)} KiB`).join(", ")}`
)
