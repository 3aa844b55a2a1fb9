import { useQuery } from "@tanstack/react-query";
import { api } from "../../api/client";
import { Command } from "../../design/Command";
import { duration } from "../../design/format";
import { ErrorState, SkeletonRows } from "../../design/States";
import type { TabGiven } from "./tabs";

const AGAIN_MS = 5000;
const OVER: ReadonlySet<string> = new Set(["completed", "failed", "cancelled"]);

/** Why the run waits, as the platform says it. No event tells when that changes, so it is asked for again. */
export default function ExplainTab({ run }: TabGiven) {
  const found = useQuery({
    queryKey: ["run", run.run_id, "explain", run.status],
    queryFn: ({ signal }) => api.get("/agent/runs/{run_id}/explain", { path: { run_id: run.run_id }, signal }),
    refetchInterval: OVER.has(run.status) ? false : AGAIN_MS,
  });
  if (found.isError && !found.data) return <ErrorState error={found.error} retry={() => void found.refetch()} />;
  if (!found.data) return <SkeletonRows rows={4} />;
  const { text, reasons, queue, priority, ahead, workers, free_slots, max_concurrent } = found.data;
  const { waiting_seconds, estimated_wait_seconds, estimated_wait_p90_seconds } = found.data;
  const facts: [string, string | number | null | undefined][] = [
    ["Queue", queue],
    ["Priority", priority],
    ["Runs ahead", ahead],
    ["Workers", workers],
    ["Free places", free_slots == null ? null : `${free_slots} of ${max_concurrent}`],
    ["Waits since", waiting_seconds == null ? null : duration(waiting_seconds)],
    ["Begins in about", estimated_wait_seconds == null ? null : duration(estimated_wait_seconds)],
    ["In nine cases of ten within", estimated_wait_p90_seconds == null ? null : duration(estimated_wait_p90_seconds)],
  ];
  return (
    <section className="panel" aria-label="Why it waits">
      <div className="body stack">
        <p>{text}</p>
        {reasons.length > 1 && (
          <ul className="stack-s">
            {reasons.map((reason) => (
              <li key={`${reason.code} ${reason.text}`}>
                <code>{reason.code}</code> {reason.text}
              </li>
            ))}
          </ul>
        )}
        <dl className="facts">
          {facts.map(
            ([name, value]) =>
              value != null && (
                <div key={name} style={{ display: "contents" }}>
                  <dt>{name}</dt>
                  <dd>{value}</dd>
                </div>
              ),
          )}
        </dl>
        <Command text={`agentctl explain ${run.run_id}`} />
      </div>
    </section>
  );
}
