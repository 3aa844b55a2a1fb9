import { useInfiniteQuery, useQuery } from "@tanstack/react-query";
import { useEffect, useMemo } from "react";
import { useSearchParams } from "wouter";
import { address, api, send } from "../../../api/client";
import { Command } from "../../../design/Command";
import { bytes } from "../../../design/format";
import { Icon } from "../../../design/Icon";
import { Note } from "../../../design/Note";
import { EmptyState, ErrorState, SkeletonRows } from "../../../design/States";
import { Time } from "../../../design/Time";
import type { TabGiven } from "../tabs";
import { Markdown } from "./Markdown";
import { type Folder, IMAGE_BYTES, imageType, isBinary, PREVIEW_BYTES, rowsOf, shapeOf, treeOf } from "./preview";
import "./files.css";

const ROWS_SHOWN = 200;

export default function FilesTab({ run, log }: TabGiven) {
  const [search, setSearch] = useSearchParams();
  const chosen = search.get("file");
  const changes = log.events.reduce(
    (last, event) => (event.type === "step" || event.type === "end" ? event.id : last),
    0,
  );
  const list = useInfiniteQuery({
    queryKey: ["run", run.run_id, "files", changes],
    queryFn: ({ pageParam, signal }) =>
      api.get("/agent/runs/{run_id}/files", {
        path: { run_id: run.run_id },
        query: { cursor: pageParam, limit: 200 },
        signal,
      }),
    initialPageParam: null as string | null,
    getNextPageParam: (last) => last.next_cursor ?? null,
    placeholderData: (old) => old,
    enabled: !run.files_expired_at,
  });
  const files = useMemo(() => list.data?.pages.flatMap((page) => page.files) ?? [], [list.data]);
  const tree = useMemo(() => treeOf(files), [files]);
  const file = files.find(({ path }) => path === chosen);

  if (run.files_expired_at)
    return (
      <div className="panel">
        <EmptyState title="The files are gone">
          <p className="muted">
            They were deleted <Time at={run.files_expired_at} />, as the platform keeps them for so long only.
          </p>
        </EmptyState>
      </div>
    );
  if (list.isError && !list.data) return <ErrorState error={list.error} retry={() => void list.refetch()} />;
  if (!list.data) return <SkeletonRows rows={5} />;
  if (!files.length)
    return (
      <div className="panel">
        <EmptyState title="No files yet">
          <p className="muted">What the run writes into its workspace is here.</p>
        </EmptyState>
      </div>
    );
  return (
    <section className="panel files" aria-label="Files">
      <nav className="files-tree" aria-label="Files of the run">
        <Branch folder={tree} chosen={chosen} choose={(path) => setSearch({ file: path }, { replace: true })} />
        {list.hasNextPage && (
          <button type="button" className="button plain" onClick={() => void list.fetchNextPage()}>
            Show more
          </button>
        )}
      </nav>
      <div className="files-shown">
        {file ? (
          <Preview
            run={run.run_id}
            path={file.path}
            size={file.size}
            etag={file.etag}
            key={`${file.path} ${file.etag}`}
          />
        ) : (
          <EmptyState title={chosen ? "There is no such file any more" : "Choose a file"}>
            <Command text={`agentctl files ls ${run.run_id}`} />
          </EmptyState>
        )}
      </div>
    </section>
  );
}

interface BranchGiven {
  folder: Folder;
  chosen: string | null;
  choose: (path: string) => void;
}

function Branch({ folder, chosen, choose }: BranchGiven) {
  return (
    <ul>
      {folder.folders.map((one) => (
        <li key={one.path}>
          <details open>
            <summary>
              <Icon name="folder" /> {one.name}
            </summary>
            <Branch folder={one} chosen={chosen} choose={choose} />
          </details>
        </li>
      ))}
      {folder.files.map((file) => (
        <li key={file.path}>
          <button
            type="button"
            className="files-file"
            aria-current={file.path === chosen ? "true" : undefined}
            onClick={() => choose(file.path)}
          >
            <Icon name="file" />
            <span className="cut grow">{file.name}</span>
            <span className="muted nowrap">{bytes(file.size)}</span>
          </button>
        </li>
      ))}
    </ul>
  );
}

interface PreviewGiven {
  run: string;
  path: string;
  size: number;
  etag: string;
}

function Preview({ run, path, size, etag }: PreviewGiven) {
  const url = address("/agent/runs/{run_id}/files/{path}", { path: { run_id: run, path } });
  const shape = shapeOf(path);
  const isTooBig = shape === "image" && size > IMAGE_BYTES;
  const content = useQuery({
    queryKey: ["file", run, path, etag],
    queryFn: async ({ signal }) => {
      const isPart = shape !== "image" && size > PREVIEW_BYTES;
      const headers = { Accept: "*/*", ...(isPart ? { Range: `bytes=0-${PREVIEW_BYTES - 1}` } : {}) };
      return new Uint8Array(await (await send("get", url, { headers, signal })).arrayBuffer());
    },
    enabled: size > 0 && !isTooBig,
    staleTime: Number.POSITIVE_INFINITY,
    gcTime: 60_000,
  });
  return (
    <>
      <header className="row">
        <code className="cut grow" title={path}>
          {path}
        </code>
        <a className="button" href={url} download>
          <Icon name="download" />
          {bytes(size)}
        </a>
      </header>
      {content.isError && <ErrorState error={content.error} retry={() => void content.refetch()} />}
      {size === 0 && <p className="muted body">The file is empty.</p>}
      {isTooBig && <p className="muted body">The picture is too large to be shown here; download it.</p>}
      {content.isLoading && <SkeletonRows rows={6} />}
      {content.data && <Content bytes={content.data} path={path} />}
      {content.data && content.data.length < size && (
        <Note tone="idle" isLoud={false}>
          The first {bytes(content.data.length)} are shown; the whole file is in the download.
        </Note>
      )}
    </>
  );
}

function Content({ bytes: data, path }: { bytes: Uint8Array<ArrayBuffer>; path: string }) {
  const shape = shapeOf(path);
  const type = imageType(path);
  const picture = useMemo(() => (type ? URL.createObjectURL(new Blob([data], { type })) : null), [data, type]);
  useEffect(() => () => void (picture && URL.revokeObjectURL(picture)), [picture]);
  if (picture) return <img className="files-image" src={picture} alt={path} />;
  if (isBinary(data)) return <p className="muted body">It is no text, so it is not shown here; download it.</p>;
  const text = new TextDecoder().decode(data);
  if (shape === "markdown") return <Markdown text={text} />;
  if (shape === "csv") return <CsvTable rows={rowsOf(text, ROWS_SHOWN, path.endsWith(".tsv") ? "\t" : ",")} />;
  return <pre className="files-text">{shape === "json" ? pretty(text) : text}</pre>;
}

function pretty(text: string): string {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text; // a part of it, or no JSON at all
  }
}

function CsvTable({ rows }: { rows: string[][] }) {
  const [head, ...others] = rows;
  return (
    // biome-ignore lint/a11y/noNoninteractiveTabindex: it scrolls by the keys
    <div className="table-frame" tabIndex={0} role="group" aria-label="Table">
      <table className="table">
        <thead>
          <tr>
            {head?.map((cell, place) => (
              // biome-ignore lint/suspicious/noArrayIndexKey: a table of a file stays as it is
              <th key={place}>{cell}</th>
            ))}
          </tr>
        </thead>
        <tbody>
          {others.map((row, number) => (
            // biome-ignore lint/suspicious/noArrayIndexKey: as above
            <tr key={number}>
              {row.map((cell, place) => (
                // biome-ignore lint/suspicious/noArrayIndexKey: as above
                <td key={place}>{cell}</td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
      {rows.length >= ROWS_SHOWN && <p className="muted body">The first {ROWS_SHOWN} rows.</p>}
    </div>
  );
}
