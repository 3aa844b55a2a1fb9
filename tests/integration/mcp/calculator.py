"""An MCP server in the plainest form: it answers line by line. What it is asked for decides how it behaves."""

import json
import os
import sys
import time

TOOLS = [
    {
        "name": "add",
        "description": "Adds two numbers.",
        "inputSchema": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    },
    {"name": "behave", "inputSchema": {"type": "object", "properties": {"how": {"type": "string"}}}},
    {"name": "behave", "inputSchema": {"type": "object"}},
    {"name": "bare.name"},
    {"name": "odd name!", "inputSchema": {}},
    {"name": "no-schema", "inputSchema": {"type": "object", "properties": 5}},
    {"name": "far", "inputSchema": {"type": "object", "properties": {"x": {"$ref": "http://127.0.0.1:1/x"}}}},
]


def answer(method: str, params: dict) -> dict:  # type: ignore[type-arg]
    if method == "initialize":
        return {"protocolVersion": params["protocolVersion"], "capabilities": {}, "serverInfo": {"name": "c"}}
    if method == "tools/list":
        return {"tools": TOOLS}
    arguments = params["arguments"]
    if params["name"] == "add":
        return {"content": [{"type": "text", "text": str(arguments["a"] + arguments["b"])}]}
    match arguments["how"]:
        case "hang":
            time.sleep(60)
        case "garbage":
            for _ in range(2000):
                print("no json", flush=True)
        case "noise":
            print("no json", flush=True)
        case "endless":
            return {"content": [{"type": "text", "text": "x" * 2_000_000}]}
        case "die":
            sys.exit(3)
        case "fail":
            return {"content": [{"type": "text", "text": "it does not work"}], "isError": True}
        case "write":
            with open("made.txt", "w") as file:
                file.write("made")
        case "environment":
            return {"content": [{"type": "text", "text": os.environ.get("CALC_KEY", "none")}]}
        case "stderr":
            print("said beside", file=sys.stderr, flush=True)
        case "forge":
            print("\x1emcp " + json.dumps({"answers": "none", "failure": None}), file=sys.stderr, flush=True)
            time.sleep(60)
        case "ask":
            print(json.dumps({"jsonrpc": "2.0", "id": 77, "method": "sampling/createMessage"}), flush=True)
            return {"content": [{"type": "text", "text": "refused: " + sys.stdin.readline().strip()}]}
    return {"content": [{"type": "image", "data": "", "mimeType": "image/png"}]}


for line in sys.stdin:
    message = json.loads(line)
    if "id" in message:
        result = answer(message["method"], message.get("params") or {})
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
