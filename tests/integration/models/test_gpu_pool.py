"""The model server that is many machines: calls go to those that are there, while these come and go."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import pytest
from pydantic import SecretStr

from backplane.domain.gpus import RegisteredServer
from backplane.limits.slots.base import NO_SLOTS
from backplane.limits.slots.redis import RedisSlots
from backplane.machine_identity import machine_certificate, machine_token
from backplane.redis.client import RedisClients
from backplane.store import ModelServerTable
from controller.gpus.health import Probe, fault_of
from tests.answering import Answer, Heard, answering
from tests.gpu_machines import MemoryServers
from tests.scripted_models import Reply, ScriptedModels, said, scripted_models
from tests.waiting import wait_until
from worker.llm.base import CallLimits, Message, ModelRefused, ModelRequest, ModelUnavailable
from worker.llm.catalogue import ServerSpec
from worker.llm.ollama import open_server
from worker.llm.served import ServerPool

SECRET = "s" * 32
LIMITS = CallLimits(5.0, 5.0, 100_000)
REQUEST = ModelRequest((Message("user", "hello"),), max_output_tokens=10)
FIRST, SECOND = "0" * 12, "1" * 12


def tls_of(folder: Path, machine_id: str) -> ssl.SSLContext:
    """As the proxy on a machine serves."""
    for name, pem in zip(("certificate", "key"), machine_certificate(SECRET, machine_id), strict=True):
        (folder / f"{name}.pem").write_text(pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return context


def registered(machine_id: str, url: str, slots: int = 2, models: Sequence[str] = ("m",)) -> RegisteredServer:
    name = f"gpu-{machine_id}"
    return RegisteredServer(name, "gpu", "ollama", url, slots, machine_id, "vastai", tuple(models), "RTX_4090", 1)


def spec_of(server: RegisteredServer) -> ServerSpec:
    certificate, _ = machine_certificate(SECRET, server.machine_id)
    token = SecretStr(machine_token(SECRET, server.machine_id))
    is_tls = server.url.startswith("https")
    return ServerSpec(
        server.name, "ollama", server.url, token, slots=server.slots, certificate=certificate if is_tls else ""
    )


@dataclass
class Pool:
    pool: ServerPool
    table: MemoryServers
    slots: RedisSlots

    async def ask(self, model: str = "m") -> str:
        return (await self.pool.complete(model, REQUEST, LIMITS, lambda _: None)).text


@pytest.fixture
async def pool(redis: str) -> AsyncIterator[Pool]:
    clients = RedisClients(redis)
    slots = RedisSlots(clients, lease_seconds=600.0, turn_seconds=600.0)
    running = asyncio.create_task(slots.run())
    table = MemoryServers()
    pool = ServerPool("gpu", cast(ModelServerTable, table), slots, spec_of, lambda spec: open_server(spec, LIMITS))
    yield Pool(pool, table, slots)
    await pool.close()
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    await clients.close()


@asynccontextmanager
async def machines(count: int) -> AsyncIterator[list[ScriptedModels]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(scripted_models()) for _ in range(count)]


async def test_its_slots_are_those_of_the_machines_that_take_calls(pool: Pool) -> None:
    assert pool.pool.spec.slots == NO_SLOTS
    await pool.table.register(registered(FIRST, "http://127.0.0.1:1", slots=2))
    await pool.table.register(registered(SECOND, "http://127.0.0.1:1", slots=3))
    await pool.pool.refresh()
    assert pool.pool.spec.slots == 5
    await pool.table.drain(f"gpu-{SECOND}")
    await pool.pool.refresh()
    assert pool.pool.spec.slots == 2
    await pool.table.deregister(f"gpu-{FIRST}")
    await pool.pool.refresh()
    assert pool.pool.spec.slots == NO_SLOTS


async def test_a_call_goes_with_the_machines_own_token_over_its_own_certificate(pool: Pool, tmp_path: Path) -> None:
    async with scripted_models(tls_of(tmp_path, FIRST)) as machine:
        machine.script(said("ollama", "hi"))
        await pool.table.register(registered(FIRST, machine.url))
        await pool.pool.refresh()
        assert await pool.ask() == "hi"
        [asked] = machine.asked
        assert asked.headers["authorization"] == f"Bearer {machine_token(SECRET, FIRST)}"


async def test_a_machine_with_another_certificate_gets_neither_token_nor_prompt(pool: Pool, tmp_path: Path) -> None:
    async with scripted_models(tls_of(tmp_path, SECOND)) as machine:
        await pool.table.register(registered(FIRST, machine.url))
        await pool.pool.refresh()
        with pytest.raises(ModelUnavailable):
            await pool.ask()
        assert machine.asked == []


async def test_calls_at_once_go_to_the_machine_with_the_fewest(pool: Pool) -> None:
    async with machines(2) as both:
        for machine_id, machine in zip((FIRST, SECOND), both, strict=True):
            machine.script(Reply(ending="hang"))
            await pool.table.register(registered(machine_id, machine.url))
        await pool.pool.refresh()
        calls = [asyncio.create_task(pool.ask()) for _ in range(4)]
        await wait_until(lambda: [machine.running_calls for machine in both] == [2, 2])
        loads = await pool.slots.load([f"gpu-{FIRST}", f"gpu-{SECOND}"])
        assert [load.running for load in loads.values()] == [2, 2], "the controller sees who has calls"
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)


async def test_a_machine_that_drains_ends_its_calls_and_gets_no_new_ones(pool: Pool) -> None:
    async with machines(2) as (old, new):
        old.script(Reply(ending="hang"))
        await pool.table.register(registered(FIRST, old.url))
        await pool.pool.refresh()
        call = asyncio.create_task(pool.ask())
        await wait_until(lambda: old.running_calls == 1)
        await pool.table.drain(f"gpu-{FIRST}")
        new.script(said("ollama", "from the new one"))
        await pool.table.register(registered(SECOND, new.url))
        await pool.pool.refresh()
        assert await pool.ask() == "from the new one"
        assert old.running_calls == 1
        call.cancel()
        await asyncio.wait([call])


async def test_a_machine_that_is_gone_is_left_out_while_there_are_others(pool: Pool) -> None:
    async with machines(1) as [there]:
        there.script(said("ollama", "there"))
        await pool.table.register(registered(FIRST, "http://127.0.0.1:1", slots=100))
        await pool.pool.refresh()
        with pytest.raises(ModelUnavailable):
            await pool.ask()
        await pool.table.register(registered(SECOND, there.url, slots=1))
        await pool.pool.refresh()
        assert await pool.ask() == "there"


async def test_a_machine_that_has_another_address_is_called_there(pool: Pool) -> None:
    async with machines(1) as [there]:
        there.script(said("ollama", "there"))
        server = registered(FIRST, "http://127.0.0.1:1")
        await pool.table.register(server)
        await pool.pool.refresh()
        await pool.table.register(replace(server, url=there.url))
        await pool.pool.refresh()
        assert await pool.ask() == "there"


async def test_a_model_that_no_machine_has_is_refused_with_those_they_have(pool: Pool) -> None:
    await pool.table.register(registered(FIRST, "http://127.0.0.1:1", models=("qwen",)))
    await pool.pool.refresh()
    with pytest.raises(ModelRefused, match="they have: qwen"):
        await pool.ask("llama")


async def test_without_any_machine_a_call_may_be_tried_again(pool: Pool) -> None:
    with pytest.raises(ModelUnavailable, match="no GPU machine is there"):
        await pool.ask()


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        pytest.param(Answer(200, b'{"models": [{"name": "m:latest"}]}'), None, id="it has the model"),
        pytest.param(Answer(200, b'{"models": []}'), "has not loaded m yet", id="it has none yet"),
        pytest.param(Answer(401), "answered 401", id="it does not know the token"),
        pytest.param(Answer(200, b"<html>"), "no list of models", id="something else answers"),
        pytest.param(Answer(200, b"x" * 2_000_000), "too much", id="it answers for ever"),
    ],
)
async def test_a_machine_is_healthy_when_its_model_server_has_the_models(
    tmp_path: Path, answer: Answer, fault: str | None
) -> None:
    heard: list[Heard] = []

    def reply(request: Heard) -> Answer:
        heard.append(request)
        return answer

    certificate, _ = machine_certificate(SECRET, FIRST)
    async with answering(reply, tls_of(tmp_path, FIRST)) as url:
        found = await fault_of(Probe(url, "ollama", "a-token", certificate, ("m",)))
    assert heard[0].headers["authorization"] == "Bearer a-token"
    assert (found is None) == (fault is None)
    assert (fault or "") in (found or "")


async def test_a_machine_with_another_certificate_is_not_healthy(tmp_path: Path) -> None:
    certificate, _ = machine_certificate(SECRET, SECOND)
    async with answering(lambda _: pytest.fail("it was asked"), tls_of(tmp_path, FIRST)) as url:
        assert "cannot be reached" in (await fault_of(Probe(url, "ollama", "a-token", certificate, ())) or "")
    assert "cannot be reached" in (await fault_of(Probe("http://127.0.0.1:1", "ollama", "", "", ())) or "")
