import { useQuery, useQueryClient } from "@tanstack/react-query";
import type { ReactNode } from "react";
import { Link } from "wouter";
import { api } from "../../api/client";
import type { RunSummary } from "../../api/types";
import { Command } from "../../design/Command";
import { count, duration, firstLine } from "../../design/format";
import { EmptyState, ErrorState, SkeletonRows } from "../../design/States";
import { Status } from "../../design/Status";
import { Lasted, Time } from "../../design/Time";
import { useRefresh } from "../../streams/FeedContext";
import { usePending } from "../needs-you/pending";
import "./overview.css";

const SHOWN = 8;
const REFRESH_MS = 2000;

/** How things stand: what runs, what waits, what failed lately, and what asks for a person. */
export default function Overview() {
  const client = useQueryClient();
  useRefresh(
    (event) => event.type === "status",
    () => void client.invalidateQueries({ queryKey: ["overview"] }),
    REFRESH_MS,
  );
  const newest = useRuns(null);
  const isNew = newest.data?.runs.length === 0;
  return (
    <div className="stack">
      <div className="page-head">
        <h1>Overview</h1>
      </div>
      {newest.isError && !newest.data && <ErrorState error={newest.error} retry={() => void newest.refetch()} />}
      {isNew ? (
        <div className="panel">
          <EmptyState title="Nothing has run here yet">
            <p className="muted">
              A Markdown prompt is a run: each fenced block is a step. Start one, and watch it here.
            </p>
            <Command text={'agentctl run "Say hello" --watch'} />
          </EmptyState>
        </div>
      ) : (
        <>
          <Asks />
          <div className="overview-columns">
            <RunsPanel title="Running" status="running" empty="No run is running." />
            <RunsPanel title="Failed lately" status="failed" empty="No run has failed." />
            <RunsPanel title="Newest" status={null} empty="No run yet." />
            <Queues />
          </div>
        </>
      )}
    </div>
  );
}

function useRuns(status: string | null) {
  return useQuery({
    queryKey: ["overview", "runs", status],
    queryFn: ({ signal }) => api.get("/agent/runs", { query: { status, limit: SHOWN }, signal }),
  });
}

function Asks() {
  const pending = usePending();
  const asked = pending.data?.decisions ?? [];
  if (!asked.length) return null;
  const oldest = asked.map((one) => one.created_at).sort()[0];
  return (
    <p className="note tone-warn">
      <span>
        <Link href="/needs-you">
          {asked.length}
          {pending.data?.next_cursor ? " and more" : ""} {asked.length === 1 ? "decision waits" : "decisions wait"} for
          you
        </Link>
        , the oldest since <Time at={oldest} />.
      </span>
    </p>
  );
}

function Panel({ title, link, children }: { title: string; link: string; children: ReactNode }) {
  return (
    <section className="panel" aria-label={title}>
      <header>
        <h2 className="grow">{title}</h2>
        <Link href={link}>All</Link>
      </header>
      {children}
    </section>
  );
}

function RunsPanel({ title, status, empty }: { title: string; status: string | null; empty: string }) {
  const runs = useRuns(status);
  return (
    <Panel title={title} link={status ? `/runs?status=${status}` : "/runs"}>
      {runs.isPending && <SkeletonRows rows={4} />}
      {runs.isError && !runs.data && <ErrorState error={runs.error} />}
      {runs.data && !runs.data.runs.length && <p className="body muted">{empty}</p>}
      {runs.data?.runs.map((run) => (
        <OneRun key={run.run_id} run={run} />
      ))}
    </Panel>
  );
}

function OneRun({ run }: { run: RunSummary }) {
  return (
    <div className="overview-run">
      <Status state={run.status} />
      <Link href={`/runs/${run.run_id}`} className="cut grow" title={run.error?.message ?? run.prompt}>
        {firstLine(run.prompt)}
      </Link>
      <span className="muted nowrap">
        {run.finished_at ? (
          <Time at={run.finished_at} />
        ) : (
          <Lasted from={run.started_at ?? run.queued_at} until={null} />
        )}
      </span>
    </div>
  );
}

function Queues() {
  const queues = useQuery({
    queryKey: ["overview", "queues"],
    queryFn: ({ signal }) => api.get("/agent/queues", { signal }),
  });
  return (
    <section className="panel" aria-label="Queues">
      <header>
        <h2>Queues</h2>
      </header>
      {queues.isPending && <SkeletonRows rows={2} />}
      {queues.isError && !queues.data && <ErrorState error={queues.error} />}
      {queues.data && (
        // biome-ignore lint/a11y/noNoninteractiveTabindex: it scrolls by the keys
        <div className="table-frame" tabIndex={0} role="group" aria-label="Queues">
          <table className="table">
            <thead>
              <tr>
                <th>Queue</th>
                <th className="num">Waits</th>
                <th className="num">Oldest</th>
                <th className="num">Runs</th>
                <th className="num">Places</th>
                <th className="num">Workers</th>
              </tr>
            </thead>
            <tbody>
              {queues.data.queues.map((queue) => (
                <tr key={queue.queue}>
                  <td>{queue.queue}</td>
                  <td className="num">{count(queue.queued)}</td>
                  <td className="num">{queue.queued ? duration(queue.oldest_seconds) : "–"}</td>
                  <td className="num">{count(queue.running)}</td>
                  <td className="num">{count(queue.max_concurrent)}</td>
                  <td className="num">{count(queue.workers)}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </section>
  );
}
