"""Handlers: async functions that carry out runs, of packages that offer them or of one file.

An installed package names its handlers under the entry point group `agent_platform.handlers`: a module, one handler, or
a list of them. As with tools (`worker.tools.plugins`), a worker does not start with one that is wrong, and they are
trusted like the platform itself, since they run in the worker's process.
"""

import hashlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema

from backplane.domain.runs import HANDLER_PATTERN
from backplane.tool_catalogue.base import PublishedHandler
from worker.tools.plugins import PluginRefused, package_of

GROUP = "agent_platform.handlers"

_NAME = re.compile(HANDLER_PATTERN)


@dataclass(frozen=True, slots=True)
class Handler:
    """`input` reads what the function is given, None where it takes nothing. `result_schema`: the JSON schema of what
    it returns, None where its annotation has none. `code`: a digest of the file that it is written in. `package`: the
    installed package, or the file, that it is from."""

    name: str
    function: Callable[..., Awaitable[Any]]
    input: TypeAdapter[Any] | None
    result_schema: Mapping[str, Any] | None
    description: str
    code: str
    package: str = ""

    def __call__(self, *args: Any) -> Awaitable[Any]:
        """The function itself, for tests of it."""
        return self.function(*args)

    @property
    def input_schema(self) -> dict[str, Any]:
        return {"type": "null"} if self.input is None else self.input.json_schema()

    def published(self) -> PublishedHandler:
        result = None if self.result_schema is None else dict(self.result_schema)
        return PublishedHandler(self.name, self.description, self.input_schema, result, self.package)


def handler(name: str) -> Callable[[Callable[..., Awaitable[Any]]], Handler]:
    """Makes a handler of `async def function(run, input)`, or of one that takes the run alone. Raises ValueError for
    what cannot be one."""

    def make(function: Callable[..., Awaitable[Any]]) -> Handler:
        if not _NAME.fullmatch(name):
            raise ValueError(f"handler {name!r}: a name has small letters, digits, '.', '_' and '-', at most 64")
        if not inspect.iscoroutinefunction(function):
            raise ValueError(f"handler {name!r}: {function!r} is no `async def`")
        parameters = list(inspect.signature(function).parameters.values())
        if len(parameters) not in (1, 2):
            raise ValueError(f"handler {name!r}: it takes the run, and its input where it has one: (run, input)")
        hints = get_type_hints(function)
        given = TypeAdapter(hints.get(parameters[1].name, Any)) if len(parameters) == 2 else None
        description = (inspect.getdoc(function) or "").strip()
        return Handler(name, function, given, _schema_of(hints.get("return")), description, code_digest(function))

    return make


def _schema_of(annotation: Any) -> dict[str, Any] | None:
    if annotation is None:
        return None
    try:
        return TypeAdapter(annotation).json_schema(mode="serialization")
    except (PydanticSchemaGenerationError, PydanticInvalidForJsonSchema, PydanticUserError):
        return None


def code_digest(function: Callable[..., Any]) -> str:
    """Of the file that the function is written in."""
    try:
        source = Path(inspect.getfile(function)).read_bytes()
    except (OSError, TypeError):
        source = function.__code__.co_code
    return hashlib.sha256(source).hexdigest()


class HandlerRegistry:
    def __init__(self, handlers: Iterable[Handler] = ()) -> None:
        self._handlers: dict[str, Handler] = {}
        for one in handlers:
            if one.name in self._handlers:
                raise ValueError(f"two handlers have the name {one.name!r}: rename one")
            self._handlers[one.name] = one

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._handlers))

    def get(self, name: str) -> Handler | None:
        return self._handlers.get(name)

    def published(self) -> tuple[PublishedHandler, ...]:
        return tuple(self._handlers[name].published() for name in self.names)


def installed_handlers(file: str, found: Iterable[EntryPoint]) -> HandlerRegistry:
    """Those of the entry points, and of `file`, where one is named. Raises PluginRefused."""
    handlers: list[Handler] = []
    for entry_point in sorted(found, key=lambda one: (package_of(one), one.name)):
        where = f"{entry_point.name} = {entry_point.value} of {package_of(entry_point)}"
        try:
            loaded = entry_point.load()
        except (Exception, SystemExit) as error:
            raise _refused(where, f"it cannot be loaded ({type(error).__name__}: {error})") from error
        handlers += _handlers_in(loaded, where, package_of(entry_point))
    if file:
        handlers += _handlers_in(module_of(Path(file), _refused), f"the file {file}", Path(file).name)
    try:
        return HandlerRegistry(handlers)
    except ValueError as error:
        raise _refused("of all installed packages", str(error)) from None


def _handlers_in(loaded: Any, where: str, package: str) -> list[Handler]:
    match loaded:
        case Handler():
            found: list[Any] = [loaded]
        case ModuleType():
            found = [value for value in vars(loaded).values() if isinstance(value, Handler)]
        case Iterable():
            found = list(loaded)
        case _:
            found = [loaded]
    for one in found:
        if not isinstance(one, Handler):
            raise _refused(where, f"it gives a {type(one).__name__}, not a function with @handler")
    if not found:
        raise _refused(where, "there is no function with @handler in it")
    return [
        Handler(one.name, one.function, one.input, one.result_schema, one.description, one.code, package)
        for one in {one.name: one for one in found}.values()
    ]


def module_of(file: Path, refused: Callable[[str, str], PluginRefused]) -> ModuleType:
    """The module of a Python file. `refused`: makes the error, of what and why."""
    name = f"agent_platform_handlers_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise refused(f"the file {file}", "it is no Python file (its name must end with .py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # annotations of its models are looked up there
    sys.path.insert(0, str(file.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise refused(f"the file {file}", f"it cannot be loaded ({type(error).__name__}: {error})") from error
    finally:
        sys.path.remove(str(file.resolve().parent))
    return module


def _refused(where: str, reason: str) -> PluginRefused:
    return PluginRefused(
        f"the handlers {where} cannot be used: {reason}. Mend or uninstall that package; the worker does not start "
        "with it."
    )
