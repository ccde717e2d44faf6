import { assert, describe, it } from "@effect/vitest"
import { DateTime } from "effect"
import * as times from "../../../src/internal/provider/times.ts"
import * as Random from "../../model/random.ts"

const day = 86_400_000
const noon = 1_795_435_200_000 // 2026-11-23T12:00:00Z

/** The platform's own date. */
const platform = (millis: number) => DateTime.toDateUtc(DateTime.makeUnsafe(millis))

/** Whole nanoseconds, as floating-point milliseconds keep them. */
const nanos = (millis: number | undefined) => millis === undefined ? undefined : Math.round(millis * 1e6)

/** As Go's Duration.String, from whole nanoseconds: another way than the parser's, and another author's rules. */
const printGo = (nanos: bigint): string => {
  if (nanos === 0n) return "0s"
  const fraction = (value: bigint, digits: number): string => {
    const text = String(value).padStart(digits, "0").replace(/0+$/, "")
    return text === "" ? "" : `.${text}`
  }
  if (nanos < 1000n) return `${nanos}ns`
  if (nanos < 1_000_000n) return `${nanos / 1000n}${fraction(nanos % 1000n, 3)}\u00b5s`
  if (nanos < 1_000_000_000n) return `${nanos / 1_000_000n}${fraction(nanos % 1_000_000n, 6)}ms`
  const whole = nanos / 1_000_000_000n
  const hours = whole / 3600n
  const minutes = (whole / 60n) % 60n
  const seconds = `${whole % 60n}${fraction(nanos % 1_000_000_000n, 9)}s`
  return hours > 0n ? `${hours}h${minutes}m${seconds}` : minutes > 0n ? `${minutes}m${seconds}` : seconds
}

const hostile: ReadonlyArray<unknown> = [
  "",
  " ",
  "-1",
  "-5s",
  "+5s",
  "NaN",
  "Infinity",
  "1e3",
  "0x10",
  "1,5",
  "5 s",
  "5s 5",
  "s",
  ".",
  ".s",
  "5x",
  "5S",
  "999999999999999h",
  "8d",
  "8785h",
  "31622401000",
  "9".repeat(100_000),
  `${"1s".repeat(50_000)}!`,
  "١٢s",
  null,
  undefined,
  12,
  Number.NaN,
  12n,
  Symbol("5s"),
  {},
  [],
  ["5s"],
  () => "5s"
]

const formats = ["duration", "seconds", "millis", "instant", "any"] as const

describe("times", () => {
  it("reads Go durations with any mix of units and fractions", () => {
    const cases: ReadonlyArray<readonly [string, number]> = [
      ["0", 0],
      ["0s", 0],
      ["12ms", 12],
      ["1s", 1000],
      ["1.378s", 1378],
      ["6m0s", 360_000],
      ["7m12s", 432_000],
      ["8.64s", 8640],
      ["23h18m29.144s", 83_909_144],
      ["1h53m56.832s", 6_836_832],
      ["16.614999999s", 16_614.999999],
      ["2h", 7_200_000],
      ["1m30ms", 60_030],
      ["1.5h", 5_400_000],
      [".5s", 500],
      ["1s500ms", 1500],
      ["250\u00b5s", 0.25],
      ["250\u03bcs", 0.25],
      ["250us", 0.25],
      ["1500ns", 0.0015],
      ["168h", 7 * day],
      [" 5s ", 5000]
    ]
    for (const [text, expected] of cases) {
      assert.strictEqual(nanos(times.goDuration(text)), nanos(expected), text)
      assert.strictEqual(nanos(times.wait("any", text, undefined)), nanos(expected), text)
    }
  })

  it("a duration that Go printed is read back to the nanosecond", () => {
    const random = Random.make(1)
    for (let count = 0; count < 3000; count++) {
      const value = Math.floor(random.next() * 10 ** random.int(1, 14))
      const text = printGo(BigInt(value))
      assert.strictEqual(nanos(times.goDuration(text)), value, text)
    }
  })

  it("a unit is required of a duration, and a number with a unit is no plain number", () => {
    assert.isUndefined(times.goDuration("12"))
    for (const text of ["12ms", "12s", "6m0s"]) {
      assert.isUndefined(times.seconds(text))
      assert.isUndefined(times.millis(text))
    }
  })

  it("reads plain numbers in the unit that is asked for", () => {
    assert.strictEqual(times.seconds("20"), 20_000)
    assert.strictEqual(times.seconds("0.5"), 500)
    assert.strictEqual(times.seconds("0"), 0)
    assert.strictEqual(times.millis("548"), 548)
    assert.strictEqual(times.millis("0.25"), 0.25)
    assert.strictEqual(times.wait("any", "20", undefined), 20_000)
  })

  it("reads RFC 3339 and HTTP dates as the platform does", () => {
    const random = Random.make(2)
    for (let count = 0; count < 3000; count++) {
      const at = random.int(0, 4_102_444_800) * 1000 + random.int(0, 999)
      const iso = platform(at).toISOString()
      assert.strictEqual(times.rfc3339(iso), at, iso)
      const second = at - at % 1000
      assert.strictEqual(times.rfc3339(iso.replace(/\.\d+/, "")), second)
      const http = platform(at).toUTCString()
      assert.strictEqual(times.httpDate(http), second, http)
      const offset = random.int(-23 * 60, 23 * 60)
      const shifted = platform(at + offset * 60_000).toISOString().slice(0, -1)
      const hours = String(Math.floor(Math.abs(offset) / 60)).padStart(2, "0")
      const minutes = String(Math.abs(offset) % 60).padStart(2, "0")
      assert.strictEqual(times.rfc3339(`${shifted}${offset < 0 ? "-" : "+"}${hours}:${minutes}`), at)
    }
    assert.approximately(times.rfc3339("2026-11-23T12:00:00.123456789Z") ?? 0, noon + 123.456789, 1e-3)
    assert.strictEqual(times.rfc3339("2026-11-23t12:00:00z"), noon)
    assert.strictEqual(times.rfc3339("2000-02-29T00:00:00Z"), 951_782_400_000)
    assert.strictEqual(times.httpDate("Mon, 23 Nov 2026 12:00:00 GMT"), noon)
  })

  it("rejects dates that do not exist or have no zone", () => {
    for (
      const text of [
        "2026-11-23T12:00:00",
        "2026-11-23",
        "2026-13-01T00:00:00Z",
        "2026-00-01T00:00:00Z",
        "2026-02-29T00:00:00Z",
        "1900-02-29T00:00:00Z",
        "2026-04-31T00:00:00Z",
        "2026-11-23T24:00:00Z",
        "2026-11-23T12:60:00Z",
        "2026-11-23T12:00:61Z",
        "2026-11-23T12:00:00+24:00",
        "2026-11-23T12:00:00+00:60",
        "Mon, 23 Nov 2026 12:00:00 CET",
        "Mon, 23 Foo 2026 12:00:00 GMT",
        "Xyz, 23 Nov 2026 12:00:00 GMT",
        "Mon, 31 Feb 2026 12:00:00 GMT"
      ]
    ) assert.isUndefined(times.instant(text), text)
  })

  it("tells Unix seconds and milliseconds apart", () => {
    assert.strictEqual(times.unixTime("1795435200"), noon)
    assert.strictEqual(times.unixTime("1795435200.5"), noon + 500)
    assert.strictEqual(times.unixTime("1795435200000"), noon)
    assert.isUndefined(times.unixTime("60"))
    assert.isUndefined(times.unixTime("500000000000"))
  })

  it("an instant is the time until it, and needs to know what time it is", () => {
    for (const text of ["2026-11-23T12:00:59Z", "Mon, 23 Nov 2026 12:00:59 GMT", "1795435259", "1795435259000"]) {
      for (const format of ["any", "instant"] as const) {
        assert.strictEqual(times.wait(format, text, noon), 59_000, text)
        assert.isUndefined(times.wait(format, text, undefined))
        assert.isUndefined(times.wait(format, text, noon + 61_000), "in the past")
        assert.strictEqual(times.wait(format, text, noon - 7 * day), 7 * day)
        assert.isUndefined(times.wait(format, text, noon - 366 * day), "too far")
        // Stamps of whole seconds.
        assert.strictEqual(times.wait(format, text, noon + 59_400), 0)
      }
    }
  })

  it("reads protobuf durations", () => {
    assert.strictEqual(times.protobufDuration("18s"), 18_000)
    assert.strictEqual(nanos(times.protobufDuration("18.186484543s")), 18_186_484_543)
    assert.strictEqual(nanos(times.protobufDuration({ seconds: 18, nanos: 186_484_543 })), 18_186_484_543)
    assert.strictEqual(times.protobufDuration({ seconds: "18" }), 18_000)
    assert.strictEqual(times.protobufDuration({ nanos: 500_000_000 }), 500)
    for (
      const value of [
        {},
        { seconds: -1 },
        { seconds: Number.NaN },
        { seconds: 1, nanos: 1e9 },
        { seconds: 1, nanos: -1 },
        { seconds: 1e9 },
        { seconds: "x" },
        { seconds: {} },
        null,
        18,
        "18"
      ]
    ) assert.isUndefined(times.protobufDuration(value))
  })

  it("finds the time to wait in a sentence", () => {
    const cases: ReadonlyArray<readonly [string, number | undefined]> = [
      ["Please retry in 548ms", 548],
      ["Please retry in 18.186484543s.", 18_186.484543],
      ["Please try again in 6m0s. Visit https://example.com", 360_000],
      ["Limit 200, Used 200, Requested 1. Please try again in 7m12s.", 432_000],
      ["Please try again in 1h53m56.832s. Need more?", 6_836_832],
      ["Please retry after 20 seconds.", 20_000],
      ["retry after 1 minute", 60_000],
      ["Try again in 1 hour 5 minutes and 2 seconds.", 3_902_000],
      ["Try again in 2 hrs, 3 mins", 7_380_000],
      ["retry in 1 day", day],
      ["retry in 500 milliseconds", 500],
      ["Please retry after 86400 seconds. Please retry after 5 seconds.", day],
      ["Please try again later. Try again in 3s", 3000],
      ["try again in 5", undefined],
      ["try again in 5 requests", undefined],
      ["try again in 5 models", undefined],
      ["try again in -5s", undefined],
      ["try again in 7 days", 7 * day],
      ["try again in 8 days", 7 * day],
      ["try again in 366 days", 7 * day],
      ["try again in 367 days", undefined],
      ["try again soon", undefined],
      ["waited 5s", undefined],
      ["", undefined]
    ]
    for (const [text, expected] of cases) {
      assert.strictEqual(nanos(times.hint(text)), nanos(expected), text)
    }
  })

  it("rejects whatever is no time", () => {
    for (const value of hostile) {
      for (const format of formats) {
        if (value === "31622401000" && format !== "seconds") continue
        assert.isUndefined(times.wait(format, value, noon), `${format} ${String(value).slice(0, 40)}`)
      }
    }
  })

  it("reads more than seven days as seven", () => {
    for (const [format, text] of [["duration", "169h"], ["seconds", "604801"], ["millis", "604800001"]] as const) {
      assert.strictEqual(times.wait(format, text, noon), 7 * day)
    }
    assert.strictEqual(times.wait("any", "31622400", noon), 7 * day)
    // An instant of this century.
    assert.strictEqual(times.wait("any", "1795435259", noon), 59_000)
  })

  it("never throws and never gives what is no time, whatever it is given", () => {
    const random = Random.make(3)
    const pieces = [
      "1",
      "9",
      ".",
      "-",
      "s",
      "ms",
      "h",
      "m",
      ":",
      "T",
      "Z",
      " ",
      "GMT",
      "e",
      "in",
      "try again",
      "\u00b5",
      "\ud800"
    ]
    for (let count = 0; count < 20_000; count++) {
      const text = Array.from(
        { length: random.int(0, 12) },
        () => random.chance(0.6) ? random.pick(pieces) : String.fromCharCode(random.int(0, 0xffff))
      ).join("")
      const found = [
        ...formats.map((format) => times.wait(format, text, random.chance(0.5) ? noon : undefined)),
        times.protobufDuration(text),
        times.hint(text),
        times.hint(`try again in ${text}`)
      ]
      const wrong = found.filter((value) => value !== undefined && !(value >= 0 && value <= 7 * day))
      assert.deepStrictEqual(wrong, [], JSON.stringify(text))
    }
  })

  it("a megabyte of text costs no more than a kilobyte", () => {
    for (const piece of ["1", "1s", "try again in ", "try again in 1s ", " ", "retry    ", "1.", "and "]) {
      const text = piece.repeat(1_000_000 / piece.length)
      const start = performance.now()
      for (const format of formats) times.wait(format, text, noon)
      times.hint(text)
      times.hint(`try again in ${text}`)
      assert.isBelow(performance.now() - start, 2000, piece)
    }
  })
})
