"""`agentctl up` with METRICS_PORT: every process on the machine is scraped at a port of its own, and breaks no rule."""

import asyncio
import contextlib
import socket
from pathlib import Path

import httpx
import pytest

from agentctl.local.embedded import find_redis_server, free_port
from backplane.process.metrics import exposition, process_registry
from tests.e2e.test_agentctl_up import up
from tests.metrics import Scraped, broken_conventions, parsed, scrape
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_redis_server() is None, reason="needs redis-server ≥ 6.2"),
]


def two_free_ports() -> int:
    """The first of two in a row."""
    while True:
        port = free_port()
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port


async def scraped(port: int) -> Scraped:
    """Once somebody is there: the platform is up without its controller, which may take a moment longer."""

    async def look() -> Scraped | None:
        with contextlib.suppress(httpx.TransportError):
            return await scrape(f"http://127.0.0.1:{port}")
        return None

    found = await wait_until(look)
    assert found
    return found


@pytest.mark.parametrize("single_process", ["true", "false"])
def test_the_worker_has_the_port_and_the_controller_the_next(tmp_path: Path, single_process: str) -> None:
    port, metrics_port = free_port(), two_free_ports()
    with up(tmp_path, port, METRICS_PORT=str(metrics_port), SINGLE_PROCESS=single_process) as running:
        api, worker, controller = (asyncio.run(scraped(each)) for each in (port, metrics_port, metrics_port + 1))
        assert running.stop() == 0
    assert "agent_queue_depth" in api.names
    assert "agent_worker_slots" in worker.names
    assert "agent_webhooks_total" in controller.names
    assert [broken_conventions(found.families) for found in (api, worker, controller)] == [[], [], []]
    every_process = parsed(exposition(process_registry())[0].decode()).names
    roles = (api, worker, controller)
    agents = [{name for name in found.names - every_process if name.startswith("agent_")} for found in roles]
    assert not agents[0] & agents[1] | agents[1] & agents[2] | agents[0] & agents[2]
