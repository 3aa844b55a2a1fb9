"""Whether the folder of all workspaces is a copy: who copied or restored it has changed the etags of all files."""

import contextlib
import json
import os
import time
from io import FileIO
from pathlib import Path
from typing import Any

from backplane.workspace.files import CREATE_FILE, incoming_file, write_all

IDENTITY = ".identity"


def note_identity(root: Path) -> None:
    """By its own inode, a file in the folder shows whether the folder is a copy: who copied or restored it has changed
    the etags of all files. Since when it is one is noted too."""
    identity = _identity(root)
    if identity is not None and identity["inode"] == os.lstat(root / IDENTITY).st_ino:
        return
    with contextlib.ExitStack() as opened:
        incoming = incoming_file(root, opened)
        with FileIO(os.open(incoming, CREATE_FILE, 0o600), "w") as file:
            noted = {"inode": os.fstat(file.fileno()).st_ino, "copied_at_ns": identity and time.time_ns()}
            write_all(file, json.dumps(noted).encode())
        os.replace(incoming, root / IDENTITY)


def _identity(root: Path) -> dict[str, Any] | None:
    try:
        noted = json.loads((root / IDENTITY).read_bytes())
        return {"inode": int(noted["inode"]), "copied_at_ns": noted["copied_at_ns"]}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def is_copy_of(status: os.stat_result, etag: str, root: Path) -> bool:
    """Whether a file of a copied folder is the copy of the one that had this etag: nothing has been written there
    since, and what the file was before that would be among the kept versions."""
    identity = _identity(root)
    if identity is None or identity["copied_at_ns"] is None or status.st_mtime_ns > identity["copied_at_ns"]:
        return False
    return etag.split("-")[1:2] == [f"{status.st_size:x}"]
