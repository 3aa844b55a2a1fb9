"""The commands before a run: `validate` says all that is wrong with a plan or a prompt, `tools` what a step can use."""

import json
from pathlib import Path
from typing import Annotated

import typer

from agentctl.api.api_error import JsonObject
from agentctl.calls import call
from agentctl.exit_codes import CommandError, ExitCode
from agentctl.new_run import text_of
from agentctl.plan_file import plan_of, read_plan
from agentctl.terminal.follow import with_flag
from agentctl.terminal.output import JsonFlag, Output, some_of

PLANS = frozenset({".json", ".yaml", ".yml"})
_WHY = "no worker is alive, or one has not published its tools (of an older release, or just starting)"


def validate(
    file: Annotated[
        str, typer.Argument(metavar="FILE|-", help="A plan (JSON, YAML), a Markdown runbook or prompt; - is stdin.")
    ],
    planner: Annotated[str | None, typer.Option(metavar="runbook|model", help="Who is to make the plan.")] = None,
    model: Annotated[str | None, typer.Option(metavar="SERVER/NAME", help="The model; else the server's own.")] = None,
    mcp_server: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="An MCP server for its steps. May be given often.")
    ] = None,
    json_output: JsonFlag = False,
) -> None:
    """Say all that is wrong with a plan or a prompt, and which steps it has, without making a run.

    Exit code 0: nothing is wrong. 1: something is.
    """
    output = Output(json_output)
    more = {"planner": planner, "model": model, "mcp_servers": mcp_server}
    body = {**fields_of(file), **{name: value for name, value in more.items() if value}}
    found = call(output, lambda client: client.validate(body))
    if output.json:
        output.document(found)
    else:
        _show(output, file, found)
    raise typer.Exit(ExitCode.OK if found["valid"] else ExitCode.RUN_FAILED)


def fields_of(file: str) -> JsonObject:
    """The plan or the prompt of a file. What comes from standard input is a plan when it is an object with steps.
    Raises CommandError(USAGE)."""
    if file == "-":
        text = text_of(file)
        plan = plan_of(text, "standard input") if _looks_like_a_plan(text) else None
        return {"prompt": text} if plan is None else {"plan": plan}
    if not Path(file).is_file():
        kind = "is no file" if Path(file).exists() else "does not exist"
        raise CommandError(ExitCode.USAGE, f"{file} {kind}; - is standard input.")
    return {"plan": read_plan(Path(file))} if Path(file).suffix.lower() in PLANS else {"prompt": text_of(file)}


def _looks_like_a_plan(text: str) -> bool:
    return text.lstrip().startswith("{") or any(line.startswith("steps:") for line in text.splitlines())


def _show(output: Output, file: str, found: JsonObject) -> None:
    for step in found["steps"]:
        line = f"{step['line']:>5}  " if step["line"] else ""
        path = f" {step['path']}" if step.get("path") else ""
        title = f"  {step['title']}" if step["title"] else ""
        needs = f"  after {some_of(step['needs'])}" if step["needs"] else ""
        output.line(f"{line}{step['id']}  {step['tool']}{path}{title}{needs}")
    name = "standard input" if file == "-" else file
    for fault in found["errors"]:
        where = f"{name}:{fault['line']}" if fault.get("line") else name
        output.line(f"{where}: {fault['detail']}", "red")
    if found["planner"]:
        note = f": {with_flag(found['planner'], found['planner_note'])}" if found["planner_note"] else ""
        output.note(f"planner {found['planner']}{note}")
    if not found["tools_checked"]:
        output.note(f"Tools and their arguments were not looked at: {_WHY}.", "yellow")
    count = len(found["errors"])
    output.note("Nothing is wrong." if not count else f"{count} fault{'' if count == 1 else 's'}.", "bold")


def tools(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show this one, with its arguments.")] = None,
    json_output: JsonFlag = False,
) -> None:
    """List the tools that live workers have, or show one with its arguments."""
    output = Output(json_output)
    if name is not None:
        tool = call(output, lambda client: client.tool(name))
        output.document(tool) if output.json else _show_tool(output, tool)
        return
    found = call(output, lambda client: client.tools())
    if output.json:
        output.document(found)
        return
    rows = [[tool["name"], tool["risk"], _first_sentence(tool["description"])] for tool in found["tools"]]
    output.table(["TOOL", "RISK", "WHAT IT DOES"], rows, folding=["WHAT IT DOES"])
    for server in found["mcp_servers"]:
        offered = some_of(server["tools"]) if server["tools"] is not None else "all that it offers"
        output.note(f"MCP server {server['name']} (name it in mcp_servers): {offered}, as {server['name']}__…")
    if not found["complete"]:
        output.note(f"Not all are known: {_WHY}, or has more than can be published.", "yellow")


def _show_tool(output: Output, tool: JsonObject) -> None:
    output.line(tool["description"])
    output.fields(
        {
            "risk": tool["risk"],
            "repeatable": "yes" if tool["repeatable"] else "no",
            "from": tool["package"] or "the platform",
        }
    )
    schema = tool["parameters"]
    required = schema.get("required", [])
    rows = [
        [name, "yes" if name in required else "no", _kind(argument), argument.get("description", "")]
        for name, argument in schema.get("properties", {}).items()
    ]
    output.line()
    output.table(["ARGUMENT", "NEEDED", "TYPE", "WHAT FOR"], rows, folding=["TYPE", "WHAT FOR"])


def _kind(schema: JsonObject) -> str:
    if "enum" in schema:
        return " | ".join(map(json.dumps, schema["enum"]))
    if "anyOf" in schema:
        return " | ".join(map(_kind, schema["anyOf"]))
    kind = str(schema.get("type", "object"))
    return f"{kind} of {_kind(schema['items'])}" if isinstance(schema.get("items"), dict) else kind


def _first_sentence(text: str) -> str:
    return text.partition(". ")[0].rstrip(".")
