import { useMemo, useState } from "react";
import { duration, moment } from "../../../design/format";
import { Icon } from "../../../design/Icon";
import { EmptyState, SkeletonRows } from "../../../design/States";
import { iconOf, toneOf } from "../../../design/Status";
import { useSettings } from "../../../design/settings";
import { useShortcut } from "../../../design/shortcuts";
import { useNow } from "../../../design/Time";
import type { TabGiven } from "../tabs";
import { type Bar, barsOf, Scale } from "./bars";
import "./timeline.css";

const ZOOMS = [1, 2, 4, 8, 16, 32];
const ROWS_SHOWN = 500;

export default function TimelineTab({ run, log }: TabGiven) {
  const bars = useMemo(() => barsOf(log.events), [log.events]);
  const isGoingOn = bars.some((bar) => bar.until === null);
  const now = useNow(isGoingOn);
  const [zoom, setZoom] = useState(0);
  const [isPressed, setPressed] = useState(true);
  const scale = useMemo(() => new Scale(bars, isGoingOn ? now : 0, isPressed), [bars, now, isGoingOn, isPressed]);
  useShortcut("+", "Zoom in", () => setZoom(Math.min(zoom + 1, ZOOMS.length - 1)));
  useShortcut("-", "Zoom out", () => setZoom(Math.max(zoom - 1, 0)));

  if (!log.isWhole && !bars.length)
    return (
      <div className="panel">
        <SkeletonRows rows={6} />
      </div>
    );
  if (!bars.length)
    return (
      <div className="panel">
        <EmptyState title="Nothing has happened yet">
          <p className="muted">
            {run.status === "created" ? "The run was not started." : "Its bars come here as it goes on."}
          </p>
        </EmptyState>
      </div>
    );
  const shown = bars.slice(-ROWS_SHOWN);
  return (
    <section className="panel timeline" aria-label="Timeline">
      <header>
        <span className="grow muted">
          {bars.length} bars
          {bars.length > ROWS_SHOWN && `, the last ${ROWS_SHOWN} are shown`}
        </span>
        <button type="button" className="button" aria-pressed={isPressed} onClick={() => setPressed(!isPressed)}>
          Press idle gaps
        </button>
        <button type="button" className="button" disabled={zoom === 0} onClick={() => setZoom(zoom - 1)}>
          − <span className="sr">Zoom out</span>
        </button>
        <span className="num">{ZOOMS[zoom]}×</span>
        <button type="button" className="button" disabled={zoom === ZOOMS.length - 1} onClick={() => setZoom(zoom + 1)}>
          + <span className="sr">Zoom in</span>
        </button>
      </header>
      {/* biome-ignore lint/a11y/noNoninteractiveTabindex: it scrolls by the keys */}
      <div className="timeline-frame" tabIndex={0} role="group" aria-label="Bars in the order of time">
        <ol style={{ width: `${(ZOOMS[zoom] ?? 1) * 100}%` }}>
          {shown.map((bar) => (
            <BarRow key={bar.key} bar={bar} scale={scale} now={now} />
          ))}
        </ol>
      </div>
    </section>
  );
}

function BarRow({ bar, scale, now }: { bar: Bar; scale: Scale; now: number }) {
  const { zone } = useSettings();
  const until = bar.until ?? now;
  const left = scale.at(bar.from);
  const width = scale.at(until) - left;
  const took = duration(Math.max(0, until - bar.from) / 1000);
  const isWait = bar.kind === "queue" || bar.kind === "wait";
  const state = isWait ? (bar.until === null ? bar.state : "waited") : bar.state;
  const begun = duration(Math.max(0, bar.from - scale.from) / 1000);
  return (
    <li className={`timeline-row level-${bar.level}`}>
      <span className="timeline-name cut" title={bar.title}>
        <span className={`row tone-${isWait ? "idle" : toneOf(bar.state)}`}>
          <Icon name={isWait ? "clock" : iconOf(bar.state)} />
          <span className="cut">{bar.title}</span>
        </span>
      </span>
      <span className="timeline-track">
        {scale.gaps.map((gap) => (
          <span
            key={gap.from}
            className="timeline-gap"
            style={{ left: `${gap.left * 100}%`, width: `${gap.width * 100}%` }}
            title={`${duration((gap.until - gap.from) / 1000)} in which nothing ran, pressed together`}
          />
        ))}
        <span
          className={`timeline-bar ${bar.kind} tone-${isWait ? "idle" : toneOf(bar.state)}`}
          style={{ left: `${left * 100}%`, width: `max(3px, ${width * 100}%)` }}
          title={`${bar.title}\n${state} · ${took}\nfrom ${moment(new Date(bar.from), zone, true)} (${begun} after the beginning)\n${bar.note}`}
        />
      </span>
      <span className="timeline-took muted">
        <span className="sr">{state}, </span>
        {took}
        {bar.note && <span className="timeline-note cut"> · {bar.note}</span>}
      </span>
    </li>
  );
}
