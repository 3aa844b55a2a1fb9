"""`agentctl secrets` as scripts rely on it."""

import io
import json
import sys
from pathlib import Path

import pytest

from backplane.sealing import Seal
from tests.scripted_api import answer, problem, raw
from tests.unit.conftest import Agentctl, Script

KEPT = {
    "name": "TOKEN",
    "tools": ["shell"],
    "hosts": ["api.example.org"],
    "created_at": "2026-01-01T00:00:00+00:00",
    "updated_at": "2026-01-02T00:00:00+00:00",
}


class Piped(io.TextIOWrapper):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))


@pytest.mark.parametrize(
    ("given", "value"), [(b"hush-hush\n", "hush-hush"), (b"a\r\nb\r\n", "a\r\nb"), ("grün\n\n".encode(), "grün\n")]
)
def test_a_value_is_read_from_standard_input(
    script: Script, agentctl: Agentctl, monkeypatch: pytest.MonkeyPatch, given: bytes, value: str
) -> None:
    api = script(answer(200, KEPT))
    monkeypatch.setattr(sys, "stdin", Piped(given))
    code, printed, noted = agentctl("secrets", "set", "TOKEN", "--tool", "shell", "--host", "api.example.org")
    assert code == 0
    assert api.requests[0].path == "/agent/secrets/TOKEN"
    assert json.loads(api.requests[0].body) == {"value": value, "tools": ["shell"], "hosts": ["api.example.org"]}
    assert "TOKEN is kept" in printed
    assert "hush" not in printed + noted


def test_a_value_is_read_from_a_file(script: Script, agentctl: Agentctl, tmp_path: Path) -> None:
    api = script(answer(200, KEPT))
    (tmp_path / "key.pem").write_bytes(b"-----BEGIN\nabc\n")
    assert agentctl("secrets", "set", "TOKEN", "--from-file", "key.pem")[0] == 0
    assert json.loads(api.requests[0].body) == {"value": "-----BEGIN\nabc", "hosts": []}


def test_a_value_is_no_argument(agentctl: Agentctl) -> None:
    code, _, noted = agentctl("secrets", "set", "TOKEN", "hush-hush")
    assert code == 2
    assert "Got unexpected extra argument" in noted


@pytest.mark.parametrize("given", [b"\xff\xfe\x00", b"x" * (1024 * 1024 + 1)])
def test_what_can_be_no_value_is_not_sent(
    script: Script, agentctl: Agentctl, monkeypatch: pytest.MonkeyPatch, given: bytes
) -> None:
    api = script()
    monkeypatch.setattr(sys, "stdin", Piped(given))
    assert agentctl("secrets", "set", "TOKEN")[0] == 2
    assert api.requests == []


def test_a_file_that_is_not_there_is_said(agentctl: Agentctl) -> None:
    code, _, noted = agentctl("secrets", "set", "TOKEN", "--from-file", "nothing")
    assert code == 2
    assert "nothing" in noted


def test_secrets_are_a_table_without_values(script: Script, agentctl: Agentctl) -> None:
    script(answer(200, {"secrets": [KEPT]}))
    code, printed, _ = agentctl("secrets", "list")
    [head, row] = printed.splitlines()
    assert (code, head.split()) == (0, ["NAME", "TOOLS", "HOSTS", "SET"])
    assert row.split()[:3] == ["TOKEN", "shell", "api.example.org"]


def test_a_secret_is_forgotten(script: Script, agentctl: Agentctl) -> None:
    api = script(raw(204, b""))
    code, printed, _ = agentctl("secrets", "delete", "TOKEN")
    assert (code, printed) == (0, "TOKEN is forgotten.\n")
    assert (api.requests[0].method, api.requests[0].path) == ("DELETE", "/agent/secrets/TOKEN")


def test_a_refusal_is_said(script: Script, agentctl: Agentctl) -> None:
    script(problem(404, "not_found", "there is no secret TOKEN"))
    code, _, noted = agentctl("secrets", "delete", "TOKEN")
    assert code != 0
    assert "there is no secret TOKEN" in noted


def test_a_new_key_seals(agentctl: Agentctl) -> None:
    first, second = (agentctl("secrets", "new-key")[1].strip() for _ in range(2))
    assert first != second
    assert Seal(first).open(Seal(first).seal("value", user_id="u", name="N"), user_id="u", name="N") == "value"
