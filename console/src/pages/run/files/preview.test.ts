import { describe, expect, test } from "vitest";
import { isBinary, rowsOf, shapeOf, treeOf } from "./preview";

describe("a table of a file", () => {
  test("quotes keep separators, breaks and themselves", () =>
    expect(rowsOf('a,"b,1"\r\n"c\n""d""",e', 10)).toEqual([
      ["a", "b,1"],
      ['c\n"d"', "e"],
    ]));
  test("it has no more rows than are wanted", () => expect(rowsOf("1\n2\n3\n", 2)).toEqual([["1"], ["2"]]));
});

describe("a file", () => {
  test.each([
    ["a/b.MD", "markdown"],
    ["x.svg", "text"],
    ["x.html", "text"],
    ["photo.JPEG", "image"],
    ["Makefile", "text"],
  ])("%s is shown as %s", (path, shape) => expect(shapeOf(path)).toBe(shape));
  test("with a NUL is no text", () => expect(isBinary(new Uint8Array([65, 0, 66]))).toBe(true));
  test("in UTF-8 is text", () => expect(isBinary(new TextEncoder().encode("héllo ✓"))).toBe(false));
});

test("files stand in their folders", () => {
  const root = treeOf([
    { path: "a/b/c.txt", size: 1 },
    { path: "a/d.txt", size: 2 },
    { path: "e.txt", size: 3 },
  ]);
  expect(root.files.map(({ name }) => name)).toEqual(["e.txt"]);
  expect(root.folders[0]?.folders[0]?.files[0]?.path).toBe("a/b/c.txt");
});
