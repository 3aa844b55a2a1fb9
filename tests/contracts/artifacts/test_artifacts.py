"""What every store of agents' artifacts must do; so far there is one, Git in a folder."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pygit2
import pytest

from backplane.artifacts import repository
from backplane.artifacts.base import AgentId, Artifact, Artifacts, Author
from backplane.artifacts.git import GitArtifacts
from backplane.errors import Conflict, InvalidInput, InvalidPath, NotFound, PartRefuses, TooLarge, Unavailable
from tests.waiting import wait_until

ROOT = Path(__file__).parents[3]
AGENT = AgentId("6f7c0d1e-0000-4000-8000-000000000001", "default")
OTHER = AgentId("6f7c0d1e-0000-4000-8000-000000000002", "default")
STEP = Author(run_id="run-1", step_id="s1")
ADMIN = Author(administrator="ada")
QUOTA = 1000


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Artifacts]:
    def make(*, history_max_bytes: int = 1_000_000, wait_seconds: float = 30.0) -> Artifacts:
        return GitArtifacts(
            tmp_path / "artifacts", max_bytes=QUOTA, history_max_bytes=history_max_bytes, wait_seconds=wait_seconds
        )

    return make


@pytest.fixture
def artifacts(make: Callable[..., Artifacts]) -> Artifacts:
    return make()


def folder(tmp_path: Path, agent: AgentId = AGENT) -> Path:
    return tmp_path / "artifacts" / agent.user_id / f"{agent.name}.git"


# --- the present ---


async def test_an_agent_that_has_never_written_has_no_artifacts(artifacts: Artifacts) -> None:
    assert await artifacts.files(AGENT) == []
    assert not await artifacts.delete(AGENT, "a", STEP)
    with pytest.raises(NotFound):
        await artifacts.read(AGENT, "a")
    with pytest.raises(NotFound):
        await artifacts.log(AGENT)


async def test_what_is_written_is_read_and_listed(artifacts: Artifacts) -> None:
    assert await artifacts.write(AGENT, "notes/a.md", b"\xff\x00text", STEP)
    assert await artifacts.write(AGENT, "b", b"", STEP)
    assert await artifacts.read(AGENT, "notes/a.md") == b"\xff\x00text"
    assert await artifacts.files(AGENT) == [Artifact("b", 0), Artifact("notes/a.md", 6)]


async def test_a_write_that_changes_nothing_leaves_no_trace(artifacts: Artifacts) -> None:
    assert await artifacts.write(AGENT, "a", b"same", STEP)
    assert not await artifacts.write(AGENT, "a", b"same", Author(run_id="run-2", step_id="s9"))
    assert len(await artifacts.log(AGENT)) == 1


async def test_what_is_deleted_is_gone_with_its_empty_folders(artifacts: Artifacts) -> None:
    await artifacts.write(AGENT, "a/b/c", b"x", STEP)
    await artifacts.write(AGENT, "d", b"x", STEP)
    assert await artifacts.delete(AGENT, "a/b/c", STEP)
    assert not await artifacts.delete(AGENT, "a/b/c", STEP)
    assert await artifacts.files(AGENT) == [Artifact("d", 1)]
    assert await artifacts.write(AGENT, "a", b"a file where a folder was", STEP)


async def test_the_last_file_can_be_deleted(artifacts: Artifacts) -> None:
    await artifacts.write(AGENT, "a", b"x", STEP)
    assert await artifacts.delete(AGENT, "a", STEP)
    assert await artifacts.files(AGENT) == []


async def test_agents_have_nothing_in_common(artifacts: Artifacts) -> None:
    await artifacts.write(AGENT, "a", b"mine", STEP)
    for other in (OTHER, AgentId(AGENT.user_id, "another")):
        assert await artifacts.files(other) == []
        with pytest.raises(NotFound):
            await artifacts.read(other, "a")


@pytest.mark.parametrize("path", ["a/b", "a"])
async def test_no_file_is_a_folder_too(artifacts: Artifacts, path: str) -> None:
    await artifacts.write(AGENT, "a" if path == "a/b" else "a/b", b"x", STEP)
    with pytest.raises(Conflict):
        await artifacts.write(AGENT, path, b"x", STEP)
    assert len(await artifacts.files(AGENT)) == 1


HOSTILE = [
    "",
    "/etc/passwd",
    "../x",
    "a/../../x",
    "a//b",
    "./a",
    "a\0b",
    "a\nb",
    "a\\b",
    "x" * 256,
    ".git/config",
    "a/.GIT/hooks/post-update",
    "git~1/x",
    ".g\u200cit/x",
    ".git./x",
    "\ud800",
]


@pytest.mark.parametrize("path", HOSTILE, ids=ascii)
async def test_a_hostile_path_is_refused_and_touches_nothing(artifacts: Artifacts, tmp_path: Path, path: str) -> None:
    await artifacts.write(AGENT, "a", b"x", STEP)
    for call in (artifacts.write(AGENT, path, b"evil", STEP), artifacts.delete(AGENT, path, STEP)):
        with pytest.raises(InvalidPath):
            await call
    assert await artifacts.files(AGENT) == [Artifact("a", 1)]
    assert sorted(os.listdir(tmp_path)) == ["artifacts"]


@pytest.mark.parametrize("path", ["-x", "a b", "ü/日本", "CON", ".gitignore", "a:b", "HEAD", "refs/heads/main"])
async def test_an_odd_path_is_a_path(artifacts: Artifacts, path: str) -> None:
    await artifacts.write(AGENT, path, b"x", STEP)
    assert await artifacts.read(AGENT, path) == b"x"
    assert await artifacts.delete(AGENT, path, STEP)


@pytest.mark.parametrize("name", ["", "..", "a/b", ".git", "a\n", "x" * 65])
async def test_a_name_that_no_agent_has_is_refused(artifacts: Artifacts, tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInput):
        await artifacts.write(AgentId(AGENT.user_id, name), "a", b"x", STEP)
    with pytest.raises(InvalidInput):
        await artifacts.files(AgentId("../other", "default"))
    assert not (tmp_path / "artifacts").exists()


async def test_a_folder_is_no_file(artifacts: Artifacts) -> None:
    await artifacts.write(AGENT, "a/b", b"x", STEP)
    with pytest.raises(NotFound):
        await artifacts.read(AGENT, "a")
    assert not await artifacts.delete(AGENT, "a", STEP)


async def test_a_link_that_somebody_put_into_the_repository_is_not_followed(
    artifacts: Artifacts, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    await artifacts.write(AGENT, "a", b"x", STEP)
    git = pygit2.Repository(str(folder(tmp_path)))
    index = pygit2.Index()
    index.add(pygit2.IndexEntry("link", git.create_blob(str(secret).encode()), pygit2.enums.FileMode.LINK))
    by = pygit2.Signature("x", "x@x")
    git.create_commit(repository.BRANCH, by, by, "link", index.write_tree(git), [git.head.target])
    assert await artifacts.read(AGENT, "link") == str(secret).encode()
    await artifacts.write(AGENT, "link", b"new", STEP)
    assert (await artifacts.read(AGENT, "link"), secret.read_text()) == (b"new", "secret")


# --- quotas ---


async def test_the_present_files_may_have_the_quota_and_no_byte_more(artifacts: Artifacts) -> None:
    await artifacts.write(AGENT, "a", b"x" * 400, STEP)
    await artifacts.write(AGENT, "b", b"x" * 600, STEP)
    for path, size in (("b", 601), ("c", 1)):
        with pytest.raises(TooLarge, match="ARTIFACTS_MAX_BYTES"):
            await artifacts.write(AGENT, path, b"y" * size, STEP)
    await artifacts.write(AGENT, "b", b"y" * 600, STEP)
    await artifacts.delete(AGENT, "a", STEP)
    await artifacts.write(AGENT, "c", b"y" * 400, STEP)


async def test_the_history_may_not_grow_over_its_quota(make: Callable[..., Artifacts]) -> None:
    artifacts = make(history_max_bytes=12_000)
    written = 0
    with suppress(TooLarge):
        while written < 100:
            await artifacts.write(AGENT, "a", os.urandom(900), STEP)  # nothing that could be packed smaller
            written += 1
    assert 8 <= written <= 13
    with pytest.raises(TooLarge, match="ARTIFACTS_HISTORY_MAX_BYTES"):
        await artifacts.write(AGENT, "a", os.urandom(900), STEP)
    assert len(await artifacts.log(AGENT)) == written
    assert await artifacts.delete(AGENT, "a", STEP), "what is full can still be emptied"


async def test_a_history_that_can_be_packed_smaller_goes_on(make: Callable[..., Artifacts]) -> None:
    artifacts = make(history_max_bytes=25_000)
    text = os.urandom(400).hex()  # 60 of them take more, but each differs little from the one before
    for number in range(60):
        await artifacts.write(AGENT, "a", f"{text} {number}".encode(), STEP)
    history = await artifacts.log(AGENT, limit=100)
    assert len(history) == 60
    assert await artifacts.read_at(AGENT, history[-1].commit, "a") == f"{text} 0".encode()
    assert await artifacts.read(AGENT, "a") == f"{text} 59".encode()


async def test_the_first_write_may_not_be_over_the_history_quota_either(make: Callable[..., Artifacts]) -> None:
    with pytest.raises(TooLarge, match="ARTIFACTS_HISTORY_MAX_BYTES"):
        await make(history_max_bytes=100).write(AGENT, "a", b"x" * 101, STEP)


async def test_many_small_files_on_disk_are_packed_and_what_was_begun_and_not_ended_is_dropped(
    artifacts: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository, "LOOSE_OBJECTS_MAX", 20)
    await artifacts.write(AGENT, "kept/a", b"x", STEP)
    begun = pygit2.Repository(str(folder(tmp_path))).create_blob(b"of a writer that was killed")
    half_written = folder(tmp_path) / "objects" / "tmp_object_git2_ab12"
    half_written.touch()
    for number in range(15):
        await artifacts.write(AGENT, "b", str(number).encode(), STEP)
    git = pygit2.Repository(str(folder(tmp_path)))
    assert begun not in git
    assert not half_written.exists()
    assert len(list(folder(tmp_path).glob("objects/pack/*.pack"))) == 1
    assert len(list(folder(tmp_path).glob("objects/??/*"))) <= 23
    assert await artifacts.read(AGENT, "kept/a") == b"x"
    assert len(await artifacts.log(AGENT)) == 16


# --- the history ---


async def test_the_history_says_who_did_what_in_order(artifacts: Artifacts) -> None:
    await artifacts.write(AGENT, "a", b"1", Author(run_id="run-1", step_id="s1"))
    await artifacts.delete(AGENT, "a", Author(run_id="run-2", step_id="s2/1.1"))
    newest, oldest = await artifacts.log(AGENT)
    assert (newest.summary, newest.author) == ("delete a", Author(run_id="run-2", step_id="s2/1.1"))
    assert (oldest.summary, oldest.author) == ("write a", Author(run_id="run-1", step_id="s1"))
    assert newest.at >= oldest.at


async def test_the_history_comes_in_pages(artifacts: Artifacts) -> None:
    for number in range(5):
        await artifacts.write(AGENT, "a", str(number).encode(), STEP)
    everything = await artifacts.log(AGENT)
    first = await artifacts.log(AGENT, limit=3)
    assert [*first, *await artifacts.log(AGENT, before=first[-1].commit)] == everything
    assert await artifacts.log(AGENT, before=everything[-1].commit) == []


async def test_the_past_can_be_read(artifacts: Artifacts) -> None:
    await artifacts.write(AGENT, "a", b"old", STEP)
    await artifacts.write(AGENT, "a", b"newer", STEP)
    newest, oldest = await artifacts.log(AGENT)
    assert await artifacts.read_at(AGENT, oldest.commit, "a") == b"old"
    assert await artifacts.read_at(AGENT, oldest.commit[:10], "a") == b"old"
    assert await artifacts.files_at(AGENT, oldest.commit) == [Artifact("a", 3)]
    assert await artifacts.files_at(AGENT, newest.commit) == [Artifact("a", 5)]
    with pytest.raises(NotFound):
        await artifacts.read_at(AGENT, oldest.commit, "b")


@pytest.mark.parametrize("commit", ["", "HEAD", "main", "HEAD~1", "0" * 40, "abc", ":/write", "--help", "main@{0}"])
async def test_a_commit_is_named_by_its_id_alone(artifacts: Artifacts, commit: str) -> None:
    await artifacts.write(AGENT, "a", b"1", STEP)
    await artifacts.write(AGENT, "a", b"2", STEP)
    with pytest.raises(NotFound):
        await artifacts.files_at(AGENT, commit)
    with pytest.raises(NotFound):
        await artifacts.roll_back(AGENT, commit, ADMIN)
    with pytest.raises(NotFound):
        await artifacts.log(AGENT, before=commit)


async def test_an_id_of_something_else_is_no_commit(artifacts: Artifacts, tmp_path: Path) -> None:
    await artifacts.write(AGENT, "a", b"1", STEP)
    git = pygit2.Repository(str(folder(tmp_path)))
    by = pygit2.Signature("x", "x@x")
    tree = git[git.head.target].peel(pygit2.Tree).id
    stray = git.create_commit(None, by, by, "not of the history", tree, [])
    for id in (pygit2.hash(b"1"), tree, stray):
        with pytest.raises(NotFound):
            await artifacts.roll_back(AGENT, str(id), ADMIN)


async def test_a_rollback_is_what_agents_see_and_the_history_stays(artifacts: Artifacts) -> None:
    await artifacts.write(AGENT, "a", b"good", STEP)
    [good] = await artifacts.log(AGENT)
    await artifacts.write(AGENT, "a", b"bad", STEP)
    await artifacts.write(AGENT, "worse", b"x", STEP)
    commit = await artifacts.roll_back(AGENT, good.commit, ADMIN)
    assert (await artifacts.files(AGENT), await artifacts.read(AGENT, "a")) == ([Artifact("a", 4)], b"good")
    history = await artifacts.log(AGENT)
    assert [change.summary for change in history] == [
        f"roll back to {good.commit}",
        "write worse",
        "write a",
        "write a",
    ]
    assert (history[0].commit, history[0].author) == (commit, ADMIN)
    assert await artifacts.read_at(AGENT, history[1].commit, "worse") == b"x"


async def test_a_rollback_to_what_is_there_changes_nothing(artifacts: Artifacts) -> None:
    await artifacts.write(AGENT, "a", b"x", STEP)
    [change] = await artifacts.log(AGENT)
    assert await artifacts.roll_back(AGENT, change.commit, ADMIN) is None
    assert len(await artifacts.log(AGENT)) == 1


async def test_a_rollback_may_bring_back_more_than_the_quota(make: Callable[..., Artifacts], tmp_path: Path) -> None:
    await make().write(AGENT, "a", b"x" * QUOTA, STEP)
    small = GitArtifacts(tmp_path / "artifacts", max_bytes=10, history_max_bytes=10, wait_seconds=1)
    assert await small.delete(AGENT, "a", STEP)
    _, full = await small.log(AGENT)
    assert await small.roll_back(AGENT, full.commit, ADMIN)
    assert await small.files(AGENT) == [Artifact("a", QUOTA)]


# --- several at once, and what breaks ---


WRITER = """
import asyncio, sys
from pathlib import Path
from backplane.artifacts.base import AgentId, Author
from backplane.artifacts.git import GitArtifacts

async def main(folder, user, agent, name, count):
    artifacts = GitArtifacts(Path(folder), max_bytes=10**6, history_max_bytes=10**8, wait_seconds=60)
    for number in range(int(count)):
        await artifacts.write(AgentId(user, agent), f"{name}/{number}", name.encode(), Author(run_id=name))
        print(number, flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


def writer(tmp_path: Path, name: str, count: int) -> "subprocess.Popen[str]":
    arguments = [str(tmp_path / "artifacts"), AGENT.user_id, AGENT.name, name, str(count)]
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


async def test_writers_in_several_processes_lose_nothing_and_readers_see_whole_states(
    artifacts: Artifacts, tmp_path: Path
) -> None:
    writers = [writer(tmp_path, name, 15) for name in ("x", "y", "z")]
    seen = []
    while any(process.poll() is None for process in writers):
        files = await artifacts.files(AGENT)
        seen.append(len(files))
        for file in files[:3]:
            assert await artifacts.read(AGENT, file.path) == file.path[0].encode()
        await asyncio.sleep(0.005)
    assert [process.communicate()[1] for process in writers] == ["", "", ""]
    assert len(await artifacts.files(AGENT)) == 45
    assert len(await artifacts.log(AGENT, limit=100)) == 45
    assert seen == sorted(seen), "a later state never has less"


async def test_writers_of_one_process_wait_for_each_other_while_packs_are_made(
    artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository, "LOOSE_OBJECTS_MAX", 10)

    async def write(name: str) -> None:
        for number in range(8):
            await artifacts.write(AGENT, f"{name}{number}", b"x", STEP)
            await artifacts.read(AGENT, f"{name}0")

    await asyncio.gather(*(write(name) for name in "abcd"))
    assert len(await artifacts.files(AGENT)) == 32
    assert len(await artifacts.log(AGENT, limit=100)) == 32


async def test_a_writer_that_is_killed_blocks_nobody_and_leaves_a_whole_state(
    artifacts: Artifacts, tmp_path: Path
) -> None:
    process = writer(tmp_path, "x", 100_000)
    assert process.stdout is not None
    for _ in range(3):
        await asyncio.to_thread(process.stdout.readline)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = await artifacts.files(AGENT)
    assert len(before) >= 3
    assert {file.size for file in before} == {1}
    assert await artifacts.write(AGENT, "after", b"1", STEP)
    assert len(await artifacts.files(AGENT)) == len(before) + 1
    assert len(await artifacts.log(AGENT, limit=1000)) == len(before) + 1


@pytest.mark.parametrize("left", ["refs/heads/main.lock", "packed-refs.lock", "objects/tmp_object_git2_ab12"])
async def test_a_file_that_a_killed_writer_left_in_the_repository_blocks_nobody(
    artifacts: Artifacts, tmp_path: Path, left: str
) -> None:
    await artifacts.write(AGENT, "a", b"1", STEP)
    (folder(tmp_path) / left).touch()
    assert await artifacts.write(AGENT, "a", b"2", STEP)
    assert await artifacts.read(AGENT, "a") == b"2"


async def test_a_repository_that_was_half_made_is_made_anew(artifacts: Artifacts, tmp_path: Path) -> None:
    half_made = folder(tmp_path).with_suffix(".new")
    half_made.mkdir(parents=True)
    (half_made / "HEAD").touch()
    assert await artifacts.write(AGENT, "a", b"1", STEP)
    assert not half_made.exists()


HOLDER = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); input()"


def holder_of(lock: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


async def test_a_call_that_waits_too_long_fails_with_the_setting(
    make: Callable[..., Artifacts], tmp_path: Path
) -> None:
    artifacts = make(wait_seconds=0.05)
    await artifacts.write(AGENT, "a", b"1", STEP)
    lock = folder(tmp_path).with_suffix(".lock")
    holder = holder_of(lock)
    assert holder.stdout is not None
    await asyncio.to_thread(holder.stdout.readline)
    with pytest.raises(Unavailable, match="all the time") as refused:
        await artifacts.write(AGENT, "a", b"2", STEP)
    assert refused.value.part == "artifacts"
    assert await artifacts.read(AGENT, "a") == b"1", "readers wait for nobody"
    holder.communicate("\n")
    assert await artifacts.write(AGENT, "a", b"2", STEP)


async def test_a_write_that_is_cancelled_while_it_waits_leaves_the_lock_to_others(
    artifacts: Artifacts, tmp_path: Path
) -> None:
    writes = [asyncio.create_task(artifacts.write(AGENT, f"{number}", b"x", STEP)) for number in range(10)]

    async def has_begun() -> bool:
        return folder(tmp_path).exists()

    await wait_until(has_begun)
    for task in writes:
        task.cancel()
    await asyncio.gather(*writes, return_exceptions=True)
    assert await artifacts.write(AGENT, "after", b"x", STEP)


@pytest.mark.parametrize("broken", ["refs/heads/main", "objects"])
async def test_a_repository_that_is_not_whole_refuses_at_once_and_nobody_waits_for_it(
    artifacts: Artifacts, tmp_path: Path, broken: str
) -> None:
    await artifacts.write(AGENT, "a", b"1", STEP)
    path = folder(tmp_path) / broken
    if path.is_dir():
        path.rename(tmp_path / "away")
    else:
        path.write_bytes(b"\xff\x00 not what belongs here")
    for call in (artifacts.read(AGENT, "a"), artifacts.write(AGENT, "a", b"2", STEP)):
        with pytest.raises(PartRefuses, match="ARTIFACTS_DIR"):
            await call


async def test_a_folder_that_cannot_be_had_is_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    artifacts = GitArtifacts(tmp_path / "file", max_bytes=10, history_max_bytes=1000, wait_seconds=1)
    with pytest.raises(Unavailable, match="ARTIFACTS_DIR"):
        await artifacts.write(AGENT, "a", b"1", STEP)
