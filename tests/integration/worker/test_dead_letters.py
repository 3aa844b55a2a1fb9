"""What the platform gives up on is left to an operator, and goes through when what was wrong is mended."""

from typing import Any

import pytest

from backplane.domain.dead_letters import DeadReason
from backplane.domain.runs import RunError, RunStatus
from tests.integration.worker.conftest import StartPlatform
from tests.integration.worker.tools import Scripted, equip
from tests.platform.workers import Platform, worker
from tests.submitted import shell
from worker.tools.base import ToolContext, ToolResult

SCRIPTED: dict[str, Any] = {"id": "scripted", "tool": "scripted", "repeatable": True}


async def test_a_run_that_lost_three_workers_is_poison_until_it_is_redriven(start_platform: StartPlatform) -> None:
    platform = await start_platform(worker_crash_limit=3)
    run_id = await platform.submit(shell("a", "echo a >> marks"), max_retries=3)
    for crashes in range(3):
        await platform.taken(await platform.claimed(crashes=crashes))
    store = platform.resources.store.dead_letters
    async with worker(platform.settings):
        await platform.until(run_id, RunStatus.FAILED)
        [letter] = await store.page()
        assert (letter.run_id, letter.reason, letter.crashes) == (run_id, DeadReason.POISON, 3)
        [failure] = await store.failures(run_id)
        assert (failure.attempt, failure.error.code) == (1, "worker_lost")
        await platform.submission.redrive(run_id)
        await platform.completed(run_id)
    assert (await platform.read(run_id, "marks")).split() == [b"a"]
    assert await store.count() == 0


async def test_a_fault_of_the_platform_that_stays_is_a_dead_letter_with_the_traceback_of_each_attempt(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    mended = False

    async def act(call: int, context: ToolContext) -> ToolResult:
        if not mended:
            raise RuntimeError(f"call {call} of redis://:hunter2@127.0.0.1")
        return ToolResult(exit_code=0)

    equip(monkeypatch, Scripted(act))
    store = platform.resources.store.dead_letters
    async with worker(platform.settings):
        run_id = await platform.submit(SCRIPTED, max_retries=1)
        await platform.until(run_id, RunStatus.FAILED)
        letter = await store.get(run_id)
        assert (letter.reason, letter.attempts, letter.crashes) == (DeadReason.INTERNAL_ERROR, 2, 0)
        failures = await store.failures(run_id)
        assert [failure.attempt for failure in failures] == [1, 2]
        for number, failure in enumerate(failures, 1):
            assert failure.traceback.splitlines()[-1] == f"RuntimeError: call {number} of redis://:***@127.0.0.1"
        mended = True
        await platform.submission.redrive(run_id)
        await platform.completed(run_id)


async def test_what_might_have_passed_and_did_not_is_a_dead_letter(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act(call: int, context: ToolContext) -> ToolResult:
        return ToolResult(1, error=RunError("busy", "the other side is busy", retryable=True))

    equip(monkeypatch, Scripted(act))
    async with worker(platform.settings):
        run_id = await platform.submit(SCRIPTED, max_retries=1)
        await platform.until(run_id, RunStatus.FAILED)
    store = platform.resources.store.dead_letters
    letter = await store.get(run_id)
    assert (letter.reason, letter.attempts) == (DeadReason.RETRIES_EXHAUSTED, 2)
    assert [
        (failure.error.code, failure.error.step, failure.traceback) for failure in await store.failures(run_id)
    ] == [("busy", "scripted", "")] * 2


@pytest.mark.parametrize(
    ("script", "seconds", "code"), [("exit 3", None, "command_failed"), ("sleep 600", 1, "run_timeout")]
)
async def test_what_its_user_has_to_mend_is_noted_and_no_dead_letter(
    working_platform: Platform, script: str, seconds: int | None, code: str
) -> None:
    platform = working_platform
    run_id = await platform.submit(shell("a", script), timeout_seconds=seconds)
    await platform.until(run_id, RunStatus.FAILED)
    [failure] = await platform.resources.store.dead_letters.failures(run_id)
    assert (failure.attempt, failure.error.code) == (1, code)
    assert await platform.resources.store.dead_letters.count() == 0


async def test_a_redriven_run_that_fails_again_is_a_dead_letter_again_with_all_its_failures(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act(call: int, context: ToolContext) -> ToolResult:
        raise RuntimeError("still broken")

    equip(monkeypatch, Scripted(act))
    store = platform.resources.store.dead_letters
    async with worker(platform.settings):
        run_id = await platform.submit(SCRIPTED, max_retries=0)
        for _ in range(2):
            await platform.until(run_id, RunStatus.FAILED)
            assert (await store.get(run_id)).attempts == 1
            if len(await store.failures(run_id)) == 1:
                await platform.submission.redrive(run_id)
    assert [failure.attempt for failure in await store.failures(run_id)] == [1, 1]
