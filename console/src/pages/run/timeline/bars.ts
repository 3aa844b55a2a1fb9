// What a run did, as bars on one scale of time. Events go in, bars come out; nothing else is looked at.
import type { Event } from "../../../api/types";

export type BarKind = "queue" | "wait" | "step" | "model";
export interface Bar {
  key: string;
  kind: BarKind;
  /** Of a model's call: the row of its step. */
  level: 0 | 1;
  title: string;
  state: string;
  note: string;
  /** Milliseconds since 1970; `until` is null while it goes on. */
  from: number;
  until: number | null;
}

const OVER: ReadonlySet<string> = new Set(["completed", "failed", "cancelled"]);

export function barsOf(events: readonly Event[]): Bar[] {
  const bars: Bar[] = [];
  const open = new Map<string, Bar>();
  let attempt = 1;

  function begin(id: string, bar: Omit<Bar, "key" | "until">): void {
    finish(id, bar.from, "interrupted");
    const made: Bar = { ...bar, key: `${id}-${bars.length}`, until: null };
    bars.push(made);
    open.set(id, made);
  }
  function finish(id: string, at: number, state: string, note = ""): void {
    const bar = open.get(id);
    if (!bar) return;
    bar.until = Math.max(at, bar.from);
    bar.state = state;
    if (note) bar.note = note;
    open.delete(id);
  }

  for (const event of events) {
    const at = Date.parse(event.at);
    switch (event.type) {
      case "status": {
        const { status, reason } = event.data;
        attempt = event.data.attempt ?? attempt;
        finish("run", at, "completed");
        if (status === "queued")
          begin("run", {
            kind: "queue",
            level: 0,
            title: "in the queue",
            state: "queued",
            note: reason ?? "",
            from: at,
          });
        if (status === "waiting")
          begin("run", { kind: "wait", level: 0, title: "waits", state: "waiting", note: reason ?? "", from: at });
        if (OVER.has(status)) for (const id of [...open.keys()]) finish(id, at, "interrupted");
        break;
      }
      case "step": {
        const { step, status, title, error, exit_code } = event.data;
        if (status === "started") {
          const note = attempt > 1 ? `attempt ${attempt}` : "";
          begin(`step ${step}`, { kind: "step", level: 0, title: title || step, state: "started", note, from: at });
        } else {
          const why = error?.message ?? (exit_code ? `exit code ${exit_code}` : "");
          finish(`step ${step}`, at, status, why);
        }
        break;
      }
      case "model": {
        const { model, number, status, duration_ms, input_tokens, output_tokens, purpose } = event.data;
        const tokens = (input_tokens ?? 0) + (output_tokens ?? 0);
        bars.push({
          key: `model ${number} ${event.id}`,
          kind: "model",
          level: 1,
          title: `${model} · ${purpose}`,
          state: status,
          note: tokens ? `${tokens.toLocaleString("en-US")} tokens` : "",
          from: at - duration_ms,
          until: at,
        });
        break;
      }
      case "end":
        for (const id of [...open.keys()]) finish(id, at, event.data.status);
        break;
    }
  }
  return bars.sort((one, other) => one.from - other.from || one.level - other.level);
}

export interface Piece {
  from: number;
  until: number;
  /** Shares of the whole width. */
  left: number;
  width: number;
  isPressed: boolean;
}

/** A stretch in which nothing began or ended is an idle gap when it is longer than a fifth of the rest; it is pressed to
 * so small a share. */
const PRESSED_SHARE = 0.04;
const GAP_SHARE = 0.2;
const GAP_MIN_MS = 2000;

/** A scale of time from the first bar to the last, with long idle gaps pressed together. */
export class Scale {
  readonly pieces: Piece[] = [];
  readonly gaps: Piece[];

  constructor(bars: readonly Bar[], now: number, press: boolean) {
    const until = (bar: Bar) => bar.until ?? now;
    const busy = bars.filter((bar) => bar.kind !== "queue" && bar.kind !== "wait");
    const from = bars.length ? Math.min(...bars.map((bar) => bar.from)) : now;
    const end = Math.max(...bars.map(until), from + 1);
    const spans = busy.map((bar) => [bar.from, Math.max(until(bar), bar.from)] as const).sort((a, b) => a[0] - b[0]);
    const idle: [number, number][] = [];
    let reached = from;
    for (const [start, stop] of [...spans, [end, end] as const]) {
      if (start > reached) idle.push([reached, start]);
      reached = Math.max(reached, stop);
    }
    const idleTotal = idle.reduce((sum, [a, b]) => sum + b - a, 0);
    const busyTotal = Math.max(end - from - idleTotal, 1);
    const long = press ? idle.filter(([a, b]) => b - a > Math.max(busyTotal * GAP_SHARE, GAP_MIN_MS)) : [];
    const pressedWidth = Math.min(long.length * PRESSED_SHARE, 0.5);
    const rest = end - from - long.reduce((sum, [a, b]) => sum + b - a, 0);
    let left = 0;
    let at = from;
    const add = (stop: number, isPressed: boolean) => {
      if (stop <= at) return;
      const width = isPressed ? pressedWidth / long.length : ((stop - at) / Math.max(rest, 1)) * (1 - pressedWidth);
      this.pieces.push({ from: at, until: stop, left, width, isPressed });
      left += width;
      at = stop;
    };
    for (const [start, stop] of long) {
      add(start, false);
      add(stop, true);
    }
    add(end, false);
    this.gaps = this.pieces.filter((piece) => piece.isPressed);
  }

  /** Where a moment is, as a share of the width. */
  at(moment: number): number {
    const first = this.pieces[0];
    if (!first || moment <= first.from) return 0;
    for (const piece of this.pieces)
      if (moment <= piece.until) return piece.left + ((moment - piece.from) / (piece.until - piece.from)) * piece.width;
    return 1;
  }

  get from(): number {
    return this.pieces[0]?.from ?? 0;
  }
}
