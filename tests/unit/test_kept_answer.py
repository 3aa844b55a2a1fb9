"""An answer for all who ask: made once for those who ask together, kept for its time, and lost by nobody's end."""

import asyncio

import pytest

from app.kept_answer import KeptAnswer


class Maker:
    def __init__(self) -> None:
        self.made = 0
        self.go_on = asyncio.Event()
        self.error: Exception | None = None

    async def make(self) -> int:
        self.made += 1
        number = self.made
        await self.go_on.wait()
        if self.error:
            raise self.error
        return number


async def test_all_who_ask_at_the_same_time_get_one_answer() -> None:
    maker = Maker()
    kept = KeptAnswer(maker.make, seconds=0)
    asking = [asyncio.create_task(kept.get()) for _ in range(50)]
    await asyncio.sleep(0)
    maker.go_on.set()
    assert await asyncio.gather(*asking) == [1] * 50
    assert await kept.get() == 2


async def test_an_answer_is_given_again_for_its_time_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("app.kept_answer.time.monotonic", lambda: now)
    maker = Maker()
    maker.go_on.set()
    kept = KeptAnswer(maker.make, seconds=1)
    found = []
    for now in (0.0, 0.99, 1.0, 1.5):  # noqa: B007 - read by the lambda
        found.append(await kept.get())
    assert found == [1, 1, 2, 2]


async def test_a_client_that_goes_away_takes_the_answer_from_nobody() -> None:
    maker = Maker()
    kept = KeptAnswer(maker.make, seconds=60)
    first, second = asyncio.create_task(kept.get()), asyncio.create_task(kept.get())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    maker.go_on.set()
    assert await second == 1
    assert maker.made == 1


async def test_an_error_reaches_all_who_waited_and_is_not_kept() -> None:
    maker = Maker()
    maker.error = ValueError("away")
    kept = KeptAnswer(maker.make, seconds=60)
    asking = [asyncio.create_task(kept.get()) for _ in range(3)]
    await asyncio.sleep(0)
    maker.go_on.set()
    assert [type(found) for found in await asyncio.gather(*asking, return_exceptions=True)] == [ValueError] * 3
    maker.error = None
    assert await kept.get() == 2


async def test_closing_ends_what_is_being_made() -> None:
    maker = Maker()
    kept = KeptAnswer(maker.make, seconds=60)
    asking = asyncio.create_task(kept.get())
    await asyncio.sleep(0)
    await kept.close()
    with pytest.raises(asyncio.CancelledError):
        await asking
