// Moments and lengths of time. All of them share one clock, which ticks once a second while one is on the page.
import { useSyncExternalStore } from "react";
import { ago, duration, moment, usd, zoneName } from "./format";
import { useSettings } from "./settings";

const listeners = new Set<() => void>();
let now = Date.now();
let timer: number | null = null;

function subscribe(listener: () => void): () => void {
  listeners.add(listener);
  now = Date.now();
  timer ??= window.setInterval(() => {
    if (document.hidden) return;
    now = Date.now();
    for (const one of listeners) one();
  }, 1000);
  return () => {
    listeners.delete(listener);
    if (listeners.size === 0 && timer !== null) {
      clearInterval(timer);
      timer = null;
    }
  };
}
const still = () => () => {};

/** Milliseconds since 1970; stands still where `isTicking` is false. */
export function useNow(isTicking = true): number {
  return useSyncExternalStore(isTicking ? subscribe : still, () => now);
}

/** A moment, in the zone that the user chose; how long ago it was, on the page, and the whole of it in the title. */
export function Time({ at, isRelative = true }: { at: string | null | undefined; isRelative?: boolean }) {
  const { zone } = useSettings();
  const ticking = useNow(isRelative && at != null);
  if (!at) return <span className="muted">–</span>;
  const date = new Date(at);
  const whole = moment(date, zone);
  return (
    <time dateTime={at} title={`${moment(date, zone, true)} ${zoneName(zone, date)}`} className="nowrap">
      {isRelative ? ago(date, new Date(ticking)) : whole}
    </time>
  );
}

/** How long it took from one moment to another; it goes on where the second one is not known yet. */
export function Lasted({ from, until }: { from: string | null | undefined; until: string | null | undefined }) {
  const ticking = useNow(Boolean(from) && !until);
  if (!from) return <span className="muted">–</span>;
  const end = until ? Date.parse(until) : ticking;
  return <span className="nowrap">{duration(Math.max(0, end - Date.parse(from)) / 1000)}</span>;
}

export function Money({ amount }: { amount: number | null | undefined }) {
  return amount == null ? <span className="muted">–</span> : <span className="nowrap">{usd(amount)}</span>;
}
