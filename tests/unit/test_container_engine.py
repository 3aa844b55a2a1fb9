"""What is read of an engine's program, whatever it prints: here a script stands in its place."""

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest
import uvloop

from backplane.containers import engine
from backplane.containers.engine import LOG_LINES, WORDS_CHARS, ContainerEngine
from backplane.errors import Unavailable


def printing(folder: Path, script: str) -> ContainerEngine:
    file = folder / "engine"
    file.write_text(script)
    return ContainerEngine(["sh", str(file)])


async def test_the_last_lines_are_those_of_both_outputs(tmp_path: Path) -> None:
    there = printing(tmp_path, "echo begins; echo '  fails  ' >&2; echo")
    assert await there.last_lines("c") == "begins | fails"


async def test_a_line_without_end_is_cut_and_marked(tmp_path: Path) -> None:
    there = printing(tmp_path, "head -c 30000000 /dev/zero | tr '\\0' x; echo; echo end")
    found = await there.last_lines("c")
    assert len(found) == WORDS_CHARS
    assert found.endswith("x… | end")


@pytest.mark.parametrize(("chars", "is_cut"), [(WORDS_CHARS, False), (WORDS_CHARS + 1, True)])
async def test_a_line_that_fits_is_not_marked(tmp_path: Path, chars: int, is_cut: bool) -> None:
    there = printing(tmp_path, f"printf '%0{chars}d' 0")
    assert (await there.last_lines("c")).endswith("…") is is_cut


async def test_the_words_of_a_refusal_are_given_once(tmp_path: Path) -> None:
    script = """
    echo 'Trying to pull localhost/nope:1...' >&2
    echo 'time="12:00" level=warning msg="Failed, retrying in 1s (1/3). Error: connection refused"' >&2
    echo 'Error: connection refused' >&2
    exit 125
    """
    with pytest.raises(Unavailable) as refused:
        await printing(tmp_path, script).run(["image"])
    assert refused.value.message.endswith("failed: Trying to pull localhost/nope:1... Error: connection refused")


async def test_so_many_lines_are_kept(tmp_path: Path) -> None:
    there = printing(tmp_path, f"seq {LOG_LINES + 5}")
    assert (await there.last_lines("c")).split(" | ")[0] == "6"


async def test_a_flood_that_nobody_reads_on_ends_with_its_reader(tmp_path: Path) -> None:
    there = printing(tmp_path, "yes")
    async with asyncio.timeout(20), aclosing(there.follow("c", "", most=10)) as printed:
        assert await anext(printed) == b"y"
        # The program fills what may wait to be read, and no more is taken of it.
        for _ in range(1000):
            await asyncio.sleep(0)


async def test_an_engine_that_prints_for_ever_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "ANSWER_SECONDS", 0.2)
    assert await printing(tmp_path, "yes").last_lines("c") == ""


def test_an_answer_ends_though_the_engine_leaves_a_monitor_of_the_container_behind(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.touch()
    monitor = f"while [ -e {runs} ]; do sleep 0.1; done"
    there = printing(tmp_path, f"setsid sh -c '{monitor}' >/dev/null 2>&1 & echo started")

    async def started() -> None:
        async with asyncio.timeout(20):
            await there.run(["image"])

    try:
        # The processes of the platform run on it, and it leaves more open in a child than Python's own loop.
        uvloop.run(started())
    finally:
        runs.unlink()
