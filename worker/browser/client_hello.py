"""The first message of a TLS connection, read for the name of the server that the client wants to reach (RFC 8446
4.1.2, RFC 6066 3).

It is read strictly: what two servers could understand in different ways is refused. It may come in any number of
segments and records. What comes after it is not looked at, and neither is a name that is encrypted (ECH): every
current browser sends that extension, with or without a name in it.
"""

import asyncio
from dataclasses import dataclass

HELLO_MAX_BYTES = 16 * 1024
"""A browser's has some 2 KiB."""
RAW_MAX_BYTES = 2 * HELLO_MAX_BYTES
"""With the heads of its records."""

ALERT_DECODE_ERROR = 50
ALERT_UNRECOGNIZED_NAME = 112
_RECORD_MAX_BYTES = 1 << 14
_HANDSHAKE = 22
_CLIENT_HELLO = 1
_SERVER_NAME = 0
_HOST_NAME = 0


class NotTls(Exception):
    """What came is no record of a TLS handshake."""


class NoClientHello(Exception):
    """It begins as TLS, and is no ClientHello that is understood in one way only."""


@dataclass(frozen=True, slots=True)
class ClientHello:
    """`raw`: the records as they came. `server_name`: as it was written; None where there is none."""

    raw: bytes
    server_name: str | None


async def read_client_hello(reader: asyncio.StreamReader) -> ClientHello:
    """Read the message, and no byte after it. Raises NotTls, NoClientHello, and EOFError when the connection ends
    before."""
    raw, message = bytearray(), bytearray()
    wanted = 4
    while len(message) < wanted:
        first = await reader.readexactly(1)
        if first[0] != _HANDSHAKE:
            raise NoClientHello("a record of another kind comes first") if raw else NotTls
        head = first + await reader.readexactly(4)
        size = int.from_bytes(head[3:], "big")
        if head[1] != 3 or not 0 < size <= _RECORD_MAX_BYTES:
            raise NotTls
        if len(raw) + len(head) + size > RAW_MAX_BYTES:
            raise NoClientHello(f"its records have more than {RAW_MAX_BYTES:,} bytes")
        part = await reader.readexactly(size)
        raw += head + part
        message += part
        if len(message) >= 4:
            wanted = 4 + int.from_bytes(message[1:4], "big")
            if message[0] != _CLIENT_HELLO:
                raise NoClientHello("it begins with another message")
            if wanted > HELLO_MAX_BYTES:
                raise NoClientHello(f"it has more than {HELLO_MAX_BYTES:,} bytes")
    if len(message) > wanted:
        raise NoClientHello("another message follows in its records")
    return ClientHello(bytes(raw), _server_name(bytes(message[4:])))


class _Fields:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_at_end(self) -> bool:
        return self._at == len(self._data)

    def take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise NoClientHello("a field is longer than what it is part of")
        taken, self._at = self._data[self._at : end], end
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def sized(self, size: int) -> bytes:
        """A field whose length is written in so many bytes before it."""
        return self.take(self.number(size))

    def end(self) -> None:
        if not self.is_at_end:
            raise NoClientHello("a field is shorter than what it is part of")


def _server_name(body: bytes) -> str | None:
    fields = _Fields(body)
    fields.take(2 + 32)  # version, random
    fields.sized(1)  # session
    fields.sized(2)  # ciphers
    fields.sized(1)  # compressions
    if fields.is_at_end:
        return None
    extensions = _Fields(fields.sized(2))
    fields.end()
    names: list[bytes] = []
    while not extensions.is_at_end:
        kind, value = extensions.number(2), extensions.sized(2)
        if kind == _SERVER_NAME:
            names.append(value)
    if not names:
        return None
    if len(names) > 1:
        raise NoClientHello("it names the server twice")
    extension = _Fields(names[0])
    listed = _Fields(extension.sized(2))
    extension.end()
    kind, name = listed.number(1), listed.sized(2)
    listed.end()
    if kind != _HOST_NAME or not name.isascii():
        raise NoClientHello("it names the server in another way than by its host")
    return name.decode("ascii")


def alert(description: int) -> bytes:
    """A record that ends a handshake for this reason."""
    return bytes([21, 3, 3, 0, 2, 2, description])
