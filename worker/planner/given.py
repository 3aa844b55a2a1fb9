"""The plan that came with the run."""

from backplane.domain.plans import Plan, parse_plan
from backplane.domain.runs import Run
from worker.planner.base import Planner, Planning


class GivenPlanner(Planner):
    name = "given"

    async def plan(self, run: Run, planning: Planning) -> Plan | None:
        return None if run.given_plan is None else parse_plan({**run.given_plan, "planner": self.name})
