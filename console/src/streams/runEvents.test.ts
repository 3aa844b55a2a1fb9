import { describe, expect, test } from "vitest";
import type { Event } from "../api/types";
import { RunEvents } from "./runEvents";

const event = (id: number) => ({ id, type: "log", run_id: "r", at: "", data: { line: `${id}` } }) as Event;
const span = (from: number, until: number) => Array.from({ length: until - from + 1 }, (_, n) => event(from + n));

function server(stored: Event[], size = 100) {
  return async (after: number) => {
    const events = stored.filter(({ id }) => id > after).slice(0, size);
    return { events, next_after: events.at(-1)?.id ?? after, ended: false };
  };
}
const now = (what: () => void) => what();
const never = () => {};
const ids = (events: RunEvents) => events.state().events.map(({ id }) => id);

describe("the events of a run", () => {
  test("pages are read until the present", async () => {
    const events = new RunEvents(server(span(1, 250)), now, never);
    await events.read();
    expect(ids(events)).toEqual(span(1, 250).map(({ id }) => id));
    expect(events.state().isWhole).toBe(true);
  });

  test("what comes while pages are read is neither lost nor doubled", async () => {
    const stored = span(1, 150);
    const events = new RunEvents(server(stored), now, never);
    const reading = events.read();
    stored.push(...span(151, 160));
    events.live(span(145, 160));
    await reading;
    expect(ids(events)).toEqual(span(1, 160).map(({ id }) => id));
  });

  test("a connection that is cut at every moment costs no line and doubles none", async () => {
    const stored: Event[] = [];
    const events = new RunEvents(server(stored, 7), now, never);
    await events.read();
    let random = 1;
    for (let id = 1; id <= 2000; id++) {
      stored.push(event(id));
      random = (random * 48_271) % 2_147_483_647;
      const fate = random % 10;
      if (fate < 6) events.live([event(id)]);
      else if (fate < 7) events.live(span(Math.max(1, id - 5), id)); // sent again after a cut
      if (fate === 9) await Promise.resolve();
    }
    await events.read();
    while (events.last < 2000) await events.read();
    expect(ids(events)).toEqual(span(1, 2000).map(({ id }) => id));
  });

  test("a gap that the platform speaks of is taken as it is", async () => {
    const events = new RunEvents(server(span(1, 3)), now, never);
    await events.read();
    const gap = { ...event(1004), type: "gap", data: { after: 3, before: 1004, reason: "history was lost" } } as Event;
    events.live([gap, event(1005)]);
    expect(ids(events)).toEqual([1, 2, 3, 1004, 1005]);
  });

  test("a page that cannot be had is asked for again, and what is here stays", async () => {
    let isDown = false;
    const again: (() => void)[] = [];
    const stored = span(1, 5);
    const page = server(stored);
    const events = new RunEvents(
      async (after) => {
        if (isDown) throw new Error("away");
        return page(after);
      },
      now,
      (what) => again.push(what),
    );
    await events.read();
    isDown = true;
    stored.push(...span(6, 9));
    events.live([event(9)]);
    await Promise.resolve();
    await Promise.resolve();
    expect(events.state().error).toBeInstanceOf(Error);
    isDown = false;
    again[0]?.();
    for (let turn = 0; turn < 10; turn++) await Promise.resolve();
    expect(ids(events)).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9]);
    expect(events.state().error).toBe(null);
  });
});
