"""Patches over a real workspace."""

from collections.abc import AsyncIterable
from dataclasses import replace
from typing import Any

import pytest

from backplane.errors import Conflict, InvalidInput, NotFound, QuotaExceeded, TooLarge, Unavailable
from backplane.workspace.attributes import AttributeRecord
from backplane.workspace.base import FileInfo, Workspace
from tests.tool_bench import MIB, Bench

SEVERAL = """\
diff --git a/src/a.py b/src/a.py
--- a/src/a.py
+++ b/src/a.py
@@ -1,3 +1,3 @@
 one
-two
+TWO
 three
diff --git a/new.txt b/new.txt
new file mode 100644
--- /dev/null
+++ b/new.txt
@@ -0,0 +1,2 @@
+first
+second
diff --git a/gone.txt b/gone.txt
deleted file mode 100644
--- a/gone.txt
+++ /dev/null
@@ -1 +0,0 @@
-bye
diff --git a/old.md b/docs/new.md
similarity index 60%
rename from old.md
rename to docs/new.md
--- a/old.md
+++ b/docs/new.md
@@ -1,2 +1,2 @@
-# Old
+# New
 text
"""
BEFORE = {"src/a.py": b"one\ntwo\nthree\n", "gone.txt": b"bye\n", "old.md": b"# Old\ntext\n", "other": b"x"}
AFTER = {
    "src/a.py": b"one\nTWO\nthree\n",
    "new.txt": b"first\nsecond\n",
    "docs/new.md": b"# New\ntext\n",
    "other": b"x",
}


async def fill(bench: Bench, files: dict[str, bytes]) -> None:
    for path, content in files.items():
        await bench.context.workspace.put(path, content)


class BreaksOff(Workspace):
    """A store that is lost after so many changes."""

    def __init__(self, inner: Workspace, changes: int) -> None:
        self._inner = inner
        self._left = changes

    def _count(self) -> None:
        if not self._left:
            raise Unavailable("the store is away", part="workspace")
        self._left -= 1

    async def put(self, path: str, content: bytes) -> FileInfo:
        self._count()
        return await self._inner.put(path, content)

    async def delete(self, path: str) -> None:
        self._count()
        await self._inner.delete(path)

    async def list(self, prefix: str = "") -> list[FileInfo]:
        return await self._inner.list(prefix)

    async def stat(self, path: str) -> FileInfo:
        return await self._inner.stat(path)

    async def get(self, path: str) -> tuple[FileInfo, bytes]:
        return await self._inner.get(path)

    def read(self, path: str, *, start: int = 0, end: int | None = None) -> Any:
        return self._inner.read(path, start=start, end=end)

    async def write(self, path: str, chunks: AsyncIterable[bytes]) -> FileInfo:
        raise AssertionError("not used")

    async def download(self, path: str, target: Any) -> FileInfo:
        raise AssertionError("not used")

    async def upload(self, path: str, source: Any) -> FileInfo:
        raise AssertionError("not used")


async def test_files_are_changed_made_deleted_and_renamed(bench: Bench) -> None:
    await fill(bench, BEFORE)
    result = await bench.step("apply_patch", patch=SEVERAL)
    assert await bench.files() == AFTER
    assert result.files_changed == ("docs/new.md", "gone.txt", "new.txt", "old.md", "src/a.py")
    assert bench.changing == ["now"]


async def test_a_patch_that_is_applied_already_is_a_success_and_changes_nothing(bench: Bench) -> None:
    await fill(bench, AFTER)
    result = await bench.step("apply_patch", patch=SEVERAL)
    assert (result.exit_code, result.files_changed, bench.changing) == (0, (), [])
    assert b"already" in bench.said
    assert await bench.files() == AFTER


@pytest.mark.parametrize("changes", range(6))
async def test_wherever_a_worker_is_lost_the_next_one_brings_it_to_the_end(bench: Bench, changes: int) -> None:
    await fill(bench, BEFORE)
    whole = bench.context
    bench.context = replace(whole, workspace=BreaksOff(whole.workspace, changes))
    if changes < 5:
        with pytest.raises(Unavailable):
            await bench.step("apply_patch", patch=SEVERAL)
    bench.context = whole
    assert (await bench.step("apply_patch", patch=SEVERAL)).exit_code == 0
    assert await bench.files() == AFTER


async def test_one_hunk_that_does_not_fit_leaves_all_files_as_they_were(bench: Bench) -> None:
    files = BEFORE | {"old.md": b"# Other\ntext\n"}
    await fill(bench, files)
    with pytest.raises(Conflict):
        await bench.step("apply_patch", patch=SEVERAL)
    assert await bench.files() == files
    assert bench.changing == []


@pytest.mark.parametrize(
    ("path", "content", "error"),
    [
        ("new.txt", b"another\n", Conflict),
        ("gone.txt", b"changed\n", Conflict),
        ("docs/new.md", b"another\n", Conflict),
        ("src/a.py", None, NotFound),
        ("old.md", None, NotFound),
    ],
)
async def test_a_file_that_is_not_as_the_patch_says_is_a_conflict(
    bench: Bench, path: str, content: bytes | None, error: type[Exception]
) -> None:
    files = {name: kept for name, kept in {**BEFORE, path: content}.items() if kept is not None}
    await fill(bench, files)
    with pytest.raises(error):
        await bench.step("apply_patch", patch=SEVERAL)
    assert await bench.files() == files


MODES = {
    "a new program": (
        "diff --git a/n b/n\nnew file mode 100755\n--- /dev/null\n+++ b/n\n@@ -0,0 +1 @@\n+x\n",
        "n",
        0o755,
    ),
    "a mode alone": ("diff --git a/f b/f\nold mode 100644\nnew mode 100755\n", "f", 0o755),
    "a mode taken away": ("diff --git a/f b/f\nold mode 100755\nnew mode 100644\n", "f", 0o644),
    "a mode beside a change": (
        "diff --git a/f b/f\nold mode 100644\nnew mode 100755\n--- a/f\n+++ b/f\n@@ -1 +1 @@\n-a\n+b\n",
        "f",
        0o755,
    ),
    "no mode": ("--- a/f\n+++ b/f\n@@ -1 +1 @@\n-a\n+b\n", "f", None),
}


@pytest.mark.parametrize(("patch", "path", "mode"), MODES.values(), ids=MODES)
async def test_the_executable_bit_of_a_patch_is_set(bench: Bench, patch: str, path: str, mode: int | None) -> None:
    await fill(bench, {"f": b"a\n"})
    record = AttributeRecord()
    bench.context = replace(bench.context, attributes=record)
    await bench.step("apply_patch", patch=patch)
    known = record.get(path)
    assert (known.mode if known else None) == mode
    if mode is not None:
        bench.said.clear()
        await bench.step("apply_patch", patch=patch)
        assert b"already" in bench.said


async def test_a_hunk_that_fits_at_another_line_is_reported_with_it(bench: Bench) -> None:
    await fill(bench, {"f": b"new\nnew\na\nb\n"})
    await bench.step("apply_patch", patch="--- a/f\n+++ b/f\n@@ -1,2 +1,2 @@\n a\n-b\n+c\n")
    assert b"f: hunk 1 fitted at line 3, not 1\n" in bench.said


async def test_a_patch_over_the_quota_changes_nothing(bench: Bench) -> None:
    await fill(bench, BEFORE)
    bench.context = replace(bench.context, quota=replace(bench.context.quota, max_bytes=38))
    with pytest.raises(QuotaExceeded):
        await bench.step("apply_patch", patch=SEVERAL)
    assert await bench.files() == BEFORE


async def test_a_new_file_below_another_is_a_conflict(bench: Bench) -> None:
    await fill(bench, {"a": b"x\n"})
    with pytest.raises(Conflict, match="folder"):
        await bench.step("apply_patch", patch="--- /dev/null\n+++ b/a/b\n@@ -0,0 +1 @@\n+x\n")


async def test_a_file_that_is_too_large_is_not_loaded(bench: Bench) -> None:
    await fill(bench, {"f": b"x" * (4 * MIB + 1)})
    with pytest.raises(TooLarge):
        await bench.step("apply_patch", patch="--- a/f\n+++ b/f\n@@ -1 +1 @@\n-x\n+y\n")


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a//b", "a/../b", "x\x01", "c:\\x"])
async def test_a_path_outside_is_refused_before_anything_is_changed(bench: Bench, path: str) -> None:
    with pytest.raises(InvalidInput):
        await bench.step("apply_patch", patch=f"--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+x\n")
    assert bench.changing == []
