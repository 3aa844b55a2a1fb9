"""`agentctl ledger` and `agentctl budget` as scripts rely on them."""

import json
from typing import Any

import pytest

from tests.scripted_api import NOTHING, answer, problem
from tests.unit.conftest import Agentctl, Script

ACCOUNT: dict[str, Any] = {
    "account_id": "user:u1:micro_usd",
    "owner": "user:u1",
    "owner_name": "ada",
    "resource": "micro_usd",
    "balance": "12.5",
    "reserved": "0.25",
    "spent": "3",
    "created_at": "2026-01-01T00:00:00+00:00",
    "closed_at": None,
}
ENTRY: dict[str, Any] = {
    "seq": 1,
    "account_id": "user:u1:micro_usd",
    "transfer_id": "t-1",
    "kind": "deposit",
    "balance_change": "12.5",
    "reserved_change": "0",
    "spent_change": "0",
    "balance_after": "12.5",
    "at": "2026-01-01T00:00:00+00:00",
    "run_id": None,
    "step_id": None,
    "note": "Nov\x1b[31m",
}
BOOKED = answer(200, {"transfer_id": "t-1", "entries": [ENTRY]})


def test_balances_are_a_table(script: Script, agentctl: Agentctl) -> None:
    api = script(answer(200, {"accounts": [ACCOUNT], "next_cursor": None}))
    code, printed, _ = agentctl("ledger", "balance", "ada")
    [head, row] = printed.splitlines()
    assert (code, head.split()) == (0, ["OWNER", "RESOURCE", "LEFT", "RESERVED", "SPENT", "CLOSED"])
    assert row.split() == ["user:ada", "usd", "12.5", "0.25", "3"]
    assert api.requests[0].path == "/agent/accounts?owner=user%3Aada&limit=100"


def test_balances_of_all_follow_the_cursor(script: Script, agentctl: Agentctl) -> None:
    first = answer(200, {"accounts": [ACCOUNT], "next_cursor": "a"})
    api = script(first, answer(200, {"accounts": [{**ACCOUNT, "owner_name": None}], "next_cursor": None}))
    code, printed, _ = agentctl("ledger", "balance", "--json")
    assert (code, len(json.loads(printed))) == (0, 2)
    assert [request.path.split("?")[1] for request in api.requests] == ["limit=100", "cursor=a&limit=100"]


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        (("top-up", "ada", "usd", "12.5"), "/agent/accounts/user%3Aada%3Amicro_usd/top-up"),
        (("top-up", "tier:free", "tokens", "5"), "/agent/accounts/tier%3Afree%3Atokens/top-up"),
        (("withdraw", "run:r1", "steps", "5"), "/agent/accounts/run%3Ar1%3Asteps/withdraw"),
    ],
)
def test_what_is_put_in_and_taken_out(
    script: Script, agentctl: Agentctl, arguments: tuple[str, ...], path: str
) -> None:
    api = script(BOOKED)
    code, printed, _ = agentctl("ledger", *arguments, "--note", "Nov")
    assert (code, printed.splitlines()[1].split()[2:]) == (0, ["deposit", "12.5", "0", "0", "12.5", "t-1", "Nov"])
    assert (api.requests[0].method, api.requests[0].path) == ("POST", path)
    body = json.loads(api.requests[0].body)
    assert (body["amount"], body["note"], len(body["transfer_id"])) == (arguments[-1], "Nov", 36)


def test_a_movement_is_sent_again_under_its_name_when_no_answer_comes(script: Script, agentctl: Agentctl) -> None:
    api = script(NOTHING, BOOKED)
    assert agentctl("ledger", "top-up", "ada", "tokens", "5")[0] == 0
    first, second = (json.loads(request.body) for request in api.requests)
    assert first == second


def test_a_transfer_names_both_accounts(script: Script, agentctl: Agentctl) -> None:
    api = script(answer(200, {"transfer_id": "mine", "entries": [ENTRY, ENTRY]}))
    code, printed, _ = agentctl("ledger", "transfer", "ada", "tier:beta", "usd", "0.5", "--transfer-id", "mine")
    assert (code, len(printed.splitlines())) == (0, 3)
    assert json.loads(api.requests[0].body) == {
        "source": "user:ada:micro_usd",
        "target": "tier:beta:micro_usd",
        "amount": "0.5",
        "transfer_id": "mine",
        "note": "",
    }


def test_entries_say_for_which_step_they_are(script: Script, agentctl: Agentctl) -> None:
    reserve = {**ENTRY, "kind": "reserve", "run_id": "r1", "step_id": "count", "note": ""}
    api = script(answer(200, {**ACCOUNT, "entries": [reserve], "next_cursor": None}))
    code, printed, _ = agentctl("ledger", "entries", "ada", "usd")
    assert (code, printed.splitlines()[1].split()[-2:]) == (0, ["r1", "count"])
    assert api.requests[0].path == "/agent/accounts/user%3Aada%3Amicro_usd?limit=50"


def test_an_account_is_closed(script: Script, agentctl: Agentctl) -> None:
    api = script(answer(200, {**ACCOUNT, "closed_at": "2026-01-02T00:00:00+00:00"}))
    code, printed, _ = agentctl("ledger", "close", "ada", "usd")
    assert (code, "2026-01-0" in printed) == (0, True)
    assert api.requests[0].method == "DELETE"


def test_an_audit_ends_with_0_when_the_books_are_right(script: Script, agentctl: Agentctl) -> None:
    script(answer(200, {"accounts": 2, "entries": 5, "differences": []}))
    assert agentctl("ledger", "audit") == (0, "2 accounts are what their 5 entries make.\n", "")


@pytest.mark.parametrize("json_flag", [[], ["--json"]])
def test_an_audit_ends_with_1_when_they_are_not(script: Script, agentctl: Agentctl, json_flag: list[str]) -> None:
    difference = {"account_id": "user:u1:tokens", "what": "balance", "expected": 5, "found": 4}
    script(answer(200, {"accounts": 2, "entries": 5, "differences": [difference]}))
    code, printed, notes = agentctl("ledger", "audit", *json_flag)
    assert (code, "user:u1:tokens" in printed, "wrong in 1 place" in notes) == (1, True, True)


def test_a_refusal_says_why(script: Script, agentctl: Agentctl) -> None:
    script(problem(409, "budget_exhausted", "Too little."))
    code, printed, noted = agentctl("ledger", "withdraw", "ada", "tokens", "5")
    assert (code, printed, noted.splitlines()[0]) == (4, "", "Too little. [budget_exhausted]")


def test_an_unknown_resource_is_a_fault_of_the_command_line(script: Script, agentctl: Agentctl) -> None:
    api = script(NOTHING)
    assert agentctl("ledger", "top-up", "ada", "gold", "5")[0] == 2
    assert api.requests == []


def test_the_budget_shows_what_is_left_and_what_was_spent(script: Script, agentctl: Agentctl) -> None:
    script(answer(200, {"accounts": [ACCOUNT], "spent": {"tokens": 7, "usd": "0.5", "steps": 3}}))
    code, printed, _ = agentctl("budget")
    lines = [line.split() for line in printed.splitlines()]
    assert (code, lines[1][:3]) == (0, ["user:ada", "usd", "12.5"])
    assert lines[3:] == [["tokens", "spent", "7"], ["usd", "spent", "0.5"], ["steps", "taken", "3"]]


def test_a_budget_without_limits_says_so(script: Script, agentctl: Agentctl) -> None:
    script(answer(200, {"accounts": [], "spent": {"tokens": 0, "usd": "0", "steps": 0}}))
    code, _, notes = agentctl("budget")
    assert (code, "Nothing limits your runs" in notes) == (0, True)
