// Where the console and the API are, whatever path a proxy serves them below. The server writes the way up from the page
// that was asked for into the document, so it is read once, before the address changes.
const up = document.querySelector<HTMLMetaElement>("meta[name=console-root]")?.content ?? "./";

/** The address of the console's first page, with a slash at its end. */
export const consoleRoot = import.meta.env.DEV ? new URL("/", location.href) : new URL(up, location.href);

/** The address of the API, with a slash at its end. */
export const apiRoot = import.meta.env.DEV ? consoleRoot : new URL("../", consoleRoot);

/** The path below which the console's own routes are, without a slash at its end. */
export const routerBase = consoleRoot.pathname.replace(/\/$/, "");

/** The address of one of the API's paths, such as "/agent/runs". */
export function apiUrl(path: string): string {
  return new URL(path.replace(/^\//, ""), apiRoot).href;
}
