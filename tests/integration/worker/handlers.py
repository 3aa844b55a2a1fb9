"""Handlers for the tests of handlers. What an effect does is seen by the lines that it leaves in a file."""

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from worker.handlers import Run, StepError, handler


class Marked(BaseModel):
    """`marks`: the file. `go`: a file for which some wait."""

    marks: Path
    go: Path | None = None
    count: int = 3
    code: str = "as before"


def mark(marks: Path, line: str) -> str:
    with marks.open("a") as file:
        file.write(f"{line}\n")
    return line


def mark_and_wait(marks: Path, line: str, go: Path) -> str:
    mark(marks, line)
    while not go.exists():
        time.sleep(0.02)
    return line


async def mark_soon(marks: Path, line: str) -> str:
    await asyncio.sleep(0)
    return mark(marks, line)


@handler("marks")
async def marks(run: Run, input: Marked) -> dict[str, Any]:
    """Leaves marks."""
    done = [await run.step(f"mark-{number}", mark, input.marks, str(number)) for number in range(input.count)]
    return {"done": done, "run": run.id}


@handler("no-input")
async def no_input(run: Run) -> str:
    return "nothing was needed"


@handler("waits-for-go")
async def waits_for_go(run: Run, input: Marked) -> list[str]:
    run.log("before")
    first = await run.step("first", mark, input.marks, "first")
    run.log("between")
    second = await run.step("second", mark_and_wait, input.marks, "second", input.go).options(repeatable=True)
    return [first, second, await run.step("third", mark_soon, input.marks, "third")]


@handler("in-doubt")
async def in_doubt(run: Run, input: Marked) -> Any:
    return await run.step("only", mark_and_wait, input.marks, "only", input.go)


@handler("tools")
async def tools(run: Run) -> list[Any]:
    written = await run.tool("file_write", path="a.txt", content="one\n")
    read = await run.tool("shell", script="cat a.txt; echo two")
    return [list(written.files), read.output, read.exit_code]


@handler("failing-tool")
async def failing_tool(run: Run, input: dict[str, bool]) -> str:
    try:
        await run.tool("shell", script="echo no; exit 3")
    except StepError as error:
        if input.get("catch"):
            return f"caught {error.code}"
        raise
    return "it did not fail"


@handler("raises")
async def raises(run: Run) -> None:
    await run.step("fine", time.time)
    raise LookupError("there is no such thing")


def fails_until(there: Path) -> str:
    if not there.exists():
        raise LookupError(f"{there.name} is missing")
    return "there"


@handler("fails-until")
async def fails_until_there(run: Run, input: Marked) -> str:
    await run.step("mark", mark, input.marks, "before")
    found: str = await run.step("look", fails_until, input.go)
    return found


@handler("no-json")
async def no_json(run: Run, input: str) -> Any:
    if input == "step":
        return await run.step("object", object)
    return {"large": "x" * 300_000} if input == "large" else object()


@handler("exits")
async def exits(run: Run, input: str) -> None:
    if input == "step":
        await run.step("exit", sys.exit, 3)
    raise SystemExit(3)


@handler("never-ends")
async def never_ends(run: Run) -> None:
    await run.step("once", time.time)
    await asyncio.Event().wait()


@handler("swallows-its-end")
async def swallows(run: Run, input: Marked) -> str:
    """Asks, and does not let itself be cancelled while it waits."""
    try:
        await run.approve("Go on?")
    except BaseException:
        mark(input.marks, "swallowed")
    return "went on"


@handler("counts-for-ever")
async def counts(run: Run) -> None:
    number = 0
    while True:
        number = await run.step("add", sum, [number, 1])


@handler("grows")
async def grows(run: Run) -> None:
    while True:
        await run.step("grow", str, "x" * 98)


@handler("approves")
async def approves(run: Run, input: Marked) -> str:
    await run.step("before", mark, input.marks, "before")
    if not await run.approve("Send it to 3 people?"):
        return "not sent"
    await run.step("send", mark, input.marks, "sent")
    return "sent to " + await run.ask("To whom?", ["ada", "bob"])


@handler("approved-step")
async def approved_step(run: Run, input: Marked) -> Any:
    return await run.step("send", mark, input.marks, "sent").options(approval=True)


@handler("at-once")
async def at_once(run: Run, input: Marked) -> list[Any]:
    return await run.gather(*(run.step(f"n{number}", mark_soon, input.marks, str(number)) for number in range(5)))


@handler("gathers-a-question")
async def gathers_a_question(run: Run, input: Marked) -> list[Any]:
    return await run.gather(run.approve("Go?"), run.step("other", mark, input.marks, "other"))


@handler("other-code")
async def other_code(run: Run, input: Marked) -> list[Any]:
    """What it asks for in its second place is what stands in a file."""
    first = await run.step("first", mark, input.marks, "first")
    wanted = input.go.read_text().strip() if input.go else ""
    if wanted == "end":
        return [first]
    name, _, argument = wanted.partition(" ")
    second = await run.step(name, mark, input.marks, argument)
    return [first, second, await run.step("third", fails_until, input.go.with_name("third"))]  # type: ignore[union-attr]


@handler("sleeps")
async def sleeps(run: Run, input: dict[str, float]) -> str:
    await run.sleep(input["seconds"])
    return "awake"


@handler("parent")
async def parent(run: Run, input: dict[str, Any]) -> Any:
    """Starts these runs and gives what they gave."""
    children = [run.start(one["handler"], one.get("input")) for one in input["children"]]
    return await run.gather(*(child.result() for child in children))


@handler("catches-its-child")
async def catches_its_child(run: Run, input: str) -> str:
    child = await run.start(input)
    try:
        await child.result()
    except StepError as error:
        return f"{error.code}: {error.message.replace(child.run_id, 'it')}"
    return "it did not fail"


@handler("gives-time")
async def gives_time(run: Run, input: dict[str, Any]) -> str:
    started = run.start(input["handler"], queue=input.get("queue")).within(input["timeout"])
    try:
        return str(await started.result())
    except StepError as error:
        return error.code


@handler("starts-itself")
async def starts_itself(run: Run) -> Any:
    return await run.start("starts-itself").result()


@handler("plan-child")
async def plan_child(run: Run) -> Any:
    plan = {"steps": [{"id": "a", "tool": "shell", "arguments": {"script": "true"}}]}
    return await run.start(plan=plan).result()


@handler("progress")
async def progress(run: Run) -> None:
    run.progress(1, 4, "one of four")


class City(BaseModel):
    name: str
    people: int


@handler("asks-a-model")
async def asks_a_model(run: Run, input: str) -> Any:
    if input == "text":
        return await run.model("Say hello.")
    city = await run.model("Which city?", schema=City, system="Be short.")
    assert isinstance(city, City)
    return city.people


@handler("waits-for-events")
async def waits_for_events(run: Run, input: dict[str, Any]) -> list[Any]:
    events = await run.gather(
        *(run.wait_event(one["type"], one.get("match"), timeout=one.get("timeout")) for one in input["events"])
    )
    return [event and event["data"] for event in events]


# --- under limits ---


@handler("catches-a-refusal")
async def catches_a_refusal(run: Run, input: Marked) -> str:
    await run.step("first", mark, input.marks, "first")
    try:
        await run.step("second", mark, input.marks, "second")
    except StepError as error:
        return f"caught {error.code} of {error.step}"
    return "it did not fail"


@handler("starts-many")
async def starts_many(run: Run, input: dict[str, int]) -> int:
    """Starts runs one after another, and waits for none."""
    for _ in range(input["count"]):
        await run.start("no-input")
    return input["count"]


@handler("starts-or-says-why-not")
async def starts_or_says_why_not(run: Run, input: str) -> str:
    try:
        return (await run.start(input)).run_id
    except StepError as error:
        return f"{error.code}: {error.message}"


@handler("blocks")
async def blocks(run: Run, input: dict[str, float]) -> str:
    # Its end is written with what follows, which does not come where the worker is lost meanwhile.
    await run.step("before", time.time).options(repeatable=True)
    time.sleep(input["seconds"])  # noqa: ASYNC251
    await run.step("after", time.time).options(repeatable=True)
    return "blocked"


# --- what no database or journal takes ---

CONTROL = "a\0b\ud800c"


def raises_with(text: str) -> None:
    raise ValueError(text)


@handler("hostile")
async def hostile(run: Run, input: str) -> Any:
    match input:
        case "a name":
            return await run.step(CONTROL, str, 1)
        case "an argument":
            return await run.step("x", str, CONTROL)
        case "a result":
            return await run.step("x", lambda: CONTROL)
        case "an error":
            return await run.step("x", raises_with, CONTROL)
        case "its own error":
            raise ValueError(CONTROL)
        case "a line":
            run.log(CONTROL)
            run.progress(1, 2, CONTROL)
            return CONTROL
        case "a tool":
            return (await run.tool("file_write", path="a", content=CONTROL)).output
        case "a path":
            return (await run.tool("file_write", path=CONTROL, content="x")).output
        case "a tool's name":
            return (await run.tool("x" * 300)).output
        case "no name":
            return (await run.tool("")).output
        case "no time":
            return await run.step("x", str, 1).options(timeout_seconds=0)
        case "a long time":
            return await run.step("x", str, 1).options(timeout_seconds=10**9)
        case "no function":
            return await run.step("x", str(1))  # type: ignore[arg-type]
        case "no type":
            return await run.wait_event(5)  # type: ignore[arg-type]
        case "a match of no object":
            return await run.wait_event("order.paid", 5, timeout=1)  # type: ignore[arg-type]
        case "a question":
            return await run.approve("")
        case "a sleep":
            return await run.sleep(1e13)
        case "a wait":
            return await run.wait_event("order.paid", timeout=1e13)
        case "a wait for text":
            return await run.wait_event("order.paid", timeout="soon")  # type: ignore[arg-type]
        case "a match":
            return await run.wait_event("order.paid", {"data": {"a": float("nan")}}, timeout=0.01)
        case "a run's input":
            return (await run.start("no-input", {"a": float("nan"), "b": CONTROL})) and "started"
        case "a run's prompt":
            return (await run.start(prompt=CONTROL)) and "started"
        case "a run's queue":
            return await run.start("no-input", queue="x" * 300)
    raise AssertionError(input)


@handler("forgets-to-await")
async def forgets_to_await(run: Run, input: Marked) -> str:
    run.step("never", mark, input.marks, "never")
    await run.step("done", mark, input.marks, "done")
    run.sleep(days=1)
    return "over"


# --- secrets ---


@handler("gives-away")
async def gives_away(run: Run, input: dict[str, Any]) -> Any:
    """Hands a value of which the run knows that it is a secret on in every way that there is."""
    value: str = Path(input["file"]).read_text()
    await run.tool("shell", script="true", environment={"KEY": "${secrets.TOKEN}"})
    if input["how"] == "raises":
        raise LookupError(f"no {value}")
    run.log(f"logged {value}")
    run.progress(1, 2, value)
    given = [await run.step("named", str, value), await run.step("nested", list, [{value: value}])]
    try:
        await run.step("raises", raises_with, value)
    except StepError as error:
        given.append(error.message)
    try:
        await run.wait_event("order.paid", {"data": {"key": value}}, timeout=0.01)
    except StepError as error:
        given.append(error.code)
    given.append((await run.tool("shell", script=f"echo {value}")).output)
    await run.step(f"named {value}", str, 1)
    for effect in (
        run.tool(value),
        run.wait_event(value, timeout=0.01),
        run.start(value.lower()),
        run.start("no-input", queue=value.lower()),
    ):
        try:
            given.append(await effect)
        except StepError as error:
            given.append(f"{error.step} {error.code}")
    await run.start("echoes", {"key": value, "number": 7})
    await run.start(prompt=f"use {value}", plan={"steps": [{"id": "a", "tool": "shell", "title": value}]})
    given.append(await run.ask(f"Is it {value}?", [value, "no"]))
    return {"given": given, value: value}


@handler("echoes")
async def echoes(run: Run, input: dict[str, Any]) -> Any:
    return input
