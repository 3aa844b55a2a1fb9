"""What watchers see of a model's call while it is under way: seldom, bounded, and with no secret in it."""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest

from tests.waiting import wait_until
from worker.llm import progress
from worker.llm.progress import TEXT_CHARS, TEXT_MAX_CHARS, CallProgress, Progress
from worker.run.redaction import Redactor

ABOUT = {"step": "s", "purpose": "turn", "number": 1, "model": "one/m"}


class Watching:
    def __init__(self, redact: Callable[[str], str] = str) -> None:
        self.shown: list[Mapping[str, Any]] = []
        self.times: list[float] = []
        self.dropped = 0
        self.progress = Progress(self._show, self._drop, redact)

    def _show(self, shown: Mapping[str, Any]) -> None:
        self.shown.append(shown)
        self.times.append(asyncio.get_running_loop().time())

    def _drop(self) -> None:
        self.dropped += 1

    def call(self, number: int = 1, *, with_text: bool = True) -> CallProgress:
        return self.progress.of_call({**ABOUT, "number": number}, with_text=with_text)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "MOMENT_SECONDS", 0.0)
    monkeypatch.setattr(progress, "INTERVAL_SECONDS", 0.03)


async def test_a_call_is_shown_with_its_tokens_and_the_end_of_its_text(fast: None) -> None:
    watching = Watching()
    with watching.call() as call:
        for piece in ("The ", "x" * 300, " end"):
            call.text(piece)
        call.has(1000)
        await wait_until(lambda: watching.shown)
    [shown] = watching.shown[:1]
    assert {name: shown[name] for name in ABOUT} == ABOUT
    assert (shown["output_tokens"], shown["text"]) == (334, "…" + ("x" * 300 + " end")[-TEXT_CHARS:])
    assert 0 <= shown["seconds"] < 5


async def test_a_call_that_is_over_within_a_moment_is_not_shown() -> None:
    watching = Watching()
    with watching.call() as call:
        call.has(10)
        await asyncio.sleep(0)
    assert (watching.shown, watching.dropped) == ([], 1)


async def test_calls_of_a_run_have_their_turns_and_are_no_more_than_the_rate(fast: None) -> None:
    watching = Watching()
    with watching.call(1) as first, watching.call(2) as second, watching.call(3) as third:
        for size in range(1, 200):
            for call in (first, second, third):
                call.has(size)
            await asyncio.sleep(0.002)
            if len(watching.shown) >= 6:
                break
    pauses = [after - before for before, after in zip(watching.times, watching.times[1:], strict=False)]
    assert min(pauses) >= progress.INTERVAL_SECONDS * 0.9
    assert sorted(shown["number"] for shown in watching.shown[:6]) == [1, 1, 2, 2, 3, 3]


async def test_a_silent_call_is_shown_again_after_a_while(fast: None, monkeypatch: pytest.MonkeyPatch) -> None:
    watching = Watching()
    with watching.call():
        await wait_until(lambda: watching.shown)
        await asyncio.sleep(5 * progress.INTERVAL_SECONDS)
        assert [shown["output_tokens"] for shown in watching.shown] == [0]
        monkeypatch.setattr(progress, "SILENCE_SECONDS", 0.0)
        await wait_until(lambda: len(watching.shown) > 1)


async def test_text_is_shown_only_where_the_step_streams_it(fast: None) -> None:
    watching = Watching()
    with watching.call(with_text=False) as call:
        call.text("a plan")
        await wait_until(lambda: watching.shown)
    assert "text" not in watching.shown[0]


@pytest.mark.parametrize(("chars", "is_shown"), [(TEXT_MAX_CHARS, True), (TEXT_MAX_CHARS + 1, False)])
async def test_the_end_of_a_very_long_text_is_not_shown(fast: None, chars: int, is_shown: bool) -> None:
    watching = Watching()
    with watching.call() as call:
        call.text("x" * chars)
        call.text("")
        await wait_until(lambda: watching.shown)
    assert ("text" in watching.shown[0]) is is_shown


@pytest.mark.parametrize("cut", [9, 20, 400])
async def test_no_part_of_a_secret_is_shown_wherever_the_text_is_cut(fast: None, cut: int) -> None:
    secret = "".join(f"{number:04x}" for number in range(3, 500, 7))
    redactor = Redactor()
    redactor.learn("KEY", secret)
    watching = Watching(partial(redactor.text, is_cut=True))
    with watching.call() as call:
        call.text(f"It is {secret[:cut]}")
        await wait_until(lambda: watching.shown)
        if cut > 100:
            call.text("." * (TEXT_CHARS - 20))
            call.has(1)
            await wait_until(lambda: len(watching.shown) > 1)
    said = "".join(shown["text"] for shown in watching.shown)
    assert not any(secret[at : at + 8] in said for at in range(min(cut, len(secret)) - 8))


async def test_half_a_character_can_be_shown(fast: None) -> None:
    watching = Watching()
    with watching.call() as call:
        call.text("a\0b\ud83d")
        await wait_until(lambda: watching.shown)
    assert watching.shown[0]["text"] == "a\ufffdb\ufffd"
