"""Compares the names that users of the platform rely on with `tests/architecture/wire`, or writes them (`--write`).

Renaming a module or a class must change none of these. A name that is added is written with `--write`; one that is
renamed or removed breaks somebody's client, dashboard or script, and the difference in the committed files shows it to
whoever reviews the change. Descriptions, summaries and examples are left out: they may be written better at any time.
"""

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python
from typer._click.core import Context
from typer.main import get_command

from agentctl.__main__ import app as command_line
from agentctl.exit_codes import ExitCode
from app.main import create_app
from app.schemas.problems import ProblemCode
from backplane.domain.event_data import DATA
from backplane.redis.declared_keys import KEYS
from backplane.settings import Settings
from checks.error_codes import TABLES

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "tests" / "architecture" / "wire"
PRODUCT = ("app", "backplane", "controller", "standalone", "worker")
TEXTS = frozenset({"description", "summary", "example", "examples", "title"})
TYPERS_OWN = frozenset({"--install-completion", "--show-completion"})
LEVELS = 5
"""Of the API's description: a field of a model has a line of its own."""
METRICS = frozenset({"Counter", "Gauge", "Histogram", "GaugeMetricFamily", "CounterMetricFamily"})


def files() -> dict[str, str]:
    """The text of each committed file, by its name."""
    made = {
        "openapi.json": without_texts(described()),
        "names.json": {
            "settings": settings(),
            "events": {type.value: sorted(filter(None, fields)) for type, fields in DATA.items()},
            "error codes": sorted({*ProblemCode, *(code for table in TABLES.values() for code in table)}),
            "exit codes": {code.name: int(code) for code in ExitCode},
            "commands": dict(commands()),
            "redis keys": {key.pattern: key.type for key in KEYS},
            "metrics": dict(sorted(metrics())),
        },
    }
    return {name: "\n".join(lines(value, LEVELS)) + "\n" for name, value in made.items()}


def lines(value: Any, levels: int) -> list[str]:
    """As JSON, in which the objects of the outermost levels have a line for each of their members."""
    if not levels or not isinstance(value, dict) or not value:
        return [json.dumps(value, ensure_ascii=False)]
    members = [(json.dumps(name, ensure_ascii=False), lines(each, levels - 1)) for name, each in value.items()]
    made = ["{"]
    for number, (name, [first, *others]) in enumerate(members, 1):
        made += [f" {name}: {first}", *(f" {line}" for line in others)]
        made[-1] += "," if number < len(members) else ""
    return [*made, "}"]


def described() -> Any:
    """The API's description, with the defaults of all settings. Reads neither the environment nor a `.env`."""
    defaults = Settings.__new__(Settings)
    BaseModel.__init__(defaults)
    return create_app(defaults).openapi()


def without_texts(value: Any, *, is_named: bool = False) -> Any:
    """A description without what is for people only. `is_named`: the keys of `value` are names that somebody chose."""
    if isinstance(value, dict):
        return {
            key: without_texts(each, is_named=key in ("properties", "schemas", "paths", "$defs") and not is_named)
            for key, each in sorted(value.items())
            if is_named or key not in TEXTS
        }
    return [without_texts(each) for each in value] if isinstance(value, list) else value


def settings() -> dict[str, Any]:
    """The default of each setting, by its name in the environment."""
    fields = sorted(Settings.model_fields.items())
    return {name.upper(): to_jsonable_python(field.get_default(call_default_factory=True)) for name, field in fields}


def commands() -> Iterator[tuple[str, list[str]]]:
    """The options and arguments of each command, by its whole name."""
    root: Any = get_command(command_line)
    yield from _below(root, Context(root), "agentctl")


def _below(command: Any, context: Context, path: str) -> Iterator[tuple[str, list[str]]]:
    names = {each for one in command.params for each in (*one.opts, *one.secondary_opts)}
    yield path, sorted(names - TYPERS_OWN)
    if hasattr(command, "list_commands"):
        for name in sorted(command.list_commands(context)):
            yield from _below(command.get_command(context, name), context, f"{path} {name}")


def metrics() -> Iterator[tuple[str, list[str]]]:
    """The labels of each metric, by its name as the code gives it."""
    for folder in PRODUCT:
        for path in (ROOT / folder).rglob("*.py"):
            yield from metrics_in(path.read_text(encoding="utf-8"))


def metrics_in(source: str) -> Iterator[tuple[str, list[str]]]:
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Name(id=kind), args=[ast.Constant(value=str(name)), *others]) if kind in METRICS:
                given = [*others, *(word.value for word in node.keywords if word.arg in ("labels", "labelnames"))]
                labels = [ast.literal_eval(each) for each in given if isinstance(each, ast.List)]
                yield name, labels[0] if labels else []


def main(arguments: list[str]) -> int:
    faults = []
    for name, text in files().items():
        path = FOLDER / name
        if arguments == ["--write"]:
            FOLDER.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            faults.append(
                f"{path.relative_to(ROOT)} differs from the code. What users rely on is neither renamed nor removed; "
                "when you have only added to it, run: python -m checks.wire --write"
            )
    print("\n".join(faults) or "The names that users rely on are as they were committed.")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
