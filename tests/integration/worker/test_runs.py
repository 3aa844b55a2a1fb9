"""A worker carries runs out: from the queue to their end, several at once, the most urgent first."""

import asyncio

import pytest

from backplane.domain.events import EventType
from backplane.domain.runs import RunStatus
from backplane.domain.steps import StepStatus
from backplane.domain.users import Tier
from tests.event_data import data_of
from tests.integration.worker.conftest import StartPlatform
from tests.integration.worker.tools import BlockingTool, equip
from tests.platform.workers import UNTIL_GO, Platform, worker
from tests.queues import known
from tests.submitted import shell, write
from tests.waiting import wait_until
from worker.steps.output import RESULT_FILES


async def test_a_run_goes_from_the_queue_to_its_end(start_platform: StartPlatform, database_url: str) -> None:
    platform = await start_platform(database_url=database_url)
    async with worker(platform.settings):
        run_id = await platform.submit(
            write("write", "words.txt", "one two\n", title="Write"),
            shell("count", "wc -w words.txt > count; cat count"),
        )
        run = await platform.completed(run_id)
    assert (run.generation, run.attempt, run.error) == (1, 1, None)
    assert run.queued_at is not None
    assert run.started_at is not None
    assert run.finished_at is not None
    assert run.created_at <= run.queued_at <= run.started_at <= run.finished_at
    assert await platform.read(run_id, "count") == b"2 words.txt\n"
    await platform.ends_whole(run_id)


async def test_the_events_of_a_run_describe_all_of_it_in_order(working_platform: Platform) -> None:
    platform = working_platform
    run_id = await platform.submit(shell("one", "echo 1; echo 2"), shell("two", "echo 3"))
    await platform.completed(run_id)
    ended = [
        (event.type.value, data.get("step"), data.get("status") or data.get("line"))
        for event in await platform.history(run_id)
        if (data := data_of(event)) is not None
    ]
    assert ended == [
        ("status", None, "created"),
        ("status", None, "queued"),
        ("status", None, "running"),
        ("plan", None, None),
        ("step", "one", "started"),
        ("log", "one", "1"),
        ("log", "one", "2"),
        ("step", "one", "completed"),
        ("step", "two", "started"),
        ("log", "two", "3"),
        ("step", "two", "completed"),
        ("status", None, "completed"),
        ("end", None, "completed"),
    ]


async def test_watchers_and_the_database_get_the_same_events(working_platform: Platform) -> None:
    platform = working_platform
    run_id = await platform.submit(shell("one", UNTIL_GO), shell("two", "echo 2"))
    await platform.until_begun(run_id)
    async with platform.published(run_id) as published:
        await platform.let_go(run_id)
        await platform.completed(run_id)
        await wait_until(lambda: published and published[-1].type is EventType.END)
        assert published == (await platform.history(run_id))[-len(published) :]


async def test_the_journal_has_the_result_of_each_step(working_platform: Platform) -> None:
    platform = working_platform
    run_id = await platform.submit(shell("one", "echo hello > a; echo out"), write("two", "b"))
    await platform.completed(run_id)
    one, two = await platform.journal(run_id)
    assert one.result is not None
    assert (one.status, one.tries, one.result["exit_code"]) == (StepStatus.COMPLETED, 1, 0)
    assert (one.result["output"], one.result["files_changed"]) == ("out\n", ["a"])
    assert one.started_at is not None
    assert one.finished_at is not None
    assert (two.status, two.position) == (StepStatus.COMPLETED, 1)


@pytest.mark.parametrize(("files", "left_out"), [(RESULT_FILES, None), (RESULT_FILES + 3, 3)])
async def test_a_step_names_so_many_files_and_says_how_many_more_it_changed(
    working_platform: Platform, files: int, left_out: int | None
) -> None:
    run_id = await working_platform.submit(shell("one", f"seq -f f%g {files} | xargs touch"))
    view = await working_platform.completed(run_id)
    [one] = await working_platform.journal(run_id)
    ended = (await working_platform.event_data(run_id, EventType.STEP))[-1]
    for said, name in ((one.result, "files_changed"), (ended, "files_changed"), (view.result, "files")):
        assert said is not None
        assert (len(said[name]), said.get("files_left_out")) == (RESULT_FILES, left_out)


async def test_a_runbook_is_carried_out_too(working_platform: Platform) -> None:
    platform = working_platform
    run_id = await platform.submit(prompt="# Say it\n```sh\necho said > out.txt\n```\n")
    await platform.completed(run_id)
    assert await platform.read(run_id, "out.txt") == b"said\n"
    assert (await platform.event_data(run_id, EventType.PLAN))[0]["steps"] == [
        {"id": "step-1", "title": "Say it", "tool": "shell"}
    ]


async def test_a_prompt_that_no_planner_understands_fails_at_once_and_says_what_to_write(
    working_platform: Platform,
) -> None:
    platform = working_platform
    run_id = await platform.submit(prompt="Please count the words.", max_retries=3)
    run = await platform.until(run_id, RunStatus.FAILED)
    assert run.error is not None
    assert (run.error.code, run.attempt) == ("prompt_not_understood", 1)
    assert "give a plan with the run" in run.error.message
    await platform.ends_whole(run_id)


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        ({"id": "a", "tool": "teleport"}, "plan.steps.1.tool: there is no tool 'teleport'"),
        ({"id": "a", "tool": "shell", "arguments": {"scirpt": "true"}}, "plan.steps.1.arguments.sc"),
        ({"id": "a", "tool": "file_read", "arguments": {"path": "../x"}}, "plan.steps.1.arguments.path"),
    ],
)
async def test_a_plan_that_cannot_be_carried_out_fails_before_its_first_step(
    working_platform: Platform, step: dict[str, object], sentence: str
) -> None:
    platform = working_platform
    run_id = await platform.submit(write("first", "a.txt"), step)
    run = await platform.until(run_id, RunStatus.FAILED)
    assert run.error is not None
    assert run.error.code == "invalid_plan"
    assert sentence in run.error.message
    assert await platform.step_statuses(run_id) == []
    assert await platform.resources.workspaces.workspace(platform.user.id, run_id).list() == []


async def test_a_worker_holds_as_many_runs_at_once_as_it_has_slots_and_no_more(
    start_platform: StartPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    equip(monkeypatch, tool := BlockingTool())
    platform = await start_platform(worker_concurrency=3)
    run_ids = [await platform.submit({"id": "hold", "tool": "hold"}) for _ in range(5)]
    async with worker(platform.settings):
        await wait_until(lambda: tool.blocked == 3)
        statistics = await platform.resources.queue.statistics()
        assert (statistics.running, sum(statistics.queued.values()), statistics.slots) == (3, 2, 3)
        tool.go.set()
        await asyncio.gather(*(platform.completed(run_id) for run_id in run_ids))
    assert tool.most == 3


async def test_more_urgent_runs_go_first_and_among_equals_the_older(start_platform: StartPlatform) -> None:
    platform = await start_platform(worker_concurrency=1)
    users = {
        tier: (await platform.resources.store.users.create_token(tier, tier))[0].user
        for tier in (Tier.FREE, Tier.STANDARD, Tier.BETA, Tier.ADMIN)
    }
    submitted = [
        (tier, await platform.submit(write("a", "a"), user=users[tier]))
        for tier in (Tier.FREE, Tier.STANDARD, Tier.ADMIN, Tier.BETA, Tier.STANDARD, Tier.ADMIN)
    ]
    store = platform.resources.store
    async with worker(platform.settings):

        async def all_over() -> bool:
            return not await store.runs.unfinished()

        await wait_until(all_over)
    found = [await store.runs.find(run_id) for _, run_id in submitted]
    carried_out = [run.id for run in sorted(filter(None, found), key=lambda run: str(run.started_at))]
    urgent = sorted(submitted, key=lambda one: -users[one[0]].priority)
    assert carried_out == [run_id for _, run_id in urgent]


async def test_output_without_end_is_kept_up_to_its_limit_with_a_note_of_what_was_cut(
    start_platform: StartPlatform,
) -> None:
    platform = await start_platform(step_output_max_bytes=64 * 1024, step_result_max_bytes=1024)
    async with worker(platform.settings):
        run_id = await platform.submit(shell("chatty", "(yes || true) | head -c 4000000"), shell("after", "echo after"))
        await platform.completed(run_id)
    lines = await platform.lines(run_id)
    assert 100 < lines.count("y") <= 1024
    assert "not shown; the limit is STEP_OUTPUT_MAX_BYTES" in lines[lines.count("y")]
    assert "is in .output/chatty.log" in lines[lines.count("y") + 1]
    assert lines[-1] == "after"
    assert await platform.read(run_id, ".output/chatty.log") == b"y\n" * 2_000_000
    [chatty, _] = await platform.journal(run_id)
    assert chatty.result is not None
    assert len(chatty.result["output"]) < 2048
    await platform.ends_whole(run_id)


async def test_a_run_that_is_over_leaves_no_lease_in_redis_and_no_files_on_the_worker(
    working_platform: Platform,
) -> None:
    platform = working_platform
    run_id = await platform.submit(shell("a", "echo a > a"))
    await platform.completed(run_id)

    async def is_given_up() -> bool:
        return (await platform.resources.queue.statistics()).running == 0

    await wait_until(is_given_up)
    await wait_until(lambda: not platform.checkouts(run_id))
    assert await known(platform.resources.queue, [run_id]) == [False]


async def test_a_live_worker_publishes_its_tools_under_the_id_by_which_the_queue_knows_it(platform: Platform) -> None:
    queue, catalogue = platform.resources.queue, platform.resources.tool_catalogue

    async def is_known() -> bool:
        return bool(await queue.worker_ids()) and await queue.worker_ids() == await catalogue.publishers()

    async with worker(platform.settings):
        await wait_until(is_known)
