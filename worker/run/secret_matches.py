"""Where secrets stand in a text: which of many forms may be in it, and at which places.

A text is searched as it is folded (`worker.run.secret_forms`); what is found is given in positions of the text as it
was. What is done about it is `worker.run.redaction`'s.
"""

import re
import sys
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from operator import itemgetter
from typing import Literal, TypeVar

from worker.run.secret_forms import ANY_CASE_BYTES, DELETED, Form, folded

Payload = TypeVar("Payload")

BEGINNING_BYTES = 8
"""So much of the beginning of a form counts as the secret where a text was cut; of a URL, so much after its `://`."""

_BLOCK_BYTES = 128

COLOUR = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]")
COLOUR_BEGINS = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*)?\Z")
_LEFT_OUT = re.compile(rb"[" + re.escape(DELETED) + rb"]+|" + COLOUR.pattern)


@dataclass(frozen=True, slots=True)
class Needle:
    """`scheme_bytes`: so many of its first bytes are a scheme such as `https://`, which is no secret."""

    form: Form
    marker: bytes
    scheme_bytes: int = 0

    def is_cut_after(self, size: int) -> bool:
        """Whether a text that was cut after so many bytes of the form shows a part of the secret. A common word with
        which a secret begins does not."""
        form = self.form.folded
        if size < BEGINNING_BYTES + self.scheme_bytes or len(form) < ANY_CASE_BYTES:
            return False
        return not (form[:size].isalpha() and not form[size : size + 1].isalnum())


@dataclass(frozen=True, slots=True)
class Match:
    """`data[start:end]`."""

    start: int
    end: int
    marker: bytes


class Blocks:
    """Forms by what must stand at a multiple of `width` bytes of a text that holds them: any 2 * width - 1 bytes of it
    hold `width` that begin there."""

    def __init__(self, width: int, kind: Literal["Q", "I"]) -> None:
        self._width = width
        self._kind = kind
        self._needles: dict[int, list[Needle]] = {}

    def take(self, form: bytes) -> bool:
        return len(form) >= 2 * self._width - 1

    def add(self, needle: Needle) -> None:
        form = needle.form.folded
        for at in range(self._width):
            block = int.from_bytes(form[at : at + self._width], sys.byteorder)
            self._needles.setdefault(block, []).append(needle)

    def among(self, text: bytes) -> list[Needle]:
        """Those of which a block stands in it."""
        if not self._needles or len(text) < 2 * self._width - 1:
            return []
        there = memoryview(text)[: len(text) // self._width * self._width].cast(self._kind)
        if self._needles.keys().isdisjoint(there):
            return []
        needles = {
            needle.form.folded: needle for block in self._needles.keys() & set(there) for needle in self._needles[block]
        }
        return list(needles.values())


class FoldedPositions:
    """From positions in the folded text to those in the text as it is. Worked out when it is first asked: by blocks of
    the text, so that one with very many quotes or line breaks costs no more; by each gap where it is coloured."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at: list[int] | None = None
        self._left_out: list[int] = []
        self._is_coloured = b"\x1b" in data

    def of(self, position: int) -> int:
        if self._at is None:
            self._at = self._by_gap() if self._is_coloured else self._by_block()
        index = bisect_right(self._at, position)
        if self._is_coloured:
            return position + self._left_out[index]
        begin = (index - 1) * _BLOCK_BYTES
        block, inner = self._data[begin : begin + _BLOCK_BYTES], position - self._at[index - 1]
        if len(folded(block)) < len(block):
            inner = bisect_right(range(len(block)), inner, key=lambda end: len(folded(block[: end + 1])))
        return begin + inner

    def _by_gap(self) -> list[int]:
        gaps = [match.span() for match in _LEFT_OUT.finditer(self._data)]
        self._left_out = [0, *accumulate(end - start for start, end in gaps)]
        return [start - before for (start, _), before in zip(gaps, self._left_out, strict=False)]

    def _by_block(self) -> list[int]:
        blocks = (self._data[at : at + _BLOCK_BYTES] for at in range(0, len(self._data), _BLOCK_BYTES))
        return [0, *accumulate(len(folded(block)) for block in blocks)][:-1] or [0]


def match_of(data: bytes, place: FoldedPositions, start: int, needle: Needle) -> Match | None:
    """What stands at `start` of the folded text; None when it is not written in a way that the form allows."""
    size = len(needle.form.folded)
    one = Match(place.of(start), place.of(start + size - 1) + 1, needle.marker)
    if needle.form.exact:
        as_written = data[one.start : one.end]
        if b"\n" in as_written or COLOUR.sub(b"", as_written).translate(None, DELETED) not in needle.form.exact:
            return None
    return one


def matches(
    forms: Iterable[tuple[bytes, Payload]], text: bytes, most: int
) -> tuple[list[tuple[int, Payload]], int | None]:
    """Where these forms stand, of one form's places that overlap the first. Where there are more than `most`: the
    first of them, and from where on nothing was looked for. Then each form is looked for in less of the text, so that
    many forms that all stand everywhere cost little more than one."""
    found: list[tuple[int, Payload]] = []
    cut, is_cut = len(text), False
    for form, needle in forms:
        at = text.find(form)
        while 0 <= at < cut:
            found.append((at, needle))
            if len(found) > most:
                found.sort(key=itemgetter(0))
                cut, is_cut = found[most // 2][0], True
                found = [match for match in found[: most // 2] if match[0] < cut]
            at = text.find(form, at + len(form), cut + len(form) - 1)
    return found, cut if is_cut else None
