"""A file of services: YAML or JSON with a list `services`, each with a `name` and the fields of PUT /api/nas/services.

Whether a service can be, the API says. Here only what two people could read in two ways is refused: no list, no name,
or a name twice.
"""

from pathlib import Path

from agentctl.api.api_error import JsonObject
from agentctl.exit_codes import CommandError, ExitCode
from agentctl.plan_file import value_of_file


def read_services(file: Path) -> list[JsonObject]:
    """In the file's order. Raises CommandError(USAGE)."""
    found = value_of_file(file, "file of services")
    services = found.get("services") if isinstance(found, dict) else None
    if not isinstance(services, list) or set(found) != {"services"}:
        raise _wrong(file, "it must be an object with nothing but `services`, a list")
    names = set[str]()
    for number, service in enumerate(services):
        name = service.get("name") if isinstance(service, dict) else None
        if not isinstance(name, str) or not name:
            raise _wrong(file, f"services.{number} has no name")
        if name in names:
            raise _wrong(file, f"services.{number}: there is a service {name} before it; keep one")
        names.add(name)
    return services


def _wrong(file: Path, why: str) -> CommandError:
    return CommandError(ExitCode.USAGE, f"{file}: {why} (docs/services.md).")
