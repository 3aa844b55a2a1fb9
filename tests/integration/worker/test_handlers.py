"""Runs that a handler carries out, by real workers: each effect once, whatever happens to its worker."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from backplane.domain.decisions import DecisionStatus
from backplane.domain.events import EventType
from backplane.domain.runs import Run, RunStatus
from backplane.domain.steps import StepStatus
from backplane.settings import Settings, fixed
from tests.integration.worker.conftest import StartPlatform
from tests.platform.workers import LONG_SECONDS, Platform, WorkerProcess, worker
from tests.waiting import wait_until

StartProcess = Callable[..., Awaitable[WorkerProcess]]

FILE = str(Path(__file__).with_name("handlers.py"))


def with_handlers(settings: Settings) -> Settings:
    return settings.model_copy(update={"handlers_file": FILE})


@asynccontextmanager
async def handling(platform: Platform) -> AsyncIterator[None]:
    """A worker in this process that has the handlers."""
    async with worker(with_handlers(platform.settings)):
        yield


class Marks:
    def __init__(self, folder: Path) -> None:
        self.file, self.go = folder / "marks", folder / "go"

    def input(self, **values: Any) -> dict[str, Any]:
        return {"marks": str(self.file), "go": str(self.go), **values}

    @property
    def lines(self) -> list[str]:
        return self.file.read_text().split() if self.file.exists() else []

    async def until(self, *lines: str) -> None:
        await wait_until(lambda: self.lines == list(lines), LONG_SECONDS, f"the marks are {lines}")


@pytest.fixture
def marks(tmp_path: Path) -> Marks:
    return Marks(tmp_path)


def value_of(run: Run) -> Any:
    assert run.result is not None
    return run.result["value"]


async def submit(platform: Platform, name: str, given: Any = None, **values: Any) -> str:
    return await platform.submit(handler=name, input=given, **values)


async def failed(platform: Platform, run_id: str) -> tuple[str, str]:
    """Code and message of a run that fails."""
    run = await platform.until(run_id, RunStatus.FAILED, RunStatus.COMPLETED)
    assert run.status is RunStatus.FAILED, run.result
    assert run.error is not None
    await platform.ends_whole(run_id)
    return run.error.code, run.error.message


# --- without a fault ---


async def test_a_handler_carries_out_its_effects_in_order_and_gives_its_value(platform: Platform, marks: Marks) -> None:
    async with handling(platform):
        run_id = await submit(platform, "marks", marks.input())
        run = await platform.completed(run_id)
    assert value_of(run) == {"done": ["0", "1", "2"], "run": run_id}
    assert marks.lines == ["0", "1", "2"]
    journal = await platform.journal(run_id)
    assert [(step.step_id, step.tool, step.ordinal, step.tries) for step in journal] == [
        ("1.mark-0", "run.step", 1, 1),
        ("2.mark-1", "run.step", 2, 1),
        ("3.mark-2", "run.step", 3, 1),
    ]
    assert await platform.step_statuses(run_id) == [
        (f"{number + 1}.mark-{number}", status) for number in range(3) for status in ("started", "completed")
    ]
    await platform.ends_whole(run_id)


@pytest.mark.slow
async def test_a_handler_that_takes_no_input_is_called_with_its_run_alone(platform: Platform) -> None:
    async with handling(platform):
        assert value_of(await platform.completed(await submit(platform, "no-input"))) == "nothing was needed"


@pytest.mark.slow
async def test_a_tool_of_a_handler_works_on_the_files_of_its_run(platform: Platform) -> None:
    async with handling(platform):
        run_id = await submit(platform, "tools")
        run = await platform.completed(run_id)
        assert await platform.read(run_id, "a.txt") == b"one\n"
    assert value_of(run) == [["a.txt"], "one\ntwo\n", 0]


@pytest.mark.slow
async def test_effects_of_a_gather_give_their_values_in_the_order_of_asking(platform: Platform, marks: Marks) -> None:
    async with handling(platform):
        run = await platform.completed(await submit(platform, "at-once", marks.input()))
    assert value_of(run) == ["0", "1", "2", "3", "4"]
    assert sorted(marks.lines) == ["0", "1", "2", "3", "4"]


@pytest.mark.slow
@pytest.mark.parametrize(("catch", "value"), [(True, "caught command_failed"), (False, None)])
async def test_a_handler_may_catch_the_error_of_an_effect_and_go_on(
    platform: Platform, catch: bool, value: str | None
) -> None:
    async with handling(platform):
        run_id = await submit(platform, "failing-tool", {"catch": catch})
        run = await platform.until(run_id, RunStatus.COMPLETED, RunStatus.FAILED)
    if value is None:
        assert run.error is not None
        assert (run.error.code, run.error.step) == ("command_failed", "1.shell")
    else:
        assert value_of(run) == value


async def test_a_handler_starts_a_run_and_gets_what_it_gave(platform: Platform) -> None:
    async with handling(platform):
        run_id = await submit(platform, "parent", {"children": [{"handler": "no-input"}]})
        run = await platform.until(run_id, RunStatus.COMPLETED, RunStatus.FAILED)
    assert value_of(run) == ["nothing was needed"]
    await platform.ends_whole(run_id)


# --- what goes wrong in the code ---


async def test_code_that_raises_fails_the_run_and_names_its_line(platform: Platform) -> None:
    async with handling(platform):
        code, message = await failed(platform, await submit(platform, "raises"))
    assert code == "handler_failed"
    assert "LookupError: there is no such thing (handlers.py, line " in message
    assert 'in raises: raise LookupError("there is no such thing"))' in message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "given", "code", "words"),
    [
        ("no-json", "step", "result_not_storable", "is a object that is no JSON"),
        ("no-json", "handler", "result_not_storable", "what the handler 'no-json' returned is a object"),
        ("no-json", "large", "result_not_storable", "put it into a file of the run"),
        ("exits", "handler", "handler_failed", "raised SystemExit"),
        ("exits", "step", "function_failed", "SystemExit: 3"),
        ("marks", {"marks": "m", "count": "many"}, "invalid_input", "input.count: Input should be a valid integer"),
        ("not-there", None, "handler_unknown", "has no handler 'not-there' (it has: approved-step, approves"),
    ],
)
async def test_what_no_run_can_end_well_with_is_a_clear_error(
    platform: Platform, name: str, given: Any, code: str, words: str
) -> None:
    async with handling(platform):
        run_id = await submit(platform, name, given)
        run = await platform.until(run_id, RunStatus.FAILED, RunStatus.WAITING)
    assert run.error is not None
    if run.status is RunStatus.WAITING:
        # The function did run to its end, so a person is asked whether it counts.
        assert run.error.code == "step_uncertain"
    else:
        assert run.error.code == code
    assert words in run.error.message


@pytest.mark.slow
async def test_a_handler_that_never_ends_is_ended_by_the_limit_of_its_run(platform: Platform) -> None:
    async with handling(platform):
        code, _ = await failed(platform, await submit(platform, "never-ends", timeout_seconds=1))
    assert code == "run_timeout"


@pytest.mark.slow
async def test_a_cancelled_handler_ends_at_once(platform: Platform) -> None:
    async with handling(platform):
        run_id = await submit(platform, "never-ends")

        async def has_begun() -> bool:
            return bool(await platform.journal(run_id))

        await wait_until(has_begun)
        await platform.submission.cancel(platform.user, run_id)
        await platform.until(run_id, RunStatus.CANCELLED)
    await platform.ends_whole(run_id)


@pytest.mark.slow
async def test_a_handler_has_so_many_effects_and_not_one_more(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fixed, "HANDLER_EFFECTS_MAX", 7)
    async with handling(platform):
        run_id = await submit(platform, "counts-for-ever")
        code, _ = await failed(platform, run_id)
    assert code == "too_many_effects"
    assert [step.status for step in await platform.journal(run_id)] == [StepStatus.COMPLETED] * 7


@pytest.mark.slow
async def test_the_effects_of_a_run_give_so_much_in_all(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed, "HANDLER_RUN_MAX_BYTES", 1_000)
    async with handling(platform):
        run_id = await submit(platform, "grows")
        code, message = await failed(platform, run_id)
    assert (code, "1000 B" in message) == ("too_much_kept", True), message
    assert len(await platform.journal(run_id)) == 11  # a hundred bytes each: ten fit, and one is over the limit


@pytest.mark.slow
async def test_the_log_says_which_effects_the_code_did_not_await(platform: Platform, marks: Marks) -> None:
    async with handling(platform):
        run_id = await submit(platform, "forgets-to-await", marks.input())
        assert value_of(await platform.completed(run_id)) == "over"
    assert marks.lines == ["done"]
    assert "not carried out, since the code did not await them: 2 effects (1, 3)" in await platform.lines(run_id)


# --- a worker is lost ---


@pytest.mark.slow
async def test_after_kill_9_the_code_runs_again_and_each_effect_that_was_done_gives_its_result(
    platform: Platform, start_process: StartProcess, marks: Marks
) -> None:
    first = await start_process(platform, handlers_file=FILE)
    run_id = await submit(platform, "waits-for-go", marks.input())
    await marks.until("first", "second")
    await first.kill()
    marks.go.touch()
    async with handling(platform):
        run = await platform.completed(run_id)
    assert value_of(run) == ["first", "second", "third"]
    assert marks.lines == ["first", "second", "second", "third"]  # the second is safe to repeat, and was cut off
    assert run.generation == 2
    assert [step.tries for step in await platform.journal(run_id)] == [1, 2, 1]
    assert [line for line in await platform.lines(run_id) if line in ("before", "between")] == ["before", "between"]
    await platform.ends_whole(run_id)


@pytest.mark.slow
@pytest.mark.parametrize(("is_done", "lines"), [(True, ["only"]), (False, ["only", "only"])])
async def test_an_effect_that_may_have_happened_and_is_not_safe_to_repeat_asks_a_person(
    platform: Platform, start_process: StartProcess, marks: Marks, is_done: bool, lines: list[str]
) -> None:
    first = await start_process(platform, handlers_file=FILE)
    run_id = await submit(platform, "in-doubt", marks.input())
    await marks.until("only")
    await first.kill()
    marks.go.touch()
    async with handling(platform):
        run = await platform.until(run_id, RunStatus.WAITING)
        assert run.error is not None
        assert (run.error.code, run.error.step) == ("step_uncertain", "1.only")
        await platform.submission.retry(platform.user, run_id, uncertain_step_is_done=is_done)
        run = await platform.completed(run_id)
    assert marks.lines == lines
    assert value_of(run) == (None if is_done else "only")


@pytest.mark.slow
async def test_a_worker_that_drains_hands_its_handler_over_between_two_effects(
    platform: Platform, marks: Marks
) -> None:
    async with handling(platform):
        run_id = await submit(platform, "waits-for-go", marks.input())
        await marks.until("first", "second")
    assert (await platform.run(run_id)).status is RunStatus.QUEUED
    marks.go.touch()
    async with handling(platform):
        assert value_of(await platform.completed(run_id)) == ["first", "second", "third"]
    assert marks.lines == ["first", "second", "second", "third"]


# --- people ---


async def answer(platform: Platform, run_id: str, status: DecisionStatus, given: dict[str, Any]) -> None:
    await platform.until(run_id, RunStatus.WAITING)
    [open_one] = await platform.resources.store.decisions.page(
        platform.user.id, run_id=run_id, status=DecisionStatus.PENDING, limit=5
    )
    await platform.submission.decide(platform.user, run_id, open_one.id, status, given)


async def test_an_approval_lets_the_run_wait_without_a_worker_and_go_on(platform: Platform, marks: Marks) -> None:
    async with handling(platform):
        run_id = await submit(platform, "approves", marks.input())
        run = await platform.until(run_id, RunStatus.WAITING)
        assert run.error is not None
        assert run.error.code == "approval_required"
        await answer(platform, run_id, DecisionStatus.APPROVED, {})
        run = await platform.until(run_id, RunStatus.WAITING)
        await answer(platform, run_id, DecisionStatus.ANSWERED, {"text": "bob"})
        assert value_of(await platform.completed(run_id)) == "sent to bob"
    assert marks.lines == ["before", "sent"]
    await platform.ends_whole(run_id)


@pytest.mark.slow
async def test_a_refused_approval_is_false(platform: Platform, marks: Marks) -> None:
    async with handling(platform):
        run_id = await submit(platform, "approves", marks.input())
        await answer(platform, run_id, DecisionStatus.REJECTED, {"reason": "no"})
        assert value_of(await platform.completed(run_id)) == "not sent"
    assert marks.lines == ["before"]


@pytest.mark.slow
async def test_a_step_that_is_to_be_approved_is_not_begun_before(platform: Platform, marks: Marks) -> None:
    async with handling(platform):
        run_id = await submit(platform, "approved-step", marks.input())
        await platform.until(run_id, RunStatus.WAITING)
        assert marks.lines == []
        await answer(platform, run_id, DecisionStatus.APPROVED, {})
        await platform.completed(run_id)
    assert marks.lines == ["sent"]


@pytest.mark.slow
async def test_what_can_be_done_is_done_before_the_run_waits(platform: Platform, marks: Marks) -> None:
    async with handling(platform):
        run_id = await submit(platform, "gathers-a-question", marks.input())
        await platform.until(run_id, RunStatus.WAITING)
        assert marks.lines == ["other"]
        await answer(platform, run_id, DecisionStatus.APPROVED, {})
        assert value_of(await platform.completed(run_id)) == [True, "other"]
    assert marks.lines == ["other"]


@pytest.mark.slow
async def test_code_that_swallows_its_end_cannot_go_on_behind_the_back_of_a_run_that_waits(
    platform: Platform, marks: Marks
) -> None:
    async with handling(platform):
        run_id = await submit(platform, "swallows-its-end", marks.input())
        await platform.until(run_id, RunStatus.WAITING)
        await answer(platform, run_id, DecisionStatus.APPROVED, {})
        assert value_of(await platform.completed(run_id)) == "went on"
    assert marks.lines == ["swallowed"]


# --- code that changes ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wanted", "difference"),
    [
        ("another x", "effect 2 was '2.second' (run.step, second(/"),
        ("second y", "with other arguments"),
        ("end", ", x)), and the code ended before it"),
    ],
)
async def test_code_that_asks_for_something_else_is_told_the_first_difference_and_goes_on_when_put_right(
    platform: Platform, marks: Marks, wanted: str, difference: str
) -> None:
    async with handling(platform):
        marks.go.write_text("second x")
        run_id = await submit(platform, "other-code", marks.input())
        code, _ = await failed(platform, run_id)
        assert code == "function_failed"

        marks.go.write_text(wanted)
        marks.go.with_name("third").touch()
        await platform.submission.retry(platform.user, run_id, uncertain_step_is_done=None)
        run = await platform.until(run_id, RunStatus.FAILED, RunStatus.COMPLETED)
        assert run.error is not None
        assert (run.error.code, run.error.retryable) == ("journal_diverged", False)
        assert difference in run.error.message

        marks.go.write_text("second x")
        await platform.submission.retry(platform.user, run_id, uncertain_step_is_done=None)
        # The third effect had failed before; a person's retry does it again, though another error came after it.
        run = await platform.until(run_id, RunStatus.FAILED, RunStatus.COMPLETED)
    assert marks.lines == ["first", "x"]


async def test_a_retry_does_the_failed_effect_again_and_those_before_it_not(platform: Platform, marks: Marks) -> None:
    async with handling(platform):
        run_id = await submit(platform, "fails-until", marks.input())
        code, message = await failed(platform, run_id)
        assert code == "function_failed"
        assert "LookupError: go is missing (handlers.py, line " in message
        marks.go.touch()
        await platform.submission.retry(platform.user, run_id, uncertain_step_is_done=None)
        assert value_of(await platform.completed(run_id)) == "there"
    assert marks.lines == ["before"]
    assert [step.tries for step in await platform.journal(run_id)] == [1, 2]


@pytest.mark.slow
async def test_the_log_says_that_the_code_is_another_than_the_run_began_with(platform: Platform, marks: Marks) -> None:
    async with handling(platform):
        run_id = await submit(platform, "fails-until", marks.input())
        await failed(platform, run_id)
    other = marks.file.with_name("handlers.py")
    other.write_text(Path(FILE).read_text() + "\n# changed\n")
    marks.go.touch()
    async with worker(platform.settings.model_copy(update={"handlers_file": str(other)})):
        await platform.submission.retry(platform.user, run_id, uncertain_step_is_done=None)
        await platform.completed(run_id)
    assert any("the code of the handler 'fails-until' has changed" in line for line in await platform.lines(run_id))


# --- progress ---


@pytest.mark.slow
async def test_progress_reaches_those_who_watch_and_is_kept_nowhere(platform: Platform) -> None:
    async with handling(platform):
        run_id = await submit(platform, "progress")
        await platform.completed(run_id)
    assert EventType.PROGRESS not in {event.type for event in await platform.history(run_id)}


@pytest.mark.slow
async def test_a_worker_does_not_start_with_a_file_of_handlers_that_cannot_be_loaded(
    start_platform: StartPlatform, tmp_path: Path
) -> None:
    from worker.tools.plugins import PluginRefused  # noqa: PLC0415

    broken = tmp_path / "broken.py"
    broken.write_text("import nothing_of_this_name\n")
    platform = await start_platform()
    with pytest.raises(PluginRefused, match=r"broken\.py cannot be used: it cannot be loaded \(ModuleNotFoundError"):
        async with worker(platform.settings.model_copy(update={"handlers_file": str(broken)})):
            pass
