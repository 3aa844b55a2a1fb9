"""A folder and a pod's, brought in line; here the pod's side is played by whoever is hostile enough."""

import json
import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backplane.errors import InvalidPath
from tests import sandbox_calls
from worker.sandbox.kubernetes.channel import NotUnderstood
from worker.sandbox.kubernetes.pod.frames import DATA, DELETE, DELETED, FILE, FOLDERS, HEADER, LINK
from worker.sandbox.kubernetes.sync import FileSync, Incoming, TooMuch

LIMITS = replace(sandbox_calls.LIMITS, disk_bytes=100, files=5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "files"
    made.mkdir()
    return made


@pytest.fixture
def incoming(folder: Path) -> Incoming:
    return FileSync().incoming(folder, LIMITS)


def file(path: str, content: bytes) -> list[tuple[bytes, bytes]]:
    return [(FILE, json.dumps({"path": path, "size": len(content)}).encode()), (DATA, content)]


def link(path: str, target: str) -> tuple[bytes, bytes]:
    return LINK, json.dumps({"path": path, "what": "link", "target": target}).encode()


def folders(*listed: list[Any]) -> tuple[bytes, bytes]:
    return FOLDERS, json.dumps({"folders": listed}).encode()


async def sent(sync: FileSync, folder: Path) -> list[tuple[bytes, bytes]]:
    """Without times and modes, and without the folders."""
    frames = []
    for kind, payload in await sent_whole(sync, folder):
        if kind == FILE:
            said = json.loads(payload)
            payload = json.dumps({"path": said["path"], "size": said["size"]}).encode()
        if kind != FOLDERS:
            frames.append((kind, payload))
    return frames


async def sent_whole(sync: FileSync, folder: Path) -> list[tuple[bytes, bytes]]:
    whole = b"".join([piece async for piece in sync.outgoing(folder)])
    frames = []
    while whole:
        kind, length = HEADER.unpack_from(whole)
        frames.append((kind, whole[HEADER.size : HEADER.size + length]))
        whole = whole[HEADER.size + length :]
    return frames


async def test_the_first_time_every_file_is_sent(folder: Path) -> None:
    (folder / "inner").mkdir()
    (folder / "inner/file").write_bytes(b"content")
    assert await sent(FileSync(), folder) == file("inner/file", b"content")


async def test_later_only_what_differs_is_sent(folder: Path) -> None:
    for name in ("same", "changed", "gone"):
        (folder / name).write_text(name)
    sync = FileSync()
    await sent(sync, folder)
    (folder / "changed").write_text("anew")
    (folder / "gone").unlink()
    assert await sent(sync, folder) == [(DELETE, b'["gone"]'), *file("changed", b"anew")]


async def test_what_came_back_is_not_sent_again(folder: Path) -> None:
    sync = FileSync()
    sync.incoming(folder, LIMITS).take(file("new", b"1"))
    assert await sent(sync, folder) == []


async def test_a_link_is_sent_as_the_text_where_it_leads(folder: Path) -> None:
    (folder / "link").symlink_to("/etc/passwd")
    os.utime(folder / "link", ns=(5, 5), follow_symlinks=False)
    [(kind, payload), _] = await sent_whole(FileSync(), folder)
    assert (kind, json.loads(payload)) == (LINK, {"path": "link", "target": "/etc/passwd", "time": 5})


async def test_a_pipe_is_not_sent(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    with pytest.raises(InvalidPath, match="no plain file"):
        await sent(FileSync(), folder)


async def test_times_and_modes_are_sent_and_all_folders_in_the_end(folder: Path) -> None:
    (folder / "inner").mkdir()
    (folder / "file").write_bytes(b"")
    (folder / "file").chmod(0o640)
    os.utime(folder / "file", ns=(7, 7))
    (folder / "inner").chmod(0o750)
    os.utime(folder / "inner", ns=(8, 8))
    [(_, said), last] = await sent_whole(FileSync(), folder)
    assert json.loads(said) == {"path": "file", "size": 0, "mode": 0o640, "time": 7}
    assert last == folders(["inner", 0o750, 8])


def test_files_come_back_as_old_and_with_the_modes_that_they_have_in_the_pod(folder: Path) -> None:
    sync = FileSync()
    (folder / "gone/inner").mkdir(parents=True)
    incoming = sync.incoming(folder, LIMITS)
    said = json.dumps({"path": "a", "size": 1, "mode": 0o4755, "time": 7, "links": True, "extended": True})
    incoming.take([(FILE, said.encode()), (DATA, b"x"), folders(["empty", 0o500, 8])])
    incoming.finish()
    assert [
        (path.name, oct(path.stat().st_mode)[-4:], path.stat().st_mtime_ns) for path in sorted(folder.iterdir())
    ] == [
        ("a", "0755", 7),
        ("empty", "0700", 8),
    ]
    assert [line.partition(" (")[0] for line in incoming.not_kept.lines()] == [
        "not kept with the run's files: 1 extended attribute",
        "not kept with the run's files: 1 hard link",
        "not kept with the run's files: 2 modes",
    ]


def beside_bytecode(*paths: Any) -> tuple[bytes, bytes]:
    return FOLDERS, json.dumps({"folders": [], "beside_bytecode": paths}).encode()


def test_what_lies_beside_bytecode_in_a_pod_is_named(incoming: Incoming) -> None:
    incoming.take([folders(), beside_bytecode("a/__pycache__/notes.txt", "__pycache__/\udcff")])
    incoming.finish()
    [line] = incoming.not_kept.lines()
    assert "2 entries of __pycache__ ('a/__pycache__/notes.txt', '__pycache__/\\udcff')" in line


@pytest.mark.parametrize("paths", [[f"__pycache__/{number}" for number in range(6)], ["x" * 1_000_000] * 5])
def test_of_what_lies_beside_bytecode_no_more_is_named_than_there_can_be(incoming: Incoming, paths: list[str]) -> None:
    """Six are more than the limit of files allows; names are cut."""
    with pytest.raises(TooMuch) if len(paths) > LIMITS.files else nullcontext():
        incoming.take([beside_bytecode(*paths)])
        [line] = incoming.not_kept.lines()
        assert len(line) < 10_000


@pytest.mark.parametrize("number", [-1, 2**80, True])
def test_a_time_that_cannot_be_is_one_that_can(folder: Path, number: int) -> None:
    incoming = FileSync().incoming(folder, LIMITS)
    said = json.dumps({"path": "a", "size": 0, "mode": number, "time": number}).encode()
    incoming.take([(FILE, said), folders(["d", number, number])])
    incoming.finish()
    assert 0 <= (folder / "a").stat().st_mtime_ns <= 2**62


def test_a_runner_of_an_older_release_says_nothing_of_times_and_folders(folder: Path) -> None:
    (folder / "kept").mkdir()
    incoming = FileSync().incoming(folder, LIMITS)
    incoming.take(file("a", b"x"))
    incoming.finish()
    assert os.access(folder / "a", os.X_OK)
    assert (folder / "kept").is_dir()


def test_files_come_back_with_the_folders_above_them(incoming: Incoming, folder: Path) -> None:
    incoming.take([*file("a/b/c", b"1"), *file("empty", b"")[:1]])
    assert (folder / "a/b/c").read_bytes() == b"1"
    assert (folder / "empty").read_bytes() == b""


def test_a_file_takes_the_place_of_a_folder_and_a_folder_that_of_a_file(incoming: Incoming, folder: Path) -> None:
    (folder / "was-folder/inner").mkdir(parents=True)
    (folder / "was-folder/inner/file").touch()
    (folder / "was-file").touch()
    incoming.take([*file("was-folder", b"1"), *file("was-file/inner", b"2")])
    assert (folder / "was-folder").read_bytes() == b"1"
    assert (folder / "was-file/inner").read_bytes() == b"2"


@pytest.mark.parametrize("path", ["../out", "/out", "a/../../out", "", ".", "a//b", "a\\b"])
def test_a_path_that_leads_elsewhere_is_refused(incoming: Incoming, folder: Path, path: str) -> None:
    with pytest.raises(InvalidPath):
        incoming.take(file(path, b"1"))
    assert list(folder.parent.iterdir()) == [folder]


def test_nothing_is_written_through_a_link(incoming: Incoming, folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    incoming.take([link("way", str(outside)), *file("way/file", b"1"), link("way2", str(outside / "x"))])
    incoming.take(file("way2", b"2"))
    assert list(outside.iterdir()) == []
    assert (folder / "way/file").read_bytes() == b"1"


def test_a_pod_that_has_what_is_no_plain_file_is_no_copy_any_more(folder: Path) -> None:
    sync = FileSync()
    sync.incoming(folder, LIMITS).take([link("link", "target")])
    assert sync.is_exact
    sync.incoming(folder, LIMITS).take([(LINK, b'{"path": "pipe", "what": "pipe", "target": ""}')])
    assert not sync.is_exact
    assert (folder / "link").is_symlink()
    assert (folder / "pipe").is_fifo()


def test_only_what_was_sent_can_be_deleted(folder: Path) -> None:
    (folder / "never-sent").touch()
    FileSync().incoming(folder, LIMITS).take([(DELETED, b'["never-sent", "../files/never-sent", 7]')])
    assert (folder / "never-sent").exists()


def test_as_much_as_the_limit_comes_back_and_not_a_byte_more(folder: Path) -> None:
    FileSync().incoming(folder, LIMITS).take(file("just", b"x" * 100))
    with pytest.raises(TooMuch, match="more than 100 bytes"):
        FileSync().incoming(folder, LIMITS).take([*file("half", b"x" * 50), *file("over", b"x" * 51)])


def test_as_many_files_as_the_limit_come_back_and_not_one_more(folder: Path) -> None:
    five = [frame for number in range(5) for frame in file(str(number), b"")[:1]]
    FileSync().incoming(folder, LIMITS).take(five)
    with pytest.raises(TooMuch, match="more than 5 files"):
        FileSync().incoming(folder, LIMITS).take([*five, link("sixth", "x")])


@pytest.mark.parametrize(
    "frames",
    [
        [(DATA, b"of no file")],
        [(FILE, b'{"path": "a", "size": 1}'), (DATA, b"12")],
        [(FILE, b'{"path": "a", "size": 1}'), (FILE, b'{"path": "b", "size": 1}')],
        [(FILE, b'{"path": "a", "size": -1}')],
        [(FILE, b'{"path": 1, "size": 1}')],
        [(FILE, b"[]")],
        [(FILE, b"\xff")],
        [(LINK, b'{"path": "a"}')],
        [(FOLDERS, b'{"folders": [["a"]]}')],
        [(FOLDERS, b'{"folders": [["a", "755", 1]]}')],
        [(DELETED, b"{")],
        [(b"?", b"")],
    ],
)
def test_frames_that_make_no_sense_are_refused(incoming: Incoming, frames: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(NotUnderstood):
        incoming.take(frames)
    incoming.close()
