"""A request that offers another protocol is answered as the request that it is, with its whole body (RFC 9110, 7.8)."""

from typing import Any

import pytest

from tests.attack.raw_http import Answer, RawConnection, request
from tests.integration.api.running import Api, Person


@pytest.fixture
def connect(api: Api) -> Any:
    return lambda: RawConnection(api.url)


def bearer(person: Person) -> dict[str, str]:
    return {"Authorization": f"Bearer {person.token}"}


def refused(answer: Answer | None, status: int) -> None:
    assert answer is not None
    assert (answer.status, answer.headers["connection"]) == (status, "close")


H2C = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2_Settings": "AAMAAABkAAQAoAAAAAIAAAAA"}
WEBSOCKET = {"Connection": "Upgrade", "Upgrade": "websocket"}


def framed(content: bytes, *, chunked: bool) -> tuple[dict[str, str], bytes]:
    if chunked:
        return {"Transfer_Encoding": "chunked"}, b"3\r\n%s\r\n%x\r\n%s\r\n0\r\nTrailer: x\r\n\r\n" % (
            content[:3],
            len(content) - 3,
            content[3:],
        )
    return {"Content_Length": str(len(content))}, content


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("first", [0, 10, None], ids=["later", "in pieces", "with the head"])
@pytest.mark.parametrize("offer", [H2C, WEBSOCKET], ids=["h2c", "websocket"])
async def test_an_upload_that_offers_another_protocol_arrives_whole(
    connect: Any, person: Person, offer: dict[str, str], first: int | None, chunked: bool
) -> None:
    run_id = await person.make("create")
    path = f"/agent/runs/{run_id}/files/a.bin"
    content = bytes(range(256)) * 400
    framing, body = framed(content, chunked=chunked)
    async with connect() as connection:
        head = request("PUT", path, **offer, **framing, Expect="100-continue", **bearer(person))
        await connection.send(head + body[:first] if first != 0 else head)
        if first == 0:
            answer = await connection.answer()
            assert answer is not None
            assert answer.status == 100
        if first is not None:
            await connection.send(body[first:])
        answer = await connection.answer()
        if answer is not None and answer.status == 100:
            answer = await connection.answer()
        assert answer is not None
        assert answer.status == 201
        assert await connection.is_closed()
    assert (await person.http.get(path)).content == content


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("after", [b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"], ids=["nothing", "a preface"])
async def test_a_post_that_offers_another_protocol_is_read_and_what_follows_is_not(
    connect: Any, person: Person, after: bytes, chunked: bool
) -> None:
    framing, body = framed(b'{"action": "create", "prompt": "hello"}', chunked=chunked)
    head = request("POST", "/agent/execute", **H2C, **framing, Content_Type="application/json", **bearer(person))
    async with connect() as connection:
        answer = await connection.ask(head + body + after)
        assert answer is not None
        assert answer.status == 201
        assert await connection.is_closed()


async def test_a_body_that_offers_another_protocol_and_is_malformed_is_refused(connect: Any, person: Person) -> None:
    run_id = await person.make("create")
    head = request("PUT", f"/agent/runs/{run_id}/files/a.bin", **H2C, Transfer_Encoding="chunked", **bearer(person))
    async with connect() as connection:
        refused(await connection.ask(head + b"no chunk\r\n"), 400)
    assert (await person.http.get(f"/agent/runs/{run_id}/files/a.bin")).status_code == 404
