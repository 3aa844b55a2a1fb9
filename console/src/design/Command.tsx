import { useState } from "react";
import { Icon } from "./Icon";

/** The same from the command line, to be copied. */
export function Command({ text }: { text: string }) {
  const [isCopied, setCopied] = useState(false);
  async function copy() {
    await navigator.clipboard?.writeText(text);
    setCopied(true);
    setTimeout(() => setCopied(false), 1500);
  }
  return (
    <span className="command">
      <code className="grow">{text}</code>
      <button type="button" className="button plain icon-button" aria-label={`Copy: ${text}`} onClick={copy}>
        <Icon name={isCopied ? "check" : "copy"} />
      </button>
    </span>
  );
}
