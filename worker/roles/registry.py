"""The roles of a worker: those that come along, those of installed packages, and those of the folder ROLES_DIR.

A package names its roles under the entry point group `agent_platform.roles`: a module, a class, a role, or a list of
them. A role of a package or of the folder takes the place of one that comes along and has its name; any other name may
be there once. As with tools and handlers, a worker does not start with a role that is wrong, and classes are trusted
like the platform itself, since they run in the worker's process.
"""

import hashlib
import inspect
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

from backplane.domain.bus import check_pattern
from backplane.domain.runs import HANDLER_PATTERN
from backplane.errors import InvalidInput
from worker.handlers.registry import code_digest, module_of
from worker.roles.model_role import ModelRole
from worker.roles.role import Role
from worker.roles.role_file import RoleFileRefused, read_role_file
from worker.tools.plugins import PluginRefused, package_of

GROUP = "agent_platform.roles"
BUILT_IN = Path(__file__).parent / "built_in"

_NAME = re.compile(HANDLER_PATTERN)
_TEXTS = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class RegisteredRole:
    """`code`: a digest of the file that it is written in. `package`: the installed package or the file that it is
    from; empty for one that comes along."""

    role: Role
    code: str
    package: str = ""

    @property
    def name(self) -> str:
        return self.role.name


class RoleRegistry:
    def __init__(self, roles: Iterable[RegisteredRole] = ()) -> None:
        """Raises ValueError where two that do not come along have one name."""
        self._roles: dict[str, RegisteredRole] = {}
        for one in sorted(roles, key=lambda role: bool(role.package)):
            there = self._roles.get(one.name)
            if there is not None and there.package:
                raise ValueError(
                    f"two roles have the name {one.name!r}, one of {there.package} and one of {one.package}: rename one"
                )
            self._roles[one.name] = one

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._roles))

    def get(self, name: str) -> RegisteredRole | None:
        return self._roles.get(name)

    def listening(self) -> dict[str, tuple[str, ...]]:
        """By role, the patterns of types of events that become messages; roles without any have an empty tuple."""
        return {name: tuple(one.role.listens_to) for name, one in sorted(self._roles.items())}


def installed_roles(folder: str, found: Iterable[EntryPoint]) -> RoleRegistry:
    """Those that come along, of the entry points, and of the folder, where one is named. Raises PluginRefused."""
    roles = _built_in()
    for entry_point in sorted(found, key=lambda one: (package_of(one), one.name)):
        where = f"{entry_point.name} = {entry_point.value} of {package_of(entry_point)}"
        try:
            loaded = entry_point.load()
        except (Exception, SystemExit) as error:
            raise _refused(where, f"it cannot be loaded ({type(error).__name__}: {error})") from error
        roles += _roles_in(loaded, where, package_of(entry_point))
    if folder:
        roles += _roles_of_folder(Path(folder))
    try:
        return RoleRegistry(roles)
    except ValueError as error:
        raise _refused("of this worker", str(error)) from None


def _built_in() -> list[RegisteredRole]:
    files = sorted(BUILT_IN.glob("*.yaml"))
    return [RegisteredRole(ModelRole(read_role_file(file)), _digest(file)) for file in files]


def _roles_of_folder(folder: Path) -> list[RegisteredRole]:
    if not folder.is_dir():
        raise PluginRefused(f"ROLES_DIR is {folder}, and no such folder is there: make it, or name another one.")
    roles: list[RegisteredRole] = []
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        raise PluginRefused(f"ROLES_DIR is {folder}, and it cannot be read ({error}): look at its rights.") from None
    for file in files:
        if file.name.startswith((".", "_")) or not file.is_file():
            continue
        where = f"the file {file}"
        if file.suffix in _TEXTS:
            try:
                roles.append(RegisteredRole(ModelRole(read_role_file(file)), _digest(file), file.name))
            except (RoleFileRefused, OSError) as error:
                raise PluginRefused(f"{error}. The worker does not start with it.") from None
        elif file.suffix == ".py":
            roles += _roles_in(module_of(file, _refused), where, file.name)
    return roles


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _roles_in(loaded: Any, where: str, package: str) -> list[RegisteredRole]:
    found: Sequence[Any]
    if isinstance(loaded, ModuleType):
        found = [
            value
            for name, value in vars(loaded).items()
            if not name.startswith("_") and (_is_own_class(value, loaded) or isinstance(value, Role))
        ]
    elif isinstance(loaded, Iterable):
        found = list(loaded)
    else:
        found = [loaded]
    if not found:
        raise _refused(where, "there is no class of worker.roles.Role in it")
    return [_registered(one, where, package) for one in found]


def _is_own_class(value: Any, module: ModuleType) -> bool:
    """Of classes that a module has, its own: what it imports to inherit from is no role of it."""
    return inspect.isclass(value) and issubclass(value, Role) and value.__module__ == module.__name__


def _registered(one: Any, where: str, package: str) -> RegisteredRole:
    if inspect.isclass(one) and issubclass(one, Role):
        try:
            one = one()
        except (Exception, SystemExit) as error:
            raise _refused(
                where, f"{one.__name__}() raises {type(error).__name__}: {error}; a role takes none"
            ) from error
    if not isinstance(one, Role):
        raise _refused(where, f"it gives a {type(one).__name__}, not a class of worker.roles.Role")
    try:
        fault = _fault(one)
    except Exception as error:
        fault = f"{type(one).__name__} cannot be looked at ({type(error).__name__}: {error})"
    if fault:
        raise _refused(where, fault)
    return RegisteredRole(one, code_digest(type(one).on_message), package)


def _fault(role: Role) -> str:
    """What is wrong with a role; empty when nothing is."""
    kind = type(role)
    if not isinstance(role.name, str) or not _NAME.fullmatch(role.name):
        return f"{kind.__name__}.name is {role.name!r}: a name has small letters, digits, '.', '_' and '-', at most 64"
    if kind.on_message is Role.on_message:
        return f"{kind.__name__} has no `async def on_message(self, message, agent)`; write one"
    if not inspect.iscoroutinefunction(kind.on_message):
        return f"{kind.__name__}.on_message is no `async def`; make it one"
    try:
        inspect.signature(role.on_message).bind("message", "agent")
    except TypeError:
        return f"{kind.__name__}.on_message must take (self, message, agent)"
    if role.model is not None and not (isinstance(role.model, str) and "/" in role.model):
        return f"{kind.__name__}.model is {role.model!r}; write SERVER/NAME, such as ollama/qwen2.5:7b"
    if isinstance(role.listens_to, str):
        return f"{kind.__name__}.listens_to is a text; write a tuple of types, such as ({role.listens_to!r},)"
    if not isinstance(role.listens_to, list | tuple) or not all(isinstance(one, str) for one in role.listens_to):
        return f"{kind.__name__}.listens_to is {role.listens_to!r}; write a tuple of types, such as ('order.*',)"
    for pattern in role.listens_to:
        try:
            check_pattern(pattern, f"{kind.__name__}.listens_to")
        except InvalidInput as error:
            return error.message
    return ""


def _refused(where: str, reason: str) -> PluginRefused:
    return PluginRefused(
        f"the roles {where} cannot be used: {reason}. Mend it or take it away; the worker does not start with it."
    )
