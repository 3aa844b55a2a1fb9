import { expect, test, vi } from "vitest";
import { loaded } from "./lazyPage";

const none = async () => {};

test("what could not be fetched is fetched again", async () => {
  const load = vi.fn().mockRejectedValueOnce(new Error("away")).mockResolvedValue("page");
  vi.stubGlobal("navigator", { onLine: true });
  expect(await loaded(load, none)).toBe("page");
});

test("what cannot be fetched though there is a network is given up", async () => {
  vi.stubGlobal("navigator", { onLine: true });
  const load = vi.fn().mockRejectedValue(new Error("gone"));
  await expect(loaded(load, none)).rejects.toThrow("gone");
  expect(load).toHaveBeenCalledTimes(5);
});

test("while the browser is offline it goes on", async () => {
  vi.stubGlobal("navigator", { onLine: false });
  const load = vi.fn();
  for (let tries = 0; tries < 20; tries++) load.mockRejectedValueOnce(new Error("away"));
  load.mockResolvedValue("page");
  expect(await loaded(load, none)).toBe("page");
});
