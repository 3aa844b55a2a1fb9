"""Services as administrators and everybody else see them."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
import pytest_asyncio

from backplane.domain.services import CheckResult, ContainerState, judged
from backplane.domain.users import Tier
from tests.integration.api.running import Api, Person

pytestmark = pytest.mark.asyncio(loop_scope="module")

SERVICES = "/api/nas/services"
UNKNOWN_ID = "01936f7e-9f5c-7b3a-8c41-3d5e0f9a2b6c"


@pytest_asyncio.fixture(loop_scope="module")
async def admin(api: Api) -> AsyncIterator[Person]:
    person = await api.person(Tier.ADMIN)
    yield person
    for service in (await person.http.get(SERVICES)).json()["services"]:
        await person.http.delete(f"{SERVICES}/{service['name']}", params={"force": "true"})


async def made(admin: Person, **fields: Any) -> Any:
    answer = await admin.http.post(SERVICES, json={"name": "redis", "port": 6379, **fields})
    assert answer.status_code == 201, answer.text
    return answer.json()


async def test_a_service_is_made_seen_changed_and_deleted(admin: Person) -> None:
    service = await made(admin, check={"kind": "http", "path": "/health"}, public_endpoint="Redis.example.org")
    assert (service["status"], service["revision"], service["container"]) == ("unknown", 1, None)
    assert (service["public_endpoint"], service["host"]) == ("redis.example.org", "127.0.0.1")
    assert "not checked yet" in service["explanation"]
    for key in ("redis", service["id"]):
        assert (await admin.http.get(f"{SERVICES}/{key}")).json() == service
    changed = await admin.http.put(f"{SERVICES}/redis", json={"port": 6380})
    assert (changed.status_code, changed.json()["port"], changed.json()["revision"]) == (200, 6380, 2)
    assert changed.json()["public_endpoint"] is None
    again = await admin.http.put(f"{SERVICES}/{service['id']}", json={"port": 6380})
    assert (again.status_code, again.json()["revision"]) == (200, 2)
    assert (await admin.http.delete(f"{SERVICES}/redis")).status_code == 204
    assert (await admin.http.get(f"{SERVICES}/redis")).status_code == 404
    assert (await admin.http.delete(f"{SERVICES}/redis")).status_code == 404


async def test_put_makes_a_service_of_a_new_name_and_none_of_an_unknown_id(admin: Person) -> None:
    assert (await admin.http.put(f"{SERVICES}/redis", json={"port": 6379})).status_code == 201
    assert (await admin.http.put(f"{SERVICES}/{UNKNOWN_ID}", json={"port": 6379})).status_code == 404
    assert (await admin.http.put(f"{SERVICES}/status", json={"port": 6379})).status_code == 405
    assert (await admin.http.post(SERVICES, json={"name": "redis", "port": 1})).status_code == 409


async def test_a_service_with_a_container_is_deleted_when_that_is_gone(api: Api, admin: Person) -> None:
    service = await made(admin, container={"image": "redis", "volumes": {"data": "/data"}})
    assert service["container"]["state"] == "waiting"
    assert "SERVICES_CONTAINER_ENGINE" in service["explanation"]
    store = api.resources.store.services
    await store.write_container(await store.get("redis"), ContainerState.RUNNING)
    deleting = await admin.http.delete(f"{SERVICES}/redis")
    assert (deleting.status_code, deleting.json()["deleting"]) == (202, True)
    assert deleting.json()["container"]["state"] == "stopping"
    assert (await admin.http.put(f"{SERVICES}/redis", json={"port": 1})).status_code == 409
    assert (await admin.http.get(f"{SERVICES}/status")).json() == {"status": "unknown", "services": []}
    assert (await admin.http.delete(f"{SERVICES}/redis", params={"force": "true"})).status_code == 204


async def test_only_administrators_see_and_change_services(admin: Person, person: Person) -> None:
    await made(admin)
    calls = [
        *(("GET", SERVICES), ("POST", SERVICES), ("GET", f"{SERVICES}/redis"), ("PUT", f"{SERVICES}/redis")),
        *(("DELETE", f"{SERVICES}/redis"), ("GET", f"{SERVICES}/redis/history"), ("GET", f"{SERVICES}/nothing")),
    ]
    for method, url in calls:
        answer = await person.http.request(method, url, json={"name": "mine", "port": 80} if method != "GET" else None)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), url


async def test_everybody_sees_which_services_answer_and_not_where_they_are(
    api: Api, admin: Person, person: Person
) -> None:
    await made(admin, host="10.1.2.3", public_endpoint="redis.example.org")
    store = api.resources.store.services
    service = await store.get("redis")
    result = CheckResult(datetime.now(UTC), "it does not answer at a place inside")
    for _ in range(3):
        await store.write_health(service, judged(service.health, service.spec.check, result))
        service = await store.get("redis")
    answer = await person.http.get(f"{SERVICES}/status")
    [entry] = answer.json()["services"]
    assert (answer.json()["status"], entry["name"], entry["status"]) == ("down", "redis", "down")
    assert entry["public_endpoint"] == "redis.example.org"
    assert "10.1.2.3" not in answer.text
    assert "inside" not in answer.text
    assert (await api.client().get(f"{SERVICES}/status")).status_code == 401


async def test_the_history_has_pages(api: Api, admin: Person) -> None:
    await made(admin, check={"failures": 1, "successes": 1})
    store = api.resources.store.services
    for error in ("", "x", "", "x", ""):
        service = await store.get("redis")
        result = CheckResult(datetime.now(UTC), error)
        await store.write_health(service, judged(service.health, service.spec.check, result))
    first = (await admin.http.get(f"{SERVICES}/redis/history", params={"limit": 3})).json()
    assert [change["status"] for change in first["changes"]] == ["up", "down", "up"]
    rest = (await admin.http.get(f"{SERVICES}/redis/history", params={"cursor": first["next_cursor"]})).json()
    assert ([change["status"] for change in rest["changes"]], rest["next_cursor"]) == (["down", "up"], None)
    assert (await admin.http.get(f"{SERVICES}/redis")).json()["flapping"] is True


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no port": ({"port": None}, "port"),
    "port 0": ({"port": 0}, "port"),
    "port 65536": ({"port": 65536}, "port"),
    "a port as text": ({"port": "80"}, "port"),
    "an unknown field": ({"prot": 80}, "prot"),
    "a name with a capital": ({"name": "Redis"}, "name"),
    "a name that is a path": ({"name": "status"}, "name"),
    "a name like an id": ({"name": UNKNOWN_ID}, "name"),
    "a host with a path": ({"host": "10.0.0.1/x"}, "host"),
    "a host with a port": ({"host": "a.example.org:80"}, "write a name, such as example.org, or an address"),
    "a host in an unusual form": ({"host": "2130706433"}, "host"),
    "an unknown kind": ({"check": {"kind": "icmp"}}, "check.kind"),
    "a check without an end": ({"check": {"timeout_seconds": 3600}}, "check.timeout_seconds"),
    "a check that takes longer than its interval": (
        {"check": {"interval_seconds": 1}},
        "timeout_seconds: it must",
    ),
    "a path without a slash": ({"check": {"path": "health"}}, "check.path"),
    "a path with a line break": ({"check": {"path": "/\r\nX: y"}}, "check.path"),
    "a status that is none": ({"check": {"expected_status": 600}}, "check.expected_status"),
    "a public endpoint with a port": ({"public_endpoint": "a.example.org:80"}, "public_endpoint"),
    "a public endpoint with a wildcard": ({"public_endpoint": "*.example.org"}, "public_endpoint"),
    "a public endpoint that is an address": ({"public_endpoint": "10.0.0.1"}, "public_endpoint"),
    "a public endpoint that is a URL": ({"public_endpoint": "https://a.example.org"}, "public_endpoint"),
    "a public path without an endpoint": ({"public_path": "/x"}, "public_path: it needs a public_endpoint"),
    "a public path that Go does not take": (
        {"public_endpoint": "a.example.org", "public_path": "(?=x)"},
        "public_path",
    ),
    "a public path that is no expression": ({"public_endpoint": "a.example.org", "public_path": "["}, "public_path"),
    "an image with an option": ({"container": {"image": "--privileged"}}, "container.image"),
    "an image with a space": ({"container": {"image": "redis --privileged"}}, "container.image"),
    "a variable with a line break": ({"container": {"image": "a", "environment": {"A": "b\nC=d"}}}, "environment"),
    "a variable that is no name": ({"container": {"image": "a", "environment": {"A=B": "c"}}}, "environment"),
    "a folder of the host": ({"container": {"image": "a", "volumes": {"/etc": "/etc"}}}, "volumes"),
    "a folder that goes up": ({"container": {"image": "a", "volumes": {"d": "/a/../b"}}}, "container"),
    "a folder with options": ({"container": {"image": "a", "volumes": {"d": "/a:ro,z"}}}, "container"),
    "too little memory": ({"container": {"image": "a", "memory_bytes": 1}}, "container.memory_bytes"),
    "a webhook to a host inside": ({"webhook_url": "http://127.0.0.1/x"}, "webhook_url"),
    "a webhook that is no URL": ({"webhook_url": "x"}, "webhook_url"),
}


@pytest.mark.parametrize("case", WRONG)
async def test_what_cannot_be_is_refused_with_the_path_of_the_field(admin: Person, case: str) -> None:
    fields, path = WRONG[case]
    answer = await admin.http.post(SERVICES, json={"name": "redis", "port": 6379, **fields})
    assert answer.status_code == 422, answer.text
    assert path in answer.text
    assert "Content-Type" not in answer.text, "the body was the object that is asked for"
    assert (await admin.http.get(SERVICES)).json()["services"] == []
