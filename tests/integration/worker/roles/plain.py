"""Roles for the tests of roles. What an effect does is seen by the lines that it leaves in a file."""

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from worker.roles import Agent, Message, Role, StepError


def mark(marks: str, line: str) -> str:
    with Path(marks).open("a") as file:
        file.write(f"{line}\n")
    return line


def mark_slowly(marks: str) -> None:
    mark(marks, "begun")
    time.sleep(1.0)
    mark(marks, "done")


class Counter(Role):
    """Counts its messages in its state."""

    async def on_message(self, message: Message, agent: Agent) -> dict[str, Any]:
        agent.state["messages"] = [*agent.state.get("messages", []), message.text]
        if message.text == "raise":
            raise LookupError("there is no such thing")
        return {"turn": message.turn, "messages": len(agent.state["messages"])}


class Scripted(Role):
    """Does what the data of its message say."""

    async def on_message(self, message: Message, agent: Agent) -> Any:
        data = message.data or {}
        match data.get("do"):
            case "state":
                agent.state = {"set": data["value"]} if "value" in data else {"x": "y" * 300_000}
            case "no-json-state":
                agent.state["bad"] = object()
            case "list-state":
                agent.state = [1]  # type: ignore[assignment]
            case "no-json":
                return object()
            case "nap":
                await agent.sleep(0.4)
            case "take":
                await asyncio.sleep(data["seconds"])
            case "exit":
                await asyncio.sleep(0.3)  # others have begun
                os._exit(9)
            case "never":
                agent.state["lost"] = True
                await asyncio.Event().wait()
            case "block":
                time.sleep(data["seconds"])  # noqa: ASYNC251 - what is tested
            case "give-away":
                value = Path(data["file"]).read_text()
                await agent.tool("shell", script="true", environment={"KEY": "${secrets.TOKEN}"})
                await agent.send("bob", f"it is {value}", {value: [value]})
                answer = await agent.ask("bob", value, {"do": "echo", "value": value})
                agent.state["value"] = value
                return answer
            case "echo":
                return data["value"]
            case "slowly":
                await agent.step("slow", mark_slowly, data["marks"])
            case "ask":
                try:
                    return await agent.ask(
                        data["agent"], data.get("text", "hello"), data.get("data"), **data["options"]
                    )
                except StepError as error:
                    return f"{error.code}: {error.message}"
            case "ask-and-fail":
                return await agent.ask(data["agent"], "hello", data["data"])
            case "need":
                if not Path(data["file"]).exists():
                    raise LookupError("the file is missing")
            case "ask-all":
                return await agent.gather(*(agent.ask(name, "hello", one) for name, one in data["questions"]))
            case "send":
                try:
                    return await agent.send(data["agent"], data.get("text", "hello"), data.get("data"))
                except StepError as error:
                    return f"{error.code}: {error.message}"
            case "marks":
                first = await agent.step("first", mark, data["marks"], f"{message.turn}")
                await agent.sleep(0.05)
                return first
            case "waits":
                event = await agent.wait_event(data["type"], timeout=data.get("timeout"))
                return event and event["data"]
            case "approve":
                return await agent.approve("Go on?")
            case "files":
                if "mode" in data:
                    await agent.tool("shell", script=f"chmod {data['mode']} {data['path']}; mkdir -p empty")
                if "write" in data:
                    await agent.tool("shell", script=f"echo {data['write']} > {data['path']}; chmod 755 {data['path']}")
                return (await agent.tool("shell", script=f"cat {data['path']}; stat -c %a {data['path']}")).output
            case "remember":
                await agent.tool("remember", text=data["text"])
            case "conversation":
                seen = await agent.conversation()
                return [(turn.message, turn.answer, turn.status) for turn in seen.turns]
        return f"heard: {message.text}"


class Listener(Role):
    listens_to = ("order.*", "run.completed")

    async def on_message(self, message: Message, agent: Agent) -> Any:
        kind = message.sender.kind
        return {"from": kind, "type": message.sender.name, "data": message.data["data"] if kind == "event" else None}
