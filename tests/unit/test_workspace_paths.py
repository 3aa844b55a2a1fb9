"""Which file names a workspace takes, and which it refuses with a reason."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import InvalidPath
from backplane.workspace.paths import MAX_PATH_BYTES, check_path, file_path, folder_path, folders_above


@pytest.mark.parametrize(
    "path",
    [
        "a",
        ".hidden",
        "...",
        "a..b/c.",
        "with space/ and another ",
        "ünïcödé/文件/😀",
        "100%/a%20b#?&*[x]{y}'\"`^|~",
        "e\u0301 decomposed",
        "a" * 255,
        "/".join(["d"] * 64 + ["file"]),
    ],
)
def test_what_a_disk_and_a_bucket_can_hold_is_taken_unchanged(path: str) -> None:
    assert check_path(path) == path


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "empty"),
        ("/etc/passwd", "absolute"),
        ("../x", "'..'"),
        ("a/../../x", "'..'"),
        ("a/..", "'..'"),
        ("./a", "'.'"),
        ("a//b", "''"),
        ("a/", "''"),
        ("a\\b", "backslash"),
        ("a\0b", "control character"),
        ("a\nb", "control character"),
        ("a\x7f", "control character"),
        ("a\x85", "control character"),
        ("a\ufffe", "control character"),
        ("a\udcff", "Unicode"),
        ("a" * 256, "255 bytes"),
        ("ü" * 128, "255 bytes"),
        ("/".join(["b" * 200] * 5), "1004 bytes"),
        ("/".join(["d"] * 65 + ["file"]), "folders deep"),
        ("d/" * 1000 + "file", "bytes"),
    ],
)
def test_a_path_that_a_workspace_cannot_hold_is_refused_with_the_reason(path: str, reason: str) -> None:
    with pytest.raises(InvalidPath, match=reason) as refused:
        check_path(path)
    assert refused.value.field == "path"


def test_the_reason_can_be_printed_anywhere_whatever_the_path() -> None:
    with pytest.raises(InvalidPath) as refused:
        check_path("\x1b[2J\udcff" + "x" * 2000)
    assert refused.value.message.isascii()
    assert refused.value.message.isprintable()
    assert len(refused.value.message) < 300


def test_the_depth_is_counted_in_folders_above_the_file() -> None:
    assert check_path("a/b/file", max_depth=2)
    with pytest.raises(InvalidPath):
        check_path("a/b/c/file", max_depth=2)


@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from("/.\\ \0")), max_size=300))
def test_a_path_that_is_taken_stays_below_the_folder_it_is_joined_to(raw: str) -> None:
    try:
        path = check_path(raw)
    except InvalidPath:
        return
    assert os.path.normpath(Path("/root", path)) == f"/root/{raw}"
    assert len(path.encode()) <= MAX_PATH_BYTES
    assert all(len(name.encode()) <= 255 for name in path.split("/"))


def test_the_folders_above_a_file_are_named_outermost_first() -> None:
    assert folders_above("a/b/c") == ["a", "a/b"]
    assert folders_above("a") == []


@pytest.mark.parametrize(
    ("raw", "path"), [("a.txt", "a.txt"), ("./a.txt", "a.txt"), ("././src/a", "src/a"), (".env", ".env")]
)
def test_a_tool_takes_a_files_path_with_a_dot_before_it(raw: str, path: str) -> None:
    assert file_path(raw) == path


@pytest.mark.parametrize(
    ("raw", "path"), [(".", ""), ("./", ""), ("src", "src"), ("src/", "src"), ("./src", "src"), ("./src/a//", "src/a")]
)
def test_a_tool_takes_a_folders_path_with_a_dot_before_it_and_a_slash_behind_it(raw: str, path: str) -> None:
    assert folder_path(raw) == path


@pytest.mark.parametrize("raw", ["", ".", "./", "a/", "/a", ".//a", "./../a", "a/./b", "..", "a//b"])
def test_no_other_spelling_of_a_files_path_is_taken(raw: str) -> None:
    with pytest.raises(InvalidPath):
        file_path(raw)


@pytest.mark.parametrize("raw", ["", "/", "//", "..", "../", "./../a", "a//b", "/src/"])
def test_no_other_spelling_of_a_folders_path_is_taken(raw: str) -> None:
    with pytest.raises(InvalidPath):
        folder_path(raw)
