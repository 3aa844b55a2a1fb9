"""An MCP server over HTTP that answers all as a server does, but for calls of its tool, which do as a test says."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

from tests.integration.tools.site import Answer, Site

Call = Callable[[Any], Answer]
"""What becomes of a call of the tool, by the id of its request."""

TOOL = {"name": "pay", "description": "Pays.", "inputSchema": {"type": "object", "properties": {}}}


def answers(message: dict[str, Any], status: str = "200 OK") -> Answer:
    body = json.dumps(message).encode()

    async def answer(writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(body)}"]
        writer.write("\r\n".join([*lines, "Connection: close", "", ""]).encode() + body)

    return answer


def result(id: Any, value: dict[str, Any]) -> Answer:
    return answers({"jsonrpc": "2.0", "id": id, "result": value})


def error(code: int) -> Call:
    """Of JSON-RPC."""
    return lambda id: answers({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": "it says no"}})


def whatever(answer: Answer) -> Call:
    return lambda id: answer


def says_it_failed(id: Any) -> Answer:
    return result(id, {"content": [{"type": "text", "text": "it did not work"}], "isError": True})


def calls(site: Site, path: str) -> int:
    return sum(_method(asked.body) == "tools/call" for asked in site.asked if asked.target == path)


def serve(site: Site, path: str, call: Call) -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        asked = next(one for one in reversed(site.asked) if one.target == path)
        message = json.loads(asked.body) if asked.body else {}
        id, method = message.get("id"), message.get("method")
        match method:
            case "initialize":
                version = message["params"]["protocolVersion"]
                server = {"name": "bank", "version": "1"}
                value = {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": server}
                await result(id, value)(writer)
            case "tools/list":
                await result(id, {"tools": [TOOL]})(writer)
            case "tools/call":
                await call(id)(writer)
            case _ if id is None:
                writer.write(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            case _:
                await answers({"jsonrpc": "2.0", "id": id, "error": {"code": -32601, "message": "no"}})(writer)

    site.pages[path] = answer


def _method(body: bytes) -> Any:
    return json.loads(body).get("method") if body else None
