"""Steps below a step, found again by their ids."""

from dataclasses import dataclass, field

import pytest

from backplane.domain.plans import Step, SubStep
from backplane.domain.steps import StepRecord, StepStatus
from worker.run.interruption import Interruption
from worker.steps.sub_steps import RunSubSteps, StepChanged

ABOVE = Step(id="find", tool="agent", arguments={"goal": "Find out."})
LOOK = SubStep(parent="find", round=0, turn=1, ordinal=1, tool="file_read", arguments={"path": "a"}, title="path: a")


@dataclass
class Runner:
    interruption: Interruption = field(default_factory=Interruption)
    records: dict[str, StepRecord] = field(default_factory=dict)
    carried_out: list[str] = field(default_factory=list)

    async def run(self, step: Step) -> None:
        self.carried_out.append(step.id)
        done = StepRecord(step.id, 1, step.title, step.tool, StepStatus.COMPLETED, 1, None, None, {"output": "one"})
        self.records[step.id] = done

    def add(self, record: StepRecord) -> None:
        self.records[record.step_id] = record


@pytest.fixture
def runner() -> Runner:
    above = StepRecord("find", 0, "", "agent", StepStatus.STARTED, 1, None, None, None)
    return Runner(records={"find": above})


async def test_what_was_done_gives_its_result_again(runner: Runner) -> None:
    reports = [await RunSubSteps(runner, ABOVE, lambda error: None).run(LOOK) for _ in range(2)]
    assert [report.output for report in reports] == ["one", "one"]
    assert runner.carried_out == ["find/0.1.1"]


@pytest.mark.parametrize("other", [{"title": "path: b"}, {"tool": "file_delete"}])
async def test_another_step_in_its_place_is_given_no_result(runner: Runner, other: dict[str, str]) -> None:
    halted: list[Exception] = []
    await RunSubSteps(runner, ABOVE, halted.append).run(LOOK)
    with pytest.raises(StepChanged, match="file_read 'path: a'"):
        await RunSubSteps(runner, ABOVE, halted.append).run(LOOK.model_copy(update=other))
    assert len(halted) == 1
    assert runner.carried_out == ["find/0.1.1"]
