"""Which webhook URLs are taken, which addresses are public, how a message is signed, and when it is tried again."""

from ipaddress import ip_address

import pytest

from backplane.domain.retry import RetryPolicy
from backplane.domain.webhooks import URL_MAX_CHARS, check_public_url, check_url, new_secret, sign
from backplane.errors import InvalidInput
from backplane.net.addresses import is_public
from controller.webhooks.loop import lease_for, pause_after, share_of_user
from controller.webhooks.sender import ReceiverAnswer


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org",
        "http://example.org:8080/hook?team=1",
        "https://192.0.2.1/x",
        "https://[2001:db8::1]/x",
        "https://exämple.org/",
        "https://under_score.example.org./",
        "https://example.org/" + "a" * (URL_MAX_CHARS - 20),
    ],
)
def test_http_urls_with_a_host_are_taken(url: str) -> None:
    check_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.org/hook",
        "ftp://example.org/",
        "file:///etc/passwd",
        "http:///hook",
        "http://:80/",
        "http://user:password@example.org/",
        "http://user@example.org/",
        "http://127.0.0.1\\@example.org/",
        "http://exam ple.org/",
        "http://a..b/",
        f"http://{'a' * 64}.org/",
        "http://example.org:0/",
        "http://example.org:65536/",
        "http://[fe80::1%25eth0]/",
        "http://[::1/",
        "https://example.org/" + "a" * (URL_MAX_CHARS - 19),
    ],
)
def test_other_urls_are_refused_by_the_name_of_their_field(url: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_url(url)
    assert refused.value.field == "webhook_url"
    assert "password" not in refused.value.message.replace("the password", "")


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST.",
        "api.localhost",
        "127.0.0.1",
        "127.1",
        "0x7f.1",
        "017700000001",
        "2130706433",
        "0",
        "10.0.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[fd00::1]",
        "[64:ff9b::7f00:1]",
    ],
)
def test_a_host_that_is_written_as_a_private_address_is_refused_at_once(host: str) -> None:
    with pytest.raises(InvalidInput, match="WEBHOOK_ALLOW_PRIVATE"):
        check_public_url(f"http://{host}/hook")


@pytest.mark.parametrize("host", ["example.org", "8.8.8.8", "134744072", "[2606:4700::1111]", "localhost.example.org"])
def test_a_public_host_is_taken(host: str) -> None:
    check_public_url(f"http://{host}/hook")


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0",
     "172.15.255.255", "172.32.0.0", "169.253.255.255", "223.255.255.255", "2606:4700:4700::1111", "2a00::1",
     "::ffff:1.1.1.1", "64:ff9b::101:101"],
)  # fmt: skip
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    ["0.0.0.0", "0.1.2.3", "10.0.0.0", "10.255.255.255", "100.64.0.0", "100.127.255.255", "127.0.0.1",
     "127.255.255.255", "169.254.0.0", "169.254.169.254", "172.16.0.0", "172.31.255.255", "192.0.0.1", "192.0.2.1",
     "192.88.99.1", "192.168.255.255", "198.18.0.0", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1",
     "239.255.255.255", "240.0.0.1", "255.255.255.255", "::", "::1", "::ffff:10.0.0.1", "::ffff:169.254.169.254",
     "::127.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1", "2002:7f00:1::",
     "2002:808:808::1", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fec0::1", "ff02::1"],
)  # fmt: skip
def test_no_other_address_is_public(address: str) -> None:
    assert not is_public(ip_address(address))


def test_a_message_is_signed_as_the_standard_webhooks_specification_has_it() -> None:
    # The specification's own example.
    signature = sign(
        ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
    )
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_each_secret_gives_a_signature_of_its_own() -> None:
    old, new = new_secret(), new_secret()
    both = sign([new, old], "id", 1, b"{}").split(" ")
    assert both == [sign([new], "id", 1, b"{}"), sign([old], "id", 1, b"{}")]
    assert old != new


POLICY = RetryPolicy(retries=2, base=10.0, longest=15.0)


@pytest.mark.parametrize(
    ("attempt", "answer", "pause"),
    [
        (1, ReceiverAnswer(500), 10.0),
        (1, ReceiverAnswer(404), 10.0),
        (1, ReceiverAnswer(302), 10.0),
        (1, ReceiverAnswer(error="no connection"), 10.0),
        (2, ReceiverAnswer(500), 15.0),
        (3, ReceiverAnswer(500), None),
        (1, ReceiverAnswer(410, final=True), None),
        (1, ReceiverAnswer(503, retry_after=12.0), 12.0),
        (1, ReceiverAnswer(503, retry_after=3.0), 10.0),
        (1, ReceiverAnswer(503, retry_after=9999.0), 15.0),
    ],
)
def test_a_failed_attempt_is_followed_by_another_after_a_pause_or_by_none(
    attempt: int, answer: ReceiverAnswer, pause: float | None
) -> None:
    assert pause_after(POLICY, attempt, answer, draw=1.0) == pause


@pytest.mark.parametrize(("code", "delivered"), [(199, False), (200, True), (204, True), (299, True), (300, False)])
def test_only_an_answer_of_two_hundred_and_something_is_a_delivery(code: int, delivered: bool) -> None:
    assert ReceiverAnswer(code).delivered is delivered


@pytest.mark.parametrize(("attempt", "lease"), [(1, 60), (30, 60), (30.5, 61), (120, 240)])
def test_the_lease_of_a_webhook_lasts_for_two_attempts_at_least(attempt: float, lease: float) -> None:
    assert lease_for(attempt) == lease


@pytest.mark.parametrize(("at_once", "of_user"), [(1, 1), (4, 1), (7, 1), (8, 2), (16, 4)])
def test_a_user_gets_a_quarter_of_the_attempts_at_once_and_never_none(at_once: int, of_user: int) -> None:
    assert share_of_user(at_once) == of_user
