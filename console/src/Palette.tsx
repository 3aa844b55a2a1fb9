// Ctrl K: any page, any run by its id, any action of the page that is shown.
import { useQuery } from "@tanstack/react-query";
import { useMemo, useState } from "react";
import { useLocation } from "wouter";
import { api } from "./api/client";
import { Dialog } from "./design/Dialog";
import { firstLine } from "./design/format";
import { Icon, type IconName } from "./design/Icon";
import { iconOf } from "./design/Status";
import { change } from "./design/settings";
import { PAGES } from "./pages";

interface Entry {
  id: string;
  text: string;
  kind: string;
  icon: IconName;
  run: () => void;
}

export function Palette({ onClose }: { onClose: () => void }) {
  const [, go] = useLocation();
  const [text, setText] = useState("");
  const [chosen, setChosen] = useState(0);
  const wanted = text.trim().toLowerCase();
  const isId = /^[0-9a-f-]{4,36}$/.test(wanted);
  const runs = useQuery({
    queryKey: ["runs", "found", isId ? wanted : ""],
    queryFn: ({ signal }) =>
      api.get("/agent/runs", { query: { limit: 8, id_beginning: isId ? wanted : null }, signal }),
  });

  const entries = useMemo(() => {
    const fixed: Entry[] = PAGES.filter((page) => page.menu).map((page) => ({
      id: page.path,
      text: page.title,
      kind: page.menu?.shortcut ?? "page",
      icon: page.menu?.icon ?? "list",
      run: () => go(page.path),
    }));
    for (const theme of ["light", "dark", "system"] as const)
      fixed.push({
        id: theme,
        text: `Appearance: ${theme}`,
        kind: "action",
        icon: "gauge",
        run: () => change({ theme }),
      });
    for (const zone of ["local", "utc"] as const)
      fixed.push({ id: zone, text: `Times: ${zone}`, kind: "action", icon: "clock", run: () => change({ zone }) });
    const found: Entry[] = (runs.data?.runs ?? []).map((run) => ({
      id: run.run_id,
      text: firstLine(run.prompt),
      kind: run.run_id.slice(0, 13),
      icon: iconOf(run.status),
      run: () => go(`/runs/${run.run_id}`),
    }));
    const words = wanted.split(/\s+/).filter(Boolean);
    const fits = (entry: Entry) => words.every((word) => `${entry.text} ${entry.id}`.toLowerCase().includes(word));
    return isId ? found : [...fixed.filter(fits), ...found.filter(fits)];
  }, [runs.data, wanted, isId, go]);
  const at = Math.min(chosen, Math.max(entries.length - 1, 0));

  function take(entry: Entry | undefined) {
    if (!entry) return;
    onClose();
    entry.run();
  }

  return (
    <Dialog title="Find" className="palette" isBare onClose={onClose}>
      <input
        autoFocus
        role="combobox"
        aria-label="Find a page, an action, or a run by the beginning of its id"
        aria-expanded="true"
        aria-controls="found"
        aria-activedescendant={entries[at] ? `found-${at}` : undefined}
        placeholder="A page, an action, or the beginning of a run's id"
        value={text}
        onChange={(event) => {
          setText(event.target.value);
          setChosen(0);
        }}
        onKeyDown={(event) => {
          if (event.key === "ArrowDown") setChosen(Math.min(at + 1, entries.length - 1));
          else if (event.key === "ArrowUp") setChosen(Math.max(at - 1, 0));
          else if (event.key === "Enter") take(entries[at]);
          else return;
          event.preventDefault();
        }}
      />
      <ul role="listbox" id="found" aria-label="Found">
        {entries.map((entry, index) => (
          // biome-ignore lint/a11y/useKeyWithClickEvents: keys go to the field above
          <li
            key={entry.id}
            id={`found-${index}`}
            role="option"
            tabIndex={-1}
            aria-selected={index === at}
            ref={index === at ? (item) => item?.scrollIntoView({ block: "nearest" }) : undefined}
            onClick={() => take(entry)}
          >
            <Icon name={entry.icon} />
            <span className="cut">{entry.text}</span>
            <span className="kind">{entry.kind}</span>
          </li>
        ))}
      </ul>
      {entries.length === 0 && !runs.isFetching && <p className="body muted">Nothing is called so.</p>}
    </Dialog>
  );
}
