// What can be done with a run, by its state. The API says no where it must; the button is there to be found.
import { useMutation, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { useLocation } from "wouter";
import { api } from "../../api/client";
import type { Run } from "../../api/types";
import { Dialog } from "../../design/Dialog";
import { Icon, type IconName } from "../../design/Icon";
import { ErrorState } from "../../design/States";
import { useShortcut } from "../../design/shortcuts";
import { useSession } from "../../session/SessionContext";

type Body = Parameters<typeof api.post<"/agent/execute">>[1];
interface Action {
  name: string;
  icon: IconName;
  body: Body;
  isNew?: boolean;
}

const OVER: ReadonlySet<string> = new Set(["completed", "failed", "cancelled"]);

export function actionsOf(run: Run): Action[] {
  const run_id = run.run_id;
  const found: Action[] = [];
  if (run.status === "created") found.push({ name: "Start", icon: "play", body: { action: "start", run_id } });
  if (run.status === "failed") found.push({ name: "Retry", icon: "retry", body: { action: "retry", run_id } as Body });
  if (OVER.has(run.status)) {
    found.push({ name: "Fork", icon: "fork", body: { action: "fork", run_id, start: true } as Body, isNew: true });
    found.push({
      name: "Replay",
      icon: "play",
      body: { action: "replay", run_id, execute: false } as Body,
      isNew: true,
    });
  }
  return found;
}

export function Actions({ run }: { run: Run }) {
  const [, go] = useLocation();
  const client = useQueryClient();
  const { is_read_only: isReadOnly } = useSession();
  const [isAsking, setAsking] = useState(false);
  const act = useMutation({
    mutationFn: ({ body }: Action) => api.post("/agent/execute", body),
    onSuccess: (answer, action) => {
      if (action.isNew && answer && "run_id" in answer) go(`/runs/${answer.run_id}`);
      else void client.invalidateQueries({ queryKey: ["run", run.run_id] });
    },
  });
  const canCancel = !OVER.has(run.status);
  useShortcut(canCancel ? "c" : undefined, "Cancel the run", () => setAsking(true));
  const cancel: Action = { name: "Cancel", icon: "stop", body: { action: "cancel", run_id: run.run_id } };
  return (
    <div className="row wrap">
      {actionsOf(run).map((action) => (
        <button
          type="button"
          className="button"
          key={action.name}
          disabled={act.isPending || isReadOnly}
          title={isReadOnly ? "Your token is read-only" : undefined}
          onClick={() => act.mutate(action)}
        >
          <Icon name={action.icon} />
          {action.name}
        </button>
      ))}
      {canCancel && (
        <button
          type="button"
          className="button danger"
          disabled={run.cancel_requested || isReadOnly}
          onClick={() => setAsking(true)}
        >
          <Icon name="stop" />
          {run.cancel_requested ? "Being cancelled" : "Cancel"}
        </button>
      )}
      {act.isError && <ErrorState error={act.error} />}
      {isAsking && (
        <Dialog title="Cancel this run?" onClose={() => setAsking(false)}>
          <div className="stack">
            <p>Its sandboxes end at once. Files that it has written stay; a cancelled run can be forked.</p>
            <div className="row">
              <button
                type="button"
                className="button danger"
                onClick={() => {
                  setAsking(false);
                  act.mutate(cancel);
                }}
              >
                Cancel the run
              </button>
              <button type="button" className="button" onClick={() => setAsking(false)}>
                Let it go on
              </button>
            </div>
          </div>
        </Dialog>
      )}
    </div>
  );
}
