// The parts of a run's page, in their order.
import type { ComponentType } from "react";
import type { Run } from "../../api/types";
import { lazyPage } from "../../lazyPage";
import type { RunEventsState } from "../../streams/runEvents";
import { LogTab } from "./log/LogTab";

export interface TabGiven {
  run: Run;
  log: RunEventsState;
}

interface Tab {
  path: string;
  title: (given: TabGiven) => string;
  component: ComponentType<TabGiven>;
}

const asked = ({ log }: TabGiven) =>
  log.events.reduce((open, event) => {
    if (event.type !== "decision") return open;
    return event.data.status === "pending" ? open + 1 : Math.max(open - 1, 0);
  }, 0);

export const TABS: readonly Tab[] = [
  { path: "timeline", title: () => "Timeline", component: lazyPage(() => import("./timeline/TimelineTab")) },
  { path: "plan", title: () => "Plan", component: lazyPage(() => import("./plan/PlanTab")) },
  { path: "log", title: () => "Log", component: LogTab },
  { path: "files", title: () => "Files", component: lazyPage(() => import("./files/FilesTab")) },
  { path: "model-calls", title: () => "Model calls", component: lazyPage(() => import("./ModelCallsTab")) },
  {
    path: "decisions",
    title: (given) => (asked(given) ? `Decisions · ${asked(given)} open` : "Decisions"),
    component: lazyPage(() => import("./DecisionsTab")),
  },
  { path: "events", title: () => "Events", component: lazyPage(() => import("./EventsTab")) },
  { path: "explain", title: () => "Explain", component: lazyPage(() => import("./ExplainTab")) },
];
