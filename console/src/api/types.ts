// Short names of what the API answers.
import type { components } from "./schema";

type Schemas = components["schemas"];
export type Run = Schemas["RunView"];
export type RunSummary = Schemas["RunSummary"];
export type RunStatus = Schemas["RunStatus"];
export type Event = Schemas["Event"];
export type Decision = Schemas["DecisionView"];
export type Plan = Schemas["Plan"];
export type FileView = Schemas["FileView"];
export type ModelCall = Schemas["ModelCallView"];
export type Fault = Schemas["ErrorView"];
