// The events of all of the user's runs: one stream for all tabs of this browser, since a browser opens six connections to
// a host and no more. The tab that has the lock reads the stream and passes each piece on to the others; when it goes, the
// next one takes the lock and goes on behind the last cursor that it has seen. Where a browser has no locks (a page that
// came by plain http from another machine), each tab reads a stream of its own.
import { address, send } from "../api/client";
import { ApiError, messageOf } from "../api/problem";
import type { Event } from "../api/types";
import { consoleRoot } from "../root";
import { FrameReader } from "./frames";

const NAME = `agent-console${consoleRoot.pathname}`;
/** Milliseconds without a sign of life after which the connection counts as lost; the server sends one each 15 s. */
const SILENT_MS = 40_000;
const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 15_000;

export interface FeedState {
  isLive: boolean;
  /** Why not, and when it is tried again (milliseconds since 1970). */
  reason: string | null;
  retryAt: number | null;
}

type Message =
  | { kind: "events"; user: string; cursor: string | null; lines: string[] }
  | { kind: "state"; user: string; state: FeedState }
  | { kind: "ask"; user: string };
type Listener = (events: Event[]) => void;

export class Feed {
  private cursor: string | null = null;
  private listeners = new Set<Listener>();
  private stateListeners = new Set<() => void>();
  private channel: BroadcastChannel | null = null;
  private stopped = new AbortController();
  private leads = false;
  private wake: (() => void) | null = null;
  state: FeedState = { isLive: false, reason: null, retryAt: null };

  constructor(private readonly user: string) {}

  start(): void {
    if (typeof BroadcastChannel === "undefined" || !navigator.locks) {
      void this.lead();
      return;
    }
    this.channel = new BroadcastChannel(NAME);
    this.channel.onmessage = (message: MessageEvent<Message>) => this.heard(message.data);
    this.post({ kind: "ask", user: this.user });
    const { signal } = this.stopped;
    navigator.locks.request(`${NAME}:${this.user}`, { signal }, () => this.lead()).catch(() => undefined);
    // After a sleep of the machine the old connection is dead, though nothing says so.
    addEventListener("online", this.hurry);
    document.addEventListener("visibilitychange", this.hurry);
  }

  stop(): void {
    this.stopped.abort();
    removeEventListener("online", this.hurry);
    document.removeEventListener("visibilitychange", this.hurry);
    this.wake?.();
    this.channel?.close();
  }

  /** Each event as it comes, in the order of the stream, in groups; events of one run have ascending ids. */
  subscribe(listener: Listener): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  watchState = (listener: () => void): (() => void) => {
    this.stateListeners.add(listener);
    return () => this.stateListeners.delete(listener);
  };

  private hurry = () => {
    if (document.visibilityState === "visible") this.wake?.();
  };

  private heard(message: Message): void {
    if (message.user !== this.user) return;
    if (message.kind === "events" && !this.leads) this.deliver(message.cursor, message.lines);
    else if (message.kind === "state" && !this.leads) this.setState(message.state);
    else if (message.kind === "ask" && this.leads) this.post({ kind: "state", user: this.user, state: this.state });
  }

  private post(message: Message): void {
    this.channel?.postMessage(message);
  }

  private setState(state: FeedState): void {
    this.state = state;
    for (const listener of this.stateListeners) listener();
  }

  private publishState(state: FeedState): void {
    this.setState(state);
    this.post({ kind: "state", user: this.user, state });
  }

  private deliver(cursor: string | null, lines: string[]): void {
    if (cursor) this.cursor = cursor;
    const events = lines.map((line) => JSON.parse(line) as Event);
    if (events.length) for (const listener of this.listeners) listener(events);
  }

  private async lead(): Promise<void> {
    this.leads = true;
    let pause = FIRST_PAUSE_MS;
    while (!this.stopped.signal.aborted) {
      let reason = "the platform ended the stream";
      try {
        await this.read(() => {
          pause = FIRST_PAUSE_MS;
        });
      } catch (error) {
        if (this.stopped.signal.aborted) return;
        if (error instanceof ApiError && error.status === 401) {
          this.publishState({ isLive: false, reason: "you are signed out", retryAt: null });
          return;
        }
        reason = messageOf(error);
        if (error instanceof ApiError && error.retryAfter) pause = Math.max(pause, error.retryAfter * 1000);
      }
      // Apart, so that a thousand browsers do not come back at once.
      const wait = pause * (0.75 + Math.random() / 2);
      this.publishState({ isLive: false, reason, retryAt: Date.now() + wait });
      await this.sleep(wait);
      pause = Math.min(pause * 2, LONGEST_PAUSE_MS);
    }
  }

  private sleep(milliseconds: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, milliseconds);
      this.wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  /** Until the connection ends. Raises ApiError, or the browser's own error. */
  private async read(onOpen: () => void): Promise<void> {
    const given = new AbortController();
    const stop = () => given.abort();
    this.stopped.signal.addEventListener("abort", stop);
    let lastSign = Date.now();
    const watchdog = setInterval(() => Date.now() - lastSign > SILENT_MS && given.abort(), 5000);
    this.wake = () => Date.now() - lastSign > SILENT_MS / 2 && given.abort();
    try {
      const headers: Record<string, string> = { Accept: "text/event-stream" };
      if (this.cursor) headers["Last-Event-ID"] = this.cursor;
      const url = address("/agent/events", { query: { after: this.cursor ? null : "now" } });
      const response = await send("get", url, { headers, signal: given.signal });
      const reader = response.body?.pipeThrough(new TextDecoderStream()).getReader();
      if (!reader) return;
      onOpen();
      this.publishState({ isLive: true, reason: null, retryAt: null });
      const frames = new FrameReader();
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        lastSign = Date.now();
        const found = frames.take(value);
        if (!found.length) continue;
        const cursor = found.reduce<string | null>((last, frame) => frame.id ?? last, null);
        const lines = found.map((frame) => frame.data).filter(Boolean);
        this.post({ kind: "events", user: this.user, cursor, lines });
        this.deliver(cursor, lines);
      }
    } catch (error) {
      if (given.signal.aborted && !this.stopped.signal.aborted) throw new Error("the connection went silent");
      throw error;
    } finally {
      clearInterval(watchdog);
      this.stopped.signal.removeEventListener("abort", stop);
    }
  }
}
