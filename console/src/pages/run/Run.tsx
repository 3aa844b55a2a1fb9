import { useQuery, useQueryClient } from "@tanstack/react-query";
import { type ReactNode, Suspense, useEffect } from "react";
import { Link, useLocation, useParams } from "wouter";
import { api } from "../../api/client";
import type { Run } from "../../api/types";
import { Command } from "../../design/Command";
import { firstLine } from "../../design/format";
import { Note } from "../../design/Note";
import { ErrorState, SkeletonRows } from "../../design/States";
import { Status } from "../../design/Status";
import { useShortcut } from "../../design/shortcuts";
import { Lasted, Money, Time } from "../../design/Time";
import { useRefresh } from "../../streams/FeedContext";
import { useRunEvents } from "../../streams/useRunEvents";
import { Actions } from "./Actions";
import { TABS, type TabGiven } from "./tabs";
import "./run.css";

const REFRESH_MS = 700;

export default function RunPage() {
  const { run: id = "" } = useParams<{ run: string }>();
  // Another run has nothing in common with this one, so nothing of it may stay on the page.
  return <OneRun id={id} key={id} />;
}

function OneRun({ id }: { id: string }) {
  const { tab } = useParams<{ tab?: string }>();
  const [, go] = useLocation();
  const client = useQueryClient();
  const run = useQuery({
    queryKey: ["run", id],
    queryFn: ({ signal }) => api.get("/agent/runs/{run_id}", { path: { run_id: id }, signal }),
  });
  const log = useRunEvents(id);
  useRefresh(
    (event) => event.run_id === id && event.type !== "log" && event.id > 0,
    () => void client.invalidateQueries({ queryKey: ["run", id] }),
    REFRESH_MS,
  );
  const title = run.data ? firstLine(run.data.prompt) : "Run";
  useEffect(() => {
    document.title = `${title} · Console`;
  }, [title]);
  const at = Math.max(
    0,
    TABS.findIndex(({ path }) => path === tab),
  );
  const turn = (by: number) =>
    go(`/runs/${id}/${TABS[(at + by + TABS.length) % TABS.length]?.path}`, { replace: true });
  useShortcut("]", "Next tab", () => turn(1));
  useShortcut("[", "Tab before", () => turn(-1));

  if (run.isError && !run.data) return <ErrorState error={run.error} retry={() => void run.refetch()} />;
  if (!run.data) return <SkeletonRows rows={6} />;
  const given: TabGiven = { run: run.data, log };
  const Shown = TABS[at]?.component;
  return (
    <div className="stack">
      <Head run={run.data} />
      <nav className="tabs" aria-label="Parts of the run">
        {TABS.map(({ path, title: name }, index) => (
          <Link key={path} href={`/runs/${id}/${path}`} replace aria-current={index === at ? "page" : undefined}>
            {name(given)}
          </Link>
        ))}
      </nav>
      <Suspense fallback={<SkeletonRows rows={6} />}>{Shown && <Shown {...given} />}</Suspense>
    </div>
  );
}

function Head({ run }: { run: Run }) {
  const cost = run.result?.cost;
  return (
    <header className="stack-s">
      <div className="row wrap">
        <Status state={run.status} />
        <h1 className="grow run-title">{firstLine(run.prompt)}</h1>
        <Actions run={run} />
      </div>
      <dl className="run-facts">
        <Fact name="Id">
          <code>{run.run_id}</code>
        </Fact>
        <Fact name="Attempt">
          {run.attempt} of {run.max_retries + 1}
        </Fact>
        <Fact name="Created">
          <Time at={run.created_at} />
        </Fact>
        <Fact name="Waited">
          <Lasted from={run.queued_at} until={run.started_at ?? run.finished_at} />
        </Fact>
        <Fact name="Took">
          <Lasted from={run.started_at} until={run.finished_at} />
        </Fact>
        <Fact name="Cost">
          <Money amount={cost?.usd} />
          {cost && cost.model_calls > 0 && (
            <span className="muted"> · {(cost.input_tokens + cost.output_tokens).toLocaleString("en-US")} tokens</span>
          )}
        </Fact>
        <Fact name="Queue">
          {run.queue}
          {run.priority !== "normal" && ` · ${run.priority}`}
        </Fact>
        {run.worker && (
          <Fact name="Worker">
            <code>{run.worker}</code>
          </Fact>
        )}
        {run.handler && <Fact name="Handler">{run.handler}</Fact>}
        {run.origin && (
          <Fact name={run.origin.kind}>
            <Link href={`/runs/${run.origin.run_id}`}>{run.origin.run_id.slice(0, 13)}</Link>
          </Fact>
        )}
        {run.parent && (
          <Fact name="Parent">
            <Link href={`/runs/${run.parent}`}>{run.parent.slice(0, 13)}</Link>
          </Fact>
        )}
      </dl>
      {run.error && run.status !== "waiting" && (
        <Note tone="bad" isLoud={false}>
          <p>
            <code>{run.error.code}</code> {run.error.message}
          </p>
          {run.error.step && <p className="muted">In the step {run.error.step}.</p>}
        </Note>
      )}
      {run.status === "waiting" && (
        <Note tone="warn" isLoud={false}>
          It waits. <Link href={`/runs/${run.run_id}/decisions`}>See what it asks</Link>, or{" "}
          <Link href={`/runs/${run.run_id}/explain`}>why</Link>.
        </Note>
      )}
      {run.result?.summary && <p className="run-summary">{run.result.summary}</p>}
      <details className="muted">
        <summary>Prompt, and the same from the command line</summary>
        <div className="stack-s run-prompt">
          <pre>{run.prompt}</pre>
          <Command text={`agentctl show ${run.run_id}`} />
        </div>
      </details>
    </header>
  );
}

function Fact({ name, children }: { name: string; children: ReactNode }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{children}</dd>
    </div>
  );
}
