// Markdown of a file that an agent wrote: headings, lists, code, emphasis. It is untrusted, so no HTML of it is taken and
// links are shown as their text with the address behind; nothing is loaded.
import type { ReactNode } from "react";

export function Markdown({ text }: { text: string }) {
  return <div className="markdown">{blocks(text)}</div>;
}

function blocks(text: string): ReactNode[] {
  const lines = text.replace(/\r\n/g, "\n").split("\n");
  const found: ReactNode[] = [];
  let at = 0;
  while (at < lines.length) {
    const line = lines[at] ?? "";
    const key = at;
    const fence = /^\s*(```+|~~~+)/.exec(line);
    if (fence) {
      const code: string[] = [];
      for (at++; at < lines.length && !(lines[at] ?? "").trim().startsWith(fence[1] ?? "```"); at++)
        code.push(lines[at] ?? "");
      at++;
      found.push(<pre key={key}>{code.join("\n")}</pre>);
    } else if (/^#{1,6}\s/.test(line)) {
      const level = line.indexOf(" ");
      const words = inline(line.slice(level + 1));
      found.push(level === 1 ? <h2 key={key}>{words}</h2> : <h3 key={key}>{words}</h3>);
      at++;
    } else if (/^\s*([-*+]|\d+[.)])\s/.test(line)) {
      const items: ReactNode[] = [];
      for (; at < lines.length && /^\s*([-*+]|\d+[.)])\s/.test(lines[at] ?? ""); at++)
        items.push(<li key={at}>{inline((lines[at] ?? "").replace(/^\s*([-*+]|\d+[.)])\s+/, ""))}</li>);
      found.push(/^\s*\d/.test(line) ? <ol key={key}>{items}</ol> : <ul key={key}>{items}</ul>);
    } else if (line.trim()) {
      const words: string[] = [];
      for (
        ;
        at < lines.length &&
        (lines[at] ?? "").trim() &&
        !/^(#{1,6}\s|\s*(```|~~~|[-*+]\s|\d+[.)]\s))/.test(lines[at] ?? "");
        at++
      )
        words.push(lines[at] ?? "");
      if (!words.length) words.push(lines[at++] ?? "");
      found.push(<p key={key}>{inline(words.join(" "))}</p>);
    } else at++;
  }
  return found;
}

function inline(text: string): ReactNode[] {
  return text.split(/(`[^`]+`|\*\*[^*]+\*\*|\[[^\]]*\]\([^)\s]*\))/).map((part, key) => {
    // biome-ignore-start lint/suspicious/noArrayIndexKey: parts of a line never move
    if (part.startsWith("`") && part.length > 2) return <code key={`${key} code`}>{part.slice(1, -1)}</code>;
    if (part.startsWith("**") && part.length > 4) return <strong key={`${key} strong`}>{part.slice(2, -2)}</strong>;
    // biome-ignore-end lint/suspicious/noArrayIndexKey: parts of a line never move
    const link = /^\[([^\]]*)\]\(([^)\s]*)\)$/.exec(part);
    return link ? `${link[1]} (${link[2]})` : part;
  });
}
