"""`agentctl usage` and `agentctl delete`."""

import io
import json
import sys

import pytest

from tests.scripted_api import answer, problem, raw
from tests.unit.conftest import Agentctl, Script

RUN = "01936f7e-9f5c-7b3a-8c41-3d5e0f9a2b6c"


def test_usage_shows_what_is_stored_and_what_may_be(script: Script, agentctl: Agentctl) -> None:
    view = {
        "runs": {"used": 1234, "limit": 100000},
        "events": {"used": None, "limit": 5},
        "bytes": {"used": 7, "limit": 0},
    }
    script(answer(200, view))
    code, printed, _ = agentctl("usage")
    assert code == 0
    assert "1,234 of 100,000" in printed
    assert "not counted yet of 5" in printed
    assert "7, without a limit" in printed


def test_a_run_is_deleted_when_the_user_says_so(script: Script, agentctl: Agentctl) -> None:
    api = script(raw(204, b""))
    assert agentctl("delete", RUN, "--yes")[0] == 0
    assert [(request.method, request.path) for request in api.requests] == [("DELETE", f"/agent/runs/{RUN}")]


def test_deleting_asks_first(script: Script, agentctl: Agentctl, monkeypatch: pytest.MonkeyPatch) -> None:
    api = script(raw(204, b""))
    for said, code, requests in (("n\n", 2, 0), ("", 2, 0), ("y\n", 0, 1)):
        monkeypatch.setattr(sys, "stdin", io.StringIO(said))
        assert agentctl("delete", RUN)[0] == code
        assert len(api.requests) == requests


def test_a_run_that_is_not_over_is_reported(script: Script, agentctl: Agentctl) -> None:
    script(problem(409, "conflict", "run r is running and cannot be deleted; cancel it first"))
    code, _, noted = agentctl("delete", RUN, "--yes")
    assert code != 0
    assert "cancel it first" in noted


OTHER = "01936f7e-9f5c-7b3a-8c41-3d5e0f9a2b6d"
THIRD = "01936f7e-9f5c-7b3a-8c41-3d5e0f9a2b6e"
FOURTH = "01936f7e-9f5c-7b3a-8c41-3d5e0f9a2b6f"


@pytest.mark.parametrize("flag", [(), ("--json",)], ids=["", "json"])
def test_a_run_that_is_refused_does_not_stop_the_rest(
    script: Script, agentctl: Agentctl, flag: tuple[str, ...]
) -> None:
    api = script(
        raw(204, b""), problem(409, "conflict", "It is running."), problem(404, "not_found", "None."), raw(204, b"")
    )
    code, printed, notes = agentctl("delete", "--yes", RUN, OTHER, THIRD, FOURTH, RUN, *flag)
    assert (code, len(api.requests)) == (4, 4)
    said = printed if flag else notes
    assert (OTHER in said, THIRD in said, "It is running." in said, "None." in said) == (True, True, True, True)
    if flag:
        assert json.loads(printed)["deleted"] == [RUN, FOURTH]


def test_where_the_api_is_gone_it_is_not_asked_for_the_rest(script: Script, agentctl: Agentctl) -> None:
    api = script(raw(204, b""), raw(500, b""))
    code, printed, _ = agentctl("delete", "--yes", RUN, OTHER, THIRD, "--json")
    assert (code, len(api.requests), json.loads(printed)["deleted"]) == (5, 2, [RUN])
