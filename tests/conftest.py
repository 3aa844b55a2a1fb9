"""What every test may ask for: real servers, clean databases and buckets. What every test leaves behind: nothing.

A server is started when a test first asks for it, once a test process, and stopped when the session ends. Where a
server cannot be had the test is skipped with what to install; where `CI` is set that is a failure.
"""

import asyncio
import contextlib
import gc
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from inspect import iscoroutinefunction, isfunction
from pathlib import Path
from typing import Any, Protocol, TypeVar

import certifi
import pytest
import structlog
from sqlalchemy.dialects.postgresql.psycopg import PGDialectAsync_psycopg
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.engine import Engine
from sqlalchemy.util import LRUCache

from tests.databases import make_tables
from tests.model_server import SMALL_MODEL, ModelHttpServer
from tests.servers import Missing, PostgresServer, RedisServer, S3Server, Server


class Startable(Protocol):
    def start(self) -> None: ...
    def stop(self) -> None: ...


S = TypeVar("S", bound=Startable)


@pytest.fixture(scope="session")
def servers_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="agent-platform-tests-"))
    yield folder
    shutil.rmtree(folder)
    PostgresServer.remove_template()


@contextlib.contextmanager
def started(make: Callable[[], S]) -> Iterator[S]:
    try:
        server = make()
        server.start()
    except Missing as missing:
        message = f"needs {missing}"
        if os.environ.get("CI"):
            pytest.fail(message, pytrace=False)
        pytest.skip(message)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session", autouse=True)
def few_authorities(servers_folder: Path) -> Iterator[None]:
    """Clients of HTTP trust one of the world's 150 certificate authorities. To read all of them takes each new client
    33 ms of CPU, more than most tests of a server take besides, and no test speaks with the world."""
    bundle = Path(certifi.where()).read_text()
    end = "-----END CERTIFICATE-----\n"
    file = servers_folder / "authorities.pem"
    file.write_text(bundle.partition(end)[0] + end)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(file))
        patch.setattr(certifi, "where", lambda: str(file))  # for those that do not look at the environment
        yield


@pytest.fixture(scope="session", autouse=True)
def statements_compiled_once() -> Iterator[None]:
    """Nearly each test has databases of its own, and SQLAlchemy compiles each statement once for each of them: a tenth
    of what a small test takes. Here all databases of a kind share what is compiled."""
    compiled = LRUCache[Any, Any](10_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "_compiled_cache", property(lambda _: compiled, lambda *_: None), raising=False)
        for kind in (SQLiteDialect_pysqlite, PGDialectAsync_psycopg):  # of the key by which it is found
            patch.setattr(kind, "__hash__", lambda dialect: hash(type(dialect)))
            patch.setattr(kind, "__eq__", lambda dialect, other: type(dialect) is type(other))
        yield


# --- Redis ---


@pytest.fixture(scope="session")
def redis_server(servers_folder: Path) -> Iterator[RedisServer]:
    with started(lambda: RedisServer(servers_folder / "redis")) as server:
        yield server


@pytest.fixture(scope="module")
def redis_of_module(redis_server: RedisServer) -> str:
    """URL of a Redis that is empty when the first test of the file asks for it. What another file has left there may
    be the queue of another platform, and an API on it ends."""
    redis_server.flush()
    return redis_server.url


@pytest.fixture
def redis(redis_server: RedisServer) -> str:
    """URL of an empty Redis."""
    redis_server.flush()
    return redis_server.url


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """Makes a running Redis that the test may stop, start and kill: `own_redis(keeps_data=True)`."""
    with contextlib.ExitStack() as stack:
        yield lambda keeps_data=False: stack.enter_context(
            started(lambda: RedisServer(Path(tempfile.mkdtemp(dir=tmp_path)), keeps_data=keeps_data))
        )


# --- databases ---


@pytest.fixture(scope="session")
def postgres_server(servers_folder: Path) -> Iterator[PostgresServer]:
    with started(lambda: PostgresServer(servers_folder / "postgres")) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_tables(postgres_server: PostgresServer) -> str:
    """Name of a database with the platform's tables. To empty it takes a hundredth of what a new one takes."""
    name = postgres_server.create_database()
    _migrate(postgres_server.url(name))
    postgres_server.keep_what_migrations_made(name)
    return name


@pytest.fixture(scope="session")
def sqlite_tables(servers_folder: Path) -> Path:
    """A database file with the platform's tables, to be copied: the migrations take a hundred times as long."""
    path = servers_folder / "tables.db"
    _migrate(f"sqlite:///{path}")
    return path


def _migrate(url: str) -> None:
    # A test's loop may be running in this thread.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, make_tables(url)).result()


@pytest.fixture
def postgres_database(postgres_server: PostgresServer, postgres_tables: str) -> Iterator[str]:
    """URL (postgresql+psycopg://) of a database with the platform's tables, which are empty."""
    yield postgres_server.url(postgres_tables)
    postgres_server.empty_database(postgres_tables)


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[Callable[[], PostgresServer]]:
    """Makes a running PostgreSQL that the test may stop, start and kill."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(started(lambda: PostgresServer(Path(tempfile.mkdtemp(dir=tmp_path)))))


@pytest.fixture
def sqlite_database(sqlite_tables: Path, tmp_path: Path) -> str:
    """The same, as a file of the test's own."""
    return f"sqlite:///{shutil.copyfile(sqlite_tables, tmp_path / 'agent.db')}"


@pytest.fixture(scope="module")
def sqlite_of_module(sqlite_tables: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same, for all tests of a file."""
    return f"sqlite:///{shutil.copyfile(sqlite_tables, tmp_path_factory.mktemp('database') / 'agent.db')}"


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
    """URL of such a database of either kind: a test that asks for it runs once on each."""
    url: str = request.getfixturevalue(f"{request.param}_database")
    return url


@pytest.fixture(params=["sqlite", "postgres"])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a database of either kind that has no tables and is the test's own."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.db'}"
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    name = server.create_database()
    yield server.url(name)
    server.drop_database(name)


# --- S3 ---


@pytest.fixture(scope="session")
def s3_server(servers_folder: Path) -> Iterator[S3Server]:
    with started(lambda: S3Server(servers_folder / "s3")) as server:
        yield server


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    """Name of an empty bucket of the test's own, on `s3_server`."""
    return s3_server.create_bucket()


@pytest.fixture
def own_s3(tmp_path: Path) -> Iterator[Callable[[], S3Server]]:
    """Makes a running S3 server that the test may stop, start and kill."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(started(lambda: S3Server(Path(tempfile.mkdtemp(dir=tmp_path)))))


# --- models ---


@pytest.fixture(scope="session")
def model_server(servers_folder: Path) -> Iterator[ModelHttpServer]:
    """A real one that says nothing that makes sense; `tests.model_server` has what it can."""
    with started(lambda: ModelHttpServer(servers_folder / "models")) as server:
        yield server


@pytest.fixture(scope="session")
def small_model(servers_folder: Path) -> Iterator[ModelHttpServer]:
    """A real one whose model answers questions, slowly."""
    with started(lambda: ModelHttpServer(servers_folder / "small-model", SMALL_MODEL)) as server:
        yield server


# --- what is collected ---


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Collector, name: str, obj: object) -> list[pytest.Item] | None:
    """No tests of functions that are marked slow, where `-m` leaves these out: to make them, in each process, and to
    drop them then takes as long as many a test."""
    expression = str(collector.config.option.markexpr)
    if "not slow" not in expression or " or " in expression or not isfunction(obj):
        return None
    marks = [*getattr(obj, "pytestmark", ()), *collector.iter_markers()]
    return [] if any(mark.name == "slow" for mark in marks) else None


def pytest_configure(config: pytest.Config) -> None:
    """Each process of a parallel run begins to collect with other files. Who loads a file first keeps it compiled for
    all: if they began with the same one, in a fresh clone each would compile all of them."""
    number, folder = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw"), Path(__file__).parent
    if not number or [Path(arg).absolute() for arg in config.args] != [folder]:
        return
    left_out = [folder.parent / path for path in config.getoption("ignore") or ()]
    files = [path for path in sorted(folder.rglob("test_*.py")) if not any(map(path.is_relative_to, left_out))]
    first = int(number) * len(files) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    config.args[:] = map(str, files[first:] + files[:first])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path)  # all processes have the same tests in the same order
    # Hypothesis would parse all of the product for constants to try, in each process.
    if (providers := sys.modules.get("hypothesis.internal.conjecture.providers")) is not None:
        providers._seen_modules.update(map(id, sys.modules.values()))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is loaded here stays until the end, so the collector need not go through it, now or later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


# --- a failure is shown ---


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Without garbage collection. To show a failure, pytest parses the files of its traceback; before 3.11.8 and 3.12.2
    CPython counts the depth of all that is parsed in one place (python/cpython#106905). A collection in the middle may
    run a finalizer that parses too, or let another thread do so, and then the whole session ends with "AST constructor
    recursion depth mismatch"."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


# --- nothing is left behind ---


@pytest.fixture(autouse=True)
def own_process_log() -> Iterator[None]:
    """A process that a test starts in its own process configures the log of all."""
    yield
    structlog.reset_defaults()
    # Tracebacks as structlog shows them by itself, with every variable, take seconds.
    *processors, _ = structlog.get_config()["processors"]
    plain = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*processors, plain])
    structlog.contextvars.clear_contextvars()


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Set up before, so torn down after, the test's other fixtures. Whatever is found is ended, so that the next test
    does not pay for it."""
    if iscoroutinefunction(request.function):
        request.getfixturevalue("no_task_left_behind")
    before = children()
    yield
    left = children() - before - Server.running
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not left, f"the test left child processes running: {sorted(left)}"


@pytest.fixture
async def no_task_left_behind() -> AsyncIterator[None]:
    yield
    left = asyncio.all_tasks() - {asyncio.current_task()}
    if left:
        # What was cancelled or closed a moment ago may still take its last steps.
        _, left = await asyncio.wait(left, timeout=2.0)
    assert not left, f"the test left tasks running: {left}"


def children() -> set[int]:
    """Processes started by this one that were not waited for yet; empty where the system does not say."""
    found, threads = set[int](), "/proc/self/task"
    for thread in os.listdir(threads) if os.path.isdir(threads) else ():
        # The thread may have ended meanwhile.
        with (
            contextlib.suppress(FileNotFoundError, ProcessLookupError),
            open(f"{threads}/{thread}/children") as listing,
        ):
            found.update(map(int, listing.read().split()))
    return found
