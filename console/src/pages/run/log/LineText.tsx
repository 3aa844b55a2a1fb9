import Anser from "anser";
import { memo, type ReactNode } from "react";
import { plain } from "./lines";

/** A line with the colours that its program gave it and the marks of what is looked for. */
export const LineText = memo(function LineText({ text, find }: { text: string; find: string }): ReactNode {
  if (find) return marked(plain(text), find);
  if (!text.includes("\u001b")) return text;
  return Anser.ansiToJson(text, { use_classes: true, remove_empty: true }).map((part, place) => {
    const names = [part.fg, part.bg && `${part.bg}-ground`, ...part.decorations.map((name) => `ansi-${name}`)];
    return (
      // biome-ignore lint/suspicious/noArrayIndexKey: parts of a line never move
      <span key={place} className={names.filter(Boolean).join(" ")}>
        {part.content}
      </span>
    );
  });
});

function marked(text: string, find: string): ReactNode[] {
  const parts: ReactNode[] = [];
  const lower = text.toLowerCase();
  const wanted = find.toLowerCase();
  // A few letters change their length with their case; then the places would not fit, and nothing is marked.
  if (lower.length !== text.length) return [text];
  let from = 0;
  for (let place = lower.indexOf(wanted); place >= 0; place = lower.indexOf(wanted, from)) {
    parts.push(text.slice(from, place), <mark key={place}>{text.slice(place, place + wanted.length)}</mark>);
    from = place + wanted.length;
  }
  parts.push(text.slice(from));
  return parts;
}
