"""Ranges of agents' numbers, and which process an agent is placed in."""

from datetime import UTC, datetime

import pytest

from backplane.domain.agents import (
    Occupancy,
    PoolProcess,
    choose_process,
    format_ranges,
    gaps,
    is_in,
    overlaps,
    parse_ranges,
)
from backplane.errors import InvalidInput

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def process(id: str, node: str, agents: int = 0, ranges: str | None = None, capacity: int = 10) -> Occupancy:
    return Occupancy(PoolProcess(id, "pool", node, capacity, NOW, NOW, NOW, ranges), agents)


def chosen(number: int, *occupancies: Occupancy) -> str | None:
    found = choose_process(f"agent {number}", number, occupancies)
    return found.id if found else None


@pytest.mark.parametrize(
    ("text", "parsed"),
    [("1-50", "1-50"), (" 1-50 , 101-150", "1-50,101-150"), ("3-4,1-2", "1-4"), ("7-7", "7-7")],
)
def test_ranges_are_read_in_order_and_joined_where_they_touch(text: str, parsed: str) -> None:
    assert format_ranges(parse_ranges(text)) == parsed


@pytest.mark.parametrize("text", ["", "1", "0-5", "5-1", "1-5,5-9", "1-2,a-b", "-1-5", "1-5," * 60])
def test_what_is_no_range_is_refused_and_names_the_setting(text: str) -> None:
    with pytest.raises(InvalidInput, match="AGENT_RANGE"):
        parse_ranges(text)


def test_numbers_of_several_nodes_and_of_none_are_found() -> None:
    nodes = [parse_ranges("1-50"), parse_ranges("40-60"), parse_ranges("71-80")]
    assert overlaps(nodes) == ((40, 50),)
    assert gaps(nodes, 100) == ((61, 70), (81, 100))
    assert (overlaps(nodes[:1]), gaps(nodes[:1], 50)) == ((), ())
    assert (is_in(50, nodes[0]), is_in(51, nodes[0])) == (True, False)


def test_a_full_process_takes_no_agent() -> None:
    assert chosen(1, process("full", "a", 10)) is None
    assert chosen(1, process("full", "a", 10), process("free", "a", 9)) == "free"


def test_a_process_whose_range_has_the_number_comes_before_those_without() -> None:
    assert chosen(5, process("any", "a"), process("named", "b", ranges="1-9")) == "named"
    assert chosen(15, process("any", "a"), process("named", "b", ranges="1-9")) == "any"
    assert chosen(15, process("named", "b", ranges="1-9")) is None


def test_a_node_that_leaves_moves_its_own_agents_only() -> None:
    nodes = [process(name, name, capacity=1000) for name in "abc"]
    before = {number: chosen(number, *nodes) for number in range(300)}
    after = {number: chosen(number, *nodes[:2]) for number in range(300)}
    assert {before[number] for number in before} == set("abc")
    assert all(after[number] == before[number] for number in before if before[number] != "c")


def test_on_a_node_the_fullest_process_with_room_takes_the_agent() -> None:
    assert chosen(1, process("one", "a", 3), process("two", "a", 7), process("three", "a", 10)) == "two"
