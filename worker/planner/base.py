"""The planner port: a prompt becomes a plan.

A planner that cannot make anything of a prompt says None, so that the next one is asked; one that understands it and
finds it wrong raises InvalidPlan, and nobody else is asked.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from backplane.domain.plans import Plan
from backplane.domain.runs import Run, RunError
from backplane.domain.steps import StepRecord
from backplane.errors import PromptNotUnderstood
from backplane.input.parsing import Parser
from backplane.workspace.base import Workspace
from worker.llm.base import Models
from worker.tools.registry import ToolRegistry


@dataclass(frozen=True, slots=True)
class Planning:
    """What a planner may look at. `models` is None where none is set; `check` raises InvalidPlan for a plan that this
    worker cannot carry out."""

    models: Models | None
    tools: ToolRegistry
    workspace: Workspace
    check: Callable[[Plan], None]
    parser: Parser


class Planner(ABC):
    name: ClassVar[str]

    @abstractmethod
    async def plan(self, run: Run, planning: Planning) -> Plan | None: ...


class Replanner(ABC):
    """Makes a new plan of a run in which a step has failed for good."""

    @abstractmethod
    async def replan(
        self, run: Run, plan: Plan, journal: Sequence[StepRecord], error: RunError, planning: Planning
    ) -> Plan | None:
        """A plan that begins with the completed steps as they are, and goes on with others, whose ids are new. None:
        there is nothing to be done. `journal` holds the result of each step."""


async def make_plan(planners: Sequence[Planner], run: Run, planning: Planning) -> Plan:
    """The plan of the first planner that understands the run; only of the one that the run names, where it names one.
    Raises PromptNotUnderstood, InvalidPlan, Unavailable or ModelError."""
    for planner in planners:
        if run.given_plan is None and run.planner not in (None, planner.name):
            continue
        plan = await planner.plan(run, planning)
        if plan is not None:
            return plan
    raise PromptNotUnderstood(
        "no planner understands this prompt. Set a model (MODEL, OLLAMA_HOST; docs/models.md), give a plan with the "
        "run (`plan`), or write the prompt as a runbook: Markdown whose fenced blocks are "
        "the steps (```sh, ```python, or ```notes/a.txt to write a file)",
        field="prompt",
    )
