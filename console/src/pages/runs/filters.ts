// The filters of the list are in its address, so a link to it shows the same.
import { useMemo } from "react";
import { useSearchParams } from "wouter";

export const NAMES = ["status", "id_beginning"] as const;
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
