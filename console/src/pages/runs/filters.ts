// The filters of the list are in its address, so a link to it shows the same.
import { useMemo } from "react";
import { useSearchParams } from "wouter";

export const NAMES = [
  "status",
  "text",
  "id_beginning",
  "queue",
  "handler",
  "agent",
  "created_from",
  "created_to",
] as const;
export type FilterName = (typeof NAMES)[number];
export type Filters = Partial<Record<FilterName, string>>;

export const STATUSES = ["created", "queued", "running", "waiting", "completed", "failed", "cancelled"] as const;

export function useFilters(): [Filters, (name: FilterName, value: string) => void, () => void] {
  const [search, setSearch] = useSearchParams();
  const text = search.toString();
  const filters = useMemo(() => {
    const given = new URLSearchParams(text);
    return Object.fromEntries(NAMES.flatMap((name) => (given.get(name) ? [[name, given.get(name)]] : []))) as Filters;
  }, [text]);
  const set = (name: FilterName, value: string) =>
    setSearch(
      (old) => {
        const next = new URLSearchParams(old);
        if (value) next.set(name, value);
        else next.delete(name);
        return next;
      },
      { replace: true },
    );
  const clear = () => setSearch({}, { replace: true });
  return [filters, set, clear];
}

/** A value as the API takes it. Empty: the filter is not set. */
export function cleaned(name: FilterName, value: string): string {
  const text = value.trim();
  if (name === "id_beginning") return text.toLowerCase().replace(/[^0-9a-f-]/g, "");
  if (!name.startsWith("created") || !text) return text;
  const at = new Date(text);
  return Number.isNaN(at.getTime()) ? "" : at.toISOString();
}

/** A moment as a field of the browser takes it, in the browser's own zone. */
export function localOf(value: string): string {
  if (!/Z$/.test(value)) return value;
  const at = new Date(value);
  return new Date(at.getTime() - at.getTimezoneOffset() * 60_000).toISOString().slice(0, 16);
}
