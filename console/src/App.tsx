// The frame: who is signed in, the menu, and the page of the address.
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { Component, type ReactNode, Suspense, useCallback, useEffect, useMemo, useState } from "react";
import { Link, Route, Switch, useLocation } from "wouter";
import { onSignedOut } from "./api/client";
import { Dialog } from "./design/Dialog";
import { duration, zoneName } from "./design/format";
import { Icon } from "./design/Icon";
import { Note } from "./design/Note";
import { EmptyState, ErrorState, SkeletonRows } from "./design/States";
import { change, useSettings } from "./design/settings";
import { shortcuts, useShortcut } from "./design/shortcuts";
import { useNow } from "./design/Time";
import { Palette } from "./Palette";
import { PAGES, type Page } from "./pages";
import { useFreshPending, usePending } from "./pages/needs-you/pending";
import SignIn from "./pages/sign-in/SignIn";
import { consoleRoot } from "./root";
import { SessionContext, useSession } from "./session/SessionContext";
import { currentSession, type Session, signOut } from "./session/session";
import { FeedProvider, useFeedState } from "./streams/FeedContext";

export function App() {
  const client = useQueryClient();
  const session = useQuery({ queryKey: ["session"], queryFn: currentSession, staleTime: Number.POSITIVE_INFINITY });
  const signedIn = useCallback(
    (found: Session | null) => {
      client.removeQueries({ predicate: (query) => query.queryKey[0] !== "session" });
      client.setQueryData(["session"], found);
    },
    [client],
  );
  useEffect(() => onSignedOut(() => client.setQueryData(["session"], null)), [client]);

  if (session.isPending) return <main className="main" aria-busy="true" />;
  if (session.isError)
    return (
      <main className="main">
        <ErrorState error={session.error} retry={() => void session.refetch()} />
      </main>
    );
  if (!session.data) return <SignIn onSignedIn={signedIn} />;
  return (
    <SessionContext value={session.data}>
      <FeedProvider user={session.data.user.id}>
        <Shell onSignedOut={() => signedIn(null)} />
      </FeedProvider>
    </SessionContext>
  );
}

function Shell({ onSignedOut: leave }: { onSignedOut: () => void }) {
  const session = useSession();
  const [location] = useLocation();
  const [isMenuOpen, setMenuOpen] = useState(false);
  const [shown, setShown] = useState<"palette" | "sheet" | null>(null);
  useShortcut("Ctrl K", "Find a run, a page, an action", () => setShown("palette"));
  useFreshPending();
  useShortcut("?", "Show the shortcuts", () => setShown("sheet"));
  // biome-ignore lint/correctness/useExhaustiveDependencies: a new page closes the menu
  useEffect(() => setMenuOpen(false), [location]);

  return (
    <div className="shell">
      <a className="button skip" href="#main">
        To the page
      </a>
      <header className="topbar">
        <button
          type="button"
          className="button plain icon-button menu-button"
          aria-label="Menu"
          aria-expanded={isMenuOpen}
          onClick={() => setMenuOpen(!isMenuOpen)}
        >
          <Icon name={isMenuOpen ? "close" : "menu"} />
        </button>
        <Link href="/" className="brand" aria-label="Console, first page">
          <img src={new URL("icon.svg", consoleRoot).href} alt="" width="20" height="20" />
          <span>Console</span>
        </Link>
        <button
          type="button"
          className="button find"
          aria-label="Find a run, a page… Ctrl K"
          onClick={() => setShown("palette")}
        >
          <Icon name="search" />
          <span>Find a run, a page…</span>
          <kbd>Ctrl K</kbd>
        </button>
        <ZoneButton />
        <ThemeButton />
        <span className="wide muted cut" title={`tier ${session.user.tier}`}>
          {session.user.name}
          {session.is_read_only && " · read-only"}
        </span>
        <button
          type="button"
          className="button plain icon-button"
          aria-label="Sign out"
          title="Sign out"
          onClick={() => void signOut().finally(leave)}
        >
          <Icon name="out" />
        </button>
      </header>
      <Menu isOpen={isMenuOpen} />
      <main className="main" id="main" tabIndex={-1}>
        <StreamBanner />
        <Boundary key={location}>
          <Suspense fallback={<SkeletonRows />}>
            <Switch>
              {PAGES.map((page) => (
                <Route key={page.path} path={page.path}>
                  <Titled page={page} />
                </Route>
              ))}
              <Route>
                <EmptyState title="There is no such page">
                  <Link href="/">Go to the overview</Link>
                </EmptyState>
              </Route>
            </Switch>
          </Suspense>
        </Boundary>
      </main>
      {shown === "palette" && <Palette onClose={() => setShown(null)} />}
      {shown === "sheet" && <Sheet onClose={() => setShown(null)} />}
    </div>
  );
}

function Titled({ page }: { page: Page }) {
  useEffect(() => {
    document.title = `${page.title} · Console`;
  }, [page]);
  return <page.component />;
}

const GROUPS = { work: "Work", platform: "Platform", account: "Account" } as const;

function Menu({ isOpen }: { isOpen: boolean }) {
  const groups = useMemo(
    () =>
      Object.entries(GROUPS)
        .map(([group, name]) => ({ name, pages: PAGES.filter((page) => page.menu?.group === group) }))
        .filter(({ pages }) => pages.length),
    [],
  );
  const { zone } = useSettings();
  return (
    <nav className={`side${isOpen ? " open" : ""}`} aria-label="Pages">
      {groups.map(({ name, pages }) => (
        <ul key={name} aria-label={name}>
          {pages.map((page) => (
            <MenuItem key={page.path} page={page} />
          ))}
        </ul>
      ))}
      <p className="last muted">
        Times in {zoneName(zone)}
        <br />
        <kbd>?</kbd> shows the shortcuts
      </p>
    </nav>
  );
}

function MenuItem({ page }: { page: Page }) {
  const [location, go] = useLocation();
  useShortcut(page.menu?.shortcut, `Go to ${page.title}`, () => go(page.path));
  const isHere = page.path === "/" ? location === "/" : location.startsWith(page.path);
  return (
    <li>
      <Link href={page.path} aria-current={isHere ? "page" : undefined}>
        {page.menu && <Icon name={page.menu.icon} />}
        {page.title}
        {page.path === "/needs-you" && <NeedsCount />}
      </Link>
    </li>
  );
}

function NeedsCount() {
  const pending = usePending();
  const number = pending.data?.decisions.length ?? 0;
  if (!number) return null;
  return (
    <span className="count">
      {number}
      {pending.data?.next_cursor ? "+" : ""}
    </span>
  );
}

function ZoneButton() {
  const { zone } = useSettings();
  const next = zone === "utc" ? "local" : "utc";
  return (
    <button
      type="button"
      className="button plain"
      title={`Times are in ${zoneName(zone)}`}
      aria-label={`${zone === "utc" ? "UTC" : "Local"}: times are in ${zoneName(zone)}; show them in ${zoneName(next)}`}
      onClick={() => change({ zone: next })}
    >
      <Icon name="clock" />
      {zone === "utc" ? "UTC" : "Local"}
    </button>
  );
}

const NEXT = { system: "light", light: "dark", dark: "system" } as const;

function ThemeButton() {
  const { theme } = useSettings();
  return (
    <button
      type="button"
      className="button plain icon-button"
      title={`Appearance: ${theme}`}
      aria-label={`Appearance: ${theme}; change to ${NEXT[theme]}`}
      onClick={() => change({ theme: NEXT[theme] })}
    >
      <Icon name={theme === "dark" ? "moon" : theme === "light" ? "sun" : "gauge"} />
    </button>
  );
}

function StreamBanner() {
  const { isLive, reason, retryAt } = useFeedState();
  const now = useNow(!isLive && retryAt !== null);
  if (isLive || !reason) return null;
  const wait = retryAt ? Math.max(0, Math.ceil((retryAt - now) / 1000)) : null;
  return (
    <Note tone="warn">
      What you see may be old: {reason}.
      {wait !== null && ` It is tried again ${wait ? `in ${duration(wait)}` : "now"}, and nothing is lost.`}
    </Note>
  );
}

function Sheet({ onClose }: { onClose: () => void }) {
  return (
    <Dialog title="Shortcuts" onClose={onClose}>
      <dl className="sheet">
        {shortcuts().map(({ keys, what }) => (
          <div key={keys} style={{ display: "contents" }}>
            <dt className="row">
              {keys.split(" ").map((key) => (
                <kbd key={key}>{key}</kbd>
              ))}
            </dt>
            <dd>{what}</dd>
          </div>
        ))}
      </dl>
    </Dialog>
  );
}

/** A fault of a page's own code is shown in its place; the frame stays. */
class Boundary extends Component<{ children: ReactNode }, { error: unknown }> {
  override state: { error: unknown } = { error: null };
  static getDerivedStateFromError(error: unknown) {
    return { error };
  }
  override render() {
    if (this.state.error === null) return this.props.children;
    return <ErrorState error={this.state.error} retry={() => location.reload()} />;
  }
}
