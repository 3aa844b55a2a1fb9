"""What the agents' memory must do, in the embedded mode of Qdrant's client; a server is used by the same calls."""

import asyncio
import fcntl
import gc
import http.server
import os
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from uuid import UUID

import pytest

from backplane.errors import Conflict, PartRefuses, PlatformError, TooLarge, Unavailable
from worker.llm.embedding import Embedder, HashedEmbedder
from worker.memory.base import AgentMemory

ROOT = Path(__file__).parents[3]
USER, OTHER_USER = "user-1", "user-2"

Make = Callable[..., AgentMemory]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(
        *,
        max_items: int = 100,
        max_chars: int = 1000,
        wait_seconds: float = 30.0,
        embedder: Embedder | None = None,
        folder: Path | None = None,
    ) -> AgentMemory:
        from worker.memory.qdrant import QdrantFolder, QdrantMemory  # noqa: PLC0415 - takes 1.2 s

        place = QdrantFolder(folder or tmp_path / "memory", wait_seconds=wait_seconds)
        return QdrantMemory(place, embedder or HashedEmbedder(), max_items=max_items, max_chars=max_chars)

    return make


@pytest.fixture
def memory(make: Make) -> AgentMemory:
    return make()


async def remember(memory: AgentMemory, text: str, *tags: str, user: str = USER, agent: str = "default") -> str:
    return await memory.remember(user, agent, text, tags, run_id="run-1")


async def recall(
    memory: AgentMemory, query: str, *tags: str, user: str = USER, agent: str = "default", limit: int = 10
) -> list[str]:
    found = await memory.recall(user, agent, query, tags, limit, run_id="run-2")
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    return [one.text for one in found]


async def test_what_is_remembered_is_recalled_nearest_first(memory: AgentMemory) -> None:
    await remember(memory, "The staging database is on port 5433")
    await remember(memory, "Anna prefers tables over prose")
    assert (await recall(memory, "which port has the database?"))[0] == "The staging database is on port 5433"
    assert (await recall(memory, "does Anna like tables?"))[0] == "Anna prefers tables over prose"


async def test_nothing_is_recalled_where_nothing_was_remembered(memory: AgentMemory) -> None:
    assert await recall(memory, "anything") == []
    assert not await memory.forget(USER, "default", str(UUID(int=0)))


async def test_a_memory_says_where_it_is_from(memory: AgentMemory) -> None:
    id = await remember(memory, "ünï – 日本", "b", "a")
    [found] = await memory.recall(USER, "default", "ünï", [], 1, run_id="run-2")
    assert (found.id, found.text, found.tags, found.run_id) == (id, "ünï – 日本", ("b", "a"), "run-1")
    assert found.at.startswith("20")


async def test_the_same_text_is_one_memory_and_the_newest_tags_hold(memory: AgentMemory) -> None:
    first = await remember(memory, "a fact", "old")
    assert first == "5d742950-ebdf-5604-b5e5-27db0725b680"  # a repeated step of an older release finds what it wrote
    assert await remember(memory, "a fact", "new") == first
    assert await recall(memory, "a fact") == ["a fact"]
    assert await recall(memory, "a fact", "old") == []


async def test_tags_narrow_down_and_all_of_them_must_fit(memory: AgentMemory) -> None:
    await remember(memory, "both", "x", "y")
    await remember(memory, "one", "x")
    assert sorted(await recall(memory, "q", "x")) == ["both", "one"]
    assert await recall(memory, "q", "x", "y") == ["both"]
    assert await recall(memory, "q", "z") == []


async def test_no_more_is_recalled_than_was_asked_for(memory: AgentMemory) -> None:
    for number in range(4):
        await remember(memory, f"fact number {number}")
    assert len(await recall(memory, "fact", limit=3)) == 3


async def test_what_is_forgotten_is_gone(memory: AgentMemory) -> None:
    id = await remember(memory, "a fact")
    assert await memory.forget(USER, "default", id)
    assert not await memory.forget(USER, "default", id)
    assert await recall(memory, "a fact") == []


@pytest.mark.parametrize(("user", "agent"), [(OTHER_USER, "default"), (USER, "another"), (f"{USER}\0default", "")])
async def test_no_agent_reaches_the_memory_of_another(memory: AgentMemory, user: str, agent: str) -> None:
    id = await remember(memory, "a secret of mine")
    await remember(memory, "something else", user=user, agent=agent)
    assert await recall(memory, "secret", user=user, agent=agent) == ["something else"]
    assert not await memory.forget(user, agent, id)
    assert await recall(memory, "a secret of mine") == ["a secret of mine"]


@pytest.mark.parametrize("agent", ["../../x", "a/b", "", "x" * 1000, "\n", "日本"])
async def test_a_name_never_becomes_a_path(make: Make, tmp_path: Path, agent: str) -> None:
    memory = make()
    await remember(memory, "a fact", agent=agent)
    assert os.listdir(tmp_path) == ["memory"]
    assert {path.name[:6] for path in (tmp_path / "memory").iterdir()} == {"agent-"}
    assert await recall(memory, "a fact", agent=agent) == ["a fact"]


async def test_the_folder_is_its_owners_alone(memory: AgentMemory, tmp_path: Path) -> None:
    await remember(memory, "a fact")
    assert (tmp_path / "memory").stat().st_mode & 0o777 == 0o700


# --- limits ---


async def test_a_memory_may_have_so_many_characters_and_no_more(make: Make) -> None:
    memory = make(max_chars=10)
    await remember(memory, "é" * 10)
    with pytest.raises(TooLarge, match="The text has 11 characters"):
        await remember(memory, "é" * 11)
    with pytest.raises(TooLarge, match="The text has 11 characters"):
        await recall(memory, "é" * 11)


async def test_an_agent_keeps_so_many_memories_and_no_more(make: Make) -> None:
    memory = make(max_items=2)
    first = await remember(memory, "one")
    await remember(memory, "two")
    with pytest.raises(TooLarge, match="MEMORY_MAX_ITEMS"):
        await remember(memory, "three")
    assert await remember(memory, "one", "again") == first, "what is there may be replaced"
    await remember(memory, "three", agent="another")
    await memory.forget(USER, "default", first)
    await remember(memory, "three")


# --- embedders ---


class Lengths(Embedder):
    """Knows of a text how long it is, which is an embedding too."""

    def __init__(self, name: str, size: int = 2) -> None:
        self.name = name
        self._size = size

    async def embed(self, texts: Sequence[str], *, user_id: str = "", run_id: str = "") -> list[list[float]]:
        return [[1.0, float(len(text)), *[0.0] * (self._size - 2)] for text in texts]

    async def dimensions(self) -> int:
        return self._size


@pytest.mark.parametrize("other", [Lengths("server/b"), Lengths("server/a", 3)], ids=["name", "size"])
async def test_vectors_of_two_embedders_are_not_mixed(make: Make, other: Embedder) -> None:
    id = await remember(make(embedder=Lengths("server/a")), "a fact")
    changed = make(embedder=other)
    for call in (remember(changed, "another"), recall(changed, "a fact")):
        with pytest.raises(Conflict, match=r"embedded by server/a \(2 numbers a text\).*EMBEDDING_MODEL"):
            await call
    assert await recall(make(embedder=Lengths("server/a")), "a fact") == ["a fact"]
    assert await changed.forget(USER, "default", id), "forgetting needs no vector"


# --- several at once, and what breaks ---

REMEMBERING = """
import asyncio, sys
from pathlib import Path
from worker.llm.embedding import HashedEmbedder
from worker.memory.qdrant import QdrantFolder, QdrantMemory

async def main(folder, name):
    memory = QdrantMemory(QdrantFolder(Path(folder), wait_seconds=60), HashedEmbedder(), max_items=1000, max_chars=100)
    for number in range(5):
        await memory.remember("user-1", "default", f"{name} {number}", [], run_id="run")

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.slow
async def test_workers_in_several_processes_share_a_folder(memory: AgentMemory, tmp_path: Path) -> None:
    commands = [[sys.executable, "-c", REMEMBERING, str(tmp_path / "memory"), name] for name in ("x", "y")]
    processes = [await asyncio.create_subprocess_exec(*command, cwd=ROOT) for command in commands]
    for number in range(5):
        await remember(memory, f"z {number}")
    assert [await process.wait() for process in processes] == [0, 0]
    expected = [f"{name} {number}" for name in "xyz" for number in range(5)]
    assert sorted(await recall(memory, "q", limit=50)) == expected


async def test_calls_at_the_same_time_wait_for_each_other(memory: AgentMemory) -> None:
    await asyncio.gather(*(remember(memory, f"fact {number}") for number in range(8)))
    assert len(await recall(memory, "fact")) == 8


async def test_a_call_that_waits_too_long_fails_with_what_to_do(make: Make, tmp_path: Path) -> None:
    memory = make(wait_seconds=0.05)
    await remember(memory, "a fact")
    [lock] = (tmp_path / "memory").glob("*.lock")
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Unavailable, match="all the time") as refused:
            await recall(memory, "a fact")
    assert refused.value.part == "memory"
    assert await recall(memory, "a fact") == ["a fact"]


def break_points(collection: Path) -> None:
    [storage] = collection.glob("**/storage.sqlite")
    storage.write_bytes(b"this is no database " * 100)


def break_a_point(collection: Path) -> None:
    [storage] = collection.glob("**/storage.sqlite")
    with sqlite3.connect(storage) as connection:
        connection.execute("UPDATE points SET point = x'00ff'")
    connection.close()


def break_the_list(collection: Path) -> None:
    (collection / "meta.json").write_text('{"collections": ')


def make_it_a_file(collection: Path) -> None:
    collection.rename(collection.with_suffix(".away"))
    collection.touch()


@pytest.mark.parametrize("damage", [break_points, break_a_point, break_the_list, make_it_a_file])
async def test_a_folder_that_is_not_whole_is_not_waited_for(
    memory: AgentMemory, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    await remember(memory, "a fact")
    [collection] = [path for path in (tmp_path / "memory").iterdir() if path.is_dir()]
    damage(collection)
    for call in (recall(memory, "a fact"), remember(memory, "another")):
        with pytest.raises(PartRefuses, match="MEMORY_DIR") as refused:
            await call
        assert collection.name in refused.value.message
    assert await remember(memory, "another agent's", agent="another"), "others are not touched by it"


async def test_a_folder_that_cannot_be_made_is_not_waited_for(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PartRefuses, match="MEMORY_DIR"):
        await remember(make(folder=tmp_path / "file"), "a fact")


# The client leaves the file of its lock to the garbage collector then.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # a client that is refused does not close its lock file
async def test_a_folder_that_is_open_elsewhere_is_waited_for(memory: AgentMemory, tmp_path: Path) -> None:
    from qdrant_client import QdrantClient  # noqa: PLC0415 - takes 2 s

    await remember(memory, "a fact")
    [collection] = [path for path in (tmp_path / "memory").iterdir() if path.is_dir()]
    other = QdrantClient(path=str(collection))
    with pytest.raises(Unavailable, match="MEMORY_DIR"):
        await recall(memory, "a fact")
    gc.collect()
    other.close()
    assert await recall(memory, "a fact") == ["a fact"]


# --- a server ---


class Answering(http.server.BaseHTTPRequestHandler):
    """Gives the status that the first part of the path names, and a long body."""

    def do_GET(self) -> None:
        status = int(self.path.split("/")[1])
        self.send_response(status)
        if status == 429:
            self.send_header("Retry-After", "7")
        self.end_headers()
        self.wfile.write(b"<p>Must provide an API key " + b"x" * 10_000)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def answering_server() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), Answering) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


async def failure(url: str, key: str = "") -> PlatformError:
    from worker.memory.qdrant import QdrantMemory, QdrantServer  # noqa: PLC0415 - takes 1.2 s

    memory = QdrantMemory(QdrantServer(url, key, timeout_seconds=1), HashedEmbedder(), max_items=10, max_chars=100)
    try:
        with pytest.raises(PlatformError, match="QDRANT_URL") as failed:
            await recall(memory, "a fact")
        return failed.value
    finally:
        await memory.close()


async def test_a_server_that_is_not_there_is_waited_for() -> None:
    error = await failure("http://127.0.0.1:9")
    assert isinstance(error, Unavailable)
    assert error.part == "memory"


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504])
async def test_a_server_that_is_busy_or_broken_is_waited_for(answering_server: str, status: int) -> None:
    assert isinstance(await failure(f"{answering_server}/{status}"), Unavailable)


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 405, 413, 422, 501])
async def test_a_server_that_refuses_ends_the_step_and_is_quoted_in_short(answering_server: str, status: int) -> None:
    error = await failure(f"{answering_server}/{status}")
    assert isinstance(error, PartRefuses)
    assert (str(status) in error.message, len(error.message) < 500) == (True, True), error.message


@pytest.mark.parametrize(
    ("path", "key"), [("/200", ""), ("/200", "clé")], ids=["no answer of Qdrant's", "a key that no header takes"]
)
async def test_what_asking_again_does_not_mend_ends_the_step(answering_server: str, path: str, key: str) -> None:
    error = await failure(f"{answering_server}{path}", key)
    assert (type(error), key in error.message if key else False) == (PartRefuses, False), error.message


@pytest.mark.parametrize("url", ["ftp://127.0.0.1:9", "http://127.0.0.1:port"])
async def test_an_address_that_is_none_ends_the_step(url: str) -> None:
    assert isinstance(await failure(url), PartRefuses)
