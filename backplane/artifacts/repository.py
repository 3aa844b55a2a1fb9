"""One agent's Git repository: what the adapter does under its lock, in blocking calls.

Bare, one branch, no work tree: each tree is built in memory, so nothing that an agent names becomes a file on this
machine, and an entry is always a plain file, never a link. A write is whole when its branch points to it; a process
that ends before leaves objects that nothing refers to, and at most the lock file of the branch, which nobody else can
own because whoever writes has the adapter's lock.
"""

import os
import re
import shutil
import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pygit2
from pygit2.enums import FileMode

from backplane.artifacts.base import Artifact, Author, HistoryEntry
from backplane.errors import Conflict, InvalidPath, NotFound, TooLarge
from backplane.workspace.paths import check_path, folders_above

BRANCH = "refs/heads/main"
COMMIT = re.compile(r"[0-9a-f]{7,40}")
LOOSE_OBJECTS_MAX = 1_000
"""More are packed into one file at the next write: each takes a block of the disk, and measuring takes a call each."""

_TRAILER = re.compile(r"^(Run|Step|Administrator): (.*)$", re.MULTILINE)


class Repository:
    """Opens it; with `create` makes one that is not there. Without, raises NotFound."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        if not path.exists():
            if not create:
                raise NotFound("this agent has no artifacts")
            _create(path)
        self._path = path
        self._git = pygit2.Repository(str(path))

    # --- the present ---

    def files(self) -> list[Artifact]:
        head = self._head()
        return _artifacts(self._entries(head.tree)) if head else []

    def read(self, path: str) -> bytes:
        head = self._head()
        return self._read(head.tree if head else None, path)

    def write(self, path: str, data: bytes, author: Author, *, agent: str, max_bytes: int, history_max: int) -> bool:
        check_artifact_path(path)
        head = self._head()
        others = dict(self._entries(head.tree)) if head else {}
        before = others.pop(path, None)
        if before and before[0] == pygit2.hash(data):
            return False
        _ensure_possible(path, others)
        used = sum(size for _, size in others.values())
        if used + len(data) > max_bytes:
            raise TooLarge(
                f"The agent's artifacts would hold {used + len(data)} bytes; {max_bytes} are possible "
                "(ARTIFACTS_MAX_BYTES): delete some first."
            )
        self._ensure_history(len(data), history_max)
        index = pygit2.Index()
        if head:
            index.read_tree(head.tree)
        index.add(pygit2.IndexEntry(path, self._git.create_blob(data), FileMode.BLOB))
        self._commit(index.write_tree(self._git), f"write {path}", author, agent)
        return True

    def delete(self, path: str, author: Author, *, agent: str) -> bool:
        check_artifact_path(path)
        head = self._head()
        if head is None or path not in dict(self._entries(head.tree)):
            return False
        index = pygit2.Index()
        index.read_tree(head.tree)
        index.remove(path)
        self._commit(index.write_tree(self._git), f"delete {path}", author, agent)
        return True

    # --- the history ---

    def log(self, before: str | None, limit: int) -> list[HistoryEntry]:
        commit = self._head()
        if before is not None:
            commit = _parent(self._find(before))
        changes: list[HistoryEntry] = []
        while commit is not None and len(changes) < limit:
            changes.append(_change(commit))
            commit = _parent(commit)
        return changes

    def files_at(self, commit: str) -> list[Artifact]:
        return _artifacts(self._entries(self._find(commit).tree))

    def read_at(self, commit: str, path: str) -> bytes:
        return self._read(self._find(commit).tree, path)

    def roll_back(self, commit: str, author: Author, *, agent: str) -> str | None:
        head, target = self._head(), self._find(commit)
        if head is not None and head.tree.id == target.tree.id:
            return None
        return self._commit(target.tree.id, f"roll back to {target.id}", author, agent)

    # --- below ---

    def _head(self) -> pygit2.Commit | None:
        try:
            return self._git.references[BRANCH].peel(pygit2.Commit)
        except KeyError:
            return None

    def _find(self, name: str) -> pygit2.Commit:
        """A commit of the branch's own history, by its id or the beginning of it: no name is looked up."""
        head = self._head()
        try:
            found = self._git[name] if head and COMMIT.fullmatch(name) else None
        except (KeyError, ValueError):  # unknown, or the beginning of several
            found = None
        if head and isinstance(found, pygit2.Commit):
            is_ours = found.id == head.id or self._git.descendant_of(head.id, found.id)
            if is_ours:
                return found
        raise NotFound("the agent's history has no such commit")

    def _entries(self, tree: pygit2.Tree, folder: str = "") -> Iterator[tuple[str, tuple[pygit2.Oid, int]]]:
        for entry in tree:
            path = f"{folder}{entry.name}"
            if isinstance(entry, pygit2.Tree):
                yield from self._entries(entry, f"{path}/")
            else:
                yield path, (entry.id, self._git.odb.read_header(entry.id)[1])

    def _read(self, tree: pygit2.Tree | None, path: str) -> bytes:
        check_path(path)
        try:
            entry = tree[path] if tree else None
        except KeyError:
            entry = None
        if not isinstance(entry, pygit2.Blob):
            raise NotFound(f"there is no artifact {path!r}")
        return entry.data

    def _commit(self, tree: pygit2.Oid, summary: str, author: Author, agent: str) -> str:
        for name in (BRANCH, "packed-refs"):
            (self._path / f"{name}.lock").unlink(missing_ok=True)
        head = self._head()
        signature = pygit2.Signature(author.administrator or agent, "artifacts@localhost")
        parents = [head.id] if head else []
        # Refused by Git itself where the branch is not at `parents` any more.
        return str(self._git.create_commit(BRANCH, signature, signature, _message(summary, author), tree, parents))

    def _ensure_history(self, more: int, history_max: int) -> None:
        loose, size = _on_disk(self._path / "objects")
        if loose > LOOSE_OBJECTS_MAX or size + more > history_max:
            self._pack()
            _, size = _on_disk(self._path / "objects")
        if size + more > history_max:
            raise TooLarge(
                f"The agent's artifacts with their history would take over {history_max} bytes "
                "(ARTIFACTS_HISTORY_MAX_BYTES). What was deleted still counts; an administrator can raise the limit, "
                "or remove the agent's repository."
            )

    def _pack(self) -> None:
        """One file of all that the branch's history refers to, instead of many with all that was ever begun."""
        objects, packing = self._path / "objects", self._path / "packing"
        shutil.rmtree(packing, ignore_errors=True)
        packing.mkdir()
        replaced = [path for path in objects.glob("*/*") if path.parent.name != "info"]
        replaced += objects.glob("tmp_object_*")  # of a writer that was killed
        if (commit := self._head()) is not None:
            builder = pygit2.PackBuilder(self._git)
            builder.set_threads(1)
            while commit is not None:
                builder.add_recur(commit.id)
                commit = _parent(commit)
            builder.write(str(packing))
        packed = sorted(packing.iterdir(), reverse=True)  # the index last: it makes the pack known
        for path in packed:
            path.replace(objects / "pack" / path.name)
        names = {path.name for path in packed}
        for path in replaced:
            if path.name not in names:
                path.unlink(missing_ok=True)
        self._git = pygit2.Repository(str(self._path))


def check_artifact_path(path: str) -> str:
    """What a workspace can hold and Git too, also on the machine of an administrator who clones the repository."""
    check_path(path)
    for name in path.split("/"):
        plain = "".join(
            letter for letter in unicodedata.normalize("NFKC", name) if unicodedata.category(letter) != "Cf"
        )
        if plain.casefold().rstrip(". ") in (".git", "git~1") or plain.casefold().startswith(".git:"):
            raise InvalidPath(f"The path {path!a} has a name that Git keeps for itself: choose another.", field="path")
    return path


def _create(path: Path) -> None:
    unfinished = path.with_suffix(".new")
    shutil.rmtree(unfinished, ignore_errors=True)
    repository = pygit2.init_repository(str(unfinished), bare=True, initial_head="main")
    # On disk before the branch points to it: a machine that loses power keeps the old state or has the new one.
    repository.config["core.fsyncObjectFiles"] = True
    os.rename(unfinished, path)


def _ensure_possible(path: str, others: dict[str, tuple[pygit2.Oid, int]]) -> None:
    for folder in folders_above(path):
        if folder in others:
            raise Conflict(f"{folder!r} is an artifact, so nothing can be written below it: choose another name.")
    if any(other.startswith(f"{path}/") for other in others):
        raise Conflict(f"{path!r} is a folder with artifacts in it: choose another name.")


def _artifacts(entries: Iterator[tuple[str, tuple[pygit2.Oid, int]]]) -> list[Artifact]:
    return sorted((Artifact(path, size) for path, (_, size) in entries), key=lambda artifact: artifact.path)


def _parent(commit: pygit2.Commit) -> pygit2.Commit | None:
    return commit.parents[0] if commit.parent_ids else None


def _message(summary: str, author: Author) -> str:
    trailers = {"Run": author.run_id, "Step": author.step_id, "Administrator": author.administrator}
    return "\n".join([summary, "", *(f"{name}: {value}" for name, value in trailers.items() if value)]) + "\n"


def _change(commit: pygit2.Commit) -> HistoryEntry:
    summary, _, rest = commit.message.partition("\n")
    trailers = dict(_TRAILER.findall(rest))
    author = Author(trailers.get("Run", ""), trailers.get("Step", ""), trailers.get("Administrator", ""))
    return HistoryEntry(str(commit.id), datetime.fromtimestamp(commit.commit_time, UTC), summary, author)


def _on_disk(folder: Path) -> tuple[int, int]:
    """Loose objects, and bytes of all files."""
    count, size = 0, 0
    for below, _, names in os.walk(folder):
        size += sum(os.lstat(os.path.join(below, name)).st_size for name in names)
        count += len(names) if len(os.path.basename(below)) == 2 else 0
    return count, size
