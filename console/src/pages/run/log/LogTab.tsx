import { useVirtualizer } from "@tanstack/react-virtual";
import { memo, useEffect, useMemo, useRef, useState } from "react";
import { moment, type Zone } from "../../../design/format";
import { Icon } from "../../../design/Icon";
import { EmptyState, ErrorState, SkeletonRows } from "../../../design/States";
import { useSettings } from "../../../design/settings";
import { useShortcut } from "../../../design/shortcuts";
import type { TabGiven } from "../tabs";
import { LineText } from "./LineText";
import { isShown, type Line, Lines, placesOf, plain } from "./lines";
import "./log.css";

const ROW = 20;

export function LogTab({ run, log }: TabGiven) {
  const { zone } = useSettings();
  const lines = useRef(new Lines());
  const all = lines.current.take(log.events);
  const [step, setStep] = useState("");
  const [warningsOnly, setWarningsOnly] = useState(false);
  const [text, setText] = useState("");
  const [hit, setHit] = useState(0);
  const [isFollowing, setFollowing] = useState(true);
  const [isWrapped, setWrapped] = useState(false);
  const field = useRef<HTMLInputElement>(null);
  const frame = useRef<HTMLDivElement>(null);
  const count = all.length;

  // biome-ignore lint/correctness/useExhaustiveDependencies: `all` grows in place, and `count` with it
  const shown = useMemo(
    () => (step || warningsOnly ? all.filter((line) => isShown(line, { text, step, warningsOnly })) : all),
    [all, count, step, warningsOnly],
  );
  const places = useMemo(() => placesOf(shown, text), [shown, shown.length, text]);
  const at = places.length ? Math.min(hit, places.length - 1) : -1;
  // biome-ignore lint/correctness/useExhaustiveDependencies: as above
  const steps = useMemo(() => [...new Set(all.map((line) => line.step).filter(Boolean))], [all, count]);

  const rows = useVirtualizer({
    count: shown.length,
    getScrollElement: () => frame.current,
    estimateSize: () => ROW,
    overscan: 10,
  });
  // biome-ignore lint/correctness/useExhaustiveDependencies: all rows have another height then
  useEffect(() => rows.measure(), [isWrapped]);
  // biome-ignore lint/correctness/useExhaustiveDependencies: it follows what is added
  useEffect(() => {
    if (isFollowing && shown.length) rows.scrollToIndex(shown.length - 1, { align: "end" });
  }, [shown.length, isFollowing, isWrapped]);

  function show(next: number) {
    if (!places.length) return;
    const wanted = (next + places.length) % places.length;
    setHit(wanted);
    setFollowing(false);
    rows.scrollToIndex(places[wanted] ?? 0, { align: "center" });
  }
  function find() {
    field.current?.focus();
    field.current?.select();
  }
  useShortcut("/", "Search the log", find);
  useShortcut("n", "Next match", () => show(at + 1));
  useShortcut("N", "Match before", () => show(at - 1));
  useShortcut("f", "Follow the log", () => setFollowing(!isFollowing));
  useEffect(() => {
    // The browser's own search sees the lines on the screen alone, so this page's takes its key. A second press goes to it.
    const pressed = (event: KeyboardEvent) => {
      if (!(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "f" || event.shiftKey || event.altKey)
        return;
      if (document.activeElement === field.current) return;
      event.preventDefault();
      find();
    };
    document.addEventListener("keydown", pressed);
    return () => document.removeEventListener("keydown", pressed);
  });

  if (log.error && !all.length) return <ErrorState error={log.error} />;
  if (!log.isWhole && !all.length)
    return (
      <div className="panel">
        <SkeletonRows rows={10} />
      </div>
    );
  return (
    <section className="panel log" aria-label="Log">
      <header>
        <label className="row log-search">
          <span className="sr">Search the log</span>
          <input
            ref={field}
            className="input grow"
            type="search"
            placeholder="Search (Ctrl F)"
            value={text}
            onChange={(event) => {
              setText(event.target.value);
              setHit(0);
            }}
            onKeyDown={(event) => {
              if (event.key === "Enter") show(event.shiftKey ? at - 1 : hit === 0 && isFollowing ? 0 : at + 1);
              if (event.key === "Escape") event.currentTarget.blur();
            }}
          />
          <span className="muted nowrap" role="status">
            {text && (places.length ? `${at + 1} of ${places.length.toLocaleString("en-US")}` : "none")}
          </span>
        </label>
        <label>
          <span className="sr">Step</span>
          <select className="input log-step" value={step} onChange={(event) => setStep(event.target.value)}>
            <option value="">all steps</option>
            {steps.map((one) => (
              <option key={one}>{one}</option>
            ))}
          </select>
        </label>
        <button
          type="button"
          className="button"
          aria-pressed={warningsOnly}
          onClick={() => setWarningsOnly(!warningsOnly)}
        >
          <Icon name="warning" />
          Warnings
        </button>
        <button type="button" className="button" aria-pressed={isWrapped} onClick={() => setWrapped(!isWrapped)}>
          Wrap
        </button>
        <button type="button" className="button" aria-pressed={isFollowing} onClick={() => setFollowing(!isFollowing)}>
          <Icon name="down" />
          Follow
        </button>
        <button
          type="button"
          className="button plain icon-button"
          aria-label="Download the log"
          title="Download the log"
          onClick={() => download(run.run_id, all)}
        >
          <Icon name="download" />
        </button>
      </header>
      {shown.length === 0 ? (
        <EmptyState title={count ? "No line fits" : "Nothing is written yet"}>
          {!count && <p className="muted">It comes here the moment that the run writes it.</p>}
        </EmptyState>
      ) : (
        <div
          className={`log-frame${isWrapped ? " wrapped" : ""}`}
          ref={frame}
          // biome-ignore lint/a11y/noNoninteractiveTabindex: it scrolls by the keys
          tabIndex={0}
          role="log"
          aria-live="off"
          aria-label="Lines"
          onWheel={(event) => event.deltaY < 0 && setFollowing(false)}
          onScroll={({ currentTarget: at }) => {
            if (
              at.scrollHeight - at.scrollTop - at.clientHeight < ROW &&
              !isFollowing &&
              at.scrollHeight > at.clientHeight
            )
              setFollowing(true);
          }}
          onKeyDown={(event) => /^(ArrowUp|PageUp|Home)$/.test(event.key) && setFollowing(false)}
        >
          <div className="log-lines" style={{ height: rows.getTotalSize() }}>
            {rows.getVirtualItems().map(({ index, start, key }) => {
              const line = shown[index];
              return (
                line && (
                  <LogLine
                    key={key}
                    line={line}
                    index={index}
                    top={start}
                    text={text}
                    isHit={index === places[at]}
                    zone={zone}
                    measure={isWrapped ? rows.measureElement : undefined}
                  />
                )
              );
            })}
          </div>
        </div>
      )}
      <div className="log-foot muted" role="status">
        {shown.length.toLocaleString("en-US")} lines
        {!log.isWhole && " so far, more are being read"}
        {log.error ? " · the rest cannot be had at this moment; it is asked for again" : ""}
        {log.progress?.type === "progress" &&
          ` · ${log.progress.data.model} writes: ${log.progress.data.output_tokens} tokens so far`}
      </div>
    </section>
  );
}

interface LineGiven {
  line: Line;
  index: number;
  top: number;
  text: string;
  isHit: boolean;
  measure: ((element: Element | null) => void) | undefined;
  zone: Zone;
}

const LogLine = memo(function LogLine({ line, index, top, text, isHit, measure, zone }: LineGiven) {
  return (
    <div
      className={`log-line ${line.kind}${isHit ? " hit" : ""}`}
      data-index={index}
      ref={measure}
      style={{ transform: `translateY(${top}px)` }}
    >
      <time dateTime={line.at}>{moment(new Date(line.at), zone, true).slice(11)}</time>
      <span className="log-text">
        {line.kind === "warning" && <span className="sr">warning: </span>}
        <LineText text={line.text} find={text} />
      </span>
    </div>
  );
});

function download(run: string, lines: readonly Line[]): void {
  const text = lines.map((line) => `${line.at} ${line.step ? `[${line.step}] ` : ""}${plain(line.text)}\n`);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(text, { type: "text/plain" }));
  link.download = `${run}.log`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
