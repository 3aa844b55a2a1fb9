"""What a name resolves to decides, and the connection goes there and nowhere else. The resolver is played; the
connections are real."""

import ssl
from collections.abc import Sequence
from ipaddress import ip_address

import httpx
import pytest
import trustme

from backplane.net.addresses import Address
from backplane.net.egress import AddressRefused, CheckedTransport, resolve
from tests.integration.controller.receiving import Receiver, receiving

PUBLIC, PUBLIC_6, PRIVATE, METADATA = "8.8.8.8", "2606:4700::1111", "10.0.0.1", "169.254.169.254"


class Names:
    """Answers `answers` one after the other, the last one for ever, and counts."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> list[Address]:
        self.asked.append((host, port))
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [ip_address(address) for address in found]


async def get(transport: CheckedTransport, url: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
        return await client.get(url)


@pytest.mark.parametrize(
    "addresses", [[PRIVATE], [PUBLIC, PRIVATE], [METADATA, PUBLIC], [PUBLIC_6, "::1"], ["fe80::1"]]
)
async def test_a_name_with_any_private_address_is_refused_before_anything_is_sent(addresses: list[str]) -> None:
    names = Names(addresses)
    with pytest.raises(AddressRefused):
        await get(CheckedTransport(allow_private=False, resolver=names), "http://rebound.example.org/")


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0x7f.1", "127.1", "2130706433", "0", "017700000001"],
)
async def test_no_spelling_of_this_machine_gets_through_the_systems_resolver(receiver: Receiver, host: str) -> None:
    with pytest.raises(AddressRefused):
        await get(CheckedTransport(allow_private=False), f"http://{host}:{receiver.port}/")
    assert receiver.received == []


async def test_the_connection_goes_to_the_address_that_was_checked_and_names_are_asked_for_once(
    receiver: Receiver,
) -> None:
    names = Names(["127.0.0.1"], ["192.0.2.1"])
    transport = CheckedTransport(allow_private=True, resolver=names)
    response = await get(transport, f"http://hook.example.org:{receiver.port}/path?x=1")
    assert response.status_code == 200
    assert names.asked == [("hook.example.org", receiver.port)]
    [received] = receiver.received
    assert (received.path, received.headers["host"]) == ("/path?x=1", f"hook.example.org:{receiver.port}")


async def test_the_second_look_of_a_rebound_name_is_checked_like_the_first(receiver: Receiver) -> None:
    transport = CheckedTransport(allow_private=False, resolver=Names(["127.0.0.1"]))
    for _ in range(2):
        with pytest.raises(AddressRefused):
            await get(transport, f"http://hook.example.org:{receiver.port}/")
    assert receiver.received == []


async def test_where_one_address_does_not_answer_the_next_is_tried(receiver: Receiver) -> None:
    # Nobody listens on this address of the loopback network.
    names = Names(["127.0.0.2", "127.0.0.1"])
    transport = CheckedTransport(allow_private=True, resolver=names)
    assert (await get(transport, f"http://hook.example.org:{receiver.port}/")).status_code == 200


async def test_names_that_share_an_address_do_not_share_a_connection(receiver: Receiver) -> None:
    transport = CheckedTransport(allow_private=True, resolver=Names(["127.0.0.1"]))
    async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
        for name in ("a.example.org", "b.example.org"):
            response = await client.get(f"http://{name}:{receiver.port}/")
            # The receiver closes after each answer without saying so: a kept connection would fail.
            assert response.status_code == 200
    assert [received.headers["host"].split(":")[0] for received in receiver.received] == [
        "a.example.org",
        "b.example.org",
    ]


@pytest.mark.parametrize(("name", "is_its_own"), [("hook.example.org", True), ("other.example.org", False)])
async def test_a_certificate_must_be_that_of_the_name_and_not_of_the_address(name: str, is_its_own: bool) -> None:
    authority, serving = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("hook.example.org").configure_cert(serving)
    asked_for: list[str | None] = []
    serving.sni_callback = lambda _socket, asked, _context: asked_for.append(asked)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    transport = CheckedTransport(allow_private=True, resolver=Names(["127.0.0.1"]), tls=trusting)
    async with receiving(serving) as receiver:
        url = f"https://{name}:{receiver.port}/"
        if is_its_own:
            assert (await get(transport, url)).status_code == 200
        else:
            with pytest.raises(httpx.ConnectError, match=r"not valid for 'other\.example\.org'"):
                await get(transport, url)
        assert asked_for == [name]
        assert len(receiver.received) == is_its_own


async def test_a_certificate_that_nobody_vouches_for_is_refused() -> None:
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("hook.example.org").configure_cert(serving)
    transport = CheckedTransport(allow_private=True, resolver=Names(["127.0.0.1"]))
    async with receiving(serving) as receiver:
        with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
            await get(transport, f"https://hook.example.org:{receiver.port}/")
        assert receiver.received == []


async def test_a_name_without_an_address_is_no_connection() -> None:
    with pytest.raises(httpx.ConnectError):
        await get(CheckedTransport(allow_private=True, resolver=Names([])), "http://nowhere.example.org/")


async def test_a_name_that_does_not_resolve_is_no_connection() -> None:
    async def fails(_host: str, _port: int) -> list[Address]:
        raise OSError("no such name")

    with pytest.raises(httpx.ConnectError):
        await get(CheckedTransport(allow_private=True, resolver=fails), "http://nowhere.example.org/")


async def test_the_system_resolves_addresses_to_themselves() -> None:
    assert await resolve("127.0.0.1", 80) == [ip_address("127.0.0.1")]
    assert await resolve("::1", 80) == [ip_address("::1")]
