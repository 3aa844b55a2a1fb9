"""Text of strangers (pages, patches, prompts, schemas) made to stop the reader, or to raise what nobody expects."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from backplane.domain.runbook import steps_of
from backplane.errors import InvalidInput, InvalidPlan
from backplane.input.argument_schemas import are_usable
from backplane.input.parsing import PROCESSES_AT_ONCE, SHORT_CHARS, THREADS_AT_ONCE, VERY_SHORT_CHARS, Parser
from tests.waiting import wait_until
from worker.tools.page_text import text_of_page
from worker.tools.unified_diff import parse_patch

MIB = 1024**2
HEAD = "--- a/x\n+++ b/x\n"

PATCHES = {
    "one endless hunk": HEAD + f"@@ -1,{MIB // 8} +1,{MIB // 8} @@\n" + "-a\n" * (MIB // 8) + "+b\n" * (MIB // 8),
    "as many hunks as fit": HEAD + "@@ -1 +1 @@\n-a\n+b\n" * (MIB // 20),
    "as many files as fit": (HEAD + "@@ -1 +1 @@\n-a\n+b\n") * (MIB // 36),
    "no patch": "x\n" * (MIB // 2),
    "a number without an end": HEAD + "@@ -1" + "0" * 5000 + " +1 @@\n-a\n+b\n",
    "a name without an end": "--- " + "x" * (MIB // 2) + "\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n",
    "a quoted name that breaks off": '--- "a/\\' + "\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n",
    "lone surrogates": HEAD.replace("x", "\ud800") + "@@ -1 +1 @@\n-\udfff\n+b\n",
    "null characters": HEAD + "@@ -1 +1 @@\n-\0\n+\0b\n",
    "only a head of a hunk": HEAD + "@@",
    "negative numbers": HEAD + "@@ --1,-5 +-1 @@\n-a\n+b\n",
}
PAGES = {
    "a character number of 5,000 digits": "<p>&#" + "9" * 5000 + ";</p>",
    "the same with leading zeros": "&#" + "0" * 5000 + "65;",
    "the same in hexadecimal": "&#x" + "f" * 5000 + ";",
    "the same in a link": '<a href="&#' + "1" * 5000 + '">x</a>',
    "only openings": "<" * MIB,
    "references without an end": "&a;" * (MIB // 3),
    "tags that never close": "<a href=" * (MIB // 8),
    "comments that never close": "<!--" * (MIB // 4),
    "scripts that never close": "<script></scrip" * (MIB // 15),
    "lone surrogates": "<p>\ud800</p>&#xd800;",
    "null characters": "\0<p\0>\0",
}
PROMPTS = {
    "opening brackets": "[" * 100_000,
    "opening images": "![" * 50_000,
    "links in links": "[a](" * 25_000,
    "stars and underscores": "*a_ " * 25_000,
    "a link title without an end": '[a]: x "' + "a\n" * 50_000,
    "quotes in quotes": "> " * 50_000,
    "lists in lists": "\n".join(" " * depth + "- a" for depth in range(400)),
    "a character number of 5,000 digits in a heading": "# &#" + "9" * 5000 + ";\n```sh\ntrue\n```\n",
    "a character number of 5,000 digits in an info string": "``` &#" + "9" * 5000 + ";\nx\n```\n",
    "blocks without an end": "```sh\nx\n```\n" * 8000,
}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"properties": {"a": schema}}
    return {"type": "object", **schema}


SCHEMAS: dict[str, dict[str, Any]] = {
    "many properties": {"type": "object", "properties": {str(number): {} for number in range(1000)}},
    "many alternatives": {"type": "object", "anyOf": [{}] * 1000},
    "nested without an end": nested(900),
    "a number that is none": {"type": "object", "maximum": 10**400, "minLength": 1e300},
    "an address that is none": {"type": "object", "$id": "http://["},
    "a dialect that is no text": {"type": "object", "$schema": ["x"]},
    "types of a wrong kind": {"type": "object", "properties": [1, 2], "required": {"a": 1}},
}
READERS: list[tuple[Callable[..., Any], str, Any]] = [
    *((parse_patch, f"a patch: {name}", text) for name, text in PATCHES.items()),
    *((text_of_page, f"a page: {name}", text) for name, text in PAGES.items()),
    *((steps_of, f"a prompt: {name}", text) for name, text in PROMPTS.items()),
    *((are_usable, f"a schema: {name}", [schema]) for name, schema in SCHEMAS.items()),
]


@pytest.mark.parametrize(
    ("reader", "what", "text"),
    [pytest.param(*row, id=row[1], marks=[pytest.mark.slow] * (len(row[2]) > SHORT_CHARS)) for row in READERS],
)
async def test_hostile_text_is_read_or_refused_as_invalid_input(
    reader: Callable[..., Any], what: str, text: Any
) -> None:
    size = len(text) if isinstance(text, str) else SHORT_CHARS
    with suppress(InvalidInput):
        await Parser().call("u", what, size, reader, text)


@pytest.mark.parametrize(("reader", "what", "text"), READERS, ids=[what for _, what, _ in READERS])
def test_the_reader_itself_raises_nothing_else(reader: Callable[..., Any], what: str, text: Any) -> None:
    if isinstance(text, str):
        text = text[: SHORT_CHARS // 8]
    with suppress(InvalidInput):
        reader(text)


def test_a_page_with_an_impossible_character_is_shown_all_the_same() -> None:
    assert text_of_page("<p>before &#" + "9" * 5000 + "; after</p>") == "before � after\n"


def test_a_runbook_with_a_hostile_heading_keeps_its_step() -> None:
    [step] = steps_of("# " + "[" * 5000 + "\n```sh\ntrue\n```\n")
    assert step["tool"] == "shell"


# --- where it is read ---


def process_and_thread(_: str) -> tuple[int, bool]:
    return os.getpid(), threading.current_thread() is threading.main_thread()


def forever(_: str) -> None:
    while True:
        pass


def much_memory(_: str) -> int:
    return len(bytearray(4 * 1024**3))


def unexpected(_: str) -> None:
    raise ZeroDivisionError("surprise")


def refused(_: str) -> None:
    raise InvalidPlan("not like this", field="patch")


def environment(_: str) -> dict[str, str]:
    return dict(os.environ)


SIZES = {"very short": VERY_SHORT_CHARS, "short": SHORT_CHARS, "long": SHORT_CHARS + 1}


async def test_a_very_short_text_is_read_at_once_a_short_one_in_a_thread_a_long_one_in_a_process() -> None:
    parser, here = Parser(), os.getpid()
    assert await parser.call("u", "x", VERY_SHORT_CHARS, process_and_thread, "") == (here, True)
    assert await parser.call("u", "x", VERY_SHORT_CHARS + 1, process_and_thread, "") == (here, False)
    assert await parser.call("u", "x", SHORT_CHARS, process_and_thread, "") == (here, False)
    pid, _ = await parser.call("u", "x", SHORT_CHARS + 1, process_and_thread, "")
    assert pid != here


async def test_a_text_that_is_read_for_ever_is_given_up_while_the_loop_turns() -> None:
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0.01)
            turns += 1

    turning = asyncio.create_task(turn())
    with pytest.raises(InvalidInput, match=r"the page takes more than 0\.5 s"):
        await Parser(seconds=0.5).call("u", "the page", SHORT_CHARS + 1, forever, "")
    turning.cancel()
    assert turns > 5


async def test_a_text_that_takes_all_memory_is_given_up() -> None:
    with pytest.raises(InvalidInput, match="the page cannot be read: MemoryError"):
        await Parser().call("u", "the page", SHORT_CHARS + 1, much_memory, "")


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
async def test_an_unexpected_error_names_the_text_and_the_error(size: int) -> None:
    with pytest.raises(InvalidInput, match="the page cannot be read: ZeroDivisionError: surprise"):
        await Parser().call("u", "the page", size, unexpected, "")


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
async def test_an_error_of_the_platform_arrives_as_it_is(size: int) -> None:
    with pytest.raises(InvalidPlan) as caught:
        await Parser().call("u", "the page", size, refused, "")
    assert (caught.value.message, caught.value.field) == ("not like this", "patch")


async def test_a_call_that_is_cancelled_leaves_no_process() -> None:
    reading = asyncio.create_task(Parser(seconds=60).call("u", "the page", SHORT_CHARS + 1, forever, ""))
    readers = await wait_until(reader_pids)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert not [pid for pid in readers if command(pid)]


async def test_the_process_does_not_see_the_credentials_of_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    assert "OPENAI_API_KEY" not in await Parser().call("u", "x", SHORT_CHARS + 1, environment, "")


@asynccontextmanager
async def reading_for_ever(parser: Parser, users: Iterable[str], at_once: int) -> AsyncIterator[None]:
    """Texts of these users that take for ever, once `at_once` of them are being read."""
    tasks = [asyncio.create_task(parser.call(user, "the page", SHORT_CHARS + 1, forever, "")) for user in users]
    try:
        await wait_until(lambda: len(reader_pids()) >= at_once)
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_user_with_many_texts_that_take_long_keeps_nobody_else_waiting() -> None:
    parser = Parser(seconds=60)
    async with reading_for_ever(parser, ["hostile"] * (PROCESSES_AT_ONCE + 2), 1), asyncio.timeout(30):
        await parser.call("other", "the page", SHORT_CHARS + 1, process_and_thread, "")
        assert len(reader_pids()) == 1


async def test_long_texts_in_all_processes_keep_no_short_text_waiting() -> None:
    parser = Parser(seconds=60)
    users = [f"hostile-{number}" for number in range(PROCESSES_AT_ONCE + 2)]
    async with reading_for_ever(parser, users, PROCESSES_AT_ONCE), asyncio.timeout(30):
        await parser.call("hostile-0", "the page", SHORT_CHARS, process_and_thread, "")
        assert len(reader_pids()) == PROCESSES_AT_ONCE


async def test_a_user_with_many_short_texts_has_one_thread_at_a_time() -> None:
    parser, going_on, entered = Parser(), threading.Event(), []

    def wait(user: str) -> None:
        entered.append(user)
        assert going_on.wait(30)

    users = ["hostile"] * (THREADS_AT_ONCE + 2) + ["other"]
    tasks = [asyncio.create_task(parser.call(user, "the page", SHORT_CHARS, wait, user)) for user in users]
    try:
        await wait_until(lambda: "other" in entered)
        assert sorted(entered) == ["hostile", "other"]
    finally:
        going_on.set()
        await asyncio.gather(*tasks)


def reader_pids() -> list[int]:
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [int(pid) for pid in children if b"backplane.input.parsing" in command(int(pid))]


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""
