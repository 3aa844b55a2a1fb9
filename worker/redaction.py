"""Keeps secrets out of what a run says: what was filled in somewhere is taken out of everything that comes back.

A value is looked for as it is and in the forms in which programs repeat what they were given: base64 (wherever in a
longer text it began, in one line or in several), URL-encoded, JSON-escaped, and line by line where it has several. A
program that wants to give a secret away can still do so in another form (reversed, encrypted, a letter at a time):
whoever may run code that is given a secret may know it. This guards against accidents and against careless models.
"""

import base64
import heapq
import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote, quote_plus

from backplane.secrets import MIN_VALUE_CHARS

MIN_PART_BYTES = 16
"""Of a secret of several lines, each line of so many bytes counts as the secret."""

_BASE64_LINES = (76, 64)
_HEAD_BYTES = 8
_CANDIDATES = 64


class Redactor:
    """One a run. What it was told once it takes out from then on."""

    def __init__(self) -> None:
        self._forms: dict[bytes, bytes] = {}

    def learn(self, name: str, value: str) -> None:
        """From here on the value and its forms become `[secret NAME]`. Values of fewer than MIN_VALUE_CHARS, which
        cannot be stored, are left alone."""
        if len(value) < MIN_VALUE_CHARS:
            return
        replacement = f"[secret {name}]".encode()
        for form in _forms(value):
            self._forms.setdefault(form, replacement)

    def text(self, text: str) -> str:
        if not self._forms:
            return text
        return self._bytes(text.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")

    def value(self, value: Any) -> Any:
        """The same JSON value without secrets, in keys neither."""
        if not self._forms:
            return value
        match value:
            case str():
                return self.text(value)
            case dict():
                return {
                    self.text(key) if isinstance(key, str) else key: self.value(inner) for key, inner in value.items()
                }
            case list() | tuple():
                return [self.value(inner) for inner in value]
        return value

    def stream(self, sink: Callable[[bytes], None]) -> "RedactedStream":
        """For what comes in pieces: a secret may begin in one and end in another."""
        return RedactedStream(self, sink)

    def _bytes(self, data: bytes) -> bytes:
        redacted, _ = self.redact(data, is_whole=True)
        return redacted

    @property
    def knows_nothing(self) -> bool:
        return not self._forms

    def redact(self, data: bytes, *, is_whole: bool) -> tuple[bytes, bytes]:
        """What can be said of `data` already, and the rest of it, which may be the beginning of a secret. With
        `is_whole` nothing comes after it, and there is no rest. The first secret counts, and of those the longest."""
        found = [(at, -len(form), form) for form in self._forms if (at := data.find(form)) >= 0]
        heapq.heapify(found)
        end = len(data) if is_whole else self._earliest_beginning(data, 0)
        said, done = [], 0
        while found:
            at, _, form = found[0]
            if at < done:
                # It began within the one before.
                if (at := data.find(form, done)) >= 0:
                    heapq.heapreplace(found, (at, -len(form), form))
                else:
                    heapq.heappop(found)
                continue
            if at >= end:
                break
            said += [data[done:at], self._forms[form]]
            done = at + len(form)
            if done > end:
                end = self._earliest_beginning(data, done)
        return b"".join([*said, data[done:end]]), data[end:]

    def _earliest_beginning(self, data: bytes, start: int) -> int:
        """From where on `data` may be the beginning of a secret that goes on after it; its length when nowhere."""
        earliest = len(data)
        for form in self._forms:
            earliest = min(earliest, _beginning_of(form, data, start, earliest))
        return earliest


class RedactedStream:
    """Hands on what it is given without secrets, at once but for what may be the beginning of one. `close` it, so
    that this is handed on too."""

    def __init__(self, redactor: Redactor, sink: Callable[[bytes], None]) -> None:
        self._redactor = redactor
        self._sink = sink
        self._held = b""

    def write(self, data: bytes) -> None:
        if self._redactor.knows_nothing:
            self._sink(data)
            return
        said, self._held = self._redactor.redact(self._held + data, is_whole=False)
        if said:
            self._sink(said)

    def close(self) -> None:
        held, self._held = self._held, b""
        if held:
            said, _ = self._redactor.redact(held, is_whole=True)
            self._sink(said)


def _beginning_of(form: bytes, data: bytes, start: int, end: int) -> int:
    """The first position in `data[start:end]` from which all of it is a beginning of `form`, else `end`. May be too
    early where very many positions look like one: what is held back too long is still said in the end."""
    first = max(start, len(data) - len(form) + 1)
    head = form[:_HEAD_BYTES]
    at = data.find(head, first)
    for _ in range(_CANDIDATES):
        if at < 0 or at >= end or form.startswith(data[at:]):
            break
        at = data.find(head, at + 1)
    if 0 <= at < end:
        return at
    for at in range(max(first, len(data) - len(head) + 1), end):
        if head.startswith(data[at:]):
            return at
    return end


def _forms(value: str) -> Iterator[bytes]:
    raw = value.encode("utf-8", "surrogatepass")
    yield raw
    for before in range(3):
        yield from _base64_forms(raw, before)
    for encoded in (quote(raw, safe=""), quote(raw), quote_plus(raw)):
        yield encoded.encode()
        yield _lower_escapes(encoded).encode()
    for ascii_only in (True, False):
        yield json.dumps(value, ensure_ascii=ascii_only)[1:-1].encode("utf-8", "surrogatepass")
    for line in value.splitlines():
        part = line.strip().encode("utf-8", "surrogatepass")
        if len(part) >= MIN_PART_BYTES:
            yield part


def _base64_forms(raw: bytes, before: int) -> Iterator[bytes]:
    """What base64 of a text holds for sure that has `raw` in it after 3n + `before` bytes: the characters that come of
    `raw` alone. Several lines of it only where it begins the text."""
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        text = encode(b"\0" * before + raw)
        whole = text[(before * 8 + 5) // 6 : (before + len(raw)) * 8 // 6]
        yield whole
        if before == 0:
            for columns in _BASE64_LINES:
                lines = [whole[at : at + columns] for at in range(0, len(whole), columns)]
                yield from (line for line in lines if len(line) >= MIN_PART_BYTES)


def _lower_escapes(encoded: str) -> str:
    first, *rest = encoded.split("%")
    return "".join([first, *(f"%{part[:2].lower()}{part[2:]}" for part in rest)])
