import { createContext, type ReactNode, useContext, useEffect, useRef, useState, useSyncExternalStore } from "react";
import type { Event } from "../api/types";
import { Feed, type FeedState } from "./feed";

const Context = createContext<Feed | null>(null);

export function FeedProvider({ user, children }: { user: string; children: ReactNode }) {
  const [feed, setFeed] = useState<Feed | null>(null);
  useEffect(() => {
    const made = new Feed(user);
    made.start();
    setFeed(made);
    return () => made.stop();
  }, [user]);
  return <Context value={feed}>{children}</Context>;
}

const UNKNOWN: FeedState = { isLive: true, reason: null, retryAt: null };

export function useFeedState(): FeedState {
  const feed = useContext(Context);
  return useSyncExternalStore(feed?.watchState ?? (() => () => {}), () => feed?.state ?? UNKNOWN);
}

/** Call `listener` with each group of events while the component is shown. */
export function useFeed(listener: (events: Event[]) => void): void {
  const feed = useContext(Context);
  const latest = useRef(listener);
  latest.current = listener;
  useEffect(() => feed?.subscribe((events) => latest.current(events)), [feed]);
}

/** Call `refresh` at most once in `everyMs` while events come that `concerns` takes, the first time at once. */
export function useRefresh(concerns: (event: Event) => boolean, refresh: () => void, everyMs: number): void {
  const timer = useRef<number | null>(null);
  const last = useRef(0);
  const latest = useRef(refresh);
  latest.current = refresh;
  useEffect(() => () => void (timer.current !== null && clearTimeout(timer.current)), []);
  useFeed((events) => {
    if (timer.current !== null || !events.some(concerns)) return;
    const wait = Math.max(60, last.current + everyMs - Date.now());
    timer.current = window.setTimeout(() => {
      timer.current = null;
      last.current = Date.now();
      latest.current();
    }, wait);
  });
}
