"""How a Markdown prompt becomes a plan."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from backplane.domain.plans import Plan
from backplane.domain.runbook import blocks_of, steps_of
from backplane.domain.runs import Priority, Run, RunStatus
from backplane.errors import FAULTS_SHOWN, InvalidPlan, PromptNotUnderstood
from backplane.input.parsing import Parser
from backplane.workspace.local import LocalWorkspaceStore
from worker.planner.base import Planning, make_plan
from worker.planner.given import GivenPlanner
from worker.planner.runbook import RunbookPlanner
from worker.tools.registry import ToolRegistry


def run_of(prompt: str, given_plan: dict[str, Any] | None = None) -> Run:
    return Run(
        "run-1",
        "user-1",
        RunStatus.RUNNING,
        Priority.NORMAL,
        prompt,
        datetime.now(UTC),
        60,
        0,
        given_plan=given_plan,
    )


def planning() -> Planning:
    """These planners look at the prompt alone."""
    workspaces = LocalWorkspaceStore(Path("/nonexistent"))
    return Planning(None, ToolRegistry(()), workspaces.workspace("user", "run"), lambda plan: None, Parser())


async def plan_of(prompt: str) -> Plan:
    plan = await RunbookPlanner().plan(run_of(prompt), planning())
    assert plan is not None
    return plan


def block(info: str, content: str = "x") -> str:
    return f"```{info}\n{content}\n```\n"


async def test_each_fenced_block_is_a_step_in_its_order() -> None:
    plan = await plan_of(block("sh", "one") + "and then\n\n" + block("python", "two"))
    assert [(step.id, step.tool, dict(step.arguments)) for step in plan.steps] == [
        ("step-1", "shell", {"script": "one\n"}),
        ("step-2", "python", {"code": "two\n"}),
    ]
    assert plan.planner == "runbook"


async def test_the_heading_above_is_the_title_of_the_blocks_below_it() -> None:
    plan = await plan_of(block("sh") + "# First\n" + block("sh") + block("sh") + "Second\n------\n" + block("sh"))
    assert [step.title for step in plan.steps] == ["block at line 1", "First", "First", "Second"]


async def test_a_title_that_is_too_long_is_cut() -> None:
    plan = await plan_of(f"# {'t' * 500}\n" + block("sh"))
    assert plan.steps[0].title == "t" * 200


@pytest.mark.parametrize("language", ["sh", "bash", "shell", "SH", "Bash"])
async def test_shells_are_run_by_the_shell_tool(language: str) -> None:
    assert (await plan_of(block(language))).steps[0].tool == "shell"


@pytest.mark.parametrize("language", ["python", "py", "python3", "Python"])
async def test_python_is_run_by_the_python_tool(language: str) -> None:
    assert (await plan_of(block(language))).steps[0].tool == "python"


@pytest.mark.parametrize("info", ["data/words.txt", "words.txt", "python src/words.py", "toml pyproject.toml"])
async def test_a_path_in_the_info_string_makes_the_block_a_file(info: str) -> None:
    plan = await plan_of(block(info, "a\nb"))
    assert plan.steps[0].tool == "file_write"
    assert plan.steps[0].arguments == {"path": info.split()[-1], "content": "a\nb\n"}


@pytest.mark.parametrize("info", ["", "text", "txt", "output", "console", "TEXT"])
async def test_a_block_for_the_reader_is_no_step(info: str) -> None:
    plan = await plan_of(block(info) + block("sh"))
    assert [step.tool for step in plan.steps] == ["shell"]


@pytest.mark.parametrize("info", ["rust", "{weird}", "make it so"])
async def test_a_block_that_no_tool_takes_is_refused_with_its_line(info: str) -> None:
    with pytest.raises(InvalidPlan, match="block at line 5 is marked") as refused:
        await plan_of("# Title\n\nwords\n\n" + block(info))
    assert refused.value.field == "prompt"


@pytest.mark.parametrize("prompt", ["Count the words.", "# Title\n\nwords", block("text"), "    indented code\n", "\n"])
async def test_a_prompt_without_a_step_is_not_this_planners(prompt: str) -> None:
    assert await RunbookPlanner().plan(run_of(prompt), planning()) is None


async def test_a_runbook_has_200_steps_at_most() -> None:
    assert len((await plan_of(block("sh") * 200)).steps) == 200
    with pytest.raises(InvalidPlan, match="has 201 steps; a plan has at most 200"):
        await plan_of(block("sh") * 201)


async def test_a_longer_fence_holds_shorter_ones_inside() -> None:
    plan = await plan_of("````notes/a.md\n```sh\nnot a step\n```\n````\n")
    assert [step.arguments["content"] for step in plan.steps] == ["```sh\nnot a step\n```\n"]


async def test_a_given_plan_goes_before_the_prompt() -> None:
    given = {"steps": [{"id": "a", "tool": "file_list"}], "planner": "somebody"}
    plan = await make_plan((GivenPlanner(), RunbookPlanner()), run_of(block("sh"), given), planning())
    assert [(step.id, plan.planner) for step in plan.steps] == [("a", "given")]


async def test_a_prompt_that_no_planner_understands_says_what_to_write() -> None:
    with pytest.raises(PromptNotUnderstood, match="give a plan with the run") as refused:
        await make_plan((GivenPlanner(), RunbookPlanner()), run_of("Count the words."), planning())
    assert refused.value.field == "prompt"


async def test_all_that_is_wrong_with_a_runbook_is_reported_at_once_with_its_lines() -> None:
    prompt = block("rust") + block("sh -x") + block("sh") + "\n\n    ```sh\n    hidden\n    ```\n\n```sh\nopen\n"
    with pytest.raises(InvalidPlan) as refused:
        await plan_of(prompt)
    assert [(fault.field, fault.line) for fault in refused.value.faults] == [
        ("prompt", line) for line in (1, 4, 12, 14, 16)
    ]


async def test_a_runbook_lists_no_more_than_a_hundred_faults() -> None:
    with pytest.raises(InvalidPlan) as refused:
        await plan_of(block("rust") * 150)
    assert len(refused.value.faults) == FAULTS_SHOWN


FOR_A_MODEL = {
    "an example of JSON alone": block("json", '{"name": "Ann"}'),
    "an example of JSON among words": "Answer so:\n\n" + block("json", "{}"),
    "a block that is not to be run, by words": "Explain this script, do not run it:\n\n" + block("sh", "rm -rf ."),
    "a block that is not to be run, by a heading": "# Do not run this\n\n" + block("sh", "rm -rf ."),
    "a block that must not be executed": "# This is never executed\n\n# Never execute it\n\n" + block("bash", "x"),
    "an example, by a heading": "## Example\n\n" + block("sh", "x"),
    "a list of what to do": "- Look at this\n\n" + block("sh", "x"),
    "a quote": "> as they say\n\n" + block("sh", "x"),
    "a comment": "<!-- do not run -->\n\n" + block("sh", "x"),
    "a table": "| a | b |\n| - | - |\n\n" + block("sh", "x"),
    "no block": "Count the words.",
}


@pytest.mark.parametrize("prompt", FOR_A_MODEL.values(), ids=FOR_A_MODEL.keys())
def test_with_a_model_a_prompt_with_more_than_a_runbook_is_the_models(prompt: str) -> None:
    assert steps_of(prompt, only_if_nothing_else=True) == []


FOR_NO_MODEL = {
    "blocks alone": block("sh") + block("python"),
    "a heading and blocks": "# Count\n\n" + block("sh"),
    "a block to be read as well": block("sh") + block("text"),
    "a file and a rule between": block("data/a.json", "{}") + "\n---\n\n" + block("sh"),
    "a heading that names running": "# Run the tests\n\n" + block("sh"),
}


@pytest.mark.parametrize("prompt", FOR_NO_MODEL.values(), ids=FOR_NO_MODEL.keys())
def test_with_a_model_a_prompt_of_nothing_but_a_runbook_is_a_runbook(prompt: str) -> None:
    assert steps_of(prompt, only_if_nothing_else=True) == steps_of(prompt) != []


def test_of_each_step_its_line_is_known() -> None:
    blocks = blocks_of("# Title\n\n" + block("sh") + block("text") + block("a.txt"))
    assert [(block.line, block.step["tool"]) for block in blocks] == [(3, "shell"), (9, "file_write")]
