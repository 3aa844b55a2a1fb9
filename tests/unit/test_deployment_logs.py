"""How lines of replicas are kept once, and no faster than is good."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from backplane.kubernetes.api import cut_lines
from controller.deployments.logs import LineAllowance, LineCursor
from tests.deployed_agents import NOW


def at(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)


def test_lines_that_come_again_after_a_loss_are_dropped() -> None:
    cursor = LineCursor()
    assert [cursor.is_new(NOW + at(second)) for second in (0, 1, 2)] == [True] * 3
    cursor.begin()
    assert [cursor.is_new(NOW + at(second)) for second in (1, 2, 3)] == [False, False, True]


def test_lines_of_the_same_moment_are_counted() -> None:
    cursor = LineCursor()
    assert [cursor.is_new(NOW) for _ in range(3)] == [True] * 3
    cursor.begin()
    assert [cursor.is_new(NOW) for _ in range(4)] == [False, False, False, True]
    cursor.begin()
    assert [cursor.is_new(NOW) for _ in range(5)] == [False] * 4 + [True]


def test_what_another_controller_has_stored_is_dropped() -> None:
    cursor = LineCursor(NOW, 2)
    cursor.begin()
    assert [cursor.is_new(NOW + at(second)) for second in (-1, 0, 0, 1)] == [False, False, False, True]


def test_of_two_lines_of_one_moment_the_one_that_a_killed_controller_has_not_stored_is_new() -> None:
    cursor = LineCursor(NOW, 1)
    cursor.begin()
    assert [cursor.is_new(NOW), cursor.is_new(NOW), cursor.is_new(NOW + at(1))] == [False, True, True]


def test_a_burst_is_kept_and_a_flood_is_not() -> None:
    allowance = LineAllowance(rate=10, most=5, left=5)
    assert [allowance.takes(0.0) for _ in range(7)] == [True] * 5 + [False] * 2
    assert [allowance.takes(0.1) for _ in range(2)] == [True, False]
    assert sum(allowance.takes(100.0) for _ in range(50)) == 5


async def chunks(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ((b"one\ntwo\n",), [b"one", b"two"]),
        ((b"o", b"ne\nt", b"wo"), [b"one", b"two"]),
        ((b"123456789\nab\n",), [b"12345", b"ab"]),
        ((b"1234", b"56789", b"0\nab"), [b"12345", b"ab"]),
        ((b"\n\n",), [b"", b""]),
        ((), []),
    ],
)
async def test_a_line_without_end_is_cut(pieces: tuple[bytes, ...], expected: list[bytes]) -> None:
    assert [line async for line in cut_lines(chunks(*pieces), 5)] == expected
