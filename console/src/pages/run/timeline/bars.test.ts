import { describe, expect, test } from "vitest";
import type { Event } from "../../../api/types";
import { barsOf, Scale } from "./bars";

const START = Date.parse("2026-12-01T00:00:00Z");
let number = 0;
const event = (type: string, seconds: number, data: object) =>
  ({ id: ++number, run_id: "r", type, at: new Date(START + seconds * 1000).toISOString(), data }) as Event;
const shape = (events: Event[]) =>
  barsOf(events).map(({ kind, state, from, until }) => [
    kind,
    state,
    (from - START) / 1000,
    until && (until - START) / 1000,
  ]);

describe("bars of a run", () => {
  test("the queue, a step, a wait for a person, and what goes on", () => {
    expect(
      shape([
        event("status", 0, { status: "queued" }),
        event("status", 2, { status: "running" }),
        event("step", 2, { step: "a", status: "started", title: "A" }),
        event("step", 5, { step: "a", status: "completed" }),
        event("status", 5, { status: "waiting" }),
        event("status", 60, { status: "running" }),
        event("step", 61, { step: "b", status: "started", title: "B" }),
      ]),
    ).toEqual([
      ["queue", "completed", 0, 2],
      ["step", "completed", 2, 5],
      ["wait", "completed", 5, 60],
      ["step", "started", 61, null],
    ]);
  });
  test("a step that begins again after a crash is two bars", () => {
    expect(
      shape([
        event("step", 0, { step: "a", status: "started" }),
        event("step", 9, { step: "a", status: "started" }),
        event("step", 12, { step: "a", status: "failed" }),
      ]),
    ).toEqual([
      ["step", "interrupted", 0, 9],
      ["step", "failed", 9, 12],
    ]);
  });
  test("a model's call ends when its event was made", () => {
    const call = { model: "m", number: 1, status: "completed", duration_ms: 1500, purpose: "plan", step: "" };
    expect(shape([event("model", 4, call)])).toEqual([["model", "completed", 2.5, 4]]);
  });
});

describe("the scale of time", () => {
  const bars = barsOf([
    event("step", 0, { step: "a", status: "started" }),
    event("step", 10, { step: "a", status: "completed" }),
    event("step", 3610, { step: "b", status: "started" }),
    event("step", 3620, { step: "b", status: "completed" }),
  ]);
  test("a long idle gap takes little of it", () => {
    const scale = new Scale(bars, START, true);
    expect(scale.gaps).toHaveLength(1);
    expect(scale.at(START)).toBe(0);
    expect(scale.at(START + 10_000)).toBeCloseTo(0.48);
    expect(scale.at(START + 3_610_000)).toBeCloseTo(0.52);
    expect(scale.at(START + 3_620_000)).toBeCloseTo(1);
  });
  test("it is true to time where nothing is pressed", () => {
    const scale = new Scale(bars, START, false);
    expect(scale.gaps).toHaveLength(0);
    expect(scale.at(START + 1_810_000)).toBeCloseTo(0.5);
  });
  test("it begins with the first bar, whatever the clock says", () =>
    expect(new Scale(bars, 0, true).from).toBe(START));
  test("a run of which nothing is known has one", () => expect(new Scale([], START, true).at(START)).toBe(0));
});
