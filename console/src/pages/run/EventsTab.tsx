import { useVirtualizer } from "@tanstack/react-virtual";
import { useMemo, useRef, useState } from "react";
import { moment } from "../../design/format";
import { EmptyState } from "../../design/States";
import { useSettings } from "../../design/settings";
import type { TabGiven } from "./tabs";
import "./events.css";

const TYPES = ["status", "plan", "step", "decision", "model", "log", "gap", "end"] as const;

/** Every event as it is, for whoever writes a program that reads them. */
export default function EventsTab({ log }: TabGiven) {
  const { zone } = useSettings();
  const [type, setType] = useState("");
  const [open, setOpen] = useState<number | null>(null);
  const frame = useRef<HTMLDivElement>(null);
  const shown = useMemo(() => (type ? log.events.filter((event) => event.type === type) : log.events), [log, type]);
  const rows = useVirtualizer({
    count: shown.length,
    getScrollElement: () => frame.current,
    estimateSize: () => 28,
    overscan: 20,
    getItemKey: (index) => shown[index]?.id ?? index,
  });
  return (
    <section className="panel events" aria-label="Events">
      <header>
        <label className="row">
          <span className="sr">Type</span>
          <select className="input" value={type} onChange={(event) => setType(event.target.value)}>
            <option value="">all types</option>
            {TYPES.map((one) => (
              <option key={one}>{one}</option>
            ))}
          </select>
        </label>
        <span className="muted">{shown.length.toLocaleString("en-US")} events</span>
      </header>
      {!shown.length && <EmptyState title="No event yet" />}
      {/* biome-ignore lint/a11y/noNoninteractiveTabindex: it scrolls by the keys */}
      <div className="events-frame" ref={frame} tabIndex={0} role="group" aria-label="Events in their order">
        <div style={{ height: rows.getTotalSize(), position: "relative" }}>
          {rows.getVirtualItems().map(({ index, key, start }) => {
            const event = shown[index];
            if (!event) return null;
            const text = JSON.stringify(event.data, null, event.id === open ? 2 : 0);
            return (
              <button
                type="button"
                className="events-row"
                key={key}
                data-index={index}
                ref={rows.measureElement}
                aria-expanded={event.id === open}
                style={{ transform: `translateY(${start}px)` }}
                onClick={() => setOpen(event.id === open ? null : event.id)}
              >
                <span className="num muted">{event.id}</span>
                <time dateTime={event.at} className="muted">
                  {moment(new Date(event.at), zone, true).slice(11)}
                </time>
                <span>{event.type}</span>
                <span className={event.id === open ? "events-open" : "cut"}>
                  {event.id === open ? text : text.slice(0, 400)}
                </span>
              </button>
            );
          })}
        </div>
      </div>
    </section>
  );
}
