"""Everything breaks at once, on the real platform, and nothing is lost; and when something is, the checker says so."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from shutil import rmtree

import pytest

from tests.chaos.chaos_platform import Servers
from tests.chaos.checker import Broken, check
from tests.chaos.driver import Scenario, run_chaos
from tests.chaos.faults import EMPTYING, LANES, Fault, schedule
from tests.servers import PostgresServer, RedisServer, S3Server

FAULTS = (
    Fault(0.8, "worker killed", target=0),
    Fault(1.5, "s3 503", 0.8),
    Fault(2.2, "redis restarted empty", 0.4),
    Fault(3.0, "postgres cut", target=1000),
    Fault(3.5, "api killed"),
)
SHORT = Scenario(
    seed=3,
    runs=30,
    workers=2,
    faults=FAULTS,
    submit_seconds=4.0,
    step_seconds=(0.0, 0.05, 0.2),
    clock_off_seconds=300.0,
)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A path short enough for sockets, that all may read."""
    made = Path(tempfile.mkdtemp(prefix="agent-chaos-"))
    yield made
    rmtree(made)


@pytest.fixture
def servers(own_redis: Callable[..., RedisServer], postgres_server: PostgresServer, s3_server: S3Server) -> Servers:
    return Servers(own_redis(), postgres_server, s3_server)


@pytest.mark.slow
async def test_no_run_step_or_event_is_lost_or_doubled_whatever_breaks(servers: Servers, folder: Path) -> None:
    outcome = await run_chaos(SHORT, servers, folder)
    assert check(outcome.facts) == [], outcome.counts
    assert outcome.counts["runs"] == SHORT.runs
    assert outcome.counts["faults"] == {fault.kind: 1 for fault in FAULTS}


@pytest.mark.slow
async def test_a_worker_that_does_steps_twice_and_a_watcher_that_drops_a_frame_are_found(
    servers: Servers, folder: Path
) -> None:
    calm = replace(SHORT, runs=4, workers=1, faults=(), submit_seconds=0.1, clock_off_seconds=0.0, cancels_per_run=0.0)
    outcome = await run_chaos(replace(calm, marks_twice="s1-mark", drops_frame=2), servers, folder)
    found = [(complaint.broken, complaint.subject.split(" of ")[0]) for complaint in check(outcome.facts)]
    doubled = [subject for broken, subject in found if broken is Broken.STEP_DOUBLED]
    assert sorted(doubled) == sorted(run.id for run in outcome.facts.runs)
    assert {entry for entry in found if entry[0] is not Broken.STEP_DOUBLED} == {(Broken.EVENT_MISSED, "watcher 0")}


def test_the_schedule_follows_from_the_seed_and_leaves_no_kind_out() -> None:
    faults = schedule(7, 270.0, 2.0)
    assert faults == schedule(7, 270.0, 2.0) != schedule(8, 270.0, 2.0)
    assert {fault.kind for fault in faults} == {kind for kinds in LANES.values() for kind in kinds}
    assert {fault.kind for fault in faults} >= EMPTYING
