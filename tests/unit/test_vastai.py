"""Vast.ai's wire, with what goes wrong there."""

import json
from collections.abc import AsyncIterator

import httpx
import pytest

from backplane.domain.gpus import MachineSpec, Offer
from backplane.errors import Unavailable
from controller.gpus.provider import CreateRefused, NewInstance
from controller.gpus.vastai import VastAi
from tests.vastai import KEY, FakeVastAi, fake_vastai

SPEC = MachineSpec("RTX_4090", 1, "ollama/ollama", 50, ("m", "n"))
LABEL = "agents:abc:0123456789ab:1"
NEW = NewInstance(SPEC, LABEL, "a-token", "a certificate", "a key")
OFFER = Offer("8", "RTX_4090", 1, 350_000)


@pytest.fixture
async def fake() -> AsyncIterator[FakeVastAi]:
    async with fake_vastai() as fake:
        yield fake


@pytest.fixture
async def vastai(fake: FakeVastAi) -> AsyncIterator[VastAi]:
    vastai = VastAi(fake.url, KEY)
    yield vastai
    await vastai.close()


async def test_the_name_of_a_gpu_has_a_space_on_the_wire_and_prices_are_rounded_up(
    fake: FakeVastAi, vastai: VastAi
) -> None:
    cheap, dear = await vastai.offers(SPEC, 800_000)
    assert fake.bodies[0]["gpu_name"] == {"eq": "RTX 4090"}
    assert (cheap.id, cheap.micro_usd_per_hour, dear.micro_usd_per_hour) == ("8", 350_000, 421_334)
    assert (dear.gpu_type, dear.gpu_ram_gb, dear.reliability) == ("RTX_4090", 24.0, 0.99)


@pytest.mark.parametrize("odd", ["many", float("nan"), float("inf"), [1], {"a": 1}, "1e999"])
async def test_odd_numbers_of_an_offer_or_a_list_are_no_fault(fake: FakeVastAi, vastai: VastAi, odd: object) -> None:
    fake.odd = odd
    for offer in await vastai.offers(SPEC, 800_000):
        json.dumps([offer.gpu_count, offer.gpu_ram_gb, offer.reliability], allow_nan=False)
    with pytest.raises(Unavailable, match="does not say how many"):
        await vastai.instances({})


async def test_a_machine_is_made_with_its_label_and_nothing_of_the_platform_but_a_token_of_its_own(
    fake: FakeVastAi, vastai: VastAi
) -> None:
    contract = await vastai.create(OFFER, NEW)
    body = fake.bodies[-1]
    assert int(contract) in fake.instances
    assert (body["label"], body["disk"], body["image"]) == (LABEL, 50, "ollama/ollama")
    assert body["env"] == {
        "-p 11435:11435": "1",
        "AGENT_GPU_TOKEN": "a-token",
        "AGENT_GPU_CERTIFICATE": "YSBjZXJ0aWZpY2F0ZQ==",
        "AGENT_GPU_KEY": "YSBrZXk=",
        "AGENT_GPU_MODELS": "m n",
    }
    assert KEY not in json.dumps(body)
    assert "OLLAMA_HOST=127.0.0.1:11434" in body["onstart"]
    assert len(body["onstart"]) < 4000, "the provider takes no longer one"


async def test_the_key_is_in_the_header_of_each_request_and_nowhere_else(fake: FakeVastAi, vastai: VastAi) -> None:
    await vastai.offers(SPEC, 800_000)
    await vastai.destroy(await vastai.create(OFFER, NEW))
    await vastai.instances({})
    assert len(fake.requests) == 4
    for request in fake.requests:
        assert request.headers["authorization"] == f"Bearer {KEY}"
        assert KEY not in request.target
        assert KEY.encode() not in request.body


@pytest.mark.parametrize("count", [0, 1, 25, 26, 51])
async def test_a_list_has_all_pages(fake: FakeVastAi, vastai: VastAi, count: int) -> None:
    added = {str(fake.add(f"machine {number}")) for number in range(count)}
    assert {instance.contract for instance in await vastai.instances({})} == added
    assert len(fake.requests) == max(-(-count // 25), 1)


async def test_a_list_that_lacks_machines_is_none(fake: FakeVastAi, vastai: VastAi) -> None:
    for _ in range(30):
        fake.add("one")
    fake.short_by = 1
    with pytest.raises(Unavailable, match="29 of 30 machines"):
        await vastai.instances({})


@pytest.mark.parametrize(
    ("actual", "status"),
    [
        (None, "starting"),
        ("created", "starting"),
        ("loading", "starting"),
        ("running", "running"),
        ("stopped", "stopped"),
        ("exited", "stopped"),
        ("offline", "unknown"),
        ("a new word", "unknown"),
    ],
)
async def test_each_state_of_the_wire_means_one_of_ours(
    fake: FakeVastAi, vastai: VastAi, actual: str | None, status: str
) -> None:
    fake.add(LABEL, actual, price=0.1234567)
    [instance] = await vastai.instances({})
    assert (instance.status, instance.micro_usd_per_hour) == (status, 123_457)
    assert instance.url == "https://192.0.2.7:41234"


async def test_a_machine_without_a_port_has_no_address_yet(fake: FakeVastAi, vastai: VastAi) -> None:
    number = fake.add(LABEL, None)
    fake.instances[number] |= {"ports": None, "public_ipaddr": None, "dph_total": None, "label": None}
    [instance] = await vastai.instances({})
    assert (instance.url, instance.micro_usd_per_hour, instance.label) == (None, None, "")


async def test_a_plain_429_leaves_the_provider_alone_for_a_while(fake: FakeVastAi, vastai: VastAi) -> None:
    fake.busy = 1
    with pytest.raises(Unavailable, match="asked too often") as busy:
        await vastai.instances({})
    assert busy.value.retry_after == 30


@pytest.mark.parametrize(("how", "is_there"), [("before", False), ("refused after", True)])
async def test_a_refused_create_is_refused_whether_or_not_it_is_true(
    fake: FakeVastAi, vastai: VastAi, how: str, is_there: bool
) -> None:
    fake.create_fails = how
    with pytest.raises(CreateRefused):
        await vastai.create(OFFER, NEW)
    assert [one.label for one in await vastai.instances({})] == [LABEL] * is_there


async def test_a_create_without_an_answer_may_have_made_a_machine(fake: FakeVastAi, vastai: VastAi) -> None:
    fake.create_fails = "after"
    with pytest.raises(Unavailable):
        await vastai.create(OFFER, NEW)
    assert [one.label for one in await vastai.instances({})] == [LABEL]


async def test_a_destroy_that_lies_shows_in_the_list(fake: FakeVastAi, vastai: VastAi) -> None:
    fake.destroys_lie = True
    number = fake.add(LABEL)
    await vastai.destroy(str(number))
    assert [one.contract for one in await vastai.instances({})] == [str(number)]


@pytest.mark.parametrize("fault", ["500", "401", "refused", "away"])
async def test_no_error_names_the_key_or_a_query(fake: FakeVastAi, fault: str) -> None:
    fake.failing = int(fault == "500")
    url = "http://127.0.0.1:1" if fault == "away" else fake.url
    vastai = VastAi(url, KEY if fault != "401" else f"{KEY}-old")
    asked = vastai.create(Offer("gone", "RTX_4090", 1, 1), NEW) if fault == "refused" else vastai.instances({})
    with pytest.raises((Unavailable, CreateRefused)) as failed:
        await asked
    await vastai.close()
    shown = "".join(str(error) for error in (failed.value, failed.value.__cause__, failed.value.__context__))
    assert KEY not in str(failed.value)
    assert "select_filters" not in str(failed.value)
    assert not isinstance(failed.value.__cause__, httpx.HTTPError), shown
