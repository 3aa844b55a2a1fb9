"""Which messages a hook takes: by Standard Webhooks and by GitHub's signature."""

import hashlib
import hmac
from datetime import UTC, datetime

import pytest

from backplane.domain.hooks import (
    NO_SECRET,
    TOLERANCE_SECONDS,
    HookKind,
    accept,
    check_hook_type,
    check_secret,
    new_address,
)
from backplane.domain.webhooks import new_secret, sign
from backplane.errors import InvalidInput, Unauthenticated

NOW = datetime(2026, 1, 31, 9, tzinfo=UTC)
SECRET, BODY = new_secret(), b'{"a":1}'


def standard(id: str = "m1", offset: int = 0, secret: str = SECRET, body: bytes = BODY) -> dict[str, str]:
    at = int(NOW.timestamp()) + offset
    return {"webhook-id": id, "webhook-timestamp": str(at), "webhook-signature": sign([secret], id, at, body)}


def github(secret: str = SECRET, body: bytes = BODY) -> dict[str, str]:
    digest = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return {"x-hub-signature-256": f"sha256={digest}", "x-github-event": "push", "x-github-delivery": "d1"}


def test_a_message_of_standard_webhooks_is_taken_with_its_id() -> None:
    taken = accept(HookKind.STANDARD, SECRET, standard(), BODY, NOW)
    assert (taken.id, taken.time, taken.subject) == ("m1", "2026-01-31T09:00:00+00:00", None)


@pytest.mark.parametrize("offset", [-TOLERANCE_SECONDS, TOLERANCE_SECONDS])
def test_a_message_within_the_window_is_taken(offset: int) -> None:
    accept(HookKind.STANDARD, SECRET, standard(offset=offset), BODY, NOW)


def test_one_of_several_signatures_is_enough() -> None:
    headers = standard()
    headers["webhook-signature"] = f"v1a,x v1,bm8= {headers['webhook-signature']}"
    accept(HookKind.STANDARD, SECRET, headers, BODY, NOW)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        standard(offset=-TOLERANCE_SECONDS - 1),
        standard(offset=TOLERANCE_SECONDS + 1),
        standard(secret=new_secret()),
        standard(body=b"other"),
        standard(id=""),
        standard(id="x" * 256),
        {**standard(), "webhook-id": "m2"},
        {**standard(), "webhook-timestamp": "1e9"},
        {**standard(), "webhook-timestamp": "9" * 40},
        {**standard(), "webhook-timestamp": "²"},
        {**standard(), "webhook-signature": ""},
        {**standard(), "webhook-signature": "v1,\udc80"},
        {**standard(), "webhook-signature": " ".join(["v1,bm8="] * 10 + [standard()["webhook-signature"]])},
        github(),
    ],
)
def test_any_other_message_is_refused_in_the_same_words(headers: dict[str, str]) -> None:
    with pytest.raises(Unauthenticated) as refused:
        accept(HookKind.STANDARD, SECRET, headers, BODY, NOW)
    assert refused.value.message == "the signature is missing or wrong"


def test_the_id_of_what_github_sends_is_the_digest_of_what_it_signed() -> None:
    """A copied message with another X-GitHub-Delivery is the same event."""
    taken = accept(HookKind.GITHUB, SECRET, github(), BODY, NOW)
    again = accept(HookKind.GITHUB, SECRET, {**github(), "x-github-delivery": "d2"}, BODY, NOW)
    assert taken.id == again.id == f"sha256-{hashlib.sha256(BODY).hexdigest()}"
    assert taken.subject == "push"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        github(secret="another secret"),
        github(body=b"other"),
        {"x-hub-signature-256": "sha256="},
        {"x-hub-signature-256": github()["x-hub-signature-256"].removeprefix("sha256=")},
        {"x-hub-signature-256": "sha256=\udc80"},
        standard(),
    ],
)
def test_what_github_did_not_sign_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(Unauthenticated):
        accept(HookKind.GITHUB, SECRET, headers, BODY, NOW)


def test_an_event_name_that_is_none_is_left_out() -> None:
    assert accept(HookKind.GITHUB, SECRET, {**github(), "x-github-event": "a\nb"}, BODY, NOW).subject is None


@pytest.mark.parametrize("secret", ["whsec_" + "A" * 32, "whsec_" + "A" * 84])
def test_a_secret_of_standard_webhooks_is_taken(secret: str) -> None:
    assert check_secret(HookKind.STANDARD, secret) == secret


@pytest.mark.parametrize(
    ("kind", "secret"),
    [
        (HookKind.STANDARD, "whsec_" + "A" * 28),
        (HookKind.STANDARD, "whsec_" + "A" * 88),
        (HookKind.STANDARD, "whsec_not base64 but long enough for it"),
        (HookKind.GITHUB, "x" * 15),
        (HookKind.GITHUB, "x" * 257),
        (HookKind.GITHUB, "schlüssel schlüssel"),
    ],
)
def test_a_secret_that_is_too_short_or_no_key_is_refused_and_not_shown(kind: HookKind, secret: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_secret(kind, secret)
    assert secret not in refused.value.message


@pytest.mark.parametrize("secret", ["x" * 16, "x" * 256])
def test_a_secret_of_github_is_any_text_of_a_length(secret: str) -> None:
    assert check_secret(HookKind.GITHUB, secret) == secret


@pytest.mark.parametrize("type", ["run.completed", "a b", "*", ""])
def test_a_hook_gives_no_event_of_the_platform_and_none_without_a_type(type: str) -> None:
    with pytest.raises(InvalidInput):
        check_hook_type(type)


def test_addresses_cannot_be_guessed_and_the_secret_of_none_is_nobodys() -> None:
    assert len({new_address() for _ in range(100)}) == 100
    assert len(new_address()) == 32
    assert NO_SECRET.startswith("whsec_")
