// All events of one run, in order, each once, from the first one on: the pages of its log, then what the feed brings. The
// numbers of a run's events have no holes, so what is missing is seen and asked for.
import type { Event } from "../api/types";

export interface EventPage {
  events: Event[];
  next_after: number;
  ended: boolean;
}

export interface RunEventsState {
  events: readonly Event[];
  /** Whether the log has been read up to the present once. */
  isWhole: boolean;
  error: unknown;
  /** What a model is writing at this moment; nothing that is kept. */
  progress: Event | null;
}

const AGAIN_MS = 700;

export class RunEvents {
  private events: Event[] = [];
  private isWhole = false;
  private error: unknown = null;
  private progress: Event | null = null;
  private known: RunEventsState = { events: [], isWhole: false, error: null, progress: null };
  private listeners = new Set<() => void>();
  private isReading = false;
  private isMissing = false;
  private isStopped = false;
  private isAnnounced = false;

  constructor(
    private readonly page: (after: number) => Promise<EventPage>,
    private readonly soon: (what: () => void) => void = (what) => void requestAnimationFrame(what),
    private readonly later: (what: () => void) => void = (what) => void setTimeout(what, AGAIN_MS),
  ) {}

  get last(): number {
    return this.events.at(-1)?.id ?? 0;
  }

  state = (): RunEventsState => this.known;

  subscribe = (listener: () => void): (() => void) => {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  };

  stop(): void {
    this.isStopped = true;
  }

  /** After `stop`, as when a page is drawn again. */
  resume(): void {
    this.isStopped = false;
  }

  /** Read the pages behind the last event that is here. */
  async read(): Promise<void> {
    if (this.isReading || this.isStopped) {
      this.isMissing = true;
      return;
    }
    this.isReading = true;
    try {
      do {
        this.isMissing = false;
        for (;;) {
          const page = await this.page(this.last);
          if (this.isStopped) return;
          for (const event of page.events) if (event.id > this.last) this.events.push(event);
          this.announce();
          if (page.ended || page.events.length === 0) break;
        }
      } while (this.isMissing);
      this.isWhole = true;
      this.error = null;
    } catch (error) {
      if (this.isStopped) return;
      this.error = error;
      this.later(() => void this.read());
    } finally {
      this.isReading = false;
    }
    this.announce();
  }

  /** Take what the feed brings of this run. */
  live(events: readonly Event[]): void {
    for (const event of events) {
      if (event.id === 0) {
        if (event.type === "progress") this.progress = event;
        continue;
      }
      if (event.type !== "log") this.progress = null;
      if (event.id <= this.last) continue;
      if (this.isReading) this.isMissing = true;
      else if (event.id === this.last + 1 || (event.type === "gap" && event.data.after === this.last))
        this.events.push(event);
      else void this.read();
    }
    this.announce();
  }

  private announce(): void {
    if (this.isAnnounced || this.isStopped) return;
    this.isAnnounced = true;
    this.soon(() => {
      this.isAnnounced = false;
      this.known = { events: this.events.slice(), isWhole: this.isWhole, error: this.error, progress: this.progress };
      for (const listener of this.listeners) listener();
    });
  }
}
