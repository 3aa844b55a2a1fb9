"""GPU machines by the API: an administrator says what is wanted, and sees why it is not there."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from backplane.domain.gpus import FleetStatus, MachineState, Offer, SpendingCaps
from backplane.domain.users import Tier
from tests.gpu_machines import wanted
from tests.integration.api.running import Api, Person, StartApi

pytestmark = pytest.mark.asyncio(loop_scope="module")

URL = "/api/vastai/instances"
OFFER = Offer("7", "RTX_4090", 1, 350_000, 24.0, 0.99)
CAPS = SpendingCaps(10**7, 10**8)


async def test_a_machine_is_wanted_shown_explained_and_stopped(start_api: StartApi) -> None:
    api = await start_api(gpu_provider="vastai", gpu_max_machines=2, gpu_image="an/image")
    admin = await api.person(Tier.ADMIN)
    asked = await admin.http.post(URL, json={"gpu_type": "RTX_3090", "gpu_count": 2})
    assert asked.status_code == 202
    machine = asked.json()
    shown = {name: machine[name] for name in ("status", "gpu_type", "gpu_count", "image")}
    assert shown == {"status": "wanted", "gpu_type": "RTX_3090", "gpu_count": 2, "image": "an/image"}
    assert (await admin.http.post(URL, json={})).status_code == 202
    third = await admin.http.post(URL, json={})
    assert (third.status_code, "GPU_MAX_MACHINES" in third.json()["detail"]) == (409, True)
    listed = (await admin.http.get(URL)).json()["instances"]
    assert machine in listed
    assert len(listed) == 2
    stopped = await admin.http.delete(f"{URL}/{machine['id']}")
    assert stopped.status_code == 202
    assert "asks for it" in stopped.json()["reason"]
    assert (await admin.http.delete(f"{URL}/{machine['id']}")).json() == stopped.json()
    explained = (await admin.http.get(f"{URL}/{machine['id']}/explain")).json()
    assert explained["text"].startswith(f"Machine {machine['id']} is wanted: it is to end:")
    assert (await admin.http.get(f"{URL}/{machine['id']}")).json() == explained["instance"]


async def test_what_the_controller_saw_and_what_a_machine_cost_are_shown_without_its_token(
    start_api: StartApi,
) -> None:
    api = await start_api()
    admin = await api.person(Tier.ADMIN)
    machines, now = api.resources.store.gpu_machines, datetime.now(UTC)
    machine = wanted(now=now - timedelta(minutes=30), by="an operator")
    await machines.want(machine, 9)
    reserved = await machines.reserve(machine, OFFER, CAPS, now - timedelta(minutes=30))
    assert not isinstance(reserved, str | None)
    ready = replace(reserved, state=MachineState.READY, contract="c1", ready_at=now, url="https://192.0.2.1:4000")
    there = await machines.change(reserved, ready)
    assert there is not None
    assert await machines.charge(there, now)
    await machines.note(FleetStatus(now, None, "nobody knows how many calls wait", "Vast.ai: no answer", (OFFER,)))
    explained = (await admin.http.get(f"{URL}/{machine.id}/explain")).json()
    assert "The provider could not be asked: Vast.ai: no answer" in explained["text"]
    assert sum(float(charge["usd"]) for charge in explained["charges"]) == pytest.approx(0.175, abs=1e-5)
    assert "192.0.2.1" not in str(explained)
    fleet = (await admin.http.get("/api/vastai/explain")).json()
    assert (fleet["waiting"], fleet["usd_per_hour"], fleet["usd_per_hour_max"]) == (None, "0.35", "2.5")
    assert fleet["offers"][0]["usd_per_hour"] == "0.35"
    entries = (await admin.http.get("/agent/accounts/platform:gpus:micro_usd")).json()
    assert float(entries["spent"]) == pytest.approx(0.175, abs=1e-5)


async def test_without_a_provider_no_machine_can_be_wanted_and_nothing_is_there(api: Api) -> None:
    admin = await api.person(Tier.ADMIN)
    refused = await admin.http.post(URL, json={})
    assert (refused.status_code, "GPU_PROVIDER" in refused.json()["detail"]) == (409, True)
    assert (await admin.http.get(URL)).json() == {"instances": []}
    explained = (await admin.http.get("/api/vastai/explain")).json()
    assert (explained["looked_at"], "GPU_PROVIDER" in explained["decision"]) == (None, True)
    assert (await admin.http.get(f"{URL}/0123456789ab")).status_code == 404
    assert (await admin.http.delete(f"{URL}/0123456789ab")).status_code == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"gpu_type": "RTX 4090"}, "gpu_type"),
        ({"gpu_type": ""}, "gpu_type"),
        ({"gpu_count": 0}, "gpu_count"),
        ({"gpu_count": 10**9}, "gpu_count"),
        ({"gpu_count": "1"}, "gpu_count"),
        ({"image": "an image; rm -rf /"}, "image"),
        ({"image": "x" * 300}, "image"),
        ({"price": 1}, "price"),
    ],
)
async def test_a_wrong_wish_is_refused_with_its_field(api: Api, body: dict[str, object], field: str) -> None:
    admin = await api.person(Tier.ADMIN)
    refused = await admin.http.post(URL, json=body)
    assert (refused.status_code, refused.json()["field"]) == (422, field)
    assert (await admin.http.get(URL)).json() == {"instances": []}


async def test_machines_are_for_administrators(person: Person) -> None:
    for method, path in (
        ("GET", URL),
        ("POST", URL),
        ("GET", "/api/vastai/explain"),
        ("DELETE", f"{URL}/0123456789ab"),
    ):
        answer = await person.http.request(method, path, json={} if method == "POST" else None)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), path
