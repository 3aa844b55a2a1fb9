"""What a command did to a checkout: one look at everything in its folder.

A file is unchanged when its status is the one that was recorded, or its content is. What a workspace cannot hold is
left out and named. What stands where a file was is refused, though: the run would lose that file.
"""

import os
import re
import stat
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import replace
from io import FileIO

from backplane.workspace.attributes import BYTECODE_FOLDER, AttributeRecord, Attributes, stored_bytes
from backplane.workspace.base import FileInfo
from backplane.workspace.files import make_accessible, open_folder, open_regular
from backplane.workspace.paths import check_path
from backplane.workspace.quota import Quota, check_attributes, check_totals
from worker.files.paths import OUTPUT_FOLDER
from worker.files.tree import (
    BESIDE_BYTECODE,
    RESERVED,
    KnownFile,
    NotKept,
    Placed,
    digest,
    file_mode,
    folder_mode,
    is_folder_mode_kept,
    kind_of,
    leads_inside,
    link_target,
    not_a_plain_file,
    signature,
)
from worker.sandbox.kubernetes.pod.machine import has_extended_attributes

_BYTECODE = re.compile(r"\.pyc(\.[0-9]+)?\Z")
"""Matches also the name under which Python writes a file of bytecode."""


class Scan:
    """`known`, `folders` and `links` are what was there before; how a known file looks is kept up to date in `known`.
    After `run` the rest says what is different. Raises InvalidPath and QuotaExceeded, as `Checkout.changes` does."""

    def __init__(
        self,
        quota: Quota,
        known: MutableMapping[str, KnownFile],
        folders: Mapping[str, Placed],
        links: Mapping[str, Placed],
        left_there: Sequence[FileInfo],
        record: AttributeRecord,
    ) -> None:
        self._record = record
        self._noted_bytes: int | None = None
        self._quota = quota
        self._known = known
        self._folders = folders
        self._links = links
        self._files = len(left_there)
        self._bytes = sum(file.size for file in left_there)
        self._found: set[str] = set()
        self._found_folders: set[str] = set()
        self._found_links: set[str] = set()
        self._instead_of_files: dict[str, str] = {}
        self.written: list[str] = []
        self.written_bytes = 0
        self.attributes: dict[str, Attributes | None] = {}
        self.not_kept = NotKept()

    @property
    def deleted(self) -> list[str]:
        return sorted(self._known.keys() - self._found)

    def run(self, root: int) -> None:
        stack = [""]
        while stack:
            above = stack.pop()
            with open_folder(root, above) as folder, os.scandir(folder) as entries:
                for entry in entries:
                    path = f"{above}/{entry.name}" if above else entry.name
                    status = os.lstat(entry.name, dir_fd=folder)
                    is_folder = stat.S_ISDIR(status.st_mode)
                    if path == OUTPUT_FOLDER and not is_folder:
                        self.not_kept.add(RESERVED, path)
                        continue
                    if is_folder and (path == OUTPUT_FOLDER or entry.name == BYTECODE_FOLDER):
                        make_accessible(entry.name, folder, status.st_mode)
                        self._never_kept(path, entry.name, folder)
                        continue
                    check_path(path, max_depth=self._quota.max_depth)
                    if is_folder:
                        make_accessible(entry.name, folder, status.st_mode)
                        self._folder(path, status)
                        stack.append(path)
                    elif stat.S_ISREG(status.st_mode):
                        self._file(path, entry.name, folder, status)
                    else:
                        self._other(path, entry.name, folder, status)
                    # 100,001 empty folders must not cost more than as many files.
                    check_totals(self._quota, files=max(self._files, len(self._found_folders)), size=self._bytes)
        self._check_links_instead_of_files()
        self._gone()

    def _never_kept(self, path: str, name: str, above: int) -> None:
        """Names what is in a folder that stays behind, but for bytecode: Python makes that again, and a line on it
        would stand in each step that imports something."""
        with open_folder(above, name) as folder, os.scandir(folder) as entries:
            for entry in entries:
                if path == OUTPUT_FOLDER:
                    self.not_kept.add(RESERVED, f"{path}/{entry.name}")
                elif not _BYTECODE.search(entry.name):
                    self.not_kept.add(BESIDE_BYTECODE, f"{path}/{entry.name}")

    def _folder(self, path: str, status: os.stat_result) -> None:
        self._found_folders.add(path)
        mode = folder_mode(status.st_mode)
        if not is_folder_mode_kept(status.st_mode):
            self.not_kept.add("mode", path)
        if self._folders.get(path) != Placed(status.st_mtime_ns, mode):
            self._note(f"{path}/", Attributes(status.st_mtime_ns, mode))

    def _file(self, path: str, name: str, folder: int, status: os.stat_result) -> None:
        self._files += 1
        self._bytes += status.st_size
        self._found.add(path)
        known = self._known.get(path)
        if known is not None and known.signature == signature(status):
            return
        mode = file_mode(status.st_mode)
        if mode != stat.S_IMODE(status.st_mode):
            self.not_kept.add("mode", path)
        if status.st_nlink > 1:
            self.not_kept.add("hard link", path)
        if has_extended_attributes(f"/proc/self/fd/{folder}/{name}"):
            self.not_kept.add("extended attribute", path)
        before = known and (known.signature.modified, known.mode)
        if known is None or not self._has_the_same_content(path, known, name, folder, status):
            self.written.append(path)
            self.written_bytes += status.st_size
            self._note(path, Attributes(status.st_mtime_ns, mode))
        elif before != (status.st_mtime_ns, mode):
            self._note(path, Attributes(status.st_mtime_ns, mode, known.etag))

    def _has_the_same_content(
        self, path: str, known: KnownFile, name: str, folder: int, status: os.stat_result
    ) -> bool:
        if known.size != status.st_size:
            return False
        with FileIO(open_regular(name, folder)) as content:
            now = os.fstat(content.fileno())
            if digest(content) != known.digest:
                return False
        self._known[path] = replace(known, signature=signature(now))
        return True

    def _other(self, path: str, name: str, folder: int, status: os.stat_result) -> None:
        kind = kind_of(status.st_mode)
        self._files += 1
        target = link_target(name, folder) if stat.S_ISLNK(status.st_mode) else None
        if path in self._known:
            if target is None:
                raise not_a_plain_file(path, kind)
            self._instead_of_files[path] = target
        if target is None:
            self.not_kept.add(kind, path)
            return
        self._found_links.add(path)
        if self._links.get(path) != Placed(status.st_mtime_ns, target=target):
            self._note(path, Attributes(status.st_mtime_ns, target=target))

    def _check_links_instead_of_files(self) -> None:
        """Check the links that stand where files were. A link that leads to something else in the workspace keeps the
        file's content; any other would lose a file."""
        for path, target in self._instead_of_files.items():
            reached = leads_inside(path, target)
            if reached is None or reached == path or reached not in self._found | self._found_folders:
                raise not_a_plain_file(path, "symbolic link")

    def _gone(self) -> None:
        for path in self._folders.keys() - self._found_folders:
            self._note(f"{path}/", None)
        for path in self._links.keys() - self._found_links:
            if path not in self.attributes:
                self._note(path, None)
        for path in self.deleted:
            self._count(path, None)

    def _note(self, path: str, one: Attributes | None) -> None:
        self._count(path, one)
        self.attributes[path] = one

    def _count(self, path: str, one: Attributes | None) -> None:
        """Count an entry. The limits are checked at each one, so that a step with too many files needs no more memory
        than is allowed."""
        if self._noted_bytes is None:
            self._noted_bytes = self._record.waiting_bytes()
        self._noted_bytes += stored_bytes(path, one)
        check_attributes(self._quota, step=self._noted_bytes, run=self._record.stored_bytes + self._noted_bytes)
