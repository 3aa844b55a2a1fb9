"""What is left of deployments that have no row any more is taken away, later, and nothing else is."""

import asyncio
from typing import Any, cast

import pytest

from backplane.errors import NotFound, Unavailable
from controller.deployments import collecting
from controller.deployments.collecting import Collector
from controller.deployments.target import Removal, TargetRefused

LEFT = Removal("gone", "team-a", 30)


class Beside:
    """A store and a target. `rows`: ids that there are. `refuses`: what a removal raises."""

    def __init__(self, *rows: str) -> None:
        self.rows = rows
        self.removed: list[str] = []
        self.refuses: Exception | None = None
        self.asked = asyncio.Event()

    async def get(self, _: None, id: str) -> Any:
        if id not in self.rows:
            raise NotFound("no row")

    async def remove(self, removal: Removal) -> str:
        self.asked.set()
        if self.refuses is not None:
            raise self.refuses
        self.removed.append(removal.id)
        return ""


async def passes(there: Beside, *looks: list[Removal]) -> None:
    beside = cast(Any, there)
    collector = Collector(beside, beside)
    for left in looks:
        await collector.collect(left)
        if collector._removing is not None:
            await collector._removing
    await collector.stop()


async def test_it_stays_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    there = Beside()
    await passes(there, [LEFT], [LEFT])
    assert there.removed == []
    monkeypatch.setattr(collecting, "KEPT_SECONDS", 0.0)
    await passes(there, [LEFT])
    assert there.removed == ["gone"]


async def test_what_has_a_row_by_now_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "KEPT_SECONDS", 0.0)
    there = Beside("made in between")
    await passes(there, [Removal("made in between", "", 1), LEFT])
    assert there.removed == ["gone"]


@pytest.mark.parametrize("error", [Unavailable("away", part="containers"), TargetRefused("no"), RuntimeError("?")])
async def test_what_cannot_be_taken_away_is_tried_again(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "KEPT_SECONDS", 0.0)
    there = Beside()
    there.refuses = error
    beside = cast(Any, there)
    collector = Collector(beside, beside)
    await collector.collect([LEFT])
    await there.asked.wait()
    there.refuses = None
    await asyncio.sleep(0)
    await passes(there, [LEFT])
    assert there.removed == ["gone"]
    await collector.stop()
