// What spend may be grouped by, and how a group is called.
import type { components } from "../../api/schema";

export const KEYS = ["user", "agent", "model", "day", "role", "pool"] as const;
export type SpendKey = (typeof KEYS)[number];
type Group = components["schemas"]["ModelUsageGroupView"];

/** The keys in a text like "model,day", each once; by model where it names none that is known. */
export function keysOf(text: string | null): SpendKey[] {
  const named = new Set((text ?? "").split(","));
  const known = [...named].filter((one): one is SpendKey => (KEYS as readonly string[]).includes(one));
  return known.length ? known : ["model"];
}

export function nameOf(key: SpendKey, group: Group): string {
  if (key === "user") return group.user ?? group.user_id ?? "–";
  if (key === "agent") return group.agent_name ?? group.agent ?? "–";
  return group[key] || "–";
}
