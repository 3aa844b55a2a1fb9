import { useEffect, useMemo, useSyncExternalStore } from "react";
import { api } from "../api/client";
import { useFeed } from "./FeedContext";
import { type EventPage, RunEvents, type RunEventsState } from "./runEvents";

/** The events of a run while the component is shown. */
export function useRunEvents(run: string): RunEventsState {
  const events = useMemo(
    () =>
      new RunEvents(
        (after) => api.get("/agent/logs/{run_id}", { path: { run_id: run }, query: { after } }) as Promise<EventPage>,
      ),
    [run],
  );
  useFeed((all) => {
    const own = all.filter((event) => event.run_id === run);
    if (own.length) events.live(own);
  });
  useEffect(() => {
    events.resume();
    void events.read();
    return () => events.stop();
  }, [events]);
  return useSyncExternalStore(events.subscribe, events.state);
}
