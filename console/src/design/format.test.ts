import { describe, expect, test } from "vitest";
import { ago, bytes, duration, firstLine, moment, usd } from "./format";

describe("texts of numbers", () => {
  test.each([
    [0, "0 ms"],
    [0.0004, "0 ms"],
    [0.42, "420 ms"],
    [0.9996, "1.0 s"],
    [9.96, "10 s"],
    [59.6, "1 min"],
    [185, "3 min 5 s"],
    [3600, "1 h"],
    [7800, "2 h 10 min"],
    [273_600, "3 d 4 h"],
    [-1, "0 s"],
  ])("%s seconds are %s", (seconds, text) => expect(duration(seconds)).toBe(text));

  test.each([
    [0, "$0"],
    [0.000123, "$0.000123"],
    [0.0000001, "<$0.000001"],
    [0.5, "$0.50"],
    [1234.5, "$1,234.50"],
    [-2, "−$2.00"],
  ])("%s dollars are %s", (amount, text) => expect(usd(amount)).toBe(text));

  test.each([
    [1023, "1023 B"],
    [1024, "1.0 KiB"],
    [1024 * 1024 - 1, "1.0 MiB"],
    [50 * 1024 * 1024, "50 MiB"],
  ])("%s bytes are %s", (size, text) => expect(bytes(size)).toBe(text));
});

describe("texts of times", () => {
  const now = new Date("2026-12-01T12:00:00Z");
  test("a moment in UTC is written without the browser's own zone", () => {
    expect(moment(new Date("2026-12-01T04:05:06.789Z"), "utc", true)).toBe("2026-12-01 04:05:06.789");
  });
  test.each([
    ["2026-12-01T11:59:57Z", "now"],
    ["2026-12-01T11:59:01Z", "59 s ago"],
    ["2026-12-01T10:30:00Z", "1 h ago"],
    ["2026-12-03T12:00:00Z", "in 2 d"],
  ])("%s is %s", (at, text) => expect(ago(new Date(at), now)).toBe(text));
});

describe("the first line of a prompt", () => {
  test("the mark of a heading is left out", () => expect(firstLine("\n# Build it\nthen")).toBe("Build it"));
  test("a fence is passed over", () => expect(firstLine("```bash\nls\n```")).toBe("ls"));
  test("what has nothing to say says so", () => expect(firstLine(" \n")).toBe("(empty)"));
});
