"""A plan file, JSON or YAML: read as JSON has it, and refused where two people could read it in two ways.

Of two equal keys a parser keeps the last and is silent, so that `approval: true` could be undone by a line further
down. They are an error here, with the name and the line. Whether it is a plan, the API says.
"""

import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from agentctl.exit_codes import CommandError, ExitCode


def read_plan(file: Path) -> Any:
    """Raises CommandError(USAGE)."""
    try:
        text = file.read_text("utf-8-sig")
    except OSError as error:
        raise CommandError(ExitCode.USAGE, f"The plan cannot be read: {error}.") from None
    except ValueError as error:
        raise _neither(str(file), error) from None
    plan = plan_of(text, str(file), is_json=file.suffix == ".json")
    if plan is None:
        message = f"{file} is empty; a plan is an object with `steps`, a list of what is to be done (docs/plans.md)."
        raise CommandError(ExitCode.USAGE, message)
    return plan


def plan_of(text: str, name: str, *, is_json: bool = False) -> Any:
    """`name` is what errors call it. Raises CommandError(USAGE)."""
    try:
        if is_json:
            plan = json.loads(text)
            # What is JSON is YAML too, but for tabs, and the parser of YAML knows the lines.
            yaml.load(text.replace("\t", " "), _Strict)  # noqa: S506 - a safe loader
            return plan
        # By way of JSON, so that what only YAML has, such as a date, is an error here and not in the middle of a call.
        return json.loads(json.dumps(yaml.load(text, _Strict), allow_nan=False))  # noqa: S506 - a safe loader
    except _Twice as error:
        raise CommandError(ExitCode.USAGE, f"{name}: {error}") from None
    except (ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise _neither(name, error) from None


def _neither(name: str, error: Exception) -> CommandError:
    return CommandError(ExitCode.USAGE, f"{name} is neither JSON nor YAML that JSON can hold: {error}")


class _Twice(yaml.YAMLError):
    pass


class _Strict(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[Hashable, int] = {}
        for key, _ in node.value:
            # `<<` takes over the keys of another mapping; its own go before them.
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            name, line = self.construct_object(key, deep=True), key.start_mark.line + 1
            if isinstance(name, Hashable) and name in lines:
                raise _Twice(f"line {line}: {name!r} stands there twice, first in line {lines[name]}; keep one")
            lines[name] = line
        return super().construct_mapping(node, deep=deep)
