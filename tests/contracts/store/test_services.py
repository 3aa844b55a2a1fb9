"""Services in the store, on each database: one declaration, one health, one history, whoever writes."""

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from backplane.domain.bus import EventFilter
from backplane.domain.services import (
    CheckKind,
    CheckResult,
    ContainerSpec,
    ContainerState,
    HealthCheck,
    Service,
    ServiceSpec,
    ServiceStatus,
    judged,
)
from backplane.domain.users import User
from backplane.errors import Conflict, NotFound, TooLarge
from backplane.store import Store
from backplane.store import services as module

SPEC = ServiceSpec(
    port=6379,
    check=HealthCheck(kind=CheckKind.HTTP, path="/health", failures=1, successes=1),
    container=ContainerSpec(
        image="redis", command=("redis-server",), environment={"A": "b"}, volumes={"data": "/data"}
    ),
    webhook_url="https://example.org/hook",
)
OBSERVED = replace(SPEC, container=None)


async def written(store: Store, service: Service, error: str = "", *, seconds: float = 0) -> Service:
    result = CheckResult(datetime.now(UTC) + timedelta(seconds=seconds), error, 1.0)
    assert await store.services.write_health(service, judged(service.health, service.spec.check, result)) is not None
    return await store.services.get(service.id)


async def test_a_service_is_found_by_its_name_and_its_id_as_it_was_declared(store: Store, user: User) -> None:
    made = await store.services.create(user.id, "redis", SPEC, most=5)
    assert (made.spec, made.revision, made.container) == (SPEC, 1, ContainerState.WAITING)
    assert await store.services.get("redis") == await store.services.get(made.id) == made
    assert await store.services.list_all() == [made]
    with pytest.raises(NotFound):
        await store.services.get("postgres")


async def test_a_name_is_given_once_and_there_are_no_more_than_so_many(store: Store, user: User) -> None:
    await store.services.create(user.id, "redis", SPEC, most=2)
    with pytest.raises(Conflict):
        await store.services.create(user.id, "redis", SPEC, most=2)
    await store.services.create(user.id, "postgres", SPEC, most=2)
    with pytest.raises(TooLarge):
        await store.services.create(user.id, "qdrant", SPEC, most=2)


async def test_a_name_that_two_ask_for_at_once_is_given_to_one(store: Store, second_store: Store, user: User) -> None:
    creates = (each.services.create(user.id, "redis", SPEC, most=5) for each in (store, second_store) * 3)
    done = await asyncio.gather(*creates, return_exceptions=True)
    assert sum(isinstance(result, Service) for result in done) == 1
    assert sum(isinstance(result, Conflict) for result in done) == 5


async def test_a_change_counts_and_one_that_read_an_older_declaration_is_refused(store: Store, user: User) -> None:
    made = await store.services.create(user.id, "redis", OBSERVED, most=5)
    changed = await store.services.change(made, replace(OBSERVED, port=6380))
    assert (changed.revision, changed.spec.port, changed.container) == (2, 6380, ContainerState.NONE)
    with pytest.raises(Conflict):
        await store.services.change(made, SPEC)
    assert (await store.services.change(changed, SPEC)).container is ContainerState.WAITING


async def test_a_changed_health_is_one_row_of_history_one_event_and_one_message(store: Store, user: User) -> None:
    service = await store.services.create(user.id, "redis", OBSERVED, most=5)
    service = await written(store, service)
    service = await written(store, service, "it answered 500")
    service = await written(store, service, "it answered 500")
    assert (service.health.status, service.health.checks) == (ServiceStatus.DOWN, 3)
    history = await store.services.history(service.id, None, 10)
    assert [(change.status.value, change.reason) for change in history] == [("down", "it answered 500"), ("up", "")]
    assert await store.services.history(service.id, history[0].number, 10) == history[1:]
    events = (await store.bus.page(user.id, 0, 10, EventFilter())).events
    assert [event.type for event in events] == ["service.up", "service.down"]
    claimed = await store.webhooks.claim(10, lease_seconds=60, user_limit=10, sending={})
    assert {(each.event, each.run_id, each.url) for each in claimed} == {
        ("service.up", None, "https://example.org/hook"),
        ("service.down", None, "https://example.org/hook"),
    }
    body = json.loads(next(each.body for each in claimed if each.event == "service.down"))
    assert (body["name"], body["status"], body["reason"]) == ("redis", "down", "it answered 500")


async def test_of_two_results_about_the_same_state_the_second_is_dropped(
    store: Store, second_store: Store, user: User
) -> None:
    service = await store.services.create(user.id, "redis", OBSERVED, most=5)
    judgement = judged(service.health, service.spec.check, CheckResult(datetime.now(UTC)))
    done = await asyncio.gather(*(each.services.write_health(service, judgement) for each in (store, second_store) * 3))
    assert sum(result is not None for result in done) == 1
    assert len(await store.services.history(service.id, None, 10)) == 1


async def test_a_result_about_what_was_declared_before_is_dropped(store: Store, user: User) -> None:
    service = await store.services.create(user.id, "redis", OBSERVED, most=5)
    await store.services.change(service, replace(OBSERVED, port=6380))
    judgement = judged(service.health, service.spec.check, CheckResult(datetime.now(UTC)))
    assert await store.services.write_health(service, judgement) is None


async def test_the_history_is_as_long_as_it_may_be_and_keeps_the_newest(
    store: Store, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HISTORY_MAX", 3)
    monkeypatch.setattr(module, "DELIVERIES_MAX", 2)
    service = await store.services.create(user.id, "redis", OBSERVED, most=5)
    for number in range(6):
        # So far apart that it is no flapping.
        service = await written(store, service, "x" if number % 2 else "", seconds=number * 1000)
    history = await store.services.history(service.id, None, 10)
    assert [change.status.value for change in history] == ["down", "up", "down"]
    claimed = await store.webhooks.claim(10, lease_seconds=60, user_limit=10, sending={})
    assert sorted(each.event for each in claimed) == ["service.down", "service.up"]


async def test_an_observed_service_is_deleted_at_once_with_all_that_belongs_to_it(store: Store, user: User) -> None:
    service = await written(store, await store.services.create(user.id, "redis", OBSERVED, most=5))
    assert await store.services.delete(service)
    assert await store.services.list_all() == []
    assert await store.services.history(service.id, None, 10) == []
    assert await store.webhooks.claim(10, lease_seconds=60, user_limit=10, sending={}) == []
    assert await store.services.delete(service)


async def test_a_service_with_a_container_goes_when_that_is_gone(store: Store, user: User) -> None:
    service = await store.services.create(user.id, "redis", SPEC, most=5)
    await store.services.write_container(service, ContainerState.RUNNING)
    assert not await store.services.delete(service)
    left = await store.services.get("redis")
    assert (left.container, left.deleted_at is not None) == (ContainerState.STOPPING, True)
    with pytest.raises(Conflict):
        await store.services.change(left, OBSERVED)
    await store.services.write_container(left, ContainerState.RUNNING)
    await store.services.container_not_gone(service.id, "the engine does not answer")
    assert (await store.services.get("redis")).container_reason == "the engine does not answer"
    await store.services.container_gone(service.id)
    with pytest.raises(NotFound):
        await store.services.get("redis")


async def test_a_service_that_is_not_being_deleted_stays_when_its_container_is_gone(store: Store, user: User) -> None:
    service = await store.services.create(user.id, "redis", SPEC, most=5)
    await store.services.container_gone(service.id)
    assert await store.services.get(service.id) == service


async def test_a_service_whose_host_is_gone_is_deleted_by_force(store: Store, user: User) -> None:
    service = await store.services.create(user.id, "redis", SPEC, most=5)
    await store.services.write_container(service, ContainerState.RUNNING)
    assert await store.services.delete(service, force=True)
    assert await store.services.list_all() == []
