import { expect, test } from "vitest";
import { changed } from "./arguments";

test("what is only set out in another way is no change", () =>
  expect(changed('{\n"a":1}', '{"a": 1}')).toEqual({ value: undefined }));
test("what differs is sent", () => expect(changed('{"a":1}', '{"a":2}')).toEqual({ value: { a: 2 } }));
test("a text that is no JSON gets an error and is not sent", () => expect(changed("{}", "{")).toHaveProperty("fault"));
test.each(["[]", "1", "null"])("%s is no object", (text) => expect(changed("{}", text)).toHaveProperty("fault"));
