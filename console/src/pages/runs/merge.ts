// How a list of runs that is on the page takes what is new, without asking for its pages again.
import type { Event, RunStatus, RunSummary } from "../../api/types";

export interface RunPage {
  runs: RunSummary[];
  next_cursor?: string | null;
}

const FINAL: ReadonlySet<string> = new Set(["completed", "failed", "cancelled"]);

/** The list with its newest page as it is now. Ids are in the order of time. Where more runs are new than a page has, the
 * pages behind it would not follow it any more, so the list begins again. */
export function withNewest(pages: RunPage[], fresh: RunPage): RunPage[] {
  const last = fresh.runs.at(-1)?.run_id;
  if (!fresh.next_cursor || !last) return [fresh];
  const [first, ...others] = pages;
  const newestKnown = first?.runs[0]?.run_id;
  if (!first || !newestKnown || newestKnown < last) return [fresh];
  const older = first.runs.filter((run) => run.run_id < last);
  const cursor = older.length || others.length ? first.next_cursor : fresh.next_cursor;
  return [{ runs: [...fresh.runs, ...older], next_cursor: cursor }, ...others];
}

/** The same pages where nothing changes, so that nothing is drawn again. */
export function withEvents(pages: RunPage[], events: readonly Event[]): RunPage[] {
  const changes = new Map<string, Partial<RunSummary>>();
  for (const event of events) {
    if (event.type !== "status") continue;
    const status = event.data.status as RunStatus;
    changes.set(event.run_id, {
      ...changes.get(event.run_id),
      status,
      ...(event.data.attempt ? { attempt: event.data.attempt } : {}),
      ...(status === "running" ? { started_at: event.at } : {}),
      finished_at: FINAL.has(status) ? event.at : null,
    });
  }
  if (!changes.size) return pages;
  let isChanged = false;
  const changed = pages.map((page) => {
    if (!page.runs.some((run) => changes.has(run.run_id))) return page;
    isChanged = true;
    return { ...page, runs: page.runs.map((run) => ({ ...run, ...changes.get(run.run_id) })) };
  });
  return isChanged ? changed : pages;
}
