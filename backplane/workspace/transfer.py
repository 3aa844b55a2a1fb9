"""A file of this machine on its way to an object store, or from it."""

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, AsyncIterable
from io import FileIO
from pathlib import Path
from typing import Any

from typing_extensions import Buffer

from backplane.process.tasks import in_thread
from backplane.workspace.files import CREATE_FILE, translated, write_all

CHUNK = 256 * 1024
LARGE = 1024 * 1024
"""From this many bytes on a file goes through memory in pieces."""


async def content_of(source: Path) -> AsyncGenerator[bytes]:
    with source.open("rb", buffering=0) as file:
        while chunk := await in_thread(file.read, 4 * CHUNK):
            yield chunk
            if len(chunk) < 4 * CHUNK:
                return


def beginning_of(source: Path) -> bytes:
    """All of a file, or the first LARGE bytes."""
    with source.open("rb", buffering=0) as file:
        return file.read(LARGE)


def save(target: Path, content: Buffer) -> None:
    with _created(target) as file:
        _append(target, file, content)


async def save_all(target: Path, chunks: AsyncIterable[Buffer]) -> bytes:
    """The digest of what was written. One chunk is written and hashed while the next one arrives."""
    digest = hashlib.blake2b()
    with await in_thread(_created, target) as file:
        under_way: asyncio.Future[Any] | None = None
        try:
            async for chunk in chunks:
                if under_way:
                    await under_way
                under_way = asyncio.gather(in_thread(_append, target, file, chunk), in_thread(digest.update, chunk))
            if under_way:
                await under_way
        finally:
            if under_way:
                await asyncio.gather(under_way, return_exceptions=True)
    return digest.digest()


def _created(target: Path) -> FileIO:
    with translated(target.name):
        return FileIO(os.open(target, CREATE_FILE, 0o600), "w")


def _append(target: Path, file: FileIO, content: Buffer) -> None:
    with translated(target.name):
        write_all(file, content)
