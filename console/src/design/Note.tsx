import type { ReactNode } from "react";
import { Icon } from "./Icon";

export type Tone = "good" | "bad" | "warn" | "busy" | "idle";
const ICONS = { good: "check", bad: "cross", warn: "warning", busy: "dots", idle: "question" } as const;

/** A sentence beside what it is about; `isLoud`: it is read out when it appears. */
export function Note({
  tone,
  children,
  id,
  isLoud = true,
}: {
  tone: Tone;
  children: ReactNode;
  id?: string;
  isLoud?: boolean;
}) {
  return (
    <div className={`note tone-${tone}`} id={id} role={isLoud ? (tone === "bad" ? "alert" : "status") : undefined}>
      <Icon name={ICONS[tone]} />
      <div className="grow">{children}</div>
    </div>
  );
}
