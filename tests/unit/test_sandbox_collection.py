"""Which sandboxes' Jobs go, as a decision: of whom they are, who lives, and for how long it has seemed so."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from backplane.domain import sandbox_labels
from backplane.domain.runs import Ownership, RunStatus
from controller.cleanup.sandbox_jobs import Doubts, Fate, PlatformState, SandboxJob, Times, fate, judge
from worker.sandbox.kubernetes import manifest as worker_job

TIMES = Times(lease=15, finished=300, session=14_400)
JOB = SandboxJob("step-1", "uid-1", "7", "run-1", generation=2, worker="w-1", is_warm=False, age_seconds=60)
WARM = replace(JOB, name="warm-1", run_id="", generation=0, is_warm=True)
OVER = PlatformState({"run-1": Ownership(RunStatus.COMPLETED, 2)}, frozenset())


def known(status: RunStatus, generation: int = 2) -> PlatformState:
    return PlatformState({"run-1": Ownership(status, generation)}, frozenset({"w-1"}))


def passes(jobs: Iterable[SandboxJob], what: PlatformState, *times: float) -> list[list[str]]:
    """The names of those that go in passes at these times."""
    doubts: Doubts = {}
    found = []
    for now in times:
        going, doubts = judge(jobs, what, TIMES, doubts, now)
        found.append([job.name for job in going])
    return found


def test_a_job_of_a_running_runs_worker_stays_however_old_it_is() -> None:
    assert fate(replace(JOB, age_seconds=80_000), known(RunStatus.RUNNING), TIMES) is Fate.STAYS


def test_a_job_whose_claim_is_not_in_the_database_yet_stays() -> None:
    assert fate(JOB, known(RunStatus.RUNNING, generation=1), TIMES) is Fate.STAYS


@pytest.mark.parametrize(
    "status",
    [status for status in RunStatus if status is not RunStatus.RUNNING],
)
def test_a_job_of_a_run_that_nobody_carries_out_is_doubtful(status: RunStatus) -> None:
    assert fate(JOB, known(status), TIMES) is Fate.DOUBTFUL


def test_a_job_of_an_older_claim_is_doubtful() -> None:
    assert fate(JOB, known(RunStatus.RUNNING, generation=3), TIMES) is Fate.DOUBTFUL


def test_a_job_of_an_unknown_run_is_doubtful() -> None:
    assert fate(JOB, PlatformState({}, frozenset()), TIMES) is Fate.DOUBTFUL


def test_a_doubtful_job_goes_when_it_is_so_a_lease_later_and_not_before() -> None:
    assert passes([JOB], OVER, 100.0, 114.9, 115.0) == [[], [], ["step-1"]]


def test_a_doubtful_job_is_looked_at_twice_however_short_a_lease_is() -> None:
    going, doubts = judge([JOB], OVER, replace(TIMES, lease=0), {}, 100.0)
    assert going == []
    assert judge([JOB], OVER, replace(TIMES, lease=0), doubts, 100.0)[0] == [JOB]


def test_a_job_that_was_adopted_is_doubted_no_more() -> None:
    taken = known(RunStatus.RUNNING, generation=3)
    _, doubts = judge([JOB], taken, TIMES, {}, 100.0)
    adopted = replace(JOB, generation=3, version="8")
    going, doubts = judge([adopted], taken, TIMES, doubts, 200.0)
    assert (going, doubts) == ([], {})


@pytest.mark.parametrize("change", [{"generation": 3}, {"worker": "w-2"}, {"run_id": "run-2"}, {"uid": "uid-2"}])
def test_a_job_that_another_worker_took_is_doubted_anew(change: dict[str, Any]) -> None:
    _, doubts = judge([JOB], OVER, TIMES, {}, 100.0)
    assert judge([replace(JOB, **change)], OVER, TIMES, doubts, 200.0)[0] == []


def test_what_the_cluster_itself_writes_into_a_job_lifts_no_doubt() -> None:
    _, doubts = judge([JOB], OVER, TIMES, {}, 100.0)
    changed = replace(JOB, version="8")
    assert judge([changed], OVER, TIMES, doubts, 200.0)[0] == [changed]


def test_a_doubt_that_was_lifted_begins_anew() -> None:
    _, doubts = judge([JOB], OVER, TIMES, {}, 100.0)
    _, doubts = judge([JOB], known(RunStatus.RUNNING), TIMES, doubts, 110.0)
    assert judge([JOB], OVER, TIMES, doubts, 120.0)[0] == []


def test_an_old_job_of_a_run_that_nobody_carries_out_goes_at_once() -> None:
    assert passes([replace(JOB, age_seconds=14_401)], OVER, 100.0) == [["step-1"]]
    assert passes([replace(JOB, age_seconds=14_400)], OVER, 100.0) == [[]]


def test_a_finished_job_stays_for_its_time_whatever_became_of_its_run() -> None:
    assert fate(replace(JOB, finished_seconds=300, age_seconds=80_000), OVER, TIMES) is Fate.STAYS
    assert fate(replace(JOB, finished_seconds=301), known(RunStatus.RUNNING), TIMES) is Fate.GOES


def test_a_warm_job_stays_while_its_worker_lives() -> None:
    assert fate(WARM, PlatformState({}, frozenset({"w-1"})), TIMES) is Fate.STAYS
    assert fate(WARM, PlatformState({}, frozenset({"w-2"})), TIMES) is Fate.DOUBTFUL


def test_warm_jobs_stay_while_nobody_can_say_which_workers_live() -> None:
    assert fate(WARM, PlatformState({}, None), TIMES) is Fate.STAYS


def test_an_old_warm_job_goes_though_its_worker_lives() -> None:
    assert fate(replace(WARM, age_seconds=14_401), PlatformState({}, frozenset({"w-1"})), TIMES) is Fate.GOES


@pytest.mark.parametrize("text", ["host-1-abcdef", "x" * 63, "x" * 64, "-leading", "", "ä"])
def test_workers_and_controllers_write_a_label_alike(text: str) -> None:
    assert worker_job.worker_labels(text)[sandbox_labels.WORKER] == sandbox_labels.label_value(text)
