"""Trying again while a part is away."""

from itertools import islice

import pytest

from backplane.errors import Superseded, Unavailable
from backplane.process import retrying
from backplane.process.retrying import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, pauses, until_available

AWAY = Unavailable("Redis does not answer", part="redis")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "FIRST_PAUSE_SECONDS", 0.001)


class Part:
    """Raises what it is given, one error a call, then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    async def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


async def test_a_part_that_answers_is_called_once() -> None:
    part, failures = Part(), list[Unavailable]()
    assert await until_available(part, lambda error, _: failures.append(error)) == "answer"
    assert (part.calls, failures) == (1, [])


async def test_each_failure_is_logged_and_the_call_is_made_again_until_it_succeeds() -> None:
    part, failures = Part(AWAY, AWAY, AWAY), list[Unavailable]()
    assert await until_available(part, lambda error, _: failures.append(error)) == "answer"
    assert (part.calls, failures) == (4, [AWAY] * 3)


async def test_another_error_ends_the_wait() -> None:
    part = Part(AWAY, Superseded("newer hands"))
    with pytest.raises(Superseded):
        await until_available(part, lambda *_: None)
    assert part.calls == 2


def test_pauses_grow_from_short_to_a_few_seconds_and_stay_there() -> None:
    waits = list(islice(pauses(), 30))
    assert waits[0] <= FIRST_PAUSE_SECONDS
    assert all(LONGEST_PAUSE_SECONDS / 2 <= wait <= LONGEST_PAUSE_SECONDS for wait in waits[-10:])
