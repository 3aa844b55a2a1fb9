import { createContext, useContext } from "react";
import type { Session } from "./session";

export const SessionContext = createContext<Session | null>(null);

/** The session of whoever sees the page; pages are shown to those who are signed in alone. */
export function useSession(): Session {
  const session = useContext(SessionContext);
  if (!session) throw new Error("a page was shown to nobody");
  return session;
}
