"""A server that closes a connection at once is one that cannot be reached, for every HTTP client of the platform."""

import asyncio
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx
import httpx2
import pytest
import uvloop

from backplane.net.egress import CheckedTransport
from backplane.net.hang_ups import hang_ups_as
from worker.llm.wire import BoundedTransport

AT_ONCE, ROUNDS = 50, 8
"""Of these 400 requests some 8 meet the connection while it is opened, on the machine where this was found."""
CLIENTS: dict[str, tuple[Callable[[], Any], type[Exception]]] = {
    "of pages, webhooks and MCP": (
        lambda: httpx.AsyncClient(transport=CheckedTransport(allow_private=True)),
        httpx.TransportError,
    ),
    "of models": (lambda: httpx2.AsyncClient(transport=BoundedTransport(1024, {})), httpx2.TransportError),
}


@pytest.fixture
def server_that_hangs_up() -> Iterator[str]:
    """It resets each connection that it accepts."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(AT_ONCE)
        is_open = True

        def serve() -> None:
            while is_open:
                connection, _ = listening.accept()
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.close()

        serving = threading.Thread(target=serve)
        serving.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        is_open = False
        socket.create_connection(listening.getsockname()).close()
        serving.join()


@pytest.mark.parametrize("client", CLIENTS)
def test_a_server_that_closes_the_connection_at_once_is_not_reached(server_that_hangs_up: str, client: str) -> None:
    make, expected = CLIENTS[client]

    async def ask() -> list[Any]:
        found: list[Any] = []
        async with make() as http:
            for _ in range(ROUNDS):
                asked: list[Awaitable[Any]] = [http.get(server_that_hangs_up) for _ in range(AT_ONCE)]
                found += await asyncio.gather(*asked, return_exceptions=True)
        return found

    errors = uvloop.run(ask())
    assert [error for error in errors if not isinstance(error, expected)] == []


def test_another_error_of_that_kind_is_a_fault_and_stays_one() -> None:
    nothing: Any = object()
    with pytest.raises(AttributeError), hang_ups_as(OSError):
        nothing.getpeername()
