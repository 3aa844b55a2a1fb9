// Keys that do something on the page. They are registered by what is shown, so the sheet lists those that work now.
import { useEffect, useRef } from "react";

export interface Shortcut {
  /** One key, or two after one another: "g r". As KeyboardEvent.key names them. */
  keys: string;
  what: string;
}

const registered = new Map<string, { what: string; run: () => void }>();
let first: { key: string; at: number } | null = null;

export function shortcuts(): Shortcut[] {
  return [...registered].map(([keys, { what }]) => ({ keys, what }));
}

export function useShortcut(keys: string | undefined, what: string, run: () => void): void {
  const latest = useRef(run);
  latest.current = run;
  useEffect(() => {
    if (!keys) return;
    const entry = { what, run: () => latest.current() };
    registered.set(keys, entry);
    return () => {
      if (registered.get(keys) === entry) registered.delete(keys);
    };
  }, [keys, what]);
}

function isTyping(target: EventTarget | null): boolean {
  return (
    target instanceof HTMLElement && (target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName))
  );
}

export function listenToKeys(): void {
  document.addEventListener("keydown", (event) => {
    const isPalette = (event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k";
    if (!isPalette && (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target))) return;
    if (!isPalette && document.querySelector("dialog[open]")) return;
    const pair = first && Date.now() - first.at < 1000 ? `${first.key} ${event.key}` : null;
    const found = isPalette ? registered.get("Ctrl K") : (pair && registered.get(pair)) || registered.get(event.key);
    first = found ? null : { key: event.key, at: Date.now() };
    if (!found) return;
    event.preventDefault();
    found.run();
  });
}
