// What models cost, by the keys that the API groups by. The question stands in the address.
import { keepPreviousData, useInfiniteQuery } from "@tanstack/react-query";
import { useSearchParams } from "wouter";
import { api } from "../../api/client";
import type { components } from "../../api/schema";
import { Command } from "../../design/Command";
import { count, usd } from "../../design/format";
import { EmptyState, ErrorState, SkeletonRows } from "../../design/States";
import { KEYS, keysOf, nameOf, type SpendKey } from "./keys";

type Report = components["schemas"]["ModelUsageView"];
const REFRESH_MS = 30_000;

export default function Spend() {
  const [search, setSearch] = useSearchParams();
  const keys = keysOf(search.get("by"));
  const from = search.get("from") ?? "";
  const to = search.get("to") ?? "";
  const set = (name: string, value: string) =>
    setSearch(
      (old) => {
        const next = new URLSearchParams(old);
        if (value) next.set(name, value);
        else next.delete(name);
        return next;
      },
      { replace: true },
    );
  const found = useInfiniteQuery({
    queryKey: ["spend", keys, from, to],
    initialPageParam: null as number | null,
    queryFn: async ({ pageParam, signal }) =>
      (await api.get("/agent/usage", { signal, query: { by: keys, from, to, cursor: pageParam } })) as Report,
    getNextPageParam: (last) => last.next_cursor ?? null,
    placeholderData: keepPreviousData,
    refetchInterval: REFRESH_MS,
  });
  const toggle = (key: SpendKey) => {
    const next = keys.includes(key) ? keys.filter((one) => one !== key) : [...keys, key];
    if (next.length) set("by", next.join(","));
  };
  return (
    <div className="stack">
      <div className="page-head">
        <h1>Spend</h1>
      </div>
      <div className="row wrap">
        {KEYS.map((key) => (
          <label key={key} className="row">
            <input type="checkbox" checked={keys.includes(key)} onChange={() => toggle(key)} /> {key}
          </label>
        ))}
        <Day label="From, UTC" value={from} onChange={(value) => set("from", value)} />
        <Day label="To, UTC" value={to} onChange={(value) => set("to", value)} />
      </div>
      {found.isPending && <SkeletonRows rows={8} />}
      {found.isError && <ErrorState error={found.error} retry={() => void found.refetch()} />}
      {found.data && <Groups pages={found.data.pages} />}
      {found.hasNextPage && (
        <button
          type="button"
          className="button"
          disabled={found.isFetchingNextPage}
          onClick={() => void found.fetchNextPage()}
        >
          Show more
        </button>
      )}
    </div>
  );
}

function Day({ label, value, onChange }: { label: string; value: string; onChange: (value: string) => void }) {
  return (
    <label className="row">
      <span className="nowrap">{label}</span>
      <input className="input" type="date" value={value} onChange={(event) => onChange(event.target.value)} />
    </label>
  );
}

function Groups({ pages }: { pages: Report[] }) {
  const first = pages[0];
  if (!first?.groups.length)
    return (
      <div className="panel">
        <EmptyState title="No model was called in this time">
          <p className="muted">Take other days, or ask on the command line.</p>
          <Command text="agentctl usage --by model,day" />
        </EmptyState>
      </div>
    );
  const keys = keysOf(first.by.join(","));
  const { totals } = first;
  return (
    // biome-ignore lint/a11y/noNoninteractiveTabindex: it scrolls by the keys
    <div className="panel table-frame" tabIndex={0} role="group" aria-label="Spend">
      <table className="table">
        <thead>
          <tr>
            {keys.map((key) => (
              <th key={key}>{key}</th>
            ))}
            <th className="num">Cost</th>
            <th className="num">Calls</th>
            <th className="num">Without a price</th>
            <th className="num">Tokens in</th>
            <th className="num">Tokens out</th>
          </tr>
        </thead>
        <tbody>
          <tr>
            <td colSpan={keys.length}>
              <strong>All</strong>
            </td>
            <Figures of={totals} />
          </tr>
          {pages
            .flatMap((page) => page.groups)
            .map((group) => (
              <tr key={keys.map((key) => (key === "user" ? group.user_id : group[key])).join("\n")}>
                {keys.map((key) => (
                  <td key={key} className="nowrap">
                    {nameOf(key, group)}
                  </td>
                ))}
                <Figures of={group} />
              </tr>
            ))}
        </tbody>
      </table>
    </div>
  );
}

function Figures({ of }: { of: Report["totals"] }) {
  return (
    <>
      <td className="num">{usd(Number(of.usd))}</td>
      <td className="num">{count(of.calls)}</td>
      <td className="num">{count(of.unpriced)}</td>
      <td className="num">{count(of.input_tokens)}</td>
      <td className="num">{count(of.output_tokens)}</td>
    </>
  );
}
