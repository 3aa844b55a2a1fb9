"""What a step writes, when there is too much of it: what is published, and the whole as a file of the run."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backplane.domain.events import EventType
from backplane.errors import Superseded, Unavailable
from backplane.process.retrying import WaitRules
from backplane.workspace.base import Workspace
from backplane.workspace.local import LocalWorkspaceStore
from backplane.workspace.quota import Quota
from worker.files.paths import OUTPUT_FOLDER
from worker.files.retrying import RetryingWorkspace
from worker.run.interruption import Cause, Interruption
from worker.steps.output import (
    MEMORY_BYTES,
    RESULT_FILES,
    RESULT_FILES_BYTES,
    OutputLimits,
    StepOutput,
    TokenBucket,
    first_paths,
)

MIB = 1024 * 1024
QUOTA = Quota(max_bytes=100_000_000, max_files=100, max_depth=8)
FILE = f"{OUTPUT_FOLDER}/a.log"
LIMITS = OutputLimits(
    events=1000, result=100, line=80, file=64 * MIB, file_seconds=30.0, lines_per_second=1000, lines_burst=10_000
)


@pytest.fixture
async def workspace(tmp_path: Path) -> AsyncIterator[Workspace]:
    store = LocalWorkspaceStore(tmp_path / "workspaces")
    await store.prepare()
    yield store.workspace("user", "run")
    await store.close()


@pytest.fixture
def said() -> list[dict[str, Any]]:
    """The data of the events."""
    return []


@pytest.fixture
def make_output(said: list[dict[str, Any]]) -> Callable[..., StepOutput]:
    def make(limits: OutputLimits = LIMITS, rate: int = 0, burst: int = 1) -> StepOutput:
        def emit(type: EventType, data: dict[str, Any]) -> None:
            assert type is EventType.LOG
            said.append(data)

        return StepOutput("a", limits, TokenBucket(rate, burst, 0.0), emit)

    return make


@pytest.mark.parametrize(
    ("paths", "named"),
    [
        (["a"] * RESULT_FILES, RESULT_FILES),
        (["a"] * (RESULT_FILES + 1), RESULT_FILES),
        (["é" * 512] * (RESULT_FILES_BYTES // 1024), RESULT_FILES_BYTES // 1024),
        (["é" * 512] * (RESULT_FILES_BYTES // 1024) + ["a"], RESULT_FILES_BYTES // 1024),
    ],
)
def test_a_result_names_so_many_files_and_bytes_of_their_paths(paths: list[str], named: int) -> None:
    assert first_paths(paths) == paths[:named]


MakeOutput = Callable[..., StepOutput]
Said = list[dict[str, Any]]


def not_counted(direction: str, size: int) -> None: ...


async def read(workspace: Workspace, path: str = FILE) -> bytes:
    return b"".join([chunk async for chunk in workspace.read(path)])


async def stored(output: StepOutput, workspace: Workspace, quota: Quota = QUOTA) -> None:
    await output.store(workspace, quota, Interruption())
    output.discard()


def test_a_step_whose_lines_were_all_published_is_complete(make_output: MakeOutput, said: Said) -> None:
    output = make_output()
    output.write(b"one\ntwo\n")
    assert output.finish() == "one\ntwo\n"
    assert not output.is_incomplete
    assert said == [{"line": "one", "step": "a"}, {"line": "two", "step": "a"}]
    output.discard()


@pytest.mark.parametrize("size", [5000, MEMORY_BYTES - 1, MEMORY_BYTES + 1, 3 * MEMORY_BYTES])
async def test_the_whole_is_a_file_when_lines_were_dropped(
    make_output: MakeOutput, workspace: Workspace, said: Said, size: int
) -> None:
    data = (b"0123456789\n" * (size // 11 + 1))[:size]
    output = make_output()
    for start in range(0, size, 65_536):
        output.write(data[start : start + 65_536])
    output.finish()
    assert output.is_incomplete
    await stored(output, workspace)
    assert await read(workspace) == data
    assert said[-2]["dropped_lines"] > 0
    assert (said[-1]["file"], said[-1]["level"], said[-1]["step"]) == (FILE, "warning", "a")


async def test_lines_over_the_runs_rate_are_in_the_file(
    make_output: MakeOutput, workspace: Workspace, said: Said
) -> None:
    output = make_output(rate=1, burst=3)
    output.write(b"x\n" * 8)
    output.finish()
    await stored(output, workspace)
    assert sum(data["line"] == "x" for data in said) < 8
    assert await read(workspace) == b"x\n" * 8


async def test_the_file_has_a_limit_and_says_where_it_ends(
    make_output: MakeOutput, workspace: Workspace, said: Said
) -> None:
    output = make_output(replace(LIMITS, file=3000))
    output.write(b"x" * 2999)
    output.write(b"yz" * 600)
    output.finish()
    await stored(output, workspace)
    content = await read(workspace)
    assert content.startswith(b"x" * 2999 + b"y\n\xe2\x80\xa6 1.2 KiB more left out")
    assert content.endswith(b"the limit is STEP_OUTPUT_FILE_MAX_BYTES\n")
    assert "1.2 KiB more are over STEP_OUTPUT_FILE_MAX_BYTES" in said[-1]["line"]


async def test_a_workspace_without_room_for_the_file_is_reported_and_nothing_else(
    make_output: MakeOutput, workspace: Workspace, said: Said
) -> None:
    output = make_output()
    output.write(b"x\n" * 5000)
    output.finish()
    await stored(output, workspace, Quota(max_bytes=9_999, max_files=100, max_depth=8))
    assert "could not be kept" in said[-1]["line"]
    assert "WORKSPACE_MAX_BYTES" in said[-1]["line"]
    assert await workspace.list() == []


async def test_a_store_that_is_away_is_waited_for_and_then_reported(
    make_output: MakeOutput, workspace: Workspace, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(prefix: str = "") -> list[Any]:
        raise Unavailable("the store is away", part="workspace")

    monkeypatch.setattr(workspace, "list", away)
    tries: list[Unavailable] = []

    async def still_ours() -> None: ...

    patient = RetryingWorkspace(workspace, WaitRules(lambda error, pause: tries.append(error)), still_ours, not_counted)
    output = make_output(replace(LIMITS, file_seconds=0.3))
    output.write(b"x\n" * 5000)
    output.finish()
    await stored(output, patient)
    assert tries
    assert "longer than 0.3 s" in said[-1]["line"]


async def test_a_run_that_is_interrupted_does_not_wait_for_the_file(
    make_output: MakeOutput, workspace: Workspace, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = asyncio.Event()

    async def hangs(path: str, source: Path) -> Any:
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(workspace, "upload", hangs)
    interruption = Interruption()
    output = make_output()
    output.write(b"x\n" * 5000)
    output.finish()
    storing = asyncio.create_task(output.store(workspace, QUOTA, interruption))
    await begun.wait()
    interruption.set(Cause.CANCELLED)
    await storing
    output.discard()
    assert "cancelled" in said[-1]["line"]


async def test_nothing_is_stored_in_a_run_that_another_worker_has(
    make_output: MakeOutput, workspace: Workspace
) -> None:
    async def lost() -> None:
        raise Superseded("another worker has the run")

    output = make_output()
    output.write(b"x\n" * 5000)
    output.finish()
    patient = RetryingWorkspace(workspace, WaitRules(lambda error, pause: None), lost, not_counted)
    with pytest.raises(Superseded):
        await output.store(patient, QUOTA, Interruption())
    output.discard()
    assert await workspace.list() == []


async def test_a_disk_that_is_full_costs_the_file_and_not_the_lines(
    make_output: MakeOutput, workspace: Workspace, said: Said, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "is not there"))
    output = make_output(replace(LIMITS, events=100_000_000), rate=1, burst=10)
    output.write(b"x\n" * (MEMORY_BYTES // 2 + 1))
    output.write(b"end\n")
    assert output.finish().endswith("end\n")
    await stored(output, workspace)
    assert sum(data["line"] == "x" for data in said) >= 10
    assert "disk does not take part" in said[-1]["line"]


async def test_a_step_that_begins_anew_has_the_output_of_its_last_try(
    make_output: MakeOutput, workspace: Workspace
) -> None:
    output = make_output()
    output.write(b"old\n" * 5000)
    output.restart()
    output.write(b"new\n" * 5000)
    assert "old" not in output.finish()
    await stored(output, workspace)
    assert await read(workspace) == b"new\n" * 5000


def test_nothing_is_left_on_the_disk_of_the_worker(
    make_output: MakeOutput, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    output = make_output()
    output.write(b"x" * (MEMORY_BYTES + 1))
    assert list(tmp_path.iterdir()) == []
    output.discard()
