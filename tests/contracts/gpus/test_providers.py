"""What every provider of GPU machines does: Vast.ai by its wire, and machines that are there already."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from backplane.domain.gpus import MachineSpec, Offer
from controller.gpus.provider import CreateRefused, GpuProvider, Instance, NewInstance
from controller.gpus.static import StaticMachine, StaticMachines
from controller.gpus.vastai import VastAi
from tests.vastai import KEY, fake_vastai

SPEC = MachineSpec("RTX_4090", 1, "ollama/ollama", 50, ("m",))
NEW = NewInstance(SPEC, "agents:abc:0123456789ab:1", "a-token", "a certificate", "a key")
MOST = 800_000


def rack(number: int, price: int) -> StaticMachine:
    return StaticMachine(f"rack{number}", f"http://192.0.2.{number}:11434", "ollama", 8, "RTX_4090", 1, price)


@pytest.fixture(params=["vastai", "static"])
async def provider(request: pytest.FixtureRequest) -> AsyncIterator[GpuProvider]:
    if request.param == "static":
        yield StaticMachines([rack(1, 420_000), rack(2, 350_000), rack(3, 9_000_000)])
        return
    async with fake_vastai() as fake:
        vastai = VastAi(fake.url, KEY)
        yield vastai
        await vastai.close()


async def test_offers_within_the_price_come_with_the_cheapest_first(provider: GpuProvider) -> None:
    offers = await provider.offers(SPEC, MOST)
    assert len(offers) == 2
    assert [offer.gpu_type for offer in offers] == ["RTX_4090", "RTX_4090"]
    assert offers[0].micro_usd_per_hour < offers[1].micro_usd_per_hour <= MOST


async def test_of_a_gpu_that_nobody_has_there_is_no_offer(provider: GpuProvider) -> None:
    assert await provider.offers(replace(SPEC, gpu_type="H100_SXM"), MOST) == []


async def test_a_machine_is_in_the_list_under_its_label_until_it_is_destroyed(provider: GpuProvider) -> None:
    offer = (await provider.offers(SPEC, MOST))[0]
    contract = await provider.create(offer, NEW)
    [there] = await provider.instances({contract: NEW.label})
    assert (there.contract, there.label) == (contract, NEW.label)
    await provider.destroy(contract)
    assert await provider.instances({}) == []


async def test_an_offer_that_is_gone_is_refused(provider: GpuProvider) -> None:
    with pytest.raises(CreateRefused):
        await provider.create(Offer("gone", "RTX_4090", 1, 1), NEW)
    assert await provider.instances({}) == []


async def test_to_destroy_what_is_not_there_is_no_error(provider: GpuProvider) -> None:
    await provider.destroy("999")


async def test_machines_that_are_there_already_are_taken_once_and_known_again_after_a_restart() -> None:
    first = StaticMachines([rack(1, 0), rack(2, 0)])
    offer = (await first.offers(SPEC, MOST))[0]
    contract = await first.create(offer, NEW)
    with pytest.raises(CreateRefused):
        await first.create(offer, replace(NEW, label="another"))
    assert offer.id not in [left.id for left in await first.offers(SPEC, MOST)]
    second = StaticMachines([rack(1, 0), rack(2, 0)])
    [known] = await second.instances({contract: NEW.label, "rack9": "not in the setting any more"})
    assert known == Instance("rack1", NEW.label, "running", 0, "http://192.0.2.1:11434", "ollama", 8)
    assert [left.id for left in await second.offers(SPEC, MOST)] == ["rack2"]
