// Completes package-lock.json with the platform packages that npm left out.
//
// Tools with native code (the linter, the formatter, the compiler) list one optional dependency per platform. When
// `npm install` runs against a registry that does not serve the packages of every platform, npm writes a lock file
// without them, and a later `npm ci` refuses it: "Missing: <name> from lock file". This script adds an entry for each
// missing one. The entry carries the exact version, `os` and `cpu`, so that npm installs it only where it fits.
//
// Run `npm run lock` after every `npm install` that changes package-lock.json; running it again changes nothing.
import fs from "node:fs"

const file = "package-lock.json"

// "@scope/tool-linux-x64-gnu" and "@scope/linux-x64" name the operating system, then the processor.
const platform = new RegExp(
  "[-/](?<os>aix|android|darwin|freebsd|linux|netbsd|openbsd|openharmony|sunos|win32)" +
    "-(?<cpu>arm|arm64|ia32|loong64|mips64el|ppc64|riscv64|s390x|x64)(?:-|$)"
)

const lock = JSON.parse(fs.readFileSync(file, "utf8"))

/** Whether `name`, required by the package installed at `location`, has an entry that node would resolve. */
const isLocked = (location, name) => {
  for (let at = location;; at = at.slice(0, Math.max(0, at.lastIndexOf("/node_modules/")))) {
    if (lock.packages[`${at === "" ? "" : `${at}/`}node_modules/${name}`] !== undefined) return true
    if (!at.includes("/node_modules/")) return lock.packages[`node_modules/${name}`] !== undefined
  }
}

const added = []
for (const [location, pkg] of Object.entries(lock.packages)) {
  for (const [name, version] of Object.entries(pkg.optionalDependencies ?? {})) {
    if (isLocked(location, name)) continue
    const match = platform.exec(name)
    if (match === null || !/^\d/.test(version)) {
      console.error(`cannot complete ${name}@${version}, an optional dependency of ${location}`)
      process.exitCode = 1
      continue
    }
    lock.packages[`node_modules/${name}`] = {
      version,
      cpu: [match.groups.cpu],
      ...(pkg.dev === true ? { dev: true } : {}),
      optional: true,
      os: [match.groups.os]
    }
    added.push(`${name}@${version}`)
  }
}

lock.packages = Object.fromEntries(
  Object.entries(lock.packages).toSorted(([a], [b]) => a.localeCompare(b, "en"))
)
if (added.length > 0) fs.writeFileSync(file, `${JSON.stringify(lock, null, 2)}\n`)
console.log(added.length === 0 ? `${file} is complete` : `added to ${file}:\n  ${added.join("\n  ")}`)
