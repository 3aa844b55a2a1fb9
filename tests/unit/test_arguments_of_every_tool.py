"""Whatever a model gives a tool as arguments, the error says what is wrong: no check of them fails in another way."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backplane.errors import InvalidPlan
from backplane.net.egress import OutsidePolicy
from backplane.settings import Settings
from worker.tools.agent import AgentLimits, AgentTool
from worker.tools.artifact_delete import ArtifactDelete
from worker.tools.artifact_list import ArtifactList
from worker.tools.artifact_read import ArtifactRead
from worker.tools.artifact_write import ArtifactWrite
from worker.tools.base import Tool
from worker.tools.browser import Browser
from worker.tools.forget import Forget
from worker.tools.http_fetch import http_tools
from worker.tools.recall import Recall
from worker.tools.registry import ToolRegistry, builtin_tools, validate_arguments
from worker.tools.remember import Remember
from worker.tools.toolbox import limits_of

ODD: list[Any] = [
    *(None, True, 0, -1, 1.5, 10**19, "", " ", "\0", "\ud800", "a" * 200_000, "\r\n", "\u2028"),
    *("../..", "/", "~", "*", "**", "[", "{a,b", "(?", "@@ -1 +1 @@\n-a\n+b\n"),
    *("${secrets.X}", "${secrets.", "$${secrets.X}", "${steps.a.output}"),
    *(
        "http://",
        "https://[::1",
        "http://a:99999/",
        "http://user:pw@host/",
        "http://\ud800",
        "http://xn--a",
        "file:///a",
    ),
    *([], {}, [None], [""], ["a"], [["a"]]),
    *({"": ""}, {"a": None}, {"a": "b"}, {"A-B": "\n"}, {"Host": "x"}, {"a": {"b": []}}),
]


def every_tool() -> ToolRegistry:
    none_of_its_business: Any = None
    policy = OutsidePolicy(["*"], allow_private=False)
    limits = AgentLimits(1, 1, 1.0, 1.0, 1, 1, 1)
    memory = (Remember(none_of_its_business), Recall(none_of_its_business), Forget(none_of_its_business))
    kept = (ArtifactWrite, ArtifactRead, ArtifactList, ArtifactDelete)
    browser = Browser(policy, python="python3", executable="", max_bytes=1, timeout_seconds=1)
    return builtin_tools().with_tools(
        [
            AgentTool(limits),
            *http_tools(policy, limits_of(Settings(_env_file=None))),
            browser,
            *memory,
            *(tool(none_of_its_business) for tool in kept),
        ]
    )


TOOLS = {tool.name: tool for tool in every_tool().tools()}


def check(tool: Tool, arguments: dict[str, Any]) -> None:
    with suppress(InvalidPlan):
        validate_arguments(tool, arguments, "arguments")


@pytest.mark.parametrize("tool", TOOLS.values(), ids=TOOLS)
def test_an_odd_value_is_refused_with_words_or_taken(tool: Tool) -> None:
    fields = list(tool.arguments.model_fields)
    check(tool, {})
    for value in ODD:
        check(tool, {"no such argument": value})
        check(tool, dict.fromkeys(fields, value))
        for field in fields:
            check(tool, {field: value})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.slow
@pytest.mark.parametrize("tool", TOOLS.values(), ids=TOOLS)
@given(data=st.data())
@settings(deadline=None)
def test_any_value_is_refused_with_words_or_taken(tool: Tool, data: st.DataObject) -> None:
    fields = list(tool.arguments.model_fields)
    check(tool, data.draw(st.dictionaries(st.sampled_from(fields), JSON | st.sampled_from(ODD))) if fields else {})
