"""What a store of files does not keep: when a file was changed, its mode, empty folders and symbolic links.

It is kept where what a step changed is kept: each step's end in the journal has the attributes that the step left
(`StepRecord.attributes`), and what a run began with has its times (`Beginning.times`). So it is written together with
the step's end, costs no request to the store, and forks, retries and other workers find it with the files. Why not with
an object's metadata: a listing does not show it, a file that is only touched would have to be sent again, its etag
would stay the same so that no other copy would see the change, and a folder or a link is no object at all.

A time holds for the content that it was noted with: the entry of a file names its etag. What was changed from outside,
by a person or a worker of an older release, has the store's time and keeps its mode.

Here are values and decisions; `worker.files.checkout` looks at the disk, `worker.files.versioned` loads and hands on.
Owners, access control lists, extended attributes and special bits of a mode are not kept.

They are rows of the database and no files, so they have a quota of their own (`quota.check_attributes`), measured as
they are stored.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from backplane.workspace.base import FileInfo
from backplane.workspace.paths import folders_above

FILE_MODE, PROGRAM_MODE, FOLDER_MODE = 0o644, 0o755, 0o755
LATEST = 2**62
"""Nanoseconds since 1970 that a time may be at most; it is the year 2116."""

BYTECODE_FOLDER = "__pycache__"
"""What Python compiled. It belongs to one size and second of a source, so it is neither kept nor brought back."""

_ETAG_CHARS = 32
_PROGRAMS = (b"#!", b"\x7fELF")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Attributes:
    """`modified`: in nanoseconds since 1970. `mode`: permission bits; None: `usual_mode` of the content.
    `etag`: of the content that has this time; empty for folders and links. `target`: where a symbolic link leads, as
    text that is never followed here."""

    modified: int
    mode: int | None = None
    etag: str = ""
    target: str | None = None

    @property
    def is_file(self) -> bool:
        return bool(self.etag)


Changed = Mapping[str, Attributes | None]
"""By path; that of a folder ends with `/`. None: it is gone, or nothing is known any more."""


def usual_mode(content: bytes) -> int:
    """Of a file that nobody has given a mode; its first four bytes will do. A program can be started, so that a script
    that a person has put there runs."""
    return PROGRAM_MODE if content.startswith(_PROGRAMS) else FILE_MODE


def is_bytecode(path: str) -> bool:
    return BYTECODE_FOLDER in path.split("/")[:-1]


def nanoseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000


def encoded(changed: Changed) -> dict[str, Any]:
    """As JSON, for the journal."""
    return {path: None if one is None else _encoded(one) for path, one in changed.items()}


def decoded(kept: Mapping[str, Any]) -> dict[str, Attributes | None]:
    return {
        path: None if one is None else Attributes(one["time"], one.get("mode"), one.get("etag", ""), one.get("target"))
        for path, one in kept.items()
    }


def _encoded(one: Attributes) -> dict[str, Any]:
    values = {"time": one.modified, "mode": one.mode, "etag": one.etag or None, "target": one.target}
    return {name: value for name, value in values.items() if value is not None}


def stored_bytes(path: str, one: Attributes | None) -> int:
    """What the entry takes in the journal (`store.tables.PathsJson`), with its comma. A file that is still to be stored
    counts with an etag of 32 characters."""
    if one is None:
        return _text_bytes(path) + len(":null,")
    size = _text_bytes(path) + len(':{"time":},') + len(str(one.modified))
    if one.mode is not None:
        size += len(',"mode":') + len(str(one.mode))
    if one.target is not None:
        return size + len(',"target":') + _text_bytes(one.target)
    return (
        size
        if path.endswith("/")
        else size + len(',"etag":""') + (_text_bytes(one.etag) - 2 if one.etag else _ETAG_CHARS)
    )


def stored_path_bytes(path: str) -> int:
    """What a changed file takes in `StepRecord.files`, with its comma, reckoned with an etag of 32 characters. It is
    never more than what its attributes take."""
    return _text_bytes(path) + len(':"",') + _ETAG_CHARS


def _text_bytes(text: str) -> int:
    """As JSON; neither a path nor a target has control characters."""
    return len(text.encode()) + text.count('"') + text.count("\\") + 2


def total_bytes(changed: Changed) -> int:
    return sum(stored_bytes(path, one) for path, one in changed.items())


@dataclass(frozen=True, slots=True)
class Lost:
    """Links and folders that something else takes the place of, as two steps at once have left it under one name: a
    file wins over both, a folder over a link. `ours`: of the step that ends now; `theirs`: of the other."""

    ours: frozenset[str]
    theirs: frozenset[str]


class AttributeRecord:
    """Of one run, as one worker knows them. `load` gives what was noted before, and how many bytes of the journal that
    takes; it is called once."""

    def __init__(self, load: Callable[[], Awaitable[tuple[dict[str, Attributes], int]]] | None = None) -> None:
        self._load = load
        self._stored_bytes = 0
        self._loading = asyncio.Lock()
        self._all: dict[str, Attributes] = {}
        self._changed: dict[str, Attributes | None] = {}
        self._only_seen: dict[str, Attributes] = {}
        """What the store's listing says, and no note of the run does yet."""

    async def load(self) -> None:
        async with self._loading:
            if self._load is not None:
                self._all, self._stored_bytes = await self._load()
                self._load = None

    @property
    def folders(self) -> dict[str, Attributes]:
        """By path, without the `/` at its end."""
        return {path[:-1]: one for path, one in self._all.items() if path.endswith("/")}

    @property
    def links(self) -> dict[str, Attributes]:
        return {path: one for path, one in self._all.items() if one.target is not None}

    def get(self, path: str) -> Attributes | None:
        return self._all.get(path)

    def of_files(self, listed: Iterable[FileInfo]) -> dict[str, Attributes]:
        """The attributes of all files that the store lists. One that was changed from outside is not older than all
        that the run has: the store's time may be of whole seconds, and its clock another."""
        found: dict[str, Attributes] = {}
        not_before: int | None = None
        is_known = bool(self._all)
        for file in listed:
            known = self._all.get(file.path)
            if known is None or known.etag != file.etag:
                modified = nanoseconds(file.modified_at)
                if is_known:
                    if not_before is None:
                        newest = max(one.modified for one in self._all.values())
                        not_before = min(newest + 1, time.time_ns())
                    modified = max(modified, not_before)
                known = Attributes(modified, known.mode if known else None, file.etag)
                (self._changed if is_known else self._only_seen)[file.path] = known
            found[file.path] = known
        self._all.update(found)
        return found

    def change(self, changed: Changed) -> None:
        """Note what a step has done."""
        for path, one in changed.items():
            if one is None:
                self._all.pop(path, None)
            else:
                self._all[path] = one
            self._changed[path] = one
            self._only_seen.pop(path, None)

    def lost(self, changed: Changed, is_here: Callable[[str], bool]) -> Lost:
        """What is lost by this change. `is_here`: whether the step knew of the path when it began; what else is noted
        by now is another's. A folder with files in it is not lost: that it has a file's name is a conflict."""
        ours, theirs = set[str](), set[str]()

        def another(path: str) -> Attributes | None:
            return None if is_here(path) else self._all.get(path)

        for path, one in changed.items():
            if one is None:
                continue
            name = path.removesuffix("/")
            other, folder = another(name), another(f"{name}/")
            if path.endswith("/") or one.target is not None:
                if (other is not None and other.is_file) or (one.target is not None and folder is not None):
                    ours.add(path)
                elif path.endswith("/") and other is not None:
                    theirs.add(name)
            elif other is not None and other.target is not None:
                theirs.add(path)
            elif folder is not None and not any(
                file.startswith(f"{name}/") for file, at in self._all.items() if at.is_file
            ):
                theirs.add(f"{name}/")
            for above in folders_above(name):
                if (found := another(above)) is not None and found.target is not None:
                    theirs.add(above)
        return Lost(frozenset(ours), frozenset(theirs))

    def written(self, file: FileInfo) -> None:
        """A tool has written this file just now. It keeps its mode."""
        known = self._all.get(file.path)
        mode = known.mode if known is not None and known.target is None else None
        self.change({file.path: Attributes(time.time_ns(), mode, file.etag)})

    def times_at_first(self, files: Iterable[FileInfo]) -> dict[str, int]:
        """Those of the files that the run begins with, which are thereby noted."""
        self._only_seen.clear()
        known = {file.path: self._all.get(file.path) for file in files}
        return {
            file.path: one.modified
            if (one := known[file.path]) is not None and one.etag == file.etag
            else nanoseconds(file.modified_at)
            for file in files
        }

    @property
    def stored_bytes(self) -> int:
        """What all steps that have ended take in the journal."""
        return self._stored_bytes

    def waiting_bytes(self) -> int:
        """What waits to be noted with the next step that ends. May be called in a thread."""
        return total_bytes({**self._only_seen, **self._changed})

    def take_changed(self) -> dict[str, Attributes | None]:
        """What is to be noted with the step that ends now."""
        if not self._changed:
            return {}
        changed, self._changed = {**self._only_seen, **self._changed}, {}
        self._only_seen = {}
        self._stored_bytes += total_bytes(changed)
        return changed
