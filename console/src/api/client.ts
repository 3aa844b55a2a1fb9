// The one way to the API: paths, parameters and answers have the types of the API's own description (`schema.ts`, made by
// `npm run types`). The browser sends the session's cookie; no token is kept in the page.
import { apiUrl } from "../root";
import { ApiError, errorOf } from "./problem";
import type { paths } from "./schema";

type Method = "get" | "post" | "put" | "patch" | "delete";
type Operation<P extends keyof paths, M extends Method> = paths[P][M];
type PathsWith<M extends Method> = { [P in keyof paths]: Operation<P, M> extends object ? P : never }[keyof paths];
type Json<R> = R extends { content: { "application/json": infer B } } ? B : undefined;
export type Answer<P extends keyof paths, M extends Method> =
  Operation<P, M> extends { responses: infer R } ? Json<R[keyof R & (200 | 201 | 202 | 204)]> : never;
type Body<P extends keyof paths, M extends Method> =
  Operation<P, M> extends { requestBody?: { content: { "application/json": infer B } } } ? B : undefined;

export type Query = Record<string, string | number | boolean | null | undefined | readonly string[]>;
export interface Given {
  path?: Record<string, string>;
  query?: Query;
  signal?: AbortSignal;
  headers?: Record<string, string>;
}

/** Fill the names in braces. A path of a file keeps its slashes. */
export function address(path: string, given: Given = {}): string {
  const filled = path.replace(/\{(\w+)\}/g, (_, name: string) =>
    encodeURIComponent(given.path?.[name] ?? "").replace(/%2F/gi, name === "path" ? "/" : "%2F"),
  );
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(given.query ?? {})) {
    if (value === null || value === undefined || value === "") continue;
    for (const one of Array.isArray(value) ? value : [value]) query.append(name, String(one));
  }
  const text = query.toString();
  return apiUrl(text ? `${filled}?${text}` : filled);
}

let whenSignedOut: () => void = () => {};
/** Called when an answer says that the session is over. */
export function onSignedOut(callback: () => void): void {
  whenSignedOut = callback;
}

/** Raises ApiError for every answer but a good one, and where there is none. */
export async function send(method: Method, url: string, given: Given = {}, body?: unknown): Promise<Response> {
  const headers: Record<string, string> = { Accept: "application/json", ...given.headers };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response: Response;
  try {
    response = await fetch(url, {
      method: method.toUpperCase(),
      headers,
      body: body === undefined ? null : JSON.stringify(body),
      signal: given.signal ?? null,
      credentials: "same-origin",
    });
  } catch (error) {
    if (given.signal?.aborted) throw error;
    throw new ApiError(0, "no_answer", "the platform does not answer");
  }
  if (!response.ok) {
    if (response.status === 401) whenSignedOut();
    throw await errorOf(response);
  }
  return response;
}

async function called(method: Method, path: string, given: Given, body?: unknown): Promise<never> {
  const response = await send(method, address(path, given), given, body);
  return (response.status === 204 ? undefined : await response.json()) as never;
}

export const api = {
  get: <P extends PathsWith<"get">>(path: P, given: Given = {}): Promise<Answer<P, "get">> =>
    called("get", path, given),
  post: <P extends PathsWith<"post">>(path: P, body: Body<P, "post">, given: Given = {}): Promise<Answer<P, "post">> =>
    called("post", path, given, body),
  put: <P extends PathsWith<"put">>(path: P, body: Body<P, "put">, given: Given = {}): Promise<Answer<P, "put">> =>
    called("put", path, given, body),
  patch: <P extends PathsWith<"patch">>(
    path: P,
    body: Body<P, "patch">,
    given: Given = {},
  ): Promise<Answer<P, "patch">> => called("patch", path, given, body),
  delete: <P extends PathsWith<"delete">>(path: P, given: Given = {}): Promise<Answer<P, "delete">> =>
    called("delete", path, given),
};
