"""Unified diffs fit exactly, are recognised as applied already, or are refused."""

import difflib
import random

import pytest

from backplane.errors import Conflict, InvalidInput
from worker.tools.patching import apply_hunks
from worker.tools.unified_diff import parse_patch

BEFORE = b"".join(b"line %d\n" % number for number in range(1, 41))


def patch_of(before: bytes, after: bytes, path: str = "f", context: int = 3) -> str:
    old, new = (text.decode().splitlines(keepends=True) for text in (before, after))
    made = difflib.unified_diff(old, new, f"a/{path}", f"b/{path}", n=context)
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in made)


def patched(patch: str, content: bytes) -> bytes | None:
    [file] = parse_patch(patch)
    return apply_hunks(file.hunks, content, "f")


def test_a_hunk_is_applied_at_its_line() -> None:
    after = BEFORE.replace(b"line 7\n", b"seven\n").replace(b"line 30\n", b"")
    assert patched(patch_of(BEFORE, after), BEFORE) == after


def test_what_is_applied_already_is_distinguished_from_what_is_not() -> None:
    after = BEFORE.replace(b"line 7\n", b"seven\n").replace(b"line 30\n", b"")
    assert patched(patch_of(BEFORE, after), after) is None


def test_a_file_that_has_moved_on_above_is_patched_nearby() -> None:
    after = BEFORE.replace(b"line 20\n", b"twenty\n")
    moved = b"new\n" * 50
    assert patched(patch_of(BEFORE, after), moved + BEFORE) == moved + after


def test_context_that_differs_is_a_conflict_and_never_fuzz() -> None:
    patch = patch_of(BEFORE, BEFORE.replace(b"line 20\n", b"twenty\n"))
    with pytest.raises(Conflict, match="hunk 1"):
        patched(patch, BEFORE.replace(b"line 18\n", b"line  18\n"))


def test_hunks_that_only_fit_in_another_order_are_a_conflict() -> None:
    patch = patch_of(BEFORE, BEFORE.replace(b"line 5\n", b"5\n").replace(b"line 30\n", b"30\n"))
    with pytest.raises(Conflict):
        patched(patch, BEFORE[len(BEFORE) // 2 :] + BEFORE[: len(BEFORE) // 2])


def test_what_could_be_before_or_after_is_left_alone() -> None:
    patch = "--- a/f\n+++ b/f\n@@ -5,4 +5,5 @@\n a\n a\n+a\n a\n a\n"
    with pytest.raises(Conflict, match="both"):
        patched(patch, b"a\n" * 20)


@pytest.mark.parametrize(
    ("patch", "before", "after"),
    [
        ("@@ -1,2 +1,3 @@\n a\n b\n+c\n", b"a\nb\n", b"a\nb\nc\n"),
        ("@@ -1,2 +1,3 @@\n+c\n a\n b\n", b"a\nb\n", b"c\na\nb\n"),
        ("@@ -1,3 +1,2 @@\n a\n b\n-c\n", b"a\nb\nc\n", b"a\nb\n"),
        ("@@ -1,3 +1,2 @@\n-c\n a\n b\n", b"c\na\nb\n", b"a\nb\n"),
        ("@@ -2,2 +2,1 @@\n b\n-c\n", b"a\nb\nc\nd\n", b"a\nb\nd\n"),
        ("@@ -2,2 +2,1 @@\n-b\n c\n", b"a\nb\nc\nd\n", b"a\nc\nd\n"),
    ],
)
def test_lines_at_an_edge_are_distinguished_from_their_absence(patch: str, before: bytes, after: bytes) -> None:
    assert patched(f"--- a/f\n+++ b/f\n{patch}", before) == after
    assert patched(f"--- a/f\n+++ b/f\n{patch}", after) is None


def test_lines_added_in_the_middle_with_context_on_one_side_only_are_added_once() -> None:
    patch = "--- a/f\n+++ b/f\n@@ -1,2 +1,3 @@\n a\n b\n+c\n"
    after = b"a\nb\nc\nd\n"
    assert patched(patch, b"a\nb\nd\n") == after
    with pytest.raises(Conflict, match="both"):
        patched(patch, after)


@pytest.mark.parametrize(
    ("before", "after"),
    [(b"a\nb", b"a\nc"), (b"a\nb", b"a\nb\n"), (b"a\nb\n", b"a\nb"), (b"a\nb", b"a\nb\nc"), (b"x", b"y")],
)
def test_a_missing_line_break_at_the_end_is_kept_made_or_taken_away(before: bytes, after: bytes) -> None:
    assert patched(patch_of(before, after), before) == after
    assert patched(patch_of(before, after), after) is None


@pytest.mark.parametrize("whole_patch", [False, True])
def test_a_file_with_crlf_keeps_it_whoever_wrote_the_patch(whole_patch: bool) -> None:
    before, after = b"a\r\nb\r\nc\r\n", b"a\r\nB\r\nnew\r\nc\r\n"
    patch = patch_of(before.replace(b"\r\n", b"\n"), after.replace(b"\r\n", b"\n"))
    assert patched(patch.replace("\n", "\r\n") if whole_patch else patch, before) == after


def test_a_patch_that_changes_the_line_breaks_themselves_does_so() -> None:
    patch = "--- a/f\n+++ b/f\n@@ -1,2 +1,2 @@\n-a\r\n-b\r\n+a\n+b\n"
    assert patched(patch, b"a\r\nb\r\n") == b"a\nb\n"


def test_other_line_separators_are_no_line_breaks() -> None:
    before = "a\x0cb\u2028c\x85d\ne\n".encode()
    patch = "--- a/f\n+++ b/f\n@@ -1,2 +1,2 @@\n a\x0cb\u2028c\x85d\n-e\n+E\n"
    assert patched(patch, before) == before[:-2] + b"E\n"


def test_lines_added_without_context_are_for_empty_files_only() -> None:
    patch = "--- a/f\n+++ b/f\n@@ -0,0 +1,1 @@\n+new\n"
    assert patched(patch, b"") == b"new\n"
    with pytest.raises(Conflict, match="context"):
        patched(patch, b"x\n")


def test_a_file_can_be_emptied() -> None:
    patch = "--- a/f\n+++ b/f\n@@ -1 +0,0 @@\n-x\n"
    assert (patched(patch, b"x\n"), patched(patch, b"")) == (b"", None)


def test_lines_deleted_without_context_that_are_not_there_are_a_conflict() -> None:
    patch = "--- a/f\n+++ b/f\n@@ -2 +1,0 @@\n-x\n"
    assert patched(patch, b"a\nx\nb\n") == b"a\nb\n"
    with pytest.raises(Conflict):
        patched(patch, b"a\ny\nb\n")


def test_random_changes_are_applied_and_found_applied() -> None:
    choice = random.Random(3)
    for _ in range(100):
        before = [b"%d\n" % choice.randrange(1000) for _ in range(choice.randrange(5, 60))]
        after = [line for line in before if choice.random() > 0.1]
        for _ in range(choice.randrange(1, 5)):
            after.insert(choice.randrange(len(after) + 1), b"new %d\n" % choice.randrange(1000))
        old, new = b"".join(before), b"".join(after)
        patch = patch_of(old, new)
        assert patched(patch, old) == new
        assert patched(patch, new) is None


def test_names_are_read_as_git_writes_them() -> None:
    patch = (
        'diff --git "a/gr\\303\\274n.txt" "b/gr\\303\\274n.txt"\nnew file mode 100644\n--- /dev/null\n'
        '+++ "b/gr\\303\\274n.txt"\n@@ -0,0 +1 @@\n+x\n'
        "diff --git a/old b/sub/new\nsimilarity index 100%\nrename from old\nrename to sub/new\n"
        "diff --git a/gone b/gone\ndeleted file mode 100644\n--- a/gone\n+++ /dev/null\n@@ -1 +0,0 @@\n-x\n"
        "--- plain\t2026-01-01 00:00:00\n+++ plain\t2026-01-02 00:00:00\n@@ -1 +1 @@\n-a\n+b\n\n"
        "--- b/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n"
    )
    found = [(file.before, file.after) for file in parse_patch(patch)]
    assert found == [(None, "grün.txt"), ("old", "sub/new"), ("gone", None), ("plain", "plain"), ("b/x", "b/x")]


@pytest.mark.parametrize(
    "patch",
    [
        "",
        "no diff at all\n",
        "@@ -1 +1 @@\n-a\n+b\n",
        "--- a/f\n+++ b/f\n@@ -1,5 +1,5 @@\n a\n",
        "--- a/f\n+++ b/f\n@@ -1 +1 @@\n*a\n",
        "--- a/f\n+++ b/f\n",
        "+++ b/f\n@@ -1 +1 @@\n-a\n+b\n",
        "--- a/f\n+++ b/g\n@@ -1 +1 @@\n-a\n+b\n",
        "--- /dev/null\n+++ /dev/null\n@@ -0,0 +1 @@\n+a\n",
        "diff --git a/f b/f\nBinary files a/f and b/f differ\n",
        "diff --git a/f b/f\nindex 1..2\nGIT binary patch\nliteral 5\nabc\n\n",
        "diff --git a/f b/f\nnew file mode 120000\n--- /dev/null\n+++ b/f\n@@ -0,0 +1 @@\n+/etc/passwd\n",
        "diff --git a/f b/g\nsimilarity index 100%\ncopy from f\ncopy to g\n",
        "".join(f"--- a/{n}\n+++ b/{n}\n@@ -1 +1 @@\n-a\n+b\n" for n in range(101)),
        "--- a/f\n+++ b/f\n" + "".join(f"@@ -{n} +{n} @@\n-a\n+b\n" for n in range(501)),
        "--- a/f\n+++ b/f\n@@ -99999999999999999999 +1 @@\n-a\n+b\n" + "@@ -1,2 +1 @@\n",
        "\\ No newline at end of file\n",
        "--- a/f\n+++ b/f\n@@ -0,0 +0,0 @@\n\\ No newline at end of file\n",
    ],
)
def test_what_is_no_patch_or_none_for_a_workspace_is_refused(patch: str) -> None:
    with pytest.raises(InvalidInput):
        parse_patch(patch)
