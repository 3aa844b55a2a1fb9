"""How programs write a value: what a text that holds a secret looks like.

Two things keep the list short. Texts are compared folded: without quotes, backslashes, line breaks and NULs, in lower
case, and with the two characters that URL-safe base64 has of its own as those of the usual one. So one needle finds a
value as it is, quoted by a shell or by `set -x`, escaped in JSON (also in JSON within JSON), wrapped at any column, in
UTF-16, or in capital letters. And what encodes bytes by position (base64) is looked for at each of its three phases.

Not here: what a program makes of a value by a key or a rule of its own (reversed, encrypted, packed, a letter at a
time with others in between).
"""

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import quote, quote_plus

DELETED = b"\r\n\0'\"\\"
_FOLDED = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ-_", b"abcdefghijklmnopqrstuvwxyz+/")

_APOSTROPHES = ("'", "&#x27;", "&#39;", "&#039;", "&apos;")
_OF_URLS = bytes.maketrans(b"+/", b"-_")

_JSON_ESCAPES = tuple(
    str.maketrans({one: f"\\u{ord(one):04{case}}" for one in characters})
    for characters in ("", "&<>\u2028\u2029", "&<>'", "&<>'\"", "&<>'\"+`")
    for case in "xX"
)
"""Besides what JSON must escape: nothing; what Go escapes, and Jinja, PHP, .NET."""
_HTML_ESCAPES = tuple(
    str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", **more})
    for more in (
        *({'"': quote, "'": apostrophe} for quote in ('"', "&quot;", "&#34;") for apostrophe in _APOSTROPHES),
        {'"': "&#34;", "'": "&#39;", "+": "&#43;"},
        {'"': "&quot;", "'": "&#39;", "/": "&#x2F;", "`": "&#x60;", "=": "&#x3D;"},
        {'"': "&quot;", "'": "&#x27;", "`": "&#x60;", "=": "&#x3D;"},
        {'"': "&quot;", "\n": "&#10;", "\r": "&#13;", "\t": "&#9;"},
    )
)
"""As Python, Jinja, PHP and XML do it; then Go, Mustache, Handlebars, and attributes in XML."""

ANY_CASE_BYTES = 12
"""A folded form of so many bytes counts in any case and across line breaks. A shorter one stands by chance in other
texts, so it must be there as it is, but for quotes and backslashes."""
LINE_CHARS = 8
"""Of a secret of several lines, each line of so many characters counts as the secret."""
LINE_BASE64_BYTES = 16
"""A line of so many bytes is looked for in base64, too."""
LONG_BYTES = 1024
"""Of a longer value, the forms that write a byte at a time with something in between are left out: nobody prints a key
file so, and they are four times as long as it."""


@dataclass(frozen=True, slots=True)
class Form:
    """`folded`: what is looked for. `exact`: as it must be written, without DELETED; empty: in any case."""

    folded: bytes
    exact: frozenset[bytes]


def folded(data: bytes) -> bytes:
    return data.translate(_FOLDED, DELETED)


def lines_of(value: str) -> list[str]:
    """Of a value of several lines, those that count as the value."""
    lines = value.splitlines()
    return [part for line in lines if len(part := line.strip()) >= LINE_CHARS] if len(lines) > 1 else []


def forms_of(value: str, lines: Sequence[str] = ()) -> list[Form]:
    """Of the value and of these lines of it, without those of which nothing is left when they are folded."""
    exact: dict[bytes, set[bytes]] = {}
    for written in _written(value, lines):
        short = folded(written)
        exact.setdefault(short, set()).add(written.translate(None, DELETED))
    return [
        Form(short, frozenset() if len(short) >= ANY_CASE_BYTES else frozenset(as_written))
        for short, as_written in exact.items()
        if short
    ]


def _written(value: str, lines: Sequence[str]) -> Iterator[bytes]:
    raw = value.encode("utf-8", "surrogatepass")
    yield raw
    yield from _escaped(value, raw)
    yield from _base64(raw)
    yield raw.hex().encode()
    yield raw.hex().upper().encode()
    if len(raw) <= LONG_BYTES:
        yield from _byte_by_byte(value, raw)
    for line in lines:
        part = line.encode("utf-8", "surrogatepass")
        yield part
        if len(part) >= LINE_BASE64_BYTES:
            yield from _base64(part)


def _escaped(value: str, raw: bytes) -> Iterator[bytes]:
    for ascii_only in (True, False):
        written = json.dumps(value, ensure_ascii=ascii_only)[1:-1]
        for characters in _JSON_ESCAPES:
            yield written.translate(characters).encode("utf-8", "surrogatepass")
    for text in (repr(value)[1:-1], ascii(value)[1:-1], *_in_html(value)):
        yield text.encode("utf-8", "surrogatepass")
    yield repr(raw)[2:-1].encode()
    # As a shell that knows no UTF-8, or `git` and `ls -b`, write it.
    yield "".join(chr(byte) if 32 <= byte < 127 else f"{byte:03o}" for byte in raw).encode()
    for encoded in (quote(raw, safe=""), quote(raw), quote_plus(raw), quote(quote(raw, safe=""), safe="")):
        yield encoded.encode()
        yield _lower_escapes(encoded).encode()
    if not value.isascii():
        for text in (value, value.upper(), value.lower()):
            yield text.encode("utf-8", "surrogatepass")
        yield value.encode("utf-16-le", "surrogatepass")
        yield value.encode("latin-1", "replace")


def _in_html(value: str) -> Iterator[str]:
    """As HTML and XML write it: their special characters in each way, those beyond ASCII also by number."""
    for characters in _HTML_ESCAPES:
        written = value.translate(characters)
        yield written
        if len(value) <= LONG_BYTES and not value.isascii():
            for reference in ("&#{:d};", "&#x{:x};", "&#x{:X};"):
                yield "".join(one if one.isascii() else reference.format(ord(one)) for one in written)


def _byte_by_byte(value: str, raw: bytes) -> Iterator[bytes]:
    pairs = [f"{byte:02x}" for byte in raw]
    # 73 33 · 73:33 · \x73\x33 · %73%33 · 0x73, 0x33 · 73-33
    for separator in (" ", ":", "x", "%", ", 0x", ",0x", "-"):
        yield separator.join(pairs).encode()
    for separator in (", ", ",", " "):
        yield separator.join(map(str, raw)).encode()
    for each in ("u{:04x}", "&#{:d};", "&#x{:x};"):
        yield "".join(each.format(ord(character)) for character in value).encode()


def _base64(raw: bytes) -> Iterator[bytes]:
    """What base64 of a text holds for sure that has `raw` in it after 3n, 3n + 1 or 3n + 2 bytes: the characters that
    come of `raw` alone."""
    for before in range(3):
        text = base64.b64encode(b"\0" * before + raw)
        whole = text[(before * 8 + 5) // 6 : (before + len(raw)) * 8 // 6]
        yield whole
        yield whole.translate(_OF_URLS)


def _lower_escapes(encoded: str) -> str:
    first, *rest = encoded.split("%")
    return "".join([first, *(f"%{part[:2].lower()}{part[2:]}" for part in rest)])
