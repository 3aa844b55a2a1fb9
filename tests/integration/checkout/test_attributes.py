"""Times, modes, folders and links, over each kind of store: what another worker finds is what was left."""

import os
import stat
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from backplane.domain.steps import StepRecord, StepStatus
from backplane.errors import QuotaExceeded
from backplane.process.retrying import WaitRules
from backplane.store.tables import PathsJson
from backplane.workspace.attributes import (
    LATEST,
    AttributeRecord,
    Attributes,
    encoded,
    nanoseconds,
    stored_bytes,
    total_bytes,
)
from backplane.workspace.base import FileInfo, WorkspaceStore
from backplane.workspace.local import LocalWorkspaceStore
from tests.contracts.workspace.workspaces import s3_store
from tests.integration.checkout.counted import QUOTA, Counting, on_disk, pushed
from worker.files.checkout import Checkout
from worker.files.checkouts import Checkouts
from worker.files.versioned import EarlierSteps, VersionedWorkspace

LONG_AGO = 981_173_106_123_456_789


@pytest.fixture(params=["local", "s3"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[WorkspaceStore]:
    made: WorkspaceStore
    if request.param == "local":
        made = LocalWorkspaceStore(tmp_path / "workspaces")
    else:
        made = s3_store(request.getfixturevalue("s3_server").endpoint, request.getfixturevalue("bucket"))
    await made.prepare()
    yield made
    await made.close()


class Run:
    """A run that one worker after the other carries out. Each knows of the one before only what the journal has."""

    def __init__(self, store: WorkspaceStore, folder: Path) -> None:
        self._store = store
        self._folder = folder
        self.journal: list[StepRecord] = []
        self.claims = 0
        self.quota = QUOTA
        self.lines: list[str] = []
        self.take()

    def take(self) -> None:
        self.claims += 1
        stored = self._store.workspace("user-1", "run-1")
        self.counting = Counting(stored)
        self.workspace = VersionedWorkspace(
            self.counting,
            self._store.versions("user-1", "run-1"),
            EarlierSteps(list(self.journal), begun=self.claims > 1),
            max_bytes=10**6,
            quota=self.quota,
            log_line=lambda line: None,
            waits=WaitRules(lambda error, pause: None),
        )
        base = self._folder / f"checkout-{self.claims}"
        self.checkouts = Checkouts(self.workspace, self.quota, base, self.workspace.attributes, self.lines.append)

    async def pulled(self) -> Checkout:
        checkout = self.checkouts.take()
        await checkout.pull()
        return checkout

    async def ends(self, checkout: Checkout) -> None:
        """A step with what it has done."""
        await pushed(checkout)
        self.note()
        self.checkouts.give_back(checkout)

    def note(self) -> None:
        number = len(self.journal) + 1
        now = datetime.now(UTC)
        files, attributes = self.workspace.take_changes(), self.workspace.take_attributes()
        step = StepRecord(
            f"s{number}", number, "", "shell", StepStatus.COMPLETED, 1, now, now, {}, files, 0, attributes
        )
        self.journal.append(step)


@pytest.fixture
def run(store: WorkspaceStore, tmp_path: Path) -> Run:
    return Run(store, tmp_path)


def looks(folder: Path) -> dict[str, tuple[str, int, str]]:
    """Everything in the folder: mode, time, and where links lead."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        target = os.readlink(path) if path.is_symlink() else ""
        found[str(path.relative_to(folder))] = (stat.filemode(status.st_mode), status.st_mtime_ns, target)
    return found


def make_many(folder: Path) -> None:
    (folder / "empty/inner").mkdir(parents=True)
    (folder / "src").mkdir(mode=0o750)
    for name, mode in {"src/a": 0o644, "src/run": 0o755, "src/key": 0o600, "src/locked": 0o444}.items():
        (folder / name).write_bytes(b"x")
        (folder / name).chmod(mode)
        os.utime(folder / name, ns=(0, LONG_AGO))
    (folder / "link").symlink_to("src/a")
    (folder / "out").symlink_to("/usr/bin/env")
    os.utime(folder / "link", ns=(0, LONG_AGO), follow_symlinks=False)
    os.utime(folder / "src", ns=(0, LONG_AGO + 1))


async def test_another_worker_finds_all_as_it_was_left(run: Run) -> None:
    here = await run.pulled()
    make_many(here.folder)
    left = looks(here.folder)
    await run.ends(here)
    for _ in range(2):
        run.take()
        there = await run.pulled()
        assert looks(there.folder) == left
        assert not (changes := await there.changes())
        assert changes.attributes == {}


async def test_the_same_worker_and_one_beside_it_find_the_same(run: Run) -> None:
    first = await run.pulled()
    make_many(first.folder)
    await run.ends(first)
    again, beside = await run.pulled(), await run.pulled()
    assert again.folder == first.folder
    assert looks(again.folder) == looks(beside.folder)


async def test_what_was_only_touched_or_given_a_mode_is_not_sent_and_is_seen_beside(run: Run) -> None:
    here, beside = await run.pulled(), await run.pulled()
    (here.folder / "a").write_bytes(b"x")
    await run.ends(here)
    await beside.pull()
    run.counting.uploads.clear()
    run.counting.downloads.clear()
    here = await run.pulled()
    os.utime(here.folder / "a", ns=(0, LONG_AGO))
    (here.folder / "a").chmod(0o755)
    await run.ends(here)
    await beside.pull()
    assert looks(beside.folder) == looks(here.folder) == {"a": ("-rwxr-xr-x", LONG_AGO, "")}
    assert run.counting.uploads == run.counting.downloads == []
    run.take()
    assert looks((await run.pulled()).folder) == looks(here.folder)


async def test_a_step_that_failed_leaves_no_trace(run: Run) -> None:
    here = await run.pulled()
    make_many(here.folder)
    left = looks(here.folder)
    await run.ends(here)
    here = await run.pulled()
    os.utime(here.folder / "src/a", ns=(0, 5))
    (here.folder / "src/run").chmod(0o600)
    (here.folder / "src/key").write_bytes(b"changed")
    (here.folder / "empty/inner").rmdir()
    (here.folder / "new").mkdir()
    (here.folder / "link").unlink()
    (here.folder / "out").unlink()
    (here.folder / "out").symlink_to("elsewhere")
    await here.changes()
    await here.pull()
    assert looks(here.folder) == left


async def test_what_is_removed_is_gone_for_another_worker_too(run: Run) -> None:
    here = await run.pulled()
    make_many(here.folder)
    await run.ends(here)
    here = await run.pulled()
    (here.folder / "empty/inner").rmdir()
    (here.folder / "link").unlink()
    (here.folder / "src/a").unlink()
    (here.folder / "out").unlink()
    (here.folder / "out").write_bytes(b"a file now")
    (here.folder / "empty").rmdir()
    (here.folder / "empty").write_bytes(b"a file now")
    await run.ends(here)
    run.take()
    assert looks((await run.pulled()).folder) == looks(here.folder)


async def test_files_of_people_have_the_store_s_time_and_the_usual_modes(run: Run) -> None:
    await run.counting.put("in/a.txt", b"text")
    await run.counting.put("in/run.sh", b"#!/bin/sh\n")
    listed = {file.path: nanoseconds(file.modified_at) for file in await run.counting.list()}
    found = looks((await run.pulled()).folder)
    assert {path: one[0] for path, one in found.items()} == {
        "in": "drwxr-xr-x",
        "in/a.txt": "-rw-r--r--",
        "in/run.sh": "-rwxr-xr-x",
    }
    assert {path: found[path][1] for path in listed} == listed
    assert found["in"][1] == max(listed.values())


async def test_they_keep_it_when_other_steps_are_noted(run: Run) -> None:
    await run.counting.put("a.txt", b"text")
    here = await run.pulled()
    (here.folder / "made").mkdir()
    os.utime(here.folder / "made", ns=(0, 2**61))
    left = looks(here.folder)
    await run.ends(here)
    run.take()
    assert looks((await run.pulled()).folder) == left


async def test_what_is_put_there_from_outside_is_younger_than_what_the_run_made(run: Run) -> None:
    """The store's times may be of whole seconds."""
    here = await run.pulled()
    (here.folder / "in").write_bytes(b"1")
    (here.folder / "out").write_bytes(b"1")
    (here.folder / "in").chmod(0o755)
    await run.ends(here)
    await run.counting.put("in", b"2")
    await run.counting.put("new", b"2")
    found = looks((await run.pulled()).folder)
    assert min(found["in"][1], found["new"][1]) > found["out"][1]
    assert max(found["in"][1], found["new"][1]) <= time.time_ns()
    assert found["in"][0] == "-rwxr-xr-x"
    run.note()
    run.take()
    assert looks((await run.pulled()).folder) == found


async def test_what_a_tool_writes_is_as_old_as_that_and_keeps_its_mode(run: Run) -> None:
    here = await run.pulled()
    (here.folder / "run").write_bytes(b"1")
    (here.folder / "run").chmod(0o700)
    await run.ends(here)
    run.take()
    before = time.time_ns()
    await run.workspace.put("run", b"2")
    await run.workspace.put("new", b"2")
    after = time.time_ns()
    found = looks((await run.pulled()).folder)
    assert found["run"][0] == "-rwx------"
    assert all(before <= found[name][1] <= after for name in ("run", "new"))
    run.note()
    run.take()
    assert looks((await run.pulled()).folder) == found


async def test_a_workspace_of_an_older_release_has_the_store_s_times(run: Run) -> None:
    here = await run.pulled()
    make_many(here.folder)
    await run.ends(here)
    run.journal = [replace(record, attributes=None) for record in run.journal]
    run.take()
    found = looks((await run.pulled()).folder)
    assert found.keys() == {"src", "src/a", "src/run", "src/key", "src/locked"}
    listed = {file.path: nanoseconds(file.modified_at) for file in await run.counting.list()}
    assert {path: found[path][1] for path in listed} == listed


async def test_a_worker_of_an_older_release_beside_this_one_changes_what_it_changes(run: Run) -> None:
    here = await run.pulled()
    make_many(here.folder)
    await run.ends(here)
    changed = await run.counting.put("src/run", b"by the older one")
    await run.counting.delete("src/a")
    now = datetime.now(UTC)
    files = {"src/run": changed.etag, "src/a": None}
    run.journal.append(StepRecord("old", 2, "", "shell", StepStatus.COMPLETED, 1, now, now, {}, files))
    run.take()
    found = looks((await run.pulled()).folder)
    assert found.keys() == {"empty", "empty/inner", "src", "src/run", "src/key", "src/locked", "link", "out"}
    assert found["src/run"][0] == "-rwxr-xr-x"
    assert found["src/run"][1] > LONG_AGO + 1
    assert found["src/key"] == ("-rw-------", LONG_AGO, "")


async def test_bytecode_is_neither_kept_nor_brought(run: Run) -> None:
    await run.counting.put("pkg/__pycache__/old.pyc", b"stale")
    await run.counting.put("pkg/a.py", b"x = 1")
    here = await run.pulled()
    assert on_disk(here.folder) == {"pkg/a.py": b"x = 1"}
    (here.folder / "pkg/__pycache__").mkdir()
    (here.folder / "pkg/__pycache__/new.pyc").write_bytes(b"new")
    (here.folder / "pkg/__pycache__/a link").symlink_to("/")
    assert await pushed(here) == ()
    await here.pull()
    assert on_disk(here.folder) == {"pkg/a.py": b"x = 1"}


async def test_bytecode_goes_without_a_word_and_what_else_lies_beside_it_is_named(run: Run) -> None:
    here = await run.pulled()
    cache = here.folder / "pkg/__pycache__"
    cache.mkdir(parents=True)
    for name in ("a.cpython-311.pyc", "a.cpython-311.opt-1.pyc", "a.cpython-311.pyc.139872"):
        (cache / name).write_bytes(b"code")
    assert (await here.changes()).not_kept == ()
    (cache / "notes.txt").write_text("mine")
    (cache / "folder").mkdir()
    cache.chmod(0)
    [line] = (await here.changes()).not_kept
    assert ("2 entries of __pycache__" in line, "'pkg/__pycache__/notes.txt'" in line) == (True, True), line
    assert "'pkg/__pycache__/folder'" in line
    assert "in another folder" in line


@pytest.mark.parametrize("is_folder", [True, False])
async def test_what_a_command_leaves_under_the_name_of_steps_logs_is_named(run: Run, is_folder: bool) -> None:
    await run.counting.put(".output/before.log", b"of a step before")
    here = await run.pulled()
    assert (await here.changes()).not_kept == ()
    own = here.folder / ".output"
    if is_folder:
        (own / "below").mkdir(parents=True)
        (own / "mine.log").write_bytes(b"of a command")
    else:
        own.write_bytes(b"of a command")
    [line] = (await here.changes()).not_kept
    named = "'.output/below', '.output/mine.log'" if is_folder else "('.output')"
    assert (named in line, "another name" in line) == (True, True), line
    assert await pushed(here) == ()
    await here.pull()
    assert not own.exists()


async def test_a_link_is_not_followed_when_its_name_becomes_a_folder(run: Run, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    here = await run.pulled()
    (here.folder / "way").symlink_to(outside)
    await run.ends(here)
    await run.counting.put("way/file", b"x")
    for _ in range(2):
        assert on_disk((await run.pulled()).folder) == {"way/file": b"x"}
        run.take()
    assert list(outside.iterdir()) == []


async def test_links_and_folders_count_for_the_quota(run: Run) -> None:
    here = await run.pulled()
    for number in range(QUOTA.max_files):
        (here.folder / f"{number}").symlink_to("x")
    assert len((await here.changes()).attributes) == QUOTA.max_files
    (here.folder / "one-more").symlink_to("x")
    with pytest.raises(QuotaExceeded, match="WORKSPACE_MAX_FILES"):
        await here.changes()


def stored(attributes: dict[str, Any] | None) -> int:
    """The bytes that the journal has of them."""
    text = PathsJson().process_bind_param(attributes or {}, cast(Any, None))
    assert text is not None
    return len(text.encode())


def with_links(folder: Path, count: int) -> None:
    for number in range(count):
        (folder / f"日本語-{number}").symlink_to("語" * 250)


def leave(folder: Path, kind: str) -> None:
    match kind:
        case "link":
            (folder / "x").symlink_to("y")
        case "file":
            (folder / "x").write_bytes(b"x")
        case _:
            (folder / "x").mkdir()
            if kind == "file below":
                (folder / "x/f").write_bytes(b"x")


@pytest.mark.parametrize(
    ("first", "second", "lost", "left"),
    [
        ("link", "file", "1 link or empty folder ('x')", {"x": b"x"}),
        ("file", "link", "1 link or empty folder ('x')", {"x": b"x"}),
        ("folder", "file", "1 link or empty folder ('x/')", {"x": b"x"}),
        ("file", "folder", "1 link or empty folder ('x/')", {"x": b"x"}),
        ("link", "file below", "1 link or empty folder ('x')", {"x/f": b"x"}),
        ("file below", "link", "1 link or empty folder ('x')", {"x/f": b"x"}),
        ("folder", "link", "1 link or empty folder ('x')", None),
        ("link", "folder", "1 link or empty folder ('x')", None),
        ("link", "link", None, None),
        ("file", "file", None, {"x": b"x"}),
        ("folder", "file below", None, {"x/f": b"x"}),
    ],
)
async def test_a_link_or_folder_that_loses_against_a_step_at_the_same_time_is_named_once(
    run: Run, first: str, second: str, lost: str | None, left: dict[str, bytes] | None
) -> None:
    here, there = await run.pulled(), await run.pulled()
    leave(here.folder, first)
    leave(there.folder, second)
    await run.ends(here)
    await run.ends(there)
    assert len(run.lines) == (lost is not None), run.lines
    if lost is not None:
        assert lost in run.lines[0]
    for _ in range(2):
        again = await run.pulled()
        if left is not None:
            assert on_disk(again.folder) == left
        assert not (await again.changes()).attributes
        await run.ends(again)
        run.take()
    assert len(run.lines) == (lost is not None)


async def test_what_a_step_changed_may_take_as_many_bytes_as_its_quota_and_no_more(run: Run) -> None:
    here = await run.pulled()
    with_links(here.folder, 20)
    (here.folder / "file").write_bytes(b"x")
    (here.folder / "folder").mkdir()
    needed = total_bytes((await here.changes()).attributes)
    for most in (needed, needed - 1):
        run.quota = replace(QUOTA, max_step_attributes=most)
        run.take()
        here = await run.pulled()
        with_links(here.folder, 20)
        (here.folder / "file").write_bytes(b"x")
        (here.folder / "folder").mkdir()
        if most == needed:
            assert len((await here.changes()).attributes) == 22
        else:
            with pytest.raises(QuotaExceeded, match=r"this step .*archive"):
                await here.changes()


async def test_steps_of_a_run_may_take_together_as_many_bytes_as_its_quota_and_no_more(run: Run) -> None:
    here = await run.pulled()
    with_links(here.folder, 20)
    await run.ends(here)
    first = run.workspace.attributes.stored_bytes
    assert first == pytest.approx(stored(run.journal[0].attributes), abs=2)
    for most, is_allowed in ((2 * first, True), (2 * first - 1, False)):
        run.quota = replace(QUOTA, max_run_attributes=most)
        run.take()
        here = await run.pulled()
        for link in here.folder.iterdir():
            os.utime(link, ns=(0, LONG_AGO * 2), follow_symlinks=False)
        if is_allowed:
            assert len((await here.changes()).attributes) == 20
        else:
            with pytest.raises(QuotaExceeded, match=r"all steps .*new run"):
                await here.changes()


async def test_files_that_a_step_deletes_count_as_what_it_changed(run: Run) -> None:
    here = await run.pulled()
    (here.folder / "file").write_bytes(b"x")
    await run.ends(here)
    run.quota = replace(QUOTA, max_step_attributes=1)
    run.take()
    here = await run.pulled()
    (here.folder / "file").unlink()
    with pytest.raises(QuotaExceeded, match="what this step changed take more"):
        await here.changes()


# --- decisions of their own ---


@pytest.mark.parametrize(
    ("path", "one"),
    [
        ("file", Attributes(LONG_AGO, None, "e" * 32)),
        ('日本語 "ä"/program', Attributes(0, 0o755, '"e-2"')),
        ("folder/", Attributes(LATEST, 0o755)),
        ("link", Attributes(LONG_AGO, target='a\\b "語"')),
        ("gone", None),
        ("gone/", None),
    ],
)
def test_an_entry_is_measured_as_it_is_stored(path: str, one: Attributes | None) -> None:
    assert stored_bytes(path, one) + len("{}") - len(",") == stored(encoded({path: one}))


def file(path: str, etag: str, second: float) -> FileInfo:
    return FileInfo(path, 1, datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=second), etag)


def test_a_time_in_the_future_makes_nothing_else_younger_than_now() -> None:
    record = AttributeRecord()
    record.of_files([file("a", "1", 0)])
    record.change({"future/": Attributes(2**61)})
    found = record.of_files([file("a", "2", 0)])["a"].modified
    assert found <= time.time_ns()


def test_what_the_store_says_later_than_all_is_believed() -> None:
    record = AttributeRecord()
    record.of_files([file("a", "1", 0)])
    assert record.of_files([file("a", "2", 9)])["a"].modified == nanoseconds(file("a", "2", 9).modified_at)
