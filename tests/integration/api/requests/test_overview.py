"""The overview: how things stand, in one request."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update

from backplane.domain.overview import EndedCount, percentile, throughput
from backplane.domain.runs import RunStatus
from backplane.domain.users import Tier
from backplane.errors import Unavailable
from backplane.store.tables import runs
from tests.integration.api.running import Api, Person

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def overview(person: Person, **asked: Any) -> Any:
    answer = await person.http.get("/agent/overview", params=asked)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def ended(api: Api, run_id: str, status: str, ago: timedelta) -> None:
    """The run waited 2 s and worked 10 s, and ended so long ago."""
    at = datetime.now(UTC) - ago
    values = {
        "status": status,
        "finished_at": at,
        "started_at": at - timedelta(seconds=10),
        "queued_at": at - timedelta(seconds=12),
    }
    statement = update(runs).where(runs.c.id == run_id).values(values)
    await api.resources.store.database.write(lambda connection: connection.execute(statement))


async def test_where_nothing_is_all_is_empty(person: Person) -> None:
    found = await overview(person)
    assert set(found["runs"]) == {status.value for status in RunStatus}
    assert set(found["runs"].values()) == {0}
    assert [minute["ended"] for minute in found["throughput"]] == [0] * 60
    assert found["latency"] == dict.fromkeys(("queue_p50", "queue_p95", "run_p50", "run_p95"))
    assert (found["failed_lately"], found["spend_today_usd"]) == ([], "0")
    assert found["needs_you"] == {"count": 0, "oldest_at": None}
    assert found["workers"] == 0


async def test_it_counts_what_goes_on_and_what_ended_in_the_last_hour(api: Api, person: Person) -> None:
    await person.make("create")
    await person.make()
    failed = await person.make()
    await ended(api, failed, "failed", timedelta(minutes=2))
    await ended(api, await person.make(), "completed", timedelta(minutes=58))
    await ended(api, await person.make(), "completed", timedelta(minutes=61))
    found = await overview(person)
    assert found["runs"] == dict.fromkeys(found["runs"], 0) | {
        "created": 1,
        "queued": 1,
        "completed": 1,
        "failed": 1,
    }
    assert sum(minute["ended"] for minute in found["throughput"]) == 2
    assert sum(minute["failed"] for minute in found["throughput"]) == 1
    assert found["latency"] == {"queue_p50": 2.0, "queue_p95": 2.0, "run_p50": 10.0, "run_p95": 10.0}
    assert [run["run_id"] for run in found["failed_lately"]] == [failed]


async def test_users_see_their_own_runs_and_administrators_all_or_their_own(api: Api, person: Person) -> None:
    other, admin = await api.person(), await api.person(Tier.ADMIN)
    before = (await overview(admin))["runs"]["created"]
    await person.make("create")
    assert (await overview(person))["runs"]["created"] == 1
    assert (await overview(other))["runs"]["created"] == 0
    assert (await overview(admin))["runs"]["created"] == before + 1
    assert (await overview(admin, mine=True))["runs"]["created"] == 0


async def test_without_redis_the_rest_is_answered(api: Api, person: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away() -> None:
        raise Unavailable("Redis does not answer", part="redis")

    monkeypatch.setattr(api.resources.queue, "depths", away)
    found = await overview(person)
    assert (found["queues"], found["workers"]) == (None, None)
    assert len(found["throughput"]) == 60


async def test_the_minutes_are_the_last_ones_and_each_is_there_once() -> None:
    now = datetime(2026, 11, 30, 12, 0, 30, tzinfo=UTC)
    this = int(now.timestamp()) // 60
    counted = [
        EndedCount(this, RunStatus.FAILED, 2),
        EndedCount(this, RunStatus.COMPLETED, 3),
        EndedCount(this - 59, RunStatus.COMPLETED, 1),
        EndedCount(this - 60, RunStatus.COMPLETED, 7),
    ]
    minutes = throughput(counted, now)
    assert len(minutes) == 60
    assert (minutes[0].minute, minutes[0].ended) == (datetime(2026, 11, 30, 11, 1, tzinfo=UTC), 1)
    assert (minutes[-1].minute, minutes[-1].ended, minutes[-1].failed) == (now.replace(second=0), 5, 2)
    assert sum(minute.ended for minute in minutes) == 6


async def test_a_percentile_is_one_of_the_values() -> None:
    assert percentile([], 0.5) is None
    assert percentile([3.0], 0.95) == 3.0
    assert [percentile([float(n) for n in range(100)], share) for share in (0.0, 0.5, 0.95, 1.0)] == [0, 50, 95, 99]
