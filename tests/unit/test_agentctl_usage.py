"""`agentctl usage --by`: what models took, as a table and as JSON."""

import json
from typing import Any

import pytest

from tests.scripted_api import answer
from tests.unit.conftest import Agentctl, Script

TOTALS: dict[str, Any] = {"calls": 3, "unpriced": 0, "input_tokens": 81000, "output_tokens": 950, "usd": "1.2345"}


def page(*groups: dict[str, Any], cursor: int | None = None, **totals: Any) -> bytes:
    view = {"by": ["model"], "groups": [{**TOTALS, **group} for group in groups], "totals": {**TOTALS, **totals}}
    return answer(200, {**view, "next_cursor": cursor})


def test_what_models_took_is_a_table_whose_amounts_stand_below_one_another(script: Script, agentctl: Agentctl) -> None:
    groups: list[dict[str, Any]] = [
        {"model": "s/large", "usd": "1.2"},
        {"model": "s/small", "usd": "0.0345", "calls": 1200},
    ]
    api = script(page(*groups))
    code, printed, _ = agentctl("usage", "--by", "model")
    assert code == 0
    assert [line.split() for line in printed.splitlines()] == [
        ["MODEL", "CALLS", "TOKENS", "IN", "OUT", "USD"],
        ["s/large", "3", "81,000", "950", "1.2000"],
        ["s/small", "1,200", "81,000", "950", "0.0345"],
        ["all", "together", "3", "81,000", "950", "1.2345"],
    ]
    assert len({len(line) for line in printed.splitlines()}) == 1
    assert api.requests[0].path == "/agent/usage?by=model&limit=50"


def test_several_keys_days_and_a_user_are_asked_for(script: Script, agentctl: Agentctl) -> None:
    api = script(page({"model": "s/m", "day": "2026-11-01"}))
    code, printed, _ = agentctl(
        "usage", "--by", "day,model", "--by", "day", "--from", "2026-11-01", "--to", "2026-11-30", "--user", "ada"
    )
    assert (code, printed.split()[:2]) == (0, ["DAY", "MODEL"])
    assert api.requests[0].path == "/agent/usage?from=2026-11-01&to=2026-11-30&user=ada&by=day&by=model&limit=50"


def test_names_are_shown_where_there_are_some(script: Script, agentctl: Agentctl) -> None:
    script(page({"user_id": "u-1", "user": "ada", "agent": "agent-1", "agent_name": "mia", "role": "", "pool": "p"}))
    _, printed, _ = agentctl("usage", "--by", "user,agent,role,pool")
    assert printed.splitlines()[1].split()[:4] == ["ada", "mia", "-", "p"]


def test_the_pages_are_read_up_to_the_limit(script: Script, agentctl: Agentctl) -> None:
    api = script(page({"model": "a"}, cursor=1), page({"model": "b"}, cursor=2))
    code, printed, _ = agentctl("usage", "--by", "model", "--limit", "2", "--json")
    view = json.loads(printed)
    assert (code, [group["model"] for group in view["groups"]], view["next_cursor"]) == (0, ["a", "b"], 2)
    assert [request.path.split("?")[1] for request in api.requests] == ["by=model&limit=2", "by=model&cursor=1&limit=1"]


def test_what_is_left_out_and_what_has_no_price_is_noted(script: Script, agentctl: Agentctl) -> None:
    script(page({"model": "a"}, cursor=1, unpriced=7))
    _, _, noted = agentctl("usage", "--by", "model", "--limit", "1")
    assert "raise --limit above 1" in noted
    assert "price of 7 of these calls" in noted


def test_that_no_model_was_called_is_said(script: Script, agentctl: Agentctl) -> None:
    script(page())
    code, printed, noted = agentctl("usage", "--by", "model")
    assert (code, printed, noted.strip()) == (0, "", "no model was called")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(("--by", "colour"), "name one of user, agent"), (("--from", "2026-11-01"), "add --by model")],
)
def test_what_cannot_be_meant_is_refused_without_a_call(
    script: Script, agentctl: Agentctl, arguments: tuple[str, ...], says: str
) -> None:
    api = script(page())
    code, _, noted = agentctl("usage", *arguments)
    assert (code, api.requests) == (2, [])
    assert says in noted
