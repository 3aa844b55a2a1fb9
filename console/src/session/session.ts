// Who is signed in. The session is a cookie that scripts cannot read; the page knows only whose it is.
import { send } from "../api/client";
import { ApiError } from "../api/problem";
import { apiUrl } from "../root";

export interface Session {
  user: { id: string; name: string; tier: string };
  is_read_only: boolean;
  expires_at: string | null;
}

const path = () => apiUrl("/console/session");

/** null: nobody is signed in. */
export async function currentSession(): Promise<Session | null> {
  try {
    return (await (await send("get", path())).json()) as Session;
  } catch (error) {
    if (error instanceof ApiError && error.status === 401) return null;
    throw error;
  }
}

/** Raises ApiError: 401 for a token that is unknown or revoked. */
export async function signIn(token: string): Promise<Session> {
  return (await (await send("post", path(), {}, { token })).json()) as Session;
}

export async function signOut(): Promise<void> {
  await send("delete", path());
}
