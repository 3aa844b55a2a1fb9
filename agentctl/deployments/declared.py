"""A file of a deployment: YAML or JSON with `agent_id`, `namespace`, `image` and `manifest`, or a manifest alone.

Whether a deployment can be, the API says. Here what is missing is named, for it may stand in an option as well, and a
field that does not exist: a change sends image and manifest alone, so the API would never see it.
"""

import sys
from pathlib import Path
from typing import Any

from agentctl.api.api_error import JsonObject
from agentctl.exit_codes import CommandError, ExitCode
from agentctl.plan_file import plan_of, value_of_file

_FIELDS = ("agent_id", "namespace", "image", "manifest")


_WHAT = "file of a deployment"
_STDIN = Path("-")
FILE_MAX_BYTES = 1024 * 1024
"""Of standard input; a manifest that the API takes has less."""


def read_deployment(file: Path, options: dict[str, str | None]) -> JsonObject:
    """The body of POST /api/deployments. `file`: `-` is standard input. `options`: what the command line says, by
    field, which goes before the file. Raises CommandError(USAGE)."""
    found = _of_stdin() if file == _STDIN else value_of_file(file, _WHAT)
    if not isinstance(found, dict) or not ({"manifest", "apiVersion"} & found.keys()):
        raise _wrong(file, "it must be an object with agent_id, namespace, image and manifest, or a manifest")
    if "apiVersion" in found:
        if found.get("kind") != "Agent":
            kind = found.get("kind")
            why = f"its kind is {kind!r}" if isinstance(kind, str) else "it has no kind"
            raise _wrong(file, f"{why}; a manifest has kind: Agent, and is no object of Kubernetes")
        metadata = found.get("metadata")
        name = metadata.get("name") if isinstance(metadata, dict) else None
        found = {"agent_id": name, "manifest": found}
    if unknown := [name for name in found if name not in _FIELDS]:
        raise _wrong(file, f"there is no such field: {unknown[0]}; there are {', '.join(_FIELDS)}")
    declared = {**found, **{name: value for name, value in options.items() if value is not None}}
    for name in _FIELDS:
        if declared.get(name) is None:
            raise _wrong(file, f"{name} is missing; write it there, or give --{name.replace('_', '-')}")
    return declared


def _of_stdin() -> Any:
    if sys.stdin.isatty():
        raise CommandError(
            ExitCode.USAGE, f"- is standard input, and nothing is piped there; pipe the {_WHAT} into it."
        )
    given = sys.stdin.buffer.read(FILE_MAX_BYTES + 1)
    if len(given) > FILE_MAX_BYTES:
        raise CommandError(ExitCode.USAGE, f"Standard input has more than {FILE_MAX_BYTES:,} bytes; it is no {_WHAT}.")
    try:
        text = given.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CommandError(ExitCode.USAGE, f"Standard input is not UTF-8 text: {error}.") from None
    return plan_of(text, "standard input")


def _wrong(file: Path, why: str) -> CommandError:
    name = "standard input" if file == _STDIN else file
    return CommandError(ExitCode.USAGE, f"{name}: {why} (docs/deployments.md).")
