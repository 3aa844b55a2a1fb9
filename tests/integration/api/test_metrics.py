"""GET /metrics of the API, as Prometheus sees it: the platform's state, what the API counts, and no endless labels."""

import asyncio
from collections.abc import Callable

import pytest

from app import metrics
from backplane.domain.dead_letters import DeadReason
from backplane.domain.runs import RunStatus
from tests.integration.api.running import Api, Person, StartApi
from tests.metrics import broken_conventions, scrape
from tests.servers import RedisServer
from tests.waiting import wait_until


@pytest.fixture(autouse=True)
def always_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each scrape reads anew; the one test that says so keeps what was read."""
    monkeypatch.setattr(metrics, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(metrics, "KEPT_SECONDS", 0.0)


async def test_it_needs_no_token_and_follows_the_conventions(api: Api) -> None:
    found = await scrape(api.url)
    assert broken_conventions(found.families) == []
    assert {"agent_queue_depth", "agent_queue_oldest_seconds", "agent_runs", "agent_dead_letters"} <= found.names
    assert found.value("process_resident_memory_bytes") > 0


async def test_it_can_be_taken_away(start_api: StartApi) -> None:
    api = await start_api(api_metrics=False)
    assert (await api.client().get("/metrics")).status_code == 404


async def test_the_queue_is_counted_by_priority_and_what_a_cap_holds_back_apart(start_api: StartApi) -> None:
    api = await start_api(user_concurrency_standard=2)
    person = await api.person()
    for _ in range(3):
        await person.make()
    found = await scrape(api.url)
    of_queue = {"queue": "default"}
    assert found.value("agent_queue_depth", priority="normal", state="waiting", **of_queue) == 2
    assert found.value("agent_queue_depth", priority="normal", state="parked", **of_queue) == 1
    assert found.value("agent_queue_oldest_seconds", priority="normal", **of_queue) > 0
    assert found.value("agent_queue_oldest_seconds", priority="high", **of_queue) == 0
    assert {found.value(f"agent_queue_{name}", **of_queue) for name in ("running", "workers", "slots")} == {0}
    assert len(found.labels("agent_queue_depth")) == 8


async def test_runs_are_counted_by_status_and_those_that_ended_are_not(api: Api, person: Person) -> None:
    for _ in range(3):
        await person.make()
    await person.make("create")
    await api.worker()
    ended = await api.worker()
    await ended.end(RunStatus.COMPLETED)
    found = await scrape(api.url)
    runs = {labels["status"]: found.value("agent_runs", **labels) for labels in found.labels("agent_runs")}
    assert runs == {"queued": 1, "running": 1, "waiting": 0}


async def test_dead_letters_are_counted_in_the_metrics(api: Api, person: Person) -> None:
    await person.make()
    worker = await api.worker()
    running_runs = api.resources.store.running_runs
    await running_runs.write(worker.run_id, 1, lambda run: run.dead_letter(DeadReason.POISON, 3))
    assert (await scrape(api.url)).value("agent_dead_letters") == 1


async def test_requests_are_counted_by_the_routes_own_path(api: Api, person: Person) -> None:
    run_ids = [await person.make("create") for _ in range(3)]
    for run_id in run_ids:
        await person.show(run_id)
    await person.http.get("/agent/runs/none")
    found = await scrape(api.url)
    assert found.value("agent_http_requests_total", method="GET", route="/agent/runs/{run_id}", status="200") == 3
    assert found.value("agent_http_requests_total", method="POST", route="/agent/execute", status="201") == 3
    assert found.value("agent_http_request_seconds_count", route="/agent/execute") == 3
    assert not any(run_id in str(found.families) for run_id in run_ids)


async def test_paths_and_methods_that_do_not_exist_share_a_label(api: Api) -> None:
    http = api.client()
    for number, method in enumerate(("PROPFIND", "MKCOL", "LOCK")):
        assert (await http.get(f"/no/such/{number}")).status_code == 404
        assert (await http.request(method, "/health/live")).status_code == 405
    found = await scrape(api.url)
    assert found.value("agent_http_requests_total", route="none", method="GET", status="404") == 3
    assert {labels["method"] for labels in found.labels("agent_http_requests_total")} == {"GET", "other"}


async def test_a_request_that_is_refused_before_any_route_is_counted(start_api: StartApi) -> None:
    api = await start_api(request_max_bytes=1024)
    person = await api.person()
    assert (await person.http.post("/agent/execute", content=b"x" * 2000)).status_code == 413
    assert (await scrape(api.url)).value("agent_http_requests_total", status="413") == 1


async def test_a_stream_counts_while_it_is_open_and_its_lag_is_measured(api: Api, person: Person) -> None:
    run_id = await person.make()
    worker = await api.worker()
    async with person.stream(run_id) as stream:
        await anext(stream)
        found = await scrape(api.url)
        assert found.value("agent_stream_watchers") == 1
        assert found.value("agent_http_requests_total", route="/agent/logs/{run_id}/stream", status="200") == 1
        await worker.say("hello")

        while not found.value("agent_stream_lag_seconds_count"):
            found = await scrape(api.url)
        assert 0 <= found.value("agent_stream_lag_seconds_sum") < 30
        await worker.end(RunStatus.COMPLETED)

    async def none_watches() -> bool:
        return (await scrape(api.url)).value("agent_stream_watchers") == 0

    await wait_until(none_watches)


async def test_without_redis_it_answers_with_the_rest_and_says_which_part_is_away(
    start_api: StartApi, own_redis: Callable[..., RedisServer]
) -> None:
    server = own_redis()
    api = await start_api(redis_url=server.url)
    await (await api.person()).make()
    assert (await scrape(api.url)).value("agent_part_up", part="redis") == 1
    server.stop()
    found = await scrape(api.url)
    up = {labels["part"]: found.value("agent_part_up", **labels) for labels in found.labels("agent_part_up")}
    assert up == {"redis": 0, "database": 1, "workspace": 1}
    assert "agent_queue_depth" not in found.names
    assert found.value("agent_runs", status="queued") == 1
    server.start()

    async def is_back() -> bool:
        return "agent_queue_depth" in (await scrape(api.url)).names

    await wait_until(is_back)


async def test_a_part_that_does_not_answer_is_not_waited_for_and_asked_once(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, release = 0, asyncio.Event()

    async def never() -> int:
        nonlocal asked
        asked += 1
        await release.wait()
        return 7

    monkeypatch.setattr(metrics, "PART_SECONDS", 0.05)
    platform = api.app.state.context.platform_metrics
    monkeypatch.setattr(platform._dead_letters, "_read", never)
    for _ in range(3):
        found = await scrape(api.url)
        assert found.value("agent_part_up", part="database") == 0
        assert "agent_dead_letters" not in found.names
    assert asked == 1
    release.set()

    async def answered() -> bool:
        return (await scrape(api.url)).value("agent_dead_letters") == 7

    await wait_until(answered)


async def test_what_was_read_is_answered_again_for_a_while(
    api: Api, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "FRESH_SECONDS", 600.0)
    await scrape(api.url)
    await person.make()
    assert (await scrape(api.url)).value("agent_runs", status="queued") == 0
