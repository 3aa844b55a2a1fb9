import { describe, expect, test } from "vitest";
import { layersOf } from "./layers";

describe("the picture of a plan", () => {
  test("steps that name nothing follow one another", () =>
    expect(layersOf([{ id: "a" }, { id: "b" }, { id: "c" }])).toEqual([["a"], ["b"], ["c"]]));
  test("steps that need the same stand beside one another", () =>
    expect(
      layersOf([
        { id: "a", needs: [] },
        { id: "b", needs: ["a"] },
        { id: "c", needs: ["a"] },
        { id: "d", needs: ["b", "c"] },
      ]),
    ).toEqual([["a"], ["b", "c"], ["d"]]));
  test("a circle ends", () =>
    expect(
      layersOf([
        { id: "a", needs: ["b"] },
        { id: "b", needs: ["a"] },
      ])
        .flat()
        .sort(),
    ).toEqual(["a", "b"]));
});
