"""The folder of a checkout, piece by piece: what lies there, what of it can be kept, and how it is set.

Nothing here follows a link: the folder is as hostile code left it. Its folders are opened one from another
(`backplane.workspace.files`), and what is set is set through a descriptor of a plain file or folder.
"""

import hashlib
import os
import posixpath
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from io import FileIO

from backplane.errors import InvalidPath
from backplane.workspace.attributes import FOLDER_MODE, Attributes
from backplane.workspace.files import CREATE_FILE, open_folder, split
from backplane.workspace.paths import MAX_PATH_BYTES, folders_above

LARGE = 1024 * 1024
"""From this many bytes on a file is large: it is hashed in a thread of its own, and few are in transit at once."""

READ_AT_ONCE = 16 * 1024
"""Bytes of a file that are read and hashed without a buffer."""

NAMES_SHOWN = 5
"""How many names each line on lost files shows."""

LOST_TO_ANOTHER = "link or empty folder"

RESERVED = "entry of .output"
BESIDE_BYTECODE = "entry of __pycache__"

_ADVICE = {
    RESERVED: "steps' logs have that name in the workspace; give it another name",
    BESIDE_BYTECODE: "of that folder nothing is kept; put it in another folder",
    LOST_TO_ANOTHER: "two steps at the same time have left different things under one name: let one wait for the other",
    "extended attribute": "set it in the step that needs it",
    "hard link": "each name is a file of its own from here on",
    "mode": "a file keeps its permission bits and is readable for its owner, a folder has all rights for its owner",
    "symbolic link": "it leads to a text that cannot be kept",
}
_PLURALS = {
    LOST_TO_ANOTHER: "links or empty folders",
    RESERVED: "entries of .output",
    BESIDE_BYTECODE: "entries of __pycache__",
}
_GONE = "it is gone after this step; make it in the step that uses it"


@dataclass(frozen=True, slots=True)
class Signature:
    size: int
    modified: int
    changed: int
    inode: int


@dataclass(frozen=True, slots=True)
class KnownFile:
    """A file that lies here as it lies in the workspace: how it looks there, and here."""

    etag: str
    size: int
    signature: Signature
    digest: bytes
    mode: int


@dataclass(frozen=True, slots=True)
class Placed:
    """How a folder or a link was left here. `target` is a link's."""

    modified: int
    mode: int = 0
    target: str = ""


@dataclass(slots=True)
class NotKept:
    """What a command left and a workspace does not hold, by kind; of each the first names and how many there are."""

    kinds: dict[str, tuple[int, list[str]]] = field(default_factory=dict)

    def add(self, kind: str, path: str) -> None:
        count, named = self.kinds.setdefault(kind, (0, []))
        if count < NAMES_SHOWN:
            named.append(path)
        self.kinds[kind] = (count + 1, named)

    def lines(self) -> tuple[str, ...]:
        """The lines for people, one for each kind."""
        return tuple(self._line(kind, *found) for kind, found in sorted(self.kinds.items()))

    def _line(self, kind: str, count: int, named: list[str]) -> str:
        names = ", ".join(map(repr, named)) + (f" and {count - len(named):,} more" if count > len(named) else "")
        what = kind if count == 1 else _PLURALS.get(kind, f"{kind}s")
        return f"not kept with the run's files: {count:,} {what} ({names}); {_ADVICE.get(kind, _GONE)}"


def signature(status: os.stat_result) -> Signature:
    return Signature(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def digest(content: FileIO) -> bytes:
    # `hashlib.file_digest` clears a buffer of 256 KiB for each file.
    start = content.read(READ_AT_ONCE)
    found = hashlib.blake2b(start)
    if len(start) == READ_AT_ONCE:
        chunk = bytearray(LARGE)
        while count := content.readinto(chunk):
            found.update(memoryview(chunk)[:count])
    return found.digest()


def kind_of(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "symbolic link"
    if stat.S_ISFIFO(mode):
        return "pipe"
    return "socket" if stat.S_ISSOCK(mode) else "device"


def file_mode(mode: int) -> int:
    """The bits of a file's mode that are kept."""
    return mode & 0o777 | stat.S_IRUSR


def folder_mode(mode: int) -> int:
    return mode & 0o777 | stat.S_IRWXU


def is_folder_mode_kept(mode: int) -> bool:
    """The set-group bit is not the command's doing: a folder has it from the volume of a pod."""
    return mode & 0o7777 & ~stat.S_ISGID == folder_mode(mode)


def not_a_plain_file(path: str, kind: str) -> InvalidPath:
    """The error where the run would lose a file that it has."""
    leads = " that leads to nothing in the workspace" if kind == "symbolic link" else ""
    return InvalidPath(
        f"{path!r} is a {kind}{leads}, in the place of a file that would be lost: give it another name, delete it, or "
        "put a copy of its content in its place.",
        field="path",
    )


def link_target(name: str, folder: int) -> str | None:
    """The target of a link, as text; None when it cannot be kept."""
    target = os.readlink(name, dir_fd=folder)
    with suppress(UnicodeEncodeError):
        if target.isprintable() and len(target.encode()) <= MAX_PATH_BYTES:
            return target
    return None


def leads_inside(path: str, target: str) -> str | None:
    """The path in the workspace that a link's text names; None when it leads out."""
    reached = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    return None if posixpath.isabs(target) or reached == ".." or reached.startswith("../") else reached


def set_attributes(file: int, mode: int, modified: int) -> None:
    """Set mode and time of an open file or folder."""
    os.fchmod(file, mode)
    os.utime(file, ns=(modified, modified))


def copied(file: FileIO, name: str, folder: int, incoming: int) -> FileIO:
    """Put a copy in place of a file that has several names, and open that."""
    with file:
        status = os.fstat(file.fileno())
        new = secrets.token_hex(12)
        with FileIO(os.open(new, CREATE_FILE | os.O_EXCL, 0o600, dir_fd=incoming), "w") as copy:
            shutil.copyfileobj(file, copy, LARGE)
            set_attributes(copy.fileno(), stat.S_IMODE(status.st_mode), status.st_mtime_ns)
    os.replace(new, name, src_dir_fd=incoming, dst_dir_fd=folder)
    return FileIO(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder))


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a folder is to hold beside its files. `folders`: with what is noted of them, if anything is."""

    folders: Mapping[str, Attributes | None]
    links: Mapping[str, Attributes]


def wanted_beside(files: Iterable[str], folders: Mapping[str, Attributes], links: Mapping[str, Attributes]) -> Wanted:
    """A file wins over a link or a folder of its name, and over what lies below it; a folder over a link."""
    present = set(files)
    needed = {folder for path in present for folder in folders_above(path)}
    kept_folders = {path for path in folders if _is_free(path, present)}
    kept_links = {path for path in links if _is_free(path, present)}
    needed |= kept_folders
    needed |= {folder for path in (*kept_folders, *kept_links) for folder in folders_above(path)}
    return Wanted(
        {path: folders.get(path) for path in needed},
        {path: links[path] for path in kept_links if path not in needed},
    )


def _is_free(path: str, files: set[str]) -> bool:
    return path not in files and files.isdisjoint(folders_above(path))


def make_links(root: int, links: Mapping[str, Attributes]) -> Iterator[tuple[str, Placed]]:
    """Each link as it lies there; what has its name already is one that was kept."""
    for path, link in links.items():
        above, name = split(path)
        with open_folder(root, above, create=True) as folder:
            with suppress(FileExistsError):
                os.symlink(link.target or "", name, dir_fd=folder)
            os.utime(name, ns=(link.modified, link.modified), dir_fd=folder, follow_symlinks=False)
            yield path, Placed(os.lstat(name, dir_fd=folder).st_mtime_ns, target=link.target or "")


def settle_folders(
    root: int, folders: Mapping[str, Attributes | None], times: Mapping[str, int]
) -> Iterator[tuple[str, Placed]]:
    """Make the folders that are missing, then give all of them their modes and times: one of which nothing is noted is
    as old as the newest in it (`times`)."""
    for path in sorted(folders):
        with open_folder(root, path, create=True):
            pass
    for path, noted in folders.items():
        modified = noted.modified if noted is not None else times.get(path, 0)
        mode = FOLDER_MODE if noted is None or noted.mode is None else folder_mode(noted.mode)
        with open_folder(root, path) as folder:
            status = os.fstat(folder)
            if stat.S_IMODE(status.st_mode) != mode or status.st_mtime_ns != modified:
                set_attributes(folder, mode, modified)
                status = os.fstat(folder)
        yield path, Placed(status.st_mtime_ns, mode)


def newest_inside(attributes: Mapping[str, Attributes]) -> dict[str, int]:
    """For each folder, when the newest of these files in it or below it was changed."""
    times: dict[str, int] = {}
    for path, one in attributes.items():
        for folder in folders_above(path):
            times[folder] = max(times.get(folder, 0), one.modified)
    return times
