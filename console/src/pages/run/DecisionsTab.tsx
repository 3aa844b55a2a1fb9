import { useQuery } from "@tanstack/react-query";
import { api } from "../../api/client";
import { EmptyState, ErrorState, SkeletonRows } from "../../design/States";
import { DecisionCard } from "../needs-you/DecisionCard";
import type { TabGiven } from "./tabs";

export default function DecisionsTab({ run, log }: TabGiven) {
  const seen = log.events.reduce((last, event) => (event.type === "decision" ? event.id : last), 0);
  const found = useQuery({
    queryKey: ["run", run.run_id, "decisions", seen],
    queryFn: ({ signal }) =>
      api.get("/agent/runs/{run_id}/decisions", { path: { run_id: run.run_id }, query: { limit: 200 }, signal }),
    placeholderData: (old) => old,
  });
  if (found.isError && !found.data) return <ErrorState error={found.error} retry={() => void found.refetch()} />;
  if (!found.data) return <SkeletonRows rows={3} />;
  if (!found.data.decisions.length)
    return (
      <div className="panel">
        <EmptyState title="It has asked nobody">
          <p className="muted">A step with `approval`, a question of an agent or an empty budget makes it ask.</p>
        </EmptyState>
      </div>
    );
  return (
    <div className="stack">
      {found.data.decisions.map((decision) => (
        <DecisionCard key={decision.decision_id} decision={decision} />
      ))}
    </div>
  );
}
