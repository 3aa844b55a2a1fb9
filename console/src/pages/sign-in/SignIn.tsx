import { type FormEvent, useState } from "react";
import { ApiError, messageOf } from "../../api/problem";
import { Command } from "../../design/Command";
import { Icon } from "../../design/Icon";
import { Note } from "../../design/Note";
import { consoleRoot } from "../../root";
import { type Session, signIn } from "../../session/session";
import "./sign-in.css";

export default function SignIn({ onSignedIn }: { onSignedIn: (session: Session) => void }) {
  const [token, setToken] = useState("");
  const [fault, setFault] = useState<string | null>(null);
  const [isBusy, setBusy] = useState(false);

  async function submit(event: FormEvent) {
    event.preventDefault();
    setBusy(true);
    setFault(null);
    try {
      onSignedIn(await signIn(token.trim()));
    } catch (error) {
      setFault(
        error instanceof ApiError && error.status === 401
          ? "This token is unknown, expired or revoked."
          : messageOf(error),
      );
      setBusy(false);
    }
  }

  return (
    <main className="sign-in">
      <form onSubmit={submit} className="stack">
        <h1 className="row">
          <img src={new URL("icon.svg", consoleRoot).href} alt="" width="24" height="24" />
          Sign in
        </h1>
        <label className="field">
          <span>Token</span>
          <input
            className="input mono"
            type="password"
            name="token"
            autoComplete="current-password"
            placeholder="agt_…"
            value={token}
            onChange={(event) => setToken(event.target.value)}
            aria-invalid={fault !== null}
            aria-describedby={fault ? "fault" : undefined}
            required
            // The page has this one field.
            // biome-ignore lint/a11y/noAutofocus: nothing else is there to be read first
            autoFocus
          />
        </label>
        {fault && (
          <Note tone="bad" id="fault">
            {fault}
          </Note>
        )}
        <button type="submit" className="button primary" disabled={isBusy || !token.trim()}>
          <Icon name="chevron" />
          {isBusy ? "Signing in…" : "Sign in"}
        </button>
      </form>
      <section className="stack-s muted">
        <p>No token yet? Whoever runs the platform makes one:</p>
        <Command text="agentctl token create --user NAME" />
        <p>One that sees everything of its user and can change nothing:</p>
        <Command text="agentctl token create --user NAME --read-only --expires-in 30d" />
        <p>The token is sent once. The browser keeps a session, which ends after 12 hours without use.</p>
      </section>
    </main>
  );
}
