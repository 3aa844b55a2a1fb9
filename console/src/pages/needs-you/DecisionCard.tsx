// One decision: what is asked, in full, and the ways to answer it. What somebody else decided meanwhile is shown.
import { useMutation, useQueryClient } from "@tanstack/react-query";
import { type ReactNode, useRef, useState } from "react";
import { api } from "../../api/client";
import { ApiError } from "../../api/problem";
import type { Decision } from "../../api/types";
import { Icon } from "../../design/Icon";
import { Note } from "../../design/Note";
import { ErrorState } from "../../design/States";
import { Status } from "../../design/Status";
import { Time } from "../../design/Time";
import { useSession } from "../../session/SessionContext";
import { changed } from "./arguments";
import "./decision.css";

type Body = Parameters<typeof api.post<"/agent/runs/{run_id}/decisions/{decision_id}">>[1];

interface Given {
  decision: Decision;
  /** Of a list: whether keys go to this one. */
  isChosen?: boolean;
  link?: ReactNode;
}

export function DecisionCard({ decision, isChosen = false, link }: Given) {
  const { asked, kind, status } = decision;
  const session = useSession();
  const client = useQueryClient();
  const original = JSON.stringify(asked.arguments ?? {}, null, 2);
  const [edited, setEdited] = useState<string | null>(null);
  const [text, setText] = useState("");
  const [usd, setUsd] = useState("");
  const [fault, setFault] = useState<string | null>(null);
  const field = useRef<HTMLTextAreaElement>(null);
  const decide = useMutation({
    mutationFn: (body: Body) =>
      api.post("/agent/runs/{run_id}/decisions/{decision_id}", body, {
        path: { run_id: decision.run_id, decision_id: decision.decision_id },
      }),
    onSettled: () => {
      void client.invalidateQueries({ queryKey: ["pending"] });
      void client.invalidateQueries({ queryKey: ["run", decision.run_id] });
    },
  });
  const isOpen = status === "pending" && !decide.isSuccess;
  const isBlocked = decide.isPending || session.is_read_only;

  function approve() {
    setFault(null);
    const given = edited === null ? { value: undefined } : changed(original, edited);
    if ("fault" in given) {
      setFault(given.fault);
      return;
    }
    const amount = Number(usd);
    if (kind === "budget" && usd && !(amount > 0)) {
      setFault("The dollars that are added must be a number above 0.");
      return;
    }
    decide.mutate({
      decision: "approve",
      ...(given.value ? { arguments: given.value } : {}),
      ...(kind === "budget" && usd ? { budget: { usd: amount } } : {}),
    } as Body);
  }

  const wasFaster = decide.error instanceof ApiError && decide.error.status === 409;
  return (
    <article
      className={`panel decision${isChosen ? " chosen" : ""}`}
      aria-label={`${kind} of the step ${decision.step}`}
      data-decision={decision.decision_id}
    >
      <header>
        <Status state={status} />
        <strong>{kind}</strong>
        <span className="muted cut">
          {decision.step} · <Time at={decision.created_at} />
        </span>
        <span className="grow" />
        {link}
      </header>
      <div className="body stack-s">
        {asked.question && <p>{asked.question}</p>}
        {asked.message && <p>{asked.message}</p>}
        {asked.reason && <p className="muted">{asked.reason}</p>}
        {asked.tool && (
          <p>
            It wants to use <code>{asked.tool}</code> with
          </p>
        )}
        {asked.resource && (
          <p>
            The budget of {asked.resource} is empty{asked.left != null && `: ${asked.left} is left`}
            {asked.needed != null && `, ${asked.needed} is needed`}.
          </p>
        )}
        {asked.arguments &&
          (edited === null ? (
            <pre className="decision-arguments">{original}</pre>
          ) : (
            <label className="field">
              <span>Arguments, as JSON</span>
              <textarea
                className="input"
                rows={Math.min(edited.split("\n").length + 1, 20)}
                spellCheck={false}
                value={edited}
                onChange={(event) => setEdited(event.target.value)}
              />
            </label>
          ))}
        {isOpen && (
          <div className="stack-s">
            {asked.choices && asked.choices.length > 0 && (
              <div className="row wrap">
                {asked.choices.map((choice) => (
                  <button
                    type="button"
                    className="button"
                    key={choice}
                    disabled={isBlocked}
                    onClick={() => decide.mutate({ decision: "answer", text: choice } as Body)}
                  >
                    {choice}
                  </button>
                ))}
              </div>
            )}
            {kind === "budget" && (
              <label className="field">
                <span>Dollars to add to the run's budget (empty: let it go on without)</span>
                <input
                  className="input"
                  inputMode="decimal"
                  value={usd}
                  onChange={(event) => setUsd(event.target.value)}
                />
              </label>
            )}
            <label className="field">
              <span>{kind === "question" ? "Answer" : "Reason, if you reject"}</span>
              <textarea
                ref={field}
                className="input decision-text"
                rows={2}
                value={text}
                onChange={(event) => setText(event.target.value)}
              />
            </label>
            <div className="row wrap">
              {kind === "question" ? (
                <button
                  type="button"
                  className="button primary"
                  disabled={isBlocked || !text.trim()}
                  onClick={() => decide.mutate({ decision: "answer", text } as Body)}
                >
                  <Icon name="check" />
                  Answer
                </button>
              ) : (
                <button
                  type="button"
                  className="button primary decision-approve"
                  disabled={isBlocked}
                  onClick={approve}
                >
                  <Icon name="check" />
                  {edited !== null && edited !== original ? "Approve as edited" : "Approve"}
                </button>
              )}
              {asked.arguments && (
                <button
                  type="button"
                  className="button decision-edit"
                  disabled={isBlocked}
                  onClick={() => setEdited(edited === null ? original : null)}
                >
                  {edited === null ? "Edit" : "As it was"}
                </button>
              )}
              <button
                type="button"
                className="button danger"
                disabled={isBlocked}
                onClick={() => decide.mutate({ decision: "reject", reason: text } as Body)}
              >
                <Icon name="cross" />
                Reject
              </button>
            </div>
            {session.is_read_only && <p className="muted">Your token is read-only, so somebody else decides.</p>}
          </div>
        )}
        {fault && <Note tone="bad">{fault}</Note>}
        {wasFaster && <Note tone="warn">Somebody else was faster. What was decided is shown above in a moment.</Note>}
        {decide.isError && !wasFaster && <ErrorState error={decide.error} />}
        {decide.isSuccess && status === "pending" && <Note tone="good">Your decision is on its way to the run.</Note>}
        {decision.decided_at && (
          <p className="muted">
            Decided <Time at={decision.decided_at} />
            {decision.decided_by && ` by ${decision.decided_by === session.user.id ? "you" : decision.decided_by}`}
            {decision.answer?.text && `: ${decision.answer.text}`}
            {decision.answer?.reason && `: ${decision.answer.reason}`}
          </p>
        )}
      </div>
    </article>
  );
}
