import { useQuery } from "@tanstack/react-query";
import { useMemo, useState } from "react";
import { api } from "../../../api/client";
import type { Plan } from "../../../api/types";
import { EmptyState, ErrorState, SkeletonRows } from "../../../design/States";
import { Status } from "../../../design/Status";
import { Time } from "../../../design/Time";
import type { TabGiven } from "../tabs";
import { layersOf, needsOf } from "./layers";
import "./plan.css";

const WIDTH = 200;
const HEIGHT = 64;
const GAP_X = 48;
const GAP_Y = 16;

export default function PlanTab({ run }: TabGiven) {
  const [version, setVersion] = useState<number | null>(null);
  const [step, setStep] = useState<string | null>(null);
  const plans = useQuery({
    queryKey: ["run", run.run_id, "plans", run.plan_version],
    queryFn: ({ signal }) => api.get("/agent/runs/{run_id}/plans", { path: { run_id: run.run_id }, signal }),
  });
  if (plans.isError && !plans.data) return <ErrorState error={plans.error} retry={() => void plans.refetch()} />;
  if (plans.isPending) return <SkeletonRows rows={4} />;
  const versions = plans.data.plans;
  const shown = versions.find((one) => one.version === version) ?? versions.at(-1);
  const plan = shown?.plan ?? run.plan;
  if (!plan)
    return (
      <div className="panel">
        <EmptyState title={run.handler ? "This run has no plan" : "There is no plan yet"}>
          <p className="muted">
            {run.handler
              ? `Its steps are those of the handler ${run.handler}.`
              : "A worker makes it when the run begins."}
          </p>
        </EmptyState>
      </div>
    );
  const details = plan.steps.find(({ id }) => id === step);
  const result = run.steps.find(({ id }) => id === step);
  return (
    <section className="panel" aria-label="Plan">
      <header>
        <span className="muted grow">
          {plan.steps.length} steps · made by {plan.planner}
        </span>
        {versions.length > 1 && (
          <label className="row">
            <span className="muted">Version</span>
            <select
              className="input"
              value={shown?.version}
              onChange={(event) => setVersion(Number(event.target.value))}
            >
              {versions.map((one) => (
                <option key={one.version} value={one.version}>
                  {one.version}
                  {one.replaced_at ? "" : ", in force"}
                </option>
              ))}
            </select>
          </label>
        )}
      </header>
      {shown?.replaced_at && (
        <p className="plan-replaced muted">
          Replaced <Time at={shown.replaced_at} />: {shown.reason ?? "no reason was given"}
        </p>
      )}
      <Picture plan={plan} run={run} chosen={step} choose={setStep} />
      {details && (
        <div className="body stack-s plan-details">
          <div className="row wrap">
            <h2>{details.title || details.id}</h2>
            <code className="muted">{details.tool}</code>
            {result && <Status state={result.status} />}
            {details.approval && <span className="muted">asks a person first</span>}
          </div>
          <pre>{JSON.stringify(details.arguments ?? {}, null, 2)}</pre>
          {result?.result && (
            <>
              <h3>Result</h3>
              <pre>{result.result.output ?? JSON.stringify(result.result, null, 2)}</pre>
            </>
          )}
        </div>
      )}
    </section>
  );
}

interface PictureGiven {
  plan: Plan;
  run: TabGiven["run"];
  chosen: string | null;
  choose: (step: string) => void;
}

function Picture({ plan, run, chosen, choose }: PictureGiven) {
  const { places, lines, width, height } = useMemo(() => {
    const layers = layersOf(plan.steps);
    const found = new Map<string, { x: number; y: number }>();
    layers.forEach((layer, column) => {
      layer.forEach((id, row) => {
        found.set(id, { x: column * (WIDTH + GAP_X), y: row * (HEIGHT + GAP_Y) });
      });
    });
    const drawn = [...needsOf(plan.steps)].flatMap(([id, needs]) =>
      needs.flatMap((need) => {
        const from = found.get(need);
        const to = found.get(id);
        if (!from || !to) return [];
        const [x1, y1, x2, y2] = [from.x + WIDTH, from.y + HEIGHT / 2, to.x, to.y + HEIGHT / 2];
        const middle = (x1 + x2) / 2;
        return [{ key: `${need} ${id}`, path: `M${x1} ${y1}C${middle} ${y1} ${middle} ${y2} ${x2} ${y2}` }];
      }),
    );
    return {
      places: found,
      lines: drawn,
      width: layers.length * (WIDTH + GAP_X) - GAP_X,
      height: Math.max(...layers.map((layer) => layer.length)) * (HEIGHT + GAP_Y) - GAP_Y,
    };
  }, [plan]);
  const states = new Map(run.steps.map((step) => [step.id, step.status]));
  return (
    // biome-ignore lint/a11y/noNoninteractiveTabindex: it scrolls by the keys
    <div className="plan-frame" tabIndex={0} role="group" aria-label="Steps of the plan">
      <div style={{ width, height, position: "relative" }}>
        <svg width={width} height={height} aria-hidden="true">
          {lines.map(({ key, path }) => (
            <path key={key} d={path} />
          ))}
        </svg>
        {plan.steps.map((step) => {
          const place = places.get(step.id);
          return (
            place && (
              <button
                type="button"
                key={step.id}
                className="plan-step"
                aria-pressed={step.id === chosen}
                style={{ left: place.x, top: place.y, width: WIDTH, height: HEIGHT }}
                onClick={() => choose(step.id)}
              >
                <span className="cut">{step.title || step.id}</span>
                <span className="row">
                  <Status state={states.get(step.id) ?? "pending"} />
                  <code className="cut muted">{step.tool}</code>
                </span>
              </button>
            )
          );
        })}
      </div>
    </div>
  );
}
