import { type InfiniteData, useInfiniteQuery, useQueryClient } from "@tanstack/react-query";
import { useVirtualizer } from "@tanstack/react-virtual";
import { memo, type Ref, useEffect, useMemo, useRef, useState } from "react";
import { Link, useLocation } from "wouter";
import { api } from "../../api/client";
import type { RunSummary } from "../../api/types";
import { Command } from "../../design/Command";
import { firstLine } from "../../design/format";
import { Icon } from "../../design/Icon";
import { EmptyState, ErrorState, SkeletonRows } from "../../design/States";
import { Status } from "../../design/Status";
import { useShortcut } from "../../design/shortcuts";
import { Lasted, Time } from "../../design/Time";
import { useFeed, useRefresh } from "../../streams/FeedContext";
import { cleaned, type FilterName, type Filters, localOf, STATUSES, useFilters } from "./filters";
import { type RunPage, withEvents, withNewest } from "./merge";
import "./runs.css";

const ASK_AFTER_MS = 300;
const PAGE = 100;
const REFRESH_MS = 2000;
const WIDE_ROW = 40;
const NARROW_ROW = 60;

export default function Runs() {
  const [filters, setFilter, clear] = useFilters();
  const [isPaused, setPaused] = useState(false);
  const list = useRunList(filters, isPaused);
  const field = useRef<HTMLInputElement>(null);
  useShortcut("/", "Filter the runs", () => field.current?.focus());
  useShortcut("p", "Pause the list, or let it go on", () => setPaused(!isPaused));
  const hasFilter = Object.keys(filters).length > 0;

  return (
    <div className="runs-page">
      <div className="page-head">
        <h1>Runs</h1>
        <div className="row wrap grow">
          <label className="row">
            <span className="sr">Status</span>
            <select
              className="input"
              value={filters.status ?? ""}
              onChange={(event) => setFilter("status", event.target.value)}
            >
              <option value="">any status</option>
              {STATUSES.map((status) => (
                <option key={status}>{status}</option>
              ))}
            </select>
          </label>
          <Field name="text" label="Text in the prompt" filters={filters} set={setFilter} field={field} />
          <details className="runs-more" open={MORE.some(([name]) => filters[name]) || undefined}>
            <summary className="button">More filters</summary>
            <div className="row wrap">
              {MORE.map(([name, label]) => (
                <Field key={name} name={name} label={label} filters={filters} set={setFilter} />
              ))}
            </div>
          </details>
          {hasFilter && (
            <button type="button" className="button plain" onClick={clear}>
              <Icon name="close" />
              Clear
            </button>
          )}
        </div>
        <button type="button" className="button" aria-pressed={isPaused} onClick={() => setPaused(!isPaused)}>
          <Icon name={isPaused ? "play" : "pause"} />
          {isPaused ? "Paused" : "Live"}
        </button>
      </div>
      <List list={list} hasFilter={hasFilter} clear={clear} />
    </div>
  );
}

const MORE: readonly (readonly [FilterName, string])[] = [
  ["id_beginning", "Beginning of the id"],
  ["queue", "Queue"],
  ["agent", "Agent"],
  ["handler", "Handler"],
  ["created_from", "Created from"],
  ["created_to", "Created until"],
];

interface FieldGiven {
  name: FilterName;
  label: string;
  filters: Filters;
  set: (name: FilterName, value: string) => void;
  field?: Ref<HTMLInputElement>;
}

/** A field of a filter: what is written is asked for a moment after the last key. */
function Field({ name, label, filters, set, field }: FieldGiven) {
  const given = filters[name] ?? "";
  const isTime = name.startsWith("created");
  const [written, setWritten] = useState(given);
  const timer = useRef<number | undefined>(undefined);
  useEffect(() => setWritten(given), [given]);
  useEffect(() => () => clearTimeout(timer.current), []);
  function write(value: string) {
    setWritten(value);
    clearTimeout(timer.current);
    timer.current = window.setTimeout(() => set(name, cleaned(name, value)), ASK_AFTER_MS);
  }
  return (
    <label className="field">
      <span className={name === "text" ? "sr" : undefined}>{label}</span>
      <input
        ref={field}
        className="input"
        type={isTime ? "datetime-local" : "search"}
        placeholder={isTime ? undefined : label}
        value={isTime ? localOf(written) : written}
        onChange={(event) => write(event.target.value)}
      />
    </label>
  );
}

function useRunList(filters: Filters, isPaused: boolean) {
  const client = useQueryClient();
  const key = useMemo(() => ["runs", "list", filters], [filters]);
  const ask = (cursor: string | null, signal?: AbortSignal): Promise<RunPage> =>
    api.get("/agent/runs", { query: { ...filters, cursor, limit: PAGE }, ...(signal ? { signal } : {}) });
  const query = useInfiniteQuery({
    queryKey: key,
    queryFn: ({ pageParam, signal }) => ask(pageParam, signal),
    initialPageParam: null as string | null,
    getNextPageParam: (last: RunPage) => last.next_cursor ?? null,
    staleTime: Number.POSITIVE_INFINITY,
    gcTime: 0,
  });
  const isAtTop = useRef(true);
  const [hasNew, setHasNew] = useState(false);

  const change = (how: (pages: RunPage[]) => RunPage[]) =>
    client.setQueryData<InfiniteData<RunPage, string | null>>(key, (old) => {
      if (!old) return old;
      const pages = how(old.pages);
      return pages === old.pages ? old : { pages, pageParams: old.pageParams.slice(0, pages.length) };
    });

  async function refresh() {
    setHasNew(false);
    const fresh = await ask(null).catch(() => null); // the banner says that the platform does not answer
    if (fresh) change((pages) => withNewest(pages, fresh));
  }

  useFeed((events) => {
    if (!isPaused) change((pages) => withEvents(pages, events));
  });
  useRefresh(
    (event) => event.type === "status",
    () => {
      if (isPaused) return;
      if (isAtTop.current) void refresh();
      else setHasNew(true);
    },
    REFRESH_MS,
  );
  // biome-ignore lint/correctness/useExhaustiveDependencies: what came during the pause is asked for at its end
  useEffect(() => {
    if (!isPaused && query.data) void refresh();
  }, [isPaused]);
  const runs = useMemo(() => query.data?.pages.flatMap((page) => page.runs) ?? [], [query.data]);
  return { query, runs, isAtTop, hasNew, refresh };
}

function useIsNarrow(): boolean {
  const query = useMemo(() => matchMedia("(max-width: 899px)"), []);
  const [isNarrow, setNarrow] = useState(query.matches);
  useEffect(() => {
    const changed = () => setNarrow(query.matches);
    query.addEventListener("change", changed);
    return () => query.removeEventListener("change", changed);
  }, [query]);
  return isNarrow;
}

interface ListGiven {
  list: ReturnType<typeof useRunList>;
  hasFilter: boolean;
  clear: () => void;
}

function List({ list, hasFilter, clear }: ListGiven) {
  const { query, runs, isAtTop, hasNew, refresh } = list;
  const [, go] = useLocation();
  const frame = useRef<HTMLDivElement>(null);
  const [chosen, setChosen] = useState(-1);
  const rowHeight = useIsNarrow() ? NARROW_ROW : WIDE_ROW;
  const rows = useVirtualizer({
    count: runs.length,
    getScrollElement: () => frame.current,
    estimateSize: () => rowHeight,
    overscan: 6,
    getItemKey: (index) => runs[index]?.run_id ?? index,
  });
  // biome-ignore lint/correctness/useExhaustiveDependencies: all rows have another height then
  useEffect(() => rows.measure(), [rowHeight]);

  const shown = rows.getVirtualItems();
  const last = shown.at(-1)?.index ?? 0;
  const { hasNextPage, isFetchingNextPage, fetchNextPage } = query;
  useEffect(() => {
    if (hasNextPage && !isFetchingNextPage && last >= runs.length - 30) void fetchNextPage();
  }, [last, runs.length, hasNextPage, isFetchingNextPage, fetchNextPage]);

  function choose(index: number) {
    const next = Math.max(0, Math.min(index, runs.length - 1));
    setChosen(next);
    rows.scrollToIndex(next);
  }
  useShortcut("j", "Next run", () => choose(chosen + 1));
  useShortcut("k", "Run before", () => choose(chosen - 1));
  useShortcut("o", "Open the run", () => {
    const run = runs[chosen];
    if (run) go(`/runs/${run.run_id}`);
  });

  if (query.isError && !runs.length) return <ErrorState error={query.error} retry={() => void query.refetch()} />;
  if (query.isPending)
    return (
      <div className="panel">
        <SkeletonRows rows={12} />
      </div>
    );
  if (!runs.length)
    return (
      <div className="panel">
        {hasFilter ? (
          <EmptyState title="No run fits this filter">
            <button type="button" className="button" onClick={clear}>
              Show all runs
            </button>
          </EmptyState>
        ) : (
          <EmptyState title="No runs yet">
            <p className="muted">Start one from the command line; it is here the moment it is queued.</p>
            <Command text="agentctl run examples/word-count.md --planner runbook" />
          </EmptyState>
        )}
      </div>
    );
  return (
    <div className="panel runs">
      <div className="runs-table" role="table" aria-label="Runs" aria-rowcount={hasNextPage ? -1 : runs.length + 1}>
        <div className="runs-row head" role="row" aria-rowindex={1}>
          {["Status", "Run", "By", "Queue", "Created", "Took"].map((name) => (
            <span role="columnheader" key={name}>
              {name}
            </span>
          ))}
        </div>
        {/* A part that scrolls is reached by the keyboard. */}
        <div
          className="runs-frame"
          ref={frame}
          role="rowgroup"
          // biome-ignore lint/a11y/noNoninteractiveTabindex: it scrolls by the keys
          tabIndex={0}
          onScroll={(event) => {
            isAtTop.current = event.currentTarget.scrollTop < rowHeight;
          }}
        >
          <div style={{ height: rows.getTotalSize(), position: "relative" }}>
            {shown.map(({ index, key, start }) => {
              const run = runs[index];
              return (
                run && (
                  <Row key={key} run={run} index={index} top={start} height={rowHeight} isChosen={index === chosen} />
                )
              );
            })}
          </div>
        </div>
      </div>
      {hasNew && (
        <button
          type="button"
          className="button runs-new"
          onClick={() => {
            frame.current?.scrollTo({ top: 0 });
            void refresh();
          }}
        >
          Show what is new
        </button>
      )}
      <div className="runs-foot muted" role="status">
        {isFetchingNextPage
          ? "Loading more…"
          : `${runs.length.toLocaleString("en-US")} runs${hasNextPage ? " so far" : ""}`}
      </div>
    </div>
  );
}

interface RowGiven {
  run: RunSummary;
  index: number;
  top: number;
  height: number;
  isChosen: boolean;
}

const Row = memo(function Row({ run, index, top, height, isChosen }: RowGiven) {
  return (
    <div
      className={`runs-row${isChosen ? " chosen" : ""}`}
      role="row"
      aria-rowindex={index + 2}
      style={{ position: "absolute", top: 0, left: 0, right: 0, height, transform: `translateY(${top}px)` }}
    >
      <span role="cell">
        <Status state={run.status} />
      </span>
      <span role="cell" className="cut title">
        <Link href={`/runs/${run.run_id}`} title={run.prompt}>
          {firstLine(run.prompt)}
        </Link>
        {run.attempt > 1 && <span className="muted"> · attempt {run.attempt}</span>}
      </span>
      <span role="cell" className="cut muted by">
        {run.handler ?? run.agent ?? ""}
      </span>
      <span role="cell" className="cut muted queue">
        {run.queue}
        {run.priority !== "normal" && ` · ${run.priority}`}
      </span>
      <span role="cell" className="muted when">
        <Time at={run.created_at} />
      </span>
      <span role="cell" className="num took">
        <Lasted from={run.started_at} until={run.finished_at} />
      </span>
    </div>
  );
});
