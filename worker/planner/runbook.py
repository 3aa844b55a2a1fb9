"""The planner of runbooks: Markdown prompts whose fenced blocks are the steps. Needs no model."""

from backplane.domain.plans import MAX_STEPS, Plan, parse_plan
from backplane.domain.runbook import steps_of
from backplane.domain.runs import Run
from backplane.errors import InvalidPlan
from worker.planner.base import Planner, Planning


class RunbookPlanner(Planner):
    name = "runbook"

    async def plan(self, run: Run, planning: Planning) -> Plan | None:
        # Blocks among words may be examples, where a model could read the words: then the run has to name this planner.
        only_if_nothing_else = planning.models is not None and run.planner != self.name
        steps = await planning.parser.call(
            run.user_id,
            "the prompt",
            len(run.prompt),
            steps_of,
            run.prompt,
            only_if_nothing_else=only_if_nothing_else,
        )
        if not steps:
            return None
        if len(steps) > MAX_STEPS:
            raise InvalidPlan(
                f"the runbook has {len(steps)} steps; a plan has at most {MAX_STEPS}: put more into each block, or "
                "make several runs",
                field="prompt",
            )
        return parse_plan({"steps": steps, "planner": self.name}, field="prompt")
