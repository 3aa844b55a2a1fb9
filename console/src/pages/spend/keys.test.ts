import { expect, test } from "vitest";
import { keysOf } from "./keys";

test("keys keep their order, once each, without those that nobody knows", () => {
  expect(keysOf("day,model,day,colour")).toEqual(["day", "model"]);
});

test("without a key that is known it is by model", () => {
  expect(keysOf(null)).toEqual(["model"]);
  expect(keysOf("colour")).toEqual(["model"]);
});
