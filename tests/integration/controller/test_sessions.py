"""What old sessions left on this machine: gone when nobody needs it, and never before."""

import asyncio
import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from backplane.domain.runs import Run, RunStatus, new_run_id
from backplane.domain.sandbox_labels import CREATED, GENERATION, PART, RUN, SANDBOX
from backplane.errors import Unavailable
from backplane.settings import Settings, fixed
from backplane.store.runs import Runs
from controller.cleanup import sessions
from controller.cleanup.sessions import CheckoutFolders, Containers, Leftover, SessionPlace, SweepTimer, labelled, sweep
from tests.integration.controller.conftest import Controllers, Platform, StartPlatform
from tests.submitted import new_run
from tests.waiting import wait_until

SESSION_SECONDS = 3600.0
IMAGE = "docker.io/library/python:3.12-slim"


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


def worker_folder(scratch: Path, name: str = "agent-worker-1", age_seconds: float = SESSION_SECONDS + 60) -> Path:
    folder = scratch / name
    folder.mkdir()
    return aged(folder, age_seconds)


def aged(folder: Path, age_seconds: float = SESSION_SECONDS + 60) -> Path:
    then = time.time() - age_seconds
    os.utime(folder, (then, then))
    return folder


def checkout(worker: Path, run_id: str, generation: int, age_seconds: float = SESSION_SECONDS + 60) -> Path:
    folder = worker / f"{run_id}-{generation}"
    (folder / "files" / "deep").mkdir(parents=True)
    (folder / "files" / "deep" / "x").write_text("x")
    return aged(folder, age_seconds)


@contextmanager
def alive(worker: Path) -> Iterator[None]:
    """As long as its worker lives, the folder is locked."""
    lock = os.open(worker, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield
    os.close(lock)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def swept(platform: Platform, *places: SessionPlace, lease_seconds: float = 0.0) -> dict[str, int]:
    removed = await sweep(places, platform.store.runs, session_seconds=SESSION_SECONDS, lease_seconds=lease_seconds)
    return dict(removed)


async def running_run(platform: Platform, generation: int = 1) -> Run:
    run = await platform.store.runs.create(new_run(platform.user), start=True)
    assert await platform.store.running_runs.take(run.id, generation)
    return run


# --- folders ---


async def test_the_old_folder_of_a_worker_that_is_gone_goes(platform: Platform, scratch: Path) -> None:
    worker = worker_folder(scratch)
    aged(checkout(worker, new_run_id(), 1).parent)
    young = worker_folder(scratch, "agent-worker-2", age_seconds=SESSION_SECONDS - 60)
    another = worker_folder(scratch, "somebody-elses")
    assert await swept(platform, CheckoutFolders(scratch)) == {"folder": 1}
    assert names(scratch) == {young.name, another.name}


async def test_the_folder_of_a_living_worker_stays(platform: Platform, scratch: Path) -> None:
    worker = worker_folder(scratch)
    with alive(worker):
        assert await swept(platform, CheckoutFolders(scratch)) == {}
    assert worker.exists()


async def test_in_a_living_workers_folder_only_old_checkouts_go_that_no_running_run_needs(
    platform: Platform, scratch: Path
) -> None:
    needed, taken_over, over = await running_run(platform), await running_run(platform, 2), await running_run(platform)
    await platform.store.running_runs.write(
        over.id, 1, lambda transaction: transaction.finish(RunStatus.COMPLETED, None)
    )
    worker = worker_folder(scratch)
    for run in (needed, taken_over, over):
        checkout(worker, run.id, 1)
    young = checkout(worker, over.id, 2, age_seconds=60)
    (worker / "something-else").mkdir()
    aged(worker / "something-else")
    with alive(worker):
        assert await swept(platform, CheckoutFolders(scratch)) == {"folder": 2}
    assert names(worker) == {f"{needed.id}-1", young.name, "something-else"}


async def test_what_links_lead_to_is_not_touched(platform: Platform, scratch: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    worker = worker_folder(scratch)
    left = checkout(worker, new_run_id(), 1)
    (left / "files" / "link").symlink_to(outside)
    (worker / f"{new_run_id()}-1").symlink_to(outside)
    (scratch / "agent-worker-link").symlink_to(outside)
    aged(left)
    aged(outside)
    with alive(worker):
        assert await swept(platform, CheckoutFolders(scratch)) == {"folder": 1}
    aged(worker)
    assert await swept(platform, CheckoutFolders(scratch)) == {"folder": 1}
    assert (outside / "file").exists()
    assert names(scratch) == {"agent-worker-link"}


async def test_a_folder_without_permissions_goes_too(platform: Platform, scratch: Path) -> None:
    worker = worker_folder(scratch)
    left = checkout(worker, new_run_id(), 1)
    (left / "files" / "deep").chmod(0)
    left.chmod(0)
    aged(left)
    with alive(worker):
        assert await swept(platform, CheckoutFolders(scratch)) == {"folder": 1}


class Changing(SessionPlace):
    """Something that is there, and something else at each further look."""

    def __init__(self, looks: Sequence[Sequence[Leftover]]) -> None:
        self._looks = iter(looks)
        self.removed: list[Leftover] = []

    async def find(self) -> list[Leftover]:
        return list(next(self._looks))

    async def remove(self, leftover: Leftover) -> bool:
        self.removed.append(leftover)
        return True


def left(identity: str, age_seconds: float = SESSION_SECONDS + 1) -> Leftover:
    return Leftover("folder", "name", identity, "", None, age_seconds)


async def test_only_what_is_there_a_second_time_goes(platform: Platform) -> None:
    place = Changing([[left("gone"), left("stays")], [left("new"), left("stays", SESSION_SECONDS + 9)]])
    assert await swept(platform, place) == {"folder": 1}
    assert place.removed == [left("stays")]


class Broken(SessionPlace):
    async def find(self) -> list[Leftover]:
        raise Unavailable("the engine does not answer", part="container engine")

    async def remove(self, leftover: Leftover) -> bool:
        raise AssertionError("nothing was found")


async def test_a_place_that_does_not_answer_holds_up_no_other(platform: Platform, scratch: Path) -> None:
    worker_folder(scratch)
    assert await swept(platform, Broken(), CheckoutFolders(scratch)) == {"folder": 1}


# --- containers and volumes ---


def test_labels_that_are_not_a_sessions_are_passed_over() -> None:
    for line in ("name null", "name {}", 'name {"agent-platform/created": "soon"}', "name [1]", "name", ""):
        assert labelled("container", line, 100.0) is None
    labels = f'{{"{CREATED}": "40.5", "{RUN}": "run-1", "{GENERATION}": "3"}}'
    found = labelled("volume", f"name {labels}", 100.0)
    assert found == Leftover("volume", "name", "40.5", "run-1", 3, 59.5)
    assert found.age_seconds == 59.5


@pytest.fixture
def engine() -> str:
    for name in sessions.ENGINES:
        if shutil.which(name) and subprocess.run([name, "version"], capture_output=True).returncode == 0:
            return name
    pytest.skip("needs podman or docker")


@pytest.fixture
def made(engine: str) -> Iterator["Made"]:
    made = Made(engine)
    yield made
    made.remove()


class Made:
    """Containers and volumes with a session's labels, and which of them are still there."""

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self._volumes: list[str] = []
        self._containers: list[str] = []

    def volume(self, run_id: str = "", generation: int = 1, age_seconds: float = SESSION_SECONDS + 60) -> str:
        name = f"session-test-{uuid4().hex[:12]}"
        self._ask("volume", "create", *_options(run_id, generation, age_seconds), name)
        self._volumes.append(name)
        return name

    def container(self, run_id: str = "", generation: int = 1, age_seconds: float = SESSION_SECONDS + 60) -> str:
        """One that was not started: not every machine that has an engine lets it."""
        self._containers.append(self._ask("create", *_options(run_id, generation, age_seconds), IMAGE).strip())
        return self._containers[-1]

    def has_image(self) -> bool:
        return subprocess.run([self._engine, "image", "inspect", IMAGE], capture_output=True).returncode == 0

    def names(self) -> set[str]:
        volumes = self._ask("volume", "ls", "--quiet").split()
        containers = self._ask("ps", "--all", "--quiet", "--no-trunc").split()
        return {*volumes, *containers} & {*self._volumes, *self._containers}

    def remove(self) -> None:
        there = self.names()
        for name in there.intersection(self._containers):
            self._ask("rm", "--force", name)
        for name in there.intersection(self._volumes):
            self._ask("volume", "rm", name)

    def _ask(self, *arguments: str) -> str:
        return subprocess.run([self._engine, *arguments], capture_output=True, text=True, check=True).stdout


def _options(run_id: str, generation: int, age_seconds: float) -> list[str]:
    labels = {PART: SANDBOX, CREATED: str(time.time() - age_seconds)}
    if run_id:
        labels |= {RUN: run_id, GENERATION: str(generation)}
    return [f"--label={key}={value}" for key, value in labels.items()]


class OwnOnly(Containers):
    """Sees only what the test has made: others on this machine may be at work."""

    def __init__(self, engine: str, names: set[str]) -> None:
        super().__init__([engine])
        self._names = names

    async def find(self) -> list[Leftover]:
        return [leftover for leftover in await super().find() if leftover.name in self._names]


@pytest.mark.slow
async def test_old_volumes_go_that_no_running_run_needs(platform: Platform, engine: str, made: "Made") -> None:
    run = await running_run(platform)
    kept = {made.volume(run.id), made.volume(age_seconds=60)}
    old = {made.volume(new_run_id()), made.volume()}
    assert await swept(platform, OwnOnly(engine, kept | old)) == {"volume": 2}
    assert made.names() == kept


async def test_old_containers_go_that_no_running_run_needs(platform: Platform, engine: str, made: "Made") -> None:
    if not made.has_image():
        pytest.skip(f"needs the image {IMAGE}")
    run = await running_run(platform)
    kept, old = {made.container(run.id)}, {made.container()}
    assert await swept(platform, OwnOnly(engine, kept | old)) == {"container": 1}
    assert made.names() == kept


async def test_an_engine_that_is_not_there_is_reported() -> None:
    with pytest.raises(Unavailable, match="no-such-engine"):
        await sessions.find_engine("no-such-engine")


async def test_an_engine_may_have_options_of_its_own(engine: str) -> None:
    assert await sessions.find_engine(f"{engine} --log-level 'error'") == [engine, "--log-level", "error"]


@pytest.fixture
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """So that no sweep looks at what others have left on this machine."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


async def test_a_controller_removes_what_old_sessions_left_without_redis(
    start_platform: StartPlatform, controllers: Controllers, own_temporary_folder: Path
) -> None:
    platform = await start_platform(
        redis_url="redis://127.0.0.1:1", session_max_seconds=1, lease_seconds=0.9, heartbeat_seconds=0.3
    )
    left = worker_folder(own_temporary_folder)
    controllers.start(platform.settings)
    await wait_until(lambda: not left.exists())


async def test_a_sweep_that_fails_is_followed_by_another(
    start_platform: StartPlatform, own_temporary_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fixed, "SESSION_CHECK_SECONDS", 1.0)
    platform = await start_platform(session_max_seconds=1, lease_seconds=0.3, heartbeat_seconds=0.1)
    left, removed, real = worker_folder(own_temporary_folder), list[tuple[str, int]](), sessions.remove_old_sessions
    answers = iter([Unavailable("the database is away", part="database")])

    async def away_at_first(settings: Settings, runs: Runs) -> Mapping[str, int]:
        if error := next(answers, None):
            raise error
        return await real(settings, runs)

    monkeypatch.setattr(sessions, "remove_old_sessions", away_at_first)
    timer = SweepTimer(platform.settings, platform.store.runs, lambda *counted: removed.append(counted))
    running = asyncio.create_task(timer.run())
    await wait_until(lambda: not left.exists())
    await wait_until(lambda: removed == [("folder", 1)])
    running.cancel()
