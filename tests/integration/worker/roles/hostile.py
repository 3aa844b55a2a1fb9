"""A role that does what no role should: what it hands over, raises and returns. The text of its message says which."""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from worker.roles import Agent, Message, Role


class Unreadable(Exception):
    def __str__(self) -> str:
        raise LookupError("not even its text can be read")


def in_a_circle() -> Exception:
    """As `raise error.__cause__ from error` makes it."""
    outer, inner = ValueError("outer"), KeyError("inner")
    outer.__cause__, inner.__cause__ = inner, outer
    return outer


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def endless() -> int:
    return 1 + endless()


def cyclic() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["itself"] = value
    return value


def raised(error: BaseException) -> NoReturn:
    raise error


RAISED: Mapping[str, Callable[[], BaseException]] = {
    "a circle of causes": in_a_circle,
    "an error without a text": Unreadable,
    "an exit": lambda: SystemExit(3),
    "an interrupt": KeyboardInterrupt,
    "its own cancel": asyncio.CancelledError,
    "the end of a generator": GeneratorExit,
    "the end of an iterator": lambda: StopIteration(1),
    "a group": lambda: BaseExceptionGroup("both", [SystemExit(1), ValueError("x")]),
    "half a character": lambda: ValueError("\ud800 \0"),
    "no memory": MemoryError,
    "ten megabytes": lambda: ValueError("x" * 10_000_000),
}
RETURNED: Mapping[str, Callable[[], Any]] = {
    "half a character": lambda: "a\ud800b",
    "half a character in a name": lambda: {"\ud800": "\udfff"},
    "NUL": lambda: "a\0b",
    "too deep": lambda: nested(10_000),
    "as deep as may be": lambda: nested(199),
    "deeper than may be": lambda: nested(201),
    "as deep as pydantic takes": lambda: nested(254),
    "a circle": cyclic,
    "no number": lambda: float("nan"),
    "a long number": lambda: 10**4000,
    "a longer number": lambda: 10**5000,
    "bytes": lambda: b"\xff",
    "a hundred megabytes": lambda: "x" * 100_000_000,
    "a role": lambda: Hostile,
}


class Hostile(Role):
    """Its data: {"do", "what", …}."""

    async def on_message(self, message: Message, agent: Agent) -> Any:
        data = message.data or {}
        do, what = data.get("do"), data.get("what", "")
        match do:
            case "raise":
                raised(RAISED[what]())
            case "raise in a step":
                return await agent.step("raises", lambda: raised(RAISED[what]()))
            case "return":
                return RETURNED[what]()
            case "return from a step":
                return await agent.step("returns", RETURNED[what])
            case "keep":
                agent.state["kept"] = RETURNED[what]()
            case "recurse":
                endless()
            case "stay":
                while True:
                    try:
                        await asyncio.sleep(30)
                    except asyncio.CancelledError:
                        if data.get("gives in"):
                            return "in the end"
            case "send":
                values = {"agent": "other", "text": "hello", "data": None, **SENT[what]}
                return await agent.send(values["agent"], values["text"], values["data"])
            case "ask":
                return await agent.ask("other", "hello", timeout=ASKED[what])
            case "look back":
                return len((await agent.conversation(LOOKED_BACK[what])).turns)
            case "give away":
                value = Path(data["file"]).read_text()
                await agent.tool("shell", script="true", environment={"KEY": "${secrets.TOKEN}"})
                agent.state["kept"] = {value: value}
                await agent.send("other", f"use {value}", {value: value})
                return [value, await agent.ask("other", f"is it {value}?", {value: value})]
            case "log":
                agent.log("a\ud800\0b\n\x1b[2Jc")
                agent.progress(1, 2, "\ud800\0")
            case "progress":
                agent.progress(float("nan"), float("inf"), "")
        return f"heard: {message.text}"


SENT: Mapping[str, Mapping[str, Any]] = {
    "NUL": {"text": "a\0b"},
    "half a character": {"text": "a\ud800b"},
    "no text": {"text": ""},
    "a number": {"text": 5},
    "None": {"text": None},
    "too long": {"text": "x" * 10_000_000},
    "to NUL": {"agent": "a\0b"},
    "to half a character": {"agent": "\ud800"},
    "to None": {"agent": None},
    "to bytes": {"agent": b"other"},
    "to nobody": {"agent": "nobody"},
    "to a path": {"agent": "../other"},
    "to pools": {"agent": "///"},
    "to ten megabytes": {"agent": "x" * 10_000_000},
    "to an object": {"agent": object()},
    "a text of bytes": {"text": b"\xff"},
    "data that are too large": {"data": "x" * 10_000_000},
    "data in a circle": {"data": cyclic()},
    "data that are too deep": {"data": nested(10_000)},
    "data of half a character": {"data": {"\ud800": "\0"}},
    "data of an object": {"data": object()},
}
ASKED: Mapping[str, Any] = {
    "inf": float("inf"),
    "nan": float("nan"),
    "text": "x",
    "huge": 1e300,
    "negative": -1,
    "true": True,
    "list": [1],
}
LOOKED_BACK: Mapping[str, Any] = {"nan": float("nan"), "text": "x", "negative": -1, "huge": 10**30, "none": None}
