"""Of a secret that was cut, its beginning is taken out; a text that is whole may end as a secret begins."""

import base64
from typing import NamedTuple
from urllib.parse import quote

import pytest

from worker.run.redaction import Redactor

VALUE = "s3cr3t-Value_of-the-user-0815"
WITH_ALL = "pa ss'w\"ord\\with/all+of=them&<x>$!\u00e9"
URL = "postgres://app:s3cr3t-Pw@db.example.org/app"
CUT = {
    "at the end of a text that is known to be cut": lambda part: Redacted(f"it is {part}", is_cut=True),
    "before a mark": lambda part: Redacted(f"it is {part}… and more"),
    "before three dots": lambda part: Redacted(f"it is {part}... and more"),
    "before a mark in a line of its own": lambda part: Redacted(f"it is {part}\n… 7 more bytes; read on\n"),
    "in quotes before a mark": lambda part: Redacted(f"it is {part + '…'!r}"),
}


class Redacted(NamedTuple):
    text: str
    is_cut: bool = False


@pytest.mark.parametrize("cut", CUT)
@pytest.mark.parametrize(
    ("value", "part", "is_found"),
    [
        (VALUE, VALUE[:8], True),
        (VALUE, VALUE[:7], False),
        (VALUE, VALUE[:-1], True),
        (WITH_ALL, WITH_ALL[:14], True),
        (VALUE, base64.b64encode(VALUE.encode()).decode()[:20], True),
        (VALUE, VALUE.encode().hex()[:20], True),
        (VALUE * 60, VALUE * 50, True),
        (URL, URL[:19], True),
        (URL, URL[:24], True),
        (URL, quote(URL, safe="")[:40], True),
        # A word with which a secret begins, and the scheme of a URL, are nobody's secret.
        (URL, "postgres", False),
        (URL, "postgres://", False),
        (URL, URL[:18], False),
        ("https://user:pass-word@example.org", "https://", False),
        ("production-k8s-0815", "production", False),
        ("productionkey-0815", "production", True),
        ("abc123", "abc12", False),
    ],
)
def test_the_beginning_of_a_value_is_redacted_where_the_text_was_cut(
    cut: str, value: str, part: str, is_found: bool
) -> None:
    redactor = Redactor()
    redactor.learn("TOKEN", value)
    written = CUT[cut](part)
    redacted = redactor.text(written.text, is_cut=written.is_cut)
    assert ("[secret TOKEN]" in redacted, part in redacted) == (is_found, not is_found)
    for at in range(len(written.text)):
        said: list[bytes] = []
        stream = redactor.stream(said.append)
        stream.write(written.text[:at].encode())
        stream.write(written.text[at:].encode())
        stream.close(is_cut=written.is_cut)
        assert b"".join(said).decode() == redacted, at


@pytest.mark.parametrize("value", [URL, VALUE, "postgres-password", "https://hooks.example.org/services/T0/B0"])
@pytest.mark.parametrize("end", ["", "\n", ".", "!", " "])
def test_a_text_that_is_whole_may_end_as_a_secret_begins(value: str, end: str) -> None:
    redactor = Redactor()
    redactor.learn("TOKEN", value)
    for size in (8, 10, 12):
        text = f"Connect to {value[:size]}{end}"
        assert redactor.text(text) == text
        assert redactor.value({"title": text, "name": value[:size]}) == {"title": text, "name": value[:size]}
        said: list[bytes] = []
        stream = redactor.stream(said.append)
        stream.write(text.encode())
        stream.close()
        assert b"".join(said).decode() == text
