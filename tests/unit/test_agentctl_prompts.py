"""What a command asks whoever calls it, and how it ends where nobody says yes."""

import getpass
import io
import sys

import pytest

from tests.scripted_api import answer
from tests.unit.conftest import Agentctl, Script

RUN = "01936f7e-9f5c-7b3a-8c41-3d5e0f9a2b6c"

ASKING = {
    "dlq purge": ["dlq", "purge", "--all"],
    "delete": ["delete", RUN],
    "bulk retry": ["bulk", "retry", "--status", "failed"],
    "take-over-redis": ["take-over-redis"],
}


class InterruptedInput:
    def readline(self, *_: object) -> str:
        raise KeyboardInterrupt


@pytest.mark.usefixtures("bare_environment")
@pytest.mark.parametrize("command", ASKING.values(), ids=ASKING)
@pytest.mark.parametrize(
    ("given", "code", "noted"),
    [
        (None, 130, "Nothing was done."),
        ("", 2, "--yes does it without asking"),
        ("n\n", 2, "--yes does it without asking"),
    ],
    ids=["Ctrl-C", "nobody answers", "no"],
)
def test_a_command_that_asks_does_nothing_without_a_yes_and_says_by_its_exit_code_why(
    script: Script,
    agentctl: Agentctl,
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    given: str | None,
    code: int,
    noted: str,
) -> None:
    api = script(answer(200, {"runs": 3}))
    monkeypatch.setattr(sys, "stdin", InterruptedInput() if given is None else io.StringIO(given))
    ended, _, said = agentctl(*command)
    assert (ended, noted in said) == (code, True)
    # `bulk` counts the runs first.
    assert all(request.method == "POST" and b'"dry_run":true' in request.body for request in api.requests)


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (EOFError, 2)])
def test_a_secret_that_is_asked_for_and_not_given_is_not_sent(
    script: Script, agentctl: Agentctl, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], code: int
) -> None:
    def not_answered(_: str) -> str:
        raise error

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(getpass, "getpass", not_answered)
    api = script()
    assert agentctl("secrets", "set", "TOKEN")[0] == code
    assert api.requests == []
