// What went wrong, as the API says it (RFC 9457), and what a person may do about it.
export class ApiError extends Error {
  override name = "ApiError";
  constructor(
    /** 0: there was no answer. */
    readonly status: number,
    /** As in the API's table of error codes. */
    readonly code: string,
    message: string,
    /** Seconds after which to try again, where the API says so. */
    readonly retryAfter: number | null = null,
  ) {
    super(message);
  }

  /** Whether the same request may succeed by itself later. */
  get isPassing(): boolean {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

/** Raises nothing: an answer that is no problem document, such as a proxy's page, gives an error too. */
export async function errorOf(response: Response): Promise<ApiError> {
  const retryAfter = Number(response.headers.get("retry-after")) || null;
  try {
    const body = (await response.json()) as { code?: string; detail?: string; title?: string };
    const detail = body.detail ?? body.title;
    if (detail) return new ApiError(response.status, body.code ?? "http_error", detail, retryAfter);
  } catch {
    // No JSON: what follows says so.
  }
  const who = response.status >= 502 ? "the proxy before the platform" : "the platform";
  return new ApiError(response.status, "http_error", `${who} answered ${response.status}`, retryAfter);
}

const ADVICE: Record<string, string> = {
  unauthenticated: "Sign in again.",
  not_found: "It was deleted, or belongs to another user.",
  read_only: "You are signed in by a read-only token. Sign in by one that may change things.",
  foreign_origin: "Open the console at the platform's own address.",
  rate_limited: "The console tries again by itself.",
  part_unavailable: "The platform lacks one of its parts at this moment. Look at `agentctl doctor`.",
};

export function adviceFor(error: unknown): string | null {
  if (!(error instanceof ApiError)) return null;
  if (error.status === 0) return "Is the platform running, and can this machine reach it? The console tries again.";
  return ADVICE[error.code] ?? null;
}

export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
