"""Deployments by the API: what is taken, whose it is, and what is refused."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from backplane.domain.deployments import DeploymentStatus, Rollout
from backplane.domain.users import Tier
from tests.deployments import AUTOSCALED, ELEVATED, IMAGE, MANIFEST, manifest, new_deployment
from tests.integration.api.running import Api, Person, StartApi

pytestmark = pytest.mark.asyncio(loop_scope="module")

URL = "/api/deployments"
NOBODYS = "01936f7e-9f5c-7b3a-8c41-3d5e0f9a2b6c"


@pytest_asyncio.fixture(loop_scope="module")
async def deploying(start_api: StartApi) -> AsyncIterator[Api]:
    yield await start_api(deploy_target="kubernetes", deployments_user_max=10)


@pytest_asyncio.fixture(loop_scope="module")
async def ada(deploying: Api) -> Person:
    return await deploying.person()


def body(**changes: Any) -> dict[str, Any]:
    return {"agent_id": "support", "namespace": "team-a", "image": IMAGE, "manifest": MANIFEST, **changes}


async def made(person: Person, **changes: Any) -> dict[str, Any]:
    answer = await person.http.post(URL, json=body(**changes))
    assert answer.status_code == 201, answer.text
    deployment: dict[str, Any] = answer.json()
    return deployment


async def runs(api: Api, deployment: dict[str, Any], **found: Any) -> None:
    """A controller found it as wanted."""
    store = api.resources.store.deployments
    there = await store.get(None, deployment["id"])
    rollout = Rollout(revision=there.current.number, replicas=2, ready_replicas=2, is_complete=True, **found)
    assert await store.write_rollout(there, rollout, DeploymentStatus.RUNNING, "")


async def test_a_deployment_is_made_listed_shown_and_explained(deploying: Api, ada: Person) -> None:
    deployment = await made(ada)
    assert (deployment["status"], deployment["replicas"], deployment["revision"]) == ("deploying", 2, 1)
    assert (deployment["access_tier"], deployment["approval"]) == ("tier_1_read", "not_needed")
    assert deployment["manifest"] == MANIFEST
    assert deployment["url"] == f"http://support-{deployment['id'][-12:]}.team-a.svc:80"
    assert (await ada.http.get(f"{URL}/{deployment['id']}")).json() == deployment
    [listed] = (await ada.http.get(URL)).json()["deployments"]
    assert listed == {name: value for name, value in deployment.items() if name != "manifest"}
    await runs(deploying, deployment, drift=("spec.replicas: wanted 2, found 5",))
    explained = (await ada.http.get(f"{URL}/{deployment['id']}/explain")).json()
    assert "differs from what was declared" in explained["text"]
    assert (await ada.http.get(f"{URL}/{deployment['id']}/drift")).json()["drift"] == explained["deployment"]["drift"]


async def test_without_a_target_nothing_is_deployed_but_all_is_read(start_api: StartApi) -> None:
    api = await start_api()
    person = await api.person()
    answer = await person.http.post(URL, json=body())
    assert (answer.status_code, answer.json()["code"]) == (409, "deployments_off")
    assert "DEPLOY_TARGET" in answer.json()["detail"]
    assert (await person.http.get(URL)).json() == {"deployments": [], "next_cursor": None}


OF_ANOTHER = [
    ("GET", "", None),
    ("PATCH", "", {"image": "image:2"}),
    ("DELETE", "", None),
    ("DELETE", "?force=true", None),
    ("POST", "/scale", {"replicas": 3}),
    ("POST", "/rollback", {}),
    ("POST", "/restart", None),
    ("POST", "/pause", None),
    ("POST", "/resume", None),
    ("GET", "/revisions", None),
    ("GET", "/events", None),
    ("GET", "/logs?follow=false", None),
    ("GET", "/explain", None),
    ("GET", "/drift", None),
]


async def test_another_users_deployment_and_none_are_answered_alike(deploying: Api, ada: Person) -> None:
    deployment, eve = await made(ada), await deploying.person()
    for method, path, sent in OF_ANOTHER:
        answers = [await eve.http.request(method, f"{URL}/{id}{path}", json=sent) for id in (deployment["id"], NOBODYS)]
        assert [answer.status_code for answer in answers] == [404, 404], (method, path)
        details = [answer.json()["detail"].replace(deployment["id"], NOBODYS) for answer in answers]
        assert details[0] == details[1]
    decision = await eve.http.post(f"{URL}/{deployment['id']}/decision", json={"decision": "approve", "revision": 1})
    assert decision.status_code == 403
    assert (await eve.http.get(URL)).json()["deployments"] == []
    assert (await ada.http.get(f"{URL}/{deployment['id']}")).json() == deployment


async def test_an_administrator_sees_and_changes_all(deploying: Api, ada: Person) -> None:
    deployment, admin = await made(ada), await deploying.person(Tier.ADMIN)
    assert [one["id"] for one in (await admin.http.get(URL)).json()["deployments"]] == [deployment["id"]]
    scaled = await admin.http.post(f"{URL}/{deployment['id']}/scale", json={"replicas": 5})
    assert (scaled.status_code, scaled.json()["replicas"]) == (200, 5)


async def test_the_same_key_answers_the_same_deployment(ada: Person) -> None:
    headers = {"Idempotency-Key": "a key"}
    first, again = [await ada.http.post(URL, json=body(), headers=headers) for _ in range(2)]
    assert (first.status_code, again.status_code, again.json()) == (201, 200, first.json())
    other = await ada.http.post(URL, json=body(image="image:2"), headers=headers)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_key_reused")
    plain = await ada.http.post(URL, json=body())
    assert (plain.status_code, plain.json()["code"]) == (409, "deployment_exists")
    assert first.json()["id"] in plain.json()["detail"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"agent_id": "Support"}, "agent_id"),
        ({"agent_id": "1support"}, "agent_id"),
        ({"agent_id": "support-"}, "agent_id"),
        ({"agent_id": "a" * 41}, "agent_id"),
        ({"agent_id": "a.b"}, "agent_id"),
        ({"namespace": "Team"}, "namespace"),
        ({"namespace": "-team"}, "namespace"),
        ({"namespace": "a" * 64}, "namespace"),
        ({"namespace": "default"}, "namespace"),
        ({"namespace": "kube-system"}, "namespace"),
        ({"namespace": "agents"}, "namespace"),
        ({"namespace": "agents-tools"}, "namespace"),
        ({"image": ""}, "image"),
        ({"image": "--privileged"}, "image"),
        ({"image": "a b"}, "image"),
        ({"image": "a" * 501}, "image"),
        ({"manifest": "text"}, "manifest"),
        ({"manifest": {}}, "manifest.apiVersion"),
        (
            {"manifest": manifest(spec__deployment__scaling__min_replicas=-1)},
            "manifest.spec.deployment.scaling.min_replicas",
        ),
        ({"replicas": 3}, "replicas"),
    ],
)
async def test_what_a_cluster_would_refuse_is_refused_here(ada: Person, changes: dict[str, Any], field: str) -> None:
    answer = await ada.http.post(URL, json=body(**changes))
    assert (answer.status_code, answer.json()["field"]) == (422, field)
    assert (await ada.http.get(URL)).json()["deployments"] == []


@pytest.mark.parametrize("replicas", [-1, 101, 10**9, 1.5, "3", None])
async def test_a_number_of_replicas_that_cannot_be(ada: Person, replicas: Any) -> None:
    deployment = await made(ada)
    answer = await ada.http.post(f"{URL}/{deployment['id']}/scale", json={"replicas": replicas})
    assert (answer.status_code, answer.json()["field"]) == (422, "replicas")


async def test_it_is_scaled_between_the_bounds(ada: Person) -> None:
    deployment = await made(ada)
    for replicas in (0, 100):
        answer = await ada.http.post(f"{URL}/{deployment['id']}/scale", json={"replicas": replicas})
        assert (answer.status_code, answer.json()["replicas"]) == (200, replicas)


async def test_an_autoscaled_one_is_not_scaled_by_hand(ada: Person) -> None:
    deployment = await made(ada, manifest=manifest(**AUTOSCALED))
    assert deployment["autoscaled"] == {"min": 1, "max": 5}
    answer = await ada.http.post(f"{URL}/{deployment['id']}/scale", json={"replicas": 3})
    assert (answer.status_code, answer.json()["code"]) == (409, "deployment_autoscaled")


async def test_revisions_come_with_changes_rollbacks_and_restarts(ada: Person) -> None:
    url = f"{URL}/{(await made(ada))['id']}"
    assert (await ada.http.patch(url, json={})).json()["revision"] == 1
    assert (await ada.http.patch(url, json={"image": "image:2"})).json()["revision"] == 2
    back = (await ada.http.post(f"{url}/rollback", json={})).json()
    assert (back["revision"], back["image"]) == (3, IMAGE)
    assert (await ada.http.post(f"{url}/restart")).json()["revision"] == 4
    page = (await ada.http.get(f"{url}/revisions", params={"limit": 3})).json()
    assert [revision["number"] for revision in page["revisions"]] == [4, 3, 2]
    rest = (await ada.http.get(f"{url}/revisions", params={"cursor": page["next_cursor"]})).json()
    assert ([revision["number"] for revision in rest["revisions"]], rest["next_cursor"]) == ([1], None)
    missing = await ada.http.post(f"{url}/rollback", json={"revision": 9})
    assert (missing.status_code, "revision 9" in missing.json()["detail"]) == (404, True)
    events = (await ada.http.get(f"{url}/events")).json()["events"]
    assert [event["type"] for event in events] == ["revision", "revision", "revision", "created"]


async def test_what_needs_an_administrator_waits_for_one(deploying: Api, ada: Person) -> None:
    deployment, admin = await made(ada, manifest=manifest(**ELEVATED)), await deploying.person(Tier.ADMIN)
    assert (deployment["approval"], deployment["running_revision"]) == ("pending", None)
    assert "administrator" in deployment["reason"]
    url = f"{URL}/{deployment['id']}"
    waiting = (await admin.http.get(URL, params={"approval": "pending"})).json()["deployments"]
    assert [one["id"] for one in waiting] == [deployment["id"]]
    wrong = await admin.http.post(f"{url}/decision", json={"decision": "approve", "revision": 2})
    assert wrong.status_code == 409
    approved = (await admin.http.post(f"{url}/decision", json={"decision": "approve", "revision": 1})).json()
    assert (approved["approval"], approved["running_revision"]) == ("approved", 1)
    await ada.http.patch(url, json={"image": "image:2"})
    rejected = (await admin.http.post(f"{url}/decision", json={"decision": "reject", "reason": "no"})).json()
    assert (rejected["revision"], rejected["image"], rejected["running_revision"]) == (3, IMAGE, 3)


async def test_a_call_waits_for_the_rollout_when_it_is_asked_to(deploying: Api, ada: Person) -> None:
    creation = asyncio.create_task(ada.http.post(URL, json=body(), params={"wait_seconds": 30}))
    while not (listed := (await ada.http.get(URL)).json()["deployments"]):
        pass
    await runs(deploying, listed[0])
    answer = await creation
    assert (answer.status_code, answer.json()["status"]) == (201, "running")
    too_long = await ada.http.post(f"{URL}/{listed[0]['id']}/restart", params={"wait_seconds": 61})
    assert too_long.status_code == 422


async def test_a_wait_ends_at_its_time_and_does_not_wait_for_people(ada: Person) -> None:
    deployment = await made(ada)
    url = f"{URL}/{deployment['id']}"
    late = await ada.http.post(f"{url}/restart", params={"wait_seconds": 0.1})
    assert late.json()["status"] == "deploying"
    await ada.http.post(f"{url}/pause")
    paused = await ada.http.patch(url, json={"image": "image:2"}, params={"wait_seconds": 60})
    assert paused.json()["paused"]
    waiting = await ada.http.patch(url, json={"manifest": manifest(**ELEVATED)}, params={"wait_seconds": 60})
    assert waiting.json()["approval"] == "pending"


async def test_it_is_there_until_a_controller_proved_that_nothing_is_left(deploying: Api, ada: Person) -> None:
    url = f"{URL}/{(await made(ada))['id']}"
    deleting = await ada.http.delete(url, params={"grace_seconds": 5})
    assert (deleting.status_code, deleting.json()["status"]) == (202, "stopped")
    shown = (await ada.http.get(url)).json()
    assert shown["deleted_at"] is not None
    assert (await ada.http.patch(url, json={"image": "image:2"})).json()["code"] == "transition_not_allowed"
    assert (await ada.http.post(URL, json=body())).json()["code"] == "deployment_exists"
    store = deploying.resources.store.deployments
    await store.gone(await store.get(None, shown["id"]))
    assert (await ada.http.get(url)).status_code == 404
    await made(ada)


async def test_its_user_cannot_leave_behind_what_runs_by_force(ada: Person) -> None:
    url = f"{URL}/{(await made(ada))['id']}"
    refused = await ada.http.delete(url, params={"force": True})
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert (await ada.http.get(url)).json()["deleted_at"] is None


async def test_it_is_forgotten_by_force_and_the_answer_says_what_may_be_left(deploying: Api, ada: Person) -> None:
    deployment, admin = await made(ada), await deploying.person(Tier.ADMIN)
    gone = await admin.http.delete(f"{URL}/{deployment['id']}", params={"force": True})
    assert (gone.status_code, deployment["id"] in gone.json()["left"]) == (200, True)
    assert (await ada.http.get(f"{URL}/{deployment['id']}")).status_code == 404


async def test_a_user_has_so_many_and_no_more(ada: Person) -> None:
    for number in range(10):
        await made(ada, agent_id=f"a{number}")
    answer = await ada.http.post(URL, json=body())
    assert answer.status_code == 413


async def test_a_namespace_of_another_user_is_not_available(deploying: Api, ada: Person) -> None:
    await made(ada)
    eve = await deploying.person()
    answer = await eve.http.post(URL, json=body(agent_id="other"))
    assert (answer.status_code, answer.json()["code"]) == (409, "namespace_taken")


@pytest.mark.slow
async def test_a_page_costs_the_same_however_many_there_are(deploying: Api) -> None:
    admin = await deploying.person(Tier.ADMIN)
    store = deploying.resources.store
    users = [(await store.users.create_token(f"user{number}", Tier.STANDARD))[0].user for number in range(10)]
    for number in range(10_000):
        new = new_deployment(f"a{number}", f"n{number % 10}")
        await store.deployments.create(users[number % 10], new, most=10_000)
    loop, seen, costs, cursor = asyncio.get_running_loop(), set[str](), list[float](), None
    while True:
        began = loop.time()
        page = (await admin.http.get(URL, params={"limit": 200, **({"cursor": cursor} if cursor else {})})).json()
        costs.append(loop.time() - began)
        seen |= {deployment["id"] for deployment in page["deployments"]}
        if (cursor := page["next_cursor"]) is None:
            break
    assert (len(seen), len(costs)) == (10_000, 50)
    assert sum(costs[-10:]) < 5 * sum(costs[:10])
    none = (await admin.http.get(URL, params={"status": "failed"})).json()
    assert none == {"deployments": [], "next_cursor": None}
