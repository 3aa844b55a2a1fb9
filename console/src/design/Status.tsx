// A state has the same word, icon and colour wherever it stands.
import { Icon, type IconName } from "./Icon";
import type { Tone } from "./Note";

const STATES: Record<string, { icon: IconName; tone: Tone; turning?: true }> = {
  created: { icon: "circle", tone: "idle" },
  queued: { icon: "clock", tone: "idle" },
  pending: { icon: "clock", tone: "idle" },
  begun: { icon: "play", tone: "busy" },
  running: { icon: "play", tone: "busy", turning: true },
  started: { icon: "play", tone: "busy", turning: true },
  working: { icon: "play", tone: "busy", turning: true },
  changing: { icon: "play", tone: "busy", turning: true },
  deploying: { icon: "play", tone: "busy", turning: true },
  retrying: { icon: "retry", tone: "warn" },
  interrupted: { icon: "pause", tone: "warn" },
  waiting: { icon: "hand", tone: "warn" },
  waiting_for_person: { icon: "hand", tone: "warn" },
  waiting_for_agent: { icon: "clock", tone: "idle" },
  uncertain: { icon: "question", tone: "warn" },
  paused: { icon: "pause", tone: "idle" },
  asleep: { icon: "moon", tone: "idle" },
  idle: { icon: "circle", tone: "idle" },
  skipped: { icon: "slash", tone: "idle" },
  cancelled: { icon: "slash", tone: "idle" },
  stopped: { icon: "stop", tone: "idle" },
  terminated: { icon: "stop", tone: "idle" },
  completed: { icon: "check", tone: "good" },
  done: { icon: "check", tone: "good" },
  delivered: { icon: "check", tone: "good" },
  approved: { icon: "check", tone: "good" },
  answered: { icon: "check", tone: "good" },
  up: { icon: "check", tone: "good" },
  failed: { icon: "cross", tone: "bad" },
  refused: { icon: "cross", tone: "bad" },
  rejected: { icon: "cross", tone: "bad" },
  given_up: { icon: "cross", tone: "bad" },
  down: { icon: "cross", tone: "bad" },
  unknown: { icon: "question", tone: "idle" },
};

export function toneOf(state: string): Tone {
  return STATES[state]?.tone ?? "idle";
}

export function iconOf(state: string): IconName {
  return STATES[state]?.icon ?? "circle";
}

export function Status({ state }: { state: string }) {
  const { icon, tone, turning } = STATES[state] ?? { icon: "circle", tone: "idle" };
  return (
    <span className={`status tone-${tone}${turning ? " turning" : ""}`}>
      <Icon name={icon} />
      {state.replaceAll("_", " ")}
    </span>
  );
}
