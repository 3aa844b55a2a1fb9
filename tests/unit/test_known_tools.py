"""A plan is refused by what workers have published, for what none of them could carry out, and for nothing else."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from app.known_tools import KnownTools
from backplane.errors import Fault, InvalidPlan, Unavailable
from backplane.net.egress import OutsidePolicy
from backplane.tool_catalogue.base import PublishedTool, ToolCatalogue, ToolSet
from worker.tools.agent import AgentArguments
from worker.tools.base import Tool
from worker.tools.browser import Browser
from worker.tools.http_fetch import OutsideLimits, http_tools
from worker.tools.publication import tool_set
from worker.tools.registry import ToolRegistry, builtin_tools

POLICY = OutsidePolicy(["*"])
TOOLS: list[Tool] = [
    *http_tools(POLICY, OutsideLimits(max_bytes=1, timeout_seconds=1, redirects=1)),
    Browser(POLICY, python="", executable="", max_bytes=1, timeout_seconds=1),
]
REGISTRY = builtin_tools().with_tools(TOOLS)
AGENT = PublishedTool("agent", "Thinks.", AgentArguments.model_json_schema(), "low", True, "", ("goal", "system"), ())
WORKER = tool_set(REGISTRY, has_model=False)
WITH_AGENT = replace(WORKER, tools=(*(WORKER.tools or ()), AGENT))
MCP: dict[str, dict[str, Any]] = {
    "calc": {"command": ["calc"]},
    "search": {"url": "https://search.example", "tools": ["find"]},
    "odd": {"url": "https://odd.example", "tools": ["repo/search"]},
}


class Published(ToolCatalogue):
    """What a test says that live workers have published."""

    def __init__(self, *sets: ToolSet) -> None:
        self.sets = sets
        self.is_away = False
        self.live = frozenset(("worker-1",))
        self.asked = 0

    async def publish(self, tools: ToolSet, *, worker_id: str, seconds: float) -> None:
        raise NotImplementedError

    async def published(self) -> Sequence[tuple[str, str]]:
        self.asked += 1
        if self.is_away:
            raise Unavailable("Redis is away", part="redis")
        return [tools.encoded() for tools in self.sets]

    async def publishers(self) -> frozenset[str]:
        return frozenset(("worker-1", "gone"))

    async def worker_ids(self) -> frozenset[str]:
        return self.live


def known(*sets: ToolSet, disabled: Sequence[str] = ()) -> KnownTools:
    catalogue = Published(*sets)
    return KnownTools(catalogue, catalogue.worker_ids, MCP, disabled)


async def faults(tools: KnownTools, *steps: dict[str, Any], mcp_servers: Sequence[str] | None = ()) -> dict[str, str]:
    """Messages by their fields, which they begin with."""
    plan = {"steps": [{"id": f"s{number}", **step} for number, step in enumerate(steps)]}
    found: Sequence[Fault] = ()
    try:
        await tools.parse(plan, mcp_servers)
    except InvalidPlan as error:
        found = error.faults
    assert all(fault.message.startswith(f"{fault.field}: ") for fault in found)
    return {str(fault.field).removeprefix("plan.steps."): fault.message for fault in found}


def step(tool: str, **arguments: Any) -> dict[str, Any]:
    return {"tool": tool, "arguments": arguments}


OPEN = {"do": "open", "url": "https://a.example"}
RIGHT = {
    "a script": step("shell", script="true", environment={"A": "1"}),
    "a reference where a value may stand": step("file_write", path="${steps.s1.output}", content="x"),
    "a reference in place of a choice": step("http_fetch", url="https://a.example", method="${steps.s1.output}"),
    "a reference in a path out of the workspace": step("file_read", path="../${steps.s1.output}"),
    "None where it may be": step("file_list", prefix=None),
    "a folder as people write it": step("search_files", pattern="x", folder="./src/"),
    "the folder of all files": step("file_list", prefix="."),
    "a file with a dot before it": step("file_read", path="./a.txt"),
    "actions of a browser": step("browser", actions=[OPEN, {"do": "text"}]),
}


@pytest.mark.parametrize("right", RIGHT.values(), ids=RIGHT.keys())
async def test_a_plan_that_a_worker_would_take_is_taken(right: dict[str, Any]) -> None:
    assert await faults(known(WITH_AGENT), right, step("shell", script="true")) == {}


WRONG = {
    "a tool that is misspelt": (step("shel"), "tool", "there is no tool 'shel'; did you mean 'shell'?"),
    "a tool that is none": (step("teleport"), "tool", "there is no tool 'teleport'; there are shell, python"),
    "no script": (step("shell"), "arguments.script", "it is missing; expected: string (at least 1 characters)"),
    "a misspelt argument": (
        step("shell", script="true", enviroment={}),
        "arguments.enviroment",
        "the tool shell does not take this; it takes script, environment; did you mean 'environment'?",
    ),
    "a number as a script": (step("shell", script=7), "arguments.script", "expected: string"),
    "an empty script": (step("shell", script=""), "arguments.script", "expected: string (at least 1 characters)"),
    "a number in the environment": (
        step("shell", script="true", environment={"PORT": 80}),
        "arguments.environment.PORT",
        "expected: string",
    ),
    "a list as the environment": (step("shell", script="true", environment=["A"]), "arguments.environment", "object"),
    "an item of a list": (step("python", code="1", args=["a", 1]), "arguments.args.1", "expected: string"),
    "too small a number": (step("file_read", path="a", start=-1), "arguments.start", "integer (at least 0)"),
    "a text in place of a number": (step("file_read", path="a", max_bytes="9"), "arguments.max_bytes", "integer"),
    "another method": (step("http_fetch", url="https://a.example", method="POST"), "arguments.method", "'GET', 'HEAD'"),
    "a text or none": (step("file_list", prefix=3), "arguments.prefix", "expected: string or null"),
    "a path out of the workspace": (step("file_read", path="../a"), "arguments.path", ".."),
    "an absolute path": (step("file_write", path="/a", content=""), "arguments.path", "absolute"),
    "an absolute path or none": (step("http_fetch", url="https://a", save_as="/a"), "arguments.save_as", "absolute"),
    "an action that is none": (step("browser", actions=[{"do": "fly"}]), "arguments.actions.0", "'open'"),
    "an action without its url": (
        step("browser", actions=[OPEN, {"do": "open"}]),
        "arguments.actions.1.url",
        "missing",
    ),
    "a reference in a script": (step("shell", script="${steps.s1.output}"), "arguments.script", "carried out here"),
    "a reference in a goal": (step("agent", goal="${steps.s1.output}"), "arguments.goal", "carried out here"),
    "a reference in a key": (
        step("shell", script="1", environment={"${steps.s1.output}": "1"}),
        "arguments",
        "only values may",
    ),
    "a tool of an agent": (
        step("agent", goal="x", tools=["shell", "serch_files"]),
        "arguments.tools.1",
        "there is no tool 'serch_files'; did you mean 'search_files'",
    ),
}


@pytest.mark.parametrize(("wrong", "field", "words"), WRONG.values(), ids=WRONG.keys())
async def test_what_no_worker_would_take_is_refused_by_its_name(wrong: dict[str, Any], field: str, words: str) -> None:
    found = await faults(known(WITH_AGENT), wrong, step("shell", script="true"))
    assert list(found) == [f"0.{field}"]
    assert words in found[f"0.{field}"]


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        (wrong["tool"], wrong["arguments"])
        for wrong, _, _ in WRONG.values()
        if wrong["tool"] != "agent" and "${" not in str(wrong)
    ],
)
def test_what_is_refused_by_schemas_is_refused_by_the_tools_too(tool: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidPlan):
        REGISTRY.resolve(tool, arguments, field="plan.steps.0")


async def test_all_faults_of_all_steps_are_reported_at_once() -> None:
    found = await faults(known(WORKER), step("shel"), step("shell", a=1, b=2), step("file_read", path="/x", start="1"))
    assert list(found) == [
        "0.tool",
        "1.arguments.a",
        "1.arguments.b",
        "1.arguments.script",
        "2.arguments.start",
        "2.arguments.path",
    ]


async def test_no_message_repeats_a_value() -> None:
    secret = "secret-value"
    found = await faults(known(WORKER), step("shell", script=[secret], environment={"A": {secret: secret}}))
    assert found
    assert secret not in "".join(found.values())


async def test_a_tool_is_known_when_any_live_worker_has_it() -> None:
    one = ToolSet((AGENT,), has_model=True)
    assert await faults(known(WORKER, one), step("agent", goal="x"), step("shell", script="true")) == {}


async def test_arguments_are_right_when_any_live_worker_takes_them() -> None:
    newer = replace(AGENT, parameters={"type": "object", "properties": {"aim": {"type": "string"}}})
    sets = [ToolSet((AGENT,), has_model=True), ToolSet((newer,), has_model=True)]
    assert await faults(known(*sets), step("agent", aim="x"), step("agent", goal="x")) == {}


@pytest.mark.parametrize("sets", [(), (ToolSet(None, has_model=False),), (WORKER, ToolSet(None, has_model=False))])
async def test_where_not_every_workers_tools_are_known_nothing_is_refused(sets: tuple[ToolSet, ...]) -> None:
    assert await faults(known(*sets), step("teleport"), step("shell")) == {}


async def test_while_a_live_worker_has_not_published_nothing_is_refused() -> None:
    """Of an older release, say: it may have a tool of its own."""
    catalogue = Published(WORKER)
    tools = KnownTools(catalogue, catalogue.worker_ids, MCP, ())
    catalogue.live = frozenset(("worker-1", "older"))
    assert await faults(tools, step("plugin"), step("shell")) == {}
    assert not (await tools.known()).is_whole
    catalogue.live = frozenset(("worker-1",))
    await tools.known(at_most_seconds_old=0)
    assert list(await faults(tools, step("plugin"))) == ["0.tool"]


async def test_while_redis_is_away_nothing_is_refused() -> None:
    catalogue = Published(WORKER)
    catalogue.is_away = True
    assert await faults(KnownTools(catalogue, catalogue.worker_ids, MCP, ()), step("teleport")) == {}


async def test_a_tool_that_has_just_come_is_known_at_once_and_the_others_are_not_looked_up_each_time() -> None:
    catalogue = Published(WORKER)
    tools = KnownTools(catalogue, catalogue.worker_ids, MCP, ())
    for _ in range(3):
        assert await faults(tools, step("shell", script="true")) == {}
    assert catalogue.asked == 1
    assert list(await faults(tools, step("agent", goal="x"))) == ["0.tool"]
    catalogue.sets = (WITH_AGENT,)
    assert await faults(tools, step("agent", goal="x")) == {}


@pytest.mark.parametrize(
    ("tool", "mcp_servers", "words"),
    [
        ("calc__add", ("calc",), ""),
        ("calc__add", None, ""),
        ("calc__add", (), "name it in mcp_servers"),
        ("calc__add", ("search",), "name it in mcp_servers"),
        ("search__find", ("search",), ""),
        ("search__drop", ("search",), "may not be used here (MCP_SERVERS); there are search__find"),
        ("odd__repo_search", ("odd",), ""),
        ("nobody__add", ("calc",), "there is no tool"),
    ],
)
async def test_of_mcp_servers_what_the_operator_has_written_is_known(
    tool: str, mcp_servers: Sequence[str] | None, words: str
) -> None:
    found = await faults(known(WORKER), step(tool), mcp_servers=mcp_servers)
    assert (words in found["0.tool"]) if words else found == {}


async def test_a_tool_that_is_disabled_is_refused_as_such() -> None:
    without = tool_set(ToolRegistry(REGISTRY.tools()).without(["python"]), has_model=False)
    found = await faults(known(without, disabled=["python"]), step("python", code="1"))
    assert "may not be used here (TOOLS_DISABLED)" in found["0.tool"]


async def test_a_plan_that_takes_too_long_to_check_is_left_to_the_worker() -> None:
    many = [step("python", code="1", args=[1] * 100) for _ in range(199)]
    found = await faults(known(WORKER), *many, step("shell"))
    assert "199.arguments.script" not in found
