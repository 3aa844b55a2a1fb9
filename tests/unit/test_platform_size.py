"""How large a platform has to be: the bounds of each form from both sides, and what bad input is answered."""

import json
from dataclasses import replace

import pytest

from agentctl.sizing.platform_size import (
    MAX_CONNECTIONS,
    RESERVED,
    SQLITE_TURNS,
    TURNS_AT_ONCE,
    PlatformForm,
    Workload,
    form_of,
    size_of,
)
from tests.unit.conftest import Agentctl

CALM = Workload(agents=10, turns_per_hour=60)


@pytest.mark.parametrize(
    ("agents", "form"),
    [
        (1, PlatformForm.SQLITE),
        (49, PlatformForm.SQLITE),
        (50, PlatformForm.POSTGRESQL),
        (199, PlatformForm.POSTGRESQL),
        (200, PlatformForm.SEVERAL),
    ],
)
def test_the_number_of_agents_decides_the_form(agents: int, form: PlatformForm) -> None:
    assert form_of(replace(CALM, agents=agents)) is form


def test_few_agents_get_postgresql_where_their_turns_are_too_many_for_sqlite() -> None:
    work = Workload(agents=49, turns_per_hour=3600)
    assert work.turns_per_second > SQLITE_TURNS.value
    assert form_of(work) is PlatformForm.POSTGRESQL


@pytest.mark.parametrize(("database", "agents"), [("sqlite", 1_000), ("postgresql", 10)])
def test_a_database_that_was_named_is_the_one_that_is_used(database: str, agents: int) -> None:
    found = size_of(replace(CALM, agents=agents, database=database))
    assert (found.form is PlatformForm.SQLITE) == (database == "sqlite")
    assert (found.connections == 0) == (database == "sqlite")


def test_turns_that_last_longer_need_more_processes() -> None:
    def pools(seconds: float) -> int:
        return size_of(Workload(agents=100, turns_per_hour=60, turn_seconds=seconds)).processes["process of a pool"]

    assert pools(1) == 1
    # 100 turns a minute of 60 s are 100 at once.
    assert pools(60) > 100 / TURNS_AT_ONCE


def test_a_proxy_is_advised_from_the_connection_on_that_postgresql_refuses() -> None:
    sizes = [size_of(replace(CALM, agents=agents)) for agents in range(200, 3_000, 50)]
    assert all(size.pgbouncer == (size.connections > MAX_CONNECTIONS - RESERVED) for size in sizes)
    assert {size.pgbouncer for size in sizes} == {True, False}


def test_the_first_limit_is_the_lowest_one() -> None:
    rates = [limit.turns_per_second for limit in size_of(CALM).limits]
    assert rates == sorted(rates)
    assert rates[0] > CALM.turns_per_second


def test_agents_that_cannot_keep_up_are_reported() -> None:
    assert not any("mailbox" in note for note in size_of(replace(CALM, turn_seconds=59)).notes)
    assert any("mailbox" in note for note in size_of(replace(CALM, turn_seconds=60)).notes)


def test_the_cost_of_models_is_turns_times_tokens_times_price() -> None:
    work = replace(CALM, tokens_per_turn=1_000, usd_per_million_tokens=2.0)
    # 10 agents × 60 turns × 24 hours × 1,000 tokens
    assert size_of(work).usd_per_day == pytest.approx(14.4 * 2)
    assert size_of(CALM).usd_per_day is None


def test_more_of_anything_never_needs_less() -> None:
    calm = replace(CALM, database="postgresql")
    more_agents = [size_of(replace(calm, agents=agents)) for agents in (1, 49, 50, 199, 200, 1_000)]
    more_turns = [size_of(replace(calm, turns_per_hour=turns)) for turns in (0.0, 1.0, 60.0, 600.0)]
    for sizes in (more_agents, more_turns):
        for figure in ("cores", "memory_mib", "connections", "redis_connections"):
            found = [getattr(size, figure) for size in sizes]
            assert found == sorted(found)


# --- the command ---


def test_the_command_says_form_processes_and_what_ends_first(agentctl: Agentctl) -> None:
    code, shown, _ = agentctl("size", "--agents", "10")
    assert code == 0
    assert "one container with SQLite" in shown
    assert "ENDS FIRST" in shown


def test_json_has_each_coefficient_with_its_source(agentctl: Agentctl) -> None:
    code, shown, _ = agentctl("size", "--agents", "200", "--json")
    document = json.loads(shown)
    assert (code, document["form"]) == (0, "several")
    assert all(one["source"] and one["unit"] for one in document["coefficients"])


@pytest.mark.parametrize(
    "wrong",
    [
        ["--agents", "0"],
        ["--agents", "-1"],
        ["--agents", "1000000000"],
        ["--agents", "1.5"],
        ["--agents", "many"],
        ["--agents", "5", "--turns-per-hour", "nan"],
        ["--agents", "5", "--turns-per-hour", "-1"],
        ["--agents", "5", "--turn-seconds", "inf"],
        ["--agents", "5", "--sandbox-share", "1.5"],
        ["--agents", "5", "--database", "mysql"],
        ["--agents", "5", "--usd-per-million", "2"],
        [],
    ],
)
def test_bad_input_is_refused_with_the_name_of_the_option(agentctl: Agentctl, wrong: list[str]) -> None:
    code, shown, notes = agentctl("size", *wrong)
    assert (code, shown) == (2, "")
    assert (wrong[-2] if len(wrong) > 2 and "usd" not in wrong[-2] else "--") in notes


@pytest.mark.parametrize("most", [["--agents", "1"], ["--agents", "100000", "--turns-per-hour", "3600"]])
def test_the_least_and_the_most_are_counted(agentctl: Agentctl, most: list[str]) -> None:
    assert agentctl("size", *most)[0] == 0
