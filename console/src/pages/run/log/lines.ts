// The lines of a log: what a run printed, and in between what happened to it.
import type { Event } from "../../../api/types";

export interface Line {
  id: number;
  at: string;
  step: string;
  /** `mark`: it was printed by nobody. */
  kind: "info" | "warning" | "mark" | "bad";
  text: string;
}

/** Characters of a line that are shown; the whole of it is in the download. */
const MAX_SHOWN = 4000;

export function lineOf(event: Event): Line | null {
  const { id, at } = event;
  switch (event.type) {
    case "log": {
      const { line, step, level, dropped_lines } = event.data;
      const more = dropped_lines ? ` (${dropped_lines} lines were left out here)` : "";
      const text = line.length > MAX_SHOWN ? `${line.slice(0, MAX_SHOWN)}…` : line;
      return { id, at, step: step ?? "", kind: level === "warning" ? "warning" : "info", text: text + more };
    }
    case "status": {
      const { status, attempt, error, reason } = event.data;
      const text = [
        `run ${status}`,
        attempt && attempt > 1 ? `attempt ${attempt}` : "",
        error ? `${error.code}: ${error.message}` : (reason ?? ""),
      ];
      return { id, at, step: "", kind: status === "failed" ? "bad" : "mark", text: text.filter(Boolean).join(" · ") };
    }
    case "step": {
      const { step, status, title, error, exit_code, duration_ms } = event.data;
      const text = [
        `${title || step} ${status}`,
        exit_code ? `exit code ${exit_code}` : "",
        duration_ms != null ? `${duration_ms} ms` : "",
        error ? `${error.code}: ${error.message}` : "",
      ];
      return { id, at, step, kind: status === "failed" ? "bad" : "mark", text: text.filter(Boolean).join(" · ") };
    }
    case "plan":
      return { id, at, step: "", kind: "mark", text: `plan ${event.data.version} · ${event.data.steps.length} steps` };
    case "decision":
      return {
        id,
        at,
        step: event.data.step,
        kind: "mark",
        text: `${event.data.kind} ${event.data.status}`,
      };
    case "gap":
      return {
        id,
        at,
        step: "",
        kind: "bad",
        text: `events ${event.data.after + 1} to ${event.data.before - 1} are missing: ${event.data.reason}`,
      };
    case "end":
      return {
        id,
        at,
        step: "",
        kind: event.data.status === "failed" ? "bad" : "mark",
        text: `end · ${event.data.status}`,
      };
    default:
      return null;
  }
}

/** Reads only what has been added since the last time. */
export class Lines {
  private seen = 0;
  readonly all: Line[] = [];

  take(events: readonly Event[]): Line[] {
    for (; this.seen < events.length; this.seen++) {
      const event = events[this.seen];
      const line = event && lineOf(event);
      if (line) this.all.push(line);
    }
    return this.all;
  }
}

export interface Wanted {
  text: string;
  step: string;
  warningsOnly: boolean;
}

/** Whether a line is shown at all; the text is only looked for, not filtered by. */
export function isShown(line: Line, { step, warningsOnly }: Wanted): boolean {
  if (step && line.step !== step) return false;
  return !warningsOnly || line.kind === "warning" || line.kind === "bad";
}

/** Places of the lines in which the text stands, whatever the case of its letters. */
export function placesOf(lines: readonly Line[], text: string): number[] {
  if (!text) return [];
  const wanted = text.toLowerCase();
  const places: number[] = [];
  for (let place = 0; place < lines.length; place++)
    if (
      plain(lines[place]?.text ?? "")
        .toLowerCase()
        .includes(wanted)
    )
      places.push(place);
  return places;
}

// biome-ignore lint/suspicious/noControlCharactersInRegex: that is what is looked for
const ESCAPES = /\u001b\[[0-9;?]*[A-Za-z]|\u001b\][^\u0007]*(?:\u0007|\u001b\\)/g;
/** Without the signs that colour a terminal. */
export function plain(text: string): string {
  return text.includes("\u001b") ? text.replace(ESCAPES, "") : text;
}
