// The parts of a run's page, in their order.
import { type ComponentType, lazy } from "react";
import type { Run } from "../../api/types";
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

export const TABS: readonly Tab[] = [
  { path: "log", title: () => "Log", component: LogTab },
  { path: "events", title: () => "Events", component: lazy(() => import("./EventsTab")) },
  { path: "explain", title: () => "Explain", component: lazy(() => import("./ExplainTab")) },
];
