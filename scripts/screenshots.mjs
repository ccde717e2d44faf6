// Takes the pictures of docs/dashboard.md: the dashboard of examples/dashboard.ts after some time, in Chromium.
import { spawn } from "node:child_process"
import process from "node:process"
import { setTimeout } from "node:timers/promises"
import { chromium } from "playwright-core"

const seconds = Number(process.argv[2] ?? 60)

const child = spawn(process.execPath, ["-C", "llmq-source", "examples/dashboard.ts", "--stay"], { stdio: "inherit" })
await setTimeout(2000)
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-background-networking"]
})

const open = async (options, hash) => {
  const page = await browser.newPage(options)
  await page.goto(`http://127.0.0.1:4100/llm-queue/dashboard${hash}`)
  await page.getByLabel("Bearer token of the API").fill("secret")
  await page.getByRole("button", { name: "Sign in" }).click()
  return page
}

try {
  const pages = {
    light: await open({ viewport: { width: 1200, height: 820 }, colorScheme: "light" }, ""),
    dark: await open({ viewport: { width: 1200, height: 820 }, colorScheme: "dark" }, "#/model/gpt-4"),
    phone: await open({ viewport: { width: 390, height: 844 }, colorScheme: "light" }, "#/model/claude")
  }
  await setTimeout(seconds * 1000)
  for (const [name, page] of Object.entries(pages)) {
    await page.screenshot({ path: `docs/images/dashboard-${name}.png` })
  }
} finally {
  await browser.close()
  child.kill("SIGINT")
}
