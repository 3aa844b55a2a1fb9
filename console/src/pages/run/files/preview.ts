// How a file is shown. Everything is shown as text, a table or a picture; nothing of a file ever runs or is a page.
export type Shape = "text" | "markdown" | "json" | "csv" | "image" | "none";

/** Bytes of a file that are read to be shown. */
export const PREVIEW_BYTES = 512 * 1024;
export const IMAGE_BYTES = 8 * 1024 * 1024;

const IMAGES: Record<string, string> = {
  png: "image/png",
  jpg: "image/jpeg",
  jpeg: "image/jpeg",
  gif: "image/gif",
  webp: "image/webp",
};

export function imageType(path: string): string | null {
  return IMAGES[path.split(".").at(-1)?.toLowerCase() ?? ""] ?? null;
}

export function shapeOf(path: string): Shape {
  if (imageType(path)) return "image";
  const end = path.split(".").at(-1)?.toLowerCase();
  if (end === "md" || end === "markdown") return "markdown";
  if (end === "json") return "json";
  if (end === "csv" || end === "tsv") return "csv";
  return "text";
}

/** Whether bytes are no text: a NUL, or much that is no UTF-8. */
export function isBinary(bytes: Uint8Array): boolean {
  const part = bytes.subarray(0, 8192);
  if (part.includes(0)) return true;
  const text = new TextDecoder().decode(part);
  let strange = 0;
  for (const letter of text) if (letter === "\ufffd") strange++;
  return strange > text.length / 20;
}

/** Rows of a CSV text (RFC 4180): quotes, doubled quotes, line breaks within them. At most `most` rows. */
export function rowsOf(text: string, most: number, separator = ","): string[][] {
  const rows: string[][] = [];
  let row: string[] = [];
  let cell = "";
  let isQuoted = false;
  for (let place = 0; place < text.length; place++) {
    const letter = text[place];
    if (isQuoted) {
      if (letter !== '"') cell += letter;
      else if (text[place + 1] === '"') {
        cell += '"';
        place++;
      } else isQuoted = false;
    } else if (letter === '"' && cell === "") isQuoted = true;
    else if (letter === separator) {
      row.push(cell);
      cell = "";
    } else if (letter === "\n") {
      row.push(cell.replace(/\r$/, ""));
      rows.push(row);
      if (rows.length >= most) return rows;
      row = [];
      cell = "";
    } else cell += letter;
  }
  if (cell || row.length) rows.push([...row, cell]);
  return rows;
}

export interface Folder {
  name: string;
  path: string;
  folders: Folder[];
  files: { name: string; path: string; size: number }[];
}

export function treeOf(files: readonly { path: string; size: number }[]): Folder {
  const root: Folder = { name: "", path: "", folders: [], files: [] };
  for (const { path, size } of files) {
    const parts = path.split("/");
    const name = parts.pop() ?? path;
    let folder = root;
    for (const part of parts) {
      let next = folder.folders.find((one) => one.name === part);
      if (!next) {
        next = { name: part, path: folder.path ? `${folder.path}/${part}` : part, folders: [], files: [] };
        folder.folders.push(next);
      }
      folder = next;
    }
    folder.files.push({ name, path, size });
  }
  return root;
}
