"""A file of a deployment: YAML or JSON with `agent_id`, `namespace`, `image` and `manifest`, or a manifest alone.

Whether a deployment can be, the API says. Here what is missing is named, for it may stand in an option as well, and a
field that does not exist: a change sends image and manifest alone, so the API would never see it.
"""

from pathlib import Path

from agentctl.api.api_error import JsonObject
from agentctl.exit_codes import CommandError, ExitCode
from agentctl.plan_file import value_of_file

_FIELDS = ("agent_id", "namespace", "image", "manifest")


def read_deployment(file: Path, options: dict[str, str | None]) -> JsonObject:
    """The body of POST /api/deployments. `options`: what the command line says, by field, which goes before the file.
    Raises CommandError(USAGE)."""
    found = value_of_file(file, "file of a deployment")
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


def _wrong(file: Path, why: str) -> CommandError:
    return CommandError(ExitCode.USAGE, f"{file}: {why} (docs/deployments.md).")
