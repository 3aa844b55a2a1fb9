// What a page shows instead of data: while it comes, when there is none, when it cannot be had.
import type { ReactNode } from "react";
import { adviceFor, messageOf } from "../api/problem";
import { Note } from "./Note";

/** As many rows as will stand there, so that nothing moves when they come. */
export function SkeletonRows({ rows = 8 }: { rows?: number }) {
  return (
    <div aria-busy="true">
      <span className="sr" role="status">
        Loading
      </span>
      {Array.from({ length: rows }, (_, row) => (
        // biome-ignore lint/suspicious/noArrayIndexKey: the rows are all the same
        <div className="skeleton-row" key={row}>
          <span className="skeleton" style={{ width: `${70 - ((row * 17) % 40)}%` }} />
        </div>
      ))}
    </div>
  );
}

export function EmptyState({ title, children }: { title: string; children?: ReactNode }) {
  return (
    <div className="empty">
      <h2>{title}</h2>
      {children}
    </div>
  );
}

export function ErrorState({ error, retry }: { error: unknown; retry?: () => void }) {
  const advice = adviceFor(error);
  return (
    <Note tone="bad">
      <p>{messageOf(error)}</p>
      {advice && <p className="muted">{advice}</p>}
      {retry && (
        <button type="button" className="button" onClick={retry}>
          Try again
        </button>
      )}
    </Note>
  );
}
