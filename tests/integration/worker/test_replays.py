"""A replay shows what its source did: nothing is carried out unless that is asked for."""

from pathlib import Path
from typing import Any

import pytest

from backplane.domain.runs import Run, RunStatus
from tests.attack.outside import RETRY, ended, outside, post, posts, record, status
from tests.integration.agent.conftest import StartWithModels, asks_for, models, says, start_with_models
from tests.integration.tools.conftest import site
from tests.integration.tools.site import Site
from tests.integration.worker.conftest import StartPlatform
from tests.integration.worker.test_derived_runs import files
from tests.integration.worker.tools import Scripted, equip
from tests.platform.workers import BEGUN, Platform, worker
from tests.scripted_models import ScriptedModels
from tests.submitted import shell, write
from worker.tools.base import ToolContext, ToolResult

__all__ = ["models", "site", "start_with_models"]


CALCULATOR = Path(__file__).parents[1] / "mcp" / "calculator.py"
CALCULATORS = {"calc": {"command": ["python3", "-c", CALCULATOR.read_text()]}}


async def replayed(platform: Platform, run_id: str, *, execute: bool = False) -> Run:
    made = await platform.submission.replay(platform.user, run_id, None, execute=execute)
    return await ended(platform, made.id)


async def outcomes(platform: Platform, run_id: str) -> list[dict[str, Any]]:
    """Of each step what a replay repeats: all but times."""
    kept = ("exit_code", "output", "output_cut", "files_changed")
    return [
        {"step": step.step_id, "status": step.status, **{name: (step.result or {}).get(name) for name in kept}}
        for step in await platform.journal(run_id)
    ]


async def test_a_replay_has_the_results_and_the_files_of_its_source_and_carries_nothing_out(
    start_platform: StartPlatform, site: Site
) -> None:
    """Also of what is other each time, what reaches outside, what deletes, and what fails in the end."""
    site.says("/pay", b"paid\n")
    platform = await start_platform(**outside(site))
    run_id = await platform.submit(
        write("file", "a.txt", "1\n"),
        shell("random", f"echo {BEGUN} $RANDOM$RANDOM$RANDOM | tee b.txt; rm a.txt; echo mine > own.txt"),
        post(site),
        shell("modes", "mkdir empty; chmod 755 b.txt; ln -s b.txt link"),
        shell("fails", "cat b.txt; exit 7", retry=RETRY),
        shell("never", "true"),
    )
    async with worker(platform.settings):
        source = await ended(platform, run_id)
        again = await replayed(platform, run_id)
    assert (posts(site), source.status, again.status) == (1, RunStatus.FAILED, RunStatus.FAILED)
    assert again.error is not None
    assert source.error is not None
    assert (again.error.code, again.error.step) == (source.error.code, source.error.step)
    assert await outcomes(platform, again.id) == await outcomes(platform, run_id)
    assert await files(platform, again.id) == await files(platform, run_id)
    noted = (await record(platform, run_id, "modes")).attributes
    assert noted is not None
    assert (await record(platform, again.id, "modes")).attributes == noted
    assert await platform.lines(again.id) != []
    assert (await record(platform, again.id, "fails")).tries == 1
    assert again.origin == {"kind": "replay", "run_id": run_id, "execute": False}
    await platform.ends_whole(again.id)


async def test_a_replay_carries_all_out_again_where_that_is_asked_for(
    start_platform: StartPlatform, site: Site
) -> None:
    site.says("/pay", b"paid\n")
    platform = await start_platform(**outside(site))
    async with worker(platform.settings):
        run_id = await platform.submit(shell("random", "echo $RANDOM$RANDOM$RANDOM"), post(site))
        await platform.completed(run_id)
        again = await replayed(platform, run_id, execute=True)
    assert (posts(site), again.status) == (2, RunStatus.COMPLETED)
    first, second = await outcomes(platform, run_id), await outcomes(platform, again.id)
    assert first[0]["output"] != second[0]["output"]


async def test_a_step_of_which_there_is_no_result_says_so_and_is_not_carried_out(
    start_platform: StartPlatform,
) -> None:
    """The source was cancelled before it."""
    platform = await start_platform()
    run_id = await platform.submit(shell("first", "echo first"), shell("asks", "touch done", approval=True))
    async with worker(platform.settings):
        await platform.until(run_id, RunStatus.WAITING)
        await platform.submission.cancel(platform.user, run_id)
        await platform.until(run_id, RunStatus.CANCELLED)
        again = await replayed(platform, run_id)
    assert again.status is RunStatus.FAILED
    assert again.error is not None
    assert again.error.code == "not_recorded"
    assert "execute" in again.error.message
    assert await files(platform, again.id) == {}


async def test_a_step_that_a_person_took_as_done_is_done_in_a_replay(start_platform: StartPlatform, site: Site) -> None:
    site.pages["/pay"] = status("500 Internal Server Error")
    platform = await start_platform(**outside(site))
    async with worker(platform.settings):
        run_id = await platform.submit(post(site))
        await ended(platform, run_id)
        await platform.submission.retry(platform.user, run_id, uncertain_step_is_done=True)
        await platform.completed(run_id)
        again = await replayed(platform, run_id)
    assert (posts(site), again.status) == (1, RunStatus.COMPLETED)


async def test_an_agent_goes_the_same_way_over_recorded_results(
    start_with_models: StartWithModels, models: ScriptedModels, site: Site
) -> None:
    site.says("/pay", b"paid\n")
    models.script(
        asks_for(("shell", {"script": "echo $RANDOM$RANDOM > a.txt; cat a.txt"})),
        asks_for(("http_request", post(site)["arguments"])),
        says("Paid."),
    )
    platform: Platform = await start_with_models(**outside(site))
    agent = {"id": "agent", "tool": "agent", "arguments": {"goal": "Pay 10.", "tools": ["shell", "http_request"]}}
    run_id = await platform.submit(agent)
    await platform.completed(run_id)
    again = await replayed(platform, run_id)
    assert (posts(site), again.status, len(models.asked)) == (1, RunStatus.COMPLETED, 3)
    assert await outcomes(platform, again.id) == await outcomes(platform, run_id)
    assert await files(platform, again.id) == await files(platform, run_id)


@pytest.mark.slow  # a replay, and the tools of a run's servers, are each shown by a shorter one
@pytest.mark.parametrize("names", [None, ["calc__add", "calc__bare.name"]])
async def test_a_replay_offers_a_model_the_tools_of_mcp_servers_again_without_asking_them(
    start_with_models: StartWithModels, models: ScriptedModels, names: list[str] | None
) -> None:
    """Also a replay of the replay."""
    models.script(
        asks_for(("calc__add", {"a": "two", "b": 40})),
        asks_for(("calc__add", {"a": 2, "b": 40})),
        says("42."),
    )
    platform: Platform = await start_with_models(mcp_servers=CALCULATORS, working=False)
    tools = {} if names is None else {"tools": names}
    run_id = await platform.submit(
        {"id": "agent", "tool": "agent", "arguments": {"goal": "Add.", **tools}}, mcp_servers=["calc"]
    )
    async with worker(platform.settings):
        await platform.completed(run_id)
    async with worker(platform.settings.model_copy(update={"mcp_servers": {}})):
        first = await replayed(platform, run_id)
        second = await replayed(platform, first.id)
    assert (first.error, second.error, len(models.asked)) == (None, None, 3)
    assert await outcomes(platform, second.id) == await outcomes(platform, run_id)


async def test_a_replay_needs_no_tool_that_its_source_had(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plug-in that was taken away since, or the tool of an MCP server."""

    async def act(call: int, context: ToolContext) -> ToolResult:
        context.output(b"the plug-in was here\n")
        return ToolResult()

    with monkeypatch.context() as installed:
        equip(installed, tool := Scripted(act))
        async with worker(platform.settings):
            run_id = await platform.submit({"id": "a", "tool": "scripted"})
            await platform.completed(run_id)
    async with worker(platform.settings):
        again = await replayed(platform, run_id)
    assert (tool.calls, again.status) == (1, RunStatus.COMPLETED)
    assert await platform.lines(again.id) == [f"replays run {run_id}", "the plug-in was here"]
