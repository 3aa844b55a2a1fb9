"""How much a folder holds, measured while hostile code writes to it.

Follows no symbolic link and stops at the first limit that is passed, so that no tree, however it is shaped, costs more
than its limits allow. What is deleted but still open is not seen: only a file system with a quota of its own sees that.
"""

import asyncio
import contextlib
import os
import stat
import threading
import time
from pathlib import Path

from backplane.workspace.files import make_accessible, open_folder

_MAX_DEPTH = 500
_FIRST_LOOK_SECONDS = 0.2
_SHARE_OF_TIME = 0.05
"""A look at a big folder takes long, so looks become rarer: they take about this share of the time."""


def exceeded(root: Path, max_bytes: int, max_files: int, stop: threading.Event) -> str:
    """What is over its limit, in words; empty when nothing is. A file counts by its length; folders have the same
    limit as files, each on its own. Ends early, with no answer, when `stop` is set."""
    size = files = folders = 0
    pending = [""]
    while pending and not stop.is_set():
        above = pending.pop()
        if above.count("/") > _MAX_DEPTH:
            return f"more than {_MAX_DEPTH} folders inside each other"
        # Whatever goes wrong here is the command changing the folder at this moment; the next look sees the result.
        with contextlib.suppress(OSError), open_folder(root, above) as folder, os.scandir(folder) as entries:
            for entry in entries:
                try:
                    status = os.lstat(entry.name, dir_fd=folder)
                except FileNotFoundError:
                    continue
                if stat.S_ISDIR(status.st_mode):
                    if status.st_mode & 0o500 != 0o500:
                        make_accessible(entry.name, folder, status.st_mode)
                    folders += 1
                    pending.append(f"{above}/{entry.name}" if above else entry.name)
                else:
                    files += 1
                    size += status.st_size
                if size > max_bytes:
                    return f"more than {max_bytes:,} bytes"
                if max(files, folders) > max_files:
                    return f"more than {max_files:,} files or folders"
    return ""


async def watch(folder: Path, max_bytes: int, max_files: int) -> str:
    """Look again and again, in a thread; returns once a limit is passed, with what `exceeded` says."""
    stop = threading.Event()
    pause = _FIRST_LOOK_SECONDS
    try:
        while True:
            await asyncio.sleep(pause)
            began = time.monotonic()
            if found := await asyncio.to_thread(exceeded, folder, max_bytes, max_files, stop):
                return found
            pause = max(_FIRST_LOOK_SECONDS, (time.monotonic() - began) / _SHARE_OF_TIME)
    finally:
        stop.set()
