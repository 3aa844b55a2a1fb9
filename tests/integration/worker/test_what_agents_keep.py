"""Memory, artifacts and plug-ins, as runs on a real worker use them."""

import json
from typing import Any

import pytest
import yaml

from backplane.artifacts.base import AgentId, Author
from backplane.domain.events import EventType
from backplane.domain.runs import RunStatus
from backplane.settings import fixed
from tests.integration.worker.conftest import StartPlatform
from tests.platform.workers import Platform, worker
from tests.unit.test_plugins import EXAMPLE, install


def step(tool: str, id: str = "", needs: str = "", **arguments: Any) -> dict[str, Any]:
    return {"id": id or tool, "tool": tool, "arguments": arguments, **({"needs": [needs]} if needs else {})}


async def output(platform: Platform, run_id: str, step_id: str) -> str:
    await platform.completed(run_id)
    lines = [
        event["line"] for event in await platform.event_data(run_id, EventType.LOG) if event.get("step") == step_id
    ]
    return "\n".join(lines)


async def test_what_one_run_remembers_the_next_one_recalls(working_platform: Platform) -> None:
    platform = working_platform
    first = await platform.submit(step("remember", text="the port is 5433", tags=["ports"]))
    await platform.completed(first)
    second = await platform.submit(
        step("recall", query="which port?", limit=3),
        step("recall", "again", "recall", query="which port?", tags=["no"]),
    )
    found = json.loads(await output(platform, second, "recall"))
    assert (found["text"], found["tags"]) == ("the port is 5433", ["ports"])
    assert await output(platform, second, "again") == "nothing is remembered of that"


async def test_a_forgotten_memory_is_not_recalled(working_platform: Platform) -> None:
    platform = working_platform
    first = await platform.submit(step("remember", text="a fact"))
    id = (await output(platform, first, "remember")).removeprefix("remembered as ")
    forgetting = {"id": "forget", "tool": "forget", "arguments": {"id": id}}
    second = await platform.submit(forgetting, step("recall", needs="forget", query="a fact"))
    assert await output(platform, second, "forget") == f"forgot {id}"
    assert await output(platform, second, "recall") == "nothing is remembered of that"


async def test_what_one_run_keeps_the_next_one_has_as_it_was_rolled_back(working_platform: Platform) -> None:
    platform = working_platform
    first = await platform.submit(
        step("file_write", path="report.md", content="good\n"),
        step("artifact_write", needs="file_write", path="report.md", from_file="report.md"),
        step("artifact_write", "worse", "artifact_write", path="report.md", content="bad\n"),
    )
    await platform.completed(first)
    artifacts, agent = platform.resources.artifacts, AgentId(platform.user.id, "default")
    assert artifacts is not None
    _, good = await artifacts.log(agent)
    assert good.author == Author(run_id=first, step_id="artifact_write")
    await artifacts.roll_back(agent, good.commit, Author(administrator="ada"))

    second = await platform.submit(
        step("artifact_list"),
        step("artifact_read", path="report.md", to_file="copy.md"),
        step("artifact_read", "printed", path="report.md", start=1, max_bytes=2),
        step("artifact_delete", needs="artifact_read", path="report.md"),
    )
    await platform.completed(second)
    assert (await output(platform, second, "artifact_list")).split() == ["5", "report.md", "1", "artifact"]
    assert await platform.read(second, "copy.md") == b"good\n"
    assert await artifacts.files(agent) == []


async def test_a_quota_fails_the_step_and_says_which(
    start_platform: StartPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fixed, "MEMORY_MAX_CHARS", 10)
    platform = await start_platform(artifacts_max_bytes=10)
    async with worker(platform.settings):
        for wanted, setting in (
            (step("artifact_write", path="a", content="x" * 11), "ARTIFACTS_MAX_BYTES"),
            (step("remember", text="x" * 11), "The text has 11 characters"),
        ):
            run_id = await platform.submit(wanted)
            run = await platform.until(run_id, RunStatus.FAILED)
            assert run.error is not None
            assert (run.error.code, setting in run.error.message) == ("too_large", True)


async def test_tools_that_are_off_are_not_there(start_platform: StartPlatform) -> None:
    platform = await start_platform(artifacts_dir="", memory_dir="", tools_disabled=["file_list"])
    async with worker(platform.settings):
        for tool, reason in (
            ("artifact_list", "there is no tool 'artifact_list'"),
            ("remember", "there is no tool 'remember'"),
            ("file_list", "TOOLS_DISABLED"),
        ):
            run = await platform.until(await platform.submit(step(tool)), RunStatus.FAILED)
            assert run.error is not None
            assert reason in run.error.message


async def test_the_example_of_a_plugin_is_carried_out(
    platform: Platform, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path_factory.mktemp("site-packages")
    install(installed)
    monkeypatch.syspath_prepend(str(installed))
    plan = yaml.safe_load((EXAMPLE / "plan.yaml").read_text())
    async with worker(platform.settings):
        run_id = await platform.submit(*plan["steps"])
        assert await output(platform, run_id, "count") == "1 lines, 3 words, 18 characters"
        few = await platform.submit(plan["steps"][0], step("word_count", "count", "write", path="a.txt", least=4))
        assert (await platform.until(few, RunStatus.FAILED)).error is not None
