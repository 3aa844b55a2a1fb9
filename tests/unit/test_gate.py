"""What the gate does with an address whose allowance is used up, and with a proxy that nobody has named."""

from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from starlette.types import Message, Receive, Scope, Send

from app.auth import SCOPE_USER
from app.edge import gate
from app.edge.connections import ConnectionLimits, TrustedProxies
from app.edge.gate import Allowance, TokenGate
from backplane.domain.users import Caller, Credential, Tier, User
from backplane.errors import Unauthenticated

USER = User("1", "ada", Tier.FREE)
VALID = Credential.of_token("valid")


class Tokens:
    """One token is valid, and none was seen before."""

    def __init__(self) -> None:
        self.looked_up: list[str] = []

    def has_seen(self, shown: Credential) -> bool:
        return False

    async def caller_of(self, shown: Credential) -> Caller:
        self.looked_up.append(shown.digest)
        if shown != VALID:
            raise Unauthenticated("this token is unknown")
        return Caller(USER, shown.digest, "1", shown.digest)


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    status = 200 if scope.get(SCOPE_USER) == USER else 204
    await send({"type": "http.response.start", "status": status, "headers": []})


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "PAUSE_SECONDS", 0)


@pytest.fixture
def tokens() -> Tokens:
    return Tokens()


@pytest.fixture
def at_gate(tokens: Tokens) -> Any:
    proxies = TrustedProxies("10.0.0.1")
    limits = ConnectionLimits(total=8, per_address=8, keep_alive_seconds=5, send_seconds=5, proxies=proxies)
    tried = TokenGate(application, limits=limits, proxies=proxies, allowance=Allowance(0.001, 2))

    async def ask(token: str = "", path: str = "/agent/me", peer: str = "10.0.0.2", **headers: str) -> int:
        """The status of the answer."""
        said = {"authorization": f"Bearer {token}"} if token else {}
        said |= {name.replace("_", "-"): value for name, value in headers.items()}
        scope: dict[str, Any] = {
            "type": "http",
            "method": "GET",
            "path": path,
            "client": (peer, 1),
            "headers": [(name.encode(), value.encode()) for name, value in said.items()],
            "app": SimpleNamespace(state=SimpleNamespace(authenticator=tokens)),
        }
        statuses = []

        async def receive() -> Message:
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            statuses.extend([message["status"]] if "status" in message else [])

        await tried(scope, receive, send)
        return int(statuses[0])

    return ask


async def test_a_valid_token_gets_in_though_others_have_used_up_what_its_address_may_ask(at_gate: Any) -> None:
    assert [await at_gate(f"wrong {number}") for number in range(3)] == [401, 401, 429]
    assert await at_gate("valid") == 200
    assert await at_gate("wrong") == 429
    assert await at_gate() == 429


async def test_where_too_many_of_an_address_wait_a_token_is_refused_without_a_look(
    at_gate: Any, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [await at_gate(f"wrong {number}") for number in range(2)] == [401, 401]
    monkeypatch.setattr(gate, "PAUSED_MAX", 0)
    assert await at_gate("valid") == 429
    assert tokens.looked_up == [Credential.of_token(f"wrong {number}").digest for number in range(2)]


async def test_a_proxy_that_is_not_named_is_warned_of_once_and_one_that_is_named_is_not(at_gate: Any) -> None:
    with structlog.testing.capture_logs() as logged:
        await at_gate("valid", peer="10.0.0.1", x_forwarded_for="192.0.2.1")
        await at_gate("valid", peer="10.0.0.2")
        assert logged == []
        for _ in range(2):
            await at_gate("valid", peer="10.0.0.2", x_forwarded_for="192.0.2.1")
    assert [(line["log_level"], line["peer"]) for line in logged] == [("warning", "10.0.0.2")]
    assert "API_TRUSTED_PROXIES" in logged[0]["event"]


async def test_a_token_that_was_revoked_is_counted_as_any_wrong_one(
    at_gate: Any, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "has_seen", lambda shown: shown == Credential.of_token("revoked"))
    assert [await at_gate("revoked") for _ in range(3)] == [401, 401, 429]
