"""Patches as models write them: miscounted, without numbers, without prefixes. Each is applied whole or refused."""

import random

import pytest

from backplane.errors import Conflict, InvalidInput, PlatformError
from tests.unit.test_patching import BEFORE, patch_of
from worker.tools.patching import apply_hunks, apply_patches
from worker.tools.unified_diff import parse_patch

HEAD = "--- a/f\n+++ b/f\n"
TEXT = b"".join(b"%d\n" % number for number in range(1, 21))
CHANGED = TEXT.replace(b"5\n", b"five\n", 1).replace(b"6\n", b"6\nsix and a half\n", 1)
BODY = " 4\n-5\n+five\n 6\n+six and a half\n 7\n"


def patched(patch: str, content: bytes) -> bytes | None:
    [file] = parse_patch(patch)
    return apply_hunks(file.hunks, content, "f")


SAME = {
    "counted right": f"@@ -4,4 +4,5 @@\n{BODY}",
    "counts too small": f"@@ -4,1 +4,2 @@\n{BODY}",
    "counts too small on one side": f"@@ -4,4 +4,4 @@\n{BODY}",
    "counts too large": f"@@ -4,9 +4,12 @@\n{BODY}",
    "counts left out": f"@@ -4 +4 @@\n{BODY}",
    "a wrong line": f"@@ -9,4 +9,5 @@\n{BODY}",
    "no numbers": f"@@ @@\n{BODY}",
    "dots for numbers": f"@@ ... @@\n{BODY}",
    "a bare mark": f"@@\n{BODY}",
    "a function for numbers": f"@@ def five():\n{BODY}",
    "a function behind numbers": f"@@ -4,4 +4,5 @@ def five():\n{BODY}",
    "an empty line at the end": f"@@ -4,4 +4,5 @@\n{BODY}\n\n",
    "no break at the end": f"@@ -4,4 +4,5 @@\n{BODY}".rstrip("\n"),
}


@pytest.mark.parametrize("patch", SAME.values(), ids=SAME)
def test_however_its_head_is_written_every_line_of_a_hunk_is_applied(patch: str) -> None:
    assert patched(HEAD + patch, TEXT) == CHANGED


HEADS = {
    "without prefixes": "--- f\n+++ f\n",
    "with times": "--- a/f\t2026-01-01 00:00:00\n+++ b/f\t2026-01-02 00:00:00\n",
    "as git writes it": "diff --git a/f b/f\nindex 1234567..89abcde 100644\n--- a/f\n+++ b/f\n",
    "as subversion writes it": f"Index: f\n{'=' * 67}\n--- f\t(revision 1)\n+++ f\t(working copy)\n",
    "behind some words": "Here is the change:\n\n--- a/f\n+++ b/f\n",
    "as a mail": "From 0123456789abcdef0123456789abcdef01234567 Mon Sep 17 00:00:00 2001\nSubject: five\n\n- a list\n"
    "+ of things\n---\n f | 3 ++-\n\ndiff --git a/f b/f\n--- a/f\n+++ b/f\n",
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_the_head_of_a_file_may_be_written_in_many_ways(head: str) -> None:
    [file] = parse_patch(f"{head}@@ -4,4 +4,5 @@\n{BODY}")
    assert (file.before, file.after) == ("f", "f")
    assert apply_hunks(file.hunks, TEXT, "f") == CHANGED


@pytest.mark.parametrize("fence", ["```diff\n{}```\n", "```\n{}```", "\n```patch\n{}```\n\n"])
def test_a_fence_of_markdown_around_a_patch_is_no_part_of_it(fence: str) -> None:
    assert patched(fence.format(f"{HEAD}@@ -4,4 +4,5 @@\n{BODY}"), TEXT) == CHANGED


def test_the_signature_of_a_mail_is_no_line_of_the_last_hunk() -> None:
    assert patched(f"{HEAD}@@ -4,4 +4,5 @@\n{BODY}-- \n2.39.5\n\n", TEXT) == CHANGED


def test_a_second_hunk_without_numbers_is_applied() -> None:
    patch = f"{HEAD}@@ -2,3 +2,3 @@\n 2\n-3\n+three\n 4\n@@ @@\n 10\n-11\n+eleven\n 12\n"
    assert patched(patch, TEXT) == TEXT.replace(b"3\n", b"three\n", 1).replace(b"11\n", b"eleven\n")


def test_hunks_in_another_order_than_their_lines_are_applied() -> None:
    patch = f"{HEAD}@@ -10,3 +10,3 @@\n 10\n-11\n+eleven\n 12\n@@ -2,3 +2,3 @@\n 2\n-3\n+three\n 4\n"
    assert patched(patch, TEXT) == TEXT.replace(b"3\n", b"three\n", 1).replace(b"11\n", b"eleven\n")


@pytest.mark.parametrize("counts", ["@@ -1,3 +1,3 @@", "@@ -1,2 +1,1 @@", "@@ @@"])
def test_lines_that_look_like_a_head_are_lines_when_the_numbers_say_so(counts: str) -> None:
    patch = f"{HEAD}{counts}\n a\n--- b\n+++ c\n d\n"
    if counts == "@@ -1,3 +1,3 @@":
        assert patched(patch, b"a\n-- b\nd\n") == b"a\n++ c\nd\n"
    else:
        with pytest.raises(InvalidInput):
            parse_patch(patch)


def test_an_empty_line_within_a_hunk_is_an_empty_line_of_context() -> None:
    assert patched(f"{HEAD}@@ -1,3 +1,3 @@\n a\n\n-b\n+c\n", b"a\n\nb\n") == b"a\n\nc\n"


MANY_EMPTY = "\n" * 100_000


@pytest.mark.parametrize("head", ["@@", "@@ -1,9 +1,9 @@"], ids=["without numbers", "with wrong numbers"])
def test_a_hundred_thousand_empty_lines_within_a_hunk_are_lines_of_it(head: str) -> None:
    [file] = parse_patch(f"{HEAD}{head}\n-a\n{MANY_EMPTY}+b\n")
    assert file.hunks[0].source == (b"a\n", *[b"\n"] * 100_000)
    assert file.hunks[0].target == (*[b"\n"] * 100_000, b"b\n")


@pytest.mark.parametrize("head", ["@@", "@@ -1 +1 @@", "@@ -1,300000 +1 @@"], ids=["no numbers", "right", "wrong"])
def test_a_hundred_thousand_empty_lines_behind_a_hunk_are_no_part_of_it(head: str) -> None:
    [file, _] = parse_patch(f"{HEAD}{head}\n-a\n+b\n{MANY_EMPTY}--- a/g\n+++ b/g\n@@ -1 +1 @@\n-a\n+b\n")
    assert (file.hunks[0].source, file.hunks[0].target) == ((b"a\n",), (b"b\n",))


def test_a_last_line_without_a_break_is_changed_and_stays_without() -> None:
    assert patched(f"{HEAD}@@ -1,2 +1,2 @@\n a\n-b\n+c\n", b"a\nb") == b"a\nc"
    assert patched(f"{HEAD}@@ -1,2 +1,2 @@\n-a\n+c\n b\n", b"a\nb") == b"c\nb"


# --- what is refused, and how ---

REFUSED = {
    "a line with no mark": (
        f"{HEAD}@@ -1,3 +1,3 @@\n a\nb\n-c\n+d\n",
        "line 5: 'b' begins with neither",
    ),
    "a line behind the hunk": (f"{HEAD}@@ -1 +1 @@\n-a\n+b\nwords\n+c\n", "line 6: 'words'|line 6 is part of no hunk"),
    "a hunk of no file": ("@@ -1 +1 @@\n-a\n+b\n", "line 1: a hunk without the lines ---"),
    "another format": (
        "*** Begin Patch\n*** Update File: f\n@@\n-a\n+b\n*** End Patch\n",
        "Begin Patch' belongs to another",
    ),
    "search and replace": (
        "f\n<<<<<<< SEARCH\na\n=======\nb\n>>>>>>> REPLACE\n",
        "SEARCH' belongs to another",
    ),
    "only context": (f"{HEAD}@@ -1,2 +1,2 @@\n a\n b\n", "line 3: the hunk changes nothing"),
}


@pytest.mark.parametrize(("patch", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_patch_is_refused_with_its_line(patch: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        parse_patch(patch)


def test_the_line_that_does_not_fit_is_shown_with_what_stands_around_it() -> None:
    with pytest.raises(Conflict) as refused:
        patched(f"{HEAD}@@ -4,3 +4,3 @@\n 4\n 5\n-six\n+sechs\n", TEXT)
    assert "hunk 1 (line 3 of the patch) does not fit f: line 6 has '6', where the patch says 'six'" in str(
        refused.value
    )
    assert "     5  5\n     6  6\n     7  7\n" in str(refused.value)


def test_a_hunk_without_numbers_that_fits_twice_is_a_conflict() -> None:
    with pytest.raises(Conflict, match="in several places"):
        patched(f"{HEAD}@@ @@\n a\n-b\n+c\n", b"a\nb\nx\na\nb\n")


def test_a_removal_that_fits_nowhere_is_no_patch_that_was_applied_already() -> None:
    """Its result, two lines of context, stands somewhere else in the file."""
    text = b"x\ny\nother\na\nb\n"
    with pytest.raises(Conflict, match="does not fit"):
        patched(f"{HEAD}@@ -1,3 +1,2 @@\n a\n-gone\n b\n", text)


def test_a_result_that_stands_elsewhere_is_no_patch_that_was_applied_already() -> None:
    with pytest.raises(Conflict, match="does not fit"):
        patched(f"{HEAD}@@ -1,2 +1,3 @@\n a\n-b\n+new\n+b\n", b"1\n2\n3\na\nnew\nb\n")


def test_a_removal_without_numbers_is_never_taken_as_applied() -> None:
    with pytest.raises(Conflict, match="does not fit"):
        patched(f"{HEAD}@@ @@\n a\n-gone\n b\n", b"a\nb\n")


def test_a_repeated_patch_without_numbers_is_found_applied() -> None:
    assert patched(f"{HEAD}@@ @@\n{BODY}", CHANGED) is None


def test_an_empty_file_is_made_and_deleted() -> None:
    made = parse_patch("diff --git a/f b/f\nnew file mode 100644\nindex 0000000..e69de29\n")
    assert apply_patches(made, {"f": None}) == {"f": b""}
    gone = parse_patch("diff --git a/f b/f\ndeleted file mode 100644\nindex e69de29..0000000\n")
    assert apply_patches(gone, {"f": b""}) == {"f": None}


def test_a_mode_beside_a_change_is_noted() -> None:
    [file] = parse_patch(f"diff --git a/f b/f\nold mode 100644\nnew mode 100755\n{HEAD}@@ -4,4 +4,5 @@\n{BODY}")
    assert file.is_program is True
    assert apply_hunks(file.hunks, TEXT, "f") == CHANGED


def test_two_sections_of_one_file_are_applied_one_after_the_other() -> None:
    patch = f"{HEAD}@@ -2,3 +2,3 @@\n 2\n-3\n+three\n 4\n{HEAD}@@ -10,3 +10,3 @@\n 10\n-11\n+eleven\n 12\n"
    changed = TEXT.replace(b"3\n", b"three\n", 1).replace(b"11\n", b"eleven\n")
    assert apply_patches(parse_patch(patch), {"f": TEXT}) == {"f": changed}


def test_whatever_is_changed_in_a_patch_it_is_applied_whole_or_refused() -> None:
    """Its heads lose or change numbers at random; the result is always that of the true patch, or an error."""
    choice = random.Random(11)
    refused = 0
    for _ in range(300):
        lines = BEFORE.splitlines(keepends=True)
        for _ in range(choice.randrange(1, 5)):
            lines[choice.randrange(len(lines))] = b"new %d\n" % choice.randrange(10**6)
        after = b"".join(lines)
        patch = []
        for line in patch_of(BEFORE, after).splitlines(keepends=True):
            if line.startswith("@@"):
                start = int(line[4:].split(",")[0].split(" ")[0])
                line = choice.choice(
                    [
                        line,
                        "@@ @@\n",
                        f"@@ -{start} +{start} @@\n",
                        f"@@ -{start},{choice.randrange(12)} +{start},{choice.randrange(12)} @@\n",
                        f"@@ -{max(1, start + choice.randrange(-3, 4))},7 +{start},7 @@\n",
                    ]
                )
            patch.append(line)
        try:
            assert patched("".join(patch), BEFORE) == after
        except PlatformError:
            refused += 1
    assert refused < 30


WRAPPED = {
    "words before the fence": "Here it is:\n```diff\n{}```\n",
    "words behind the fence": "```diff\n{}```\nThat is all - really.\n",
    "a mark at its end": "{}*** End Patch\n",
    "marks around it": "*** Begin Patch\n{}*** End Patch\n",
}


@pytest.mark.parametrize("wrapping", WRAPPED.values(), ids=WRAPPED)
def test_what_models_put_around_a_patch_is_no_part_of_it(wrapping: str) -> None:
    assert patched(wrapping.format(f"{HEAD}@@ -4,4 +4,5 @@\n{BODY}"), TEXT) == CHANGED


def test_a_patch_in_two_fences_is_applied_whole() -> None:
    first, second = (f"--- a/{n}\n+++ b/{n}\n@@ -1 +1 @@\n-a\n+b\n" for n in "fg")
    found = parse_patch(f"One:\n```diff\n{first}```\nTwo:\n```diff\n{second}```\n")
    assert apply_patches(found, {"f": b"a\n", "g": b"a\n"}) == {"f": b"b\n", "g": b"b\n"}


def test_a_part_of_a_patch_outside_of_the_fence_is_refused_with_its_line() -> None:
    with pytest.raises(InvalidInput, match="line 8 stands outside of the fence"):
        parse_patch(f"```diff\n{HEAD}@@ -1 +1 @@\n-a\n+b\n```\n--- a/g\n+++ b/g\n@@ -1 +1 @@\n-a\n+b\n")


def test_a_new_file_without_dev_null_is_made_and_found_made() -> None:
    patch = parse_patch("--- a/new.txt\n+++ b/new.txt\n@@ -0,0 +1 @@\n+x\n")
    assert apply_patches(patch, {"new.txt": None}) == apply_patches(patch, {"new.txt": b"x\n"}) == {"new.txt": b"x\n"}


@pytest.mark.parametrize("name", ["./a.txt", "a/./a.txt"])
def test_a_name_may_have_a_dot_before_it(name: str) -> None:
    [file] = parse_patch(f"--- {name}\n+++ {name.replace('a/.', 'b/.')}\n@@ -1 +1 @@\n-a\n+b\n")
    assert (file.before, file.after) == ("a.txt", "a.txt")


def test_a_hunk_at_a_wrong_line_that_fits_in_several_places_is_a_conflict_that_names_them() -> None:
    text = b"a\nb\nx\na\nb\ny\nz\n"
    with pytest.raises(Conflict, match=r"several places \(at the lines 1, 4\), and not at the line"):
        patched(f"{HEAD}@@ -3,3 +3,3 @@\n a\n-b\n+c\n", text)


EXPLAINED = {
    "line ends": ("@@ -1,2 +1,2 @@\n a\n-b\n+c\n", b"a\r\nb\nc\n", "line 1 ends with CR LF, where the patch says LF"),
    "an overlap": ("@@ -1,2 +1,2 @@\n 1\n-2\n+x\n@@ -2,2 +2,2 @@\n 2\n-3\n+y\n", TEXT, "hunks may not overlap"),
}


@pytest.mark.parametrize(("patch", "content", "words"), EXPLAINED.values(), ids=EXPLAINED)
def test_the_reason_why_a_hunk_does_not_fit_is_named(patch: str, content: bytes, words: str) -> None:
    with pytest.raises(Conflict, match=words):
        patched(f"{HEAD}{patch}", content)


def test_a_copy_is_said_to_be_not_supported() -> None:
    with pytest.raises(InvalidInput, match="copies are not supported"):
        parse_patch("diff --git a/f b/g\nsimilarity index 100%\ncopy from f\ncopy to g\n")
