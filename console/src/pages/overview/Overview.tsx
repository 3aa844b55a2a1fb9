import { useQuery, useQueryClient } from "@tanstack/react-query";
import type { ReactNode } from "react";
import { Link } from "wouter";
import { type Answer, api } from "../../api/client";
import { Command } from "../../design/Command";
import { count, duration, firstLine, usd } from "../../design/format";
import { EmptyState, ErrorState, SkeletonRows } from "../../design/States";
import { Status } from "../../design/Status";
import { Time } from "../../design/Time";
import { useRefresh } from "../../streams/FeedContext";
import { Throughput } from "./Throughput";
import "./overview.css";

export type OverviewData = Answer<"/agent/overview", "get">;

const REFRESH_MS = 3000;
const SHOWN = ["running", "queued", "waiting", "completed", "failed", "cancelled", "created"];
const OVER: ReadonlySet<string> = new Set(["completed", "failed", "cancelled"]);

/** How things stand, by one request: what runs and waits, what ended and failed lately, what it costs, what asks for a
 * person. */
export default function Overview() {
  const client = useQueryClient();
  useRefresh(
    (event) => event.type === "status" || event.type === "decision",
    () => void client.invalidateQueries({ queryKey: ["overview"] }),
    REFRESH_MS,
  );
  const found = useQuery({ queryKey: ["overview"], queryFn: ({ signal }) => api.get("/agent/overview", { signal }) });
  return (
    <div className="stack">
      <div className="page-head">
        <h1>Overview</h1>
      </div>
      {found.isPending && <SkeletonRows rows={12} />}
      {found.isError && <ErrorState error={found.error} retry={() => void found.refetch()} />}
      {found.data && <Shown of={found.data} />}
    </div>
  );
}

function Shown({ of }: { of: OverviewData }) {
  const asked = of.needs_you;
  const isNew = !of.failed_lately.length && Object.values(of.runs).every((number) => number === 0);
  return (
    <>
      {asked.count > 0 && (
        <p className="note tone-warn">
          <span>
            <Link href="/needs-you">
              {count(asked.count)} {asked.count === 1 ? "decision waits" : "decisions wait"} for you
            </Link>
            , the oldest of <Time at={asked.oldest_at} />.
          </span>
        </p>
      )}
      <ul className="overview-states" aria-label="Runs by state">
        {SHOWN.map((status) => (
          <li key={status} className="panel">
            <Link href={`/runs?status=${status}`}>
              <Status state={status} />
              <strong>{count(of.runs[status] ?? 0)}</strong>
              <span className="muted">{OVER.has(status) ? "in the last hour" : "now"}</span>
            </Link>
          </li>
        ))}
      </ul>
      {isNew && (
        <div className="panel">
          <EmptyState title="Nothing has run here in the last hour">
            <p className="muted">
              A Markdown prompt is a run: each fenced block is a step. Start one, and watch it here.
            </p>
            <Command text="agentctl run examples/word-count.md --planner runbook" />
          </EmptyState>
        </div>
      )}
      <div className="overview-columns">
        <Panel title="Ended, by minute, in the last hour">
          <Throughput minutes={of.throughput} />
        </Panel>
        <Panel title="The last hour">
          <Figures of={of} />
        </Panel>
        <Panel title="Failed lately" link="/runs?status=failed">
          {!of.failed_lately.length && <p className="body muted">No run has failed.</p>}
          {of.failed_lately.map((run) => (
            <div className="overview-run" key={run.run_id}>
              <Status state={run.status} />
              <Link href={`/runs/${run.run_id}`} className="cut grow" title={run.error?.message ?? run.prompt}>
                {firstLine(run.prompt)}
              </Link>
              <span className="muted nowrap">
                <Time at={run.finished_at} />
              </span>
            </div>
          ))}
        </Panel>
        <Panel title="Queues">
          <Queues of={of} />
        </Panel>
      </div>
    </>
  );
}

function Panel({ title, link, children }: { title: string; link?: string; children: ReactNode }) {
  return (
    <section className="panel" aria-label={title}>
      <header>
        <h2 className="grow">{title}</h2>
        {link && <Link href={link}>All</Link>}
      </header>
      {children}
    </section>
  );
}

const seconds = (value: number | null) => (value === null ? "–" : duration(value));

function Figures({ of }: { of: OverviewData }) {
  const { latency } = of;
  return (
    <dl className="facts body">
      <dt>In the queue</dt>
      <dd>
        {seconds(latency.queue_p50)} half of them, {seconds(latency.queue_p95)} 95 in 100
      </dd>
      <dt>Running</dt>
      <dd>
        {seconds(latency.run_p50)} half of them, {seconds(latency.run_p95)} 95 in 100
      </dd>
      <dt>Spent on models today</dt>
      <dd>{usd(Number(of.spend_today_usd))} since midnight, UTC</dd>
      <dt>Workers</dt>
      <dd>{of.workers === null ? "not known, since Redis does not answer" : count(of.workers)}</dd>
      <dt>Pools of agents</dt>
      <dd>{count(of.pools.length)}</dd>
    </dl>
  );
}

function Queues({ of }: { of: OverviewData }) {
  if (!of.queues) return <p className="body muted">Redis does not answer, so nobody knows how long they are.</p>;
  return (
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
          {of.queues.map((queue) => (
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
  );
}
