"""Compares docs/reference with the code that it describes, or writes it (`--write`): fields of plans, arguments of
tools, data of events, error codes.

The code is the source: models have their descriptions, events their table. What an error code means stands in
`checks.error_codes`, since codes are given all over the product; that no code is missing there is checked here.
"""

import ast
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from backplane.domain.event_data import DATA
from backplane.domain.events import EventType
from backplane.domain.plans import Plan
from checks.error_codes import TABLES
from worker.tools.agent import AgentTool
from worker.tools.artifact_delete import ArtifactDelete
from worker.tools.artifact_list import ArtifactList
from worker.tools.artifact_read import ArtifactRead
from worker.tools.artifact_write import ArtifactWrite
from worker.tools.base import Tool
from worker.tools.browser import Browser
from worker.tools.deployed_agent import DeployedAgent
from worker.tools.forget import Forget
from worker.tools.http_fetch import HttpFetch, HttpRequest
from worker.tools.recall import Recall
from worker.tools.registry import builtin_tools
from worker.tools.remember import Remember

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "reference"
PRODUCT = ("app", "backplane", "controller", "worker")
NOTE = "<!-- Written by `python -m checks.reference --write`. -->"
OTHER_TOOLS: tuple[type[Tool], ...] = (
    *(HttpFetch, HttpRequest, Browser, AgentTool, DeployedAgent, Remember, Recall, Forget),
    *(ArtifactWrite, ArtifactRead, ArtifactList, ArtifactDelete),
)
GIVEN_BY = {"RunError": 0, "_failed": 0, "_Ended": 0, "_AgentStopped": 0, "problem": 1}
"""Functions that take a code, and at which place."""
_CODE = re.compile(r"[a-z]+(_[a-z]+)*")


def pages() -> dict[str, str]:
    """By file name."""
    return {"plans.md": plans(), "tools.md": tools(), "events.md": events(), "errors.md": errors()}


def plans() -> str:
    schema = Plan.model_json_schema()
    parts = {"A plan": schema, **{f"`{name}`": part for name, part in schema["$defs"].items()}}
    return _page(
        "Fields of plans", "What they mean together: [plans](../plans.md).", *(_fields(*part) for part in parts.items())
    )


def tools() -> str:
    classes = [*(type(tool) for tool in builtin_tools().tools()), *OTHER_TOOLS]
    return _page(
        "Arguments of tools",
        "What a worker really has, plug-ins with it: `agentctl tools`. More on each: [tools](../tools.md).",
        *(_tool(tool) for tool in classes),
    )


def events() -> str:
    sections = [
        f"## `{type.value}`\n\n{DATA[type][''].capitalize()}.\n\n"
        + _table(("Field", "What it says"), [(f"`{name}`", text) for name, text in DATA[type].items() if name])
        for type in EventType
    ]
    about = "Each event is `{id, run_id, type, at, data}`; this is its `data`. A field that does not apply is left out."
    return _page("Events", about, *sections)


def errors() -> str:
    about = (
        "`code` is stable: programs match on it, and people read the message beside it. The same codes stand in "
        "problems of the API, in the `error` of runs and steps, and in events."
    )
    sections = [
        f"## {title}\n\n" + _table(("Code", "Means"), [(f"`{code}`", text) for code, text in table.items()])
        for title, table in TABLES.items()
    ]
    return _page("Error codes", about, *sections)


def codes_in(source: str) -> Iterator[str]:
    """The error codes that a file of the product gives."""
    for node in ast.walk(ast.parse(source)):
        values: list[ast.expr] = []
        match node:
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in GIVEN_BY:
                values = node.args[GIVEN_BY[name] : GIVEN_BY[name] + 1]
            case ast.Assign(targets=[ast.Name(id="code")]) | ast.AnnAssign(target=ast.Name(id="code")):
                values = [node.value] if node.value else []
            case ast.Assign(targets=[ast.Name(id="CODES" | "_CODES")], value=ast.Dict()):
                values = node.value.values  # type: ignore[attr-defined]
        for value in values:
            if isinstance(value, ast.Constant) and isinstance(value.value, str) and _CODE.fullmatch(value.value):
                yield value.value


def faults_of_codes() -> list[str]:
    """Codes without a meaning, and meanings of codes that nothing gives."""
    texts = [path.read_text(encoding="utf-8") for name in PRODUCT for path in (ROOT / name).rglob("*.py")]
    given = {code for text in texts for code in codes_in(text)}
    explained = {code for table in TABLES.values() for code in table}
    whole = "\n".join(texts)
    return [
        *(f"the code {code!r} has no meaning in checks/error_codes.py" for code in sorted(given - explained)),
        *(
            f"nothing gives the code {code!r} of checks/error_codes.py"
            for code in sorted(explained)
            if f'"{code}"' not in whole
        ),
    ]


def _tool(tool: type[Tool]) -> str:
    facts = f"Risk {tool.risk.name.lower()}, {'' if tool.repeatable else 'not '}repeatable."
    schema = tool.arguments.model_json_schema()
    parts = {
        f"`{tool.name}`": schema,
        **{f"`{tool.name}`: {name}": part for name, part in schema.get("$defs", {}).items()},
    }
    first, *others = (_fields(title, part) for title, part in parts.items())
    title, _, table = first.partition("\n\n")
    return "\n\n".join([title, tool.description, facts, table, *others])


def _fields(title: str, schema: Mapping[str, Any]) -> str:
    required = schema.get("required", [])
    rows = [
        (f"`{name}`", "yes" if name in required else "no", _type(field), _default(field), field.get("description", ""))
        for name, field in schema.get("properties", {}).items()
    ]
    about = f"{schema['description']}\n\n" if "description" in schema and title.startswith("`Step") else ""
    return f"## {title}\n\n{about}" + _table(("Field", "Needed", "Type", "Default", "What for"), rows)


def _type(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_type(part) for part in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if "oneOf" in schema or "$ref" in schema:
        parts = schema.get("oneOf", [schema])
        return " or ".join(str(part["$ref"]).rpartition("/")[2] for part in parts)
    kind = str(schema.get("type", "any"))
    if isinstance(schema.get("items"), Mapping):
        kind += f" of {_type(schema['items'])}"
    limits = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "minLength": "length ≥", "maxLength": "length ≤"}
    limits |= {"minItems": "items ≥", "maxItems": "items ≤"}
    bounds = [f"{sign} {schema[name]:,}" for name, sign in limits.items() if name in schema]
    return f"{kind} ({', '.join(bounds)})" if bounds else kind


def _default(schema: Mapping[str, Any]) -> str:
    default = schema.get("default")
    return (
        ""
        if default in (None, "", [], {}) or isinstance(default, dict)
        else f"`{str(default).lower() if isinstance(default, bool) else default}`"
    )


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
    )


def _page(title: str, about: str, *sections: str) -> str:
    return "\n\n".join([f"# {title}", NOTE, about, *sections]) + "\n"


def main(arguments: list[str]) -> int:
    made = pages()
    if arguments == ["--write"]:
        FOLDER.mkdir(exist_ok=True)
        for name, text in made.items():
            (FOLDER / name).write_text(text, encoding="utf-8")
    found = faults_of_codes()
    for name, text in made.items():
        if not (FOLDER / name).exists() or (FOLDER / name).read_text(encoding="utf-8") != text:
            found.append(f"docs/reference/{name} differs from the code; run: python -m checks.reference --write")
    print("\n".join(found) or "docs/reference shows the code as it is.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
