"""A plan file, JSON or YAML: read as JSON has it, and refused where two people could read it in two ways.

Two equal keys are an error, with the name and the line (`backplane.input.unique_yaml`). Whether it is a plan, the API
says.
"""

import json
from pathlib import Path
from typing import Any

import yaml

from agentctl.exit_codes import CommandError, ExitCode
from backplane.input import unique_yaml


def read_plan(file: Path) -> Any:
    """Raises CommandError(USAGE)."""
    plan = value_of_file(file, "plan")
    if plan is None:
        message = f"{file} is empty; a plan is an object with `steps`, a list of what is to be done (docs/plans.md)."
        raise CommandError(ExitCode.USAGE, message)
    return plan


def value_of_file(file: Path, what: str) -> Any:
    """What a file of JSON or YAML holds; `what` is what it is to be. Raises CommandError(USAGE)."""
    try:
        text = file.read_text("utf-8-sig")
    except OSError as error:
        raise CommandError(ExitCode.USAGE, f"The {what} cannot be read: {error}.") from None
    except ValueError as error:
        raise _neither(str(file), error) from None
    return plan_of(text, str(file), is_json=file.suffix == ".json")


def plan_of(text: str, name: str, *, is_json: bool = False) -> Any:
    """`name` is what errors call it. Raises CommandError(USAGE)."""
    try:
        if is_json:
            plan = json.loads(text)
            # What is JSON is YAML too, but for tabs, and the parser of YAML knows the lines.
            unique_yaml.loads(text.replace("\t", " "))
            return plan
        # By way of JSON, so that what only YAML has, such as a date, is an error here and not in the middle of a call.
        return json.loads(json.dumps(unique_yaml.loads(text), allow_nan=False))
    except unique_yaml.DuplicateKey as error:
        raise CommandError(ExitCode.USAGE, f"{name}: {error}") from None
    except (ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise _neither(name, error) from None


def _neither(name: str, error: Exception) -> CommandError:
    return CommandError(ExitCode.USAGE, f"{name} is neither JSON nor YAML that JSON can hold: {error}")
