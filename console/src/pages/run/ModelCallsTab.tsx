import { useInfiniteQuery, useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { api } from "../../api/client";
import { Command } from "../../design/Command";
import { count } from "../../design/format";
import { EmptyState, ErrorState, SkeletonRows } from "../../design/States";
import { Status } from "../../design/Status";
import { Lasted, Money } from "../../design/Time";
import type { TabGiven } from "./tabs";

export default function ModelCallsTab({ run, log }: TabGiven) {
  const [open, setOpen] = useState<string | null>(null);
  const made = log.events.reduce((number, event) => number + (event.type === "model" ? 1 : 0), 0);
  const calls = useInfiniteQuery({
    queryKey: ["run", run.run_id, "model-calls", made],
    queryFn: ({ pageParam, signal }) =>
      api.get("/agent/runs/{run_id}/model-calls", {
        path: { run_id: run.run_id },
        query: { cursor: pageParam, limit: 200 },
        signal,
      }),
    initialPageParam: 0,
    getNextPageParam: (last) => last.next_cursor ?? null,
    placeholderData: (old) => old,
  });
  if (calls.isError && !calls.data) return <ErrorState error={calls.error} retry={() => void calls.refetch()} />;
  if (!calls.data) return <SkeletonRows rows={4} />;
  const all = calls.data.pages.flatMap((page) => page.calls);
  if (!all.length)
    return (
      <div className="panel">
        <EmptyState title="No model was called">
          <p className="muted">What a run asks a model and what it answers is kept and shown here.</p>
        </EmptyState>
      </div>
    );
  return (
    <section className="panel" aria-label="Model calls">
      <div className="table-frame">
        <table className="table">
          <thead>
            <tr>
              <th>Call</th>
              <th>Status</th>
              <th>Model</th>
              <th>For</th>
              <th className="num">In</th>
              <th className="num">Out</th>
              <th className="num">Cost</th>
              <th className="num">Took</th>
            </tr>
          </thead>
          <tbody>
            {all.map((call) => (
              <tr key={call.call_id}>
                <td>
                  <button
                    type="button"
                    className="button plain"
                    aria-expanded={open === call.call_id}
                    onClick={() => setOpen(open === call.call_id ? null : call.call_id)}
                  >
                    {call.number}
                  </button>
                </td>
                <td>
                  <Status state={call.status} />
                </td>
                <td>{call.model}</td>
                <td className="muted">
                  {call.purpose} {call.step}
                </td>
                <td className="num">{count(call.input_tokens)}</td>
                <td className="num">{count(call.output_tokens)}</td>
                <td className="num">
                  <Money amount={call.usd} />
                </td>
                <td className="num">
                  <Lasted from={call.started_at} until={call.finished_at} />
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      {calls.hasNextPage && (
        <button type="button" className="button plain" onClick={() => void calls.fetchNextPage()}>
          Show more
        </button>
      )}
      {open && <Call run={run.run_id} call={open} />}
    </section>
  );
}

function Call({ run, call }: { run: string; call: string }) {
  const found = useQuery({
    queryKey: ["run", run, "model-call", call],
    queryFn: ({ signal }) =>
      api.get("/agent/runs/{run_id}/model-calls/{call_id}", { path: { run_id: run, call_id: call }, signal }),
  });
  if (found.isError) return <ErrorState error={found.error} />;
  if (!found.data) return <SkeletonRows rows={3} />;
  return (
    <div className="body stack-s call">
      {found.data.error && <ErrorState error={new Error(found.data.error.message)} />}
      <h2>Asked</h2>
      <pre>{JSON.stringify(found.data.request, null, 2)}</pre>
      <h2>Answered</h2>
      <pre>{found.data.response ? JSON.stringify(found.data.response, null, 2) : "nothing yet"}</pre>
      <Command text={`agentctl show ${run}`} />
    </div>
  );
}
