"""The planner port: a prompt becomes a plan.

A planner that cannot make anything of a prompt says None, so that the next one is asked; one that understands it and
finds it wrong raises InvalidPlan, and nobody else is asked.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from backplane.errors import PromptNotUnderstood
from backplane.plans import Plan
from backplane.runs import Run


class Planner(ABC):
    name: ClassVar[str]

    @abstractmethod
    async def plan(self, run: Run) -> Plan | None: ...


async def make_plan(planners: Sequence[Planner], run: Run) -> Plan:
    """The plan of the first planner that understands the run. Raises PromptNotUnderstood, InvalidPlan or
    Unavailable."""
    for planner in planners:
        plan = await planner.plan(run)
        if plan is not None:
            return plan
    raise PromptNotUnderstood(
        "no planner understands this prompt. Give a plan with the run (`plan`, or agentctl run --plan FILE), or write "
        "the prompt as a runbook: Markdown whose fenced blocks are the steps (```sh, ```python, or ```notes/a.txt to "
        "write a file)",
        field="prompt",
    )
