import { describe, expect, test } from "vitest";
import type { Event, RunSummary } from "../../api/types";
import { type RunPage, withEvents, withNewest } from "./merge";

const run = (run_id: string, status = "running") => ({ run_id, status }) as RunSummary;
const page = (ids: string, next_cursor: string | null): RunPage => ({
  runs: [...ids].map((id) => run(id)),
  next_cursor,
});
const ids = (pages: RunPage[]) => pages.map(({ runs }) => runs.map(({ run_id }) => run_id).join("")).join("|");

describe("a list of runs, newest first", () => {
  test("new runs come before those that are there, and none is twice", () => {
    const pages = withNewest([page("edc", "c"), page("ba", null)], page("gfe", "e"));
    expect(ids(pages)).toBe("gfedc|ba");
    expect(pages[0]?.next_cursor).toBe("c");
  });
  test("it begins again where more runs are new than a page has", () => {
    expect(ids(withNewest([page("cb", "b"), page("a", null)], page("zy", "y")))).toBe("zy");
  });
  test("a run that does not fit the filter any more goes", () => {
    expect(ids(withNewest([page("fedc", "c")], page("fd", "d")))).toBe("fdc");
  });
  test("a list that is whole is as it came", () => {
    expect(ids(withNewest([page("cba", null)], page("c", null)))).toBe("c");
  });
  test("an event changes the state of its run alone", () => {
    const pages = [page("ba", null)];
    const event = { type: "status", run_id: "a", at: "2026-12-01T00:00:00Z", data: { status: "failed" } } as Event;
    const changed = withEvents(pages, [event]);
    expect(changed[0]?.runs.map(({ status }) => status)).toEqual(["running", "failed"]);
    expect(changed[0]?.runs[1]?.finished_at).toBe(event.at);
  });
  test("an event of a run that is not there changes nothing", () => {
    const pages = [page("ba", null)];
    const event = { type: "status", run_id: "x", at: "2026-12-01T00:00:00Z", data: { status: "failed" } } as Event;
    expect(withEvents(pages, [event])).toBe(pages);
  });
});
