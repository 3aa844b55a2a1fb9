"""Short ids: how an id begins is enough, as long as one object of the user begins so."""

import json

import pytest

from agentctl.api.ids import the_only
from agentctl.exit_codes import CommandError
from backplane.domain.runs import ids_beginning_with
from tests.scripted_api import answer, raw
from tests.unit.conftest import Agentctl, Script

RUN = "01936f7e-9f5c-7b3a-8c41-3d5e0f9a2b6c"
OTHER = "01936f7e-9f5d-7111-8c41-3d5e0f9a2b6c"
DECISION, SECOND = "01936f80-0000-7b3a-8c41-3d5e0f9a2b6c", "01936f81-0000-7b3a-8c41-3d5e0f9a2b6c"


def listed(*run_ids: str) -> bytes:
    runs = [
        {
            "run_id": run_id,
            "status": "running",
            "created_at": "2026-01-01T00:00:00+00:00",
            "prompt": f"Do {run_id[-2:]}",
        }
        for run_id in run_ids
    ]
    return answer(200, {"runs": runs, "next_cursor": None})


def dead(*run_ids: str) -> bytes:
    letters = [{"run_id": run_id, "user": "ada", "reason": "crashed", "prompt": "x"} for run_id in run_ids]
    return answer(200, {"dead_letters": letters, "next_cursor": None})


def asked(*decision_ids: str) -> bytes:
    about = {"status": "pending", "kind": "question", "asked": {"question": "Which?"}}
    return answer(200, {"decisions": [{"decision_id": one, **about} for one in decision_ids], "next_cursor": None})


OF_A_RUN = [
    ("show",),
    ("logs",),
    ("logs", "-f"),
    ("start",),
    ("cancel",),
    ("retry",),
    ("explain",),
    ("decisions",),
    ("approve",),
    ("reject",),
    ("fork",),
    ("replay",),
    ("plans",),
    ("model-calls",),
    ("files", "ls"),
    ("delete", "--yes"),
]


@pytest.mark.parametrize("command", OF_A_RUN, ids=" ".join)
def test_a_command_finds_the_run_whose_id_begins_so(
    script: Script, agentctl: Agentctl, command: tuple[str, ...]
) -> None:
    api = script(listed(RUN), raw(404, b""))
    agentctl(*command, "01936F7E-9f5c")
    assert api.requests[0].path == "/agent/runs?limit=11&id_beginning=01936f7e-9f5c"
    assert RUN in api.requests[1].path or RUN in api.requests[1].body.decode()


@pytest.mark.parametrize("command", OF_A_RUN, ids=" ".join)
def test_of_several_runs_that_begin_so_none_is_taken(
    script: Script, agentctl: Agentctl, command: tuple[str, ...]
) -> None:
    api = script(listed(OTHER, RUN))
    code, printed, notes = agentctl(*command, "01936f7e")
    assert (code, len(api.requests)) == (2, 1)
    assert RUN not in printed
    assert all(run_id in notes for run_id in (RUN, OTHER))


@pytest.mark.parametrize("given", ["zz", "01936f7e'--", "", "01936f7e-9f5c-7b3a-8c41-3d5e0f9a2b6c0", "../runs", "é"])
def test_what_no_id_begins_with_is_refused_without_asking(script: Script, agentctl: Agentctl, given: str) -> None:
    api = script(listed())
    code, _, notes = agentctl("show", given)
    assert (code, api.requests, "agentctl runs" in notes) == (4, [], True)


def test_a_whole_id_asks_nothing_beforehand(script: Script, agentctl: Agentctl) -> None:
    api = script(raw(404, b""))
    agentctl("show", RUN)
    assert [request.path for request in api.requests] == [f"/agent/runs/{RUN}"]


def test_an_api_that_does_not_look_for_the_beginning_leads_to_no_other_run(script: Script, agentctl: Agentctl) -> None:
    api = script(listed(OTHER, RUN))
    code, _, _ = agentctl("cancel", "0bbb")
    assert (code, len(api.requests)) == (4, 1)


@pytest.mark.parametrize("command", [("show",), ("redrive",), ("purge", "--yes")], ids=" ".join)
def test_a_dead_letter_of_anybody_is_found_by_how_it_begins(
    script: Script, agentctl: Agentctl, command: tuple[str, ...]
) -> None:
    api = script(dead(RUN), raw(404, b""))
    agentctl("dlq", *command, "01936")
    assert api.requests[0].path == "/agent/dead-letters?limit=11&id_beginning=01936"
    assert RUN in api.requests[1].path


def test_a_decision_is_found_by_how_it_begins(script: Script, agentctl: Agentctl) -> None:
    api = script(asked(DECISION, SECOND), raw(404, b""))
    agentctl("approve", RUN, "01936f81")
    assert api.requests[1].path == f"/agent/runs/{RUN}/decisions/{SECOND}"


def test_several_decisions_that_begin_so_are_listed_with_what_they_ask(script: Script, agentctl: Agentctl) -> None:
    api = script(asked(DECISION, SECOND))
    code, _, notes = agentctl("approve", RUN, "01936f8")
    assert (code, len(api.requests), notes.count("Which?")) == (2, 1, 2)


def test_a_call_of_a_model_is_found_by_how_it_begins(script: Script, agentctl: Agentctl) -> None:
    calls = [{"call_id": one, "step": "a", "model": "m"} for one in (DECISION, SECOND)]
    api = script(answer(200, {"calls": calls, "next_cursor": None}), answer(200, {"call_id": SECOND}))
    code, printed, _ = agentctl("model-calls", RUN, "01936f81")
    assert (code, json.loads(printed)) == (0, {"call_id": SECOND})
    assert api.requests[1].path.endswith(SECOND)


def test_a_whole_id_that_another_one_begins_with_is_that_one() -> None:
    assert the_only("thing", "ab", {"ab": "", "abc": ""}, "x") == "ab"


def test_of_many_candidates_ten_are_shown() -> None:
    with pytest.raises(CommandError) as refused:
        the_only("run", "a", {f"a{number:02}": "" for number in range(11)}, "x")
    assert ("a09" in str(refused.value), "a10" in str(refused.value), "and more" in str(refused.value)) == (
        True,
        False,
        True,
    )


@pytest.mark.parametrize(
    ("beginning", "between"),
    [
        ("0", ("00000000-0000-0000-0000-000000000000", "0fffffff-ffff-ffff-ffff-ffffffffffff")),
        ("01936f7e-", ("01936f7e-0000-0000-0000-000000000000", "01936f7e-ffff-ffff-ffff-ffffffffffff")),
        (RUN, (RUN, RUN)),
        ("01936f7e9", None),
        ("-", None),
        ("0-", None),
        (f"{RUN}0", None),
        ("zz", None),
        ("01936f7%", None),
    ],
)
def test_the_ids_that_begin_so_lie_between_two(beginning: str, between: tuple[str, str] | None) -> None:
    assert ids_beginning_with(beginning) == between
