"""Secrets are taken out of what a run says, in every form and wherever it is cut."""

import base64
import json
import random
from urllib.parse import quote

import pytest

from worker.run import redaction, secret_matches
from worker.run.redaction import Redactor

SECRET = "s3cr3t/with spaces+and=signs"
HIDDEN = b"[secret TOKEN]"


@pytest.fixture
def redactor() -> Redactor:
    redactor = Redactor()
    redactor.learn("TOKEN", SECRET)
    return redactor


def streamed(redactor: Redactor, *pieces: bytes) -> tuple[bytes, list[bytes]]:
    said: list[bytes] = []
    stream = redactor.stream(said.append)
    for piece in pieces:
        stream.write(piece)
    stream.close()
    return b"".join(said), said


@pytest.mark.parametrize(
    "form",
    [
        SECRET,
        base64.b64encode(SECRET.encode()).decode().rstrip("="),
        base64.b64encode(b"x:" + SECRET.encode()).decode(),
        base64.b64encode(b"user:" + SECRET.encode() + b"\n").decode(),
        base64.urlsafe_b64encode(b"abc" + SECRET.encode()).decode(),
        quote(SECRET, safe=""),
        quote(SECRET, safe="").lower(),
        json.dumps({"key": SECRET}),
    ],
)
def test_a_secret_is_taken_out_in_every_form_that_programs_repeat_it_in(redactor: Redactor, form: str) -> None:
    text = redactor.text(f"before {form} after")
    assert "[secret TOKEN]" in text
    assert SECRET not in text
    assert text.startswith("before ")
    assert text.endswith(" after")


def test_base64_in_lines_is_taken_out_too(redactor: Redactor) -> None:
    long = "".join(random.Random(7).choices("abcdefghijklmnop", k=300))
    redactor.learn("KEY", long)
    text = redactor.text(base64.encodebytes(long.encode()).decode())
    assert text == "[secret KEY]\n"


def test_each_line_of_a_secret_of_several_counts_as_the_secret() -> None:
    redactor = Redactor()
    redactor.learn("KEY", "-----BEGIN KEY-----\nMIIEowIBAAKCAQEA1234\nqqqqqqqqqqqqqqqqqqqq\n-----END KEY-----\n")
    assert redactor.text("line 2: MIIEowIBAAKCAQEA1234!") == "line 2: [secret KEY]!"


def test_a_secret_with_quotes_and_line_breaks_is_found_in_json() -> None:
    redactor = Redactor()
    redactor.learn("PW", 'a"b\nc\u00e9d')
    for ascii_only in (True, False):
        assert redactor.text(json.dumps(['a"b\nc\u00e9d'], ensure_ascii=ascii_only)) == '["[secret PW]"]'


@pytest.mark.parametrize("size", [1, 2, 3, 7, 29])
def test_a_secret_that_comes_in_pieces_is_found(redactor: Redactor, size: int) -> None:
    data = f"one {SECRET} two {SECRET}{SECRET} s3cr3t/with three s3cr3t".encode()
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    said, _ = streamed(redactor, *pieces)
    assert said == b"one " + HIDDEN + b" two " + HIDDEN * 2 + b" s3cr3t/with three s3cr3t"


def test_what_cannot_be_the_beginning_of_a_secret_is_handed_on_at_once(redactor: Redactor) -> None:
    said: list[bytes] = []
    redactor.stream(said.append).write(b"a line\n")
    assert said == [b"a line\n"]


def test_with_nothing_learned_the_very_bytes_pass() -> None:
    data = bytes(range(256))
    said: list[bytes] = []
    Redactor().stream(said.append).write(data)
    assert said[0] is data
    value = {"a": [1, "x"]}
    assert Redactor().value(value) is value


def test_of_secrets_that_begin_alike_the_longest_counts_also_in_pieces() -> None:
    redactor = Redactor()
    redactor.learn("SHORT", "abcdef")
    redactor.learn("LONG", "abcdefghij")
    assert streamed(redactor, b"abcdef", b"ghij abcdef", b"gh")[0] == b"[secret LONG] [secret SHORT]gh"


def test_a_secret_within_the_beginning_of_another_is_found_when_that_one_does_not_come() -> None:
    redactor = Redactor()
    redactor.learn("INNER", "cdefgh")
    redactor.learn("OUTER", "abcdefghijklm")
    assert streamed(redactor, b"abcdefgh", b"ij!")[0] == b"ab[secret INNER]ij!"


def test_values_are_redacted_in_their_depth_keys_too(redactor: Redactor) -> None:
    value = {"a": [SECRET, 1, None, {SECRET: (f"x{SECRET}",)}]}
    assert redactor.value(value) == {"a": ["[secret TOKEN]", 1, None, {"[secret TOKEN]": ["x[secret TOKEN]"]}]}


def test_what_is_not_unicode_or_half_a_character_stays_as_it_is(redactor: Redactor) -> None:
    assert redactor.text(f"\ud800 {SECRET}") == "\ud800 [secret TOKEN]"
    assert streamed(redactor, b"\xff\xfe" + SECRET.encode() + b"\xc3")[0] == b"\xff\xfe" + HIDDEN + b"\xc3"


def test_what_is_shorter_than_a_secret_may_be_is_left_alone() -> None:
    redactor = Redactor()
    redactor.learn("A", "abcde")
    assert redactor.text("abcde") == "abcde"


def test_random_cuts_never_change_what_is_said(redactor: Redactor) -> None:
    redactor.learn("AS", "a" * 40 + "b")
    redactor.learn("OTHER", "abcabcabcabd")
    choice = random.Random(5)
    parts = [SECRET, "a" * 40 + "b", "a" * 39, "abcabcabd", "abcabcabcabd", "s3cr3t/", " ", ".", "abc"]
    for _ in range(200):
        text = "".join(choice.choices(parts, k=20)).encode()
        cuts = sorted(choice.choices(range(len(text)), k=8))
        pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert streamed(redactor, *pieces)[0] == redactor.text(text.decode()).encode()


# --- text that is full of secrets ---

CHUNK = 65536


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """One for each match that is looked at."""
    made: list[bytes] = []
    found = secret_matches.Match

    def count(start: int, end: int, marker: bytes) -> secret_matches.Match:
        made.append(marker)
        return found(start, end, marker)

    for module in (secret_matches, redaction):
        monkeypatch.setattr(module, "Match", count)
    return made


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("aaaaaa", b"a"),
        ("aaaaaa", b"aaaaaa "),
        ("aaaaaa", b'a"aaaaa\n'),
        ("\n\n\n\n\n\n", b"\n"),
        ("long-enough-to-be-found-by-blocks", b"long-enough-to-be-found-by-blocks."),
    ],
)
def test_of_a_chunk_full_of_a_secret_a_bounded_number_of_matches_is_looked_at(
    looked_at: list[bytes], value: str, text: bytes
) -> None:
    redactor = Redactor()
    redactor.learn("TOKEN", value)
    said, _ = streamed(redactor, (text * CHUNK)[:CHUNK])
    assert 0 < len(looked_at) <= 2 * redaction.matches_max(CHUNK)
    assert said.count(redaction.LEFT_OUT) == 1
    assert value.encode() not in said.replace(redaction.LEFT_OUT, b"")


def test_many_secrets_that_stand_everywhere_cost_little_more_than_one(looked_at: list[bytes]) -> None:
    redactor = Redactor()
    for size in range(6, 106):
        redactor.learn(f"S{size}", "a" * size)
    said, _ = streamed(redactor, b"a" * CHUNK)
    assert len(looked_at) <= 2 * redaction.matches_max(CHUNK)
    assert b"aaaaaa" not in said


def test_a_text_with_as_many_secrets_as_are_looked_at_is_redacted_to_its_end(redactor: Redactor) -> None:
    line = SECRET.encode() + b" " * 100
    assert streamed(redactor, line * 64)[0] == (HIDDEN + b" " * 100) * 64


@pytest.mark.parametrize("cut", range(len(SECRET)))
def test_a_secret_that_begins_in_what_is_left_out_is_not_shown_by_its_end(redactor: Redactor, cut: int) -> None:
    full = SECRET.encode() * 3000 + b"." * 5000 + SECRET.encode()[:cut]
    said, _ = streamed(redactor, full, SECRET.encode()[cut:] + b" after\n", b"." * 5000, b"the end\n")
    assert said.endswith(b" after\n" + b"." * 5000 + b"the end\n")
    assert SECRET.encode()[max(cut, 1) :] + b" after" not in said
    assert said.count(redaction.LEFT_OUT) == 1


def test_random_cuts_of_what_is_left_out_show_no_part_of_a_secret(
    redactor: Redactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redaction, "matches_max", lambda size: 4)
    monkeypatch.setattr(redaction, "_SLACK_BYTES", 8)
    choice = random.Random(6)
    left_out = 0
    for _ in range(300):
        text = b"".join(choice.choices([SECRET.encode(), b"." * 50, b"." * 400], k=40))
        cuts = sorted(choice.choices(range(len(text)), k=8))
        pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        said, _ = streamed(redactor, *pieces)
        left_out += said.count(redaction.LEFT_OUT)
        assert set(said.replace(redaction.LEFT_OUT, b"").replace(HIDDEN, b"")) <= set(b".")
    assert left_out > 300


@pytest.mark.parametrize(
    ("value", "form"),
    [
        ("a&b<c>d'e", r"a\u0026b\u003cc\u003ed'e"),
        ("a&b<c>d'e", r"a\u0026b\u003cc\u003ed\u0027e"),
        ('a&b"c+d', r"a\u0026b\u0022c\u002Bd"),
        ("a&b\"c'd", "a&amp;b&#34;c&#39;d"),
        ("a&b\"c'd", "a&amp;b&quot;c&#039;d"),
        ("a&b\"c'd", "a&amp;b&quot;c&apos;d"),
        ("a+b'cdef", "a&#43;b&#39;cdef"),
        ("pässwörd", "p&#228;ssw&#246;rd"),
        ("pässwörd", "p&#xe4;ssw&#xF6;rd"),
        ("pässwörd'&", "p&#228;ssw&#246;rd&#39;&amp;"),
        ("s3cret!", "".join(f"&#{ord(one)};" for one in "s3cret!")),
        ("s3cret!", "".join(f"&#x{ord(one):X};" for one in "s3cret!")),
    ],
)
def test_a_secret_is_found_as_json_html_and_xml_of_other_languages_write_it(value: str, form: str) -> None:
    redactor = Redactor()
    redactor.learn("TOKEN", value)
    assert redactor.text(f"<{form}>") == "<[secret TOKEN]>"
