import { useMemo, useState } from "react";
import { Link } from "wouter";
import { Command } from "../../design/Command";
import { EmptyState, ErrorState, SkeletonRows } from "../../design/States";
import { useShortcut } from "../../design/shortcuts";
import { DecisionCard } from "./DecisionCard";
import { usePending } from "./pending";

/** All that waits for a person, oldest first: who has waited longest is answered first. */
export default function NeedsYou() {
  const pending = usePending();
  const [chosen, setChosen] = useState(0);
  const all = useMemo(
    () => (pending.data?.decisions ?? []).toSorted((one, other) => one.created_at.localeCompare(other.created_at)),
    [pending.data],
  );
  const at = Math.min(chosen, Math.max(all.length - 1, 0));
  const element = (part: string) => {
    const id = all[at]?.decision_id;
    return id ? document.querySelector<HTMLElement>(`[data-decision="${id}"] ${part}`) : null;
  };
  function choose(next: number) {
    const wanted = Math.max(0, Math.min(next, all.length - 1));
    setChosen(wanted);
    document.querySelector(`[data-decision="${all[wanted]?.decision_id}"]`)?.scrollIntoView({ block: "nearest" });
  }
  useShortcut("j", "Next decision", () => choose(at + 1));
  useShortcut("k", "Decision before", () => choose(at - 1));
  useShortcut("a", "Approve it", () => element(".decision-approve")?.click());
  useShortcut("e", "Edit its arguments", () => element(".decision-edit")?.click());
  useShortcut("r", "Write an answer, or why you reject", () => element(".decision-text")?.focus());

  return (
    <>
      <div className="page-head">
        <h1 className="grow">Needs you</h1>
        {all.length > 0 && (
          <span className="muted">
            {all.length}
            {pending.data?.next_cursor ? " and more" : ""} · <kbd>j</kbd> <kbd>k</kbd> choose, <kbd>a</kbd> approves,{" "}
            <kbd>e</kbd> edits, <kbd>r</kbd> writes
          </span>
        )}
      </div>
      {pending.isError && !pending.data && <ErrorState error={pending.error} retry={() => void pending.refetch()} />}
      {pending.isPending && <SkeletonRows rows={6} />}
      {pending.data && !all.length && (
        <div className="panel">
          <EmptyState title="Nothing waits for you">
            <p className="muted">
              Approvals, questions and empty budgets of your runs come here the moment that they are asked.
            </p>
            <Command text="agentctl decisions" />
          </EmptyState>
        </div>
      )}
      <div className="stack">
        {all.map((decision, index) => (
          <DecisionCard
            key={decision.decision_id}
            decision={decision}
            isChosen={index === at}
            link={<Link href={`/runs/${decision.run_id}`}>{decision.run_id.slice(0, 13)}</Link>}
          />
        ))}
      </div>
    </>
  );
}
