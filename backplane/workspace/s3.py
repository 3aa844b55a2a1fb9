"""Workspaces in a bucket of any S3-compatible server.

Two libraries, each for what it is good at: obstore (Rust, truly asynchronous) moves files, since boto3 costs
milliseconds of CPU a call; boto3 looks for the bucket at start-up. An object appears whole or not at all by
itself. A file over PART goes up in parts; when its chunks fail or the call is cancelled the parts are given up, but a
killed process can leave some: give the bucket a lifecycle rule that aborts incomplete multipart uploads. Nothing here
locks: conditional writes are not the same on every server.
"""

import asyncio
import secrets
import sys
import time
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
import obstore
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from obstore.exceptions import GenericError
from obstore.store import S3Store

from backplane.errors import NotFound, Unavailable
from backplane.process.tasks import in_thread
from backplane.workspace import s3_errors
from backplane.workspace.base import (
    BEGINNING,
    PROBE,
    Beginning,
    FileInfo,
    Versions,
    Workspace,
    WorkspaceStore,
    WorkspaceUsage,
    run_prefix,
    version_name,
    versions_prefix,
)
from backplane.workspace.files import SerialThread
from backplane.workspace.s3_errors import NO_BUCKET, answers_translated
from backplane.workspace.transfer import CHUNK, LARGE, beginning_of, content_of, save, save_all

if TYPE_CHECKING:  # obstore has these names for type checkers only
    from obstore import GetOptions, GetResult, ObjectMeta
    from obstore.store import ClientConfig, RetryConfig, S3Config

PART = 8 * 1024 * 1024
"""Bytes of a part. S3 takes 10,000 parts, so the largest file is 80 GB; an upload holds about four parts in memory."""

CLIENT: "ClientConfig" = {
    "connect_timeout": timedelta(seconds=3),
    "read_timeout": timedelta(seconds=30),
    "timeout": timedelta(days=1),  # of a whole transfer; a stalled one is cut off by read_timeout
}
RETRIES: "RetryConfig" = {
    "max_retries": 3,
    "retry_timeout": timedelta(seconds=15),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2},
}
CHECK_SECONDS = 5
TRY_AGAIN_SECONDS = 60.0
"""Since a store was last tried out with success: `check` then does so again."""
PROBES = ".check"
ABORT_SECONDS = 10


class S3WorkspaceStore(WorkspaceStore):
    """`endpoint` is a URL (http is allowed), empty for the region's own. Empty keys mean the machine's own role.

    `virtual_host` puts the bucket before the endpoint's host name; `create_bucket` makes it when it is missing.
    """

    def __init__(
        self,
        bucket: str,
        *,
        endpoint: str,
        region: str,
        access_key: str,
        secret_key: str,
        virtual_host: bool = False,
        create_bucket: bool = False,
    ) -> None:
        self._tried_at = float("-inf")
        self._bucket = bucket
        self._region = region
        self._create_bucket = create_bucket
        self._endpoint = endpoint.rstrip("/")
        self._keys = (access_key, secret_key) if access_key else None
        self._virtual_host = virtual_host
        config: S3Config = {
            "region": region,
            "virtual_hosted_style_request": virtual_host,
            # One DELETE an object: not every server knows the bulk call.
            "disable_bulk_delete": True,
        }
        if endpoint:
            config["endpoint"] = bucket_endpoint(self._endpoint, bucket) if virtual_host else self._endpoint
        if self._keys:
            config["access_key_id"], config["secret_access_key"] = self._keys
        client: ClientConfig = {**CLIENT, "allow_http": endpoint.startswith("http://")}
        self._store = S3Store(bucket, config=config, client_options=client, retry_config=RETRIES)

    def workspace(self, user_id: str, run_id: str) -> Workspace:
        return S3Workspace(self._store, run_prefix(user_id, run_id))

    def versions(self, user_id: str, run_id: str) -> Versions:
        return S3Versions(self._store, user_id, run_id)

    async def remove(self, user_id: str, run_id: str) -> None:
        with answers_translated("", missing=NO_BUCKET):
            for prefix in (run_prefix(user_id, run_id), versions_prefix(user_id, run_id)):
                async for batch in obstore.list(self._store, prefix):
                    await obstore.delete_async(self._store, [meta["path"] for meta in batch])

    async def usage_by_user(self) -> dict[str, WorkspaceUsage]:
        files, size = Counter[str](), Counter[str]()
        with answers_translated("", missing=NO_BUCKET):
            async for batch in obstore.list(self._store, "users/", chunk_size=1000):
                for meta in batch:
                    user_id = meta["path"].split("/", 2)[1]
                    files[user_id] += 1
                    size[user_id] += meta["size"]
        return {user_id: WorkspaceUsage(count, size[user_id]) for user_id, count in files.items()}

    async def prepare(self) -> None:
        await in_thread(self._prepare)
        await self._try_out()

    async def check(self) -> None:
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                if time.monotonic() - self._tried_at >= TRY_AGAIN_SECONDS:
                    await self._try_out()
                else:
                    with answers_translated("", missing=NO_BUCKET):
                        await obstore.list_with_delimiter_async(self._store, prefix=PROBES)
        except TimeoutError:
            raise s3_errors.unavailable(f"no answer within {CHECK_SECONDS} s") from None

    async def _try_out(self) -> None:
        """Write, read, list and delete an object: a store may answer, and refuse any of these; and a web server
        answers all of them."""
        key = f"{PROBES}/{secrets.token_hex(8)}"
        with answers_translated("", missing=NO_BUCKET):
            try:
                await obstore.put_async(self._store, key, PROBE, use_multipart=False)
            except GenericError as error:
                if not s3_errors.lacks_etag(error):
                    raise
                await self._content(key)
                raise s3_errors.lacks_etags() from None
            await self._content(key)
            found = await obstore.list_with_delimiter_async(self._store, prefix=PROBES)
            if key not in {meta["path"] for meta in found["objects"]}:
                raise s3_errors.no_store("a list without what was just written")
            await obstore.delete_async(self._store, key)
        self._tried_at = time.monotonic()

    async def _content(self, key: str) -> bytes:
        """Of the object that tries the store out. Raises Unavailable when it is not what was written."""
        content = bytes(await (await obstore.get_async(self._store, key)).bytes_async())
        if content != PROBE:
            raise s3_errors.no_store(
                s3_errors.A_PAGE if s3_errors.is_page(content) else "other bytes than were just written"
            )
        return content

    async def close(self) -> None:
        # obstore's threads are still leaving Python when its last call has answered; a process that ends at this very
        # moment is aborted (SIGABRT). There is nothing to wait for, only a moment to give.
        await asyncio.sleep(0.1)

    def _prepare(self) -> None:
        access_key, secret_key = self._keys or (None, None)
        try:
            client: Any = boto3.client(
                "s3",
                endpoint_url=self._endpoint or None,
                region_name=self._region,
                aws_access_key_id=access_key,
                aws_secret_access_key=secret_key,
                config=Config(
                    signature_version="s3v4",
                    s3={"addressing_style": "virtual" if self._virtual_host else "path"},
                    connect_timeout=3,
                    read_timeout=10,
                    retries={"mode": "standard", "total_max_attempts": 3},
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                ),
            )
            client.meta.events.register_last("before-parameter-build.s3", _follow_no_redirect)
            try:
                self._ensure_bucket(client)
            finally:
                client.close()
        except (ClientError, BotoCoreError, ValueError) as error:
            raise s3_errors.of_start(error, self._region) from None

    def _ensure_bucket(self, client: Any) -> None:
        try:
            client.head_bucket(Bucket=self._bucket)
            return
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") not in ("404", "NoSuchBucket"):
                raise
            more = f" {s3_errors.MAYBE_A_PAGE}" if s3_errors.answers_with_page(error) else ""
        if not self._create_bucket:
            raise Unavailable(
                f"The bucket {self._bucket!r} does not exist: create it, or set S3_CREATE_BUCKET=true.{more}",
                part="workspace",
                refuses=True,
            )
        place = {} if self._region == "us-east-1" else {"LocationConstraint": self._region}
        try:
            client.create_bucket(Bucket=self._bucket, **({"CreateBucketConfiguration": place} if place else {}))
        except ClientError as error:
            # Another process was faster; the second look says whether the bucket is ours.
            if error.response.get("Error", {}).get("Code") not in ("BucketAlreadyExists", "BucketAlreadyOwnedByYou"):
                raise
            client.head_bucket(Bucket=self._bucket)


def _follow_no_redirect(context: dict[str, Any], **_: Any) -> None:
    """boto3 looks for a bucket's region where a redirect leads, and so on without end where each leads to the next.
    What moves the files follows none, so it would not help either."""
    context.setdefault("s3_redirect", {})["redirected"] = True


class S3Workspace(Workspace):
    def __init__(self, store: S3Store, prefix: str) -> None:
        self._store = store
        self._prefix = prefix
        self._disk = SerialThread()

    async def list(self, prefix: str = "") -> list[FileInfo]:
        with answers_translated(prefix, missing=NO_BUCKET):
            found = [
                self._info(meta)
                async for batch in obstore.list(self._store, self._prefix + prefix, chunk_size=1000)
                for meta in batch
            ]
        if prefix:
            with suppress(NotFound):
                found.append(await self.stat(prefix))
        return sorted(found, key=lambda file: file.path)

    async def stat(self, path: str) -> FileInfo:
        with answers_translated(path):
            return self._opened(await obstore.head_async(self._store, self._prefix + path))

    async def read(self, path: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        with answers_translated(path):
            result, skip = await self._get(path, start, end)
            self._opened(result.meta)
            left = min(result.meta["size"], sys.maxsize if end is None else end) - start
            if left <= 0:
                return
            async for chunk in result.stream(min_chunk_size=CHUNK):
                wanted = chunk[skip : skip + left]
                skip = max(skip - len(chunk), 0)
                left -= len(wanted)
                if wanted:
                    yield wanted
                if not left:
                    return

    async def write(self, path: str, chunks: AsyncIterable[bytes]) -> FileInfo:
        source = aiter(chunks)
        first = bytearray()
        async for chunk in source:
            first += chunk
            if len(first) > PART:
                return await self._write_parts(path, bytes(first), source)
        return await self._write_whole(path, bytes(first))

    async def get(self, path: str) -> tuple[FileInfo, bytes]:
        with answers_translated(path):
            result = await obstore.get_async(self._store, self._prefix + path)
            return self._opened(result.meta), bytes(await result.bytes_async())

    async def put(self, path: str, content: bytes) -> FileInfo:
        return await self._write_whole(path, content)

    async def delete(self, path: str) -> None:
        await self.stat(path)  # S3 says yes to deleting what is not there
        with answers_translated(path):
            await obstore.delete_async(self._store, self._prefix + path)

    async def download(self, path: str, target: Path) -> FileInfo:
        with answers_translated(path):
            result = await obstore.get_async(self._store, self._prefix + path)
            info = self._opened(result.meta)
            if info.size < LARGE:
                await self._disk.run(save, target, await result.bytes_async())
            else:
                digest = await save_all(target, result.stream(min_chunk_size=4 * LARGE))
                info = replace(info, digest=digest)
        return info

    async def upload(self, path: str, source: Path) -> FileInfo:
        content = await self._disk.run(beginning_of, source)
        if len(content) < LARGE:
            return await self._write_whole(path, content)
        async with aclosing(content_of(source)) as chunks:
            return await self.write(path, chunks)

    async def _get(self, path: str, start: int, end: int | None) -> "tuple[GetResult, int]":
        """The file from `start` on, or all of it and how many bytes to leave out."""
        key = self._prefix + path
        if start or end is not None:
            # A range that starts after the end is an error to obstore, and so is a server that answers ranges with
            # status 200 instead of 206; both are known by asking for the whole, whose size comes before its bytes.
            with suppress(GenericError):
                options: GetOptions = {"range": {"offset": start} if end is None else (start, max(end, start + 1))}
                return await obstore.get_async(self._store, key, options=options), 0
        return await obstore.get_async(self._store, key), start

    async def _write_whole(self, path: str, content: bytes) -> FileInfo:
        with answers_translated(path, missing=NO_BUCKET):
            result = await obstore.put_async(self._store, self._prefix + path, content, use_multipart=False)
        return FileInfo(path=path, size=len(content), modified_at=datetime.now(UTC), etag=_etag(result["e_tag"]))

    async def _write_parts(self, path: str, first: bytes, rest: AsyncIterator[bytes]) -> FileInfo:
        """`rest` is read here, in the caller's task, and handed over: obstore gives up the parts that it has sent when
        its source fails, but not when it is cancelled. So a cancelled write fails the source, and waits for that."""
        queue: asyncio.Queue[bytes | _GivenUp | None] = asyncio.Queue(maxsize=4)
        with answers_translated(path, missing=NO_BUCKET):
            sending = asyncio.ensure_future(
                obstore.put_async(
                    self._store, self._prefix + path, _chunks_of(queue), chunk_size=PART, max_concurrency=2
                )
            )
        try:
            await _enqueue(queue, first, sending)
            async for chunk in rest:
                await _enqueue(queue, chunk, sending)
                if sending.done():
                    break
            await _enqueue(queue, None, sending)
            with answers_translated(path, missing=NO_BUCKET):
                await asyncio.shield(sending)
        except BaseException:
            while not queue.empty():
                queue.get_nowait()
            queue.put_nowait(_GivenUp())
            await asyncio.wait((sending,), timeout=ABORT_SECONDS)
            if sending.done() and not sending.cancelled():
                sending.exception()
            sending.cancel()
            raise
        # The etag of an upload in parts is not everywhere the one that later listings show.
        return await self.stat(path)

    def _opened(self, meta: "ObjectMeta") -> FileInfo:
        """Of an answer about one file. Raises Unavailable for one without an ETag: a login page that a proxy sends in
        place of a file would be taken for its content."""
        if not meta["e_tag"]:
            raise s3_errors.no_store(f"{s3_errors.NO_ETAG}, as {s3_errors.A_PAGE} has none")
        return self._info(meta)

    def _info(self, meta: "ObjectMeta") -> FileInfo:
        return FileInfo(
            path=meta["path"].removeprefix(self._prefix),
            size=meta["size"],
            modified_at=meta["last_modified"],
            etag=_etag(meta["e_tag"]),
        )


class S3Versions(Versions):
    """The server copies, up to the 5 GB that it copies in one call. Not every server compares etags while it does, so
    that is done before; what is replaced in the moment between is kept under the wrong etag."""

    def __init__(self, store: S3Store, user_id: str, run_id: str) -> None:
        self._store = store
        self._user_id = user_id
        self._folder = versions_prefix(user_id, run_id)
        self._present = S3Workspace(store, run_prefix(user_id, run_id))
        self._notes = S3Workspace(store, self._folder)
        self._run_prefix = run_prefix(user_id, run_id)

    async def keep(self, path: str, etag: str) -> None:
        if (await self._present.stat(path)).etag != etag:
            raise NotFound(f"The file {path!r} has changed.")
        await self._copy(path, self._run_prefix + path, self._folder + version_name(path, etag))

    async def bring_back(self, path: str, etag: str, run_id: str) -> bool:
        target = run_prefix(self._user_id, run_id) + path
        with suppress(NotFound):
            await self._copy(path, self._folder + version_name(path, etag), target)
            return True
        with suppress(NotFound):
            if (await self._present.stat(path)).etag == etag:
                if target != self._run_prefix + path:
                    await self._copy(path, self._run_prefix + path, target)
                return True
        return False

    async def size(self) -> int:
        return sum(file.size for file in await self._notes.list() if file.path != BEGINNING)

    async def beginning(self) -> Beginning | None:
        try:
            return Beginning.decoded((await self._notes.get(BEGINNING))[1])
        except NotFound:
            return None

    async def begin(self, beginning: Beginning) -> None:
        await self._notes.put(BEGINNING, beginning.encoded())

    async def _copy(self, path: str, source: str, target: str) -> None:
        with answers_translated(path):
            await obstore.copy_async(self._store, source, target)


class _GivenUp(Exception):
    """Makes obstore give up an upload."""


async def _chunks_of(queue: asyncio.Queue[bytes | _GivenUp | None]) -> AsyncIterator[bytes]:
    while (item := await queue.get()) is not None:
        if isinstance(item, _GivenUp):
            raise item
        yield item


async def _enqueue(
    queue: asyncio.Queue[bytes | _GivenUp | None], item: bytes | None, sending: asyncio.Future[Any]
) -> None:
    """Waits for room in the queue, or returns when the upload has ended early: awaiting it says why."""
    putting = asyncio.ensure_future(queue.put(item))
    try:
        await asyncio.wait((putting, sending), return_when=asyncio.FIRST_COMPLETED)
    finally:
        putting.cancel()


def bucket_endpoint(endpoint: str, bucket: str) -> str:
    """The endpoint with the bucket before its host: `https://s3.example.org` gives `https://bucket.s3.example.org`."""
    parts = urlsplit(endpoint)
    return parts._replace(netloc=f"{bucket}.{parts.netloc}").geturl()


def _etag(raw: str | None) -> str:
    """Some servers quote it in one answer and not in another."""
    return (raw or "").strip('"')
