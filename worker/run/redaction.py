"""Keeps secrets out of a run's output: a value that was filled in somewhere is taken out of everything that comes back.

A value is looked for in the forms in which programs write what they were given (`worker.run.secret_forms`), in one pass
over the text, however many secrets there are: the text is folded once, and read eight bytes at a time. Any 15 bytes of
it hold eight that begin at a multiple of eight, so a form of 15 bytes or more is there only if one of eight known
numbers is. Only then is it searched for. Shorter forms are found so by four bytes. A run without secrets passes its
very bytes on.

What is written (events, results, errors, questions, records of model calls) is redacted where it is written:
`worker.run.events` for events, `backplane.store.run_transaction` for the database, `backplane.process.log` for the
worker's own log. What is handed on before that (a step's output, what a model gets) is redacted where it arises,
too.

Of a secret that was cut, its beginning is taken out as well: where a text is known to be cut, and before the `…` or
`...` that says so. Nowhere else, or a line that ends in a common word would be mistaken for the beginning of somebody's
`postgres://…`. So whoever cuts a text of others marks the place (`backplane.domain.sizes.shortened`).

A text that is full of secrets costs no more than another: of the places that look like one only a bounded number is
looked at (`matches_max`). What follows these is left out, and a line says so.

This guards against accidents and careless models. A program that wants to give a secret away can write it in another
form: whoever may run code that is given a secret may know it.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, TypeVar

from backplane.domain.secrets import MIN_VALUE_CHARS
from worker.run.secret_forms import ANY_CASE_BYTES, Form, folded, forms_of, lines_of
from worker.run.secret_matches import (
    BEGINNING_BYTES,
    COLOUR,
    COLOUR_BEGINS,
    Blocks,
    FoldedPositions,
    Match,
    Needle,
    match_of,
    matches,
)

Value = TypeVar("Value")

LINES_MAX = 512
"""So many lines of a run's secrets are looked for by themselves: each costs a search where the text is like it."""

MATCHES_MIN, MATCH_BYTES = 64, 128
"""So many matches of a text are looked at, and one more for each MATCH_BYTES of it: 576 of 64 KiB."""
LEFT_OUT = b"\n[secrets stand here too densely: what follows is left out]\n"

_REST_BYTES = 24
"""A form of so many bytes is found without its first BEGINNING_BYTES, too: it may be wrapped within these."""
_REST_MAX_BYTES = 4096
_HEAD_BYTES = 4
_NEAR_BYTES = 512
"""Beginnings of forms are looked for position by position in so much of the end of a text."""
_CANDIDATES = 64
_FAR_MARKS = 4
_SLACK_BYTES = 1024
_FREE_NAMES = frozenset({"arguments", "answer"})
"""Under these names of an event or a record stands what a plan, a model or a person wrote: numbers there are theirs,
and may be a secret. Elsewhere they are the platform's counts."""

_PLATFORMS_NAMES = frozenset({"status", "kind", "code", "level", "decision", "step", "tool", "purpose", "planner"})
"""Under these stand words and ids of the platform, which programs rely on, whatever value somebody chose for a secret.
Ids of steps come from plans: a model's was redacted when it was answered, a person's is theirs."""
_PLATFORMS_KEY = re.compile("[a-z_]+")
"""A key that is a plain word is the platform's, but for what is under one of _FREE_NAMES."""

_CUT = re.compile(rb"(?:\xe2\x80\xa6|\.\.\.)[.\xe2\x80\xa6]*")
"""By what texts are marked as cut."""
_PART_OF_CUT = (b"\xe2\x80", b"\xe2", b"..", b".")
_SCHEME = re.compile("[A-Za-z][A-Za-z0-9+.-]*://")


def matches_max(size: int) -> int:
    """How many matches are looked at in a text of so many bytes."""
    return MATCHES_MIN + size // MATCH_BYTES


class Redactor:
    """There is one for each run. It takes out every value that it has learnt."""

    def __init__(self) -> None:
        self.knows_nothing = True
        self._needles: dict[bytes, Needle] = {}
        self._blocks = (Blocks(8, "Q"), Blocks(4, "I"))
        self._short: list[Needle] = []
        self._as_is: dict[bytes, bytes] = {}
        self._heads: dict[bytes, list[Needle]] = {}
        self._head_letters: set[tuple[int, ...]] = set()
        self._first_bytes: dict[bytes, Needle] = {}
        self._long: list[Needle] = []
        self._longest = 0
        self._lines_left = LINES_MAX
        self._markers: re.Pattern[bytes] | None = None
        self._names: set[bytes] = set()

    def learn(self, name: str, value: str) -> None:
        """From here on the value and its forms become `[secret NAME]`. Values of fewer than MIN_VALUE_CHARS, which
        cannot be stored, are left alone."""
        if len(value) < MIN_VALUE_CHARS:
            return
        marker = f"[secret {name}]".encode()
        self._names.add(marker)
        self.knows_nothing = False
        self._markers = re.compile(b"|".join(map(re.escape, sorted(self._names))))
        scheme = _SCHEME.match(value)
        schemes = [form.folded for form in forms_of(scheme[0])] if scheme else []
        lines = lines_of(value)[: self._lines_left]
        self._lines_left -= len(lines)
        for form in forms_of(value, lines):
            if len(form.folded) >= MIN_VALUE_CHARS:
                sizes = [len(begin) for begin in schemes if form.folded.startswith(begin)]
                scheme_bytes = max(sizes, default=0)
                self._add(Needle(form, marker, scheme_bytes))
                if _REST_BYTES <= len(form.folded) <= _REST_MAX_BYTES:
                    rest = Form(form.folded[BEGINNING_BYTES:], frozenset())
                    self._add(Needle(rest, marker, max(0, scheme_bytes - BEGINNING_BYTES)))
        raw = value.encode("utf-8", "surrogatepass")
        if len(folded(raw)) < MIN_VALUE_CHARS:
            # Little but quotes and line breaks.
            self._as_is.setdefault(raw, marker)
            self._longest = max(self._longest, len(raw))

    def _add(self, needle: Needle) -> None:
        form = needle.form.folded
        known = self._needles.get(form)
        if known is not None:
            return
        self._needles[form] = needle
        self._longest = max(self._longest, len(form))
        blocks = next((blocks for blocks in self._blocks if blocks.take(form)), None)
        if blocks is None:
            self._short.append(needle)
        else:
            blocks.add(needle)
        self._head_letters.add(tuple(form[:_HEAD_BYTES]))
        self._heads.setdefault(form[:_HEAD_BYTES], []).append(needle)
        for size in range(1, _HEAD_BYTES):
            self._first_bytes.setdefault(form[:size], needle)
        if len(form) > _NEAR_BYTES:
            self._long.append(needle)

    def text(self, text: str, *, is_cut: bool = False) -> str:
        """`is_cut`: something followed that was left out, without a mark."""
        if self.knows_nothing:
            return text
        data = text.encode("utf-8", "surrogatepass")
        redacted, _, _ = self.redact(data, is_whole=True, is_cut=is_cut)
        return text if redacted is data else redacted.decode("utf-8", "surrogatepass")

    def value(self, value: Value) -> Value:
        """The same JSON value without secrets, in keys neither."""
        if self.knows_nothing:
            return value
        redacted: Value = self._value(value, are_free=False)
        return redacted

    def arguments(self, value: Mapping[str, Any]) -> dict[str, Any]:
        """The same of arguments, as they are where they stand under `arguments`: numbers may be secrets there."""
        if self.knows_nothing:
            return dict(value)
        redacted: dict[str, Any] = self._value(value, are_free=True)
        return redacted

    def _value(self, value: Any, *, are_free: bool) -> Any:
        match value:
            case str():
                return self.text(value)
            case bool() | None:
                return value
            case dict() | Mapping():
                return {self._key(key, are_free): self._inner(key, inner, are_free) for key, inner in value.items()}
            case list() | tuple():
                return [self._value(inner, are_free=are_free) for inner in value]
            case int() | float() if are_free:
                text = str(value)
                redacted = self.text(text)
                return value if redacted == text else redacted
        return value

    def _key(self, key: Any, are_free: bool) -> Any:
        if not isinstance(key, str) or (not are_free and _PLATFORMS_KEY.fullmatch(key)):
            return key
        return self.text(key)

    def _inner(self, key: Any, value: Any, are_free: bool) -> Any:
        if isinstance(value, str) and key in _PLATFORMS_NAMES and not are_free:
            return value
        return self._value(value, are_free=are_free or key in _FREE_NAMES)

    def stream(self, sink: Callable[[bytes], None]) -> "RedactedStream":
        """A stream for text that comes in pieces: a secret may begin in one and end in another."""
        return RedactedStream(self, sink)

    def redact(self, data: bytes, *, is_whole: bool, is_cut: bool = False, hidden: int = 0) -> tuple[bytes, bytes, int]:
        """What can be passed on of `data` already; the rest of it, which may be the beginning of a secret or hold the
        beginning of one; and how many bytes of that rest are not passed on, as the first `hidden` bytes of `data` are
        not. With `is_whole` nothing comes after it, and there is no rest; with `is_cut` something did. Secrets that
        overlap become one, called by the longest."""
        cut_colour = COLOUR_BEGINS.search(data) if b"\x1b" in data else None
        looked_at = data[: cut_colour.start()] if cut_colour else data
        text = folded(COLOUR.sub(b"", looked_at) if b"\x1b" in looked_at else looked_at)
        hits, cut = matches(self._in(text), text, matches_max(len(data)))
        cut_off = list(self._cut_off(text, most=matches_max(len(data))))
        beginnings: list[tuple[int, Needle]] = []
        before_mark: int | None = None
        if is_cut or not is_whole:
            ends_in_text = not is_whole and not data.endswith(b"\n")
            beginnings += self._beginnings(text, is_whole=is_whole, short_ones_too=ends_in_text)
        if not is_whole:
            before_mark = self._before_part_of_mark(text)
        if not (hits or cut_off or beginnings or self._as_is) and before_mark is None:
            return data[hidden:] if hidden else data, b"", 0
        place = FoldedPositions(looked_at)
        found = [hit for start, needle in hits if (hit := match_of(looked_at, place, start, needle)) is not None]
        found += [Match(place.of(start), place.of(end - 1) + 1, needle.marker) for start, end, needle in cut_off]
        as_is, cut_as_is = matches(((raw, raw) for raw in self._as_is), data, matches_max(len(data)))
        found += [Match(at, at + len(raw), self._as_is[raw]) for at, raw in as_is]
        if cut is not None or cut_as_is is not None:
            at = min(len(data) if cut is None else place.of(cut), len(data) if cut_as_is is None else cut_as_is)
            return self._cut_at(at, data, found, is_whole=is_whole, hidden=hidden)
        end = len(data) if before_mark is None else place.of(before_mark)
        for start, needle in beginnings:
            at = place.of(start)
            if is_whole and needle.is_cut_after(len(text) - start):
                found.append(Match(at, place.of(len(text) - 1) + 1, needle.marker))
                break
            is_long = len(text) - start >= BEGINNING_BYTES and len(needle.form.folded) >= ANY_CASE_BYTES
            if not is_whole and (is_long or b"\n" not in looked_at[at:]):
                end = min(end, at)
                break
        if not is_whole and self._as_is:
            end = min(end, self._beginning_as_is(data))
        return self._replaced(data, self._merged(data, found), end, hidden)

    def _cut_at(
        self, at: int, data: bytes, found: list[Match], *, is_whole: bool, hidden: int
    ) -> tuple[bytes, bytes, int]:
        """`data` without what stands from `at` on, where nothing was looked for. The end is not passed on yet: a secret
        that begins there may go on in what comes next."""
        redacted_part = self._replaced(
            data[:at], self._merged(data, [one for one in found if one.start < at]), at, hidden
        )[0]
        if at >= hidden:
            redacted_part += LEFT_OUT
        rest = b"" if is_whole else data[-self._longest - _SLACK_BYTES :]
        return redacted_part, rest, len(rest)

    def _replaced(self, data: bytes, found: list[Match], end: int, hidden: int) -> tuple[bytes, bytes, int]:
        """`end`: from where on `data` may be the beginning of a secret. No more is held back than the longest form may
        take: a text with one letter a line is passed on."""
        if end < len(data):
            end = max(end, len(data) - 4 * self._longest - _SLACK_BYTES)
            for one in reversed(found):
                if one.start < end < one.end:
                    held_back = len(data) - one.start <= 2 * self._longest
                    end = one.start if held_back else one.end
        if not found and not hidden and end >= len(data):
            return data, b"", 0
        redacted_part, done = [], hidden
        for one in found:
            if one.start >= end:
                break
            if one.end > done:
                redacted_part += [data[done : one.start], one.marker]
                done = one.end
        return b"".join([*redacted_part, data[done:end]]), data[end:], max(0, done - end)

    def _in(self, text: bytes) -> Iterator[tuple[bytes, Needle]]:
        """Forms that may stand in it."""
        for needle in (*self._blocks[0].among(text), *self._blocks[1].among(text), *self._short):
            yield needle.form.folded, needle

    def _beginnings(self, text: bytes, *, is_whole: bool, short_ones_too: bool) -> Iterator[tuple[int, Needle]]:
        """Positions from which all of `text` is the beginning of a form, and that form; those far from its end first,
        then in order. Of fewer than _HEAD_BYTES only where they are asked for."""
        size = len(text)
        looks = _CANDIDATES
        for needle in self._long:
            form = needle.form.folded
            head, far = form[:BEGINNING_BYTES], max(0, size - _NEAR_BYTES)
            at = text.find(head, max(0, size - len(form) + 1), far + BEGINNING_BYTES)
            while at >= 0 and looks:
                looks -= 1
                if form.startswith(text[at:]):
                    yield at, needle
                    break
                at = text.find(head, at + 1, far + BEGINNING_BYTES)
            if at >= 0 and not looks and not is_whole:
                # Very many positions look like one: it may be too early.
                yield at, needle
                return
        near = text[-_NEAR_BYTES:]
        if not self._head_letters.isdisjoint(zip(near, near[1:], near[2:], near[3:], strict=False)):
            for at in range(max(0, size - _NEAR_BYTES), size - _HEAD_BYTES + 1):
                for needle in self._heads.get(text[at : at + _HEAD_BYTES], ()):
                    if len(needle.form.folded) > size - at and needle.form.folded.startswith(text[at:]):
                        yield at, needle
        if short_ones_too:
            for at in range(max(0, size - _HEAD_BYTES + 1), size):
                if (begun := self._first_bytes.get(text[at:])) is not None:
                    yield at, begun

    def _cut_off(self, text: bytes, *, most: int) -> Iterator[tuple[int, int, Needle]]:
        """Where beginnings of forms stand before a mark that says that the text was cut, of `most` marks."""
        if b"..." not in text and b"\xe2\x80\xa6" not in text:
            return
        near = min(self._longest, _NEAR_BYTES)
        for number, mark in enumerate(islice(_CUT.finditer(text), most)):
            end = mark.start()
            # To look for what is cut far behind its beginning takes longer.
            begin = 0 if number < _FAR_MARKS else max(0, end - near)
            for start, needle in self._beginnings(text[begin:end], is_whole=True, short_ones_too=False):
                if needle.is_cut_after(end - begin - start):
                    yield begin + start, end, needle
                    break

    def _before_part_of_mark(self, text: bytes) -> int | None:
        """Where the beginning of a form stands before what may become a mark when the text goes on."""
        part = next((part for part in _PART_OF_CUT if text.endswith(part)), None)
        if part is None:
            return None
        before = text[: -len(part)]
        found = self._beginnings(before, is_whole=True, short_ones_too=False)
        return next((start for start, needle in found if needle.is_cut_after(len(before) - start)), None)

    def _beginning_as_is(self, data: bytes) -> int:
        starts = (
            at
            for raw in self._as_is
            for at in range(max(0, len(data) - len(raw) + 1), len(data))
            if raw.startswith(data[at:])
        )
        return min(starts, default=len(data))

    def _merged(self, data: bytes, found: list[Match]) -> list[Match]:
        """In order, those that overlap as one; without what stands in a marker that was put in before."""
        if not found:
            return found
        assert self._markers is not None
        put_in = [match.span() for match in self._markers.finditer(data)]
        starts = [start for start, _ in put_in]
        merged: list[Match] = []
        size = 0
        for one in sorted(found, key=lambda one: (one.start, -one.end)):
            before = bisect_right(starts, one.start) - 1
            if before >= 0 and one.end <= put_in[before][1]:
                continue
            if merged and one.start < merged[-1].end:
                last = merged[-1]
                longer = one.end - one.start > size
                merged[-1] = Match(last.start, max(last.end, one.end), one.marker if longer else last.marker)
                size = max(size, one.end - one.start)
            else:
                merged.append(one)
                size = one.end - one.start
        return merged


class RedactedStream:
    """Passes on what it is given without secrets. What may be the beginning of one is kept until more has come, or
    until `close`."""

    def __init__(self, redactor: Redactor, sink: Callable[[bytes], None]) -> None:
        self._redactor = redactor
        self._sink = sink
        self._pending = b""
        self._hidden = 0
        """So many of the first bytes of `_pending` are not passed on."""

    def write(self, data: bytes) -> None:
        if self._redactor.knows_nothing:
            self._sink(data)
            return
        redacted_part, self._pending, self._hidden = self._redactor.redact(
            self._pending + data, is_whole=False, hidden=self._hidden
        )
        if redacted_part:
            self._sink(redacted_part)

    def close(self, *, is_cut: bool = False) -> None:
        """Pass on the rest. `is_cut`: the output was cut off by a kill or a fault."""
        pending, self._pending = self._pending, b""
        hidden, self._hidden = self._hidden, 0
        if len(pending) > hidden:
            redacted_part, _, _ = self._redactor.redact(pending, is_whole=True, is_cut=is_cut, hidden=hidden)
            self._sink(redacted_part)
