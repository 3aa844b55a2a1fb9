// A part of the console that is fetched when it is first shown. Where the network is away at that moment, it is fetched
// again as soon as there is one; React alone would keep the failure for as long as the page is open.
import { type ComponentType, lazy } from "react";

const AGAIN_MS = 1500;
const TRIES_ONLINE = 5;

/** Load it, again and again while the browser is offline, and a few times while it is not. */
export async function loaded<T>(load: () => Promise<T>, pause: () => Promise<void> = untilOnline): Promise<T> {
  for (let tries = 1; ; tries++) {
    try {
      return await load();
    } catch (error) {
      if (tries >= TRIES_ONLINE && navigator.onLine) throw error;
      await pause();
    }
  }
}

function untilOnline(): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(done, AGAIN_MS);
    window.addEventListener("online", done);
    function done(): void {
      clearTimeout(timer);
      window.removeEventListener("online", done);
      resolve();
    }
  });
}

// biome-ignore lint/suspicious/noExplicitAny: as React's own `lazy` has it
export function lazyPage<T extends ComponentType<any>>(load: () => Promise<{ default: T }>) {
  return lazy(() => loaded(load));
}
